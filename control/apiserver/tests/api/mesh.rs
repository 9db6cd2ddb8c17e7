//! What nodes see of requests: `/coracle/v1/tap` and `/coracle/v1/routes`, and who may ask.

use axum::body::Body;
use coracle_apiserver::Identity;
use http::Request;
use http_body_util::BodyExt as _;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tower::ServiceExt as _;

use crate::Server;

const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";

/// A node's endpoint that says what it was asked for, and answers routes with that and a tap with two lines, broken anywhere.
async fn node(asked: mpsc::UnboundedSender<String>) -> u16 {
    let certificate = CertificateDer::from_pem_slice(include_bytes!("../node.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_slice(include_bytes!("../node.key")).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let tls = tls.with_no_client_auth().with_single_cert(vec![certificate], key).unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(std::sync::Arc::new(tls));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, asked) = (acceptor.clone(), asked.clone());
            tokio::spawn(async move {
                let mut stream = acceptor.accept(stream).await.unwrap();
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    request.push(stream.read_u8().await.unwrap());
                }
                let request = String::from_utf8(request).unwrap();
                let path = request.split(' ').nth(1).unwrap().to_owned();
                asked.send(path.clone()).unwrap();
                if path.starts_with("/coracle/v1/routes") {
                    let text = json!({ "asked": path }).to_string();
                    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{text}", text.len());
                    stream.write_all(answer.as_bytes()).await.unwrap();
                    return stream.shutdown().await.unwrap();
                }
                stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await.unwrap();
                for piece in ["{\"path\": \"/a\"", "}\n{\"lost\": 7}\n"] {
                    stream.write_all(format!("{:x}\r\n{piece}\r\n", piece.len()).as_bytes()).await.unwrap();
                    stream.flush().await.unwrap();
                }
                // Until nobody listens any more.
                let _ = stream.read_u8().await;
                asked.send("closed".to_owned()).unwrap();
            });
        }
    });
    port
}

/// A server with a node `n` that tells, and one `m` that is not reached.
async fn start() -> (Server, mpsc::UnboundedReceiver<String>) {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(include_bytes!("../node.pem")).unwrap()).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let tls = tls.with_root_certificates(roots).with_no_client_auth();
    let server = Server::start_with(|config| config.node_client = Some(tls.into())).await;
    let (asked, asks) = mpsc::unbounded_channel();
    for (name, port) in [("n", node(asked).await), ("m", 1)] {
        server.make("/api/v1/nodes", json!({"metadata": {"name": name}})).await;
        let says = json!({"status": {"addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": port}}}});
        assert_eq!(server.call("PATCH", &format!("/api/v1/nodes/{name}/status"), says).await.0, 200);
    }
    (server, asks)
}

/// A guest's GET; its status and its body, unread.
async fn guest(server: &Server, path: &str) -> (u16, Body) {
    let mut request = Request::get(path).body(Body::empty()).unwrap();
    request.extensions_mut().insert(Identity::authenticated("guest", Vec::new()));
    let response = server.api.router().oneshot(request).await.unwrap();
    (response.status().as_u16(), response.into_body())
}

/// The guest may `get` this subresource, in the namespace `default` or everywhere.
async fn grant(server: &Server, (resource, subresource): (&str, &str), is_everywhere: bool) {
    let rules = json!([{"apiGroups": [""], "resources": [format!("{resource}/{subresource}")], "verbs": ["get"]}]);
    let (of, kind, place) = match is_everywhere {
        true => ("cluster", "ClusterRole", RBAC.to_owned()),
        false => ("", "Role", format!("{RBAC}/namespaces/default")),
    };
    let name = format!("{resource}-{subresource}");
    server.make(&format!("{place}/{of}roles"), json!({"metadata": {"name": name}, "rules": rules})).await;
    let binding = json!({
        "metadata": {"name": name},
        "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "guest"}],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name},
    });
    server.make(&format!("{place}/{of}rolebindings"), binding).await;
}

#[tokio::test]
async fn each_node_says_where_a_request_goes_and_is_asked_for_what_was_allowed() {
    let (server, mut asks) = start().await;
    let path = "/coracle/v1/routes?namespace=default&service=web";
    assert_eq!(guest(&server, path).await.0, 403);
    grant(&server, ("services", "routes"), false).await;
    let (code, body) = guest(&server, path).await;
    let page: Value = serde_json::from_slice(&body.collect().await.unwrap().to_bytes()).unwrap();
    assert_eq!(code, 200, "{page}");
    assert_eq!(page["nodes"]["n"]["asked"], "/coracle/v1/routes?namespace=default&service=web");
    assert!(page["nodes"]["m"]["error"].as_str().is_some_and(|error| error.contains("error dialing backend")));
    // Whatever else a query says, nodes hear what was looked at when it was allowed.
    asks.try_recv().unwrap();
    let (code, _) = guest(&server, &format!("{path}&service=other&namespace=kube-system&x=y")).await;
    assert_eq!((code, asks.recv().await.unwrap()), (200, path.to_owned()));
    for beyond in [
        "/coracle/v1/routes?namespace=kube-system&service=web",
        "/coracle/v1/routes?host=a.x&namespace=default&service=web",
        "/coracle/v1/routes?service=web",
        "/coracle/v1/tap?namespace=default",
    ] {
        assert_eq!(guest(&server, beyond).await.0, 403, "{beyond}");
    }
    assert!(asks.try_recv().is_err(), "who may not is not asked for");
    assert_eq!(server.get("/coracle/v1/routes?host=a.x").await.0, 200);
    assert_eq!(server.get("/coracle/v1/routes").await.0, 400);
    assert_eq!(server.call("POST", "/coracle/v1/tap", Value::Null).await.0, 405);
}

