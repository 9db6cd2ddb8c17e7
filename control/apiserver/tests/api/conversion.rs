//! Conversion webhooks: objects of a definition whose versions somebody outside turns into each other.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use coracle_api::meta;
use http::Request;
use serde_json::{Value, json};

use super::watches::{Watch, said};
use super::webhooks::{Hook, MUTATING, VALIDATING, webhook};
use super::{Server, admin, config_map};

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const V1: &str = "/apis/example.com/v1/namespaces/default/doors";
const V2: &str = "/apis/example.com/v2/namespaces/default/doors";

/// Version 1 has `spec.hostPort`, version 2 `spec.host` and `spec.port`.
fn definition(client: &Value) -> Value {
    let schema = |properties: Value| json!({"openAPIV3Schema": {"type": "object", "properties": {"spec": {"type": "object", "properties": properties}}}});
    let text = json!({"type": "string"});
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "doors.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced", "names": {"plural": "doors", "kind": "Door"},
            "conversion": {"strategy": "Webhook", "webhook": {"conversionReviewVersions": ["v1"], "clientConfig": client}},
            "versions": [
                {"name": "v1", "served": true, "storage": true, "schema": schema(json!({"hostPort": text}))},
                {
                    "name": "v2", "served": true, "storage": false,
                    "schema": schema(json!({"host": text, "port": text, "open": {"type": "boolean", "default": true}})),
                    "selectableFields": [{"jsonPath": ".spec.host"}, {"jsonPath": ".spec.port"}],
                    "additionalPrinterColumns": [{"name": "Host", "type": "string", "jsonPath": ".spec.host"}],
                },
            ],
        },
    })
}

fn door(version: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": format!("example.com/{version}"), "kind": "Door", "metadata": {"name": name}, "spec": spec})
}

fn converted(object: &Value, wanted: &str) -> Value {
    let mut out = object.clone();
    out["apiVersion"] = wanted.into();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    out["spec"] = match wanted {
        "example.com/v2" => {
            let both = text(&object["spec"]["hostPort"]);
            let (host, port) = both.split_once(':').unwrap_or((&both, ""));
            json!({"host": host, "port": port, "unknown": "goes"})
        }
        _ => json!({"hostPort": format!("{}:{}", text(&object["spec"]["host"]), text(&object["spec"]["port"]))}),
    };
    meta::metadata_mut(&mut out).insert("annotations".to_owned(), json!({"converted": "yes"}));
    out
}

fn convert(review: &Value) -> Option<Value> {
    let request = &review["request"];
    let wanted = request["desiredAPIVersion"].as_str()?;
    let objects: Vec<Value> = request["objects"].as_array()?.iter().map(|object| converted(object, wanted)).collect();
    let response = json!({"uid": request["uid"], "result": {"status": "Success"}, "convertedObjects": objects});
    Some(json!({"kind": "ConversionReview", "apiVersion": "apiextensions.k8s.io/v1", "response": response}))
}

async fn start() -> (Server, Hook) {
    let (server, hook) = (Server::start().await, Hook::start(convert).await);
    server.make(DEFINITIONS, definition(&hook.url())).await;
    server.appears(V1).await;
    (server, hook)
}

