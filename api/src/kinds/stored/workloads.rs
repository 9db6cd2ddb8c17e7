//! Kinds that make pods, or spare them.

use serde_json::Value;

use super::rules::{Check, Rule};
use super::show::Show::{Age, Flag, Name, Number, Text};
use super::{BLANK, Kind, Stored, row};
use crate::kinds::deployment::{count_or_percent, percent_of};
use crate::kinds::value::{Read, default_to};
use crate::kinds::{AGE, FieldError, FieldErrors, NAME, checks, column, internal, pod};
use crate::meta::field::{Path, Printed};
use crate::meta::selector::validate_label_selector;
use crate::meta::validate_labels;

const BUDGET: &[Rule] = &[Rule("spec.unhealthyPodEvictionPolicy", Check::OneOf(&["AlwaysAllow", "IfHealthyBudget"]))];
const RUNTIME: &[Rule] = &[Rule("handler", Check::Required("")), Rule("handler", Check::Label)];

pub(super) static ROWS: &[Kind] = &[
    row!(namespaced "policy" "io.k8s.api.policy.v1" "PodDisruptionBudget" "poddisruptionbudgets" "poddisruptionbudget",
        [
            NAME => Name,
            column("Min Available", "string") => Text("spec.minAvailable", "N/A"),
            column("Max Unavailable", "string") => Text("spec.maxUnavailable", "N/A"),
            column("Allowed Disruptions", "integer") => Number("status.disruptionsAllowed"),
            AGE => Age,
        ],
        Stored::new(super::Support::Honoured).counted().needs_version().rules(BUDGET).check_by(budget)
            .check_status_by(budget_status),
        short_names: &["pdb"], has_status: true),
    row!(cluster "scheduling.k8s.io" "io.k8s.api.scheduling.v1" "PriorityClass" "priorityclasses" "priorityclass",
        [
            NAME => Name,
            column("Value", "integer") => Number("value"),
            column("Global-Default", "boolean") => Flag("globalDefault"),
            AGE => Age,
            column("PreemptionPolicy", "string") => Text("preemptionPolicy", ""),
        ],
        Stored::new(super::Support::Honoured).counted().default_by(priority_class).check_by(priority_class_check)
            .checked_once().fixes(&["preemptionPolicy"]).check_change_by(same_priority),
        short_names: &["pc"]),
    row!(cluster "node.k8s.io" "io.k8s.api.node.v1" "RuntimeClass" "runtimeclasses" "runtimeclass",
        [NAME => Name, column("Handler", "string") => Text("handler", ""), AGE => Age],
        Stored::inert("pods are not run by it yet").rules(RUNTIME).check_by(runtime_class).locks(&["handler"])
            .made_by_update().needs_version()),
];

fn budget(object: &Value, errors: &mut FieldErrors) {
    let spec = &object["spec"];
    if spec["minAvailable"].is_set() && spec["maxUnavailable"].is_set() {
        let (shown, detail) =
            (internal::text("PodDisruptionBudgetSpec", spec), "minAvailable and maxUnavailable cannot be both set");
        errors.push(FieldError::invalid("spec", Printed(&shown), detail));
    }
    for (at, value) in [("spec.minAvailable", &spec["minAvailable"]), ("spec.maxUnavailable", &spec["maxUnavailable"])]
    {
        if !value.is_set() {
            continue;
        }
        let path = Path::new(at);
        count_or_percent(&path, value, errors);
        if percent_of(value).is_some_and(|percent| percent > 100) {
            errors.push(FieldError::invalid(path, value, "must not be greater than 100%"));
        }
    }
    validate_label_selector(&spec["selector"], &Path::new("spec.selector"), errors);
}

fn budget_status(object: &Value, _old: &Value, errors: &mut FieldErrors) {
    checks::conditions(object["status"]["conditions"].items(), &Path::new("status.conditions"), errors);
    super::rules::check(
        &[
            Rule("status.disruptionsAllowed", Check::NonNegative),
            Rule("status.currentHealthy", Check::NonNegative),
            Rule("status.desiredHealthy", Check::NonNegative),
            Rule("status.expectedPods", Check::NonNegative),
        ],
        object,
        errors,
    );
}

fn priority_class(object: &mut Value) {
    default_to(object, "preemptionPolicy", "PreemptLowerPriority");
}

/// Highest priority that a user's class may stand for.
const PRIORITY_MAX: i64 = 1_000_000_000;

fn priority_class_check(object: &Value, errors: &mut FieldErrors) {
    let system = [("system-cluster-critical", 2_000_000_000), ("system-node-critical", 2_000_001_000)];
    let (name, value) = (object["metadata"]["name"].text(), object["value"].int());
    if name.starts_with("system-") {
        let problem = match system.into_iter().find(|(known, _)| *known == name) {
            None => Some(format!("{name} is not a known system priority class")),
            Some((_, fixed)) if fixed != value => Some(format!("value of {name} PriorityClass must be {fixed}")),
            Some(_) if object["globalDefault"].flag() => {
                Some(format!("globalDefault of {name} PriorityClass must be false"))
            }
            Some(_) => None,
        };
        if let Some(problem) = problem {
            let head = "priority class names with 'system-' prefix are reserved for system use only. error:";
            errors.push(FieldError::forbidden("metadata.name", &format!("{head} {problem}")));
        }
    } else if value > PRIORITY_MAX {
        let detail = format!("maximum allowed value of a user defined priority is {PRIORITY_MAX}");
        errors.push(FieldError::forbidden("value", &detail));
    }
    let (path, policy) = (Path::new("preemptionPolicy"), &object["preemptionPolicy"]);
    match policy.text() {
        "" => errors.push(FieldError::required(path, "")),
        _ => checks::supported(&path, policy, &["PreemptLowerPriority", "Never"], errors),
    }
}

fn same_priority(object: &Value, old: &Value, errors: &mut FieldErrors) {
    if object["value"] != old["value"] {
        errors.push(FieldError::forbidden("value", "may not be changed in an update."));
    }
}

fn runtime_class(object: &Value, errors: &mut FieldErrors) {
    pod::fixed_overhead(&object["overhead"]["podFixed"], &Path::new("overhead"), errors);
    let (scheduling, path) = (&object["scheduling"], Path::new("scheduling"));
    validate_labels(scheduling["nodeSelector"].as_object(), &path.child("nodeSelector"), errors);
    pod::unique_tolerations(&scheduling["tolerations"], &path.child("tolerations"), errors);
}
