//! `nettest`: keeps who has told it that it was there. It looks for no peers by itself.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use serde_json::{Value, json};

use super::options::Options;
use super::{failed, hostname};
use crate::http::{Request, Response};
use crate::server::{Answer, Server};

pub fn run(options: &Options) -> Result<u8, String> {
    let received: Rc<RefCell<BTreeMap<String, u64>>> = Rc::default();
    let mut server = Server::default();
    let handler = move |request: &Request| {
        let mut received = received.borrow_mut();
        match request.path.as_str() {
            "/quit" => return Answer::Exit(Duration::ZERO, 0),
            "/read" => Response::text(
                json!({"Hostname": hostname(), "Received": *received, "StillContactingPeers": false}).to_string(),
            ),
            "/status" => Response::text("fail"),
            "/write" => {
                let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
                if let Some(source) = body["Source"].as_str().filter(|source| !source.is_empty()) {
                    *received.entry(source.to_owned()).or_default() += 1;
                }
                Response::text(json!({"Hostname": hostname()}).to_string())
            }
            _ => Response::error(404, "404 page not found"),
        }
        .into()
    };
    server.http(options.number("port", 8080)?, handler).map_err(failed("HTTP"))?;
    Ok(server.run())
}
