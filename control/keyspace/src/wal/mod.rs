//! The log on disk: checksummed frames in preallocated segment files, written by one thread that syncs once for all
//! who wait. [`format`](mod@format) has the bytes.
//!
//! Files are preallocated, so that a sync has no file size to write: on a common disk this makes the difference between 200
//! and more than 600 syncs a second, which is why the log is not kept in redb. A frame that does not fit begins a new
//! segment, whose file is made ahead by a thread of its own ([`spares`]).
//!
//! What is only noted ([`Wal::note`]) waits for the next sync, and makes none.
//!
//! What was synced is known. After each sync a mark is written, which reaches the disk with the next sync, or with one of
//! its own once nothing has come for [`SETTLE`]. Reading changes nothing ([`read`]): damage before the last mark, or a missing
//! segment, is an error that says where. What follows the last mark was answered to nobody before a power cut, but it may
//! have been read after a mere crash of the process; [`Found::start`] writes it again and syncs it, before anything is
//! served from it, and cuts what was torn. (A power cut within [`SETTLE`] of the last answer may lose the last mark: only
//! then damage of that very last group cannot be told from a torn one.)
//!
//! When a sync fails, nothing is known of what was written since the last one (the lesson of fsyncgate): every later request
//! fails, and the process ends. The next start finds what the disk has and writes the rest again. A disk without space for
//! another segment is no failure: the writer waits for space.

mod format;
mod spares;
#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;

pub use self::format::Body;
use self::format::{BODY_BYTES_MAX, END, FRAME_HEAD, HEAD_BYTES, Head, INDEX_BYTES, Index, MARK_BYTES, Segment};
use self::spares::Spares;
use crate::host::{self, DiskFile, Host, How};

/// When nothing has come for so long, the last mark is synced.
const SETTLE: Duration = Duration::from_millis(200);
/// Bytes written at a time when an end is wiped.
const WIPE_BYTES: usize = 1 << 20;

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
    /// Goes with the next of the others, or when nothing has come for [`SETTLE`].
    Note {
        body: Vec<u8>,
    },
}

/// What can still be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Bytes in files that are there.
    pub left: u64,
    /// Whether the next file is there, or made by whoever needs it: nobody has to wait for it.
    pub ready: bool,
    /// Whether making it failed and is being tried again.
    pub stuck: bool,
}

/// The log's writer. Dropping it writes what is queued and ends the threads.
pub struct Wal {
    spares: Arc<Spares>,
    writer: Mode,
    ahead: Option<JoinHandle<()>>,
}

enum Mode {
    Thread {
        /// Nobody waits here for a disk that stands still: callers hold locks, on threads that others need. What waits for the writer is
        /// bounded in bytes by what was let in before (`Log::room`).
        requests: Option<mpsc::Sender<Request>>,
        thread: Option<JoinHandle<()>>,
    },
    /// In the caller's thread, for simulations.
    Caller(Box<Mutex<Writer>>),
    /// In a task that waits for a simulated disk.
    #[cfg(any(test, feature = "simulation"))]
    Task(tokio::sync::mpsc::UnboundedSender<Request>),
}

/// What [`read`] found.
pub struct Found {
    host: Host,
    dir: PathBuf,
    index: Index,
    /// The newest segment.
    last: Segment,
    /// Bytes of it between the last mark and its end.
    unsynced: Vec<u8>,
    /// Files that nothing needs.
    leftovers: Vec<String>,
    /// Every body, in order.
    pub bodies: Vec<Body>,
}

/// Makes an empty log in `dir`, a directory without one.
pub fn create(host: &Host, dir: &Path) -> io::Result<()> {
    host.disk.create_dir(dir)?;
    let first = &Head { number: 1, nonce: host.random(), end: 0, chain: 0, length: host.sizes.segment };
    Spares::new(host.clone(), dir).become_segment(first)?;
    let file = host.disk.open(&index_path(dir), How::Create)?;
    file.write_at(&[0; INDEX_BYTES as usize], 0)?;
    write_index(&*file, &Index { sequence: 1, first: 1, last: 1 })?;
    host.disk.sync_dir(dir)?;
    host.disk.sync_dir(host::parent(dir))
}

