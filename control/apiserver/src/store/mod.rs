//! Between objects and records.

pub(crate) mod converted;
pub(crate) mod keyed;
pub(crate) mod leases;
pub(crate) mod memo;
pub(crate) mod object;
mod warm;

use std::borrow::Cow;
use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use coracle_api::kinds;
use coracle_api::status::Status;
use coracle_keyspace::{
    Committed, Compacted, GuardFailed, Key, Keyspace, Lead, NoRoom, Op, Record, Records, Revision, TransactError,
    Value as Content,
};
use serde_json::Value;

use tokio::sync::{Mutex, MutexGuard};

use crate::catalog::Resource;
use crate::limits::{Class, Flow, Gate, Turn};
use keyed::Keyed;
pub(crate) use memo::{Row, Seen, check_opened};
pub(crate) use warm::warm;

/// How long a read that wants a revision of the future waits for it (kubernetes-api §10.2).
const FUTURE_WAIT: Duration = Duration::from_secs(3);

/// Why a transaction was not done.
pub(crate) enum Refused {
    /// The state has changed since it was read: read it again.
    Guard(GuardFailed),
    /// Anything else; not to be tried again.
    Final(Status),
}

impl From<Status> for Refused {
    fn from(status: Status) -> Refused {
        Refused::Final(status)
    }
}

/// How often the same record may be in the way of one request.
const IN_THE_WAY_MAX: usize = 8;

/// Tells whom somebody was quicker than from whom the same record refuses again and again: that is no race, but something
/// that was not looked at before, and trying for ever would only hold up others.
#[derive(Default)]
pub(crate) struct Race {
    last: Option<(usize, Option<Revision>)>,
    times: usize,
}

impl Race {
    /// Whether to try again after this.
    pub fn goes_on(&mut self, failed: &GuardFailed) -> bool {
        let now = Some((failed.op, failed.found.as_ref().map(|record| record.revision)));
        self.times = if self.last == now { self.times + 1 } else { 1 };
        self.last = now;
        self.times < IN_THE_WAY_MAX
    }
}

/// The past is made of what is on the disk, up to 128 MiB for each who asks; for so many users at a time, and as many of the
/// cluster's duties.
const PASTS_MAX: usize = 2;

/// Writers that met at an object take turns; this many objects at a time, by the hash of their names.
const TURNS: usize = 256;

/// The keyspace as the verbs use it.
pub(crate) struct Store {
    pub keyspace: Keyspace,
    pub keyed: Keyed,
    turns: [Mutex<()>; TURNS],
    /// Of those who charge the quotas of a namespace. Whoever waits for one may hold one of the others, and never the reverse.
    charge_turns: [Mutex<()>; TURNS],
    pasts: Gate,
    /// Those of the cluster's duties, which never wait behind users.
    duty_pasts: Gate,
    hashing: RandomState,
}

tokio::task_local! {
    /// Under which lead the request is carried out. It belongs to the request as its caller does, and only
    /// [`Store::transact`], through which every write goes, has to know of it: no verb can forget it.
    static LEAD: Lead;
}

/// Does `work`, whose writes happen under `lead` or not at all. They must be done in it: another task or thread that polls a
/// part of it is given [`lead`] anew.
pub(crate) async fn under<T>(lead: Option<Lead>, work: impl Future<Output = T>) -> T {
    match lead {
        Some(lead) => LEAD.scope(lead, work).await,
        None => work.await,
    }
}

/// The lead that the request is carried out under, for work of it that goes on in another place.
pub(crate) fn lead() -> Option<Lead> {
    LEAD.try_with(|lead| *lead).ok()
}

impl Store {
    pub fn new(keyspace: Keyspace) -> Store {
        Store {
            keyspace,
            keyed: Keyed::default(),
            turns: [const { Mutex::const_new(()) }; TURNS],
            charge_turns: [const { Mutex::const_new(()) }; TURNS],
            pasts: Gate::new(PASTS_MAX),
            duty_pasts: Gate::new(PASTS_MAX),
            hashing: RandomState::new(),
        }
    }

