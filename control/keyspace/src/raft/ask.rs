//! What only a leader can do, for its own clients and for those of other members: write, say what a read must have seen,
//! change the group.
//!
//! [`Member::serve`] does it here or says who leads; [`Member::ask`] has it done wherever the leader is, and follows it when
//! it changes. A question is asked again only when it is certain that nothing was done: it was refused before it was
//! proposed, or it never left. Everything else is *unknown*.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use openraft::ReadPolicy;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ClientWriteError, LinearizableReadError, RaftError};
use tokio::time::Instant;

use super::log::NoSpace;
use super::network::{Answer, Call, TransportError};
use super::types::{MemberId, Transaction};
use super::{GROWTH_AT_QUOTA, Member, ROOM_TIMEOUT, SMALL_BYTES};
use crate::NoRoom;
use crate::formats::Formats;
use crate::group::GROUP;
use crate::record::{Key, Op, Record, Revision};
use crate::renewals::Renewal;
use crate::seal::{self, KEYS};
use crate::state::{GuardFailed, Outcome, State};

/// How long it is waited for a leader: an election begins a second and a little after the last one was heard of, and may have to
/// be repeated.
const LEADER_WAIT: Duration = Duration::from_secs(6);
/// How long a question waits at most before it is asked again; a change of leader asks at once.
const RETRY: Duration = Duration::from_millis(100);
/// How long a leader that another one has replaced may take to say what came of something: it answers while it hands over, and
/// never when it is cut off or stands still.
const REPLACED: Duration = Duration::from_secs(1);
/// How long another member may take to say what a read must have seen.
const READ_TIMEOUT: Duration = Duration::from_secs(2);

/// What is asked of a leader.
#[derive(Clone, Debug)]
pub enum Ask {
    /// To carry out a transaction.
    Write(Transaction),
    /// Which revision a linearizable read must have seen.
    ReadIndex,
    /// To change the group.
    Change(Change),
    /// To know of a newer content of a record.
    Renew(Renewal),
    /// Which newer contents it knows of.
    Renewed {
        /// In this collection.
        collection: Arc<str>,
        /// Of which records.
        of: Renewed,
    },
    /// Which process answers, and whether its disk has room: two with one member's data answer differently. Anybody is asked,
    /// leader or not.
    Process,
}

/// Of which records newer contents are asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Renewed {
    /// Of the one with this name.
    Named(Arc<str>),
    /// Of all, in the order of their names, as many as fit in an answer.
    All,
    /// Of those that follow this name, likewise.
    After(Arc<str>),
}

/// A change of the group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// A member says where it is reached: it becomes a learner, or its address is noted.
    Announce {
        /// Who.
        member: MemberId,
        /// `HOST:PORT`.
        address: String,
    },
    /// These go.
    Remove(BTreeSet<MemberId>),
    /// A member ends for a while and begins anew, with a program that understands these versions of the log's entries.
    BeginAnew {
        /// Who.
        member: MemberId,
        /// Which.
        formats: Formats,
    },
}

/// What a leader did.
#[derive(Clone, Debug)]
pub enum Told {
    /// The transaction's outcome, which is in every state from this revision on.
    Written(Revision, Outcome),
    /// To [`Ask::ReadIndex`].
    ReadIndex(Revision),
    /// To [`Ask::Change`].
    Changed,
    /// To [`Ask::Renewed`], and without any to [`Ask::Renew`].
    Renewed(Vec<Arc<Record>>),
    /// To [`Ask::Process`].
    Process {
        /// Which.
        process: u64,
        /// Whether its disk takes writes.
        has_room: bool,
    },
}

/// Why a leader did not do it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// Nothing was done: another member leads, or none.
    NotLeader(Option<MemberId>),
    /// Nothing was done: there is no room.
    NoRoom(NoRoom),
    /// It may or may not be carried out.
    Unknown,
    /// Nothing was done, for a reason that a person should read.
    Refused(String),
    /// Nothing was done: whoever asks was removed from the group.
    Removed(MemberId),
}

impl Member {
    /// Has it done by whoever leads. Dropping the future leaves it unknown.
    pub async fn ask(self: &Arc<Self>, ask: Ask) -> Result<Told, Refusal> {
        let give_up = Instant::now() + LEADER_WAIT;
        let mut metrics = None;
        loop {
            let leader = match self.serve(ask.clone()).await {
                Err(Refusal::NotLeader(leader)) => leader,
                answer => return answer,
            };
            if let Some(leader) = leader.filter(|leader| *leader != self.id())
                && let Some(address) = self.reached_at(leader)
            {
                match self.forward(leader, &address, ask.clone()).await {
                    Err(Refusal::NotLeader(_)) => (),
                    answer => return answer,
                }
            }
            // Who says that it lives has other members to say it to, and no time to wait for one that is cut off.
            let is_cut_off = matches!(ask, Ask::Renew(_)) && self.alone_for() >= self.up_within();
            if is_cut_off || Instant::now() >= give_up {
                return Err(Refusal::NotLeader(leader));
            }
            let metrics = metrics.get_or_insert_with(|| self.raft().server_metrics());
            if let Ok(Err(_)) = tokio::time::timeout(RETRY, metrics.changed()).await {
                // Raft has ended here: there is nothing to wait for, and waiting would not wait.
                return Err(Refusal::NotLeader(leader));
            }
        }
    }

