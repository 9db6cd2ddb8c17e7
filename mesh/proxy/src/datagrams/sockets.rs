//! What guests send to: a socket of this process for each port of a pod of another node, made when it is first wanted and closed when
//! nobody has used it for a while. A guest may have connected a socket of its own to it, of which nothing is known here; so a port that has led
//! to a pod leads to that pod again, and to another only when all ports of the address have led somewhere.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use coracle_policy::Source;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::carry::waiting;
use super::{DATAGRAM_BYTES_MAX, ERROR_WAIT, Outbox, Waiting};
use crate::guard::locked;
use crate::shares::Shares;
use crate::turns::Turns;
use crate::{Asker, Proxy, spare};

/// Flows of all guests of the node; each namespace has a share of them. More are lost until others have rested.
const FLOWS_MAX: usize = 2048;
/// Sockets. Beyond it one that has no flow is closed; there is one, since flows are fewer.
const SOCKETS_MAX: usize = FLOWS_MAX;
/// Those that lead to one pod: a guest may try all ports of one.
const SOCKETS_PER_POD_MAX: usize = 128;
/// A socket is closed when it had no flow, and nobody has asked for it, for so long.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// A port that has not led anywhere is looked for so often.
const PORTS_TRIED_MAX: usize = 8;
/// Datagrams that are read in one go, while others wait for the thread.
const READ_MAX: usize = 64;
/// Flows of a socket that have ended and were not noticed yet; more wait.
const ENDED_MAX: usize = 64;

/// Sockets that lead to pods of other nodes.
pub(crate) struct Sockets {
    state: Mutex<State>,
    flows: Arc<Shares<Arc<str>>>,
    pub(super) waiting: Waiting,
}

impl Default for Sockets {
    fn default() -> Sockets {
        Sockets { state: Mutex::default(), flows: Shares::new(FLOWS_MAX), waiting: waiting() }
    }
}

#[derive(Default)]
struct State {
    /// By the pod's address and port.
    open: HashMap<SocketAddr, Open>,
    /// Where a port of ours leads to, or has led; and the other way round. As many as there are ports.
    led: HashMap<u16, SocketAddr>,
    ports: HashMap<SocketAddr, u16>,
}

struct Open {
    port: u16,
    /// How many flows it has.
    flows: Arc<AtomicUsize>,
    /// When somebody asked for it last.
    asked: Instant,
    _stop: DropGuard,
}

impl Open {
    fn is_idle(&self) -> bool {
        self.flows.load(Relaxed) == 0
    }
}

impl State {
    /// A socket at this address that leads to `to`.
    fn bind(&mut self, address: IpAddr, to: SocketAddr) -> io::Result<(std::net::UdpSocket, u16)> {
        let bind = |port| {
            let socket = std::net::UdpSocket::bind((address, port))?;
            let port = socket.local_addr()?.port();
            Ok::<_, io::Error>((socket, port))
        };
        if let Some(port) = self.ports.get(&to)
            && let Ok(again) = bind(*port)
        {
            return Ok(again);
        }
        // Those that will not do are held meanwhile, lest the kernel gives them again.
        let mut others = Vec::new();
        let (socket, port) = loop {
            let found = bind(0)?;
            if !self.led.contains_key(&found.1) || others.len() >= PORTS_TRIED_MAX {
                break found;
            }
            others.push(found);
        };
        if let Some(before) = self.led.insert(port, to) {
            self.ports.remove(&before);
        }
        if let Some(before) = self.ports.insert(to, port) {
            // Somebody else has it now.
            self.led.remove(&before);
        }
        Ok((socket, port))
    }
}

