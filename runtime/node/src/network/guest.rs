//! The engine's questions about one pod's sockets, names and requests, answered.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use async_trait::async_trait;
use coracle_discovery::Resolved as Name;
use coracle_engine::{Body, BoxError, Chain, OutboundError, Protocol, Refused, Resolved, SocketUse};
use coracle_policy::Source;
use http::uri::{Authority, Scheme, Uri};
use http::{HeaderValue, Request, Response};
use parking_lot::Mutex;

use super::Network;
use super::outside::no_answer;
use crate::addresses::PodAddress;

/// Denied destinations that are told about, per pod.
const TOLD_MAX: usize = 8;
/// Names of this suffix are the cluster's, whether they exist or not.
const CLUSTER_DOMAIN: &str = ".cluster.local";

/// Why a connection was refused, for those who look for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// It is outside of the cluster, which the pod was not granted.
    NotGranted,
    /// No pod may go there.
    Near,
    /// Network policies do not allow it, its own or those of who is called.
    Policies,
}

/// Called once for each destination that was denied.
pub type Denied = Box<dyn Fn(&str, Why) + Send + Sync>;

/// The network of one pod.
pub struct GuestNetwork {
    /// What all pods share.
    pub network: Arc<Network>,
    /// The pod's address.
    pub address: PodAddress,
    /// The pod's namespace.
    pub namespace: Arc<str>,
    /// The pod's own name, and the names of `hostAliases`.
    pub hosts: Vec<(String, IpAddr)>,
    /// Whether it may leave the cluster; what its object says at present.
    pub egress: AtomicBool,
    /// Told about what is denied.
    pub denied: Denied,
    /// What was told.
    pub told: Mutex<HashSet<String>>,
    /// Where its datagrams to Services go.
    pub flows: coracle_proxy::Flows,
}

impl GuestNetwork {
    fn deny(&self, destination: &str) {
        self.tell(destination, if self.may_leave() { Why::Near } else { Why::NotGranted });
    }

    fn tell(&self, destination: &str, why: Why) {
        let mut told = self.told.lock();
        if told.len() < TOLD_MAX && told.insert(destination.to_owned()) {
            drop(told);
            (self.denied)(destination, why);
        }
    }

    /// Whether the pod may leave the cluster.
    pub fn may_leave(&self) -> bool {
        self.egress.load(Relaxed)
    }

    /// It may from now on, or may not: connections that are there stay, as when policies change.
    pub fn grant(&self, egress: bool) {
        self.egress.store(egress, Relaxed);
    }

    /// The pod, as one who calls.
    pub fn source(&self) -> Source {
        self.network.table.source(self.address.pod)
    }

    /// Whether policies let the pod connect to an address, as far as this node can tell.
    pub fn may_connect(&self, to: SocketAddr, protocol: Protocol) -> bool {
        self.network.proxy.permits(&self.source(), to, kind(protocol))
    }

    fn is_self(&self, address: IpAddr) -> bool {
        address.is_loopback() || address.is_unspecified() || address == self.address.pod
    }

