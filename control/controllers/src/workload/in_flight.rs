//! What was asked for and is not in the informer's store yet, so that nothing is created or deleted twice.
//!
//! A controller chooses the names of its objects itself, hence it knows them before it asks: a creation is in flight from
//! before the request until the informer shows the name, whichever of answer and event comes first. There are three
//! outcomes of a request: made, refused, and unknown. What is unknown stays in flight under its name until it is asked for
//! again by that name, so it cannot become two objects; what nobody has seen for long ([`OVERDUE`]) is looked for.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// After this a creation that was not seen is looked for, and a deletion is asked for again (tests do not wait so long).
pub(crate) const OVERDUE: Duration = Duration::from_secs(if cfg!(test) { 2 } else { 30 });

/// Requests in flight, per uid of the owner. Read it *before* the store. Bounded by what is wanted of each owner.
#[derive(Debug, Default)]
pub(crate) struct InFlight {
    owners: Mutex<HashMap<Arc<str>, Entry>>,
}

#[derive(Debug, Default)]
struct Entry {
    creating: HashMap<Arc<str>, Creation>,
    deleting: HashMap<Arc<str>, Instant>,
}

#[derive(Debug, Clone)]
struct Creation {
    since: Instant,
    unknown: bool,
    /// The node that it is for, where there is one for each.
    place: Option<Arc<str>>,
}

/// What is in flight for an owner.
#[derive(Debug, Default)]
pub(crate) struct Flight {
    /// Names that were asked for; the answer was good, or is still to come.
    pub sent: Vec<Arc<str>>,
    /// Names whose creation has an unknown outcome.
    pub unknown: Vec<Arc<str>>,
    /// Those of `sent` that should have been seen by now.
    pub overdue: Vec<Arc<str>>,
    /// Uids whose deletion was asked for.
    pub deleting: HashSet<Arc<str>>,
    /// For which nodes names were asked for.
    pub places: HashMap<Arc<str>, Arc<str>>,
}

impl Flight {
    /// Leaves out what the store shows.
    pub(crate) fn without(mut self, names: &HashSet<Arc<str>>) -> Self {
        for list in [&mut self.sent, &mut self.unknown, &mut self.overdue] {
            list.retain(|name| !names.contains(name));
        }
        self
    }
}

impl InFlight {
    /// What is in flight for an owner.
    pub(crate) fn of(&self, owner: &str) -> Flight {
        let mut owners = self.owners.lock();
        let mut flight = Flight::default();
        let Some(entry) = owners.get_mut(owner) else { return flight };
        entry.deleting.retain(|_, since| since.elapsed() < OVERDUE);
        for (name, creation) in &entry.creating {
            if let Some(place) = &creation.place {
                flight.places.insert(name.clone(), place.clone());
            }
            if creation.unknown {
                flight.unknown.push(name.clone());
                continue;
            }
            flight.sent.push(name.clone());
            if creation.since.elapsed() >= OVERDUE {
                flight.overdue.push(name.clone());
            }
        }
        flight.deleting.extend(entry.deleting.keys().cloned());
        if entry.creating.is_empty() && entry.deleting.is_empty() {
            owners.remove(owner);
        }
        flight
    }

    /// The creation is asked for: for a node, if there is one for each.
    pub(crate) fn creating(&self, owner: &str, name: &Arc<str>, place: Option<&Arc<str>>) {
        let creation = Creation { since: Instant::now(), unknown: false, place: place.cloned() };
        self.owners.lock().entry(owner.into()).or_default().creating.insert(name.clone(), creation);
    }

    /// The creation is known to have been done.
    pub(crate) fn done(&self, owner: &str, name: &Arc<str>) {
        self.mark(owner, name, false);
    }

    /// Nobody knows whether it was created.
    pub(crate) fn unknown(&self, owner: &str, name: &Arc<str>) {
        self.mark(owner, name, true);
    }

    fn mark(&self, owner: &str, name: &Arc<str>, unknown: bool) {
        let mut owners = self.owners.lock();
        let creating = &mut owners.entry(owner.into()).or_default().creating;
        let place = creating.get(name).and_then(|known| known.place.clone());
        creating.insert(name.clone(), Creation { since: Instant::now(), unknown, place });
    }

    pub(crate) fn deleting(&self, owner: &str, uid: &Arc<str>) {
        self.owners.lock().entry(owner.into()).or_default().deleting.insert(uid.clone(), Instant::now());
    }

    /// The creation was refused, or its object was seen, or is known not to be there.
    pub(crate) fn created(&self, owner: &str, name: &str) {
        self.end(owner, |entry| {
            entry.creating.remove(name);
        });
    }

    /// The deletion was refused, or was seen.
    pub(crate) fn deleted(&self, owner: &str, uid: &str) {
        self.end(owner, |entry| {
            entry.deleting.remove(uid);
        });
    }

    /// The informer shows this state of an object.
    pub(crate) fn seen(&self, owner: &str, name: &str, uid: &str, going: bool) {
        self.end(owner, |entry| {
            entry.creating.remove(name);
            if going {
                entry.deleting.remove(uid);
            }
        });
    }

    /// The owner is gone, and what it asked for nobody's.
    pub(crate) fn forget(&self, owner: &str) {
        self.owners.lock().remove(owner);
    }

    /// As if all that the owner has asked for had been asked for so much earlier.
    #[cfg(test)]
    pub(crate) fn age(&self, owner: &str, by: Duration) {
        let mut owners = self.owners.lock();
        let Some(entry) = owners.get_mut(owner) else { return };
        let since = entry.creating.values_mut().map(|creation| &mut creation.since);
        for since in since.chain(entry.deleting.values_mut()) {
            *since = since.checked_sub(by).expect("the machine runs for longer");
        }
    }

    fn end(&self, owner: &str, change: impl FnOnce(&mut Entry)) {
        let mut owners = self.owners.lock();
        let Some(entry) = owners.get_mut(owner) else { return };
        change(entry);
        if entry.creating.is_empty() && entry.deleting.is_empty() {
            owners.remove(owner);
        }
    }
}
