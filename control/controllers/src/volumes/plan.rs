//! What becomes of a claim and of a volume, from what is known of both. No I/O.
//!
//! The rules are those of the reference's binder: a claim has the volume that is kept for it, or else the smallest that is free
//! and enough; one whose class waits for its first consumer has none before the scheduler has said where.

use std::collections::BTreeMap;
use std::sync::Arc;

use coracle_api::meta::Quantity;
use coracle_api::volumes::{
    Asked, BOUND_BY_CONTROLLER, CLASS, Claimant, FINALIZER, Fit, IS_DEFAULT, NODE, Offered, PROVISIONER, SELECTED_NODE,
    directory, fit, mismatch,
};
use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Amount;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};

use crate::events::Told;
use crate::selector;

/// Annotation of a claim that has been bound: what it is bound to does not change any more.
pub(super) const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// Annotation of a volume: who made it.
pub(super) const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
/// Annotations of a claim: who is to make its volume.
pub(super) const WANTED_OF: [&str; 2] =
    ["volume.kubernetes.io/storage-provisioner", "volume.beta.kubernetes.io/storage-provisioner"];
/// The label of nodes by which volumes are pinned.
const HOSTNAME: &str = "kubernetes.io/hostname";
/// A class of which people make the volumes.
const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";

/// What is known about a claim.
pub(super) struct Observed<'a> {
    pub claim: &'a PersistentVolumeClaim,
    /// The volume that it names.
    pub volume: Option<&'a Arc<PersistentVolume>>,
    /// Its class, if there is such a one.
    pub class: Option<&'a StorageClass>,
    /// The class of claims that name none.
    pub default_class: Option<&'a str>,
    /// Whether the selected node is there.
    pub has_selected_node: bool,
    /// Pods without a node that wait for it.
    pub waiting: &'a [String],
}

/// What is to be done about a claim.
#[derive(Debug, PartialEq)]
pub(super) enum Step {
    /// It is as it should be.
    Nothing,
    /// It has no volume, for this reason.
    Pending(Option<Told>),
    /// Its volume is gone.
    Lost(Told),
    /// It and this volume are each other's.
    Bind(Arc<PersistentVolume>),
    /// Make this volume for it.
    Provision(Box<PersistentVolume>),
    /// Somebody else is to make its volume.
    AskFor(String),
    /// It is of the default class.
    Classify(String),
    /// The scheduler is to select another node.
    Deselect,
    /// Its volume is to be as large as it asks.
    Grow(Arc<PersistentVolume>),
}

impl Step {
    /// The reason of the event when it cannot be done (the reference's `events` of volumes).
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::Provision(_) | Self::AskFor(_) | Self::Deselect => "ProvisioningFailed",
            Self::Grow(_) => "VolumeResizeFailed",
            Self::Nothing | Self::Pending(_) | Self::Lost(_) | Self::Bind(_) | Self::Classify(_) => "FailedBinding",
        }
    }
}

/// Decides about a claim; among `volumes` are all that it may have.
pub(super) fn claim(observed: &Observed<'_>, volumes: &[Arc<PersistentVolume>]) -> Step {
    let claim = observed.claim;
    if is_annotated(&claim.metadata, BIND_COMPLETED) {
        return bound(observed);
    }
    // One that goes is given nothing more.
    if claim.metadata.deletion_timestamp.is_some() {
        return Step::Nothing;
    }
    match named_volume(claim) {
        Some(name) => wanted(observed, name),
        None => unbound(observed, volumes),
    }
}

fn bound(observed: &Observed<'_>) -> Step {
    let claim = observed.claim;
    let lost = |message: &str| Step::Lost(Told::warning("ClaimLost", message));
    if named_volume(claim).is_none() {
        return lost("Bound claim has lost reference to PersistentVolume. Data on the volume is lost!");
    }
    let Some(volume) = observed.volume else {
        return lost("Bound claim has lost its PersistentVolume. Data on the volume is lost!");
    };
    let kept = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
    let is_ours = kept.is_none_or(|kept| kept.uid == claim.metadata.uid);
    match is_ours {
        false => Step::Lost(Told::warning(
            "ClaimMisbound",
            "Two claims are bound to the same volume, this one is bound incorrectly",
        )),
        true if kept.is_none() || !says_bound(claim, volume) => Step::Bind(volume.clone()),
        true if is_larger(claim, volume) => match is_local(volume) {
            true => Step::Grow(volume.clone()),
            false => Step::Nothing,
        },
        true => Step::Nothing,
    }
}

