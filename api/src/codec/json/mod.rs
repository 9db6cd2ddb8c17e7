//! Reads JSON against a type, in one pass over the bytes.
//!
//! Kubernetes decodes twice or thrice (syntax, kind, structure) and its answers show it: a syntax error anywhere wins over a
//! wrong type before it, and of several wrong types the first is told. One pass that goes on after a wrong type answers alike.

mod pretty;
mod scan;
#[cfg(test)]
mod tests;
mod typed;
mod value;

use serde_json::Value;

pub use pretty::{Indent, pretty};

use self::scan::{Cuts, Scanner, Silent, Step, Syntax, Twice};
use super::{DEPTH_MAX, DecodeError, Decoded, Depth, OBJECTS_MAX, TOO_DEEP};
use crate::schema::Object;

const PARSE_ERROR: &str = "couldn't get version/kind; json parse error: ";

/// Problems that are told at most.
const MOST_PROBLEMS: usize = 100;

impl From<Syntax> for DecodeError {
    fn from(syntax: Syntax) -> DecodeError {
        DecodeError::Unrecognized(format!("{PARSE_ERROR}{}", syntax.0))
    }
}

/// Why bytes are no JSON, in Go's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ParseError(String);

impl ParseError {
    /// Whether that is since they nest too deeply.
    #[must_use]
    pub fn is_too_deep(&self) -> bool {
        self.0.ends_with(TOO_DEEP)
    }
}

/// Reads JSON of any shape as every decoder here does: with the same limit of nesting ([`DEPTH_MAX`]) and the same
/// reading of numbers. For stored objects, patches and whatever else is looked at without a type; another parser would
/// have another limit, and what one took the other would lose.
///
/// # Errors
/// Bytes that are not JSON, or nest too deeply.
pub fn parse(bytes: &[u8]) -> Result<Value, ParseError> {
    parse_within(bytes, 0, usize::MAX).map(|(value, _)| value)
}

/// The same of what was stored when more levels were taken: what nests deeper than is taken now is left out, and whether
/// there is such comes back.
///
/// # Errors
/// Bytes that are not JSON.
pub fn parse_cut(bytes: &[u8]) -> Result<(Value, bool), ParseError> {
    let mut scanner = Scanner { cuts: Cuts::None, ..Scanner::new(bytes) };
    let value = raw(&mut scanner).and_then(|value| scanner.end().map(|()| value));
    value.map(|value| (value, scanner.cuts == Cuts::Some)).map_err(|Syntax(words)| ParseError(words))
}

/// The same of what a client sends to be looked at without a type: with a bound on what may come of it ([`OBJECTS_MAX`]).
///
/// # Errors
/// Bytes that are not JSON, nest too deeply or have too many objects.
pub fn parse_body(bytes: &[u8]) -> Result<Value, ParseError> {
    parse_within(bytes, 0, OBJECTS_MAX).map(|(value, _)| value)
}

/// The same, of JSON that stands at this depth of something else, of which so many objects may come; how many are left
/// comes back.
pub(super) fn parse_within(bytes: &[u8], depth: usize, objects_left: usize) -> Result<(Value, usize), ParseError> {
    let mut scanner = Scanner { depth, objects_left, ..Scanner::new(bytes) };
    let value = raw(&mut scanner).and_then(|value| scanner.end().map(|()| value));
    value.map(|value| (value, scanner.objects_left)).map_err(|Syntax(words)| ParseError(words))
}

/// Reads an object of this type. `apiVersion` and `kind` come as they are written; whoever calls compares them.
///
/// # Errors
/// Bytes that are not JSON, or values of the wrong type.
pub fn decode(bytes: &[u8], object: &Object) -> Result<Decoded, DecodeError> {
    if let Some(custom) = &object.custom {
        return crate::custom::decode(bytes, custom);
    }
    typed::decode(bytes, object)
}

/// Checks and cleans a value that did not come as bytes (what a patch made) as [`decode`] does.
///
/// # Errors
/// Values of the wrong type.
pub fn decode_value(value: &Value, object: &Object) -> Result<Decoded, DecodeError> {
    if let Some(custom) = &object.custom {
        return crate::custom::decode_value(value, custom);
    }
    if let Some(value) = self::value::object(value, object, Depth::default()) {
        return Ok(Decoded { value, problems: Vec::new() });
    }
    decode(&serde_json::to_vec(value).unwrap_or_default(), object)
}

