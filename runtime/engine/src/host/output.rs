//! Standard output and error: straight into the pod's log, or to somebody who follows it. A guest waits for who is slow.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::io::AsyncWrite;
use wasmtime::format_err;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamError, StreamResult};

use crate::spec::WRITE_BYTES_MAX;
use crate::{Sink, slice};

/// From so many bytes on a write may take long.
const LONG_BYTES: usize = 1 << 10;

/// One of the two.
#[derive(Clone)]
pub(crate) struct Output {
    sink: Arc<dyn Sink>,
    is_terminal: bool,
}

impl Output {
    pub(crate) fn new(sink: Arc<dyn Sink>, is_terminal: bool) -> Output {
        Output { sink, is_terminal }
    }

    fn print(&self, bytes: &[u8]) -> bool {
        if bytes.len() >= LONG_BYTES {
            slice::is_long();
        }
        self.sink.take(bytes)
    }
}

impl IsTerminal for Output {
    fn is_terminal(&self) -> bool {
        self.is_terminal
    }
}

impl StdoutStream for Output {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

#[async_trait::async_trait]
impl Pollable for Output {
    async fn ready(&mut self) {
        poll_fn(|context| self.sink.poll_room(context)).await;
    }
}

impl OutputStream for Output {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        // As `wasi:io/streams` has it: more than was permitted is a trap.
        if bytes.len() > WRITE_BYTES_MAX {
            return Err(StreamError::trap(
                "more was written to standard output or error than check-write had permitted",
            ));
        }
        // Permits of several streams that lead to the same place are for the same room.
        if !self.print(&bytes) {
            let why = "another stream has taken the room that check-write had seen";
            return Err(StreamError::LastOperationFailed(format_err!("{why}")));
        }
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(self.sink.room().min(WRITE_BYTES_MAX))
    }
}

impl AsyncWrite for Output {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.sink.poll_room(context));
            let now = &bytes[..bytes.len().min(WRITE_BYTES_MAX).min(self.sink.room())];
            // Somebody else, as who types at a terminal, may have taken the room: none written is an error to a guest.
            if (!now.is_empty() || bytes.is_empty()) && self.print(now) {
                return Poll::Ready(Ok(now.len()));
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use super::*;
    use crate::Pipe;

    #[test]
    fn what_was_not_permitted_is_not_written() {
        let written = Arc::new(AtomicUsize::new(0));
        let sink = written.clone();
        let sink = move |bytes: &[u8]| _ = sink.fetch_add(bytes.len(), Relaxed);
        let mut output = Output::new(Arc::new(sink), false);
        let permitted = output.check_write().unwrap();
        output.write(vec![b'\n'; permitted].into()).unwrap();
        let more = output.write(vec![b'\n'; permitted + 1].into());
        assert!(matches!(more, Err(StreamError::Trap(_))), "{more:?}");
        assert_eq!(written.load(Relaxed), permitted);
    }

    #[tokio::test]
    async fn a_guest_waits_for_who_reads_what_it_prints() {
        let pipe = Pipe::default();
        let output = || Output::new(Arc::new(pipe.clone()), false);
        let (mut output, mut other) = (output(), output());
        while let permitted @ 1.. = output.check_write().unwrap() {
            output.write(vec![b'x'; permitted].into()).unwrap();
        }
        assert!(futures::poll!(output.ready()).is_pending());
        // Its permit may be older than what others have written, once.
        other.write(vec![b'x'; WRITE_BYTES_MAX].into()).unwrap();
        let refused = other.write(vec![b'x'; 1].into());
        assert!(matches!(refused, Err(StreamError::LastOperationFailed(_))), "the room is one: {refused:?}");
        let mut context = Context::from_waker(std::task::Waker::noop());
        assert!(Pin::new(&mut output).poll_write(&mut context, b"x").is_pending(), "nor by WASI 0.3");
        pipe.read().await.unwrap();
        let read = pipe.read().await.unwrap().len();
        output.ready().await;
        assert_eq!(output.check_write().unwrap(), read);
    }

    #[test]
    fn a_guest_by_wasi_0_3_never_writes_nothing() {
        /// Of which the room is taken the first time that somebody looks.
        struct Contested(AtomicUsize);
        impl Sink for Contested {
            fn write(&self, _: &[u8]) {}

            fn room(&self) -> usize {
                self.0.fetch_add(5, Relaxed)
            }
        }
        let mut output = Output::new(Arc::new(Contested(AtomicUsize::new(0))), true);
        let mut context = Context::from_waker(std::task::Waker::noop());
        let written = Pin::new(&mut output).poll_write(&mut context, b"more than that");
        assert!(matches!(written, Poll::Ready(Ok(5))), "{written:?}");
    }
}