#[tokio::test]
async fn each_version_is_what_the_webhook_makes_of_the_other() {
    let (server, hook) = start().await;
    // What is in the version that is stored needs nobody.
    let made = server.make(V1, door("v1", "a", json!({"hostPort": "h:80"}))).await;
    assert!(hook.heard().is_empty());
    let (code, seen) = server.get(&format!("{V2}/a")).await;
    assert_eq!((code, &seen["apiVersion"]), (200, &json!("example.com/v2")));
    // Pruned and filled in by the version's own schema; of the metadata labels and annotations are the webhook's.
    assert_eq!(seen["spec"], json!({"host": "h", "port": "80", "open": true}));
    assert_eq!(seen["metadata"]["annotations"], json!({"converted": "yes"}));
    for field in ["uid", "resourceVersion", "creationTimestamp"] {
        assert_eq!(seen["metadata"][field], made["metadata"][field], "{field}");
    }
    let heard = hook.heard();
    assert_eq!((heard.len(), &heard[0]["desiredAPIVersion"]), (1, &json!("example.com/v2")));
    // It is remembered for as long as somebody asks.
    server.get(&format!("{V2}/a")).await;
    assert!(hook.heard().is_empty());
    // What is written in another version is stored in that of the definition.
    let written = server.make(V2, door("v2", "b", json!({"host": "i", "port": "81"}))).await;
    assert_eq!((&written["apiVersion"], &written["spec"]["host"]), (&json!("example.com/v2"), &json!("i")));
    let (_, stored) = server.get(&format!("{V1}/b")).await;
    assert_eq!(stored["spec"], json!({"hostPort": "i:81"}));
    // Changes are made to what clients of the version see.
    let (code, patched) = server.call("PATCH", &format!("{V2}/a"), json!({"spec": {"port": "90"}})).await;
    assert_eq!((code, &patched["spec"]["port"]), (200, &json!("90")), "{patched}");
    assert_eq!(server.get(&format!("{V1}/a")).await.1["spec"], json!({"hostPort": "h:90"}));
    let apply = door("v2", "a", json!({"host": "j"}));
    let path = format!("{V2}/a?fieldManager=me&force=true");
    let (code, applied) = server.call_as("PATCH", &path, "application/apply-patch+yaml", &apply).await;
    assert_eq!((code, &applied["spec"]), (200, &json!({"host": "j", "port": "90", "open": true})), "{applied}");
    let before = server.get(&format!("{V1}/a")).await.1["metadata"]["resourceVersion"].clone();
    let (code, same) = server.call("PATCH", &format!("{V2}/a"), json!({})).await;
    assert_eq!((code, &same["metadata"]["resourceVersion"]), (200, &before), "what changes nothing makes no version");
    let (code, _) = server.call("DELETE", &format!("{V2}/a"), Value::Null).await;
    assert_eq!((code, server.get(&format!("{V1}/a")).await.0), (200, 404));
}

#[tokio::test]
async fn lists_are_converted_together_and_selected_by_what_is_seen() {
    let (server, hook) = start().await;
    for number in 0..20 {
        server.make(V1, door("v1", &format!("d{number:02}"), json!({"hostPort": format!("h{}:80", number % 2)}))).await;
    }
    hook.heard();
    let (code, list) = server.get(V2).await;
    let items = list["items"].as_array().unwrap();
    assert_eq!((code, items.len(), &list["apiVersion"]), (200, 20, &json!("example.com/v2")));
    assert!(items.iter().all(|item| item["apiVersion"] == "example.com/v2" && item["spec"]["port"] == "80"));
    let heard = hook.heard();
    assert_eq!((heard.len(), heard[0]["objects"].as_array().unwrap().len()), (1, 20));
    let (_, list) = server.get(&format!("{V2}?fieldSelector=spec.host%3Dh1")).await;
    assert_eq!(list["items"].as_array().unwrap().len(), 10);
    let (_, page) = server.get(&format!("{V2}?limit=5")).await;
    assert_eq!((page["items"].as_array().unwrap().len(), &page["items"][0]["spec"]["host"]), (5, &json!("h0")));
    let request = Request::get(V2).header("accept", "application/json;as=Table;v=v1;g=meta.k8s.io");
    let table = server.send(Some(admin()), request.body(Body::empty()).unwrap()).await.json();
    assert_eq!(table["rows"][1]["cells"], json!(["d01", "h1"]));
    // One that cannot be converted is an error, and no list without it.
    hook.says(|review| {
        let mut answer = convert(review)?;
        let objects = answer["response"]["convertedObjects"].as_array_mut()?;
        if let Some(object) = objects.iter_mut().find(|object| object["metadata"]["name"] == "bad") {
            object["metadata"]["name"] = "other".into();
        }
        Some(answer)
    });
    server.make(V1, door("v1", "bad", json!({"hostPort": "h:80"}))).await;
    let (code, status) = server.get(V2).await;
    let message = status["message"].as_str().unwrap();
    assert_eq!(code, 500);
    assert!(message.contains("must have the same name: bad != other"), "{message}");
    hook.says(|review| {
        let result = json!({"status": "Failed", "message": "not today"});
        let response = json!({"uid": review["request"]["uid"], "result": result});
        Some(json!({"kind": "ConversionReview", "apiVersion": "apiextensions.k8s.io/v1", "response": response}))
    });
    let (code, status) = server.get(&format!("{V2}/bad")).await;
    let expected = "Internal error occurred: conversion webhook for example.com/v1, Kind=Door failed: not today";
    assert_eq!((code, &status["message"]), (500, &json!(expected)));
    // What cannot be shown can still be removed.
    assert_eq!(server.call("DELETE", &format!("{V1}/bad"), Value::Null).await.0, 200);
}

