//! Bytes that are passed on both ways, whatever they mean: connections that change their protocol, and those of endpoints that
//! listen themselves.

use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};

use crate::turns::{Turn, Turns};

/// A client that says nothing to an endpoint which has said all is waited for so long: a kernel forgets the connection of a
/// socket that was closed after as long (`tcp_fin_timeout`).
const HALF_CLOSED_MAX: Duration = Duration::from_secs(60);

/// Passes bytes between a client and an endpoint as soon as both connections have changed, until both have said all.
pub async fn tunnel(client: OnUpgrade, endpoint: OnUpgrade) -> io::Result<()> {
    let turn = std::sync::Arc::<Turns>::default().begin();
    tunnel_in(client, endpoint, turn).await
}

/// The same within a turn of the client's connection.
pub(crate) async fn tunnel_in(client: OnUpgrade, endpoint: OnUpgrade, turn: Option<Turn>) -> io::Result<()> {
    let (client, endpoint) = tokio::try_join!(client, endpoint).map_err(io::Error::other)?;
    pass(TokioIo::new(client), TokioIo::new(endpoint), turn).await
}

/// Passes bytes until both have said all, or the endpoint has and the client does not end. Nobody can tell which of them waits
/// for the other: a client for whom nothing has moved for long gives way to others.
pub(crate) async fn pass<C, E>(client: C, endpoint: E, turn: Option<Turn>) -> io::Result<()>
where
    C: AsyncRead + AsyncWrite + Unpin,
    E: AsyncRead + AsyncWrite + Unpin,
{
    pass_within(HALF_CLOSED_MAX, client, endpoint, turn).await
}

async fn pass_within<C, E>(half_closed_max: Duration, client: C, endpoint: E, turn: Option<Turn>) -> io::Result<()>
where
    C: AsyncRead + AsyncWrite + Unpin,
    E: AsyncRead + AsyncWrite + Unpin,
{
    // A connection that has given way is about to be dropped.
    let Some(mut turn) = turn else { return Ok(()) };
    turn.passes();
    let turns = turn.turns();
    let (mut from_client, mut to_client) = tokio::io::split(Noted { inner: client, turn });
    let (mut from_endpoint, mut to_endpoint) = tokio::io::split(endpoint);
    let up = async {
        tokio::io::copy(&mut from_client, &mut to_endpoint).await?;
        to_endpoint.shutdown().await
    };
    let down = async {
        tokio::io::copy(&mut from_endpoint, &mut to_client).await?;
        to_client.shutdown().await
    };
    let (mut up, mut down) = (pin!(up), pin!(down));
    tokio::select! {
        up = &mut up => {
            up?;
            down.await
        }
        down = &mut down => {
            down?;
            loop {
                let before = turns.last_moved();
                match tokio::time::timeout(half_closed_max, &mut up).await {
                    Ok(up) => return up,
                    // Whoever still says something is heard.
                    Err(_) if turns.last_moved() != before => {}
                    Err(_) => return Err(io::ErrorKind::TimedOut.into()),
                }
            }
        }
    }
}

/// A client's stream; what moves on it is noted.
struct Noted<S> {
    inner: S,
    turn: Turn,
}

impl<S> Noted<S> {
    fn note<T>(&self, polled: Poll<T>) -> Poll<T> {
        if polled.is_ready() {
            self.turn.moved();
        }
        polled
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Noted<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.inner).poll_read(cx, buf);
        self.note(polled)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Noted<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.note(polled)
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
    use std::sync::Arc;

    use tokio::io::{AsyncReadExt as _, DuplexStream, duplex};

    use super::*;

    const SHORT: Duration = Duration::from_millis(200);
    const PATIENCE: Duration = Duration::from_secs(20);

    /// A client and an endpoint with what passes between them.
    fn passing(turns: &Arc<Turns>) -> (DuplexStream, DuplexStream, tokio::task::JoinHandle<io::Result<()>>) {
        let ((client, here), (there, endpoint)) = (duplex(64), duplex(64));
        let turn = turns.begin();
        (client, endpoint, tokio::spawn(pass_within(SHORT, here, there, turn)))
    }

    #[tokio::test]
    async fn who_half_closes_is_answered_and_who_never_ends_is_not_waited_for() {
        let turns = Arc::default();
        let (mut client, mut endpoint, passed) = passing(&turns);
        client.write_all(b"ask").await.unwrap();
        client.shutdown().await.unwrap();
        let mut asked = String::new();
        endpoint.read_to_string(&mut asked).await.unwrap();
        // It takes its time.
        tokio::time::sleep(SHORT * 3).await;
        endpoint.write_all(b"answer").await.unwrap();
        drop(endpoint);
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        passed.await.unwrap().unwrap();
        assert_eq!((&*asked, &*answer), ("ask", "answer"));

        let (_client, endpoint, passed) = passing(&turns);
        drop(endpoint);
        let passed = tokio::time::timeout(PATIENCE, passed).await.expect("the client is not waited for").unwrap();
        assert_eq!(passed.unwrap_err().kind(), io::ErrorKind::TimedOut);

        // One that goes on speaking is heard to its end.
        let (mut client, mut endpoint, passed) = passing(&turns);
        endpoint.shutdown().await.unwrap();
        for _ in 0..16 {
            tokio::time::sleep(SHORT / 8).await;
            client.write_all(b"more").await.unwrap();
        }
        client.shutdown().await.unwrap();
        let mut said = String::new();
        endpoint.read_to_string(&mut said).await.unwrap();
        passed.await.unwrap().unwrap();
        assert_eq!(said, "more".repeat(16));
    }

    #[tokio::test]
    async fn who_lets_nothing_move_gives_way_and_nobody_else() {
        let patient = Arc::new(Turns::resting_after(PATIENCE));
        let (mut client, mut endpoint, _passed) = passing(&patient);
        client.write_all(b"x").await.unwrap();
        endpoint.read_u8().await.unwrap();
        assert!(patient.patience().is_none() && !patient.give_way());

        let turns = Arc::new(Turns::resting_after(SHORT));
        let (mut client, mut endpoint, _passed) = passing(&turns);
        client.write_all(b"x").await.unwrap();
        endpoint.read_u8().await.unwrap();
        tokio::time::sleep(SHORT * 2).await;
        assert!(turns.patience().is_some_and(|(is_known, _)| is_known));
        endpoint.write_all(b"y").await.unwrap();
        client.read_u8().await.unwrap();
        tokio::time::sleep(SHORT * 2).await;
        // A request that has no answer yet is ours.
        let asked = turns.begin();
        assert!(turns.patience().is_none() && !turns.give_way());
        drop(asked);
        assert!(turns.give_way() && turns.begin().is_none());
    }
}
