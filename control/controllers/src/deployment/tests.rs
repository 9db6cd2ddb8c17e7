//! Behaviour of the core, as tables and as whole rollouts against an API in memory.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, ReplicaSetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use proptest::prelude::*;
use serde_json::json;

use super::model::Wanted;
use super::new_replica_set;
use super::plan::{Observed, Plan, plan};

/// An API in memory: a Deployment, its ReplicaSets, and pods as numbers.
struct World {
    deployment: Deployment,
    sets: Vec<ReplicaSet>,
    now: Timestamp,
    next: i64,
    /// Pods that run, by uid of their ReplicaSet.
    recreate: bool,
}

impl World {
    fn new(replicas: i32, strategy: serde_json::Value) -> Self {
        let deployment = serde_json::from_value(json!({
            "metadata": {"name": "d", "namespace": "n", "uid": "d", "generation": 1},
            "spec": {
                "replicas": replicas, "revisionHistoryLimit": 2, "progressDeadlineSeconds": 600,
                "selector": {"matchLabels": {"app": "a"}},
                "strategy": strategy,
                "template": {"metadata": {"labels": {"app": "a"}}, "spec": {"containers": [{"name": "c", "image": "v1"}]}},
            },
        }))
        .unwrap();
        let recreate = strategy["type"] == "Recreate";
        Self { deployment, sets: vec![], now: "2026-01-01T00:00:00Z".parse().unwrap(), next: 1, recreate }
    }

    fn rolling(replicas: i32, surge: serde_json::Value, unavailable: serde_json::Value) -> Self {
        let rolling = json!({"maxSurge": surge, "maxUnavailable": unavailable});
        Self::new(replicas, json!({"type": "RollingUpdate", "rollingUpdate": rolling}))
    }

    fn image(&mut self, image: &str) {
        let spec = &mut self.deployment.spec;
        spec.template.spec.as_mut().unwrap().containers[0].image = Some(image.to_owned());
        self.deployment.metadata.generation = self.deployment.metadata.generation.map(|generation| generation + 1);
    }

    fn scale(&mut self, replicas: i32) {
        self.deployment.spec.replicas = Some(replicas);
        self.deployment.metadata.generation = self.deployment.metadata.generation.map(|generation| generation + 1);
    }

    fn pause(&mut self, paused: bool) {
        self.deployment.spec.paused = Some(paused);
    }

    /// One pass of the controller.
    fn reconcile(&mut self) -> Plan {
        let sets: Vec<Arc<ReplicaSet>> = self.sets.iter().cloned().map(Arc::new).collect();
        let others_run = |current: Option<&str>| {
            let others = self.sets.iter().filter(|set| set.metadata.uid.as_deref() != current);
            self.recreate && others.into_iter().any(|set| set.status.as_ref().is_some_and(|status| status.replicas > 0))
        };
        let plan = plan(&Observed {
            deployment: &self.deployment,
            sets,
            others_run: &others_run,
            created: None,
            now: self.now,
        });
        if let Some(new) = &plan.create {
            let mut set = new_replica_set(&self.deployment, new);
            set.metadata.uid = Some(format!("s{}", self.next));
            set.metadata.generation = Some(1);
            set.metadata.creation_timestamp = Some(Time(self.now + SignedDuration::from_secs(self.next)));
            set.status = Some(ReplicaSetStatus::default());
            self.next += 1;
            assert!(self.sets.iter().all(|other| other.metadata.name != set.metadata.name), "created twice");
            self.sets.push(set);
        }
        for change in &plan.update {
            let set = self.sets.iter_mut().find(|set| set.metadata.name == change.object.metadata.name).unwrap();
            let spec = &mut set.spec;
            spec.replicas = Some(change.replicas);
            spec.min_ready_seconds = change.min_ready_seconds.or(spec.min_ready_seconds);
            set.metadata.annotations.get_or_insert_default().extend(change.annotations.clone());
        }
        for gone in &plan.delete {
            self.sets.retain(|set| set.metadata.uid != gone.metadata.uid);
        }
        if let Some(revision) = &plan.revision {
            let annotations = self.deployment.metadata.annotations.get_or_insert_default();
            annotations.insert(super::REVISION.to_owned(), revision.clone());
        }
        if let Some(status) = &plan.status {
            self.deployment.status = Some(status.clone());
        }
        plan
    }

    /// What ReplicaSets and nodes do: pods come and go, and at most `ready` more become available.
    fn run(&mut self, mut ready: i32) {
        for set in &mut self.sets {
            let wanted = set.spec.replicas.unwrap_or(0);
            let status = set.status.get_or_insert_default();
            let available = status.available_replicas.unwrap_or(0).min(wanted);
            let more = (wanted - available).min(ready);
            ready -= more;
            status.replicas = wanted;
            status.available_replicas = Some(available + more);
            status.ready_replicas = status.available_replicas;
            status.observed_generation = set.metadata.generation;
        }
    }

