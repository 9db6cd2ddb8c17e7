//! The shells, all of them at once, against an API that goes wrong: one story per controller.
//!
//! Where a story says that something does *not* happen, something else that had to happen later is waited for first.

mod autoscaler;
mod balancers;
mod concurrency;
mod sets;
mod volumes;

use std::time::Duration;

use coracle_scripted::{Answer, Scripted};
use http::Method;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::{Config, run};

struct World {
    api: Scripted,
    shutdown: CancellationToken,
    running: JoinHandle<()>,
}

/// Starts the controllers on what is there. Nodes are silent after `grace_ms`.
fn start(api: &Scripted, grace_ms: u64) -> World {
    let shutdown = CancellationToken::new();
    let config =
        Config { root_ca: "ca".to_owned(), node_monitor_grace: Duration::from_millis(grace_ms), ..Config::default() };
    let running = tokio::spawn(run(api.client(), config, shutdown.clone()));
    World { api: api.clone(), shutdown, running }
}

fn world() -> World {
    let api = Scripted::new();
    start(&api, 600_000)
}

impl World {
    fn uid(&self, path: &str) -> Value {
        self.api.get(path).expect("it is there")["metadata"]["uid"].clone()
    }

    /// An object whose owner does not exist goes: by then everything before it was looked at, too.
    async fn all_collected(&self, name: &str) {
        let path = format!("/api/v1/namespaces/sentinel/configmaps/{name}");
        self.api.put(&path, owned(&json!({"kind": "ConfigMap", "name": "none", "uid": name})));
        self.api.until("an object without an owner goes", |api| api.get(&path).is_none().then_some(())).await;
    }

    fn events(&self, reason: &str) -> Vec<String> {
        let sent = self.api.requests(&Method::POST, "/events").into_iter();
        sent.filter(|event| event.body["reason"] == reason)
            .map(|event| format!("{}: {}", event.path, event.body["message"].as_str().unwrap_or_default()))
            .collect()
    }
}

fn owned(reference: &Value) -> Value {
    let mut reference = reference.clone();
    if reference["apiVersion"].is_null() {
        reference["apiVersion"] = json!("v1");
    }
    json!({"metadata": {"ownerReferences": [reference]}})
}

fn pod_template(label: &str) -> Value {
    json!({"metadata": {"labels": {"app": label}}, "spec": {"containers": [{"name": "c", "image": "i"}]}})
}

fn replica_set(label: &str, replicas: i32) -> Value {
    json!({"spec": {"replicas": replicas, "selector": {"matchLabels": {"app": label}}, "template": pod_template(label)}})
}

fn ready_pod(label: &str, node: &str, ip: &str) -> Value {
    json!({
        "metadata": {"labels": {"app": label}}, "spec": {"nodeName": node, "containers": [{"name": "c"}]},
        "status": {"phase": "Running", "podIP": ip, "conditions": [
            {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]},
    })
}

fn node(ready: &str) -> Value {
    json!({"spec": {}, "status": {"conditions": [{"type": "Ready", "status": ready}]}})
}

fn condition<'a>(object: &'a Value, type_: &str) -> &'a Value {
    let mut conditions = object["status"]["conditions"].as_array().into_iter().flatten();
    conditions.find(|condition| condition["type"] == type_).map_or(&Value::Null, |condition| &condition["status"])
}

#[tokio::test]
async fn garbage_a_cluster_scoped_object_with_a_namespaced_owner_stays() {
    let world = world();
    world.api.put("/api/v1/namespaces/owner/configmaps/o", json!({}));
    let uid = world.uid("/api/v1/namespaces/owner/configmaps/o");
    let reference = json!({"kind": "ConfigMap", "name": "o", "uid": uid});
    world.api.put("/api/v1/namespaces/victim", owned(&reference));
    world.api.put("/apis/scheduling.k8s.io/v1/priorityclasses/victim", owned(&reference));
    let told = |_: &Scripted| Some(world.events("OwnerRefInvalidNamespace")).filter(|events| events.len() == 2);
    let told = world.api.until("both are told of", told).await;
    let uid = uid.as_str().unwrap_or_default();
    let expected = format!(
        "/api/v1/namespaces/default/events: ownerRef [v1/ConfigMap, namespace: , name: o, uid: {uid}] does not exist in \
         namespace \"\""
    );
    assert_eq!(told, [expected.clone(), expected]);
    world.all_collected("s").await;
    assert!(world.api.get("/api/v1/namespaces/victim").is_some_and(|it| it["metadata"]["deletionTimestamp"].is_null()));
    assert!(world.api.get("/apis/scheduling.k8s.io/v1/priorityclasses/victim").is_some());
    assert!(world.api.get("/api/v1/namespaces/owner/configmaps/o").is_some());
}

#[tokio::test]
async fn garbage_a_wrong_reference_harms_its_own_object_only() {
    let api = Scripted::new();
    // The bad ones are seen before their owner, and before the good ones.
    let reference = |kind: &str, name: &str| owned(&json!({"kind": kind, "name": name, "uid": "right"}));
    let all = [
        ("other-namespace/configmaps/cross", reference("ConfigMap", "o")),
        ("n/configmaps/wrong-name", reference("ConfigMap", "other")),
        ("n/configmaps/wrong-kind", reference("Secret", "o")),
        ("n/configmaps/good-early", reference("ConfigMap", "o")),
    ];
    for (path, object) in all {
        api.put(&format!("/api/v1/namespaces/{path}"), object);
    }
    let world = start(&api, 600_000);
    api.put("/api/v1/namespaces/n/configmaps/o", json!({"metadata": {"uid": "right"}}));
    api.until("the bad ones go", |api| {
        let left = api.list("/api/v1/configmaps").into_iter().filter(|it| it["metadata"]["name"] != "kube-root-ca.crt");
        let names: Vec<_> = left.map(|it| it["metadata"]["name"].as_str().unwrap_or_default().to_owned()).collect();
        (names == ["good-early", "o"]).then_some(())
    })
    .await;
    // What was found absent says nothing about others with the same uid, nor do bad ones that come later.
    api.put("/api/v1/namespaces/other-namespace/configmaps/cross-late", reference("ConfigMap", "o"));
    api.put("/api/v1/namespaces/n/configmaps/good-late", reference("ConfigMap", "o"));
    let late = "/api/v1/namespaces/other-namespace/configmaps/cross-late";
    api.until("the late one goes", |api| api.get(late).is_none().then_some(())).await;
    world.all_collected("s").await;
    for name in ["good-early", "good-late", "o"] {
        assert!(api.get(&format!("/api/v1/namespaces/n/configmaps/{name}")).is_some(), "{name} has its owner");
    }
    let told = |_: &Scripted| {
        world
            .events("OwnerRefInvalidNamespace")
            .iter()
            .any(|event| event.contains("in namespace \"other-namespace\""))
            .then_some(())
    };
    api.until("the other namespace is told of", told).await;
}

#[tokio::test]
async fn garbage_an_owner_of_an_unserved_kind_is_not_asked_for_again_and_again() {
    let world = world();
    let reference = json!({"apiVersion": "example.com/v1", "kind": "Nothing", "name": "x", "uid": "x"});
    for index in 0..5 {
        let mut reference = reference.clone();
        reference["uid"] = json!(format!("x{index}"));
        world.api.put(&format!("/api/v1/namespaces/n/configmaps/c{index}"), owned(&reference));
    }
    world.all_collected("first").await;
    world.all_collected("second").await;
    let asked = world.api.requests(&Method::GET, "/apis").into_iter().filter(|seen| seen.path == "/apis").count();
    assert!(asked <= 2, "at start, and once for all that is not served: {asked}");
    assert!(world.api.get("/api/v1/namespaces/n/configmaps/c0").is_some());
}

#[tokio::test]
async fn garbage_what_is_orphaned_by_a_second_thought_stays() {
    let world = world();
    let path = "/api/v1/namespaces/n/configmaps/o";
    world.api.put(path, json!({}));
    let uid = world.uid(path);
    let reference = json!({"kind": "ConfigMap", "name": "o", "uid": uid, "blockOwnerDeletion": true});
    world.api.put("/api/v1/namespaces/n/configmaps/dependent", owned(&reference));
    world.all_collected("settled").await;
    // Somebody else changes the dependent meanwhile: the version that the graph has is not the one there is.
    world.api.next(Method::PATCH, "/configmaps/dependent", Answer::Refused(409, "Conflict"));
    let going = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:10:00Z", "finalizers": ["orphan"]}});
    world.api.merge(path, &going);
    world.api.until("the owner goes", |api| api.get(path).is_none().then_some(())).await;
    world.all_collected("later").await;
    let dependent = world.api.get("/api/v1/namespaces/n/configmaps/dependent").expect("it stays");
    assert!(dependent["metadata"]["ownerReferences"].as_array().is_none_or(Vec::is_empty), "{dependent}");
    assert!(world.api.is_done());
}

