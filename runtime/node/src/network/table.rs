//! The node's table of pods: address to what answers there. Read per request, written when a pod starts or stops.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, OnceLock};

use coracle_discovery::{Discovery, Protocol, Service};
use coracle_policy::{Source, Workload};
use coracle_proxy::{Asker, Elsewhere, HttpService, Local, LocalEndpoints, Place, Purpose, ServiceFailure};
use futures::future::BoxFuture;
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Gate, Peers, SHIFT};
use crate::addresses::{Addresses, Exhausted, PodAddress};

/// Called once for each port or endpoint of a Service with which something is wrong.
pub type ServiceFailed = Box<dyn Fn(&Service, ServiceFailure<'_>) + Send + Sync>;

/// Failures that are remembered as told; beyond it they are told anew.
const TOLD_MAX: usize = 1024;

/// A running HTTP component.
struct HttpPort {
    container: usize,
    /// Ports that its container declares.
    ports: Box<[u16]>,
    service: Arc<dyn HttpService>,
}

struct Entry {
    twin: IpAddr,
    /// Who it is to others.
    workload: Option<Arc<Workload>>,
    http: Vec<HttpPort>,
    /// Containers that may listen themselves.
    sockets: Vec<usize>,
    /// Cancelled when the pod has the address no more.
    life: CancellationToken,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.life.cancel();
    }
}

/// A Service, and an endpoint of it that leads to where none may, so that it is told once.
type Forbidden = (Arc<str>, Arc<str>, SocketAddr);

/// Pods by their addresses.
pub struct Table {
    addresses: Addresses,
    /// Ports below this are shifted by [`SHIFT`] at the twin.
    shifted_below: u16,
    entries: RwLock<HashMap<IpAddr, Entry>>,
    told: Mutex<HashSet<Forbidden>>,
    service_failed: ServiceFailed,
    /// What no pod may reach, and nothing that pods can say.
    pub gate: Arc<Gate>,
    /// Where the API server is, which may be this machine.
    discovery: OnceLock<Discovery>,
    /// The other nodes.
    peers: OnceLock<Arc<Peers>>,
    /// Told when a pod is another to policies than before.
    relabelled: watch::Sender<()>,
}

impl Table {
    /// An empty table.
    pub fn new(addresses: Addresses, service_failed: ServiceFailed) -> Self {
        let is_root = rustix::process::geteuid().is_root();
        let start = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").ok();
        let start = start.and_then(|text| text.trim().parse().ok()).unwrap_or(1024);
        Self {
            addresses,
            shifted_below: if is_root { 0 } else { start.min(1024) },
            entries: RwLock::default(),
            told: Mutex::default(),
            service_failed,
            gate: Arc::default(),
            discovery: OnceLock::new(),
            peers: OnceLock::new(),
            relabelled: watch::Sender::new(()),
        }
    }

    /// The Services that tell where the API server is.
    pub fn lead_to(&self, discovery: &Discovery) {
        let _ = self.discovery.set(discovery.clone());
    }

    /// The nodes that have the other pods.
    pub fn lead_elsewhere(&self, peers: &Arc<Peers>) {
        let _ = self.peers.set(peers.clone());
    }

    /// Where sockets are made that lead to other nodes.
    pub fn links(&self) -> IpAddr {
        self.addresses.links()
    }

    /// Addresses that pods had before the node was restarted are not given to others soon.
    pub fn reserve_order(&self, addresses: impl IntoIterator<Item = IpAddr>) {
        self.addresses.reserve_order(addresses);
    }

    /// Gives a pod an address, the one it had if that is free.
    pub fn allocate(&self, previous: Option<IpAddr>) -> Result<PodAddress, Exhausted> {
        let address = self.addresses.allocate(previous)?;
        let life = CancellationToken::new();
        let entry = Entry { twin: address.loopback, workload: None, http: Vec::new(), sockets: Vec::new(), life };
        self.entries.write().insert(address.pod, entry);
        Ok(address)
    }

    /// The pod that has the address is this one.
    pub fn identify(&self, workload: Workload) {
        if let Some(entry) = self.entries.write().get_mut(&workload.address) {
            let before = entry.workload.replace(Arc::new(workload));
            if before.is_some() {
                self.relabelled.send_replace(());
            }
        }
    }

