//! The subcommands that need no file of their own.

use std::cell::Cell;
use std::path::Path;
use std::rc::Rc;
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use serde_json::json;

use super::options::Options;
use super::{failed, hostname, log};
use crate::http::{Request, Response, url};
use crate::net::{Datagrams, Failure, Stream, resolve};
use crate::server::Server;
use crate::tls;

/// What `mounttest` writes into a new file.
const INITIAL: &str = "mount-tester new file\n";

pub fn pause() -> Result<u8, String> {
    println!("Paused");
    loop {
        sleep(Duration::from_secs(3600));
    }
}

pub fn liveness(_: &Options) -> Result<u8, String> {
    let started = Instant::now();
    let mut server = Server::default();
    let handler = move |request: &Request| {
        let age = started.elapsed();
        match request.path.as_str() {
            "/started" => Response::text(format!("{}s", age.as_secs_f64())),
            "/healthz" if age > Duration::from_secs(10) => Response::new(500, format!("error: {}", age.as_secs_f64())),
            "/healthz" => Response::text("ok"),
            "/redirect" => {
                Response::new(302, "").with("location", &crate::http::decoded(request.parameter("loc"), true))
            }
            _ => Response::error(404, "404 page not found"),
        }
        .into()
    };
    server.http(8080, handler).map_err(failed("HTTP"))?;
    Ok(server.run())
}

pub fn grpc_health_checking(options: &Options) -> Result<u8, String> {
    if options.get("tls-cert-file").is_some() {
        return Err("--tls-cert-file is not supported".to_owned());
    }
    let started = Instant::now();
    let (name, delay) =
        (options.get("service").unwrap_or_default().to_owned(), options.number::<i64>("delay-unhealthy-sec", -1)?);
    let forced = Rc::new(Cell::new(None::<bool>));
    let mut server = Server::default();
    let told = forced.clone();
    let handler = move |request: &Request| {
        match request.path.as_str() {
            "/make-serving" => told.set(Some(true)),
            "/make-not-serving" => told.set(Some(false)),
            _ => return Response::error(404, "404 page not found").into(),
        }
        Response::text(format!("{}s", started.elapsed().as_secs_f64())).into()
    };
    server.http(options.number("http-port", 8080)?, handler).map_err(failed("HTTP"))?;
    let health = move |asked: &str| {
        let is_late = u64::try_from(delay).is_ok_and(|delay| started.elapsed() >= Duration::from_secs(delay));
        (asked == name).then_some(forced.get() != Some(false) && !is_late)
    };
    server.health(options.number("port", 5000)?, health).map_err(failed("gRPC"))?;
    Ok(server.run())
}

pub fn logs_generator(options: &Options) -> Result<u8, String> {
    let short = |long: &str, short: &str| options.get(long).or_else(|| options.get(short)).map(str::to_owned);
    let lines: u32 = short("log-lines-total", "t").and_then(|lines| lines.parse().ok()).unwrap_or(0);
    let duration =
        short("run-duration", "d").map(|text| super::options::duration(&text)).transpose()?.unwrap_or_default();
    if lines == 0 || duration.is_zero() {
        return Err("a number of lines and a duration are needed".to_owned());
    }
    let mut random = SystemTime::UNIX_EPOCH.elapsed().map_or(1, |elapsed| elapsed.subsec_nanos());
    let mut next = |below: u32| {
        random = random.wrapping_mul(1_103_515_245).wrapping_add(12_345);
        (random >> 16) % below
    };
    for line in 0..lines {
        let begun = Instant::now();
        let method = ["GET", "POST", "PUT"][next(3) as usize];
        let namespace = ["kube-system", "default", "ns"][next(3) as usize];
        let pod: String = (0..next(2) + 3).filter_map(|_| char::from_digit(next(26) + 10, 36)).collect();
        let [_, month, day, hour, minute, second] = crate::programs::utc(SystemTime::now());
        eprintln!(
            "I{month:02}{day:02} {hour:02}:{minute:02}:{second:02}.000000       1 logs_generator.go:76] {line} {method} /api/v1/namespaces/{namespace}/pods/{pod} {}",
            next(400) + 200
        );
        sleep((duration / lines).saturating_sub(begun.elapsed()));
    }
    Ok(0)
}

