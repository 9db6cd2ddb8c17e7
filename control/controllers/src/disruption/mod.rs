//! PodDisruptionBudgets: how many of their pods may be evicted now (the reference's disruption controller). The eviction
//! subresource of the API takes from that number and notes who goes; this controller makes it right again.
//!
//! How many pods there should be is asked of their controllers: of those that are watched here by what is known of them, of any other
//! (an operator's) by its scale.

mod plan;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use coracle_tolerant::cut;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::autoscaling::v1::ScaleSpec;
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use serde::Deserialize;
use serde_json::json;

use crate::client::{self, Client, Meta, POD_DISRUPTION_BUDGETS};
use crate::discovery::{Discovery, Kind};
use crate::error::chain;
use crate::events::{Record, Recorder, Subject};
use crate::informer::{Change, Informer, Key, Object, Pod, Store, controller};
use crate::queue::{Next, Queue, Reconciler};
use crate::replica_set::{Replication, Set as _};
use crate::{Error, now_in_seconds, selector};

/// Between reconciliations of one budget in a storm.
const SPACING: Duration = Duration::from_millis(100);
/// Nobody tells of scales that change, nor of one that can be read again.
const LOOK_AGAIN: Duration = Duration::from_secs(30);
/// Controllers of other kinds that the pods of one budget may have: each is asked.
const OTHERS_MAX: usize = 100;
const COMPONENT: &str = "controllermanager";

/// The controller of budgets.
pub(crate) struct Controller {
    client: Client,
    recorder: Recorder,
    discovery: Discovery,
    queue: Queue<Key>,
    budgets: Arc<Store<PodDisruptionBudget>>,
    pods: Arc<Store<Pod>>,
    replica_sets: Arc<Store<ReplicaSet>>,
    replications: Arc<Store<Replication>>,
    stateful_sets: Arc<Store<StatefulSet>>,
    deployments: Arc<Store<Deployment>>,
}

/// Who says how many pods there should be.
pub(crate) struct Workloads<'a> {
    pub replica_sets: &'a mut Informer<ReplicaSet>,
    pub replications: &'a mut Informer<Replication>,
    pub stateful_sets: &'a mut Informer<StatefulSet>,
    pub deployments: &'a mut Informer<Deployment>,
}

/// The scale of a controller.
#[derive(Deserialize)]
struct Scale {
    #[serde(default)]
    metadata: ObjectMeta,
    spec: Option<ScaleSpec>,
}

/// How many pods the controllers of some want.
#[derive(Debug, Default, PartialEq, Eq)]
struct Wanted {
    pods: i32,
    /// Pods that nobody controls.
    unmanaged: usize,
    /// Controllers of kinds that are not watched here.
    others: usize,
}

impl Controller {
    pub(crate) fn new(
        client: Client,
        recorder: Recorder,
        discovery: Discovery,
        budgets: &mut Informer<PodDisruptionBudget>,
        pods: &mut Informer<Pod>,
        workloads: Workloads<'_>,
    ) -> Arc<Self> {
        let Workloads { replica_sets, replications, stateful_sets, deployments } = workloads;
        let queue: Queue<Key> = Queue::new(SPACING);
        budgets.on_change({
            let queue = queue.clone();
            move |change| queue.add(&change.object().key())
        });
        pods.on_change({
            let (queue, budgets) = (queue.clone(), budgets.store());
            move |change| {
                let pod = change.object();
                let before = change.before();
                let same = |before: &Arc<Pod>| {
                    before.ready == pod.ready
                        && before.deleting == pod.deleting
                        && before.labels == pod.labels
                        && before.owners == pod.owners
                };
                if before.is_some_and(same) {
                    return;
                }
                for budget in budgets.select(&pod.key.namespace, |budget| {
                    selects(budget, pod) || before.is_some_and(|before| selects(budget, before))
                }) {
                    queue.add(&budget.key());
                }
            }
        });
        // How many pods are wanted: budgets are few, and their pods are in the same namespace.
        let all_of = |queue: &Queue<Key>, budgets: &Arc<Store<PodDisruptionBudget>>| {
            let (queue, budgets) = (queue.clone(), budgets.clone());
            move |namespace: &str| {
                for budget in budgets.select(namespace, plan::asks_controllers) {
                    queue.add(&budget.key());
                }
            }
        };
        let replicas_changed = all_of(&queue, &budgets.store());
        replica_sets.on_change(move |change| {
            let wanted = |set: &Arc<ReplicaSet>| set.spec.replicas;
            if is_new_number(change, wanted) {
                replicas_changed(&change.object().key().namespace);
            }
        });
        let replicas_changed = all_of(&queue, &budgets.store());
        replications.on_change(move |change| {
            let wanted = |set: &Arc<Replication>| set.set().spec.replicas;
            if is_new_number(change, wanted) {
                replicas_changed(&change.object().key().namespace);
            }
        });
        let replicas_changed = all_of(&queue, &budgets.store());
        stateful_sets.on_change(move |change| {
            let wanted = |set: &Arc<StatefulSet>| set.spec.replicas;
            if is_new_number(change, wanted) {
                replicas_changed(&change.object().key().namespace);
            }
        });
        let replicas_changed = all_of(&queue, &budgets.store());
        deployments.on_change(move |change| {
            let wanted = |deployment: &Arc<Deployment>| deployment.spec.replicas;
            if is_new_number(change, wanted) {
                replicas_changed(&change.object().key().namespace);
            }
        });
        Arc::new(Self {
            client,
            recorder,
            discovery,
            queue,
            budgets: budgets.store(),
            pods: pods.store(),
            replica_sets: replica_sets.store(),
            replications: replications.store(),
            stateful_sets: stateful_sets.store(),
            deployments: deployments.store(),
        })
    }
}

