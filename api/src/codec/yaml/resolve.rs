//! Nodes to values: what a scalar means, aliases unfolded, merges merged.

use std::rc::Rc;

use base64::Engine as _;
use serde_json::{Map, Number, Value};

use super::node::{Content, Node};
use crate::codec::scalar::BASE64;

const LONG: &str = "tag:yaml.org,2002:";
const SHORT_TAGS: [&str; 6] = ["str", "bool", "int", "float", "null", "timestamp"];

/// Most bytes of text that aliases may unfold into: twice the largest body of a request.
const ALIASED_BYTES_MAX: usize = 2 * (3 << 20);

/// Most keys that stand twice that are told.
const TWICE_MAX: usize = 100;

/// Why a document is no JSON.
#[derive(Debug)]
pub(super) enum Failure {
    /// Worded without `yaml:`.
    Yaml(String),
    /// Found on the way to JSON.
    Json(String),
}

type Result<T> = std::result::Result<T, Failure>;

fn yaml<T>(words: impl Into<String>) -> Result<T> {
    Err(Failure::Yaml(words.into()))
}

/// What a scalar is.
#[derive(Debug, PartialEq)]
pub(super) enum Scalar {
    Null,
    Bool(bool),
    Int(i64),
    Unsigned(u64),
    Float(f64),
    Timestamp,
    Text,
}

impl Scalar {
    fn tag(&self) -> &'static str {
        match self {
            Scalar::Null => "null",
            Scalar::Bool(_) => "bool",
            Scalar::Int(_) | Scalar::Unsigned(_) => "int",
            Scalar::Float(_) => "float",
            Scalar::Timestamp => "timestamp",
            Scalar::Text => "str",
        }
    }
}

/// Unfolds a document. Counts what aliases unfold into, as Go does, so that a small text cannot become a huge value.
#[derive(Default)]
pub(super) struct Unfolding {
    decoded: u64,
    aliased: u64,
    /// Bytes of text below aliases: keys, merged keys and binaries, too.
    aliased_bytes: usize,
    depth: usize,
    aliases: Vec<*const Node>,
    /// Keys that stood twice.
    pub(super) twice: Vec<String>,
}

impl Unfolding {
    pub(super) fn value(&mut self, node: &Node) -> Result<Value> {
        self.count()?;
        match &node.content {
            Content::Anchored(shared) => {
                self.decoded -= 1;
                self.value(shared)
            }
            Content::Alias(name, target) => self.alias(name, target.as_ref(), |this, target| this.value(target)),
            Content::Scalar { text, tag, plain } => {
                self.text(text)?;
                scalar(text, tag, *plain)
            }
            Content::List(items) => {
                items.iter().map(|item| self.value(item)).collect::<Result<Vec<_>>>().map(Value::Array)
            }
            Content::Map(pairs) => {
                let mut map = Map::new();
                self.pairs(pairs, &mut map)?;
                Ok(Value::Object(map))
            }
        }
    }

    fn count(&mut self) -> Result<()> {
        self.decoded += 1;
        if self.depth > 0 {
            self.aliased += 1;
        }
        let allowed = match self.decoded {
            ..=400_000 => 0.99,
            4_000_000.. => 0.10,
            count => 0.99 - 0.89 * ((count - 400_000) as f64 / 3_600_000.0),
        };
        if self.aliased > 100 && self.decoded > 1000 && self.aliased as f64 / self.decoded as f64 > allowed {
            return yaml("document contains excessive aliasing");
        }
        Ok(())
    }

    /// Counts a text before it is copied.
    fn text(&mut self, text: &str) -> Result<()> {
        if self.depth > 0 {
            self.aliased_bytes += text.len();
        }
        if self.aliased_bytes > ALIASED_BYTES_MAX {
            return yaml("document contains excessive aliasing");
        }
        Ok(())
    }

    fn alias<T>(
        &mut self,
        name: &str,
        target: Option<&Rc<Node>>,
        then: impl FnOnce(&mut Self, &Node) -> Result<T>,
    ) -> Result<T> {
        let Some(target) = target.filter(|target| !self.aliases.contains(&Rc::as_ptr(target))) else {
            return yaml(format!("anchor '{name}' value contains itself"));
        };
        self.aliases.push(Rc::as_ptr(target));
        self.depth += 1;
        let found = then(self, target);
        self.depth -= 1;
        self.aliases.pop();
        found
    }

