//! ReplicaSets: as many pods as are wanted (kubernetes-api §20.2).
//!
//! [`plan`] decides, [`InFlight`] knows what the informer does not show yet, and this shell does it: creations go out
//! concurrently in a window that opens with success (the reference's slow start, without waiting between batches), and
//! the status is written at most once at a time per ReplicaSet, with what is known then.

mod plan;
mod rank;
mod template;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use serde_json::json;

use crate::client::{self, Client, DeleteOptions, PODS, REPLICA_SETS};
use crate::events::{Record, Recorder, Subject};
use crate::informer::{Change, Index, Informer, Key, Object as _, Pod, Store, controller};
use crate::queue::{Next, Queue, Reconciler};
use crate::workload::{self, Created, InFlight, Settle};
use crate::{Error, now_in_seconds, selector};

pub(crate) use plan::counted;
use template::Template;

/// Creations and deletions in flight per ReplicaSet.
const WINDOW_MAX: usize = 64;
/// Names that are tried for one pod (as the API server does for `generateName`).
const NAMES: u32 = 8;
const COMPONENT: &str = "replicaset-controller";

/// What became of creations that were in doubt.
struct Settled {
    /// Names to ask for again.
    again: Vec<Arc<str>>,
    /// Whether some turned out not to be there.
    dropped: bool,
}

/// The controller of ReplicaSets.
pub(crate) struct Controller {
    client: Client,
    recorder: Recorder,
    queue: Queue<Key>,
    sets: Arc<Store<ReplicaSet>>,
    pods: Arc<Store<Pod>>,
    in_flight: Arc<InFlight>,
    settle: Settle,
}

impl Controller {
    /// Listens to what concerns ReplicaSets.
    pub(crate) fn new(
        client: Client,
        recorder: Recorder,
        sets: &mut Informer<ReplicaSet>,
        pods: &mut Informer<Pod>,
    ) -> Arc<Self> {
        let queue = Queue::sparing(Duration::from_millis(20));
        let in_flight = Arc::new(InFlight::default());
        sets.on_change({
            let queue = queue.clone();
            move |change| {
                // Its own status needs no answer; everything else does.
                let changed = change.before().is_none_or(|before| {
                    let (old, new) = (&before.metadata, &change.object().metadata);
                    old.generation != new.generation
                        || old.deletion_timestamp != new.deletion_timestamp
                        || old.labels != new.labels
                        || before.status != change.object().status
                });
                if changed {
                    queue.add(&change.object().key());
                }
            }
        });
        pods.on_change({
            let (queue, in_flight, sets) = (queue.clone(), in_flight.clone(), sets.store());
            move |change| {
                let pod = change.object();
                if let Some(owner) = controller(Some(&pod.owners)) {
                    let going = matches!(change, Change::Deleted(_)) || pod.deleting.is_some();
                    in_flight.seen(&owner.uid, &pod.key.name, &pod.uid, going);
                }
                let owner = set_of(pod);
                if let Some(before) = change.before()
                    && let Some(former) = set_of(before)
                    && owner.as_ref() != Some(&former)
                {
                    queue.add(&former);
                }
                match owner {
                    Some(owner) => queue.add(&owner),
                    // One that nobody controls may be adopted.
                    None if controller(Some(&pod.owners)).is_none() && !matches!(change, Change::Deleted(_)) => {
                        for set in
                            sets.select(&pod.key.namespace, |set| selector::matches(&set.spec.selector, &pod.labels))
                        {
                            queue.add(&set.key());
                        }
                    }
                    None => {}
                }
            }
        });
        let (sets, pods) = (sets.store(), pods.store());
        Arc::new(Self { client, recorder, queue, sets, pods, in_flight, settle: Settle::default() })
    }
}

impl Reconciler for Controller {
    type Key = Key;
    const NAME: &'static str = "replicaset";
    const WORKERS: usize = 16;

    fn queue(&self) -> &Queue<Key> {
        &self.queue
    }

