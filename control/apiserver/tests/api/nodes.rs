//! What a node agent may write: its own, and of that nothing that others rely on (NodeRestriction).

use axum::body::Body;
use http::Request;
use serde_json::{Value, json};

use crate::{Server, node, pod};

const PODS: &str = "/api/v1/namespaces/default/pods";
const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
const CSI: &str = "/apis/storage.k8s.io/v1/csinodes";

/// Sends a request of the node `mine`.
async fn ask(server: &Server, method: &str, path: &str, body: &Value) -> (u16, String) {
    let media_type = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
    let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
    let request = Request::builder().method(method).uri(path).header("content-type", media_type).body(body).unwrap();
    let answer = server.send(Some(node("mine")), request).await;
    (answer.code, answer.json()["message"].as_str().unwrap_or_default().to_owned())
}

fn named(name: &str) -> Value {
    json!({"metadata": {"name": name}})
}

#[tokio::test]
async fn a_node_makes_nothing_in_another_s_name() {
    let server = Server::start().await;
    let labels = |labels: Value| json!({"metadata": {"name": "mine", "labels": labels}});
    let csi = |name: &str| json!({"metadata": {"name": name}, "spec": {"drivers": []}});
    let owned = json!({"metadata": {"name": "mine", "ownerReferences": [
        {"apiVersion": "v1", "kind": "Node", "name": "x", "uid": "u"}]}});
    for (path, body, code, message) in [
        ("/api/v1/nodes", named("theirs"), 403, "is not allowed to modify node \"theirs\""),
        ("/api/v1/nodes", json!({"metadata": {"generateName": "mine"}}), 403, "is not allowed to modify node"),
        (
            "/api/v1/nodes",
            labels(json!({"node-restriction.kubernetes.io/a": "b", "node-role.kubernetes.io/x": ""})),
            403,
            "is not allowed to set the following labels: node-restriction.kubernetes.io/a, node-role.kubernetes.io/x",
        ),
        ("/api/v1/nodes", owned, 403, "is not allowed to set owner references"),
        ("/api/v1/nodes", labels(json!({"kubernetes.io/hostname": "mine", "own": "x"})), 201, ""),
        (LEASES, named("theirs"), 403, "can only access node lease with the same name as the requesting node"),
        (LEASES, named("mine"), 201, ""),
        (CSI, csi("theirs"), 403, "can only access CSINode with the same name as the requesting node"),
        (CSI, csi("mine"), 201, ""),
    ] {
        let (answered, said) = ask(&server, "POST", path, &body).await;
        assert_eq!(answered, code, "{body}: {said}");
        assert!(said.contains(message), "{said}");
    }
    // By an apply it makes what it may make by a POST, and no more.
    let apply = async |path: &str, body: Value| {
        let request = Request::patch(format!("{path}/{}?fieldManager=x", body["metadata"]["name"].as_str().unwrap()));
        let request = request.header("content-type", "application/apply-patch+yaml");
        let answer = server.send(Some(node("other")), request.body(Body::from(body.to_string())).unwrap()).await;
        (answer.code, answer.json()["message"].as_str().unwrap_or_default().to_owned())
    };
    let other =
        |labels: Value| json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "other", "labels": labels}});
    let (code, said) = apply("/api/v1/nodes", other(json!({"node-role.kubernetes.io/x": ""}))).await;
    assert_eq!(code, 403, "{said}");
    assert!(said.contains("is not allowed to set the following labels: node-role.kubernetes.io/x"), "{said}");
    let (code, said) = apply("/api/v1/nodes", other(json!({"own": "x"}))).await;
    assert_eq!(code, 201, "{said}");
}

#[tokio::test]
async fn a_review_promises_a_node_what_it_may_do_and_no_more() {
    let server = Server::start().await.with_account().await;
    for name in ["used", "other"] {
        server.make("/api/v1/namespaces/default/secrets", named(name)).await;
    }
    for (name, at) in [("p", "mine"), ("q", "theirs")] {
        let mut object = pod(name);
        object["spec"]["nodeName"] = json!(at);
        object["spec"]["volumes"] =
            json!([{"name": "v", "secret": {"secretName": if name == "p" { "used" } else { "other" }}}]);
        server.make(PODS, object).await;
    }
    let of_node = json!({"requirements": [{"key": "spec.nodeName", "operator": "In", "values": ["mine"]}]});
    for (verb, resource, name, selector, expected) in [
        ("get", "secrets", "used", Value::Null, true),
        ("get", "secrets", "other", Value::Null, false),
        ("list", "secrets", "", Value::Null, false),
        ("get", "pods", "p", Value::Null, true),
        ("get", "pods", "q", Value::Null, false),
        ("list", "pods", "", Value::Null, false),
        ("list", "pods", "", of_node, true),
        ("list", "pods", "", json!({"rawSelector": "spec.nodeName=mine"}), true),
        ("list", "pods", "", json!({"rawSelector": "spec.nodeName=theirs"}), false),
        ("get", "nodes", "mine", Value::Null, true),
        ("get", "nodes", "theirs", Value::Null, false),
        ("list", "services", "", Value::Null, true),
    ] {
        let mut asked = json!({"verb": verb, "resource": resource, "name": name, "version": "v1"});
        if resource != "nodes" {
            asked["namespace"] = json!("default");
        }
        if !selector.is_null() {
            asked["fieldSelector"] = selector;
        }
        let spec = json!({"user": "system:node:mine", "groups": ["system:nodes", "system:authenticated"],
            "resourceAttributes": asked});
        let path = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
        let review = server.make(path, json!({"spec": spec})).await;
        assert_eq!(review["status"]["allowed"], expected, "{spec}");
    }
}

