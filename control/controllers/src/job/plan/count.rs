//! Counting pods that have ended, each once whatever ends in between.

use std::collections::HashSet;
use std::sync::Arc;

use k8s_openapi::api::batch::v1::{JobStatus, UncountedTerminatedPods};

use super::end::{End, set_condition};
use super::{Planner, completions, count, index_of, int, is_failed, moment};
use crate::events::Told;
use crate::informer::{Phase, Pod};

/// Pods that a status names at a time, which keeps it below 20 KB (upstream's `MaxUncountedPods`).
const UNCOUNTED_MAX: usize = 500;

/// Pods that the status names because they are not counted yet.
#[derive(Debug, Default)]
pub(super) struct Uncounted {
    pub succeeded: HashSet<Box<str>>,
    pub failed: HashSet<Box<str>>,
}

impl Uncounted {
    pub(super) fn of(status: &JobStatus) -> Self {
        let waiting = status.uncounted_terminated_pods.as_ref();
        let set = |uids: Option<&Vec<String>>| uids.into_iter().flatten().map(|uid| uid.as_str().into()).collect();
        Self {
            succeeded: set(waiting.and_then(|waiting| waiting.succeeded.as_ref())),
            failed: set(waiting.and_then(|waiting| waiting.failed.as_ref())),
        }
    }

    /// Whether the status names it as either.
    pub(super) fn names(&self, pod: &Pod) -> bool {
        self.succeeded.contains(&*pod.uid) || self.failed.contains(&*pod.uid)
    }
}

impl Planner<'_> {
    /// Counts what lost its finalizer, names what is to lose it, and ends the Job when nothing is left of it.
    pub(super) fn track(&mut self, end: Option<End>) {
        let mut waiting = self.status.uncounted_terminated_pods.take().unwrap_or_default();
        self.count_untracked(&mut waiting);
        let all = self.name_ended(&mut waiting, end.as_ref());
        let uncounted = uids(&mut waiting.succeeded).len() + uids(&mut waiting.failed).len();
        for list in [&mut waiting.succeeded, &mut waiting.failed] {
            *list = list.take().filter(|uids| !uids.is_empty());
        }
        self.status.uncounted_terminated_pods = Some(waiting);
        let Some(end) = end else { return };
        let now = self.observed.now;
        if !end.known {
            set_condition(&mut self.status, end.interim(), "True", (end.reason.as_str(), end.message.as_str()), now);
        }
        if all && uncounted == 0 && self.plan.untrack.is_empty() && self.terminating.is_empty() {
            self.finish(&end);
        }
    }

    /// Moves what has no finalizer any more into the counters.
    fn count_untracked(&mut self, waiting: &mut UncountedTerminatedPods) {
        let tracked: HashSet<&str> = self.pods.iter().filter(|pod| self.is_tracked(pod)).map(|pod| &*pod.uid).collect();
        let leave = |uids: &mut Vec<String>, counter: &mut Option<i32>| {
            let before = uids.len();
            uids.retain(|uid| tracked.contains(uid.as_str()));
            let counted = before - uids.len();
            if counted > 0 {
                *counter = Some(int(count(*counter) + counted));
            }
        };
        leave(uids(&mut waiting.succeeded), &mut self.status.succeeded);
        leave(uids(&mut waiting.failed), &mut self.status.failed);
    }

    /// Names pods that have ended; whether that was all.
    fn name_ended(&mut self, waiting: &mut UncountedTerminatedPods, end: Option<&End>) -> bool {
        let mut pods: Vec<Arc<Pod>> = self.pods.iter().filter(|pod| self.is_tracked(pod)).cloned().collect();
        if self.indexed {
            pods.sort_by_key(|pod| index_of(pod));
        }
        let fails = end.is_some_and(|end| !end.complete);
        let mut new = Vec::new();
        let mut all = true;
        for pod in pods {
            let failed = is_failed(self.spec, &pod);
            if !self.may_untrack(&pod, failed, end) {
                continue;
            }
            let index = self.valid_index(&pod);
            if pod.phase == Phase::Succeeded && !self.uncounted.failed.contains(&*pod.uid) {
                match index {
                    // Its index is enough not to count it again.
                    Some(index) if self.indexed && !self.succeeded_before.contains(index) => new.push(index),
                    _ if self.indexed || self.uncounted.succeeded.contains(&*pod.uid) => {}
                    _ => uids(&mut waiting.succeeded).push(pod.uid.to_string()),
                }
            } else if (failed || fails)
                && !self.uncounted.failed.contains(&*pod.uid)
                && (!self.indexed || index.is_some())
                && self.verdict(&pod).counts()
            {
                uids(&mut waiting.failed).push(pod.uid.to_string());
            }
            self.plan.untrack.push(pod);
            let named = new.len() + uids(&mut waiting.succeeded).len() + uids(&mut waiting.failed).len();
            if named >= UNCOUNTED_MAX {
                all = false;
                break;
            }
        }
        if self.indexed {
            let completed = self.succeeded_before.union(&super::Indexes::of(new));
            self.status.succeeded = Some(i32::try_from(completed.total()).unwrap_or(i32::MAX));
            self.status.completed_indexes = Some(completed.to_string()).filter(|text| !text.is_empty());
            self.status.failed_indexes = self.failed.as_ref().map(ToString::to_string);
        }
        all
    }

    /// Whether a pod is not needed any more. One that failed stays until the next of its index knows of it.
    fn may_untrack(&self, pod: &Pod, failed: bool, end: Option<&End>) -> bool {
        if self.going || end.is_some() || pod.phase == Phase::Succeeded {
            return true;
        }
        let follows = || {
            let last = index_of(pod).and_then(|index| self.last_failed.get(&index));
            last.is_some_and(|last| last.uid == pod.uid)
        };
        failed && !follows()
    }

    fn finish(&mut self, end: &End) {
        let now = self.observed.now;
        set_condition(&mut self.status, end.last(), "True", (end.reason.as_str(), end.message.as_str()), now);
        if !end.complete {
            let reason = FAILURES.iter().find(|known| **known == end.reason).copied().unwrap_or("Failed");
            self.plan.told.push(Told::warning(reason, end.message.as_str()));
            return;
        }
        self.status.completion_time = Some(moment(now));
        let wanted = completions(self.spec).and_then(|wanted| usize::try_from(wanted).ok());
        if wanted.is_some_and(|wanted| count(self.status.succeeded) > wanted) {
            let message = "Too many succeeded pods running after completion count reached";
            self.plan.told.push(Told::warning("TooManySucceededPods", message));
        }
        self.plan.told.push(Told::normal("Completed", "Job completed"));
    }
}

/// Why Jobs fail; events have the same reasons.
const FAILURES: [&str; 5] =
    ["PodFailurePolicy", "BackoffLimitExceeded", "DeadlineExceeded", "MaxFailedIndexesExceeded", "FailedIndexes"];

fn uids(list: &mut Option<Vec<String>>) -> &mut Vec<String> {
    list.get_or_insert_default()
}
