//! Events as bytes: a block is a checked head and a compressed body.
//!
//! ```text
//! head  "HBLK" · stored bytes · raw bytes · events (u32 each) · first · last revision (u64 each) · CRC of the body · CRC of the head
//! body  LZ4 of: kind u8 · revision u64 · name · [previous record] · [record]          (of a deletion only the previous one)
//! ```
//! The record before the change stands beside the one after it: whoever reads needs nothing else, and LZ4 makes next to
//! nothing of the repetition. Numbers are little-endian.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use crate::record::{Event, EventKind, Key, Record, Revision};

/// A block is closed once it has this many bytes, uncompressed. It is what a reader holds.
pub const RAW_BYTES: usize = 128 << 10;
/// Larger ones are neither written nor read: one transaction that replaced more than this is forgotten instead.
pub const RAW_BYTES_MAX: usize = 64 << 20;

const MAGIC: u32 = u32::from_le_bytes(*b"HBLK");

/// What stands before a block's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Bytes of the body.
    pub stored: u32,
    raw: u32,
    events: u32,
    /// Revision of its first event.
    pub first: u64,
    /// Revision of its last event.
    pub last: u64,
    body_crc: u32,
}

impl Head {
    /// Bytes of a head.
    pub const SIZE: usize = 40;

    fn encode(&self) -> [u8; Head::SIZE] {
        let mut out = [0; Head::SIZE];
        let numbers = [MAGIC, self.stored, self.raw, self.events];
        for (at, number) in numbers.into_iter().enumerate() {
            out[at * 4..at * 4 + 4].copy_from_slice(&number.to_le_bytes());
        }
        out[16..24].copy_from_slice(&self.first.to_le_bytes());
        out[24..32].copy_from_slice(&self.last.to_le_bytes());
        out[32..36].copy_from_slice(&self.body_crc.to_le_bytes());
        let crc = crc32fast::hash(&out[..36]);
        out[36..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// The head that `bytes` are; `None` when they are none.
    pub fn decode(bytes: &[u8; Head::SIZE]) -> Option<Head> {
        let mut at = 0;
        let mut part = |size: usize| {
            let mut number = [0; 8];
            number[..size].copy_from_slice(&bytes[at..at + size]);
            at += size;
            u64::from_le_bytes(number)
        };
        let [magic, stored, raw, events] = [(); 4].map(|()| part(4) as u32);
        let (first, last, body_crc, crc) = (part(8), part(8), part(4) as u32, part(4) as u32);
        let whole = magic == MAGIC && crc == crc32fast::hash(&bytes[..36]) && raw as usize <= RAW_BYTES_MAX;
        whole.then_some(Head { stored, raw, events, first, last, body_crc })
    }
}

/// Puts events together to a block.
#[derive(Default)]
pub struct Encoder {
    raw: Vec<u8>,
    events: u32,
    first: u64,
    last: u64,
}

impl Encoder {
    /// Uncompressed bytes so far.
    pub fn len(&self) -> usize {
        self.raw.len()
    }

    /// Adds an event.
    pub fn push(&mut self, event: &Event) {
        let revision = event.record.revision.get();
        if self.events == 0 {
            self.first = revision;
        }
        (self.last, self.events) = (revision, self.events + 1);
        let kind = match (event.kind, &event.previous) {
            (EventKind::Put, None) => 0,
            (EventKind::Put, Some(_)) => 1,
            (EventKind::Delete, _) => 2,
        };
        self.raw.push(kind);
        self.number(revision);
        self.bytes(event.record.key.name.as_bytes());
        if let Some(previous) = &event.previous {
            self.record(previous);
        }
        if event.kind == EventKind::Put {
            self.record(&event.record);
        }
    }

    /// The block as it is written, and begins the next one. `None` when it is empty, or too large to be kept.
    pub fn finish(&mut self) -> Option<(Head, Vec<u8>)> {
        let Encoder { raw, events, first, last } = std::mem::take(self);
        if events == 0 || raw.len() > RAW_BYTES_MAX {
            return None;
        }
        let mut out = vec![0; Head::SIZE + lz4_flex::block::get_maximum_output_size(raw.len())];
        // It fits: the size is the most that it can become.
        let stored = lz4_flex::block::compress_into(&raw, &mut out[Head::SIZE..]).ok()?;
        out.truncate(Head::SIZE + stored);
        let body_crc = crc32fast::hash(&out[Head::SIZE..]);
        let head = Head { stored: stored as u32, raw: raw.len() as u32, events, first, last, body_crc };
        out[..Head::SIZE].copy_from_slice(&head.encode());
        Some((head, out))
    }

    fn number(&mut self, number: u64) {
        self.raw.extend_from_slice(&number.to_le_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.raw.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        self.raw.extend_from_slice(bytes);
    }

    fn record(&mut self, record: &Record) {
        let (bytes, revision_at) = record.stored();
        self.number(record.revision.get());
        for number in [revision_at.start, revision_at.end] {
            self.raw.extend_from_slice(&number.to_le_bytes());
        }
        self.bytes(bytes);
    }
}

/// The events of a block. Their contents are slices of one piece of memory.
pub fn decode(head: &Head, body: &[u8], collection: &Arc<str>) -> io::Result<Vec<Arc<Event>>> {
    let damaged = |why: &str| io::Error::new(io::ErrorKind::InvalidData, format!("a block of the history {why}"));
    if body.len() != head.stored as usize || crc32fast::hash(body) != head.body_crc {
        return Err(damaged("has another checksum"));
    }
    let mut raw = vec![0; head.raw as usize];
    match lz4_flex::block::decompress_into(body, &mut raw) {
        Ok(length) if length == raw.len() => {}
        _ => return Err(damaged("cannot be decompressed")),
    }
    let mut reader = Reader { raw: Bytes::from(raw), at: 0, collection };
    let mut events = Vec::with_capacity(head.events.min(1 << 16) as usize);
    for _ in 0..head.events {
        events.push(Arc::new(reader.event().ok_or_else(|| damaged("ends within an event"))?));
    }
    Ok(events)
}

struct Reader<'a> {
    raw: Bytes,
    at: usize,
    collection: &'a Arc<str>,
}

impl Reader<'_> {
    fn take(&mut self, length: usize) -> Option<Range<usize>> {
        let end = self.at.checked_add(length).filter(|end| *end <= self.raw.len())?;
        Some(std::mem::replace(&mut self.at, end)..end)
    }

    fn small(&mut self) -> Option<u32> {
        let range = self.take(4)?;
        Some(u32::from_le_bytes(self.raw[range].try_into().ok()?))
    }

    fn number(&mut self) -> Option<u64> {
        let range = self.take(8)?;
        Some(u64::from_le_bytes(self.raw[range].try_into().ok()?))
    }

    fn bytes(&mut self) -> Option<Bytes> {
        let length = self.small()?;
        let range = self.take(length as usize)?;
        Some(self.raw.slice(range))
    }

    fn record(&mut self, key: &Key) -> Option<Arc<Record>> {
        let revision = Revision::new(self.number()?);
        let at = self.small()?..self.small()?;
        let bytes = self.bytes()?;
        let fits = at.start <= at.end && at.end as usize <= bytes.len();
        fits.then(|| Arc::new(Record::restored(key.clone(), revision, bytes, at)))
    }

    fn event(&mut self) -> Option<Event> {
        let range = self.take(1)?;
        let kind = self.raw[range][0];
        let revision = Revision::new(self.number()?);
        let name = self.bytes()?;
        let key = Key { collection: self.collection.clone(), name: Arc::from(std::str::from_utf8(&name).ok()?) };
        let previous = if kind > 0 { Some(self.record(&key)?) } else { None };
        let (kind, record) = match (kind, &previous) {
            (0 | 1, _) => (EventKind::Put, self.record(&key)?),
            (2, Some(previous)) => (EventKind::Delete, Arc::new(previous.at_revision(revision))),
            _ => return None,
        };
        (record.revision == revision).then(|| Event::new(kind, record, previous))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record(name: &str, revision: u64, text: &str) -> Arc<Record> {
        let value = crate::record::Value { bytes: Bytes::copy_from_slice(text.as_bytes()), revision_at: 1 };
        Arc::new(Record::new(Key::new("things", name), &value, Revision::new(revision)))
    }

    /// Everything that an event says.
    pub fn said(event: &Event) -> String {
        let one = |record: &Record| {
            let text = String::from_utf8_lossy(&record.bytes).into_owned();
            format!("{}@{}[{:?}]={text}", record.key.name, record.revision, record.revision_at)
        };
        format!("{:?} {} was {:?}", event.kind, one(&event.record), event.previous.as_deref().map(one))
    }

    fn events() -> Vec<Event> {
        let (a, b) = (record("a", 7, "{}"), record("a", 9, "{\"x\":\"é\"}"));
        let gone = Arc::new(b.at_revision(Revision::new(10)));
        vec![
            Event::new(EventKind::Put, a.clone(), None),
            Event::new(EventKind::Put, b.clone(), Some(a)),
            Event::new(EventKind::Delete, gone, Some(b)),
        ]
    }

    #[test]
    fn events_come_back_as_they_were() {
        let mut encoder = Encoder::default();
        events().iter().for_each(|event| encoder.push(event));
        let (head, block) = encoder.finish().unwrap();
        let (start, body) = block.split_first_chunk().unwrap();
        assert_eq!((Head::decode(start), head.first, head.last), (Some(head), 7, 10));
        let back = decode(&head, body, &Arc::from("things")).unwrap();
        let back: Vec<String> = back.iter().map(|event| said(event)).collect();
        assert_eq!(back, events().iter().map(said).collect::<Vec<_>>());
        assert!(encoder.finish().is_none());
    }

    proptest! {
        /// Whatever a disk makes of a block, it is the block or an error.
        #[test]
        fn damage_is_never_an_event(at in any::<prop::sample::Index>(), flip in 1..=255_u8, cut in any::<bool>()) {
            let mut encoder = Encoder::default();
            events().iter().for_each(|event| encoder.push(event));
            let (_, mut block) = encoder.finish().unwrap();
            let at = at.index(block.len());
            if cut { block.truncate(at) } else { block[at] ^= flip }
            if let Some((start, body)) = block.split_first_chunk()
                && let Some(head) = Head::decode(start)
            {
                prop_assert!(decode(&head, body, &Arc::from("things")).is_err());
            }
        }

        /// Bodies that are no events, with checksums that fit, are errors and no panic.
        #[test]
        fn a_body_of_nonsense_is_an_error_or_events(raw in prop::collection::vec(any::<u8>(), 0..200), events in 0..5_u32) {
            let body = lz4_flex::block::compress(&raw);
            let head = Head {
                stored: body.len() as u32, raw: raw.len() as u32, events, first: 0, last: 9, body_crc: crc32fast::hash(&body),
            };
            let _ = decode(&head, &body, &Arc::from("things"));
        }
    }
}
