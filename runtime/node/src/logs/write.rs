//! The writing side: splits what a guest prints into lines and appends them to a file.
//!
//! Writing happens on the guest's own thread into the page cache. That is what slows a guest down that floods
//! its log; its neighbours do not wait. A log that cannot be written (disk full) is dropped, the guest goes on. What is beyond its
//! budget is dropped before anything is made of it: an empty line has one byte as it is printed, and forty as it is kept.

use std::cell::LazyCell;
use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Instant;

use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::line::{self, Begin};
use super::{FILE_BYTES_MAX, FILES_MAX, LINE_BYTES_MAX, part};

/// Log files that may be open at the same time; the one opened first is closed, and opened again when it is written.
const OPEN_MAX: usize = 256;

/// What one container may print at once and per second; what is more is dropped, and the log says how much. A flood would
/// otherwise keep the disk busy for everybody, however small its files stay.
const BURST_BYTES: f64 = (64_u64 << 20) as f64;
const BYTES_PER_SECOND: f64 = (8_u64 << 20) as f64;

/// The open log files of a node. Clones share the bound.
#[derive(Debug, Clone, Default)]
pub struct OpenFiles {
    open: Arc<Mutex<VecDeque<Weak<ContainerLog>>>>,
    /// Whether logs are dropped because the disk is low.
    is_low: Arc<OnceLock<Arc<AtomicBool>>>,
}

impl OpenFiles {
    /// Logs are dropped while this is set.
    pub fn drop_while(&self, is_low: Arc<AtomicBool>) {
        let _ = self.is_low.set(is_low);
    }

    fn is_low(&self) -> bool {
        self.is_low.get().is_some_and(|flag| flag.load(Ordering::Relaxed))
    }

    fn opened(&self, log: Weak<ContainerLog>) {
        let oldest = {
            let mut open = self.open.lock();
            open.push_back(log);
            if open.len() > OPEN_MAX { open.pop_front() } else { None }
        };
        // A log that is being written just now stays open; it is in the queue again soon enough.
        if let Some(oldest) = oldest.and_then(|oldest| oldest.upgrade())
            && let Some(mut state) = oldest.state.try_lock()
        {
            state.file = None;
        }
    }
}

/// The log of one life of a container.
#[derive(Debug)]
pub struct ContainerLog {
    path: PathBuf,
    open: OpenFiles,
    state: Mutex<State>,
    /// Bytes written so far, and whether more will come.
    progress: watch::Sender<Progress>,
}

/// How far a log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Counts writes.
    pub writes: u64,
    /// Nothing more will come.
    pub is_finished: bool,
}

#[derive(Debug, Default)]
struct State {
    file: Option<File>,
    bytes: u64,
    failed: bool,
    /// The container has ended, and its directory may be gone.
    is_finished: bool,
    /// What may be printed now, and when that was reckoned.
    budget: Option<(f64, Instant)>,
    /// Bytes that were dropped since the last line.
    dropped: u64,
}

impl State {
    /// Whether this many bytes may be printed now.
    fn spend(&mut self, bytes: usize, now: Instant) -> bool {
        let (budget, at) = self.budget.unwrap_or((BURST_BYTES, now));
        let budget = (budget + now.duration_since(at).as_secs_f64() * BYTES_PER_SECOND).min(BURST_BYTES);
        let fits = budget >= bytes as f64;
        self.budget = Some((if fits { budget - bytes as f64 } else { budget }, now));
        fits
    }
}

impl ContainerLog {
    /// A log at this path; nothing is opened before something is printed.
    pub fn new(path: PathBuf, open: OpenFiles) -> Arc<Self> {
        Arc::new(Self { path, open, state: Mutex::default(), progress: watch::Sender::new(Progress::default()) })
    }

    /// Where it is.
    pub fn path(&self) -> &std::path::Path {
        &self.path
    }

    /// Follows how far it is written.
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// One of the container's streams, `stdout` or `stderr`.
    pub fn stream(self: &Arc<Self>, name: &'static str) -> Arc<Stream> {
        Arc::new(Stream { log: self.clone(), name, pending: Mutex::default() })
    }

    /// Nothing more will be printed.
    pub fn finish(&self) {
        let mut state = self.state.lock();
        state.file = None;
        state.is_finished = true;
        drop(state);
        self.progress.send_modify(|progress| progress.is_finished = true);
    }

    /// Whether something that was printed is kept, which takes so many bytes.
    fn admits(&self, printed: usize, kept: usize) -> bool {
        let mut state = self.state.lock();
        if state.is_finished {
            return false;
        }
        let is_admitted = !self.open.is_low() && state.spend(kept, Instant::now());
        if !is_admitted {
            state.dropped += printed as u64;
        }
        is_admitted
    }

