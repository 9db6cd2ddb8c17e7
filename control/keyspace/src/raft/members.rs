//! Who is in the group: learners are added, promoted together, and members removed, one change at a time.
//!
//! A group has an odd number of voters whenever it can: two are more fragile than one, four no better than three. So learners
//! wait for each other and are promoted in one joint change (1 → 3 → 5). Whoever removes a voter gets a learner that has caught
//! up in its place, in the same change; without one, a group may have to stay with an even number, and says so.
//!
//! A change has several steps, and whoever leads may be another one after each. So it leaves in the log what is to be done still:
//! a joint membership, which counts two majorities and survives less than either, or the mark of a removal, which says that whoever
//! is no member any more is to be forgotten. Whoever leads finishes what it finds ([`Member::tend`]), and before anything else is
//! changed. A mark alone begins nothing: what is cut between it and the first change of the membership is not done, and whoever asked
//! is told that it is unknown; whether it may be done is looked at again then.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ClientWriteError, RaftError};
use openraft::{BasicNode, ChangeMembers, Instant, ServerState};

use super::Member;
use super::ask::{Ask, Change, Refusal, Told};
use super::network::{Answer, Answering, Call};
use super::types::{MemberId, Transaction, TypeConfig};
use crate::formats::{self, Formats};
use crate::group::{self, Lead, MemberStatus, Number, Role};
use crate::host;
use crate::record::Revision;

/// Most voters: each further one makes every write wait for one more disk.
const VOTERS_MAX: usize = 5;

/// How long Raft may take to show a change that it has made.
const SHOWN_WITHIN: Duration = Duration::from_secs(5);

/// Who has been without a majority for this long is cut off, for an operator; an election takes less.
pub const ALONE_AFTER: Duration = Duration::from_secs(5);

/// Who has been without a majority for this long asks the others, and looks for them elsewhere; an election takes less.
pub const LOOKS_AFTER: Duration = Duration::from_secs(3);

/// A learner that lacks no more entries than this has caught up.
pub const BEHIND_MAX: u64 = 256;
/// How long whoever is asked which process it is may take.
const PROCESS_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a removal waits for those who are left to say that they have what is kept beside the log.
const ANSWERS_WITHIN: Duration = Duration::from_secs(10);
/// How long a leader waits for the one that it hands over to.
const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(3);

/// The group as its leader sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct View {
    leader: MemberId,
    voters: BTreeSet<MemberId>,
    learners: BTreeSet<MemberId>,
    /// Members that were heard of lately, the leader among them.
    up: BTreeSet<MemberId>,
    /// Members that lack little of the log.
    caught_up: BTreeSet<MemberId>,
    /// Members that lack something else and say so.
    incomplete: BTreeSet<MemberId>,
}

impl View {
    /// Learners that can be made voters.
    fn ready(&self) -> impl Iterator<Item = MemberId> {
        let is_ready = |member: &MemberId| {
            self.up.contains(member) && self.caught_up.contains(member) && !self.incomplete.contains(member)
        };
        self.learners.iter().copied().filter(is_ready)
    }

    /// The learners that are to be voters now, so that the number of voters is odd.
    fn promotable(&self) -> BTreeSet<MemberId> {
        let ready: Vec<MemberId> = self.ready().collect();
        let most = (self.voters.len() + ready.len()).min(VOTERS_MAX);
        let odd = if most % 2 == 1 { most } else { most - 1 };
        let more = odd.saturating_sub(self.voters.len());
        // Those who were admitted first come first.
        ready.into_iter().take(more).collect()
    }

    /// The voters without `gone`, or why that may not be.
    fn without(&self, gone: &BTreeSet<MemberId>) -> Result<BTreeSet<MemberId>, String> {
        let unknown: Vec<String> = gone
            .iter()
            .filter(|m| !self.voters.contains(m) && !self.learners.contains(m))
            .map(MemberId::to_string)
            .collect();
        if !unknown.is_empty() {
            let known: Vec<String> = self.voters.iter().chain(&self.learners).map(MemberId::to_string).collect();
            return Err(format!(
                "there is no member {}; there are {}",
                unknown.join(" and no member "),
                known.join(", ")
            ));
        }
        if self.voters.is_disjoint(gone) {
            return Ok(self.voters.clone());
        }
        let mut left: BTreeSet<MemberId> = self.voters.difference(gone).copied().collect();
        for member in self.ready().filter(|member| !gone.contains(member)) {
            if left.len() < self.voters.len() {
                left.insert(member);
            }
        }
        if left.is_empty() {
            return Err("that is all who have the data; to delete it, stop the server and run `coracle reset`".into());
        }
        let down: Vec<String> = left.difference(&self.up).map(MemberId::to_string).collect();
        if (left.len() - down.len()) * 2 <= left.len() {
            return Err(format!(
                "of the {} voters that would be left, member {} cannot be reached, and they could not go on: bring it back, or \
                 remove it first",
                left.len(),
                down.join(" and member ")
            ));
        }
        Ok(left)
    }

