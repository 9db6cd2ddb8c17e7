//! A watch as a WebSocket, for clients in browsers: an event is a message.
//!
//! A message is sent in fragments as it comes, so that nobody puts a large event together here; a piece of the watch is held,
//! and counted, until the connection has taken it.

use axum::body::Body;
use axum::response::Response;
use bytes::{Buf, Bytes};
use futures::{SinkExt, StreamExt};
use http::{HeaderValue, StatusCode, header};
use http_body_util::BodyExt;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use tokio_tungstenite::tungstenite::protocol::{Message, Role, WebSocketConfig};
use tokio_util::task::TaskTracker;

use crate::authn;
use crate::limits::Connection;
use crate::request::call::Call;
use crate::request::negotiate::JSON;

/// Most bytes of a message or frame of a client's: on a watch clients say nothing but pings and their leaving.
const SAID_MAX: usize = 4 << 10;
/// Bytes of the length before each frame of a watch that is not JSON.
const LENGTH_BYTES: usize = 4;

/// Sends `watch`, which is an answer, over the connection of the request when that asks for it.
pub(crate) fn upgraded(
    call: &Call,
    upgrade: Option<OnUpgrade>,
    connection: Connection,
    watch: Response,
    tasks: &TaskTracker,
) -> Response {
    let key = call.headers.get(header::SEC_WEBSOCKET_KEY).filter(|_| authn::is_websocket(&call.headers));
    let (Some(key), Some(upgrade), StatusCode::OK) = (key, upgrade, watch.status()) else { return watch };
    let accept = HeaderValue::from_str(&derive_accept_key(key.as_bytes()));
    let lines = watch.headers().get(header::CONTENT_TYPE).is_some_and(|content| content == JSON);
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    if let Ok(accept) = accept {
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    }
    if let Some(protocol) = authn::subprotocol(&call.headers).and_then(|name| HeaderValue::from_str(name).ok()) {
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, protocol);
    }
    tasks.spawn(async move {
        tokio::select! {
            () = send(upgrade, watch.into_body(), lines) => {}
            // Its client does not read: it stands still where it sends.
            () = connection.is_cut() => {}
        }
    });
    response
}

fn config() -> WebSocketConfig {
    WebSocketConfig::default()
        .max_message_size(Some(SAID_MAX))
        .max_frame_size(Some(SAID_MAX))
        .read_buffer_size(SAID_MAX)
}

/// Sends the events until the watch or the client ends.
async fn send(upgrade: OnUpgrade, mut watch: Body, lines: bool) {
    let Ok(connection) = upgrade.await else { return };
    let socket = WebSocketStream::from_raw_socket(TokioIo::new(connection), Role::Server, Some(config())).await;
    let (mut to_client, mut from_client) = socket.split();
    let mut events = Events::new(lines);
    loop {
        tokio::select! {
            frame = watch.frame() => {
                let Some(Ok(frame)) = frame else { break };
                let Ok(mut piece) = frame.into_data() else { continue };
                // It is counted as long as somebody has a part of it, and sending copies.
                let _counted = piece.clone();
                while let Some(fragment) = events.next(&mut piece) {
                    if to_client.send(Message::Frame(fragment)).await.is_err() {
                        return;
                    }
                }
            }
            // What clients say is not looked at; it answers pings and notices their leaving.
            said = from_client.next() => match said {
                Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                Some(Ok(_)) => {}
            }
        }
    }
    let _ = to_client.send(Message::Close(None)).await;
}

/// Where in the events what comes is.
struct Events {
    /// Whether they are lines of JSON, and not frames that begin with their length.
    lines: bool,
    /// Whether an event has begun.
    begun: bool,
    /// The length of a frame, as far as it is known, and how many bytes of it are.
    length: (u32, usize),
    /// Bytes of it that have not come.
    left: usize,
}

impl Events {
    fn new(lines: bool) -> Events {
        Events { lines, begun: false, length: (0, 0), left: 0 }
    }

