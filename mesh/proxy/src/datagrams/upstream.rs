//! The end that is called: a socket of the node for each flow, which speaks to one port of one of its pods and to nothing else. The pod
//! is told that the node asks, whoever does, and answers it there.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use coracle_discovery::Protocol;
use futures::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UdpSocket;
use tokio::time::Instant;

use super::{AGAIN_AFTER, BOUND_WITHIN, DATAGRAM_BYTES_MAX, framing, rested};
use crate::turns::Turns;
use crate::{NotAllowed, Proxy, spare};

/// Where the node's datagrams go to, and from which of its ports: the answers that a pod may send. As many as there are flows.
#[derive(Debug, Default)]
pub(crate) struct Upstreams(Mutex<HashSet<(IpAddr, u16)>>);

impl Upstreams {
    pub(crate) fn locked(&self) -> MutexGuard<'_, HashSet<(IpAddr, u16)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn has(&self, to: IpAddr, port: u16) -> bool {
        self.locked().contains(&(to, port))
    }

    fn add(self: &Arc<Self>, to: IpAddr, port: u16) -> Known {
        self.locked().insert((to, port));
        Known { upstreams: self.clone(), key: (to, port) }
    }
}

/// One of them, while its flow lives.
struct Known {
    upstreams: Arc<Upstreams>,
    key: (IpAddr, u16),
}

impl Drop for Known {
    fn drop(&mut self) {
        self.upstreams.locked().remove(&self.key);
    }
}

/// A socket of the node that speaks to one port of a pod.
pub struct Upstream {
    /// Before the socket: its port may be another flow's as soon as it is closed.
    _known: Known,
    socket: UdpSocket,
}

impl Proxy {
    /// A socket that speaks to what really is at this address, if that is the pod whose it is.
    pub async fn upstream(&self, to: SocketAddr) -> io::Result<Upstream> {
        if !self.local.is_reached(to, Protocol::Udp) {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let socket = UdpSocket::bind((self.local.source(to.ip()), 0)).await?;
        socket.connect(to).await?;
        if !spare::is_spare(&socket) {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        let known = self.upstreams.add(to.ip(), socket.local_addr()?.port());
        Ok(Upstream { _known: known, socket })
    }
}

impl Upstream {
    /// Its socket.
    pub(crate) fn socket(&self) -> &UdpSocket {
        &self.socket
    }

    /// Whether the kernel has said that nobody has bound the port there: of this machine's own it says so at once.
    pub(crate) fn is_refused(&self) -> bool {
        let error = self.socket.take_error().ok().flatten();
        error.is_some_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
    }

    /// Passes what comes on a stream of another node ([`crate::Purpose::Datagrams`]), as long as each datagram may, and what the pod answers,
    /// until either ends or nobody has said anything for long.
    pub async fn serve<S>(self, stream: S, may: impl Fn() -> bool) -> io::Result<()>
    where
        S: AsyncRead + AsyncWrite,
    {
        let (turns, begun) = (Turns::default(), Instant::now());
        let (read, write) = tokio::io::split(stream);
        let (mut read, mut write) = (framing().new_read(read), framing().new_write(write));
        let judged = || match may() {
            true => Ok(()),
            false => Err(io::Error::new(io::ErrorKind::PermissionDenied, NotAllowed)),
        };
        // Nobody listens to the pod before it was asked: what the kernel says of the first datagram is heard there.
        let first = tokio::select! {
            first = read.next() => first,
            () = rested(&turns, begun) => None,
        };
        let Some(first) = first else { return Ok(()) };
        let first = first?;
        judged()?;
        self.send_first(&first).await?;
        turns.used(false);
        let there = async {
            while let Some(datagram) = read.next().await {
                let datagram = datagram?;
                judged()?;
                turns.used(false);
                self.socket.send(&datagram).await?;
            }
            Ok(())
        };
        let back = async {
            loop {
                self.socket.readable().await?;
                // Only while there is something to read: a buffer for each flow would be too much.
                let mut buffer = Vec::with_capacity(DATAGRAM_BYTES_MAX);
                match self.socket.try_recv_buf(&mut buffer) {
                    Ok(_) => {
                        turns.used(true);
                        // What comes while the stream takes no more is lost by the kernel.
                        write.send(buffer.as_slice()).await?;
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
            }
        };
        tokio::select! {
            ended = there => ended,
            ended = back => ended,
            () = rested(&turns, begun) => Ok(()),
        }
    }

    /// Sends a flow's first datagram, again and again while nobody has bound the port. Others wait behind it.
    async fn send_first(&self, datagram: &[u8]) -> io::Result<()> {
        let until = Instant::now() + BOUND_WITHIN;
        loop {
            match self.socket.send(datagram).await {
                Ok(_) if !self.is_refused() => return Ok(()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                Err(error) => return Err(error),
            }
            if Instant::now() >= until {
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            tokio::time::sleep(AGAIN_AFTER).await;
        }
    }
}
