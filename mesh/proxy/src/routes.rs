//! The balancers of all Services, in step with discovery.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use coracle_discovery::{Service, Snapshot};

use crate::balance::Balancer;

/// Balancers of one Service, in the order of its ports.
type Balancers = Arc<[Arc<Balancer>]>;

/// Balancers by the identity of the Service value they were made for: a look-up hashes one word, no names.
#[derive(Default)]
pub(crate) struct Routes {
    current: ArcSwap<HashMap<usize, (Arc<Service>, Balancers)>>,
}

impl Routes {
    /// Makes balancers for Services that are new or changed; what is known of endpoints that stay is kept.
    pub fn update(&self, snapshot: &Snapshot) {
        let before = self.current.load();
        let by_name: HashMap<(&str, &str), &Balancers> =
            before.values().map(|(service, balancers)| ((&*service.namespace, &*service.name), balancers)).collect();
        let mut next = HashMap::with_capacity(before.len());
        for service in snapshot.services() {
            let kept = before.get(&identity(service)).map(|(_, balancers)| balancers.clone());
            let balancers = kept.unwrap_or_else(|| {
                let old = by_name.get(&(&*service.namespace, &*service.name));
                make(service, |at| old.and_then(|old| old.get(at)).map(|old| &**old))
            });
            next.insert(identity(service), (service.clone(), balancers));
        }
        self.current.store(Arc::new(next));
    }

    /// The balancer of a Service's port by its position. A Service newer than the last update gets one of its own.
    pub fn balancer(&self, service: &Arc<Service>, at: usize) -> Option<Arc<Balancer>> {
        let current = self.current.load();
        match current.get(&identity(service)) {
            Some((_, balancers)) => balancers.get(at).cloned(),
            None => service.ports.get(at).map(|port| Arc::new(Balancer::new(&port.endpoints, None))),
        }
    }
}

fn identity(service: &Arc<Service>) -> usize {
    Arc::as_ptr(service) as usize
}

fn make<'a>(service: &Service, before: impl Fn(usize) -> Option<&'a Balancer>) -> Balancers {
    let ports = service.ports.iter().enumerate();
    ports.map(|(at, port)| Arc::new(Balancer::new(&port.endpoints, before(at)))).collect()
}
