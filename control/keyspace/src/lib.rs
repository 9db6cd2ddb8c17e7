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

mod backup;
pub mod bench;
mod checkpoint;
mod dir;
mod formats;
mod group;
mod historian;
mod history;
mod host;
mod keeper;
mod leader;
mod raft;
mod record;
mod recover;
mod renewals;
mod seal;
#[cfg(any(test, feature = "simulation"))]
pub mod simulation;
mod state;
mod wal;
mod watcher;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

pub use backup::{Restoring, Whole};
pub use dir::DirError;
pub use formats::Formats;
pub use group::{
    Admission, Begin, ClusterId, Counted, GroupAlarm, GroupError, Incomplete, Lead, MemberStatus, NoClusterId, Peer,
    Promotion, Role,
};
pub use host::{LOST_DATA, spawn_blocking};
pub use raft::{Called, Clock, Hub, MemberId, PeerStream, PeerTls, Stream};
pub use record::{
    Committed, Event, EventKind, FRAME_SLOTS, Guard, Key, OPS_MAX, Op, Record, Revision, TRANSACTION_BYTES_MAX, Value,
};
pub use recover::{Lost, RecoverError, Survivor};
pub use renewals::{Renewal, RenewalWatcher};
pub use seal::{Sealing, SealingError, SecretKey};
pub use state::{GuardFailed, Records, Retention, changes};
pub use watcher::{Batch, Compacted, WatchEnded, Watcher};

use crate::dir::Dir;
use crate::host::Host;
use crate::raft::{
    Ask, Links, Machine, Member, NoPeers, Refusal, StandingStill, Surroundings, Told, Transaction, Transport,
};

/// How long a caller waits for a proposal, and to have here what another member, which leads, has done for it; after that
/// the outcome is unknown.
const PROPOSAL_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a read waits for what it must have seen.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(5);
/// Reads that wait to be confirmed together; more wait in their callers.
const BARRIERS_QUEUED: usize = 1024;
/// Bytes of old records that are read back from disk for one snapshot of the past; beyond it that past counts as forgotten.
pub const UNDO_BYTES_MAX: usize = 128 << 20;

/// Bytes of records that a keyspace may hold unless its [`Config`] says otherwise (design.md §6).
pub const STORED_MAX: u64 = 6 << 30;
/// Free bytes below which the log cannot have another file for sure, and an operator is told.
const FREE_LOW: u64 = 24 << 20;
/// What a keyspace needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where everything is kept; made when it is not there.
    pub dir: PathBuf,
    /// What happens when nothing is there.
    pub begin: Begin,
    /// How much of the past is remembered.
    pub retention: Retention,
    /// Bytes of records, as they are kept on the disk, beyond which nothing may be added ([`NoRoom::Quota`]). In memory what is sealed
    /// takes about twice that.
    pub stored_max: u64,
    /// Which versions of the log's entries this member understands; others than this build's are for tests.
    pub formats: Formats,
    /// What the keys are sealed under that contents are sealed under, the same for all members; without, nothing is sealed
    /// and nothing opened. It is written nowhere.
    pub root: Option<SecretKey>,
}

/// How a member and the others of its group reach each other.
pub struct Peers {
    /// Where it takes their calls.
    pub listener: TcpListener,
    /// `HOST:PORT` at which they reach that.
    pub address: String,
    /// Where others may be that are not where they were: all may have moved.
    pub places: Vec<String>,
    /// How both sides prove who they are.
    pub tls: PeerTls,
    /// Where the streams go that they ask for ([`Keyspace::stream`]); without anybody there, they end.
    pub streams: mpsc::Sender<Called>,
}

