//! The balancers of all Services, in step with discovery.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use coracle_discovery::{Port, Service, Snapshot, Traffic};

use crate::balance::Balancer;
use crate::demand::{Demand, Demands};
use crate::{Error, LocalEndpoints};

/// Balancers of one Service, in the order of its ports.
type Balancers = Arc<[Arc<Balancer>]>;

/// From where somebody comes to a Service, which has a policy for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// A guest: `internalTrafficPolicy` holds.
    Inside,
    /// A client of a port that nodes open for the Service: `externalTrafficPolicy` holds.
    Outside,
    /// A client of the gateway. That is a proxy with routes of its own, as an ingress controller, which looks for endpoints itself:
    /// neither holds.
    Gateway,
}

impl Side {
    fn traffic(self, service: &Service) -> Traffic {
        match self {
            Side::Inside => service.inside,
            Side::Outside => service.outside,
            Side::Gateway => Traffic::Cluster,
        }
    }
}

/// What is known of a Service.
struct Entry {
    service: Arc<Service>,
    balancers: Balancers,
    /// Those among this node's endpoints, where a policy wants them.
    local: Option<Balancers>,
    demand: Arc<Demand>,
}

/// A Service's port and its balancer.
#[derive(Clone)]
pub(crate) struct Route {
    pub service: Arc<Service>,
    /// Which of its ports.
    pub at: usize,
    pub side: Side,
    pub balancer: Arc<Balancer>,
    /// What is asked of the Service.
    pub demand: Arc<Demand>,
}

impl Route {
    pub fn no_endpoints(&self) -> Error {
        let (namespace, name) = (self.service.namespace.clone(), self.service.name.clone());
        let is_answered_elsewhere = !self.service.ports[self.at].endpoints().is_empty();
        match self.side.traffic(&self.service) {
            Traffic::Local if is_answered_elsewhere => Error::NoneHere { namespace, name },
            _ => Error::NoEndpoints { namespace, name },
        }
    }

