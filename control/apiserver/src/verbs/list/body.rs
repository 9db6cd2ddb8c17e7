//! The body of a list: bytes of its records, copied between a head and a tail while it is sent, a piece at a time.

use std::convert::Infallible;
use std::io;
use std::sync::{Arc, LazyLock};

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use coracle_api::codec::{json, yaml};
use coracle_keyspace::{Record, spawn_blocking};
use futures::stream;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::Page;
use crate::answer::metadata;
use crate::answer::pieces::{Holds, PIECE_BYTES, indented};
use crate::answer::respond;
use crate::answer::table::{self, Include};
use crate::catalog::Resource;
use crate::request::codec;
use crate::request::negotiate::{self, Form, Format, Shape};
use crate::store::{self, Seen, object};

/// References to a record and to its encoding.
const RECORD_BYTES: usize = 40;

/// Pieces that are made aside at a time: half of the processors, as for other heavy work (`layers/lanes.rs`).
static ASIDE: LazyLock<Semaphore> =
    LazyLock::new(|| Semaphore::new(std::thread::available_parallelism().map_or(1, |cores| cores.get().div_ceil(2))));

/// The answer for a page.
pub(crate) fn encode(form: Form, resource: &Arc<Resource>, page: Page, include: Include) -> Response {
    let mut list_metadata = json!({"resourceVersion": page.revision.to_string()});
    if let Some(token) = &page.next {
        list_metadata["continue"] = token.encode().into();
    }
    if let Some(remaining) = page.remaining {
        list_metadata["remainingItemCount"] = remaining.into();
    }
    let records = page.records;
    // A piece ends with a whole record, and there are two of them: one is made while the other is sent.
    let largest = records.iter().map(|record| record.bytes.len()).max().unwrap_or_default();
    let holds = Holds(records.len() * RECORD_BYTES + 2 * (PIECE_BYTES + largest) + page.held);
    if form.format == Format::Protobuf {
        let list = Protobuf::new(form.shape, resource.clone(), &records, &list_metadata);
        return holding(respond::bytes(200, negotiate::PROTOBUF, pieces(list, records)), holds);
    }
    let list = Json::new(form.shape, resource.clone(), include, &list_metadata, records.first());
    if records.is_empty() && matches!(form.shape, Shape::Table { .. }) && has_common_columns(resource) {
        let head = list.head.strip_suffix(b"[").unwrap_or(&list.head);
        return respond::json_text(form, 200, [head, b"null}"].concat());
    }
    // One that is empty says so, and is nothing to send in pieces.
    if form.format == Format::Yaml && records.is_empty() {
        return respond::json_text(form, 200, [list.head(), list.tail()].concat());
    }
    if form.format == Format::Yaml {
        return holding(respond::bytes(200, negotiate::YAML, aside(Yaml::new(list), records)), holds);
    }
    let body = if form.pretty { indented(Pieces::new(list, records)) } else { pieces(list, records) };
    holding(respond::bytes(200, negotiate::JSON, body), holds)
}

/// Whether the reference makes the tables of a kind as those of any kind: without a list when nothing is in it.
fn has_common_columns(resource: &Resource) -> bool {
    resource.row.built_in().is_some_and(|row| row.columns.iter().any(|column| column.name == "Created At"))
}

/// Says what an answer holds that is made while it is sent: references to records, which are the store's.
fn holding(mut response: Response, holds: Holds) -> Response {
    response.extensions_mut().insert(holds);
    response
}

/// Whether records are written as they are stored.
pub(crate) fn is_plain(form: Form, resource: &Resource) -> bool {
    form.format != Format::Protobuf && form.shape == Shape::Whole && !resource.is_view && resource.custom.is_none()
}

/// Computes of long lists what their form needs and no list before needed.
pub(crate) async fn warm(form: Form, resource: &Arc<Resource>, records: &[Arc<Record>]) {
    if is_plain(form, resource) {
        return;
    }
    let compute = move |seen: &Seen<'_>| {
        match (form.format, form.shape) {
            (Format::Protobuf, Shape::Whole) => {
                seen.protobuf();
            }
            (Format::Protobuf, _) => {
                seen.metadata_protobuf();
            }
            (_, Shape::Whole) if seen.resource.custom.is_some() => {
                seen.is_plain();
            }
            (_, Shape::Whole) => {
                seen.json();
            }
            (_, Shape::Table { .. }) => {
                seen.row();
                seen.metadata_range();
            }
            (_, Shape::Metadata { .. } | Shape::MetadataList { .. }) => {
                seen.metadata_range();
            }
        };
    };
    store::warm(resource, records, compute).await;
}

