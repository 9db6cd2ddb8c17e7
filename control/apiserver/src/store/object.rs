//! The bytes of an object: how they are laid out, so that they can be spliced into answers without being read.
//!
//! ```text
//! {"kind":"Pod","apiVersion":"v1","metadata":{"resourceVersion":"…",…},…}
//!                                 ^ items of lists begin here           ^ keys in their order
//! ```
//! The revision is not known before the write is committed; the keyspace inserts it at the offset given with the bytes.

use std::ops::Range;

use bytes::Bytes;
use coracle_api::codec::json;
use coracle_keyspace::Value as Content;
use serde_json::{Map, Value};

/// Largest object (etcd's limit, which clients know).
pub(crate) const OBJECT_BYTES_MAX: usize = 1_572_864;

/// What stands before the metadata.
pub(crate) const METADATA: &[u8] = b"\"metadata\":";

/// Lays out `object`.
pub(crate) fn encode(object: &Value) -> Content {
    let mut bytes = Vec::with_capacity(1024);
    let mut revision_at = 0;
    write_object(&mut bytes, object, |bytes| revision_at = bytes.len());
    Content { bytes: Bytes::from(bytes), revision_at }
}

/// The same layout with the resourceVersion that the object has.
pub(crate) fn encode_final(object: &Value) -> Bytes {
    let mut bytes = Vec::with_capacity(1024);
    let revision = object["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned();
    if revision.is_empty() {
        let mut text = Vec::with_capacity(1024);
        write_plain(&mut text, object);
        return Bytes::from(text);
    }
    write_object(&mut bytes, object, |bytes| bytes.extend_from_slice(revision.as_bytes()));
    Bytes::from(bytes)
}

fn write_object(out: &mut Vec<u8>, object: &Value, revision: impl FnOnce(&mut Vec<u8>)) {
    let empty = Map::new();
    let fields = object.as_object().unwrap_or(&empty);
    head(out, fields);
    out.extend_from_slice(METADATA);
    out.extend_from_slice(b"{\"resourceVersion\":\"");
    revision(out);
    out.push(b'"');
    for (key, value) in fields.get("metadata").and_then(Value::as_object).unwrap_or(&empty) {
        if key != "resourceVersion" {
            out.push(b',');
            member(out, key, value);
        }
    }
    out.push(b'}');
    rest(out, fields);
    out.push(b'}');
}

/// An object without a version, as a dry run gives it.
fn write_plain(out: &mut Vec<u8>, object: &Value) {
    let empty = Map::new();
    let fields = object.as_object().unwrap_or(&empty);
    head(out, fields);
    match fields.get("metadata") {
        Some(metadata) => member(out, "metadata", metadata),
        None => out.extend_from_slice(b"\"metadata\":{}"),
    }
    rest(out, fields);
    out.push(b'}');
}

fn head(out: &mut Vec<u8>, fields: &Map<String, Value>) {
    out.push(b'{');
    for key in ["kind", "apiVersion"] {
        if let Some(value) = fields.get(key) {
            member(out, key, value);
            out.push(b',');
        }
    }
}

fn rest(out: &mut Vec<u8>, fields: &Map<String, Value>) {
    for (key, value) in fields {
        if !matches!(key.as_str(), "apiVersion" | "kind" | "metadata") {
            out.push(b',');
            member(out, key, value);
        }
    }
}

fn member(out: &mut Vec<u8>, key: &str, value: &Value) {
    write_json(out, key);
    out.push(b':');
    write_json(out, value);
}

/// Appends JSON; writing to memory cannot fail, and keys are text.
pub(crate) fn write_json(out: &mut Vec<u8>, value: &(impl serde::Serialize + ?Sized)) {
    serde_json::to_writer(out, value).expect("JSON values with text keys can be written to memory");
}

/// Where the metadata of an object that was laid out here stands: the braces and what is between them.
pub(crate) fn metadata_range(bytes: &[u8]) -> Range<usize> {
    let start = (item_start(bytes) + METADATA.len()).min(bytes.len());
    let (mut depth, mut in_text, mut escaped) = (0_usize, false, false);
    for (offset, byte) in bytes[start..].iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_text => escaped = true,
            b'"' => in_text = !in_text,
            _ if in_text => {}
            b'{' | b'[' => depth += 1,
            b'}' | b']' => {
                depth -= 1;
                if depth == 0 {
                    return start..start + offset + 1;
                }
            }
            _ => {}
        }
    }
    start..bytes.len()
}

/// Where `"metadata":` begins: what is before it, items of lists leave out.
pub(crate) fn item_start(bytes: &[u8]) -> usize {
    bytes.windows(METADATA.len()).position(|window| window == METADATA).unwrap_or(0)
}

/// Reads an object that was laid out here: with the parser that reads bodies, so that whatever was accepted is read back.
/// Of what was stored when more levels were taken the deepest are left out, and that comes back.
pub(crate) fn parse(bytes: &[u8]) -> Result<(Value, bool), json::ParseError> {
    json::parse_cut(bytes)
}

#[cfg(test)]
mod tests {
    use coracle_api::codec::{DEPTH_MAX, depth};
    use serde_json::json;

    use super::*;

    #[test]
    fn the_layout_lets_pieces_be_cut_out() {
        let object = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "data": {"a": "}\"{"},
            "metadata": {"name": "x", "annotations": {"b": "\\\"}"}, "resourceVersion": "7"},
        });
        let content = encode(&object);
        let (before, after) = content.bytes.split_at(content.revision_at);
        let bytes = [before, b"12", after].concat();
        let mut expected = object.clone();
        expected["metadata"]["resourceVersion"] = json!("12");
        assert_eq!(parse(&bytes).unwrap().0, expected);
        let range = metadata_range(&bytes);
        assert_eq!(parse(&bytes[range.clone()]).unwrap().0, expected["metadata"]);
        assert!(bytes[item_start(&bytes)..].starts_with(b"\"metadata\":{"));
        assert_eq!(parse(&encode_final(&object)).unwrap().0, object);
        assert!(bytes.starts_with(br#"{"kind":"ConfigMap","apiVersion":"v1","metadata":{"#));
    }

    /// As deep as a body may nest; what is deeper is left out.
    #[test]
    fn what_was_accepted_is_read_back() {
        let of = |levels: usize| {
            let deep = (2..levels).fold(json!({}), |inner, _| json!({ "f:a": inner }));
            json!({"metadata": {"name": "x", "resourceVersion": "7"}, "data": deep})
        };
        let object = of(DEPTH_MAX);
        assert_eq!(depth(&object), DEPTH_MAX);
        assert_eq!(parse(&encode_final(&object)).unwrap(), (object.clone(), false));
        for levels in [DEPTH_MAX + 1, 500] {
            assert_eq!(parse(&encode_final(&of(levels))).unwrap(), (object.clone(), true), "{levels}");
        }
    }
}
