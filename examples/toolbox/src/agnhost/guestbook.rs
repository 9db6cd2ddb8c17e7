//! `guestbook`: a store of words with a primary, replicas that it tells, and front ends that ask either.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::options::Options;
use super::{failed, log};
use crate::clients::{Asked, ask};
use crate::http::{Request, Response, Url, encoded};
use crate::server::Server;

/// How long a replica looks for its primary, and how long another has to answer.
const REGISTER_TIMEOUT: Duration = Duration::from_secs(15);
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Default)]
struct Store {
    words: BTreeMap<String, String>,
    replicas: Vec<String>,
}

pub fn run(options: &Options) -> Result<u8, String> {
    let http_port: u16 = options.number("http-port", 80)?;
    let backend_port: u16 = options.number("backend-port", 6379)?;
    let store: Rc<RefCell<Store>> = Rc::default();
    if let Some(primary) = options.get("replicaof") {
        store.borrow_mut().words = register(primary, backend_port)?;
        log(&format!("Registered to node: {primary}"));
    }
    let mut server = Server::default();
    let handler = move |request: &Request| handle(request, &mut store.borrow_mut(), backend_port).into();
    server.http(http_port, handler).map_err(failed("HTTP"))?;
    Ok(server.run())
}

fn call(host: &str, port: u16, request: &str) -> Result<String, String> {
    let url = Url { secure: false, host: host.to_owned(), port, target: format!("/{request}") };
    let response =
        ask(&url, &Asked { timeout: Some(DIAL_TIMEOUT), ..Asked::default() }).map_err(|failure| failure.to_string())?;
    Ok(String::from_utf8_lossy(&response.body).into_owned())
}

/// Tells the primary where this replica is; what the primary has.
fn register(primary: &str, port: u16) -> Result<BTreeMap<String, String>, String> {
    let own = std::env::var("POD_IP").ok().or_else(|| own_address(primary, port));
    let own = own.ok_or("the pod's address is not known")?;
    let begun = Instant::now();
    while begun.elapsed() < REGISTER_TIMEOUT {
        match call(primary, port, &format!("register?host={own}")) {
            Ok(answer) => {
                let answer: Value =
                    serde_json::from_str(&answer).map_err(|error| format!("the primary's response: {error}"))?;
                return serde_json::from_value(answer["data"].clone())
                    .map_err(|error| format!("the primary's response: {error}"));
            }
            Err(why) => log(&format!("encountered error while registering to primary: {why}. Retrying in 1s.")),
        }
        sleep(Duration::from_secs(1));
    }
    Err("Timed out while registering to primary.".to_owned())
}

/// The address from which others are reached.
fn own_address(host: &str, port: u16) -> Option<String> {
    let begun = Instant::now();
    while begun.elapsed() < REGISTER_TIMEOUT {
        if let Some(address) =
            std::net::TcpStream::connect((host, port)).ok().and_then(|stream| stream.local_addr().ok())
        {
            return Some(address.ip().to_string());
        }
        sleep(Duration::from_secs(1));
    }
    None
}

fn handle(request: &Request, store: &mut Store, port: u16) -> Response {
    let (key, value) = (request.parameter("key"), request.parameter("value"));
    match request.path.as_str() {
        "/register" => {
            store.replicas.push(request.parameter("host").to_owned());
            Response::text(json!({"data": store.words}).to_string())
        }
        "/get" => {
            let data = if key.is_empty() {
                json!(store.words)
            } else {
                json!(store.words.get(key).cloned().unwrap_or_default())
            };
            Response::text(json!({"data": data}).to_string())
        }
        "/set" if key.is_empty() => Response::error(400, "cannot set with empty key."),
        "/set" => {
            store.words.insert(key.to_owned(), value.to_owned());
            for replica in &store.replicas {
                if let Err(why) = call(replica, port, &format!("set?key={}&value={}", encoded(key), encoded(value))) {
                    return Response::error(
                        417,
                        &format!("encountered error while propagating to replica '{replica}': {why}"),
                    );
                }
            }
            Response::text(json!({"message": "Updated"}).to_string())
        }
        "/guestbook" => {
            let command = request.parameter("cmd").to_lowercase();
            let host = match command.as_str() {
                "set" if key.is_empty() => return Response::error(400, "cannot set with empty key."),
                "set" => "agnhost-primary",
                "get" => "agnhost-replica",
                other => return Response::error(400, &format!("unsupported cmd: '{other}'")),
            };
            match call(host, port, &format!("{command}?key={}&value={}", encoded(key), encoded(value))) {
                Ok(answer) => Response::text(answer),
                Err(why) => Response::error(417, &format!("encountered error: {why}")),
            }
        }
        _ => Response::error(404, "404 page not found"),
    }
}
