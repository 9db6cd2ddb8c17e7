//! The scheduler's shell against an API that goes wrong.
//!
//! Where a story says that something does *not* happen, something else that had to happen later is waited for first.

use std::time::{Duration, Instant};

use coracle_scripted::{Answer, Scripted};
use http::Method;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::{Config, run};

fn start(api: &Scripted) -> CancellationToken {
    let shutdown = CancellationToken::new();
    tokio::spawn(run(api.client(), Config::default(), shutdown.clone()));
    shutdown
}

fn put_node(api: &Scripted, name: &str, pods: u32) {
    let node = json!({
        "metadata": {"labels": {"kubernetes.io/hostname": name}}, "spec": {},
        "status": {"allocatable": {"cpu": "8", "memory": "8Gi", "pods": pods.to_string()}, "conditions": [{"type": "Ready", "status": "True"}]},
    });
    api.put(&format!("/api/v1/nodes/{name}"), node);
}

fn path(name: &str) -> String {
    format!("/api/v1/namespaces/n/pods/{name}")
}

fn pod(label: &str, spec: Value) -> Value {
    let mut pod = json!({"metadata": {"labels": {"app": label}}, "spec": {"containers": [{"name": "c"}]}});
    for (name, value) in spec.as_object().into_iter().flatten() {
        pod["spec"][name] = value.clone();
    }
    pod
}

