//! The adapter to openraft; nothing outside this folder names it.
//!
//! [`Member`] is one member of the Raft group: it proposes, confirms reads, cuts the log, and knows who leads. The log
//! index of an entry is the revision of what it writes.

mod acknowledged;
mod ask;
#[cfg(test)]
mod behind;
mod codec;
mod found;
mod greetings;
mod hub;
mod link;
mod log;
mod machine;
mod members;
mod network;
mod places;
mod restore;
mod snapshot;
mod still;
#[cfg(test)]
mod tests;
mod types;
mod wire;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use openraft::async_runtime::WatchReceiver;
use openraft::{BasicNode, Config, SnapshotPolicy};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

pub use acknowledged::lost;
pub use ask::{Ask, Change, Refusal, Renewed, Told};
pub use codec::{encode_records, records};
pub use hub::Hub;
pub use link::{Called, Clock, Links, PeerStream, PeerTls, Stream, serve as serve_peers};
pub use machine::Machine;
pub use members::{ALONE_AFTER, LOOKS_AFTER, removed};
pub use network::{Answer, Call, NoPeers, Transport};
pub use restore::{Remains, restore};
pub use still::Standing as StandingStill;
pub use types::{MemberId, Transaction};

use self::acknowledged::Acknowledged;
use self::log::{Log, Unstarted};
use self::machine::Applier;
use self::network::{Heard, Network, Raft};
use self::still::Stills;
use crate::NoRoom;
use crate::checkpoint::{self, Checkpoint};
use crate::dir::{Dir, DirError, Owner};
use crate::formats::{self, Formats};
use crate::group::GROUP;
use crate::host::{self, Host};
use crate::seal::{KEYS, Keyring, SecretKey};
use crate::state::Retention;

/// Entries sent to another member at once; their bytes are bounded by the log's reader.
const ENTRIES_PER_APPEND: u64 = 256;
/// Proposals that wait for the Raft task; more wait in their callers.
const PROPOSALS_QUEUED: u64 = 8192;
/// Bytes of applied entries kept for members that are a little behind. Whoever is further behind gets a snapshot.
const KEEP_BYTES: usize = 2 << 20;
/// How long a sole voter may take to lead itself when it starts; a disk that hangs is what exceeds it.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// How often an operator is told that two processes have one member's data.
const TELL_AGAIN: Duration = Duration::from_secs(60);

/// A write of at most so many bytes that adds no record may use the space that is kept when the disk is full: leases and
/// states go on for some time, and what is being deleted in grace can go.
const SMALL_BYTES: usize = 64 << 10;
/// How long a proposal waits for room in the log.
const ROOM_TIMEOUT: Duration = Duration::from_secs(10);

/// By how much an update may enlarge a record when the bound on stored data is reached: what is being deleted in grace is
/// written once more before it goes. Beyond the bound and a sixteenth of it nothing may grow at all.
const GROWTH_AT_QUOTA: u64 = 4 << 10;

/// What a member knows about its group.
pub struct Standing {
    /// The term.
    pub term: u64,
    /// Who leads, if anyone does.
    pub leader: Option<MemberId>,
}

/// What a member keeps on disk, read and checked; nothing is written yet.
pub struct Read {
    host: Host,
    owner: Owner,
    log: Unstarted,
    checkpoint: Checkpoint,
    loaded: checkpoint::Loaded,
    retention: Retention,
    /// Where the watch history is.
    history: std::path::PathBuf,
    root: Option<SecretKey>,
}

/// What a member keeps on disk, ready.
pub struct Loaded {
    owner: Owner,
    log: Log,
    machine: Arc<Machine>,
}

impl Loaded {
    /// Whose it is.
    pub fn owner(&self) -> &Owner {
        &self.owner
    }

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
        let machine = Machine::new(self.checkpoint, self.loaded, self.retention, &self.history, self.root)?;
        Ok(Loaded { owner: self.owner, log: self.log.start(&self.host)?, machine })
    }
}

/// One member of the Raft group.
pub struct Member {
    owner: Owner,
    raft: Raft,
    log: Log,
    machine: Arc<Machine>,
    transport: Arc<dyn Transport>,
    host: Host,
    /// Where everything is.
    path: PathBuf,
    /// Bytes of records beyond which nothing may be added.
    stored_max: u64,
    /// Held by whoever changes the group.
    changing: Arc<tokio::sync::Mutex<()>>,
    /// When a leader was last heard of.
    heard: Mutex<Instant>,
    /// When each other member was last heard of.
    called: Heard,
    /// What each other member has acknowledged to this one.
    acknowledged: Arc<Acknowledged>,
    /// Tells this process from another one with the same data.
    process: u64,
    /// Whose other process was told of last, where that is, and when.
    doubled: Mutex<Option<(MemberId, String, Instant)>>,
    /// Whether another member has said that this one was removed.
    removed: watch::Sender<bool>,
    /// What stands still.
    stills: Mutex<Stills>,
    /// Held while another is asked to lead because this one commits nothing.
    giving_way: Arc<tokio::sync::Mutex<()>>,
    /// Says that the checkpoint's disk broke.
    broken: Notify,
}

