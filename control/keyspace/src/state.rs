//! The state that the log builds: a pure machine, no clock, no disk, no randomness in `apply`.
//!
//! Each collection has its current records as a persistent map (a snapshot is a clone of the root) and a ring of its
//! latest changes. The past is the present with changes undone, so nothing is kept twice.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use imbl::OrdMap;
use tokio::sync::watch;

use crate::record::{Committed, Event, EventKind, Key, Op, Record, Revision, duplicate};

/// Records of one collection by name.
pub type Records = OrdMap<Arc<str>, Arc<Record>>;

/// How much of the past is kept.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    /// Changes older than this are forgotten.
    pub age: Duration,
    /// Of more bytes than this the oldest are forgotten, however young.
    pub bytes: usize,
}

/// The condition of an operation did not hold; nothing of the transaction was done.
#[derive(Clone, Debug)]
pub struct GuardFailed {
    /// Which operation.
    pub op: usize,
    /// The record that was there.
    pub found: Option<Arc<Record>>,
}

/// The outcome of a transaction.
pub type Outcome = Result<Committed, GuardFailed>;

pub(crate) struct Collection {
    pub records: Records,
    /// Changes after `forgotten`, in order.
    pub ring: VecDeque<Arc<Event>>,
    /// Everything up to here is no longer in the ring.
    pub forgotten: Revision,
    /// Says that something was appended to the ring.
    pub changed: watch::Sender<Revision>,
}

impl Collection {
    fn new(records: Records, forgotten: Revision) -> Collection {
        Collection { records, ring: VecDeque::new(), forgotten, changed: watch::channel(forgotten).0 }
    }
}

/// Events whose encodings are kept. Whoever is further behind has them made again, which is rare; keeping them for as long as
/// the events are remembered took twice the memory of the events themselves.
const WARM_EVENTS: usize = 1024;

/// One entry of the order in which changes are forgotten.
struct Remembered {
    collection: Arc<str>,
    bytes: usize,
    at: Instant,
}

/// The whole state.
pub(crate) struct State {
    pub applied: Revision,
    collections: HashMap<Arc<str>, Collection>,
    order: VecDeque<Remembered>,
    order_bytes: usize,
    /// The latest events, whose encodings are kept for those who watch.
    warm: VecDeque<Arc<Event>>,
    retention: Retention,
    /// Everything up to here is forgotten in every collection: from before this process, or by age or size.
    pub compacted: Revision,
    /// What changed since the last checkpoint; `None` is a deletion.
    pub dirty: HashMap<Key, Option<Arc<Record>>>,
    /// Bytes of content applied since the last checkpoint.
    pub dirty_bytes: usize,
    /// Bytes of all current records with their keys: what the bound on stored data counts.
    pub stored_bytes: u64,
}

impl State {
    pub fn new(retention: Retention) -> State {
        State {
            applied: Revision::default(),
            collections: HashMap::new(),
            order: VecDeque::new(),
            order_bytes: 0,
            warm: VecDeque::new(),
            retention,
            compacted: Revision::default(),
            dirty: HashMap::new(),
            dirty_bytes: 0,
            stored_bytes: 0,
        }
    }

    /// Replaces everything by what a checkpoint or another member's snapshot held; the past is forgotten.
    pub fn replace(&mut self, applied: Revision, mut records: HashMap<Arc<str>, Records>) {
        self.order.clear();
        self.order_bytes = 0;
        self.warm.clear();
        self.applied = applied;
        self.compacted = applied;
        self.dirty.clear();
        self.dirty_bytes = 0;
        self.stored_bytes = records.values().flat_map(|records| records.values()).map(|record| record.size()).sum();
        for (name, collection) in &mut self.collections {
            collection.records = records.remove(name).unwrap_or_default();
            collection.ring.clear();
            collection.forgotten = applied;
            collection.changed.send_replace(applied);
        }
        for (name, records) in records {
            self.collections.insert(name, Collection::new(records, applied));
        }
    }

    pub fn collection(&self, name: &str) -> Option<&Collection> {
        self.collections.get(name)
    }

    pub fn collections(&self) -> impl Iterator<Item = (&Arc<str>, &Collection)> {
        self.collections.iter()
    }

