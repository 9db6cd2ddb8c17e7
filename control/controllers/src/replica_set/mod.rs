//! ReplicaSets and ReplicationControllers: as many pods as are wanted (kubernetes-api §20.2). A ReplicationController is a
//! ReplicaSet under another name ([`Set`]), as for the reference.
//!
//! [`plan`] decides, [`InFlight`] knows what the informer does not show yet, and this shell does it: creations go out
//! concurrently in a window that opens with success, and the status is written at most once at a time per ReplicaSet, with
//! what is known then.

mod plan;
mod rank;
mod row;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetStatus};
use serde_json::json;
use serde_json::value::RawValue;

use crate::client::{self, Client};
use crate::error::chain;
use crate::events::Recorder;
use crate::informer::{Index, Informer, Key, Pod, Store};
use crate::queue::{Next, Queue, Reconciler};
use crate::workload::{self, Asked, InFlight, Owner, Pods, Settle, Template};
use crate::{Error, now_in_seconds, selector};

pub(crate) use plan::counted;
pub(crate) use row::{Replication, Set};

/// Names that are tried for one pod (as the API server does for `generateName`).
const NAMES: u32 = 8;

/// What became of creations that were in doubt.
struct Settled {
    /// Names to ask for again.
    again: Vec<Arc<str>>,
    /// Whether some turned out not to be there.
    dropped: bool,
}

/// The controller of ReplicaSets, or of ReplicationControllers.
pub(crate) struct Controller<S> {
    queue: Queue<Key>,
    sets: Arc<Store<S>>,
    pods: Pods,
    settle: Settle,
}

impl<S: Set> Controller<S> {
    /// Listens to what concerns them.
    pub(crate) fn new(
        client: Client,
        recorder: Recorder,
        sets: &mut Informer<S>,
        pods: &mut Informer<Pod>,
    ) -> Arc<Self> {
        let queue = Queue::sparing(Duration::from_millis(20));
        let in_flight = Arc::new(InFlight::default());
        sets.on_change({
            let queue = queue.clone();
            move |change| {
                let set = change.object().set();
                // Its own status needs no answer; everything else does.
                let changed = change.before().is_none_or(|before| {
                    let (old, new) = (&before.set().metadata, &set.metadata);
                    old.generation != new.generation
                        || old.deletion_timestamp != new.deletion_timestamp
                        || old.labels != new.labels
                        || before.set().status != set.status
                });
                if changed {
                    queue.add(&change.object().key());
                }
            }
        });
        workload::listen(S::ROW, &queue, &in_flight, (&mut *sets, |set| &set.set().spec.selector), pods);
        let (sets, store) = (sets.store(), pods.store());
        let pods = Pods { client, recorder, store, in_flight, row: S::ROW };
        Arc::new(Self { queue, sets, pods, settle: Settle::default() })
    }
}

impl<S: Set> Reconciler for Controller<S> {
    type Key = Key;
    const NAME: &'static str = S::NAME;
    const WORKERS: usize = 16;

    fn queue(&self) -> &Queue<Key> {
        &self.queue
    }

    async fn reconcile(self: Arc<Self>, key: Key) -> Result<Next, Error> {
        let Some(kept) = self.sets.get(&key) else { return Ok(Next::OnEvent) };
        let (set, uid) = (kept.set(), kept.uid());
        if selector::is_empty(&set.spec.selector) {
            // It would take every pod that nobody controls.
            return Ok(Next::OnEvent);
        }
        let owner = Owner { key: &key, uid };
        // Before the store: what leaves it is in the store by then.
        let flight = self.pods.in_flight.of(uid);
        let owned = self.pods.store.controlled_by(uid);
        let names: HashSet<Arc<str>> = owned.iter().map(|pod| pod.key.name.clone()).collect();
        let flight = flight.without(&names);
        let plan = plan::plan(&plan::Observed {
            set,
            creating: flight.sent.len() + flight.unknown.len(),
            deleting: &flight.deleting,
            owned,
            orphans: self.pods.store.by(Index::Orphan, &key.namespace),
            related: &|| self.related(&kept),
            now: Timestamp::now(),
        });

        self.pods.claim(owner, &plan.adopt, &plan.release).await?;
        let mut failure = None;
        let Settled { again, dropped } =
            self.settle(owner, set, &plan, flight.sent.len(), flight.unknown, &flight.overdue).await?;
        // The plan counted what turned out not to be there, and no event will tell of it.
        let mut more = dropped;
        if plan.create > 0 || !again.is_empty() {
            let made = self.create(owner, set, again, plan.create).await;
            more |= made.is_ok() && plan.create == plan::BURST;
            failure = made.err();
        } else if !plan.delete.is_empty() {
            more |= plan.delete.len() == plan::BURST;
            failure = self.pods.delete(owner, &plan.delete).await.err();
        }
        let mut status = plan.status;
        if !S::COUNTS_TERMINATING {
            status.terminating_replicas = None;
        }
        let message =
            failure.as_ref().filter(|error| !client::is_namespace_terminating(error)).map(|error| chain(error));
        plan::set_failure(&mut status, message, plan.missing, now_in_seconds());
        let grown = plan::is_growth(set, &status);
        match (failure.is_none() && grown).then(|| self.settle.wait(uid)).flatten() {
            // More comes of it, or it is written then.
            Some(wait) if !more => return Ok(Next::After(wait)),
            Some(_) => {}
            None => {
                self.settle.done(uid);
                self.write(owner, set, &status).await?;
            }
        }
        match failure {
            // All further creations would fail as well; the namespace takes the ReplicaSet with it.
            Some(error) if client::is_namespace_terminating(&error) => Ok(Next::OnEvent),
            Some(source) => Err(Error::Api { what: "create or delete pods", source }),
            None if more => Ok(Next::Again),
            None => {
                // What is asked for is looked for should it not be seen.
                let flight = self.pods.in_flight.of(uid);
                let unseen = (!flight.sent.is_empty() || !flight.deleting.is_empty()).then_some(workload::OVERDUE);
                Ok(plan.check_after.into_iter().chain(unseen).min().map_or(Next::OnEvent, Next::After))
            }
        }
    }
}

