//! A read that asks for no revision sees everything that anybody was told before it began.
//!
//! etcd's API guarantees ("linearizability": a read is of the latest revision; "KV: revision only grows"), which Kubernetes' lists and
//! gets without a resourceVersion have ("Most Recent").

use crate::cluster::world::World;

/// Judges a list that began when everything up to `least` had been told.
pub fn judge(world: &World, least: u64, listed: u64) -> Result<(), String> {
    world.history.judges("revisions");
    match listed < least {
        true => Err(format!("a list reads revision {listed}, after somebody was told of {least}")),
        false => Ok(()),
    }
}
