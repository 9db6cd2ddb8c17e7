//! Standard output and error: straight into the pod's log.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::AsyncWrite;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamError, StreamResult};

use crate::{Sink, slice};

/// Bytes that a guest may write at once. Where each of them ends a line, a log has fifty times as many to write.
const WRITE_BYTES_MAX: usize = 16 << 10;

/// From so many bytes on a write may take long.
const LONG_BYTES: usize = 1 << 10;

/// One of the two.
#[derive(Clone)]
pub(crate) struct Output(pub(crate) Arc<dyn Sink>);

impl Output {
    fn print(&self, bytes: &[u8]) {
        if bytes.len() >= LONG_BYTES {
            slice::is_long();
        }
        self.0.write(bytes);
    }
}

impl IsTerminal for Output {
    fn is_terminal(&self) -> bool {
        false
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
    async fn ready(&mut self) {}
}

impl OutputStream for Output {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        // As `wasi:io/streams` has it: more than was permitted is a trap.
        if bytes.len() > WRITE_BYTES_MAX {
            return Err(StreamError::trap(
                "more was written to standard output or error than check-write had permitted",
            ));
        }
        self.print(&bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(WRITE_BYTES_MAX)
    }
}

impl AsyncWrite for Output {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let bytes = bytes.get(..WRITE_BYTES_MAX).unwrap_or(bytes);
        self.print(bytes);
        Poll::Ready(Ok(bytes.len()))
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

    #[test]
    fn what_was_not_permitted_is_not_written() {
        let written = Arc::new(AtomicUsize::new(0));
        let sink = written.clone();
        let sink = move |bytes: &[u8]| _ = sink.fetch_add(bytes.len(), Relaxed);
        let mut output = Output(Arc::new(sink));
        let permitted = output.check_write().unwrap();
        output.write(vec![b'\n'; permitted].into()).unwrap();
        let more = output.write(vec![b'\n'; permitted + 1].into());
        assert!(matches!(more, Err(StreamError::Trap(_))), "{more:?}");
        assert_eq!(written.load(Relaxed), permitted);
    }
}
