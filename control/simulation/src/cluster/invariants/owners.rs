//! Every owner is alive, or what it owned goes.
//!
//! Kubernetes' garbage collection ("objects without owner references that exist are deleted", kubernetes-api §20.9).

use std::collections::BTreeSet;

use serde_json::Value;

use super::{called, uid};

/// What is left of somebody who is gone, among `objects`.
pub fn judge<'a>(objects: impl Iterator<Item = &'a Value> + Clone) -> Result<(), String> {
    let alive: BTreeSet<String> = objects.clone().map(uid).collect();
    for object in objects {
        let owners = object["metadata"]["ownerReferences"].as_array().map(Vec::as_slice).unwrap_or_default();
        for owner in owners {
            if !alive.contains(owner["uid"].as_str().unwrap_or_default()) {
                return Err(format!("{} {} is there without its owner {owner}", object["kind"], called(object)));
            }
        }
    }
    Ok(())
}
