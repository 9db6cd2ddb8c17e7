//! The body of a request, on its way to the guest: how long the guest has waited for more of it.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::task::AtomicWaker;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt;

use crate::{Body, BoxError};

/// What a guest waits for, that only its client can send.
pub(super) struct Awaited {
    began: Instant,
    /// Since when it waits: milliseconds since the beginning, plus one; 0 while it does not.
    since: AtomicU64,
    /// Of the guest.
    waker: AtomicWaker,
}

impl Awaited {
    pub fn new() -> Arc<Awaited> {
        Arc::new(Awaited { began: Instant::now(), since: AtomicU64::new(0), waker: AtomicWaker::new() })
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX - 1) + 1
    }

    /// How long it has waited.
    pub fn waits(&self) -> Duration {
        match self.since.load(SeqCst) {
            0 => Duration::ZERO,
            since => Duration::from_millis(self.now().saturating_sub(since)),
        }
    }

    /// The guest has done something for its client meanwhile: it does not wait for the body alone.
    pub fn moved(&self) {
        let waits = |since| (since != 0).then(|| self.now());
        let _ = self.since.fetch_update(SeqCst, SeqCst, waits);
    }

    fn begin(&self) {
        let _ = self.since.compare_exchange(0, self.now(), SeqCst, SeqCst);
    }

    fn end(&self) {
        self.since.store(0, SeqCst);
    }
}

/// Something has come: from here on it is the guest who has to take it.
impl Wake for Awaited {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.end();
        self.waker.wake();
    }
}

struct Incoming {
    body: Body,
    awaited: Arc<Awaited>,
    /// `awaited` as one.
    waker: Waker,
}

/// A body of which `awaited` knows.
pub(super) fn watched(body: Body, awaited: &Arc<Awaited>) -> Body {
    match body.is_end_stream() {
        true => body,
        false => Incoming { body, awaited: awaited.clone(), waker: awaited.clone().into() }.boxed_unsync(),
    }
}

impl http_body::Body for Incoming {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        this.awaited.waker.register(context.waker());
        // Before it is asked: what comes meanwhile ends it.
        this.awaited.begin();
        let polled = Pin::new(&mut this.body).poll_frame(&mut Context::from_waker(&this.waker));
        if polled.is_ready() {
            this.awaited.end();
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

impl Drop for Incoming {
    fn drop(&mut self) {
        self.awaited.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::StreamBody;

    const SOME: Duration = Duration::from_millis(30);

    #[tokio::test]
    async fn a_guest_waits_from_when_it_asks_until_something_comes() {
        let (send, receive) = tokio::sync::mpsc::unbounded_channel::<&'static str>();
        let frames = futures::stream::unfold(receive, |mut receive| async {
            let text = receive.recv().await?;
            Some((Ok::<_, BoxError>(Frame::data(Bytes::from(text))), receive))
        });
        let awaited = Awaited::new();
        let mut body = watched(StreamBody::new(frames).boxed_unsync(), &awaited);
        tokio::time::sleep(SOME).await;
        assert_eq!(awaited.waits(), Duration::ZERO, "nobody has asked");
        send.send("one").unwrap();
        body.frame().await.unwrap().unwrap();
        assert_eq!(awaited.waits(), Duration::ZERO);
        assert!(tokio::time::timeout(SOME, body.frame()).await.is_err());
        assert!(awaited.waits() >= SOME / 2, "{:?}", awaited.waits());
        // Asking once more does not begin anew, answering does.
        assert!(tokio::time::timeout(SOME, body.frame()).await.is_err());
        assert!(awaited.waits() >= SOME + SOME / 2, "{:?}", awaited.waits());
        awaited.moved();
        assert!(awaited.waits() < SOME);
        // It has come, whenever the guest takes it.
        send.send("two").unwrap();
        assert_eq!(awaited.waits(), Duration::ZERO);
        awaited.moved();
        assert_eq!(awaited.waits(), Duration::ZERO);
        body.frame().await.unwrap().unwrap();
        assert!(tokio::time::timeout(SOME, body.frame()).await.is_err());
        drop(body);
        assert_eq!(awaited.waits(), Duration::ZERO, "it wants no more");
    }
}