    /// Who of the voters should lead in the leader's place: one that is up and lacks little.
    fn successor(&self, not: &BTreeSet<MemberId>) -> Option<MemberId> {
        let others = self.voters.iter().copied().filter(|member| *member != self.leader && !not.contains(member));
        others.filter(|member| self.up.contains(member)).max_by_key(|member| (self.caught_up.contains(member), *member))
    }
}

impl Member {
    /// Where `member` is reached, as far as is known here.
    pub fn address_of(&self, member: MemberId) -> Option<String> {
        let metrics = self.raft().server_metrics();
        let metrics = metrics.borrow_watched();
        metrics.membership_config.membership().get_node(&member).map(|node| node.addr.clone())
    }

    /// Where `member` is reached: where it was found, as long as the group knows nothing newer.
    pub fn reached_at(&self, member: MemberId) -> Option<String> {
        let known = self.address_of(member)?;
        Some(self.machine().found.at(member, &known).unwrap_or(known))
    }

    /// Who answers as `member` at `address`.
    async fn answering(&self, member: MemberId, address: &str) -> Answering {
        let asked = self.transport().process(member, address);
        tokio::time::timeout(PROCESS_TIMEOUT, asked).await.unwrap_or(Answering::Nobody)
    }

    /// Notes that `member` is at `address`, where it answers, unless somebody answers as that member where it was.
    async fn find_at(&self, member: MemberId, address: &str) -> bool {
        let (Some(known), Some(reached)) = (self.address_of(member), self.reached_at(member)) else { return false };
        if reached == address {
            return false;
        }
        let asked = tokio::join!(self.answering(member, &reached), self.answering(member, address));
        let is_found = matches!(asked, (Answering::Nobody, Answering::Process(_)));
        if is_found {
            tracing::info!(member, address, "found where it was not known to be");
            self.machine().found.note(member, known, address.to_owned());
        }
        is_found
    }

    /// Looks at `places` for members that do not answer where they were, while nobody leads who could be told that all have moved.
    pub async fn look_for_others(&self, places: &[String]) {
        let others = self.members().into_iter().map(|known| known.member).filter(|member| *member != self.id());
        let looked = others.map(|member| async move {
            for place in places {
                if self.find_at(member, place).await {
                    return;
                }
            }
        });
        futures::future::join_all(looked).await;
    }

    /// Notes where `member`, which says so itself, is found, while nobody leads who could make it known.
    pub async fn note_moved(&self, member: MemberId, address: &str) {
        if self.alone_for() >= LOOKS_AFTER {
            self.find_at(member, address).await;
        }
    }

    /// Whether a member is known to be at `address`; not where its name has to be looked up.
    pub fn is_at(&self, address: IpAddr) -> bool {
        let metrics = self.raft().server_metrics();
        let metrics = metrics.borrow_watched();
        let mut nodes = metrics.membership_config.membership().nodes();
        nodes.any(|(_, node)| node.addr.parse::<SocketAddr>().is_ok_and(|known| known.ip() == address.to_canonical()))
    }

    /// The term in which this member leads.
    pub fn leading(&self) -> Option<u64> {
        let metrics = self.raft().server_metrics();
        let metrics = metrics.borrow_watched();
        (metrics.state == ServerState::Leader && metrics.current_leader == Some(self.id()))
            .then_some(metrics.vote.leader_id.term)
    }