/// Reads the log in `dir`, and changes nothing. Whatever cannot be what was written is an `InvalidData` error that says
/// which file and where.
pub fn read(host: &Host, dir: &Path) -> io::Result<Found> {
    let not_found = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    let names = match host.disk.list(dir) {
        Err(error) if not_found(&error) => {
            return Err(host::missing(dir, "it is the log of everything that was written"));
        }
        names => names?,
    };
    let index_path = index_path(dir);
    let index = match host::read(&*host.disk, &index_path) {
        Err(error) if not_found(&error) => {
            return Err(host::missing(&index_path, "it says which segments the log has"));
        }
        content => {
            Index::decode(&content?).ok_or_else(|| host::damaged(&index_path, 0, "neither of its slots is whole"))?
        }
    };
    let numbers: Vec<u64> = names.iter().filter_map(|name| name.strip_suffix(".log")?.parse().ok()).collect();
    // A crash after a segment was made and before the index says so.
    let newest = if numbers.contains(&(index.last + 1)) { index.last + 1 } else { index.last };
    if let Some(unknown) = numbers.iter().find(|number| **number > newest) {
        return Err(host::damaged(&path(dir, *unknown), 0, format!("the index ends with segment {}", index.last)));
    }
    let mut leftovers: Vec<String> = numbers.iter().filter(|n| **n < index.first).map(|n| name(*n)).collect();
    leftovers.extend(names.into_iter().filter(|name| name == spares::PART));
    let mut bodies = Vec::new();
    let mut before: Option<Segment> = None;
    let mut unsynced = Vec::new();
    for number in index.first..=newest {
        let path = path(dir, number);
        let content = match host::read(&*host.disk, &path) {
            Err(error) if not_found(&error) => {
                let why = format!("the log has the segments {} to {newest}", index.first);
                return Err(host::missing(&path, why));
            }
            content => content?,
        };
        let mut segment = format::parse(&content, number).map_err(|damage| format::error(&path, &damage))?;
        if let Some(before) = &before
            && (segment.head.end, segment.head.chain) != (before.frames_end, before.chain)
        {
            let why = format!("by segment {number} this one was written up to byte {}", segment.head.end);
            return Err(host::damaged(&self::path(dir, number - 1), before.end, why));
        }
        bodies.append(&mut segment.bodies);
        if number == newest {
            unsynced = content[segment.synced as usize..segment.end as usize].to_vec();
        }
        before = Some(segment);
    }
    let last = before.ok_or_else(|| host::damaged(&index_path, 0, "it has no segments"))?;
    let index = Index { last: newest, ..index };
    Ok(Found { host: host.clone(), dir: dir.into(), index, last, unsynced, leftovers, bodies })
}

impl Found {
    /// The error that says what is wrong with `body`.
    pub fn damaged(dir: &Path, body: &Body, why: impl std::fmt::Display) -> io::Error {
        host::damaged(&path(dir, body.segment), body.offset, why)
    }

