//! PersistentVolumes and their claims: who has which, and what becomes of volumes that nobody has any more.
//!
//! [`plan`] decides. The volumes of our own class are made here as objects only: the node that keeps one makes its directory when
//! a pod first needs it, and removes it when the object goes, which waits for that ([`FINALIZER`]). A volume is deleted as its
//! policy says when its claim is gone, which is asked of the API and not of a cache. What goes wrong in between is mended by the
//! next look: every write is guarded by the version that was looked at, and a volume is named after its claim.
//!
//! [`ephemeral`] makes the claims of pods' own volumes, [`protection`] keeps claims while pods use them.

mod ephemeral;
mod plan;
mod protection;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use coracle_api::volumes::{BOUND_BY_CONTROLLER, CLAIM_PROTECTION, FINALIZER, NODE, SELECTED_NODE, VOLUME_PROTECTION};
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::time::Instant;

pub(crate) use self::ephemeral::Controller as Ephemeral;
use self::plan::{BIND_COMPLETED, Observed, Reclaim, Step, VolumeStep};
pub(crate) use self::protection::Controller as Protection;
use crate::client::{self, Client, DeleteOptions, Meta, NODES, PERSISTENT_VOLUME_CLAIMS, PERSISTENT_VOLUMES};
use crate::error::chain;
use crate::events::{Record, Recorder, Subject, Told};
use crate::informer::{Change, Index, Informer, Key, Object as _, Pod, Store};
use crate::queue::{Next, Queue, Reconciler};
use crate::workload::{self, Created};
use crate::{Error, now_in_seconds};

/// Between reconciliations of one object in a storm.
const SPACING: Duration = Duration::from_millis(20);
/// How long a node must be gone before nobody waits for its word any more; it may be replaced by one of the same name (tests do not
/// wait so long).
const QUARANTINE: Duration = if cfg!(test) { Duration::from_millis(500) } else { Duration::from_secs(40) };
/// Nodes that are not there of which it is known since when; at the bound those whose time is over are forgotten, and who asks for
/// one of them waits once more.
const MISSED_MAX: usize = 4096;
const COMPONENT: &str = "persistentvolume-controller";

/// What there is to look at.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Task {
    Claim(Key),
    /// By its name.
    Volume(Arc<str>),
}

/// The controller of volumes and claims.
pub(crate) struct Controller {
    client: Client,
    recorder: Recorder,
    queue: Queue<Task>,
    claims: Arc<Store<PersistentVolumeClaim>>,
    volumes: Arc<Store<PersistentVolume>>,
    classes: Arc<Store<StorageClass>>,
    nodes: Arc<Store<Node>>,
    pods: Arc<Store<Pod>>,
    missed: Arc<Missed>,
}

/// Nodes that were not there when they were looked for, or went, and since when: no more than [`MISSED_MAX`]. Another process that
/// leads counts anew.
#[derive(Debug, Default)]
struct Missed(Mutex<HashMap<Arc<str>, Instant>>);

impl Missed {
    fn went(&self, node: &str, now: Instant) {
        let mut all = self.0.lock();
        make_room(&mut all, node, now);
        all.insert(node.into(), now);
    }

    fn is_back(&self, node: &str) {
        self.0.lock().remove(node);
    }

    /// How long one that is not there has still to be gone until nobody waits for its word any more.
    fn rest(&self, node: &str, now: Instant) -> Duration {
        let mut all = self.0.lock();
        make_room(&mut all, node, now);
        let since = *all.entry(node.into()).or_insert(now);
        QUARANTINE.saturating_sub(now.saturating_duration_since(since))
    }
}

/// Room for one that is not known yet: forgets nodes that nobody waits for any more; all of them, where that is not enough.
fn make_room(missed: &mut HashMap<Arc<str>, Instant>, node: &str, now: Instant) {
    if missed.len() < MISSED_MAX || missed.contains_key(node) {
        return;
    }
    missed.retain(|_, since| now.saturating_duration_since(*since) < QUARANTINE);
    if missed.len() >= MISSED_MAX {
        missed.clear();
    }
}