    fn own(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.address.loopback, self.network.table.twin_port(port))
    }

    /// Where a connection or datagram goes, whoever may be there.
    fn target(&self, wanted: SocketAddr, protocol: Protocol) -> Result<SocketAddr, Refused> {
        let wanted = SocketAddr::new(wanted.ip().to_canonical(), wanted.port());
        if self.is_self(wanted.ip()) {
            let pod = SocketAddr::new(self.address.pod, wanted.port());
            let socket = (protocol == Protocol::Tcp).then(|| self.network.socket(pod, &self.namespace)).flatten();
            return Ok(socket.unwrap_or_else(|| self.own(wanted.port())));
        }
        if protocol == Protocol::Tcp
            && let Some(socket) = self.network.counted(wanted, &self.namespace)
        {
            return socket.ok_or(Refused::NoEndpoint);
        }
        let found = match protocol {
            Protocol::Tcp => self.network.proxy.connect_address(&self.source(), wanted, kind(protocol)),
            // The answer to a datagram that came in at a port of the node.
            Protocol::Udp if wanted.ip() == self.network.table.gateway().pod => {
                if !self.network.proxy.has_upstream(self.address.loopback, wanted.port()) {
                    self.deny(&wanted.to_string());
                    return Err(Refused::Denied);
                }
                return Ok(SocketAddr::new(self.network.table.gateway().loopback, wanted.port()));
            }
            Protocol::Udp => self.flows.send(&self.network.proxy, &self.source(), wanted),
        };
        match found {
            Some(Ok(actual)) if self.is_within(actual, protocol) => Ok(actual),
            Some(Ok(_)) => {
                self.deny(&wanted.to_string());
                Err(Refused::Denied)
            }
            // As if nobody listened there.
            Some(Err(coracle_proxy::Error::NotAllowed(_))) => {
                self.tell(&wanted.to_string(), Why::Policies);
                Err(Refused::NoEndpoint)
            }
            // It is there, but has no socket.
            Some(Err(coracle_proxy::Error::NoPod(endpoint))) if protocol == Protocol::Tcp => {
                self.network.made(wanted, endpoint, &self.namespace).ok_or(Refused::NoEndpoint)
            }
            Some(Err(_)) => Err(Refused::NoEndpoint),
            None if self.may_leave() && self.network.gate.permits(wanted.ip()) => {
                match self.may_connect(wanted, protocol) {
                    true => Ok(wanted),
                    false => {
                        self.tell(&wanted.to_string(), Why::Policies);
                        Err(Refused::NoEndpoint)
                    }
                }
            }
            None => {
                self.deny(&wanted.to_string());
                Err(Refused::Denied)
            }
        }
    }

    /// An address that the guest knows without asking anybody.
    fn known_host(&self, name: &str) -> Option<IpAddr> {
        if name.eq_ignore_ascii_case("localhost") {
            return Some(IpAddr::V4(Ipv4Addr::LOCALHOST));
        }
        let literal = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().ok();
        // A mapped IPv4 address is that address.
        let literal = literal.map(|address| address.to_canonical());
        literal.or_else(|| {
            self.hosts.iter().find(|(host, _)| host.eq_ignore_ascii_case(name)).map(|(_, address)| *address)
        })
    }

    /// Where a request to this host goes; `plain` is the port of one without TLS, which takes no way of a socket.
    fn destination(&self, host: &str, plain: Option<u16>) -> Destination {
        let snapshot = self.network.discovery.snapshot();
        if let Some(address) = self.known_host(host) {
            return match address {
                address if self.is_self(address) => Destination::Cluster(Some(self.address.pod)),
                address if snapshot.by_address(address).is_some() => Destination::Cluster(Some(address)),
                address if self.network.table.pod_of_twin(address).is_some() => Destination::Nowhere,
                address if self.is_cluster_pod(address) => Destination::Cluster(Some(address)),
                address => Destination::Outside(Some(address.to_string())),
            };
        }
        match snapshot.resolve(host, &self.namespace) {
            Some(Name::External(name)) => Destination::Outside(Some(name)),
            Some(Name::Addresses(addresses)) => {
                let is_ours = plain.is_none_or(|port| self.network.proxy.has_clusters(&addresses, port));
                match addresses.first() {
                    Some(address) if !is_ours => Destination::Outside(Some(address.to_string())),
                    _ => Destination::Cluster(None),
                }
            }
            Some(Name::Service(_)) => Destination::Cluster(None),
            None if host.ends_with(CLUSTER_DOMAIN) => Destination::Nowhere,
            None => Destination::Outside(None),
        }
    }

    /// Whether a real address is a pod's, or one that a Service may lead to.
    fn is_within(&self, actual: SocketAddr, protocol: Protocol) -> bool {
        let elsewhere = match protocol {
            Protocol::Tcp => self.network.leads_elsewhere(actual),
            Protocol::Udp => self.network.proxy.datagrams_lead(actual),
        };
        self.network.table.pod_of_twin(actual.ip()).is_some()
            || elsewhere.is_some()
            || self.network.is_service_endpoint(actual)
    }

    fn is_cluster_pod(&self, address: IpAddr) -> bool {
        use coracle_proxy::LocalEndpoints as _;
        self.network.table.is_pod_address(address) || self.network.table.is_elsewhere(address)
    }
}

