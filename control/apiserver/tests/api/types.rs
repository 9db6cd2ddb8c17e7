//! An object is of the kind and the version that its resource says, whatever it says of itself.

use serde_json::{Value, json};

use super::watches::Watch;
use super::{Server, config_map};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";
const SCALERS: &str = "/apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers";
const TYPES: [&str; 3] =
    ["application/merge-patch+json", "application/strategic-merge-patch+json", "application/json-patch+json"];

fn deployment() -> Value {
    json!({"metadata": {"name": "x"}, "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": {
        "metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}})
}

/// A patch of each kind that sets these fields.
fn patches(fields: &Value) -> [(&'static str, Value); 3] {
    let steps = fields.as_object().expect("fields").iter().map(|(field, value)| match value {
        Value::Null => json!({"op": "remove", "path": format!("/{field}")}),
        value => json!({"op": "replace", "path": format!("/{field}"), "value": value}),
    });
    [(TYPES[0], fields.clone()), (TYPES[1], fields.clone()), (TYPES[2], steps.collect())]
}

#[tokio::test]
async fn a_patch_makes_nothing_else_of_an_object() {
    let server = Server::start().await;
    server.make(MAPS, config_map("x", json!({"a": "b"}))).await;
    server.make(DEPLOYMENTS, deployment()).await;
    let (map, set) = (format!("{MAPS}/x"), format!("{DEPLOYMENTS}/x"));
    let status = format!("{set}/status");
    let scale = format!("{set}/scale");
    for (path, version, kind) in [
        (&map, "v1", "ConfigMap"),
        (&set, "apps/v1", "Deployment"),
        (&status, "apps/v1", "Deployment"),
        (&scale, "autoscaling/v1", "Scale"),
    ] {
        let words = |group: &str| format!("converting (v1.Secret) to ({group}.{kind}): unknown conversion");
        let group = match version.split_once('/') {
            Some((group, _)) => group,
            None => "core",
        };
        for (fields, why) in [
            (json!({"kind": "Secret", "apiVersion": "v1"}), words(group)),
            (
                json!({"kind": "Secret", "apiVersion": "v9"}),
                "no kind \"Secret\" is registered for version \"v9\"".to_owned(),
            ),
            (json!({"apiVersion": "v9"}), format!("no kind \"{kind}\" is registered for version \"v9\"")),
            (json!({"kind": "Nothing"}), format!("no kind \"Nothing\" is registered for version \"{version}\"")),
        ] {
            for (media_type, patch) in patches(&fields) {
                let (code, refused) = server.call_as("PATCH", path, media_type, &patch).await;
                let message = refused["message"].as_str().unwrap_or_default();
                assert!(code == 422 && message.contains(&why), "{path} {media_type} {patch}: {refused}");
            }
        }
        for fields in [json!({"kind": null}), json!({"apiVersion": null}), json!({"kind": "", "apiVersion": ""})] {
            for (media_type, patch) in patches(&fields) {
                let (code, patched) = server.call_as("PATCH", path, media_type, &patch).await;
                assert_eq!(
                    (code, &patched["kind"], &patched["apiVersion"]),
                    (200, &json!(kind), &json!(version)),
                    "{path} {patch}"
                );
            }
        }
        let (_, found) = server.get(path).await;
        assert_eq!((&found["kind"], &found["apiVersion"]), (&json!(kind), &json!(version)));
    }
}

#[tokio::test]
async fn what_is_stored_is_in_the_version_that_its_resource_is_stored_in() {
    let server = Server::start().await;
    let of = json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"});
    let metrics = json!([{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}}]);
    let scaler =
        json!({"metadata": {"name": "x"}, "spec": {"maxReplicas": 3, "scaleTargetRef": of, "metrics": metrics}});
    server.make(SCALERS, scaler).await;
    for (group, patch) in
        [("v2", json!({"apiVersion": "autoscaling/v1"})), ("v1", json!({"apiVersion": "autoscaling/v2"}))]
    {
        let path = SCALERS.replace("v2", group) + "/x";
        for (media_type, patch) in patches(&patch) {
            let (_, answer) = server.call_as("PATCH", &path, media_type, &patch).await;
            assert!(answer["kind"] == "Status" || answer["apiVersion"] == format!("autoscaling/{group}"), "{answer}");
        }
        let (code, found) = server.get(&format!("{SCALERS}/x")).await;
        assert_eq!((code, &found["apiVersion"], &found["spec"]["metrics"]), (200, &json!("autoscaling/v2"), &metrics));
        let record = server.keyspace.get("horizontalpodautoscalers.autoscaling", "default/x").expect("it is there");
        let head = br#"{"kind":"HorizontalPodAutoscaler","apiVersion":"autoscaling/v2","#;
        assert!(record.bytes.starts_with(head), "{}", String::from_utf8_lossy(&record.bytes));
    }
}

#[tokio::test]
async fn what_is_stored_as_something_else_is_read_as_what_it_is_and_healed() {
    let server = Server::start().await;
    let mut watch = Watch::open_at(&server, &format!("{MAPS}?watch=1&labelSelector=l%3Dm")).await;
    for (at, head) in [r#""kind":"Secret","apiVersion":"v9","#, r#""apiVersion":"v1","#, ""].iter().enumerate() {
        let name = format!("x{at}");
        let text = format!(
            r#"{{{head}"metadata":{{"resourceVersion":"","name":"{name}","namespace":"default","uid":"u{at}","labels":{{"l":"m"}}}},"data":{{"a":"b"}}}}"#
        );
        server.put_record("configmaps", &format!("default/{name}"), &text).await;
        let path = format!("{MAPS}/{name}");
        let is_map = |found: &Value| (&found["kind"], &found["apiVersion"]) == (&json!("ConfigMap"), &json!("v1"));
        let (code, found) = server.get(&path).await;
        assert!(code == 200 && is_map(&found), "{found}");
        let told = watch.next().await.expect("an event");
        assert!(told.to_string().contains(&name), "{told}");
        assert!(is_map(&told["object"]), "{told}");
        let (code, listed) = server.get(MAPS).await;
        assert!(code == 200 && listed["items"].to_string().contains(&name), "{listed}");
        // Whatever is written, if it changes nothing else.
        let (code, patched) = server.call("PATCH", &path, json!({"data": {"a": "b"}})).await;
        assert!(code == 200 && is_map(&patched), "{patched}");
        let record = server.keyspace.get("configmaps", &format!("default/{name}")).expect("it is there");
        assert!(record.bytes.starts_with(br#"{"kind":"ConfigMap","apiVersion":"v1","metadata":"#));
        watch.next().await;
    }
}