    async fn reconcile(self: Arc<Self>, key: Key) -> Result<Next, Error> {
        let Some(set) = self.sets.get(&key) else { return Ok(Next::OnEvent) };
        let uid = set.uid();
        // Before the store: what leaves it is in the store by then.
        let flight = self.in_flight.of(uid);
        let owned = self.pods.controlled_by(uid);
        let names: HashSet<Arc<str>> = owned.iter().map(|pod| pod.key.name.clone()).collect();
        let flight = flight.without(&names);
        let plan = plan::plan(&plan::Observed {
            set: &set,
            creating: flight.sent.len() + flight.unknown.len(),
            deleting: &flight.deleting,
            owned,
            orphans: self.pods.by(Index::Orphan, &key.namespace),
            related: &|| self.related(&set),
            now: Timestamp::now(),
        });

        self.claim(&set, &plan).await?;
        let mut failure = None;
        let Settled { again, dropped } =
            self.settle(&set, &plan, flight.sent.len(), flight.unknown, &flight.overdue).await?;
        // The plan counted what turned out not to be there, and no event will tell of it.
        let mut more = dropped;
        if plan.create > 0 || !again.is_empty() {
            let made = self.create(&set, again, plan.create).await;
            more |= made.is_ok() && plan.create == plan::BURST;
            failure = made.err();
        } else if !plan.delete.is_empty() {
            more |= plan.delete.len() == plan::BURST;
            failure = self.delete(&set, &plan.delete).await.err();
        }
        let mut status = plan.status;
        let message =
            failure.as_ref().filter(|error| !client::is_namespace_terminating(error)).map(ToString::to_string);
        plan::set_failure(&mut status, message, plan.missing, now_in_seconds());
        let grown = plan::is_growth(&set, &status);
        match (failure.is_none() && grown).then(|| self.settle.wait(uid)).flatten() {
            // More comes of it, or it is written then.
            Some(wait) if !more => return Ok(Next::After(wait)),
            Some(_) => {}
            None => {
                self.settle.done(uid);
                self.write(&key, &set, &status).await?;
            }
        }
        match failure {
            // All further creations would fail as well; the namespace takes the ReplicaSet with it.
            Some(error) if client::is_namespace_terminating(&error) => Ok(Next::OnEvent),
            Some(source) => Err(Error::Api { what: "create or delete pods", source }),
            None if more => Ok(Next::Again),
            None => {
                // What is asked for is looked for should it not be seen.
                let flight = self.in_flight.of(uid);
                let unseen = (!flight.sent.is_empty() || !flight.deleting.is_empty()).then_some(workload::OVERDUE);
                Ok(plan.check_after.into_iter().chain(unseen).min().map_or(Next::OnEvent, Next::After))
            }
        }
    }
}

impl Controller {
    /// Decides what becomes of creations that nobody knows the outcome of: as many as there is room for are asked for again
    /// by the same name; for the others the API is asked, as it is for those that nobody has seen.
    async fn settle(
        &self,
        set: &ReplicaSet,
        plan: &plan::Plan,
        sent: usize,
        mut unknown: Vec<Arc<str>>,
        overdue: &[Arc<str>],
    ) -> Result<Settled, Error> {
        if unknown.is_empty() && overdue.is_empty() {
            return Ok(Settled { again: unknown, dropped: false });
        }
        let room = match set.metadata.deletion_timestamp {
            None => usize::try_from(plan.missing).unwrap_or(0).saturating_sub(sent),
            Some(_) => 0,
        };
        let others = unknown.split_off(unknown.len().min(room));
        let mut dropped = false;
        for name in others.iter().chain(overdue) {
            let key = Key { namespace: set.key().namespace, name: name.clone() };
            match self.is_ours(set, &key).await.map_err(Error::api("look for a pod that was asked for"))? {
                true => self.in_flight.creating(set.uid(), name),
                false => {
                    self.in_flight.created(set.uid(), name);
                    dropped = true;
                }
            }
        }
        Ok(Settled { again: unknown, dropped })
    }

