//! Contents that are sealed before they are in the log (docs/encryption.md).
//!
//! ```text
//! transact ─► sealed under the newest key ─► raft, log, checkpoint, history, snapshots, backup: frames
//!                                                └─► state: opened once as it is applied, and served from memory as any other
//! ```
//! Whoever proposes seals; whoever applies opens. A record keeps the frame it was made of beside its content, and whatever leaves
//! the memory is the frame ([`Record::stored`]). The keys are records, too ([`keyring`]), sealed under a root key that is in none of
//! this: the log's order gives each member a key before what is sealed under it.
//!
//! Invariants: in a collection that is to be sealed the state takes nothing that is not sealed under the newest key
//! ([`Keyring::takes`]), on every member alike; so from the entry on that says another one, nothing is written under the old one, and
//! once nothing is stored under it, nothing will be. What a frame cannot be opened to is an error, and never an empty content.

mod duty;
mod key;
mod keyring;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::Arc;

pub(crate) use duty::run;
pub use key::SecretKey;
pub(crate) use key::sealed_by;
pub(crate) use keyring::{KEYS, Keyring, Unopened};

use crate::formats;
use crate::group::GROUP;
use crate::host;
use crate::raft::{Member, Told, Transaction};
use crate::record::Record;
use crate::{Keyspace, MemberStatus, TransactError};

/// Keys at a time: of each but the newest something is still stored, or was a moment ago.
const KEYS_MAX: usize = 8;
/// Bytes of the names of collections that are to be sealed: they are in one record.
const NAMES_BYTES_MAX: usize = 16 << 10;
/// How often it is asked again whether keys change, while others change them too.
const ATTEMPTS: usize = 8;

/// How contents are sealed.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Sealing {
    /// The number of the newest key; `None` while there is none, and contents are not sealed.
    pub key: Option<u64>,
    /// When that was made (seconds since 1970).
    pub created: Option<u64>,
    /// Other keys that there still are.
    pub older: Vec<u64>,
    /// Collections whose contents are sealed.
    pub collections: BTreeSet<String>,
    /// Records that are to be sealed.
    pub records: usize,
    /// Readable records that are not sealed as they are to be: not at all, under an older key, or in a collection that is not sealed
    /// any more.
    pub unsettled: usize,
    /// Some of those records that cannot be opened, and why; ten at most.
    pub unreadable: Vec<(String, String)>,
    /// How many these are.
    pub unreadable_count: usize,
}

/// Unreadable records that are told by name.
const UNREADABLE_TOLD: usize = 10;

/// Why keys, or what is sealed, stay as they are.
#[derive(Debug, thiserror::Error)]
pub enum SealingError {
    /// For this reason.
    #[error("{0}")]
    Refused(String),
    /// The transaction has no result.
    #[error(transparent)]
    Transact(#[from] TransactError),
}

/// Whether records of this collection may be sealed: not those that say how to open others, or who is in the group.
fn is_kept_open(collection: &str) -> bool {
    [GROUP, KEYS].contains(&collection)
}

impl Keyspace {
    /// How contents are sealed. Looks at every record.
    pub fn sealing(&self) -> Sealing {
        let (keys, collections) = {
            let state = self.0.machine.state.read();
            (state.keys().clone(), state.all())
        };
        let newest = keys.newest();
        let mut sealing = Sealing {
            key: newest.map(|(id, _)| id),
            created: newest.map(|(_, created)| created),
            older: keys.ids().filter(|id| newest.is_none_or(|(newest, _)| newest != *id)).collect(),
            collections: keys.collections(),
            ..Sealing::default()
        };
        for record in collections.iter().flat_map(|records| records.values()) {
            sealing.records += usize::from(keys.wanted(&record.key.collection).is_some());
            sealing.unsettled += usize::from(is_due(&keys, record));
            if let Some(why) = record.why_unreadable() {
                sealing.unreadable_count += 1;
                if sealing.unreadable.len() < UNREADABLE_TOLD {
                    sealing.unreadable.push((format!("{} {}", record.key.collection, record.key.name), why.to_owned()));
                }
            }
        }
        sealing
    }

    /// Whose version does not know of sealing, or may not: as long as there is one, whether it has come or not, there is no first key.
    pub fn not_sealing(&self) -> Vec<MemberStatus> {
        let all = self.members().into_iter().chain(self.absent());
        all.filter(|member| member.formats.newest < formats::SEALED).collect()
    }

    /// Makes the first key where there is none and all members understand it, if this one leads; those of `collections` are
    /// sealed then. Otherwise whoever leads does so before long.
    pub async fn begin_sealing(&self) {
        if self.0.member.leading().is_some() {
            self.0.member.raise_format().await;
            self.0.member.begin_sealing().await;
        }
    }

