//! Behaviour of the core, as tables and as whole rollouts against an API in memory.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet};
use k8s_openapi::api::core::v1::{Node, PodSpec};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::plan::{Observed, Plan, is_underway, is_written, plan};
use super::{Revision, bind_to, is_alike, matters, surplus};
use crate::informer::{Object as _, Phase, Pod};

fn now() -> Timestamp {
    "2026-01-01T01:00:00Z".parse().unwrap()
}

fn set(strategy: &Value) -> DaemonSet {
    serde_json::from_value(json!({
        "metadata": {"name": "d", "namespace": "n", "uid": "set", "generation": 1},
        "spec": {
            "selector": {"matchLabels": {"app": "a"}}, "updateStrategy": strategy,
            "template": {"metadata": {"labels": {"app": "a"}}, "spec": {"containers": [{"name": "c"}]}},
        },
    }))
    .unwrap()
}

fn rolling(unavailable: &Value, surge: &Value) -> DaemonSet {
    let rolling = json!({"maxUnavailable": unavailable, "maxSurge": surge});
    set(&json!({"type": "RollingUpdate", "rollingUpdate": rolling}))
}

fn in_place() -> DaemonSet {
    rolling(&json!(1), &json!(0))
}

/// A node from a word: `a` takes pods, `a!` no new ones, `a!!` none.
fn node(word: &str) -> Arc<Node> {
    let name = word.trim_end_matches('!');
    let taints = match word.len() - name.len() {
        0 => json!([]),
        1 => json!([{"key": "mine", "effect": "NoSchedule"}]),
        _ => json!([{"key": "mine", "effect": "NoExecute"}]),
    };
    Arc::new(serde_json::from_value(json!({"metadata": {"name": name}, "spec": {"taints": taints}})).unwrap())
}

/// A pod from a word, `NODE` or `NODE:NUMBER`: then as in StatefulSets' tests `-` not ready, `~` without its node yet, `x` failed,
/// `s` succeeded, `t` being deleted; `@old` is its revision, else `new`. Elder ones have lower numbers.
fn pod(word: &str) -> Arc<Pod> {
    let (word, revision) = word.split_once('@').unwrap_or((word, "new"));
    let name = word.trim_end_matches(['-', '~', 'x', 's', 't']);
    let state = &word[name.len()..];
    let (node, number) = name.split_once(':').unwrap_or((name, "0"));
    let phase = match state {
        "x" => "Failed",
        "s" => "Succeeded",
        "~" => "Pending",
        _ => "Running",
    };
    let ready = if matches!(state, "" | "t") { "True" } else { "False" };
    let field = json!({"key": "metadata.name", "operator": "In", "values": [node]});
    let mut pod = json!({
        "metadata": {
            "name": name, "namespace": "n", "uid": name, "creationTimestamp": format!("2026-01-01T00:0{number}:00Z"),
            "labels": {"app": "a", "controller-revision-hash": revision},
        },
        "spec": {
            "nodeName": if state == "~" { "" } else { node },
            "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchFields": [field]}]}}},
        },
        "status": {"phase": phase, "conditions": [
            {"type": "Ready", "status": ready, "lastTransitionTime": "2026-01-01T00:59:30Z"}]},
    });
    if state == "t" {
        pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:59:00Z");
    }
    Arc::new(Pod::keep(serde_json::from_value(pod).unwrap()))
}

fn planned(set: &DaemonSet, nodes: &str, pods: &[Arc<Pod>], creating: &str, deleting: &str) -> Plan {
    let nodes: Vec<Arc<Node>> = nodes.split_whitespace().map(node).collect();
    plan(&Observed {
        set,
        nodes: &nodes,
        pods,
        creating: &creating.split_whitespace().map(|node| (node.into(), 1)).collect(),
        deleting: &deleting.split_whitespace().map(Into::into).collect(),
        hash: "new",
        collisions: None,
        backoff: &|node| (&**node == "tired").then_some(Duration::from_secs(7)),
        now: now(),
    })
}

fn pods(words: &str) -> Vec<Arc<Pod>> {
    words.split_whitespace().map(pod).collect()
}

