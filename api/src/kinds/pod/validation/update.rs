//! What of a pod may change: images, a few times, more tolerations, fewer gates; resources by `resize`, ephemeral
//! containers by their own subresource.

use std::collections::{HashMap, HashSet};

use serde_json::{Value, json};

use super::affinity::REQUIRED;
use super::metadata::{annotation_updates, is_mirror};
use super::{ANNOTATIONS, Ratchet, SPEC, affinity, diff, pod_with, ratcheted};
use crate::kinds::pod::qos;
use crate::kinds::value::{Read, child, fields, items_mut, keep, remove};
use crate::kinds::{FieldError, FieldErrors, internal};
use crate::meta::field::Printed;
use crate::meta::{names, text};
use crate::schema;

const CHANGEABLE: &str = "`spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,\
                          `spec.tolerations` (only additions to existing tolerations),\
                          `spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// Checks the changed pod itself, with what the old one may keep.
fn changed_pod(pod: &Value, old: &Value, with_annotations: bool, errors: &mut FieldErrors) -> Ratchet {
    let of_old = || Ratchet { is_pod: true, ..Ratchet::of_old(&old["spec"], &old["metadata"]["annotations"]) };
    let mut used = Ratchet::POD;
    ratcheted(
        errors,
        |ratchet, errors| {
            let ratchet = Ratchet { is_pod: true, ..ratchet };
            pod_with(pod, ratchet, errors);
            if with_annotations {
                annotation_updates(pod, old, &ANNOTATIONS, ratchet, errors);
            }
        },
        || {
            used = of_old();
            Some(used)
        },
    );
    used
}

/// Checks an update of a pod.
pub(in crate::kinds::pod) fn pod(pod: &Value, old: &Value, errors: &mut FieldErrors) {
    let ratchet = changed_pod(pod, old, true, errors);
    let (spec, before) = (&pod["spec"], &old["spec"]);
    for list in ["containers", "initContainers"] {
        if !images(list, spec, before, errors) {
            return;
        }
    }
    if !deadline(spec, before, errors) {
        return;
    }
    tolerations(spec, before, ratchet, errors);
    gates(spec, before, errors);
    if spec != before {
        rest(spec, before, errors);
    }
}

/// Checks images; false when there are other containers than before.
fn images(list: &str, spec: &Value, before: &Value, errors: &mut FieldErrors) -> bool {
    let (containers, path) = (spec[list].items(), SPEC.child(list));
    if containers.len() != before[list].count() {
        errors.push(FieldError::forbidden(path, "pod updates may not add or remove containers"));
        return false;
    }
    for (index, container) in containers.iter().enumerate() {
        let (image, item) = (container["image"].text(), path.index(index));
        if image.is_empty() {
            errors.push(FieldError::required(item.child("image"), ""));
        }
        if image.trim() != image {
            let detail = "must not have leading or trailing whitespace";
            errors.push(FieldError::invalid(item.child("image"), image, detail));
        }
    }
    true
}

/// A deadline may come nearer; false when the rest need not be looked at.
fn deadline(spec: &Value, before: &Value, errors: &mut FieldErrors) -> bool {
    let path = SPEC.child("activeDeadlineSeconds");
    match (spec["activeDeadlineSeconds"].maybe_int(), before["activeDeadlineSeconds"].maybe_int()) {
        (Some(new), old) => {
            let wrong = names::in_range(new, 0, i64::from(i32::MAX));
            if let Some(words) = wrong.first() {
                errors.push(FieldError::invalid(path, new, words));
                return false;
            }
            if old.is_some_and(|old| old < new) {
                errors.push(FieldError::invalid(path, new, "must be less than or equal to previous value"));
                return false;
            }
        }
        (None, Some(_)) => {
            let detail = "must not update from a positive integer to nil value";
            errors.push(FieldError::invalid(path, Printed("null"), detail));
        }
        (None, None) => {}
    }
    true
}

/// Old tolerations stay, but for how long they hold.
fn tolerations(spec: &Value, before: &Value, ratchet: Ratchet, errors: &mut FieldErrors) {
    let path = SPEC.child("tolerations");
    let bare = |toleration: &Value| {
        let mut toleration = toleration.clone();
        remove(&mut toleration, "tolerationSeconds");
        toleration
    };
    let new: HashSet<Value> = spec["tolerations"].items().iter().map(bare).collect();
    if !before["tolerations"].items().iter().all(|old| new.contains(&bare(old))) {
        let detail = "existing toleration can not be modified except its tolerationSeconds";
        errors.push(FieldError::forbidden(path, detail));
        return;
    }
    affinity::tolerations(&spec["tolerations"], &path, ratchet, errors);
}