#[tokio::test]
async fn deployment_goes_on_beside_objects_that_nobody_understands() {
    let api = Scripted::new();
    api.put("/api/v1/namespaces/w/services/odd", json!({"metadata": {"labels": 3}, "spec": {"ports": "none"}}));
    api.put("/apis/apps/v1/namespaces/w/deployments/odd", json!({"spec": {"replicas": "many"}}));
    let world = start(&api, 600_000);
    for index in 0..8 {
        let path = format!("/api/v1/namespaces/w/pods/p{index}");
        api.put(&path, json!({"spec": {"containers": null}, "status": {"phase": "Weird"}}));
        api.merge(&path, &json!({"status": {"phase": "", "conditions": null}}));
    }
    for index in 0..8 {
        let odd = json!({"metadata": {"labels": {"a": 1}}, "spec": 7});
        api.put(&format!("/apis/apps/v1/namespaces/w/deployments/odd{index}"), odd);
    }
    let started = std::time::Instant::now();
    // A conflict on the way: the ReplicaSet is another by the time it is sized.
    api.next(Method::POST, "/replicasets", Answer::Refused(500, "InternalError"));
    let spec =
        json!({"spec": {"replicas": 2, "selector": {"matchLabels": {"app": "web"}}, "template": pod_template("web")}});
    api.put("/apis/apps/v1/namespaces/t/deployments/web", spec);
    let pods = |api: &Scripted, count: usize| (api.list("/api/v1/namespaces/t/pods").len() == count).then_some(());
    api.until("two pods", |api| pods(api, 2)).await;
    api.next(Method::PATCH, "/replicasets", Answer::Refused(409, "Conflict"));
    api.merge(
        "/apis/apps/v1/namespaces/t/deployments/web",
        &json!({"spec": {"replicas": 3}, "metadata": {"generation": 2}}),
    );
    api.until("three pods", |api| pods(api, 3)).await;
    assert!(started.elapsed() < Duration::from_secs(5), "watches backed off: {:?}", started.elapsed());
    assert!(world.api.is_done());
}

