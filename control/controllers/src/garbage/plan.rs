//! The core of the garbage collector: what becomes of an object, given its owners. No I/O.

use std::collections::HashSet;
use std::sync::Arc;

use super::graph::{Owner, Seen, Uid};

/// What is known of an owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OwnerState {
    /// It is there.
    Solid,
    /// It is not there (any more).
    Absent,
    /// It waits for its dependents to go first.
    Waiting,
    /// A namespaced owner of a cluster-scoped object, which cannot be. Nothing is done to an object that has one (the
    /// reference neither).
    Invalid,
    /// Its kind is not served: whether it is there cannot be known.
    Unknown,
}

/// What becomes of an object.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It stays.
    Keep,
    /// It stays, without its references to these owners.
    Forget(Vec<Uid>),
    /// It goes. `unblock`: it no longer holds its owners up, because something that depends on it waits as well (a
    /// cycle).
    Delete { policy: &'static str, unblock: bool },
}

/// Decides about an object with owners.
pub(crate) fn fate(object: &Seen, owners: &[(Owner, OwnerState)], dependents: &[(Uid, Seen)]) -> Fate {
    if object.deleting || owners.is_empty() {
        return Fate::Keep;
    }
    if owners.iter().any(|(_, state)| matches!(state, OwnerState::Invalid | OwnerState::Unknown)) {
        return Fate::Keep;
    }
    let is = |wanted: OwnerState| owners.iter().filter(move |(_, state)| *state == wanted);
    let solid = is(OwnerState::Solid).next().is_some();
    if solid {
        let others = owners.iter().filter(|(_, state)| *state != OwnerState::Solid);
        let others: Vec<Uid> = others.map(|(owner, _)| owner.uid.clone()).collect();
        return if others.is_empty() { Fate::Keep } else { Fate::Forget(others) };
    }
    if is(OwnerState::Waiting).next().is_some() && !dependents.is_empty() {
        let unblock = object.owners.iter().any(|owner| owner.block)
            && dependents.iter().any(|(_, dependent)| dependent.is_waiting());
        return Fate::Delete { policy: "Foreground", unblock };
    }
    let policy = match object {
        Seen { orphan: true, .. } => "Orphan",
        Seen { foreground: true, .. } => "Foreground",
        _ => "Background",
    };
    Fate::Delete { policy, unblock: false }
}

/// The references that stay when those to `gone` are dropped.
pub(crate) fn without(owners: &Arc<[Owner]>, gone: &[Uid]) -> Vec<Owner> {
    let gone: HashSet<&Uid> = gone.iter().collect();
    owners.iter().filter(|owner| !gone.contains(&owner.uid)).cloned().collect()
}
