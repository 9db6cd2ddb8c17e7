//! The state that the log builds: a pure machine, no clock, no disk, no randomness in `apply`.
//!
//! Each collection has its current records as a persistent map (a snapshot is a clone of the root) and a ring of its
//! latest changes; what falls out of the ring is in the [history](crate::history) on disk. The past is the present with
//! changes undone, so nothing is kept twice.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use tokio::sync::watch;

use crate::record::{Committed, Event, EventKind, Key, Op, Record, Revision, duplicate};
use crate::seal::{KEYS, Keyring, SecretKey};

/// Records of one collection by name.
pub type Records = OrdMap<Arc<str>, Arc<Record>>;

/// What is different in `now`, by name: the record that was there, and the one that is. What both share is not looked at.
pub fn changes<'a>(
    before: &'a Records,
    now: &'a Records,
) -> impl Iterator<Item = (&'a Arc<str>, Option<&'a Arc<Record>>, Option<&'a Arc<Record>>)> {
    before.diff(now).map(|item| match item {
        DiffItem::Add(name, record) => (name, None, Some(record)),
        DiffItem::Update { old: (_, old), new: (name, new) } => (name, Some(old), Some(new)),
        DiffItem::Remove(name, record) => (name, Some(record), None),
    })
}

/// How much of the past is kept.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    /// Changes are remembered for this long, and may be forgotten then. Time in which the process does not run, or the
    /// machine sleeps, does not count.
    pub age: Duration,
    /// Bytes of the history on disk. Beyond it the collection that takes most forgets its oldest, however young.
    pub bytes: u64,
    /// Bytes of the latest changes that stay in memory, too. Four times as much while they cannot be written to disk; what
    /// is beyond that is forgotten.
    pub memory: usize,
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
    /// Changes after `ring_start`, in order.
    pub ring: VecDeque<Arc<Event>>,
    /// Everything up to here is no longer in the ring.
    pub ring_start: Revision,
    /// Everything up to here, and after `history_start`, is in the history.
    pub written: Revision,
    history_start: Revision,
    /// Everything up to here is forgotten.
    pub forgotten: Revision,
    /// Says up to where watchers may look: something was appended to the ring.
    pub changed: watch::Sender<Revision>,
    /// When that was said last.
    told: Option<Instant>,
    /// Whether it is to be said again when the time has come.
    is_waiting: bool,
    /// They count its changes, for whoever keeps something that was made of its records.
    pub counters: Vec<Arc<AtomicU64>>,
}

impl Collection {
    fn new(records: Records, forgotten: Revision) -> Collection {
        let changed = watch::channel(forgotten).0;
        Collection {
            records,
            ring: VecDeque::new(),
            ring_start: forgotten,
            written: forgotten,
            history_start: forgotten,
            forgotten,
            changed,
            told: None,
            is_waiting: false,
            counters: Vec::new(),
        }
    }

    /// Tells those who count that its records are others.
    fn count(&self) {
        for counter in &self.counters {
            counter.fetch_add(1, Ordering::Release);
        }
    }

    /// Time between two wake-ups of all who watch.
    fn pace(&self) -> Duration {
        let pace = (PACE_PER_WATCHER * self.changed.receiver_count() as u32).min(PACE_MAX);
        if pace < PACE_MIN { Duration::ZERO } else { pace }
    }

    /// When they may be woken.
    fn due(&self) -> Option<Instant> {
        Some(self.told? + self.pace())
    }

    fn tell(&mut self, applied: Revision, now: Instant) {
        (self.told, self.is_waiting) = (Some(now), false);
        self.changed.send_replace(applied);
    }

    /// What is forgotten as things are. Where the ring does not follow the history without a gap, what the history has is of
    /// no use.
    fn settle(&mut self) {
        let follows = self.ring_start <= self.written;
        let start = if follows { self.history_start.min(self.ring_start) } else { self.ring_start };
        self.forgotten = self.forgotten.max(start);
    }

    /// Changes that are not in the history yet.
    fn unwritten(&self) -> impl Iterator<Item = &Arc<Event>> {
        let start = self.ring.partition_point(|event| event.record.revision <= self.written);
        self.ring.range(start..)
    }
}

/// Changes of a collection that the history lacks.
pub(crate) struct Unwritten {
    pub collection: Arc<str>,
    /// They are all there are after this.
    pub after: Revision,
    /// Before `after` some are lost.
    pub gap: bool,
    pub events: Vec<Arc<Event>>,
    /// They are all there are up to here.
    pub upto: Revision,
}

