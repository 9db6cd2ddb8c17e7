//! How many pods a second the core places, in the shapes of Kubernetes' `scheduler_perf`: no API, no clock but the one that
//! measures.
//!
//! Nodes and pods are those of its templates (4 CPUs, 32 GiB and 110 pods a node; 100m and 500 MiB a pod). `cargo run --release
//! -p coracle-scheduler --example placements` prints all cases.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::class::{Class, Classes, Interned};
use crate::decide::{Decider, Decision};
use crate::view::{ClusterView, Placed, Uid};
use crate::wire::{Node, Pod};

/// Places `pods` pods on `nodes` nodes in each case: its name, and how many a second were placed. A case is measured when it is asked for.
pub fn scheduler_perf(nodes: usize, pods: usize) -> impl Iterator<Item = (&'static str, f64)> {
    Case::ALL.into_iter().map(move |case| (case.name(), case.run(nodes, pods).rate()))
}

/// A workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Case {
    /// Pods that ask for nothing but resources (`SchedulingBasic`).
    Uniform,
    /// ReplicaSets of ten, spread over zones and nodes without being asked to.
    Replicas,
    /// Evenly over zones, `DoNotSchedule` (`TopologySpreading`).
    Spread,
    /// Evenly over zones, `ScheduleAnyway` (`PreferredTopologySpreading`).
    PreferredSpread,
    /// In one zone with others of their kind (`SchedulingPodAffinity`).
    Affinity,
    /// One of their kind a node (`SchedulingPodAntiAffinity`).
    AntiAffinity,
    /// Rather beside others of their kind (`SchedulingPreferredPodAffinity`).
    PreferredAffinity,
    /// Rather not beside others of their kind (`SchedulingPreferredPodAntiAffinity`).
    PreferredAntiAffinity,
    /// Each in the place of others of lower priority (`PreemptionBasic`).
    Preemption,
}

