//! Watches: what is there, what happens, where they begin and end.

use std::future::IntoFuture;

use coracle_apiserver::Identity;
use futures::FutureExt;
use http::Request;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::{Server, admin, config_map};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// An open watch.
pub(crate) struct Watch {
    body: axum::body::Body,
    buffer: Vec<u8>,
}

impl Watch {
    async fn open(server: &Server, query: &str) -> Watch {
        Watch::open_at(server, &format!("{MAPS}?watch=true&{query}")).await
    }

    pub(crate) async fn open_at(server: &Server, path: &str) -> Watch {
        Watch::open_as(server, admin(), path).await
    }

    pub(crate) async fn open_as(server: &Server, identity: Identity, path: &str) -> Watch {
        let mut request = Request::get(path).body(axum::body::Body::empty()).unwrap();
        request.extensions_mut().insert(identity);
        let response = server.api.router().oneshot(request).await.unwrap();
        assert_eq!(response.status(), 200);
        Watch { body: response.into_body(), buffer: Vec::new() }
    }

    /// The next event; `None` at the end.
    pub(crate) async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).expect("an event"));
            }
            let frame = tokio::time::timeout(std::time::Duration::from_secs(10), self.body.frame()).await;
            let frame = frame.expect("an event within ten seconds")?.expect("a body in memory");
            self.buffer.extend_from_slice(&frame.into_data().expect("data"));
        }
    }

    /// Type and name of the next event.
    pub(crate) async fn heard(&mut self) -> (String, String) {
        let event = self.next().await.expect("an event");
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        (text(&event["type"]), text(&event["object"]["metadata"]["name"]))
    }
}

pub(crate) fn said(kind: &str, name: &str) -> (String, String) {
    (kind.to_owned(), name.to_owned())
}

#[tokio::test]
async fn what_was_there_is_read_in_time_or_not_at_all() {
    let longest = std::time::Duration::from_secs(1);
    let server = Server::start_with(|config| config.request_timeout = longest).await;
    for name in ["a", "b", "c"] {
        server.make(MAPS, config_map(name, json!({"k": "x".repeat(100_000)}))).await;
    }
    let mut slow = Watch::open(&server, "").await;
    let mut read = Watch::open(&server, "").await;
    assert_eq!(slow.heard().await, said("ADDED", "a"));
    for name in ["a", "b", "c"] {
        assert_eq!(read.heard().await, said("ADDED", name));
    }
    server.make(MAPS, config_map("d", json!({}))).await;
    assert_eq!(read.heard().await, said("ADDED", "d"));
    tokio::time::sleep(longest).await;
    let event = slow.next().await.expect("an event");
    assert_eq!((&event["type"], &event["object"]["code"]), (&json!("ERROR"), &json!(410)), "{event}");
    assert!(slow.next().await.is_none());
    // Who has read it goes on.
    server.make(MAPS, config_map("e", json!({}))).await;
    assert_eq!(read.heard().await, said("ADDED", "e"));
}

#[tokio::test]
async fn a_watch_tells_what_is_there_and_what_happens() {
    let server = Server::start().await;
    server.make(MAPS, config_map("a", json!({}))).await;
    let mut watch = Watch::open(&server, "").await;
    assert_eq!(watch.heard().await, said("ADDED", "a"));
    server.make(MAPS, config_map("b", json!({}))).await;
    assert_eq!(watch.heard().await, said("ADDED", "b"));
    server.call("PATCH", &format!("{MAPS}/a"), json!({"data": {"k": "v"}})).await;
    assert_eq!(watch.heard().await, said("MODIFIED", "a"));
    server.call("DELETE", &format!("{MAPS}/b"), Value::Null).await;
    let deleted = watch.next().await.unwrap();
    assert_eq!(deleted["type"], "DELETED");
    let revision = server.keyspace.revision().to_string();
    assert_eq!(deleted["object"]["metadata"]["resourceVersion"], revision, "the revision of the deletion");
}

