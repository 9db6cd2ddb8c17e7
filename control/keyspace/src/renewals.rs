//! What whoever leads knows and the log does not: newer contents of records, in memory only.
//!
//! That a node lives is true for a moment, and said again in the next. It is worth no entry of the log and no sync: a
//! renewal replaces the content of a record in the leader's memory, and nothing else. The record's revision stays, so
//! guards, other members and the state know nothing of it. It is void when the record changes, and when another member
//! leads: that one is told anew before long.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::sync::broadcast;

use crate::raft::{Ask, LOOKS_AFTER, Member, Refusal, Renewed, Told};
use crate::record::{Key, Record, Revision, TRANSACTION_BYTES_MAX, Value};
use crate::state::{GuardFailed, State};
use crate::{Keyspace, TransactError};

/// Renewals that wait for one who follows them; whoever is slower misses some. What waits is not kept: a newer renewal of the same record
/// takes its place.
const TOLD_QUEUED: usize = 4096;
/// Bytes of renewals in one answer, and at most one renewal more. Whoever gets as many asks for the rest: all members must
/// mean the same by it.
const ANSWER_BYTES: usize = 4 << 20;

/// A newer content of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Renewal {
    /// Which record.
    pub key: Key,
    /// Its revision: of another one this says nothing.
    pub revision: Revision,
    /// What it contains now.
    pub value: Value,
}

type ByName = BTreeMap<Arc<str>, Arc<Record>>;

/// Renewals by what they renew; no more of a collection than it has records.
pub(crate) struct Renewals {
    collections: Mutex<HashMap<Arc<str>, ByName>>,
    told: broadcast::Sender<Weak<Record>>,
}

impl Default for Renewals {
    fn default() -> Self {
        Renewals { collections: Mutex::default(), told: broadcast::channel(TOLD_QUEUED).0 }
    }
}

impl Renewals {
    /// Takes a renewal of what `state` has.
    fn put(&self, state: &State, renewal: &Renewal) -> Result<(), GuardFailed> {
        let found = state.record(&renewal.key);
        let Some(found) = found.filter(|found| found.revision == renewal.revision) else {
            return Err(GuardFailed { op: 0, found: found.cloned() });
        };
        let record = Arc::new(found.renewed(&renewal.value));
        let mut collections = self.collections.lock();
        let renewed = collections.entry(found.key.collection.clone()).or_default();
        renewed.insert(found.key.name.clone(), record.clone());
        if state.collection(&found.key.collection).is_none_or(|there| renewed.len() > there.records.len()) {
            renewed.retain(|_, renewed| is_valid(state, renewed));
        }
        drop(collections);
        // Nobody has to listen.
        let _ = self.told.send(Arc::downgrade(&record));
        Ok(())
    }

    /// Those `of` a `collection` that are valid in `state`, as many as fit in an answer.
    fn of(&self, state: &State, collection: &str, of: &Renewed) -> Vec<Arc<Record>> {
        let collections = self.collections.lock();
        let Some(renewed) = collections.get(collection) else { return Vec::new() };
        let valid = |renewed: &&Arc<Record>| is_valid(state, renewed);
        let from = match of {
            Renewed::Named(name) => return renewed.get(name).filter(valid).cloned().into_iter().collect(),
            Renewed::All => Bound::Unbounded,
            Renewed::After(name) => Bound::Excluded(name.clone()),
        };
        let mut bytes = 0;
        let page = renewed.range((from, Bound::Unbounded)).map(|(_, renewed)| renewed).filter(valid);
        let page = page.take_while(|renewed| {
            let fits = bytes < ANSWER_BYTES;
            bytes += renewed.size() as usize;
            fits
        });
        page.cloned().collect()
    }

    /// Another member leads.
    pub fn forget(&self) {
        self.collections.lock().clear();
    }
}

/// Follows renewals.
pub struct RenewalWatcher(broadcast::Receiver<Weak<Record>>);

impl RenewalWatcher {
    /// The next one. May be dropped and called again. Of a record that is renewed faster than this is asked the newest alone is told.
    pub async fn next(&mut self) -> Arc<Record> {
        loop {
            match self.0.recv().await {
                Ok(told) => {
                    if let Some(renewed) = told.upgrade() {
                        return renewed;
                    }
                }
                // The next renewal of the same record says more than those that were missed.
                Err(broadcast::error::RecvError::Lagged(_)) => (),
                Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
            }
        }
    }

    /// Another that has come already.
    pub fn try_next(&mut self) -> Option<Arc<Record>> {
        loop {
            match self.0.try_recv() {
                Ok(told) => {
                    if let Some(renewed) = told.upgrade() {
                        return Some(renewed);
                    }
                }
                Err(broadcast::error::TryRecvError::Lagged(_)) => (),
                Err(broadcast::error::TryRecvError::Empty | broadcast::error::TryRecvError::Closed) => return None,
            }
        }
    }
}

