//! Leaving HTTP for a protocol of its own on the same connection: WebSocket and SPDY/3.1.

use std::pin::pin;
use std::time::Duration;

use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use futures::stream::{SplitSink, SplitStream};
use futures::{Sink, SinkExt as _, Stream, StreamExt as _};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::sync::Mutex;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{self, Message};

use super::traffic::{IDLE_MAX, PARTING_MAX, PING_EVERY, Traffic};

/// Largest message of a client, and so its largest frame.
const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// Bytes of a tunnel in each direction that wait for the other side.
const TUNNEL_BYTES: usize = 64 << 10;

/// A WebSocket connection.
pub type WebSocket = WebSocketStream<TokioIo<Upgraded>>;

/// Which protocol a request wants to change to.
#[derive(Debug, PartialEq, Eq)]
pub enum Wanted {
    /// WebSocket, with the subprotocols it offers.
    WebSocket(Vec<String>),
    /// SPDY/3.1, with the stream protocols it offers.
    Spdy(Vec<String>),
    /// None.
    Nothing,
}

impl Wanted {
    /// Reads the headers.
    pub fn of(headers: &HeaderMap) -> Self {
        let all = |name: &str| -> Vec<String> {
            let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
            values.flat_map(|value| value.split(',')).map(|text| text.trim().to_owned()).collect()
        };
        let upgrades = all("upgrade");
        if upgrades.iter().any(|name| name.eq_ignore_ascii_case("websocket")) {
            return Self::WebSocket(all("sec-websocket-protocol"));
        }
        if upgrades.iter().any(|name| name.eq_ignore_ascii_case("SPDY/3.1")) {
            return Self::Spdy(all("x-stream-protocol-version"));
        }
        Self::Nothing
    }
}

/// Accepts a WebSocket: the response to send, and what becomes the connection after it.
pub fn accept_websocket(request: &mut Request, protocol: Option<&str>) -> Option<(Response, OnUpgrade)> {
    let key = request.headers().get(header::SEC_WEBSOCKET_KEY)?.clone();
    let mut response = StatusCode::SWITCHING_PROTOCOLS.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    let accept = HeaderValue::try_from(derive_accept_key(key.as_bytes())).ok()?;
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    if let Some(protocol) = protocol {
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::try_from(protocol).ok()?);
    }
    Some((response, hyper::upgrade::on(request)))
}

/// Accepts SPDY/3.1.
pub fn accept_spdy(request: &mut Request, protocol: &'static str) -> (Response, OnUpgrade) {
    let mut response = StatusCode::SWITCHING_PROTOCOLS.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("SPDY/3.1"));
    headers.insert("x-stream-protocol-version", HeaderValue::from_static(protocol));
    (response, hyper::upgrade::on(request))
}

/// Ends a WebSocket in the way that clients take for its ordinary end: behind what the client has not read yet, for which it has
/// `patience`. What it still says is dropped until it has said all, for which it has [`PARTING_MAX`] more: a connection that is ended with
/// something unread is reset, and what is on its way to the client is lost.
pub async fn close<S>(sink: &mut SplitSink<S, Message>, messages: &mut SplitStream<S>, patience: Duration)
where
    S: Sink<Message> + Stream<Item = Result<Message, tungstenite::Error>>,
{
    let frame = CloseFrame { code: CloseCode::Normal, reason: "".into() };
    let closing = async {
        let _ = sink.send(Message::Close(Some(frame))).await;
        let _ = sink.close().await;
    };
    let mut closing = pin!(tokio::time::timeout(patience, closing));
    // Also while it is told: it may read nothing before all that it says is taken.
    let mut dropping =
        pin!(async { while matches!(messages.next().await, Some(Ok(message)) if !message.is_close()) {} });
    tokio::select! {
        told = &mut closing => {
            if told.is_ok() {
                let _ = tokio::time::timeout(PARTING_MAX, dropping).await;
            }
        }
        () = &mut dropping => drop(closing.await),
    }
}

/// Numbered channels of a WebSocket, towards the client: the first byte of a message is its channel.
pub struct Channels {
    sink: Mutex<SplitSink<WebSocket, Message>>,
    traffic: Traffic,
}

/// Why there is nobody to send to any more.
#[derive(Debug, PartialEq, Eq)]
pub enum Over {
    /// The client is gone.
    Gone,
    /// Nothing was carried for [`IDLE_MAX`].
    Idle,
}

impl Channels {
    /// Over the sending half.
    pub fn new(sink: SplitSink<WebSocket, Message>) -> Self {
        Self { sink: Mutex::new(sink), traffic: Traffic::default() }
    }

