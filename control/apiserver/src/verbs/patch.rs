//! Changing a part of an object: four kinds of patch, told apart by their media type (kubernetes-api §6.5).

use std::sync::Arc;

use axum::response::Response;
use coracle_api::codec::{DecodeError, json};
use coracle_api::kinds::FieldError;
use coracle_api::meta::{self, text};
use coracle_api::patch;
use coracle_api::schema::Object;
use coracle_api::status::Status;
use http::header;
use serde_json::Value;

use super::create::insert;
use super::ownership;
use super::update::{Changed, change};
use super::write::{Write, Written};
use crate::answer::table::Include;
use crate::catalog::Resource;
use crate::cluster::Cluster;
use crate::request::body::Expected;
use crate::request::call::{Call, Request};
use crate::request::codec::{self, TypeChanged};
use crate::request::negotiate::{Offer, essence};
use crate::request::options::{Validation, WriteOptions, write_options};

/// The kinds of patch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Json,
    Merge,
    Strategic,
    Apply,
}

const TYPES: [(&str, Kind); 4] = [
    ("application/json-patch+json", Kind::Json),
    ("application/merge-patch+json", Kind::Merge),
    ("application/strategic-merge-patch+json", Kind::Strategic),
    ("application/apply-patch+yaml", Kind::Apply),
];

impl Kind {
    pub fn of(call: &Call) -> Result<Kind, Status> {
        let media_type = call.header(header::CONTENT_TYPE).map(essence).unwrap_or_default();
        TYPES
            .iter()
            .find(|(name, _)| *name == media_type)
            .map(|(_, kind)| *kind)
            .ok_or_else(|| Status::generic(415, "415: Unsupported Media Type"))
    }
}

/// A patch as it came.
pub(crate) struct Patch {
    pub kind: Kind,
    value: Value,
    /// What strict decoding has to say about the patch itself.
    problems: Vec<String>,
}

impl Patch {
    pub fn read(call: &Call, body: &[u8]) -> Result<Patch, Status> {
        let kind = Kind::of(call)?;
        if kind == Kind::Apply {
            let (value, problems) =
                codec::any_yaml(body).map_err(|why| Status::bad_request(format!("error encoding patch: {why}")))?;
            return Ok(Patch { kind, value, problems });
        }
        let value = json::parse_body(body).map_err(|error| match error.is_too_deep() {
            true => Status::bad_request(format!("invalid JSON patch: {error}")),
            false => Status::bad_request("invalid JSON patch"),
        })?;
        let problems = if kind == Kind::Json { patch::json_problems(&value) } else { Vec::new() };
        Ok(Patch { kind, value, problems })
    }

    /// The configuration of an apply, and what strict decoding has to say about it.
    pub fn config(&self) -> (&Value, &[String]) {
        (&self.value, &self.problems)
    }

    /// Applies it to an object of a type; the result is checked as if it had been sent whole.
    pub fn apply_to(
        &self,
        call: &Call,
        schema: &Arc<Object>,
        options: &WriteOptions,
        old: &Value,
    ) -> Result<Value, Status> {
        let mut object = old.clone();
        match self.kind {
            Kind::Json => patch::json(&mut object, &self.value)?,
            Kind::Merge => {
                if !self.value.is_object() && !self.value.is_null() {
                    let what = if self.value.is_array() { "array" } else { "value" };
                    return Err(Status::bad_request(format!(
                        "error decoding patch: json: cannot unmarshal {what} into Go value of type map[string]interface {{}}"
                    )));
                }
                patch::merge(&mut object, &self.value)?;
            }
            Kind::Strategic => patch::strategic(&mut object, &self.value, schema)?,
            Kind::Apply => {}
        }
        let drops_owners = ownership::is_dropped(&object);
        let shown = || match self.kind {
            Kind::Strategic => text::sprint(&self.value),
            _ => object.to_string(),
        };
        let invalid = |detail: &str| {
            let error = FieldError::invalid("patch", shown().as_str(), detail);
            Status::invalid("", "", "", vec![error])
        };
        let decoded = codec::check(&object, schema).map_err(|error| match error {
            DecodeError::Mistyped(why) | DecodeError::Unrecognized(why) => invalid(&why),
        })?;
        let problems: Vec<String> = self.problems.iter().cloned().chain(decoded.problems).collect();
        match options.validation {
            Validation::Ignore => {}
            Validation::Warn => call.warn_all(problems),
            Validation::Strict if problems.is_empty() => {}
            Validation::Strict => {
                return Err(invalid(&format!("strict decoding error: {}", problems.join(", "))));
            }
        }
        let mut object = decoded.value;
        let text = |field: &str| old[field].as_str().unwrap_or_default();
        let expected = Expected { api_version: text("apiVersion"), kind: text("kind"), schema };
        codec::keep_type(&mut object, &expected).map_err(|changed| match changed {
            TypeChanged::Invalid(status) => status,
            TypeChanged::Unconverted(why) => invalid(&why),
        })?;
        if drops_owners {
            ownership::drop_from(&mut object);
        }
        Ok(object)
    }
}

