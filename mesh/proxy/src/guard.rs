//! Who may connect to whom: the one place where the proxy asks what network policies say, for every way in and out.
//!
//! Both ends decide. A pod's own node knows what may leave it, the other node what may come to its pods; of a pod of another node this
//! one knows what its node says ([`Elsewhere::called`]) when it has connected, and judges then. A connection to a component is
//! judged request by request, so that a change is felt at once; bytes that pass are judged when they begin, and datagrams each.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use coracle_discovery::Policies;
use coracle_policy::{Destination, Direction, Port, Protocol, Source};
use futures::future::BoxFuture;
use http::uri::Authority;
use http::{Request, Response};

use crate::endpoint::CONNECT_MAX;
use crate::{Body, BoxError, Elsewhere, HttpService, LocalEndpoints, NotAllowed, Proxy, Purpose};

/// Pairs of pods of which one has asked the other by datagrams; beyond it those that have rested are forgotten, and then all.
const ASKED_MAX: usize = 16_384;
/// Who was asked may answer for so long (the kernel's own time for a stream of datagrams).
const ANSWER_MAX: Duration = Duration::from_secs(180);

/// Asks the policies. Clones share everything.
#[derive(Clone)]
pub(crate) struct Guard {
    pub policies: Policies,
    pub local: Arc<dyn LocalEndpoints>,
    asked: Arc<Mutex<HashMap<[IpAddr; 2], Instant>>>,
}

impl Guard {
    pub fn new(policies: Policies, local: Arc<dyn LocalEndpoints>) -> Guard {
        Guard { policies, local, asked: Arc::default() }
    }

    /// Whether `source` may connect to this address, as far as this node can tell: whom a pod of another node lets in its own says.
    pub fn permits(&self, source: &Source, to: SocketAddr, protocol: Protocol) -> bool {
        let table = self.policies.table();
        if table.is_empty() {
            return true;
        }
        let port = Port { protocol, number: to.port() };
        if let Some(pod) = self.local.workload(to.ip()) {
            return table.allows(source, &Destination::Pod(pod), port);
        }
        if self.local.is_elsewhere(to.ip()) {
            // Who it is shows when it is connected to, and what was heard before may be true no more.
            return true;
        }
        // Nobody is there, and that is what is to be said.
        self.local.is_pod_address(to.ip()) || table.allows(source, &Destination::Outside(to.ip()), port)
    }

    /// The same of a datagram: who was asked may answer, whatever else it may do.
    pub fn permits_datagram(&self, source: &Source, to: SocketAddr) -> bool {
        if self.policies.table().is_empty() {
            return true;
        }
        let Source::Pod(from) = source else { return self.permits(source, to, Protocol::Udp) };
        let now = Instant::now();
        if self.permits(source, to, Protocol::Udp) {
            let mut asked = locked(&self.asked);
            if asked.len() >= ASKED_MAX {
                asked.retain(|_, at| now.duration_since(*at) < ANSWER_MAX);
            }
            if asked.len() >= ASKED_MAX {
                asked.clear();
            }
            asked.insert([from.address, to.ip()], now);
            return true;
        }
        locked(&self.asked).get(&[to.ip(), from.address]).is_some_and(|at| now.duration_since(*at) < ANSWER_MAX)
    }

    /// A stream to a pod of another node, where both nodes allow it.
    pub async fn connect(&self, to: SocketAddr, purpose: Purpose, source: Source) -> io::Result<Elsewhere> {
        let connecting = self.local.connect_elsewhere(to, purpose, source.clone());
        let there = tokio::time::timeout(CONNECT_MAX, connecting).await??;
        let table = self.policies.table();
        if table.is_empty() {
            return Ok(there);
        }
        let lets_out = match (&source, &there.called) {
            (Source::Pod(from), Some(called)) => {
                let port = Port { protocol: Protocol::Tcp, number: to.port() };
                table.lets_out(from, &Destination::Pod(called.clone()), port)
            }
            // Its node does not say who it is.
            (Source::Pod(from), None) => !table.isolates(from, Direction::Egress),
            _ => true,
        };
        if lets_out { Ok(there) } else { Err(io::Error::new(io::ErrorKind::PermissionDenied, NotAllowed)) }
    }

    /// For whom a connection that is kept may be used again: for the same source, while policies are the same. So who takes one from a
    /// pool has been judged with it. `None` where there are no policies, and a connection is anybody's.
    pub fn pool_key(&self, source: &Source) -> Option<String> {
        let table = self.policies.table();
        let name = match source {
            _ if table.is_empty() => return None,
            Source::Pod(pod) => format!("p{}", hex(pod.address)),
            Source::Outside(address) => format!("o{}", hex(*address)),
            Source::Node => "n".to_owned(),
            Source::Unknown => "u".to_owned(),
        };
        Some(format!("{name}-{}", table.generation()))
    }

