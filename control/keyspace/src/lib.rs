//! The replicated data: collections of records under one growing revision, guarded transactions, snapshots of the past,
//! and watches. It knows no HTTP and no kind of object.
//!
//! ```text
//! transact ─► raft (propose) ─► log on disk, one sync for all who wait ─► committed ─► state (apply) ─► answer, watchers
//! get, snapshot, watch ─────────────────────────────────────────────────────────────► state (memory)
//! now and then: what changed ─► checkpoint (redb) ─► the log is cut
//! ```
//!
//! Invariants: a revision is the index of a log entry, so revisions only grow, also over a crash. What was answered is on
//! the disks of a majority. A reader that got an answer finds what the answer says. Applying reads no clock, no disk and
//! no randomness; only what is *remembered* of the past depends on time, and that is not part of the state.

pub mod bench;
mod checkpoint;
mod dir;
mod historian;
mod history;
mod host;
mod keeper;
mod raft;
mod record;
#[cfg(test)]
mod simulation;
mod state;
mod wal;
mod watcher;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

pub use dir::DirError;
pub use raft::{Hub, MemberId};
pub use record::{
    Committed, Event, EventKind, FRAME_SLOTS, Guard, Key, OPS_MAX, Op, Record, Revision, TRANSACTION_BYTES_MAX, Value,
};
pub use state::{GuardFailed, Records, Retention};
pub use watcher::{Batch, Compacted, WatchEnded, Watcher};

use crate::dir::Dir;
use crate::host::Host;
use crate::raft::{Machine, Member, NoPeers, ProposeError, Transport};
use crate::state::State;

/// How long a caller waits for a proposal; after that the outcome is unknown.
const PROPOSAL_TIMEOUT: Duration = Duration::from_secs(30);
/// Reads that wait to be confirmed together; more wait in their callers.
const BARRIERS_QUEUED: usize = 1024;
/// Bytes of old records that are read back from disk for one snapshot of the past; beyond it that past counts as forgotten.
const UNDO_BYTES_MAX: usize = 128 << 20;

/// Bytes of records that a keyspace may hold unless its [`Config`] says otherwise (design.md §6).
pub const STORED_MAX: u64 = 6 << 30;
/// Free bytes below which the log cannot have another file for sure, and an operator is told.
const FREE_LOW: u64 = 24 << 20;
/// By how much an update may enlarge a record when the bound on stored data is reached: what is being deleted in grace is
/// written once more before it goes. Beyond the bound and a sixteenth of it nothing may grow at all.
const GROWTH_AT_QUOTA: u64 = 4 << 10;

/// What a keyspace needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where everything is kept; made when it is not there.
    pub dir: PathBuf,
    /// This member's number.
    pub member: MemberId,
    /// How much of the past is remembered.
    pub retention: Retention,
    /// Bytes of records beyond which nothing may be added ([`NoRoom::Quota`]).
    pub stored_max: u64,
    /// Whether a keyspace must be there already: what is missing is not made.
    pub must_exist: bool,
}

impl Config {
    /// The defaults: a member of its own; six minutes of events or more in at most 2 GiB on disk and 16 MiB of memory.
    pub fn new(dir: impl Into<PathBuf>) -> Config {
        Config {
            dir: dir.into(),
            member: 1,
            retention: Retention { age: Duration::from_secs(360), bytes: 2 << 30, memory: 16 << 20 },
            stored_max: STORED_MAX,
            must_exist: false,
        }
    }
}

