//! Deleting one object: at once, after a grace period, or when its finalizers are gone (kubernetes-api §8.1).

use std::sync::Arc;

use axum::response::Response;
use coracle_api::custom;
use coracle_api::kinds::Row;
use coracle_api::meta::{self, time};
use coracle_api::status::{Details, Status};
use coracle_keyspace::{Guard, Op, Record};
use http::header;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::admission;
use crate::answer::respond;
use crate::answer::table::Include;
use crate::authz;
use crate::catalog::{DEFINITIONS, Resource};
use crate::cluster::Cluster;
use crate::conversion;
use crate::identity::Identity;
use crate::request::call::{Call, Request};
use crate::request::codec;
use crate::request::negotiate::{self, Offer};
use crate::request::options::{Admitted, DeleteOptions, Propagation};
use crate::store::{self, Refused, Seen, Store, leases, object};

const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";

/// Kinds whose deletion answers with the object even when it is gone.
const RETURN_OBJECT: [(&str, &[&str]); 3] = [
    (
        "",
        &[
            "pods",
            "services",
            "serviceaccounts",
            "persistentvolumes",
            "persistentvolumeclaims",
            "podtemplates",
            "resourcequotas",
        ],
    ),
    ("resource.k8s.io", &["deviceclasses", "resourceclaims", "resourceclaimtemplates", "resourceslices"]),
    ("storage.k8s.io", &["csidrivers", "csinodes", "storageclasses", "volumeattachments", "volumeattributesclasses"]),
];

fn returns_object(row: &Row) -> bool {
    RETURN_OBJECT.iter().any(|(group, resources)| *group == row.group() && resources.contains(&row.resource()))
}

pub(crate) async fn delete(cluster: &Cluster, request: &Request, resource: &Arc<Resource>) -> Result<Response, Status> {
    let call = &request.call;
    let form = resource.form(call, Offer::Stored)?;
    let include = Include::of(&call.query)?;
    let options = options(request)?;
    warn(call, resource, &options);
    let deleted = remove(cluster, call, resource, call.name(), &options).await?;
    let code = match (&deleted, options.orphan_dependents) {
        (Deleted::Marked(_) | Deleted::Would(_), Some(false)) => 202,
        _ => 200,
    };
    let row = &resource.row;
    match deleted {
        Deleted::Marked(record) => {
            let record = conversion::one(cluster, resource, &record).await?;
            respond::record(form, code, &Seen::new(resource, &record), include)
        }
        Deleted::Would(object) => {
            // It is in the version that is stored.
            let mut object = Box::pin(conversion::to_version(cluster, resource, object)).await?;
            row.strategy().from_storage(&mut object);
            respond::object(form, code, resource, &object, include)
        }
        // What could not be read is gone, and is not shown.
        Deleted::Gone(record) if returns_object(row) && record.why_unreadable().is_none() => {
            let seen = Seen::new(resource, &record);
            match last_seen(resource, seen.to_remove()?, &options) {
                Some(object) => respond::object(form, code, resource, &object, include),
                None => respond::record(form, code, &seen, include),
            }
        }
        Deleted::Gone(record) => {
            let stored = Seen::new(resource, &record).to_remove()?;
            let mut details = Details::of(row.group(), row.resource(), meta::name(&stored));
            details.uid = meta::uid(&stored).to_owned();
            Ok(respond::status(form, &Status::success(Some(details))))
        }
    }
}

/// An object with a grace period that went at once, as its deletion left it: with a grace of nothing.
fn last_seen(resource: &Resource, mut object: Value, options: &DeleteOptions) -> Option<Value> {
    resource.row.strategy().grace_period(&object, options.grace)?;
    let (deleting, generation) = (meta::is_deleting(&object), meta::generation(&object));
    let metadata = meta::metadata_mut(&mut object);
    metadata.insert("deletionGracePeriodSeconds".to_owned(), 0.into());
    if !deleting {
        metadata.insert("deletionTimestamp".to_owned(), time::format(Timestamp::now()).into());
        metadata.insert("generation".to_owned(), (generation + 1).into());
    }
    Some(object)
}

/// The options in the body, or in the query when there is no body.
pub(crate) fn options(request: &Request) -> Result<DeleteOptions, Status> {
    if request.body.is_empty() {
        return DeleteOptions::from_query(&request.call);
    }
    let format = negotiate::body_format(request.call.header(header::CONTENT_TYPE))?;
    let body = codec::read_options(format, &request.body)?;
    DeleteOptions::from_body(&body)
}

