//! Pods that nobody else cleans up (kubernetes-api §20.8): those of nodes that vanished, those that end on a node which somebody
//! has said is out of service, those that end without ever having had a node, and finished ones beyond what is worth keeping.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::json;

use crate::client::{self, Client, DeleteOptions, Meta, NODES, PODS};
use crate::informer::{Change, Index, Informer, Key, Pod, Store};
use crate::node::delete_disrupted;
use crate::node::plan::readiness;
use crate::queue::{Next, Queue, Reconciler};
use crate::{Error, now_in_seconds};

/// How long a node must be gone; it may be replaced by one of the same name.
const QUARANTINE: Duration = Duration::from_secs(40);
/// Pods that are cleaned up at a time.
const IN_FLIGHT: usize = 32;
/// Finished pods that are kept (the reference's default).
const FINISHED_MAX: usize = 12_500;

/// The key of the taint that says so.
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// What there is to look at.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Task {
    /// Pods of a node that is not there, or out of service.
    Node(Arc<str>),
    /// A pod that ends and has no node.
    Pod(Key),
    /// Whether too many have finished.
    Finished,
}

/// Whether somebody has said of a node that fails that it is off, so that nothing of it runs any more
/// (kubernetes.io, "Non-graceful node shutdown").
fn is_out_of_service(node: &Node) -> bool {
    let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    let is_said = taints.into_iter().any(|taint| taint.key == OUT_OF_SERVICE);
    is_said && readiness(node) != Some("True")
}

/// Cleans up pods.
pub(crate) struct Controller {
    client: Client,
    queue: Queue<Task>,
    nodes: Arc<Store<Node>>,
    pods: Arc<Store<Pod>>,
}

impl Controller {
    pub(crate) fn new(client: Client, nodes: &mut Informer<Node>, pods: &mut Informer<Pod>) -> Arc<Self> {
        let queue: Queue<Task> = Queue::new(Duration::from_millis(500));
        nodes.on_change({
            let queue = queue.clone();
            move |change| {
                let node = change.object();
                let task = Task::Node(node.metadata.name.as_deref().unwrap_or_default().into());
                match change {
                    Change::Deleted(_) => queue.add_after(&task, QUARANTINE),
                    _ if is_out_of_service(node) => queue.add(&task),
                    _ => {}
                }
            }
        });
        pods.on_change({
            let (queue, nodes) = (queue.clone(), nodes.store());
            move |change| {
                let pod = change.object();
                if let Change::Deleted(_) = change {
                    return;
                }
                if pod.is_terminal() && change.before().is_none_or(|before| !before.is_terminal()) {
                    queue.add(&Task::Finished);
                }
                let on = pod.node.as_ref().and_then(|node| nodes.get(&Key::new("", node)));
                match &pod.node {
                    None if pod.deleting.is_some() => queue.add(&Task::Pod(pod.key.clone())),
                    Some(node) if pod.deleting.is_some() && on.as_deref().is_some_and(is_out_of_service) => {
                        queue.add(&Task::Node(node.clone()));
                    }
                    Some(node) if on.is_none() && change.before().is_none_or(|before| before.node != pod.node) => {
                        queue.add_after(&Task::Node(node.clone()), QUARANTINE);
                    }
                    _ => {}
                }
            }
        });
        Arc::new(Self { client, queue, nodes: nodes.store(), pods: pods.store() })
    }
}

impl Reconciler for Controller {
    type Key = Task;
    const NAME: &'static str = "podgc";
    const WORKERS: usize = 2;

    fn queue(&self) -> &Queue<Task> {
        &self.queue
    }

    async fn reconcile(self: Arc<Self>, task: Task) -> Result<Next, Error> {
        match task {
            Task::Node(name) => self.orphans(&name).await?,
            Task::Pod(key) => {
                let pod = self.pods.get(&key).filter(|pod| pod.deleting.is_some() && pod.node.is_none());
                // Also one that is held: who does (a Job that counts it) may wait for its end, of which no node tells.
                if let Some(pod) = pod {
                    self.lost(pod).await?;
                }
            }
            Task::Finished => {
                if self.pods.count(Index::Finished, "") <= FINISHED_MAX {
                    return Ok(Next::OnEvent);
                }
                let mut finished = self.pods.by(Index::Finished, "");
                finished.retain(|pod| pod.deleting.is_none());
                finished.sort_by_key(|pod| pod.created);
                let surplus = finished.len().saturating_sub(FINISHED_MAX);
                finished.truncate(surplus);
                let this = &*self;
                let deleted = futures::stream::iter(finished).map(|pod| async move { this.delete(&pod).await });
                // Each is tried, whatever comes of the others.
                let deleted = deleted.buffer_unordered(IN_FLIGHT).collect::<Vec<Result<(), Error>>>();
                deleted.await.into_iter().collect::<Result<(), Error>>()?;
            }
        }
        Ok(Next::OnEvent)
    }
}

impl Controller {
    async fn orphans(&self, node: &str) -> Result<(), Error> {
        let key = Key::new("", node);
        if let Some(node) = self.nodes.get(&key) {
            let mut ending = self.pods.by(Index::Node, &key.name);
            ending.retain(|pod| pod.deleting.is_some() && is_out_of_service(&node));
            let ending = futures::stream::iter(ending).map(|pod| self.lost(pod)).buffer_unordered(IN_FLIGHT);
            // Each is tried, whatever comes of the others.
            return ending.collect::<Vec<Result<(), Error>>>().await.into_iter().collect();
        }
        match self.client.fetch::<Meta>(NODES, &key).await {
            Ok(_) => return Ok(()),
            Err(error) if client::is_not_found(&error) => {}
            Err(source) => return Err(Error::Api { what: "look for a node", source }),
        }
        let pods = futures::stream::iter(self.pods.by(Index::Node, node));
        let tried = pods.map(|pod| self.orphan(pod)).buffer_unordered(IN_FLIGHT).collect::<Vec<Result<(), Error>>>();
        tried.await.into_iter().collect()
    }

    /// The pod's node is gone.
    async fn orphan(&self, pod: Arc<Pod>) -> Result<(), Error> {
        if pod.is_terminal() {
            return self.delete(&pod).await;
        }
        let condition = json!({
            "type": "DisruptionTarget", "status": "True", "reason": "DeletionByPodGC",
            "message": "PodGC: node no longer exists", "lastTransitionTime": Time(now_in_seconds()),
        });
        let status = json!({"phase": "Failed", "conditions": [condition]});
        delete_disrupted(&self.client, &pod, status, Some(0)).await
    }

    /// The pod ends, and no node will say that it has.
    async fn lost(&self, pod: Arc<Pod>) -> Result<(), Error> {
        if pod.is_terminal() {
            return self.delete(&pod).await;
        }
        delete_disrupted(&self.client, &pod, json!({"phase": "Failed"}), Some(0)).await
    }

    async fn delete(&self, pod: &Pod) -> Result<(), Error> {
        let mut options = DeleteOptions::of(&pod.uid);
        options.grace_period_seconds = Some(0);
        match self.client.delete(PODS, &pod.key, &options).await {
            Err(error) if client::is_conflict(&error) => Ok(()),
            other => other.map_err(Error::api("delete a pod")),
        }
    }
}
