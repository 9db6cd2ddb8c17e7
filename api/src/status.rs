//! The API's answer when there is no object to give: `Status`, of errors and of some successes.
//!
//! Every failure that a client sees is made here, in the words, reasons, codes and details that clients of Kubernetes
//! know (`k8s.io/apimachinery/pkg/api/errors`): client-go, kubectl and Helm look at reason, causes and details, and
//! people search for the message.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;
use std::ops::{Deref, DerefMut};

use serde::{Deserialize, Serialize};

use crate::meta::field::{FieldError, FieldErrors, aggregate};
use crate::meta::text::quote;

/// A `Status`. The content is boxed, so that results that carry it stay small; it is reached by dereference.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Status(Box<Content>);

/// What a [`Status`] says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Content {
    /// `Status`.
    pub kind: Cow<'static, str>,
    /// `v1`.
    pub api_version: Cow<'static, str>,
    /// List metadata; only an expired continue token fills it.
    pub metadata: ListMeta,
    /// `Success` or `Failure`.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub status: Cow<'static, str>,
    /// For people.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// For programs, as `NotFound`; empty when unknown.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub reason: Cow<'static, str>,
    /// What it is about. `Some` of nothing is written as `{}`, as Kubernetes does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub details: Option<Details>,
    /// The HTTP status; 0 is left out.
    #[serde(skip_serializing_if = "is_zero")]
    pub code: u16,
}

/// Metadata of a list, as far as a status has it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ListMeta {
    /// Revision it was read at.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub resource_version: String,
    /// Token of the next page.
    #[serde(rename = "continue", skip_serializing_if = "String::is_empty")]
    pub continue_token: String,
}

/// What a status is about.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Details {
    /// Name of the object.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Its group.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub group: String,
    /// Its resource (its kind when it is invalid).
    #[serde(skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// Its uid.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// The single reasons.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<Cause>,
    /// When to come again.
    #[serde(skip_serializing_if = "is_zero")]
    pub retry_after_seconds: u16,
}

/// One reason among several.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Cause {
    /// As `FieldValueInvalid`.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub reason: Cow<'static, str>,
    /// For people.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Path of the field.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub field: String,
}

/// What a stale version is told; clients search for it.
pub const OPTIMISTIC_LOCK: &str =
    "the object has been modified; please apply your changes to the latest version and try again";

impl Default for Content {
    fn default() -> Self {
        Self {
            kind: Cow::Borrowed("Status"),
            api_version: Cow::Borrowed("v1"),
            metadata: ListMeta::default(),
            status: Cow::Borrowed("Failure"),
            message: String::new(),
            reason: Cow::Borrowed(""),
            details: None,
            code: 0,
        }
    }
}

impl Deref for Status {
    type Target = Content;

    fn deref(&self) -> &Content {
        &self.0
    }
}

