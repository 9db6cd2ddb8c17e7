//! DaemonSet: a pod on every node that takes it.

use serde_json::{Value, json};

use super::deployment::{count_or_percent, percent_of, value_of};
use super::value::{Read, child, default_to, default_when_zero, fields, keep};
use super::{
    AGE, Cell, FieldError, FieldErrors, Kind, NAME, Strategy, VERBS, checks, column, pod, podtemplate, table, wide,
};
use crate::meta::field::{Path, Printed};
use crate::meta::selector::{LabelSelector, validate_label_selector};
use crate::meta::text;

/// Counts the changes of the template. It was a field once; clients and pods still know it.
const TEMPLATE_GENERATION: &str = "deprecated.daemonset.template.generation";

pub(super) static KIND: Kind = Kind {
    group: "apps",
    version: "v1",
    kind: "DaemonSet",
    resource: "daemonsets",
    singular: "daemonset",
    short_names: &["ds"],
    categories: &["all"],
    namespaced: true,
    schema: "io.k8s.api.apps.v1.DaemonSet",
    collection: "daemonsets.apps",
    verbs: VERBS,
    has_status: true,
    has_scale: false,
    subresources: &[],
    selectable: &[],
    columns: &[
        NAME,
        column("Desired", "integer"),
        column("Current", "integer"),
        column("Ready", "integer"),
        column("Up-to-date", "integer"),
        column("Available", "integer"),
        column("Node Selector", "string"),
        AGE,
        wide("Containers", "string"),
        wide("Images", "string"),
        wide("Selector", "string"),
    ],
    strategy: &DaemonSet,
};

struct DaemonSet;

impl Strategy for DaemonSet {
    fn default(&self, object: &mut Value) {
        let spec = child(object, "spec");
        let strategy = child(spec, "updateStrategy");
        default_when_zero(strategy, "type", "RollingUpdate");
        if strategy["type"] == "RollingUpdate" {
            let rolling = child(strategy, "rollingUpdate");
            default_to(rolling, "maxUnavailable", 1);
            default_to(rolling, "maxSurge", 0);
        }
        default_to(spec, "revisionHistoryLimit", 10);
        podtemplate::default(child(spec, "template"));
        // The reference keeps it as a number of its own, and shows it in every object that it reads: whoever writes owns it.
        let generation = template_generation(object);
        set_template_generation(object, generation);
        let status = child(object, "status");
        for count in ["currentNumberScheduled", "numberMisscheduled", "desiredNumberScheduled", "numberReady"] {
            default_to(status, count, 0);
        }
    }

    fn prepare_create(&self, object: &mut Value) {
        let status = json!({
            "currentNumberScheduled": 0, "numberMisscheduled": 0, "desiredNumberScheduled": 0, "numberReady": 0,
        });
        fields(object).insert("status".to_owned(), status);
        let generation = template_generation(object).max(1);
        set_template_generation(object, generation);
        pod::drop_disabled(child(child(child(object, "spec"), "template"), "spec"), None);
    }

    fn prepare_update(&self, object: &mut Value, old: &Value) {
        keep(object, old, "status");
        let spec = child(child(child(object, "spec"), "template"), "spec");
        pod::drop_disabled(spec, Some(&old["spec"]["template"]["spec"]));
        let changed = object["spec"]["template"] != old["spec"]["template"];
        set_template_generation(object, template_generation(old).saturating_add(i64::from(changed)));
    }

    fn prepare_status_update(&self, object: &mut Value, old: &Value) {
        keep(object, old, "spec");
        set_template_generation(object, template_generation(old));
    }

    fn validate(&self, object: &Value, errors: &mut FieldErrors) {
        validate_spec(&object["spec"], None, errors);
    }

    fn validate_update(&self, object: &Value, old: &Value, errors: &mut FieldErrors) {
        let (spec, before) = (&object["spec"], &old["spec"]);
        checks::immutable_selector(&Path::new("spec.selector"), &spec["selector"], &before["selector"], errors);
        validate_spec(spec, Some(before), errors);
    }

