//! Lists whose items are told apart (`x-kubernetes-list-type` `set` and `map`) have each item once.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::structural::Structural;
use crate::meta::field::{FieldError, FieldErrors};
use crate::schema::ListKind;

/// Checks the lists at and below a value.
pub(super) fn validate(schema: &Structural, value: &Value, path: &mut String, errors: &mut FieldErrors) {
    if !schema.reach.keyed_lists || errors.is_full() {
        return;
    }
    let length = path.len();
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let Some(of) = schema.field(name) else { continue };
                match schema.properties.get(name) {
                    Some(_) if path.is_empty() => path.push_str(name),
                    Some(_) => path.extend([".", name]),
                    None => path.extend(["[", name, "]"]),
                }
                validate(of, value, path, errors);
                path.truncate(length);
            }
        }
        Value::Array(items) => {
            match &schema.list {
                Some(ListKind::Set) => {
                    for at in repeated(items.iter().map(ToString::to_string)) {
                        errors.push(FieldError::duplicate(format!("{path}[{at}]"), &items[at]));
                    }
                }
                Some(ListKind::Map(keys)) => keyed(items, keys, path, errors),
                _ => {}
            }
            if let Some(of) = &schema.items {
                for (at, item) in items.iter().enumerate() {
                    path.push_str(&format!("[{at}]"));
                    validate(of, item, path, errors);
                    path.truncate(length);
                }
            }
        }
        _ => {}
    }
}

fn keyed(items: &[Value], keys: &[String], path: &str, errors: &mut FieldErrors) {
    if let Some(at) = items.iter().position(|item| !item.is_object() && !item.is_null()) {
        let detail = "must be an object for an array of list-type map";
        return errors.push(FieldError::invalid(format!("{path}[{at}]"), &items[at], detail));
    }
    let key = |item: &Value| {
        let known = keys.iter().filter_map(|key| Some((key.clone(), item.get(key)?.clone())));
        Value::Object(known.collect::<Map<_, _>>())
    };
    for at in repeated(items.iter().map(|item| key(item).to_string())) {
        errors.push(FieldError::duplicate(format!("{path}[{at}]"), key(&items[at])));
    }
}

/// Where something stands for the second time.
fn repeated(texts: impl Iterator<Item = String>) -> Vec<usize> {
    let mut times: HashMap<String, usize> = HashMap::new();
    let second = |(at, text): (usize, String)| {
        let times = times.entry(text).or_default();
        *times += 1;
        (*times == 2).then_some(at)
    };
    texts.enumerate().filter_map(second).collect()
}
