//! Warnings about pods.

use serde_json::Value;

use crate::meta::field::Path;

pub(in crate::kinds) fn template(_template: &Value, _old: Option<&Value>, _path: &Path<'_>) -> Vec<String> {
    Vec::new()
}
pub(super) fn pod(_pod: &Value) -> Vec<String> {
    Vec::new()
}