/// Reads JSON of any shape that is an object: a custom resource, before its schema is looked at. Nothing is dropped;
/// problems are keys that are there twice.
///
/// # Errors
/// Bytes that are not JSON or not an object, or have too many objects.
pub fn decode_any(bytes: &[u8]) -> Result<Decoded, DecodeError> {
    let mut scanner = Scanner { objects_left: OBJECTS_MAX, ..Scanner::new(bytes) };
    let mut told = Duplicates { path: String::new(), lengths: Vec::new(), problems: Vec::new() };
    let value = scanner.any(&mut told)?;
    scanner.end()?;
    match &value {
        Value::Object(_) => Ok(Decoded { value, problems: told.problems }),
        Value::Null => Ok(Decoded { value: Value::Object(serde_json::Map::new()), problems: Vec::new() }),
        _ => Err(not_an_object(bytes)),
    }
}

/// Go writes whole doubles without a fraction, so that they are whole numbers when they are read again.
pub fn whole_numbers(value: &mut Value) {
    match value {
        Value::Number(number) if number.is_f64() => {
            if let Some(whole) = number.as_f64().filter(|number| number.fract() == 0.0 && number.abs() < 1e15) {
                *value = Value::from(whole as i64);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(whole_numbers),
        Value::Object(fields) => fields.values_mut().for_each(whole_numbers),
        _ => {}
    }
}

/// `apiVersion` and `kind` of a body, empty when they are not there: for messages about a body that could not be read as
/// what was expected, and where the kind says what to expect.
///
/// # Errors
/// Bytes that are not JSON, not an object, or whose kind is not text.
pub fn type_of(bytes: &[u8]) -> Result<(String, String), DecodeError> {
    let mut scanner = Scanner::new(bytes);
    let (mut version, mut kind, mut wrong) = (String::new(), String::new(), None);
    if scanner.peek()? != b'{' {
        scanner.skip()?;
        scanner.end()?;
        return if bytes.trim_ascii() == b"null" { Ok((version, kind)) } else { Err(not_an_object(bytes)) };
    }
    scanner.enter(DEPTH_MAX)?;
    let mut first = true;
    while let Some(key) = scanner.key(first)? {
        first = false;
        let field = match &*key {
            "apiVersion" => &mut version,
            "kind" => &mut kind,
            _ => {
                scanner.skip()?;
                continue;
            }
        };
        match scanner.peek()? {
            b'"' => *field = scanner.string()?.into_owned(),
            b'n' => scanner.skip()?,
            byte => {
                scanner.skip()?;
                let what = what(byte);
                wrong.get_or_insert_with(|| {
                    format!("json: cannot unmarshal {what} into Go struct field .{key} of type string")
                });
            }
        }
    }
    scanner.end()?;
    match wrong {
        Some(wrong) => Err(DecodeError::Unrecognized(format!("{PARSE_ERROR}{wrong}"))),
        None => Ok((version, kind)),
    }
}

/// What starts with this byte, in Go's words.
fn what(byte: u8) -> &'static str {
    match byte {
        b'{' => "object",
        b'[' => "array",
        b'"' => "string",
        b't' | b'f' => "bool",
        _ => "number",
    }
}

fn not_an_object(bytes: &[u8]) -> DecodeError {
    let what = what(bytes.trim_ascii_start().first().copied().unwrap_or(b'0'));
    // The structure that Kubernetes reads the kind into has no name; this is how Go prints it.
    let structure =
        r#"struct { APIVersion string "json:\"apiVersion,omitempty\""; Kind string "json:\"kind,omitempty\"" }"#;
    DecodeError::Unrecognized(format!("{PARSE_ERROR}json: cannot unmarshal {what} into Go value of type {structure}"))
}

fn problem(problems: &mut Vec<String>, at: usize, what: &str, path: &str) {
    let text = format!("{what} field {path:?}");
    if problems.len() < MOST_PROBLEMS && !problems.contains(&text) {
        problems.insert(at.min(problems.len()), text);
    }
}

/// Keeps the way through untyped JSON as text.
struct Duplicates {
    path: String,
    /// How long the path was before each step.
    lengths: Vec<usize>,
    problems: Vec<String>,
}

impl Twice for Duplicates {
    fn enter(&mut self, step: Step<'_>) {
        self.lengths.push(self.path.len());
        match step {
            Step::Key(key) if self.path.is_empty() => self.path.push_str(key),
            Step::Key(key) => self.path.extend([".", key]),
            Step::Index(index) => self.path.push_str(&format!("[{index}]")),
        }
    }

    fn leave(&mut self) {
        self.path.truncate(self.lengths.pop().unwrap_or(0));
    }

    fn twice(&mut self, key: &str) {
        let dot = if self.path.is_empty() { "" } else { "." };
        let at = self.problems.len();
        problem(&mut self.problems, at, "duplicate", &format!("{}{dot}{key}", self.path));
    }
}

/// Any JSON, kept; no one is told of duplicates (`RawExtension` and its like).
fn raw(scanner: &mut Scanner<'_>) -> Result<Value, Syntax> {
    scanner.any(&mut Silent)
}
