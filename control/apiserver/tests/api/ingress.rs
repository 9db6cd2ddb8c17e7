//! Ingresses: their class, and what nodes may read for them.

use axum::body::Body;
use http::Request;
use serde_json::{Value, json};

use super::watches::Watch;
use super::{Server, node, pod};

const CLASSES: &str = "/apis/networking.k8s.io/v1/ingressclasses";
const INGRESSES: &str = "/apis/networking.k8s.io/v1/namespaces/default/ingresses";
const SECRETS: &str = "/api/v1/namespaces/default/secrets";
const DEFAULT: &str = "ingressclass.kubernetes.io/is-default-class";

fn ingress(name: &str, spec: Value) -> Value {
    let mut spec = spec;
    spec["defaultBackend"] = json!({"service": {"name": "web", "port": {"number": 80}}});
    json!({"kind": "Ingress", "metadata": {"name": name}, "spec": spec})
}

fn class(name: &str, controller: &str, is_default: bool) -> Value {
    json!({"kind": "IngressClass", "metadata": {"name": name, "annotations": {DEFAULT: is_default.to_string()}},
        "spec": {"controller": controller}})
}

#[tokio::test]
async fn there_is_a_class_and_who_names_none_is_of_the_default_one() {
    let server = Server::start().await;
    let (_, ours) = server.get(&format!("{CLASSES}/coracle")).await;
    assert_eq!(ours["spec"]["controller"], "coracle.dev/ingress");
    assert_eq!(ours["metadata"]["annotations"][DEFAULT], "true");
    let made = server.make(INGRESSES, ingress("a", json!({}))).await;
    assert_eq!((&made["spec"]["ingressClassName"], &made["status"]), (&json!("coracle"), &json!({"loadBalancer": {}})));
    assert_eq!(made["metadata"]["generation"], 1);
    let mut annotated = ingress("b", json!({}));
    annotated["metadata"]["annotations"] = json!({"kubernetes.io/ingress.class": "other"});
    assert!(server.make(INGRESSES, annotated).await["spec"]["ingressClassName"].is_null());
    let named = server.make(INGRESSES, ingress("c", json!({"ingressClassName": "nginx"}))).await;
    assert_eq!(named["spec"]["ingressClassName"], "nginx");
    // A second default, and none.
    server.make(CLASSES, class("nginx", "k8s.io/ingress-nginx", true)).await;
    let (code, status) = server.call("POST", INGRESSES, ingress("d", json!({}))).await;
    let message = "ingresses.networking.k8s.io \"d\" is forbidden: Internal error occurred: 2 default IngressClasses were found, only 1 allowed";
    assert_eq!((code, &status["message"]), (403, &json!(message)));
    for name in ["nginx", "coracle"] {
        let patch = json!({"metadata": {"annotations": {DEFAULT: "false"}}});
        assert_eq!(server.call("PATCH", &format!("{CLASSES}/{name}"), patch).await.0, 200);
    }
    assert!(server.make(INGRESSES, ingress("e", json!({}))).await["spec"]["ingressClassName"].is_null());
    // What somebody has made the default stays the only one, also when ours has to be made again.
    let patch = json!({"metadata": {"annotations": {DEFAULT: "true"}}});
    server.call("PATCH", &format!("{CLASSES}/nginx"), patch).await;
    server.call("DELETE", &format!("{CLASSES}/coracle"), Value::Null).await;
    let server = server.restart().await;
    let (_, ours) = server.get(&format!("{CLASSES}/coracle")).await;
    assert_eq!(ours["metadata"]["annotations"][DEFAULT], "false");
}

