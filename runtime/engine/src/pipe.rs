//! Bytes on their way between a guest and whoever talks with it: so many at most, and the quicker side waits.
//!
//! A guest's standard input is one, with the guest at its reading end; its output is one (as [`Sink`]) where somebody follows it who
//! may be slow. All handles that a guest has of a stream are the same pipe.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use parking_lot::Mutex;

use crate::Sink;
use crate::spec::WRITE_BYTES_MAX;

/// Bytes that wait in a pipe.
const BYTES_MAX: usize = 64 << 10;
/// Bytes that are taken out at once.
const CHUNK_BYTES_MAX: usize = 16 << 10;

/// Wakers of who waits: more than those for whom a guest has handles.
const WAITING_MAX: usize = 10_000;

/// A pipe; its clones are the same one.
#[derive(Clone, Debug, Default)]
pub struct Pipe(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    bytes: BytesMut,
    /// Nothing more comes.
    is_ended: bool,
    /// Nobody reads any more: what comes is dropped.
    is_abandoned: bool,
    /// Who reads has had everything, and wants more.
    is_asked: bool,
    /// Who waits for a change, at either end.
    waiting: Vec<Waker>,
}

impl State {
    fn room(&self) -> usize {
        match self.is_abandoned {
            true => usize::MAX,
            false => BYTES_MAX.saturating_sub(self.bytes.len()),
        }
    }

    fn add(&mut self, bytes: &[u8]) {
        if !self.is_abandoned {
            self.bytes.extend_from_slice(bytes);
            self.is_asked &= bytes.is_empty();
        }
    }

    /// Whether everything was read, and more is wanted or none comes; or nobody reads.
    fn is_drained(&self) -> bool {
        self.is_abandoned || self.bytes.is_empty() && (self.is_asked || self.is_ended)
    }

    fn wait(&mut self, context: &Context<'_>) {
        if self.waiting.iter().any(|waker| waker.will_wake(context.waker())) {
            return;
        }
        if self.waiting.len() == WAITING_MAX {
            // One task by many wakers, most of which nobody waits for any more: who still does comes again.
            self.waiting.drain(..).for_each(Waker::wake);
        }
        self.waiting.push(context.waker().clone());
    }
}

impl Pipe {
    /// Changes something, and wakes who waits for it.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.0.lock();
        let changed = change(&mut state);
        let waiting = std::mem::take(&mut state.waiting);
        // Who is woken may look at once.
        drop(state);
        waiting.into_iter().for_each(Waker::wake);
        changed
    }

    /// Writes all of it, as there is room; false when nobody reads any more. Dropped, it has written a part.
    pub async fn write_all(&self, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            poll_fn(|context| self.poll_room(context)).await;
            let (now, later) = bytes.split_at(bytes.len().min(self.room()));
            self.write(now);
            bytes = later;
        }
        !self.0.lock().is_abandoned
    }

    /// Says that nothing more comes.
    pub fn end(&self) {
        self.change(|state| state.is_ended = true);
    }

    /// Whether nothing more comes.
    pub fn is_ended(&self) -> bool {
        self.0.lock().is_ended
    }

    /// Waits until whoever reads has read everything and wants more, or reads no more: then what he does with it is done, as far as he
    /// does one thing after another. Cancel-safe.
    pub async fn drained(&self) {
        poll_fn(|context| {
            let mut state = self.0.lock();
            if state.is_drained() {
                return Poll::Ready(());
            }
            state.wait(context);
            Poll::Pending
        })
        .await;
    }

    /// Says that nobody reads any more.
    pub fn abandon(&self) {
        self.change(|state| {
            state.is_abandoned = true;
            state.bytes = BytesMut::new();
        });
    }

    /// Reads what there is, as soon as there is something; none at the end. Cancel-safe.
    pub async fn read(&self) -> Option<Bytes> {
        poll_fn(|context| self.poll_read(context, CHUNK_BYTES_MAX)).await
    }

    pub(crate) fn poll_read(&self, context: &Context<'_>, bytes_max: usize) -> Poll<Option<Bytes>> {
        ready!(self.poll_readable(context));
        let bytes = self.try_read(bytes_max);
        Poll::Ready(bytes)
    }

    /// Whether there is something, or nothing more comes.
    pub(crate) fn poll_readable(&self, context: &Context<'_>) -> Poll<()> {
        let mut state = self.0.lock();
        if !state.bytes.is_empty() || state.is_ended || state.is_abandoned {
            return Poll::Ready(());
        }
        let told = self.ask(&mut state);
        state.wait(context);
        drop(state);
        told.into_iter().for_each(Waker::wake);
        Poll::Pending
    }

    /// Who reads finds nothing; returns who is to be told of it.
    fn ask(&self, state: &mut State) -> Vec<Waker> {
        match std::mem::replace(&mut state.is_asked, true) {
            true => Vec::new(),
            false => std::mem::take(&mut state.waiting),
        }
    }

    /// What there is, perhaps nothing; none at the end.
    pub(crate) fn try_read(&self, bytes_max: usize) -> Option<Bytes> {
        {
            let mut state = self.0.lock();
            if state.bytes.is_empty() {
                if state.is_ended || state.is_abandoned {
                    return None;
                }
                let told = self.ask(&mut state);
                drop(state);
                told.into_iter().for_each(Waker::wake);
                return Some(Bytes::new());
            }
        }
        Some(self.change(|state| {
            let length = state.bytes.len().min(bytes_max).min(CHUNK_BYTES_MAX);
            // Copied, so that what has been read is not kept by what has not.
            let bytes = Bytes::copy_from_slice(&state.bytes[..length]);
            state.bytes.advance(length);
            bytes
        }))
    }
}