impl Config {
    /// The defaults: the founder of a cluster; six minutes of events or more in at most 2 GiB on disk and 16 MiB of memory.
    pub fn new(dir: impl Into<PathBuf>) -> Config {
        Config {
            dir: dir.into(),
            begin: Begin::Found,
            retention: Retention { age: Duration::from_secs(360), bytes: 2 << 30, memory: 16 << 20 },
            stored_max: STORED_MAX,
            formats: Formats::OWN,
            root: None,
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
    /// Nothing was done: its contents are to be sealed, and cannot be.
    #[error("it cannot be encrypted: {0}")]
    Unsealed(String),
    /// It may or may not be done, now or later.
    #[error("the outcome of the transaction is unknown")]
    Unknown,
    /// Nothing was done: no leader can be reached.
    #[error("no leader can be reached{}", leader.map(|member| format!("; the last one was member {member}")).unwrap_or_default())]
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
    /// A member lacks what it has acknowledged to this one, which leads.
    #[error("{}", crate::raft::lost(*member))]
    Lost {
        /// Which.
        member: MemberId,
    },
    /// The disk takes nothing.
    #[error("the disk that holds {} has kept nothing for {} s, although there is something to keep: it stands still, or fails", dir.display(), lasts.as_secs())]
    Disk {
        /// The data directory.
        dir: PathBuf,
        /// For how long.
        lasts: Duration,
    },
    /// Nothing that is written to this member, which leads, gets onto the disks of a majority.
    #[error(
        "nothing that was written for {} s is on the disks of a majority of the servers. Those that are heard of may get nothing that is large          (look at the MTU on the way to them), or their disks are full or stand still", lasts.as_secs()
    )]
    Uncommitted {
        /// For how long.
        lasts: Duration,
    },
    /// A member is heard of and takes nothing from this one, which leads.
    #[error(
        "member {member} answers, and has taken nothing of what is written for {} s: what is large does not come there (look at the MTU on the          way), or its disk is full or stands still", lasts.as_secs()
    )]
    Behind {
        /// Which.
        member: MemberId,
        /// For how long.
        lasts: Duration,
    },
}

/// Why a read cannot be confirmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BarrierError {
    /// Nobody confirms it: no leader with a majority can be reached.
    #[error("no leader can be reached{}", leader.map(|member| format!("; the last one was member {member}")).unwrap_or_default())]
    Unavailable {
        /// Who leads, if known.
        leader: Option<MemberId>,
    },
    /// This member does not have what it would have to have seen, and does not get it.
    #[error("this member is behind, and does not get revision {revision}")]
    Behind {
        /// What a read must have seen.
        revision: Revision,
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
    /// Bytes of them, as they are kept on the disk.
    pub stored_bytes: u64,
}

/// The keyspace; clones are the same one.
#[derive(Clone)]
pub struct Keyspace(Arc<Inner>);

struct Inner {
    member: Arc<Member>,
    machine: Arc<Machine>,
    cluster: ClusterId,
    id: MemberId,
    stored_max: u64,
    formats: Formats,
    stop: watch::Sender<bool>,
    lead: watch::Sender<Option<Lead>>,
    alone: watch::Sender<bool>,
    barriers: mpsc::Sender<oneshot::Sender<Result<Revision, BarrierError>>>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

/// A keyspace whose directory is locked, read and found good, and that does nothing yet: who it is can be asked, to get the
/// certificate that [`PeerTls`] needs.
pub struct Prepared {
    host: Host,
    path: PathBuf,
    stored_max: u64,
    formats: Formats,
    remembered: Duration,
    loaded: raft::Loaded,
}

impl Prepared {
    /// The cluster.
    pub fn cluster(&self) -> ClusterId {
        self.loaded.owner().cluster
    }

    /// This member's number.
    pub fn member(&self) -> MemberId {
        self.loaded.owner().member
    }

    /// Whether it made the cluster, and was not admitted to one.
    pub fn founds(&self) -> bool {
        self.loaded.owner().founder
    }

    /// Has the keys that are to be made sealed under `root`, where [`Config::root`] was not known yet: of a cluster that is just being
    /// founded, which has none.
    pub fn with_root(self, root: SecretKey) -> Prepared {
        self.loaded.machine().state.write().set_root(root);
        self
    }

