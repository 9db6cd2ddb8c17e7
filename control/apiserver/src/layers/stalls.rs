//! Streams whose clients have stopped reading. Nobody asks such a watch for more, so it cannot notice by itself that its time
//! is over, and holds its place and the state that it began with: it is let go of.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http_body::Frame;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::slot::Slot;

/// How often streams are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// Looks after which one that was not asked for more is let go of: a minute.
const LOOKS: u64 = 6;

/// The streams that are open; as many as there are places for them.
#[derive(Default)]
pub(crate) struct Stalls(Arc<Open>);

#[derive(Default)]
struct Open {
    /// Counts looks.
    now: AtomicU64,
    streams: Mutex<(u64, HashMap<u64, Weak<Stream>>)>,
}

struct Stream {
    slot: Slot,
    /// The look after which something was given to the client that it has not taken yet; [`TAKEN`] while it waits for more.
    given: AtomicU64,
}

const TAKEN: u64 = u64::MAX;

impl Stalls {
    /// The same answer, let go of when its client does not read on.
    pub fn guard(&self, response: Response) -> Response {
        let (parts, body) = response.into_parts();
        let stream = Arc::new(Stream { slot: Slot::new(body), given: AtomicU64::new(self.0.now()) });
        let number = {
            let mut streams = self.0.streams.lock();
            let number = streams.0;
            streams.0 += 1;
            streams.1.insert(number, Arc::downgrade(&stream));
            number
        };
        let open = self.0.clone();
        Response::from_parts(parts, Body::new(Guarded { stream, number, open }))
    }

    /// Looks at the streams now and then, until `stopping`.
    pub fn keep(&self, stopping: CancellationToken) -> impl Future<Output = ()> + Send + 'static {
        let open = Arc::downgrade(&self.0);
        async move {
            loop {
                tokio::select! {
                    () = tokio::time::sleep(LOOK_EVERY) => {}
                    () = stopping.cancelled() => return,
                }
                let Some(open) = open.upgrade() else { return };
                open.look();
            }
        }
    }
}

impl Open {
    fn now(&self) -> u64 {
        self.now.load(Ordering::Relaxed)
    }

    fn look(&self) {
        let now = self.now.fetch_add(1, Ordering::Relaxed) + 1;
        let is_still = |given: u64| given != TAKEN && now > given + LOOKS;
        let streams: Vec<Arc<Stream>> = {
            let streams = self.streams.lock();
            let open = streams.1.values().filter_map(Weak::upgrade);
            open.filter(|stream| is_still(stream.given.load(Ordering::Relaxed))).collect()
        };
        streams.iter().for_each(|stream| stream.slot.give_up());
    }
}

struct Guarded {
    stream: Arc<Stream>,
    number: u64,
    open: Arc<Open>,
}

impl http_body::Body for Guarded {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.stream.given.store(TAKEN, Ordering::Relaxed);
        let polled = self.stream.slot.poll_frame(cx);
        if polled.is_ready() {
            self.stream.given.store(self.open.now(), Ordering::Relaxed);
        }
        polled
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.open.streams.lock().1.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::{FutureExt, StreamExt, stream};
    use http_body_util::BodyExt;

    #[test]
    fn a_stream_that_is_not_read_is_let_go_of_and_a_quiet_one_is_not() {
        let stalls = Stalls::default();
        let (held, place) = (Arc::new(()), Arc::new(()));
        let endless = |held: Arc<()>| {
            let events = stream::repeat_with(move || {
                let _ = &held;
                Ok::<_, std::convert::Infallible>(Bytes::from_static(b"event"))
            });
            Response::new(Body::from_stream(events))
        };
        let mut unread = stalls.guard(endless(held.clone())).into_body();
        assert!(unread.frame().now_or_never().flatten().is_some_and(|frame| frame.is_ok()));
        let quiet = {
            let place = place.clone();
            stream::pending::<Result<Bytes, std::convert::Infallible>>().inspect(move |_| drop(place.clone()))
        };
        let mut quiet = stalls.guard(Response::new(Body::from_stream(quiet))).into_body();
        assert!(quiet.frame().now_or_never().is_none());
        for _ in 0..LOOKS {
            stalls.0.look();
        }
        assert_eq!(Arc::strong_count(&held), 2);
        stalls.0.look();
        assert_eq!((Arc::strong_count(&held), Arc::strong_count(&place)), (1, 2));
        assert!(unread.frame().now_or_never().flatten().is_some_and(|frame| frame.is_err()));
        assert!(quiet.frame().now_or_never().is_none(), "it waits for events, and its client for it");
        drop((unread, quiet));
        assert!(stalls.0.streams.lock().1.is_empty());
    }
}
