//! The core of the StatefulSet controller: from what is there to what to do (`updateStatefulSet` of the reference). No I/O,
//! no clock.
//!
//! `OrderedReady` does one thing at a time, in the order of the ordinals, and waits for what is not available; `Parallel` does
//! all at once. Only when every pod that is wanted is there are pods replaced whose revision is an old one.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetStatus};
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

use super::claims::{self, Retention, Who};
use crate::deployment::{Round, scaled};
use crate::informer::{Phase, Pod};
use crate::workload::history::REVISION_LABEL;
use crate::workload::unless_zero;

/// Pods that are created per reconciliation.
pub(super) const BURST: usize = 500;
pub(super) const POD_NAME_LABEL: &str = "statefulset.kubernetes.io/pod-name";
pub(super) const POD_INDEX_LABEL: &str = "apps.kubernetes.io/pod-index";

/// What is there.
pub(super) struct Observed<'a> {
    pub set: &'a StatefulSet,
    /// Pods that it controls, all named as its own.
    pub pods: &'a [Arc<Pod>],
    /// Names that were asked for.
    pub creating: &'a HashSet<Arc<str>>,
    /// Uids of pods whose deletion was asked for.
    pub deleting: &'a HashSet<Arc<str>>,
    /// Names of the revision that all pods had last, and of that which they shall have.
    pub current: &'a str,
    pub update: &'a str,
    /// Hash collisions of revisions, with those of this pass.
    pub collisions: i32,
    /// A claim of the namespace.
    pub claim: &'a dyn Fn(&str) -> Option<Arc<PersistentVolumeClaim>>,
    pub now: Timestamp,
}

/// Of which revision a new pod is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Revision {
    Current,
    Update,
}

/// What to do.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Plan {
    pub create: Vec<(i32, Revision)>,
    /// Ordinals of pods that wait, whose claims are missing.
    pub claims: Vec<i32>,
    pub delete: Vec<Arc<Pod>>,
    /// Pods whose labels do not say who they are.
    pub relabel: Vec<Arc<Pod>>,
    /// Claims that get other owners.
    pub owners: Vec<(Arc<PersistentVolumeClaim>, Vec<OwnerReference>)>,
    /// Claims that are the business of somebody else.
    pub foreign: Vec<Arc<PersistentVolumeClaim>>,
    pub status: StatefulSetStatus,
    /// When the next pod becomes available by the clock alone.
    pub check_after: Option<Duration>,
    /// Whether there is more to create.
    pub more: bool,
}

/// The ordinal in the name of a pod of this set.
pub(super) fn ordinal(set: &str, pod: &str) -> Option<i32> {
    let digits = pod.strip_prefix(set)?.strip_prefix('-')?;
    let is_plain = digits.bytes().all(|byte| byte.is_ascii_digit()) && (digits == "0" || !digits.starts_with('0'));
    digits.parse().ok().filter(|_| is_plain)
}

/// Whether pods go and come all at once.
fn is_parallel(set: &StatefulSet) -> bool {
    set.spec.pod_management_policy.as_deref() == Some("Parallel")
}

/// Whether pods of old revisions are replaced, and not only those that somebody deletes.
fn is_rolling(set: &StatefulSet) -> bool {
    let strategy = set.spec.update_strategy.as_ref();
    strategy.and_then(|strategy| strategy.type_.as_deref()) != Some("OnDelete")
}

pub(super) fn plan(observed: &Observed<'_>) -> Plan {
    let mut planner = Planner::of(observed);
    if observed.set.metadata.deletion_timestamp.is_none() {
        planner.decide();
    }
    planner.finish()
}

/// Whether to go on with the next pod.
enum Flow {
    On,
    Stop,
}

struct Planner<'a> {
    observed: &'a Observed<'a>,
    plan: Plan,
    name: &'a str,
    start: i64,
    replicas: i64,
    min_ready: i32,
    /// Pods that are wanted, by ordinal.
    wanted: BTreeMap<i64, &'a Arc<Pod>>,
    /// The others.
    condemned: BTreeMap<i64, &'a Arc<Pod>>,
    /// Pods that are deleted for an update.
    updating: i32,
}