    /// Starts it. A founder that is alone leads when this returns; whoever was admitted has what the others have once it is
    /// told ([`Keyspace::barrier`] waits for it). Without `peers` nobody can join it, and it reaches nobody.
    pub async fn start(self, peers: Option<Peers>) -> Result<Keyspace, OpenError> {
        let (cluster, member) = (self.cluster(), self.member());
        let Some(Peers { listener, address, places, tls, streams }) = peers else {
            return self.start_with(Arc::new(NoPeers)).await;
        };
        let keyspace = self.start_with(Arc::new(Links::new(cluster, member, &tls))).await?;
        let inner = &keyspace.0;
        let called = Arc::downgrade(&inner.member);
        let mut tasks = inner.tasks.lock();
        let stopped = inner.stop.subscribe();
        tasks.push(tokio::spawn(raft::serve_peers(listener, tls, (cluster, member), called, streams, stopped)));
        tasks.push(tokio::spawn(leader::announce(inner.member.clone(), address, places, inner.stop.subscribe())));
        drop(tasks);
        Ok(keyspace)
    }

    async fn start_with(self, transport: Arc<dyn Transport>) -> Result<Keyspace, OpenError> {
        let Prepared { host, path, stored_max, formats, remembered, loaded } = self;
        let start_failed = |source| OpenError::Start { path: path.clone(), source };
        let (cluster, id) = (loaded.owner().cluster, loaded.owner().member);
        // Before the log is applied: what it says again goes to the history at once.
        let (stop, stopped) = watch::channel(false);
        let historian = tokio::spawn(historian::run(loaded.machine().clone(), stopped.clone()));
        let surroundings = Surroundings { host, transport, stored_max };
        let member = Arc::new(Member::start(loaded, surroundings).await.map_err(start_failed)?);
        // What the log says beyond the checkpoint, where that is applied already.
        let broken = member.machine().state.read().keys().broken().map(str::to_owned);
        if let Some(why) = broken {
            stop.send_replace(true);
            member.stop().await;
            return Err(start_failed(io::Error::new(io::ErrorKind::InvalidData, why)));
        }
        // Whoever leads at once has said so when it is open.
        let lead = watch::channel(member.take_lead().await).0;
        let alone = watch::Sender::new(false);
        let (barriers, waiting) = mpsc::channel(BARRIERS_QUEUED);
        let tasks = vec![
            tokio::spawn(keeper::run(member.clone(), stopped.clone())),
            historian,
            tokio::spawn(watcher::pace(member.machine().clone(), stopped.clone())),
            tokio::spawn(leader::run(member.clone(), lead.clone(), stopped.clone())),
            tokio::spawn(leader::watch_over(member.clone(), alone.clone(), stopped.clone())),
            tokio::spawn(seal::run(member.clone(), lead.subscribe(), remembered, stopped.clone())),
            tokio::spawn(confirm_reads(member.clone(), waiting, stopped)),
        ];
        Ok(Keyspace(Arc::new(Inner {
            machine: member.machine().clone(),
            member,
            cluster,
            id,
            stored_max,
            formats,
            stop,
            lead,
            alone,
            barriers,
            tasks: Mutex::new(tasks),
        })))
    }
}

impl Keyspace {
    /// Opens the keyspace in `config.dir`, which has nobody to speak with. When this returns, everything that was ever
    /// answered from there can be read.
    pub async fn open(config: Config) -> Result<Keyspace, OpenError> {
        Keyspace::prepare(config).await?.start(None).await
    }

    /// Opens a member of a group whose members are in this process and meet at `hub`.
    pub async fn open_at(config: Config, hub: &Hub) -> Result<Keyspace, OpenError> {
        let prepared = Keyspace::prepare(config).await?;
        let id = prepared.member();
        let keyspace = prepared.start_with(hub.transport(id)).await?;
        hub.attach(id, &keyspace.0.member);
        let stopped = keyspace.0.stop.subscribe();
        let announce = leader::announce(keyspace.0.member.clone(), format!("hub:{id}"), Vec::new(), stopped);
        keyspace.0.tasks.lock().push(tokio::spawn(announce));
        Ok(keyspace)
    }

