//! Following the changes of one collection, in order, without a queue of one's own.
//!
//! A watcher is a position in the collection's ring of events, or behind it, in the history on disk. It takes what lies
//! behind the position when it is asked, so a slow one costs no memory; one that is slower than the history forgets ends
//! with [`WatchEnded::Compacted`] and has to list again. Revisions handed out never run ahead of the events: both are read
//! under one lock.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::watch;

use crate::raft::Machine;
use crate::record::{Event, Revision};

/// Most events in one batch, unless one transaction has more.
const BATCH_EVENTS: usize = 1024;
/// Most bytes of the records in one batch, with the same exception and the last record's.
const BATCH_BYTES: usize = 64 << 10;

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
            let found = state.collection_mut(&collection);
            if after < found.forgotten {
                return Err(Compacted(found.forgotten));
            }
            found.changed.subscribe()
        };
        Ok(Watcher { machine, collection, after, changed, stopped })
    }

    /// Everything up to here has been given.
    pub fn revision(&self) -> Revision {
        self.after
    }

    /// Whether it begins after a revision that has not come yet, of which therefore nobody can say anything.
    pub fn is_ahead(&self) -> bool {
        self.after > self.machine.state.read().applied
    }

    /// Waits for the next events. May be dropped and called again: nothing is lost.
    pub async fn next(&mut self) -> Result<Batch, WatchEnded> {
        loop {
            // Marked as seen before looking, so that what comes while looking wakes the wait below.
            let told = *self.changed.borrow_and_update();
            // What is there beyond is told before long, to all who watch together.
            if told <= self.after {
                self.wait().await?;
                continue;
            }
            let (batch, from_disk) = match self.look()? {
                Look::Memory(batch) => (batch, false),
                Look::Disk { ring_start } => (self.read_back(ring_start).await?, true),
            };
            self.after = batch.revision;
            if !batch.events.is_empty() {
                return Ok(batch);
            }
            // Nothing before the ring says nothing of the ring, and what is in it is told already.
            if from_disk || self.is_behind()? {
                continue;
            }
            self.wait().await?;
        }
    }

    /// Waits until something is told.
    async fn wait(&mut self) -> Result<(), WatchEnded> {
        // Whoever stops the keyspace wakes everybody after saying so: one thing to wait for is enough.
        if *self.stopped.borrow() {
            return Err(WatchEnded::Stopped);
        }
        self.changed.changed().await.map_err(|_| WatchEnded::Stopped)?;
        if *self.stopped.borrow() { Err(WatchEnded::Stopped) } else { Ok(()) }
    }

    /// What there is in memory now, without waiting. A batch without events says how far the collection is known to be
    /// unchanged: that is what a bookmark may say. Whoever is so far behind that the disk must be asked gets none, and no
    /// progress.
    pub fn pending(&mut self) -> Result<Batch, WatchEnded> {
        let batch = match self.look()? {
            Look::Memory(batch) => batch,
            Look::Disk { .. } => Batch { events: Vec::new(), revision: self.after },
        };
        self.after = batch.revision;
        Ok(batch)
    }

    /// The next events that are there already, from wherever they are kept. A batch without events says how far there are none.
    pub async fn there(&mut self) -> Result<Batch, WatchEnded> {
        let batch = match self.look()? {
            Look::Memory(batch) => batch,
            Look::Disk { ring_start } => self.read_back(ring_start).await?,
        };
        self.after = batch.revision;
        Ok(batch)
    }

    fn is_behind(&self) -> Result<bool, WatchEnded> {
        Ok(matches!(self.look()?, Look::Disk { .. }))
    }

    fn look(&self) -> Result<Look, WatchEnded> {
        let state = self.machine.state.read();
        let Some(collection) = state.collection(&self.collection) else {
            return Ok(Look::Memory(Batch { events: Vec::new(), revision: self.after }));
        };
        if self.after < collection.forgotten {
            return Err(Compacted(collection.forgotten).into());
        }
        if self.after < collection.ring_start {
            return Ok(Look::Disk { ring_start: collection.ring_start });
        }
        let ring = &collection.ring;
        let start = ring.partition_point(|event| event.record.revision <= self.after);
        let (mut end, mut bytes) = (start, 0);
        while let Some(event) = ring.get(end) {
            let together = end > start && event.record.revision == ring[end - 1].record.revision;
            if !together && (end - start >= BATCH_EVENTS || bytes >= BATCH_BYTES) {
                break;
            }
            bytes += event.record.bytes.len();
            end += 1;
        }
        let revision = match ring.get(end) {
            Some(_) => ring[end - 1].record.revision,
            None => state.applied.max(self.after),
        };
        Ok(Look::Memory(Batch { events: ring.range(start..end).cloned().collect(), revision }))
    }

    /// What the history has after the position; `ring_start` when there is nothing before the ring.
    async fn read_back(&self, ring_start: Revision) -> Result<Batch, WatchEnded> {
        let read = self.machine.read_history(&self.collection, self.after).await;
        let events = match read {
            Ok(Some(events)) => events,
            Ok(None) => return Ok(Batch { events: Vec::new(), revision: ring_start }),
            Err(error) => {
                tracing::debug!(%error, collection = %self.collection, "a watch is behind what can be read");
                let state = self.machine.state.read();
                let forgotten = state.collection(&self.collection).map_or(ring_start, |found| found.forgotten);
                return Err(Compacted(forgotten.max(ring_start)).into());
            }
        };
        let start = events.partition_point(|event| event.record.revision <= self.after);
        let events = events[start..].to_vec();
        let revision = events.last().map_or(ring_start, |event| event.record.revision);
        Ok(Batch { events, revision })
    }
}

enum Look {
    Memory(Batch),
    /// What comes next is in the history, or there is nothing before `ring_start`.
    Disk {
        ring_start: Revision,
    },
}

/// Wakes watchers who are to be woken later, until `stopped` says so.
pub(crate) async fn pace(machine: Arc<Machine>, mut stopped: watch::Receiver<bool>) {
    let mut next: Option<Instant> = None;
    loop {
        tokio::select! {
            () = tokio::time::sleep_until(next.unwrap_or_else(Instant::now).into()), if next.is_some() => {}
            () = machine.paced.notified(), if next.is_none() => {}
            _ = stopped.wait_for(|stopped| *stopped) => return,
        }
        next = machine.state.write().publish_waiting(Instant::now());
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::record::{EventKind, Guard, Key, Op, Value};
    use crate::{Config, Keyspace};

    #[tokio::test(flavor = "multi_thread")]
    async fn the_deletion_of_a_last_record_is_heard_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let keyspace = Keyspace::open(Config::new(dir.path())).await.unwrap();
        let key = Key::new("things", "a");
        let value = Value { bytes: bytes::Bytes::from_static(b"x"), revision_at: 0 };
        let put = keyspace.transact(vec![Op::Put { key: key.clone(), value, guard: Guard::Absent }]).await.unwrap();
        let gone = keyspace.transact(vec![Op::Delete { key, guard: Guard::Present }]).await.unwrap();
        keyspace.0.member.checkpoint().await.unwrap();
        keyspace.shutdown().await;
        let keyspace = Keyspace::open(Config::new(dir.path())).await.unwrap();
        let mut watcher = keyspace.watch("things", put.revision).unwrap();
        let batch = tokio::time::timeout(Duration::from_secs(10), watcher.next()).await.expect("it is told").unwrap();
        assert_eq!((batch.events.len(), batch.events[0].kind), (1, EventKind::Delete));
        assert_eq!(batch.events[0].record.revision, gone.revision);
        keyspace.shutdown().await;
    }
}
