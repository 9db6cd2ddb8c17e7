//! The core of the Job controller: from what is there to what to do. No I/O, no clock.
//!
//! Pods carry a finalizer until they are counted, and counting has three steps, after each of which everything may end: the
//! uid of a pod that ended is written into the status, its finalizer is removed, and the counter takes the uid's place. A
//! plan has what of this is due, and the next one sees what came of it. The rules are upstream's, in upstream's order.

mod count;
mod end;
mod manage;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobSpec, JobStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::TRACKING;
use super::backoff::Backoff;
use super::indexes::Indexes;
use super::policy::{self, Verdict};
use crate::events::Told;
use crate::informer::{Phase, Pod};
use crate::selector;
use count::Uncounted;

pub(super) use manage::BURST;

/// What is there.
pub(super) struct Observed<'a> {
    pub job: &'a Job,
    /// Pods that it controls.
    pub owned: &'a [Arc<Pod>],
    /// Pods of its namespace that nobody controls.
    pub orphans: &'a [Arc<Pod>],
    /// Names of pods that were asked for and are not in `owned` yet.
    pub sent: &'a [Arc<str>],
    /// Names of pods of which nobody knows whether they were created.
    pub unknown: &'a [Arc<str>],
    /// Uids of pods whose deletion was asked for.
    pub deleting: &'a HashSet<Arc<str>>,
    /// Uids of pods whose finalizer was removed, though `owned` may still show it.
    pub untracked: &'a HashSet<Arc<str>>,
    pub backoff: Backoff,
    pub now: Timestamp,
}

/// A pod to make.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Create {
    /// The name that was asked for before.
    pub name: Option<Arc<str>>,
    /// Its completion index.
    pub index: Option<u32>,
    /// Failures of its index before it, and those that did not count, where indexes have limits of their own.
    pub failures: Option<(i32, i32)>,
}

/// What to do.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Plan {
    pub adopt: Vec<Arc<Pod>>,
    pub release: Vec<Arc<Pod>>,
    pub create: Vec<Create>,
    pub delete: Vec<Arc<Pod>>,
    /// Whether what is deleted counts for nothing, and loses its finalizer before.
    pub strip: bool,
    /// As long as nothing is created or deleted.
    pub status: JobStatus,
    /// Pods that lose their finalizer once the status is written.
    pub untrack: Vec<Arc<Pod>>,
    /// What then is told.
    pub told: Vec<Told>,
    /// What then is remembered of failures.
    pub backoff: Backoff,
    /// When something is due by the clock alone.
    pub check_after: Option<Duration>,
    /// Whether it is known how the Job ends.
    pub ends: bool,
}

pub(super) fn is_indexed(spec: &JobSpec) -> bool {
    spec.completion_mode.as_deref() == Some("Indexed")
}

/// Completions that are wanted, if there is a number.
pub(super) fn completions(spec: &JobSpec) -> Option<u32> {
    spec.completions.map(|count| u32::try_from(count).unwrap_or(0))
}

fn is_suspended(spec: &JobSpec) -> bool {
    spec.suspend.unwrap_or(false)
}

/// Whether pods are replaced only when they have failed, and not as soon as they are deleted.
fn replaces_only_failed(spec: &JobSpec) -> bool {
    spec.pod_replacement_policy.as_deref() == Some("Failed")
}

/// The condition by which a Job is finished.
pub(crate) fn finished(job: &Job) -> Option<&JobCondition> {
    let conditions = job.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|known| matches!(known.type_.as_str(), "Complete" | "Failed") && known.status == "True")
}

/// Whether it has the finalizer.
pub(super) fn is_tracked(pod: &Pod) -> bool {
    pod.finalizers.iter().any(|finalizer| finalizer == TRACKING)
}

/// The completion index of a pod.
fn index_of(pod: &Pod) -> Option<u32> {
    pod.run.as_ref()?.index
}

pub(super) fn plan(observed: &Observed<'_>) -> Plan {
    match &observed.job.spec {
        Some(spec) => Planner::new(observed, spec).plan(),
        // No API has such a Job.
        None => Plan { status: observed.job.status.clone().unwrap_or_default(), ..Plan::default() },
    }
}

