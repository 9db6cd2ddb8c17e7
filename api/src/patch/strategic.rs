//! Strategic merge patch: a merge patch that knows the types. Lists merge by key, and directives say what a merge cannot:
//! `$patch`, `$deleteFromPrimitiveList/<field>`, `$setElementOrder/<field>`, `$retainKeys`.
//!
//! kubectl and client-go compute patches against exactly these rules
//! (`k8s.io/apimachinery/pkg/util/strategicpatch`), so they are followed to the order of items and the words of errors.

use serde_json::{Map, Value};

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
            (None, Self::Owned(Type::Any)) => {
                return other(format!("unable to find api field in struct RawExtension for the json field {}", quote(name)));
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
    let named = |name: &str| names.iter().any(|one| one == name);
    let is_named = |(name, value): (&String, &Value)| {
        value.is_null() || name.starts_with(DELETE_FROM) || name.starts_with(ORDER) || named(name)
    };
    if !patch.iter().all(is_named) {
        return Err(Error::Retain);
    }
    original.retain(|name, _| named(name));
    Ok(())
}

/// Merges the lists that the patch gives an order for, and takes them out of the patch.
fn merge_ordered(original: &mut Fields, patch: &mut Fields, context: &Context<'_>) -> Result<(), Error> {
    let directives: Vec<String> = patch.keys().filter(|key| key.starts_with(ORDER)).cloned().collect();
    for directive in directives {
        let order = match patch.remove(&directive) {
            Some(Value::Array(order)) => order,
            Some(found) => return Err(bad_type("[]interface {}", &found)),
            None => continue,
        };
        let name = field_of(&directive, ORDER).ok_or(Error::Order)?;
        let before = match original.get(name) {
            Some(Value::Array(items)) => Some(items.clone()),
            Some(found) => return Err(bad_type("[]interface {}", found)),
            None => None,
        };
        let change = match patch.get(name) {
            Some(Value::Array(items)) => Some(items.clone()),
            Some(found) => return Err(bad_type("[]interface {}", found)),
            None => None,
        };
        let known = context.list(name)?;
        check_order(change.as_deref().unwrap_or_default(), &order, &known.merge_key)?;
        let kind = Kind::of(before.iter().chain(&change).flatten(), || lists_text(&before, &change));
        let merged = match (&before, &change) {
            (None, None) => continue,
            (Some(before), None) => before.clone(),
            (None, Some(change)) => without_directives(change.clone()),
            (Some(before), Some(change)) => {
                let mut merged = before.clone();
                merge_list(&mut merged, change.clone(), &known, false)?;
                merged
            }
        };
        let (first, second) = partition(merged, &order, &known.merge_key)?;
        let both = in_order(first, second, &order, &before.unwrap_or_default(), &known.merge_key, kind?)?;
        original.insert(name.to_owned(), Value::Array(both));
        patch.remove(name);
    }
    Ok(())
}

/// `[[a b] [c]]`, as the reference prints the two lists.
fn lists_text(before: &Option<Vec<Value>>, change: &Option<Vec<Value>>) -> String {
    let list = |items: &Option<Vec<Value>>| sprint(&Value::Array(items.clone().unwrap_or_default()));
    format!("[{} {}]", list(before), list(change))
}

/// The items of the patch must be in the order list, in that order.
fn check_order(change: &[Value], order: &[Value], key: &str) -> Result<(), Error> {
    if change.is_empty() || order.is_empty() {
        return Ok(());
    }
    let mut left = Vec::new();
    for item in change {
        match item {
            Value::Object(item) if item.contains_key(DIRECTIVE) => {}
            Value::Object(_) => left.push(item),
            found if !key.is_empty() => return Err(bad_type("map[string]interface {}", found)),
            _ => left.push(item),
        }
    }
    let mut left = left.into_iter().peekable();
    for wanted in order {
        match left.peek() {
            Some(item) if same_item(item, wanted, key)? => drop(left.next()),
            Some(_) => {}
            None => break,
        }
    }
    if left.peek().is_some() {
        let list = |items: &[Value]| sprint(&Value::Array(items.to_vec()));
        let (change, order) = (list(change), list(order));
        return other(format!("The order in patch list:\n{change}\n doesn't match {ORDER} list:\n{order}\n"));
    }
    Ok(())
}

fn same_item(a: &Value, b: &Value, key: &str) -> Result<bool, Error> {
    if key.is_empty() {
        return Ok(a == b);
    }
    Ok(key_of(a, key)? == key_of(b, key)?)
}

/// The value of the merge key of an item.
fn key_of<'a>(item: &'a Value, key: &str) -> Result<&'a Value, Error> {
    match item {
        Value::Object(fields) => fields.get(key).ok_or_else(|| {
            Error::Other(format!("map: {} does not contain declared merge key: {key}", sprint(item)))
        }),
        found => Err(bad_type("map[string]interface {}", found)),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Maps,
    Scalars,
}

