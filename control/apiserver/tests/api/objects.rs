//! The life of one object.

use axum::body::Body;
use coracle_api::schema;
use http::Request;
use serde_json::{Value, json};

use crate::{Server, admin, config_map, pod};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

#[tokio::test]
async fn an_object_is_made_read_changed_and_deleted() {
    let server = Server::start().await;
    let made = server.make(MAPS, config_map("a", json!({"k": "v"}))).await;
    assert!(made["metadata"]["uid"].is_string());
    assert_eq!(server.get(&format!("{MAPS}/a")).await.1, made);
    let (code, again) = server.call("POST", MAPS, config_map("a", json!({}))).await;
    assert_eq!((code, &again["reason"]), (409, &json!("AlreadyExists")));

    let (code, patched) = server.call("PATCH", &format!("{MAPS}/a"), json!({"data": {"k": "w"}})).await;
    assert_eq!((code, &patched["data"]["k"]), (200, &json!("w")));
    let (code, stale) = server.call("PUT", &format!("{MAPS}/a"), made.clone()).await;
    assert_eq!((code, &stale["reason"]), (409, &json!("Conflict")));

    let (code, deleted) = server.call("DELETE", &format!("{MAPS}/a"), Value::Null).await;
    assert_eq!((code, &deleted["status"]), (200, &json!("Success")));
    assert_eq!(deleted["details"]["uid"], made["metadata"]["uid"]);
    assert_eq!(server.get(&format!("{MAPS}/a")).await.0, 404);
}

#[tokio::test]
async fn a_write_that_changes_nothing_makes_no_revision() {
    let server = Server::start().await;
    let made = server.make(MAPS, config_map("a", json!({"k": "v"}))).await;
    let before = server.keyspace.revision();
    for (method, body) in [("PUT", made.clone()), ("PATCH", json!({"data": {"k": "v"}}))] {
        let (code, same) = server.call(method, &format!("{MAPS}/a"), body).await;
        assert_eq!((code, &same["metadata"]["resourceVersion"]), (200, &made["metadata"]["resourceVersion"]));
    }
    assert_eq!(server.keyspace.revision(), before);
}

#[tokio::test]
async fn a_dry_run_stores_nothing() {
    let server = Server::start().await;
    let before = server.keyspace.revision();
    let (code, would_be) = server.call("POST", &format!("{MAPS}?dryRun=All"), config_map("a", json!({}))).await;
    assert_eq!((code, would_be["metadata"].get("resourceVersion")), (201, None));
    // Storage would refuse a version, and is not asked; what is invalid is told first.
    let mut versioned = config_map("a", json!({}));
    versioned["metadata"]["resourceVersion"] = json!("1");
    assert_eq!(server.call("POST", &format!("{MAPS}?dryRun=All"), versioned.clone()).await.0, 201);
    assert_eq!(server.call("POST", MAPS, versioned.clone()).await.0, 500);
    versioned["data"] = json!({"no key": "x"});
    assert_eq!(server.call("POST", MAPS, versioned).await.0, 422);
    assert_eq!(server.keyspace.revision(), before);
    assert_eq!(server.get(&format!("{MAPS}/a")).await.0, 404);
}

#[tokio::test]
async fn finalizers_keep_an_object_until_the_last_one_goes() {
    let server = Server::start().await;
    let mut object = config_map("a", json!({}));
    object["metadata"]["finalizers"] = json!(["example.com/x"]);
    server.make(MAPS, object).await;
    let (code, held) = server.call("DELETE", &format!("{MAPS}/a"), Value::Null).await;
    assert_eq!(code, 200);
    assert!(held["metadata"]["deletionTimestamp"].is_string(), "{held}");
    let (code, _) = server.call("PATCH", &format!("{MAPS}/a"), json!({"metadata": {"finalizers": null}})).await;
    assert_eq!(code, 200);
    assert_eq!(server.get(&format!("{MAPS}/a")).await.0, 404);
}

