//! The group: the members that keep the same data, and what changes who they are.
//!
//! ```text
//! admit (on any member) ─► a number, allocated in the log ─► Admission ─► the new server opens with it (Begin::Join)
//!   ─► it announces its address to the leader ─► learner ─► caught up ─► promoted, together with others: 1 → 3 → 5 voters
//! remove (on any member) ─► the leader looks whether a majority is left ─► marks it ─► one joint change, which whoever leads
//!   finishes, once it has begun ─► the number is never used again: whoever leads forgets who is marked and no member
//! ```
//! What members keep beside the log (images) is on a majority of them only if those who acknowledge it and those who change the
//! members know of each other: who is to count next is a record, written before voters change ([`Counted`]). Whatever is acknowledged
//! has the condition that it is as it was, and those who are to count are asked, after it was written, whether they have everything.
//!
//! Whoever is admitted gets a number that no other ever had or will have. A member speaks with another only when both
//! belong to the same cluster, show a certificate for their number, and neither was removed.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::formats::{self, Formats};
use crate::raft::{ALONE_AFTER, Ask, Change, Clock, MemberId, Refusal, Told};
use crate::record::{Guard, Key, Op, Record, Revision, Value};
use crate::state::State;
use crate::{Keyspace, NoRoom, TransactError};

/// The collection in which a group keeps its own records. No kind of object has a name with a blank.
pub(crate) const GROUP: &str = "coracle group";
/// The record that says who leads; its revision is the fence of the leader's duties.
const LEADER: &str = "leader";
/// The record that says which number is the next member's.
pub(crate) const NEXT: &str = "next";
/// The record that says who is to count for what is kept beside the log.
const COUNTED: &str = "counted";
/// What the record of a member that keeps something beside the log says: that it has all of it, or is asked whether it has.
const HAS_ALL: &str = "all";
const ASKED: &str = "asked";
/// How the names of the members' records begin.
const MEMBER: &str = "member ";
/// The second line of the record of a member that is being removed.
const LEAVING: &str = "leaving";
/// How often an admission that meets another is tried again.
const ADMISSIONS_TRIED: usize = 16;
/// How many numbers a member that goes on alone leaves out: more than the others can have given since it heard of them.
const NUMBERS_AHEAD: MemberId = 100;
/// Longest name of a member.
const NAME_BYTES_MAX: usize = 253;

/// What tells one cluster from all others: made when it is founded, kept on disk by every member, said on every link.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterId([u8; 16]);

impl ClusterId {
    /// The id made of two random numbers.
    pub(crate) fn new(random: [u64; 2]) -> ClusterId {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&random[0].to_le_bytes());
        bytes[8..].copy_from_slice(&random[1].to_le_bytes());
        ClusterId(bytes)
    }

    pub(crate) fn bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// The name by which the certificate of the member `member` of this cluster says so. It has a `_`, which no name of a
    /// node or host has: nobody else can be given a certificate for it.
    pub fn certificate_name(&self, member: MemberId) -> String {
        format!("member_{member}.{self}.coracle")
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is no [`ClusterId`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a cluster's id has 32 hexadecimal digits")]
pub struct NoClusterId;

impl FromStr for ClusterId {
    type Err = NoClusterId;

    fn from_str(text: &str) -> Result<ClusterId, NoClusterId> {
        let digits = text.len() == 32 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let number = u128::from_str_radix(text, 16).ok().filter(|_| digits).ok_or(NoClusterId)?;
        Ok(ClusterId(number.to_be_bytes()))
    }
}

impl Serialize for ClusterId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ClusterId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Where a member is reached by the others.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Peer {
    /// Its number.
    pub member: MemberId,
    /// `HOST:PORT` of its listener for other members.
    pub address: String,
}

/// What a new member needs to know to be one ([`Keyspace::admit`], [`Begin::Join`]).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Admission {
    /// The cluster.
    pub cluster: ClusterId,
    /// The new member's number. It is used once: whoever asks again gets another.
    pub member: MemberId,
    /// Whom it can tell that it is there.
    pub peers: Vec<Peer>,
}

/// What happens where no keyspace is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Begin {
    /// A cluster is founded, of which this is the first member.
    Found,
    /// This becomes a member of the cluster that admitted it. Opening the same directory with the same admission again is
    /// no error.
    Join(Admission),
    /// Nothing: one must be there, and what is missing is not made.
    Resume,
}

