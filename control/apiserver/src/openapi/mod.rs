//! OpenAPI: the types and paths of the API as documents (kubernetes-api §3). They are made from the rows and the schema
//! table when they are first asked for, and kept compressed: one large document is asked for rarely.

mod descriptions;
mod operations;
mod v2;
mod v3;

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::{Arc, OnceLock};

use axum::body::Body;
use axum::response::Response;
use bytes::{Buf, Bytes};
use coracle_api::status::Status;
use flate2::bufread::GzDecoder;
use http::{HeaderValue, header};
use parking_lot::Mutex;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::answer::pieces::{self, Holds, PIECE_BYTES};
use crate::answer::respond;
use crate::discovery::Discovery;
use crate::request::call::Call;
use crate::request::negotiate::{self, essence};

const V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
const V2_PROTOBUF_AT: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";

/// A document, compressed.
#[derive(Clone)]
struct Document {
    gzip: Bytes,
    /// Bytes of the content.
    size: usize,
    /// Of the content, in hexadecimal.
    hash: Arc<str>,
}

impl Document {
    fn new(content: &[u8]) -> Document {
        let hash: String = Sha256::digest(content).iter().map(|byte| format!("{byte:02X}")).collect();
        Document { gzip: Bytes::from(respond::gzip(content)), size: content.len(), hash: hash.into() }
    }

    /// The content, inflated while it is sent.
    fn content(&self) -> Body {
        let mut inflating = GzDecoder::new(self.gzip.clone().reader());
        let piece = move || {
            let mut piece = Vec::with_capacity(PIECE_BYTES);
            // What was compressed here can be read back.
            inflating.by_ref().take(PIECE_BYTES as u64).read_to_end(&mut piece).ok()?;
            (!piece.is_empty()).then(|| Bytes::from(piece))
        };
        pieces::exact(std::iter::from_fn(piece), self.size)
    }
}

/// The documents that were made so far.
#[derive(Default)]
pub(crate) struct OpenApi {
    v2: OnceLock<(Document, Document)>,
    v3: OnceLock<BTreeMap<String, OnceLock<Document>>>,
    /// Making a document takes a moment and some memory: one at a time.
    making: Mutex<()>,
}

impl OpenApi {
    /// Whether `/openapi/v2` needs no making any more.
    pub fn has_v2(&self) -> bool {
        self.v2.get().is_some()
    }

    /// The same of a document below `/openapi/v3`, or of all of them, which the list needs.
    pub fn has_v3(&self, name: &str) -> bool {
        self.v3.get().is_some_and(|documents| match name {
            "" => documents.values().all(|document| document.get().is_some()),
            name => documents.get(name).is_none_or(|document| document.get().is_some()),
        })
    }
}

/// `/openapi/v2`, as JSON or as gnostic's protobuf.
pub(crate) fn v2(openapi: &OpenApi, discovery: &Discovery, call: &Call) -> Result<Response, Status> {
    let accept = call.accept().unwrap_or_default();
    let clauses: Vec<&str> = accept.split(',').map(essence).filter(|clause| !clause.is_empty()).collect();
    let protobuf = match clauses.iter().find_map(|clause| match *clause {
        negotiate::JSON | "*/*" | "application/*" => Some(false),
        V2_PROTOBUF | V2_PROTOBUF_AT => Some(true),
        _ => None,
    }) {
        Some(protobuf) => protobuf,
        None if clauses.is_empty() => false,
        None => return Err(Status::not_acceptable(&[negotiate::JSON, V2_PROTOBUF])),
    };
    let make = || {
        let _one = openapi.making.lock();
        openapi
            .v2
            .get_or_init(|| {
                let document = v2::document(discovery);
                let protobuf = v2::gnostic::document(&document);
                (Document::new(document.to_string().as_bytes()), Document::new(&protobuf))
            })
            .clone()
    };
    let (json, gnostic) = openapi.v2.get().cloned().unwrap_or_else(make);
    let (document, content_type) = if protobuf { (gnostic, V2_PROTOBUF) } else { (json, negotiate::JSON) };
    Ok(send(call, &document, content_type))
}

/// `/openapi/v3` and the documents below it.
pub(crate) fn v3(openapi: &OpenApi, discovery: &Discovery, call: &Call, name: &str) -> Result<Response, Status> {
    let documents =
        openapi.v3.get_or_init(|| v3::names(discovery).into_iter().map(|name| (name, OnceLock::new())).collect());
    let document = |name: &str| {
        let slot = documents.get(name)?;
        if let Some(known) = slot.get() {
            return Some(known.clone());
        }
        let _one = openapi.making.lock();
        Some(slot.get_or_init(|| Document::new(v3::document(discovery, name).to_string().as_bytes())).clone())
    };
    if name.is_empty() {
        let paths: BTreeMap<&str, Value> = documents
            .keys()
            .filter_map(|name| {
                let url = format!("/openapi/v3/{name}?hash={}", document(name)?.hash);
                Some((name.as_str(), json!({ "serverRelativeURL": url })))
            })
            .collect();
        return Ok(respond::bytes(200, negotiate::JSON, json!({ "paths": paths }).to_string()));
    }
    let Some(document) = document(name) else { return Ok(respond::text(404, "404 page not found\n")) };
    match call.query.text("hash") {
        Some(hash) if hash == &*document.hash => {
            let mut response = send(call, &document, negotiate::JSON);
            let headers = response.headers_mut();
            headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("public, immutable"));
            let year =
                jiff::Timestamp::now().checked_add(jiff::SignedDuration::from_hours(24 * 365)).unwrap_or_default();
            let expires = jiff::fmt::rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&year).ok();
            if let Some(value) = expires.and_then(|text| HeaderValue::from_str(&text).ok()) {
                headers.insert(header::EXPIRES, value);
            }
            Ok(response)
        }
        Some(_) => {
            let mut response = respond::text(301, "");
            let location = format!("/openapi/v3/{name}?hash={}", document.hash);
            if let Ok(location) = HeaderValue::from_str(&location) {
                response.headers_mut().insert(header::LOCATION, location);
            }
            Ok(response)
        }
        None => Ok(send(call, &document, negotiate::JSON)),
    }
}

fn send(call: &Call, document: &Document, content_type: &'static str) -> Response {
    let etag = format!("\"{}\"", document.hash);
    if call.header(header::IF_NONE_MATCH) == Some(&etag) {
        return respond::bytes(304, content_type, Bytes::new());
    }
    let compressed = call.header(header::ACCEPT_ENCODING).is_some_and(|accepted| accepted.contains("gzip"));
    let body = if compressed { Body::from(document.gzip.clone()) } else { document.content() };
    let mut response = respond::bytes(200, content_type, body);
    // The document itself is everybody's.
    response.extensions_mut().insert(Holds(2 * PIECE_BYTES));
    let headers = response.headers_mut();
    if compressed {
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    if let Ok(etag) = HeaderValue::from_str(&etag) {
        headers.insert(header::ETAG, etag);
    }
    headers.insert(header::VARY, HeaderValue::from_static("Accept, Accept-Encoding"));
    response
}
