//! A byte stream with bounds in time, under an HTTP server: a client that does not begin to speak and one that does not read
//! are both let go. Costs nothing while bytes flow: clocks run only for who waits.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// What HTTP/2 begins with. While a client may still be about to say it, no other clock runs.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// A client says within this time which HTTP it speaks.
const BEGIN_MAX: Duration = Duration::from_secs(30);
/// A client that reads nothing for so long while there is something to read is gone.
const STALL_MAX: Duration = Duration::from_secs(45);

/// How long is waited, at most.
#[derive(Clone, Copy)]
pub(crate) struct Limits {
    /// For what the client speaks.
    pub begin: Duration,
    /// For the client to read on.
    pub stall: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { begin: BEGIN_MAX, stall: STALL_MAX }
    }
}

/// A stream with those bounds.
pub(crate) struct Patient<S> {
    inner: S,
    stall_max: Duration,
    /// Until it is known what is spoken: the clock, and bytes of the preface that came.
    beginning: Option<(Pin<Box<Sleep>>, usize)>,
    stall: Option<Pin<Box<Sleep>>>,
    is_stalled: bool,
}

impl<S> Patient<S> {
    pub fn new(inner: S, limits: Limits) -> Patient<S> {
        let beginning = Some((Box::pin(tokio::time::sleep(limits.begin)), 0));
        Patient { inner, stall_max: limits.stall, beginning, stall: None, is_stalled: false }
    }

    /// Looks whether a write that waits has waited for too long.
    fn wrote<T>(&mut self, polled: Poll<io::Result<T>>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.is_stalled = false;
            return polled;
        }
        let until = Instant::now() + self.stall_max;
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
        let polled = Pin::new(&mut self.inner).poll_read(cx, buf);
        let Some((clock, known)) = &mut self.beginning else { return polled };
        match &polled {
            Poll::Pending => {
                ready!(clock.as_mut().poll(cx));
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not begin")));
            }
            Poll::Ready(_) => {
                let new = &buf.filled()[before..];
                let expected = &PREFACE[*known..PREFACE.len().min(*known + new.len())];
                *known += new.len();
                if *known >= PREFACE.len() || !new.starts_with(expected) || new.is_empty() {
                    self.beginning = None;
                }
            }
        }
        polled
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

    const SHORT: Limits = Limits { begin: Duration::from_millis(60), stall: Duration::from_millis(60) };
    const LONG: Limits = Limits { begin: Duration::from_secs(600), stall: Duration::from_secs(600) };

    #[tokio::test]
    async fn who_does_not_begin_is_let_go() {
        for (said, is_cut) in [
            (&b""[..], true),
            (b"P", true),
            (b"PRI * HTTP/2.0\r\n", true),
            // From here on it is the affair of whoever speaks that.
            (b"PUT", false),
            (b"GET", false),
            (PREFACE, false),
        ] {
            let (mut client, server) = tokio::io::duplex(1 << 10);
            let mut server = Patient::new(server, SHORT);
            // In single bytes, as it may come.
            for byte in said {
                client.write_all(&[*byte]).await.unwrap();
                assert_eq!(server.read_u8().await.unwrap(), *byte);
            }
            let (mut byte, rest) = ([0; 1], tokio::time::sleep(Duration::from_millis(200)));
            tokio::select! {
                read = server.read(&mut byte) => assert!(is_cut && read.unwrap_err().kind() == io::ErrorKind::TimedOut, "{said:?}"),
                () = rest => assert!(!is_cut, "{said:?}"),
            }
        }
    }

    #[tokio::test]
    async fn who_does_not_read_is_let_go_and_who_reads_slowly_is_not() {
        let (mut client, server) = tokio::io::duplex(16);
        let mut server = Patient::new(server, SHORT);
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
        let mut server = Patient::new(server, LONG);
        let waits = tokio::time::timeout(Duration::from_millis(200), server.write_all(&[0; 17])).await;
        assert!(waits.is_err());
    }
}