    /// Waits until there is another leader or term, and no longer than `patience`.
    pub async fn leader_changes(&self, patience: Duration) {
        let before = (self.leading(), self.leader());
        let mut metrics = self.raft().server_metrics();
        let changes = async {
            while (self.leading(), self.leader()) == before {
                if metrics.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        let _ = tokio::time::timeout(patience, changes).await;
    }

    /// What this member knows of all.
    pub fn members(&self) -> Vec<MemberStatus> {
        let metrics = self.raft().metrics();
        let metrics = metrics.borrow_watched().clone();
        let voters: BTreeSet<MemberId> = metrics.membership_config.voter_ids().collect();
        let leads = metrics.state == ServerState::Leader;
        // Raft remembers the last leader until there is another.
        let is_lost = !leads && self.alone_for() >= ALONE_AFTER;
        let matched = |member: MemberId| match &metrics.replication {
            _ if member == self.id() => metrics.last_log_index,
            Some(replication) => replication.get(&member)?.map(|matched| matched.index),
            None => None,
        };
        let heard = |member: MemberId| match &metrics.heartbeat {
            _ if member == self.id() && (leads || is_lost) => Some(Duration::ZERO),
            _ if is_lost => self.called_ago(member),
            Some(heartbeat) => heartbeat.get(&member)?.as_ref().map(|at| at.elapsed()),
            None => None,
        };
        let lost = self.lost();
        let state = self.machine().state.read();
        let all = metrics.membership_config.membership().nodes();
        all.map(|(member, node)| MemberStatus {
            member: *member,
            name: group::name(&state, *member),
            address: node.addr.clone(),
            api: group::api(&state, *member),
            role: if voters.contains(member) { Role::Voter } else { Role::Learner },
            formats: formats::of(&state, *member),
            leads: metrics.current_leader == Some(*member) && !is_lost,
            matched: matched(*member).filter(|_| leads).map(Revision::new),
            heard: heard(*member),
            waits: group::waits(&state, *member),
            has_lost: lost.contains(member),
            clock: self.transport().clock(*member),
        })
        .collect()
    }

    /// The voters.
    pub fn voters(&self) -> BTreeSet<MemberId> {
        let metrics = self.raft().server_metrics();
        let metrics = metrics.borrow_watched();
        metrics.membership_config.voter_ids().collect()
    }

    /// The others that were heard of lately, and up to where each has the log, of a leader.
    pub fn matched_of_up(&self) -> Vec<(Option<u64>, MemberId)> {
        let others = self.members().into_iter().filter(|other| other.member != self.id() && self.is_up(other));
        others.map(|other| (other.matched.map(Revision::get), other.member)).collect()
    }

    fn is_up(&self, member: &MemberStatus) -> bool {
        member.heard.is_some_and(|heard| heard < self.up_within())
    }

    fn view(&self) -> View {
        let last = self.raft().metrics().borrow_watched().last_log_index.unwrap_or_default();
        let mut view = View { leader: self.id(), ..View::default() };
        for member in self.members() {
            let set = if member.role == Role::Voter { &mut view.voters } else { &mut view.learners };
            set.insert(member.member);
            if self.is_up(&member) {
                view.up.insert(member.member);
            }
            if member.waits {
                view.incomplete.insert(member.member);
            }
            if member.matched.is_some_and(|matched| matched.get() + BEHIND_MAX >= last) {
                view.caught_up.insert(member.member);
            }
        }
        view
    }

    /// Carries out a change of the group, if this member leads. It goes on when the future is dropped: whoever asked may
    /// go away, and a change that is cut leaves a group which is neither what it was nor what it is to be.
    pub async fn change(self: &Arc<Self>, change: Change) -> Result<(), Refusal> {
        if self.leading().is_none() {
            return Err(Refusal::NotLeader(self.leader()));
        }
        let member = self.clone();
        let changing = tokio::spawn(async move {
            let _one = member.changing().lock().await;
            // What is decided here depends on records: they are those that a majority has, and this member leads still.
            let confirmed = member.read_index().await?;
            member.wait_for(confirmed).await?;
            member.finish().await?;
            match change {
                Change::Announce { member: announced, address } => member.announced(announced, address).await,
                Change::Remove(members) => member.remove(&members).await,
                Change::BeginAnew { member: beginning, formats } => member.let_begin_anew(beginning, formats).await,
            }
        });
        changing.await.unwrap_or(Err(Refusal::Unknown))
    }

    /// Whether the membership counts two majorities: a change of it has begun and not ended.
    pub fn is_joint(&self) -> bool {
        let metrics = self.raft().server_metrics();
        metrics.borrow_watched().membership_config.membership().get_joint_config().len() > 1
    }

    /// Those who are no members any more and whose removal is to be finished.
    fn half_removed(&self) -> BTreeSet<MemberId> {
        let mut leaving = group::leaving(&self.machine().state.read());
        leaving.retain(|member| self.address_of(*member).is_none());
        leaving
    }

    /// Finishes what was begun and cut.
    async fn finish(&self) -> Result<(), Refusal> {
        if self.is_joint() {
            // Nobody is added: this is openraft's own second step.
            self.change_members(ChangeMembers::AddVoterIds(BTreeSet::new())).await?;
            tracing::info!("finished a change of the group");
        }
        self.forget(&self.half_removed()).await
    }

    /// Has `gone`, who are no members, forgotten.
    async fn forget(&self, gone: &BTreeSet<MemberId>) -> Result<(), Refusal> {
        let forgotten = group::forget(&self.machine().state.read(), gone);
        if !forgotten.is_empty() {
            if let Told::Written(_, Err(_)) = self.write(Transaction::new(forgotten)).await? {
                // A record of theirs went or came meanwhile; it is asked again.
                return Err(Refusal::NotLeader(None));
            }
            tracing::info!(members = ?gone, "removed from the group");
        }
        Ok(())
    }

    async fn announced(&self, member: MemberId, address: String) -> Result<(), Refusal> {
        // Whoever was being removed when that was cut is forgotten by now.
        let number = group::number(&self.machine().state.read(), member);
        match self.address_of(member) {
            Some(known) if known == address => Ok(()),
            Some(known) => {
                self.check_moved(member, &known, &address).await?;
                let node = BTreeMap::from([(member, BasicNode::new(address))]);
                self.change_members(ChangeMembers::SetNodes(node)).await
            }
            None => match number {
                Number::Taken => {
                    let node = BTreeMap::from([(member, BasicNode::new(address))]);
                    self.change_members(ChangeMembers::AddNodes(node)).await
                }
                Number::Gone => Err(Refusal::Removed(member)),
                // What admitted it is not applied here yet.
                Number::Unknown => Err(Refusal::NotLeader(None)),
            },
        }
    }

    /// Refuses that `member` moves from `known` to `address` while another process answers as that member where it was: an old copy
    /// of its directory would take its place, vote again where it has voted, and both would go on. Whoever has two addresses is one.
    async fn check_moved(&self, member: MemberId, known: &str, address: &str) -> Result<(), Refusal> {
        let here = async {
            match member == self.id() {
                true => Answering::Process(self.process()),
                false => self.answering(member, address).await,
            }
        };
        let why = match tokio::join!(self.answering(member, known), here) {
            (Answering::Process(old), Answering::Process(new)) if old != new => format!(
                "another process uses this member's data at {known}: one of the two has an old copy of it; stop that one, and \
                 delete its directory"
            ),
            (Answering::Process(_), Answering::Nobody) => {
                format!("the leader reaches this member at {known}, and does not reach it at {address}")
            }
            // A version that does not say it moves as it always did.
            _ => return Ok(()),
        };
        if self.is_doubled_anew(member, address) {
            tracing::warn!(member, known, address, why, "a member that says that it has moved is not taken for it");
        }
        Err(Refusal::Refused(why))
    }

    /// Removes members, and numbers that were admitted and did not come.
    async fn remove(&self, gone: &BTreeSet<MemberId>) -> Result<(), Refusal> {
        self.hear_all().await;
        let view = self.view();
        let (absent, members): (BTreeSet<MemberId>, BTreeSet<MemberId>) = {
            let state = self.machine().state.read();
            let is_member = |member: &MemberId| view.voters.contains(member) || view.learners.contains(member);
            let is_absent = |member: &MemberId| !is_member(member) && group::number(&state, *member) == Number::Taken;
            gone.iter().copied().partition(is_absent)
        };
        let left = view.without(&members).map_err(Refusal::Refused)?;
        if gone.contains(&self.id()) {
            // Whoever leads then carries it out. Where no voter is left that could, those who are to be left count before.
            let successor = match view.successor(gone) {
                Some(successor) => successor,
                None => {
                    let learners: BTreeSet<MemberId> = left.difference(&view.voters).copied().collect();
                    let none = || Refusal::Refused("no member that is left can lead now: try again in a moment".into());
                    let successor = learners.last().copied().ok_or_else(none)?;
                    self.count(&view.voters.union(&learners).copied().collect(), &learners).await?;
                    self.change_members(ChangeMembers::AddVoterIds(learners)).await?;
                    successor
                }
            };
            self.transfer(successor).await;
            return Err(Refusal::NotLeader(Some(successor)));
        }
        if left != view.voters {
            // What those have who are away already is no more by waiting.
            let nobody = BTreeSet::new();
            self.count(&left, if members.is_disjoint(&view.up) { &nobody } else { &left }).await?;
        }
        // From the next step on whoever leads finishes it. It is also what a full disk refuses.
        let marks = group::mark_leaving(&self.machine().state.read(), &members);
        if !marks.is_empty()
            && let Told::Written(_, Err(_)) = self.write(Transaction::new(marks)).await?
        {
            // One of them was introduced meanwhile; nothing is done, and it is asked again.
            return Err(Refusal::NotLeader(None));
        }
        if left != view.voters {
            self.change_members(ChangeMembers::ReplaceAllVoters(left)).await?;
        }
        let nodes: BTreeSet<MemberId> =
            members.iter().copied().filter(|member| self.address_of(*member).is_some()).collect();
        if !nodes.is_empty() {
            self.change_members(ChangeMembers::RemoveNodes(nodes)).await?;
        }
        self.forget(&absent.union(&members).copied().collect()).await
    }

    /// Lets a member end and begin anew, when the others are a majority that has everything, and nobody else is on the way.
    async fn let_begin_anew(&self, beginning: MemberId, formats: Formats) -> Result<(), Refusal> {
        self.all_others(beginning).await.map_err(Refusal::Refused)?;
        let ops = group::let_begin_anew(&self.machine().state.read(), beginning, formats).map_err(Refusal::Refused)?;
        match self.write(Transaction::new(ops)).await? {
            Told::Written(_, Ok(_)) => Ok(()),
            _ => {
                let others = group::beginning_anew(&self.machine().state.read(), beginning);
                Err(match others.first() {
                    Some(other) => Refusal::Refused(format!("member {other} is beginning anew, and is not back yet")),
                    // What it depends on changed meanwhile; it is asked again.
                    None => Refusal::NotLeader(None),
                })
            }
        }
    }

    /// Waits until all voters but `not` were heard of after this was called and have what the log holds now, and no longer than after
    /// which whoever is silent is down; an error says who does not. Of three, two go on without the third, but not without two.
    async fn all_others(&self, not: MemberId) -> Result<(), String> {
        let (last, asked) = (self.raft().metrics().borrow_watched().last_log_index, host::now());
        let others: Vec<MemberId> =
            self.view().voters.into_iter().filter(|voter| ![not, self.id()].contains(voter)).collect();
        let is_heard = move |raft: &openraft::RaftMetrics<TypeConfig>, other: &MemberId| {
            let heard = raft.heartbeat.as_ref().and_then(|all| all.get(other)?.as_ref().map(|at| at.elapsed()));
            heard.is_some_and(|heard| heard <= asked.elapsed())
        };
        let has_all = move |raft: &openraft::RaftMetrics<TypeConfig>, other: &MemberId| {
            raft.replication.as_ref().and_then(|all| all.get(other)?.as_ref().map(|id| id.index)) >= last
        };
        let all = others.clone();
        let are_well = move |raft: &openraft::RaftMetrics<TypeConfig>| {
            all.iter().all(|other| is_heard(raft, other) && has_all(raft, other))
        };
        if self.raft().wait(Some(self.up_within())).metrics(are_well, "all others are well").await.is_ok() {
            return Ok(());
        }
        let metrics = self.raft().metrics();
        let metrics = metrics.borrow_watched().clone();
        let why = others.iter().find_map(|other| match (is_heard(&metrics, other), has_all(&metrics, other)) {
            (false, _) => Some(format!("member {other} cannot be reached, and the others need this one")),
            (true, false) => Some(format!("member {other} does not have everything yet that the others have")),
            (true, true) => None,
        });
        why.map_or(Ok(()), Err)
    }

    /// Waits until everybody was heard of in this term, and no longer than after which those who were not are down: whoever has
    /// just begun to lead has heard of nobody.
    async fn hear_all(&self) {
        let id = self.id();
        let heard = move |metrics: &openraft::RaftMetrics<TypeConfig>| match &metrics.heartbeat {
            Some(heartbeat) => heartbeat.iter().all(|(member, heard)| *member == id || heard.is_some()),
            None => true,
        };
        // Those who are not heard of are down.
        let _ = self.raft().wait(Some(self.up_within())).metrics(heard, "all are heard of").await;
    }

    /// Finishes what was cut, and makes voters of learners that are ready; nothing while the group is being changed. In a task
    /// of its own: a change waits for a majority, and whoever leads has to see meanwhile whether it still does.
    pub fn tend(self: &Arc<Self>) {
        let Ok(one) = self.changing().clone().try_lock_owned() else { return };
        let is_unfinished = self.is_joint() || !self.half_removed().is_empty();
        let view = self.view();
        let is_counted = group::is_counted(&self.machine().state.read(), &view.voters);
        if !is_unfinished && is_counted && view.promotable().is_empty() {
            return;
        }
        let member = self.clone();
        tokio::spawn(async move {
            let _one = one;
            match member.finish().await {
                Ok(()) => member.promote().await,
                Err(error) => tracing::warn!(?error, "finish a change of the group; it is tried again"),
            }
        });
    }

    /// Has a voter lead that is in step and has room, while this member leads and its disk has none: it would refuse what the others
    /// could take. In a task of its own, as [`Member::tend`].
    pub fn make_room(self: &Arc<Self>) {
        if !self.is_short_of_space() {
            return;
        }
        let Ok(one) = self.changing().clone().try_lock_owned() else { return };
        let member = self.clone();
        tokio::spawn(async move {
            let _one = one;
            if let Some(successor) = member.one_with_room().await {
                tracing::warn!(
                    successor,
                    "the disk of this server is full, and another one's is not: that one is to lead"
                );
                member.transfer(successor).await;
            }
        });
    }

    /// A voter that could lead and says that it has room.
    async fn one_with_room(&self) -> Option<MemberId> {
        let view = self.view();
        let others = view.voters.iter().filter(|member| **member != view.leader && view.up.contains(member));
        self.first_with_room(others.copied().filter(|member| view.caught_up.contains(member))).await
    }

    /// The first of `members` that says that it has room; a version that does not say it is not taken for one.
    pub async fn first_with_room(&self, members: impl Iterator<Item = MemberId>) -> Option<MemberId> {
        for member in members {
            let Some(address) = self.reached_at(member) else { continue };
            let asked = self.transport().call(member, &address, Call::Ask(Ask::Process));
            let told = tokio::time::timeout(PROCESS_TIMEOUT, asked).await;
            if let Ok(Ok(Answer::Told(Ok(Told::Process { has_room: true, .. })))) = told {
                return Some(member);
            }
        }
        None
    }

    /// Makes voters of learners that are ready, if that gives an odd number, and they say that they have everything; what is waited for
    /// comes with the next look. Where there are none the voters are those who count.
    async fn promote(&self) {
        let view = self.view();
        let promotable = view.promotable();
        let voters = view.voters.union(&promotable).copied().collect();
        if let Err(error) = self.say_who_counts(&voters, &promotable).await {
            tracing::debug!(?error, ?voters, "say who is to count; it is tried again");
            return;
        }
        if promotable.is_empty() || !group::asked(&self.machine().state.read(), &promotable).is_empty() {
            return;
        }
        match self.change_members(ChangeMembers::AddVoterIds(promotable.clone())).await {
            Ok(()) => tracing::info!(members = ?promotable, "they are voters now"),
            Err(error) => tracing::warn!(?error, members = ?promotable, "make them voters; it is tried again"),
        }
    }

    /// Has `voters` count for what is kept beside the log, before they are the voters, and asks those of `asked` whether they have it.
    async fn say_who_counts(&self, voters: &BTreeSet<MemberId>, asked: &BTreeSet<MemberId>) -> Result<(), Refusal> {
        let ops = group::count(&self.machine().state.read(), voters, asked);
        if ops.is_empty() {
            return Ok(());
        }
        match self.write(Transaction::new(ops)).await? {
            Told::Written(_, Ok(_)) => Ok(()),
            // One of them has said something meanwhile; it is asked again.
            _ => Err(Refusal::NotLeader(None)),
        }
    }

    /// The same, and waits until most of `voters` have what is kept beside the log: what was on a majority before is on one of them.
    async fn count(&self, voters: &BTreeSet<MemberId>, asked: &BTreeSet<MemberId>) -> Result<(), Refusal> {
        self.say_who_counts(voters, asked).await?;
        let mut applied = self.machine().applied.subscribe();
        let lacking = || group::asked(&self.machine().state.read(), asked);
        let answered = async {
            // What was applied before the first look is in it.
            while lacking().len() * 2 >= voters.len() && applied.changed().await.is_ok() {}
        };
        if tokio::time::timeout(ANSWERS_WITHIN, answered).await.is_ok() {
            return Ok(());
        }
        let lacking = lacking();
        let up = self.view().up;
        let silent: BTreeSet<MemberId> = lacking.difference(&up).copied().collect();
        Err(Refusal::Refused(match silent.len() {
            0 => format!(
                "of those that would be left, {} not have all images yet: try again in a moment",
                words(&lacking, "does", "do")
            ),
            _ => format!(
                "of those that would be left, {} not answer, and they could not go on: bring what is silent back, or remove it first",
                words(&silent, "does", "do")
            ),
        }))
    }

    /// Raises the version of the entries that is in use to what all members understand.
    pub async fn raise_format(&self) {
        let raise = {
            let state = self.machine().state.read();
            formats::raise(&state, &group::admitted(&state))
        };
        if raise.is_empty() {
            return;
        }
        match self.write(Transaction::new(raise)).await {
            Ok(Told::Written(_, Ok(_))) => {
                tracing::info!("all servers know a newer format of the log: it is in use now")
            }
            told => tracing::debug!(?told, "raise the format of the log; it is tried again"),
        }
    }

    async fn change_members(&self, change: ChangeMembers<MemberId, BasicNode>) -> Result<(), Refusal> {
        match self.raft().change_membership(change, false).await {
            Ok(done) => {
                // The answer may come before Raft shows the change to those who look at its members.
                let at = done.log_id.index;
                let shown = self.raft().wait(Some(SHOWN_WITHIN));
                let shows = shown.metrics(
                    |raft| raft.membership_config.log_id().as_ref().is_some_and(|log| log.index >= at),
                    "shown",
                );
                if let Err(error) = shows.await {
                    tracing::warn!(%error, "a change of the group is not shown");
                }
                Ok(())
            }
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward))) => {
                Err(Refusal::NotLeader(forward.leader_id))
            }
            Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(error))) => {
                Err(Refusal::Refused(error.to_string()))
            }
            Err(error) => {
                tracing::warn!(%error, "a change of the group has no known outcome");
                Err(Refusal::Unknown)
            }
        }
    }

    /// Makes `voters` the voters, and the others learners.
    #[cfg(any(test, feature = "simulation"))]
    pub async fn replace_voters(&self, voters: BTreeSet<MemberId>) -> bool {
        self.raft().change_membership(ChangeMembers::ReplaceAllVoters(voters), true).await.is_ok()
    }

    /// Gives leadership to another voter that is up, if this member has it. Whether it has it no more.
    pub async fn hand_over(&self) -> bool {
        if self.leading().is_none() {
            return true;
        }
        // The next leader may need this one's vote to finish what is begun, and this one may be about to stop.
        let finished = tokio::time::timeout(HAND_OVER_TIMEOUT, async {
            let one = self.changing().lock().await;
            self.finish().await.map(|()| one)
        });
        let _one = finished.await;
        match self.view().successor(&BTreeSet::new()) {
            Some(successor) => self.transfer(successor).await,
            None => false,
        }
    }

    /// Asks `successor` to lead, and waits until it does.
    pub async fn transfer(&self, successor: MemberId) -> bool {
        if self.raft().trigger().transfer_leader(successor).await.is_err() {
            return false;
        }
        let id = self.id();
        let led = move |metrics: &openraft::RaftMetrics<TypeConfig>| {
            metrics.current_leader.is_some_and(|leader| leader != id)
        };
        let waited = self.raft().wait(Some(HAND_OVER_TIMEOUT)).metrics(led, "another leads").await;
        waited.is_ok()
    }

    /// Says in the log that this member leads, if it does; what its duties' writes depend on. `None` when it does not, or
    /// could not say so.
    pub async fn take_lead(&self) -> Option<Lead> {
        let term = self.leading()?;
        let ops = group::take_lead(&self.machine().state.read(), self.id(), term);
        let told = self.write(Transaction::new(ops)).await;
        match told {
            Ok(Told::Written(revision, Ok(_))) if self.leading() == Some(term) => Some(Lead::new(term, revision)),
            Ok(_) => None,
            Err(refusal) => {
                tracing::debug!(?refusal, "say who leads");
                None
            }
        }
    }
}

