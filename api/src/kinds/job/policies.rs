//! Checks of the two policies of a Job, in the words of Kubernetes, and how Go prints them.

use std::collections::HashSet;

use serde_json::Value;

use super::indexes;
use crate::kinds::value::{Read, repeats};
use crate::kinds::{FieldError, FieldErrors, checks};
use crate::meta::field::{Path, Printed};
use crate::meta::text;

const RULES_MAX: usize = 20;
const EXIT_CODES_MAX: usize = 255;
const CONDITIONS_MAX: usize = 20;
/// Of `succeededIndexes`.
const INDEXES_BYTES_MAX: usize = 64 << 10;

const ACTIONS: [&str; 4] = ["Count", "FailIndex", "FailJob", "Ignore"];
const OPERATORS: [&str; 2] = ["In", "NotIn"];
const STATUSES: [&str; 3] = ["False", "True", "Unknown"];

/// `valid values: ["A" "B"]`
fn valid(values: &[&str]) -> String {
    let values: Vec<String> = values.iter().map(|value| text::quote(value)).collect();
    format!("valid values: [{}]", values.join(" "))
}

fn required_of(path: &Path<'_>, value: &Value, all: &[&str], errors: &mut FieldErrors) {
    if value.is_empty() {
        errors.push(FieldError::required(path, &valid(all)));
    } else {
        checks::supported(path, value, all, errors);
    }
}

/// Checks `spec.podFailurePolicy`.
pub(super) fn pod_failure(spec: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    let rules = spec["podFailurePolicy"]["rules"].items();
    let rules_path = path.child("rules");
    if rules.len() > RULES_MAX {
        errors.push(FieldError::too_many(rules_path, rules.len(), RULES_MAX));
    }
    let pod = &spec["template"]["spec"];
    let containers = pod["containers"].items().iter().chain(pod["initContainers"].items());
    let names: HashSet<&str> = containers.map(|container| container["name"].text()).collect();
    for (index, rule) in rules.iter().enumerate() {
        if errors.is_full() {
            return;
        }
        let path = rules_path.index(index);
        let action = &rule["action"];
        if action == "FailIndex" {
            if spec["backoffLimitPerIndex"].is_null() {
                let detail = "requires the backoffLimitPerIndex to be set";
                errors.push(FieldError::invalid(path.child("action"), action, detail));
            }
        } else {
            required_of(&path.child("action"), action, &ACTIONS, errors);
        }
        let (codes, conditions) = (&rule["onExitCodes"], rule["onPodConditions"].items());
        if codes.is_set() {
            exit_codes(codes, &names, &path.child("onExitCodes"), errors);
        }
        pod_conditions(conditions, &path.child("onPodConditions"), errors);
        match (codes.is_set(), conditions.is_empty()) {
            (true, false) => {
                let detail = "specifying both OnExitCodes and OnPodConditions is not supported";
                errors.push(FieldError::invalid(path, Printed(""), detail));
            }
            (false, true) => {
                let detail = "specifying one of OnExitCodes and OnPodConditions is required";
                errors.push(FieldError::invalid(path, Printed(""), detail));
            }
            _ => {}
        }
    }
}

fn pod_conditions(patterns: &[Value], path: &Path<'_>, errors: &mut FieldErrors) {
    if patterns.len() > CONDITIONS_MAX {
        errors.push(FieldError::too_many(path, patterns.len(), CONDITIONS_MAX));
    }
    for (index, pattern) in patterns.iter().enumerate() {
        let path = path.index(index);
        checks::qualified_name(&path.child("type"), pattern["type"].text(), errors);
        required_of(&path.child("status"), &pattern["status"], &STATUSES, errors);
    }
}

fn exit_codes(requirement: &Value, names: &HashSet<&str>, path: &Path<'_>, errors: &mut FieldErrors) {
    required_of(&path.child("operator"), &requirement["operator"], &OPERATORS, errors);
    let name = &requirement["containerName"];
    if name.is_set() && !names.contains(name.text()) {
        let detail = "must be one of the container or initContainer names in the pod template";
        errors.push(FieldError::invalid(path.child("containerName"), name, detail));
    }
    let (values, values_path) = (&requirement["values"], path.child("values"));
    let codes = values.items();
    if codes.is_empty() {
        errors.push(FieldError::invalid(values_path, values, "at least one value is required"));
    } else if codes.len() > EXIT_CODES_MAX {
        errors.push(FieldError::too_many(values_path, codes.len(), EXIT_CODES_MAX));
    }
    let repeats = repeats(codes.iter().map(Read::int));
    for (index, code) in codes.iter().map(Read::int).enumerate() {
        let path = values_path.index(index);
        if requirement["operator"] == "In" && code == 0 {
            errors.push(FieldError::invalid(path, code, "must not be 0 for the In operator"));
        }
        if repeats[index] {
            errors.push(FieldError::duplicate(path, code));
        }
    }
    if !codes.iter().map(Read::int).is_sorted() {
        errors.push(FieldError::invalid(values_path, values, "must be ordered"));
    }
}

