//! What of a Job's pod template may change.

use serde_json::Value;

use super::{condition, fields};
use crate::kinds::value::{Read, child, keep, remove};
use crate::kinds::{FieldError, FieldErrors, internal};
use crate::meta::field::Printed;

const IMMUTABLE: &str = "field is immutable";

/// Checks a change: a template is immutable, but for where and with what the pods of a suspended Job will run.
pub(super) fn update(job: &Value, old: &Value, errors: &mut FieldErrors) {
    let (template, mut before) = (&job["spec"]["template"], old["spec"]["template"].clone());
    let suspended = old["spec"]["suspend"].flag();
    let never_started = old["status"]["startTime"].is_null();
    let may_change =
        suspended && (never_started || condition(old, "Suspended") == "True") && old["status"]["active"].int() == 0;
    if !may_change {
        if !is_same(template, &before) {
            errors.push(FieldError::invalid("spec.template", template, IMMUTABLE));
        }
        return;
    }
    take_scheduling(&mut before, template);
    let (spec, before) = (&template["spec"], &mut before["spec"]);
    for list in ["containers", "initContainers"] {
        take_resources(before, spec, list);
    }
    if !is_same(spec, before) {
        let shown = internal::text("PodSpec", spec);
        errors.push(FieldError::invalid("spec.template.spec", Printed(&shown), IMMUTABLE));
    }
}

/// Takes over what says where pods run: affinity to nodes, selector, tolerations, gates.
fn take_scheduling(old: &mut Value, new: &Value) {
    let (new, old) = (&new["spec"], child(old, "spec"));
    let affinity = &new["affinity"]["nodeAffinity"];
    if affinity.is_set() {
        fields(child(old, "affinity")).insert("nodeAffinity".to_owned(), affinity.clone());
    } else if old["affinity"].is_object() {
        remove(child(old, "affinity"), "nodeAffinity");
    }
    for field in ["nodeSelector", "tolerations", "schedulingGates"] {
        keep(old, new, field);
    }
}

fn take_resources(old: &mut Value, new: &Value, list: &str) {
    let containers = new[list].items();
    let Some(before) = old.get_mut(list).and_then(Value::as_array_mut) else { return };
    if before.len() != containers.len() {
        return;
    }
    for (before, container) in before.iter_mut().zip(containers) {
        if before["name"] == container["name"] {
            keep(before, container, "resources");
        }
    }
}

/// Whether two values say the same; what is empty says nothing.
fn is_same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            let within = |a: &serde_json::Map<String, Value>, b: &serde_json::Map<String, Value>| {
                a.iter().all(|(name, value)| is_same(value, b.get(name).unwrap_or(&Value::Null)))
            };
            within(a, b) && within(b, a)
        }
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| is_same(a, b)),
        (a, b) if a.is_empty() && b.is_empty() => true,
        (Value::Object(only), Value::Null) | (Value::Null, Value::Object(only)) => {
            only.values().all(|value| is_same(value, &Value::Null))
        }
        (a, b) => a == b,
    }
}
