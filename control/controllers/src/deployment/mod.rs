//! Deployments: one ReplicaSet per template, and the way from one to the next (kubernetes-api §20.1).
//!
//! [`plan`] decides on [`model`] and [`status`]; this shell reads, does it, and records events. Every change of a
//! ReplicaSet names the version it was decided on, so a late cache cannot undo anything.

mod model;
mod plan;
mod status;
mod template;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet, ReplicaSetSpec, ReplicaSetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use parking_lot::Mutex;
use serde_json::json;

use crate::client::{self, Client, DEPLOYMENTS, DeleteOptions, REPLICA_SETS};
use crate::error::chain;
use crate::events::{Record, Recorder, Subject};
use crate::informer::{Change, Informer, Key, Object as _, Pod, Store, controller};
use crate::queue::{Next, Queue, Reconciler};
use crate::workload::{self, Owner, Row, Settle};
use crate::{Error, now_in_seconds, replica_set, selector};

use model::{REVISION, Set};
pub(crate) use model::{Round, scaled};
use plan::{New, Observed};

const ROW: Row =
    Row { resource: DEPLOYMENTS, api_version: "apps/v1", kind: "Deployment", component: "deployment-controller" };
/// Pods of a ReplicaSet up to which they are counted for the Deployment's status without waiting for the ReplicaSet's; with more,
/// one write is not what is waited for.
const COUNTED_MAX: i32 = 64;
/// New ReplicaSets that are remembered for the words of a status.
const CREATED_MAX: usize = 4096;

/// The controller of Deployments.
pub(crate) struct Controller {
    client: Client,
    recorder: Recorder,
    queue: Queue<Key>,
    deployments: Arc<Store<Deployment>>,
    sets: Arc<Store<ReplicaSet>>,
    pods: Arc<Store<Pod>>,
    settle: Settle,
    /// ReplicaSets that were created and that no status has told of, by uid of the Deployment.
    created: Mutex<HashMap<Arc<str>, String>>,
}

impl Controller {
    /// Listens to what concerns Deployments.
    pub(crate) fn new(
        client: Client,
        recorder: Recorder,
        deployments: &mut Informer<Deployment>,
        sets: &mut Informer<ReplicaSet>,
        pods: &mut Informer<Pod>,
    ) -> Arc<Self> {
        let queue = Queue::sparing(Duration::from_millis(20));
        deployments.on_change({
            let queue = queue.clone();
            move |change| queue.add(&change.object().key())
        });
        sets.on_change({
            let (queue, deployments) = (queue.clone(), deployments.store());
            move |change| {
                let set = change.object();
                for set in change.before().into_iter().chain([set]) {
                    if let Some(owner) = deployment_of(set) {
                        queue.add(&owner);
                    }
                }
                if set.controller().is_none() && !matches!(change, Change::Deleted(_)) {
                    for deployment in selecting(&deployments, set) {
                        queue.add(&deployment.key());
                    }
                }
            }
        });
        pods.on_change({
            let (queue, deployments, sets) = (queue.clone(), deployments.store(), sets.store());
            move |change| {
                let (pod, gone) = (change.object(), matches!(change, Change::Deleted(_)));
                let changed = change
                    .before()
                    .is_none_or(|before| before.ready != pod.ready || before.is_active() != pod.is_active());
                if !changed {
                    return;
                }
                let Some(owner) = controller(Some(&pod.owners)).filter(|owner| owner.kind == "ReplicaSet") else {
                    return;
                };
                let set = Key { namespace: pod.key.namespace.clone(), name: owner.name.as_str().into() };
                let Some(set) = sets.get(&set) else { return };
                let Some(key) = deployment_of(&set) else { return };
                // `Recreate` waits for the last pod to be gone.
                let is_recreated = || {
                    let deployment = deployments.get(&key);
                    deployment.is_some_and(|it| model::Wanted::of(&it).strategy == model::Strategy::Recreate)
                };
                if is_counted(&set) || (gone && is_recreated()) {
                    queue.add(&key);
                }
            }
        });
        let (deployments, sets, pods) = (deployments.store(), sets.store(), pods.store());
        Arc::new(Self {
            client,
            recorder,
            queue,
            deployments,
            sets,
            pods,
            settle: Settle::default(),
            created: Mutex::default(),
        })
    }
}

