//! Every kind that Kubernetes has is there; what this version does not act on says so, or is refused.

use axum::body::Body;
use http::Request;
use serde_json::{Value, json};

use super::{Server, admin, pod};

/// All resources that discovery names: path of the collection (in a namespace), kind, verbs.
async fn resources(server: &Server) -> Vec<(String, String, Vec<String>)> {
    let mut versions = vec!["/api/v1".to_owned()];
    let (_, groups) = server.get("/apis").await;
    for group in groups["groups"].as_array().expect("groups") {
        for version in group["versions"].as_array().expect("versions") {
            versions.push(format!("/apis/{}", version["groupVersion"].as_str().expect("a version")));
        }
    }
    let mut all = Vec::new();
    for version in versions {
        let (code, list) = server.get(&version).await;
        assert_eq!(code, 200, "{version}");
        for resource in list["resources"].as_array().expect("resources") {
            let name = resource["name"].as_str().expect("a name");
            let namespace = if resource["namespaced"] == true { "/namespaces/default" } else { "" };
            if !name.contains('/') {
                let kind = resource["kind"].as_str().expect("a kind").to_owned();
                let verbs = serde_json::from_value(resource["verbs"].clone()).expect("verbs");
                all.push((format!("{version}{namespace}/{name}"), kind, verbs));
            }
        }
    }
    all
}

#[tokio::test]
async fn every_kind_can_be_listed_shown_as_a_table_and_cleared() {
    let server = Server::start().await;
    let all = resources(&server).await;
    assert_eq!(all.len(), 72 + 4, "what Kubernetes 1.37 serves, and what metrics-server does");
    let mut listed = 0;
    for (path, kind, verbs) in all.iter().filter(|(_, _, verbs)| verbs.iter().any(|verb| verb == "list")) {
        let (code, list) = server.get(path).await;
        assert_eq!((code, &list["kind"]), (200, &json!(format!("{kind}List"))), "{path}");
        let table = Request::builder().uri(path).header("accept", "application/json;as=Table;v=v1;g=meta.k8s.io");
        let answer = server.send(Some(admin()), table.body(Body::empty()).expect("a request")).await;
        let table = answer.json();
        assert_eq!(table["kind"], "Table", "{path}");
        let is_common = table["columnDefinitions"].to_string().contains("\"Created At\"");
        let is_empty = list["items"] == json!([]);
        assert_eq!(table["rows"].is_null(), is_common && is_empty, "{path}");
        let (code, missing) = server.get(&format!("{path}/none")).await;
        assert_eq!((code, &missing["reason"]), (404, &json!("NotFound")), "{path}");
        if verbs.iter().any(|verb| verb == "deletecollection") && list["items"] == json!([]) {
            let (code, _) = server.call("DELETE", path, Value::Null).await;
            assert_eq!(code, 200, "{path}");
        }
        listed += 1;
    }
    assert_eq!(listed, 65 + 4);
}

#[tokio::test]
async fn a_kind_that_nothing_acts_on_says_so_at_every_write() {
    let server = Server::start().await;
    let path = "/apis/resource.k8s.io/v1/devicetaintrules";
    let rule = json!({
        "apiVersion": "resource.k8s.io/v1", "kind": "DeviceTaintRule", "metadata": {"name": "once"},
        "spec": {"taint": {"key": "a.b/c", "effect": "NoSchedule"}},
    });
    let expected = "299 - \"resource.k8s.io/v1 DeviceTaintRule: this version of Coracle stores the object, but no controller \
                    acts on it yet\"";
    for (method, path, body) in [
        ("POST", path, rule),
        ("PATCH", &*format!("{path}/once"), json!({"spec": {"taint": {"effect": "NoExecute"}}})),
        ("PATCH", &*format!("{path}/once/status"), json!({"metadata": {"labels": {"a": "b"}}})),
    ] {
        let media_type = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        let request = Request::builder().method(method).uri(path).header("content-type", media_type);
        let answer = server.send(Some(admin()), request.body(Body::from(body.to_string())).expect("a request")).await;
        assert!(answer.code < 300, "{method} {path}: {}", answer.json());
        assert_eq!(answer.headers.get("warning").map(|text| text.to_str().expect("text")), Some(expected), "{method}");
    }
    let (_, rule) = server.get(&format!("{path}/once")).await;
    assert_eq!(rule["metadata"]["generation"], json!(2));
}

