//! Where a pod may run: affinity and tolerations.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use super::Ratchet;
use crate::kinds::value::{Read, repeats};
use crate::kinds::{FieldError, FieldErrors, checks, internal};
use crate::meta::field::{Path, Printed};
use crate::meta::names;
use crate::meta::selector::validate_label_selector;

pub(super) const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
const SELECTOR: &str = "not a valid selector operator";

pub(super) fn affinity(affinity: &Value, path: &Path<'_>, ratchet: Ratchet, errors: &mut FieldErrors) {
    if affinity.is_null() {
        return;
    }
    node_affinity(&affinity["nodeAffinity"], &path.child("nodeAffinity"), ratchet, errors);
    for kind in ["podAffinity", "podAntiAffinity"] {
        let (rules, path) = (&affinity[kind], path.child(kind));
        let required = path.child(REQUIRED);
        for (index, term) in rules[REQUIRED].items().iter().enumerate() {
            pod_term(term, &required.index(index), ratchet, errors);
        }
        let preferred = path.child(PREFERRED);
        for (index, weighted) in rules[PREFERRED].items().iter().enumerate() {
            let path = preferred.index(index);
            weight(weighted, &path, errors);
            pod_term(&weighted["podAffinityTerm"], &path.child("podAffinityTerm"), ratchet, errors);
        }
    }
}

fn weight(term: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    let weight = term["weight"].int();
    if !(1..=100).contains(&weight) {
        errors.push(FieldError::invalid(path.child("weight"), weight, "must be in the range 1-100"));
    }
}

fn node_affinity(rules: &Value, path: &Path<'_>, ratchet: Ratchet, errors: &mut FieldErrors) {
    if rules[REQUIRED].is_set() {
        let path = path.child(REQUIRED);
        node_terms(&rules[REQUIRED], ratchet.node_affinity_values, &path, errors);
    }
    let list = path.child(PREFERRED);
    for (index, term) in rules[PREFERRED].items().iter().enumerate() {
        let path = list.index(index);
        weight(term, &path, errors);
        node_term(&term["preference"], true, &path.child("preference"), errors);
    }
}

/// Checks a selector of nodes.
pub(in crate::kinds) fn node_selector(selector: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    node_terms(selector, false, path, errors);
}

fn node_terms(selector: &Value, any_values: bool, path: &Path<'_>, errors: &mut FieldErrors) {
    let (terms, list) = (selector["nodeSelectorTerms"].items(), path.child("nodeSelectorTerms"));
    if terms.is_empty() {
        errors.push(FieldError::required(list, "must have at least one node selector term"));
    }
    for (index, term) in terms.iter().enumerate() {
        node_term(term, any_values, &list.index(index), errors);
    }
}

