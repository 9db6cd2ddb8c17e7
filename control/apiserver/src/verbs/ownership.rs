//! Who owns which field (`metadata.managedFields`, kubernetes-api §7): the api crate's rules, told who writes what.

use std::borrow::Cow;

use coracle_api::codec::DecodeError;
use coracle_api::meta;
use coracle_api::patch::apply::{self, Reset, Target, Writer};
use coracle_api::schema::Object;
use coracle_api::status::Status;
use jiff::Timestamp;
use serde_json::Value;

use super::write::Write;
use crate::request::body::Expected;
use crate::request::codec;
use crate::request::options::Validation;

pub(crate) use coracle_api::patch::apply::equal_but_times as is_unchanged;

const STATUS: &[&[&str]] = &[&["status"]];
const SPEC: &[&[&str]] = &[&["spec"]];
const SPEC_AND_STATUS: &[&[&str]] = &[&["spec"], &["status"]];
const SPEC_AND_CONDITIONS: &[&[&str]] = &[&["spec"], &["status", "conditions"]];
const SPEC_AND_CERTIFICATE: &[&[&str]] = &[&["spec"], &["status", "certificate"]];
const SPEC_AND_METADATA: &[&[&str]] = &[&["metadata"], &["spec"]];
const SPEC_AND_LABELS: &[&[&str]] = &[&["spec"], &["metadata", "labels"]];
const OF_POD_STATUS: &[&[&str]] = &[&["spec"], &["metadata", "deletionTimestamp"], &["metadata", "ownerReferences"]];
const REPLICAS: &[&[&str]] = &[&["spec", "replicas"]];

/// What a write is made to. Fields that it cannot change it does not own.
fn on_target<T>(write: &Write<'_>, work: impl FnOnce(&Target<'_>) -> T) -> T {
    let resource = write.resource;
    let row = &resource.row;
    // Where a custom resource keeps its replicas its definition says.
    let scale = row.custom().and_then(|custom| custom.version.scale.as_ref());
    let replicas: Option<Vec<&str>> =
        scale.map(|scale| scale.spec_replicas.trim_start_matches('.').split('.').collect());
    let replicas = replicas.as_ref().map(|path| [path.as_slice()]);
    let is_signing_request = row.resource() == "certificatesigningrequests" && row.group() == "certificates.k8s.io";
    let reset = match write.subresource {
        "" if is_signing_request => Reset::Fields(SPEC_AND_STATUS),
        "" if row.has_status() => Reset::Fields(STATUS),
        "" => Reset::Nothing,
        "finalize" => Reset::Fields(STATUS),
        "approval" => Reset::Fields(SPEC_AND_CERTIFICATE),
        "scale" => Reset::AllBut(replicas.as_ref().map_or(REPLICAS, |path| path.as_slice())),
        "status" => Reset::Fields(match (row.group(), row.resource()) {
            _ if resource.custom.is_some() || row.strategy().is_status_alone() => SPEC_AND_METADATA,
            _ if is_signing_request => SPEC_AND_CONDITIONS,
            ("", "pods") => OF_POD_STATUS,
            ("apps", "deployments") => SPEC_AND_LABELS,
            _ => SPEC,
        }),
        _ => Reset::Nothing,
    };
    work(&Target {
        object: &resource.stored_schema,
        api_version: &resource.api_version,
        kind: row.kind(),
        subresource: write.subresource,
        reset,
    })
}

fn writer<'a>(write: &'a Write<'_>) -> Writer<'a> {
    let now = (write.subresource != "scale").then(Timestamp::now);
    Writer { manager: &write.options.manager, now }
}

/// Writes down that the write's manager owns what it set or changed.
pub(crate) fn track(write: &Write<'_>, old: Option<&Value>, object: &mut Value) {
    let old = old.map(|old| stored_names(write, old));
    if let Cow::Owned(named) = stored_names(write, object) {
        *object = named;
    }
    on_target(write, |target| apply::track_update(old.as_deref(), object, target, &writer(write)));
    leave_own(write, object);
}

/// What is owned is called as this view does. Who owns fields through a view of another group owns nothing any more, as in
/// the reference, which has no way from one to the other.
fn leave_own(write: &Write<'_>, object: &mut Value) {
    if write.resource.row.strategy().view_names().is_none() {
        return;
    }
    if let Some(owners) = object.pointer_mut("/metadata/managedFields").and_then(Value::as_array_mut) {
        owners.retain(|owner| owner["apiVersion"] == write.resource.api_version);
    }
    name_owned(write, object, false);
}

/// An object whose owned fields are all called as they are stored: only those can be compared.
fn stored_names<'a>(write: &Write<'_>, object: &'a Value) -> Cow<'a, Value> {
    if write.resource.row.strategy().view_names().is_none() {
        return Cow::Borrowed(object);
    }
    let mut object = object.clone();
    name_owned(write, &mut object, true);
    Cow::Owned(object)
}

