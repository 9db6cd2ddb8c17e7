//! How a type is looked at when fields are owned: what is one value, what has parts, and how items are told apart.

use std::borrow::Cow;
use std::sync::LazyLock;

use serde_json::{Map, Value};

use super::element;
use crate::schema::{Absent, Field, List, ListKind, Object, Type};

/// An object with nothing in it, which stands for structures that are absent but always there in the reference.
pub(super) static EMPTY: LazyLock<Value> = LazyLock::new(|| Value::Object(Map::new()));
static NULL: Value = Value::Null;
static TEXT: Value = Value::String(String::new());
static FALSE: Value = Value::Bool(false);
static ZERO: LazyLock<Value> = LazyLock::new(|| Value::from(0));
static QUANTITY: LazyLock<Value> = LazyLock::new(|| Value::from("0"));

/// What is wrong with a value, and where; the path is put together on the way back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wrong {
    pub path: String,
    pub message: String,
}

impl Wrong {
    pub fn new(message: impl Into<String>) -> Self {
        Self { path: String::new(), message: message.into() }
    }

    pub fn within(mut self, step: &str) -> Self {
        self.path.insert_str(0, &element::shown(step));
        self
    }
}

/// Several such errors as one text.
pub(super) fn shown(wrong: &[Wrong]) -> String {
    let one = |w: &Wrong| match w.path.as_str() {
        "" => w.message.clone(),
        path => format!("{path}: {}", w.message),
    };
    match wrong {
        [single] => one(single),
        many => std::iter::once("errors:".to_owned())
            .chain(many.iter().map(|w| format!("  {}", one(w))))
            .collect::<Vec<_>>()
            .join("\n"),
    }
}

/// A type with names resolved.
pub(super) fn resolved(ty: &Type) -> Cow<'_, Type> {
    match ty {
        Type::Named(named) => Cow::Borrowed(named.ty()),
        other => Cow::Borrowed(other),
    }
}

/// What a (resolved) type and a value are together.
#[derive(Clone, Copy)]
pub(super) enum Shape<'a> {
    /// One value.
    Leaf,
    /// One value that is an object or a list; null and absent are told apart.
    Fields(Fields<'a>),
    /// A list whose items have owners of their own.
    Items(&'a List),
}

/// The fields of an object.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a> {
    pub object: Option<&'a Object>,
    /// Type of fields that are not declared.
    pub others: Option<&'a Type>,
}

static ANY: Type = Type::Deduced;

impl<'a> Fields<'a> {
    /// The type of a field; `None` when there is no such field.
    pub fn of(&self, name: &str) -> Option<&'a Type> {
        match self.declared(name) {
            Some(field) => Some(&field.ty),
            None => self.others,
        }
    }

    pub fn declared(&self, name: &str) -> Option<&'a Field> {
        self.object?.fields.get(name)
    }

    pub fn of_object(object: &'a Object) -> Self {
        Self { object: Some(object), others: object.preserves_unknown.then_some(&ANY) }
    }
}

/// How a value of this type is looked at. For values of any type it depends on the value.
pub(super) fn shape<'a>(ty: &'a Type, value: Option<&Value>) -> Shape<'a> {
    match ty {
        Type::Object(object) if !object.atomic => Shape::Fields(Fields::of_object(object)),
        Type::Map(map) if !map.atomic => Shape::Fields(Fields { object: None, others: Some(&map.values) }),
        Type::List(list) if list.kind != ListKind::Atomic => Shape::Items(list),
        Type::Deduced => match value {
            Some(Value::Object(_)) => Shape::Fields(Fields { object: None, others: Some(&ANY) }),
            _ => Shape::Leaf,
        },
        _ => Shape::Leaf,
    }
}

/// What an absent field counts as in a structure that is there: Go writes some fields even when they are zero.
pub(super) fn stand_in(field: &Field) -> Option<&'static Value> {
    if field.absent != Absent::Zero {
        return None;
    }
    if field.pointer {
        return Some(&NULL);
    }
    Some(zero(&field.ty))
}

fn zero(ty: &Type) -> &'static Value {
    match ty {
        Type::Object(_) | Type::Named(_) => &EMPTY,
        Type::String => &TEXT,
        Type::Bool => &FALSE,
        Type::Quantity => &QUANTITY,
        Type::IntOrString | Type::Int32 | Type::Int64 | Type::Float64 => &ZERO,
        Type::Map(_) | Type::List(_) | Type::Bytes | Type::Time | Type::MicroTime | Type::Any | Type::Deduced => &NULL,
    }
}

/// The step to an item of a list that is no single value.
pub(super) fn step(list: &List, item: &Value) -> Result<String, &'static str> {
    let ListKind::Map(keys) = &list.kind else {
        return match item {
            Value::Object(_) => Err("associative list without keys has an element that's a map type"),
            Value::Array(_) => Err("not supported: associative list with lists as elements"),
            Value::Null => Err("associative list without keys has an element that's an explicit null"),
            scalar => Ok(element::value(scalar)),
        };
    };
    let fields = match item {
        Value::Object(fields) => fields,
        Value::Null => return Err("associative list with keys may not have a null element"),
        _ => return Err("associative list with keys may not have non-map elements"),
    };
    if keys.iter().all(|key| fields.contains_key(key)) {
        return Ok(element::keys(sorted(keys).iter().map(|key| (key.as_str(), &fields[key.as_str()]))));
    }
    // A key that is absent has its default; one without a default is left out.
    let ty = resolved(&list.items);
    let object = match &*ty {
        Type::Object(object) => Some(&**object),
        _ => None,
    };
    let sorted = sorted(keys);
    let found: Vec<(&str, &Value)> = sorted
        .iter()
        .filter_map(|key| {
            let declared = object.and_then(|object| object.fields.get(key.as_str()));
            let default = || {
                let declared = declared?;
                let zero = || declared.zero_as_key.then(|| zero(&declared.ty));
                declared.default.as_ref().or_else(|| stand_in(declared)).or_else(zero)
            };
            Some((key.as_str(), fields.get(key.as_str()).or_else(default)?))
        })
        .collect();
    if found.is_empty() {
        return Err("associative list with keys has an element that omits all key fields");
    }
    Ok(element::keys(found.into_iter()))
}

fn sorted(keys: &[String]) -> Cow<'_, [String]> {
    if keys.is_sorted() {
        return Cow::Borrowed(keys);
    }
    let mut keys = keys.to_vec();
    keys.sort_unstable();
    Cow::Owned(keys)
}

/// The message about an item that has no step.
pub(super) fn no_step(list: &List, index: usize, why: &str) -> Wrong {
    let keys = match &list.kind {
        ListKind::Map(keys) if why.ends_with("omits all key fields") => {
            let quoted: Vec<String> = keys.iter().map(|key| crate::meta::text::quote(key)).collect();
            format!(" [{}] (and doesn't have default values for any key fields)", quoted.join(" "))
        }
        _ => String::new(),
    };
    Wrong::new(format!("element {index}: {why}{keys}"))
}
