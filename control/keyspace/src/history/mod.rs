//! What happened, on disk: for each collection the events behind those in memory, so that a watch or a list of minutes ago
//! finds what it missed, also after a restart.
//!
//! ```text
//! apply ─► ring in memory (state) ─► now and then, by the historian: blocks ─► files of a collection ─► deleted, oldest first
//! a watcher that is behind the ring ─► a block, decoded once for all who want it
//! ```
//! None of it is needed to have the state, and nothing waits for it: it is written behind the answers, in large pieces, and
//! what a crash takes of it the log has still, because a checkpoint is written after the history up to it
//! ([`History::cover`]). What is on disk counts up to the checkpoint; the log says the rest again. Whatever is missing,
//! damaged or has no room shortens the window of the collection: a reader is told that the past is forgotten, and is never
//! given other events or fewer. Collections have files of their own and the largest gives way first, so a noisy one cannot
//! push out what a quiet one remembers.

mod block;
mod segment;
pub mod window;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use self::block::Encoder;
use self::segment::{Place, Segment};
use crate::record::{Event, Revision};
use crate::seal::{Keyring, Unopened};

/// A file ends beyond this many bytes, or an eighth of what all may take: what is forgotten is forgotten by the file.
const SEGMENT_BYTES: u64 = 8 << 20;
/// When less than this is free on the disk, the history gives back what is missing: the log is worth more.
const FREE_BYTES: u64 = 512 << 20;
/// Decoded blocks that are kept for others who come by; many informers come back at once and read the same. The oldest
/// goes first, and one that is larger than all may be is not kept.
const BLOCKS_CACHED: usize = 16;
/// The same in bytes of their events: a single transaction may be 4 MiB, with what was there before as much again.
const CACHED_BYTES: usize = 16 << 20;
/// The file that says what the others should have.
const HEAD: &str = "HEAD";
const HEAD_VERSION: u32 = 1;

/// Events read back, in order.
pub type Events = Arc<Vec<Arc<Event>>>;

/// The history of all collections.
pub struct History {
    dir: PathBuf,
    bytes_max: u64,
    age: Duration,
    index: Mutex<Index>,
    /// Held by whoever changes files; readers do not need it.
    writing: Mutex<()>,
    cached: Mutex<VecDeque<Cached>>,
}

/// A block as it was read. It is known by its place: what took its place since, in a history that was replaced, is another.
struct Cached {
    path: Arc<Path>,
    place: Place,
    events: Events,
    bytes: usize,
}

/// Bytes of `events`, about.
fn size(events: &[Arc<Event>]) -> usize {
    let record = |record: &crate::record::Record| record.size() as usize + 256;
    events.iter().map(|event| record(&event.record) + event.previous.as_deref().map_or(0, record)).sum()
}

#[derive(Default)]
struct Index {
    /// Collections without an entry here had no event since.
    floor: u64,
    kinds: HashMap<Arc<str>, Kind>,
}

#[derive(Default)]
struct Kind {
    /// Everything after this is in the segments, up to the last event there.
    forgotten: u64,
    segments: VecDeque<Segment>,
}

impl Kind {
    fn last(&self) -> u64 {
        self.segments.back().map_or(self.forgotten, Segment::last)
    }

    fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.bytes).sum()
    }

    /// Lets go of the oldest file.
    fn drop_oldest(&mut self, gone: &mut Gone) {
        if let Some(oldest) = self.segments.pop_front() {
            self.forgotten = self.forgotten.max(oldest.last());
            gone.0.push(oldest.path);
        }
    }

    /// Lets go of everything up to `after`, which is behind all of it.
    fn restart(&mut self, after: u64, gone: &mut Gone) {
        while !self.segments.is_empty() {
            self.drop_oldest(gone);
        }
        self.forgotten = self.forgotten.max(after);
    }
}

/// Files that the index has no more. They are removed when this is dropped, which comes after the index is let go of: whoever asks how large
/// the history is waits for the index, on threads that must not wait for a disk.
#[derive(Default)]
struct Gone(Vec<Arc<Path>>);

impl Drop for Gone {
    fn drop(&mut self) {
        self.0.iter().for_each(|path| segment::remove(path));
    }
}

/// What the file [`HEAD`] says.
#[derive(Serialize, Deserialize)]
struct Head {
    version: u32,
    /// Everything up to here is in the files.
    covered: u64,
    floor: u64,
    /// For each collection what is forgotten, and its last event.
    kinds: BTreeMap<String, (u64, u64)>,
}

