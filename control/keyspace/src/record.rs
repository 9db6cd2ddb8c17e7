//! The vocabulary: keys, revisions, records, and the operations of a transaction.

use std::any::Any;
use std::collections::HashSet;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;

use crate::seal::sealed_by;

/// Most operations in one transaction (kubernetes-api §3.10 needs far fewer).
pub const OPS_MAX: usize = 512;
/// Most bytes of content in one transaction.
pub const TRANSACTION_BYTES_MAX: usize = 4 << 20;

/// Position in the replicated log; the version of everything written there. 0 means "nothing yet".
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Revision(u64);

impl Revision {
    /// The revision numbered `index`.
    pub const fn new(index: u64) -> Revision {
        Revision(index)
    }

    /// Its number.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Where a record is kept. Collections are apart; within one, records are ordered by the bytes of their name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Key {
    /// The collection, e.g. `pods`.
    pub collection: Arc<str>,
    /// The name in it, e.g. `default/web-0`.
    pub name: Arc<str>,
}

impl Key {
    /// The record `name` of `collection`.
    pub fn new(collection: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Key {
        Key { collection: collection.into(), name: name.into() }
    }
}

/// Content to be written; its revision, in decimal, is inserted at an offset once it is known.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Value {
    /// The content without the revision.
    pub bytes: Bytes,
    /// Where the revision goes; at most `bytes.len()`.
    pub revision_at: usize,
}

/// A condition on the record that is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Guard {
    /// None: whatever is there.
    None,
    /// No record is there.
    Absent,
    /// Some record is there.
    Present,
    /// The record has this revision.
    Revision(Revision),
}

impl Guard {
    /// Whether it holds for what was found.
    pub fn holds(self, found: Option<&Record>) -> bool {
        match (self, found) {
            (Guard::None, _) | (Guard::Absent, None) | (Guard::Present, Some(_)) => true,
            (Guard::Revision(revision), Some(record)) => record.revision == revision,
            (Guard::Absent, Some(_)) | (Guard::Present | Guard::Revision(_), None) => false,
        }
    }
}

/// One step of a transaction.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Op {
    /// Writes a record.
    Put {
        /// Where.
        key: Key,
        /// What.
        value: Value,
        /// If.
        guard: Guard,
    },
    /// Removes a record.
    Delete {
        /// Where; there must be one.
        key: Key,
        /// If. `None` and `Present` mean the same.
        guard: Guard,
    },
    /// Changes nothing: the whole transaction happens only if the guard holds.
    Check {
        /// Where.
        key: Key,
        /// If.
        guard: Guard,
    },
}

/// The first of `ops` whose key an earlier one has too.
pub(crate) fn duplicate(ops: &[Op]) -> Option<usize> {
    // Nearly all are this short: comparing is quicker than hashing.
    if ops.len() <= 8 {
        return (1..ops.len()).find(|at| ops[..*at].iter().any(|op| op.key() == ops[*at].key()));
    }
    let mut seen = HashSet::with_capacity(ops.len());
    ops.iter().position(|op| !seen.insert(op.key()))
}

impl Op {
    /// Where it writes or looks.
    pub fn key(&self) -> &Key {
        match self {
            Op::Put { key, .. } | Op::Delete { key, .. } | Op::Check { key, .. } => key,
        }
    }

    pub(crate) fn size(&self) -> usize {
        match self {
            Op::Put { key, value, .. } => key.collection.len() + key.name.len() + value.bytes.len(),
            Op::Delete { key, .. } | Op::Check { key, .. } => key.collection.len() + key.name.len(),
        }
    }

    /// The record it is about, and the condition on it as it is meant: there must be one to delete.
    pub fn condition(&self) -> (&Key, Guard) {
        match self {
            Op::Put { key, guard, .. } | Op::Check { key, guard } => (key, *guard),
            Op::Delete { key, guard: Guard::None } => (key, Guard::Present),
            Op::Delete { key, guard } => (key, *guard),
        }
    }
}

