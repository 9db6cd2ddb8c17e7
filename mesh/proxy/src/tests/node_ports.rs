//! What comes in from outside.

use std::sync::Arc;
use std::time::Duration;

use http::Response;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::Notify;

use super::world::*;
use crate::Local;

/// A socket that says what it hears.
async fn echoing() -> Local {
    let script = |mut stream: tokio::net::TcpStream| async move {
        let (mut read, mut write) = stream.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
    };
    listening(script).await.0
}

async fn all(stream: &mut tokio::net::TcpStream) -> String {
    let mut text = String::new();
    tokio::time::timeout(SOON, stream.read_to_string(&mut text)).await.expect("an end").unwrap();
    text
}

#[tokio::test]
async fn bytes_are_passed_to_sockets_as_they_are_and_to_another_when_one_refuses() {
    let world = World::new().await;
    let port = free_port().await;
    world.start(1, closed().await);
    world.start(2, echoing().await);
    world.service("raw", "10.96.0.8", json!([{"port": 7, "nodePort": port}]));
    world.ready("raw", &[1, 2], json!([{"port": 7}]));
    world.known("raw", 2).await;
    for said in [
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0",
        "GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\nupgrade: websocket\r\n\r\n",
        "\u{1}\u{2}",
    ] {
        for _ in 0..8 {
            let mut stream = connect(port).await;
            write(&mut stream, said).await;
            stream.shutdown().await.unwrap();
            assert_eq!(all(&mut stream).await, said);
        }
    }
}

#[tokio::test]
async fn what_a_socket_cuts_off_does_not_end_as_if_it_were_whole() {
    let world = World::new().await;
    let port = free_port().await;
    let half = |mut stream: tokio::net::TcpStream| async move {
        stream.write_all(b"half").await.unwrap();
        // Until the client has it.
        let _ = stream.read_u8().await;
        stream.set_zero_linger().unwrap();
    };
    world.start(1, listening(half).await.0);
    world.service("raw", "10.96.0.8", json!([{"port": 7, "nodePort": port}]));
    world.ready("raw", &[1], json!([{"port": 7}]));
    world.known("raw", 1).await;
    let mut stream = connect(port).await;
    let mut read = [0; 4];
    stream.read_exact(&mut read).await.unwrap();
    write(&mut stream, "x").await;
    let ended = tokio::time::timeout(SOON, stream.read_u8()).await.expect("an end").unwrap_err();
    assert_eq!(ended.kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn one_number_serves_tcp_and_udp_whatever_comes_first() {
    for order in [[("t", "TCP"), ("u", "UDP")], [("u", "UDP"), ("t", "TCP")]] {
        let world = World::new().await;
        let port = free_port().await;
        // One pod that listens with both at one address.
        let (tcp, udp) = loop {
            let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
            if let Ok(udp) = UdpSocket::bind(tcp.local_addr().unwrap()).await {
                break (tcp, udp);
            }
        };
        world.start(1, Local::Tcp(tcp.local_addr().unwrap()));
        let ports: Vec<_> = order
            .iter()
            .map(|(name, protocol)| json!({"name": name, "port": 53, "nodePort": port, "protocol": protocol}))
            .collect();
        world.service("dns", "10.96.0.9", json!(ports));
        world.ready("dns", &[1], json!([{"name": "t", "port": 53}, {"name": "u", "port": 53, "protocol": "UDP"}]));
        world.known("dns", 1).await;
        let mut stream = connect(port).await;
        let (mut there, _) = tokio::time::timeout(SOON, tcp.accept()).await.expect("a connection").unwrap();
        write(&mut there, "tcp").await;
        drop(there);
        assert_eq!(all(&mut stream).await, "tcp");

        // Datagrams of each client come from one place, and what is answered comes from the node's port.
        let clients = [UdpSocket::bind("127.0.0.1:0").await.unwrap(), UdpSocket::bind("127.0.0.1:0").await.unwrap()];
        let mut sources = Vec::new();
        for round in 0..3 {
            for (at, client) in clients.iter().enumerate() {
                let said = format!("{round} {at}");
                client.send_to(said.as_bytes(), ("127.0.0.1", port)).await.unwrap();
                let mut buffer = [0; 16];
                let received = tokio::time::timeout(SOON, udp.recv_from(&mut buffer)).await.expect("a datagram");
                let (count, from) = received.unwrap();
                assert_eq!(&buffer[..count], said.as_bytes());
                udp.send_to(b"answer", from).await.unwrap();
                sources.push((at, from));
                let received = tokio::time::timeout(SOON, client.recv_from(&mut buffer)).await.expect("an answer");
                let (count, from) = received.unwrap();
                assert_eq!((&buffer[..count], from.port()), (&b"answer"[..], port));
            }
        }
        sources.sort_unstable();
        sources.dedup();
        assert_eq!(sources.len(), 2, "{sources:?}");
        assert!(world.pods.failures.lock().unwrap().is_empty());
    }
}

#[tokio::test]
async fn http_is_spoken_for_components_and_when_nobody_is_there() {
    let world = World::new().await;
    let port = free_port().await;
    world.service("web", "10.96.0.7", json!([{"port": 80, "nodePort": port}]));
    world.ready("web", &[], json!([{"port": 80}]));
    world.known("web", 0).await;
    let mut stream = connect(port).await;
    write(&mut stream, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let none = read_head(&mut stream).await;
    assert!(none.starts_with("HTTP/1.1 503"), "{none:?}");
    // The same connection is answered once somebody is there.
    world.start(1, echo().1);
    world.ready("web", &[1], json!([{"port": 80}]));
    world.known("web", 1).await;
    let mut stream = connect(port).await;
    for _ in 0..2 {
        write(&mut stream, "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nhi").await;
        let head = read_head(&mut stream).await;
        assert!(head.starts_with("HTTP/1.1 200"), "{head:?}");
        let mut body = [0; 2];
        stream.read_exact(&mut body).await.unwrap();
        assert_eq!(&body, b"hi");
    }
    // The Service goes, and with it the port.
    world.delete_service("web");
    assert_eq!(tokio::time::timeout(SOON, stream.read(&mut [0; 16])).await.expect("an end").unwrap(), 0);
}

#[tokio::test]
async fn what_has_begun_is_finished_at_the_end() {
    let world = World::new().await;
    let port = free_port().await;
    let (begun, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let script = (begun.clone(), go.clone());
    let (_, local) = called(move |_| {
        let (begun, go) = script.clone();
        async move {
            begun.notify_one();
            go.notified().await;
            Ok(Response::new(text("done".to_owned())))
        }
    });
    world.start(1, local);
    world.service("web", "10.96.0.7", json!([{"port": 80, "nodePort": port}]));
    world.ready("web", &[1], json!([{"port": 80}]));
    world.known("web", 1).await;
    let mut busy = connect(port).await;
    let mut idle = connect(port).await;
    write(&mut busy, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    begun.notified().await;
    world.stop.cancel();
    assert_eq!(tokio::time::timeout(SOON, idle.read(&mut [0; 16])).await.expect("an end").unwrap_or(0), 0);
    go.notify_one();
    let answer = all(&mut busy).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("done"), "{answer:?}");
    tokio::time::timeout(Duration::from_secs(4), world.running).await.expect("not the whole drain").unwrap();
}