/// The informers that it listens to, and the pods that it only looks at.
pub(crate) struct Sources<'a> {
    pub claims: &'a mut Informer<PersistentVolumeClaim>,
    pub volumes: &'a mut Informer<PersistentVolume>,
    pub classes: &'a mut Informer<StorageClass>,
    pub nodes: &'a mut Informer<Node>,
    pub pods: Arc<Store<Pod>>,
}

impl Controller {
    pub(crate) fn new(client: Client, recorder: Recorder, sources: Sources<'_>) -> Arc<Self> {
        let Sources { claims, volumes, classes, nodes, pods } = sources;
        let queue: Queue<Task> = Queue::new(SPACING);
        claims.on_change({
            let (queue, volumes) = (queue.clone(), volumes.store());
            move |change| {
                let claim = change.object();
                queue.add(&Task::Claim(claim.key()));
                if let Some(volume) = plan::named_volume(claim) {
                    queue.add(&Task::Volume(volume.into()));
                }
                if let Change::Deleted(_) = change {
                    // Those that were kept for it and that it had not named yet.
                    let kept = volumes.by(Index::Claim, &claim.key().to_string());
                    kept.iter().for_each(|volume| queue.add(&Task::Volume(volume.key().name)));
                }
            }
        });
        volumes.on_change({
            let (queue, claims) = (queue.clone(), claims.store());
            move |change| {
                let volume = change.object();
                queue.add(&Task::Volume(volume.key().name));
                match claim_of(volume) {
                    Some(claim) => queue.add(&Task::Claim(claim)),
                    // One that any of its class may have.
                    None => add_unbound(&queue, &claims, plan::class_of_volume(volume)),
                }
            }
        });
        classes.on_change({
            let (queue, claims) = (queue.clone(), claims.store());
            move |change| {
                add_unbound(&queue, &claims, &change.object().key().name);
                if plan::is_default(change.object()) {
                    add_unbound(&queue, &claims, "");
                }
            }
        });
        let missed = Arc::new(Missed::default());
        nodes.on_change({
            let (queue, claims, volumes, missed) = (queue.clone(), claims.store(), volumes.store(), missed.clone());
            move |change| {
                if let Change::Updated(..) = change {
                    return;
                }
                let node = change.object().key().name;
                for claim in claims.all() {
                    if plan::named_volume(&claim).is_none() && plan::selected_node(&claim) == Some(&*node) {
                        queue.add(&Task::Claim(claim.key()));
                    }
                }
                match change {
                    Change::Deleted(_) => {
                        missed.went(&node, Instant::now());
                        let going =
                            volumes.select("", |volume| volume.is_deleting() && node_of(volume) == Some(&*node));
                        going.iter().for_each(|volume| queue.add(&Task::Volume(volume.key().name)));
                    }
                    _ => missed.is_back(&node),
                }
            }
        });
        let (claims, volumes, classes) = (claims.store(), volumes.store(), classes.store());
        Arc::new(Self { client, recorder, queue, claims, volumes, classes, nodes: nodes.store(), pods, missed })
    }
}

/// Looks at the claims of a class that have no volume.
fn add_unbound(queue: &Queue<Task>, claims: &Store<PersistentVolumeClaim>, class: &str) {
    for claim in claims.by(Index::Unbound, class) {
        queue.add(&Task::Claim(claim.key()));
    }
}

/// By what a claim is found.
pub(crate) fn index_claim(claim: &PersistentVolumeClaim, add: &mut dyn FnMut(Index, &str)) {
    if plan::named_volume(claim).is_none() {
        add(Index::Unbound, plan::class_of(claim).unwrap_or_default());
    }
}

/// By what a volume is found.
pub(crate) fn index_volume(volume: &PersistentVolume, add: &mut dyn FnMut(Index, &str)) {
    match claim_of(volume) {
        Some(claim) => add(Index::Claim, &claim.to_string()),
        None => add(Index::Unbound, plan::class_of_volume(volume)),
    }
}

