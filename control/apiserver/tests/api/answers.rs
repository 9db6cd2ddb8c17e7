//! What clients see of the text and words of answers: order, line breaks, depth, fields without effect.

use axum::body::Body;
use http::Request;
use serde_json::{Value, json};

use super::{Server, admin, config_map, pod};

const PODS: &str = "/api/v1/namespaces/default/pods";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";

async fn text(server: &Server, method: &str, path: &str, agent: &str, body: Body) -> String {
    let request = Request::builder().method(method).uri(path).header("user-agent", agent);
    let request = request.header("content-type", "application/json").body(body).expect("a request");
    let answer = server.send(Some(admin()), request).await;
    String::from_utf8(answer.bytes).expect("text")
}

#[tokio::test]
async fn kind_comes_first_and_a_line_break_last() {
    let server = Server::start().await;
    let made = text(&server, "POST", MAPS, "t", Body::from(config_map("x", json!({"a": "b"})).to_string())).await;
    let read = text(&server, "GET", &format!("{MAPS}/x"), "t", Body::empty()).await;
    for answer in [&made, &read] {
        let start = r#"{"kind":"ConfigMap","apiVersion":"v1","metadata":{"#;
        assert!(answer.starts_with(start) && answer.ends_with("}\n"), "{answer}");
    }
    let missing = text(&server, "GET", &format!("{MAPS}/none"), "t", Body::empty()).await;
    let expected = "{\"kind\":\"Status\",\"apiVersion\":\"v1\",\"metadata\":{},\"status\":\"Failure\",\
                    \"message\":\"configmaps \\\"none\\\" not found\",\"reason\":\"NotFound\",\
                    \"details\":{\"name\":\"none\",\"kind\":\"configmaps\"},\"code\":404}\n";
    assert_eq!(missing, expected);
    // For people the same order, in lines.
    let shown = text(&server, "GET", &format!("{MAPS}/x"), "curl/8", Body::empty()).await;
    let start = "{\n  \"kind\": \"ConfigMap\",\n  \"apiVersion\": \"v1\",\n  \"metadata\": {\n";
    assert!(shown.starts_with(start) && shown.ends_with("\n}\n"), "{shown}");
}

/// What one reader takes and another does not could be stored and not be patched, and would be deleted in spite of a finalizer.
#[tokio::test]
async fn what_nests_deeply_is_patched_and_keeps_its_finalizer() {
    let server = Server::start().await;
    let fields = (0..110).fold(json!({}), |inner, _| json!({ "f:a": inner }));
    let mut map = config_map("deep", json!({"a": "b"}));
    map["metadata"]["finalizers"] = json!(["x.y/z"]);
    map["metadata"]["managedFields"] = json!([{
        "manager": "x", "operation": "Update", "apiVersion": "v1", "time": "2020-01-01T00:00:00Z", "fieldsType": "FieldsV1",
        "fieldsV1": fields,
    }]);
    server.make(MAPS, map.clone()).await;
    let path = format!("{MAPS}/deep");
    let (code, patched) = server.call("PATCH", &path, json!({"data": {"a": "c"}})).await;
    assert_eq!((code, &patched["data"]["a"]), (200, &json!("c")), "{patched}");
    let (code, patched) =
        server.call("PATCH", &path, json!({"metadata": {"managedFields": map["metadata"]["managedFields"]}})).await;
    assert_eq!(code, 200, "{patched}");
    let (code, going) = server.call("DELETE", &path, Value::Null).await;
    assert_eq!(code, 200, "{going}");
    let (code, still) = server.get(&path).await;
    assert_eq!((code, &still["metadata"]["finalizers"]), (200, &json!(["x.y/z"])), "{still}");
    server.call("PATCH", &path, json!({"metadata": {"finalizers": null}})).await;
    assert_eq!(server.get(&path).await.0, 404);
}

#[tokio::test]
async fn one_request_with_very_many_faults_has_a_short_answer() {
    let server = Server::start().await.with_account().await;
    let data: serde_json::Map<String, Value> = (0..20_000).map(|n| (format!("!{n}"), json!("v"))).collect();
    let (code, refused) = server.call("POST", MAPS, config_map("x", Value::Object(data))).await;
    let causes = refused["details"]["causes"].as_array().expect("causes");
    assert_eq!((code, causes.len()), (422, 1_001));
    assert_eq!(causes[1_000]["message"], "Too many: 20000: only the first 1000 errors are told");
    let one = json!({"name": "c", "image": "i",
        "volumeMounts": (0..3_000).map(|n| json!({"name": format!("v{n}"), "mountPath": format!("/m{n}")})).collect::<Vec<_>>(),
        "volumeDevices": (0..3_000).map(|n| json!({"name": format!("d{n}"), "devicePath": format!("/e{n}")})).collect::<Vec<_>>()});
    let (code, refused) =
        server.call("POST", PODS, json!({"metadata": {"name": "x"}, "spec": {"containers": [one]}})).await;
    assert_eq!(code, 422, "{}", refused["reason"]);
}

