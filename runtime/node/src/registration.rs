//! The Node object, its conditions, and the Lease that says that the node lives.
//!
//! The Lease is renewed every ten seconds; the status is written when it changes, and every five minutes if it does not (kubelet:
//! `nodeStatusReportFrequency`).

mod object;

use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request, header};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use self::object::Facts;
use crate::context::Context;

/// How often the Lease is renewed and the machine looked at.
const RENEW_EVERY: Duration = Duration::from_secs(10);
/// How long a Lease is good.
const LEASE_SECONDS: u32 = 40;
/// How often an unchanged status is written.
const STATUS_EVERY: Duration = Duration::from_secs(300);
/// First wait after a failure at the start; it doubles up to [`RENEW_EVERY`].
const RETRY_FIRST: Duration = Duration::from_millis(50);

/// Keeps the API server's picture of this node up to date.
pub struct Registration {
    context: Arc<Context>,
    facts: Facts,
    registered: watch::Sender<bool>,
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("the API server cannot be reached")]
    Transport(#[source] kube::Error),
    #[error("the API server refused with {code}: {message}")]
    Refused { code: u16, message: String },
}

impl Error {
    fn code(&self) -> u16 {
        match self {
            Self::Refused { code, .. } => *code,
            Self::Transport(_) => 0,
        }
    }
}

impl Registration {
    /// Nothing is told before [`Registration::run`].
    pub fn new(context: Arc<Context>, facts: Facts) -> Self {
        Self { context, facts, registered: watch::Sender::new(false) }
    }

    /// Whether the node has been registered as Ready.
    pub fn registered(&self) -> watch::Receiver<bool> {
        self.registered.subscribe()
    }

    /// Registers the node and keeps it registered, until shutdown.
    pub async fn run(&self, shutdown: CancellationToken) {
        let mut wait = RETRY_FIRST;
        while let Err(error) = self.register().await {
            tracing::debug!(%error, cause = ?std::error::Error::source(&error), "node is not registered yet");
            // Waiting is all that is cut here.
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = shutdown.cancelled() => return,
            }
            wait = (wait * 2).min(RENEW_EVERY);
        }
        self.registered.send_replace(true);
        self.context.node_event(
            false,
            "NodeReady",
            format!("Node {} status is now: NodeReady", self.context.config.name),
        );
        let mut written = (Value::Null, Instant::now());
        loop {
            if let Err(error) = self.renew().await {
                tracing::debug!(%error, "lease is not renewed");
            }
            let core = self.facts.changing(&self.context);
            if core != written.0 || written.1.elapsed() >= STATUS_EVERY {
                match self.write_status().await {
                    Ok(()) => written = (core, Instant::now()),
                    // Somebody has deleted it.
                    Err(error) if error.code() == 404 => drop(self.register().await),
                    Err(error) => tracing::debug!(%error, "node status is not written"),
                }
            }
            tokio::select! {
                () = tokio::time::sleep(RENEW_EVERY) => {}
                () = shutdown.cancelled() => return,
            }
        }
    }

    /// Says that the node is going away; best effort.
    pub async fn leave(&self) {
        let patch = json!({"status": {"conditions": [{
            "type": "Ready", "status": "False", "reason": "KubeletNotReady", "message": "node is shutting down",
            "lastHeartbeatTime": object::now(), "lastTransitionTime": object::now(),
        }]}});
        let path = format!("/api/v1/nodes/{}/status", self.context.config.name);
        let written = self.send(Method::PATCH, &path, "application/strategic-merge-patch+json", &patch);
        if let Ok(Err(error)) = tokio::time::timeout(Duration::from_secs(2), written).await {
            tracing::debug!(%error, "node status is not written");
        }
    }

    async fn register(&self) -> Result<(), Error> {
        let node = self.facts.node(&self.context);
        match self.send(Method::POST, "/api/v1/nodes", "application/json", &node).await {
            Ok(_) => {}
            Err(error) if error.code() == 409 => {
                // It is there from an earlier life; what others have written on it stays.
                let patch = json!({"metadata": {"labels": node["metadata"]["labels"]}});
                let path = format!("/api/v1/nodes/{}", self.context.config.name);
                self.send(Method::PATCH, &path, "application/merge-patch+json", &patch).await?;
            }
            Err(error) => return Err(error),
        }
        self.write_status().await
    }

    async fn write_status(&self) -> Result<(), Error> {
        let path = format!("/api/v1/nodes/{}", self.context.config.name);
        let old = self.send(Method::GET, &path, "application/json", &Value::Null).await?;
        let patch = json!({"status": self.facts.status(&self.context, &old["status"])});
        let path = format!("{path}/status");
        self.send(Method::PATCH, &path, "application/strategic-merge-patch+json", &patch).await.map(drop)
    }

    async fn renew(&self) -> Result<(), Error> {
        let name = &self.context.config.name;
        let renewed = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string();
        let spec = json!({"holderIdentity": name, "leaseDurationSeconds": LEASE_SECONDS, "renewTime": renewed});
        let leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
        let patch = json!({"spec": spec});
        let patched =
            self.send(Method::PATCH, &format!("{leases}/{name}"), "application/merge-patch+json", &patch).await;
        match patched {
            Err(error) if error.code() == 404 => {
                let node =
                    self.send(Method::GET, &format!("/api/v1/nodes/{name}"), "application/json", &Value::Null).await?;
                let owner = json!({"apiVersion": "v1", "kind": "Node", "name": name, "uid": node["metadata"]["uid"]});
                let lease = json!({
                    "apiVersion": "coordination.k8s.io/v1",
                    "kind": "Lease",
                    "metadata": {"name": name, "namespace": "kube-node-lease", "ownerReferences": [owner]},
                    "spec": spec,
                });
                self.send(Method::POST, leases, "application/json", &lease).await.map(drop)
            }
            other => other.map(drop),
        }
    }

    async fn send(&self, method: Method, path: &str, content_type: &str, body: &Value) -> Result<Value, Error> {
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::CONTENT_TYPE, content_type)
            .header(header::ACCEPT, "application/json")
            .header(header::USER_AGENT, "kubelet")
            .body(kube::client::Body::from(body))
            .map_err(|error| Error::Transport(kube::Error::HttpError(error)))?;
        let response = self.context.client.send(request).await.map_err(Error::Transport)?;
        let status = response.status();
        let body = response.into_body().collect().await.map_err(Error::Transport)?.to_bytes();
        let value: Value = serde_json::from_slice(&body).unwrap_or_default();
        if status.is_success() {
            return Ok(value);
        }
        let message = value["message"].as_str().unwrap_or_default().to_owned();
        Err(Error::Refused { code: status.as_u16(), message })
    }
}
