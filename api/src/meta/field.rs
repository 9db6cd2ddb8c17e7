//! What is wrong with which field: paths and errors as apimachinery's `field` package words them.

use std::fmt;

use serde_json::Value;

use super::text;

/// A field error: one cause of an Invalid status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldError {
    /// As `FieldValueInvalid`; the constructors set it.
    pub reason: &'static str,
    /// As `spec.containers[0].name`.
    pub field: String,
    /// The whole message after the field: `Required value`, `Invalid value: "x": must …`.
    pub message: String,
}

impl FieldError {
    fn new(reason: &'static str, field: impl fmt::Display, head: &str, value: Option<String>, detail: &str) -> Self {
        let mut message = head.to_owned();
        for part in [value.as_deref().unwrap_or(""), detail] {
            if !part.is_empty() {
                message.push_str(": ");
                message.push_str(part);
            }
        }
        Self { reason, field: field.to_string(), message }
    }

    /// `Required value[: detail]`.
    pub fn required(field: impl fmt::Display, detail: &str) -> Self {
        Self::new("FieldValueRequired", field, "Required value", None, detail)
    }

    /// `Invalid value: <value>: <detail>`.
    pub fn invalid(field: impl fmt::Display, value: impl BadValue, detail: &str) -> Self {
        Self::new("FieldValueInvalid", field, "Invalid value", Some(value.print()), detail)
    }

    /// `Invalid value: …` of a value of another type than the field's.
    pub fn type_invalid(field: impl fmt::Display, value: impl BadValue, detail: &str) -> Self {
        Self::new("FieldValueTypeInvalid", field, "Invalid value", Some(value.print()), detail)
    }

    /// `Forbidden: <detail>`.
    pub fn forbidden(field: impl fmt::Display, detail: &str) -> Self {
        Self::new("FieldValueForbidden", field, "Forbidden", None, detail)
    }

    /// `Unsupported value: "x": supported values: "a", "b"`.
    pub fn not_supported(field: impl fmt::Display, value: impl BadValue, supported: &[&str]) -> Self {
        let list: Vec<String> = supported.iter().map(|value| text::quote(value)).collect();
        let detail = if list.is_empty() { String::new() } else { format!("supported values: {}", list.join(", ")) };
        Self::new("FieldValueNotSupported", field, "Unsupported value", Some(value.print()), &detail)
    }

    /// `Duplicate value: <value>`.
    pub fn duplicate(field: impl fmt::Display, value: impl BadValue) -> Self {
        Self::new("FieldValueDuplicate", field, "Duplicate value", Some(value.print()), "")
    }

    /// `Not found: <value>`.
    pub fn not_found(field: impl fmt::Display, value: impl BadValue) -> Self {
        Self::new("FieldValueNotFound", field, "Not found", Some(value.print()), "")
    }

    /// `Too long: may not be more than N bytes`.
    pub fn too_long(field: impl fmt::Display, bytes: usize) -> Self {
        Self::new("FieldValueTooLong", field, "Too long", None, &count("may not be more than", bytes, "byte"))
    }

    /// `Too long: may not be more than N characters`.
    pub fn too_long_characters(field: impl fmt::Display, characters: usize) -> Self {
        let detail = count("may not be more than", characters, "character");
        Self::new("FieldValueTooLong", field, "Too long", None, &detail)
    }

    /// `Too short: must be at least N characters`.
    pub fn too_short(field: impl fmt::Display, characters: usize) -> Self {
        let detail = count("must be at least", characters, "character");
        Self::new("FieldValueTooShort", field, "Too short", None, &detail)
    }

    /// `Too many: N: must have at most M items`.
    pub fn too_many(field: impl fmt::Display, actual: usize, most: usize) -> Self {
        let detail = count("must have at most", most, "item");
        Self::new("FieldValueTooMany", field, "Too many", Some(actual.to_string()), &detail)
    }

    /// `Too few: N: must have at least M items`.
    pub fn too_few(field: impl fmt::Display, actual: usize, least: usize) -> Self {
        let detail = count("must have at least", least, "item");
        Self::new("FieldValueTooFew", field, "Too few", Some(actual.to_string()), &detail)
    }

