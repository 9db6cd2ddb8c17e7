//! Behaviour of the core, as tables and as whole histories against an API in memory.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::plan::{Observed, Plan, Revision, is_underway, is_written, ordinal, plan};
use super::{identity, pod_spec};
use crate::informer::{Object as _, Pod};

fn now() -> Timestamp {
    "2026-01-01T01:00:00Z".parse().unwrap()
}

fn set(replicas: i64, change: &Value) -> StatefulSet {
    let mut set = json!({
        "metadata": {"name": "web", "namespace": "n", "uid": "set", "generation": 1},
        "spec": {
            "replicas": replicas, "serviceName": "web", "podManagementPolicy": "OrderedReady",
            "selector": {"matchLabels": {"app": "a"}},
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0, "maxUnavailable": 1}},
            "template": {"metadata": {"labels": {"app": "a"}}, "spec": {"containers": [{"name": "c"}]}},
        },
    });
    merge(&mut set, change);
    serde_json::from_value(set).unwrap()
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

/// A pod from a word: `3` runs and is ready, `3-` is not ready, `3~` is pending, `3x` ended, `3t` is being deleted; `@old` is its
/// revision, else `new`.
fn pod(word: &str) -> Arc<Pod> {
    let (word, revision) = word.split_once('@').unwrap_or((word, "new"));
    let index = word.trim_end_matches(|c: char| !c.is_ascii_digit());
    let state = &word[index.len()..];
    let name = format!("web-{index}");
    let ready = if matches!(state, "" | "t") { "True" } else { "False" };
    let phase = match state {
        "~" => "Pending",
        "x" => "Failed",
        _ => "Running",
    };
    let mut pod = json!({
        "metadata": {
            "name": name, "namespace": "n", "uid": format!("u{index}"),
            "labels": {"app": "a", "controller-revision-hash": revision, "statefulset.kubernetes.io/pod-name": name},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "web", "uid": "set", "controller": true}],
        },
        "spec": {"nodeName": "one"},
        "status": {"phase": phase, "conditions": [
            {"type": "Ready", "status": ready, "lastTransitionTime": "2026-01-01T00:59:30Z"}]},
    });
    if state == "t" {
        pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:59:00Z");
    }
    Arc::new(Pod::keep(serde_json::from_value(pod).unwrap()))
}

fn pods(words: &str) -> Vec<Arc<Pod>> {
    words.split_whitespace().map(pod).collect()
}

struct Flight<'a> {
    creating: &'a str,
    deleting: &'a str,
}

const IDLE: Flight<'static> = Flight { creating: "", deleting: "" };

fn planned(set: &StatefulSet, there: &[Arc<Pod>], flight: &Flight<'_>) -> Plan {
    plan(&Observed {
        set,
        pods: there,
        creating: &flight.creating.split_whitespace().map(|index| format!("web-{index}").into()).collect(),
        deleting: &flight.deleting.split_whitespace().map(|index| format!("u{index}").into()).collect(),
        current: "old",
        update: "new",
        collisions: 0,
        claim: &|_| None,
        now: now(),
    })
}

/// What a plan does: `+3` makes a pod of the new revision, `+3@old` one of the old, `-3` deletes one.
fn steps(plan: &Plan) -> String {
    let made = plan.create.iter().map(|(ordinal, revision)| match revision {
        Revision::Update => format!("+{ordinal}"),
        Revision::Current => format!("+{ordinal}@old"),
    });
    let gone = plan.delete.iter().map(|pod| format!("-{}", ordinal("web", &pod.key.name).unwrap()));
    made.chain(gone).collect::<Vec<_>>().join(" ")
}

