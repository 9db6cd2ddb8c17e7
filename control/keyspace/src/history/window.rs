//! A part of the past that goes with a snapshot, so that whoever takes the snapshot over can tell a watch of a moment ago what
//! it missed.
//!
//! It is the newest of what is on disk, in its own blocks, and no more than [`BYTES_MAX`]. A piece follows the piece before it of
//! its collection, or begins the collection anew: so what could not be read, or was forgotten meanwhile, shortens the window and
//! nothing else.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::block::{self, Encoder};
use super::{Events, History};
use crate::record::{Event, Revision};

/// Most bytes of files whose content goes along.
const BYTES_MAX: u64 = 64 << 20;
/// Larger blocks do not go along: a part of a snapshot has a bound.
const BLOCK_BYTES_MAX: usize = 8 << 20;
/// How a part begins that is no part of the records: as one without any.
const MARK: u8 = 0;

/// What a part says of the past.
pub enum Past {
    /// Nothing is forgotten after this, but for collections that say so themselves.
    Floor(Revision),
    /// All events of a collection after `after`, up to the last of these.
    Events {
        /// Whose they are.
        collection: Arc<str>,
        /// What they follow.
        after: Revision,
        /// The events.
        events: Events,
    },
}

#[derive(Serialize, Deserialize)]
enum WirePast<'a> {
    Floor(u64),
    Events { collection: &'a str, after: u64, block: &'a [u8] },
}

/// The past in the part `bytes`; `None` of one that holds records.
pub fn decode(bytes: &[u8]) -> io::Result<Option<Past>> {
    let [MARK, past @ ..] = bytes else { return Ok(None) };
    if past.is_empty() {
        return Ok(None);
    }
    let wrong = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
    Ok(Some(match postcard::from_bytes(past).map_err(|error| wrong(&error.to_string()))? {
        WirePast::Floor(floor) => Past::Floor(Revision::new(floor)),
        WirePast::Events { collection, after, block } => {
            let collection: Arc<str> = Arc::from(collection);
            let events = match block.split_first_chunk::<{ block::Head::SIZE }>() {
                None => Vec::new(),
                Some((head, body)) => {
                    let head = block::Head::decode(head).ok_or_else(|| wrong("a block of the past has no head"))?;
                    block::decode(&head, body, &collection)?
                }
            };
            Past::Events { collection, after: Revision::new(after), events: Arc::new(events) }
        }
    }))
}

fn encode(past: &WirePast<'_>) -> Vec<u8> {
    let size = if let WirePast::Events { block, .. } = past { block.len() } else { 0 };
    let mut bytes = Vec::with_capacity(size + 64);
    bytes.push(MARK);
    postcard::to_extend(past, bytes).expect("memory takes everything, and these types always encode")
}

/// What goes along with the state of `upto`, read as it is asked for.
pub struct Window {
    history: Arc<History>,
    upto: u64,
    floor: Option<u64>,
    /// Collections, and from where on their events go along.
    left: VecDeque<(Arc<str>, u64)>,
    /// Whether something was said of the first of them.
    begun: bool,
}

impl Window {
    /// The newest of what `history` has up to `upto`. Of the collections in `forgotten` nothing is certain up to there, whatever
    /// is on disk.
    pub fn new(history: Arc<History>, upto: Revision, forgotten: &[(Arc<str>, Revision)]) -> Window {
        let upto = upto.get();
        let (floor, left) = {
            let index = history.index.lock();
            let mut starts: HashMap<Arc<str>, u64> =
                index.kinds.iter().map(|(name, kind)| (name.clone(), kind.last().max(kind.forgotten))).collect();
            // The newest files first: of each collection an unbroken end.
            let mut files: Vec<_> = index
                .kinds
                .iter()
                .flat_map(|(name, kind)| kind.segments.iter().map(move |file| (name, kind, file)))
                .collect();
            files.sort_unstable_by_key(|(.., file)| std::cmp::Reverse(file.last()));
            let mut bytes = 0;
            for (name, kind, file) in files {
                bytes += file.bytes;
                if bytes > BYTES_MAX {
                    break;
                }
                starts.insert(name.clone(), file.after.max(kind.forgotten));
            }
            for (name, forgotten) in forgotten {
                let start = starts.entry(name.clone()).or_insert(index.floor);
                *start = forgotten.get().max(*start);
            }
            (index.floor.min(upto), starts.into_iter().map(|(name, start)| (name, start.min(upto))).collect())
        };
        Window { history, upto, floor: Some(floor), left, begun: false }
    }

    /// The part that says that nothing of the first collection is known up to `upto`.
    fn forget(&mut self) -> Option<Vec<u8>> {
        let (collection, _) = self.left.pop_front()?;
        self.begun = false;
        Some(encode(&WirePast::Events { collection: &collection, after: self.upto, block: &[] }))
    }

    fn events(&self, collection: &Arc<str>, after: u64) -> io::Result<Vec<Arc<Event>>> {
        // Sealed contents stay so.
        let read = self.history.read(collection, Revision::new(after), None)?;
        let wanted = |event: &&Arc<Event>| (after + 1..=self.upto).contains(&event.record.revision.get());
        Ok(read.iter().flat_map(|events| events.iter()).filter(wanted).cloned().collect())
    }
}

impl Iterator for Window {
    type Item = Vec<u8>;