impl DerefMut for Status {
    fn deref_mut(&mut self) -> &mut Content {
        &mut self.0
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Status {}

impl Status {
    /// A failure; `reason` may be empty.
    pub fn failure(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self(Box::new(Content { code, reason: Cow::Borrowed(reason), message: message.into(), ..Content::default() }))
    }

    /// A success, with details or without.
    pub fn success(details: Option<Details>) -> Self {
        Self(Box::new(Content { status: Cow::Borrowed("Success"), details, ..Content::default() }))
    }

    /// The HTTP status of the answer.
    pub fn code(&self) -> u16 {
        match self.code {
            0 if self.status == "Success" => 200,
            0 => 500,
            code => code,
        }
    }

    /// Whether a cause has this reason.
    pub fn has_cause(&self, reason: &str) -> bool {
        self.details.iter().flat_map(|details| &details.causes).any(|cause| cause.reason == reason)
    }

    /// Adds details.
    pub fn with_details(mut self, details: Details) -> Self {
        self.details = Some(details);
        self
    }

    /// Adds a cause.
    pub fn with_cause(
        mut self,
        reason: impl Into<Cow<'static, str>>,
        message: impl Into<String>,
        field: impl Into<String>,
    ) -> Self {
        let cause = Cause { reason: reason.into(), message: message.into(), field: field.into() };
        self.details.get_or_insert_default().causes.push(cause);
        self
    }

    /// Says when to come again; the HTTP edge repeats it in `Retry-After`.
    pub fn with_retry_after(mut self, seconds: u16) -> Self {
        self.details.get_or_insert_default().retry_after_seconds = seconds;
        self
    }

    /// 400: the request itself is wrong.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::failure(400, "BadRequest", message)
    }

    /// 401, in the words of an API server that tells nothing to strangers.
    pub fn unauthorized() -> Self {
        Self::failure(401, "Unauthorized", "Unauthorized")
    }

    /// 403: `message` says why. Without a resource it is about a path.
    pub fn forbidden(group: &str, resource: &str, name: &str, message: impl fmt::Display) -> Self {
        let text = match (resource.is_empty() && group.is_empty(), name.is_empty()) {
            (true, _) => format!("forbidden: {message}"),
            (_, true) => format!("{} is forbidden: {message}", qualified(group, resource)),
            _ => format!("{} {} is forbidden: {message}", qualified(group, resource), quote(name)),
        };
        Self::failure(403, "Forbidden", text).with_details(Details::of(group, resource, name))
    }

    /// 404: there is no object of this name.
    pub fn not_found(group: &str, resource: &str, name: &str) -> Self {
        Self::failure(404, "NotFound", format!("{} {} not found", qualified(group, resource), quote(name)))
            .with_details(Details::of(group, resource, name))
    }

    /// 404: nothing is served at this path.
    pub fn path_not_found() -> Self {
        Self::generic(404, "")
    }

    /// 405: the path exists, the method does not.
    pub fn method_not_allowed() -> Self {
        Self::generic(405, "")
    }

    /// 405: the resource does not do this action.
    pub fn not_supported(group: &str, resource: &str, action: &str) -> Self {
        let message = format!("{action} is not supported on resources of kind {}", quote(&qualified(group, resource)));
        Self::failure(405, "MethodNotAllowed", message).with_details(Details::of(group, resource, ""))
    }

    /// 406: none of these types was asked for.
    pub fn not_acceptable(accepted: &[&str]) -> Self {
        let message = format!("only the following media types are accepted: {}", accepted.join(", "));
        Self::failure(406, "NotAcceptable", message)
    }

    /// 406: the object can be shown as `target` only in these types.
    pub fn not_acceptable_as(target: &str, accepted: &[&str]) -> Self {
        let accepted = accepted.join(", ");
        let message = format!("only the following media types are accepted when converting to {target}: {accepted}");
        Self::failure(406, "NotAcceptable", message)
    }

    /// 415: the body is none of these types.
    pub fn unsupported_media_type(accepted: &[&str]) -> Self {
        let accepted = accepted.join(", ");
        let message =
            format!("the body of the request was in an unknown format - accepted media types include: {accepted}");
        Self::failure(415, "UnsupportedMediaType", message)
    }

    /// 409: the name is taken.
    pub fn already_exists(group: &str, resource: &str, name: &str) -> Self {
        Self::failure(409, "AlreadyExists", format!("{} {} already exists", qualified(group, resource), quote(name)))
            .with_details(Details::of(group, resource, name))
    }

    /// 409: every generated name was taken.
    pub fn generated_names_taken(group: &str, resource: &str, name: &str, retry_after: u16) -> Self {
        let message = format!(
            "{} {} already exists, the server was not able to generate a unique name for the object",
            qualified(group, resource),
            quote(name)
        );
        Self::failure(409, "AlreadyExists", message)
            .with_details(Details::of(group, resource, name))
            .with_retry_after(retry_after)
    }

    /// 409: the object is not in the state that the request supposes.
    pub fn conflict(group: &str, resource: &str, name: &str, message: impl fmt::Display) -> Self {
        let text =
            format!("Operation cannot be fulfilled on {} {}: {message}", qualified(group, resource), quote(name));
        Self::failure(409, "Conflict", text).with_details(Details::of(group, resource, name))
    }

    /// 409: the client's version of the object is not the newest.
    pub fn stale(group: &str, resource: &str, name: &str) -> Self {
        Self::conflict(group, resource, name, OPTIMISTIC_LOCK)
    }

    /// 409: fields of an apply belong to other managers.
    pub fn apply_conflict(message: impl Into<String>, causes: Vec<Cause>) -> Self {
        Self::failure(409, "Conflict", message).with_details(Details { causes, ..Details::default() })
    }

    /// 410: this version is compacted.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::failure(410, "Expired", message)
    }

    /// 410 of a continue token; `fresh` goes on from the same place in the newest state, at the price of consistency.
    pub fn expired_continue(message: impl Into<String>, fresh: impl Into<String>) -> Self {
        let mut status = Self::expired(message);
        status.metadata.continue_token = fresh.into();
        status
    }

    /// 410, the older form of [`Status::expired`].
    pub fn gone(message: impl Into<String>) -> Self {
        Self::failure(410, "Gone", message)
    }

    /// 413.
    pub fn request_too_large(message: impl fmt::Display) -> Self {
        Self::failure(413, "RequestEntityTooLarge", format!("Request entity too large: {message}"))
    }

