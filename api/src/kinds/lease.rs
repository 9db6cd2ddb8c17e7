//! Lease of `coordination.k8s.io`.

use serde_json::Value;

use super::value::{Read, child, fields};
use super::{AGE, Cell, FieldError, FieldErrors, Kind, NAME, Strategy, VERBS, column, table};
use crate::meta::field::Path;

pub(super) static KIND: Kind = Kind {
    group: "coordination.k8s.io",
    version: "v1",
    kind: "Lease",
    resource: "leases",
    singular: "lease",
    short_names: &[],
    categories: &[],
    namespaced: true,
    schema: "io.k8s.api.coordination.v1.Lease",
    collection: "leases.coordination.k8s.io",
    verbs: VERBS,
    has_status: false,
    has_scale: false,
    subresources: &[],
    selectable: &[],
    columns: &[NAME, column("Holder", "string"), AGE],
    strategy: &Lease,
};

struct Lease;

/// Fields of coordinated leader election, which is off.
const COORDINATED: [&str; 2] = ["strategy", "preferredHolder"];

impl Strategy for Lease {
    fn default(&self, object: &mut Value) {
        child(object, "spec");
    }

    fn prepare_create(&self, object: &mut Value) {
        for field in COORDINATED {
            fields(child(object, "spec")).remove(field);
        }
    }

    fn prepare_update(&self, object: &mut Value, old: &Value) {
        for field in COORDINATED {
            if old["spec"][field].is_null() {
                fields(child(object, "spec")).remove(field);
            }
        }
    }

    fn validate(&self, object: &Value, errors: &mut FieldErrors) {
        let (spec, path) = (&object["spec"], Path::new("spec"));
        if let Some(seconds) = spec["leaseDurationSeconds"].maybe_int().filter(|seconds| *seconds <= 0) {
            errors.push(FieldError::invalid(path.child("leaseDurationSeconds"), seconds, "must be greater than 0"));
        }
        if let Some(count) = spec["leaseTransitions"].maybe_int().filter(|count| *count < 0) {
            let detail = "must be greater than or equal to 0";
            errors.push(FieldError::invalid(path.child("leaseTransitions"), count, detail));
        }
    }

    fn knows_finalizers(&self) -> bool {
        false
    }

    fn allows_create_on_update(&self) -> bool {
        true
    }

    fn allows_unconditional_update(&self) -> bool {
        false
    }

    fn cells(&self, object: &Value) -> Vec<Cell> {
        vec![table::name(object), object["spec"]["holderIdentity"].text().into(), table::age(object)]
    }
}