#[tokio::test]
async fn a_watch_of_one_name_or_of_one_node_hears_of_all_that_it_is_about() {
    let server = Server::start().await.with_account().await;
    let first = server.make(MAPS, config_map("a", json!({}))).await;
    let mut by_name = Watch::open(&server, "fieldSelector=metadata.name%3Da").await;
    let version = first["metadata"]["resourceVersion"].as_str().unwrap();
    let from_there = format!("fieldSelector=metadata.name%3Da&resourceVersion={version}");
    assert_eq!(by_name.heard().await, said("ADDED", "a"));
    server.make(MAPS, config_map("b", json!({}))).await;
    server.call("PATCH", &format!("{MAPS}/a"), json!({"data": {"k": "v"}})).await;
    server.call("DELETE", &format!("{MAPS}/a"), Value::Null).await;
    server.call("PATCH", &format!("{MAPS}/b"), json!({"data": {"k": "v"}})).await;
    server.make(MAPS, config_map("a", json!({}))).await;
    let mut again = Watch::open(&server, &from_there).await;
    for watch in [&mut by_name, &mut again] {
        for kind in ["MODIFIED", "DELETED", "ADDED"] {
            assert_eq!(watch.heard().await, said(kind, "a"));
        }
    }
    let pods = "/api/v1/namespaces/default/pods";
    let mut by_node = Watch::open_at(&server, "/api/v1/pods?watch=1&fieldSelector=spec.nodeName%3Dn1").await;
    for name in ["p", "q"] {
        server.make(pods, crate::pod(name)).await;
    }
    let binding = |name: &str, node: &str| json!({"namespace": "default", "name": name, "node": node});
    let bindings = json!({"bindings": [binding("q", "n2"), binding("p", "n1")]});
    server.call("POST", "/coracle/v1/bindings", bindings).await;
    for name in ["q", "p"] {
        server.call("DELETE", &format!("{pods}/{name}?gracePeriodSeconds=0"), Value::Null).await;
    }
    for kind in ["ADDED", "DELETED"] {
        assert_eq!(by_node.heard().await, said(kind, "p"));
    }
}

#[tokio::test]
async fn a_watch_that_breaks_between_pods_that_were_bound_at_once_misses_none() {
    let server = Server::start().await.with_account().await;
    let pods = "/api/v1/namespaces/default/pods";
    for name in ["p", "q", "r"] {
        server.make(pods, crate::pod(name)).await;
    }
    let from = server.keyspace.revision();
    let binding = |name: &str| json!({"namespace": "default", "name": name, "node": "n"});
    let bindings = json!({"bindings": [binding("p"), binding("q"), binding("r")]});
    server.call("POST", "/coracle/v1/bindings", bindings).await;
    let (mut heard, mut revision) = (Vec::new(), from.to_string());
    for _ in 0..3 {
        // One event, and the connection is gone: the next goes on after it, as every client does.
        let path = format!("/api/v1/pods?watch=1&fieldSelector=spec.nodeName%3Dn&resourceVersion={revision}");
        let event = Watch::open_at(&server, &path).await.next().await.unwrap();
        let meta = &event["object"]["metadata"];
        heard.push(meta["name"].as_str().unwrap().to_owned());
        revision = meta["resourceVersion"].as_str().unwrap().to_owned();
    }
    heard.sort();
    assert_eq!(heard, ["p", "q", "r"]);
}

#[tokio::test]
async fn objects_enter_and_leave_a_selection() {
    let server = Server::start().await;
    let mut watch = Watch::open(&server, "labelSelector=app%3Dx").await;
    let label = |value: &str| json!({"metadata": {"labels": {"app": value}}});
    server.make(MAPS, config_map("a", json!({}))).await;
    server.call("PATCH", &format!("{MAPS}/a"), label("x")).await;
    assert_eq!(watch.heard().await, said("ADDED", "a"));
    let (_, left) = server.call("PATCH", &format!("{MAPS}/a"), label("y")).await;
    let event = watch.next().await.unwrap();
    assert_eq!((&event["type"], &event["object"]["metadata"]["labels"]["app"]), (&json!("DELETED"), &json!("x")));
    assert_eq!(event["object"]["metadata"]["resourceVersion"], left["metadata"]["resourceVersion"]);
}

