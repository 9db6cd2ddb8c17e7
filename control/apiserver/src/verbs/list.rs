//! Lists: a snapshot, filtered, and its records' bytes spliced into one answer, a chunk at a time.

use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use coracle_api::status::Status;
use coracle_keyspace::{Record, Records, Revision};
use futures::stream;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::selection::{ListOptions, Match};
use super::token::Token;
use crate::catalog::Resource;
use crate::edge::call::Call;
use crate::edge::codec;
use crate::edge::negotiate::{self, Format, Offer, Shape};
use crate::edge::respond;
use crate::server::Shared;
use crate::store::{self, Seen};
use crate::table::{self, Include};
use crate::{metadata, store::object};

/// Bytes of an answer that are put together at a time.
const CHUNK_BYTES: usize = 512 << 10;

/// A list before it is encoded.
pub(crate) struct Page {
    pub revision: Revision,
    pub records: Vec<Arc<Record>>,
    pub next: Option<Token>,
    pub remaining: Option<usize>,
}

pub(crate) async fn list(server: &Shared, call: &Call, resource: &Arc<Resource>) -> Result<Response, Status> {
    let form = call.form(Offer::List)?;
    let options = ListOptions::of(call, resource, false)?;
    if let Shape::Metadata { .. } = form.shape {
        let kind = &resource.list_kind;
        let message = format!("you requested PartialObjectMetadata, but the requested object is a list (*core.{kind})");
        return Err(Status::failure(406, "NotAcceptable", message));
    }
    let include = Include::of(&call.query)?;
    let page = page(server, call, resource, &options).await?;
    Ok(encode(form, resource, page, include))
}

/// Reads what the options ask for.
pub(crate) async fn page(
    server: &Shared,
    call: &Call,
    resource: &Arc<Resource>,
    options: &ListOptions,
) -> Result<Page, Status> {
    let token = options.continue_token.as_deref().map(Token::decode).transpose()?;
    let (revision, records) = match &token {
        Some(token) => continued(server, resource, options, token).await?,
        None => begun(server, resource, options).await?,
    };
    let namespace = options.namespace(call, resource);
    let mut found = Vec::new();
    let mut rest = store::range(&records, namespace, token.as_ref().map(|token| token.after.as_str()));
    let mut next = None;
    let mut remaining = None;
    for (_, record) in rest.by_ref() {
        if !options.selects_all() && !Seen::new(resource, record).matches(&options.labels, &options.fields) {
            continue;
        }
        if options.limit > 0 && found.len() == options.limit {
            let last: &Arc<Record> = &found[found.len() - 1];
            next = Some(Token { revision: Some(revision), after: last.key.name.to_string() });
            break;
        }
        found.push(record.clone());
    }
    if next.is_some() && options.selects_all() {
        remaining = Some(rest.count() + 1);
    }
    Ok(Page { revision, records: found, next, remaining })
}

/// The state for the first page (kubernetes-api §10.2).
async fn begun(server: &Shared, resource: &Resource, options: &ListOptions) -> Result<(Revision, Records), Status> {
    let store = &server.store;
    let asked =
        options.revision().map_err(|error| Status::bad_request(format!("invalid resource version: {error}")))?;
    let exactly = options.version_match == Some(Match::Exact)
        || (options.version_match.is_none() && options.limit > 0 && asked.is_some_and(|revision| revision.get() > 0));
    match asked {
        None => {
            store.barrier().await?;
        }
        Some(revision) if revision.get() == 0 => {}
        Some(revision) => store.not_older_than(revision).await?,
    }
    let collection = resource.row.collection;
    if let (true, Some(revision)) = (exactly, asked) {
        let snapshot = store.keyspace.snapshot_at(collection, revision).map_err(|_| {
            Status::expired(format!("The resourceVersion for the provided list is too old: {revision}"))
        })?;
        return Ok((revision, snapshot.records));
    }
    let snapshot = store.keyspace.snapshot(collection);
    Ok((snapshot.revision, snapshot.records))
}

/// The state for a later page.
async fn continued(
    server: &Shared,
    resource: &Resource,
    options: &ListOptions,
    token: &Token,
) -> Result<(Revision, Records), Status> {
    if options.resource_version.as_deref().is_some_and(|version| version != "0") {
        return Err(Status::bad_request("specifying resource version is not allowed when using continue"));
    }
    let collection = resource.row.collection;
    let Some(revision) = token.revision else {
        server.store.barrier().await?;
        let snapshot = server.store.keyspace.snapshot(collection);
        return Ok((snapshot.revision, snapshot.records));
    };
    server.store.not_older_than(revision).await?;
    let snapshot = server.store.keyspace.snapshot_at(collection, revision).map_err(|_| {
        let fresh = Token { revision: None, after: token.after.clone() };
        Status::expired_continue(
            "The provided continue parameter is too old to display a consistent list result. You can start a new list \
             without the continue parameter, or use the continue token in this response to retrieve the remainder of \
             the results. Continuing with the provided token results in an inconsistent list - objects that were \
             created, modified, or deleted between the time the first chunk was returned and now may show up in the \
             list.",
            fresh.encode(),
        )
    })?;
    Ok((revision, snapshot.records))
}

