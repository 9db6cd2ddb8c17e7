//! The keys as the log says them, and what is to be sealed.
//!
//! They are records of the collection [`KEYS`], so every member has a key before it applies anything that is sealed under
//! it: `key N` says when it was made, and the key, itself sealed under the root key, which is never in the log; `current` says under which key
//! new content is sealed, and in which collections. The root key is lent by whoever opens the keyspace.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;

use super::key::{self, SecretKey, sealed_by};
use crate::group;
use crate::record::{Event, Guard, Key, Op, Record, Revision, Value};
use crate::state::Records;

/// The collection.
pub(crate) const KEYS: &str = "coracle keys";
const CURRENT: &str = "current";
/// What stands before a key's number.
const NUMBERED: &str = "key ";
/// Bytes before the content in what is sealed: where its revision goes.
const OFFSET: usize = 4;

/// What to do about content that cannot be opened.
const LOST: &str = "restore the object from a backup, or delete it and make it again";

/// A key that content is sealed under.
#[derive(Clone)]
struct DataKey {
    /// Seconds since 1970.
    created: u64,
    key: Result<SecretKey, String>,
}

/// Under which key new content is sealed.
#[derive(Clone)]
struct Current {
    id: u64,
    collections: BTreeSet<String>,
    revision: Revision,
}

/// Why content cannot be opened.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Unopened {
    /// Its key is no more: only the past can be sealed under it.
    Gone(String),
    /// It is not what was sealed, or its key cannot be opened.
    Wrong(String),
}

impl Unopened {
    fn why(self) -> String {
        match self {
            Unopened::Gone(why) | Unopened::Wrong(why) => why,
        }
    }
}

/// What a member knows of keys.
#[derive(Clone, Default)]
pub(crate) struct Keyring {
    root: Option<SecretKey>,
    keys: BTreeMap<u64, DataKey>,
    current: Option<Current>,
}

impl Keyring {
    /// One that knows nothing yet.
    pub fn new(root: Option<SecretKey>) -> Keyring {
        Keyring { root, ..Keyring::default() }
    }

    /// The one of these records; an error where they cannot be read, or not with this root.
    pub fn read(root: Option<SecretKey>, records: Option<&Records>) -> Result<Keyring, String> {
        let mut ring = Keyring::new(root);
        for record in records.into_iter().flat_map(|records| records.values()) {
            ring.note(&record.key.name, Some(record))?;
        }
        match ring.current.as_ref().filter(|current| !ring.keys.contains_key(&current.id)) {
            Some(current) => Err(format!("encryption key {} is named, and is not there", current.id)),
            None => Ok(ring),
        }
    }

    /// The same as far as they can be read: what cannot is told when something is sealed under it.
    pub fn replace(&mut self, records: Option<&Records>) {
        *self = Keyring::new(self.root.take());
        for record in records.into_iter().flat_map(|records| records.values()) {
            self.learn(&record.key.name, Some(record));
        }
    }

    /// Takes note of a record that was written or removed.
    pub fn learn(&mut self, name: &str, record: Option<&Record>) {
        if let Err(why) = self.note(name, record) {
            tracing::error!(why, "an encryption key cannot be used");
        }
    }

    fn note(&mut self, name: &str, record: Option<&Record>) -> Result<(), String> {
        let id = name.strip_prefix(NUMBERED).and_then(|id| id.parse::<u64>().ok());
        let Some(record) = record else {
            match id {
                Some(id) => drop(self.keys.remove(&id)),
                None if name == CURRENT => self.current = None,
                None => (),
            }
            return Ok(());
        };
        let text = group::first_line(&record.bytes);
        let unreadable = || format!("the record {name} of the encryption keys says {text:?}");
        let mut words = text.split(' ');
        let number = words.next().and_then(|word| word.parse::<u64>().ok());
        match (number, id) {
            (Some(id), None) if name == CURRENT => {
                let collections = words.map(str::to_owned).collect();
                self.current = Some(Current { id, collections, revision: record.revision });
                Ok(())
            }
            (Some(created), Some(id)) => {
                let frame = words.next().and_then(key::from_hex).ok_or_else(unreadable)?;
                let Some(root) = &self.root else {
                    self.keys.insert(id, DataKey { created, key: Err("this process has no root key".into()) });
                    return Ok(());
                };
                let opened = root.open(&[KEYS, name], &frame);
                let key = opened.and_then(|key| SecretKey::from_hex(&String::from_utf8(key).ok()?));
                let key = key.ok_or_else(|| {
                    format!(
                        "encryption key {id} cannot be opened with the key of this cluster's authority (pki/ca.key): that file is not \
                         the one that the cluster was made with; put that back, from another server or a backup"
                    )
                });
                let told = key.as_ref().map(|_| ()).map_err(String::clone);
                self.keys.insert(id, DataKey { created, key });
                told
            }
            _ => Err(unreadable()),
        }
    }

