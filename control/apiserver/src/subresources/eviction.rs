//! Eviction: a deletion that asks the pod's [budget] first whether the pod can be spared (policy/v1).

use std::sync::Arc;

use axum::response::Response;
use coracle_api::codec::json;
use coracle_api::meta::{self, condition, time};
use coracle_api::schema;
use coracle_api::status::Status;
use jiff::Timestamp;
use serde_json::{Value, json as object};

use super::admit;
use super::budget::{self, Grant};
use crate::answer::respond;
use crate::authz;
use crate::catalog::Resource;
use crate::cluster::Cluster;
use crate::request::body::{self, Expected};
use crate::request::call::{Call, Request};
use crate::request::negotiate::Offer;
use crate::request::options::{DeleteOptions, WriteOptions, write_options};
use crate::store::Seen;
use crate::verbs::delete::{check_preconditions, remove};
use crate::verbs::update::{Changed, change};
use crate::verbs::write::Write;

pub(super) async fn create(cluster: &Cluster, request: &Request, resource: &Arc<Resource>) -> Result<Response, Status> {
    let call = &request.call;
    let form = call.form(Offer::Plain)?;
    let schema = schema::of_kind("policy", "v1", "Eviction")
        .ok_or_else(|| Status::internal_error("the type Eviction is not known"))?;
    let options = write_options(call, "CreateOptions", None)?;
    let version = json::type_of(&request.body).map(|(version, _)| version).unwrap_or_default();
    let api_version = if version == "policy/v1beta1" { "policy/v1beta1" } else { "policy/v1" };
    let expected = Expected { api_version, kind: "Eviction", schema: &schema };
    let mut eviction = body::object(call, &request.body, &expected, options.validation)?;
    let admitted = admit(cluster, call, resource, &mut eviction, options.dry_run).await?;
    if meta::name(&eviction) != call.name() {
        return Err(Status::bad_request("name in URL does not match name in Eviction object"));
    }
    let mut delete = DeleteOptions::from_body(&eviction["deleteOptions"])?;
    // What follows is what was admitted.
    delete.admitted = admitted.clone();
    delete.dry_run |= options.dry_run;
    let name = resource.record_name(call.namespace(), call.name());
    let found = cluster.store.read(resource, &name).await?.ok_or_else(|| resource.not_found(call.name()))?;
    // Before anything of the pod is told, or taken from its budget.
    authz::node::sees(cluster, &call.identity, resource, &found, authz::node::EVICT)?;
    let pod = Seen::new(resource, &found).value()?;
    check_preconditions(resource, &pod, &delete)?;
    let grant = budget::ask(cluster, &pod, delete.dry_run).await?;
    if delete.dry_run {
        remove(cluster, call, resource, call.name(), &delete).await?;
    } else {
        let options = WriteOptions { admitted, ..options };
        let write = Write { cluster, call, resource, options: &options, subresource: "status" };
        let step = |old: &Value| {
            check_preconditions(resource, old, &delete)?;
            if grant == Grant::Unready && condition::is_true(old, "Ready") {
                return Err(resource.stale(call.name()));
            }
            Ok(Changed { object: disrupted(old), owned: true, names_version: false })
        };
        let marked = change(&write, step).await?.into_value(cluster, resource).await?;
        remove_marked(cluster, call, resource, delete, &marked).await?;
    }
    let mut done = Status::success(None);
    done.code = 201;
    Ok(respond::status(form, &done))
}

/// It is the pod that was marked that goes, and no other that has its name by then.
async fn remove_marked(
    cluster: &Cluster,
    call: &Call,
    resource: &Arc<Resource>,
    mut delete: DeleteOptions,
    marked: &Value,
) -> Result<(), Status> {
    // The version that the client meant was there when the condition was written; now it is this one.
    if delete.resource_version.is_some() {
        delete.resource_version = Some(meta::resource_version(marked).to_owned());
    }
    delete.uid = Some(meta::uid(marked).to_owned());
    let Err(status) = remove(cluster, call, resource, call.name(), &delete).await else { return Ok(()) };
    let record = cluster.store.get(resource, &resource.record_name(call.namespace(), call.name()));
    let is_another = record.is_some_and(|record| {
        let seen = Seen::new(resource, &record);
        seen.known_facts().is_ok_and(|facts| facts.uid != meta::uid(marked))
    });
    Err(if is_another { resource.not_found(call.name()) } else { status })
}