/// Events whose encodings are kept. Whoever is further behind has them made again, which is rare; keeping them for as long as
/// the events are remembered took twice the memory of the events themselves.
const WARM_EVENTS: usize = 1024;
/// The same in bytes of their contents; each form that somebody watches in takes about as much again.
const WARM_BYTES: usize = 4 << 20;
/// Changes that are in the history leave the memory after this time, however few they are.
const MEMORY_AGE: Duration = Duration::from_secs(15);
/// How much more than allowed is kept in memory while the history cannot be written.
const MEMORY_FACTOR: usize = 4;
/// Waking a watcher costs about this much of a processor, whether it hears one event or ten. Where many watch, events that
/// come faster than all can be woken wait a little and come together.
const PACE_PER_WATCHER: Duration = Duration::from_micros(20);
/// Shorter pauses are not worth a timer.
const PACE_MIN: Duration = Duration::from_millis(1);
/// Nobody waits longer than this for an event that is there.
const PACE_MAX: Duration = Duration::from_millis(25);
/// How often it is noted which revision is the present, for [`State::forget`].
const MARK_EVERY: Duration = Duration::from_secs(5);

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
    warm_bytes: usize,
    /// Those of them that came since the last tick.
    warm_new: usize,
    retention: Retention,
    /// Everything up to here is forgotten in collections that are not there yet.
    floor: Revision,
    /// States before this are not read any more, whatever is remembered of the changes: they are too old.
    aged: Revision,
    /// Which revision was the present when, for the last [`Retention::age`].
    marks: VecDeque<(Instant, Revision)>,
    /// Collections whose watchers are to be woken when the time has come.
    waiting: Vec<Arc<str>>,
    /// Bytes of changes that were applied since the history was last written.
    pub unwritten_bytes: usize,
    /// What changed since the last checkpoint; `None` is a deletion.
    pub dirty: HashMap<Key, Option<Arc<Record>>>,
    /// Bytes of content applied since the last checkpoint.
    pub dirty_bytes: usize,
    /// Bytes of all current records with their keys, as they are kept on the disk: what the bound on stored data counts. What is sealed is
    /// in memory opened, too, which is as much again, and no reason to refuse what was taken in the clear.
    pub stored_bytes: u64,
    /// What content is sealed under, as applied so far.
    keys: Arc<Keyring>,
}

impl State {
    pub fn new(retention: Retention) -> State {
        State::with_root(retention, None)
    }

    /// One that opens what is sealed, by keys that are sealed under `root`.
    pub fn with_root(retention: Retention, root: Option<SecretKey>) -> State {
        State {
            applied: Revision::default(),
            collections: HashMap::new(),
            order: VecDeque::new(),
            order_bytes: 0,
            warm: VecDeque::new(),
            warm_bytes: 0,
            warm_new: 0,
            retention,
            floor: Revision::default(),
            aged: Revision::default(),
            marks: VecDeque::new(),
            waiting: Vec::new(),
            unwritten_bytes: 0,
            dirty: HashMap::new(),
            dirty_bytes: 0,
            stored_bytes: 0,
            keys: Arc::new(Keyring::new(root)),
        }
    }

    /// Has the keys that come be sealed under `root`.
    pub fn set_root(&mut self, root: SecretKey) {
        self.keys = Arc::new(Keyring::new(Some(root)));
        let records = self.collections.get(KEYS).map(|keys| keys.records.clone());
        Arc::make_mut(&mut self.keys).replace(records.as_ref());
    }

    /// What content is sealed under.
    pub fn keys(&self) -> &Arc<Keyring> {
        &self.keys
    }

    /// Replaces everything by what a checkpoint or another member's snapshot held; the past is forgotten.
    pub fn replace(&mut self, applied: Revision, mut records: HashMap<Arc<str>, Records>) {
        Arc::make_mut(&mut self.keys).replace(records.get(KEYS));
        records.values_mut().for_each(|records| self.keys.opened_all(records));
        self.order.clear();
        self.order_bytes = 0;
        self.warm.clear();
        (self.warm_bytes, self.warm_new, self.unwritten_bytes) = (0, 0, 0);
        self.marks.clear();
        self.applied = applied;
        (self.floor, self.aged) = (applied, applied);
        self.dirty.clear();
        self.dirty_bytes = 0;
        self.stored_bytes =
            records.values().flat_map(|records| records.values()).map(|record| record.kept_size()).sum();
        for (name, collection) in &mut self.collections {
            collection.records = records.remove(name).unwrap_or_default();
            collection.ring.clear();
            (collection.ring_start, collection.written) = (applied, applied);
            (collection.history_start, collection.forgotten) = (applied, applied);
            collection.changed.send_replace(applied);
            collection.count();
        }
        for (name, records) in records {
            self.collections.insert(name, Collection::new(records, applied));
        }
    }