#[test]
fn one_thing_at_a_time_in_the_order_of_the_ordinals() {
    for (replicas, there, creating, deleting, expected) in [
        (3, "", "", "", "+0"),
        (3, "", "0", "", ""),
        (3, "0", "", "", "+1"),
        (3, "0-", "", "", ""),
        (3, "0~", "", "", ""),
        (3, "0 2", "", "", "+1"),
        (3, "0 1t", "", "", ""),
        (3, "0 1", "", "1", ""),
        (3, "0x 1 2", "", "", "-0"),
        (3, "0x 1 2", "", "0", ""),
        (3, "0 1 2", "", "", ""),
        // Down from above, one by one, and not while something else is amiss.
        (1, "0 1 2", "", "", "-2"),
        (1, "0 1 2t", "", "", ""),
        (1, "0 1 2", "", "2", ""),
        (1, "0- 1 2", "", "", ""),
        (1, "0 1- 2", "", "", "-2"),
        (1, "0 1 2-", "", "", "-2"),
        (1, "0 1- 2-", "", "", ""),
        (0, "1x 2x", "", "", ""),
        (0, "0 1", "", "", "-1"),
        // The highest old one first, when all are there.
        (3, "0@old 1@old 2@old", "", "", "-2"),
        (3, "0@old 1@old 2", "", "", "-1"),
        (3, "0@old 1@old 2-", "", "", ""),
        (3, "0@old 1@old", "", "", "+2"),
        (3, "0@old 1@old 2@old", "", "2", ""),
    ] {
        let plan = planned(&set(replicas, &json!({})), &pods(there), &Flight { creating, deleting });
        assert_eq!(steps(&plan), expected, "{replicas} of {there}; asked for {creating}, given up {deleting}");
    }
}

#[test]
fn all_at_once_when_the_order_does_not_matter() {
    let parallel = |replicas, unavailable: Value| {
        let rolling = json!({"rollingUpdate": {"maxUnavailable": unavailable}});
        set(replicas, &json!({"spec": {"podManagementPolicy": "Parallel", "updateStrategy": rolling}}))
    };
    for (replicas, unavailable, there, creating, expected) in [
        (3, json!(1), "", "", "+0 +1 +2"),
        (3, json!(1), "", "0 2", "+1"),
        (3, json!(1), "0x 2-", "", "+1 -0"),
        (1, json!(1), "0- 1 2t 3", "", "-3 -1"),
        (4, json!(2), "0@old 1@old 2@old 3@old", "", "-3 -2"),
        (4, json!(2), "0@old 1@old 2@old 3-", "", "-2"),
        (4, json!(2), "0-@old 1@old 2@old 3@old", "", "-0 -3"),
        (4, json!("50%"), "0@old 1@old 2@old 3@old", "", "-3 -2"),
        (4, json!("10%"), "0@old 1@old 2@old 3@old", "", "-3"),
        (4, json!(1), "0@old 1@old 2@old", "3", ""),
    ] {
        let plan = planned(&parallel(replicas, unavailable), &pods(there), &Flight { creating, deleting: "" });
        assert_eq!(steps(&plan), expected, "{replicas} of {there}; asked for {creating}");
    }
    let plan = planned(&parallel(1000, json!(1)), &[], &IDLE);
    assert_eq!((plan.create.len(), plan.more), (500, true));
    let most = planned(&parallel(i64::from(i32::MAX), json!(1)), &pods("7 2000000000"), &IDLE);
    assert_eq!((most.create.len(), most.more), (500, true), "what is wanted is not gone through");
}

#[test]
fn strategies_say_who_is_replaced() {
    for (change, there, expected) in [
        (json!({"partition": 2}), "0@old 1@old 2@old 3@old", "-3"),
        (json!({"partition": 2}), "0@old 1@old 2 3", ""),
        (json!({"partition": 2}), "1@old 2 3", "+0@old"),
        (json!({"partition": 2}), "0@old 1@old 2", "+3"),
        (json!({"partition": 9}), "0@old 1@old 2", "+3@old"),
        (json!({"maxUnavailable": 3}), "0@old 1@old 2@old 3@old", "-3 -2 -1"),
        (json!({"maxUnavailable": "50%"}), "0@old 1@old 2@old 3@old", "-3 -2"),
    ] {
        let set = set(4, &json!({"spec": {"updateStrategy": {"rollingUpdate": change}}}));
        assert_eq!(steps(&planned(&set, &pods(there), &IDLE)), expected, "{change} of {there}");
    }
    let on_delete = json!({"spec": {"updateStrategy": {"type": "OnDelete", "rollingUpdate": null}}});
    assert_eq!(steps(&planned(&set(2, &on_delete), &pods("0@old 1@old"), &IDLE)), "");
    assert_eq!(steps(&planned(&set(2, &on_delete), &pods("0@old"), &IDLE)), "+1");
    // Somebody has replaced all: only a rollout that is over makes the new revision the current one.
    for (change, expected) in [(json!({}), ("new", Some(2))), (on_delete, ("old", None))] {
        let status = planned(&set(2, &change), &pods("0 1"), &IDLE).status;
        assert_eq!((status.current_revision.as_deref().unwrap(), status.current_replicas), expected, "{change}");
        assert_eq!(status.updated_replicas, Some(2));
    }
}

