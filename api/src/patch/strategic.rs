//! Strategic merge patch: a merge patch that knows the types. Lists merge by key, and directives say what a merge cannot:
//! `$patch`, `$deleteFromPrimitiveList/<field>`, `$setElementOrder/<field>`, `$retainKeys`.
//!
//! kubectl and client-go compute patches against exactly these rules
//! (`k8s.io/apimachinery/pkg/util/strategicpatch`), so they are followed to the order of items and the words of errors.

mod list;

use std::collections::HashSet;

use serde_json::{Map, Value};

use list::{merge_list, merge_ordered};

use crate::meta::text::{quote, sprint};
use crate::schema::{Field, Object, Type};
use crate::status::Status;

const DIRECTIVE: &str = "$patch";
const DELETE_FROM: &str = "$deleteFromPrimitiveList";
const ORDER: &str = "$setElementOrder";
const RETAIN: &str = "$retainKeys";

/// Why a patch cannot be applied.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("invalid patch format of primitive list")]
    DeleteFrom,
    #[error("invalid patch format of setElementOrder list")]
    Order,
    #[error("invalid patch format of retainKeys")]
    Retain,
    #[error("lists of lists are not supported")]
    NestedLists,
    #[error("{0}")]
    Other(String),
}

impl From<Error> for Status {
    /// The reference knows only some of its errors as the client's fault.
    fn from(error: Error) -> Self {
        match error {
            Error::DeleteFrom | Error::Order | Error::Retain => Status::bad_request(error.to_string()),
            Error::NestedLists => Status::generic(422, ""),
            Error::Other(message) => Status::unknown_error(message),
        }
    }
}

fn other<T>(message: String) -> Result<T, Error> {
    Err(Error::Other(message))
}

/// Applies a patch to an object of this type. On an error the value is left half changed.
pub fn strategic(value: &mut Value, patch: &Value, object: &Object) -> Result<(), Status> {
    let Value::Object(patch) = patch else {
        let words = "json: cannot unmarshal {} into Go value of type map[string]interface {}";
        return match patch {
            Value::Null => Ok(()),
            found => Err(Status::bad_request(words.replacen("{}", super::json::name(found), 1))),
        };
    };
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    if let Value::Object(original) = value {
        merge_map(original, patch.clone(), &Context::Object(object))?;
    }
    Ok(())
}

/// What is known of the type at hand.
enum Context<'a> {
    Object(&'a Object),
    Owned(Type),
}

/// What is known of a field.
struct Known {
    ty: Type,
    merges: bool,
    merge_key: String,
}

impl Context<'_> {
    fn of(ty: &Type) -> Self {
        Self::Owned(ty.resolve())
    }

    fn object(&self) -> Option<&Object> {
        match self {
            Self::Object(object) => Some(object),
            Self::Owned(Type::Object(object)) => Some(object),
            Self::Owned(_) => None,
        }
    }

    /// A field that is an object on both sides.
    fn field(&self, name: &str) -> Result<Known, Error> {
        let object = match (self.object(), self) {
            (Some(object), _) => object,
            (None, Self::Owned(Type::Any | Type::Deduced)) => {
                return other(format!(
                    "unable to find api field in struct RawExtension for the json field {}",
                    quote(name)
                ));
            }
            (None, Self::Owned(Type::List(_))) => {
                return other("merging an object in json but data type is not struct, instead is: slice".to_owned());
            }
            (None, _) => {
                return other("merging an object in json but data type is not struct, instead is: map".to_owned());
            }
        };
        match object.fields.get(name) {
            Some(Field { ty, merges, merge_key, .. }) => {
                Ok(Known { ty: ty.clone(), merges: *merges, merge_key: merge_key.clone().unwrap_or_default() })
            }
            None => {
                let kind = object.name.rsplit('.').next().unwrap_or_default();
                other(format!("unable to find api field in struct {kind} for the json field {}", quote(name)))
            }
        }
    }

    /// A field that is a list on both sides; its type is that of the items.
    fn list(&self, name: &str) -> Result<Known, Error> {
        let known = self.field(name)?;
        match known.ty.resolve() {
            Type::List(list) if matches!(list.items, Type::List(_)) => other("unexpected slice of slice".to_owned()),
            Type::List(list) => Ok(Known { ty: list.items.clone(), ..known }),
            _ => other("expected slice or array type, but got: struct".to_owned()),
        }
    }
}