#[tokio::test]
async fn deployment_that_is_ready_says_so_without_waiting_for_its_replica_set() {
    let world = world();
    let path = "/apis/apps/v1/namespaces/n/deployments/d";
    world.api.put(
        path,
        json!({"metadata": {"generation": 1}, "spec": {
        "replicas": 1, "selector": {"matchLabels": {"app": "a"}}, "template": pod_template("a")}}),
    );
    let pods = world
        .api
        .until("its pod is made", |api| Some(api.list("/api/v1/namespaces/n/pods")).filter(|it| it.len() == 1))
        .await;
    // The status of the ReplicaSet is not seen for now.
    world.api.hold("replicasets");
    let pod = format!("/api/v1/namespaces/n/pods/{}", pods[0]["metadata"]["name"].as_str().unwrap_or_default());
    world.api.merge(
        &pod,
        &json!({"status": {"phase": "Running", "conditions": [
        {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}}),
    );
    let ready = |api: &Scripted| api.get(path).filter(|it| it["status"]["readyReplicas"] == 1);
    let status = world.api.until("it is ready", ready).await["status"].clone();
    let counts = ["replicas", "updatedReplicas", "readyReplicas", "availableReplicas"].map(|name| status[name].clone());
    assert_eq!(counts, [1, 1, 1, 1].map(Value::from));
    assert_eq!(condition(&world.api.get(path).unwrap(), "Available"), "True");
    world.api.release("replicasets");
    world.all_collected("s").await;
    assert_eq!(world.api.get(path).unwrap()["status"]["readyReplicas"], 1, "and it stays so");
}

#[tokio::test]
async fn replica_set_makes_no_surplus_of_creations_without_an_answer() {
    let world = world();
    let api = &world.api;
    // The watch lags, the first request is carried out without an answer, and so are two repetitions: lost.
    api.hold("pods");
    api.next(Method::POST, "/pods", Answer::DoneButUnknown);
    api.next(Method::POST, "/pods", Answer::LostButUnknown);
    api.next(Method::POST, "/pods", Answer::LostButUnknown);
    let path = "/apis/apps/v1/namespaces/n/replicasets/r";
    api.put(path, replica_set("a", 1));
    let asked = |api: &Scripted| api.requests(&Method::POST, "/namespaces/n/pods");
    let asked = api.until("it is asked for once more", |api| Some(asked(api)).filter(|asked| asked.len() >= 4)).await;
    let names: std::collections::BTreeSet<_> =
        asked.iter().map(|seen| seen.body["metadata"]["name"].to_string()).collect();
    assert_eq!(names.len(), 1, "always by the same name: {names:?}");
    api.release("pods");
    api.until("it is counted", |api| (api.get(path)?["status"]["replicas"] == 1).then_some(())).await;
    world.all_collected("s").await;
    assert_eq!(api.list("/api/v1/namespaces/n/pods").len(), 1);
    assert_eq!(api.requests(&Method::DELETE, "/pods").len(), 0, "no surplus was made");
}

#[tokio::test]
async fn replica_set_that_shrinks_forgets_a_creation_that_never_was() {
    let world = world();
    let api = &world.api;
    for _ in 0..3 {
        api.next(Method::POST, "/pods", Answer::LostButUnknown);
    }
    let path = "/apis/apps/v1/namespaces/n/replicasets/r";
    api.put(path, replica_set("a", 1));
    api.until("nobody knows", |api| api.is_done().then_some(())).await;
    api.merge(path, &json!({"spec": {"replicas": 0}, "metadata": {"generation": 2}}));
    api.until("it is settled", |api| (api.get(path)?["status"]["observedGeneration"] == 2).then_some(())).await;
    api.merge(path, &json!({"spec": {"replicas": 2}, "metadata": {"generation": 3}}));
    api.until("two", |api| (api.get(path)?["status"]["replicas"] == 2).then_some(())).await;
    assert_eq!(api.list("/api/v1/namespaces/n/pods").len(), 2);
}

#[tokio::test]
async fn replica_set_makes_another_pod_for_one_that_is_never_seen() {
    let world = world();
    let api = &world.api;
    api.hold("pods");
    api.put("/apis/apps/v1/namespaces/n/replicasets/r", replica_set("a", 1));
    let asked = |api: &Scripted| api.requests(&Method::POST, "/namespaces/n/pods");
    api.until("a pod is asked for", |api| api.list("/api/v1/namespaces/n/pods").pop()).await;
    let name = asked(api)[0].body["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    // It goes before the watch shows it, which hears of neither.
    api.remove(&format!("/api/v1/namespaces/n/pods/{name}"));
    api.until("another is asked for", |api| (asked(api).len() == 2).then_some(())).await;
    assert_ne!(asked(api)[1].body["metadata"]["name"], *name);
}

const JOB: &str = "/apis/batch/v1/namespaces/n/jobs/j";
const TRACKING: &str = "batch.kubernetes.io/job-tracking";

/// A Job of so many completions, with changes to its specification.
fn job(completions: i32, change: &Value) -> Value {
    let mut job = json!({"spec": {
        "completions": completions, "parallelism": completions, "backoffLimit": 6, "completionMode": "NonIndexed",
        "selector": {"matchLabels": {"app": "j"}}, "template": pod_template("j"),
    }});
    for (name, value) in change.as_object().into_iter().flatten() {
        job["spec"][name] = value.clone();
    }
    job
}

fn pods(api: &Scripted) -> Vec<Value> {
    api.list("/api/v1/namespaces/n/pods")
}

async fn so_many_pods(api: &Scripted, count: usize) -> Vec<String> {
    let made = api.until("its pods are made", |api| Some(pods(api)).filter(|pods| pods.len() == count)).await;
    let names = made.iter().map(|pod| pod["metadata"]["name"].as_str().unwrap_or_default());
    names.map(|name| format!("/api/v1/namespaces/n/pods/{name}")).collect()
}

async fn is_finished(api: &Scripted, kind: &str) -> Value {
    api.until(kind, |api| api.get(JOB).filter(|job| condition(job, kind) == "True")).await["status"].clone()
}

#[tokio::test]
async fn job_runs_to_its_end() {
    let world = world();
    let api = &world.api;
    api.put(JOB, job(2, &json!({})));
    let paths = so_many_pods(api, 2).await;
    let pod = api.get(&paths[0]).expect("it is there");
    assert_eq!(pod["metadata"]["finalizers"], json!([TRACKING]));
    assert_eq!(pod["metadata"]["ownerReferences"][0]["uid"], world.uid(JOB));
    for path in &paths {
        api.merge(path, &json!({"status": {"phase": "Succeeded"}}));
    }
    let status = is_finished(api, "Complete").await;
    assert_eq!((&status["succeeded"], &status["uncountedTerminatedPods"]), (&json!(2), &json!({})));
    assert!(!status["completionTime"].is_null());
    let held = pods(api).into_iter().filter(|pod| pod["metadata"]["finalizers"] == json!([TRACKING])).count();
    assert_eq!((held, pods(api).len()), (0, 2), "they are kept, and held by nothing");
    let told = |api: &Scripted| {
        let events = api.requests(&Method::POST, "/events");
        let count = |reason: &str| events.iter().filter(|event| event.body["reason"] == reason).count();
        (count("Completed") == 1).then(|| count("SuccessfulCreate"))
    };
    assert_eq!(api.until("it is told", told).await, 2);
}

#[tokio::test]
async fn job_of_many_writes_its_status_by_batches() {
    const ALL: i32 = 200;
    let world = world();
    let api = &world.api;
    api.put(JOB, job(ALL, &json!({"parallelism": 50, "completionMode": "Indexed"})));
    let path =
        |pod: &Value| format!("/api/v1/namespaces/n/pods/{}", pod["metadata"]["name"].as_str().unwrap_or_default());
    let mut done = 0;
    while done < ALL {
        let running =
            |api: &Scripted| Some(pods(api)).map(|pods| pods.into_iter().filter(|pod| pod["status"].is_null()));
        let running = |api: &Scripted| running(api).map(Iterator::collect::<Vec<_>>).filter(|pods| !pods.is_empty());
        for pod in api.until("pods are at work", running).await {
            api.merge(&path(&pod), &json!({"status": {"phase": "Succeeded"}}));
            done += 1;
        }
    }
    let status = is_finished(api, "Complete").await;
    assert_eq!((&status["succeeded"], &status["completedIndexes"]), (&json!(ALL), &json!(format!("0-{}", ALL - 1))));
    let written = api.requests(&Method::PATCH, "/jobs/j/status").len();
    assert!(written < 60, "{written} statuses for {ALL} pods");
    let made: std::collections::BTreeSet<_> = pods(api).iter().map(|pod| pod["spec"]["hostname"].to_string()).collect();
    assert_eq!((made.len(), pods(api).len()), (200, 200), "each once");
}

#[tokio::test]
async fn job_makes_no_surplus_of_creations_without_an_answer() {
    for mode in ["NonIndexed", "Indexed"] {
        let world = world();
        let api = &world.api;
        api.hold("pods");
        api.next(Method::POST, "/pods", Answer::DoneButUnknown);
        api.next(Method::POST, "/pods", Answer::LostButUnknown);
        api.next(Method::POST, "/pods", Answer::LostButUnknown);
        api.put(JOB, job(1, &json!({"completionMode": mode})));
        let asked = |api: &Scripted| api.requests(&Method::POST, "/namespaces/n/pods");
        let asked = api.until("it is asked for again", |api| Some(asked(api)).filter(|asked| asked.len() >= 4)).await;
        let names: std::collections::BTreeSet<_> =
            asked.iter().map(|seen| seen.body["metadata"]["name"].to_string()).collect();
        assert_eq!(names.len(), 1, "always by the same name: {names:?}");
        api.release("pods");
        api.until("it is counted", |api| (api.get(JOB)?["status"]["active"] == 1).then_some(())).await;
        world.all_collected("s").await;
        assert_eq!((pods(api).len(), api.requests(&Method::DELETE, "/pods").len()), (1, 0), "{mode}");
    }
}

#[tokio::test]
async fn job_counts_once_whatever_is_answered() {
    let world = world();
    let api = &world.api;
    api.put(JOB, job(3, &json!({})));
    let paths = so_many_pods(api, 3).await;
    api.until("they are told of", |api| (api.get(JOB)?["status"]["active"] == 3).then_some(())).await;
    // Neither of what is written next is known to have been done, though some of it is; and watches lag.
    api.hold("pods");
    api.hold("jobs");
    for answer in [Answer::DoneButUnknown, Answer::Refused(409, "Conflict"), Answer::LostButUnknown] {
        api.next(Method::PATCH, "/jobs/j/status", answer);
        api.next(Method::PATCH, "/namespaces/n/pods/", answer);
    }
    for path in &paths {
        api.merge(path, &json!({"status": {"phase": "Succeeded"}}));
    }
    api.release("pods");
    api.until("it is tried", |api| (api.requests(&Method::PATCH, "/jobs/j/status").len() > 2).then_some(())).await;
    api.release("jobs");
    let status = is_finished(api, "Complete").await;
    assert_eq!((&status["succeeded"], &status["failed"]), (&json!(3), &Value::Null));
    assert_eq!(pods(api).len(), 3, "none is made for what is counted");
    assert!(api.is_done());
}

#[tokio::test]
async fn job_that_is_gone_or_done_holds_no_pod() {
    let world = world();
    let api = &world.api;
    api.put(JOB, job(2, &json!({})));
    so_many_pods(api, 2).await;
    api.remove(JOB);
    api.until("its pods go with it", |api| pods(api).is_empty().then_some(())).await;
    let free = |api: &Scripted, path: &str| {
        api.get(path)?["metadata"]["finalizers"].as_array().is_none_or(Vec::is_empty).then_some(())
    };
    // One that was left behind, as `--cascade=orphan` does.
    let path = "/api/v1/namespaces/n/pods/left";
    api.put(path, json!({"metadata": {"finalizers": [TRACKING]}, "spec": {"containers": []}}));
    api.until("it is held by nothing", |api| free(api, path)).await;
    // One of a Job that has finished, which somebody has given the finalizer again.
    let mut done = job(1, &json!({}));
    done["status"] =
        json!({"conditions": [{"type": "Complete", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]});
    done["metadata"] = json!({"uid": "done"});
    api.put("/apis/batch/v1/namespaces/n/jobs/done", done);
    let mut late =
        owned(&json!({"apiVersion": "batch/v1", "kind": "Job", "name": "done", "uid": "done", "controller": true}));
    late["metadata"]["finalizers"] = json!([TRACKING]);
    // That of another controller is left alone.
    let mut other =
        owned(&json!({"apiVersion": "example.com/v1", "kind": "Work", "name": "w", "uid": "w", "controller": true}));
    other["metadata"]["finalizers"] = json!([TRACKING]);
    api.put("/api/v1/namespaces/n/pods/other", other);
    api.put("/api/v1/namespaces/n/pods/late", late);
    api.until("it is held by nothing", |api| free(api, "/api/v1/namespaces/n/pods/late")).await;
    assert!(free(api, "/api/v1/namespaces/n/pods/other").is_none());
}

#[tokio::test]
async fn job_takes_over_a_pod_with_owner_and_finalizer_at_once() {
    let world = world();
    let api = &world.api;
    let mut orphan = ready_pod("j", "one", "10.0.0.1");
    orphan["metadata"]["finalizers"] = json!(["example.com/own"]);
    api.put("/api/v1/namespaces/n/pods/orphan", orphan);
    // Somebody else is faster, once.
    api.next(Method::PATCH, "/pods/orphan", Answer::Refused(409, "Conflict"));
    api.put(JOB, job(1, &json!({})));
    let path = "/api/v1/namespaces/n/pods/orphan";
    api.until("it is counted", |api| (api.get(JOB)?["status"]["ready"] == 1).then_some(())).await;
    let pod = api.get(path).expect("it is there");
    assert_eq!(pod["metadata"]["finalizers"], json!(["example.com/own", TRACKING]));
    assert_eq!(pods(api).len(), 1, "no other is made");
    // It no longer matches: it is let go, and another is made.
    api.merge(path, &json!({"metadata": {"labels": {"app": "k"}}}));
    so_many_pods(api, 2).await;
    let pod = api.get(path).expect("it is there");
    assert_eq!(
        (&pod["metadata"]["finalizers"], &pod["metadata"]["ownerReferences"]),
        (&json!(["example.com/own"]), &json!([]))
    );
}

#[tokio::test]
async fn job_that_is_suspended_gives_up_its_pods_uncounted() {
    let world = world();
    let api = &world.api;
    api.put(JOB, job(2, &json!({})));
    let paths = so_many_pods(api, 2).await;
    api.next(Method::DELETE, "/pods/", Answer::LostButUnknown);
    api.merge(JOB, &json!({"spec": {"suspend": true}, "metadata": {"generation": 2}}));
    api.until("they go", |api| pods(api).is_empty().then_some(())).await;
    let job = api.until("it is told", |api| api.get(JOB).filter(|job| condition(job, "Suspended") == "True")).await;
    assert_eq!((&job["status"]["failed"], &job["status"]["startTime"]), (&Value::Null, &Value::Null));
    api.merge(JOB, &json!({"spec": {"suspend": false}, "metadata": {"generation": 3}}));
    let again = so_many_pods(api, 2).await;
    assert!(again.iter().all(|path| !paths.contains(path)));
    api.until("it is told", |api| api.get(JOB).filter(|job| condition(job, "Suspended") == "False")).await;
}

#[tokio::test]
async fn job_of_another_manager_is_left_alone() {
    let world = world();
    let api = &world.api;
    api.put(JOB, job(1, &json!({"managedBy": "example.com/queue"})));
    let own = "/apis/batch/v1/namespaces/n/jobs/own";
    let mut managed =
        job(1, &json!({"managedBy": "kubernetes.io/job-controller", "selector": {"matchLabels": {"app": "own"}}}));
    managed["spec"]["template"] = pod_template("own");
    api.put(own, managed);
    api.until("the other runs", |api| (api.get(own)?["status"]["active"] == 1).then_some(())).await;
    assert_eq!(pods(api).len(), 1);
    assert!(api.get(JOB).expect("it is there")["status"].is_null());
}

#[tokio::test]
async fn job_that_has_finished_goes_when_its_time_is_over() {
    let world = world();
    let api = &world.api;
    let finished = |ttl: Value| {
        let mut job = job(1, &json!({"ttlSecondsAfterFinished": ttl}));
        job["status"] = json!({"conditions": [
            {"type": "Failed", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]});
        job
    };
    let stays = "/apis/batch/v1/namespaces/n/jobs/stays";
    api.put(stays, finished(Value::Null));
    api.put(JOB, finished(json!(10)));
    api.until("it goes", |api| api.get(JOB).is_none().then_some(())).await;
    let asked = api.requests(&Method::DELETE, "/jobs/j");
    assert_eq!(asked[0].body["propagationPolicy"], "Foreground");
    assert!(asked[0].body["preconditions"]["uid"].is_string());
    assert!(api.get(stays).is_some());
}

#[tokio::test]
async fn cron_job_starts_each_moment_once_and_follows_it() {
    let world = world();
    let api = &world.api;
    // Nobody knows whether the Job was made: it is found under its name. And the status is another's by then.
    api.next(Method::POST, "/jobs", Answer::DoneButUnknown);
    api.next(Method::PATCH, "/cronjobs/c/status", Answer::Refused(409, "Conflict"));
    let path = "/apis/batch/v1/namespaces/n/cronjobs/c";
    let template = job(1, &json!({"selector": null}));
    api.put(
        path,
        json!({"metadata": {"creationTimestamp": "2020-06-01T00:00:00Z"}, "spec": {
            "schedule": "0 0 1 1 *", "concurrencyPolicy": "Forbid", "successfulJobsHistoryLimit": 0, "jobTemplate": template}}),
    );
    let status = |api: &Scripted, test: &dyn Fn(&Value) -> bool| api.get(path).filter(|cron| test(&cron["status"]));
    let cron = api.until("it is started", |api| status(api, &|status| status["active"].is_array())).await;
    let jobs = api.list("/apis/batch/v1/namespaces/n/jobs");
    assert_eq!((jobs.len(), api.is_done()), (1, true));
    let made = &jobs[0]["metadata"];
    let active = &cron["status"]["active"][0];
    assert_eq!((&active["uid"], &active["kind"], &active["name"]), (&made["uid"], &json!("Job"), &made["name"]));
    assert_eq!(
        made["annotations"]["batch.kubernetes.io/cronjob-scheduled-timestamp"],
        cron["status"]["lastScheduleTime"]
    );
    // It is done: the status says so, and the history keeps none.
    let end = json!({"status": {"completionTime": "2026-01-01T00:05:00Z", "conditions": [
        {"type": "Complete", "status": "True", "lastTransitionTime": "2026-01-01T00:05:00Z"}]}});
    let job = format!("/apis/batch/v1/namespaces/n/jobs/{}", made["name"].as_str().unwrap_or_default());
    api.merge(&job, &end);
    let cron = api.until("it is seen", |api| status(api, &|status| status["active"].is_null())).await;
    assert_eq!(cron["status"]["lastSuccessfulTime"], "2026-01-01T00:05:00Z");
    api.until("it goes", |api| api.get(&job).is_none().then_some(())).await;
    assert_eq!(api.requests(&Method::DELETE, "/jobs/")[0].body["propagationPolicy"], "Background");
    world.all_collected("s").await;
    assert_eq!(api.list("/apis/batch/v1/namespaces/n/jobs").len(), 0, "the moment is not started again");
}

#[tokio::test]
async fn endpoints_without_an_answer_make_no_second_slice_and_a_late_cache_is_not_waited_for_for_ever() {
    let world = world();
    let api = &world.api;
    api.put("/api/v1/nodes/one", node("True"));
    api.hold("endpointslices");
    api.hold("endpoints");
    api.next(Method::POST, "/endpointslices", Answer::DoneButUnknown);
    api.next(Method::POST, "/endpointslices", Answer::LostButUnknown);
    api.next(Method::POST, "/endpointslices", Answer::LostButUnknown);
    let service = json!({"spec": {"selector": {"app": "a"}, "clusterIP": "10.96.0.2", "ports": [{"port": 80}]}});
    api.put("/api/v1/namespaces/n/services/s", service);
    let posts = |api: &Scripted, plural: &str| {
        let all = api.requests(&Method::POST, "/namespaces/n/").into_iter();
        all.filter(|seen| seen.path.ends_with(plural)).collect::<Vec<_>>()
    };
    let slices = "/apis/discovery.k8s.io/v1/namespaces/n/endpointslices";
    let asked = |api: &Scripted| Some(posts(api, "/endpointslices")).filter(|asked| asked.len() >= 4);
    let asked = api.until("the slice is asked for once more", asked).await;
    let names: std::collections::BTreeSet<_> =
        asked.iter().map(|seen| seen.body["metadata"]["name"].to_string()).collect();
    assert_eq!(names.len(), 1, "always by the same name: {names:?}");
    api.release("endpointslices");
    // The Endpoints object goes before the watch shows it, which hears of neither.
    let endpoints = "/api/v1/namespaces/n/endpoints/s";
    api.until("endpoints are written", |api| api.get(endpoints).map(drop)).await;
    api.remove(endpoints);
    api.put("/api/v1/namespaces/n/pods/p", ready_pod("a", "one", "10.0.0.1"));
    let shown = |api: &Scripted| {
        let slices = api.list(slices);
        let addresses = slices.iter().flat_map(|slice| slice["endpoints"].as_array().into_iter().flatten());
        (addresses.count() == 1).then_some(slices.len())
    };
    api.until("the pod is an endpoint", shown).await;
    api.until("endpoints are written again", |api| api.get(endpoints).map(drop)).await;
}

#[tokio::test]
async fn node_with_a_taint_without_a_time_keeps_no_pod_longer_than_it_tolerates() {
    let world = world();
    let mut tainted = node("True");
    tainted["spec"]["taints"] = json!([{"key": "mine", "effect": "NoExecute"}]);
    world.api.put("/api/v1/nodes/one", tainted);
    let mut pod = ready_pod("a", "one", "10.0.0.1");
    pod["spec"]["tolerations"] = json!([{"key": "mine", "operator": "Exists", "tolerationSeconds": 1}]);
    world.api.put("/api/v1/namespaces/n/pods/p", pod);
    let asked = |api: &Scripted| (!api.requests(&Method::DELETE, "/pods/p").is_empty()).then_some(());
    world.api.until("it has to leave", asked).await;
}

#[tokio::test]
async fn garbage_kinds_that_discovery_fails_to_tell_of_stay_watched_and_are_asked_for_again() {
    let api = Scripted::new();
    let refused = Answer::Refused(500, "InternalError");
    // Discovery, and who looks for the definitions of Gateways.
    api.next(Method::GET, "/apis/apiextensions.k8s.io/v1", refused);
    api.next(Method::GET, "/apis/apiextensions.k8s.io/v1", refused);
    let world = start(&api, 600_000);
    let group = "/apis/scheduling.k8s.io/v1";
    let classes = format!("{group}/priorityclasses");
    let get = |path: &str| api.requests(&Method::GET, path).into_iter().filter(|seen| seen.path == path).count();
    api.until("they are watched", |_| (get(&classes) > 0).then_some(())).await;
    // One group did not answer, so all are asked again; now it is this one that does not.
    api.next(Method::GET, group, refused);
    api.until("discovery fails", |api| api.is_done().then_some(())).await;
    let before = get(group);
    api.until("it is asked again", |_| (get(group) > before).then_some(())).await;
    let victim = format!("{classes}/victim");
    api.put(&victim, owned(&json!({"kind": "Namespace", "name": "none", "uid": "none"})));
    api.until("what has no owner goes", |api| api.get(&victim).is_none().then_some(())).await;
    world.all_collected("s").await;
    assert_eq!(get(&classes), 1, "it was watched all the time");
}

/// As by API servers that know of no watch that begins with all that there is.
#[tokio::test]
async fn garbage_is_collected_where_such_a_watch_is_refused() {
    let api = Scripted::new();
    let classes = "/apis/scheduling.k8s.io/v1/priorityclasses";
    let victim = format!("{classes}/victim");
    api.put(&victim, owned(&json!({"kind": "Namespace", "name": "none", "uid": "none"})));
    api.next(Method::GET, classes, Answer::Refused(400, "BadRequest"));
    let world = start(&api, 600_000);
    api.until("what has no owner goes", |api| api.get(&victim).is_none().then_some(())).await;
    world.all_collected("s").await;
    let asked: Vec<String> = api.requests(&Method::GET, classes).into_iter().map(|seen| seen.query).collect();
    assert!(asked[0].contains("sendInitialEvents=true") && asked[1].contains("limit="), "{asked:?}");
}

#[tokio::test]
async fn endpoints_leave_the_slices_of_others_alone_and_follow_nodes() {
    let world = world();
    let api = &world.api;
    api.put("/api/v1/nodes/one", node("True"));
    let service = "/api/v1/namespaces/n/services/s";
    api.put(service, json!({"spec": {"selector": {"app": "a"}, "clusterIP": "10.96.0.2", "ports": [{"port": 80}]}}));
    let labels = json!({"kubernetes.io/service-name": "s", "endpointslice.kubernetes.io/managed-by": "somebody"});
    let mut foreign = owned(&json!({"kind": "Service", "name": "s", "uid": world.uid(service), "controller": true}));
    foreign["metadata"]["labels"] = labels;
    foreign["addressType"] = json!("IPv4");
    foreign["endpoints"] = json!([{"addresses": ["192.0.2.1"]}]);
    let slices = "/apis/discovery.k8s.io/v1/namespaces/n/endpointslices";
    api.put(&format!("{slices}/foreign"), foreign);
    let before = api.get(&format!("{slices}/foreign"));
    // The answer to the first slice is lost; there must not be two.
    api.next(Method::POST, "/endpointslices", Answer::DoneButUnknown);
    api.put("/api/v1/namespaces/n/pods/p", ready_pod("a", "one", "10.0.0.1"));
    let endpoint = |api: &Scripted| {
        let mut ours = api.list(slices);
        ours.retain(|slice| slice["metadata"]["name"] != "foreign");
        let endpoints: Vec<Value> =
            ours.iter().flat_map(|slice| slice["endpoints"].as_array().cloned().unwrap_or_default()).collect();
        (endpoints.len() == 1 && endpoints[0]["addresses"][0] == "10.0.0.1").then(|| endpoints[0].clone())
    };
    let first = api.until("the pod is an endpoint", endpoint).await;
    assert_eq!(first["zone"], Value::Null);
    api.merge("/api/v1/nodes/one", &json!({"metadata": {"labels": {"topology.kubernetes.io/zone": "west"}}}));
    api.until("the zone is heard of", |api| endpoint(api).filter(|endpoint| endpoint["zone"] == "west")).await;
    api.merge("/api/v1/namespaces/n/pods/p", &json!({"metadata": {"deletionTimestamp": "2026-01-01T00:10:00Z"}}));
    let ended = api.until("it ends", |api| endpoint(api).filter(|e| e["conditions"]["terminating"] == true)).await;
    assert_eq!(ended["conditions"], json!({"ready": false, "serving": true, "terminating": true}));
    assert_eq!(api.get(&format!("{slices}/foreign")), before);
}

#[tokio::test]
async fn mirroring_shows_endpoints_that_somebody_made_by_hand() {
    let world = world();
    let api = &world.api;
    let service = "/api/v1/namespaces/n/services/s";
    api.put(service, json!({"spec": {"clusterIP": "10.96.0.2", "ports": [{"port": 80}]}}));
    let endpoints = "/api/v1/namespaces/n/endpoints/s";
    let subset = |ips: &[&str]| {
        let addresses: Vec<Value> = ips.iter().map(|ip| json!({"ip": ip})).collect();
        json!([{"addresses": addresses, "ports": [{"port": 8080, "protocol": "TCP"}]}])
    };
    let slices = "/apis/discovery.k8s.io/v1/namespaces/n/endpointslices";
    // The answer to the first slice is lost; there must not be two.
    api.next(Method::POST, "/endpointslices", Answer::DoneButUnknown);
    api.put(endpoints, json!({"subsets": subset(&["192.0.2.1", "nowhere"])}));
    let shown = |api: &Scripted, ips: &[&str]| {
        let all: Vec<Value> =
            api.list(slices).iter().flat_map(|it| it["endpoints"].as_array().cloned().unwrap()).collect();
        let found: Vec<_> = all.iter().map(|it| it["addresses"][0].as_str().unwrap().to_owned()).collect();
        (found == ips).then_some(())
    };
    api.until("they are shown", |api| shown(api, &["192.0.2.1"])).await;
    assert_eq!(api.list(slices)[0]["metadata"]["labels"]["kubernetes.io/service-name"], "s");
    let told = |_: &Scripted| world.events("InvalidIPAddress").pop();
    let told = api.until("what is no address is told of", told).await;
    assert!(told.ends_with("Skipped 1 invalid IP addresses when mirroring to EndpointSlices"), "{told}");
    api.merge(endpoints, &json!({"subsets": subset(&["192.0.2.2", "192.0.2.3"])}));
    api.until("they follow", |api| shown(api, &["192.0.2.2", "192.0.2.3"])).await;
    // With a selector the Service's endpoints are its pods.
    api.merge(service, &json!({"spec": {"selector": {"app": "a"}}}));
    let managers = |api: &Scripted| {
        let managers: Vec<_> = api
            .list(slices)
            .iter()
            .map(|it| it["metadata"]["labels"]["endpointslice.kubernetes.io/managed-by"].clone())
            .collect();
        (managers == ["endpointslice-controller.k8s.io"]).then_some(())
    };
    api.until("they are those of pods", managers).await;
    api.merge(service, &json!({"spec": {"selector": null}}));
    api.merge(endpoints, &json!({"subsets": subset(&["192.0.2.4"])}));
    let found = |api: &Scripted| {
        let mut ours = api.list(slices);
        ours.retain(|it| it["endpoints"][0]["addresses"][0] == "192.0.2.4");
        (ours.len() == 1).then_some(())
    };
    api.until("they are shown again", found).await;
    api.remove(endpoints);
    api.until("they are gone", |api| {
        api.list(slices).iter().all(|it| it["endpoints"][0]["addresses"].is_null()).then_some(())
    })
    .await;
}

#[tokio::test]
async fn disruption_says_how_many_may_go_and_waits_for_those_who_do() {
    let world = world();
    let api = &world.api;
    let budget = "/apis/policy/v1/namespaces/n/poddisruptionbudgets/b";
    let selector = json!({"matchLabels": {"app": "a"}});
    api.put(budget, json!({"metadata": {"generation": 1}, "spec": {"maxUnavailable": 1, "selector": selector}}));
    let said = |api: &Scripted, counts: [i64; 4]| {
        let status = &api.get(budget)?["status"];
        let names = ["currentHealthy", "desiredHealthy", "expectedPods", "disruptionsAllowed"];
        (names.map(|name| status[name].as_i64().unwrap_or(-1)) == counts).then(|| status.clone())
    };
    api.until("nobody is there", |api| said(api, [0, 0, 0, 0])).await;
    // The number is the Deployment's, not the set's.
    let deployment = "/apis/apps/v1/namespaces/n/deployments/d";
    api.put(deployment, json!({"spec": {"paused": true, "replicas": 3, "selector": {"matchLabels": {"app": "a"}}, "template": pod_template("a")}}));
    let owner = json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "d", "uid": world.uid(deployment), "controller": true});
    let set = "/apis/apps/v1/namespaces/n/replicasets/d-1";
    let mut object = replica_set("a", 2);
    object["metadata"] = json!({"ownerReferences": [owner], "labels": {"app": "a"}});
    api.put(set, object);
    let owner = json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "d-1", "uid": world.uid(set), "controller": true});
    for name in ["p1", "p2"] {
        let mut pod = ready_pod("a", "one", "10.0.0.1");
        pod["metadata"]["ownerReferences"] = json!([owner]);
        api.put(&format!("/api/v1/namespaces/n/pods/{name}"), pod);
    }
    let status = api.until("two of three are there", |api| said(api, [2, 2, 3, 0])).await;
    assert_eq!(condition(&json!({"status": status}), "DisruptionAllowed"), "False");
    assert_eq!(status["observedGeneration"], 1);
    api.merge(deployment, &json!({"spec": {"replicas": 2}}));
    let status = api.until("two of two are there", |api| said(api, [2, 1, 2, 1])).await;
    assert_eq!(condition(&json!({"status": status}), "DisruptionAllowed"), "True");
    // An eviction was granted; its pod is not gone yet, and does not count.
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    api.merge(budget, &json!({"status": {"disruptedPods": {"p1": now}, "disruptionsAllowed": 0}}));
    api.merge("/api/v1/namespaces/n/pods/p2", &json!({"metadata": {"labels": {"x": "y"}}}));
    let status = api.until("one counts", |api| said(api, [1, 1, 2, 0])).await;
    assert_eq!(status["disruptedPods"], json!({"p1": now}));
    api.remove("/api/v1/namespaces/n/pods/p1");
    let status =
        api.until("it has gone", |api| said(api, [1, 1, 2, 0]).filter(|it| it["disruptedPods"].is_null())).await;
    assert_eq!(status["disruptionsAllowed"], 0);
}

#[tokio::test]
async fn disruption_asks_controllers_of_other_kinds_for_their_scale() {
    let api = Scripted::new();
    let widget = "/api/v1/namespaces/n/secrets/widget";
    api.put(widget, json!({"spec": {"replicas": 5}}));
    let uid = api.get(widget).expect("it is there")["metadata"]["uid"].clone();
    let budget = |name: &str| format!("/apis/policy/v1/namespaces/n/poddisruptionbudgets/{name}");
    for (app, owner) in [
        ("scaled", json!({"apiVersion": "v1", "kind": "Secret", "name": "widget", "uid": uid})),
        // Only called like one that is watched.
        ("unserved", json!({"apiVersion": "apps.kruise.io/v1", "kind": "StatefulSet", "name": "s", "uid": "s"})),
    ] {
        let spec = json!({"maxUnavailable": "40%", "selector": {"matchLabels": {"app": app}}});
        api.put(&budget(app), json!({ "spec": spec }));
        for index in 0..3 {
            let mut pod = ready_pod(app, "one", "10.0.0.1");
            pod["metadata"]["ownerReferences"] = json!([owner]);
            pod["metadata"]["ownerReferences"][0]["controller"] = true.into();
            api.put(&format!("/api/v1/namespaces/n/pods/{app}-{index}"), pod);
        }
    }
    let _world = start(&api, 600_000);
    let status = |api: &Scripted, app: &str| Some(api.get(&budget(app))?["status"].clone());
    api.until("three of five are there", |api| {
        let status = status(api, "scaled")?;
        let counts = ["currentHealthy", "desiredHealthy", "expectedPods", "disruptionsAllowed"];
        (counts.map(|name| status[name].as_i64()) == [3, 3, 5, 0].map(Some)).then_some(())
    })
    .await;
    api.until("who cannot be asked lets nobody go", |api| {
        let condition = status(api, "unserved")?["conditions"][0].clone();
        let why = "no matches for kind \"StatefulSet\" in version \"apps.kruise.io/v1\"";
        (condition["reason"] == "SyncFailed" && condition["message"] == why).then_some(())
    })
    .await;
}

#[tokio::test]
async fn node_that_is_silent_is_unknown_and_back_at_once_when_it_speaks() {
    let api = Scripted::new();
    api.put("/api/v1/nodes/one", node("True"));
    api.put("/api/v1/nodes/ghost", json!({"spec": {}, "status": {}}));
    api.put("/api/v1/namespaces/n/pods/p", ready_pod("a", "one", "10.0.0.1"));
    api.next(Method::PATCH, "/pods/p/status", Answer::Refused(500, "InternalError"));
    let _world = start(&api, 300);
    let taints = |api: &Scripted, node: &str| {
        let node = api.get(&format!("/api/v1/nodes/{node}"))?;
        let taints = node["spec"]["taints"].as_array().cloned().unwrap_or_default();
        Some(taints.iter().map(|taint| format!("{}:{}", taint["key"], taint["effect"])).collect::<Vec<_>>().join(" "))
    };
    let unreachable = "\"node.kubernetes.io/unreachable\":\"NoSchedule\"";
    // The only node: rather we are cut off than it, so nobody is driven out.
    api.until("it is unreachable", |api| (taints(api, "one")? == unreachable).then_some(())).await;
    let pod = "/api/v1/namespaces/n/pods/p";
    api.until("its pod is not ready", |api| (condition(&api.get(pod)?, "Ready") == "False").then_some(())).await;
    api.until("who never spoke takes no pods", |api| {
        (taints(api, "ghost")? == "\"node.kubernetes.io/not-ready\":\"NoSchedule\"").then_some(())
    })
    .await;
    // The node says that the pod is ready before it says so of itself: that is left alone.
    api.merge(pod, &json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}}));
    api.merge("/api/v1/nodes/one", &json!({"metadata": {"labels": {"some": "change"}}}));
    let spoken = std::time::Instant::now();
    let ready = json!([{"type": "Ready", "status": "True", "lastHeartbeatTime": "2026-01-01T00:00:09Z"}]);
    api.merge("/api/v1/nodes/one", &json!({"status": {"conditions": ready}}));
    api.until("the taint is gone", |api| (taints(api, "one")?.is_empty()).then_some(())).await;
    assert!(spoken.elapsed() < Duration::from_secs(2), "{:?}", spoken.elapsed());
    assert_eq!(condition(&api.get(pod).expect("the pod"), "Ready"), "True");
    assert_eq!(api.requests(&Method::DELETE, "/pods").len(), 0, "nobody was driven out");
}

