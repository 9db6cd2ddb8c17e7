//! Datagrams between two nodes: a world each, whose second has the pods that are elsewhere for the first.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use coracle_policy::Source;
use serde_json::{Value, json};
use tokio::net::UdpSocket;

use super::world::*;
use crate::{Flows, Local};

const SERVICE: &str = "10.96.0.9:53";

/// The largest that UDP over IPv4 takes.
const LARGEST: usize = 65_507;

/// The node of those who ask, which knows these pods to be on the other one.
async fn nodes(pods: &[u8]) -> (World, World) {
    let (here, there) = (World::new().await, World::new().await);
    *here.pods.other.lock().unwrap() = Some(there.proxy.clone());
    for n in pods {
        here.is_elsewhere(*n);
    }
    here.service("dns", "10.96.0.9", json!([{"port": 53, "protocol": "UDP"}]));
    here.ready("dns", pods, json!([{"port": 5353, "protocol": "UDP"}]));
    here.known("dns", pods.len()).await;
    (here, there)
}

/// What listens for datagrams at this pod of its node.
async fn listens(at: &World, n: u8) -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    at.start(n, Local::Tcp(socket.local_addr().unwrap()));
    socket
}

/// A socket of the pod 1 of its node.
async fn guest() -> UdpSocket {
    UdpSocket::bind("127.85.0.1:0").await.unwrap()
}

async fn hears(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buffer = vec![0; 1 << 16];
    let heard = tokio::time::timeout(SOON, socket.recv_from(&mut buffer)).await.expect("a datagram comes");
    let (count, from) = heard.unwrap();
    buffer.truncate(count);
    (buffer, from)
}

/// Says it again and again until it is heard there: what was heard of before is left aside.
async fn is_heard(say: impl AsyncFn(&[u8]), word: &[u8], there: &UdpSocket) -> SocketAddr {
    let heard = async {
        let mut buffer = [0; 64];
        loop {
            say(word).await;
            let heard = tokio::time::timeout(Duration::from_millis(50), there.recv_from(&mut buffer)).await;
            if let Ok(Ok((count, from))) = heard
                && &buffer[..count] == word
            {
                return from;
            }
        }
    };
    tokio::time::timeout(SOON, heard).await.expect("it is heard")
}