fn is_new_number<K>(change: &Change<'_, K>, wanted: impl Fn(&Arc<K>) -> Option<i32>) -> bool {
    change.before().is_none_or(|before| wanted(before) != wanted(change.object()))
}

/// Whether the budget is about the pod. One without a selector is about none, an empty selector means all.
fn selects(budget: &PodDisruptionBudget, pod: &Pod) -> bool {
    let selector = budget.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    selector.is_some_and(|selector| selector::matches(selector, &pod.labels))
}

impl Reconciler for Controller {
    type Key = Key;
    const NAME: &'static str = "disruption";
    const WORKERS: usize = 4;

    fn queue(&self) -> &Queue<Key> {
        &self.queue
    }

    async fn reconcile(self: Arc<Self>, key: Key) -> Result<Next, Error> {
        let Some(budget) = self.budgets.get(&key) else { return Ok(Next::OnEvent) };
        let pods = self.pods.select(&key.namespace, |pod| selects(&budget, pod));
        let pods: Vec<&Pod> = pods.iter().map(|pod| &**pod).collect();
        if pods.is_empty() {
            self.tell(&budget, false, "NoPods", "No matching pods found".to_owned());
        }
        let wanted = match plan::asks_controllers(&budget) {
            true => self.wanted(&pods).await,
            false => Ok(Wanted::default()),
        };
        let (status, again) = match wanted {
            Ok(wanted) => {
                if wanted.unmanaged > 0 {
                    self.tell(&budget, true, "UnmanagedPods", unmanaged(&budget));
                }
                let (status, again) = plan::status(&budget, &pods, wanted.pods, now_in_seconds());
                (status, again.into_iter().chain((wanted.others > 0).then_some(LOOK_AGAIN)).min())
            }
            Err(why) => {
                let message = format!("Failed to calculate the number of expected pods: {why}");
                self.tell(&budget, true, "CalculateExpectedPodCountFailed", message);
                (plan::failed(&budget, &why, now_in_seconds()), Some(LOOK_AGAIN))
            }
        };
        self.write(&budget, status).await?;
        Ok(again.map_or(Next::OnEvent, Next::After))
    }
}

impl Controller {
    /// What the controllers of the pods want, each counted once: a ReplicaSet's Deployment, or what controls the pod itself.
    async fn wanted(&self, pods: &[&Pod]) -> Result<Wanted, String> {
        let mut scales: HashMap<String, i32> = HashMap::new();
        let (mut unmanaged, mut others) = (0, 0);
        for pod in pods {
            let Some(owner) = controller(Some(&pod.owners)) else {
                unmanaged += 1;
                continue;
            };
            if scales.contains_key(&owner.uid) {
                continue;
            }
            let key = Key::new(&pod.key.namespace, &owner.name);
            let found = match is_watched(owner) {
                true => self.scale(&key, &owner.kind, &owner.uid),
                false if others >= OTHERS_MAX => {
                    return Err(format!("its pods have more than {OTHERS_MAX} controllers that are to be asked"));
                }
                false => {
                    others += 1;
                    self.ask(&key, owner).await?.map(|replicas| (owner.uid.clone(), replicas))
                }
            };
            let (uid, replicas) = found.ok_or_else(|| format!("found no controllers for pod {:?}", pod.key.name))?;
            scales.insert(uid, replicas);
        }
        let pods = scales.into_values().fold(0, i32::saturating_add);
        Ok(Wanted { pods, unmanaged, others })
    }