    /// The same for connections that leave the cluster; `None` where the pod may connect to whatever it was granted.
    fn outside_key(&self, source: &Source) -> Option<String> {
        let Source::Pod(pod) = source else { return None };
        let is_isolated = self.policies.table().isolates(pod, Direction::Egress);
        is_isolated.then(|| self.pool_key(source)).flatten()
    }

    /// Who that was.
    fn of_key(&self, key: &str) -> Source {
        let (name, _) = key.split_once('-').unwrap_or((key, ""));
        match (name.get(..1), name.get(1..).and_then(unhex)) {
            // One that has gone meanwhile is nobody.
            (Some("p"), Some(address)) => self.local.workload(address).map_or(Source::Unknown, Source::Pod),
            (Some("o"), Some(address)) => Source::Outside(address),
            (Some("n"), None) => Source::Node,
            _ => Source::Unknown,
        }
    }

    /// Who that was, and where the connection goes.
    pub fn of_pool(&self, authority: &Authority) -> Option<(Source, SocketAddr)> {
        let (key, to) = authority.as_str().rsplit_once('@').unwrap_or(("", authority.as_str()));
        Some((self.of_key(key), to.parse().ok()?))
    }
}

/// As one number: what an address of IPv6 is written with has another meaning before an `@`.
fn hex(address: IpAddr) -> String {
    let address = match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    };
    format!("{:032x}", u128::from(address))
}

fn unhex(text: &str) -> Option<IpAddr> {
    let number = u128::from_str_radix(text, 16).ok()?;
    Some(IpAddr::from(std::net::Ipv6Addr::from(number)).to_canonical())
}

fn locked<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A component, for one who calls it by a connection: each request is judged.
struct Guarded {
    guard: Guard,
    source: Source,
    to: SocketAddr,
    service: Arc<dyn HttpService>,
}

impl HttpService for Guarded {
    fn call(&self, mut request: Request<Body>) -> BoxFuture<'static, Result<Response<Body>, BoxError>> {
        // A pod of this node may have other labels by now.
        let now = match &self.source {
            Source::Pod(pod) => self.guard.local.workload(pod.address).filter(|now| now.is(pod)),
            Source::Outside(_) | Source::Node | Source::Unknown => None,
        };
        let source = now.map_or_else(|| self.source.clone(), Source::Pod);
        if !self.guard.permits(&source, self.to, Protocol::Tcp) {
            return Box::pin(async { Err(NotAllowed.into()) });
        }
        request.extensions_mut().insert(source);
        self.service.call(request)
    }
}

impl Proxy {
    /// Whether `source` may connect to this address, as far as this node can tell: whom a pod of another node lets in its own says.
    pub fn permits(&self, source: &Source, to: SocketAddr, protocol: Protocol) -> bool {
        self.guard.permits(source, to, protocol)
    }

    /// The same of a datagram: who was asked may answer, whatever else it may do.
    pub fn permits_datagram(&self, source: &Source, to: SocketAddr) -> bool {
        self.guard.permits_datagram(source, to)
    }

    /// What connections of `source` that leave the cluster are kept under, where policies are about them: a word that is good in a URI's
    /// authority before an `@`. `None` where it may connect to whatever it was granted.
    pub fn outside_key(&self, source: &Source) -> Option<String> {
        self.guard.outside_key(source)
    }

    /// Whether who has that key may connect to this address outside of the cluster.
    pub fn permits_outside(&self, key: &str, to: SocketAddr) -> bool {
        match self.guard.of_key(key) {
            source @ Source::Pod(_) => self.permits(&source, to, Protocol::Tcp),
            Source::Outside(_) | Source::Node | Source::Unknown => false,
        }
    }

    /// What answers at an address of this node, for `source`, of whom each request is judged.
    pub fn guarded(&self, source: Source, to: SocketAddr, service: Arc<dyn HttpService>) -> Arc<dyn HttpService> {
        Arc::new(Guarded { guard: self.guard.clone(), source, to, service })
    }

    /// A stream of bytes to a pod of another node, where both nodes allow it.
    pub async fn connect_elsewhere(&self, to: SocketAddr, source: Source) -> io::Result<Elsewhere> {
        self.guard.connect(to, Purpose::Bytes, source).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_one_word() {
        for address in ["10.1.2.3", "2001:db8::1", "::1"] {
            let address: IpAddr = address.parse().unwrap();
            assert_eq!(unhex(&hex(address)), Some(address));
        }
        assert_eq!(unhex(""), None);
    }
}
