//! A file of the history: a head that says whose it is, then [blocks](super::block). The only place where the history
//! touches the disk.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use super::block::{self, Head};
use crate::record::Event;

const MAGIC: &[u8; 8] = b"CORHIST1";
/// Longest name of a collection in a file's head.
const NAME_BYTES_MAX: usize = 1024;

/// Where a block stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// Where its head begins.
    offset: u32,
    /// Revision of its last event.
    pub last: u64,
}

/// One file.
#[derive(Debug)]
pub struct Segment {
    /// Where it is.
    pub path: Arc<Path>,
    /// Its events are those after this revision.
    pub after: u64,
    /// Its length, as far as it is whole.
    pub bytes: u64,
    /// Its blocks, in order.
    pub blocks: Vec<Place>,
    /// When something was last written.
    pub written: Instant,
    /// Written since it was last synced.
    pub unsynced: bool,
}

impl Segment {
    /// Begins a file for the events of `collection` after `after`.
    pub fn create(dir: &Path, collection: &str, after: u64) -> io::Result<Segment> {
        let path = dir.join(file_name(collection, after));
        let mut head = MAGIC.to_vec();
        head.extend_from_slice(&after.to_le_bytes());
        head.extend_from_slice(&(collection.len() as u32).to_le_bytes());
        head.extend_from_slice(collection.as_bytes());
        head.extend_from_slice(&crc32fast::hash(&head).to_le_bytes());
        write_closed(&path, &head)?;
        Ok(Segment {
            path: path.into(),
            after,
            bytes: head.len() as u64,
            blocks: Vec::new(),
            written: Instant::now(),
            unsynced: true,
        })
    }

    /// Reads what a file has, up to the first thing that is no block, and the name of its collection. `None` when the file
    /// is none of ours.
    pub fn open(path: &Path, now: Instant) -> io::Result<Option<(String, Segment)>> {
        let file = File::open(path)?;
        let mut fixed = [0; 20];
        if file.read_exact_at(&mut fixed, 0).is_err() || fixed[..8] != MAGIC[..] {
            return Ok(None);
        }
        let (_, numbers) = fixed.split_at(8);
        let (after, length) = numbers.split_at(8);
        let after = u64::from_le_bytes(after.try_into().unwrap_or_default());
        let length = u32::from_le_bytes(length.try_into().unwrap_or_default()) as usize;
        let mut rest = vec![0; length.min(NAME_BYTES_MAX) + 4];
        if length > NAME_BYTES_MAX || file.read_exact_at(&mut rest, 20).is_err() {
            return Ok(None);
        }
        let (name, crc) = rest.split_at(length);
        if crc != crc32fast::hash(&[&fixed[..], name].concat()).to_le_bytes() {
            return Ok(None);
        }
        let Ok(name) = String::from_utf8(name.to_vec()) else { return Ok(None) };
        let mut segment = Segment {
            path: path.into(),
            after,
            bytes: (24 + length) as u64,
            blocks: Vec::new(),
            written: now,
            unsynced: false,
        };
        let size = file.metadata()?.len();
        let mut start = [0; Head::SIZE];
        let mut last = after;
        while file.read_exact_at(&mut start, segment.bytes).is_ok() {
            let Some(head) = Head::decode(&start) else { break };
            let end = segment.bytes + Head::SIZE as u64 + u64::from(head.stored);
            if end > size || head.first <= last || head.last < head.first || end > u64::from(u32::MAX) {
                break;
            }
            segment.blocks.push(Place { offset: segment.bytes as u32, last: head.last });
            (segment.bytes, last) = (end, head.last);
        }
        Ok(Some((name, segment)))
    }

    /// Revision of its last event; where it begins when there is none.
    pub fn last(&self) -> u64 {
        self.blocks.last().map_or(self.after, |place| place.last)
    }

    /// Takes note of a block that was [written](fn@write) at the end.
    pub fn push(&mut self, head: &Head, bytes: usize) {
        self.blocks.push(Place { offset: self.bytes as u32, last: head.last });
        self.bytes += bytes as u64;
        (self.written, self.unsynced) = (Instant::now(), true);
    }

    /// Takes away everything from the block at `index` on.
    pub fn truncate(&mut self, index: usize) -> io::Result<()> {
        let Some(place) = self.blocks.get(index) else { return Ok(()) };
        writable(&self.path)?.set_len(u64::from(place.offset))?;
        self.bytes = u64::from(place.offset);
        self.blocks.truncate(index);
        self.unsynced = true;
        Ok(())
    }
}

/// A segment's file, to be written.
pub fn writable(path: &Path) -> io::Result<File> {
    File::options().write(true).open(path)
}

/// Writes a block at the end of a segment, which is at `at`. After an error the segment is as it was, as far as anyone reads it.
pub fn write(file: &File, at: u64, block: &[u8]) -> io::Result<()> {
    file.write_all_at(block, at)
}

/// Reads the block at `place` of the file at `path`.
pub fn read(path: &Path, place: Place, collection: &Arc<str>) -> io::Result<Vec<Arc<Event>>> {
    let damaged = || io::Error::new(io::ErrorKind::InvalidData, "a block of the history has no head");
    let file = File::open(path)?;
    let mut start = [0; Head::SIZE];
    file.read_exact_at(&mut start, u64::from(place.offset))?;
    let head = Head::decode(&start).filter(|head| head.last == place.last).ok_or_else(damaged)?;
    let mut body = vec![0; (head.stored as usize).min(2 * block::RAW_BYTES_MAX)];
    file.read_exact_at(&mut body, u64::from(place.offset) + Head::SIZE as u64)?;
    block::decode(&head, &body, collection)
}

/// Removes a file; one that is gone already is gone.
pub fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(%error, path = %path.display(), "remove a file of the watch history");
    }
}

/// Every file in `dir`, which is made when it is not there.
pub fn list(dir: &Path) -> io::Result<Vec<PathBuf>> {
    // What is remembered was once secret too: for its owner alone.
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect()
}

/// Makes the file at `path`, for its owner alone, with `bytes` in it.
fn write_closed(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all_at(bytes, 0)
}

/// Puts `bytes` into the file `name` of `dir`, all of them or none, on disk when this returns.
pub fn replace(dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let part = dir.join(format!("{name}.part"));
    write_closed(&part, bytes)?;
    File::open(&part)?.sync_all()?;
    fs::rename(&part, dir.join(name))?;
    File::open(dir)?.sync_all()
}

/// Bytes that are free where `dir` is, for whoever is not root.
pub fn free(dir: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(dir).ok()?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// A name that any file system takes; the file's head has the true one.
fn file_name(collection: &str, after: u64) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '-') { c } else { '_' };
    let name: String = collection.chars().take(100).map(plain).collect();
    format!("{name}@{:08x}@{after:020}", crc32fast::hash(collection.as_bytes()))
}