#[tokio::test]
async fn a_node_changes_of_its_own_only_what_nobody_else_relies_on() {
    let server = Server::start().await.with_account().await;
    server.make("/api/v1/nodes", named("mine")).await;
    server.make("/api/v1/nodes", named("theirs")).await;
    server.make(LEASES, named("theirs")).await;
    for (name, at) in [("p", "mine"), ("q", "theirs")] {
        let mut object = pod(name);
        object["spec"]["nodeName"] = json!(at);
        server.make(PODS, object).await;
    }
    let (pod_p, pod_q) = (format!("{PODS}/p"), format!("{PODS}/q"));
    let running = json!({"status": {"phase": "Running"}});
    let labels = |key: &str| json!({"metadata": {"labels": {key: "x"}}});
    for (method, path, body, code, message) in [
        ("PATCH", "/api/v1/nodes/mine", labels("own"), 200, ""),
        (
            "PATCH",
            "/api/v1/nodes/mine",
            labels("k8s.io/a"),
            403,
            "nodes \"mine\" is forbidden: is not allowed to modify labels: k8s.io/a",
        ),
        (
            "PATCH",
            "/api/v1/nodes/mine/status",
            labels("k8s.io/a"),
            403,
            "nodes \"mine\" is forbidden: is not allowed to modify labels: k8s.io/a",
        ),
        ("PATCH", "/api/v1/nodes/mine", json!({"spec": {"taints": null}}), 403, "is not allowed to modify taints"),
        ("PATCH", "/api/v1/nodes/mine/status", json!({"status": {"phase": "Running"}}), 200, ""),
        ("PATCH", "/api/v1/nodes/theirs", labels("own"), 403, ""),
        ("DELETE", "/api/v1/nodes/mine", Value::Null, 403, ""),
        ("PATCH", &format!("{LEASES}/theirs"), labels("own"), 403, ""),
        ("PATCH", &format!("{pod_p}/status"), running.clone(), 200, ""),
        ("PATCH", &format!("{pod_p}/status"), labels("a"), 403, "cannot update labels through pod status"),
        (
            "PATCH",
            &format!("{pod_q}/status"),
            running,
            403,
            "node \"mine\" can only update pod status for pods with spec.nodeName set to itself",
        ),
        ("GET", &pod_q, Value::Null, 403, "node: no relationship found between node 'mine' and this object"),
        ("DELETE", &pod_q, Value::Null, 403, "node \"mine\" can only delete pods with spec.nodeName set to itself"),
        ("DELETE", &format!("{pod_p}?gracePeriodSeconds=0"), Value::Null, 200, ""),
    ] {
        let (answered, said) = ask(&server, method, path, &body).await;
        assert_eq!(answered, code, "{method} {path} {body}: {said}");
        assert!(said.contains(message), "{said}");
    }
    assert_eq!(server.get(&pod_q).await.0, 200);
    assert_eq!(server.get(&pod_p).await.0, 404);
}

#[tokio::test]
async fn a_node_gets_tokens_for_the_audiences_that_its_pod_names() {
    let server = Server::start().await.with_account().await;
    let mut object = pod("p");
    object["spec"]["nodeName"] = json!("mine");
    object["spec"]["volumes"] = json!([{"name": "t", "projected": {"sources": [
        {"serviceAccountToken": {"path": "t", "audience": "vault"}}]}}]);
    let uid = server.make(PODS, object).await["metadata"]["uid"].clone();
    let path = "/api/v1/namespaces/default/serviceaccounts/default/token";
    let bound = |uid: &Value, audiences: Value| {
        let reference = json!({"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": uid});
        json!({"spec": {"audiences": audiences, "boundObjectRef": reference}})
    };
    for (body, code, message) in [
        (bound(&uid, json!([])), 201, ""),
        (bound(&uid, json!(["vault"])), 201, ""),
        (
            bound(&uid, json!(["other"])),
            403,
            "system:node:mine is not authorized to request tokens for audience \"other\"",
        ),
        (bound(&uid, json!(["vault", "other"])), 403, "node may only request 0 or 1 audiences"),
        (bound(&Value::Null, json!([])), 403, "node requested token with a pod binding without a uid"),
        (json!({"spec": {}}), 403, "node requested token not bound to a pod"),
    ] {
        let (answered, said) = ask(&server, "POST", path, &body).await;
        assert_eq!(answered, code, "{body}: {said}");
        assert!(said.contains(message), "{said}");
    }
    let many: Vec<String> = (0..10_000).map(|number| format!("audience-{number}")).collect();
    let (code, answer) = server.call("POST", path, json!({"spec": {"audiences": many}})).await;
    assert_eq!(code, 422, "a token that nobody would accept is not signed: {answer}");
}

