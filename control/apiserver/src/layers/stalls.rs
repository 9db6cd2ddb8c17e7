//! Streams: watches, and what nodes send without an end. Their pieces are small, and counted where they are not
//! ([`account`]): as long as there is no room for a piece, none is made. Watches lose nothing by that, they go on where they
//! are.
//!
//! A watch whose client has stopped reading is let go of after a minute. Nobody asks it for more, so it cannot notice by
//! itself that its time is over, and holds its place and the state that it began with.
//!
//! [`account`]: super::account

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http_body::Frame;
use parking_lot::Mutex;
use tokio::time::Sleep;
use tokio_util::sync::CancellationToken;

use super::account::{Account, COUNTED, Sent};
use super::slot::Slot;
use crate::answer::pieces;
use crate::limits::{Connection, Flow};

/// How often streams are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// Looks after which one that was not asked for more is let go of: a minute.
const LOOKS: u64 = 6;
/// How soon a stream asks again for room; twice as late each time, up to this.
const ASK_AGAIN: Duration = Duration::from_millis(50);
const ASK_AGAIN_MAX: Duration = Duration::from_secs(1);

/// The watches that are open; as many as there are places for them.
#[derive(Default)]
pub(crate) struct Stalls(Arc<Open>);

#[derive(Default)]
struct Open {
    /// Counts looks.
    now: AtomicU64,
    streams: Mutex<(u64, HashMap<u64, Weak<Stream>>)>,
}

struct Stream {
    slot: Arc<Slot>,
    /// The look after which something was given to the client that it has not taken yet; [`TAKEN`] while it waits for more.
    given: AtomicU64,
}

const TAKEN: u64 = u64::MAX;

/// Whose stream it is, where its bytes are counted, and over what they go.
pub(crate) struct To<'a> {
    pub flow: Flow<'a>,
    pub account: Option<&'a Arc<Account>>,
    pub connection: Option<Connection>,
}

impl Stalls {
    /// The same watch, counted, and let go of when its client does not read on.
    pub fn guard(&self, to: To<'_>, response: Response) -> Response {
        let (parts, body) = response.into_parts();
        let stream =
            Arc::new(Stream { slot: Arc::new(Slot::new(body, to.connection)), given: AtomicU64::new(self.0.now()) });
        let number = {
            let mut streams = self.0.streams.lock();
            let number = streams.0;
            streams.0 += 1;
            streams.1.insert(number, Arc::downgrade(&stream));
            number
        };
        let watch = Watch { stream: stream.clone(), number, open: self.0.clone() };
        let counted = to.account.map(|account| Counted::new(account, to.flow));
        Response::from_parts(parts, Body::new(Guarded { slot: stream.slot.clone(), watch: Some(watch), counted }))
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

/// The same stream, counted; who reads it may take a rest for as long as nobody else needs the room.
pub(crate) fn counted(to: To<'_>, response: Response) -> Response {
    let Some(account) = to.account else { return response };
    let (parts, body) = response.into_parts();
    let counted = Some(Counted::new(account, to.flow));
    let slot = Arc::new(Slot::new(body, to.connection));
    Response::from_parts(parts, Body::new(Guarded { slot, watch: None, counted }))
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

/// A watch among those that are looked at.
struct Watch {
    stream: Arc<Stream>,
    number: u64,
    open: Arc<Open>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.open.streams.lock().1.remove(&self.number);
    }
}

/// How the pieces of a stream are counted.
struct Counted {
    account: Arc<Account>,
    flow: Arc<str>,
    /// What is left of a large piece.
    rest: Option<(Sent, Bytes)>,
    /// Until it asks again for room.
    wait: Option<Pin<Box<Sleep>>>,
    next_wait: Duration,
}

impl Counted {
    fn new(account: &Arc<Account>, flow: Flow<'_>) -> Counted {
        Counted { account: account.clone(), flow: Arc::from(flow.name), rest: None, wait: None, next_wait: ASK_AGAIN }
    }

    /// Waits until there is room for a piece.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if let Some(wait) = &mut self.wait {
                ready!(wait.as_mut().poll(cx));
                self.wait = None;
            }
            if self.account.has_room(&self.flow) {
                self.next_wait = ASK_AGAIN;
                return Poll::Ready(());
            }
            self.wait = Some(Box::pin(tokio::time::sleep(self.next_wait)));
            self.next_wait = (self.next_wait * 2).min(ASK_AGAIN_MAX);
        }
    }

    /// The next part of a large piece.
    fn next(&mut self) -> Option<Bytes> {
        let (sent, rest) = self.rest.as_mut()?;
        let part = pieces::next_of(rest).map(|part| sent.give(part));
        if rest.is_empty() {
            self.rest = None;
        }
        part
    }
}

struct Guarded {
    slot: Arc<Slot>,
    watch: Option<Watch>,
    counted: Option<Counted>,
}