#[test]
fn ordinals_may_begin_elsewhere() {
    let from_five = set(2, &json!({"spec": {"ordinals": {"start": 5}}}));
    for (there, expected) in [("", "+5"), ("5", "+6"), ("5 6", ""), ("0 5 6", "-0"), ("0 5 6 9", "-9")] {
        assert_eq!(steps(&planned(&from_five, &pods(there), &IDLE)), expected, "{there}");
    }
    let partition = json!({"spec": {"ordinals": {"start": 5}, "updateStrategy": {"rollingUpdate": {"partition": 1}}}});
    assert_eq!(steps(&planned(&set(3, &partition), &pods("5@old 6@old 7@old"), &IDLE)), "-7");
    assert_eq!(steps(&planned(&set(3, &partition), &pods("5@old 6 7"), &IDLE)), "");
}

#[test]
fn names_of_pods_have_one_spelling() {
    for (name, expected) in [
        ("web-0", Some(0)),
        ("web-12", Some(12)),
        ("web-012", None),
        ("web-", None),
        ("web--1", None),
        ("web-+1", None),
        ("web-99999999999", None),
        ("webs-1", None),
        ("web-a-1", None),
    ] {
        assert_eq!(ordinal("web", name), expected, "{name}");
    }
}

#[test]
fn the_status_counts_as_the_reference_does() {
    let plan = planned(&set(3, &json!({})), &pods("0@old 1@old 2-"), &IDLE);
    let status = json!({
        "observedGeneration": 1, "replicas": 3, "readyReplicas": 2, "availableReplicas": 2, "currentReplicas": 2,
        "updatedReplicas": 1, "currentRevision": "old", "updateRevision": "new", "collisionCount": 0,
    });
    assert_eq!(serde_json::to_value(&plan.status).unwrap(), status);
    let deleted = planned(&set(3, &json!({})), &pods("0@old 1@old 2@old"), &IDLE);
    assert_eq!((deleted.status.current_replicas, deleted.status.updated_replicas), (Some(2), None));
    let done = planned(&set(2, &json!({})), &pods("0 1"), &IDLE).status;
    assert_eq!((done.current_revision.as_deref(), done.current_replicas), (Some("new"), Some(2)));
    let none = planned(&set(0, &json!({})), &[], &IDLE).status;
    assert_eq!(none.current_revision.as_deref(), Some("new"));
    let mut written = set(2, &json!({}));
    assert!(!is_written(&written, &done));
    written.status = Some(done.clone());
    assert!(is_written(&written, &done) && !is_underway(&written, &done));
}

#[test]
fn availability_comes_with_the_clock() {
    let slow = set(2, &json!({"spec": {"minReadySeconds": 60}}));
    let plan = planned(&slow, &pods("0"), &IDLE);
    assert_eq!((steps(&plan).as_str(), plan.check_after.map(|after| after.as_secs())), ("", Some(30)));
    assert_eq!((plan.status.ready_replicas, plan.status.available_replicas), (Some(1), Some(0)));
    let quick = set(2, &json!({"spec": {"minReadySeconds": 20}}));
    assert_eq!(steps(&planned(&quick, &pods("0"), &IDLE)), "+1");
}

#[test]
fn one_that_goes_only_counts() {
    let going = set(3, &json!({"metadata": {"deletionTimestamp": "2026-01-01T00:59:00Z"}}));
    let plan = planned(&going, &pods("0 7x"), &IDLE);
    assert_eq!((steps(&plan).as_str(), plan.status.replicas), ("", 2));
}

#[test]
fn pods_say_who_they_are() {
    let adopted = Arc::new({
        let mut pod = (*pod("0")).clone();
        pod.labels = Arc::new(BTreeMap::from([("app".to_owned(), "a".to_owned())]));
        pod
    });
    let plan = planned(&set(1, &json!({})), std::slice::from_ref(&adopted), &IDLE);
    assert_eq!(plan.relabel, [adopted]);
    assert_eq!(planned(&set(1, &json!({})), &pods("0"), &IDLE).relabel, []);
    let labels = identity("web", "web-7");
    assert_eq!(labels["statefulset.kubernetes.io/pod-name"], "web-7");
    assert_eq!(labels["apps.kubernetes.io/pod-index"], "7");
}