    fn pairs(&mut self, pairs: &[(Node, Node)], map: &mut Map<String, Value>) -> Result<()> {
        for (key, value) in pairs {
            if is_merge(key) {
                self.merge(value, map)?;
                continue;
            }
            let read = self.value(key)?;
            let shown = match &read {
                Value::String(text) => format!("{text:?}"),
                other => other.to_string(),
            };
            let key = match read {
                Value::String(text) => text,
                Value::Bool(flag) => flag.to_string(),
                Value::Number(number) => number.to_string(),
                Value::Null => {
                    let value = self.value(value)?;
                    let words = format!("unsupported map key of type: %!s(<nil>), key: <nil>, value: {value}");
                    return Err(Failure::Json(words));
                }
                Value::Array(_) => return yaml(format!("invalid map key: []interface {{}}{shown}")),
                Value::Object(_) => return yaml(format!("invalid map key: map[interface {{}}]interface {{}}{shown}")),
            };
            let read = self.value(value)?;
            if map.contains_key(&key) && self.twice.len() < TWICE_MAX {
                self.twice.push(format!("line {}: key {shown} already set in map", value.line));
            }
            map.insert(key, read);
        }
        Ok(())
    }

    fn merge(&mut self, node: &Node, map: &mut Map<String, Value>) -> Result<()> {
        match &node.content {
            Content::List(items) => items.iter().rev().try_for_each(|item| self.merge_one(item, map)),
            _ => self.merge_one(node, map),
        }
    }

    fn merge_one(&mut self, node: &Node, map: &mut Map<String, Value>) -> Result<()> {
        self.count()?;
        match &node.content {
            Content::Map(pairs) => self.pairs(pairs, map),
            Content::Anchored(shared) => self.merge_one(shared, map),
            Content::Alias(name, target) => {
                self.alias(name, target.as_ref(), |this, target| this.merge_one(target, map))
            }
            _ => yaml("map merge requires map or sequence of maps as the value"),
        }
    }
}

fn is_merge(key: &Node) -> bool {
    match &key.content {
        Content::Scalar { text, tag, plain } => text == "<<" && (*plain || tag == "tag:yaml.org,2002:merge"),
        _ => false,
    }
}

fn scalar(text: &str, tag: &str, plain: bool) -> Result<Value> {
    // `!` alone says text; a tag of the user's says nothing.
    let tag = if tag == "!" { "tag:yaml.org,2002:str" } else { tag };
    let short = tag.strip_prefix(LONG);
    let found = match short {
        Some("str") => Scalar::Text,
        Some("binary") => {
            return match BASE64.decode(text.replace(char::is_whitespace, "")) {
                Ok(bytes) => Ok(Value::String(String::from_utf8_lossy(&bytes).into_owned())),
                Err(_) => yaml("!!binary value contains invalid base64 data"),
            };
        }
        Some(name) if SHORT_TAGS.contains(&name) => resolve(text),
        _ if tag.is_empty() && plain => resolve(text),
        _ => Scalar::Text,
    };
    let found = match (short, found) {
        (Some("float"), Scalar::Int(number)) => Scalar::Float(number as f64),
        (Some(name), found) if SHORT_TAGS.contains(&name) && name != found.tag() => {
            return yaml(format!("cannot decode !!{} `{text}` as a !!{name}", found.tag()));
        }
        (_, found) => found,
    };
    Ok(match found {
        Scalar::Null => Value::Null,
        Scalar::Bool(flag) => Value::Bool(flag),
        Scalar::Int(number) => Value::from(number),
        Scalar::Unsigned(number) => Value::from(number),
        // Go's JSON writes whole doubles without a fraction.
        Scalar::Float(number) if number.fract() == 0.0 && number.abs() < 1e15 => Value::from(number as i64),
        Scalar::Float(number) => match Number::from_f64(number) {
            Some(number) => Value::Number(number),
            None => {
                let name = if number.is_nan() {
                    "NaN"
                } else if number > 0.0 {
                    "+Inf"
                } else {
                    "-Inf"
                };
                return Err(Failure::Json(format!("json: unsupported value: {name}")));
            }
        },
        Scalar::Timestamp | Scalar::Text => Value::String(text.to_owned()),
    })
}