/// Why a keyspace cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The directory cannot be used.
    #[error(transparent)]
    Dir(#[from] DirError),
    /// Its content cannot be read.
    #[error("read the data in {path}")]
    Load {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The member could not start.
    #[error("start the Raft member of {path}")]
    Start {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Why a transaction has no result.
#[derive(Debug, thiserror::Error)]
pub enum TransactError {
    /// A condition did not hold; nothing was done.
    #[error("the condition of operation {} does not hold", self.op())]
    Guard(GuardFailed),
    /// More operations or bytes than [`OPS_MAX`] or [`TRANSACTION_BYTES_MAX`]; nothing was done.
    #[error("a transaction of {ops} operations and {bytes} bytes is too large")]
    TooLarge {
        /// Its operations.
        ops: usize,
        /// Its bytes.
        bytes: usize,
    },
    /// Two operations on one key; nothing was done.
    #[error("operation {op} is on a key that an earlier operation of the transaction has")]
    Duplicate {
        /// The second of them.
        op: usize,
    },
    /// There is no room for it; nothing was done.
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
    /// It may or may not be done, now or later.
    #[error("the outcome of the transaction is unknown")]
    Unknown,
    /// Nothing was done: another member leads, or none does.
    #[error("this member does not lead{}", leader.map(|member| format!("; member {member} does")).unwrap_or_default())]
    Unavailable {
        /// Who leads, if known.
        leader: Option<MemberId>,
    },
    /// The keyspace was shut down; nothing was done.
    #[error("the keyspace was shut down")]
    Stopped,
}

/// Why there is no room for a write. Reads go on, and deletions as long as anything can be written at all.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoRoom {
    /// The disk is full.
    #[error(
        "the disk that holds {} is full ({} MiB are free): free some space; writes go on by themselves then",
        dir.display(), free >> 20
    )]
    Disk {
        /// The data directory.
        dir: PathBuf,
        /// Free bytes there.
        free: u64,
    },
    /// The records take as much as they may.
    #[error(
        "the stored objects take {} MiB of at most {} MiB: delete some, or raise the limit; deletions are possible",
        stored >> 20, max >> 20
    )]
    Quota {
        /// Bytes of all records.
        stored: u64,
        /// The bound.
        max: u64,
    },
    /// The disk is slower than those who write.
    #[error("the disk is slower than those who write: try again later")]
    Slow,
}

impl TransactError {
    fn op(&self) -> usize {
        match self {
            TransactError::Guard(failed) => failed.op,
            _ => 0,
        }
    }
}

/// Something that an operator should do something about.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Alarm {
    /// New records are refused, or will be soon.
    #[error(transparent)]
    NoRoom(NoRoom),
}

/// Why a read cannot be confirmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BarrierError {
    /// This member is not the leader, or the leader without a majority.
    #[error("this member cannot confirm reads{}", leader.map(|member| format!("; member {member} leads")).unwrap_or_default())]
    Unavailable {
        /// Who leads, if known.
        leader: Option<MemberId>,
    },
    /// The keyspace was shut down.
    #[error("the keyspace was shut down")]
    Stopped,
}

/// The records of a collection at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Everything up to here is in it.
    pub revision: Revision,
    /// The records, ordered by name.
    pub records: Records,
}

/// What a member says about itself.
#[derive(Clone, Debug)]
pub struct Status {
    /// This member.
    pub member: MemberId,
    /// The Raft term.
    pub term: u64,
    /// Who leads, if known.
    pub leader: Option<MemberId>,
    /// The last applied revision.
    pub revision: Revision,
    /// What lies before is forgotten.
    pub compacted: Revision,
    /// Bytes of log entries in memory.
    pub log_bytes: usize,
    /// Bytes on disk that are the watch history.
    pub history_bytes: u64,
    /// All records there are.
    pub records: usize,
    /// Bytes of them.
    pub stored_bytes: u64,
}

/// The keyspace; clones are the same one.
#[derive(Clone)]
pub struct Keyspace(Arc<Inner>);

struct Inner {
    member: Arc<Member>,
    machine: Arc<Machine>,
    id: MemberId,
    host: Host,
    dir: PathBuf,
    stored_max: u64,
    stop: watch::Sender<bool>,
    barriers: mpsc::Sender<oneshot::Sender<Result<Revision, BarrierError>>>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

impl Keyspace {
    /// Opens the keyspace in `config.dir`, and makes one when there is none. When this returns, everything that was ever
    /// answered from there can be read.
    pub async fn open(config: Config) -> Result<Keyspace, OpenError> {
        Keyspace::open_with(config, Arc::new(NoPeers), true).await
    }

    /// Opens the member `config.member` of a group whose members are in this process and meet at `hub`. With `found` it
    /// makes the group when there is none; others wait to be added to it ([`Keyspace::add_member`]).
    pub async fn open_at(config: Config, hub: &Hub, found: bool) -> Result<Keyspace, OpenError> {
        let (id, dir) = (config.member, config.dir.clone());
        let keyspace = Keyspace::open_with(config, hub.transport(id), found).await?;
        hub.attach(id, &dir, &keyspace.0.member);
        Ok(keyspace)
    }