/// Calls what is owned through another view by the names that are stored, or by that view's own.
fn name_owned(write: &Write<'_>, object: &mut Value, to_stored: bool) {
    let Some((view, names)) = write.resource.row.strategy().view_names() else { return };
    let owners = object.pointer_mut("/metadata/managedFields").and_then(Value::as_array_mut);
    for owner in owners.into_iter().flatten().filter(|owner| owner["apiVersion"] == view) {
        let Some(fields) = owner.get_mut("fieldsV1").and_then(Value::as_object_mut) else { continue };
        for (theirs, ours) in names {
            let (from, to) = if to_stored { (theirs, ours) } else { (ours, theirs) };
            if let Some(below) = fields.remove(&format!("f:{from}")) {
                fields.insert(format!("f:{to}"), below);
            }
        }
    }
}

/// The same for an object that is answered and not stored.
pub(crate) fn track_answer(
    schema: &Object,
    expected: &Expected<'_>,
    subresource: &str,
    manager: &str,
    object: &mut Value,
) {
    let target = Target {
        object: schema,
        api_version: expected.api_version,
        kind: expected.kind,
        subresource,
        reset: Reset::Fields(STATUS),
    };
    apply::track_update(None, object, &target, &Writer { manager, now: Some(Timestamp::now()) });
}

/// Whether an object says that nobody shall own its fields: an empty list, which decoding would drop.
pub(crate) fn is_dropped(object: &Value) -> bool {
    object["metadata"]["managedFields"].as_array().is_some_and(Vec::is_empty)
}

/// Puts back what [`is_dropped`] found.
pub(crate) fn drop_from(object: &mut Value) {
    meta::metadata_mut(object).insert("managedFields".to_owned(), Value::Array(Vec::new()));
}

/// A configuration that is to be applied.
pub(crate) struct Applied {
    config: Value,
    /// What strict decoding has to say about it.
    problems: Vec<String>,
}

/// Checks a configuration as far as that is possible without the object.
pub(crate) fn read_applied(write: &Write<'_>, config: Value, problems: Vec<String>) -> Result<Applied, Status> {
    if !config.is_object() {
        return Err(Status::bad_request("error decoding YAML: the patch is not an object"));
    }
    let name = meta::name(&config);
    if !name.is_empty() && name != write.call.name() {
        return Err(Status::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({})",
            write.call.name()
        )));
    }
    Ok(Applied { config, problems })
}

/// What the rules make of a configuration. They know fields in the form in which objects are stored: a view is turned
/// into that form and back.
fn merged(write: &Write<'_>, live: Option<&Value>, config: &Value) -> Result<Value, Status> {
    let merge = |live: Option<&Value>, config: &Value| {
        on_target(write, |target| apply::apply(live, config, target, &writer(write), write.options.force))
    };
    if !write.resource.is_view {
        let mut object = merge(live.map(|live| stored_names(write, live)).as_deref(), config)?;
        leave_own(write, &mut object);
        return Ok(object);
    }
    let strategy = write.resource.row.strategy();
    let stored = |value: &Value| {
        let mut value = value.clone();
        strategy.to_storage(&mut value);
        value["apiVersion"] = write.resource.api_version.as_str().into();
        stored_names(write, &value).into_owned()
    };
    let mut object = merge(live.map(stored).as_ref(), &stored(config)).map_err(|status| as_called(write, status))?;
    strategy.from_storage(&mut object);
    leave_own(write, &mut object);
    Ok(object)
}

/// Conflicts, by the names that the view has for fields.
fn as_called(write: &Write<'_>, mut status: Status) -> Status {
    let Some((_, names)) = write.resource.row.strategy().view_names() else { return status };
    // The first name of a path is that of a field of the view.
    let renamed = |path: &str| {
        let Some(rest) = path.strip_prefix('.') else { return path.to_owned() };
        let (name, below) = rest.split_at(rest.find(|c: char| !c.is_alphanumeric()).unwrap_or(rest.len()));
        let theirs = names.iter().find(|(_, ours)| *ours == name).map_or(name, |(theirs, _)| theirs);
        format!(".{theirs}{below}")
    };
    status.message = status.message.split(' ').map(renamed).collect::<Vec<_>>().join(" ");
    for cause in status.details.iter_mut().flat_map(|details| &mut details.causes) {
        cause.field = renamed(&cause.field);
    }
    status
}

/// The object that results, with its owners.
pub(crate) fn apply(write: &Write<'_>, live: Option<&Value>, applied: &Applied) -> Result<Value, Status> {
    let mut object = merged(write, live, &applied.config)?;
    if meta::name(&object).is_empty() {
        meta::metadata_mut(&mut object).insert("name".to_owned(), write.call.name().into());
    }
    // Conflicts come first: they say more.
    match write.options.validation {
        Validation::Ignore => {}
        Validation::Warn => write.call.warn_all(applied.problems.iter().cloned()),
        Validation::Strict if applied.problems.is_empty() => {}
        Validation::Strict => {
            let problems = applied.problems.join(", ");
            return Err(Status::bad_request(format!("error strict decoding patch: {problems}")));
        }
    }
    let decoded = codec::check(&object, &write.resource.schema).map_err(|error| match error {
        DecodeError::Mistyped(why) | DecodeError::Unrecognized(why) => Status::bad_request(why),
    })?;
    Ok(decoded.value)
}
