//! Objects on the wire: JSON, YAML and protobuf, read into values that are checked against a type and written from them.
//!
//! What is read comes out as Kubernetes' server would hold it: unknown fields gone, zero values dropped or written as
//! Go's structures would have it, quantities and times in their canonical form.

pub mod json;
pub mod protobuf;
mod scalar;
pub mod yaml;

use std::borrow::Cow;

use serde_json::{Map, Value};

pub(crate) use self::scalar::BASE64;
use crate::schema::{self, Object, Type};

/// Whether `text` is a time (RFC 3339) as the API takes it; else why not, in the words of Go's `time.Parse`.
pub fn check_time(text: &str) -> Result<(), String> {
    scalar::time(text, scalar::Precision::Second).map(drop)
}

/// Deepest nesting of lists and objects that anything here reads and keeps: JSON, YAML with its aliases unfolded,
/// protobuf, what a patch makes, `fieldsV1`, stored bytes. One number, checked on the way in and once more before an object
/// is stored, so that what was accepted can be read back, patched, compared, written and dropped: each of these uses the
/// stack, beneath which the API server's own calls take a quarter of a worker's 2 MiB in a debug build (its `tests/api/depth.rs`).
///
/// The reference takes 10,000. No object of its own kinds nests deeper than 30, and clients written in Rust read 127 levels
/// (`serde_json`), of which a list and a watch take some.
pub const DEPTH_MAX: usize = 120;

/// Deepest nesting of structures within structures, of the readers that know types: only the schemas of custom resources
/// nest without end, and each level of them costs these readers several frames of the stack.
pub const STRUCTURES_MAX: usize = 64;

/// Most objects that are not empty in one body. Each takes more than half a kilobyte of memory and may take three bytes of a
/// body, so that three megabytes of nothing would become a gigabyte; what can be stored has far fewer.
pub const OBJECTS_MAX: usize = 100_000;

/// How an error ends that says so.
pub const TOO_DEEP: &str = "exceeded max depth";

const TOO_MANY_OBJECTS: &str = "there are more than 100000 objects in it";

/// Where a reader that knows types stands.
#[derive(Debug, Clone, Copy, Default)]
struct Depth {
    /// Lists and objects around.
    levels: usize,
    /// Structures around.
    structures: usize,
}

impl Depth {
    /// Within another list or map.
    fn within(self) -> Option<Depth> {
        (self.levels < DEPTH_MAX).then_some(Depth { levels: self.levels + 1, ..self })
    }

    /// Within another structure.
    fn within_structure(self) -> Option<Depth> {
        let depth = self.within()?;
        (self.structures < STRUCTURES_MAX).then_some(Depth { structures: self.structures + 1, ..depth })
    }
}

/// How deep a value nests: 0 for a scalar, 1 for a list or object of scalars. For values that are within [`DEPTH_MAX`].
#[must_use]
pub fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(fields) => 1 + fields.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

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

/// What a null stands for within a list or map. Go's server stores bytes as protobuf, which has no nothing.
fn zero_item(ty: &Type) -> Value {
    match ty {
        Type::Bytes => Value::String(String::new()),
        other => schema::zero(other),
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

/// The text of these bytes, with a replacement where they are none. Nearly all are text, which is seen many bytes at a time; looking
/// for the piece that is not goes byte by byte.
fn text(bytes: &[u8]) -> Cow<'_, str> {
    std::str::from_utf8(bytes).map_or_else(|_| String::from_utf8_lossy(bytes), Cow::Borrowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_text_is_replaced() {
        assert!(matches!(text("ö".as_bytes()), Cow::Borrowed("ö")));
        assert_eq!(text(b"a\xff\xc3b\xe2\x82"), String::from_utf8_lossy(b"a\xff\xc3b\xe2\x82"));
    }

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