type Fields = Map<String, Value>;

fn merge_map(original: &mut Fields, mut patch: Fields, context: &Context<'_>) -> Result<(), Error> {
    match patch.get(DIRECTIVE) {
        None => {}
        Some(directive) if directive == "replace" => {
            patch.remove(DIRECTIVE);
            *original = patch;
            return Ok(());
        }
        Some(directive) if directive == "delete" => {
            original.clear();
            return Ok(());
        }
        Some(directive) => return Err(bad_directive(directive, &patch)),
    }
    retain_keys(original, &mut patch)?;
    merge_ordered(original, &mut patch, context)?;
    for (name, change) in patch {
        let deletes = name.starts_with(DELETE_FROM);
        let name = if deletes { field_of(&name, DELETE_FROM).ok_or(Error::DeleteFrom)?.to_owned() } else { name };
        if change.is_null() {
            original.remove(&name);
            continue;
        }
        match (original.get_mut(&name), change) {
            (Some(Value::Object(present)), Value::Object(change)) => {
                let known = context.field(&name)?;
                merge_map(present, change, &Context::of(&known.ty))?;
            }
            (Some(Value::Array(present)), Value::Array(change)) => {
                let known = context.list(&name)?;
                merge_list(present, change, &known, deletes)?;
            }
            _ if deletes => {}
            (_, mut change) => {
                discard_nulls(&mut change);
                if remove_directives(&mut change) {
                    original.insert(name, change);
                } else {
                    original.remove(&name);
                }
            }
        }
    }
    Ok(())
}

fn bad_directive(directive: &Value, map: &Fields) -> Error {
    let shown = sprint(&Value::Object(map.clone()));
    let directive = match directive {
        Value::String(text) => text.clone(),
        other => format!("%!s({}={})", go_type(other), sprint(other)),
    };
    Error::Other(format!("unknown patch type: {directive} in map: {shown}"))
}

fn go_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "%!s(<nil>)",
        Value::Bool(_) => "bool",
        Value::Number(number) if number.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}

fn bad_type(expected: &str, actual: &Value) -> Error {
    Error::Other(format!("expected a {expected}, but received a {}", go_type(actual)))
}

/// The field behind the slash of `$setElementOrder/containers`.
fn field_of<'a>(key: &'a str, prefix: &str) -> Option<&'a str> {
    key.strip_prefix(prefix)?.strip_prefix('/')
}

/// Drops the fields of the original that `$retainKeys` does not name.
fn retain_keys(original: &mut Fields, patch: &mut Fields) -> Result<(), Error> {
    let Some(names) = patch.remove(RETAIN) else { return Ok(()) };
    let Value::Array(names) = names else { return Err(Error::Retain) };
    let names: HashSet<&str> = names.iter().filter_map(Value::as_str).collect();
    let named = |name: &str| names.contains(name);
    let is_named = |(name, value): (&String, &Value)| {
        value.is_null() || name.starts_with(DELETE_FROM) || name.starts_with(ORDER) || named(name)
    };
    if !patch.iter().all(is_named) {
        return Err(Error::Retain);
    }
    original.retain(|name, _| named(name));
    Ok(())
}

/// Drops null fields at every depth.
fn discard_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, value| !value.is_null());
            fields.values_mut().for_each(discard_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(discard_nulls),
        _ => {}
    }
}

/// Drops what has a `$patch`; says whether the value itself stays.
fn remove_directives(value: &mut Value) -> bool {
    match value {
        Value::Object(fields) => {
            if fields.contains_key(DIRECTIVE) {
                return false;
            }
            fields.retain(|_, value| remove_directives(value));
        }
        Value::Array(items) => items.retain_mut(remove_directives),
        _ => {}
    }
    true
}

fn without_directives(mut items: Vec<Value>) -> Vec<Value> {
    items.retain_mut(remove_directives);
    items
}

#[cfg(test)]
mod tests;
