//! UDP at a node's port. All datagrams of one client go to the same endpoint, from a socket of their own, or as a flow to another node, and
//! what comes back there goes to the client from the node's port.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use coracle_discovery::Protocol;
use coracle_policy::Source;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Inbound, UDP_CLIENTS_MAX};
use crate::balance::{Picked, Tried};
use crate::datagrams::{self, AGAIN_AFTER, BOUND_WITHIN, Carry, DATAGRAM_BYTES_MAX, ERROR_WAIT, Outbox, Upstream};
use crate::places::Place;

/// What one client says, to whom.
struct Flow {
    way: Way,
    /// The endpoint.
    to: SocketAddr,
    begun: Instant,
    /// It has rested or given way, its endpoint is gone or not the Service's any more, or another has taken its place.
    over: CancellationToken,
    /// Its endpoint had not bound its socket yet when it began.
    is_early: bool,
    place: Place,
    _picked: Picked,
}

enum Way {
    Here(Upstream),
    /// Another task carries it.
    Elsewhere(Outbox),
}

impl Flow {
    fn rests_at(&self) -> Instant {
        datagrams::rests_at(&self.place.turns, self.begun)
    }

    /// Whether it waits for its endpoint to bind its socket.
    fn is_waiting(&self) -> bool {
        self.is_early && self.begun.elapsed() < BOUND_WITHIN
    }

    /// Whether the kernel has said that nobody has bound the port there; another node's waits for that itself.
    fn is_refused(&self) -> bool {
        match &self.way {
            Way::Here(upstream) => upstream.is_refused(),
            Way::Elsewhere(_) => false,
        }
    }

    async fn send(&self, datagram: &[u8]) -> io::Result<()> {
        if self.over.is_cancelled() {
            return Err(io::ErrorKind::NotConnected.into());
        }
        self.place.turns.used(false);
        match &self.way {
            Way::Here(upstream) => upstream.socket().send(datagram).await.map(|_| ()),
            Way::Elsewhere(outbox) => {
                outbox.put(datagram);
                Ok(())
            }
        }
    }
}

/// Relays until told to stop.
pub(super) async fn relay(inbound: Inbound, socket: UdpSocket) {
    let socket = Arc::new(socket);
    let mut flows: HashMap<SocketAddr, Arc<Flow>> = HashMap::new();
    let (over, mut overs) = mpsc::channel::<SocketAddr>(UDP_CLIENTS_MAX.port);
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
    let mut service = inbound.target.load().service.clone();
    loop {
        // Waiting is all that is cut here.
        let received = tokio::select! {
            () = inbound.stop.cancelled() => return,
            Some(client) = overs.recv() => {
                // It may have come again in between.
                if flows.get(&client).is_some_and(|flow| flow.over.is_cancelled()) {
                    flows.remove(&client);
                }
                continue;
            }
            received = socket.recv_from(&mut buffer) => received,
        };
        let (datagram, client) = match received {
            Ok((count, client)) => (&buffer[..count], client),
            Err(error) => {
                tracing::debug!(%error, "receive at a node port");
                tokio::time::sleep(ERROR_WAIT).await;
                continue;
            }
        };
        if !inbound.lets_in(client.ip()) {
            continue;
        }
        if !Arc::ptr_eq(&inbound.target.load().service, &service) {
            service = inbound.target.load().service.clone();
            leave(&inbound, &flows);
        }
        let source = Source::Outside(client.ip());
        let flow = flows.get(&client);
        if let Some(flow) = flow.filter(|flow| !inbound.proxy.permits(&source, flow.to, Protocol::Udp)) {
            // It was allowed before. Another endpoint may be so still.
            flow.over.cancel();
        } else if let Some(flow) = flow {
            match flow.send(datagram).await {
                Ok(()) => continue,
                // Its first datagram is sent again until the program comes.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused && flow.is_waiting() => continue,
                // Its task gives its place back: nobody else ends it.
                Err(_) => flow.over.cancel(),
            }
        }
        // New, or its endpoint has gone: another is found.
        let Some((mut flow, carry)) = connect(&inbound, &source).await else { continue };
        let _ = flow.send(datagram).await;
        // Only the first: what comes after it would be out of order, or too much.
        flow.is_early = !flows.contains_key(&client) && flow.is_refused();
        let first = flow.is_early.then(|| datagram.to_vec());
        let flow = Arc::new(flow);
        flows.insert(client, flow.clone());
        let (socket, over) = (socket.clone(), over.clone());
        inbound.tasks.spawn(async move {
            let passed = async {
                match (&flow.way, carry) {
                    (Way::Here(upstream), _) => replies(&flow, upstream, &socket, client, first).await,
                    (Way::Elsewhere(_), Some(carry)) => carry.run(&socket, client, &flow.place.turns).await,
                    (Way::Elsewhere(_), None) => Ok(()),
                }
            };
            tokio::select! {
                () = flow.over.cancelled() => {}
                result = passed => if let Err(error) = result {
                    tracing::debug!(%error, "datagram");
                },
            }
            flow.over.cancel();
            let _ = over.send(client).await;
        });
    }
}

