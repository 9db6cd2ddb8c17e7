//! StatefulSets: pods with names that stay, in an order (kubernetes-api §20.3).
//!
//! [`plan`] decides and [`claims`] says whose claims are; the history of templates is [`history`]'s. A pod's name is its
//! identity, so asking for it a second time finds it there: what is unknown is asked for again as it is.

mod claims;
mod plan;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet, StatefulSetStatus};
use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, PodSpec, PodTemplateSpec, Volume,
};
use serde_json::json;

use crate::client::{self, Client, PERSISTENT_VOLUME_CLAIMS, PODS, STATEFUL_SETS};
use crate::error::chain;
use crate::events::Recorder;
use crate::informer::{Informer, Key, Object as _, Pod, Store};
use crate::queue::{Next, Queue, Reconciler};
use crate::workload::history::{self, Parent, REVISION_LABEL, Step};
use crate::workload::{self, Asked, Created, InFlight, Owner, Pods, Row, Settle, Template};
use crate::{Error, selector};

use plan::{Observed, POD_INDEX_LABEL, POD_NAME_LABEL, Revision, ordinal};

const ROW: Row =
    Row { resource: STATEFUL_SETS, api_version: "apps/v1", kind: "StatefulSet", component: "statefulset-controller" };
/// Label of revisions: the hash of their content.
const HASH_LABEL: &str = "controller.kubernetes.io/hash";

/// The controller of StatefulSets.
pub(crate) struct Controller {
    queue: Queue<Key>,
    sets: Arc<Store<StatefulSet>>,
    revisions: Arc<Store<ControllerRevision>>,
    claims: Arc<Store<PersistentVolumeClaim>>,
    pods: Pods,
    settle: Settle,
}

/// The templates of a pass, by the names of their revisions.
struct Templates {
    current: (String, PodTemplateSpec),
    update: (String, PodTemplateSpec),
    collisions: i32,
}

impl Controller {
    /// Listens to what concerns StatefulSets.
    pub(crate) fn new(
        client: Client,
        recorder: Recorder,
        sets: &mut Informer<StatefulSet>,
        revisions: &mut Informer<ControllerRevision>,
        claims: &mut Informer<PersistentVolumeClaim>,
        pods: &mut Informer<Pod>,
    ) -> Arc<Self> {
        let queue = Queue::sparing(Duration::from_millis(20));
        let in_flight = Arc::new(InFlight::default());
        sets.on_change({
            let queue = queue.clone();
            move |change| queue.add(&change.object().key())
        });
        history::listen(
            ROW,
            &queue,
            revisions,
            workload::wake_selecting(&queue, &sets.store(), |set| &set.spec.selector),
        );
        // A claim that goes may hold up a pod of its name.
        claims.on_change({
            let queue = queue.clone();
            move |change| {
                let claim = change.object();
                for owner in claim.owners() {
                    let set = match owner.kind.as_str() {
                        "StatefulSet" => Some(owner.name.as_str()),
                        "Pod" => owner.name.rsplit_once('-').map(|(set, _)| set),
                        _ => None,
                    };
                    if let Some(set) = set {
                        queue.add(&Key { namespace: claim.key().namespace, name: set.into() });
                    }
                }
            }
        });
        workload::listen(ROW, &queue, &in_flight, (&mut *sets, |set| &set.spec.selector), pods);
        let store = pods.store();
        let pods = Pods { client, recorder, store, in_flight, row: ROW };
        let (sets, revisions, claims) = (sets.store(), revisions.store(), claims.store());
        Arc::new(Self { queue, sets, revisions, claims, pods, settle: Settle::default() })
    }
}

impl Reconciler for Controller {
    type Key = Key;
    const NAME: &'static str = "statefulset";
    const WORKERS: usize = 16;

    fn queue(&self) -> &Queue<Key> {
        &self.queue
    }