    fn settle(&mut self) {
        for _ in 0..200 {
            let before = (self.sets.clone(), self.deployment.clone());
            self.reconcile();
            self.run(i32::MAX);
            if before == (self.sets.clone(), self.deployment.clone()) {
                return;
            }
        }
        panic!("does not settle: {:?}", self.sizes());
    }

    /// Sizes, oldest first.
    fn sizes(&self) -> Vec<i32> {
        self.sets.iter().map(|set| set.spec.replicas.unwrap_or(0)).collect()
    }

    /// Pods that are available and not about to go.
    fn available(&self) -> i32 {
        let available = |set: &ReplicaSet| {
            let available = set.status.as_ref().and_then(|status| status.available_replicas).unwrap_or(0);
            available.min(set.spec.replicas.unwrap_or(0))
        };
        self.sets.iter().map(available).sum()
    }

    fn reason(&self, type_: &str) -> (String, String) {
        let conditions = self.deployment.status.as_ref().and_then(|status| status.conditions.as_ref()).unwrap();
        let condition = conditions.iter().find(|condition| condition.type_.as_deref() == Some(type_)).unwrap();
        (condition.reason.clone().unwrap(), condition.message.clone().unwrap())
    }

    fn revision(&self) -> &str {
        &self.deployment.metadata.annotations.as_ref().unwrap()[super::REVISION]
    }
}

#[test]
fn rounds_surge_up_and_unavailable_down() {
    for (replicas, surge, unavailable, expected) in [
        (10, json!("25%"), json!("25%"), (3, 2)),
        (1, json!("25%"), json!("25%"), (1, 0)),
        (3, json!(0), json!("10%"), (0, 1)),
        (3, json!(2), json!(7), (2, 3)),
        (0, json!("25%"), json!("25%"), (0, 0)),
    ] {
        let wanted = Wanted::of(&World::rolling(replicas, surge, unavailable).deployment);
        assert_eq!((wanted.surge(), wanted.unavailable()), expected, "{replicas}");
    }
}

#[test]
fn creates_a_replica_set_and_reports_progress_and_completion() {
    let mut world = World::rolling(3, json!("25%"), json!("25%"));
    let plan = world.reconcile();
    let new = plan.create.unwrap();
    assert_eq!((new.replicas, new.name.starts_with("d-")), (3, true));
    assert_eq!(world.reason("Progressing").0, "NewReplicaSetCreated");
    assert_eq!(world.reason("Available").0, "MinimumReplicasUnavailable");
    assert_eq!(world.revision(), "1");
    let set = &world.sets[0];
    assert_eq!(set.spec.selector.match_labels.as_ref().unwrap()["pod-template-hash"], new.hash);
    world.run(1);
    world.reconcile();
    assert_eq!(
        world.reason("Progressing"),
        ("ReplicaSetUpdated".to_owned(), format!("ReplicaSet {:?} is progressing.", new.name))
    );
    world.settle();
    assert_eq!(
        world.reason("Progressing"),
        ("NewReplicaSetAvailable".to_owned(), format!("ReplicaSet {:?} has successfully progressed.", new.name))
    );
    assert_eq!(world.reason("Available").1, "Deployment has minimum availability.");
    assert!(world.reconcile().status.is_none(), "a finished rollout writes nothing");
}

#[test]
fn rolls_step_by_step_within_its_fences() {
    let mut world = World::rolling(10, json!(3), json!(2));
    world.settle();
    world.image("v2");
    let mut sizes = vec![];
    for _ in 0..40 {
        world.reconcile();
        world.run(i32::MAX);
        if sizes.last() != Some(&world.sizes()) {
            sizes.push(world.sizes());
        }
    }
    assert_eq!(sizes[0], [10, 3], "surge first");
    assert_eq!(sizes[1], [5, 3], "what is ready replaces old ones");
    assert_eq!(sizes.last().unwrap(), &[0, 10]);
    assert_eq!(world.revision(), "2");
}

#[test]
fn rolls_back_to_a_replica_set_of_the_past() {
    let mut world = World::rolling(2, json!(1), json!(0));
    world.settle();
    world.image("v2");
    world.settle();
    world.image("v1");
    world.settle();
    assert_eq!((world.sizes(), world.revision()), (vec![2, 0], "3"));
    let history = &world.sets[0].metadata.annotations.as_ref().unwrap()["deployment.kubernetes.io/revision-history"];
    assert_eq!(history, "1");
    for version in 3..8 {
        world.image(&format!("v{version}"));
        world.settle();
    }
    assert_eq!(world.sizes().len(), 3, "two are kept of the past");
}

#[test]
fn recreates_only_when_the_old_ones_are_gone() {
    let mut world = World::new(3, json!({"type": "Recreate"}));
    world.settle();
    world.image("v2");
    assert!(world.reconcile().create.is_none());
    assert_eq!(world.sizes(), [0]);
    assert!(world.reconcile().create.is_none(), "they still run");
    world.run(0);
    assert_eq!(world.reconcile().create.map(|new| new.replicas), Some(3));
    world.settle();
    assert_eq!(world.sizes(), [0, 3]);
}