    /// Appends lines that were admitted.
    fn append(self: &Arc<Self>, bytes: &[u8]) {
        let mut state = self.state.lock();
        if state.is_finished {
            return;
        }
        let dropped = std::mem::take(&mut state.dropped);
        let mut noted = Vec::new();
        if dropped > 0 {
            let text = format!(
                "[coracle: {dropped} bytes of this log were dropped: too much in too short a time, or too little disk]"
            );
            Begin::new(Timestamp::now(), "stderr").append(&mut noted, true, text.as_bytes());
        }
        noted.extend_from_slice(bytes);
        let result = self.append_to(&mut state, &noted);
        if let Err(error) = &result
            && !state.failed
        {
            tracing::warn!(path = %self.path.display(), %error, "log is not written");
        }
        state.failed = result.is_err();
        drop(state);
        self.progress.send_modify(|progress| progress.writes += 1);
    }

    fn append_to(self: &Arc<Self>, state: &mut State, bytes: &[u8]) -> std::io::Result<()> {
        if state.bytes > 0 && state.bytes + bytes.len() as u64 > FILE_BYTES_MAX {
            state.file = None;
            for number in (0..FILES_MAX - 1).rev() {
                match fs::rename(part(&self.path, number), part(&self.path, number + 1)) {
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                    other => other?,
                }
            }
        }
        if state.file.is_none() {
            let options = || File::options().append(true).create(true).open(&self.path);
            let file = match options() {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    if let Some(parent) = self.path.parent() {
                        fs::create_dir_all(parent)?;
                    }
                    options()?
                }
                other => other?,
            };
            state.bytes = file.metadata()?.len();
            state.file = Some(file);
            self.open.opened(Arc::downgrade(self));
        }
        let file = state.file.as_mut().expect("it was opened above");
        file.write_all(bytes)?;
        state.bytes += bytes.len() as u64;
        Ok(())
    }
}

/// One stream of a container.
#[derive(Debug)]
pub struct Stream {
    log: Arc<ContainerLog>,
    name: &'static str,
    /// The beginning of a line whose end has not been printed.
    pending: Mutex<Vec<u8>>,
}

impl Stream {
    /// Takes what the guest prints.
    pub fn print(&self, bytes: &[u8]) {
        let mut pending = self.pending.lock();
        let lines = bytes.iter().filter(|byte| **byte == b'\n').count() + bytes.len() / LINE_BYTES_MAX;
        let kept = bytes.len() + lines * line::BYTES_MORE;
        if !self.log.admits(pending.len() + bytes.len(), kept) {
            // Its end may be among what is dropped: it would be joined to another line.
            *pending = Vec::new();
            return;
        }
        // Once for all lines, and not where there is none.
        let begin = LazyCell::new(|| Begin::new(Timestamp::now(), self.name));
        let mut out = Vec::with_capacity(kept + line::BYTES_MORE);
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (content, is_whole) = match piece.strip_suffix(b"\n") {
                Some(content) => (content, true),
                None => (piece, false),
            };
            pending.extend_from_slice(content);
            while pending.len() > LINE_BYTES_MAX {
                let rest = pending.split_off(LINE_BYTES_MAX);
                begin.append(&mut out, false, &pending);
                *pending = rest;
            }
            if is_whole {
                begin.append(&mut out, true, &pending);
                pending.clear();
            }
        }
        if pending.is_empty() && pending.capacity() > 1024 {
            *pending = Vec::new();
        }
        // Under the lock, so that lines of one stream stay in order.
        if !out.is_empty() {
            self.log.append(&out);
        }
    }

    /// Writes a last line that has no end.
    pub fn flush(&self) {
        let mut pending = self.pending.lock();
        if !pending.is_empty() {
            let mut out = Vec::new();
            Begin::new(Timestamp::now(), self.name).append(&mut out, false, &pending);
            pending.clear();
            self.log.append(&out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_flood_has_a_bound_at_once_and_per_second() {
        let begun = Instant::now();
        let mut state = State::default();
        let line = 1 << 20;
        let printed = |state: &mut State, at| (0..1000).filter(|_| state.spend(line, at)).count();
        assert_eq!(printed(&mut state, begun), 64);
        assert_eq!(printed(&mut state, begun + Duration::from_secs(1)), 8);
        assert_eq!(printed(&mut state, begun + Duration::from_secs(3600)), 64);
    }
}