/// Members, and what `one` of them or `several` do.
fn words(members: &BTreeSet<MemberId>, one: &str, several: &str) -> String {
    let named: Vec<String> = members.iter().map(|member| format!("member {member}")).collect();
    format!("{} {}", named.join(" and "), if named.len() == 1 { one } else { several })
}

/// What a member that was removed is told.
pub fn removed(member: MemberId) -> String {
    format!(
        "member {member} was removed from this cluster, or never admitted: stop it, delete its data with `coracle reset`, and \
         join again to get a new number"
    )
}

#[cfg(test)]
mod cut;

#[cfg(test)]
mod tests {
    use super::*;

    fn view(voters: &[MemberId], learners: &[MemberId], down: &[MemberId]) -> View {
        let all: BTreeSet<MemberId> = voters.iter().chain(learners).copied().collect();
        let up: BTreeSet<MemberId> = all.difference(&down.iter().copied().collect()).copied().collect();
        View {
            leader: voters[0],
            voters: voters.iter().copied().collect(),
            learners: learners.iter().copied().collect(),
            caught_up: up.clone(),
            up,
            incomplete: BTreeSet::new(),
        }
    }

    #[test]
    fn learners_are_promoted_together_and_voters_are_odd() {
        for (voters, learners, down, expected) in [
            (&[1][..], &[][..], &[][..], &[][..]),
            (&[1], &[2], &[], &[]),
            (&[1], &[2, 3], &[], &[2, 3]),
            (&[1], &[2, 3], &[3], &[]),
            (&[1], &[2, 3, 4], &[3], &[2, 4]),
            (&[1, 2, 3], &[4], &[], &[]),
            (&[1, 2, 3], &[4, 5, 6], &[], &[4, 5]),
            (&[1, 2], &[7], &[], &[7]),
            (&[1, 2, 3, 4, 5], &[6, 7], &[], &[]),
        ] {
            let found: Vec<MemberId> = view(voters, learners, down).promotable().into_iter().collect();
            assert_eq!(found, expected, "{voters:?} {learners:?} {down:?}");
        }
        // Who lacks images counts for no majority that has them, and takes nobody's place.
        let waiting = |voters: &[MemberId], incomplete: &[MemberId]| View {
            incomplete: incomplete.iter().copied().collect(),
            ..view(voters, &[4, 5, 6], &[])
        };
        assert_eq!(waiting(&[1], &[4]).promotable(), BTreeSet::from([5, 6]));
        assert_eq!(waiting(&[1], &[4, 5]).promotable(), BTreeSet::new());
        assert_eq!(waiting(&[1, 2, 3], &[4]).without(&BTreeSet::from([3])), Ok(BTreeSet::from([1, 2, 5])));
        assert_eq!(waiting(&[1, 2, 3], &[4, 5, 6]).without(&BTreeSet::from([3])), Ok(BTreeSet::from([1, 2])));
    }

