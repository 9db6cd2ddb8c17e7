//! The core of the DaemonSet controller: from nodes and pods to what to do (`manage` and `rollingUpdate` of the reference). No
//! I/O, no clock. It goes once over the nodes and once over the pods.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetStatus};
use k8s_openapi::api::core::v1::Node;

use super::placement::{Place, Placement};
use crate::deployment::{Round, scaled};
use crate::informer::{Phase, Pod};
use crate::workload::history::REVISION_LABEL;
use crate::workload::unless_zero;

/// Pods created or deleted per reconciliation (the reference's burst).
pub(super) const BURST: usize = 250;
/// Label of pods and annotation of DaemonSets: how often the template has changed. It tells pods of elder clusters apart.
pub(super) const GENERATION_LABEL: &str = "pod-template-generation";
pub(super) const GENERATION: &str = "deprecated.daemonset.template.generation";

/// What is there.
pub(super) struct Observed<'a> {
    pub set: &'a DaemonSet,
    pub nodes: &'a [Arc<Node>],
    /// Pods that it controls.
    pub pods: &'a [Arc<Pod>],
    /// For which nodes pods were asked for that are not in `pods` yet.
    pub creating: &'a HashMap<Arc<str>, usize>,
    /// Uids of pods whose deletion was asked for.
    pub deleting: &'a HashSet<Arc<str>>,
    /// The label of pods of the revision in force.
    pub hash: &'a str,
    pub collisions: Option<i32>,
    /// How long failed pods of a node are still left alone.
    pub backoff: &'a dyn Fn(&Arc<str>) -> Option<Duration>,
    pub now: Timestamp,
}

/// What to do.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Plan {
    /// Nodes that get a pod.
    pub create: Vec<Arc<str>>,
    pub delete: Vec<Arc<Pod>>,
    /// Those of `delete` that have ended, with their nodes.
    pub ended: Vec<(Arc<str>, Arc<Pod>)>,
    pub status: DaemonSetStatus,
    /// When to look again: by the clock alone a pod becomes available, or a failed one goes.
    pub check_after: Option<Duration>,
    /// Whether there is more to create or delete.
    pub more: bool,
}

/// The pods of a node.
#[derive(Default)]
struct OnNode<'a> {
    pods: Vec<&'a Arc<Pod>>,
    /// Pods that were asked for.
    asked: usize,
}

pub(super) fn plan(observed: &Observed<'_>) -> Plan {
    let mut planner = Planner::of(observed);
    for at in 0..planner.nodes.len() {
        planner.manage(at);
    }
    planner.end_lost();
    // What is amiss goes first; a rollout only moves what is as it should be.
    if planner.plan.create.is_empty() && planner.plan.delete.is_empty() {
        planner.roll();
    }
    planner.finish()
}

struct Planner<'a> {
    observed: &'a Observed<'a>,
    plan: Plan,
    min_ready: i32,
    generation: Option<&'a str>,
    /// By name.
    nodes: Vec<(Arc<str>, Place)>,
    pods: BTreeMap<Arc<str>, OnNode<'a>>,
    /// Whether a node may have two pods for a while.
    allows_surge: bool,
    surge: i32,
    unavailable: i32,
}