    /// Makes sure that what was read is on the disk, and goes on behind it.
    pub fn start(self) -> io::Result<Wal> {
        let Found { host, dir, mut index, last, unsynced, leftovers, .. } = self;
        let disk = &*host.disk;
        let file = disk.open(&path(&dir, last.head.number), How::Write)?;
        let length = file.len()?;
        if last.frames_end > last.synced || last.torn {
            // The same bytes once more: after a failed sync they may be in memory only, and clean there.
            file.write_at(&unsynced, last.synced)?;
            let mut at = last.end;
            while last.torn && at < length {
                let zeros = vec![0; WIPE_BYTES.min((length - at) as usize)];
                file.write_at(&zeros, at)?;
                at += zeros.len() as u64;
            }
            file.sync_data()?;
        }
        for name in leftovers {
            disk.remove(&dir.join(name))?;
        }
        disk.sync_dir(&dir)?;
        let index_file = disk.open(&index_path(&dir), How::Write)?;
        index.sequence += 1;
        write_index(&*index_file, &index)?;
        let spares = Arc::new(Spares::new(host.clone(), &dir));
        let mut writer = Writer {
            unmarked: last.frames_end > last.synced,
            unsynced_mark: false,
            head: last.head,
            offset: last.end,
            frames_end: last.frames_end,
            chain: last.chain,
            buffer: Vec::new(),
            broken: None,
            spares: spares.clone(),
            host,
            dir,
            file,
            length,
            index_file,
            index,
        };
        writer.mark()?;
        writer.measure();
        #[cfg(any(test, feature = "simulation"))]
        if let Some(latency) = writer.host.latency.clone() {
            let (requests, queue) = tokio::sync::mpsc::unbounded_channel();
            tokio::spawn(run_in_task(writer, queue, latency));
            return Ok(Wal { spares, writer: Mode::Task(requests), ahead: None });
        }
        if !writer.host.threads {
            return Ok(Wal { spares, writer: Mode::Caller(Box::new(Mutex::new(writer))), ahead: None });
        }
        let (requests, queue) = mpsc::channel();
        spares.begin();
        let ahead = host::thread("keyspace-spare", {
            let spares = spares.clone();
            move || spares.make_ahead()
        })?;
        let thread = host::thread("keyspace-log", move || run(writer, &queue))?;
        let writer = Mode::Thread { requests: Some(requests), thread: Some(thread) };
        Ok(Wal { spares, writer, ahead: Some(ahead) })
    }
}

impl Wal {
    /// Appends `bodies`; `done` is called in order, once they and all before them are on disk.
    pub fn append(&self, bodies: Vec<Vec<u8>>, done: Done) {
        self.send(Request::Append { bodies, done });
    }

    /// Has `body` written with what is appended next, or a little later: it costs no sync of its own, and is lost with the
    /// process.
    pub fn note(&self, body: Vec<u8>) {
        self.send(Request::Note { body });
    }

    /// Begins a new segment with `bodies`, which say again what is still needed, and deletes all before it. A crash
    /// between the two leaves both: what the bodies say again must be harmless to read twice.
    ///
    /// On a full disk there is no new segment before old ones are gone, but for one whose file is there: then the bodies are
    /// written in that one, or in this one, if it has room. Otherwise only the first is, nothing is deleted, and a rotation [is
    /// owed](Wal::is_rotation_owed).
    pub fn rotate(&self, bodies: Vec<Vec<u8>>, done: Done) {
        self.send(Request::Rotate { bodies, done });
    }

    /// Whether the last rotation found no room, and is to be asked for again.
    pub fn is_rotation_owed(&self) -> bool {
        self.spares.is_rotation_owed()
    }

    /// What can still be written.
    pub fn space(&self) -> Space {
        self.spares.space()
    }

    /// Has the next file made now; the future ends when something is known of it.
    pub fn hurry(&self) -> impl Future<Output = ()> + Send + use<> {
        self.spares.hurry()
    }

    /// Ends all waiting for space: what has none fails from now on, and the log with it. For those who stop.
    pub fn give_up_waiting(&self) {
        self.spares.stop();
    }

    fn send(&self, request: Request) {
        let sent = match &self.writer {
            Mode::Caller(writer) => {
                writer.lock().serve(request, &mut || None);
                Ok(())
            }
            Mode::Thread { requests: Some(requests), .. } => {
                requests.send(request).map_err(|mpsc::SendError(request)| request)
            }
            Mode::Thread { requests: None, .. } => Err(request),
            #[cfg(any(test, feature = "simulation"))]
            Mode::Task(requests) => requests.send(request).map_err(|error| error.0),
        };
        if let Err(Request::Append { done, .. } | Request::Rotate { done, .. }) = sent {
            done(Err(io::Error::other("the log's writer has ended")));
        }
    }

