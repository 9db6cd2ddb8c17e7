//! Classes of volumes, drivers, and what is known of them on nodes.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::super::rules::{Check, Rule};
use crate::kinds::value::{Read, child, default_to, fields, remove, repeats};
use crate::kinds::{FieldError, FieldErrors, checks, internal, pod};
use crate::meta::field::{Path, Printed};
use crate::meta::names;

/// Most parameters of a class, and most bytes of all of them together.
const PARAMETERS_MAX: usize = 512;
const PARAMETER_BYTES_MAX: usize = 256 << 10;

const SPEC: Path<'static> = Path::new("spec");

pub(super) const CLASS: &[Rule] = &[
    Rule("provisioner", Check::Required("")),
    Rule("provisioner", Check::Qualified),
    Rule("volumeBindingMode", Check::OneOf(&["Immediate", "WaitForFirstConsumer"])),
    Rule("allowedTopologies[].matchLabelExpressions[].values", Check::Required("")),
    Rule("allowedTopologies[].matchLabelExpressions[].values", Check::Distinct),
    Rule("allowedTopologies[].matchLabelExpressions[].key", Check::LabelName),
    Rule("allowedTopologies[].matchLabelExpressions", Check::DistinctBy("key")),
];

pub(super) const ATTRIBUTES: &[Rule] = &[
    Rule("driverName", Check::Required("")),
    Rule("driverName", Check::Qualified),
    Rule("parameters", Check::Required("must contain at least one key/value pair")),
];

pub(super) const DRIVER: &[Rule] = &[
    Rule("spec.fsGroupPolicy", Check::OneOf(&["File", "None", "ReadWriteOnceWithFSType"])),
    Rule("spec.nodeAllocatableUpdatePeriodSeconds", Check::Least(10, "must be greater than or equal to 10 seconds")),
];

pub(super) const NODE: &[Rule] = &[
    Rule("spec.drivers[].name", Check::Driver),
    Rule("spec.drivers[].nodeID", Check::Required("")),
    Rule("spec.drivers[].allocatable?.count", Check::NonNegative),
    Rule("spec.drivers", Check::DistinctBy("name")),
];

pub(super) const CAPACITY: &[Rule] = &[
    Rule("storageClassName", Check::SubdomainAlways),
    Rule("capacity", Check::NonNegative),
    Rule("nodeTopology", Check::Selector),
];

pub(super) const ATTACHMENT: &[Rule] = &[
    Rule("spec.nodeName", Check::SubdomainAlways),
    Rule("spec.attacher", Check::Required("")),
    Rule("spec.attacher", Check::AnyCaseSubdomain),
    Rule("spec.attacher", Check::Characters(63)),
];

pub(super) fn default(object: &mut Value) {
    default_to(object, "reclaimPolicy", "Delete");
    default_to(object, "volumeBindingMode", "Immediate");
}

pub(super) fn check(object: &Value, errors: &mut FieldErrors) {
    parameters(&object["parameters"], errors);
    let policy = &object["reclaimPolicy"];
    if !policy.is_empty() {
        checks::supported(&Path::new("reclaimPolicy"), policy, &["Delete", "Retain"], errors);
    }
    let topologies = object["allowedTopologies"].items();
    let meaning = |term: &Value| -> BTreeMap<String, BTreeSet<String>> {
        let values = |one: &Value| one["values"].items().iter().map(|value| value.text().to_owned()).collect();
        term["matchLabelExpressions"].items().iter().map(|one| (one["key"].text().to_owned(), values(one))).collect()
    };
    let path = Path::new("allowedTopologies");
    for (index, again) in repeats(topologies.iter().map(meaning)).into_iter().enumerate() {
        // One that asks for nothing is never the first, in the reference.
        if again || topologies[index]["matchLabelExpressions"].is_empty() {
            errors.push(FieldError::duplicate(path.index(index).child("matchLabelExpressions"), ""));
        }
    }
}

fn parameters(parameters: &Value, errors: &mut FieldErrors) {
    if parameters.count() > PARAMETERS_MAX {
        errors.push(FieldError::too_long("parameters", PARAMETERS_MAX));
        return;
    }
    let bytes: usize = parameters.entries().map(|(key, value)| key.len() + value.text().len()).sum();
    if parameters.get("").is_some() {
        errors.push(FieldError::invalid("parameters", "", "field can not be empty."));
    }
    if bytes > PARAMETER_BYTES_MAX {
        errors.push(FieldError::too_long("parameters", PARAMETER_BYTES_MAX));
    }
}