/// Whether claim and volume say that they are each other's.
fn says_bound(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> bool {
    let status = claim.status.as_ref();
    let is_told = status.and_then(|status| status.phase.as_deref()) == Some("Bound");
    let held = status.and_then(|status| status.capacity.as_ref()).and_then(|capacity| capacity.get("storage"));
    let has = volume.spec.as_ref().and_then(|spec| spec.capacity.as_ref()).and_then(|capacity| capacity.get("storage"));
    is_told && held == has
}

/// Whether a claim asks for more than its volume has.
fn is_larger(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> bool {
    asked(claim).size > offered(volume).size
}

/// A claim that names its volume, and has not been bound.
fn wanted(observed: &Observed<'_>, name: &str) -> Step {
    let Some(volume) = observed.volume else { return Step::Pending(None) };
    let (asked, offered) = (asked(observed.claim), offered(volume));
    if offered.claim.is_none() {
        return match mismatch(&asked, &offered) {
            None => Step::Bind(volume.clone()),
            Some(why) => {
                let message = format!("Cannot bind to requested volume {name:?}: {why}");
                Step::Pending(Some(Told::warning("VolumeMismatch", message)))
            }
        };
    }
    match offered.is_for(asked.claim) {
        true => Step::Bind(volume.clone()),
        false => {
            let message = format!("volume {name:?} already bound to a different claim.");
            Step::Pending(Some(Told::warning("FailedBinding", message)))
        }
    }
}

fn unbound(observed: &Observed<'_>, volumes: &[Arc<PersistentVolume>]) -> Step {
    let (claim, class) = (observed.claim, observed.class);
    let name = class_of(claim);
    if name.is_none()
        && let Some(default) = observed.default_class
    {
        return Step::Classify(default.to_owned());
    }
    let selected = selected_node(claim);
    let waits = class.is_some_and(|class| class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"));
    let is_delayed = waits && selected.is_none();
    if let Some(found) = matching(claim, volumes, is_delayed) {
        return Step::Bind(found);
    }
    if is_delayed {
        let (reason, message) = match observed.waiting {
            [] => ("WaitForFirstConsumer", "waiting for first consumer to be created before binding".to_owned()),
            [pod] => ("WaitForPodScheduled", format!("waiting for pod {pod} to be scheduled")),
            pods => ("WaitForPodScheduled", format!("waiting for pods {} to be scheduled", pods.join(","))),
        };
        return Step::Pending(Some(Told::normal(reason, message)));
    }
    let Some(name) = name.filter(|name| !name.is_empty()) else {
        let message = "no persistent volumes available for this claim and no storage class is set";
        return Step::Pending(Some(Told::normal("FailedBinding", message)));
    };
    let failed = |why: String| Step::Pending(Some(Told::warning("ProvisioningFailed", why)));
    match class.map(|class| class.provisioner.as_str()) {
        None => failed(format!("storageclass.storage.k8s.io {name:?} not found")),
        Some(NO_PROVISIONER) => failed(format!("no volume plugin matched name: {NO_PROVISIONER}")),
        Some(PROVISIONER) => match selected {
            Some(_) if !observed.has_selected_node => Step::Deselect,
            _ => match class.map(|class| provision(claim, class, selected)) {
                Some(Ok(volume)) => Step::Provision(Box::new(volume)),
                Some(Err(why)) => failed(why),
                None => Step::Nothing,
            },
        },
        Some(other) => Step::AskFor(other.to_owned()),
    }
}

/// The volume that a claim may have: the one that is kept for it, or the smallest that is free and enough, of equally large ones
/// that with the fewest access modes. Of a claim that waits for its consumer only the former.
fn matching(
    claim: &PersistentVolumeClaim,
    volumes: &[Arc<PersistentVolume>],
    is_delayed: bool,
) -> Option<Arc<PersistentVolume>> {
    let asked = asked(claim);
    let selector = claim.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    let no_labels = BTreeMap::new();
    let mut best: Option<(usize, Quantity, &Arc<PersistentVolume>)> = None;
    for volume in volumes {
        let offered = offered(volume);
        let selected = selector
            .is_none_or(|selector| selector::matches(selector, volume.metadata.labels.as_ref().unwrap_or(&no_labels)));
        match fit(&asked, &offered, selected) {
            Fit::Kept => return Some(volume.clone()),
            Fit::Free if !is_delayed => {
                let rank = (offered.access_modes.len(), offered.size);
                if best.as_ref().is_none_or(|(modes, size, _)| (rank.0, &rank.1) < (*modes, size)) {
                    best = Some((rank.0, rank.1, volume));
                }
            }
            Fit::Free | Fit::No => {}
        }
    }
    best.map(|(.., volume)| volume.clone())
}

/// The volume that is made for a claim on a node; why there cannot be one.
fn provision(
    claim: &PersistentVolumeClaim,
    class: &StorageClass,
    node: Option<&str>,
) -> Result<PersistentVolume, String> {
    let spec = claim.spec.clone().unwrap_or_default();
    let refuse = |why: &str| Err(format!("{PROVISIONER}: {why}"));
    let Some(node) = node else {
        return refuse(
            "a volume is kept by the node of the first pod: the class needs volumeBindingMode WaitForFirstConsumer",
        );
    };
    if let Some(name) = class.parameters.iter().flatten().map(|(name, _)| name).next() {
        return Err(format!("{PROVISIONER}: the class has a parameter {name:?}, and there is none"));
    }
    if class.mount_options.as_ref().is_some_and(|options| !options.is_empty()) {
        return refuse("the class has mountOptions, and nothing is mounted");
    }
    if spec.volume_mode.as_deref() == Some("Block") {
        return refuse("a component has no block devices: the claim needs volumeMode Filesystem");
    }
    if spec.data_source.is_some() || spec.data_source_ref.is_some() {
        return refuse("a new volume is empty; it cannot be filled from dataSource");
    }
    if spec.selector.is_some() {
        return refuse("a claim with a selector gets a volume that is there, and none is made for it");
    }
    if spec.volume_attributes_class_name.as_ref().is_some_and(|class| !class.is_empty()) {
        return refuse("volumes have no attributes; the claim names a VolumeAttributesClass");
    }
    if spec.access_modes.iter().flatten().any(|mode| mode == "ReadWriteMany") {
        return refuse(
            "a volume is on one node: ReadWriteMany cannot be had, ReadWriteOnce is shared by the pods of its node",
        );
    }
    let uid = claim.metadata.uid.as_deref().unwrap_or_default();
    let name = format!("pvc-{uid}");
    let size = spec.resources.and_then(|resources| resources.requests).unwrap_or_default().remove("storage");
    let volume = json!({
        "metadata": {
            "name": name,
            "annotations": {PROVISIONED_BY: PROVISIONER},
            "labels": {NODE: node},
            "finalizers": [FINALIZER],
        },
        "spec": {
            "accessModes": spec.access_modes,
            "capacity": {"storage": size},
            "claimRef": reference(claim),
            "local": {"path": format!("volumes/{name}")},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [
                {"matchExpressions": [{"key": HOSTNAME, "operator": "In", "values": [node]}]},
            ]}},
            "persistentVolumeReclaimPolicy": class.reclaim_policy.as_deref().unwrap_or("Delete"),
            "storageClassName": class.metadata.name,
            "volumeMode": "Filesystem",
        },
    });
    serde_json::from_value(volume).map_err(|error| error.to_string())
}

/// What is to be done about a volume whose claim is known.
#[derive(Debug, PartialEq)]
pub(super) enum VolumeStep {
    Nothing,
    /// It is in this phase.
    Phase(&'static str),
    /// Its claim binds it.
    LeaveToClaim,
    /// It is kept for a claim that has another: it is free again.
    Unbind,
    /// Its claim is gone.
    Release,
}

impl VolumeStep {
    /// The reason of the event when it cannot be done.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::Release => "VolumeFailedDelete",
            Self::Nothing | Self::Phase(_) | Self::LeaveToClaim | Self::Unbind => "FailedBinding",
        }
    }
}

