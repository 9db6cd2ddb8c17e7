//! What is computed from a record once and kept with it: what selectors ask for, table cells, protobuf.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use coracle_api::kinds::Cell;
use coracle_api::meta;
use coracle_api::meta::selector::{FieldSelector, LabelSelector};
use coracle_api::meta::time;
use coracle_api::status::Status;
use coracle_keyspace::Record;
use jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::converted::Converted;
use super::object;
use crate::catalog::{Custom, Resource};
use crate::hooks;
use crate::request::codec;

/// Everything that is kept with one record.
#[derive(Default)]
struct Memo {
    stored: View,
    /// Of a second row with the same objects.
    other: OnceLock<Box<View>>,
}

#[derive(Default)]
struct View {
    facts: OnceLock<Facts>,
    row: OnceLock<Row>,
    protobuf: OnceLock<Bytes>,
    metadata_protobuf: OnceLock<Bytes>,
    metadata: OnceLock<Range<usize>>,
    json: OnceLock<Bytes>,
    /// Of a custom resource: whether it is shown otherwise than it is stored.
    otherwise: OnceLock<Option<bool>>,
    /// The same: what a webhook made of it.
    converted: Arc<Converted>,
}

/// Kinds for which something is kept with one record of a custom resource: versions that are asked for, and the definition
/// before the last change.
const VIEWS_MAX: usize = 4;
/// The group of what says what pods are worth.
const PRIORITIES: &str = "scheduling.k8s.io";

/// What is kept with a record of a custom resource, by the number of the kind that computed it, the newest last.
#[derive(Default)]
struct CustomMemo(Mutex<Vec<(u64, Arc<View>)>>);

impl CustomMemo {
    fn view(&self, number: u64) -> Arc<View> {
        let mut views = self.0.lock();
        if let Some((_, view)) = views.iter().find(|(known, _)| *known == number) {
            return view.clone();
        }
        if views.len() >= VIEWS_MAX {
            views.remove(0);
        }
        let view = Arc::<View>::default();
        views.push((number, view.clone()));
        view
    }
}

/// What selectors ask for, and other small things that are asked for often.
pub(crate) struct Facts {
    pub uid: String,
    /// Whether its deletion was asked for.
    pub deleting: bool,
    /// When it is to be gone.
    pub deletion: Option<Timestamp>,
    /// Of a class: whether it is that of whoever names none.
    pub is_default: bool,
    labels: Vec<(String, String)>,
    /// In the order of the row's selectable fields.
    fields: Vec<Option<String>>,
}

/// A row of a table up to its object, as JSON with gaps where the ages go: they change while the object does not.
pub(crate) struct Row {
    text: Box<[u8]>,
    /// Where, in order, and since when.
    ages: Box<[(u32, Timestamp)]>,
}

impl Row {
    /// The row of an object as it is stored.
    pub fn of(resource: &Resource, stored: &Value) -> Row {
        let strategy = resource.row.strategy();
        let conditions = strategy.row_conditions(stored);
        Row::new(&strategy.cells(stored), (!conditions.is_null()).then_some(&conditions))
    }

    /// A row of these cells.
    pub fn new(cells: &[Cell], conditions: Option<&Value>) -> Row {
        let (mut text, mut ages) = (Vec::with_capacity(128), Vec::new());
        text.extend_from_slice(b"{\"cells\":[");
        for (at, cell) in cells.iter().enumerate() {
            if at > 0 {
                text.push(b',');
            }
            match cell {
                Cell::Value(value) => object::write_json(&mut text, value),
                Cell::Age(None) => text.extend_from_slice(b"\"<unknown>\""),
                Cell::Age(Some(since)) => {
                    text.push(b'"');
                    ages.push((text.len() as u32, *since));
                    text.push(b'"');
                }
                Cell::WithAge { before, since, after } => {
                    // Two texts that become one with the age between them: ages have nothing that JSON escapes.
                    object::write_json(&mut text, before);
                    text.pop();
                    ages.push((text.len() as u32, *since));
                    let from = text.len();
                    object::write_json(&mut text, after);
                    text.remove(from);
                }
            }
        }
        text.push(b']');
        if let Some(conditions) = conditions {
            text.extend_from_slice(b",\"conditions\":");
            object::write_json(&mut text, conditions);
        }
        text.extend_from_slice(b",\"object\":");
        Row { text: text.into(), ages: ages.into() }
    }