#[tokio::test]
async fn a_job_knows_its_pods_and_keeps_to_what_was_said() {
    let server = Server::start().await;
    let path = "/apis/batch/v1/namespaces/default/jobs";
    let job = json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "once"}, "status": {"active": 7},
        "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "hello"}]}}},
    });
    let request = Request::builder().method("POST").uri(path).header("content-type", "application/json");
    let answer = server.send(Some(admin()), request.body(Body::from(job.to_string())).expect("a request")).await;
    assert_eq!((answer.code, answer.headers.get("warning")), (201, None), "{}", answer.json());
    let made = answer.json();
    let uid = &made["metadata"]["uid"];
    assert_eq!(made["spec"]["selector"]["matchLabels"], json!({"batch.kubernetes.io/controller-uid": uid}));
    let labels = json!({
        "batch.kubernetes.io/controller-uid": uid, "batch.kubernetes.io/job-name": "once",
        "controller-uid": uid, "job-name": "once",
    });
    assert_eq!((&made["metadata"]["labels"], &made["spec"]["template"]["metadata"]["labels"]), (&labels, &labels));
    assert_eq!((&made["status"], &made["metadata"]["generation"]), (&json!({}), &json!(1)));

    let path = format!("{path}/once");
    let (code, _) = server.call("PATCH", &path, json!({"spec": {"suspend": true, "parallelism": 2}})).await;
    assert_eq!(code, 200);
    let (code, refused) = server.call("PATCH", &path, json!({"spec": {"completions": 2}})).await;
    assert_eq!((code, &refused["details"]["causes"][0]["field"]), (422, &json!("spec.completions")), "{refused}");
    let status = format!("{path}/status");
    let (code, changed) =
        server.call("PATCH", &status, json!({"spec": {"parallelism": 9}, "status": {"active": 2}})).await;
    assert_eq!((code, &changed["spec"]["parallelism"], &changed["status"]["active"]), (200, &json!(2), &json!(2)));
    assert_eq!(changed["metadata"]["generation"], 2);
    let (code, refused) = server.call("PATCH", &status, json!({"status": {"ready": 3}})).await;
    assert_eq!(code, 422);
    let expected =
        "Job.batch \"once\" is invalid: status.ready: Invalid value: 3: cannot set more ready pods than active";
    assert_eq!(refused["message"], expected);
}

#[tokio::test]
async fn a_cron_job_has_a_schedule_that_can_be_read() {
    let server = Server::start().await;
    let cron = json!({
        "apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": "c"},
        "spec": {"schedule": "61 * * * *", "timeZone": "Mars/Base", "jobTemplate": {"spec": {"template": {"spec": {
            "restartPolicy": "Never", "containers": [{"name": "c", "image": "x"}]}}}}},
    });
    let (code, refused) = server.call("POST", "/apis/batch/v1/namespaces/default/cronjobs", cron).await;
    assert_eq!(code, 422);
    let expected = "CronJob.batch \"c\" is invalid: [spec.schedule: Invalid value: \"61 * * * *\": end of range (61) above \
                    maximum (59): 61, spec.timeZone: Invalid value: \"Mars/Base\": unknown time zone Mars/Base]";
    assert_eq!(refused["message"], expected);
}

#[tokio::test]
async fn an_autoscaler_is_the_same_in_both_versions() {
    let server = Server::start().await;
    let path = |version: &str| format!("/apis/autoscaling/{version}/namespaces/default/horizontalpodautoscalers");
    let target = json!({"kind": "Deployment", "name": "web", "apiVersion": "apps/v1"});
    let spec = json!({"scaleTargetRef": target, "maxReplicas": 3, "targetCPUUtilizationPercentage": 70});
    let made = server
        .make(&path("v1"), json!({"kind": "HorizontalPodAutoscaler", "metadata": {"name": "web"}, "spec": spec}))
        .await;
    assert_eq!(
        (&made["apiVersion"], &made["spec"]["targetCPUUtilizationPercentage"]),
        (&json!("autoscaling/v1"), &json!(70))
    );
    let (_, new) = server.get(&format!("{}/web", path("v2"))).await;
    assert_eq!(new["apiVersion"], "autoscaling/v2");
    assert_eq!(
        new["spec"]["metrics"][0]["resource"]["target"],
        json!({"type": "Utilization", "averageUtilization": 70})
    );
    let patch = json!({"spec": {"targetCPUUtilizationPercentage": 50}});
    let (code, old) = server.call("PATCH", &format!("{}/web", path("v1")), patch).await;
    assert_eq!((code, &old["spec"]["targetCPUUtilizationPercentage"]), (200, &json!(50)), "{old}");
    let applied = json!({
        "apiVersion": "autoscaling/v1", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "web"},
        "spec": {"scaleTargetRef": target, "maxReplicas": 3, "targetCPUUtilizationPercentage": 50},
    });
    let apply = format!("{}/web?fieldManager=tool", path("v1"));
    let (code, answer) = server.call_as("PATCH", &apply, "application/apply-patch+yaml", &applied).await;
    assert_eq!((code, &answer["spec"]["targetCPUUtilizationPercentage"]), (200, &json!(50)), "{answer}");
    let (_, list) = server.get(&path("v1")).await;
    assert_eq!(list["items"][0]["spec"]["targetCPUUtilizationPercentage"], 50);
}

