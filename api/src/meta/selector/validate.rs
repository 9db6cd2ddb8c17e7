//! Checks `LabelSelector` objects, as `ValidateLabelSelector` of apimachinery does.

use serde_json::Value;

use crate::meta::field::{FieldError, FieldErrors, Path};
use crate::meta::names;

/// Checks a `LabelSelector` object, as `ValidateLabelSelector` does; null is well.
pub fn validate_label_selector(selector: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    let labels = selector.get("matchLabels").and_then(Value::as_object);
    crate::meta::validate_labels(labels, &path.child("matchLabels"), errors);
    let expressions = selector.get("matchExpressions").and_then(Value::as_array);
    let path = path.child("matchExpressions");
    for (index, expression) in expressions.into_iter().flatten().enumerate() {
        let path = path.index(index);
        let text = |field: &str| expression.get(field).and_then(Value::as_str).unwrap_or_default();
        let values = expression.get("values").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        match text("operator") {
            "In" | "NotIn" if values.is_empty() => errors.push(FieldError::required(
                path.child("values"),
                "must be specified when `operator` is 'In' or 'NotIn'",
            )),
            "Exists" | "DoesNotExist" if !values.is_empty() => errors.push(FieldError::forbidden(
                path.child("values"),
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            )),
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => errors.push(FieldError::invalid(path.child("operator"), other, "not a valid selector operator")),
        }
        for message in names::qualified_name(text("key")) {
            errors.push(FieldError::invalid(path.child("key"), text("key"), &message));
        }
        let path = path.child("values");
        for (index, value) in values.iter().enumerate() {
            for message in names::label_value(value.as_str().unwrap_or_default()) {
                errors.push(FieldError::invalid(path.index(index), value, &message));
            }
        }
    }
}