/// How a sealed record is kept outside of memory.
#[derive(Clone)]
struct Kept {
    /// The content as it was sealed. Its revision stands beside it.
    frame: Bytes,
    /// Why it cannot be opened; the record's bytes are the frame then.
    unreadable: Option<String>,
}

/// A record as it is kept: final bytes, with the revision in them. Two are the same that are at the same place, were written at
/// the same revision, and are opened or not.
pub struct Record {
    /// Where it is kept.
    pub key: Key,
    /// When it was written.
    pub revision: Revision,
    /// Its content.
    pub bytes: Bytes,
    /// Where in the content its revision stands.
    pub revision_at: Range<u32>,
    /// How it is kept outside of memory, where that is not as it is here.
    kept: Option<Box<Kept>>,
    memo: Mutex<Option<Arc<dyn Any + Send + Sync>>>,
    /// The memo was asked for since the last [`Record::rest`].
    memo_used: AtomicBool,
}

impl PartialEq for Record {
    fn eq(&self, other: &Record) -> bool {
        // Nearly always: neighbours of what has changed, which are the same record.
        std::ptr::eq(self, other)
            || (self.revision == other.revision && self.key == other.key && self.bytes == other.bytes)
    }
}

impl Record {
    /// The record made of `value` at `revision`.
    pub(crate) fn new(key: Key, value: &Value, revision: Revision) -> Record {
        if sealed_by(&value.bytes).is_some() {
            // Of its own, as what is spliced: it came in a message with up to a mebibyte of others, which it would keep.
            return Record::restored(key, revision, Bytes::copy_from_slice(&value.bytes), 0..0);
        }
        let at = value.revision_at.min(value.bytes.len());
        Record::spliced(key, &value.bytes[..at], revision, &value.bytes[at..])
    }

    /// The same content with another revision in its place.
    pub fn at_revision(&self, revision: Revision) -> Record {
        let (start, end) = (self.revision_at.start as usize, self.revision_at.end as usize);
        let record = match sealed_by(&self.bytes) {
            Some(_) => Record::restored(self.key.clone(), revision, self.bytes.clone(), 0..0),
            None => Record::spliced(self.key.clone(), &self.bytes[..start], revision, &self.bytes[end..]),
        };
        Record { kept: self.kept.clone(), ..record }
    }

    /// The same record with its content opened, which is `value`.
    pub(crate) fn opened(&self, value: &Value) -> Record {
        let kept = Some(Box::new(Kept { frame: self.bytes.clone(), unreadable: None }));
        Record { kept, ..Record::new(self.key.clone(), value, self.revision) }
    }

    /// The same record, of which nothing but this can be said.
    pub(crate) fn unreadable(self, why: String) -> Record {
        let kept = Some(Box::new(Kept { frame: self.bytes.clone(), unreadable: Some(why) }));
        Record { kept, ..self }
    }

    /// Whether its content is sealed and nobody has tried to open it.
    pub(crate) fn is_closed(&self) -> bool {
        self.kept.is_none() && sealed_by(&self.bytes).is_some()
    }

    /// Why its content cannot be opened, and what to do: nothing of it may be shown or changed then.
    pub fn why_unreadable(&self) -> Option<&str> {
        self.kept.as_ref()?.unreadable.as_deref()
    }

    /// Under which key its content is sealed outside of memory.
    pub fn sealed_by(&self) -> Option<u64> {
        sealed_by(self.stored().0)
    }

    /// Its content as it is kept outside of memory, and where in it the revision stands.
    pub(crate) fn stored(&self) -> (&Bytes, Range<u32>) {
        match &self.kept {
            Some(kept) => (&kept.frame, 0..0),
            None => (&self.bytes, self.revision_at.clone()),
        }
    }

