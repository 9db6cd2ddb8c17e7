//! ReplicaSets: as many pods as are wanted (kubernetes-api §20.2).
//!
//! [`plan`] decides, [`in_flight`] knows what the informer does not show yet, and this shell does it: creations go out
//! concurrently in a window that opens with success (the reference's slow start, without waiting between batches), and
//! the status is written at most once at a time per ReplicaSet, with what is known then.

mod in_flight;
mod plan;
mod rank;
mod template;
#[cfg(test)]
mod tests;

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
use crate::informer::{Change, Informer, Key, Object as _, Pod, Store, controller};
use crate::queue::{Next, Queue};
use crate::{Error, now_in_seconds, selector};

use in_flight::InFlight;
use template::Template;
pub(crate) use template::{NAME_CHARACTERS, generated_name};

/// Creations and deletions in flight per ReplicaSet.
const WINDOW_MAX: usize = 64;
/// Creations with an unknown outcome are repeated this often.
const ATTEMPTS: u32 = 4;
/// Names that are tried for one pod (as the API server does for `generateName`).
const NAMES: u32 = 8;
const COMPONENT: &str = "replicaset-controller";

/// The controller of ReplicaSets.
pub(crate) struct Controller {
    client: Client,
    recorder: Recorder,
    pub(crate) queue: Queue<Key>,
    sets: Arc<Store<ReplicaSet>>,
    pods: Arc<Store<Pod>>,
    in_flight: Arc<InFlight>,
}

impl Controller {
    /// Listens to what concerns ReplicaSets.
    pub(crate) fn new(
        client: Client,
        recorder: Recorder,
        sets: &mut Informer<ReplicaSet>,
        pods: &mut Informer<Pod>,
    ) -> Arc<Self> {
        let queue = Queue::new(Duration::from_millis(20));
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
                in_flight.seen(pod, matches!(change, Change::Deleted(_)));
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
        Arc::new(Self { client, recorder, queue, sets, pods, in_flight })
    }