#[test]
fn scales_in_proportion_during_a_rollout() {
    let mut world = World::rolling(10, json!(0), json!(5));
    world.settle();
    world.image("v2");
    for _ in 0..3 {
        world.reconcile();
        world.run(0);
    }
    let before = world.sizes();
    assert_eq!(before.iter().sum::<i32>(), 10);
    world.scale(20);
    world.reconcile();
    let after = world.sizes();
    assert_eq!(after.iter().sum::<i32>(), 20);
    assert!(after.iter().zip(&before).all(|(after, before)| after >= before), "{before:?} {after:?}");
    assert_eq!(after, [10, 10]);
}

/// Found by `converges`: the one active ReplicaSet had the new size already, and the change was taken for new for ever.
#[test]
fn goes_on_when_the_size_is_right_by_chance() {
    let mut world = World::rolling(5, json!(0), json!(2));
    world.settle();
    world.image("v2");
    world.scale(3);
    for _ in 0..3 {
        world.reconcile();
    }
    assert_eq!(world.sizes(), [1, 0]);
    world.scale(1);
    world.settle();
    assert_eq!(world.sizes(), [0, 1]);
}

#[test]
fn pauses_and_resumes() {
    let mut world = World::rolling(2, json!(1), json!(0));
    world.settle();
    world.pause(true);
    world.image("v2");
    world.scale(4);
    world.settle();
    assert_eq!((world.sizes(), world.reason("Progressing").0.as_str()), (vec![4], "DeploymentPaused"));
    world.pause(false);
    world.reconcile();
    world.settle();
    assert_eq!((world.sizes(), world.reason("Progressing").0.as_str()), (vec![0, 4], "NewReplicaSetAvailable"));
}

#[test]
fn notices_that_nothing_moves() {
    let mut world = World::rolling(2, json!(1), json!(0));
    world.reconcile();
    world.run(0);
    let plan = world.reconcile();
    assert!(plan.check_after.is_some_and(|after| after.as_secs() >= 600), "{:?}", plan.check_after);
    world.now += SignedDuration::from_secs(601);
    world.reconcile();
    let (reason, message) = world.reason("Progressing");
    assert_eq!(reason, "ProgressDeadlineExceeded");
    assert!(message.ends_with("has timed out progressing."), "{message}");
}

#[derive(Debug, Clone)]
enum Step {
    Image(u8),
    Scale(i32),
    Reconcile,
    Run(i32),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        1 => (0..4_u8).prop_map(Step::Image),
        1 => (0..12_i32).prop_map(Step::Scale),
        4 => Just(Step::Reconcile),
        4 => (0..4_i32).prop_map(Step::Run),
    ]
}

proptest! {
    /// Whatever a user does and however slow pods are: it ends with the template and the size that are wanted, and a
    /// rollout alone never takes away more available pods than it may.
    #[test]
    fn converges(surge in 0..4_i32, unavailable in 0..4_i32, steps in prop::collection::vec(step(), 1..60)) {
        let mut world = World::rolling(5, json!(surge), json!(unavailable));
        world.settle();
        for step in steps {
            match step {
                Step::Image(image) => world.image(&format!("v{image}")),
                Step::Scale(replicas) => world.scale(replicas),
                Step::Run(ready) => world.run(ready),
                Step::Reconcile => {
                    let wanted = Wanted::of(&world.deployment);
                    let scaled = world.sets.iter().any(|set| {
                        let annotations = set.metadata.annotations.as_ref().unwrap();
                        annotations["deployment.kubernetes.io/desired-replicas"] != wanted.replicas.to_string()
                    });
                    let before = world.available();
                    let plan = world.reconcile();
                    if !scaled && before >= wanted.replicas - wanted.unavailable() {
                        // The worst case: what is taken away is available.
                        let taken: i32 = plan.update.iter().map(|set| {
                            (set.available().min(set.replicas_before()) - set.replicas).max(0)
                        }).sum();
                        prop_assert!(before - taken >= wanted.replicas - wanted.unavailable());
                    }
                    let total: i32 = world.sizes().iter().sum();
                    if plan.create.is_some() {
                        prop_assert!(total <= wanted.max().max(total - plan.create.map_or(0, |new| new.replicas)));
                    }
                }
            }
        }
        world.settle();
        let wanted = world.deployment.spec.replicas.unwrap();
        let status = world.deployment.status.clone().unwrap();
        prop_assert_eq!(world.sizes().iter().sum::<i32>(), wanted);
        prop_assert_eq!(status.updated_replicas.unwrap_or(0), wanted);
        prop_assert_eq!(status.available_replicas.unwrap_or(0), wanted);
    }
}
