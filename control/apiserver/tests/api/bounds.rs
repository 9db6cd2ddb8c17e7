//! No request stops the others, and what is refused costs nothing.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use coracle_apiserver::Identity;
use futures::{FutureExt, StreamExt, future, stream};
use http::Request;
use serde_json::{Value, json};

use crate::{Server, admin, config_map};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// A body that begins and never ends.
fn dribble() -> Body {
    Body::from_stream(stream::once(async { Ok::<_, Infallible>(Bytes::from_static(b"{")) }).chain(stream::pending()))
}

#[tokio::test]
async fn slow_bodies_hold_up_nobody_at_any_path_that_takes_one() {
    // A user, whose requests need seats, and many more bodies than there are.
    let server = Server::start_with(|config| config.requests_max = 50).await.with_users(&["alice"]).await;
    let alice = || Identity::authenticated("alice", vec![]);
    let paths = [
        ("POST", MAPS),
        ("PATCH", "/api/v1/namespaces/default/configmaps/x"),
        ("DELETE", "/api/v1/namespaces/default/configmaps/x"),
        ("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"),
        ("POST", "/api/v1/namespaces/default/bindings"),
        ("POST", "/coracle/v1/bindings"),
    ];
    let mut slow = Vec::new();
    for (method, path) in paths.iter().cycle().take(2_000) {
        let request = Request::builder()
            .method(*method)
            .uri(*path)
            .header(
                "content-type",
                if *method == "PATCH" { "application/merge-patch+json" } else { "application/json" },
            )
            .body(dribble())
            .unwrap();
        let mut answer = Box::pin(server.send(Some(alice()), request));
        assert!((&mut answer).now_or_never().is_none(), "{method} {path} waits for its body");
        slow.push(answer);
    }
    // The same user as all the slow ones.
    let make = server.send_as(alice(), "POST", MAPS, config_map("a", json!({})));
    let answered = tokio::time::timeout(Duration::from_secs(5), make).await;
    assert_eq!(answered.expect("others are answered").code, 201);
}

#[tokio::test]
async fn a_refused_write_costs_no_log() {
    let server = Server::start().await;
    let big = json!({"k": "x".repeat(100_000)});
    let made = server.make(MAPS, config_map("a", big.clone())).await;
    let before = (server.keyspace.revision(), server.keyspace.status().log_bytes);
    let mut stale = made.clone();
    stale["metadata"]["resourceVersion"] = json!("1");
    stale["data"] = json!({"k": "y".repeat(100_000)});
    let refused = [
        ("POST", MAPS.to_owned(), config_map("a", big), 409),
        ("PUT", format!("{MAPS}/a"), stale, 409),
        ("DELETE", format!("{MAPS}/a"), json!({"preconditions": {"uid": "other"}}), 409),
        ("DELETE", format!("{MAPS}/none"), Value::Null, 404),
    ];
    for (method, path, body, code) in refused {
        let (answered, answer) = server.call(method, &path, body).await;
        assert_eq!(answered, code, "{method} {path}: {answer}");
    }
    assert_eq!((server.keyspace.revision(), server.keyspace.status().log_bytes), before);
}

#[tokio::test]
async fn writes_that_name_no_version_never_conflict() {
    let server = Server::start().await;
    server.make(MAPS, config_map("a", json!({}))).await;
    let server = &server;
    let path = format!("{MAPS}/a");
    let path = path.as_str();
    let puts = (0..50)
        .map(|at| async move { server.call("PUT", path, config_map("a", json!({at.to_string(): "put"}))).await });
    let applies = (0..50).map(|at| async move {
        let path = format!("{path}?fieldManager=m{at}&force=true");
        let object = config_map("a", json!({format!("apply{at}"): "x"}));
        server.call_as("PATCH", &path, "application/apply-patch+yaml", &object).await
    });
    let (puts, applies) = future::join(future::join_all(puts), future::join_all(applies)).await;
    for (code, answer) in puts.into_iter().chain(applies) {
        assert_eq!(code, 200, "{answer}");
    }
    let patches = (0..50).map(|at| server.call("PATCH", path, json!({"data": {at.to_string(): "z"}})));
    let (_, (code, deleted)) = future::join(future::join_all(patches), server.call("DELETE", path, Value::Null)).await;
    assert_eq!(code, 200, "{deleted}");
}

#[tokio::test]
async fn nothing_is_made_in_a_namespace_after_its_deletion_began() {
    let server = Server::start().await;
    server.make("/api/v1/namespaces", json!({"metadata": {"name": "n"}})).await;
    let maps = "/api/v1/namespaces/n/configmaps";
    let makes = (0..100).map(|at| server.call("POST", maps, config_map(&format!("m{at}"), json!({}))));
    let (made, (code, deleted)) =
        future::join(future::join_all(makes), server.call("DELETE", "/api/v1/namespaces/n", Value::Null)).await;
    assert_eq!(code, 200);
    let version = |object: &Value| object["metadata"]["resourceVersion"].as_str().unwrap().parse::<u64>().unwrap();
    for (code, answer) in made {
        match code {
            201 => assert!(version(&answer) < version(&deleted), "{answer}"),
            403 => assert_eq!(answer["details"]["causes"][0]["reason"], "NamespaceTerminating"),
            other => panic!("{other}: {answer}"),
        }
    }
}