    /// Its content without the revision, to be written again.
    pub(crate) fn value(&self) -> Value {
        let (start, end) = (self.revision_at.start as usize, self.revision_at.end as usize);
        let bytes = Bytes::from([&self.bytes[..start], &self.bytes[end..]].concat());
        Value { bytes, revision_at: start }
    }

    /// The same record with another content.
    pub fn renewed(&self, value: &Value) -> Record {
        Record::new(self.key.clone(), value, self.revision)
    }

    fn spliced(key: Key, before: &[u8], revision: Revision, after: &[u8]) -> Record {
        let digits = revision.to_string();
        let mut bytes = BytesMut::with_capacity(before.len() + digits.len() + after.len());
        bytes.extend_from_slice(before);
        bytes.extend_from_slice(digits.as_bytes());
        bytes.extend_from_slice(after);
        let start = before.len() as u32;
        Record::restored(key, revision, bytes.freeze(), start..start + digits.len() as u32)
    }

    /// Bytes of it in memory: key and content, opened and sealed.
    pub(crate) fn size(&self) -> u64 {
        let sealed = self.kept.as_ref().map_or(0, |kept| kept.frame.len());
        (self.key.collection.len() + self.key.name.len() + self.bytes.len() + sealed) as u64
    }

    /// Bytes of key and content as it is kept outside of memory, which is what the bound on stored data counts.
    pub(crate) fn kept_size(&self) -> u64 {
        (self.key.collection.len() + self.key.name.len() + self.stored().0.len()) as u64
    }

    /// A record read back from disk.
    pub(crate) fn restored(key: Key, revision: Revision, bytes: Bytes, revision_at: Range<u32>) -> Record {
        Record {
            key,
            revision,
            bytes,
            revision_at,
            kept: None,
            memo: Mutex::default(),
            memo_used: AtomicBool::new(false),
        }
    }

    /// The same record in memory of its own.
    pub(crate) fn detached(&self) -> Record {
        let bytes = Bytes::copy_from_slice(&self.bytes);
        let kept = self.kept.clone().map(|mut kept| {
            kept.frame = Bytes::copy_from_slice(&kept.frame);
            kept
        });
        Record { kept, ..Record::restored(self.key.clone(), self.revision, bytes, self.revision_at.clone()) }
    }

    /// Lets go of the memo unless somebody asked for it since the last call.
    pub(crate) fn rest(&self) {
        if !self.memo_used.swap(false, Ordering::Relaxed)
            && let Some(mut memo) = self.memo.try_lock()
        {
            *memo = None;
        }
    }

    /// Something computed from the content once and kept as long as the record is current and somebody asks for it now and
    /// then.
    ///
    /// All callers must ask for the same type; another type is computed anew and not kept. Computed under a lock: it must be
    /// quick, or do its work later behind a cell of its own.
    pub fn memo<T: Send + Sync + 'static>(&self, compute: impl FnOnce(&Record) -> T) -> Arc<T> {
        if !self.memo_used.load(Ordering::Relaxed) {
            self.memo_used.store(true, Ordering::Relaxed);
        }
        let mut memo = self.memo.lock();
        if let Some(kept) = &*memo {
            return kept.clone().downcast().unwrap_or_else(|_| Arc::new(compute(self)));
        }
        let computed = Arc::new(compute(self));
        *memo = Some(computed.clone());
        computed
    }
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Record")
            .field("key", &self.key)
            .field("revision", &self.revision)
            .field("bytes", &self.bytes.len())
            .finish_non_exhaustive()
    }
}

/// What happened to a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EventKind {
    /// It was written.
    Put,
    /// It was removed.
    Delete,
}

/// Encodings of an event that its readers can share.
pub const FRAME_SLOTS: usize = 4;

/// One change of one record, shared by all who watch.
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// The record after it; of a deletion, the last content with the deletion's revision.
    pub record: Arc<Record>,
    /// The record before it.
    pub previous: Option<Arc<Record>>,
    frames: [Mutex<Option<Bytes>>; FRAME_SLOTS],
    /// Encodings are no longer kept.
    cold: AtomicBool,
}

