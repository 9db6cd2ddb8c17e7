//! FlowSchemas and PriorityLevelConfigurations that every cluster has, made and kept as they are to be, and what FlowSchemas say
//! of their levels (`Dangling`). The server that leads does it.
//!
//! Mandatory ones are what they are to be, whatever somebody writes into them. Suggested ones are kept so while their
//! annotation says so; without one, while nobody has changed them (`apf.kubernetes.io/autoupdate-spec`).

use std::sync::{Arc, Weak};

use coracle_api::codec::json;
use coracle_api::meta;
use coracle_api::status::Status;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::catalog::Resource;
use crate::cluster::Cluster;
use crate::duties;
use crate::fairness::{COLLECTIONS, Facts, facts};
use crate::request::own::own_call;
use crate::server::Shared;
use crate::verbs::create::insert;
use crate::verbs::update::{Changed, change};
use crate::verbs::write::Write;

/// Whose work it is.
const WHO: &str = "system:flowschemas";
const GROUP: &str = "flowcontrol.apiserver.k8s.io";
/// Whether the spec of an object is kept as it is to be.
const AUTO_UPDATE: &str = "apf.kubernetes.io/autoupdate-spec";
/// Who is written down for objects, and for their status (Kubernetes').
const MANAGER: &str = "api-priority-and-fairness-config-producer-v1";
const STATUS_MANAGER: &str = "api-priority-and-fairness-config-consumer-v1";

/// Goes on until the server stops: while this server leads.
pub(crate) async fn keep(server: Weak<Shared>, stopping: CancellationToken) {
    duties::keep(server, stopping, WHO, look).await;
}

async fn look(server: Arc<Shared>) -> Result<Vec<String>, Status> {
    make(&server.cluster).await?;
    Ok(COLLECTIONS.map(str::to_owned).to_vec())
}

fn resource<'a>(cluster: &'a Cluster, name: &str) -> Result<&'a Arc<Resource>, Status> {
    cluster.catalog.named(GROUP, name).ok_or_else(Status::path_not_found)
}

/// Makes what is missing, brings up to date what is to be kept so, and says of each schema whether its level is there.
pub(crate) async fn make(cluster: &Cluster) -> Result<(), Status> {
    futures::future::try_join_all(facts().map(|fact| make_one(cluster, fact))).await?;
    tell(cluster).await
}

async fn make_one(cluster: &Cluster, fact: Facts) -> Result<(), Status> {
    let resource = resource(cluster, fact.resource)?;
    let name = meta::name(&fact.object);
    let (call, mut options) = own_call(None, name);
    MANAGER.clone_into(&mut options.manager);
    let write = Write { cluster, call: &call, resource, options: &options, subresource: "" };
    if cluster.store.get(resource, name).is_none() {
        match insert(&write, fact.object.clone(), false).await {
            // Somebody was quicker: it is looked at.
            Err(status) if status.reason == "AlreadyExists" => {}
            made => return made.map(drop),
        }
    }
    let step = |old: &Value| Ok(Changed { object: kept(old, &fact), owned: false, names_version: false });
    match change(&write, step).await {
        Err(status) if status.code() != 404 => Err(status),
        _ => Ok(()),
    }
}

/// One that is there as it is to be.
fn kept(old: &Value, fact: &Facts) -> Value {
    let mut object = old.clone();
    let said = old["metadata"]["annotations"][AUTO_UPDATE].as_str().and_then(|text| text.parse::<bool>().ok());
    let keeps = fact.mandatory || said.unwrap_or_else(|| meta::generation(old) == 1);
    if said != Some(keeps) {
        let annotations = meta::metadata_mut(&mut object).entry("annotations").or_insert_with(|| json!({}));
        annotations[AUTO_UPDATE] = keeps.to_string().into();
    }
    if keeps {
        object["spec"] = fact.object["spec"].clone();
    }
    object
}

async fn tell(cluster: &Cluster) -> Result<(), Status> {
    let (levels, schemas) = (resource(cluster, "prioritylevelconfigurations")?, resource(cluster, "flowschemas")?);
    let wanted = |schema: &Value| {
        let level = schema["spec"]["priorityLevelConfiguration"]["name"].as_str().unwrap_or_default();
        dangling(level, cluster.store.get(levels, level).is_some())
    };
    let records = cluster.store.keyspace.snapshot(schemas.row.collection()).records;
    // The log has said already which cannot be read.
    let all = records.values().filter_map(|record| json::parse(&record.bytes).ok());
    let untold = all.filter(|schema| !is_told(schema, &wanted(schema)));
    let wanted = &wanted;
    let written = untold.map(|schema| async move {
        let (call, mut options) = own_call(None, meta::name(&schema));
        STATUS_MANAGER.clone_into(&mut options.manager);
        let write = Write { cluster, call: &call, resource: schemas, options: &options, subresource: "status" };
        let step = |old: &Value| Ok(Changed { object: told(old, wanted(old)), owned: false, names_version: false });
        match change(&write, step).await {
            Err(status) if status.code() != 404 => Err(status),
            _ => Ok(()),
        }
    });
    // One that cannot be written holds up no other.
    futures::future::join_all(written).await.into_iter().collect()
}

