//! Checks of nodes.

use serde_json::Value;

use crate::kinds::value::{Read, repeats};
use crate::kinds::{FieldError, FieldErrors, checks, internal, network};
use crate::meta::field::{Path, Printed};
use crate::meta::{names, text};

/// Checks a node by itself.
pub(super) fn node(node: &Value, errors: &mut FieldErrors) {
    // The reference looks for them under metadata.
    taints(&Path::new("metadata.taints"), &node["spec"]["taints"], errors);
    resources(node, errors);
    if let Some(capacity) = node["status"]["nodeInfo"]["swap"]["capacity"].maybe_int().filter(|bytes| *bytes <= 0) {
        let path = "metadata.nodeSwapStatus.capacity";
        errors.push(FieldError::invalid(path, capacity, "must be greater than 0"));
    }
    declared_features(node, errors);
    let (ranges, path) = (node["spec"]["podCIDRs"].items(), Path::new("spec.podCIDRs"));
    for (index, range) in ranges.iter().enumerate() {
        network::validate_legacy_cidr(&path.index(index), range.text(), &[], errors);
    }
    if ranges.len() > 1 {
        let families: Vec<bool> =
            ranges.iter().filter_map(|range| network::parse_cidr(range.text())).map(|(ip, _)| ip.is_ipv4()).collect();
        let both = families.contains(&true) && families.contains(&false);
        if !both || ranges.len() > 2 {
            let detail = "may specify no more than one CIDR for each IP family";
            errors.push(FieldError::invalid(path, &node["spec"]["podCIDRs"], detail));
        }
    }
}

/// Checks what of a node may change.
pub(super) fn update(node: &Value, old: &Value, errors: &mut FieldErrors) {
    resources(node, errors);
    declared_features(node, errors);
    let (addresses, path) = (node["status"]["addresses"].items(), Path::new("status.addresses"));
    let repeated = repeats(addresses);
    for (index, address) in addresses.iter().enumerate() {
        if repeated[index] {
            let shown = internal::text("NodeAddress", address);
            errors.push(FieldError::duplicate(path.index(index), Printed(&shown)));
        }
    }
    let (spec, before) = (&node["spec"], &old["spec"]);
    let (ranges, ranges_before) = (spec["podCIDRs"].items(), before["podCIDRs"].items());
    if !ranges_before.is_empty() {
        let changed = match ranges.len() == ranges_before.len() {
            true => ranges.iter().zip(ranges_before).filter(|(new, old)| new != old).count(),
            false => 1,
        };
        for _ in 0..changed {
            let detail = "node updates may not change podCIDR except from \"\" to valid";
            errors.push(FieldError::forbidden("spec.podCIDRs", detail));
        }
    }
    match (spec["providerID"].text(), before["providerID"].text()) {
        (_, "") => {}
        ("", _) => {
            errors.push(FieldError::invalid("spec.providerID", Printed("null"), "field cannot be cleared once set"))
        }
        (new, old) if new != old => {
            errors.push(FieldError::invalid("spec.providerID", Printed("null"), "field cannot be modified once set"));
        }
        _ => {}
    }
    taints(&Path::new("metadata.taints"), &spec["taints"], errors);
    if spec["externalID"].text() != before["externalID"].text() {
        errors.push(FieldError::forbidden("spec.externalID", "may not be updated"));
    }
}

fn taints(path: &Path<'_>, taints: &Value, errors: &mut FieldErrors) {
    let taints = taints.items();
    let repeated = repeats(taints.iter().map(|taint| (taint["key"].text(), taint["effect"].text())));
    for (index, taint) in taints.iter().enumerate() {
        let path = path.index(index);
        let (key, value) = (taint["key"].text(), taint["value"].text());
        checks::qualified_name(&path.child("key"), key, errors);
        let wrong = names::label_value(value);
        if !wrong.is_empty() {
            errors.push(FieldError::invalid(path.child("value"), value, &wrong.join(";")));
        }
        match taint["effect"].text() {
            "" => errors.push(FieldError::required(path.child("effect"), "")),
            _ => checks::taint_effect(&path.child("effect"), &taint["effect"], errors),
        }
        if repeated[index] {
            let shown = internal::text("Taint", taint);
            let mut error = FieldError::duplicate(path, Printed(&shown));
            error.message.push_str(": taints must be unique by key and effect pair");
            errors.push(error);
        }
    }
}

fn resources(node: &Value, errors: &mut FieldErrors) {
    for list in ["capacity", "allocatable"] {
        let status = Path::new("status");
        let path = status.child(list);
        for (resource, quantity) in node["status"][list].entries() {
            checks::resource_quantity(&path.child(resource), resource, quantity, errors);
        }
    }
}

fn declared_features(node: &Value, errors: &mut FieldErrors) {
    let (features, path) = (node["status"]["declaredFeatures"].items(), Path::new("status.declaredFeatures"));
    for (index, feature) in features.iter().enumerate() {
        let name = feature.text();
        let quoted = text::quote(name);
        if name.len() > 253 {
            let detail = format!("invalid feature name {quoted}: must be no more than 253 characters");
            errors.push(FieldError::invalid(path.index(index), name, &detail));
        } else if !is_feature_name(name) {
            let detail = format!(
                "invalid feature name {quoted}: must start with an UpperCamelCase segment, with subsequent segments \
                 separated by '/' (e.g., MyFeature or MyFeature/mySubFeature), and contain only alphanumeric characters \
                 and slashes"
            );
            errors.push(FieldError::invalid(path.index(index), name, &detail));
        }
        if let Some(next) = features.get(index + 1).map(Read::text) {
            if name == next {
                errors.push(FieldError::duplicate(path.index(index + 1), next));
            } else if name > next {
                errors.push(FieldError::invalid(path.index(index + 1), next, "list must be sorted alphabetically"));
            }
        }
    }
}

fn is_feature_name(name: &str) -> bool {
    name.bytes().next().is_some_and(|b| b.is_ascii_uppercase())
        && name.split('/').all(|part| {
            part.bytes().next().is_some_and(|b| b.is_ascii_alphabetic())
                && part.bytes().all(|b| b.is_ascii_alphanumeric())
        })
}
