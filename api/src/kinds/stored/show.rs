//! What a column shows, as data: most show one field of the object.

use serde_json::Value;

use crate::kinds::value::{Read, join, or};
use crate::kinds::{Cell, table};

/// What a column shows. Fields are named by their path, `spec.replicas`.
#[derive(Clone, Copy)]
pub(super) enum Show {
    /// The object's name.
    Name,
    /// Its age.
    Age,
    /// The moment it was made.
    Made,
    /// A field as text, and what stands for it when it is absent.
    Text(&'static str, &'static str),
    /// A field as it is, and what stands for it when it is absent.
    Any(&'static str, &'static str),
    /// A number; 0 when it is absent.
    Number(&'static str),
    /// Whether a field is true.
    Flag(&'static str),
    /// How many items a list has.
    Count(&'static str),
    /// The texts of a list, and what stands for none.
    Joined(&'static str, &'static str),
    /// Anything else.
    Of(fn(&Value) -> Cell),
}

/// The value at a path.
pub(super) fn at<'a>(object: &'a Value, path: &str) -> &'a Value {
    path.split('.').fold(object, |value, field| &value[field])
}

impl Show {
    pub(super) fn cell(self, object: &Value) -> Cell {
        match self {
            Show::Name => table::name(object),
            Show::Age => table::age(object),
            Show::Made => at(object, "metadata.creationTimestamp").text().into(),
            Show::Text(path, otherwise) => match at(object, path) {
                Value::Null => otherwise.into(),
                Value::String(text) => or(text, otherwise).into(),
                other => other.to_string().into(),
            },
            Show::Any(path, otherwise) => match at(object, path) {
                Value::Null => otherwise.into(),
                other => Cell::Value(other.clone()),
            },
            Show::Number(path) => at(object, path).int().into(),
            Show::Flag(path) => Cell::Value(at(object, path).flag().into()),
            Show::Count(path) => Cell::Value(at(object, path).count().into()),
            Show::Joined(path, otherwise) => {
                or(&join(at(object, path).items().iter().map(Read::text)), otherwise).into()
            }
            Show::Of(cell) => cell(object),
        }
    }
}
