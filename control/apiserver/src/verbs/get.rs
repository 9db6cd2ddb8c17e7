//! Reading one object.

use std::sync::Arc;

use axum::response::Response;
use coracle_api::meta::parse_resource_version;
use coracle_api::status::Status;
use coracle_keyspace::{Record, Revision};

use crate::answer::respond;
use crate::answer::table::Include;
use crate::authz;
use crate::catalog::Resource;
use crate::cluster::Cluster;
use crate::conversion;
use crate::request::call::Call;
use crate::request::negotiate::Offer;
use crate::store::Seen;

pub(crate) async fn get(cluster: &Cluster, call: &Call, resource: &Arc<Resource>) -> Result<Response, Status> {
    let form = resource.form(call, Offer::Stored)?;
    let include = Include::of(&call.query)?;
    if call.query.flag("export") == Some(true) {
        return Err(Status::bad_request("the export parameter, deprecated since v1.14, is no longer supported"));
    }
    let record = read(cluster, call, resource).await?;
    respond::record(form, 200, &Seen::new(resource, &record), include)
}

/// The record that the path names, as new as `resourceVersion` asks.
pub(crate) async fn read(cluster: &Cluster, call: &Call, resource: &Arc<Resource>) -> Result<Arc<Record>, Status> {
    let name = resource.record_name(call.namespace(), call.name());
    let version = call.query.text("resourceVersion").unwrap_or_default();
    let revision = parse_resource_version(version).map_err(|error| Status::unknown_error(error.to_string()))?;
    match revision {
        0 if version.is_empty() => drop(cluster.store.barrier().await?),
        0 => {}
        revision => cluster.store.not_older_than(Revision::new(revision)).await?,
    }
    let record = cluster.store.get(resource, &name).ok_or_else(|| resource.not_found(call.name()))?;
    let record = cluster.store.renewed(resource, record).await;
    authz::node::sees(cluster, &call.identity, resource, &record, authz::node::READ)?;
    conversion::one(cluster, resource, &record).await
}
