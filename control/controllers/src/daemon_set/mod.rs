//! DaemonSets: a pod on each node that takes it (kubernetes-api §20.4).
//!
//! [`plan`] decides, [`placement`] says which nodes are meant, and the scheduler binds: a pod says by its affinity which node it
//! is for. A node wakes only those DaemonSets for which it is something else than before.

mod backoff;
mod placement;
mod plan;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, DaemonSetStatus};
use k8s_openapi::api::core::v1::{Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PodSpec};
use parking_lot::Mutex;
use serde_json::json;
use tokio::time::Instant;

use crate::client::{self, Client, DAEMON_SETS};
use crate::error::chain;
use crate::events::Recorder;
use crate::informer::{Change, Informer, Key, Object as _, Phase, Pod, Store};
use crate::queue::{Next, Queue, Reconciler};
use crate::workload::history::{self, Parent, REVISION_LABEL, Step};
use crate::workload::{self, Asked, InFlight, Owner, Pods, Row, Settle, Template};
use crate::{Error, selector};

use backoff::Backoffs;
use placement::{Place, Placement};
use plan::{GENERATION, GENERATION_LABEL, Observed};

const ROW: Row =
    Row { resource: DAEMON_SETS, api_version: "apps/v1", kind: "DaemonSet", component: "daemonset-controller" };
/// Names that are tried for one pod.
const NAMES: u32 = 8;

/// The controller of DaemonSets.
pub(crate) struct Controller {
    queue: Queue<Key>,
    sets: Arc<Store<DaemonSet>>,
    revisions: Arc<Store<ControllerRevision>>,
    nodes: Arc<Store<Node>>,
    pods: Pods,
    settle: Settle,
    backoffs: Arc<Mutex<Backoffs>>,
}

/// The revision in force.
struct Revision {
    /// The label of its pods.
    hash: String,
    name: String,
    collisions: Option<i32>,
}

impl Controller {
    /// Listens to what concerns DaemonSets.
    pub(crate) fn new(
        client: Client,
        recorder: Recorder,
        sets: &mut Informer<DaemonSet>,
        revisions: &mut Informer<ControllerRevision>,
        nodes: &mut Informer<Node>,
        pods: &mut Informer<Pod>,
    ) -> Arc<Self> {
        let queue = Queue::sparing(Duration::from_millis(20));
        let (in_flight, backoffs) = (Arc::new(InFlight::default()), Arc::new(Mutex::new(Backoffs::default())));
        sets.on_change({
            let (queue, backoffs) = (queue.clone(), backoffs.clone());
            move |change| {
                if let Change::Deleted(set) = change {
                    backoffs.lock().forget(set.uid());
                }
                queue.add(&change.object().key());
            }
        });
        history::listen(
            ROW,
            &queue,
            revisions,
            workload::wake_selecting(&queue, &sets.store(), |set| &set.spec.selector),
        );
        nodes.on_change({
            let (queue, sets) = (queue.clone(), sets.store());
            move |change| {
                let node = change.object();
                let before = match change {
                    // Its status changes all the time, and decides nothing.
                    Change::Updated(before, _) if is_alike(before, node) => return,
                    Change::Updated(before, _) => Some(*before),
                    Change::Added(_) => None,
                    Change::Deleted(_) => Some(node),
                };
                let after = (!matches!(change, Change::Deleted(_))).then_some(node);
                for set in sets.all().into_iter().filter(|set| matters(set, before, after)) {
                    queue.add(&set.key());
                }
            }
        });
        workload::listen(ROW, &queue, &in_flight, (&mut *sets, |set| &set.spec.selector), pods);
        let store = pods.store();
        let pods = Pods { client, recorder, store, in_flight, row: ROW };
        let (sets, revisions, nodes) = (sets.store(), revisions.store(), nodes.store());
        Arc::new(Self { queue, sets, revisions, nodes, pods, settle: Settle::default(), backoffs })
    }
}

/// Whether two states of a node are the same to every DaemonSet.
fn is_alike(before: &Node, after: &Node) -> bool {
    fn taints(node: &Node) -> Option<&Vec<k8s_openapi::api::core::v1::Taint>> {
        node.spec.as_ref().and_then(|spec| spec.taints.as_ref())
    }
    before.metadata.labels == after.metadata.labels && taints(before) == taints(after)
}