#[tokio::test]
async fn node_that_is_not_reached_takes_no_more_pods_until_it_is() {
    let world = world();
    let api = &world.api;
    let (far, near) = ("/nodes/far/proxy/healthz", "/nodes/near/proxy/healthz");
    for path in [far, near] {
        api.always(Method::GET, path, Answer::NotReached);
    }
    for name in ["far", "near"] {
        api.put(&format!("/api/v1/nodes/{name}"), concurrency::telling());
    }
    // The kubelets of others say nothing at such a path, perhaps.
    api.put("/api/v1/nodes/other", node("True"));
    let far = "/api/v1/nodes/far";
    let said = |wanted: &'static str| {
        move |api: &Scripted| (condition(&api.get(far)?, "NetworkUnavailable") == wanted).then_some(())
    };
    let taints = |api: &Scripted| api.get(far).unwrap()["spec"]["taints"].as_array().map_or(0, Vec::len);
    api.until("no node is reached: it is rather us", said("Unknown")).await;
    assert_eq!(taints(api), 0);
    api.relent();
    api.stream(&format!("/api/v1{near}"));
    api.always(Method::GET, "/nodes/far/proxy/healthz", Answer::NotReached);
    api.until("it is not reached, and another is", said("True")).await;
    api.until("it takes no pods", |api| (taints(api) == 1).then_some(())).await;
    let told = |_: &Scripted| world.events("NodeNotReached").pop();
    let told = api.until("it is told", told).await;
    assert!(told.contains("at 192.0.2.1:10250: connection timed out. ") && told.contains("--address"), "{told}");
    api.relent();
    api.stream("/api/v1/nodes/far/proxy/healthz");
    api.until("it is reached", said("False")).await;
    api.until("it takes pods", |api| (taints(api) == 0).then_some(())).await;
    assert!(api.requests(&Method::GET, "/nodes/other/proxy").is_empty());
}

