//! Fills in the defaults of a schema.
//!
//! Defaults unfold: each item of a default has defaults of its own, so that a small definition may say very much. What is
//! filled into one object is bounded ([`ROOM`]). A write beyond it is refused. An object that was stored under another
//! definition, and that the defaults of this one would make so large, cannot be read until the definition is mended: an error
//! names it, lists and watches go on with nothing in its place, and it can be deleted.

use std::fmt;

use serde_json::{Map, Value};

use super::structural::{Additional, Structural};

/// Bytes that defaults may fill into one object, about what they take in memory: some times the largest object, since
/// `"a":1` is 6 bytes in JSON and 65 here.
const ROOM: usize = 16 << 20;
/// A value, beside its text.
const VALUE: usize = 32;
/// A field, beside its name and its value.
const FIELD: usize = 32;

/// Defaults unfold to more than an object may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooMuch;

impl fmt::Display for TooMuch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the defaults of its definition unfold to more than {} MiB in this object", ROOM >> 20)
    }
}

impl std::error::Error for TooMuch {}

/// Fills in what is absent, and what is null where null is no value; what is filled in is filled in below, too.
///
/// # Errors
/// What is filled in would be too much; a part of it is there.
pub fn apply(value: &mut Value, schema: &Structural) -> Result<(), TooMuch> {
    fill(value, schema, &mut Room(ROOM))
}

/// Fills an empty object; gives about how many values that are.
pub(crate) fn unfold(schema: &Structural) -> Result<usize, TooMuch> {
    let mut room = Room(ROOM);
    fill(&mut Value::Object(Map::new()), schema, &mut room)?;
    Ok((ROOM - room.0) / VALUE)
}

/// What may still be filled in.
struct Room(usize);

impl Room {
    fn take(&mut self, size: usize) -> Result<(), TooMuch> {
        self.0 = self.0.checked_sub(size).ok_or(TooMuch)?;
        Ok(())
    }
}

fn fill(value: &mut Value, schema: &Structural, room: &mut Room) -> Result<(), TooMuch> {
    if !schema.reach.defaults {
        return Ok(());
    }
    match value {
        Value::Object(fields) => {
            for (name, of) in schema.properties.defaulted() {
                if let Some(default) = &of.default
                    && fields.get(name).is_none_or(|present| present.is_null() && !of.nullable)
                {
                    room.take(FIELD + name.len() + of.default_size)?;
                    fields.insert(name.to_owned(), default.clone());
                }
            }
            for (name, value) in fields.iter_mut() {
                match (schema.properties.get(name), &schema.additional) {
                    (Some(of), _) => fill(value, of, room)?,
                    (None, Additional::Of(of)) => stand_in(value, of, room)?,
                    _ => {}
                }
            }
        }
        Value::Array(items) => {
            if let Some(of) = &schema.items {
                items.iter_mut().try_for_each(|item| stand_in(item, of, room))?;
            }
        }
        _ => {}
    }
    Ok(())
}

/// What has no name is never absent, but may be null.
fn stand_in(value: &mut Value, of: &Structural, room: &mut Room) -> Result<(), TooMuch> {
    if let Some(default) = of.default.as_ref().filter(|_| value.is_null() && !of.nullable) {
        room.take(of.default_size)?;
        *value = default.clone();
    }
    fill(value, of, room)
}

/// About what a value takes.
pub(super) fn size(value: &Value) -> usize {
    VALUE
        + match value {
            Value::Object(fields) => fields.iter().map(|(name, value)| FIELD + name.len() + size(value)).sum(),
            Value::Array(items) => items.iter().map(size).sum(),
            Value::String(text) => text.len(),
            _ => 0,
        }
}