    /// Changes when a pod of the node is another to policies than before.
    pub fn relabelled(&self) -> watch::Receiver<()> {
        self.relabelled.subscribe()
    }

    /// The pod that has the address, as one who calls.
    pub fn source(&self, address: IpAddr) -> Source {
        self.workload(address).map_or(Source::Unknown, Source::Pod)
    }

    /// The other nodes, when they are followed.
    pub fn peers(&self) -> Option<&Arc<Peers>> {
        self.peers.get()
    }

    /// Takes it back.
    pub fn release(&self, address: IpAddr) {
        self.entries.write().remove(&address);
        self.addresses.release(address);
    }

    /// An HTTP component answers for this container from now on.
    pub fn serve(&self, address: IpAddr, container: usize, ports: Box<[u16]>, service: Arc<dyn HttpService>) {
        if let Some(entry) = self.entries.write().get_mut(&address) {
            entry.http.retain(|port| port.container != container);
            entry.http.push(HttpPort { container, ports, service });
        }
    }

    /// This container may listen at sockets from now on.
    pub fn listen(&self, address: IpAddr, container: usize) {
        if let Some(entry) = self.entries.write().get_mut(&address)
            && !entry.sockets.contains(&container)
        {
            entry.sockets.push(container);
        }
    }

    /// Nothing of this container answers any more.
    pub fn stop(&self, address: IpAddr, container: usize) {
        if let Some(entry) = self.entries.write().get_mut(&address) {
            entry.http.retain(|port| port.container != container);
            entry.sockets.retain(|other| *other != container);
        }
    }

    /// Whether one of the pod's components declares this port.
    pub fn is_declared(&self, endpoint: SocketAddr) -> bool {
        let entries = self.entries.read();
        let mut http = entries.get(&endpoint.ip()).into_iter().flat_map(|entry| entry.http.iter());
        http.any(|http| http.ports.contains(&endpoint.port()))
    }

    /// How long the pod that has this address has it: cancelled before another can.
    pub fn life(&self, address: IpAddr) -> Option<CancellationToken> {
        self.entries.read().get(&address).map(|entry| entry.life.clone())
    }

    /// The loopback twin of a pod's address.
    pub fn twin(&self, address: IpAddr) -> Option<IpAddr> {
        self.entries.read().get(&address).map(|entry| entry.twin)
    }

    /// The node's own address in its pods' network, from which the mesh sends datagrams to them.
    pub fn gateway(&self) -> PodAddress {
        self.addresses.gateway()
    }

    /// The pod whose twin this is.
    pub fn pod_of_twin(&self, twin: IpAddr) -> Option<IpAddr> {
        self.addresses.of_loopback(twin)
    }

    /// Where a guest's port is at its twin.
    pub fn twin_port(&self, port: u16) -> u16 {
        if port != 0 && port < self.shifted_below { port + SHIFT } else { port }
    }

    /// The guest's port for one at its twin.
    pub fn guest_port(&self, port: u16) -> u16 {
        if self.is_shifted(port) { port - SHIFT } else { port }
    }

    /// Whether a port at the twin stands for a privileged one.
    pub fn is_shifted(&self, port: u16) -> bool {
        self.shifted_below > 0 && port >= SHIFT
    }
}

impl LocalEndpoints for Table {
    fn node(&self) -> &str {
        self.peers.get().map_or("", |peers| peers.own())
    }

    fn lookup(&self, address: IpAddr, port: u16) -> Option<Local> {
        let entries = self.entries.read();
        let entry = entries.get(&address)?;
        let declared = entry.http.iter().find(|http| http.ports.contains(&port));
        // The only component of a pod answers at any port: nothing else could.
        let only = || entry.http.first().filter(|_| entry.http.len() == 1 && entry.sockets.is_empty());
        if let Some(http) = declared.or_else(only) {
            return Some(Local::Http(http.service.clone()));
        }
        if entry.sockets.is_empty() {
            return None;
        }
        Some(Local::Tcp(SocketAddr::new(entry.twin, self.twin_port(port))))
    }

