//! What pods get at admission, and how they are bound.

use serde_json::{Value, json};

use crate::{Server, pod};

const PODS: &str = "/api/v1/namespaces/default/pods";

#[tokio::test]
async fn a_pod_gets_an_account_a_token_and_a_priority() {
    let server = Server::start().await.with_account().await;
    let made = server.make(PODS, pod("p")).await;
    assert_eq!((&made["spec"]["serviceAccountName"], &made["spec"]["priority"]), (&json!("default"), &json!(0)));
    let mount = &made["spec"]["containers"][0]["volumeMounts"][0];
    assert_eq!(mount["mountPath"], "/var/run/secrets/kubernetes.io/serviceaccount");
    assert_eq!(made["spec"]["volumes"][0]["name"], mount["name"]);
    assert_eq!(made["spec"]["tolerations"].as_array().map(Vec::len), Some(2));
    let mut other = pod("q");
    other["spec"]["serviceAccountName"] = json!("none");
    let (code, refused) = server.call("POST", PODS, other).await;
    assert_eq!(code, 403);
    assert!(refused["message"].as_str().unwrap().contains("error looking up service account default/none"));
}

#[tokio::test]
async fn an_account_keeps_its_pods_to_the_secrets_that_it_names() {
    let server = Server::start().await.with_account().await;
    let account = "/api/v1/namespaces/default/serviceaccounts/default";
    let mounting = |name: &str, secret: &str| {
        let mut pod = pod(name);
        pod["spec"]["volumes"] = json!([{"name": "s", "secret": {"secretName": secret}}]);
        pod
    };
    for (enforced, codes) in [(Value::Null, [201, 201]), ("false".into(), [201, 201]), ("true".into(), [201, 403])] {
        let annotations = json!({"kubernetes.io/enforce-mountable-secrets": enforced});
        let change = json!({"metadata": {"annotations": annotations}, "secrets": [{"name": "named"}]});
        assert_eq!(server.call("PATCH", account, change).await.0, 200);
        for (secret, expected) in ["named", "other"].into_iter().zip(codes) {
            let (code, answer) = server.call("POST", &format!("{PODS}?dryRun=All"), mounting("p", secret)).await;
            assert_eq!(code, expected, "{enforced} {secret}: {answer}");
            let words = "volume with secret.secretName=\"other\" is not allowed because service account default";
            assert!(code == 201 || answer["message"].as_str().unwrap().contains(words), "{answer}");
        }
    }
}

#[tokio::test]
async fn many_pods_are_bound_at_once_and_each_has_its_answer() {
    let server = Server::start().await.with_account().await;
    for name in ["a", "b", "c"] {
        server.make(PODS, pod(name)).await;
    }
    let bind = |name: &str, node: &str| json!({"namespace": "default", "name": name, "uid": "", "node": node});
    let waited = json!({"type": "PodScheduled", "status": "False", "observedGeneration": 1});
    let waited = json!({"status": {"nominatedNodeName": "n1", "conditions": [waited]}});
    assert_eq!(server.call("PATCH", &format!("{PODS}/a/status"), waited).await.0, 200);
    let before = server.keyspace.revision().get();
    let body = json!({"bindings": [bind("a", "n1"), bind("none", "n1"), bind("b", "n2")]});
    let (code, answer) = server.call("POST", "/coracle/v1/bindings", body).await;
    let codes: Vec<i64> =
        answer["results"].as_array().unwrap().iter().map(|one| one["code"].as_i64().unwrap()).collect();
    assert_eq!((code, codes), (200, vec![201, 404, 201]));
    assert_eq!(server.keyspace.revision().get(), before + 2, "a revision for each");
    let (_, bound) = server.get(&format!("{PODS}/a")).await;
    let (_, other) = server.get(&format!("{PODS}/b")).await;
    assert_ne!(bound["metadata"]["resourceVersion"], other["metadata"]["resourceVersion"]);
    assert_eq!(bound["spec"]["nodeName"], "n1");
    let condition = bound["status"]["conditions"].as_array().unwrap().iter().find(|one| one["type"] == "PodScheduled");
    assert_eq!(condition.unwrap()["status"], "True");
    assert_eq!(condition.unwrap().get("observedGeneration"), None);
    assert_eq!(bound["status"].get("nominatedNodeName"), None, "it is there");
    let (_, again) = server.call("POST", "/coracle/v1/bindings", json!({"bindings": [bind("a", "n2")]})).await;
    assert_eq!(again["results"][0]["code"], 409);

    let mut binding = json!({"metadata": {"name": "c"}, "target": {"kind": "Node", "name": "n3"}});
    let version = server.get(&format!("{PODS}/c")).await.1["metadata"]["resourceVersion"].clone();
    for (field, wrong, what) in [("uid", "other", "UID"), ("resourceVersion", "1", "ResourceVersion")] {
        let mut stale = binding.clone();
        stale["metadata"][field] = wrong.into();
        let (code, refused) = server.call("POST", &format!("{PODS}/c/binding"), stale).await;
        let message = refused["message"].as_str().unwrap_or_default();
        assert_eq!(code, 409, "{refused}");
        assert!(message.contains(&format!("Precondition failed: {what} in precondition: {wrong}, ")), "{message}");
    }
    binding["metadata"]["resourceVersion"] = version;
    let (code, _) = server.call("POST", &format!("{PODS}/c/binding"), binding).await;
    assert_eq!(code, 201);
    let (_, listed) = server.get("/api/v1/pods?fieldSelector=spec.nodeName%3Dn3").await;
    assert_eq!(listed["items"][0]["metadata"]["name"], "c");
}