#[tokio::test]
async fn node_that_fails_has_all_its_pods_marked_at_the_same_time() {
    let api = Scripted::new();
    api.put("/api/v1/nodes/one", node("True"));
    for index in 0..20 {
        api.put(&format!("/api/v1/namespaces/n/pods/p{index}"), ready_pod("a", "one", "10.0.0.1"));
    }
    // The first answer never comes: the others do not wait for it.
    api.next(Method::PATCH, "/pods/p", Answer::Silence);
    let _world = start(&api, 600_000);
    api.merge("/api/v1/nodes/one", &json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}}));
    let marked = |api: &Scripted| {
        let pods = api.list("/api/v1/namespaces/n/pods");
        (pods.iter().filter(|pod| condition(pod, "Ready") == "False").count() == 19).then_some(())
    };
    api.until("all but the one without an answer are marked", marked).await;
}

#[tokio::test]
async fn namespace_ends_after_its_content_although_requests_fail() {
    let api = Scripted::new();
    let spec = json!({"finalizers": ["kubernetes"]});
    api.put("/api/v1/namespaces/n", json!({"spec": spec}));
    let world = start(&api, 600_000);
    let content = "/api/v1/namespaces/n/configmaps/kube-root-ca.crt";
    api.until("it is furnished", |api| api.get(content).map(drop)).await;
    api.next(Method::DELETE, "/namespaces/n/secrets", Answer::Refused(500, "InternalError"));
    api.put("/api/v1/namespaces/n/secrets/s", json!({}));
    api.next(Method::PUT, "/namespaces/n/finalize", Answer::LostButUnknown);
    let going = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:10:00Z"}, "status": {"phase": "Terminating"}});
    api.merge("/api/v1/namespaces/n", &going);
    api.until("it is gone", |api| api.get("/api/v1/namespaces/n").is_none().then_some(())).await;
    assert!(api.get("/api/v1/namespaces/n/secrets/s").is_none() && world.api.is_done());
}