impl Case {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Uniform,
        Self::Replicas,
        Self::Spread,
        Self::PreferredSpread,
        Self::Affinity,
        Self::AntiAffinity,
        Self::PreferredAffinity,
        Self::PreferredAntiAffinity,
        Self::Preemption,
    ];

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Uniform => "uniform",
            Self::Replicas => "replicas",
            Self::Spread => "spread",
            Self::PreferredSpread => "preferred-spread",
            Self::Affinity => "affinity",
            Self::AntiAffinity => "anti-affinity",
            Self::PreferredAffinity => "preferred-affinity",
            Self::PreferredAntiAffinity => "preferred-anti-affinity",
            Self::Preemption => "preemption",
        }
    }

    /// Places `pods` pods on `nodes` nodes that have some already, as is usual in this case.
    #[must_use]
    pub fn run(self, nodes: usize, pods: usize) -> Placements {
        let (existing, pods) = match self {
            // Four a node: no room is left.
            Self::Preemption => (4 * nodes, pods.min(nodes)),
            Self::AntiAffinity => (nodes / 5, pods.min(nodes)),
            _ => (nodes, pods),
        };
        placements(self, nodes, existing, pods)
    }

    fn pod(self, index: usize) -> Value {
        let mut pod = json!({
            "metadata": {"name": "p", "namespace": "measured", "labels": {"color": "blue"}},
            "spec": {"containers": [{"resources": {"requests": {"cpu": "100m", "memory": "500Mi"}}}]},
        });
        let selector = json!({"matchLabels": {"color": "blue"}});
        let term = |key: &str| json!({"topologyKey": key, "labelSelector": selector});
        let spread = |when: &str| json!([{"maxSkew": 5, "topologyKey": ZONE, "whenUnsatisfiable": when, "labelSelector": selector}]);
        let required = "requiredDuringSchedulingIgnoredDuringExecution";
        let preferred = "preferredDuringSchedulingIgnoredDuringExecution";
        match self {
            Self::Uniform => {}
            Self::Replicas => {
                let family = format!("r{}", index / 10);
                pod["metadata"]["ownerReferences"] = json!([
                    {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": family, "uid": family, "controller": true}]);
            }
            Self::Spread => pod["spec"]["topologySpreadConstraints"] = spread("DoNotSchedule"),
            Self::PreferredSpread => pod["spec"]["topologySpreadConstraints"] = spread("ScheduleAnyway"),
            Self::Affinity => pod["spec"]["affinity"]["podAffinity"][required] = json!([term(ZONE)]),
            Self::AntiAffinity => pod["spec"]["affinity"]["podAntiAffinity"][required] = json!([term(HOSTNAME)]),
            Self::PreferredAffinity | Self::PreferredAntiAffinity => {
                let kind = if self == Self::PreferredAffinity { "podAffinity" } else { "podAntiAffinity" };
                pod["spec"]["affinity"][kind][preferred] = json!([{"weight": 1, "podAffinityTerm": term(HOSTNAME)}]);
            }
            Self::Preemption => {
                pod["spec"]["priority"] = json!(10);
                pod["spec"]["containers"][0]["resources"]["requests"]["cpu"] = json!("3");
            }
        }
        pod
    }

    /// Pods that are there before: plain ones, or four on each node that leave no room.
    fn before(self) -> Value {
        let mut pod = Self::Uniform.pod(0);
        pod["metadata"]["labels"] = json!({});
        if self == Self::Preemption {
            pod["spec"]["containers"][0]["resources"]["requests"]["cpu"] = json!("900m");
        }
        pod
    }
}

const HOSTNAME: &str = "kubernetes.io/hostname";
const ZONE: &str = "topology.kubernetes.io/zone";

/// What was measured.
#[derive(Clone, Copy, Debug)]
pub struct Placements {
    /// Pods that got a node.
    pub placed: usize,
    /// Pods that got none.
    pub refused: usize,
    /// How long all decisions took, on one thread.
    pub elapsed: Duration,
}

impl Placements {
    /// Placements a second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.placed as f64 / self.elapsed.as_secs_f64()
    }
}

#[derive(Default)]
struct Cluster {
    view: ClusterView,
    classes: Classes,
    decider: Decider,
    pods: usize,
}

impl Cluster {
    /// Decides about a pod and places it; makes room where that is needed.
    fn schedule(&mut self, pod: &Pod) -> bool {
        let Interned { class, labels, widened } = self.classes.intern(Class::of(pod));
        if !widened.is_empty() {
            let classes = &mut self.classes;
            self.view.reclassify(&widened, |class, labels| classes.again(class, labels));
        }
        self.pods += 1;
        let uid: Uid = self.pods.to_string().into();
        let place = |view: &mut ClusterView, node: Arc<str>| {
            let (name, class, labels) = (uid.clone(), class.clone(), labels.clone());
            view.place(&uid, Placed { name, node, class, labels, leaving: false, started: 0 });
        };
        match self.decider.decide(&self.view, &uid, &class) {
            Decision::Bind(node) => place(&mut self.view, node),
            Decision::Unschedulable(diagnosis) => {
                let Some(preemption) = &diagnosis.preemption else { return false };
                self.view.nominate(&uid, &preemption.node, &class);
                for victim in &preemption.victims {
                    self.view.remove(victim);
                }
                let Decision::Bind(node) = self.decider.decide(&self.view, &uid, &class) else { return false };
                place(&mut self.view, node);
            }
        }
        true
    }
}

/// Places `measured` pods of a case in a cluster of `nodes` nodes and `existing` pods.
///
/// # Panics
/// When the templates above are no pods and nodes.
#[must_use]
pub fn placements(case: Case, nodes: usize, existing: usize, measured: usize) -> Placements {
    let pod = |json: Value| -> Pod { serde_json::from_value(json).expect("a pod of the templates") };
    let mut cluster = Cluster::default();
    for index in 0..nodes {
        // scheduler_perf has one zone where pods shall be together in one.
        let zone = if case == Case::Affinity { 0 } else { index % 3 };
        let node: Node = serde_json::from_value(json!({
            "metadata": {"name": format!("n{index}"), "labels": {HOSTNAME: format!("n{index}"), ZONE: format!("moon-{zone}")}},
            "spec": {},
            "status": {
                "allocatable": {"cpu": "4", "memory": "32Gi", "pods": "110"},
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        }))
        .expect("a node of the templates");
        cluster.view.put_node(node);
    }
    let before = pod(case.before());
    for _ in 0..existing {
        cluster.schedule(&before);
    }
    let pods: Vec<Pod> = (0..measured).map(|index| pod(case.pod(index))).collect();
    let begun = Instant::now();
    let placed = pods.iter().filter(|pod| cluster.schedule(pod)).count();
    Placements { placed, refused: measured - placed, elapsed: begun.elapsed() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_places_all_its_pods() {
        for case in Case::ALL {
            let existing = if case == Case::Preemption { 120 } else { 30 };
            let done = placements(case, 30, existing, 30);
            assert_eq!((done.placed, done.refused), (30, 0), "{}", case.name());
        }
    }
}
