//! Deployment.

use serde_json::{Value, json};

use super::value::{Read, child, default_to, default_when_zero, fields, keep};
use super::{
    AGE, Cell, FieldError, FieldErrors, Kind, NAME, Strategy, VERBS, checks, column, pod, podtemplate, table, wide,
};
use crate::meta::field::{Path, Printed};
use crate::meta::{names, text};

pub(super) static KIND: Kind = Kind {
    group: "apps",
    version: "v1",
    kind: "Deployment",
    resource: "deployments",
    singular: "deployment",
    short_names: &["deploy"],
    categories: &["all"],
    namespaced: true,
    schema: "io.k8s.api.apps.v1.Deployment",
    collection: "deployments.apps",
    verbs: VERBS,
    has_status: true,
    has_scale: true,
    subresources: &[],
    selectable: &[],
    columns: &[
        NAME,
        column("Ready", "string"),
        column("Up-to-date", "string"),
        column("Available", "string"),
        AGE,
        wide("Containers", "string"),
        wide("Images", "string"),
        wide("Selector", "string"),
    ],
    strategy: &Deployment,
};

struct Deployment;

impl Strategy for Deployment {
    fn default(&self, object: &mut Value) {
        let spec = child(object, "spec");
        default_to(spec, "replicas", 1);
        let strategy = child(spec, "strategy");
        default_when_zero(strategy, "type", "RollingUpdate");
        if strategy["type"] == "RollingUpdate" {
            let rolling = child(strategy, "rollingUpdate");
            default_to(rolling, "maxUnavailable", "25%");
            default_to(rolling, "maxSurge", "25%");
        }
        default_to(spec, "revisionHistoryLimit", 10);
        default_to(spec, "progressDeadlineSeconds", 600);
        podtemplate::default(child(spec, "template"));
        child(object, "status");
    }

    fn prepare_create(&self, object: &mut Value) {
        fields(object).insert("status".to_owned(), json!({}));
        pod::drop_disabled(child(child(child(object, "spec"), "template"), "spec"), None);
    }

    fn prepare_update(&self, object: &mut Value, old: &Value) {
        keep(object, old, "status");
        let spec = child(child(child(object, "spec"), "template"), "spec");
        pod::drop_disabled(spec, Some(&old["spec"]["template"]["spec"]));
    }

    fn prepare_status_update(&self, object: &mut Value, old: &Value) {
        keep(object, old, "spec");
        keep(child(object, "metadata"), &old["metadata"], "labels");
    }

    fn validate(&self, object: &Value, errors: &mut FieldErrors) {
        validate_spec(&object["spec"], None, errors);
    }

    fn validate_update(&self, object: &Value, old: &Value, errors: &mut FieldErrors) {
        let (spec, before) = (&object["spec"], &old["spec"]);
        validate_spec(spec, Some(before), errors);
        checks::immutable_selector(&Path::new("spec.selector"), &spec["selector"], &before["selector"], errors);
    }

    fn validate_status_update(&self, object: &Value, old: &Value, errors: &mut FieldErrors) {
        const COUNTS: [&str; 8] = [
            "observedGeneration",
            "replicas",
            "updatedReplicas",
            "readyReplicas",
            "availableReplicas",
            "unavailableReplicas",
            "terminatingReplicas",
            "collisionCount",
        ];
        let status = &object["status"];
        podtemplate::validate_counts(
            status,
            &COUNTS,
            &["updatedReplicas", "readyReplicas", "availableReplicas"],
            errors,
        );
        podtemplate::validate_collisions(status, &old["status"], errors);
    }

    fn has_generation(&self) -> bool {
        true
    }

    /// Annotations count: they are copied to the replica sets.
    fn changes_generation(&self, object: &Value, old: &Value) -> bool {
        let annotations = |object: &Value| object["metadata"].get("annotations").filter(|map| !map.is_empty()).cloned();
        object["spec"] != old["spec"] || annotations(object) != annotations(old)
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        podtemplate::warnings_of_owner(self, object, old)
    }