#[tokio::test]
async fn a_null_among_bytes_is_empty() {
    let server = Server::start().await;
    let secret = json!({"metadata": {"name": "s"}, "data": {"a": null, "b": "eA=="}});
    let made = server.make("/api/v1/namespaces/default/secrets", secret).await;
    assert_eq!(made["data"], json!({"a": "", "b": "eA=="}));
}

#[tokio::test]
async fn raw_data_is_one_value_to_managers() {
    let server = Server::start().await;
    let revision = json!({"metadata": {"name": "r"}, "data": {"a": {"b": 1}}, "revision": 1});
    let made = server.make("/apis/apps/v1/namespaces/default/controllerrevisions", revision).await;
    assert_eq!(made["metadata"]["managedFields"][0]["fieldsV1"], json!({"f:data": {}, "f:revision": {}}));
}

#[tokio::test]
async fn version_1_of_an_autoscaler_says_how_many_there_are() {
    let server = Server::start().await;
    let scaler = json!({"metadata": {"name": "zz"},
        "spec": {"maxReplicas": 3, "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"}}});
    server.make("/apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers", scaler).await;
    let (_, read) = server.get("/apis/autoscaling/v1/namespaces/default/horizontalpodautoscalers/zz").await;
    assert_eq!(read["status"], json!({"currentReplicas": 0, "desiredReplicas": 0}));
}

#[tokio::test]
async fn one_number_for_two_ports_is_already_allocated() {
    let server = Server::start().await;
    let ports = json!([{"name": "t", "port": 80, "nodePort": 31998}, {"name": "u", "port": 81, "nodePort": 31998}]);
    let service = json!({"metadata": {"name": "s"}, "spec": {"type": "NodePort", "ports": ports}});
    let (code, refused) = server.call("POST", "/api/v1/namespaces/default/services", service).await;
    assert_eq!(code, 422);
    let cause = &refused["details"]["causes"][0];
    assert_eq!(
        (&cause["field"], &cause["message"]),
        (&json!("spec.ports[1].nodePort"), &json!("Invalid value: 31998: provided port is already allocated"))
    );
}

#[tokio::test]
async fn fields_without_effect_are_said_and_an_ephemeral_container_comes_and_stays() {
    let server = Server::start().await.with_account().await;
    let mut asked = pod("x");
    asked["spec"]["containers"][0]["tty"] = json!(true);
    let request = Request::builder().method("POST").uri(PODS).header("content-type", "application/json");
    let answer = server.send(Some(admin()), request.body(Body::from(asked.to_string())).expect("a request")).await;
    let warnings: Vec<&str> =
        answer.headers.get_all("warning").iter().filter_map(|value| value.to_str().ok()).collect();
    let words = "this version of Coracle stores the field, but a component has no terminal";
    assert_eq!((answer.code, warnings), (201, vec![format!("299 - \"spec.containers[0].tty: {words}\"").as_str()]));

    let debug = json!({"spec": {"ephemeralContainers": [{"name": "d", "image": "i", "terminationMessagePolicy": "File", "imagePullPolicy": "Always"}]}});
    let ephemeral = format!("{PODS}/x/ephemeralcontainers");
    let (code, pod) = server.call("PATCH", &ephemeral, debug).await;
    let held = &pod["spec"]["ephemeralContainers"][0];
    assert_eq!((code, &held["image"], &pod["metadata"]["generation"]), (200, &json!("i"), &json!(2)), "{pod}");
    // What came stays, as it is; and it comes by this door alone.
    for (path, list) in
        [(&ephemeral, json!([])), (&ephemeral, json!([{"name": "d", "image": "j"}])), (&format!("{PODS}/x"), json!([]))]
    {
        let (code, refused) = server.call("PATCH", path, json!({"spec": {"ephemeralContainers": list}})).await;
        assert_eq!(code, 422, "{path} {refused}");
    }

    asked["metadata"]["name"] = json!("y");
    asked["spec"]["runtimeClassName"] = json!("gvisor");
    let (code, refused) = server.call("POST", PODS, asked).await;
    let message = r#"pods "y" is forbidden: pod rejected: RuntimeClass "gvisor" not found"#;
    assert_eq!((code, &refused["message"]), (403, &json!(message)));

    let overhead = json!({"metadata": {"name": "z"}, "spec": {"overhead": {"cpu": "1"}, "containers": [{"name": "c", "image": "i"}]}});
    let (code, refused) = server.call("POST", PODS, overhead).await;
    let message =
        r#"pods "z" is forbidden: pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead"#;
    assert_eq!((code, &refused["message"]), (403, &json!(message)));
    // It is the class's.
    for (name, overhead) in [("plain", json!(null)), ("fixed", json!({"podFixed": {"cpu": "1000m"}}))] {
        let class = json!({"metadata": {"name": name}, "handler": "h", "overhead": overhead});
        server.make("/apis/node.k8s.io/v1/runtimeclasses", class).await;
    }
    let cases = [
        ("plain", json!({"cpu": "1"}), 403),
        ("fixed", json!({"cpu": "2"}), 403),
        ("fixed", json!({"cpu": "1"}), 201),
        ("fixed", json!(null), 201),
    ];
    for (number, (class, overhead, code)) in cases.into_iter().enumerate() {
        let spec =
            json!({"runtimeClassName": class, "overhead": overhead, "containers": [{"name": "c", "image": "i"}]});
        let (given, made) =
            server.call("POST", PODS, json!({"metadata": {"name": format!("o{number}")}, "spec": spec})).await;
        assert_eq!(given, code, "{made}");
        assert!(code != 201 || made["spec"]["overhead"]["cpu"] == "1", "{made}");
    }
}