/// The condition of a schema of this level, but for its time.
fn dangling(level: &str, is_there: bool) -> Value {
    let (status, reason, rest) = match is_there {
        true => ("False", "Found", "and it exists"),
        false => ("True", "NotFound", "but there is no such object"),
    };
    let named = coracle_api::meta::text::quote(level);
    let message = format!("This FlowSchema references the PriorityLevelConfiguration object named {named} {rest}");
    json!({"type": "Dangling", "status": status, "reason": reason, "message": message})
}

fn condition(schema: &Value) -> Option<(usize, &Value)> {
    let conditions = schema["status"]["conditions"].as_array()?;
    conditions.iter().enumerate().find(|(_, condition)| condition["type"] == "Dangling")
}

fn is_told(schema: &Value, wanted: &Value) -> bool {
    let same = |known: &Value| ["status", "reason", "message"].iter().all(|field| known[field] == wanted[field]);
    condition(schema).is_some_and(|(_, known)| same(known))
}

fn told(old: &Value, mut wanted: Value) -> Value {
    let mut schema = old.clone();
    if is_told(old, &wanted) {
        return schema;
    }
    let known = condition(old);
    let since =
        known.filter(|(_, known)| known["status"] == wanted["status"]).map(|(_, known)| &known["lastTransitionTime"]);
    wanted["lastTransitionTime"] = since.cloned().unwrap_or_else(|| meta::time::format(Timestamp::now()).into());
    match known {
        Some((at, _)) => schema["status"]["conditions"][at] = wanted,
        None => match schema["status"]["conditions"].as_array_mut() {
            Some(conditions) => conditions.push(wanted),
            None => schema["status"]["conditions"] = json!([wanted]),
        },
    }
    schema
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specs_are_kept_where_that_is_wanted() {
        let fact = |mandatory| Facts { resource: "flowschemas", object: json!({"spec": {"a": 1}}), mandatory };
        let old = |said: Value, generation: i64| {
            let annotations = if said.is_null() { json!({}) } else { json!({ AUTO_UPDATE: said }) };
            json!({"metadata": {"annotations": annotations, "generation": generation}, "spec": {"a": 2}})
        };
        for (mandatory, said, generation, expected) in [
            (true, json!("false"), 9, ("true", 1)),
            (true, Value::Null, 9, ("true", 1)),
            (false, json!("true"), 9, ("true", 1)),
            (false, json!("false"), 1, ("false", 2)),
            (false, Value::Null, 1, ("true", 1)),
            (false, Value::Null, 2, ("false", 2)),
            (false, json!("maybe"), 2, ("false", 2)),
        ] {
            let kept = kept(&old(said.clone(), generation), &fact(mandatory));
            let is =
                (kept["metadata"]["annotations"][AUTO_UPDATE].as_str().unwrap(), kept["spec"]["a"].as_i64().unwrap());
            assert_eq!(is, expected, "{mandatory} {said} {generation}");
        }
    }

    #[test]
    fn a_schema_says_since_when_its_level_is_missing() {
        let missing = dangling("x", false);
        let first = told(&json!({}), missing.clone());
        let (_, condition) = condition(&first).expect("a condition");
        assert_eq!((&condition["status"], &condition["reason"]), (&json!("True"), &json!("NotFound")));
        assert_eq!(told(&first, missing.clone()), first, "once");
        let mut earlier = first.clone();
        earlier["status"]["conditions"][0]["lastTransitionTime"] = json!("2001-01-01T00:00:00Z");
        let other = told(&earlier, dangling("y", false));
        assert_eq!(other["status"]["conditions"][0]["lastTransitionTime"], "2001-01-01T00:00:00Z");
        let found = told(&earlier, dangling("x", true));
        assert_ne!(found["status"]["conditions"][0]["lastTransitionTime"], "2001-01-01T00:00:00Z");
        assert!(is_told(&found, &dangling("x", true)));
    }
}