    /// Makes `member` a voter of the group that this member leads, and waits until it has caught up.
    pub async fn add_member(&self, member: MemberId) -> io::Result<()> {
        self.0.member.add_voter(member, "").await
    }

    /// Asks `member` to lead in this member's place.
    pub async fn hand_over(&self, member: MemberId) -> io::Result<()> {
        self.0.member.hand_over(member).await
    }

    async fn open_with(config: Config, transport: Arc<dyn Transport>, found: bool) -> Result<Keyspace, OpenError> {
        Keyspace::open_on(Host::real(), config, transport, found).await
    }

    async fn open_on(
        host: Host,
        config: Config,
        transport: Arc<dyn Transport>,
        found: bool,
    ) -> Result<Keyspace, OpenError> {
        let Config { dir: path, member: id, retention, stored_max, must_exist } = config;
        let load = {
            let (host, path) = (host.clone(), path.clone());
            move || -> Result<_, OpenError> {
                let mut dir = Dir::open(&host, &path, id, must_exist)?;
                if dir.is_new() {
                    raft::found(&host, &mut dir)?;
                }
                // Everything is read and checked before anything is written.
                let read = Member::read(&host, dir, id, retention);
                read.and_then(raft::Read::start).map_err(|source| OpenError::Load { path, source })
            }
        };
        let start_failed = |source| OpenError::Start { path: path.clone(), source };
        let loaded = tokio::task::spawn_blocking(load).await.map_err(|e| start_failed(io::Error::other(e)))??;
        // Before the log is applied: what it says again goes to the history at once.
        let (stop, stopped) = watch::channel(false);
        let historian = tokio::spawn(historian::run(loaded.machine().clone(), stopped.clone()));
        let member = Arc::new(Member::start(id, loaded, transport, found).await.map_err(start_failed)?);
        let (barriers, waiting) = mpsc::channel(BARRIERS_QUEUED);
        let tasks = vec![
            tokio::spawn(keeper::run(member.clone(), stopped.clone())),
            historian,
            tokio::spawn(watcher::pace(member.machine().clone(), stopped.clone())),
            tokio::spawn(confirm_reads(member.clone(), waiting, stopped)),
        ];
        Ok(Keyspace(Arc::new(Inner {
            machine: member.machine().clone(),
            member,
            id,
            host,
            dir: path,
            stored_max,
            stop,
            barriers,
            tasks: Mutex::new(tasks),
        })))
    }

    /// Carries out all of `ops` or none of them; they see the state before all of them. When this returns, the change is
    /// on disk and in every later read here.
    ///
    /// Dropping the future does not undo the proposal: its outcome is unknown then.
    pub async fn transact(&self, ops: Vec<Op>) -> Result<Committed, TransactError> {
        let bytes = ops.iter().map(Op::size).sum();
        if ops.len() > OPS_MAX || bytes > TRANSACTION_BYTES_MAX {
            return Err(TransactError::TooLarge { ops: ops.len(), bytes });
        }
        if let Some(op) = record::duplicate(&ops) {
            return Err(TransactError::Duplicate { op });
        }
        if *self.0.stop.borrow() {
            return Err(TransactError::Stopped);
        }
        // What will be refused is not proposed: it would fill the log for nothing.
        self.check(&ops).await?;
        match tokio::time::timeout(PROPOSAL_TIMEOUT, self.0.member.propose(ops)).await {
            Ok(Err(ProposeError::NoSpace)) => Err(NoRoom::Disk { dir: self.0.dir.clone(), free: self.free() }.into()),
            Ok(Err(ProposeError::Slow)) => Err(NoRoom::Slow.into()),
            Ok(Ok(outcome)) => outcome.map_err(TransactError::Guard),
            Ok(Err(ProposeError::NotLeader(leader))) => Err(TransactError::Unavailable { leader }),
            Ok(Err(ProposeError::Unknown)) | Err(_) => Err(TransactError::Unknown),
        }
    }

    /// Refuses what cannot be done as things are here.
    async fn check(&self, ops: &[Op]) -> Result<(), TransactError> {
        let check = || {
            let state = self.0.machine.state.read();
            state.check(ops).map_err(TransactError::Guard)?;
            self.check_quota(&state, ops)
        };
        match check() {
            // Of several members this one may be behind: only a state that a majority confirms refuses anything. Where that
            // cannot be had, the proposal finds out why.
            Err(_) if !self.0.member.is_sole_voter() => match self.barrier().await {
                Ok(_) => check(),
                Err(_) => Ok(()),
            },
            checked => checked,
        }
    }

