//! ReplicaSet.

use serde_json::{Value, json};

use super::value::{Read, child, default_to, fields, keep};
use super::{AGE, Cell, FieldErrors, Kind, NAME, Strategy, VERBS, checks, column, pod, podtemplate, table, wide};
use crate::meta::field::Path;

pub(super) static KIND: Kind = Kind {
    group: "apps",
    version: "v1",
    kind: "ReplicaSet",
    resource: "replicasets",
    singular: "replicaset",
    short_names: &["rs"],
    categories: &["all"],
    namespaced: true,
    schema: "io.k8s.api.apps.v1.ReplicaSet",
    collection: "replicasets.apps",
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
    strategy: &ReplicaSet,
};

struct ReplicaSet;

impl Strategy for ReplicaSet {
    fn default(&self, object: &mut Value) {
        let spec = child(object, "spec");
        default_to(spec, "replicas", 1);
        podtemplate::default(child(spec, "template"));
        default_to(child(object, "status"), "replicas", 0);
    }

    fn prepare_create(&self, object: &mut Value) {
        fields(object).insert("status".to_owned(), json!({ "replicas": 0 }));
        pod::drop_disabled(child(child(child(object, "spec"), "template"), "spec"), None);
    }

    fn prepare_update(&self, object: &mut Value, old: &Value) {
        keep(object, old, "status");
        let spec = child(child(child(object, "spec"), "template"), "spec");
        pod::drop_disabled(spec, Some(&old["spec"]["template"]["spec"]));
    }

    fn prepare_status_update(&self, object: &mut Value, old: &Value) {
        keep(object, old, "spec");
    }

    fn validate(&self, object: &Value, errors: &mut FieldErrors) {
        validate_spec(&object["spec"], None, errors);
    }

    fn validate_update(&self, object: &Value, old: &Value, errors: &mut FieldErrors) {
        let (spec, before) = (&object["spec"], &old["spec"]);
        validate_spec(spec, Some(before), errors);
        checks::immutable_selector(&Path::new("spec.selector"), &spec["selector"], &before["selector"], errors);
    }

    fn validate_status_update(&self, object: &Value, _old: &Value, errors: &mut FieldErrors) {
        const COUNTS: [&str; 6] = [
            "replicas",
            "fullyLabeledReplicas",
            "readyReplicas",
            "availableReplicas",
            "observedGeneration",
            "terminatingReplicas",
        ];
        let parts = ["fullyLabeledReplicas", "readyReplicas", "availableReplicas"];
        podtemplate::validate_counts(&object["status"], &COUNTS, &parts, errors);
    }

    fn has_generation(&self) -> bool {
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
            table::selector(&spec["selector"], "<none>", "<error>"),
        ]
    }
}

fn validate_spec(spec: &Value, old: Option<&Value>, errors: &mut FieldErrors) {
    let path = Path::new("spec");
    checks::nonnegative(&path.child("replicas"), &spec["replicas"], errors);
    checks::nonnegative(&path.child("minReadySeconds"), &spec["minReadySeconds"], errors);
    podtemplate::validate_of_owner(spec, old, errors);
}