impl History {
    /// Opens what is in `dir` and lets go of what is not certain up to `covered`, the revision of the checkpoint; what lies
    /// beyond comes from the log. Never fails: what cannot be read is forgotten. Blocks on the disk.
    pub fn open(dir: &Path, covered: Revision, age: Duration, bytes_max: u64) -> History {
        let covered = covered.get();
        let index = load(dir, covered).unwrap_or_else(|error| {
            if covered > 0 {
                tracing::warn!(%error, dir = %dir.display(), "the watch history is unusable and begins anew");
            }
            segment::list(dir).into_iter().flatten().for_each(|path| segment::remove(&path));
            Index { floor: covered, kinds: HashMap::new() }
        });
        History {
            dir: dir.to_owned(),
            bytes_max,
            age,
            index: Mutex::new(index),
            writing: Mutex::default(),
            cached: Mutex::default(),
        }
    }

    /// What is forgotten of each collection that has a past.
    pub fn forgotten(&self) -> Vec<(Arc<str>, Revision)> {
        let index = self.index.lock();
        index.kinds.iter().map(|(name, kind)| (name.clone(), Revision::new(kind.forgotten))).collect()
    }

    /// What is forgotten of collections that are not in [`History::forgotten`].
    pub fn floor(&self) -> Revision {
        Revision::new(self.index.lock().floor)
    }

    /// Bytes on disk.
    pub fn bytes(&self) -> u64 {
        self.index.lock().kinds.values().map(Kind::bytes).sum()
    }

    /// Forgets everything: the state was replaced by that of `revision`, and nobody knows what happened before.
    pub fn reset(&self, revision: Revision) {
        let _writing = self.writing.lock();
        let mut gone = Gone::default();
        let mut index = self.index.lock();
        index.kinds.values_mut().for_each(|kind| kind.restart(revision.get(), &mut gone));
        index.kinds.clear();
        index.floor = revision.get();
        drop(index);
        self.cached.lock().clear();
    }

    /// Appends `events`, which are all of `collection` after `after`; those that are there already are passed over. With `gap`
    /// events before `after` are missing, and what was there is forgotten. Returns what is forgotten then. Blocks on the disk.
    pub fn append(
        &self,
        collection: &Arc<str>,
        after: Revision,
        gap: bool,
        events: &[Arc<Event>],
    ) -> io::Result<Revision> {
        let _writing = self.writing.lock();
        let last = {
            let mut gone = Gone::default();
            let mut index = self.index.lock();
            let floor = index.floor;
            let kind =
                index.kinds.entry(collection.clone()).or_insert_with(|| Kind { forgotten: floor, ..Kind::default() });
            if gap {
                kind.restart(after.get(), &mut gone);
            }
            kind.last()
        };
        let events = &events[events.partition_point(|event| event.record.revision.get() <= last)..];
        let mut encoder = Encoder::default();
        for (at, event) in events.iter().enumerate() {
            encoder.push(event);
            // The events of one revision stay in one block: a position is a revision.
            let next = events.get(at + 1);
            let ends = next.is_none_or(|next| next.record.revision != event.record.revision);
            if !ends || (encoder.len() < block::RAW_BYTES && next.is_some()) {
                continue;
            }
            match encoder.finish() {
                Some((head, block)) => self.write(collection, &head, &block)?,
                None => {
                    let mut gone = Gone::default();
                    let mut index = self.index.lock();
                    let kind = index.kinds.entry(collection.clone()).or_default();
                    kind.restart(event.record.revision.get(), &mut gone);
                }
            }
        }
        Ok(Revision::new(self.index.lock().kinds.get(collection).map_or(0, |kind| kind.forgotten)))
    }

    /// Writes one block at the end of what `collection` has.
    fn write(&self, collection: &Arc<str>, head: &block::Head, block: &[u8]) -> io::Result<()> {
        let most = SEGMENT_BYTES.min(self.bytes_max / 8);
        let place = |segment: &Segment| (segment.path.clone(), segment.bytes);
        let (active, last) = {
            let index = self.index.lock();
            let kind = index.kinds.get(collection);
            let active = kind.and_then(|kind| kind.segments.back()).filter(|segment| segment.bytes < most);
            (active.map(place), kind.map_or(0, Kind::last))
        };
        let begun = match active {
            Some(_) => None,
            None => Some(Segment::create(&self.dir, collection, last)?),
        };
        let Some((path, end)) = active.or_else(|| begun.as_ref().map(place)) else { return Ok(()) };
        segment::write(&segment::writable(&path)?, end, block)?;
        let mut index = self.index.lock();
        let kind = index.kinds.entry(collection.clone()).or_default();
        kind.segments.extend(begun);
        if let Some(segment) = kind.segments.back_mut() {
            segment.push(head, block.len());
        }
        Ok(())
    }