impl<'a> Planner<'a> {
    fn of(observed: &'a Observed<'a>) -> Self {
        let spec = &observed.set.spec;
        let name = observed.set.metadata.name.as_deref().unwrap_or_default();
        let start = i64::from(spec.ordinals.as_ref().and_then(|ordinals| ordinals.start).unwrap_or(0).max(0));
        let replicas = i64::from(spec.replicas.unwrap_or(1).max(0));
        let members = observed.pods.iter().filter_map(|pod| Some((i64::from(ordinal(name, &pod.key.name)?), pod)));
        let (wanted, condemned) = members.partition(|(ordinal, _)| (start..start + replicas).contains(ordinal));
        let min_ready = spec.min_ready_seconds.unwrap_or(0);
        Self { observed, plan: Plan::default(), name, start, replicas, min_ready, wanted, condemned, updating: 0 }
    }

    fn is_terminating(&self, pod: &Pod) -> bool {
        pod.deleting.is_some() || self.observed.deleting.contains(&pod.uid)
    }

    fn is_available(&self, pod: &Pod) -> bool {
        pod.is_available(self.min_ready, self.observed.now)
    }

    fn is_unavailable(&self, pod: &Pod) -> bool {
        !self.is_available(pod) || self.is_terminating(pod)
    }

    fn is_updated(&self, pod: &Pod) -> bool {
        pod.labels.get(REVISION_LABEL).is_some_and(|revision| revision == self.observed.update)
    }

    /// Wanted pods that are not there.
    fn missing(&self) -> i64 {
        self.replicas - i64::try_from(self.wanted.len()).unwrap_or(i64::MAX)
    }

    fn decide(&mut self) {
        let parallel = is_parallel(self.observed.set);
        if let Flow::Stop = self.keep_wanted(parallel) {
            return;
        }
        let condemned: Vec<(i64, &Arc<Pod>)> = self.condemned.iter().rev().map(|(at, pod)| (*at, *pod)).collect();
        for (ordinal, pod) in &condemned {
            self.settle_claims(*ordinal, &pod.uid);
        }
        if let Flow::Stop = self.end_condemned(&condemned, parallel) {
            return;
        }
        if is_rolling(self.observed.set) {
            self.replace_old(parallel);
        }
    }

    /// Makes what is wanted and not there, and replaces what has ended.
    fn keep_wanted(&mut self, parallel: bool) -> Flow {
        let mut next = self.start;
        let there: Vec<(i64, &Arc<Pod>)> = self.wanted.iter().map(|(at, pod)| (*at, *pod)).collect();
        for (at, pod) in there {
            // Nothing after one that is not there is looked at: it is not available.
            if self.make_all(next..at, parallel) && !parallel {
                return Flow::Stop;
            }
            if let Flow::Stop = self.keep(at, pod, parallel)
                && !parallel
            {
                return Flow::Stop;
            }
            next = at + 1;
        }
        if self.make_all(next..self.start + self.replicas, parallel) && !parallel { Flow::Stop } else { Flow::On }
    }

    /// Makes the pods of these ordinals: one, or as many as go at once. Returns whether some were not there.
    fn make_all(&mut self, ordinals: std::ops::Range<i64>, parallel: bool) -> bool {
        let missing = !ordinals.is_empty();
        for at in ordinals {
            let Ok(ordinal) = i32::try_from(at) else { break };
            if self.plan.create.len() >= BURST {
                self.plan.more = true;
                break;
            }
            self.make(ordinal);
            if !parallel {
                break;
            }
        }
        missing
    }

    fn make(&mut self, ordinal: i32) {
        let pod = format!("{}-{ordinal}", self.name);
        if self.observed.creating.contains(pod.as_str()) || self.is_blocked(ordinal, &pod) {
            return;
        }
        let revision = self.revision_for(i64::from(ordinal));
        self.plan.create.push((ordinal, revision));
    }

    /// Whether a claim of an earlier pod of that name is still on its way out.
    fn is_blocked(&self, ordinal: i32, pod: &str) -> bool {
        let set = self.observed.set;
        if !Retention::of(set).ends_with_scale {
            return false;
        }
        let who = Who { api_version: "v1", kind: "Pod", name: pod, uid: "" };
        let mut templates = set.spec.volume_claim_templates.iter().flatten();
        templates.any(|template| {
            let claim = (self.observed.claim)(&claims::name(template, self.name, ordinal));
            claim.is_some_and(|claim| who.is_reborn(&claim))
        })
    }

