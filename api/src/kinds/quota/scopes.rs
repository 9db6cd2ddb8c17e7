//! Scopes: of which objects a quota speaks.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{Way, pods};
use crate::kinds::pod::qos_class;
use crate::kinds::value::Read;

/// Whether an object is in all scopes of a quota's `spec`. Objects of other kinds than pods and claims are in no scope.
pub fn is_in_scope(spec: &Value, group: &str, resource: &str, object: &Value) -> bool {
    let Some(way) = Way::of(group, resource) else { return false };
    spec["scopes"].items().iter().all(|scope| matches(way, object, scope.text(), "Exists", &[]))
        && spec["scopeSelector"]["matchExpressions"].items().iter().all(|wanted| {
            matches(way, object, wanted["scopeName"].text(), wanted["operator"].text(), wanted["values"].items())
        })
}

fn matches(way: Way, object: &Value, scope: &str, operator: &str, values: &[Value]) -> bool {
    match (way, scope) {
        (Way::Pod, "Terminating") => pods::is_terminating(object),
        (Way::Pod, "NotTerminating") => !pods::is_terminating(object),
        (Way::Pod, "BestEffort") => is_best_effort(object),
        (Way::Pod, "NotBestEffort") => !is_best_effort(object),
        (Way::Pod, "PriorityClass") => selects(named([&object["spec"]["priorityClassName"]]), operator, values),
        (Way::Pod, "CrossNamespacePodAffinity") => pods::crosses_namespaces(object),
        (Way::Claim, "VolumeAttributesClass") => {
            let status = &object["status"];
            let names = [
                &object["spec"]["volumeAttributesClassName"],
                &status["currentVolumeAttributesClassName"],
                &status["modifyVolumeStatus"]["targetVolumeAttributesClassName"],
            ];
            selects(named(names), operator, values)
        }
        _ => false,
    }
}

fn is_best_effort(pod: &Value) -> bool {
    match pod["status"]["qosClass"].text() {
        "" => qos_class(&pod["spec"]) == "BestEffort",
        class => class == "BestEffort",
    }
}

fn named<const N: usize>(names: [&Value; N]) -> BTreeSet<&str> {
    names.into_iter().map(Read::text).filter(|name| !name.is_empty()).collect()
}

/// Whether one of the names is as it is wanted; none is like a label that is not there.
fn selects(names: BTreeSet<&str>, operator: &str, values: &[Value]) -> bool {
    let is_value = |name: &&str| values.iter().any(|value| value == name);
    match operator {
        "Exists" => !names.is_empty(),
        "DoesNotExist" => names.is_empty(),
        "In" => names.iter().any(is_value),
        "NotIn" => names.is_empty() || names.iter().any(|name| !is_value(name)),
        _ => false,
    }
}