    /// The events of `collection` after `after`, some of them; none when there are no more. An error means that they are lost.
    /// Contents that are sealed are opened by `keys`, and stay sealed without; what is sealed under a key that is no more is
    /// forgotten. Blocks on the disk.
    pub fn read(&self, collection: &Arc<str>, after: Revision, keys: Option<&Keyring>) -> io::Result<Option<Events>> {
        let after = after.get();
        let (path, place) = {
            let index = self.index.lock();
            let kind = index.kinds.get(collection);
            if after < kind.map_or(index.floor, |kind| kind.forgotten) {
                return Err(io::Error::new(io::ErrorKind::NotFound, "it is forgotten"));
            }
            let Some(kind) = kind else { return Ok(None) };
            let at = kind.segments.partition_point(|segment| segment.last() <= after);
            let Some(segment) = kind.segments.get(at) else { return Ok(None) };
            let block = segment.blocks.partition_point(|place| place.last <= after);
            let Some(place) = segment.blocks.get(block) else { return Ok(None) };
            (segment.path.clone(), *place)
        };
        let same = |cached: &&Cached| cached.place == place && cached.path == path;
        if let Some(cached) = self.cached.lock().iter().find(same) {
            return Ok(Some(cached.events.clone()));
        }
        let events = segment::read(&path, place, collection)?;
        let events = match keys {
            Some(keys) => keys.opened_events(events).map_err(|unopened| match unopened {
                Unopened::Gone(why) => io::Error::new(io::ErrorKind::NotFound, why),
                Unopened::Wrong(why) => io::Error::new(io::ErrorKind::InvalidData, why),
            })?,
            // Whoever reads with keys finds none that are still sealed.
            None if events.iter().any(|event| event.is_closed()) => return Ok(Some(Arc::new(events))),
            None => events,
        };
        let events = Arc::new(events);
        let bytes = size(&events);
        let mut cached = self.cached.lock();
        while cached.len() >= BLOCKS_CACHED
            || cached.iter().map(|cached| cached.bytes).sum::<usize>() + bytes > CACHED_BYTES
        {
            if cached.pop_front().is_none() {
                return Ok(Some(events));
            }
        }
        cached.push_back(Cached { path, place, events: events.clone(), bytes });
        Ok(Some(events))
    }

    /// Forgets what can no longer be read: the file that has the events after `after`, and those before. Returns what is
    /// forgotten then.
    pub fn lose(&self, collection: &Arc<str>, after: Revision) -> Option<Revision> {
        let _writing = self.writing.lock();
        let mut gone = Gone::default();
        let mut index = self.index.lock();
        let kind = index.kinds.get_mut(collection)?;
        while kind.forgotten <= after.get() && !kind.segments.is_empty() {
            kind.drop_oldest(&mut gone);
        }
        Some(Revision::new(kind.forgotten))
    }

    /// Forgets what is too old, or takes too much. Returns what is forgotten of whom. `now` comes from the caller for tests.
    pub fn trim(&self, now: Instant) -> Vec<(Arc<str>, Revision)> {
        let _writing = self.writing.lock();
        let missing = segment::free(&self.dir).map_or(0, |free| FREE_BYTES.saturating_sub(free));
        let mut gone = Gone::default();
        let mut index = self.index.lock();
        let mut bytes: u64 = index.kinds.values().map(Kind::bytes).sum();
        let most = self.bytes_max.min(bytes.saturating_sub(missing));
        let mut changed: HashMap<Arc<str>, u64> = HashMap::new();
        for (name, kind) in &mut index.kinds {
            let before = kind.forgotten;
            let old = |segment: &Segment| now.saturating_duration_since(segment.written) > self.age;
            // The file that is being written stays, however old: quiet collections remember long.
            while kind.segments.len() > 1 && kind.segments.front().is_some_and(old) {
                bytes -= kind.segments.front().map_or(0, |segment| segment.bytes);
                kind.drop_oldest(&mut gone);
            }
            if kind.forgotten > before {
                changed.insert(name.clone(), kind.forgotten);
            }
        }
        while bytes > most {
            let largest = index.kinds.iter_mut().max_by_key(|(_, kind)| kind.bytes());
            let Some((name, kind)) = largest.filter(|(_, kind)| !kind.segments.is_empty()) else { break };
            bytes -= kind.segments.front().map_or(0, |segment| segment.bytes);
            kind.drop_oldest(&mut gone);
            changed.insert(name.clone(), kind.forgotten);
        }
        drop(index);
        // Decoded blocks are for those who come at the same time.
        self.cached.lock().clear();
        changed.into_iter().map(|(name, forgotten)| (name, Revision::new(forgotten))).collect()
    }