/// Read as nothing it would have no finalizer, and a deletion would take it away.
#[tokio::test]
async fn a_damaged_object_is_an_error_and_stays() {
    let server = Server::start().await;
    let text = r#"{"kind":"ConfigMap","apiVersion":"v1","metadata":{"resourceVersion":"","finalizers":["x"]"#;
    server.put_record("configmaps", "default/bad", text).await;
    server.make(MAPS, config_map("good", json!({}))).await;
    let yaml = Request::get(MAPS).header("accept", "application/yaml").body(Body::empty()).expect("a request");
    let listed = server.send(Some(admin()), yaml).await;
    let listed = String::from_utf8(listed.bytes).expect("text");
    assert!(
        listed.contains("\n- null\n") && listed.contains("name: good"),
        "one is nothing, the list is whole: {listed}"
    );
    let path = format!("{MAPS}/bad");
    for (method, body) in
        [("DELETE", Value::Null), ("PATCH", json!({"data": {"a": "b"}})), ("PUT", config_map("bad", json!({})))]
    {
        let (code, answer) = server.call(method, &path, body).await;
        let message = answer["message"].as_str().unwrap_or_default();
        assert!(
            code == 500 && message.contains("the stored bytes of configmaps default/bad cannot be read"),
            "{method}: {answer}"
        );
    }
    assert!(server.keyspace.get("configmaps", "default/bad").is_some());
}

/// Read as nothing it would enforce nothing, and not be on its way out.
#[tokio::test]
async fn nothing_is_made_in_a_namespace_that_cannot_be_read() {
    let server = Server::start().await;
    let text =
        r#"{"kind":"Namespace","apiVersion":"v1","metadata":{"name":"bad","resourceVersion":"","labels":{"a":"b"}"#;
    server.put_record("namespaces", "bad", text).await;
    let (code, answer) = server.call("POST", "/api/v1/namespaces/bad/configmaps", config_map("m", json!({}))).await;
    let message = answer["message"].as_str().unwrap_or_default();
    assert!(code == 500 && message.contains("the stored bytes of namespaces bad cannot be read"), "{answer}");
}

/// Passed over it would not be the class of pods that name none. It goes, for no pod could be made otherwise.
#[tokio::test]
async fn no_pod_is_made_while_the_class_of_those_that_name_none_may_be_one_that_cannot_be_read() {
    let server = Server::start().await;
    let text =
        r#"{"kind":"PriorityClass","apiVersion":"scheduling.k8s.io/v1","metadata":{"name":"bad","resourceVersion":"""#;
    server.put_record("priorityclasses.scheduling.k8s.io", "bad", text).await;
    let (code, answer) = server.call("POST", PODS, pod("a")).await;
    let message = answer["message"].as_str().unwrap_or_default();
    assert!(code == 500 && message.contains("priorityclasses.scheduling.k8s.io bad cannot be read"), "{answer}");
    let (code, answer) = server.call("DELETE", "/apis/scheduling.k8s.io/v1/priorityclasses/bad", Value::Null).await;
    assert_eq!(code, 200, "{answer}");
    server.make(PODS, pod("a")).await;
}
