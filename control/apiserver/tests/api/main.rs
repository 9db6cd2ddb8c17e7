//! The API server over a real keyspace in a temporary directory, called through its router as a client would.

mod aggregation;
mod answers;
mod audit;
mod authentication;
mod bounds;
mod certificates;
mod conversion;
mod custom;
mod deletion;
mod depth;
mod fairness;
mod ingress;
mod kinds;
mod lists;
mod mesh;
mod nodes;
mod objects;
mod pod_certificates;
mod podsecurity;
mod policies;
mod quotas;
mod reference;
mod roles;
mod scheduling;
mod services;
mod shape;
mod types;
mod usage;
mod volumes;
mod watches;
mod webhooks;

use axum::body::Body;
use coracle_apiserver::{ApiServer, Config, Identity};
use coracle_keyspace::Keyspace;
use http::{HeaderMap, Request};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;

/// A server for one test.
struct Server {
    api: ApiServer,
    keyspace: Keyspace,
    _dir: tempfile::TempDir,
}

/// An answer, read whole.
#[derive(Debug)]
struct Answer {
    code: u16,
    headers: HeaderMap,
    bytes: Vec<u8>,
}

impl Answer {
    /// The body as JSON.
    fn json(&self) -> Value {
        coracle_api::codec::json::parse(&self.bytes).unwrap_or_else(|_| json!(String::from_utf8_lossy(&self.bytes)))
    }
}

impl Server {
    async fn start() -> Server {
        Server::start_with(|_| ()).await
    }

    /// A server that is not set up as usual.
    async fn start_with(change: impl FnOnce(&mut Config)) -> Server {
        Server::open(tempfile::tempdir().expect("a temporary directory"), change).await
    }

    /// The same data, read by a new server. What was remembered of the past is on disk by then.
    async fn restart(self) -> Server {
        let Server { api, keyspace, _dir: dir, .. } = self;
        api.shutdown();
        drop(api);
        keyspace.flush_history().await;
        keyspace.shutdown().await;
        Server::open(dir, |_| ()).await
    }

    async fn open(dir: tempfile::TempDir, change: impl FnOnce(&mut Config)) -> Server {
        let keyspace = Keyspace::open(coracle_keyspace::Config::new(dir.path())).await.expect("a keyspace");
        let mut config = Config {
            external_url: "https://127.0.0.1:6443".to_owned(),
            token_key: include_str!("../token.key").to_owned(),
            ..Config::default()
        };
        change(&mut config);
        let api = ApiServer::start(keyspace.clone(), config).await.expect("the API server starts");
        Server { api, keyspace, _dir: dir }
    }

    /// Sends a request as `identity`, or as a stranger.
    async fn send(&self, identity: Option<Identity>, mut request: Request<Body>) -> Answer {
        if let Some(identity) = identity {
            request.extensions_mut().insert(identity);
        }
        let response = self.api.router().oneshot(request).await.expect("the router never fails");
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.expect("a body in memory").to_bytes().to_vec();
        Answer { code: parts.status.as_u16(), headers: parts.headers, bytes }
    }

    /// Sends JSON as the administrator.
    async fn call(&self, method: &str, path: &str, body: Value) -> (u16, Value) {
        let media_type = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        self.call_as(method, path, media_type, &body).await
    }

    async fn call_as(&self, method: &str, path: &str, media_type: &str, body: &Value) -> (u16, Value) {
        let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
        let request = Request::builder().method(method).uri(path).header("content-type", media_type).body(body);
        let answer = self.send(Some(admin()), request.expect("a request")).await;
        (answer.code, answer.json())
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        self.call("GET", path, Value::Null).await
    }

    /// Waits until `path` is there.
    async fn appears(&self, path: &str) -> Value {
        let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(10);
        loop {
            let next = coracle_keyspace::Revision::new(self.keyspace.revision().get() + 1);
            let (code, found) = self.get(path).await;
            if code == 200 {
                return found;
            }
            let written = tokio::time::timeout_at(deadline, self.keyspace.wait_for(next)).await;
            assert!(written.is_ok(), "{path} does not appear: {found}");
        }
    }

    /// Waits until an object says so.
    async fn says(&self, path: &str, what: impl Fn(&Value) -> bool) -> Value {
        let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(20);
        loop {
            let next = coracle_keyspace::Revision::new(self.keyspace.revision().get() + 1);
            let (_, found) = self.get(path).await;
            if what(&found) {
                return found;
            }
            let written = tokio::time::timeout_at(deadline, self.keyspace.wait_for(next)).await;
            assert!(written.is_ok(), "{found:#}");
        }
    }

    /// Writes a record as it is, past the API: `text` says its version as nothing.
    async fn put_record(&self, collection: &str, name: &str, text: &str) {
        use coracle_keyspace::{Guard, Key, Op, Value};
        let version = "\"resourceVersion\":\"";
        let revision_at = text.find(&format!("{version}\"")).expect("where the version goes") + version.len();
        let value = Value { bytes: text.to_owned().into(), revision_at };
        let key = Key::new(collection, std::sync::Arc::<str>::from(name));
        self.keyspace.transact(vec![Op::Put { key, value, guard: Guard::None }]).await.expect("written");
    }

    /// Makes an object that must be made.
    async fn make(&self, path: &str, object: Value) -> Value {
        let (code, answer) = self.call("POST", path, object).await;
        assert_eq!(code, 201, "{answer}");
        answer
    }

    /// The account that pods run as; here it may do everything.
    async fn with_account(self) -> Server {
        self.make("/api/v1/namespaces/default/serviceaccounts", json!({"metadata": {"name": "default"}})).await;
        let subject = json!({"kind": "ServiceAccount", "name": "default", "namespace": "default"});
        let role = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"});
        let binding = json!({"metadata": {"name": "tests"}, "subjects": [subject], "roleRef": role});
        self.make("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", binding).await;
        self
    }
}

fn admin() -> Identity {
    Identity::authenticated("admin", vec!["system:masters".to_owned()])
}

fn node(name: &str) -> Identity {
    Identity::authenticated(format!("system:node:{name}"), vec!["system:nodes".to_owned()])
}

/// A ConfigMap.
fn config_map(name: &str, data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data})
}

/// A pod of one container.
fn pod(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"containers": [{"name": "c", "image": "hello"}]}})
}