    async fn forward(&self, leader: MemberId, address: &str, ask: Ask) -> Result<Told, Refusal> {
        let repeatable = matches!(ask, Ask::ReadIndex | Ask::Renew(_) | Ask::Renewed { .. } | Ask::Process);
        let answer = self.transport().call(leader, address, Call::Ask(ask));
        let answer = match repeatable {
            // Asking twice does no harm.
            true => match tokio::time::timeout(READ_TIMEOUT, answer).await {
                Ok(Err(TransportError::Failed { .. })) | Err(_) => return Err(Refusal::NotLeader(None)),
                Ok(answer) => answer,
            },
            false => tokio::select! {
                answer = answer => answer,
                () = self.replaced(leader) => {
                    let reason = "another one leads meanwhile".to_owned();
                    Err(TransportError::Failed { member: leader, reason })
                }
            },
        };
        match answer {
            Ok(Answer::Told(told)) => {
                // Or whoever has its announcement passed on by this one.
                if matches!(told, Err(Refusal::Removed(removed)) if removed == self.id()) {
                    self.note_removed();
                }
                told
            }
            Err(TransportError::Unreachable(_)) => {
                self.machine().found.nobody_at(leader, address);
                Err(Refusal::NotLeader(None))
            }
            Ok(_) => Err(Refusal::Unknown),
            Err(error @ TransportError::Failed { .. }) => {
                tracing::warn!(%error, "what was forwarded to the leader has no known outcome");
                Err(Refusal::Unknown)
            }
        }
    }

