//! The user's story: a FastAPI application, built, pushed and run under its ordinary manifest; what it answers, and how fast.
//!
//! ```console
//! $ cargo run --release --package coracle-tests --bin fastapi                # builds the component first, some minutes, once
//! $ cargo run --release --package coracle-tests --bin fastapi -- app.wasm    # takes one that is there
//! $ cargo run --release --package coracle-tests --bin fastapi -- app.wasm second.wasm
//! ```
//!
//! With a second component (another Python program) it also says how long that takes after the first. The exit code is 0 when every
//! answer was right; figures are printed, not judged: they are the machine's and the profile's, too.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use coracle_tests::{Cluster, coracle, root};

/// Longest wait for one compilation, on a slow machine with a debug build.
const COMPILED: Duration = Duration::from_secs(1_800);
/// Sequential requests for the median.
const WARM: usize = 200;
/// Clients of the load, and how long it lasts.
const CLIENTS: usize = 8;
const LOAD: Duration = Duration::from_secs(5);

struct Answer {
    status: u16,
    body: Vec<u8>,
}

impl Answer {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// A connection that is kept.
struct Client(BufReader<TcpStream>);

impl Client {
    fn connect(at: SocketAddr) -> std::io::Result<Client> {
        let stream = TcpStream::connect(at)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        Ok(Client(BufReader::with_capacity(64 << 10, stream)))
    }