/// Decides about a volume; `claim` is that of its `claimRef`, if it is that very one.
pub(super) fn volume(volume: &PersistentVolume, claim: Option<&PersistentVolumeClaim>) -> VolumeStep {
    let reach = |phase: &'static str| match phase_of(volume) == phase {
        true => VolumeStep::Nothing,
        false => VolumeStep::Phase(phase),
    };
    let Some(kept) = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref()) else { return reach("Available") };
    if kept.uid.as_deref().unwrap_or_default().is_empty() {
        return match claim {
            Some(_) => VolumeStep::LeaveToClaim,
            None => reach("Available"),
        };
    }
    match claim.map(named_volume) {
        None => VolumeStep::Release,
        Some(None) => VolumeStep::LeaveToClaim,
        Some(Some(name)) if Some(name) == volume.metadata.name.as_deref() => reach("Bound"),
        // One that was made for the claim is of no use to another.
        Some(Some(_)) if is_annotated(&volume.metadata, PROVISIONED_BY) && policy(volume) == "Delete" => {
            VolumeStep::Release
        }
        Some(Some(_)) => VolumeStep::Unbind,
    }
}

/// What is done with a volume that is released.
#[derive(Debug, PartialEq)]
pub(super) enum Reclaim {
    /// It stays as it is: it is retained, or somebody else deletes it.
    Nothing,
    /// It is deleted.
    Delete,
    /// It cannot be.
    Fail(Told),
}

