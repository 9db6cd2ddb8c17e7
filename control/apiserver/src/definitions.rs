//! What becomes of CustomResourceDefinitions: they get their names and are established, and when they go, their objects go
//! first. One server does it, that which leads; what all of them *serve* follows from the records alone (`catalog`).
//!
//! It is woken by every change of a definition, and while one is going, by every change of its objects.

use std::sync::{Arc, Weak};

use coracle_api::custom::{self, Definition, names};
use coracle_api::meta;
use coracle_api::status::Status;
use futures::stream::{self, StreamExt};
use jiff::Timestamp;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::catalog::{DEFINITIONS, Resource, Standing};
use crate::duties;
use crate::request::options::DeleteOptions;
use crate::request::own::own_call;
use crate::server::Shared;
use crate::verbs::delete;
use crate::verbs::own::Own;

/// Whose work it is.
const WHO: &str = "system:definitions";
/// Objects of a definition that are deleted at a time.
const AT_A_TIME: usize = 64;

/// Goes on until the server stops: while this server leads.
pub(crate) async fn keep(server: Weak<Shared>, stopping: CancellationToken) {
    duties::keep(server, stopping, WHO, look).await;
}

async fn look(server: Arc<Shared>) -> Result<Vec<String>, Status> {
    let mut watched = round(&server).await?;
    watched.push(DEFINITIONS.to_owned());
    Ok(watched)
}

/// Looks at each definition once; gives the collections of those that are going and still have objects.
async fn round(server: &Shared) -> Result<Vec<String>, Status> {
    let served = server.cluster.served().await;
    let mut going = Vec::new();
    // One that cannot be settled holds up no other.
    let mut failed = None;
    // In the order in which they came, so that of two that want a name the first has it.
    let mut all: Vec<Arc<Standing>> = served.all().into_iter().cloned().collect();
    all.sort_by_key(|standing| standing.record.revision);
    let mut known: Vec<Arc<Definition>> = all.iter().map(|standing| standing.definition.clone()).collect();
    for (at, standing) in all.iter().enumerate() {
        let definition = &standing.definition;
        if definition.is_settled && !definition.is_deleting {
            continue;
        }
        let Some(object) = standing.object() else { continue };
        if definition.is_deleting {
            if meta::finalizers(&object).any(|name| name == custom::CLEANUP) {
                match end(server, standing).await {
                    Ok(true) => {}
                    Ok(false) => going.push(definition.name.clone()),
                    Err(status) => failed = failed.or(Some(status)),
                }
            }
            continue;
        }
        let decide = |object: &Value| {
            let definition = Definition::read(object);
            names::settled(object, &definition, known.iter().map(|other| &**other), Timestamp::now())
        };
        if decide(&object).is_none() {
            continue;
        }
        match write(server, standing, decide).await {
            Ok(Some(settled)) => known[at] = Arc::new(Definition::read(&settled)),
            Ok(None) => {}
            Err(status) => failed = failed.or(Some(status)),
        }
    }
    failed.map_or(Ok(going), Err)
}

/// Changes a definition; one that is gone meanwhile needs no change.
async fn write(
    server: &Shared,
    standing: &Standing,
    step: impl Fn(&Value) -> Option<Value>,
) -> Result<Option<Value>, Status> {
    let Some(resource) = definitions(server) else { return Ok(None) };
    let own = Own::new(&server.cluster, resource, None, &standing.definition.name).status().owned();
    let uid = standing.definition.uid.as_str();
    let step = |old: &Value| {
        // Another of the same name is another matter.
        let object = if meta::uid(old) == uid { step(old) } else { None };
        object.unwrap_or_else(|| old.clone())
    };
    match own.change(step).await? {
        Some(written) => written.into_value(&server.cluster, resource).await.map(Some),
        None => Ok(None),
    }
}

fn definitions(server: &Shared) -> Option<&Arc<Resource>> {
    server.cluster.catalog.named("apiextensions.k8s.io", "customresourcedefinitions")
}

/// Removes the objects of a definition that is going, and when there are none, lets it go. Says whether it did.
async fn end(server: &Shared, standing: &Arc<Standing>) -> Result<bool, Status> {
    let owns = !crate::catalog::is_built_in(&standing.definition.group, &standing.definition.asked.plural);
    let was_served = standing.definition.established;
    if owns && was_served {
        if let Some(resource) = standing.stored() {
            remove_all(server, &resource).await?;
        }
        if !server.cluster.store.keyspace.snapshot(&standing.definition.name).records.is_empty() {
            let say = |object: &Value| {
                let mut object = object.clone();
                let message = "CustomResource deletion is in progress";
                names::set_terminating(&mut object, "True", "InstanceDeletionInProgress", message, Timestamp::now());
                Some(object)
            };
            write(server, standing, say).await?;
            return Ok(false);
        }
    }
    let (reason, message) = match (owns, was_served) {
        (false, _) => ("OverlappingBuiltInResource", "instances overlap with built-in resources in storage"),
        (true, true) => ("InstanceDeletionCompleted", "removed all instances"),
        (true, false) => ("NeverEstablished", "resource was never established"),
    };
    let free = |object: &Value| {
        let mut object = object.clone();
        names::set_terminating(&mut object, "False", reason, message, Timestamp::now());
        let left: Vec<Value> =
            meta::finalizers(&object).filter(|name| *name != custom::CLEANUP).map(Value::from).collect();
        let metadata = meta::metadata_mut(&mut object);
        match left.is_empty() {
            true => drop(metadata.remove("finalizers")),
            false => drop(metadata.insert("finalizers".to_owned(), left.into())),
        }
        Some(object)
    };
    write(server, standing, free).await?;
    Ok(true)
}

/// Deletes every object of a resource that is not on its way already.
async fn remove_all(server: &Shared, resource: &Arc<Resource>) -> Result<(), Status> {
    let cluster = &server.cluster;
    let records = cluster.store.keyspace.snapshot(resource.row.collection()).records;
    let options = DeleteOptions::default();
    let removals = stream::iter(records.values().cloned().collect::<Vec<_>>()).map(|record| {
        let options = &options;
        async move {
            let (call, _) = own_call(None, "");
            let mut record = record;
            loop {
                if delete::remove_record(cluster, &call.identity, resource, &record, options, None).await?.is_some() {
                    return Ok(());
                }
                match cluster.store.read(resource, &record.key.name).await? {
                    Some(newer) => record = newer,
                    None => return Ok::<(), Status>(()),
                }
            }
        }
    });
    let outcomes: Vec<Result<(), Status>> = removals.buffer_unordered(AT_A_TIME).collect().await;
    outcomes.into_iter().collect()
}
