//! Objects on the wire: JSON, YAML and protobuf, read into values that are checked against a type and written from them.
//!
//! What is read comes out as Kubernetes' server would hold it: unknown fields gone, zero values dropped or written as
//! Go's structures would have it, quantities and times in their canonical form.

pub mod json;
pub mod protobuf;
mod scalar;
pub mod yaml;

use serde_json::{Map, Value};

use crate::schema::Object;

/// An object that was read.
#[derive(Debug, Clone, PartialEq)]
pub struct Decoded {
    /// The object, clean.
    pub value: Value,
    /// What strict field validation refuses and lax validation warns of, in Kubernetes' order and words: `unknown field
    /// "spec.foo"`, `duplicate field "metadata.name"`. A hundred at most, as there.
    pub problems: Vec<String>,
}

/// Why bytes are no object of the expected type. Both are the caller's fault and a 400; the words around them differ.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Not JSON (YAML, protobuf) at all, or without a readable kind. Kubernetes words it `the object provided is
    /// unrecognized (must be of type ConfigMap): {this} ({excerpt})`, see [`excerpt`].
    #[error("{0}")]
    Unrecognized(String),
    /// A value of the wrong type. Kubernetes words it `ConfigMap in version "v1" cannot be handled as a ConfigMap: {this}`.
    #[error("{0}")]
    Mistyped(String),
}

/// The beginning of a body as Kubernetes quotes it in the message for [`DecodeError::Unrecognized`].
#[must_use]
pub fn excerpt(body: &[u8]) -> String {
    const LIMIT: usize = 30;
    let part = &body[..body.len().min(LIMIT)];
    let text = match body.first() {
        None => return "<empty>".to_owned(),
        Some(b'{') => String::from_utf8_lossy(part).into_owned(),
        Some(_) => part.iter().map(|byte| format!("{byte:02x}")).collect(),
    };
    if body.len() > LIMIT { text + " ..." } else { text }
}

/// Writes the zero values of fields that are always written.
fn finish(map: &mut Map<String, Value>, object: &Object) {
    for name in &object.index().written {
        if !map.contains_key(name) {
            map.insert(name.clone(), object.fields[name].zero());
        }
    }
}

/// What `omitempty` omits.
fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(flag) => !flag,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_excerpt_is_text_for_objects_and_hexadecimal_for_the_rest() {
        let rows: &[(&[u8], &str)] = &[
            (b"", "<empty>"),
            (b"[]", "5b5d"),
            (b"rubbish", "72756262697368"),
            (br#"{"apiVersion": "v1", "kind": "ConfigMap"}"#, r#"{"apiVersion": "v1", "kind": " ..."#),
        ];
        for (body, expected) in rows {
            assert_eq!(excerpt(body), *expected);
        }
    }
}
