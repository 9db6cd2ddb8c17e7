//! What requests do.

use std::collections::BTreeMap;

use bytes::Bytes;
use http::Method;
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;

use crate::Seen;
use crate::store::{Place, Store};

pub(crate) enum Body {
    Object(Value),
    Watch(mpsc::UnboundedReceiver<Bytes>),
}

/// Code, reason, message.
pub(crate) type Refusal = (u16, &'static str, String);

/// Group version, plural, kind, whether namespaced: what discovery says.
const KINDS: &[(&str, &str, &str, bool)] = &[
    ("v1", "pods", "Pod", true),
    ("v1", "configmaps", "ConfigMap", true),
    ("v1", "secrets", "Secret", true),
    ("v1", "services", "Service", true),
    ("v1", "endpoints", "Endpoints", true),
    ("v1", "serviceaccounts", "ServiceAccount", true),
    ("v1", "replicationcontrollers", "ReplicationController", true),
    ("v1", "persistentvolumeclaims", "PersistentVolumeClaim", true),
    ("v1", "persistentvolumes", "PersistentVolume", false),
    ("v1", "namespaces", "Namespace", false),
    ("v1", "nodes", "Node", false),
    ("apps/v1", "deployments", "Deployment", true),
    ("apps/v1", "replicasets", "ReplicaSet", true),
    ("autoscaling/v2", "horizontalpodautoscalers", "HorizontalPodAutoscaler", true),
    ("apps/v1", "statefulsets", "StatefulSet", true),
    ("apps/v1", "daemonsets", "DaemonSet", true),
    ("apps/v1", "controllerrevisions", "ControllerRevision", true),
    ("batch/v1", "jobs", "Job", true),
    ("batch/v1", "cronjobs", "CronJob", true),
    ("coordination.k8s.io/v1", "leases", "Lease", true),
    ("discovery.k8s.io/v1", "endpointslices", "EndpointSlice", true),
    ("apiextensions.k8s.io/v1", "customresourcedefinitions", "CustomResourceDefinition", false),
    ("scheduling.k8s.io/v1", "priorityclasses", "PriorityClass", false),
    ("storage.k8s.io/v1", "storageclasses", "StorageClass", false),
];

pub(crate) fn answer(
    store: &mut Store,
    seen: &Seen,
    query: &BTreeMap<String, String>,
    media: &str,
) -> Result<Body, Refusal> {
    if let Some(discovery) = discovery(&seen.path) {
        return Ok(Body::Object(discovery));
    }
    if let Some(group) = seen.path.strip_prefix("/apis/").filter(|group| !group.contains('/')) {
        let group = store.group(group).ok_or((404, "NotFound", format!("no such path: {}", seen.path)))?;
        return Ok(Body::Object(group));
    }
    if seen.path == "/coracle/v1/bindings" {
        return Ok(Body::Object(bindings(store, &seen.body)));
    }
    let place = Place::parse(&seen.path).ok_or((404, "NotFound", format!("no such path: {}", seen.path)))?;
    if seen.method == Method::GET && query.get("watch").is_some_and(|value| value == "1" || value == "true") {
        let name = query.get("fieldSelector").and_then(|text| text.strip_prefix("metadata.name=")).map(str::to_owned);
        let all = query.get("sendInitialEvents").is_some_and(|value| value == "true");
        let since = query.get("resourceVersion").and_then(|text| text.parse().ok()).filter(|_| !all);
        return Ok(Body::Watch(store.watch(&place, name, since)));
    }
    let object = match (&seen.method, place.name.is_empty()) {
        (&Method::GET, true) => {
            let mut listed = store.list(&place);
            let token = |place: &Place| format!("{}_{}", place.namespace, place.name);
            if let Some(after) = query.get("continue") {
                listed.retain(|(place, _)| token(place) > *after);
            }
            let mut metadata = json!({"resourceVersion": store.version().to_string()});
            let limit = query.get("limit").and_then(|text| text.parse::<usize>().ok()).filter(|limit| *limit > 0);
            if let Some(limit) = limit.filter(|limit| *limit < listed.len()) {
                metadata["remainingItemCount"] = json!(listed.len() - limit);
                metadata["continue"] = json!(token(&listed[limit - 1].0));
                listed.truncate(limit);
            }
            let items: Vec<Value> = listed.into_iter().map(|(_, object)| object).collect();
            json!({"kind": "List", "apiVersion": "v1", "metadata": metadata, "items": items})
        }
        (&Method::GET, false) if place.sub == "scale" => scale(&existing(store, &place)?),
        (&Method::PUT, false) if place.sub == "scale" => {
            let before = existing(store, &place)?;
            preconditions(&before, &seen.body["metadata"])?;
            let mut object = before.clone();
            object["spec"]["replicas"] = seen.body["spec"]["replicas"].clone();
            scale(&write(store, &place, &before, object))
        }
        (&Method::GET, false) => existing(store, &place)?,
        (&Method::POST, true) => create(store, place, &seen.body)?,
        (&Method::PUT, false) => replace(store, &place, seen.body.clone())?,
        (&Method::PATCH, false) => patch(store, &place, &seen.body, media.contains("strategic"))?,
        (&Method::DELETE, false) => delete(store, &place, &seen.body)?,
        (&Method::DELETE, true) => {
            for (place, _) in store.list(&place) {
                delete(store, &place, &seen.body)?;
            }
            json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"})
        }
        _ => return Err((405, "MethodNotAllowed", seen.path.clone())),
    };
    Ok(Body::Object(object))
}

fn existing(store: &Store, place: &Place) -> Result<Value, Refusal> {
    store.get(place).cloned().ok_or_else(|| (404, "NotFound", format!("{} {:?} not found", place.plural, place.name)))
}

/// The subresource of the same name.
fn scale(object: &Value) -> Value {
    let mut metadata = json!({});
    for field in ["name", "namespace", "uid", "resourceVersion"] {
        metadata[field] = object["metadata"][field].clone();
    }
    let labels = object["spec"]["selector"]["matchLabels"].as_object().into_iter().flatten();
    let selector: Vec<String> = labels.map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or(""))).collect();
    json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata,
        "spec": {"replicas": object["spec"]["replicas"]},
        "status": {"replicas": object["status"]["replicas"].as_i64().unwrap_or(0), "selector": selector.join(",")},
    })
}

