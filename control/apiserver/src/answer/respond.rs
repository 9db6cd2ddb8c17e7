//! Answers: an object, a status or bytes, in the form that was chosen.

use std::io::Write;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use coracle_api::codec::yaml;
use coracle_api::kinds::Row;
use coracle_api::schema;
use coracle_api::status::Status;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::{HeaderValue, StatusCode, header};
use serde_json::Value;

use super::{metadata, pieces, table};
use crate::request::codec;
use crate::request::negotiate::{self, Form, Format, Shape};
use crate::store::Seen;

/// An answer of bytes.
pub(crate) fn bytes(code: u16, content_type: &'static str, bytes: impl Into<Body>) -> Response {
    let mut response = Response::new(bytes.into());
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// An answer without a body.
pub(crate) fn nothing(code: StatusCode) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = code;
    response
}

/// An answer of plain text.
pub(crate) fn text(code: u16, text: impl Into<String>) -> Response {
    let mut response = bytes(code, "text/plain; charset=utf-8", text.into());
    response.headers_mut().insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    response
}

/// A stored object.
pub(crate) fn record(form: Form, code: u16, seen: &Seen<'_>, include: table::Include) -> Result<Response, Status> {
    seen.check_readable()?;
    match (form.shape, form.format) {
        (Shape::Whole, Format::Json) => Ok(json_text(form, code, seen.json())),
        (Shape::Whole, Format::Protobuf) => {
            let resource = seen.resource;
            let body = codec::envelope(&resource.api_version, resource.row.kind(), &seen.protobuf());
            Ok(bytes(code, negotiate::PROTOBUF, body))
        }
        (Shape::Whole, _) => Ok(value(form, code, &seen.value()?)),
        (Shape::Table { beta }, _) => Ok(json_text(form, code, table::one(seen, include, beta))),
        (Shape::Metadata { beta }, Format::Protobuf) => {
            let body = codec::envelope(metadata::api_version(beta), metadata::KIND, &seen.metadata_protobuf());
            Ok(bytes(code, negotiate::PROTOBUF, body))
        }
        (Shape::Metadata { beta }, _) => Ok(json_text(form, code, metadata::object(seen, beta))),
        (Shape::MetadataList { .. }, _) => Err(not_a_list(&seen.resource.row)),
    }
}

/// An object that is not stored as it is shown: of a dry run, of a subresource.
pub(crate) fn object(
    form: Form,
    code: u16,
    resource: &crate::catalog::Resource,
    object: &Value,
    include: table::Include,
) -> Result<Response, Status> {
    shaped(form, code, &resource.row, object, |beta| table::of_value(resource, object, include, beta, true))
}

/// The same of an object whose table is made in a way of its own.
pub(crate) fn shaped(
    form: Form,
    code: u16,
    row: &Row,
    object: &Value,
    table: impl FnOnce(bool) -> Vec<u8>,
) -> Result<Response, Status> {
    match form.shape {
        Shape::Whole => Ok(value(form, code, object)),
        Shape::Table { beta } => Ok(json_text(form, code, table(beta))),
        Shape::Metadata { beta } => {
            let partial = serde_json::json!({
                "apiVersion": metadata::api_version(beta), "kind": metadata::KIND, "metadata": object["metadata"],
            });
            Ok(value(Form { shape: Shape::Whole, ..form }, code, &partial))
        }
        Shape::MetadataList { .. } => Err(not_a_list(row)),
    }
}

/// How the reference calls its own types of a group, in errors: `apps` in `*apps.Deployment`.
pub(crate) fn package(group: &str) -> &str {
    match group {
        "" | "events.k8s.io" => "core",
        group => group.split('.').next().unwrap_or(group),
    }
}

fn not_a_list(row: &Row) -> Status {
    let (package, kind) = (package(row.group()), row.kind());
    let message =
        format!("you requested PartialObjectMetadataList, but the requested object is not a list (*{package}.{kind})");
    Status::failure(406, "NotAcceptable", message)
}

/// An object of a known type; in JSON where protobuf does not know it.
pub(crate) fn value(form: Form, code: u16, value: &Value) -> Response {
    if form.format == Format::Protobuf {
        let (api_version, kind) =
            (value["apiVersion"].as_str().unwrap_or_default(), value["kind"].as_str().unwrap_or_default());
        if let Some(schema) = schema_of(api_version, kind) {
            let body = codec::envelope(api_version, kind, &codec::message(value, &schema));
            return bytes(code, negotiate::PROTOBUF, body);
        }
    }
    json_text(form, code, crate::store::object::encode_final(value))
}

/// The type of a kind by its group and version: for what the generic path does not store.
fn schema_of(api_version: &str, kind: &str) -> Option<std::sync::Arc<schema::Object>> {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    schema::of_kind(group, version, kind)
}

/// Bytes that are JSON, as the form wants them.
pub(crate) fn json_text(form: Form, code: u16, json: impl Into<Bytes>) -> Response {
    let json = json.into();
    match (form.format, form.pretty) {
        (Format::Yaml, _) => match coracle_api::codec::json::parse_cut(&json) {
            Ok((value, _)) => bytes(code, negotiate::YAML, yaml::from_json(&value)),
            Err(error) => status(Form::JSON, &Status::internal_error(format_args!("a stored object: {error}"))),
        },
        (_, true) => bytes(code, negotiate::JSON, pieces::indented(std::iter::once(json))),
        // The reference's encoder ends every answer with a line break, and clients compare text.
        _ if json.ends_with(b"\n") => bytes(code, negotiate::JSON, json),
        _ => {
            let mut text = Vec::with_capacity(json.len() + 1);
            text.extend_from_slice(&json);
            text.push(b'\n');
            bytes(code, negotiate::JSON, text)
        }
    }
}

/// A status, of errors and of some successes.
pub(crate) fn status(form: Form, status: &Status) -> Response {
    let form = Form { shape: Shape::Whole, ..form };
    let code = status.code();
    // Text, not a value: its fields are in the order of the type.
    let mut response = match form.format {
        Format::Protobuf => value(form, code, &serde_json::to_value(status).unwrap_or_default()),
        _ => json_text(form, code, serde_json::to_vec(status).unwrap_or_default()),
    };
    let retry_after = status.details.as_ref().map_or(0, |details| details.retry_after_seconds);
    if retry_after > 0 {
        response.headers_mut().insert(header::RETRY_AFTER, retry_after.into());
    }
    if matches!(code, 401 | 403) {
        response.headers_mut().insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    }
    // For the audit log, whatever the form is.
    response.extensions_mut().insert(status.clone());
    response
}

/// Compresses bytes at the level that costs least.
pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(bytes.len() / 8), Compression::fast());
    let written = encoder.write_all(bytes).and_then(|()| encoder.finish());
    written.expect("writing to memory does not fail")
}