impl Event {
    pub(crate) fn new(kind: EventKind, record: Arc<Record>, previous: Option<Arc<Record>>) -> Event {
        Event { kind, record, previous, frames: Default::default(), cold: AtomicBool::new(false) }
    }

    /// Whether a content of it is sealed and nobody has tried to open it.
    pub(crate) fn is_closed(&self) -> bool {
        self.record.is_closed() || self.previous.as_ref().is_some_and(|previous| previous.is_closed())
    }

    /// The same event with other contents, as somebody sees them.
    pub fn retold(&self, record: Arc<Record>, previous: Option<Arc<Record>>) -> Event {
        Event::new(self.kind, record, previous)
    }

    /// The encoding in `slot` (below [`FRAME_SLOTS`]), made by the first who asks; by each, of an event that is no longer new.
    pub fn frame(&self, slot: usize, encode: impl FnOnce() -> Bytes) -> Bytes {
        if self.cold.load(Ordering::Relaxed) {
            return encode();
        }
        self.frames[slot].lock().get_or_insert_with(encode).clone()
    }

    /// Lets go of what can be computed again: most who watch have seen the event. The memo of a record that is still current stays.
    pub(crate) fn cool(&self) {
        self.cold.store(true, Ordering::Relaxed);
        for frame in &self.frames {
            *frame.lock() = None;
        }
        if let Some(previous) = &self.previous {
            *previous.memo.lock() = None;
        }
        if self.kind == EventKind::Delete {
            *self.record.memo.lock() = None;
        }
    }
}

/// What a transaction did.
#[derive(Clone, Debug)]
pub struct Committed {
    /// Its revision.
    pub revision: Revision,
    /// A record for each operation that changes one, in their order; of a deletion, the last content with the deletion's
    /// revision.
    pub records: Vec<Arc<Record>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_memo_stays_while_it_is_asked_for() {
        let value = Value { bytes: Bytes::from_static(b"{}"), revision_at: 1 };
        let record = Record::new(Key::new("things", "a"), &value, Revision::new(1));
        let made = std::cell::Cell::new(0);
        let ask = || {
            record.memo(|_| made.set(made.get() + 1));
            made.get()
        };
        assert_eq!((ask(), ask()), (1, 1));
        record.rest();
        assert_eq!(ask(), 1);
        record.rest();
        record.rest();
        assert_eq!(ask(), 2);
    }

    #[test]
    fn a_record_keeps_no_more_of_the_message_that_it_came_in() {
        let sealed = crate::SecretKey::generate().seal(1, &["things", "a"], b"{}");
        for content in [&b"{}"[..], &sealed[..]] {
            let message = Bytes::from([content, &[7; 1 << 10][..]].concat());
            let value = Value { bytes: message.slice(..content.len()), revision_at: 1 };
            let record = Record::new(Key::new("things", "a"), &value, Revision::new(1));
            let opened = record.unreadable("nobody has the key".into());
            drop(value);
            assert!(message.is_unique() && opened.stored().0.len() >= content.len());
        }
    }

    #[test]
    fn frames_are_kept_until_the_event_is_cold() {
        let value = Value { bytes: Bytes::from_static(b"{}"), revision_at: 1 };
        let record = Arc::new(Record::new(Key::new("things", "a"), &value, Revision::new(1)));
        let event = Event::new(EventKind::Put, record, None);
        let made = std::cell::Cell::new(0_u8);
        let ask = || {
            event.frame(0, || {
                made.set(made.get() + 1);
                Bytes::copy_from_slice(&[made.get()])
            })[0]
        };
        assert_eq!((ask(), ask()), (1, 1));
        event.cool();
        assert_eq!((ask(), ask()), (2, 3));
    }
}