    /// Takes over, right after [`State::replace`], what the history has from before: everything after `floor`, of some
    /// collections after another revision.
    pub fn remember(&mut self, floor: Revision, forgotten: Vec<(Arc<str>, Revision)>) {
        (self.floor, self.aged) = (floor, floor);
        for collection in self.collections.values_mut() {
            (collection.history_start, collection.forgotten) = (floor, floor);
        }
        let applied = self.applied;
        for (name, forgotten) in forgotten {
            let collection = self.collection_mut(&name);
            // Also of one that has no record now: its last event is in the history, and not in the ring.
            (collection.ring_start, collection.written) = (applied, applied);
            (collection.history_start, collection.forgotten) = (forgotten, forgotten);
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
        let (floor, applied) = (self.floor, self.applied);
        self.collections.entry(name.clone()).or_insert_with(|| {
            // Nothing happened here since the floor.
            let before = Revision::new(applied.get().saturating_sub(1)).max(floor);
            let new = Collection { ring_start: before, written: before, ..Collection::new(Records::new(), floor) };
            // Watchers look at what the history has.
            new.changed.send_replace(applied);
            new
        })
    }

    /// The records of every collection.
    pub fn all(&self) -> Vec<Records> {
        self.collections.values().map(|collection| collection.records.clone()).collect()
    }

    /// What lies before this is forgotten somewhere.
    pub fn compacted(&self) -> Revision {
        let forgotten = self.collections.values().map(|collection| collection.forgotten);
        forgotten.max().unwrap_or(self.floor).max(self.aged)
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
                (Op::Put { value, .. }, _) => Arc::new(self.keys.opened(Record::new(key.clone(), value, revision))),
                (Op::Delete { .. }, Some(previous)) => Arc::new(previous.at_revision(revision)),
                // `check` lets none through; a deletion of nothing does nothing, and a check never gets here.
                (Op::Delete { .. } | Op::Check { .. }, _) => continue,
            };
            let before = previous.as_ref().map_or(0, |previous| previous.kept_size());
            let after = if kind == EventKind::Put { record.kept_size() } else { 0 };
            self.stored_bytes = (self.stored_bytes + after).saturating_sub(before);
            let size = event_size(&record);
            let collection = self.collection_mut(&key.collection);
            match kind {
                EventKind::Put => collection.records.insert(key.name.clone(), record.clone()),
                EventKind::Delete => collection.records.remove(&key.name),
            };
            collection.count();
            let event = Arc::new(Event::new(kind, record.clone(), previous));
            collection.ring.push_back(event.clone());
            self.warm.push_back(event);
            self.warm_new += 1;
            self.warm_bytes += size;
            self.cool(|state| {
                state.warm.len() > WARM_EVENTS || (state.warm_bytes > WARM_BYTES && state.warm.len() > 1)
            });
            self.unwritten_bytes += size;
            self.order.push_back(Remembered { collection: key.collection.clone(), bytes: size, at: now });
            self.order_bytes += size;
            self.dirty.insert(key.clone(), (kind == EventKind::Put).then(|| record.clone()));
            self.dirty_bytes += size;
            if &*key.collection == KEYS {
                let written = (kind == EventKind::Put).then_some(&*record);
                Arc::make_mut(&mut self.keys).learn(&key.name, written);
            }
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
            let is_sealed_otherwise = matches!(step, Op::Put { key, value, .. } if !self.keys.takes(key, value));
            if !holds || deletes_nothing || is_sealed_otherwise {
                return Err(GuardFailed { op, found: found.cloned() });
            }
        }
        Ok(())
    }

    /// Wakes who watches `collections`, now or by [`State::publish_waiting`], and forgets what is too old or too much. Called
    /// once for a batch of entries. Says whether some are to be woken later.
    pub fn publish(&mut self, collections: impl IntoIterator<Item = Arc<str>>, now: Instant) -> bool {
        for name in collections {
            let Some(collection) = self.collections.get_mut(&name) else { continue };
            if collection.due().is_none_or(|due| due <= now) {
                collection.tell(self.applied, now);
            } else if !std::mem::replace(&mut collection.is_waiting, true) {
                self.waiting.push(name);
            }
        }
        self.forget(now);
        !self.waiting.is_empty()
    }

    /// Wakes all who watch anything.
    pub fn wake_all(&self) {
        for collection in self.collections.values() {
            collection.changed.send_modify(|_| ());
        }
    }

    /// Wakes those whose time has come; says when the next one's does.
    pub fn publish_waiting(&mut self, now: Instant) -> Option<Instant> {
        let (applied, collections) = (self.applied, &mut self.collections);
        let mut next = None;
        self.waiting.retain(|name| {
            let Some(collection) = collections.get_mut(name).filter(|collection| collection.is_waiting) else {
                return false;
            };
            match collection.due().filter(|due| *due > now) {
                Some(due) => {
                    next = Some(next.map_or(due, |next: Instant| next.min(due)));
                    true
                }
                None => {
                    collection.tell(applied, now);
                    false
                }
            }
        });
        next
    }

    /// Lets go of the encodings of the oldest warm events as long as `more` says so.
    fn cool(&mut self, more: impl Fn(&State) -> bool) {
        while more(self)
            && let Some(cold) = self.warm.pop_front()
        {
            self.warm_bytes -= event_size(&cold.record).min(self.warm_bytes);
            cold.cool();
        }
        self.warm_new = self.warm_new.min(self.warm.len());
    }

    /// Most bytes of changes in memory, while they cannot be written.
    pub fn memory_max(&self) -> usize {
        self.retention.memory.saturating_mul(MEMORY_FACTOR)
    }

    /// Takes everything out of memory that is in the history.
    pub fn evict(&mut self, now: Instant) {
        self.forget(now + MEMORY_AGE + Duration::from_secs(1));
    }

    /// Takes out of memory what is older or larger than the retention allows. What is not in the history by then is forgotten.
    pub fn forget(&mut self, now: Instant) {
        let memory_max = self.memory_max();
        while let Some(oldest) = self.order.front() {
            let too_much = self.order_bytes > self.retention.memory;
            if !too_much && now.saturating_duration_since(oldest.at) <= MEMORY_AGE {
                break;
            }
            let Some(collection) = self.collections.get_mut(&oldest.collection) else { break };
            let revision = collection.ring.front().map_or(collection.ring_start, |event| event.record.revision);
            let is_written = revision <= collection.written;
            if !is_written && self.order_bytes <= memory_max {
                break;
            }
            collection.ring.pop_front();
            collection.ring_start = revision;
            collection.settle();
            self.order_bytes -= oldest.bytes;
            self.order.pop_front();
        }
    }

    /// What time brings, called now and then: what was not asked for lately goes from memory, and states become too old.
    pub fn tick(&mut self, now: Instant) {
        let new = self.warm_new;
        self.cool(|state| state.warm.len() > new);
        self.warm_new = 0;
        self.forget(now);
        if self.order.is_empty() {
            self.order.shrink_to(64);
            self.collections.values_mut().filter(|c| c.ring.is_empty()).for_each(|c| c.ring.shrink_to(0));
        }
        if self.marks.back().is_none_or(|(at, _)| now.saturating_duration_since(*at) >= MARK_EVERY) {
            self.marks.push_back((now, self.applied));
        }
        while let Some((at, revision)) = self.marks.front()
            && now.saturating_duration_since(*at) > self.retention.age
        {
            self.aged = self.aged.max(*revision);
            self.marks.pop_front();
        }
    }

    /// Changes up to `target` that the history lacks, about `limit` bytes of each collection, but for those in `without`. None
    /// when it lacks nothing.
    pub fn unwritten(&self, target: Revision, limit: usize, without: &[Arc<str>]) -> Vec<Unwritten> {
        let mut all = Vec::new();
        for (name, collection) in &self.collections {
            let mut unwritten = collection.unwritten().peekable();
            let due = unwritten.peek().is_some_and(|event| event.record.revision <= target);
            if !due || without.contains(name) {
                continue;
            }
            let gap = collection.ring_start > collection.written;
            let after = collection.written.max(collection.ring_start);
            let (mut events, mut bytes, mut upto) = (Vec::<Arc<Event>>::new(), 0, self.applied);
            for event in unwritten {
                // Those of one revision are never apart.
                if let Some(last) = events.last().filter(|last| last.record.revision != event.record.revision)
                    && bytes > limit
                {
                    upto = last.record.revision;
                    break;
                }
                bytes += event_size(&event.record) + event.previous.as_deref().map_or(0, event_size);
                events.push(event.clone());
            }
            all.push(Unwritten { collection: name.clone(), after, gap, events, upto });
        }
        all
    }

    /// Takes note of what is in the history now: of each collection up to where, and what is forgotten. What was applied while
    /// that was written counts as unwritten, but for the collections in `failed`, which nothing waits for.
    pub fn written(&mut self, done: &[(Arc<str>, Revision, Revision)], failed: &[Arc<str>]) {
        for (name, upto, forgotten) in done {
            if let Some(collection) = self.collections.get_mut(name) {
                collection.written = collection.written.max(*upto);
                collection.history_start = *forgotten;
                collection.settle();
            }
        }
        // Where nothing is missing, nothing is missing up to now.
        for collection in self.collections.values_mut() {
            if collection.unwritten().next().is_none() && collection.ring_start <= collection.written {
                collection.written = self.applied;
            }
        }
        let waits = self.collections.iter().filter(|(name, _)| !failed.contains(name));
        let events = waits.flat_map(|(_, collection)| collection.unwritten());
        self.unwritten_bytes = events.map(|event| event_size(&event.record)).sum();
    }

    /// Takes note of what the history no longer has.
    pub fn history_forgot(&mut self, forgotten: &[(Arc<str>, Revision)]) {
        for (name, forgotten) in forgotten {
            if let Some(collection) = self.collections.get_mut(name) {
                collection.history_start = *forgotten;
                collection.settle();
            }
        }
    }

    /// What it takes to know the records of `name` at `revision`; `None` when that is forgotten.
    pub fn after(&self, name: &str, revision: Revision) -> Option<Undo> {
        if revision < self.aged {
            return None;
        }
        let Some(collection) = self.collections.get(name) else {
            return (revision >= self.floor).then(Undo::default);
        };
        if revision < collection.forgotten {
            return None;
        }
        let start = collection.ring.partition_point(|event| event.record.revision <= revision);
        Some(Undo {
            records: collection.records.clone(),
            before: HashMap::new(),
            on_disk: revision < collection.ring_start,
            upto: collection.ring_start,
            events: collection.ring.range(start..).cloned().collect(),
        })
    }
}

