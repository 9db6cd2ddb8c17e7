//! Nodes (TaintNodesByCondition): a node that does not say that it is ready gets nothing to run before it does. The node
//! controller takes the taint away then.

use serde_json::{Value, json};

const NOT_READY: &str = "node.kubernetes.io/not-ready";

pub(super) fn create(node: &mut Value) {
    let conditions = node["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    if conditions.iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True") {
        return;
    }
    let mut taints = node["spec"]["taints"].as_array().cloned().unwrap_or_default();
    if taints.iter().any(|taint| taint["key"] == NOT_READY && taint["effect"] == "NoSchedule") {
        return;
    }
    taints.push(json!({"key": NOT_READY, "effect": "NoSchedule"}));
    if !node["spec"].is_object() {
        node["spec"] = json!({});
    }
    node["spec"]["taints"] = taints.into();
}
