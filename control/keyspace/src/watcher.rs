//! Following the changes of one collection, in order, without a queue of one's own.
//!
//! A watcher is a position in the collection's ring of events. It takes what lies behind the position when it is asked,
//! so a slow one costs no memory; one that is slower than the ring forgets ends with [`WatchEnded::Compacted`] and has
//! to list again. Revisions handed out never run ahead of the events: both are read under one lock.

use std::fmt;
use std::sync::Arc;

use tokio::sync::watch;

use crate::raft::Machine;
use crate::record::{Event, Revision};

/// Most events in one batch, unless one transaction has more.
const BATCH_EVENTS: usize = 1024;

/// What lies before this revision is forgotten.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("revisions before {} are forgotten", self.0)]
pub struct Compacted(
    /// The oldest revision that can still be asked for.
    pub Revision,
);

/// Why a watcher gives no more events.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum WatchEnded {
    /// It fell behind what is remembered; list again, and watch from there.
    #[error(transparent)]
    Compacted(#[from] Compacted),
    /// The keyspace was shut down.
    #[error("the keyspace was shut down")]
    Stopped,
}

/// Events that follow what was given before.
#[derive(Clone, Default)]
pub struct Batch {
    /// In the order of their revisions; those of one transaction are never apart.
    pub events: Vec<Arc<Event>>,
    /// Everything of the collection up to here has been given, this batch included.
    pub revision: Revision,
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let events = self.events.iter().map(|event| (event.kind, &event.record));
        f.debug_struct("Batch").field("revision", &self.revision).field("events", &events.collect::<Vec<_>>()).finish()
    }
}

/// Follows one collection.
pub struct Watcher {
    machine: Arc<Machine>,
    collection: Arc<str>,
    /// Everything up to here has been given.
    after: Revision,
    changed: watch::Receiver<Revision>,
    stopped: watch::Receiver<bool>,
}

impl Watcher {
    /// Begins after `after`, which may be in the future.
    pub(crate) fn new(
        machine: Arc<Machine>,
        collection: &str,
        after: Revision,
        stopped: watch::Receiver<bool>,
    ) -> Result<Watcher, Compacted> {
        let collection: Arc<str> = Arc::from(collection);
        let changed = {
            let mut state = machine.state.write();
            let oldest = match state.collection(&collection) {
                Some(found) => found.forgotten,
                None => state.compacted,
            };
            if after < oldest {
                return Err(Compacted(oldest));
            }
            state.collection_mut(&collection).changed.subscribe()
        };
        Ok(Watcher { machine, collection, after, changed, stopped })
    }

    /// Everything up to here has been given.
    pub fn revision(&self) -> Revision {
        self.after
    }

    /// Waits for the next events. May be dropped and called again: nothing is lost.
    pub async fn next(&mut self) -> Result<Batch, WatchEnded> {
        loop {
            // Marked as seen before looking, so that what comes while looking wakes the wait below.
            self.changed.borrow_and_update();
            let batch = self.pending()?;
            if !batch.events.is_empty() {
                return Ok(batch);
            }
            tokio::select! {
                changed = self.changed.changed() => changed.map_err(|_| WatchEnded::Stopped)?,
                stopped = self.stopped.wait_for(|stopped| *stopped) => {
                    let _ = stopped;
                    return Err(WatchEnded::Stopped);
                }
            }
        }
    }

    /// What there is now, without waiting. A batch without events says how far the collection is known to be unchanged:
    /// that is what a bookmark may say.
    pub fn pending(&mut self) -> Result<Batch, WatchEnded> {
        let batch = {
            let state = self.machine.state.read();
            let applied = state.applied;
            let Some(collection) = state.collection(&self.collection) else {
                return Ok(Batch { events: Vec::new(), revision: self.after });
            };
            if self.after < collection.forgotten {
                return Err(Compacted(collection.forgotten).into());
            }
            let ring = &collection.ring;
            let start = ring.partition_point(|event| event.record.revision <= self.after);
            let mut end = ring.len().min(start + BATCH_EVENTS);
            while end > start && end < ring.len() && ring[end].record.revision == ring[end - 1].record.revision {
                end += 1;
            }
            let revision = match ring.get(end) {
                Some(_) => ring[end - 1].record.revision,
                None => applied.max(self.after),
            };
            Batch { events: ring.range(start..end).cloned().collect(), revision }
        };
        self.after = batch.revision;
        Ok(batch)
    }
}

impl fmt::Debug for Watcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watcher")
            .field("collection", &self.collection)
            .field("after", &self.after)
            .finish_non_exhaustive()
    }
}
