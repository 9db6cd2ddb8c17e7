//! The log on disk: checksummed frames in preallocated segment files, written by one thread that syncs once for all
//! who wait.
//!
//! ```text
//! 00000000000000000001.log   00000000000000000002.log   …        numbered without gaps, 16 MiB each
//! ┌─────────┬───────────────────────────────┬──────────────┐
//! │ MAGIC 8 │ frame │ frame │ …              │ zeros        │
//! └─────────┴───────────────────────────────┴──────────────┘
//! frame = length u32 │ crc32 u32 │ body                           little endian
//! ```
//!
//! The checksum of a frame is seeded by the frame before it (the first of a segment by the segment's number), so what an
//! older write left behind a torn end can never be taken for a continuation. Files are preallocated, so that a sync
//! has no file size to write: on a common disk this makes the difference between 200 and more than 600 syncs a second,
//! which is why the log is not kept in redb.
//!
//! A frame that does not fit begins a new segment. The last segment may end anywhere (a crash tore it); any other must
//! be whole. What the bodies mean is the owner's affair. The file of the next segment is made by a thread of its own
//! while there is still room in this one, so that no write waits for 16 MiB of zeros.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;

const MAGIC: &[u8; 8] = b"CORALOG1";
const SEGMENT_BYTES: u64 = 16 << 20;
/// When this much of a segment is used, the next one is made.
const SPARE_AT: u64 = SEGMENT_BYTES / 4;
const FRAME_HEAD: usize = 8;
/// Larger bodies are refused; a transaction is far smaller.
const BODY_BYTES_MAX: usize = 8 << 20;
/// Requests that wait for the writer; more wait in the callers.
const QUEUE: usize = 4096;

/// Called with the outcome once what came with it is on disk.
pub type Done = Box<dyn FnOnce(io::Result<()>) + Send>;

enum Request {
    Append {
        bodies: Vec<Vec<u8>>,
        done: Done,
    },
    /// Begins a new segment with `bodies`; all segments before it are deleted.
    Rotate {
        bodies: Vec<Vec<u8>>,
        done: Done,
    },
}

/// The log's writer. Dropping it writes what is queued and ends the thread.
pub struct Wal {
    requests: Option<mpsc::SyncSender<Request>>,
    thread: Option<JoinHandle<()>>,
}

/// What [`open`] found.
pub struct Opened {
    /// The writer.
    pub wal: Wal,
    /// Every body, in order.
    pub bodies: Vec<Vec<u8>>,
}

/// Opens the log in `dir`, which exists. A body that cannot be what was written is an `InvalidData` error.
pub fn open(dir: &Path) -> io::Result<Opened> {
    let mut numbers: Vec<u64> = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        if name.starts_with(SPARE_PREFIX) {
            std::fs::remove_file(entry.path())?;
        }
        numbers.extend(name.strip_suffix(".log").and_then(|name| name.parse::<u64>().ok()));
    }
    numbers.sort_unstable();
    let mut bodies = Vec::new();
    let mut end = None;
    for (at, &number) in numbers.iter().enumerate() {
        let last = at + 1 == numbers.len();
        if !last && numbers[at + 1] != number + 1 {
            return Err(corrupt(dir, number, "the next segment is missing"));
        }
        let found = read_segment(dir, number)?;
        match found {
            Some((found, offset, crc, whole)) => {
                if !last && !whole {
                    return Err(corrupt(dir, number, "it ends with a broken frame, and is not the last"));
                }
                bodies.extend(found);
                end = Some((number, offset, crc));
            }
            // A crash while a segment was being made.
            None if last => {
                std::fs::remove_file(path(dir, number))?;
            }
            None => return Err(corrupt(dir, number, "it has no head")),
        }
    }
    let mut spares = Spares::start(dir.into())?;
    let (number, file, offset, crc) = match end {
        Some((number, offset, crc)) => {
            (number, File::options().read(true).write(true).open(path(dir, number))?, offset, crc)
        }
        None => {
            let number = numbers.last().copied().unwrap_or(1);
            (number, spares.become_segment(number)?, MAGIC.len() as u64, number as u32)
        }
    };
    let writer = Writer { dir: dir.into(), spares, file, number, offset, crc, buffer: Vec::new() };
    let (requests, queue) = mpsc::sync_channel(QUEUE);
    let thread = std::thread::Builder::new().name("keyspace-log".into()).spawn(move || run(writer, &queue))?;
    Ok(Opened { wal: Wal { requests: Some(requests), thread: Some(thread) }, bodies })
}

impl Wal {
    /// Appends `bodies`; `done` is called in order, once they and all before them are on disk.
    pub fn append(&self, bodies: Vec<Vec<u8>>, done: Done) {
        self.send(Request::Append { bodies, done });
    }