    fn ask(&mut self, method: &str, path: &str, body: &[u8]) -> std::io::Result<Answer> {
        let invalid = || std::io::Error::from(std::io::ErrorKind::InvalidData);
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: fastapi\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        self.0.get_mut().write_all(&[head.as_bytes(), body].concat())?;
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        let status = line.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or_else(invalid)?;
        let (mut length, mut is_chunked) = (0, false);
        loop {
            line.clear();
            self.0.read_line(&mut line)?;
            let Some((name, value)) = line.split_once(':') else { break };
            match name.to_ascii_lowercase().as_str() {
                "content-length" => length = value.trim().parse().map_err(|_| invalid())?,
                "transfer-encoding" => is_chunked = value.contains("chunked"),
                _ => {}
            }
        }
        let mut answer = Answer { status, body: Vec::new() };
        while is_chunked {
            line.clear();
            self.0.read_line(&mut line)?;
            let size = u64::from_str_radix(line.trim(), 16).map_err(|_| invalid())?;
            self.0.by_ref().take(size).read_to_end(&mut answer.body)?;
            self.0.read_line(&mut line)?;
            is_chunked = size > 0;
        }
        self.0.by_ref().take(length).read_to_end(&mut answer.body)?;
        Ok(answer)
    }
}

fn ask(at: SocketAddr, method: &str, path: &str, body: &[u8]) -> Answer {
    let answer = Client::connect(at).and_then(|mut client| client.ask(method, path, body));
    answer.unwrap_or_else(|error| panic!("{method} {path}: {error}"))
}

/// Pushes `wasm` and waits until it is compiled; how long each took.
fn push(cluster: &Cluster, wasm: &str, image: &str) -> Duration {
    let begun = Instant::now();
    // The harness' own limit of time is for quick commands.
    let mut child = Command::new(coracle())
        .args(["push", wasm, image])
        .env("CORACLE_DATA_DIR", cluster.data_dir())
        .env_remove("KUBECONFIG")
        .spawn()
        .expect("run coracle");
    loop {
        if let Some(status) = child.try_wait().expect("wait for our own child") {
            assert!(status.success(), "push {image}: {status}");
            return begun.elapsed();
        }
        if begun.elapsed() > COMPILED {
            let _ = child.kill();
            panic!("{image} is not compiled after {COMPILED:?}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Where a service answers.
fn place(cluster: &Cluster, service: &str) -> SocketAddr {
    (cluster.node_port_address(), cluster.node_port(service)).into()
}

/// Waits for the first good answer.
fn first_answer(at: SocketAddr) -> Answer {
    let begun = Instant::now();
    loop {
        let answer = Client::connect(at).and_then(|mut client| client.ask("GET", "/", b""));
        match answer {
            Ok(answer) if answer.status == 200 => return answer,
            _ => assert!(begun.elapsed() < coracle_tests::DEADLINE, "no answer"),
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn routes(at: SocketAddr) {
    let json = |answer: &Answer| -> serde_json::Value { serde_json::from_slice(&answer.body).expect("JSON") };
    assert_eq!(json(&ask(at, "GET", "/healthz", b""))["status"], "ok");
    assert!(json(&ask(at, "GET", "/whoami", b""))["pod"].as_str().is_some_and(|pod| pod.starts_with("fastapi-app-")));
    let wrong = ask(at, "PUT", "/items/x", br#"{"name": "", "price": -1}"#);
    assert_eq!((wrong.status, json(&wrong)["detail"].as_array().map(Vec::len)), (422, Some(3)), "{}", wrong.text());
    let made = ask(at, "PUT", "/items/7", br#"{"name": "lamp", "price": 9.5}"#);
    assert_eq!((made.status, &json(&made)["name"]), (201, &serde_json::json!("lamp")));
    assert_eq!(ask(at, "GET", "/items/424242", b"").status, 404);
    let docs = ask(at, "GET", "/docs", b"");
    assert!(docs.status == 200 && docs.text().contains("swagger"), "{}", docs.text());
    assert!(json(&ask(at, "GET", "/openapi.json", b""))["paths"]["/items/{item_id}"].is_object());
    let begun = Instant::now();
    assert_eq!(json(&ask(at, "GET", "/sleep?ms=200", b""))["slept_ms"], 200);
    assert!(begun.elapsed() >= Duration::from_millis(200));
    let stream = ask(at, "GET", "/stream", b"").text();
    assert_eq!(stream, (0..5).map(|number| format!("data: {number}\n\n")).collect::<String>());
    let echo = ask(at, "POST", "/echo", &vec![b'x'; 1 << 20]);
    assert_eq!(json(&echo)["bytes"], 1 << 20);
    assert_eq!(ask(at, "GET", "/fail", b"").status, 500);
    let mut client = Client::connect(at).expect("connect");
    for number in 0..30 {
        let answer = client.ask("GET", "/", b"").unwrap_or_else(|error| panic!("request {number}: {error}"));
        assert_eq!(answer.status, 200, "request {number}: {}", answer.text());
    }
}

/// Median of requests one after another.
fn median(at: SocketAddr) -> Duration {
    let mut client = Client::connect(at).expect("connect");
    let mut times: Vec<Duration> = (0..WARM)
        .map(|_| {
            let begun = Instant::now();
            assert_eq!(client.ask("GET", "/", b"").expect("an answer").status, 200);
            begun.elapsed()
        })
        .collect();
    times.sort();
    times[WARM / 2]
}

/// Requests a second that are answered with 200.
fn load(at: SocketAddr) -> (f64, usize) {
    let begun = Instant::now();
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            std::thread::spawn(move || {
                let (mut good, mut bad) = (0_usize, 0_usize);
                let mut client = Client::connect(at);
                while begun.elapsed() < LOAD {
                    match client.as_mut().map_err(|_| ()).and_then(|client| client.ask("GET", "/", b"").map_err(|_| ()))
                    {
                        Ok(answer) if answer.status == 200 => good += 1,
                        Ok(_) => bad += 1,
                        Err(()) => {
                            bad += 1;
                            client = Client::connect(at);
                        }
                    }
                }
                (good, bad)
            })
        })
        .collect();
    let (good, bad) = clients.into_iter().fold((0, 0), |(good, bad), client| {
        let (more, worse) = client.join().expect("a client");
        (good + more, bad + worse)
    });
    (good as f64 / begun.elapsed().as_secs_f64(), bad)
}

fn main() {
    let mut given = std::env::args().skip(1);
    let wasm = given.next().unwrap_or_else(|| {
        let wasm: PathBuf = root().join("examples/target/fastapi-app/app.wasm");
        let built = Command::new(root().join("examples/fastapi-app/build")).arg(&wasm).status();
        assert!(built.is_ok_and(|status| status.success()), "examples/fastapi-app/build has failed");
        wasm.to_str().expect("a path of text").to_owned()
    });
    let manifest = std::fs::read_to_string(root().join("examples/manifests/fastapi-app.yaml")).expect("the manifest");
    let cluster = Cluster::start();
    let compiled = push(&cluster, &wasm, "myregistry/fastapi-app:latest");
    println!("push and compile       {:.1} s", compiled.as_secs_f64());
    let begun = Instant::now();
    cluster.apply(&manifest);
    let at = place(&cluster, "fastapi-app");
    assert!(first_answer(at).text().contains("Hello from FastAPI"));
    println!("apply to first answer  {:.2} s", begun.elapsed().as_secs_f64());
    cluster.eventually("get deployment fastapi-app -o jsonpath={.status.readyReplicas}", |text| text == "3");
    let events = cluster.kubectl("get events -o jsonpath={.items[*].reason}");
    assert!(events.contains("Pulled") && !events.contains("Compiling"), "it was compiled when it was pushed: {events}");
    routes(at);
    println!("routes                 right");
    println!("median of one client   {:.2} ms", median(at).as_secs_f64() * 1_000.0);
    let (rate, bad) = load(at);
    println!("requests, three pods   {rate:.0}/s, {bad} failed");
    cluster.kubectl("scale deployment fastapi-app --replicas=1");
    cluster.eventually("get pods -l app=fastapi-app -o name", |text| text.lines().count() == 1);
    let (rate, bad) = load(at);
    println!("requests, one pod      {rate:.0}/s, {bad} failed");
    let restarts =
        cluster.kubectl("get pods -l app=fastapi-app -o jsonpath={.items[*].status.containerStatuses[*].restartCount}");
    assert_eq!(restarts, "0");
    if let Some(second) = given.next() {
        let begun = Instant::now();
        let compiled = push(&cluster, &second, "myregistry/second:latest");
        let manifest = manifest.replace("myregistry/fastapi-app", "myregistry/second").replace("fastapi-app", "second");
        cluster.apply(&manifest);
        first_answer(place(&cluster, "second"));
        let all = begun.elapsed().as_secs_f64();
        println!("second app in all      {all:.2} s, of it push and compile {:.2} s", compiled.as_secs_f64());
    }
}
