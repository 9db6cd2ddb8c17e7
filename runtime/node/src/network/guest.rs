//! The engine's questions about one pod's sockets, names and requests, answered.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use async_trait::async_trait;
use coracle_discovery::Resolved as Name;
use coracle_engine::{Body, BoxError, OutboundError, Protocol, Refused, Resolved, SocketUse};
use http::uri::{Authority, Scheme, Uri};
use http::{Request, Response};
use parking_lot::Mutex;

use super::Network;
use crate::addresses::PodAddress;

/// Denied destinations that are told about, per pod.
const TOLD_MAX: usize = 8;
/// Names of this suffix are the cluster's, whether they exist or not.
const CLUSTER_DOMAIN: &str = ".cluster.local";

/// Called once for each destination that was denied.
pub type Denied = Box<dyn Fn(&str) + Send + Sync>;

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
    /// Whether it may leave the cluster.
    pub egress: bool,
    /// Told about what is denied.
    pub denied: Denied,
    /// What was told.
    pub told: Mutex<HashSet<String>>,
}

impl GuestNetwork {
    fn deny(&self, destination: &str) {
        let mut told = self.told.lock();
        if told.len() < TOLD_MAX && told.insert(destination.to_owned()) {
            drop(told);
            (self.denied)(destination);
        }
    }

    fn is_self(&self, address: IpAddr) -> bool {
        address.is_loopback() || address.is_unspecified() || address == self.address.pod
    }

    fn own(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.address.loopback, self.network.table.twin_port(port))
    }

    /// An address that the guest knows without asking anybody.
    fn known_host(&self, name: &str) -> Option<IpAddr> {
        if name.eq_ignore_ascii_case("localhost") {
            return Some(IpAddr::V4(Ipv4Addr::LOCALHOST));
        }
        let literal = name.trim_start_matches('[').trim_end_matches(']').parse().ok();
        literal.or_else(|| {
            self.hosts.iter().find(|(host, _)| host.eq_ignore_ascii_case(name)).map(|(_, address)| *address)
        })
    }

    /// Where a request to this host goes.
    fn destination(&self, host: &str) -> Destination {
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
            Some(_) => Destination::Cluster(None),
            None if host.ends_with(CLUSTER_DOMAIN) => Destination::Nowhere,
            None => Destination::Outside(None),
        }
    }

    fn is_cluster_pod(&self, address: IpAddr) -> bool {
        coracle_proxy::LocalEndpoints::is_pod_address(&*self.network.table, address)
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

    fn connect(&self, wanted: SocketAddr, _: Protocol) -> Result<SocketAddr, Refused> {
        if self.is_self(wanted.ip()) {
            let pod = SocketAddr::new(self.address.pod, wanted.port());
            return Ok(self.network.socket(pod).unwrap_or_else(|| self.own(wanted.port())));
        }
        match self.network.proxy.connect_address(wanted) {
            Some(Ok(actual)) => Ok(actual),
            // It is there, but has no socket.
            Some(Err(coracle_proxy::Error::NoPod(endpoint))) => {
                self.network.socket(endpoint).ok_or(Refused::NoEndpoint)
            }
            Some(Err(_)) => Err(Refused::NoEndpoint),
            None if self.egress && !wanted.ip().is_loopback() => Ok(wanted),
            None => {
                self.deny(&wanted.to_string());
                Err(Refused::Denied)
            }
        }
    }

    fn shown(&self, actual: SocketAddr) -> SocketAddr {
        match self.network.table.pod_of_twin(actual.ip()) {
            Some(pod) => SocketAddr::new(pod, self.network.table.guest_port(actual.port())),
            None => actual,
        }
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
            None if self.egress => Resolved::System,
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
            SocketUse::TcpConnect | SocketUse::UdpSend | SocketUse::UdpReceive => {
                is_own
                    || self.network.table.pod_of_twin(address).is_some()
                    || (self.egress && !address.is_loopback())
                    || self.network.is_service_endpoint(actual)
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
        let is_https = request.uri().scheme() == Some(&Scheme::HTTPS);
        match self.destination(authority.host().trim_end_matches('.')) {
            Destination::Nowhere => Err(OutboundError::Name(authority.host().to_owned())),
            Destination::Cluster(address) => {
                if let Some(address) = address {
                    readdress(&mut request, &authority, &address.to_string())?;
                }
                self.network.proxy.call(&self.namespace, request).await.map_err(classify)
            }
            Destination::Outside(_) if !self.egress => {
                self.deny(authority.as_str());
                Err(OutboundError::Denied)
            }
            Destination::Outside(name) => {
                if let Some(name) = name {
                    readdress(&mut request, &authority, &name)?;
                }
                match is_https {
                    true => self.network.https.send(request).await,
                    false => self.network.proxy.external(request).await.map_err(classify),
                }
            }
        }
    }
}

/// Sends a request elsewhere; its `host` header still says what the guest wrote.
fn readdress(request: &mut Request<Body>, authority: &Authority, host: &str) -> Result<(), OutboundError> {
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
        Error::NoPort { .. } | Error::NoPod(_) => OutboundError::Refused,
        Error::NoEndpoints { .. } => OutboundError::Unavailable,
        Error::NoAuthority | Error::Scheme(_) => OutboundError::Protocol(error.into()),
        Error::Failed { endpoint, source } => no_answer(endpoint, source),
    }
}

/// Why there was no answer from `endpoint`, as far as the causes tell.
pub(super) fn no_answer(endpoint: String, source: BoxError) -> OutboundError {
    let mut cause = Some(&*source as &(dyn std::error::Error + 'static));
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            match io.kind() {
                io::ErrorKind::ConnectionRefused => return OutboundError::Refused,
                io::ErrorKind::TimedOut => return OutboundError::Timeout,
                _ => {}
            }
        }
        if error.to_string() == "dns error" {
            return OutboundError::Name(endpoint);
        }
        cause = error.source();
    }
    OutboundError::Protocol(source)
}
