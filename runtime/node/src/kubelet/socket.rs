//! The socket of a connection, watched beside whoever reads and writes it: that the other end has gone is noticed, too, while nothing is
//! read, because what it has sent before waits for somebody who takes nothing.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::net::Shutdown;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// What the other end has sent before its end has so long to be taken, and what it asked for to be answered.
const LINGER: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 10 });

/// Reads and writes.
pub(super) struct Socket(Arc<TcpStream>);

/// Watches it.
#[derive(Clone)]
pub(super) struct Watch(Arc<TcpStream>);

/// Both of one socket.
pub(super) fn watched(stream: TcpStream) -> (Socket, Watch) {
    let stream = Arc::new(stream);
    (Socket(stream.clone()), Watch(stream))
}

impl Watch {
    /// Waits until the other end has gone: reset, or ended so long ago that whoever wants to has taken what it had sent.
    pub async fn gone(&self) {
        if !coracle_proxy::ended(&self.0).await {
            tokio::time::sleep(LINGER).await;
        }
    }
}

/// Tries until it does not have to wait.
macro_rules! poll {
    ($socket:expr, $cx:expr, $ready:ident, $try:expr) => {
        loop {
            ready!($socket.0.$ready($cx))?;
            match $try {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => break done,
            }
        }
    };
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = poll!(self, cx, poll_read_ready, self.0.try_read(buf.initialize_unfilled()));
        Poll::Ready(read.map(|count| buf.advance(count)))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(poll!(self, cx, poll_write_ready, self.0.try_write(bytes)))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(poll!(self, cx, poll_write_ready, self.0.try_write_vectored(bytes)))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        match rustix::net::shutdown(&*self.0, Shutdown::Write) {
            // Where the other end has reset it there is nothing to end.
            Ok(()) | Err(rustix::io::Errno::NOTCONN) => Poll::Ready(Ok(())),
            Err(error) => Poll::Ready(Err(error.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn the_end_is_noticed_while_nothing_is_read_and_what_came_before_it_can_be() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        for is_reset in [false, true] {
            let connecting = TcpStream::connect(listener.local_addr().unwrap());
            let (mut client, server) = tokio::try_join!(connecting, async { Ok(listener.accept().await?.0) }).unwrap();
            let (mut socket, watch) = watched(server);
            socket.write_all(b"welcome").await.unwrap();
            client.read_exact(&mut [0; 7]).await.unwrap();
            client.write_all(&[7; 100_000]).await.unwrap();
            assert!(watch.gone().now_or_never().is_none());
            if is_reset {
                client.set_zero_linger().unwrap();
            }
            drop(client);
            if !is_reset {
                assert!(watch.gone().now_or_never().is_none(), "it may be read still");
            }
            tokio::time::timeout(Duration::from_secs(20), watch.gone()).await.expect("it has gone");
            if !is_reset {
                let mut all = Vec::new();
                socket.read_to_end(&mut all).await.unwrap();
                assert_eq!(all.len(), 100_000);
                socket.shutdown().await.unwrap();
            }
        }
    }
}