    /// The next part. Blocks on the disk.
    fn next(&mut self) -> Option<Vec<u8>> {
        if let Some(floor) = self.floor.take() {
            return Some(encode(&WirePast::Floor(floor)));
        }
        loop {
            let (collection, after) = self.left.front().cloned()?;
            let Ok(events) = self.events(&collection, after) else { return self.forget() };
            let begins = !std::mem::replace(&mut self.begun, true);
            let Some(last) = events.last() else {
                self.left.pop_front();
                self.begun = false;
                if begins {
                    return Some(encode(&WirePast::Events { collection: &collection, after, block: &[] }));
                }
                continue;
            };
            let mut encoder = Encoder::default();
            events.iter().for_each(|event| encoder.push(event));
            let Some((_, block)) = encoder.finish().filter(|(_, block)| block.len() <= BLOCK_BYTES_MAX) else {
                return self.forget();
            };
            if let Some(first) = self.left.front_mut() {
                first.1 = last.record.revision.get();
            }
            return Some(encode(&WirePast::Events { collection: &collection, after, block: &block }));
        }
    }
}

impl History {
    /// Takes over the past that came with the state of `upto`; this history was reset to that before. What cannot be kept is
    /// forgotten. Blocks on the disk.
    pub fn take_over(&self, upto: Revision, past: impl Iterator<Item = io::Result<Past>>) {
        if let Err(error) = self.take_all(upto, past) {
            tracing::warn!(%error, "the watch history that came with a snapshot is not kept; clients that were away list again");
            self.reset(upto);
        }
    }

    fn take_all(&self, upto: Revision, past: impl Iterator<Item = io::Result<Past>>) -> io::Result<()> {
        let mut ends: HashMap<Arc<str>, Revision> = HashMap::new();
        for past in past {
            match past? {
                Past::Floor(floor) => self.index.lock().floor = floor.min(upto).get(),
                Past::Events { collection, after, events } => {
                    let follows = ends.get(&collection) == Some(&after);
                    self.append(&collection, after, !follows, &events)?;
                    ends.insert(collection, events.last().map_or(after, |event| event.record.revision));
                }
            }
        }
        self.cover(upto, &[])
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use std::time::Duration;

    use super::*;
    use crate::record::{EventKind, Key, Record, Value};

    fn event(collection: &Arc<str>, revision: u64, text: &str) -> Arc<Event> {
        let value = Value { bytes: Bytes::copy_from_slice(text.as_bytes()), revision_at: 0 };
        let record = Record::new(Key::new(collection.clone(), "a"), &value, Revision::new(revision));
        Arc::new(Event::new(EventKind::Put, Arc::new(record), None))
    }

    fn open(dir: &std::path::Path) -> History {
        History::open(dir, Revision::new(0), Duration::from_secs(3600), u64::MAX)
    }

    /// Revisions after `after`; `None` when they are forgotten.
    fn after(history: &History, collection: &Arc<str>, mut after: u64) -> Option<Vec<u64>> {
        let mut all = Vec::new();
        while let Some(events) = history.read(collection, Revision::new(after), None).ok()? {
            all.extend(events.iter().map(|event| event.record.revision.get()).filter(|revision| *revision > after));
            after = *all.last()?;
        }
        Some(all)
    }

    #[test]
    fn the_past_up_to_a_revision_is_taken_over_and_what_is_not_certain_is_forgotten() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (history, taken) = (Arc::new(open(from.path())), open(to.path()));
        let [busy, lacking, unknown]: [Arc<str>; 3] = ["busy", "lacking", "unknown"].map(Arc::from);
        let large = "x".repeat(50 << 10);
        let events: Vec<_> = (1..=20).map(|revision| event(&busy, revision, &large)).collect();
        history.append(&busy, Revision::new(0), false, &events).unwrap();
        history.append(&lacking, Revision::new(0), false, &[event(&lacking, 5, "x")]).unwrap();
        let (seven, upto) = (Revision::new(7), Revision::new(16));
        let window = || Window::new(history.clone(), upto, &[(lacking.clone(), seven), (unknown.clone(), upto)]);
        let parts: Vec<Vec<u8>> = window().collect();
        assert!(parts.len() > 5, "some blocks");
        taken.reset(upto);
        taken.take_over(upto, parts.iter().filter_map(|part| decode(part).transpose()));
        let expected = |from: u64| Some((from..=16).collect::<Vec<_>>());
        assert_eq!((after(&taken, &busy, 0), after(&taken, &busy, 9)), (expected(1), expected(10)));
        assert_eq!((after(&taken, &lacking, 6), after(&taken, &lacking, 7)), (None, Some(vec![])));
        assert_eq!((after(&taken, &unknown, 15), after(&taken, &unknown, 16)), (None, Some(vec![])));

        // A piece that is missing begins the collection anew; one that is damaged ends it all.
        taken.reset(upto);
        let without = parts.iter().enumerate().filter(|(at, _)| *at != 3).map(|(_, part)| part);
        taken.take_over(upto, without.filter_map(|part| decode(part).transpose()));
        assert!(after(&taken, &busy, 0).is_none_or(|all| all == (1..=16).collect::<Vec<_>>()));
        let damaged = parts.iter().map(|part| {
            let mut part = part.clone();
            let last = part.len() - 1;
            part[last] ^= 1;
            decode(&part).map(|past| past.expect("it is marked"))
        });
        taken.reset(upto);
        taken.take_over(upto, damaged);
        assert_eq!(after(&taken, &busy, 15), None);
    }

    #[test]
    fn a_part_of_records_is_none_of_the_past() {
        assert!(
            decode(&[0]).unwrap().is_none() && decode(b"").unwrap().is_none() && decode(b"\x01x").unwrap().is_none()
        );
        assert!(decode(&[0, 9]).is_err());
    }
}
