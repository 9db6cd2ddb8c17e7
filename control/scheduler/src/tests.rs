//! Behaviour of the core, and its law: nodes are never overcommitted.

use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Value, json};

use crate::class::{Class, Classes, HostPort, Ports};
use crate::decide::{Decider, Decision};
use crate::domains::Topologies;
use crate::relations::Relations;
use crate::view::{ClusterView, Placed, Uid};
use crate::wire::{Node, Pod};

#[derive(Default)]
struct World {
    view: ClusterView,
    classes: Classes,
    decider: Decider,
    next: usize,
    /// Of the pod that was looked at last.
    labels: Arc<crate::wire::Labels>,
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
        let interned = self.classes.intern(Class::of(&pod));
        if !interned.widened.is_empty() {
            let classes = &mut self.classes;
            self.view.reclassify(&interned.widened, |class, labels| classes.again(class, labels));
        }
        self.labels = interned.labels;
        interned.class
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
                self.view.place(
                    &uid,
                    Placed { name, node: node.clone(), class, labels: self.labels.clone(), leaving: false, started: 0 },
                );
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
fn pods_of_daemon_sets_look_at_their_node_only() {
    let mut world = World::with(&[
        node("a", json!({})),
        node("b", json!({"spec": {"unschedulable": true}})),
        node("c", json!({"spec": {"taints": [{"key": "mine", "effect": "NoSchedule"}]}})),
    ]);
    let daemon = |node: &str| {
        let field = json!({"key": "metadata.name", "operator": "In", "values": [node]});
        let terms = json!({"nodeSelectorTerms": [{"matchFields": [field]}]});
        pod(json!({"spec": {
            "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}},
            "tolerations": [{"key": "node.kubernetes.io/unschedulable", "operator": "Exists", "effect": "NoSchedule"}],
        }}))
    };
    for name in ["b", "a", "b"] {
        assert_eq!(world.schedule(&daemon(name)).as_deref(), Ok(name));
    }
    for (name, expected) in [
        (
            "c",
            "0/3 nodes are available: 1 node(s) had untolerated taint(s), 2 node(s) didn't satisfy plugin(s) [NodeAffinity].",
        ),
        ("gone", "0/3 nodes are available: 3 node(s) didn't satisfy plugin(s) [NodeAffinity]."),
    ] {
        let refused = world.schedule(&daemon(name)).unwrap_err();
        assert!(refused.starts_with(expected), "{refused}");
        assert!(refused.contains("3 Preemption is not helpful for scheduling"), "{refused}");
    }
    assert_eq!(world.decider.built, 0, "no other node was looked at");
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
fn a_host_port_is_free_again_where_and_when_nobody_has_it() {
    let port = |ip: &str| HostPort { port: (80, "TCP".to_owned()), ip: ip.to_owned() };
    let mut ports = Ports::default();
    for (taken, asked, conflict) in [
        ("", "", true),
        ("", "10.0.0.1", true),
        ("10.0.0.1", "", true),
        ("10.0.0.1", "10.0.0.1", true),
        ("10.0.0.1", "10.0.0.2", false),
    ] {
        // One that is asked for twice is free when both are gone.
        ports.add(&port(taken));
        ports.add(&port(taken));
        ports.remove(&port(taken));
        assert_eq!(ports.conflict(&port(asked)), conflict, "{taken:?} {asked:?}");
        assert!(!ports.conflict(&HostPort { port: (80, "UDP".to_owned()), ..port(asked) }));
        ports.remove(&port(taken));
        assert!(!ports.conflict(&port(asked)) && ports.is_empty());
    }
}

#[test]
fn pods_with_thousands_of_host_ports_keep_nobody_waiting() {
    let mut world = World::with(&[node("a", json!({}))]);
    let begun = std::time::Instant::now();
    let mut schedule = |first: u16| {
        let ports: Value =
            (first..first + 30_000).map(|port| json!({"containerPort": port, "hostPort": port})).collect();
        world.schedule(&pod(json!({"spec": {"containers": [{ "ports": ports }]}}))).is_ok()
    };
    assert_eq!([1, 30_001, 15_000].map(&mut schedule), [true, true, false]);
    assert!(begun.elapsed() < std::time::Duration::from_secs(5), "{:?}", begun.elapsed());
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
    assert_eq!(world.view.remove_node("a"), std::slice::from_ref(&uid));
    assert_eq!(world.view.nomination(&uid), None);
}

#[test]
fn a_reservation_on_a_node_that_is_not_known_holds_from_when_it_comes() {
    let mut world = World::with(&[]);
    let with = |priority: i32| {
        pod(json!({"spec": {"priority": priority, "containers": [{"resources": {"requests": {"cpu": "2"}}}]}}))
    };
    let (uid, class, _) = world.decide(&with(10));
    world.view.nominate(&uid, &"a".into(), &class);
    assert_eq!(world.view.nomination(&uid).map(|node| &**node), Some("a"));
    world.node(node("a", json!({})));
    assert!(world.schedule(&with(0)).is_err(), "the room is another's");
    assert!(matches!(world.decider.decide(&world.view, &uid, &class), Decision::Bind(node) if &*node == "a"));
    // It is taken back of a node that has not come as of any other.
    let (other, class, _) = world.decide(&with(10));
    world.view.nominate(&other, &"b".into(), &class);
    assert!(world.view.withdraw(&other) && !world.view.withdraw(&other));
    world.node(node("b", json!({})));
    world.schedule(&with(0)).unwrap();
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
    assert!(!world.classes.intern(Class::of(&selecting)).widened.is_empty());
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

fn zoned(name: &str, zone: &str) -> Value {
    node(name, json!({"metadata": {"labels": {"topology.kubernetes.io/zone": zone}}}))
}

/// A pod of these labels with something about other pods.
fn social(labels: Value, kind: &str, terms: Value) -> Value {
    json!({
        "metadata": {"name": "p", "namespace": "n", "labels": labels},
        "spec": {"affinity": {kind: terms}, "containers": [{"resources": {"requests": {"cpu": "100m"}}}]},
    })
}

fn term(labels: Value, key: &str) -> Value {
    json!({"labelSelector": {"matchLabels": labels}, "topologyKey": key})
}

const HARD: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const SOFT: &str = "preferredDuringSchedulingIgnoredDuringExecution";
const ZONE: &str = "topology.kubernetes.io/zone";
const HOST: &str = "kubernetes.io/hostname";

#[test]
fn a_pod_that_asks_for_more_than_any_node_has_leaves_what_others_take() {
    let ask =
        json!({"cpu": i64::MAX.to_string(), "memory": i64::MAX.to_string(), "example.com/a": i64::MAX.to_string()});
    let huge =
        pod(json!({"spec": {"containers": [{"resources": {"requests": ask}}, {"resources": {"requests": ask}}]}}));
    let mut world = World::with(&[node("one", json!({}))]);
    world.schedule(&pod(json!({}))).unwrap();
    let before = world.view.named("one").unwrap().load.clone();
    let class = world.class(huge);
    // They name their node themselves: nobody asks whether they fit.
    for uid in ["huge", "huger"] {
        let (name, labels) = (uid.into(), world.labels.clone());
        let placed = Placed { name, node: "one".into(), class: class.clone(), labels, leaving: false, started: 0 };
        world.view.place(&uid.into(), placed);
    }
    assert!(world.schedule(&pod(json!({}))).is_err());
    world.view.remove("huge");
    world.view.remove("huger");
    let after = &world.view.named("one").unwrap().load;
    assert_eq!((&after.used, after.used_assumed), (&before.used, before.used_assumed));
}

#[test]
fn keys_that_no_node_has_cost_nobody_anything_until_one_has_them() {
    let apart = |key: &str| json!({"topologyKey": key, "labelSelector": {}, "namespaceSelector": {}});
    let terms: Vec<Value> = (0..1000).map(|index| apart(&format!("k{index}"))).collect();
    let mut world = World::with(&[node("one", json!({}))]);
    let crowd = social(json!({"app": "crowd"}), "podAntiAffinity", json!({HARD: terms}));
    assert_eq!(world.schedule(&crowd), Ok("one".to_owned()));
    let other = pod(json!({"metadata": {"labels": {"app": "b"}}}));
    let class = world.class(other.clone());
    let relations = Relations::new(&world.view, &class, &mut Topologies::default());
    assert!(relations.is_idle(), "nothing is counted for those keys");
    let class = world.class(crowd);
    let relations = Relations::new(&world.view, &class, &mut Topologies::default());
    assert!(relations.cells() >= 1000, "a term of its own is counted, however few nodes it means");
    // Each key is counted once, whoever comes and goes.
    world.node(node("one", json!({"metadata": {"labels": {"k7": "x"}}})));
    let refused = world.schedule(&other).unwrap_err();
    assert!(refused.contains("existing pods anti-affinity"), "{refused}");
    world.node(node("two", json!({"metadata": {"labels": {"k7": "y"}}})));
    assert_eq!(world.schedule(&other), Ok("two".to_owned()));
    world.view.remove_node("two");
    assert!(world.view.has_label("k7"));
    world.node(node("one", json!({})));
    assert!(!world.view.has_label("k7"));
    assert_eq!(world.schedule(&other), Ok("one".to_owned()));
}

#[test]
fn only_pods_that_have_a_label_are_looked_at_when_somebody_selects_by_it_first() {
    let mut world = World::with(&[node("one", json!({}))]);
    let class = |world: &mut World, app: &str| {
        let labels = json!({"app": app, "rack": app});
        world.class(json!({"metadata": {"name": "p", "namespace": "n", "labels": labels}, "spec": {}}))
    };
    let before = class(&mut world, "a");
    let select = |key: &str| social(json!({}), "podAffinity", json!({HARD: [term(json!({key: "x"}), HOST)]}));
    let pod: Pod = serde_json::from_value(select("nobody")).unwrap();
    assert!(world.classes.intern(Class::of(&pod)).widened.is_empty(), "no pod has it");
    let pod: Pod = serde_json::from_value(select("rack")).unwrap();
    let widened = world.classes.intern(Class::of(&pod)).widened;
    assert_eq!(widened.into_iter().collect::<Vec<_>>(), ["rack"]);
    let after = class(&mut world, "a");
    assert!(before.labels.is_empty());
    assert!(after.labels.keys().eq(["rack"]));
}

#[test]
fn what_selected_once_is_forgotten() {
    let mut world = World::with(&[]);
    let mut kept = Vec::new();
    for round in 0..2000 {
        let terms: Vec<Value> = (0..20).map(|index| term(json!({format!("key-{round}-{index}"): "x"}), HOST)).collect();
        let class = world.class(social(json!({}), "podAntiAffinity", json!({HARD: terms})));
        if round < 3 {
            kept.push(class);
        }
    }
    let remembered = world.classes.remembered();
    assert!(remembered < 2000 * 20 / 2, "{remembered} keys are remembered");
    assert!(world.classes.selects_by("key-2-19") && !world.classes.selects_by("key-3-0"));
    // Labels by which nobody selects make no new class, and are forgotten all the same.
    for index in 0..20_000 {
        world.class(pod(json!({"metadata": {"labels": {"run": format!("r{index}")}}})));
    }
    let remembered = world.classes.remembered_labels();
    assert!(remembered < 10_000, "{remembered} sets of labels are remembered");
}

#[test]
fn a_partner_is_who_matches_all_terms() {
    let mut world = World::with(&[zoned("a", "1"), zoned("b", "2")]);
    let plain = |labels: Value| social(labels, "podAffinity", json!({}));
    world.schedule(&plain(json!({"app": "x"}))).unwrap();
    world.schedule(&plain(json!({"tier": "y"}))).unwrap();
    let both = social(
        json!({}),
        "podAffinity",
        json!({HARD: [term(json!({"app": "x"}), ZONE), term(json!({"tier": "y"}), HOST)]}),
    );
    let refused = world.schedule(&both).unwrap_err();
    assert!(refused.contains("2 node(s) didn't match pod affinity rules"), "{refused}");
    let partner = world.schedule(&plain(json!({"app": "x", "tier": "y"}))).unwrap();
    assert_eq!(world.schedule(&both), Ok(partner));
}

#[test]
fn replicas_are_spread_over_zones_and_nodes_unless_they_say_something_themselves() {
    let mut nodes: Vec<Value> = (0..9).map(|index| zoned(&format!("a{index}"), "a")).collect();
    nodes.extend([zoned("b", "b"), zoned("c", "c")]);
    let of = |kind: &str, change: Value| {
        let mut pod = pod(json!({
            "metadata": {"ownerReferences": [{"apiVersion": "apps/v1", "kind": kind, "name": "r", "uid": "r", "controller": true}]},
            "spec": {"containers": [{"resources": {"requests": {"cpu": "1m", "memory": "1Mi"}}}]},
        }));
        merge(&mut pod, &change);
        pod
    };
    let zones = |pod: &Value| {
        let mut world = World::with(&nodes);
        let mut zones: Vec<char> = (0..3).map(|_| world.schedule(pod).unwrap().chars().next().unwrap()).collect();
        zones.sort_unstable();
        zones
    };
    assert_eq!(zones(&of("ReplicaSet", json!({}))), ['a', 'b', 'c']);
    assert_eq!(zones(&of("StatefulSet", json!({}))), ['a', 'b', 'c']);
    // Nobody asked for it, and the first nodes are as good as the others.
    assert_eq!(zones(&of("Job", json!({}))), ['a', 'a', 'a']);
    let own = json!({"spec": {"topologySpreadConstraints": [{"maxSkew": 9, "topologyKey": HOST,
        "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"app": "a"}}}]}});
    assert_eq!(zones(&of("ReplicaSet", own)), ['a', 'a', 'a']);
}

#[test]
fn what_others_wish_for_counts_too() {
    let weighed = |labels: Value| json!([{"weight": 50, "podAffinityTerm": term(labels, HOST)}]);
    let red = social(json!({"color": "red"}), "podAffinity", json!({}));
    for (kind, terms, together) in [
        ("podAntiAffinity", json!({SOFT: weighed(json!({"color": "red"}))}), false),
        ("podAffinity", json!({SOFT: weighed(json!({"color": "red"}))}), true),
        ("podAffinity", json!({HARD: [term(json!({"color": "red"}), HOST)]}), true),
    ] {
        let mut world = World::with(&[zoned("a", "1"), zoned("b", "1")]);
        let first = world.schedule(&social(json!({"color": "red"}), kind, terms.clone())).unwrap();
        if !together {
            // Without the wish the other node would be the worse one.
            let class = world.class(pod(json!({"metadata": {"labels": {}}})));
            let placed = Placed {
                name: "f".into(),
                node: "b".into(),
                class,
                labels: Arc::default(),
                leaving: false,
                started: 0,
            };
            world.view.place(&"f".into(), placed);
        }
        assert_eq!(world.schedule(&red).unwrap() == first, together, "{kind} {terms}");
    }
}

#[test]
fn a_selector_of_namespaces_means_those_that_it_selects() {
    let mut world = World::with(&[zoned("a", "1")]);
    let mut apart = term(json!({"app": "x"}), HOST);
    apart["namespaceSelector"] = json!({"matchLabels": {"team": "t"}});
    let pod = social(json!({"app": "y"}), "podAntiAffinity", json!({HARD: [apart]}));
    let mut neighbour = social(json!({"app": "x"}), "podAffinity", json!({}));
    neighbour["metadata"]["namespace"] = json!("other");
    world.schedule(&neighbour).unwrap();
    assert!(world.schedule(&pod).is_err(), "as long as namespaces are not known it keeps away");
    world.view.put_namespace("other", Some([("team".to_owned(), "u".to_owned())].into()));
    world.view.namespaces_listed();
    assert!(world.schedule(&pod).is_ok());
    world.view.put_namespace("other", Some([("team".to_owned(), "t".to_owned())].into()));
    assert!(world.schedule(&pod).is_err());
}

#[test]
fn who_is_in_the_way_of_anti_affinity_makes_room_too() {
    let mut world = World::with(&[zoned("a", "1")]);
    let low = social(json!({"app": "x"}), "podAffinity", json!({}));
    world.schedule(&low).unwrap();
    world.schedule(&social(json!({"app": "z"}), "podAffinity", json!({}))).unwrap();
    let mut high = social(json!({"app": "y"}), "podAntiAffinity", json!({HARD: [term(json!({"app": "x"}), HOST)]}));
    high["spec"]["priority"] = json!(10);
    let (_, _, decision) = world.decide(&high);
    let Decision::Unschedulable(diagnosis) = decision else { panic!("it may not be beside the other") };
    let preemption = diagnosis.preemption.as_ref().expect("room can be made");
    assert_eq!(preemption.victims, ["u1".into()], "and only by whom it is about");
    // The same the other way round: the one that is there keeps others off.
    let mut world = World::with(&[zoned("a", "1")]);
    world
        .schedule(&social(json!({"app": "x"}), "podAntiAffinity", json!({HARD: [term(json!({"app": "y"}), HOST)]})))
        .unwrap();
    let mut high = social(json!({"app": "y"}), "podAffinity", json!({}));
    high["spec"]["priority"] = json!(10);
    let (_, _, decision) = world.decide(&high);
    assert!(
        matches!(decision, Decision::Unschedulable(it) if it.preemption.as_ref().is_some_and(|it| it.victims.len() == 1))
    );
}

#[test]
fn a_label_that_nobody_selected_when_it_changed_counts_as_it_is() {
    let mut world = World::with(&[zoned("a", "1")]);
    world.schedule(&social(json!({"tier": "a"}), "podAffinity", json!({}))).unwrap();
    // The same pod, as its next event shows it.
    let class = world.class(social(json!({"tier": "b"}), "podAffinity", json!({})));
    let (uid, labels): (Uid, _) = ("u1".into(), world.labels.clone());
    world.view.place(&uid, Placed { name: uid.clone(), node: "a".into(), class, labels, leaving: false, started: 0 });
    let keeps_off = |tier: &str| json!({HARD: [term(json!({"tier": tier}), HOST)]});
    assert!(world.schedule(&social(json!({"app": "x"}), "podAntiAffinity", keeps_off("b"))).is_err());
    assert_eq!(world.schedule(&social(json!({"app": "x"}), "podAntiAffinity", keeps_off("a"))).as_deref(), Ok("a"));
}

#[test]
fn a_budget_is_kept_where_it_can_be() {
    use crate::view::Budget;
    let of = |app: &str, priority: i32| {
        json!({
            "metadata": {"name": "p", "namespace": "n", "labels": {"app": app}},
            "spec": {"priority": priority, "containers": [{"resources": {"requests": {"cpu": "2"}}}]},
        })
    };
    let mut world = World::with(&[node("a", json!({})), node("b", json!({}))]);
    for (app, priority) in [("kept", 1), ("free", 5)] {
        let pod = of(app, priority);
        let class = world.class(pod.clone());
        let labels = Arc::new([("app".to_owned(), app.to_owned())].into());
        let node = if app == "kept" { "a" } else { "b" };
        let placed = Placed { name: app.into(), node: node.into(), class, labels, leaving: false, started: 0 };
        world.view.place(&app.into(), placed);
    }
    let victims = |world: &mut World| {
        let (_, _, decision) = world.decide(&of("new", 10));
        let Decision::Unschedulable(diagnosis) = decision else { panic!("there is no room") };
        diagnosis.preemption.as_ref().expect("room can be made").victims.clone()
    };
    assert_eq!(victims(&mut world), ["kept".into()], "the less important one");
    let budget = |allowed: i64, disrupted: &[&str]| Budget {
        selector: serde_json::from_value(json!({"matchLabels": {"app": "kept"}})).unwrap(),
        allowed,
        disrupted: disrupted.iter().map(|name| (*name).to_owned()).collect(),
    };
    let key = || ("n".into(), "budget".into());
    world.view.put_budget(("other".into(), "budget".into()), Some(budget(0, &[])));
    assert_eq!(victims(&mut world), ["kept".into()], "a budget is about pods of its namespace");
    world.view.put_budget(key(), Some(budget(1, &[])));
    assert_eq!(victims(&mut world), ["kept".into()], "one may go");
    world.view.put_budget(key(), Some(budget(0, &[])));
    assert_eq!(victims(&mut world), ["free".into()], "rather a more important one that has no budget");
    world.view.put_budget(key(), Some(budget(0, &["kept"])));
    assert_eq!(victims(&mut world), ["kept".into()], "its going is counted already");
    world.view.put_budget(key(), Some(budget(0, &[])));
    world.view.remove("free");
    let full = world.class(of("full", 20));
    let placed = Placed {
        name: "full".into(),
        node: "b".into(),
        class: full,
        labels: Arc::default(),
        leaving: false,
        started: 0,
    };
    world.view.place(&"full".into(), placed);
    assert_eq!(victims(&mut world), ["kept".into()], "nothing else helps");
}

#[test]
fn pods_are_counted_once_and_not_for_every_pod() {
    let nodes: Vec<Value> = (0..30).map(|index| zoned(&format!("n{index}"), ["1", "2", "3"][index % 3])).collect();
    let spread = json!({"spec": {"topologySpreadConstraints": [{
        "maxSkew": 1, "topologyKey": ZONE, "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": {"app": "a"}}}], "containers": [{"resources": {"requests": {"cpu": "1m", "memory": "1Mi"}}}]}});
    let apart = social(json!({"app": "b"}), "podAntiAffinity", json!({HARD: [term(json!({"app": "b"}), HOST)]}));
    let mut world = World::with(&nodes);
    for _ in 0..30 {
        world.schedule(&pod(spread.clone())).unwrap();
        world.schedule(&apart).unwrap();
    }
    assert!(world.schedule(&apart).is_err());
    assert_eq!((world.decider.counted, world.decider.built), (2, 2));
}

#[derive(Debug, Clone)]
enum Social {
    Pod(usize),
    Remove(usize),
    Leave(usize),
    Node(usize, usize),
    Drop(usize),
}

fn social_step() -> impl Strategy<Value = Social> {
    prop_oneof![
        8 => (0..7_usize).prop_map(Social::Pod),
        2 => (0..20_usize).prop_map(Social::Remove),
        1 => (0..20_usize).prop_map(Social::Leave),
        1 => ((0..6_usize), (0..4_usize)).prop_map(|(node, zone)| Social::Node(node, zone)),
        1 => (0..6_usize).prop_map(Social::Drop),
    ]
}

proptest! {
    /// What is counted step by step is what is counted anew: the same nodes, and the same words where there is none.
    #[test]
    fn counts_that_are_kept_are_those_that_are_made_anew(steps in prop::collection::vec(social_step(), 1..60)) {
        let spread = |key: &str, when: &str| json!([{"maxSkew": 1, "topologyKey": key, "whenUnsatisfiable": when,
            "labelSelector": {"matchLabels": {"app": "a"}}}]);
        let mut hard = social(json!({"app": "a"}), "podAffinity", json!({}));
        hard["spec"]["topologySpreadConstraints"] = spread(ZONE, "DoNotSchedule");
        let mut soft = social(json!({"app": "a"}), "podAffinity", json!({}));
        soft["spec"]["topologySpreadConstraints"] = spread(HOST, "ScheduleAnyway");
        let mut family = social(json!({"app": "b"}), "podAffinity", json!({}));
        family["metadata"]["ownerReferences"] = json!([
            {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "r", "controller": true}]);
        let pods = [
            social(json!({"app": "c"}), "podAffinity", json!({})),
            hard,
            soft,
            family,
            social(json!({"app": "b"}), "podAffinity", json!({HARD: [term(json!({"app": "a"}), ZONE)]})),
            social(json!({"app": "c"}), "podAntiAffinity", json!({HARD: [term(json!({"app": "c"}), HOST)]})),
            social(json!({"app": "a"}), "podAntiAffinity", json!({SOFT: [{"weight": 7, "podAffinityTerm": term(json!({"app": "b"}), ZONE)}]})),
        ];
        let named = |index: usize, zone: usize| {
            let labels = if zone == 3 { json!({}) } else { json!({ZONE: zone.to_string()}) };
            node(&format!("n{index}"), json!({"metadata": {"labels": labels}}))
        };
        let mut world = World::with(&[named(0, 0), named(1, 1), named(2, 1)]);
        let mut live: Vec<Uid> = vec![];
        for step in steps {
            match step {
                Social::Pod(index) => {
                    let class = world.class(pods[index].clone());
                    world.next += 1;
                    let uid: Uid = format!("u{}", world.next).into();
                    let kept = world.decider.decide(&world.view, &uid, &class);
                    let anew = Decider::default().decide(&world.view, &uid, &class);
                    match (kept, anew) {
                        (Decision::Bind(kept), Decision::Bind(anew)) => {
                            prop_assert_eq!(&kept, &anew);
                            world.view.place(&uid, Placed { name: uid.clone(), node: kept, class, labels: world.labels.clone(), leaving: false, started: 0 });
                            live.push(uid);
                        }
                        (Decision::Unschedulable(kept), Decision::Unschedulable(anew)) => {
                            prop_assert_eq!(&kept.reasons, &anew.reasons);
                        }
                        (kept, anew) => prop_assert!(false, "{kept:?} {anew:?}"),
                    }
                }
                Social::Remove(index) if index < live.len() => {
                    world.view.remove(&live.swap_remove(index));
                }
                Social::Leave(index) if index < live.len() => {
                    let leaving = Placed { leaving: true, ..world.view.placed(&live[index]).unwrap().clone() };
                    world.view.place(&live[index].clone(), leaving);
                }
                Social::Node(index, zone) => world.node(named(index, zone)),
                Social::Drop(index) => drop(world.view.remove_node(&format!("n{index}"))),
                Social::Remove(_) | Social::Leave(_) => {}
            }
        }
    }
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
                            world.view.place(&uid, Placed { name: uid.clone(), node: name, class, labels: Arc::default(), leaving: false, started: 0 });
                            live.push(uid);
                        }
                        Decision::Unschedulable(_) => {
                            let room = world.view.nodes().any(|(slot, node)| crate::filter::all(&class, (slot, node), None, None).is_ok());
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
                Step::Drop(index) => drop(world.view.remove_node(&format!("n{index}"))),
            }
            for (_, node) in world.view.nodes() {
                let sum: i128 = node.pods.values().map(|class| class.requests.exact.cpu).sum();
                prop_assert_eq!(sum, node.load.used.cpu, "what is taken adds up");
                prop_assert_eq!(node.load.count, i64::try_from(node.pods.len()).unwrap());
            }
        }
    }
}
