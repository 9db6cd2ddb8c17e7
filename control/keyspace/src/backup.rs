//! Everything there is at one moment, in parts; and a new cluster that begins with it.
//!
//! What the group keeps about itself stays behind: the new cluster has an id and members of its own. Records keep their
//! contents and revisions; the log begins far ahead of the last one, so that a client that knows revisions of the old
//! cluster, also those after the backup, or of one that was restored before, is told that they are over and lists again.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::dir::Dir;
use crate::formats;
use crate::group::{Admission, Begin, ClusterId, GROUP};
use crate::host::{self, Host};
use crate::raft;
use crate::record::{Record, Revision};
use crate::seal::{self, KEYS, Keyring};
use crate::state::Records;
use crate::{Keyspace, OpenError};

/// How far a restored or recovered cluster's log begins after the last revision that is known, where the clock is of no use:
/// more than the old one can have gone on.
const REVISIONS_AHEAD: u64 = 1_000_000_000;
/// A clock that says less (it is the year 2001) is not set, and no cluster has written so much: who has such revisions was
/// restored.
const CLOCK_MIN: u64 = 1_000_000_000_000_000;
/// Bytes of records in one part, about; a single record may be larger.
const PART_BYTES: usize = 512 << 10;

/// Every record at one moment; shared with the state, and not copied.
pub struct Whole {
    revision: Revision,
    keys: Arc<Keyring>,
    collections: Vec<Records>,
}

impl Keyspace {
    /// Every record as applied here. Costs a few pointers a collection; what is written later is not in it.
    pub fn whole(&self) -> Whole {
        let state = self.0.machine.state.read();
        let collections = state.collections().filter(|(name, _)| &***name != GROUP);
        let collections = collections.map(|(_, found)| found.records.clone()).collect();
        Whole { revision: state.applied, keys: state.keys().clone(), collections }
    }
}

impl Whole {
    /// Everything up to here is in it.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// How many records there are.
    pub fn len(&self) -> usize {
        self.collections.iter().map(Records::len).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The number of the newest key, if there is one.
    pub fn key(&self) -> Option<u64> {
        self.keys.newest().map(|(id, _)| id)
    }

    /// How many records are in the clear that the cluster is to seal, Secrets always among them. Looks at every record.
    pub fn open(&self) -> usize {
        seal::open(&self.keys, self.collections.iter().flat_map(|records| records.values()))
    }

    /// All of them, a part at a time.
    pub fn parts(&self) -> impl Iterator<Item = Vec<u8>> {
        let mut records = self.collections.iter().flat_map(|collection| collection.values());
        std::iter::from_fn(move || {
            let (mut part, mut bytes) = (Vec::<&Record>::new(), 0);
            while bytes < PART_BYTES
                && let Some(record) = records.next()
            {
                bytes += record.stored().0.len() + record.key.name.len();
                part.push(record);
            }
            (!part.is_empty()).then(|| raft::encode_records(part.iter().copied()))
        })
    }
}

/// Where the log of a cluster begins that is made `now` of what was there at `revision`: behind everything that the old one wrote,
/// or another one that was restored before, be it from the same backup.
///
/// They are told apart by the clock: a revision for each microsecond since 1970, which no cluster ever writes in.
pub(crate) fn begin_after(revision: Revision, now: Duration) -> Revision {
    let now = u64::try_from(now.as_micros()).unwrap_or(u64::MAX);
    let ahead = revision.get().saturating_add(REVISIONS_AHEAD);
    Revision::new(if now >= CLOCK_MIN && now > revision.get() { now } else { ahead })
}

/// A cluster that is being made of the parts of a backup.
#[derive(Default)]
pub struct Restoring {
    records: HashMap<Arc<str>, Records>,
    count: usize,
}

impl Restoring {
    /// Nothing yet.
    pub fn new() -> Restoring {
        Restoring::default()
    }

    /// Takes the next part.
    pub fn part(&mut self, part: &[u8]) -> io::Result<()> {
        for mut record in raft::records(part)? {
            // One name for all records of a collection.
            if let Some((name, _)) = self.records.get_key_value(&record.key.collection) {
                record.key.collection = name.clone();
            }
            let records = self.records.entry(record.key.collection.clone()).or_default();
            records.insert(record.key.name.clone(), Arc::new(record));
            self.count += 1;
        }
        Ok(())
    }

    /// How many records came.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether none came.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Makes the data directory `path`, where there is none, of a cluster that had all of this at `revision`. It can be opened
    /// when this returns.
    pub async fn finish(mut self, path: &Path, revision: Revision) -> Result<ClusterId, OpenError> {
        let host = Host::real();
        // What is sealed only a version reads that knows of it.
        if self.records.contains_key(KEYS) {
            let record = Arc::new(formats::written(formats::SEALED, revision));
            let group = self.records.entry(Arc::from(GROUP)).or_default();
            group.insert(record.key.name.clone(), record);
        }
        let begin = begin_after(revision, host::since_1970());
        // Nobody's node has the founder's range because of this: its records say who has which.
        let cluster = ClusterId::new([host.random(), host.random()]);
        let origin = Begin::Join(Admission { cluster, member: 1, peers: Vec::new() });
        let dir = Dir::open(&host, path, &origin)?;
        let made = raft::restore(&host, dir, (1, begin), self.records).await;
        made.map_err(|source| OpenError::Load { path: path.into(), source }).map(|()| cluster)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_restoration_begins_behind_all_that_were_before_it() {
        let at = |micros: u64| Duration::from_micros(micros);
        let (then, later) = (1_800_000_000_000_000, 1_800_000_060_000_000);
        for (revision, now, expected) in [
            (5_000, at(then), then),
            // A minute later from the same backup, and from one of what was restored before.
            (5_000, at(later), later),
            (then + 7, at(later), later),
            // A clock that is not set, or was set back.
            (5_000, at(40_000_000), 1_000_005_000),
            (later, at(then), later + 1_000_000_000),
        ] {
            assert_eq!(begin_after(Revision::new(revision), now).get(), expected, "{revision} at {now:?}");
        }
    }
}