    /// 422: the object is wrong in these fields. Here `kind` is a kind, as `Deployment`.
    pub fn invalid(group: &str, kind: &str, name: &str, errors: impl Into<FieldErrors>) -> Self {
        // The same problem is told once, where it was found first.
        let mut seen = HashSet::new();
        let mut errors = errors.into();
        errors.retain(|error| seen.insert((error.field.clone(), error.message.clone())));
        let errors = errors.into_told();
        let mut message = format!("{} {} is invalid", qualified(group, kind), quote(name));
        if !errors.is_empty() {
            message.push_str(": ");
            message.push_str(&aggregate(errors.iter().map(FieldError::to_string)));
        }
        let causes = errors
            .into_iter()
            .map(|e| Cause { reason: Cow::Borrowed(e.reason), message: e.message, field: e.field })
            .collect();
        Self::failure(422, "Invalid", message).with_details(Details { causes, ..Details::of(group, kind, name) })
    }

    /// 429: come again.
    pub fn too_many_requests(message: impl Into<String>, retry_after: u16) -> Self {
        Self::failure(429, "TooManyRequests", message).with_details(Details::default()).with_retry_after(retry_after)
    }

    /// 500: our own fault.
    pub fn internal_error(error: impl fmt::Display) -> Self {
        let error = error.to_string();
        Self::failure(500, "InternalError", format!("Internal error occurred: {error}")).with_cause("", error, "")
    }

    /// 500 without a reason: what the reference answers for errors that it did not expect.
    pub fn unknown_error(message: impl Into<String>) -> Self {
        Self::failure(500, "", message)
    }

    /// 500: it did not work this time.
    pub fn server_timeout(group: &str, resource: &str, operation: &str, retry_after: u16) -> Self {
        let message = format!(
            "The {operation} operation against {} could not be completed at this time, please try again.",
            qualified(group, resource)
        );
        Self::failure(500, "ServerTimeout", message)
            .with_details(Details::of(group, resource, operation))
            .with_retry_after(retry_after)
    }

    /// 503.
    pub fn service_unavailable(message: impl Into<String>) -> Self {
        Self::failure(503, "ServiceUnavailable", message)
    }

    /// 507: there is no room to keep what was sent.
    pub fn insufficient_storage(message: impl Into<String>) -> Self {
        Self::failure(507, "InsufficientStorage", message)
    }

    /// 504: not finished in time; it may still happen.
    pub fn timeout(message: impl fmt::Display, retry_after: u16) -> Self {
        Self::failure(504, "Timeout", format!("Timeout: {message}"))
            .with_details(Details::default())
            .with_retry_after(retry_after)
    }

    /// 504: the client has seen a version that this server has not reached.
    pub fn too_large_resource_version(wanted: u64, current: u64, retry_after: u16) -> Self {
        Self::timeout(format_args!("Too large resource version: {wanted}, current: {current}"), retry_after).with_cause(
            "ResourceVersionTooLarge",
            "Too large resource version",
            "",
        )
    }

    /// What a code means when nothing more is known; `message` is used where the code's own words say less.
    pub fn generic(code: u16, message: &str) -> Self {
        let (reason, text) = match code {
            400 => ("BadRequest", "the server rejected our request for an unknown reason"),
            401 => ("Unauthorized", "the server has asked for the client to provide credentials"),
            403 => ("Forbidden", message),
            404 => ("NotFound", "the server could not find the requested resource"),
            405 => ("MethodNotAllowed", "the server does not allow this method on the requested resource"),
            406 if message.is_empty() => {
                ("NotAcceptable", "the server was unable to respond with a content type that the client supports")
            }
            406 => ("NotAcceptable", message),
            409 => ("Conflict", "the server reported a conflict"),
            415 => ("UnsupportedMediaType", message),
            422 => ("Invalid", "the server rejected our request due to an error in our request"),
            429 => ("TooManyRequests", "the server has received too many requests and has asked us to try again later"),
            503 => ("ServiceUnavailable", "the server is currently unable to handle the request"),
            504 => (
                "Timeout",
                "the server was unable to return a response in the time allotted, but may still be processing the request",
            ),
            500.. => ("InternalError", ""),
            _ => ("", ""),
        };
        let text = match (reason, text) {
            ("InternalError", "") => {
                format!("an error on the server ({}) has prevented the request from succeeding", quote(message))
            }
            ("", _) => format!("the server responded with the status code {code} but did not return more information"),
            (_, text) => text.to_owned(),
        };
        Self::failure(code, reason, text).with_details(Details::default())
    }
}

impl Details {
    /// Details about an object.
    pub fn of(group: &str, kind: &str, name: &str) -> Self {
        Self { name: name.to_owned(), group: group.to_owned(), kind: kind.to_owned(), ..Self::default() }
    }
}

/// `deployments.apps`, and plain `pods` in the core group.
pub fn qualified<'a>(group: &str, resource: &'a str) -> Cow<'a, str> {
    match group {
        "" => Cow::Borrowed(resource),
        group => Cow::Owned(format!("{resource}.{group}")),
    }
}

fn is_zero(number: &u16) -> bool {
    *number == 0
}

#[cfg(test)]
mod tests;