/// A plan in the making.
struct Planner<'a> {
    observed: &'a Observed<'a>,
    spec: &'a JobSpec,
    indexed: bool,
    /// Whether the Job is being deleted.
    going: bool,
    /// Those of its pods that match.
    pods: Vec<Arc<Pod>>,
    active: Vec<Arc<Pod>>,
    /// Those that are deleted and have not ended.
    terminating: Vec<Arc<Pod>>,
    uncounted: Uncounted,
    /// Of an indexed Job: those that the status has, those with what has succeeded since, and the failed ones where
    /// indexes have limits of their own.
    succeeded_before: Indexes,
    succeeded: Indexes,
    failed: Option<Indexes>,
    /// Of each such index that is to be tried again the pod that failed last.
    last_failed: HashMap<u32, Arc<Pod>>,
    status: JobStatus,
    plan: Plan,
}

impl<'a> Planner<'a> {
    fn new(observed: &'a Observed<'a>, spec: &'a JobSpec) -> Self {
        let going = observed.job.metadata.deletion_timestamp.is_some();
        let matches = |pod: &Pod| spec.selector.as_ref().is_some_and(|all| selector::matches(all, &pod.labels));
        let (pods, strays): (Vec<_>, Vec<_>) = observed.owned.iter().cloned().partition(|pod| matches(pod));
        let mut plan = Plan::default();
        if !going {
            let adoptable = observed.orphans.iter().filter(|pod| pod.deleting.is_none() && matches(pod));
            plan.adopt = adoptable.cloned().collect();
            plan.release = strays;
        }
        let leaves = |pod: &Pod| pod.deleting.is_some() || observed.deleting.contains(&pod.uid);
        let living = pods.iter().filter(|pod| !pod.is_terminal()).cloned();
        let (terminating, active) = living.partition(|pod| leaves(pod));
        let status = observed.job.status.clone().unwrap_or_default();
        Self {
            observed,
            spec,
            indexed: is_indexed(spec),
            going,
            pods,
            active,
            terminating,
            uncounted: Uncounted::of(&status),
            succeeded_before: Indexes::default(),
            succeeded: Indexes::default(),
            failed: None,
            last_failed: HashMap::new(),
            status,
            plan,
        }
    }

    fn plan(mut self) -> Plan {
        if self.status.start_time.is_none() && !is_suspended(self.spec) {
            self.status.start_time = Some(moment(self.observed.now));
        }
        let succeeded = self.new_ends(|pod| pod.phase == Phase::Succeeded);
        let failed = self.new_ends(|pod| is_failed(self.spec, pod));
        let backoff = self.observed.backoff.with(&succeeded, &failed);
        let failures = failed.iter().filter(|pod| self.verdict(pod).counts()).count();
        let failures = count(self.status.failed) + failures + self.uncounted.failed.len();
        let mut successes = count(self.status.succeeded) + succeeded.len() + self.uncounted.succeeded.len();
        self.plan.backoff = backoff;

        let mut end = self.known_end().or_else(|| self.policy_end()).or_else(|| self.limit_end(failures));
        if self.indexed {
            self.read_indexes();
            successes = usize::try_from(self.succeeded.total()).unwrap_or(usize::MAX);
            end = end.or_else(|| self.index_end()).or_else(|| self.success_end());
        }
        if end.is_some() {
            self.plan.delete.clone_from(&self.active);
            self.plan.ends = true;
            // While a pod is not on its way out, or may still turn up, it is not done.
            end = end.filter(|_| self.is_settled());
        } else {
            if !self.going {
                self.manage(successes);
            }
            end = self.completion(successes);
            self.plan.ends = end.is_some();
            if end.is_none() && !self.going {
                self.suspension();
            }
        }
        self.status.active = Some(int(self.active.len() + self.observed.sent.len()));
        self.status.ready = Some(int(self.active.iter().filter(|pod| pod.ready).count()));
        self.status.terminating = Some(int(self.terminating.len()));
        self.track(end);
        self.plan.status = self.status;
        self.plan
    }

    /// Whether no pod is at work, and none may still turn up.
    fn is_settled(&self) -> bool {
        self.active.is_empty() && self.observed.sent.is_empty() && self.observed.unknown.is_empty()
    }