fn steps(plan: &Plan) -> String {
    let made = plan.create.iter().map(|node| format!("+{node}"));
    let gone = plan.delete.iter().map(|pod| format!("-{}", pod.key.name));
    made.chain(gone).collect::<Vec<_>>().join(" ")
}

#[test]
fn each_node_that_takes_one_has_one() {
    for (nodes, there, creating, deleting, expected) in [
        ("a b c", "", "", "", "+a +b +c"),
        ("a b c", "b", "c", "", "+a"),
        ("a! b!! c", "", "", "", "+c"),
        ("a! b!! c", "a b c", "", "", "-b"),
        ("a", "a~", "", "", ""),
        ("a", "a a:1", "", "", "-a:1"),
        ("a", "a:1 a:2~", "", "", "-a:2"),
        ("a", "a:1~ a:2", "", "", "-a:1"),
        ("a", "at", "", "", ""),
        ("a", "a", "", "a", ""),
        ("a", "ax", "", "", "-a"),
        ("a", "as", "", "", "-a"),
        ("a!", "ax", "", "", "-a"),
        ("tired", "tiredx", "", "", ""),
        // Nobody else deletes what waits for a node that is not there; others are the pod collector's.
        ("a", "a gone~ far", "", "", "-gone"),
    ] {
        let plan = planned(&in_place(), nodes, &pods(there), creating, deleting);
        assert_eq!(steps(&plan), expected, "{there} on {nodes}; asked for {creating}, given up {deleting}");
    }
    // Nor is another made beside one that waits, where pods may be beside each other.
    let plan = planned(&rolling(&json!(0), &json!(1)), "a tired", &pods("tiredx"), "", "");
    assert_eq!((steps(&plan).as_str(), plan.check_after), ("+a", Some(Duration::from_secs(7))));
    let plan = planned(&in_place(), "a tired", &pods("ax tiredx"), "", "");
    assert_eq!(plan.ended.iter().map(|(node, _)| &**node).collect::<Vec<_>>(), ["a"]);
    assert_eq!(plan.check_after, Some(Duration::from_secs(7)));
}

#[test]
fn a_rollout_in_place_keeps_to_what_may_be_away() {
    for (unavailable, there, creating, expected) in [
        (json!(1), "a@old b@old c@old", "", "-a"),
        (json!(2), "a@old b@old c@old", "", "-a -b"),
        (json!("50%"), "a@old b@old c@old", "", "-a -b"),
        (json!("10%"), "a@old b@old c@old", "", "-a"),
        (json!(1), "a b@old c@old", "", "-b"),
        (json!(1), "a- b@old c@old", "", ""),
        (json!(1), "at@old b@old c@old", "", ""),
        (json!(1), "b@old c@old", "a", ""),
        // What is not available costs nothing.
        (json!(1), "a-@old b-@old c@old", "", "-a -b"),
        (json!(1), "a b c", "", ""),
    ] {
        let plan = planned(&rolling(&unavailable, &json!(0)), "a b c", &pods(there), creating, "");
        assert_eq!(steps(&plan), expected, "{unavailable} of {there}; asked for {creating}");
    }
    let on_delete = set(&json!({"type": "OnDelete"}));
    assert_eq!(steps(&planned(&on_delete, "a b", &pods("a@old b-@old"), "", "")), "");
    // What is amiss goes first.
    assert_eq!(steps(&planned(&rolling(&json!(3), &json!(0)), "a b c", &pods("a@old b@old"), "", "")), "+c");
}