#[tokio::test]
async fn a_client_says_how_long_it_waits() {
    let server = Server::start().await;
    for (query, code, message) in [
        ("timeout=1", 400, "invalid timeout specified in the request URL - time: missing unit in duration \"1\""),
        ("timeout=abc", 400, "invalid timeout specified in the request URL - time: invalid duration \"abc\""),
        ("timeout=10s", 200, ""),
        ("timeout=50ms&resourceVersion=99999999", 504, "Timeout: request did not complete within the allotted timeout"),
    ] {
        let (answered, answer) = server.get(&format!("{MAPS}?{query}")).await;
        assert_eq!((answered, answer["message"].as_str().unwrap_or_default()), (code, message), "{query}");
    }
    let (code, answer) = server.call("POST", &format!("{MAPS}?timeout=abc"), config_map("a", json!({}))).await;
    assert_eq!(code, 400, "{answer}");
    let (code, watched) = server.get(&format!("{MAPS}?watch=1&timeoutSeconds=-1")).await;
    assert_eq!((code, watched), (200, json!("")), "less than nothing is over at once");
}

/// Sends small requests as long as `large` goes on, which on one thread is once or twice if that works on the large one.
pub(crate) async fn answered_beside(server: &std::sync::Arc<Server>, large: Request<Body>) -> (u16, usize) {
    let other = server.clone();
    let large = tokio::spawn(async move { other.send(Some(admin()), large).await.code });
    let mut answered = 0;
    while !large.is_finished() {
        let other = server.clone();
        let (code, _) = tokio::spawn(async move { other.get("/api/v1/namespaces/default").await }).await.unwrap();
        assert_eq!(code, 200);
        answered += 1;
    }
    (large.await.unwrap(), answered)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn large_bodies_and_objects_leave_the_reactor_to_others() {
    let server = std::sync::Arc::new(Server::start().await);
    let data =
        |key: &str, count: usize| (0..count).map(|at| format!("\"{key}{at}\":\"v\"")).collect::<Vec<_>>().join(",");
    let body = |data: String| Body::from(format!("{{\"metadata\":{{\"name\":\"x\"}},\"data\":{{{data}}}}}"));
    let post = |data: String| Request::post(MAPS).header("content-type", "application/json").body(body(data)).unwrap();
    let get = |accept: &str| Request::get(format!("{MAPS}/x")).header("accept", accept).body(Body::empty()).unwrap();
    // Less than a kilobyte that becomes a quarter of a million values.
    let list = |item: &str, count: usize| vec![item; count].join(",");
    let unfolding = format!("a: &a [{}]\nb: &b [{}]\ndata: [{}]\n", list("x", 100), list("*a", 100), list("*b", 25));
    let unfolding = Request::post(MAPS).header("content-type", "application/yaml").body(Body::from(unfolding)).unwrap();
    for (request, code) in [
        (post(data("!", 60_000)), 422),
        (post(data("k", 12_000)), 201),
        (get("application/yaml"), 200),
        (unfolding, 400),
    ] {
        let what = format!("{request:?}");
        let (answer, answered) = answered_beside(&server, request).await;
        assert_eq!(answer, code);
        assert!(answered > 4, "{answered} were answered beside {what}");
    }
}

#[tokio::test]
async fn an_answer_of_known_length_that_is_not_read_is_let_go_of() {
    use tower::ServiceExt;
    let server = Server::start_with(|config| config.request_timeout = Duration::from_secs(3)).await;
    let large = (0..15).map(|at| (at.to_string(), json!("x".repeat(60_000)))).collect::<serde_json::Map<_, _>>();
    server.make(MAPS, config_map("large", large.into())).await;
    let mut request = Request::get(format!("{MAPS}/large")).body(Body::empty()).unwrap();
    request.extensions_mut().insert(admin());
    let mut body = server.api.router().oneshot(request).await.unwrap().into_body();
    assert!(http_body::Body::size_hint(&body).exact().is_some_and(|size| size > 900_000));
    let mut pieces = 0;
    let ended = loop {
        match http_body_util::BodyExt::frame(&mut body).await {
            Some(Ok(_)) => pieces += 1,
            ended => break ended,
        }
        tokio::time::sleep(Duration::from_millis(400)).await;
    };
    assert!(ended.is_some_and(|ended| ended.is_err()) && pieces < 14, "{pieces} were taken");
}

#[tokio::test]
async fn one_caller_s_streams_from_a_node_leave_room_there_for_others() {
    /// What one caller may have of what this server may have of a node.
    const MOST: usize = 128;
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let tls = tls.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth();
    let server = Server::start_with(|config| config.node_client = Some(tls.into())).await.with_account().await;
    // A node that accepts and says nothing.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    server.make("/api/v1/nodes", json!({"metadata": {"name": "n"}})).await;
    let says = json!({"status": {"addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": port}}}});
    assert_eq!(server.call("PATCH", "/api/v1/nodes/n/status", says).await.0, 200);
    let mut object = crate::pod("p");
    object["spec"]["nodeName"] = json!("n");
    server.make("/api/v1/namespaces/default/pods", object).await;
    let follow = |name: &str| {
        let identity = coracle_apiserver::Identity::authenticated(name, vec!["system:masters".to_owned()]);
        let request = Request::get("/api/v1/namespaces/default/pods/p/log?follow=true").body(Body::empty()).unwrap();
        server.send(Some(identity), request)
    };
    let mut greedy: stream::FuturesUnordered<_> = (0..=MOST).map(|_| follow("greedy")).collect();
    let accepted = async {
        let mut held = Vec::new();
        while held.len() < MOST {
            held.push(listener.accept().await.unwrap());
        }
        held
    };
    let (_held, refused) =
        tokio::time::timeout(Duration::from_secs(9), future::join(accepted, greedy.next())).await.expect("in time");
    let refused = refused.unwrap();
    assert_eq!(refused.code, 429, "{}", refused.json());
    assert!(refused.json()["message"].as_str().unwrap().contains("too many streams from node n"));
    let reached = future::select(Box::pin(follow("other")), Box::pin(listener.accept())).await;
    assert!(matches!(reached, future::Either::Right(_)), "another comes to the node");
}

