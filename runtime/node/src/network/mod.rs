//! A guest's view of the network, and the mesh's view of the guests.
//!
//! A pod has an address that the cluster sees and a loopback twin at which its sockets really are ([`crate::addresses`]). What a
//! guest binds goes to its twin; what it connects to is a Service, a pod of this node or another ([`Peers`]), or outside of the cluster, which is a
//! granted capability ([`crate::annotations::EGRESS`]). An HTTP component has no socket at all: the mesh calls it
//! ([`Table`]), and for guests that insist on a socket a [`bridge`] makes one.

mod bridge;
mod callers;
mod connections;
mod framing;
mod gate;
mod guest;
mod listening;
mod outside;
mod pass;
mod peers;
mod pod_tls;
mod table;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use coracle_discovery::{Discovery, Policies};
use coracle_proxy::{HttpService, Local, LocalEndpoints as _, Proxy, Shares, Tracer};
use rustls_pki_types::CertificateDer;
use tokio::net::TcpStream;

pub use self::callers::Callers;
pub use self::connections::{Connections, Patience};
pub use self::framing::{CALLED, DATAGRAMS, LINK, LINKS_MAX, REQUESTS, called};
pub use self::gate::{Gate, is_clusters};
pub use self::guest::{GuestNetwork, Why};
pub use self::outside::{Outside, over};
pub use self::pass::pass;
pub use self::peers::Peers;
pub use self::pod_tls::{Within, secured};
pub use self::table::{ServiceFailed, Table};

/// Ports below the kernel's unprivileged range live this far up at the twin, when the process may not bind them.
const SHIFT: u16 = 64_512;

/// A pod's socket is connected within this time: one that never accepts lets nobody wait.
const CONNECT_MAX: Duration = Duration::from_secs(5);

/// What all guests of the node share.
pub struct Network {
    /// Addresses and the pods behind them.
    pub table: Arc<Table>,
    /// Services.
    pub discovery: Discovery,
    /// What network policies say.
    pub policies: Policies,
    /// Routes.
    pub proxy: Proxy,
    /// Who calls from other nodes.
    pub callers: Callers,
    /// What a pod may never reach.
    pub gate: Arc<Gate>,
    /// The way out of the mesh.
    pub outside: Outside,
    /// Which connections of the pods are in use.
    pub connections: Connections,
    /// Flows of datagrams that other nodes have to pods of this one, by those nodes.
    pub flows: Arc<Shares<Arc<str>>>,
    bridges: Arc<bridge::Bridges>,
}

/// Flows of datagrams from other nodes, each with a descriptor; each node has a share of them.
const FLOWS_MAX: usize = 8192;

impl Network {
    /// A network over this table; `cluster_roots` are the authorities of the cluster.
    /// `tracer` makes spans of requests.
    pub fn new(
        table: Arc<Table>,
        discovery: Discovery,
        policies: Policies,
        cluster_roots: Vec<CertificateDer<'static>>,
        tracer: Option<Tracer>,
    ) -> Self {
        let proxy = Proxy::new(discovery.clone(), policies.clone(), table.clone());
        let proxy = match tracer {
            Some(tracer) => proxy.traced(tracer),
            None => proxy,
        };
        let gate = table.gate.clone();
        let judge = proxy.clone();
        let judge = Arc::new(move |key: &str, to: SocketAddr| judge.permits_outside(key, to));
        let outside = Outside::new(gate.clone(), judge, cluster_roots);
        let (connections, bridges) = <(Connections, Arc<bridge::Bridges>)>::default();
        table.lead_to(&discovery);
        let (callers, flows) = (Callers::default(), Shares::new(FLOWS_MAX));
        Self { table, discovery, policies, proxy, callers, gate, outside, connections, flows, bridges }
    }

    /// How a port of a pod of this node is reached.
    pub fn local(&self, address: IpAddr, port: u16) -> Option<Local> {
        self.table.lookup(address, port)
    }

    /// Whoever answers HTTP at a pod's port when it is asked.
    pub fn component(&self, endpoint: SocketAddr) -> Arc<dyn HttpService> {
        bridge::present(&self.table, endpoint)
    }