/// What a member is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// It counts: what a majority of the voters has is never lost.
    Voter,
    /// It has the data, or gets it, and does not count yet.
    Learner,
    /// It was admitted, and has not come.
    Absent,
}

/// A member, as another sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MemberStatus {
    /// Its number.
    pub member: MemberId,
    /// The name under which it was admitted; empty for the first.
    pub name: String,
    /// `HOST:PORT` of its listener for other members; empty while nobody can reach it.
    pub address: String,
    /// Where clients reach it ([`Keyspace::advertise`]); empty when it has not said so.
    pub api: String,
    /// What it is.
    pub role: Role,
    /// Which versions of the log's entries it understands.
    pub formats: Formats,
    /// Whether it leads, as far as the one who was asked knows.
    pub leads: bool,
    /// Up to where it has the log. Known to the leader only.
    pub matched: Option<Revision>,
    /// How long ago it was heard of. Known to the leader, and to everybody that has none.
    pub heard: Option<Duration>,
    /// Whether it does not count before it says that it has all it needs ([`Promotion::WhenComplete`]).
    pub waits: bool,
    /// Whether it lacks what it has acknowledged ([`Alarm::Lost`](crate::Alarm::Lost)). Known to the leader only.
    pub has_lost: bool,
    /// Whose clock keeps the one that was asked from reaching it.
    pub clock: Option<Clock>,
}

/// When a member that is admitted may become a voter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Promotion {
    /// As soon as it has the log.
    WhenCaughtUp,
    /// When it has said, too, that it has what else it needs ([`Keyspace::complete`]): a voter that lacks what is kept beside the log
    /// would count for a majority that has it.
    WhenComplete,
}

/// Who counts for what is kept beside the log: it is acknowledged when a majority of each of the sets has it, under the
/// [condition](Counted::condition) that this is so still.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Counted {
    /// The voters, and those who are to be.
    pub sets: Vec<BTreeSet<MemberId>>,
    /// Of the record that says so; 0 where there is none.
    pub version: u64,
}

impl Counted {
    /// The condition that `version` is still the one of the record.
    pub fn condition(version: u64) -> Op {
        let guard = if version == 0 { Guard::Absent } else { Guard::Revision(Revision::new(version)) };
        Op::Check { key: key(COUNTED), guard }
    }

    /// Whether `op` is such a condition.
    pub fn is_condition(op: &Op) -> bool {
        matches!(op, Op::Check { key, .. } if &*key.collection == GROUP && &*key.name == COUNTED)
    }
}

/// What a member is asked to have beside the log ([`Keyspace::incomplete`]).
#[derive(Debug)]
pub struct Incomplete(Vec<Op>);

/// Something about the group that an operator should do something about.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum GroupAlarm {
    /// This one is no member any more.
    #[error("{}", crate::raft::removed(*member))]
    Removed {
        /// This member.
        member: MemberId,
    },
}

/// Why the group is as it was.
#[derive(Debug, thiserror::Error)]
pub enum GroupError {
    /// It would do harm, or makes no sense; nothing was done.
    #[error("{0}")]
    Refused(String),
    /// What it depends on is not as it was; nothing was done.
    #[error("something has changed meanwhile: try again")]
    Changed,
    /// Nobody leads, or the leader cannot be reached: nothing was done, or what was begun is finished by whoever leads next.
    #[error("no member leads that can be reached from here; are too many servers down?")]
    Unavailable,
    /// There is no room for the record of it; nothing was done.
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
    /// It may or may not be done, now or later: look at the members before trying again.
    #[error("the outcome of the change is unknown: look at the members before trying again")]
    Unknown,
    /// The keyspace was shut down.
    #[error("the keyspace was shut down")]
    Stopped,
}

impl From<TransactError> for GroupError {
    fn from(error: TransactError) -> GroupError {
        match error {
            TransactError::NoRoom(room) => GroupError::NoRoom(room),
            TransactError::Unknown => GroupError::Unknown,
            TransactError::Stopped => GroupError::Stopped,
            TransactError::Unavailable { .. } => GroupError::Unavailable,
            TransactError::Guard(_) => GroupError::Changed,
            error => GroupError::Refused(error.to_string()),
        }
    }
}

