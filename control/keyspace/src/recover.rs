//! One member goes on alone when a majority of its group is lost for good: its directory is made anew with all that it has.
//!
//! It keeps the cluster's id, its number and every record; of its log it keeps also what was never said to be committed, since a
//! lost member may have acknowledged it. The others are forgotten as if they had been removed, in a term of their successor: they
//! are refused on every link. The log begins far ahead, as that of a restored cluster does ([`crate::Restoring`]): revisions that
//! only the lost members knew are never given again, and whoever saw one lists again.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::backup;
use crate::dir::{Dir, DirError};
use crate::formats::Formats;
use crate::group::{self, Begin, ClusterId};
use crate::host::{self, Host};
use crate::raft::{self, Member, MemberId, Remains};
use crate::record::Revision;
use crate::state::Retention;

/// Why a member cannot go on alone; nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// The directory cannot be used.
    #[error(transparent)]
    Dir(#[from] DirError),
    /// Its content cannot be read.
    #[error("read the data in {path}")]
    Read {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The new directory cannot be written.
    #[error("write {path}")]
    Write {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is alone as it is.
    #[error(
        "member {0} is the only voter of its group: it waits for nobody, and there is nothing to recover; start it"
    )]
    Alone(MemberId),
    /// It is no member of the group.
    #[error("{}", raft::removed(*.0))]
    Removed(MemberId),
    /// It joined, and got nothing yet.
    #[error(
        "member {0} has none of the cluster's data yet: it was admitted, and the others were lost before it had any"
    )]
    Empty(MemberId),
}

/// A member that is lost.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Lost {
    /// Its number.
    pub member: MemberId,
    /// Its name.
    pub name: String,
    /// Where it was reached.
    pub address: String,
}

/// A member that is not running, and all that it has. Its directory is locked as long as this lives.
pub struct Survivor {
    host: Host,
    remains: Remains,
    begin: Revision,
}

impl Survivor {
    /// Locks and reads the member in `path`, and changes nothing; blocks on the disk.
    pub fn read(path: &Path) -> Result<Survivor, RecoverError> {
        let host = Host::real();
        let dir = Dir::open(&host, path, &Begin::Resume)?;
        let failed = |source| RecoverError::Read { path: path.into(), source };
        let retention = Retention { age: Duration::ZERO, bytes: 0, memory: 0 };
        let remains =
            Member::read(&host, dir, retention, Formats::OWN, None).and_then(raft::Read::remains).map_err(failed)?;
        let member = remains.owner.member;
        if remains.state.applied == Revision::default() || remains.voters.is_empty() {
            return Err(RecoverError::Empty(member));
        }
        if !remains.members.contains_key(&member) || !group::admitted(&remains.state).contains(&member) {
            return Err(RecoverError::Removed(member));
        }
        if remains.voters == BTreeSet::from([member]) {
            return Err(RecoverError::Alone(member));
        }
        let begin = backup::begin_after(remains.state.applied, host::since_1970());
        Ok(Survivor { host, remains, begin })
    }

    /// Its number.
    pub fn member(&self) -> MemberId {
        self.remains.owner.member
    }

    /// The cluster.
    pub fn cluster(&self) -> ClusterId {
        self.remains.owner.cluster
    }

    /// Everything that it has was written up to here.
    pub fn revision(&self) -> Revision {
        self.remains.state.applied
    }

    /// How many records it has.
    pub fn records(&self) -> usize {
        let groups = self.remains.state.collections().filter(|(name, _)| &***name != group::GROUP);
        groups.map(|(_, found)| found.records.len()).sum()
    }

    /// All others.
    pub fn lost(&self) -> Vec<Lost> {
        let state = &self.remains.state;
        let address = |member: &MemberId| self.remains.members.get(member).cloned().unwrap_or_default();
        let named = |member| Lost { member, name: group::name(state, member), address: address(&member) };
        self.others().into_iter().map(named).collect()
    }

    fn others(&self) -> BTreeSet<MemberId> {
        let mut others = group::admitted(&self.remains.state);
        others.extend(self.remains.members.keys());
        others.remove(&self.member());
        others
    }

    /// Makes the directory `path`, where there is none, of the same member alone with all that it has. It can be opened when this
    /// returns, in the place of the one that was read.
    pub async fn make(&mut self, path: &Path) -> Result<(), RecoverError> {
        let others = self.others();
        let Remains { state, owner, term, .. } = &mut self.remains;
        let ops = group::go_on_without(state, &others).ok_or(RecoverError::Empty(owner.member))?;
        let failed = |source| RecoverError::Write { path: path.into(), source };
        // Nothing of it is applied when this fails, which it cannot: what is forgotten is there.
        let applied = state.apply(self.begin, &ops, host::now());
        applied.map_err(|guard| failed(std::io::Error::other(format!("operation {} on the group", guard.op))))?;
        let records: HashMap<_, _> =
            state.collections().map(|(name, found)| (name.clone(), found.records.clone())).collect();
        let dir = Dir::make(&self.host, path, owner)?;
        raft::restore(&self.host, dir, (*term + 1, self.begin), records).await.map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dir::Owner;
    use crate::state::State;

    #[tokio::test(flavor = "multi_thread")]
    async fn who_was_removed_does_not_go_on_alone() {
        let temp = tempfile::tempdir().unwrap();
        let (host, cluster) = (Host::real(), ClusterId::new([1, 2]));
        let mut state = State::new(Retention { age: Duration::ZERO, bytes: 0, memory: 0 });
        // A group of the first alone, which has the number 2 behind it.
        let ops = group::take_lead(&state, 1, 1);
        state.apply(Revision::new(1), &ops, host::now()).unwrap();
        for (member, expected) in [(1, "only voter"), (2, "was removed")] {
            let path = temp.path().join(member.to_string());
            let owner = Owner { cluster, member, founder: false, peers: Vec::new() };
            let dir = Dir::make(&host, &path, &owner).unwrap();
            let records = state.collections().map(|(name, found)| (name.clone(), found.records.clone())).collect();
            raft::restore(&host, dir, (1, Revision::new(5)), records).await.unwrap();
            let refused = Survivor::read(&path).err().unwrap();
            assert!(refused.to_string().contains(expected), "{refused}");
        }
    }
}