#[tokio::test]
async fn initial_events_end_with_a_bookmark() {
    let server = Server::start().await;
    server.make(MAPS, config_map("a", json!({}))).await;
    let query = "sendInitialEvents=true&allowWatchBookmarks=true&resourceVersionMatch=NotOlderThan";
    let mut watch = Watch::open(&server, query).await;
    assert_eq!(watch.heard().await, said("ADDED", "a"));
    let bookmark = watch.next().await.unwrap();
    assert_eq!(bookmark["type"], "BOOKMARK");
    assert_eq!(bookmark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    server.make(MAPS, config_map("b", json!({}))).await;
    assert_eq!(watch.heard().await, said("ADDED", "b"));
}

#[tokio::test]
async fn a_watch_from_a_revision_misses_nothing_and_repeats_nothing() {
    let server = Server::start().await;
    let a = server.make(MAPS, config_map("a", json!({}))).await;
    server.make(MAPS, config_map("b", json!({}))).await;
    let revision = a["metadata"]["resourceVersion"].as_str().unwrap();
    let mut watch = Watch::open(&server, &format!("resourceVersion={revision}")).await;
    assert_eq!(watch.heard().await, said("ADDED", "b"));
    server.make(MAPS, config_map("c", json!({}))).await;
    assert_eq!(watch.heard().await, said("ADDED", "c"));
}

#[tokio::test]
async fn a_watch_ends_when_its_time_is_up() {
    let server = Server::start().await;
    let mut watch = Watch::open(&server, "timeoutSeconds=1&allowWatchBookmarks=true").await;
    let bookmark = watch.next().await.unwrap();
    assert_eq!(bookmark["type"], "BOOKMARK", "so that the client knows where to go on");
    assert_eq!(watch.next().await, None);
}

#[tokio::test]
async fn watches_end_with_the_server() {
    // As a server ends, and where the data ends first.
    for data_first in [false, true] {
        let server = Server::start().await;
        let mut watches = Vec::new();
        for query in ["labelSelector=none", "fieldSelector=metadata.name%3Dnone"] {
            let from = server.keyspace.revision();
            watches.push(Watch::open(&server, &format!("{query}&resourceVersion={from}")).await);
        }
        // Each of them waits for events.
        for watch in &mut watches {
            assert!(watch.body.frame().now_or_never().is_none());
        }
        if data_first {
            server.keyspace.clone().shutdown().await;
        }
        server.api.shutdown();
        // Who follows the events for the watches of one name ends before they look.
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        for mut watch in watches {
            assert_eq!(watch.next().await, None);
        }
    }
}

#[tokio::test]
async fn a_browser_watches_by_websocket() {
    use futures::StreamExt;
    use tokio_tungstenite::tungstenite::client::IntoClientRequest;
    let server = Server::start().await.with_account().await;
    server.make(MAPS, config_map("a", json!({}))).await;
    let path = "/api/v1/namespaces/default/serviceaccounts/default/token";
    let token = server.make(path, json!({"spec": {}})).await["status"]["token"].as_str().unwrap().to_owned();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tokio::spawn(axum::serve(listener, server.api.router()).into_future());
    let mut request = format!("ws://{address}{MAPS}?watch=1").into_client_request().unwrap();
    let encoded = base64::Engine::encode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, token);
    let protocols = format!("base64url.bearer.authorization.k8s.io.{encoded}, binary.k8s.io");
    request.headers_mut().insert("sec-websocket-protocol", protocols.parse().unwrap());
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let (mut socket, answer) = tokio_tungstenite::client_async(request, stream).await.unwrap();
    assert_eq!(answer.headers()["sec-websocket-protocol"], "binary.k8s.io", "the token is not said again");
    let said = tokio::time::timeout(std::time::Duration::from_secs(10), socket.next()).await.expect("an event");
    let event: Value = serde_json::from_str(said.unwrap().unwrap().to_text().unwrap()).unwrap();
    assert_eq!((&event["type"], &event["object"]["metadata"]["name"]), (&json!("ADDED"), &json!("a")));
    serving.abort();
}

#[tokio::test]
async fn the_bookmark_of_a_quiet_kind_is_of_now_and_that_of_the_future_is_not_told() {
    let server = Server::start().await;
    server.make(MAPS, config_map("a", json!({}))).await;
    let then = server.keyspace.revision();
    let query = |revision: u64| format!("resourceVersion={revision}&timeoutSeconds=3&allowWatchBookmarks=true");
    let mut quiet = Watch::open(&server, &query(then.get())).await;
    let mut future = Watch::open(&server, &query(99_999_999)).await;
    let secrets = "/api/v1/namespaces/default/secrets";
    for name in ["x", "y", "z"] {
        server.make(secrets, json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}})).await;
    }
    let (now, bookmark) = (server.keyspace.revision(), quiet.next().await.unwrap());
    assert_eq!(bookmark["type"], "BOOKMARK");
    let told = bookmark["object"]["metadata"]["resourceVersion"].as_str().unwrap().parse::<u64>().unwrap();
    assert!(told >= now.get() && told <= server.keyspace.revision().get(), "{told} at {now}, begun at {then}");
    assert_eq!((quiet.next().await, future.next().await), (None, None));
}

#[tokio::test]
async fn odd_times_are_no_harm() {
    let server = Server::start().await;
    server.make(MAPS, config_map("a", json!({}))).await;
    assert_eq!(Watch::open(&server, "timeoutSeconds=-1").await.next().await, None);
    let mut long = Watch::open(&server, &format!("timeoutSeconds={}", i64::MAX)).await;
    assert_eq!(long.heard().await, said("ADDED", "a"));
}

