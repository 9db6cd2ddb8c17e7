//! A request's body that can be sent again when nobody has read much of it.
//!
//! It goes with the request as usual, without being read ahead. When whoever got it drops it, what was read of it (up to a
//! bound) and what was not comes back to [`Replay`], and can be sent elsewhere. A body that somebody still holds is waited for a
//! moment; if it does not come back, there is no second try.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::sync::Notify;

use crate::observe::Stats;
use crate::{Body, BoxError};

/// Bytes of a body that may have been read and can still be sent again.
const REPLAY_BYTES_MAX: usize = 64 << 10;
/// Frames of it: the smallest ones would cost more than their bytes.
const REPLAY_FRAMES_MAX: usize = 256;

/// Bytes of a body that are read before there is anybody to send it to.
pub(crate) const AHEAD_BYTES_MAX: usize = 4 << 10;

/// How long a body is waited for that whoever got it has not let go of yet: a connection that breaks off does so in a task of
/// its own.
const COMES_BACK_WITHIN: Duration = Duration::from_millis(500);

/// Where a body comes back.
#[derive(Default)]
struct Place {
    back: Mutex<Back>,
    came: Notify,
    /// Where its bytes are counted.
    stats: Arc<Stats>,
}

#[derive(Default)]
enum Back {
    /// Somebody has it.
    #[default]
    Away,
    Here(Parts),
    /// It does not come back whole.
    Never,
}

/// Where the body comes back; nowhere, when there is none.
pub(crate) struct Replay(Option<Arc<Place>>);

struct Parts {
    /// Read before, to be read again.
    again: VecDeque<Frame<Bytes>>,
    rest: Body,
}

impl Replay {
    /// The body to send, and where it comes back.
    pub fn of(body: Body, stats: &Arc<Stats>) -> (Body, Replay) {
        if body.is_end_stream() {
            return (body, Replay(None));
        }
        let place = Arc::new(Place { stats: stats.clone(), ..Place::default() });
        (Replayed::body(Parts { again: VecDeque::new(), rest: body }, place.clone()), Replay(Some(place)))
    }

    /// The body once more, if it comes back whole.
    pub async fn again(&self) -> Option<Body> {
        let Some(place) = &self.0 else { return Some(empty()) };
        match place.take() {
            Back::Here(parts) => return Some(Replayed::body(parts, place.clone())),
            Back::Never => return None,
            Back::Away => {}
        }
        // In a box: a request whose body is here at once has no place for the clock in its future.
        let back = Box::pin(tokio::time::timeout(COMES_BACK_WITHIN, async {
            loop {
                let came = place.came.notified();
                match place.take() {
                    Back::Away => came.await,
                    back => return back,
                }
            }
        }));
        match back.await {
            Ok(Back::Here(parts)) => Some(Replayed::body(parts, place.clone())),
            Ok(Back::Never | Back::Away) | Err(_) => None,
        }
    }
}

impl Replay {
    /// Waits for something, and reads the begin of `body` meanwhile, of which nobody has taken anything: how a client that sends a small one
    /// and goes is noticed, since HTTP/1.1 sees nothing of what comes behind a body that is not read. Gives the body back; `None` when it
    /// breaks.
    pub async fn during<T>(&self, body: Body, until: impl Future<Output = T>) -> Option<(T, Body)> {
        drop(body);
        let Some(place) = &self.0 else { return Some((until.await, empty())) };
        let Back::Here(mut parts) = place.take() else { return None };
        let read = async {
            let mut left = AHEAD_BYTES_MAX;
            while left > 0 && parts.again.len() < REPLAY_FRAMES_MAX {
                match parts.rest.frame().await {
                    Some(Ok(frame)) => {
                        left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
                        parts.again.push_back(frame);
                    }
                    Some(Err(_)) => return,
                    None => break,
                }
            }
            std::future::pending().await
        };
        let done = tokio::select! {
            done = until => done,
            () = read => return None,
        };
        Some((done, Replayed::body(parts, place.clone())))
    }
}

