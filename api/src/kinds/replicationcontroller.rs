//! ReplicationController: the elder ReplicaSet, whose selector is a plain map.

use serde_json::{Value, json};

use super::value::{Read, child, default_to, fields, keep};
use super::{
    AGE, Cell, FieldError, FieldErrors, Kind, NAME, Strategy, VERBS, checks, column, pod, podtemplate, table, wide,
};
use crate::meta::field::{Path, Printed};
use crate::meta::selector::LabelSelector;
use crate::meta::text;

pub(super) static KIND: Kind = Kind {
    group: "",
    version: "v1",
    kind: "ReplicationController",
    resource: "replicationcontrollers",
    singular: "replicationcontroller",
    short_names: &["rc"],
    categories: &["all"],
    namespaced: true,
    schema: "io.k8s.api.core.v1.ReplicationController",
    collection: "replicationcontrollers",
    verbs: VERBS,
    has_status: true,
    has_scale: true,
    subresources: &[],
    selectable: &["status.replicas"],
    columns: &[
        NAME,
        column("Desired", "integer"),
        column("Current", "integer"),
        column("Ready", "integer"),
        AGE,
        wide("Containers", "string"),
        wide("Images", "string"),
        wide("Selector", "string"),
    ],
    strategy: &ReplicationController,
};

struct ReplicationController;

impl Strategy for ReplicationController {
    fn default(&self, object: &mut Value) {
        let labels = object["spec"]["template"]["metadata"]["labels"].clone();
        if !labels.is_empty() {
            let own = child(object, "metadata");
            if own["labels"].is_empty() {
                fields(own).insert("labels".to_owned(), labels.clone());
            }
            if object["spec"]["selector"].is_empty() {
                fields(child(object, "spec")).insert("selector".to_owned(), labels);
            }
        }
        let spec = child(object, "spec");
        default_to(spec, "replicas", 1);
        if spec["template"].is_set() {
            podtemplate::default(child(spec, "template"));
        }
        default_to(child(object, "status"), "replicas", 0);
    }

    fn prepare_create(&self, object: &mut Value) {
        fields(object).insert("status".to_owned(), json!({ "replicas": 0 }));
        drop_disabled(object, None);
    }

    fn prepare_update(&self, object: &mut Value, old: &Value) {
        keep(object, old, "status");
        drop_disabled(object, Some(&old["spec"]["template"]["spec"]));
    }

    fn prepare_status_update(&self, object: &mut Value, old: &Value) {
        keep(object, old, "spec");
    }

    fn validate(&self, object: &Value, errors: &mut FieldErrors) {
        validate_spec(&object["spec"], None, errors);
    }

    fn validate_update(&self, object: &Value, old: &Value, errors: &mut FieldErrors) {
        validate_spec(&object["spec"], Some(&old["spec"]), errors);
    }

    fn validate_status_update(&self, object: &Value, _old: &Value, errors: &mut FieldErrors) {
        const COUNTS: [&str; 5] =
            ["replicas", "fullyLabeledReplicas", "readyReplicas", "availableReplicas", "observedGeneration"];
        let parts = ["fullyLabeledReplicas", "readyReplicas", "availableReplicas"];
        podtemplate::validate_counts(&object["status"], &COUNTS, &parts, errors);
    }

    fn has_generation(&self) -> bool {
        true
    }

    /// Its pods stay when it goes, unless the client says otherwise.
    fn orphans_by_default(&self) -> bool {
        true
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        podtemplate::warnings_of_owner(self, object, old)
    }

    fn field(&self, object: &Value, path: &str) -> Option<String> {
        (path == "status.replicas").then(|| object["status"]["replicas"].int().to_string())
    }

    fn cells(&self, object: &Value) -> Vec<Cell> {
        let (spec, status) = (&object["spec"], &object["status"]);
        let [names, images] = table::containers(&spec["template"]["spec"]);
        vec![
            table::name(object),
            spec["replicas"].int().into(),
            status["replicas"].int().into(),
            status["readyReplicas"].int().into(),
            table::age(object),
            names,
            images,
            table::labels(&spec["selector"]),
        ]
    }
}

fn drop_disabled(object: &mut Value, old: Option<&Value>) {
    if object["spec"]["template"].is_set() {
        pod::drop_disabled(child(child(child(object, "spec"), "template"), "spec"), old);
    }
}

fn validate_spec(spec: &Value, old: Option<&Value>, errors: &mut FieldErrors) {
    let path = Path::new("spec");
    checks::nonnegative(&path.child("minReadySeconds"), &spec["minReadySeconds"], errors);
    checks::required(&path.child("selector"), &spec["selector"], errors);
    checks::nonnegative(&path.child("replicas"), &spec["replicas"], errors);
    let (template, path) = (&spec["template"], path.child("template"));
    if template.is_null() {
        errors.push(FieldError::required(path, ""));
        return;
    }
    let labels = &template["metadata"]["labels"];
    let selector = spec["selector"].as_object().filter(|selector| !selector.is_empty()).map(LabelSelector::from_map);
    if selector.is_some_and(|selector| !selector.matches(&labels.as_object())) {
        let detail = "`selector` does not match template `labels`";
        errors.push(FieldError::invalid(path.child("metadata.labels"), Printed(&text::json(labels)), detail));
    }
    pod::validate_template(template, old.map(|old| &old["template"]), &path, errors);
    podtemplate::validate_endless(template, "ReplicationController", &path, errors);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(spec: &Value) -> (Value, Vec<String>) {
        let mut object = json!({"metadata": {"name": "r"}, "spec": spec});
        ReplicationController.default(&mut object);
        ReplicationController.prepare_create(&mut object);
        let mut errors = FieldErrors::new();
        ReplicationController.validate(&object, &mut errors);
        (object, errors.iter().map(|error| format!("{}: {}", error.field, error.message)).collect())
    }

    #[test]
    fn selects_by_the_labels_of_its_pods_and_refuses_in_the_words_of_the_reference() {
        let template =
            json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "x"}]}});
        let (object, refusal) = made(&json!({ "template": template }));
        assert!(refusal.is_empty(), "{refusal:?}");
        assert_eq!(
            (&object["spec"]["selector"], &object["metadata"]["labels"]),
            (&json!({"a": "b"}), &json!({"a": "b"}))
        );
        assert_eq!((&object["spec"]["replicas"], &object["status"]), (&json!(1), &json!({"replicas": 0})));
        let (object, refusal) = made(&json!({"replicas": -1}));
        assert!(object["spec"]["template"].is_null());
        assert_eq!(
            refusal,
            [
                "spec.selector: Required value",
                "spec.replicas: Invalid value: -1: must be greater than or equal to 0",
                "spec.template: Required value",
            ]
        );
        let (_, refusal) = made(&json!({"selector": {"a": "c"}, "template": template}));
        assert_eq!(
            refusal,
            [
                "spec.template.metadata.labels: Invalid value: {\"a\":\"b\"}: `selector` does not match template `labels`"
            ]
        );
    }
}
