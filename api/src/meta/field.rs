//! What is wrong with which field: paths and errors as apimachinery's `field` package words them.

use std::collections::HashSet;
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

/// Most errors that are kept of one object. The reference tells all; people and clients read the first few, and each of
/// 200,000 costs both sides memory and time.
pub const ERRORS_MAX: usize = 1_000;
/// Most bytes that the errors of one object have together: each stands in the answer twice.
pub const ERROR_BYTES_MAX: usize = 256 << 10;

/// The errors of one object, in the order in which they were found. What is beyond [`ERRORS_MAX`] or
/// [`ERROR_BYTES_MAX`] is counted and not kept; the last error that is told says how many there were.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FieldErrors {
    kept: Vec<FieldError>,
    bytes: usize,
    /// How many were found and not kept.
    untold: usize,
}

impl FieldErrors {
    /// None yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { kept: Vec::new(), bytes: 0, untold: 0 }
    }

    /// Adds one.
    pub fn push(&mut self, mut error: FieldError) {
        if self.is_full() {
            self.untold += 1;
            return;
        }
        let size = error.field.len() + error.message.len();
        if self.bytes + size > ERROR_BYTES_MAX {
            cut(&mut error.field, (ERROR_BYTES_MAX - self.bytes) / 2);
            let left = ERROR_BYTES_MAX - self.bytes - error.field.len().min(ERROR_BYTES_MAX - self.bytes);
            cut(&mut error.message, left);
            self.bytes = ERROR_BYTES_MAX;
        } else {
            self.bytes += size;
        }
        self.kept.push(error);
    }

    /// Puts one before all others.
    pub fn push_first(&mut self, error: FieldError) {
        let others = std::mem::take(self);
        self.push(error);
        self.append(others);
    }

    /// Whether nothing more is kept: an error that is costly to word need not be worded.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.kept.len() >= ERRORS_MAX || self.bytes >= ERROR_BYTES_MAX
    }

    /// How many were found.
    #[must_use]
    pub fn len(&self) -> usize {
        self.kept.len() + self.untold
    }

    /// Whether none was found.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// Those that are kept.
    pub fn iter(&self) -> std::slice::Iter<'_, FieldError> {
        self.kept.iter()
    }

    /// The first that was found.
    #[must_use]
    pub fn first(&self) -> Option<&FieldError> {
        self.kept.first()
    }

    /// Forgets what was found after the first `count`.
    pub fn truncate(&mut self, count: usize) {
        if count >= self.kept.len() {
            self.untold = self.untold.min(count - self.kept.len());
            return;
        }
        self.kept.truncate(count);
        self.untold = 0;
        self.bytes = self.kept.iter().map(|error| error.field.len() + error.message.len()).sum();
    }

    /// Keeps those that `keep` wants; what was not kept for want of room stays counted.
    pub fn retain(&mut self, keep: impl FnMut(&FieldError) -> bool) {
        self.kept.retain(keep);
        self.bytes = self.kept.iter().map(|error| error.field.len() + error.message.len()).sum();
    }

    /// Takes over those of another list.
    pub fn append(&mut self, other: Self) {
        let untold = other.untold;
        self.extend(other.kept);
        self.untold += untold;
    }

    /// All that is to be told: when some were not kept, the last says so.
    #[must_use]
    pub fn into_told(mut self) -> Vec<FieldError> {
        if self.untold > 0 {
            let message = format!("Too many: {}: only the first {} errors are told", self.len(), self.kept.len());
            self.kept.push(FieldError { reason: "FieldValueTooMany", field: "object".to_owned(), message });
        }
        self.kept
    }
}

impl Extend<FieldError> for FieldErrors {
    fn extend<I: IntoIterator<Item = FieldError>>(&mut self, errors: I) {
        errors.into_iter().for_each(|error| self.push(error));
    }
}

impl FromIterator<FieldError> for FieldErrors {
    fn from_iter<I: IntoIterator<Item = FieldError>>(errors: I) -> Self {
        let mut all = Self::new();
        all.extend(errors);
        all
    }
}

impl From<Vec<FieldError>> for FieldErrors {
    fn from(errors: Vec<FieldError>) -> Self {
        errors.into_iter().collect()
    }
}

impl<'a> IntoIterator for &'a FieldErrors {
    type Item = &'a FieldError;
    type IntoIter = std::slice::Iter<'a, FieldError>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// Cuts a text to at most so many bytes, and shows that.
fn cut(text: &mut String, most: usize) {
    const MARK: &str = "…";
    if text.len() <= most {
        return;
    }
    let mut end = most.saturating_sub(MARK.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text.push_str(MARK);
}

fn count(words: &str, number: usize, unit: &str) -> String {
    format!("{words} {number} {unit}{}", if number == 1 { "" } else { "s" })
}

/// Several messages as one: alone as it is, else `[a, b]`, each once.
pub fn aggregate(messages: impl IntoIterator<Item = String>) -> String {
    let mut seen = HashSet::new();
    let mut unique: Vec<String> = messages.into_iter().filter(|message| seen.insert(message.clone())).collect();
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
    fn errors_are_bounded_in_number_and_bytes_and_the_last_says_so() {
        let mut errors: FieldErrors = (0..5_000).map(|n| FieldError::required(format!("f{n}"), "")).collect();
        assert_eq!((errors.len(), errors.iter().count(), errors.is_full()), (5_000, ERRORS_MAX, true));
        let told = errors.clone().into_told();
        assert_eq!(told.len(), ERRORS_MAX + 1);
        assert_eq!(told[ERRORS_MAX].to_string(), "object: Too many: 5000: only the first 1000 errors are told");
        errors.truncate(3);
        assert_eq!((errors.len(), errors.into_told().len()), (3, 3));

        let long = "ü".repeat(100_000);
        let errors: FieldErrors = (0..50).map(|_| FieldError::invalid("a", long.as_str(), "bad")).collect();
        let bytes: usize = errors.iter().map(|error| error.field.len() + error.message.len()).sum();
        assert!((ERROR_BYTES_MAX - 8..=ERROR_BYTES_MAX).contains(&bytes), "{bytes}");
        assert_eq!(errors.len(), 50);
        let few: FieldErrors = vec![FieldError::required("a", "")].into();
        assert_eq!(few.into_told(), [FieldError::required("a", "")]);
    }

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
