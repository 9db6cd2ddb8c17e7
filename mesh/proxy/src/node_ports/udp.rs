//! UDP at a node's port. All datagrams of one client go to the same endpoint, from a socket of their own, and what comes back
//! there goes to the client from the node's port.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::Inbound;
use crate::balance::{Picked, Tried};

/// Clients of one port at a time, each with a descriptor; datagrams of more are dropped until one of them rests.
const CLIENTS_MAX: usize = 4096;
/// A client that neither sends nor gets anything for so long is forgotten (the kernel's own time for a stream of datagrams).
const IDLE_MAX: Duration = Duration::from_secs(180);
/// The largest datagram.
const DATAGRAM_BYTES_MAX: usize = 65_535;
/// Wait after an error of the socket that comes again and again.
const ERROR_WAIT: Duration = Duration::from_millis(5);

/// What one client says, to whom.
struct Flow {
    upstream: UdpSocket,
    /// When something was said last, in milliseconds since `begun`.
    last_ms: AtomicU64,
    begun: Instant,
    /// It has rested, or its endpoint is gone.
    is_over: AtomicBool,
    _picked: Picked,
}

impl Flow {
    fn used(&self) {
        self.last_ms.store(self.begun.elapsed().as_millis() as u64, Relaxed);
    }

    fn rests_at(&self) -> Instant {
        self.begun + Duration::from_millis(self.last_ms.load(Relaxed)) + IDLE_MAX
    }

    async fn send(&self, datagram: &[u8]) -> io::Result<()> {
        if self.is_over.load(Relaxed) {
            return Err(io::ErrorKind::NotConnected.into());
        }
        self.used();
        self.upstream.send(datagram).await.map(|_| ())
    }
}

/// Relays until told to stop.
pub(super) async fn relay(inbound: Inbound, socket: UdpSocket) {
    let socket = Arc::new(socket);
    let mut flows: HashMap<SocketAddr, Arc<Flow>> = HashMap::new();
    let (over, mut overs) = mpsc::channel::<SocketAddr>(CLIENTS_MAX);
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
    loop {
        // Waiting is all that is cut here.
        let received = tokio::select! {
            () = inbound.stop.cancelled() => return,
            Some(client) = overs.recv() => {
                // It may have come again in between.
                if flows.get(&client).is_some_and(|flow| flow.is_over.load(Relaxed)) {
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
        if let Some(flow) = flows.get(&client)
            && flow.send(datagram).await.is_ok()
        {
            continue;
        }
        // New, or its endpoint has gone: another is found.
        if flows.len() >= CLIENTS_MAX && !flows.contains_key(&client) {
            continue;
        }
        let Some(flow) = connect(&inbound).await else { continue };
        let _ = flow.send(datagram).await;
        let flow = Arc::new(flow);
        flows.insert(client, flow.clone());
        let (socket, stop, over) = (socket.clone(), inbound.stop.clone(), over.clone());
        inbound.tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                result = replies(&flow, &socket, client) => if let Err(error) = result {
                    tracing::debug!(%error, "datagram");
                },
            }
            flow.is_over.store(true, Relaxed);
            let _ = over.send(client).await;
        });
    }
}

/// A socket that speaks to one of the endpoints, and to no other.
async fn connect(inbound: &Inbound) -> Option<Flow> {
    let route = inbound.route().ok()?;
    let (mut picked, endpoint) = inbound.proxy.pick(&route, &mut Tried::default())?;
    let to = endpoint.socket()?;
    let upstream = UdpSocket::bind((inbound.proxy.local.source(to.ip()), 0)).await.ok()?;
    upstream.connect(to).await.ok()?;
    // Whether anybody is there shows later, if at all.
    picked.answered();
    let (last_ms, is_over) = Default::default();
    Some(Flow { upstream, last_ms, begun: Instant::now(), is_over, _picked: picked })
}

/// Passes back what the endpoint says, until the client rests or nobody is there.
async fn replies(flow: &Flow, socket: &UdpSocket, client: SocketAddr) -> io::Result<()> {
    loop {
        let rests_at = flow.rests_at();
        tokio::select! {
            () = tokio::time::sleep_until(rests_at) => if flow.rests_at() <= Instant::now() {
                return Ok(());
            },
            ready = flow.upstream.readable() => {
                ready?;
                // Only while there is something to read: a buffer for each client would be too much.
                let mut buffer = Vec::with_capacity(DATAGRAM_BYTES_MAX);
                match flow.upstream.try_recv_buf(&mut buffer) {
                    Ok(_) => {
                        flow.used();
                        socket.send_to(&buffer, client).await?;
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
            }
        }
    }
}
