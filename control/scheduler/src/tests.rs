//! Behaviour of the core, and its law: nodes are never overcommitted.

use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Value, json};

use crate::class::{Class, Classes};
use crate::decide::{Decider, Decision};
use crate::view::{ClusterView, Placed, Uid};
use crate::wire::{Node, Pod};

#[derive(Default)]
struct World {
    view: ClusterView,
    classes: Classes,
    decider: Decider,
    next: usize,
}

impl World {
    fn with(nodes: &[Value]) -> Self {
        let mut world = Self::default();
        for node in nodes {
            world.node(node.clone());
        }
        world
    }

    fn node(&mut self, node: Value) {
        let node: Node = serde_json::from_value(node).unwrap();
        self.view.put_node(node);
    }

    fn class(&mut self, pod: Value) -> Arc<Class> {
        let pod: Pod = serde_json::from_value(pod).unwrap();
        self.classes.intern(Class::of(&pod)).class
    }

    fn decide(&mut self, pod: &Value) -> (Uid, Arc<Class>, Decision) {
        let class = self.class(pod.clone());
        self.next += 1;
        let uid: Uid = format!("u{}", self.next).into();
        let decision = self.decider.decide(&self.view, &uid, &class);
        (uid, class, decision)
    }

    /// Decides and assumes; the node, or the message.
    fn schedule(&mut self, pod: &Value) -> Result<String, String> {
        let (uid, class, decision) = self.decide(pod);
        match decision {
            Decision::Bind(node) => {
                let name = uid.clone();
                self.view
                    .place(&uid, Placed { name, node: node.clone(), class, labels: Arc::default(), leaving: false });
                Ok(node.to_string())
            }
            Decision::Unschedulable(diagnosis) => Err(diagnosis.message.clone()),
        }
    }
}

fn node(name: &str, change: Value) -> Value {
    let mut node = json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "spec": {}, "status": {
            "allocatable": {"cpu": "2", "memory": "4Gi", "pods": "10"}, "conditions": [{"type": "Ready", "status": "True"}],
        },
    });
    merge(&mut node, &change);
    node
}

