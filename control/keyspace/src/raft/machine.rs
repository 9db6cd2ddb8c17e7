//! The state machine as openraft wants it: applies entries to the [state](crate::state) in memory, and writes what
//! changed to the [checkpoint](crate::checkpoint) when it is told to.
//!
//! Who reads takes the state's lock only to clone a root; who applies holds it for a few hundred entries at most. An
//! answer goes out after the lock is released and watchers are woken, so whoever got it finds what it did.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{Stream, StreamExt};
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine, Snapshot};
use openraft::{EntryPayload, OptionalSend, StoredMembership};
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, Semaphore, watch};

use super::codec::{self, Head};
use super::found::Found;
use super::snapshot::{Content, SnapshotData};
use super::types::{LogId, MemberId, Reply, SnapshotMeta, Stored, TypeConfig};
use crate::checkpoint::{Checkpoint, Loaded};
use crate::history::window::Window;
use crate::history::{Events, History};
use crate::host::{self, blocking};
use crate::record::{Key, Record, Revision};
use crate::renewals::Renewals;
use crate::seal::SecretKey;
use crate::state::{Collection, Records, Retention, State, Unwritten};

/// Entries applied under one hold of the lock.
const ENTRIES_PER_LOCK: usize = 256;
/// The same in bytes, but for the last entry: contents are copied under it.
const BYTES_PER_LOCK: usize = 1 << 20;
/// Bytes of changes that make it worth while to write them to the history at once.
const HISTORY_DUE_BYTES: usize = 1 << 20;
/// Bytes of changes of one collection that are written to the history in one go.
const HISTORY_PIECE_BYTES: usize = 4 << 20;
/// Most readers of the history at a time; each holds a block, and a thread while it reads.
const HISTORY_READERS: usize = 4;

/// How long after a snapshot found no space it is tried again.
const INSTALL_AGAIN: Duration = Duration::from_secs(1);

type RaftSnapshot = Snapshot<super::types::LeaderId, MemberId, openraft::BasicNode, SnapshotData>;

/// What the machine shares with those who read.
pub struct Machine {
    /// The state.
    pub state: RwLock<State>,
    /// The last applied revision, for those who wait for one.
    pub applied: watch::Sender<Revision>,
    /// Changed together with `state`, under its lock.
    head: Mutex<Head>,
    checkpoint: Checkpoint,
    /// What the checkpoint holds.
    covered: Mutex<Head>,
    /// Held while a checkpoint is written, so that they are written in the order of what is in them.
    writing: tokio::sync::Mutex<()>,
    /// Whether nobody waits for space any more.
    given_up: watch::Sender<bool>,
    /// The changes that are no longer in the state.
    pub history: Arc<History>,
    /// What is newer than the state, while this member leads.
    pub(crate) renewals: Renewals,
    /// Says that watchers are to be woken later.
    pub paced: Notify,
    /// Says that much was applied which the history does not have.
    pub history_due: Notify,
    /// Held by who writes to the history. Whether the last attempt failed, which is said once.
    history_failed: Mutex<bool>,
    history_readers: Arc<Semaphore>,
    /// Members that were found elsewhere than where the group knew them to be.
    pub found: Found,
}

impl Machine {
    /// The machine as `checkpoint` left it.
    pub fn new(
        checkpoint: Checkpoint,
        loaded: Loaded,
        retention: Retention,
        history: &Path,
        root: Option<SecretKey>,
    ) -> Result<Arc<Machine>, io::Error> {
        let head = codec::head(&loaded.meta)?;
        let revision = revision(head.applied.as_ref());
        let mut state = State::with_root(retention, root);
        state.replace(revision, loaded.records);
        let history = Arc::new(History::open(history, revision, retention.age, retention.bytes));
        state.remember(history.floor(), history.forgotten());
        Ok(Arc::new(Machine {
            state: RwLock::new(state),
            applied: watch::channel(revision).0,
            covered: Mutex::new(head.clone()),
            head: Mutex::new(head),
            checkpoint,
            writing: tokio::sync::Mutex::new(()),
            given_up: watch::Sender::new(false),
            history,
            renewals: Renewals::default(),
            history_due: Notify::new(),
            paced: Notify::new(),
            history_failed: Mutex::new(false),
            history_readers: Arc::new(Semaphore::new(HISTORY_READERS)),
            found: Found::default(),
        }))
    }