#[tokio::test]
async fn watches_tell_of_a_version_what_the_webhook_makes_of_it() {
    let (server, hook) = start().await;
    server.make(V1, door("v1", "a", json!({"hostPort": "h:80"}))).await;
    let mut watch = Watch::open_at(&server, &format!("{V2}?watch=true")).await;
    let first = watch.next().await.expect("an event");
    assert_eq!((&first["type"], &first["object"]["spec"]["host"]), (&json!("ADDED"), &json!("h")));
    server.make(V1, door("v1", "b", json!({"hostPort": "i:80"}))).await;
    let second = watch.next().await.expect("an event");
    assert_eq!((&second["type"], &second["object"]["spec"]["host"]), (&json!("ADDED"), &json!("i")));
    assert_eq!(second["object"]["apiVersion"], "example.com/v2");
    server.call("DELETE", &format!("{V1}/a"), Value::Null).await;
    let third = watch.next().await.expect("an event");
    assert_eq!((&third["type"], &third["object"]["spec"]["host"]), (&json!("DELETED"), &json!("h")));
    // One that cannot be converted is the watch's last word.
    hook.says(|_| Some(json!({})));
    server.make(V1, door("v1", "c", json!({"hostPort": "i:80"}))).await;
    let last = watch.next().await.expect("an event");
    assert_eq!((&last["type"], &last["object"]["code"]), (&json!("ERROR"), &json!(500)), "{last}");
}

#[tokio::test]
async fn who_reads_what_is_being_converted_waits_for_that() {
    let (server, hook) = start().await;
    let server = Arc::new(server);
    server.make(V1, door("v1", "a", json!({"hostPort": "h:80"}))).await;
    hook.heard();
    hook.hold(true);
    let get = |name: &str| {
        let (server, path) = (server.clone(), format!("{V2}/{name}"));
        tokio::spawn(async move { server.get(&path).await })
    };
    let readers: Vec<_> = (0..16).map(|_| get("a")).collect();
    hook.hears(1).await;
    hook.hold(false);
    for reader in readers {
        let (code, seen) = reader.await.unwrap();
        assert_eq!((code, &seen["spec"]["host"]), (200, &json!("h")), "{seen}");
    }
    assert_eq!(hook.heard().len(), 1);
    // One that is refused together with others is asked for by itself.
    hook.says(|review| {
        let is_bad = review["request"]["objects"].as_array()?.iter().any(|object| object["metadata"]["name"] == "bad");
        if !is_bad {
            return convert(review);
        }
        let result = json!({"status": "Failed", "message": "bad"});
        let response = json!({"uid": review["request"]["uid"], "result": result});
        Some(json!({"kind": "ConversionReview", "apiVersion": "apiextensions.k8s.io/v1", "response": response}))
    });
    for name in ["bad", "good"] {
        server.make(V1, door("v1", name, json!({"hostPort": "h:80"}))).await;
    }
    hook.hold(true);
    let list = tokio::spawn({
        let server = server.clone();
        async move { server.get(V2).await }
    });
    hook.hears(1).await;
    let good = get("good");
    hook.hold(false);
    assert_eq!((list.await.unwrap().0, good.await.unwrap().0), (500, 200));
}