    /// Whether its finalizer waits for it to be counted.
    fn is_tracked(&self, pod: &Pod) -> bool {
        is_tracked(pod) && !self.observed.untracked.contains(&pod.uid)
    }

    /// The index of a pod of an indexed Job, if it has one that is wanted.
    fn valid_index(&self, pod: &Pod) -> Option<u32> {
        index_of(pod).filter(|index| *index < completions(self.spec).unwrap_or(0))
    }

    /// Pods that have ended and are in no count yet. One that was deleted and is named as failed may succeed while it goes:
    /// it is counted as a failure, hence nothing may be decided by it as a success (upstream completes with one too few).
    fn new_ends(&self, ended: impl Fn(&Pod) -> bool) -> Vec<&Pod> {
        let new = self.pods.iter().filter(|pod| {
            self.is_tracked(pod)
                && !self.uncounted.names(pod)
                && (!self.indexed || self.valid_index(pod).is_some())
                && ended(pod)
        });
        new.map(|pod| &**pod).collect()
    }

    fn verdict(&self, pod: &Pod) -> Verdict {
        policy::of_failure(self.spec, pod)
    }

    /// Reads which indexes have succeeded and failed, with what is new.
    fn read_indexes(&mut self) {
        let wanted = completions(self.spec).unwrap_or(0);
        self.succeeded_before = Indexes::parse(self.status.completed_indexes.as_deref().unwrap_or_default(), wanted);
        let new = self.new_ends(|pod| pod.phase == Phase::Succeeded);
        let new = Indexes::of(new.into_iter().filter_map(index_of));
        self.succeeded = self.succeeded_before.union(&new);
        let Some(limit) = self.spec.backoff_limit_per_index else { return };
        let failed = Indexes::parse(self.status.failed_indexes.as_deref().unwrap_or_default(), wanted);
        let fails = |pod: &&Arc<Pod>| {
            self.is_tracked(pod)
                && is_failed(self.spec, pod)
                && match self.verdict(pod) {
                    Verdict::FailIndex => true,
                    verdict => verdict.counts() && pod.run.as_ref().is_some_and(|run| run.failures >= limit),
                }
        };
        let new = Indexes::of(self.pods.iter().filter(fails).filter_map(|pod| self.valid_index(pod)));
        let failed = failed.union(&new);
        self.last_failed = self.to_follow(&failed);
        self.failed = Some(failed);
    }

    /// The pods whose successors take over how often their index has failed: until these are made, they stay.
    fn to_follow(&self, failed: &Indexes) -> HashMap<u32, Arc<Pod>> {
        let active: HashSet<u32> = self.active.iter().filter_map(|pod| index_of(pod)).collect();
        let mut last: HashMap<u32, Arc<Pod>> = HashMap::new();
        for pod in self.pods.iter().filter(|pod| self.is_tracked(pod) && is_failed(self.spec, pod)) {
            let Some(index) = self.valid_index(pod) else { continue };
            if self.succeeded.contains(index) || failed.contains(index) || active.contains(&index) {
                continue;
            }
            let order = |pod: &Pod| {
                let run = pod.run.as_ref();
                run.map(|run| (i64::from(run.failures) + i64::from(run.ignored_failures), run.finished))
            };
            if last.get(&index).is_none_or(|known| order(known) <= order(pod)) {
                last.insert(index, pod.clone());
            }
        }
        last
    }
}

/// Whether a pod counts as failed. One that is deleted does, as it may never get that far, unless only failed ones are
/// replaced.
fn is_failed(spec: &JobSpec, pod: &Pod) -> bool {
    match pod.phase {
        Phase::Failed => true,
        Phase::Succeeded => false,
        _ => pod.deleting.is_some() && !replaces_only_failed(spec),
    }
}

fn count(count: Option<i32>) -> usize {
    count.and_then(|count| usize::try_from(count).ok()).unwrap_or(0)
}

fn int(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

/// A moment to the precision of the API's times.
fn moment(now: Timestamp) -> Time {
    Time(Timestamp::from_second(now.as_second()).unwrap_or(now))
}