    /// The collection `name`, made when it is not there yet.
    pub fn collection_mut(&mut self, name: &Arc<str>) -> &mut Collection {
        let compacted = self.compacted;
        self.collections.entry(name.clone()).or_insert_with(|| Collection::new(Records::new(), compacted))
    }

    pub(crate) fn record(&self, key: &Key) -> Option<&Arc<Record>> {
        self.collections.get(&key.collection)?.records.get(&key.name)
    }

    /// Passes over `revision`, which changes no record: an entry of Raft's own.
    pub fn skip(&mut self, revision: Revision) {
        self.applied = revision;
    }

    /// The transaction's key with the collection's name shared by all its records.
    fn shared(&self, key: &Key) -> Key {
        match self.collections.get_key_value(&key.collection) {
            Some((collection, _)) => Key { collection: collection.clone(), name: key.name.clone() },
            None => key.clone(),
        }
    }

    /// Applies the transaction `ops` as revision `revision`: all of it, or nothing. Whatever the log says is data: there is
    /// nothing in it that could make this panic, because every later start would panic alike.
    pub fn apply(&mut self, revision: Revision, ops: &[Op], now: Instant) -> Outcome {
        debug_assert!(revision > self.applied, "revisions only grow");
        self.applied = revision;
        self.check(ops)?;
        let mut records = Vec::with_capacity(ops.len());
        for op in ops {
            let (key, kind) = match op {
                Op::Put { key, .. } => (key, EventKind::Put),
                Op::Delete { key, .. } => (key, EventKind::Delete),
                Op::Check { .. } => continue,
            };
            let previous = self.record(key).cloned();
            let key = &previous.as_ref().map_or_else(|| self.shared(key), |previous| previous.key.clone());
            let record = match (op, &previous) {
                (Op::Put { value, .. }, _) => Arc::new(Record::new(key.clone(), value, revision)),
                (Op::Delete { .. }, Some(previous)) => Arc::new(previous.at_revision(revision)),
                // `check` lets none through; a deletion of nothing does nothing, and a check never gets here.
                (Op::Delete { .. } | Op::Check { .. }, _) => continue,
            };
            let before = previous.as_ref().map_or(0, |previous| previous.size());
            let after = if kind == EventKind::Put { record.size() } else { 0 };
            self.stored_bytes = (self.stored_bytes + after).saturating_sub(before);
            let size = record.bytes.len() + key.name.len() + 256;
            let collection = self.collection_mut(&key.collection);
            match kind {
                EventKind::Put => collection.records.insert(key.name.clone(), record.clone()),
                EventKind::Delete => collection.records.remove(&key.name),
            };
            let event = Arc::new(Event::new(kind, record.clone(), previous));
            collection.ring.push_back(event.clone());
            self.warm.push_back(event);
            if self.warm.len() > WARM_EVENTS
                && let Some(cold) = self.warm.pop_front()
            {
                cold.cool();
            }
            self.order.push_back(Remembered { collection: key.collection.clone(), bytes: size, at: now });
            self.order_bytes += size;
            self.dirty.insert(key.clone(), (kind == EventKind::Put).then(|| record.clone()));
            self.dirty_bytes += size;
            records.push(record);
        }
        Ok(Committed { revision, records })
    }

    /// Every guard, before anything is changed. Operations of one transaction see the state before all of them; a second
    /// one on the same key would have to see the first, so it is refused like a guard that does not hold.
    pub fn check(&self, ops: &[Op]) -> Result<(), GuardFailed> {
        if let Some(op) = duplicate(ops) {
            return Err(GuardFailed { op, found: self.record(ops[op].key()).cloned() });
        }
        for (op, step) in ops.iter().enumerate() {
            let (key, guard) = step.condition();
            let found = self.record(key);
            let holds = guard.holds(found.map(Arc::as_ref));
            let deletes_nothing = matches!(step, Op::Delete { .. }) && found.is_none();
            if !holds || deletes_nothing {
                return Err(GuardFailed { op, found: found.cloned() });
            }
        }
        Ok(())
    }

    /// Wakes who watches `collections` and forgets what is too old or too much. Called once for a batch of entries.
    pub fn publish(&mut self, collections: impl IntoIterator<Item = Arc<str>>, now: Instant) {
        for name in collections {
            if let Some(collection) = self.collections.get(&name) {
                collection.changed.send_replace(self.applied);
            }
        }
        self.forget(now);
    }

