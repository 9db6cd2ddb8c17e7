//! What nodes see of requests, asked of all nodes that are heard of: `GET /coracle/v1/tap` (each request as it is answered, a JSON
//! object a line, with the node that saw it) and `GET /coracle/v1/routes` (where one would go, as each node sees it).
//!
//! They are subresources in all but their paths: who may `get` `services/tap` or `services/routes` of a namespace, or of one Service,
//! may ask about that; about all of them, or a host, who may do so everywhere.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use coracle_api::meta::condition;
use coracle_api::status::Status;
use futures::{StreamExt as _, stream};
use http::{Request, header};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;

use crate::answer::respond;
use crate::authz::Attributes;
use crate::cluster::Cluster;
use crate::limits::{Flow, Place};
use crate::nodes::{self, Endpoint, Nodes};
use crate::request::call::Call;
use crate::store::Seen;

/// Nodes that are asked; of more it is said that they are not.
const NODES_MAX: usize = 500;
/// Nodes that are asked at a time where each gives one answer, how long that may take, and its longest.
const ASKED_MAX: usize = 64;
const ANSWER_MAX: Duration = Duration::from_secs(3);
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// Lines on their way from the nodes: the client reads slowly then, and each node loses what it has no room for, and says so.
const LINES_MAX: usize = 64;
/// Bytes of one.
const LINE_BYTES_MAX: usize = 16 << 10;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Of {
    Tap,
    Routes,
}

impl Of {
    /// At this path.
    pub fn find(path: &str) -> Option<Of> {
        match path {
            "/coracle/v1/tap" => Some(Of::Tap),
            "/coracle/v1/routes" => Some(Of::Routes),
            _ => None,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Of::Tap => "tap",
            Of::Routes => "routes",
        }
    }

    /// What must be allowed to ask this.
    pub fn attributes(self, call: &Call) -> Attributes<'_> {
        let text = |name| call.query.text(name).unwrap_or_default();
        // A host may be anybody's.
        let (namespace, name) = match text("host") {
            "" => (text("namespace"), text("service")),
            _ => ("", ""),
        };
        Attributes {
            verb: "get",
            resource: "services",
            subresource: self.word(),
            namespace,
            name,
            ..Attributes::default()
        }
    }
}

/// Where the nodes listen that are heard of, by their names; and those that are too many.
fn all(cluster: &Cluster) -> Result<(Vec<Endpoint>, usize), Status> {
    let resource = cluster.catalog.named("", "nodes").ok_or_else(Status::path_not_found)?;
    let records = cluster.store.keyspace.snapshot(resource.row.collection()).records;
    let mut found = Vec::new();
    for (_, record) in crate::store::range(&records, None, None) {
        let object = Seen::new(resource, record).stored()?;
        if condition::status(&object, "Ready") != Some("Unknown") {
            found.extend(nodes::endpoint_of(&object));
        }
    }
    let beyond = found.len().saturating_sub(NODES_MAX);
    found.truncate(NODES_MAX);
    Ok((found, beyond))
}

/// The path at a node. The query is written anew, of what was read and allowed: nodes read nothing else in it.
fn path(of: Of, call: &Call) -> String {
    let said = ["namespace", "service", "host", "path"].into_iter();
    let pairs: Vec<String> =
        said.filter_map(|name| Some(format!("{name}={}", encoded(call.query.text(name)?)))).collect();
    format!("/coracle/v1/{}?{}", of.word(), pairs.join("&"))
}

/// A value of a query.
fn encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => encoded.push(char::from(byte)),
            other => encoded.push_str(&format!("%{other:02X}")),
        }
    }
    encoded
}

async fn open(nodes: &Nodes, to: &Endpoint, path: &str) -> Result<http::Response<Incoming>, String> {
    let request = Request::get(path).header(header::HOST, to.node.as_str()).body(nodes::empty());
    let request = request.map_err(|error| error.to_string())?;
    let answer = nodes.send(to, request).await.map_err(|status| status.message.clone())?;
    match answer.status().as_u16() {
        200 => Ok(answer),
        // As a kubelet, which knows nothing of this.
        404 => Err("it does not tell".to_owned()),
        other => Err(format!("it answers {other}")),
    }
}

/// Where a request would go, as each node sees it.
pub(crate) async fn routes(cluster: &Cluster, nodes: &Nodes, call: &Call, flow: Flow<'_>) -> Result<Response, Status> {
    if call.query.text("host").is_none() && call.query.text("service").is_none() {
        return Err(Status::bad_request("a host or a service must be named"));
    }
    let (all, beyond) = all(cluster)?;
    let path = path(Of::Routes, call);
    let asked = all.into_iter().map(|to| {
        let path = &path;
        async move {
            let said = tokio::time::timeout(ANSWER_MAX, ask(nodes, &to, path, flow)).await;
            let said = said.unwrap_or_else(|_| Err("it does not answer in time".to_owned()));
            (to.node, said.unwrap_or_else(|error| json!({ "error": error })))
        }
    });
    let said: BTreeMap<String, Value> = stream::iter(asked).buffer_unordered(ASKED_MAX).collect().await;
    let page = json!({"nodes": said, "notAsked": beyond});
    Ok(respond::bytes(200, "application/json", page.to_string()))
}