    /// Below the partition pods keep the revision that they had, also when they come back.
    fn revision_for(&self, ordinal: i64) -> Revision {
        let set = self.observed.set;
        let strategy = set.spec.update_strategy.as_ref();
        let current = || set.status.as_ref().and_then(|status| status.current_replicas).unwrap_or(0);
        let kept = match strategy.map(|strategy| (strategy.type_.as_deref(), strategy.rolling_update.as_ref())) {
            Some((_, Some(rolling))) => rolling.partition.unwrap_or(0),
            Some((Some("OnDelete"), None)) => 0,
            Some((_, None)) | None => current(),
        };
        if ordinal < self.start + i64::from(kept) { Revision::Current } else { Revision::Update }
    }

    fn keep(&mut self, at: i64, pod: &'a Arc<Pod>, parallel: bool) -> Flow {
        if pod.is_terminal() {
            // Whatever it ended with, another one takes its place when it is gone.
            if !self.is_terminating(pod) {
                self.plan.delete.push(pod.clone());
            }
            return Flow::Stop;
        }
        if pod.phase == Phase::Pending {
            let ordinal = i32::try_from(at).unwrap_or(i32::MAX);
            let mut templates = self.observed.set.spec.volume_claim_templates.iter().flatten();
            if templates.any(|it| (self.observed.claim)(&claims::name(it, self.name, ordinal)).is_none()) {
                self.plan.claims.push(ordinal);
            }
            self.settle_claims(at, &pod.uid);
        }
        let runs = pod.phase == Phase::Running && pod.ready;
        if !parallel && (self.is_terminating(pod) || !runs || !self.is_available(pod)) {
            return Flow::Stop;
        }
        if pod.phase != Phase::Pending {
            self.settle_claims(at, &pod.uid);
        }
        if pod.labels.get(POD_NAME_LABEL).is_none_or(|name| **name != *pod.key.name) {
            self.plan.relabel.push(pod.clone());
        }
        Flow::On
    }

    fn settle_claims(&mut self, at: i64, uid: &str) {
        let set = self.observed.set;
        let Ok(ordinal) = i32::try_from(at) else { return };
        let pod = format!("{}-{ordinal}", self.name);
        let set_uid = set.metadata.uid.as_deref().unwrap_or_default();
        let who_set = Who { api_version: "apps/v1", kind: "StatefulSet", name: self.name, uid: set_uid };
        let who_pod = Who { api_version: "v1", kind: "Pod", name: &pod, uid };
        let stays = (self.start..self.start + self.replicas).contains(&at);
        for template in set.spec.volume_claim_templates.iter().flatten() {
            let Some(claim) = (self.observed.claim)(&claims::name(template, self.name, ordinal)) else { continue };
            let verdict = claims::verdict(&claim, who_set, who_pod, stays, Retention::of(set));
            if verdict.is_foreign {
                self.plan.foreign.push(claim.clone());
            }
            if let Some(owners) = verdict.owners {
                self.plan.owners.push((claim, owners));
            }
        }
    }

