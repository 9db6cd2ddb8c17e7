//! Cells that several kinds share.

use serde_json::Value;

use super::Cell;
use super::value::{Read, join, or};
use crate::meta::selector::LabelSelector;

/// The name.
pub(super) fn name(object: &Value) -> Cell {
    object["metadata"]["name"].text().into()
}

/// The age.
pub(super) fn age(object: &Value) -> Cell {
    Cell::Age(object["metadata"]["creationTimestamp"].time())
}

/// Names and images of containers.
pub(super) fn containers(spec: &Value) -> [Cell; 2] {
    let column = |field| join(spec["containers"].items().iter().map(|container| container[field].text()));
    [column("name").into(), column("image").into()]
}

/// Labels as `a=b,c=d`, `<none>` when there are none.
pub(super) fn labels(labels: &Value) -> Cell {
    let pairs: Vec<String> = labels.entries().map(|(key, value)| format!("{key}={}", value.text())).collect();
    or(&pairs.join(","), "<none>").into()
}

/// A label selector as text.
pub(super) fn selector(selector: &Value, empty: &str, invalid: &str) -> Cell {
    match LabelSelector::from_object(selector) {
        Ok(selector) => or(&selector.to_string(), empty).into(),
        Err(_) => invalid.into(),
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::Value(text.into())
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::Value(text.into())
    }
}

impl From<i64> for Cell {
    fn from(number: i64) -> Self {
        Self::Value(number.into())
    }
}
