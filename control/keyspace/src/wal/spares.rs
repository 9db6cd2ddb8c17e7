//! The file of the next segment, made ahead, so that no write waits for 16 MiB of zeros and the log has its space before
//! it needs it.
//!
//! One spare is there whenever the disk allows it: it is what the log still has when the disk is full. Making one that
//! failed for lack of space is tried again every [`RETRY`], for as long as it takes.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tokio::sync::Notify;

use super::format::Head;
use super::path;
use crate::host::{DiskFile, Host, How};

/// A spare that is whole, and one that is being made.
const SPARE: &str = "spare";
pub const PART: &str = "spare.part";
/// The first spare comes after the start has had the disk for itself, unless it is needed before.
const FIRST_AFTER: Duration = Duration::from_secs(2);
/// How long after a failure the next try comes.
const RETRY: Duration = Duration::from_secs(1);
/// Zeros written between two syncs: the log is being synced beside it.
const STEP_BYTES: u64 = 1 << 20;

/// The next file, and what is known of it.
pub struct Spares {
    host: Host,
    dir: PathBuf,
    state: Mutex<State>,
    changed: Condvar,
    /// The same as `changed`, for tasks.
    known: Arc<Notify>,
    /// Bytes that fit in the segment being written.
    left: AtomicU64,
    /// Whether old segments are still there because there was no room to say again what is needed of them.
    owed: AtomicBool,
}

#[derive(Default)]
struct State {
    /// A spare is there.
    ready: bool,
    /// The writer makes a segment of the spare that was there: until that has its own name, another one would take its place.
    taken: bool,
    /// The writer waits for one.
    urgent: bool,
    /// The last try failed.
    failed: bool,
    stop: bool,
    /// There is no thread that makes them: whoever needs one does it.
    gone: bool,
}

impl Spares {
    /// Takes the spare that an earlier process left.
    pub fn new(host: Host, dir: &Path) -> Spares {
        let there = host.disk.open(&dir.join(SPARE), How::Read).and_then(|file| file.len());
        let ready = there.is_ok_and(|length| length == host.sizes.segment);
        let state = Mutex::new(State { ready, gone: true, ..State::default() });
        Spares {
            host,
            dir: dir.into(),
            state,
            changed: Condvar::new(),
            known: Arc::default(),
            left: AtomicU64::new(0),
            owed: AtomicBool::new(false),
        }
    }

    /// What can be written in this segment and the next.
    pub fn space(&self) -> super::Space {
        let state = self.state.lock();
        let ready = if state.ready { self.host.sizes.segment } else { 0 };
        // Who stopped for want of space makes none any more, and neither does the writer.
        let made_when_needed = self.host.threads && state.gone && !state.failed;
        super::Space {
            left: self.left.load(Ordering::Relaxed) + ready,
            ready: state.ready || made_when_needed,
            stuck: !state.ready && state.failed,
        }
    }

    /// Says what fits in the segment being written.
    pub fn measured(&self, left: u64) {
        self.left.store(left, Ordering::Relaxed);
    }

    /// Says whether a rotation is owed.
    pub fn owe_rotation(&self, owed: bool) {
        self.owed.store(owed, Ordering::Relaxed);
    }

    /// Whether one is.
    pub fn is_rotation_owed(&self) -> bool {
        self.owed.load(Ordering::Relaxed)
    }

    /// Waits until a spare is there, or making one has failed; whether [`Spares::become_segment`] need not wait.
    pub fn await_next(&self) -> bool {
        self.make_here();
        let mut state = self.state.lock();
        while !state.ready && !state.failed && !state.gone {
            state.urgent = true;
            self.changed.notify_all();
            self.changed.wait(&mut state);
        }
        state.ready || (self.host.threads && state.gone)
    }

    /// Where there are no threads, whoever waits for one makes it.
    fn make_here(&self) {
        if self.host.threads || self.state.lock().ready {
            return;
        }
        let made = self.make();
        let mut state = self.state.lock();
        (state.ready, state.failed) = (made.is_ok(), made.is_err());
    }

    /// Says that a thread is about to call [`Spares::make_ahead`].
    pub fn begin(&self) {
        self.state.lock().gone = false;
    }

    /// Ends the thread, and the writer's waiting for space that does not come.
    pub fn stop(&self) {
        self.state.lock().stop = true;
        self.changed.notify_all();
    }