impl From<Refusal> for GroupError {
    fn from(refusal: Refusal) -> GroupError {
        match refusal {
            Refusal::NotLeader(_) => GroupError::Unavailable,
            Refusal::NoRoom(room) => GroupError::NoRoom(room),
            Refusal::Unknown => GroupError::Unknown,
            Refusal::Refused(why) => GroupError::Refused(why),
            Refusal::Removed(member) => GroupError::Refused(crate::raft::removed(member)),
        }
    }
}

/// That this member leads, in one term. Duties that only a leader has begin with it and end with it, and every write of
/// theirs carries its [`Lead::fence`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lead {
    /// The term.
    pub term: u64,
    revision: Revision,
}

impl Lead {
    pub(crate) fn new(term: u64, revision: Revision) -> Lead {
        Lead { term, revision }
    }

    /// The condition that nobody has begun to lead since: a transaction that has it among its operations happens under this
    /// lead or not at all, however late it arrives and whoever proposes it.
    pub fn fence(&self) -> Op {
        Op::Check { key: key(LEADER), guard: Guard::Revision(self.revision) }
    }
}

/// Whether `op` is the [fence](Lead::fence) of some lead.
pub(crate) fn is_fence(op: &Op) -> bool {
    matches!(op, Op::Check { key, .. } if &*key.collection == GROUP && &*key.name == LEADER)
}

pub(crate) fn key(name: &str) -> Key {
    Key::new(GROUP, name)
}

fn member_key(member: MemberId) -> Key {
    key(&format!("{MEMBER}{member}"))
}

fn api_key(member: MemberId) -> Key {
    key(&format!("api {member}"))
}

/// The record of a member that does not count yet, however much of the log it has.
fn waits_key(member: MemberId) -> Key {
    key(&format!("waits {member}"))
}

/// Whether `member` has not said yet that it has all that it needs.
pub(crate) fn waits(state: &State, member: MemberId) -> bool {
    state.record(&waits_key(member)).is_some()
}

/// The record of a member that keeps something beside the log and says whether it has all of it.
fn keeps_key(member: MemberId) -> Key {
    key(&format!("keeps {member}"))
}

/// Those of `members` that were asked whether they have what is kept beside the log, and have not answered.
pub(crate) fn asked(state: &State, members: &BTreeSet<MemberId>) -> BTreeSet<MemberId> {
    let is_asked = |member: &MemberId| {
        state.record(&keeps_key(*member)).is_some_and(|record| first_line_bytes(&record.bytes) == ASKED.as_bytes())
    };
    members.iter().copied().filter(is_asked).collect()
}

fn numbers(members: &BTreeSet<MemberId>) -> String {
    members.iter().map(MemberId::to_string).collect::<Vec<_>>().join(" ")
}

/// Whether `voters` are those who count for what is kept beside the log.
pub(crate) fn is_counted(state: &State, voters: &BTreeSet<MemberId>) -> bool {
    state.record(&key(COUNTED)).is_some_and(|record| first_line(&record.bytes) == numbers(voters))
}

/// What has `voters` count from now on, and asks those of `asked` who can answer; nothing where they count. All records but the first
/// are there: it fits where nothing new does.
pub(crate) fn count(state: &State, voters: &BTreeSet<MemberId>, asked: &BTreeSet<MemberId>) -> Vec<Op> {
    if is_counted(state, voters) {
        return Vec::new();
    }
    let guard = |record: Option<&Arc<Record>>| record.map_or(Guard::Absent, |record| Guard::Revision(record.revision));
    let counted = key(COUNTED);
    let mut ops = vec![line(counted.clone(), &numbers(voters), guard(state.record(&counted)))];
    let able = asked.iter().filter_map(|member| state.record(&keeps_key(*member)));
    ops.extend(able.map(|record| line(record.key.clone(), ASKED, Guard::Revision(record.revision))));
    ops
}