#[test]
fn a_rollout_by_surge_keeps_the_old_pod_until_the_new_one_is_there() {
    for (surge, there, creating, expected) in [
        (json!(1), "a@old b@old c@old", "", "+a"),
        (json!(2), "a@old b@old c@old", "", "+a +b"),
        (json!("10%"), "a@old b@old c@old", "", "+a"),
        (json!(1), "a@old b@old c@old", "a", ""),
        (json!(1), "a:1-@new a:0@old b@old c@old", "", ""),
        (json!(1), "a:1@new a:0@old b@old c@old", "", "-a:0"),
        (json!(1), "a:1-@new a:0-@old b@old c@old", "", "-a:0"),
        (json!(1), "a-@old b@old c@old", "", "+a +b"),
        (json!(1), "a a:1t b c", "", ""),
        (json!(1), "at b c", "", "+a"),
    ] {
        let plan = planned(&rolling(&json!(0), &surge), "a b c", &pods(there), creating, "");
        assert_eq!(steps(&plan), expected, "{surge} of {there}; asked for {creating}");
    }
    // Where they are not wanted any more they go only as far as others are available.
    let surge = rolling(&json!(0), &json!(1));
    assert_eq!(steps(&planned(&surge, "a! b", &pods("a@old b-"), "", "")), "");
    assert_eq!(steps(&planned(&surge, "a! b", &pods("a@old b"), "", "")), "-a");
    assert_eq!(steps(&planned(&surge, "a! b", &pods("a-@old b"), "", "")), "-a");
}

#[test]
fn the_status_counts_as_the_reference_does() {
    let plan = planned(&in_place(), "a b c d! e", &pods("a b-@old d c:0 c:1-@old"), "e", "");
    let status = json!({
        "observedGeneration": 1, "desiredNumberScheduled": 4, "currentNumberScheduled": 3, "numberMisscheduled": 1,
        "numberReady": 2, "updatedNumberScheduled": 2, "numberAvailable": 2, "numberUnavailable": 2,
    });
    assert_eq!(serde_json::to_value(&plan.status).unwrap(), status);
    let mut written = in_place();
    assert!(!is_written(&written, &plan.status));
    written.status = Some(plan.status.clone());
    assert!(is_written(&written, &plan.status) && is_underway(&written, &plan.status));
    let mut slow = in_place();
    slow.spec.min_ready_seconds = Some(60);
    let plan = planned(&slow, "a", &pods("a"), "", "");
    assert_eq!((plan.status.number_ready, plan.status.number_available), (1, None));
    assert_eq!(plan.check_after.map(|after| after.as_secs()), Some(30));
}

#[test]
fn pods_of_elder_clusters_are_known_by_the_generation_of_their_template() {
    let mut set = in_place();
    set.metadata.annotations = Some(BTreeMap::from([(super::GENERATION.to_owned(), "3".to_owned())]));
    let mut elder = (*pod("a@old")).clone();
    elder.labels = Arc::new(BTreeMap::from([
        ("app".to_owned(), "a".to_owned()),
        (super::GENERATION_LABEL.to_owned(), "3".to_owned()),
    ]));
    assert_eq!(steps(&planned(&set, "a", &[Arc::new(elder.clone())], "", "")), "");
    set.metadata.annotations = Some(BTreeMap::from([(super::GENERATION.to_owned(), "4".to_owned())]));
    assert_eq!(steps(&planned(&set, "a", &[Arc::new(elder)], "", "")), "-a");
}

#[test]
fn a_node_wakes_those_to_whom_it_is_something_else() {
    let set = in_place();
    for (before, after, expected) in [
        ("", "a", true),
        ("", "a!!", false),
        ("a", "", true),
        ("a!!", "", false),
        ("a", "a", false),
        ("a", "a!", true),
        ("a!", "a!!", true),
    ] {
        let [before, after] = [before, after].map(|word| (!word.is_empty()).then(|| node(word)));
        assert_eq!(matters(&set, before.as_ref(), after.as_ref()), expected, "{before:?} {after:?}");
    }
    let mut ready = (*node("a")).clone();
    ready.status = Some(serde_json::from_value(json!({"conditions": [{"type": "Ready", "status": "True"}]})).unwrap());
    assert!(is_alike(&node("a"), &ready) && !is_alike(&node("a"), &node("a!")));
}

#[test]
fn a_thousand_nodes_get_their_pods_in_bursts() {
    let nodes: Vec<String> = (0..1000).map(|index| format!("n{index:04}")).collect();
    let plan = planned(&in_place(), &nodes.join(" "), &[], "", "");
    assert_eq!((plan.create.len(), plan.more), (250, true));
}

