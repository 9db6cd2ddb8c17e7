//! What a client is told when something is wrong: the distribution specification's codes and JSON bodies.

use std::io;

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde_json::{Value, json};

use crate::catalog::CatalogError;
use crate::name::NameError;
use crate::replicas::NotHeld;

/// A refusal.
#[derive(Debug)]
pub struct Refusal {
    status: StatusCode,
    code: &'static str,
    message: String,
    detail: Value,
    /// The upload's range, where the client should go on.
    range: Option<u64>,
}

impl Refusal {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Refusal {
        Refusal { status, code, message: message.into(), detail: Value::Null, range: None }
    }

    fn detail(mut self, detail: Value) -> Refusal {
        self.detail = detail;
        self
    }

    /// No such blob in this repository.
    pub fn blob_unknown(digest: &str) -> Refusal {
        Refusal::new(StatusCode::NOT_FOUND, "BLOB_UNKNOWN", "blob unknown to registry")
            .detail(json!({"digest": digest}))
    }

    /// No such upload.
    pub fn upload_unknown() -> Refusal {
        let message = "this upload is not known, any more or at all; begin it again";
        Refusal::new(StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN", message)
    }

    /// The upload is not where the client thinks it is.
    pub fn upload_range(offset: u64) -> Refusal {
        let message = "the chunk does not begin where the last one ended";
        let refusal = Refusal::new(StatusCode::RANGE_NOT_SATISFIABLE, "BLOB_UPLOAD_INVALID", message);
        Refusal { range: Some(offset), ..refusal }
    }

    /// Something about the upload is wrong.
    pub fn upload_invalid(message: impl Into<String>) -> Refusal {
        Refusal::new(StatusCode::BAD_REQUEST, "BLOB_UPLOAD_INVALID", message)
    }

    /// The content has another digest.
    pub fn digest_differs(is: &str) -> Refusal {
        let message = "the provided digest did not match the uploaded content";
        Refusal::new(StatusCode::BAD_REQUEST, "DIGEST_INVALID", message).detail(json!({"computed": is}))
    }

    /// The digest cannot be read.
    pub fn digest_missing() -> Refusal {
        Refusal::new(StatusCode::BAD_REQUEST, "DIGEST_INVALID", "the query parameter digest is missing")
    }

    /// The content is too large.
    pub fn too_large(limit: u64) -> Refusal {
        let message = format!("at most {limit} bytes are taken");
        Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "SIZE_INVALID", message)
    }

    /// The manifest is none.
    pub fn manifest_invalid(message: impl Into<String>) -> Refusal {
        Refusal::new(StatusCode::BAD_REQUEST, "MANIFEST_INVALID", message)
    }

    /// The manifest names a blob that is not there.
    pub fn manifest_blob_unknown(digest: &str) -> Refusal {
        let message = "manifest references a manifest or blob unknown to registry";
        Refusal::new(StatusCode::NOT_FOUND, "MANIFEST_BLOB_UNKNOWN", message).detail(json!({"digest": digest}))
    }