    /// Looks whether data can be made in `dir`, where there is none: nobody uses it, and there is space. Blocks on the disk.
    pub fn check_new(dir: &Path) -> Result<(), OpenError> {
        let host = Host::real();
        drop(Dir::open(&host, dir, &Begin::Found)?);
        let failed = |source| OpenError::Start { path: dir.to_owned(), source };
        let free = host.disk.free(dir).map_err(failed)?;
        match free < FREE_LOW {
            true => {
                let full = NoRoom::Disk { dir: dir.to_owned(), free };
                Err(failed(io::Error::new(io::ErrorKind::StorageFull, full.to_string())))
            }
            false => Ok(()),
        }
    }

    /// Locks and reads what is in `config.dir`, and makes it when nothing is there and `config.begin` says so.
    pub async fn prepare(config: Config) -> Result<Prepared, OpenError> {
        Keyspace::prepare_on(Host::real(), config).await
    }

    async fn prepare_on(host: Host, config: Config) -> Result<Prepared, OpenError> {
        let Config { dir: path, begin, retention, stored_max, formats, root } = config;
        let failed = |source| OpenError::Start { path: path.clone(), source };
        let load = {
            let (host, path) = (host.clone(), path.clone());
            move || -> Result<_, OpenError> {
                let mut dir = Dir::open(&host, &path, &begin)?;
                if dir.is_new() {
                    raft::found(&host, &mut dir)?;
                }
                // Everything is read and checked before anything is written.
                let read = Member::read(&host, dir, retention, formats, root);
                read.and_then(raft::Read::start).map_err(|source| OpenError::Load { path, source })
            }
        };
        let loaded = host::spawn_blocking(load).await.map_err(|e| failed(io::Error::other(e)))??;
        Ok(Prepared { host, path, stored_max, formats, remembered: retention.age, loaded })
    }

    /// Carries out all of `ops` or none of them; they see the state before all of them. When this returns, the change is
    /// on the disks of a majority and in every later read here. Another member may lead: it is asked, and it is waited for a
    /// while when nobody does.
    ///
    /// Dropping the future does not undo the proposal: its outcome is unknown then.
    pub async fn transact(&self, ops: Vec<Op>) -> Result<Committed, TransactError> {
        let bytes = ops.iter().map(Op::size).sum();
        // A fence comes on top of what was asked for.
        let fences = ops.last().is_some_and(group::is_fence);
        if ops.len() > OPS_MAX + usize::from(fences) || bytes > TRANSACTION_BYTES_MAX {
            return Err(TransactError::TooLarge { ops: ops.len(), bytes });
        }
        if let Some(op) = record::duplicate(&ops) {
            return Err(TransactError::Duplicate { op });
        }
        if *self.0.stop.borrow() {
            return Err(TransactError::Stopped);
        }
        let give_up = tokio::time::Instant::now() + PROPOSAL_TIMEOUT;
        loop {
            let keys = self.0.machine.state.read().keys().clone();
            let sealed = keys.seal(&ops).map_err(TransactError::Unsealed)?;
            let failed = match self.propose(sealed.unwrap_or_else(|| ops.clone()), give_up).await {
                Err(TransactError::Guard(failed)) => failed,
                outcome => return outcome,
            };
            // Where the condition held, the content is to be sealed otherwise since: nothing was done, and it is sealed anew.
            let is_sealed_otherwise = ops
                .get(failed.op)
                .is_some_and(|op| matches!(op, Op::Put { .. }) && op.condition().1.holds(failed.found.as_deref()));
            if !is_sealed_otherwise {
                return Err(TransactError::Guard(failed));
            }
            // Another member may know more, which leads.
            self.caught_up(give_up).await?;
            if Arc::ptr_eq(self.0.machine.state.read().keys(), &keys) {
                return Err(TransactError::Guard(failed));
            }
        }
    }

