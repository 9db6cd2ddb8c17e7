//! Taking over and letting go: what matches a workload and belongs to nobody becomes its own, and what it controls and does not
//! match any more is nobody's.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

use super::{Owner, Row, may_adopt, owner_reference, set_owners};
use crate::Error;
use crate::client::{Client, Resource};
use crate::informer::{Index, Object, Store};

/// What of a kind the workload controls and still matches it. `None` after taking some that belong to nobody: their events come.
/// Others are let go. A workload that is being deleted takes and lets go of nothing.
pub(crate) async fn claim<K: Object>(
    client: &Client,
    (resource, store): (Resource, &Store<K>),
    (row, owner): (Row, Owner<'_>),
    is_deleting: bool,
    is_member: impl Fn(&K) -> bool,
) -> Result<Option<Vec<Arc<K>>>, Error> {
    let (members, others): (Vec<_>, Vec<_>) =
        store.controlled_by(owner.uid).into_iter().partition(|object| is_member(object));
    if is_deleting {
        return Ok(Some(members));
    }
    let mut orphans = store.by(Index::Orphan, &owner.key.namespace);
    orphans.retain(|object| !object.is_deleting() && is_member(object));
    transfer(client, resource, (row, owner), &orphans, &others).await?;
    Ok(orphans.is_empty().then_some(members))
}

/// Takes some over, and lets go of others.
pub(crate) async fn transfer<K: Object>(
    client: &Client,
    resource: Resource,
    (row, owner): (Row, Owner<'_>),
    adopt: &[Arc<K>],
    release: &[Arc<K>],
) -> Result<(), Error> {
    if !adopt.is_empty() {
        may_adopt(client, row.resource, owner.key, owner.uid).await?;
    }
    for object in adopt {
        let mut owners = object.owners().to_vec();
        owners.push(owner_reference(row.api_version, row.kind, Some(&owner.key.name), owner.uid));
        write(client, resource, &**object, &owners, "adopt an object").await?;
    }
    for object in release {
        let mut owners = object.owners().to_vec();
        owners.retain(|other| other.uid != owner.uid);
        write(client, resource, &**object, &owners, "release an object").await?;
    }
    Ok(())
}

async fn write<K: Object>(
    client: &Client,
    resource: Resource,
    object: &K,
    owners: &[OwnerReference],
    what: &'static str,
) -> Result<(), Error> {
    let (key, version) = (object.key(), object.version().to_string());
    set_owners(client, resource, (&key, object.uid(), &version), owners, what).await
}
