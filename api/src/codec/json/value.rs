//! Values against a type, without a detour over text, as far as they are what they should be.
//!
//! What a patch made is nearly always plain: known fields of the right type in canonical form. Such a value is cleaned
//! here. Anything else (an unknown field, a wrong type, a form to be made canonical) is left to the reader of text, which
//! has the words for it: two readers with words would have to be kept alike.

use serde_json::{Map, Value};

use crate::codec::scalar::{self, Precision};
use crate::codec::{DEPTH_MAX, Depth, finish, is_zero, zero_item};
use crate::schema::{Absent, Object, Type};

/// The clean object, or nothing when the reader of text has to look at it.
pub(super) fn object(value: &Value, object: &Object, depth: Depth) -> Option<Value> {
    let Value::Object(fields) = value else { return None };
    if object.preserves_unknown {
        return None;
    }
    let depth = depth.within_structure()?;
    let mut map = Map::new();
    for (name, value) in fields {
        let field = object.fields.get(name)?;
        if value.is_null() {
            continue;
        }
        if field.go.as_deref().is_some_and(|go| go.starts_with("v1.JSONSchemaProps")) {
            return None;
        }
        let value = one(value, &field.ty, depth)?;
        if field.absent != Absent::Dropped || !is_zero(&value) {
            map.insert(name.clone(), value);
        }
    }
    finish(&mut map, object);
    Some(Value::Object(map))
}

fn one(value: &Value, ty: &Type, depth: Depth) -> Option<Value> {
    match (ty, value) {
        (Type::String, Value::String(_)) | (Type::Bool, Value::Bool(_)) => Some(value.clone()),
        (Type::Int32 | Type::IntOrString, Value::Number(number)) => {
            i32::try_from(number.as_i64()?).is_ok().then(|| value.clone())
        }
        (Type::Int64, Value::Number(number)) => number.is_i64().then(|| value.clone()),
        (Type::IntOrString, Value::String(_)) => Some(value.clone()),
        (Type::Bytes, Value::String(text)) => canonical(scalar::bytes(text.clone()).ok()?, value),
        (Type::Time, Value::String(text)) => canonical(scalar::time(text, Precision::Second).ok()??, value),
        (Type::MicroTime, Value::String(text)) => canonical(scalar::time(text, Precision::Micro).ok()??, value),
        (Type::Quantity, Value::String(text)) => canonical(scalar::quantity(text).ok()?, value),
        (Type::Named(named), Value::Object(_)) => object(value, named.object()?, depth),
        (Type::Object(of), Value::Object(_)) => object(value, of, depth),
        (Type::List(list), Value::Array(items)) => {
            let depth = depth.within()?;
            let item = |item: &Value| match item {
                Value::Null => Some(zero_item(&list.items)),
                item => one(item, &list.items, depth),
            };
            items.iter().map(item).collect::<Option<Vec<_>>>().map(Value::Array)
        }
        (Type::Map(of), Value::Object(entries)) => {
            let depth = depth.within()?;
            let entry = |(key, value): (&String, &Value)| match value {
                Value::Null => Some((key.clone(), zero_item(&of.values))),
                value => Some((key.clone(), one(value, &of.values, depth)?)),
            };
            entries.iter().map(entry).collect::<Option<Map<_, _>>>().map(Value::Object)
        }
        (Type::Any | Type::Deduced, _) => is_plain(value, depth.levels).then(|| value.clone()),
        _ => None,
    }
}

/// The value, when its text is canonical already.
fn canonical(text: String, value: &Value) -> Option<Value> {
    (value.as_str() == Some(text.as_str())).then_some(Value::String(text))
}

/// Whether any JSON is read from its text as it is here.
fn is_plain(value: &Value, depth: usize) -> bool {
    match value {
        Value::Array(items) => depth < DEPTH_MAX && items.iter().all(|item| is_plain(item, depth + 1)),
        Value::Object(fields) => depth < DEPTH_MAX && fields.values().all(|value| is_plain(value, depth + 1)),
        Value::Number(number) => number.is_i64(),
        _ => true,
    }
}