fn conflict(why: &str) -> Refusal {
    (409, "Conflict", why.to_owned())
}

fn create(store: &mut Store, mut place: Place, body: &Value) -> Result<Value, Refusal> {
    place.name = body["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    if place.name.is_empty() {
        return Err((422, "Invalid", "a name is needed".to_owned()));
    }
    if store.get(&place).is_some() {
        return Err((409, "AlreadyExists", format!("{} {:?} already exists", place.plural, place.name)));
    }
    Ok(store.force(&place, body.clone()))
}

fn replace(store: &mut Store, place: &Place, mut body: Value) -> Result<Value, Refusal> {
    let before = existing(store, place)?;
    preconditions(&before, &body["metadata"])?;
    for kept in ["uid", "creationTimestamp", "generation"] {
        body["metadata"][kept] = before["metadata"][kept].clone();
    }
    if place.sub == "finalize" {
        let mut object = before.clone();
        object["spec"]["finalizers"] = body["spec"]["finalizers"].clone();
        let empty = object["spec"]["finalizers"].as_array().is_none_or(Vec::is_empty);
        if empty && !object["metadata"]["deletionTimestamp"].is_null() {
            store.remove(place);
            return Ok(object);
        }
        return Ok(write(store, place, &before, object));
    }
    Ok(write(store, place, &before, body))
}

fn patch(store: &mut Store, place: &Place, patch: &Value, strategic: bool) -> Result<Value, Refusal> {
    let before = existing(store, place)?;
    preconditions(&before, &patch["metadata"])?;
    let mut patch = patch.clone();
    if let Some(meta) = patch["metadata"].as_object_mut() {
        meta.remove("uid");
        meta.remove("resourceVersion");
    }
    if patch["metadata"].is_null() {
        patch.as_object_mut().map(|patch| patch.remove("metadata"));
    }
    let mut object = before.clone();
    merge(&mut object, &patch, strategic);
    Ok(write(store, place, &before, object))
}

fn preconditions(object: &Value, wanted: &Value) -> Result<(), Refusal> {
    for name in ["uid", "resourceVersion"] {
        if let Some(wanted) = wanted[name].as_str()
            && object["metadata"][name] != wanted
        {
            return Err(conflict(&format!("{name}: {wanted} is not {}", object["metadata"][name])));
        }
    }
    Ok(())
}

/// A write that changes nothing makes no version; the last finalizer of an object that goes takes it with it.
fn write(store: &mut Store, place: &Place, before: &Value, mut object: Value) -> Value {
    let without_version = |object: &Value| {
        let mut object = object.clone();
        object["metadata"]["resourceVersion"] = Value::Null;
        object
    };
    let going = !object["metadata"]["deletionTimestamp"].is_null();
    if going
        && object["metadata"]["finalizers"].as_array().is_none_or(Vec::is_empty)
        && before["metadata"]["finalizers"].is_array()
    {
        store.remove(place);
        return object;
    }
    if without_version(before) == without_version(&object) {
        return before.clone();
    }
    if before["spec"] != object["spec"] {
        object["metadata"]["generation"] = json!(before["metadata"]["generation"].as_i64().unwrap_or(0) + 1);
    }
    store.force(place, object)
}