    /// Says on disk that everything up to `revision` is in the files, once it is. `broken` are collections of which that is not
    /// true, because they could not be written: they begin anew there. Blocks on the disk.
    pub fn cover(&self, revision: Revision, broken: &[Arc<str>]) -> io::Result<()> {
        let _writing = self.writing.lock();
        let unsynced: Vec<Arc<Path>> = {
            let index = self.index.lock();
            let segments = index.kinds.values().flat_map(|kind| &kind.segments);
            segments.filter(|segment| segment.unsynced).map(|segment| segment.path.clone()).collect()
        };
        for path in unsynced {
            File::open(path)?.sync_data()?;
        }
        let head = {
            let mut index = self.index.lock();
            // All of them, and not before: what one try did not come to the next one has to.
            index.kinds.values_mut().flat_map(|kind| &mut kind.segments).for_each(|segment| segment.unsynced = false);
            let one = |(name, kind): (&Arc<str>, &Kind)| {
                let forgotten = if broken.contains(name) { revision.get() } else { kind.forgotten };
                (name.to_string(), (forgotten, kind.last().max(forgotten)))
            };
            let mut kinds: BTreeMap<String, (u64, u64)> = index.kinds.iter().map(one).collect();
            for name in broken {
                kinds.entry(name.to_string()).or_insert((revision.get(), revision.get()));
            }
            Head { version: HEAD_VERSION, covered: revision.get(), floor: index.floor, kinds }
        };
        let mut bytes = postcard::to_stdvec(&head).map_err(io::Error::other)?;
        bytes.extend_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
        segment::replace(&self.dir, HEAD, &bytes)
    }
}

/// Reads heads of files and blocks, and cuts off what lies beyond `covered`.
fn load(dir: &Path, covered: u64) -> io::Result<Index> {
    let paths = segment::list(dir)?;
    let head = match std::fs::read(dir.join(HEAD)) {
        Ok(bytes) => read_head(&bytes).filter(|head| head.covered >= covered),
        Err(error) if error.kind() == io::ErrorKind::NotFound && covered == 0 => None,
        Err(error) => return Err(error),
    };
    let damaged = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
    let Some(head) = head else {
        return Err(damaged("it does not reach the checkpoint"));
    };
    let (now, mut gone) = (Instant::now(), Gone::default());
    let mut found: HashMap<String, Vec<Segment>> = HashMap::new();
    for path in paths {
        if path.ends_with(HEAD) {
            continue;
        }
        match Segment::open(&path, now)? {
            Some((name, segment)) if segment.after < covered => found.entry(name).or_default().push(segment),
            // From after the checkpoint, or none of ours.
            _ => segment::remove(&path),
        }
    }
    let mut index = Index { floor: head.floor.min(covered), kinds: HashMap::new() };
    for (name, (forgotten, last)) in head.kinds {
        let collection: Arc<str> = Arc::from(name.as_str());
        let segments = found.remove(&name).unwrap_or_default();
        index.kinds.insert(collection.clone(), chain(&collection, segments, (forgotten, last), covered, &mut gone)?);
    }
    // Begun after the head was written: whole from their first event on.
    for (name, segments) in found {
        let collection: Arc<str> = Arc::from(name.as_str());
        let begins = segments.iter().map(|segment| segment.after).min().unwrap_or(covered).max(index.floor);
        index.kinds.insert(collection.clone(), chain(&collection, segments, (begins, begins), covered, &mut gone)?);
    }
    Ok(index)
}

