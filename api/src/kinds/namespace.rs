//! Namespace.

use serde_json::{Value, json};

use super::value::{Read, child, default_when_zero, fields, keep};
use super::{AGE, Cell, FieldError, FieldErrors, Kind, NAME, Strategy, Subresource, checks, column, table};
use crate::meta::field::Path;
use crate::meta::names;

pub(super) static KIND: Kind = Kind {
    group: "",
    version: "v1",
    kind: "Namespace",
    resource: "namespaces",
    singular: "namespace",
    short_names: &["ns"],
    categories: &[],
    namespaced: false,
    schema: "io.k8s.api.core.v1.Namespace",
    collection: "namespaces",
    verbs: &["create", "delete", "get", "list", "patch", "update", "watch"],
    has_status: true,
    has_scale: false,
    subresources: &[Subresource { name: "finalize", group: "", version: "", kind: "Namespace", verbs: &["update"] }],
    selectable: &["status.phase"],
    columns: &[NAME, column("Status", "string"), AGE],
    strategy: &Namespace,
};

/// The finalizer in `spec` that the namespace controller removes when nothing is left in a namespace.
const KUBERNETES: &str = "kubernetes";

struct Namespace;

impl Strategy for Namespace {
    fn default(&self, object: &mut Value) {
        self.canonicalize(object);
        child(object, "spec");
        default_when_zero(child(object, "status"), "phase", "Active");
    }

    fn prepare_create(&self, object: &mut Value) {
        fields(object).insert("status".to_owned(), json!({ "phase": "Active" }));
        let spec = fields(child(object, "spec"));
        let finalizers = spec.entry("finalizers").or_insert_with(|| json!([]));
        match finalizers.as_array_mut() {
            Some(finalizers) if finalizers.iter().any(|name| name.text() == KUBERNETES) => {}
            Some(finalizers) => finalizers.push(KUBERNETES.into()),
            None => *finalizers = json!([KUBERNETES]),
        }
    }

    fn prepare_update(&self, object: &mut Value, old: &Value) {
        keep(child(object, "spec"), &old["spec"], "finalizers");
        keep(object, old, "status");
    }

    fn prepare_status_update(&self, object: &mut Value, old: &Value) {
        keep(object, old, "spec");
    }

    /// `finalize` replaces the finalizers of `spec`.
    fn prepare_subresource_update(&self, _subresource: &str, object: &mut Value, old: &Value) {
        keep(object, old, "status");
    }

    /// The label that holds the name; a name that is generated is known late.
    fn canonicalize(&self, object: &mut Value) {
        let name = object["metadata"]["name"].text().to_owned();
        if !name.is_empty() {
            let labels = child(child(object, "metadata"), "labels");
            fields(labels).insert("kubernetes.io/metadata.name".to_owned(), name.into());
        }
    }

    fn validate(&self, object: &Value, errors: &mut FieldErrors) {
        for name in object["spec"]["finalizers"].items() {
            checks::namespace_finalizer(&Path::new("spec.finalizers"), name.text(), errors);
        }
    }

    fn validate_status_update(&self, object: &Value, _old: &Value, errors: &mut FieldErrors) {
        let phase = object["status"]["phase"].text();
        let (allowed, state) = match object["metadata"]["deletionTimestamp"].is_set() {
            false => ("Active", "empty"),
            true => ("Terminating", "not empty"),
        };
        if phase != allowed {
            let detail = format!("may only be '{allowed}' if `deletionTimestamp` is {state}");
            errors.push(FieldError::invalid("status.Phase", phase, &detail));
        }
    }

    fn validate_subresource_update(&self, _name: &str, object: &Value, _old: &Value, errors: &mut FieldErrors) {
        for (index, name) in object["spec"]["finalizers"].items().iter().enumerate() {
            checks::namespace_finalizer(&Path::new("spec.finalizers").index(index), name.text(), errors);
        }
    }

    fn check_name(&self, name: &str, is_prefix: bool) -> Vec<String> {
        names::name_is_dns_label(name, is_prefix)
    }

    fn field(&self, object: &Value, path: &str) -> Option<String> {
        (path == "status.phase").then(|| object["status"]["phase"].text().to_owned())
    }

    fn cells(&self, object: &Value) -> Vec<Cell> {
        vec![table::name(object), object["status"]["phase"].text().into(), table::age(object)]
    }
}
