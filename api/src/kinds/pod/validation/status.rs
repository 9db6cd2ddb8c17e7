//! Updates of a pod's status.

use serde_json::Value;

use crate::kinds::FieldError;

pub(in crate::kinds::pod) fn update(_pod: &Value, _old: &Value, _errors: &mut Vec<FieldError>) {}
