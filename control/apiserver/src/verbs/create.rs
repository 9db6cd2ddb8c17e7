//! Creating an object.

use std::sync::Arc;

use axum::response::Response;
use coracle_api::meta::{self, generate};
use coracle_api::status::Status;
use coracle_keyspace::{Guard, Op};
use serde_json::Value;

use super::write::{Write, Written};
use crate::admission;
use crate::answer::table::Include;
use crate::catalog::Resource;
use crate::cluster::Cluster;
use crate::request::body::{self, Expected};
use crate::request::call::Request;
use crate::request::negotiate::Offer;
use crate::request::options::write_options;
use crate::store::{Race, Refused, Seen, Store};

/// How often a generated name that is taken is replaced by another.
const NAMES_TRIED: usize = 8;

pub(crate) async fn create(cluster: &Cluster, request: &Request, resource: &Arc<Resource>) -> Result<Response, Status> {
    let call = &request.call;
    let form = resource.form(call, Offer::Stored)?;
    let include = Include::of(&call.query)?;
    let options = write_options(call, "CreateOptions", None)?;
    let expected = Expected { api_version: &resource.api_version, kind: resource.row.kind(), schema: &resource.schema };
    let object = body::object(call, &request.body, &expected, options.validation)?;
    let write = Write { cluster, call, resource, options: &options, subresource: "" };
    let written = insert(&write, object, false).await?;
    written.respond(cluster, form, 201, resource, include).await
}

/// How often a new object is admitted anew because webhooks were configured meanwhile.
const READMITTED_MAX: usize = 4;

/// Creates `object`, which is in the form of the write's resource.
pub(crate) async fn insert(write: &Write<'_>, mut object: Value, owned: bool) -> Result<Written, Status> {
    for _ in 0..READMITTED_MAX {
        // Only where it may have to be admitted anew is there another one.
        let guard = write.attributes().guard().await;
        let again = guard.is_some().then(|| object.clone());
        // Of its own: whoever calls it is a hundred calls deep already.
        match (Box::pin(insert_once(write, object, owned, guard)).await, again) {
            (Err(Unwritten::Readmit), Some(again)) => {
                write.cluster.store.barrier().await?;
                object = again;
            }
            (Err(Unwritten::Readmit), None) => break,
            (Err(Unwritten::Final(status)), _) => return Err(status),
            (Ok(written), _) => return Ok(written),
        }
    }
    Err(Status::server_timeout(write.resource.row.group(), write.resource.row.resource(), "create", 1))
}

/// Why nothing was made.
enum Unwritten {
    /// What configures admission has changed meanwhile.
    Readmit,
    Final(Status),
}

impl From<Status> for Unwritten {
    fn from(status: Status) -> Unwritten {
        Unwritten::Final(status)
    }
}