impl Place {
    fn take(&self) -> Back {
        std::mem::take(&mut *self.back.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn give(&self, back: Back) {
        *self.back.lock().unwrap_or_else(PoisonError::into_inner) = back;
        // Remembered, when nobody waits yet.
        self.came.notify_one();
    }
}

/// A body of nothing.
pub(crate) fn empty() -> Body {
    http_body_util::Empty::new().map_err(|never| match never {}).boxed_unsync()
}

struct Replayed {
    parts: Option<Parts>,
    /// What was read in this life; `None` when it was too much, or it cannot be repeated.
    read: Option<VecDeque<Frame<Bytes>>>,
    read_bytes: usize,
    place: Arc<Place>,
}

impl Replayed {
    fn body(parts: Parts, place: Arc<Place>) -> Body {
        Replayed { parts: Some(parts), read: Some(VecDeque::new()), read_bytes: 0, place }.boxed_unsync()
    }

    fn remember(&mut self, frame: &Frame<Bytes>) {
        let Some(read) = &mut self.read else { return };
        let copy = match (frame.data_ref(), frame.trailers_ref()) {
            (Some(data), _) => {
                self.read_bytes += data.len();
                Frame::data(data.clone())
            }
            (None, Some(trailers)) => {
                self.read_bytes +=
                    trailers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum::<usize>();
                Frame::trailers(trailers.clone())
            }
            (None, None) => return self.read = None,
        };
        read.push_back(copy);
        if self.read_bytes > REPLAY_BYTES_MAX || read.len() > REPLAY_FRAMES_MAX {
            self.read = None;
        }
    }
}

impl http_body::Body for Replayed {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let Some(parts) = &mut self.parts else { return Poll::Ready(None) };
        let polled = match parts.again.pop_front() {
            Some(frame) => Poll::Ready(Some(Ok(frame))),
            None => Pin::new(&mut parts.rest).poll_frame(cx),
        };
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                Stats::bytes(&self.place.stats.sent_bytes, frame.data_ref().map_or(0, Bytes::len));
                self.remember(frame);
            }
            // The client's own failure is not repeated.
            Poll::Ready(Some(Err(_))) => self.read = None,
            Poll::Ready(None) | Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.parts.as_ref().is_none_or(|parts| parts.again.is_empty() && parts.rest.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        let Some(parts) = &self.parts else { return SizeHint::with_exact(0) };
        let again: u64 = parts.again.iter().filter_map(Frame::data_ref).map(|data| data.len() as u64).sum();
        let rest = parts.rest.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower().saturating_add(again));
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper.saturating_add(again));
        }
        hint
    }
}

impl Drop for Replayed {
    fn drop(&mut self) {
        let (Some(mut parts), Some(mut read)) = (self.parts.take(), self.read.take()) else {
            return self.place.give(Back::Never);
        };
        read.append(&mut parts.again);
        parts.again = read;
        self.place.give(Back::Here(parts));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use futures::{StreamExt, stream};
    use http_body_util::StreamBody;

    use super::*;

    fn body(frames: &[&'static str]) -> Body {
        let frames: Vec<_> = frames.iter().map(|text| Ok(Frame::data(Bytes::from(*text)))).collect();
        StreamBody::new(stream::iter(frames)).boxed_unsync()
    }

    fn of(body: Body) -> (Body, Replay) {
        Replay::of(body, &Arc::default())
    }

    async fn all(body: Body) -> Bytes {
        body.collect().await.unwrap().to_bytes()
    }

    #[tokio::test]
    async fn what_was_read_and_dropped_comes_back_in_order() {
        let (mut first, replay) = of(body(&["one ", "two ", "three"]));
        assert!(replay.again().await.is_none(), "it is still held");
        first.frame().await;
        drop(first);
        let mut second = replay.again().await.unwrap();
        second.frame().await;
        second.frame().await;
        // It is let go of while somebody waits for it.
        let (again, ()) = tokio::join!(replay.again(), async {
            tokio::task::yield_now().await;
            drop(second);
        });
        assert_eq!(all(again.unwrap()).await, "one two three");
        assert_eq!(all(replay.again().await.unwrap()).await, "one two three", "also when it was read to its end");
    }

    #[tokio::test]
    async fn the_begin_is_read_while_nobody_takes_it_and_then_sent_with_the_rest() {
        let large: &'static str = Box::leak("x".repeat(AHEAD_BYTES_MAX).into_boxed_str());
        for (frames, read) in [(vec!["one ", "two"], 2), (vec!["one ", large, "three"], 2), (vec![], 0)] {
            let polled = Arc::new(AtomicUsize::new(0));
            let counted = polled.clone();
            let all_of = frames.concat();
            let frames = stream::iter(frames).map(move |text| {
                counted.fetch_add(1, Relaxed);
                Ok(Frame::data(Bytes::from(text)))
            });
            let (body, replay) = of(StreamBody::new(frames).boxed_unsync());
            let ((), body) = replay.during(body, tokio::task::yield_now()).await.unwrap();
            assert_eq!(polled.load(Relaxed), read);
            assert_eq!(all(body).await, all_of);
            assert_eq!(all(replay.again().await.unwrap()).await, all_of, "it comes back, too");
        }
        let (nothing, replay) = of(empty());
        assert_eq!(all(replay.during(nothing, async {}).await.unwrap().1).await, "");
        // Whoever does not send it whole is let go.
        let frames = [Ok(Frame::data(Bytes::from("one"))), Err("it broke".into())];
        let (body, replay) = of(StreamBody::new(stream::iter(frames)).boxed_unsync());
        assert!(replay.during(body, std::future::pending::<()>()).await.is_none());
    }

    #[tokio::test]
    async fn too_much_does_not_come_back_and_nothing_is_no_effort() {
        let large: &'static str = Box::leak("x".repeat(REPLAY_BYTES_MAX).into_boxed_str());
        let (mut first, replay) = of(body(&[large, "y"]));
        first.frame().await;
        first.frame().await;
        drop(first);
        let known = tokio::time::timeout(COMES_BACK_WITHIN / 2, replay.again()).await.expect("it is not waited for");
        assert!(known.is_none());
        let (nothing, replay) = of(empty());
        drop(nothing);
        assert_eq!(all(replay.again().await.unwrap()).await, "");
    }
}