    /// A socket for a pod's port, made if the pod has none of its own on this machine; for a pod of this namespace.
    fn socket(&self, endpoint: SocketAddr, namespace: &Arc<str>) -> Option<SocketAddr> {
        let of = (&self.table, &self.proxy);
        if self.table.is_elsewhere(endpoint.ip()) {
            return self.bridges.open_elsewhere(endpoint, namespace, of);
        }
        match self.local(endpoint.ip(), endpoint.port())? {
            Local::Tcp(address) => Some(address),
            Local::Http(_) => {
                let at = SocketAddr::new(self.table.twin(endpoint.ip())?, self.table.twin_port(endpoint.port()));
                self.bridges.open(endpoint, at, namespace, of)
            }
        }
    }

    /// A socket for what has none at this address, which is an endpoint's or a Service's whose `endpoint` was picked. Who answers for a Service
    /// is picked again once somebody is connected: one whose node does not let him in, or that has gone by then, is not the only one, and
    /// a component's requests are counted with the others of the Service.
    fn made(&self, wanted: SocketAddr, endpoint: SocketAddr, namespace: &Arc<str>) -> Option<SocketAddr> {
        match wanted == endpoint {
            true => self.socket(endpoint, namespace),
            false => self.bridges.open_service(wanted, namespace, (&self.table, &self.proxy)),
        }
    }

    /// A socket for a Service whose connections are counted, and wait while it has no pod; `None` for any other address.
    fn counted(&self, to: SocketAddr, namespace: &Arc<str>) -> Option<Option<SocketAddr>> {
        let of = (&self.table, &self.proxy);
        self.proxy.activates(to).then(|| self.bridges.open_service(to, namespace, of))
    }

    /// Connects to a pod's socket, and to nothing else that happens to be there.
    pub async fn dial(&self, at: SocketAddr) -> io::Result<TcpStream> {
        match self.table.is_reached(at, coracle_discovery::Protocol::Tcp) {
            true => match tokio::time::timeout(CONNECT_MAX, TcpStream::connect(at)).await {
                Ok(Ok(socket)) if !coracle_proxy::is_spare(&socket) => Err(io::ErrorKind::QuotaExceeded.into()),
                Ok(connected) => connected,
                Err(_) => Err(io::ErrorKind::TimedOut.into()),
            },
            false => Err(io::ErrorKind::ConnectionRefused.into()),
        }
    }

    /// Whether a Service leads to this address outside of the node's pods, as `kubernetes` does to the API server.
    fn is_service_endpoint(&self, actual: SocketAddr) -> bool {
        self.table.may_dial(actual) && self.discovery.snapshot().leads_to(actual)
    }

    /// The other node's pod, or the Service, to which a socket of this process leads, for connections.
    fn leads_elsewhere(&self, actual: SocketAddr) -> Option<SocketAddr> {
        (actual.ip() == self.table.links()).then(|| self.bridges.elsewhere(actual)).flatten()
    }

