//! Preemption: which pods of lower priority make room for one of higher priority.
//!
//! As the reference does it, less PodDisruptionBudgets (evictions by preemption may violate them there, too, as a last
//! resort): all pods of lower priority are removed in thought, then spared again, highest priority first, as long as the
//! pod still fits. The node with the least valuable victims is chosen.

use std::cmp::Reverse;
use std::sync::Arc;

use crate::class::Class;
use crate::decide::available;
use crate::filter::{self, Reason};
use crate::topology::Topology;
use crate::view::{ClusterView, NodeState, Uid};

/// How room is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Preemption {
    pub node: Arc<str>,
    pub victims: Vec<Uid>,
}

/// How room can be made for the pod, or the reference's words for why not.
pub(crate) fn find(
    view: &ClusterView,
    uid: &Uid,
    class: &Class,
    topology: Option<&Topology>,
    failures: &[(usize, Vec<Reason>)],
) -> Result<Preemption, String> {
    if class.never_preempts {
        return Err("not eligible due to preemptionPolicy=Never.".to_owned());
    }
    if let Some(node) = view.nomination(uid).and_then(|node| view.named(node)) {
        let mut leaving = node.pods.iter().filter(|(uid, other)| {
            other.priority < class.priority && view.placed(uid).is_some_and(|placed| placed.leaving)
        });
        if leaving.next().is_some() {
            return Err("not eligible due to a terminating pod on the nominated node.".to_owned());
        }
    }
    let mut refusals = Vec::new();
    let mut best: Option<(Cost, Preemption)> = None;
    for (slot, reasons) in failures {
        let Some(node) = view.node(*slot) else { continue };
        if !reasons.iter().all(Reason::is_resolvable) {
            refusals.push("Preemption is not helpful for scheduling".to_owned());
            continue;
        }
        match victims(node, class, topology) {
            Ok(victims) => {
                let cost = cost(node, &victims);
                if best.as_ref().is_none_or(|(least, _)| cost < *least) {
                    best = Some((cost, Preemption { node: node.name.clone(), victims }));
                }
            }
            Err(reasons) => refusals.extend(reasons),
        }
    }
    best.map(|(_, preemption)| preemption).ok_or_else(|| available(view.len(), refusals.into_iter()))
}

/// Highest priority of a victim, sum of priorities, number.
type Cost = (i32, i64, usize);

fn cost(node: &NodeState, victims: &[Uid]) -> Cost {
    let priorities = || victims.iter().filter_map(|uid| node.pods.get(uid)).map(|class| class.priority);
    // Moved up, so that many victims of negative priority do not look cheap (the reference does the same).
    let sum = priorities().map(|priority| i64::from(priority) - i64::from(i32::MIN)).sum();
    (priorities().max().unwrap_or(i32::MIN), sum, victims.len())
}

fn victims(node: &NodeState, class: &Class, topology: Option<&Topology>) -> Result<Vec<Uid>, Vec<String>> {
    let mut lower: Vec<(&Uid, &Arc<Class>)> =
        node.pods.iter().filter(|(_, other)| other.priority < class.priority).collect();
    if lower.is_empty() {
        return Err(vec!["No preemption victims found for incoming pod".to_owned()]);
    }
    let words = |reasons: Vec<Reason>| reasons.iter().map(Reason::to_string).collect::<Vec<_>>();
    let mut rest = node.without(lower.iter().map(|(uid, _)| *uid));
    filter::room(class, &rest).map_err(words)?;
    // Who is near whom is not thought through again: where that is the obstacle, no room is made.
    if let Some(topology) = topology {
        topology.check(class, node).map_err(|reason| words(vec![reason]))?;
    }
    lower.sort_by_key(|(uid, other)| (Reverse(other.priority), (*uid).clone()));
    let mut victims = Vec::new();
    for (uid, other) in lower {
        rest.take(uid, other);
        if filter::room(class, &rest).is_err() {
            rest.release(uid);
            victims.push(uid.clone());
        }
    }
    Ok(victims)
}