#[tokio::test]
async fn routes_beside_the_api_have_places_by_caller_too() {
    use axum::routing::get;
    use http_body_util::BodyExt;
    use tower::ServiceExt;
    let server = Server::start_with(|config| config.streams_max = 8).await;
    let endless = || async { Body::from_stream(stream::repeat_with(|| Ok::<_, Infallible>(Bytes::from_static(b"x")))) };
    let routes = axum::Router::new().route("/v2/blob", get(endless)).route("/v2/", get(|| async {}));
    let ask = async |router: axum::Router, name: Option<&str>, path: &str| {
        let mut request = Request::get(path).body(Body::empty()).unwrap();
        let identity = |name: &str| coracle_apiserver::Identity::authenticated(name, vec!["system:masters".to_owned()]);
        if let Some(name) = name {
            request.extensions_mut().insert(identity(name));
        }
        router.oneshot(request).await.unwrap()
    };
    for (router, caller) in
        [(server.api.authenticated(routes.clone()), Some("greedy")), (server.api.bounded(routes), None)]
    {
        let mut held = Vec::new();
        for _ in 0..4 {
            let answer = ask(router.clone(), caller, "/v2/blob").await;
            assert_eq!(answer.status(), 200);
            let mut body = answer.into_body();
            assert!(body.frame().await.is_some_and(|frame| frame.is_ok()));
            held.push(body);
        }
        assert_eq!(ask(router.clone(), caller, "/v2/blob").await.status(), 429);
        if caller.is_some() {
            assert_eq!(ask(router.clone(), Some("other"), "/v2/blob").await.status(), 200);
        }
        held.clear();
        for _ in 0..10 {
            assert_eq!(ask(router.clone(), caller, "/v2/").await.status(), 200, "what is answered holds nothing");
        }
        assert_eq!(ask(router, caller, "/v2/blob").await.status(), 200);
    }
}

#[tokio::test]
async fn a_port_in_a_path_leads_nowhere_else() {
    let server = Server::start().await.with_account().await;
    let mut object = crate::pod("p");
    object["spec"]["nodeName"] = json!("n");
    server.make("/api/v1/namespaces/default/pods", object).await;
    for port in ["80%2F..%2F..%2Fx", "80%3Fa", "..", "%00"] {
        let (code, answer) = server.get(&format!("/api/v1/namespaces/default/pods/p:{port}/proxy/")).await;
        assert_eq!(code, 400, "{answer}");
    }
}

#[tokio::test]
async fn what_is_heavy_is_written_under_its_lead_or_not_at_all() {
    use tower::ServiceExt;
    let server = Server::start().await;
    let lead = *server.keyspace.lead().wait_for(Option::is_some).await.expect("a keyspace that runs");
    for name in ["a", "b"] {
        server.make(MAPS, config_map(name, json!({}))).await;
    }
    // Whoever leads now began after it.
    let server = server.restart().await;
    let now = *server.keyspace.lead().wait_for(Option::is_some).await.expect("a keyspace that runs");
    let large = config_map("a", json!({"k": "x".repeat(50_000)}));
    let small = config_map("a", json!({"k": "x"}));
    for (lead, method, path, body, code) in [
        (lead, "PUT", format!("{MAPS}/a"), &small, 503),
        (lead, "PUT", format!("{MAPS}/a"), &large, 503),
        (now, "PUT", format!("{MAPS}/a"), &large, 200),
        (lead, "DELETE", MAPS.to_owned(), &Value::Null, 503),
        (now, "DELETE", MAPS.to_owned(), &Value::Null, 200),
    ] {
        let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
        let request = Request::builder().method(method).uri(&path).header("content-type", "application/json");
        let api = server.api.in_process(admin()).under(lead.expect("somebody leads"));
        let answer = api.oneshot(request.body(body).unwrap()).await.unwrap();
        assert_eq!(answer.status().as_u16(), code, "{method} {path}");
    }
}
