//! Where a DaemonSet has its pods: what of a node decides it, without any pods (`NodeShouldRunDaemonPod` of the reference).

use std::collections::BTreeMap;

use coracle_api::meta::taint;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Node, NodeSelectorRequirement, NodeSelectorTerm, PodSpec, Taint, Toleration};

/// Taints that every pod of a DaemonSet tolerates: it is there for the node, whatever the node's state.
const TOLERATED: [(&str, &str); 6] = [
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
];
/// With `hostNetwork` it does not need the node's network, either.
const TOLERATED_ON_HOST: (&str, &str) = ("node.kubernetes.io/network-unavailable", "NoSchedule");

/// What becomes of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// A pod runs there.
    Wanted,
    /// No pod is started, and one that is there stays: a taint keeps new pods off only.
    Kept,
    /// No pod runs there.
    None,
}

/// What the pods of a DaemonSet ask of a node.
pub(super) struct Placement<'a> {
    node_name: Option<&'a str>,
    node_selector: Option<&'a BTreeMap<String, String>>,
    terms: Option<&'a [NodeSelectorTerm]>,
    tolerations: Vec<Toleration>,
}

impl<'a> Placement<'a> {
    pub(super) fn of(set: &'a DaemonSet) -> Self {
        let spec = set.spec.template.spec.as_ref();
        let affinity =
            spec.and_then(|spec| spec.affinity.as_ref()).and_then(|affinity| affinity.node_affinity.as_ref());
        let required = affinity.and_then(|it| it.required_during_scheduling_ignored_during_execution.as_ref());
        Self {
            node_name: spec.and_then(|spec| spec.node_name.as_deref()).filter(|name| !name.is_empty()),
            node_selector: spec.and_then(|spec| spec.node_selector.as_ref()),
            terms: required.map(|required| required.node_selector_terms.as_slice()),
            tolerations: spec.map(tolerations).unwrap_or_default(),
        }
    }

    /// What becomes of the node.
    pub(super) fn on(&self, node: &Node) -> Place {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        if self.node_name.is_some_and(|wanted| wanted != name) || !self.suits(name, node.metadata.labels.as_ref()) {
            return Place::None;
        }
        let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
        let repelled = |effects: &[&str]| {
            let mut hard = taints.iter().filter(|taint| effects.contains(&taint.effect.as_str()));
            hard.any(|taint| !self.tolerates(taint))
        };
        if repelled(&["NoExecute"]) {
            Place::None
        } else if repelled(&["NoSchedule"]) {
            Place::Kept
        } else {
            Place::Wanted
        }
    }

    fn tolerates(&self, taint: &Taint) -> bool {
        let value = taint.value.as_deref().unwrap_or_default();
        let taint = taint::Taint { key: &taint.key, value, effect: &taint.effect };
        let text = |text: &'_ Option<String>| text.as_deref().unwrap_or_default().to_owned();
        self.tolerations.iter().any(|it| {
            let [key, operator, value, effect] = [&it.key, &it.operator, &it.value, &it.effect].map(text);
            taint::Toleration { key: &key, operator: &operator, value: &value, effect: &effect }.tolerates(taint)
        })
    }

    /// Whether node selector and required affinity hold.
    fn suits(&self, name: &str, labels: Option<&BTreeMap<String, String>>) -> bool {
        let label = |key: &str| labels.and_then(|labels| labels.get(key)).map(String::as_str);
        let mut selected = self.node_selector.into_iter().flatten();
        selected.all(|(key, value)| label(key) == Some(value))
            && self.terms.is_none_or(|terms| {
                terms.iter().any(|term| {
                    let labels = term.match_expressions.as_deref().unwrap_or_default();
                    let fields = term.match_fields.as_deref().unwrap_or_default();
                    // An empty term never holds.
                    !(labels.is_empty() && fields.is_empty())
                        && labels.iter().all(|it| holds(it, label(&it.key)))
                        && fields.iter().all(|it| holds(it, (it.key == "metadata.name").then_some(name)))
                })
            })
    }
}

fn holds(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let listed = |value: &str| values.iter().any(|it| it == value);
    let numbers = || Some((value?.parse::<i64>().ok()?, values.first()?.parse::<i64>().ok()?));
    match requirement.operator.as_str() {
        "In" => value.is_some_and(listed),
        "NotIn" => !value.is_some_and(listed),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => numbers().is_some_and(|(has, than)| has > than),
        "Lt" => numbers().is_some_and(|(has, than)| has < than),
        _ => false,
    }
}