    /// Waits for its turn at an object that somebody else has just changed. A hundred writers that meet would otherwise all
    /// do their work again for each one that gets through.
    pub async fn turn(&self, resource: &Resource, record_name: &str) -> MutexGuard<'_, ()> {
        let hash = self.hashing.hash_one((resource.row.collection(), record_name));
        self.turns[hash as usize % TURNS].lock().await
    }

    /// Waits for its turn among those who charge the quotas of a namespace.
    pub async fn charge_turn(&self, namespace: &str) -> MutexGuard<'_, ()> {
        self.charge_turns[self.hashing.hash_one(namespace) as usize % TURNS].lock().await
    }

    pub fn key(resource: &Resource, record_name: &Arc<str>) -> Key {
        Key::new(resource.row.collection(), record_name.clone())
    }

    /// The newest applied record.
    pub fn get(&self, resource: &Resource, record_name: &str) -> Option<Arc<Record>> {
        self.keyspace.get(resource.row.collection(), record_name)
    }

    /// The record, at least as new as every write that was answered before this call.
    pub async fn read(&self, resource: &Resource, record_name: &str) -> Result<Option<Arc<Record>>, Status> {
        self.barrier().await?;
        Ok(self.get(resource, record_name))
    }

    /// A record that is likely here: only one that is not is looked for behind a barrier, since another server may have answered its
    /// write a moment ago.
    pub async fn find(&self, resource: &Resource, record_name: &str) -> Result<Option<Arc<Record>>, Status> {
        match self.get(resource, record_name) {
            Some(record) => Ok(Some(record)),
            None => self.read(resource, record_name).await,
        }
    }

    /// Waits until everything that was answered before is applied here.
    pub async fn barrier(&self) -> Result<Revision, Status> {
        let unavailable = |error| Status::service_unavailable(format!("no read is possible now: {error}"));
        self.keyspace.barrier().await.map_err(unavailable)
    }

    /// Waits until `revision` is applied here, for a short time.
    pub async fn not_older_than(&self, revision: Revision) -> Result<(), Status> {
        if self.keyspace.revision() >= revision {
            return Ok(());
        }
        let reached = tokio::time::timeout(FUTURE_WAIT, self.keyspace.wait_for(revision)).await;
        if reached.is_err() && self.keyspace.revision() < revision {
            return Err(Status::too_large_resource_version(revision.get(), self.keyspace.revision().get(), 1));
        }
        Ok(())
    }

    /// A collection as it was, for `flow`.
    pub async fn past(&self, collection: &str, revision: Revision, flow: Flow<'_>) -> Result<Past, Compacted> {
        let present = self.keyspace.snapshot(collection);
        if revision >= present.revision {
            return Ok(Past { records: present.records, present: None, _place: None });
        }
        // What is in memory is shared, and undone at once.
        let place = match self.is_in_memory(collection, revision)? {
            true => None,
            false if flow.class == Class::User => Some(self.pasts.take(flow.name).await),
            false => Some(self.duty_pasts.take(flow.name).await),
        };
        let records = self.keyspace.snapshot_at(collection, revision).await?.records;
        Ok(Past { records, present: Some(present.records), _place: place })
    }

    /// Whether everything that happened to a collection after `revision`, which is past, is in memory.
    fn is_in_memory(&self, collection: &str, revision: Revision) -> Result<bool, Compacted> {
        let mut after = self.keyspace.watch(collection, revision)?;
        // A watch that has to ask the disk tells nothing without waiting, and does not go on.
        Ok(after.pending().is_ok_and(|batch| !batch.events.is_empty() || batch.revision > revision))
    }

    /// The bytes to store of an object as clients of this resource see it; a custom resource was [turned](crate::conversion::to_stored)
    /// into what is stored.
    /// Every object that is stored comes by here, and is of the kind and the version that its resource is stored in.
    pub fn encode(resource: &Resource, object: &Value) -> Content {
        let mut object = Cow::Borrowed(object);
        match &resource.custom {
            None if !resource.is_named(&object) => resource.name_type(object.to_mut()),
            Some(custom) if object["apiVersion"] != custom.kind.stored_version => {
                object.to_mut()["apiVersion"] = custom.kind.stored_version.as_str().into();
            }
            _ => {}
        }
        object::encode(&object)
    }

    /// Carries out `ops` if their conditions hold. What is seen to be refused is not proposed: it would cost its size in
    /// the log.
    pub async fn transact(&self, mut ops: Vec<Op>) -> Result<Committed, Refused> {
        debug_assert!(tells_once(&ops), "a revision belongs to one event of a kind: {ops:?}");
        // Last, so that the places of the others stay what they are.
        let fence = lead().map(|lead| lead.fence());
        let fenced_at = fence.is_some().then_some(ops.len());
        ops.extend(fence);
        match self.keyspace.transact(ops).await {
            Ok(committed) => Ok(committed),
            Err(TransactError::Guard(failed)) if Some(failed.op) == fenced_at => {
                Err(Refused::Final(Status::service_unavailable("another server leads now, and does this instead")))
            }
            Err(TransactError::Guard(failed)) => Err(Refused::Guard(failed)),
            Err(error) => Err(refused(error)),
        }
    }
}