/// The answer for a page.
pub(crate) fn encode(form: negotiate::Form, resource: &Arc<Resource>, page: Page, include: Include) -> Response {
    let mut list_metadata = json!({"resourceVersion": page.revision.to_string()});
    if let Some(token) = &page.next {
        list_metadata["continue"] = token.encode().into();
    }
    if let Some(remaining) = page.remaining {
        list_metadata["remainingItemCount"] = remaining.into();
    }
    if form.format == Format::Protobuf {
        return protobuf(form.shape, resource, &page.records, &list_metadata);
    }
    let splice = Splice::new(form.shape, resource.clone(), include, &list_metadata);
    if form.format == Format::Yaml || form.pretty {
        let mut whole = splice.head.clone();
        splice.rows(&page.records, &mut whole);
        whole.extend_from_slice(splice.tail);
        return respond::json_text(form, 200, whole);
    }
    respond::bytes(200, negotiate::JSON, chunked(splice, page.records))
}

/// How the records of a list become JSON.
struct Splice {
    shape: Shape,
    resource: Arc<Resource>,
    include: Include,
    head: Vec<u8>,
    tail: &'static [u8],
    now: Timestamp,
}

impl Splice {
    fn new(shape: Shape, resource: Arc<Resource>, include: Include, list_metadata: &Value) -> Splice {
        let mut head = Vec::with_capacity(1024);
        let list_metadata = list_metadata.to_string();
        let mut begin = |kind: &str, api_version: &str| {
            head.extend_from_slice(
                format!(
                    "{{\"kind\":\"{kind}\",\"apiVersion\":\"{api_version}\",\"metadata\":{list_metadata},\"items\":["
                )
                .as_bytes(),
            );
        };
        let tail: &[u8] = match shape {
            Shape::Whole => {
                begin(&resource.list_kind, &resource.api_version);
                b"]}\n"
            }
            Shape::Metadata { beta } | Shape::MetadataList { beta } => {
                begin("PartialObjectMetadataList", metadata::api_version(beta));
                b"]}\n"
            }
            Shape::Table { beta } => {
                table::begin(&mut head, Some(&table::columns(&resource)), list_metadata.as_bytes(), beta);
                table::END
            }
        };
        Splice { shape, resource, include, head, tail, now: Timestamp::now() }
    }

    fn row(&self, record: &Arc<Record>, out: &mut Vec<u8>) {
        let seen = Seen::new(&self.resource, record);
        match self.shape {
            Shape::Whole => {
                let json = seen.json();
                out.push(b'{');
                out.extend_from_slice(&json[object::item_start(&json)..]);
            }
            Shape::Metadata { beta } | Shape::MetadataList { beta } => metadata::write(out, &seen.metadata(), beta),
            Shape::Table { beta } => table::row(out, &seen, self.include, beta, self.now),
        }
    }

    fn rows(&self, records: &[Arc<Record>], out: &mut Vec<u8>) {
        for (at, record) in records.iter().enumerate() {
            if at > 0 {
                out.push(b',');
            }
            self.row(record, out);
        }
    }
}

/// The list as a body that is put together while it is sent.
fn chunked(splice: Splice, records: Vec<Arc<Record>>) -> Body {
    let size: usize = records.iter().take(64).map(|record| record.bytes.len()).sum();
    if records.len() <= 64 && size <= CHUNK_BYTES {
        let mut whole = Vec::with_capacity(splice.head.len() + size * 2 + 64);
        whole.extend_from_slice(&splice.head);
        splice.rows(&records, &mut whole);
        whole.extend_from_slice(splice.tail);
        return Body::from(whole);
    }
    let chunks = Chunks { splice, records, at: 0, begun: false, ended: false };
    Body::from_stream(stream::iter(chunks.map(Ok::<Bytes, std::convert::Infallible>)))
}

struct Chunks {
    splice: Splice,
    records: Vec<Arc<Record>>,
    at: usize,
    begun: bool,
    ended: bool,
}

impl Iterator for Chunks {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        if self.ended {
            return None;
        }
        let mut out = Vec::with_capacity(CHUNK_BYTES + (16 << 10));
        if !self.begun {
            self.begun = true;
            out.extend_from_slice(&self.splice.head);
        }
        while out.len() < CHUNK_BYTES {
            let Some(record) = self.records.get(self.at) else {
                out.extend_from_slice(self.splice.tail);
                self.ended = true;
                break;
            };
            if self.at > 0 {
                out.push(b',');
            }
            self.splice.row(record, &mut out);
            self.at += 1;
        }
        Some(Bytes::from(out))
    }
}

/// The list as protobuf: list metadata is field 1, items are field 2.
fn protobuf(shape: Shape, resource: &Arc<Resource>, records: &[Arc<Record>], list_metadata: &Value) -> Response {
    let partial = shape != Shape::Whole;
    let items: Vec<Bytes> = records
        .iter()
        .map(|record| {
            let seen = Seen::new(resource, record);
            if partial { seen.metadata_protobuf() } else { seen.protobuf() }
        })
        .collect();
    let (api_version, kind) = match shape {
        Shape::Metadata { beta } | Shape::MetadataList { beta } => {
            (metadata::api_version(beta), "PartialObjectMetadataList")
        }
        _ => (resource.api_version.as_str(), resource.list_kind.as_str()),
    };
    let body = codec::list(api_version, kind, list_metadata, &items);
    respond::bytes(200, negotiate::PROTOBUF, body)
}