fn pod(change: Value) -> Value {
    let mut pod = json!({
        "metadata": {"name": "p", "namespace": "n", "labels": {"app": "a"}},
        "spec": {"containers": [{"resources": {"requests": {"cpu": "500m", "memory": "1Gi"}}}]},
    });
    merge(&mut pod, &change);
    pod
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

#[test]
fn says_why_in_the_words_of_kubernetes() {
    let helpless = "preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling.";
    let big = json!({"spec": {"containers": [{"resources": {"requests": {"cpu": "64", "example.com/gpu": "1"}}}]}});
    for (spec, change, expected) in [
        (json!({}), big, format!("1 Insufficient cpu, 1 Insufficient example.com/gpu. {helpless}")),
        (json!({"spec": {"unschedulable": true}}), json!({}), format!("1 node(s) were unschedulable. {helpless}")),
        (
            json!({"spec": {"taints": [{"key": "a", "effect": "NoSchedule"}]}}),
            json!({}),
            format!("1 node(s) had untolerated taint(s). {helpless}"),
        ),
        (
            json!({}),
            json!({"spec": {"nodeSelector": {"disk": "fast"}}}),
            format!("1 node(s) didn't match Pod's node affinity/selector. {helpless}"),
        ),
        (
            json!({"status": {"allocatable": {"pods": "0"}}}),
            json!({}),
            "1 Too many pods. preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod."
                .to_owned(),
        ),
    ] {
        let mut world = World::with(&[node("one", spec)]);
        assert_eq!(world.schedule(&pod(change)), Err(format!("0/1 nodes are available: {expected}")));
    }
    assert_eq!(World::default().schedule(&pod(json!({}))), Err("no nodes available to schedule pods".to_owned()));
}

#[test]
fn fills_and_says_so() {
    let mut world = World::with(&[node("one", json!({}))]);
    for _ in 0..4 {
        assert_eq!(world.schedule(&pod(json!({}))), Ok("one".to_owned()));
    }
    assert_eq!(
        world.schedule(&pod(json!({}))),
        Err("0/1 nodes are available: 1 Insufficient cpu, 1 Insufficient memory. preemption: 0/1 nodes are \
             available: 1 No preemption victims found for incoming pod."
            .to_owned())
    );
    world.view.remove("u1");
    assert_eq!(world.schedule(&pod(json!({}))), Ok("one".to_owned()), "room that was made is seen");
}

#[test]
fn prefers_the_emptier_node_and_spreads() {
    let mut world = World::with(&[node("a", json!({})), node("b", json!({})), node("c", json!({}))]);
    let owned = pod(json!({"metadata": {"ownerReferences": [
        {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "r", "controller": true}]}}));
    let mut nodes: Vec<_> = (0..3).map(|_| world.schedule(&owned).unwrap()).collect();
    nodes.sort();
    assert_eq!(nodes, ["a", "b", "c"]);
}

#[test]
fn honours_what_nodes_and_pods_ask_for() {
    let toleration = json!({"spec": {"tolerations": [{"key": "a", "operator": "Exists"}]}});
    let affinity = |kind: &str, terms: Value| json!({"spec": {"affinity": {"nodeAffinity": {kind: terms}}}});
    let required = "requiredDuringSchedulingIgnoredDuringExecution";
    let preferred = "preferredDuringSchedulingIgnoredDuringExecution";
    let fast = json!({"matchExpressions": [{"key": "disk", "operator": "In", "values": ["fast"]}]});
    for (spec, change, expected) in [
        (json!({"spec": {"taints": [{"key": "a", "effect": "NoExecute"}]}}), json!({}), "plain"),
        (json!({"spec": {"taints": [{"key": "a", "effect": "PreferNoSchedule"}]}}), json!({}), "plain"),
        (
            json!({"spec": {"taints": [{"key": "a", "effect": "NoSchedule"}]}, "metadata": {"labels": {"disk": "fast"}}}),
            {
                let mut both = toleration.clone();
                merge(&mut both, &json!({"spec": {"nodeSelector": {"disk": "fast"}}}));
                both
            },
            "special",
        ),
        (
            json!({"metadata": {"labels": {"disk": "fast"}}}),
            affinity(required, json!({"nodeSelectorTerms": [fast]})),
            "special",
        ),
        (
            json!({"metadata": {"labels": {"disk": "fast"}}}),
            affinity(preferred, json!([{"weight": 1, "preference": fast}])),
            "special",
        ),
        (
            json!({}),
            affinity(
                required,
                json!({"nodeSelectorTerms": [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["special"]}]}]}),
            ),
            "special",
        ),
    ] {
        let mut world = World::with(&[node("plain", json!({})), node("special", spec)]);
        assert_eq!(world.schedule(&pod(change.clone())).as_deref(), Ok(expected), "{change}");
    }
}

#[test]
fn host_ports_are_taken_once_per_node() {
    let mut world = World::with(&[node("a", json!({})), node("b", json!({}))]);
    let port = |ip: Value| {
        pod(json!({"spec": {"containers": [{"ports": [{"containerPort": 80, "hostPort": 80, "hostIP": ip}]}]}}))
    };
    assert!(world.schedule(&port(Value::Null)).is_ok());
    assert!(world.schedule(&port(Value::Null)).is_ok());
    let refused = world.schedule(&port(json!("127.0.0.1"))).unwrap_err();
    assert!(refused.starts_with("0/2 nodes are available: 2 node(s) didn't have free ports"), "{refused}");
}

#[test]
fn pods_keep_apart_and_together() {
    let zone = |name: &str, zone: &str| node(name, json!({"metadata": {"labels": {"zone": zone}}}));
    let nodes = [zone("a", "1"), zone("b", "1"), zone("c", "2")];
    let term = json!([{"labelSelector": {"matchLabels": {"app": "a"}}, "topologyKey": "zone"}]);
    let affinity =
        |kind: &str| json!({"spec": {"affinity": {kind: {"requiredDuringSchedulingIgnoredDuringExecution": term}}}});

    let mut world = World::with(&nodes);
    let apart = pod(affinity("podAntiAffinity"));
    assert!(world.schedule(&apart).is_ok() && world.schedule(&apart).is_ok());
    assert!(world.schedule(&apart).unwrap_err().contains("3 node(s) didn't match pod anti-affinity rules"));
    let plain = pod(json!({}));
    assert!(world.schedule(&plain).unwrap_err().contains("3 node(s) didn't satisfy existing pods anti-affinity rules"));

    let mut world = World::with(&nodes);
    let together = pod(affinity("podAffinity"));
    let first = world.schedule(&together).unwrap();
    for _ in 0..3 {
        let next = world.schedule(&together).unwrap();
        assert_eq!(first == "c", next == "c", "{first} and {next} are in different zones");
    }

    let mut world = World::with(&nodes);
    let spread = pod(json!({"spec": {"topologySpreadConstraints": [{
        "maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": {"app": "a"}}}]}}));
    let placed: Vec<_> = (0..6).map(|_| world.schedule(&spread).unwrap()).collect();
    assert_eq!(placed.iter().filter(|node| *node == "c").count(), 3, "{placed:?}");
}

