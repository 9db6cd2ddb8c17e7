//! A service that does what its path says, so that a test can see how the platform takes it.
//!
//! | Path | Does |
//! | --- | --- |
//! | `/` | greets with the pod's name (`POD_NAME`, else `HOSTNAME`) |
//! | `/env` | lists the environment; `/env?NAME` gives one value |
//! | `/args` | lists the arguments |
//! | `/cat?PATH` | reads a file; 404 with the reason when it cannot |
//! | `/sleep?MS` | answers after a while |
//! | `/stream?N` | sends `N` lines, 50 ms apart |
//! | `/echo` | sends the request's body back |
//! | `/headers` | lists the request's headers |
//! | `/status?CODE` | answers with this status |
//! | `/log?TEXT` | prints on standard output and standard error |
//! | `/panic` | panics |
//! | `/break` | fails in the middle of the body |
//! | `/spin` | never ends; `/spin?MS` computes for a while |
//! | `/alloc?MIB` | takes and touches this much memory |
//! | `/count` | how many requests this instance has had |
//! | `/get?URL` | fetches and passes on the answer; 502 with the reason when it cannot |
//! | `/set?WORD`, `/healthz` | `healthz` answers 200, or 500 after `/set?unhealthy` (in instances that are reused) |

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use futures_lite::stream::unfold;
use wstd::http::body::Bytes;
use wstd::http::{Body, Client, Error, Request, Response, StatusCode};
use wstd::time::{Duration, Instant};

static REQUESTS: AtomicU64 = AtomicU64::new(0);
static UNHEALTHY: AtomicBool = AtomicBool::new(false);

#[wstd::http_server]
async fn main(request: Request<Body>) -> Result<Response<Body>, Error> {
    REQUESTS.fetch_add(1, Ordering::Relaxed);
    let query = request.uri().query().unwrap_or_default().to_owned();
    let number = query.parse::<u64>();
    match request.uri().path() {
        "/" => text(format!("hello from {}\n", name())),
        "/env" if query.is_empty() => {
            text(std::env::vars().map(|(name, value)| format!("{name}={value}\n")).collect::<String>())
        }
        "/env" => match std::env::var(&query) {
            Ok(value) => text(value),
            Err(error) => answer(StatusCode::NOT_FOUND, error.to_string()),
        },
        "/args" => text(std::env::args().map(|argument| format!("{argument}\n")).collect::<String>()),
        "/cat" => match std::fs::read(&query) {
            Ok(bytes) => Ok(Response::new(Body::from(bytes))),
            Err(error) => answer(StatusCode::NOT_FOUND, error.to_string()),
        },
        "/sleep" => {
            wstd::task::sleep(Duration::from_millis(number.unwrap_or(1000))).await;
            text("awake\n")
        }
        "/stream" => stream(number.unwrap_or(5)),
        "/echo" => Ok(Response::new(request.into_body())),
        "/headers" => text(
            request
                .headers()
                .iter()
                .map(|(name, value)| format!("{name}: {}\n", String::from_utf8_lossy(value.as_bytes())))
                .collect::<String>(),
        ),
        "/status" => answer(
            number.ok().and_then(|code| StatusCode::from_u16(code.try_into().ok()?).ok()).unwrap_or_default(),
            "\n",
        ),
        "/log" => {
            println!("{query}");
            eprintln!("{query}");
            text("printed\n")
        }
        "/panic" => panic!("asked to"),
        "/break" => Ok(Response::new(Body::from_try_stream(unfold(0, |step| async move {
            match step {
                0 => Some((Ok(Bytes::from_static(b"so far so good\n")), 1)),
                1 => Some((Err(std::io::Error::other("asked to")), 2)),
                _ => None,
            }
        })))),
        "/spin" => spin(number.ok()),
        "/alloc" => {
            let mut taken = vec![0_u8; (number.unwrap_or(1) << 20) as usize];
            taken.iter_mut().step_by(4096).for_each(|page| *page = 1);
            text(format!("{} bytes\n", std::hint::black_box(taken).len()))
        }
        "/count" => text(format!("{}\n", REQUESTS.load(Ordering::Relaxed))),
        "/get" => match Client::new().send(Request::get(&query).body(Body::empty())?).await {
            Ok(response) => Ok(response),
            Err(error) => answer(StatusCode::BAD_GATEWAY, format!("{error:#}\n")),
        },
        "/set" => {
            UNHEALTHY.store(query == "unhealthy", Ordering::Relaxed);
            text("set\n")
        }
        "/healthz" if UNHEALTHY.load(Ordering::Relaxed) => answer(StatusCode::INTERNAL_SERVER_ERROR, "unhealthy\n"),
        "/healthz" => text("ok\n"),
        other => answer(StatusCode::NOT_FOUND, format!("there is no {other}\n")),
    }
}

fn name() -> String {
    ["POD_NAME", "HOSTNAME"].iter().find_map(|name| std::env::var(name).ok()).unwrap_or_else(|| "nowhere".to_owned())
}

fn text(text: impl Into<Body>) -> Result<Response<Body>, Error> {
    answer(StatusCode::OK, text)
}

fn answer(status: StatusCode, body: impl Into<Body>) -> Result<Response<Body>, Error> {
    Ok(Response::builder().status(status).header("content-type", "text/plain").body(body.into())?)
}

fn stream(lines: u64) -> Result<Response<Body>, Error> {
    let body = move |line: u64| async move {
        if line == lines {
            return None;
        }
        if line > 0 {
            wstd::task::sleep(Duration::from_millis(50)).await;
        }
        Some((Bytes::from(format!("line {line}\n")), line + 1))
    };
    Ok(Response::new(Body::from_stream(unfold(0, body))))
}

fn spin(millis: Option<u64>) -> Result<Response<Body>, Error> {
    let until = millis.map(|millis| Instant::now() + Duration::from_millis(millis));
    let mut number = 1_u64;
    loop {
        for _ in 0..10_000 {
            number = std::hint::black_box(number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
        }
        if until.is_some_and(|until| Instant::now() >= until) {
            return text(format!("{number}\n"));
        }
    }
}