    /// Returns when this member has what whoever leads has, for a transaction that has done nothing so far.
    async fn caught_up(&self, give_up: tokio::time::Instant) -> Result<(), TransactError> {
        let unavailable = TransactError::Unavailable { leader: None };
        match tokio::time::timeout_at(give_up, self.barrier()).await {
            Ok(read) => read.map(drop).map_err(|_| unavailable),
            Err(_) => Err(unavailable),
        }
    }

    async fn propose(&self, ops: Vec<Op>, give_up: tokio::time::Instant) -> Result<Committed, TransactError> {
        let transaction = Transaction::new(ops);
        // Callers' own futures stay small.
        let asked = Box::pin(self.0.member.ask(Ask::Write(transaction)));
        let asked = tokio::time::timeout_at(give_up, asked).await;
        let (revision, outcome) = match asked {
            Ok(Ok(Told::Written(revision, outcome))) => (revision, outcome),
            Ok(Err(Refusal::NotLeader(leader))) => return Err(TransactError::Unavailable { leader }),
            Ok(Err(Refusal::NoRoom(room))) => return Err(room.into()),
            Ok(Err(Refusal::Refused(why))) => {
                tracing::warn!(why, "a transaction was refused by the leader");
                return Err(TransactError::Unavailable { leader: None });
            }
            Ok(Err(Refusal::Removed(_))) => return Err(TransactError::Unavailable { leader: None }),
            Ok(Ok(_) | Err(Refusal::Unknown)) | Err(_) => return Err(TransactError::Unknown),
        };
        let mut committed = match outcome {
            Ok(committed) => committed,
            Err(mut failed) => {
                // The leader has told of it as it is kept, perhaps under a key that is not known here yet.
                if failed.found.as_ref().is_some_and(|found| found.is_closed()) {
                    self.caught_up(give_up).await?;
                    failed.found = failed.found.map(|found| self.opened(found));
                }
                return Err(TransactError::Guard(failed));
            }
        };
        // Another member leads: what it says is there is here before it is said, or nothing is.
        if self.revision() < revision
            && !matches!(tokio::time::timeout_at(give_up, self.wait_for(revision)).await, Ok(Ok(())))
        {
            return Err(TransactError::Unknown);
        }
        committed.records = committed.records.into_iter().map(|record| self.opened(record)).collect();
        Ok(committed)
    }

