//! The life of nodes as the control plane sees it (kubernetes-api §20.8): silence becomes `Ready=Unknown`, conditions
//! become taints, taints drive pods out when their tolerations end.
//!
//! Nothing is polled: each sign of life sets the deadline of its node anew. Signs are dated by our own clock when we see
//! them, so clocks of nodes do not matter.

mod eviction;
pub(crate) mod plan;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use parking_lot::Mutex;
use serde_json::json;
use tokio::time::Instant;

use crate::client::{self, Client, NODES, PODS};
use crate::events::{Record, Recorder, Subject};
use crate::informer::{Change, Informer, Key, Object as _, Pod, Store};
use crate::queue::{Next, Queue};
use crate::{Error, now_in_seconds};

pub(crate) use eviction::{Evictions, delete_disrupted};
use plan::Pace;

/// Where nodes renew their leases.
const LEASES: &str = "kube-node-lease";
const COMPONENT: &str = "node-controller";

/// The controller of nodes.
pub(crate) struct Controller {
    client: Client,
    recorder: Recorder,
    /// Without a sign of life for so long a node is not known to be ready.
    grace: Duration,
    pub(crate) queue: Queue<Key>,
    nodes: Arc<Store<Node>>,
    pods: Arc<Store<Pod>>,
    signs: Arc<Mutex<HashMap<Arc<str>, Sign>>>,
    /// When the next node's pods may be driven out.
    next_eviction: Mutex<Instant>,
}

/// The last sign of life of a node.
#[derive(Debug, Clone)]
struct Sign {
    at: Instant,
    lease: u64,
    heartbeat: Option<Time>,
}

impl Controller {
    pub(crate) fn new(
        client: Client,
        recorder: Recorder,
        grace: Duration,
        nodes: &mut Informer<Node>,
        leases: &mut Informer<Lease>,
        pods: Arc<Store<Pod>>,
    ) -> Arc<Self> {
        let queue: Queue<Key> = Queue::new(Duration::from_millis(100));
        let signs: Arc<Mutex<HashMap<Arc<str>, Sign>>> = Arc::default();
        nodes.on_change({
            let (queue, signs) = (queue.clone(), signs.clone());
            move |change| {
                let node = change.object();
                let key = node.key();
                if let Change::Deleted(_) = change {
                    signs.lock().remove(&key.name);
                    return;
                }
                let heartbeat = heartbeat(node);
                let mut signs = signs.lock();
                let sign = signs.entry(key.name.clone()).or_insert_with(|| Sign {
                    at: Instant::now(),
                    lease: 0,
                    heartbeat: heartbeat.clone(),
                });
                if sign.heartbeat != heartbeat {
                    sign.at = Instant::now();
                    sign.heartbeat = heartbeat;
                }
                drop(signs);
                queue.add(&key);
            }
        });
        leases.on_change({
            let (queue, signs, nodes) = (queue.clone(), signs.clone(), nodes.store());
            move |change| {
                let lease = change.object();
                if lease.metadata.namespace.as_deref() != Some(LEASES) || matches!(change, Change::Deleted(_)) {
                    return;
                }
                let key = Key::new("", lease.metadata.name.as_deref().unwrap_or_default());
                let Some(node) = nodes.get(&key) else { return };
                let mut signs = signs.lock();
                let sign = signs.entry(key.name.clone()).or_insert_with(|| Sign {
                    at: Instant::now(),
                    lease: 0,
                    heartbeat: heartbeat(&node),
                });
                if sign.lease != lease.version() {
                    sign.lease = lease.version();
                    sign.at = Instant::now();
                }
                drop(signs);
                // A deadline that is set already asks for the last sign when it comes.
                queue.add_after(&key, grace);
            }
        });
        Arc::new(Self {
            client,
            recorder,
            grace,
            queue,
            nodes: nodes.store(),
            pods,
            signs,
            next_eviction: Mutex::new(Instant::now()),
        })
    }