/// What a member needs besides what it keeps.
pub struct Surroundings {
    /// The machine it runs on.
    pub host: Host,
    /// How it reaches others.
    pub transport: Arc<dyn Transport>,
    /// Bytes of records beyond which nothing may be added.
    pub stored_max: u64,
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
    /// Reads everything from `dir`, and changes nothing; blocks on the disk. What is sealed is opened by keys that are sealed under
    /// `root`; without one it stays sealed.
    pub fn read(
        host: &Host,
        dir: Dir,
        retention: Retention,
        formats: Formats,
        root: Option<SecretKey>,
    ) -> io::Result<Read> {
        let owner = dir.owner().clone();
        let path = dir.path().join("state.redb");
        let history = host.history(dir.path());
        let (checkpoint, loaded) = Checkpoint::load(host, &path)?;
        // Before the log: what it says in another version would be taken for damage.
        let in_use = formats::in_use_of(loaded.records.get(GROUP)).map_err(|why| host::damaged(&path, 0, why))?;
        formats.check(in_use).map_err(io::Error::other)?;
        let keys = Keyring::read(root.clone(), loaded.records.get(KEYS));
        keys.map_err(|why| io::Error::new(io::ErrorKind::InvalidData, format!("{}: {why}", path.display())))?;
        let head = codec::head(&loaded.meta).map_err(|error| host::damaged(&path, 0, error))?;
        let log = Log::read(host, dir, owner.member, head.applied.as_ref(), head.membership.membership())?;
        Ok(Read { host: host.clone(), owner, log, checkpoint, loaded, retention, history, root })
    }

