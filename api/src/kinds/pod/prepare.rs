//! What clients may not set in a pod, and what the server writes into it before it is checked.

use std::collections::{HashMap, VecDeque};

use serde_json::{Map, Value, json};

use super::amounts::sum;
use super::qos;
use crate::kinds::value::{Read, child, fields, items_mut, keep, remove};
use crate::meta::Quantity;

const CONTAINERS: [&str; 3] = ["containers", "initContainers", "ephemeralContainers"];

/// Drops fields of features that are off in Kubernetes 1.37, unless the old spec has them.
pub(in crate::kinds) fn drop_disabled(spec: &mut Value, old: Option<&Value>) {
    const SPEC: [&str; 2] = ["schedulingGroup", "evictionResponders"];
    for field in SPEC {
        if old.is_none_or(|old| old[field].is_null()) {
            remove(spec, field);
        }
    }
    let has_old = |test: fn(&Value) -> bool| {
        old.is_some_and(|old| CONTAINERS.iter().any(|list| old[*list].items().iter().any(test)))
    };
    let mounts = |container: &Value| container["volumeMounts"].items().iter().any(|m| m["bindMountOptions"].is_set());
    let keeps_signals = has_old(|container| container["lifecycle"]["stopSignal"].is_set());
    let keeps_mount_options = has_old(mounts);
    for list in CONTAINERS {
        for container in items_mut(spec, list) {
            let has_signal = container["lifecycle"]["stopSignal"].is_set();
            if has_signal
                && !keeps_signals
                && let Some(lifecycle) = container.get_mut("lifecycle")
            {
                remove(lifecycle, "stopSignal");
                if lifecycle.is_empty() {
                    remove(container, "lifecycle");
                }
            }
            if !keeps_mount_options {
                for mount in items_mut(container, "volumeMounts") {
                    remove(mount, "bindMountOptions");
                }
            }
        }
    }
    let keeps_modes =
        old.is_some_and(|old| old["volumes"].items().iter().any(|volume| volume["emptyDir"]["mode"].is_set()));
    if !keeps_modes {
        for volume in items_mut(spec, "volumes") {
            if let Some(source) = volume.get_mut("emptyDir") {
                remove(source, "mode");
            }
        }
    }
}

/// A pod with scheduling gates says so in its status, since it was made.
pub(super) fn gate_scheduling(pod: &mut Value) {
    if !pod["spec"]["schedulingGates"].is_empty() {
        let since = pod["metadata"]["creationTimestamp"].clone();
        let condition = json!({
            "type": "PodScheduled",
            "status": "False",
            "reason": "SchedulingGated",
            "message": "Scheduling is blocked due to non-empty scheduling gates",
            "lastProbeTime": null,
            "lastTransitionTime": since,
        });
        fields(child(pod, "status")).insert("conditions".to_owned(), json!([condition]));
    }
}

/// Merges the pod's own values of `matchLabelKeys` and `mismatchLabelKeys` into the selectors beside them.
pub(super) fn merge_label_keys(pod: &mut Value) {
    let labels = match pod["metadata"].get("labels") {
        Some(Value::Object(labels)) => labels.clone(),
        _ => return,
    };
    let Some(spec) = pod.get_mut("spec") else { return };
    for constraint in items_mut(spec, "topologySpreadConstraints") {
        merge_keys(constraint, "matchLabelKeys", "In", &labels);
    }
    let Some(affinity) = spec.get_mut("affinity") else { return };
    for kind in ["podAffinity", "podAntiAffinity"] {
        let Some(kind) = affinity.get_mut(kind) else { continue };
        for weighted in items_mut(kind, "preferredDuringSchedulingIgnoredDuringExecution") {
            if let Some(term) = weighted.get_mut("podAffinityTerm") {
                merge_keys(term, "matchLabelKeys", "In", &labels);
                merge_keys(term, "mismatchLabelKeys", "NotIn", &labels);
            }
        }
        for term in items_mut(kind, "requiredDuringSchedulingIgnoredDuringExecution") {
            merge_keys(term, "matchLabelKeys", "In", &labels);
            merge_keys(term, "mismatchLabelKeys", "NotIn", &labels);
        }
    }
}

