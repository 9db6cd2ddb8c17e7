//! Who may connect to whom, on every way in and out.

use std::net::SocketAddr;
use std::sync::atomic::Ordering::Relaxed;

use coracle_discovery::Protocol;
use coracle_policy::Source;
use http::Request;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};

use super::world::*;
use crate::balance::Tried;
use crate::{Error, Flows, Local};

/// What only pods with this label may reach.
fn only(app: &str) -> Value {
    json!({"podSelector": {"matchLabels": {"app": "db"}}, "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": app}}}]}]})
}

/// What the pods with this label may reach.
fn reaches(app: &str, to: &str) -> Value {
    let to = json!([{"to": [{"podSelector": {"matchLabels": {"app": to}}}]}]);
    json!({"podSelector": {"matchLabels": {"app": app}}, "policyTypes": ["Egress"], "egress": to})
}

const REFUSED: &str = "NotAllowed(";

async fn ask(client: &mut TcpStream) -> u16 {
    write(client, "GET / HTTP/1.1\r\nhost: web\r\n\r\n").await;
    let head = read_head(client).await.to_ascii_lowercase();
    let length =
        head.lines().find_map(|line| line.strip_prefix("content-length: ")).map_or(0, |text| text.parse().unwrap());
    client.read_exact(&mut vec![0; length]).await.unwrap();
    head[9..12].parse().unwrap()
}

#[tokio::test]
async fn a_pod_is_called_by_whom_its_policies_name_and_a_change_is_felt_at_once() {
    let world = World::new().await;
    let (db, local) = echo();
    world.start(1, local);
    world.web(&[1]).await;
    world.known_as(1, "db");
    let (web, other) = (world.known_as(2, "web"), world.known_as(3, "other"));
    assert_eq!(world.ask_as(&other, "GET", "x").await.0, 200, "nobody is isolated");
    world.policy("db", only("web")).await;
    assert_eq!(world.ask_as(&web, "GET", "x").await.0, 200);
    let calls = db.calls.load(Relaxed);
    for nobody in [&other, &Source::Unknown, &Source::Outside([192, 0, 2, 1].into())] {
        let (_, refused) = world.ask_as(nobody, "GET", "x").await;
        assert!(refused.starts_with(REFUSED), "{refused}");
    }
    // By the pod's own address, too.
    let request = Request::get("http://10.9.0.1:8080/").body(text(String::new())).unwrap();
    assert!(matches!(world.proxy.call(&other, "n", request).await, Err(Error::NotAllowed(_))));
    assert_eq!(db.calls.load(Relaxed), calls, "it has heard of none of them");
    assert_eq!(world.ask_as(&Source::Node, "GET", "x").await.0, 200, "its node may");
    // What may leave the one, and may come to the other.
    world.policy("web", reaches("web", "cache")).await;
    assert!(world.ask_as(&web, "GET", "x").await.1.starts_with(REFUSED));
    world.policy("web", reaches("web", "db")).await;
    assert_eq!(world.ask_as(&web, "GET", "x").await.0, 200);
    world.policy("db", Value::Null).await;
    assert_eq!(world.ask_as(&other, "GET", "x").await.0, 200);
}

#[tokio::test]
async fn of_several_endpoints_those_are_asked_that_may_be() {
    let world = World::new().await;
    let ((shut, first), (open, second)) = (echo(), echo());
    world.start(1, first);
    world.start(2, second);
    world.web(&[1, 2]).await;
    world.known_as(1, "db");
    world.known_as(2, "open");
    let other = world.known_as(3, "other");
    world.policy("db", only("web")).await;
    for _ in 0..40 {
        assert_eq!(world.ask_as(&other, "GET", "").await.0, 200);
    }
    assert_eq!((shut.calls.load(Relaxed), open.calls.load(Relaxed)), (0, 40));
    // Whom one may not ask has not failed: others find it as before.
    let web = world.known_as(4, "web");
    for _ in 0..400 {
        assert_eq!(world.ask_as(&web, "GET", "").await.0, 200);
    }
    assert!(shut.calls.load(Relaxed) > 0);
}