#[tokio::test]
async fn concurrent_patches_all_take_effect() {
    let server = Server::start().await;
    server.make(MAPS, config_map("a", json!({}))).await;
    let path = format!("{MAPS}/a");
    let patches = (0..100).map(|at| server.call("PATCH", &path, json!({"data": {at.to_string(): "x"}})));
    for (code, answer) in futures::future::join_all(patches).await {
        assert_eq!(code, 200, "{answer}");
    }
    assert_eq!(server.get(&format!("{MAPS}/a")).await.1["data"].as_object().map(|data| data.len()), Some(100));
}

#[tokio::test]
async fn an_apply_owns_its_fields_and_meets_conflicts() {
    let server = Server::start().await;
    let apply = "application/apply-patch+yaml";
    let path = |manager: &str| format!("{MAPS}/a?fieldManager={manager}");
    let (code, made) =
        server.call_as("PATCH", &path("one"), apply, &config_map("a", json!({"k": "v", "l": "v"}))).await;
    assert_eq!((code, &made["metadata"]["managedFields"][0]["operation"]), (201, &json!("Apply")));
    let (code, conflict) = server.call_as("PATCH", &path("two"), apply, &config_map("a", json!({"k": "w"}))).await;
    assert_eq!((code, &conflict["details"]["causes"][0]["reason"]), (409, &json!("FieldManagerConflict")));
    let (code, forced) = server
        .call_as("PATCH", &format!("{}&force=true", path("two")), apply, &config_map("a", json!({"k": "w"})))
        .await;
    assert_eq!((code, &forced["data"]), (200, &json!({"k": "w", "l": "v"})));
    let (_, dropped) = server.call_as("PATCH", &path("one"), apply, &config_map("a", json!({}))).await;
    assert_eq!(dropped["data"], json!({"k": "w"}));
}

#[tokio::test]
async fn strict_validation_refuses_what_the_default_warns_of() {
    let server = Server::start().await;
    let object = json!({"metadata": {"name": "a"}, "dada": {}});
    let (code, refused) = server.call("POST", &format!("{MAPS}?fieldValidation=Strict"), object.clone()).await;
    assert_eq!(code, 400);
    assert_eq!(
        refused["message"],
        "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: strict decoding error: unknown field \"dada\""
    );
    let request = Request::post(MAPS).body(object.to_string().into()).unwrap();
    let answer = server.send(Some(admin()), request).await;
    assert_eq!(
        (answer.code, &answer.headers["warning"]),
        (201, &"299 - \"unknown field \\\"dada\\\"\"".parse().unwrap())
    );
}

#[tokio::test]
async fn a_body_that_is_too_large_is_refused() {
    let server = Server::start().await;
    for (size, code) in [(4 << 20, 413), (2 << 20, 422), (1 << 19, 201)] {
        let object = config_map("big", json!({"k": "x".repeat(size)}));
        let (answered, answer) = server.call("POST", MAPS, object).await;
        assert_eq!(answered, code, "{size}: {}", answer["message"]);
    }
}

#[tokio::test]
async fn protobuf_goes_in_and_out() {
    const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
    let server = Server::start().await.with_account().await;
    let schema = schema::named("io.k8s.api.core.v1.Pod").unwrap();
    let sent = coracle_api::codec::protobuf::encode(&pod("p"), &schema);
    let request = Request::post("/api/v1/namespaces/default/pods")
        .header("content-type", PROTOBUF)
        .header("accept", PROTOBUF)
        .body(sent.into())
        .unwrap();
    let answer = server.send(Some(admin()), request).await;
    assert_eq!((answer.code, answer.headers["content-type"].to_str().unwrap()), (201, PROTOBUF));
    let decoded = coracle_api::codec::protobuf::decode(&answer.bytes, &schema).unwrap().value;
    let (_, stored) = server.get("/api/v1/namespaces/default/pods/p").await;
    assert_eq!(decoded["metadata"]["uid"], stored["metadata"]["uid"]);
    assert_eq!(decoded["spec"]["containers"], stored["spec"]["containers"]);
}

