//! Between bodies and objects: the api crate's codecs, with what an endpoint expects around them.

use bytes::{BufMut, Bytes, BytesMut};
use coracle_api::codec::{self, DecodeError, Decoded, json, protobuf, yaml};
use coracle_api::kinds::FieldError;
use coracle_api::meta;
use coracle_api::schema::{self, Object};
use coracle_api::status::Status;
use serde_json::{Value, json};

use super::body::Expected;
use super::negotiate::Format;

const PARTIAL: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.PartialObjectMetadata";
const STATUS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Status";
const DELETE_OPTIONS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions";
/// As much of a body is shown in an error.
const SHOWN_BYTES: usize = 1_000;
/// A group that nothing is served of any more, whose kinds the reference still knows.
const LEGACY_GROUP: &str = "extensions";
/// How the reference calls its registry of types in errors.
const SCHEME: &str = "pkg/runtime/scheme.go:111";

/// An object out of a body.
pub(crate) struct Read {
    pub api_version: String,
    pub kind: String,
    pub value: Value,
    pub problems: Vec<String>,
}

/// Why a body is no object of the expected type.
pub(crate) enum ReadError {
    /// Not to be read at all.
    Unrecognized(String),
    /// Of this kind, but not as expected.
    Kind { api_version: String, kind: String, why: String },
    /// A custom resource of another kind.
    OtherKind { kind: String, name: String },
}

/// Reads a body against the expected type; a missing version or kind is the expected one.
pub(crate) fn read(format: Format, body: &Bytes, expected: &Expected<'_>) -> Result<Read, ReadError> {
    if expected.schema.custom.is_some() {
        return read_custom(format, body, expected);
    }
    let unrecognized = |error: DecodeError| ReadError::Unrecognized(error.to_string());
    let (api_version, kind, decoded) = match format {
        Format::Json => {
            let decoded = json::decode(body, expected.schema);
            // What is as it should be is read once. Only to say what else it is, its kind is looked for before its content.
            match decoded.as_ref().ok().map(|decoded| type_as_written(&decoded.value)) {
                Some((api_version, kind)) if is_expected(&api_version, &kind, expected) => (api_version, kind, decoded),
                _ => {
                    let (api_version, kind) = json::type_of(body).map_err(unrecognized)?;
                    check_kind(&api_version, &kind, expected)?;
                    (api_version, kind, decoded)
                }
            }
        }
        Format::Yaml => {
            let converted = yaml::to_json(body).map_err(unrecognized)?;
            let (api_version, kind) = json::type_of(&converted.bytes).map_err(unrecognized)?;
            check_kind(&api_version, &kind, expected)?;
            let decoded = json::decode(&converted.bytes, expected.schema).map(|mut decoded| {
                decoded.problems.splice(0..0, converted.problems);
                decoded
            });
            (api_version, kind, decoded)
        }
        Format::Protobuf => {
            let envelope = protobuf::open(body).map_err(unrecognized)?;
            let (api_version, kind) = (envelope.api_version.to_owned(), envelope.kind.to_owned());
            check_kind(&api_version, &kind, expected)?;
            (api_version, kind, protobuf::decode(body, expected.schema))
        }
    };
    let or = |given: String, expected: &str| if given.is_empty() { expected.to_owned() } else { given };
    let (api_version, kind) = (or(api_version, expected.api_version), or(kind, expected.kind));
    let Decoded { mut value, problems } = decoded.map_err(|error| match error {
        DecodeError::Unrecognized(why) => ReadError::Unrecognized(why),
        DecodeError::Mistyped(why) => ReadError::Kind { api_version: api_version.clone(), kind: kind.clone(), why },
    })?;
    value["apiVersion"] = expected.api_version.into();
    value["kind"] = expected.kind.into();
    Ok(Read { api_version, kind, value, problems })
}

