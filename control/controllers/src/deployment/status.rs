//! The status of a Deployment: counts and conditions, in the reference's words.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::model::{Set, Wanted};
use super::plan::New;
use crate::workload::unless_zero;

const AVAILABLE: &str = "Available";
pub(crate) const PROGRESSING: &str = "Progressing";
const REPLICA_FAILURE: &str = "ReplicaFailure";

/// Whether this pass moves a rollout on; only such a pass judges its progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    None,
    Rollout,
}

/// What the status is made from.
pub(crate) struct View<'a> {
    pub deployment: &'a Deployment,
    pub wanted: Wanted,
    pub current: Option<&'a Set>,
    pub old: &'a [Set],
    pub new: Option<&'a New>,
    /// Name of the current one, if it was created since the last status.
    pub created: Option<&'a str>,
    pub now: Timestamp,
}

/// The status as it shall be, and when to look at the progress again.
pub(crate) fn status(view: &View<'_>, progress: Progress) -> (DeploymentStatus, Option<Duration>) {
    let deployment = view.deployment;
    let before = deployment.status.clone().unwrap_or_default();
    let mut status = counts(view, &before);
    let conditions = status.conditions.get_or_insert_default();
    let enough = status.available_replicas.unwrap_or(0) >= view.wanted.replicas - view.wanted.unavailable();
    let available = if enough {
        condition(AVAILABLE, "True", "MinimumReplicasAvailable", "Deployment has minimum availability.", view.now)
    } else {
        let message = "Deployment does not have minimum availability.";
        condition(AVAILABLE, "False", "MinimumReplicasUnavailable", message, view.now)
    };
    set(conditions, available);
    note_pause(view, conditions);
    note_current(view, conditions);
    let mut check_after = None;
    if progress == Progress::Rollout {
        check_after = judge(view, &before, &mut status);
        note_failure(view, status.conditions.get_or_insert_default());
    }
    status.conditions = status.conditions.filter(|conditions| !conditions.is_empty());
    (status, check_after)
}

fn counts(view: &View<'_>, before: &DeploymentStatus) -> DeploymentStatus {
    let all = || view.old.iter().chain(view.current);
    let sum = |count: fn(&Set) -> i32| all().map(count).sum::<i32>();
    let available = sum(Set::available);
    DeploymentStatus {
        observed_generation: view.deployment.metadata.generation,
        replicas: unless_zero(sum(Set::actual)),
        updated_replicas: unless_zero(view.current.map_or(0, Set::actual)),
        ready_replicas: unless_zero(sum(Set::ready)),
        available_replicas: unless_zero(available),
        unavailable_replicas: unless_zero(
            (sum(|set| set.replicas) + view.new.map_or(0, |new| new.replicas) - available).max(0),
        ),
        terminating_replicas: Some(sum(Set::terminating)),
        collision_count: before.collision_count,
        conditions: before.conditions.clone(),
    }
}

/// Pausing stops the clock of the progress deadline, resuming starts it anew.
fn note_pause(view: &View<'_>, conditions: &mut Vec<DeploymentCondition>) {
    if deadline(view.deployment).is_none() || view.deployment.metadata.deletion_timestamp.is_some() {
        return;
    }
    let reason = find(conditions, PROGRESSING).and_then(|condition| condition.reason.as_deref());
    let paused = view.deployment.spec.paused.unwrap_or(false);
    match (paused, reason) {
        (_, Some("ProgressDeadlineExceeded")) | (true, Some("DeploymentPaused")) => {}
        (true, _) => {
            set(conditions, condition(PROGRESSING, "Unknown", "DeploymentPaused", "Deployment is paused", view.now));
        }
        (false, Some("DeploymentPaused")) => {
            set(conditions, condition(PROGRESSING, "Unknown", "DeploymentResumed", "Deployment is resumed", view.now));
        }
        (false, _) => {}
    }
}