#[tokio::test]
async fn who_waits_for_a_conversion_holds_up_no_other_writer() {
    let (server, hook) = start().await;
    let server = Arc::new(server);
    let quota = json!({"hard": {"count/doors.example.com": "9", "count/configmaps": "9"}});
    let used = json!({"count/doors.example.com": "0", "count/configmaps": "0"});
    let quotas = "/api/v1/namespaces/default/resourcequotas";
    server.make(quotas, json!({"metadata": {"name": "q"}, "spec": quota})).await;
    let status = json!({"status": {"hard": quota["hard"], "used": used}});
    assert_eq!(server.call("PATCH", &format!("{quotas}/q/status"), status).await.0, 200);
    server.make(V1, door("v1", "a", json!({"hostPort": "h:80"}))).await;
    server.get(&format!("{V2}/a")).await;
    hook.heard();
    let write = |method: &'static str, path: String, body: Value| {
        let server = server.clone();
        tokio::spawn(async move { server.call(method, &path, body).await })
    };
    // Its write loses to another one, and is tried again: that is never answered.
    hook.hold(true);
    let loses = write("PATCH", format!("{V2}/a"), json!({"spec": {"port": "1"}}));
    hook.hears(1).await;
    assert_eq!(server.call("PATCH", &format!("{V1}/a"), json!({"spec": {"hostPort": "i:2"}})).await.0, 200);
    hook.says(|_| None);
    hook.hold(false);
    hook.hears(2).await;
    // The same of one that makes an object, and is charged for it.
    let makes = write("POST", V2.to_owned(), door("v2", "b", json!({"host": "h", "port": "80"})));
    hook.hears(3).await;
    let patches = (0..16)
        .map(|number| write("PATCH", format!("{V1}/a"), json!({"metadata": {"labels": {"l": number.to_string()}}})));
    let others = patches.chain([write("POST", MAPS.to_owned(), config_map("m", json!({})))]);
    for other in others.collect::<Vec<_>>() {
        let other = tokio::time::timeout(Duration::from_secs(10), other).await.expect("it waits for nobody");
        let (code, answer) = other.unwrap();
        assert!(code < 300, "{answer}");
    }
    loses.abort();
    makes.abort();
}

#[tokio::test]
async fn a_watch_converts_what_its_client_reads_and_no_longer_than_it_lasts() {
    let (server, hook) = start().await;
    for number in 0..20 {
        let host = "h".repeat(100_000);
        server.make(V1, door("v1", &format!("d{number:02}"), json!({"hostPort": format!("{host}:80")}))).await;
    }
    hook.heard();
    let mut watch = Watch::open_at(&server, &format!("{V2}?watch=true")).await;
    assert_eq!(watch.heard().await, said("ADDED", "d00"));
    let sent =
        |heard: Vec<Value>| heard.iter().map(|request| request["objects"].as_array().unwrap().len()).sum::<usize>();
    assert!(sent(hook.heard()) < 10, "a piece");
    // So does a list that wants few.
    let (_, list) = server.get(&format!("{V2}?limit=1&fieldSelector=spec.port%3D80")).await;
    assert_eq!((list["items"].as_array().map(Vec::len), list["metadata"]["continue"].is_string()), (Some(1), true));
    assert!(sent(hook.heard()) < 15, "a piece");
    for number in 1..20 {
        assert_eq!(watch.heard().await, said("ADDED", &format!("d{number:02}")));
    }
    // Somebody who never answers holds no watch beyond its end.
    server.make(V1, door("v1", "new", json!({"hostPort": "h:80"}))).await;
    hook.says(|_| None);
    for path in [
        format!("{V2}?watch=true&timeoutSeconds=1"),
        format!("{V2}?watch=true&timeoutSeconds=1&fieldSelector=spec.host%3Dx"),
    ] {
        let ends = async {
            let mut hung = Watch::open_at(&server, &path).await;
            while hung.next().await.is_some() {}
        };
        tokio::time::timeout(Duration::from_secs(10), ends).await.expect("it ends in time");
    }
}

