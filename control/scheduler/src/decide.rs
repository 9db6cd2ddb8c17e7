//! The core: `(view, pod) → decision`. No I/O, no clock.
//!
//! Pods of one class are filtered and scored once: what a node is (selectors, taints) does not change with placements, so
//! the candidates of a class are kept in a heap, best first. Placing a pod lowers the score of one node only; an entry
//! whose node has moved on is scored again when it comes to the top. The heap is valid for one epoch of the view: as long
//! as nothing is freed and no node changes, a node that is full stays full.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::sync::Arc;

use crate::class::Class;
use crate::filter::{self, Reason};
use crate::preempt::{self, Preemption};
use crate::score;
use crate::topology::Topology;
use crate::view::{ClusterView, Uid};

/// Classes whose candidates are kept; at the bound all are dropped and made again as needed.
const RUNS_MAX: usize = 64;

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
}

/// Decides, remembering what pods of one class have in common.
#[derive(Debug, Default)]
pub(crate) struct Decider {
    runs: HashMap<Arc<Class>, Run>,
}

#[derive(Debug)]
struct Run {
    epoch: u64,
    candidates: BinaryHeap<Candidate>,
    diagnosis: Option<Arc<Diagnosis>>,
}

/// Best first: the score, then fewer pods, then the earlier slot.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    score: i64,
    pods: Reverse<usize>,
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
            if filter::all(class, node, topology.as_ref()).is_ok() {
                return Decision::Bind(node.name.clone());
            }
        }
        match Topology::of(class, view) {
            Some(topology) => decide_alone(view, uid, class, &topology),
            None => self.decide_in_run(view, uid, class),
        }
    }

    fn decide_in_run(&mut self, view: &ClusterView, uid: &Uid, class: &Arc<Class>) -> Decision {
        if self.runs.get(class).is_none_or(|run| run.epoch != view.epoch()) {
            if self.runs.len() >= RUNS_MAX {
                self.runs.clear();
            }
            self.runs.insert(class.clone(), run(view, class));
        }
        let Some(run) = self.runs.get_mut(class) else { return unschedulable(view, uid, class, None) };
        while let Some(mut best) = run.candidates.pop() {
            let Some(node) = view.node(best.slot.0) else { continue };
            if best.generation != node.generation {
                if filter::room(class, node).is_err() {
                    continue;
                }
                best.generation = node.generation;
                best.score = best.fixed + score::moving(class, node);
                best.pods = Reverse(node.pods.len());
                if run.candidates.peek().is_some_and(|next| *next > best) {
                    run.candidates.push(best);
                    continue;
                }
            }
            run.candidates.push(best);
            return Decision::Bind(node.name.clone());
        }
        // All pods of the class hear the same; only one of them preempts at a time.
        if let Some(diagnosis) = &run.diagnosis {
            return Decision::Unschedulable(diagnosis.clone());
        }
        let decision = unschedulable(view, uid, class, None);
        if let Decision::Unschedulable(diagnosis) = &decision
            && diagnosis.preemption.is_none()
        {
            run.diagnosis = Some(diagnosis.clone());
        }
        decision
    }
}

fn run(view: &ClusterView, class: &Arc<Class>) -> Run {
    let fit = view.nodes().filter(|(_, node)| filter::fixed(class, node).is_ok() && filter::room(class, node).is_ok());
    let parts: Vec<_> =
        fit.map(|(slot, node)| (slot, node, score::preferred(class, node), score::disliked(class, node))).collect();
    let preferred_max = parts.iter().map(|part| part.2).max().unwrap_or(0);
    let disliked_max = parts.iter().map(|part| part.3).max().unwrap_or(0);
    let candidates = parts.into_iter().map(|(slot, node, preferred, disliked)| {
        let fixed = score::fixed(preferred, preferred_max, disliked, disliked_max);
        Candidate {
            score: fixed + score::moving(class, node),
            pods: Reverse(node.pods.len()),
            slot: Reverse(slot),
            generation: node.generation,
            fixed,
        }
    });
    Run { epoch: view.epoch(), candidates: candidates.collect(), diagnosis: None }
}

/// For pods that look at other pods: every node is looked at for every pod.
fn decide_alone(view: &ClusterView, uid: &Uid, class: &Arc<Class>, topology: &Topology) -> Decision {
    let mut fit: Vec<_> = view.nodes().filter(|(_, node)| filter::all(class, node, Some(topology)).is_ok()).collect();
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
        (fixed + wish + score::moving(class, node), Reverse(node.pods.len()), Reverse(*slot))
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
        if let Err(reasons) = filter::all(class, node, topology) {
            failures.push((slot, reasons));
        }
    }
    let mut message =
        available(view.len(), failures.iter().flat_map(|(_, reasons)| reasons.iter().map(Reason::to_string)));
    let mut reasons: Vec<Reason> = failures.iter().flat_map(|(_, reasons)| reasons.iter().cloned()).collect();
    reasons.sort();
    reasons.dedup();
    let preemption = preempt::find(view, uid, class, topology, &failures);
    let preemption = match preemption {
        Ok(preemption) => Some(preemption),
        Err(refusal) => {
            message.push_str(" preemption: ");
            message.push_str(&refusal);
            None
        }
    };
    Decision::Unschedulable(Arc::new(Diagnosis { message, reasons, preemption }))
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