    async fn reconcile(self: Arc<Self>, key: Key) -> Result<Next, Error> {
        let Some(set) = self.sets.get(&key) else { return Ok(Next::OnEvent) };
        if selector::is_empty(&set.spec.selector) {
            return Ok(Next::OnEvent);
        }
        let owner = Owner { key: &key, uid: set.uid() };
        let parent = parent(&set, &key);
        let Some(revisions) = history::claim(&self.pods.client, &self.revisions, &parent).await? else {
            return Ok(Next::OnEvent);
        };
        // Before the store: what leaves it is in the store by then.
        let flight = self.pods.in_flight.of(set.uid());
        let is_member = |pod: &Pod| {
            selector::matches(&set.spec.selector, &pod.labels) && ordinal(&key.name, &pod.key.name).is_some()
        };
        let members = self.pods.members(owner, set.is_deleting(), is_member).await?;
        let Some(pods) = members else { return Ok(Next::OnEvent) };
        let templates = self.templates(&set, &parent, &revisions).await?;
        let names: HashSet<Arc<str>> = pods.iter().map(|pod| pod.key.name.clone()).collect();
        let flight = flight.without(&names);
        // What was lost is asked for again: its name says who it is.
        let lost = self.pods.look_for(owner, &flight.overdue).await?;
        let claim = |name: &str| self.claims.get(&Key { namespace: key.namespace.clone(), name: name.into() });
        let plan = plan::plan(&Observed {
            set: &set,
            pods: &pods,
            creating: &flight.sent.iter().cloned().collect(),
            deleting: &flight.deleting,
            current: &templates.current.0,
            update: &templates.update.0,
            collisions: templates.collisions,
            claim: &claim,
            now: Timestamp::now(),
        });
        // What nobody knows of is asked for again by its name, or is not wanted any more.
        let mut others = flight.unknown.clone();
        others.retain(|name| {
            let mut created = plan.create.iter();
            !ordinal(&key.name, name).is_some_and(|at| created.any(|(ordinal, _)| *ordinal == at))
        });
        self.pods.look_for(owner, &others).await?;
        for claim in &plan.foreign {
            let message = format!(
                "PersistentVolumeClaim {} has a conflicting OwnerReference that acts as a manging controller, the retention \
                 policy is ignored for this claim",
                claim.key().name
            );
            self.pods.event(owner, true, "ConflictingController", message);
        }
        let done = self.carry_out(owner, &set, &plan, &templates).await;
        let live = |revision: &ControllerRevision| {
            let name = revision.metadata.name.as_deref().unwrap_or_default();
            name == templates.current.0
                || name == templates.update.0
                || pods.iter().any(|pod| pod.labels.get(REVISION_LABEL).is_some_and(|label| label == name))
        };
        // The status before the old revisions: it names those that are in use.
        if done.is_ok()
            && plan::is_underway(&set, &plan.status)
            && let Some(wait) = self.settle.wait(set.uid())
        {
            return Ok(if plan.more || lost { Next::Again } else { Next::After(wait) });
        }
        self.settle.done(set.uid());
        self.write(&key, &set, &plan.status).await?;
        for old in history::surplus(&revisions, set.spec.revision_history_limit.unwrap_or(10), live) {
            history::delete(&self.pods.client, &old).await?;
        }
        match done {
            // All further creations would fail as well; the namespace takes the set with it.
            Err(Error::Api { source, .. }) if client::is_namespace_terminating(&source) => Ok(Next::OnEvent),
            Err(error) => Err(error),
            Ok(()) if plan.more || lost => Ok(Next::Again),
            Ok(()) => {
                // What is asked for is looked for should it not be seen.
                let flight = self.pods.in_flight.of(set.uid());
                let unseen = (!flight.sent.is_empty() || !flight.deleting.is_empty()).then_some(workload::OVERDUE);
                Ok(plan.check_after.into_iter().chain(unseen).min().map_or(Next::OnEvent, Next::After))
            }
        }
    }
}

fn parent<'a>(set: &'a StatefulSet, key: &'a Key) -> Parent<'a> {
    Parent { row: ROW, key, metadata: &set.metadata, selector: &set.spec.selector }
}

impl Controller {
    /// The templates that pods have and shall have; makes the history say so.
    async fn templates(
        &self,
        set: &StatefulSet,
        parent: &Parent<'_>,
        revisions: &[Arc<ControllerRevision>],
    ) -> Result<Templates, Error> {
        let status = set.status.as_ref();
        if set.is_deleting() {
            // Its history goes, too: what is written of it now would only be collected again.
            let name = |name: Option<&String>| (name.cloned().unwrap_or_default(), set.spec.template.clone());
            let current = name(status.and_then(|status| status.current_revision.as_ref()));
            let update = name(status.and_then(|status| status.update_revision.as_ref()));
            let collisions = status.and_then(|status| status.collision_count).unwrap_or(0);
            return Ok(Templates { current, update, collisions });
        }
        let mut collisions = status.and_then(|status| status.collision_count).unwrap_or(0);
        let content = history::content(&set.spec.template);
        let client = &self.pods.client;
        let update = match history::step(revisions, &set.spec.template, &content) {
            Step::None(revision) => revision,
            Step::Again(revision, number) => {
                history::renumber(client, &revision, number).await?;
                revision
            }
            Step::New(number) => {
                let labels = set.spec.template.metadata.as_ref().and_then(|meta| meta.labels.clone());
                let named = |collisions| {
                    let hash = history::hash(&content, Some(collisions));
                    let mut labels = labels.clone().unwrap_or_default();
                    labels.insert(HASH_LABEL.to_owned(), hash.clone());
                    (history::name(&parent.key.name, &hash), labels)
                };
                history::create(client, parent, number, &content, &mut collisions, named).await?.into()
            }
        };
        let name = |revision: &ControllerRevision| revision.metadata.name.clone().unwrap_or_default();
        let said = status.and_then(|status| status.current_revision.as_deref());
        let current = revisions.iter().find(|revision| revision.metadata.name.as_deref() == said);
        let current = match current.filter(|current| current.metadata.name != update.metadata.name) {
            Some(current) => {
                let template = history::template(current)
                    .map_err(|_| Error::Stale("the current revision does not hold a template"))?;
                (name(current), template)
            }
            None => (name(&update), set.spec.template.clone()),
        };
        Ok(Templates { current, update: (name(&update), set.spec.template.clone()), collisions })
    }