#[tokio::test]
async fn namespace_loses_a_collection_that_cannot_be_read() {
    let api = Scripted::new();
    let namespace = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:10:00Z"},
        "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Terminating"}});
    api.put("/api/v1/namespaces/n", namespace);
    api.put("/api/v1/namespaces/n/secrets/s", json!({}));
    // As long as there is one that cannot be opened.
    api.always(Method::GET, "/namespaces/n/secrets", Answer::Refused(500, "InternalError"));
    api.meanwhile(Method::DELETE, "/namespaces/n/secrets", Scripted::relent);
    let _world = start(&api, 600_000);
    api.until("it is gone", |api| api.get("/api/v1/namespaces/n").is_none().then_some(())).await;
    assert!(api.get("/api/v1/namespaces/n/secrets/s").is_none());
}

#[tokio::test]
async fn namespace_loses_its_content_although_a_group_does_not_answer() {
    let api = Scripted::new();
    api.always(Method::GET, "/apis/scheduling.k8s.io/v1", Answer::Refused(503, "ServiceUnavailable"));
    let going = "2026-01-01T00:10:00Z";
    let namespace = json!({"metadata": {"deletionTimestamp": going}, "spec": {"finalizers": ["kubernetes"]},
        "status": {"phase": "Terminating"}});
    api.put("/api/v1/namespaces/n", namespace);
    for path in ["pods/p", "configmaps/c"] {
        api.put(&format!("/api/v1/namespaces/n/{path}"), json!({"spec": {"containers": []}}));
    }
    let _world = start(&api, 600_000);
    let content = "/api/v1/namespaces/n/configmaps/c";
    api.until("what is known goes", |api| api.get(content).is_none().then_some(())).await;
    let failed = |api: &Scripted| {
        let namespace = api.get("/api/v1/namespaces/n").expect("it waits for the group");
        (condition(&namespace, "NamespaceDeletionDiscoveryFailure") == "True").then_some(namespace)
    };
    let namespace = api.until("it says what it waits for", failed).await;
    assert_eq!(condition(&namespace, "NamespaceContentRemaining"), "False");
    assert_eq!(namespace["spec"]["finalizers"], json!(["kubernetes"]));
}

