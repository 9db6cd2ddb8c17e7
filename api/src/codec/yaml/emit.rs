//! Values to YAML, in the styles Go chooses.

use libyaml_safer::{Emitter, Encoding, Event, MappingStyle, ScalarStyle, SequenceStyle};
use serde_json::Value;

use super::resolve::{Scalar, resolve};

/// Writes a value as a YAML document.
#[must_use]
pub fn from_json(value: &Value) -> String {
    let mut out = Vec::new();
    // An emitter refuses events in a wrong order only, and writing to memory does not fail.
    if write(value, &mut out).is_err() {
        return String::new();
    }
    String::from_utf8(out).unwrap_or_default()
}

fn write(value: &Value, out: &mut Vec<u8>) -> Result<(), libyaml_safer::Error> {
    let mut emitter = Emitter::new();
    emitter.set_output_string(out);
    emitter.set_unicode(true);
    emitter.emit(Event::stream_start(Encoding::Utf8))?;
    emitter.emit(Event::document_start(None, &[], true))?;
    node(&mut emitter, value)?;
    emitter.emit(Event::document_end(true))?;
    emitter.emit(Event::stream_end())?;
    emitter.flush()
}

fn node(emitter: &mut Emitter<'_>, value: &Value) -> Result<(), libyaml_safer::Error> {
    match value {
        Value::Null => plain(emitter, "null"),
        Value::Bool(flag) => plain(emitter, if *flag { "true" } else { "false" }),
        Value::Number(number) => plain(emitter, &number.to_string()),
        Value::String(text) => string(emitter, text),
        Value::Array(items) => {
            emitter.emit(Event::sequence_start(None, None, true, SequenceStyle::Block))?;
            items.iter().try_for_each(|item| node(emitter, item))?;
            emitter.emit(Event::sequence_end())
        }
        Value::Object(map) => {
            emitter.emit(Event::mapping_start(None, None, true, MappingStyle::Block))?;
            for (key, value) in map {
                string(emitter, key)?;
                node(emitter, value)?;
            }
            emitter.emit(Event::mapping_end())
        }
    }
}

fn plain(emitter: &mut Emitter<'_>, text: &str) -> Result<(), libyaml_safer::Error> {
    emitter.emit(Event::scalar(None, None, text, true, true, ScalarStyle::Plain))
}

fn string(emitter: &mut Emitter<'_>, text: &str) -> Result<(), libyaml_safer::Error> {
    let style = if text.contains('\n') {
        ScalarStyle::Literal
    } else if text != "<<" && resolve(text) == Scalar::Text && !is_base_sixty(text) {
        ScalarStyle::Plain
    } else {
        ScalarStyle::DoubleQuoted
    };
    emitter.emit(Event::scalar(None, None, text, true, true, style))
}

/// `12:30:45.5` is a number to some readers of YAML 1.1, so it is quoted although ours would not take it for one:
/// `[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?`
fn is_base_sixty(text: &str) -> bool {
    let text = text.strip_prefix(['+', '-']).unwrap_or(text);
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'_');
    let mut parts = whole.split(':');
    let first = parts.next().unwrap_or("");
    let sixties = |part: &str| match part.as_bytes() {
        [a] => a.is_ascii_digit(),
        [a, b] => (b'0'..=b'5').contains(a) && b.is_ascii_digit(),
        _ => false,
    };
    whole.contains(':')
        && first.starts_with(|c: char| c.is_ascii_digit())
        && digits(first)
        && digits(fraction)
        && parts.all(sixties)
}
