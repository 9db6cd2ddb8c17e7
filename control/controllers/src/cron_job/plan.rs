//! The core of the CronJob controller: from what is there to what to do. No I/O, no clock.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use coracle_api::schedule::Zone;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{CronJob, CronJobStatus, Job};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

use super::SCHEDULED;
use super::due::{self, Missed};
use crate::events::Told;
use crate::informer::Object as _;
use crate::job;

/// What is there.
pub(super) struct Observed<'a> {
    pub cron: &'a CronJob,
    /// Jobs that it controls.
    pub jobs: &'a [Arc<Job>],
    /// Uids of Jobs that its status names and the API does not have.
    pub gone: &'a HashSet<String>,
    pub now: Timestamp,
}

/// A Job that is due.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Start {
    pub at: Timestamp,
    /// Jobs that give way to it.
    pub replaces: Vec<ObjectReference>,
}

/// What to do.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Plan {
    /// Finished Jobs that are more than the history keeps.
    pub forget: Vec<Arc<Job>>,
    pub start: Option<Start>,
    /// Before anything is deleted or started.
    pub status: CronJobStatus,
    pub told: Vec<Told>,
    /// When it is due again, if what is due now is started.
    pub next: Option<Duration>,
}

pub(super) fn plan(observed: &Observed<'_>) -> Plan {
    let (cron, now) = (observed.cron, observed.now);
    let mut plan = Plan { status: cron.status.clone().unwrap_or_default(), ..Plan::default() };
    forget(observed, &mut plan);
    observe(observed, &mut plan);
    if cron.metadata.deletion_timestamp.is_some() {
        return plan;
    }
    if let Some(zone) = &cron.spec.time_zone
        && let Err(error) = Zone::load(zone)
    {
        plan.told.push(Told::warning("UnknownTimeZone", format!("invalid timeZone: {zone:?}: {error}")));
        return plan;
    }
    if cron.spec.suspend.unwrap_or(false) {
        return plan;
    }
    let text = &cron.spec.schedule;
    if text.contains("TZ") {
        let message = format!(
            "CRON_TZ or TZ used in schedule {text:?} is not officially supported, see \
             https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/ for more details"
        );
        plan.told.push(Told::warning("UnsupportedSchedule", message));
    }
    let schedule = match due::schedule(cron) {
        Ok(schedule) => schedule,
        Err(error) => {
            let message = format!("unparseable schedule: {text:?} : {error}");
            plan.told.push(Told::warning("UnparseableSchedule", message));
            return plan;
        }
    };
    let due = match due::due(cron, &plan.status, &schedule, now, true) {
        Ok(due) => due,
        Err(why) => {
            plan.told.push(Told::warning("InvalidSchedule", format!("invalid schedule: {text} : {why}")));
            return plan;
        }
    };
    if let Some(at) = due.latest {
        if due.missed == Missed::Many {
            let message =
                "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew";
            plan.told.push(Told::warning("TooManyMissedTimes", message));
        }
        start(observed, at, &mut plan);
    }
    let mut after = plan.status.clone();
    if let Some(start) = &plan.start {
        after.last_schedule_time = Some(Time(start.at));
    }
    plan.next = due::wait(cron, &after, &schedule, now);
    plan
}

/// Starts the Job of a moment, unless something is against it.
fn start(observed: &Observed<'_>, at: Timestamp, plan: &mut Plan) {
    let (cron, now) = (observed.cron, observed.now);
    let late = |deadline: SignedDuration| at.checked_add(deadline).is_ok_and(|end| end < now);
    if due::deadline(cron).is_some_and(late) {
        let when = at.strftime("%a, %d %b %Y %H:%M:%S +0000");
        plan.told.push(Told::warning("MissSchedule", format!("Missed scheduled time to start a job: {when}")));
        return;
    }
    let name = job_name(cron, at);
    let active = plan.status.active.as_deref().unwrap_or_default();
    let known = active.iter().any(|job| job.name.as_deref() == Some(&name));
    if known || plan.status.last_schedule_time.as_ref().is_some_and(|last| last.0 == at) {
        return;
    }
    match cron.spec.concurrency_policy.as_deref() {
        Some("Forbid") if !active.is_empty() => {
            let message = "Not starting job because prior execution is running and concurrency policy is Forbid";
            plan.told.push(Told::normal("JobAlreadyActive", message));
        }
        Some("Replace") => plan.start = Some(Start { at, replaces: active.to_vec() }),
        _ => plan.start = Some(Start { at, replaces: Vec::new() }),
    }
}

/// The name of the Job of a moment: who makes it a second time finds it there.
pub(super) fn job_name(cron: &CronJob, at: Timestamp) -> String {
    format!("{}-{}", cron.metadata.name.as_deref().unwrap_or_default(), at.as_second().div_euclid(60))
}

