//! Reading one object.

use std::sync::Arc;

use axum::response::Response;
use coracle_api::meta::parse_resource_version;
use coracle_api::status::Status;
use coracle_keyspace::{Record, Revision};

use crate::catalog::Resource;
use crate::edge::call::Call;
use crate::edge::negotiate::Offer;
use crate::edge::respond;
use crate::server::Shared;
use crate::store::Seen;
use crate::table::Include;

pub(crate) async fn get(server: &Shared, call: &Call, resource: &Arc<Resource>) -> Result<Response, Status> {
    let form = call.form(Offer::Stored)?;
    let include = Include::of(&call.query)?;
    if call.query.flag("export") == Some(true) {
        return Err(Status::bad_request("the export parameter, deprecated since v1.14, is no longer supported"));
    }
    let record = read(server, call, resource).await?;
    respond::record(form, 200, &Seen::new(resource, &record), include)
}

/// The record that the path names, as new as `resourceVersion` asks.
pub(crate) async fn read(server: &Shared, call: &Call, resource: &Arc<Resource>) -> Result<Arc<Record>, Status> {
    let name = resource.record_name(call.namespace(), call.name());
    let version = call.query.text("resourceVersion").unwrap_or_default();
    let revision = parse_resource_version(version).map_err(|error| Status::unknown_error(error.to_string()))?;
    match revision {
        0 if version.is_empty() => drop(server.store.barrier().await?),
        0 => {}
        revision => server.store.not_older_than(Revision::new(revision)).await?,
    }
    server.store.get(resource, &name).ok_or_else(|| resource.not_found(call.name()))
}
