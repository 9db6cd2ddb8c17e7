//! Request bodies, read into an object of the endpoint's type.

use std::sync::Arc;

use bytes::Bytes;
use coracle_api::kinds::FieldError;
use coracle_api::schema::Object;
use coracle_api::status::Status;
use http::header;
use serde_json::Value;

use super::call::Call;
use super::codec::{self, Read};
use super::negotiate::{self, Format};
use super::options::Validation;

/// Largest body of a request.
pub(crate) const BODY_BYTES_MAX: usize = 3 << 20;

/// What a body must be.
pub(crate) struct Expected<'a> {
    pub api_version: &'a str,
    pub kind: &'a str,
    pub schema: &'a Arc<Object>,
}

/// Reads the object in a body; what is wrong with unknown or doubled fields is a warning or an error.
pub(crate) fn object(
    call: &Call,
    body: &Bytes,
    expected: &Expected<'_>,
    validation: Validation,
) -> Result<Value, Status> {
    let format = negotiate::body_format(call.header(header::CONTENT_TYPE))?;
    if format == Format::Protobuf && expected.schema.custom.is_some() {
        return Err(Status::unsupported_media_type(&[negotiate::JSON, negotiate::YAML]));
    }
    object_in(call, format, body, expected, validation)
}

/// The same in a known format.
pub(crate) fn object_in(
    call: &Call,
    format: Format,
    body: &Bytes,
    expected: &Expected<'_>,
    validation: Validation,
) -> Result<Value, Status> {
    let unrecognized = |why: &str| {
        Status::bad_request(format!(
            "the object provided is unrecognized (must be of type {}): {why} ({})",
            expected.kind,
            codec::excerpt(body)
        ))
    };
    let read = codec::read(format, body, expected).map_err(|error| match error {
        codec::ReadError::Unrecognized(why) => unrecognized(&why),
        codec::ReadError::OtherKind { kind, name } => {
            let group = expected.api_version.split_once('/').map_or("", |(group, _)| group);
            let error = FieldError::invalid("kind", kind.as_str(), &format!("must be {}", expected.kind));
            Status::invalid(group, &kind, &name, vec![error])
        }
        codec::ReadError::Kind { api_version, kind, why } => {
            let version = api_version.rsplit('/').next().unwrap_or_default();
            Status::bad_request(format!(
                "{kind} in version {} cannot be handled as a {}: {why}",
                coracle_api::meta::text::quote(version),
                expected.kind
            ))
        }
    })?;
    let Read { api_version, kind, value, problems } = read;
    call.has_sent(&value);
    if api_version != expected.api_version {
        return Err(Status::bad_request(format!(
            "the API version in the data ({api_version}) does not match the expected API version ({})",
            expected.api_version
        )));
    }
    match validation {
        Validation::Ignore => {}
        Validation::Warn => call.warn_all(problems),
        Validation::Strict if problems.is_empty() => {}
        Validation::Strict => {
            let version = api_version.rsplit('/').next().unwrap_or_default();
            return Err(Status::bad_request(format!(
                "{kind} in version {} cannot be handled as a {}: strict decoding error: {}",
                coracle_api::meta::text::quote(version),
                expected.kind,
                problems.join(", ")
            )));
        }
    }
    call.check_namespace(&value)?;
    Ok(value)
}