#[test]
fn a_pod_says_which_node_it_is_for_and_keeps_what_it_prefers() {
    let mut spec: PodSpec = serde_json::from_value(json!({"containers": [], "affinity": {
        "podAntiAffinity": {}, "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                {"matchExpressions": [{"key": "disk", "operator": "Exists"}]}]},
            "preferredDuringSchedulingIgnoredDuringExecution": [
                {"weight": 1, "preference": {"matchExpressions": [{"key": "x", "operator": "Exists"}]}}],
        },
    }}))
    .unwrap();
    bind_to(&mut spec, "one");
    let affinity = serde_json::to_value(&spec.affinity).unwrap();
    let required = &affinity["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
    let field = json!({"key": "metadata.name", "operator": "In", "values": ["one"]});
    assert_eq!(*required, json!({"nodeSelectorTerms": [{"matchFields": [field]}]}));
    assert_eq!(affinity["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"][0]["weight"], 1);
    assert!(affinity["podAntiAffinity"].is_object());
}

#[test]
fn history_beyond_its_limit_goes_unless_pods_are_of_it() {
    let revision = |name: &str| {
        let labels = json!({"controller-revision-hash": name});
        let object = json!({"metadata": {"name": format!("d-{name}"), "labels": labels}, "revision": 1, "data": {}});
        Arc::new(serde_json::from_value::<ControllerRevision>(object).unwrap())
    };
    let all = [revision("one"), revision("two"), revision("three"), revision("new")];
    let current = Revision { hash: "new".to_owned(), name: "d-new".to_owned(), collisions: None };
    let gone = |limit, there: &str| -> Vec<String> {
        let mut set = in_place();
        set.spec.revision_history_limit = Some(limit);
        let gone = surplus(&set, &all, &current, &pods(there));
        gone.iter().map(|it| super::label_of(it).to_owned()).collect()
    };
    assert_eq!(gone(2, "a"), ["one"]);
    assert_eq!(gone(2, "a@one"), ["two"]);
    assert_eq!(gone(0, "a@two"), ["one", "three"]);
    assert!(gone(3, "").is_empty());
}

/// One step of a history.
#[derive(Debug, Clone)]
enum Act {
    Template,
    /// A node comes, goes, or takes no more pods.
    Node(usize, u8),
    Observe,
    Run,
    Fail(usize),
    Reconcile,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        1 => Just(Act::Template),
        1 => (0..5_usize, 0..4_u8).prop_map(|(node, state)| Act::Node(node, state)),
        4 => Just(Act::Observe),
        4 => Just(Act::Run),
        1 => (0..6_usize).prop_map(Act::Fail),
        6 => Just(Act::Reconcile),
    ]
}

struct World {
    set: DaemonSet,
    /// Nodes by name, with what they take: as in [`node`].
    nodes: BTreeMap<String, String>,
    revision: u32,
    live: Vec<Arc<Pod>>,
    seen: Vec<Arc<Pod>>,
    creating: Vec<(Arc<str>, Arc<str>)>,
    deleting: HashSet<Arc<str>>,
    next: u32,
}

impl World {
    fn act(&mut self, act: &Act) {
        match act {
            Act::Template => self.revision += 1,
            Act::Node(index, state) => {
                let name = format!("n{index}");
                match state {
                    0 => drop(self.nodes.remove(&name)),
                    more => {
                        drop(self.nodes.insert(name.clone(), format!("{name}{}", "!".repeat(usize::from(*more) - 1))))
                    }
                }
            }
            Act::Observe => {
                self.seen.clone_from(&self.live);
                self.creating.clear();
                self.deleting.clear();
            }
            Act::Run => {
                // The pod collector takes those of nodes that are gone.
                let nodes = &self.nodes;
                self.live.retain(|pod| {
                    pod.deleting.is_none() && pod.node.as_ref().is_none_or(|node| nodes.contains_key(&**node))
                });
                for pod in self.live.iter_mut().filter(|pod| !pod.is_terminal()) {
                    let pod = Arc::make_mut(pod);
                    let node = pod.node.clone().or_else(|| pod.meant_for.clone());
                    if node.as_ref().is_some_and(|node| self.nodes.contains_key(&**node)) {
                        (pod.phase, pod.ready, pod.ready_since) = (Phase::Running, true, Some(now()));
                        (pod.node, pod.meant_for) = (node, None);
                    }
                }
            }
            Act::Fail(index) => {
                if let Some(pod) = self.live.get_mut(*index) {
                    let pod = Arc::make_mut(pod);
                    (pod.phase, pod.ready) = (Phase::Failed, false);
                }
            }
            Act::Reconcile => self.reconcile(),
        }
    }

