//! Who may call, and what strangers are told.

use axum::body::Body;
use coracle_apiserver::Identity;
use http::Request;
use serde_json::{Value, json};

use crate::{Server, admin, node, pod};

async fn get(server: &Server, path: &str, token: Option<&str>) -> (u16, Value) {
    let mut request = Request::get(path);
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let answer = server.send(None, request.body(Body::empty()).unwrap()).await;
    (answer.code, answer.json())
}

#[tokio::test]
async fn strangers_see_only_health_and_version() {
    let server = Server::start().await;
    for (path, code) in [
        ("/healthz", 200),
        ("/readyz/ping", 200),
        ("/version", 200),
        ("/api", 403),
        ("/metrics", 403),
        ("/api/v1/pods", 403),
    ] {
        assert_eq!(get(&server, path, None).await.0, code, "{path}");
    }
    assert_eq!(get(&server, "/version", Some("rubbish")).await.0, 401, "a wrong credential is never ignored");
}

#[tokio::test]
async fn a_token_works_as_long_as_what_it_is_bound_to() {
    let server = Server::start().await.with_account().await;
    server.make("/api/v1/namespaces/default/pods", pod("p")).await;
    let path = "/api/v1/namespaces/default/serviceaccounts/default/token";
    let bound = json!({"spec": {"boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": "p"}}});
    let token = server.make(path, bound).await["status"]["token"].as_str().unwrap().to_owned();
    assert_eq!(get(&server, "/api/v1/pods", Some(&token)).await.0, 200);
    let review = server.make("/apis/authentication.k8s.io/v1/tokenreviews", json!({"spec": {"token": token}})).await;
    assert_eq!(review["status"]["user"]["username"], "system:serviceaccount:default:default");
    let (code, _) = server.call("DELETE", "/api/v1/namespaces/default/pods/p", Value::Null).await;
    assert_eq!((code, get(&server, "/api/v1/pods", Some(&token)).await.0), (200, 401));
    let other = server.make(path, json!({"spec": {"audiences": ["elsewhere"]}})).await;
    let token = other["status"]["token"].as_str().unwrap();
    assert_eq!(get(&server, "/api/v1/pods", Some(token)).await.0, 401, "for another audience");
}

