//! The two servers: both are asked in the same way.

use std::collections::BTreeMap;
use std::path::Path;

use axum::Router;
use axum::body::Body;
use coracle_apiserver::{ApiServer, Config, Identity};
use coracle_keyspace::Keyspace;
use http_body_util::BodyExt as _;
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::Value;
use tower::ServiceExt as _;

use super::script::Request;
use crate::root;

/// What a server said.
pub(super) struct Said {
    pub code: u16,
    pub content_type: String,
    pub warnings: Vec<String>,
    /// JSON; of a watch its events; else the text.
    pub body: Value,
}

impl Said {
    /// What is heard of a server that has hung up.
    fn nothing() -> Said {
        Said { code: 0, content_type: String::new(), warnings: Vec::new(), body: "no answer".into() }
    }
}

pub(super) enum Server {
    /// Over the network, as the kubeconfig says.
    Reference(kube::Client),
    /// In this process, as its administrator.
    Ours(Router),
}

impl Server {
    /// The server of a kubeconfig.
    pub async fn of_kubeconfig(file: &Path) -> Server {
        let kubeconfig = Kubeconfig::read_from(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
        Server::of_config(config.expect("a kubeconfig with a current context"))
    }

    pub fn of_config(config: kube::Config) -> Server {
        Server::Reference(kube::Client::try_from(config).expect("a client"))
    }

    /// Our API server alone: nobody writes but who asks.
    pub async fn start(folder: &Path) -> Server {
        let keyspace = Keyspace::open(coracle_keyspace::Config::new(folder.to_owned())).await.expect("a keyspace");
        let key = std::fs::read_to_string(root().join("control/apiserver/tests/token.key")).expect("a key");
        let config = Config { token_key: key, ..Config::default() };
        let api = ApiServer::start(keyspace, config).await.expect("an API server");
        Server::Ours(api.router())
    }

    pub async fn get(&self, path: &str, accept: &str) -> Said {
        let request = http::Request::get(path).header("accept", accept).body(Vec::new()).expect("a request");
        self.ask(request).await
    }

    /// Sends a request, whose words in braces are `known`.
    pub async fn send(&self, request: &Request, known: &BTreeMap<String, String>) -> Said {
        let fill = |text: &str| {
            known.iter().fold(text.to_owned(), |text, (name, value)| text.replace(&format!("{{{name}}}"), value))
        };
        let mut made = http::Request::builder().method(request.method.as_str()).uri(fill(&request.path));
        for (name, value) in &request.headers {
            made = made.header(name, value);
        }
        let body = request.body.as_ref().map(|body| fill(body).into_bytes()).unwrap_or_default();
        self.ask(made.body(body).expect("a request")).await
    }

    async fn ask(&self, mut request: http::Request<Vec<u8>>) -> Said {
        let asked = format!("{} {}", request.method(), request.uri());
        // Whoever writes is noted by this.
        request.headers_mut().insert("user-agent", http::HeaderValue::from_static("compare/1"));
        let (parts, body) = match self {
            Server::Reference(client) => {
                // It hangs up on what it panics over, and goes on.
                let Ok(response) = client.send(request.map(kube::client::Body::from)).await else {
                    return Said::nothing();
                };
                let (parts, body) = response.into_parts();
                let Ok(body) = body.collect().await else { return Said::nothing() };
                (parts, body.to_bytes())
            }
            Server::Ours(router) => {
                let mut request = request.map(Body::from);
                let admin = Identity::authenticated("admin", vec!["system:masters".to_owned()]);
                request.extensions_mut().insert(admin);
                let (parts, body) = router.clone().oneshot(request).await.expect("it always answers").into_parts();
                (parts, body.collect().await.unwrap_or_else(|e| panic!("{asked}: {e}")).to_bytes())
            }
        };
        let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        Said {
            code: parts.status.as_u16(),
            content_type: parts.headers.get("content-type").map(text).unwrap_or_default(),
            warnings: parts.headers.get_all("warning").iter().map(text).collect(),
            body: read(&body),
        }
    }
}

/// JSON, or the events of a watch, or text.
fn read(body: &[u8]) -> Value {
    if let Ok(value) = serde_json::from_slice(body) {
        return value;
    }
    let events: Result<Vec<Value>, _> = serde_json::Deserializer::from_slice(body).into_iter().collect();
    // Bookmarks come when they please, but for the one that ends what was there.
    let is_event = |event: &Value| {
        event["type"] != "BOOKMARK"
            || !event["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"].is_null()
    };
    match events {
        Ok(events) => events.into_iter().filter(is_event).collect(),
        Err(_) => String::from_utf8_lossy(body).into_owned().into(),
    }
}
