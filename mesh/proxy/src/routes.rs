//! The balancers of all Services, in step with discovery.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use coracle_discovery::{Port, Service, Snapshot};

use crate::Error;
use crate::balance::Balancer;
use crate::demand::{Demand, Demands};

/// Balancers of one Service, in the order of its ports.
type Balancers = Arc<[Arc<Balancer>]>;

/// What is known of a Service.
struct Entry {
    service: Arc<Service>,
    balancers: Balancers,
    demand: Arc<Demand>,
}

/// A Service's port and its balancer.
#[derive(Clone)]
pub(crate) struct Route {
    pub service: Arc<Service>,
    /// Which of its ports.
    pub at: usize,
    pub balancer: Arc<Balancer>,
    /// What is asked of the Service.
    pub demand: Arc<Demand>,
}

impl Route {
    pub fn no_endpoints(&self) -> Error {
        Error::NoEndpoints { namespace: self.service.namespace.clone(), name: self.service.name.clone() }
    }

    /// Whether nobody is there, and somebody comes when it is asked for.
    pub fn is_asleep(&self) -> bool {
        self.service.activates && self.service.ports[self.at].endpoints.is_empty()
    }
}

/// What is known of all Services.
#[derive(Default)]
struct Table {
    /// By the identity of the Service value that it was made for: a look-up hashes one word, no names.
    entries: HashMap<usize, Entry>,
    /// That identity, by namespace and name.
    by_name: HashMap<(Arc<str>, Arc<str>), usize>,
}

/// The balancers of all Services.
#[derive(Default)]
pub(crate) struct Routes {
    current: ArcSwap<Table>,
    pub demands: Arc<Demands>,
}

impl Routes {
    /// Makes balancers for Services that are new or changed; what is known of endpoints that stay is kept.
    pub fn update(&self, snapshot: &Snapshot) {
        let before = self.current.load();
        let mut next = Table::default();
        for service in snapshot.services() {
            let kept =
                before.entries.get(&identity(service)).map(|entry| (entry.balancers.clone(), entry.demand.clone()));
            let (balancers, demand) = kept.unwrap_or_else(|| {
                let balancer = |port: &Port| Arc::new(before.balancer(service, port));
                (service.ports.iter().map(balancer).collect(), self.demands.of(service))
            });
            next.by_name.insert((service.namespace.clone(), service.name.clone()), identity(service));
            next.entries.insert(identity(service), Entry { service: service.clone(), balancers, demand });
        }
        self.demands.follow(snapshot);
        self.current.store(Arc::new(next));
    }

    /// The route to a Service's port by its position. A Service newer than the last update gets a balancer of its own, with what is
    /// known of the older one's endpoints and clients.
    pub fn find(&self, service: &Arc<Service>, at: usize) -> Option<Route> {
        let current = self.current.load();
        let (balancer, demand) = match current.entries.get(&identity(service)) {
            Some(entry) => (entry.balancers.get(at)?.clone(), entry.demand.clone()),
            None => (Arc::new(current.balancer(service, service.ports.get(at)?)), self.demands.of(service)),
        };
        Some(Route { service: service.clone(), at, balancer, demand })
    }
}

impl Table {
    /// A balancer for a port of a Service that is new or changed.
    fn balancer(&self, service: &Service, port: &Port) -> Balancer {
        let old = self.by_name.get(&(service.namespace.clone(), service.name.clone()));
        let old = old.and_then(|identity| self.entries.get(identity));
        let before = old.and_then(|old| old.balancers.get(old.service.position(port.port, port.protocol)?));
        Balancer::new(&port.endpoints, service.affinity, before.map(|before| &**before))
    }
}

fn identity(service: &Arc<Service>) -> usize {
    Arc::as_ptr(service) as usize
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::time::Duration;

    use coracle_discovery::{Endpoint, Protocol, ServiceKind};

    use super::*;
    use crate::balance::Tried;

    fn service(endpoints: u8) -> Arc<Service> {
        let endpoint = |n| Endpoint { address: [10, 0, 0, n].into(), port: 80, node: None };
        let port = Port {
            name: String::new(),
            port: 80,
            node_port: None,
            protocol: Protocol::Tcp,
            endpoints: (0..endpoints).map(endpoint).collect(),
        };
        Arc::new(Service {
            namespace: "n".into(),
            name: "web".into(),
            kind: ServiceKind::ClusterIp,
            cluster_ip: None,
            external_name: None,
            ports: vec![port],
            activates: false,
            affinity: Some(Duration::from_secs(60)),
            ready: [].into(),
            hosts: HashMap::new(),
        })
    }

    #[test]
    fn who_asks_before_the_routes_follow_stays_with_its_endpoint() {
        let (routes, old) = (Routes::default(), service(8));
        let balancers: Balancers = [Arc::new(Balancer::new(&old.ports[0].endpoints, old.affinity, None))].into();
        let mut table = Table::default();
        table.by_name.insert((old.namespace.clone(), old.name.clone()), identity(&old));
        let demand = routes.demands.of(&old);
        table.entries.insert(identity(&old), Entry { service: old.clone(), balancers, demand });
        routes.current.store(Arc::new(table));
        let at = |service: &Arc<Service>, n: u8| {
            let route = routes.find(service, 0).unwrap();
            let client = IpAddr::from([192, 0, 2, n]);
            route.balancer.pick(&Tried::default(), Some(client)).unwrap().endpoint().clone()
        };
        let before: Vec<Endpoint> = (0..20).map(|n| at(&old, n)).collect();
        // A newer value of the Service, which no update has seen.
        let newer = service(9);
        assert_eq!((0..20).map(|n| at(&newer, n)).collect::<Vec<_>>(), before);
    }
}
