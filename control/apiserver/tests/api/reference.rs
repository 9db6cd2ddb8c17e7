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
    let part = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an \
                alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is \
                '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
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
                format!(
                    "{at}.requirements[0].values: Required value: must be specified when `operator` is 'In' or 'NotIn'"
                ),
                format!("{at}.requirements[0].key: Invalid value: \"\": {key}"),
                format!("{at}.requirements[0].key: Invalid value: \"\": {part}"),
            ],
        ),
        (
            json!({"requirements": [{"key": "a", "operator": "Exists", "values": ["x"]}]}),
            vec![format!(
                "{at}.requirements[0].values: Forbidden: may not be specified when `operator` is 'Exists' or 'DoesNotExist'"
            )],
        ),
        (
            json!({"requirements": [{"key": "a", "operator": "In", "values": ["x", "!"]}]}),
            vec![format!(
                "{at}.requirements[0].values[1]: Invalid value: \"!\": a valid label must be an empty string or consist of \
                 alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. \
                 'MyValue',  or 'my_value',  or '12345', regex used for validation is \
                 '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
            )],
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

#[tokio::test]
async fn a_review_says_which_selectors_it_did_not_look_at() {
    let server = Server::start().await;
    let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let (odd, one) = (json!({"key": "a", "operator": "Odd"}), json!({"key": "b", "operator": "In", "values": ["x"]}));
    let both = json!({"key": "b", "operator": "NotIn", "values": ["x", "y"]});
    let field = "spec.resourceAttributes.fieldSelector ignored due to parse error";
    let label = "spec.resourceAttributes.labelSelector ignored due to parse error";
    let partially = "spec.resourceAttributes.labelSelector partially ignored due to parse error";
    let all = |requirements: Vec<&Value>| json!({ "requirements": requirements });
    for (fields, labels, expected) in [
        (all(vec![&one]), all(vec![&one, &both]), None),
        (Value::Null, all(vec![&odd]), Some(label.to_owned())),
        (Value::Null, all(vec![&odd, &one]), Some(partially.to_owned())),
        (all(vec![&both]), json!({"rawSelector": "a in (b"}), Some(format!("{field}; {label}"))),
        (json!({"rawSelector": "a=b"}), json!({"rawSelector": "a in (b)"}), None),
    ] {
        let asked = json!({"verb": "list", "resource": "pods", "fieldSelector": fields, "labelSelector": labels});
        let (code, answer) = server.call("POST", path, json!({"spec": {"resourceAttributes": asked}})).await;
        assert_eq!((code, answer["status"]["evaluationError"].as_str()), (201, expected.as_deref()), "{answer}");
    }
}

#[tokio::test]
async fn a_question_about_access_has_no_name_and_who_asks_about_himself_is_told_nothing_else() {
    let server = Server::start().await;
    let spec = json!({"user": "x", "resourceAttributes": {"verb": "get", "resource": "pods", "namespace": "default"}});
    for (path, metadata, expected) in [
        ("selfsubjectaccessreviews", json!({"name": "a"}), "must be empty"),
        ("subjectaccessreviews", json!({"labels": {"a": "b"}}), "must be empty"),
        ("namespaces/default/localsubjectaccessreviews", json!({"name": "a"}), "must be empty except for namespace"),
        ("namespaces/default/localsubjectaccessreviews", json!({"namespace": "default", "uid": "u"}), ""),
        ("selfsubjectaccessreviews", json!({"namespace": "x", "creationTimestamp": "2026-01-02T03:04:05Z"}), ""),
    ] {
        let review = json!({"metadata": metadata, "spec": spec});
        let (code, answer) = server.call("POST", &format!("/apis/authorization.k8s.io/v1/{path}"), review).await;
        let told = causes(&answer);
        match expected {
            "" => assert_eq!(code, 201, "{answer}"),
            words => {
                assert_eq!((code, told.len()), (422, 1), "{answer}");
                let first = metadata.as_object().and_then(|fields| fields.keys().next()).expect("a field");
                assert!(told[0].starts_with(&format!("metadata: Invalid value: {{\"{first}\":")), "{told:?}");
                assert!(told[0].ends_with(&format!("}}]}}: {words}")), "{told:?}");
            }
        }
    }
    let path = "/apis/authorization.k8s.io/v1/namespaces/default/localsubjectaccessreviews";
    let (code, _) = server.call("POST", path, json!({"metadata": {"namespace": "x"}, "spec": spec})).await;
    assert_eq!(code, 400);
    let path = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let (code, answer) = server.call("POST", path, json!({"metadata": {"name": "a", "labels": {"a": "b"}}})).await;
    let metadata = answer["metadata"].as_object().expect("metadata");
    assert_eq!(
        (code, metadata.keys().map(String::as_str).collect::<Vec<_>>()),
        (201, vec!["creationTimestamp"]),
        "{answer}"
    );
}

#[tokio::test]
async fn a_namespace_is_deleted_on_its_own_terms() {
    let server = Server::start().await;
    server.make("/api/v1/namespaces", json!({"metadata": {"name": "n"}})).await;
    let path = "/api/v1/namespaces/n";
    let (code, refused) = server.call("DELETE", path, json!({"preconditions": {"uid": "other"}})).await;
    assert_eq!((code, &refused["details"]["kind"]), (409, &json!("namespaces")), "{refused}");
    let head = "Operation cannot be fulfilled on namespaces \"n\": Precondition failed: UID in precondition: other, UID in \
                object meta: ";
    assert!(refused["message"].as_str().is_some_and(|told| told.starts_with(head)), "{refused}");
    for (policy, expected) in [("Foreground", json!(["foregroundDeletion"])), ("Orphan", json!(["orphan"]))] {
        let asked = format!("{path}?dryRun=All&propagationPolicy={policy}");
        let (code, would) = server.call("DELETE", &asked, Value::Null).await;
        assert_eq!((code, &would["metadata"]["finalizers"]), (200, &expected), "{would}");
    }
    let (_, would) = server.call("DELETE", &format!("{path}?dryRun=All"), Value::Null).await;
    assert!(would["metadata"]["finalizers"].is_null(), "{would}");
}

#[tokio::test]
async fn a_status_that_stands_alone_brings_no_labels() {
    let server = Server::start().await;
    let lists = "/apis/storagemigration.k8s.io/v1/storageversionmigrations";
    let spec = json!({"resource": {"group": "apps", "resource": "deployments"}});
    let made = server.make(lists, json!({"metadata": {"name": "m"}, "spec": spec})).await;
    let patch = json!({"metadata": {"labels": {"a": "b"}, "annotations": {"a": "b"}, "finalizers": ["a.b/c"]}});
    let path = format!("{lists}/m/status");
    let (code, answer) = server.call_as("PATCH", &path, "application/merge-patch+json", &patch).await;
    assert_eq!((code, &answer["metadata"]), (200, &made["metadata"]), "{answer}");
}

#[tokio::test]
async fn empty_lists_are_nothing_once_they_are_stored_and_owned_all_the_same() {
    let server = Server::start().await;
    let path = "/apis/rbac.authorization.k8s.io/v1/clusterroles";
    let made = server.make(path, json!({"metadata": {"name": "r"}, "rules": []})).await;
    assert_eq!(made["rules"], Value::Null, "{made}");
    assert_eq!(made["metadata"]["managedFields"][0]["fieldsV1"], json!({"f:rules": {}}), "{made}");
    let path = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
    let slice = json!({"metadata": {"name": "s"}, "addressType": "IPv4", "endpoints": [], "ports": []});
    let made = server.make(path, slice).await;
    assert_eq!((&made["endpoints"], &made["ports"]), (&Value::Null, &Value::Null), "{made}");
    let path = "/apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers";
    let target = json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"});
    let spec = json!({"maxReplicas": 3, "scaleTargetRef": target, "behavior": {"scaleUp": {"policies": []}}});
    let (code, refused) = server.call("POST", path, json!({"metadata": {"name": "h"}, "spec": spec})).await;
    let told = "spec.behavior.scaleUp.policies: Required value: must specify at least one Policy";
    assert_eq!((code, causes(&refused)), (422, vec![told.to_owned()]), "{refused}");
}

#[tokio::test]
async fn what_is_wrong_with_an_item_names_the_type_of_items() {
    let server = Server::start().await;
    let asked = json!({"metadata": {"name": "n"}, "spec": {"finalizers": [7]}});
    let (code, refused) = server.call("POST", "/api/v1/namespaces", asked).await;
    let told = refused["message"].as_str().unwrap_or_default();
    assert!(code == 400 && told.ends_with("NamespaceSpec.spec.finalizers of type v1.FinalizerName"), "{refused}");
}

#[tokio::test]
async fn a_pods_account_has_a_name_that_can_be() {
    let server = Server::start().await;
    let mut asked = pod("p");
    asked["spec"]["serviceAccountName"] = "a/b".into();
    let (code, refused) = server.call("POST", "/api/v1/namespaces/default/pods", asked).await;
    let told = refused["message"].as_str().unwrap_or_default();
    let words = "service account default/a/b: invalid resource name \"a/b\": [may not contain '/']";
    assert!(code == 403 && told.ends_with(words), "{refused}");
}

#[tokio::test]
async fn a_service_says_of_its_families_what_it_means() {
    let server = Server::start().await;
    let spec = json!({"ports": [{"port": 80}], "ipFamilyPolicy": ""});
    let asked = json!({"metadata": {"name": "s"}, "spec": spec});
    let (code, refused) = server.call("POST", "/api/v1/namespaces/default/services", asked).await;
    let all = "\"PreferDualStack\", \"RequireDualStack\", \"SingleStack\"";
    let told = format!("spec.ipFamilyPolicy: Unsupported value: \"\": supported values: {all}");
    assert_eq!((code, causes(&refused)), (422, vec![told]), "{refused}");
}
