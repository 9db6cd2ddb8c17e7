//! A guest's view of the network, and the mesh's view of the guests.
//!
//! A pod has an address that the cluster sees and a loopback twin at which its sockets really are ([`crate::addresses`]). What a
//! guest binds goes to its twin; what it connects to is a Service, a pod of this node, or outside of the cluster, which is a
//! granted capability ([`crate::annotations::EGRESS`]). An HTTP component has no socket at all: the mesh calls it
//! ([`Table`]), and for guests that insist on a socket a [`bridge`] makes one.

mod bridge;
mod guest;
mod https;
mod table;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use coracle_discovery::Discovery;
use coracle_proxy::{Local, LocalEndpoints as _, Proxy};

pub use self::guest::GuestNetwork;
pub use self::table::{NodePortFailed, Table};

/// Ports below the kernel's unprivileged range live this far up at the twin, when the process may not bind them.
const SHIFT: u16 = 64_512;

/// What all guests of the node share.
pub struct Network {
    /// Addresses and the pods behind them.
    pub table: Arc<Table>,
    /// Services.
    pub discovery: Discovery,
    /// Routes.
    pub proxy: Proxy,
    bridges: bridge::Bridges,
    https: https::Https,
}

impl Network {
    /// A network over this table.
    pub fn new(table: Arc<Table>, discovery: Discovery) -> Self {
        let proxy = Proxy::new(discovery.clone(), table.clone());
        Self { table, discovery, proxy, bridges: bridge::Bridges::default(), https: https::Https::default() }
    }

    /// How a port of a pod of this node is reached.
    pub fn local(&self, address: IpAddr, port: u16) -> Option<Local> {
        self.table.lookup(address, port)
    }

    /// A socket for a pod's port, made if the pod has none of its own.
    fn socket(&self, endpoint: SocketAddr) -> Option<SocketAddr> {
        match self.local(endpoint.ip(), endpoint.port())? {
            Local::Tcp(address) => Some(address),
            Local::Http(service) => {
                let at = self.table.twin(endpoint.ip())?;
                self.bridges.open(endpoint, SocketAddr::new(at, self.table.twin_port(endpoint.port())), service)
            }
        }
    }

    /// Whether a Service leads to this address outside of the node's pods, as `kubernetes` does to the API server.
    fn is_service_endpoint(&self, actual: SocketAddr) -> bool {
        let snapshot = self.discovery.snapshot();
        let mut ports = snapshot.services().flat_map(|service| service.ports.iter());
        ports.any(|port| {
            port.endpoints.iter().any(|endpoint| endpoint.address == actual.ip() && endpoint.port == actual.port())
        })
    }

    /// Closes what was made for the pod at this address.
    pub fn forget(&self, address: IpAddr) {
        self.bridges.close(address);
    }
}