#[test]
fn preempts_the_least_valuable() {
    let mut world = World::with(&[node("a", json!({})), node("b", json!({}))]);
    let with = |priority: i32, cpu: &str| {
        pod(json!({"spec": {"priority": priority, "containers": [{"resources": {"requests": {"cpu": cpu}}}]}}))
    };
    for priority in [5, 3, 7, 1] {
        world.schedule(&with(priority, "1")).unwrap();
    }
    let (uid, class, decision) = world.decide(&with(10, "1"));
    let Decision::Unschedulable(diagnosis) = decision else { panic!("no room was to be had") };
    let preemption = diagnosis.preemption.clone().unwrap();
    let victims: Vec<_> = preemption.victims.iter().map(|uid| world.view.placed(uid).unwrap().class.priority).collect();
    assert_eq!(victims, [1]);
    // Room is made, and kept for whom it was made.
    world.view.nominate(&uid, &preemption.node, &class);
    for victim in &preemption.victims {
        world.view.remove(victim);
    }
    assert!(world.schedule(&with(2, "1")).is_err());
    let decision = world.decider.decide(&world.view, &uid, &class);
    assert!(matches!(decision, Decision::Bind(node) if node == preemption.node));
    let never = pod(json!({"spec": {"priority": 9, "preemptionPolicy": "Never"}}));
    assert!(world.schedule(&never).unwrap_err().ends_with("preemption: not eligible due to preemptionPolicy=Never."));
}

#[test]
fn equal_pods_preempt_each_for_itself() {
    let mut world = World::with(&[node("a", json!({})), node("b", json!({}))]);
    let with = |priority: i32| {
        pod(json!({"spec": {"priority": priority, "containers": [{"resources": {"requests": {"cpu": "1"}}}]}}))
    };
    for _ in 0..4 {
        world.schedule(&with(0)).unwrap();
    }
    let mut victims = std::collections::HashSet::new();
    for index in 0..4 {
        let (uid, class, decision) = world.decide(&with(10));
        let Decision::Unschedulable(diagnosis) = decision else { panic!("no room was to be had") };
        let preemption = diagnosis.preemption.clone().expect("room can be made");
        world.view.nominate(&uid, &preemption.node, &class);
        for victim in &preemption.victims {
            let placed = world.view.placed(victim).unwrap().clone();
            assert!(victims.insert(victim.clone()), "{index} takes the room of another");
            world.view.place(victim, Placed { leaving: true, ..placed });
        }
        let again = world.decider.decide(&world.view, &uid, &class);
        assert!(
            matches!(again, Decision::Unschedulable(diagnosis) if diagnosis.waits),
            "the first victims are not enough?"
        );
    }
    assert_eq!(victims.len(), 4);
    let (_, _, decision) = world.decide(&with(10));
    assert!(
        matches!(decision, Decision::Unschedulable(diagnosis) if diagnosis.preemption.is_none()),
        "no more is to be had"
    );
}

#[test]
fn a_pod_that_leaves_already_is_no_victim() {
    let mut world = World::with(&[node("a", json!({}))]);
    let with = |priority: i32| {
        pod(json!({"spec": {"priority": priority, "containers": [{"resources": {"requests": {"cpu": "1"}}}]}}))
    };
    world.schedule(&with(0)).unwrap();
    world.schedule(&with(0)).unwrap();
    let leaving = Placed { leaving: true, ..world.view.placed("u1").unwrap().clone() };
    world.view.place(&"u1".into(), leaving);
    let (_, _, decision) = world.decide(&with(10));
    let Decision::Unschedulable(diagnosis) = decision else { panic!("it is still there") };
    assert_eq!(diagnosis.preemption.as_ref().map(|preemption| preemption.victims.len()), Some(0));
}

