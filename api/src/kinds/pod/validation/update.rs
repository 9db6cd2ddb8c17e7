//! What of a pod may change.

use serde_json::Value;

use crate::kinds::FieldError;

pub(in crate::kinds::pod) fn pod(_pod: &Value, _old: &Value, _errors: &mut Vec<FieldError>) {}
pub(in crate::kinds::pod) fn ephemeral_containers(_pod: &Value, _old: &Value, _errors: &mut Vec<FieldError>) {}
pub(in crate::kinds::pod) fn resize(_pod: &Value, _old: &Value, _errors: &mut Vec<FieldError>) {}
