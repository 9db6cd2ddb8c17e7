//! Topology spread constraints.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use super::{Ratchet, affinity};
use crate::kinds::value::Read;
use crate::kinds::{FieldError, FieldErrors, checks};
use crate::meta::field::Path;
use crate::meta::selector::validate_label_selector;

pub(super) fn constraints(spec: &Value, path: &Path<'_>, ratchet: Ratchet, errors: &mut FieldErrors) {
    let constraints = spec["topologySpreadConstraints"].items();
    // How many of a pair are still to come.
    let mut left: HashMap<(&str, &str), usize> = HashMap::new();
    for constraint in constraints {
        *left.entry((constraint["topologyKey"].text(), constraint["whenUnsatisfiable"].text())).or_default() += 1;
    }
    for (index, constraint) in constraints.iter().enumerate() {
        let path = path.index(index);
        let (topology, action) = (constraint["topologyKey"].text(), constraint["whenUnsatisfiable"].text());
        positive(&constraint["maxSkew"], &path.child("maxSkew"), errors);
        if topology.is_empty() {
            errors.push(FieldError::required(path.child("topologyKey"), "can not be empty"));
        }
        let actions = ["DoNotSchedule", "ScheduleAnyway"];
        checks::supported(&path.child("whenUnsatisfiable"), &constraint["whenUnsatisfiable"], &actions, errors);
        let same = left.entry((topology, action)).or_default();
        *same = same.saturating_sub(1);
        if *same > 0 {
            let path = path.child("{topologyKey, whenUnsatisfiable}");
            errors.push(FieldError::duplicate(path, format!("{{{topology}, {action}}}")));
        }
        if let Some(domains) = constraint["minDomains"].maybe_int() {
            let path = path.child("minDomains");
            positive(&constraint["minDomains"], &path, errors);
            if action != "DoNotSchedule" {
                let detail = format!("can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {action}");
                errors.push(FieldError::invalid(path, domains, &detail));
            }
        }
        for field in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
            if constraint[field].is_set() {
                checks::supported(&path.child(field), &constraint[field], &["Honor", "Ignore"], errors);
            }
        }
        let (keys, selector) = (constraint["matchLabelKeys"].items(), &constraint["labelSelector"]);
        if ratchet.spread_label_keys {
            legacy_label_keys(&path.child("matchLabelKeys"), keys, selector, errors);
        } else {
            affinity::label_keys(&path, keys, &[], selector, errors);
        }
        if !ratchet.spread_selectors {
            validate_label_selector(selector, &path.child("labelSelector"), errors);
        }
    }
}

fn positive(value: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    if value.int() <= 0 {
        errors.push(FieldError::invalid(path, value.int(), "must be greater than zero"));
    }
}

/// The rule of before the keys were merged into the selector.
fn legacy_label_keys(path: &Path<'_>, keys: &[Value], selector: &Value, errors: &mut FieldErrors) {
    if !keys.is_empty() && selector.is_null() {
        errors.push(FieldError::forbidden(path, "must not be specified when labelSelector is not set"));
    }
    let expressions: HashSet<&str> =
        selector["matchExpressions"].items().iter().map(|expression| expression["key"].text()).collect();
    let selects = |key: &str| selector["matchLabels"].get(key).is_some() || expressions.contains(key);
    for (index, key) in keys.iter().enumerate() {
        checks::qualified_name(&path.index(index), key.text(), errors);
        if selects(key.text()) {
            errors.push(FieldError::invalid(path.index(index), key, "exists in both matchLabelKeys and labelSelector"));
        }
    }
}
