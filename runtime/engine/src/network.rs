//! What a guest's sockets reach: the node's answers, which the engine asks for before the kernel sees an address.

use std::net::{IpAddr, SocketAddr};

/// The node's answers to a guest's sockets. All are look-ups in tables: they must not block.
pub trait Network: Send + Sync + 'static {
    /// Where a socket really binds when the guest asks for `wanted` (an unspecified address, the pod's, or loopback):
    /// the pod's own loopback address. The port is kept, or 0.
    fn bind(&self, wanted: SocketAddr, protocol: Protocol) -> Result<SocketAddr, Refused>;

    /// Where a connection or datagram to `wanted` really goes.
    fn connect(&self, wanted: SocketAddr, protocol: Protocol) -> Result<SocketAddr, Refused>;

    /// What the guest is told in place of a real address: the pod's address for its own, the peer pod's for a peer's.
    fn shown(&self, actual: SocketAddr) -> SocketAddr {
        actual
    }

    /// What the guest is told of where a datagram comes from: who it believes to speak to.
    fn shown_datagram(&self, actual: SocketAddr) -> SocketAddr {
        self.shown(actual)
    }

    /// Looks up a host name.
    fn resolve(&self, name: &str) -> Resolved;

    /// A second, independent gate: real addresses, right before the kernel sees them.
    fn permits(&self, actual: SocketAddr, usage: SocketUse) -> bool;
}

/// Which kind of socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// What a real address is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketUse {
    /// Bind a TCP socket; the unspecified address when a connection binds implicitly.
    TcpBind,
    /// Listen at an own address.
    TcpListen,
    /// Accept from a peer.
    TcpAccept,
    /// Connect to a peer.
    TcpConnect,
    /// Bind a UDP socket; the unspecified address when sending binds implicitly.
    UdpBind,
    /// Send to a peer.
    UdpSend,
    /// Receive from a peer.
    UdpReceive,
}

/// Why an address is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Not allowed.
    Denied,
    /// Allowed, but nobody is there: connection refused.
    NoEndpoint,
    /// No way there.
    Unreachable,
}

/// What a host name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolved {
    /// These, best first. A guest of WASI 0.2 sees the first one.
    Addresses(Vec<IpAddr>),
    /// There is no such name.
    Unknown,
    /// Not known now.
    Failed,
    /// Ask the machine's resolver.
    System,
}

/// A guest without any network.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoNetwork;

impl Network for NoNetwork {
    fn bind(&self, _: SocketAddr, _: Protocol) -> Result<SocketAddr, Refused> {
        Err(Refused::Denied)
    }

    fn connect(&self, _: SocketAddr, _: Protocol) -> Result<SocketAddr, Refused> {
        Err(Refused::Denied)
    }

    fn resolve(&self, _: &str) -> Resolved {
        Resolved::Unknown
    }

    fn permits(&self, _: SocketAddr, _: SocketUse) -> bool {
        false
    }
}