/// Whether a node is something else to the set than before; it may have come or gone.
fn matters(set: &DaemonSet, before: Option<&Arc<Node>>, after: Option<&Arc<Node>>) -> bool {
    let placement = Placement::of(set);
    let on = |node: Option<&Arc<Node>>| node.map_or(Place::None, |node| placement.on(node));
    on(before) != on(after)
}

impl Reconciler for Controller {
    type Key = Key;
    const NAME: &'static str = "daemonset";
    const WORKERS: usize = 8;

    fn queue(&self) -> &Queue<Key> {
        &self.queue
    }

    async fn reconcile(self: Arc<Self>, key: Key) -> Result<Next, Error> {
        let Some(set) = self.sets.get(&key) else { return Ok(Next::OnEvent) };
        let (uid, owner): (Arc<str>, _) = (set.uid().into(), Owner { key: &key, uid: set.uid() });
        if selector::is_empty(&set.spec.selector) {
            let message = "This daemon set is selecting all pods. A non-empty selector is required.";
            self.pods.event(owner, true, "SelectingAll", message.to_owned());
            return Ok(Next::OnEvent);
        }
        if set.is_deleting() {
            // Its history may be gone already, and with it what a status is made from.
            return Ok(Next::OnEvent);
        }
        let parent = parent(&set, &key);
        let Some(revisions) = history::claim(&self.pods.client, &self.revisions, &parent).await? else {
            return Ok(Next::OnEvent);
        };
        let revision = self.revision(&set, &parent, &revisions).await?;
        // Before the store: what leaves it is in the store by then.
        let flight = self.pods.in_flight.of(&uid);
        let is_member = |pod: &Pod| selector::matches(&set.spec.selector, &pod.labels);
        let members = self.pods.members(owner, set.is_deleting(), is_member).await?;
        let Some(pods) = members else { return Ok(Next::OnEvent) };
        let names = pods.iter().map(|pod| pod.key.name.clone()).collect();
        let flight = flight.without(&names);
        let lost = self.pods.look_for(owner, &flight.overdue).await?;
        let mut creating: HashMap<Arc<str>, usize> = HashMap::new();
        for node in flight.sent.iter().filter_map(|name| flight.places.get(name)) {
            *creating.entry(node.clone()).or_default() += 1;
        }
        let generation = set.status.as_ref().and_then(|status| status.observed_generation).unwrap_or(0);
        let backoff = |node: &Arc<str>| self.backoffs.lock().left(&uid, generation, node, Instant::now());
        let plan = plan::plan(&Observed {
            set: &set,
            nodes: &self.nodes.all(),
            pods: &pods,
            creating: &creating,
            deleting: &flight.deleting,
            hash: &revision.hash,
            collisions: revision.collisions,
            backoff: &backoff,
            now: Timestamp::now(),
        });
        self.tell_ended(owner, generation, &plan);
        let done = self.carry_out(owner, &set, &plan, &revision, &flight).await;
        let more = plan.more || lost;
        if done.is_ok()
            && plan::is_underway(&set, &plan.status)
            && let Some(wait) = self.settle.wait(&uid)
        {
            return Ok(if more { Next::Again } else { Next::After(wait) });
        }
        self.settle.done(&uid);
        self.write(&key, &set, &plan.status).await?;
        for old in surplus(&set, &revisions, &revision, &pods) {
            history::delete(&self.pods.client, &old).await?;
        }
        match done {
            // All further creations would fail as well; the namespace takes the set with it.
            Err(Error::Api { source, .. }) if client::is_namespace_terminating(&source) => Ok(Next::OnEvent),
            Err(error) => Err(error),
            Ok(()) if more => Ok(Next::Again),
            Ok(()) => {
                // What is asked for is looked for should it not be seen.
                let flight = self.pods.in_flight.of(&uid);
                let unseen = (!flight.sent.is_empty() || !flight.deleting.is_empty()).then_some(workload::OVERDUE);
                Ok(plan.check_after.into_iter().chain(unseen).min().map_or(Next::OnEvent, Next::After))
            }
        }
    }
}

fn parent<'a>(set: &'a DaemonSet, key: &'a Key) -> Parent<'a> {
    Parent { row: ROW, key, metadata: &set.metadata, selector: &set.spec.selector }
}

