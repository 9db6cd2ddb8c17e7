//! A stream whose small writes go out together.
//!
//! HTTP/2 writes and flushes each frame by itself, and a Go client takes no frame above 16 KiB: of a long list every frame would be
//! a system call and two TLS records, and of a short answer its head and its body. Here writes are gathered while the
//! connection works, and go out when it has nothing more to do now ([`Cork::after`]) or when there are enough of them.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What is gathered at most. More goes out at once, and waits where the client does not take it.
pub const GATHERED_MAX: usize = 64 << 10;

/// A stream that gathers what is written to it.
#[derive(Debug)]
pub struct Corked<S>(Arc<Mutex<Inner<S>>>);

/// The other end of it, which lets go what was gathered.
#[derive(Debug)]
pub struct Cork<S>(Arc<Mutex<Inner<S>>>);

#[derive(Debug)]
struct Inner<S> {
    stream: S,
    gathered: Vec<u8>,
    /// How many bytes of it are out.
    out: usize,
    /// Whether the stream has taken something that it may not have sent: TLS keeps records for which the socket has no room.
    unsent: bool,
    /// Whether a flush may wait for [`Cork`].
    corked: bool,
    /// What went wrong when nobody was there to be told.
    failed: Option<io::Error>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Corked<S> {
    /// Gathers for `stream` from now on.
    pub fn new(stream: S) -> (Corked<S>, Cork<S>) {
        let inner = Inner { stream, gathered: Vec::new(), out: 0, unsent: false, corked: true, failed: None };
        let inner = Arc::new(Mutex::new(inner));
        (Corked(inner.clone()), Cork(inner))
    }

    fn lock(&self) -> MutexGuard<'_, Inner<S>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Inner<S> {
    /// Gives all that was gathered to the stream, and has it send that.
    fn let_go(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.out < self.gathered.len() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.gathered[self.out..]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.out += written;
            self.unsent = true;
        }
        if !self.gathered.is_empty() {
            // An idle connection holds nothing.
            (self.gathered, self.out) = (Vec::new(), 0);
        }
        if self.unsent {
            ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
            self.unsent = false;
        }
        Poll::Ready(Ok(()))
    }

