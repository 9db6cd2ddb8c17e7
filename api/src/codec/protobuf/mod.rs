//! Kubernetes' protobuf: messages by the numbers of the table, in an envelope that says their kind.
//!
//! An object on the wire is the four bytes `k8s\0` and a message `runtime.Unknown`: typeMeta {apiVersion, kind} = 1, the
//! object's message = 2, contentEncoding = 3, contentType = 4. The object's own message has neither apiVersion nor kind.
//! A watch is a row of frames, each a length (32 bits, big-endian) and a message WatchEvent {type = 1, object = 2 {raw = 1}}
//! whose raw bytes are an object with its envelope.

mod read;
mod wire;
mod write;

use serde_json::Value;

use super::{DecodeError, Decoded};
use crate::schema::{self, Object};

pub use write::{encode_list_into, encode_raw_into};

/// What every object begins with.
pub const MAGIC: &[u8; 4] = b"k8s\0";

/// What the envelope says, and the object's message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Envelope<'a> {
    /// As `apps/v1`.
    pub api_version: &'a str,
    /// As `Deployment`.
    pub kind: &'a str,
    /// The object's message.
    pub raw: &'a [u8],
    /// Compression; none is in use.
    pub content_encoding: &'a str,
    /// Media type of `raw` when it is not protobuf: `application/json` where a type has no message.
    pub content_type: &'a str,
}

/// Opens the envelope.
///
/// # Errors
/// Bytes that are none.
pub fn open(bytes: &[u8]) -> Result<Envelope<'_>, DecodeError> {
    let Some(message) = bytes.strip_prefix(MAGIC) else {
        let words = if bytes.is_empty() {
            "empty data"
        } else {
            "provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]"
        };
        return Err(DecodeError::Unrecognized(words.to_owned()));
    };
    read::envelope(message).map_err(|error| DecodeError::Unrecognized(error.to_string()))
}

/// Reads an object of this type with its envelope.
///
/// # Errors
/// Bytes that are no message of the type.
pub fn decode(bytes: &[u8], object: &Object) -> Result<Decoded, DecodeError> {
    let envelope = open(bytes)?;
    let mut decoded = match envelope.content_type {
        "application/json" => super::json::decode(envelope.raw, object)?,
        _ => Decoded { value: decode_raw(envelope.raw, object)?, problems: Vec::new() },
    };
    for (field, text) in [("apiVersion", envelope.api_version), ("kind", envelope.kind)] {
        if !text.is_empty() {
            decoded.value[field] = text.into();
        }
    }
    Ok(decoded)
}

/// Reads a message of this type, without envelope.
///
/// # Errors
/// Bytes that are no message of the type.
pub fn decode_raw(message: &[u8], object: &Object) -> Result<Value, DecodeError> {
    read::object(message, object).map_err(|error| DecodeError::Mistyped(error.to_string()))
}

/// Writes an object with its envelope; kind and version are the object's.
pub fn encode_into(out: &mut Vec<u8>, value: &Value, object: &Object) {
    envelope_into(out, type_of(value, "apiVersion"), type_of(value, "kind"), |out| encode_raw_into(out, value, object));
}

/// Writes an object with its envelope.
#[must_use]
pub fn encode(value: &Value, object: &Object) -> Vec<u8> {
    let mut out = Vec::with_capacity(512);
    encode_into(&mut out, value, object);
    out
}

/// Writes an envelope around a message that was written before.
pub fn wrap_into(out: &mut Vec<u8>, api_version: &str, kind: &str, message: &[u8]) {
    envelope_into(out, api_version, kind, |out| out.extend_from_slice(message));
}

/// Writes a list with its envelope. `metadata` is the ListMeta; the items are messages without envelope, of
/// [`encode_raw_into`].
pub fn encode_list<'a>(
    out: &mut Vec<u8>,
    api_version: &str,
    kind: &str,
    metadata: &Value,
    items: impl IntoIterator<Item = &'a [u8]>,
) {
    envelope_into(out, api_version, kind, |out| encode_list_into(out, metadata, items));
}

/// Writes a frame of a watch: the event and an object with its envelope.
pub fn watch_frame_into(out: &mut Vec<u8>, event: &str, object: &[u8]) {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    wire::text(out, 1, event);
    wire::nested(out, 2, |out| wire::bytes(out, 1, object));
    let length = u32::try_from(out.len() - start - 4).unwrap_or(u32::MAX);
    out[start..start + 4].copy_from_slice(&length.to_be_bytes());
}

fn envelope_into(out: &mut Vec<u8>, api_version: &str, kind: &str, message: impl FnOnce(&mut Vec<u8>)) {
    out.extend_from_slice(MAGIC);
    wire::nested(out, 1, |out| {
        wire::text(out, 1, api_version);
        wire::text(out, 2, kind);
    });
    wire::nested(out, 2, message);
    wire::text(out, 3, "");
    wire::text(out, 4, "");
}

fn type_of<'a>(value: &'a Value, field: &str) -> &'a str {
    value.get(field).and_then(Value::as_str).unwrap_or("")
}

/// The type of an object by what it says of itself.
fn object_type(api_version: &str, kind: &str) -> Option<std::sync::Arc<Object>> {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    schema::of_kind(group, version, kind)
}

#[cfg(test)]
mod tests;