/// Ends the flows to whom the Service that has the port now does not lead: a client that never rests would have the endpoint that it had
/// first for as long as that lives.
fn leave(inbound: &Inbound, flows: &HashMap<SocketAddr, Arc<Flow>>) {
    let route = inbound.route().ok();
    let endpoints: HashSet<SocketAddr> = route.iter().flat_map(|route| route.balancer.addresses()).collect();
    flows.values().filter(|flow| !endpoints.contains(&flow.to)).for_each(|flow| flow.over.cancel());
}

/// A way to one of the endpoints for `source`, and to no other; and what carries it, when that is on another node.
async fn connect(inbound: &Inbound, source: &Source) -> Option<(Flow, Option<Carry>)> {
    let route = inbound.route().ok()?;
    let (mut picked, endpoint) = inbound.proxy.pick(source, &route, &mut Tried::default())?;
    let to = endpoint.address;
    let here = endpoint.socket().filter(|here| inbound.proxy.local.is_reached(*here, Protocol::Udp));
    if here.is_none() && !endpoint.is_elsewhere() {
        return None;
    }
    // Whether anybody is there shows later, if at all.
    picked.answered();
    // Only now: others may give way for it.
    let over = inbound.stop.child_token();
    let namespace = inbound.target.load().service.namespace.clone();
    let place = inbound.places.try_enter(inbound.key, Some(&namespace), &over)?;
    let (way, carry) = match here {
        Some(here) => (Way::Here(inbound.proxy.upstream(here).await.ok()?), None),
        None => {
            let (outbox, carry) = inbound.proxy.carry(to, source.clone(), inbound.asker())?;
            (Way::Elsewhere(outbox), Some(carry))
        }
    };
    let begun = Instant::now();
    Some((Flow { way, to, begun, over, is_early: false, place, _picked: picked }, carry))
}

