//! Admission: what the cluster adds to objects, or refuses, beside what is valid in itself (kubernetes-api §19).

mod certificates;
pub(crate) mod ingress_class;
mod lifecycle;
mod limit_range;
pub(crate) mod network;
mod node;
mod pod;
mod pod_range;
mod pod_security;
mod quota;
pub(crate) mod topology;
pub(crate) mod volumes;

use coracle_api::meta;
use coracle_api::status::Status;
use coracle_keyspace::Op;
use serde_json::Value;

use crate::authz;
use crate::catalog::Resource;
use crate::cluster::Cluster;
use crate::identity::Identity;
use crate::request::call::Call;

/// What is admitted: an object of a resource, at a place.
#[derive(Clone, Copy)]
pub(crate) struct Attributes<'a> {
    pub cluster: &'a Cluster,
    pub resource: &'a Resource,
    /// Who writes.
    pub caller: &'a Identity,
    /// Hears warnings.
    pub call: &'a Call,
    /// Whether that one is in this process.
    pub is_here: bool,
    /// Of the path.
    pub namespace: Option<&'a str>,
    /// Empty for the object itself.
    pub subresource: &'a str,
}

pub(crate) use lifecycle::delete;
pub(crate) use quota::Charge;

/// Admits a new object, and completes it. Says whether anything was added, which may need defaults of its own.
pub(crate) async fn create(at: &Attributes<'_>, object: &mut Value) -> Result<bool, Status> {
    authz::node::creates(at.caller, at.resource, object)?;
    authz::rbac::grants(at.cluster, at.caller, (at.resource, at.namespace), object, None)?;
    if is(at.resource, "", "nodes") {
        node::create(object);
    }
    if is(at.resource, "networking.k8s.io", "ingresses") && at.subresource.is_empty() {
        ingress_class::create(at, object)?;
    }
    if is(at.resource, "certificates.k8s.io", "certificatesigningrequests") {
        certificates::create(at, object)?;
    }
    if is(at.resource, "", "persistentvolumeclaims") {
        volumes::create_claim(at, object)?;
    }
    if is(at.resource, "", "persistentvolumes") {
        volumes::create_volume(object);
    }
    let is_pod = is(at.resource, "", "pods");
    if is_pod {
        limit_range::complete(at, object)?;
        pod::create(at, object).await?;
    }
    Ok(is_pod)
}

/// Checks that the namespace of a new object takes new content; the operation keeps it so until the object is stored.
pub(crate) async fn place(at: &Attributes<'_>, object: &Value) -> Result<Option<Op>, Status> {
    lifecycle::create(at, object).await
}

/// Admits a change, and completes it.
pub(crate) async fn update(at: &Attributes<'_>, object: &mut Value, old: &Value) -> Result<(), Status> {
    authz::node::changes(at.caller, at.resource, object, old)?;
    authz::rbac::grants(at.cluster, at.caller, (at.resource, at.namespace), object, Some(old))?;
    if is(at.resource, "certificates.k8s.io", "certificatesigningrequests") {
        certificates::update(at, object, old)?;
    }
    if is(at.resource, "", "pods") && at.subresource.is_empty() {
        pod::update(object, old);
    }
    if is(at.resource, "", "pods") && at.subresource == "resize" && !meta::is_deleting(old) {
        limit_range::complete(at, object)?;
    }
    Ok(())
}

/// Whether an object may be as it is now: what no plugin changes any more, and what is valid in itself.
pub(crate) async fn validate(at: &Attributes<'_>, object: &Value, old: Option<&Value>) -> Result<(), Status> {
    limit_range::validate(at, object, old)?;
    if let Some(old) = old.filter(|_| is(at.resource, "", "persistentvolumeclaims") && at.subresource.is_empty()) {
        volumes::resize(at, object, old)?;
    }
    pod_security::validate(at, object, old).await
}

/// What it takes of the quotas of its namespace; the operations go into the transaction that stores it, which is then to be
/// settled. The last of all: only what may be is charged.
pub(crate) async fn charge<'a>(
    at: &Attributes<'a>,
    object: &Value,
    old: Option<&Value>,
    dry_run: bool,
) -> Result<Charge<'a>, Status> {
    quota::charge(at, object, old, dry_run).await
}

/// Whether objects of this resource hold something that is given out once in the cluster.
pub(crate) fn allocates(resource: &Resource) -> bool {
    is(resource, "", "services") || is(resource, "", "nodes")
}

/// Gives an object what is given out once in the cluster; the operations go into the transaction that stores it.
pub(crate) fn allocate(at: &Attributes<'_>, object: &mut Value, old: Option<&Value>) -> Result<Vec<Op>, Status> {
    match at.resource.row.resource() {
        _ if !allocates(at.resource) || !at.subresource.is_empty() => Ok(Vec::new()),
        "nodes" if old.is_some() => pod_range::check(at.cluster, object).map(|()| Vec::new()),
        "nodes" => pod_range::allocate(at, object),
        _ => network::allocate(at, object, old),
    }
}

/// What an object that goes gives back, in the transaction that removes it.
pub(crate) fn release(cluster: &Cluster, resource: &Resource, old: &Value) -> Vec<Op> {
    match resource.row.resource() {
        _ if is(resource, "", "resourcequotas") => quota::release(cluster, old),
        _ if !allocates(resource) => Vec::new(),
        "nodes" => pod_range::release(cluster, old),
        _ => network::release_all(cluster, old),
    }
}

fn is(resource: &Resource, group: &str, name: &str) -> bool {
    (resource.row.group(), resource.row.resource()) == (group, name)
}