#[tokio::test]
async fn a_terminating_namespace_takes_nothing_new() {
    let server = Server::start().await;
    server.make("/api/v1/namespaces", json!({"metadata": {"name": "n"}})).await;
    let (code, _) = server.call("DELETE", "/api/v1/namespaces/n", Value::Null).await;
    assert_eq!(code, 200);
    let (code, refused) = server.call("POST", "/api/v1/namespaces/n/configmaps", config_map("a", json!({}))).await;
    assert_eq!((code, &refused["details"]["causes"][0]["reason"]), (403, &json!("NamespaceTerminating")));
    let (code, mut namespace) = server.get("/api/v1/namespaces/n").await;
    assert_eq!((code, &namespace["status"]["phase"]), (200, &json!("Terminating")));
    namespace["spec"]["finalizers"] = json!([]);
    let (code, _) = server.call("PUT", "/api/v1/namespaces/n/finalize", namespace).await;
    assert_eq!((code, server.get("/api/v1/namespaces/n").await.0), (200, 404));
    let (code, refused) = server.call("DELETE", "/api/v1/namespaces/default", Value::Null).await;
    assert_eq!((code, &refused["reason"]), (403, &json!("Forbidden")));
}

#[tokio::test]
async fn generated_names_do_not_collide() {
    let server = Server::start().await;
    let object = json!({"metadata": {"generateName": "a-"}});
    let makes = (0..50).map(|_| server.call("POST", MAPS, object.clone()));
    let names: std::collections::BTreeSet<String> = futures::future::join_all(makes)
        .await
        .into_iter()
        .map(|(_, made)| made["metadata"]["name"].to_string())
        .collect();
    assert_eq!(names.len(), 50);
}

#[tokio::test]
async fn both_groups_see_the_same_events() {
    let server = Server::start().await;
    let event = json!({"metadata": {"name": "e"}, "involvedObject": {"kind": "Pod", "namespace": "default", "name": "p"},
        "message": "said", "reason": "Because", "type": "Normal"});
    server.make("/api/v1/namespaces/default/events", event).await;
    let (code, other) = server.get("/apis/events.k8s.io/v1/namespaces/default/events/e").await;
    assert_eq!((code, &other["note"], &other["regarding"]["name"]), (200, &json!("said"), &json!("p")));
    let (_, list) = server.get("/apis/events.k8s.io/v1/events?fieldSelector=regarding.name%3Dp").await;
    assert_eq!(list["items"][0]["note"], "said");
    let (_, none) = server.get("/apis/events.k8s.io/v1/events?fieldSelector=regarding.name%3Dq").await;
    assert_eq!(none["items"], json!([]));
}

#[tokio::test]
async fn who_scales_writes_nothing_but_how_many() {
    let server = Server::start().await;
    let deployments = "/apis/apps/v1/namespaces/default/deployments";
    let template =
        json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "hello"}]}});
    let spec = json!({"replicas": 2, "selector": {"matchLabels": {"a": "b"}}, "template": template});
    server.make(deployments, json!({"metadata": {"name": "w"}, "spec": spec})).await;
    let owner = json!({"apiVersion": "v1", "kind": "ConfigMap", "name": "none", "uid": "none"});
    let scale = json!({
        "apiVersion": "autoscaling/v1", "kind": "Scale", "spec": {"replicas": 1},
        "metadata": {"name": "w", "ownerReferences": [owner], "annotations": {"a": "b"}, "labels": {"a": "b"},
            "finalizers": ["x.y/z"]},
    });
    let path = format!("{deployments}/w/scale");
    for (query, media_type) in
        [("?fieldManager=x&force=true", "application/apply-patch+yaml"), ("", "application/merge-patch+json")]
    {
        let (code, answer) = server.call_as("PATCH", &format!("{path}{query}"), media_type, &scale).await;
        assert_eq!(code, 200, "{answer}");
        let (_, after) = server.get(&format!("{deployments}/w")).await;
        assert_eq!(after["spec"]["replicas"], 1);
        for field in ["ownerReferences", "annotations", "labels", "finalizers"] {
            assert!(after["metadata"].get(field).is_none(), "{media_type} wrote {field}: {after}");
        }
    }
}