/// What something keeps there is there; but who was to be gone a minute ago has no token that is good.
#[tokio::test]
async fn a_token_ends_with_what_it_is_bound_to_also_where_that_is_kept() {
    let server = Server::start().await.with_account().await;
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    server.make("/api/v1/nodes", json!({"metadata": {"name": "n"}})).await;
    server.make("/api/v1/namespaces/default/pods", pod("p")).await;
    server.make("/api/v1/namespaces/default/secrets", json!({"metadata": {"name": "s"}})).await;
    for (kind, name, collection, record) in [
        ("Pod", "p", "pods", "default/p"),
        ("Secret", "s", "secrets", "default/s"),
        ("Node", "n", "nodes", "n"),
        ("ServiceAccount", "default", "serviceaccounts", "default/default"),
    ] {
        let bound = json!({"boundObjectRef": {"apiVersion": "v1", "kind": kind, "name": name}});
        let asked = if kind == "ServiceAccount" { json!({}) } else { bound };
        let token = server.make(&format!("{accounts}/default/token"), json!({"spec": asked})).await;
        let token = token["status"]["token"].as_str().unwrap().to_owned();
        let mut stored: Value =
            serde_json::from_slice(&server.keyspace.get(collection, record).unwrap().bytes).unwrap();
        stored["metadata"]["resourceVersion"] = json!("");
        for (ago, code) in [(None, 200), (Some(30), 200), (Some(90), 401)] {
            let mut object = stored.clone();
            if let Some(ago) = ago {
                let at = jiff::Timestamp::now() - jiff::SignedDuration::from_secs(ago);
                object["metadata"]["deletionTimestamp"] = json!(at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
            }
            server.put_record(collection, record, &object.to_string()).await;
            assert_eq!(get(&server, "/api/v1/pods", Some(&token)).await.0, code, "{kind}: {ago:?} seconds ago");
            let review = json!({"spec": {"token": token}});
            let review = server.make("/apis/authentication.k8s.io/v1/tokenreviews", review).await;
            assert_eq!(review["status"]["authenticated"] == true, code == 200, "{kind}: {review}");
        }
        server.put_record(collection, record, &stored.to_string()).await;
    }
}

#[tokio::test]
async fn a_node_changes_only_its_own_pods() {
    let server = Server::start().await.with_account().await;
    server.make("/api/v1/namespaces/default/pods", pod("p")).await;
    let body = json!({"bindings": [{"namespace": "default", "name": "p", "node": "mine"}]});
    server.call("POST", "/coracle/v1/bindings", body).await;
    for (node, code) in [("mine", 200), ("other", 403)] {
        let identity = Identity::authenticated(format!("system:node:{node}"), vec!["system:nodes".to_owned()]);
        let request = Request::patch("/api/v1/namespaces/default/pods/p/status")
            .header("content-type", "application/strategic-merge-patch+json")
            .body(json!({"status": {"phase": "Running"}}).to_string().into())
            .unwrap();
        let answer = server.send(Some(identity), request).await;
        assert_eq!(answer.code, code, "{node}: {}", answer.json());
    }
}

#[tokio::test]
async fn other_routes_are_behind_authentication_when_asked() {
    use tower::ServiceExt;
    let server = Server::start().await;
    let extra = axum::Router::new().route("/coracle/v1/status", axum::routing::get(|| async { "fine" }));
    let router = server.api.router().merge(server.api.authenticated(extra));
    for (identity, code) in [(None, 401), (Some(admin()), 200)] {
        let mut request = Request::get("/coracle/v1/status").body(Body::empty()).unwrap();
        if let Some(identity) = identity {
            request.extensions_mut().insert(identity);
        }
        assert_eq!(router.clone().oneshot(request).await.unwrap().status(), code);
    }
    let mut request = Request::get("/api/v1/namespaces").body(Body::empty()).unwrap();
    request.extensions_mut().insert(admin());
    assert_eq!(router.oneshot(request).await.unwrap().status(), 200);
}

#[tokio::test]
async fn discovery_is_complete_and_cacheable() {
    let server = Server::start().await;
    let aggregated = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";
    let request = |tag: &str| {
        Request::get("/apis").header("accept", aggregated).header("if-none-match", tag).body(Body::empty()).unwrap()
    };
    let answer = server.send(Some(admin()), request("")).await;
    assert_eq!((answer.code, answer.json()["kind"].clone()), (200, json!("APIGroupDiscoveryList")));
    let tag = answer.headers["etag"].to_str().unwrap().to_owned();
    assert_eq!(server.send(Some(admin()), request(&tag)).await.code, 304);
    for (path, kind) in [
        ("/api", "APIVersions"),
        ("/apis", "APIGroupList"),
        ("/apis/apps", "APIGroup"),
        ("/apis/apps/v1", "APIResourceList"),
    ] {
        assert_eq!(server.get(path).await.1["kind"], kind, "{path}");
    }
    let (_, index) = server.get("/openapi/v3").await;
    let url = index["paths"]["apis/apps/v1"]["serverRelativeURL"].as_str().unwrap().to_owned();
    let (code, document) = server.get(&url).await;
    assert_eq!(code, 200);
    assert!(document["components"]["schemas"]["io.k8s.api.apps.v1.Deployment"].is_object());
    let patch = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
    assert!(patch["requestBody"]["content"]["application/strategic-merge-patch+json"].is_object());
}

/// The code of a request of the node `name`.
async fn as_node(server: &Server, name: &str, method: &str, path: &str, body: Value) -> u16 {
    let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
    let request = Request::builder().method(method).uri(path).header("content-type", "application/json").body(body);
    server.send(Some(node(name)), request.unwrap()).await.code
}

#[tokio::test]
async fn a_node_reads_and_asks_only_for_what_its_pods_need() {
    let server = Server::start().await.with_account().await;
    let core = "/api/v1/namespaces/default";
    for name in ["used", "other"] {
        server.make(&format!("{core}/secrets"), json!({"metadata": {"name": name}})).await;
        server.make(&format!("{core}/serviceaccounts"), json!({"metadata": {"name": name}})).await;
    }
    let mut mine = pod("p");
    mine["spec"]["serviceAccountName"] = json!("used");
    mine["spec"]["volumes"] = json!([{"name": "v", "secret": {"secretName": "used"}}]);
    let mine = server.make(&format!("{core}/pods"), mine).await["metadata"]["uid"].clone();
    let theirs = server.make(&format!("{core}/pods"), pod("q")).await["metadata"]["uid"].clone();
    let bindings = json!({"bindings": [{"namespace": "default", "name": "p", "node": "mine"},
        {"namespace": "default", "name": "q", "node": "theirs"}]});
    server.call("POST", "/coracle/v1/bindings", bindings).await;
    for (path, code) in [
        ("/secrets/used", 200),
        ("/secrets/other", 403),
        ("/secrets", 403),
        ("/secrets?fieldSelector=metadata.name%3Dused", 200),
        ("/secrets?fieldSelector=metadata.name%3Dother", 403),
        ("/pods/p", 200),
        ("/pods/q", 403),
        ("/pods/gone", 404),
        ("/pods", 403),
        ("/pods?fieldSelector=spec.nodeName%3Dmine", 200),
        ("/pods/p/exec?command=x", 403),
        ("/pods/p/portforward", 403),
        ("/services/kubernetes", 200),
        ("/services/kubernetes:https/proxy/", 403),
    ] {
        assert_eq!(as_node(&server, "mine", "GET", &format!("{core}{path}"), Value::Null).await, code, "{path}");
    }
    let unborn = "/api/v1/watch/namespaces/default/pods/unborn";
    assert_eq!(as_node(&server, "mine", "GET", unborn, Value::Null).await, 403, "it may run anywhere");
    assert_eq!(as_node(&server, "mine", "POST", "/api/v1/watch/nodes", json!({})).await, 405);
    let bound = |name: &str, uid: &Value| json!({"spec": {"boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid}}});
    for (account, body, code) in [
        ("used", bound("p", &mine), 201),
        ("used", json!({"spec": {}}), 403),
        ("default", bound("q", &theirs), 403),
        ("other", json!({"spec": {}}), 403),
    ] {
        let path = format!("{core}/serviceaccounts/{account}/token");
        assert_eq!(as_node(&server, "mine", "POST", &path, body).await, code, "{account}");
    }
}

#[tokio::test]
async fn a_token_that_is_bound_to_a_node_ends_with_it() {
    let server = Server::start().await.with_account().await;
    server.make("/api/v1/nodes", json!({"metadata": {"name": "n"}})).await;
    let path = "/api/v1/namespaces/default/serviceaccounts/default/token";
    let bound = json!({"spec": {"boundObjectRef": {"apiVersion": "v1", "kind": "Node", "name": "n"}}});
    let token = server.make(path, bound).await["status"]["token"].as_str().unwrap().to_owned();
    assert_eq!(get(&server, "/api", Some(&token)).await.0, 200);
    server.call("DELETE", "/api/v1/nodes/n", Value::Null).await;
    assert_eq!(get(&server, "/api", Some(&token)).await.0, 401);
}

#[tokio::test]
async fn a_token_is_a_password_at_other_routes() {
    use tower::ServiceExt;
    let server = Server::start().await.with_account().await;
    let path = "/api/v1/namespaces/default/serviceaccounts/default/token";
    let token = server.make(path, json!({"spec": {}})).await["status"]["token"].as_str().unwrap().to_owned();
    let registry = axum::Router::new().route("/v2/", axum::routing::get(|| async { "fine" }));
    let router = server.api.authenticated(registry);
    let basic = |password: &str| {
        let text = format!("anyone:{password}");
        format!("Basic {}", base64::Engine::encode(&base64::engine::general_purpose::STANDARD, text))
    };
    for (credentials, code) in [(None, 401), (Some(basic("rubbish")), 401), (Some(basic(&token)), 200)] {
        let mut request = Request::get("/v2/");
        if let Some(credentials) = credentials {
            request = request.header("authorization", credentials);
        }
        let answer = router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        assert_eq!((answer.status().as_u16(), answer.headers().contains_key("www-authenticate")), (code, code == 401));
    }
}

#[tokio::test]
async fn a_node_that_joins_speaks_for_itself_and_has_a_range_of_its_own() {
    let server = Server::start().await;
    let node = |name: &str, range: &str| {
        let spec = if range.is_empty() { json!({}) } else { json!({"podCIDR": range}) };
        json!({"metadata": {"name": name, "annotations": {"coracle.dev/pod-range": "joined"}}, "spec": spec})
    };
    for (name, code) in [("other", 403), ("a", 201)] {
        assert_eq!(as_node(&server, "a", "POST", "/api/v1/nodes", node(name, "")).await, code, "{name}");
    }
    let leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
    for (name, code) in [("other", 403), ("a", 201)] {
        assert_eq!(as_node(&server, "a", "POST", leases, json!({"metadata": {"name": name}})).await, code, "{name}");
    }
    let first = server.get("/api/v1/nodes/a").await.1["spec"]["podCIDR"].as_str().unwrap().to_owned();
    let second = server.make("/api/v1/nodes", node("b", "")).await["spec"].clone();
    assert!(first.ends_with("/20") && second["podCIDR"] != first.as_str());
    assert_eq!(second["podCIDRs"], json!([second["podCIDR"]]));
    assert!(server.make("/api/v1/nodes", json!({"metadata": {"name": "by-hand"}})).await["spec"]["podCIDR"].is_null());
    // Not asking is no way to another's range: neither at once nor by a change.
    let thief = json!({"metadata": {"name": "thief"}, "spec": {"podCIDR": first}});
    assert_eq!(server.call("POST", "/api/v1/nodes", thief).await.0, 422);
    let change = json!({"spec": {"podCIDR": first, "podCIDRs": [first]}});
    assert_eq!(server.call("PATCH", "/api/v1/nodes/by-hand", change).await.0, 422);
    assert_eq!(as_node(&server, "a", "POST", "/api/v1/nodes", node("a", &first)).await, 409, "a second start");
    // Held until its node is deleted, also by one that names it.
    assert_eq!(server.call("POST", "/api/v1/nodes", node("c", &first)).await.0, 422);
    assert_eq!(server.call("DELETE", "/api/v1/nodes/a", Value::Null).await.0, 200);
    assert_eq!(server.make("/api/v1/nodes", node("a", &first)).await["spec"]["podCIDR"], first.as_str());
    assert_eq!(server.call("POST", "/api/v1/nodes", node("c", &first)).await.0, 422);
}

#[tokio::test]
async fn only_the_token_of_a_pod_lives_longer_than_it_says() {
    use base64::Engine;
    let server = Server::start().await.with_account().await;
    server.make("/api/v1/namespaces/default/pods", pod("p")).await;
    let path = "/api/v1/namespaces/default/serviceaccounts/default/token";
    let reference = json!({"apiVersion": "v1", "kind": "Pod", "name": "p"});
    for (bound, seconds, lives) in
        [(Value::Null, 3607, 3607), (reference.clone(), 3607, 365 * 24 * 3600), (reference, 3600, 3600)]
    {
        let spec = json!({"spec": {"expirationSeconds": seconds, "boundObjectRef": bound}});
        let token = server.make(path, spec).await["status"]["token"].as_str().unwrap().to_owned();
        let claims = token.split('.').nth(1).unwrap();
        let claims = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(claims).unwrap();
        let claims: Value = serde_json::from_slice(&claims).unwrap();
        assert_eq!(claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(), lives, "{claims}");
        assert_eq!(claims["kubernetes.io"]["warnafter"].is_number(), lives > seconds, "{claims}");
    }
}