impl Sockets {
    /// The socket that leads to this pod of another node, made if there is none.
    pub fn open(&self, proxy: &Proxy, to: SocketAddr) -> Option<SocketAddr> {
        let address = proxy.local.links()?;
        let mut state = locked(&self.state);
        if let Some(open) = state.open.get_mut(&to) {
            open.asked = Instant::now();
            return Some(SocketAddr::new(address, open.port));
        }
        let of_pod = state.open.keys().filter(|other| other.ip() == to.ip()).count();
        let idle = |may_go: &dyn Fn(&SocketAddr) -> bool| {
            let mut idle = state.open.iter().filter(|(other, open)| may_go(other) && open.is_idle());
            idle.next().map(|(other, _)| *other)
        };
        // What a pod has only says who goes: flows have their namespaces' shares, and those of one tenant to many ports of a pod keep
        // nobody else from it.
        let mut goes = if of_pod >= SOCKETS_PER_POD_MAX { idle(&|other| other.ip() == to.ip()) } else { None };
        if goes.is_none() && state.open.len() >= SOCKETS_MAX {
            goes = Some(idle(&|_| true)?);
        }
        if let Some(goes) = goes {
            state.open.remove(&goes);
        }
        let bound = state.bind(address, to).and_then(|(socket, port)| {
            if !spare::is_spare(&socket) {
                return Err(io::ErrorKind::QuotaExceeded.into());
            }
            socket.set_nonblocking(true)?;
            Ok((UdpSocket::from_std(socket)?, port))
        });
        let (socket, port) = bound.inspect_err(|error| tracing::debug!(%to, %error, "a socket for datagrams")).ok()?;
        let (flows, stop) = (Arc::<AtomicUsize>::default(), CancellationToken::new());
        let relay =
            Relay { proxy: proxy.clone(), socket: Arc::new(socket), to, count: flows.clone(), stop: stop.clone() };
        tokio::spawn(relay.run());
        state.open.insert(to, Open { port, flows, asked: Instant::now(), _stop: stop.drop_guard() });
        Some(SocketAddr::new(address, port))
    }

    /// The pod to which this socket leads, or has led.
    pub fn leads_to(&self, proxy: &Proxy, at: SocketAddr) -> Option<SocketAddr> {
        if Some(at.ip()) != proxy.local.links() {
            return None;
        }
        locked(&self.state).led.get(&at.port()).copied()
    }

    /// Closes the one that leads there, if nobody has wanted it for long; says whether it is closed.
    fn close_idle(&self, to: SocketAddr, now: Instant) -> bool {
        let mut state = locked(&self.state);
        let Some(open) = state.open.get(&to) else { return true };
        let is_over = open.is_idle() && now.duration_since(open.asked) >= IDLE_MAX;
        if is_over {
            state.open.remove(&to);
        }
        is_over
    }
}

/// What one guest's socket says to the pod.
struct Flow {
    outbox: Outbox,
    source: Source,
    turns: Arc<Turns>,
    over: CancellationToken,
}