    pub(crate) async fn reconcile(self: Arc<Self>, key: Key) -> Result<Next, Error> {
        let Some(set) = self.sets.get(&key) else { return Ok(Next::OnEvent) };
        let uid = set.uid();
        // Before the store: what leaves it is in the store by then.
        let (creating, deleting) = self.in_flight.of(uid);
        let owned = self.pods.controlled_by(uid);
        let orphans =
            self.pods.controlled_by("").into_iter().filter(|pod| pod.key.namespace == key.namespace).collect();
        let plan = plan::plan(&plan::Observed {
            set: &set,
            creating: plan::not_seen(creating.iter(), &owned),
            deleting: &deleting,
            owned,
            orphans,
            related: &|| self.related(&set),
            now: Timestamp::now(),
        });

        self.claim(&set, &plan).await?;
        let mut failure = None;
        let mut more = false;
        if plan.create > 0 {
            let made = self.create(&set, plan.create).await;
            more = made.is_ok() && plan.create == plan::BURST;
            failure = made.err();
        } else if !plan.delete.is_empty() {
            more = plan.delete.len() == plan::BURST;
            failure = self.delete(&set, &plan.delete).await.err();
        }
        let mut status = plan.status;
        let message =
            failure.as_ref().filter(|error| !client::is_namespace_terminating(error)).map(ToString::to_string);
        plan::set_failure(&mut status, message, plan.missing, now_in_seconds());
        self.write(&key, &set, &status).await?;
        match failure {
            // All further creations would fail as well; the namespace takes the ReplicaSet with it.
            Some(error) if client::is_namespace_terminating(&error) => Ok(Next::OnEvent),
            Some(source) => Err(Error::Api { what: "create or delete pods", source }),
            None if more => Ok(Next::Again),
            None => Ok(plan.check_after.map_or(Next::OnEvent, Next::After)),
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
            // The cache may be late: only who lives may adopt.
            let live: client::Meta =
                self.client.fetch(REPLICA_SETS, &set.key()).await.map_err(Error::api("read the ReplicaSet again"))?;
            if live.metadata.uid.as_deref() != Some(set.uid()) || live.metadata.deletion_timestamp.is_some() {
                return Err(Error::Stale("the ReplicaSet is gone"));
            }
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
        let patch = json!({"metadata": {
            "uid": &*pod.uid,
            "resourceVersion": pod.version.to_string(),
            "ownerReferences": owners,
        }});
        match self.client.patch(PODS, &pod.key, &patch).await {
            Err(error) if client::is_not_found(&error) => Ok(()),
            other => other.map(drop).map_err(Error::api(what)),
        }
    }

    async fn create(&self, set: &ReplicaSet, count: usize) -> Result<(), kube::Error> {
        let Some(template) = Template::of(set)? else { return Ok(()) };
        let template = &template;
        let mut running = FuturesUnordered::new();
        let (mut left, mut window, mut failure) = (count, 1, None);
        loop {
            while left > 0 && running.len() < window && failure.is_none() {
                left -= 1;
                running.push(self.create_one(set, template));
            }
            match running.next().await {
                Some(Ok(())) => window = (window + 1).min(WINDOW_MAX),
                Some(Err(error)) => failure = failure.or(Some(error)),
                None => return failure.map_or(Ok(()), Err),
            }
        }
    }

    async fn create_one(&self, set: &ReplicaSet, template: &Template<'_>) -> Result<(), kube::Error> {
        let mut names = NAMES;
        loop {
            let name: Arc<str> = template.name().into();
            self.in_flight.creating(set.uid(), &name);
            let error = match self.create_named(template, &name).await {
                Ok(()) => {
                    self.event(set, false, "SuccessfulCreate", format!("Created pod: {name}"));
                    return Ok(());
                }
                Err(error) => error,
            };
            self.in_flight.created(set.uid(), &name);
            names -= 1;
            // Among thousands of pods the same name is drawn twice now and then.
            if client::is_conflict(&error) && names > 0 {
                continue;
            }
            if !client::is_namespace_terminating(&error) {
                self.event(set, true, "FailedCreate", format!("Error creating: {error}"));
            }
            return Err(error);
        }
    }

    /// Creates the pod of this name; again, while nobody knows whether it was created.
    async fn create_named(&self, template: &Template<'_>, name: &str) -> Result<(), kube::Error> {
        let body = template.pod(name);
        let mut attempt = 1;
        loop {
            match self.client.create(PODS, template.namespace, &body).await {
                Err(error) if client::is_unknown(&error) && attempt < ATTEMPTS => {
                    tokio::time::sleep(Duration::from_millis(50 << attempt)).await;
                    attempt += 1;
                }
                // An earlier attempt has made it.
                Err(error) if client::is_conflict(&error) && attempt > 1 => return Ok(()),
                other => return other.map(drop),
            }
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
        match self.client.patch_status(REPLICA_SETS, key, &patch).await {
            Err(error) if client::is_not_found(&error) => Ok(()),
            other => other.map(drop).map_err(Error::api("write the status of a ReplicaSet")),
        }
    }

    fn event(&self, set: &ReplicaSet, warning: bool, reason: &'static str, message: String) {
        let subject = Subject { api_version: "apps/v1", kind: "ReplicaSet", key: set.key(), uid: set.uid().into() };
        self.recorder.record(Record { subject, component: COMPONENT, warning, reason, message });
    }
}

/// The ReplicaSet that controls the pod.
fn set_of(pod: &Pod) -> Option<Key> {
    let owner = controller(Some(&pod.owners)).filter(|owner| owner.kind == "ReplicaSet")?;
    Some(Key { namespace: pod.key.namespace.clone(), name: owner.name.as_str().into() })
}

fn owner_reference(set: &ReplicaSet) -> OwnerReference {
    OwnerReference {
        api_version: "apps/v1".to_owned(),
        kind: "ReplicaSet".to_owned(),
        name: set.metadata.name.clone().unwrap_or_default(),
        uid: set.uid().to_owned(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}