fn near(label: &str) -> Value {
    let term = json!({"labelSelector": {"matchLabels": {"app": label}}, "topologyKey": "kubernetes.io/hostname"});
    json!({"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}})
}

fn node_of(api: &Scripted, name: &str) -> Option<String> {
    Some(api.get(&path(name))?["spec"]["nodeName"].as_str()?.to_owned())
}

fn scheduled(api: &Scripted, name: &str) -> Value {
    let pod = api.get(&path(name)).unwrap_or_default();
    let mut conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
    conditions.find(|condition| condition["type"] == "PodScheduled").map_or(Value::Null, |it| it["status"].clone())
}

async fn refused(api: &Scripted, name: &str) {
    api.until("it is told that no node can take it", |api| (scheduled(api, name) == "False").then_some(())).await;
}

async fn bound(api: &Scripted, name: &str) -> String {
    api.until(&format!("{name} has a node"), |api| node_of(api, name)).await
}

#[tokio::test]
async fn our_own_placements_and_new_labels_wake_those_who_wait_for_them() {
    let api = Scripted::new();
    put_node(&api, "one", 10);
    start(&api);
    api.put(&path("waits"), pod("b", near("a")));
    api.put(&path("waits-more"), pod("c", near("d")));
    refused(&api, "waits").await;
    refused(&api, "waits-more").await;
    let begun = Instant::now();
    api.put(&path("company"), pod("a", json!({})));
    bound(&api, "waits").await;
    api.merge(&path("company"), &json!({"metadata": {"labels": {"app": "d"}}}));
    bound(&api, "waits-more").await;
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_pod_that_is_bound_meanwhile_never_hears_that_it_is_not() {
    let api = Scripted::new();
    start(&api);
    // Somebody binds it between the decision and the condition.
    api.meanwhile(Method::PATCH, "/pods/p/status", |api| {
        api.merge(&path("p"), &json!({"spec": {"nodeName": "elsewhere"}}))
    });
    // And here somebody only changes it: the condition comes all the same.
    api.meanwhile(Method::PATCH, "/pods/q/status", |api| {
        api.merge(&path("q"), &json!({"metadata": {"labels": {"x": "y"}}}))
    });
    api.put(&path("p"), pod("a", json!({})));
    api.until("the condition is tried", |api| {
        (!api.requests(&Method::PATCH, "/pods/p/status").is_empty()).then_some(())
    })
    .await;
    api.until("it looks again", |api| (!api.requests(&Method::GET, "/pods/p").is_empty()).then_some(())).await;
    api.put(&path("q"), pod("a", json!({})));
    refused(&api, "q").await;
    assert_eq!(scheduled(&api, "p"), Value::Null);
    assert_eq!(api.requests(&Method::PATCH, "/pods/p/status").len(), 1);
}

#[tokio::test]
async fn a_binding_without_an_answer_keeps_its_place_until_it_is_known() {
    let api = Scripted::new();
    put_node(&api, "one", 1);
    start(&api);
    // The watch lags: only the answers to bindings tell what happened.
    api.put(&path("first"), pod("a", json!({})));
    api.next(Method::POST, "/coracle/v1/bindings", Answer::DoneButUnknown);
    api.next(Method::POST, "/coracle/v1/bindings", Answer::LostButUnknown);
    api.meanwhile(Method::POST, "/coracle/v1/bindings", |api| {
        api.put(&path("second"), pod("a", json!({})));
        api.hold("pods");
    });
    refused(&api, "second").await;
    let asked = |api: &Scripted| api.requests(&Method::POST, "/coracle/v1/bindings");
    let asked = api.until("it is asked for again", |api| Some(asked(api)).filter(|asked| asked.len() >= 3)).await;
    assert!(
        asked.iter().all(|seen| seen.body["bindings"]
            .as_array()
            .is_some_and(|all| all.len() == 1 && all[0]["name"] == "first"))
    );
    api.release("pods");
    put_node(&api, "two", 1);
    assert_eq!((bound(&api, "first").await, bound(&api, "second").await), ("one".to_owned(), "two".to_owned()));
}

#[tokio::test]
async fn equal_pods_make_room_at_the_same_time_and_failures_are_tried_again() {
    let api = Scripted::new();
    put_node(&api, "one", 3);
    for index in 0..3 {
        let mut victim = pod("v", json!({"nodeName": "one", "priority": 0}));
        victim["status"] = json!({"phase": "Running"});
        api.put(&path(&format!("v{index}")), victim);
    }
    api.next(Method::DELETE, "/pods/v", Answer::Refused(403, "Forbidden"));
    start(&api);
    for index in 0..3 {
        api.put(&path(&format!("p{index}")), pod("p", json!({"priority": 10})));
    }
    // All are asked to go before any of them has gone; one cannot be made to.
    let going = |api: &Scripted| {
        let all = (0..3).map(|index| path(&format!("v{index}")));
        all.filter(|path| api.get(path).is_some_and(|pod| !pod["metadata"]["deletionTimestamp"].is_null()))
            .collect::<Vec<_>>()
    };
    let first = api.until("two go", |api| Some(going(api)).filter(|going| going.len() == 2)).await;
    assert_eq!(api.requests(&Method::DELETE, "/pods/v").len(), 3, "each pod asked another to go");
    first.iter().for_each(|path| api.remove(path));
    let last = api.until("the last one is asked again", |api| going(api).pop()).await;
    api.remove(&last);
    for index in 0..3 {
        bound(&api, &format!("p{index}")).await;
    }
}

#[tokio::test]
async fn objects_that_nobody_understands_hold_nobody_up() {
    let api = Scripted::new();
    api.put("/api/v1/nodes/odd", json!({"spec": {"taints": 7}}));
    put_node(&api, "one", 10);
    api.put(&path("odd"), json!({"spec": {"containers": "none", "priority": "high"}}));
    start(&api);
    for index in 0..8 {
        api.put(&path(&format!("odd{index}")), json!({"spec": {"containers": 3}, "status": {"phase": null}}));
    }
    let begun = Instant::now();
    api.put(&path("p"), pod("a", json!({"tolerations": null, "nodeSelector": null})));
    assert_eq!(bound(&api, "p").await, "one");
    assert!(begun.elapsed() < Duration::from_secs(3), "watches backed off: {:?}", begun.elapsed());
}

#[tokio::test]
async fn a_condition_that_was_refused_is_written_later() {
    let api = Scripted::new();
    start(&api);
    api.next(Method::PATCH, "/pods/p/status", Answer::Refused(500, "InternalError"));
    api.put(&path("p"), pod("a", json!({})));
    refused(&api, "p").await;
    assert!(api.is_done());
}

#[tokio::test]
async fn a_pod_whose_binding_is_rejected_says_so_and_is_tried_again() {
    let api = Scripted::new();
    put_node(&api, "one", 1);
    start(&api);
    // A server that binds no batches is asked for each; long enough that it is told before it is bound.
    for _ in 0..7 {
        api.next(Method::POST, "/coracle/v1/bindings", Answer::Refused(404, "NotFound"));
        api.next(Method::POST, "/pods/p/binding", Answer::Refused(403, "Forbidden"));
    }
    api.put(&path("p"), pod("a", json!({})));
    refused(&api, "p").await;
    assert!(message(&api, "p").starts_with("binding rejected: "), "{}", message(&api, "p"));
    assert_eq!(bound(&api, "p").await, "one");
    assert!(api.is_done());
}

#[tokio::test]
async fn a_pod_whose_binding_fails_in_the_server_every_time_says_so_and_is_tried_again() {
    let api = Scripted::new();
    put_node(&api, "one", 1);
    start(&api);
    // A webhook that has to be asked is down: four times for each place that it is given.
    for _ in 0..12 {
        api.next(Method::POST, "/coracle/v1/bindings", Answer::Refused(404, "NotFound"));
        api.next(Method::POST, "/pods/p/binding", Answer::Refused(500, "InternalError"));
    }
    api.put(&path("p"), pod("a", json!({})));
    refused(&api, "p").await;
    assert!(message(&api, "p").starts_with("binding rejected: "), "{}", message(&api, "p"));
    assert_eq!(bound(&api, "p").await, "one");
    assert!(api.is_done());
}

/// A claim of the class `local`, which waits for its first consumer.
fn put_claim(api: &Scripted, name: &str) {
    let class = json!({"provisioner": "coracle.dev/local", "volumeBindingMode": "WaitForFirstConsumer"});
    api.put("/apis/storage.k8s.io/v1/storageclasses/local", class);
    let spec = json!({"storageClassName": "local", "accessModes": ["ReadWriteOncePod"],
        "resources": {"requests": {"storage": "1Gi"}}});
    api.put(&claim_path(name), json!({ "spec": spec }));
}

fn claim_path(name: &str) -> String {
    format!("/api/v1/namespaces/n/persistentvolumeclaims/{name}")
}

fn with_claim(name: &str) -> Value {
    pod("a", json!({"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": name}}]}))
}