    fn validate_status_update(&self, object: &Value, old: &Value, errors: &mut FieldErrors) {
        const COUNTS: [&str; 9] = [
            "currentNumberScheduled",
            "numberMisscheduled",
            "desiredNumberScheduled",
            "numberReady",
            "observedGeneration",
            "updatedNumberScheduled",
            "numberAvailable",
            "numberUnavailable",
            "collisionCount",
        ];
        let status = &object["status"];
        podtemplate::validate_counts(status, &COUNTS, &[], errors);
        podtemplate::validate_collisions(status, &old["status"], errors);
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        let template = &object["spec"]["template"];
        if old.is_some_and(|old| old["spec"]["template"] == *template) {
            return Vec::new();
        }
        pod::template_warnings(template, &Path::new("spec.template"))
    }

    fn cells(&self, object: &Value) -> Vec<Cell> {
        let (spec, status) = (&object["spec"], &object["status"]);
        let [names, images] = table::containers(&spec["template"]["spec"]);
        vec![
            table::name(object),
            status["desiredNumberScheduled"].int().into(),
            status["currentNumberScheduled"].int().into(),
            status["numberReady"].int().into(),
            status["updatedNumberScheduled"].int().into(),
            status["numberAvailable"].int().into(),
            table::labels(&spec["template"]["spec"]["nodeSelector"]),
            table::age(object),
            names,
            images,
            table::selector(&spec["selector"], "<none>", "<error>"),
        ]
    }
}

fn template_generation(object: &Value) -> i64 {
    object["metadata"]["annotations"][TEMPLATE_GENERATION].text().parse().unwrap_or(0)
}

fn set_template_generation(object: &mut Value, generation: i64) {
    let annotations = child(child(object, "metadata"), "annotations");
    fields(annotations).insert(TEMPLATE_GENERATION.to_owned(), generation.to_string().into());
}

fn validate_spec(spec: &Value, old: Option<&Value>, errors: &mut FieldErrors) {
    let path = Path::new("spec");
    let (selector, selector_path) = (&spec["selector"], path.child("selector"));
    let (template, template_path) = (&spec["template"], path.child("template"));
    validate_label_selector(selector, &selector_path, errors);
    let labels = &template["metadata"]["labels"];
    if LabelSelector::from_object(selector).is_ok_and(|selector| !selector.matches(&labels.as_object())) {
        let detail = "`selector` does not match template `labels`";
        errors.push(FieldError::invalid(template_path.child("metadata.labels"), Printed(&text::json(labels)), detail));
    }
    if selector.is_set() && selector["matchLabels"].is_empty() && selector["matchExpressions"].is_empty() {
        let detail = "empty selector is invalid for daemonset";
        errors.push(FieldError::invalid(selector_path, Printed(&checks::selector_text(selector)), detail));
    }
    pod::validate_template(template, old.map(|old| &old["template"]), &template_path, errors);
    podtemplate::validate_endless(template, "DaemonSet", &template_path, errors);
    checks::nonnegative(&path.child("minReadySeconds"), &spec["minReadySeconds"], errors);
    validate_strategy(&spec["updateStrategy"], &path.child("updateStrategy"), errors);
    checks::nonnegative(&path.child("revisionHistoryLimit"), &spec["revisionHistoryLimit"], errors);
}