    /// Starts the member. One that founded its cluster and has no group yet makes one of itself alone; a sole voter leads
    /// when this returns.
    pub async fn start(
        Loaded { owner, log, machine }: Loaded,
        Surroundings { host, transport, stored_max }: Surroundings,
    ) -> io::Result<Member> {
        let id = owner.member;
        let path = log.dir().ok_or_else(|| io::Error::other("the log is closed"))?;
        let timing = host.timing;
        let config = Config {
            cluster_name: owner.cluster.to_string(),
            heartbeat_interval: timing.heartbeat.as_millis() as u64,
            election_timeout_min: timing.election.0.as_millis() as u64,
            election_timeout_max: timing.election.1.as_millis() as u64,
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
        let called = Heard::default();
        let acknowledged = Arc::<Acknowledged>::default();
        let network = Network {
            transport: transport.clone(),
            machine: machine.clone(),
            heard: called.clone(),
            acknowledged: acknowledged.clone(),
            log: log.clone(),
        };
        let raft = Raft::new(id, config, network, log.clone(), applier).await.map_err(io::Error::other)?;
        let (founds, process) = (owner.founder, host.random());
        let member = Member {
            owner,
            raft,
            log,
            machine,
            transport,
            host,
            path,
            stored_max,
            changing: Arc::default(),
            heard: Mutex::new(host::now()),
            called,
            acknowledged,
            process,
            doubled: Mutex::default(),
            removed: watch::Sender::new(false),
            stills: Mutex::default(),
            giving_way: Arc::default(),
            broken: Notify::new(),
        };
        if founds && !member.raft.is_initialized().await.map_err(io::Error::other)? {
            // The address is announced once there is one.
            let alone = BTreeMap::from([(id, BasicNode::new(""))]);
            member.raft.initialize(alone).await.map_err(io::Error::other)?;
        }
        if member.log.is_sole_voter() {
            member.lead_alone().await?;
            member.tick_for_others();
        }
        Ok(member)
    }

    /// A sole voter waits for nobody: it leads, and everything it ever wrote is applied.
    async fn lead_alone(&self) -> io::Result<()> {
        if self.leader() != Some(self.id()) {
            self.raft.trigger().elect(false).await.map_err(io::Error::other)?;
        }
        let id = self.id();
        let leads = move |metrics: &openraft::RaftMetrics<types::TypeConfig>| {
            metrics.current_leader == Some(id)
                && metrics.last_log_index.is_some()
                && metrics.last_applied.as_ref().map(|applied| applied.index) == metrics.last_log_index
        };
        self.raft.wait(Some(START_TIMEOUT)).metrics(leads, "a sole voter leads").await.map_err(io::Error::other)?;
        Ok(())
    }

    /// Has openraft's clock, which ticks five times in a heartbeat, stand still while there is nobody to hear a heartbeat: an
    /// idle server should be idle. It goes again as soon as there is somebody.
    pub fn tick_for_others(&self) {
        let alone = self.leading().is_some() && self.members().len() == 1;
        self.raft.runtime_config().tick(!alone);
    }

    /// Whose data this is.
    pub fn owner(&self) -> &Owner {
        &self.owner
    }

    /// Its number.
    pub fn id(&self) -> MemberId {
        self.owner.member
    }

    /// The Raft that answers other members.
    fn raft(&self) -> &Raft {
        &self.raft
    }

    fn log(&self) -> &Log {
        &self.log
    }

    /// How it reaches others.
    pub fn transport(&self) -> &Arc<dyn Transport> {
        &self.transport
    }

    /// Notes that a leader was heard of.
    fn hear(&self) {
        *self.heard.lock() = host::now();
    }

    /// Tells this process from another one with the same data.
    pub fn process(&self) -> u64 {
        self.process
    }

    /// Whether it is to be told again that there is another process of `member`, which is at `address`.
    fn is_doubled_anew(&self, member: MemberId, address: &str) -> bool {
        let mut doubled = self.doubled.lock();
        let is_known = |(told, at, when): &(MemberId, String, Instant)| {
            (*told, &**at) == (member, address) && when.elapsed() < TELL_AGAIN
        };
        if doubled.as_ref().is_some_and(is_known) {
            return false;
        }
        *doubled = Some((member, address.to_owned(), host::now()));
        true
    }

    /// Notes that another member has called, or answered.
    pub fn hear_from(&self, member: MemberId) {
        self.called.lock().insert(member, host::now());
    }

    /// How long ago `member` last called or answered: whoever knows of no leader asks all again and again.
    fn called_ago(&self, member: MemberId) -> Option<Duration> {
        self.called.lock().get(&member).map(Instant::elapsed)
    }

    /// Who of the group lacks what it has acknowledged to this member, which leads.
    pub fn lost(&self) -> Vec<MemberId> {
        match self.leading() {
            Some(_) => self.acknowledged.lost(|member| self.address_of(member).is_some()),
            None => Vec::new(),
        }
    }

    /// Notes that another member has said that this one was removed.
    pub fn note_removed(&self) {
        self.removed.send_replace(true);
    }

    /// Whether one has.
    pub fn removed(&self) -> watch::Receiver<bool> {
        self.removed.subscribe()
    }

    /// How long this member has been without a majority: since it heard of a leader, or as leader of the others.
    pub fn alone_for(&self) -> Duration {
        if self.leading().is_none() {
            return self.heard.lock().elapsed();
        }
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        // Nobody is asked by whoever is all voters itself.
        if metrics.membership_config.voter_ids().eq([self.id()]) {
            return Duration::ZERO;
        }
        metrics.last_quorum_acked.map_or(Duration::ZERO, |at| openraft::Instant::elapsed(&*at))
    }

    /// Whether this member has been without a majority for so long that the others may have elected another.
    pub fn may_be_replaced(&self) -> bool {
        self.alone_for() >= self.host.timing.down / 2
    }

    /// Who was heard of within this time is up.
    fn up_within(&self) -> Duration {
        self.host.timing.down
    }

    fn changing(&self) -> &Arc<tokio::sync::Mutex<()>> {
        &self.changing
    }

    /// Bytes of records beyond which nothing may be added.
    pub fn stored_max(&self) -> u64 {
        self.stored_max
    }

    /// Where everything is.
    pub fn path(&self) -> &std::path::Path {
        &self.path
    }

    /// Where parts of a snapshot are kept until it is whole.
    fn parts(&self) -> PathBuf {
        self.host.parts(&self.path)
    }

    /// The state it builds.
    pub fn machine(&self) -> &Arc<Machine> {
        &self.machine
    }

    /// Bytes free on its disk, as far as it says.
    pub fn free(&self) -> u64 {
        self.host.disk.free(&self.path).unwrap_or(u64::MAX)
    }

    /// Whether there is room to install a snapshot of which `bytes` have come: they are in a file then, and once more in the
    /// checkpoint, whose tree takes half as much again at the most; and the log keeps what its next file takes.
    fn has_room_for_snapshot(&self, bytes: u64) -> bool {
        let segment = self.host.sizes.segment;
        self.free() >= bytes + bytes / 2 + segment + segment / 2
    }

    /// Ends all waiting for space, for those who stop: on a full disk nothing would end otherwise.
    pub fn give_up_waiting(&self) {
        self.machine.give_up_waiting();
        self.log.give_up_waiting();
    }

    /// That its disk has no space for more.
    pub fn no_space(&self) -> NoRoom {
        NoRoom::Disk { dir: self.path.clone(), free: self.free() }
    }

    /// Proposes `ops` without looking whether they can be done.
    #[cfg(test)]
    pub async fn propose_unchecked(&self, ops: Vec<crate::Op>) -> Result<crate::state::Outcome, Refusal> {
        match self.propose(Transaction::new(ops)).await? {
            Told::Written(_, outcome) => Ok(outcome),
            _ => Err(Refusal::Unknown),
        }
    }

    /// Whether checkpoints fail for lack of space.
    #[cfg(test)]
    pub fn is_uncut(&self) -> bool {
        self.log.is_uncut()
    }

    /// Where everything is, until it is stopped.
    pub fn dir(&self) -> Option<std::path::PathBuf> {
        self.log.dir()
    }

    /// Whether writes are refused for lack of space, or will be soon.
    pub fn is_short_of_space(&self) -> bool {
        self.log.is_short_of_space()
    }

    /// As if checkpoints failed for lack of space, until one is made.
    #[cfg(test)]
    pub fn set_short_of_space(&self, is_short: bool) {
        self.log.set_uncut(is_short);
    }

    /// Whether its disk takes what a leader's has to.
    pub fn has_room(&self) -> bool {
        !self.is_short_of_space() && self.free() >= crate::FREE_LOW
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
        self.cut_log().await
    }

    /// Cuts the log up to the last checkpoint.
    pub async fn cut_log(&self) -> io::Result<()> {
        if let Some(covered) = self.machine.checkpointed()
            && let Some(upto) = self.log.purgeable(covered, KEEP_BYTES.min(self.log.keepable()))
        {
            self.raft.trigger().purge_log(upto).await.map_err(io::Error::other)?;
        }
        Ok(())
    }

    /// Whether old files of the log could not be deleted when it was last cut: it is to be cut further.
    pub fn is_rotation_owed(&self) -> bool {
        self.log.is_rotation_owed()
    }

    /// Whether cutting the log up to the last checkpoint gives something, although that was done.
    pub fn is_cut_due(&self) -> bool {
        self.machine.checkpointed().is_some_and(|covered| self.log.is_cut_due(covered))
    }

    /// Its term, and who leads, as far as this member knows.
    pub fn standing(&self) -> Standing {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        Standing { term: metrics.vote.leader_id.term, leader: metrics.current_leader }
    }

    /// Who leads, as far as this member knows.
    pub fn leader(&self) -> Option<MemberId> {
        self.standing().leader
    }

    /// Waits until Raft has stopped by itself, which is when its disk failed, and says why.
    pub async fn failed(&self) -> String {
        // These change with who leads and who is in it, and end with the core; `metrics` has news at each entry.
        let mut ended = self.raft.server_metrics();
        loop {
            if self.machine.is_broken() {
                return "the disk failed to sync state.redb".into();
            }
            if let Err(error) = &self.raft.metrics().borrow_watched().running_state {
                return error.to_string();
            }
            tokio::select! {
                changed = ended.changed() => {
                    if changed.is_err() {
                        // It says why before it ends.
                        let said = self.raft.metrics().borrow_watched().running_state.clone();
                        return said.err().map_or("Raft has ended".into(), |error| error.to_string());
                    }
                }
                () = self.broken.notified() => (),
            }
        }
    }

    /// Stops and closes all files; what was answered is on disk.
    pub async fn stop(&self) {
        self.give_up_waiting();
        if let Err(error) = self.raft.shutdown().await {
            tracing::error!(%error, "stop Raft");
        }
        let (log, machine) = (self.log.clone(), self.machine.clone());
        let closed = host::spawn_blocking(move || {
            log.close();
            machine.close();
        });
        if let Err(error) = closed.await {
            tracing::error!(%error, "close the keyspace's files");
        }
    }
}

/// What simulations drive directly.
#[cfg(any(test, feature = "simulation"))]
pub mod testing {
    #[cfg(test)]
    pub use super::log::Log;
    #[cfg(test)]
    pub use super::machine::Applier;
    pub use super::network::{TransportError, answer};
    #[cfg(test)]
    pub use super::types::{Entry, LeaderId, LogId, Transaction, Vote};
    pub use super::wire::{answer as wire_answer, call as wire, incoming_answer, spare};

    /// Tries again and again to make the log's next file, as the log's own thread does where it has one.
    pub async fn make_ahead(member: std::sync::Arc<super::Member>) {
        loop {
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
            member.log().hurry().await;
        }
    }

    /// The call that `bytes`, made by [`wire`], say; no snapshot.
    pub fn incoming(bytes: &bytes::Bytes) -> super::Call {
        match super::wire::incoming(bytes).unwrap() {
            super::wire::Incoming::Call(call) => call,
            super::wire::Incoming::Snapshot { .. } => panic!("a snapshot"),
        }
    }
}