#[test]
fn a_reservation_is_worth_nothing_on_a_node_that_takes_no_pods() {
    let mut world = World::with(&[node("a", json!({}))]);
    let with = |priority: i32| {
        pod(json!({"spec": {"priority": priority, "containers": [{"resources": {"requests": {"cpu": "2"}}}]}}))
    };
    world.schedule(&with(0)).unwrap();
    let (uid, class, _) = world.decide(&with(10));
    world.view.nominate(&uid, &"a".into(), &class);
    let leaving = Placed { leaving: true, ..world.view.placed("u1").unwrap().clone() };
    world.view.place(&"u1".into(), leaving);
    let waits = |world: &mut World| match world.decider.decide(&world.view, &uid, &class) {
        Decision::Unschedulable(diagnosis) => diagnosis.waits,
        Decision::Bind(_) => panic!("there is no room"),
    };
    assert!(waits(&mut world));
    world.node(node("a", json!({"spec": {"unschedulable": true}})));
    assert!(!waits(&mut world));
    world.view.remove_node("a");
    assert_eq!(world.view.nomination(&uid), None);
}

#[test]
fn spread_does_not_count_pods_that_end() {
    let zone = |name: &str| node(name, json!({"metadata": {"labels": {"zone": name}}}));
    let mut world = World::with(&[zone("a"), zone("b")]);
    let spread = pod(json!({"spec": {"topologySpreadConstraints": [{
        "maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": {"app": "a"}}}]}}));
    let first = world.schedule(&spread).unwrap();
    let other = world.schedule(&spread).unwrap();
    assert_ne!(first, other);
    world.schedule(&spread).unwrap();
    // Both of one zone end; that zone is the emptier one now.
    let here: Vec<Uid> =
        world.view.placed_uids().filter(|uid| *world.view.placed(uid).unwrap().node == *first).cloned().collect();
    for uid in here {
        let leaving = Placed { leaving: true, ..world.view.placed(&uid).unwrap().clone() };
        world.view.place(&uid, leaving);
    }
    assert_eq!(world.schedule(&spread), Ok(first));
}

#[test]
fn a_node_that_never_said_how_it_is_takes_no_pods() {
    let mut world = World::with(&[node("ghost", json!({"status": {"conditions": []}}))]);
    assert!(world.schedule(&pod(json!({}))).unwrap_err().contains("1 node(s) had untolerated taint(s)"));
    world.node(node("ghost", json!({})));
    assert!(world.schedule(&pod(json!({}))).is_ok());
}

#[test]
fn many_classes_and_deletions_do_not_make_anybody_look_at_all_nodes() {
    let nodes: Vec<Value> =
        (0..50).map(|index| node(&format!("n{index}"), json!({"status": {"allocatable": {"pods": "40"}}}))).collect();
    let mut world = World::with(&nodes);
    let of = |family: usize, label: usize| {
        pod(json!({
            "metadata": {
                "labels": {"app": format!("a{family}"), "pod": format!("p{label}")},
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": format!("r{family}"), "controller": true}],
            },
            "spec": {"containers": [{"resources": {"requests": {"cpu": "1m", "memory": "1Mi"}}}]},
        }))
    };
    let mut placed: std::collections::HashMap<(usize, String), usize> = Default::default();
    for round in 0..5 {
        for family in 0..200 {
            let node = world.schedule(&of(family, round)).unwrap();
            *placed.entry((family, node)).or_default() += 1;
            if family % 3 == 0 {
                let gone: Uid = format!("u{}", world.next - 1).into();
                world.view.remove(&gone);
            }
        }
    }
    assert_eq!(world.decider.built, 1, "all are of one shape");
    assert!(placed.values().all(|count| *count <= 2), "families are spread");
    // Nobody selects by these labels, so the pods of a family are one class until somebody does.
    let (one, other) = (world.class(of(1, 1)), world.class(of(1, 2)));
    assert!(Arc::ptr_eq(&one, &other));
    let selecting =
        pod(json!({"spec": {"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
        {"labelSelector": {"matchLabels": {"pod": "p1"}}, "topologyKey": "kubernetes.io/hostname"}]}}}}));
    let selecting: Pod = serde_json::from_value(selecting).unwrap();
    assert!(world.classes.intern(Class::of(&selecting)).widened);
    assert!(!Arc::ptr_eq(&world.class(of(1, 1)), &world.class(of(1, 2))));
}

