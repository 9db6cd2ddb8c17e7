//! What differs by nature between two servers that mean the same. A refused patch shows the object that it made, in the order in which
//! each server writes; that is left out.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::LazyLock;

use regex::Regex;
use serde_json::{Map, Value};

use super::server::Said;

/// Fields whose values are each server's own. What is absent or empty stays as it is, and what was asked for.
const OWN: &[&str] = &[
    "clusterIP",
    "clusterIPs",
    "continue",
    "creationTimestamp",
    "deletionTimestamp",
    "healthCheckNodePort",
    "lastTransitionTime",
    "nodePort",
    "resourceVersion",
    "storageVersionHash",
    "time",
    "timeAdded",
    "uid",
];

/// By these words our server says what it does not honour; the reference honours it.
const NOT_HONOURED: &str = "this version of Coracle";

/// An answer as it is compared.
#[derive(PartialEq)]
pub(super) struct Answer {
    pub code: u16,
    content_type: String,
    warnings: Vec<String>,
    body: Value,
}

impl Answer {
    /// Line by line.
    pub fn text(&self) -> String {
        let mut text = format!("{}\n{}\n", self.code, self.content_type);
        for warning in &self.warnings {
            let _ = writeln!(text, "warning: {warning}");
        }
        text + &serde_json::to_string_pretty(&self.body).unwrap_or_default()
    }
}

/// What a request says itself: a server that was told a value has not chosen it.
#[derive(Default)]
pub(super) struct Asked(BTreeSet<String>);

impl Asked {
    /// Of a body, whose words in braces are each server's own.
    pub fn of(body: Option<&str>) -> Asked {
        let mut asked = Asked::default();
        if let Some(body) = body.and_then(|body| serde_json::from_str(body).ok()) {
            asked.add(&body);
        }
        asked
    }

    fn add(&mut self, value: &Value) {
        match value {
            Value::Object(fields) => fields.values().for_each(|value| self.add(value)),
            Value::Array(items) => items.iter().for_each(|value| self.add(value)),
            Value::Null => {}
            plain => drop(self.0.insert(plain.to_string())),
        }
    }

    fn has(&self, value: &Value) -> bool {
        match value {
            Value::Array(items) => items.iter().all(|item| self.has(item)),
            plain => self.0.contains(&plain.to_string()),
        }
    }
}

pub(super) fn masked(said: Said, asked: &Asked) -> Answer {
    let mut warnings = said.warnings;
    warnings.retain(|warning| !warning.contains(NOT_HONOURED));
    // Go goes over maps in any order.
    warnings.sort();
    Answer { code: said.code, content_type: said.content_type, warnings, body: value("", said.body, asked) }
}

fn value(name: &str, given: Value, asked: &Asked) -> Value {
    match given {
        Value::Object(fields) => object(fields, asked),
        Value::Array(items) => {
            let mut items: Vec<Value> = items.into_iter().map(|item| value(name, item, asked)).collect();
            match name {
                "cells" => items.iter_mut().for_each(age),
                // Likewise in any order.
                "causes" | "managedFields" | "resourceRules" | "nonResourceRules" => {
                    items.sort_by_cached_key(Value::to_string)
                }
                _ => {}
            }
            items.into()
        }
        Value::String(text) => text_of(&text).into(),
        other => other,
    }
}

fn object(fields: Map<String, Value>, asked: &Asked) -> Value {
    let causes = fields.get("details").and_then(|details| details["causes"].as_array()).map_or(0, Vec::len);
    let fields = fields.into_iter().map(|(field, given)| {
        let is_chosen = match &given {
            Value::String(text) => !matches!(text.as_str(), "" | "None"),
            Value::Number(number) => number.as_i64() != Some(0),
            Value::Array(items) => !items.is_empty() && items != &["None"],
            _ => false,
        };
        let masked = match given {
            given if OWN.contains(&field.as_str()) && is_chosen => match asked.has(&given) {
                true => given,
                false => format!("<{field}>").into(),
            },
            // The message has the causes again.
            Value::String(text) if field == "message" && causes > 1 => match text.split_once('[') {
                Some((head, _)) => format!("{}[<the causes>]", text_of(head)).into(),
                None => text.into(),
            },
            given => value(&field, given, asked),
        };
        (field, masked)
    });
    Value::Object(fields.collect())
}