/// The label of the pods of a revision.
fn label_of(revision: &ControllerRevision) -> &str {
    let label = revision.metadata.labels.as_ref().and_then(|labels| labels.get(REVISION_LABEL));
    label.or(revision.metadata.name.as_ref()).map(String::as_str).unwrap_or_default()
}

/// The eldest of the old revisions that no pod is of, beyond those that are kept.
fn surplus(
    set: &DaemonSet,
    revisions: &[Arc<ControllerRevision>],
    current: &Revision,
    pods: &[Arc<Pod>],
) -> Vec<Arc<ControllerRevision>> {
    let old: Vec<_> =
        revisions.iter().filter(|revision| revision.metadata.name.as_ref() != Some(&current.name)).collect();
    let limit = usize::try_from(set.spec.revision_history_limit.unwrap_or(10)).unwrap_or(usize::MAX);
    let excess = old.len().saturating_sub(limit);
    if excess == 0 {
        return Vec::new();
    }
    let is_live = |revision: &ControllerRevision| {
        let label = label_of(revision);
        pods.iter().any(|pod| pod.labels.get(REVISION_LABEL).is_some_and(|of| of == label))
    };
    old.into_iter().filter(|revision| !is_live(revision)).take(excess).cloned().collect()
}

impl Controller {
    /// The revision of the template; makes the history say so.
    async fn revision(
        &self,
        set: &DaemonSet,
        parent: &Parent<'_>,
        revisions: &[Arc<ControllerRevision>],
    ) -> Result<Revision, Error> {
        let before = set.status.as_ref().and_then(|status| status.collision_count);
        let mut collisions = before.unwrap_or(0);
        let content = history::content(&set.spec.template);
        let client = &self.pods.client;
        let revision = match history::step(revisions, &set.spec.template, &content) {
            Step::None(revision) => revision,
            Step::Again(revision, number) => {
                history::renumber(client, &revision, number).await?;
                revision
            }
            Step::New(number) => {
                let labels = set.spec.template.metadata.as_ref().and_then(|meta| meta.labels.clone());
                let named = |collisions| {
                    let hash = history::hash(&content, Some(collisions).filter(|count| *count > 0));
                    let mut labels = labels.clone().unwrap_or_default();
                    labels.insert(REVISION_LABEL.to_owned(), hash.clone());
                    (history::name(&parent.key.name, &hash), labels)
                };
                history::create(client, parent, number, &content, &mut collisions, named).await?.into()
            }
        };
        Ok(Revision {
            hash: label_of(&revision).to_owned(),
            name: revision.metadata.name.clone().unwrap_or_default(),
            collisions: (before.is_some() || collisions > 0).then_some(collisions),
        })
    }

    /// Events about pods that have ended, and the delay of the next that fails.
    fn tell_ended(&self, owner: Owner<'_>, generation: i64, plan: &plan::Plan) {
        let uid: Arc<str> = owner.uid.into();
        // One node has failed once, however many of its pods have.
        let mut failed = HashSet::new();
        for (node, pod) in &plan.ended {
            let (warning, reason, word, verb) = match pod.phase {
                Phase::Failed => (true, "FailedDaemonPod", "failed", "kill"),
                _ => (false, "SucceededDaemonPod", "succeeded", "delete"),
            };
            if warning && failed.insert(node) {
                self.backoffs.lock().next(&uid, generation, node, Instant::now());
            }
            let message = format!("Found {word} daemon pod {} on node {node}, will try to {verb} it", pod.key);
            self.pods.event(owner, warning, reason, message);
        }
    }

    async fn carry_out(
        &self,
        owner: Owner<'_>,
        set: &DaemonSet,
        plan: &plan::Plan,
        revision: &Revision,
        flight: &workload::Flight,
    ) -> Result<(), Error> {
        // What nobody knows of is asked for again by its name where a pod is wanted still, and looked for elsewhere.
        let mut unknown: HashMap<&Arc<str>, &Arc<str>> = HashMap::new();
        let mut others = Vec::new();
        for name in &flight.unknown {
            let node = flight.places.get(name).filter(|node| plan.create.contains(node));
            let again = node.is_some_and(|node| unknown.insert(node, name).is_none());
            if !again {
                others.push(name.clone());
            }
        }
        self.pods.look_for(owner, &others).await?;
        let mut made = Ok(());
        if !plan.create.is_empty() {
            let maker = Maker::of(self, owner, set, revision);
            let work = plan.create.iter().map(|node| maker.create(node, unknown.get(node).map(|name| (*name).clone())));
            made = workload::slow_start(work).await.map_err(Error::api("create pods"));
        }
        // Whatever becomes of those: a quota that refuses them may have room when these are gone (the reference's `syncNodes`).
        let deleted = self.pods.delete(owner, &plan.delete).await.map_err(Error::api("delete pods"));
        made.and(deleted)
    }