impl<'a> Planner<'a> {
    fn of(observed: &'a Observed<'a>) -> Self {
        let set = observed.set;
        let placement = Placement::of(set);
        let mut nodes: Vec<(Arc<str>, Place)> = observed
            .nodes
            .iter()
            .map(|node| (node.metadata.name.as_deref().unwrap_or_default().into(), placement.on(node)))
            .collect();
        nodes.sort_by(|a, b| a.0.cmp(&b.0));
        let mut pods: BTreeMap<Arc<str>, OnNode<'a>> = BTreeMap::new();
        for pod in observed.pods {
            // One that has ended and goes is none of its business any more.
            if pod.is_terminal() && pod.deleting.is_some() {
                continue;
            }
            if let Some(node) = pod.node.as_ref().or(pod.meant_for.as_ref()) {
                pods.entry(node.clone()).or_default().pods.push(pod);
            }
        }
        for (node, count) in observed.creating {
            pods.entry(node.clone()).or_default().asked += count;
        }
        for on_node in pods.values_mut() {
            // Those that have their node first, then the eldest.
            on_node.pods.sort_by(|a, b| {
                let by = |pod: &Pod| (pod.node.is_none(), pod.created);
                by(a).cmp(&by(b)).then_with(|| a.key.name.cmp(&b.key.name))
            });
        }
        let desired = nodes.iter().filter(|(_, place)| *place == Place::Wanted).count();
        let desired = i32::try_from(desired).unwrap_or(i32::MAX);
        let strategy = set.spec.update_strategy.as_ref();
        let rolls = strategy.is_none_or(|strategy| strategy.type_.as_deref() != Some("OnDelete"));
        let rolling = strategy.and_then(|strategy| strategy.rolling_update.as_ref()).filter(|_| rolls);
        let max_surge = rolling.and_then(|rolling| rolling.max_surge.as_ref());
        let surge = scaled(max_surge, desired, Round::Up);
        let unavailable = rolling.and_then(|rolling| rolling.max_unavailable.as_ref());
        let mut unavailable = scaled(unavailable, desired, Round::Up);
        if surge == 0 && unavailable == 0 {
            unavailable = 1;
        }
        let annotations = set.metadata.annotations.as_ref();
        Self {
            observed,
            plan: Plan::default(),
            min_ready: set.spec.min_ready_seconds.unwrap_or(0),
            generation: annotations.and_then(|all| all.get(GENERATION)).map(String::as_str),
            nodes,
            pods,
            allows_surge: scaled(max_surge, 1, Round::Up) > 0,
            surge,
            unavailable,
        }
    }

    fn is_terminating(&self, pod: &Pod) -> bool {
        pod.deleting.is_some() || self.observed.deleting.contains(&pod.uid)
    }

    fn is_available(&self, pod: &Pod) -> bool {
        pod.is_available(self.min_ready, self.observed.now)
    }

    fn is_updated(&self, pod: &Pod) -> bool {
        let label = |name: &str| pod.labels.get(name).map(String::as_str);
        label(REVISION_LABEL) == Some(self.observed.hash)
            || (self.generation.is_some() && label(GENERATION_LABEL) == self.generation)
    }

    /// Makes sure that the node has its pod, and no other.
    fn manage(&mut self, at: usize) {
        let (name, place) = self.nodes[at].clone();
        let Some(on_node) = self.pods.get(&name) else {
            if place == Place::Wanted {
                self.plan.create.push(name);
            }
            return;
        };
        let (pods, asked) = (on_node.pods.clone(), on_node.asked);
        let live = pods.into_iter().filter(|pod| !self.is_terminating(pod));
        if place == Place::None {
            let live: Vec<Arc<Pod>> = live.cloned().collect();
            self.plan.delete.extend(live);
            return;
        }
        let mut running: Vec<&Arc<Pod>> = Vec::new();
        // Beside one that failed and is left alone for a while nothing is made: it would fail as well.
        let mut waits = false;
        for pod in live.collect::<Vec<_>>() {
            match pod.phase {
                Phase::Failed => match (self.observed.backoff)(&name) {
                    Some(left) => {
                        waits = true;
                        self.look_again_in(left);
                    }
                    None => self.end(&name, pod),
                },
                Phase::Succeeded => self.end(&name, pod),
                _ => running.push(pod),
            }
        }
        if !self.allows_surge {
            self.plan.delete.extend(running.into_iter().skip(1).cloned());
            return;
        }
        if running.len() <= 1 {
            if running.is_empty() && asked == 0 && !waits && place == Place::Wanted {
                self.plan.create.push(name);
            }
            return;
        }
        self.prune_surge(&running);
    }

    fn end(&mut self, node: &Arc<str>, pod: &Arc<Pod>) {
        self.plan.ended.push((node.clone(), pod.clone()));
        self.plan.delete.push(pod.clone());
    }

    /// Of two pods on a node that may have two, the old one stays until the new one is available, while it is ready.
    fn prune_surge(&mut self, running: &[&Arc<Pod>]) {
        let (mut new, mut old) = (None, None);
        for pod in running {
            let is_new = pod.labels.get(REVISION_LABEL).is_some_and(|label| label == self.observed.hash);
            let eldest = if is_new { &mut new } else { &mut old };
            match eldest {
                None => *eldest = Some(*pod),
                Some(_) => self.plan.delete.push((*pod).clone()),
            }
        }
        if let (Some(new), Some(old)) = (new, old)
            && (!old.ready || self.is_available(new))
        {
            self.plan.delete.push(old.clone());
        }
    }

