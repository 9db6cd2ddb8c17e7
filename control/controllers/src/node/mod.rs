//! The life of nodes as the control plane sees it (kubernetes-api §20.8): silence becomes `Ready=Unknown`, conditions
//! become taints, taints drive pods out when their tolerations end.
//!
//! No sign of life is polled: each sets the deadline of its node anew. Signs are dated by our own clock when we see
//! them, so clocks of nodes do not matter; and whoever slept ([`watchful`]) first watches for a whole period.
//!
//! A node that dies is left at three speeds. Who calls it leaves out endpoints that do not answer, at once (the mesh). When
//! it is silent for longer than its lease promises ([`signs`]), it is not known to be ready, and its pods leave their
//! Services. When its pods no longer tolerate that (by default after some seconds more, which admission writes into them), they
//! are replaced; and no faster than [`zones`] allows, for when many nodes fail the rest must not be buried.

mod eviction;
mod met;
pub(crate) mod plan;
mod reach;
mod signs;
mod watchful;
mod zones;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use parking_lot::Mutex;
use serde_json::json;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::client::{self, Client, NODES, PODS};
use crate::events::{Record, Recorder, Subject};
use crate::informer::{Change, Index, Informer, Key, Object as _, Pod, Store};
use crate::queue::{Next, Queue, Reconciler};
use crate::{Error, now_in_seconds};

pub(crate) use eviction::{Evictions, delete_disrupted};
use plan::Drive;
pub(crate) use reach::Reach;
use signs::{Signs, Silence};
use watchful::Watchful;
use zones::{Pace, Zones};

/// Where nodes renew their leases.
const LEASES: &str = "kube-node-lease";
const COMPONENT: &str = "node-controller";
/// What a node that never said how it is has more time for (the reference's `--node-startup-grace-period`).
const STARTUP_GRACE: Duration = Duration::from_secs(60);

/// Pods of one node that are made not ready at a time.
const MARKS_IN_FLIGHT: usize = 64;

/// The controller of nodes.
pub(crate) struct Controller {
    client: Client,
    recorder: Recorder,
    queue: Queue<Key>,
    nodes: Arc<Store<Node>>,
    pods: Arc<Store<Pod>>,
    signs: Arc<Mutex<Signs>>,
    zones: Arc<Mutex<Zones>>,
    watch: Arc<Mutex<Watchful>>,
    /// When the pods of the next node of a zone may be driven out; of others it is now.
    next_eviction: Mutex<HashMap<Arc<str>, Instant>>,
    /// Nodes that are not ready and whose pods are marked as that. A node alone decides about its pods afterwards.
    marked: Mutex<HashSet<Arc<str>>>,
}

impl Controller {
    pub(crate) fn new(
        client: Client,
        recorder: Recorder,
        (grace, own): (Duration, Option<String>),
        nodes: &mut Informer<Node>,
        leases: &mut Informer<Lease>,
        pods: Arc<Store<Pod>>,
    ) -> Arc<Self> {
        let queue: Queue<Key> = Queue::new(Duration::from_millis(100));
        let signs = Arc::new(Mutex::new(Signs::new(grace, own.clone())));
        let zones = Arc::new(Mutex::new(Zones::new(own)));
        nodes.on_change({
            let (queue, signs, zones, nodes, leases) =
                (queue.clone(), signs.clone(), zones.clone(), nodes.store(), leases.store());
            move |change| {
                let node = change.object();
                let key = node.key();
                let gone = matches!(change, Change::Deleted(_));
                let (was_down, changed, is_down) = {
                    let mut zones = zones.lock();
                    let before = zones.all_down();
                    let changed = if gone { zones.remove(&key.name) } else { zones.put(&key.name, node) };
                    (before, changed, zones.all_down())
                };
                if changed {
                    // Whether the others may be evicted is another question now.
                    for node in nodes.all() {
                        queue.add(&node.key());
                    }
                }
                if was_down && !is_down {
                    // Whom we could not hear all the while has a whole period to be heard.
                    signs.lock().hear_all(Instant::now());
                }
                if gone {
                    signs.lock().forget(&key.name);
                    // Nothing is remembered of it.
                    queue.add(&key);
                    return;
                }
                let now = Instant::now();
                let mut signs = signs.lock();
                signs.node(&key.name, heartbeat(node), now);
                // Its lease may have come first, when nobody knew the node. Read under the lock: an older one never follows a newer.
                if matches!(change, Change::Added(_))
                    && let Some(lease) = leases.get(&Key::new(LEASES, &key.name))
                {
                    let (renewed, promise) = said(&lease);
                    signs.lease(&key.name, renewed, promise, now);
                }
                drop(signs);
                queue.add(&key);
            }
        });
        leases.on_change({
            let (queue, signs) = (queue.clone(), signs.clone());
            move |change| {
                let lease = change.object();
                if lease.metadata.namespace.as_deref() != Some(LEASES) || matches!(change, Change::Deleted(_)) {
                    return;
                }
                let key = Key::new("", lease.metadata.name.as_deref().unwrap_or_default());
                let (renewed, promise) = said(lease);
                let due = signs.lock().lease(&key.name, renewed, promise, Instant::now());
                if let Some(due) = due {
                    // A deadline that is set already asks for the last sign when it comes.
                    queue.add_after(&key, due);
                }
            }
        });
        Arc::new(Self {
            client,
            recorder,
            queue,
            nodes: nodes.store(),
            pods,
            signs,
            zones,
            watch: Arc::new(Mutex::new(Watchful::new(Instant::now(), Timestamp::now()))),
            next_eviction: Mutex::default(),
            marked: Mutex::default(),
        })
    }