#[tokio::test]
async fn a_guest_s_datagrams_reach_a_pod_of_another_node_and_the_service_answers() {
    let (here, there) = nodes(&[2]).await;
    let (guest, pod_2) = (guest().await, listens(&there, 2).await);
    let (web, flows) = (here.known_as(1, "web"), Flows::default());
    let service: SocketAddr = SERVICE.parse().unwrap();
    let real = flows.send(&here.proxy, &web, service).unwrap().unwrap();
    assert_eq!(here.proxy.datagrams_lead(real), Some(SocketAddr::new(pod(2), 5353)));
    let largest = vec![7; LARGEST];
    for said in [&b"first"[..], b"", &largest, b"last"] {
        assert_eq!(flows.send(&here.proxy, &web, service).unwrap().unwrap(), real);
        guest.send_to(said, real).await.unwrap();
        let (heard, from) = hears(&pod_2).await;
        assert!(heard == said, "{} bytes of {}", heard.len(), said.len());
        let own = pod_2.local_addr().unwrap().ip();
        assert!(there.proxy.has_upstream(own, from.port()), "the pod may answer there");
        pod_2.send_to(&heard, from).await.unwrap();
        let (answer, from) = hears(&guest).await;
        assert!(answer == said && from == real);
        assert_eq!(flows.shown(from), Some(service));
    }
    // By the pod's own address it is the same flow, and the pod that answers.
    let by_address = flows.send(&here.proxy, &web, SocketAddr::new(pod(2), 5353)).unwrap().unwrap();
    assert_eq!((by_address, flows.shown(real)), (real, None));
    assert_eq!(*here.pods.connected.lock().unwrap(), [web], "one stream for all, and the node says for whom");
    // Another socket of the pod is another flow; who is no pod has none.
    let (other, stranger) = (self::guest().await, UdpSocket::bind("127.0.0.1:0").await.unwrap());
    stranger.send_to(b"stranger", real).await.unwrap();
    other.send_to(b"other", real).await.unwrap();
    let (heard, from) = hears(&pod_2).await;
    assert_eq!(heard, b"other");
    pod_2.send_to(b"yours", from).await.unwrap();
    assert_eq!(hears(&other).await.0, b"yours");
    assert_eq!(here.pods.connected.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn a_port_of_a_node_leads_to_datagrams_of_another() {
    let (here, there) = nodes(&[2]).await;
    let (pod_2, node_port) = (listens(&there, 2).await, free_port().await);
    here.service("dns", "10.96.0.9", json!([{"port": 53, "protocol": "UDP", "nodePort": node_port}]));
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let say = async |word: &[u8]| drop(client.send_to(word, ("127.0.0.1", node_port)).await);
    let from = is_heard(say, b"hello", &pod_2).await;
    for said in [&b"one"[..], b"", b"three"] {
        pod_2.send_to(said, from).await.unwrap();
        let (heard, by) = hears(&client).await;
        assert_eq!((&heard[..], by.port()), (said, node_port));
    }
    let outside = Source::Outside(IpAddr::from([127, 0, 0, 1]));
    assert!(here.pods.connected.lock().unwrap().iter().all(|source| *source == outside));
}

/// Pods with this label are reached by those with that one.
fn only(app: &str, from: &str) -> Value {
    let from = json!([{"from": [{"podSelector": {"matchLabels": {"app": from}}}]}]);
    json!({"podSelector": {"matchLabels": {"app": app}}, "policyTypes": ["Ingress"], "ingress": from})
}

/// The same at the other end.
fn reaches(app: &str, to: &str) -> Value {
    let to = json!([{"to": [{"podSelector": {"matchLabels": {"app": to}}}]}]);
    json!({"podSelector": {"matchLabels": {"app": app}}, "policyTypes": ["Egress"], "egress": to})
}

#[tokio::test]
async fn both_nodes_judge_datagrams_and_a_change_is_felt_in_a_flow() {
    let (here, there) = nodes(&[2]).await;
    let (guest, pod_2) = (guest().await, listens(&there, 2).await);
    let web = here.known_as(1, "web");
    // What its node says of it.
    let _db = (here.known_as(2, "db"), there.known_as(2, "db"));
    let at = here.proxy.connect_address(&web, SocketAddr::new(pod(2), 5353), UDP).unwrap().unwrap();
    let say = async |word: &[u8]| drop(guest.send_to(word, at).await);
    let is_silent = async |word: &[u8]| {
        for _ in 0..5 {
            say(word).await;
        }
        let mut buffer = [0; 64];
        let heard = async {
            loop {
                let (count, _) = pod_2.recv_from(&mut buffer).await.unwrap();
                if &buffer[..count] == word {
                    return;
                }
            }
        };
        tokio::time::timeout(Duration::from_millis(300), heard).await.is_err()
    };
    is_heard(say, b"open", &pod_2).await;
    for (node, app, let_in, shut) in [
        (&there, "called", only("db", "web"), only("db", "other")),
        (&here, "calls", reaches("web", "db"), reaches("web", "other")),
    ] {
        node.policy(app, let_in.clone()).await;
        is_heard(say, app.as_bytes(), &pod_2).await;
        node.policy(app, shut).await;
        assert!(is_silent(b"shut").await, "{app}");
        node.policy(app, let_in).await;
        is_heard(say, b"again", &pod_2).await;
    }
    // One that is another to policies than when it began is judged as that.
    here.known_as(1, "other");
    assert!(is_silent(b"relabelled").await);
    here.known_as(1, "web");
    is_heard(say, b"as before", &pod_2).await;
}

#[tokio::test]
async fn an_endpoint_of_another_node_that_is_not_reached_or_refuses_gives_way_to_one_that_is() {
    for refuses in [false, true] {
        let (here, there) = nodes(&[2, 3]).await;
        let (guest, pod_3) = (guest().await, listens(&there, 3).await);
        let web = here.known_as(1, "web");
        there.known_as(2, "shut");
        let _pod_2 = match refuses {
            true => Some(listens(&there, 2).await),
            false => None,
        };
        there.policy("shut", only("shut", "nobody")).await;
        // Each begins at either.
        for n in 0..8 {
            let flows = Flows::default();
            let say = async |word: &[u8]| {
                if let Some(Ok(real)) = flows.send(&here.proxy, &web, SERVICE.parse().unwrap()) {
                    let _ = guest.send_to(word, real).await;
                }
            };
            is_heard(say, format!("{n}").as_bytes(), &pod_3).await;
        }
        let tried = here.pods.connected.lock().unwrap().len();
        assert!(tried < 30, "one that fails is left alone for a while: {tried} streams");
    }
}

#[tokio::test]
async fn a_program_that_binds_late_gets_the_first_datagram_and_a_flow_ends_with_its_pod() {
    let (here, there) = nodes(&[2]).await;
    let guest = guest().await;
    let early = UdpSocket::bind("127.83.0.11:0").await.unwrap();
    let to = early.local_addr().unwrap();
    drop(early);
    there.start(2, Local::Tcp(to));
    let web = here.known_as(1, "web");
    let at = here.proxy.connect_address(&web, SocketAddr::new(pod(2), 5353), UDP).unwrap().unwrap();
    guest.send_to(b"first", at).await.unwrap();
    guest.send_to(b"second", at).await.unwrap();
    let begun = async {
        while there.proxy.upstreams.locked().is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, begun).await.unwrap();
    let late = UdpSocket::bind(to).await.unwrap();
    for said in [&b"first"[..], b"second"] {
        assert_eq!(hears(&late).await.0, said);
    }
    // Nobody is there any more: the flow ends, and with it what the pod might answer.
    drop(late);
    let over = async {
        while !there.proxy.upstreams.locked().is_empty() {
            guest.send_to(b"gone", at).await.unwrap();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(SOON, over).await.unwrap();
}

/// A stream of another node may say anything.
#[tokio::test]
async fn what_another_node_writes_is_datagrams_or_the_end() {
    let world = World::new().await;
    let pod = listens(&world, 1).await;
    let at = pod.local_addr().unwrap();
    for (bytes, expected, is_in_order) in [
        (&b""[..], vec![], true),
        (b"\0\x02ab\0\0", vec![&b"ab"[..], b""], true),
        (b"\0\x02ab\0", vec![b"ab"], false),
        (b"\xff\xffab", vec![], false),
    ] {
        let (mut ours, theirs) = tokio::io::duplex(1 << 10);
        let serving = tokio::spawn(world.proxy.upstream(at).await.unwrap().serve(theirs, || true));
        tokio::io::AsyncWriteExt::write_all(&mut ours, bytes).await.unwrap();
        drop(ours);
        let ended = tokio::time::timeout(SOON, serving).await.expect("it ends").unwrap();
        assert_eq!(ended.is_ok(), is_in_order, "{bytes:?}: {ended:?}");
        for datagram in expected {
            assert_eq!(hears(&pod).await.0, datagram, "{bytes:?}");
        }
    }
    assert!(world.proxy.upstreams.locked().is_empty());
}