#[tokio::test]
async fn stateful_sets_and_replication_controllers_scale() {
    let server = Server::start().await;
    let template = json!({
        "metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "hello"}]},
    });
    for (path, kind, selector) in [
        ("/apis/apps/v1/namespaces/default/statefulsets", "StatefulSet", json!({"matchLabels": {"app": "web"}})),
        ("/api/v1/namespaces/default/replicationcontrollers", "ReplicationController", Value::Null),
    ] {
        let spec = json!({"selector": selector, "template": template});
        server.make(path, json!({"kind": kind, "metadata": {"name": "web"}, "spec": spec})).await;
        let scale = format!("{path}/web/scale");
        let (code, answer) = server.call("PATCH", &scale, json!({"spec": {"replicas": 4}})).await;
        assert_eq!((code, &answer["spec"]["replicas"]), (200, &json!(4)), "{kind}: {answer}");
        assert_eq!(answer["status"]["selector"], "app=web", "{kind}");
        let (_, object) = server.get(&format!("{path}/web")).await;
        assert_eq!(object["metadata"]["generation"], 2, "{kind}");
    }
}

#[tokio::test]
async fn pods_have_the_priority_of_their_class() {
    let server = Server::start().await.with_account().await;
    let classes = "/apis/scheduling.k8s.io/v1/priorityclasses";
    server.make(classes, json!({"metadata": {"name": "high"}, "value": 1000, "preemptionPolicy": "Never"})).await;
    let pods = "/api/v1/namespaces/default/pods";
    let named = |name: &str, class: &str| {
        let mut pod = pod(name);
        pod["spec"]["priorityClassName"] = class.into();
        pod
    };
    let made = server.make(pods, named("a", "high")).await;
    assert_eq!((&made["spec"]["priority"], &made["spec"]["preemptionPolicy"]), (&json!(1000), &json!("Never")));
    let made = server.make(pods, named("b", "system-node-critical")).await;
    assert_eq!(made["spec"]["priority"], 2_000_001_000);
    let (code, _) = server.call("POST", pods, named("c", "none")).await;
    assert_eq!(code, 403);
    assert_eq!(server.make(pods, pod("d")).await["spec"]["priority"], 0);
    server.make(classes, json!({"metadata": {"name": "usual"}, "value": 7, "globalDefault": true})).await;
    let made = server.make(pods, pod("e")).await;
    assert_eq!((&made["spec"]["priority"], &made["spec"]["priorityClassName"]), (&json!(7), &json!("usual")));
}

#[tokio::test]
async fn every_cluster_says_what_it_serves_and_where_its_addresses_come_from() {
    let server = Server::start().await;
    let (code, apps) = server.get("/apis/apiregistration.k8s.io/v1/apiservices/v1.apps").await;
    assert_eq!((code, &apps["spec"]["groupPriorityMinimum"]), (200, &json!(17_800)), "{apps}");
    let condition = &apps["status"]["conditions"][0];
    assert_eq!((&condition["type"], &condition["status"]), (&json!("Available"), &json!("True")));
    let (code, range) = server.get("/apis/networking.k8s.io/v1/servicecidrs/kubernetes").await;
    assert_eq!((code, &range["spec"]["cidrs"]), (200, &json!(["10.96.0.0/16"])), "{range}");
    assert_eq!(range["status"]["conditions"][0]["type"], "Ready");
    let request = Request::builder().uri("/apis/apiregistration.k8s.io/v1/apiservices/v1.apps");
    let request = request.header("accept", "application/json;as=Table;v=v1;g=meta.k8s.io");
    let table = server.send(Some(admin()), request.body(Body::empty()).expect("a request")).await.json();
    assert_eq!(
        table["rows"][0]["cells"].as_array().expect("cells")[..3],
        [json!("v1.apps"), json!("Local"), json!("True")]
    );
    // Somebody may say that more is served here; it is not for that.
    let other = json!({
        "metadata": {"name": "v1.example.com"},
        "spec": {"group": "example.com", "version": "v1", "groupPriorityMinimum": 1, "versionPriority": 1},
    });
    let other = server.make("/apis/apiregistration.k8s.io/v1/apiservices", other).await;
    assert_eq!(other["status"]["conditions"][0]["reason"], "Local");
    assert_eq!(server.get("/apis/example.com/v1").await.0, 404);
}