#[tokio::test]
async fn a_watch_that_is_far_behind_converts_what_happened_piece_by_piece() {
    const DOORS: usize = 300;
    let (server, hook) = start().await;
    let before = server.keyspace.revision();
    for number in 0..DOORS {
        server.make(V1, door("v1", &format!("d{number:03}"), json!({"hostPort": "h:80"}))).await;
    }
    // It is told from the disk, all at once.
    server.keyspace.flush_history().await;
    hook.heard();
    let mut watch = Watch::open_at(&server, &format!("{V2}?watch=true&resourceVersion={before}")).await;
    for number in 0..DOORS {
        assert_eq!(watch.heard().await, said("ADDED", &format!("d{number:03}")));
    }
    let sizes: Vec<usize> = hook.heard().iter().map(|request| request["objects"].as_array().unwrap().len()).collect();
    assert!(sizes.len() > 1 && sizes.iter().sum::<usize>() == DOORS, "{sizes:?}");
    server.make(V1, door("v1", "new", json!({"hostPort": "h:80"}))).await;
    assert_eq!(watch.heard().await, said("ADDED", "new"));
}

#[tokio::test]
async fn a_dry_run_of_a_deletion_shows_the_version_that_was_asked_for() {
    let (server, _hook) = start().await;
    let mut held = door("v1", "a", json!({"hostPort": "h:80"}));
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    server.make(V1, held).await;
    let (code, would) = server.call("DELETE", &format!("{V2}/a?dryRun=All"), Value::Null).await;
    assert_eq!((code, &would["apiVersion"]), (200, &json!("example.com/v2")), "{would}");
    assert_eq!(would["spec"], json!({"host": "h", "port": "80", "open": true}));
    assert!(would["metadata"]["deletionTimestamp"].is_string() && would["metadata"]["uid"].is_string());
    assert!(server.get(&format!("{V1}/a")).await.1["metadata"]["deletionTimestamp"].is_null());
}

#[tokio::test]
async fn what_is_stored_in_an_older_version_is_converted_when_it_is_written() {
    let (server, hook) = start().await;
    server.make(V1, door("v1", "a", json!({"hostPort": "h:80"}))).await;
    let mut definition = definition(&hook.url());
    definition["spec"]["versions"][0]["storage"] = false.into();
    definition["spec"]["versions"][1]["storage"] = true.into();
    let versions = json!({"spec": {"versions": definition["spec"]["versions"]}});
    let (code, answer) = server.call("PATCH", &format!("{DEFINITIONS}/doors.example.com"), versions).await;
    assert_eq!(code, 200, "{answer}");
    hook.heard();
    let (code, same) = server.call("PATCH", &format!("{V1}/a"), json!({})).await;
    assert_eq!((code, &same["spec"]), (200, &json!({"hostPort": "h:80"})), "{same}");
    assert!(hook.heard().iter().any(|request| request["desiredAPIVersion"] == "example.com/v2"));
    // It is in the new version now.
    server.get(&format!("{V2}/a")).await;
    assert!(hook.heard().is_empty());
}