/// The claim that a volume is kept for.
pub(crate) fn claim_of(volume: &PersistentVolume) -> Option<Key> {
    let kept = volume.spec.as_ref()?.claim_ref.as_ref()?;
    Some(Key::new(kept.namespace.as_deref().unwrap_or_default(), kept.name.as_deref().unwrap_or_default()))
}

/// The node that keeps a volume.
fn node_of(volume: &PersistentVolume) -> Option<&str> {
    volume.metadata.labels.as_ref()?.get(NODE).map(String::as_str)
}

/// What is told of a step that failed: nothing where somebody else was faster, or everything goes.
fn refusal(error: &Error) -> Option<String> {
    match error {
        Error::Api { .. } if !error.is_expected() => Some(chain(error)),
        Error::Api { .. } | Error::Stale(_) | Error::Panicked => None,
    }
}

fn volume_key(name: &str) -> Key {
    Key::new("", name)
}

impl Reconciler for Controller {
    type Key = Task;
    const NAME: &'static str = "persistentvolume-binder";
    const WORKERS: usize = 8;

    fn queue(&self) -> &Queue<Task> {
        &self.queue
    }

    async fn reconcile(self: Arc<Self>, task: Task) -> Result<Next, Error> {
        match task {
            Task::Claim(key) => match self.claims.get(&key) {
                Some(claim) => self.claim(&claim).await,
                None => Ok(Next::OnEvent),
            },
            Task::Volume(name) => match self.volumes.get(&volume_key(&name)) {
                Some(volume) => self.volume(&volume).await,
                None => Ok(Next::OnEvent),
            },
        }
    }
}