    /// Begins a new segment with `bodies`, which say again what is still needed, and deletes all before it. A crash
    /// between the two leaves both: what the bodies say again must be harmless to read twice.
    pub fn rotate(&self, bodies: Vec<Vec<u8>>, done: Done) {
        self.send(Request::Rotate { bodies, done });
    }

    fn send(&self, request: Request) {
        let requests = self.requests.as_ref().expect("only drop takes it");
        if let Err(mpsc::SendError(Request::Append { done, .. } | Request::Rotate { done, .. })) =
            requests.send(request)
        {
            done(Err(io::Error::other("the log's writer has ended")));
        }
    }
}

impl Drop for Wal {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Takes whatever waits, writes it, syncs once, and tells everyone. After an error nothing more is written: a file
/// whose sync failed may have lost anything (the lesson of fsyncgate), so all later requests fail alike.
fn run(mut writer: Writer, queue: &mpsc::Receiver<Request>) {
    let mut broken: Option<io::Error> = None;
    while let Ok(first) = queue.recv() {
        let mut waiting: Vec<Done> = Vec::new();
        let mut next = Some(first);
        let mut result = broken.as_ref().map_or(Ok(()), again);
        let mut delete_before = None;
        while let Some(request) = next.take() {
            let (bodies, done) = match request {
                Request::Append { bodies, done } => (bodies, done),
                Request::Rotate { bodies, done } => {
                    result = result
                        .and_then(|()| writer.flush())
                        .and_then(|()| writer.file.sync_data())
                        .and_then(|()| writer.next_segment());
                    delete_before = Some(writer.number);
                    (bodies, done)
                }
            };
            waiting.push(done);
            for body in bodies {
                result = result.and_then(|()| writer.push(&body));
            }
            if writer.buffer.len() < BODY_BYTES_MAX {
                next = queue.try_recv().ok();
            }
        }
        result = result.and_then(|()| writer.flush()).and_then(|()| writer.file.sync_data());
        if let (Ok(()), Some(keep_from)) = (&result, delete_before) {
            result = delete_segments(&writer.dir, keep_from);
        }
        if let Err(error) = &result {
            tracing::error!(%error, "write the log; no further write is accepted");
            broken.get_or_insert_with(|| again(error).expect_err("a copy of an error"));
        }
        for done in waiting {
            done(result.as_ref().map_or_else(again, |()| Ok(())));
        }
    }
}

/// The same error once more; `io::Error` cannot be cloned.
fn again(error: &io::Error) -> io::Result<()> {
    Err(io::Error::new(error.kind(), error.to_string()))
}

/// Makes the files of coming segments, one at a time and on request.
struct Spares {
    dir: PathBuf,
    wanted: Option<mpsc::SyncSender<()>>,
    ready: mpsc::Receiver<io::Result<PathBuf>>,
    requested: bool,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

const SPARE_PREFIX: &str = "spare-";

impl Spares {
    fn start(dir: PathBuf) -> io::Result<Spares> {
        let (wanted, wants) = mpsc::sync_channel::<()>(1);
        let (send_ready, ready) = mpsc::sync_channel(1);
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::Builder::new().name("keyspace-spare".into()).spawn({
            let (dir, stop) = (dir.clone(), stop.clone());
            move || {
                for at in 0_u64.. {
                    if wants.recv().is_err() {
                        break;
                    }
                    let path = dir.join(format!("{SPARE_PREFIX}{at}"));
                    let made = make_spare(&path, &stop).map(|()| path);
                    if send_ready.send(made).is_err() {
                        break;
                    }
                }
            }
        })?;
        Ok(Spares { dir, wanted: Some(wanted), ready, requested: false, stop, thread: Some(thread) })
    }

    /// Has the next file made, unless that was asked for already.
    fn request(&mut self) {
        if !self.requested {
            self.requested = true;
            let _ = self.wanted.as_ref().expect("only drop takes it").send(());
        }
    }

