//! JSON against a type.

use std::collections::HashSet;

use serde_json::{Map, Number, Value};

use super::scan::{Scanner, Syntax};
use super::{DecodeError, Decoded, MOST_PROBLEMS, not_an_object, problem, raw, what};
use crate::codec::scalar::{self, Precision};
use crate::codec::{DEPTH_MAX, OBJECTS_MAX, STRUCTURES_MAX, TOO_DEEP, finish, is_zero, zero_item};
use crate::schema::{self, Absent, Field, Object, Type};

const SCHEMA_PROPS: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps";

/// Where a value stands. Kept on the stack as a chain, looked at only to word an error.
struct Place<'p> {
    parent: Option<&'p Place<'p>>,
    step: Step<'p>,
}

enum Step<'p> {
    Root,
    Field(&'p Object, &'p Field, &'p str),
    Key(&'p str),
    Index(usize),
}

struct Reader<'a> {
    scan: Scanner<'a>,
    problems: Vec<String>,
    /// The first value of a wrong type.
    mistyped: Option<String>,
    /// The first value that its own reader refused; in Go this ends decoding and so wins over the former.
    refused: Option<String>,
    /// Inside what Go reads with another decoder: unknown fields are no problem there.
    lenient: bool,
    /// Structures around.
    structures: usize,
}

pub(super) fn decode(bytes: &[u8], object: &Object) -> Result<Decoded, DecodeError> {
    let scan = Scanner { objects_left: OBJECTS_MAX, ..Scanner::new(bytes) };
    let mut reader =
        Reader { scan, problems: Vec::new(), mistyped: None, refused: None, lenient: false, structures: 0 };
    let root = Place { parent: None, step: Step::Root };
    let value = match reader.scan.peek()? {
        b'{' => reader.object(object, &root)?,
        b'n' => {
            reader.scan.word("null")?;
            let mut map = Map::new();
            finish(&mut map, object);
            Value::Object(map)
        }
        _ => {
            reader.scan.skip()?;
            reader.scan.end()?;
            return Err(not_an_object(bytes));
        }
    };
    reader.scan.end()?;
    match reader.refused.or(reader.mistyped) {
        Some(words) => Err(DecodeError::Mistyped(words)),
        None => Ok(Decoded { value, problems: reader.problems }),
    }
}

impl<'a> Reader<'a> {
    /// The structure that starts here.
    fn object(&mut self, object: &Object, place: &Place<'_>) -> Result<Value, Syntax> {
        if self.structures >= STRUCTURES_MAX {
            return self.scan.wrong(TOO_DEEP);
        }
        self.scan.enter(DEPTH_MAX)?;
        self.structures += 1;
        let mut map = Map::new();
        // Keys that were there and left nothing.
        let mut gone: HashSet<&str> = HashSet::new();
        let mut first = true;
        while let Some(key) = self.scan.key(first)? {
            first = false;
            let Some((name, field)) = object.fields.get_key_value(&key) else {
                if object.preserves_unknown {
                    let value = raw(&mut self.scan)?;
                    if map.insert(key.clone().into_owned(), value).is_some() {
                        self.duplicate(&key, place, self.problems.len());
                    }
                } else {
                    self.problem("unknown", &key, place, self.problems.len());
                    self.scan.skip()?;
                }
                continue;
            };
            let here = Place { parent: Some(place), step: Step::Field(object, field, name) };
            let told = self.problems.len();
            let value = self.value(&field.ty, &here)?;
            let twice = match value {
                Some(value) if field.absent != Absent::Dropped || !is_zero(&value) => {
                    match map.insert(name.clone(), value) {
                        Some(before) => {
                            merge(before, &mut map[name], &field.ty);
                            true
                        }
                        None => gone.contains(name.as_str()),
                    }
                }
                dropped => {
                    // A null leaves what the key had before; a zero replaces it.
                    let twice = gone.contains(name.as_str()) || map.contains_key(name);
                    if dropped.is_some() {
                        map.remove(name);
                    }
                    gone.insert(name);
                    twice
                }
            };
            if twice {
                self.duplicate(&key, place, told);
            }
        }
        self.structures -= 1;
        finish(&mut map, object);
        // One that was empty may not be any more.
        if first && !map.is_empty() {
            self.scan.count()?;
        }
        Ok(Value::Object(map))
    }

