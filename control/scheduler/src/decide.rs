//! The core: `(view, pod) → decision`. No I/O, no clock.
//!
//! Pods of one shape are filtered and scored once, and their candidates kept in a heap, best first ([`Run`]). Placing a pod
//! changes one node only; an entry whose node has moved on is scored again when it comes to the top, and nodes on which
//! room was made are entered again. Only when nodes themselves change is a heap made anew. What differs between classes of
//! one shape, how many pods of the same controller are on a node, is looked at among the best ([`LOOK_MAX`]).

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::sync::Arc;

use crate::class::{Class, Shape};
use crate::filter::{self, Reason};
use crate::preempt::{self, Preemption, Refusal};
use crate::score;
use crate::topology::Topology;
use crate::view::{ClusterView, NodeState, Uid};

/// Shapes whose candidates are kept.
const RUNS_MAX: usize = 4096;
/// Candidates of all shapes together (about 30 MB); beyond either bound the shape that was not asked for longest is
/// forgotten.
const CANDIDATES_MAX: usize = 1 << 19;
/// Candidates among which one with the fewest pods of the same controller is chosen.
const LOOK_MAX: usize = 32;

/// What becomes of a pod.
#[derive(Debug, Clone)]
pub(crate) enum Decision {
    /// It goes to this node.
    Bind(Arc<str>),
    /// No node can take it.
    Unschedulable(Arc<Diagnosis>),
}

/// Why no node can take a pod.
#[derive(Debug, Default)]
pub(crate) struct Diagnosis {
    /// For condition and event.
    pub message: String,
    pub reasons: Vec<Reason>,
    /// How room can be made.
    pub preemption: Option<Preemption>,
    /// Room is being made already, where the pod is expected.
    pub waits: bool,
}

/// Decides, remembering what pods of one shape have in common.
#[derive(Debug, Default)]
pub(crate) struct Decider {
    runs: HashMap<Arc<Shape>, Run>,
    /// Counts decisions, to know which shape was not asked for longest.
    clock: u64,
    /// Candidates in all runs.
    candidates: usize,
    /// How often all nodes were looked at.
    pub built: u64,
}

#[derive(Debug)]
struct Run {
    epoch: u64,
    /// Up to which room that was made is known.
    freed: u64,
    used: u64,
    candidates: BinaryHeap<Candidate>,
    /// Generation of the one entry of a node in `candidates` that counts.
    latest: HashMap<usize, u64>,
    /// The most of any node.
    preferred_max: i64,
    disliked_max: i64,
    /// Why there is no candidate, and up to which freed room that holds.
    diagnosis: Option<(u64, Arc<Diagnosis>)>,
}

/// Best first: the score, then fewer pods, then the earlier slot.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    score: i64,
    pods: Reverse<i64>,
    slot: Reverse<usize>,
    generation: u64,
    fixed: i64,
}

impl Decider {
    /// Where the pod goes. Nothing is placed: that is the caller's to do.
    pub(crate) fn decide(&mut self, view: &ClusterView, uid: &Uid, class: &Arc<Class>) -> Decision {
        // A pod for which room was made goes there if it can.
        if let Some(node) = view.nomination(uid).and_then(|node| view.named(node)) {
            let topology = Topology::of(class, view);
            if filter::all(class, node, topology.as_ref(), Some(uid)).is_ok() {
                return Decision::Bind(node.name.clone());
            }
        }
        match Topology::of(class, view) {
            Some(topology) => decide_alone(view, uid, class, &topology),
            None => self.decide_in_run(view, uid, class),
        }
    }

    fn decide_in_run(&mut self, view: &ClusterView, uid: &Uid, class: &Arc<Class>) -> Decision {
        self.clock += 1;
        let shape = &class.shape;
        let fresh = self.runs.get_mut(shape).is_some_and(|run| run.catch_up(view, shape));
        if !fresh {
            let built = Run::new(view, shape);
            self.built += 1;
            self.candidates += built.latest.len();
            if let Some(before) = self.runs.insert(shape.clone(), built) {
                self.candidates -= before.latest.len().min(self.candidates);
            }
            self.forget(shape);
        }
        let Some(run) = self.runs.get_mut(shape) else { return unschedulable(view, uid, class, None) };
        run.used = self.clock;
        if let Some(node) = run.best(view, class) {
            return Decision::Bind(node);
        }
        // All pods of the shape hear the same; only one of them preempts at a time.
        if let Some((freed, diagnosis)) = &run.diagnosis
            && *freed == view.freed_count()
        {
            return Decision::Unschedulable(diagnosis.clone());
        }
        let decision = unschedulable(view, uid, class, None);
        if let Decision::Unschedulable(diagnosis) = &decision
            && diagnosis.preemption.is_none()
            && !diagnosis.waits
        {
            run.diagnosis = Some((view.freed_count(), diagnosis.clone()));
        }
        decision
    }

