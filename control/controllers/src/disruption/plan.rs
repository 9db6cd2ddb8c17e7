//! The core: what a PodDisruptionBudget's status says, given its pods and how many there should be. No I/O.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::deployment::{Round, scaled};
use crate::informer::Pod;

/// How long a pod whose eviction was granted is believed to be about to go (the reference's `DeletionTimeout`).
pub(super) const GOES_WITHIN: Duration = Duration::from_secs(120);
pub(super) const ALLOWED: &str = "DisruptionAllowed";

/// Whether the number of pods that there should be is asked of their controllers; else those that are there count.
pub(super) fn asks_controllers(budget: &PodDisruptionBudget) -> bool {
    let spec = budget.spec.as_ref();
    let is_share = |value: Option<&IntOrString>| matches!(value, Some(IntOrString::String(_)));
    spec.is_some_and(|spec| spec.max_unavailable.is_some() || is_share(spec.min_available.as_ref()))
}

/// The status, and when it is to be looked at again by itself; `wanted` is what the pods' controllers want ([`asks_controllers`]).
pub(super) fn status(
    budget: &PodDisruptionBudget,
    pods: &[&Pod],
    wanted: i32,
    now: Timestamp,
) -> (PodDisruptionBudgetStatus, Option<Duration>) {
    let (expected, desired) = numbers(budget, pods.len(), wanted);
    let (disrupted, again) = disrupted(budget, pods, now);
    let is_healthy = |pod: &&&Pod| pod.ready && pod.deleting.is_none() && !disrupted.contains_key(&*pod.key.name);
    let healthy = count(pods.iter().filter(is_healthy).count());
    // A budget without pods allows none, so that the first ones are safe.
    let allowed = if expected > 0 { healthy.saturating_sub(desired).max(0) } else { 0 };
    let (word, reason) = if allowed > 0 { ("True", "SufficientPods") } else { ("False", "InsufficientPods") };
    let status = PodDisruptionBudgetStatus {
        current_healthy: Some(healthy),
        desired_healthy: Some(desired),
        expected_pods: Some(expected),
        disruptions_allowed: Some(allowed),
        disrupted_pods: Some(disrupted).filter(|pods| !pods.is_empty()),
        observed_generation: budget.metadata.generation,
        conditions: Some(conditions(budget, word, reason, "", (budget.metadata.generation, now))),
    };
    (status, again)
}

/// The status when it is not known how many pods there should be: nobody may go.
pub(super) fn failed(budget: &PodDisruptionBudget, message: &str, now: Timestamp) -> PodDisruptionBudgetStatus {
    let mut status = budget.status.clone().unwrap_or_default();
    status.disruptions_allowed = Some(0);
    // Of what was seen last.
    status.conditions = Some(conditions(budget, "False", "SyncFailed", message, (status.observed_generation, now)));
    status
}

/// How many pods there should be, and how many must stay healthy. Shares are rounded up.
fn numbers(budget: &PodDisruptionBudget, pods: usize, wanted: i32) -> (i32, i32) {
    let Some(spec) = &budget.spec else { return (0, 0) };
    match (&spec.max_unavailable, &spec.min_available) {
        (Some(most), _) => (wanted, wanted.saturating_sub(scaled(Some(most), wanted, Round::Up)).max(0)),
        (None, Some(IntOrString::Int(least))) => (count(pods), (*least).max(0)),
        (None, Some(share)) => (wanted, scaled(Some(share), wanted, Round::Up)),
        (None, None) => (0, 0),
    }
}

fn count(pods: usize) -> i32 {
    i32::try_from(pods).unwrap_or(i32::MAX)
}

/// Pods whose eviction was granted and that are still there, and when the first of them is not believed in any more.
fn disrupted(
    budget: &PodDisruptionBudget,
    pods: &[&Pod],
    now: Timestamp,
) -> (BTreeMap<String, Time>, Option<Duration>) {
    let granted = budget.status.as_ref().and_then(|status| status.disrupted_pods.as_ref());
    let (mut all, mut again) = (BTreeMap::new(), None::<Duration>);
    for pod in pods.iter().filter(|pod| pod.deleting.is_none()) {
        let Some(at) = granted.and_then(|granted| granted.get(&*pod.key.name)) else { continue };
        let left = at.0.saturating_add(jiff::SignedDuration::try_from(GOES_WITHIN).unwrap_or_default());
        let left = left.map(|until| until.duration_since(now)).unwrap_or_default();
        if let Ok(left) = Duration::try_from(left)
            && !left.is_zero()
        {
            all.insert(pod.key.name.to_string(), at.clone());
            again = Some(again.map_or(left, |again| again.min(left)));
        }
    }
    (all, again)
}