/// What a plain scalar means in YAML 1.1 as Go reads it.
pub(super) fn resolve(text: &str) -> Scalar {
    match text {
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => return Scalar::Bool(true),
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            return Scalar::Bool(false);
        }
        "" | "~" | "null" | "Null" | "NULL" => return Scalar::Null,
        ".nan" | ".NaN" | ".NAN" => return Scalar::Float(f64::NAN),
        ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" => return Scalar::Float(f64::INFINITY),
        "-.inf" | "-.Inf" | "-.INF" => return Scalar::Float(f64::NEG_INFINITY),
        _ => {}
    }
    match text.as_bytes()[0] {
        b'.' if is_float(text) => text.parse().map_or(Scalar::Text, Scalar::Float),
        b'+' | b'-' | b'0'..=b'9' => {
            if is_timestamp(text) {
                return Scalar::Timestamp;
            }
            let plain = text.replace('_', "");
            if let Some(number) = integer(&plain) {
                return number;
            }
            if is_float(&plain) { plain.parse().map_or(Scalar::Text, Scalar::Float) } else { Scalar::Text }
        }
        _ => Scalar::Text,
    }
}

/// A whole number as Go's ParseInt with base 0: `0x`, `0o`, `0b`, and a leading 0 for octal.
fn integer(text: &str) -> Option<Scalar> {
    let (negative, digits) = match text.as_bytes() {
        [b'-', ..] => (true, &text[1..]),
        [b'+', ..] => (false, &text[1..]),
        _ => (false, text),
    };
    let (radix, digits) = match digits.as_bytes() {
        [b'0', b'x' | b'X', ..] => (16, &digits[2..]),
        [b'0', b'o' | b'O', ..] => (8, &digits[2..]),
        [b'0', b'b' | b'B', ..] => (2, &digits[2..]),
        [b'0', _, ..] => (8, &digits[1..]),
        _ => (10, digits),
    };
    if digits.starts_with(['+', '-']) {
        return None;
    }
    let number = u64::from_str_radix(digits, radix).ok()?;
    match (negative, i64::try_from(number)) {
        (false, Ok(number)) => Some(Scalar::Int(number)),
        (false, Err(_)) if !text.starts_with('+') => Some(Scalar::Unsigned(number)),
        (true, Ok(number)) => Some(Scalar::Int(-number)),
        (true, Err(_)) if number == 1 << 63 => Some(Scalar::Int(i64::MIN)),
        _ => None,
    }
}

/// `[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?`
fn is_float(text: &str) -> bool {
    let text = text.strip_prefix(['+', '-']).unwrap_or(text);
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent.strip_prefix(['+', '-']).unwrap_or(exponent))),
        None => (text, None),
    };
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, "0"));
    digits(whole)
        && digits(fraction)
        && !(whole.is_empty() && fraction.is_empty())
        && (!whole.is_empty() || mantissa.contains('.'))
        && exponent.is_none_or(|exponent| !exponent.is_empty() && digits(exponent))
}

/// `2006-1-2`, with a time behind `T`, `t` or a space.
fn is_timestamp(text: &str) -> bool {
    let bytes = text.as_bytes();
    if bytes.len() < 8 || bytes[4] != b'-' || !bytes[..4].iter().all(u8::is_ascii_digit) {
        return false;
    }
    let (date, time) = match text.find(['T', 't', ' ']) {
        Some(at) => (&text[..at], Some((bytes[at], &text[at + 1..]))),
        None => (text, None),
    };
    let part = |text: &str, most: i8| {
        let is_number = (1..=2).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse::<i8>().ok().filter(|number| is_number && (0..=most).contains(number))
    };
    let mut parts = date.splitn(3, '-').skip(1);
    let (Some(month), Some(day)) = (parts.next().and_then(|m| part(m, 12)), parts.next().and_then(|d| part(d, 31)))
    else {
        return false;
    };
    let year = date[..4].parse().unwrap_or_default();
    if jiff::civil::Date::new(year, month, day).is_err() {
        return false;
    }
    let Some((separator, time)) = time else { return true };
    let (clock, zone) = match time.find(['Z', '+', '-']) {
        Some(at) => time.split_at(at),
        None => (time, ""),
    };
    let is_zone = match zone.as_bytes() {
        [] => separator == b' ',
        [b'Z'] => separator != b' ',
        [b'+' | b'-', a, b, b':', c, d] => separator != b' ' && [a, b, c, d].iter().all(|byte| byte.is_ascii_digit()),
        _ => false,
    };
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, "0"));
    let mut parts = clock.split(':');
    let mut next = |most| parts.next().and_then(|text| part(text, most)).is_some();
    is_zone
        && next(23)
        && next(59)
        && next(59)
        && parts.next().is_none()
        && !fraction.is_empty()
        && fraction.bytes().all(|byte| byte.is_ascii_digit())
}