/// The claim is bound to a volume on this node.
fn bind_claim(api: &Scripted, name: &str, node: &str) {
    let term = json!({"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]});
    let spec = json!({"capacity": {"storage": "1Gi"}, "nodeAffinity": {"required": {"nodeSelectorTerms": [term]}}});
    api.put(&format!("/api/v1/persistentvolumes/pv-{name}"), json!({ "spec": spec }));
    let bound = json!({"metadata": {"annotations": {"pv.kubernetes.io/bind-completed": "yes"}},
        "spec": {"volumeName": format!("pv-{name}")}});
    api.merge(&claim_path(name), &bound);
}

fn message(api: &Scripted, name: &str) -> String {
    let pod = api.get(&path(name)).unwrap_or_default();
    let mut conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
    let scheduled = conditions.find(|condition| condition["type"] == "PodScheduled");
    scheduled.and_then(|it| it["message"].as_str()).unwrap_or_default().to_owned()
}

fn selected(api: &Scripted, name: &str) -> Option<String> {
    let claim = api.get(&claim_path(name))?;
    Some(claim["metadata"]["annotations"]["volume.kubernetes.io/selected-node"].as_str()?.to_owned())
}

#[tokio::test]
async fn a_claim_is_told_the_node_and_the_pod_goes_there_when_it_is_bound() {
    let api = Scripted::new();
    put_node(&api, "one", 1);
    start(&api);
    api.put(&path("first"), with_claim("data"));
    refused(&api, "first").await;
    assert!(message(&api, "first").starts_with("0/1 nodes are available: persistentvolumeclaim \"data\" not found."));
    put_claim(&api, "data");
    let node = api.until("a node is selected", |api| selected(api, "data")).await;
    assert_eq!((node.as_str(), node_of(&api, "first")), ("one", None));
    // Its room is kept meanwhile.
    api.put(&path("second"), pod("b", json!({})));
    refused(&api, "second").await;
    bind_claim(&api, "data", "one");
    assert_eq!(bound(&api, "first").await, "one");
    // Nobody else may have the claim while it is there.
    put_node(&api, "two", 9);
    assert_eq!(bound(&api, "second").await, "two");
    api.put(&path("third"), with_claim("data"));
    refused(&api, "third").await;
    assert!(
        message(&api, "third").contains("ReadWriteOncePod access mode already in-use"),
        "{}",
        message(&api, "third")
    );
    api.remove(&path("first"));
    assert_eq!(bound(&api, "third").await, "one");
}

#[tokio::test]
async fn a_pod_whose_volume_is_on_a_node_that_is_gone_says_where() {
    let api = Scripted::new();
    put_node(&api, "one", 9);
    put_claim(&api, "data");
    bind_claim(&api, "data", "gone");
    start(&api);
    api.put(&path("p"), with_claim("data"));
    refused(&api, "p").await;
    let words = "0/1 nodes are available: 1 node(s) didn't match PersistentVolume's node affinity. The volume of claim \"data\" \
                 (pv-data) is on node gone, which is not in the cluster. preemption:";
    assert!(message(&api, "p").starts_with(words), "{}", message(&api, "p"));
    put_node(&api, "gone", 1);
    assert_eq!(bound(&api, "p").await, "gone");
}

#[tokio::test]
async fn a_choice_that_somebody_else_prevents_is_made_anew() {
    let api = Scripted::new();
    put_node(&api, "one", 9);
    put_claim(&api, "data");
    api.next(Method::PATCH, "/persistentvolumeclaims/data", Answer::Refused(409, "Conflict"));
    start(&api);
    api.put(&path("p"), with_claim("data"));
    api.until("a node is selected", |api| selected(api, "data")).await;
    assert!(api.requests(&Method::PATCH, "/persistentvolumeclaims/data").len() >= 2);
    bind_claim(&api, "data", "one");
    assert_eq!(bound(&api, "p").await, "one");
}

#[tokio::test]
async fn a_choice_that_is_refused_is_told_and_tried_again() {
    let api = Scripted::new();
    put_node(&api, "one", 9);
    put_claim(&api, "data");
    // Long enough that it is told before it is written.
    for _ in 0..7 {
        api.next(Method::PATCH, "/persistentvolumeclaims/data", Answer::Refused(403, "Forbidden"));
    }
    start(&api);
    api.put(&path("p"), with_claim("data"));
    refused(&api, "p").await;
    let words = "running PreBind plugin \"VolumeBinding\": ";
    assert!(message(&api, "p").starts_with(words), "{}", message(&api, "p"));
    api.until("a node is selected", |api| selected(api, "data")).await;
    bind_claim(&api, "data", "one");
    assert_eq!(bound(&api, "p").await, "one");
    assert!(api.is_done());
}

/// A pod that runs on a node.
fn running(node: &str, priority: i32) -> Value {
    let mut pod = pod("v", json!({"nodeName": node, "priority": priority}));
    pod["status"] = json!({"phase": "Running"});
    pod
}

fn nominated(api: &Scripted, name: &str) -> Option<String> {
    Some(api.get(&path(name))?["status"]["nominatedNodeName"].as_str()?.to_owned())
}

#[tokio::test]
async fn a_pod_that_is_resized_down_leaves_room() {
    let api = Scripted::new();
    put_node(&api, "one", 9);
    start(&api);
    let asks = |cpu: &str| json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]});
    api.put(&path("large"), pod("a", asks("6")));
    bound(&api, "large").await;
    let has = |cpu: &str| json!({"containerStatuses": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]});
    api.merge(&path("large"), &json!({"status": has("6")}));
    api.put(&path("waits"), pod("b", asks("4")));
    refused(&api, "waits").await;
    // It is to have less, and has not yet.
    api.merge(&path("large"), &json!({"spec": asks("2")}));
    api.put(&path("waits-more"), pod("b", asks("3")));
    refused(&api, "waits-more").await;
    assert_eq!(node_of(&api, "waits"), None);
    api.merge(&path("large"), &json!({"status": has("2")}));
    bound(&api, "waits").await;
}