fn delete(store: &mut Store, place: &Place, options: &Value) -> Result<Value, Refusal> {
    let mut object = existing(store, place)?;
    preconditions(&object, &options["preconditions"])?;
    let mut finalizers = object["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
    finalizers
        .retain(|name| name != "orphan" && name != "foregroundDeletion" || options["propagationPolicy"].is_null());
    match options["propagationPolicy"].as_str() {
        Some("Foreground") => finalizers.push(json!("foregroundDeletion")),
        Some("Orphan") => finalizers.push(json!("orphan")),
        _ => {}
    }
    // A node stops its pods first.
    let graceful = place.plural == "pods"
        && object["spec"]["nodeName"].as_str().is_some_and(|node| !node.is_empty())
        && options["gracePeriodSeconds"] != 0;
    let spec_finalizers = object["spec"]["finalizers"].as_array().is_some_and(|list| !list.is_empty());
    if finalizers.is_empty() && !graceful && !spec_finalizers {
        store.remove(place);
        return Ok(object);
    }
    let before = object.clone();
    if !finalizers.is_empty() {
        object["metadata"]["finalizers"] = json!(finalizers);
    }
    if object["metadata"]["deletionTimestamp"].is_null() {
        object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:10:00Z");
    }
    Ok(if before == object { object } else { store.force(place, object) })
}

/// RFC 7386; strategic: conditions are merged by their type, and lists may be told what to lose.
pub(crate) fn merge(into: &mut Value, patch: &Value, strategic: bool) {
    let Value::Object(patch) = patch else {
        into.clone_from(patch);
        return;
    };
    if !into.is_object() {
        *into = Value::Object(Map::new());
    }
    for (name, value) in patch {
        if let Some(list) = name.strip_prefix("$deleteFromPrimitiveList/").filter(|_| strategic) {
            if let Some(items) = into[list].as_array_mut() {
                items.retain(|item| value.as_array().is_none_or(|lost| !lost.contains(item)));
            }
        } else if value.is_null() {
            into.as_object_mut().map(|into| into.remove(name));
        } else if strategic && name == "conditions" {
            let mut list = into[name].as_array().cloned().unwrap_or_default();
            for condition in value.as_array().into_iter().flatten() {
                match list.iter_mut().find(|known| known["type"] == condition["type"]) {
                    Some(known) => merge(known, condition, true),
                    None => list.push(condition.clone()),
                }
            }
            into[name] = Value::Array(list);
        } else {
            merge(&mut into[name], value, strategic);
        }
    }
}

fn bindings(store: &mut Store, body: &Value) -> Value {
    let bind = |item: &Value| {
        let text = |name: &str| item[name].as_str().unwrap_or_default();
        let place = Place::parse(&format!("/api/v1/namespaces/{}/pods/{}", text("namespace"), text("name")));
        let place = place.expect("namespace and name of a pod");
        let Some(mut pod) = store.get(&place).cloned().filter(|pod| pod["metadata"]["uid"] == text("uid")) else {
            return json!({"code": 404, "message": "no such pod"});
        };
        if pod["spec"]["nodeName"].as_str().is_some_and(|node| !node.is_empty()) {
            return json!({"code": 409, "message": "it has a node"});
        }
        pod["spec"]["nodeName"] = json!(text("node"));
        merge(&mut pod, &json!({"status": {"conditions": [{"type": "PodScheduled", "status": "True"}]}}), true);
        store.force(&place, pod);
        json!({"code": 201})
    };
    let results: Vec<Value> = body["bindings"].as_array().into_iter().flatten().map(bind).collect();
    json!({ "results": results })
}

fn discovery(path: &str) -> Option<Value> {
    let verbs = json!(["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]);
    let resources = |version: &str| -> Vec<Value> {
        let kinds = KINDS.iter().filter(|kind| kind.0 == version);
        kinds.map(|(_, name, kind, namespaced)| {
            json!({"name": name, "singularName": "", "kind": kind, "namespaced": namespaced, "verbs": verbs})
        }).collect()
    };
    let list =
        |version: &str| json!({"kind": "APIResourceList", "groupVersion": version, "resources": resources(version)});
    if path == "/api/v1" {
        return Some(list("v1"));
    }
    if path == "/apis" {
        let versions = KINDS.iter().map(|kind| kind.0).filter(|version| version.contains('/'));
        let versions: std::collections::BTreeSet<&str> = versions.collect();
        let groups = versions.into_iter().map(|version| {
            let (group, number) = version.split_once('/').unwrap_or_default();
            let version = json!({"groupVersion": version, "version": number});
            json!({"name": group, "versions": [version], "preferredVersion": version})
        });
        return Some(json!({"kind": "APIGroupList", "groups": groups.collect::<Vec<_>>()}));
    }
    let version = path.strip_prefix("/apis/")?;
    KINDS.iter().any(|kind| kind.0 == version).then(|| list(version))
}