fn merge_keys(term: &mut Value, keys: &str, operator: &str, labels: &Map<String, Value>) {
    if !term["labelSelector"].is_object() {
        // It selects nothing, whatever is added.
        return;
    }
    let added: Vec<Value> = term[keys]
        .items()
        .iter()
        .filter_map(|key| labels.get_key_value(key.text()))
        .map(|(key, value)| json!({ "key": key, "operator": operator, "values": [value] }))
        .collect();
    if !added.is_empty() {
        let selector = fields(child(term, "labelSelector"));
        let expressions = selector.entry("matchExpressions").or_insert_with(|| json!([]));
        match expressions.as_array_mut() {
            Some(list) => list.extend(added),
            None => *expressions = added.into(),
        }
    }
}

/// What a pod as a whole may use, from what its containers ask for, where only a part of it is said.
pub(super) fn pod_level_resources(pod: &mut Value) {
    let spec = child(pod, "spec");
    if spec["resources"]["requests"].is_empty() && spec["resources"]["limits"].is_empty() {
        return;
    }
    let (requests, limits) = (sum(spec, "requests"), sum(spec, "limits"));
    let all_limited = |resource: &str| {
        let has = |container: &Value| container["resources"]["limits"][resource].is_set();
        spec["containers"].items().iter().all(has)
            && spec["initContainers"].items().iter().filter(|c| c["restartPolicy"] == "Always").all(has)
    };
    let supported = |resource: &str| matches!(resource, "cpu" | "memory") || resource.starts_with("hugepages-");
    let candidates: Vec<(String, Quantity)> =
        limits.iter().filter(|(resource, _)| all_limited(resource)).map(|(k, v)| (k.clone(), v.clone())).collect();
    let whole = child(spec, "resources");
    for (resource, limit) in &limits {
        if resource.starts_with("hugepages-") && whole["requests"][resource.as_str()].is_null() {
            let limits = fields(child(whole, "limits"));
            limits.entry(resource.clone()).or_insert_with(|| limit.to_string().into());
        }
    }
    for (resource, request) in requests {
        if matches!(resource.as_str(), "cpu" | "memory") {
            let requests = fields(child(whole, "requests"));
            requests.entry(resource).or_insert_with(|| request.to_string().into());
        }
    }
    let given: Vec<(String, Value)> = whole["limits"].entries().map(|(k, v)| (k.clone(), v.clone())).collect();
    for (resource, limit) in given {
        if supported(&resource) {
            fields(child(whole, "requests")).entry(resource).or_insert(limit);
        }
    }
    for (resource, limit) in candidates {
        let request = whole["requests"][resource.as_str()].clone();
        if supported(&resource) && request.is_set() && whole["limits"][resource.as_str()].is_null() {
            let request = qos::amount(&request);
            let limit = if request > limit { request } else { limit };
            fields(child(whole, "limits")).insert(resource, limit.to_string().into());
        }
    }
}

/// Clients that do not know pod-level resources drop them unwittingly.
pub(super) fn keep_pod_level_resources(pod: &mut Value, old: &Value) {
    if pod["spec"]["resources"].is_null() && old["spec"]["resources"].is_set() {
        keep(child(pod, "spec"), &old["spec"], "resources");
    }
}

/// An update of `status` leaves spec and owners as they were, and what the server alone knows.
pub(super) fn status(pod: &mut Value, old: &Value) {
    keep(pod, old, "spec");
    let metadata = child(pod, "metadata");
    keep(metadata, &old["metadata"], "ownerReferences");
    keep(metadata, &old["metadata"], "deletionTimestamp");
    let status = child(pod, "status");
    const KEPT: [&str; 5] = [
        "qosClass",
        "resourceClaimStatuses",
        "extendedResourceClaimStatus",
        "nodeAllocatableResourceClaimStatuses",
        "observedGeneration",
    ];
    for field in KEPT {
        if status[field].is_null() {
            keep(status, &old["status"], field);
        }
    }
    // Of several of a type each has its own, in order.
    let mut generations: HashMap<&str, VecDeque<&Value>> = HashMap::new();
    for condition in old["status"]["conditions"].items() {
        generations.entry(condition["type"].text()).or_default().push_back(&condition["observedGeneration"]);
    }
    for condition in items_mut(status, "conditions") {
        let before = generations.get_mut(condition["type"].text()).and_then(VecDeque::pop_front);
        if let Some(generation) = before
            && condition["observedGeneration"].is_null()
            && generation.is_set()
        {
            fields(condition).insert("observedGeneration".to_owned(), generation.clone());
        }
    }
}

