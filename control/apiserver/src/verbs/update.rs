//! Replacing an object, and the loop that every change of one goes through.

use std::sync::Arc;

use axum::response::Response;
use coracle_api::kinds::{self, FieldError};
use coracle_api::meta::{self, parse_resource_version};
use coracle_api::status::Status;
use coracle_keyspace::{Guard, Op, Record};
use serde_json::Value;

use super::create::insert;
use super::ownership;
use super::write::{Write, Written};
use crate::admission;
use crate::answer::table::Include;
use crate::authz;
use crate::catalog::Resource;
use crate::cluster::Cluster;
use crate::conversion;
use crate::request::body::{self, Expected};
use crate::request::call::Request;
use crate::request::negotiate::Offer;
use crate::request::options::{Validation, write_options};
use crate::store::{Race, Refused, Seen, Store, leases};

pub(crate) async fn update(
    cluster: &Cluster,
    request: &Request,
    resource: &Arc<Resource>,
    subresource: &str,
) -> Result<Response, Status> {
    let call = &request.call;
    let form = resource.form(call, Offer::Stored)?;
    let include = Include::of(&call.query)?;
    let options = write_options(call, "UpdateOptions", None)?;
    let expected = Expected { api_version: &resource.api_version, kind: resource.row.kind(), schema: &resource.schema };
    let object = body::object(call, &request.body, &expected, options.validation)?;
    let write = Write { cluster, call, resource, options: &options, subresource };
    call.check_name(&object)?;
    let creates = subresource.is_empty() && resource.row.strategy().allows_create_on_update();
    let found = write.cluster.store.get(resource, &resource.record_name(call.namespace(), call.name()));
    if found.is_none() && creates && meta::resource_version(&object).is_empty() {
        write.may_create()?;
        match insert(&write, object.clone(), false).await {
            Err(status) if status.reason == "AlreadyExists" => {}
            written => return written?.respond(cluster, form, 201, resource, include).await,
        }
    }
    // Seldom tried twice: it is decoded again then, instead of copied each time. What is odd about it has been said.
    let mut first = Some(object);
    let again = || body::object(call, &request.body, &expected, Validation::Ignore);
    let step = |_: &Value| {
        let object = first.take().map_or_else(again, Ok)?;
        Ok(Changed { object, owned: false, names_version: true })
    };
    let written = change(&write, step).await?;
    written.respond(cluster, form, 200, resource, include).await
}

/// What a step made of an object.
pub(crate) struct Changed {
    /// The object, in the form of the write's resource.
    pub object: Value,
    /// Whether it already says who owns what (an apply).
    pub owned: bool,
    /// Whether the version in it is the client's; a patch has that of the object it is made on.
    pub names_version: bool,
}

/// Reads the object, lets `step` change it, and stores the result; again when somebody else was quicker and the client
/// did not name the version it means.
pub(crate) async fn change(
    write: &Write<'_>,
    mut step: impl FnMut(&Value) -> Result<Changed, Status>,
) -> Result<Written, Status> {
    let (resource, call) = (write.resource, write.call);
    let record_name = resource.record_name(call.namespace(), call.name());
    let mut record = match write.cluster.store.get(resource, &record_name) {
        Some(record) => record,
        None => {
            write.cluster.store.read(resource, &record_name).await?.ok_or_else(|| resource.not_found(call.name()))?
        }
    };
    let (mut turn, mut confirmed, mut race) = (None, false, Race::default());
    // Until it is done or the request's time is up.
    loop {
        // Of its own: whoever calls it is a hundred calls deep already.
        let outcome = Box::pin(attempt(write, &record, &mut step)).await;
        // What was not put to the keyspace was decided by a record that may be an old one here: it is asked for once more.
        let decided_here = match &outcome {
            Err(Refused::Final(status)) => (400..500).contains(&status.code()),
            Ok(Written::Record(written)) => Arc::ptr_eq(written, &record),
            Ok(Written::Value(_)) => write.options.dry_run,
            Err(Refused::Guard(_)) => false,
        };
        let newest = if decided_here && !confirmed {
            write.cluster.store.read(resource, &record_name).await?
        } else {
            Some(record.clone())
        };
        match newest {
            Some(newest) if newest.revision == record.revision => match outcome {
                Ok(written) => return Ok(written),
                Err(Refused::Final(status)) => return Err(status),
                Err(Refused::Guard(failed)) if !race.goes_on(&failed) => {
                    let row = &resource.row;
                    return Err(Status::server_timeout(row.group(), row.resource(), authz::verb(write.call), 1));
                }
                Err(Refused::Guard(_)) => tokio::task::yield_now().await,
            },
            Some(newest) => {
                (record, confirmed) = (newest, true);
                continue;
            }
            None => return Err(resource.not_found(call.name())),
        }
        confirmed = true;
        // Nobody waits here for whom somebody outside is asked.
        if turn.is_none() && !write.attributes().asks() {
            turn = Some(write.cluster.store.turn(resource, &record_name).await);
        }
        let newest = write.cluster.store.read(resource, &record_name).await?;
        record = newest.ok_or_else(|| resource.not_found(call.name()))?;
    }
}

