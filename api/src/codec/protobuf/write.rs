//! Values to messages. Fields are written in the order of their numbers and maps in the order of their keys, so equal
//! values are equal bytes.

use base64::Engine as _;
use serde_json::Value;

use super::wire;
use crate::codec::scalar::BASE64;
use crate::meta;
use crate::schema::{self, Field, Object, Type};

pub(super) const SCHEMA_PROPS: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps";
const LIST_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta";

/// Writes the message of an object, without envelope.
pub fn encode_raw_into(out: &mut Vec<u8>, value: &Value, object: &Object) {
    level(out, value, object, &object.index().numbers, 0);
}

/// Writes the message of a list of any kind: ListMeta = 1, items = 2.
pub fn encode_list_into<'a>(out: &mut Vec<u8>, metadata: &Value, items: impl IntoIterator<Item = &'a [u8]>) {
    wire::nested(out, 1, |out| {
        if let Some(list_meta) = schema::named(LIST_META) {
            encode_raw_into(out, metadata, &list_meta);
        }
    });
    for item in items {
        wire::bytes(out, 2, item);
    }
}

/// Writes the fields whose paths go on at this depth; those with more steps share a message.
fn level(out: &mut Vec<u8>, value: &Value, object: &Object, mut numbers: &[(Box<[u32]>, String)], depth: usize) {
    while let Some((path, name)) = numbers.first() {
        if path.len() == depth + 1 {
            if let Some(present) = value.get(name) {
                field(out, path[depth], present, &object.fields[name]);
            }
            numbers = &numbers[1..];
        } else {
            let step = path[depth];
            let (together, rest) = numbers.split_at(numbers.partition_point(|(path, _)| path[depth] <= step));
            if together.iter().any(|(_, name)| value.get(name).is_some()) {
                wire::nested(out, step, |out| level(out, value, object, together, depth + 1));
            }
            numbers = rest;
        }
    }
}

fn field(out: &mut Vec<u8>, number: u32, value: &Value, field: &Field) {
    match (&field.ty, value) {
        (_, Value::Null) => {}
        (Type::List(list), Value::Array(items)) if field.go.as_deref() == Some("v1.Verbs") => {
            wire::nested(out, number, |out| items.iter().for_each(|item| one(out, 1, item, &list.items, "")));
        }
        (Type::List(list), Value::Array(items)) => {
            items.iter().for_each(|item| one(out, number, item, &list.items, ""))
        }
        (Type::Map(map), Value::Object(entries)) => {
            for (key, value) in entries {
                wire::nested(out, number, |out| {
                    wire::text(out, 1, key);
                    match (&map.values, value) {
                        (Type::List(list), Value::Array(items)) => {
                            wire::nested(out, 2, |out| {
                                items.iter().for_each(|item| one(out, 1, item, &list.items, ""))
                            });
                        }
                        _ => one(out, 2, value, &map.values, ""),
                    }
                });
            }
        }
        (ty, value) => one(out, number, value, ty, field.go.as_deref().unwrap_or("")),
    }
}

/// A value that is not a field's list or map. A value of another type than the schema's was refused when it was read; one
/// that comes from elsewhere is written as nothing.
fn one(out: &mut Vec<u8>, number: u32, value: &Value, ty: &Type, go: &str) {
    match (ty, value) {
        (Type::Named(named), Value::Object(_)) => {
            if let Some(object) = named.object() {
                wire::nested(out, number, |out| encode_raw_into(out, value, object));
            }
        }
        (Type::Object(object), Value::Object(_)) => {
            wire::nested(out, number, |out| encode_raw_into(out, value, object))
        }
        (Type::String, Value::String(text)) => wire::text(out, number, text),
        (Type::Bytes, Value::String(text)) => wire::bytes(out, number, &BASE64.decode(text).unwrap_or_default()),
        (Type::Time | Type::MicroTime, Value::String(text)) => wire::nested(out, number, |out| time(out, text, ty)),
        (Type::Quantity, Value::String(text)) => wire::nested(out, number, |out| wire::text(out, 1, text)),
        (Type::Quantity, Value::Number(amount)) => {
            wire::nested(out, number, |out| wire::text(out, 1, &amount.to_string()))
        }
        (Type::IntOrString, Value::String(text)) => wire::nested(out, number, |out| {
            wire::integer(out, 1, 1);
            wire::integer(out, 2, 0);
            wire::text(out, 3, text);
        }),
        (Type::IntOrString, Value::Number(amount)) => wire::nested(out, number, |out| {
            wire::integer(out, 1, 0);
            wire::integer(out, 2, amount.as_i64().unwrap_or_default());
            wire::text(out, 3, "");
        }),
        (Type::Int32 | Type::Int64, Value::Number(amount)) => {
            wire::integer(out, number, amount.as_i64().unwrap_or_default());
        }
        (Type::Float64, Value::Number(amount)) => wire::double(out, number, amount.as_f64().unwrap_or_default()),
        (Type::Bool, Value::Bool(flag)) => wire::integer(out, number, i64::from(*flag)),
        (Type::Any | Type::Deduced, _) => wire::nested(out, number, |out| any(out, value, go)),
        // The item of a list takes its place even when it is nothing.
        (Type::Named(_) | Type::Object(_), Value::Null) => wire::nested(out, number, |_| {}),
        _ => {}
    }
}

fn time(out: &mut Vec<u8>, text: &str, ty: &Type) {
    if let Some(time) = meta::time::parse(text) {
        // Seconds count down before 1970, so that nanoseconds are never negative.
        let nanos = time.as_nanosecond();
        let seconds = i64::try_from(nanos.div_euclid(1_000_000_000)).unwrap_or_default();
        let nanos = nanos.rem_euclid(1_000_000_000) as i64;
        wire::integer(out, 1, seconds);
        wire::integer(out, 2, if matches!(ty, Type::MicroTime) { nanos } else { 0 });
    }
}

fn any(out: &mut Vec<u8>, value: &Value, go: &str) {
    let props = |out: &mut Vec<u8>, number, value: &Value| {
        if let Some(object) = schema::named(SCHEMA_PROPS) {
            wire::nested(out, number, |out| encode_raw_into(out, value, &object));
        }
    };
    match (go, value) {
        ("v1.JSONSchemaPropsOrArray", Value::Object(_)) => props(out, 1, value),
        ("v1.JSONSchemaPropsOrArray", Value::Array(items)) => items.iter().for_each(|item| props(out, 2, item)),
        ("v1.JSONSchemaPropsOrBool", Value::Bool(flag)) => wire::integer(out, 1, i64::from(*flag)),
        ("v1.JSONSchemaPropsOrBool", Value::Object(_)) => {
            wire::integer(out, 1, 1);
            props(out, 2, value);
        }
        _ => wire::bytes(out, 1, &serde_json::to_vec(value).unwrap_or_default()),
    }
}