/// Brings the status up to what became of its Jobs.
fn observe(observed: &Observed<'_>, plan: &mut Plan) {
    let last = plan.status.last_schedule_time.as_ref().map(|time| time.0);
    let active = plan.status.active.iter().flatten().filter_map(|job| job.uid.clone());
    let active: HashSet<String> = active.collect();
    for job in observed.jobs {
        let listed = active.contains(job.uid());
        let name = &job.key().name;
        let finished = job::finished(job);
        // One that goes unfinished is made once more; of one that has finished the history may keep nothing.
        let counts = !listed && (finished.is_some() || job.metadata.deletion_timestamp.is_none());
        let forgotten = forgotten(observed.cron, job, last).filter(|_| counts);
        let known = plan.status.last_schedule_time.take().map(|time| time.0);
        plan.status.last_schedule_time = known.max(forgotten).map(Time);
        let Some(finished) = finished else {
            if !listed {
                let message = format!("Saw a job that the controller did not create or forgot: {name}");
                plan.told.push(Told::warning("UnexpectedJob", message));
                if forgotten.is_some() {
                    add_active(&mut plan.status, &job.metadata);
                }
            }
            continue;
        };
        let kind = &finished.type_;
        if listed {
            drop_active(&mut plan.status, job.uid());
            let message = format!("Saw completed job: {name}, condition: {kind}");
            plan.told.push(Told::normal("SawCompletedJob", message));
        }
        let ended = job.status.as_ref().and_then(|status| status.completion_time.clone());
        if kind == "Complete"
            && let Some(ended) = ended
            && plan.status.last_successful_time.as_ref().is_none_or(|known| known.0 < ended.0)
        {
            plan.status.last_successful_time = Some(ended);
        }
    }
    let gone = plan.status.active.iter().flatten().filter(|job| is_in(observed.gone, job));
    let gone: Vec<ObjectReference> = gone.cloned().collect();
    for job in gone {
        let name = job.name.as_deref().unwrap_or_default();
        plan.told.push(Told::normal("MissingJob", format!("Active job went missing: {name}")));
        drop_active(&mut plan.status, job.uid.as_deref().unwrap_or_default());
    }
}

/// The moment of a Job that this controller made and whose status was never written: it may have ended between the two. The next moment
/// must know of it where one at a time may run, and its own moment is over also where it is gone by then.
///
/// The reference tells of it and no more, since somebody may have made such a Job by hand (`kubectl create job --from`), which neither
/// stands in the way nor is replaced. So it is here, too: of those that carry no moment of their own, under that moment's name and
/// later than the `last` that the status knows, none is meant.
fn forgotten(cron: &CronJob, job: &Job, last: Option<Timestamp>) -> Option<Timestamp> {
    let at: Timestamp = job.metadata.annotations.as_ref()?.get(SCHEDULED)?.parse().ok()?;
    let is_own = job.metadata.name.as_deref() == Some(&job_name(cron, at));
    (is_own && last.is_none_or(|last| last < at)).then_some(at)
}

/// Puts a Job on the list of those at work.
pub(super) fn add_active(status: &mut CronJobStatus, job: &ObjectMeta) {
    let active = status.active.get_or_insert_default();
    if active.iter().any(|known| known.uid == job.uid) {
        return;
    }
    active.push(ObjectReference {
        api_version: Some("batch/v1".to_owned()),
        kind: Some("Job".to_owned()),
        namespace: job.namespace.clone(),
        name: job.name.clone(),
        uid: job.uid.clone(),
        resource_version: job.resource_version.clone(),
        ..ObjectReference::default()
    });
}

fn is_in(uids: &HashSet<String>, job: &ObjectReference) -> bool {
    uids.contains(job.uid.as_deref().unwrap_or_default())
}

/// Takes a Job off the list of those at work.
pub(super) fn drop_active(status: &mut CronJobStatus, uid: &str) {
    if let Some(active) = &mut status.active {
        active.retain(|job| job.uid.as_deref() != Some(uid));
    }
    status.active = status.active.take().filter(|active| !active.is_empty());
}

/// The oldest finished Jobs, of the successful and of the failed, that are more than the history keeps.
fn forget(observed: &Observed<'_>, plan: &mut Plan) {
    let spec = &observed.cron.spec;
    let limits = [("Complete", spec.successful_jobs_history_limit), ("Failed", spec.failed_jobs_history_limit)];
    for (kind, limit) in limits {
        let Some(limit) = limit else { continue };
        let finished = |job: &&Arc<Job>| {
            job.metadata.deletion_timestamp.is_none() && job::finished(job).is_some_and(|known| known.type_ == kind)
        };
        let mut jobs: Vec<Arc<Job>> = observed.jobs.iter().filter(finished).cloned().collect();
        let surplus = jobs.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
        jobs.sort_by_cached_key(|job| {
            let start = job.status.as_ref().and_then(|status| status.start_time.as_ref()).map(|time| time.0);
            (start.is_none(), start, job.key().name)
        });
        jobs.truncate(surplus);
        plan.forget.extend(jobs);
    }
}