/// What the reference says to who deletes Jobs without a word about their pods.
pub(crate) fn warn(call: &Call, resource: &Resource, options: &DeleteOptions) {
    const WARNING: &str = "child pods are preserved by default when jobs are deleted; set propagationPolicy=Background \
                           to remove them or set propagationPolicy=Orphan to suppress this warning";
    let says_nothing = options.propagation.is_none() && options.orphan_dependents.is_none();
    if says_nothing && (resource.row.group(), resource.row.resource()) == ("batch", "jobs") {
        call.warn(WARNING);
    }
}

/// What became of the object.
pub(crate) enum Deleted {
    /// It is gone; its last content.
    Gone(Arc<Record>),
    /// It is still there, on its way out.
    Marked(Arc<Record>),
    /// It would be so marked, had it not been a dry run.
    Would(Value),
}

/// What admission is told of a deletion.
pub(crate) fn attributes<'a>(
    cluster: &'a Cluster,
    call: &'a Call,
    resource: &'a Resource,
    options: &DeleteOptions,
) -> admission::Attributes<'a> {
    admission::Attributes {
        cluster,
        resource,
        caller: &call.identity,
        call,
        spent: &call.spent,
        is_here: call.is_here,
        namespace: call.namespace(),
        subresource: "",
        is_admitted: matches!(options.admitted, Admitted::As(_)),
    }
}

/// Deletes `name` in the call's namespace.
pub(crate) async fn remove(
    cluster: &Cluster,
    call: &Call,
    resource: &Arc<Resource>,
    name: &str,
    options: &DeleteOptions,
) -> Result<Deleted, Status> {
    admission::delete(resource, name)?;
    let at = attributes(cluster, call, resource, options);
    let asked = at.asks();
    let by = Some((&at, name)).filter(|_| !at.is_admitted);
    let record_name = resource.record_name(call.namespace(), name);
    // Whoever is asked is asked about what there is.
    let (mut turn, mut confirmed) = (None, asked);
    // Until it is done or the request's time is up.
    loop {
        let known = cluster.store.get(resource, &record_name).filter(|_| !confirmed);
        let record = match known {
            Some(record) => record,
            None => {
                confirmed = true;
                cluster.store.read(resource, &record_name).await?.ok_or_else(|| resource.not_found(name))?
            }
        };
        match remove_record(cluster, &call.identity, resource, &record, options, by).await {
            Ok(Some(Deleted::Marked(marked))) if !confirmed && Arc::ptr_eq(&marked, &record) => {
                confirmed = true;
                continue;
            }
            // It was decided by a record that may be an old one here: it is asked for once more.
            Err(status) if !confirmed && (400..500).contains(&status.code()) => {
                confirmed = true;
                continue;
            }
            Ok(Some(deleted)) => return Ok(deleted),
            // This server may be behind: what is here would be refused again and again, as fast as it can be asked.
            Ok(None) => confirmed = true,
            Err(status) => return Err(status),
        }
        // Nobody waits here for whom somebody outside is asked.
        if turn.is_none() && !asked {
            turn = Some(cluster.store.turn(resource, &record_name).await);
        }
    }
}