    /// Whether the first key was made.
    pub fn has_begun(&self) -> bool {
        self.current.is_some()
    }

    /// Whether it can make keys.
    pub fn has_root(&self) -> bool {
        self.root.is_some()
    }

    /// What is wrong with keys that cannot be used, where there should be none.
    pub fn broken(&self) -> Option<&str> {
        let wrong = self.keys.values().filter(|_| self.has_root()).find_map(|key| key.key.as_ref().err());
        wrong.map(String::as_str)
    }

    /// The newest key's number and when it was made (seconds since 1970).
    pub fn newest(&self) -> Option<(u64, u64)> {
        let current = self.current.as_ref()?;
        Some((current.id, self.keys.get(&current.id)?.created))
    }

    /// The numbers of all keys.
    pub fn ids(&self) -> impl Iterator<Item = u64> {
        self.keys.keys().copied()
    }

    /// Collections whose content is sealed.
    pub fn collections(&self) -> BTreeSet<String> {
        self.current.as_ref().map(|current| current.collections.clone()).unwrap_or_default()
    }

    /// Under which key what is written to a collection is sealed.
    pub fn wanted(&self, collection: &str) -> Option<u64> {
        self.current.as_ref().filter(|current| current.collections.contains(collection)).map(|current| current.id)
    }

    /// Whether this content may be written there: sealed under the newest key where it is to be, and nowhere else. Whoever had an older
    /// key, or did not know that there is one, seals it anew.
    pub fn takes(&self, key: &Key, value: &Value) -> bool {
        self.wanted(&key.collection) == sealed_by(&value.bytes)
    }

    /// Whether it is sealed as it is to be.
    pub fn is_settled(&self, record: &Record) -> bool {
        self.wanted(&record.key.collection) == record.sealed_by()
    }

    /// The same operations with their contents sealed where they are to be; `None` where none is.
    pub fn seal(&self, ops: &[Op]) -> Result<Option<Vec<Op>>, String> {
        let wants = |op: &Op| matches!(op, Op::Put { key, .. } if self.wanted(&key.collection).is_some());
        if !ops.iter().any(wants) {
            return Ok(None);
        }
        let seal = |op: &Op| -> Result<Op, String> {
            Ok(match op {
                Op::Put { key, value, guard } if wants(op) => {
                    Op::Put { key: key.clone(), value: self.sealed(key, value)?, guard: *guard }
                }
                op => op.clone(),
            })
        };
        ops.iter().map(seal).collect::<Result<Vec<Op>, String>>().map(Some)
    }

    fn sealed(&self, place: &Key, value: &Value) -> Result<Value, String> {
        let id = self.wanted(&place.collection).ok_or("nothing is sealed there")?;
        let found = self.keys.get(&id).ok_or_else(|| format!("encryption key {id} is not there"))?;
        let key = found.key.as_ref().map_err(String::clone)?;
        let mut plain = Vec::with_capacity(OFFSET + value.bytes.len());
        plain.extend_from_slice(&(value.revision_at.min(value.bytes.len()) as u32).to_le_bytes());
        plain.extend_from_slice(&value.bytes);
        let frame = key.seal(id, &[&place.collection, &place.name], &plain);
        Ok(Value { bytes: Bytes::from(frame), revision_at: 0 })
    }

