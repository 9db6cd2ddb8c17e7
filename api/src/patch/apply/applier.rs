//! Server-side apply itself.

use serde_json::{Map, Value};

use super::compare::compare;
use super::conflict::{self, Conflict};
use super::extract::{check, fields};
use super::fieldset::FieldSet;
use super::managers::{self, Entry, Operation, Origin};
use super::merge::merge;
use super::remove::prune;
use super::typed::{EMPTY, shown};
use super::{Target, UNOWNED, UNOWNED_METADATA, Writer, last_applied, track};
use crate::meta::{metadata, metadata_mut, name, namespace, time};
use crate::status::Status;

/// The manager of what was there before an object was first applied to.
const BEFORE: &str = "before-first-apply";
/// The manager whose annotation counts.
const KUBECTL: &str = "kubectl";

/// Applies a configuration to the live object (`None`: there is none) and gives the object that results, with its managed
/// fields. What comes out is to be decoded and defaulted again. `force` takes over what is in conflict.
///
/// When nothing but times changed, [`super::equal_but_times`] says so after the result has its defaults.
pub fn apply(
    live: Option<&Value>,
    config: &Value,
    target: &Target<'_>,
    writer: &Writer<'_>,
    force: bool,
) -> Result<Value, Status> {
    check_kind(config, target)?;
    let stored = live.and_then(|live| metadata(live)?.get("managedFields")).and_then(Value::as_array);
    let mut entries = managers::decode(stored.cloned().unwrap_or_default(), Origin::Stored)
        .map_err(|error| Status::unknown_error(format!("failed to decode managed fields: {error}")))?;
    if entries.is_empty()
        && let Some(live) = live
    {
        let before = Writer { manager: BEFORE, now: writer.now };
        entries = track::update(&EMPTY, live, entries, target, &before).unwrap_or_default();
    }
    if metadata(config).and_then(|metadata| metadata.get("managedFields")).is_some_and(|fields| !fields.is_null()) {
        return Err(Status::bad_request("metadata.managedFields must be nil"));
    }
    let wrong = check(config, target.object);
    if !wrong.is_empty() {
        return Err(untyped(config, target, &shown(&wrong)));
    }
    let live = live.unwrap_or(&EMPTY);
    let outcome = attempt(live, config, entries.clone(), target, writer, force)?;
    let outcome = match outcome {
        Outcome::Conflicts(conflicts) if writer.manager == KUBECTL => {
            let owned = last_applied::owned(live, target);
            let left: Vec<Conflict> = match &owned {
                None => conflicts,
                Some(owned) => conflicts.into_iter().filter_map(|conflict| without(conflict, owned)).collect(),
            };
            if left.is_empty() {
                attempt(live, config, entries, target, writer, true)?
            } else {
                Outcome::Conflicts(left)
            }
        }
        outcome => outcome,
    };
    let (mut object, entries) = match outcome {
        Outcome::Done(object, entries) => (object, entries),
        Outcome::Conflicts(conflicts) => return Err(conflict::status(conflicts)),
    };
    let metadata = metadata_mut(&mut object);
    match managers::encode(entries) {
        entries if entries.is_empty() => drop(metadata.remove("managedFields")),
        entries => drop(metadata.insert("managedFields".to_owned(), Value::Array(entries))),
    }
    if writer.manager == KUBECTL {
        last_applied::refresh(&mut object, config);
    }
    Ok(object)
}

fn check_kind(config: &Value, target: &Target<'_>) -> Result<(), Status> {
    let text = |field: &str| config.get(field).and_then(Value::as_str).unwrap_or_default();
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    if api_version == target.api_version && kind == target.kind {
        return Ok(());
    }
    Err(Status::bad_request(format!("invalid object type: {}", group_version_kind(api_version, kind))))
}

/// `apps/v1, Kind=Deployment`; `/v1, Kind=Pod` in the core group.
fn group_version_kind(api_version: &str, kind: &str) -> String {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    format!("{group}/{version}, Kind={kind}")
}

fn untyped(config: &Value, target: &Target<'_>, errors: &str) -> Status {
    let kind = group_version_kind(target.api_version, target.kind);
    let (namespace, name) = (namespace(config), name(config));
    Status::unknown_error(format!("failed to create typed patch object ({namespace}/{name}; {kind}): {errors}"))
}

/// The conflict without the fields that kubectl may take over.
fn without(mut conflict: Conflict, owned: &FieldSet) -> Option<Conflict> {
    conflict.set.subtract(owned);
    (!conflict.set.is_empty()).then_some(conflict)
}

enum Outcome {
    Done(Value, Vec<Entry>),
    Conflicts(Vec<Conflict>),
}

fn attempt(
    live: &Value,
    config: &Value,
    mut entries: Vec<Entry>,
    target: &Target<'_>,
    writer: &Writer<'_>,
    force: bool,
) -> Result<Outcome, Status> {
    let failed = |what: &str, why: &str| Status::unknown_error(format!("failed to {what}: {why}"));
    let merged = merge(live, config, target.object).map_err(|wrong| failed("merge config", &shown(&[wrong])))?;
    let mut set = fields(config, target.object);
    target.reset.filter(&mut set);
    let mut mine = Entry {
        manager: writer.manager.to_owned(),
        operation: Operation::Apply,
        api_version: target.api_version.to_owned(),
        subresource: target.subresource.to_owned(),
        time: None,
        set,
    };
    let last = entries.iter().position(|entry| entry.is_same(&mine)).map(|at| entries.remove(at));
    let object = match &last {
        Some(last) => {
            let mut owned = mine.set.clone();
            entries.iter().for_each(|entry| owned.union(entry.set.clone()));
            prune(merged, &last.set, owned, target.object)
        }
        None => merged,
    };
    let mut difference =
        compare(live, &object, target.object).map_err(|wrong| failed("compare objects", &shown(&[wrong])))?;
    target.reset.filter(&mut difference.changed);
    target.reset.filter(&mut difference.removed);
    let conflicts: Vec<Conflict> = entries
        .iter()
        .map(|entry| Conflict::new(entry, entry.set.intersection(&difference.changed)))
        .filter(|conflict| !conflict.set.is_empty())
        .collect();
    if !force && !conflicts.is_empty() {
        return Ok(Outcome::Conflicts(conflicts));
    }
    for entry in &mut entries {
        entry.set.subtract(&difference.changed);
        entry.set.subtract(&difference.removed);
    }
    entries.retain(|entry| !entry.set.is_empty());
    strip(&mut mine.set);
    let is_same = object == *live;
    // What stays as it is keeps its time; who applies it for the first time has none.
    mine.time = match is_same {
        true => last.and_then(|last| last.time),
        false => writer.now.map(time::format),
    };
    if !mine.set.is_empty() {
        entries.push(mine);
    }
    Ok(Outcome::Done(object, entries))
}

/// Takes out what nobody can own.
fn strip(set: &mut FieldSet) {
    let member = |name: &&str| (format!("f:{name}"), Value::Object(Map::new()));
    let metadata: Map<String, Value> = UNOWNED_METADATA.iter().map(member).collect();
    let mut unowned: Map<String, Value> = UNOWNED.iter().map(member).collect();
    // `metadata` itself is not owned either.
    super::fieldset::put(&mut unowned, "f:metadata".to_owned(), true, metadata);
    set.subtract(&FieldSet::trusted(unowned));
}
