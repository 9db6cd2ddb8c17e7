//! Objects within an object (`x-kubernetes-embedded-resource`) have a kind, and metadata as any object has.

use serde_json::Value;

use super::structural::Structural;
use crate::meta::field::{FieldError, FieldErrors};
use crate::meta::{names, validate_object_meta};

/// Checks those at and below a value.
pub(super) fn validate(schema: &Structural, value: &Value, path: &mut String, errors: &mut FieldErrors) {
    if !schema.reach.embedded || errors.is_full() {
        return;
    }
    let length = path.len();
    match value {
        Value::Object(fields) => {
            if schema.embedded {
                check(value, path, errors);
            }
            for (name, value) in fields {
                let Some(of) = schema.field(name) else { continue };
                match schema.properties.get(name) {
                    Some(_) if path.is_empty() => path.push_str(name),
                    Some(_) => path.extend([".", name]),
                    None => path.extend(["[", name, "]"]),
                }
                validate(of, value, path, errors);
                path.truncate(length);
            }
        }
        Value::Array(items) => {
            for (at, item) in items.iter().enumerate() {
                if let Some(of) = &schema.items {
                    path.push_str(&format!("[{at}]"));
                    validate(of, item, path, errors);
                    path.truncate(length);
                }
            }
        }
        _ => {}
    }
}

fn check(object: &Value, path: &str, errors: &mut FieldErrors) {
    let at = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    for name in ["apiVersion", "kind"] {
        match object.get(name) {
            None => errors.push(FieldError::required(at(name), "")),
            Some(Value::String(text)) if text.is_empty() => {
                errors.push(FieldError::invalid(at(name), "", "must not be empty"));
            }
            Some(Value::String(text)) if name == "apiVersion" => {
                if text.matches('/').count() > 1 {
                    let detail = format!("unexpected GroupVersion string: {text}");
                    errors.push(FieldError::invalid(at(name), text, &detail));
                }
            }
            Some(Value::String(text)) => {
                let wrong = names::dns_1035_label(&text.to_lowercase());
                if !wrong.is_empty() {
                    let detail = format!("may have mixed case, but should otherwise match: {}", wrong.join(","));
                    errors.push(FieldError::invalid(at(name), text, &detail));
                }
            }
            Some(other) => errors.push(FieldError::invalid(at(name), other, "must be a string")),
        }
    }
    let Some(metadata) = object.get("metadata") else { return };
    // The checks of a whole object, with a name where it has none.
    let mut whole = serde_json::json!({ "metadata": metadata });
    if whole["metadata"]["name"].as_str().is_none_or(str::is_empty) {
        whole["metadata"]["name"] = "fakename".into();
    }
    let namespaced = metadata["namespace"].as_str().is_some_and(|namespace| !namespace.is_empty());
    let mut found = FieldErrors::new();
    validate_object_meta(&whole, namespaced, names::name_is_path_segment, &mut found);
    errors.extend(found.into_told().into_iter().map(|error| FieldError { field: at(&error.field), ..error }));
}