    /// Waits until another one than `leader` has led for a while.
    async fn replaced(&self, leader: MemberId) {
        let mut metrics = self.raft().server_metrics();
        while self.leader().is_none_or(|now| now == leader) {
            if metrics.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
        tokio::time::sleep(REPLACED).await;
    }

    /// Does what the member `from` asks, if this one leads. Its own announcement is passed on to whoever leads: a member that comes
    /// back at another address may reach nobody but this one, and the leader looks for it where it was. Once: what was passed on is
    /// not the announcement of whoever passes it on.
    pub async fn serve_for(self: &Arc<Self>, from: MemberId, ask: Ask) -> Result<Told, Refusal> {
        let told = self.serve(ask.clone()).await;
        let (Ask::Change(Change::Announce { member, address }), Err(Refusal::NotLeader(leader))) = (&ask, &told) else {
            return told;
        };
        if *member != from {
            return told;
        }
        let leads = leader.filter(|leader| ![self.id(), from].contains(leader));
        let told = match leads.and_then(|leader| Some((leader, self.reached_at(leader)?))) {
            Some((leader, at)) => self.forward(leader, &at, ask.clone()).await,
            None => told,
        };
        // Where all have moved there is no leader before some have found each other.
        if matches!(told, Err(Refusal::NotLeader(_))) {
            self.note_moved(from, address).await;
        }
        told
    }

    /// Does it here, if this member leads.
    pub async fn serve(self: &Arc<Self>, ask: Ask) -> Result<Told, Refusal> {
        match ask {
            Ask::Write(transaction) => self.write(transaction).await,
            Ask::ReadIndex => self.read_index().await.map(Told::ReadIndex),
            Ask::Change(change) => self.change(change).await.map(|()| Told::Changed),
            Ask::Renew(renewal) => self.renew(&renewal),
            Ask::Renewed { collection, of } => self.renewed(&collection, &of),
            Ask::Process => Ok(Told::Process { process: self.process(), has_room: self.has_room() }),
        }
    }

    /// What will be refused is not proposed: it would fill the log for nothing. Only a state that a majority confirms refuses
    /// anything.
    pub async fn write(&self, transaction: Transaction) -> Result<Told, Refusal> {
        if self.check(transaction.ops()).is_err() {
            let confirmed = self.read_index().await?;
            self.wait_for(confirmed).await?;
            let (checked, revision) = {
                let state = self.machine().state.read();
                (self.check_in(&state, transaction.ops()), state.applied)
            };
            match checked {
                Ok(()) => (),
                Err(NotNow::Guard(failed)) => return Ok(Told::Written(revision, Err(failed))),
                Err(NotNow::NoRoom(room)) => return Err(Refusal::NoRoom(room)),
            }
        }
        self.propose(transaction).await
    }

    /// Proposes `transaction` and waits for what came of it.
    pub async fn propose(&self, transaction: Transaction) -> Result<Told, Refusal> {
        let leader = self.leader();
        if leader != Some(self.id()) {
            return Err(Refusal::NotLeader(leader));
        }
        let bytes = transaction.size();
        let small = bytes <= SMALL_BYTES && {
            let state = self.machine().state.read();
            !transaction.ops().iter().any(|op| adds(&state, op))
        };
        match tokio::time::timeout(ROOM_TIMEOUT, self.log().room(bytes, small)).await {
            Ok(Ok(room)) => transaction.occupy(room),
            Ok(Err(NoSpace)) => return Err(Refusal::NoRoom(self.no_space())),
            Err(_) => return Err(Refusal::NoRoom(NoRoom::Slow)),
        }
        match self.raft().client_write(transaction).await {
            Ok(response) => match response.data.0 {
                Some(outcome) => Ok(Told::Written(Revision::new(response.log_id.index), outcome)),
                None => Err(Refusal::Unknown),
            },
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward))) => {
                Err(Refusal::NotLeader(forward.leader_id))
            }
            Err(error) => {
                tracing::warn!(%error, "a proposal has no known outcome");
                Err(Refusal::Unknown)
            }
        }
    }

    /// The revision that a linearizable read must have seen, where nobody else has a say in it: everything that a sole voter
    /// answered is applied here already.
    pub fn read_alone(&self) -> Option<Revision> {
        self.log().is_sole_voter().then(|| *self.machine().applied.borrow())
    }

    /// The revision that a linearizable read must have seen, confirmed by a majority now.
    pub(super) async fn read_index(&self) -> Result<Revision, Refusal> {
        if let Some(revision) = self.read_alone() {
            return Ok(revision);
        }
        match self.raft().get_read_log_id(ReadPolicy::ReadIndex).await {
            Ok((read, _)) => Ok(Revision::new(read.index())),
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward))) => {
                Err(Refusal::NotLeader(forward.leader_id))
            }
            Err(error) => {
                tracing::debug!(%error, "a read could not be confirmed");
                Err(Refusal::NotLeader(None))
            }
        }
    }

    pub(super) async fn wait_for(&self, revision: Revision) -> Result<(), Refusal> {
        let mut applied = self.machine().applied.subscribe();
        applied.wait_for(|applied| *applied >= revision).await.map(drop).map_err(|_| Refusal::NotLeader(None))
    }

    fn check(&self, ops: &[Op]) -> Result<(), NotNow> {
        self.check_in(&self.machine().state.read(), ops)
    }

    fn check_in(&self, state: &State, ops: &[Op]) -> Result<(), NotNow> {
        state.check(ops).map_err(NotNow::Guard)?;
        check_quota(state, self.stored_max(), ops).map_err(NotNow::NoRoom)
    }
}

/// Why a transaction cannot be done as things are.
enum NotNow {
    Guard(GuardFailed),
    NoRoom(NoRoom),
}

/// Whether `op` adds a record that may not be added where there is little room. The group's own and the keys are few and small: who is in
/// it, and who of them begins anew, changes there, too; and a key that is needed is made.
fn adds(state: &State, op: &Op) -> bool {
    matches!(op, Op::Put { key, .. } if !is_few_and_small(key) && state.record(key).is_none())
}

fn is_few_and_small(key: &Key) -> bool {
    [GROUP, KEYS].contains(&&*key.collection)
}

/// Refuses what enlarges a state that has reached its bound.
fn check_quota(state: &State, max: u64, ops: &[Op]) -> Result<(), NoRoom> {
    let stored = state.stored_bytes;
    if stored < max {
        return Ok(());
    }
    let allowed = if stored < max.saturating_add(max / 16) { GROWTH_AT_QUOTA } else { 0 };
    // As it is kept, which is what it is proposed as, and counted.
    let there = |key: &Key| state.record(key).map_or(0, |record| record.kept_size());
    let grows = |op: &Op| match op {
        Op::Delete { .. } | Op::Check { .. } => false,
        Op::Put { key, value, .. } => {
            // What is in the clear may be sealed whatever there is: each is once, and then counts a frame's few bytes more.
            let seals = seal::sealed_by(&value.bytes).is_some()
                && state.record(key).is_some_and(|record| record.sealed_by().is_none());
            let allowed = if seals || is_few_and_small(key) { GROWTH_AT_QUOTA } else { allowed };
            adds(state, op) || op.size() as u64 > there(key) + allowed
        }
    };
    if ops.iter().any(grows) { Err(NoRoom::Quota { stored, max }) } else { Ok(()) }
}