/// `kubectl get --subresource=scale` asks for a table.
#[tokio::test]
async fn a_scale_is_shown_as_a_table_and_by_its_metadata() {
    let server = Server::start().await;
    let deployments = "/apis/apps/v1/namespaces/default/deployments";
    let template =
        json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "hello"}]}});
    let spec = json!({"replicas": 2, "selector": {"matchLabels": {"a": "b"}}, "template": template});
    server.make(deployments, json!({"metadata": {"name": "w"}, "spec": spec})).await;
    let ask = async |kind: &str, query: &str| {
        let request = Request::get(format!("{deployments}/w/scale{query}"))
            .header("accept", format!("application/json;as={kind};v=v1;g=meta.k8s.io"))
            .body(Body::empty());
        server.send(Some(admin()), request.expect("a request")).await
    };
    let table = ask("Table", "").await.json();
    let columns: Vec<_> =
        table["columnDefinitions"].as_array().expect("columns").iter().map(|of| &of["name"]).collect();
    assert_eq!(columns, ["Name", "Desired", "Available", "Age"], "{table}");
    assert!(table["columnDefinitions"].as_array().is_some_and(|all| all.iter().all(|of| of["description"] != "")));
    assert_eq!(
        table["rows"][0]["cells"].as_array().map(|cells| &cells[..3]),
        Some(&[json!("w"), json!(2), json!(0)][..])
    );
    assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    assert_eq!(ask("Table", "?includeObject=Object").await.json()["rows"][0]["object"]["kind"], "Scale");
    let partial = ask("PartialObjectMetadata", "").await.json();
    assert_eq!((&partial["kind"], &partial["metadata"]["name"]), (&json!("PartialObjectMetadata"), &json!("w")));
}

/// What is sent to one place does not say that it is of another.
#[tokio::test]
async fn what_hangs_below_an_object_is_of_its_namespace_and_has_its_name() {
    let server = Server::start().await.with_account().await;
    let deployments = "/apis/apps/v1/namespaces/default/deployments";
    let template =
        json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "hello"}]}});
    let spec = json!({"replicas": 2, "selector": {"matchLabels": {"a": "b"}}, "template": template});
    server.make(deployments, json!({"metadata": {"name": "w"}, "spec": spec})).await;
    let (scale, token) = (format!("{deployments}/w/scale"), "/api/v1/namespaces/default/serviceaccounts/default/token");
    let elsewhere = |name: &str| json!({"metadata": {"name": name, "namespace": "other"}, "spec": {"replicas": 1}});
    let words = "the namespace of the provided object does not match the namespace sent on the request";
    for (method, path, body) in [
        ("PUT", scale.as_str(), elsewhere("w")),
        ("PATCH", &scale, elsewhere("w")),
        (
            "POST",
            "/api/v1/namespaces/default/pods/p/eviction",
            json!({"metadata": {"name": "p", "namespace": "other"}}),
        ),
        ("POST", "/api/v1/namespaces/default/pods/p/binding", json!({"metadata": {"name": "p", "namespace": "other"}})),
        ("POST", token, json!({"metadata": {"namespace": "other"}, "spec": {"audiences": ["a"]}})),
    ] {
        let (code, answer) = server.call(method, path, body).await;
        assert_eq!((code, answer["message"].as_str()), (400, Some(words)), "{method} {path}");
    }
    let (code, answer) =
        server.call("POST", token, json!({"metadata": {"name": "x"}, "spec": {"audiences": ["a"]}})).await;
    assert_eq!((code, &answer["details"]["causes"][0]["field"]), (422, &json!("metadata.name")), "{answer}");
    for (method, path, body) in [
        ("PUT", scale.as_str(), json!({"spec": {"replicas": 1}})),
        ("PATCH", &scale, json!({"metadata": null})),
        ("PATCH", &format!("{deployments}/w"), json!({"metadata": {"name": null}})),
    ] {
        let (code, answer) = server.call(method, path, body).await;
        let words = "the name of the object (w based on URL) was undeterminable: name must be provided";
        assert_eq!((code, answer["message"].as_str()), (400, Some(words)), "{method} {path}");
    }
    // An empty namespace is any.
    let (code, all) = server.get("/apis/apps/v1/namespaces//deployments").await;
    assert_eq!((code, all["items"].as_array().map(Vec::len)), (200, Some(1)), "{all}");
    assert_eq!(server.get("/apis/apps/v1/namespaces//deployments/w").await.0, 404);
}