    /// How many pods a controller of another kind wants, by its scale; `None` if it is not there any more.
    async fn ask(&self, key: &Key, owner: &OwnerReference) -> Result<Option<i32>, String> {
        let told = |error: kube::Error| cut(&chain(&error)).to_owned();
        let found = self.discovery.find(group(owner), &owner.kind).await.map_err(told)?;
        let kind =
            found.ok_or_else(|| format!("no matches for kind {:?} in version {:?}", owner.kind, owner.api_version))?;
        let no_scale = || Err(format!("{} does not implement the scale subresource", resource(&kind)));
        if !kind.namespaced {
            return no_scale();
        }
        let path = kind.path(&key.namespace, &key.name);
        match self.client.get::<Scale>(&format!("{path}/scale")).await {
            Ok(scale) if scale.metadata.uid.as_deref() != Some(&*owner.uid) => Ok(None),
            Ok(scale) => Ok(Some(scale.spec.and_then(|spec| spec.replicas).unwrap_or(0))),
            // Itself, or its scale.
            Err(error) if client::is_not_found(&error) => match self.client.get::<Meta>(&path).await {
                Ok(_) => no_scale(),
                Err(error) if client::is_not_found(&error) => Ok(None),
                Err(error) => Err(told(error)),
            },
            Err(error) => Err(told(error)),
        }
    }

    /// How many pods this controller of one wants, or the one above it, by uid.
    fn scale(&self, key: &Key, kind: &str, uid: &str) -> Option<(String, i32)> {
        fn of<K: Object>(store: &Store<K>, key: &Key, uid: &str) -> Option<Arc<K>> {
            store.get(key).filter(|object| object.uid() == uid)
        }
        let replicas = match kind {
            "ReplicaSet" => {
                let set = of(&self.replica_sets, key, uid)?;
                let above = controller(set.metadata.owner_references.as_deref());
                if let Some(above) = above.filter(|owner| owner.kind == "Deployment") {
                    // It is asked about by its own name: sets of one Deployment share its number.
                    let deployment = of(&self.deployments, &Key::new(&key.namespace, &above.name), &above.uid)?;
                    return Some((above.uid.clone(), deployment.spec.replicas.unwrap_or(1)));
                }
                set.spec.replicas
            }
            "ReplicationController" => of(&self.replications, key, uid)?.set().spec.replicas,
            "StatefulSet" => of(&self.stateful_sets, key, uid)?.spec.replicas,
            _ => return None,
        };
        Some((uid.to_owned(), replicas.unwrap_or(1)))
    }

    async fn write(&self, budget: &PodDisruptionBudget, status: PodDisruptionBudgetStatus) -> Result<(), Error> {
        if budget.status.as_ref() == Some(&status) {
            return Ok(());
        }
        // An eviction that was granted meanwhile is not forgotten: the version decides.
        let mut wanted = json!({"metadata": {
            "uid": budget.metadata.uid, "resourceVersion": budget.metadata.resource_version,
        }, "status": status});
        if status.disrupted_pods.is_none() {
            wanted["status"]["disruptedPods"] = serde_json::Value::Null;
        } else if let Some(before) = budget.status.as_ref().and_then(|status| status.disrupted_pods.as_ref()) {
            // A merge patch takes away what is null only.
            for name in
                before.keys().filter(|name| !status.disrupted_pods.as_ref().is_some_and(|now| now.contains_key(*name)))
            {
                wanted["status"]["disruptedPods"][name] = serde_json::Value::Null;
            }
        }
        let written = self.client.patch_through_status(POD_DISRUPTION_BUDGETS, &budget.key(), &wanted).await;
        written.map(drop).map_err(Error::api("write the status of a PodDisruptionBudget"))
    }

    fn tell(&self, budget: &PodDisruptionBudget, warning: bool, reason: &'static str, message: String) {
        let (key, uid) = (budget.key(), budget.uid().into());
        let subject = Subject { api_version: "policy/v1".into(), kind: "PodDisruptionBudget".into(), key, uid };
        self.recorder.record(Record { subject, component: COMPONENT, warning, reason, message });
    }
}

/// Whether this controller sees such an object.
fn is_watched(owner: &OwnerReference) -> bool {
    matches!((group(owner), &*owner.kind), ("apps", "ReplicaSet" | "StatefulSet") | ("", "ReplicationController"))
}

fn group(owner: &OwnerReference) -> &str {
    owner.api_version.split_once('/').map_or("", |(group, _)| group)
}

/// `daemonsets.apps`
fn resource(kind: &Kind) -> String {
    match &*kind.group {
        "" => kind.plural.to_string(),
        group => format!("{}.{group}", kind.plural),
    }
}

fn unmanaged(budget: &PodDisruptionBudget) -> String {
    let selector = budget.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    let selector = selector.map(selector::printed).unwrap_or_default();
    format!(
        "Pods selected by this PodDisruptionBudget (selector: {selector}) were found to be unmanaged. As a result, the status of the \
         PDB cannot be calculated correctly, which may result in undefined behavior. To account for these pods please set \
         \".spec.minAvailable\" field of the PDB to an integer value."
    )
}
