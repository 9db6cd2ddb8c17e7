//! How a Job ends: what is known of it, and what has come to be true.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{JobCondition, JobStatus};

use super::{Planner, completions, is_failed, is_suspended, moment};
use crate::events::Told;
use crate::informer::Phase;
use crate::job::policy::{self, Verdict};

/// No number of seconds that somebody wrote reaches a clock as it is.
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// How a Job ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct End {
    pub complete: bool,
    pub reason: String,
    pub message: String,
    /// Whether its status says so already, by the condition of the interim.
    pub known: bool,
}

impl End {
    fn failure(reason: &str, message: &str) -> Self {
        Self { complete: false, reason: reason.to_owned(), message: message.to_owned(), known: false }
    }

    fn success(reason: &str, message: &str) -> Self {
        Self { complete: true, ..Self::failure(reason, message) }
    }

    /// The condition that says so while pods still go.
    pub(super) fn interim(&self) -> &'static str {
        if self.complete { "SuccessCriteriaMet" } else { "FailureTarget" }
    }

    /// The condition that says that it is over.
    pub(super) fn last(&self) -> &'static str {
        if self.complete { "Complete" } else { "Failed" }
    }
}

impl Planner<'_> {
    /// What an earlier plan has found stays true.
    pub(super) fn known_end(&self) -> Option<End> {
        let conditions = self.status.conditions.as_deref().unwrap_or_default();
        let has = |kind: &str| conditions.iter().find(|known| known.type_ == kind && known.status == "True");
        let (complete, found) = match has("SuccessCriteriaMet") {
            Some(found) => (true, found),
            None => (false, has("FailureTarget")?),
        };
        let [reason, message] = [&found.reason, &found.message].map(|text| text.clone().unwrap_or_default());
        Some(End { complete, reason, message, known: true })
    }

    /// A pod failed in a way by which the whole Job has.
    pub(super) fn policy_end(&self) -> Option<End> {
        self.spec.pod_failure_policy.as_ref()?;
        let failed = self.pods.iter().filter(|pod| is_failed(self.spec, pod));
        let message = failed.map(|pod| self.verdict(pod)).find_map(|verdict| match verdict {
            Verdict::FailJob(message) => Some(message),
            _ => None,
        })?;
        Some(End::failure("PodFailurePolicy", &message))
    }

    /// Too many failures, or too much time.
    pub(super) fn limit_end(&mut self, failures: usize) -> Option<End> {
        let limit = usize::try_from(self.spec.backoff_limit.unwrap_or(6)).unwrap_or(0);
        if failures > limit || self.restarts_exceed(limit) {
            return Some(End::failure("BackoffLimitExceeded", "Job has reached the specified backoff limit"));
        }
        if is_suspended(self.spec) {
            return None;
        }
        let allowed = Duration::from_secs(u64::try_from(self.spec.active_deadline_seconds?).unwrap_or(0)).min(YEAR);
        let passed = self.observed.now.duration_since(self.status.start_time.as_ref()?.0).max(SignedDuration::ZERO);
        match allowed.checked_sub(passed.unsigned_abs()).filter(|left| !left.is_zero()) {
            None => Some(End::failure("DeadlineExceeded", "Job was active longer than specified deadline")),
            Some(left) => {
                self.check_after(left);
                None
            }
        }
    }

    /// Containers that are restarted in their pods count as well.
    fn restarts_exceed(&self, limit: usize) -> bool {
        let policy = self.spec.template.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref());
        if policy != Some("OnFailure") {
            return false;
        }
        let living = self.pods.iter().filter(|pod| matches!(pod.phase, Phase::Running | Phase::Pending));
        let restarts = living.filter_map(|pod| pod.run.as_ref()).map(|run| usize::try_from(run.restarts).unwrap_or(0));
        let restarts = restarts.fold(0, usize::saturating_add);
        restarts >= limit.max(1)
    }

    /// Too many indexes failed, or none is left to be tried.
    pub(super) fn index_end(&self) -> Option<End> {
        let failed = self.failed.as_ref()?.total();
        let most = self.spec.max_failed_indexes.and_then(|most| u64::try_from(most).ok());
        if most.is_some_and(|most| failed > most) {
            let message = "Job has exceeded the specified maximal number of failed indexes";
            return Some(End::failure("MaxFailedIndexesExceeded", message));
        }
        let all = u64::from(completions(self.spec).unwrap_or(0));
        let over = failed > 0 && failed + self.succeeded.total() >= all;
        over.then(|| End::failure("FailedIndexes", "Job has failed indexes"))
    }

    /// Enough has succeeded, by a rule.
    pub(super) fn success_end(&self) -> Option<End> {
        let message = policy::met(self.spec, &self.succeeded)?;
        Some(End::success("SuccessPolicy", &message))
    }

    /// Everything has succeeded, or one where any will do, and nothing is at work any more.
    pub(super) fn completion(&self, successes: usize) -> Option<End> {
        let enough = match completions(self.spec) {
            Some(wanted) => successes >= usize::try_from(wanted).unwrap_or(usize::MAX),
            None => successes > 0,
        };
        let done = enough && self.is_settled() && self.plan.create.is_empty();
        done.then(|| End::success("CompletionsReached", "Reached expected number of succeeded pods"))
    }

    /// Says that the Job is suspended, or that it is no more.
    pub(super) fn suspension(&mut self) {
        let now = self.observed.now;
        let suspended = is_suspended(self.spec);
        let (status, reason, message) = match suspended {
            true => ("True", "JobSuspended", "Job suspended"),
            false => ("False", "JobResumed", "Job resumed"),
        };
        if !set_condition(&mut self.status, "Suspended", status, (reason, message), now) {
            return;
        }
        // Time counts from when it goes on.
        self.status.start_time = (!suspended).then(|| moment(now));
        let reason = if suspended { "Suspended" } else { "Resumed" };
        self.plan.told.push(Told::normal(reason, message));
    }

    /// Looks again by then.
    pub(super) fn check_after(&mut self, wait: Duration) {
        self.plan.check_after = Some(self.plan.check_after.map_or(wait, |known| known.min(wait)));
    }
}

/// Sets a condition; whether that changed anything. One that is false is not added.
pub(super) fn set_condition(
    of: &mut JobStatus,
    kind: &str,
    status: &str,
    (reason, message): (&str, &str),
    now: Timestamp,
) -> bool {
    let new = JobCondition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_probe_time: Some(moment(now)),
        last_transition_time: Some(moment(now)),
    };
    let known = of.conditions.iter_mut().flatten().find(|known| known.type_ == kind);
    match known {
        Some(known) if known.status == new.status && known.reason == new.reason && known.message == new.message => {
            false
        }
        Some(known) => {
            *known = new;
            true
        }
        None if status == "False" => false,
        None => {
            of.conditions.get_or_insert_default().push(new);
            true
        }
    }
}