    /// Looks at the clocks until shutdown.
    pub(crate) async fn stay_watchful(self: Arc<Self>, shutdown: CancellationToken) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(watchful::BEAT) => {}
                () = shutdown.cancelled() => return,
            }
            self.watch.lock().observe(Instant::now(), Timestamp::now());
        }
    }

    /// What the evictions share.
    pub(crate) fn watch(&self) -> Arc<Mutex<Watchful>> {
        self.watch.clone()
    }
}

impl Reconciler for Controller {
    type Key = Key;
    const NAME: &'static str = "node";
    const WORKERS: usize = 8;

    fn queue(&self) -> &Queue<Key> {
        &self.queue
    }

    async fn reconcile(self: Arc<Self>, key: Key) -> Result<Next, Error> {
        let Some(node) = self.nodes.get(&key) else {
            self.marked.lock().remove(&key.name);
            return Ok(Next::OnEvent);
        };
        let now = Instant::now();
        let since = self.watch.lock().observe(now, Timestamp::now());
        let startup = plan::readiness(&node).is_none().then_some(STARTUP_GRACE);
        let silence = self.signs.lock().silence(&key.name, since, startup, now);
        let next = match silence {
            Silence::Fine(left) => Next::After(left + Duration::from_millis(50)),
            Silence::Unknown => Next::OnEvent,
        };
        if silence == Silence::Unknown {
            let conditions = plan::silent(&node, now_in_seconds());
            if !conditions.is_empty() {
                // In this version: a node that has just spoken is not to be overruled.
                let version = &node.metadata.resource_version;
                let patch = json!({
                    "metadata": {"uid": node.uid(), "resourceVersion": version}, "status": {"conditions": conditions},
                });
                self.client
                    .merge_status(NODES, &key, &patch)
                    .await
                    .map_err(Error::api("write conditions of a node"))?;
                self.event(&node, "NodeNotReady", format!("Node {} status is now: NodeNotReady", key.name));
                // The change comes back and brings the taints.
                return Ok(next);
            }
        }
        // What fails for one pod keeps no other pod of the node from being replaced.
        let marked = self.mark_pods(&key, &node).await;
        let Driven { drive, wait, turn } = self.drive(&node);
        if let Some(taints) = plan::taints(&node, drive, now_in_seconds()) {
            let taints = (!taints.is_empty()).then_some(taints);
            let patch = json!({
                "metadata": {"uid": node.uid(), "resourceVersion": node.metadata.resource_version},
                "spec": {"taints": taints},
            });
            let written = self.client.patch(NODES, &key, &patch).await;
            if let (Err(_), Some(zone)) = (&written, turn) {
                // The turn was not used.
                self.next_eviction.lock().remove(&zone);
            }
            written.map_err(Error::api("write taints of a node"))?;
        }
        marked?;
        Ok(match (next, wait) {
            (Next::After(next), Some(wait)) => Next::After(next.min(wait)),
            (_, Some(wait)) => Next::After(wait),
            (next, None) => next,
        })
    }
}