/// How the records of a list are written.
trait List: Send + 'static {
    fn head(&self) -> &[u8];
    fn row(&self, at: usize, record: &Arc<Record>, out: &mut Vec<u8>);
    fn tail(&self) -> &[u8];
}

fn pieces(list: impl List, records: Vec<Arc<Record>>) -> Body {
    let mut pieces = Pieces::new(list, records);
    let first = pieces.next().unwrap_or_default();
    if pieces.ended {
        // A short answer has a length.
        return Body::from(first);
    }
    Body::from_stream(stream::iter(std::iter::once(first).chain(pieces).map(Ok::<Bytes, Infallible>)))
}

/// The same of what takes long to write: each piece is made where nobody waits behind it.
fn aside(list: impl List, records: Vec<Arc<Record>>) -> Body {
    let pieces = Pieces::new(list, records);
    let next = |pieces: Option<Pieces<_>>| async move {
        let mut pieces = pieces?;
        let turn = ASIDE.acquire().await.expect("nobody closes it");
        let work = move || {
            // Held until it is made, also when the client has gone.
            let _turn = turn;
            pieces.next().map(|piece| (piece, pieces))
        };
        let made = spawn_blocking(work).await;
        match made {
            Ok(made) => made.map(|(piece, pieces)| (Ok(piece), Some(pieces))),
            // The answer ends here, as one that was cut off.
            Err(error) => Some((Err(io::Error::other(error)), None)),
        }
    };
    Body::from_stream(stream::unfold(Some(pieces), next))
}

struct Pieces<L> {
    list: L,
    records: Vec<Arc<Record>>,
    at: usize,
    begun: bool,
    ended: bool,
}

impl<L: List> Pieces<L> {
    fn new(list: L, records: Vec<Arc<Record>>) -> Pieces<L> {
        Pieces { list, records, at: 0, begun: false, ended: false }
    }
}

impl<L: List> Iterator for Pieces<L> {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        if self.ended {
            return None;
        }
        let left: usize = self.records[self.at..].iter().take(32).map(|record| record.bytes.len() + 64).sum();
        let mut out = Vec::with_capacity(left.clamp(1 << 10, PIECE_BYTES) + (8 << 10));
        if !self.begun {
            self.begun = true;
            out.extend_from_slice(self.list.head());
        }
        while out.len() < PIECE_BYTES {
            let Some(record) = self.records.get(self.at) else {
                out.extend_from_slice(self.list.tail());
                self.ended = true;
                break;
            };
            self.list.row(self.at, record, &mut out);
            self.at += 1;
        }
        Some(Bytes::from(out))
    }
}

struct Json {
    shape: Shape,
    resource: Arc<Resource>,
    include: Include,
    head: Vec<u8>,
    /// How the first record begins, up to and with the name of its metadata.
    item_head: Bytes,
    now: Timestamp,
}

impl Json {
    fn new(
        shape: Shape,
        resource: Arc<Resource>,
        include: Include,
        list_metadata: &Value,
        first: Option<&Arc<Record>>,
    ) -> Json {
        let mut head = Vec::with_capacity(1024);
        let list_metadata = list_metadata.to_string();
        let mut begin = |kind: &str, api_version: &str| {
            let text = format!(
                "{{\"kind\":\"{kind}\",\"apiVersion\":\"{api_version}\",\"metadata\":{list_metadata},\"items\":["
            );
            head.extend_from_slice(text.as_bytes());
        };
        match shape {
            Shape::Whole => begin(&resource.list_kind, &resource.api_version),
            Shape::Metadata { beta } | Shape::MetadataList { beta } => {
                begin("PartialObjectMetadataList", metadata::api_version(beta));
            }
            Shape::Table { beta } => {
                table::begin(&mut head, Some(&table::columns(&resource)), list_metadata.as_bytes(), beta);
            }
        }
        let item_head = first.and_then(|first| {
            let end = object::item_start(&first.bytes) + object::METADATA.len();
            (end <= first.bytes.len()).then(|| first.bytes.slice(..end))
        });
        Json { shape, resource, include, head, item_head: item_head.unwrap_or_default(), now: Timestamp::now() }
    }
}

