//! The graph of owners and dependents, of all kinds. No I/O.
//!
//! An owner that was referred to but never seen is a node without an object (`seen: None`) until it is seen or found
//! absent. Names repeat a lot among ten thousand pods; what is stored per object is small and shares what it can.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

use crate::discovery::Kind;
use crate::informer::Key;

/// Finalizer of an owner that goes after its dependents.
pub(crate) const FOREGROUND: &str = "foregroundDeletion";
/// Finalizer of an owner that leaves its dependents behind.
pub(crate) const ORPHAN: &str = "orphan";

/// Owners of one object. What has more is nobody's dependent: to look for each of them would cost everybody else.
pub(crate) const OWNERS_MAX: usize = 1024;

pub(crate) type Uid = Arc<str>;

/// What the graph knows of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub kind: Arc<Kind>,
    pub key: Key,
    pub version: u64,
    pub owners: Arc<[Owner]>,
    pub deleting: bool,
    pub foreground: bool,
    pub orphan: bool,
}

impl Seen {
    /// Whether it waits for its dependents to go.
    pub(crate) fn is_waiting(&self) -> bool {
        self.deleting && self.foreground
    }

    pub(crate) fn is_orphaning(&self) -> bool {
        self.deleting && self.orphan
    }

    /// How much it is to remember.
    pub(crate) fn weight(&self) -> usize {
        1 + self.owners.len()
    }

    /// Whether it holds up an owner of this uid. A reference that means another one, as a whole, holds nobody up: who may write a
    /// ConfigMap could keep anybody's object otherwise.
    fn blocks(&self, uid: &str, owner: Option<&Seen>) -> bool {
        let is_meant = |reference: &Owner| owner.is_none_or(|owner| is_meant(owner, self, reference));
        self.owners.iter().any(|reference| &*reference.uid == uid && reference.block && is_meant(reference))
    }
}

/// A reference to an owner.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Owner {
    pub uid: Uid,
    pub api_version: Arc<str>,
    pub kind: Arc<str>,
    pub name: Arc<str>,
    pub block: bool,
    pub controller: bool,
}

impl Owner {
    /// As it is written.
    pub(crate) fn reference(&self) -> OwnerReference {
        OwnerReference {
            api_version: self.api_version.to_string(),
            kind: self.kind.to_string(),
            name: self.name.to_string(),
            uid: self.uid.to_string(),
            controller: self.controller.then_some(true),
            block_owner_deletion: self.block.then_some(true),
        }
    }
}

#[derive(Debug, Default)]
struct Node {
    seen: Option<Seen>,
    dependents: HashSet<Uid>,
}

/// The graph, and what its changes make necessary.
#[derive(Debug, Default)]
pub(crate) struct Graph {
    nodes: HashMap<Uid, Node>,
    /// What there is to remember of a group's objects, by the group of their kind: objects, and their references to owners.
    weights: HashMap<Arc<str>, usize>,
    /// Owner references that were made before: dependents of one owner share one.
    shared: HashMap<(Uid, bool), Arc<[Owner]>>,
    /// When `shared` is cleaned of what nobody uses.
    shared_max: usize,
}

/// What to look at after a change.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Work {
    /// Objects to look at now.
    pub now: Vec<Uid>,
    /// Owners nobody has seen: to be looked at, should they not appear soon.
    pub unseen: Vec<Uid>,
    /// Objects that refer to an owner of another namespace, which cannot be: to be told.
    pub invalid: Vec<(Uid, Owner)>,
}

impl Graph {
    pub(crate) fn get(&self, uid: &str) -> Option<&Seen> {
        self.nodes.get(uid)?.seen.as_ref()
    }

    /// Whether an owner of this uid is referred to and was not seen.
    pub(crate) fn is_unseen(&self, uid: &str) -> bool {
        self.nodes.get(uid).is_some_and(|node| node.seen.is_none())
    }