/// Checks what a node must be; wrong label values may pass, as they match nothing.
fn node_term(term: &Value, any_values: bool, path: &Path<'_>, errors: &mut FieldErrors) {
    let list = path.child("matchExpressions");
    for (index, requirement) in term["matchExpressions"].items().iter().enumerate() {
        let path = list.index(index);
        let (values, values_path) = (requirement["values"].items(), path.child("values"));
        match requirement["operator"].text() {
            "In" | "NotIn" if values.is_empty() => {
                errors.push(FieldError::required(values_path, "must be specified when `operator` is 'In' or 'NotIn'"));
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                let detail = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                errors.push(FieldError::forbidden(values_path, detail));
            }
            "Gt" | "Lt" if values.len() != 1 => {
                let detail = "must be specified single value when `operator` is 'Lt' or 'Gt'";
                errors.push(FieldError::required(values_path, detail));
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
            other => errors.push(FieldError::invalid(path.child("operator"), other, SELECTOR)),
        }
        checks::qualified_name(&path.child("key"), requirement["key"].text(), errors);
        for (index, value) in values.iter().enumerate().filter(|_| !any_values) {
            checks::invalid(&values_path.index(index), value.text(), names::label_value(value.text()), errors);
        }
    }
    let list = path.child("matchFields");
    for (index, requirement) in term["matchFields"].items().iter().enumerate() {
        let path = list.index(index);
        let (values, values_path) = (requirement["values"].items(), path.child("values"));
        match requirement["operator"].text() {
            "In" | "NotIn" if values.len() != 1 => {
                let detail = "must be only one value when `operator` is 'In' or 'NotIn' for node field selector";
                errors.push(FieldError::required(values_path, detail));
            }
            "In" | "NotIn" => {}
            other => errors.push(FieldError::invalid(path.child("operator"), other, SELECTOR)),
        }
        if requirement["key"] == "metadata.name" {
            for (index, value) in values.iter().enumerate() {
                checks::dns_subdomain(&values_path.index(index), value.text(), errors);
            }
        } else {
            let key = requirement["key"].text();
            errors.push(FieldError::invalid(path.child("key"), key, "not a valid field selector key"));
        }
    }
}

fn pod_term(term: &Value, path: &Path<'_>, ratchet: Ratchet, errors: &mut FieldErrors) {
    for field in ["labelSelector", "namespaceSelector"] {
        selector(&term[field], &path.child(field), ratchet.selector_values, errors);
    }
    for name in term["namespaces"].items() {
        checks::dns_label(&path.child("namespace"), name.text(), errors);
    }
    let (keys, without) = (term["matchLabelKeys"].items(), term["mismatchLabelKeys"].items());
    label_keys(path, keys, without, &term["labelSelector"], errors);
    let (key, path) = (&term["topologyKey"], path.child("topologyKey"));
    if key.is_empty() {
        errors.push(FieldError::required(path, "can not be empty"));
    }
    checks::qualified_name(&path, key.text(), errors);
}

/// Checks a label selector, of which values may be anything that is not a label's value.
fn selector(selector: &Value, path: &Path<'_>, any_values: bool, errors: &mut FieldErrors) {
    let mut found = FieldErrors::new();
    validate_label_selector(selector, path, &mut found);
    if any_values {
        found.retain(|error| !error.field.contains(".values["));
    }
    errors.append(found);
}

/// Checks label keys whose values the pod itself gives, against the selector they are added to.
pub(super) fn label_keys(
    path: &Path<'_>,
    keys: &[Value],
    without: &[Value],
    selector: &Value,
    errors: &mut FieldErrors,
) {
    for (list, keys) in [("matchLabelKeys", keys), ("mismatchLabelKeys", without)] {
        let path = path.child(list);
        if keys.is_empty() {
            continue;
        }
        if selector.is_null() {
            errors.push(FieldError::forbidden(path, "must not be specified when labelSelector is not set"));
            continue;
        }
        for (index, key) in keys.iter().enumerate() {
            checks::qualified_name(&path.index(index), key.text(), errors);
        }
    }
    // A key that is once in the expressions may be there because the server put it there.
    let expressions = selector["matchExpressions"].items();
    let repeated = repeats(expressions.iter().map(|expression| expression["key"].text()));
    let places: HashMap<&str, usize> = keys.iter().enumerate().map(|(at, key)| (key.text(), at)).collect();
    let without: HashSet<&str> = without.iter().map(Read::text).collect();
    for (index, expression) in expressions.iter().enumerate() {
        let key = expression["key"].text();
        if let Some(&at) = places.get(key)
            && (selector["matchLabels"].get(key).is_some() || repeated[index])
        {
            errors.push(FieldError::invalid(path.index(at), key, "exists in both matchLabelKeys and labelSelector"));
        }
    }
    for (index, key) in keys.iter().enumerate().filter(|(_, key)| without.contains(key.text())) {
        let detail = "exists in both matchLabelKeys and mismatchLabelKeys";
        errors.push(FieldError::invalid(path.child("matchLabelKeys").index(index), key, detail));
    }
}

/// Checks the tolerations of a class, none of which may be there twice.
pub(in crate::kinds) fn unique_tolerations(list: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    tolerations(list, path, Ratchet::default(), errors);
    let key =
        |toleration: &Value| ["key", "operator", "value", "effect"].map(|field| toleration[field].text().to_owned());
    for (index, again) in repeats(list.items().iter().map(key)).into_iter().enumerate() {
        if again {
            let shown = internal::text("Toleration", &list[index]);
            errors.push(FieldError::duplicate(path.index(index), Printed(&shown)));
        }
    }
}

/// Checks tolerations.
pub(super) fn tolerations(tolerations: &Value, path: &Path<'_>, ratchet: Ratchet, errors: &mut FieldErrors) {
    for (index, toleration) in tolerations.items().iter().enumerate() {
        let path = path.index(index);
        let (key, value) = (toleration["key"].text(), toleration["value"].text());
        let (operator, effect) = (toleration["operator"].text(), toleration["effect"].text());
        let operator_path = path.child("operator");
        if !key.is_empty() {
            checks::qualified_name(&path.child("key"), key, errors);
        } else if operator != "Exists" {
            let detail = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            errors.push(FieldError::invalid(operator_path, operator, detail));
        }
        if toleration["tolerationSeconds"].is_set() && effect != "NoExecute" {
            let detail = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            errors.push(FieldError::invalid(path.child("effect"), effect, detail));
        }
        match operator {
            "Equal" | "" => {
                let wrong = names::label_value(value);
                if !wrong.is_empty() {
                    errors.push(FieldError::invalid(operator_path, value, &wrong.join(";")));
                }
            }
            "Exists" if !value.is_empty() => {
                let detail = "value must be empty when `operator` is 'Exists'";
                errors.push(FieldError::invalid(operator_path, value, detail));
            }
            "Exists" => {}
            "Lt" | "Gt" if ratchet.comparing_tolerations => {}
            "Lt" | "Gt" => {
                errors.push(FieldError::not_supported(operator_path, operator, &["Equal", "Exists", "Lt", "Gt"]));
            }
            _ => errors.push(FieldError::not_supported(operator_path, operator, &["Equal", "Exists"])),
        }
        if !effect.is_empty() {
            checks::taint_effect(&path.child("effect"), &toleration["effect"], errors);
        }
    }
}