#[tokio::test]
async fn a_node_reads_the_certificates_of_ingresses_that_it_serves_and_no_other_secret() {
    let server = Server::start().await;
    server.make(CLASSES, class("theirs", "k8s.io/ingress-nginx", false)).await;
    for (name, kind) in [
        ("tls", "kubernetes.io/tls"),
        ("theirs", "kubernetes.io/tls"),
        ("free", "kubernetes.io/tls"),
        ("opaque", "Opaque"),
    ] {
        let data = json!({"tls.crt": "", "tls.key": ""});
        server.make(SECRETS, json!({"metadata": {"name": name}, "type": kind, "data": data})).await;
    }
    let tls = |names: &[&str]| -> Vec<Value> { names.iter().map(|name| json!({"secretName": name})).collect() };
    server.make(INGRESSES, ingress("ours", json!({"tls": tls(&["tls", "opaque", "later"])}))).await;
    server.make(INGRESSES, ingress("theirs", json!({"ingressClassName": "theirs", "tls": tls(&["theirs"])}))).await;
    let ask = async |path: &str| {
        let request = Request::get(path).body(Body::empty()).unwrap();
        server.send(Some(node("any")), request).await.code
    };
    for (path, expected) in [
        (format!("{SECRETS}/tls"), 200),
        (format!("{SECRETS}?fieldSelector=metadata.name%3Dtls"), 200),
        (format!("{SECRETS}/later"), 404),
        (format!("{SECRETS}/opaque"), 403),
        (format!("{SECRETS}?fieldSelector=metadata.name%3Dopaque"), 403),
        (format!("{SECRETS}/theirs"), 403),
        (format!("{SECRETS}/free"), 403),
        (SECRETS.to_owned(), 403),
        ("/api/v1/secrets".to_owned(), 403),
        ("/api/v1/namespaces/kube-system/secrets/tls".to_owned(), 403),
        ("/api/v1/namespaces/default/configmaps/tls".to_owned(), 403),
        (INGRESSES.to_owned(), 200),
        ("/apis/networking.k8s.io/v1/ingresses".to_owned(), 200),
        (CLASSES.to_owned(), 200),
    ] {
        assert_eq!(ask(&path).await, expected, "{path}");
    }
    // Nobody serves it any more.
    server.call("DELETE", &format!("{INGRESSES}/ours"), Value::Null).await;
    assert_eq!(ask(&format!("{SECRETS}/tls")).await, 403);
    // Nor does a node write them.
    let request = Request::builder().method("DELETE").uri(format!("{INGRESSES}/theirs")).body(Body::empty()).unwrap();
    assert_eq!(server.send(Some(node("any")), request).await.code, 403);
}

#[tokio::test]
async fn a_node_does_not_hear_of_what_is_no_certificate_by_an_ingress_alone() {
    let server = Server::start().await.with_account().await;
    server.make(INGRESSES, ingress("ours", json!({"tls": [{"secretName": "later"}]}))).await;
    let (_, before) = server.get(SECRETS).await;
    let path = |query: &str| format!("{SECRETS}?fieldSelector=metadata.name%3Dlater&{query}");
    let mut watch = Watch::open_as(&server, node("any"), &path("watch=true")).await;
    let secret = |kind: &str| {
        let data = json!({"tls.crt": "", "tls.key": ""});
        json!({"metadata": {"name": "later"}, "type": kind, "data": data})
    };
    let opaque = server.make(SECRETS, secret("Opaque")).await;
    server.call("DELETE", &format!("{SECRETS}/later"), Value::Null).await;
    server.make(SECRETS, secret("kubernetes.io/tls")).await;
    let event = watch.next().await.unwrap();
    assert_eq!((&event["type"], &event["object"]["type"]), (&json!("ADDED"), &json!("kubernetes.io/tls")), "{event}");
    // Nor of what it was.
    let since =
        path(&format!("watch=true&resourceVersion={}", before["metadata"]["resourceVersion"].as_str().unwrap()));
    let event = Watch::open_as(&server, node("any"), &since).await.next().await.unwrap();
    assert_eq!((&event["type"], &event["object"]["type"]), (&json!("ADDED"), &json!("kubernetes.io/tls")), "{event}");
    let version = opaque["metadata"]["resourceVersion"].as_str().unwrap();
    let then = path(&format!("resourceVersion={version}&resourceVersionMatch=Exact"));
    let list = async |name: &str| {
        let request = Request::get(&then).body(Body::empty()).unwrap();
        let answer = server.send(Some(node(name)), request).await;
        assert_eq!(answer.code, 200);
        answer.json()["items"].as_array().unwrap().len()
    };
    assert_eq!(list("any").await, 0);
    // A pod's node sees what the pod names.
    let mut pod = pod("p");
    pod["spec"]["nodeName"] = json!("its");
    pod["spec"]["volumes"] = json!([{"name": "v", "secret": {"secretName": "later"}}]);
    server.make("/api/v1/namespaces/default/pods", pod).await;
    assert_eq!((list("its").await, list("any").await), (1, 0));
    let event = Watch::open_as(&server, node("its"), &since).await.next().await.unwrap();
    assert_eq!(event["object"]["type"], "Opaque", "{event}");
}