    /// What the writer does when nothing comes for some time.
    #[cfg(test)]
    pub fn settle(&self) -> io::Result<()> {
        match &self.writer {
            Mode::Caller(writer) => writer.lock().settle(),
            Mode::Thread { .. } | Mode::Task(_) => Ok(()),
        }
    }
}

impl Drop for Wal {
    fn drop(&mut self) {
        if let Mode::Thread { requests, thread } = &mut self.writer {
            *requests = None;
            self.spares.stop();
            for thread in [thread.take(), self.ahead.take()].into_iter().flatten() {
                let _ = thread.join();
            }
        }
    }
}

/// Serves requests until nobody can send any more.
fn run(mut writer: Writer, queue: &mpsc::Receiver<Request>) {
    loop {
        let first = if writer.is_unsettled() {
            match queue.recv_timeout(SETTLE) {
                Ok(first) => first,
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    if let Err(error) = writer.settle() {
                        writer.fail(&error);
                    }
                    continue;
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
            }
        } else {
            match queue.recv() {
                Ok(first) => first,
                Err(mpsc::RecvError) => break,
            }
        };
        writer.serve(first, &mut || queue.try_recv().ok());
    }
    if writer.is_unsettled() {
        let _ = writer.settle();
    }
}

/// The same, after the time that the disk takes; ends as if it were killed.
#[cfg(any(test, feature = "simulation"))]
async fn run_in_task(
    mut writer: Writer,
    mut queue: tokio::sync::mpsc::UnboundedReceiver<Request>,
    latency: host::Latency,
) {
    loop {
        let next = match writer.is_unsettled() {
            true => tokio::time::timeout(SETTLE, queue.recv()).await,
            false => Ok(queue.recv().await),
        };
        match next {
            Ok(Some(first)) => {
                tokio::time::sleep(latency()).await;
                writer.serve(first, &mut || queue.try_recv().ok());
            }
            Ok(None) => return,
            Err(_) => {
                if let Err(error) = writer.settle() {
                    writer.fail(&error);
                }
            }
        }
    }
}

/// The same error once more; `io::Error` cannot be cloned.
fn again(error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), error.to_string())
}

struct Writer {
    host: Host,
    dir: PathBuf,
    spares: Arc<Spares>,
    index_file: Arc<dyn DiskFile>,
    index: Index,
    /// The segment that is written to, and its head and length.
    file: Arc<dyn DiskFile>,
    head: Head,
    length: u64,
    /// Where the buffer goes.
    offset: u64,
    /// Where the last frame ends that is not in the buffer.
    frames_end: u64,
    /// Checksum of the last frame, the seed of the next.
    chain: u32,
    buffer: Vec<u8>,
    /// Whether frames were written since the last mark.
    unmarked: bool,
    /// Whether the last mark may not be on the disk yet.
    unsynced_mark: bool,
    /// The error after which nothing more is written.
    broken: Option<io::Error>,
}