fn validate_strategy(strategy: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    let (rolling, rolling_path) = (&strategy["rollingUpdate"], path.child("rollingUpdate"));
    match strategy["type"].text() {
        "OnDelete" => {}
        "RollingUpdate" => {
            let (unavailable, surge) = (&rolling["maxUnavailable"], &rolling["maxSurge"]);
            let (unavailable_path, surge_path) = (rolling_path.child("maxUnavailable"), rolling_path.child("maxSurge"));
            count_or_percent(&unavailable_path, unavailable, errors);
            count_or_percent(&surge_path, surge, errors);
            for (path, value) in [(&unavailable_path, unavailable), (&surge_path, surge)] {
                if percent_of(value).is_some_and(|percent| percent > 100) {
                    errors.push(FieldError::invalid(path, value, "must not be greater than 100%"));
                }
            }
            match (value_of(unavailable) != 0, value_of(surge) != 0) {
                (true, true) => {
                    let detail = "may not be set when maxUnavailable is non-zero";
                    errors.push(FieldError::invalid(surge_path, surge, detail));
                }
                (false, false) => {
                    errors.push(FieldError::required(unavailable_path, "cannot be 0 when maxSurge is 0"));
                }
                _ => {}
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
            errors.push(FieldError::not_supported(path, Printed(&shown), &["RollingUpdate", "OnDelete"]));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(change: &Value) -> Value {
        let mut set = json!({
            "metadata": {"name": "d"},
            "spec": {
                "selector": {"matchLabels": {"a": "b"}},
                "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "x"}]}},
            },
        });
        crate::patch::merge(&mut set, change).expect("a patch");
        DaemonSet.default(&mut set);
        DaemonSet.prepare_create(&mut set);
        set
    }

    fn refusal(change: &Value) -> Vec<String> {
        let mut errors = FieldErrors::new();
        DaemonSet.validate(&set(&json!({ "spec": change })), &mut errors);
        errors.iter().map(|error| format!("{}: {}", error.field, error.message)).collect()
    }

    #[test]
    fn refuses_what_the_reference_refuses_in_its_words() {
        for (change, expected) in [
            (json!({}), vec![]),
            (json!({"updateStrategy": {"rollingUpdate": {"maxSurge": "10%", "maxUnavailable": 0}}}), vec![]),
            (
                json!({"updateStrategy": {"type": "Sudden"}}),
                vec![
                    "spec.updateStrategy: Unsupported value: {\"Type\":\"Sudden\",\"RollingUpdate\":null}: supported values: \
                     \"RollingUpdate\", \"OnDelete\"",
                ],
            ),
            (
                json!({"updateStrategy": {"rollingUpdate": {"maxSurge": 1}}}),
                vec![
                    "spec.updateStrategy.rollingUpdate.maxSurge: Invalid value: 1: may not be set when maxUnavailable is \
                     non-zero",
                ],
            ),
            (
                json!({"updateStrategy": {"rollingUpdate": {"maxUnavailable": 0}}}),
                vec![
                    "spec.updateStrategy.rollingUpdate.maxUnavailable: Required value: cannot be 0 when maxSurge is 0",
                ],
            ),
            (
                json!({"selector": null}),
                vec![
                    "spec.template.metadata.labels: Invalid value: {\"a\":\"b\"}: `selector` does not match template \
                     `labels`",
                ],
            ),
            (
                json!({"selector": {"matchLabels": null}}),
                vec!["spec.selector: Invalid value: {}: empty selector is invalid for daemonset"],
            ),
            (
                json!({"minReadySeconds": -1, "revisionHistoryLimit": -1}),
                vec![
                    "spec.minReadySeconds: Invalid value: -1: must be greater than or equal to 0",
                    "spec.revisionHistoryLimit: Invalid value: -1: must be greater than or equal to 0",
                ],
            ),
        ] {
            assert_eq!(refusal(&change), expected, "{change}");
        }
    }

    #[test]
    fn changes_of_the_template_are_counted_whatever_clients_say() {
        let generation = |set: &Value| set["metadata"]["annotations"][TEMPLATE_GENERATION].clone();
        let before = set(&json!({}));
        assert_eq!(generation(&before), "1");
        let mut after = before.clone();
        after["metadata"]["annotations"] = json!({"mine": "x"});
        after["spec"]["minReadySeconds"] = json!(3);
        DaemonSet.prepare_update(&mut after, &before);
        assert_eq!((generation(&after), after["metadata"]["annotations"]["mine"].clone()), (json!("1"), json!("x")));
        after["metadata"]["annotations"][TEMPLATE_GENERATION] = json!("70");
        after["spec"]["template"]["spec"]["containers"][0]["image"] = json!("y");
        DaemonSet.prepare_update(&mut after, &before);
        assert_eq!(generation(&after), "2");
        let mut status = after.clone();
        status["metadata"]["annotations"] = Value::Null;
        DaemonSet.prepare_status_update(&mut status, &after);
        assert_eq!(generation(&status), "2");
        assert_eq!(generation(&set(&json!({"metadata": {"annotations": {TEMPLATE_GENERATION: "7"}}}))), "7");
    }
}