    /// Has the next one made now; the future ends when something is known of it.
    pub fn hurry(&self) -> impl Future<Output = ()> + Send + use<> {
        self.make_here();
        // Listening begins under the lock: nothing becomes known in between.
        let mut state = self.state.lock();
        let known = self.known.clone().notified_owned();
        let is_known = state.ready || state.failed || state.gone;
        state.urgent |= !is_known;
        self.changed.notify_all();
        async move {
            if !is_known {
                known.await;
            }
        }
    }

    /// Waits some time; whether there is a point in trying again.
    pub fn pause(&self) -> bool {
        let mut state = self.state.lock();
        if self.host.threads && !state.stop {
            self.changed.wait_for(&mut state, RETRY);
        }
        self.host.threads && !state.stop
    }

    /// Has a spare whenever there is none, until it is stopped.
    pub fn make_ahead(&self) {
        let mut state = self.state.lock();
        if !state.ready && !state.urgent && !state.stop {
            self.changed.wait_for(&mut state, FIRST_AFTER);
        }
        loop {
            while (state.ready || state.taken) && !state.stop {
                self.changed.wait(&mut state);
            }
            if state.ready || state.taken || (state.stop && (!state.urgent || state.failed)) {
                break;
            }
            let made = parking_lot::MutexGuard::unlocked(&mut state, || self.make());
            match made {
                Ok(()) => (state.ready, state.urgent, state.failed) = (true, false, false),
                Err(error) => {
                    if !state.failed && !state.stop {
                        tracing::error!(%error, dir = %self.dir.display(), "make the log's next file; it is tried again");
                    }
                    state.failed = true;
                }
            }
            self.changed.notify_all();
            self.known.notify_waiters();
            if state.failed && !state.stop {
                self.changed.wait_for(&mut state, RETRY);
            }
        }
        state.gone = true;
        self.changed.notify_all();
        self.known.notify_waiters();
    }

    /// The next file, as the segment that begins with `head`; waits for it if need be.
    pub fn become_segment(&self, head: &Head) -> io::Result<Arc<dyn DiskFile>> {
        {
            let mut state = self.state.lock();
            while !state.ready {
                if state.gone {
                    self.make()?;
                    break;
                }
                if state.failed && state.stop {
                    return Err(io::Error::new(io::ErrorKind::StorageFull, "the log has no space for another file"));
                }
                state.urgent = true;
                self.changed.notify_all();
                self.changed.wait(&mut state);
            }
            (state.ready, state.taken) = (false, true);
        }
        let file = self.name_segment(head);
        // Also after an error: then nothing is written any more, whatever becomes of the spare.
        self.state.lock().taken = false;
        self.changed.notify_all();
        file
    }

    /// Makes a segment of the spare that was taken.
    fn name_segment(&self, head: &Head) -> io::Result<Arc<dyn DiskFile>> {
        let (spare, path) = (self.dir.join(SPARE), path(&self.dir, head.number));
        let file = self.host.disk.open(&spare, How::Write)?;
        file.write_at(&head.encode(), 0)?;
        file.sync_data()?;
        self.host.disk.rename(&spare, &path)?;
        self.host.disk.sync_dir(&self.dir)?;
        Ok(file)
    }

    /// Makes a file of real zeros, because extents that are only reserved would have to be converted at the first sync of
    /// each; a little at a time.
    fn make(&self) -> io::Result<()> {
        let (part, whole) = (self.dir.join(PART), self.dir.join(SPARE));
        let made = self.fill(&part).and_then(|()| self.host.disk.rename(&part, &whole));
        if made.is_err() {
            // What there is of it may be what others lack.
            let _ = self.host.disk.remove(&part);
        }
        made?;
        self.host.disk.sync_dir(&self.dir)
    }

    fn fill(&self, part: &Path) -> io::Result<()> {
        let file = self.host.disk.open(part, How::Create)?;
        let length = self.host.sizes.segment;
        file.reserve(0, length)?;
        let zeros = vec![0; STEP_BYTES.min(length) as usize];
        for at in (0..length).step_by(STEP_BYTES as usize) {
            // Whoever holds the lock is in `become_segment`, and waits for this.
            if self.state.try_lock().is_some_and(|state| state.stop && !state.urgent) {
                return Err(io::Error::other("stopped"));
            }
            file.write_at(&zeros[..STEP_BYTES.min(length - at) as usize], at)?;
            file.sync_data()?;
        }
        Ok(())
    }
}