    /// Keeps to the bounds.
    fn forget(&mut self, but: &Arc<Shape>) {
        while self.runs.len() > RUNS_MAX || (self.candidates > CANDIDATES_MAX && self.runs.len() > 1) {
            let others = self.runs.iter().filter(|(shape, _)| !Arc::ptr_eq(shape, but));
            let Some(oldest) = others.min_by_key(|(_, run)| run.used).map(|(shape, _)| shape.clone()) else { return };
            if let Some(run) = self.runs.remove(&oldest) {
                self.candidates -= run.latest.len().min(self.candidates);
            }
        }
    }
}

impl Run {
    fn new(view: &ClusterView, shape: &Shape) -> Self {
        let fit: Vec<_> = view.nodes().filter(|(_, node)| filter::fixed(shape, node).is_ok()).collect();
        let mut run = Self {
            epoch: view.epoch(),
            freed: view.freed_count(),
            used: 0,
            candidates: BinaryHeap::with_capacity(fit.len()),
            latest: HashMap::with_capacity(fit.len()),
            preferred_max: fit.iter().map(|(_, node)| score::preferred(shape, node)).max().unwrap_or(0),
            disliked_max: fit.iter().map(|(_, node)| score::disliked(shape, node)).max().unwrap_or(0),
            diagnosis: None,
        };
        for (slot, node) in fit {
            run.enter(shape, slot, node);
        }
        run
    }

    /// Enters nodes on which room was made; returns whether the run can still be used.
    fn catch_up(&mut self, view: &ClusterView, shape: &Shape) -> bool {
        if self.epoch != view.epoch() {
            return false;
        }
        let Some(freed) = view.freed_since(self.freed) else { return false };
        for slot in freed {
            let Some(node) = view.node(slot) else { continue };
            if self.latest.get(&slot) != Some(&node.generation) {
                self.latest.remove(&slot);
                if filter::fixed(shape, node).is_ok() {
                    self.enter(shape, slot, node);
                }
            }
        }
        self.freed = view.freed_count();
        // Entries that no longer count go when they come to the top, or here.
        if self.candidates.len() > 64 + 4 * self.latest.len() {
            let latest = &self.latest;
            self.candidates.retain(|entry| latest.get(&entry.slot.0) == Some(&entry.generation));
        }
        true
    }

    fn enter(&mut self, shape: &Shape, slot: usize, node: &NodeState) {
        if filter::room(shape, node, None).is_err() {
            return;
        }
        let (preferred, disliked) = (score::preferred(shape, node), score::disliked(shape, node));
        let fixed = score::fixed(preferred, self.preferred_max, disliked, self.disliked_max);
        self.latest.insert(slot, node.generation);
        self.candidates.push(Candidate {
            score: fixed + score::moving(shape, node),
            pods: Reverse(node.load.count),
            slot: Reverse(slot),
            generation: node.generation,
            fixed,
        });
    }

    /// The best node for a pod of the class.
    fn best(&mut self, view: &ClusterView, class: &Class) -> Option<Arc<str>> {
        let mut looked: Vec<Candidate> = Vec::new();
        let mut best: Option<(i64, usize)> = None;
        while looked.len() < LOOK_MAX
            && let Some(mut entry) = self.candidates.pop()
        {
            let slot = entry.slot.0;
            if self.latest.get(&slot) != Some(&entry.generation) {
                continue;
            }
            let Some(node) = view.node(slot) else {
                self.latest.remove(&slot);
                continue;
            };
            if entry.generation != node.generation {
                if filter::room(class, node, None).is_err() {
                    self.latest.remove(&slot);
                    continue;
                }
                entry.generation = node.generation;
                entry.score = entry.fixed + score::moving(class, node);
                entry.pods = Reverse(node.load.count);
                self.latest.insert(slot, node.generation);
                if self.candidates.peek().is_some_and(|next| *next > entry) {
                    self.candidates.push(entry);
                    continue;
                }
            }
            let family = score::family(class, node);
            let score = entry.score + score::spread(family);
            if best.is_none_or(|(most, _)| score > most) {
                best = Some((score, looked.len()));
            }
            looked.push(entry);
            if family == 0 {
                // Whoever comes later has a lower score, and not more of this part.
                break;
            }
        }
        let node = best.and_then(|(_, index)| view.node(looked[index].slot.0)).map(|node| node.name.clone());
        self.candidates.extend(looked);
        node
    }
}

