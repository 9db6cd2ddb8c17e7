//! The Node object, its conditions, and the Lease that says that the node lives.
//!
//! The Lease is renewed every second, whatever else is under way, and at once after a jump of time. The node follows its own
//! object: as soon as that does not say what is true (a condition has changed here, or a controller that has not heard of the
//! node in a while has marked it as gone), the status is written, and every five minutes if nothing changes (kubelet:
//! `nodeStatusReportFrequency`). A node that was taken for gone first ends the pods that were replaced.
//!
//! Where it serves, it says in annotations, after its status and apart from it: what others make of them, or a server that does not take
//! them, is no reason to write the status again.

mod attempts;
mod object;

use std::sync::Arc;
use std::time::Duration;

use coracle_discovery::Again;
use futures::{StreamExt as _, TryStreamExt as _};
use http::{Method, Request, header};
use http_body_util::BodyExt as _;
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::runtime::{WatchStreamExt as _, watcher};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use self::attempts::Attempts;
pub use self::object::Facts;
use crate::balancer;
use crate::context::Context;
use crate::ingress::{self, gateways};
use crate::pod::Pods;
use crate::text;

/// How often the Lease is renewed.
const RENEW_EVERY: Duration = Duration::from_secs(1);
/// How long a Lease is good: of a node that is silent for longer it is not known whether it lives.
const LEASE_SECONDS: u32 = 4;
/// How long the answer to a renewal is waited for: two more come before the Lease is over.
const RENEWED_WITHIN: Duration = Duration::from_millis(1500);
/// How often the machine is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// How often an unchanged status is written.
const STATUS_EVERY: Duration = Duration::from_secs(300);
/// How often the status is written at most, when somebody does not agree with it.
const STATUS_EVERY_MIN: Duration = Duration::from_secs(1);
/// An answer of the API server is waited for so long (kubelet's client: 10 s).
const ANSWER_MAX: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 10 });
/// First wait after a failure at the start, and the longest; it doubles.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(10));
/// Bytes of the annotations that say where this node serves. All annotations of an object together may have 256 KiB, and some are
/// other people's. A node's own ports as a balancer all fit.
const INGRESS_BYTES_MAX: usize = 4 << 10;
const BALANCER_BYTES_MAX: usize = 144 << 10;
const GATEWAY_BYTES_MAX: usize = 48 << 10;