#[tokio::test]
async fn admission_webhooks_see_the_version_that_they_ask_for() {
    let (server, _convert) = start().await;
    let hook = Hook::start(|review| {
        let response = json!({"uid": review["request"]["uid"], "allowed": true});
        Some(json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": response}))
    })
    .await;
    let mut judge = webhook("judge", hook.url(), &["doors"]);
    judge["rules"][0]["apiVersions"] = json!(["v2"]);
    server.make(VALIDATING, json!({"metadata": {"name": "v"}, "webhooks": [judge.clone()]})).await;
    server.make(V1, door("v1", "a", json!({"hostPort": "h:80"}))).await;
    let request = hook.heard().remove(0);
    assert_eq!((&request["kind"]["version"], &request["requestKind"]["version"]), (&json!("v2"), &json!("v1")));
    assert_eq!(request["object"]["spec"]["host"], "h");
    // What it makes of that version comes back into the one that was asked for.
    hook.says(|review| {
        use base64::Engine as _;
        let patch = json!([{"op": "replace", "path": "/spec/port", "value": "99"}]).to_string();
        let patch = base64::engine::general_purpose::STANDARD.encode(patch);
        let response =
            json!({"uid": review["request"]["uid"], "allowed": true, "patchType": "JSONPatch", "patch": patch});
        Some(json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": response}))
    });
    assert_eq!(server.call("DELETE", &format!("{VALIDATING}/v"), Value::Null).await.0, 200);
    server.make(MUTATING, json!({"metadata": {"name": "m"}, "webhooks": [judge]})).await;
    let made = server.make(V1, door("v1", "b", json!({"hostPort": "h:80"}))).await;
    assert_eq!(made["spec"], json!({"hostPort": "h:99"}));
}

#[tokio::test]
async fn a_webhook_changes_neither_kind_nor_version_of_an_object() {
    let (server, _convert) = start().await;
    let hook = Hook::start(|_| None).await;
    server.make(MUTATING, json!({"metadata": {"name": "m"}, "webhooks": [webhook("m", hook.url(), &["doors"])]})).await;
    for (path, field, value, wanted) in [
        (V1, "kind", "Window", "Door"),
        (V1, "apiVersion", "example.com/v2", "example.com/v1"),
        (V2, "apiVersion", "example.com/v1", "example.com/v2"),
        (V1, "apiVersion", "v1", "example.com/v1"),
    ] {
        hook.says(move |review| {
            use base64::Engine as _;
            let patch = json!([{"op": "replace", "path": format!("/{field}"), "value": value}]).to_string();
            let patch = base64::engine::general_purpose::STANDARD.encode(patch);
            let response =
                json!({"uid": review["request"]["uid"], "allowed": true, "patchType": "JSONPatch", "patch": patch});
            Some(json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": response}))
        });
        let version = if path == V1 { "v1" } else { "v2" };
        let (code, status) = server.call("POST", path, door(version, "a", json!({}))).await;
        let expected =
            format!("Door.example.com \"a\" is invalid: {field}: Invalid value: \"{value}\": must be {wanted}");
        assert_eq!((code, &status["message"]), (422, &json!(expected)), "{path} {field}");
    }
    assert_eq!(server.get(&format!("{V1}/a")).await.0, 404);
}

#[tokio::test]
async fn a_patch_changes_neither_kind_nor_version_of_an_object() {
    let (server, _convert) = start().await;
    server.make(V1, door("v1", "a", json!({"hostPort": "h:80"}))).await;
    server.make(MAPS, config_map("a", json!({}))).await;
    for (path, patch, words) in [
        (V1, json!({"kind": "Window"}), "kind: Invalid value: \"Window\": must be Door"),
        (V1, json!({"apiVersion": "v1"}), "apiVersion: Invalid value: \"v1\": must be example.com/v1"),
        (V2, json!({"apiVersion": "example.com/v1"}), "must be example.com/v2"),
        (MAPS, json!({"kind": "Secret"}), "converting (v1.Secret) to (core.ConfigMap): unknown conversion"),
        (MAPS, json!({"kind": "Other"}), "no kind \"Other\" is registered for version \"v1\""),
    ] {
        let (code, status) = server.call("PATCH", &format!("{path}/a"), patch.clone()).await;
        let message = status["message"].as_str().unwrap();
        assert!(code == 422 && message.contains(words), "{path} {patch}: {message}");
    }
    let same = json!({"kind": null, "apiVersion": "v1", "data": {"k": "v"}});
    let (code, map) = server.call("PATCH", &format!("{MAPS}/a"), same).await;
    assert_eq!((code, &map["kind"], &map["data"]["k"]), (200, &json!("ConfigMap"), &json!("v")), "{map}");
}

#[tokio::test]
async fn what_a_policy_cannot_be_asked_with_is_decided_by_its_failure_policy_and_takes_nothing_of_others() {
    let (server, hook) = start().await;
    server.make(V1, door("v1", "limit", json!({"hostPort": "h:80"}))).await;
    let group = "/apis/admissionregistration.k8s.io/v1";
    let rules = |group: &str, version: &str, resource: &str| json!({"resourceRules": [{"operations": ["CREATE"], "apiGroups": [group], "apiVersions": [version], "resources": [resource]}]});
    let make = async |kind: &str, name: &str, mut spec: Value, params: Value| {
        spec["reinvocationPolicy"] = if kind == "mutating" { json!("Never") } else { Value::Null };
        let policy = json!({"metadata": {"name": name}, "spec": spec});
        server.make(&format!("{group}/{kind}admissionpolicies"), policy).await;
        let actions = if kind == "mutating" { Value::Null } else { json!(["Deny"]) };
        let spec = json!({"policyName": name, "validationActions": actions, "paramRef": params});
        let binding = json!({"metadata": {"name": name}, "spec": spec});
        server.make(&format!("{group}/{kind}admissionpolicybindings"), binding).await;
    };
    let params = || json!({"name": "limit", "namespace": "default", "parameterNotFoundAction": "Deny"});
    let with_doors = |failure: &str| {
        json!({
            "failurePolicy": failure, "matchConstraints": rules("", "v1", "configmaps"),
            "paramKind": {"apiVersion": "example.com/v2", "kind": "Door"},
            "validations": [{"expression": "params.spec.host == 'h'"}],
        })
    };
    make("validating", "ignores", with_doors("Ignore"), params()).await;
    let mut changes = with_doors("Ignore");
    changes["validations"] = Value::Null;
    let patch = json!({"expression": "[JSONPatch{op: 'add', path: '/data', value: {'host': params.spec.host}}]"});
    changes["mutations"] = json!([{"patchType": "JSONPatch", "jsonPatch": patch}]);
    make("mutating", "changes", changes, params()).await;
    // One that sees the doors that are written in the other version.
    let doors = json!({
        "failurePolicy": "Ignore", "matchConstraints": rules("example.com", "v2", "doors"),
        "validations": [{"expression": "object.spec.host == 'h'"}],
    });
    make("validating", "doors", doors.clone(), Value::Null).await;
    assert_eq!(server.make(MAPS, json!({"metadata": {"name": "a"}})).await["data"], json!({"host": "h"}));
    assert_eq!(server.call("POST", V1, door("v1", "a", json!({"hostPort": "i:80"}))).await.0, 422);
    // What was made of the params once is remembered.
    let (code, changed) = server.call("PATCH", &format!("{V1}/limit"), json!({"spec": {"hostPort": "h:81"}})).await;
    assert_eq!(code, 200, "{changed}");
    hook.says(|_| Some(json!("it is down")));
    let made = server.make(MAPS, json!({"metadata": {"name": "b"}})).await;
    assert_eq!(made.get("data"), None);
    server.make(V1, door("v1", "b", json!({"hostPort": "i:80"}))).await;
    // What others have found is what the client hears.
    let never = json!({"matchConstraints": rules("", "v1", "configmaps"), "validations": [{"expression": "false", "message": "never"}]});
    make("validating", "first", never, Value::Null).await;
    make("validating", "second", with_doors("Fail"), params()).await;
    let (code, answer) = server.call("POST", MAPS, json!({"metadata": {"name": "c"}})).await;
    let message = answer["message"].as_str().expect("words");
    assert!(code == 422 && message.ends_with("'first' denied request: never"), "{answer}");
    assert_eq!(
        server.call("DELETE", &format!("{group}/validatingadmissionpolicybindings/first"), Value::Null).await.0,
        200
    );
    let (code, answer) = server.call("POST", MAPS, json!({"metadata": {"name": "c"}})).await;
    let message = answer["message"].as_str().expect("words");
    let (before, after) = message.split_once("failed to configure binding: ").expect("why");
    assert!(code == 422 && before.ends_with("'second' denied request: "), "{answer}");
    assert!(after.contains("conversion webhook for example.com/v1, Kind=Door failed"), "{answer}");
}
