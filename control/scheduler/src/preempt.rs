//! Preemption: which pods of lower priority make room for one of higher priority.
//!
//! As the reference does it: all pods of lower priority are removed in thought, then spared again as long as the pod still
//! fits and is still far or near enough: first those whose PodDisruptionBudget would be violated (a budget is kept where it
//! can be, and violated where nothing else helps), each lot highest priority first. Those that leave already are no victims:
//! their room comes without one. Among a bounded number of nodes that would do ([`enough`]) the one is chosen where the fewest
//! budgets are violated, then with the least valuable victims.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::class::{Class, selects};
use crate::decide::available;
use crate::filter::{self, Reason};
use crate::relations::Verdict;
use crate::view::{Budget, ClusterView, Load, NodeState, Placed, Uid};

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

const NO_VICTIMS: &str = "No preemption victims found for incoming pod";

/// How many nodes that would do are compared (the reference: a tenth of them, at least a hundred).
fn enough(nodes: usize) -> usize {
    100.max(nodes / 10)
}

/// How room can be made for the pod, or why not.
pub(crate) fn find(
    view: &ClusterView,
    uid: &Uid,
    class: &Class,
    verdict: Option<&Verdict<'_>>,
    failures: &[(usize, Vec<Reason>)],
) -> Result<Preemption, Refusal> {
    if class.never_preempts {
        return Err(Refusal::Cannot("not eligible due to preemptionPolicy=Never.".to_owned()));
    }
    if let Some(node) = view.nomination(uid).and_then(|node| view.named(node))
        && filter::fixed(class, node).map_or_else(|reason| reason.is_resolvable(), |()| true)
        && leaving(view, node, class).next().is_some()
    {
        return Err(Refusal::Waits("not eligible due to a terminating pod on the nominated node.".to_owned()));
    }
    let mut refusals: BTreeMap<String, usize> = BTreeMap::new();
    let mut refuse = |words: &str, count: usize| *refusals.entry(words.to_owned()).or_default() += count;
    let mut best: Option<(Cost, Preemption)> = None;
    let mut found = 0;
    // Nodes that were not even looked at cannot help.
    let (mut helpless, mut without) = (view.len().saturating_sub(failures.len()), 0);
    let anybody = view.has_lower(class.priority);
    for (slot, reasons) in failures {
        let Some(node) = view.node(*slot) else { continue };
        if !reasons.iter().all(Reason::is_resolvable) {
            helpless += 1;
            continue;
        }
        if !anybody || !node.pods.values().any(|other| other.priority < class.priority) {
            without += 1;
            continue;
        }
        match victims(view, (*slot, node), uid, class, verdict) {
            Ok(victims) => {
                let cost = cost(&victims);
                if best.as_ref().is_none_or(|(least, _)| cost < *least) {
                    let victims = victims.into_iter().map(|victim| victim.uid).collect();
                    best = Some((cost, Preemption { node: node.name.clone(), victims }));
                }
                found += 1;
                if found >= enough(view.len()) {
                    break;
                }
            }
            Err(reasons) => reasons.iter().for_each(|reason| refuse(&reason.to_string(), 1)),
        }
    }
    for (words, count) in [("Preemption is not helpful for scheduling", helpless), (NO_VICTIMS, without)] {
        if count > 0 {
            refuse(words, count);
        }
    }
    best.map(|(_, preemption)| preemption).ok_or_else(|| Refusal::Cannot(available(view.len(), &refusals)))
}

/// Pods of lower priority on the node that are being deleted.
fn leaving<'a>(view: &'a ClusterView, node: &'a NodeState, class: &'a Class) -> impl Iterator<Item = &'a Arc<Class>> {
    let lower = node.pods.iter().filter(|(_, other)| other.priority < class.priority);
    lower.filter(|(uid, _)| view.placed(uid).is_some_and(|placed| placed.leaving)).map(|(_, class)| class)
}

/// A pod that would have to go.
struct Victim {
    uid: Uid,
    priority: i32,
    started: i64,
    /// Against its budget.
    violates: bool,
}

/// Violated budgets, highest priority of a victim, sum of priorities, number, and how long the most valuable have run.
type Cost = (usize, i32, i64, usize, Reverse<i64>);

fn cost(victims: &[Victim]) -> Cost {
    let highest = victims.iter().map(|victim| victim.priority).max().unwrap_or(i32::MIN);
    // Moved up, so that many victims of negative priority do not look cheap (the reference does the same).
    let sum = victims.iter().map(|victim| i64::from(victim.priority) - i64::from(i32::MIN)).sum();
    let most_valuable = victims.iter().filter(|victim| victim.priority == highest);
    let earliest = most_valuable.map(|victim| victim.started).min().unwrap_or(i64::MAX);
    (victims.iter().filter(|victim| victim.violates).count(), highest, sum, victims.len(), Reverse(earliest))
}