/// Ages in tables.
fn age(cell: &mut Value) {
    let is_age = |text: &str| {
        let digits = text.trim_end_matches(|unit: char| unit.is_ascii_lowercase());
        !digits.is_empty() && digits.len() + 1 == text.len() && digits.bytes().all(|digit| digit.is_ascii_digit())
    };
    if cell.as_str().is_some_and(|text| is_age(text) || text == "<invalid>") {
        *cell = "<age>".into();
    }
}

/// Words of a text that are each server's own: uids, the time now, versions, addresses of Services, names that are made.
fn text_of(text: &str) -> String {
    static OWN: LazyLock<[(Regex, &str); 8]> = LazyLock::new(|| {
        [
            (r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b", "<uid>"),
            // Times within the objects are long past.
            (r"\b20[2-9]\d-\d\d-\d\dT\d\d:\d\d:\d\dZ", "<time>"),
            (r"(resourceVersion\W+|in record \(|in object meta: )\d+", "$1<version>"),
            (r":3[0-2]\d{3}/", ":<port>/"),
            (r"Duplicate value: 3[0-2]\d{3}\b", "Duplicate value: <port>"),
            (r"\b10\.96\.\d+\.\d+\b", "<address>"),
            (r#"Invalid value: "\{.*\}": "#, "Invalid value: <the object>: "),
            (r"\bkube-api-access-\w{5}\b", "kube-api-access-<made>"),
        ]
        .map(|(pattern, shown)| (Regex::new(pattern).expect("a pattern that can be read"), shown))
    });
    OWN.iter().fold(text.to_owned(), |text, (own, shown)| own.replace_all(&text, *shown).into_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_each_servers_own_is_not_compared_and_the_rest_is() {
        let masked = value(
            "",
            json!({"metadata": {"uid": "u", "name": "a", "resourceVersion": ""},
                "spec": {"clusterIP": "None", "clusterIPs": [], "ports": [{"nodePort": 0}, {"nodePort": 31000}]},
                "message": "uid 01234567-89ab-cdef-0123-456789abcdef, name a", "rows": [{"cells": ["a", "12s", 3]}]}),
            &Asked::default(),
        );
        let expected = json!({"metadata": {"uid": "<uid>", "name": "a", "resourceVersion": ""},
            "spec": {"clusterIP": "None", "clusterIPs": [], "ports": [{"nodePort": 0}, {"nodePort": "<nodePort>"}]},
            "message": "uid <uid>, name a", "rows": [{"cells": ["a", "<age>", 3]}]});
        assert_eq!(masked, expected);
    }

    #[test]
    fn what_was_asked_for_is_compared() {
        let body = json!({"spec": {"clusterIP": "10.96.0.9", "ports": [{"nodePort": 31000}]}, "uid": "{uid}"});
        let asked = Asked::of(Some(&body.to_string()));
        let spec = |address: &str, port: u16| {
            let spec = json!({"clusterIP": address, "clusterIPs": [address], "ports": [{"nodePort": port}]});
            value("", json!({"spec": spec, "uid": "u"}), &asked)
        };
        let kept = json!({"clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"], "ports": [{"nodePort": 31000}]});
        assert_eq!(spec("10.96.0.9", 31000), json!({"spec": kept, "uid": "<uid>"}));
        assert_ne!(spec("10.96.0.9", 31000), spec("10.96.0.10", 31000));
        assert_ne!(spec("10.96.0.9", 31000), spec("10.96.0.9", 31001));
    }

    #[test]
    fn several_causes_are_compared_without_their_order() {
        let status = |first: &str, second: &str| {
            let causes = json!([{"field": first}, {"field": second}]);
            let status = json!({"message": format!("is invalid: [{first}, {second}]"), "details": {"causes": causes}});
            value("", status, &Asked::default())
        };
        assert_eq!(status("a", "b"), status("b", "a"));
        assert_ne!(status("a", "b"), status("a", "c"));
    }
}