/// `guard` says what admits it.
async fn insert_once(
    write: &Write<'_>,
    mut object: Value,
    owned: bool,
    guard: Option<Op>,
) -> Result<Written, Unwritten> {
    let resource = write.resource;
    let row = &resource.row;
    row.strategy().to_storage(&mut object);
    write.take_place(&mut object)?;
    let has_version = !meta::resource_version(&object).is_empty();
    let base = match meta::name(&object) {
        "" => object["metadata"]["generateName"].as_str().filter(|base| !base.is_empty()).map(str::to_owned),
        _ => None,
    };
    write.wipe_metadata(&mut object);
    if let Some(base) = &base {
        set_name(&mut object, base);
    }
    let mut lives = admission::place(&write.attributes(), &object).await?;
    let generated = meta::name(&object).to_owned();
    write.ready_new(&mut object, owned, base.is_some()).await?;
    // A name that a webhook has given is no other.
    let base = base.filter(|_| meta::name(&object) == generated);
    let store = &write.cluster.store;
    let (mut names, mut race) = (1, Race::default());
    // Until it is done or the request's time is up.
    loop {
        // What is allocated is given back when the write is tried again.
        let before = admission::allocates(resource).then(|| object.clone());
        let allocated = admission::allocate(&write.attributes(), &mut object, None)?;
        write.validate_new(&object)?;
        write.call.warn_all(row.warnings(&object, None));
        let attributes = write.attributes();
        if !write.options.own {
            admission::validate(&attributes, &object, None, write.options.dry_run).await?;
        }
        write.canonicalize(&mut object);
        // As late as Kubernetes' storage says it, which is not asked for a dry run.
        if has_version && !write.options.dry_run {
            return Err(Status::unknown_error("resourceVersion should not be set on objects to be created").into());
        }
        let name = meta::name(&object).to_owned();
        let record_name = resource.record_name(write.call.namespace(), &name);
        let value = write.encode(&object).await?;
        let mut charge = admission::Charge::default();
        if !write.options.own {
            charge = admission::charge(&attributes, &object, None, write.options.dry_run).await?;
        }
        if write.options.dry_run {
            store.barrier().await?;
            match store.get(resource, &record_name) {
                Some(_) if base.is_some() && names < NAMES_TRIED => {}
                Some(existing) => return Err(taken(write, &existing, &name).into()),
                None => return Ok(Written::Value(object)),
            }
        } else {
            let key = Store::key(resource, &record_name);
            let mut ops = vec![Op::Put { key, value, guard: Guard::Absent }];
            ops.extend(allocated);
            ops.extend(lives.clone());
            ops.append(&mut charge.ops);
            let defined = write.guard(&mut ops);
            let admitted = guard.is_some().then_some(ops.len());
            ops.extend(guard.clone());
            match store.transact(ops).await {
                Ok(committed) => {
                    charge.settle(write.cluster).await;
                    return Ok(write.written(committed.records[0].clone(), object));
                }
                Err(Refused::Final(status)) => return Err(status.into()),
                Err(Refused::Guard(failed)) if Some(failed.op) == defined => {
                    return Err(write.redefined("create").into());
                }
                Err(Refused::Guard(failed)) if Some(failed.op) == admitted => return Err(Unwritten::Readmit),
                // The namespace or a quota has changed, or what was chosen for the object was taken meanwhile.
                Err(Refused::Guard(failed)) if failed.op > 0 => {
                    if !race.goes_on(&failed) {
                        return Err(Status::server_timeout(row.group(), row.resource(), "create", 1).into());
                    }
                    store.barrier().await?;
                    tokio::task::yield_now().await;
                    lives = admission::place(&write.attributes(), &object).await?;
                    object = before.unwrap_or(object);
                    continue;
                }
                Err(Refused::Guard(failed)) => match failed.found {
                    Some(_) if base.is_some() && names < NAMES_TRIED => {}
                    Some(existing) => return Err(taken(write, &existing, &name).into()),
                    None => return Err(Status::server_timeout(row.group(), row.resource(), "create", 1).into()),
                },
            }
        }
        // Only an object whose generated name was taken comes here.
        names += 1;
        if names > NAMES_TRIED {
            return Err(Status::generated_names_taken(row.group(), row.resource(), &name, 1).into());
        }
        object = before.unwrap_or(object);
        if let Some(base) = &base {
            set_name(&mut object, base);
            row.strategy().renamed(&mut object, &name);
        }
    }
}

fn set_name(object: &mut Value, base: &str) {
    let name = generate::generate_name(base, rand::random());
    meta::metadata_mut(object).insert("name".to_owned(), name.into());
}

/// 409; of an object that is going, it says so.
fn taken(write: &Write<'_>, existing: &Arc<coracle_keyspace::Record>, name: &str) -> Status {
    let row = &write.resource.row;
    let mut status = Status::already_exists(row.group(), row.resource(), name);
    if Seen::new(write.resource, existing).facts().deleting {
        status.message = format!("object is being deleted: {}", status.message);
    }
    status
}