#[tokio::test]
async fn a_pod_has_the_zone_and_the_region_of_its_node_by_whatever_door_it_came_there() {
    let server = Server::start().await.with_account().await;
    let (zone, region) = ("topology.kubernetes.io/zone", "topology.kubernetes.io/region");
    let labels = json!({zone: "z1", region: "r1", "own": "x"});
    server.make("/api/v1/nodes", json!({"metadata": {"name": "n", "labels": labels}})).await;
    server.make("/api/v1/nodes", json!({"metadata": {"name": "plain"}})).await;
    for (name, node) in [("a", None), ("b", None), ("c", None), ("d", None), ("made", Some("n"))] {
        let mut object = pod(name);
        object["metadata"]["labels"] = json!({zone: "mine", "app": "x"});
        object["spec"]["nodeName"] = node.into();
        server.make(PODS, object).await;
    }
    let bindings = json!({"bindings": [{"namespace": "default", "name": "a", "node": "n"},
        {"namespace": "default", "name": "c", "node": "plain"}, {"namespace": "default", "name": "d", "node": "gone"}]});
    server.call("POST", "/coracle/v1/bindings", bindings).await;
    let binding = json!({"metadata": {"name": "b"}, "target": {"kind": "Node", "name": "n"}});
    assert_eq!(server.call("POST", &format!("{PODS}/b/binding"), binding).await.0, 201);
    for (name, expected) in [
        ("a", json!({zone: "z1", region: "r1", "app": "x"})),
        ("b", json!({zone: "z1", region: "r1", "app": "x"})),
        ("made", json!({zone: "z1", region: "r1", "app": "x"})),
        ("c", json!({zone: "mine", "app": "x"})),
        ("d", json!({zone: "mine", "app": "x"})),
    ] {
        let (_, found) = server.get(&format!("{PODS}/{name}")).await;
        assert!(found["spec"]["nodeName"].is_string(), "{found}");
        assert_eq!(found["metadata"]["labels"], expected, "{name}");
    }
}

#[tokio::test]
async fn a_bound_pod_has_a_grace_period_and_an_unbound_one_has_none() {
    let server = Server::start().await.with_account().await;
    server.make(PODS, pod("a")).await;
    server.make(PODS, pod("b")).await;
    let body = json!({"bindings": [{"namespace": "default", "name": "a", "node": "n"}]});
    server.call("POST", "/coracle/v1/bindings", body).await;
    let (_, going) = server.call("DELETE", &format!("{PODS}/a"), Value::Null).await;
    assert_eq!(going["metadata"]["deletionGracePeriodSeconds"], 30);
    assert_eq!(server.get(&format!("{PODS}/a")).await.0, 200);
    server.call("DELETE", &format!("{PODS}/b"), Value::Null).await;
    assert_eq!(server.get(&format!("{PODS}/b")).await.0, 404);
    server.call("DELETE", &format!("{PODS}/a?gracePeriodSeconds=0"), Value::Null).await;
    assert_eq!(server.get(&format!("{PODS}/a")).await.0, 404);
}