    /// Dependents, with what is known of them.
    pub(crate) fn dependents(&self, uid: &str) -> Vec<(Uid, Seen)> {
        let Some(node) = self.nodes.get(uid) else { return vec![] };
        let seen = node.dependents.iter().filter_map(|uid| Some((uid.clone(), self.get(uid)?.clone())));
        seen.collect()
    }

    /// Who refers to an owner, and how.
    pub(crate) fn references_to(&self, uid: &str) -> Vec<(Uid, Seen, Owner)> {
        let dependents = self.dependents(uid).into_iter();
        dependents
            .filter_map(|(dependent, seen)| {
                let owner = seen.owners.iter().find(|owner| &*owner.uid == uid)?.clone();
                Some((dependent, seen, owner))
            })
            .collect()
    }

    /// Objects of all kinds of a group, with their references to owners.
    pub(crate) fn weight(&self, group: &str) -> usize {
        self.weights.get(group).copied().unwrap_or_default()
    }

    fn unweigh(&mut self, seen: &Seen) {
        let group = &seen.kind.group;
        if let Some(weight) = self.weights.get_mut(group) {
            *weight -= seen.weight();
            if *weight == 0 {
                self.weights.remove(group);
            }
        }
    }

    /// Uids of all objects of a kind.
    pub(crate) fn of_kind(&self, kind: &Kind) -> HashSet<Uid> {
        let nodes = self.nodes.iter().filter(|(_, node)| node.seen.as_ref().is_some_and(|seen| *seen.kind == *kind));
        nodes.map(|(uid, _)| uid.clone()).collect()
    }

    /// One list of references for all that have the same; none where there are too many ([`OWNERS_MAX`]).
    pub(crate) fn share(&mut self, owners: &[OwnerReference]) -> Arc<[Owner]> {
        if owners.len() > OWNERS_MAX {
            return Arc::new([]);
        }
        let make = || {
            let owner = |owner: &OwnerReference| Owner {
                uid: owner.uid.as_str().into(),
                api_version: owner.api_version.as_str().into(),
                kind: owner.kind.as_str().into(),
                name: owner.name.as_str().into(),
                block: owner.block_owner_deletion.unwrap_or(false),
                controller: owner.controller.unwrap_or(false),
            };
            owners.iter().map(owner).collect::<Arc<[Owner]>>()
        };
        let made = make();
        if made.len() != 1 {
            return made;
        }
        let key = (made[0].uid.clone(), made[0].block);
        match self.shared.get(&key) {
            Some(shared) if *shared == made => shared.clone(),
            _ => {
                if self.shared.len() >= self.shared_max {
                    self.shared.retain(|_, shared| Arc::strong_count(shared) > 1);
                    self.shared_max = 64.max(2 * self.shared.len());
                }
                self.shared.insert(key, made.clone());
                made
            }
        }
    }

