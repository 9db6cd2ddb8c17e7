//! Where an answer once was another than Kubernetes': what `cargo run -p coracle-tests --bin compare` found.

use axum::body::Body;
use http::Request;
use serde_json::{Value, json};

use super::{Server, admin, pod};

async fn asked_as(server: &Server, path: &str, shape: &str) -> Value {
    let accept = format!("application/json;as={shape};v=v1;g=meta.k8s.io");
    let request = Request::builder().uri(path).header("accept", accept).body(Body::empty()).expect("a request");
    server.send(Some(admin()), request).await.json()
}

fn causes(status: &Value) -> Vec<String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let causes = status["details"]["causes"].as_array().into_iter().flatten();
    causes.map(|cause| format!("{}: {}", text(&cause["field"]), text(&cause["message"]))).collect()
}

#[tokio::test]
async fn a_pod_is_sent_back_without_what_admission_gave_it() {
    let server = Server::start().await.with_account().await;
    let path = "/api/v1/namespaces/default/pods";
    // Without what a token would add to it.
    let mut sent = pod("a");
    sent["spec"]["automountServiceAccountToken"] = false.into();
    sent["spec"]["serviceAccountName"] = "default".into();
    server.make(path, sent.clone()).await;
    let (code, answer) = server.call("PUT", &format!("{path}/a"), sent.clone()).await;
    assert_eq!((code, &answer["spec"]["priority"]), (200, &json!(0)), "{answer}");
    let mut other = sent;
    other["spec"]["priority"] = 7.into();
    let (code, answer) = server.call("PUT", &format!("{path}/a"), other).await;
    assert_eq!(code, 422, "{answer}");
}

