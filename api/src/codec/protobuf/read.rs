//! Messages to values.

use std::cell::Cell;

use base64::Engine as _;
use jiff::Timestamp;
use serde_json::{Map, Value};

use super::wire::{Fields, Wire, WireError};
use super::{Envelope, MAGIC, object_type, open};
use crate::codec::scalar::{self, BASE64, Precision};
use crate::codec::{Depth, OBJECTS_MAX, finish, is_zero, json, zero_item};
use crate::schema::{self, Absent, Field, Object, Type};

type Result<T> = std::result::Result<T, WireError>;

/// The message of the envelope.
pub(super) fn envelope(message: &[u8]) -> Result<Envelope<'_>> {
    let text = |bytes| std::str::from_utf8(bytes).unwrap_or("");
    let mut envelope = Envelope { api_version: "", kind: "", raw: &[], content_encoding: "", content_type: "" };
    for field in Fields(message) {
        let (number, wire) = field?;
        match number {
            1 => {
                for field in Fields(wire.bytes(1)?) {
                    match field? {
                        (1, wire) => envelope.api_version = text(wire.bytes(1)?),
                        (2, wire) => envelope.kind = text(wire.bytes(2)?),
                        _ => {}
                    }
                }
            }
            2 => envelope.raw = wire.bytes(2)?,
            3 => envelope.content_encoding = text(wire.bytes(3)?),
            4 => envelope.content_type = text(wire.bytes(4)?),
            _ => {}
        }
    }
    Ok(envelope)
}

/// Where the reader stands, and how many objects may still come.
#[derive(Clone, Copy)]
struct Place<'a> {
    depth: Depth,
    objects_left: &'a Cell<usize>,
}

impl<'a> Place<'a> {
    /// Within another list or map.
    fn within(self) -> Result<Place<'a>> {
        Ok(Place { depth: self.depth.within().ok_or(WireError::Depth)?, ..self })
    }

    /// Within another structure.
    fn within_structure(self) -> Result<Place<'a>> {
        Ok(Place { depth: self.depth.within_structure().ok_or(WireError::Depth)?, ..self })
    }

    /// Counts an object that was kept.
    fn count(self, object: &Map<String, Value>) -> Result<()> {
        let left = self.objects_left.get().checked_sub(usize::from(!object.is_empty()));
        self.objects_left.set(left.ok_or(WireError::Objects)?);
        Ok(())
    }
}

/// The message of a structure.
pub(super) fn object(message: &[u8], object: &Object) -> Result<Value> {
    let objects_left = Cell::new(OBJECTS_MAX);
    structure(message, object, Place { depth: Depth::default(), objects_left: &objects_left })
}

fn structure(message: &[u8], object: &Object, place: Place<'_>) -> Result<Value> {
    let place = place.within_structure()?;
    let mut map = Map::new();
    fields(message, object, &mut Vec::new(), &mut map, place)?;
    finish(&mut map, object);
    place.count(&map)?;
    Ok(Value::Object(map))
}

/// The fields of a message, or of one around some of them (`path`).
fn fields(
    message: &[u8],
    object: &Object,
    path: &mut Vec<u32>,
    map: &mut Map<String, Value>,
    place: Place<'_>,
) -> Result<()> {
    let numbers = &object.index().numbers;
    for entry in Fields(message) {
        let (number, wire) = entry?;
        path.push(number);
        let at = numbers.partition_point(|(known, _)| **known < **path);
        match numbers.get(at) {
            Some((known, name)) if **known == **path => field(wire, number, name, &object.fields[name], map, place)?,
            Some((known, _)) if known.starts_with(path) => fields(wire.bytes(number)?, object, path, map, place)?,
            _ => {}
        }
        path.pop();
    }
    Ok(())
}