/// What a volume's policy asks for.
pub(super) fn reclaim(volume: &PersistentVolume) -> Reclaim {
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    match policy(volume) {
        "Delete" if is_local(volume) => Reclaim::Delete,
        // Who made it deletes it.
        "Delete" if is_annotated(&volume.metadata, PROVISIONED_BY) => Reclaim::Nothing,
        "Delete" => {
            let why = "no deletable volume plugin matched";
            let message = format!("error getting deleter volume plugin for volume {name:?}: {why}");
            Reclaim::Fail(Told::warning("VolumeFailedDelete", message))
        }
        "Recycle" => Reclaim::Fail(Told::warning("VolumeFailedRecycle", "No recycler plugin found for the volume!")),
        "Retain" | "" => Reclaim::Nothing,
        _ => Reclaim::Fail(Told::warning(
            "VolumeUnknownReclaimPolicy",
            "Volume has unrecognized PersistentVolumeReclaimPolicy",
        )),
    }
}

/// What a volume that a node keeps lacks of what that node must know of it: its node, and that it has a word in its end.
pub(super) fn completion(volume: &PersistentVolume) -> Option<Value> {
    if !is_local(volume) || volume.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let node = pinned(volume)?;
    let labels = volume.metadata.labels.as_ref();
    let finalizers = volume.metadata.finalizers.as_deref().unwrap_or_default();
    let has_label = labels.and_then(|labels| labels.get(NODE)).is_some_and(|label| label == node);
    if has_label && finalizers.iter().any(|name| name == FINALIZER) {
        return None;
    }
    let mut finalizers = finalizers.to_vec();
    finalizers.retain(|name| name != FINALIZER);
    finalizers.push(FINALIZER.to_owned());
    Some(json!({"labels": {NODE: node}, "finalizers": finalizers}))
}

/// The node that a volume is pinned to by its name, as local ones are.
pub(super) fn pinned(volume: &PersistentVolume) -> Option<&str> {
    let affinity = volume.spec.as_ref()?.node_affinity.as_ref()?.required.as_ref()?;
    let [term] = affinity.node_selector_terms.as_slice() else { return None };
    let mut named = term.match_expressions.iter().flatten().filter(|it| it.key == HOSTNAME && it.operator == "In");
    match named.next()?.values.as_deref()? {
        [name] => Some(name),
        _ => None,
    }
}

/// Whether nodes keep the volume.
pub(super) fn is_local(volume: &PersistentVolume) -> bool {
    let local = volume.spec.as_ref().and_then(|spec| spec.local.as_ref());
    local.is_some_and(|local| directory(&local.path).is_some())
}

pub(super) fn policy(volume: &PersistentVolume) -> &str {
    let spec = volume.spec.as_ref();
    spec.and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref()).unwrap_or_default()
}