async fn ask(nodes: &Nodes, to: &Endpoint, path: &str, flow: Flow<'_>) -> Result<Value, String> {
    let _place = nodes.stream(to, flow).map_err(|status| status.message.clone())?;
    let answer = open(nodes, to, path).await?;
    let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await.map_err(|error| error.to_string())?;
    serde_json::from_slice(&body.to_bytes()).map_err(|error| error.to_string())
}

/// Requests as they are answered on all nodes, for as long as the client listens or `place` is not taken away.
pub(crate) fn tap(
    cluster: &Cluster,
    nodes: &Arc<Nodes>,
    tasks: &TaskTracker,
    call: &Call,
    (flow, place): (Flow<'_>, Place),
) -> Result<Response, Status> {
    let (all, beyond) = all(cluster)?;
    let path = path(Of::Tap, call);
    let (sender, lines) = mpsc::channel::<Bytes>(LINES_MAX);
    if beyond > 0 {
        let _ = sender.try_send(line(&json!({"error": format!("{beyond} further nodes are not asked")})));
    }
    for to in all {
        let held = nodes.stream(&to, flow);
        let (nodes, path, sender) = (nodes.clone(), path.clone(), sender.clone());
        // Ends with the client: nobody hears the lines then.
        tasks.spawn(async move {
            let listened = async {
                let _held = held.map_err(|status| status.message.clone())?;
                follow(&nodes, &to, &path, &sender).await
            };
            let ended = tokio::select! {
                ended = listened => ended,
                () = sender.closed() => return,
                () = nodes.stopping.cancelled() => return,
            };
            let why = ended.err().unwrap_or_else(|| "it has ended".to_owned());
            let _ = sender.send(line(&json!({"node": to.node, "error": why}))).await;
        });
    }
    drop(sender);
    let lines = stream::unfold((lines, place), |(mut lines, place)| async move {
        Some((Ok::<_, Infallible>(lines.recv().await?), (lines, place)))
    });
    let mut response = Response::new(Body::from_stream(lines));
    response.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static("application/x-ndjson"));
    Ok(response)
}

fn line(value: &Value) -> Bytes {
    Bytes::from(format!("{value}\n"))
}

/// Passes on a node's lines, each with its name.
async fn follow(nodes: &Nodes, to: &Endpoint, path: &str, sender: &mpsc::Sender<Bytes>) -> Result<(), String> {
    let mut body = open(nodes, to, path).await?.into_body();
    let mut rest = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|error| error.to_string())?.into_data() else { continue };
        rest.extend_from_slice(&data);
        for said in take_lines(&mut rest) {
            if said.len() > LINE_BYTES_MAX {
                return Err("what it tells has no end".to_owned());
            }
            let Ok(Value::Object(mut said)) = serde_json::from_slice(&said) else {
                return Err("what it tells makes no sense".to_owned());
            };
            said.insert("node".to_owned(), Value::String(to.node.clone()));
            if sender.send(line(&Value::Object(said))).await.is_err() {
                return Ok(());
            }
        }
        if rest.len() > LINE_BYTES_MAX {
            return Err("what it tells has no end".to_owned());
        }
    }
    Ok(())
}

/// Whole lines, without their ends; what is left is the begin of one.
fn take_lines(rest: &mut Vec<u8>) -> Vec<Vec<u8>> {
    let Some(end) = rest.iter().rposition(|byte| *byte == b'\n') else { return Vec::new() };
    let after = rest.split_off(end + 1);
    let whole = std::mem::replace(rest, after);
    whole[..end].split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_whole_however_they_come() {
        let (mut rest, mut found) = (Vec::new(), Vec::new());
        for piece in ["{\"a\"", ":1}\n{}", "\n\n", "x"] {
            rest.extend_from_slice(piece.as_bytes());
            found.extend(take_lines(&mut rest));
        }
        let expected: Vec<Vec<u8>> = ["{\"a\":1}", "{}", ""].map(|text| text.as_bytes().to_vec()).to_vec();
        assert_eq!((found, rest), (expected, b"x".to_vec()));
    }

    /// What is behind a line is not moved for each: a node would keep a processor busy for a minute with each piece.
    #[test]
    fn many_lines_are_taken_at_once() {
        const LINES: usize = 1 << 20;
        let begun = std::time::Instant::now();
        assert_eq!(take_lines(&mut vec![b'\n'; LINES]).len(), LINES);
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    }
}