    async fn carry_out(
        &self,
        owner: Owner<'_>,
        set: &StatefulSet,
        plan: &plan::Plan,
        templates: &Templates,
    ) -> Result<(), Error> {
        for (claim, owners) in &plan.owners {
            let version = claim.metadata.resource_version.as_deref().unwrap_or_default();
            let of = (&claim.key(), claim.uid(), version);
            workload::set_owners(&self.pods.client, PERSISTENT_VOLUME_CLAIMS, of, owners, "settle who owns a claim")
                .await?;
        }
        for ordinal in &plan.claims {
            self.make_claims(owner, set, *ordinal).await?;
        }
        for pod in &plan.relabel {
            let labels = identity(&owner.key.name, &pod.key.name);
            let patch = json!({"metadata": {"uid": pod.uid, "labels": labels}});
            let patched = self.pods.client.patch(PODS, &pod.key, &patch).await;
            self.tell(owner, "Update", &pod.key.name, patched.as_ref().err());
            patched.map_err(Error::api("say by labels who a pod is"))?;
        }
        let made = plan.create.iter().map(|(ordinal, revision)| {
            let template = match revision {
                Revision::Current => &templates.current,
                Revision::Update => &templates.update,
            };
            self.create(owner, set, *ordinal, template)
        });
        let made = workload::slow_start(made).await;
        // What has ended is in nobody's way when another cannot be made; what runs stays until it can (as by the reference).
        let given_up = plan.delete.iter().filter(|pod| made.is_ok() || pod.is_terminal());
        let deleted = workload::slow_start(given_up.map(|pod| self.delete(owner, pod))).await;
        made.and(deleted.map_err(Error::api("delete pods")))
    }

    async fn create(
        &self,
        owner: Owner<'_>,
        set: &StatefulSet,
        ordinal: i32,
        (revision, template): &(String, PodTemplateSpec),
    ) -> Result<(), Error> {
        let name: Arc<str> = format!("{}-{ordinal}", owner.key.name).into();
        self.make_claims(owner, set, ordinal).await?;
        let own = template.metadata.as_ref().and_then(|meta| meta.labels.clone());
        let mut labels = own.unwrap_or_default();
        labels.extend(identity(&owner.key.name, &name));
        labels.insert(REVISION_LABEL.to_owned(), revision.clone());
        let spec = pod_spec(set, template, &name, ordinal);
        let template = Template::of(&owner.key.name, self.pods.owner_reference(owner), template);
        let source = match self.pods.ask(owner, &name, None, &template.pod_with(&name, Some(&labels), spec)).await {
            Asked::Made => {
                self.tell(owner, "Create", &name, None);
                return Ok(());
            }
            Asked::Unknown(source) => source,
            Asked::Refused(source) => {
                if !client::is_conflict(&source) && !client::is_namespace_terminating(&source) {
                    self.tell(owner, "Create", &name, Some(&source));
                }
                source
            }
        };
        Err(Error::Api { what: "create a pod", source })
    }

    /// Makes the claims of a pod that are not there.
    async fn make_claims(&self, owner: Owner<'_>, set: &StatefulSet, ordinal: i32) -> Result<(), Error> {
        for mut claim in claims::wanted(set, ordinal) {
            let name = claim.metadata.name.clone().unwrap_or_default();
            let key = Key { namespace: owner.key.namespace.clone(), name: name.as_str().into() };
            match self.claims.get(&key) {
                Some(known) if known.is_deleting() => {
                    let message = format!(
                        "Create Pod {}-{ordinal} in StatefulSet {} failed error: pvc {name} is being deleted",
                        owner.key.name, owner.key.name
                    );
                    self.pods.event(owner, true, "FailedCreate", message);
                    return Err(Error::Stale("a claim of the pod is being deleted"));
                }
                Some(_) => continue,
                None => {}
            }
            // Those of a pod that is wanted go with the set, if they go with anybody.
            let retention = claims::Retention::of(set);
            claim.metadata.owner_references = retention.ends_with_set.then(|| vec![self.pods.owner_reference(owner)]);
            let pod = format!("{}-{ordinal}", owner.key.name);
            let made =
                workload::create_named(&self.pods.client, PERSISTENT_VOLUME_CLAIMS, &owner.key.namespace, &claim).await;
            match made {
                Created::Made(_) => {
                    let message = format!("Create Claim {name} Pod {pod} in StatefulSet {} success", owner.key.name);
                    self.pods.event(owner, false, "SuccessfulCreate", message);
                }
                Created::Taken(_) => {}
                Created::Unknown(source) | Created::Refused(source) => {
                    let set = &owner.key.name;
                    let why = chain(&source);
                    let message = format!("Create Claim {name} for Pod {pod} in StatefulSet {set} failed error: {why}");
                    self.pods.event(owner, true, "FailedCreate", message);
                    return Err(Error::Api { what: "create a claim", source });
                }
            }
        }
        Ok(())
    }

