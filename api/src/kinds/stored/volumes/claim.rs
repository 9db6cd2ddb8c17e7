//! What is asked of a volume.

use std::borrow::Cow;

use serde_json::{Value, json};

use super::pending;
use crate::kinds::value::{Read, child, default_to, default_when_zero, fields, remove};
use crate::kinds::{FieldError, FieldErrors, checks, pod};
use crate::meta::field::Path;
use crate::meta::text::quote;
use crate::meta::{Quantity, names};

const SPEC: Path<'static> = Path::new("spec");
const STORAGE: &str = "spec.resources.requests.storage";
pub(super) const OLD_CLASS: &str = "volume.beta.kubernetes.io/storage-class";

pub(super) fn default(object: &mut Value) {
    default_to(child(object, "spec"), "volumeMode", "Filesystem");
    default_when_zero(child(object, "status"), "phase", "Pending");
}

pub(super) fn create(object: &mut Value) {
    sources(object, None);
    pending(object);
}

pub(super) fn change(object: &mut Value, old: &Value) {
    sources(object, Some(old));
}

/// The old and the new way to say what a volume is filled from say the same. What only the new one can say, the old one is
/// not heard about (KEP 1495); and another namespace's is not asked for, a feature that is off.
fn sources(object: &mut Value, old: Option<&Value>) {
    let had = |field: &str| old.is_some_and(|old| old["spec"][field].is_set());
    let spec = child(object, "spec");
    if !spec["dataSourceRef"]["namespace"].is_empty() && !had("dataSourceRef") {
        remove(spec, "dataSourceRef");
    }
    let source = &spec["dataSource"];
    let is_known = matches!(
        (source["apiGroup"].text(), source["kind"].text()),
        ("", "PersistentVolumeClaim") | ("snapshot.storage.k8s.io", "VolumeSnapshot")
    );
    if !had("dataSource") && !had("dataSourceRef") && spec["dataSourceRef"].is_null() && !is_known {
        remove(spec, "dataSource");
    }
    let copy = |from: &Value| json!({"apiGroup": from["apiGroup"], "kind": from["kind"], "name": from["name"]});
    match (spec["dataSource"].is_set(), spec["dataSourceRef"].is_set()) {
        (true, false) => spec["dataSourceRef"] = copy(&spec["dataSource"]),
        (false, true) if spec["dataSourceRef"]["namespace"].is_empty() => {
            spec["dataSource"] = copy(&spec["dataSourceRef"]);
        }
        _ => {}
    }
}

pub(super) fn check(object: &Value, errors: &mut FieldErrors) {
    pod::claim_spec(&object["spec"], &SPEC, errors);
}

/// A bound claim may grow and have other attributes; nothing else changes but who is bound (`ValidatePersistentVolumeClaimUpdate`).
pub(super) fn check_change(object: &Value, old: &Value, errors: &mut FieldErrors) {
    let (mut new_spec, mut old_spec) = (object["spec"].clone(), old["spec"].clone());
    if old_spec["volumeName"].is_empty() {
        take(&mut old_spec, &new_spec, "volumeName");
    }
    let annotation = |object: &Value| object["metadata"]["annotations"][OLD_CLASS].as_str().map(str::to_owned);
    let (new_note, old_note) = (annotation(object), annotation(old));
    let (new_class, old_class) = (new_spec["storageClassName"].as_str(), old_spec["storageClassName"].as_str());
    // The class may move from the annotation to its field.
    let moves = old_note.is_some()
        && old_class.is_none()
        && new_class == old_note.as_deref()
        && (new_note.is_none() || new_note == old_note);
    // And be said when it was not.
    let is_given =
        old_class.is_none() && new_class.is_some() && old_note.as_deref().is_none_or(|note| new_class == Some(note));
    if !moves && new_note != old_note {
        let (note, path) = (new_note.unwrap_or_default(), format!("metadata.annotations.{OLD_CLASS}"));
        errors.push(FieldError::invalid(path, note.as_str(), "field is immutable"));
    }
    if moves || is_given {
        take(&mut new_spec, &old_spec, "storageClassName");
    }
    if object["status"]["phase"] == "Bound" {
        if new_spec["resources"]["requests"].is_object() {
            let size = old_spec["resources"]["requests"]["storage"].clone();
            new_spec["resources"]["requests"]["storage"] = size;
        }
        take(&mut new_spec, &old_spec, "volumeAttributesClassName");
    }
    if new_spec != old_spec {
        let difference = pod::structure_difference("PersistentVolumeClaimSpec", &old_spec, &new_spec);
        let detail = format!(
            "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims\n\
             {difference}"
        );
        errors.push(FieldError::forbidden(SPEC, &detail));
    }
    let size = |value: &Value| Quantity::from_json(value).ok();
    let storage = |object: &Value| size(&object["spec"]["resources"]["requests"]["storage"]);
    if storage(object) < storage(old) && storage(object) <= size(&old["status"]["capacity"]["storage"]) {
        errors.push(FieldError::forbidden(STORAGE, "field can not be less than status.capacity"));
    }
    checks::immutable(&Path::new("volumeMode"), &object["spec"]["volumeMode"], &old["spec"]["volumeMode"], errors);
    let class = |object: &Value| object["spec"]["volumeAttributesClassName"].clone();
    if class(object) != class(old)
        && old["status"]["currentVolumeAttributesClassName"].is_set()
        && class(object).is_empty()
    {
        let what = if class(object).is_null() { "nil" } else { "empty string" };
        let detail = format!("update to {what} is forbidden when status.currentVolumeAttributesClassName is not nil");
        errors.push(FieldError::forbidden("spec.volumeAttributesClassName", &detail));
    }
}