    /// Pods that wait for a node which is not there: nobody else deletes them.
    fn end_lost(&mut self) {
        let known: HashSet<&Arc<str>> = self.nodes.iter().map(|(name, _)| name).collect();
        let lost = self.pods.iter().filter(|(node, _)| !known.contains(node)).flat_map(|(_, it)| &it.pods);
        let lost = lost.filter(|pod| pod.node.is_none() && !self.is_terminating(pod)).map(|pod| (*pod).clone());
        let lost: Vec<Arc<Pod>> = lost.collect();
        self.plan.delete.extend(lost);
    }

    fn roll(&mut self) {
        let strategy = self.observed.set.spec.update_strategy.as_ref();
        if strategy.is_some_and(|strategy| strategy.type_.as_deref() == Some("OnDelete")) {
            return;
        }
        match self.allows_surge {
            true => self.roll_by_surge(),
            false => self.roll_in_place(),
        }
    }

    /// The new pod of the node and the old one; `None` when there are several of one sort.
    fn pair(&self, on_node: &OnNode<'a>) -> Option<(Option<Newer<'a>>, Option<&'a Arc<Pod>>)> {
        let mut new = (on_node.asked > 0).then_some(Newer::Asked);
        let mut old = None;
        for pod in on_node.pods.iter().filter(|pod| !self.is_terminating(pod)) {
            if self.is_updated(pod) {
                if new.replace(Newer::Pod(pod)).is_some() {
                    return None;
                }
            } else if old.replace(*pod).is_some() {
                return None;
            }
        }
        Some((new, old))
    }

    fn is_new_available(&self, new: Newer<'a>) -> bool {
        match new {
            Newer::Pod(pod) => self.is_available(pod),
            Newer::Asked => false,
        }
    }

    /// Nodes that have pods, or shall have one, with what is there.
    fn concerned(&self) -> Vec<(&Arc<str>, Place, &OnNode<'a>)> {
        static NOTHING: OnNode<'static> = OnNode { pods: Vec::new(), asked: 0 };
        let here = self.nodes.iter().filter_map(|(name, place)| {
            let on_node = self.pods.get(name);
            (on_node.is_some() || *place == Place::Wanted).then(|| (name, *place, on_node.unwrap_or(&NOTHING)))
        });
        here.collect()
    }

    /// Deletes old pods, as many as may be away; those that are not available cost nothing.
    fn roll_in_place(&mut self) {
        let mut away = 0;
        let (mut replace, mut candidates) = (Vec::new(), Vec::new());
        for (_, _, on_node) in self.concerned() {
            match self.pair(on_node) {
                None | Some((None, None) | (Some(_), Some(_))) => away += 1,
                Some((Some(new), None)) => away += i32::from(!self.is_new_available(new)),
                Some((None, Some(old))) if !self.is_available(old) => {
                    replace.push(old.clone());
                    away += 1;
                }
                Some((None, Some(old))) => candidates.push(old.clone()),
            }
        }
        let budget = usize::try_from(self.unavailable.saturating_sub(away)).unwrap_or(0);
        self.plan.delete.extend(replace);
        self.plan.delete.extend(candidates.into_iter().take(budget));
    }

    /// Makes new pods beside old ones, as many as may be too many, and deletes the old ones when the new are available.
    fn roll_by_surge(&mut self) {
        let (mut surging, mut available) = (0, 0_usize);
        let (mut delete, mut unwanted) = (Vec::new(), Vec::new());
        let (mut create, mut candidates) = (Vec::new(), Vec::new());
        for (name, place, on_node) in self.concerned() {
            let Some((new, old)) = self.pair(on_node) else {
                surging += 1;
                continue;
            };
            let is_there = match (old, new) {
                (Some(old), _) => self.is_available(old),
                (None, Some(new)) => self.is_new_available(new),
                (None, None) => false,
            };
            available += usize::from(is_there);
            match (old, new) {
                (None, _) => {}
                (Some(old), None) if place != Place::Wanted => match self.is_available(old) {
                    true => unwanted.push(old.clone()),
                    false => delete.push(old.clone()),
                },
                (Some(old), None) if !self.is_available(old) => create.push(name.clone()),
                (Some(_), None) => candidates.push(name.clone()),
                (Some(_), Some(new)) if !self.is_new_available(new) => surging += 1,
                (Some(old), Some(_)) => delete.push(old.clone()),
            }
        }
        // Where pods are not wanted any more they stay until others are available elsewhere.
        let desired = self.nodes.iter().filter(|(_, place)| *place == Place::Wanted).count();
        delete.extend(unwanted.into_iter().take(available.saturating_sub(desired)));
        let budget = usize::try_from(self.surge.saturating_sub(surging)).unwrap_or(0);
        create.extend(candidates.into_iter().take(budget));
        self.plan.delete.extend(delete);
        self.plan.create.extend(create);
    }