/// The record of a member that was let begin anew and has not said that it is back.
pub(crate) fn anew_key(member: MemberId) -> Key {
    key(&format!("anew {member}"))
}

/// Who of all but `member` is beginning anew.
pub(crate) fn beginning_anew(state: &State, member: MemberId) -> BTreeSet<MemberId> {
    let others = admitted(state).into_iter().filter(|other| *other != member);
    others.filter(|other| state.record(&anew_key(*other)).is_some()).collect()
}

/// What lets `member` begin anew with a program that understands `formats`, as long as nobody else does; an error where the program does
/// not understand what is written. No version is raised beyond what both lives understand.
pub(crate) fn let_begin_anew(state: &State, member: MemberId, formats: Formats) -> Result<Vec<Op>, String> {
    formats.check(formats::in_use(state)?)?;
    let now = formats::of(state, member);
    let mut ops = formats::tell(state, member, Formats { newest: formats.newest.min(now.newest), ..formats })?;
    ops.push(Op::Check { key: member_key(member), guard: Guard::Present });
    let others = admitted(state).into_iter().filter(|other| *other != member);
    ops.extend(others.map(|other| Op::Check { key: anew_key(other), guard: Guard::Absent }));
    ops.push(line(anew_key(member), "", Guard::None));
    Ok(ops)
}

fn names_key(member: MemberId) -> Key {
    key(&format!("names {member}"))
}

/// A record of a line, or of several; its revision stands in the next.
pub(crate) fn line(key: Key, text: &str, guard: Guard) -> Op {
    let bytes = Bytes::from(format!("{text}\n"));
    Op::Put { key, value: Value { revision_at: bytes.len(), bytes }, guard }
}

fn first_line_bytes(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == b'\n').next().unwrap_or_default()
}

/// The first line of a record. One that is no text is neither empty nor anything that is expected.
pub(crate) fn first_line(bytes: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(first_line_bytes(bytes))
}

/// What whoever begins to lead writes; the first of all writes the group's first records with it.
pub(crate) fn take_lead(state: &State, member: MemberId, term: u64) -> Vec<Op> {
    let mut ops = vec![line(key(LEADER), &format!("{member} {term}"), Guard::None)];
    if state.record(&key(NEXT)).is_none() {
        ops.push(line(key(NEXT), &(member + 1).to_string(), Guard::Absent));
        ops.push(line(member_key(member), "", Guard::Absent));
        ops.push(line(key(COUNTED), &member.to_string(), Guard::Absent));
    }
    ops
}

/// What is known of a number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Number {
    /// Somebody has it.
    Taken,
    /// Somebody had it.
    Gone,
    /// Nobody has it, as far as is known here.
    Unknown,
}

/// What is known of `member` in `state`.
pub(crate) fn number(state: &State, member: MemberId) -> Number {
    if state.record(&member_key(member)).is_some() {
        return Number::Taken;
    }
    let next = state.record(&key(NEXT)).and_then(|next| first_line(&next.bytes).parse::<MemberId>().ok());
    if next.is_some_and(|next| member < next) { Number::Gone } else { Number::Unknown }
}

/// The name under which `member` was admitted.
pub(crate) fn name(state: &State, member: MemberId) -> String {
    state.record(&member_key(member)).map(|record| first_line(&record.bytes).into_owned()).unwrap_or_default()
}

/// Where clients reach `member`.
pub(crate) fn api(state: &State, member: MemberId) -> String {
    state.record(&api_key(member)).map(|record| first_line(&record.bytes).into_owned()).unwrap_or_default()
}

/// Whether the record of a member has the mark that it is being removed: a second line of its own.
fn is_leaving(record: &Record) -> bool {
    record.bytes.split(|byte| *byte == b'\n').nth(1) == Some(LEAVING.as_bytes())
}

/// Those who have the mark. It means nothing as long as they are members.
pub(crate) fn leaving(state: &State) -> BTreeSet<MemberId> {
    let records = state.collection(GROUP).into_iter().flat_map(|group| group.records.values());
    let leaving = records.filter(|record| is_leaving(record));
    leaving.filter_map(|record| record.key.name.strip_prefix(MEMBER)?.parse().ok()).collect()
}

