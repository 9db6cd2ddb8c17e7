//! How members reach each other: one seam, whatever carries it.
//!
//! openraft's calls become a [`Call`] that a [`Transport`] takes to another member, where [`answer`] hands it to that
//! member's Raft. A cluster of one has the transport that reaches nobody.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::BoxFuture;
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::RPCOption;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse,
    VoteRequest, VoteResponse,
};
use openraft::{BasicNode, OptionalSend, RaftNetworkFactory, RaftNetworkV2, Snapshot};
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};

use super::Member;
use super::acknowledged::{self, Acknowledged};
use super::ask::{Ask, Refusal, Told};
use super::link::{Clock, PeerStream};
use super::log::Log;
use super::machine::{Applier, Machine};
use super::members::removed;
use super::snapshot::{Parts, Receiving, SnapshotData};
use super::types::{LeaderId, MemberId, SnapshotMeta, TypeConfig, Vote};
use crate::group::{self, Number};
use crate::host;

/// This member's Raft.
pub type Raft = openraft::Raft<TypeConfig, Applier>;

/// Parts of a snapshot that wait between disk and transport.
const PARTS_QUEUED: usize = 4;

/// A link that carries less than this in a second is taken for broken: entries get that much longer than openraft's own
/// deadline, which is made for heartbeats.
pub const LINK_BYTES_PER_SECOND: u64 = 256 << 10;
/// How long it may take until a part of a snapshot is taken, and how long until one that was sent is installed: that much, and as long
/// as its bytes take at this rate in a second. It pins the checkpoint's pages meanwhile.
const PART_TIMEOUT: Duration = Duration::from_secs(60);
const INSTALL_TIMEOUT: Duration = Duration::from_secs(600);
const INSTALLED_PER_SECOND: u64 = 4 << 20;

/// Something one member asks another.
pub enum Call {
    /// To take entries.
    Append(AppendEntriesRequest<TypeConfig>),
    /// For its vote.
    Vote(VoteRequest<TypeConfig>),
    /// Whether it would vote.
    PreVote(VoteRequest<TypeConfig>),
    /// To become leader.
    Transfer(TransferLeaderRequest<TypeConfig>),
    /// To do what only a leader can, for a client of the one who asks.
    Ask(Ask),
    /// To replace its state.
    Snapshot {
        /// The leader.
        vote: Vote,
        /// What the snapshot holds.
        meta: Box<SnapshotMeta>,
        /// Its parts in order; an end without [`Part::End`] is a failure.
        parts: mpsc::Receiver<Part>,
    },
}

/// A piece of a snapshot's stream.
pub enum Part {
    /// Records.
    Records(Bytes),
    /// All parts have come.
    End(Parts),
}

/// What the other member says.
#[derive(Debug)]
pub enum Answer {
    /// To [`Call::Append`].
    Append(AppendEntriesResponse<TypeConfig>),
    /// To [`Call::Vote`] and [`Call::PreVote`].
    Vote(VoteResponse<TypeConfig>),
    /// To [`Call::Transfer`].
    Transfer(TransferLeaderResponse<TypeConfig>),
    /// To [`Call::Ask`].
    Told(Result<Told, Refusal>),
    /// To [`Call::Snapshot`].
    Snapshot(SnapshotResponse<TypeConfig>),
}

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// Nothing was sent; trying at once is of no use.
    #[error("member {0} cannot be reached")]
    Unreachable(MemberId),
    /// It was sent, or may have been: whether it was carried out is unknown.
    #[error("member {member} gave no answer: {reason}")]
    Failed {
        /// Which member.
        member: MemberId,
        /// What happened.
        reason: String,
    },
}