    pub(crate) async fn reconcile(self: Arc<Self>, key: Key) -> Result<Next, Error> {
        let Some(node) = self.nodes.get(&key) else { return Ok(Next::OnEvent) };
        let sign = self.signs.lock().get(&key.name).cloned();
        let silent_for = sign.map_or(Duration::ZERO, |sign| sign.at.elapsed());
        let mut next = Next::After(self.grace.saturating_sub(silent_for) + Duration::from_millis(50));
        if silent_for >= self.grace {
            next = Next::OnEvent;
            let conditions = plan::silent(&node, now_in_seconds());
            if !conditions.is_empty() {
                let patch = json!({"status": {"conditions": conditions}});
                self.client
                    .merge_status(NODES, &key, &patch)
                    .await
                    .map_err(Error::api("write conditions of a node"))?;
                self.event(&node, "NodeNotReady", format!("Node {} status is now: NodeNotReady", key.name));
                // The change comes back and brings the taints.
                return Ok(next);
            }
        }
        if plan::readiness(&node).is_none_or(|ready| ready != "True") {
            self.unready_pods(&key.name).await?;
        }
        let (evict, wait) = self.may_evict(&node);
        if let Some(taints) = plan::taints(&node, evict, now_in_seconds()) {
            let taints = (!taints.is_empty()).then_some(taints);
            let patch = json!({
                "metadata": {"resourceVersion": node.metadata.resource_version},
                "spec": {"taints": taints},
            });
            self.client.patch(NODES, &key, &patch).await.map_err(Error::api("write taints of a node"))?;
        }
        if let Some(wait) = wait {
            next = Next::After(wait);
        }
        Ok(next)
    }

    /// Whether pods may be driven out of the node now, and when to ask again if not.
    fn may_evict(&self, node: &Node) -> (bool, Option<Duration>) {
        let failing = |node: &Node| plan::readiness(node).is_none_or(|ready| ready != "True");
        let driven = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten()).any(|taint| {
            taint.effect == "NoExecute" && (taint.key == plan::NOT_READY || taint.key == plan::UNREACHABLE)
        });
        if !failing(node) || driven {
            return (driven, None);
        }
        let all = self.nodes.all();
        let Pace::Every(seconds) = plan::pace(all.iter().filter(|node| failing(node)).count(), all.len()) else {
            // Another node that comes back or goes changes this; it is looked at again then, and at the latest:
            return (false, Some(self.grace));
        };
        let mut next = self.next_eviction.lock();
        let now = Instant::now();
        if *next > now {
            return (false, Some(*next - now));
        }
        *next = now + Duration::from_secs(seconds);
        (true, None)
    }

    /// Pods of a node that is not ready are not ready either: Services stop sending to them.
    async fn unready_pods(&self, node: &str) -> Result<(), Error> {
        let pods = self.pods.all();
        for pod in pods.iter().filter(|pod| pod.node.as_deref() == Some(node) && pod.ready && pod.is_active()) {
            let condition = json!({"type": "Ready", "status": "False", "lastTransitionTime": Time(now_in_seconds())});
            let patch = json!({"metadata": {"uid": &*pod.uid}, "status": {"conditions": [condition]}});
            match self.client.merge_status(PODS, &pod.key, &patch).await {
                Err(error) if client::is_not_found(&error) || client::is_conflict(&error) => {}
                other => other.map(drop).map_err(Error::api("make a pod not ready"))?,
            }
        }
        Ok(())
    }

    fn event(&self, node: &Node, reason: &'static str, message: String) {
        let subject = Subject { api_version: "v1", kind: "Node", key: node.key(), uid: node.uid().into() };
        self.recorder.record(Record { subject, component: COMPONENT, warning: false, reason, message });
    }
}

fn heartbeat(node: &Node) -> Option<Time> {
    let conditions = node.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_ == "Ready")?.last_heartbeat_time.clone()
}