#[tokio::test]
async fn types_are_called_by_their_groups() {
    let server = Server::start().await;
    let path = "/apis/apps/v1/namespaces/default/deployments";
    let spec = json!({"selector": {"matchLabels": {"a": "b"}}, "template": {
        "metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "x"}]}}});
    server.make(path, json!({"metadata": {"name": "d"}, "spec": spec})).await;
    let one = asked_as(&server, &format!("{path}/d"), "PartialObjectMetadataList").await;
    assert!(one["message"].as_str().is_some_and(|told| told.ends_with("(*apps.Deployment)")), "{one}");
    let all = asked_as(&server, path, "PartialObjectMetadata").await;
    assert!(all["message"].as_str().is_some_and(|told| told.ends_with("(*apps.DeploymentList)")), "{all}");
    for (version, told) in [
        ("v9", "no kind \"Deployment\" is registered for version \"v9\" in scheme"),
        ("extensions/v1beta1", "the API version in the data (extensions/v1beta1) does not match"),
    ] {
        let object = json!({"apiVersion": version, "kind": "Deployment", "metadata": {"name": "e"}});
        let (code, answer) = server.call("POST", path, object).await;
        assert!(code == 400 && answer["message"].as_str().is_some_and(|text| text.contains(told)), "{answer}");
    }
}

#[tokio::test]
async fn documents_of_discovery_are_no_objects() {
    let server = Server::start().await;
    for (path, version) in [("/api/v1", None), ("/apis/apps/v1", Some("v1")), ("/apis/apps", Some("v1"))] {
        let (code, document) = server.get(path).await;
        assert_eq!((code, document["apiVersion"].as_str()), (200, version), "{path}");
        assert!(document["metadata"].is_null(), "{path}: {document}");
    }
}

#[tokio::test]
async fn reviews_say_what_is_wrong_with_a_selector_and_repeat_no_question_about_rules() {
    let server = Server::start().await;
    let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let at = "spec.resourceAttributes.labelSelector";
    let key = "name part must be non-empty";
    for (selector, expected) in [
        (
            json!({}),
            vec![format!(
                "{at}.requirements: Required value: when {at} is specified, requirements or rawSelector is required"
            )],
        ),
        (
            json!({"requirements": [{"operator": "In"}]}),
            vec![
                format!("{at}.requirements[0].key: Invalid value: \"\": {key}"),
                format!(
                    "{at}.requirements[0].values: Required value: must be specified when `operator` is 'In' or 'NotIn'"
                ),
            ],
        ),
        (json!({"requirements": [{"key": "a", "operator": "Exists"}]}), vec![]),
        (json!({"rawSelector": "a=b"}), vec![]),
    ] {
        let spec = json!({"resourceAttributes": {"verb": "list", "resource": "pods", "labelSelector": selector}});
        let (_, answer) = server.call("POST", path, json!({ "spec": spec })).await;
        assert_eq!(causes(&answer), expected, "{answer}");
    }
    let path = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews";
    let (code, answer) = server.call("POST", path, json!({"spec": {"namespace": "default"}})).await;
    assert_eq!((code, &answer["spec"], &answer["metadata"]), (201, &json!({}), &json!({})), "{answer}");
    assert!(answer["status"]["resourceRules"].is_array(), "{answer}");
}

#[tokio::test]
async fn events_go_however_their_dependents_shall() {
    let server = Server::start().await;
    let path = "/apis/events.k8s.io/v1/namespaces/default/events";
    let regarding = json!({"kind": "Pod", "name": "a", "namespace": "default"});
    let event = json!({"metadata": {"name": "e"}, "regarding": regarding, "reason": "R", "action": "A", "type": "Normal",
        "eventTime": "2026-01-02T03:04:05.000006Z", "reportingController": "a.b/c", "reportingInstance": "i"});
    server.make(path, event).await;
    let options = json!({"preconditions": {"uid": "other"}});
    let (code, answer) = server.call("DELETE", &format!("{path}/e"), options).await;
    assert_eq!((code, &answer["details"]["group"]), (409, &Value::Null), "{answer}");
    let (code, answer) = server.call("DELETE", &format!("{path}/e?propagationPolicy=Foreground"), Value::Null).await;
    assert_eq!((code, &answer["kind"]), (200, &json!("Status")), "{answer}");
    assert_eq!(server.get(&format!("{path}/e")).await.0, 404);
}

#[tokio::test]
async fn a_watch_with_a_match_that_it_cannot_have_is_told_both_things() {
    let server = Server::start().await;
    let path = "/api/v1/pods?watch=1&resourceVersion=1&resourceVersionMatch=Exact";
    let (code, answer) = server.get(path).await;
    assert_eq!((code, causes(&answer).len()), (422, 2), "{answer}");
}

#[tokio::test]
async fn who_applies_without_a_name_is_answered_without_one() {
    let server = Server::start().await;
    let path = "/api/v1/namespaces/default/configmaps/a?fieldManager=m";
    let apply = |object: Value| {
        let server = &server;
        async move { server.call_as("PATCH", path, "application/apply-patch+yaml", &object).await }
    };
    let (code, answer) = apply(json!({"apiVersion": "v1", "kind": "ConfigMap", "dada": {}})).await;
    assert_eq!(code, 500, "{answer}");
    assert!(
        answer["message"].as_str().is_some_and(|told| told.contains("object (/; /v1, Kind=ConfigMap)")),
        "{answer}"
    );
    let (code, answer) = apply(json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"k": "v"}})).await;
    assert_eq!((code, &answer["metadata"]["name"]), (201, &json!("a")), "{answer}");
}

#[tokio::test]
async fn the_one_who_makes_a_daemon_set_owns_its_template_generation() {
    let server = Server::start().await;
    let spec = json!({"selector": {"matchLabels": {"a": "b"}}, "template": {
        "metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "x"}]}}});
    let path = "/apis/apps/v1/namespaces/default/daemonsets";
    let made = server.make(path, json!({"metadata": {"name": "d"}, "spec": spec})).await;
    let owned = &made["metadata"]["managedFields"][0]["fieldsV1"]["f:metadata"]["f:annotations"];
    assert_eq!(owned, &json!({".": {}, "f:deprecated.daemonset.template.generation": {}}), "{made}");
}
