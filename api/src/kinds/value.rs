//! Reading and filling JSON values without ceremony. Reading never fails: what is absent, null or of another type reads
//! as empty, as Go's zero values do; indexing (`value["spec"]`) gives null for what is not there.

use std::collections::HashSet;
use std::hash::Hash;

use jiff::Timestamp;
use serde_json::{Map, Value};

/// Reads a value as what it should be.
pub(super) trait Read {
    /// Its text; empty when it is none.
    fn text(&self) -> &str;
    /// Its items; none when it is no list.
    fn items(&self) -> &[Value];
    /// Its fields; none when it is no object.
    fn entries(&self) -> serde_json::map::Iter<'_>;
    /// Its number; 0 when it is none.
    fn int(&self) -> i64;
    /// Its number.
    fn maybe_int(&self) -> Option<i64>;
    /// Whether it is true.
    fn flag(&self) -> bool;
    /// Whether there is a value.
    fn is_set(&self) -> bool;
    /// Whether there is none, or an empty one: text, list, object.
    fn is_empty(&self) -> bool;
    /// How many items or fields it has.
    fn count(&self) -> usize;
    /// The moment it names.
    fn time(&self) -> Option<Timestamp>;
}

static NO_FIELDS: std::sync::LazyLock<Map<String, Value>> = std::sync::LazyLock::new(Map::new);

impl Read for Value {
    fn text(&self) -> &str {
        self.as_str().unwrap_or_default()
    }

    fn items(&self) -> &[Value] {
        self.as_array().map(Vec::as_slice).unwrap_or_default()
    }

    fn entries(&self) -> serde_json::map::Iter<'_> {
        self.as_object().unwrap_or(&NO_FIELDS).iter()
    }

    fn int(&self) -> i64 {
        self.as_i64().unwrap_or_default()
    }

    fn maybe_int(&self) -> Option<i64> {
        self.as_i64()
    }

    fn flag(&self) -> bool {
        self.as_bool().unwrap_or_default()
    }

    fn is_set(&self) -> bool {
        !self.is_null()
    }

    fn is_empty(&self) -> bool {
        match self {
            Self::Null => true,
            Self::String(text) => text.is_empty(),
            Self::Array(items) => items.is_empty(),
            Self::Object(fields) => fields.is_empty(),
            Self::Bool(_) | Self::Number(_) => false,
        }
    }

    fn count(&self) -> usize {
        match self {
            Self::Array(items) => items.len(),
            Self::Object(fields) => fields.len(),
            _ => 0,
        }
    }

    fn time(&self) -> Option<Timestamp> {
        self.text().parse().ok()
    }
}

/// The fields of `value`, which becomes an object when it is none.
pub(super) fn fields(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    value.as_object_mut().expect("it was just made an object")
}

/// The object in a field, made when it is not there.
pub(super) fn child<'a>(value: &'a mut Value, field: &str) -> &'a mut Value {
    let fields = fields(value);
    if !fields.get(field).is_some_and(Value::is_object) {
        fields.insert(field.to_owned(), Value::Object(Map::new()));
    }
    fields.get_mut(field).expect("it was just put there")
}

/// The items of a list in a field, to change them.
pub(super) fn items_mut<'a>(value: &'a mut Value, field: &str) -> &'a mut [Value] {
    value.get_mut(field).and_then(Value::as_array_mut).map(Vec::as_mut_slice).unwrap_or_default()
}

/// Sets a field that is absent or null.
pub(super) fn default_to(value: &mut Value, field: &str, default: impl Into<Value>) {
    let fields = fields(value);
    if fields.get(field).is_none_or(Value::is_null) {
        fields.insert(field.to_owned(), default.into());
    }
}

/// Sets a text or number that is absent, null, empty or 0: where Go tells the zero value from no value as little.
pub(super) fn default_when_zero(value: &mut Value, field: &str, default: impl Into<Value>) {
    let fields = fields(value);
    let is_zero = match fields.get(field) {
        None | Some(Value::Null) => true,
        Some(Value::String(text)) => text.is_empty(),
        Some(Value::Number(number)) => number.as_i64() == Some(0),
        Some(_) => false,
    };
    if is_zero {
        fields.insert(field.to_owned(), default.into());
    }
}

/// Takes a field from `old`, absence included.
pub(super) fn keep(object: &mut Value, old: &Value, field: &str) {
    match old.get(field) {
        Some(value) => drop(fields(object).insert(field.to_owned(), value.clone())),
        None => remove(object, field),
    }
}

/// Removes a field.
pub(super) fn remove(object: &mut Value, field: &str) {
    if let Some(fields) = object.as_object_mut() {
        fields.remove(field);
    }
}

/// For each key whether it stood before. Asks each once, where comparing it with all before it would make the work grow
/// with the square of the list.
pub(super) fn repeats<K: Eq + Hash>(keys: impl IntoIterator<Item = K>) -> Vec<bool> {
    let mut seen = HashSet::new();
    keys.into_iter().map(|key| !seen.insert(key)).collect()
}

/// Names of a list joined by commas.
pub(super) fn join<'a>(texts: impl IntoIterator<Item = &'a str>) -> String {
    let mut joined = String::new();
    for (index, text) in texts.into_iter().enumerate() {
        if index > 0 {
            joined.push(',');
        }
        joined.push_str(text);
    }
    joined
}

/// `text`, or `otherwise` when it is empty.
pub(super) fn or<'a>(text: &'a str, otherwise: &'a str) -> &'a str {
    if text.is_empty() { otherwise } else { text }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_absent_reads_as_empty() {
        let value = json!({"a": {"b": [1]}, "n": null});
        assert_eq!(value["a"]["b"].items().len(), 1);
        assert!(value["x"]["y"].is_empty() && value["n"].is_empty() && value["a"]["b"]["c"].items().is_empty());
        assert_eq!((value["x"].text(), value["x"].int(), value["x"].flag()), ("", 0, false));
        assert_eq!(value["x"].entries().count(), 0);
    }

    #[test]
    fn fills_only_what_is_empty() {
        let mut value = json!({"a": null, "zero": 0, "text": "", "set": "x"});
        default_to(&mut value, "a", 1);
        default_to(&mut value, "zero", 1);
        default_when_zero(&mut value, "text", "t");
        default_when_zero(&mut value, "set", "t");
        assert_eq!(value, json!({"a": 1, "zero": 0, "text": "t", "set": "x"}));
    }
}