fn gates(spec: &Value, before: &Value, errors: &mut FieldErrors) {
    let path = SPEC.child("schedulingGates");
    let old = before["schedulingGates"].items();
    let known: HashSet<&str> = old.iter().map(|gate| gate["name"].text()).collect();
    for (index, gate) in spec["schedulingGates"].items().iter().enumerate() {
        let name = gate["name"].text();
        if !known.contains(name) {
            let detail = format!("only deletion is allowed, but found new scheduling gate '{name}'");
            errors.push(FieldError::forbidden(path.index(index).child("name"), &detail));
        }
    }
}

/// Puts back what may change, and compares.
fn rest(spec: &Value, before: &Value, errors: &mut FieldErrors) {
    let mut munged = spec.clone();
    for list in ["containers", "initContainers"] {
        for (container, old) in items_mut(&mut munged, list).iter_mut().zip(before[list].items()) {
            keep(container, old, "image");
        }
    }
    for field in ["activeDeadlineSeconds", "schedulingGates", "tolerations"] {
        keep(&mut munged, before, field);
    }
    if before["terminationGracePeriodSeconds"].int() < 0 && munged["terminationGracePeriodSeconds"] == 1 {
        keep(&mut munged, before, "terminationGracePeriodSeconds");
    }
    if !before["schedulingGates"].is_empty() {
        placement_of_gated(&mut munged, before, errors);
    }
    // What is empty is nothing once it is stored.
    if let Some(spec) = schema::named("io.k8s.api.core.v1.PodSpec") {
        schema::forget_empty(&mut munged, &spec);
    }
    if munged != *before {
        let difference = diff::of("PodSpec", before, &munged);
        let detail = format!("pod updates may not change fields other than {CHANGEABLE}\n{difference}");
        errors.push(FieldError::forbidden(SPEC, &detail));
    }
}

/// While it is held back, a pod may be told more narrowly where to go.
fn placement_of_gated(spec: &mut Value, before: &Value, errors: &mut FieldErrors) {
    if spec["nodeSelector"] != before["nodeSelector"] {
        let (new, old) = (&spec["nodeSelector"], &before["nodeSelector"]);
        if old.entries().any(|(key, value)| new.get(key) != Some(value)) {
            let detail = "only additions to spec.nodeSelector are allowed (no mutations or deletions)";
            errors.push(FieldError::invalid(SPEC.child("nodeSelector"), new, detail));
        }
        keep(spec, before, "nodeSelector");
    }
    let (new, old) = (&spec["affinity"]["nodeAffinity"], &before["affinity"]["nodeAffinity"]);
    if new == old {
        return;
    }
    if old[REQUIRED].is_set() {
        let (terms, before) = (new[REQUIRED]["nodeSelectorTerms"].items(), old[REQUIRED]["nodeSelectorTerms"].items());
        let path = SPEC.child("affinity.nodeAffinity");
        let path = path.child(REQUIRED);
        let path = path.child("nodeSelectorTerms");
        if !before.is_empty() && before.len() != terms.len() {
            let shown: Vec<String> = terms.iter().map(|term| internal::text("NodeSelectorTerm", term)).collect();
            let shown = if terms.is_empty() { "null".to_owned() } else { format!("[{}]", shown.join(",")) };
            let detail = "no additions/deletions to non-empty NodeSelectorTerms list are allowed";
            errors.push(FieldError::invalid(path, Printed(&shown), detail));
        } else {
            for (index, (term, old)) in terms.iter().zip(before).enumerate() {
                if !only_adds(term, old) {
                    let shown = internal::text("NodeSelectorTerm", term);
                    let detail = "only additions are allowed (no mutations or deletions)";
                    errors.push(FieldError::invalid(path.index(index), Printed(&shown), detail));
                }
            }
        }
    }
    match (spec["affinity"].is_set(), before["affinity"].get("nodeAffinity")) {
        (false, None) => {}
        (false, Some(old)) => drop(fields(spec).insert("affinity".to_owned(), json!({ "nodeAffinity": old }))),
        (true, old) => {
            let has_others = spec["affinity"]["podAffinity"].is_set() || spec["affinity"]["podAntiAffinity"].is_set();
            match old {
                Some(old) => drop(fields(child(spec, "affinity")).insert("nodeAffinity".to_owned(), old.clone())),
                None if before["affinity"].is_null() && !has_others => remove(spec, "affinity"),
                None => remove(child(spec, "affinity"), "nodeAffinity"),
            }
        }
    }
}