    fn cells(&self, object: &Value) -> Vec<Cell> {
        let (spec, status) = (&object["spec"], &object["status"]);
        let [names, images] = table::containers(&spec["template"]["spec"]);
        vec![
            table::name(object),
            format!("{}/{}", status["readyReplicas"].int(), spec["replicas"].int()).into(),
            status["updatedReplicas"].int().into(),
            status["availableReplicas"].int().into(),
            table::age(object),
            names,
            images,
            table::selector(&spec["selector"], "", "<invalid>"),
        ]
    }
}

fn validate_spec(spec: &Value, old: Option<&Value>, errors: &mut FieldErrors) {
    let path = Path::new("spec");
    checks::nonnegative(&path.child("replicas"), &spec["replicas"], errors);
    podtemplate::validate_of_owner(spec, old, errors);
    validate_strategy(&spec["strategy"], &path.child("strategy"), errors);
    checks::nonnegative(&path.child("minReadySeconds"), &spec["minReadySeconds"], errors);
    checks::nonnegative(&path.child("revisionHistoryLimit"), &spec["revisionHistoryLimit"], errors);
    if let Some(deadline) = spec["progressDeadlineSeconds"].maybe_int() {
        let path = path.child("progressDeadlineSeconds");
        checks::nonnegative(&path, &spec["progressDeadlineSeconds"], errors);
        if deadline <= spec["minReadySeconds"].int() {
            errors.push(FieldError::invalid(path, deadline, "must be greater than minReadySeconds"));
        }
    }
}

fn validate_strategy(strategy: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    let (rolling, rolling_path) = (&strategy["rollingUpdate"], path.child("rollingUpdate"));
    match strategy["type"].text() {
        "Recreate" if rolling.is_set() => {
            errors.push(FieldError::forbidden(rolling_path, "may not be specified when strategy `type` is 'Recreate'"));
        }
        "Recreate" => {}
        "RollingUpdate" => {
            let (unavailable, surge) = (&rolling["maxUnavailable"], &rolling["maxSurge"]);
            let unavailable_path = rolling_path.child("maxUnavailable");
            count_or_percent(&unavailable_path, unavailable, errors);
            count_or_percent(&rolling_path.child("maxSurge"), surge, errors);
            if value_of(unavailable) == 0 && value_of(surge) == 0 {
                errors.push(FieldError::invalid(unavailable_path, unavailable, "may not be 0 when `maxSurge` is 0"));
            }
            if percent_of(unavailable).is_some_and(|percent| percent > 100) {
                errors.push(FieldError::invalid(unavailable_path, unavailable, "must not be greater than 100%"));
            }
        }
        kind => {
            let number = |value: &Value| if value.is_null() { 0.into() } else { value.clone() };
            let parts = [number(&rolling["maxUnavailable"]), number(&rolling["maxSurge"])];
            let rolling = match rolling {
                Value::Null => "null".to_owned(),
                _ => format!("{{\"MaxUnavailable\":{},\"MaxSurge\":{}}}", text::json(&parts[0]), text::json(&parts[1])),
            };
            let shown = format!("{{\"Type\":{},\"RollingUpdate\":{rolling}}}", text::json(&kind.into()));
            errors.push(FieldError::not_supported(path, Printed(&shown), &["Recreate", "RollingUpdate"]));
        }
    }
}

/// A count that is not below 0, or a percentage.
pub(super) fn count_or_percent(path: &Path<'_>, value: &Value, errors: &mut FieldErrors) {
    match value {
        Value::String(text) => checks::invalid(path, text, names::percent(text), errors),
        number => checks::nonnegative(path, number, errors),
    }
}

pub(super) fn percent_of(value: &Value) -> Option<i64> {
    let digits = value.as_str()?.strip_suffix('%')?;
    names::percent(value.text()).is_empty().then(|| digits.parse().unwrap_or(i64::MAX))
}

/// The number of a count or percentage; what is neither counts as 0, as in Go.
pub(super) fn value_of(value: &Value) -> i64 {
    percent_of(value).or(value.maybe_int()).or_else(|| value.text().parse().ok()).unwrap_or_default()
}