#[tokio::test]
async fn namespace_asks_its_pods_to_go_once_however_many_they_are() {
    const PODS: usize = 600;
    let api = Scripted::new();
    api.put("/api/v1/nodes/one", node("True"));
    let pods = "/api/v1/namespaces/n/pods";
    let pod = |index: usize| format!("{pods}/p{index:03}");
    for index in 0..PODS {
        api.put(&pod(index), json!({"spec": {"nodeName": "one", "containers": []}}));
    }
    let namespace = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:10:00Z"},
        "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Terminating"}});
    api.put("/api/v1/namespaces/n", namespace);
    let _world = start(&api, 600_000);
    let left = |api: &Scripted, count: usize| {
        let namespace = api.get("/api/v1/namespaces/n")?;
        let mut conditions = namespace["status"]["conditions"].as_array()?.iter();
        let remaining = conditions.find(|condition| condition["type"] == "NamespaceContentRemaining")?;
        remaining["message"].as_str()?.ends_with(&format!(" pods. has {count} resource instances")).then_some(())
    };
    api.until("all are asked", |api| left(api, PODS)).await;
    for gone in 1..4 {
        api.remove(&pod(gone));
        api.until("it is looked again", |api| left(api, PODS - gone)).await;
    }
    let asked = api.requests(&Method::DELETE, pods).into_iter().filter(|seen| seen.path == pods).count();
    assert_eq!(asked, 1, "each deletion is admitted for every pod");
    // What came meanwhile is found behind those that go already.
    api.put(&format!("{pods}/z"), json!({"spec": {"nodeName": "one", "containers": []}}));
    api.remove(&pod(4));
    let late =
        |api: &Scripted| (!api.get(&format!("{pods}/z"))?["metadata"]["deletionTimestamp"].is_null()).then_some(());
    api.until("it is asked, too", late).await;
}

#[tokio::test]
async fn node_that_was_silent_before_anybody_led_may_speak_before_its_pods_go() {
    let api = Scripted::new();
    let taints = |key: &str| json!([{"key": key, "effect": "NoExecute", "timeAdded": "2020-01-01T00:00:00Z"}]);
    let nodes = [("silent", "Unknown", "node.kubernetes.io/unreachable"), ("other", "True", "mine")];
    for (name, ready, taint) in nodes {
        let mut node = node(ready);
        node["spec"]["taints"] = taints(taint);
        api.put(&format!("/api/v1/nodes/{name}"), node);
        api.put(&format!("/api/v1/namespaces/n/pods/on-{name}"), ready_pod("a", name, "10.0.0.1"));
    }
    // Of few nodes that fail, pods are driven out.
    for name in ["well", "fine"] {
        api.put(&format!("/api/v1/nodes/{name}"), node("True"));
    }
    let world = start(&api, 600_000);
    let asked = |name: &str| api.requests(&Method::DELETE, &format!("/pods/{name}")).len();
    api.until("who does not tolerate the other has to leave", |_| (asked("on-other") > 0).then_some(())).await;
    world.all_collected("s").await;
    assert_eq!(asked("on-silent"), 0, "its node has had no time to find us");
}

#[tokio::test]
async fn endpoints_of_a_service_that_is_gone_are_deleted_and_no_others_of_its_name() {
    let world = world();
    let api = &world.api;
    let service = "/api/v1/namespaces/n/services/s";
    let endpoints = "/api/v1/namespaces/n/endpoints/s";
    api.put(service, json!({"spec": {"selector": {"app": "a"}, "ports": [{"port": 80}]}}));
    let made = api.until("its endpoints are made", |api| api.get(endpoints)).await;
    world.all_collected("s").await;
    api.remove(service);
    let deleted = api.until("they are deleted", |api| api.requests(&Method::DELETE, endpoints).pop()).await;
    assert_eq!(deleted.body["preconditions"]["uid"], made["metadata"]["uid"]);
}

#[tokio::test]
async fn endpoints_of_a_service_that_went_while_nobody_led_are_deleted() {
    let api = Scripted::new();
    let endpoints = |name: &str| format!("/api/v1/namespaces/n/endpoints/{name}");
    let managed_by = |manager: &str| json!({"metadata": {"labels": {"endpoints.kubernetes.io/managed-by": manager}}});
    api.put(&endpoints("left"), managed_by("endpoint-controller"));
    api.put(&endpoints("other"), managed_by("somebody"));
    api.put(&endpoints("by-hand"), json!({}));
    let world = start(&api, 600_000);
    api.until("what is left goes", |api| api.get(&endpoints("left")).is_none().then_some(())).await;
    world.all_collected("s").await;
    assert!(["other", "by-hand"].iter().all(|name| api.get(&endpoints(name)).is_some()));
}

#[tokio::test]
async fn service_account_and_certificates_come_although_refused_at_first() {
    let world = world();
    world.api.next(Method::POST, "/serviceaccounts", Answer::Refused(500, "InternalError"));
    world.api.next(Method::POST, "/configmaps", Answer::DoneButUnknown);
    world.api.put("/api/v1/namespaces/n", json!({}));
    let account = "/api/v1/namespaces/n/serviceaccounts/default";
    world.api.until("the account", |api| api.get(account).map(drop)).await;
    let ca = "/api/v1/namespaces/n/configmaps/kube-root-ca.crt";
    world.api.merge(ca, &json!({"data": {"ca.crt": "forged"}}));
    world.api.until("it is repaired", |api| (api.get(ca)?["data"] == json!({"ca.crt": "ca"})).then_some(())).await;
}

#[tokio::test]
async fn pod_gc_removes_what_ends_without_a_node() {
    let world = world();
    let path = "/api/v1/namespaces/n/pods/p";
    world.api.next(Method::DELETE, "/pods/p", Answer::LostButUnknown);
    let spec = json!({"containers": []});
    world.api.put(path, json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}, "spec": spec.clone()}));
    world.api.until("it is gone", |api| api.get(path).is_none().then_some(())).await;
    // One that is held has failed: a Job counts it, and lets it go then.
    let held = "/api/v1/namespaces/n/pods/held";
    let metadata = json!({"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["a.b/c"]});
    world.api.put(held, json!({"metadata": metadata, "spec": spec, "status": {"phase": "Pending"}}));
    world.api.until("it has failed", |api| (api.get(held)?["status"]["phase"] == "Failed").then_some(())).await;
    assert_eq!(world.api.get(held).expect("it is held")["metadata"]["finalizers"], json!(["a.b/c"]));
}

#[tokio::test]
async fn pod_gc_ends_what_a_node_out_of_service_will_not_confirm() {
    let api = Scripted::new();
    api.put("/api/v1/nodes/one", node("False"));
    api.put("/api/v1/nodes/two", node("True"));
    for (name, on) in [("ends", "one"), ("stays", "one"), ("other", "two")] {
        let mut pod = ready_pod("a", on, "10.0.0.1");
        // Or it would be driven out of a node that is not ready.
        pod["spec"]["tolerations"] = json!([{"operator": "Exists"}]);
        api.put(&format!("/api/v1/namespaces/n/pods/{name}"), pod);
    }
    let world = start(&api, 600_000);
    let ending = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}});
    for name in ["ends", "other"] {
        api.merge(&format!("/api/v1/namespaces/n/pods/{name}"), &ending);
    }
    let out = json!({"spec": {"taints": [
        {"key": "node.kubernetes.io/out-of-service", "value": "nodeshutdown", "effect": "NoSchedule"}]}});
    for name in ["one", "two"] {
        api.merge(&format!("/api/v1/nodes/{name}"), &out);
    }
    let path = "/api/v1/namespaces/n/pods/ends";
    api.until("who ends there is gone", |api| api.get(path).is_none().then_some(())).await;
    world.all_collected("s").await;
    // Of the one that is ready it is not believed.
    for name in ["stays", "other"] {
        assert!(api.get(&format!("/api/v1/namespaces/n/pods/{name}")).is_some(), "{name}");
    }
}

