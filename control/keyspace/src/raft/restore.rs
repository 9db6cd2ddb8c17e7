//! A member that begins with a state instead of a log: the first of a cluster that is made of a backup.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use openraft::storage::RaftLogStorage;
use openraft::{BasicNode, Membership, StoredMembership};

use super::codec::Head;
use super::types::{LeaderId, LogId, Vote};
use super::{Loaded, Member, found};
use crate::dir::Dir;
use crate::formats::Formats;
use crate::host::Host;
use crate::record::Revision;
use crate::state::{Records, Retention};

/// Makes the files of the founder of a cluster in `dir`, which is new: its state is `records`, and its log begins after `begin`.
pub async fn restore(
    host: &Host,
    mut dir: Dir,
    begin: Revision,
    records: HashMap<Arc<str>, Records>,
) -> io::Result<()> {
    let member = dir.owner().member;
    let leader = LeaderId { term: 1, node_id: member };
    let begins_after = LogId::new(leader, begin.get());
    let alone = BTreeMap::from([(member, BasicNode::new(""))]);
    let membership = Membership::new(vec![BTreeSet::from([member])], alone).map_err(io::Error::other)?;
    let head = Head { applied: Some(begins_after), membership: StoredMembership::new(Some(begins_after), membership) };
    let host = host.clone();
    let write = move || -> io::Result<Loaded> {
        found(&host, &mut dir).map_err(io::Error::other)?;
        // Nothing is remembered: a watch from before is told so.
        let retention = Retention { age: Duration::ZERO, bytes: 0, memory: 0 };
        let loaded = Member::read(&host, dir, retention, Formats::OWN)?.start()?;
        loaded.machine.begin_with(&head, &records)?;
        Ok(loaded)
    };
    let Loaded { mut log, machine, .. } = tokio::task::spawn_blocking(write).await.map_err(io::Error::other)??;
    // Who waits for the second knows that the first is on the disk, too.
    log.purge(begins_after).await?;
    log.save_vote(&Vote { leader_id: leader, committed: false }).await?;
    let close = move || {
        log.close();
        machine.close();
    };
    tokio::task::spawn_blocking(close).await.map_err(io::Error::other)
}