fn kind(protocol: Protocol) -> coracle_discovery::Protocol {
    match protocol {
        Protocol::Tcp => coracle_discovery::Protocol::Tcp,
        Protocol::Udp => coracle_discovery::Protocol::Udp,
    }
}

enum Destination {
    /// A Service or pod; the address, when the name is only the guest's own.
    Cluster(Option<IpAddr>),
    /// Outside of the cluster; the real name or address, when it is another.
    Outside(Option<String>),
    /// A name that does not exist.
    Nowhere,
}

impl coracle_engine::Network for GuestNetwork {
    fn bind(&self, wanted: SocketAddr, _: Protocol) -> Result<SocketAddr, Refused> {
        if !self.is_self(wanted.ip()) || self.network.table.is_shifted(wanted.port()) {
            return Err(Refused::Denied);
        }
        Ok(self.own(wanted.port()))
    }

    fn connect(&self, wanted: SocketAddr, protocol: Protocol) -> Result<SocketAddr, Refused> {
        let actual = self.target(wanted, protocol)?;
        match coracle_proxy::LocalEndpoints::is_reached(&*self.network.table, actual, kind(protocol)) {
            true => Ok(actual),
            false => Err(Refused::NoEndpoint),
        }
    }

    fn shown(&self, actual: SocketAddr) -> SocketAddr {
        match self.network.table.pod_of_twin(actual.ip()) {
            Some(pod) => SocketAddr::new(pod, self.network.table.guest_port(actual.port())),
            None => self.network.leads_elsewhere(actual).unwrap_or(actual),
        }
    }

    fn shown_datagram(&self, actual: SocketAddr) -> SocketAddr {
        let elsewhere = || self.network.proxy.datagrams_lead(actual);
        self.flows.shown(actual).or_else(elsewhere).unwrap_or_else(|| self.shown(actual))
    }

    fn resolve(&self, name: &str) -> Resolved {
        let name = name.trim_end_matches('.');
        if let Some(address) = self.known_host(name) {
            return Resolved::Addresses(vec![address]);
        }
        match self.network.proxy.resolve(name, &self.namespace) {
            Some(addresses) if addresses.is_empty() => Resolved::Unknown,
            Some(addresses) => Resolved::Addresses(addresses),
            None if name.ends_with(CLUSTER_DOMAIN) => Resolved::Unknown,
            None if self.may_leave() => Resolved::System,
            None => {
                self.deny(name);
                Resolved::Unknown
            }
        }
    }

