//! The core of the ReplicaSet controller: from what is there to what to do. No I/O, no clock.

use std::collections::HashSet;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::rank;
use crate::informer::Pod;
use crate::selector;
use crate::workload::unless_zero;

/// Pods created or deleted per reconciliation (the reference's burst).
pub(crate) const BURST: usize = 500;
/// Condition of a ReplicaSet that cannot create or delete.
const REPLICA_FAILURE: &str = "ReplicaFailure";

/// What is there.
pub(crate) struct Observed<'a> {
    pub set: &'a ReplicaSet,
    /// Pods that it controls.
    pub owned: Vec<Arc<Pod>>,
    /// Pods of its namespace that nobody controls.
    pub orphans: Vec<Arc<Pod>>,
    /// Names of pods that are being created and not in `owned` yet.
    pub creating: usize,
    /// Uids of pods whose deletion was asked for.
    pub deleting: &'a HashSet<Arc<str>>,
    /// Pods of ReplicaSets with the same controller, for the spread over nodes; asked only when pods go.
    pub related: &'a dyn Fn() -> Vec<Arc<Pod>>,
    pub now: Timestamp,
}

/// What to do.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Plan {
    pub adopt: Vec<Arc<Pod>>,
    pub release: Vec<Arc<Pod>>,
    pub create: usize,
    pub delete: Vec<Arc<Pod>>,
    /// Counts, before what is done here; conditions as they were.
    pub status: ReplicaSetStatus,
    /// When the next pod becomes available by the clock alone.
    pub check_after: Option<std::time::Duration>,
    /// Missing (positive) or surplus pods.
    pub missing: i64,
}

pub(crate) fn plan(observed: &Observed<'_>) -> Plan {
    let set = observed.set;
    let spec = &set.spec;
    let going = set.metadata.deletion_timestamp.is_some();
    let mut plan = Plan::default();
    let mut active: Vec<Arc<Pod>> = Vec::with_capacity(observed.owned.len());
    let mut terminating = 0;
    for pod in &observed.owned {
        let matching = selector::matches(&spec.selector, &pod.labels);
        if !matching {
            if pod.is_active() && !going {
                plan.release.push(pod.clone());
            }
        } else if pod.is_active() && !observed.deleting.contains(&pod.uid) {
            active.push(pod.clone());
        } else if !pod.is_terminal() {
            terminating += 1;
        }
    }
    if !going {
        let orphans = observed.orphans.iter().filter(|pod| pod.is_active());
        plan.adopt.extend(orphans.filter(|pod| selector::matches(&spec.selector, &pod.labels)).cloned());
        active.extend(plan.adopt.iter().cloned());
    }

    let wanted = usize::try_from(spec.replicas.unwrap_or(1)).unwrap_or(0);
    let there = active.len() + observed.creating;
    plan.missing = i64::try_from(wanted).unwrap_or(i64::MAX) - i64::try_from(active.len()).unwrap_or(i64::MAX);
    let min_ready = spec.min_ready_seconds.unwrap_or(0);
    count(&mut plan, set, &active, terminating, min_ready, observed.now);

    if !going {
        plan.create = wanted.saturating_sub(there).min(BURST);
        let surplus = active.len().saturating_sub(wanted).min(BURST);
        // While creations are under way their names cannot be chosen from, so what surplus they make waits for them.
        if surplus > 0 {
            plan.delete = if surplus < active.len() {
                rank::victims(active, &(observed.related)(), surplus, observed.now)
            } else {
                active
            };
        }
    }
    plan
}

/// The status of a ReplicaSet as these pods of it make it, before anything is done about them.
pub(crate) fn counted(set: &ReplicaSet, owned: &[Arc<Pod>], now: Timestamp) -> ReplicaSetStatus {
    let matching = owned.iter().filter(|pod| selector::matches(&set.spec.selector, &pod.labels));
    let (active, others): (Vec<Arc<Pod>>, Vec<_>) = matching.cloned().partition(|pod| pod.is_active());
    let terminating = others.iter().filter(|pod| !pod.is_terminal()).count();
    let mut plan = Plan::default();
    let min_ready = set.spec.min_ready_seconds.unwrap_or(0);
    count(&mut plan, set, &active, i32::try_from(terminating).unwrap_or(i32::MAX), min_ready, now);
    plan.status
}

