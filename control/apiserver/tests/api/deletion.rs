//! Deletions: what they ask for first, what a second one changes, what dry runs and lists show.

use http::Request;
use serde_json::{Value, json};

use crate::{Server, admin, config_map, node, pod};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const PODS: &str = "/api/v1/namespaces/default/pods";

#[tokio::test]
async fn what_belongs_to_a_job_or_a_replication_controller_stays_unless_the_client_says_otherwise() {
    const ORPHANS: &str = "child pods are preserved by default when jobs are deleted; set propagationPolicy=Background \
                           to remove them or set propagationPolicy=Orphan to suppress this warning";
    let server = Server::start().await;
    let (jobs, others) =
        ("/apis/batch/v1/namespaces/default/jobs", "/api/v1/namespaces/default/replicationcontrollers");
    let sets = "/apis/apps/v1/namespaces/default/replicasets";
    let template = json!({"metadata": {"labels": {"app": "a"}},
        "spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}});
    let mut always = template.clone();
    always["spec"]["restartPolicy"] = json!("Always");
    let job = json!({"metadata": {"name": "x"}, "spec": {"template": template}});
    let other = json!({"metadata": {"name": "x"}, "spec": {"template": always}});
    let set =
        json!({"metadata": {"name": "x"}, "spec": {"selector": {"matchLabels": {"app": "a"}}, "template": always}});
    for (path, object, query, code, warnings) in [
        (jobs, &job, "", 200, vec![format!("299 - \"{ORPHANS}\"")]),
        (jobs, &job, "propagationPolicy=Background", 404, vec![]),
        (jobs, &job, "propagationPolicy=Orphan", 200, vec![]),
        (others, &other, "", 200, vec![]),
        (others, &other, "orphanDependents=false", 404, vec![]),
        (sets, &set, "", 404, vec![]),
    ] {
        for of_all in [false, true] {
            server.make(path, object.clone()).await;
            let at = if of_all { path.to_owned() } else { format!("{path}/x") };
            let request = Request::delete(format!("{at}?{query}")).body(axum::body::Body::empty()).unwrap();
            let deleted = server.send(Some(admin()), request).await;
            assert!(deleted.code < 300, "{at}?{query}: {}", deleted.json());
            let said: Vec<_> = deleted.headers.get_all("warning").iter().map(|said| said.to_str().unwrap()).collect();
            assert_eq!(said, warnings, "{at}?{query}");
            let (found, left) = server.get(&format!("{path}/x")).await;
            assert_eq!(found, code, "{at}?{query}: {left}");
            if code == 200 {
                assert_eq!(left["metadata"]["finalizers"], json!(["orphan"]), "the collector lets go of its pods");
                server.call("PATCH", &format!("{path}/x"), json!({"metadata": {"finalizers": null}})).await;
            }
        }
    }
}

#[tokio::test]
async fn an_eviction_keeps_its_preconditions_and_marks_only_what_it_evicts() {
    let server = Server::start().await.with_account().await;
    let made = server.make(PODS, pod("p")).await;
    let evict = |preconditions: Value, version: &str| {
        let eviction = json!({"apiVersion": version, "kind": "Eviction", "metadata": {"name": "p"},
            "deleteOptions": {"preconditions": preconditions}});
        let server = &server;
        async move { server.call("POST", &format!("{PODS}/p/eviction"), eviction).await }
    };
    for wrong in [json!({"resourceVersion": "1"}), json!({"uid": "other"})] {
        assert_eq!(evict(wrong, "policy/v1").await.0, 409);
        assert_eq!(server.get(&format!("{PODS}/p")).await.1, made, "it is left as it was");
    }
    let right = json!({"resourceVersion": made["metadata"]["resourceVersion"], "uid": made["metadata"]["uid"]});
    let (code, answer) = evict(right, "policy/v1").await;
    assert_eq!((code, server.get(&format!("{PODS}/p")).await.0), (201, 404), "{answer}");
    server.make(PODS, pod("p")).await;
    assert_eq!(evict(json!({}), "policy/v1beta1").await.0, 201, "the older version, too");
}

#[tokio::test]
async fn an_eviction_asks_the_budget_and_is_taken_from_it() {
    const MERGE: &str = "application/merge-patch+json";
    const BUDGETS: &str = "/apis/policy/v1/namespaces/default/poddisruptionbudgets";
    let server = Server::start().await.with_account().await;
    let status = |phase: &str, ready: &str| json!({"status": {"phase": phase, "conditions": [{"type": "Ready", "status": ready}]}});
    let make = |name: &'static str, phase: &'static str, ready: &'static str| {
        let server = &server;
        async move {
            let mut object = pod(name);
            object["metadata"]["labels"] = json!({"app": "a"});
            server.make(PODS, object).await;
            let answer = server.call_as("PATCH", &format!("{PODS}/{name}/status"), MERGE, &status(phase, ready)).await;
            assert_eq!(answer.0, 200, "{answer:?}");
        }
    };
    let evict = |name: &'static str, query: &'static str| {
        let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}});
        let server = &server;
        async move { server.call("POST", &format!("{PODS}/{name}/eviction{query}"), eviction).await }
    };
    for (name, phase, ready) in [
        ("p1", "Running", "True"),
        ("p2", "Running", "True"),
        ("sick", "Running", "False"),
        ("waits", "Pending", "False"),
    ] {
        make(name, phase, ready).await;
    }
    let budget =
        json!({"metadata": {"name": "b"}, "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "a"}}}});
    let made = server.make(BUDGETS, budget.clone()).await;
    let cause = |answer: &Value| answer["details"]["causes"][0].clone();
    // Nobody has counted yet.
    let (code, answer) = evict("p1", "").await;
    assert_eq!((code, &answer["reason"]), (429, &json!("TooManyRequests")));
    assert_eq!(answer["message"], "Cannot evict pod as it would violate the pod's disruption budget.");
    assert_eq!(answer["details"]["retryAfterSeconds"], 10);
    assert_eq!(
        cause(&answer),
        json!({"reason": "DisruptionBudget", "message": "The disruption budget b is still being processed by the server."})
    );
    assert_eq!(evict("waits", "").await.0, 201, "whoever does not run is nobody's loss");
    let counted = json!({"status": {
        "observedGeneration": made["metadata"]["generation"], "currentHealthy": 2, "desiredHealthy": 1, "expectedPods": 3,
        "disruptionsAllowed": 1, "conditions": [{"type": "DisruptionAllowed", "status": "True", "reason": "SufficientPods",
            "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
    assert_eq!(server.call_as("PATCH", &format!("{BUDGETS}/b/status"), MERGE, &counted).await.0, 200);
    assert_eq!(evict("p1", "?dryRun=All").await.0, 201);
    assert_eq!(
        server.get(&format!("{BUDGETS}/b")).await.1["status"]["disruptionsAllowed"],
        1,
        "a dry run takes nothing"
    );
    assert_eq!(evict("sick", "").await.0, 201, "it is not among the healthy, and enough are");
    assert_eq!(server.get(&format!("{BUDGETS}/b")).await.1["status"]["disruptionsAllowed"], 1);
    assert_eq!(evict("p1", "").await.0, 201);
    let status = server.get(&format!("{BUDGETS}/b")).await.1["status"].clone();
    assert_eq!((&status["disruptionsAllowed"], status["disruptedPods"]["p1"].is_string()), (&json!(0), true));
    assert_eq!(
        (&status["conditions"][0]["status"], &status["conditions"][0]["reason"]),
        (&json!("False"), &json!("InsufficientPods"))
    );
    let (code, answer) = evict("p2", "").await;
    assert_eq!((code, &answer["details"]["retryAfterSeconds"]), (429, &Value::Null));
    assert_eq!(cause(&answer)["message"], "The disruption budget b needs 1 healthy pods and has 2 currently");
    assert_eq!(
        server.get(&format!("{PODS}/p2")).await.1["status"]["conditions"].as_array().unwrap().len(),
        1,
        "it is not marked"
    );
    let rests = json!({"status": {"disruptionsAllowed": 1, "disruptedPods": {}}});
    server.call_as("PATCH", &format!("{BUDGETS}/b/status"), MERGE, &rests).await;
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "p2"}}).to_string();
    for query in ["", "?dryRun=All"] {
        let request = Request::post(format!("{PODS}/p2/eviction{query}")).header("content-type", "application/json");
        let refused = server.send(Some(node("other")), request.body(eviction.clone().into()).unwrap()).await;
        let message = refused.json()["message"].to_string();
        assert_eq!(refused.code, 403, "{message}");
        assert!(message.contains("can only evict pods with spec.nodeName set to itself"), "{message}");
    }
    let left = server.get(&format!("{BUDGETS}/b")).await.1["status"].clone();
    assert_eq!(left["disruptionsAllowed"], 1, "who may not evict takes nothing from the budget: {left}");
    let mut second = budget;
    second["metadata"]["name"] = json!("c");
    server.make(BUDGETS, second).await;
    let (code, answer) = evict("p2", "").await;
    assert_eq!((code, answer["reason"].as_str()), (500, None));
    assert_eq!(
        answer["message"],
        "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support."
    );
}

#[tokio::test]
async fn a_second_deletion_changes_what_becomes_of_dependents() {
    let server = Server::start().await;
    let delete = |name: &'static str, policy: &'static str| {
        let server = &server;
        async move { server.call("DELETE", &format!("{MAPS}/{name}?propagationPolicy={policy}"), Value::Null).await }
    };
    server.make(MAPS, config_map("a", json!({}))).await;
    let (_, going) = delete("a", "Foreground").await;
    assert_eq!(going["metadata"]["finalizers"], json!(["foregroundDeletion"]));
    let (_, same) = server.call("DELETE", &format!("{MAPS}/a"), Value::Null).await;
    assert_eq!(same["metadata"]["resourceVersion"], going["metadata"]["resourceVersion"], "no policy, no change");
    delete("a", "Background").await;
    assert_eq!(server.get(&format!("{MAPS}/a")).await.0, 404);

    let mut held = config_map("b", json!({}));
    held["metadata"]["finalizers"] = json!(["example.com/x"]);
    server.make(MAPS, held).await;
    let (_, going) = delete("b", "Background").await;
    for (policy, finalizers) in [
        ("Orphan", json!(["example.com/x", "orphan"])),
        ("Foreground", json!(["example.com/x", "foregroundDeletion"])),
        ("Background", json!(["example.com/x"])),
    ] {
        let (code, changed) = delete("b", policy).await;
        assert_eq!((code, &changed["metadata"]["finalizers"]), (200, &finalizers));
        assert_eq!(changed["metadata"]["deletionTimestamp"], going["metadata"]["deletionTimestamp"]);
    }
}

#[tokio::test]
async fn a_dry_run_shows_what_a_deletion_would_leave() {
    let server = Server::start().await;
    server.make("/api/v1/namespaces", json!({"metadata": {"name": "n"}})).await;
    let (code, would) = server.call("DELETE", "/api/v1/namespaces/n?dryRun=All", Value::Null).await;
    assert_eq!((code, &would["status"]["phase"]), (200, &json!("Terminating")));
    assert!(would["metadata"]["deletionTimestamp"].is_string());
    assert_eq!(server.get("/api/v1/namespaces/n").await.1["status"]["phase"], "Active");
}

#[tokio::test]
async fn deleting_many_shows_them_as_they_were() {
    let server = Server::start().await;
    let mut held = config_map("a", json!({}));
    held["metadata"]["finalizers"] = json!(["example.com/x"]);
    let held = server.make(MAPS, held).await;
    let (code, list) = server.call("DELETE", MAPS, Value::Null).await;
    assert_eq!(code, 200);
    assert_eq!(list["items"][0]["metadata"], held["metadata"]);
    assert!(server.get(&format!("{MAPS}/a")).await.1["metadata"]["deletionTimestamp"].is_string());
}

#[tokio::test]
async fn an_apply_that_would_make_an_object_cannot_name_its_uid() {
    let server = Server::start().await;
    let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "uid": "x"}});
    let path = format!("{MAPS}/a?fieldManager=m");
    let (code, refused) = server.call_as("PATCH", &path, "application/apply-patch+yaml", &object).await;
    assert_eq!(code, 409);
    let message = refused["message"].as_str().unwrap();
    assert!(message.ends_with("uid mismatch: the provided object specified uid x, and no existing object was found"));
}

#[tokio::test]
async fn an_owner_that_is_named_twice_counts_once() {
    let server = Server::start().await;
    let owner = json!({"apiVersion": "v1", "kind": "ConfigMap", "name": "o", "uid": "u1"});
    let mut object = config_map("a", json!({}));
    object["metadata"]["ownerReferences"] = json!([owner, owner]);
    let request = Request::post(MAPS).body(object.to_string().into()).unwrap();
    let answer = server.send(Some(admin()), request).await;
    assert_eq!((answer.code, answer.json()["metadata"]["ownerReferences"].clone()), (201, json!([owner])));
    let warning = answer.headers["warning"].to_str().unwrap();
    assert!(warning.contains("duplicate UID(s) observed: u1"), "{warning}");
}