impl Reconciler for Controller {
    type Key = Key;
    const NAME: &'static str = "deployment";
    const WORKERS: usize = 16;

    fn queue(&self) -> &Queue<Key> {
        &self.queue
    }

    async fn reconcile(self: Arc<Self>, key: Key) -> Result<Next, Error> {
        let Some(deployment) = self.deployments.get(&key) else { return Ok(Next::OnEvent) };
        let spec = &deployment.spec;
        if selector::is_empty(&spec.selector) {
            let message = "This deployment is selecting all pods. A non-empty selector is required.";
            self.event(&deployment, true, "SelectingAll", message.to_owned());
            return Ok(Next::OnEvent);
        }
        let owner = (ROW, Owner { key: &key, uid: deployment.uid() });
        let none = BTreeMap::new();
        let is_member =
            |set: &ReplicaSet| selector::matches(&spec.selector, set.metadata.labels.as_ref().unwrap_or(&none));
        let sets = (REPLICA_SETS, &*self.sets);
        let sets = workload::claim(&self.client, sets, owner, deployment.is_deleting(), is_member).await?;
        let Some(sets) = sets else { return Ok(Next::OnEvent) };
        let sets: Vec<Arc<ReplicaSet>> = sets.into_iter().map(|set| self.counted(set)).collect();
        let plan = plan::plan(&Observed {
            deployment: &deployment,
            others_run: &|current| self.others_run(&sets, current),
            sets: sets.clone(),
            created: self.created.lock().get(deployment.uid()).cloned(),
            now: now_in_seconds(),
        });

        if let Some(new) = &plan.create {
            self.create(&key, &deployment, new).await?;
            let mut created = self.created.lock();
            if created.len() >= CREATED_MAX {
                created.clear();
            }
            created.insert(deployment.uid().into(), new.name.clone());
        }
        for set in &plan.update {
            self.update(&deployment, set).await?;
        }
        for set in &plan.delete {
            let options = DeleteOptions::of(set.uid());
            self.client
                .delete(REPLICA_SETS, &set.key(), &options)
                .await
                .map_err(Error::api("delete an old ReplicaSet"))?;
        }
        if plan.revision.is_some() || plan.status.is_some() {
            if plan.is_underway
                && let Some(wait) = self.settle.wait(deployment.uid())
            {
                return Ok(Next::After(wait));
            }
            self.settle.done(deployment.uid());
            self.created.lock().remove(deployment.uid());
            self.write(&key, &deployment, plan.revision.as_deref(), plan.status.as_ref()).await?;
        }
        Ok(plan.check_after.map_or(Next::OnEvent, Next::After))
    }
}

impl Controller {
    /// The ReplicaSet as its status will be in a moment, if it is a small one whose pods come up: both statuses are written at
    /// the same time then, and who waits for the Deployment need not wait for two writes one after the other. What shrinks is
    /// told by the ReplicaSet, which knows whom it has asked to go.
    fn counted(&self, set: Arc<ReplicaSet>) -> Arc<ReplicaSet> {
        if !is_counted(&set) {
            return set;
        }
        let counted = replica_set::counted(&set, &self.pods.controlled_by(set.uid()), Timestamp::now());
        let said = set.status.clone().unwrap_or_default();
        let wanted = set.spec.replicas.unwrap_or(1);
        let ends = |status: &ReplicaSetStatus| status.terminating_replicas.unwrap_or(0);
        if counted.replicas < said.replicas || counted.replicas > wanted || ends(&counted) != ends(&said) {
            return set;
        }
        let mut seen = (*set).clone();
        let (observed_generation, conditions) = (said.observed_generation, said.conditions);
        seen.status = Some(ReplicaSetStatus { observed_generation, conditions, ..counted });
        Arc::new(seen)
    }

