//! Preemption: which pods of lower priority make room for one of higher priority.
//!
//! As the reference does it, less PodDisruptionBudgets (evictions by preemption may violate them there, too, as a last
//! resort): all pods of lower priority are removed in thought, then spared again, highest priority first, as long as the
//! pod still fits. Those that leave already are no victims: their room comes without one. The node with the least
//! valuable victims is chosen, among a bounded number that would do ([`enough`]).

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
    /// None if the room comes by itself.
    pub victims: Vec<Uid>,
}

/// Why no room is made.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The pod waits on its node for others to leave.
    Waits(String),
    /// It cannot be, in the reference's words.
    Cannot(String),
}

/// How many nodes that would do are compared (the reference: a tenth of them, at least a hundred).
fn enough(nodes: usize) -> usize {
    100.max(nodes / 10)
}

/// How room can be made for the pod, or why not.
pub(crate) fn find(
    view: &ClusterView,
    uid: &Uid,
    class: &Class,
    topology: Option<&Topology>,
    failures: &[(usize, Vec<Reason>)],
) -> Result<Preemption, Refusal> {
    if class.never_preempts {
        return Err(Refusal::Cannot("not eligible due to preemptionPolicy=Never.".to_owned()));
    }
    if let Some(node) = view.nomination(uid).and_then(|node| view.named(node))
        && filter::fixed(class, node).is_ok()
        && leaving(view, node, class).next().is_some()
    {
        return Err(Refusal::Waits("not eligible due to a terminating pod on the nominated node.".to_owned()));
    }
    let mut refusals = Vec::new();
    let mut best: Option<(Cost, Preemption)> = None;
    let mut found = 0;
    for (slot, reasons) in failures {
        let Some(node) = view.node(*slot) else { continue };
        if !reasons.iter().all(Reason::is_resolvable) {
            refusals.push("Preemption is not helpful for scheduling".to_owned());
            continue;
        }
        match victims(view, node, uid, class, topology) {
            Ok(victims) => {
                let cost = cost(node, &victims);
                if best.as_ref().is_none_or(|(least, _)| cost < *least) {
                    best = Some((cost, Preemption { node: node.name.clone(), victims }));
                }
                found += 1;
                if found >= enough(view.len()) {
                    break;
                }
            }
            Err(reasons) => refusals.extend(reasons),
        }
    }
    best.map(|(_, preemption)| preemption).ok_or_else(|| Refusal::Cannot(available(view.len(), refusals.into_iter())))
}

/// Pods of lower priority on the node that are being deleted.
fn leaving<'a>(view: &'a ClusterView, node: &'a NodeState, class: &'a Class) -> impl Iterator<Item = &'a Arc<Class>> {
    let lower = node.pods.iter().filter(|(_, other)| other.priority < class.priority);
    lower.filter(|(uid, _)| view.placed(uid).is_some_and(|placed| placed.leaving)).map(|(_, class)| class)
}

/// Highest priority of a victim, sum of priorities, number.
type Cost = (i32, i64, usize);

fn cost(node: &NodeState, victims: &[Uid]) -> Cost {
    let priorities = || victims.iter().filter_map(|uid| node.pods.get(uid)).map(|class| class.priority);
    // Moved up, so that many victims of negative priority do not look cheap (the reference does the same).
    let sum = priorities().map(|priority| i64::from(priority) - i64::from(i32::MIN)).sum();
    (priorities().max().unwrap_or(i32::MIN), sum, victims.len())
}

fn victims(
    view: &ClusterView,
    node: &NodeState,
    uid: &Uid,
    class: &Class,
    topology: Option<&Topology>,
) -> Result<Vec<Uid>, Vec<String>> {
    if !node.pods.values().any(|other| other.priority < class.priority) {
        return Err(vec!["No preemption victims found for incoming pod".to_owned()]);
    }
    // Only sums are thought through, not pods moved about: a node has many.
    let mut rest = filter::with_reservations(class, node, Some(uid));
    let mut lower: Vec<(&Uid, &Arc<Class>)> = Vec::new();
    for (other_uid, other) in node.pods.iter().filter(|(_, other)| other.priority < class.priority) {
        rest.subtract(other);
        if view.placed(other_uid).is_none_or(|placed| !placed.leaving) {
            lower.push((other_uid, other));
        }
    }
    let words = |reasons: Vec<Reason>| reasons.iter().map(Reason::to_string).collect::<Vec<_>>();
    filter::fits(class, node, &rest).map_err(words)?;
    // Who is near whom is not thought through again: where that is the obstacle, no room is made.
    if let Some(topology) = topology {
        topology.check(class, node).map_err(|reason| words(vec![reason]))?;
    }
    lower.sort_by_key(|(uid, other)| (Reverse(other.priority), (*uid).clone()));
    let mut victims = Vec::new();
    for (uid, other) in lower {
        rest.add(other);
        if filter::fits(class, node, &rest).is_err() {
            rest.subtract(other);
            victims.push(uid.clone());
        }
    }
    Ok(victims)
}