#[tokio::test]
async fn node_that_fails_is_tainted_whatever_one_of_its_pods_does_and_no_turn_is_lost() {
    let api = Scripted::new();
    for name in ["one", "two", "three"] {
        api.put(&format!("/api/v1/nodes/{name}"), node("True"));
    }
    for name in ["p", "q"] {
        api.put(&format!("/api/v1/namespaces/n/pods/{name}"), ready_pod("a", "one", "10.0.0.1"));
    }
    for _ in 0..20 {
        api.next(Method::PATCH, "/pods/p/status", Answer::Refused(409, "Conflict"));
    }
    api.next(Method::PATCH, "/nodes/one", Answer::Refused(409, "Conflict"));
    let _world = start(&api, 600_000);
    let failed = std::time::Instant::now();
    api.merge("/api/v1/nodes/one", &json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}}));
    let driven = |api: &Scripted| {
        let taints = api.get("/api/v1/nodes/one")?["spec"]["taints"].as_array().cloned()?;
        taints.iter().any(|taint| taint["effect"] == "NoExecute").then_some(())
    };
    api.until("its pods are driven out", driven).await;
    assert!(failed.elapsed() < Duration::from_secs(5), "the zone's next turn comes after ten: {:?}", failed.elapsed());
    let other = "/api/v1/namespaces/n/pods/q";
    api.until("the other is marked", |api| (condition(&api.get(other)?, "Ready") == "False").then_some(())).await;
}

#[tokio::test]
async fn ingress_says_where_ready_nodes_serve_it_and_others_are_left_alone() {
    let world = world();
    let api = &world.api;
    let ingresses = "/apis/networking.k8s.io/v1/namespaces/n/ingresses";
    let class = |controller: &str| json!({"spec": {"controller": controller}});
    api.put("/apis/networking.k8s.io/v1/ingressclasses/ours", class("coracle.dev/ingress"));
    api.put("/apis/networking.k8s.io/v1/ingressclasses/theirs", class("k8s.io/ingress-nginx"));
    let serves = |ready: &str, urls: &str| {
        let mut node = node(ready);
        node["metadata"]["annotations"] = json!({"coracle.dev/ingress": urls});
        node
    };
    api.put("/api/v1/nodes/one", serves("True", "http://10.0.0.1:80"));
    api.put("/api/v1/nodes/two", serves("True", "http://10.0.0.2:80,https://10.0.0.2:443"));
    for name in ["theirs", "ours"] {
        api.put(&format!("{ingresses}/{name}"), json!({"spec": {"ingressClassName": name, "rules": [{}]}}));
    }
    let addresses = |api: &Scripted| -> Option<Vec<Value>> {
        let points = api.get(&format!("{ingresses}/ours"))?["status"]["loadBalancer"]["ingress"].as_array().cloned()?;
        Some(points.into_iter().map(|point| point["ip"].clone()).collect())
    };
    let are = |wanted: &'static [&'static str]| move |api: &Scripted| (addresses(api)? == wanted).then_some(());
    api.until("both nodes are in its status", are(&["10.0.0.1", "10.0.0.2"])).await;
    let not_ready = json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}});
    api.merge("/api/v1/nodes/one", &not_ready);
    api.until("one is not any more", are(&["10.0.0.2"])).await;
    // What was there without a class of ours becomes ours with it.
    assert!(api.get(&format!("{ingresses}/theirs")).unwrap()["status"].is_null());
    api.merge(&format!("{ingresses}/theirs"), &json!({"spec": {"ingressClassName": "ours"}}));
    let is_served = |api: &Scripted| (!api.get(&format!("{ingresses}/theirs"))?["status"].is_null()).then_some(());
    api.until("it is served, too", is_served).await;
    let written = api.requests(&Method::PATCH, "/ingresses").len();
    api.merge("/api/v1/nodes/two", &json!({"status": {"images": []}}));
    world.all_collected("s").await;
    assert_eq!(api.requests(&Method::PATCH, "/ingresses").len(), written, "nothing is written twice");
}

#[tokio::test]
async fn quota_is_counted_anew_when_what_it_counts_goes_ends_or_shrinks() {
    let api = Scripted::new();
    let quota = "/api/v1/namespaces/n/resourcequotas/q";
    let container = json!({"name": "c", "resources": {"requests": {"cpu": "1"}}});
    for name in ["p1", "p2", "p3"] {
        api.put(&format!("/api/v1/namespaces/n/pods/{name}"), json!({"spec": {"containers": [container]}}));
    }
    api.put("/api/v1/namespaces/other/pods/p4", json!({"spec": {"containers": [container]}}));
    api.put(
        "/api/v1/namespaces/n/services/s",
        json!({"spec": {"type": "NodePort", "ports": [{"port": 1}, {"port": 2}]}}),
    );
    for name in ["a", "b"] {
        api.put(&format!("/api/v1/namespaces/n/configmaps/{name}"), json!({}));
    }
    let hard = json!({"pods": "9", "requests.cpu": "9", "count/pods": "9", "services.nodeports": "9", "configmaps": "9",
        "count/widgets.example.com": "9"});
    api.put(quota, json!({"spec": {"hard": hard}}));
    let world = start(&api, 600_000);
    let until_used = async |expected: Value| {
        let what = format!("so much is used: {expected}");
        let counted = |api: &Scripted| (api.get(quota)?["status"]["used"] == expected).then_some(());
        api.until(&what, counted).await;
    };
    let used = |pods: &str, all: &str, ports: &str, maps: &str| json!({"pods": pods, "requests.cpu": pods, "count/pods": all, "services.nodeports": ports, "configmaps": maps});
    until_used(used("3", "3", "2", "2")).await;
    assert_eq!(api.get(quota).expect("it is there")["status"]["hard"], hard);
    api.merge("/api/v1/namespaces/n/pods/p1", &json!({"status": {"phase": "Succeeded"}}));
    until_used(used("2", "3", "2", "2")).await;
    api.remove("/api/v1/namespaces/n/pods/p1");
    until_used(used("2", "2", "2", "2")).await;
    api.merge("/api/v1/namespaces/n/services/s", &json!({"spec": {"type": "ClusterIP"}}));
    until_used(used("2", "2", "0", "2")).await;
    api.remove("/api/v1/namespaces/n/configmaps/a");
    until_used(used("2", "2", "0", "1")).await;
    // Something is charged while it is counted: the count is made again, and knows of it.
    api.meanwhile(Method::PATCH, "/resourcequotas/q/status", |api| {
        api.put("/api/v1/namespaces/n/pods/late", json!({"spec": {"containers": [{"name": "c"}]}}));
        api.merge(
            "/api/v1/namespaces/n/resourcequotas/q",
            &json!({"status": {"used": {"pods": "3", "count/pods": "3"}}}),
        );
    });
    api.remove("/api/v1/namespaces/n/pods/p2");
    let mut expected = used("2", "2", "0", "1");
    expected["requests.cpu"] = json!("1");
    until_used(expected.clone()).await;
    // A limit that is new is counted, one that is gone is not any more.
    api.merge(quota, &json!({"spec": {"hard": {"secrets": "1", "configmaps": null}}}));
    expected["secrets"] = json!("0");
    expected.as_object_mut().map(|used| used.remove("configmaps"));
    until_used(expected).await;
    // Another namespace has none of it.
    let writes = api.requests(&Method::PATCH, "/resourcequotas/q/status").len();
    api.remove("/api/v1/namespaces/other/pods/p4");
    world.all_collected("s").await;
    assert_eq!(api.requests(&Method::PATCH, "/resourcequotas/q/status").len(), writes);
}

#[tokio::test]
async fn shutdown_does_not_wait_for_events() {
    let world = world();
    world.api.next(Method::POST, "/events", Answer::Silence);
    world.api.put("/apis/apps/v1/namespaces/n/replicasets/r", replica_set("a", 3));
    world
        .api
        .until("an event is under way", |api| (!api.requests(&Method::POST, "/events").is_empty()).then_some(()))
        .await;
    world.shutdown.cancel();
    tokio::time::timeout(Duration::from_secs(5), world.running).await.expect("it ends").expect("without a panic");
}