    fn reconcile(&mut self) {
        let nodes: Vec<Arc<Node>> = self.nodes.values().map(|word| node(word)).collect();
        let mut creating: HashMap<Arc<str>, usize> = HashMap::new();
        for (name, node) in &self.creating {
            if !self.seen.iter().any(|pod| pod.key.name == *name) {
                *creating.entry(node.clone()).or_default() += 1;
            }
        }
        let hash = format!("r{}", self.revision);
        let plan = plan(&Observed {
            set: &self.set,
            nodes: &nodes,
            pods: &self.seen,
            creating: &creating,
            deleting: &self.deleting,
            hash: &hash,
            collisions: None,
            backoff: &|_| None,
            now: now(),
        });
        for node in &plan.create {
            let made = pod(&format!("{node}:{}~@{hash}", self.next % 10));
            let mut made = (*made).clone();
            made.key.name = format!("p{}", self.next).into();
            made.uid = made.key.name.clone();
            self.next += 1;
            self.creating.push((made.key.name.clone(), node.clone()));
            self.live.push(Arc::new(made));
        }
        for gone in &plan.delete {
            self.deleting.insert(gone.uid.clone());
            for pod in self.live.iter_mut().filter(|pod| pod.uid == gone.uid) {
                Arc::make_mut(pod).deleting = Some(now());
            }
        }
    }
}

proptest! {
    /// Whatever happens and however late the informer: no node has more pods that are not on their way out than its strategy
    /// allows, and in the end each node that takes one has one of the revision that they shall have.
    #[test]
    fn converges(surges: bool, acts in prop::collection::vec(act(), 0..80)) {
        let (unavailable, surge) = if surges { (0, 1) } else { (1, 0) };
        let mut world = World {
            set: rolling(&json!(unavailable), &json!(surge)),
            nodes: (0..3).map(|index| (format!("n{index}"), format!("n{index}"))).collect(),
            revision: 1,
            live: vec![],
            seen: vec![],
            creating: vec![],
            deleting: HashSet::new(),
            next: 0,
        };
        let calm = [Act::Observe, Act::Reconcile, Act::Run];
        for act in acts.iter().chain(calm.iter().cycle().take(calm.len() * 40)) {
            world.act(act);
            let mut there: HashMap<&Arc<str>, usize> = HashMap::new();
            for pod in world.live.iter().filter(|pod| pod.deleting.is_none()) {
                *there.entry(pod.node.as_ref().or(pod.meant_for.as_ref()).unwrap()).or_default() += 1;
            }
            let most = there.values().copied().max().unwrap_or(0);
            prop_assert!(most <= if surges { 2 } else { 1 }, "{most} pods on a node");
        }
        let hash = format!("r{}", world.revision);
        let wanted: Vec<&String> = world.nodes.iter().filter(|(name, word)| name == word).map(|(name, _)| name).collect();
        for name in wanted {
            let here: Vec<_> = world.live.iter().filter(|pod| pod.node.as_deref() == Some(name)).collect();
            prop_assert_eq!(here.len(), 1, "on {}", name);
            prop_assert_eq!(&here[0].labels["controller-revision-hash"], &hash);
        }
        let barred = world.nodes.values().filter(|word| word.ends_with("!!")).map(|word| word.trim_end_matches('!'));
        let barred: HashSet<&str> = barred.collect();
        prop_assert!(!world.live.iter().any(|pod| pod.node.as_deref().is_some_and(|node| barred.contains(node))));
    }
}
