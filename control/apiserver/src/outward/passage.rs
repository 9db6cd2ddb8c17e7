//! The way to a server to which requests are passed on (an APIService's): a connection for each, since many are long, in which
//! this server proves that it is the front proxy.

use std::any::Any;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::Body;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::dial::{self, Proof, Trust};
use super::{Nodes, Shown, Target, why};
use crate::limits::Flow;

/// By what servers know that it is this cluster's API server who says on whose behalf it asks: a client certificate, and the
/// authority that has signed it and signs nothing else.
#[derive(Clone)]
pub struct FrontProxy {
    /// The authority's certificate (PEM), which is published (`kube-system/extension-apiserver-authentication`).
    pub authority: String,
    /// What is shown.
    pub shown: Arc<Shown>,
}

impl FrontProxy {
    /// Whom it is, as the published ConfigMap says it: `requestheader-allowed-names`.
    pub const NAME: &str = "front-proxy-client";
}

/// Without the key.
impl std::fmt::Debug for FrontProxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FrontProxy").finish_non_exhaustive()
    }
}

/// The way to one server.
pub(crate) struct Passage(Proof);

impl std::fmt::Debug for Passage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Passage").finish_non_exhaustive()
    }
}

impl Passage {
    /// To a server with these authorities (PEM); without any the machine's are trusted, or nobody has to prove anything.
    pub fn new(authorities: Vec<u8>, is_unproven: bool, front: Option<Arc<FrontProxy>>) -> Passage {
        Passage(Proof::new(
            if is_unproven { Trust::Anybody } else { Trust::Authorities(authorities) },
            front.map(|front| front.shown.clone()),
        ))
    }

    /// Whether the server is to prove itself by a certificate of its own authority.
    pub fn has_authorities(&self) -> bool {
        self.0.has_authorities()
    }

    /// A connection of its own for one request of `flow`. It ends with the answer, or with what that becomes.
    pub async fn open(&self, nodes: &Nodes, target: &Target, flow: Flow<'_>) -> Result<SendRequest<Body>, String> {
        let (stream, held) = dial::stream(self.0.tls(&target.way).await?, nodes, target, flow).await?;
        start(Held { stream, _held: held }).await
    }
}

async fn start<S>(stream: Held<S>) -> Result<SendRequest<Body>, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| why(&error))?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "connection to an API server");
        }
    });
    Ok(sender)
}

/// A stream with what it is made on: that ends with it, and not with the HTTP that was spoken over it before an upgrade.
struct Held<S> {
    stream: S,
    _held: Box<dyn Any + Send>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Held<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Held<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio_util::sync::CancellationToken;

    #[tokio::test]
    async fn what_a_stream_is_made_on_is_held_after_an_upgrade() {
        let (ours, mut theirs) = tokio::io::duplex(1 << 10);
        let ended = CancellationToken::new();
        let held = Box::new(ended.clone().drop_guard());
        let mut sender = start(Held { stream: ours, _held: held }).await.unwrap();
        let there = async {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(theirs.read_u8().await.unwrap());
            }
            theirs.write_all(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n").await
        };
        let request = http::Request::get("/").header("connection", "upgrade").header("upgrade", "echo");
        let (mut answer, sent) = tokio::join!(sender.send_request(request.body(Body::empty()).unwrap()), there);
        sent.unwrap();
        let upgraded = hyper::upgrade::on(answer.as_mut().unwrap()).await.unwrap();
        drop((sender, answer));
        let mut stream = TokioIo::new(upgraded);
        stream.write_all(b"on").await.unwrap();
        let mut read = [0; 2];
        theirs.read_exact(&mut read).await.unwrap();
        // The task of the connection has had its turn to end.
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert!(&read == b"on" && !ended.is_cancelled());
        drop(stream);
        ended.cancelled().await;
    }
}