/// The same of a custom resource, whose kind must be there.
fn read_custom(format: Format, body: &Bytes, expected: &Expected<'_>) -> Result<Read, ReadError> {
    let unrecognized = |error: DecodeError| ReadError::Unrecognized(error.to_string());
    let (text, told) = match format {
        Format::Yaml => {
            let converted = yaml::to_json(body).map_err(unrecognized)?;
            (Bytes::from(converted.bytes), converted.problems)
        }
        _ => (body.clone(), Vec::new()),
    };
    let (api_version, kind) = json::type_of(&text).map_err(unrecognized)?;
    if kind.is_empty() {
        let shown = String::from_utf8_lossy(&text[..text.len().min(SHOWN_BYTES)]);
        return Err(ReadError::Unrecognized(format!("Object 'Kind' is missing in '{shown}'")));
    }
    let Decoded { value, mut problems } = json::decode(&text, expected.schema).map_err(|error| match error {
        DecodeError::Unrecognized(why) => ReadError::Unrecognized(why),
        DecodeError::Mistyped(why) => ReadError::Kind { api_version: api_version.clone(), kind: kind.clone(), why },
    })?;
    if kind != expected.kind && api_version == expected.api_version {
        let name = value["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        return Err(ReadError::OtherKind { kind, name });
    }
    problems.splice(0..0, told);
    Ok(Read { api_version, kind, value, problems })
}

/// Version and kind of what was read, empty when they were not there.
fn type_as_written(value: &Value) -> (String, String) {
    let text = |field: &str| value[field].as_str().unwrap_or_default().to_owned();
    (text("apiVersion"), text("kind"))
}

fn is_expected(api_version: &str, kind: &str, expected: &Expected<'_>) -> bool {
    let is = |given: &str, wanted: &str| given.is_empty() || given == wanted;
    is(api_version, expected.api_version) && is(kind, expected.kind)
}

/// Another kind in the body is refused as the reference refuses it: by what it knows of that kind.
fn check_kind(api_version: &str, kind: &str, expected: &Expected<'_>) -> Result<(), ReadError> {
    let given_version = if api_version.is_empty() { expected.api_version } else { api_version };
    let given_kind = if kind.is_empty() { expected.kind } else { kind };
    if given_kind == expected.kind && given_version == expected.api_version {
        return Ok(());
    }
    let (group, version) = given_version.split_once('/').unwrap_or(("", given_version));
    let expected_group = expected.api_version.split_once('/').map_or("", |(group, _)| group);
    let why = if schema::of_kind(group, version, given_kind).is_some() || given_kind == "List" {
        let internal = if expected_group.is_empty() { "core" } else { expected_group };
        if given_kind == expected.kind {
            return Ok(());
        }
        format!("converting ({version}.{given_kind}) to ({internal}.{}): unknown conversion", expected.kind)
    } else if given_kind == expected.kind && group == LEGACY_GROUP {
        return Ok(());
    } else {
        format!("no kind {given_kind:?} is registered for version {given_version:?} in scheme {SCHEME:?}")
    };
    Err(ReadError::Kind { api_version: given_version.to_owned(), kind: given_kind.to_owned(), why })
}

/// Reads DeleteOptions, of whatever group.
pub(crate) fn read_options(format: Format, body: &Bytes) -> Result<Value, Status> {
    let Some(schema) = schema::named(DELETE_OPTIONS) else { return Ok(Value::Null) };
    let wrong = |error: DecodeError| Status::bad_request(error.to_string());
    let (kind, decoded) = match format {
        Format::Json => (json::type_of(body).map_err(wrong)?, json::decode(body, &schema)),
        Format::Yaml => {
            let text = yaml::to_json(body).map_err(wrong)?.bytes;
            (json::type_of(&text).map_err(wrong)?, json::decode(&text, &schema))
        }
        Format::Protobuf => {
            let envelope = protobuf::open(body).map_err(wrong)?;
            ((envelope.api_version.to_owned(), envelope.kind.to_owned()), protobuf::decode(body, &schema))
        }
    };
    let (version, kind) = kind;
    if !kind.is_empty() && kind != "DeleteOptions" {
        let message = format!("no kind {kind:?} is registered for version {version:?} in scheme {SCHEME:?}");
        return Err(Status::bad_request(message));
    }
    decoded.map(|decoded| decoded.value).map_err(wrong)
}

/// Reads what somebody who was asked made of an object of this type, as a body is read: what is not known goes.
///
/// # Errors
/// It is of another type, or its values are of wrong types.
pub(crate) fn remade(value: &Value, expected: &Expected<'_>) -> Result<Value, Status> {
    let mut object = check(value, expected.schema).map_err(Status::internal_error)?.value;
    keep_type(&mut object, expected).map_err(|changed| match changed {
        TypeChanged::Invalid(status) => status,
        TypeChanged::Unconverted(why) => Status::internal_error(why),
    })?;
    Ok(object)
}

/// Why an object is no longer of its type.
pub(crate) enum TypeChanged {
    /// Of a custom resource: it is told as what is wrong with the content.
    Invalid(Status),
    /// In the reference's words.
    Unconverted(String),
}

/// Checks that an object which was changed says the kind and the version that it said before; a built-in one that says it no more is it all the same.
pub(crate) fn keep_type(object: &mut Value, expected: &Expected<'_>) -> Result<(), TypeChanged> {
    let Expected { api_version, kind, schema } = *expected;
    let given = type_as_written(object);
    if schema.custom.is_some() {
        let fields = [("apiVersion", &given.0, api_version), ("kind", &given.1, kind)];
        let other = fields.iter().filter(|(_, given, wanted)| given != wanted);
        let errors: Vec<FieldError> = other
            .map(|(field, given, wanted)| FieldError::invalid(field, given.as_str(), &format!("must be {wanted}")))
            .collect();
        if !errors.is_empty() {
            let group = api_version.split_once('/').map_or("", |(group, _)| group);
            return Err(TypeChanged::Invalid(Status::invalid(group, kind, meta::name(object), errors)));
        }
    } else if let Err(ReadError::Kind { why, .. }) = check_kind(&given.0, &given.1, expected) {
        return Err(TypeChanged::Unconverted(why));
    }
    object["apiVersion"] = api_version.into();
    object["kind"] = kind.into();
    Ok(())
}

/// Checks a value that a patch made, as if it had come in a body.
pub(crate) fn check(value: &Value, schema: &Object) -> Result<Decoded, DecodeError> {
    json::decode_value(value, schema)
}

/// Reads YAML or JSON of any shape, for patches.
pub(crate) fn any_yaml(body: &[u8]) -> Result<(Value, Vec<String>), String> {
    // Nearly everybody sends JSON, which is YAML. What is wrong with it, or there twice, is told in YAML's words.
    if body.trim_ascii_start().starts_with(b"{")
        && let Ok(Decoded { mut value, problems }) = json::decode_any(body)
        && problems.is_empty()
    {
        json::whole_numbers(&mut value);
        return Ok((value, problems));
    }
    let converted = yaml::to_json(body).map_err(|error| error.to_string())?;
    let decoded = json::parse_body(&converted.bytes).map_err(|error| error.to_string())?;
    Ok((decoded, converted.problems))
}

/// The protobuf message of an object, without an envelope.
pub(crate) fn message(value: &Value, schema: &Object) -> Bytes {
    let mut out = Vec::with_capacity(512);
    protobuf::encode_raw_into(&mut out, value, schema);
    Bytes::from(out)
}

/// The message of a PartialObjectMetadata with this metadata.
pub(crate) fn partial_message(metadata: &Value) -> Bytes {
    schema::named(PARTIAL).map(|schema| message(&json!({ "metadata": metadata }), &schema)).unwrap_or_default()
}

/// A status in its envelope.
pub(crate) fn status(value: &Value) -> Bytes {
    schema::named(STATUS).map(|schema| Bytes::from(protobuf::encode(value, &schema))).unwrap_or_default()
}

/// An envelope around a message.
pub(crate) fn envelope(api_version: &str, kind: &str, message: &[u8]) -> Bytes {
    let mut out = Vec::with_capacity(message.len() + 64);
    protobuf::wrap_into(&mut out, api_version, kind, message);
    Bytes::from(out)
}

/// Tag and length of field 2 with a message of `size` bytes, and the message.
pub(crate) fn item_size(size: usize) -> usize {
    1 + varint_size(size) + size
}

/// The beginning of a list in its envelope, whose items take `items_size` bytes; see [`item_size`].
pub(crate) fn list_head(api_version: &str, kind: &str, metadata: &Value, items_size: usize) -> Vec<u8> {
    let mut list_metadata = Vec::new();
    protobuf::encode_list_into(&mut list_metadata, metadata, []);
    let mut head = Vec::with_capacity(256);
    protobuf::wrap_into(&mut head, api_version, kind, &[]);
    // What the envelope has after the message is the tail; before it stands the message's length, which was 0.
    head.truncate(head.len() - LIST_TAIL.len() - 2);
    head.push(2 << 3 | 2);
    varint(&mut head, list_metadata.len() + items_size);
    head.extend_from_slice(&list_metadata);
    head
}

/// Appends an item of a list.
pub(crate) fn list_item(out: &mut Vec<u8>, message: &[u8]) {
    out.push(2 << 3 | 2);
    varint(out, message.len());
    out.extend_from_slice(message);
}

/// What follows the items: two empty texts of the envelope.
pub(crate) const LIST_TAIL: &[u8] = &[3 << 3 | 2, 0, 4 << 3 | 2, 0];

fn varint(out: &mut Vec<u8>, mut number: usize) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn varint_size(number: usize) -> usize {
    let bits = usize::BITS - number.leading_zeros();
    (bits.max(1) as usize).div_ceil(7)
}

/// Appends a frame of a watch.
pub(crate) fn watch_frame(out: &mut BytesMut, event: &str, object: &[u8]) {
    let mut frame = Vec::with_capacity(object.len() + 32);
    protobuf::watch_frame_into(&mut frame, event, object);
    out.put_slice(&frame);
}

/// The beginning of a body as errors quote it.
pub(crate) fn excerpt(body: &[u8]) -> String {
    codec::excerpt(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever order they come in, and whichever of them is wrong.
    #[test]
    fn the_kind_is_told_before_the_content() {
        let schema = schema::of_kind("", "v1", "ConfigMap").unwrap();
        let expected = Expected { api_version: "v1", kind: "ConfigMap", schema: &schema };
        let ask = |text: &str| match read(Format::Json, &Bytes::from(text.to_owned()), &expected) {
            Ok(read) => format!("{} {} {}", read.api_version, read.kind, read.value["kind"]),
            Err(ReadError::Unrecognized(why)) => why,
            Err(ReadError::Kind { kind, why, .. }) => format!("{kind}: {why}"),
            Err(ReadError::OtherKind { .. }) => unreachable!("of custom kinds only"),
        };
        for (text, answer) in [
            (r#"{"data":{"a":"b"}}"#, "v1 ConfigMap \"ConfigMap\""),
            (r#"{"data":{"a":"b"},"kind":"ConfigMap","apiVersion":"v1"}"#, "v1 ConfigMap \"ConfigMap\""),
            (r#"{"kind":"Secret","kind":"ConfigMap"}"#, "v1 ConfigMap \"ConfigMap\""),
            (
                r#"{"data":{"a":1},"kind":"Secret","apiVersion":"v1"}"#,
                "Secret: converting (v1.Secret) to (core.ConfigMap): unknown conversion",
            ),
            (
                r#"{"data":{},"kind":"Secret","apiVersion":"v1"}"#,
                "Secret: converting (v1.Secret) to (core.ConfigMap): unknown conversion",
            ),
            (
                r#"{"data":{},"kind":7}"#,
                "couldn't get version/kind; json parse error: json: cannot unmarshal number into Go struct field .kind of type string",
            ),
            (
                r#"{"data":{"a":1},"kind":"ConfigMap"}"#,
                "ConfigMap: json: cannot unmarshal number into Go struct field ConfigMap.data of type string",
            ),
        ] {
            assert_eq!(ask(text), answer, "{text}");
        }
    }

    #[test]
    fn json_is_read_as_the_yaml_that_it_is() {
        for text in [
            r#"{"a": [1, -0, 1.0, 1.5, 1e3, 1e17, 18446744073709551615, true, null], "": {}}"#,
            r#" {"a": "y", "yes": "\u00e9\n", "<<": {"b": "~"}} "#,
            // What is no JSON, and what is told.
            "{a: y}",
            "a: {b: 010}",
            r#"{"a": 1, "a": {"b": 2, "b": 3}}"#,
            r#"{"a": 1e400}"#,
            r#"{"a": ["#,
            "{\"a\": \"\t\"}",
        ] {
            let converted = yaml::to_json(text.as_bytes()).map_err(|error| error.to_string());
            let expected = converted.map(|converted| (json::parse(&converted.bytes).expect(text), converted.problems));
            assert_eq!(any_yaml(text.as_bytes()), expected, "{text}");
        }
    }

    #[test]
    fn a_list_in_pieces_is_the_list_in_one() {
        let metadata = json!({"resourceVersion": "7"});
        for size in [0_usize, 1, 127, 128, 16_383, 16_384, 70_000] {
            let items = [vec![1_u8; size], vec![2_u8; 3]];
            let mut whole = Vec::new();
            protobuf::encode_list(&mut whole, "v1", "PodList", &metadata, items.iter().map(Vec::as_slice));
            let total = items.iter().map(|item| item_size(item.len())).sum();
            let mut pieces = list_head("v1", "PodList", &metadata, total);
            items.iter().for_each(|item| list_item(&mut pieces, item));
            pieces.extend_from_slice(LIST_TAIL);
            assert_eq!(pieces, whole, "{size}");
        }
    }
}
