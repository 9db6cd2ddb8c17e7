//! The core of the Deployment controller: from a Deployment and its ReplicaSets to what to do. No I/O, no clock.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet};

use super::model::{self, REVISION, Set, Strategy, Wanted};
use super::status::{self, Progress};
use super::template;

/// What is there.
pub(crate) struct Observed<'a> {
    pub deployment: &'a Deployment,
    /// ReplicaSets that it controls.
    pub sets: Vec<Arc<ReplicaSet>>,
    /// Whether pods of ReplicaSets other than this one (by uid) still run or end; asked for `Recreate` only.
    pub others_run: &'a dyn Fn(Option<&str>) -> bool,
    /// Name of the ReplicaSet that was created and that the status does not tell of yet.
    pub created: Option<String>,
    pub now: Timestamp,
}

/// What to do, in this order.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// The ReplicaSet to create.
    pub create: Option<New>,
    /// ReplicaSets to change.
    pub update: Vec<Set>,
    /// ReplicaSets of the past to delete.
    pub delete: Vec<Arc<ReplicaSet>>,
    /// The Deployment's revision, if its annotation says otherwise.
    pub revision: Option<String>,
    /// The status as it shall be, if it is not.
    pub status: Option<DeploymentStatus>,
    /// The status tells of the way only, of which more comes soon.
    pub is_underway: bool,
    /// When progress is to be looked at again.
    pub check_after: Option<Duration>,
}

/// A ReplicaSet to create.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct New {
    pub name: String,
    pub hash: String,
    pub replicas: i32,
    pub annotations: BTreeMap<String, String>,
}

/// Longest name of a ReplicaSet.
const NAME_MAX: usize = 253;

pub(crate) fn plan(observed: &Observed<'_>) -> Plan {
    let deployment = observed.deployment;
    let spec = &deployment.spec;
    let wanted = Wanted::of(deployment);
    let mut sets: Vec<Set> = observed.sets.iter().cloned().map(Set::new).collect();
    model::sort_by_age(&mut sets);
    let current = model::find_current(&spec.template, &sets).map(|index| sets.remove(index));
    let mut rollout = Rollout { deployment, wanted, current, old: sets, new: None, delete: vec![] };

    let mut progress = Progress::None;
    if deployment.metadata.deletion_timestamp.is_none() {
        rollout.make_current();
        if spec.paused.unwrap_or(false) {
            rollout.scale();
            rollout.clean_up();
        } else if rollout.is_scaled() {
            rollout.scale();
        } else {
            progress = Progress::Rollout;
            match wanted.strategy {
                Strategy::Rolling { .. } => rollout.roll(),
                Strategy::Recreate => rollout.recreate(observed.others_run),
            }
            if status::is_complete(deployment, &wanted) {
                rollout.clean_up();
            }
        }
    }
    let (status, check_after) = status::status(&rollout.view(observed.now, observed.created.as_deref()), progress);
    let revision = rollout.revision().filter(|revision| {
        let annotations = deployment.metadata.annotations.as_ref();
        annotations.and_then(|annotations| annotations.get(REVISION)) != Some(revision)
    });
    Plan {
        create: rollout.new,
        revision,
        update: rollout.current.into_iter().chain(rollout.old).filter(Set::is_changed).collect(),
        delete: rollout.delete,
        is_underway: progress == Progress::Rollout && status::is_underway(deployment, &wanted, &status),
        status: (!status::is_written(deployment, &status)).then_some(status),
        check_after,
    }
}

struct Rollout<'a> {
    deployment: &'a Deployment,
    wanted: Wanted,
    /// The one with the Deployment's template.
    current: Option<Set>,
    /// The others, oldest first.
    old: Vec<Set>,
    new: Option<New>,
    delete: Vec<Arc<ReplicaSet>>,
}