/// A collection as it was; a place is held until only what is answered is left of it.
pub(crate) struct Past {
    pub records: Records,
    /// What there is, when that is something else.
    present: Option<Records>,
    _place: Option<Turn>,
}

impl Past {
    /// What is there now.
    pub fn none(present: Records) -> Past {
        Past { records: present, present: None, _place: None }
    }

    /// Bytes of those of `records` that were undone: the others are there in any case.
    pub fn undone(&self, records: &[Arc<Record>]) -> usize {
        let Some(present) = &self.present else { return 0 };
        let is_there =
            |record: &&Arc<Record>| present.get(&record.key.name).is_some_and(|now| Arc::ptr_eq(now, record));
        records.iter().filter(|record| !is_there(record)).map(|record| record.bytes.len()).sum()
    }
}

/// Whether no two operations make events of one kind. A client whose watch breaks goes on after the revision of the event that
/// it was told last: what shares that would be lost to it. Claims are of no kind, and nobody watches them.
fn tells_once(ops: &[Op]) -> bool {
    let written = ops.iter().filter(|op| !matches!(op, Op::Check { .. })).map(|op| &*op.key().collection);
    let mut told = HashSet::new();
    written.filter(|name| kinds::all().iter().any(|row| row.collection == *name)).all(|name| told.insert(name))
}

/// Why something was not written, for the client.
fn refused(error: TransactError) -> Refused {
    Refused::Final(match error {
        TransactError::TooLarge { .. } => Status::request_too_large(format!("limit is {}", object::OBJECT_BYTES_MAX)),
        // Without a time to come back after: client-go sends whatever has one again by itself, and would tell whoever made an
        // object that it exists already.
        TransactError::Unknown => Status::timeout(
            "the write was not confirmed in time and may still take effect; read the object before trying again",
            0,
        ),
        TransactError::NoRoom(NoRoom::Disk { .. } | NoRoom::Quota { .. }) => {
            Status::insufficient_storage(error.to_string())
        }
        // It will not go better in a second.
        TransactError::Unsealed(_) => Status::internal_error(error),
        error => Status::service_unavailable(error.to_string()).with_retry_after(1),
    })
}