/// Says in the pod's status why it goes.
fn disrupted(old: &Value) -> Value {
    let mut pod = old.clone();
    let finished = matches!(old["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    if finished || condition::is_true(old, "DisruptionTarget") {
        return pod;
    }
    let mut conditions = old["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.retain(|known| known["type"] != "DisruptionTarget");
    conditions.push(object!({
        "type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI",
        "message": "Eviction API: evicting", "lastProbeTime": null, "lastTransitionTime": time::format(Timestamp::now()),
    }));
    if !pod["status"].is_object() {
        pod["status"] = object!({});
    }
    pod["status"]["conditions"] = conditions.into();
    pod
}

#[cfg(test)]
mod tests {
    use coracle_keyspace::{Guard, Key, Keyspace, Op};

    use super::*;
    use crate::identity::Identity;
    use crate::request::options::Admitted;
    use crate::request::own::own_call;
    use crate::request::path::ResourcePath;
    use crate::store::{Store, object as stored};

    #[tokio::test]
    async fn a_pod_that_has_the_name_by_then_stays() {
        let dir = tempfile::tempdir().unwrap();
        let keyspace = Keyspace::open(coracle_keyspace::Config::new(dir.path())).await.unwrap();
        let cluster = Cluster::new(Store::new(keyspace), None, None);
        let pods = cluster.catalog.named("", "pods").unwrap().clone();
        let pod =
            |uid: &str| object!({"metadata": {"name": "p", "namespace": "ns", "uid": uid, "resourceVersion": "1"}});
        let name = pods.record_name(Some("ns"), "p");
        let op = Op::Put { key: Store::key(&pods, &name), value: stored::encode(&pod("new")), guard: Guard::Absent };
        assert!(cluster.store.transact(vec![op]).await.is_ok());
        let (parts, ()) = http::Request::new(()).into_parts();
        let target = ResourcePath { namespace: Some("ns".into()), name: Some("p".into()), ..ResourcePath::default() };
        let call = Call::new(parts, Arc::new(Identity::authenticated("a", Vec::new())), target);
        let evict = |uid: &str| {
            let marked = pod(uid);
            let (cluster, call, pods) = (&cluster, &call, &pods);
            let options = DeleteOptions { admitted: Admitted::As(None), ..DeleteOptions::default() };
            async move { remove_marked(cluster, call, pods, options, &marked).await }
        };
        assert_eq!(evict("old").await.unwrap_err().code(), 404);
        assert!(cluster.store.get(&pods, &name).is_some());
        evict("new").await.unwrap();
        assert!(cluster.store.get(&pods, &name).is_none());
        cluster.store.keyspace.shutdown().await;
    }

    #[tokio::test]
    async fn what_was_admitted_by_what_is_configured_no_more_is_not_carried_out() {
        let dir = tempfile::tempdir().unwrap();
        let keyspace = Keyspace::open(coracle_keyspace::Config::new(dir.path())).await.unwrap();
        let cluster = Cluster::new(Store::new(keyspace), None, None);
        let pods = cluster.catalog.named("", "pods").unwrap().clone();
        let pod = object!({"metadata": {"name": "p", "namespace": "ns", "uid": "u", "resourceVersion": "1"}});
        let name = pods.record_name(Some("ns"), "p");
        let op = Op::Put { key: Store::key(&pods, &name), value: stored::encode(&pod), guard: Guard::Absent };
        assert!(cluster.store.transact(vec![op]).await.is_ok());
        let (call, mut options) = own_call(Some("ns"), "p");
        let admitted = |guard| Admitted::As(Some(Op::Check { key: Key::new("known", "known"), guard }));
        for (guard, holds) in [(Guard::Present, false), (Guard::Absent, true)] {
            options.admitted = admitted(guard);
            let write =
                Write { cluster: &cluster, call: &call, resource: &pods, options: &options, subresource: "status" };
            let step = |old: &Value| Ok(Changed { object: disrupted(old), owned: true, names_version: false });
            let changed = change(&write, step).await.map(drop);
            assert_eq!(
                changed.map_err(|status| status.reason.to_string()),
                if holds { Ok(()) } else { Err("ServerTimeout".to_owned()) }
            );
        }
        for (guard, holds) in [(Guard::Present, false), (Guard::Absent, true)] {
            let options = DeleteOptions { admitted: admitted(guard), ..DeleteOptions::default() };
            let removed = remove_marked(&cluster, &call, &pods, options, &pod).await;
            assert_eq!(
                removed.map_err(|status| status.reason.to_string()),
                if holds { Ok(()) } else { Err("ServerTimeout".to_owned()) }
            );
            assert_eq!(cluster.store.get(&pods, &name).is_none(), holds);
        }
        cluster.store.keyspace.shutdown().await;
    }
}
