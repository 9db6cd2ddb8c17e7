//! A volume that can be bound.

use serde_json::Value;

use super::{claim, pending};
use crate::kinds::value::{Read, child, default_to, default_when_zero, items_mut, remove};
use crate::kinds::{FieldError, FieldErrors, checks, internal, pod};
use crate::meta::Quantity;
use crate::meta::field::{Path, Printed};
use crate::volumes::directory;

const SPEC: Path<'static> = Path::new("spec");
/// What a volume has beside its type.
const NOT_SOURCE: [&str; 9] = [
    "accessModes",
    "capacity",
    "claimRef",
    "mountOptions",
    "nodeAffinity",
    "persistentVolumeReclaimPolicy",
    "storageClassName",
    "volumeAttributesClassName",
    "volumeMode",
];

pub(super) fn default(object: &mut Value) {
    let spec = child(object, "spec");
    default_when_zero(spec, "persistentVolumeReclaimPolicy", "Retain");
    default_to(spec, "volumeMode", "Filesystem");
    if spec["hostPath"].is_object() {
        default_to(child(spec, "hostPath"), "type", "");
    }
    if spec["azureDisk"].is_object() {
        default_to(child(spec, "azureDisk"), "readOnly", false);
    }
    default_when_zero(child(object, "status"), "phase", "Pending");
}

/// A new volume is in its phase since it is there.
pub(super) fn create(object: &mut Value) {
    pending(object);
    let made = object["metadata"]["creationTimestamp"].clone();
    default_to(child(object, "status"), "lastPhaseTransitionTime", made);
}

/// `ValidatePersistentVolumeSpec` of a volume of its own.
pub(super) fn check(spec: &Value, name: &str, errors: &mut FieldErrors) {
    checks::required(&SPEC.child("accessModes"), &spec["accessModes"], errors);
    pod::access_modes(spec["accessModes"].items(), &SPEC.child("accessModes"), errors);
    let (capacity, path) = (&spec["capacity"], SPEC.child("capacity"));
    checks::required(&path, capacity, errors);
    if capacity["storage"].is_null() || capacity.count() > 1 {
        errors.push(FieldError::not_supported(path, capacity, &["storage"]));
    }
    for (name, amount) in capacity.entries() {
        let path = path.key(name);
        claim::valid_amount(&path, amount, errors);
        if let Some(amount) = Quantity::from_json(amount).ok().filter(|amount| amount.signum() <= 0) {
            errors.push(FieldError::invalid(path, amount.to_string(), "must be greater than zero"));
        }
    }
    let policy = &spec["persistentVolumeReclaimPolicy"];
    if !policy.is_empty() {
        let path = SPEC.child("persistentVolumeReclaimPolicy");
        checks::supported(&path, policy, &["Delete", "Recycle", "Retain"], errors);
    }
    if spec["nodeAffinity"].is_set() {
        let (required, path) = (&spec["nodeAffinity"]["required"], SPEC.child("nodeAffinity"));
        match required.is_set() {
            true => pod::node_selector(required, &path.child("required"), errors),
            false => {
                errors.push(FieldError::required(path.child("required"), "must specify required node constraints"));
            }
        }
    }
    pod::persistent_source(spec, name, &SPEC, errors);
    if policy == "Recycle" && is_root(spec["hostPath"]["path"].text()) {
        let detail = "may not be 'recycle' for a hostPath mount of '/'";
        errors.push(FieldError::forbidden("spec.persistentVolumeReclaimPolicy", detail));
    }
    if !spec["storageClassName"].is_empty() {
        checks::dns_subdomain(&SPEC.child("storageClassName"), spec["storageClassName"].text(), errors);
    }
    if spec["volumeMode"].is_set() {
        checks::supported(&SPEC.child("volumeMode"), &spec["volumeMode"], &["Block", "Filesystem"], errors);
    }
    if let Some(class) = spec["volumeAttributesClassName"].as_str() {
        let path = SPEC.child("volumeAttributesClassName");
        match class {
            "" => errors.push(FieldError::required(path, "an empty string is disallowed")),
            class => checks::dns_subdomain(&path, class, errors),
        }
        if spec["csi"].is_null() {
            let detail = "has to be specified when using volumeAttributesClassName";
            errors.push(FieldError::required("spec.csi", detail));
        }
    }
}

/// Whether a path is the root, however it is written.
fn is_root(path: &str) -> bool {
    let mut depth = 0_usize;
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => depth = depth.saturating_sub(1),
            _ => depth += 1,
        }
    }
    path.starts_with('/') && depth == 0
}