/// For pods that look at other pods: every node is looked at for every pod.
fn decide_alone(view: &ClusterView, uid: &Uid, class: &Arc<Class>, topology: &Topology) -> Decision {
    let mut fit: Vec<_> =
        view.nodes().filter(|(_, node)| filter::all(class, node, Some(topology), Some(uid)).is_ok()).collect();
    if fit.is_empty() {
        return unschedulable(view, uid, class, Some(topology));
    }
    let wishes: Vec<i64> = fit.iter().map(|(_, node)| topology.preference(node)).collect();
    let (least, most) = (wishes.iter().min().copied().unwrap_or(0), wishes.iter().max().copied().unwrap_or(0));
    let preferred_max = fit.iter().map(|(_, node)| score::preferred(class, node)).max().unwrap_or(0);
    let disliked_max = fit.iter().map(|(_, node)| score::disliked(class, node)).max().unwrap_or(0);
    let best = fit.iter().zip(wishes).max_by_key(|((slot, node), wish)| {
        let (preferred, disliked) = (score::preferred(class, node), score::disliked(class, node));
        let wish = if most > least { 2 * 100 * (wish - least) / (most - least) } else { 0 };
        let fixed = score::fixed(preferred, preferred_max, disliked, disliked_max);
        let moving = score::moving(class, node) + score::spread(score::family(class, node));
        (fixed + wish + moving, Reverse(node.load.count), Reverse(*slot))
    });
    match best.map(|((slot, _), _)| *slot) {
        Some(slot) => {
            fit.retain(|(other, _)| *other == slot);
            match fit.first() {
                Some((_, node)) => Decision::Bind(node.name.clone()),
                None => unschedulable(view, uid, class, Some(topology)),
            }
        }
        None => unschedulable(view, uid, class, Some(topology)),
    }
}

fn unschedulable(view: &ClusterView, uid: &Uid, class: &Arc<Class>, topology: Option<&Topology>) -> Decision {
    if view.len() == 0 {
        let message = "no nodes available to schedule pods".to_owned();
        let diagnosis = Diagnosis { message, ..Diagnosis::default() };
        return Decision::Unschedulable(Arc::new(diagnosis));
    }
    let mut failures: Vec<(usize, Vec<Reason>)> = Vec::with_capacity(view.len());
    for (slot, node) in view.nodes() {
        if let Err(reasons) = filter::all(class, node, topology, Some(uid)) {
            failures.push((slot, reasons));
        }
    }
    let mut message =
        available(view.len(), failures.iter().flat_map(|(_, reasons)| reasons.iter().map(Reason::to_string)));
    let mut reasons: Vec<Reason> = failures.iter().flat_map(|(_, reasons)| reasons.iter().cloned()).collect();
    reasons.sort();
    reasons.dedup();
    let mut waits = false;
    let preemption = match preempt::find(view, uid, class, topology, &failures) {
        Ok(preemption) => Some(preemption),
        Err(refusal) => {
            waits = matches!(refusal, Refusal::Waits(_));
            let (Refusal::Waits(words) | Refusal::Cannot(words)) = refusal;
            message.push_str(" preemption: ");
            message.push_str(&words);
            None
        }
    };
    Decision::Unschedulable(Arc::new(Diagnosis { message, reasons, preemption, waits }))
}

/// `0/3 nodes are available: 1 Insufficient cpu, 2 node(s) had untolerated taint(s).`
pub(crate) fn available(nodes: usize, reasons: impl Iterator<Item = String>) -> String {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for reason in reasons {
        *counts.entry(reason).or_default() += 1;
    }
    let mut counted: Vec<String> = counts.into_iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    counted.sort();
    let text = format!("0/{nodes} nodes are available:");
    if counted.is_empty() { text } else { format!("{text} {}.", counted.join(", ")) }
}