    async fn write(&self, key: &Key, set: &DaemonSet, status: &DaemonSetStatus) -> Result<(), Error> {
        if plan::is_written(set, status) {
            return Ok(());
        }
        let patch = json!({
            "observedGeneration": status.observed_generation,
            "desiredNumberScheduled": status.desired_number_scheduled,
            "currentNumberScheduled": status.current_number_scheduled,
            "numberMisscheduled": status.number_misscheduled,
            "numberReady": status.number_ready,
            "updatedNumberScheduled": status.updated_number_scheduled,
            "numberAvailable": status.number_available,
            "numberUnavailable": status.number_unavailable,
            "collisionCount": status.collision_count,
        });
        match self.pods.client.patch_status(DAEMON_SETS, key, set.uid(), &patch).await {
            Err(error) if client::is_not_found(&error) => Ok(()),
            other => other.map(drop).map_err(Error::api("write the status of a DaemonSet")),
        }
    }
}

/// Makes the pods of one pass.
struct Maker<'a> {
    pods: &'a Pods,
    owner: Owner<'a>,
    template: Template<'a>,
    labels: BTreeMap<String, String>,
    spec: PodSpec,
}

impl<'a> Maker<'a> {
    fn of(controller: &'a Controller, owner: Owner<'a>, set: &'a DaemonSet, revision: &Revision) -> Self {
        let template = &set.spec.template;
        let own = template.metadata.as_ref().and_then(|meta| meta.labels.clone());
        let mut labels = own.unwrap_or_default();
        labels.insert(REVISION_LABEL.to_owned(), revision.hash.clone());
        let generation = set.metadata.annotations.as_ref().and_then(|all| all.get(GENERATION));
        if let Some(generation) = generation.filter(|text| text.parse::<i64>().is_ok()) {
            labels.insert(GENERATION_LABEL.to_owned(), generation.clone());
        }
        let mut spec = template.spec.clone().unwrap_or_default();
        spec.tolerations = Some(placement::tolerations(&spec));
        let pods = &controller.pods;
        let template = Template::of(&owner.key.name, pods.owner_reference(owner), template);
        Self { pods, owner, template, labels, spec }
    }

    /// Creates the pod of a node, under the name that was asked for before if one is given.
    async fn create(&self, node: &Arc<str>, mut before: Option<Arc<str>>) -> Result<(), kube::Error> {
        let mut spec = self.spec.clone();
        bind_to(&mut spec, node);
        let mut names = NAMES;
        loop {
            let name: Arc<str> = before.take().unwrap_or_else(|| self.template.name().into());
            let body = self.template.pod_with(&name, Some(&self.labels), &spec);
            let error = match self.pods.ask(self.owner, &name, Some(node), &body).await {
                Asked::Made => {
                    self.pods.event(self.owner, false, "SuccessfulCreate", format!("Created pod: {name}"));
                    return Ok(());
                }
                Asked::Unknown(error) => return Err(error),
                Asked::Refused(error) => error,
            };
            names -= 1;
            if client::is_conflict(&error) && names > 0 {
                continue;
            }
            if !client::is_namespace_terminating(&error) {
                self.pods.event(self.owner, true, "FailedCreate", format!("Error creating: {}", chain(&error)));
            }
            return Err(error);
        }
    }
}

/// The node is the only one that the scheduler may take; whatever else the template requires of nodes holds there.
fn bind_to(spec: &mut PodSpec, node: &str) {
    let field = NodeSelectorRequirement {
        key: "metadata.name".to_owned(),
        operator: "In".to_owned(),
        values: Some(vec![node.to_owned()]),
    };
    let term = NodeSelectorTerm { match_expressions: None, match_fields: Some(vec![field]) };
    let affinity = spec.affinity.get_or_insert_default().node_affinity.get_or_insert_default();
    affinity.required_during_scheduling_ignored_during_execution =
        Some(NodeSelector { node_selector_terms: vec![term] });
}
