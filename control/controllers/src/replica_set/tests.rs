//! Behaviour of the core, as tables, and convergence against an API in memory.

use std::collections::HashSet;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::ReplicaSet;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::Controller;
use super::plan::{Observed, Plan, is_written, plan, set_failure};
use crate::events::Recorder;
use crate::informer::{Informer, Key, Object as _, Pod};
use crate::queue::{Next, Reconciler as _};

fn now() -> Timestamp {
    "2026-01-01T01:00:00Z".parse().unwrap()
}

fn set(replicas: i32) -> ReplicaSet {
    serde_json::from_value(json!({
        "metadata": {"name": "r", "namespace": "n", "uid": "set", "generation": 1},
        "spec": {
            "replicas": replicas, "selector": {"matchLabels": {"app": "a"}},
            "template": {"metadata": {"labels": {"app": "a"}}, "spec": {"containers": []}},
        },
    }))
    .unwrap()
}

fn pod(uid: &str, change: Value) -> Arc<Pod> {
    let mut wire = json!({
        "metadata": {
            "name": uid, "namespace": "n", "uid": uid, "labels": {"app": "a"}, "creationTimestamp": "2026-01-01T00:00:00Z",
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "set", "controller": true}],
        },
        "spec": {"nodeName": "one"},
        "status": {"phase": "Running", "conditions": [
            {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:30:00Z"}]},
    });
    merge(&mut wire, &change);
    Arc::new(Pod::keep(serde_json::from_value(wire).unwrap()))
}

fn merge(into: &mut Value, change: &Value) {
    match (into, change) {
        (Value::Object(into), Value::Object(change)) => {
            for (name, value) in change {
                merge(into.entry(name.clone()).or_insert(Value::Null), value);
            }
        }
        (into, change) => *into = change.clone(),
    }
}

fn planned(set: &ReplicaSet, owned: Vec<Arc<Pod>>, creating: usize, deleting: &[&str]) -> Plan {
    let deleting: HashSet<Arc<str>> = deleting.iter().map(|uid| (*uid).into()).collect();
    let related = owned.clone();
    plan(&Observed {
        set,
        owned,
        orphans: vec![],
        creating,
        deleting: &deleting,
        related: &|| related.clone(),
        now: now(),
    })
}

#[test]
fn creates_what_is_missing_and_counts_what_is_in_flight() {
    let ready = |count: usize| (0..count).map(|index| pod(&format!("p{index}"), json!({}))).collect::<Vec<_>>();
    for (replicas, there, creating, deleting, create, delete) in [
        (3, 0, 0, vec![], 3, 0),
        (3, 1, 2, vec![], 0, 0),
        (3, 3, 0, vec!["p0"], 1, 0),
        (1, 3, 0, vec![], 0, 2),
        (1, 3, 0, vec!["p0"], 0, 1),
        (0, 2, 1, vec![], 0, 2),
        (2000, 0, 0, vec![], 500, 0),
    ] {
        let plan = planned(&set(replicas), ready(there), creating, &deleting);
        assert_eq!((plan.create, plan.delete.len()), (create, delete), "{replicas} wanted, {there} there");
    }
}

#[test]
fn gives_up_the_pod_that_is_missed_least() {
    for (why, worse) in [
        ("no node", json!({"spec": {"nodeName": ""}})),
        ("pending", json!({"status": {"phase": "Pending"}})),
        ("not ready", json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}})),
        ("cheap", json!({"metadata": {"annotations": {"controller.kubernetes.io/pod-deletion-cost": "-1"}}})),
        (
            "ready for a short time",
            json!({"status": {"conditions": [
            {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:59:59Z"}]}}),
        ),
        ("restarted", json!({"status": {"containerStatuses": [{"restartCount": 3}]}})),
        ("young", json!({"metadata": {"creationTimestamp": "2026-01-01T00:59:00Z"}})),
    ] {
        let pods = vec![pod("a", json!({})), pod("z", worse), pod("b", json!({}))];
        let plan = planned(&set(2), pods, 0, &[]);
        assert_eq!(plan.delete.iter().map(|pod| &*pod.uid).collect::<Vec<_>>(), ["z"], "{why}");
    }
    let crowded = vec![
        pod("a", json!({"spec": {"nodeName": "empty"}})),
        pod("b", json!({"spec": {"nodeName": "full"}})),
        pod("c", json!({"spec": {"nodeName": "full"}})),
    ];
    assert_eq!(planned(&set(2), crowded, 0, &[]).delete[0].node.as_deref(), Some("full"));
}

#[test]
fn adopts_releases_and_ignores() {
    let orphan = pod("orphan", json!({"metadata": {"ownerReferences": []}}));
    let foreign = pod("foreign", json!({"metadata": {"labels": {"app": "b"}, "ownerReferences": []}}));
    let stray = pod("stray", json!({"metadata": {"labels": {"app": "b"}}}));
    let set = set(1);
    let observed = Observed {
        set: &set,
        owned: vec![stray.clone(), pod("done", json!({"status": {"phase": "Succeeded"}}))],
        orphans: vec![orphan.clone(), foreign],
        creating: 0,
        deleting: &HashSet::new(),
        related: &Vec::new,
        now: now(),
    };
    let plan = plan(&observed);
    assert_eq!((plan.adopt, plan.release, plan.create), (vec![orphan], vec![stray], 0));
    assert_eq!(plan.status.replicas, 1);
}

#[test]
fn counts_availability_by_the_clock() {
    let mut set = set(2);
    set.spec.min_ready_seconds = Some(60);
    let fresh = json!({"status": {"conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:59:30Z"}]}});
    let going = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:59:30Z"}});
    let plan = planned(&set, vec![pod("a", json!({})), pod("b", fresh), pod("c", going)], 0, &[]);
    let status = &plan.status;
    assert_eq!((status.replicas, status.ready_replicas, status.available_replicas), (2, Some(2), Some(1)));
    assert_eq!(status.terminating_replicas, Some(1));
    assert_eq!(plan.check_after.map(|after| after.as_secs()), Some(30));
}

#[test]
fn reports_a_failure_once_and_clears_it() {
    let mut set = set(1);
    let mut status = planned(&set, vec![], 0, &[]).status;
    assert!(!is_written(&set, &status));
    set_failure(&mut status, Some("no".to_owned()), 1, now());
    let condition = status.conditions.as_ref().unwrap()[0].clone();
    assert_eq!((condition.reason.as_deref(), condition.message.as_deref()), (Some("FailedCreate"), Some("no")));
    set_failure(&mut status, Some("still no".to_owned()), 1, now());
    assert_eq!(status.conditions.as_ref().unwrap()[0], condition);
    set.status = Some(status.clone());
    assert!(is_written(&set, &status));
    set_failure(&mut status, None, 1, now());
    assert_eq!(status.conditions, None);
}

/// One step of a history: what happens between two reconciliations.
#[derive(Debug, Clone)]
enum Step {
    Scale(i32),
    /// The informer catches up.
    Observe,
    /// A pod ends by itself.
    End(usize),
    Reconcile,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..20_i32).prop_map(Step::Scale),
        Just(Step::Observe),
        (0..20_usize).prop_map(Step::End),
        Just(Step::Reconcile),
    ]
}