fn is_valid(state: &State, renewed: &Record) -> bool {
    state.record(&renewed.key).is_some_and(|record| record.revision == renewed.revision)
}

impl Member {
    fn leads(&self) -> Result<(), Refusal> {
        let leader = self.leader();
        if leader == Some(self.id()) { Ok(()) } else { Err(Refusal::NotLeader(leader)) }
    }

    /// Takes a renewal, if this member leads, and others follow it: one that is cut off from them may have been replaced, and whoever is
    /// taken at its word by it does not look for the one that would hear it.
    pub(crate) fn renew(&self, renewal: &Renewal) -> Result<Told, Refusal> {
        self.leads()?;
        if self.alone_for() >= LOOKS_AFTER {
            return Err(Refusal::NotLeader(None));
        }
        let state = self.machine().state.read();
        match self.machine().renewals.put(&state, renewal) {
            Ok(()) => Ok(Told::Renewed(Vec::new())),
            Err(failed) => Ok(Told::Written(state.applied, Err(failed))),
        }
    }

    /// Says what was renewed, if this member leads.
    pub(crate) fn renewed(&self, collection: &str, of: &Renewed) -> Result<Told, Refusal> {
        self.leads()?;
        let state = self.machine().state.read();
        Ok(Told::Renewed(self.machine().renewals.of(&state, collection, of)))
    }
}

impl Keyspace {
    /// Has whoever leads know of `renewal`. When this returns, everybody who asks for it is told ([`Keyspace::renewed`]), until
    /// the record changes or another member leads.
    pub async fn renew(&self, renewal: Renewal) -> Result<(), TransactError> {
        let bytes = renewal.key.collection.len() + renewal.key.name.len() + renewal.value.bytes.len();
        if bytes > TRANSACTION_BYTES_MAX {
            return Err(TransactError::TooLarge { ops: 1, bytes });
        }
        match self.0.member.ask(Ask::Renew(renewal)).await {
            Ok(Told::Written(_, Err(failed))) => Err(TransactError::Guard(failed)),
            Ok(_) => Ok(()),
            Err(Refusal::NotLeader(leader)) => Err(TransactError::Unavailable { leader }),
            Err(_) => Err(TransactError::Unknown),
        }
    }

    /// What whoever leads knows of newer contents in `collection`, or of one name there. Nothing when nobody can be asked.
    pub async fn renewed(&self, collection: &str, name: Option<&str>) -> Vec<Arc<Record>> {
        let collection: Arc<str> = collection.into();
        let mut of = name.map_or(Renewed::All, |name| Renewed::Named(name.into()));
        let mut all = Vec::new();
        loop {
            let asked = self.0.member.ask(Ask::Renewed { collection: collection.clone(), of }).await;
            let Ok(Told::Renewed(page)) = asked else { return all };
            let bytes: u64 = page.iter().map(|record| record.size()).sum();
            let last = page.last().map(|record| record.key.name.clone());
            all.extend(page);
            match last {
                Some(last) if name.is_none() && bytes >= ANSWER_BYTES as u64 => of = Renewed::After(last),
                _ => return all,
            }
        }
    }

    /// Follows the renewals that this member is told of while it leads.
    pub fn renewals(&self) -> RenewalWatcher {
        RenewalWatcher(self.0.machine.renewals.told.subscribe())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::record::{Guard, Op};

    /// Whoever reads its watch slowly keeps one renewal of each record, and not as many as fit in a queue.
    #[tokio::test]
    async fn whoever_is_slow_keeps_nothing_that_is_renewed_anew() {
        let mut state = State::new(crate::Config::new("").retention);
        let value = |text: &'static str| Value { bytes: Bytes::from_static(text.as_bytes()), revision_at: 0 };
        let keys = ["a", "b"].map(|name| Key::new("leases", name));
        let ops = keys.clone().map(|key| Op::Put { key, value: value("first"), guard: Guard::None });
        state.apply(Revision::new(1), &ops, crate::host::now()).unwrap();
        let renewals = Renewals::default();
        let mut slow = RenewalWatcher(renewals.told.subscribe());
        let mut kept = Vec::new();
        for (key, text) in [(&keys[0], "one"), (&keys[1], "two"), (&keys[0], "three")] {
            let renewal = Renewal { key: key.clone(), revision: Revision::new(1), value: value(text) };
            renewals.put(&state, &renewal).unwrap();
            kept.extend(renewals.of(&state, "leases", &Renewed::Named(key.name.clone())).iter().map(Arc::downgrade));
        }
        assert_eq!(kept.iter().map(Weak::strong_count).collect::<Vec<_>>(), [0, 1, 1]);
        assert_eq!(slow.next().await.bytes, "1two");
        assert_eq!(slow.try_next().unwrap().bytes, "1three");
        assert!(slow.try_next().is_none());
    }
}