/// What marks those of `members` that are known and have no mark. Their records are there: it fits where nothing new does.
pub(crate) fn mark_leaving(state: &State, members: &BTreeSet<MemberId>) -> Vec<Op> {
    let records = members.iter().filter_map(|member| state.record(&member_key(*member)));
    let unmarked = records.filter(|record| !is_leaving(record));
    let mark = |record: &Arc<Record>| {
        let bytes = [first_line_bytes(&record.bytes), b"\n", LEAVING.as_bytes(), b"\n"].concat();
        let value = Value { revision_at: bytes.len(), bytes: bytes.into() };
        Op::Put { key: record.key.clone(), value, guard: Guard::Revision(record.revision) }
    };
    unmarked.map(mark).collect()
}

/// What forgets those of `members` that are known.
pub(crate) fn forget(state: &State, members: &BTreeSet<MemberId>) -> Vec<Op> {
    let of = |member| {
        let said = [api_key(member), names_key(member), formats::key_of(member), keeps_key(member)];
        said.into_iter().chain([member_key(member), waits_key(member), anew_key(member)])
    };
    let keys = members.iter().flat_map(|member| of(*member));
    let known = keys.filter(|key| state.record(key).is_some());
    known.map(|key| Op::Delete { key, guard: Guard::Present }).collect()
}

/// What makes `lost` strangers, and every number that they may have given to others meanwhile. `None` when `state` lacks the
/// record of the next number, so that it is no group's.
pub(crate) fn go_on_without(state: &State, lost: &BTreeSet<MemberId>) -> Option<Vec<Op>> {
    let next = state.record(&key(NEXT))?;
    let number = first_line(&next.bytes).parse::<MemberId>().ok()?;
    let mut ops = forget(state, lost);
    ops.push(line(key(NEXT), &number.saturating_add(NUMBERS_AHEAD).to_string(), Guard::Present));
    Some(ops)
}

/// The numbers of all that were admitted.
pub(crate) fn admitted(state: &State) -> BTreeSet<MemberId> {
    let records = state.collection(GROUP).into_iter().flat_map(|group| group.records.keys());
    records.filter_map(|name| name.strip_prefix(MEMBER)?.parse().ok()).collect()
}

/// Who was admitted under `name`, or has it since.
fn named(state: &State, name: &str) -> Option<MemberId> {
    admitted(state).into_iter().find(|member| self::name(state, *member) == name)
}

impl Keyspace {
    /// The cluster.
    pub fn cluster(&self) -> ClusterId {
        self.0.cluster
    }

    /// This member's number.
    pub fn member(&self) -> MemberId {
        self.0.id
    }

    /// Allocates a number for a new member, which is called `name` when members are listed, as nobody else is, also of those that were
    /// admitted and have not come. Whoever asks must have proved
    /// that it may: what is returned, with a certificate for it, is all that it takes to get every record. A member that does
    /// not understand what is written is refused.
    pub async fn admit(&self, name: &str, formats: Formats) -> Result<Admission, GroupError> {
        self.admit_until(name, formats, Promotion::WhenCaughtUp).await
    }

