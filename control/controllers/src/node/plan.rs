//! The cores of the node lifecycle: conditions, taints and evictions from what is known. No I/O, no clock.

use coracle_api::meta::taint;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Node, NodeCondition, Taint, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

pub(crate) const NOT_READY: &str = "node.kubernetes.io/not-ready";
pub(crate) const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
/// Conditions that become taints, and the status that does it.
const CONDITION_TAINTS: [(&str, &str, &str); 6] = [
    ("Ready", "False", NOT_READY),
    ("Ready", "Unknown", UNREACHABLE),
    ("MemoryPressure", "True", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "True", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "True", "node.kubernetes.io/pid-pressure"),
    ("NetworkUnavailable", "True", "node.kubernetes.io/network-unavailable"),
];

/// `status` of the condition `Ready`.
pub(crate) fn readiness(node: &Node) -> Option<&str> {
    condition(node, "Ready").map(|condition| condition.status.as_str())
}

/// Whether a node is ready.
pub(crate) fn is_ready(node: &Node) -> bool {
    readiness(node) == Some("True")
}

fn condition<'a>(node: &'a Node, type_: &str) -> Option<&'a NodeCondition> {
    node.status.as_ref()?.conditions.as_ref()?.iter().find(|condition| condition.type_ == type_)
}

/// Conditions of a node that is silent, where they are not so already.
pub(crate) fn silent(node: &Node, now: Timestamp) -> Vec<NodeCondition> {
    let kinds = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];
    let changed = kinds.into_iter().filter_map(|type_| {
        let (reason, message, heartbeat) = match condition(node, type_) {
            Some(known) if known.status == "Unknown" => return None,
            Some(known) => {
                ("NodeStatusUnknown", "Kubelet stopped posting node status.", known.last_heartbeat_time.clone())
            }
            None => {
                let created = node.metadata.creation_timestamp.clone();
                ("NodeStatusNeverUpdated", "Kubelet never posted node status.", created)
            }
        };
        Some(NodeCondition {
            type_: type_.to_owned(),
            status: "Unknown".to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message.to_owned()),
            last_heartbeat_time: heartbeat,
            last_transition_time: Some(Time(now)),
        })
    });
    changed.collect()
}

/// Whether pods may be driven out of a node that fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Drive {
    /// Now.
    Out,
    /// Not now; whom it drives out already, it goes on to.
    Hold,
    /// No: the taints that do it are taken away.
    Lift,
}

/// The taints of a node as they shall be, or `None` if they are.
///
/// A node that never said whether it is ready counts as one that is not (the reference's admission taints such a node).
pub(crate) fn taints(node: &Node, drive: Drive, now: Timestamp) -> Option<Vec<Taint>> {
    let before = node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
    let taint = |key: &str, effect: &str| Taint {
        key: key.to_owned(),
        effect: effect.to_owned(),
        time_added: Some(Time(now)),
        value: None,
    };
    let mut wanted = Vec::new();
    for (type_, status, key) in CONDITION_TAINTS {
        let never_said = key == NOT_READY && condition(node, type_).is_none();
        if never_said || condition(node, type_).is_some_and(|condition| condition.status == status) {
            wanted.push(taint(key, "NoSchedule"));
            let present = before.iter().any(|before| before.key == key && before.effect == "NoExecute");
            let drive = drive == Drive::Out || (drive == Drive::Hold && present);
            if type_ == "Ready" && drive && !never_said {
                wanted.push(taint(key, "NoExecute"));
            }
        }
    }
    if node.spec.as_ref().is_some_and(|spec| spec.unschedulable.unwrap_or(false)) {
        wanted.push(taint(UNSCHEDULABLE, "NoSchedule"));
    }
    let same = |a: &Taint, b: &Taint| a.key == b.key && a.effect == b.effect;
    let ours = |taint: &Taint| {
        let known = taint.key == UNSCHEDULABLE || CONDITION_TAINTS.iter().any(|(_, _, key)| taint.key == *key);
        known && (taint.effect == "NoSchedule" || taint.key == NOT_READY || taint.key == UNREACHABLE)
    };
    let mut after: Vec<Taint> = before
        .iter()
        .filter(|taint| !ours(taint) || wanted.iter().any(|wanted| same(wanted, taint)))
        .cloned()
        .collect();
    for taint in wanted {
        if !after.iter().any(|known| same(known, &taint)) {
            after.push(taint);
        }
    }
    (after != before).then_some(after)
}

/// When a pod has to leave a node with these taints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leave {
    Never,
    At(Timestamp),
}

/// Among the taints that drive pods out, the first one that the pod does not tolerate (any more).
pub(crate) fn leave(taints: &[Taint], tolerations: &[Toleration], now: Timestamp) -> Leave {
    let mut at: Option<Timestamp> = None;
    for taint in taints.iter().filter(|taint| taint.effect == "NoExecute") {
        let mut tolerated = tolerations.iter().filter(|toleration| tolerates(toleration, taint)).peekable();
        let since = taint.time_added.as_ref().map_or(now, |time| time.0);
        let until = if tolerated.peek().is_none() {
            now
        } else {
            // The shortest counts; a toleration without seconds does not limit.
            let Some(seconds) = tolerated.filter_map(|toleration| toleration.toleration_seconds).min() else {
                continue;
            };
            // Past the end of the calendar is never (the reference: the largest number is no limit).
            let Ok(until) = since.checked_add(SignedDuration::from_secs(seconds.max(0))) else { continue };
            until
        };
        at = Some(at.map_or(until, |at| at.min(until)));
    }
    at.map_or(Leave::Never, Leave::At)
}