    /// The record with its content opened, as the state has it.
    fn opened(&self, record: Arc<Record>) -> Arc<Record> {
        match record.is_closed() {
            true => Arc::new(self.0.machine.state.read().keys().opened(record.detached())),
            false => record,
        }
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

    /// A number that is another after every change of one of these collections, before the change is answered here: who keeps
    /// what was made of their records sees with one load that it is still that.
    pub fn count_changes(&self, collections: &[&str]) -> Arc<AtomicU64> {
        let counter = Arc::<AtomicU64>::default();
        let mut state = self.0.machine.state.write();
        for collection in collections {
            state.collection_mut(&Arc::from(*collection)).counters.push(counter.clone());
        }
        counter
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
    /// linearizable. One question to the leader, and one round from there to a majority, shared by all who wait; a sole voter
    /// asks nobody.
    pub async fn barrier(&self) -> Result<Revision, BarrierError> {
        if *self.0.stop.borrow() {
            return Err(BarrierError::Stopped);
        }
        if let Some(revision) = self.0.member.read_alone() {
            return Ok(revision);
        }
        let (send, receive) = oneshot::channel();
        self.0.barriers.send(send).await.map_err(|_| BarrierError::Stopped)?;
        let revision = receive.await.map_err(|_| BarrierError::Stopped)??;
        let applied = tokio::time::timeout(CATCH_UP_TIMEOUT, self.wait_for(revision)).await;
        match applied {
            Ok(applied) => applied.map(|()| revision).map_err(|_| BarrierError::Stopped),
            Err(_) => Err(BarrierError::Behind { revision }),
        }
    }

    /// Whether this member is the only one that counts: what is answered anywhere is answered here.
    pub fn is_sole_voter(&self) -> bool {
        self.0.member.read_alone().is_some()
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
        let written = host::spawn_blocking(move || {
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

    /// Opens a stream to another member, for what the programs that run the two have to say to each other: both have proved who
    /// they are, and that neither was removed. It ends when either side drops it.
    pub async fn stream(&self, to: MemberId) -> io::Result<PeerStream> {
        let unknown = || io::Error::new(io::ErrorKind::NotFound, format!("nobody knows where member {to} is"));
        let address = self.0.member.reached_at(to).filter(|address| !address.is_empty()).ok_or_else(unknown)?;
        self.0.member.transport().stream(to, &address).await
    }

    /// Bytes of its files; blocks on the disk.
    pub fn disk_bytes(&self) -> u64 {
        self.0.member.dir().map_or(0, |dir| dir::bytes(&dir))
    }

    /// What an operator should know; nothing when all is well. Looks at the disk's free space, and does not wait.
    pub fn alarms(&self) -> Vec<Alarm> {
        let mut alarms = Vec::new();
        if self.0.member.is_short_of_space() || self.0.member.free() < FREE_LOW {
            alarms.push(Alarm::NoRoom(self.0.member.no_space()));
        }
        let (stored, max) = (self.0.machine.state.read().stored_bytes, self.0.stored_max);
        if stored >= max {
            alarms.push(Alarm::NoRoom(NoRoom::Quota { stored, max }));
        }
        alarms.extend(self.0.member.lost().into_iter().map(|member| Alarm::Lost { member }));
        let standing = self.0.member.standing_still().into_iter();
        alarms.extend(standing.map(|standing| match standing {
            StandingStill::Disk(lasts) => Alarm::Disk { dir: self.0.member.path().to_owned(), lasts },
            StandingStill::Commits(lasts) => Alarm::Uncommitted { lasts },
            StandingStill::Member(member, lasts) => Alarm::Behind { member, lasts },
        }));
        alarms
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

    /// Stops: leadership goes to another, watches end, proposals under way may be unknown, and the directory is free for the
    /// next.
    pub async fn shutdown(self) {
        self.hand_over().await;
        self.0.stop();
        self.0.member.give_up_waiting();
        let tasks = std::mem::take(&mut *self.0.tasks.lock());
        for task in tasks {
            let _ = task.await;
        }
        self.0.member.stop().await;
    }
}

/// What is done to a simulated member.
#[cfg(any(test, feature = "simulation"))]
impl Keyspace {
    /// Makes these members the voters, in openraft's own two steps, if this one leads; whoever cuts it leaves it between them.
    pub async fn replace_voters(&self, voters: std::collections::BTreeSet<MemberId>) -> bool {
        self.0.member.replace_voters(voters).await
    }

    /// Whether a change of the voters is between its two steps.
    pub fn is_joint(&self) -> bool {
        self.0.member.is_joint()
    }

    /// Ends as a process does that is killed: nobody is told.
    pub async fn abandon(self) {
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
            member.ask(Ask::ReadIndex).await
        };
        let confirmed = tokio::select! {
            confirmed = confirmed => confirmed,
            _ = stopped.wait_for(|stopped| *stopped) => return,
        };
        let confirmed = match confirmed {
            Ok(Told::ReadIndex(revision)) => Ok(revision),
            Err(Refusal::NotLeader(leader)) => Err(BarrierError::Unavailable { leader }),
            _ => Err(BarrierError::Unavailable { leader: None }),
        };
        for waiter in together.drain(..) {
            let _ = waiter.send(confirmed);
        }
    }
}
