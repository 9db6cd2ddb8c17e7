//! What controllers of workloads have in common: references to owners, taking over and letting go, creations whose
//! outcome may be unknown, pods and their templates, statuses that were written and are not seen yet, and the history of templates.

mod claim;
pub(crate) mod history;
mod in_flight;
mod names;
mod pods;
mod settle;
mod template;
mod written;

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use serde::Serialize;
use serde_json::json;

use crate::Error;
use crate::client::{self, Client, Meta, Resource};
use crate::informer::Key;

pub(crate) use claim::claim;
pub(crate) use in_flight::{Flight, InFlight, OVERDUE};
pub(crate) use names::{generated_name, hash, hashed_name};
pub(crate) use pods::{Asked, Owner, Pods, Row, listen, side_by_side, slow_start, wake_selecting, workload_of};
pub(crate) use settle::Settle;
pub(crate) use template::{Template, normal};
pub(crate) use written::Written;

/// Requests with an unknown outcome are repeated this often at once.
const ATTEMPTS: u32 = 3;

/// Go's omitempty: zero is absent.
pub(crate) fn unless_zero(count: i32) -> Option<i32> {
    Some(count).filter(|count| *count != 0)
}

/// The reference of a controller in what it controls.
pub(crate) fn owner_reference(api_version: &str, kind: &str, name: Option<&str>, uid: &str) -> OwnerReference {
    OwnerReference {
        api_version: api_version.to_owned(),
        kind: kind.to_owned(),
        name: name.unwrap_or_default().to_owned(),
        uid: uid.to_owned(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// Writes the owners of an object in the version that was decided on.
pub(crate) async fn set_owners(
    client: &Client,
    resource: Resource,
    (key, uid, version): (&Key, &str, &str),
    owners: &[OwnerReference],
    what: &'static str,
) -> Result<(), Error> {
    let patch = json!({"metadata": {"uid": uid, "resourceVersion": version, "ownerReferences": owners}});
    match client.patch(resource, key, &patch).await {
        Err(error) if client::is_not_found(&error) => Ok(()),
        other => other.map(drop).map_err(Error::api(what)),
    }
}

/// The cache may be late: only who lives may adopt.
pub(crate) async fn may_adopt(client: &Client, resource: Resource, key: &Key, uid: &str) -> Result<(), Error> {
    let live: Meta = client.fetch(resource, key).await.map_err(Error::api("read the owner again"))?;
    if live.metadata.uid.as_deref() != Some(uid) || live.metadata.deletion_timestamp.is_some() {
        return Err(Error::Stale("the owner is gone"));
    }
    Ok(())
}

/// What became of a creation.
pub(crate) enum Created {
    /// It is made.
    Made(Box<Meta>),
    /// An object of that name is there. If the outcome was unknown before, it may be this one.
    Taken(kube::Error),
    /// Nobody knows.
    Unknown(kube::Error),
    /// It is not made.
    Refused(kube::Error),
}

/// Creates an object that has its name; again, while nobody knows whether it was created.
pub(crate) async fn create_named<B: Serialize>(
    client: &Client,
    resource: Resource,
    namespace: &str,
    body: &B,
) -> Created {
    let mut attempt = 1;
    loop {
        return match client.create(resource, namespace, body).await {
            Ok(made) => Created::Made(Box::new(made)),
            Err(error) if client::is_conflict(&error) => Created::Taken(error),
            // A refusal says nothing of the attempts before it.
            Err(error) if !client::is_unknown(&error) && attempt > 1 => Created::Unknown(error),
            Err(error) if !client::is_unknown(&error) => Created::Refused(error),
            Err(_) if attempt < ATTEMPTS => {
                tokio::time::sleep(Duration::from_millis(50 << attempt)).await;
                attempt += 1;
                continue;
            }
            Err(error) => Created::Unknown(error),
        };
    }
}