    /// `Internal error: <detail>`.
    pub fn internal(field: impl fmt::Display, detail: &str) -> Self {
        Self::new("InternalError", field, "Internal error", None, detail)
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}

fn count(words: &str, number: usize, unit: &str) -> String {
    format!("{words} {number} {unit}{}", if number == 1 { "" } else { "s" })
}

/// Several messages as one: alone as it is, else `[a, b]`, each once.
pub fn aggregate(messages: impl IntoIterator<Item = String>) -> String {
    let mut unique: Vec<String> = Vec::new();
    for message in messages {
        if !unique.contains(&message) {
            unique.push(message);
        }
    }
    match unique.len() {
        1 => unique.remove(0),
        _ => format!("[{}]", unique.join(", ")),
    }
}

/// A value that a field error shows: strings quoted, all else as JSON.
pub trait BadValue {
    /// The text that is shown.
    fn print(&self) -> String;
}

impl<T: BadValue + ?Sized> BadValue for &T {
    fn print(&self) -> String {
        (**self).print()
    }
}

impl BadValue for str {
    fn print(&self) -> String {
        text::quote(self)
    }
}

impl BadValue for String {
    fn print(&self) -> String {
        text::quote(self)
    }
}

impl BadValue for Value {
    fn print(&self) -> String {
        match self {
            Self::String(text) => text::quote(text),
            other => text::json(other),
        }
    }
}

/// Text that is shown as it is, for values that Go prints in a form of their own.
#[derive(Debug, Clone, Copy)]
pub struct Printed<'a>(pub &'a str);

impl BadValue for Printed<'_> {
    fn print(&self) -> String {
        self.0.to_owned()
    }
}

macro_rules! plain_bad_values {
    ($($type:ty)*) => {
        $(impl BadValue for $type {
            fn print(&self) -> String {
                self.to_string()
            }
        })*
    };
}

plain_bad_values!(i32 i64 u16 u32 u64 usize f64 bool);

/// The way to a field. Costs nothing until it is printed: each part borrows the one before.
///
/// ```
/// use coracle_api::meta::field::Path;
/// let spec = Path::new("spec");
/// let containers = spec.child("containers");
/// assert_eq!(containers.index(0).child("name").to_string(), "spec.containers[0].name");
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Path<'a> {
    before: Option<&'a Path<'a>>,
    part: Part<'a>,
}

#[derive(Debug, Clone, Copy)]
enum Part<'a> {
    Name(&'a str),
    Index(usize),
    Key(&'a str),
}

impl<'a> Path<'a> {
    /// The first part; it may have dots (`spec.template.spec`).
    pub const fn new(name: &'a str) -> Self {
        Self { before: None, part: Part::Name(name) }
    }

    /// A field of it; may have dots.
    pub const fn child(&'a self, name: &'a str) -> Self {
        Self { before: Some(self), part: Part::Name(name) }
    }

    /// An item of it: `[3]`.
    pub const fn index(&'a self, index: usize) -> Self {
        Self { before: Some(self), part: Part::Index(index) }
    }

    /// The value of a key of it: `[key]`.
    pub const fn key(&'a self, key: &'a str) -> Self {
        Self { before: Some(self), part: Part::Key(key) }
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(before) = self.before {
            before.fmt(f)?;
        }
        match self.part {
            Part::Name(name) if self.before.is_some() => write!(f, ".{name}"),
            Part::Name(name) => f.write_str(name),
            Part::Index(index) => write!(f, "[{index}]"),
            Part::Key(key) => write!(f, "[{key}]"),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn words_errors_as_apimachinery_does() {
        let spec = Path::new("spec");
        for (error, expected) in [
            (FieldError::required(spec.child("a"), ""), "spec.a: Required value"),
            (FieldError::invalid(spec.key("k"), "x\n", "bad"), "spec[k]: Invalid value: \"x\\n\": bad"),
            (FieldError::invalid("a", json!({"b": [1]}), "bad"), "a: Invalid value: {\"b\":[1]}: bad"),
            (FieldError::invalid("a", json!(null), "bad"), "a: Invalid value: null: bad"),
            (
                FieldError::not_supported("a", "x", &["p", "q"]),
                "a: Unsupported value: \"x\": supported values: \"p\", \"q\"",
            ),
            (FieldError::too_long("a", 1), "a: Too long: may not be more than 1 byte"),
            (FieldError::too_many("a", 3, 2), "a: Too many: 3: must have at most 2 items"),
            (FieldError::duplicate("a", true), "a: Duplicate value: true"),
        ] {
            assert_eq!(error.to_string(), expected);
        }
    }
}
