//! Files as streams of 0.3: each has a descriptor of its container's, and a turn while a thread works for it.

use std::fs::File;
use std::io::{self, IoSlice};
use std::os::unix::fs::FileExt as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use rustix::io::{ReadWriteFlags, pwritev2};
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, spawn_blocking};
use wasmtime::StoreContextMut;
use wasmtime::component::{Destination, Source, StreamConsumer, StreamProducer, StreamResult};
use wasmtime_wasi::p3::bindings::filesystem::types::{DirectoryEntry, ErrorCode};

use super::entries::{Entries, Failure};
use super::{Opened, kind_of_p3};
use crate::guest::Guest;

/// Bytes that are read or written at a time.
pub(super) const CHUNK: usize = 64 << 10;

/// How a stream ends, for the guest's future.
pub(super) struct Outcome(Option<oneshot::Sender<Result<(), ErrorCode>>>);

impl Outcome {
    pub fn new() -> (Outcome, oneshot::Receiver<Result<(), ErrorCode>>) {
        let (sender, receiver) = oneshot::channel();
        (Outcome(Some(sender)), receiver)
    }

    pub fn end(&mut self, result: Result<(), ErrorCode>) {
        if let Some(sender) = self.0.take() {
            // It may not be waited for.
            let _ = sender.send(result);
        }
    }
}

impl Drop for Outcome {
    fn drop(&mut self) {
        self.end(Ok(()));
    }
}

/// A file that is read.
pub(super) struct Reader {
    pub file: Arc<File>,
    pub offset: u64,
    pub outcome: Outcome,
    pub open: Opened,
    pub task: Option<JoinHandle<io::Result<BytesMut>>>,
}

impl StreamProducer<Guest> for Reader {
    type Item = u8;
    type Buffer = BytesMut;

    fn poll_produce<'a>(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut store: StoreContextMut<'a, Guest>,
        mut to: Destination<'a, u8, BytesMut>,
        finish: bool,
    ) -> Poll<wasmtime::Result<StreamResult>> {
        if to.remaining(&mut store) == Some(0) {
            return Poll::Ready(Ok(StreamResult::Completed));
        }
        // What a thread has read while nobody wanted it is there for the next one.
        let read = match self.poll_read(cx) {
            Poll::Pending if finish => {
                self.open.turns.leave();
                return Poll::Ready(Ok(StreamResult::Cancelled));
            }
            polled => ready!(polled),
        };
        match read {
            Ok(bytes) if bytes.is_empty() => self.outcome.end(Ok(())),
            Ok(bytes) => {
                self.offset = self.offset.saturating_add(bytes.len() as u64);
                to.set_buffer(bytes);
                return Poll::Ready(Ok(StreamResult::Completed));
            }
            Err(error) => self.outcome.end(Err(error.into())),
        }
        Poll::Ready(Ok(StreamResult::Dropped))
    }
}

impl Reader {
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<BytesMut>> {
        let task = match &mut self.task {
            Some(task) => task,
            None => {
                let turn = ready!(self.open.turns.poll_next(cx));
                let (file, offset) = (self.file.clone(), self.offset);
                self.task.insert(spawn_blocking(move || {
                    let _turn = turn;
                    let mut bytes = BytesMut::zeroed(CHUNK);
                    let count = file.read_at(&mut bytes, offset)?;
                    bytes.truncate(count);
                    Ok(bytes)
                }))
            }
        };
        let read = ready!(Pin::new(task).poll(cx));
        self.task = None;
        Poll::Ready(read.unwrap_or_else(|error| Err(io::Error::other(error))))
    }
}

/// Where a file is written.
#[derive(Clone, Copy)]
pub(super) enum Place {
    End,
    At(u64),
}

/// A file that is written.
pub(super) struct Writer {
    pub file: Arc<File>,
    pub place: Place,
    pub outcome: Outcome,
    pub open: Opened,
    pub task: Option<JoinHandle<io::Result<usize>>>,
}

impl StreamConsumer<Guest> for Writer {
    type Item = u8;

    fn poll_consume(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        store: StoreContextMut<'_, Guest>,
        from: Source<'_, u8>,
        finish: bool,
    ) -> Poll<wasmtime::Result<StreamResult>> {
        let mut from = from.as_direct(store);
        if self.task.is_none() {
            let turn = match self.open.turns.poll_next(cx) {
                Poll::Pending if finish => {
                    self.open.turns.leave();
                    return Poll::Ready(Ok(StreamResult::Cancelled));
                }
                polled => ready!(polled),
            };
            let (file, place) = (self.file.clone(), self.place);
            let bytes = from.remaining();
            let bytes = bytes[..bytes.len().min(CHUNK)].to_vec();
            self.task = Some(spawn_blocking(move || {
                let _turn = turn;
                match place {
                    Place::At(offset) => file.write_at(&bytes, offset),
                    Place::End => Ok(pwritev2(&*file, &[IoSlice::new(&bytes)], 0, ReadWriteFlags::APPEND)?),
                }
            }));
        }
        // What a thread writes is written: it is waited for, whatever is wished.
        let Some(task) = &mut self.task else { return Poll::Pending };
        let written = ready!(Pin::new(task).poll(cx));
        self.task = None;
        match written.unwrap_or_else(|error| Err(io::Error::other(error))) {
            Ok(count) => {
                from.mark_read(count);
                if let Place::At(offset) = &mut self.place {
                    *offset = offset.saturating_add(count as u64);
                }
                Poll::Ready(Ok(StreamResult::Completed))
            }
            Err(error) => {
                self.outcome.end(Err(error.into()));
                Poll::Ready(Ok(StreamResult::Dropped))
            }
        }
    }
}

/// A directory that is read.
pub(super) struct Listing {
    pub entries: Entries,
    pub outcome: Outcome,
}

impl StreamProducer<Guest> for Listing {
    type Item = DirectoryEntry;
    type Buffer = Option<DirectoryEntry>;

    fn poll_produce<'a>(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut store: StoreContextMut<'a, Guest>,
        mut to: Destination<'a, DirectoryEntry, Option<DirectoryEntry>>,
        finish: bool,
    ) -> Poll<wasmtime::Result<StreamResult>> {
        if to.remaining(&mut store) == Some(0) {
            return Poll::Ready(Ok(StreamResult::Completed));
        }
        let next = match self.entries.poll_next(cx) {
            Poll::Pending if finish => {
                self.entries.leave();
                return Poll::Ready(Ok(StreamResult::Cancelled));
            }
            polled => ready!(polled),
        };
        let result = match next {
            Some(Ok(entry)) => {
                to.set_buffer(Some(DirectoryEntry { type_: kind_of_p3(entry.kind), name: entry.name }));
                return Poll::Ready(Ok(StreamResult::Completed));
            }
            Some(Err(Failure::Io(error))) => Err(error.into()),
            Some(Err(Failure::Name)) => Err(ErrorCode::IllegalByteSequence),
            None => Ok(()),
        };
        self.outcome.end(result);
        Poll::Ready(Ok(StreamResult::Dropped))
    }
}
