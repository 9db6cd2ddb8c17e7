//! `netexec`: answers by HTTP and UDP who and where it is, and asks others when it is told to.

use std::cell::Cell;
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::options::{Options, duration};
use super::{failed, hostname, log};
use crate::clients::{Asked, ask};
use crate::http::{Request, Response, Url, decoded};
use crate::net::{Datagrams, Failure, resolve};
use crate::server::{Answer, Server};
use crate::tls;

/// How long another has to answer.
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);

pub fn run(options: &Options) -> Result<u8, String> {
    let http_port: u16 = options.number("http-port", 8080)?;
    let udp_port: i32 = options.number("udp-port", 8081)?;
    if options.number("sctp-port", -1)? != -1 {
        return Err("a component has no SCTP".to_owned());
    }
    let mut server = Server::default();
    let ready = Rc::new(Cell::new(false));
    if udp_port != -1 {
        let port = u16::try_from(udp_port).map_err(|_| format!("bad port {udp_port}"))?;
        server.udp(port, move |bytes, from| datagram(bytes, from, port)).map_err(failed("UDP"))?;
        log(&format!("Started UDP server on port  {port}"));
        ready.set(true);
    }
    let fixed = options.get("http-override").map(str::to_owned);
    let handler = move |request: &Request| {
        let Some(target) = &fixed else { return handle(request, http_port, ready.get()) };
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let mut bytes = format!("GET {path}?{query} HTTP/1.1\r\n\r\n").into_bytes();
        match crate::http::request(&mut bytes) {
            Ok(Some(asked)) => handle(&Request { peer: request.peer.clone(), ..asked }, http_port, ready.get()),
            _ => Response::error(500, "override request failed").into(),
        }
    };
    match (options.get("tls-cert-file"), options.get("tls-private-key-file")) {
        (None, _) => server.http(http_port, handler),
        (Some("/localhost.crt"), _) => server.https(http_port, tls::server(None)?, handler),
        (Some(certificate), key) => {
            let key = key.ok_or("--tls-private-key-file is needed")?;
            server.https(http_port, tls::server(Some((Path::new(certificate), Path::new(key))))?, handler)
        }
    }
    .map_err(failed("HTTP"))?;
    log(&format!("Started HTTP server on port {http_port}"));
    Ok(server.run())
}

fn handle(request: &Request, port: u16, is_ready: bool) -> Answer {
    let parameter = |name| request.parameter(name);
    log(&format!("{} {}", request.method, request.target));
    match request.path.as_str() {
        "/clientip" => Response::text(request.peer.clone()),
        "/serverport" => Response::text(port.to_string()),
        "/header" => match parameter("key") {
            "" => {
                let mut all = serde_json::Map::new();
                for (name, value) in &request.headers {
                    let values = all.entry(canonical(name)).or_insert_with(|| Value::Array(Vec::new()));
                    values.as_array_mut().expect("it was made one").push(value.clone().into());
                }
                Response::text(Value::Object(all).to_string())
            }
            key => Response::text(request.header(key).unwrap_or_default()),
        },
        "/dial" => dial(request),
        "/echo" => match parameter("code") {
            "" => Response::text(parameter("msg")),
            code => match code.parse() {
                Ok(code) => Response::new(code, parameter("msg")),
                Err(_) => Response::text(format!("argument 'code' must be an integer or empty, got {code:?}\n")),
            },
        },
        "/exit" => {
            let code = parameter("code").parse::<u8>().unwrap_or(0);
            let wait = duration(parameter("wait")).unwrap_or_default();
            return Answer::Exit(wait, code);
        }
        "/shutdown" => return Answer::Exit(Duration::ZERO, 0),
        "/healthz" => Response::new(if is_ready { 200 } else { 412 }, ""),
        "/readyz" => {
            if is_ready {
                Response::text("ok")
            } else {
                Response::new(412, "")
            }
        }
        "/hostname" | "/hostName" => Response::text(hostname()),
        "/envvar" => match (parameter("var"), std::env::var(parameter("var"))) {
            ("", _) => Response::error(400, "'var' query parameter is required"),
            (_, Ok(value)) => Response::text(value),
            (name, Err(_)) => Response::error(500, &format!("env var {name:?} is not set")),
        },
        "/redirect" => {
            let code = parameter("code").parse().unwrap_or(302);
            Response::new(code, "").with("location", parameter("location"))
        }
        "/shell" => {
            shell(if parameter("shellCommand").is_empty() { parameter("cmd") } else { parameter("shellCommand") })
        }
        "/upload" => upload(request),
        _ => {
            let now = crate::programs::utc(std::time::SystemTime::now());
            Response::text(format!(
                "NOW: {:04}-{:02}-{:02} {:02}:{:02}:{:02} +0000 UTC",
                now[0], now[1], now[2], now[3], now[4], now[5]
            ))
        }
    }
    .into()
}