    /// Appends it as it is at `now`.
    pub fn write(&self, out: &mut Vec<u8>, now: Timestamp) {
        let mut done = 0;
        for (at, since) in &self.ages {
            let at = *at as usize;
            out.extend_from_slice(&self.text[done..at]);
            out.extend_from_slice(time::age(*since, now).as_bytes());
            done = at;
        }
        out.extend_from_slice(&self.text[done..]);
    }
}

/// A record as one row of the kinds sees it.
#[derive(Clone)]
pub(crate) struct Seen<'a> {
    pub resource: &'a Resource,
    pub record: &'a Arc<Record>,
    /// Fetched when something of it is asked for: a plain read copies bytes and needs none.
    memo: OnceLock<Arc<Memo>>,
    /// The same of a custom resource.
    custom: OnceLock<Arc<View>>,
}

impl<'a> Seen<'a> {
    pub fn new(resource: &'a Resource, record: &'a Arc<Record>) -> Seen<'a> {
        Seen { resource, record, memo: OnceLock::new(), custom: OnceLock::new() }
    }

    fn view(&self) -> &View {
        if let Some(custom) = &self.resource.custom {
            return self.custom.get_or_init(|| self.record.memo(|_| CustomMemo::default()).view(custom.number));
        }
        let memo = self.memo.get_or_init(|| self.record.memo(|_| Memo::default()));
        if self.resource.is_view { memo.other.get_or_init(Box::default) } else { &memo.stored }
    }

    /// The object as it is stored. What was accepted can be read ([`object::parse`]), so bytes that cannot are damaged:
    /// an error, since an object of nothing would have no finalizers, no owner and no uid.
    /// A custom resource comes in the version that was asked for, as its definition would store it now. One that the
    /// definition's defaults would make too large is an error, too: it was stored under another definition.
    pub fn stored(&self) -> Result<Value, Status> {
        self.renewed(self.parsed()?)
    }

    fn renewed(&self, mut value: Value) -> Result<Value, Status> {
        if let Some(custom) = &self.resource.custom {
            custom.kind.show(&mut value).map_err(|error| self.unreadable(error))?;
        }
        Ok(value)
    }

    /// The same for whoever deletes it: what cannot be shown since its defaults are too much goes as it is stored, without
    /// them. What configures admission, and what says what pods are worth, goes although it is damaged: what it decides about cannot be
    /// written until then. So does what cannot be decrypted: it will never be read again.
    pub fn to_remove(&self) -> Result<Value, Status> {
        let admits = matches!(self.resource.row.group(), hooks::GROUP | PRIORITIES);
        let goes = admits || self.record.why_unreadable().is_some();
        let mut value = match self.parsed() {
            Err(_) if goes => {
                let (namespace, name) = split(&self.record.key.name);
                let mut metadata = json!({"name": name, "resourceVersion": self.record.revision.to_string()});
                if !namespace.is_empty() {
                    metadata["namespace"] = namespace.into();
                }
                json!({"metadata": metadata})
            }
            parsed => parsed?,
        };
        if let Some(custom) = &self.resource.custom {
            let _ = custom.kind.show(&mut value);
        }
        Ok(value)
    }

    /// A custom resource in the version in which it is stored, as its definition would store it there now.
    pub fn in_own_version(&self) -> Result<Value, Status> {
        let mut value = self.parsed()?;
        if let Some(custom) = &self.resource.custom {
            custom.kind.renew(&mut value).map_err(|error| self.unreadable(error))?;
        }
        Ok(value)
    }

    /// The same for whoever changes it: what nests so deep that it is not read whole would lose its deepest levels.
    pub fn stored_whole(&self) -> Result<Value, Status> {
        let (value, is_cut) = self.parsed_or_cut()?;
        if is_cut {
            let message = "it nests so deep that it can be read and deleted, but not changed";
            return Err(self.resource.too_deep(split(&self.record.key.name).1, message));
        }
        self.renewed(value)
    }

    /// What is stored is what was asked for, whatever it says of itself.
    fn parsed(&self) -> Result<Value, Status> {
        self.parsed_or_cut().map(|(value, _)| value)
    }

    /// The same, and whether it nests so deep that it was not read whole.
    fn parsed_or_cut(&self) -> Result<(Value, bool), Status> {
        check_opened(self.record)?;
        let (mut value, is_cut) = object::parse(&self.record.bytes).map_err(|error| self.unreadable(error))?;
        self.resource.name_type(&mut value);
        Ok((value, is_cut))
    }

    fn unreadable(&self, error: impl std::fmt::Display) -> Status {
        let (collection, name) = (&self.record.key.collection, &self.record.key.name);
        Status::internal_error(format_args!("the stored bytes of {collection} {name} cannot be read: {error}"))
    }

    /// Whether clients of this row see the stored bytes, behind the kind and the version.
    pub fn is_plain(&self) -> bool {
        match &self.resource.custom {
            None => !self.resource.is_view,
            Some(custom) if custom.is_recent(self.record) && custom.is_alike(self.record) => true,
            Some(custom) => self.is_shown_otherwise(custom) == Some(false),
        }
    }

    /// Whether clients of this version see a custom resource otherwise than it is stored, but for the version's name; `None` when it
    /// cannot be read.
    fn is_shown_otherwise(&self, custom: &Custom) -> Option<bool> {
        *self.view().otherwise.get_or_init(|| {
            let mut value = self.parsed().ok()?;
            custom.kind.show(&mut value).ok()
        })
    }

    /// Whether the stored bytes are what clients of this row see, whole.
    pub fn is_as_stored(&self) -> bool {
        let head = self.resource.custom.as_ref().map_or(&self.resource.stored_head, |custom| &custom.head);
        self.record.bytes.starts_with(head) && self.is_plain()
    }

    /// Whether it is stored as it would be stored now, its version too.
    pub fn is_stored_now(&self) -> bool {
        self.record.bytes.starts_with(&self.resource.stored_head)
            && self.resource.custom.as_ref().is_none_or(|custom| {
                let is_complete = || custom.kind.renew(&mut self.parsed().ok()?).ok();
                custom.is_recent(self.record) || is_complete() == Some(false)
            })
    }

    /// What a webhook made of it for this version, while it is kept.
    pub fn converted(&self) -> Arc<Converted> {
        self.view().converted.clone()
    }

    /// Appends it as an item of a list. Items of custom resources say what they are.
    pub fn write_item(&self, out: &mut Vec<u8>) {
        match &self.resource.custom {
            Some(custom) if self.is_plain() => {
                out.extend_from_slice(&custom.head);
                out.extend_from_slice(&self.record.bytes[object::item_start(&self.record.bytes)..]);
            }
            Some(_) => out.extend_from_slice(&self.json()),
            None => {
                let json = self.json();
                out.push(b'{');
                out.extend_from_slice(&json[object::item_start(&json)..]);
            }
        }
    }

    /// The object as clients of this row see it.
    pub fn value(&self) -> Result<Value, Status> {
        let mut value = self.stored()?;
        if self.resource.is_view {
            self.resource.row.strategy().from_storage(&mut value);
        }
        Ok(value)
    }

    /// The same for lists, watches and selectors, which go on when one of ten thousand objects is damaged: that one is
    /// nothing there, and the log says so. Nothing is decided by it that changes an object.
    pub fn value_or_nothing(&self) -> Value {
        or_nothing(self.value())
    }

    /// Its JSON.
    pub fn json(&self) -> Bytes {
        if self.is_as_stored() {
            return self.record.bytes.clone();
        }
        if self.resource.custom.is_some() && self.is_plain() {
            let mut out = Vec::with_capacity(self.record.bytes.len() + 16);
            self.write_item(&mut out);
            return out.into();
        }
        self.view().json.get_or_init(|| object::encode_final(&self.value_or_nothing())).clone()
    }

    /// That a custom resource, or what is encrypted, is not nothing, for whoever asks for it by name.
    pub fn check_readable(&self) -> Result<(), Status> {
        check_opened(self.record)?;
        match &self.resource.custom {
            Some(custom) if !custom.is_recent(self.record) && self.is_shown_otherwise(custom).is_none() => {
                self.stored().map(drop)
            }
            _ => Ok(()),
        }
    }

    /// Where its metadata stands in its JSON.
    pub fn metadata_range(&self) -> Range<usize> {
        self.view().metadata.get_or_init(|| object::metadata_range(&self.json())).clone()
    }

    /// JSON of its metadata.
    pub fn metadata(&self) -> Bytes {
        self.json().slice(self.metadata_range())
    }

    /// Its protobuf message, without the envelope.
    pub fn protobuf(&self) -> Bytes {
        self.view().protobuf.get_or_init(|| codec::message(&self.value_or_nothing(), &self.resource.schema)).clone()
    }

    /// Keeps the message of what was written just now, from the `object` that was.
    pub fn keep_protobuf(&self, object: &Value) {
        let message = codec::message(object, &self.resource.schema);
        debug_assert_eq!(message, codec::message(&self.value_or_nothing(), &self.resource.schema), "{object}");
        let _ = self.view().protobuf.set(message);
    }

    /// The protobuf message of its metadata as a PartialObjectMetadata.
    pub fn metadata_protobuf(&self) -> Bytes {
        let make = || codec::partial_message(&self.value_or_nothing()["metadata"]);
        self.view().metadata_protobuf.get_or_init(make).clone()
    }

    /// Its row in a table.
    pub fn row(&self) -> &Row {
        self.view().row.get_or_init(|| Row::of(self.resource, &or_nothing(self.stored())))
    }

    /// Computes what selectors ask for, for later.
    pub fn learn(&self) {
        self.facts();
    }

    pub fn facts(&self) -> &Facts {
        self.view().facts.get_or_init(|| Facts::of(self.resource, &or_nothing(self.stored())))
    }

    /// The same for whoever decides by it what may be written.
    pub fn known_facts(&self) -> Result<&Facts, Status> {
        let facts = self.facts();
        // Nothing is known of what cannot be read, and a uid of everything else.
        if facts.uid.is_empty() {
            self.stored()?;
        }
        Ok(facts)
    }

    /// A field that selectors may ask for.
    pub fn field(&self, path: &str) -> Option<&str> {
        let at = self.resource.row.selectable().position(|field| field == path)?;
        self.facts().fields.get(at)?.as_deref()
    }

    /// Whether selectors select it.
    pub fn matches(&self, labels: &LabelSelector, fields: &FieldSelector) -> bool {
        if !fields.is_everything() {
            let (namespace, name) = split(&self.record.key.name);
            let value = |path: &str| match path {
                "metadata.name" => Some(Cow::Borrowed(name)),
                "metadata.namespace" => Some(Cow::Borrowed(namespace)),
                path => self.field(path).map(Cow::Borrowed),
            };
            if !fields.matches(value) {
                return false;
            }
        }
        labels.is_everything() || labels.matches(self.facts().labels.as_slice())
    }
}

