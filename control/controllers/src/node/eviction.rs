//! Pods leave tainted nodes when they do not tolerate the taint (any more).

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use parking_lot::Mutex;
use serde_json::json;
use tokio::time::Instant;

use super::met::Met;
use super::plan::{self, Leave};
use super::watchful::Watchful;
use crate::client::{self, Client, DeleteOptions, PODS};
use crate::events::{Record, Recorder, Subject};
use crate::informer::{Change, Index, Informer, Key, Object as _, Pod, Store};
use crate::queue::{Next, Queue, Reconciler};
use crate::{Error, now_in_seconds};

const COMPONENT: &str = "taint-eviction-controller";
/// How long we must have watched before a deadline counts that ended while we did not, or while nobody led: nodes speak several
/// times in it.
const AFTER_PAUSE: Duration = Duration::from_secs(15);

/// Drives pods out. Its queue holds pods of nodes with such taints only.
pub(crate) struct Evictions {
    client: Client,
    recorder: Recorder,
    queue: Queue<Key>,
    nodes: Arc<Store<Node>>,
    pods: Arc<Store<Pod>>,
    watch: Arc<Mutex<Watchful>>,
    /// Held while it is decided from the stores what it says; they are never waited for the other way round.
    met: Arc<Mutex<Met>>,
}

impl Evictions {
    pub(crate) fn new(
        client: Client,
        recorder: Recorder,
        watch: Arc<Mutex<Watchful>>,
        nodes: &mut Informer<Node>,
        pods: &mut Informer<Pod>,
    ) -> Arc<Self> {
        let queue: Queue<Key> = Queue::new(Duration::ZERO);
        let met: Arc<Mutex<Met>> = Arc::default();
        nodes.on_change({
            let (queue, pods, met) = (queue.clone(), pods.store(), met.clone());
            move |change| {
                let node = change.object();
                let gone = matches!(change, Change::Deleted(_));
                if gone || change.before().is_some_and(|before| !driving(before).eq(driving(node))) {
                    let there: Vec<&Taint> = driving(node).filter(|_| !gone).collect();
                    let mut met = met.lock();
                    for pod in pods.by(Index::Node, node.metadata.name.as_deref().unwrap_or_default()) {
                        met.retain(&pod.uid, &there);
                    }
                }
                if gone {
                    return;
                }
                if change.before().is_some_and(|before| driving(before).eq(driving(node)))
                    || driving(node).next().is_none()
                {
                    // Fewer taints: what was planned is reconsidered when it is due.
                    return;
                }
                for pod in pods.by(Index::Node, node.metadata.name.as_deref().unwrap_or_default()) {
                    queue.add(&pod.key);
                }
            }
        });
        pods.on_change({
            let (queue, nodes, met) = (queue.clone(), nodes.store(), met.clone());
            move |change| {
                let pod = change.object();
                if let Change::Deleted(_) = change {
                    met.lock().forget(&pod.uid);
                    return;
                }
                let moved = change
                    .before()
                    .is_none_or(|before| before.node != pod.node || before.tolerations != pod.tolerations);
                let Some(node) = pod.node.as_deref().filter(|_| moved) else { return };
                if nodes.get(&Key::new("", node)).is_some_and(|node| driving(&node).next().is_some()) {
                    queue.add(&pod.key);
                }
            }
        });
        Arc::new(Self { client, recorder, queue, nodes: nodes.store(), pods: pods.store(), watch, met })
    }
}

impl Reconciler for Evictions {
    type Key = Key;
    const NAME: &'static str = "eviction";
    const WORKERS: usize = 16;

    fn queue(&self) -> &Queue<Key> {
        &self.queue
    }

    async fn reconcile(self: Arc<Self>, key: Key) -> Result<Next, Error> {
        let now = Timestamp::now();
        let Some((pod, taints)) = self.driven(&key, now) else { return Ok(Next::OnEvent) };
        match plan::leave(&taints, &pod.tolerations, now) {
            Leave::Never => return Ok(Next::OnEvent),
            Leave::At(at) if at > now => {
                return Ok(Next::After(at.duration_since(now).unsigned_abs() + Duration::from_millis(10)));
            }
            Leave::At(_) => {}
        }
        // The node's own word is to come first: such taints may be gone in a moment.
        let of_silence = |taint: &Taint| taint.key == plan::NOT_READY || taint.key == plan::UNREACHABLE;
        let watched = self.watch.lock().observe(Instant::now(), now).elapsed();
        if watched < AFTER_PAUSE && taints.iter().all(of_silence) {
            return Ok(Next::After(AFTER_PAUSE.saturating_sub(watched) + Duration::from_millis(10)));
        }
        let subject = Subject { api_version: "v1".into(), kind: "Pod".into(), key: key.clone(), uid: pod.uid.clone() };
        let message = format!("Marking for deletion Pod {key}");
        let reason = "TaintManagerEviction";
        self.recorder.record(Record { subject, component: COMPONENT, warning: false, reason, message });
        let condition = json!({
            "type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager",
            "message": "Taint manager: deleting due to NoExecute taint",
            "lastTransitionTime": Time(now_in_seconds()),
        });
        delete_disrupted(&self.client, &pod, json!({"conditions": [condition]}), None).await.map(|()| Next::OnEvent)
    }
}

impl Evictions {
    /// A pod that is to stay or go, and the taints that decide it, each with its time.
    fn driven(&self, key: &Key, now: Timestamp) -> Option<(Arc<Pod>, Vec<Taint>)> {
        let mut met = self.met.lock();
        let pod = self.pods.get(key).filter(|pod| pod.deleting.is_none())?;
        let node = self.nodes.get(&Key::new("", pod.node.as_deref()?))?;
        let mut taints: Vec<Taint> = driving(&node).cloned().collect();
        met.date(&pod.uid, &mut taints, now);
        Some((pod, taints))
    }
}

/// Taints that drive pods out.
fn driving(node: &Node) -> impl Iterator<Item = &Taint> {
    let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    taints.filter(|taint| taint.effect == "NoExecute")
}

/// Notes in the pod's status why it goes, then deletes it.
pub(crate) async fn delete_disrupted(
    client: &Client,
    pod: &Pod,
    status: serde_json::Value,
    grace_seconds: Option<i64>,
) -> Result<(), Error> {
    let patch = json!({"metadata": {"uid": &*pod.uid}, "status": status});
    match client.merge_status(PODS, &pod.key, &patch).await {
        Err(error) if client::is_not_found(&error) => return Ok(()),
        other => drop(other.map_err(Error::api("note why a pod goes"))?),
    }
    let mut options = DeleteOptions::of(pod.uid());
    options.grace_period_seconds = grace_seconds;
    match client.delete(PODS, &pod.key, &options).await {
        // Another pod has the name by now.
        Err(error) if client::is_conflict(&error) => Ok(()),
        other => other.map_err(Error::api("delete a pod")),
    }
}
