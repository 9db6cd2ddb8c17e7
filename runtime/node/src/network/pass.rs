//! Bytes between a socket and a stream, so that what was cut off is not taken for whole.

use std::io;

use coracle_proxy::Uncertain;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// Passes bytes between a socket and what the other end is, when it is there, until both have ended. When either breaks, or
/// nobody waits for this any more, the socket is reset: an orderly end would tell who reads there that this was all.
pub async fn pass<S>(socket: TcpStream, stream: impl Future<Output = io::Result<S>>) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut uncertain = Uncertain::new(socket);
    let mut stream = stream.await?;
    tokio::io::copy_bidirectional(&mut uncertain.socket, &mut stream).await?;
    uncertain.whole();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::Pin;
    use std::task::{Context, Poll};
    use std::time::Duration;
    use tokio::io::{AsyncReadExt as _, ReadBuf};
    use tokio::net::TcpListener;

    #[derive(Clone, Copy, PartialEq, Debug)]
    enum End {
        InOrder,
        Broken,
        GivenUp,
        NeverThere,
    }

    /// Half a file, and then this; it takes whatever is written.
    struct Half(Option<&'static [u8]>, End);

    impl AsyncRead for Half {
        fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            match (self.0.take(), self.1) {
                (Some(text), _) => buf.put_slice(text),
                (None, End::InOrder) => {}
                (None, End::GivenUp) => return Poll::Pending,
                (None, _) => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            }
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncWrite for Half {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    /// What the program at the socket's other end reads.
    async fn read(end: End) -> io::Result<String> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (accepted, connected) = tokio::join!(listener.accept(), TcpStream::connect(listener.local_addr().unwrap()));
        let (ours, mut program) = (accepted.unwrap().0, connected.unwrap());
        let stream = async move {
            match end {
                End::NeverThere => Err(io::ErrorKind::BrokenPipe.into()),
                _ => Ok(Half(Some(b"half a file"), end)),
            }
        };
        let passing = tokio::spawn(pass(ours, stream));
        let mut text = String::new();
        if end == End::GivenUp {
            text = String::from_utf8(vec![program.read_u8().await?]).unwrap();
            passing.abort();
        }
        program.read_to_string(&mut text).await.map(|_| text)
    }

    #[tokio::test]
    async fn what_was_cut_off_ends_with_a_reset() {
        for (end, expected) in [
            (End::InOrder, Ok("half a file".to_owned())),
            (End::Broken, Err(io::ErrorKind::ConnectionReset)),
            (End::GivenUp, Err(io::ErrorKind::ConnectionReset)),
            (End::NeverThere, Err(io::ErrorKind::ConnectionReset)),
        ] {
            let found = tokio::time::timeout(Duration::from_secs(30), read(end)).await.expect("it ends");
            assert_eq!(found.map_err(|error| error.kind()), expected, "{end:?}");
        }
    }
}
