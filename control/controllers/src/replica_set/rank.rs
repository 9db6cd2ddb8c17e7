//! Which pods go first when there are too many (`ActivePodsWithRanks` of the reference).

use std::cmp::{Ordering, Reverse};
use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;

use crate::informer::{Phase, Pod};

/// The `count` pods that are missed least: without a node, pending, not ready, cheap to delete, on a crowded node,
/// ready for a short time, restarted often, young. Ages compare on a logarithmic scale, so that nearly equal ones do
/// not make the choice.
pub(crate) fn victims(pods: Vec<Arc<Pod>>, related: &[Arc<Pod>], count: usize, now: Timestamp) -> Vec<Arc<Pod>> {
    let mut crowd: HashMap<Option<&str>, usize> = HashMap::new();
    for pod in related.iter().filter(|pod| pod.is_active()) {
        *crowd.entry(pod.node.as_deref()).or_default() += 1;
    }
    let mut ranked: Vec<(usize, Arc<Pod>)> =
        pods.into_iter().map(|pod| (crowd.get(&pod.node.as_deref()).copied().unwrap_or(0), pod)).collect();
    ranked.sort_by(|(crowd_a, a), (crowd_b, b)| compare(a, *crowd_a, b, *crowd_b, now));
    ranked.truncate(count);
    ranked.into_iter().map(|(_, pod)| pod).collect()
}

fn compare(a: &Pod, crowd_a: usize, b: &Pod, crowd_b: usize, now: Timestamp) -> Ordering {
    let phase = |pod: &Pod| match pod.phase {
        Phase::Pending | Phase::Other => 0,
        Phase::Unknown => 1,
        _ => 2,
    };
    let both_ready = a.ready && b.ready;
    let ready_for = |pod: &Pod| if both_ready { age(pod.ready_since, now) } else { 0 };
    a.node
        .is_some()
        .cmp(&b.node.is_some())
        .then_with(|| phase(a).cmp(&phase(b)))
        .then_with(|| a.ready.cmp(&b.ready))
        .then_with(|| a.deletion_cost.cmp(&b.deletion_cost))
        .then_with(|| Reverse(crowd_a).cmp(&Reverse(crowd_b)))
        .then_with(|| ready_for(a).cmp(&ready_for(b)))
        .then_with(|| Reverse(a.restarts).cmp(&Reverse(b.restarts)))
        .then_with(|| age(a.created, now).cmp(&age(b.created, now)))
        .then_with(|| a.uid.cmp(&b.uid))
}

/// log2 of the age in nanoseconds; -1 for none.
fn age(since: Option<Timestamp>, now: Timestamp) -> i64 {
    let Some(since) = since else { return -1 };
    let age = now.duration_since(since).as_nanos();
    u128::try_from(age).ok().and_then(u128::checked_ilog2).map_or(-1, i64::from)
}