/// The beginning of progress: the ReplicaSet is new, or was found.
fn note_current(view: &View<'_>, conditions: &mut Vec<DeploymentCondition>) {
    if deadline(view.deployment).is_none() {
        return;
    }
    if let Some(new) = view.new {
        let message = format!("Created new replica set {:?}", new.name);
        set(conditions, condition(PROGRESSING, "True", "NewReplicaSetCreated", &message, view.now));
    } else if let Some(current) = view.current
        && find(conditions, PROGRESSING).is_none()
    {
        let (reason, message) = if view.created == Some(current.name()) {
            ("NewReplicaSetCreated", format!("Created new replica set {:?}", current.name()))
        } else {
            ("FoundNewReplicaSet", format!("Found new replica set {:?}", current.name()))
        };
        set(conditions, condition(PROGRESSING, "True", reason, &message, view.now));
    }
}

/// Complete, progressing, or stuck; returns when stuck would be noticed.
fn judge(view: &View<'_>, before: &DeploymentStatus, status: &mut DeploymentStatus) -> Option<Duration> {
    let Some(deadline) = deadline(view.deployment) else {
        status.conditions.get_or_insert_default().retain(|condition| condition.type_.as_deref() != Some(PROGRESSING));
        return None;
    };
    let complete = is_reached(view.deployment, &view.wanted, status);
    let progressed = has_progressed(before, status);
    let name = match (view.current, view.new) {
        (Some(current), _) => format!("ReplicaSet {:?}", current.name()),
        (None, Some(new)) => format!("ReplicaSet {:?}", new.name),
        (None, None) => format!("Deployment {:?}", view.deployment.metadata.name.as_deref().unwrap_or_default()),
    };
    let (replicas, updated) = (status.replicas, status.updated_replicas);
    let conditions = status.conditions.get_or_insert_default();
    let current = find(conditions, PROGRESSING).cloned();
    let reason = current.as_ref().and_then(|condition| condition.reason.as_deref());
    if replicas == updated && reason == Some("NewReplicaSetAvailable") {
        return None;
    }
    if complete {
        let message = format!("{name} has successfully progressed.");
        set(conditions, condition(PROGRESSING, "True", "NewReplicaSetAvailable", &message, view.now));
        return None;
    }
    if progressed {
        let message = format!("{name} is progressing.");
        let mut next = condition(PROGRESSING, "True", "ReplicaSetUpdated", &message, view.now);
        if let Some(current) = current.filter(|current| current.status.as_deref() == Some("True")) {
            next.last_transition_time = current.last_transition_time;
        }
        // Set even when its reason is the same: the time of the last update is what the deadline counts from.
        conditions.retain(|condition| condition.type_.as_deref() != Some(PROGRESSING));
        conditions.push(next);
        return Some(deadline + Duration::from_secs(1));
    }
    let current = current?;
    match current.reason.as_deref() {
        Some("NewReplicaSetAvailable" | "ProgressDeadlineExceeded") => None,
        _ => {
            let since = current.last_update_time.as_ref().map_or(view.now, |time| time.0);
            let left = SignedDuration::try_from(deadline).ok()? - view.now.duration_since(since);
            if left.is_positive() || left.is_zero() {
                return Some(left.unsigned_abs() + Duration::from_secs(1));
            }
            let message = format!("{name} has timed out progressing.");
            set(conditions, condition(PROGRESSING, "False", "ProgressDeadlineExceeded", &message, view.now));
            None
        }
    }
}

/// Passes on why a ReplicaSet cannot create its pods.
fn note_failure(view: &View<'_>, conditions: &mut Vec<DeploymentCondition>) {
    let failures = view.current.into_iter().chain(view.old).filter_map(|set| {
        let conditions = set.object.status.as_ref()?.conditions.as_ref()?;
        conditions.iter().find(|condition| condition.type_.as_deref() == Some(REPLICA_FAILURE))
    });
    match failures.into_iter().next() {
        Some(failure) => set(
            conditions,
            DeploymentCondition {
                type_: failure.type_.clone(),
                status: failure.status.clone(),
                last_update_time: failure.last_transition_time.clone(),
                last_transition_time: failure.last_transition_time.clone(),
                reason: failure.reason.clone(),
                message: failure.message.clone(),
            },
        ),
        None => conditions.retain(|condition| condition.type_.as_deref() != Some(REPLICA_FAILURE)),
    }
}