    /// How much may be written; waits where nothing may.
    fn room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.gathered.len() >= GATHERED_MAX
            && let Poll::Ready(Err(error)) = self.let_go(cx)
        {
            return Poll::Ready(Err(error));
        }
        match GATHERED_MAX - self.gathered.len() {
            0 => Poll::Pending,
            room => Poll::Ready(Ok(room)),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Corked<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.lock();
        if let Some(error) = inner.failed.take() {
            return Poll::Ready(Err(error));
        }
        // Whoever has the stream of an upgrade may read first; its peer waits for what is still here.
        if !inner.corked
            && let Poll::Ready(Err(error)) = inner.let_go(cx)
        {
            return Poll::Ready(Err(error));
        }
        Pin::new(&mut inner.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Corked<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut inner = self.lock();
        if let Some(error) = inner.failed.take() {
            return Poll::Ready(Err(error));
        }
        let mut room = ready!(inner.room(cx))?;
        let before = room;
        for slice in slices {
            let taken = slice.len().min(room);
            inner.gathered.extend_from_slice(&slice[..taken]);
            room -= taken;
            if room == 0 {
                break;
            }
        }
        Poll::Ready(Ok(before - room))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.lock();
        // A connection that neither reads nor writes now flushes.
        if let Some(error) = inner.failed.take() {
            return Poll::Ready(Err(error));
        }
        if inner.corked { Poll::Ready(Ok(())) } else { inner.let_go(cx) }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.lock();
        ready!(inner.let_go(cx))?;
        Pin::new(&mut inner.stream).poll_shutdown(cx)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Cork<S> {
    fn lock(&self) -> MutexGuard<'_, Inner<S>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets go what `connection`, which works on the [`Corked`] end, has gathered in this poll of it.
    pub fn after<T>(&self, polled: Poll<T>, cx: &mut Context<'_>) -> Poll<T> {
        let mut inner = self.lock();
        if polled.is_ready() {
            // What comes after it, an upgrade, flushes by itself.
            inner.corked = false;
        }
        // Where the client does not take it, the stream wakes this task when it does. The connection hears of an error when it
        // reads or writes next, which is now; what could not be sent is not tried again.
        if let Poll::Ready(Err(error)) = inner.let_go(cx) {
            (inner.gathered, inner.out, inner.failed) = (Vec::new(), 0, Some(error));
            cx.waker().wake_by_ref();
        }
        polled
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::future::poll_fn;
    use std::task::Waker;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// Says what it is told to, and remembers what it got.
    #[derive(Default)]
    struct Scripted {
        answers: VecDeque<Poll<io::Result<()>>>,
        writes: Vec<usize>,
        /// How often it has nothing to say to a flush, yet.
        holds: usize,
        flushed: usize,
    }

    impl AsyncRead for Scripted {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    impl AsyncWrite for Scripted {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            match self.answers.pop_front() {
                Some(Poll::Pending) => Poll::Pending,
                Some(Poll::Ready(Err(error))) => Poll::Ready(Err(error)),
                Some(Poll::Ready(Ok(()))) | None => {
                    self.writes.push(bytes.len());
                    Poll::Ready(Ok(bytes.len()))
                }
            }
        }

        fn poll_flush(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            match self.holds.checked_sub(1) {
                Some(holds) => {
                    self.holds = holds;
                    Poll::Pending
                }
                None => {
                    self.flushed += 1;
                    Poll::Ready(Ok(()))
                }
            }
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn scripted(answers: impl Into<VecDeque<Poll<io::Result<()>>>>) -> (Corked<Scripted>, Cork<Scripted>) {
        Corked::new(Scripted { answers: answers.into(), ..Scripted::default() })
    }

    fn writes(cork: &Cork<Scripted>) -> Vec<usize> {
        cork.lock().stream.writes.clone()
    }

    #[tokio::test]
    async fn frames_that_are_flushed_one_by_one_go_out_together() {
        let (mut corked, cork) = scripted([]);
        for _ in 0..3 {
            corked.write_all(&[1; 16_393]).await.unwrap();
            corked.flush().await.unwrap();
        }
        assert_eq!(writes(&cork), [0; 0], "nothing before the connection is done for now");
        poll_fn(|cx| cork.after(Poll::Ready(()), cx)).await;
        assert_eq!(writes(&cork), [3 * 16_393]);
    }

    #[tokio::test]
    async fn what_is_too_much_to_be_kept_goes_out_at_once() {
        let (mut corked, cork) = scripted([]);
        corked.write_all(&[1; 3 * GATHERED_MAX]).await.unwrap();
        assert_eq!(writes(&cork), [GATHERED_MAX; 2]);
        corked.shutdown().await.unwrap();
        assert_eq!(writes(&cork), [GATHERED_MAX; 3]);
    }

    #[test]
    fn whoever_has_too_much_waits_for_the_client() {
        let (mut corked, _cork) = scripted([Poll::Pending]);
        let mut cx = Context::from_waker(Waker::noop());
        let all = [1; GATHERED_MAX];
        assert!(matches!(Pin::new(&mut corked).poll_write(&mut cx, &all), Poll::Ready(Ok(GATHERED_MAX))));
        assert!(Pin::new(&mut corked).poll_write(&mut cx, &all).is_pending());
    }

    #[test]
    fn what_an_upgrade_left_behind_goes_out_when_its_stream_is_read() {
        let (mut corked, cork) = scripted([Poll::Pending]);
        let mut cx = Context::from_waker(Waker::noop());
        assert!(Pin::new(&mut corked).poll_write(&mut cx, b"101").is_ready());
        assert!(cork.after(Poll::Ready(()), &mut cx).is_ready());
        assert_eq!(writes(&cork), [0; 0], "the client did not take it");
        let mut buffer = [0; 8];
        assert!(Pin::new(&mut corked).poll_read(&mut cx, &mut ReadBuf::new(&mut buffer)).is_pending());
        assert_eq!(writes(&cork), [3]);
        // From now on a flush is one.
        assert!(Pin::new(&mut corked).poll_write(&mut cx, b"more").is_ready());
        assert!(Pin::new(&mut corked).poll_flush(&mut cx).is_ready());
        assert_eq!(writes(&cork), [3, 4]);
    }

    #[test]
    fn what_the_stream_took_and_did_not_send_is_flushed_again() {
        let (mut corked, cork) = Corked::new(Scripted { holds: 1, ..Scripted::default() });
        let mut cx = Context::from_waker(Waker::noop());
        assert!(Pin::new(&mut corked).poll_write(&mut cx, b"the end").is_ready());
        for flushed in [0, 1, 1] {
            assert!(cork.after(Poll::<()>::Pending, &mut cx).is_pending());
            assert_eq!(cork.lock().stream.flushed, flushed);
        }
    }

    #[tokio::test]
    async fn an_error_ends_the_connection_whatever_it_does_next() {
        for reads in [true, false] {
            let (mut corked, cork) = scripted([Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))]);
            corked.write_all(b"an answer").await.unwrap();
            assert!(cork.after(Poll::<()>::Pending, &mut Context::from_waker(Waker::noop())).is_pending());
            let told = if reads { corked.read(&mut [0]).await.map(drop) } else { corked.flush().await };
            assert_eq!(told.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
            assert!(cork.after(Poll::<()>::Pending, &mut Context::from_waker(Waker::noop())).is_pending());
            assert_eq!(writes(&cork), [0; 0], "it is not tried again");
        }
    }
}