#[tokio::test]
async fn a_node_agent_elsewhere_has_no_range_but_one_that_is_given_out() {
    use tower::ServiceExt;
    let server = Server::start().await;
    let ranged = |range: &str| json!({"metadata": {"name": "mine"}, "spec": {"podCIDR": range}});
    for range in ["10.244.0.8/29", "10.244.0.0/16", "10.240.0.0/12", "10.240.16.8/29"] {
        let (code, said) = ask(&server, "POST", "/api/v1/nodes", &ranged(range)).await;
        assert_eq!(code, 422, "{range}: {said}");
    }
    let several = json!({"metadata": {"name": "mine"}, "spec": {"podCIDRs": ["10.244.0.8/29"]}});
    assert_eq!(ask(&server, "POST", "/api/v1/nodes", &several).await.0, 422);
    assert_eq!(ask(&server, "POST", "/api/v1/nodes", &ranged("10.240.16.0/20")).await.0, 201);
    let mut thief = ranged("10.240.16.0/20");
    thief["metadata"]["name"] = json!("thief");
    assert_eq!(server.call("POST", "/api/v1/nodes", thief).await.0, 422, "it is claimed");
    // The first node's agent is in the server's process.
    let server = Server::start().await;
    let founder = ranged("10.244.0.0/16");
    let request = Request::post("/api/v1/nodes").header("content-type", "application/json");
    let request = request.body(Body::from(founder.to_string())).unwrap();
    let answer = server.api.in_process(node("mine")).oneshot(request).await.unwrap();
    assert_eq!(answer.status().as_u16(), 201);
    // Its machine comes back as another kind of member, restored or joined again: the object is there, with its range.
    assert_eq!(ask(&server, "POST", "/api/v1/nodes", &founder).await.0, 409);
}

#[tokio::test]
async fn a_node_reads_policies_and_what_namespaces_are_called_and_changes_neither() {
    const POLICIES: &str = "/apis/networking.k8s.io/v1/namespaces/default/networkpolicies";
    let server = Server::start().await;
    let made =
        server.make(POLICIES, json!({"metadata": {"name": "shut"}, "spec": {"podSelector": {}, "egress": []}})).await;
    assert_eq!(
        (&made["spec"], &made["metadata"]["generation"]),
        (&json!({"podSelector": {}, "policyTypes": ["Ingress"]}), &json!(1))
    );
    let nothing = Value::Null;
    for path in
        [POLICIES, "/apis/networking.k8s.io/v1/networkpolicies", "/api/v1/namespaces", "/api/v1/namespaces/default"]
    {
        assert_eq!(ask(&server, "GET", path, &nothing).await, (200, String::new()), "{path}");
    }
    for (method, path) in [
        ("POST", POLICIES.to_owned()),
        ("DELETE", format!("{POLICIES}/shut")),
        ("PATCH", "/api/v1/namespaces/default".to_owned()),
    ] {
        let body = json!({"metadata": {"name": "default", "labels": {"a": "b"}}});
        assert_eq!(ask(&server, method, &path, &body).await.0, 403, "{method} {path}");
    }
}

/// By this a node hears that another process has its identity.
#[tokio::test]
async fn a_lease_is_renewed_in_the_version_that_its_holder_wrote_and_in_no_older_one() {
    let server = Server::start().await;
    let path = format!("{LEASES}/mine");
    let version = async || server.get(&path).await.1["metadata"]["resourceVersion"].clone();
    let renewed = |second: u32| json!({"renewTime": format!("2026-01-01T00:00:0{second}.000000Z")});
    let claimed = |who: &str| json!({"coracle.dev/incarnation": who});
    let lease = json!({"metadata": {"name": "mine", "annotations": claimed("one")}, "spec": renewed(1)});
    assert_eq!(ask(&server, "POST", LEASES, &lease).await.0, 201);
    let first = version().await;
    let renew = async |version: &Value, second: u32| {
        let patch = json!({"metadata": {"resourceVersion": version}, "spec": renewed(second)});
        ask(&server, "PATCH", &path, &patch).await.0
    };
    assert_eq!(renew(&first, 2).await, 200);
    assert_eq!(version().await, first, "a renewal makes no version");
    let claim = json!({"metadata": {"annotations": claimed("two")}, "spec": renewed(3)});
    assert_eq!(ask(&server, "PATCH", &path, &claim).await.0, 200);
    let second = version().await;
    assert_ne!(second, first);
    assert_eq!((renew(&first, 4).await, renew(&second, 5).await), (409, 200));
    let lease = server.get(&path).await.1;
    assert_eq!((&lease["spec"]["renewTime"], version().await), (&renewed(5)["renewTime"], second));
}
