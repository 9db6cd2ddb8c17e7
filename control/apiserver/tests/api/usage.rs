//! `metrics.k8s.io`: what nodes say that pods use, as `kubectl top` and autoscalers ask for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::body::Body;
use coracle_apiserver::Identity;
use futures::future;
use http::Request;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{Server, admin, pod};

const PODS: &str = "/apis/metrics.k8s.io/v1beta1/namespaces/default/pods";
const NODES: &str = "/apis/metrics.k8s.io/v1beta1/nodes";

/// A node's endpoint, as far as it says what is used: each time a second later, and a quarter of a second of processor time.
struct Node {
    asked: Arc<AtomicU64>,
    port: u16,
}

impl Node {
    async fn start() -> Node {
        let certificate = CertificateDer::from_pem_slice(include_bytes!("../node.pem")).unwrap();
        let key = PrivateKeyDer::from_pem_slice(include_bytes!("../node.key")).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let tls = tls.with_no_client_auth().with_single_cert(vec![certificate], key).unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked: Arc<AtomicU64> = Arc::default();
        let counter = asked.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, counter) = (acceptor.clone(), counter.clone());
                tokio::spawn(async move {
                    let mut stream = acceptor.accept(stream).await.unwrap();
                    let mut request = Vec::new();
                    while !request.ends_with(b"\r\n\r\n") {
                        request.push(stream.read_u8().await.unwrap());
                    }
                    assert!(request.starts_with(b"GET /metrics/resource HTTP/1.1\r\n"));
                    let text = said(counter.fetch_add(1, Ordering::SeqCst));
                    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{text}", text.len());
                    stream.write_all(answer.as_bytes()).await.unwrap();
                    stream.shutdown().await.unwrap();
                });
            }
        });
        Node { asked, port }
    }

    fn asked(&self) -> u64 {
        self.asked.load(Ordering::SeqCst)
    }
}

/// What it says at a time: of the pods `web` and `elsewhere`, and of itself.
fn said(time: u64) -> String {
    let (at, cpu) = (1_800_000_000_000 + 1_000 * time, 5.0 + 0.25 * time as f64);
    let mut text = format!("node_cpu_usage_seconds_total {cpu} {at}\nnode_memory_working_set_bytes 1048576 {at}\n");
    for pod in ["web", "elsewhere", "gone"] {
        for container in ["a", "b"] {
            let labels = format!("{{container=\"{container}\",namespace=\"default\",pod=\"{pod}\"}}");
            text += &format!("container_cpu_usage_seconds_total{labels} {cpu} {at}\n");
            text += &format!("container_memory_working_set_bytes{labels} 3000 {at}\n");
        }
    }
    text
}

/// A server with a node `n` and the pods `web`, `elsewhere` (bound to another node) and `pending`.
async fn start() -> (Server, Node) {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(include_bytes!("../node.pem")).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let tls = tls.with_root_certificates(roots).with_no_client_auth();
    let server = Server::start_with(|config| config.node_client = Some(tls.into())).await.with_account().await;
    let node = Node::start().await;
    for (name, port) in [("n", node.port), ("m", 1)] {
        server.make("/api/v1/nodes", json!({"metadata": {"name": name, "labels": {"tier": name}}})).await;
        let says = json!({"status": {"addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": port}}}});
        assert_eq!(server.call("PATCH", &format!("/api/v1/nodes/{name}/status"), says).await.0, 200);
    }
    for (name, at, phase) in [("web", "n", "Running"), ("elsewhere", "m", "Running"), ("pending", "n", "Pending")] {
        let mut object = pod(name);
        object["metadata"]["labels"] = json!({"app": name});
        object["spec"]["nodeName"] = json!(at);
        server.make("/api/v1/namespaces/default/pods", object).await;
        let path = format!("/api/v1/namespaces/default/pods/{name}/status");
        assert_eq!(server.call("PATCH", &path, json!({"status": {"phase": phase}})).await.0, 200);
    }
    (server, node)
}

fn names(list: &Value) -> Vec<&str> {
    let items = list["items"].as_array().expect("items");
    items.iter().map(|item| item["metadata"]["name"].as_str().expect("a name")).collect()
}