/// The records of `records` that are in `namespace` (all when there is none), after `after`.
pub(crate) fn range<'a>(
    records: &'a Records,
    namespace: Option<&str>,
    after: Option<&str>,
) -> impl Iterator<Item = (&'a Arc<str>, &'a Arc<Record>)> + use<'a> {
    // Both ends are looked up, so that nobody has to look at every name: `0` comes after `/`.
    let first = namespace.map(|namespace| format!("{namespace}/"));
    let end = namespace.map_or(Bound::Unbounded, |namespace| Bound::Excluded(format!("{namespace}0")));
    let start = match (after.map(str::to_owned), first) {
        // A place before the namespace would begin in another, one behind it has nothing after it.
        (Some(after), Some(first)) if after < first => Bound::Included(first),
        (Some(after), _) => match &end {
            Bound::Excluded(end) if after >= *end => Bound::Included(end.clone()),
            _ => Bound::Excluded(after),
        },
        (None, Some(first)) => Bound::Included(first),
        (None, None) => Bound::Unbounded,
    };
    records.range((start.map(Arc::<str>::from), end.map(Arc::<str>::from)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_send_again_by_themselves_only_what_was_not_done() {
        let retry_after = |error| match refused(error) {
            Refused::Final(status) => {
                (status.code(), status.details.as_ref().map_or(0, |details| details.retry_after_seconds))
            }
            Refused::Guard(_) => panic!("a guard"),
        };
        assert_eq!(retry_after(TransactError::Unknown), (504, 0));
        assert_eq!(retry_after(TransactError::Unavailable { leader: None }), (503, 1));
    }

    #[test]
    fn a_record_that_stays_in_the_way_is_no_race() {
        let failed = |op| GuardFailed { op, found: None };
        let mut race = Race::default();
        assert!((0..100).all(|at| race.goes_on(&failed(at % 2))), "others");
        assert_eq!((0..100).take_while(|_| race.goes_on(&failed(2))).count(), IN_THE_WAY_MAX - 1);
    }

    #[tokio::test]
    async fn the_past_is_made_for_few_at_a_time_by_caller_and_at_once_where_it_is_in_memory() {
        use futures::FutureExt as _;
        let dir = tempfile::tempdir().unwrap();
        let keyspace = Keyspace::open(coracle_keyspace::Config::new(dir.path())).await.unwrap();
        let put = async |name: &str| {
            let value = coracle_keyspace::Value { bytes: bytes::Bytes::from_static(b"four"), revision_at: 0 };
            let op = Op::Put { key: Key::new("things", name), value, guard: coracle_keyspace::Guard::None };
            keyspace.transact(vec![op]).await.unwrap().revision
        };
        put("b").await;
        let first = put("a").await;
        put("a").await;
        let store = Store::new(keyspace.clone());
        let flow = |class, name| Flow { class, name };
        let (many, other) = (flow(Class::User, "many"), flow(Class::User, "other"));
        let found = store.past("things", first, many).now_or_never().expect("it is in memory").unwrap();
        let found: Vec<_> = found.records.values().map(|record| record.revision).collect();
        assert_eq!(found[0], first);
        // So old that it is asked of the disk.
        keyspace.flush_history().await;
        let mut held = Vec::new();
        for _ in 0..PASTS_MAX {
            held.push(store.past("things", first, many).await.unwrap());
        }
        let records: Vec<_> = held[0].records.values().cloned().collect();
        let undone = records[0].bytes.len();
        assert_eq!((records.len(), held[0].undone(&records)), (2, undone), "only what was undone is held alone");
        let mut waiting: Vec<_> = (0..100).map(|_| Box::pin(store.past("things", first, many))).collect();
        for past in &mut waiting {
            assert!(past.now_or_never().is_none());
        }
        let now = store.past("things", keyspace.revision(), other).now_or_never();
        assert!(now.is_some(), "the present waits for nobody");
        let duty = store.past("things", first, flow(Class::Duty, "system:node:n")).await.unwrap();
        assert_eq!(duty.records.values().next().unwrap().revision, first, "nor does a duty");
        let mut last = Box::pin(store.past("things", first, other));
        assert!((&mut last).now_or_never().is_none());
        held.clear();
        assert_eq!(last.await.unwrap().records.values().next().unwrap().revision, first, "before all that wait longer");
        drop(waiting);
        keyspace.shutdown().await;
    }

    #[tokio::test]
    async fn a_range_is_a_namespace_after_a_place() {
        let dir = tempfile::tempdir().unwrap();
        let keyspace = Keyspace::open(coracle_keyspace::Config::new(dir.path())).await.unwrap();
        for name in ["a/x", "a/y", "a-b/x", "a.b/x", "b/x", "b/y", "c"] {
            let value = coracle_keyspace::Value { bytes: bytes::Bytes::new(), revision_at: 0 };
            let op = Op::Put { key: Key::new("things", name), value, guard: coracle_keyspace::Guard::None };
            keyspace.transact(vec![op]).await.unwrap();
        }
        let records = keyspace.snapshot("things").records;
        for (namespace, after, expected) in [
            (None, None, "a-b/x a.b/x a/x a/y b/x b/y c"),
            (None, Some("a/x"), "a/y b/x b/y c"),
            (Some("a"), None, "a/x a/y"),
            (Some("a"), Some("a/x"), "a/y"),
            (Some("a"), Some("a/y"), ""),
            (Some("b"), Some("a/y"), "b/x b/y"),
            (Some("a"), Some("b/x"), ""),
            (Some("a"), Some("zzz"), ""),
            (Some("none"), None, ""),
        ] {
            let found: Vec<&str> = range(&records, namespace, after).map(|(name, _)| &**name).collect();
            assert_eq!(found.join(" "), expected, "{namespace:?} after {after:?}");
        }
        keyspace.shutdown().await;
    }
}