    /// Closes what was made for the pod at this address.
    pub fn forget(&self, address: IpAddr) {
        self.bridges.close(address);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addresses::Addresses;

    /// One that no API server tells anything.
    fn network() -> Arc<Network> {
        let addresses = Addresses::new("10.1.0.0/24".parse().unwrap()).unwrap();
        let table = Arc::new(Table::new(addresses, Box::new(|_, _| {})));
        let nobody = tower::service_fn(|_: http::Request<kube::client::Body>| async {
            Err::<http::Response<kube::client::Body>, _>(io::Error::from(io::ErrorKind::NotConnected))
        });
        let client = kube::Client::new(nobody, "default");
        let (discovery, policies) = (Discovery::new(client.clone()), Policies::new(client));
        Arc::new(Network::new(table, discovery, policies, Vec::new(), None))
    }

    #[tokio::test]
    async fn what_leads_to_a_service_leads_to_whichever_of_its_endpoints_and_a_pod_s_to_the_pod() {
        let network = network();
        let peers = Arc::new(Peers::new("n1", None));
        network.table.lead_elsewhere(&peers);
        peers
            .take(vec![serde_json::json!({"name": "n2", "address": "192.0.2.1", "port": 1, "podCIDR": "10.2.0.0/24"})]);
        let (service, pod) = (SocketAddr::from(([10, 96, 0, 9], 80)), SocketAddr::from(([10, 2, 0, 2], 8080)));
        for (wanted, leads) in [(service, service), (pod, pod)] {
            let at = network.made(wanted, pod, &Arc::from("n")).unwrap();
            assert_eq!(network.leads_elsewhere(at), Some(leads));
        }
    }

    /// Also where no policy is about them.
    #[tokio::test]
    async fn connections_to_outside_are_kept_for_one_pod_alone() {
        use coracle_policy::{Source, Workload};
        let network = network();
        let to = SocketAddr::from(([192, 0, 2, 1], 443));
        let source = || {
            let address = network.table.allocate(None).unwrap().pod;
            network.table.identify(Workload::of(&k8s_openapi::api::core::v1::Pod::default(), address));
            (address, network.table.source(address))
        };
        let ((one, first), (_, second)) = (source(), source());
        let key = |of: &Source| network.proxy.outside_key(of);
        let (first, second) = (key(&first).unwrap(), key(&second).unwrap());
        assert_ne!(first, second);
        assert!([&first, &second].into_iter().all(|key| network.proxy.permits_outside(key, to)));
        network.table.release(one);
        assert!(!network.proxy.permits_outside(&first, to) && network.proxy.permits_outside(&second, to));
        assert_eq!(key(&Source::Unknown), None);
    }

    /// What the engine asks for each datagram of a guest's to a pod of another node, and for what comes back.
    #[tokio::test]
    async fn a_guest_s_datagrams_to_another_node_go_to_a_socket_of_this_process_that_is_for_them_alone() {
        use coracle_engine::{Network as _, Protocol, SocketUse};
        let network = network();
        let peers = Arc::new(Peers::new("n1", None));
        network.table.lead_elsewhere(&peers);
        peers
            .take(vec![serde_json::json!({"name": "n2", "address": "192.0.2.1", "port": 1, "podCIDR": "10.2.0.0/24"})]);
        let address = network.table.allocate(None).unwrap();
        let told: Arc<parking_lot::Mutex<Vec<String>>> = Arc::default();
        let denied = told.clone();
        let guest = GuestNetwork {
            network: network.clone(),
            address,
            namespace: "n".into(),
            hosts: Vec::new(),
            egress: false.into(),
            denied: Box::new(move |to, _| denied.lock().push(to.to_owned())),
            told: Default::default(),
            flows: Default::default(),
        };
        let pod = SocketAddr::from(([10, 2, 0, 2], 53));
        let at = guest.connect(pod, Protocol::Udp).unwrap();
        assert_eq!((at.ip(), network.proxy.datagrams_lead(at)), (network.table.links(), Some(pod)));
        assert_eq!(guest.connect(pod, Protocol::Udp), Ok(at));
        assert_eq!(guest.shown_datagram(at), pod);
        for (usage, may) in [
            (SocketUse::UdpSend, true),
            (SocketUse::UdpReceive, true),
            // That one would be a connection's, if there were one.
            (SocketUse::TcpConnect, false),
        ] {
            assert_eq!(guest.permits(at, usage), may, "{usage:?}");
        }
        let nobodys = (1..=u16::MAX).find(|port| {
            let other = SocketAddr::new(at.ip(), *port);
            network.proxy.datagrams_lead(other).is_none()
        });
        let nobodys = SocketAddr::new(at.ip(), nobodys.unwrap());
        for usage in [SocketUse::UdpSend, SocketUse::UdpReceive, SocketUse::UdpBind] {
            assert!(!guest.permits(nobodys, usage), "{usage:?}");
        }
        assert!(told.lock().is_empty());
        // A name for a pod is one for any address, and leads to none that is outside.
        use coracle_engine::Outbound as _;
        use http_body_util::BodyExt as _;
        let body = http_body_util::Empty::new().map_err(|never| match never {}).boxed_unsync();
        let request = http::Request::get("http://192-0-2-1.n.pod.cluster.local/").body(body).unwrap();
        assert!(matches!(guest.send(request).await, Err(coracle_engine::OutboundError::Denied)));
        assert_eq!(*told.lock(), ["192-0-2-1.n.pod.cluster.local"]);
    }
}