/// Whether pods are driven out of a node.
struct Driven {
    drive: Drive,
    /// When to ask again.
    wait: Option<Duration>,
    /// The zone whose turn this is.
    turn: Option<Arc<str>>,
}

impl Controller {
    /// Whether pods may be driven out of the node now, and when to ask again if not.
    fn drive(&self, node: &Node) -> Driven {
        let by = |drive| Driven { drive, wait: None, turn: None };
        let failing = plan::readiness(node).is_some_and(|ready| ready != "True");
        if !failing {
            return by(Drive::Hold);
        }
        let zone = zones::zone_of(node);
        let seconds = match self.zones.lock().pace(&zone) {
            // A change of the pace brings every node back.
            Pace::Lift => return by(Drive::Lift),
            Pace::Never => return by(Drive::Hold),
            Pace::Every(seconds) => seconds,
        };
        let driven = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten()).any(|taint| {
            taint.effect == "NoExecute" && (taint.key == plan::NOT_READY || taint.key == plan::UNREACHABLE)
        });
        if driven {
            return by(Drive::Out);
        }
        let mut next = self.next_eviction.lock();
        let now = Instant::now();
        next.retain(|_, due| *due > now);
        if let Some(due) = next.get(&zone) {
            return Driven { wait: Some(*due - now), ..by(Drive::Hold) };
        }
        next.insert(zone.clone(), now + Duration::from_secs(seconds));
        Driven { turn: Some(zone), ..by(Drive::Out) }
    }

    /// When a node ceases to be ready, so do its pods: Services stop sending to them. Once, for when it comes back it says
    /// itself which are ready.
    async fn mark_pods(&self, key: &Key, node: &Node) -> Result<(), Error> {
        if plan::readiness(node).is_none_or(|ready| ready == "True") {
            self.marked.lock().remove(&key.name);
            return Ok(());
        }
        if self.marked.lock().contains(&key.name) {
            return Ok(());
        }
        let mut pods = self.pods.by(Index::Node, &key.name);
        pods.retain(|pod| pod.ready && pod.is_active());
        // Side by side: of a thousand pods none shall be sent to for the time that a thousand writes take.
        let marked = futures::stream::iter(pods).map(|pod| self.mark(pod)).buffer_unordered(MARKS_IN_FLIGHT);
        // Each is tried, whatever comes of the others.
        let marked: Vec<Result<bool, Error>> = marked.collect().await;
        if !marked.into_iter().try_fold(true, |all, marked| Ok::<_, Error>(marked? && all))? {
            return Err(Error::Stale("a pod changed meanwhile"));
        }
        self.marked.lock().insert(key.name.clone());
        Ok(())
    }

    /// Writes that the pod is not ready; false when it has changed meanwhile.
    async fn mark(&self, pod: Arc<Pod>) -> Result<bool, Error> {
        let condition = json!({"type": "Ready", "status": "False", "lastTransitionTime": Time(now_in_seconds())});
        let version = pod.version.to_string();
        let patch = json!({
            "metadata": {"uid": &*pod.uid, "resourceVersion": version}, "status": {"conditions": [condition]},
        });
        match self.client.merge_status(PODS, &pod.key, &patch).await {
            Err(error) if client::is_not_found(&error) => Ok(true),
            Err(error) if client::is_conflict(&error) => Ok(false),
            other => other.map(|_| true).map_err(Error::api("make a pod not ready")),
        }
    }

    fn event(&self, node: &Node, reason: &'static str, message: String) {
        let subject =
            Subject { api_version: "v1".into(), kind: "Node".into(), key: node.key(), uid: node.uid().into() };
        self.recorder.record(Record { subject, component: COMPONENT, warning: false, reason, message });
    }
}

fn heartbeat(node: &Node) -> Option<Time> {
    let conditions = node.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_ == "Ready")?.last_heartbeat_time.clone()
}

/// When the lease was renewed, and for how long its node promises to be heard of.
fn said(lease: &Lease) -> (Option<MicroTime>, Option<Duration>) {
    let spec = lease.spec.as_ref();
    let promise = spec.and_then(|spec| u64::try_from(spec.lease_duration_seconds?).ok());
    (spec.and_then(|spec| spec.renew_time.clone()), promise.map(Duration::from_secs))
}
