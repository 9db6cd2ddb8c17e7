//! The state at one moment.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use coracle_policy::{Block, Protocol};

use crate::name;

/// Annotation of a Service whose pods are scaled by what is asked of them: by whom it is said is the controllers' affair
/// (`concurrency` in coracle-controllers).
pub const ACTIVATES: &str = "autoscaling.coracle.dev/activates";

/// Namespace and name.
pub(crate) type ServiceKey = (Arc<str>, Arc<str>);

/// All Services at one moment.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Grows by one with each snapshot.
    pub generation: u64,
    pub(crate) services: HashMap<ServiceKey, Arc<Service>>,
    pub(crate) addresses: HashMap<IpAddr, Arc<Service>>,
}

/// A Service.
#[derive(Debug, PartialEq, Eq)]
pub struct Service {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// Its uid.
    pub uid: Arc<str>,
    /// When it was made, in seconds since 1970: of two that want the same, the older one has it.
    pub created: i64,
    /// How it is reached.
    pub kind: ServiceKind,
    /// Who answers clients inside the cluster (`internalTrafficPolicy`).
    pub inside: Traffic,
    /// Who answers those that come in at a port of a node (`externalTrafficPolicy`).
    pub outside: Traffic,
    /// Whom nodes let in at its own ports, where they are its balancer.
    pub balanced: Option<Balanced>,
    /// Where a balancer asks whether a node has endpoints of its own (`healthCheckNodePort`).
    pub health_port: Option<u16>,
    /// Its virtual address; a headless Service has none.
    pub cluster_ip: Option<IpAddr>,
    /// What `ExternalName` stands for.
    pub external_name: Option<String>,
    /// Its ports.
    pub ports: Vec<Port>,
    /// Whether its pods are scaled by what is asked of it ([`ACTIVATES`]): a request for which there is none waits for one.
    pub activates: bool,
    /// How long a client that rests is still sent where it went last; `None` when any endpoint will do
    /// (`sessionAffinity`).
    pub affinity: Option<Duration>,
    /// Addresses of ready endpoints, sorted, each once: what the name of a headless Service stands for.
    pub ready: Arc<[IpAddr]>,
    /// Addresses of ready endpoints with a host name (`web-0.web.default`), sorted, each once: several may have the same.
    pub hosts: HashMap<Arc<str>, Vec<IpAddr>>,
}

/// `spec.type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServiceKind {
    /// Reached inside the cluster.
    ClusterIp,
    /// Reached at a port of every node too.
    NodePort,
    /// Reached from outside by a balancer's address too.
    LoadBalancer,
    /// Another name.
    ExternalName,
}

/// Which endpoints answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Traffic {
    /// All of the cluster.
    Cluster,
    /// Those of the node at which somebody comes in, and no others.
    Local,
}

/// A Service of type LoadBalancer that nodes are to be the balancer of: each of them listens at its ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Balanced {
    /// Who may connect (`loadBalancerSourceRanges`); `None` when everybody may.
    pub ranges: Option<Block>,
    /// Ports that nodes had for it, as its status says: nobody else is to get them.
    pub held: HashSet<(u16, Protocol)>,
}

impl Balanced {
    /// Whether this client may connect.
    pub fn lets_in(&self, client: IpAddr) -> bool {
        self.ranges.as_ref().is_none_or(|ranges| ranges.has(client))
    }
}

/// A port of a Service with what answers there.
#[derive(Debug, PartialEq, Eq)]
pub struct Port {
    /// Its name; empty when the Service has one port only.
    pub name: String,
    /// Its number at the cluster address.
    pub port: u16,
    /// Its number at every node.
    pub node_port: Option<u16>,
    /// Its protocol.
    pub protocol: Protocol,
    /// Endpoints that are ready, sorted, each once.
    pub ready: Arc<[Endpoint]>,
    /// Those that still serve while they end, likewise.
    pub leaving: Arc<[Endpoint]>,
}

impl Port {
    /// Who is to be asked: ready endpoints, or, when there is none, those that still serve while they end
    /// (`ProxyTerminatingEndpoints`).
    pub fn endpoints(&self) -> &Arc<[Endpoint]> {
        if self.ready.is_empty() { &self.leaving } else { &self.ready }
    }

    /// The same among those of one node ([`Traffic::Local`]): while a node's last one ends, it is asked, however many others have.
    pub fn endpoints_of(&self, node: &str) -> Vec<Endpoint> {
        let of = |endpoints: &[Endpoint]| -> Vec<Endpoint> {
            endpoints.iter().filter(|endpoint| endpoint.node.as_deref() == Some(node)).cloned().collect()
        };
        let ready = of(&self.ready);
        if ready.is_empty() { of(&self.leaving) } else { ready }
    }
}

/// Where a Service's port is answered.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    /// Address, a pod's as a rule.
    pub address: IpAddr,
    /// Port there.
    pub port: u16,
    /// Node on which it runs.
    pub node: Option<Arc<str>>,
}

/// What a name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resolved {
    /// A Service with an address of its own.
    Service(Arc<Service>),
    /// Endpoints of a headless Service.
    Addresses(Vec<IpAddr>),
    /// A name outside of the cluster.
    External(String),
}

/// Services that stand for each other's names and are followed (resolvers stop at as many CNAMEs).
const ALIASES_MAX: usize = 8;

