//! The adapter to openraft; nothing outside this folder names it.
//!
//! [`Member`] is one member of the Raft group: it proposes, confirms reads, cuts the log, and knows who leads. The log
//! index of an entry is the revision of what it writes.

mod codec;
mod hub;
mod log;
mod machine;
mod network;
mod snapshot;
#[cfg(test)]
mod tests;
mod types;

/// What simulations drive directly.
#[cfg(test)]
pub mod testing {
    pub use super::log::Log;
    pub use super::machine::Applier;
    pub use super::types::{Entry, LeaderId, LogId, Transaction, Vote};
}

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ClientWriteError, LinearizableReadError, RaftError};
use openraft::{BasicNode, ChangeMembers, Config, ReadPolicy, SnapshotPolicy};
use tokio::sync::Notify;

pub use hub::Hub;
pub use machine::Machine;
pub use network::{NoPeers, Transport};
pub use types::MemberId;

use self::log::{Log, NoSpace, Unstarted};
use self::machine::Applier;
use self::network::{Network, Raft};
use self::types::Transaction;
use crate::checkpoint::{self, Checkpoint};
use crate::dir::{Dir, DirError};
use crate::host::{self, Host};
use crate::record::{Op, Revision};
use crate::state::{Outcome, Retention};

/// How often a leader is heard of (design.md §4).
const HEARTBEAT: Duration = Duration::from_millis(100);
/// The same where there is nobody to hear it: openraft's clock ticks five times in a heartbeat, and an idle server
/// should be idle. Still short enough for members that are added later.
const HEARTBEAT_ALONE: Duration = Duration::from_millis(400);
/// When a leader that is not heard of is replaced (design.md §4).
const ELECTION: (Duration, Duration) = (Duration::from_millis(1000), Duration::from_millis(2000));
/// Entries sent to another member at once; their bytes are bounded by the log's reader.
const ENTRIES_PER_APPEND: u64 = 256;
/// Proposals that wait for the Raft task; more wait in their callers.
const PROPOSALS_QUEUED: u64 = 8192;
/// Bytes of applied entries kept for members that are a little behind. Whoever is further behind gets a snapshot.
const KEEP_BYTES: usize = 2 << 20;
/// How long a sole voter may take to lead itself when it starts; a disk that hangs is what exceeds it.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// A write of at most so many bytes that adds no record may use the space that is kept when the disk is full: leases and
/// states go on for some time, and what is being deleted in grace can go.
const SMALL_BYTES: usize = 64 << 10;
/// How long a proposal waits for room in the log.
const ROOM_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a proposal has no outcome.
#[derive(Debug)]
pub enum ProposeError {
    /// Nothing was proposed: the disk is full.
    NoSpace,
    /// Nothing was proposed: the log is cut more slowly than it grows.
    Slow,
    /// Nothing was proposed: another member leads, or none.
    NotLeader(Option<MemberId>),
    /// It may or may not be carried out.
    Unknown,
}

/// What a member knows about its group.
pub struct Standing {
    /// The term.
    pub term: u64,
    /// Who leads, if anyone does.
    pub leader: Option<MemberId>,
}

/// What a member keeps on disk, read and checked; nothing is written yet.
pub struct Read {
    log: Unstarted,
    checkpoint: Checkpoint,
    loaded: checkpoint::Loaded,
    retention: Retention,
    /// Where the watch history is.
    history: std::path::PathBuf,
}

/// What a member keeps on disk, ready.
pub struct Loaded {
    log: Log,
    machine: Arc<Machine>,
}

impl Loaded {
    /// The state it builds.
    pub fn machine(&self) -> &Arc<Machine> {
        &self.machine
    }

    #[cfg(test)]
    pub fn parts(self) -> (Log, Arc<Machine>) {
        (self.log, self.machine)
    }
}

impl Read {
    /// Begins to write; blocks on the disk.
    pub fn start(self) -> io::Result<Loaded> {
        let machine = Machine::new(self.checkpoint, self.loaded, self.retention, &self.history)?;
        Ok(Loaded { log: self.log.start()?, machine })
    }
}

/// One member of the Raft group.
pub struct Member {
    id: MemberId,
    raft: Raft,
    log: Log,
    machine: Arc<Machine>,
    /// Says that the checkpoint's disk broke.
    broken: Notify,
}

/// Makes the files of a member in `dir`, which is new; blocks on the disk.
pub fn found(host: &Host, dir: &mut Dir) -> Result<(), DirError> {
    let path = dir.path().to_owned();
    let made =
        checkpoint::create(host, &path.join("state.redb")).and_then(|()| crate::wal::create(host, &path.join("log")));
    made.map_err(|source| DirError::Io { path, source })?;
    dir.founded(host)
}