fn field(
    wire: Wire<'_>,
    number: u32,
    name: &str,
    field: &Field,
    map: &mut Map<String, Value>,
    place: Place<'_>,
) -> Result<()> {
    match &field.ty {
        Type::List(list) if field.go.as_deref() == Some("v1.Verbs") => {
            map.insert(name.to_owned(), Value::Array(wrapped(wire, number, &list.items, place.within()?)?));
        }
        Type::List(list) => {
            let slot = map.entry(name).or_insert_with(|| Value::Array(Vec::new()));
            let Value::Array(items) = slot else { return Ok(()) };
            match (&list.items, wire) {
                // Numbers may come packed.
                (Type::Int32 | Type::Int64 | Type::Bool, Wire::Bytes(packed)) => {
                    let mut packed = Fields(packed);
                    while !packed.0.is_empty() {
                        items.push(value(Wire::Varint(packed.varint()?), number, &list.items, None, place.within()?)?);
                    }
                }
                _ => items.push(value(wire, number, &list.items, None, place.within()?)?),
            }
        }
        Type::Map(of) => {
            let (key, value) = entry(wire.bytes(number)?, &of.values, place.within()?)?;
            if let Value::Object(entries) = map.entry(name).or_insert_with(|| Value::Object(Map::new())) {
                entries.insert(key, value);
            }
        }
        ty => {
            let value = value(wire, number, ty, Some(field), place)?;
            if value.is_null() || field.absent == Absent::Dropped && is_zero(&value) {
                map.remove(name);
            } else {
                map.insert(name.to_owned(), value);
            }
        }
    }
    Ok(())
}

/// An entry of a map: key = 1, value = 2. A list as a value is wrapped in a message of its own.
fn entry(message: &[u8], values: &Type, place: Place<'_>) -> Result<(String, Value)> {
    let (mut key, mut found) = (String::new(), zero_item(values));
    for field in Fields(message) {
        match (field?, values) {
            ((1, wire), _) => key = text(wire.bytes(1)?),
            ((2, wire), Type::List(list)) => found = Value::Array(wrapped(wire, 2, &list.items, place.within()?)?),
            ((2, wire), _) => found = value(wire, 2, values, None, place)?,
            _ => {}
        }
    }
    Ok((key, found))
}

/// A list that is a message: items = 1.
fn wrapped(wire: Wire<'_>, number: u32, items: &Type, place: Place<'_>) -> Result<Vec<Value>> {
    let mut list = Vec::new();
    for field in Fields(wire.bytes(number)?) {
        if let (1, wire) = field? {
            list.push(value(wire, 1, items, None, place)?);
        }
    }
    Ok(list)
}

fn text(bytes: &[u8]) -> String {
    crate::codec::text(bytes).into_owned()
}

fn value(wire: Wire<'_>, number: u32, ty: &Type, field: Option<&Field>, place: Place<'_>) -> Result<Value> {
    Ok(match ty {
        Type::Named(named) => match named.object() {
            Some(object) => structure(wire.bytes(number)?, object, place)?,
            None => Value::Null,
        },
        Type::Object(object) => structure(wire.bytes(number)?, object, place)?,
        Type::String => Value::String(text(wire.bytes(number)?)),
        Type::Bytes => Value::String(BASE64.encode(wire.bytes(number)?)),
        Type::Time => time(wire.bytes(number)?, Precision::Second)?,
        Type::MicroTime => time(wire.bytes(number)?, Precision::Micro)?,
        Type::Quantity => quantity(wire.bytes(number)?)?,
        Type::IntOrString => int_or_string(wire.bytes(number)?)?,
        // 32 bits are written as 64 when negative; what is more than 32 is cut off, as Go does.
        Type::Int32 => Value::from(wire.varint(number)? as i32),
        Type::Int64 => Value::from(wire.varint(number)? as i64),
        Type::Bool => Value::Bool(wire.varint(number)? != 0),
        Type::Float64 => match wire {
            Wire::Fixed64(bits) => double(f64::from_bits(bits)),
            other => return Err(WireError::Type(other.number(), number)),
        },
        Type::Any | Type::Deduced => {
            any(wire.bytes(number)?, field.and_then(|field| field.go.as_deref()).unwrap_or(""), place)?
        }
        // Lists and maps are fields' and were read there.
        Type::List(_) | Type::Map(_) => Value::Null,
    })
}

