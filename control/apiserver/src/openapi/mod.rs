//! OpenAPI: the types and paths of the API as documents (kubernetes-api §3). They are made from the rows and the schema
//! table when they are first asked for, and kept compressed: one large document is asked for rarely.

mod custom;
mod descriptions;
mod operations;
mod v2;
mod v3;

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use bytes::{Buf, Bytes};
use coracle_api::status::Status;
use flate2::bufread::GzDecoder;
use http::{HeaderValue, StatusCode, header};
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

/// The documents that were made so far, and of what.
#[derive(Default)]
pub(crate) struct OpenApi {
    v2: Mutex<Option<(u64, (Document, Document))>>,
    v3: Mutex<BTreeMap<String, (u64, Document)>>,
    /// Making a document takes a moment and some memory: one at a time.
    making: Mutex<()>,
}

impl OpenApi {
    fn known_v2(&self, of: u64) -> Option<(Document, Document)> {
        self.v2.lock().as_ref().filter(|(known, _)| *known == of).map(|(_, documents)| documents.clone())
    }

    fn known_v3(&self, name: &str, of: u64) -> Option<Document> {
        self.v3.lock().get(name).filter(|(known, _)| *known == of).map(|(_, document)| document.clone())
    }

    /// Whether `/openapi/v2` needs no making any more.
    pub fn has_v2(&self, discovery: &Discovery) -> bool {
        self.known_v2(v3::content(discovery, None)).is_some()
    }

    /// The same of a document below `/openapi/v3`, or of all of them, which the list needs.
    pub fn has_v3(&self, discovery: &Discovery, name: &str) -> bool {
        let names = v3::names(discovery);
        let has = |name: &String| self.known_v3(name, v3::content(discovery, Some(name))).is_some();
        match name {
            "" => names.iter().all(has),
            name => names.iter().filter(|known| *known == name).all(has),
        }
    }

    /// Forgets what is not served any more.
    fn retain(&self, names: &[String]) {
        self.v3.lock().retain(|known, _| names.contains(known));
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
    let of = v3::content(discovery, None);
    let make = || {
        let _one = openapi.making.lock();
        openapi.known_v2(of).unwrap_or_else(|| {
            let document = v2::document(discovery);
            let protobuf = v2::gnostic::document(&document);
            let made = (Document::new(document.to_string().as_bytes()), Document::new(&protobuf));
            *openapi.v2.lock() = Some((of, made.clone()));
            made
        })
    };
    let (json, gnostic) = openapi.known_v2(of).unwrap_or_else(make);
    let (document, content_type) = if protobuf { (gnostic, V2_PROTOBUF) } else { (json, negotiate::JSON) };
    Ok(send(call, &document, content_type))
}

/// `/openapi/v3` and the documents below it.
pub(crate) fn v3(openapi: &OpenApi, discovery: &Discovery, call: &Call, name: &str) -> Result<Response, Status> {
    let names = v3::names(discovery);
    let document = |name: &str| {
        if names.iter().all(|known| known != name) {
            return None;
        }
        let of = v3::content(discovery, Some(name));
        if let Some(known) = openapi.known_v3(name, of) {
            return Some(known);
        }
        let _one = openapi.making.lock();
        Some(openapi.known_v3(name, of).unwrap_or_else(|| {
            let made = Document::new(v3::document(discovery, name).to_string().as_bytes());
            openapi.v3.lock().insert(name.to_owned(), (of, made.clone()));
            made
        }))
    };
    if name.is_empty() {
        openapi.retain(&names);
        let own = names.iter().filter_map(|name| Some((name.clone(), document(name)?.hash.to_string())));
        let remote = discovery.groups.iter().flat_map(|group| {
            group.versions.iter().filter_map(move |version| {
                let hash = version.remote.as_ref()?.v3_hash.clone()?;
                Some((format!("apis/{}/{}", group.name, version.version), hash))
            })
        });
        let paths: BTreeMap<String, Value> = own
            .chain(remote)
            .map(|(name, hash)| {
                let query = if hash.is_empty() { String::new() } else { format!("?hash={hash}") };
                let url = format!("/openapi/v3/{name}{query}");
                (name, json!({ "serverRelativeURL": url }))
            })
            .collect();
        return Ok(respond::bytes(200, negotiate::JSON, json!({ "paths": paths }).to_string()));
    }
    let Some(document) = document(name) else { return Ok(respond::nothing(StatusCode::NOT_FOUND)) };
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