    fn look_again_in(&mut self, wait: Duration) {
        self.plan.check_after = Some(self.plan.check_after.map_or(wait, |known| known.min(wait)));
    }

    fn finish(mut self) -> Plan {
        self.count();
        let mut plan = self.plan;
        plan.more = plan.create.len() > BURST || plan.delete.len() > BURST;
        plan.create.truncate(BURST);
        plan.delete.truncate(BURST);
        let kept: HashSet<&Arc<str>> = plan.delete.iter().map(|pod| &pod.uid).collect();
        plan.ended.retain(|(_, pod)| kept.contains(&pod.uid));
        plan
    }

    fn count(&mut self) {
        let (mut desired, mut current, mut misplaced, mut ready, mut updated, mut available) = (0, 0, 0, 0, 0, 0);
        let mut next: Option<Timestamp> = None;
        for (name, place) in &self.nodes {
            let first = self.pods.get(name).and_then(|on_node| on_node.pods.first());
            desired += i32::from(*place == Place::Wanted);
            let Some(pod) = first else { continue };
            if *place != Place::Wanted {
                misplaced += 1;
                continue;
            }
            current += 1;
            updated += i32::from(self.is_updated(pod));
            if pod.ready {
                ready += 1;
                available += i32::from(self.is_available(pod));
            }
            // Not only the first: a new pod beside an old one becomes available, too.
            for pod in self.pods.get(name).into_iter().flat_map(|on_node| &on_node.pods) {
                if let Some(at) = pod.available_at(self.min_ready).filter(|at| *at > self.observed.now) {
                    next = Some(next.map_or(at, |next| next.min(at)));
                }
            }
        }
        let before = self.observed.set.status.as_ref();
        self.plan.status = DaemonSetStatus {
            observed_generation: self.observed.set.metadata.generation,
            desired_number_scheduled: desired,
            current_number_scheduled: current,
            number_misscheduled: misplaced,
            number_ready: ready,
            updated_number_scheduled: unless_zero(updated),
            number_available: unless_zero(available),
            number_unavailable: unless_zero(desired - available),
            collision_count: self.observed.collisions,
            conditions: before.and_then(|status| status.conditions.clone()),
        };
        if let Some(at) = next {
            let wait = at.duration_since(self.observed.now).max(SignedDuration::ZERO);
            self.look_again_in(wait.unsigned_abs() + Duration::from_millis(1));
        }
    }
}

/// A pod of the revision in force.
#[derive(Clone, Copy)]
enum Newer<'a> {
    Pod(&'a Arc<Pod>),
    Asked,
}

/// Whether writing `status` would change nothing.
pub(super) fn is_written(set: &DaemonSet, status: &DaemonSetStatus) -> bool {
    set.status.as_ref().is_some_and(|before| {
        let mut before = before.clone();
        for count in
            [&mut before.updated_number_scheduled, &mut before.number_available, &mut before.number_unavailable]
        {
            *count = count.filter(|count| *count != 0);
        }
        before == *status
    })
}

/// Whether the status says no more than that pods come up, as others will in a moment.
pub(super) fn is_underway(set: &DaemonSet, status: &DaemonSetStatus) -> bool {
    let before = set.status.clone().unwrap_or_default();
    let count = |count: Option<i32>| count.unwrap_or(0);
    before.observed_generation == status.observed_generation
        && before.desired_number_scheduled == status.desired_number_scheduled
        && status.current_number_scheduled >= before.current_number_scheduled
        && status.number_ready >= before.number_ready
        && count(status.updated_number_scheduled) >= count(before.updated_number_scheduled)
        && count(status.number_available) < status.desired_number_scheduled
}
