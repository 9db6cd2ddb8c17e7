//! ServiceAccount.

use serde_json::{Value, json};

use super::value::{Read, items_mut};
use super::{AGE, Cell, Kind, NAME, Strategy, Subresource, VERBS, table};

pub(super) static KIND: Kind = Kind {
    group: "",
    version: "v1",
    kind: "ServiceAccount",
    resource: "serviceaccounts",
    singular: "serviceaccount",
    short_names: &["sa"],
    categories: &[],
    namespaced: true,
    schema: "io.k8s.api.core.v1.ServiceAccount",
    collection: "serviceaccounts",
    verbs: VERBS,
    has_status: false,
    has_scale: false,
    subresources: &[Subresource {
        name: "token",
        group: "authentication.k8s.io",
        version: "v1",
        kind: "TokenRequest",
        verbs: &["create"],
    }],
    selectable: &[],
    columns: &[NAME, AGE],
    strategy: &ServiceAccount,
};

const ENFORCE_MOUNTABLE: &str = "kubernetes.io/enforce-mountable-secrets";

struct ServiceAccount;

impl Strategy for ServiceAccount {
    fn prepare_create(&self, object: &mut Value) {
        keep_names_of_secrets(object);
    }

    fn prepare_update(&self, object: &mut Value, _old: &Value) {
        keep_names_of_secrets(object);
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        let enforces = |account: &Value| account["metadata"]["annotations"].get(ENFORCE_MOUNTABLE).is_some();
        if !enforces(object) || old.is_some_and(enforces) {
            return Vec::new();
        }
        vec![format!(
            "metadata.annotations[{ENFORCE_MOUNTABLE}]: deprecated in v1.32+; prefer separate namespaces to isolate \
             access to mounted secrets"
        )]
    }

    fn cells(&self, object: &Value) -> Vec<Cell> {
        vec![table::name(object), table::age(object)]
    }
}

/// References to secrets hold a name and nothing else.
fn keep_names_of_secrets(object: &mut Value) {
    for secret in items_mut(object, "secrets") {
        *secret = match secret["name"].text() {
            "" => json!({}),
            name => json!({ "name": name }),
        };
    }
}