    /// The value that starts here; `None` for null and for what is of a wrong type.
    fn value(&mut self, ty: &Type, place: &Place<'_>) -> Result<Option<Value>, Syntax> {
        let byte = self.scan.peek()?;
        if byte == b'n' {
            self.scan.word("null")?;
            return Ok(None);
        }
        Ok(Some(match (ty, byte) {
            (Type::String, b'"') => Value::String(self.scan.string()?.into_owned()),
            (Type::Bool, b't' | b'f') => {
                self.scan.word(if byte == b't' { "true" } else { "false" })?;
                Value::Bool(byte == b't')
            }
            (Type::Int32 | Type::Int64 | Type::Float64, b'-' | b'0'..=b'9') => {
                let text = self.scan.number()?;
                let read = match ty {
                    Type::Int32 => text.parse::<i32>().ok().map(Value::from),
                    Type::Int64 => text.parse::<i64>().ok().map(Value::from),
                    _ => text.parse::<f64>().ok().filter(|n| n.is_finite()).map(float),
                };
                if read.is_none() {
                    self.mistyped(&format!("number {text}"), ty, place);
                }
                return Ok(read);
            }
            (Type::Named(named), b'{') => match named.object() {
                Some(object) => self.object(object, place)?,
                None => raw(&mut self.scan)?,
            },
            (Type::Object(object), b'{') => self.object(object, place)?,
            (Type::List(list), b'[') => self.list(&list.items, place)?,
            (Type::Map(map), b'{') => self.map(&map.values, place)?,
            (Type::Bytes, b'"') => {
                let text = self.scan.string()?.into_owned();
                match scalar::bytes(text) {
                    Ok(text) => Value::String(text),
                    Err(words) => {
                        self.mistyped.get_or_insert(words);
                        return Ok(None);
                    }
                }
            }
            (Type::Time | Type::MicroTime, _) => return self.time(ty, byte, place),
            (Type::Quantity, _) => return self.quantity(),
            (Type::IntOrString, b'"') => Value::String(self.scan.string()?.into_owned()),
            (Type::IntOrString, b'-' | b'0'..=b'9') => {
                let text = self.scan.number()?;
                match text.parse::<i32>() {
                    Ok(number) => Value::from(number),
                    Err(_) => return Ok(self.refuse(&format!("number {text}"), "int32", place)),
                }
            }
            (Type::IntOrString, _) => {
                self.scan.skip()?;
                return Ok(self.refuse(what(byte), "int32", place));
            }
            (Type::Any | Type::Deduced, _) => self.any(byte, place)?,
            _ => {
                self.scan.skip()?;
                self.mistyped(what(byte), ty, place);
                return Ok(None);
            }
        }))
    }

    fn list(&mut self, items: &Type, place: &Place<'_>) -> Result<Value, Syntax> {
        self.scan.enter(DEPTH_MAX)?;
        let mut list = Vec::new();
        while self.scan.item(list.is_empty())? {
            let here = Place { parent: Some(place), step: Step::Index(list.len()) };
            let item = self.value(items, &here)?;
            list.push(item.unwrap_or_else(|| zero_item(items)));
        }
        Ok(Value::Array(list))
    }

    fn map(&mut self, values: &Type, place: &Place<'_>) -> Result<Value, Syntax> {
        self.scan.enter(DEPTH_MAX)?;
        let mut map = Map::new();
        let mut first = true;
        while let Some(key) = self.scan.key(first)? {
            first = false;
            let here = Place { parent: Some(place), step: Step::Key(&key) };
            let told = self.problems.len();
            let value = self.value(values, &here)?.unwrap_or_else(|| zero_item(values));
            if map.contains_key(&*key) {
                self.duplicate(&key, place, told);
            }
            map.insert(key.into_owned(), value);
        }
        Ok(Value::Object(map))
    }

    /// JSON that is kept as it is, but for the parts of a schema that may be one thing or another.
    fn any(&mut self, byte: u8, place: &Place<'_>) -> Result<Value, Syntax> {
        let go = match place.step {
            Step::Field(_, field, _) => field.go.as_deref().unwrap_or(""),
            _ => "",
        };
        let props = match (go, byte) {
            ("v1.JSONSchemaPropsOrArray" | "v1.JSONSchemaPropsOrBool", b'{') => schema::named(SCHEMA_PROPS),
            ("v1.JSONSchemaPropsOrArray", b'[') => schema::named(SCHEMA_PROPS),
            ("v1.JSONSchemaPropsOrBool", b't' | b'f') => None,
            ("v1.JSONSchemaPropsOrBool", _) => {
                self.scan.skip()?;
                self.refused.get_or_insert_with(|| "boolean or JSON schema expected".to_owned());
                return Ok(Value::Null);
            }
            _ => None,
        };
        let Some(props) = props else { return raw(&mut self.scan) };
        let before = std::mem::replace(&mut self.lenient, true);
        let value = if byte == b'{' { self.object(&props, place) } else { self.list(&Type::Object(props), place) };
        self.lenient = before;
        value
    }

    fn time(&mut self, ty: &Type, byte: u8, place: &Place<'_>) -> Result<Option<Value>, Syntax> {
        if byte != b'"' {
            self.scan.skip()?;
            return Ok(self.refuse(what(byte), "string", place));
        }
        let text = self.scan.string()?;
        let precision = if matches!(ty, Type::Time) { Precision::Second } else { Precision::Micro };
        match scalar::time(&text, precision) {
            Ok(time) => Ok(time.map(Value::String)),
            Err(words) => {
                self.refused.get_or_insert(words);
                Ok(None)
            }
        }
    }