/// Which of the pods, most important first, would go against their budgets if all of them went (the reference's
/// `filterPodsWithPDBViolation`).
fn violating(view: &ClusterView, pods: &[(&Uid, &Placed)]) -> Vec<bool> {
    // By the address of the budget: the view stands still meanwhile.
    let mut left: HashMap<*const Budget, i64> = HashMap::new();
    let means = |budget: &Budget, placed: &Placed| {
        let selector = &budget.selector;
        !(selector.match_labels.is_empty() && selector.match_expressions.is_empty())
            && selects(Some(selector), &placed.labels)
            && !budget.disrupted.contains(&*placed.name)
    };
    let violates = |(_, placed): &(&Uid, &Placed)| {
        let mut violates = false;
        for budget in view.budgets_in(&placed.class.namespace).filter(|budget| means(budget, placed)) {
            let left = left.entry(std::ptr::from_ref(budget)).or_insert(budget.allowed);
            *left -= 1;
            violates |= *left < 0;
        }
        violates
    };
    pods.iter().map(violates).collect()
}

fn victims(
    view: &ClusterView,
    (slot, node): (usize, &NodeState),
    uid: &Uid,
    class: &Class,
    verdict: Option<&Verdict<'_>>,
) -> Result<Vec<Victim>, Vec<Reason>> {
    // What `filter::fixed` has not looked at where a claim is in use.
    class.volumes.check_places(node).map_err(|reason| vec![reason])?;
    // Those who have a claim for themselves alone: they are in the way wherever they are, and go from here only. Before all that
    // are here are looked at.
    let users = &class.volumes.users;
    let may_go = |placed: &Placed| placed.node == node.name && placed.class.priority < class.priority;
    if !users.iter().all(|user| view.placed(user).is_some_and(may_go)) {
        return Err(vec![Reason::VolumeInUse]);
    }
    // Only sums are thought through, not pods moved about: a node has many.
    let load = filter::with_reservations(class, node, Some(uid));
    let mut without = verdict.map(Verdict::with_all);
    let mut lower: Vec<(&Uid, &Placed)> = Vec::new();
    let mut rest = (load, users.len());
    let mut take = |uid: &Uid, placed: &Placed, rest: &mut (Load, usize), away: bool| {
        let uses = usize::from(users.binary_search(uid).is_ok());
        if away {
            rest.0.subtract(&placed.class);
            rest.1 -= uses;
        } else {
            rest.0.add(&placed.class);
            rest.1 += uses;
        }
        if let (Some(verdict), Some(without)) = (verdict, &mut without) {
            verdict.take(view, without, &placed.class, placed.leaving, away);
        }
        without.clone()
    };
    let fits = |(load, in_use): &(Load, usize), without: Option<&crate::relations::Without>| {
        if *in_use > 0 {
            return Err(vec![Reason::VolumeInUse]);
        }
        filter::fits(class, node, load)?;
        match verdict {
            Some(verdict) => verdict.check(slot, without).map_err(|reason| vec![reason]),
            None => Ok(()),
        }
    };
    let mut thought = None;
    for (other_uid, _) in node.pods.iter().filter(|(_, other)| other.priority < class.priority) {
        let Some(placed) = view.placed(other_uid) else { continue };
        thought = take(other_uid, placed, &mut rest, true);
        if !placed.leaving {
            lower.push((other_uid, placed));
        }
    }
    fits(&rest, thought.as_ref())?;
    lower.sort_by_key(|(uid, placed)| (Reverse(placed.class.priority), placed.started, (*uid).clone()));
    let against = violating(view, &lower);
    let mut order: Vec<(bool, &Uid, &Placed)> =
        lower.iter().zip(against).map(|((uid, placed), violates)| (violates, *uid, *placed)).collect();
    // Stable: within each lot the most important stay first.
    order.sort_by_key(|(violates, ..)| !violates);
    let mut victims = Vec::new();
    for (violates, uid, placed) in order {
        let spared = take(uid, placed, &mut rest, false);
        if fits(&rest, spared.as_ref()).is_err() {
            take(uid, placed, &mut rest, true);
            let (priority, started) = (placed.class.priority, placed.started);
            victims.push(Victim { uid: uid.clone(), priority, started, violates });
        }
    }
    Ok(victims)
}
