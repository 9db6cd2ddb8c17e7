//! Namespaces: nothing is made in one that is not there or is going, and some stay for ever.

use coracle_api::meta;
use coracle_api::status::Status;
use coracle_keyspace::{Guard, Op};
use serde_json::Value;

use super::Attributes;
use crate::catalog::Resource;
use crate::store::{Seen, Store};

/// Namespaces that may not be deleted.
const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

pub(super) async fn create(at: &Attributes<'_>, object: &Value) -> Result<Option<Op>, Status> {
    let Some(namespace) = at.namespace.filter(|_| at.resource.row.namespaced()) else { return Ok(None) };
    let cluster = at.cluster;
    let Some(namespaces) = cluster.catalog.named("", "namespaces") else { return Ok(None) };
    let found = cluster.store.find(namespaces, namespace).await?;
    let record = found.ok_or_else(|| Status::not_found("", "namespaces", namespace))?;
    if !Seen::new(namespaces, &record).known_facts()?.deleting {
        let guard = Guard::Revision(record.revision);
        return Ok(Some(Op::Check { key: Store::key(namespaces, &record.key.name), guard }));
    }
    let message = format!("unable to create new content in namespace {namespace} because it is being terminated");
    Err(at.resource.forbidden(meta::name(object), message).with_cause(
        "NamespaceTerminating",
        format!("namespace {namespace} is being terminated"),
        "metadata.namespace",
    ))
}

/// Refuses the deletion of namespaces that may not go.
pub(crate) fn delete(resource: &Resource, name: &str) -> Result<(), Status> {
    if super::is(resource, "", "namespaces") && IMMORTAL.contains(&name) {
        return Err(resource.forbidden(name, "this namespace may not be deleted"));
    }
    Ok(())
}
