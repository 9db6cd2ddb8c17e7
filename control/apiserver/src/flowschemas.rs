//! FlowSchemas and PriorityLevelConfigurations that every cluster has, made and kept as they are to be, and what FlowSchemas say
//! of their levels (`Dangling`). The server that leads does it.
//!
//! Mandatory ones are what they are to be, whatever somebody writes into them. Suggested ones are kept so while their
//! annotation says so; without one, while nobody has changed them (`apf.kubernetes.io/autoupdate-spec`).

use std::sync::{Arc, Weak};

use coracle_api::codec::json;
use coracle_api::meta::{self, condition};
use coracle_api::status::Status;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::catalog::Resource;
use crate::cluster::Cluster;
use crate::duties;
use crate::fairness::{COLLECTIONS, Facts, facts};
use crate::server::Shared;
use crate::verbs::own::Own;

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
    let own = Own::new(cluster, resource, None, meta::name(&fact.object)).by(MANAGER);
    own.keep(|| fact.object.clone(), |old| kept(old, &fact)).await
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
    let untold = all.filter(|schema| told(schema, &wanted(schema)).is_some());
    let wanted = &wanted;
    let written = untold.map(|schema| async move {
        let own = Own::new(cluster, schemas, None, meta::name(&schema)).by(STATUS_MANAGER).status();
        own.change(|old| told(old, &wanted(old)).unwrap_or_else(|| old.clone())).await.map(drop)
    });
    // One that cannot be written holds up no other.
    futures::future::join_all(written).await.into_iter().collect()
}

/// What is said of a schema of this level: status, reason and message.
fn dangling(level: &str, is_there: bool) -> (&'static str, &'static str, String) {
    let (status, reason, rest) = match is_there {
        true => ("False", "Found", "and it exists"),
        false => ("True", "NotFound", "but there is no such object"),
    };
    let named = meta::text::quote(level);
    (status, reason, format!("This FlowSchema references the PriorityLevelConfiguration object named {named} {rest}"))
}

/// A schema that says so; `None` where it does already.
fn told(old: &Value, (status, reason, message): &(&str, &str, String)) -> Option<Value> {
    condition::said(old, "Dangling", status, reason, message, Timestamp::now())
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
        let first = told(&json!({}), &missing).expect("it is said");
        let found = condition::get(&first, "Dangling").expect("a condition");
        assert_eq!((&found["status"], &found["reason"]), (&json!("True"), &json!("NotFound")));
        assert_eq!(told(&first, &missing), None, "once");
        let mut earlier = first.clone();
        earlier["status"]["conditions"][0]["lastTransitionTime"] = json!("2001-01-01T00:00:00Z");
        let since = |level, is_there| {
            let schema = told(&earlier, &dangling(level, is_there)).expect("something new");
            schema["status"]["conditions"][0]["lastTransitionTime"].clone()
        };
        assert_eq!(since("y", false), "2001-01-01T00:00:00Z");
        assert_ne!(since("x", true), "2001-01-01T00:00:00Z");
    }
}