    /// A quantity reads its bytes by itself: a number or a text, of which escapes are not looked at.
    fn quantity(&mut self) -> Result<Option<Value>, Syntax> {
        let start = self.scan.at;
        self.scan.skip()?;
        let text = String::from_utf8_lossy(&self.scan.bytes[start..self.scan.at]);
        let text = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(&text);
        match scalar::quantity(text.trim()) {
            Ok(text) => Ok(Some(Value::String(text))),
            Err(words) => {
                self.refused.get_or_insert(words);
                Ok(None)
            }
        }
    }

    #[cold]
    fn mistyped(&mut self, what: &str, ty: &Type, place: &Place<'_>) {
        if self.mistyped.is_none() {
            let name = go_name(place).map_or_else(|| ty.go(), str::to_owned);
            self.mistyped = Some(cannot(what, &name, place));
        }
    }

    #[cold]
    fn refuse(&mut self, what: &str, ty: &str, place: &Place<'_>) -> Option<Value> {
        self.refused.get_or_insert_with(|| cannot(what, ty, place));
        None
    }

    /// Tells of a key that stands twice, before what was told since of its second value.
    #[cold]
    fn duplicate(&mut self, key: &str, place: &Place<'_>, before: usize) {
        self.problem("duplicate", key, place, before);
    }

    #[cold]
    fn problem(&mut self, what: &str, key: &str, place: &Place<'_>, at: usize) {
        // A way may be long, and there may be many.
        if self.lenient || self.problems.len() >= MOST_PROBLEMS {
            return;
        }
        let mut path = String::new();
        write_path(place, &mut path);
        if !path.is_empty() {
            path.push('.');
        }
        path.push_str(key);
        problem(&mut self.problems, at, what, &path);
    }
}

/// The name of a type in Go that does not follow from what it is: the field's, or of an item what that of its list says.
fn go_name<'p>(place: &Place<'p>) -> Option<&'p str> {
    match place.step {
        Step::Root => None,
        Step::Field(_, field, _) => field.go.as_deref(),
        Step::Index(_) => go_name(place.parent?)?.strip_prefix("[]"),
        Step::Key(_) => go_name(place.parent?)?.strip_prefix("map[string]"),
    }
}

/// Go's sentence. It names the innermost structure, but all fields from the outermost; keys and indices it leaves out.
fn cannot(what: &str, ty: &str, place: &Place<'_>) -> String {
    let (mut names, mut structure) = (Vec::new(), None);
    let mut at = Some(place);
    while let Some(place) = at {
        if let Step::Field(object, field, name) = place.step {
            names.push(name);
            names.extend(field.within.as_deref().into_iter().flat_map(|within| within.rsplit('.')));
            structure.get_or_insert(object);
        }
        at = place.parent;
    }
    match structure {
        Some(object) => {
            names.reverse();
            let structure = object.name.rsplit('.').next().unwrap_or_default();
            format!("json: cannot unmarshal {what} into Go struct field {structure}.{} of type {ty}", names.join("."))
        }
        None => format!("json: cannot unmarshal {what} into Go value of type {ty}"),
    }
}

fn write_path(place: &Place<'_>, path: &mut String) {
    if let Some(parent) = place.parent {
        write_path(parent, path);
    }
    match place.step {
        Step::Root => {}
        Step::Field(_, _, name) | Step::Key(name) => {
            if !path.is_empty() {
                path.push('.');
            }
            path.push_str(name);
        }
        Step::Index(index) => path.push_str(&format!("[{index}]")),
    }
}

/// Go reads the second value of a key into what the first one left: fields and keys that only the first has stay.
#[cold]
fn merge(before: Value, value: &mut Value, ty: &Type) {
    let (Value::Object(before), Value::Object(fields)) = (before, value) else { return };
    let object = match ty {
        Type::Map(_) => None,
        ty => match ty.object() {
            Some(object) => Some(object),
            None => return,
        },
    };
    for (name, old) in before {
        let field = object.as_ref().and_then(|object| object.fields.get(&name));
        match (fields.get_mut(&name), field) {
            (None, _) => drop(fields.insert(name, old)),
            (Some(new), Some(field)) if *new == field.zero() => *new = old,
            (Some(new), Some(field)) => merge(old, new, &field.ty),
            (Some(_), None) => {}
        }
    }
}

/// Go writes whole doubles without a fraction.
fn float(number: f64) -> Value {
    if number.fract() == 0.0 && number.abs() < 1e15 {
        return Value::from(number as i64);
    }
    Number::from_f64(number).map_or(Value::Null, Value::Number)
}
