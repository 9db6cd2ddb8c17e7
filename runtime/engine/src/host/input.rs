//! Standard input: what somebody who talks with a command says, or nothing.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::io::{AsyncRead, ReadBuf};
use wasmtime_wasi::cli::{IsTerminal, StdinStream};
use wasmtime_wasi::p2::{InputStream, Pollable, StreamError, StreamResult};

use crate::Pipe;

/// The guest's end of it.
#[derive(Clone)]
pub(crate) struct Input {
    pipe: Pipe,
    is_terminal: bool,
}

impl Input {
    pub(crate) fn new(pipe: Pipe, is_terminal: bool) -> Input {
        Input { pipe, is_terminal }
    }
}

impl IsTerminal for Input {
    fn is_terminal(&self) -> bool {
        self.is_terminal
    }
}

impl StdinStream for Input {
    fn async_stream(&self) -> Box<dyn AsyncRead + Send + Sync> {
        Box::new(self.clone())
    }

    fn p2_stream(&self) -> Box<dyn InputStream> {
        Box::new(self.clone())
    }
}

#[async_trait::async_trait]
impl Pollable for Input {
    async fn ready(&mut self) {
        poll_fn(|context| self.pipe.poll_readable(context)).await;
    }
}

impl InputStream for Input {
    fn read(&mut self, size: usize) -> StreamResult<Bytes> {
        self.pipe.try_read(size).ok_or(StreamError::Closed)
    }
}

impl AsyncRead for Input {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Some(bytes) = ready!(self.pipe.poll_read(context, buffer.remaining())) {
            buffer.put_slice(&bytes);
        }
        Poll::Ready(Ok(()))
    }
}