    /// Whether pods of other ReplicaSets than `current` have not finished yet.
    fn others_run(&self, sets: &[Arc<ReplicaSet>], current: Option<&str>) -> bool {
        let mut others = sets.iter().filter(|set| Some(set.uid()) != current);
        others.any(|set| self.pods.controlled_by(set.uid()).iter().any(|pod| !pod.is_terminal()))
    }

    async fn create(&self, key: &Key, deployment: &Deployment, new: &New) -> Result<(), Error> {
        let set = new_replica_set(deployment, new);
        let source = match self.client.create(REPLICA_SETS, &key.namespace, &set).await {
            Ok(_) => {
                if new.replicas > 0 {
                    let message = format!("Scaled up replica set {} from 0 to {}", new.name, new.replicas);
                    self.event(deployment, false, "ScalingReplicaSet", message);
                }
                return Ok(());
            }
            Err(error) => error,
        };
        if client::is_conflict(&source) {
            return self.on_name_taken(key, deployment, new).await;
        }
        if !client::is_namespace_terminating(&source) {
            let message = format!("Failed to create new replica set {:?}: {}", new.name, chain(&source));
            self.event(deployment, true, "ReplicaSetCreateError", message.clone());
            let mut status = deployment.status.clone().unwrap_or_default();
            let failed =
                status::condition(status::PROGRESSING, "False", "ReplicaSetCreateError", &message, now_in_seconds());
            status::set(status.conditions.get_or_insert_default(), failed);
            if !status::is_written(deployment, &status) {
                self.write(key, deployment, None, Some(&status)).await?;
            }
        }
        Err(Error::Api { what: "create a ReplicaSet", source })
    }

    /// The name is taken: by what we made before the cache knew, or by another template with the same hash.
    async fn on_name_taken(&self, key: &Key, deployment: &Deployment, new: &New) -> Result<(), Error> {
        let name = Key { namespace: key.namespace.clone(), name: new.name.as_str().into() };
        let taken: ReplicaSet =
            self.client.fetch(REPLICA_SETS, &name).await.map_err(Error::api("read the ReplicaSet of that name"))?;
        let ours = taken.controller() == Some(deployment.uid());
        let wanted = template::normal(&deployment.spec.template);
        let same = taken.spec.template.as_ref().is_some_and(|template| template::normal(template) == wanted);
        if ours && same {
            return Err(Error::Stale("the new ReplicaSet is not in the cache yet"));
        }
        let collisions = deployment.status.as_ref().and_then(|status| status.collision_count).unwrap_or(0);
        let patch = json!({ "collisionCount": collisions.saturating_add(1) });
        self.client
            .patch_status(DEPLOYMENTS, key, deployment.uid(), &patch)
            .await
            .map_err(Error::api("count a collision of template hashes"))?;
        Err(Error::Stale("the hash of the template is taken"))
    }

    async fn update(&self, deployment: &Deployment, set: &Set) -> Result<(), Error> {
        let (before, after) = (set.replicas_before(), set.replicas);
        let mut patch = json!({
            "metadata": {"uid": set.object.uid(), "resourceVersion": set.object.metadata.resource_version},
            "spec": {},
        });
        if !set.annotations.is_empty() {
            patch["metadata"]["annotations"] = json!(set.annotations);
        }
        if let Some(seconds) = set.min_ready_seconds {
            patch["spec"]["minReadySeconds"] = json!(seconds);
        }
        if before != after {
            patch["spec"]["replicas"] = json!(after);
        }
        self.client.patch(REPLICA_SETS, &set.object.key(), &patch).await.map_err(Error::api("change a ReplicaSet"))?;
        if before != after {
            let direction = if before < after { "up" } else { "down" };
            let message = format!("Scaled {direction} replica set {} from {before} to {after}", set.name());
            self.event(deployment, false, "ScalingReplicaSet", message);
        }
        Ok(())
    }