    /// No such manifest.
    pub fn manifest_unknown(reference: &str) -> Refusal {
        Refusal::new(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN", "manifest unknown to registry")
            .detail(json!({"reference": reference}))
    }

    /// No such repository.
    pub fn name_unknown(name: &str) -> Refusal {
        Refusal::new(StatusCode::NOT_FOUND, "NAME_UNKNOWN", "repository name not known to registry")
            .detail(json!({"name": name}))
    }

    /// No such path.
    pub fn not_found() -> Refusal {
        Refusal::new(StatusCode::NOT_FOUND, "UNSUPPORTED", "no such path in the distribution specification")
    }

    /// No such method there.
    pub fn method() -> Refusal {
        Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", "the operation is unsupported here")
    }

    /// The requested range of the blob is beyond it.
    pub fn blob_range() -> Refusal {
        Refusal::new(StatusCode::RANGE_NOT_SATISFIABLE, "UNSUPPORTED", "the range lies beyond the blob")
    }

    /// Too many uploads.
    pub fn too_many_uploads() -> Refusal {
        let message = "too many uploads are under way; try again when one of them is done";
        Refusal::new(StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS", message)
    }

    /// Too many manifests.
    pub fn too_many_manifests() -> Refusal {
        let message = "too many manifests are being received; try again when one of them is done";
        Refusal::new(StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS", message)
    }

    /// The disk is full.
    pub fn full() -> Refusal {
        Refusal::new(StatusCode::INSUFFICIENT_STORAGE, "UNKNOWN", "the registry's disk is full")
    }

    /// Whether it is because the disk is full.
    pub fn is_full(&self) -> bool {
        self.status == StatusCode::INSUFFICIENT_STORAGE
    }

    /// Others are needed that cannot be reached now.
    pub fn unavailable(message: impl Into<String>) -> Refusal {
        Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "UNKNOWN", message)
    }

    /// Too few servers hold what was pushed.
    pub fn not_held(have: usize, needed: usize, failed: &[(u64, NotHeld)]) -> Refusal {
        let is_full = failed.iter().any(|(_, why)| matches!(why, NotHeld::Full(_)));
        let each =
            failed.iter().map(|(member, NotHeld::Full(why) | NotHeld::Other(why))| format!("server {member}: {why}"));
        let each: Vec<String> = each.collect();
        let message = format!(
            "what was pushed is on the disk of {have} of {needed} servers that are needed ({}): push again when they can take it",
            each.join("; ")
        );
        let status = if is_full { StatusCode::INSUFFICIENT_STORAGE } else { StatusCode::SERVICE_UNAVAILABLE };
        Refusal::new(status, "UNKNOWN", message)
    }

    /// What it says to people.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The client sent nothing for too long, or ended too early.
    pub fn body(message: impl Into<String>) -> Refusal {
        Refusal::new(StatusCode::BAD_REQUEST, "BLOB_UPLOAD_INVALID", message)
    }
}

impl From<NameError> for Refusal {
    fn from(error: NameError) -> Refusal {
        let code = match error {
            NameError::Repository => "NAME_INVALID",
            NameError::Tag => "TAG_INVALID",
            NameError::Digest => "DIGEST_INVALID",
        };
        Refusal::new(StatusCode::BAD_REQUEST, code, error.to_string())
    }
}

impl From<CatalogError> for Refusal {
    fn from(error: CatalogError) -> Refusal {
        let (status, code) = match &error {
            CatalogError::Condition | CatalogError::Recounted | CatalogError::Unavailable(_) => {
                (StatusCode::SERVICE_UNAVAILABLE, "UNKNOWN")
            }
            CatalogError::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "SIZE_INVALID"),
            CatalogError::NoRoom(_) => (StatusCode::INSUFFICIENT_STORAGE, "UNKNOWN"),
            CatalogError::Unknown => (StatusCode::GATEWAY_TIMEOUT, "UNKNOWN"),
            CatalogError::Damaged(_) => (StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN"),
        };
        Refusal::new(status, code, error.to_string())
    }
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Refusal {
        tracing::error!(%error, "the registry's disk");
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Refusal::full(),
            _ => Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN", "the registry cannot use its disk"),
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let body = json!({"errors": [{"code": self.code, "message": self.message, "detail": self.detail}]}).to_string();
        let mut response = (self.status, [(header::CONTENT_TYPE, "application/json")], body).into_response();
        if let Some(offset) = self.range {
            response.headers_mut().insert(header::RANGE, range_until(offset));
        }
        if matches!(self.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("5"));
        }
        response
    }
}

/// `Range` of an upload that has `offset` bytes. With none of them it is `0-0` all the same: docker reads it so.
pub fn range_until(offset: u64) -> HeaderValue {
    HeaderValue::try_from(format!("0-{}", offset.saturating_sub(1))).expect("digits and a dash")
}
