//! Clients that have gone before anybody has read what they say.

use std::time::Duration;

use tokio::io::Interest;
use tokio::net::TcpStream;

/// One that has ended its side, and has said something before, may wait for an answer: for so long. More often it has given up, which
/// looks the same.
const HALF_CLOSED_MAX: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 10 });

/// Waits until the other side has ended, whatever it has sent before that is not read; whether by a reset.
pub async fn ended(socket: &TcpStream) -> bool {
    // That there is something to read wakes nobody who waits for urgent bytes, of which there are none; the end does.
    let ended = socket.ready(Interest::PRIORITY).await;
    // What came before a reset can be read still.
    ended.is_err() || !matches!(socket.take_error(), Ok(None))
}

/// Waits until a client has gone: reset, ended without a word, or ended long ago. Nothing is read.
pub(crate) async fn gone(client: &TcpStream) {
    if !ended(client).await && matches!(client.peek(&mut [0]).await, Ok(1..)) {
        tokio::time::sleep(HALF_CLOSED_MAX).await;
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn who_ends_or_resets_has_gone_and_who_has_only_spoken_has_not() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        for (said, is_reset) in [("", false), ("", true), ("hello", true), ("hello", false)] {
            let connecting = TcpStream::connect(listener.local_addr().unwrap());
            let (mut client, server) = tokio::try_join!(connecting, async { Ok(listener.accept().await?.0) }).unwrap();
            client.write_all(said.as_bytes()).await.unwrap();
            if !said.is_empty() {
                server.readable().await.unwrap();
            }
            assert!(gone(&server).now_or_never().is_none(), "{said:?}");
            if is_reset {
                client.set_zero_linger().unwrap();
            }
            drop(client);
            tokio::time::timeout(Duration::from_secs(20), gone(&server)).await.expect("it has gone");
        }
    }
}