/// Bytes that a change with this record counts for, about.
fn event_size(record: &Record) -> usize {
    record.size() as usize - record.key.collection.len() + 256
}

/// The present records and the changes to undo, taken together under the lock so that the work is done outside it.
#[derive(Default)]
pub struct Undo {
    records: Records,
    /// Records as they were before the first change that is undone.
    before: HashMap<Arc<str>, Option<Arc<Record>>>,
    /// Changes up to `upto` must be [added](Undo::add) from the history.
    pub on_disk: bool,
    pub upto: Revision,
    /// Those in memory, in order.
    events: Vec<Arc<Event>>,
}

impl Undo {
    /// Adds a change that is older than those in memory, and newer than those added before. Returns the bytes it keeps.
    pub fn add(&mut self, event: &Event) -> usize {
        let mut kept = 0;
        self.before.entry(event.record.key.name.clone()).or_insert_with(|| {
            kept = event.previous.as_deref().map_or(0, event_size);
            // Its content is a slice of a block's, which it must not keep.
            event.previous.as_deref().map(|previous| Arc::new(previous.detached()))
        });
        kept
    }

    /// The records before the changes.
    pub fn records(mut self) -> Records {
        for event in &self.events {
            self.before.entry(event.record.key.name.clone()).or_insert_with(|| event.previous.clone());
        }
        let mut records = self.records;
        for (name, before) in self.before {
            match before {
                Some(before) => records.insert(name, before),
                None => records.remove(&name),
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

    const KEEP: Retention = Retention { age: Duration::from_secs(300), bytes: u64::MAX, memory: usize::MAX };

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
            let counted: u64 = state.collections().flat_map(|(_, c)| c.records.values()).map(|r| r.kept_size()).sum();
            assert_eq!(state.stored_bytes, counted);
        }
        assert_eq!(state.stored_bytes, ("things".len() + "a".len() + "3".len()) as u64);
    }

    #[test]
    fn what_is_applied_while_the_history_is_written_still_lacks() {
        let now = Instant::now();
        let mut state = State::new(Retention { age: Duration::from_secs(300), bytes: u64::MAX, memory: 1 << 20 });
        let apply = |state: &mut State, revision: u64| {
            state.apply(Revision::new(revision), &[put("a", "x", Guard::None)], now).unwrap();
        };
        apply(&mut state, 1);
        let one = state.unwritten_bytes;
        let part = state.unwritten(Revision::new(1), usize::MAX, &[]).remove(0);
        apply(&mut state, 2);
        apply(&mut state, 3);
        let done = [(part.collection, part.upto, part.after)];
        state.written(&done, &[]);
        assert_eq!((one > 0, state.unwritten_bytes), (true, 2 * one), "else nobody waits before they are forgotten");
        state.written(&[], &[Arc::from("things")]);
        assert_eq!(state.unwritten_bytes, 0, "nobody waits for what cannot be written");
    }

    #[test]
    fn what_the_history_has_leaves_the_memory_and_the_rest_is_forgotten_late() {
        let now = Instant::now();
        let retention = Retention { age: Duration::from_secs(300), bytes: u64::MAX, memory: 600 };
        let mut state = State::new(retention);
        let mut revision = 0;
        let mut write = |state: &mut State, count: u64| {
            for _ in 0..count {
                revision += 1;
                state.apply(Revision::new(revision), &[put("a", "x", Guard::None)], now).unwrap();
            }
            state.forget(now);
        };
        let ring = |state: &State| {
            let collection = state.collection("things").unwrap();
            (collection.forgotten.get(), collection.ring_start.get(), collection.ring.len())
        };
        // Nothing is on disk: four times as much stays, and no more.
        write(&mut state, 8);
        assert_eq!(ring(&state), (0, 0, 8));
        write(&mut state, 4);
        assert_eq!(ring(&state), (3, 3, 9));
        assert!(state.after("things", Revision::new(2)).is_none());
        let unwritten = state.unwritten(Revision::new(12), usize::MAX, &[]);
        let part = &unwritten[0];
        assert_eq!((part.after.get(), part.gap, part.events.len(), part.upto.get()), (3, true, 9, 12));
        // Now the disk has what is after 3.
        state.written(&[(Arc::from("things"), part.upto, part.after)], &[]);
        state.forget(now);
        assert_eq!(ring(&state), (3, 10, 2));
        assert!(state.unwritten(Revision::new(12), usize::MAX, &[]).is_empty());
        // By age everything goes that is on disk, and states become too old.
        write(&mut state, 1);
        state.tick(now);
        state.tick(now + MEMORY_AGE + Duration::from_secs(1));
        assert_eq!(ring(&state), (3, 12, 1));
        assert!(state.after("things", Revision::new(3)).is_some_and(|undo| undo.on_disk && undo.upto.get() == 12));
        state.tick(now + Duration::from_secs(301));
        assert_eq!(state.aged.get(), 13);
        assert!(state.after("things", Revision::new(12)).is_none());
        assert_eq!(ring(&state), (3, 12, 1));
    }

    #[test]
    fn many_watchers_are_woken_together_and_none_waits_long() {
        let now = Instant::now();
        let at = |ms| now + Duration::from_millis(ms);
        let mut state = State::new(KEEP);
        let things: Arc<str> = Arc::from("things");
        let mut first = state.collection_mut(&things).changed.subscribe();
        let mut said = |state: &State| *state.collection("things").map(|_| first.borrow_and_update()).unwrap();
        let mut revision = 0;
        let mut write = |state: &mut State, when| {
            revision += 1;
            state.apply(Revision::new(revision), &[put("a", "x", Guard::None)], when).unwrap();
            state.publish([things.clone()], when)
        };
        // Who watches alone hears everything at once.
        assert!(!write(&mut state, now) && !write(&mut state, now));
        assert_eq!(said(&state).get(), 2);
        let others: Vec<_> = (0..999).map(|_| state.collection("things").unwrap().changed.subscribe()).collect();
        assert!(!write(&mut state, at(100)));
        assert!(write(&mut state, at(101)) && write(&mut state, at(102)));
        assert_eq!((state.publish_waiting(at(119)), said(&state).get()), (Some(at(120)), 3));
        assert_eq!((state.publish_waiting(at(120)), said(&state).get()), (None, 5));
        // After a pause the first one is heard at once again.
        assert!(!write(&mut state, at(141)));
        assert_eq!(said(&state).get(), 6);
        drop(others);
        let _many: Vec<_> = (0..50_000).map(|_| state.collection("things").unwrap().changed.subscribe()).collect();
        assert!(write(&mut state, at(142)));
        assert_eq!(state.publish_waiting(at(142)), Some(at(141) + PACE_MAX));
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
