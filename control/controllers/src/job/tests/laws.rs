//! Whatever the order of events, however late the informers, and whatever becomes of requests: no pod is made beyond what
//! is wanted, none is counted twice, and in the end all is done.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use k8s_openapi::api::batch::v1::{Job, JobStatus};
use proptest::prelude::*;
use serde_json::json;

use super::{Known, indexed, job};
use crate::informer::Pod;
use crate::job::plan::{Plan, finished, is_tracked};
use crate::job::template;

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Done,
    Refused,
    DoneButUnknown,
    LostButUnknown,
}

#[derive(Debug, Clone)]
enum Step {
    /// The controller looks; outcomes of what it asks for, in turn.
    Reconcile(Vec<Outcome>),
    /// The informer of pods catches up with one of them, or with all.
    ObservePod(usize),
    ObservePods,
    ObserveJob,
    /// A pod ends, or is deleted by somebody.
    Succeed(usize),
    Fail(usize),
    Delete(usize),
    Suspend(bool),
    Scale(u32),
    /// The controller is another, which knows only what there is.
    Restart,
}

fn outcome() -> impl Strategy<Value = Outcome> {
    prop_oneof![
        6 => Just(Outcome::Done),
        1 => Just(Outcome::Refused),
        1 => Just(Outcome::DoneButUnknown),
        1 => Just(Outcome::LostButUnknown),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => prop::collection::vec(outcome(), 1..8).prop_map(Step::Reconcile),
        4 => (0..20_usize).prop_map(Step::ObservePod),
        2 => Just(Step::ObservePods),
        4 => Just(Step::ObserveJob),
        4 => (0..20_usize).prop_map(Step::Succeed),
        2 => (0..20_usize).prop_map(Step::Fail),
        1 => (0..20_usize).prop_map(Step::Delete),
        1 => any::<bool>().prop_map(Step::Suspend),
        1 => (0..4_u32).prop_map(Step::Scale),
        1 => Just(Step::Restart),
    ]
}

#[derive(Debug, Clone, PartialEq)]
struct RealPod {
    phase: &'static str,
    tracked: bool,
    deleting: bool,
    index: Option<u32>,
}

struct World {
    /// What the API has.
    pods: BTreeMap<String, RealPod>,
    job: Job,
    version: u64,
    /// What informers show.
    seen: BTreeMap<String, RealPod>,
    shown: Job,
    /// What the controller knows.
    known: Known,
    written: Option<(u64, JobStatus)>,
    next: usize,
    /// What has ever happened.
    succeeded: BTreeSet<String>,
    /// Those that nobody had deleted.
    undisturbed: BTreeSet<String>,
    failed: BTreeSet<String>,
    indexes: BTreeSet<u32>,
    most: usize,
}

impl World {
    fn new(job: Job) -> Self {
        let most = usize::try_from(job.spec.as_ref().and_then(|spec| spec.parallelism).unwrap_or(0)).unwrap_or(0);
        Self {
            pods: BTreeMap::new(),
            shown: job.clone(),
            job,
            version: 1,
            seen: BTreeMap::new(),
            known: Known::default(),
            written: None,
            next: 0,
            succeeded: BTreeSet::new(),
            undisturbed: BTreeSet::new(),
            failed: BTreeSet::new(),
            indexes: BTreeSet::new(),
            most,
        }
    }

    fn is_indexed(&self) -> bool {
        self.job.spec.as_ref().is_some_and(|spec| spec.completion_mode.as_deref() == Some("Indexed"))
    }