#[test]
fn a_pod_has_its_name_for_host_and_claims_for_volumes() {
    let set = set(
        1,
        &json!({"spec": {
            "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {}}],
            "template": {"spec": {"hostname": "x", "volumes": [
                {"name": "data", "emptyDir": {}}, {"name": "other", "emptyDir": {}}]}},
        }}),
    );
    let spec = serde_json::to_value(pod_spec(&set, &set.spec.template, "web-4", 4)).unwrap();
    assert_eq!((&spec["hostname"], &spec["subdomain"]), (&json!("web-4"), &json!("web")));
    let volumes = json!([
        {"name": "data", "persistentVolumeClaim": {"claimName": "data-web-4"}}, {"name": "other", "emptyDir": {}},
    ]);
    assert_eq!(spec["volumes"], volumes);
}

#[test]
fn a_pod_waits_for_the_claim_of_the_one_before() {
    let change = json!({"spec": {
        "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {}}],
        "persistentVolumeClaimRetentionPolicy": {"whenScaled": "Delete", "whenDeleted": "Retain"},
    }});
    let owned = json!({"metadata": {"name": "data-web-0", "namespace": "n", "ownerReferences": [
        {"apiVersion": "v1", "kind": "Pod", "name": "web-0", "uid": "older", "controller": true}]}, "spec": {}});
    let claim: Arc<PersistentVolumeClaim> = Arc::new(serde_json::from_value(owned).unwrap());
    let with = |change: &Value, pods: &[Arc<Pod>]| {
        plan(&Observed {
            set: &set(1, change),
            pods,
            creating: &HashSet::new(),
            deleting: &HashSet::new(),
            current: "new",
            update: "new",
            collisions: 0,
            claim: &|name| (name == "data-web-0").then(|| claim.clone()),
            now: now(),
        })
    };
    assert_eq!(steps(&with(&change, &[])), "");
    let mut kept = change.clone();
    kept["spec"]["persistentVolumeClaimRetentionPolicy"]["whenScaled"] = json!("Retain");
    assert_eq!(steps(&with(&kept, &[])), "+0");
    // One that waits gets the claims that are missing; one that is scaled away takes its own along.
    let mut other = change.clone();
    other["spec"]["volumeClaimTemplates"][0]["metadata"]["name"] = json!("logs");
    assert_eq!(with(&other, &pods("0~")).claims, [0]);
    assert!(with(&kept, &pods("0~")).claims.is_empty());
}

/// One step of a history: what happens between two passes.
#[derive(Debug, Clone)]
enum Act {
    Scale(i64),
    Template,
    Partition(i64),
    /// The informer catches up.
    Observe,
    /// Pods come up, or one fails, or one that was given up is gone.
    Run,
    Fail(usize),
    /// Somebody deletes what has failed and is not wanted: the reference waits for the lowest of several for ever.
    Help,
    Reconcile,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        1 => (0..6_i64).prop_map(Act::Scale),
        1 => Just(Act::Template),
        1 => (0..4_i64).prop_map(Act::Partition),
        4 => Just(Act::Observe),
        4 => Just(Act::Run),
        1 => (0..6_usize).prop_map(Act::Fail),
        6 => Just(Act::Reconcile),
    ]
}

/// An API in memory: pods by ordinal, and what the informer shows of them.
struct World {
    parallel: bool,
    replicas: i64,
    partition: i64,
    revision: u32,
    current: u32,
    live: BTreeMap<i32, Arc<Pod>>,
    seen: BTreeMap<i32, Arc<Pod>>,
    creating: HashSet<Arc<str>>,
    deleting: HashSet<Arc<str>>,
    next: u32,
}

impl World {
    fn new(parallel: bool) -> Self {
        Self {
            parallel,
            replicas: 0,
            partition: 0,
            revision: 1,
            current: 1,
            live: BTreeMap::new(),
            seen: BTreeMap::new(),
            creating: HashSet::new(),
            deleting: HashSet::new(),
            next: 0,
        }
    }

    fn act(&mut self, act: &Act) {
        match act {
            Act::Scale(replicas) => self.replicas = *replicas,
            Act::Template => self.revision += 1,
            Act::Partition(partition) => self.partition = *partition,
            Act::Observe => {
                self.seen.clone_from(&self.live);
                self.creating.clear();
                self.deleting.clear();
            }
            Act::Run => {
                self.live.retain(|_, pod| pod.deleting.is_none());
                for pod in self.live.values_mut().filter(|pod| !pod.is_terminal()) {
                    let pod = Arc::make_mut(pod);
                    (pod.phase, pod.ready, pod.ready_since) = (crate::informer::Phase::Running, true, Some(now()));
                }
            }
            Act::Fail(index) => {
                if let Some(pod) = self.live.values_mut().nth(*index) {
                    let pod = Arc::make_mut(pod);
                    (pod.phase, pod.ready) = (crate::informer::Phase::Failed, false);
                }
            }
            Act::Help => {
                let replicas = self.replicas;
                self.live.retain(|ordinal, pod| i64::from(*ordinal) < replicas || !pod.is_terminal());
            }
            Act::Reconcile => self.reconcile(),
        }
    }

