//! A byte stream with bounds in time, under an HTTP server: a client that does not begin to speak, one that does not finish the
//! head of a request and one that does not read are let go. Costs nothing while bytes flow: clocks run only for who waits.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use crate::turns::Turns;

/// What HTTP/2 begins with.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// A client says something within this time.
const BEGIN_MAX: Duration = Duration::from_secs(30);
/// What a client has begun, a request's head or HTTP/2's preface, is there within this time.
const HEAD_MAX: Duration = Duration::from_secs(10);
/// A client that reads nothing for so long while there is something to read is gone.
const STALL_MAX: Duration = Duration::from_secs(45);

/// How long is waited, at most.
#[derive(Clone, Copy)]
pub(crate) struct Limits {
    /// For the client's first byte.
    pub begin: Duration,
    /// From the first byte of a head to its last.
    pub head: Duration,
    /// For the client to read on.
    pub stall: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { begin: BEGIN_MAX, head: HEAD_MAX, stall: STALL_MAX }
    }
}

/// What a client speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Spoken {
    /// So many bytes of the preface came, and nothing else.
    Unknown(usize),
    Http1,
    /// Or no HTTP at all: whoever speaks it has its own clocks.
    Http2,
}

impl Spoken {
    fn after(self, new: &[u8]) -> Spoken {
        let Spoken::Unknown(known) = self else { return self };
        let expected = &PREFACE[known..PREFACE.len().min(known + new.len())];
        match new.starts_with(expected) && !new.is_empty() {
            false => Spoken::Http1,
            true if known + new.len() >= PREFACE.len() => Spoken::Http2,
            true => Spoken::Unknown(known + new.len()),
        }
    }
}

/// A stream with those bounds.
pub(crate) struct Patient<S> {
    inner: S,
    limits: Limits,
    turns: Arc<Turns>,
    spoken: Spoken,
    /// When what the client says, or has not begun to say, must be a request, and how many there were before it.
    due: Option<(Instant, u64)>,
    /// Runs once somebody waits.
    clock: Option<Pin<Box<Sleep>>>,
    stall: Option<Pin<Box<Sleep>>>,
    is_stalled: bool,
}

impl<S> Patient<S> {
    pub fn new(inner: S, limits: Limits, turns: Arc<Turns>) -> Patient<S> {
        let (spoken, due) = (Spoken::Unknown(0), Some((Instant::now() + limits.begin, turns.begun())));
        Patient { inner, limits, turns, spoken, due, clock: None, stall: None, is_stalled: false }
    }

    fn heard(&mut self, new: &[u8]) {
        let is_first = self.spoken == Spoken::Unknown(0);
        self.spoken = self.spoken.after(new);
        let is_due = self.due.is_some_and(|(_, before)| before == self.turns.begun());
        if self.spoken == Spoken::Http2 || self.turns.is_busy() {
            self.due = None;
        } else if is_first || !is_due {
            self.due = Some((Instant::now() + self.limits.head, self.turns.begun()));
        }
    }

