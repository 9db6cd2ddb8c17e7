//! openraft's types as this crate uses them.

use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;

use super::log::Room;
use crate::record::Op;
use crate::state::Outcome;

/// Number of a member. Never used again for another one.
pub type MemberId = u64;

/// The operations of one log entry, shared by the log in memory and whoever reads it.
#[derive(Clone)]
pub struct Transaction(Arc<Content>);

struct Content {
    ops: Vec<Op>,
    /// What the log has promised it, until it is written: whoever proposed it may go away before.
    room: Mutex<Option<Room>>,
}

impl Transaction {
    /// The transaction of `ops`.
    pub fn new(ops: Vec<Op>) -> Transaction {
        Transaction(Arc::new(Content { ops, room: Mutex::default() }))
    }

    /// Its operations.
    pub fn ops(&self) -> &[Op] {
        &self.0.ops
    }

    /// Keeps `room` until [`Transaction::written`], or until nobody has this any more.
    pub fn occupy(&self, room: Room) {
        *self.0.room.lock() = Some(room);
    }

    /// Says that the log has it.
    pub fn written(&self) {
        let room = self.0.room.lock().take();
        drop(room);
    }

    /// Bytes it takes in memory, about.
    pub fn size(&self) -> usize {
        self.0.ops.iter().map(|op| op.size() + 128).sum()
    }
}

impl fmt::Debug for Transaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Contents may be secret, and openraft prints entries when it traces.
        f.debug_list()
            .entries(self.0.ops.iter().map(|op| match op {
                Op::Put { key, guard, value } => ("put", key, guard, value.bytes.len(), value.revision_at),
                Op::Delete { key, guard } => ("delete", key, guard, 0, 0),
                Op::Check { key, guard } => ("check", key, guard, 0, 0),
            }))
            .finish()
    }
}

impl fmt::Display for Transaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} operations", self.0.ops.len())
    }
}

/// What applying an entry answers; nothing for those that are openraft's own.
#[derive(Debug)]
pub struct Reply(pub Option<Outcome>);

openraft::declare_raft_types!(
    /// The types openraft is used with.
    pub TypeConfig:
        D = Transaction,
        R = Reply,
        NodeId = MemberId,
        Node = openraft::BasicNode,
);

/// An entry of the log.
pub type Entry = openraft::type_config::alias::EntryOf<TypeConfig>;
/// Where an entry is in the log, and who put it there.
pub type LogId = openraft::type_config::alias::LogIdOf<TypeConfig>;
/// A leader: its term and member.
pub type LeaderId = openraft::type_config::alias::LeaderIdOf<TypeConfig>;
/// Whom a member voted for.
pub type Vote = openraft::type_config::alias::VoteOf<TypeConfig>;
/// A membership and the entry it came with.
pub type Stored = openraft::type_config::alias::StoredMembershipOf<TypeConfig>;
/// What a snapshot says about itself.
pub type SnapshotMeta = openraft::type_config::alias::SnapshotMetaOf<TypeConfig>;