/// The conditions with this one, which keeps its time while it says the same.
fn conditions(
    budget: &PodDisruptionBudget,
    status: &str,
    reason: &str,
    message: &str,
    (generation, now): (Option<i64>, Timestamp),
) -> Vec<Condition> {
    let mut all = budget.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
    let before = all.iter().find(|known| known.type_ == ALLOWED && known.status == status);
    let condition = Condition {
        type_: ALLOWED.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        last_transition_time: before.map_or(Time(now), |before| before.last_transition_time.clone()),
        observed_generation: generation,
    };
    match all.iter_mut().find(|known| known.type_ == ALLOWED) {
        Some(known) => *known = condition,
        None => all.push(condition),
    }
    all
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::informer::Object as _;

    const NOW: i64 = 1_800_000_000;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(NOW + seconds).unwrap()
    }

    fn budget(spec: Value, status: Value) -> PodDisruptionBudget {
        let object =
            json!({"metadata": {"name": "b", "namespace": "n", "generation": 3}, "spec": spec, "status": status});
        serde_json::from_value(object).unwrap()
    }

    /// Pods, a letter each: ready, not ready, going.
    fn pods(letters: &str) -> Vec<Pod> {
        let pod = |(index, letter)| {
            let mut wire = json!({
                "metadata": {"name": format!("p{index}"), "namespace": "n", "uid": format!("u{index}")}, "spec": {"containers": []},
                "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": if letter == 'n' { "False" } else { "True" }}]},
            });
            if letter == 'g' {
                wire["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            }
            Pod::keep(serde_json::from_value(wire).unwrap())
        };
        letters.chars().enumerate().map(pod).collect()
    }

    /// Healthy, desired, expected, allowed.
    fn counts(spec: Value, letters: &str, wanted: i32) -> [i32; 4] {
        let pods = pods(letters);
        let (status, _) = status(&budget(spec, json!({})), &pods.iter().collect::<Vec<_>>(), wanted, at(0));
        [status.current_healthy, status.desired_healthy, status.expected_pods, status.disruptions_allowed]
            .map(Option::unwrap)
    }

    #[test]
    fn what_may_go_is_what_is_healthy_beyond_what_must_stay() {
        for (spec, letters, wanted, expected) in [
            (json!({"minAvailable": 2}), "rrr", 0, [3, 2, 3, 1]),
            (json!({"minAvailable": 2}), "rrn", 0, [2, 2, 3, 0]),
            (json!({"minAvailable": 2}), "rrg", 0, [2, 2, 3, 0]),
            (json!({"minAvailable": 0}), "", 0, [0, 0, 0, 0]),
            (json!({"minAvailable": "50%"}), "rrrrr", 5, [5, 3, 5, 2]),
            (json!({"maxUnavailable": 1}), "rrr", 3, [3, 2, 3, 1]),
            (json!({"maxUnavailable": 1}), "rr", 3, [2, 2, 3, 0]),
            (json!({"maxUnavailable": "30%"}), "rrr", 3, [3, 2, 3, 1]),
            (json!({"maxUnavailable": 9}), "rrr", 3, [3, 0, 3, 3]),
            (json!({}), "rrr", 3, [3, 0, 0, 0]),
        ] {
            assert_eq!(counts(spec.clone(), letters, wanted), expected, "{spec} {letters} {wanted}");
        }
    }

    #[test]
    fn whoever_was_granted_an_eviction_is_believed_to_go_for_a_while() {
        let granted = json!({"disruptedPods": {
            "p0": at(-10).to_string(), "p1": at(-121).to_string(), "p2": at(-5).to_string(), "other": at(0).to_string(),
        }, "disruptionsAllowed": 0, "currentHealthy": 0, "desiredHealthy": 0, "expectedPods": 0});
        let pods = pods("rrgr");
        let (status, again) =
            status(&budget(json!({"minAvailable": 1}), granted), &pods.iter().collect::<Vec<_>>(), 0, at(0));
        let disrupted: Vec<String> = status.disrupted_pods.unwrap().into_keys().collect();
        assert_eq!(disrupted, ["p0"], "others have gone, or did not go");
        assert_eq!((status.current_healthy, again), (Some(2), Some(Duration::from_secs(110))));
    }

    #[test]
    fn the_condition_keeps_its_time_while_it_says_the_same() {
        let all = pods("rr");
        let pods: Vec<&Pod> = all.iter().collect();
        let mut budget = budget(json!({"minAvailable": 1}), json!({}));
        let condition = |status: &PodDisruptionBudgetStatus| {
            let condition = &status.conditions.as_ref().unwrap()[0];
            (condition.status.clone(), condition.reason.clone(), condition.last_transition_time.0.as_second() - NOW)
        };
        let said = |status: &str, reason: &str, at| (status.to_owned(), reason.to_owned(), at);
        budget.status = Some(status(&budget, &pods, 0, at(0)).0);
        assert_eq!(condition(budget.status.as_ref().unwrap()), said("True", "SufficientPods", 0));
        budget.status = Some(status(&budget, &pods, 0, at(5)).0);
        assert_eq!(condition(budget.status.as_ref().unwrap()), said("True", "SufficientPods", 0));
        budget.status = Some(status(&budget, &pods[..1], 0, at(7)).0);
        assert_eq!(condition(budget.status.as_ref().unwrap()), said("False", "InsufficientPods", 7));
        let failed = failed(&budget, "why", at(9));
        assert_eq!((condition(&failed), failed.disruptions_allowed), (said("False", "SyncFailed", 7), Some(0)));
        assert_eq!(failed.conditions.unwrap()[0].message, "why");
    }
}