    fn permits(&self, actual: SocketAddr, usage: SocketUse) -> bool {
        let address = actual.ip();
        let is_own = address == self.address.loopback;
        // Connecting or sending without a bind before.
        let is_implicit = address.is_unspecified() && actual.port() == 0;
        match usage {
            SocketUse::TcpBind | SocketUse::UdpBind if is_implicit => true,
            SocketUse::TcpBind | SocketUse::TcpListen | SocketUse::UdpBind => is_own,
            // Who comes in came through the mesh or from a twin; both are on loopback.
            SocketUse::TcpAccept => address.is_loopback(),
            // Only datagrams come from the node itself, and are answered.
            SocketUse::TcpConnect if address == self.network.table.gateway().loopback => false,
            SocketUse::TcpConnect if self.network.leads_elsewhere(actual).is_some() => true,
            // Whether its node lets them in shows there; what answers was asked.
            SocketUse::UdpSend | SocketUse::UdpReceive if address == self.network.table.links() => {
                let proxy = &self.network.proxy;
                match usage {
                    SocketUse::UdpSend => {
                        proxy.datagrams_go(actual).is_some_and(|to| proxy.permits_datagram(&self.source(), to))
                    }
                    _ => proxy.datagrams_lead(actual).is_some(),
                }
            }
            SocketUse::TcpConnect | SocketUse::UdpSend | SocketUse::UdpReceive => {
                // Once more, and for each datagram: a socket may have been connected before policies changed.
                let is_allowed = |to: SocketAddr| match usage {
                    SocketUse::TcpConnect => self.may_connect(to, Protocol::Tcp),
                    SocketUse::UdpSend => self.network.proxy.permits_datagram(&self.source(), to),
                    // A pod's was judged where it was sent.
                    _ => self.is_cluster_pod(to.ip()) || self.network.proxy.takes_datagram(&self.source(), to.ip()),
                };
                let shown = || self.shown(actual);
                is_own
                    || (self.network.table.pod_of_twin(address).is_some() && is_allowed(shown()))
                    || ((self.may_leave() && self.network.gate.permits(address)
                        || self.network.is_service_endpoint(actual))
                        && is_allowed(actual))
            }
        }
    }
}

#[async_trait]
impl coracle_engine::Outbound for GuestNetwork {
    async fn send(&self, mut request: Request<Body>) -> Result<Response<Body>, OutboundError> {
        let Some(authority) = request.uri().authority().cloned() else {
            return Err(OutboundError::Protocol("the request names no host".into()));
        };
        request.extensions_mut().insert(coracle_proxy::Asker::Pod(self.address.pod));
        // Whoever is called on another node must know who waits for it.
        let chain = request.extensions().get::<Chain>().map(Chain::to_string);
        if let Some(chain) = chain.and_then(|chain| HeaderValue::try_from(chain).ok()) {
            request.extensions_mut().insert(coracle_proxy::Carried(chain));
        }
        let is_https = request.uri().scheme() == Some(&Scheme::HTTPS);
        // Names are the same in any case; what the guest wrote is what the other side is told.
        let host = authority.host().trim_end_matches('.').to_ascii_lowercase();
        let plain = (!is_https).then(|| authority.port_u16().unwrap_or(80));
        match self.destination(&host, plain) {
            Destination::Nowhere => Err(OutboundError::Name(authority.host().to_owned())),
            Destination::Cluster(address) if is_https => self.send_tls(&host, &authority, address, request).await,
            Destination::Cluster(address) => {
                let (port, source) = (authority.port_u16().unwrap_or(80), self.source());
                if let Some(address) = address
                    && let Some(coracle_proxy::Local::Http(service)) = self.network.local(address, port)
                {
                    if !self.may_connect(SocketAddr::new(address, port), Protocol::Tcp) {
                        self.tell(authority.as_str(), Why::Policies);
                        return Err(OutboundError::Refused);
                    }
                    request.extensions_mut().insert(source);
                    let failed = |error: BoxError| no_answer(authority.to_string(), error);
                    return service.call(request).await.map_err(failed);
                }
                readdress(&mut request, &authority, &address.map_or(host, |address| address.to_string()))?;
                self.network.proxy.call(&source, &self.namespace, request).await.map_err(|error| {
                    if matches!(error, coracle_proxy::Error::NotAllowed(_)) {
                        self.tell(authority.as_str(), Why::Policies);
                    }
                    classify(error)
                })
            }
            Destination::Outside(_) if !self.may_leave() => {
                self.deny(authority.as_str());
                Err(OutboundError::Denied)
            }
            Destination::Outside(name) => {
                if let Some(name) = name {
                    readdress(&mut request, &authority, &name)?;
                }
                // It may have gone meanwhile.
                let key = self.network.proxy.outside_key(&self.source()).ok_or(OutboundError::Denied)?;
                let not_allowed = || self.tell(authority.as_str(), Why::Policies);
                let sent = self.network.outside.send((&self.namespace, &key), request, not_allowed).await;
                if matches!(sent, Err(OutboundError::Denied)) {
                    self.deny(authority.as_str());
                }
                sent
            }
        }
    }