impl Rollout<'_> {
    fn all(&self) -> impl Iterator<Item = &Set> {
        self.old.iter().chain(&self.current)
    }

    fn next_revision(&self) -> i64 {
        self.old.iter().map(Set::revision).max().unwrap_or(0).saturating_add(1)
    }

    fn revision(&self) -> Option<String> {
        match (&self.current, &self.new) {
            (Some(current), _) => current.annotation(REVISION).map(str::to_owned),
            (None, Some(new)) => new.annotations.get(REVISION).cloned(),
            (None, None) => None,
        }
    }

    fn view<'a>(&'a self, now: Timestamp, created: Option<&'a str>) -> status::View<'a> {
        status::View {
            deployment: self.deployment,
            wanted: self.wanted,
            current: self.current.as_ref(),
            old: &self.old,
            new: self.new.as_ref(),
            created,
            now,
        }
    }

    /// Keeps annotations, revision and `minReadySeconds` of the current ReplicaSet those of the Deployment.
    fn make_current(&mut self) {
        let revision = self.next_revision();
        if let Some(current) = &mut self.current {
            current.make_current(self.deployment, revision, &self.wanted);
        }
    }

    /// Creates the ReplicaSet with the Deployment's template, if it is not there.
    fn create(&mut self, replicas: i32) {
        if self.current.is_some() {
            return;
        }
        let spec = &self.deployment.spec;
        let collisions = self.deployment.status.as_ref().and_then(|status| status.collision_count);
        let hash = template::hash(&spec.template, collisions);
        let mut name = self.deployment.metadata.name.clone().unwrap_or_default();
        name.truncate(name.floor_char_boundary(NAME_MAX - 1 - hash.len()));
        self.new = Some(New {
            name: format!("{name}-{hash}"),
            hash,
            replicas,
            annotations: model::first_annotations(self.deployment, self.next_revision(), &self.wanted),
        });
    }

    /// Whether `spec.replicas` was changed since the ReplicaSets were sized.
    fn is_scaled(&self) -> bool {
        let active = self.all().filter(|set| set.replicas > 0);
        active.filter_map(Set::desired).any(|desired| desired != self.wanted.replicas)
    }

    fn roll(&mut self) {
        let total: i32 = self.all().map(|set| set.replicas).sum();
        let room = self.wanted.max().saturating_sub(total).max(0);
        let wanted = self.wanted;
        match &mut self.current {
            None => {
                self.create(room.min(wanted.replicas));
                // What it takes away from the old ones is decided when it is there.
                return;
            }
            Some(current) if current.replicas > wanted.replicas => {
                current.scale(wanted.replicas, &wanted);
                return;
            }
            Some(current) => {
                let missing = wanted.replicas - current.replicas;
                if missing > 0 && current.scale(current.replicas + room.min(missing), &wanted) {
                    return;
                }
            }
        }
        self.shrink_old();
    }

    /// Takes old pods away as far as enough stay available: first those that are not.
    fn shrink_old(&mut self) {
        let wanted = self.wanted;
        let least = wanted.replicas - wanted.unavailable();
        let total: i32 = self.all().map(|set| set.replicas).sum();
        let unavailable = self.current.as_ref().map_or(0, |current| current.replicas - current.available());
        let mut may_go = total - least - unavailable;
        if may_go <= 0 || self.old.iter().all(|set| set.replicas == 0) {
            return;
        }
        for set in &mut self.old {
            let unhealthy = set.replicas - set.available();
            let count = unhealthy.min(may_go);
            if set.replicas > 0 && count > 0 {
                set.scale(set.replicas - count, &wanted);
                may_go -= count;
            }
        }
        // Pods beyond a ReplicaSet's size go anyway, though its status may count them still.
        let available: i32 = self.all().map(|set| set.available().min(set.replicas)).sum();
        let mut may_go = available - least;
        for set in &mut self.old {
            let count = set.replicas.min(may_go);
            if count > 0 {
                set.scale(set.replicas - count, &wanted);
                may_go -= count;
            }
        }
    }

    fn recreate(&mut self, others_run: &dyn Fn(Option<&str>) -> bool) {
        let wanted = self.wanted;
        let mut scaled = false;
        for set in &mut self.old {
            scaled |= set.scale(0, &wanted);
        }
        let uid = self.current.as_ref().and_then(|current| current.object.metadata.uid.clone());
        if scaled || self.old.iter().any(|set| set.actual() > 0) || others_run(uid.as_deref()) {
            return;
        }
        match &mut self.current {
            None => self.create(wanted.replicas),
            Some(current) => drop(current.scale(wanted.replicas, &wanted)),
        }
    }

    /// Brings the ReplicaSets to another size of the Deployment, and notes that on all that have pods, whether their own
    /// size changes or not: else the change would be seen again and again, and the rollout never go on.
    fn scale(&mut self) {
        self.scale_sets();
        let wanted = self.wanted;
        for set in self.old.iter_mut().chain(&mut self.current).filter(|set| set.replicas > 0) {
            set.note_size(&wanted);
        }
    }

    /// In proportion while a rollout is under way.
    fn scale_sets(&mut self) {
        let wanted = self.wanted;
        let mut all: Vec<&mut Set> = self.old.iter_mut().chain(&mut self.current).collect();
        let active = all.iter().filter(|set| set.replicas > 0).count();
        if active <= 1 {
            // The active one, else the current one, else the youngest.
            let index = all.iter().position(|set| set.replicas > 0).or(all.len().checked_sub(1));
            if let Some(index) = index {
                all[index].scale(wanted.replicas, &wanted);
            }
            return;
        }
        let saturated = self.current.as_ref().is_some_and(|current| {
            current.replicas == wanted.replicas
                && current.desired() == Some(wanted.replicas)
                && current.available() == wanted.replicas
        });
        if saturated {
            for set in &mut self.old {
                set.scale(0, &wanted);
            }
            return;
        }
        if let Strategy::Rolling { .. } = wanted.strategy {
            self.scale_in_proportion();
        }
    }

    fn scale_in_proportion(&mut self) {
        let wanted = self.wanted;
        let before = self.deployment.status.as_ref().and_then(|status| status.replicas).unwrap_or(0);
        // Younger ones are later in this order.
        let mut active: Vec<&mut Set> =
            self.old.iter_mut().chain(&mut self.current).filter(|set| set.replicas > 0).collect();
        let total: i32 = active.iter().map(|set| set.replicas).sum();
        let allowed = if wanted.replicas > 0 { wanted.max() } else { 0 };
        let to_add = allowed - total;
        if to_add > 0 {
            active.reverse();
        }
        // Stable: among equals growing favours the young, shrinking the old.
        active.sort_by_key(|set| std::cmp::Reverse(set.replicas));
        let mut added = 0;
        let mut sizes: Vec<i32> = Vec::with_capacity(active.len());
        for set in &active {
            let share = share(set, &wanted, before);
            let left = to_add - added;
            let share = if to_add >= 0 { share.min(left).max(0) } else { share.max(left).min(0) };
            added += share;
            sizes.push(set.replicas + share);
        }
        if let Some(first) = sizes.first_mut() {
            *first = (*first + to_add - added).max(0);
        }
        for (set, size) in active.into_iter().zip(sizes) {
            set.scale(size, &wanted);
        }
    }

    /// Deletes empty ReplicaSets beyond the history that is kept.
    fn clean_up(&mut self) {
        let limit = self.deployment.spec.revision_history_limit;
        let Some(limit) = limit.filter(|limit| *limit != i32::MAX) else { return };
        let mut old: Vec<&Set> =
            self.old.iter().filter(|set| set.object.metadata.deletion_timestamp.is_none()).collect();
        let surplus = old.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
        old.sort_by_key(|set| set.revision());
        let empty =
            |set: &&&Set| set.actual() == 0 && set.replicas_before() == 0 && set.replicas == 0 && set.is_observed();
        self.delete = old[..surplus].iter().filter(empty).map(|set| set.object.clone()).collect();
    }
}

/// What the ReplicaSet gains (or loses) when the Deployment grows or shrinks, rounded to the nearest.
fn share(set: &Set, wanted: &Wanted, status_replicas: i32) -> i32 {
    if wanted.replicas == 0 {
        return -set.replicas;
    }
    let before = i64::from(set.max_before().unwrap_or(status_replicas));
    if before == 0 {
        return 0;
    }
    let product = i64::from(set.replicas) * i64::from(wanted.max());
    let rounded = (2 * product + before) / (2 * before);
    i32::try_from(rounded).unwrap_or(i32::MAX) - set.replicas
}
