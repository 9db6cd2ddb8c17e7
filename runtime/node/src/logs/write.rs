//! The writing side: splits what a guest prints into lines and appends them to a file.
//!
//! Writing happens on the guest's own thread into the page cache. That is what slows a guest down that floods
//! its log; its neighbours do not wait. A log that cannot be written (disk full) is dropped, the guest goes on.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::{Arc, Weak};

use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::{FILE_BYTES_MAX, FILES_MAX, LINE_BYTES_MAX, line, part};

/// Log files that may be open at the same time; the one opened first is closed, and opened again when it is written.
const OPEN_MAX: usize = 256;

/// The open log files of a node. Clones share the bound.
#[derive(Debug, Clone, Default)]
pub struct OpenFiles(Arc<Mutex<VecDeque<Weak<ContainerLog>>>>);

impl OpenFiles {
    fn opened(&self, log: Weak<ContainerLog>) {
        let oldest = {
            let mut open = self.0.lock();
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
        self.state.lock().file = None;
        self.progress.send_modify(|progress| progress.is_finished = true);
    }

    fn append(self: &Arc<Self>, bytes: &[u8]) {
        let mut state = self.state.lock();
        let result = self.append_to(&mut state, bytes);
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
        let now = Timestamp::now();
        let mut out = Vec::with_capacity(bytes.len() + 64);
        let mut pending = self.pending.lock();
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (content, is_whole) = match piece.strip_suffix(b"\n") {
                Some(content) => (content, true),
                None => (piece, false),
            };
            pending.extend_from_slice(content);
            while pending.len() > LINE_BYTES_MAX {
                let rest = pending.split_off(LINE_BYTES_MAX);
                line::append(&mut out, now, self.name, false, &pending);
                *pending = rest;
            }
            if is_whole {
                line::append(&mut out, now, self.name, true, &pending);
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
            line::append(&mut out, Timestamp::now(), self.name, false, &pending);
            pending.clear();
            self.log.append(&out);
        }
    }
}