/// Whether the toleration matches the taint.
pub(crate) fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    fn text(text: &Option<String>) -> &str {
        text.as_deref().unwrap_or_default()
    }
    let taint = taint::Taint { key: &taint.key, value: text(&taint.value), effect: &taint.effect };
    let Toleration { key, operator, value, effect, .. } = toleration;
    let toleration =
        taint::Toleration { key: text(key), operator: text(operator), value: text(value), effect: text(effect) };
    toleration.tolerates(taint)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn now() -> Timestamp {
        "2026-01-01T00:10:00Z".parse().unwrap()
    }

    fn node(ready: &str, spec: Value) -> Node {
        let conditions = json!([{"type": "Ready", "status": ready}, {"type": "MemoryPressure", "status": "False"}]);
        serde_json::from_value(json!({"metadata": {"name": "one"}, "spec": spec, "status": {"conditions": conditions}}))
            .unwrap()
    }

    #[test]
    fn a_silent_node_is_unknown_once() {
        let kinds =
            |node: &Node| silent(node, now()).into_iter().map(|c| (c.type_, c.reason.unwrap())).collect::<Vec<_>>();
        let first = kinds(&node("True", json!({})));
        assert_eq!(first[0], ("Ready".to_owned(), "NodeStatusUnknown".to_owned()));
        assert_eq!(first[2], ("DiskPressure".to_owned(), "NodeStatusNeverUpdated".to_owned()));
        assert!(kinds(&node("Unknown", json!({}))).iter().all(|(type_, _)| type_ != "Ready"));
    }

    #[test]
    fn taints_follow_conditions() {
        let other = json!({"key": "mine", "effect": "NoExecute"});
        for (ready, spec, drive, expected) in [
            ("True", json!({}), Drive::Out, None),
            ("False", json!({}), Drive::Hold, Some(vec![(NOT_READY, "NoSchedule")])),
            ("Unknown", json!({}), Drive::Out, Some(vec![(UNREACHABLE, "NoSchedule"), (UNREACHABLE, "NoExecute")])),
            ("True", json!({"unschedulable": true}), Drive::Out, Some(vec![(UNSCHEDULABLE, "NoSchedule")])),
            (
                "True",
                json!({"taints": [other, {"key": UNREACHABLE, "effect": "NoExecute"}, {"key": NOT_READY, "effect": "NoSchedule"}]}),
                Drive::Out,
                Some(vec![("mine", "NoExecute")]),
            ),
            (
                "Unknown",
                json!({"taints": [{"key": UNREACHABLE, "effect": "NoSchedule"}, {"key": UNREACHABLE, "effect": "NoExecute"}]}),
                Drive::Lift,
                Some(vec![(UNREACHABLE, "NoSchedule")]),
            ),
            (
                "Unknown",
                json!({"taints": [{"key": UNREACHABLE, "effect": "NoSchedule"}, {"key": UNREACHABLE, "effect": "NoExecute"}]}),
                Drive::Hold,
                None,
            ),
        ] {
            let node = node(ready, spec);
            let taints = taints(&node, drive, now());
            let taints = taints.as_ref().map(|taints| {
                taints.iter().map(|taint| (taint.key.as_str(), taint.effect.as_str())).collect::<Vec<_>>()
            });
            assert_eq!(taints, expected, "{ready}");
        }
    }

    #[test]
    fn a_node_that_never_said_how_it_is_takes_no_pods() {
        let node: Node = serde_json::from_value(json!({"metadata": {"name": "ghost"}})).unwrap();
        let taints = taints(&node, Drive::Out, now()).unwrap();
        let taints: Vec<_> = taints.iter().map(|taint| (taint.key.as_str(), taint.effect.as_str())).collect();
        assert_eq!(taints, [(NOT_READY, "NoSchedule")]);
    }

    #[test]
    fn pods_leave_when_their_toleration_ends() {
        let taint = json!([{"key": UNREACHABLE, "effect": "NoExecute", "timeAdded": "2026-01-01T00:09:00Z"}]);
        let exists = |seconds: Value| json!([{"key": UNREACHABLE, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds}]);
        for (tolerations, expected) in [
            (json!([]), Leave::At(now())),
            (exists(Value::Null), Leave::Never),
            (exists(json!(300)), Leave::At("2026-01-01T00:14:00Z".parse().unwrap())),
            (exists(json!(i64::MAX)), Leave::Never),
            (exists(json!(i64::MIN)), Leave::At("2026-01-01T00:09:00Z".parse().unwrap())),
            (json!([{"operator": "Exists"}]), Leave::Never),
            (json!([{"key": UNREACHABLE, "operator": "Exists", "effect": "NoSchedule"}]), Leave::At(now())),
        ] {
            let taints: Vec<Taint> = serde_json::from_value(taint.clone()).unwrap();
            let parsed: Vec<Toleration> = serde_json::from_value(tolerations.clone()).unwrap();
            assert_eq!(leave(&taints, &parsed, now()), expected, "{tolerations}");
        }
    }
}