/// One try.
async fn attempt(
    write: &Write<'_>,
    record: &Arc<Record>,
    step: &mut impl FnMut(&Value) -> Result<Changed, Status>,
) -> Result<Written, Refused> {
    let (resource, call) = (write.resource, write.call);
    let row = &resource.row;
    authz::node::sees(write.cluster, &call.identity, resource, record, authz::node::UPDATE)?;
    let before = write.options.admitted.guard();
    let admitted = write.attributes().guard().await.or_else(|| before.cloned());
    let converted = conversion::one(write.cluster, resource, record).await?;
    let seen = Seen::new(resource, &converted);
    let old = seen.stored_whole()?;
    let view = if resource.is_view { Some(seen.value()?) } else { None };
    let Changed { mut object, owned, names_version } = step(view.as_ref().unwrap_or(&old))?;
    drop(view);
    row.strategy().to_storage(&mut object);
    write.take_place(&mut object)?;
    let named = check_version(write, &object, &old, record)? && names_version;
    check_uid(write, &object, &old, names_version)?;
    write.keep_metadata(&mut object, &old);
    meta::set_resource_version(&mut object, record.revision.get());
    write.ready_changed(&mut object, &old, owned).await?;
    let allocated = admission::allocate(&write.attributes(), &mut object, Some(&old))?;
    write.validate_changed(&object, &old)?;
    // Who writes what a controller saw is not told what is odd about what was asked for.
    match write.subresource {
        "status" => call.warn_all(row.built_in().and_then(kinds::inert_warning)),
        _ => call.warn_all(row.warnings(&object, Some(&old))),
    }
    write.canonicalize(&mut object);
    let attributes = write.attributes();
    if !write.options.own {
        admission::validate(&attributes, &object, Some(&old), write.options.dry_run).await?;
    }
    // What another version or another schema left is written anew.
    let is_unchanged = Seen::new(resource, record).is_stored_now() && ownership::is_unchanged(&object, &old);
    if is_unchanged && conversion::keeps(resource, record, &object)? {
        return Ok(Written::Record(record.clone()));
    }
    let gone = is_finished(resource, &object, &old);
    let key = Store::key(resource, &record.key.name);
    let guard = Guard::Revision(record.revision);
    let mut charge = admission::Charge::default();
    let mut ops = if gone {
        let mut ops = vec![Op::Delete { key, guard }];
        ops.extend(admission::release(write.cluster, resource, &old));
        ops
    } else {
        let value = write.encode(&object).await?;
        if !write.options.dry_run && leases::is_renewed(resource, &object, &old) {
            return write.cluster.store.renew(record, value).await.map(Written::Record);
        }
        if !write.options.own {
            charge = admission::charge(&attributes, &object, Some(&old), write.options.dry_run).await?;
        }
        let mut ops = vec![Op::Put { key, value, guard }];
        ops.extend(allocated);
        ops
    };
    if write.options.dry_run {
        return Ok(Written::Value(object));
    }
    ops.append(&mut charge.ops);
    let defined = write.guard(&mut ops);
    // What was admitted before is not admitted anew here.
    let readmits = before.is_some().then_some(ops.len());
    ops.extend(admitted);
    match write.cluster.store.transact(ops).await {
        Err(Refused::Guard(failed)) if Some(failed.op) == defined || Some(failed.op) == readmits => {
            Err(write.redefined(authz::verb(write.call)).into())
        }
        Ok(committed) if gone => {
            meta::set_resource_version(&mut object, committed.revision.get());
            Ok(Written::Value(object))
        }
        Ok(committed) => {
            charge.settle(write.cluster).await;
            Ok(write.written(committed.records[0].clone(), object))
        }
        Err(Refused::Guard(failed)) if failed.op == 0 && named => Err(resource.outrun(call.name(), &failed).into()),
        Err(refused) => Err(refused),
    }
}

/// Whether the client named a version; it must be the record's.
fn check_version(write: &Write<'_>, object: &Value, old: &Value, record: &Record) -> Result<bool, Status> {
    let version = meta::resource_version(object);
    let row = &write.resource.row;
    let asked = parse_resource_version(version).map_err(|error| {
        let prefix = format!("Invalid value: {}: ", coracle_api::meta::text::quote(version));
        Status::unknown_error(error.message.trim_start_matches(&prefix))
    })?;
    if asked == 0 {
        if write.subresource.is_empty() && !row.strategy().allows_unconditional_update() {
            let error = FieldError::invalid("metadata.resourceVersion", 0, "must be specified for an update");
            return Err(Status::invalid(row.group(), row.resource(), write.call.name(), vec![error]));
        }
        return Ok(false);
    }
    if asked != record.revision.get() && !leases::is_version(write.resource, old, asked) {
        return Err(write.resource.stale(write.call.name()));
    }
    Ok(true)
}

/// A uid in the body says which incarnation is meant; a patch cannot change it.
fn check_uid(write: &Write<'_>, object: &Value, old: &Value, precondition: bool) -> Result<(), Status> {
    let (given, known) = (meta::uid(object), meta::uid(old));
    if given.is_empty() || given == known {
        return Ok(());
    }
    let row = &write.resource.row;
    if !precondition {
        let error = FieldError::invalid("metadata.uid", given, "field is immutable");
        return Err(Status::invalid(row.group(), row.kind(), write.call.name(), vec![error]));
    }
    let message = format!("Precondition failed: UID in precondition: {given}, UID in object meta: {known}");
    Err(Status::conflict(row.group(), row.resource(), write.call.name(), message))
}

/// Whether the object was only kept for its finalizers, and has none any more.
pub(crate) fn is_finished(resource: &Resource, object: &Value, old: &Value) -> bool {
    let grace = old["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0);
    let held = (resource.row.group(), resource.row.resource()) == ("", "namespaces")
        && object["spec"]["finalizers"].as_array().is_some_and(|finalizers| !finalizers.is_empty());
    meta::is_deleting(old) && grace == 0 && meta::finalizers(object).next().is_none() && !held
}