/// Passes back what the endpoint says, until the client rests or nobody is there; who was not there yet is sent the `first`
/// datagram again.
async fn replies(
    flow: &Flow,
    upstream: &Upstream,
    socket: &UdpSocket,
    client: SocketAddr,
    mut first: Option<Vec<u8>>,
) -> io::Result<()> {
    loop {
        let rests_at = flow.rests_at();
        tokio::select! {
            () = tokio::time::sleep_until(rests_at) => if flow.rests_at() <= Instant::now() {
                return Ok(());
            },
            () = tokio::time::sleep(AGAIN_AFTER), if first.is_some() => {
                // It fails with what the client's next datagram has met.
                let is_sent = match &first {
                    Some(datagram) => upstream.socket().send(datagram).await.is_ok(),
                    None => true,
                };
                if is_sent && !upstream.is_refused() {
                    first = None;
                } else if !flow.is_waiting() {
                    return Err(io::ErrorKind::ConnectionRefused.into());
                }
            }
            ready = upstream.socket().readable() => {
                ready?;
                // Only while there is something to read: a buffer for each client would be too much.
                let mut buffer = Vec::with_capacity(DATAGRAM_BYTES_MAX);
                match upstream.socket().try_recv_buf(&mut buffer) {
                    Ok(_) => {
                        flow.place.turns.used(true);
                        socket.send_to(&buffer, client).await?;
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Local;
    use crate::node_ports::wanted::{Purpose, Target};
    use crate::places::{Bounds, Places};
    use crate::tests::world::World;
    use arc_swap::ArcSwap;
    use serde_json::json;
    use tokio_util::task::TaskTracker;

    /// A Service for UDP before the pod 1, with so many places for flows.
    async fn dns(world: &World, places: usize) -> Inbound {
        let ports = json!([{"port": 53, "protocol": "UDP"}]);
        world.service("dns", "10.96.0.9", ports.clone());
        world.ready("dns", &[1], ports);
        world.known("dns", 1).await;
        let service = world.discovery.snapshot().service("n", "dns").unwrap().clone();
        Inbound {
            proxy: world.proxy.clone(),
            key: (53, Protocol::Udp),
            target: Arc::new(ArcSwap::from_pointee(Target { service, at: 0, purpose: Purpose::NodePort })),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            places: Places::new(Bounds { node: places, port: places, shared: 1000 }),
        }
    }

    #[tokio::test]
    async fn who_got_no_answer_gives_way_and_flows_are_known_while_they_live() {
        let world = World::new().await;
        let there = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        world.start(1, Local::Tcp(there.local_addr().unwrap()));
        let inbound = dns(&world, 2).await;
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let at = socket.local_addr().unwrap();
        let relaying = tokio::spawn(relay(inbound.clone(), socket));
        let mut clients = Vec::new();
        for _ in 0..3 {
            clients.push(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        }
        let mut buffer = [0; 16];
        let mut sources = Vec::new();
        for (client, said) in clients.iter().zip([&b"first"[..], b"second"]) {
            client.send_to(said, at).await.unwrap();
            let (count, from) = there.recv_from(&mut buffer).await.unwrap();
            assert_eq!(&buffer[..count], said);
            sources.push(from);
        }
        there.send_to(b"answer", sources[0]).await.unwrap();
        clients[0].recv_from(&mut buffer).await.unwrap();
        let own = there.local_addr().unwrap().ip();
        assert!(sources.iter().all(|from| world.proxy.has_upstream(own, from.port())));
        assert!(!world.proxy.has_upstream(own, at.port()), "a port that nothing came from");
        // What the third says is dropped, and the second gives way: the first has its answer, though it has rested longer.
        clients[2].send_to(b"third", at).await.unwrap();
        let gave_way = async {
            while world.proxy.has_upstream(own, sources[1].port()) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(crate::tests::world::SOON, gave_way).await.unwrap();
        for (client, said) in [(&clients[2], &b"third again"[..]), (&clients[0], b"first again")] {
            client.send_to(said, at).await.unwrap();
            let (count, from) = there.recv_from(&mut buffer).await.unwrap();
            assert_eq!(&buffer[..count], said);
            sources.push(from);
        }
        assert_eq!(sources[0], sources[3]);
        inbound.stop.cancel();
        relaying.await.unwrap();
        inbound.tasks.close();
        inbound.tasks.wait().await;
        assert!(!world.proxy.has_upstream(own, sources[0].port()));
    }

    #[tokio::test]
    async fn the_first_datagram_waits_for_a_program_that_binds_late() {
        let world = World::new().await;
        // An address that nobody else is given a port of.
        let early = UdpSocket::bind("127.83.0.9:0").await.unwrap();
        let to = early.local_addr().unwrap();
        drop(early);
        world.start(1, Local::Tcp(to));
        let inbound = dns(&world, 8).await;
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let at = socket.local_addr().unwrap();
        let relaying = tokio::spawn(relay(inbound.clone(), socket));
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        client.send_to(b"first", at).await.unwrap();
        // It was sent on, and refused, before the program is there.
        let known = async {
            while world.proxy.upstreams.locked().is_empty() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(crate::tests::world::SOON, known).await.unwrap();
        let late = UdpSocket::bind(to).await.unwrap();
        let mut buffer = [0; 16];
        let received = tokio::time::timeout(BOUND_WITHIN, late.recv_from(&mut buffer)).await;
        let (count, from) = received.expect("it is sent again").unwrap();
        assert_eq!(&buffer[..count], b"first");
        late.send_to(b"answer", from).await.unwrap();
        let (count, _) = client.recv_from(&mut buffer).await.unwrap();
        assert_eq!(&buffer[..count], b"answer");
        inbound.stop.cancel();
        relaying.await.unwrap();
    }

    #[tokio::test]
    async fn datagrams_to_nobody_hold_one_place() {
        let world = World::new().await;
        let nobody = UdpSocket::bind("127.83.0.10:0").await.unwrap();
        world.start(1, Local::Tcp(nobody.local_addr().unwrap()));
        drop(nobody);
        let inbound = dns(&world, 4).await;
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let at = socket.local_addr().unwrap();
        let relaying = tokio::spawn(relay(inbound.clone(), socket));
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        for _ in 0..50 {
            client.send_to(b"x", at).await.unwrap();
        }
        // All have come through when the flow that waits is over, and none is left then.
        let began = async {
            while world.proxy.upstreams.locked().is_empty() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(crate::tests::world::SOON, began).await.unwrap();
        let over = async {
            while !world.proxy.upstreams.locked().is_empty() {
                assert!(world.proxy.upstreams.locked().len() <= 2);
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(BOUND_WITHIN + crate::tests::world::SOON, over).await.unwrap();
        assert_eq!(inbound.places.taken(), 0);
        inbound.stop.cancel();
        relaying.await.unwrap();
    }
}