/// Whether the status that is written says that the rollout is over.
pub(crate) fn is_complete(deployment: &Deployment, wanted: &Wanted) -> bool {
    deployment.status.as_ref().is_some_and(|status| is_reached(deployment, wanted, status))
}

fn is_reached(deployment: &Deployment, wanted: &Wanted, status: &DeploymentStatus) -> bool {
    let all = |count: Option<i32>| count.unwrap_or(0) == wanted.replicas;
    all(status.updated_replicas)
        && all(status.replicas)
        && all(status.available_replicas)
        && status.observed_generation.unwrap_or(0) >= deployment.metadata.generation.unwrap_or(0)
}

/// Whether the status tells of the way only: nothing became available or ceased to be, and nothing has failed.
pub(crate) fn is_underway(deployment: &Deployment, wanted: &Wanted, status: &DeploymentStatus) -> bool {
    let before = deployment.status.clone().unwrap_or_default();
    let count = |count: Option<i32>| count.unwrap_or(0);
    let bad = |condition: &DeploymentCondition| {
        let type_ = condition.type_.as_deref();
        type_ == Some(REPLICA_FAILURE) || (type_ == Some(PROGRESSING) && condition.status.as_deref() == Some("False"))
    };
    wanted.replicas > 0
        && !is_reached(deployment, wanted, status)
        && count(before.available_replicas) == count(status.available_replicas)
        && count(before.ready_replicas) == count(status.ready_replicas)
        && !status.conditions.iter().flatten().any(bad)
}

fn has_progressed(before: &DeploymentStatus, after: &DeploymentStatus) -> bool {
    let count = |count: Option<i32>| count.unwrap_or(0);
    let old = |status: &DeploymentStatus| count(status.replicas) - count(status.updated_replicas);
    count(after.updated_replicas) > count(before.updated_replicas)
        || old(after) < old(before)
        || count(after.ready_replicas) > count(before.ready_replicas)
        || count(after.available_replicas) > count(before.available_replicas)
}

/// `progressDeadlineSeconds`, if progress is judged at all.
fn deadline(deployment: &Deployment) -> Option<Duration> {
    let seconds = deployment.spec.progress_deadline_seconds.filter(|seconds| *seconds != i32::MAX)?;
    Some(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
}

pub(crate) fn condition(type_: &str, status: &str, reason: &str, message: &str, now: Timestamp) -> DeploymentCondition {
    DeploymentCondition {
        type_: Some(type_.to_owned()),
        status: Some(status.to_owned()),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_update_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    }
}

fn find<'a>(conditions: &'a [DeploymentCondition], type_: &str) -> Option<&'a DeploymentCondition> {
    conditions.iter().find(|condition| condition.type_.as_deref() == Some(type_))
}

/// Same status and reason: as it was. Same status: the time of the transition stays.
pub(crate) fn set(conditions: &mut Vec<DeploymentCondition>, mut condition: DeploymentCondition) {
    let type_ = condition.type_.clone();
    if let Some(before) = conditions.iter().find(|before| before.type_ == type_)
        && before.status == condition.status
    {
        if before.reason == condition.reason {
            return;
        }
        condition.last_transition_time.clone_from(&before.last_transition_time);
    }
    conditions.retain(|before| before.type_ != type_);
    conditions.push(condition);
}

/// Whether writing `status` would change nothing.
pub(crate) fn is_written(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let normal = |status: &DeploymentStatus| {
        let mut status = status.clone();
        for count in [
            &mut status.replicas,
            &mut status.updated_replicas,
            &mut status.ready_replicas,
            &mut status.available_replicas,
            &mut status.unavailable_replicas,
            &mut status.terminating_replicas,
            &mut status.collision_count,
        ] {
            *count = count.filter(|count| *count != 0);
        }
        status.conditions = status.conditions.filter(|conditions| !conditions.is_empty());
        status
    };
    deployment.status.as_ref().is_some_and(|before| normal(before) == normal(status))
}