    #[test]
    fn a_removal_leaves_a_majority_that_is_up_or_is_refused() {
        let gone = |members: &[MemberId]| members.iter().copied().collect::<BTreeSet<_>>();
        for (voters, learners, down, members, expected) in [
            (&[1, 2, 3][..], &[][..], &[3][..], &[3][..], Ok(vec![1, 2])),
            (&[1, 2, 3], &[], &[3], &[2], Err("member 3 cannot be reached")),
            (&[1, 2, 3], &[], &[], &[2, 3], Ok(vec![1])),
            (&[1, 2, 3], &[4], &[3], &[3], Ok(vec![1, 2, 4])),
            (&[1, 2, 3], &[4], &[3, 4], &[3], Ok(vec![1, 2])),
            (&[1, 2, 3], &[4], &[], &[4], Ok(vec![1, 2, 3])),
            (&[1, 2, 3], &[], &[2], &[9], Err("no member 9")),
            (&[1], &[2], &[2], &[1], Err("all who have the data")),
            (&[1], &[2], &[], &[1], Ok(vec![2])),
        ] {
            let found = view(voters, learners, down).without(&gone(members));
            match (found, expected) {
                (Ok(left), Ok(expected)) => assert_eq!(left.into_iter().collect::<Vec<_>>(), expected),
                (Err(why), Err(part)) => assert!(why.contains(part), "{why}"),
                (found, expected) => {
                    panic!("{voters:?} {learners:?} {down:?} {members:?}: {found:?}, not {expected:?}")
                }
            }
        }
    }
}
