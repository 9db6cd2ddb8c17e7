//! What a route says that a request may have: so many bytes, and so much time in which nothing happens.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use http::{HeaderMap, Response};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::time::{Instant, Sleep};

use crate::{Body, BoxError};

/// Whether the client says that it sends more than this.
pub(super) fn is_larger(headers: &HeaderMap, bytes_max: u64) -> bool {
    let said = headers.get(CONTENT_LENGTH).and_then(|said| said.to_str().ok()?.parse::<u64>().ok());
    said.is_some_and(|bytes| bytes > bytes_max)
}

/// A request's body on its way to the backend.
struct Sent {
    body: Body,
    /// Bytes that may still come.
    left: u64,
    is_larger: Arc<AtomicBool>,
    silence: Option<Arc<Silence>>,
}

/// A request's body of so many bytes at most, of whose frames `silence` hears; and whether it had more.
pub(super) fn sent(body: Body, bytes_max: Option<u64>, silence: Option<Arc<Silence>>) -> (Body, Arc<AtomicBool>) {
    let is_larger: Arc<AtomicBool> = Arc::default();
    if body.is_end_stream() || bytes_max.is_none() && silence.is_none() {
        return (body, is_larger);
    }
    let sent = Sent { body, left: bytes_max.unwrap_or(u64::MAX), is_larger: is_larger.clone(), silence };
    (sent.boxed_unsync(), is_larger)
}

impl http_body::Body for Sent {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if polled.is_ready()
            && let Some(silence) = &self.silence
        {
            silence.broken();
        }
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(data) = frame.data_ref()
        {
            let bytes = data.len() as u64;
            if bytes > self.left {
                self.is_larger.store(true, Relaxed);
                return Poll::Ready(Some(Err("the request's body is larger than its route allows".into())));
            }
            self.left -= bytes;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Since when nothing has gone to the backend.
pub(super) struct Silence {
    began: Instant,
    /// Milliseconds from then.
    broken: AtomicU64,
    max: Duration,
}

impl Silence {
    pub fn new(max: Duration) -> Arc<Silence> {
        Arc::new(Silence { began: Instant::now(), broken: AtomicU64::new(0), max })
    }

    fn broken(&self) {
        self.broken.store(self.began.elapsed().as_millis() as u64, Relaxed);
    }

    /// Waits until there was nothing for too long.
    pub async fn over(&self) {
        loop {
            let over = self.began + Duration::from_millis(self.broken.load(Relaxed)) + self.max;
            if over <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(over).await;
        }
    }
}

/// An answer's body of which something comes all the time.
struct Received {
    body: Body,
    max: Duration,
    clock: Pin<Box<Sleep>>,
    is_waited_for: bool,
}

/// An answer that is broken off when nothing of it comes for so long.
pub(super) fn received(response: Response<Body>, max: Duration) -> Response<Body> {
    response.map(|body| match body.is_end_stream() {
        true => body,
        false => {
            let clock = Box::pin(tokio::time::sleep(max));
            Received { body, max, clock, is_waited_for: false }.boxed_unsync()
        }
    })
}

impl http_body::Body for Received {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if polled.is_ready() {
            self.is_waited_for = false;
            return polled;
        }
        // While the client does not read, nobody waits for the backend.
        if !std::mem::replace(&mut self.is_waited_for, true) {
            let until = Instant::now() + self.max;
            self.clock.as_mut().reset(until);
        }
        match self.clock.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Some(Err("nothing more has come from the backend in time".into()))),
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