impl Facts {
    /// The value of a label.
    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels.iter().find(|(known, _)| known == key).map(|(_, value)| value.as_str())
    }

    pub fn labels(&self) -> &[(String, String)] {
        &self.labels
    }

    fn of(resource: &Resource, object: &Value) -> Facts {
        let labels = object["metadata"]["labels"].as_object().into_iter().flatten();
        let strategy = resource.row.strategy();
        Facts {
            uid: meta::uid(object).to_owned(),
            deleting: meta::is_deleting(object),
            deletion: meta::deletion_time(object),
            is_default: object["globalDefault"] == true,
            labels: labels.map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned())).collect(),
            fields: resource.row.selectable().map(|path| strategy.field(object, path)).collect(),
        }
    }
}

/// That what is stored encrypted was opened. Lists and watches do not go on without it, as they do without what is damaged: nothing in the
/// place of a Secret would be taken for an empty one.
pub(crate) fn check_opened(record: &Record) -> Result<(), Status> {
    let Some(why) = record.why_unreadable() else { return Ok(()) };
    let (collection, name) = (&record.key.collection, &record.key.name);
    Err(Status::internal_error(format_args!("the stored {collection} {name} cannot be decrypted: {why}")))
}

fn or_nothing(read: Result<Value, Status>) -> Value {
    read.unwrap_or_else(|status| {
        tracing::error!("{}", status.message);
        Value::Null
    })
}

/// Namespace and name of a record; the namespace of a cluster-wide one is empty.
pub(crate) fn split(record_name: &str) -> (&str, &str) {
    record_name.split_once('/').unwrap_or(("", record_name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_its_ages_where_they_belong() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let cells = [
            Cell::Value(json!("a\"b")),
            Cell::Age(Some(at(1_000))),
            Cell::WithAge { before: "\"3\" (".into(), since: at(700), after: " ago)\n".into() },
            Cell::Value(json!(7)),
            Cell::Age(None),
        ];
        let row = Row::new(&cells, Some(&json!([{"type": "Completed"}])));
        let mut text = Vec::new();
        row.write(&mut text, at(1_060));
        text.extend_from_slice(b"null}");
        let expected = json!({
            "cells": ["a\"b", "60s", "\"3\" (6m ago)\n", 7, "<unknown>"],
            "conditions": [{"type": "Completed"}], "object": null,
        });
        assert_eq!(serde_json::from_slice::<Value>(&text).unwrap(), expected);
    }
}