pub(crate) async fn patch(
    cluster: &Cluster,
    request: &Request,
    resource: &Arc<Resource>,
    subresource: &str,
) -> Result<Response, Status> {
    let call = &request.call;
    let form = resource.form(call, Offer::Stored)?;
    let include = Include::of(&call.query)?;
    let media_type = call.header(header::CONTENT_TYPE).unwrap_or_default();
    check_type(call, resource)?;
    let options = write_options(call, "PatchOptions", Some(media_type))?;
    let write = Write { cluster, call, resource, options: &options, subresource };
    let (code, written) = run(&write, &request.body).await?;
    written.respond(cluster, form, code, resource, include).await
}

/// Patches the object that the call names. 201 when an apply made it.
pub(crate) async fn run(write: &Write<'_>, body: &[u8]) -> Result<(u16, Written), Status> {
    let (call, resource) = (write.call, write.resource);
    let patch = Patch::read(call, body)?;
    if patch.kind != Kind::Apply {
        let step = |old: &Value| {
            let object = patch.apply_to(call, &resource.schema, write.options, old)?;
            call.check_name(&object)?;
            Ok(Changed { object, owned: false, names_version: false })
        };
        return Ok((200, change(write, step).await?));
    }
    let applied = ownership::read_applied(write, patch.value, patch.problems)?;
    let step = |old: &Value| {
        let object = ownership::apply(write, Some(old), &applied)?;
        Ok(Changed { object, owned: true, names_version: false })
    };
    match change(write, step).await {
        Err(status) if status.reason == "NotFound" && write.subresource.is_empty() => {}
        written => return Ok((200, written?)),
    }
    write.may_create()?;
    let mut object = ownership::apply(write, None, &applied)?;
    let metadata = meta::metadata_mut(&mut object);
    metadata.remove("resourceVersion");
    if let Some(uid) = metadata.get("uid").filter(|uid| !uid.is_null()) {
        let row = &resource.row;
        let uid = uid.as_str().unwrap_or_default();
        let message =
            format!("uid mismatch: the provided object specified uid {uid}, and no existing object was found");
        return Err(Status::conflict(row.group(), row.resource(), call.name(), message));
    }
    match insert(write, object, true).await {
        // Somebody else made it meanwhile: then it is a change after all.
        Err(status) if status.reason == "AlreadyExists" => Ok((200, change(write, step).await?)),
        written => Ok((201, written?)),
    }
}

/// Custom resources have no merge keys: strategic patches are not for them.
pub(crate) fn check_type(call: &Call, resource: &Resource) -> Result<(), Status> {
    let kind = Kind::of(call);
    match &resource.custom {
        None => kind.map(drop),
        Some(_) if matches!(kind, Ok(kind) if kind != Kind::Strategic) => Ok(()),
        Some(_) => {
            let taken: Vec<&str> =
                TYPES.iter().filter(|(_, kind)| *kind != Kind::Strategic).map(|(name, _)| *name).collect();
            Err(Status::unsupported_media_type(&taken))
        }
    }
}
