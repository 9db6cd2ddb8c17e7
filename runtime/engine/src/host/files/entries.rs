//! What is in a directory, read a part at a time: however large it is, the host holds one part of it, and a thread is held only
//! while it reads one.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, openat, statat};
use tokio::task::JoinHandle;

use super::Opened;
use super::turns::Permit;

/// Entries that are read at a time.
const PART: usize = 128;
/// What a part takes, with the longest names there are, and what the system library reads ahead.
pub(super) const BYTES: u64 = (PART * (64 + 256) + (32 << 10)) as u64;

/// An entry as the kernel has it.
#[derive(Debug)]
pub(super) struct Entry {
    pub kind: FileType,
    pub name: String,
}

/// Why there is no entry.
#[derive(Debug)]
pub(super) enum Failure {
    Io(io::Error),
    /// A name that is no UTF-8.
    Name,
}

type Part = VecDeque<Result<Entry, Failure>>;

enum Source {
    /// The guest's own handle of the directory.
    Unopened(Arc<File>),
    Opened(Dir),
    /// A thread has it.
    Read(JoinHandle<(Option<Dir>, Part)>),
    Ended,
}

/// The entries of a directory that a guest has not read yet.
pub(super) struct Entries {
    source: Source,
    part: Part,
    open: Opened,
}

impl Entries {
    pub fn new(dir: Arc<File>, open: Opened) -> Entries {
        Entries { source: Source::Unopened(dir), part: Part::new(), open }
    }

    /// The next one; `None` after the last.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Entry, Failure>>> {
        loop {
            if let Some(entry) = self.part.pop_front() {
                return Poll::Ready(Some(entry));
            }
            match &mut self.source {
                Source::Ended => return Poll::Ready(None),
                Source::Read(reading) => {
                    let read = ready!(Pin::new(reading).poll(cx));
                    let (dir, part) = read.unwrap_or_else(|error| (None, failed(io::Error::other(error))));
                    (self.source, self.part) = (dir.map_or(Source::Ended, Source::Opened), part);
                }
                Source::Unopened(_) | Source::Opened(_) => {
                    let Some(turn) = ready!(self.open.turns.poll_next(cx)) else { return Poll::Ready(None) };
                    self.source = match std::mem::replace(&mut self.source, Source::Ended) {
                        Source::Unopened(dir) => reading(turn, move || open(&dir)),
                        Source::Opened(dir) => reading(turn, || Ok(dir)),
                        other => other,
                    };
                }
            }
        }
    }

    /// Nobody waits for the next one any more.
    pub fn leave(&mut self) {
        self.open.turns.leave();
    }
}

fn reading(turn: Permit, open: impl FnOnce() -> io::Result<Dir> + Send + 'static) -> Source {
    Source::Read(tokio::task::spawn_blocking(move || {
        let _turn = turn;
        match open() {
            Ok(dir) => read_part(dir),
            Err(error) => (None, failed(error)),
        }
    }))
}

/// Anew, with a position of its own: the guest's handle may be one that only names the directory.
fn open(dir: &File) -> io::Result<Dir> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(Dir::new(openat(dir, c".", flags, Mode::empty())?)?)
}

fn failed(error: io::Error) -> Part {
    Part::from([Err(Failure::Io(error))])
}

/// The directory, if there may be more in it.
fn read_part(mut dir: Dir) -> (Option<Dir>, Part) {
    let mut part = Part::with_capacity(PART);
    while part.len() < PART {
        let Some(entry) = dir.read() else { return (None, part) };
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) => {
                part.push_back(Err(Failure::Io(error.into())));
                return (None, part);
            }
        };
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let kind = match entry.file_type() {
            // Not every file system says.
            FileType::Unknown => dir
                .fd()
                .and_then(|dir| statat(dir, name, AtFlags::SYMLINK_NOFOLLOW))
                .map_or(FileType::Unknown, |stat| FileType::from_raw_mode(stat.st_mode)),
            known => known,
        };
        let name = name.to_str().map(str::to_owned).map_err(|_| Failure::Name);
        part.push_back(name.map(|name| Entry { kind, name }));
    }
    (Some(dir), part)
}
