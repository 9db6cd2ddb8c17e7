//! A pod is never bound twice: once `spec.nodeName` says a node, it says that one for ever.
//!
//! Kubernetes: `spec.nodeName` is set by a binding and immutable afterwards (`ValidatePodUpdate`: "pod updates may not change fields
//! other than…"; `BindingREST.assignPod`: "pod … is already assigned to node …").

use serde_json::Value;

use super::called;
use crate::cluster::world::World;

/// Compares a pod with what it was before.
pub fn judge(world: &World, before: Option<&Value>, pod: &Value) -> Result<(), String> {
    let Some(node) = before.and_then(|before| before["spec"]["nodeName"].as_str()) else { return Ok(()) };
    world.history.judges("bound once");
    match pod["spec"]["nodeName"].as_str() {
        Some(now) if now == node => Ok(()),
        now => Err(format!("pod {} was bound to {node} and is to {now:?}", called(pod))),
    }
}