impl Writer {
    /// Takes `first` and whatever else waits, writes it, syncs once, and tells everyone.
    fn serve(&mut self, first: Request, more: &mut dyn FnMut() -> Option<Request>) {
        let mut waiting: Vec<Done> = Vec::new();
        let mut next = Some(first);
        let mut result = self.broken.as_ref().map_or(Ok(()), |error| Err(again(error)));
        let mut keep_from = None;
        let mut syncs = false;
        while let Some(request) = next.take() {
            syncs |= !matches!(request, Request::Note { .. });
            let (bodies, done) = match request {
                Request::Append { bodies, done } => (bodies, Some(done)),
                Request::Note { body } => (vec![body], None),
                Request::Rotate { mut bodies, done } => {
                    let has_file = self.spares.await_next();
                    // What it begins it has to end: only then is there space again for what comes after.
                    let has_room = match has_file {
                        true => self.has_space_for(self.segments(&bodies).saturating_sub(1)),
                        false => self.has_room(&bodies),
                    };
                    if has_file && has_room {
                        result = result.and_then(|()| self.next_segment());
                    }
                    if has_room {
                        keep_from = Some(self.head.number);
                    } else {
                        bodies.truncate(1);
                    }
                    self.spares.owe_rotation(!has_room);
                    (bodies, Some(done))
                }
            };
            waiting.extend(done);
            for body in bodies {
                // A rotation whose space somebody else took meanwhile ends here, and deletes nothing.
                if keep_from.is_some() && result.is_ok() && !self.fits(&body) && !self.spares.await_next() {
                    keep_from = None;
                    self.spares.owe_rotation(true);
                    break;
                }
                result = result.and_then(|()| self.push(&body));
            }
            // What a rotation frees may be what the next request needs.
            if self.buffer.len() < BODY_BYTES_MAX && keep_from.is_none() {
                next = more();
            }
        }
        if syncs || self.buffer.len() >= BODY_BYTES_MAX {
            result = result.and_then(|()| self.commit());
        }
        if let (Ok(()), Some(keep_from)) = (&result, keep_from) {
            result = self.forget_before(keep_from);
        }
        if let Err(error) = &result {
            self.fail(error);
        }
        self.measure();
        for done in waiting {
            done(result.as_ref().map_or_else(|error| Err(again(error)), |()| Ok(())));
        }
    }

    fn fail(&mut self, error: &io::Error) {
        if self.broken.is_none() {
            tracing::error!(%error, dir = %self.dir.display(), "write the log; no further write is accepted");
            self.broken = Some(again(error));
        }
    }

    /// How many new segments `bodies` take.
    fn segments(&self, bodies: &[Vec<u8>]) -> u64 {
        let length = self.host.sizes.segment - HEAD_BYTES - (MARK_BYTES + END.len()) as u64;
        let (mut segments, mut left) = (0, 0);
        for framed in bodies.iter().map(|body| (FRAME_HEAD + body.len()) as u64) {
            if framed > left {
                (segments, left) = (segments + 1, length);
            }
            left = left.saturating_sub(framed);
        }
        segments
    }

    /// Whether the disk has space for so many segments besides the next, whose file is there.
    fn has_space_for(&self, segments: u64) -> bool {
        let needed = segments.saturating_mul(self.host.sizes.segment);
        segments == 0 || self.host.disk.free(&self.dir).is_ok_and(|free| free >= needed)
    }

    /// Whether `bodies` fit in this segment.
    fn has_room(&self, bodies: &[Vec<u8>]) -> bool {
        self.fits_framed(bodies.iter().map(|body| FRAME_HEAD + body.len()).sum())
    }

    /// Whether `body` does.
    fn fits(&self, body: &[u8]) -> bool {
        self.fits_framed(FRAME_HEAD + body.len())
    }

    fn fits_framed(&self, framed: usize) -> bool {
        // Behind the last frame there is always room for a mark and the end.
        let behind = MARK_BYTES + END.len();
        self.offset + (self.buffer.len() + framed + behind) as u64 <= self.length
    }