/// Takes calls to other members.
pub trait Transport: Send + Sync + 'static {
    /// Asks the member `to`, known at `address`. The caller may drop the future at any time.
    fn call(&self, to: MemberId, address: &str, call: Call) -> BoxFuture<'static, Result<Answer, TransportError>>;

    /// Opens a stream to the member `to`, where this transport has them.
    fn stream(&self, to: MemberId, address: &str) -> BoxFuture<'static, io::Result<PeerStream>> {
        let error =
            io::Error::new(io::ErrorKind::Unsupported, format!("there are no streams to member {to} at {address:?}"));
        Box::pin(std::future::ready(Err(error)))
    }

    /// Whose clock is why the last connection to the member `of` failed, if one is.
    fn clock(&self, _of: MemberId) -> Option<Clock> {
        None
    }

    /// Who answers as the member `to` at `address`, asked on a connection of its own; where this transport knows addresses.
    fn process(&self, _to: MemberId, _address: &str) -> BoxFuture<'static, Answering> {
        Box::pin(std::future::ready(Answering::Nobody))
    }
}

/// Who answers as a member at an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answering {
    /// Nobody, or another one.
    Nobody,
    /// One of a version that does not say which process it is.
    Unnamed,
    /// This process.
    Process(u64),
}

/// The transport of a cluster of one.
pub struct NoPeers;

impl Transport for NoPeers {
    fn call(&self, to: MemberId, _: &str, _: Call) -> BoxFuture<'static, Result<Answer, TransportError>> {
        Box::pin(std::future::ready(Err(TransportError::Unreachable(to))))
    }
}

/// Answers what the member `from` asked `member`; what arrives of a snapshot is kept in its directory until it is whole.
pub async fn answer(member: &Arc<Member>, from: MemberId, call: Call) -> Result<Answer, TransportError> {
    let raft = member.raft();
    let id = *raft.node_id();
    let failed = |reason: String| TransportError::Failed { member: id, reason };
    // Whoever was removed has nothing more to say, however it is connected.
    if group::number(&member.machine().state.read(), from) == Number::Gone {
        return match call {
            Call::Ask(_) => Ok(Answer::Told(Err(Refusal::Removed(from)))),
            _ => Err(failed(removed(from))),
        };
    }
    member.hear_from(from);
    Ok(match call {
        Call::Append(request) => {
            // Whoever takes entries that its log has no space for waits for space, and is heard of no more. Heartbeats take none.
            let bytes = request.entries.iter().map(super::log::size).sum();
            let _room = match request.entries.is_empty() {
                true => None,
                false => Some(
                    member.log().room_for_entries(bytes).await.map_err(|_| failed(member.no_space().to_string()))?,
                ),
            };
            let response = raft.append_entries(request).await.map_err(|e| failed(e.to_string()))?;
            if !matches!(response, AppendEntriesResponse::HigherVote(_)) {
                member.hear();
            }
            Answer::Append(response)
        }
        Call::Vote(request) => Answer::Vote(raft.vote(request).await.map_err(|e| failed(e.to_string()))?),
        Call::PreVote(request) => Answer::Vote(raft.pre_vote(request).await.map_err(|e| failed(e.to_string()))?),
        Call::Transfer(request) => {
            Answer::Transfer(raft.handle_transfer_leader(request).await.map_err(|e| failed(e.to_string()))?)
        }
        Call::Ask(ask) => Answer::Told(member.serve_for(from, ask).await),
        Call::Snapshot { vote, meta, parts } => {
            let (path, of) = (member.parts(), member.clone());
            let has_room = move |bytes| match of.has_room_for_snapshot(bytes) {
                true => Ok(()),
                false => Err(io::Error::new(io::ErrorKind::StorageFull, of.no_space().to_string())),
            };
            let snapshot = match host::blocking_with_others(receive(path, parts, has_room)).await {
                Ok(Some(data)) => Snapshot { meta: *meta, snapshot: data },
                Ok(None) => return Err(failed("a snapshot ended before it was whole".into())),
                Err(error) => return Err(failed(error.to_string())),
            };
            let response = raft.install_full_snapshot(vote, snapshot).await;
            Answer::Snapshot(response.map_err(|e| failed(e.to_string()))?)
        }
    })
}