    /// Deletes what is not wanted, the highest ordinal first.
    fn end_condemned(&mut self, condemned: &[(i64, &'a Arc<Pod>)], parallel: bool) -> Flow {
        let first_unavailable = self.first_unavailable();
        for (_, pod) in condemned {
            if self.is_terminating(pod) {
                if parallel {
                    continue;
                }
                return Flow::Stop;
            }
            // One that is not well may go only if it is the first of those that are not.
            let is_well = pod.phase == Phase::Running && pod.ready && self.is_available(pod);
            if !parallel && !is_well && first_unavailable.as_deref() != Some(&*pod.uid) {
                return Flow::Stop;
            }
            self.plan.delete.push((*pod).clone());
            if !parallel {
                return Flow::Stop;
            }
        }
        Flow::On
    }

    /// The lowest of the wanted pods that is not available, else the lowest of the others.
    fn first_unavailable(&self) -> Option<Arc<str>> {
        let mut all = self.wanted.values().chain(self.condemned.values());
        all.find(|pod| self.is_unavailable(pod)).map(|pod| pod.uid.clone())
    }

    /// Deletes pods of old revisions, from the highest ordinal down to the partition, as many as may be away.
    fn replace_old(&mut self, parallel: bool) {
        let rolling =
            self.observed.set.spec.update_strategy.as_ref().and_then(|strategy| strategy.rolling_update.as_ref());
        let partition = self.start + i64::from(rolling.and_then(|rolling| rolling.partition).unwrap_or(0));
        let replicas = i32::try_from(self.replicas).unwrap_or(i32::MAX);
        let limit = rolling.and_then(|rolling| rolling.max_unavailable.as_ref());
        let limit = i64::from(limit.map_or(1, |limit| scaled(Some(limit), replicas, Round::Down)).max(1));
        let away = self.wanted.values().filter(|pod| self.is_unavailable(pod)).count();
        let away = self.missing().saturating_add(i64::try_from(away).unwrap_or(i64::MAX));
        let mut budget = limit.saturating_sub(away);
        let old: Vec<&Arc<Pod>> = self.wanted.range(partition..).rev().map(|(_, pod)| *pod).collect();
        let old: Vec<&Arc<Pod>> =
            old.into_iter().filter(|pod| !self.is_updated(pod) && !self.is_terminating(pod)).collect();
        let mut gone = Vec::new();
        if parallel {
            // Those that are not available cost nothing.
            gone.extend(old.iter().filter(|pod| !self.is_available(pod)).map(|pod| (*pod).clone()));
        }
        for pod in old.into_iter().filter(|pod| !parallel || self.is_available(pod)) {
            if budget <= 0 {
                break;
            }
            budget -= 1;
            gone.push(pod.clone());
        }
        // What has ended was given up already.
        gone.retain(|pod| !pod.is_terminal());
        self.updating = i32::try_from(gone.len()).unwrap_or(i32::MAX);
        self.plan.delete.extend(gone);
    }

    fn finish(mut self) -> Plan {
        self.count();
        self.plan
    }

    /// The status, with what is done here where the reference has it.
    fn count(&mut self) {
        let observed = self.observed;
        let before = observed.set.status.clone().unwrap_or_default();
        let (mut replicas, mut ready, mut available, mut current, mut updated) = (0, 0, 0, 0, 0);
        let mut next: Option<Timestamp> = None;
        for pod in self.wanted.values().chain(self.condemned.values()) {
            replicas += 1;
            if pod.phase == Phase::Running && pod.ready {
                ready += 1;
                available += i32::from(self.is_available(pod));
                if let Some(at) = pod.available_at(self.min_ready).filter(|at| *at > observed.now) {
                    next = Some(next.map_or(at, |next| next.min(at)));
                }
            }
            if !self.is_terminating(pod) {
                let revision = pod.labels.get(REVISION_LABEL).map(String::as_str);
                current += i32::from(revision == Some(observed.current));
                updated += i32::from(revision == Some(observed.update));
            }
        }
        current -= self.updating;
        let mut revision = observed.current;
        let wanted = i32::try_from(self.replicas).unwrap_or(i32::MAX);
        // Where nothing is rolled out nothing is ever complete (`completeRollingUpdate` of the reference).
        if is_rolling(observed.set) && updated == wanted && ready == wanted && replicas == wanted {
            (current, revision) = (updated, observed.update);
        }
        self.plan.status = StatefulSetStatus {
            observed_generation: observed.set.metadata.generation,
            replicas,
            ready_replicas: unless_zero(ready),
            available_replicas: Some(available),
            current_replicas: unless_zero(current),
            updated_replicas: unless_zero(updated),
            current_revision: named(revision),
            update_revision: named(observed.update),
            collision_count: Some(observed.collisions),
            conditions: before.conditions,
        };
        self.plan.check_after = next.map(|at| {
            let wait = at.duration_since(observed.now).max(SignedDuration::ZERO);
            wait.unsigned_abs() + Duration::from_millis(1)
        });
    }
}

/// The name of a revision, if there is one.
fn named(revision: &str) -> Option<String> {
    Some(revision.to_owned()).filter(|name| !name.is_empty())
}

/// Whether writing `status` would change nothing.
pub(super) fn is_written(set: &StatefulSet, status: &StatefulSetStatus) -> bool {
    set.status.as_ref().is_some_and(|before| {
        let mut before = before.clone();
        for count in [&mut before.ready_replicas, &mut before.current_replicas, &mut before.updated_replicas] {
            *count = count.filter(|count| *count != 0);
        }
        before.available_replicas = before.available_replicas.or(Some(0));
        before == *status
    })
}

/// Whether the status says no more than that pods come up, as others will in a moment.
pub(super) fn is_underway(set: &StatefulSet, status: &StatefulSetStatus) -> bool {
    let before = set.status.clone().unwrap_or_default();
    let wanted = set.spec.replicas.unwrap_or(1);
    let count = |count: Option<i32>| count.unwrap_or(0);
    before.observed_generation == status.observed_generation
        && before.update_revision == status.update_revision
        && status.replicas >= before.replicas
        && count(status.ready_replicas) >= count(before.ready_replicas)
        && count(status.ready_replicas) < wanted
}
