//! Which of the nodes that can take a pod is best. All in integers; each part is 0 to 100 times its weight, with the
//! weights of the reference's plugins.

use crate::class::Shape;
use crate::filter::{matches_term, tolerated};
use crate::resources::Amount;
use crate::view::NodeState;

const MAX: i64 = 100;
const TAINT_WEIGHT: i64 = 3;
const AFFINITY_WEIGHT: i64 = 2;
/// Of `PodTopologySpread`.
pub(crate) const SPREAD_WEIGHT: i64 = 2;
/// Of `InterPodAffinity`.
pub(crate) const COMPANY_WEIGHT: i64 = 2;

/// Sum of the weights of preferred node affinity terms that hold.
pub(crate) fn preferred(class: &Shape, node: &NodeState) -> i64 {
    let terms = class.node_affinity.preferred.iter();
    let holding = terms.filter(|term| {
        // Unlike a required term, an empty preference holds everywhere.
        let empty = term.preference.match_expressions.is_empty() && term.preference.match_fields.is_empty();
        empty || matches_term(&term.preference, &node.labels, &node.name)
    });
    holding.map(|term| i64::from(term.weight)).sum()
}

/// `PreferNoSchedule` taints that are not tolerated.
pub(crate) fn disliked(class: &Shape, node: &NodeState) -> i64 {
    let soft = node.taints.iter().filter(|taint| taint.effect == "PreferNoSchedule");
    i64::try_from(soft.filter(|taint| !tolerated(&class.tolerations, taint)).count()).unwrap_or(i64::MAX)
}

/// The part that does not change with what runs: `preferred` and `disliked` against the most of any node.
pub(crate) fn fixed(preferred: i64, preferred_max: i64, disliked: i64, disliked_max: i64) -> i64 {
    let affinity = if preferred_max > 0 { preferred * MAX / preferred_max } else { 0 };
    let taints = if disliked_max > 0 { MAX - disliked * MAX / disliked_max } else { MAX };
    AFFINITY_WEIGHT * affinity + TAINT_WEIGHT * taints
}

/// The part that changes with what runs and is the same for all pods of a shape: least allocated, and balanced.
pub(crate) fn moving(shape: &Shape, node: &NodeState) -> i64 {
    let share = |all: Amount, used: Amount, wanted: Amount| -> i64 {
        let left = (all - used - wanted).clamp(0, all.max(0));
        (left * 10_000).checked_div(all).and_then(|share| share.try_into().ok()).unwrap_or(0)
    };
    let (assumed, used) = (shape.requests.assumed, node.load.used_assumed);
    let cpu = share(node.allocatable.cpu, used.0, assumed.0);
    let memory = share(node.allocatable.memory, used.1, assumed.1);
    let least = (cpu + memory) / 2 / 100;
    // The standard deviation of two values is half their distance.
    let balanced = MAX - (cpu - memory).abs() / 2 / 100;
    least + balanced
}