/// One try; `None` when the record has changed meanwhile. `by` is who asks, and by which name, where that has to be admitted.
pub(crate) async fn remove_record(
    cluster: &Cluster,
    caller: &Identity,
    resource: &Arc<Resource>,
    record: &Arc<Record>,
    options: &DeleteOptions,
    by: Option<(&admission::Attributes<'_>, &str)>,
) -> Result<Option<Deleted>, Status> {
    authz::node::sees(cluster, caller, resource, record, authz::node::DELETE)?;
    // Of what is converted only the metadata is another, and that is in the version in which it is stored.
    let is_converted = conversion::is_needed(resource);
    let found;
    let record = if is_converted {
        found = cluster.store.get(resource, &record.key.name).filter(|found| found.revision == record.revision);
        let Some(found) = &found else { return Ok(None) };
        found
    } else {
        record
    };
    let seen = Seen::new(resource, record);
    let is_shown = is_converted && record.why_unreadable().is_none();
    let old = if is_shown { seen.in_own_version()? } else { seen.to_remove()? };
    check_preconditions(resource, &old, options)?;
    let step = plan(resource, &old, options, Timestamp::now());
    let before = options.admitted.guard();
    let asked = match by {
        Some((at, _)) => at.guard().await,
        None => None,
    };
    let admitted = asked.or_else(|| admission::mark(resource)).or_else(|| before.cloned());
    if let Some((at, name)) = by.filter(|(at, _)| step != Step::Nothing && at.may_ask()) {
        let shown = conversion::one(cluster, resource, record).await?;
        let old = Seen::new(resource, &shown).to_remove()?;
        Box::pin(admission::remove(at, name, options, &old)).await?;
    }
    let key = Store::key(resource, &record.key.name);
    let guard = Guard::Revision(record.revision);
    let mut ops = match &step {
        Step::Nothing => return Ok(Some(Deleted::Marked(record.clone()))),
        _ if options.dry_run => {
            return Ok(Some(match step {
                Step::Mark(object) => Deleted::Would(object),
                _ => Deleted::Gone(record.clone()),
            }));
        }
        Step::Mark(object) => {
            // Of what cannot be read nothing else may be written: it goes, or stays as it is.
            store::check_opened(record)?;
            let value = if is_converted {
                object::encode(object)
            } else {
                let stored = conversion::to_stored(cluster, resource, object).await?;
                Store::encode(resource, stored.as_ref().unwrap_or(object))
            };
            vec![Op::Put { key, value, guard }]
        }
        Step::Remove => {
            let mut ops = vec![Op::Delete { key, guard }];
            ops.extend(admission::release(cluster, resource, &old));
            ops
        }
    };
    // What is written of a custom resource is what its definition makes of it; what goes is nothing of that.
    let defined = match &resource.custom {
        Some(custom) if matches!(step, Step::Mark(_)) => {
            ops.push(custom.guard());
            Some(ops.len() - 1)
        }
        _ => None,
    };
    // What was admitted before is not admitted anew here.
    let readmits = before.is_some().then_some(ops.len());
    ops.extend(admitted);
    match cluster.store.transact(ops).await {
        Err(Refused::Guard(failed)) if Some(failed.op) == defined || Some(failed.op) == readmits => {
            Err(Status::server_timeout(resource.row.group(), resource.row.resource(), "delete", 1))
        }
        Ok(committed) => {
            let record = committed.records[0].clone();
            Ok(Some(if matches!(step, Step::Remove) { Deleted::Gone(record) } else { Deleted::Marked(record) }))
        }
        Err(Refused::Guard(_)) => Ok(None),
        Err(Refused::Final(status)) => Err(status),
    }
}

/// Whether the object, as it is stored, is the one that the options mean.
pub(crate) fn check_preconditions(resource: &Resource, old: &Value, options: &DeleteOptions) -> Result<(), Status> {
    let row = &resource.row;
    // The reference speaks of the type that is stored.
    let group = resource.stored.group();
    let is_namespace = (group, row.resource()) == ("", "namespaces");
    let what = if is_namespace { row.resource() } else { row.kind() };
    // Namespaces are looked at by their own code there, which has other words.
    let conflict = |field: &str, asked: &str, known: &str, message: String| {
        let plainly =
            || format!("Precondition failed: {field} in precondition: {asked}, {field} in object meta: {known}");
        Status::conflict(group, what, meta::name(old), if is_namespace { plainly() } else { message })
    };
    if let Some(uid) = options.uid.as_deref().filter(|uid| *uid != meta::uid(old)) {
        return Err(conflict(
            "UID",
            uid,
            meta::uid(old),
            format!(
                "the UID in the precondition ({uid}) does not match the UID in record ({}). The object might have been \
             deleted and then recreated",
                meta::uid(old)
            ),
        ));
    }
    let revision = meta::resource_version(old);
    let is_known = |version: &str| {
        version == revision || version.parse().is_ok_and(|asked| leases::is_version(resource, old, asked))
    };
    if let Some(version) = options.resource_version.as_deref().filter(|version| !is_known(version)) {
        return Err(conflict(
            "ResourceVersion",
            version,
            revision,
            format!(
                "the ResourceVersion in the precondition ({version}) does not match the ResourceVersion in record \
             ({revision}). The object might have been modified"
            ),
        ));
    }
    Ok(())
}

/// What a deletion does to an object as it is now.
#[derive(Debug, PartialEq)]
enum Step {
    /// Its deletion is under way already.
    Nothing,
    /// It becomes this.
    Mark(Value),
    Remove,
}

fn plan(resource: &Resource, old: &Value, options: &DeleteOptions, now: Timestamp) -> Step {
    let strategy = resource.row.strategy();
    let deleting = meta::is_deleting(old);
    let asked = options.grace.map(|seconds| if seconds < 0 { 1 } else { seconds });
    let mut object = old.clone();
    if (resource.row.group(), resource.row.resource()) == ("", "namespaces") {
        return plan_namespace(object, options, deleting, now);
    }
    if resource.row.collection() == DEFINITIONS && !deleting {
        return plan_definition(object, now);
    }
    let current = old["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0);
    let wanted = strategy.grace_period(old, asked);
    // While the grace period runs a deletion may only be made shorter.
    let shorter = asked.and(wanted).is_some_and(|grace| grace < current);
    if deleting && wanted.is_some() && current > 0 && !shorter {
        return Step::Nothing;
    }
    // Nothing depends on events: how dependents shall go says nothing about them.
    let changed = resource.row.collection() != "events"
        && set_gc_finalizers(&mut object, options, strategy.orphans_by_default() && !deleting);
    let held = meta::finalizers(&object).next().is_some();
    let generation = meta::generation(old);
    let mark = |object: &mut Value, at: Timestamp, grace: i64| {
        let metadata = meta::metadata_mut(object);
        metadata.insert("deletionTimestamp".to_owned(), time::format(at).into());
        metadata.insert("deletionGracePeriodSeconds".to_owned(), grace.into());
        if !deleting && generation > 0 {
            metadata.insert("generation".to_owned(), (generation + 1).into());
        }
    };
    let later = |from: Timestamp, seconds: i64| from.checked_add(SignedDuration::from_secs(seconds)).unwrap_or(from);
    match wanted.filter(|grace| *grace > 0) {
        Some(grace) if !deleting => {
            mark(&mut object, later(now, grace), grace);
            return Step::Mark(object);
        }
        Some(grace) if shorter => {
            // Counted from when the deletion was asked for, and never into the past.
            let at = meta::deletion_time(old).map_or(now, |end| later(end, grace - current)).max(now);
            mark(&mut object, at, grace);
            return Step::Mark(object);
        }
        _ => {}
    }
    match (held, deleting) {
        (false, _) => Step::Remove,
        (true, true) if current == 0 && !changed => Step::Nothing,
        (true, true) if current == 0 => Step::Mark(object),
        (true, _) => {
            mark(&mut object, now, 0);
            Step::Mark(object)
        }
    }
}

/// A namespace waits for the namespace controller.
fn plan_namespace(mut object: Value, options: &DeleteOptions, deleting: bool, now: Timestamp) -> Step {
    if !deleting {
        set_gc_finalizers(&mut object, options, false);
    }
    let held = object["spec"]["finalizers"].as_array().is_some_and(|finalizers| !finalizers.is_empty())
        || meta::finalizers(&object).next().is_some();
    match (deleting, held) {
        (true, true) => Step::Nothing,
        (_, false) => Step::Remove,
        (false, true) => {
            meta::metadata_mut(&mut object).insert("deletionTimestamp".to_owned(), time::format(now).into());
            if !object["status"].is_object() {
                object["status"] = json!({});
            }
            object["status"]["phase"] = "Terminating".into();
            Step::Mark(object)
        }
    }
}

/// A definition stays until its objects are gone, whatever was asked for.
fn plan_definition(mut object: Value, now: Timestamp) -> Step {
    let mut finalizers: Vec<Value> = meta::finalizers(&object).map(Value::from).collect();
    if finalizers.iter().all(|name| name != custom::CLEANUP) {
        finalizers.push(custom::CLEANUP.into());
    }
    let metadata = meta::metadata_mut(&mut object);
    metadata.insert("deletionTimestamp".to_owned(), time::format(now).into());
    metadata.insert("finalizers".to_owned(), finalizers.into());
    custom::names::terminate(&mut object, now);
    Step::Mark(object)
}

/// Sets the finalizers by which the garbage collector knows what to do with dependents, also when the object is on its way
/// out already. Says whether that changed them.
fn set_gc_finalizers(object: &mut Value, options: &DeleteOptions, orphans_by_default: bool) -> bool {
    let has = |name: &str| meta::finalizers(object).any(|finalizer| finalizer == name);
    let (orphan, foreground) = match (options.propagation, options.orphan_dependents) {
        (Some(Propagation::Orphan), _) | (None, Some(true)) => (true, false),
        (Some(Propagation::Foreground), _) => (false, true),
        (Some(Propagation::Background), _) | (None, Some(false)) => (false, false),
        (None, None) if has(ORPHAN) => (true, false),
        (None, None) if has(FOREGROUND) => (false, true),
        (None, None) => (orphans_by_default, false),
    };
    if (has(ORPHAN), has(FOREGROUND)) == (orphan, foreground) {
        return false;
    }
    let mut finalizers: Vec<Value> =
        meta::finalizers(object).filter(|name| ![ORPHAN, FOREGROUND].contains(name)).map(Value::from).collect();
    finalizers.extend(orphan.then(|| ORPHAN.into()));
    finalizers.extend(foreground.then(|| FOREGROUND.into()));
    let metadata = meta::metadata_mut(object);
    if finalizers.is_empty() {
        metadata.remove("finalizers");
    } else {
        metadata.insert("finalizers".to_owned(), finalizers.into());
    }
    true
}