    fn push(&mut self, body: &[u8]) -> io::Result<()> {
        let framed = FRAME_HEAD + body.len();
        let behind = (MARK_BYTES + END.len()) as u64;
        let fits_empty = HEAD_BYTES + framed as u64 + behind <= self.host.sizes.segment;
        if body.is_empty() || body.len() > BODY_BYTES_MAX || !fits_empty {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "an entry of a size that the log does not take"));
        }
        if !self.fits(body) {
            self.next_segment()?;
        }
        self.chain = format::checksum(self.chain, body);
        self.buffer.extend_from_slice(&(body.len() as u32).to_le_bytes());
        self.buffer.extend_from_slice(&self.chain.to_le_bytes());
        self.buffer.extend_from_slice(body);
        Ok(())
    }

    /// Writes what is in the buffer.
    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let frames = self.buffer.len() as u64;
        self.buffer.extend_from_slice(&END);
        self.write(&self.buffer, self.offset)?;
        self.offset += frames;
        self.frames_end = self.offset;
        self.unmarked = true;
        self.buffer.clear();
        self.buffer.shrink_to(1 << 20);
        Ok(())
    }

    /// Writes `bytes`, which have their space already; where a file system needs more all the same, waits for it.
    fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        loop {
            match self.file.write_at(bytes, offset) {
                Err(error) if host::is_no_space(&error) && self.spares.pause() => (),
                result => return result,
            }
        }
    }

    fn commit(&mut self) -> io::Result<()> {
        self.flush()?;
        self.file.sync_data()?;
        self.mark()
    }

    /// Says that everything so far was synced. Called after a sync only.
    fn mark(&mut self) -> io::Result<()> {
        if self.unmarked {
            let mut bytes = format::mark(self.offset, self.chain, self.head.nonce).to_vec();
            bytes.extend_from_slice(&END);
            self.write(&bytes, self.offset)?;
            self.offset += MARK_BYTES as u64;
            (self.unmarked, self.unsynced_mark) = (false, true);
        }
        Ok(())
    }

    /// Whether something waits for [`Writer::settle`].
    fn is_unsettled(&self) -> bool {
        (self.unsynced_mark || !self.buffer.is_empty()) && self.broken.is_none()
    }

    /// Has the last mark on the disk, and what was noted behind it.
    fn settle(&mut self) -> io::Result<()> {
        self.flush()?;
        self.file.sync_data()?;
        self.unsynced_mark = false;
        Ok(())
    }

    /// Ends this segment and begins the next, whose head is the mark of this one's end.
    fn next_segment(&mut self) -> io::Result<()> {
        self.flush()?;
        self.file.sync_data()?;
        let number = self.head.number + 1;
        let length = self.host.sizes.segment;
        let head = Head { number, nonce: self.host.random(), end: self.frames_end, chain: self.chain, length };
        self.file = self.spares.become_segment(&head)?;
        self.length = self.file.len()?;
        self.set_index(Index { last: number, ..self.index })?;
        self.head = head;
        (self.offset, self.frames_end, self.chain) = (HEAD_BYTES, HEAD_BYTES, head.chain_begin());
        (self.unmarked, self.unsynced_mark) = (false, false);
        Ok(())
    }

    fn set_index(&mut self, index: Index) -> io::Result<()> {
        self.index = Index { sequence: self.index.sequence + 1, ..index };
        write_index(&*self.index_file, &self.index)
    }

    /// Deletes the segments before `keep_from`: the index first, so that what a crash leaves is known to be left over.
    fn forget_before(&mut self, keep_from: u64) -> io::Result<()> {
        let old = self.index.first..keep_from;
        self.set_index(Index { first: keep_from, ..self.index })?;
        for number in old {
            if let Err(error) = self.host.disk.remove(&path(&self.dir, number)) {
                tracing::warn!(%error, number, "delete an old segment of the log; the next start tries again");
            }
        }
        Ok(())
    }

    /// Tells how much can still be written.
    fn measure(&self) {
        let behind = (MARK_BYTES + END.len()) as u64;
        self.spares.measured(self.length.saturating_sub(self.offset + self.buffer.len() as u64 + behind));
    }
}

fn write_index(file: &dyn DiskFile, index: &Index) -> io::Result<()> {
    let (bytes, offset) = index.encode();
    file.write_at(&bytes, offset)?;
    file.sync_data()
}

fn index_path(dir: &Path) -> PathBuf {
    dir.join("segments")
}

fn name(number: u64) -> String {
    format!("{number:020}.log")
}

fn path(dir: &Path, number: u64) -> PathBuf {
    dir.join(name(number))
}