    /// Refuses what enlarges a state that has reached its bound.
    fn check_quota(&self, state: &State, ops: &[Op]) -> Result<(), TransactError> {
        let (stored, max) = (state.stored_bytes, self.0.stored_max);
        if stored < max {
            return Ok(());
        }
        let allowed = if stored < max.saturating_add(max / 16) { GROWTH_AT_QUOTA } else { 0 };
        let grows = |op: &Op| match (op, state.record(op.key())) {
            (Op::Delete { .. } | Op::Check { .. }, _) => false,
            (Op::Put { .. }, None) => true,
            (Op::Put { .. }, Some(there)) => op.size() as u64 > there.size() + allowed,
        };
        if ops.iter().any(grows) { Err(NoRoom::Quota { stored, max }.into()) } else { Ok(()) }
    }

    /// The record `name` of `collection`, as applied here.
    pub fn get(&self, collection: &str, name: &str) -> Option<Arc<Record>> {
        self.0.machine.state.read().collection(collection)?.records.get(name).cloned()
    }

    /// The records of `collection`, as applied here. Costs a few pointers, however many there are.
    pub fn snapshot(&self, collection: &str) -> Snapshot {
        let state = self.0.machine.state.read();
        let records = state.collection(collection).map(|collection| collection.records.clone());
        Snapshot { revision: state.applied, records: records.unwrap_or_default() }
    }

    /// The records of `collection` as they were at `revision`. A revision that is not applied yet (see
    /// [`Keyspace::wait_for`]) gives the present one, and says so in the snapshot.
    pub async fn snapshot_at(&self, collection: &str, revision: Revision) -> Result<Snapshot, Compacted> {
        let present = self.snapshot(collection);
        if revision >= present.revision {
            return Ok(present);
        }
        let machine = &self.0.machine;
        // Undoing the newer events happens outside the lock: the ring's are shared.
        let undo = machine.state.read().after(collection, revision);
        let mut undo = undo.ok_or_else(|| Compacted(self.compacted()))?;
        if undo.on_disk {
            let collection: Arc<str> = Arc::from(collection);
            let (mut after, upto, mut kept) = (revision, undo.upto, 0);
            while let Some(events) = machine.read_history(&collection, after).await.map_err(|_| Compacted(upto))? {
                for event in
                    events.iter().filter(|event| event.record.revision > after && event.record.revision <= upto)
                {
                    kept += undo.add(event);
                }
                after = events.last().map_or(upto, |event| event.record.revision);
                if kept > UNDO_BYTES_MAX {
                    return Err(Compacted(upto));
                }
                if after >= upto {
                    break;
                }
            }
        }
        Ok(Snapshot { revision, records: undo.records() })
    }

    /// Waits until this member has applied everything that was answered anywhere before the call: a read after it is
    /// linearizable. Costs nothing on a sole voter; otherwise one round to a majority, shared by all who wait.
    pub async fn barrier(&self) -> Result<Revision, BarrierError> {
        if *self.0.stop.borrow() {
            return Err(BarrierError::Stopped);
        }
        if self.0.member.is_sole_voter() {
            return Ok(self.revision());
        }
        let (send, receive) = oneshot::channel();
        self.0.barriers.send(send).await.map_err(|_| BarrierError::Stopped)?;
        let revision = receive.await.map_err(|_| BarrierError::Stopped)??;
        self.wait_for(revision).await.map_err(|_| BarrierError::Stopped)?;
        Ok(revision)
    }

    /// The last revision applied here.
    pub fn revision(&self) -> Revision {
        self.0.machine.state.read().applied
    }

    /// What lies before this revision is forgotten, of some collection or of all.
    pub fn compacted(&self) -> Revision {
        self.0.machine.state.read().compacted()
    }

    /// Moves what is remembered of the past to disk now, as happens by itself before long.
    pub async fn flush_history(&self) {
        let machine = self.0.machine.clone();
        let written = tokio::task::spawn_blocking(move || {
            machine.write_history();
            let now = std::time::Instant::now();
            machine.trim_history(now);
            machine.state.write().evict(now);
        });
        if let Err(error) = written.await {
            tracing::error!(%error, "write the watch history");
        }
    }