/// Gives `to` a field as it is in `from`.
fn take(to: &mut Value, from: &Value, field: &str) {
    match from.get(field) {
        Some(value) => drop(fields(to).insert(field.to_owned(), value.clone())),
        None => remove(to, field),
    }
}

pub(super) fn check_status(object: &Value, _old: &Value, errors: &mut FieldErrors) {
    const RESIZING: [&str; 5] = [
        "ControllerResizeInProgress",
        "ControllerResizeInfeasible",
        "NodeResizeInProgress",
        "NodeResizeInfeasible",
        "NodeResizePending",
    ];
    let status = &object["status"];
    let path = Path::new("status.capacity");
    for (name, amount) in status["capacity"].entries() {
        valid_amount(&path.key(name), amount, errors);
    }
    let path = Path::new("status.allocatedResourceStatuses");
    for (name, state) in status["allocatedResourceStatuses"].entries() {
        resource(&path, name, errors);
        if !RESIZING.contains(&state.text()) {
            errors.push(FieldError::not_supported(path, name.as_str(), &RESIZING));
        }
    }
    let path = Path::new("status.allocatedResources");
    for (name, amount) in status["allocatedResources"].entries() {
        if resource(&path, name, errors) {
            valid_amount(&path.key(name), amount, errors);
        }
    }
}

/// A quantity that is not below 0, in the words for what a status says.
pub(super) fn valid_amount(path: &Path<'_>, amount: &Value, errors: &mut FieldErrors) {
    if let Some(amount) = Quantity::from_json(amount).ok().filter(|amount| amount.value() < 0) {
        errors.push(FieldError::invalid(path, amount.value(), "must be a valid resource quantity"));
    }
}

/// Whether a claim can have a resource of this name.
fn resource(path: &Path<'_>, name: &str, errors: &mut FieldErrors) -> bool {
    let wrong = names::qualified_name(name);
    if !wrong.is_empty() {
        checks::invalid(path, name, wrong, errors);
        return false;
    }
    let is_known = name == "storage" || !checks::is_native_resource(name);
    if !is_known {
        errors.push(FieldError::not_supported(path, name, &["storage"]));
    }
    is_known
}

pub(super) fn warn(object: &Value) -> Vec<String> {
    let old = object["metadata"]["annotations"][OLD_CLASS].is_string();
    let note = "deprecated since v1.8; use \"storageClassName\" attribute instead";
    let mut warnings: Vec<String> =
        old.then(|| format!("metadata.annotations[{OLD_CLASS}]: {note}")).into_iter().collect();
    for list in ["requests", "limits"] {
        let amount = &object["spec"]["resources"][list]["storage"];
        if let Some(size) = Quantity::from_json(amount).ok().filter(|size| size.milli_value() % 1000 != 0) {
            let shown: Cow<'_, str> = quote(&size.to_string()).into();
            let path = format!("spec.resources.{list}[storage]");
            warnings.push(format!("{path}: fractional byte value {shown} is invalid, must be an integer"));
        }
    }
    warnings
}