#[tokio::test]
async fn a_deployment_is_scaled_and_its_generation_counts() {
    let server = Server::start().await;
    let path = "/apis/apps/v1/namespaces/default/deployments";
    let deployment = json!({"metadata": {"name": "d"}, "spec": {"replicas": 1, "selector": {"matchLabels": {"app": "d"}},
        "template": {"metadata": {"labels": {"app": "d"}}, "spec": {"containers": [{"name": "c", "image": "x"}]}}}});
    server.make(path, deployment).await;
    let (code, scale) = server.call("PATCH", &format!("{path}/d/scale"), json!({"spec": {"replicas": 3}})).await;
    assert_eq!((code, &scale["spec"]["replicas"], &scale["status"]["selector"]), (200, &json!(3), &json!("app=d")));
    let (_, scaled) = server.get(&format!("{path}/d")).await;
    assert_eq!((&scaled["spec"]["replicas"], &scaled["metadata"]["generation"]), (&json!(3), &json!(2)));
    let (code, status) = server.call("PATCH", &format!("{path}/d/status"), json!({"status": {"replicas": 3}})).await;
    assert_eq!((code, &status["metadata"]["generation"]), (200, &json!(2)));
}

#[tokio::test]
async fn who_applies_a_scale_owns_the_count() {
    let server = Server::start().await;
    let path = "/apis/apps/v1/namespaces/default/deployments";
    let deployment = json!({"metadata": {"name": "d"}, "spec": {"selector": {"matchLabels": {"app": "d"}},
        "template": {"metadata": {"labels": {"app": "d"}}, "spec": {"containers": [{"name": "c", "image": "x"}]}}}});
    server.make(path, deployment).await;
    let scale =
        json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": "d"}, "spec": {"replicas": 4}});
    let apply = format!("{path}/d/scale?fieldManager=scaler&force=true");
    let (code, scaled) = server.call_as("PATCH", &apply, "application/apply-patch+yaml", &scale).await;
    assert_eq!((code, &scaled["spec"]["replicas"]), (200, &json!(4)), "{scaled}");
    let (_, object) = server.get(&format!("{path}/d")).await;
    let entry = object["metadata"]["managedFields"].as_array().unwrap().iter().find(|one| one["manager"] == "scaler");
    let entry = entry.unwrap();
    assert_eq!((&entry["subresource"], &entry["fieldsV1"]), (&json!("scale"), &json!({"f:spec": {"f:replicas": {}}})));
}

#[tokio::test]
async fn a_binding_names_what_may_be_a_node() {
    let server = Server::start().await.with_account().await;
    server.make(PODS, pod("a")).await;
    for node in ["", "Not A Node", "../x"] {
        let bindings = json!({"bindings": [{"namespace": "default", "name": "a", "node": node}]});
        let (code, answer) = server.call("POST", "/coracle/v1/bindings", bindings).await;
        assert_eq!((code, &answer["results"][0]["code"]), (200, &json!(500)), "{node}");
        let binding = json!({"metadata": {"name": "a"}, "target": {"kind": "Node", "name": node}});
        assert_eq!(server.call("POST", &format!("{PODS}/a/binding"), binding).await.0, 500, "{node}");
    }
    assert_eq!(server.get(&format!("{PODS}/a")).await.1["spec"].get("nodeName"), None);
}

#[tokio::test]
async fn a_node_that_does_not_say_it_is_ready_gets_nothing_to_run() {
    let server = Server::start().await;
    let ghost = server.make("/api/v1/nodes", json!({"metadata": {"name": "ghost"}})).await;
    let taint = json!({"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"});
    assert_eq!(ghost["spec"]["taints"], json!([taint]));
    let ready = json!({"metadata": {"name": "n"}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}});
    assert_eq!(server.make("/api/v1/nodes", ready).await["spec"].get("taints"), None);
}
