//! A member that begins with a state instead of a log: the first of a cluster that is made of a backup, or the one that is left of
//! a group and goes on alone.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use openraft::storage::RaftLogStorage;
use openraft::{BasicNode, EntryPayload, Membership, StoredMembership};

use super::codec::{self, Head};
use super::log::Held;
use super::types::{LeaderId, LogId, MemberId, Vote};
use super::{Loaded, Member, Read, found};
use crate::dir::{Dir, Owner};
use crate::formats::Formats;
use crate::host::{self, Host};
use crate::record::Revision;
use crate::state::{Records, Retention, State};

/// What a member has on its disk, its whole log applied.
pub struct Remains {
    /// Locked as long as this lives.
    _dir: Dir,
    /// Whose it is.
    pub owner: Owner,
    /// The records.
    pub state: State,
    /// The newest term that it has seen.
    pub term: u64,
    /// Where the others are, and itself.
    pub members: BTreeMap<MemberId, String>,
    /// Those that count.
    pub voters: BTreeSet<MemberId>,
}

impl Read {
    /// Applies all of the log, also what nobody has said is committed: whoever could say so is lost, and what was acknowledged
    /// may be among it.
    pub fn remains(self) -> io::Result<Remains> {
        let head = codec::head(&self.loaded.meta)?;
        let Held { dir, vote, purged, entries } = self.log.held();
        let mut last = head.applied.max(purged);
        let mut membership = head.membership.membership().clone();
        let mut state = State::new(self.retention);
        state.replace(Revision::new(head.applied.map_or(0, |applied| applied.index)), self.loaded.records);
        let covered = head.applied.map(|applied| applied.index);
        for entry in entries {
            if Some(entry.log_id.index) <= covered {
                continue;
            }
            last = last.max(Some(entry.log_id));
            let revision = Revision::new(entry.log_id.index);
            match entry.payload {
                EntryPayload::Normal(transaction) => drop(state.apply(revision, transaction.ops(), host::now())),
                EntryPayload::Blank => state.skip(revision),
                EntryPayload::Membership(newer) => {
                    membership = newer;
                    state.skip(revision);
                }
            }
        }
        let seen = [vote.map(|vote| vote.leader_id.term), last.map(|last| last.leader_id.term)];
        Ok(Remains {
            _dir: dir,
            owner: self.owner,
            state,
            term: seen.into_iter().flatten().max().unwrap_or_default(),
            members: membership.nodes().map(|(member, node)| (*member, node.addr.clone())).collect(),
            voters: membership.voter_ids().collect(),
        })
    }
}

/// Makes the files of `dir`'s member, which is new and alone: its state is `records`, and its log begins after `begin`, which was
/// written in `term`.
pub async fn restore(
    host: &Host,
    mut dir: Dir,
    (term, begin): (u64, Revision),
    records: HashMap<Arc<str>, Records>,
) -> io::Result<()> {
    let member = dir.owner().member;
    let leader = LeaderId { term, node_id: member };
    let begins_after = LogId::new(leader, begin.get());
    let alone = BTreeMap::from([(member, BasicNode::new(""))]);
    let membership = Membership::new(vec![BTreeSet::from([member])], alone).map_err(io::Error::other)?;
    let head = Head { applied: Some(begins_after), membership: StoredMembership::new(Some(begins_after), membership) };
    let host = host.clone();
    let write = move || -> io::Result<Loaded> {
        found(&host, &mut dir).map_err(io::Error::other)?;
        // Nothing is remembered: a watch from before is told so.
        let retention = Retention { age: Duration::ZERO, bytes: 0, memory: 0 };
        let loaded = Member::read(&host, dir, retention, Formats::OWN, None)?.start()?;
        loaded.machine.begin_with(&head, &records)?;
        Ok(loaded)
    };
    let Loaded { mut log, machine, .. } = host::spawn_blocking(write).await.map_err(io::Error::other)??;
    // Who waits for the second knows that the first is on the disk, too.
    log.purge(begins_after).await?;
    log.save_vote(&Vote { leader_id: leader, committed: false }).await?;
    let close = move || {
        log.close();
        machine.close();
    };
    host::spawn_blocking(close).await.map_err(io::Error::other)
}
