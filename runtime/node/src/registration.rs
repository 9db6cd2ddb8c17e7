//! The Node object, its conditions, and the Lease that says that the node lives.
//!
//! The Lease is renewed every second, whatever else is under way, and at once after a jump of time. The node follows its own
//! object: as soon as that does not say what is true (a condition has changed here, or a controller that has not heard of the
//! node in a while has marked it as gone), the status is written, and every five minutes if nothing changes (kubelet:
//! `nodeStatusReportFrequency`). A node that was taken for gone first ends the pods that were replaced.
//!
//! Of two processes that are the same node the newer stays, and the older ends ([`hold`]).
//!
//! Where it serves, it says in annotations, after its status and apart from it: what others make of them, or a server that does not take
//! them, is no reason to write the status again.

mod attempts;
mod hold;
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
use self::hold::{Hold, Step};
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
/// Where the Leases of nodes are.
const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
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
    hold: Mutex<Hold>,
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
        let context = pods.context.clone();
        let before = std::fs::read_to_string(context.config.data_dir.join(hold::FILE)).ok();
        let hold = Mutex::new(Hold::new((context.config.node_ip, facts.port).into(), before));
        Self { context, pods, facts, registered: watch::Sender::new(false), refused: Mutex::default(), hold }
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

    /// Returns when this process is the node: before, it runs no pods. That there is no Lease yet, or none that can be read, holds up
    /// nothing; it never returns when another process is the node ([`Context::replaced`]).
    pub async fn claim(&self) {
        let mut wait = RETRY.0;
        loop {
            match self.look().await {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) if !matches!(error.code(), 0 | 409 | 429 | 503 | 504) => return,
                Err(error) => tracing::debug!(%error, "lease is not claimed yet"),
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(RENEW_EVERY);
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
        let patch = json!({"status": self.facts.status_patch(&self.context, &old["status"])});
        let path = format!("{path}/status");
        self.send(Method::PATCH, &path, "application/strategic-merge-patch+json", &patch).await.map(drop)
    }

    async fn renew(&self) -> Result<(), Error> {
        let held = self.hold.lock().renewal();
        let renewed = match held {
            Some(metadata) => self.write_lease(metadata).await,
            None => self.look().await.map(drop),
        };
        match renewed {
            // Somebody else has written it.
            Err(error) if error.code() == 409 => self.look().await.map(drop),
            Err(error) if error.code() == 404 => self.make_lease().await,
            other => other,
        }
    }

    /// Looks whose the Lease is, and claims it if it may; says whether it is this process's now.
    async fn look(&self) -> Result<bool, Error> {
        let lease = self.send(Method::GET, &self.lease(), "application/json", &Value::Null).await?;
        let step = self.hold.lock().judge(&lease, Instant::now());
        match step {
            Step::Claim(version) => {
                let metadata = self.hold.lock().claim(version.as_deref());
                self.write_lease(metadata).await?;
                self.keep_incarnation().await;
                Ok(true)
            }
            Step::Wait => Ok(false),
            Step::Over(other) => {
                self.replaced_by(hold::address(&other));
                Ok(false)
            }
        }
    }

    fn lease(&self) -> String {
        format!("{LEASES}/{}", self.context.config.name)
    }

    async fn write_lease(&self, metadata: Value) -> Result<(), Error> {
        let (spec, renewed) = self.lease_spec();
        let patch = json!({"metadata": metadata, "spec": spec});
        let lease = self.send(Method::PATCH, &self.lease(), "application/merge-patch+json", &patch).await?;
        self.hold.lock().holds(&lease, renewed);
        Ok(())
    }

    async fn make_lease(&self) -> Result<(), Error> {
        let name = &self.context.config.name;
        let node = self.send(Method::GET, &format!("/api/v1/nodes/{name}"), "application/json", &Value::Null).await?;
        let owner = json!({"apiVersion": "v1", "kind": "Node", "name": name, "uid": node["metadata"]["uid"]});
        let mut metadata = self.hold.lock().claim(None);
        metadata["name"] = json!(name);
        metadata["namespace"] = json!("kube-node-lease");
        metadata["ownerReferences"] = json!([owner]);
        let (spec, renewed) = self.lease_spec();
        let kind = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec});
        let lease = self.send(Method::POST, LEASES, "application/json", &kind).await?;
        self.hold.lock().holds(&lease, renewed);
        self.keep_incarnation().await;
        Ok(())
    }

    /// What a Lease says that is renewed now, and when that is.
    fn lease_spec(&self) -> (Value, String) {
        let name = &self.context.config.name;
        let renewed = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string();
        (json!({"holderIdentity": name, "leaseDurationSeconds": LEASE_SECONDS, "renewTime": renewed}), renewed)
    }

    /// Keeps which incarnation this is, for the next one. Without it the next one waits a moment before it begins.
    async fn keep_incarnation(&self) {
        let (own, dir) = (self.hold.lock().own().to_owned(), self.context.config.data_dir.clone());
        let kept = tokio::task::spawn_blocking(move || {
            let part = dir.join(format!("{}.part", hold::FILE));
            std::fs::write(&part, own)?;
            std::fs::rename(&part, dir.join(hold::FILE))
        });
        if let Ok(Err(error)) = kept.await {
            tracing::debug!(%error, "the incarnation is not kept");
        }
    }

    /// Another process is the node: this one ends, and says why.
    fn replaced_by(&self, other: &str) {
        let config = &self.context.config;
        let (name, own) = (&config.name, std::net::SocketAddr::new(config.node_ip, self.facts.port));
        let message = format!(
            "another process runs as node {name}, at {other}, and has the same identity: this one, at {own}, ends, for one of the two \
             is a copy, which must not run. Where the copy is, stop it, `coracle reset` its data directory and join with another --name and a \
             new token; the one that is left can be started again then"
        );
        if self.context.replaced.send_if_modified(|why| why.is_none().then(|| why.replace(message.clone())).is_some()) {
            self.context.node_event(true, "NodeReplaced", message);
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