    fn needs_socket(&self, uri: &Uri) -> bool {
        let host = uri.host().unwrap_or_default().trim_end_matches('.').to_ascii_lowercase();
        let is_https = uri.scheme() == Some(&Scheme::HTTPS);
        match self.destination(&host, (!is_https).then(|| uri.port_u16().unwrap_or(80))) {
            Destination::Nowhere => false,
            Destination::Cluster(_) if is_https => true,
            // A component is called within this process; what listens itself, or runs on another node, is connected to.
            Destination::Cluster(address) => {
                let host = address.map_or(host, |address| address.to_string());
                self.network.proxy.is_dialled(&host, uri.port_u16().unwrap_or(80), &self.namespace)
            }
            Destination::Outside(_) => self.may_leave(),
        }
    }
}

impl GuestNetwork {
    /// A request with TLS to a Service or pod, by the way that a socket would take.
    async fn send_tls(
        &self,
        host: &str,
        authority: &Authority,
        address: Option<IpAddr>,
        request: Request<Body>,
    ) -> Result<Response<Body>, OutboundError> {
        use coracle_engine::Network as _;
        let unknown = || OutboundError::Name(host.to_owned());
        let address = match address {
            Some(address) => address,
            None => {
                let addresses = self.network.proxy.resolve(host, &self.namespace).unwrap_or_default();
                *addresses.first().ok_or_else(unknown)?
            }
        };
        let wanted = SocketAddr::new(address, authority.port_u16().unwrap_or(443));
        let actual = self.connect(wanted, Protocol::Tcp).map_err(|refused| match refused {
            Refused::Denied => OutboundError::Denied,
            Refused::NoEndpoint | Refused::Unreachable => OutboundError::Refused,
        })?;
        self.network.outside.send_tls(self.address.loopback, actual, host, request).await
    }
}

/// Sends a request elsewhere; its `host` header still says what the guest wrote.
fn readdress(request: &mut Request<Body>, authority: &Authority, host: &str) -> Result<(), OutboundError> {
    if host == authority.host() {
        return Ok(());
    }
    if !request.headers().contains_key(http::header::HOST)
        && let Ok(value) = authority.as_str().parse()
    {
        request.headers_mut().insert(http::header::HOST, value);
    }
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    let text = match authority.port_u16() {
        Some(port) => format!("{host}:{port}"),
        None => host,
    };
    let mut parts = request.uri().clone().into_parts();
    let bad = |error: http::Error| OutboundError::Protocol(error.into());
    parts.authority = Some(text.parse().map_err(|error: http::uri::InvalidUri| bad(error.into()))?);
    *request.uri_mut() = Uri::from_parts(parts).map_err(|error| bad(error.into()))?;
    Ok(())
}

/// The proxy's errors as a guest knows them.
fn classify(error: coracle_proxy::Error) -> OutboundError {
    use coracle_proxy::Error;
    match error {
        Error::NotInCluster(name) => OutboundError::Name(name),
        Error::NoPort { .. } | Error::NoPod(_) | Error::NotAllowed(_) => OutboundError::Refused,
        Error::NoEndpoints { .. } | Error::NoneHere { .. } | Error::Crowded { .. } => OutboundError::Unavailable,
        Error::Forbidden { .. } => OutboundError::Denied,
        Error::NoAuthority | Error::Scheme(_) | Error::Malformed(_) => OutboundError::Protocol(error.into()),
        Error::Late | Error::Asleep { .. } => OutboundError::Timeout,
        Error::Unavailable { endpoint, source } => match no_answer(endpoint, source) {
            OutboundError::Protocol(_) => OutboundError::Unavailable,
            told => told,
        },
        Error::Failed { endpoint, source } => no_answer(endpoint, source),
    }
}
