//! Namespaces: nothing is made in one that is not there or is going, and some stay for ever.

use coracle_api::meta;
use coracle_api::status::Status;
use serde_json::Value;

use crate::catalog::Resource;
use crate::store::Seen;
use crate::verbs::write::Write;

/// Namespaces that may not be deleted.
const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

pub(super) async fn create(write: &Write<'_>, object: &Value) -> Result<(), Status> {
    let Some(namespace) = write.call.namespace().filter(|_| write.resource.row.namespaced) else { return Ok(()) };
    let server = write.server;
    let Some(namespaces) = server.catalog.named("", "namespaces") else { return Ok(()) };
    let record = match server.store.get(namespaces, namespace) {
        Some(record) => record,
        None => server
            .store
            .read(namespaces, namespace)
            .await?
            .ok_or_else(|| Status::not_found("", "namespaces", namespace))?,
    };
    let found = Seen::new(namespaces, &record).stored();
    if !meta::is_deleting(&found) {
        return Ok(());
    }
    let message = format!("unable to create new content in namespace {namespace} because it is being terminated");
    Err(write.resource.forbidden(meta::name(object), message).with_cause(
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
