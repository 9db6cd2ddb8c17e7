//! Files as streams of 0.2. What is under way runs on a task of its own, which has one of the container's turns until it is
//! done: a stream that rests holds none.

use std::sync::Arc;

use bytes::Bytes;
use futures::executor::block_on;
use tokio::task::JoinHandle;
use wasmtime::format_err;
use wasmtime_wasi::p2::{
    DynInputStream, DynOutputStream, InputStream, OutputStream, Pollable, StreamError, StreamResult,
};
use wasmtime_wasi::runtime::spawn_blocking;

use super::Opened;

/// Read for a guest that waits without having said how much it wants.
const READ_AHEAD: usize = 4096;

/// A stream of wasmtime's, and what it does.
enum Work<S, T> {
    Idle(S),
    /// A task has it.
    Busy(JoinHandle<(S, StreamResult<T>)>),
    Done(S, StreamResult<T>),
    Closed,
}

impl<S: Send + 'static, T: Send + 'static> Work<S, T> {
    /// Begins, if nothing is under way. wasmtime's streams work where they are called, so a thread that may block calls them.
    fn begin<F>(&mut self, open: &Arc<Opened>, work: impl FnOnce(S) -> F + Send + 'static)
    where
        F: Future<Output = (S, StreamResult<T>)> + Send + 'static,
    {
        *self = match std::mem::replace(self, Work::Closed) {
            Work::Idle(stream) => {
                let open = open.clone();
                Work::Busy(tokio::spawn(async move {
                    let turn = open.turns().next().await;
                    let working = spawn_blocking(move || {
                        let _turn = turn;
                        block_on(work(stream))
                    });
                    working.await
                }))
            }
            other => other,
        };
    }

    /// Waits until nothing is under way.
    async fn done(&mut self) {
        if let Work::Busy(task) = self {
            *self = match task.await {
                Ok((stream, result)) => Work::Done(stream, result),
                Err(_) => Work::Closed,
            };
        }
    }
}

/// A file that is read as a stream.
pub(super) struct Reading {
    work: Work<DynInputStream, Bytes>,
    open: Arc<Opened>,
}

impl Reading {
    pub fn new(inner: DynInputStream, open: Opened) -> Reading {
        Reading { work: Work::Idle(inner), open: Arc::new(open) }
    }

    fn begin(&mut self, size: usize) {
        self.work.begin(&self.open, move |mut stream| async move {
            let read = stream.blocking_read(size).await;
            (stream, read)
        });
    }
}

#[async_trait::async_trait]
impl Pollable for Reading {
    async fn ready(&mut self) {
        self.begin(READ_AHEAD);
        self.work.done().await;
    }
}

#[async_trait::async_trait]
impl InputStream for Reading {
    fn read(&mut self, size: usize) -> StreamResult<Bytes> {
        match std::mem::replace(&mut self.work, Work::Closed) {
            Work::Done(stream, Ok(mut bytes)) => {
                let read = bytes.split_to(size.min(bytes.len()));
                self.work = if bytes.is_empty() { Work::Idle(stream) } else { Work::Done(stream, Ok(bytes)) };
                Ok(read)
            }
            Work::Done(_, Err(error)) => Err(error),
            Work::Closed => Err(StreamError::Closed),
            other => {
                self.work = other;
                if size > 0 {
                    self.begin(size);
                }
                // Nothing is there yet.
                Ok(Bytes::new())
            }
        }
    }

    async fn blocking_read(&mut self, size: usize) -> StreamResult<Bytes> {
        self.begin(size.max(1));
        self.work.done().await;
        self.read(size)
    }

    async fn cancel(&mut self) {
        self.work.done().await;
        self.work = Work::Closed;
    }
}

/// A file that is written as a stream: it takes nothing more until what it was given is written.
pub(super) struct Writing {
    work: Work<DynOutputStream, ()>,
    open: Arc<Opened>,
}

impl Writing {
    pub fn new(inner: DynOutputStream, open: Opened) -> Writing {
        Writing { work: Work::Idle(inner), open: Arc::new(open) }
    }

    /// What the last write has come to, told once.
    fn settle(&mut self) -> StreamResult<()> {
        match std::mem::replace(&mut self.work, Work::Closed) {
            Work::Done(stream, Ok(())) => self.work = Work::Idle(stream),
            Work::Done(_, Err(error)) => return Err(error),
            Work::Closed => return Err(StreamError::Closed),
            other => self.work = other,
        }
        Ok(())
    }
}

#[async_trait::async_trait]
impl Pollable for Writing {
    async fn ready(&mut self) {
        self.work.done().await;
    }
}

#[async_trait::async_trait]
impl OutputStream for Writing {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.settle()?;
        if let Work::Busy(_) = self.work {
            return Err(StreamError::Trap(format_err!("write not permitted: check_write not called first")));
        }
        self.work.begin(&self.open, move |mut stream| async move {
            let written = stream.blocking_write_and_flush(bytes).await;
            (stream, written)
        });
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        self.settle()
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        self.settle()?;
        match &mut self.work {
            Work::Idle(stream) => stream.check_write(),
            _ => Ok(0),
        }
    }

    async fn blocking_write_and_flush(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.work.done().await;
        self.write(bytes)?;
        self.work.done().await;
        self.settle()
    }

    /// What was taken is written, although nobody waits for it any more.
    async fn cancel(&mut self) {
        self.work.done().await;
        self.work = Work::Closed;
    }
}