/// The files of a collection that follow one another without a gap up to `last`, or further; without what is beyond `covered`.
fn chain(
    collection: &Arc<str>,
    mut segments: Vec<Segment>,
    (forgotten, last): (u64, u64),
    covered: u64,
    gone: &mut Gone,
) -> io::Result<Kind> {
    segments.sort_by_key(|segment| segment.after);
    let mut kind = Kind { forgotten, segments: VecDeque::new() };
    for segment in segments {
        if kind.segments.back().is_some_and(|before| before.last() != segment.after) {
            kind.restart(segment.after, gone);
        }
        if segment.blocks.is_empty() {
            segment::remove(&segment.path);
            continue;
        }
        if kind.segments.is_empty() {
            kind.forgotten = kind.forgotten.max(segment.after);
        }
        kind.segments.push_back(segment);
    }
    if kind.last() < last.min(covered) && last > forgotten {
        // The end of what was there is missing.
        kind.restart(covered, gone);
    }
    // Segments that were wholly forgotten before.
    while kind.segments.front().is_some_and(|segment| segment.last() <= forgotten) {
        kind.drop_oldest(gone);
    }
    kind.forgotten = kind.forgotten.min(covered);
    if let Some(segment) = kind.segments.back_mut()
        && let Some(index) = segment.blocks.iter().position(|place| place.last > covered)
    {
        // The block that has the checkpoint within it is written again up to there; what follows comes from the log.
        let events = segment::read(&segment.path, segment.blocks[index], collection);
        segment.truncate(index)?;
        match events {
            Ok(events) => {
                let mut encoder = Encoder::default();
                events
                    .iter()
                    .filter(|event| event.record.revision.get() <= covered)
                    .for_each(|event| encoder.push(event));
                if let Some((head, block)) = encoder.finish() {
                    segment::write(&segment::writable(&segment.path)?, segment.bytes, &block)?;
                    segment.push(&head, block.len());
                }
            }
            Err(_) => kind.restart(covered, gone),
        }
    }
    Ok(kind)
}