    fn reconcile(&mut self) {
        let policy = if self.parallel { "Parallel" } else { "OrderedReady" };
        let change = json!({"spec": {
            "podManagementPolicy": policy, "updateStrategy": {"rollingUpdate": {"partition": self.partition}},
        }});
        let set = set(self.replicas, &change);
        let there: Vec<Arc<Pod>> = self.seen.values().cloned().collect();
        let names: HashSet<Arc<str>> = there.iter().map(|pod| pod.key.name.clone()).collect();
        let creating = self.creating.iter().filter(|name| !names.contains(*name)).cloned().collect();
        let (current, update) = (format!("r{}", self.current), format!("r{}", self.revision));
        let plan = plan(&Observed {
            set: &set,
            pods: &there,
            creating: &creating,
            deleting: &self.deleting,
            current: &current,
            update: &update,
            collisions: 0,
            claim: &|_| None,
            now: now(),
        });
        let changes = plan.create.len() + plan.delete.len();
        assert!(self.parallel || changes <= 1, "one at a time: {}", steps(&plan));
        for (ordinal, revision) in &plan.create {
            let of = if *revision == Revision::Update { self.revision } else { self.current };
            let mut made = (*pod(&format!("{ordinal}~@r{of}"))).clone();
            made.uid = format!("p{}", self.next).into();
            self.next += 1;
            self.creating.insert(made.key.name.clone());
            // One that is there still is found, not made twice.
            self.live.entry(*ordinal).or_insert_with(|| Arc::new(made));
        }
        for gone in &plan.delete {
            self.deleting.insert(gone.uid.clone());
            for pod in self.live.values_mut().filter(|pod| pod.uid == gone.uid) {
                Arc::make_mut(pod).deleting = Some(now());
            }
        }
        if plan.status.current_revision.as_deref() == Some(&*update) {
            self.current = self.revision;
        }
    }
}

proptest! {
    /// Whatever happens and however late the informer: an ordinal has one pod, things go one at a time where an order was
    /// asked for, and in the end there are the pods that are wanted, all at the revision that they shall have.
    #[test]
    fn converges(parallel: bool, acts in prop::collection::vec(act(), 0..80)) {
        let mut world = World::new(parallel);
        for act in &acts {
            world.act(act);
        }
        let calm = [Act::Help, Act::Observe, Act::Reconcile, Act::Run];
        for act in calm.iter().cycle().take(calm.len() * 40) {
            world.act(act);
        }
        let ordinals: Vec<i32> = world.live.keys().copied().collect();
        let wanted: Vec<i32> = (0..i32::try_from(world.replicas).unwrap()).collect();
        prop_assert_eq!(ordinals, wanted);
        let update = format!("r{}", world.revision);
        for (ordinal, pod) in &world.live {
            prop_assert!(pod.ready && pod.deleting.is_none());
            if i64::from(*ordinal) >= world.partition {
                prop_assert_eq!(&pod.labels["controller-revision-hash"], &update, "pod {}", ordinal);
            }
        }
    }

    /// An order that was asked for holds: no pod is made before those below it are available.
    #[test]
    fn none_is_made_before_those_below_are_available(words in prop::collection::vec("[0-4][-~xt]?", 0..5), replicas in 0..6_i64) {
        let mut there: BTreeMap<String, Arc<Pod>> = BTreeMap::new();
        for word in &words {
            let pod = pod(word);
            there.insert(pod.key.name.to_string(), pod);
        }
        let there: Vec<Arc<Pod>> = there.into_values().collect();
        for (made, _) in planned(&set(replicas, &json!({})), &there, &IDLE).create {
            for below in 0..made {
                let pod = there.iter().find(|pod| ordinal("web", &pod.key.name) == Some(below));
                prop_assert!(pod.is_some_and(|pod| pod.ready && pod.deleting.is_none()), "{made} before {below}");
            }
        }
    }
}