impl Controller {
    async fn claim(&self, claim: &PersistentVolumeClaim) -> Result<Next, Error> {
        let key = claim.key();
        let failed = move |reason: &'static str| {
            move |error: &Error| {
                let told = refusal(error).map(|message| Told::warning(reason, message));
                self.tell_of_claim(claim, told);
            }
        };
        // Admission sees to it; one from before it did so is protected from now on.
        if !claim.is_deleting() && claim.finalizers().iter().all(|name| name != CLAIM_PROTECTION) {
            let all: Vec<&str> = claim.finalizers().iter().map(String::as_str).chain([CLAIM_PROTECTION]).collect();
            let patched = self.patch_claim(claim, json!({ "finalizers": all }), None).await;
            return patched.map(|()| Next::OnEvent).inspect_err(failed("FailedBinding"));
        }
        let class = plan::class_of(claim).and_then(|name| self.classes.get(&Key::new("", name)));
        let volume = plan::named_volume(claim).and_then(|name| self.volumes.get(&volume_key(name)));
        let unbound = plan::named_volume(claim).is_none();
        let waiting: Vec<String> = match unbound {
            true => {
                let pods = self.pods.by(Index::Claim, &key.to_string());
                pods.iter().filter(|pod| pod.node.is_none()).map(|pod| pod.key.name.to_string()).collect()
            }
            false => Vec::new(),
        };
        let default_class = self.default_class();
        let observed = Observed {
            claim,
            volume: volume.as_ref(),
            class: class.as_deref(),
            default_class: default_class.as_deref(),
            has_selected_node: match plan::selected_node(claim).filter(|_| unbound) {
                Some(node) => self.has_node(node).await?,
                None => false,
            },
            waiting: &waiting,
        };
        // Of thousands only those that it may have: what is kept for it, and what is free of its class.
        let mut volumes = Vec::new();
        if unbound {
            volumes = self.volumes.by(Index::Claim, &key.to_string());
            volumes.extend(self.volumes.by(Index::Unbound, plan::class_of(claim).unwrap_or_default()));
        }
        let step = plan::claim(&observed, &volumes);
        let reason = step.reason();
        let done = self.carry_out(claim, step).await;
        done.map(|()| Next::OnEvent).inspect_err(failed(reason))
    }

    async fn carry_out(&self, claim: &PersistentVolumeClaim, step: Step) -> Result<(), Error> {
        match step {
            Step::Nothing => {}
            Step::Pending(told) => {
                self.claim_phase(claim, "Pending").await?;
                self.tell_of_claim(claim, told);
            }
            Step::Lost(told) => {
                if self.claim_phase(claim, "Lost").await? {
                    self.tell_of_claim(claim, Some(told));
                }
            }
            Step::Bind(volume) => self.bind(&volume, claim).await?,
            Step::Provision(volume) => {
                let name = volume.metadata.name.clone().unwrap_or_default();
                match workload::create_named(&self.client, PERSISTENT_VOLUMES, "", &*volume).await {
                    Created::Made(_) => {
                        let message = format!("Successfully provisioned volume {name}");
                        self.tell_of_claim(claim, Some(Told::normal("ProvisioningSucceeded", message)));
                    }
                    // Made before, and its event is to come.
                    Created::Taken(_) => return Err(Error::Stale("a new volume is not in the cache yet")),
                    Created::Unknown(source) | Created::Refused(source) => {
                        return Err(Error::Api { what: "create a volume", source });
                    }
                }
            }
            Step::AskFor(provisioner) => {
                self.claim_phase(claim, "Pending").await?;
                let wanted = plan::WANTED_OF.map(|name| (name.to_owned(), json!(provisioner)));
                if !plan::WANTED_OF.iter().all(|name| plan::is_annotated(&claim.metadata, name)) {
                    let annotations: serde_json::Map<String, Value> = wanted.into_iter().collect();
                    self.patch_claim(claim, json!({ "annotations": annotations }), None).await?;
                }
                let message = format!(
                    "Waiting for a volume to be created either by the external provisioner '{provisioner}' or manually by the \
                     system administrator. If volume creation is delayed, please verify that the provisioner is running and \
                     correctly registered."
                );
                self.tell_of_claim(claim, Some(Told::normal("ExternalProvisioning", message)));
            }
            Step::Classify(class) => {
                self.patch_claim(claim, json!({}), Some(json!({ "storageClassName": class }))).await?;
            }
            Step::Deselect => {
                self.patch_claim(claim, json!({"annotations": {SELECTED_NODE: null}}), None).await?;
            }
            Step::Grow(volume) => self.grow(&volume, claim).await?,
        }
        Ok(())
    }

    /// The class of claims that name none, as admission finds it.
    fn default_class(&self) -> Option<Arc<str>> {
        let mut defaults = self.classes.all();
        defaults.retain(|class| plan::is_default(class));
        let age = |class: &StorageClass| class.metadata.creation_timestamp.as_ref().map(|time| time.0);
        let first = defaults.into_iter().min_by_key(|class| (Reverse(age(class)), class.key().name));
        first.map(|class| class.key().name)
    }

    /// Whether a node is there; what the cache does not show is asked for.
    async fn has_node(&self, name: &str) -> Result<bool, Error> {
        let key = Key::new("", name);
        if self.nodes.get(&key).is_some() {
            return Ok(true);
        }
        match self.client.fetch::<Meta>(NODES, &key).await {
            Ok(_) => Ok(true),
            Err(error) if client::is_not_found(&error) => Ok(false),
            Err(source) => Err(Error::Api { what: "look for a node", source }),
        }
    }

    /// Makes claim and volume each other's: the volume first, which nobody else may have then.
    async fn bind(&self, volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Result<(), Error> {
        let volume_at = volume.key();
        let kept = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
        if kept.is_none_or(|kept| kept.uid != claim.metadata.uid) {
            let annotations = match kept {
                None => json!({BOUND_BY_CONTROLLER: "yes"}),
                Some(_) => json!({}),
            };
            let patch = json!({
                "metadata": guarded(&volume.metadata, json!({ "annotations": annotations })),
                "spec": {"claimRef": plan::reference(claim)},
            });
            self.client.patch(PERSISTENT_VOLUMES, &volume_at, &patch).await.map_err(Error::api("bind a volume"))?;
        }
        if plan::phase_of(volume) != "Bound" {
            self.volume_phase(volume, "Bound", None).await?;
        }
        let by_name = plan::named_volume(claim).is_some();
        if !by_name || !plan::is_annotated(&claim.metadata, BIND_COMPLETED) {
            let mut annotations = json!({BIND_COMPLETED: "yes"});
            if !by_name {
                annotations[BOUND_BY_CONTROLLER] = json!("yes");
            }
            let spec = json!({"volumeName": &*volume_at.name});
            self.patch_claim(claim, json!({ "annotations": annotations }), Some(spec)).await?;
        }
        self.bound_status(claim, volume).await
    }

    /// What a claim has, in its status.
    async fn bound_status(&self, claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> Result<(), Error> {
        let has = volume.spec.as_ref();
        let status = json!({
            "phase": "Bound",
            "accessModes": has.and_then(|spec| spec.access_modes.as_ref()),
            "capacity": has.and_then(|spec| spec.capacity.as_ref()),
        });
        self.claim_status(claim, &status).await
    }

    /// Gives a claim what it asks for. A volume of ours has a bound and no size, so nothing else has to happen.
    async fn grow(&self, volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Result<(), Error> {
        let requests = claim.spec.as_ref().and_then(|spec| spec.resources.as_ref()?.requests.as_ref());
        let Some(size) = requests.and_then(|requests| requests.get("storage")) else { return Ok(()) };
        let patch = json!({"metadata": guarded(&volume.metadata, json!({})), "spec": {"capacity": {"storage": size}}});
        let grown = self.client.patch(PERSISTENT_VOLUMES, &volume.key(), &patch).await;
        grown.map_err(Error::api("let a volume grow"))?;
        self.claim_status(claim, &json!({"capacity": {"storage": size}})).await?;
        self.tell_of_claim(claim, Some(Told::normal("VolumeResizeSuccessful", "Resize volume succeeded")));
        Ok(())
    }

    async fn volume(&self, volume: &PersistentVolume) -> Result<Next, Error> {
        let failed = move |reason: &'static str| {
            move |error: &Error| {
                if let Some(message) = refusal(error) {
                    self.tell_of_volume(volume, Told::warning(reason, message));
                }
            }
        };
        if let Some(next) = self.ending(volume).await.inspect_err(failed("VolumeFailedDelete"))? {
            return Ok(next);
        }
        if let Some(metadata) = plan::completion(volume) {
            let patch = json!({ "metadata": guarded(&volume.metadata, metadata) });
            let patched = self.client.patch(PERSISTENT_VOLUMES, &volume.key(), &patch).await;
            // Its event comes, and the rest with it.
            let patched = patched.map(|_| Next::OnEvent).map_err(Error::api("complete a volume"));
            return patched.inspect_err(failed("FailedBinding"));
        }
        let claim = self.kept_for(volume).await?;
        let step = plan::volume(volume, claim.as_deref());
        let reason = step.reason();
        let done = self.carry_out_volume(volume, claim.as_deref(), step).await;
        done.map(|()| Next::OnEvent).inspect_err(failed(reason))
    }

    async fn carry_out_volume(
        &self,
        volume: &PersistentVolume,
        claim: Option<&PersistentVolumeClaim>,
        step: VolumeStep,
    ) -> Result<(), Error> {
        match step {
            VolumeStep::Nothing => {}
            VolumeStep::Phase(phase) => {
                self.volume_phase(volume, phase, None).await?;
            }
            VolumeStep::LeaveToClaim => {
                if let Some(claim) = claim {
                    self.mismatch(volume, claim);
                    self.queue.add(&Task::Claim(claim.key()));
                }
            }
            VolumeStep::Unbind => self.unbind(volume).await?,
            VolumeStep::Release => {
                if !matches!(plan::phase_of(volume), "Released" | "Failed") {
                    self.volume_phase(volume, "Released", None).await?;
                }
                self.reclaim(volume).await?;
            }
        }
        Ok(())
    }

    /// The claim that a volume is kept for, if it is that very one. That it is gone is asked of the API.
    async fn kept_for(&self, volume: &PersistentVolume) -> Result<Option<Arc<PersistentVolumeClaim>>, Error> {
        let Some(key) = claim_of(volume) else { return Ok(None) };
        let uid = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref()?.uid.as_deref()).unwrap_or_default();
        let is_it = |claim: &PersistentVolumeClaim| uid.is_empty() || claim.uid() == uid;
        if let Some(claim) = self.claims.get(&key).filter(|claim| is_it(claim)) {
            return Ok(Some(claim));
        }
        match self.client.fetch::<PersistentVolumeClaim>(PERSISTENT_VOLUME_CLAIMS, &key).await {
            Ok(claim) => Ok(Some(Arc::new(claim)).filter(|claim| is_it(claim))),
            Err(error) if client::is_not_found(&error) => Ok(None),
            Err(source) => Err(Error::Api { what: "look for a claim", source }),
        }
    }

    /// A volume that is being deleted: it stays while it is bound, and until its node has let go of it, or is gone itself.
    async fn ending(&self, volume: &PersistentVolume) -> Result<Option<Next>, Error> {
        let holds = |name: &str| volume.finalizers().iter().any(|finalizer| finalizer == name);
        if !volume.is_deleting() {
            return Ok(None);
        }
        if holds(VOLUME_PROTECTION) {
            // Whoever is bound may be gone: that is looked at first.
            if plan::phase_of(volume) == "Bound" {
                return Ok(None);
            }
            self.let_go(volume, VOLUME_PROTECTION).await?;
            return Ok(Some(Next::OnEvent));
        }
        if !holds(FINALIZER) {
            return Ok(None);
        }
        if let Some(node) = node_of(volume) {
            if self.has_node(node).await? {
                self.missed.is_back(node);
                return Ok(Some(Next::OnEvent));
            }
            let rest = self.missed.rest(node, Instant::now());
            if !rest.is_zero() {
                return Ok(Some(Next::After(rest)));
            }
        }
        self.let_go(volume, FINALIZER).await?;
        Ok(Some(Next::OnEvent))
    }

    async fn let_go(&self, volume: &PersistentVolume, finalizer: &str) -> Result<(), Error> {
        let left: Vec<&String> = volume.finalizers().iter().filter(|name| *name != finalizer).collect();
        let patch = json!({"metadata": guarded(&volume.metadata, json!({ "finalizers": left }))});
        let patched = self.client.patch(PERSISTENT_VOLUMES, &volume.key(), &patch).await;
        patched.map(drop).map_err(Error::api("let go of a volume"))
    }

    async fn reclaim(&self, volume: &PersistentVolume) -> Result<(), Error> {
        match plan::reclaim(volume) {
            Reclaim::Nothing => Ok(()),
            Reclaim::Delete if volume.is_deleting() => Ok(()),
            Reclaim::Delete => {
                let (key, options) = (volume.key(), DeleteOptions::of(volume.uid()));
                self.client.delete(PERSISTENT_VOLUMES, &key, &options).await.map_err(Error::api("delete a volume"))
            }
            Reclaim::Fail(told) => {
                if self.volume_phase(volume, "Failed", Some(&told.message)).await? {
                    self.tell_of_volume(volume, told);
                }
                Ok(())
            }
        }
    }

    /// Whoever was promised the volume has another one.
    async fn unbind(&self, volume: &PersistentVolume) -> Result<(), Error> {
        let patch = match plan::is_bound_by_controller(&volume.metadata) {
            true => json!({
                "metadata": guarded(&volume.metadata, json!({"annotations": {BOUND_BY_CONTROLLER: null}})),
                "spec": {"claimRef": null},
            }),
            // Who has chosen the claim meant its name.
            false => json!({
                "metadata": guarded(&volume.metadata, json!({})),
                "spec": {"claimRef": {"uid": null, "resourceVersion": null}},
            }),
        };
        let patched = self.client.patch(PERSISTENT_VOLUMES, &volume.key(), &patch).await;
        patched.map_err(Error::api("unbind a volume"))?;
        self.volume_phase(volume, "Available", None).await.map(drop)
    }

    /// A volume and a claim of different modes are never bound, and say so.
    fn mismatch(&self, volume: &PersistentVolume, claim: &PersistentVolumeClaim) {
        let mode = |mode: Option<&String>| mode.map_or("Filesystem", String::as_str).to_owned();
        let has = mode(volume.spec.as_ref().and_then(|spec| spec.volume_mode.as_ref()));
        let wants = mode(claim.spec.as_ref().and_then(|spec| spec.volume_mode.as_ref()));
        if has == wants {
            return;
        }
        let (volume_name, claim_name) = (volume.key().name, claim.key().name);
        let message = format!(
            "Cannot bind PersistentVolume to requested PersistentVolumeClaim {claim_name:?} due to incompatible volumeMode."
        );
        self.tell_of_volume(volume, Told::warning("VolumeMismatch", message));
        let message = format!(
            "Cannot bind PersistentVolume {volume_name:?} to requested PersistentVolumeClaim due to incompatible volumeMode."
        );
        self.tell_of_claim(claim, Some(Told::warning("VolumeMismatch", message)));
    }

    /// Whether it was in another phase.
    async fn volume_phase(&self, volume: &PersistentVolume, phase: &str, message: Option<&str>) -> Result<bool, Error> {
        if plan::phase_of(volume) == phase {
            return Ok(false);
        }
        let status = json!({"phase": phase, "message": message, "lastPhaseTransitionTime": Time(now_in_seconds())});
        let patched = self.client.patch_status(PERSISTENT_VOLUMES, &volume.key(), volume.uid(), &status).await;
        patched.map(|_| true).map_err(Error::api("write the status of a volume"))
    }

    /// Whether it was in another phase.
    async fn claim_phase(&self, claim: &PersistentVolumeClaim, phase: &str) -> Result<bool, Error> {
        if claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some(phase) {
            return Ok(false);
        }
        self.claim_status(claim, &json!({"phase": phase, "accessModes": null, "capacity": null})).await?;
        Ok(true)
    }

    async fn claim_status(&self, claim: &PersistentVolumeClaim, status: &Value) -> Result<(), Error> {
        let patched = self.client.patch_status(PERSISTENT_VOLUME_CLAIMS, &claim.key(), claim.uid(), status).await;
        patched.map(drop).map_err(Error::api("write the status of a claim"))
    }

    async fn patch_claim(
        &self,
        claim: &PersistentVolumeClaim,
        metadata: Value,
        spec: Option<Value>,
    ) -> Result<(), Error> {
        let mut patch = json!({ "metadata": guarded(&claim.metadata, metadata) });
        if let Some(spec) = spec {
            patch["spec"] = spec;
        }
        let patched = self.client.patch(PERSISTENT_VOLUME_CLAIMS, &claim.key(), &patch).await;
        patched.map(drop).map_err(Error::api("change a claim"))
    }

    fn tell_of_claim(&self, claim: &PersistentVolumeClaim, told: Option<Told>) {
        if let Some(told) = told {
            self.tell("PersistentVolumeClaim", claim.key(), claim.uid(), told);
        }
    }

    fn tell_of_volume(&self, volume: &PersistentVolume, told: Told) {
        self.tell("PersistentVolume", volume.key(), volume.uid(), told);
    }

    fn tell(&self, kind: &'static str, key: Key, uid: &str, told: Told) {
        let subject = Subject { api_version: "v1".into(), kind: kind.into(), key, uid: uid.into() };
        let Told { warning, reason, message } = told;
        self.recorder.record(Record { subject, component: COMPONENT, warning, reason, message });
    }
}

/// Metadata of a patch that holds for the version that was looked at, and for no other.
fn guarded(metadata: &ObjectMeta, mut patch: Value) -> Value {
    patch["uid"] = json!(metadata.uid);
    patch["resourceVersion"] = json!(metadata.resource_version);
    patch
}
