//! Claims, volumes and classes: what admission adds to them and refuses, and what node agents may say of volumes.

use axum::body::Body;
use http::Request;
use serde_json::{Value, json};

use super::{Server, node};

const CLASSES: &str = "/apis/storage.k8s.io/v1/storageclasses";
const CLAIMS: &str = "/api/v1/namespaces/default/persistentvolumeclaims";
const VOLUMES: &str = "/api/v1/persistentvolumes";
const DEFAULT: &str = "storageclass.kubernetes.io/is-default-class";

fn claim(name: &str, class: Value) -> Value {
    let mut spec = json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}});
    if !class.is_null() {
        spec["storageClassName"] = class;
    }
    json!({"metadata": {"name": name}, "spec": spec})
}

#[tokio::test]
async fn claims_are_of_the_default_class_and_protected_while_they_are_used() {
    let server = Server::start().await;
    let (_, class) = server.get(&format!("{CLASSES}/local")).await;
    assert_eq!((&class["provisioner"], &class["reclaimPolicy"]), (&json!("coracle.dev/local"), &json!("Delete")));
    assert_eq!(
        (&class["volumeBindingMode"], &class["allowVolumeExpansion"]),
        (&json!("WaitForFirstConsumer"), &json!(true))
    );
    assert_eq!(class["metadata"]["annotations"][DEFAULT], "true");
    let made = server.make(CLAIMS, claim("a", Value::Null)).await;
    assert_eq!(made["spec"]["storageClassName"], "local");
    assert_eq!(made["metadata"]["finalizers"], json!(["kubernetes.io/pvc-protection"]));
    assert_eq!(server.make(CLAIMS, claim("none", json!(""))).await["spec"]["storageClassName"], "");
    let mut annotated = claim("old", Value::Null);
    annotated["metadata"]["annotations"] = json!({"volume.beta.kubernetes.io/storage-class": "x"});
    assert!(server.make(CLAIMS, annotated).await["spec"]["storageClassName"].is_null());
    // The newest of several; and ours stays as somebody has made it.
    let other = json!({"metadata": {"name": "a-second", "annotations": {DEFAULT: "true"}}, "provisioner": "x.y/z"});
    server.make(CLASSES, other).await;
    let patch = json!({"metadata": {"annotations": {DEFAULT: "false"}}});
    server.call("PATCH", &format!("{CLASSES}/local"), patch).await;
    assert_eq!(server.make(CLAIMS, claim("b", Value::Null)).await["spec"]["storageClassName"], "a-second");
    let server = server.restart().await;
    assert_eq!(server.get(&format!("{CLASSES}/local")).await.1["metadata"]["annotations"][DEFAULT], "false");
}

#[tokio::test]
async fn a_claim_grows_when_it_is_bound_and_its_class_lets_it() {
    let server = Server::start().await;
    server.make(CLASSES, json!({"metadata": {"name": "fixed"}, "provisioner": "x.y/z"})).await;
    let grow = json!({"spec": {"resources": {"requests": {"storage": "2Gi"}}}});
    for (name, class, is_bound, expected) in [
        ("free", "local", false, "spec is immutable after creation"),
        (
            "fixed",
            "fixed",
            true,
            "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc",
        ),
        ("grows", "local", true, ""),
    ] {
        server.make(CLAIMS, claim(name, json!(class))).await;
        let at = format!("{CLAIMS}/{name}");
        if is_bound {
            let status = json!({"status": {"phase": "Bound", "capacity": {"storage": "1Gi"}}});
            assert_eq!(server.call("PATCH", &format!("{at}/status"), status).await.0, 200);
        }
        let (code, answer) = server.call("PATCH", &at, grow.clone()).await;
        let message = answer["message"].as_str().unwrap_or_default();
        assert!((code == 200) == expected.is_empty() && message.contains(expected), "{name}: {code} {message}");
    }
}

#[tokio::test]
async fn a_node_says_of_its_own_volumes_that_they_are_made_or_gone() {
    let server = Server::start().await;
    let volume = json!({
        "metadata": {"name": "v", "labels": {"coracle.dev/volume-node": "one"}, "finalizers": ["coracle.dev/local-volume"]},
        "spec": {
            "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "local": {"path": "volumes/v"},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [
                {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": ["one"]}]},
            ]}},
        },
    });
    let made = server.make(VOLUMES, volume).await;
    assert_eq!(made["metadata"]["finalizers"], json!(["coracle.dev/local-volume", "kubernetes.io/pv-protection"]));
    let at = format!("{VOLUMES}/v");
    let says = json!({"metadata": {"annotations": {"coracle.dev/volume-made": "true"}}});
    let asks = async |name: &str, patch: Value| {
        let request = Request::patch(&at).header("content-type", "application/merge-patch+json");
        server.send(Some(node(name)), request.body(Body::from(patch.to_string())).expect("a request")).await.code
    };
    assert_eq!(asks("two", says.clone()).await, 403);
    assert_eq!(asks("one", says).await, 200);
    assert_eq!(asks("one", json!({"spec": {"persistentVolumeReclaimPolicy": "Delete"}})).await, 403);
    let gone = json!({"metadata": {"finalizers": ["kubernetes.io/pv-protection"]}});
    assert_eq!(asks("one", gone.clone()).await, 403, "it is not being deleted");
    server.call("DELETE", &at, Value::Null).await;
    assert_eq!(asks("one", json!({"metadata": {"finalizers": null}})).await, 403, "it is protected by others, too");
    assert_eq!(asks("one", gone).await, 200);
    let (_, left) = server.get(&at).await;
    assert_eq!(left["metadata"]["finalizers"], json!(["kubernetes.io/pv-protection"]));
}