/// Receives a snapshot into the file `path`, as long as it `has_room` for what has come. Blocks on the disk.
async fn receive(
    path: PathBuf,
    mut parts: mpsc::Receiver<Part>,
    has_room: impl Fn(u64) -> io::Result<()>,
) -> io::Result<Option<SnapshotData>> {
    let mut receiving = Receiving::begin(&path)?;
    let mut came = 0;
    loop {
        match parts.recv().await {
            Some(Part::Records(part)) => {
                came += part.len() as u64;
                has_room(came)?;
                receiving.part(&part)?;
            }
            Some(Part::End(sent)) => return receiving.finish(sent).map(Some),
            None => return Ok(None),
        }
    }
}

/// When each other member was last heard of: it called, or answered.
pub type Heard = Arc<Mutex<BTreeMap<MemberId, Instant>>>;

/// Makes a [`Peer`] for each other member.
pub struct Network {
    pub transport: Arc<dyn Transport>,
    pub machine: Arc<Machine>,
    pub heard: Heard,
    pub acknowledged: Arc<Acknowledged>,
    pub log: Log,
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Peer;

    async fn new_client(&mut self, target: MemberId, node: &BasicNode) -> Peer {
        Peer {
            to: target,
            address: node.addr.clone(),
            transport: self.transport.clone(),
            machine: self.machine.clone(),
            heard: self.heard.clone(),
            acknowledged: self.acknowledged.clone(),
            log: self.log.clone(),
        }
    }
}

/// Another member.
pub struct Peer {
    to: MemberId,
    /// Where it was when this was made: openraft keeps it while the member moves.
    address: String,
    transport: Arc<dyn Transport>,
    machine: Arc<Machine>,
    heard: Heard,
    acknowledged: Arc<Acknowledged>,
    log: Log,
}

impl Peer {
    /// Where it is now, as far as is known.
    fn address(&self) -> String {
        let known = self.machine.address_of(self.to).unwrap_or_else(|| self.address.clone());
        self.machine.found.at(self.to, &known).unwrap_or(known)
    }

    async fn call(&self, call: Call, option: &RPCOption) -> Result<Answer, RPCError<TypeConfig>> {
        let bytes = match &call {
            Call::Append(request) => request.entries.iter().map(|entry| super::log::size(entry) as u64).sum(),
            _ => 0,
        };
        let deadline = option.soft_ttl() + Duration::from_millis(bytes * 1000 / LINK_BYTES_PER_SECOND);
        let address = self.address();
        let call = self.transport.call(self.to, &address, call);
        match tokio::time::timeout(deadline, call).await {
            Ok(Ok(answer)) => {
                self.heard.lock().insert(self.to, host::now());
                Ok(answer)
            }
            Ok(Err(error @ TransportError::Unreachable(_))) => {
                self.machine.found.nobody_at(self.to, &address);
                Err(Unreachable::new(&error).into())
            }
            Ok(Err(error @ TransportError::Failed { .. })) => Err(NetworkError::new(&error).into()),
            Err(elapsed) => Err(NetworkError::new(&elapsed).into()),
        }
    }

    /// Whether it has lost something, since it lacks the entry at `index`.
    fn has_lost(&self, vote: &Vote, index: Option<u64>) -> bool {
        index.is_some_and(|index| self.acknowledged.is_lost(self.to, vote, index))
    }

    fn wrong(&self) -> NetworkError<TypeConfig> {
        NetworkError::from_string(format!("member {} answered something that was not asked", self.to))
    }
}

/// How far a snapshot has been sent.
#[derive(Clone, Copy, Default)]
struct Progress {
    bytes: u64,
    is_whole: bool,
}

impl Progress {
    /// How long the next step may take.
    fn patience(self) -> Duration {
        match self.is_whole {
            true => INSTALL_TIMEOUT + Duration::from_secs(self.bytes / INSTALLED_PER_SECOND),
            false => PART_TIMEOUT,
        }
    }
}