/// As Go writes the names of headers.
fn canonical(name: &str) -> String {
    let part = |part: &str| {
        part.chars()
            .enumerate()
            .map(|(at, c)| if at == 0 { c.to_ascii_uppercase() } else { c.to_ascii_lowercase() })
            .collect::<String>()
    };
    name.split('-').map(part).collect::<Vec<_>>().join("-")
}

fn dial(request: &Request) -> Response {
    let (host, port, asked) = (request.parameter("host"), request.parameter("port"), request.parameter("request"));
    let tries = if request.parameter("tries").is_empty() { Ok(1) } else { request.parameter("tries").parse::<u32>() };
    let (Ok(tries), Ok(port)) = (tries, port.parse::<u16>()) else {
        return Response::error(400, "host and/or port param are invalid");
    };
    if asked.is_empty() {
        return Response::error(400, "request parameter not specified");
    }
    let protocol = request.parameter("protocol").to_ascii_lowercase();
    let (mut responses, mut errors, mut last) = (Vec::new(), Vec::new(), String::new());
    for _ in 0..tries {
        let answered = match protocol.as_str() {
            "" | "http" => dial_http(host, port, asked),
            "udp" => dial_udp(host, port, asked),
            other => return Response::error(400, &format!("unsupported protocol. {other}")),
        };
        last.clear();
        match answered {
            Ok(response) => {
                last.clone_from(&response);
                responses.push(response);
            }
            Err(failure) => errors.push(failure.to_string()),
        }
    }
    let mut output = json!({});
    if !last.is_empty() {
        output["responses"] = json!(responses);
    }
    if !errors.is_empty() {
        output["errors"] = json!(errors);
    }
    Response::text(output.to_string())
}

fn dial_http(host: &str, port: u16, request: &str) -> Result<String, Failure> {
    let url = Url { secure: false, host: host.to_owned(), port, target: format!("/{request}") };
    let response = ask(&url, &Asked { timeout: Some(DIAL_TIMEOUT), ..Asked::default() })?;
    Ok(String::from_utf8_lossy(&response.body).into_owned())
}

fn dial_udp(host: &str, port: u16, request: &str) -> Result<String, Failure> {
    let to = *resolve(host, port)?.first().ok_or(Failure::Unknown(host.to_owned()))?;
    let datagrams = Datagrams::bind(SocketAddr::from(([0, 0, 0, 0], 0)))?;
    datagrams.send(request.as_bytes(), to)?;
    let reply = datagrams.receive(Instant::now() + DIAL_TIMEOUT)?;
    Ok(String::from_utf8_lossy(&reply).into_owned())
}

fn shell(command: &str) -> Response {
    let printed = crate::io::Output::buffer();
    let mut io =
        crate::io::Io { input: crate::io::Input::bytes(Vec::new()), output: printed.clone(), errors: printed.clone() };
    let status = crate::shell_of_its_own().script(command, &mut io);
    let mut output = json!({});
    let text = printed.taken();
    if !text.is_empty() {
        output["output"] = String::from_utf8_lossy(&text).into();
    }
    if status != 0 {
        output["error"] = format!("exit status {status}").into();
    }
    Response::text(output.to_string())
}

fn upload(request: &Request) -> Response {
    let boundary = request
        .header("content-type")
        .and_then(|kind| kind.split_once("boundary="))
        .map(|(_, boundary)| boundary.trim_matches('"').to_owned());
    let file = boundary.and_then(|boundary| {
        let text = request.body.as_slice();
        let at = |needle: &[u8], from: usize| {
            text[from..].windows(needle.len()).position(|window| window == needle).map(|at| at + from)
        };
        let start = at(b"\r\n\r\n", 0)? + 4;
        let end = at(format!("\r\n--{boundary}").as_bytes(), start)?;
        Some(text[start..end].to_vec())
    });
    let Some(file) = file else { return Response::text(json!({"error": "Unable to upload file."}).to_string()) };
    let path = format!("/uploads/upload{}", std::time::UNIX_EPOCH.elapsed().map_or(0, |elapsed| elapsed.as_nanos()));
    match std::fs::write(&path, file) {
        Ok(()) => Response::new(201, json!({"output": path}).to_string()),
        Err(_) => Response::text(json!({"error": "Unable to open file for write"}).to_string()),
    }
}

fn datagram(bytes: &[u8], from: SocketAddr, port: u16) -> Option<Vec<u8>> {
    let text = String::from_utf8_lossy(bytes).trim().to_owned();
    let lower = text.to_lowercase();
    let (word, rest) = lower.split_once(' ').unwrap_or((&lower, ""));
    Some(match word {
        "hostname" => hostname().into_bytes(),
        "echo" => rest.as_bytes().to_vec(),
        "clientip" => from.to_string().into_bytes(),
        "serverport" => port.to_string().into_bytes(),
        "envvar" => {
            std::env::var(text.split_once(' ').map_or("", |(_, name)| name.trim())).unwrap_or_default().into_bytes()
        }
        "" => return None,
        _ => {
            log(&format!("Unknown UDP command received from {from}: {}", decoded(&text, false)));
            return None;
        }
    })
}