impl List for Json {
    fn head(&self) -> &[u8] {
        &self.head
    }

    fn row(&self, at: usize, record: &Arc<Record>, out: &mut Vec<u8>) {
        if at > 0 {
            out.push(b',');
        }
        // The commonest case looks at nothing but the bytes. Items say no kind: the list says it for all. What is before the
        // metadata is the same in all of them.
        if self.shape == Shape::Whole && !self.resource.is_view && self.resource.custom.is_none() {
            out.push(b'{');
            let start = match record.bytes.starts_with(&self.item_head) {
                true if !self.item_head.is_empty() => self.item_head.len() - object::METADATA.len(),
                _ => object::item_start(&record.bytes),
            };
            out.extend_from_slice(&record.bytes[start..]);
            return;
        }
        let seen = Seen::new(&self.resource, record);
        match self.shape {
            Shape::Whole => seen.write_item(out),
            Shape::Metadata { beta } | Shape::MetadataList { beta } => metadata::write(out, &seen.metadata(), beta),
            Shape::Table { beta } => table::row(out, &seen, self.include, beta, self.now),
        }
    }

    fn tail(&self) -> &[u8] {
        if matches!(self.shape, Shape::Table { .. }) { table::END } else { b"]}\n" }
    }
}

/// The same as YAML, which sorts the fields: a record at a time, as the item of a list that it alone is in.
struct Yaml {
    json: Json,
    head: String,
    tail: String,
}

impl Yaml {
    fn new(json: Json) -> Yaml {
        let empty = json::parse(&[json.head(), json.tail()].concat()).unwrap_or_default();
        let whole = yaml::from_json(&empty);
        let name = if empty.get("rows").is_some() { "rows" } else { "items" };
        let (before, after) = whole.split_once(&format!("\n{name}: []\n")).unwrap_or((&whole, ""));
        Yaml { head: format!("{before}\n{name}:\n"), tail: after.to_owned(), json }
    }
}

impl List for Yaml {
    fn head(&self) -> &[u8] {
        self.head.as_bytes()
    }

    fn row(&self, _at: usize, record: &Arc<Record>, out: &mut Vec<u8>) {
        let mut item = Vec::with_capacity(record.bytes.len() + 64);
        self.json.row(0, record, &mut item);
        // One that is damaged is nothing there, as in other forms.
        let item = json::parse_cut(&item).map(|(item, _)| item).unwrap_or_else(|error| {
            let (collection, name) = (&record.key.collection, &record.key.name);
            tracing::error!("the stored bytes of {collection} {name} cannot be read: {error}");
            Value::Null
        });
        out.extend_from_slice(yaml::from_json(&Value::Array(vec![item])).as_bytes());
    }

    fn tail(&self) -> &[u8] {
        self.tail.as_bytes()
    }
}

/// List metadata is field 1, items are field 2. The length of all comes first, so every message is made before the first
/// byte is sent; they stay with their records.
struct Protobuf {
    head: Vec<u8>,
    messages: Vec<Bytes>,
}

impl Protobuf {
    fn new(shape: Shape, resource: Arc<Resource>, records: &[Arc<Record>], list_metadata: &Value) -> Protobuf {
        let (api_version, kind) = match shape {
            Shape::Metadata { beta } | Shape::MetadataList { beta } => {
                (metadata::api_version(beta).to_owned(), "PartialObjectMetadataList".to_owned())
            }
            _ => (resource.api_version.clone(), resource.list_kind.clone()),
        };
        let message = |record| {
            let seen = Seen::new(&resource, record);
            if shape == Shape::Whole { seen.protobuf() } else { seen.metadata_protobuf() }
        };
        let messages: Vec<Bytes> = records.iter().map(message).collect();
        let size = messages.iter().map(|message| codec::item_size(message.len())).sum();
        Protobuf { head: codec::list_head(&api_version, &kind, list_metadata, size), messages }
    }
}

impl List for Protobuf {
    fn head(&self) -> &[u8] {
        &self.head
    }

    fn row(&self, at: usize, _record: &Arc<Record>, out: &mut Vec<u8>) {
        if let Some(message) = self.messages.get(at) {
            codec::list_item(out, message);
        }
    }

    fn tail(&self) -> &[u8] {
        codec::LIST_TAIL
    }
}