fn double(number: f64) -> Value {
    if number.fract() == 0.0 && number.abs() < 1e15 { Value::from(number as i64) } else { Value::from(number) }
}

/// seconds = 1, nanos = 2; the zero time is an empty message.
fn time(message: &[u8], precision: Precision) -> Result<Value> {
    if message.is_empty() {
        return Ok(Value::Null);
    }
    let (mut seconds, mut nanos) = (0, 0);
    for field in Fields(message) {
        match field? {
            (1, wire) => seconds = wire.varint(1)? as i64,
            (2, wire) => nanos = wire.varint(2)? as i32,
            _ => {}
        }
    }
    let nanos = if precision == Precision::Micro { nanos } else { 0 };
    let time = Timestamp::new(seconds, nanos).map_err(|_| WireError::Time)?;
    Ok(scalar::time_text(time, precision).map_or(Value::Null, Value::String))
}

/// string = 1
fn quantity(message: &[u8]) -> Result<Value> {
    let mut found = String::new();
    for field in Fields(message) {
        if let (1, wire) = field? {
            found = text(wire.bytes(1)?);
        }
    }
    if found.is_empty() {
        return Ok("0".into());
    }
    scalar::quantity(&found).map(Value::String).map_err(|_| WireError::Quantity)
}

/// type = 1 (0 number, 1 text), intVal = 2, strVal = 3
fn int_or_string(message: &[u8]) -> Result<Value> {
    let (mut is_text, mut number, mut found) = (false, 0, String::new());
    for field in Fields(message) {
        match field? {
            (1, wire) => is_text = wire.varint(1)? == 1,
            (2, wire) => number = wire.varint(2)? as i32,
            (3, wire) => found = text(wire.bytes(3)?),
            _ => {}
        }
    }
    Ok(if is_text { Value::String(found) } else { Value::from(number) })
}

/// Any JSON is its text = 1; RawExtension may hold an object with an envelope there. Three types of schemas of custom
/// resources are one thing or another.
fn any(message: &[u8], go: &str, place: Place<'_>) -> Result<Value> {
    let props = || schema::named(super::write::SCHEMA_PROPS).unwrap_or_default();
    let (mut flag, mut one, mut many, mut raw) = (None, None, Vec::new(), None);
    for field in Fields(message) {
        match (go, field?) {
            ("v1.JSONSchemaPropsOrBool", (1, wire)) => flag = Some(wire.varint(1)? != 0),
            ("v1.JSONSchemaPropsOrBool", (2, wire)) | ("v1.JSONSchemaPropsOrArray", (1, wire)) => {
                one = Some(structure(wire.bytes(1)?, &props(), place)?);
            }
            ("v1.JSONSchemaPropsOrArray", (2, wire)) => {
                many.push(structure(wire.bytes(2)?, &props(), place.within()?)?)
            }
            (_, (1, wire)) => raw = Some(wire.bytes(1)?),
            _ => {}
        }
    }
    if let Some(one) = one {
        return Ok(one);
    }
    if !many.is_empty() {
        return Ok(Value::Array(many));
    }
    if let Some(flag) = flag {
        return Ok(Value::Bool(flag));
    }
    let Some(raw) = raw.filter(|raw| !raw.is_empty()) else { return Ok(Value::Null) };
    if raw.starts_with(MAGIC) {
        return embedded(raw, place);
    }
    let (value, left) =
        json::parse_within(raw, place.depth.levels, place.objects_left.get()).map_err(|_| WireError::Json)?;
    place.objects_left.set(left);
    Ok(value)
}

fn embedded(bytes: &[u8], place: Place<'_>) -> Result<Value> {
    let envelope = open(bytes).map_err(|_| WireError::Truncated)?;
    let Some(object) = object_type(envelope.api_version, envelope.kind) else { return Ok(Value::Null) };
    let mut value = structure(envelope.raw, &object, place)?;
    value["apiVersion"] = envelope.api_version.into();
    value["kind"] = envelope.kind.into();
    Ok(value)
}