    /// Waits until `revision` is applied here. Without a deadline of its own: one may never come.
    pub async fn wait_for(&self, revision: Revision) -> Result<(), WatchEnded> {
        let mut applied = self.0.machine.applied.subscribe();
        let mut stopped = self.0.stop.subscribe();
        tokio::select! {
            reached = applied.wait_for(|applied| *applied >= revision) => {
                reached.map(drop).map_err(|_| WatchEnded::Stopped)
            }
            _ = stopped.wait_for(|stopped| *stopped) => Err(WatchEnded::Stopped),
        }
    }

    /// Follows the changes of `collection` after the revision `after`.
    pub fn watch(&self, collection: &str, after: Revision) -> Result<Watcher, Compacted> {
        Watcher::new(self.0.machine.clone(), collection, after, self.0.stop.subscribe())
    }

    /// Bytes of its files; blocks on the disk.
    pub fn disk_bytes(&self) -> u64 {
        self.0.member.dir().map_or(0, |dir| dir::bytes(&dir))
    }

    /// What an operator should know; nothing when all is well. Looks at the disk's free space, and does not wait.
    pub fn alarms(&self) -> Vec<Alarm> {
        let mut alarms = Vec::new();
        let free = self.free();
        if self.0.member.is_short_of_space() || free < FREE_LOW {
            alarms.push(Alarm::NoRoom(NoRoom::Disk { dir: self.0.dir.clone(), free }));
        }
        let (stored, max) = (self.0.machine.state.read().stored_bytes, self.0.stored_max);
        if stored >= max {
            alarms.push(Alarm::NoRoom(NoRoom::Quota { stored, max }));
        }
        alarms
    }

    /// Bytes free on the disk, as far as it says.
    fn free(&self) -> u64 {
        self.0.host.disk.free(&self.0.dir).unwrap_or(u64::MAX)
    }

    /// What this member says about itself.
    pub fn status(&self) -> Status {
        let standing = self.0.member.standing();
        let (revision, compacted, records, stored_bytes) = {
            let state = self.0.machine.state.read();
            let records = state.collections().map(|(_, c)| c.records.len()).sum();
            (state.applied, state.compacted(), records, state.stored_bytes)
        };
        Status {
            member: self.0.id,
            term: standing.term,
            leader: standing.leader,
            revision,
            compacted,
            log_bytes: self.0.member.log_bytes(),
            history_bytes: self.0.machine.history.bytes(),
            records,
            stored_bytes,
        }
    }

    /// Waits until the keyspace can take no more writes because its disk failed, and says why. The process should end
    /// then: what is on disk is whole, and a new start reads it. Also returns after a shutdown.
    pub async fn failed(&self) -> String {
        self.0.member.failed().await
    }

    /// Stops: watches end, proposals under way may be unknown, and the directory is free for the next.
    pub async fn shutdown(self) {
        self.0.stop();
        let tasks = std::mem::take(&mut *self.0.tasks.lock());
        for task in tasks {
            let _ = task.await;
        }
        self.0.member.stop().await;
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Whoever forgets to shut down must not leave tasks behind.
        self.stop();
    }
}

impl Inner {
    fn stop(&self) {
        self.stop.send_replace(true);
        self.machine.state.read().wake_all();
    }
}

/// Confirms the reads that wait, all of them with one round.
async fn confirm_reads(
    member: Arc<Member>,
    mut waiting: mpsc::Receiver<oneshot::Sender<Result<Revision, BarrierError>>>,
    mut stopped: watch::Receiver<bool>,
) {
    let mut together = Vec::new();
    loop {
        let confirmed = async {
            waiting.recv_many(&mut together, BARRIERS_QUEUED).await;
            member.read_index().await
        };
        let confirmed = tokio::select! {
            confirmed = confirmed => confirmed,
            _ = stopped.wait_for(|stopped| *stopped) => return,
        };
        let confirmed = confirmed.map_err(|error| match error {
            ProposeError::NotLeader(leader) => BarrierError::Unavailable { leader },
            _ => BarrierError::Unavailable { leader: None },
        });
        for waiter in together.drain(..) {
            let _ = waiter.send(confirmed);
        }
    }
}