pub fn serve_hostname(options: &Options) -> Result<u8, String> {
    let port: u16 = options.number("port", 9376)?;
    let (tcp, udp, http, closes) =
        (options.is("tcp", false)?, options.is("udp", false)?, options.is("http", true)?, options.is("close", false)?);
    if http && (tcp || udp) {
        return Err("Can't server TCP/UDP mode and HTTP mode at the same time".to_owned());
    }
    let mut server = Server::default();
    if tcp {
        server.says(port, hostname().as_bytes()).map_err(failed("TCP"))?;
    }
    if udp {
        server.udp(port, |_, _| Some(hostname().into_bytes())).map_err(failed("UDP"))?;
    }
    if http {
        let handler = move |request: &Request| {
            log(&format!("HTTP request from {}", request.peer));
            let response = Response::text(hostname());
            if closes { response.with("connection", "close") } else { response }.into()
        };
        server.http(port, handler).map_err(failed("HTTP"))?;
    }
    log(&format!("Serving on port {port}."));
    Ok(server.run())
}

pub fn porter(options: &Options) -> Result<u8, String> {
    let as_json = options.is("json-response", false)?;
    let mut server = Server::default();
    for (name, value) in std::env::vars() {
        let Some(rest) = name.strip_prefix("SERVE_") else { continue };
        let Some((kind, port)) = rest.split_once("PORT_") else { continue };
        let port: u16 = port.parse().map_err(|_| format!("bad port in {name}"))?;
        let body = value.clone();
        let handler = move |request: &Request| match as_json {
            true => Response::json(&json!({"Method": request.method, "Body": body})).into(),
            false => Response::new(200, body.as_bytes()).with("content-type", kind_of(&body)).into(),
        };
        match kind {
            "" | "TCP_" => server.http(port, handler),
            "UDP_" => server.udp(port, move |_, _| Some(value.clone().into_bytes())),
            "TLS_" => {
                let file = |name: &str| std::env::var(name).ok().filter(|path| !path.is_empty());
                let config = match (file("CERT_FILE"), file("KEY_FILE")) {
                    (Some(certificate), Some(key)) => tls::server(Some((Path::new(&certificate), Path::new(&key))))?,
                    _ => tls::server(None)?,
                };
                server.https(port, config, handler)
            }
            other => return Err(format!("a component does not serve {other}PORT")),
        }
        .map_err(failed(&name))?;
    }
    Ok(server.run())
}

/// What Go's servers find out of a body.
fn kind_of(body: &str) -> &'static str {
    let begins = |tag: &str| body.trim_start().get(..tag.len()).is_some_and(|start| start.eq_ignore_ascii_case(tag));
    if ["<a ", "<html", "<!doctype html", "<body", "<div"].iter().any(|tag| begins(tag)) {
        "text/html; charset=utf-8"
    } else {
        "text/plain; charset=utf-8"
    }
}

pub fn test_webserver(options: &Options) -> Result<u8, String> {
    web(options.number("port", 80)?)
}

/// Serves the files that the component can see.
pub fn web(port: u16) -> Result<u8, String> {
    let mut server = Server::default();
    server.http(port, |request| file(&request.path).into()).map_err(failed("HTTP"))?;
    Ok(server.run())
}