    /// Closes the checkpoint's file, once nobody writes or reads it any more.
    pub fn close(&self) {
        self.checkpoint.close();
    }

    /// Whether the checkpoint's disk failed in a way that nothing can be known of it any more.
    pub fn is_broken(&self) -> bool {
        self.checkpoint.is_broken()
    }

    /// Where `member` is reached, by the membership that was applied last; `None` before it is in one.
    pub fn address_of(&self, member: MemberId) -> Option<String> {
        self.head.lock().membership.membership().get_node(&member).map(|node| node.addr.clone())
    }

    /// Index of the last entry in the checkpoint.
    pub fn checkpointed(&self) -> Option<u64> {
        self.covered.lock().applied.map(|id| id.index)
    }

    /// The last entry in the checkpoint.
    #[cfg(test)]
    pub fn covered(&self) -> Option<LogId> {
        self.covered.lock().applied
    }

    /// Applies what came, a bounded number of entries under one lock, and answers.
    ///
    /// Says whether the history is so far behind that it must be written before more is applied, so that nothing is lost of
    /// what the log says at start.
    fn apply_some(&self, entries: &mut Vec<EntryResponder<TypeConfig>>) -> bool {
        let now = host::now();
        let mut replies = Vec::with_capacity(entries.len());
        let mut changed: Vec<Arc<str>> = Vec::new();
        let (applied, is_behind) = {
            let mut state = self.state.write();
            let mut head = self.head.lock();
            for (entry, responder) in entries.drain(..) {
                let revision = Revision::new(entry.log_id.index);
                head.applied = Some(entry.log_id);
                let reply = match entry.payload {
                    EntryPayload::Normal(transaction) => {
                        let outcome = state.apply(revision, transaction.ops(), now);
                        for record in outcome.iter().flat_map(|committed| &committed.records) {
                            if !changed.contains(&record.key.collection) {
                                changed.push(record.key.collection.clone());
                            }
                        }
                        Some(outcome)
                    }
                    EntryPayload::Blank => {
                        state.skip(revision);
                        None
                    }
                    EntryPayload::Membership(membership) => {
                        head.membership = StoredMembership::new(Some(entry.log_id), membership);
                        let known = head.membership.membership();
                        self.found.told(|member| known.get_node(&member).map(|node| node.addr.as_str()));
                        state.skip(revision);
                        None
                    }
                };
                replies.extend(responder.map(|responder| (responder, reply)));
            }
            if state.publish(changed, now) {
                self.paced.notify_one();
            }
            if state.unwritten_bytes >= HISTORY_DUE_BYTES {
                self.history_due.notify_one();
            }
            (state.applied, state.unwritten_bytes >= state.memory_max() / 2)
        };
        self.applied.send_replace(applied);
        for (responder, reply) in replies {
            responder.send(Reply(reply));
        }
        is_behind
    }

    async fn apply_and_keep_up(self: &Arc<Machine>, entries: &mut Vec<EntryResponder<TypeConfig>>) -> io::Result<()> {
        if self.apply_some(entries) {
            let machine = self.clone();
            blocking(move || {
                machine.write_history();
                Ok(())
            })
            .await?;
        }
        Ok(())
    }

    /// Writes to the history what is in memory only, and returns the collections for which that failed: their window ends where
    /// the memory does. Blocks on the disk.
    pub fn write_history(&self) -> Vec<Arc<str>> {
        let mut failed = self.history_failed.lock();
        let target = self.state.read().applied;
        let mut broken = Vec::new();
        loop {
            let unwritten = self.state.read().unwritten(target, HISTORY_PIECE_BYTES, &broken);
            let is_last = unwritten.is_empty();
            let mut done = Vec::with_capacity(unwritten.len());
            for Unwritten { collection, after, gap, events, upto } in unwritten {
                match self.history.append(&collection, after, gap, &events) {
                    Ok(forgotten) => done.push((collection, upto, forgotten)),
                    Err(error) => {
                        if !std::mem::replace(&mut *failed, true) {
                            tracing::error!(%error, "write the watch history; until it succeeds clients that were away list again");
                        }
                        broken.push(collection);
                    }
                }
            }
            let mut state = self.state.write();
            state.written(&done, &broken);
            state.forget(host::now());
            if is_last {
                break;
            }
        }
        if broken.is_empty() && std::mem::replace(&mut *failed, false) {
            tracing::info!("the watch history is written again");
        }
        broken
    }