/// Where there is no time to judge all of many, whoever is known to be open is asked.
#[tokio::test]
async fn who_may_ask_one_of_many_is_not_refused_for_those_that_were_not_looked_at_in_time() {
    let world = World::new().await;
    let all: Vec<u8> = (1..=200).collect();
    world.web(&all).await;
    for n in all {
        world.start(n, echo().1);
        world.known_as(n, if n == 100 { "open" } else { "db" });
    }
    let other = world.known_as(201, "other");
    world.policy("db", only("web")).await;
    let snapshot = world.discovery.snapshot();
    let route = world.proxy.route(snapshot.service("n", "web").unwrap(), 80, TCP).unwrap();
    for _ in 0..100 {
        let is_time = || *world.pods.looked_at.lock().unwrap() != Some(pod(100));
        let picked = world.proxy.pick_while(&other, &route, &mut Tried::default(), is_time);
        assert_eq!(picked.map(|(_, endpoint)| endpoint.address.ip()), Some(pod(100)));
    }
    // Whom nobody has looked at may be drawn still, a few times.
    world.known_as(100, "db");
    let mut tried = Tried::default();
    assert!(world.proxy.pick_while(&other, &route, &mut tried, || false).is_none());
    assert_eq!(tried.count(), 16);
}

#[tokio::test]
async fn a_connection_that_is_kept_is_judged_request_by_request() {
    let world = World::new().await;
    let node_port = free_port().await;
    world.start(1, echo().1);
    world.service("web", "10.96.0.7", json!([{"port": 80, "nodePort": node_port}]));
    world.ready("web", &[1], json!([{"port": 8080}]));
    world.known("web", 1).await;
    world.known_as(1, "db");
    let mut client = connect(node_port).await;
    assert_eq!(ask(&mut client).await, 200);
    world.policy("db", only("web")).await;
    assert_eq!(ask(&mut client).await, 403);
    // A client on this machine is nobody whom a block could mean.
    world
        .policy("blocks", json!({"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]}]}))
        .await;
    assert_eq!(ask(&mut client).await, 403);
    world.policy("blocks", json!({"podSelector": {}, "ingress": [{"ports": [{"port": 8080}]}]})).await;
    assert_eq!(ask(&mut client).await, 200);
}

#[tokio::test]
async fn sockets_are_connected_where_that_is_allowed() {
    let world = World::new().await;
    let node_port = free_port().await;
    let script = |mut stream: TcpStream| async move {
        let _ = stream.write_all(b"hello").await;
    };
    let (local, at) = listening(script).await;
    world.start(1, local);
    world.service("web", "10.96.0.7", json!([{"port": 80, "nodePort": node_port}]));
    world.ready("web", &[1], json!([{"port": 8080}]));
    world.known("web", 1).await;
    world.known_as(1, "db");
    let (web, other) = (world.known_as(2, "web"), world.known_as(3, "other"));
    world.policy("db", only("web")).await;
    let (service, own) = ("10.96.0.7:80".parse().unwrap(), SocketAddr::new(pod(1), 8080));
    for to in [service, own] {
        assert_eq!(world.proxy.connect_address(&web, to, TCP).unwrap().unwrap(), at);
        assert!(matches!(world.proxy.connect_address(&other, to, TCP), Some(Err(Error::NotAllowed(_)))));
    }
    let mut said = String::new();
    let mut client = connect(node_port).await;
    client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
    client.read_to_string(&mut said).await.unwrap();
    assert!(said.starts_with("HTTP/1.1 403"), "nothing of what listens there: {said}");
    world.policy("db", Value::Null).await;
    said.clear();
    connect(node_port).await.read_to_string(&mut said).await.unwrap();
    assert_eq!(said, "hello");
}

#[tokio::test]
async fn datagrams_are_judged_each_and_who_was_asked_may_answer() {
    let world = World::new().await;
    let sockets = [UdpSocket::bind("127.0.0.1:0").await.unwrap(), UdpSocket::bind("127.0.0.1:0").await.unwrap()];
    for (n, socket) in [1, 2].into_iter().zip(&sockets) {
        world.start(n, Local::Tcp(socket.local_addr().unwrap()));
    }
    let node_port = free_port().await;
    world.service("dns", "10.96.0.9", json!([{"port": 53, "protocol": "UDP", "nodePort": node_port}]));
    world.ready("dns", &[1], json!([{"port": 53}]));
    world.known("dns", 1).await;
    let (db, web) = (world.known_as(1, "db"), world.known_as(2, "web"));
    let (service, at) = ("10.96.0.9:53".parse().unwrap(), |n| SocketAddr::new(pod(n), 53));
    // Where those listen who ask.
    let asker = |n| SocketAddr::new(pod(n), 45_678);
    let (flows, answers) = (Flows::default(), Flows::default());
    let is_sent = |flows: &Flows, source: &Source, to| flows.send(&world.proxy, source, to).unwrap().is_ok();
    assert!(is_sent(&flows, &web, service));
    // It may be asked by this one, and may itself ask nobody.
    world.policy("db", only("web")).await;
    world.policy("silent", reaches("db", "nobody")).await;
    assert!(!is_sent(&answers, &db, asker(2)), "nobody has asked it since");
    for to in [service, at(1)] {
        assert!(is_sent(&flows, &web, to));
    }
    assert!(is_sent(&answers, &db, asker(2)) && !is_sent(&answers, &db, asker(3)), "an answer");
    assert!(!is_sent(&answers, &db, at(2)), "no answer goes to where it may serve others");
    world.policy("db", only("other")).await;
    for to in [service, at(1)] {
        assert!(!is_sent(&flows, &web, to), "an endpoint that is remembered");
    }
    // At a port of the node.
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut heard = [0; 8];
    let tell = async |client: &UdpSocket, word: &[u8]| {
        // Somebody listens there sooner or later.
        client.send_to(word, ("127.0.0.1", node_port)).await.unwrap();
    };
    world.policy("db", json!({"podSelector": {"matchLabels": {"app": "db"}}, "ingress": [{}]})).await;
    let open = async {
        loop {
            tell(&client, b"open").await;
            let received =
                tokio::time::timeout(std::time::Duration::from_millis(20), sockets[0].recv_from(&mut heard)).await;
            if let Ok(received) = received {
                return received.unwrap().0;
            }
        }
    };
    assert_eq!(tokio::time::timeout(SOON, open).await.unwrap(), 4);
    world.policy("db", only("web")).await;
    tell(&client, b"shut").await;
    // What came before.
    let later = async |heard: &mut [u8]| loop {
        let (count, _) = sockets[0].recv_from(heard).await.unwrap();
        if &heard[..count] != b"open" {
            return heard[..count].to_vec();
        }
    };
    let heard_of = tokio::time::timeout(std::time::Duration::from_millis(300), later(&mut heard)).await;
    assert!(heard_of.is_err(), "{heard_of:?}");
    world.policy("db", json!({"podSelector": {"matchLabels": {"app": "db"}}, "ingress": [{}]})).await;
    tell(&client, b"again").await;
    assert_eq!(tokio::time::timeout(SOON, later(&mut heard)).await.unwrap(), b"again");
}

#[tokio::test]
async fn datagrams_find_the_endpoint_that_has_a_socket_among_many_that_are_called_and_none_of_those_has_failed() {
    let world = World::new().await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let all: Vec<u8> = (1..=60).collect();
    for n in &all {
        match n {
            30 => world.start(*n, Local::Tcp(socket.local_addr().unwrap())),
            n => world.start(*n, echo().1),
        }
    }
    world.service("dns", "10.96.0.9", json!([{"port": 53, "protocol": "UDP"}]));
    world.ready("dns", &all, json!([{"port": 53}]));
    world.known("dns", all.len()).await;
    let web = world.known_as(200, "web");
    let to = "10.96.0.9:53".parse().unwrap();
    for _ in 0..100 {
        let found = world.proxy.connect_address(&web, to, Protocol::Udp).unwrap();
        assert_eq!(found.unwrap(), socket.local_addr().unwrap());
    }
    let snapshot = world.discovery.snapshot();
    let route = world.proxy.route(snapshot.service("n", "dns").unwrap(), 53, Protocol::Udp).unwrap();
    assert!(route.balancer.view().iter().all(|endpoint| endpoint.left_out.is_none()));
    assert_eq!(route.balancer.stats.ejections.load(Relaxed), 0);
}

#[tokio::test]
async fn another_node_is_told_who_asks_and_is_believed_when_it_says_who_answers() {
    let world = World::new().await;
    let (theirs, _) = echo();
    world.start_elsewhere(1, theirs.clone());
    world.web(&[1]).await;
    world.known_as(1, "db");
    let (web, other) = (world.known_as(2, "web"), world.known_as(3, "other"));
    // Without policies all share what is kept, and each says who it is.
    for source in [&web, &other].repeat(10) {
        assert_eq!(world.ask_as(source, "GET", "").await.0, 200);
    }
    let asked: Vec<Source> = (0..10).flat_map(|_| [web.clone(), other.clone()]).collect();
    assert_eq!(*world.pods.asked.lock().unwrap(), asked);
    assert!(world.pods.connected.lock().unwrap().len() < 10, "connections are kept");
    // Its node lets nobody in.
    world.pods.is_shut_elsewhere.store(true, Relaxed);
    for _ in 0..20 {
        assert!(world.ask_as(&web, "GET", "").await.1.starts_with(REFUSED), "and it has not failed");
    }
    assert_eq!(theirs.calls.load(Relaxed), 20);
    world.pods.is_shut_elsewhere.store(false, Relaxed);
    // What may go there is decided here, and the first of a pod's requests asks who is there.
    world.policy("web", reaches("web", "cache")).await;
    world.pods.connected.lock().unwrap().clear();
    for _ in 0..2 {
        assert!(world.ask_as(&web, "GET", "").await.1.starts_with(REFUSED));
        assert_eq!(world.ask_as(&other, "GET", "").await.0, 200);
    }
    let connected = world.pods.connected.lock().unwrap().clone();
    assert!(connected.iter().all(|source| *source == web), "who may go anywhere shares what is kept: {connected:?}");
    world.policy("web", reaches("web", "db")).await;
    assert_eq!(world.ask_as(&web, "GET", "").await.0, 200);
    // What was heard of a pod that has other labels by now stands in nobody's way.
    world.policy("web", reaches("web", "renamed")).await;
    assert!(world.ask_as(&web, "GET", "").await.1.starts_with(REFUSED));
    world.known_as(1, "renamed");
    assert_eq!(world.ask_as(&web, "GET", "").await.0, 200);
    // A node that does not say of whom it speaks is no way for who may go to some only.
    world.pods.workloads.lock().unwrap().remove(&pod(4));
    world.start_elsewhere(4, theirs);
    let request = Request::get("http://10.9.0.4/").body(text(String::new())).unwrap();
    assert!(matches!(world.proxy.call(&web, "n", request).await, Err(Error::NotAllowed(_))));
}

#[tokio::test]
async fn a_socket_of_another_node_is_connected_for_one_source_only() {
    let world = World::new().await;
    world.start_elsewhere(1, echo().0);
    world.pods.listen_elsewhere.store(true, Relaxed);
    world.web(&[1]).await;
    world.known_as(1, "db");
    let (web, other) = (world.known_as(2, "web"), world.known_as(3, "other"));
    world.policy("any", only("web")).await;
    for source in [&web, &other, &web, &other] {
        assert_eq!(world.ask_as(source, "GET", "").await.0, 200, "its node lets them in");
    }
    assert_eq!(world.pods.connected.lock().unwrap()[..2], [web.clone(), other.clone()]);
    // What was kept is not used after a change.
    world.pods.is_shut_elsewhere.store(true, Relaxed);
    world.policy("any", only("nobody")).await;
    assert!(world.ask_as(&web, "GET", "").await.1.starts_with(REFUSED));
    let refused = world.proxy.connect_elsewhere(SocketAddr::new(pod(1), 80), web).await;
    assert!(refused.is_err_and(|error| crate::NotAllowed::is_cause(&error)));
}

#[tokio::test]
async fn a_guest_of_another_node_that_listens_itself_is_told_nothing_of_who_asks() {
    let world = World::new().await;
    let (listens, _) = called(|request| async move {
        let told = request.headers().keys().filter(|name| name.as_str().starts_with("x-coracle")).count();
        Ok(http::Response::new(text(told.to_string())))
    });
    world.start_elsewhere(1, listens);
    world.pods.listen_elsewhere.store(true, Relaxed);
    world.web(&[1]).await;
    let (web, changed) = (world.known_as(2, "web"), world.known_as(2, "other"));
    for _ in 0..3 {
        assert_eq!(world.ask_as(&web, "GET", "").await, (200, "0".to_owned()));
    }
    assert_eq!(world.pods.connected.lock().unwrap().len(), 1, "what it was learnt by is used, and kept");
    // Who has other labels is judged anew.
    world.policy("any", only("web")).await;
    for source in [&web, &changed, &web, &changed] {
        assert_eq!(world.ask_as(source, "GET", "").await.0, 200);
    }
    assert_eq!(world.pods.connected.lock().unwrap().len(), 3, "a stream for each of what is said of the pod");
    // A component has taken its place.
    world.start_elsewhere(1, echo().0);
    world.pods.listen_elsewhere.store(false, Relaxed);
    world.policy("any", only("other")).await;
    while world.ask_as(&web, "GET", "x").await.0 != 200 {}
    assert_eq!(world.pods.asked.lock().unwrap().last(), Some(&web), "it is told");
}

#[tokio::test]
async fn however_many_may_not_be_asked_one_that_may_is_found() {
    let world = World::new().await;
    let all: Vec<u8> = (1..=40).collect();
    for n in &all {
        world.start(*n, echo().1);
        world.known_as(*n, if *n == 7 { "open" } else { "db" });
    }
    world.web(&all).await;
    let other = world.known_as(99, "other");
    world.policy("db", only("web")).await;
    for _ in 0..20 {
        assert_eq!(world.ask_as(&other, "GET", "").await.0, 200);
    }
    world.known_as(7, "db");
    assert!(world.ask_as(&other, "GET", "").await.1.starts_with(REFUSED));
    // The same of pods of another node, which say so themselves.
    world.policy("db", Value::Null).await;
    world.pods.is_shut_elsewhere.store(true, Relaxed);
    let (shut, _) = echo();
    for n in all.iter().filter(|n| **n != 7) {
        world.end(*n);
        world.start_elsewhere(*n, shut.clone());
    }
    for _ in 0..20 {
        assert_eq!(world.ask_as(&other, "GET", "").await.0, 200);
    }
    assert_eq!(shut.calls.load(Relaxed), 0);
    // But not more nodes are asked for one request than that.
    let all: Vec<u8> = (1..=90).collect();
    all.iter().for_each(|n| world.start_elsewhere(*n, shut.clone()));
    world.end(7);
    world.web(&all).await;
    world.pods.asked.lock().unwrap().clear();
    assert!(world.ask_as(&other, "GET", "").await.1.starts_with(REFUSED));
    assert_eq!(world.pods.asked.lock().unwrap().len(), crate::retry::REFUSALS_MAX);
}

#[tokio::test]
async fn a_connection_that_one_node_refuses_goes_to_another_endpoint_and_is_reset_where_there_is_none() {
    let world = World::new().await;
    world.pods.is_shut_elsewhere.store(true, Relaxed);
    world.pods.listen_elsewhere.store(true, Relaxed);
    for n in 1..=8 {
        world.start_elsewhere(n, echo().0);
    }
    let script = |mut stream: TcpStream| async move {
        let (mut read, mut write) = stream.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
    };
    world.start(9, listening(script).await.0);
    world.web(&[1, 2, 3, 4, 5, 6, 7, 8, 9]).await;
    let asker = world.known_as(10, "web");
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let to = "10.96.0.7:80".parse().unwrap();
    let connect = async || {
        let connecting = TcpStream::connect(listener.local_addr().unwrap());
        let (guest, there) = tokio::join!(connecting, listener.accept());
        let (proxy, asker) = (world.proxy.clone(), asker.clone());
        let there = there.unwrap().0;
        tokio::spawn(async move { proxy.pass_on(asker, to, crate::Asker::Pod(pod(10)), there).await });
        guest.unwrap()
    };
    for _ in 0..20 {
        let mut guest = connect().await;
        guest.write_all(b"\x01echo").await.unwrap();
        let mut heard = [0; 5];
        tokio::time::timeout(SOON, guest.read_exact(&mut heard)).await.expect("an echo").unwrap();
    }
    world.ready("web", &[1, 2], json!([{"port": 8080}]));
    world.known("web", 2).await;
    let mut guest = connect().await;
    let ended = tokio::time::timeout(SOON, guest.read(&mut [0])).await.expect("it ends");
    assert_eq!(ended.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_datagram_from_outside_is_an_answer_where_policies_are_about_what_comes() {
    let world = World::new().await;
    let (db, web) = (world.known_as(1, "db"), world.known_as(2, "web"));
    let (asked, stranger) = ("198.51.100.7:53".parse::<SocketAddr>().unwrap(), "198.51.100.8".parse().unwrap());
    assert!(world.proxy.takes_datagram(&db, stranger));
    world.policy("db", only("web")).await;
    assert!(!world.proxy.takes_datagram(&db, asked.ip()) && world.proxy.takes_datagram(&web, stranger));
    assert!(world.proxy.permits_datagram(&db, asked));
    assert!(world.proxy.takes_datagram(&db, asked.ip()) && !world.proxy.takes_datagram(&db, stranger));
}

#[tokio::test]
async fn who_is_another_to_policies_is_told_apart() {
    let world = World::new().await;
    let (web, (relabelled, _)) = (world.known_as(2, "web"), tokio::sync::watch::channel(()));
    let mut other = Box::pin(world.proxy.until_other(&web, relabelled.subscribe()));
    world.known_as(2, "other");
    relabelled.send_replace(());
    assert!(futures::poll!(other.as_mut()).is_pending(), "there is nobody to whom it matters");
    world.policy("db", only("web")).await;
    tokio::time::timeout(SOON, other).await.expect("now it matters");
    let again = world.known_as(2, "web");
    let mut other = Box::pin(world.proxy.until_other(&again, relabelled.subscribe()));
    assert!(futures::poll!(other.as_mut()).is_pending());
    world.known_as(2, "other");
    relabelled.send_replace(());
    tokio::time::timeout(SOON, other).await.expect("it is told");
}

#[tokio::test]
async fn what_stands_before_a_component_judges_for_it() {
    let world = World::new().await;
    let (db, _) = echo();
    world.known_as(1, "db");
    let other = world.known_as(3, "other");
    let guarded = world.proxy.guarded(other.clone(), SocketAddr::new(pod(1), 80), db.clone());
    let (mut client, server) = tokio::io::duplex(1 << 16);
    tokio::spawn(crate::serve_stream(server, guarded.clone()));
    let request = Request::get("/").body(text(String::new())).unwrap();
    assert!(guarded.call(request).await.is_ok());
    world.policy("db", only("web")).await;
    client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut said = String::new();
    client.read_to_string(&mut said).await.unwrap();
    assert!(said.starts_with("HTTP/1.1 403"), "{said}");
    assert_eq!(db.calls.load(Relaxed), 1);
}