    fn workload(&self, address: IpAddr) -> Option<Arc<Workload>> {
        self.entries.read().get(&address)?.workload.clone()
    }

    fn is_pod_address(&self, address: IpAddr) -> bool {
        self.addresses.contains(address)
    }

    fn is_elsewhere(&self, address: IpAddr) -> bool {
        !self.addresses.contains(address) && self.peers.get().is_some_and(|peers| peers.has(address))
    }

    fn connect_elsewhere(
        &self,
        to: SocketAddr,
        purpose: Purpose,
        source: Source,
    ) -> BoxFuture<'static, io::Result<Elsewhere>> {
        match self.peers.get().cloned() {
            Some(peers) => Box::pin(peers.connect(to, purpose, source)),
            None => Box::pin(async { Err(io::ErrorKind::HostUnreachable.into()) }),
        }
    }

    fn enter_elsewhere(&self, to: SocketAddr, by: Asker) -> Option<Place> {
        self.peers.get()?.enter(to.ip(), by)
    }

    fn links(&self) -> Option<IpAddr> {
        Some(self.addresses.links())
    }

    fn caller(&self, from: IpAddr) -> Option<(IpAddr, Source)> {
        let pod = self.pod_of_twin(from).filter(|pod| *pod != self.gateway().pod)?;
        Some((pod, self.source(pod)))
    }

    /// An endpoint that somebody has written for a Service of theirs is no way to this machine; the API server's own are.
    fn may_dial(&self, actual: SocketAddr) -> bool {
        self.gate.permits(actual.ip())
            || self.discovery.get().is_some_and(|discovery| {
                let snapshot = discovery.snapshot();
                snapshot.service("default", "kubernetes").is_some_and(|service| service.leads_to(actual))
            })
    }

    fn is_reached(&self, actual: SocketAddr, protocol: Protocol) -> bool {
        self.pod_of_twin(actual.ip()).is_none() || super::listening::is_reached(actual, protocol)
    }

    fn source(&self, to: IpAddr) -> IpAddr {
        match to {
            _ if self.pod_of_twin(to).is_some() => self.gateway().loopback,
            IpAddr::V4(to) if to.is_loopback() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        }
    }

    fn service_failed(&self, service: &Service, failure: ServiceFailure<'_>) {
        // Every request meets the same endpoint; of ports the proxy tells once.
        if let ServiceFailure::Endpoint(at) = failure {
            let mut told = self.told.lock();
            if told.len() >= TOLD_MAX {
                told.clear();
            }
            if !told.insert((service.namespace.clone(), service.name.clone(), at)) {
                return;
            }
        }
        (self.service_failed)(service, failure);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use coracle_proxy::{Body, BoxError};
    use futures::future::BoxFuture;
    use http::{Request, Response};

    struct Nobody;

    impl HttpService for Nobody {
        fn call(&self, _: Request<Body>) -> BoxFuture<'static, Result<Response<Body>, BoxError>> {
            Box::pin(async { Err("nobody".into()) })
        }
    }

    #[test]
    fn finds_components_by_port_and_sockets_for_the_rest() {
        let addresses = Addresses::new("10.1.0.0/24".parse().unwrap()).unwrap();
        let table = Table::new(addresses, Box::new(|_, _| {}));
        let pod = table.allocate(None).unwrap();
        let kind = |port| match table.lookup(pod.pod, port) {
            None => "none",
            Some(Local::Http(_)) => "http",
            Some(Local::Tcp(address)) => {
                assert_eq!(address.ip(), pod.loopback);
                "tcp"
            }
        };
        assert_eq!(kind(80), "none");
        table.serve(pod.pod, 0, Box::new([80]), Arc::new(Nobody));
        assert_eq!((kind(80), kind(8080)), ("http", "http"));
        table.listen(pod.pod, 1);
        assert_eq!((kind(80), kind(8080)), ("http", "tcp"));
        table.stop(pod.pod, 0);
        assert_eq!(kind(80), "tcp");
        assert!(table.is_pod_address(pod.pod) && !table.is_pod_address(pod.loopback));
        table.release(pod.pod);
        assert_eq!(kind(80), "none");
        assert_eq!(table.guest_port(table.twin_port(80)), 80);
    }
}