impl Kind {
    /// What the items are; they must be all of one type.
    fn of<'a>(items: impl Iterator<Item = &'a Value>, shown: impl Fn() -> String) -> Result<Self, Error> {
        let mut first: Option<&Value> = None;
        for item in items {
            match first {
                None if item.is_array() => return Err(Error::NestedLists),
                None => first = Some(item),
                Some(first) if go_type(first) != go_type(item) => {
                    return other(format!("list element types are not identical: {}", shown()));
                }
                Some(_) => {}
            }
        }
        match first {
            Some(Value::Object(_)) => Ok(Self::Maps),
            Some(_) => Ok(Self::Scalars),
            None => other("no elements in any of the given slices".to_owned()),
        }
    }
}

fn merge_list(original: &mut Vec<Value>, change: Vec<Value>, known: &Known, deletes: bool) -> Result<(), Error> {
    if !known.merges && !deletes {
        *original = change;
        return Ok(());
    }
    if original.is_empty() && change.is_empty() {
        return Ok(());
    }
    let shown = || lists_text(&Some(original.clone()), &Some(change.clone()));
    let key = known.merge_key.as_str();
    let kind = Kind::of(original.iter().chain(&change), shown)?;
    let (merged, change, order) = match kind {
        Kind::Scalars if deletes => {
            original.retain(|item| !change.contains(item));
            return Ok(());
        }
        Kind::Scalars => {
            let mut merged = Vec::with_capacity(original.len() + change.len());
            for item in original.iter().chain(&change) {
                if !merged.contains(item) {
                    merged.push(item.clone());
                }
            }
            (merged, change, std::mem::take(original))
        }
        Kind::Maps if key.is_empty() => {
            return other("cannot merge lists without merge key for struct".to_owned());
        }
        Kind::Maps => {
            let change = apply_item_directives(original, change, key)?;
            let order = original.clone();
            let context = Context::of(&known.ty);
            for item in &change {
                let value = key_of(item, key)?;
                let found = original.iter_mut().find(|one| one.get(key) == Some(value));
                match (found, item) {
                    (Some(Value::Object(found)), Value::Object(item)) => merge_map(found, item.clone(), &context)?,
                    _ => original.push(item.clone()),
                }
            }
            (std::mem::take(original), change, order)
        }
    };
    let (first, second) = partition(merged, &change, key)?;
    *original = in_order(first, second, &change, &order, key, kind)?;
    Ok(())
}

/// Does what the items with `$patch` say and gives the others.
fn apply_item_directives(original: &mut Vec<Value>, change: Vec<Value>, key: &str) -> Result<Vec<Value>, Error> {
    let (mut rest, mut replaces) = (Vec::with_capacity(change.len()), false);
    for item in change {
        match item.get(DIRECTIVE).map(|directive| directive.as_str().unwrap_or_default()) {
            None => rest.push(item),
            Some("delete") => {
                let value = key_of(&item, key)?;
                original.retain(|one| one.get(key) != Some(value));
            }
            Some("replace") => replaces = true,
            Some("merge") => return other("merging lists cannot yet be specified in the patch".to_owned()),
            Some(_) => match &item {
                Value::Object(fields) => return Err(bad_directive(&fields[DIRECTIVE], fields)),
                found => return Err(bad_type("map[string]interface {}", found)),
            },
        }
    }
    if replaces {
        *original = rest;
        rest = Vec::new();
    }
    Ok(rest)
}

/// The items that the list names, and the others.
fn partition(items: Vec<Value>, by: &[Value], key: &str) -> Result<(Vec<Value>, Vec<Value>), Error> {
    let (mut named, mut others) = (Vec::new(), Vec::new());
    for item in items {
        let found = if key.is_empty() {
            by.contains(&item)
        } else {
            let value = key_of(&item, key)?;
            if let Some(at) = by.iter().position(|one| !one.is_object()) {
                return other(format!("value for key {at} is not a map"));
            }
            by.iter().any(|one| one.get(key) == Some(value))
        };
        if found { named.push(item) } else { others.push(item) }
    }
    Ok((named, others))
}

/// Puts both parts together: the named ones in the order of the patch, the others in the order of the server, and where
/// both are known to the server in that order.
fn in_order(
    mut named: Vec<Value>,
    mut others: Vec<Value>,
    order: &[Value],
    server: &[Value],
    key: &str,
    kind: Kind,
) -> Result<Vec<Value>, Error> {
    if kind == Kind::Maps {
        for item in named.iter().chain(order).chain(&others).chain(server) {
            key_of(item, key)?;
        }
    }
    let place = |list: &[Value], item: &Value| match kind {
        Kind::Maps => list.iter().position(|one| one.get(key) == item.get(key)),
        Kind::Scalars => list.iter().position(|one| one == item),
    };
    named.sort_by_key(|item| place(order, item).unwrap_or(usize::MAX));
    others.sort_by_key(|item| place(server, item).unwrap_or(usize::MAX));
    let mut all = Vec::with_capacity(named.len() + others.len());
    let (mut named, mut others) = (named.into_iter().peekable(), others.into_iter().peekable());
    loop {
        let next = match (others.peek(), named.peek()) {
            (Some(theirs), Some(ours)) => match (place(server, theirs), place(server, ours)) {
                (Some(theirs), Some(ours)) if theirs < ours => others.next(),
                _ => named.next(),
            },
            (Some(_), None) => others.next(),
            (None, _) => named.next(),
        };
        match next {
            Some(item) => all.push(item),
            None => return Ok(all),
        }
    }
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