pub(super) fn phase_of(volume: &PersistentVolume) -> &str {
    volume.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

/// The volume that a claim names.
pub(super) fn named_volume(claim: &PersistentVolumeClaim) -> Option<&str> {
    claim.spec.as_ref()?.volume_name.as_deref().filter(|name| !name.is_empty())
}

/// The class of a claim; one that says so has none.
pub(super) fn class_of(claim: &PersistentVolumeClaim) -> Option<&str> {
    annotation(&claim.metadata, CLASS).or_else(|| claim.spec.as_ref()?.storage_class_name.as_deref())
}

/// The class of a volume; empty for none.
pub(super) fn class_of_volume(volume: &PersistentVolume) -> &str {
    let class = annotation(&volume.metadata, CLASS);
    class.or_else(|| volume.spec.as_ref()?.storage_class_name.as_deref()).unwrap_or_default()
}

pub(super) fn selected_node(claim: &PersistentVolumeClaim) -> Option<&str> {
    annotation(&claim.metadata, SELECTED_NODE).filter(|node| !node.is_empty())
}

/// Whether this class is that of claims that name none.
pub(super) fn is_default(class: &StorageClass) -> bool {
    [IS_DEFAULT, "storageclass.beta.kubernetes.io/is-default-class"]
        .iter()
        .any(|name| annotation(&class.metadata, name) == Some("true"))
}

pub(super) fn is_annotated(metadata: &ObjectMeta, name: &str) -> bool {
    annotation(metadata, name).is_some()
}

fn annotation<'a>(metadata: &'a ObjectMeta, name: &str) -> Option<&'a str> {
    metadata.annotations.as_ref()?.get(name).map(String::as_str)
}

/// As a volume names its claim.
pub(super) fn reference(claim: &PersistentVolumeClaim) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("PersistentVolumeClaim".to_owned()),
        namespace: claim.metadata.namespace.clone(),
        name: claim.metadata.name.clone(),
        uid: claim.metadata.uid.clone(),
        resource_version: claim.metadata.resource_version.clone(),
        ..ObjectReference::default()
    }
}

/// How much. Validation lets no amount in that cannot be read.
fn size(amount: Option<&Amount>) -> Quantity {
    amount.and_then(|amount| Quantity::parse(&amount.0).ok()).unwrap_or(Quantity::ZERO)
}

fn asked(claim: &PersistentVolumeClaim) -> Asked<'_> {
    let spec = claim.spec.as_ref();
    let requests = spec.and_then(|spec| spec.resources.as_ref()).and_then(|resources| resources.requests.as_ref());
    Asked {
        claim: Claimant {
            namespace: claim.metadata.namespace.as_deref().unwrap_or_default(),
            name: claim.metadata.name.as_deref().unwrap_or_default(),
            uid: claim.metadata.uid.as_deref().unwrap_or_default(),
        },
        size: size(requests.and_then(|requests| requests.get("storage"))),
        access_modes: spec.and_then(|spec| spec.access_modes.as_deref()).unwrap_or_default(),
        class: class_of(claim).unwrap_or_default(),
        volume_mode: spec.and_then(|spec| spec.volume_mode.as_deref()).unwrap_or("Filesystem"),
        attributes_class: spec.and_then(|spec| spec.volume_attributes_class_name.as_deref()).unwrap_or_default(),
    }
}

fn offered(volume: &PersistentVolume) -> Offered<'_> {
    let spec = volume.spec.as_ref();
    let kept = spec.and_then(|spec| spec.claim_ref.as_ref());
    let capacity = spec.and_then(|spec| spec.capacity.as_ref());
    Offered {
        claim: kept.map(|kept| Claimant {
            namespace: kept.namespace.as_deref().unwrap_or_default(),
            name: kept.name.as_deref().unwrap_or_default(),
            uid: kept.uid.as_deref().unwrap_or_default(),
        }),
        size: size(capacity.and_then(|capacity| capacity.get("storage"))),
        access_modes: spec.and_then(|spec| spec.access_modes.as_deref()).unwrap_or_default(),
        class: class_of_volume(volume),
        volume_mode: spec.and_then(|spec| spec.volume_mode.as_deref()).unwrap_or("Filesystem"),
        attributes_class: spec.and_then(|spec| spec.volume_attributes_class_name.as_deref()).unwrap_or_default(),
        is_available: phase_of(volume) == "Available",
        is_deleting: volume.metadata.deletion_timestamp.is_some(),
    }
}

/// Whether a controller has bound the volume or claim to the other, and not who made it.
pub(super) fn is_bound_by_controller(metadata: &ObjectMeta) -> bool {
    is_annotated(metadata, BOUND_BY_CONTROLLER)
}
