//! The state at one moment.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use coracle_policy::Protocol;

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
    /// How it is reached.
    pub kind: ServiceKind,
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
    /// Addresses of endpoints with a host name of their own (`web-0.web.default`).
    pub hosts: HashMap<Arc<str>, IpAddr>,
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
    /// Who is to be asked, sorted, each once: ready endpoints, or, when there is none, those that still serve while they end
    /// (`ProxyTerminatingEndpoints`).
    pub endpoints: Arc<[Endpoint]>,
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
        self.service(namespace, service)?.hosts.get(host).map(|address| Resolved::Addresses(vec![*address]))
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
    /// The port of this number and protocol: one number may be served by several.
    pub fn port(&self, number: u16, protocol: Protocol) -> Option<&Port> {
        self.ports.get(self.position(number, protocol)?)
    }

    /// Which of [`Service::ports`] that is.
    pub fn position(&self, number: u16, protocol: Protocol) -> Option<usize> {
        self.ports.iter().position(|port| port.port == number && port.protocol == protocol)
    }
}
