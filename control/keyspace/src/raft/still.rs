//! What stands still although it should move: this member's disk, and of a leader what it commits and the logs of those that it hears.
//!
//! Heartbeats are small. Where a network loses large packets alone (something on the way takes smaller ones and does not say so) they
//! come through and entries do not: nobody elects another, and nothing is committed. So a leader that hears a majority of others and commits nothing
//! has one of them lead.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use openraft::ServerState;
use openraft::async_runtime::WatchReceiver;

use super::Member;
use super::members::{ALONE_AFTER, BEHIND_MAX};
use super::network::LINK_BYTES_PER_SECOND;
use super::types::MemberId;
use crate::host;

/// How long what waits may stand where it does.
const STANDS_AFTER: Duration = Duration::from_secs(5);
/// The same of a member that a snapshot is on its way to.
const SNAPSHOT_WITHIN: Duration = Duration::from_secs(600);
/// Whoever has not looked for so long was not awake either: nothing is concluded from that time.
const LOOKS_WITHIN: Duration = Duration::from_secs(3);

/// Since when each stands where it does.
#[derive(Default)]
pub struct Stills {
    looked: Option<Instant>,
    disk: Still,
    commits: Still,
    members: BTreeMap<MemberId, Still>,
}

/// Where something that should move has stood, and since when.
#[derive(Clone, Copy, Default)]
struct Still(Option<(Option<u64>, Instant)>);

impl Still {
    /// It is `at` now, and has to go on from there or not.
    fn look(&mut self, at: Option<u64>, has_to_move: bool, now: Instant) {
        let since = self.0.filter(|(before, _)| *before == at).map_or(now, |(_, since)| since);
        self.0 = has_to_move.then_some((at, since));
    }

    /// For how long it has stood there.
    fn lasts(&self) -> Duration {
        self.0.map_or(Duration::ZERO, |(_, since)| host::now().saturating_duration_since(since))
    }
}

/// What stands still for too long, and for how long.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Standing {
    /// The disk of this member.
    Disk(Duration),
    /// What this member, which leads, has to commit.
    Commits(Duration),
    /// The log of a member that is heard of.
    Member(MemberId, Duration),
}

impl Member {
    /// Looks at all that should move, and has another lead where this one commits nothing that a majority of others could. To be called
    /// again and again.
    pub fn look_at_stills(self: &Arc<Self>) {
        let now = host::now();
        let raft = self.raft().metrics().borrow_watched().clone();
        let leads = raft.state == ServerState::Leader;
        let committed = raft.local_committed.as_ref().map(|id| id.index);
        let written = self.raft().watch_log_progress().get().and_then(|written| written.last_log_id.map(|id| id.index));
        // What a snapshot has brought was not written as entries; after a vote alone it is not known.
        let written = written.max(raft.snapshot.as_ref().map(|id| id.index).filter(|_| written.is_some()));
        let mut stills = self.stills.lock();
        if stills.looked.replace(now).is_some_and(|looked| now.saturating_duration_since(looked) > LOOKS_WITHIN) {
            *stills = Stills { looked: Some(now), ..Stills::default() };
        }
        stills.disk.look(written, written.is_some() && written < raft.last_log_index, now);
        stills.commits.look(committed, leads && committed < raft.last_log_index, now);
        let others = raft.replication.filter(|_| leads).unwrap_or_default();
        stills.members.retain(|member, _| others.contains_key(member));
        for (other, matched) in others.iter().filter(|(other, _)| **other != self.id()) {
            let matched = matched.as_ref().map(|id| id.index);
            stills.members.entry(*other).or_default().look(matched, matched < committed, now);
        }
        let stands = stills.commits.lasts();
        drop(stills);
        if stands >= STANDS_AFTER + on_the_way(self.log().sent_after(committed)) && !self.is_joint() {
            self.give_way(committed);
        }
    }

    /// What stands still.
    pub fn standing_still(&self) -> Vec<Standing> {
        let stills = self.stills.lock();
        let mut standing = Vec::new();
        let is_long = |lasts: &Duration| *lasts >= STANDS_AFTER;
        // What is full, or alone, is told of as that.
        let disk = Some(stills.disk.lasts()).filter(|_| !self.is_short_of_space());
        standing.extend(disk.filter(is_long).map(Standing::Disk));
        let commits =
            Some(stills.commits.lasts()).filter(|_| self.voters().len() > 1 && self.alone_for() < ALONE_AFTER);
        standing.extend(commits.filter(is_long).map(Standing::Commits));
        let members: Vec<(MemberId, Duration)> = stills
            .members
            .iter()
            .map(|(member, still)| (*member, still.lasts()))
            .filter(|(_, lasts)| is_long(lasts))
            .collect();
        drop(stills);
        if members.is_empty() {
            return standing;
        }
        // Who is not heard of is down, and that is said elsewhere.
        let up: Vec<MemberId> = self.matched_of_up().into_iter().map(|(_, member)| member).collect();
        let lost = self.lost();
        let stands = |(member, lasts): &(MemberId, Duration)| {
            let patience = if self.log().is_sent_snapshot(*member) { SNAPSHOT_WITHIN } else { STANDS_AFTER };
            *lasts >= patience && up.contains(member) && !lost.contains(member)
        };
        standing.extend(members.into_iter().filter(stands).map(|(member, lasts)| Standing::Member(member, lasts)));
        standing
    }

    /// Has another voter lead, where a majority without this one is heard of, lacks little of what is committed, and the one has room.
    /// What this one has not committed may go then: nobody was told that it is done. In a task of its own; a change of the group, which may
    /// wait for this, does not hold it up.
    fn give_way(self: &Arc<Self>, committed: Option<u64>) {
        let Ok(one) = self.giving_way.clone().try_lock_owned() else { return };
        let voters = self.voters();
        let mut fit: Vec<(Option<u64>, MemberId)> = self.matched_of_up();
        fit.retain(|(matched, member)| {
            voters.contains(member) && matched.unwrap_or_default() + BEHIND_MAX >= committed.unwrap_or_default()
        });
        if fit.len() * 2 <= voters.len() {
            return;
        }
        // Others give their votes to who has most.
        fit.sort();
        let member = self.clone();
        tokio::spawn(async move {
            let _one = one;
            if let Some(successor) = member.first_with_room(fit.into_iter().rev().map(|(_, member)| member)).await {
                tracing::warn!(
                    successor,
                    "a majority of the others is heard of, and nothing is committed: what is large does not come there, or this server's \
                     disk stands still; another one is to lead"
                );
                member.transfer(successor).await;
            }
        });
    }
}

/// How long so many bytes may be on the slowest way that is one.
fn on_the_way(bytes: usize) -> Duration {
    Duration::from_millis(bytes as u64 * 1000 / LINK_BYTES_PER_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_moves_or_has_nothing_to_wait_for_does_not_stand_still() {
        let begun = host::now().checked_sub(Duration::from_secs(100)).unwrap();
        let at = |second: u64| begun + Duration::from_secs(second);
        let mut still = Still::default();
        still.look(Some(1), true, at(0));
        assert!(still.lasts() >= Duration::from_secs(100));
        still.look(Some(1), true, at(50));
        assert!(still.lasts() >= Duration::from_secs(100), "it has not moved");
        still.look(Some(2), true, at(60));
        assert!(still.lasts() < Duration::from_secs(50), "it has moved");
        still.look(Some(2), false, at(70));
        assert_eq!(still.lasts(), Duration::ZERO);
        still.look(Some(2), true, at(80));
        assert!(still.lasts() < Duration::from_secs(30), "there was nothing to wait for");
    }
}
