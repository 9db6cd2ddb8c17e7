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
async fn datagrams_of_a_client_that_never_rests_go_to_who_is_an_endpoint_now() {
    let world = World::new().await;
    let port = free_port().await;
    let pods = [UdpSocket::bind("127.0.0.1:0").await.unwrap(), UdpSocket::bind("127.0.0.1:0").await.unwrap()];
    for (n, pod) in (1..).zip(&pods) {
        world.start(n, Local::Tcp(pod.local_addr().unwrap()));
    }
    world.service("dns", "10.96.0.9", json!([{"port": 53, "nodePort": port, "protocol": "UDP"}]));
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    // The first one runs on, and is none of the Service's any more.
    for (n, pod) in (1..).zip(&pods) {
        world.ready("dns", &[n], json!([{"port": 53, "protocol": "UDP"}]));
        let word = [n];
        until(async || {
            let _ = client.send_to(&word, ("127.0.0.1", port)).await;
            let mut buffer = [0; 16];
            let heard = tokio::time::timeout(Duration::from_millis(20), pod.recv_from(&mut buffer)).await;
            heard.is_ok_and(|heard| heard.is_ok_and(|(count, _)| buffer[..count] == word))
        })
        .await;
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

/// What a client of this port is answered.
async fn ask(port: u16, path: &str) -> String {
    let mut stream = connect(port).await;
    write(&mut stream, &format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")).await;
    all(&mut stream).await
}

/// Components that say who they are, at these pods of this node and of another.
fn say_names(world: &World, here: &[u8], elsewhere: &[u8]) {
    let named = |n: u8| called(move |_| async move { Ok(Response::new(text(format!("pod{n}")))) }).0;
    here.iter().for_each(|n| world.start(*n, Local::Http(named(*n))));
    elsewhere.iter().for_each(|n| world.start_elsewhere(*n, named(*n)));
}

/// Waits until each side is answered so.
async fn until(mut is: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !is().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(SOON, waiting).await.expect("it becomes so");
}

#[tokio::test]
async fn local_traffic_stays_on_its_node_whatever_others_there_are() {
    let world = World::new().await;
    let port = free_port().await;
    say_names(&world, &[1], &[2]);
    let spec = |inside: &str, outside: &str| {
        json!({"type": "NodePort", "clusterIP": "10.96.0.7", "ports": [{"port": 80, "nodePort": port}],
            "internalTrafficPolicy": inside, "externalTrafficPolicy": outside})
    };
    let ports = || json!([{"port": 8080}]);
    for (inside, outside) in [("Local", "Cluster"), ("Cluster", "Local"), ("Local", "Local")] {
        world.service_with("web", 1, spec(inside, outside));
        // Of the other node there is one alone.
        world.placed("web", &[(2, "other", true)], ports());
        let is_so = |heard: &str, policy: &str| match policy {
            "Local" => heard.contains("NoneHere") || heard.contains("its traffic policy is Local"),
            _ => heard.ends_with("pod2"),
        };
        until(async || is_so(&world.ask("GET", "").await.1, inside) && is_so(&ask(port, "/").await, outside)).await;
        world.placed("web", &[(1, NODE, true), (2, "other", true)], ports());
        world.known("web", 2).await;
        until(async || ask(port, "/").await.contains("pod") && world.ask("GET", "").await.1.contains("pod")).await;
        for _ in 0..24 {
            let heard = [world.ask("GET", "").await.1, ask(port, "/").await];
            for (heard, policy) in heard.iter().zip([inside, outside]) {
                // Which of two answers is the balancer's choice.
                let is_one = heard.ends_with("pod1") || policy == "Cluster" && heard.ends_with("pod2");
                assert!(is_one, "{inside} {outside}: {heard}");
            }
        }
    }
    // The node's own one ends, and is asked still; then there is none, and nobody else is asked.
    world.placed("web", &[(1, NODE, false), (2, "other", true)], ports());
    world.known("web", 1).await;
    until(async || world.ask("GET", "").await.1 == "pod1" && ask(port, "/").await.ends_with("pod1")).await;
    world.placed("web", &[(2, "other", true)], ports());
    until(async || world.ask("GET", "").await.1.contains("NoneHere")).await;
    let outside = ask(port, "/").await;
    assert!(outside.starts_with("HTTP/1.1 503") && outside.contains("its traffic policy is Local"), "{outside}");
    let to = "10.96.0.7:80".parse().unwrap();
    let refused = world.proxy.connect_address(&coracle_policy::Source::Node, to, TCP);
    assert!(matches!(refused, Some(Err(crate::Error::NoneHere { .. }))), "{refused:?}");
}

#[tokio::test]
async fn a_balancer_s_health_check_tells_whether_the_node_has_endpoints() {
    let world = World::new().await;
    let (port, check) = (free_port().await, free_port().await);
    say_names(&world, &[1, 3], &[2]);
    let spec = json!({"type": "LoadBalancer", "clusterIP": "10.96.0.7", "ports": [{"port": port}],
        "externalTrafficPolicy": "Local", "healthCheckNodePort": check});
    world.service_with("web", 1, spec);
    let body = |count: u8| {
        format!(
            "{{\n\t\"service\": {{\n\t\t\"namespace\": \"n\",\n\t\t\"name\": \"web\"\n\t}},\n\t\"localEndpoints\": {count},\n\t\
             \"serviceProxyHealthy\": true\n}}"
        )
    };
    for (pods, status, count) in [
        (vec![(1, NODE, true), (2, "other", true), (3, NODE, true)], "200", 2),
        (vec![(2, "other", true)], "503", 0),
        // One that ends serves, and is to get no new clients.
        (vec![(1, NODE, false), (2, "other", true)], "503", 0),
        (vec![(1, NODE, true)], "200", 1),
    ] {
        world.placed("web", &pods, json!([{"port": 8080}]));
        let mut last = String::new();
        until(async || {
            last = ask(check, "/any").await;
            last.starts_with(&format!("HTTP/1.1 {status}")) && last.ends_with(&body(count))
        })
        .await;
        assert!(last.contains("content-type: application/json\r\n"), "{last}");
        assert!(last.contains(&format!("x-load-balancing-endpoint-weight: {count}\r\n")), "{last}");
    }
}

#[tokio::test]
async fn a_node_is_the_balancer_at_the_ports_that_it_can_have() {
    let world = World::new().await;
    let (port, taken) = (free_port().await, TcpListener::bind("127.0.0.1:0").await.unwrap());
    let held = taken.local_addr().unwrap().port();
    say_names(&world, &[1], &[2]);
    let spec = |ports: serde_json::Value| json!({"type": "LoadBalancer", "clusterIP": "None", "ports": ports});
    let two = json!([{"name": "a", "port": port}, {"name": "b", "port": held}]);
    world.service_with("old", 1, spec(two));
    world.service_with("new", 2, spec(json!([{"port": port}])));
    let mut other = spec(json!([{"port": port}]));
    other["loadBalancerClass"] = json!("example.com/other");
    world.service_with("other", 0, other);
    for service in ["old", "new", "other"] {
        world.placed(
            service,
            &[(1, NODE, true), (2, "other", true)],
            json!([{"name": "a", "port": 8080}, {"port": 8080}]),
        );
    }
    let mut opened = world.proxy.opened();
    let said = |opened: &[crate::Opened]| -> Vec<String> {
        opened.iter().map(|port| format!("{} {} {}", port.name, port.port, port.is_open)).collect()
    };
    let mut wanted = [format!("new {port} false"), format!("old {port} true"), format!("old {held} false")];
    wanted.sort();
    let is_so = |opened: &Vec<crate::Opened>| {
        let mut said = said(opened);
        said.sort();
        said == wanted
    };
    tokio::time::timeout(SOON, opened.wait_for(is_so)).await.expect("it is told").unwrap();
    assert!(ask(port, "/").await.contains("pod"));
    let mut failures = world.pods.failures.lock().unwrap().clone();
    failures.sort();
    assert_eq!(failures, [format!("new: port {port} is of old"), format!("old: port {held}")]);
    // The older one goes: the younger one has the port. Where no policy lets anybody of this node answer, nothing is said of it.
    world.delete_service("old");
    let is_new = |opened: &Vec<crate::Opened>| said(opened) == [format!("new {port} true")];
    tokio::time::timeout(SOON, opened.wait_for(is_new)).await.expect("it is told").unwrap();
    let mut local = spec(json!([{"port": port}]));
    local["externalTrafficPolicy"] = json!("Local");
    world.service_with("new", 2, local);
    world.placed("new", &[(2, "other", true)], json!([{"port": 8080}]));
    tokio::time::timeout(SOON, opened.wait_for(Vec::is_empty)).await.expect("it is told").unwrap();
}

#[tokio::test]
async fn a_balancer_s_ranges_keep_others_out_there_and_nowhere_else() {
    let world = World::new().await;
    let (port, node_port, udp) = (free_port().await, free_port().await, free_port().await);
    say_names(&world, &[1], &[]);
    let there = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    world.start(2, Local::Tcp(there.local_addr().unwrap()));
    let spec = |range: &str| {
        json!({"type": "LoadBalancer", "clusterIP": "10.96.0.7", "loadBalancerSourceRanges": [range],
            "ports": [{"name": "http", "port": port, "nodePort": node_port}]})
    };
    world.service_with("web", 1, spec("192.0.2.0/24"));
    world.placed("web", &[(1, NODE, true)], json!([{"name": "http", "port": 8080}]));
    assert!(ask(node_port, "/").await.contains("pod1"));
    let mut stream = connect(port).await;
    // It may be reset before anything is written.
    let _ = stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let ended = tokio::time::timeout(SOON, stream.read_u8()).await.expect("an end").unwrap_err();
    assert_eq!(ended.kind(), std::io::ErrorKind::ConnectionReset);
    world.service_with("web", 1, spec("127.0.0.0/8"));
    until(async || {
        let mut stream = connect(port).await;
        let _ = stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
        let mut text = String::new();
        stream.read_to_string(&mut text).await.is_ok_and(|_| text.contains("pod1"))
    })
    .await;
    // Who may not any more is not answered on a connection that is there.
    let mut kept = connect(port).await;
    write(&mut kept, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert!(read_head(&mut kept).await.starts_with("HTTP/1.1 200"));
    kept.read_exact(&mut [0; 4]).await.unwrap();
    world.service_with("web", 1, spec("192.0.2.0/24"));
    until(async || {
        let mut stream = connect(port).await;
        let _ = stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        stream.read_u8().await.is_err()
    })
    .await;
    write(&mut kept, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert!(read_head(&mut kept).await.starts_with("HTTP/1.1 503"));
    // And datagrams.
    let datagrams = |range: &str| {
        json!({"type": "LoadBalancer", "clusterIP": "10.96.0.8", "loadBalancerSourceRanges": [range],
            "ports": [{"port": udp, "protocol": "UDP"}]})
    };
    world.service_with("dns", 1, datagrams("127.0.0.0/8"));
    world.placed("dns", &[(2, NODE, true)], json!([{"port": 53, "protocol": "UDP"}]));
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut buffer = [0; 16];
    until(async || {
        let _ = client.send_to(b"let in", ("127.0.0.1", udp)).await;
        tokio::time::timeout(Duration::from_millis(50), there.recv_from(&mut buffer)).await.is_ok()
    })
    .await;
    world.service_with("dns", 1, datagrams("192.0.2.0/24"));
    // What was let in before is not any more.
    until(async || {
        let _ = client.send_to(b"kept out", ("127.0.0.1", udp)).await;
        let heard = async {
            loop {
                let (count, _) = there.recv_from(&mut buffer).await.unwrap();
                if &buffer[..count] == b"kept out" {
                    return;
                }
            }
        };
        tokio::time::timeout(Duration::from_millis(100), heard).await.is_err()
    })
    .await;
}