    /// Looks whether a client that says nothing has said nothing for too long.
    fn waits(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some((due, before)) = self.due else { return Poll::Pending };
        if self.turns.begun() != before {
            self.due = None;
            return Poll::Pending;
        }
        let clock = self.clock.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
        if clock.deadline() != due {
            clock.as_mut().reset(due);
        }
        ready!(clock.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not say what it has to say")))
    }

    /// Looks whether a write that waits has waited for too long.
    fn wrote<T>(&mut self, polled: Poll<io::Result<T>>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.is_stalled = false;
            return polled;
        }
        let until = Instant::now() + self.limits.stall;
        let (stall, is_stalled) = (&mut self.stall, &mut self.is_stalled);
        let stall = stall.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
        if !std::mem::replace(is_stalled, true) {
            stall.as_mut().reset(until);
        }
        ready!(stall.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read")))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        match Pin::new(&mut self.inner).poll_read(cx, buf) {
            Poll::Pending => self.waits(cx),
            polled => {
                self.heard(&buf.filled()[before..]);
                polled
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.wrote(polled, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.wrote(polled, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const SHORT: Limits = limits(300);
    const LONG: Limits = limits(600_000);

    const fn limits(millis: u64) -> Limits {
        let limit = Duration::from_millis(millis);
        Limits { begin: limit, head: limit, stall: limit }
    }

    /// Whether a server that wants to read on is told that its client is gone.
    async fn is_cut(server: &mut Patient<tokio::io::DuplexStream>) -> bool {
        let mut byte = [0; 1];
        match tokio::time::timeout(Duration::from_secs(1), server.read(&mut byte)).await {
            Ok(read) => read.unwrap_err().kind() == io::ErrorKind::TimedOut,
            Err(_) => false,
        }
    }

    #[tokio::test]
    async fn who_does_not_say_what_it_has_to_say_is_let_go() {
        let cases = [
            (&b""[..], true),
            (b"P", true),
            (b"PRI * HTTP/2.0\r\n", true),
            (b"PUT", true),
            (b"GET / HTTP/1.1\r\nhost: a\r\n", true),
            // From here on it is the affair of whoever speaks that.
            (PREFACE, false),
        ];
        let limits = [SHORT, Limits { begin: LONG.begin, ..SHORT }, Limits { head: LONG.head, ..SHORT }];
        let all = cases.into_iter().flat_map(|case| limits.map(|limits| (case, limits)));
        futures::future::join_all(all.map(async |((said, is_let_go), limits)| {
            let (mut client, server) = tokio::io::duplex(1 << 10);
            let mut server = Patient::new(server, limits, Arc::default());
            // In single bytes, as it may come.
            for byte in said {
                client.write_all(&[*byte]).await.unwrap();
                assert_eq!(server.read_u8().await.unwrap(), *byte);
            }
            let limit = if said.is_empty() { limits.begin } else { limits.head };
            assert_eq!(is_cut(&mut server).await, is_let_go && limit == SHORT.head, "{said:?}");
        }))
        .await;
    }

    #[tokio::test]
    async fn a_body_and_the_rest_between_requests_have_no_such_bound() {
        let (mut client, server) = tokio::io::duplex(1 << 10);
        let turns: Arc<Turns> = Arc::default();
        let mut server = Patient::new(server, SHORT, turns.clone());
        // A head and the beginning of its body in one.
        client.write_all(b"HEADbo").await.unwrap();
        server.read_exact(&mut [0; 6]).await.unwrap();
        let turn = turns.begin().unwrap();
        assert!(!is_cut(&mut server).await, "the body is the service's affair");
        client.write_all(b"dy").await.unwrap();
        server.read_exact(&mut [0; 2]).await.unwrap();
        drop(turn);
        assert!(!is_cut(&mut server).await, "nothing has begun");
        client.write_all(b"H").await.unwrap();
        server.read_u8().await.unwrap();
        assert!(is_cut(&mut server).await, "the next head has");
    }

    #[tokio::test]
    async fn who_does_not_read_is_let_go_and_who_reads_slowly_is_not() {
        let (mut client, server) = tokio::io::duplex(16);
        let mut server = Patient::new(server, SHORT, Arc::default());
        server.write_all(&[0; 16]).await.unwrap();
        for _ in 0..6 {
            let (mut read, slowly) = ([0; 16], tokio::time::sleep(Duration::from_millis(30)));
            let reading = async {
                slowly.await;
                client.read_exact(&mut read).await.unwrap();
            };
            let (written, ()) = tokio::join!(server.write_all(&[0; 16]), reading);
            written.unwrap();
        }
        let stalled = server.write_all(&[0; 16]).await.unwrap_err();
        assert_eq!(stalled.kind(), io::ErrorKind::TimedOut);
        // A patient one waits on: it is the bound that cuts.
        let (_client, server) = tokio::io::duplex(16);
        let mut server = Patient::new(server, LONG, Arc::default());
        let waits = tokio::time::timeout(Duration::from_secs(1), server.write_all(&[0; 17])).await;
        assert!(waits.is_err());
    }
}
