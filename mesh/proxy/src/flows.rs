//! Where one pod's datagrams to Services go. UDP knows no connections, so this remembers them: what a pod sends to a Service
//! goes to the same endpoint until it rests, and what that endpoint answers comes from the Service.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use coracle_discovery::Protocol;
use coracle_policy::Source;

use crate::{Error, Proxy};

/// Services that one pod speaks to at a time; beyond it the one that has rested longest is forgotten.
const FLOWS_MAX: usize = 1024;
/// A flow that has rested for so long is forgotten (the kernel's own time for a stream of datagrams).
const IDLE_MAX: Duration = Duration::from_secs(180);

/// The datagrams of one pod.
#[derive(Debug, Default)]
pub struct Flows(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    /// By the Service's address and port.
    to: HashMap<SocketAddr, Flow>,
    /// The Service that an endpoint answers for, by the endpoint's real address.
    from: HashMap<SocketAddr, SocketAddr>,
}

#[derive(Debug)]
struct Flow {
    endpoint: SocketAddr,
    used: Instant,
}

impl Table {
    fn endpoint(&mut self, service: SocketAddr, now: Instant) -> Option<SocketAddr> {
        let flow = self.to.get_mut(&service).filter(|flow| now.duration_since(flow.used) < IDLE_MAX)?;
        flow.used = now;
        // Whom the pod asked last, it hears last: by another of the endpoint's addresses it may have asked meanwhile.
        let endpoint = flow.endpoint;
        self.from.insert(endpoint, service);
        Some(endpoint)
    }

    fn insert(&mut self, service: SocketAddr, endpoint: SocketAddr, now: Instant) {
        self.remove(service);
        if self.to.len() >= FLOWS_MAX
            && let Some(oldest) = self.to.iter().min_by_key(|(_, flow)| flow.used).map(|(service, _)| *service)
        {
            self.remove(oldest);
        }
        self.to.insert(service, Flow { endpoint, used: now });
        self.from.insert(endpoint, service);
    }

    fn remove(&mut self, service: SocketAddr) {
        if let Some(flow) = self.to.remove(&service)
            && self.from.get(&flow.endpoint) == Some(&service)
        {
            self.from.remove(&flow.endpoint);
        }
    }

    /// A pod that speaks to the endpoint by its own address hears it under that.
    fn direct(&mut self, endpoint: SocketAddr) {
        self.from.remove(&endpoint);
    }
}

impl Flows {
    /// The real address for a datagram of the pod, which is `source`, to a Service or pod; `None` when the address is not the cluster's.
    pub fn send(&self, proxy: &Proxy, source: &Source, to: SocketAddr) -> Option<Result<SocketAddr, Error>> {
        if !proxy.is_service(to.ip()) {
            let real = proxy.connect_address(source, to, Protocol::Udp);
            if let Some(Ok(real)) = real {
                self.table(|table| table.direct(real));
            }
            return real;
        }
        let known = self.table(|table| table.endpoint(to, Instant::now()));
        if let Some(endpoint) = known
            && proxy.is_endpoint(source, to, endpoint)
        {
            return Some(Ok(endpoint));
        }
        let found = proxy.connect_address(source, to, Protocol::Udp)?;
        if let Ok(endpoint) = found {
            self.table(|table| table.insert(to, endpoint, Instant::now()));
        }
        Some(found)
    }

    /// The Service that a datagram from this real address is the answer of.
    pub fn shown(&self, from: SocketAddr) -> Option<SocketAddr> {
        self.table(|table| table.from.get(&from).copied())
    }

    fn table<T>(&self, with: impl FnOnce(&mut Table) -> T) -> T {
        with(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(n: usize) -> SocketAddr {
        SocketAddr::from(([10, 96, (n >> 8) as u8, n as u8], 53))
    }

    fn endpoint(n: usize) -> SocketAddr {
        SocketAddr::from(([127, 9, (n >> 8) as u8, n as u8], 53))
    }

    #[test]
    fn a_flow_keeps_its_endpoint_until_it_rests() {
        let (mut table, begun) = (Table::default(), Instant::now());
        table.insert(service(1), endpoint(1), begun);
        assert_eq!(table.endpoint(service(1), begun + IDLE_MAX / 2), Some(endpoint(1)));
        assert_eq!(table.endpoint(service(1), begun + IDLE_MAX), Some(endpoint(1)), "it has been used");
        assert_eq!(table.endpoint(service(1), begun + IDLE_MAX * 2), None);
        table.insert(service(1), endpoint(2), begun);
        assert_eq!(table.from.get(&endpoint(1)), None);
        assert_eq!(table.from.get(&endpoint(2)), Some(&service(1)));
        table.direct(endpoint(2));
        assert_eq!(table.from.get(&endpoint(2)), None);
        table.endpoint(service(1), begun);
        assert_eq!(table.from.get(&endpoint(2)), Some(&service(1)), "it is asked by the Service again");
        table.insert(service(2), endpoint(2), begun);
        table.endpoint(service(1), begun);
        assert_eq!(table.from.get(&endpoint(2)), Some(&service(1)), "of two Services it is the one asked last");
    }

    #[test]
    fn the_longest_rested_makes_room() {
        let (mut table, begun) = (Table::default(), Instant::now());
        for n in 0..=FLOWS_MAX {
            table.insert(service(n), endpoint(n), begun + Duration::from_millis(n as u64));
        }
        assert_eq!((table.to.len(), table.from.len()), (FLOWS_MAX, FLOWS_MAX));
        assert!(!table.to.contains_key(&service(0)) && table.to.contains_key(&service(FLOWS_MAX)));
    }
}