/// Whether a term asks for all it asked for, in the same order, and perhaps more.
fn only_adds(term: &Value, old: &Value) -> bool {
    const LISTS: [&str; 2] = ["matchExpressions", "matchFields"];
    // A term that asks for nothing matches nothing; adding to it would widen it.
    if LISTS.iter().all(|list| old[*list].is_empty()) {
        return LISTS.iter().all(|list| term[*list].is_empty());
    }
    LISTS.iter().all(|list| term[*list].items().starts_with(old[*list].items()))
}

/// Checks an update of the ephemeral containers.
pub(in crate::kinds::pod) fn ephemeral_containers(pod: &Value, old: &Value, errors: &mut FieldErrors) {
    if is_mirror(old) {
        errors.push(FieldError::forbidden("", "static pods do not support ephemeral containers"));
        return;
    }
    changed_pod(pod, old, true, errors);
    let path = SPEC.child("ephemeralContainers");
    // Of containers of one name the last counts.
    let new: HashMap<&Value, &Value> =
        pod["spec"]["ephemeralContainers"].items().iter().map(|container| (&container["name"], container)).collect();
    for container in old["spec"]["ephemeralContainers"].items() {
        let name = text::quote(container["name"].text());
        match new.get(&container["name"]).copied() {
            None => {
                let detail = format!("existing ephemeral containers {name} may not be removed\n");
                errors.push(FieldError::forbidden(path, &detail));
            }
            Some(other) if other != container => {
                let difference = diff::of("EphemeralContainer", container, other);
                let detail = format!("existing ephemeral containers {name} may not be changed\n{difference}");
                errors.push(FieldError::forbidden(path, &detail));
            }
            Some(_) => {}
        }
    }
}

/// Checks an update of resources.
pub(in crate::kinds::pod) fn resize(pod: &Value, old: &Value, errors: &mut FieldErrors) {
    let refusal = match () {
        () if is_mirror(old) => "static pods cannot be resized",
        () if old["spec"]["os"]["name"] == "windows" => "windows pods cannot be resized",
        () => "",
    };
    if !refusal.is_empty() {
        errors.push(FieldError::forbidden("", refusal));
        return;
    }
    let so_far = errors.len();
    changed_pod(pod, old, false, errors);
    let (spec, before) = (&pod["spec"], &old["spec"]);
    let class = match old["status"]["qosClass"].text() {
        "" => qos::class(before),
        class => class,
    };
    if class != qos::class(spec) {
        let detail = "Pod QOS Class may not change as a result of resizing";
        errors.push(FieldError::invalid(SPEC, pod["status"]["qosClass"].text(), detail));
    }
    let statuses = old["status"]["containerStatuses"].items();
    let running = statuses.iter().find(|status| status["state"]["running"].is_set());
    if running.is_some_and(|status| status["resources"].is_null()) {
        errors.push(FieldError::forbidden(SPEC, "Pod running on node without support for resize"));
    }
    let mut munged = spec.clone();
    pod_level(&mut munged, before, errors);
    if !same_containers(spec, before, errors) {
        return;
    }
    for list in ["initContainers", "containers"] {
        let path = SPEC.child(list);
        for (index, (new, old)) in spec[list].items().iter().zip(before[list].items()).enumerate() {
            let item = path.index(index);
            for kind in ["requests", "limits"] {
                if were_removed(&new["resources"][kind], &old["resources"][kind]) {
                    let detail = format!("resource {kind} cannot be removed");
                    let resources = item.child("resources");
                    errors.push(FieldError::forbidden(resources.child(kind), &detail));
                }
            }
        }
    }
    for list in ["containers", "initContainers"] {
        other_changes(list, &mut munged, before, errors);
    }
    if spec["volumes"] != before["volumes"] {
        let detail = "volumes are immutable on resize when InPlacePodVerticalScalingMemoryBackedVolumes feature gate is \
                      disabled";
        errors.push(FieldError::forbidden(SPEC.child("volumes"), detail));
    }
    if errors.len() == so_far && munged != *before {
        errors.push(FieldError::forbidden(SPEC, "only cpu and memory resources are mutable"));
    }
}

