//! The balancers of all Services, in step with discovery.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use coracle_discovery::{Service, Snapshot};

use crate::Error;
use crate::balance::Balancer;

/// Balancers of one Service, in the order of its ports.
type Balancers = Arc<[Arc<Balancer>]>;

/// A Service's port and its balancer.
#[derive(Clone)]
pub(crate) struct Route {
    pub service: Arc<Service>,
    /// Which of its ports.
    pub at: usize,
    pub balancer: Arc<Balancer>,
}

impl Route {
    pub fn no_endpoints(&self) -> Error {
        Error::NoEndpoints { namespace: self.service.namespace.clone(), name: self.service.name.clone() }
    }
}

/// Balancers by the identity of the Service value they were made for: a look-up hashes one word, no names.
#[derive(Default)]
pub(crate) struct Routes {
    current: ArcSwap<HashMap<usize, (Arc<Service>, Balancers)>>,
}

impl Routes {
    /// Makes balancers for Services that are new or changed; what is known of endpoints that stay is kept.
    pub fn update(&self, snapshot: &Snapshot) {
        let before = self.current.load();
        let by_name: HashMap<(&str, &str), &(Arc<Service>, Balancers)> =
            before.values().map(|entry| ((&*entry.0.namespace, &*entry.0.name), entry)).collect();
        let mut next = HashMap::with_capacity(before.len());
        for service in snapshot.services() {
            let kept = before.get(&identity(service)).map(|(_, balancers)| balancers.clone());
            let balancers = kept.unwrap_or_else(|| {
                let old = by_name.get(&(&*service.namespace, &*service.name));
                service
                    .ports
                    .iter()
                    .map(|port| {
                        let before =
                            old.and_then(|(old, balancers)| balancers.get(old.position(port.port, port.protocol)?));
                        Arc::new(Balancer::new(&port.endpoints, before.map(|before| &**before)))
                    })
                    .collect()
            });
            next.insert(identity(service), (service.clone(), balancers));
        }
        self.current.store(Arc::new(next));
    }

    /// The route to a Service's port by its position. A Service newer than the last update gets a balancer of its own.
    pub fn find(&self, service: &Arc<Service>, at: usize) -> Option<Route> {
        let current = self.current.load();
        let balancer = match current.get(&identity(service)) {
            Some((_, balancers)) => balancers.get(at)?.clone(),
            None => Arc::new(Balancer::new(&service.ports.get(at)?.endpoints, None)),
        };
        Some(Route { service: service.clone(), at, balancer })
    }
}

fn identity(service: &Arc<Service>) -> usize {
    Arc::as_ptr(service) as usize
}