fn file(path: &str) -> Response {
    let path = Path::new(path);
    if path.components().any(|part| part == std::path::Component::ParentDir) {
        return Response::error(400, "invalid URL path");
    }
    // The image has it, and probes ask for it.
    if path == Path::new("/localhost.crt") {
        return Response::text(tls::localhost());
    }
    if let Ok(bytes) = std::fs::read(path) {
        return Response::text(bytes);
    }
    let names = match std::fs::read_dir(path) {
        Ok(names) => names.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect(),
        // Of the root nothing is seen but what is mounted.
        Err(_) if path == Path::new("/") => Vec::new(),
        Err(_) => return Response::error(404, "404 page not found"),
    };
    let links: String = names.iter().map(|name| format!("<a href=\"{name}\">{name}</a>\n")).collect();
    Response::new(200, format!("<pre>\n{links}</pre>\n")).with("content-type", "text/html; charset=utf-8")
}

pub fn mounttest(options: &Options) -> Result<u8, String> {
    for unknown in ["fs_type", "file_mode", "file_perm", "file_owner"] {
        if options.get(unknown).is_some() {
            return Err(format!(
                "--{unknown}: a component's files have no modes, no owners and no type of file system"
            ));
        }
    }
    let mut status = 0;
    for modes in ["0644", "0666", "0660", "0777"] {
        let Some(path) = options.get(&format!("new_file_{modes}")) else { continue };
        match std::fs::write(path, INITIAL) {
            Ok(()) => status |= content(path),
            Err(error) => {
                println!("error writing new file {path:?}: {error}");
                status = 1;
            }
        }
    }
    if let Some(path) = options.get("file_content") {
        status |= content(path);
    }
    if let Some(path) = options.get("file_content_in_loop") {
        let (retry, breaks): (u64, bool) =
            (options.number("retry_time", 180)?, options.is("break_on_expected_content", true)?);
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(retry) {
            match std::fs::read(path) {
                Ok(bytes) => {
                    let text = String::from_utf8_lossy(&bytes).into_owned();
                    println!("content of file {path:?}: {text}");
                    status = 0;
                    if breaks && text == INITIAL {
                        break;
                    }
                    if breaks {
                        println!("Unexpected content. Expected: {INITIAL}. Retrying");
                    }
                }
                Err(error) => {
                    println!("Error reading file {path}: {}, retrying", crate::programs::reason(&error));
                    status = 1;
                }
            }
            sleep(Duration::from_secs(2));
        }
    }
    Ok(status)
}

fn content(path: &str) -> u8 {
    match std::fs::read(path) {
        Ok(bytes) => {
            println!("content of file {path:?}: {}", String::from_utf8_lossy(&bytes));
            0
        }
        Err(error) => {
            println!("error reading file content for {path:?}: {}", crate::programs::reason(&error));
            1
        }
    }
}

pub fn connect(options: &Options) -> Result<u8, String> {
    let destination = options.words.first().ok_or("host:port is needed")?;
    let target = match url(destination) {
        Ok(target) => target,
        Err(wrong) => {
            eprintln!("UNKNOWN: {wrong}");
            return Ok(1);
        }
    };
    let deadline =
        options.duration("timeout")?.filter(|timeout| !timeout.is_zero()).map(|timeout| Instant::now() + timeout);
    let connected = resolve(&target.host, target.port).and_then(|addresses| {
        let to = *addresses.first().ok_or(Failure::Unknown(target.host.clone()))?;
        match options.get("protocol").unwrap_or("tcp") {
            "tcp" => Stream::connect(to, deadline).map(drop),
            "udp" => {
                let datagrams = Datagrams::bind(std::net::SocketAddr::from(([0, 0, 0, 0], 0)))?;
                datagrams.send(format!("{}\n", options.get("udp-data").unwrap_or("hostname")).as_bytes(), to)?;
                datagrams.receive(deadline.unwrap_or(Instant::now() + Duration::from_secs(60))).map(drop)
            }
            other => Err(Failure::Other(format!("Unsupported protocol {other}"))),
        }
    });
    let Err(failure) = connected else { return Ok(0) };
    match failure {
        Failure::TimedOut => eprintln!("TIMEOUT"),
        Failure::Refused => eprintln!("REFUSED"),
        Failure::Unknown(name) => eprintln!("DNS: {name}"),
        Failure::Other(why) => eprintln!("OTHER: {why}"),
    }
    Ok(1)
}