    /// Makes a new key, which everything is sealed under from then on; whoever leads seals anew what is stored. Returns its
    /// number. While something is stored under an older key none is made, and the number is that of the newest.
    pub async fn renew_key(&self) -> Result<u64, SealingError> {
        self.change_keys(true, |keys, is_settled| {
            let (newest, _) = keys.newest().ok_or_else(not_begun)?;
            if !is_settled {
                return Ok((newest, Vec::new()));
            }
            if keys.ids().count() >= KEYS_MAX {
                let why = format!(
                    "there are {KEYS_MAX} keys, and the older ones go minutes after nothing needs them: try again then"
                );
                return Err(SealingError::Refused(why));
            }
            let ops = keys.renew(host::since_1970().as_secs(), &keys.collections());
            let ops = ops.ok_or_else(|| SealingError::Refused("this process has no root key".into()))?;
            Ok((newest + 1, ops))
        })
        .await
    }

    /// Has the contents of exactly these collections sealed; whoever leads writes anew what is stored otherwise.
    pub async fn seal_collections(&self, collections: &BTreeSet<String>) -> Result<(), SealingError> {
        let bytes: usize = collections.iter().map(|name| name.len() + 1).sum();
        let is_wrong = |name: &String| name.is_empty() || name.contains([' ', '\n']) || is_kept_open(name);
        if bytes > NAMES_BYTES_MAX || collections.iter().any(is_wrong) {
            return Err(SealingError::Refused("these are too many resources, or none".into()));
        }
        let changed = self.change_keys(false, |keys, _| {
            keys.newest().ok_or_else(not_begun)?;
            let ops = if keys.collections() == *collections { None } else { keys.choose(collections) };
            Ok((0, ops.into_iter().collect()))
        });
        changed.await.map(drop)
    }

    /// Carries out what `plan` says, with the keys as they are, and whether everything is sealed as these say, if it `asks_whether_settled`:
    /// that looks at records until one is not. Others may change the keys at the same time.
    async fn change_keys(
        &self,
        asks_whether_settled: bool,
        plan: impl Fn(&Keyring, bool) -> Result<(u64, Vec<crate::Op>), SealingError>,
    ) -> Result<u64, SealingError> {
        let mut failed = None;
        for _ in 0..ATTEMPTS {
            let read = self.barrier().await;
            read.map_err(|_| TransactError::Unavailable { leader: None })?;
            let (keys, collections) = {
                let state = self.0.machine.state.read();
                let collections = if asks_whether_settled { state.all() } else { Vec::new() };
                (state.keys().clone(), collections)
            };
            // Not on a thread that serves requests.
            let looked = host::spawn_blocking(move || {
                let is_settled = !collections.iter().flat_map(|records| records.values()).any(|one| is_due(&keys, one));
                (keys, is_settled)
            });
            let (keys, is_settled) = looked.await.map_err(|error| SealingError::Refused(error.to_string()))?;
            let (id, ops) = plan(&keys, is_settled)?;
            if ops.is_empty() {
                return Ok(id);
            }
            match self.transact(ops).await {
                Ok(_) => return Ok(id),
                Err(error @ TransactError::Guard(_)) => failed = Some(error),
                Err(error) => return Err(error.into()),
            }
        }
        Err(failed.map_or_else(not_begun, SealingError::from))
    }
}

fn not_begun() -> SealingError {
    SealingError::Refused(
        "there is no encryption key yet: one is made as soon as all servers of the cluster have a version that knows of it".into(),
    )
}

impl Member {
    /// Makes the first key where there is none, and all members know what is sealed.
    pub async fn begin_sealing(&self) {
        let ops = {
            let state = self.machine().state.read();
            let keys = state.keys();
            let may = keys.has_root() && !keys.has_begun();
            if !may || !formats::in_use(&state).is_ok_and(|format| format >= formats::SEALED) {
                return;
            }
            keys.renew(host::since_1970().as_secs(), &SEALED_FIRST.map(str::to_owned).into())
        };
        let Some(ops) = ops else { return };
        match self.write(Transaction::new(ops)).await {
            Ok(Told::Written(_, Ok(_))) => {
                tracing::info!("the first encryption key is made: Secrets are sealed from now on")
            }
            told => tracing::debug!(?told, "make the first encryption key; it is tried again"),
        }
    }
}

/// What is sealed where nobody has said anything else.
const SEALED_FIRST: [&str; 1] = ["secrets"];

/// All records, by what they say, that are not sealed as they are to be and can be.
fn unsettled(keys: &Keyring, collections: &[crate::state::Records]) -> Vec<Arc<Record>> {
    let all = collections.iter().flat_map(|records| records.values());
    all.filter(|record| is_due(keys, record)).cloned().collect()
}

/// Whether it is not sealed as it is to be, and can be.
fn is_due(keys: &Keyring, record: &Record) -> bool {
    !is_kept_open(&record.key.collection) && !keys.is_settled(record) && record.why_unreadable().is_none()
}

/// How many of these are in the clear, and to be sealed as soon as all members know how.
pub(crate) fn open<'a>(keys: &Keyring, records: impl Iterator<Item = &'a Arc<Record>>) -> usize {
    let is_secret = |record: &Record| {
        let collection = &*record.key.collection;
        keys.wanted(collection).is_some() || SEALED_FIRST.contains(&collection)
    };
    records.filter(|record| is_secret(record) && record.sealed_by().is_none()).count()
}
