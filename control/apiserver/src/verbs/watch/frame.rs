//! Frames of a watch: one event in the form that the client asked for.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use coracle_api::status::Status;
use coracle_keyspace::{Event, EventKind, Revision};
use serde_json::{Value, json};

use crate::answer::metadata;
use crate::answer::table::{self, Include};
use crate::catalog::Resource;
use crate::request::codec;
use crate::request::negotiate::{Form, Format, Shape};
use crate::store::{Seen, object};

/// What a frame tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Added,
    Modified,
    Deleted,
    Bookmark,
    Error,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Added => "ADDED",
            Kind::Modified => "MODIFIED",
            Kind::Deleted => "DELETED",
            Kind::Bookmark => "BOOKMARK",
            Kind::Error => "ERROR",
        }
    }

    /// What an event is to somebody who sees every object.
    fn of(event: &Event) -> Kind {
        match (event.kind, &event.previous) {
            (EventKind::Delete, _) => Kind::Deleted,
            (EventKind::Put, Some(_)) => Kind::Modified,
            (EventKind::Put, None) => Kind::Added,
        }
    }
}

/// Encodes for one watcher.
pub(super) struct Encoder {
    form: Form,
    resource: Arc<Resource>,
    include: Include,
    /// Only the first frame of a table has its columns.
    columns_sent: bool,
}

impl Encoder {
    pub fn new(form: Form, resource: Arc<Resource>, include: Include) -> Encoder {
        Encoder { form, resource, include, columns_sent: false }
    }

    /// The form that the client asked for.
    pub fn form(&self) -> Form {
        self.form
    }

    /// The slot in which frames of this form are shared; rarer forms are encoded for each watcher.
    fn slot(&self, event: &Event) -> Option<usize> {
        // Whoever watches another version, or by another definition, may see something else.
        let differs = || !Seen::new(&self.resource, &event.record).is_as_stored();
        if self.resource.is_view || differs() {
            return None;
        }
        match (self.form.format, self.form.shape) {
            (Format::Json, Shape::Whole) => Some(0),
            (Format::Protobuf, Shape::Whole) => Some(1),
            (Format::Json, Shape::Metadata { beta: false }) => Some(2),
            (Format::Protobuf, Shape::Metadata { beta: false }) => Some(3),
            _ => None,
        }
    }

    /// The frame of an event as everybody sees it.
    pub fn event(&mut self, event: &Event) -> Bytes {
        let encode = |this: &mut Encoder| {
            let mut out = BytesMut::new();
            this.record(&mut out, Kind::of(event), &Seen::new(&this.resource.clone(), &event.record));
            out.freeze()
        };
        match self.slot(event) {
            Some(slot) => event.frame(slot, || encode(self)),
            None => encode(self),
        }
    }

    /// Appends the frame of a record.
    pub fn record(&mut self, out: &mut BytesMut, kind: Kind, seen: &Seen<'_>) {
        match (self.form.format, self.form.shape) {
            (Format::Protobuf, Shape::Metadata { beta }) => {
                let object = codec::envelope(metadata::api_version(beta), metadata::KIND, &seen.metadata_protobuf());
                codec::watch_frame(out, kind.name(), &object);
            }
            (Format::Protobuf, _) => {
                let row = &self.resource.row;
                let object = codec::envelope(&self.resource.api_version, row.kind(), &seen.protobuf());
                codec::watch_frame(out, kind.name(), &object);
            }
            (_, Shape::Whole) => json_frame(out, kind, &seen.json()),
            (_, Shape::Metadata { beta } | Shape::MetadataList { beta }) => {
                json_frame(out, kind, &metadata::object(seen, beta));
            }
            (_, Shape::Table { beta }) => {
                let with_columns = !std::mem::replace(&mut self.columns_sent, true);
                json_frame(out, kind, &table::single(seen, self.include, beta, with_columns));
            }
        }
    }

    /// The object left the selection: its last selected content, at the revision of the change.
    pub fn left(&mut self, previous: &Seen<'_>, revision: Revision) -> Bytes {
        let mut value = previous.value_or_nothing();
        value["metadata"]["resourceVersion"] = revision.to_string().into();
        self.value(Kind::Deleted, &value)
    }

    /// How far the watch is.
    pub fn bookmark(&mut self, revision: Revision, ends_initial: bool) -> Bytes {
        let mut object = json!({
            "kind": self.resource.row.kind(), "apiVersion": self.resource.api_version,
            "metadata": {"resourceVersion": revision.to_string()},
        });
        if ends_initial {
            object["metadata"]["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        self.value(Kind::Bookmark, &object)
    }

    /// An object that is no record.
    fn value(&mut self, kind: Kind, value: &Value) -> Bytes {
        let mut out = BytesMut::new();
        match (self.form.format, self.form.shape) {
            (Format::Protobuf, Shape::Metadata { beta }) => {
                let message = codec::partial_message(&value["metadata"]);
                let object = codec::envelope(metadata::api_version(beta), metadata::KIND, &message);
                codec::watch_frame(&mut out, kind.name(), &object);
            }
            (Format::Protobuf, _) => {
                let message = codec::message(value, &self.resource.schema);
                let object = codec::envelope(&self.resource.api_version, self.resource.row.kind(), &message);
                codec::watch_frame(&mut out, kind.name(), &object);
            }
            (_, Shape::Whole) => json_frame(&mut out, kind, &object::encode_final(value)),
            (_, Shape::Metadata { beta } | Shape::MetadataList { beta }) => {
                let mut text = Vec::new();
                metadata::write(&mut text, &value["metadata"].to_string().into(), beta);
                json_frame(&mut out, kind, &text);
            }
            (_, Shape::Table { beta }) => {
                let with_columns = !std::mem::replace(&mut self.columns_sent, true);
                let text = table::of_value(&self.resource, value, self.include, beta, with_columns);
                json_frame(&mut out, kind, &text);
            }
        }
        out.freeze()
    }

    /// The error that ends the stream.
    pub fn error(&self, status: &Status) -> Bytes {
        let mut out = BytesMut::new();
        let value = serde_json::to_value(status).unwrap_or_default();
        match self.form.format {
            Format::Protobuf => codec::watch_frame(&mut out, Kind::Error.name(), &codec::status(&value)),
            _ => json_frame(&mut out, Kind::Error, value.to_string().as_bytes()),
        }
        out.freeze()
    }
}

fn json_frame(out: &mut BytesMut, kind: Kind, object: &[u8]) {
    out.reserve(object.len() + 48);
    out.extend_from_slice(b"{\"type\":\"");
    out.extend_from_slice(kind.name().as_bytes());
    out.extend_from_slice(b"\",\"object\":");
    out.extend_from_slice(object);
    out.extend_from_slice(b"}\n");
}