/// What the object is to say of where a node serves, by the names of annotations. Of what is not known yet it says what it did.
type Serves = Vec<(&'static str, Option<String>)>;

/// Keeps the API server's picture of this node up to date.
pub struct Registration {
    pods: Arc<Pods>,
    context: Arc<Context>,
    facts: Facts,
    registered: watch::Sender<bool>,
    /// Why the servers refused it last, as far as it was told.
    refused: Mutex<String>,
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("the API server cannot be reached")]
    Transport(#[source] kube::Error),
    #[error("the API server has not answered in time")]
    Late,
    #[error("the API server refused with {code}: {message}")]
    Refused { code: u16, message: String },
}

impl Error {
    fn code(&self) -> u16 {
        match self {
            Self::Refused { code, .. } => *code,
            Self::Transport(_) | Self::Late => 0,
        }
    }
}

impl Registration {
    /// Nothing is told before [`Registration::run`].
    pub fn new(pods: Arc<Pods>, facts: Facts) -> Self {
        Self {
            context: pods.context.clone(),
            pods,
            facts,
            registered: watch::Sender::new(false),
            refused: Mutex::default(),
        }
    }

    /// Whether the node has been registered as Ready.
    pub fn registered(&self) -> watch::Receiver<bool> {
        self.registered.subscribe()
    }

    /// Registers the node and keeps it registered, until shutdown.
    pub async fn run(&self, shutdown: CancellationToken) {
        let mut wait = RETRY.0;
        while let Err(error) = self.register().await {
            self.tell(&error);
            // Waiting is all that is cut here.
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = shutdown.cancelled() => return,
            }
            wait = (wait * 2).min(RETRY.1);
        }
        self.registered.send_replace(true);
        self.context.node_event(
            false,
            "NodeReady",
            format!("Node {} status is now: NodeReady", self.context.config.name),
        );
        let seen = watch::Sender::new(None);
        tokio::select! {
            () = self.keep(&seen) => {}
            () = self.live() => {}
            () = self.follow(&seen) => {}
            () = shutdown.cancelled() => {}
        }
    }

    /// Renews the Lease. What fails is tried again when the next renewal is due.
    async fn live(&self) {
        let mut jumps = self.context.jumps.subscribe();
        let mut beats = tokio::time::interval(RENEW_EVERY);
        // After a pause the next one counts, and not those that were missed.
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // Everything here only waits.
            tokio::select! {
                _ = beats.tick() => {}
                Ok(()) = jumps.changed() => beats.reset(),
            }
            match tokio::time::timeout(RENEWED_WITHIN, self.renew()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, "lease is not renewed"),
                Err(_) => tracing::debug!("a renewal of the lease has no answer"),
            }
        }
    }

    /// Writes the status when it is not what `seen` says.
    async fn keep(&self, seen: &watch::Sender<Option<Value>>) {
        let mut changes = seen.subscribe();
        let mut disk = self.context.disk.changed();
        let mut gateway = self.context.gateway.ports();
        let mut opened = self.context.network.proxy.opened();
        let mut gateway_ports = self.context.network.proxy.gateway_ports();
        let mut gateway_secrets = self.context.gateway.gateways.changed();
        let mut written: Option<Instant> = None;
        let mut saying = Attempts::default();
        loop {
            let serves = self.serves();
            // One that was not seen yet says nothing wrong.
            let (agrees, says_where) = match &*changes.borrow_and_update() {
                Some(seen) => (self.facts.agrees(&self.context, &seen["status"]), says(seen, &serves)),
                None => (true, true),
            };
            let is_due = written.is_none_or(|at| at.elapsed() >= STATUS_EVERY) || !agrees;
            if is_due {
                match self.write_status().await {
                    Ok(()) => written = Some(Instant::now()),
                    // Somebody has deleted it.
                    Err(error) if error.code() == 404 => {
                        if let Err(error) = self.register().await {
                            self.tell(&error);
                        }
                    }
                    Err(error) => tracing::debug!(%error, "node status is not written"),
                }
            }
            let mut look_at = Instant::now() + LOOK_EVERY;
            if says_where {
                saying.succeeded(Instant::now());
            } else {
                if saying.due_at(&serves).is_none_or(|at| at <= Instant::now()) {
                    if let Err(error) = self.say_where(&serves).await {
                        tracing::debug!(%error, "where the node serves is not written");
                    }
                    // Whether it helps is seen in the object.
                    saying.tried(serves.clone(), Instant::now());
                }
                look_at = saying.due_at(&serves).map_or(look_at, |at| at.min(look_at));
            }
            // Everything here only waits.
            tokio::select! {
                () = tokio::time::sleep_until(look_at) => {}
                Ok(()) = changes.changed() => tokio::time::sleep(if is_due { STATUS_EVERY_MIN } else { Duration::ZERO }).await,
                Ok(()) = disk.changed() => {}
                Ok(()) = gateway.changed() => {}
                Ok(()) = opened.changed() => {}
                Ok(()) = gateway_ports.changed() => {}
                Ok(()) = gateway_secrets.changed() => {}
            }
        }
    }

    /// What the object is to say of where this node serves.
    fn serves(&self) -> Serves {
        let Context { config, network, gateway, .. } = &*self.context;
        let balances = balancer::annotation(config.node_port_bind, config.node_ip, &network.proxy.opened().borrow());
        let bind = config.ingress.bind;
        let address = if bind.is_unspecified() { config.node_ip } else { bind };
        let mut serves = vec![
            (ingress::ANNOTATION, gateway.annotation().map(|text| text::entries_within(text, INGRESS_BYTES_MAX))),
            (
                gateways::ANNOTATION,
                gateway
                    .gateways
                    .annotation(address, &self.context)
                    .map(|text| text::entries_within(text, GATEWAY_BYTES_MAX)),
            ),
        ];
        // Before, it would say that Services have no ports, and their status would.
        if network.proxy.knows_services() {
            serves.push((balancer::ANNOTATION, balances.map(|text| text::entries_within(text, BALANCER_BYTES_MAX))));
        }
        serves
    }

    /// Follows the node's own object.
    async fn follow(&self, seen: &watch::Sender<Option<Value>>) {
        let api: Api<Node> = Api::all(self.context.client.clone());
        let config = watcher::Config::default().fields(&format!("metadata.name={}", self.context.config.name));
        let mut events = watcher(api, config).backoff(Again::new()).boxed();
        loop {
            let node = match events.try_next().await {
                Ok(Some(watcher::Event::Apply(node) | watcher::Event::InitApply(node))) => node,
                // It is made again when the next write finds nothing to write to.
                Ok(Some(watcher::Event::Delete(_))) => Node::default(),
                Ok(Some(watcher::Event::Init | watcher::Event::InitDone)) => continue,
                Ok(None) => return,
                Err(error) => {
                    tracing::debug!(%error, "watch the own node");
                    continue;
                }
            };
            seen.send_replace(serde_json::to_value(node).ok());
        }
    }

    /// Says why the node is not registered: aloud, when the servers refuse it, and once for each reason.
    fn tell(&self, error: &Error) {
        let Error::Refused { code: 400..=499, message } = error else {
            tracing::debug!(%error, cause = ?std::error::Error::source(error), "node is not registered yet");
            return;
        };
        let mut refused = self.refused.lock();
        if *refused != *message {
            tracing::warn!(node = self.context.config.name, "the cluster refuses this node: {message}");
            refused.clone_from(message);
        }
    }

    /// Says that the node is going away; best effort.
    pub async fn leave(&self) {
        let patch = json!({"status": {"conditions": [object::leaving()]}});
        let path = format!("/api/v1/nodes/{}/status", self.context.config.name);
        let written = self.send(Method::PATCH, &path, "application/strategic-merge-patch+json", &patch);
        if let Ok(Err(error)) = tokio::time::timeout(Duration::from_secs(2), written).await {
            tracing::debug!(%error, "node status is not written");
        }
    }

    async fn register(&self) -> Result<(), Error> {
        let node = self.facts.node(&self.context);
        let before = match self.send(Method::POST, "/api/v1/nodes", "application/json", &node).await {
            Ok(made) => made,
            Err(error) if error.code() == 409 => {
                // It is there from an earlier life; what others have written on it stays.
                let patch = json!({"metadata": {"labels": node["metadata"]["labels"]}});
                let path = format!("/api/v1/nodes/{}", self.context.config.name);
                self.send(Method::PATCH, &path, "application/merge-patch+json", &patch).await?
            }
            Err(error) => return Err(error),
        };
        // What it says of an earlier life, until it says something new.
        let said = before["metadata"]["annotations"][balancer::ANNOTATION].as_str().unwrap_or_default();
        self.context.network.proxy.had(balancer::opened(said));
        self.write_status().await?;
        // The node is ready all the same: it is tried again.
        if let Err(error) = self.say_where(&self.serves()).await {
            tracing::debug!(%error, "where the node serves is not written");
        }
        Ok(())
    }

    /// Writes into the object where this node serves.
    async fn say_where(&self, serves: &[(&str, Option<String>)]) -> Result<(), Error> {
        let annotations: Value = serves.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
        let patch = json!({"metadata": {"annotations": annotations}});
        let path = format!("/api/v1/nodes/{}", self.context.config.name);
        self.send(Method::PATCH, &path, "application/merge-patch+json", &patch).await.map(drop)
    }

    async fn write_status(&self) -> Result<(), Error> {
        let path = format!("/api/v1/nodes/{}", self.context.config.name);
        let old = self.send(Method::GET, &path, "application/json", &Value::Null).await?;
        if object::is_given_up(&old["status"]) {
            // What was replaced meanwhile does not serve beside its replacement: only then this node is ready again.
            let ended = tokio::time::timeout(ANSWER_MAX, self.pods.end_replaced()).await;
            ended.map_err(|_| Error::Late)?.map_err(Error::Transport)?;
        }
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
        let answered = async {
            let response = self.context.client.send(request).await.map_err(Error::Transport)?;
            let status = response.status();
            Ok((status, response.into_body().collect().await.map_err(Error::Transport)?.to_bytes()))
        };
        let (status, body) = tokio::time::timeout(ANSWER_MAX, answered).await.unwrap_or(Err(Error::Late))?;
        let value: Value = serde_json::from_slice(&body).unwrap_or_default();
        if status.is_success() {
            return Ok(value);
        }
        let message = value["message"].as_str().unwrap_or_default().to_owned();
        Err(Error::Refused { code: status.as_u16(), message })
    }
}

/// Whether the object says where its node serves.
fn says(seen: &Value, serves: &[(&str, Option<String>)]) -> bool {
    let said = &seen["metadata"]["annotations"];
    serves.iter().all(|(name, value)| said[name].as_str() == value.as_deref())
}