impl Guarded {
    fn next_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if let Some(counted) = &mut self.counted {
            if counted.rest.is_some() && self.slot.is_given_up() {
                counted.rest = None;
            }
            if let Some(part) = counted.next() {
                return Poll::Ready(Some(Ok(Frame::data(part))));
            }
            ready!(counted.poll_room(cx));
        }
        let frame = match self.slot.poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => frame,
            other => return other,
        };
        let size = frame.data_ref().map_or(0, Bytes::len);
        let Some(counted) = self.counted.as_mut().filter(|_| size > COUNTED) else {
            return Poll::Ready(Some(Ok(frame)));
        };
        let Ok(data) = frame.into_data() else { return Poll::Ready(None) };
        // It is made already: there was room for one when it was begun.
        let sent = counted.account.open_anyway(&counted.flow, size, true, &self.slot);
        if size <= pieces::PIECE_BYTES {
            return Poll::Ready(Some(Ok(Frame::data(sent.give(data)))));
        }
        counted.rest = Some((sent, data));
        Poll::Ready(counted.next().map(|part| Ok(Frame::data(part))))
    }
}

impl http_body::Body for Guarded {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let Some(watch) = &self.watch else { return self.next_frame(cx) };
        watch.stream.given.store(TAKEN, Ordering::Relaxed);
        let polled = self.next_frame(cx);
        if let Some(watch) = self.watch.as_ref().filter(|_| polled.is_ready()) {
            watch.stream.given.store(watch.open.now(), Ordering::Relaxed);
        }
        polled
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::account::BYTES_MAX;
    use crate::limits::Class;
    use futures::{FutureExt, StreamExt, stream};
    use http_body_util::BodyExt;

    fn to(account: Option<&Arc<Account>>) -> To<'_> {
        To { flow: Flow { class: Class::User, name: "a" }, account, connection: None }
    }

    #[tokio::test]
    async fn a_large_piece_is_cut_and_counted_and_none_is_made_where_there_is_no_room() {
        let account = Account::with(Duration::from_secs(60));
        let made = Arc::new(AtomicU64::new(0));
        let watch = || {
            let made = made.clone();
            let events = stream::repeat_with(move || {
                made.fetch_add(1, Ordering::Relaxed);
                Ok::<_, std::convert::Infallible>(Bytes::from(vec![b'x'; 1 << 20]))
            });
            Stalls::default().guard(to(Some(&account)), Response::new(Body::from_stream(events))).into_body()
        };
        // A thousand clients that take a piece each, and keep it in a buffer.
        let mut watches: Vec<Body> = (0..1_000).map(|_| watch()).collect();
        let mut stashed = Vec::new();
        for watch in &mut watches {
            if let Some(Some(Ok(frame))) = watch.frame().now_or_never() {
                let piece = frame.into_data().unwrap();
                assert_eq!(piece.len(), pieces::PIECE_BYTES);
                stashed.push(piece);
            }
        }
        assert_eq!(stashed.len() as u64, made.load(Ordering::Relaxed), "no more were made");
        assert!(account.bytes() > BYTES_MAX / 4 && account.bytes() <= BYTES_MAX / 2 + (1 << 20));
        // Who reads goes on; the others wait, and are given what was let go of.
        let mut last = watches.pop().unwrap();
        assert!(last.frame().now_or_never().is_none());
        drop((watches, stashed));
        let mut read = 0;
        while read < 1 << 20 {
            read += last.frame().await.unwrap().unwrap().into_data().unwrap().len();
        }
        drop(last);
        assert_eq!(account.bytes(), 0);
    }

    #[tokio::test]
    async fn who_stands_still_loses_its_connection_when_others_need_the_room() {
        let account = Account::with(Duration::from_millis(100));
        let connection = Connection::default();
        let event =
            |size| stream::once(async move { Ok::<_, std::convert::Infallible>(Bytes::from(vec![b'x'; size])) });
        let events = event(BYTES_MAX / 2).chain(stream::pending());
        let to_it = To { connection: Some(connection.clone()), ..to(Some(&account)) };
        let mut still = counted(to_it, Response::new(Body::from_stream(events))).into_body();
        let stashed = still.frame().await;
        let other = To { flow: Flow { class: Class::User, name: "b" }, ..to(Some(&account)) };
        let mut other = counted(other, Response::new(Body::from_stream(event(BYTES_MAX / 2)))).into_body();
        assert!(other.frame().await.unwrap().is_ok());
        // There is nothing left for a third, until the first has stood still for long enough.
        let third = To { flow: Flow { class: Class::User, name: "c" }, ..to(Some(&account)) };
        let mut third = counted(third, Response::new(Body::from_stream(event(1 << 20)))).into_body();
        tokio::time::timeout(Duration::from_secs(30), third.frame()).await.expect("room").unwrap().unwrap();
        tokio::time::timeout(Duration::from_secs(30), connection.is_cut()).await.expect("it is cut");
        assert!(still.frame().await.unwrap().is_err());
        drop((stashed, still, other, third));
        assert_eq!(account.bytes(), 0);
    }

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
        let mut unread = stalls.guard(to(None), endless(held.clone())).into_body();
        assert!(unread.frame().now_or_never().flatten().is_some_and(|frame| frame.is_ok()));
        let quiet = {
            let place = place.clone();
            stream::pending::<Result<Bytes, std::convert::Infallible>>().inspect(move |_| drop(place.clone()))
        };
        let mut quiet = stalls.guard(to(None), Response::new(Body::from_stream(quiet))).into_body();
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