    /// Lets go of what the history need not keep. Blocks on the disk.
    pub fn trim_history(&self, now: Instant) {
        let forgotten = self.history.trim(now);
        self.state.write().history_forgot(&forgotten);
    }

    /// Events of `collection` after `after` from the history; none when there are no more. `Err` when they are lost.
    pub async fn read_history(
        self: &Arc<Machine>,
        collection: &Arc<str>,
        after: Revision,
    ) -> Result<Option<Events>, io::Error> {
        let place = self.history_readers.clone().acquire_owned().await.map_err(io::Error::other)?;
        let (machine, collection) = (self.clone(), collection.clone());
        blocking(move || {
            let _place = place;
            let keys = machine.state.read().keys().clone();
            let read = machine.history.read(&collection, after, Some(&keys));
            if let Err(error) = &read
                && matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
            {
                tracing::error!(%error, %collection, %after, "read the watch history; what is damaged is forgotten");
                if let Some(forgotten) = machine.history.lose(&collection, after) {
                    machine.state.write().history_forgot(&[(collection, forgotten)]);
                }
            }
            read
        })
        .await
    }

    /// Writes what changed since the last checkpoint. After an error everything is as before, and it can be tried again.
    pub async fn write_checkpoint(self: &Arc<Machine>) -> Result<(), io::Error> {
        let _writing = self.writing.lock().await;
        let machine = self.clone();
        blocking(move || machine.write_changes()).await
    }

    /// The same, in the caller's thread.
    pub fn write_changes(&self) -> io::Result<()> {
        let (head, mut taken) = {
            let mut state = self.state.write();
            let bytes = std::mem::take(&mut state.dirty_bytes);
            let changes = std::mem::take(&mut state.dirty);
            (self.head.lock().clone(), Taken { machine: self, changes, bytes })
        };
        if head == *self.covered.lock() {
            return Ok(());
        }
        // First the history up to here: the log will not say it again. If that fails, the window begins anew.
        let broken = self.write_history();
        if let Err(error) = self.history.cover(revision(head.applied.as_ref()), &broken) {
            tracing::error!(%error, "write the head of the watch history; it is forgotten at the next start");
        }
        self.checkpoint.write(&codec::encode_head(&head), &taken.changes)?;
        (taken.changes, taken.bytes) = Default::default();
        *self.covered.lock() = head;
        Ok(())
    }

    /// Has these records as if they had been applied up to `head`, with nothing before; on disk only. Blocks on the disk.
    pub fn begin_with(&self, head: &Head, records: &HashMap<Arc<str>, Records>) -> io::Result<()> {
        self.checkpoint.replace(&codec::encode_head(head), records)?;
        let revision = revision(head.applied.as_ref());
        self.history.reset(revision);
        self.history.cover(revision, &[])
    }

    /// The checkpoint as a snapshot. One that cannot be read now says so to whoever wants its content.
    fn snapshot(&self) -> RaftSnapshot {
        let read = self.checkpoint.reader().and_then(|reader| Ok((codec::head(reader.meta())?, reader)));
        let (head, data) = match read {
            Ok((head, reader)) => {
                let window = self.window(revision(head.applied.as_ref()));
                (head, SnapshotData::Checkpoint(Box::new((reader, window))))
            }
            Err(error) => (self.covered.lock().clone(), SnapshotData::Unreadable(error)),
        };
        let meta = SnapshotMeta { last_log_id: head.applied, last_membership: head.membership };
        Snapshot { meta, snapshot: data }
    }

    /// What is remembered of the past up to `upto`.
    fn window(&self, upto: Revision) -> Window {
        let forgotten: Vec<_> = {
            let state = self.state.read();
            let unwritten = state.unwritten(upto, 0, &[]);
            let lacks = |name: &Arc<str>| unwritten.iter().any(|unwritten| unwritten.collection == *name);
            let one = |(name, found): (&Arc<str>, &Collection)| {
                (name.clone(), if lacks(name) { upto } else { found.forgotten })
            };
            state.collections().map(one).collect()
        };
        Window::new(self.history.clone(), upto, &forgotten)
    }