#[tokio::test]
async fn requests_of_all_nodes_come_in_one_stream_and_end_with_who_looks() {
    let (server, mut asks) = start().await;
    grant(&server, ("services", "tap"), false).await;
    let (code, mut body) = guest(&server, "/coracle/v1/tap?namespace=default").await;
    assert_eq!(code, 200);
    let mut lines = Vec::new();
    while lines.len() < 3 {
        let frame = body.frame().await.unwrap().unwrap().into_data().unwrap();
        for line in frame.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            lines.push(serde_json::from_slice::<Value>(line).unwrap());
        }
    }
    assert!(lines.contains(&json!({"path": "/a", "node": "n"})) && lines.contains(&json!({"lost": 7, "node": "n"})));
    assert!(lines.iter().any(|line| line["node"] == "m" && line["error"].is_string()), "{lines:?}");
    assert_eq!(asks.recv().await.unwrap(), "/coracle/v1/tap?namespace=default");
    drop(body);
    assert_eq!(asks.recv().await.unwrap(), "closed");
}

#[tokio::test]
async fn who_may_look_at_a_node_may_not_look_at_all_that_it_sees_and_reaches() {
    let (server, mut asks) = start().await;
    let node = "/api/v1/nodes/n/proxy";
    grant(&server, ("nodes", "proxy"), true).await;
    grant(&server, ("services", "tap"), false).await;
    grant(&server, ("services", "routes"), false).await;
    grant(&server, ("pods", "proxy"), false).await;
    for (path, code) in [
        ("/metrics", 200),
        ("/coracle/v1/demand", 200),
        ("/coracle/v1/tap", 403),
        ("/coracle/v1/tap?namespace=default", 403),
        ("/coracle/v1/routes?host=a.x", 403),
        ("/coracle/v1/proxy/kube-system/web/80/", 403),
        ("/coracle/v1/proxy/kube%2Dsystem/web/80/", 403),
        ("/coracle/v1/proxy/default/web/80/", 200),
        // What it runs, and that it begins anew.
        ("/coracle/v1/program", 403),
        ("/coracle/v1/other", 404),
        ("/coracle/v2/tap", 404),
        // What is done to pods.
        ("/exec/default/web/c?command=sh&input=1", 403),
        ("/exec/default/web/uid/c?command=sh&input=1", 403),
        ("/%65xec/default/web/c?command=sh", 403),
        ("/attach/default/web/c", 403),
        ("/run/default/web/c", 403),
        ("/portForward/default/web", 403),
        ("/containerLogs/default/web/c", 403),
    ] {
        assert_eq!(guest(&server, &format!("{node}{path}")).await.0, code, "{path}");
        let asked = asks.try_recv().ok().filter(|asked| asked != "closed");
        assert_eq!(asked.as_deref(), Some(path).filter(|_| code == 200), "{path}");
        if code == 200 {
            assert_eq!(asks.recv().await.unwrap(), "closed");
        }
    }
    grant(&server, ("services", "tap"), true).await;
    assert_eq!(guest(&server, &format!("{node}/coracle/v1/tap")).await.0, 200);
    // Who may do it to the pod may do it by way of its node; to look at one is not to run something in it.
    grant(&server, ("pods", "exec"), false).await;
    grant(&server, ("pods", "log"), false).await;
    let code = async |path: &str| guest(&server, &format!("{node}{path}")).await.0;
    assert_eq!(code("/exec/default/web/c?command=sh").await, 403);
    assert_eq!(code("/containerLogs/default/w%65b/c").await, 200);
    assert_eq!(code("/containerLogs/kube-system/web/c").await, 403);
    let rules = json!([{"apiGroups": [""], "resources": ["pods/exec"], "verbs": ["create"]}]);
    let roles = format!("{RBAC}/namespaces/default/roles");
    let (changed, _) = server.call("PATCH", &format!("{roles}/pods-exec"), json!({"rules": rules})).await;
    assert_eq!(changed, 200);
    assert_eq!(code("/exec/default/web/c?command=sh").await, 200);
}
