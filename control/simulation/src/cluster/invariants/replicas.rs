//! A ReplicaSet never has more pods that are not being deleted than it was ever told to have: neither a lost answer nor a change of
//! leader makes one too many.
//!
//! Kubernetes allows a surplus for a moment (its expectations end after five minutes, and two controllers may act at a time); here
//! a creation without an answer keeps its name, and a deposed leader's cannot happen (ARCHITECTURE.md, "A creation has three
//! outcomes", "Duties are fenced in the log"), so that none is allowed.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{controller, lives, uid};
use crate::cluster::world::World;

/// Notes what a ReplicaSet wants from `at` on.
pub fn wanted(world: &World, at: u64, set: &Value) {
    let replicas = set["spec"]["replicas"].as_u64().unwrap_or(1);
    world.history.wanted.lock().entry(uid(set)).or_default().insert(at, replicas);
}

/// Notes how many pods each has at `at`.
pub fn owned<'a>(world: &World, at: u64, pods: impl Iterator<Item = &'a Value>) {
    let mut count: BTreeMap<&str, u64> = BTreeMap::new();
    for pod in pods.filter(|pod| lives(pod) && pod["metadata"]["deletionTimestamp"].is_null()) {
        if let Some(owner) = controller(pod) {
            *count.entry(owner).or_default() += 1;
        }
    }
    world.history.owned.lock().extend(count.into_iter().map(|(owner, count)| (at, owner.to_owned(), count)));
}

/// Compares, when everything is known.
pub fn judge(world: &World) -> Result<(), String> {
    let wanted = world.history.wanted.lock();
    for (at, owner, count) in world.history.owned.lock().iter() {
        // Where all watches had to begin anew, what it wanted then is not known.
        let Some(most) = wanted.get(owner).and_then(|wanted| wanted.range(..=at).map(|(_, replicas)| *replicas).max())
        else {
            continue;
        };
        world.history.judges("replicas");
        if *count > most {
            return Err(format!("at {at} the ReplicaSet {owner} has {count} pods, and never wanted more than {most}"));
        }
    }
    Ok(())
}
