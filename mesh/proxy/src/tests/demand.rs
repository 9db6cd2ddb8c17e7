//! Services whose pods are scaled by what is asked of them: who comes to one without pods waits.

use std::time::Duration;

use coracle_policy::Source;
use http::Request;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

use super::world::*;
use crate::{Asked, Asker, Deadline, Error, Reader};

/// A Service `web` without pods, at a port of the node.
async fn asleep(world: &World) -> u16 {
    let port = free_port().await;
    world.activated("web", "10.96.0.7", json!([{"port": 80, "nodePort": port}]));
    world.ready("web", &[], json!([{"port": 8080}]));
    world.known("web", 0).await;
    port
}

/// Waits until so many wait.
async fn held(world: &World, count: usize) -> Vec<Asked> {
    let demands = world.proxy.demands();
    let waiting = async {
        loop {
            let told = demands.read(&mut Reader::default());
            if told.iter().map(|asked| asked.held).sum::<usize>() == count {
                return told;
            }
            // Who is the second to wait is no news.
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, waiting).await.expect("somebody waits")
}

#[tokio::test]
async fn who_comes_to_a_service_that_sleeps_waits_for_its_pod() {
    let world = World::new().await;
    let port = asleep(&world).await;
    let mut client = connect(port).await;
    write(&mut client, "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nnode").await;
    let guest = world.ask("POST", "guest");
    let woken = async {
        let told = held(&world, 2).await;
        assert_eq!((&*told[0].namespace, &*told[0].name, told[0].average), ("n", "web", 2.0));
        world.start(1, echo().1);
        world.ready("web", &[1], json!([{"port": 8080}]));
    };
    let ((status, body), ()) = tokio::join!(guest, woken);
    assert_eq!((status, &*body), (200, "guest"));
    let head = tokio::time::timeout(SOON, read_head(&mut client)).await.expect("an answer");
    assert!(head.starts_with("HTTP/1.1 200"), "{head:?}");
    held(&world, 0).await;
    // What has a pod is counted to the end of its answer.
    let answer = world
        .proxy
        .call(&Source::Node, "n", Request::get("http://web/").body(text(String::new())).unwrap())
        .await
        .unwrap();
    let mut reader = Reader::default();
    assert_eq!(world.proxy.demands().read(&mut reader).len(), 1);
    drop((answer, client));
    let over = async {
        while !world.proxy.demands().read(&mut reader).is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, over).await.expect("nothing is under way any more");
}

#[tokio::test]
async fn bytes_that_are_no_http_wait_too_for_clients_and_for_guests() {
    let world = World::new().await;
    let port = asleep(&world).await;
    let mut client = connect(port).await;
    write(&mut client, "\u{1}client").await;
    let (mut guest, there) = {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let connecting = tokio::net::TcpStream::connect(listener.local_addr().unwrap());
        let (guest, there) = tokio::join!(connecting, listener.accept());
        (guest.unwrap(), there.unwrap().0)
    };
    let to = "10.96.0.7:80".parse().unwrap();
    assert!(world.proxy.activates(to) && !world.proxy.activates("10.96.0.7:81".parse().unwrap()));
    let proxy = world.proxy.clone();
    tokio::spawn(async move { proxy.pass_on(Source::Node, to, Asker::Node, there).await });
    write(&mut guest, "\u{1}guest").await;
    held(&world, 2).await;
    let script = |mut stream: tokio::net::TcpStream| async move {
        let (mut read, mut write) = stream.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
    };
    world.start(1, listening(script).await.0);
    world.ready("web", &[1], json!([{"port": 8080}]));
    for (mut stream, said) in [(client, "\u{1}client"), (guest, "\u{1}guest")] {
        let mut heard = vec![0; said.len()];
        tokio::time::timeout(SOON, stream.read_exact(&mut heard)).await.expect("it is passed on").unwrap();
        assert_eq!(String::from_utf8(heard).unwrap(), said);
        let told = world.proxy.demands().read(&mut Reader::default());
        assert!(told[0].average >= 1.0, "it counts as long as it is open");
        stream.shutdown().await.unwrap();
        let _ = stream.read(&mut [0]).await;
    }
}

/// Whether something is under way, as a reader hears who reads for the first time.
fn is_asked(world: &World) -> bool {
    !world.proxy.demands().read(&mut Reader::default()).is_empty()
}

/// Waits until nothing is under way.
async fn over(world: &World) {
    let over = async {
        while is_asked(world) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, over).await.expect("nothing is under way any more");
}

#[tokio::test]
async fn a_connection_that_has_changed_its_protocol_counts_as_long_as_it_is_open() {
    let world = World::new().await;
    let port = asleep(&world).await;
    let chat = |mut stream: tokio::net::TcpStream| async move {
        read_head(&mut stream).await;
        write(&mut stream, "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: chat\r\n\r\n").await;
        let (mut read, mut write) = stream.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
    };
    // One that is called is asked first, so that the connection is served as HTTP; then one that listens takes its requests.
    world.start(1, echo().1);
    world.ready("web", &[1], json!([{"port": 8080}]));
    world.known("web", 1).await;
    let mut client = connect(port).await;
    write(&mut client, "GET / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n").await;
    assert!(read_head(&mut client).await.starts_with("HTTP/1.1 200"));
    over(&world).await;
    world.start(1, listening(chat).await.0);
    write(&mut client, "GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: chat\r\n\r\n").await;
    assert!(read_head(&mut client).await.starts_with("HTTP/1.1 101"));
    write(&mut client, "hello").await;
    client.read_exact(&mut [0; 5]).await.unwrap();
    assert!(is_asked(&world));
    assert_eq!(world.proxy.view("n", "web").unwrap().ports[0].endpoints[0].under_way, 1, "for the balancer, too");
    drop(client);
    over(&world).await;
    assert_eq!(world.proxy.view("n", "web").unwrap().ports[0].endpoints[0].under_way, 0);
}

#[tokio::test]
async fn what_is_under_way_when_a_service_begins_to_be_scaled_by_it_is_told_at_once() {
    let world = World::new().await;
    world.start(1, echo().1);
    world.web(&[1]).await;
    let answer = world
        .proxy
        .call(&Source::Node, "n", Request::get("http://web/").body(text(String::new())).unwrap())
        .await
        .unwrap();
    let demands = world.proxy.demands();
    let (mut reader, seen) = (Reader::default(), demands.news());
    assert_eq!(demands.read(&mut reader), [], "it is not scaled by what is asked");
    world.activated("web", "10.96.0.7", json!([{"port": 80}]));
    tokio::time::timeout(SOON, demands.changed(seen)).await.expect("it is news");
    let told = demands.read(&mut reader);
    assert!(told.len() == 1 && told[0].average > 0.0, "{told:?}");
    drop(answer);
    over(&world).await;
    assert_eq!(demands.read(&mut reader).len(), 1, "its end is told");
}

#[tokio::test]
async fn clients_that_have_gone_while_they_waited_are_not_held() {
    let world = World::new().await;
    let port = asleep(&world).await;
    let mut clients = Vec::new();
    for said in ["", "\u{1}", "GET / HTTP/1.1\r\nhost: a\r\n\r\n"] {
        let mut client = connect(port).await;
        write(&mut client, said).await;
        clients.push(client);
    }
    held(&world, 3).await;
    drop(clients);
    held(&world, 0).await;
    over(&world).await;
    // By connections that are served as HTTP, too, whatever they have sent of a body.
    world.start(1, echo().1);
    world.ready("web", &[1], json!([{"port": 8080}]));
    world.known("web", 1).await;
    let mut clients = Vec::new();
    for _ in 0..3 {
        let mut client = connect(port).await;
        write(&mut client, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        assert!(read_head(&mut client).await.starts_with("HTTP/1.1 200"));
        clients.push(client);
    }
    world.ready("web", &[], json!([{"port": 8080}]));
    world.known("web", 0).await;
    for (client, body) in clients.iter_mut().zip(["0\r\n\r\n", "4\r\n\r\nnode", "9\r\n\r\nhalf"]) {
        write(client, &format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {body}")).await;
    }
    held(&world, 3).await;
    drop(clients);
    held(&world, 0).await;
}

#[tokio::test]
async fn who_waits_is_let_go_at_its_deadline_and_when_nobody_will_come() {
    let world = World::new().await;
    asleep(&world).await;
    let mut request = Request::get("http://web/").body(text(String::new())).unwrap();
    request.extensions_mut().insert(Deadline(Instant::now() + Duration::from_millis(50)));
    assert!(matches!(world.proxy.call(&Source::Node, "n", request).await, Err(Error::Late)));
    held(&world, 0).await;
    let request = Request::get("http://web/").body(text(String::new())).unwrap();
    let forgotten = async {
        held(&world, 1).await;
        world.service("web", "10.96.0.7", json!([{"port": 80}]));
    };
    let (answer, ()) = tokio::join!(world.proxy.call(&Source::Node, "n", request), forgotten);
    assert!(matches!(answer, Err(Error::NoEndpoints { .. })), "it is scaled by nobody any more");
    let request = Request::get("http://web/").body(text(String::new())).unwrap();
    assert!(matches!(world.proxy.call(&Source::Node, "n", request).await, Err(Error::NoEndpoints { .. })));
}

#[tokio::test]
async fn a_pod_that_has_just_gone_is_waited_for_as_one_that_was_not_there() {
    let world = World::new().await;
    asleep(&world).await;
    // Discovery knows it still.
    world.ready("web", &[1], json!([{"port": 8080}]));
    world.known("web", 1).await;
    let asking = world.ask("POST", "late");
    let replaced = async {
        world.ready("web", &[], json!([{"port": 8080}]));
        held(&world, 1).await;
        world.start(2, echo().1);
        world.ready("web", &[2], json!([{"port": 8080}]));
    };
    let (answer, ()) = tokio::join!(asking, replaced);
    assert_eq!(answer, (200, "late".to_owned()));
}