proptest! {
    /// Whatever the order of events and however late the informer: never more pods live than were ever wanted at once,
    /// and in the end exactly those that are wanted.
    #[test]
    fn converges_and_never_creates_twice(steps in prop::collection::vec(step(), 1..60)) {
        let mut wanted = set(0);
        let mut most = 0;
        let (mut live, mut seen): (Vec<Arc<Pod>>, Vec<Arc<Pod>>) = (vec![], vec![]);
        let (mut creating, mut deleting): (Vec<Arc<str>>, HashSet<Arc<str>>) = Default::default();
        let mut next = 0;
        let end = [Step::Observe, Step::Reconcile, Step::Observe, Step::Reconcile];
        for step in steps.into_iter().chain(end) {
            match step {
                Step::Scale(replicas) => {
                    wanted.spec.replicas = Some(replicas);
                    most = most.max(replicas);
                }
                Step::Observe => {
                    seen.clone_from(&live);
                    creating.clear();
                    deleting.clear();
                }
                Step::End(index) => {
                    if index < live.len() {
                        live.remove(index);
                    }
                }
                Step::Reconcile => {
                    let related = seen.clone();
                    let plan = plan(&Observed {
                        set: &wanted,
                        creating: creating.iter().filter(|name| !seen.iter().any(|pod| pod.key.name == **name)).count(),
                        owned: seen.clone(),
                        orphans: vec![],
                        deleting: &deleting,
                        related: &|| related.clone(),
                        now: now(),
                    });
                    for _ in 0..plan.create {
                        let made = pod(&format!("p{next}"), json!({}));
                        next += 1;
                        creating.push(made.key().name);
                        live.push(made);
                    }
                    for gone in plan.delete {
                        live.retain(|pod| pod.uid != gone.uid);
                        deleting.insert(gone.uid.clone());
                    }
                }
            }
            prop_assert!(live.len() <= usize::try_from(most).unwrap(), "{} live, {most} wanted at most", live.len());
        }
        prop_assert_eq!(live.len(), usize::try_from(wanted.spec.replicas.unwrap()).unwrap());
    }
}

#[tokio::test]
async fn looks_again_at_once_when_what_it_counted_is_not_there() {
    let api = coracle_scripted::Scripted::new();
    api.put("/apis/apps/v1/namespaces/n/replicasets/r", serde_json::to_value(set(1)).unwrap());
    let client = crate::client::Client(api.client());
    let (mut sets, mut pods) = (Informer::<ReplicaSet>::default(), Informer::<Pod>::default());
    let controller = Controller::new(client.clone(), Recorder::new(client), &mut sets, &mut pods);
    let shutdown = tokio_util::sync::CancellationToken::new();
    let mut synced = sets.synced();
    tokio::spawn(sets.run(api.client(), kube::runtime::watcher::Config::default().streaming_lists(), shutdown));
    synced.wait_for(|synced| *synced).await.unwrap();
    controller.pods.in_flight.creating("set", &"gone".into(), None);
    controller.pods.in_flight.age("set", crate::workload::OVERDUE);
    let key = Key::new("n", "r");
    assert_eq!(controller.clone().reconcile(key.clone()).await.unwrap(), Next::Again);
    assert!(api.writes().iter().all(|seen| !seen.path.ends_with("/pods")), "the plan counted it");
    controller.reconcile(key).await.unwrap();
    assert_eq!(api.list("/api/v1/namespaces/n/pods").len(), 1);
}