    /// Has what a snapshot says in the place of everything, and waits for space for it: openraft ends when installing fails, and a
    /// full disk is no reason for that.
    async fn install(self: &Arc<Machine>, head: Head, data: SnapshotData) -> Result<(), io::Error> {
        let machine = self.clone();
        let content = blocking(move || {
            // A revision is written once: what has it is what the snapshot has.
            data.content(|record| {
                let state = machine.state.read();
                let known = state.record(&record.key).filter(|known| known.revision == record.revision);
                known.filter(|known| known.stored() == record.stored()).cloned()
            })
        });
        let mut content = content.await?;
        let mut given_up = self.given_up.subscribe();
        let mut is_said = false;
        loop {
            let (machine, head) = (self.clone(), head.clone());
            let writing = self.writing.lock().await;
            let installed = blocking(move || {
                let installed = machine.checkpoint.replace(&codec::encode_head(&head), &content.records);
                match installed {
                    Ok(()) => {
                        machine.have(head, content);
                        Ok(None)
                    }
                    Err(error) if host::is_no_space(&error) && !machine.is_broken() => Ok(Some((content, error))),
                    Err(error) => Err(error),
                }
            });
            let error;
            (content, error) = match installed.await? {
                None => return Ok(()),
                Some(again) => again,
            };
            drop(writing);
            if !std::mem::replace(&mut is_said, true) {
                tracing::error!(%error, "write what another server has sent; it is tried again");
            }
            tokio::select! {
                () = tokio::time::sleep(INSTALL_AGAIN) => (),
                _ = given_up.wait_for(|given_up| *given_up) => return Err(error),
            }
        }
    }

    /// Has in memory what the checkpoint has now; blocks on the disk.
    fn have(&self, head: Head, Content { records, past }: Content) {
        *self.covered.lock() = head.clone();
        let revision = revision(head.applied.as_ref());
        let _no_history = self.history_failed.lock();
        self.history.reset(revision);
        {
            let mut state = self.state.write();
            state.replace(revision, records);
            *self.head.lock() = head;
        }
        self.applied.send_replace(revision);
        // Until it is whole, nothing of it is read: the state says that it is forgotten.
        self.history.take_over(revision, past);
        self.state.write().remember(self.history.floor(), self.history.forgotten());
    }

    /// Ends waiting for space.
    pub fn give_up_waiting(&self) {
        self.given_up.send_replace(true);
    }
}

/// Changes on their way to the checkpoint. Whatever ends that before they are there, a panic too, gives them back: the next
/// one would lack them.
struct Taken<'a> {
    machine: &'a Machine,
    changes: HashMap<Key, Option<Arc<Record>>>,
    bytes: usize,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if self.changes.is_empty() && self.bytes == 0 {
            return;
        }
        let mut state = self.machine.state.write();
        for (key, record) in std::mem::take(&mut self.changes) {
            // What was written since is newer.
            state.dirty.entry(key).or_insert(record);
        }
        state.dirty_bytes += self.bytes;
    }
}

fn revision(applied: Option<&LogId>) -> Revision {
    Revision::new(applied.map_or(0, |id| id.index))
}

/// openraft's handle on the machine.
pub struct Applier(pub Arc<Machine>);

/// Writes a checkpoint; where that fails it gives the last one: openraft ends when building fails, and a full disk is no
/// reason for that.
pub struct Builder(Arc<Machine>);

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> Result<RaftSnapshot, io::Error> {
        if let Err(error) = self.0.write_checkpoint().await
            && self.0.checkpointed().is_none()
        {
            return Err(error);
        }
        let machine = self.0.clone();
        blocking(move || Ok(machine.snapshot())).await
    }
}