    /// The next file, as the segment `number`; waits for it if need be.
    fn become_segment(&mut self, number: u64) -> io::Result<File> {
        self.request();
        self.requested = false;
        let made = self.ready.recv().map_err(|_| io::Error::other("the thread that makes segments has ended"))??;
        let path = path(&self.dir, number);
        std::fs::rename(made, &path)?;
        File::open(&self.dir)?.sync_all()?;
        File::options().read(true).write(true).open(path)
    }
}

impl Drop for Spares {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.wanted = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        if let Ok(Ok(unused)) = self.ready.try_recv() {
            let _ = std::fs::remove_file(unused);
        }
    }
}

/// Makes a segment's file: real zeros, because extents that are only reserved would have to be converted at the first
/// sync of each; a little at a time, because the log is being synced beside it.
fn make_spare(path: &Path, stop: &AtomicBool) -> io::Result<()> {
    let file = File::options().write(true).create(true).truncate(true).open(path)?;
    // Where the file system cannot reserve, the zeros below do it.
    let _ = rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, SEGMENT_BYTES);
    let zeros = vec![0_u8; 1 << 20];
    for at in 0..SEGMENT_BYTES >> 20 {
        if stop.load(Ordering::Relaxed) {
            return Err(io::Error::other("stopped"));
        }
        file.write_all_at(&zeros, at << 20)?;
        file.sync_data()?;
    }
    // The magic last: a file with it has all its space.
    file.write_all_at(MAGIC, 0)?;
    file.sync_all()
}

struct Writer {
    dir: PathBuf,
    spares: Spares,
    file: File,
    number: u64,
    /// Where the buffer goes.
    offset: u64,
    /// Checksum of the last frame, the seed of the next.
    crc: u32,
    buffer: Vec<u8>,
}

impl Writer {
    fn push(&mut self, body: &[u8]) -> io::Result<()> {
        if body.len() > BODY_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "an entry larger than the log takes"));
        }
        let used = self.offset as usize + self.buffer.len() + FRAME_HEAD + body.len();
        // Four zero bytes follow the last frame: they are the end mark.
        if used + 4 > SEGMENT_BYTES as usize {
            self.flush()?;
            self.file.sync_data()?;
            self.next_segment()?;
        }
        self.crc = checksum(self.crc, body);
        self.buffer.extend_from_slice(&(body.len() as u32).to_le_bytes());
        self.buffer.extend_from_slice(&self.crc.to_le_bytes());
        self.buffer.extend_from_slice(body);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        // The end mark goes with it: behind the last frame there may be the rest of one that a crash tore.
        let frames = self.buffer.len() as u64;
        self.buffer.extend_from_slice(&[0; 4]);
        self.file.write_all_at(&self.buffer, self.offset)?;
        self.offset += frames;
        self.buffer.clear();
        self.buffer.shrink_to(1 << 20);
        if self.offset >= SPARE_AT {
            self.spares.request();
        }
        Ok(())
    }

    fn next_segment(&mut self) -> io::Result<()> {
        let number = self.number + 1;
        self.file = self.spares.become_segment(number)?;
        self.number = number;
        self.offset = MAGIC.len() as u64;
        self.crc = number as u32;
        Ok(())
    }
}

fn checksum(seed: u32, body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(seed);
    hasher.update(&(body.len() as u32).to_le_bytes());
    hasher.update(body);
    hasher.finalize()
}

fn path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:020}.log"))
}

/// Deletes the segments before `keep_from`, oldest first: what a crash leaves is without gaps.
fn delete_segments(dir: &Path, keep_from: u64) -> io::Result<()> {
    let mut old: Vec<u64> = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let name = entry?.file_name();
        old.extend(name.to_str().and_then(|name| name.strip_suffix(".log")?.parse::<u64>().ok()));
    }
    old.retain(|number| *number < keep_from);
    old.sort_unstable();
    for number in old {
        std::fs::remove_file(path(dir, number))?;
    }
    Ok(())
}

/// Bodies, where they end, the last checksum, and whether what follows is the end mark rather than a broken frame.
/// `None` when the segment was never finished being made.
type Segment = Option<(Vec<Vec<u8>>, u64, u32, bool)>;

fn read_segment(dir: &Path, number: u64) -> io::Result<Segment> {
    let content = std::fs::read(path(dir, number))?;
    if content.get(..MAGIC.len()) != Some(MAGIC) {
        return match content.get(..MAGIC.len()) {
            Some(head) if head != [0; 8] => Err(corrupt(dir, number, "it is no log of this version")),
            _ => Ok(None),
        };
    }
    let mut bodies = Vec::new();
    let (mut at, mut crc) = (MAGIC.len(), number as u32);
    let whole = loop {
        let word = |at: usize| content.get(at..at + 4).map(|b| u32::from_le_bytes(b.try_into().expect("four bytes")));
        let length = match word(at) {
            None | Some(0) => break true,
            Some(length) => length as usize,
        };
        let Some(body) = content.get(at + FRAME_HEAD..).and_then(|rest| rest.get(..length)) else { break false };
        let sum = checksum(crc, body);
        if word(at + 4) != Some(sum) {
            break false;
        }
        bodies.push(body.to_vec());
        crc = sum;
        at += FRAME_HEAD + length;
    };
    Ok(Some((bodies, at as u64, crc, whole)))
}