    /// Forgets what is older or larger than the retention allows.
    pub fn forget(&mut self, now: Instant) {
        while let Some(oldest) = self.order.front() {
            let too_old = now.saturating_duration_since(oldest.at) > self.retention.age;
            if !too_old && self.order_bytes <= self.retention.bytes {
                break;
            }
            self.order_bytes -= oldest.bytes;
            if let Some(collection) = self.collections.get_mut(&oldest.collection)
                && let Some(event) = collection.ring.pop_front()
            {
                collection.forgotten = event.record.revision;
                self.compacted = event.record.revision;
            }
            self.order.pop_front();
        }
    }

    /// What it takes to know the records of `name` at `revision`; `None` when that is forgotten.
    pub fn after(&self, name: &str, revision: Revision) -> Option<Undo> {
        let Some(collection) = self.collections.get(name) else {
            return (revision >= self.compacted).then(Undo::default);
        };
        if revision < collection.forgotten || revision < self.compacted {
            return None;
        }
        let newest_first = collection.ring.iter().rev();
        let events = newest_first.take_while(|event| event.record.revision > revision).cloned().collect();
        Some(Undo { records: collection.records.clone(), events })
    }
}

/// The present records and the changes to undo, taken together under the lock so that the work is done outside it.
#[derive(Default)]
pub struct Undo {
    records: Records,
    /// The newest first.
    events: Vec<Arc<Event>>,
}

impl Undo {
    /// The records before the changes.
    pub fn records(self) -> Records {
        let mut records = self.records;
        for event in &self.events {
            match &event.previous {
                Some(previous) => records.insert(previous.key.name.clone(), previous.clone()),
                None => records.remove(&event.record.key.name),
            };
        }
        records
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Guard, Value};
    use bytes::Bytes;
    use proptest::prelude::*;

    const KEEP: Retention = Retention { age: Duration::from_secs(300), bytes: usize::MAX };

    fn put(name: &str, text: &str, guard: Guard) -> Op {
        Op::Put {
            key: Key::new("things", name),
            value: Value { bytes: Bytes::copy_from_slice(text.as_bytes()), revision_at: 0 },
            guard,
        }
    }

    fn delete(name: &str, guard: Guard) -> Op {
        Op::Delete { key: Key::new("things", name), guard }
    }

    fn check(name: &str, guard: Guard) -> Op {
        Op::Check { key: Key::new("things", name), guard }
    }

    #[test]
    fn a_check_that_holds_changes_nothing_and_has_no_record() {
        let mut state = State::new(KEEP);
        state.apply(Revision::new(1), &[put("a", "x", Guard::Absent)], Instant::now()).unwrap();
        let ops = [put("b", "y", Guard::Absent), check("a", Guard::Revision(Revision::new(1)))];
        let done = state.apply(Revision::new(2), &ops, Instant::now()).unwrap();
        assert_eq!(done.records.len(), 1);
        assert_eq!(texts(&state.collection("things").unwrap().records), ["a=1x", "b=2y"]);
    }

    fn texts(records: &Records) -> Vec<String> {
        records.values().map(|r| format!("{}={}", r.key.name, String::from_utf8_lossy(&r.bytes))).collect()
    }

    #[test]
    fn the_revision_is_inserted_and_replaced_by_a_deletion() {
        let mut state = State::new(KEEP);
        let value = Value { bytes: Bytes::from_static(b"{\"rv\":\"\",\"a\":1}"), revision_at: 7 };
        let op = Op::Put { key: Key::new("things", "a"), value, guard: Guard::Absent };
        let done = state.apply(Revision::new(9), &[op], Instant::now()).unwrap();
        assert_eq!(&done.records[0].bytes[..], b"{\"rv\":\"9\",\"a\":1}");
        let done = state.apply(Revision::new(10), &[delete("a", Guard::None)], Instant::now()).unwrap();
        assert_eq!(&done.records[0].bytes[..], b"{\"rv\":\"10\",\"a\":1}");
    }