/// What pods made of this tolerate.
pub(super) fn tolerations(spec: &PodSpec) -> Vec<Toleration> {
    let mut all = spec.tolerations.clone().unwrap_or_default();
    let on_host = spec.host_network.unwrap_or(false).then_some(TOLERATED_ON_HOST);
    for (key, effect) in TOLERATED.into_iter().chain(on_host) {
        let own = Toleration {
            key: Some(key.to_owned()),
            operator: Some("Exists".to_owned()),
            effect: Some(effect.to_owned()),
            ..Toleration::default()
        };
        // One about the same taint gives way.
        let is_same = |it: &Toleration| {
            it.key == own.key
                && it.effect == own.effect
                && it.operator == own.operator
                && it.value.as_deref().unwrap_or_default().is_empty()
        };
        match all.iter_mut().find(|it| is_same(it)) {
            Some(same) => *same = own,
            None => all.push(own),
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn place(template: &Value, node: &Value) -> Place {
        let set: DaemonSet = serde_json::from_value(json!({
            "metadata": {"name": "d"}, "spec": {"selector": {}, "template": {"spec": template}},
        }))
        .unwrap();
        let mut whole = json!({"metadata": {"name": "one", "labels": {"disk": "ssd", "size": "7"}}});
        whole["spec"] = node.clone();
        Placement::of(&set).on(&serde_json::from_value(whole).unwrap())
    }

    #[test]
    fn pods_go_where_selectors_and_taints_let_them() {
        let affinity = |term: Value| {
            json!({"containers": [], "affinity": {"nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}}})
        };
        let expression =
            |key: &str, operator: &str, values: Value| json!([{"key": key, "operator": operator, "values": values}]);
        let taint = |key: &str, effect: &str| json!({"taints": [{"key": key, "effect": effect}]});
        let plain = json!({"containers": []});
        for (template, node, expected) in [
            (plain.clone(), json!({}), Place::Wanted),
            (json!({"containers": [], "nodeName": "one"}), json!({}), Place::Wanted),
            (json!({"containers": [], "nodeName": "two"}), json!({}), Place::None),
            (json!({"containers": [], "nodeSelector": {"disk": "ssd"}}), json!({}), Place::Wanted),
            (json!({"containers": [], "nodeSelector": {"disk": "old"}}), json!({}), Place::None),
            (affinity(json!({"matchExpressions": expression("size", "Gt", json!(["5"]))})), json!({}), Place::Wanted),
            (affinity(json!({"matchExpressions": expression("size", "Lt", json!(["5"]))})), json!({}), Place::None),
            (
                affinity(json!({"matchFields": expression("metadata.name", "NotIn", json!(["one"]))})),
                json!({}),
                Place::None,
            ),
            (affinity(json!({})), json!({}), Place::None),
            (plain.clone(), json!({"unschedulable": true}), Place::Wanted),
            (plain.clone(), taint("node.kubernetes.io/unschedulable", "NoSchedule"), Place::Wanted),
            (plain.clone(), taint("node.kubernetes.io/not-ready", "NoExecute"), Place::Wanted),
            (plain.clone(), taint("node.kubernetes.io/network-unavailable", "NoSchedule"), Place::Kept),
            (
                json!({"containers": [], "hostNetwork": true}),
                taint("node.kubernetes.io/network-unavailable", "NoSchedule"),
                Place::Wanted,
            ),
            (plain.clone(), taint("mine", "PreferNoSchedule"), Place::Wanted),
            (plain.clone(), taint("mine", "NoSchedule"), Place::Kept),
            (plain, taint("mine", "NoExecute"), Place::None),
            (
                json!({"containers": [], "tolerations": [{"operator": "Exists"}]}),
                taint("mine", "NoExecute"),
                Place::Wanted,
            ),
        ] {
            assert_eq!(place(&template, &node), expected, "{template} on {node}");
        }
    }

    #[test]
    fn tolerations_of_daemons_are_there_once() {
        let spec: PodSpec = serde_json::from_value(json!({"containers": [], "tolerations": [
            {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5},
            {"key": "mine", "operator": "Exists"},
        ]}))
        .unwrap();
        let all = tolerations(&spec);
        assert_eq!(all.len(), 7);
        assert_eq!(all[0].toleration_seconds, None, "a daemon stays for as long as the node is not ready");
        assert_eq!(all[1].key.as_deref(), Some("mine"));
    }
}