    /// The same for one that becomes a voter as `promotion` says.
    pub async fn admit_until(
        &self,
        name: &str,
        formats: Formats,
        promotion: Promotion,
    ) -> Result<Admission, GroupError> {
        if name.is_empty() || name.len() > NAME_BYTES_MAX || name.contains(char::is_control) {
            let why = format!("a server's name has 1 to {NAME_BYTES_MAX} bytes and no control characters");
            return Err(GroupError::Refused(why));
        }
        for _ in 0..ADMISSIONS_TRIED {
            self.barrier().await.map_err(|_| GroupError::Unavailable)?;
            let peers: Vec<Peer> = self
                .members()
                .into_iter()
                .filter(|member| !member.address.is_empty())
                .map(|member| Peer { member: member.member, address: member.address })
                .collect();
            if peers.is_empty() {
                let why = "no server here has an address at which other servers reach it; start it with one first";
                return Err(GroupError::Refused(why.into()));
            }
            let next = self.get(GROUP, NEXT).ok_or(GroupError::Unavailable)?;
            let Ok(member) = first_line(&next.bytes).parse::<MemberId>() else {
                return Err(GroupError::Refused("the record of the next member's number cannot be read".into()));
            };
            // Whoever is admitted at the same moment has taken the number that this would be given.
            if let Some(why) = self.taken(name) {
                return Err(GroupError::Refused(why));
            }
            let mut ops = {
                let state = self.0.machine.state.read();
                let mut ops = formats::tell(&state, member, formats).map_err(GroupError::Refused)?;
                // What tells a range has the condition already; who is of the first format tells none.
                if ops.is_empty() {
                    ops.push(formats::not_raised(&state));
                }
                ops
            };
            ops.push(line(key(NEXT), &(member + 1).to_string(), Guard::Revision(next.revision)));
            ops.push(line(member_key(member), name, Guard::Absent));
            if promotion == Promotion::WhenComplete {
                ops.push(line(waits_key(member), "", Guard::Absent));
            }
            match self.transact(ops).await {
                Ok(_) => return Ok(Admission { cluster: self.0.cluster, member, peers }),
                Err(TransactError::Guard(_)) => (),
                Err(error) => return Err(error.into()),
            }
        }
        Err(GroupError::Refused("too many servers ask to be admitted at the same time; try again".into()))
    }

    /// Why nobody else may be called `name`, where somebody is that was admitted, whether it has come or not; as it is known here.
    pub fn taken(&self, name: &str) -> Option<String> {
        let other = named(&self.0.machine.state.read(), name)?;
        let what_to_do = match self.0.member.address_of(other) {
            Some(_) => "if this one is to take its place,",
            None => {
                "it was given that number and has not come; if that was this one, and its start failed, `coracle reset` here and"
            }
        };
        Some(format!(
            "there is a server {name} already, member {other}: choose another name with --name; {what_to_do} `coracle member remove \
             {other}` first"
        ))
    }

    /// Removes `members` from the group, in one change; learners that have caught up take the places of voters. They are
    /// told nothing: whoever removes a server that is up stops it then. A number that was admitted and never came is revoked the
    /// same way. Refused, with the reason, when what is left could not go on by itself.
    pub async fn remove(&self, members: BTreeSet<MemberId>) -> Result<(), GroupError> {
        let number = |member: &MemberId| self::number(&self.0.machine.state.read(), *member);
        let were_there = members.iter().all(|member| number(member) == Number::Taken);
        match self.0.member.ask(Ask::Change(Change::Remove(members.clone()))).await {
            Ok(Told::Changed) => Ok(()),
            Ok(_) => Err(GroupError::Unknown),
            // Another leader has finished it before it was asked again.
            Err(Refusal::Refused(_))
                if were_there
                    && self.barrier().await.is_ok()
                    && members.iter().all(|member| number(member) == Number::Gone) =>
            {
                Ok(())
            }
            Err(refusal) => Err(refusal.into()),
        }
    }

    /// Asks that this member may end for a while and begin anew, with a program that understands `formats` of the log. The leader lets
    /// it when the others are a majority without it that lacks nothing, and one at a time; otherwise it is refused, with what is waited
    /// for. Whoever was let says [`Keyspace::is_back`] in its next life, or when nothing came of it.
    pub async fn begin_anew(&self, formats: Formats) -> Result<(), GroupError> {
        match self.0.member.ask(Ask::Change(Change::BeginAnew { member: self.0.id, formats })).await {
            Ok(Told::Changed) => Ok(()),
            Ok(_) => Err(GroupError::Unknown),
            Err(refusal) => Err(refusal.into()),
        }
    }