/// It is counted as long as it lives.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(count: &Arc<AtomicUsize>) -> Counted {
        count.fetch_add(1, Relaxed);
        Counted(count.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

struct Relay {
    proxy: Proxy,
    socket: Arc<UdpSocket>,
    to: SocketAddr,
    count: Arc<AtomicUsize>,
    stop: CancellationToken,
}

impl Relay {
    async fn run(self) {
        let mut flows: HashMap<SocketAddr, Flow> = HashMap::new();
        let (ended, mut ends) = mpsc::channel(ENDED_MAX);
        loop {
            // Waiting is all that is cut here.
            tokio::select! {
                () = self.stop.cancelled() => return,
                Some(client) = ends.recv() => {
                    // It may have come again in between.
                    if flows.get(&client).is_some_and(|flow| flow.over.is_cancelled()) {
                        flows.remove(&client);
                    }
                }
                ready = self.socket.readable() => {
                    let read = ready.and_then(|()| self.read(&mut flows, &ended));
                    if let Err(error) = read {
                        tracing::debug!(%error, "receive for another node");
                        tokio::time::sleep(ERROR_WAIT).await;
                    }
                }
                () = tokio::time::sleep(IDLE_MAX) => {
                    if self.proxy.datagrams.close_idle(self.to, Instant::now()) {
                        return;
                    }
                }
            }
        }
    }

    /// Takes what is there.
    fn read(&self, flows: &mut HashMap<SocketAddr, Flow>, ended: &mpsc::Sender<SocketAddr>) -> io::Result<()> {
        // Only while there is something to read: a buffer for each socket would be too much.
        let mut buffer = Vec::with_capacity(DATAGRAM_BYTES_MAX);
        for _ in 0..READ_MAX {
            buffer.clear();
            match self.socket.try_recv_buf_from(&mut buffer) {
                Ok((_, client)) => self.take(flows, ended, client, &buffer),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn take(
        &self,
        flows: &mut HashMap<SocketAddr, Flow>,
        ended: &mpsc::Sender<SocketAddr>,
        client: SocketAddr,
        datagram: &[u8],
    ) {
        // What leads out of this machine is for pods: what else could be judged?
        let Some((pod, source)) = self.proxy.local.caller(client.ip()) else { return };
        if let Some(flow) = flows.get(&client) {
            if flow.source == source && !flow.over.is_cancelled() {
                flow.turns.used(false);
                return flow.outbox.put(datagram);
            }
            // It is another to policies than it was.
            flow.over.cancel();
        }
        if self.proxy.guard.has_failed(&source, self.to) {
            return;
        }
        let namespace = match &source {
            Source::Pod(pod) => pod.namespace.clone(),
            Source::Outside(_) | Source::Node | Source::Unknown => Arc::from(""),
        };
        let Some(share) = self.proxy.datagrams.flows.take(namespace, 1) else { return };
        let Some((outbox, carry)) = self.proxy.carry(self.to, source.clone(), Asker::Pod(pod)) else { return };
        outbox.put(datagram);
        let (turns, over) = (Arc::<Turns>::default(), self.stop.child_token());
        flows.insert(client, Flow { outbox, source, turns: turns.clone(), over: over.clone() });
        let (socket, ended, counted) = (self.socket.clone(), ended.clone(), Counted::new(&self.count));
        tokio::spawn(async move {
            tokio::select! {
                () = over.cancelled() => {}
                carried = carry.run(&socket, client, &turns) => if let Err(error) = carried {
                    tracing::debug!(%error, "datagrams to another node");
                },
            }
            over.cancel();
            drop((share, counted));
            let _ = ended.send(client).await;
        });
    }
}

impl Proxy {
    /// The pod of another node to which this socket of the process leads, for datagrams, or has led.
    pub fn datagrams_lead(&self, at: SocketAddr) -> Option<SocketAddr> {
        self.datagrams.leads_to(self, at)
    }

    /// The same, so that what is sent there now is carried: the socket is open again if it was not.
    pub fn datagrams_go(&self, at: SocketAddr) -> Option<SocketAddr> {
        let to = self.datagrams_lead(at)?;
        (self.datagrams.open(self, to) == Some(at)).then_some(to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(n: u8, port: u16) -> SocketAddr {
        SocketAddr::from(([10, 2, 0, n], port))
    }

    #[test]
    fn a_port_leads_to_the_pod_that_it_led_to_before() {
        let address = IpAddr::from([127, 83, 7, 0]);
        let mut state = State::default();
        let (socket, first) = state.bind(address, pod(1, 53)).unwrap();
        drop(socket);
        let others: Vec<_> = (2..100).map(|n| state.bind(address, pod(n, 53)).unwrap()).collect();
        assert!(others.iter().all(|(_, port)| *port != first), "a guest may be connected to it");
        let (again, port) = state.bind(address, pod(1, 53)).unwrap();
        assert_eq!((port, state.led[&port]), (first, pod(1, 53)));
        drop((again, others));
        // Somebody else has taken it.
        let _taken = std::net::UdpSocket::bind((address, first)).unwrap();
        let (_, other) = state.bind(address, pod(1, 53)).unwrap();
        assert_ne!(other, first);
        assert_eq!((state.led.get(&first), state.led[&other], state.ports[&pod(1, 53)]), (None, pod(1, 53), other));
    }
}