fn corrupt(dir: &Path, number: u64, why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{}: {why}", path(dir, number).display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn append(wal: &Wal, bodies: &[&[u8]]) {
        let (send, receive) = mpsc::channel();
        wal.append(bodies.iter().map(|b| b.to_vec()).collect(), Box::new(move |result| send.send(result).unwrap()));
        receive.recv().unwrap().unwrap();
    }

    fn bodies(opened: &Opened) -> Vec<&[u8]> {
        opened.bodies.iter().map(|body| &body[..]).collect()
    }

    #[test]
    fn what_was_done_is_found_again_and_a_torn_end_is_cut() {
        let dir = tempfile::tempdir().unwrap();
        let opened = open(dir.path()).unwrap();
        append(&opened.wal, &[b"one", b"two"]);
        append(&opened.wal, &[b"three"]);
        drop(opened);
        // The last frame loses a byte, as if the power went before it was written.
        let file = File::options().read(true).write(true).open(path(dir.path(), 1)).unwrap();
        let end = 8 + 3 * 8 + 3 + 3 + 5;
        file.write_all_at(&[0], end - 1).unwrap();
        let opened = open(dir.path()).unwrap();
        assert_eq!(bodies(&opened), [b"one", b"two"]);
        append(&opened.wal, &[b"four"]);
        drop(opened);
        assert_eq!(bodies(&open(dir.path()).unwrap()), [&b"one"[..], b"two", b"four"]);
    }

    #[test]
    fn what_lies_behind_a_new_end_is_not_taken_for_a_continuation() {
        let dir = tempfile::tempdir().unwrap();
        let opened = open(dir.path()).unwrap();
        append(&opened.wal, &[b"aaaa", b"bbbb", b"cccc"]);
        drop(opened);
        let file = File::options().read(true).write(true).open(path(dir.path(), 1)).unwrap();
        file.write_all_at(b"X", 8 + 8).unwrap();
        let opened = open(dir.path()).unwrap();
        assert!(opened.bodies.is_empty());
        // As long as the frame that was there: the old second frame now follows it exactly.
        append(&opened.wal, &[b"dddd"]);
        drop(opened);
        assert_eq!(bodies(&open(dir.path()).unwrap()), [b"dddd"]);
    }

    #[test]
    fn a_segment_with_a_torn_frame_can_be_followed_by_another() {
        let dir = tempfile::tempdir().unwrap();
        let opened = open(dir.path()).unwrap();
        append(&opened.wal, &[b"one", &[7; 1000]]);
        drop(opened);
        let file = File::options().read(true).write(true).open(path(dir.path(), 1)).unwrap();
        file.write_all_at(b"X", 8 + 11 + 8 + 500).unwrap();
        let opened = open(dir.path()).unwrap();
        let big = vec![7_u8; 6 << 20];
        append(&opened.wal, &[b"two"]);
        for _ in 0..3 {
            append(&opened.wal, &[&big]);
        }
        drop(opened);
        assert_eq!(open(dir.path()).unwrap().bodies.len(), 5);
        // And when nothing at all follows the torn frame in its segment.
        let file = File::options().read(true).write(true).open(path(dir.path(), 2)).unwrap();
        file.write_all_at(b"X", 8 + 8 + 500).unwrap();
        let opened = open(dir.path()).unwrap();
        for _ in 0..3 {
            append(&opened.wal, &[&big]);
        }
        drop(opened);
        assert_eq!(open(dir.path()).unwrap().bodies.len(), 7);
    }

    #[test]
    fn segments_follow_one_another_and_old_ones_go() {
        let dir = tempfile::tempdir().unwrap();
        let opened = open(dir.path()).unwrap();
        let big = vec![7_u8; 6 << 20];
        for _ in 0..3 {
            append(&opened.wal, &[&big]);
        }
        drop(opened);
        let opened = open(dir.path()).unwrap();
        assert_eq!(opened.bodies.len(), 3);
        assert!(path(dir.path(), 2).exists());
        let (send, receive) = mpsc::channel();
        opened.wal.rotate(vec![b"head".to_vec()], Box::new(move |result| send.send(result).unwrap()));
        receive.recv().unwrap().unwrap();
        drop(opened);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        assert_eq!(bodies(&open(dir.path()).unwrap()), [b"head"]);
    }

    #[test]
    fn a_broken_segment_before_the_last_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let opened = open(dir.path()).unwrap();
        let big = vec![7_u8; 7 << 20];
        for _ in 0..3 {
            append(&opened.wal, &[&big]);
        }
        drop(opened);
        let file = File::options().read(true).write(true).open(path(dir.path(), 1)).unwrap();
        file.write_all_at(b"X", 100).unwrap();
        let error = open(dir.path()).err().expect("it must be refused");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