/// Resources of the pod as a whole may change, but not go.
fn pod_level(spec: &mut Value, before: &Value, errors: &mut FieldErrors) {
    let (new, old) = (&spec["resources"], &before["resources"]);
    let has_any = |whole: &Value| !whole["requests"].is_empty() || !whole["limits"].is_empty();
    if !has_any(new) && !has_any(old) {
        return;
    }
    let path = SPEC.child("resources");
    if old.is_set() && new.is_null() {
        errors.push(FieldError::forbidden(path, "pod-level resources cannot be removed"));
        return;
    }
    for kind in ["requests", "limits"] {
        if old.is_set() && were_removed(&new[kind], &old[kind]) {
            let detail = format!("pod-level resource {kind} cannot be removed");
            errors.push(FieldError::forbidden(path.child(kind), &detail));
        }
    }
    let whole = child(spec, "resources");
    keep_compute(whole, old);
    if old.is_null() && whole.is_empty() {
        remove(spec, "resources");
    }
    if spec["resources"] != *old {
        errors.push(FieldError::forbidden(SPEC, "only cpu and memory resources are mutable at pod-level"));
    }
}

fn same_containers(spec: &Value, before: &Value, errors: &mut FieldErrors) -> bool {
    let so_far = errors.len();
    for list in ["containers", "initContainers"] {
        let (new, old, path) = (spec[list].items(), before[list].items(), SPEC.child(list));
        if new.len() != old.len() {
            errors.push(FieldError::forbidden(path, &format!("{list} may not be added or removed on resize")));
            continue;
        }
        for (index, _) in new.iter().zip(old).enumerate().filter(|(_, (new, old))| new["name"] != old["name"]) {
            let detail = format!("{list} may not be renamed or reordered on resize");
            errors.push(FieldError::forbidden(path.index(index).child("name"), &detail));
        }
    }
    errors.len() == so_far
}

/// Puts cpu and memory back, and complains about what else differs.
fn other_changes(list: &str, spec: &mut Value, before: &Value, errors: &mut FieldErrors) {
    let path = SPEC.child(list);
    for (index, (container, old)) in items_mut(spec, list).iter_mut().zip(before[list].items()).enumerate() {
        let was_modified = container != old;
        keep_compute(child(container, "resources"), &old["resources"]);
        let (at, detail) = match list {
            "containers" => (SPEC, "only cpu and memory resources are mutable"),
            _ => (path.index(index), "only cpu and memory resources for init or sidecar containers are mutable"),
        };
        if container != old {
            errors.push(FieldError::forbidden(at, detail));
        }
        if list == "initContainers" && was_modified && container["restartPolicy"] != "Always" {
            let restarts = |policy: &&Value| policy["restartPolicy"] == "RestartContainer";
            for _ in container["resizePolicy"].items().iter().filter(restarts) {
                let detail = "non-sidecar init containers with a resize policy of RestartContainer cannot be resized";
                errors.push(FieldError::forbidden(at, detail));
            }
        }
    }
}

/// Takes cpu and memory from before.
fn keep_compute(requirements: &mut Value, old: &Value) {
    for kind in ["requests", "limits"] {
        if requirements[kind].is_null() && old[kind].is_null() {
            continue;
        }
        let list = child(requirements, kind);
        for resource in ["cpu", "memory"] {
            keep(list, &old[kind], resource);
        }
        if list.is_empty() && old[kind].is_empty() {
            keep(requirements, old, kind);
        }
    }
}

fn were_removed(new: &Value, old: &Value) -> bool {
    old.entries().any(|(resource, _)| new.get(resource).is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terms_may_only_grow() {
        let (a, b) = (json!({"key": "a"}), json!({"key": "b"}));
        for (new, old, expected) in [
            (json!({"matchExpressions": [a, b]}), json!({"matchExpressions": [a]}), true),
            (json!({"matchExpressions": [b]}), json!({"matchExpressions": [a]}), false),
            (json!({"matchExpressions": [a], "matchFields": [b]}), json!({"matchExpressions": [a]}), true),
            (json!({"matchExpressions": [a]}), json!({}), false),
        ] {
            assert_eq!(only_adds(&new, &old), expected, "{new} {old}");
        }
    }
}
