//! Port-forward over numbered channels of a WebSocket: port number `i` of the request has channel `2i` for data and
//! `2i + 1` for errors; the first message of each from us is the port, little-endian.
//!
//! A channel has no end of its own. A pod that has closed its connection is given [`LINGER`] for what the client still
//! sends, as container runtimes do; then the port is done, and the WebSocket when all are.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, ReadHalf, WriteHalf};
use tokio_tungstenite::tungstenite::Message;

use super::traffic::{IDLE_MAX, PARTING_MAX};
use super::upgrade::{Channels, WebSocket};

/// The subprotocol.
pub const PROTOCOL: &str = "v4.channel.k8s.io";
/// Ports of one request; a channel is one byte, and each port has two.
const PORTS_MAX: usize = 127;
/// Bytes of a port in each direction that wait for the other side.
const BUFFER: usize = 64 << 10;
/// How long a client may go on sending to a pod that says no more.
const LINGER: Duration = Duration::from_secs(1);

/// The ports of a query: `ports=80&ports=443`, `port=80` or `ports=80,443`.
pub fn ports(query: &str) -> Result<Vec<u16>, String> {
    let mut ports = Vec::new();
    for (name, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
        if !matches!(name, "port" | "ports") {
            continue;
        }
        for text in value.split("%2C").flat_map(|value| value.split(',')) {
            match text.parse::<u16>() {
                Ok(port) if port > 0 => ports.push(port),
                _ => return Err(format!("unable to parse {text:?} as a port")),
            }
        }
    }
    if ports.len() > PORTS_MAX {
        return Err(format!("more than {PORTS_MAX} ports"));
    }
    Ok(ports)
}

/// Serves the channels of these ports; `forward` connects one of them.
pub async fn serve<F>(socket: WebSocket, ports: &[u16], forward: impl Fn(u16, DuplexStream) -> F)
where
    F: Future<Output = Result<(), String>>,
{
    let (sink, mut messages) = socket.split();
    let client = &Channels::new(sink);
    let mut inwards: Vec<WriteHalf<DuplexStream>> = Vec::new();
    let work = FuturesUnordered::new();
    for (index, port) in ports.iter().enumerate() {
        let channel = u8::try_from(index * 2).expect("their number is bounded");
        let (ours, users) = tokio::io::duplex(BUFFER);
        let (from_user, to_user) = tokio::io::split(ours);
        inwards.push(to_user);
        let forwarded = forward(*port, users);
        work.push(async move {
            for channel in [channel, channel + 1] {
                client.send(channel, &port.to_le_bytes()).await;
            }
            let (mut forwarded, mut said) = (pin!(forwarded), pin!(outwards(client, channel, from_user)));
            let result = tokio::select! {
                result = &mut forwarded => {
                    said.await;
                    result
                }
                () = &mut said => tokio::time::timeout(LINGER, forwarded).await.unwrap_or(Ok(())),
            };
            if let Err(message) = result {
                client.send(channel + 1, message.as_bytes()).await;
            }
        });
    }
    let reading = async {
        while let Some(Ok(message)) = messages.next().await {
            let bytes = match message {
                Message::Binary(bytes) => bytes,
                Message::Text(text) => text.into(),
                Message::Close(_) => break,
                _ => continue,
            };
            let Some((channel, data)) = bytes.split_first() else { continue };
            // What comes on an error channel means nothing.
            if channel % 2 == 0
                && let Some(user) = inwards.get_mut(usize::from(channel / 2))
            {
                client.heard();
                let _ = user.write_all(data).await;
            }
        }
    };
    let working = work.collect::<Vec<()>>();
    // The client's end ends everything.
    let patience = tokio::select! {
        () = reading => PARTING_MAX,
        _ = working => IDLE_MAX,
        _ = client.over() => PARTING_MAX,
    };
    client.close(&mut messages, patience).await;
}

async fn outwards(client: &Channels, channel: u8, mut from_user: ReadHalf<DuplexStream>) {
    let mut buffer = vec![0; 16 << 10];
    while let Ok(count @ 1..) = from_user.read(&mut buffer).await {
        client.send(channel, &buffer[..count]).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_ports() {
        for (query, expected) in [
            ("", Some(vec![])),
            ("ports=80&ports=443", Some(vec![80, 443])),
            ("ports=80,443&x=1", Some(vec![80, 443])),
            ("port=1%2C2", Some(vec![1, 2])),
            ("ports=0", None),
            ("ports=x", None),
        ] {
            assert_eq!(ports(query).ok(), expected, "{query}");
        }
    }
}
