//! Notes who changed what by a create, an update or a patch.

use serde_json::Value;

use super::compare::compare;
use super::managers::{self, Entry, Operation, Origin};
use super::typed::EMPTY;
use super::{Target, Writer};
use crate::meta::{metadata, metadata_mut, time, uid};

/// Brings `metadata.managedFields` of `new` up to date, which is about to be written over `old` (`None` when it is
/// created). To be called when `new` has its defaults, before admission changes it: what admission does is owned by
/// nobody, as in the reference.
///
/// Entries that the client sent in `new` are taken when they can be read, and those of `old` otherwise; one empty entry
/// (`[{}]`) or an empty list ends the tracking of this object.
pub fn track_update(old: Option<&Value>, new: &mut Value, target: &Target<'_>, writer: &Writer<'_>) {
    let sent = metadata_mut(new).remove("managedFields");
    let stored = old.and_then(|old| metadata(old)?.get("managedFields"));
    let entries = entries(sent, stored, !target.subresource.is_empty());
    // An object whose fields are not tracked stays so until something is applied to it.
    if entries.is_empty() && old.is_some_and(|old| !uid(old).is_empty()) {
        return;
    }
    match update(old.unwrap_or(&EMPTY), new, entries, target, writer) {
        Some(entries) if entries.is_empty() => {}
        Some(entries) => set(new, managers::encode(entries)),
        // The objects cannot be compared (an item of a list lacks its key): who owned what still stands.
        None => {
            if let Some(Value::Array(stored)) = stored {
                set(new, stored.clone());
            }
        }
    }
}

fn set(object: &mut Value, entries: Vec<Value>) {
    metadata_mut(object).insert("managedFields".to_owned(), Value::Array(entries));
}

/// The entries to start from.
fn entries(sent: Option<Value>, stored: Option<&Value>, is_subresource: bool) -> Vec<Entry> {
    // Most clients send back what they got.
    let is_stored = sent.as_ref() == stored;
    let clone = || match stored {
        Some(Value::Array(stored)) => managers::decode(stored.clone(), Origin::Stored).unwrap_or_default(),
        _ => Vec::new(),
    };
    match sent {
        Some(Value::Array(sent)) if is_stored => managers::decode(sent, Origin::Stored).unwrap_or_default(),
        _ if is_subresource => clone(),
        Some(Value::Array(sent)) => {
            let is_reset = match sent.as_slice() {
                [] => true,
                [Value::Object(only)] => only.is_empty(),
                _ => false,
            };
            if is_reset {
                return Vec::new();
            }
            managers::decode(sent, Origin::Client).unwrap_or_else(|_| clone())
        }
        _ => clone(),
    }
}

/// The entries after the write; `None` when the objects cannot be compared.
pub(super) fn update(
    old: &Value,
    new: &Value,
    mut entries: Vec<Entry>,
    target: &Target<'_>,
    writer: &Writer<'_>,
) -> Option<Vec<Entry>> {
    let mut difference = compare(old, new, target.object).ok()?;
    target.reset.filter(&mut difference.changed);
    target.reset.filter(&mut difference.removed);
    for entry in &mut entries {
        entry.set.subtract(&difference.changed);
        entry.set.subtract(&difference.removed);
    }
    entries.retain(|entry| !entry.set.is_empty());
    if !difference.changed.is_empty() {
        let mine = Entry {
            manager: if writer.manager.is_empty() { "unknown" } else { writer.manager }.to_owned(),
            operation: Operation::Update,
            api_version: target.api_version.to_owned(),
            subresource: target.subresource.to_owned(),
            time: writer.now.map(time::format),
            set: difference.changed,
        };
        match entries.iter_mut().find(|entry| entry.is_same(&mine)) {
            Some(entry) => {
                entry.set.union(mine.set);
                entry.time = mine.time;
            }
            None => entries.push(mine),
        }
    }
    managers::cap(&mut entries);
    Some(entries)
}

/// Whether two objects differ in nothing but the times of their managed fields; such a write is none.
pub fn equal_but_times(a: &Value, b: &Value) -> bool {
    equal(a, b, &["metadata", "managedFields"], &|a, b| match (a, b) {
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| equal_entries(a, b)),
        _ => a == b,
    })
}

fn equal_entries(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            let without = |(name, _): &(&String, &Value)| *name != "time";
            a.iter().filter(without).eq(b.iter().filter(without))
        }
        _ => a == b,
    }
}

/// Equality where the value at a path is compared in another way. Both must have it or lack it.
fn equal(a: &Value, b: &Value, path: &[&str], other: &dyn Fn(&Value, &Value) -> bool) -> bool {
    let Some((name, rest)) = path.split_first() else { return other(a, b) };
    match (a, b) {
        (Value::Object(x), Value::Object(y)) => {
            x.len() == y.len()
                && x.iter()
                    .zip(y)
                    .all(|((p, v), (q, w))| p == q && if p == name { equal(v, w, rest, other) } else { v == w })
        }
        _ => a == b,
    }
}

/// Takes the times of the stored entries for those of a write that changed nothing else, so that it is no write.
pub fn keep_times(new: &mut Value, old: &Value) {
    if equal_but_times(new, old)
        && let Some(stored) = metadata(old).and_then(|metadata| metadata.get("managedFields"))
    {
        metadata_mut(new).insert("managedFields".to_owned(), stored.clone());
    }
}