#[tokio::test]
async fn a_deletion_answers_as_the_kind_does() {
    let server = Server::start().await;
    for (path, object, kind) in [
        (
            "/apis/storage.k8s.io/v1/storageclasses",
            json!({"metadata": {"name": "a"}, "provisioner": "p"}),
            "StorageClass",
        ),
        ("/apis/storage.k8s.io/v1/csidrivers", json!({"metadata": {"name": "a"}, "spec": {}}), "CSIDriver"),
        ("/apis/resource.k8s.io/v1/deviceclasses", json!({"metadata": {"name": "a"}, "spec": {}}), "DeviceClass"),
        ("/apis/scheduling.k8s.io/v1/priorityclasses", json!({"metadata": {"name": "a"}, "value": 1}), "Status"),
    ] {
        server.make(path, object).await;
        let (code, answer) = server.call("DELETE", &format!("{path}/a"), Value::Null).await;
        assert_eq!((code, &answer["kind"]), (200, &json!(kind)), "{path}");
    }
}

#[tokio::test]
async fn pods_run_where_their_runtime_class_does() {
    let server = Server::start().await.with_account().await;
    let class = json!({
        "metadata": {"name": "fast"}, "handler": "fast",
        "scheduling": {
            "nodeSelector": {"disk": "ssd"},
            "tolerations": [{"key": "fast"}, {"key": "kept", "operator": "Exists"}, {"key": "node.kubernetes.io/not-ready", "operator": "Exists"}],
        },
    });
    server.make("/apis/node.k8s.io/v1/runtimeclasses", class).await;
    let pods = "/api/v1/namespaces/default/pods";
    let named = |name: &str, selector: Value| {
        let mut pod = pod(name);
        pod["spec"]["runtimeClassName"] = "fast".into();
        pod["spec"]["nodeSelector"] = selector;
        pod["spec"]["tolerations"] = json!([{"key": "kept", "operator": "Exists"}]);
        pod
    };
    let made = server.make(pods, named("a", json!({"zone": "x"}))).await;
    assert_eq!(made["spec"]["nodeSelector"], json!({"disk": "ssd", "zone": "x"}));
    let keys: Vec<&str> = made["spec"]["tolerations"]
        .as_array()
        .expect("tolerations")
        .iter()
        .filter_map(|one| one["key"].as_str())
        .collect();
    // The class tolerates more of a node that is not ready than the pod would.
    let (unreachable, not_ready) = ("node.kubernetes.io/unreachable", "node.kubernetes.io/not-ready");
    assert_eq!(keys, ["kept", unreachable, "fast", not_ready]);
    let (code, refused) = server.call("POST", pods, named("b", json!({"disk": "tape"}))).await;
    let expected = "pods \"b\" is forbidden: conflict: runtimeClass.scheduling.nodeSelector[disk] = ssd; \
                    pod.spec.nodeSelector[disk] = tape";
    assert_eq!((code, refused["message"].as_str()), (403, Some(expected)));
}

#[tokio::test]
async fn who_wrote_an_event_owns_its_fields_by_the_names_of_its_view() {
    let server = Server::start().await;
    let event = json!({
        "metadata": {"name": "e"}, "eventTime": "2026-01-01T00:00:00.000000Z", "reason": "R", "action": "a", "type": "Normal",
        "reportingController": "c/d", "reportingInstance": "i", "note": "n",
        "regarding": {"kind": "Pod", "name": "p", "namespace": "default"},
    });
    let (view, core) = ("/apis/events.k8s.io/v1/namespaces/default/events", "/api/v1/namespaces/default/events/e");
    let owners = |object: &Value| object["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
    let owned = |owner: &Value| -> Vec<String> {
        owner["fieldsV1"].as_object().into_iter().flatten().map(|(name, _)| name.clone()).collect()
    };
    let all = [
        "f:action",
        "f:eventTime",
        "f:note",
        "f:reason",
        "f:regarding",
        "f:reportingController",
        "f:reportingInstance",
        "f:type",
    ];
    let made = server.make(view, event).await;
    assert_eq!(owned(&owners(&made)[0]), all);
    let series = json!({"series": {"count": 2, "lastObservedTime": "2026-01-01T00:00:01.000000Z"}});
    let (code, changed) = server.call("PATCH", &format!("{view}/e?fieldManager=other"), series).await;
    assert_eq!((code, owners(&changed).len()), (200, 2), "{changed}");
    let theirs: Vec<Vec<String>> = owners(&changed).iter().map(owned).collect();
    assert!(theirs.contains(&vec!["f:series".to_owned()]) && theirs.iter().any(|names| *names == all), "{theirs:?}");
    // There is no way from the names of one group to those of another.
    let (code, changed) = server.call("PATCH", &format!("{core}?fieldManager=third"), json!({"message": "k"})).await;
    let owners = owners(&changed);
    assert_eq!((code, owners.len(), owned(&owners[0])), (200, 1, vec!["f:message".to_owned()]), "{changed}");
}