    /// Whether the API has a pod of this name that the ReplicaSet controls.
    async fn is_ours(&self, set: &ReplicaSet, key: &Key) -> Result<bool, kube::Error> {
        match self.client.fetch::<client::Meta>(PODS, key).await {
            Ok(found) => {
                let owner = controller(found.metadata.owner_references.as_deref());
                Ok(owner.is_some_and(|owner| owner.uid == set.uid()))
            }
            Err(error) if client::is_not_found(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Pods of the ReplicaSets that share this one's controller.
    fn related(&self, set: &ReplicaSet) -> Vec<Arc<Pod>> {
        let family = match set.controller() {
            Some(owner) => self.sets.controlled_by(owner).iter().map(|set| set.uid().to_owned()).collect(),
            None => vec![set.uid().to_owned()],
        };
        family.iter().flat_map(|uid| self.pods.controlled_by(uid)).collect()
    }

    /// Takes pods that match and belong to nobody, and lets go of those that no longer match.
    async fn claim(&self, set: &ReplicaSet, plan: &plan::Plan) -> Result<(), Error> {
        if plan.adopt.is_empty() && plan.release.is_empty() {
            return Ok(());
        }
        if !plan.adopt.is_empty() {
            workload::may_adopt(&self.client, REPLICA_SETS, &set.key(), set.uid()).await?;
        }
        for pod in &plan.adopt {
            let mut owners = pod.owners.to_vec();
            owners.push(owner_reference(set));
            self.set_owners(pod, &owners, "adopt a pod").await?;
        }
        for pod in &plan.release {
            let owners: Vec<_> = pod.owners.iter().filter(|owner| owner.uid != set.uid()).cloned().collect();
            self.set_owners(pod, &owners, "release a pod").await?;
        }
        Ok(())
    }

    async fn set_owners(&self, pod: &Pod, owners: &[OwnerReference], what: &'static str) -> Result<(), Error> {
        let version = pod.version.to_string();
        workload::set_owners(&self.client, PODS, (&pod.key, &pod.uid, &version), owners, what).await
    }

    /// Creates the pods of these names, and more under new ones.
    async fn create(&self, set: &ReplicaSet, names: Vec<Arc<str>>, more: usize) -> Result<(), kube::Error> {
        let Some(template) = Template::of(set)? else { return Ok(()) };
        let template = &template;
        let mut names = names.into_iter().map(Some).chain(std::iter::repeat_n(None, more)).peekable();
        let mut running = FuturesUnordered::new();
        let (mut window, mut failure) = (1, None);
        loop {
            while running.len() < window
                && failure.is_none()
                && let Some(name) = names.next()
            {
                running.push(self.create_one(set, template, name));
            }
            match running.next().await {
                Some(Ok(())) => window = (window + 1).min(WINDOW_MAX),
                Some(Err(error)) => failure = failure.or(Some(error)),
                None => return failure.map_or(Ok(()), Err),
            }
        }
    }

    /// Creates a pod, under the name that was asked for before if one is given.
    async fn create_one(
        &self,
        set: &ReplicaSet,
        template: &Template<'_>,
        mut before: Option<Arc<str>>,
    ) -> Result<(), kube::Error> {
        let mut names = NAMES;
        loop {
            let name: Arc<str> = before.take().unwrap_or_else(|| template.name().into());
            let key = Key { namespace: set.key().namespace, name: name.clone() };
            self.in_flight.creating(set.uid(), &name);
            let mut created =
                workload::create_named(&self.client, PODS, template.namespace, &template.pod(&name)).await;
            // Among thousands of pods the same name is drawn twice now and then; or it is our own of an earlier attempt.
            if let Created::Taken(error) = created {
                created = match self.is_ours(set, &key).await {
                    Ok(true) => Created::Made(Box::default()),
                    Ok(false) => Created::Taken(error),
                    Err(error) => Created::Unknown(error),
                };
            }
            let error = match created {
                Created::Made(_) => {
                    self.event(set, false, "SuccessfulCreate", format!("Created pod: {name}"));
                    // Its event may have come before it was noted.
                    let shown = self.pods.get(&key);
                    if shown
                        .is_some_and(|pod| controller(Some(&pod.owners)).is_some_and(|owner| owner.uid == set.uid()))
                    {
                        self.in_flight.created(set.uid(), &name);
                    }
                    return Ok(());
                }
                Created::Unknown(error) => {
                    self.in_flight.unknown(set.uid(), &name);
                    return Err(error);
                }
                Created::Taken(error) | Created::Refused(error) => error,
            };
            self.in_flight.created(set.uid(), &name);
            names -= 1;
            if client::is_conflict(&error) && names > 0 {
                continue;
            }
            if !client::is_namespace_terminating(&error) {
                self.event(set, true, "FailedCreate", format!("Error creating: {error}"));
            }
            return Err(error);
        }
    }

    async fn delete(&self, set: &ReplicaSet, pods: &[Arc<Pod>]) -> Result<(), kube::Error> {
        let mut running = FuturesUnordered::new();
        let mut left = pods.iter();
        let mut failure = None;
        loop {
            while running.len() < WINDOW_MAX
                && let Some(pod) = left.next()
            {
                running.push(self.delete_one(set, pod));
            }
            match running.next().await {
                Some(outcome) => failure = failure.or(outcome.err()),
                None => return failure.map_or(Ok(()), Err),
            }
        }
    }

    async fn delete_one(&self, set: &ReplicaSet, pod: &Pod) -> Result<(), kube::Error> {
        self.in_flight.deleting(set.uid(), &pod.uid);
        let deleted = self.client.delete(PODS, &pod.key, &DeleteOptions::of(&pod.uid)).await;
        match &deleted {
            Ok(()) => self.event(set, false, "SuccessfulDelete", format!("Deleted pod: {}", pod.key.name)),
            // Perhaps it goes: until that is seen, or for a while, no other is given up for it.
            Err(error) if client::is_unknown(error) => {}
            Err(error) => {
                self.in_flight.deleted(set.uid(), &pod.uid);
                self.event(set, true, "FailedDelete", format!("Error deleting: {error}"));
            }
        }
        // The event of its end may have come before the entry above.
        if self.pods.get(&pod.key).is_none_or(|now| now.uid != pod.uid || now.deleting.is_some()) {
            self.in_flight.deleted(set.uid(), &pod.uid);
        }
        deleted
    }

    async fn write(&self, key: &Key, set: &ReplicaSet, status: &ReplicaSetStatus) -> Result<(), Error> {
        if plan::is_written(set, status) {
            return Ok(());
        }
        let count = |count: Option<i32>| count.filter(|count| *count != 0);
        let patch = json!({
            "replicas": status.replicas,
            "fullyLabeledReplicas": count(status.fully_labeled_replicas),
            "readyReplicas": count(status.ready_replicas),
            "availableReplicas": count(status.available_replicas),
            "terminatingReplicas": status.terminating_replicas,
            "observedGeneration": status.observed_generation,
            "conditions": status.conditions,
        });
        match self.client.patch_status(REPLICA_SETS, key, set.uid(), &patch).await {
            Err(error) if client::is_not_found(&error) => Ok(()),
            other => other.map(drop).map_err(Error::api("write the status of a ReplicaSet")),
        }
    }

    fn event(&self, set: &ReplicaSet, warning: bool, reason: &'static str, message: String) {
        let subject =
            Subject { api_version: "apps/v1".into(), kind: "ReplicaSet".into(), key: set.key(), uid: set.uid().into() };
        self.recorder.record(Record { subject, component: COMPONENT, warning, reason, message });
    }
}

/// The ReplicaSet that controls the pod.
fn set_of(pod: &Pod) -> Option<Key> {
    let owner = controller(Some(&pod.owners)).filter(|owner| owner.kind == "ReplicaSet")?;
    Some(Key { namespace: pod.key.namespace.clone(), name: owner.name.as_str().into() })
}

fn owner_reference(set: &ReplicaSet) -> OwnerReference {
    workload::owner_reference("apps/v1", "ReplicaSet", set.metadata.name.as_deref(), set.uid())
}