impl Member {
    /// Reads everything from `dir`, and changes nothing; blocks on the disk.
    pub fn read(host: &Host, dir: Dir, id: MemberId, retention: Retention) -> io::Result<Read> {
        let path = dir.path().join("state.redb");
        let history = host.history(dir.path());
        let (checkpoint, loaded) = Checkpoint::load(host, &path)?;
        let head = codec::head(&loaded.meta).map_err(|error| host::damaged(&path, 0, error))?;
        let log = Log::read(host, dir, id, head.applied.as_ref(), head.membership.membership())?;
        Ok(Read { log, checkpoint, loaded, retention, history })
    }

    /// Starts the member. With `found`, one that has no group yet makes one of itself alone, and returns when it leads.
    pub async fn start(
        id: MemberId,
        Loaded { log, machine }: Loaded,
        transport: Arc<dyn Transport>,
        found: bool,
    ) -> io::Result<Member> {
        let heartbeat = if found || log.is_sole_voter() { HEARTBEAT_ALONE } else { HEARTBEAT };
        let config = Config {
            cluster_name: "coracle".into(),
            heartbeat_interval: heartbeat.as_millis() as u64,
            election_timeout_min: ELECTION.0.as_millis() as u64,
            election_timeout_max: ELECTION.1.as_millis() as u64,
            enable_pre_vote: Some(true),
            max_payload_entries: ENTRIES_PER_APPEND,
            api_channel_size: Some(PROPOSALS_QUEUED),
            // The keeper decides about both, by bytes.
            snapshot_policy: SnapshotPolicy::Never,
            max_in_snapshot_log_to_keep: u64::MAX,
            // A leader that was killed may have sent entries that its own disk does not have: in a term of its own again, it
            // would give their numbers to others.
            enable_leader_restore: Some(false),
            ..Config::default()
        };
        let config = Arc::new(config.validate().map_err(io::Error::other)?);
        let applier = Applier(machine.clone());
        let raft = Raft::new(id, config, Network(transport), log.clone(), applier).await.map_err(io::Error::other)?;
        let member = Member { id, raft, log, machine, broken: Notify::new() };
        if found && !member.raft.is_initialized().await.map_err(io::Error::other)? {
            let alone = BTreeMap::from([(id, BasicNode::default())]);
            member.raft.initialize(alone).await.map_err(io::Error::other)?;
        }
        if member.log.is_sole_voter() {
            member.lead_alone().await?;
        }
        Ok(member)
    }

    /// A sole voter waits for nobody: it leads, and everything it ever wrote is applied.
    async fn lead_alone(&self) -> io::Result<()> {
        if self.leader() != Some(self.id) {
            self.raft.trigger().elect(false).await.map_err(io::Error::other)?;
        }
        let id = self.id;
        let leads = move |metrics: &openraft::RaftMetrics<types::TypeConfig>| {
            metrics.current_leader == Some(id)
                && metrics.last_log_index.is_some()
                && metrics.last_applied.as_ref().map(|applied| applied.index) == metrics.last_log_index
        };
        self.raft.wait(Some(START_TIMEOUT)).metrics(leads, "a sole voter leads").await.map_err(io::Error::other)?;
        Ok(())
    }

    /// Makes a member that is reached at `address` a voter, once it has caught up. This member must lead.
    pub async fn add_voter(&self, id: MemberId, address: &str) -> io::Result<()> {
        let node = BasicNode::new(address);
        self.raft.add_learner(id, node, true).await.map_err(io::Error::other)?;
        let voters = ChangeMembers::AddVoterIds(BTreeSet::from([id]));
        self.raft.change_membership(voters, false).await.map_err(io::Error::other)?;
        Ok(())
    }

    /// Asks `id` to lead in this member's place.
    pub async fn hand_over(&self, id: MemberId) -> io::Result<()> {
        self.raft.trigger().transfer_leader(id).await.map_err(io::Error::other)
    }

    /// The Raft that answers other members.
    fn raft(&self) -> &Raft {
        &self.raft
    }

    /// The state it builds.
    pub fn machine(&self) -> &Arc<Machine> {
        &self.machine
    }