    fn owned(&self) -> Vec<Arc<Pod>> {
        let pods = self.seen.iter().map(|(name, pod)| {
            let mut change = json!({"status": {"phase": pod.phase}, "metadata": {}});
            if !pod.tracked {
                change["metadata"]["finalizers"] = json!([]);
            }
            if pod.deleting {
                change["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            }
            match pod.index {
                Some(index) => super::with_index(name, index, change),
                None => super::pod(name, change),
            }
        });
        pods.collect()
    }

    /// The Job as the controller takes it, and its version.
    fn newest(&self) -> (Job, u64) {
        let mut job = self.shown.clone();
        let mut version = version_of(&job);
        if let Some((written, status)) = self.written.as_ref().filter(|(written, _)| *written > version) {
            (version, job.status) = (*written, Some(status.clone()));
        }
        (job, version)
    }

    fn look(&self, job: &Job) -> Plan {
        let names: HashSet<&str> = self.seen.keys().map(String::as_str).collect();
        let absent =
            |names_of: &[Arc<str>]| names_of.iter().filter(|name| !names.contains(&***name)).cloned().collect();
        let known = Known {
            sent: absent(&self.known.sent),
            unknown: absent(&self.known.unknown),
            deleting: self.known.deleting.clone(),
            untracked: self.known.untracked.clone(),
            ..Known::default()
        };
        known.plan(job, &self.owned())
    }

    /// As the shell does it.
    fn reconcile(&mut self, outcomes: &[Outcome]) {
        let mut outcomes = outcomes.iter().copied().chain(std::iter::repeat(Outcome::Done));
        let mut outcome = || outcomes.next().unwrap_or(Outcome::Done);
        let (job, version) = self.newest();
        if finished(&job).is_some() {
            return;
        }
        let plan = self.look(&job);
        let again: Vec<Arc<str>> = plan.create.iter().filter_map(|create| create.name.clone()).collect();
        let (asked, others): (Vec<_>, Vec<_>) = self.known.unknown.drain(..).partition(|name| again.contains(name));
        self.known.unknown = asked;
        self.known.sent.extend(others.into_iter().filter(|name| self.pods.contains_key(&**name)));
        for create in &plan.create {
            let fresh = match create.index {
                Some(index) => format!("j-{index}-{:05}", self.next),
                None => format!("j-{:05}", self.next),
            };
            self.next += 1;
            let name = create.name.clone().unwrap_or_else(|| fresh.into());
            self.known.unknown.retain(|other| *other != name);
            let outcome = outcome();
            if matches!(outcome, Outcome::Done | Outcome::DoneButUnknown) {
                let index = template::index_of(&name).filter(|_| self.is_indexed());
                let made = RealPod { phase: "Running", tracked: true, deleting: false, index };
                self.pods.entry(name.to_string()).or_insert(made);
            }
            match outcome {
                Outcome::Done => self.known.sent.push(name),
                // It is looked for, as it may have been made when nobody knew.
                Outcome::Refused if self.pods.contains_key(&*name) => self.known.sent.push(name),
                Outcome::Refused => {}
                Outcome::DoneButUnknown | Outcome::LostButUnknown => self.known.unknown.push(name),
            }
        }
        for pod in &plan.delete {
            if plan.strip && is_tracked(pod) {
                // Only as it was seen.
                let changed = self.pods.get(&*pod.key.name) != self.seen.get(&*pod.key.name);
                let outcome = if changed { Outcome::Refused } else { outcome() };
                if !self.untrack(pod, outcome) {
                    continue;
                }
            }
            let outcome = outcome();
            if matches!(outcome, Outcome::Done | Outcome::DoneButUnknown) {
                self.delete(&pod.key.name);
            }
            if outcome == Outcome::Done {
                self.known.deleting.insert(pod.uid.clone());
            }
        }
        let plan = self.look(&job);
        if !self.write(&plan, version, outcome()) {
            return;
        }
        for pod in &plan.untrack {
            self.untrack(pod, outcome());
        }
    }

    /// Whether the answer was good.
    fn write(&mut self, plan: &Plan, version: u64, outcome: Outcome) -> bool {
        if version != self.version || outcome == Outcome::Refused || outcome == Outcome::LostButUnknown {
            return false;
        }
        self.version += 1;
        self.job.status = Some(plan.status.clone());
        self.job.metadata.resource_version = Some(self.version.to_string());
        if outcome == Outcome::Done {
            self.written = Some((self.version, plan.status.clone()));
        }
        outcome == Outcome::Done
    }

    fn untrack(&mut self, pod: &Pod, outcome: Outcome) -> bool {
        let name = &*pod.key.name;
        if matches!(outcome, Outcome::Done | Outcome::DoneButUnknown)
            && let Some(real) = self.pods.get_mut(name)
        {
            real.tracked = false;
        }
        if outcome == Outcome::Done {
            self.known.untracked.insert(pod.uid.clone());
        }
        self.sweep();
        outcome == Outcome::Done
    }

    fn delete(&mut self, name: &str) {
        if let Some(pod) = self.pods.get_mut(name) {
            pod.deleting = true;
            if pod.phase == "Running" {
                self.failed.insert(name.to_owned());
            }
        }
        self.sweep();
    }

    /// What goes and is held by nothing is gone.
    fn sweep(&mut self) {
        self.pods.retain(|_, pod| pod.tracked || !pod.deleting);
    }

    fn observe_pod(&mut self, name: &str) {
        match self.pods.get(name) {
            Some(pod) => {
                self.seen.insert(name.to_owned(), pod.clone());
                if pod.deleting {
                    self.known.deleting.remove(name);
                }
                if !pod.tracked {
                    self.known.untracked.remove(name);
                }
            }
            None => {
                self.seen.remove(name);
                self.known.deleting.remove(name);
                self.known.untracked.remove(name);
            }
        }
        self.known.sent.retain(|other| &**other != name);
        self.known.unknown.retain(|other| &**other != name || !self.pods.contains_key(name));
    }

    fn observe_pods(&mut self) {
        let names: BTreeSet<String> = self.pods.keys().chain(self.seen.keys()).cloned().collect();
        names.iter().for_each(|name| self.observe_pod(name));
        // What was made and went before it was seen is looked for after a while.
        self.known.sent.retain(|name| self.pods.contains_key(&**name) && !self.seen.contains_key(&**name));
    }

    fn running(&self, at: usize) -> Option<String> {
        let running: Vec<&String> =
            self.pods.iter().filter(|(_, pod)| pod.phase == "Running").map(|(name, _)| name).collect();
        (!running.is_empty()).then(|| running[at % running.len()].clone())
    }

    fn end(&mut self, at: usize, phase: &'static str) {
        let Some(name) = self.running(at) else { return };
        let Some(pod) = self.pods.get_mut(&name) else { return };
        // One that lost its finalizer was given up.
        let counts = pod.tracked;
        pod.phase = phase;
        self.failed.remove(&name);
        let index = pod.index;
        match phase {
            "Succeeded" if counts => {
                if !pod.deleting {
                    self.undisturbed.insert(name.clone());
                }
                self.succeeded.insert(name);
                self.indexes.extend(index);
            }
            "Succeeded" => {}
            _ => drop(self.failed.insert(name)),
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Reconcile(outcomes) => self.reconcile(outcomes),
            Step::ObservePod(at) => {
                let names: Vec<String> = self.pods.keys().chain(self.seen.keys()).cloned().collect();
                if !names.is_empty() {
                    self.observe_pod(&names[at % names.len()].clone());
                }
            }
            Step::ObservePods => self.observe_pods(),
            Step::ObserveJob => self.shown = self.job.clone(),
            Step::Succeed(at) => self.end(*at, "Succeeded"),
            Step::Fail(at) => self.end(*at, "Failed"),
            Step::Delete(at) => {
                if let Some(name) = self.running(*at) {
                    self.delete(&name);
                }
            }
            Step::Suspend(suspend) => self.change(|job| {
                job.spec.as_mut().expect("a specification").suspend = Some(*suspend);
            }),
            Step::Scale(parallelism) => {
                self.most = self.most.max(usize::try_from(*parallelism).unwrap_or(0));
                self.change(|job| {
                    job.spec.as_mut().expect("a specification").parallelism = i32::try_from(*parallelism).ok();
                });
            }
            Step::Restart => {
                (self.known, self.written) = (Known::default(), None);
                self.observe_pods();
                self.shown = self.job.clone();
            }
        }
    }

    fn change(&mut self, change: impl FnOnce(&mut Job)) {
        change(&mut self.job);
        self.version += 1;
        self.job.metadata.resource_version = Some(self.version.to_string());
    }

    fn check(&self) -> Result<(), TestCaseError> {
        let working = self.pods.values().filter(|pod| pod.phase == "Running" && !pod.deleting).count();
        prop_assert!(working <= self.most, "{} at work, {} wanted at most", working, self.most);
        let status = self.job.status.clone().unwrap_or_default();
        let count = |count: Option<i32>| usize::try_from(count.unwrap_or(0)).unwrap_or(0);
        let waiting = status.uncounted_terminated_pods.unwrap_or_default();
        let [named_succeeded, named_failed] =
            [waiting.succeeded, waiting.failed].map(|list| list.unwrap_or_default().len());
        if self.is_indexed() {
            prop_assert!(count(status.succeeded) <= self.indexes.len());
        } else {
            prop_assert!(count(status.succeeded) + named_succeeded <= self.succeeded.len(), "a success counted twice");
            let wanted = count(self.job.spec.as_ref().and_then(|spec| spec.completions));
            prop_assert!(self.undisturbed.len() <= wanted, "{} have succeeded", self.undisturbed.len());
        }
        let ended: BTreeSet<_> = self.failed.union(&self.succeeded).collect();
        prop_assert!(count(status.failed) + named_failed <= ended.len(), "a failure counted twice");
        if self.is_indexed() {
            let mut indexes: Vec<_> = self
                .pods
                .values()
                .filter(|pod| pod.phase == "Running" && !pod.deleting)
                .filter_map(|pod| pod.index)
                .collect();
            indexes.sort_unstable();
            prop_assert!(indexes.windows(2).all(|pair| pair[0] != pair[1]), "an index twice: {:?}", indexes);
        }
        Ok(())
    }

    /// Nothing goes wrong any more.
    fn heal(&mut self) -> Result<(), TestCaseError> {
        self.step(&Step::Suspend(false));
        self.step(&Step::Scale(3));
        for _ in 0..60 {
            self.step(&Step::ObservePods);
            self.step(&Step::ObserveJob);
            self.step(&Step::Reconcile(vec![]));
            self.check()?;
            while self.running(0).is_some() {
                self.step(&Step::Succeed(0));
            }
            // Nodes end what is deleted.
            self.sweep();
        }
        Ok(())
    }
}

fn version_of(job: &Job) -> u64 {
    job.metadata.resource_version.as_deref().and_then(|version| version.parse().ok()).unwrap_or(0)
}

/// Whatever was before, the Job completes with as many successes as are wanted.
fn holds(job: Job, steps: &[Step]) -> Result<(), TestCaseError> {
    let mut world = World::new(job);
    for step in steps {
        world.step(step);
        world.check()?;
    }
    world.heal()?;
    let end = finished(&world.job).map(|end| end.type_.clone());
    prop_assert_eq!(end.as_deref(), Some("Complete"), "{:?}", world.job.status);
    let succeeded = world.job.status.as_ref().and_then(|status| status.succeeded);
    // One that was deleted, and replaced, may succeed after all.
    let more = steps.iter().any(|step| matches!(step, Step::Delete(_))) && !world.is_indexed();
    prop_assert!(succeeded == Some(5) || more && succeeded > Some(5), "{:?} have succeeded", succeeded);
    prop_assert!(world.pods.values().all(|pod| !pod.tracked), "nothing is held back");
    Ok(())
}

fn of_five(indexes: bool) -> Job {
    let spec = json!({"completions": 5, "parallelism": 3, "backoffLimit": 1000});
    if indexes { indexed(spec, json!({})) } else { job(spec, json!({})) }
}

/// A pod is deleted, the status names it as failed, whose answer is lost, and it succeeds before its finalizer goes: the Job
/// is not complete until another has.
#[test]
fn a_pod_that_is_named_as_failed_is_no_success() {
    use Outcome::{Done, DoneButUnknown, Refused};
    use Step::{Delete, ObserveJob, ObservePods, Reconcile, Succeed};

    let steps = [
        Reconcile(vec![]),
        Succeed(0),
        Succeed(0),
        Delete(0),
        ObservePods,
        ObserveJob,
        // Another in its place is refused, two are made for what is left, and the status is written.
        Reconcile(vec![Refused, Done, Done, DoneButUnknown]),
        Succeed(0),
        Succeed(0),
        Succeed(0),
    ];
    for indexes in [false, true] {
        holds(of_five(indexes), &steps).unwrap_or_else(|error| panic!("indexes: {indexes}: {error}"));
    }
}

/// Nobody knows whether another was made for an index, and then its first pod, which was deleted, succeeds after all.
#[test]
fn what_nobody_knows_of_takes_room_though_its_index_has_succeeded() {
    use Outcome::{Done, DoneButUnknown};
    use Step::{Delete, ObservePod, ObservePods, Reconcile, Succeed, Suspend};

    let steps = [
        Reconcile(vec![]),
        Delete(1),
        Succeed(0),
        // The status is written in vain from here on.
        Suspend(false),
        ObservePods,
        Succeed(0),
        Reconcile(vec![DoneButUnknown]),
        ObservePod(1),
        Reconcile(vec![Done]),
    ];
    holds(of_five(true), &steps).unwrap_or_else(|error| panic!("{error}"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn no_pod_is_made_or_counted_twice(steps in prop::collection::vec(step(), 1..80), indexes in any::<bool>()) {
        holds(of_five(indexes), &steps)?;
    }
}