    /// An object is as told.
    pub(crate) fn put(&mut self, uid: &Uid, seen: Seen) -> Work {
        let mut work = Work::default();
        let before = self.nodes.entry(uid.clone()).or_default().seen.replace(seen.clone());
        before.iter().for_each(|before| self.unweigh(before));
        *self.weights.entry(seen.kind.group.clone()).or_default() += seen.weight();
        let (was_waiting, was_orphaning) =
            before.as_ref().map_or((false, false), |before| (before.is_waiting(), before.is_orphaning()));
        if seen.is_orphaning() && !was_orphaning {
            work.now.push(uid.clone());
        }
        if seen.is_waiting() && !was_waiting {
            work.now.push(uid.clone());
            work.now.extend(self.nodes.get(uid).iter().flat_map(|node| &node.dependents).cloned());
        }
        if before.is_none() {
            self.check_dependents(uid, &seen, &mut work);
        }
        let none: Arc<[Owner]> = Arc::new([]);
        let old = before.map_or(none, |before| before.owners);
        if Arc::ptr_eq(&old, &seen.owners) || old == seen.owners {
            return work;
        }
        let kept: HashSet<(&Uid, bool)> = seen.owners.iter().map(|new| (&new.uid, new.block)).collect();
        for owner in old.iter().filter(|old| !kept.contains(&(&old.uid, old.block))) {
            if !kept.contains(&(&owner.uid, !owner.block)) {
                self.unlink(&owner.uid, uid);
            }
            // It may have waited for this dependent.
            if self.get(&owner.uid).is_some_and(Seen::is_waiting) {
                work.now.push(owner.uid.clone());
            }
        }
        let known: HashSet<&Owner> = old.iter().collect();
        for reference in seen.owners.iter() {
            let is_new = !known.contains(reference);
            let node = self.nodes.entry(reference.uid.clone()).or_default();
            node.dependents.insert(uid.clone());
            match &node.seen {
                None => work.unseen.push(reference.uid.clone()),
                // A dependent that comes late to an owner that goes.
                Some(owner) if owner.deleting => work.now.push(uid.clone()),
                // It means an owner that is not what is there: whether there is one as it says is to be asked.
                Some(owner) if !is_meant(owner, &seen, reference) => {
                    work.now.push(uid.clone());
                    if is_new && !reaches(owner, &seen) {
                        work.invalid.push((uid.clone(), reference.clone()));
                    }
                }
                Some(_) => {}
            }
        }
        // With fewer owners than before it may have lost its last live one.
        if !old.is_empty() && !seen.owners.is_empty() {
            work.now.push(uid.clone());
        }
        work
    }

    /// An owner is seen for the first time: those that refer to something else by its uid are to be looked at.
    fn check_dependents(&self, uid: &Uid, owner: &Seen, work: &mut Work) {
        for (dependent, seen, reference) in self.references_to(uid) {
            if !is_meant(owner, &seen, &reference) {
                work.now.push(dependent.clone());
                if !reaches(owner, &seen) {
                    work.invalid.push((dependent, reference));
                }
            }
        }
    }

    /// An object is gone; what depends on it is to be looked at.
    pub(crate) fn remove(&mut self, uid: &str) -> Work {
        let mut work = Work::default();
        let Some(node) = self.nodes.get_mut(uid) else { return work };
        work.now.extend(node.dependents.iter().cloned());
        let seen = node.seen.take();
        if node.dependents.is_empty() {
            self.nodes.remove(uid);
        }
        seen.iter().for_each(|seen| self.unweigh(seen));
        for owner in seen.iter().flat_map(|seen| seen.owners.iter()) {
            self.unlink(&owner.uid, uid);
            if self.get(&owner.uid).is_some_and(Seen::is_waiting) {
                work.now.push(owner.uid.clone());
            }
        }
        work
    }

    fn unlink(&mut self, owner: &str, dependent: &str) {
        let Some(node) = self.nodes.get_mut(owner) else { return };
        node.dependents.remove(dependent);
        if node.dependents.is_empty() && node.seen.is_none() {
            self.nodes.remove(owner);
        }
    }

    /// Whether dependents that block the owner's deletion are left.
    pub(crate) fn is_blocked(&self, owner: &str) -> bool {
        let Some(node) = self.nodes.get(owner) else { return false };
        let seen = node.seen.as_ref();
        node.dependents.iter().any(|uid| self.get(uid).is_some_and(|dependent| dependent.blocks(owner, seen)))
    }
}

/// Whether the reference in `dependent` names this owner in everything: a right uid alone makes no owner.
pub(crate) fn is_meant(owner: &Seen, dependent: &Seen, reference: &Owner) -> bool {
    let group = reference.api_version.split_once('/').map_or("", |(group, _)| group);
    reaches(owner, dependent)
        && *owner.kind.group == *group
        && owner.kind.kind == reference.kind
        && owner.key.name == reference.name
}

/// Whether `owner` can own `dependent`: it is cluster-scoped or in the same namespace.
pub(crate) fn reaches(owner: &Seen, dependent: &Seen) -> bool {
    !owner.kind.namespaced || owner.key.namespace == dependent.key.namespace
}