fn read_head(bytes: &[u8]) -> Option<Head> {
    let (body, crc) = bytes.split_last_chunk::<4>()?;
    let head: Head = postcard::from_bytes(body).ok().filter(|_| crc32fast::hash(body).to_le_bytes() == *crc)?;
    (head.version == HEAD_VERSION).then_some(head)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{EventKind, Key, Record, Value};
    use bytes::Bytes;

    const AGE: Duration = Duration::from_secs(300);

    /// An event of its own revision, of `size` bytes.
    fn event(revision: u64, size: usize) -> Arc<Event> {
        // Nothing that compresses away.
        let mut seed = revision;
        let mut next = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) as u8
        };
        let value = Value { bytes: (0..size).map(|_| next()).collect::<Bytes>(), revision_at: 0 };
        let record = Record::new(Key::new("things", "a"), &value, Revision::new(revision));
        Arc::new(Event::new(EventKind::Put, Arc::new(record), None))
    }

    fn append(history: &History, collection: &str, revisions: std::ops::RangeInclusive<u64>) {
        for revision in revisions {
            history
                .append(&Arc::from(collection), Revision::new(revision - 1), false, &[event(revision, 100)])
                .unwrap();
        }
    }

    /// Everything after `after`.
    fn read(history: &History, collection: &str, after: u64) -> io::Result<Vec<u64>> {
        let (mut all, mut after) = (Vec::new(), after);
        while let Some(events) = history.read(&Arc::from(collection), Revision::new(after), None)? {
            for event in events.iter().filter(|event| event.record.revision.get() > after) {
                let expected = super::tests::event(event.record.revision.get(), 100);
                assert_eq!(event.record.bytes, expected.record.bytes);
                all.push(event.record.revision.get());
            }
            after = events.last().unwrap().record.revision.get();
        }
        Ok(all)
    }

    fn open(dir: &tempfile::TempDir, covered: u64, bytes_max: u64) -> History {
        History::open(dir.path(), Revision::new(covered), AGE, bytes_max)
    }

    #[test]
    fn a_restart_keeps_what_the_checkpoint_covers_and_nothing_beyond() {
        let dir = tempfile::tempdir().unwrap();
        let history = open(&dir, 0, 1 << 20);
        history
            .append(&Arc::from("things"), Revision::new(0), false, &(1..=9).map(|r| event(r, 100)).collect::<Vec<_>>())
            .unwrap();
        append(&history, "things", 10..=12);
        history.cover(Revision::new(12), &[]).unwrap();
        append(&history, "things", 13..=14);
        append(&history, "later", 15..=15);
        // Killed. A checkpoint within a block, between two, and the last one.
        for covered in [12, 11, 5] {
            let history = open(&dir, covered, 1 << 20);
            assert_eq!(read(&history, "things", 0).unwrap(), (1..=covered).collect::<Vec<_>>());
            assert_eq!(read(&history, "later", 0).unwrap(), [0_u64; 0]);
            assert_eq!((history.floor().get(), history.forgotten()[0].1.get()), (0, 0));
        }
        // What the log says again goes where it was.
        let history = open(&dir, 5, 1 << 20);
        append(&history, "things", 6..=14);
        assert_eq!(read(&history, "things", 3).unwrap(), (4..=14).collect::<Vec<_>>());
    }

    #[test]
    fn what_is_missing_or_damaged_shortens_the_window_and_is_never_read() {
        let with = |damage: &dyn Fn(&Path, &mut Vec<PathBuf>)| {
            let dir = tempfile::tempdir().unwrap();
            let history = open(&dir, 0, 1 << 20);
            // A file a block: each is larger than an eighth of what all may take.
            let history = History { bytes_max: 1, ..history };
            append(&history, "things", 1..=5);
            history.cover(Revision::new(5), &[]).unwrap();
            let mut files = segment::list(dir.path()).unwrap();
            files.sort();
            damage(dir.path(), &mut files);
            let history = open(&dir, 5, 1 << 20);
            let forgotten = history.forgotten().first().map_or(history.floor(), |(_, revision)| *revision).get();
            let events = read(&history, "things", forgotten);
            (forgotten, events.ok())
        };
        let number = |files: &[PathBuf], after: u64| {
            files.iter().find(|path| path.to_string_lossy().ends_with(&format!("@{after:020}"))).unwrap().clone()
        };
        assert_eq!(with(&|_, _| ()), (0, Some(vec![1, 2, 3, 4, 5])));
        assert_eq!(with(&|_, files| std::fs::remove_file(number(files, 0)).unwrap()), (1, Some(vec![2, 3, 4, 5])));
        assert_eq!(with(&|_, files| std::fs::remove_file(number(files, 2)).unwrap()), (3, Some(vec![4, 5])));
        assert_eq!(with(&|_, files| std::fs::remove_file(number(files, 4)).unwrap()), (5, Some(vec![])));
        assert_eq!(with(&|dir, _| std::fs::remove_file(dir.join(HEAD)).unwrap()), (5, Some(vec![])));
        assert_eq!(with(&|dir, _| std::fs::write(dir.join(HEAD), b"nonsense").unwrap()), (5, Some(vec![])));
        // A body that rots is found when it is read.
        let flip = |files: &mut Vec<PathBuf>, after| {
            let path = number(files, after);
            let mut bytes = std::fs::read(&path).unwrap();
            *bytes.last_mut().unwrap() ^= 1;
            std::fs::write(path, bytes).unwrap();
        };
        assert_eq!(with(&|_, files| flip(files, 2)), (0, None));
    }

    #[test]
    fn the_noisy_give_way_and_the_quiet_keep_theirs() {
        let dir = tempfile::tempdir().unwrap();
        let history = open(&dir, 0, 4_000);
        append(&history, "quiet", 1..=3);
        append(&history, "noisy", 4..=103);
        let forgotten = history.trim(Instant::now());
        assert_eq!(forgotten.len(), 1);
        let (name, upto) = &forgotten[0];
        assert!(&**name == "noisy" && history.bytes() <= 4_000 && upto.get() > 60, "{forgotten:?}");
        assert_eq!(read(&history, "quiet", 0).unwrap(), [1, 2, 3]);
        assert_eq!(read(&history, "noisy", upto.get()).unwrap(), (upto.get() + 1..=103).collect::<Vec<_>>());
        assert!(read(&history, "noisy", upto.get() - 1).is_err());
        // By age only files that are done go.
        history.trim(Instant::now() + AGE + Duration::from_secs(1));
        assert_eq!(read(&history, "quiet", 0).unwrap(), [1, 2, 3]);
        let now = history.forgotten().into_iter().find(|(name, _)| &**name == "noisy").unwrap().1;
        assert!(now > *upto && now.get() < 103);
    }

    #[test]
    fn blocks_that_were_read_are_kept_up_to_a_number_and_a_size() {
        let dir = tempfile::tempdir().unwrap();
        let history = open(&dir, 0, 1 << 30);
        let large = CACHED_BYTES / 3;
        for revision in 1..=6 {
            let events = [event(revision, if revision < 6 { large } else { CACHED_BYTES + 1 })];
            history.append(&Arc::from("things"), Revision::new(revision - 1), false, &events).unwrap();
        }
        for after in 0..6 {
            let events = history.read(&Arc::from("things"), Revision::new(after), None).unwrap().unwrap();
            assert_eq!(events.last().unwrap().record.revision.get(), after + 1);
            let cached = history.cached.lock();
            let bytes: usize = cached.iter().map(|cached| size(&cached.events)).sum();
            assert!(bytes <= CACHED_BYTES && cached.len() <= BLOCKS_CACHED, "{bytes}");
            assert_eq!(cached.is_empty(), after == 5);
        }
    }

    #[test]
    fn a_block_that_was_read_before_all_was_replaced_is_not_told_afterwards() {
        let dir = tempfile::tempdir().unwrap();
        let history = open(&dir, 0, 1 << 20);
        let things: Arc<str> = Arc::from("things");
        append(&history, "things", 1..=5);
        assert_eq!(read(&history, "things", 4).unwrap(), [5]);
        // Somebody is about to note what it has read, when another member's past takes the place of all: the same in one block.
        let late = std::mem::take(&mut *history.cached.lock());
        history.reset(Revision::new(0));
        let events: Vec<_> = (1..=5).map(|revision| event(revision, 100)).collect();
        history.append(&things, Revision::new(0), false, &events).unwrap();
        *history.cached.lock() = late;
        assert_eq!(read(&history, "things", 0).unwrap(), [1, 2, 3, 4, 5]);
    }

    #[test]
    fn whoever_holds_the_index_removes_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let history = open(&dir, 0, 1 << 20);
        append(&history, "things", 1..=3);
        let mut gone = Gone::default();
        let mut index = history.index.lock();
        let path = index.kinds["things"].segments[0].path.clone();
        index.kinds.get_mut("things").unwrap().restart(3, &mut gone);
        assert!(path.exists());
        drop(index);
        drop(gone);
        assert!(!path.exists());
    }

    #[test]
    fn what_could_not_be_synced_is_synced_before_it_counts() {
        let dir = tempfile::tempdir().unwrap();
        let history = open(&dir, 0, 1 << 20);
        append(&history, "things", 1..=3);
        let unsynced = || history.index.lock().kinds["things"].segments[0].unsynced;
        let (path, aside) = (history.index.lock().kinds["things"].segments[0].path.clone(), dir.path().join("aside"));
        std::fs::rename(&path, &aside).unwrap();
        assert!(history.cover(Revision::new(3), &[]).is_err() && unsynced());
        std::fs::rename(&aside, &path).unwrap();
        history.cover(Revision::new(3), &[]).unwrap();
        assert!(!unsynced());
    }

    #[test]
    fn what_was_before_all_is_forgotten_of_whoever_was_never_there() {
        let dir = tempfile::tempdir().unwrap();
        let history = open(&dir, 0, 1 << 20);
        history.reset(Revision::new(9));
        assert!(read(&history, "things", 8).is_err());
        assert_eq!(read(&history, "things", 9).unwrap(), [0_u64; 0]);
    }

    #[test]
    fn a_gap_is_forgotten_and_so_is_a_collection_that_could_not_be_written() {
        let dir = tempfile::tempdir().unwrap();
        let history = open(&dir, 0, 1 << 20);
        append(&history, "things", 1..=3);
        history.append(&Arc::from("things"), Revision::new(7), true, &[event(8, 100)]).unwrap();
        assert!(read(&history, "things", 6).is_err());
        assert_eq!(read(&history, "things", 7).unwrap(), [8]);
        append(&history, "others", 9..=9);
        history.cover(Revision::new(10), &[Arc::from("others"), Arc::from("third")]).unwrap();
        let history = open(&dir, 10, 1 << 20);
        let mut forgotten: Vec<_> = history.forgotten().iter().map(|(n, r)| (n.to_string(), r.get())).collect();
        forgotten.sort();
        assert_eq!(forgotten, [("others".into(), 10), ("things".into(), 7), ("third".into(), 10)]);
        assert_eq!(read(&history, "things", 7).unwrap(), [8]);
    }

    /// Files as the first version writes them, byte for byte: whoever changes the format raises [`HEAD_VERSION`] and says in
    /// docs/history.md what becomes of these.
    #[test]
    fn the_files_of_version_1_are_read() {
        const SEGMENT: &str = "434f5248495354310600000000000000060000007468696e6773977e654148424c4b88000000860000000300000007000000 \
         000000000a00000000000000a59f281b2272984af07700070000000000000001000000610700000000000000010000000200 \
         0000030000007b377d010900000000000000010000006107000000000000000100000002000000030000007b377d09000000 \
         000000000100000002000000030000007b397d020a0000000000000001000000610900000000000000010000000200000003 \
         0000007b397d";
        const HEAD_1: &str = "010a0201067468696e6773060a6e811223";
        let bytes = |hex: &str| {
            let digits: Vec<u8> = hex.chars().filter_map(|c| c.to_digit(16)).map(|digit| digit as u8).collect();
            digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect::<Vec<u8>>()
        };
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("things@1"), bytes(SEGMENT)).unwrap();
        std::fs::write(dir.path().join(HEAD), bytes(HEAD_1)).unwrap();
        let history = open(&dir, 10, 1 << 20);
        assert_eq!((history.floor().get(), history.forgotten()[0].1.get()), (2, 6));
        let events = history.read(&Arc::from("things"), Revision::new(6), None).unwrap().unwrap();
        let said: Vec<String> = events
            .iter()
            .map(|event| {
                let before = event.previous.as_ref().map(|record| String::from_utf8_lossy(&record.bytes).into_owned());
                format!("{:?} {:?} {:?} {before:?}", event.kind, event.record, event.record.bytes)
            })
            .collect();
        let expected = [
            r#"Put Record { key: Key { collection: "things", name: "a" }, revision: Revision(7), bytes: 3, .. } b"{7}" None"#,
            r#"Put Record { key: Key { collection: "things", name: "a" }, revision: Revision(9), bytes: 3, .. } b"{9}" Some("{7}")"#,
            r#"Delete Record { key: Key { collection: "things", name: "a" }, revision: Revision(10), bytes: 4, .. } b"{10}" Some("{9}")"#,
        ];
        assert_eq!(said, expected);
    }

    /// What the default of 2 GiB must hold: five minutes of 5,000 updates a second of one kind, of pods as they are.
    #[test]
    fn five_minutes_of_writes_fit() {
        const EVENTS: u64 = 3_000;
        let pod = |at: u64, revision: u64| {
            let uid =
                |n: u64| format!("{:032x}", u128::from(n).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835));
            let condition = |kind: &str| {
                let time = 1_700_000_000 + revision;
                format!(
                    r#"{{"type":"{kind}","status":"True","lastProbeTime":null,"lastTransitionTime":"{time}","observedGeneration":1}}"#
                )
            };
            let env: Vec<String> =
                (0..12).map(|n| format!(r#"{{"name":"VARIABLE_{n}","value":"{}"}}"#, uid(at * 100 + n))).collect();
            let text = format!(
                r#"{{"apiVersion":"v1","kind":"Pod","metadata":{{"name":"web-{at}","namespace":"default","uid":"{}","labels":{{"app":"web","pod-template-hash":"6d4cf56db6"}},"managedFields":[{{"manager":"node","operation":"Update","apiVersion":"v1","time":"{revision}","fieldsType":"FieldsV1","fieldsV1":{{"f:status":{{"f:conditions":{{".":{{}},"k:{{type}}":{{".":{{}},"f:status":{{}}}}}},"f:podIP":{{}},"f:phase":{{}}}}}}}}]}},"spec":{{"containers":[{{"name":"app","image":"web:v1","env":[{}],"resources":{{"requests":{{"cpu":"10m","memory":"16Mi"}}}},"terminationMessagePath":"/dev/termination-log","imagePullPolicy":"IfNotPresent"}}],"restartPolicy":"Always","serviceAccountName":"default","nodeName":"node-1"}},"status":{{"phase":"Running","podIP":"10.0.{}.{}","conditions":[{},{},{}]}}}}"#,
                uid(at),
                env.join(","),
                at / 250,
                at % 250,
                condition("Ready"),
                condition("Initialized"),
                condition("ContainersReady"),
            );
            let value = Value { revision_at: text.len(), bytes: Bytes::from(text) };
            Arc::new(Record::new(Key::new("pods", format!("default/web-{at}")), &value, Revision::new(revision)))
        };
        let dir = tempfile::tempdir().unwrap();
        let history = open(&dir, 0, 2 << 30);
        let events: Vec<Arc<Event>> = (1..=EVENTS)
            .map(|revision| {
                let at = revision * 7 % 500;
                Arc::new(Event::new(EventKind::Put, pod(at, revision), Some(pod(at, revision.saturating_sub(500)))))
            })
            .collect();
        history.append(&Arc::from("pods"), Revision::new(0), false, &events).unwrap();
        let each = history.bytes() as f64 / EVENTS as f64;
        let content = events.iter().map(|event| event.record.bytes.len()).sum::<usize>() as f64 / EVENTS as f64;
        assert!(
            content > 1_800.0 && each * 300.0 * 5_000.0 <= f64::from(2_u32 << 30),
            "{each} bytes for an event of {content}"
        );
        // The index in memory: a position for about 128 KiB of events.
        let blocks: usize =
            history.index.lock().kinds.values().flat_map(|kind| &kind.segments).map(|s| s.blocks.len()).sum();
        assert!(blocks as u64 <= 1 + EVENTS / 20, "{blocks} blocks");
    }
}