#[tokio::test]
async fn a_node_reads_the_certificates_of_gateways_that_it_serves() {
    const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    const GROUP: &str = "gateway.networking.k8s.io";
    let server = Server::start().await;
    for (kind, plural, version, scope) in [
        ("GatewayClass", "gatewayclasses", "v1", "Cluster"),
        ("Gateway", "gateways", "v1", "Namespaced"),
        ("ReferenceGrant", "referencegrants", "v1beta1", "Namespaced"),
    ] {
        let open = json!({"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}});
        let names =
            json!({"kind": kind, "plural": plural, "singular": kind.to_lowercase(), "listKind": format!("{kind}List")});
        let versions = json!([{"name": version, "served": true, "storage": true, "schema": open}]);
        let spec = json!({"group": GROUP, "scope": scope, "names": names, "versions": versions});
        // This group is Kubernetes' own: definitions of it say by whom they were approved.
        let approved = json!({"api-approved.kubernetes.io": "https://github.com/kubernetes-sigs/gateway-api/pull/1"});
        let metadata = json!({"name": format!("{plural}.{GROUP}"), "annotations": approved});
        server.make(DEFINITIONS, json!({"metadata": metadata, "spec": spec})).await;
        server.appears(&format!("/apis/{GROUP}/{version}/{plural}")).await;
    }
    for namespace in ["infra", "certs"] {
        server.make("/api/v1/namespaces", json!({"metadata": {"name": namespace}})).await;
    }
    let secrets = |namespace: &str| format!("/api/v1/namespaces/{namespace}/secrets");
    for (namespace, name) in [("infra", "own"), ("infra", "free"), ("certs", "granted"), ("certs", "other")] {
        let data = json!({"tls.crt": "", "tls.key": ""});
        let secret = json!({"metadata": {"name": name}, "type": "kubernetes.io/tls", "data": data});
        server.make(&secrets(namespace), secret).await;
    }
    let api = format!("/apis/{GROUP}/v1");
    let version = |kind: &str, version: &str| json!({"apiVersion": format!("{GROUP}/{version}"), "kind": kind});
    let with = |mut object: Value, name: &str, spec: Value| {
        (object["metadata"], object["spec"]) = (json!({"name": name}), spec);
        object
    };
    for (class, controller) in [("ours", "coracle.dev/gateway"), ("theirs", "example.com/other")] {
        let object = with(version("GatewayClass", "v1"), class, json!({"controllerName": controller}));
        server.make(&format!("{api}/gatewayclasses"), object).await;
    }
    let gateway = |name: &str, class: &str, refs: Value| {
        let tls = json!({"certificateRefs": refs});
        let listener = json!({"name": "l", "port": 443, "protocol": "HTTPS", "tls": tls});
        with(version("Gateway", "v1"), name, json!({"gatewayClassName": class, "listeners": [listener]}))
    };
    let of_certs = |name: &str| json!({"name": name, "namespace": "certs"});
    let gateways = format!("{api}/namespaces/infra/gateways");
    server
        .make(&gateways, gateway("g", "ours", json!([{"name": "own"}, of_certs("granted"), of_certs("other")])))
        .await;
    server.make(&gateways, gateway("h", "theirs", json!([{"name": "free"}]))).await;
    let ask = async |namespace: &str, name: &str| {
        let path = format!("{}/{name}", secrets(namespace));
        let request = Request::get(path).body(Body::empty()).unwrap();
        server.send(Some(node("any")), request).await.code
    };
    let all = async || {
        [
            ask("infra", "own").await,
            ask("infra", "free").await,
            ask("certs", "granted").await,
            ask("certs", "other").await,
        ]
    };
    assert_eq!(all().await, [200, 403, 403, 403]);
    let from = json!([{"group": GROUP, "kind": "Gateway", "namespace": "infra"}]);
    let to = json!([{"group": "", "kind": "Secret", "name": "granted"}]);
    let grant = with(version("ReferenceGrant", "v1beta1"), "grant", json!({"from": from, "to": to}));
    server.make(&format!("/apis/{GROUP}/v1beta1/namespaces/certs/referencegrants"), grant).await;
    assert_eq!(all().await, [200, 403, 200, 403]);
    server.call("DELETE", &format!("{gateways}/g"), Value::Null).await;
    assert_eq!(all().await, [403; 4]);
}