/// What a volume is never changes, but that a secret to grow it may be named later.
pub(super) fn check_change(object: &Value, old: &Value, errors: &mut FieldErrors) {
    let (new_spec, old_spec) = (&object["spec"], &old["spec"]);
    let [mut new_source, old_source] = [new_spec, old_spec].map(|spec| {
        let mut source = spec.clone();
        NOT_SOURCE.iter().for_each(|field| remove(&mut source, field));
        source
    });
    if old_source["csi"].is_set()
        && old_source["csi"]["controllerExpandSecretRef"].is_null()
        && new_source["csi"].is_object()
    {
        remove(child(&mut new_source, "csi"), "controllerExpandSecretRef");
    }
    if new_source != old_source {
        let difference = pod::structure_difference("PersistentVolumeSource", &old_source, &new_source);
        let detail = format!("spec.persistentvolumesource is immutable after creation\n{difference}");
        errors.push(FieldError::forbidden("spec.persistentvolumesource", &detail));
    }
    check_affinity_change(&new_spec["nodeAffinity"], &old_spec["nodeAffinity"], errors);
    checks::immutable(&Path::new("volumeMode"), &new_spec["volumeMode"], &old_spec["volumeMode"], errors);
    let class = "volumeAttributesClassName";
    if old_spec[class].is_set() && new_spec[class].is_null() {
        let detail = "update from non-nil value to nil is forbidden";
        errors.push(FieldError::forbidden("spec.volumeAttributesClassName", detail));
    }
}

/// Labels of nodes by their older names, and by their names now.
const RENAMED: [(&str, &str); 5] = [
    ("beta.kubernetes.io/arch", "kubernetes.io/arch"),
    ("beta.kubernetes.io/instance-type", "node.kubernetes.io/instance-type"),
    ("beta.kubernetes.io/os", "kubernetes.io/os"),
    ("failure-domain.beta.kubernetes.io/region", "topology.kubernetes.io/region"),
    ("failure-domain.beta.kubernetes.io/zone", "topology.kubernetes.io/zone"),
];

/// From where a volume is reached never changes once it is said, but that labels may be called by their newer names.
fn check_affinity_change(new: &Value, old: &Value, errors: &mut FieldErrors) {
    let renewed = || {
        let mut affinity = old.clone();
        for term in items_mut(child(&mut affinity, "required"), "nodeSelectorTerms") {
            for expression in items_mut(term, "matchExpressions") {
                let newer = RENAMED.iter().find(|(older, _)| expression["key"] == *older);
                if let Some((_, newer)) = newer {
                    expression["key"] = (*newer).into();
                }
            }
        }
        affinity
    };
    if old.is_null() || new == old || *new == renewed() {
        return;
    }
    let shown = if new.is_null() { "null".to_owned() } else { internal::text("VolumeNodeAffinity", new) };
    let detail = "field is immutable, except for updating from beta label to GA";
    errors.push(FieldError::invalid("nodeAffinity", Printed(&shown), detail));
}

pub(super) fn warn(object: &Value) -> Vec<String> {
    let (note, spec) = (&object["metadata"]["annotations"][claim::OLD_CLASS], &object["spec"]);
    let mut warnings = Vec::new();
    if note.is_string() {
        let words = "deprecated since v1.8; use \"storageClassName\" attribute instead";
        warnings.push(format!("metadata.annotations[{}]: {words}", claim::OLD_CLASS));
    }
    if object["metadata"]["annotations"]["volume.beta.kubernetes.io/mount-options"].is_string() {
        warnings.push(
            "metadata.annotations[volume.beta.kubernetes.io/mount-options]: deprecated since v1.31; use \"mountOptions\" \
             attribute instead"
                .to_owned(),
        );
    }
    if spec["persistentVolumeReclaimPolicy"] == "Recycle" {
        warnings.push(
            "spec.persistentVolumeReclaimPolicy: The Recycle reclaim policy is deprecated. Instead, the recommended \
             approach is to use dynamic provisioning."
                .to_owned(),
        );
    }
    let terms = Path::new("spec.nodeAffinity.required.nodeSelectorTerms");
    for (index, term) in spec["nodeAffinity"]["required"]["nodeSelectorTerms"].items().iter().enumerate() {
        pod::node_term_warnings(term, false, &terms.index(index), &mut warnings);
    }
    let gone = [
        ("cephfs", "cephfs", "v1.28", "v1.31"),
        ("photonPersistentDisk", "photonPersistentDisk", "v1.11", "v1.16"),
        ("scaleIO", "scaleIO", "v1.16", "v1.22"),
        ("storageos", "storageOS", "v1.22", "v1.25"),
        ("glusterfs", "glusterfs", "v1.25", "v1.26"),
        ("rbd", "rbd", "v1.28", "v1.31"),
    ];
    for (_, shown, since, until) in gone.into_iter().filter(|(field, ..)| spec[*field].is_set()) {
        warnings.push(format!("spec.{shown}: deprecated in {since}, non-functional in {until}+"));
    }
    warnings
}

/// What is said of a volume that no node gives to a pod.
pub(super) fn warn_unused(object: &Value, old: Option<&Value>) -> Vec<String> {
    const WORDS: &str = "this version of Coracle binds the volume, but its nodes give pods only those whose spec.local.path is \
                         volumes/NAME, a directory beneath their data directory";
    let spec = &object["spec"];
    if old.is_some_and(|old| old["spec"] == *spec) || directory(spec["local"]["path"].text()).is_some() {
        return Vec::new();
    }
    let mut sources = spec.entries().map(|(field, _)| field.as_str()).filter(|field| !NOT_SOURCE.contains(field));
    sources.next().map(|source| format!("spec.{source}: {WORDS}")).into_iter().collect()
}
