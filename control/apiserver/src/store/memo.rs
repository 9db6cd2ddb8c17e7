//! What is computed from a record once and kept with it: what selectors ask for, table cells, protobuf.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use coracle_api::kinds::Cell;
use coracle_api::meta;
use coracle_api::meta::selector::{FieldSelector, LabelSelector};
use coracle_keyspace::Record;
use serde_json::Value;

use super::object;
use crate::catalog::Resource;
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
}

/// What selectors ask for, and other small things that are asked for often.
pub(crate) struct Facts {
    pub uid: String,
    /// Whether its deletion was asked for.
    pub deleting: bool,
    labels: Vec<(String, String)>,
    /// In the order of the row's selectable fields.
    fields: Vec<Option<String>>,
}

/// A row of a table.
pub(crate) struct Row {
    pub cells: Vec<Cell>,
    /// JSON of the row's conditions, if there are any.
    pub conditions: Option<String>,
}

/// A record as one row of the kinds sees it.
#[derive(Clone)]
pub(crate) struct Seen<'a> {
    pub resource: &'a Resource,
    pub record: &'a Arc<Record>,
    /// Fetched when something of it is asked for: a plain read copies bytes and needs none.
    memo: OnceLock<Arc<Memo>>,
}

impl<'a> Seen<'a> {
    pub fn new(resource: &'a Resource, record: &'a Arc<Record>) -> Seen<'a> {
        Seen { resource, record, memo: OnceLock::new() }
    }

    fn view(&self) -> &View {
        let memo = self.memo.get_or_init(|| self.record.memo(|_| Memo::default()));
        if self.resource.is_view { memo.other.get_or_init(Box::default) } else { &memo.stored }
    }

    /// The object as it is stored.
    pub fn stored(&self) -> Value {
        // What is stored was written by this code; bytes that cannot be read would be a damaged disk.
        object::parse(&self.record.bytes).unwrap_or_default()
    }

    /// The object as clients of this row see it.
    pub fn value(&self) -> Value {
        let mut value = self.stored();
        if self.resource.is_view {
            self.resource.row.strategy.from_storage(&mut value);
        }
        value
    }

    /// Its JSON.
    pub fn json(&self) -> Bytes {
        if !self.resource.is_view {
            return self.record.bytes.clone();
        }
        self.view().json.get_or_init(|| object::encode_final(&self.value())).clone()
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
        self.view().protobuf.get_or_init(|| codec::message(&self.value(), &self.resource.schema)).clone()
    }

    /// The protobuf message of its metadata as a PartialObjectMetadata.
    pub fn metadata_protobuf(&self) -> Bytes {
        let make = || codec::partial_message(&serde_json::from_slice(&self.metadata()).unwrap_or_default());
        self.view().metadata_protobuf.get_or_init(make).clone()
    }

    /// Its row in a table.
    pub fn row(&self) -> &Row {
        self.view().row.get_or_init(|| {
            let value = self.stored();
            let strategy = self.resource.row.strategy;
            let conditions = strategy.row_conditions(&value);
            Row { cells: strategy.cells(&value), conditions: (!conditions.is_null()).then(|| conditions.to_string()) }
        })
    }

    pub fn facts(&self) -> &Facts {
        self.view().facts.get_or_init(|| Facts::of(self.resource, &self.stored()))
    }

    /// Whether selectors select it.
    pub fn matches(&self, labels: &LabelSelector, fields: &FieldSelector) -> bool {
        if !fields.is_everything() {
            let (namespace, name) = split(&self.record.key.name);
            let value = |path: &str| match path {
                "metadata.name" => Some(Cow::Borrowed(name)),
                "metadata.namespace" => Some(Cow::Borrowed(namespace)),
                path => {
                    let at = self.resource.row.selectable.iter().position(|field| *field == path)?;
                    self.facts().fields.get(at)?.as_deref().map(Cow::Borrowed)
                }
            };
            if !fields.matches(value) {
                return false;
            }
        }
        labels.is_everything() || labels.matches(self.facts().labels.as_slice())
    }
}

impl Facts {
    fn of(resource: &Resource, object: &Value) -> Facts {
        let labels = object["metadata"]["labels"].as_object().into_iter().flatten();
        let strategy = resource.row.strategy;
        Facts {
            uid: meta::uid(object).to_owned(),
            deleting: meta::is_deleting(object),
            labels: labels.map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned())).collect(),
            fields: resource.row.selectable.iter().map(|path| strategy.field(object, path)).collect(),
        }
    }
}

/// Namespace and name of a record; the namespace of a cluster-wide one is empty.
pub(crate) fn split(record_name: &str) -> (&str, &str) {
    record_name.split_once('/').unwrap_or(("", record_name))
}
