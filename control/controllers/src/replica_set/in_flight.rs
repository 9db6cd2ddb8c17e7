//! What was asked for and is not in the informer's store yet, so that nothing is created or deleted twice.
//!
//! The controller chooses the names of pods itself, hence it knows them before it asks: a creation is in flight from
//! before the request until the informer shows the name, whichever of answer and event comes first. A request whose
//! outcome is unknown is repeated with the same name, so it cannot make two pods.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::informer::Pod;

/// After this an entry is void: the pod was created and deleted while the watch was broken.
const EXPIRES: Duration = Duration::from_secs(60);

/// Requests in flight, per uid of the ReplicaSet. Read it *before* the store.
#[derive(Debug, Default)]
pub(crate) struct InFlight {
    sets: Mutex<HashMap<Arc<str>, Set>>,
}

#[derive(Debug, Default)]
struct Set {
    creating: HashMap<Arc<str>, Instant>,
    deleting: HashMap<Arc<str>, Instant>,
}

impl InFlight {
    /// Names being created and uids being deleted for a ReplicaSet.
    pub(crate) fn of(&self, set: &str) -> (Vec<Arc<str>>, HashSet<Arc<str>>) {
        let mut sets = self.sets.lock();
        let Some(entry) = sets.get_mut(set) else { return Default::default() };
        entry.creating.retain(|_, since| since.elapsed() < EXPIRES);
        entry.deleting.retain(|_, since| since.elapsed() < EXPIRES);
        let answer = (entry.creating.keys().cloned().collect(), entry.deleting.keys().cloned().collect());
        if entry.creating.is_empty() && entry.deleting.is_empty() {
            sets.remove(set);
        }
        answer
    }

    pub(crate) fn creating(&self, set: &str, name: &Arc<str>) {
        let mut sets = self.sets.lock();
        sets.entry(set.into()).or_default().creating.insert(name.clone(), Instant::now());
    }

    pub(crate) fn deleting(&self, set: &str, uid: &Arc<str>) {
        let mut sets = self.sets.lock();
        sets.entry(set.into()).or_default().deleting.insert(uid.clone(), Instant::now());
    }

    /// The creation was refused, or its pod was seen.
    pub(crate) fn created(&self, set: &str, name: &str) {
        self.end(set, |entry| {
            entry.creating.remove(name);
        });
    }

    /// The deletion was refused, or was seen.
    pub(crate) fn deleted(&self, set: &str, uid: &str) {
        self.end(set, |entry| {
            entry.deleting.remove(uid);
        });
    }

    /// The informer shows this state of a pod.
    pub(crate) fn seen(&self, pod: &Pod, gone: bool) {
        let Some(owner) = pod.owners.iter().find(|owner| owner.controller == Some(true)) else { return };
        self.end(&owner.uid, |entry| {
            entry.creating.remove(&pod.key.name);
            if gone || pod.deleting.is_some() {
                entry.deleting.remove(&pod.uid);
            }
        });
    }

    fn end(&self, set: &str, change: impl FnOnce(&mut Set)) {
        let mut sets = self.sets.lock();
        let Some(entry) = sets.get_mut(set) else { return };
        change(entry);
        if entry.creating.is_empty() && entry.deleting.is_empty() {
            sets.remove(set);
        }
    }
}