/// An update of `ephemeralcontainers` changes these alone.
pub(super) fn ephemeral_containers(pod: &mut Value, old: &Value) {
    let wanted = pod["spec"].get("ephemeralContainers").cloned();
    keep_metadata(pod, old);
    keep(pod, old, "status");
    keep(pod, old, "spec");
    let spec = child(pod, "spec");
    match wanted {
        Some(list) => drop(fields(spec).insert("ephemeralContainers".to_owned(), list)),
        None => remove(spec, "ephemeralContainers"),
    }
    drop_disabled(spec, Some(&old["spec"]));
}

/// An update of `resize` changes resources and resize policies alone. When containers come, go or move, nothing is put
/// back, and validation says what is wrong.
pub(super) fn resize(pod: &mut Value, old: &Value) {
    const LISTS: [&str; 2] = ["containers", "initContainers"];
    let (spec, old_spec) = (&pod["spec"], &old["spec"]);
    if LISTS.iter().all(|list| spec[*list].count() == old_spec[*list].count()) {
        let lists = LISTS.map(|list| resized(spec[list].items(), old_spec[list].items()));
        let whole = spec.get("resources").cloned();
        keep_metadata(pod, old);
        keep(pod, old, "status");
        keep(pod, old, "spec");
        let spec = child(pod, "spec");
        for (list, containers) in LISTS.into_iter().zip(lists) {
            if !containers.is_empty() {
                fields(spec).insert(list.to_owned(), containers.into());
            }
        }
        match whole {
            Some(whole) => drop(fields(spec).insert("resources".to_owned(), whole)),
            None => remove(spec, "resources"),
        }
    }
    keep_pod_level_resources(pod, old);
    pod_level_resources(pod);
    drop_disabled(child(pod, "spec"), Some(&old["spec"]));
}

fn resized(new: &[Value], old: &[Value]) -> Vec<Value> {
    if new.iter().zip(old).any(|(new, old)| new["name"] != old["name"]) {
        return new.to_vec();
    }
    let merge = |(new, old): (&Value, &Value)| {
        let mut container = old.clone();
        keep(&mut container, new, "resources");
        keep(&mut container, new, "resizePolicy");
        container
    };
    new.iter().zip(old).map(merge).collect()
}

fn keep_metadata(pod: &mut Value, old: &Value) {
    const KEPT: [&str; 7] = [
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "labels",
        "annotations",
        "finalizers",
        "ownerReferences",
    ];
    let metadata = child(pod, "metadata");
    for field in KEPT {
        keep(metadata, &old["metadata"], field);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_keys_become_expressions() {
        let mut pod = json!({
            "metadata": {"labels": {"hash": "1"}},
            "spec": {"topologySpreadConstraints": [{"labelSelector": {}, "matchLabelKeys": ["hash", "other"]}, {"matchLabelKeys": ["hash"]}]},
        });
        merge_label_keys(&mut pod);
        let constraints = &pod["spec"]["topologySpreadConstraints"];
        let expected = json!([{"key": "hash", "operator": "In", "values": ["1"]}]);
        assert_eq!(constraints[0]["labelSelector"]["matchExpressions"], expected);
        assert!(constraints[1]["labelSelector"].is_null());
    }

    #[test]
    fn status_updates_leave_the_rest_alone() {
        let old = json!({"metadata": {"ownerReferences": [1]}, "spec": {"a": 1}, "status": {"qosClass": "Burstable"}});
        let mut new = json!({"metadata": {"labels": {"x": "y"}}, "spec": {"a": 2}, "status": {"phase": "Running"}});
        status(&mut new, &old);
        assert_eq!(
            new,
            json!({
                "metadata": {"labels": {"x": "y"}, "ownerReferences": [1]},
                "spec": {"a": 1},
                "status": {"phase": "Running", "qosClass": "Burstable"},
            })
        );
    }
}
