//! Stands in for container images that others' manifests and tests name, where what matters is that a pod runs and
//! answers: `pause`, `nginx`, `busybox`, and `agnhost` (`netexec`, `serve-hostname`) of Kubernetes' own test suite, or an
//! application of one's own before it is built. Pushed under such a name it answers
//!
//! | Path | Answer |
//! | --- | --- |
//! | `/hostname`, `/hostName` | the pod's name |
//! | `/echo?msg=TEXT` | TEXT |
//! | `/healthz`, `/readyz` | `ok` |
//! | `/env` | the environment, a line each |
//! | `/header?key=NAME` | the request's header of that name |
//! | anything else | a JSON object that says who answered what |

use std::env::{var, vars};

use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::types::{Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam};

struct Standin;

wasip2::http::proxy::export!(Standin);

impl Guest for Standin {
    fn handle(request: IncomingRequest, answer: ResponseOutparam) {
        let target = request.path_with_query().unwrap_or_else(|| "/".to_owned());
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        let (kind, text) = match path {
            "/hostname" | "/hostName" => ("text/plain", hostname()),
            "/healthz" | "/readyz" => ("text/plain", "ok".to_owned()),
            "/echo" => ("text/plain", parameter(query, "msg")),
            "/header" => ("text/plain", header(&request, &parameter(query, "key"))),
            "/env" => ("text/plain", vars().map(|(name, value)| format!("{name}={value}\n")).collect()),
            _ => ("application/json", format!("{{\"pod\":{:?},\"path\":{:?}}}\n", hostname(), path)),
        };
        respond(answer, kind, text.as_bytes());
    }
}

fn hostname() -> String {
    var("HOSTNAME").or_else(|_| var("POD_NAME")).unwrap_or_else(|_| "unknown".to_owned())
}

fn header(request: &IncomingRequest, name: &str) -> String {
    let values = request.headers().get(name);
    values.first().map(|value| String::from_utf8_lossy(value).into_owned()).unwrap_or_default()
}

/// The value of a query parameter, percent-decoded.
fn parameter(query: &str, name: &str) -> String {
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    let value = pairs.into_iter().find(|(found, _)| *found == name).map_or("", |(_, value)| value);
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.bytes();
    while let Some(byte) = rest.next() {
        let hex = |byte: u8| (byte as char).to_digit(16).unwrap_or(0) as u8;
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => hex(rest.next().unwrap_or(b'0')) << 4 | hex(rest.next().unwrap_or(b'0')),
            other => other,
        });
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn respond(answer: ResponseOutparam, kind: &str, text: &[u8]) {
    let headers = Fields::new();
    let length = text.len().to_string();
    for (name, value) in [("content-type", kind), ("content-length", &length)] {
        headers.append(name, value.as_bytes()).expect("the name and the value are well-formed");
    }
    let response = OutgoingResponse::new(headers);
    let body = response.body().expect("the body is taken once");
    ResponseOutparam::set(answer, Ok(response));
    let stream = body.write().expect("the stream is taken once");
    // A stream takes 4096 bytes at a time.
    for part in text.chunks(4096) {
        // The host may close the body once its length is reached, or the client may be gone.
        if stream.blocking_write_and_flush(part).is_err() {
            break;
        }
    }
    drop(stream);
    let _ = OutgoingBody::finish(body, None);
}