    async fn delete(&self, owner: Owner<'_>, pod: &Pod) -> Result<(), kube::Error> {
        let deleted = self.pods.give_up(owner, pod).await;
        if deleted.as_ref().err().is_none_or(|error| !client::is_unknown(error)) {
            self.tell(owner, "Delete", &pod.key.name, deleted.as_ref().err());
        }
        deleted
    }

    /// An event about what was done to a pod, in the words of the reference.
    fn tell(&self, owner: Owner<'_>, verb: &'static str, pod: &str, failure: Option<&kube::Error>) {
        let set = &owner.key.name;
        let (reason, message) = match (verb, failure) {
            ("Create", None) => ("SuccessfulCreate", None),
            ("Delete", None) => ("SuccessfulDelete", None),
            (_, None) => ("SuccessfulUpdate", None),
            ("Create", Some(error)) => ("FailedCreate", Some(error)),
            ("Delete", Some(error)) => ("FailedDelete", Some(error)),
            (_, Some(error)) => ("FailedUpdate", Some(error)),
        };
        let message = match message {
            None => format!("{verb} Pod {pod} in StatefulSet {set} successful"),
            Some(error) => format!("{verb} Pod {pod} in StatefulSet {set} failed error: {}", chain(error)),
        };
        self.pods.event(owner, failure.is_some(), reason, message);
    }

    async fn write(&self, key: &Key, set: &StatefulSet, status: &StatefulSetStatus) -> Result<(), Error> {
        if plan::is_written(set, status) {
            return Ok(());
        }
        let patch = json!({
            "observedGeneration": status.observed_generation,
            "replicas": status.replicas,
            "readyReplicas": status.ready_replicas,
            "availableReplicas": status.available_replicas,
            "currentReplicas": status.current_replicas,
            "updatedReplicas": status.updated_replicas,
            "currentRevision": status.current_revision,
            "updateRevision": status.update_revision,
            "collisionCount": status.collision_count,
        });
        match self.pods.client.patch_status(STATEFUL_SETS, key, set.uid(), &patch).await {
            Err(error) if client::is_not_found(&error) => Ok(()),
            other => other.map(drop).map_err(Error::api("write the status of a StatefulSet")),
        }
    }
}

/// The labels that say who a pod is.
fn identity(set: &str, pod: &str) -> BTreeMap<String, String> {
    let index = ordinal(set, pod).map(|ordinal| (POD_INDEX_LABEL.to_owned(), ordinal.to_string()));
    [(POD_NAME_LABEL.to_owned(), pod.to_owned())].into_iter().chain(index).collect()
}

/// The specification of a pod: its name is its host's, and claims take the places of volumes of their names.
fn pod_spec(set: &StatefulSet, template: &PodTemplateSpec, pod: &str, ordinal: i32) -> PodSpec {
    let mut spec = template.spec.clone().unwrap_or_default();
    spec.hostname = Some(pod.to_owned());
    spec.subdomain = set.spec.service_name.clone().filter(|name| !name.is_empty());
    let set_name = set.metadata.name.as_deref().unwrap_or_default();
    let claims = set.spec.volume_claim_templates.iter().flatten();
    let claimed: Vec<Volume> = claims
        .map(|claim| Volume {
            name: claim.metadata.name.clone().unwrap_or_default(),
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name: claims::name(claim, set_name, ordinal),
                read_only: None,
            }),
            ..Volume::default()
        })
        .collect();
    if !claimed.is_empty() {
        let names: HashSet<String> = claimed.iter().map(|volume| volume.name.clone()).collect();
        let own = spec.volumes.take().unwrap_or_default();
        let own = own.into_iter().filter(|volume| !names.contains(&volume.name));
        spec.volumes = Some(claimed.iter().cloned().chain(own).collect());
    }
    spec
}