    /// Sends on a channel. That the client is gone is seen by [`Channels::over`], and by who reads.
    pub async fn send(&self, channel: u8, bytes: &[u8]) {
        let message = [&[channel], bytes].concat();
        let _ = self.sink.lock().await.send(Message::Binary(message.into())).await;
        self.traffic.carried();
    }

    /// Something came from the client.
    pub fn heard(&self) {
        self.traffic.carried();
    }

    /// Waits until there is nobody to send to.
    pub async fn over(&self) -> Over {
        let pinging = async {
            loop {
                tokio::time::sleep(PING_EVERY).await;
                if self.sink.lock().await.send(Message::Ping(Vec::new().into())).await.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            () = pinging => Over::Gone,
            () = self.traffic.idle() => Over::Idle,
        }
    }

    /// Ends the connection, as [`close`].
    pub async fn close(&self, messages: &mut SplitStream<WebSocket>, patience: Duration) {
        close(&mut *self.sink.lock().await, messages, patience).await;
    }
}

/// The server's side of a WebSocket on an upgraded connection.
pub async fn websocket(upgraded: Upgraded) -> WebSocket {
    WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, Some(config())).await
}

fn config() -> WebSocketConfig {
    WebSocketConfig::default().max_message_size(Some(MESSAGE_BYTES_MAX)).max_frame_size(Some(MESSAGE_BYTES_MAX))
}

/// The bytes of a WebSocket's binary messages as one stream; pumping ends with either side.
pub fn tunnel(socket: WebSocket) -> (DuplexStream, impl Future<Output = ()> + Send) {
    let (ours, users) = tokio::io::duplex(TUNNEL_BYTES);
    let pump = async move {
        let (mut sink, mut messages) = socket.split();
        let (mut from_user, mut to_user) = tokio::io::split(ours);
        let inwards = async {
            while let Some(Ok(message)) = messages.next().await {
                let bytes = match message {
                    Message::Binary(bytes) => bytes,
                    Message::Close(_) => break,
                    // Pings are answered by the socket itself.
                    _ => continue,
                };
                if to_user.write_all(&bytes).await.is_err() {
                    return;
                }
            }
            let _ = to_user.shutdown().await;
        };
        let outwards = async {
            let mut buffer = vec![0; 16 << 10];
            while let Ok(count @ 1..) = from_user.read(&mut buffer).await {
                let message = Message::Binary(buffer[..count].to_vec().into());
                if sink.send(message).await.is_err() {
                    return;
                }
            }
        };
        {
            let (mut inwards, mut outwards) = (pin!(inwards), pin!(outwards));
            // The client's end does not end our answers; our end ends everything.
            tokio::select! {
                () = &mut inwards => outwards.await,
                () = &mut outwards => {}
            }
        }
        close(&mut sink, &mut messages, IDLE_MAX).await;
    };
    (users, pump)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_too_large_is_refused_by_its_head() {
        for (length, is_refused) in [(MESSAGE_BYTES_MAX as u64, false), (2 * MESSAGE_BYTES_MAX as u64, true)] {
            let (mut client, server) = tokio::io::duplex(64);
            let mut socket = WebSocketStream::from_raw_socket(server, Role::Server, Some(config())).await;
            // A binary message of so many masked bytes, of which none comes.
            let head = [&[0x82, 0xff][..], &length.to_be_bytes(), &[0; 4]].concat();
            client.write_all(&head).await.unwrap();
            let heard = futures::poll!(socket.next());
            assert_eq!(matches!(heard, std::task::Poll::Ready(Some(Err(_)))), is_refused, "{length}: {heard:?}");
        }
    }

    /// Who says a lot before he listens.
    #[tokio::test]
    async fn what_is_said_to_who_leaves_is_taken_until_its_end() {
        let (client, server) = tokio::io::duplex(64);
        let server = WebSocketStream::from_raw_socket(server, Role::Server, Some(config())).await;
        let leaving = tokio::spawn(async move {
            let (mut sink, mut messages) = server.split();
            sink.send(Message::Binary(b"\x03how it went".to_vec().into())).await.unwrap();
            close(&mut sink, &mut messages, IDLE_MAX).await;
        });
        let mut client = WebSocketStream::from_raw_socket(client, Role::Client, None).await;
        for _ in 0..10 {
            client.send(Message::Binary(vec![0; 1000].into())).await.unwrap();
        }
        assert_eq!(&client.next().await.unwrap().unwrap().into_data()[..], b"\x03how it went");
        assert!(client.next().await.unwrap().unwrap().is_close());
        assert!(client.next().await.is_none());
        leaving.await.unwrap();
    }
}