    #[test]
    fn a_transaction_whose_guard_fails_changes_nothing() {
        let mut state = State::new(KEEP);
        let now = Instant::now();
        state.apply(Revision::new(1), &[put("a", "x", Guard::Absent)], now).unwrap();
        for (ops, op, found) in [
            (vec![put("b", "y", Guard::None), put("a", "y", Guard::Absent)], 1, true),
            (vec![put("a", "y", Guard::Revision(Revision::new(7)))], 0, true),
            (vec![put("c", "y", Guard::Present)], 0, false),
            (vec![delete("c", Guard::None)], 0, false),
            (vec![delete("c", Guard::Absent)], 0, false),
            (vec![put("b", "y", Guard::Absent), check("a", Guard::Revision(Revision::new(7)))], 1, true),
            (vec![put("b", "y", Guard::Absent), check("c", Guard::Present)], 1, false),
        ] {
            let next = Revision::new(state.applied.get() + 1);
            let failed = state.apply(next, &ops, now).unwrap_err();
            assert_eq!((failed.op, failed.found.is_some()), (op, found), "{ops:?}");
            assert_eq!(texts(&state.collection("things").unwrap().records), ["a=1x"]);
        }
    }

    #[test]
    fn two_operations_on_one_key_do_nothing_and_never_panic() {
        let mut state = State::new(KEEP);
        let now = Instant::now();
        state.apply(Revision::new(1), &[put("a", "x", Guard::Absent)], now).unwrap();
        for ops in [
            vec![delete("a", Guard::None), delete("a", Guard::None)],
            vec![put("b", "y", Guard::None), delete("a", Guard::None), put("b", "z", Guard::None)],
            vec![put("a", "y", Guard::None), delete("a", Guard::None)],
        ] {
            let next = Revision::new(state.applied.get() + 1);
            assert_eq!(state.apply(next, &ops, now).unwrap_err().op, ops.len() - 1, "{ops:?}");
            assert_eq!(texts(&state.collection("things").unwrap().records), ["a=1x"]);
        }
    }

    #[test]
    fn stored_bytes_are_those_of_the_current_records() {
        let mut state = State::new(KEEP);
        let now = Instant::now();
        let steps = [
            put("a", "x", Guard::None),
            put("b", "yy", Guard::None),
            put("a", "", Guard::None),
            delete("b", Guard::None),
        ];
        for (at, op) in steps.into_iter().enumerate() {
            state.apply(Revision::new(at as u64 + 1), &[op], now).unwrap();
            let counted: u64 = state.collections().flat_map(|(_, c)| c.records.values()).map(|r| r.size()).sum();
            assert_eq!(state.stored_bytes, counted);
        }
        assert_eq!(state.stored_bytes, ("things".len() + "a".len() + "3".len()) as u64);
    }

    #[test]
    fn what_is_too_old_or_too_much_is_forgotten() {
        let now = Instant::now();
        let mut state = State::new(Retention { age: Duration::from_secs(300), bytes: 600 });
        for revision in 1..=3 {
            state.apply(Revision::new(revision), &[put("a", "x", Guard::None)], now).unwrap();
        }
        state.forget(now);
        assert_eq!(state.compacted, Revision::new(1));
        assert!(state.after("things", Revision::new(0)).is_none());
        assert!(state.after("things", Revision::new(2)).is_some());
        state.forget(now + Duration::from_secs(301));
        assert_eq!(state.compacted, Revision::new(3));
        assert!(state.after("things", Revision::new(3)).is_some());
    }

    proptest! {
        /// Whatever happens, the state at any remembered revision is what a model that copies everything says.
        #[test]
        fn the_past_is_the_present_undone(steps in prop::collection::vec((0_u8..5, any::<bool>()), 1..60)) {
            let mut state = State::new(KEEP);
            let mut history = vec![Vec::new()];
            for (at, (name, deletes)) in steps.into_iter().enumerate() {
                let name = format!("k{name}");
                let op = if deletes { delete(&name, Guard::None) } else { put(&name, "v", Guard::None) };
                let _ = state.apply(Revision::new(at as u64 + 1), &[op], Instant::now());
                history.push(state.collection("things").map(|c| texts(&c.records)).unwrap_or_default());
            }
            for (revision, expected) in history.iter().enumerate() {
                let at = state.after("things", Revision::new(revision as u64)).unwrap().records();
                prop_assert_eq!(&texts(&at), expected);
            }
        }
    }
}
