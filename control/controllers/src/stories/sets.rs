//! StatefulSets, DaemonSets and ReplicationControllers against an API that goes wrong.

use super::*;

const SETS: &str = "/apis/apps/v1/namespaces/n/statefulsets";
const DAEMONS: &str = "/apis/apps/v1/namespaces/n/daemonsets";
const REVISIONS: &str = "/apis/apps/v1/namespaces/n/controllerrevisions";
const PODS: &str = "/api/v1/namespaces/n/pods";

fn template(image: &str) -> Value {
    json!({"metadata": {"labels": {"app": "a"}}, "spec": {"containers": [{"name": "c", "image": image}]}})
}

fn stateful_set(replicas: i64, image: &str) -> Value {
    json!({"spec": {
        "replicas": replicas, "serviceName": "web", "podManagementPolicy": "OrderedReady", "revisionHistoryLimit": 1,
        "selector": {"matchLabels": {"app": "a"}}, "template": template(image),
        "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}},
    }})
}

fn daemon_set(image: &str) -> Value {
    json!({"spec": {
        "selector": {"matchLabels": {"app": "a"}}, "template": template(image), "revisionHistoryLimit": 1,
        "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1, "maxSurge": 0}},
    }})
}

fn running() -> Value {
    json!({"status": {"phase": "Running", "conditions": [
        {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}})
}

fn path(pod: &Value) -> String {
    format!("{PODS}/{}", pod["metadata"]["name"].as_str().unwrap_or_default())
}

/// The image of each pod that is there, by name.
fn images(api: &Scripted) -> Vec<String> {
    let pods = api.list(PODS);
    let image = |pod: &Value| pod["spec"]["containers"][0]["image"].as_str().unwrap_or_default().to_owned();
    pods.iter().map(|pod| format!("{}={}", pod["metadata"]["name"].as_str().unwrap_or_default(), image(pod))).collect()
}

/// Waits for these pods, each of which becomes ready as it comes.
async fn brought_up(api: &Scripted, wanted: &[&str]) {
    api.until(&format!("{wanted:?}"), |api| {
        for pod in api.list(PODS) {
            if pod["status"]["phase"].is_null() {
                api.merge(&path(&pod), &running());
            }
        }
        (images(api) == wanted).then_some(())
    })
    .await;
}

fn numbers(api: &Scripted) -> Vec<i64> {
    let mut numbers: Vec<_> = api.list(REVISIONS).iter().map(|it| it["revision"].as_i64().unwrap_or(0)).collect();
    numbers.sort_unstable();
    numbers
}

#[tokio::test]
async fn stateful_set_goes_through_its_revisions_and_back_one_pod_at_a_time() {
    let world = world();
    let api = &world.api;
    let set = format!("{SETS}/web");
    api.put(&set, stateful_set(2, "one"));
    brought_up(api, &["web-0=one", "web-1=one"]).await;
    let is_done = |api: &Scripted, generation: i64| {
        let status = &api.get(&set)?["status"];
        let done = status["observedGeneration"] == generation
            && status["readyReplicas"] == 2
            && status["currentRevision"] == status["updateRevision"];
        done.then(|| status.clone())
    };
    let first = api.until("it is there", |api| is_done(api, 1)).await;
    let made: Vec<_> = api.requests(&Method::POST, PODS).into_iter().map(|seen| seen.body).collect();
    let labels = &made[1]["metadata"]["labels"];
    assert_eq!(labels["statefulset.kubernetes.io/pod-name"], "web-1");
    assert_eq!(labels["apps.kubernetes.io/pod-index"], "1");
    assert_eq!(labels["controller-revision-hash"], first["currentRevision"]);
    assert_eq!((&made[1]["spec"]["hostname"], &made[1]["spec"]["subdomain"]), (&json!("web-1"), &json!("web")));
    let revision = api.list(REVISIONS).remove(0);
    assert_eq!(revision["data"]["spec"]["template"]["$patch"], "replace");
    assert_eq!(revision["metadata"]["ownerReferences"][0]["kind"], "StatefulSet");

    for (generation, image) in [(2, "two"), (3, "three")] {
        let wanted = [format!("web-0={image}"), format!("web-1={image}")];
        api.merge(&set, &json!({"metadata": {"generation": generation}, "spec": {"template": template(image)}}));
        brought_up(api, &wanted.each_ref().map(String::as_str)).await;
        api.until(image, |api| is_done(api, generation)).await;
    }
    api.until("the oldest is forgotten", |api| (numbers(api) == [2, 3]).then_some(())).await;
    // Back to an earlier template: its revision becomes the newest, and none is made.
    api.merge(&set, &json!({"metadata": {"generation": 4}, "spec": {"template": template("two")}}));
    brought_up(api, &["web-0=two", "web-1=two"]).await;
    api.until("it is back", |api| is_done(api, 4)).await;
    assert_eq!(numbers(api), [3, 4]);
    let deleted: Vec<_> = api.requests(&Method::DELETE, "/pods/").into_iter().map(|seen| seen.path).collect();
    let order = ["web-1", "web-0"].map(|name| format!("{PODS}/{name}"));
    assert_eq!(deleted, [order.clone(), order.clone(), order].concat(), "from above, one after the other");
    let told = world
        .api
        .until("it is told of", |_| Some(world.events("SuccessfulDelete")).filter(|events| !events.is_empty()));
    assert!(told.await[0].ends_with("Delete Pod web-1 in StatefulSet web successful"));
}

#[tokio::test]
async fn stateful_set_asks_again_by_the_same_name_and_takes_what_is_named_as_its_own() {
    let world = world();
    let api = &world.api;
    let set = format!("{SETS}/web");
    world.all_collected("watching").await;
    // Nobody knows what became of the first pod and of the first revision; the watch is late as well.
    api.hold("pods");
    api.next(Method::POST, "/pods", Answer::DoneButUnknown);
    api.next(Method::POST, "/pods", Answer::LostButUnknown);
    api.next(Method::POST, "/pods", Answer::LostButUnknown);
    api.next(Method::POST, "/controllerrevisions", Answer::DoneButUnknown);
    // Two that match are there, of which only one is named as its own.
    for name in ["web-1", "other"] {
        let labels = json!({"app": "a"});
        let mut pod = running();
        pod["metadata"] = json!({"labels": labels});
        pod["spec"] = json!({"containers": [{"name": "c", "image": "old"}]});
        api.put(&format!("{PODS}/{name}"), pod);
    }
    api.put(&set, stateful_set(2, "one"));
    let asked = |api: &Scripted| api.requests(&Method::POST, PODS).len();
    api.until("it is asked for once more", |api| (asked(api) >= 4).then_some(())).await;
    api.release("pods");
    brought_up(api, &["other=old", "web-0=one", "web-1=one"]).await;
    let ready = |api: &Scripted| (api.get(&set)?["status"]["readyReplicas"] == 2).then_some(());
    api.until("it is there", ready).await;
    assert!(api.is_done());
    assert_eq!(api.list(REVISIONS).len(), 1);
    let posts = api.requests(&Method::POST, PODS);
    let names: std::collections::BTreeSet<_> =
        posts.iter().map(|seen| seen.body["metadata"]["name"].to_string()).collect();
    assert_eq!(names.into_iter().collect::<Vec<_>>(), ["\"web-0\"", "\"web-1\""]);
    assert!(api.get(&format!("{PODS}/other")).unwrap()["metadata"]["ownerReferences"].is_null());
    let deleted = api.requests(&Method::DELETE, "/pods/");
    assert_eq!(deleted.len(), 1, "the one that was taken over is of no revision: {deleted:?}");
}

#[tokio::test]
async fn stateful_set_finds_another_name_for_a_revision_whose_name_is_taken() {
    let world = world();
    let api = &world.api;
    api.put(&format!("{SETS}/web"), stateful_set(0, "one"));
    let revision = api.until("its revision", |api| api.list(REVISIONS).pop()).await;
    let name = revision["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let other = name.replace("web-", "api-");
    api.put(&format!("{REVISIONS}/{other}"), json!({"data": {"of": "somebody else"}, "revision": 1}));
    api.put(&format!("{SETS}/api"), stateful_set(0, "one"));
    let status = |api: &Scripted| {
        let status = api.get(&format!("{SETS}/api"))?["status"].clone();
        (status["observedGeneration"] == 1).then_some(status)
    };
    let status = api.until("it has one", status).await;
    assert_eq!(status["collisionCount"], 1);
    assert_ne!(status["updateRevision"], other);
    assert!(api.get(&format!("{REVISIONS}/{}", status["updateRevision"].as_str().unwrap_or_default())).is_some());
}

#[tokio::test]
async fn stateful_set_makes_claims_that_stay_or_go() {
    let world = world();
    let api = &world.api;
    let set = format!("{SETS}/web");
    let mut object = stateful_set(2, "one");
    object["spec"]["volumeClaimTemplates"] =
        json!([{"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"]}}]);
    object["spec"]["persistentVolumeClaimRetentionPolicy"] = json!({"whenDeleted": "Retain", "whenScaled": "Delete"});
    api.put(&set, object);
    brought_up(api, &["web-0=one", "web-1=one"]).await;
    let claim = |index: u8| format!("/api/v1/namespaces/n/persistentvolumeclaims/data-web-{index}");
    let pod = api.get(&format!("{PODS}/web-1")).expect("it is there");
    assert_eq!(pod["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"], "data-web-1");
    assert!(api.get(&claim(1)).expect("a claim")["metadata"]["ownerReferences"].is_null());
    // Scaled down, the claim goes with its pod: first it is given to it.
    api.merge(&set, &json!({"metadata": {"generation": 2}, "spec": {"replicas": 1}}));
    brought_up(api, &["web-0=one"]).await;
    let owners = |api: &Scripted| {
        let patches = api.requests(&Method::PATCH, "/data-web-1").into_iter();
        patches.map(|seen| seen.body["metadata"]["ownerReferences"].clone()).find(|owners| !owners.is_null())
    };
    let owners = api.until("it is given to its pod", owners).await;
    assert_eq!(
        (&owners[0]["kind"], &owners[0]["name"], &owners[0]["uid"]),
        (&json!("Pod"), &json!("web-1"), &pod["metadata"]["uid"])
    );
    api.until("it goes", |api| api.get(&claim(1)).is_none().then_some(())).await;
    assert!(api.get(&claim(0)).is_some());
    api.merge(&set, &json!({"metadata": {"generation": 3}, "spec": {"replicas": 2}}));
    brought_up(api, &["web-0=one", "web-1=one"]).await;
    assert!(api.get(&claim(1)).is_some());
}

#[tokio::test]
async fn daemon_set_follows_the_nodes_and_is_not_woken_by_their_status() {
    let world = world();
    let api = &world.api;
    for name in ["a", "b"] {
        api.put(&format!("/api/v1/nodes/{name}"), node("True"));
    }
    let set = format!("{DAEMONS}/d");
    api.put(&set, daemon_set("one"));
    let there = |api: &Scripted| {
        let field = |pod: &Value| {
            pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
                ["nodeSelectorTerms"][0]["matchFields"][0]["values"][0]
                .as_str()
                .unwrap_or_default()
                .to_owned()
        };
        let mut nodes: Vec<_> = api.list(PODS).iter().map(field).collect();
        nodes.sort();
        nodes
    };
    api.until("one on each", |api| (there(api) == ["a", "b"]).then_some(())).await;
    for pod in api.list(PODS) {
        assert!(pod["metadata"]["name"].as_str().is_some_and(|name| name.starts_with("d-")), "{pod}");
        assert_eq!(pod["spec"]["tolerations"].as_array().map(Vec::len), Some(6));
        api.merge(&path(&pod), &running());
    }
    let counts = |api: &Scripted, counts: [i64; 4]| {
        let status = &api.get(&set)?["status"];
        let names = ["desiredNumberScheduled", "currentNumberScheduled", "numberReady", "numberMisscheduled"];
        (names.map(|name| status[name].as_i64().unwrap_or(0)) == counts).then_some(())
    };
    api.until("both are ready", |api| counts(api, [2, 2, 2, 0])).await;
    // A node that says how it is changes nothing; one that lets nobody in any more, one that drives out, and a new one do.
    let written = |api: &Scripted| {
        let writes = api.writes().into_iter();
        writes.filter(|seen| seen.path.starts_with(DAEMONS) || seen.path.starts_with(PODS)).count()
    };
    let before = written(api);
    for index in 0..20 {
        api.merge("/api/v1/nodes/a", &json!({"status": {"note": index}}));
    }
    let taint = |effect: &str| json!({"spec": {"taints": [{"key": "mine", "effect": effect}]}});
    api.merge("/api/v1/nodes/a", &taint("NoSchedule"));
    api.until("it stays where no more are let in", |api| counts(api, [1, 1, 1, 1])).await;
    assert_eq!(written(api) - before, 1, "its own status, once");
    assert_eq!(there(api), ["a", "b"]);
    api.merge("/api/v1/nodes/a", &taint("NoExecute"));
    api.until("it goes where it is driven out", |api| (there(api) == ["b"]).then_some(())).await;
    api.put("/api/v1/nodes/c", node("True"));
    api.until("a new node gets one", |api| (there(api) == ["b", "c"]).then_some(())).await;
    api.remove("/api/v1/nodes/b");
    api.merge("/api/v1/nodes/c", &json!({"metadata": {"labels": {"x": "y"}}}));
    api.until("a node that is gone does not count", |api| counts(api, [1, 1, 0, 0])).await;
}

#[tokio::test]
async fn daemon_set_rolls_replaces_what_failed_and_makes_no_second_pod_of_a_lost_answer() {
    let world = world();
    let api = &world.api;
    api.put("/api/v1/nodes/a", node("True"));
    api.hold("pods");
    api.next(Method::POST, "/pods", Answer::DoneButUnknown);
    api.next(Method::POST, "/pods", Answer::LostButUnknown);
    api.next(Method::POST, "/pods", Answer::LostButUnknown);
    let set = format!("{DAEMONS}/d");
    api.put(&set, daemon_set("one"));
    let asked = |api: &Scripted| {
        let asked = api.requests(&Method::POST, PODS);
        (asked.len() >= 4).then(|| asked.iter().map(|it| it.body["metadata"]["name"].to_string()).collect::<Vec<_>>())
    };
    let names = api.until("it is asked for once more", asked).await;
    assert!(names.iter().all(|name| *name == names[0]), "always by the same name: {names:?}");
    api.release("pods");
    let image = |api: &Scripted, image: &str| {
        let pods = api.list(PODS);
        let is_it = pods.len() == 1 && pods[0]["spec"]["containers"][0]["image"] == image;
        is_it.then(|| pods[0].clone())
    };
    let pod = api.until("one", |api| image(api, "one")).await;
    api.merge(&path(&pod), &running());
    api.until("it is ready", |api| (api.get(&set)?["status"]["numberReady"] == 1).then_some(())).await;
    api.merge(&set, &json!({"metadata": {"generation": 2}, "spec": {"template": template("two")}}));
    let pod = api.until("the next", |api| image(api, "two")).await;
    assert_eq!(numbers(api), [1, 2]);
    let label = &pod["metadata"]["labels"]["controller-revision-hash"];
    assert!(api.list(REVISIONS).iter().any(|it| it["metadata"]["labels"]["controller-revision-hash"] == *label));
    api.merge(&path(&pod), &json!({"status": {"phase": "Failed"}}));
    let another = |api: &Scripted| image(api, "two").filter(|it| it["metadata"]["name"] != pod["metadata"]["name"]);
    api.until("another for one that failed", another).await;
    let told = |_: &Scripted| Some(world.events("FailedDaemonPod")).filter(|events| !events.is_empty());
    let told = api.until("it is told of", told).await;
    let name = pod["metadata"]["name"].as_str().unwrap_or_default();
    assert!(told[0].ends_with(&format!("Found failed daemon pod n/{name} on node a, will try to kill it")), "{told:?}");
}

#[tokio::test]
async fn replication_controller_keeps_its_pods_and_counts_for_budgets() {
    let world = world();
    let api = &world.api;
    let controller = "/api/v1/namespaces/n/replicationcontrollers/r";
    let budget = "/apis/policy/v1/namespaces/n/poddisruptionbudgets/b";
    let selector = json!({"matchLabels": {"app": "a"}});
    api.put(budget, json!({"spec": {"maxUnavailable": 1, "selector": selector}}));
    api.put(controller, json!({"spec": {"replicas": 2, "selector": {"app": "a"}, "template": template("one")}}));
    let pods = api.until("two pods", |api| Some(api.list(PODS)).filter(|pods| pods.len() == 2)).await;
    assert_eq!(pods[0]["metadata"]["ownerReferences"][0]["apiVersion"], "v1");
    assert_eq!(pods[0]["metadata"]["ownerReferences"][0]["kind"], "ReplicationController");
    for pod in &pods {
        api.merge(&path(pod), &running());
    }
    let status = api.until("they are counted", |api| {
        Some(api.get(controller)?["status"].clone()).filter(|status| status["readyReplicas"] == 2)
    });
    assert_eq!(
        status.await,
        json!({
            "replicas": 2, "fullyLabeledReplicas": 2, "readyReplicas": 2, "availableReplicas": 2, "observedGeneration": 1,
        })
    );
    api.until("one may go", |api| (api.get(budget)?["status"]["disruptionsAllowed"] == 1).then_some(())).await;
    api.merge(controller, &json!({"metadata": {"generation": 2}, "spec": {"replicas": 0}}));
    api.until("all go", |api| api.list(PODS).is_empty().then_some(())).await;
    let told = |_: &Scripted| Some(world.events("SuccessfulDelete")).filter(|events| events.len() == 2);
    api.until("it is told of", told).await;
}

#[tokio::test]
async fn daemon_set_of_a_thousand_nodes_is_written_about_a_bounded_number_of_times() {
    const NODES: usize = 1000;
    let api = Scripted::new();
    for index in 0..NODES {
        api.put(&format!("/api/v1/nodes/n{index}"), node("True"));
    }
    let _world = start(&api, 600_000);
    let set = format!("{DAEMONS}/d");
    api.put(&set, daemon_set("one"));
    let count = |api: &Scripted, name: &str| {
        let count = api.get(&set)?["status"][name].as_u64()?;
        (count == NODES as u64).then_some(())
    };
    api.until("one on each", |api| count(api, "currentNumberScheduled")).await;
    // What is not seen in time may be asked for again, by its name.
    let asked = api.requests(&Method::POST, PODS).into_iter().map(|seen| seen.body["metadata"]["name"].to_string());
    assert_eq!(asked.collect::<std::collections::HashSet<_>>().len(), NODES, "none was made twice");
    for pod in api.list(PODS) {
        api.merge(&path(&pod), &running());
    }
    api.until("all are ready", |api| count(api, "numberAvailable")).await;
    let written = api.requests(&Method::PATCH, &format!("{set}/status")).len();
    assert!(written < 200, "{written} times");
    assert_eq!(api.requests(&Method::DELETE, PODS).len(), 0);
}

/// A quota that is full has room when what is not wanted any more is gone: so that goes, whatever becomes of the others.
#[tokio::test]
async fn daemon_set_gives_pods_up_although_no_other_can_be_made() {
    let world = world();
    let api = &world.api;
    let labelled = |label: &str| json!({"metadata": {"labels": {"disk": label}}});
    for name in ["a", "b"] {
        api.put(&format!("/api/v1/nodes/{name}"), node("True"));
    }
    api.merge("/api/v1/nodes/a", &labelled("fast"));
    let mut set = daemon_set("one");
    set["spec"]["template"]["spec"]["nodeSelector"] = json!({"disk": "fast"});
    api.put(&format!("{DAEMONS}/d"), set);
    let pod = api.until("one on the node that is meant", |api| api.list(PODS).pop()).await;
    api.merge(&path(&pod), &running());
    api.always(Method::POST, "/pods", Answer::Refused(403, "Forbidden"));
    api.hold("nodes");
    api.merge("/api/v1/nodes/b", &labelled("fast"));
    api.merge("/api/v1/nodes/a", &labelled("slow"));
    api.release("nodes");
    api.until("the other goes", |api| api.list(PODS).is_empty().then_some(())).await;
    assert_eq!(api.requests(&Method::DELETE, &path(&pod)).len(), 1);
    api.relent();
    api.until("there is room", |api| api.list(PODS).pop()).await;
}

#[tokio::test]
async fn stateful_set_gives_up_what_has_ended_although_no_other_can_be_made() {
    let world = world();
    let api = &world.api;
    let mut set = stateful_set(2, "one");
    set["spec"]["podManagementPolicy"] = json!("Parallel");
    api.put(&format!("{SETS}/web"), set);
    brought_up(api, &["web-0=one", "web-1=one"]).await;
    api.always(Method::POST, "/pods", Answer::Refused(403, "Forbidden"));
    api.remove(&format!("{PODS}/web-0"));
    let refused = |_: &Scripted| (!world.events("FailedCreate").is_empty()).then_some(());
    api.until("it cannot be made again", refused).await;
    api.merge(&format!("{PODS}/web-1"), &json!({"status": {"phase": "Failed"}}));
    api.until("the other goes", |api| api.list(PODS).is_empty().then_some(())).await;
    api.relent();
    brought_up(api, &["web-0=one", "web-1=one"]).await;
}

/// What the API says is told as it is, and nothing of the client's own text for programmers.
#[tokio::test]
async fn what_the_api_refuses_is_told_in_its_words() {
    let claims = json!([{"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"]}}]);
    let mut with_claims = stateful_set(1, "one");
    with_claims["spec"]["volumeClaimTemplates"] = claims;
    let deployment = json!({"metadata": {"generation": 1}, "spec": {
        "replicas": 1, "selector": {"matchLabels": {"app": "a"}}, "template": pod_template("a")}});
    let cron = json!({"metadata": {"creationTimestamp": "2020-06-01T00:00:00Z"}, "spec": {
        "schedule": "0 0 1 1 *", "concurrencyPolicy": "Forbid", "jobTemplate": job(1, &json!({"selector": null}))}});
    let sets = "/apis/apps/v1/namespaces/n/replicasets";
    for (path, object, refused, reason, expected) in [
        (&*format!("{sets}/r"), replica_set("a", 1), "/pods", "FailedCreate", "Error creating: told to refuse"),
        (JOB, job(1, &json!({})), "/pods", "FailedCreate", "Error creating: told to refuse"),
        (&*format!("{DAEMONS}/d"), daemon_set("one"), "/pods", "FailedCreate", "Error creating: told to refuse"),
        (
            &*format!("{SETS}/web"),
            stateful_set(1, "one"),
            "/pods",
            "FailedCreate",
            "Create Pod web-0 in StatefulSet web failed error: told to refuse",
        ),
        (
            &*format!("{SETS}/web"),
            with_claims,
            "/persistentvolumeclaims",
            "FailedCreate",
            "Create Claim data-web-0 for Pod web-0 in StatefulSet web failed error: told to refuse",
        ),
        ("/apis/batch/v1/namespaces/n/cronjobs/c", cron, "/jobs", "FailedCreate", "Error creating job: told to refuse"),
        (
            "/apis/apps/v1/namespaces/n/deployments/d",
            deployment,
            "/replicasets",
            "ReplicaSetCreateError",
            "\": told to refuse",
        ),
    ] {
        let world = world();
        let api = &world.api;
        api.put("/api/v1/nodes/one", node("True"));
        api.next(Method::POST, refused, Answer::Refused(403, "Forbidden"));
        api.put(path, object);
        let told = |_: &Scripted| world.events(reason).pop();
        let told = api.until(path, told).await;
        assert!(told.ends_with(expected), "{path}: {told}");
        if path.starts_with(sets) {
            let failure = |api: &Scripted| {
                let statuses = api.requests(&Method::PATCH, "/replicasets/r/status").into_iter();
                let conditions = statuses.map(|seen| seen.body["status"]["conditions"][0].clone());
                conditions.into_iter().find(|condition| condition["type"] == "ReplicaFailure")
            };
            assert_eq!(api.until("its status says so", failure).await["message"], "told to refuse");
        }
    }
}