    /// Writes revision and status in one step, both through the subresource: neither makes a new generation.
    async fn write(
        &self,
        key: &Key,
        deployment: &Deployment,
        revision: Option<&str>,
        status: Option<&DeploymentStatus>,
    ) -> Result<(), Error> {
        let mut patch = json!({"metadata": {"uid": deployment.uid()}});
        if let Some(revision) = revision {
            patch["metadata"]["annotations"] = json!({ REVISION: revision });
        }
        if let Some(status) = status {
            patch["status"] = json!({
                "observedGeneration": status.observed_generation,
                "replicas": status.replicas,
                "updatedReplicas": status.updated_replicas,
                "readyReplicas": status.ready_replicas,
                "availableReplicas": status.available_replicas,
                "unavailableReplicas": status.unavailable_replicas,
                "terminatingReplicas": status.terminating_replicas,
                "collisionCount": status.collision_count,
                "conditions": status.conditions,
            });
        }
        match self.client.patch_through_status(DEPLOYMENTS, key, &patch).await {
            Err(error) if client::is_not_found(&error) => Ok(()),
            other => other.map(drop).map_err(Error::api("write the status of a Deployment")),
        }
    }

    fn event(&self, deployment: &Deployment, warning: bool, reason: &'static str, message: String) {
        let subject = Subject {
            api_version: ROW.api_version.into(),
            kind: ROW.kind.into(),
            key: deployment.key(),
            uid: deployment.uid().into(),
        };
        self.recorder.record(Record { subject, component: ROW.component, warning, reason, message });
    }
}

/// Whether the ReplicaSet is so small that its pods are counted here, too.
fn is_counted(set: &ReplicaSet) -> bool {
    set.spec.replicas.unwrap_or(1) <= COUNTED_MAX
}

/// The Deployment that controls the ReplicaSet.
fn deployment_of(set: &ReplicaSet) -> Option<Key> {
    let owners = set.metadata.owner_references.as_deref();
    let owner = controller(owners).filter(|owner| owner.kind == ROW.kind)?;
    Some(Key::new(set.metadata.namespace.as_deref().unwrap_or_default(), &owner.name))
}

/// Deployments that select the ReplicaSet.
fn selecting(deployments: &Store<Deployment>, set: &ReplicaSet) -> Vec<Arc<Deployment>> {
    let labels: BTreeMap<String, String> = set.metadata.labels.clone().unwrap_or_default();
    deployments.select(set.metadata.namespace.as_deref().unwrap_or_default(), |deployment| {
        !selector::is_empty(&deployment.spec.selector) && selector::matches(&deployment.spec.selector, &labels)
    })
}

fn owner_reference(deployment: &Deployment) -> OwnerReference {
    workload::owner_reference(ROW.api_version, ROW.kind, deployment.metadata.name.as_deref(), deployment.uid())
}

fn new_replica_set(deployment: &Deployment, new: &New) -> ReplicaSet {
    let spec = deployment.spec.clone();
    let hash = || (template::HASH_LABEL.to_owned(), new.hash.clone());
    let mut template = spec.template;
    let meta = template.metadata.get_or_insert_default();
    meta.labels.get_or_insert_default().extend([hash()]);
    let labels = meta.labels.clone();
    let mut selector = spec.selector;
    selector.match_labels.get_or_insert_default().extend([hash()]);
    ReplicaSet {
        metadata: ObjectMeta {
            name: Some(new.name.clone()),
            labels,
            annotations: Some(new.annotations.clone()),
            owner_references: Some(vec![owner_reference(deployment)]),
            ..ObjectMeta::default()
        },
        spec: ReplicaSetSpec {
            replicas: Some(new.replicas),
            min_ready_seconds: spec.min_ready_seconds.filter(|seconds| *seconds != 0),
            selector,
            template: Some(template),
        },
        status: None,
    }
}
