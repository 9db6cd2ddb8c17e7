//! Admission: what the cluster adds to objects, or refuses, beside what is valid in itself (kubernetes-api §19).

mod lifecycle;
pub(crate) mod network;
mod pod;

use coracle_api::status::Status;
use coracle_keyspace::Op;
use serde_json::Value;

use crate::catalog::Resource;
use crate::server::Shared;
use crate::verbs::write::Write;

pub(crate) use lifecycle::delete;

/// Admits a new object, and completes it. Says whether anything was added, which may need defaults of its own.
pub(crate) async fn create(write: &Write<'_>, object: &mut Value) -> Result<bool, Status> {
    lifecycle::create(write, object).await?;
    let is_pod = is(write.resource, "", "pods");
    if is_pod {
        pod::create(write, object).await?;
    }
    Ok(is_pod)
}

/// Admits a change, and completes it.
pub(crate) async fn update(write: &Write<'_>, object: &mut Value, old: &Value) -> Result<(), Status> {
    if is(write.resource, "", "pods") && write.subresource.is_empty() {
        pod::update(object, old);
    }
    Ok(())
}

/// Whether objects of this resource hold something that is given out once in the cluster.
pub(crate) fn allocates(resource: &Resource) -> bool {
    is(resource, "", "services")
}

/// Gives an object what is given out once in the cluster; the operations go into the transaction that stores it.
pub(crate) fn allocate(write: &Write<'_>, object: &mut Value, old: Option<&Value>) -> Result<Vec<Op>, Status> {
    if allocates(write.resource) && matches!(write.subresource, "") {
        return network::allocate(write, object, old);
    }
    Ok(Vec::new())
}

/// What an object that goes gives back, in the transaction that removes it.
pub(crate) fn release(server: &Shared, resource: &Resource, old: &Value) -> Vec<Op> {
    if allocates(resource) { network::release_all(server, old) } else { Vec::new() }
}

fn is(resource: &Resource, group: &str, name: &str) -> bool {
    (resource.row.group, resource.row.resource) == (group, name)
}
