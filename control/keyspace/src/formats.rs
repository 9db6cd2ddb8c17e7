//! Which versions of the log's entries the members of a group understand, and which one is in use: the highest that all of them,
//! learners and those who are just being admitted among them, read and write. So servers of two versions can live together.
//!
//! Each member has a record of its range, made in the transaction that gives it its number and replaced by itself at its start. The
//! version in use is a record, too: entries of it are in logs from then on, so it only grows. Whoever leads raises it
//! under the condition that nobody was admitted and no range was replaced since it looked; whoever is admitted or replaces its
//! range does so under the condition that it was not raised. A member that does not understand it is refused.

use std::collections::BTreeSet;
use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::group::{self, GROUP};
use crate::raft::MemberId;
use crate::record::{Guard, Key, Op, Record, Revision, Value};
use crate::state::{Records, State};

/// The version in use while no record says otherwise, and all that a member understands that has told none.
const FIRST: u32 = 2;
/// Since which version contents may be sealed ([`crate::seal`]).
pub(crate) const SEALED: u32 = 3;
/// The record that says which version is in use.
const IN_USE: &str = "format";

/// Versions of the log's entries that a member reads and writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Formats {
    /// The oldest.
    pub oldest: u32,
    /// The newest.
    pub newest: u32,
}

impl Formats {
    /// Those of this build. The second version was the first that clusters were kept in; since the third, contents may be sealed
    /// (docs/formats.md).
    pub const OWN: Formats = Formats { oldest: FIRST, newest: SEALED };
    /// Those of a member that says nothing of them.
    pub const FIRST: Formats = Formats { oldest: FIRST, newest: FIRST };
    /// None: of a member whose record of them cannot be read. It says them again at its next start.
    const NONE: Formats = Formats { oldest: 0, newest: 0 };

    /// Refuses a server that does not understand the version `in_use`.
    pub(crate) fn check(self, in_use: u32) -> Result<(), String> {
        if (self.oldest..=self.newest).contains(&in_use) {
            return Ok(());
        }
        let what_to_do = match self.newest < in_use {
            true => "use a newer version of coracle for it",
            false => {
                "use an older version of coracle for it, and a newer one when all servers of the cluster know that"
            }
        };
        Err(format!("the cluster writes its log in format {in_use}, and this server knows {self}: {what_to_do}"))
    }
}

impl fmt::Display for Formats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.oldest == self.newest {
            return write!(f, "format {}", self.newest);
        }
        write!(f, "formats {} to {}", self.oldest, self.newest)
    }
}

/// The record of the range of a member.
pub(crate) fn key_of(member: MemberId) -> Key {
    group::key(&format!("formats {member}"))
}

/// The version in use as these records of the group say. A record that cannot be read is an error: what is not understood here
/// would be taken for what is.
pub(crate) fn in_use_of(group: Option<&Records>) -> Result<u32, String> {
    let Some(record) = group.and_then(|records| records.get(IN_USE)) else { return Ok(FIRST) };
    let text = group::first_line(&record.bytes);
    text.parse().map_err(|_| format!("the record of the format in which the cluster writes its log says {text:?}"))
}

/// The version that entries are written in.
pub(crate) fn in_use(state: &State) -> Result<u32, String> {
    in_use_of(state.collection(GROUP).map(|group| &group.records))
}

/// What `member` has said that it understands; nothing where that cannot be read.
pub(crate) fn of(state: &State, member: MemberId) -> Formats {
    let Some(record) = state.record(&key_of(member)) else { return Formats::FIRST };
    let text = group::first_line(&record.bytes);
    let told = text
        .split_once(' ')
        .and_then(|(oldest, newest)| Some(Formats { oldest: oldest.parse().ok()?, newest: newest.parse().ok()? }));
    told.unwrap_or(Formats::NONE)
}

/// What is known of `key` as it is, as a condition.
fn as_it_is(state: &State, key: &Key) -> Guard {
    state.record(key).map_or(Guard::Absent, |record| Guard::Revision(record.revision))
}

/// The condition that what is known of `key` is as it is.
fn unchanged(state: &State, key: Key) -> Op {
    Op::Check { guard: as_it_is(state, &key), key }
}

/// What has all know that `member` understands `formats`; nothing where they do. An error where that is not enough.
pub(crate) fn tell(state: &State, member: MemberId, formats: Formats) -> Result<Vec<Op>, String> {
    formats.check(in_use(state)?)?;
    if of(state, member) == formats {
        return Ok(Vec::new());
    }
    let text = format!("{} {}", formats.oldest, formats.newest);
    Ok(vec![not_raised(state), group::line(key_of(member), &text, Guard::None)])
}

/// The record that says that `version` is in use, as if it had been written at `revision`.
pub(crate) fn written(version: u32, revision: Revision) -> Record {
    let bytes = Bytes::from(format!("{version}\n"));
    Record::new(group::key(IN_USE), &Value { revision_at: bytes.len(), bytes }, revision)
}

/// The condition that the version in use is what it is.
pub(crate) fn not_raised(state: &State) -> Op {
    unchanged(state, group::key(IN_USE))
}

/// What raises the version in use to what all `members` understand; nothing where it is that.
pub(crate) fn raise(state: &State, members: &BTreeSet<MemberId>) -> Vec<Op> {
    let highest = members.iter().map(|member| of(state, *member).newest).min();
    let Ok(known) = in_use(state) else { return Vec::new() };
    let Some(highest) = highest.filter(|highest| *highest > known) else { return Vec::new() };
    let in_use = group::key(IN_USE);
    let guard = as_it_is(state, &in_use);
    let mut ops = vec![group::line(in_use, &highest.to_string(), guard), unchanged(state, group::key(group::NEXT))];
    ops.extend(members.iter().map(|member| unchanged(state, key_of(*member))));
    ops
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_that_cannot_be_read_is_not_the_first_format() {
        let mut state = State::new(crate::Config::new("").retention);
        let record = |key, text: &str| group::line(key, text, Guard::None);
        let mut at = 0;
        let mut put = |state: &mut State, key, text| {
            at += 1;
            state.apply(crate::Revision::new(at), &[record(key, text)], crate::host::now()).unwrap();
        };
        let all = BTreeSet::from([1, 2]);
        put(&mut state, key_of(1), "2 4");
        put(&mut state, key_of(2), "2 3");
        assert_eq!((in_use(&state), raise(&state, &all).is_empty()), (Ok(2), false));
        put(&mut state, key_of(2), "two to three");
        assert!(raise(&state, &all).is_empty(), "nobody knows what the second understands");
        assert!(!tell(&state, 2, Formats::FIRST).unwrap().is_empty(), "it says so again");
        put(&mut state, key_of(2), "2 3");
        put(&mut state, group::key(IN_USE), "three");
        assert!(in_use(&state).unwrap_err().contains("three"));
        assert!(tell(&state, 2, Formats { oldest: 2, newest: 9 }).is_err() && raise(&state, &all).is_empty());
    }

    #[test]
    fn who_does_not_understand_what_is_written_is_told_what_to_do() {
        let formats = |oldest, newest| Formats { oldest, newest };
        assert_eq!(formats(2, 4).check(2).and(formats(2, 4).check(4)), Ok(()));
        let old = formats(2, 2).check(3).unwrap_err();
        assert!(old.contains("in format 3") && old.contains("knows format 2: use a newer version"), "{old}");
        let new = formats(4, 5).check(3).unwrap_err();
        assert!(new.contains("knows formats 4 to 5: use an older version"), "{new}");
    }
}
