//! The end of a flow that calls: what a client says waits here for the stream to the pod's node, and what comes back is sent to the
//! client from the socket that it spoke to.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use coracle_discovery::Protocol;
use coracle_policy::Source;
use futures::{SinkExt, StreamExt as _};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{framing, rested};
use crate::guard::Guard;
use crate::shares::{Share, Shares};
use crate::turns::Turns;
use crate::{Asker, NotAllowed, Place, Proxy, Purpose};

/// Datagrams of one flow that wait: while the node is connected to, and while its stream takes no more. Further ones are lost.
const WAITING_MAX: usize = 64;
/// Bytes of all that wait on this node: whoever sends has a share of them.
const WAITING_BYTES_MAX: usize = 32 << 20;
/// What waiting costs beside the bytes.
const WAITING_BYTES_EACH: usize = 128;

/// Bytes that wait.
pub(crate) type Waiting = Arc<Shares<Asker>>;

/// Room for all that waits.
pub(super) fn waiting() -> Waiting {
    Shares::new(WAITING_BYTES_MAX)
}

struct Datagram {
    bytes: Bytes,
    _share: Share<Asker>,
}

/// Where a client's datagrams are put.
pub(crate) struct Outbox {
    queue: mpsc::Sender<Datagram>,
    waiting: Waiting,
    by: Asker,
}

impl Outbox {
    /// Has the datagram carried; it is lost where too much waits.
    pub fn put(&self, datagram: &[u8]) {
        // Before it is copied.
        let Ok(place) = self.queue.try_reserve() else { return };
        let Some(share) = self.waiting.take(self.by.clone(), datagram.len() + WAITING_BYTES_EACH) else { return };
        place.send(Datagram { bytes: Bytes::copy_from_slice(datagram), _share: share });
    }
}

/// What carries a flow.
pub(crate) struct Carry {
    guard: Guard,
    to: SocketAddr,
    source: Source,
    queue: mpsc::Receiver<Datagram>,
    _place: Place,
}

impl Proxy {
    /// A flow of `source` to the pod of another node at `to`; `None` when `by` has its share of the way there.
    pub(crate) fn carry(&self, to: SocketAddr, source: Source, by: Asker) -> Option<(Outbox, Carry)> {
        let place = self.local.enter_elsewhere(to, by.clone())?;
        let (sender, queue) = mpsc::channel(WAITING_MAX);
        let outbox = Outbox { queue: sender, waiting: self.datagrams.waiting.clone(), by };
        Some((outbox, Carry { guard: self.guard.clone(), to, source, queue, _place: place }))
    }
}

impl Carry {
    /// Carries what `client` says to `socket`, and back, until it rests. An error is the end of it, too: the pod is not reached or
    /// has gone, one of the nodes does not allow it any more, or the client is another than when it began.
    pub async fn run(self, socket: &UdpSocket, client: SocketAddr, turns: &Turns) -> io::Result<()> {
        let Carry { guard, to, source, mut queue, _place } = self;
        let begun = Instant::now();
        let connected = guard.connect(to, Purpose::Datagrams, source.clone()).await;
        let elsewhere = connected.inspect_err(|error| guard.note_failure(&source, to, error))?;
        let called = elsewhere.called;
        let (read, write) = tokio::io::split(elsewhere.stream);
        let (mut read, mut write) = (framing().new_read(read), framing().new_write(write));
        let there = async {
            while let Some(first) = queue.recv().await {
                let mut next = Some(first);
                while let Some(datagram) = next {
                    if !guard.lets_out(&source, called.as_ref(), to, Protocol::Udp) {
                        guard.note_refusal(&source, to);
                        return Err(io::Error::new(io::ErrorKind::PermissionDenied, NotAllowed));
                    }
                    write.feed(datagram.bytes).await?;
                    next = queue.try_recv().ok();
                }
                SinkExt::<Bytes>::flush(&mut write).await?;
            }
            Ok(())
        };
        let back = async {
            while let Some(datagram) = read.next().await {
                let datagram = datagram?;
                if !guard.is_same(&source) {
                    return Err(io::ErrorKind::NotConnected.into());
                }
                turns.used(true);
                if let Err(error) = socket.send_to(&datagram, client).await {
                    tracing::debug!(%error, "a datagram from another node is lost");
                }
            }
            Ok(())
        };
        tokio::select! {
            ended = there => ended,
            ended = back => ended,
            () = rested(turns, begun) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::world::{World, pod};

    #[tokio::test]
    async fn what_waits_has_bounds_and_what_is_beyond_them_is_lost() {
        let world = World::new().await;
        let to = SocketAddr::new(pod(2), 53);
        let by = |n: u8| Asker::Pod(pod(n));
        let (outbox, mut carry) = world.proxy.carry(to, Source::Unknown, by(1)).unwrap();
        for n in 0..=u8::MAX {
            outbox.put(&[n]);
        }
        let kept: Vec<u8> = std::iter::from_fn(|| carry.queue.try_recv().ok()).map(|kept| kept.bytes[0]).collect();
        assert_eq!(kept, (0..WAITING_MAX as u8).collect::<Vec<_>>(), "the first ones");
        assert_eq!(world.proxy.datagrams.waiting.of(&by(1)), 0);
        // All flows of one have a share of what the node holds.
        let large = vec![0; 65_507];
        let flows: Vec<_> = (0..WAITING_BYTES_MAX / large.len() / 8)
            .map(|_| world.proxy.carry(to, Source::Unknown, by(1)).unwrap())
            .collect();
        for (outbox, _) in &flows {
            (0..WAITING_MAX).for_each(|_| outbox.put(&large));
        }
        let held = world.proxy.datagrams.waiting.of(&by(1));
        assert!(held > WAITING_BYTES_MAX / 4 && held < WAITING_BYTES_MAX / 2, "{held}");
        let (other, mut carry) = world.proxy.carry(to, Source::Unknown, by(2)).unwrap();
        other.put(&large);
        assert!(carry.queue.try_recv().is_ok(), "another has its own");
        drop(flows);
        assert_eq!(world.proxy.datagrams.waiting.of(&by(1)), 0);
    }
}
