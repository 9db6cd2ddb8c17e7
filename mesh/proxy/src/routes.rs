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

/// Balancers by the identity of the Service value they were made for: a look-up hashes one word, no names.
#[derive(Default)]
pub(crate) struct Routes {
    current: ArcSwap<HashMap<usize, Entry>>,
    pub demands: Arc<Demands>,
}

impl Routes {
    /// Makes balancers for Services that are new or changed; what is known of endpoints that stay is kept.
    pub fn update(&self, snapshot: &Snapshot) {
        let before = self.current.load();
        let by_name: HashMap<(&str, &str), &Entry> =
            before.values().map(|entry| ((&*entry.service.namespace, &*entry.service.name), entry)).collect();
        let mut next = HashMap::with_capacity(before.len());
        for service in snapshot.services() {
            let kept = before.get(&identity(service)).map(|entry| (entry.balancers.clone(), entry.demand.clone()));
            let (balancers, demand) = kept.unwrap_or_else(|| {
                let old = by_name.get(&(&*service.namespace, &*service.name));
                let balancer = |port: &Port| {
                    let before = old
                        .and_then(|old| old.balancers.get(old.service.position(port.port, port.protocol)?))
                        .map(|before| &**before);
                    Arc::new(Balancer::new(&port.endpoints, service.affinity, before))
                };
                (service.ports.iter().map(balancer).collect(), self.demands.of(service))
            });
            next.insert(identity(service), Entry { service: service.clone(), balancers, demand });
        }
        self.demands.follow(snapshot);
        self.current.store(Arc::new(next));
    }

    /// The route to a Service's port by its position. A Service newer than the last update gets a balancer of its own.
    pub fn find(&self, service: &Arc<Service>, at: usize) -> Option<Route> {
        let current = self.current.load();
        let (balancer, demand) = match current.get(&identity(service)) {
            Some(entry) => (entry.balancers.get(at)?.clone(), entry.demand.clone()),
            None => {
                let port = service.ports.get(at)?;
                // What is known of its endpoints and clients is the older one's.
                let of =
                    |old: &&Entry| (&old.service.namespace, &old.service.name) == (&service.namespace, &service.name);
                let old = current.values().find(of);
                let before = old.and_then(|old| old.balancers.get(old.service.position(port.port, port.protocol)?));
                let balancer = Balancer::new(&port.endpoints, service.affinity, before.map(|before| &**before));
                (Arc::new(balancer), self.demands.of(service))
            }
        };
        Some(Route { service: service.clone(), at, balancer, demand })
    }
}

fn identity(service: &Arc<Service>) -> usize {
    Arc::as_ptr(service) as usize
}
