//! ConfigMap.

use serde_json::Value;

use super::value::Read;
use super::{AGE, Cell, FieldError, FieldErrors, Kind, NAME, Strategy, VERBS, checks, column, table};
use crate::meta::field::Path;
use crate::meta::names;

pub(super) static KIND: Kind = Kind {
    group: "",
    version: "v1",
    kind: "ConfigMap",
    resource: "configmaps",
    singular: "configmap",
    short_names: &["cm"],
    categories: &[],
    namespaced: true,
    schema: "io.k8s.api.core.v1.ConfigMap",
    collection: "configmaps",
    verbs: VERBS,
    has_status: false,
    has_scale: false,
    subresources: &[],
    selectable: &[],
    columns: &[NAME, column("Data", "string"), AGE],
    strategy: &ConfigMap,
};

/// Most bytes in a config map or secret.
pub(super) const DATA_MAX: usize = 1024 * 1024;

struct ConfigMap;

impl Strategy for ConfigMap {
    fn validate(&self, object: &Value, errors: &mut FieldErrors) {
        let (data, binary) = (Path::new("data"), Path::new("binaryData"));
        let mut bytes = 0;
        for (key, value) in object["data"].entries() {
            checks::invalid(&data.key(key), key, names::config_key(key), errors);
            if object["binaryData"].get(key).is_some() {
                errors.push(FieldError::invalid(data.key(key), key, "duplicate of key present in binaryData"));
            }
            bytes += value.text().len();
        }
        for (key, value) in object["binaryData"].entries() {
            checks::invalid(&binary.key(key), key, names::config_key(key), errors);
            bytes += decoded_len(value.text());
        }
        if bytes > DATA_MAX {
            errors.push(FieldError::too_long("", DATA_MAX));
        }
    }

    fn validate_update(&self, object: &Value, old: &Value, errors: &mut FieldErrors) {
        immutable_data(object, old, &["data", "binaryData"], errors);
        self.validate(object, errors);
    }

    fn cells(&self, object: &Value) -> Vec<Cell> {
        let count = object["data"].count() + object["binaryData"].count();
        vec![table::name(object), (count as i64).into(), table::age(object)]
    }
}

/// Bytes that base64 text stands for.
pub(super) fn decoded_len(base64: &str) -> usize {
    base64.len() / 4 * 3 - base64.bytes().rev().take_while(|b| *b == b'=').count().min(2)
}

/// What is `immutable` stays so, with its data.
pub(super) fn immutable_data(object: &Value, old: &Value, fields: &[&str], errors: &mut FieldErrors) {
    const DETAIL: &str = "field is immutable when `immutable` is set";
    if old["immutable"].flag() {
        if !object["immutable"].flag() {
            errors.push(FieldError::forbidden("immutable", DETAIL));
        }
        for field in fields {
            if object[*field] != old[*field] && !(object[*field].is_empty() && old[*field].is_empty()) {
                errors.push(FieldError::forbidden(field, DETAIL));
            }
        }
    }
}