#[tokio::test]
async fn a_watch_and_a_page_from_before_a_restart_go_on() {
    let server = Server::start().await;
    for name in ["a", "b", "c"] {
        server.make(MAPS, config_map(name, json!({"k": "1"}))).await;
    }
    let (_, page) = server.get(&format!("{MAPS}?limit=2")).await;
    let token = page["metadata"]["continue"].as_str().unwrap().to_owned();
    let then = page["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    server.call("PATCH", &format!("{MAPS}/c"), json!({"data": {"k": "2"}})).await;
    server.call("DELETE", &format!("{MAPS}/a"), Value::Null).await;
    let server = server.restart().await;
    let (code, rest) = server.get(&format!("{MAPS}?limit=2&continue={token}")).await;
    assert_eq!((code, &rest["items"][0]["data"]), (200, &json!({"k": "1"})), "as it was then: {rest}");
    let mut watch = Watch::open(&server, &format!("resourceVersion={then}")).await;
    assert_eq!((watch.heard().await, watch.heard().await), (said("MODIFIED", "c"), said("DELETED", "a")));
    let mut first = Watch::open(&server, "resourceVersion=1").await;
    for name in ["a", "b", "c"] {
        assert_eq!(first.heard().await, said("ADDED", name), "nothing is forgotten of a server that is young");
    }
}

#[tokio::test]
async fn a_node_s_lease_is_renewed_without_the_log_and_all_who_look_see_it() {
    let server = Server::start().await;
    let leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
    let time = |second: u32| format!("2026-01-01T00:00:{second:02}.000000Z");
    let lease = |second: u32| json!({"metadata": {"name": "one"}, "spec": {"holderIdentity": "one", "renewTime": time(second)}});
    let made = server.make(leases, lease(1)).await;
    let version = made["metadata"]["resourceVersion"].clone();
    let path = format!("{leases}/one");
    let mut watch = Watch::open_at(&server, &format!("{leases}?watch=true")).await;
    let mut all = Watch::open_at(&server, "/apis/coordination.k8s.io/v1/leases?watch=true").await;
    let by_name = format!("{leases}?watch=true&fieldSelector=metadata.name%3Done");
    let mut named = Watch::open_at(&server, &by_name).await;
    let elsewhere = "/apis/coordination.k8s.io/v1/namespaces/default/leases?watch=true";
    let mut elsewhere = Watch::open_at(&server, elsewhere).await;
    for watch in [&mut watch, &mut all, &mut named] {
        assert_eq!(watch.heard().await, said("ADDED", "one"));
    }

    // As our nodes do it, and as kubelets do.
    let other = server.make(MAPS, config_map("a", json!({}))).await;
    let position = &other["metadata"]["resourceVersion"];
    let revision = server.keyspace.revision();
    let renewal = json!({"spec": {"renewTime": time(2)}});
    let mut whole = made.clone();
    whole["spec"]["renewTime"] = time(3).into();
    for (method, body, second) in [("PATCH", renewal, 2), ("PUT", whole.clone(), 3)] {
        let (code, renewed) = server.call(method, &path, body).await;
        assert_eq!((code, &renewed["spec"]["renewTime"]), (200, &json!(time(second))));
        assert_eq!(renewed["metadata"]["resourceVersion"], version);
        assert_eq!(server.get(&path).await.1, renewed);
        assert_eq!(server.get(leases).await.1["items"][0]["spec"], renewed["spec"]);
        // Told as of where the watch is: whoever goes on from there misses nothing.
        for watch in [&mut watch, &mut all, &mut named] {
            let event = watch.next().await.unwrap();
            assert_eq!((&event["type"], &event["object"]["spec"]), (&json!("MODIFIED"), &renewed["spec"]));
            assert_eq!(event["object"]["metadata"]["resourceVersion"], *position);
        }
        let mut begun = Watch::open_at(&server, &by_name).await;
        assert_eq!(begun.next().await.unwrap()["object"]["spec"], renewed["spec"]);
    }
    assert_eq!(server.keyspace.revision(), revision, "nothing was written");

    // Who follows leases by a watch writes what it has heard (kwok's nodes), and not what came before or anything else.
    let mut heard = whole.clone();
    (heard["spec"]["renewTime"], heard["metadata"]["resourceVersion"]) = (time(5).into(), position.clone());
    let (code, renewed) = server.call("PUT", &path, heard.clone()).await;
    assert_eq!((code, &renewed["metadata"]["resourceVersion"]), (200, &version));
    for watch in [&mut watch, &mut all, &mut named] {
        assert_eq!(watch.heard().await, said("MODIFIED", "one"));
    }
    heard["metadata"]["resourceVersion"] = "1".into();
    assert_eq!(server.call("PUT", &path, heard).await.0, 409);
    let mut map = server.make(MAPS, config_map("b", json!({}))).await;
    let later = server.make(MAPS, config_map("c", json!({}))).await;
    map["metadata"]["resourceVersion"] = later["metadata"]["resourceVersion"].clone();
    assert_eq!(server.call("PUT", &format!("{MAPS}/b"), map).await.0, 409, "any other object has one version");
    let revision = server.keyspace.revision();
    assert_eq!(server.get(&path).await.1["metadata"]["resourceVersion"], version, "nothing was written");

    // Whatever else changes is a change like any other, and ends what was renewed before.
    whole["spec"]["holderIdentity"] = "two".into();
    let (code, changed) = server.call("PUT", &path, whole.clone()).await;
    assert_eq!((code, server.keyspace.revision().get()), (200, revision.get() + 1));
    assert_ne!(changed["metadata"]["resourceVersion"], version);
    assert_eq!(server.get(&path).await.1, changed);
    assert_eq!(server.call("PUT", &path, whole).await.0, 409, "its version is over");
    server.call("DELETE", &path, Value::Null).await;
    assert_eq!(server.call("PATCH", &path, json!({"spec": {"renewTime": time(4)}})).await.0, 404);
    for watch in [&mut watch, &mut all, &mut named] {
        assert_eq!(watch.heard().await, said("MODIFIED", "one"));
        assert_eq!(watch.heard().await, said("DELETED", "one"));
    }

    // Elsewhere a lease is what elections are decided by: every change of it is written.
    let default = "/apis/coordination.k8s.io/v1/namespaces/default/leases";
    let made = server.make(default, lease(1)).await;
    let patched = server.call("PATCH", &format!("{default}/one"), json!({"spec": {"renewTime": time(2)}})).await.1;
    assert_ne!(patched["metadata"]["resourceVersion"], made["metadata"]["resourceVersion"]);
    assert_eq!(elsewhere.heard().await, said("ADDED", "one"), "it heard of no other");
}

/// Time that this thread was on a processor; `None` where the system does not tell.
fn worked() -> Option<std::time::Duration> {
    let told = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    told.split(' ').next()?.parse().ok().map(std::time::Duration::from_nanos)
}

#[tokio::test]
async fn what_is_looked_into_at_the_beginning_of_a_watch_is_looked_into_aside() {
    let server = Server::start().await;
    let data: serde_json::Map<_, _> = (0..20_000).map(|n| (format!("k{n}"), json!("a value"))).collect();
    let mut bytes = Vec::new();
    for n in 0..8 {
        let made = server.make(MAPS, config_map(&format!("m{n}"), data.clone().into())).await;
        bytes.push(made.to_string());
    }
    let start = worked();
    for text in &bytes {
        coracle_api::codec::json::parse(text.as_bytes()).unwrap();
    }
    let parsing = worked().zip(start).map(|(end, start)| end - start);
    for accept in [
        "application/json;as=Table;v=v1;g=meta.k8s.io",
        "application/vnd.kubernetes.protobuf;as=PartialObjectMetadata;v=v1;g=meta.k8s.io",
    ] {
        let mut request = Request::get(format!("{MAPS}?watch=true")).header("accept", accept);
        request.extensions_mut().unwrap().insert(admin());
        let request = request.body(axum::body::Body::empty()).unwrap();
        let start = worked();
        let mut body = server.api.router().oneshot(request).await.unwrap().into_body();
        let mut working = worked().zip(start).map(|(end, start)| end - start);
        // Each of them is more than is looked into for one piece.
        let mut untold: Vec<String> = (0..bytes.len()).map(|n| format!("m{n}")).collect();
        let mut text = Vec::new();
        while !untold.is_empty() {
            let start = worked();
            let frame = tokio::time::timeout(std::time::Duration::from_secs(10), body.frame()).await;
            let frame = frame.unwrap_or_else(|_| panic!("{accept}: {untold:?} are not told"));
            let taken = worked().zip(start).map(|(end, start)| end - start);
            working = working.zip(taken).map(|(sum, taken)| sum + taken);
            let seen = text.len().saturating_sub(2);
            text.extend_from_slice(&frame.expect("more of the watch").unwrap().into_data().unwrap());
            untold.retain(|name| !text[seen..].windows(2).any(|window| window == name.as_bytes()));
        }
        assert!(
            working.zip(parsing).is_none_or(|(working, parsing)| working < parsing / 2),
            "{working:?}, {parsing:?}"
        );
    }
}