/// Ends when a snapshot has made no progress for too long.
async fn stalled(mut made: watch::Receiver<Progress>) {
    loop {
        let patience = made.borrow_and_update().patience();
        let progress = async {
            if made.changed().await.is_err() {
                // All is sent, and nothing more is to be heard.
                std::future::pending::<()>().await;
            }
        };
        if tokio::time::timeout(patience, progress).await.is_err() {
            return;
        }
    }
}

impl RaftNetworkV2<TypeConfig> for Peer {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        let (vote, previous) = (rpc.vote, rpc.prev_log_id.as_ref().map(|id| id.index));
        // openraft cuts nothing that it is sending, and it is always sending to who is slow: now it stops, cuts, and sends a snapshot.
        if !rpc.entries.is_empty() && self.log.is_in_the_way(previous) {
            let slow = io::Error::other(format!("member {} is too far behind for the log to wait for it", self.to));
            return Err(Unreachable::new(&slow).into());
        }
        let last = rpc.entries.last().map_or(previous, |entry| Some(entry.log_id.index));
        let Answer::Append(response) = self.call(Call::Append(rpc), &option).await? else {
            return Err(self.wrong().into());
        };
        let acknowledged = match &response {
            AppendEntriesResponse::Success => last,
            AppendEntriesResponse::PartialSuccess(upto) => upto.as_ref().map(|id| id.index),
            AppendEntriesResponse::Conflict if self.has_lost(&vote, previous) => {
                let lost = io::Error::other(acknowledged::lost(self.to));
                return Err(Unreachable::new(&lost).into());
            }
            AppendEntriesResponse::Conflict | AppendEntriesResponse::HigherVote(_) => None,
        };
        if let Some(upto) = acknowledged {
            self.acknowledged.note(self.to, &vote, upto);
        }
        Ok(response)
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        match self.call(Call::Vote(rpc), &option).await? {
            Answer::Vote(response) => Ok(response),
            _ => Err(self.wrong().into()),
        }
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        match self.call(Call::PreVote(rpc), &option).await? {
            Answer::Vote(response) => Ok(response),
            _ => Err(self.wrong().into()),
        }
    }

    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        match self.call(Call::Transfer(req), &option).await? {
            Answer::Transfer(response) => Ok(response),
            _ => Err(self.wrong().into()),
        }
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot<LeaderId, MemberId, BasicNode, SnapshotData>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let _hold = self.log.hold(self.to, snapshot.meta.last_log_id.as_ref().map_or(0, |last| last.index));
        let (send, parts) = mpsc::channel(PARTS_QUEUED);
        let (progress, made) = watch::channel(Progress::default());
        let reading = tokio::spawn(host::blocking_with_others(async move {
            let mut sent = Parts::default();
            for part in snapshot.snapshot.parts() {
                let part = part?;
                sent.add(&part);
                progress.send_modify(|progress| progress.bytes += part.len() as u64);
                // An error here means that nobody receives any more.
                if send.send(Part::Records(Bytes::from(part))).await.is_err() {
                    return Ok(());
                }
            }
            progress.send_modify(|progress| progress.is_whole = true);
            let _ = send.send(Part::End(sent)).await;
            Ok(())
        }));
        let call = Call::Snapshot { vote, meta: Box::new(snapshot.meta), parts };
        let call = self.transport.call(self.to, &self.address(), call);
        let answer = tokio::select! {
            answer = call => answer,
            () = stalled(made) => {
                let stalled = io::Error::other(format!("a snapshot for member {} gets no further", self.to));
                return Err(NetworkError::new(&stalled).into());
            }
            closed = cancel => return Err(closed.into()),
        };
        match reading.await {
            Ok(Ok(())) => (),
            Ok(Err(error)) => return Err(NetworkError::new(&error).into()),
            Err(error) => return Err(NetworkError::new(&error).into()),
        }
        match answer {
            Ok(Answer::Snapshot(response)) => Ok(response),
            Ok(_) => Err(self.wrong().into()),
            Err(error) => Err(Unreachable::new(&error).into()),
        }
    }
}