    /// What a sealed content is.
    fn content(&self, place: &Key, frame: &[u8]) -> Result<Value, Unopened> {
        let id = sealed_by(frame).unwrap_or_default();
        let Some(found) = self.keys.get(&id) else {
            return Err(Unopened::Gone(format!("it is sealed under encryption key {id}, which is no more: {LOST}")));
        };
        let key = found.key.as_ref().map_err(|why| Unopened::Wrong(why.clone()))?;
        let opened = key.open(&[&place.collection, &place.name], frame).and_then(|plain| {
            let plain = Bytes::from(plain);
            let at = u32::from_le_bytes(*plain.first_chunk::<OFFSET>()?) as usize;
            let bytes = plain.slice(OFFSET..);
            (at <= bytes.len()).then_some(Value { bytes, revision_at: at })
        });
        opened.ok_or_else(|| {
            Unopened::Wrong(format!(
                "it is sealed under encryption key {id}, and is not what was sealed in this place: it was changed, or \
                 belongs to another object; {LOST}"
            ))
        })
    }

    /// The record with its content opened. One that cannot be opened says why.
    pub fn opened(&self, record: Record) -> Record {
        if !record.is_closed() {
            return record;
        }
        match self.content(&record.key, &record.bytes) {
            Ok(value) => record.opened(&value),
            Err(why) => record.unreadable(why.why()),
        }
    }

    /// The same of all records, those that are sealed in new memory.
    pub fn opened_all(&self, records: &mut Records) {
        let closed: Vec<Arc<Record>> = records.values().filter(|record| record.is_closed()).cloned().collect();
        for record in closed {
            records.insert(record.key.name.clone(), Arc::new(self.opened(record.detached())));
        }
    }

    /// The same of events of the past, all or nothing: one of which something is missing is forgotten.
    pub fn opened_events(&self, events: Vec<Arc<Event>>) -> Result<Vec<Arc<Event>>, Unopened> {
        if !events.iter().any(|event| event.is_closed()) {
            return Ok(events);
        }
        let open = |record: &Arc<Record>| -> Result<Arc<Record>, Unopened> {
            Ok(match record.is_closed() {
                true => Arc::new(record.opened(&self.content(&record.key, &record.bytes)?)),
                false => record.clone(),
            })
        };
        let retell = |event: &Arc<Event>| -> Result<Arc<Event>, Unopened> {
            Ok(Arc::new(event.retold(open(&event.record)?, event.previous.as_ref().map(open).transpose()?)))
        };
        events.iter().map(retell).collect()
    }

    /// What makes a new key, made `now` (seconds since 1970), and has new content of `collections` sealed under it.
    pub fn renew(&self, now: u64, collections: &BTreeSet<String>) -> Option<Vec<Op>> {
        let id = self.keys.keys().next_back().map_or(1, |last| last + 1);
        let name = format!("{NUMBERED}{id}");
        let frame = self.root.as_ref()?.seal(0, &[KEYS, &name], SecretKey::generate().to_hex().as_bytes());
        let made = group::line(Key::new(KEYS, name), &format!("{now} {}", key::hex(&frame)), Guard::Absent);
        Some(vec![made, self.say_current(id, collections)])
    }

    /// What has new content of these collections sealed, under the key that is the newest.
    pub fn choose(&self, collections: &BTreeSet<String>) -> Option<Op> {
        self.current.as_ref().map(|current| self.say_current(current.id, collections))
    }

    fn say_current(&self, id: u64, collections: &BTreeSet<String>) -> Op {
        let collections: Vec<&str> = collections.iter().map(String::as_str).collect();
        let guard = self.current.as_ref().map_or(Guard::Absent, |current| Guard::Revision(current.revision));
        group::line(Key::new(KEYS, CURRENT), format!("{id} {}", collections.join(" ")).trim_end(), guard)
    }

    /// What removes a key, as long as the newest is what it is.
    pub fn drop_key(&self, id: u64) -> Option<Vec<Op>> {
        let current = self.current.as_ref().filter(|current| current.id != id)?;
        let unchanged = Op::Check { key: Key::new(KEYS, CURRENT), guard: Guard::Revision(current.revision) };
        Some(vec![Op::Delete { key: Key::new(KEYS, format!("{NUMBERED}{id}")), guard: Guard::None }, unchanged])
    }
}