pub(super) fn check_attributes(object: &Value, errors: &mut FieldErrors) {
    parameters(&object["parameters"], errors);
}

pub(super) fn check_attributes_change(object: &Value, old: &Value, errors: &mut FieldErrors) {
    for field in ["driverName", "parameters"] {
        if object[field] != old[field] {
            errors.push(FieldError::forbidden(field, &format!("updates to {field} are forbidden.")));
        }
    }
}

pub(super) fn default_driver(object: &mut Value) {
    let spec = child(object, "spec");
    default_to(spec, "attachRequired", true);
    let off =
        ["podInfoOnMount", "storageCapacity", "requiresRepublish", "seLinuxMount", "preventPodSchedulingIfMissing"];
    for field in off {
        default_to(spec, field, false);
    }
    default_to(spec, "fsGroupPolicy", "ReadWriteOnceWithFSType");
    if spec["volumeLifecycleModes"].is_empty() {
        fields(spec).insert("volumeLifecycleModes".to_owned(), json!(["Persistent"]));
    }
}

pub(super) fn check_driver(object: &Value, errors: &mut FieldErrors) {
    const MODES: [&str; 2] = ["Persistent", "Ephemeral"];
    let spec = &object["spec"];
    for mode in spec["volumeLifecycleModes"].items() {
        checks::supported(&SPEC.child("volumeLifecycleModes"), mode, &MODES, errors);
    }
    let (requests, list) = (spec["tokenRequests"].items(), SPEC.child("tokenRequests"));
    let again = repeats(requests.iter().map(|request| request["audience"].text()));
    for ((index, request), again) in requests.iter().enumerate().zip(again) {
        let path = list.index(index);
        if again {
            errors.push(FieldError::duplicate(path.child("audience"), request["audience"].text()));
            continue;
        }
        let Some(seconds) = request["expirationSeconds"].maybe_int() else { continue };
        let path = path.child("expirationSeconds");
        if seconds < 600 {
            errors.push(FieldError::invalid(path, seconds, "may not specify a duration less than 10 minutes"));
        } else if seconds > 1 << 32 {
            errors.push(FieldError::invalid(path, seconds, "may not specify a duration larger than 2^32 seconds"));
        }
    }
    let in_secrets = &spec["serviceAccountTokenInSecrets"];
    if in_secrets.is_set() && requests.is_empty() {
        let detail = "serviceAccountTokenInSecrets is set but no tokenRequests are specified";
        errors.push(FieldError::invalid(SPEC.child("serviceAccountTokenInSecrets"), in_secrets, detail));
    }
}

pub(super) fn check_driver_change(object: &Value, old: &Value, errors: &mut FieldErrors) {
    // One name in the reference differs from the field's.
    for (field, shown) in [("attachRequired", "attachedRequired"), ("volumeLifecycleModes", "volumeLifecycleModes")] {
        checks::immutable(&SPEC.child(shown), &object["spec"][field], &old["spec"][field], errors);
    }
}

/// What who makes a driver is told.
pub(super) fn warn_driver(object: &Value, old: Option<&Value>) -> Vec<String> {
    let spec = &object["spec"];
    let is_asked_for = old.is_none_or(|old| old["spec"]["tokenRequests"] != spec["tokenRequests"]);
    let is_unset = is_asked_for && !spec["tokenRequests"].is_empty() && spec["serviceAccountTokenInSecrets"].is_null();
    let words = "spec.serviceAccountTokenInSecrets is unset; if supported by this CSI driver, set to true to prevent \
                 possible logging of tokens in volume attributes";
    is_unset.then(|| words.to_owned()).into_iter().collect()
}

/// Most characters of a driver's own name of a node.
const NODE_ID_MAX: usize = 256;

pub(super) fn check_node(object: &Value, errors: &mut FieldErrors) {
    let list = Path::new("spec.drivers");
    for (index, driver) in object["spec"]["drivers"].items().iter().enumerate() {
        let path = list.index(index);
        let id = driver["nodeID"].text();
        if id.len() > NODE_ID_MAX {
            let detail = format!("must be {NODE_ID_MAX} characters or less");
            errors.push(FieldError::invalid(path.child("nodeID"), id, &detail));
        }
        let keys = driver["topologyKeys"].items();
        // The reference names the driver, not the key.
        for (key, again) in keys.iter().map(Read::text).zip(repeats(keys.iter().map(Read::text))) {
            if key.is_empty() {
                errors.push(FieldError::required(path, ""));
            }
            if again {
                errors.push(FieldError::duplicate(path, key));
            }
            checks::qualified_name(&path, key, errors);
        }
    }
}