    /// Takes what is next of an event out of what has come.
    fn next(&mut self, come: &mut Bytes) -> Option<Frame> {
        if come.is_empty() {
            return None;
        }
        let (size, is_last) = if self.lines { self.line(come) } else { self.frame(come) };
        let part = come.split_to(size);
        let kind = match (self.begun, self.lines) {
            (true, _) => Data::Continue,
            (false, true) => Data::Text,
            (false, false) => Data::Binary,
        };
        self.begun = !is_last;
        // The end of a line is said by the end of the message.
        let said = if self.lines && is_last { part.slice(..size - 1) } else { part };
        Some(Frame::message(said, OpCode::Data(kind), is_last))
    }

    fn line(&self, come: &Bytes) -> (usize, bool) {
        match come.iter().position(|byte| *byte == b'\n') {
            Some(end) => (end + 1, true),
            None => (come.len(), false),
        }
    }

    fn frame(&mut self, come: &Bytes) -> (usize, bool) {
        let mut unread = &come[..];
        while self.length.1 < LENGTH_BYTES && unread.has_remaining() {
            self.length = ((self.length.0 << 8) | u32::from(unread.get_u8()), self.length.1 + 1);
            if self.length.1 == LENGTH_BYTES {
                self.left = usize::try_from(self.length.0).unwrap_or(usize::MAX);
            }
        }
        let taken = unread.len().min(self.left);
        self.left -= taken;
        let is_last = self.length.1 == LENGTH_BYTES && self.left == 0;
        if is_last {
            self.length = (0, 0);
        }
        (come.len() - unread.len() + taken, is_last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a client makes of pieces.
    async fn heard(lines: bool, pieces: Vec<Bytes>) -> Vec<Message> {
        let (here, there) = tokio::io::duplex(1 << 20);
        let mut server = WebSocketStream::from_raw_socket(here, Role::Server, Some(config())).await;
        let client = WebSocketStream::from_raw_socket(there, Role::Client, None).await;
        let mut events = Events::new(lines);
        for mut piece in pieces {
            while let Some(fragment) = events.next(&mut piece) {
                server.send(Message::Frame(fragment)).await.unwrap();
            }
        }
        drop(server);
        client.take_while(|said| std::future::ready(said.is_ok())).map(Result::unwrap).collect().await
    }

    #[tokio::test]
    async fn an_event_is_a_message_wherever_it_was_cut() {
        let texts = ["{\"a\":1}", "{\"é\":2}", "{}"];
        let whole = Bytes::from(texts.map(|text| format!("{text}\n")).concat());
        for cut in 0..whole.len() {
            let found = heard(true, vec![whole.slice(..cut), whole.slice(cut..)]).await;
            assert_eq!(found, texts.map(Message::text), "{cut}");
        }
        let framed = |text: &'static [u8]| [&(text.len() as u32).to_be_bytes()[..], text].concat();
        let frames = [framed(b"abc"), framed(b""), framed(b"defgh")];
        let whole = Bytes::from(frames.concat());
        for cut in 0..whole.len() {
            let found = heard(false, vec![whole.slice(..cut), whole.slice(cut..)]).await;
            assert_eq!(found, frames.clone().map(Message::binary), "{cut}");
        }
    }

    #[tokio::test]
    async fn what_a_client_says_is_bounded_and_what_it_hears_is_not() {
        let (here, there) = tokio::io::duplex(1 << 20);
        let mut server = WebSocketStream::from_raw_socket(here, Role::Server, Some(config())).await;
        let mut client = WebSocketStream::from_raw_socket(there, Role::Client, None).await;
        let long = "x".repeat(SAID_MAX + 1);
        server.send(Message::text(long.clone())).await.unwrap();
        assert_eq!(client.next().await.unwrap().unwrap().into_text().unwrap().as_str(), long);
        client.send(Message::text(long)).await.unwrap();
        assert!(server.next().await.unwrap().is_err());
    }
}