    /// Waits until this member was let begin anew, as far as is known here, and has not said that it is back: also by an answer that
    /// never came, which may be written long after it was given up.
    pub async fn was_let_begin_anew(&self) {
        let mut applied = self.0.machine.applied.subscribe();
        let key = anew_key(self.0.id);
        while self.0.machine.state.read().record(&key).is_none() {
            if applied.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Says that this member is there, after it was let begin anew; nothing where it was not. What lets it meanwhile stays.
    pub async fn is_back(&self) -> Result<(), GroupError> {
        self.barrier().await.map_err(|_| GroupError::Unavailable)?;
        let let_go = self.0.machine.state.read().record(&anew_key(self.0.id)).map(|record| record.revision);
        match let_go {
            Some(revision) => self.is_back_after(revision).await,
            None => Ok(()),
        }
    }

    /// Takes back what let this member begin anew at `revision`, and nothing newer.
    pub(crate) async fn is_back_after(&self, revision: Revision) -> Result<(), GroupError> {
        match self.transact(vec![Op::Delete { key: anew_key(self.0.id), guard: Guard::Revision(revision) }]).await {
            Ok(_) | Err(TransactError::Guard(_)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether this member does not count before it is complete.
    pub fn waits(&self) -> bool {
        waits(&self.0.machine.state.read(), self.0.id)
    }

    /// Says that this member keeps something beside the log, and answers when it is asked whether it has all of it
    /// ([`Keyspace::incomplete`]): it counts only with that.
    pub async fn keeps_more(&self) -> Result<(), GroupError> {
        let key = keeps_key(self.0.id);
        if self.0.machine.state.read().record(&key).is_some() {
            return Ok(());
        }
        // Only as long as it is a member: whoever was removed leaves nothing behind.
        let is_member = Op::Check { key: member_key(self.0.id), guard: Guard::Present };
        match self.transact(vec![is_member, line(key, HAS_ALL, Guard::Absent)]).await {
            Ok(_) | Err(TransactError::Guard(_)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether this member is to have everything that was acknowledged until now, and to say so ([`Keyspace::complete`]). What is
    /// asked later is another question.
    pub fn incomplete(&self) -> Option<Incomplete> {
        let state = self.0.machine.state.read();
        let mut ops = Vec::new();
        if let Some(waits) = state.record(&waits_key(self.0.id)) {
            ops.push(Op::Delete { key: waits.key.clone(), guard: Guard::Revision(waits.revision) });
        }
        let keeps = state.record(&keeps_key(self.0.id));
        if let Some(keeps) = keeps.filter(|keeps| first_line_bytes(&keeps.bytes) == ASKED.as_bytes()) {
            ops.push(line(keeps.key.clone(), HAS_ALL, Guard::Revision(keeps.revision)));
        }
        (!ops.is_empty()).then_some(Incomplete(ops))
    }

    /// Says that this member has what it was asked for.
    pub async fn complete(&self, Incomplete(ops): Incomplete) -> Result<(), GroupError> {
        match self.transact(ops).await {
            // It has said so before and had no answer, or is asked again.
            Ok(_) | Err(TransactError::Guard(_)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Who counts for what is kept beside the log.
    pub fn counted(&self) -> Counted {
        let voters = self.members().into_iter().filter(|member| member.role == Role::Voter).map(|member| member.member);
        let mut sets: Vec<BTreeSet<MemberId>> = vec![voters.collect()];
        let Some(record) = self.get(GROUP, COUNTED) else { return Counted { sets, version: 0 } };
        let next = first_line(&record.bytes).split(' ').filter_map(|number| number.parse().ok()).collect();
        if !sets.contains(&next) {
            sets.push(next);
        }
        Counted { sets, version: record.revision.get() }
    }

    /// The members, in the order of their numbers.
    pub fn members(&self) -> Vec<MemberStatus> {
        self.0.member.members()
    }

    /// Those that were admitted and have not come, as it is known here; whoever does not come any more is removed like a member.
    pub fn absent(&self) -> Vec<MemberStatus> {
        let come: BTreeSet<MemberId> = self.members().into_iter().map(|member| member.member).collect();
        let state = self.0.machine.state.read();
        let absent = admitted(&state).into_iter().filter(|member| !come.contains(member));
        absent
            .map(|member| MemberStatus {
                member,
                name: name(&state, member),
                address: String::new(),
                api: String::new(),
                role: Role::Absent,
                formats: formats::of(&state, member),
                leads: false,
                matched: None,
                heard: None,
                waits: waits(&state, member),
                has_lost: false,
                clock: None,
            })
            .collect()
    }

    /// Has all members know where clients reach this one.
    pub async fn advertise(&self, api: &str) -> Result<(), GroupError> {
        let known = self::api(&self.0.machine.state.read(), self.0.id);
        if known == api {
            return Ok(());
        }
        // Only as long as it is a member: whoever was removed leaves nothing behind.
        let is_member = Op::Check { key: member_key(self.0.id), guard: Guard::Present };
        let ops = vec![is_member, line(api_key(self.0.id), api, Guard::None)];
        self.transact(ops).await.map(drop).map_err(GroupError::from)
    }

    /// The version of the log's entries that is in use: the highest that all members understand.
    /// `None` where the record of it cannot be read.
    pub fn format(&self) -> Option<u32> {
        formats::in_use(&self.0.machine.state.read()).ok()
    }

    /// Has all members know what this one is called, where it was admitted under no name, and by which names its API is
    /// reached: nobody else may get a certificate for them ([`Keyspace::api_names`]); and which versions of the log's entries it
    /// understands. Where the one in use is not among them it is refused.
    pub async fn introduce(&self, name: &str, api_names: &[String]) -> Result<(), GroupError> {
        let id = self.0.id;
        let names = api_names.join(" ");
        let mut ops;
        {
            let state = self.0.machine.state.read();
            ops = formats::tell(&state, id, self.0.formats).map_err(GroupError::Refused)?;
            match state.record(&member_key(id)) {
                Some(known) if first_line(&known.bytes).is_empty() && !is_leaving(known) => {
                    ops.push(line(member_key(id), name, Guard::Revision(known.revision)));
                }
                _ => ops.push(Op::Check { key: member_key(id), guard: Guard::Present }),
            }
            if state.record(&names_key(id)).is_none_or(|known| first_line(&known.bytes) != names) {
                ops.push(line(names_key(id), &names, Guard::None));
            }
        }
        if ops.iter().all(|op| matches!(op, Op::Check { .. })) {
            return Ok(());
        }
        self.transact(ops).await.map(drop).map_err(GroupError::from)
    }

    /// The names by which the members' APIs are reached.
    pub fn api_names(&self) -> BTreeSet<String> {
        let members = self.members();
        let state = self.0.machine.state.read();
        let records = members.iter().filter_map(|member| state.record(&names_key(member.member)));
        records.flat_map(|record| first_line(&record.bytes).split(' ').map(str::to_owned).collect::<Vec<_>>()).collect()
    }

    /// Follows the records of the group: who its members are called, and where their APIs are.
    pub fn watch_group(&self) -> Option<crate::Watcher> {
        self.watch(GROUP, self.revision()).ok()
    }

    /// Waits until another member says that this one was removed; for ever, as a rule.
    pub async fn removed(&self) -> GroupAlarm {
        let mut removed = self.0.member.removed();
        if removed.wait_for(|removed| *removed).await.is_err() {
            std::future::pending::<()>().await;
        }
        GroupAlarm::Removed { member: self.0.id }
    }

    /// How long this member has been without a majority, since its start at the longest; `None` while it has one, or may be about
    /// to have one.
    pub fn alone_for(&self) -> Option<Duration> {
        Some(self.0.member.alone_for()).filter(|alone| *alone >= ALONE_AFTER)
    }

    /// Waits until this member has been without a majority for as long as [`Keyspace::alone_for`] says nothing before, from now on or since
    /// before: what happens elsewhere is not heard of here.
    pub fn cut_off(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut alone = self.0.alone.subscribe();
        async move {
            if alone.wait_for(|alone| *alone).await.is_err() {
                // It ends otherwise.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Whether this member leads, and in which term; for the duties that only a leader has.
    pub fn lead(&self) -> watch::Receiver<Option<Lead>> {
        self.0.lead.subscribe()
    }

    /// Gives leadership to another voter, if this member has it and there is one that is up, and waits until that one leads.
    /// Whether nobody waits for this member any more.
    pub async fn hand_over(&self) -> bool {
        self.0.member.hand_over().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_id_is_read_as_it_is_written_and_nothing_else_is() {
        let id = ClusterId::new([7, u64::MAX]);
        assert_eq!(id.to_string().parse(), Ok(id));
        for wrong in ["", "7", "+0000000000000000000000000000000", &id.to_string().to_uppercase(), &format!("{id}0")] {
            assert_eq!(wrong.parse::<ClusterId>(), Err(NoClusterId), "{wrong}");
        }
    }
}