    /// Proposes `ops` and waits for what came of it. Dropping the future leaves it unknown.
    pub async fn propose(&self, ops: Vec<Op>) -> Result<Outcome, ProposeError> {
        let transaction = Transaction::new(ops);
        let bytes = transaction.size();
        let small = bytes <= SMALL_BYTES && {
            let state = self.machine.state.read();
            transaction.ops().iter().all(|op| state.record(op.key()).is_some())
        };
        let _room = match tokio::time::timeout(ROOM_TIMEOUT, self.log.room(bytes, small)).await {
            Ok(Ok(room)) => room,
            Ok(Err(NoSpace)) => return Err(ProposeError::NoSpace),
            Err(_) => return Err(ProposeError::Slow),
        };
        match self.raft.client_write(transaction).await {
            Ok(response) => response.data.0.ok_or(ProposeError::Unknown),
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward))) => {
                Err(ProposeError::NotLeader(forward.leader_id))
            }
            Err(error) => {
                tracing::warn!(%error, "a proposal has no known outcome");
                Err(ProposeError::Unknown)
            }
        }
    }

    /// The revision that a linearizable read must have seen, confirmed by a majority now.
    pub async fn read_index(&self) -> Result<Revision, ProposeError> {
        // Everything a sole voter answered is applied here already.
        if self.log.is_sole_voter() {
            return Ok(*self.machine.applied.borrow());
        }
        match self.raft.get_read_log_id(ReadPolicy::ReadIndex).await {
            Ok((read, _)) => Ok(Revision::new(read.index())),
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward))) => {
                Err(ProposeError::NotLeader(forward.leader_id))
            }
            Err(error) => {
                tracing::debug!(%error, "a read could not be confirmed");
                Err(ProposeError::NotLeader(None))
            }
        }
    }

    /// Whether [`Member::read_index`] needs nobody else.
    pub fn is_sole_voter(&self) -> bool {
        self.log.is_sole_voter()
    }

    /// Where everything is, until it is stopped.
    pub fn dir(&self) -> Option<std::path::PathBuf> {
        self.log.dir()
    }

    /// Whether writes are refused for lack of space, or will be soon.
    pub fn is_short_of_space(&self) -> bool {
        self.log.is_short_of_space()
    }

    /// Whether the log should be cut by a checkpoint.
    pub fn is_log_large(&self) -> bool {
        self.log.is_large()
    }

    /// Waits until the log may be large.
    pub async fn log_grown(&self) {
        self.log.grown().await;
    }

    /// Bytes of log entries in memory.
    pub fn log_bytes(&self) -> usize {
        self.log.bytes()
    }

    /// Whether something was applied since the last checkpoint.
    pub fn has_news(&self) -> bool {
        let applied = self.machine.state.read().applied.get();
        applied > self.machine.checkpointed().unwrap_or(0)
    }

    /// Writes a checkpoint, then cuts the log up to it. After an error it can be tried again, unless the disk broke
    /// ([`Member::failed`]).
    pub async fn checkpoint(&self) -> io::Result<()> {
        let written = self.machine.write_checkpoint().await;
        self.log.set_uncut(written.as_ref().is_err_and(host::is_no_space));
        if self.machine.is_broken() {
            self.broken.notify_one();
            // Nothing is cut by a checkpoint of which nothing is known.
            return written.and(Err(io::Error::other("the disk of state.redb failed")));
        }
        written?;
        let covered = self.machine.checkpointed();
        self.raft.trigger().snapshot().await.map_err(io::Error::other)?;
        let known = move |metrics: &openraft::RaftMetrics<types::TypeConfig>| {
            metrics.snapshot.as_ref().map(|id| id.index) >= covered
        };
        self.raft.wait(Some(START_TIMEOUT)).metrics(known, "a checkpoint").await.map_err(io::Error::other)?;
        if let Some(covered) = covered
            && let Some(upto) = self.log.purgeable(covered, KEEP_BYTES.min(self.log.keepable()))
        {
            self.raft.trigger().purge_log(upto).await.map_err(io::Error::other)?;
        }
        Ok(())
    }

    /// Who leads, as far as this member knows.
    pub fn standing(&self) -> Standing {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        Standing { term: metrics.vote.leader_id.term, leader: metrics.current_leader }
    }

    fn leader(&self) -> Option<MemberId> {
        self.standing().leader
    }

    /// Waits until Raft has stopped by itself, which is when its disk failed, and says why.
    pub async fn failed(&self) -> String {
        let mut metrics = self.raft.metrics();
        loop {
            if self.machine.is_broken() {
                return "the disk failed to sync state.redb".into();
            }
            if let Err(error) = &metrics.borrow_watched().running_state {
                return error.to_string();
            }
            tokio::select! {
                changed = metrics.changed() => {
                    if changed.is_err() {
                        return "Raft has ended".into();
                    }
                }
                () = self.broken.notified() => (),
            }
        }
    }

    /// Stops and closes all files; what was answered is on disk.
    pub async fn stop(&self) {
        if let Err(error) = self.raft.shutdown().await {
            tracing::error!(%error, "stop Raft");
        }
        let (log, machine) = (self.log.clone(), self.machine.clone());
        let closed = tokio::task::spawn_blocking(move || {
            log.close();
            machine.close();
        });
        if let Err(error) = closed.await {
            tracing::error!(%error, "close the keyspace's files");
        }
    }
}