#[test]
fn room_that_is_made_is_seen_by_every_shape_and_the_best_still_wins() {
    let mut world = World::with(&[node("a", json!({})), node("b", json!({}))]);
    let big = pod(json!({"spec": {"containers": [{"resources": {"requests": {"cpu": "2"}}}]}}));
    let small = pod(json!({"spec": {"containers": [{"resources": {"requests": {"cpu": "100m"}}}]}}));
    world.schedule(&big).unwrap();
    world.schedule(&big).unwrap();
    assert!(world.schedule(&big).is_err() && world.schedule(&small).is_err());
    world.view.remove("u1");
    let free = world.schedule(&small).unwrap();
    assert!(world.schedule(&big).is_err());
    world.view.remove("u2");
    let other = world.schedule(&big).unwrap();
    assert_ne!(free, other);
    assert_eq!(world.decider.built, 2);
}

#[derive(Debug, Clone)]
enum Step {
    /// cpu in hundredths of a core, memory in MiB, of one of few classes.
    Pod(u32, u32, bool),
    Remove(usize),
    Node(u8, u32),
    Drop(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..80_u32, 0..900_u32, any::<bool>()).prop_map(|(cpu, memory, port)| Step::Pod(cpu / 20 * 20, memory / 300 * 300, port)),
        3 => (0..40_usize).prop_map(Step::Remove),
        2 => (0..4_u8, 1..5_u32).prop_map(|(node, cores)| Step::Node(node, cores)),
        1 => (0..4_u8).prop_map(Step::Drop),
    ]
}

proptest! {
    /// Whatever comes and goes: what is placed on a node by us fits into it, and a pod is refused only if no node has
    /// room.
    #[test]
    fn never_overcommits(steps in prop::collection::vec(step(), 1..120)) {
        let mut world = World::with(&[node("n0", json!({})), node("n1", json!({}))]);
        let mut live: Vec<Uid> = vec![];
        for step in steps {
            match step {
                Step::Pod(cpu, memory, port) => {
                    let ports = if port { json!([{"containerPort": 1, "hostPort": 1}]) } else { json!([]) };
                    let requests = json!({"cpu": format!("{}m", cpu * 10), "memory": format!("{memory}Mi")});
                    let pod = pod(json!({"spec": {"containers": [{"resources": {"requests": requests}, "ports": ports}]}}));
                    let (uid, class, decision) = world.decide(&pod);
                    match decision {
                        Decision::Bind(name) => {
                            let node = world.view.named(&name).unwrap();
                            prop_assert!(node.load.used.cpu + class.requests.exact.cpu <= node.allocatable.cpu || class.requests.exact.cpu == 0);
                            prop_assert!(node.load.used.memory + class.requests.exact.memory <= node.allocatable.memory || class.requests.exact.memory == 0);
                            prop_assert!(i64::try_from(node.pods.len()).unwrap() < node.pods_max);
                            prop_assert!(!port || node.load.ports.is_empty());
                            world.view.place(&uid, Placed { name: uid.clone(), node: name, class, labels: Arc::default(), leaving: false });
                            live.push(uid);
                        }
                        Decision::Unschedulable(_) => {
                            let room = world.view.nodes().any(|(_, node)| crate::filter::all(&class, node, None, None).is_ok());
                            prop_assert!(!room, "there was room");
                        }
                    }
                }
                Step::Remove(index) => {
                    if index < live.len() {
                        world.view.remove(&live.swap_remove(index));
                    }
                }
                Step::Node(index, cores) => {
                    let allocatable = json!({"cpu": cores.to_string(), "memory": format!("{cores}Gi"), "pods": "10"});
                    world.node(node(&format!("n{index}"), json!({"status": {"allocatable": allocatable}})));
                }
                Step::Drop(index) => world.view.remove_node(&format!("n{index}")),
            }
            for (_, node) in world.view.nodes() {
                let sum: i64 = node.pods.values().map(|class| class.requests.exact.cpu).sum();
                prop_assert_eq!(sum, node.load.used.cpu, "what is taken adds up");
                prop_assert_eq!(node.load.count, i64::try_from(node.pods.len()).unwrap());
            }
        }
    }
}
