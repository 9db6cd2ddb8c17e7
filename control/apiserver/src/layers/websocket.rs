//! A watch as a WebSocket, for clients in browsers: an event is a message.

use axum::body::Body;
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use futures::{SinkExt, StreamExt};
use http::{HeaderValue, StatusCode, header};
use http_body_util::BodyExt;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Message, Role, WebSocketConfig};
use tokio_util::task::TaskTracker;

use crate::authn;
use crate::request::call::Call;
use crate::request::negotiate::JSON;

/// Most bytes of a message or frame of a client's: on a watch clients say nothing but pings and their leaving.
const SAID_MAX: usize = 4 << 10;

/// Sends `watch`, which is an answer, over the connection of the request when that asks for it.
pub(crate) fn upgraded(call: &Call, upgrade: Option<OnUpgrade>, watch: Response, tasks: &TaskTracker) -> Response {
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
    tasks.spawn(send(upgrade, watch.into_body(), lines));
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
    let mut rest = BytesMut::new();
    loop {
        tokio::select! {
            frame = watch.frame() => {
                let Some(Ok(frame)) = frame else { break };
                let Ok(data) = frame.into_data() else { continue };
                for message in messages(&mut rest, data, lines) {
                    if to_client.send(message).await.is_err() {
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

/// The messages in what has come: lines of JSON, or what else there is as it is.
fn messages(rest: &mut BytesMut, data: Bytes, lines: bool) -> Vec<Message> {
    if !lines {
        return vec![Message::Binary(data)];
    }
    rest.extend_from_slice(&data);
    let mut found = Vec::new();
    while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
        let line = rest.split_to(end + 1).freeze();
        if let Ok(text) = line.slice(..end).try_into() {
            found.push(Message::Text(text));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_a_message_wherever_it_was_cut() {
        let mut rest = BytesMut::new();
        let texts = |messages: Vec<Message>| -> Vec<String> {
            messages.into_iter().map(|message| message.into_text().unwrap().to_string()).collect()
        };
        assert_eq!(texts(messages(&mut rest, "{\"a\":1}\n{\"b\"".into(), true)), ["{\"a\":1}"]);
        assert_eq!(texts(messages(&mut rest, ":2}\n{}\n".into(), true)), ["{\"b\":2}", "{}"]);
        assert!(rest.is_empty());
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
