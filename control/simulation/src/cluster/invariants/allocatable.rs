//! No two pods that live are bound to one node beyond what it can give.
//!
//! Kubernetes: the scheduler's NodeResourcesFit, whose promise the kubelet otherwise has to refuse (`OutOfcpu`); requests of pods that
//! are being deleted count until these are gone.

use std::collections::BTreeMap;

use serde_json::Value;

use super::lives;
use crate::cluster::clients::REQUEST_MILLIS;
use crate::cluster::world::World;

/// Counts the pods of each node.
pub fn judge<'a>(world: &World, at: u64, pods: impl Iterator<Item = &'a Value>) -> Result<(), String> {
    let mut taken: BTreeMap<&str, u64> = BTreeMap::new();
    for pod in pods.filter(|pod| lives(pod)) {
        if let Some(node) = pod["spec"]["nodeName"].as_str() {
            *taken.entry(node).or_default() += REQUEST_MILLIS;
        }
    }
    if taken.values().any(|taken| *taken == world.cpu_millis) {
        world.history.judges("a full node");
    }
    match taken.into_iter().find(|(_, taken)| *taken > world.cpu_millis) {
        Some((node, taken)) => {
            Err(format!("at {at} the pods of {node} ask for {taken} of its {} milli-CPUs", world.cpu_millis))
        }
        None => Ok(()),
    }
}