impl Snapshot {
    /// Of these Services and no others, as it would be when they were heard of.
    pub fn of(services: impl IntoIterator<Item = Service>) -> Snapshot {
        let mut snapshot = Snapshot { generation: 1, ..Snapshot::default() };
        for service in services.into_iter().map(Arc::new) {
            snapshot.addresses.extend(service.cluster_ip.map(|address| (address, service.clone())));
            snapshot.services.insert((service.namespace.clone(), service.name.clone()), service);
        }
        snapshot
    }

    /// The Service of this name.
    pub fn service(&self, namespace: &str, name: &str) -> Option<&Arc<Service>> {
        self.services.get(&(Arc::from(namespace), Arc::from(name)))
    }

    /// The same by namespace and name at once, for whoever keeps them so.
    pub fn by_key(&self, key: &(Arc<str>, Arc<str>)) -> Option<&Arc<Service>> {
        self.services.get(key)
    }

    /// The Service with this cluster address.
    pub fn by_address(&self, cluster_ip: IpAddr) -> Option<&Arc<Service>> {
        self.addresses.get(&cluster_ip)
    }

    /// Whether a Service leads there.
    pub fn leads_to(&self, endpoint: SocketAddr) -> bool {
        self.services().any(|service| service.leads_to(endpoint))
    }

    /// The same of this port of any of them, by one look at who is led to, however many they are.
    pub fn leads_to_any(&self, addresses: &[IpAddr], port: u16) -> bool {
        let wanted: HashSet<&IpAddr> = addresses.iter().collect();
        let ports = self.services().flat_map(|service| &service.ports);
        let mut endpoints = ports.flat_map(|port| port.endpoints().iter());
        endpoints.any(|of| of.port == port && wanted.contains(&of.address))
    }

    /// All Services, in no order.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values()
    }

    /// What `host` means to a pod of `from_namespace`: `svc`, `svc.ns`, `svc.ns.svc`, `svc.ns.svc.cluster.local`, the
    /// same with the host name of an endpoint in front (`web-0.svc` within the namespace), or `10-244-0-7.ns.pod`. Names are the
    /// same in any case (RFC 4343).
    pub fn resolve(&self, host: &str, from_namespace: &str) -> Option<Resolved> {
        if host.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return self.resolve(&host.to_ascii_lowercase(), from_namespace);
        }
        let mut found = self.named(host, from_namespace)?;
        // What stands for a name of the cluster is what that name means, as a resolver follows a CNAME.
        for _ in 0..ALIASES_MAX {
            match &found {
                Resolved::External(name) if name::is_within(name) => {
                    found = self.named(&name.to_ascii_lowercase(), from_namespace)?;
                }
                _ => return Some(found),
            }
        }
        None
    }

    /// What a full name means (`svc.ns.svc.cluster.local`), for those who tell it to others: they follow it themselves where it stands for
    /// another.
    pub fn meaning(&self, name: &str) -> Option<Resolved> {
        // No namespace is nobody's: nothing is completed.
        let is_full = name::is_within(name);
        is_full.then(|| self.named(&name.to_ascii_lowercase(), "")).flatten()
    }

    fn named(&self, host: &str, from_namespace: &str) -> Option<Resolved> {
        match name::parse(host, from_namespace)? {
            name::Name::Pod(address) => Some(Resolved::Addresses(vec![address])),
            name::Name::Service { host: Some(host), service, namespace } => self.host(host, service, namespace),
            name::Name::Service { host: None, service, namespace } => self.of_service(service, namespace),
            name::Name::Either { first, second } => {
                self.host(first, second, from_namespace).or_else(|| self.of_service(first, second))
            }
        }
    }

    fn host(&self, host: &str, service: &str, namespace: &str) -> Option<Resolved> {
        self.service(namespace, service)?.hosts.get(host).cloned().map(Resolved::Addresses)
    }

    fn of_service(&self, service: &str, namespace: &str) -> Option<Resolved> {
        let service = self.service(namespace, service)?;
        Some(match (&service.external_name, service.cluster_ip) {
            (Some(name), _) => Resolved::External(name.clone()),
            (None, Some(_)) => Resolved::Service(service.clone()),
            (None, None) => Resolved::Addresses(service.ready.to_vec()),
        })
    }
}

impl Service {
    /// Whether one of its endpoints is there.
    pub fn leads_to(&self, endpoint: SocketAddr) -> bool {
        let mut endpoints = self.ports.iter().flat_map(|port| port.endpoints().iter());
        endpoints.any(|of| (of.address, of.port) == (endpoint.ip(), endpoint.port()))
    }

    /// How many addresses of a node are ready to answer for it, at any of its ports.
    pub fn ready_of(&self, node: &str) -> usize {
        let all = self.ports.iter().flat_map(|port| port.ready.iter());
        let here = all.filter(|endpoint| endpoint.node.as_deref() == Some(node)).map(|endpoint| endpoint.address);
        here.collect::<HashSet<IpAddr>>().len()
    }

    /// Whether somebody of a node answers at any of its ports.
    pub fn answers_at(&self, node: &str) -> bool {
        let mut all = self.ports.iter().flat_map(|port| port.ready.iter().chain(port.leaving.iter()));
        all.any(|endpoint| endpoint.node.as_deref() == Some(node))
    }

    /// The port of this number and protocol: one number may be served by several.
    pub fn port(&self, number: u16, protocol: Protocol) -> Option<&Port> {
        self.ports.get(self.position(number, protocol)?)
    }

    /// Which of [`Service::ports`] that is.
    pub fn position(&self, number: u16, protocol: Protocol) -> Option<usize> {
        self.ports.iter().position(|port| port.port == number && port.protocol == protocol)
    }
}