#[tokio::test]
async fn what_a_pod_uses_is_a_rate_and_collected_once_for_all_who_ask() {
    let (server, node) = start().await;
    let all = future::join_all((0..8).map(|_| server.get(PODS))).await;
    assert_eq!(node.asked(), 2, "two samples, and no more for eight who ask");
    let (code, list) = &all[7];
    assert_eq!((*code, names(list)), (200, vec!["web"]), "a node is believed about its own pods that run: {list}");
    assert_eq!((&list["kind"], &list["apiVersion"]), (&json!("PodMetricsList"), &json!("metrics.k8s.io/v1beta1")));
    let item = &list["items"][0];
    let usage = json!({"cpu": "250m", "memory": "3000"});
    assert_eq!(item["containers"], json!([{"name": "a", "usage": usage}, {"name": "b", "usage": usage}]));
    assert_eq!((&item["window"], &item["timestamp"]), (&json!("1s"), &json!("2027-01-15T08:00:01Z")));
    let metadata = &item["metadata"];
    assert_eq!((&metadata["namespace"], &metadata["labels"]), (&json!("default"), &json!({"app": "web"})));
    for (query, expected) in [
        ("?labelSelector=app%3Dweb", vec!["web"]),
        ("?labelSelector=app%21%3Dweb", vec![]),
        ("?fieldSelector=spec.nodeName%3Dn", vec!["web"]),
        ("?fieldSelector=spec.nodeName%3Dm", vec![]),
    ] {
        assert_eq!(names(&server.get(&format!("{PODS}{query}")).await.1), expected, "{query}");
    }
    assert_eq!(names(&server.get("/apis/metrics.k8s.io/v1beta1/pods").await.1), ["web"]);
    let (code, one) = server.get("/apis/metrics.k8s.io/v1/namespaces/default/pods/web").await;
    assert_eq!((code, &one["kind"], &one["apiVersion"]), (200, &json!("PodMetrics"), &json!("metrics.k8s.io/v1")));
    let (code, list) = server.get(&format!("{NODES}?labelSelector=tier")).await;
    assert_eq!((code, names(&list), &list["kind"]), (200, vec!["n"], &json!("NodeMetricsList")));
    assert_eq!(list["items"][0]["usage"], json!({"cpu": "250m", "memory": "1Mi"}));
    let request = Request::get(PODS).header("accept", "application/json;as=Table;v=v1;g=meta.k8s.io");
    let table = server.send(Some(admin()), request.body(Body::empty()).unwrap()).await.json();
    let columns = table["columnDefinitions"].as_array().unwrap().iter().map(|column| column["name"].clone());
    assert_eq!(columns.collect::<Vec<_>>(), ["Name", "cpu", "memory", "Window"]);
    assert_eq!(table["rows"][0]["cells"], json!(["web", "500m", "6000", "1s"]), "a pod is the sum of its containers");
    assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    assert_eq!(node.asked(), 2, "what was said so lately is said again");
}

#[tokio::test]
async fn what_is_not_measured_is_not_found_and_nothing_is_written() {
    let (server, _node) = start().await;
    let revision = server.keyspace.revision();
    for (path, code, message) in [
        (format!("{PODS}/pending"), 404, "podmetrics.metrics.k8s.io \"default/pending\" not found"),
        (format!("{PODS}/elsewhere"), 404, "podmetrics.metrics.k8s.io \"default/elsewhere\" not found"),
        (format!("{PODS}/none"), 404, "pods \"none\" not found"),
        (format!("{NODES}/m"), 404, "nodemetrics.metrics.k8s.io \"m\" not found"),
        (format!("{NODES}/none"), 404, "nodes \"none\" not found"),
        (format!("{PODS}/web/log"), 404, "the server could not find the requested resource"),
        (format!("{PODS}?watch=true"), 405, "the server does not allow this method on the requested resource"),
        (format!("{PODS}?labelSelector=%28"), 400, ""),
        ("/apis/metrics.k8s.io/v1beta1/namespaces/default/nodes".to_owned(), 404, ""),
        ("/apis/metrics.k8s.io/v2/nodes".to_owned(), 404, ""),
    ] {
        let (found, status) = server.get(&path).await;
        assert_eq!(found, code, "{path}: {status}");
        assert!(status["message"].as_str().unwrap_or_default().contains(message), "{path}: {status}");
    }
    assert_eq!(server.call("POST", PODS, json!({"metadata": {"name": "x"}})).await.0, 405);
    assert_eq!(server.call("DELETE", &format!("{PODS}/web"), Value::Null).await.0, 405);
    assert_eq!(server.keyspace.revision(), revision);
}

#[tokio::test]
async fn whoever_may_view_a_namespace_sees_what_its_pods_use() {
    let (server, _node) = start().await;
    let role = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"});
    let subject = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "viewer"});
    let binding = json!({"metadata": {"name": "v"}, "roleRef": role, "subjects": [subject]});
    server.make("/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings", binding).await;
    let ask = async |name: &str, path: &str| {
        let identity = Identity::authenticated(name, vec!["system:authenticated".to_owned()]);
        server.send(Some(identity), Request::get(path).body(Body::empty()).unwrap()).await.code
    };
    for (name, path, code) in [
        ("viewer", PODS, 200),
        ("viewer", NODES, 403),
        ("viewer", "/apis/metrics.k8s.io/v1beta1/pods", 403),
        ("stranger", PODS, 403),
        ("stranger", "/apis/metrics.k8s.io/v1beta1", 200),
    ] {
        assert_eq!(ask(name, path).await, code, "{name} {path}");
    }
}

#[tokio::test]
async fn discovery_tells_of_it_in_every_form() {
    let server = Server::start().await;
    let (_, group) = server.get("/apis/metrics.k8s.io").await;
    let versions = group["versions"].as_array().unwrap().iter().map(|version| version["version"].clone());
    assert_eq!(versions.collect::<Vec<_>>(), ["v1", "v1beta1"]);
    let (_, list) = server.get("/apis/metrics.k8s.io/v1beta1").await;
    let one = |name: &str, kind: &str, namespaced: bool| json!({"name": name, "singularName": "", "namespaced": namespaced, "kind": kind, "verbs": ["get", "list"]});
    assert_eq!(list["resources"], json!([one("nodes", "NodeMetrics", false), one("pods", "PodMetrics", true)]));
    let accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    let request = Request::get("/apis").header("accept", accept).body(Body::empty()).unwrap();
    let all = server.send(Some(admin()), request).await.json();
    let groups = all["items"].as_array().unwrap();
    assert!(groups.iter().any(|group| group["metadata"]["name"] == "metrics.k8s.io"));
    assert_eq!(server.get("/openapi/v3/apis/metrics.k8s.io/v1beta1").await.0, 200);
}