impl<S: Set> Controller<S> {
    /// Decides what becomes of creations that nobody knows the outcome of: as many as there is room for are asked for again
    /// by the same name; for the others the API is asked, as it is for those that nobody has seen.
    async fn settle(
        &self,
        owner: Owner<'_>,
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
        let mut others = unknown.split_off(unknown.len().min(room));
        others.extend_from_slice(overdue);
        let dropped = self.pods.look_for(owner, &others).await?;
        Ok(Settled { again: unknown, dropped })
    }

    /// Pods of the ReplicaSets that share this one's controller.
    fn related(&self, set: &S) -> Vec<Arc<Pod>> {
        let family = match set.controller() {
            Some(owner) => self.sets.controlled_by(owner).iter().map(|set| set.uid().to_owned()).collect(),
            None => vec![set.uid().to_owned()],
        };
        family.iter().flat_map(|uid| self.pods.store.controlled_by(uid)).collect()
    }

    /// Creates the pods of these names, and more under new ones.
    async fn create(
        &self,
        owner: Owner<'_>,
        set: &ReplicaSet,
        names: Vec<Arc<str>>,
        more: usize,
    ) -> Result<(), kube::Error> {
        let Some(template) = &set.spec.template else { return Ok(()) };
        // The specification is encoded once for all of them.
        let spec = serde_json::value::to_raw_value(&template.spec).map_err(kube::Error::SerdeError)?;
        let template = Template::of(&owner.key.name, self.pods.owner_reference(owner), template);
        let names = names.into_iter().map(Some).chain(std::iter::repeat_n(None, more));
        workload::slow_start(names.map(|name| self.create_one(owner, &template, &spec, name))).await
    }

    /// Creates a pod, under the name that was asked for before if one is given.
    async fn create_one(
        &self,
        owner: Owner<'_>,
        template: &Template<'_>,
        spec: &RawValue,
        mut before: Option<Arc<str>>,
    ) -> Result<(), kube::Error> {
        let mut names = NAMES;
        loop {
            let name: Arc<str> = before.take().unwrap_or_else(|| template.name().into());
            let error = match self.pods.ask(owner, &name, None, &template.pod(&name, spec)).await {
                Asked::Made => {
                    self.pods.event(owner, false, "SuccessfulCreate", format!("Created pod: {name}"));
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
                self.pods.event(owner, true, "FailedCreate", format!("Error creating: {}", chain(&error)));
            }
            return Err(error);
        }
    }

    async fn write(&self, owner: Owner<'_>, set: &ReplicaSet, status: &ReplicaSetStatus) -> Result<(), Error> {
        if plan::is_written(set, status) {
            return Ok(());
        }
        let count = |count: Option<i32>| count.filter(|count| *count != 0);
        let mut patch = json!({
            "replicas": status.replicas,
            "fullyLabeledReplicas": count(status.fully_labeled_replicas),
            "readyReplicas": count(status.ready_replicas),
            "availableReplicas": count(status.available_replicas),
            "observedGeneration": status.observed_generation,
            "conditions": status.conditions,
        });
        if S::COUNTS_TERMINATING {
            patch["terminatingReplicas"] = json!(status.terminating_replicas);
        }
        match self.pods.client.patch_status(S::ROW.resource, owner.key, owner.uid, &patch).await {
            Err(error) if client::is_not_found(&error) => Ok(()),
            other => other.map(drop).map_err(Error::api("write the status of a ReplicaSet")),
        }
    }
}