impl Sink for Pipe {
    fn take(&self, bytes: &[u8]) -> bool {
        self.change(|state| {
            let fits = state.is_abandoned || state.bytes.len() + bytes.len() <= BYTES_MAX + WRITE_BYTES_MAX;
            if fits {
                state.add(bytes);
            }
            fits
        })
    }

    fn write(&self, bytes: &[u8]) {
        self.change(|state| state.add(bytes));
    }

    fn room(&self) -> usize {
        self.0.lock().room()
    }

    fn poll_room(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut state = self.0.lock();
        if state.room() > 0 {
            return Poll::Ready(());
        }
        state.wait(context);
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use super::*;

    #[tokio::test]
    async fn the_quicker_side_waits() {
        let pipe = Pipe::default();
        let written = vec![7; 3 * BYTES_MAX];
        let writing = async {
            assert!(pipe.write_all(&written).await);
            pipe.end();
        };
        let mut read = Vec::new();
        let reading = async {
            while let Some(bytes) = pipe.read().await {
                assert!(pipe.0.lock().bytes.len() <= BYTES_MAX);
                read.extend_from_slice(&bytes);
            }
        };
        tokio::join!(writing, reading);
        assert_eq!(read, written);
    }

    #[tokio::test]
    async fn who_waits_is_woken_by_the_end_and_by_who_leaves() {
        let pipe = Pipe::default();
        let mut reading = pin!(pipe.read());
        assert!(futures::poll!(reading.as_mut()).is_pending());
        pipe.end();
        assert_eq!(reading.await, None);
        let pipe = Pipe::default();
        let full = vec![0; BYTES_MAX + 1];
        let mut writing = pin!(pipe.write_all(&full));
        assert!(futures::poll!(writing.as_mut()).is_pending());
        assert_eq!(pipe.room(), 0);
        pipe.abandon();
        assert!(!writing.await, "nobody reads it");
        assert_eq!(pipe.0.lock().bytes.len(), 0);
    }

    #[tokio::test]
    async fn it_is_drained_when_its_reader_comes_back_for_more() {
        let pipe = Pipe::default();
        pipe.write(b"ab");
        let mut drained = pin!(pipe.drained());
        assert!(futures::poll!(drained.as_mut()).is_pending());
        assert_eq!(pipe.read().await.as_deref(), Some(&b"ab"[..]));
        assert!(futures::poll!(drained.as_mut()).is_pending(), "what he has read he is about to do");
        assert_eq!(pipe.try_read(1).as_deref(), Some(&b""[..]));
        drained.await;
        pipe.write(b"c");
        assert!(futures::poll!(pin!(pipe.drained())).is_pending());
        assert_eq!(pipe.read().await.as_deref(), Some(&b"c"[..]));
        // Who waits for that is woken by who waits for more.
        let (reading, draining) = (pipe.read(), pipe.drained());
        tokio::select! {
            _ = reading => unreachable!("nothing is written"),
            () = draining => {}
        }
        assert!(!pipe.is_ended());
        pipe.end();
        assert!(pipe.is_ended());
        pipe.drained().await;
        let unread = Pipe::default();
        unread.write(b"d");
        unread.abandon();
        unread.drained().await;
    }

    #[test]
    fn who_waits_again_and_again_is_not_kept_each_time() {
        struct Other;
        impl std::task::Wake for Other {
            fn wake(self: Arc<Self>) {}
        }
        let pipe = Pipe::default();
        let one = Waker::from(Arc::new(Other));
        for _ in 0..100 {
            assert!(pin!(pipe.read()).poll(&mut Context::from_waker(&one)).is_pending());
        }
        assert_eq!(pipe.0.lock().waiting.len(), 1);
        // Nor by wakers that do not know each other.
        for _ in 0..WAITING_MAX + 100 {
            let other = Waker::from(Arc::new(Other));
            assert!(pin!(pipe.read()).poll(&mut Context::from_waker(&other)).is_pending());
        }
        assert!(pipe.0.lock().waiting.len() <= WAITING_MAX);
    }
}