fn count(plan: &mut Plan, set: &ReplicaSet, active: &[Arc<Pod>], terminating: i32, min_ready: i32, now: Timestamp) {
    let template = set.spec.template.as_ref();
    let template = template.and_then(|template| template.metadata.as_ref()?.labels.as_ref());
    let (mut labelled, mut ready, mut available) = (0, 0, 0);
    let mut next: Option<Timestamp> = None;
    for pod in active {
        labelled += i32::from(template.is_none_or(|wanted| selector::contains(&pod.labels, wanted)));
        if !pod.ready {
            continue;
        }
        ready += 1;
        match pod.available_at(min_ready) {
            Some(at) if min_ready > 0 && at > now => next = Some(next.map_or(at, |next| next.min(at))),
            None if min_ready > 0 => {}
            _ => available += 1,
        }
    }
    let before = set.status.clone().unwrap_or_default();
    plan.status = ReplicaSetStatus {
        replicas: i32::try_from(active.len()).unwrap_or(i32::MAX),
        fully_labeled_replicas: unless_zero(labelled),
        ready_replicas: unless_zero(ready),
        available_replicas: unless_zero(available),
        terminating_replicas: Some(terminating),
        observed_generation: set.metadata.generation,
        conditions: before.conditions,
    };
    plan.check_after = next.map(|at| {
        let wait = at.duration_since(now).max(SignedDuration::ZERO);
        wait.unsigned_abs() + std::time::Duration::from_millis(1)
    });
}

/// Sets or clears the condition that creating or deleting fails.
pub(crate) fn set_failure(status: &mut ReplicaSetStatus, failure: Option<String>, missing: i64, now: Timestamp) {
    let conditions = status.conditions.get_or_insert_default();
    let known = conditions.iter().any(|condition| condition.type_.as_deref() == Some(REPLICA_FAILURE));
    match failure {
        Some(message) if !known => conditions.push(ReplicaSetCondition {
            type_: Some(REPLICA_FAILURE.to_owned()),
            status: Some("True".to_owned()),
            last_transition_time: Some(Time(now)),
            reason: Some(if missing > 0 { "FailedCreate" } else { "FailedDelete" }.to_owned()),
            message: Some(message),
        }),
        None if known => conditions.retain(|condition| condition.type_.as_deref() != Some(REPLICA_FAILURE)),
        _ => {}
    }
    if conditions.is_empty() {
        status.conditions = None;
    }
}

/// Whether writing `status` would change nothing.
pub(crate) fn is_written(set: &ReplicaSet, status: &ReplicaSetStatus) -> bool {
    let zero = |status: &ReplicaSetStatus| {
        let mut status = status.clone();
        for count in [
            &mut status.fully_labeled_replicas,
            &mut status.ready_replicas,
            &mut status.available_replicas,
            &mut status.terminating_replicas,
        ] {
            *count = count.filter(|count| *count != 0);
        }
        status.conditions = status.conditions.filter(|conditions| !conditions.is_empty());
        status.observed_generation = status.observed_generation.filter(|generation| *generation != 0);
        status
    };
    set.status.as_ref().is_some_and(|before| zero(before) == zero(status))
}

/// Whether the status says no more than that pods were made, of which nothing has come yet.
pub(crate) fn is_growth(set: &ReplicaSet, status: &ReplicaSetStatus) -> bool {
    let before = set.status.clone().unwrap_or_default();
    let same = |a: Option<i32>, b: Option<i32>| a.unwrap_or(0) == b.unwrap_or(0);
    let wanted = set.spec.replicas.unwrap_or(1);
    wanted > 0
        && status.replicas >= before.replicas
        && status.replicas <= wanted
        && status.ready_replicas.unwrap_or(0) < wanted
        && same(before.ready_replicas, status.ready_replicas)
        && same(before.available_replicas, status.available_replicas)
        && same(before.terminating_replicas, status.terminating_replicas)
        && before.conditions.unwrap_or_default() == status.conditions.clone().unwrap_or_default()
}