    /// Whether nobody is there, and somebody comes when it is asked for.
    pub fn is_asleep(&self) -> bool {
        self.service.activates && self.service.ports[self.at].endpoints().is_empty()
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
pub(crate) struct Routes {
    current: ArcSwap<Table>,
    pub demands: Arc<Demands>,
    local: Arc<dyn LocalEndpoints>,
}

impl Routes {
    /// None yet.
    pub fn new(local: Arc<dyn LocalEndpoints>) -> Routes {
        Routes { current: ArcSwap::default(), demands: Arc::default(), local }
    }

    /// Makes balancers for Services that are new or changed; what is known of endpoints that stay is kept.
    pub fn update(&self, snapshot: &Snapshot) {
        let before = self.current.load();
        let node = self.local.node();
        let mut next = Table::default();
        for service in snapshot.services() {
            let kept = before
                .entries
                .get(&identity(service))
                .map(|entry| (entry.balancers.clone(), entry.local.clone(), entry.demand.clone()));
            let (balancers, local, demand) = kept.unwrap_or_else(|| {
                let balancer = |port: &Port| Arc::new(before.balancer(service, port));
                let balancers: Balancers = service.ports.iter().map(balancer).collect();
                let local = [service.inside, service.outside].contains(&Traffic::Local).then(|| {
                    let of = service.ports.iter().zip(balancers.iter());
                    of.map(|(port, all)| Arc::new(before.local(service, port, all, node))).collect()
                });
                (balancers, local, self.demands.of(service))
            });
            next.by_name.insert((service.namespace.clone(), service.name.clone()), identity(service));
            next.entries.insert(identity(service), Entry { service: service.clone(), balancers, local, demand });
        }
        self.demands.follow(snapshot);
        self.current.store(Arc::new(next));
    }

    /// The route to a Service's port by its position, for who comes from that side. A Service newer than the last update gets a balancer of
    /// its own, with what is known of the older one's endpoints and clients.
    pub fn find(&self, service: &Arc<Service>, at: usize, side: Side) -> Option<Route> {
        let current = self.current.load();
        let traffic = side.traffic(service);
        let (balancer, demand) = match current.entries.get(&identity(service)) {
            Some(entry) => {
                let local = entry.local.as_ref().filter(|_| traffic == Traffic::Local);
                (local.unwrap_or(&entry.balancers).get(at)?.clone(), entry.demand.clone())
            }
            None => {
                let port = service.ports.get(at)?;
                let all = current.balancer(service, port);
                let balancer = match traffic {
                    Traffic::Cluster => all,
                    Traffic::Local => current.local(service, port, &all, self.local.node()),
                };
                (Arc::new(balancer), self.demands.of(service))
            }
        };
        Some(Route { service: service.clone(), at, side, balancer, demand })
    }
}

impl Table {
    /// A balancer for a port of a Service that is new or changed.
    fn balancer(&self, service: &Service, port: &Port) -> Balancer {
        let before = self.before(service, port, |old| Some(&old.balancers));
        Balancer::new(port.endpoints(), service.affinity, before.map(|before| &**before))
    }

    /// The same among the endpoints of this node.
    fn local(&self, service: &Service, port: &Port, all: &Balancer, node: &str) -> Balancer {
        let before = self.before(service, port, |old| old.local.as_ref());
        all.among(&port.endpoints_of(node), before.map(|before| &**before))
    }

    /// What the port had before.
    fn before<'a>(
        &'a self,
        service: &Service,
        port: &Port,
        of: impl Fn(&'a Entry) -> Option<&'a Balancers>,
    ) -> Option<&'a Arc<Balancer>> {
        let old = self.by_name.get(&(service.namespace.clone(), service.name.clone()));
        let old = old.and_then(|identity| self.entries.get(identity))?;
        of(old)?.get(old.service.position(port.port, port.protocol)?)
    }
}

fn identity(service: &Arc<Service>) -> usize {
    Arc::as_ptr(service) as usize
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::time::Duration;

    use coracle_discovery::{Endpoint, Protocol, ServiceKind, Traffic};

    use super::*;
    use crate::balance::Tried;
    use crate::tests::world::{NODE, Pods};

    fn service(endpoints: u8) -> Arc<Service> {
        let endpoint = |n| Endpoint { address: [10, 0, 0, n].into(), port: 80, node: None };
        let port = Port {
            name: String::new(),
            port: 80,
            node_port: None,
            protocol: Protocol::Tcp,
            ready: (0..endpoints).map(endpoint).collect(),
            leaving: [].into(),
        };
        Arc::new(Service {
            namespace: "n".into(),
            name: "web".into(),
            uid: "".into(),
            created: 0,
            kind: ServiceKind::ClusterIp,
            inside: Traffic::Cluster,
            outside: Traffic::Cluster,
            balanced: None,
            health_port: None,
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
        let (routes, old) = (Routes::new(Arc::new(Pods::default())), service(8));
        let balancers: Balancers = [Arc::new(Balancer::new(old.ports[0].endpoints(), old.affinity, None))].into();
        let mut table = Table::default();
        table.by_name.insert((old.namespace.clone(), old.name.clone()), identity(&old));
        let demand = routes.demands.of(&old);
        table.entries.insert(identity(&old), Entry { service: old.clone(), balancers, local: None, demand });
        routes.current.store(Arc::new(table));
        let at = |service: &Arc<Service>, n: u8| {
            let route = routes.find(service, 0, Side::Inside).unwrap();
            let client = IpAddr::from([192, 0, 2, n]);
            route.balancer.pick(&Tried::default(), Some(client)).unwrap().endpoint().clone()
        };
        let before: Vec<Endpoint> = (0..20).map(|n| at(&old, n)).collect();
        // A newer value of the Service, which no update has seen.
        let newer = service(9);
        assert_eq!((0..20).map(|n| at(&newer, n)).collect::<Vec<_>>(), before);
    }

    /// A Service with these policies and endpoints: the node of each, and whether it is ready.
    fn with(inside: Traffic, outside: Traffic, endpoints: &[(&str, bool)]) -> Arc<Service> {
        let of = |is_ready: bool| {
            let of = endpoints.iter().enumerate().filter(|(_, (_, ready))| *ready == is_ready);
            let endpoint = |(n, (node, _)): (usize, &(&str, bool))| Endpoint {
                address: at(n),
                port: 80,
                node: Some((*node).into()),
            };
            of.map(endpoint).collect()
        };
        let mut service = Arc::into_inner(service(0)).unwrap();
        (service.inside, service.outside, service.affinity) = (inside, outside, None);
        (service.ports[0].ready, service.ports[0].leaving) = (of(true), of(false));
        Arc::new(service)
    }

    fn at(n: usize) -> IpAddr {
        [10, 0, 0, u8::try_from(n).unwrap()].into()
    }

    #[test]
    fn each_side_has_the_endpoints_that_its_policy_wants() {
        use Traffic::{Cluster, Local};
        let (here, there) = ((NODE, true), ("other", true));
        for (inside, outside, endpoints, expected) in [
            (Cluster, Cluster, vec![here, there], [vec![0, 1], vec![0, 1], vec![0, 1]]),
            (Local, Cluster, vec![here, there], [vec![0], vec![0, 1], vec![0, 1]]),
            (Cluster, Local, vec![here, there], [vec![0, 1], vec![0], vec![0, 1]]),
            (Local, Local, vec![there], [vec![], vec![], vec![0]]),
            // The node's last one ends.
            (Local, Cluster, vec![(NODE, false), there], [vec![0], vec![1], vec![1]]),
            (Cluster, Cluster, vec![(NODE, false)], [vec![0], vec![0], vec![0]]),
        ] {
            let routes = Routes::new(Arc::new(Pods::default()));
            let service = with(inside, outside, &endpoints);
            let found = || {
                [Side::Inside, Side::Outside, Side::Gateway].map(|side| {
                    let route = routes.find(&service, 0, side).unwrap();
                    route.balancer.addresses().map(|address| address.ip()).collect::<Vec<_>>()
                })
            };
            let expected = expected.map(|all: Vec<usize>| all.into_iter().map(at).collect::<Vec<_>>());
            assert_eq!(found(), expected, "before an update: {inside:?} {outside:?} {endpoints:?}");
            let balancers: Balancers =
                service.ports.iter().map(|port| Arc::new(Table::default().balancer(&service, port))).collect();
            let local = Table::default().local(&service, &service.ports[0], &balancers[0], NODE);
            let local: Option<Balancers> = Some([Arc::new(local)].into());
            let mut table = Table::default();
            let demand = routes.demands.of(&service);
            table.entries.insert(identity(&service), Entry { service: service.clone(), balancers, local, demand });
            routes.current.store(Arc::new(table));
            assert_eq!(found(), expected, "{inside:?} {outside:?} {endpoints:?}");
        }
    }

    #[test]
    fn nobody_here_is_told_from_nobody_at_all() {
        let routes = Routes::new(Arc::new(Pods::default()));
        for (endpoints, is_here) in [(vec![("other", true)], true), (vec![], false)] {
            let service = with(Traffic::Local, Traffic::Cluster, &endpoints);
            let error = routes.find(&service, 0, Side::Inside).unwrap().no_endpoints();
            assert_eq!(matches!(error, Error::NoneHere { .. }), is_here, "{error}");
        }
    }
}