/// A driver of a node stays as it is, but for how much it can take.
pub(super) fn check_node_change(object: &Value, old: &Value, errors: &mut FieldErrors) {
    let lasting = |driver: &Value| {
        let mut driver = driver.clone();
        remove(&mut driver, "allocatable");
        driver
    };
    let before: BTreeMap<&str, &Value> =
        old["spec"]["drivers"].items().iter().map(|driver| (driver["name"].text(), driver)).collect();
    for driver in object["spec"]["drivers"].items() {
        if let Some(before) = before.get(driver["name"].text()) {
            let (now, before) = (lasting(driver), lasting(before));
            if now != before {
                let shown = internal::text("CSINodeDriver", &now);
                errors.push(FieldError::invalid(SPEC.child("drivers"), Printed(&shown), "field is immutable"));
            }
        }
    }
}

pub(super) fn check_attachment(object: &Value, errors: &mut FieldErrors) {
    let (source, path) = (&object["spec"]["source"], SPEC.child("source"));
    let (inline, name) = (&source["inlineVolumeSpec"], &source["persistentVolumeName"]);
    let one = "must specify exactly one of inlineVolumeSpec and persistentVolumeName";
    match (inline.is_set(), name.is_set()) {
        (false, false) => errors.push(FieldError::required(path, one)),
        (true, true) => errors.push(FieldError::forbidden(path, one)),
        (false, true) if name.is_empty() => {
            let detail = "must specify non empty persistentVolumeName";
            errors.push(FieldError::required(path.child("persistentVolumeName"), detail));
        }
        (false, true) => {}
        (true, false) => inline_volume(inline, &path.child("inlineVolumeSpec"), errors),
    }
    if let Some(name) = name.as_str() {
        checks::invalid(&path.child("persistentVolumeName"), name, names::dns_subdomain(name), errors);
    }
}

/// A volume that is no object of its own (`ValidatePersistentVolumeSpec` of an inline one).
fn inline_volume(spec: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    const INLINE: &str = "may not be specified in the context of inline volumes";
    for field in ["claimRef", "capacity", "nodeAffinity", "storageClassName"] {
        let is_given = if field == "capacity" { !spec[field].is_empty() } else { spec[field].is_set() };
        if is_given {
            errors.push(FieldError::forbidden(path.child(field), INLINE));
        }
    }
    if spec["csi"].is_null() {
        errors.push(FieldError::required(path.child("csi"), "has to be specified in the context of inline volumes"));
    }
    checks::required(&path.child("accessModes"), &spec["accessModes"], errors);
    pod::access_modes(spec["accessModes"].items(), &path.child("accessModes"), errors);
    let only = [
        ("persistentVolumeReclaimPolicy", "Retain", "may only be Retain in the context of inline volumes"),
        (
            "volumeMode",
            "Filesystem",
            "may not specify volumeMode other than Filesystem in the context of inline volumes",
        ),
    ];
    for (field, value, detail) in only {
        if !spec[field].is_empty() && spec[field] != value {
            errors.push(FieldError::forbidden(path.child(field), detail));
        }
    }
    pod::persistent_source(spec, "", path, errors);
}

/// Most bytes of what an attachment tells, and of the message of an error.
const TOLD_BYTES_MAX: usize = 256 << 10;
const MESSAGE_BYTES_MAX: usize = 1024;

pub(super) fn check_attachment_status(object: &Value, _old: &Value, errors: &mut FieldErrors) {
    let (status, path) = (&object["status"], Path::new("status"));
    let told: usize = status["attachmentMetadata"].entries().map(|(key, value)| key.len() + value.text().len()).sum();
    if told > TOLD_BYTES_MAX {
        errors.push(FieldError::too_long(path.child("attachmentMetadata"), TOLD_BYTES_MAX));
    }
    for field in ["attachError", "detachError"] {
        let (error, path) = (&status[field], path.child(field));
        if error["message"].text().len() > MESSAGE_BYTES_MAX {
            errors.push(FieldError::too_long(path.child("message"), MESSAGE_BYTES_MAX));
        }
        if let Some(code) = error["errorCode"].maybe_int().filter(|code| *code < 0) {
            let detail = "must be between 0 and 2147483647, inclusive";
            errors.push(FieldError::invalid(path.child("errorCode"), code, detail));
        }
    }
}