impl RaftStateMachine<TypeConfig> for Applier {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, Stored), io::Error> {
        let head = self.0.head.lock().clone();
        Ok((head.applied, head.membership))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        let (mut some, mut bytes) = (Vec::new(), 0);
        while let Some(entry) = entries.next().await {
            let entry = entry?;
            if let EntryPayload::Normal(transaction) = &entry.0.payload {
                bytes += transaction.size();
            }
            some.push(entry);
            if some.len() >= ENTRIES_PER_LOCK || bytes >= BYTES_PER_LOCK {
                self.0.apply_and_keep_up(&mut some).await?;
                bytes = 0;
            }
        }
        if !some.is_empty() {
            self.0.apply_and_keep_up(&mut some).await?;
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder(self.0.clone())
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: SnapshotData) -> Result<(), io::Error> {
        let head = Head { applied: meta.last_log_id, membership: meta.last_membership.clone() };
        self.0.install(head, snapshot).await?;
        // Who was where in between is not known.
        self.0.found.forget();
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<RaftSnapshot>, io::Error> {
        // A file in which nothing was written yet is none.
        if self.0.checkpointed().is_none() {
            return Ok(None);
        }
        let machine = self.0.clone();
        blocking(move || Ok(Some(machine.snapshot()))).await
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::JoinHandle;

    use super::super::Member;
    use super::super::log::Log;
    use super::super::snapshot::{Parts, Receiving};
    use super::super::types::LeaderId;
    use super::*;
    use crate::dir::Dir;
    use crate::host::Host;
    use crate::record::Value;
    use crate::simulation::{SIZES, SimDisk, until};
    use crate::{Begin, Config, Formats};

    fn open(disk: &SimDisk) -> (Log, Arc<Machine>) {
        let host = Host::simulated(Arc::new(disk.clone()), 7, false, SIZES);
        let mut dir = Dir::open(&host, Path::new("/data"), &Begin::Found).unwrap();
        super::super::found(&host, &mut dir).unwrap();
        Member::read(&host, dir, Config::new("").retention, Formats::OWN, None).unwrap().start().unwrap().parts()
    }

    /// A snapshot of a hundred records up to `index`, as it was received.
    fn snapshot(index: u64) -> (SnapshotMeta, SnapshotData) {
        let value = Value { bytes: bytes::Bytes::from(vec![b'x'; 40_000]), revision_at: 40_000 };
        let records: Vec<Record> = (0..100)
            .map(|at| Record::new(Key::new("things", format!("k{at:03}")), &value, Revision::new(at + 1)))
            .collect();
        let part = codec::encode_records(records.iter());
        let dir = tempfile::tempdir().unwrap();
        let mut receiving = Receiving::begin(&dir.path().join("part")).unwrap();
        receiving.part(&part).unwrap();
        let mut sent = Parts::default();
        sent.add(&part);
        let last_log_id = Some(LogId::new(LeaderId { term: 1, node_id: 1 }, index));
        (SnapshotMeta { last_log_id, ..SnapshotMeta::default() }, receiving.finish(sent).unwrap())
    }

    /// A machine that installs a snapshot for which its disk has no space.
    async fn without_space(disk: &SimDisk) -> (Log, Arc<Machine>, JoinHandle<io::Result<()>>) {
        let (log, machine) = open(disk);
        disk.set_capacity(disk.used() + (64 << 10));
        let refused = disk.refused();
        let mut applier = Applier(machine.clone());
        let installing = tokio::spawn(async move {
            let (meta, data) = snapshot(200);
            applier.install_snapshot(&meta, data).await
        });
        until("there is no space for it", async || (disk.refused() > refused).then_some(())).await;
        (log, machine, installing)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_snapshot_that_finds_no_space_is_installed_when_there_is_some() {
        let disk = SimDisk::new(1);
        let (log, machine, installing) = without_space(&disk).await;
        disk.set_capacity(u64::MAX);
        installing.await.unwrap().unwrap();
        let there = |machine: &Machine| -> Vec<Arc<Record>> {
            machine.state.read().collection("things").unwrap().records.values().cloned().collect()
        };
        let first = there(&machine);
        assert_eq!((first.len(), machine.checkpointed()), (100, Some(200)));
        // What is known already is not there twice.
        let (meta, data) = snapshot(300);
        Applier(machine.clone()).install_snapshot(&meta, data).await.unwrap();
        assert_eq!(machine.checkpointed(), Some(300));
        assert!(first.iter().zip(&there(&machine)).all(|(first, again)| Arc::ptr_eq(first, again)));
        log.close();
        machine.close();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn who_stops_does_not_wait_for_space_for_a_snapshot() {
        let (log, machine, installing) = without_space(&SimDisk::new(1)).await;
        machine.give_up_waiting();
        let ended = tokio::time::timeout(Duration::from_secs(30), installing).await.expect("it ends").unwrap();
        assert!(ended.is_err_and(|error| host::is_no_space(&error)));
        log.close();
        machine.close();
    }
}