/// Checks `spec.successPolicy` of an indexed Job.
pub(super) fn success(spec: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    let rules = spec["successPolicy"]["rules"].items();
    let rules_path = path.child("rules");
    if rules.is_empty() {
        let detail = "at least one rules must be specified when the successPolicy is specified";
        errors.push(FieldError::required(rules_path, detail));
    }
    if rules.len() > RULES_MAX {
        errors.push(FieldError::too_many(rules_path, rules.len(), RULES_MAX));
    }
    let completions = spec["completions"].int();
    for (index, rule) in rules.iter().enumerate() {
        if errors.is_full() {
            return;
        }
        let path = rules_path.index(index);
        let (wanted, indexes) = (&rule["succeededCount"], &rule["succeededIndexes"]);
        if wanted.is_null() && indexes.is_null() {
            let detail = "at least one of succeededCount or succeededIndexes must be specified";
            errors.push(FieldError::required(path, detail));
        }
        let mut total = 0;
        if indexes.is_set() {
            let path = path.child("succeededIndexes");
            if indexes.text().len() > INDEXES_BYTES_MAX {
                errors.push(FieldError::too_long(path, INDEXES_BYTES_MAX));
            }
            match indexes::count(indexes.text(), completions) {
                Ok(count) => total = count,
                Err(why) => {
                    let detail = format!("error parsing succeededIndexes: {why}");
                    errors.push(FieldError::invalid(path, indexes, &detail));
                }
            }
        }
        if let Some(count) = wanted.maybe_int() {
            let path = path.child("succeededCount");
            checks::nonnegative(&path, wanted, errors);
            if count > completions {
                let detail =
                    format!("must be less than or equal to {completions} (the number of specified completions)");
                errors.push(FieldError::invalid(path, count, &detail));
            }
            if indexes.is_set() && count > total {
                let detail = format!(
                    "must be less than or equal to {total} (the number of indexes in the specified succeededIndexes field)"
                );
                errors.push(FieldError::invalid(path, count, &detail));
            }
        }
    }
}

/// `successPolicy` as Go prints its internal type.
pub(super) fn success_text(policy: &Value) -> String {
    if policy.is_null() {
        return "null".to_owned();
    }
    let rule = |rule: &Value| {
        let [indexes, count] = ["succeededIndexes", "succeededCount"].map(|field| text::json(&rule[field]));
        format!("{{\"SucceededIndexes\":{indexes},\"SucceededCount\":{count}}}")
    };
    format!("{{\"Rules\":{}}}", list(&policy["rules"], rule))
}

/// `podFailurePolicy` as Go prints its internal type.
pub(super) fn pod_failure_text(policy: &Value) -> String {
    if policy.is_null() {
        return "null".to_owned();
    }
    let text_of = |value: &Value| text::json(&value.text().into());
    let condition = |pattern: &Value| {
        format!("{{\"Type\":{},\"Status\":{}}}", text_of(&pattern["type"]), text_of(&pattern["status"]))
    };
    let rule = |rule: &Value| {
        let codes = &rule["onExitCodes"];
        let codes = if codes.is_null() {
            "null".to_owned()
        } else {
            let (name, values) = (text::json(&codes["containerName"]), text::json(&codes["values"]));
            format!("{{\"ContainerName\":{name},\"Operator\":{},\"Values\":{values}}}", text_of(&codes["operator"]))
        };
        let conditions = list(&rule["onPodConditions"], condition);
        format!("{{\"Action\":{},\"OnExitCodes\":{codes},\"OnPodConditions\":{conditions}}}", text_of(&rule["action"]))
    };
    format!("{{\"Rules\":{}}}", list(&policy["rules"], rule))
}

fn list(items: &Value, print: impl Fn(&Value) -> String) -> String {
    match items {
        Value::Null => "null".to_owned(),
        items => format!("[{}]", items.items().iter().map(print).collect::<Vec<_>>().join(",")),
    }
}
