//! The fields of a configuration, and whether it fits its type.

use serde_json::{Map, Value};

use super::element;
use super::fieldset::{FieldSet, put};
use super::typed::{Fields, Shape, Wrong, no_step, resolved, shape, step};
use crate::meta::text::sprint;
use crate::schema::{List, ListKind, Object, Type};

/// All fields that a value has. Items without a step do not count.
pub(super) fn fields(value: &Value, object: &Object) -> FieldSet {
    let fields = Fields::of_object(object);
    FieldSet::trusted(value.as_object().map(|value| fields_below(value, fields)).unwrap_or_default())
}

/// What is below a value, and whether the value itself is a field.
fn extract(value: &Value, ty: &Type) -> (bool, Map<String, Value>) {
    let ty = &*resolved(ty);
    match (shape(ty, Some(value)), value) {
        (Shape::Leaf, Value::Null) if matches!(ty, Type::Any | Type::Deduced) => (false, Map::new()),
        (Shape::Leaf, _) => (true, Map::new()),
        (Shape::Fields(fields), Value::Object(value)) => (false, fields_below(value, fields)),
        (Shape::Items(list), Value::Array(items)) => (false, items_below(items, list)),
        _ => (false, Map::new()),
    }
}

fn fields_below(value: &Map<String, Value>, fields: Fields<'_>) -> Map<String, Value> {
    let mut set = Map::new();
    for (name, value) in value {
        let Some(ty) = fields.of(name) else { continue };
        let (is_member, below) = extract(value, ty);
        let is_empty = value.is_null() || value.as_object().is_some_and(Map::is_empty);
        let is_member = is_member || is_empty || fields.declared(name).is_none();
        put(&mut set, element::field(name), is_member, below);
    }
    set
}

fn items_below(items: &[Value], list: &List) -> Map<String, Value> {
    let mut steps: Vec<(String, &Value)> =
        items.iter().filter_map(|item| Some((step(list, item).ok()?, item))).collect();
    steps.sort_by(|(a, _), (b, _)| a.cmp(b));
    let mut set = Map::new();
    for chunk in steps.chunk_by(|(a, _), (b, _)| a == b) {
        // Items that share a step are owned as one.
        let (step, below) = match chunk {
            [(step, item)] => (step, extract(item, &list.items).1),
            [(step, _), ..] => (step, Map::new()),
            [] => continue,
        };
        put(&mut set, step.clone(), true, below);
    }
    set
}

/// Most faults of a configuration that are told.
const WRONG_MAX: usize = 100;

/// Checks that a configuration fits its type and has no item of a list twice.
pub(super) fn check(value: &Value, object: &Object) -> Vec<Wrong> {
    let mut wrong = Vec::new();
    // What is told of it is bounded by [`WRONG_MAX`].
    match value {
        Value::Object(value) => check_fields(value, Fields::of_object(object), &mut wrong),
        other => wrong.push(expected("map", other)),
    }
    wrong
}

fn expected(what: &str, value: &Value) -> Wrong {
    Wrong::new(format!("expected {what}, got &{{{}}}", sprint(value)))
}

fn check_value(value: &Value, ty: &Type, wrong: &mut Vec<Wrong>) {
    if value.is_null() {
        return;
    }
    match (&*resolved(ty), value) {
        (Type::Object(object), Value::Object(value)) => check_fields(value, Fields::of_object(object), wrong),
        (Type::Map(map), Value::Object(value)) => {
            check_fields(value, Fields { object: None, others: Some(&map.values) }, wrong);
        }
        (Type::Object(_) | Type::Map(_), other) => wrong.push(expected("map", other)),
        (Type::List(list), Value::Array(items)) => check_items(items, list, wrong),
        (Type::List(_), other) => wrong.push(expected("list", other)),
        (Type::String | Type::Bytes, Value::String(_))
        | (Type::Bool, Value::Bool(_))
        | (Type::Any | Type::Deduced, _) => {}
        (Type::String | Type::Bytes, other) => {
            wrong.push(Wrong::new(format!(
                "expected string, got &value.valueUnstructured{{Value:{}}}",
                go_syntax(other)
            )));
        }
        (Type::Bool, other) => wrong.push(expected("boolean", other)),
        (Type::Int32 | Type::Int64 | Type::Float64, Value::Number(_)) => {}
        (Type::Int32 | Type::Int64 | Type::Float64, other) => {
            let found = match other {
                Value::Bool(_) => "bool",
                Value::String(_) => "string",
                Value::Array(_) => "[]interface {}",
                _ => "map[string]interface {}",
            };
            wrong.push(Wrong::new(format!("expected numeric (int or float), got {found}")));
        }
        (_, Value::Object(_) | Value::Array(_)) => wrong.push(expected("any scalar", value)),
        _ => {}
    }
}

/// A value as `%#v` prints it.
fn go_syntax(value: &Value) -> String {
    match value {
        Value::Object(fields) => {
            let fields: Vec<String> =
                fields.iter().map(|(name, value)| format!("{name:?}:{}", go_syntax(value))).collect();
            format!("map[string]interface {{}}{{{}}}", fields.join(", "))
        }
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(go_syntax).collect();
            format!("[]interface {{}}{{{}}}", items.join(", "))
        }
        Value::Null => "interface {}(nil)".to_owned(),
        other => other.to_string(),
    }
}

fn check_fields(value: &Map<String, Value>, fields: Fields<'_>, wrong: &mut Vec<Wrong>) {
    for (name, value) in value {
        if wrong.len() >= WRONG_MAX {
            return;
        }
        let step = element::field(name);
        let Some(ty) = fields.of(name) else {
            wrong.push(Wrong::new("field not declared in schema").within(&step));
            return;
        };
        let from = wrong.len();
        check_value(value, ty, wrong);
        prefix(wrong, from, &step);
    }
}

fn check_items(items: &[Value], list: &List, wrong: &mut Vec<Wrong>) {
    let mut seen = std::collections::HashSet::new();
    for (index, item) in items.iter().enumerate() {
        if wrong.len() >= WRONG_MAX {
            return;
        }
        let step = match list.kind {
            ListKind::Atomic => format!("i:{index}"),
            _ => match step(list, item) {
                Ok(step) => step,
                Err(why) => {
                    wrong.push(no_step(list, index, why));
                    return;
                }
            },
        };
        if !seen.insert(step.clone()) {
            wrong.push(Wrong::new(format!("duplicate entries for key {}", element::shown(&step))));
        }
        let from = wrong.len();
        check_value(item, &list.items, wrong);
        prefix(wrong, from, &step);
    }
}

fn prefix(wrong: &mut [Wrong], from: usize, step: &str) {
    for one in &mut wrong[from..] {
        *one = one.clone().within(step);
    }
}
