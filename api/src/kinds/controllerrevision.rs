//! ControllerRevision: an immutable piece of a controller's history.

use serde_json::Value;

use super::value::{Read, default_to};
use super::{AGE, Cell, FieldError, FieldErrors, Kind, NAME, Strategy, VERBS, checks, column, table};
use crate::meta::field::Path;

pub(super) static KIND: Kind = Kind {
    group: "apps",
    version: "v1",
    kind: "ControllerRevision",
    resource: "controllerrevisions",
    singular: "controllerrevision",
    short_names: &[],
    categories: &[],
    namespaced: true,
    schema: "io.k8s.api.apps.v1.ControllerRevision",
    collection: "controllerrevisions.apps",
    verbs: VERBS,
    has_status: false,
    has_scale: false,
    subresources: &[],
    selectable: &[],
    columns: &[NAME, column("Controller", "string"), column("Revision", "string"), AGE],
    strategy: &ControllerRevision,
};

struct ControllerRevision;

impl Strategy for ControllerRevision {
    fn default(&self, object: &mut Value) {
        default_to(object, "revision", 0);
    }

    fn validate(&self, object: &Value, errors: &mut FieldErrors) {
        revision(object, errors);
        match &object["data"] {
            Value::Object(_) => {}
            Value::Null => errors.push(FieldError::required("data", "data is mandatory")),
            _ => errors.push(FieldError::required("data", "data must be a valid JSON object")),
        }
    }

    fn validate_update(&self, object: &Value, old: &Value, errors: &mut FieldErrors) {
        revision(object, errors);
        checks::immutable(&Path::new("data"), &object["data"], &old["data"], errors);
    }

    fn cells(&self, object: &Value) -> Vec<Cell> {
        let owners = object["metadata"]["ownerReferences"].items();
        let controller = match owners.iter().find(|owner| owner["controller"].flag()) {
            Some(owner) => {
                let kind = owner["kind"].text().to_lowercase();
                let name = owner["name"].text();
                match owner["apiVersion"].text().split_once('/') {
                    Some((group, _)) => format!("{kind}.{group}/{name}"),
                    None => format!("{kind}/{name}"),
                }
            }
            None => "<none>".to_owned(),
        };
        vec![table::name(object), controller.into(), object["revision"].int().into(), table::age(object)]
    }
}

fn revision(object: &Value, errors: &mut FieldErrors) {
    checks::nonnegative(&Path::new("revision"), &object["revision"], errors);
}