#[tokio::test]
async fn who_has_a_claim_for_itself_alone_makes_room_where_it_is() {
    let api = Scripted::new();
    put_node(&api, "one", 9);
    put_node(&api, "two", 9);
    put_claim(&api, "data");
    bind_claim(&api, "data", "one");
    // It can be had everywhere.
    api.put("/api/v1/persistentvolumes/pv-data", json!({"spec": {"capacity": {"storage": "1Gi"}}}));
    let mut user = running("one", 5);
    user["spec"]["volumes"] = json!([{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]);
    api.put(&path("user"), user);
    api.put(&path("beside"), running("one", 0));
    api.put(&path("elsewhere"), running("two", 0));
    start(&api);
    let with_priority = |priority: i32| {
        let mut pod = with_claim("data");
        pod["spec"]["priority"] = json!(priority);
        pod
    };
    api.put(&path("equal"), with_priority(5));
    refused(&api, "equal").await;
    assert_eq!(api.requests(&Method::DELETE, "/pods/").len(), 0, "{}", message(&api, "equal"));
    api.put(&path("higher"), with_priority(9));
    api.until("it is told where it will be", |api| nominated(api, "higher")).await;
    api.until("the user goes", |api| api.requests(&Method::DELETE, "/pods/user").pop()).await;
    assert_eq!((nominated(&api, "higher"), node_of(&api, "higher")), (Some("one".to_owned()), None));
    api.remove(&path("user"));
    assert_eq!(bound(&api, "higher").await, "one");
    assert_eq!(api.requests(&Method::DELETE, "/pods/").len(), 1, "nobody else had to go");
}

#[tokio::test]
async fn a_victim_of_whom_nobody_knows_is_asked_again_and_no_other_for_it() {
    let api = Scripted::new();
    put_node(&api, "one", 1);
    api.put(&path("first"), running("one", 5));
    start(&api);
    api.next(Method::DELETE, "/pods/first", Answer::LostButUnknown);
    // Meanwhile there is somebody whom it would rather have gone.
    api.meanwhile(Method::DELETE, "/pods/first", |api| {
        put_node(api, "two", 1);
        api.put(&path("second"), running("two", 0));
    });
    api.put(&path("p"), pod("p", json!({"priority": 10})));
    let asked = |api: &Scripted, name: &str| api.requests(&Method::DELETE, &format!("/pods/{name}")).len();
    api.until("it is asked again", |api| (asked(api, "first") == 2).then_some(())).await;
    // By then the other was looked at.
    put_node(&api, "three", 0);
    api.put(&path("q"), pod("q", json!({"priority": -1})));
    refused(&api, "q").await;
    api.remove(&path("first"));
    assert_eq!(bound(&api, "p").await, "one");
    assert_eq!(asked(&api, "second"), 0);
}

#[tokio::test]
async fn a_binding_that_is_refused_after_one_without_an_answer_is_tried_again() {
    let api = Scripted::new();
    put_node(&api, "one", 1);
    start(&api);
    api.next(Method::POST, "/coracle/v1/bindings", Answer::LostButUnknown);
    // A webhook refuses by a code that means something else as a rule.
    api.next(Method::POST, "/coracle/v1/bindings", Answer::Refused(404, "NotFound"));
    api.next(Method::POST, "/pods/p/binding", Answer::Refused(409, "Conflict"));
    api.put(&path("p"), pod("a", json!({})));
    assert_eq!(bound(&api, "p").await, "one");
    assert!(api.is_done());
}

#[tokio::test]
async fn a_victim_that_may_not_be_marked_by_a_code_of_the_gone_is_not_gone() {
    let api = Scripted::new();
    put_node(&api, "one", 1);
    api.put(&path("v"), running("one", 0));
    start(&api);
    api.next(Method::PATCH, "/pods/v/status", Answer::Refused(409, "Conflict"));
    api.next(Method::DELETE, "/pods/v", Answer::Refused(404, "NotFound"));
    api.put(&path("p"), pod("p", json!({"priority": 10})));
    let going = |api: &Scripted| (!api.get(&path("v"))?["metadata"]["deletionTimestamp"].is_null()).then_some(());
    api.until("it is asked again", going).await;
    api.remove(&path("v"));
    assert_eq!(bound(&api, "p").await, "one");
}

#[tokio::test]
async fn a_nomination_that_is_taken_or_whose_node_is_gone_is_not_told_any_more() {
    let api = Scripted::new();
    put_node(&api, "one", 1);
    api.put(&path("v"), running("one", 0));
    start(&api);
    let is_nominated =
        |api: &Scripted, name: &str, node: Option<&str>| (nominated(api, name).as_deref() == node).then_some(());
    api.put(&path("low"), pod("p", json!({"priority": 5})));
    api.until("room is made for it", |api| is_nominated(api, "low", Some("one"))).await;
    api.put(&path("high"), pod("p", json!({"priority": 10})));
    api.until("it is another's", |api| is_nominated(api, "high", Some("one"))).await;
    api.until("it has none any more", |api| is_nominated(api, "low", None)).await;
    api.remove("/api/v1/nodes/one");
    api.until("nor has the other", |api| is_nominated(api, "high", None)).await;
    assert_eq!(scheduled(&api, "low"), "False");
}

#[tokio::test]
async fn a_nomination_of_a_node_that_nobody_knows_is_not_told_once_the_pod_fits_nowhere() {
    let api = Scripted::new();
    put_node(&api, "one", 1);
    let mut lost = pod("p", json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": "100"}}}]}));
    lost["status"] = json!({"nominatedNodeName": "ghost"});
    api.put(&path("lost"), lost);
    start(&api);
    refused(&api, "lost").await;
    api.until("it has none any more", |api| nominated(api, "lost").is_none().then_some(())).await;
}

#[tokio::test]
async fn of_a_node_where_a_pod_waits_for_its_volumes_nothing_is_taken_back() {
    let api = Scripted::new();
    put_node(&api, "one", 9);
    put_claim(&api, "data");
    start(&api);
    api.put(&path("p"), with_claim("data"));
    api.until("a node is selected", |api| selected(api, "data")).await;
    api.remove("/api/v1/nodes/one");
    refused(&api, "p").await;
    let told = api.requests(&Method::PATCH, "/pods/p/status");
    assert!(told.iter().all(|seen| seen.body["status"].get("nominatedNodeName").is_none()), "{told:?}");
}
