//! How many pods are at work, and which go.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use super::{Create, Planner, completions, count, index_of, is_suspended, replaces_only_failed};
use crate::informer::{Phase, Pod};
use crate::job::backoff::Backoff;
use crate::job::indexes::Indexes;
use crate::job::template;

/// Pods created or deleted per plan (upstream's `MaxPodCreateDeletePerSync`).
pub(in crate::job) const BURST: usize = 500;

impl Planner<'_> {
    /// Plans what is created, or what is deleted.
    pub(super) fn manage(&mut self, successes: usize) {
        self.plan.strip = true;
        if is_suspended(self.spec) {
            self.plan.delete.clone_from(&self.active);
            return;
        }
        let active = self.active.len();
        let parallelism = count(self.spec.parallelism);
        let wanted = match completions(self.spec) {
            Some(all) => usize::try_from(all).unwrap_or(usize::MAX).saturating_sub(successes).min(parallelism),
            // What is at work when one has succeeded may end by itself.
            None if successes > 0 => active,
            None => parallelism,
        };
        let mut surplus = self.surplus(active.saturating_sub(wanted));
        surplus.truncate(BURST);
        if !surplus.is_empty() {
            // Upstream does one or the other at a time, this first.
            self.plan.delete = surplus;
            return;
        }
        let leaving = if replaces_only_failed(self.spec) { self.terminating.len() } else { 0 };
        let room = wanted.saturating_sub(active + leaving + self.observed.sent.len());
        // What nobody knows of may be there. If that is more than there is room for, it is looked for first.
        let Some(room) = room.checked_sub(self.observed.unknown.len()) else { return };
        if self.indexed {
            self.create_indexes(room);
        } else {
            self.create_any(room);
        }
    }

    /// Asks again for what nobody knows of, and for so many more.
    fn create_any(&mut self, room: usize) {
        let unknown = self.observed.unknown.iter();
        self.plan.create = unknown.map(|name| Create { name: Some(name.clone()), ..Create::default() }).collect();
        let room = room.min(BURST);
        if room == 0 {
            return;
        }
        match self.plan.backoff.remaining(self.observed.now) {
            Some(wait) => self.wait(wait),
            None => self.plan.create.extend(std::iter::repeat_n(Create::default(), room)),
        }
    }

    /// As [`Self::create_any`], by indexes.
    fn create_indexes(&mut self, room: usize) {
        let all = completions(self.spec).unwrap_or(0);
        let of_names = |names: &[Arc<str>]| Indexes::of(names.iter().filter_map(|name| template::index_of(name)));
        let mut taken = self.succeeded.union(&Indexes::of(self.active.iter().filter_map(|pod| index_of(pod))));
        taken = taken.union(&of_names(self.observed.sent));
        if replaces_only_failed(self.spec) {
            taken = taken.union(&Indexes::of(self.terminating.iter().filter_map(|pod| index_of(pod))));
        }
        if let Some(failed) = &self.failed {
            taken = taken.union(failed);
        }
        // What nobody knows of is asked for again by the same name, if it is still wanted.
        let mut again = HashMap::new();
        for name in self.observed.unknown {
            if let Some(index) = template::index_of(name).filter(|index| *index < all && !taken.contains(*index)) {
                again.entry(index).or_insert_with(|| name.clone());
            }
        }
        let room = room.min(BURST);
        taken = taken.union(&Indexes::of(again.keys().copied()));
        let mut new = taken.absent(room, all);
        let mut again: Vec<(u32, Option<Arc<str>>)> =
            again.into_iter().map(|(index, name)| (index, Some(name))).collect();
        again.sort_unstable();
        if self.failed.is_none() {
            if let Some(wait) = self.plan.backoff.remaining(self.observed.now).filter(|_| !new.is_empty()) {
                self.wait(wait);
                new.clear();
            }
        } else {
            new = self.ready_indexes(new);
        }
        let indexes = again.into_iter().chain(new.into_iter().map(|index| (index, None)));
        let creates =
            indexes.map(|(index, name)| Create { name, index: Some(index), failures: self.failures_of(index) });
        self.plan.create = creates.collect();
    }

    /// Those whose own back-off is over; when that is none, looks again when the first one's is.
    fn ready_indexes(&mut self, indexes: Vec<u32>) -> Vec<u32> {
        let mut first: Option<Duration> = None;
        let mut ready = Vec::with_capacity(indexes.len());
        for index in indexes {
            let wait = self.last_failed.get(&index).and_then(|pod| {
                let run = pod.run.as_ref()?;
                let failures = run.failures.saturating_add(run.ignored_failures).saturating_add(1);
                Backoff::after(u32::try_from(failures).unwrap_or(u32::MAX), run.finished).remaining(self.observed.now)
            });
            match wait {
                None => ready.push(index),
                Some(wait) => first = Some(first.map_or(wait, |first| first.min(wait))),
            }
        }
        if let Some(wait) = first {
            self.wait(wait);
        }
        ready
    }

    /// What the next pod of an index is told of those before it.
    fn failures_of(&self, index: u32) -> Option<(i32, i32)> {
        self.failed.as_ref()?;
        let Some(pod) = self.last_failed.get(&index) else { return Some((0, 0)) };
        let (failures, ignored) = pod.run.as_ref().map_or((0, 0), |run| (run.failures, run.ignored_failures));
        Some(match self.verdict(pod).counts() {
            true => (failures.saturating_add(1), ignored),
            false => (failures, ignored.saturating_add(1)),
        })
    }

    /// A moment more than the clock may miss.
    fn wait(&mut self, wait: Duration) {
        self.check_after(wait + Duration::from_millis(1));
    }

    /// Pods that go: at least `least`, and of an indexed Job all whose index is none, or another's.
    fn surplus(&self, least: usize) -> Vec<Arc<Pod>> {
        let mut ranked = self.active.clone();
        // One that has lost its finalizer already was given up before.
        ranked.sort_by_cached_key(|pod| (self.is_tracked(pod), rank(pod)));
        if !self.indexed {
            ranked.truncate(least);
            return ranked;
        }
        // Of several of one index the one stays that is farthest.
        let mut indexes = HashSet::new();
        let (mut surplus, mut left) = (Vec::new(), Vec::new());
        for pod in ranked.iter().rev() {
            let first = self.valid_index(pod).is_some_and(|index| indexes.insert(index));
            if first { &mut left } else { &mut surplus }.push(pod.clone());
        }
        let more = least.saturating_sub(surplus.len());
        surplus.extend(left.into_iter().rev().take(more));
        surplus
    }
}

/// What is missed least comes first (upstream's `ActivePods`): without a node, pending, not ready, ready for a short time,
/// restarted often, young.
fn rank(pod: &Pod) -> impl Ord + use<> {
    let phase = match pod.phase {
        Phase::Pending | Phase::Other => 0,
        Phase::Unknown => 1,
        _ => 2,
    };
    let ready = pod.ready.then_some(Reverse(pod.ready_since));
    (pod.node.is_some(), phase, ready, Reverse(pod.restarts), Reverse(pod.created), pod.uid.clone())
}
