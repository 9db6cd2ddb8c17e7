//! Who may connect to whom: the one place where the proxy asks what network policies say, for every way in and out.
//!
//! Both ends decide. A pod's own node knows what may leave it, the other node what may come to its pods; of a pod of another node this
//! one knows what its node says ([`Elsewhere::called`]) when it has connected, and judges then. A connection to a component is
//! judged request by request, so that a change is felt at once; bytes that pass are judged when they begin, and datagrams each.

use std::collections::HashMap;
use std::hash::Hash;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use coracle_discovery::Policies;
use coracle_policy::{Destination, Direction, Port, Protocol, Source, Workload};
use futures::future::BoxFuture;
use http::uri::Authority;
use http::{Request, Response};
use tokio::sync::watch;

use crate::endpoint::CONNECT_MAX;
use crate::{Body, BoxError, Elsewhere, HttpService, LocalEndpoints, NotAllowed, Proxy, Purpose};

/// Addresses that one pod has asked by datagrams; beyond it those that have rested are forgotten, and then the one that has rested longest.
const ASKED_PER_POD_MAX: usize = 1024;
/// Who was asked may answer for so long (the kernel's own time for a stream of datagrams).
const ANSWER_MAX: Duration = Duration::from_secs(180);

/// For so long no flow to another node is begun that has just failed: another endpoint is found, if there is one, and what is sent to that
/// pod is lost.
const LATELY: Duration = Duration::from_secs(1);
/// So many are remembered of either kind; more are tried with each datagram.
const LATELY_MAX: usize = 4096;

/// Ports that the kernel gives to those who ask, as a rule: only there an answer is taken. Where it does not say, Linux' own.
static ASKERS_PORTS: LazyLock<RangeInclusive<u16>> = LazyLock::new(|| {
    let said = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut ends = said.split_whitespace().map(str::parse);
    match (ends.next(), ends.next()) {
        (Some(Ok(first)), Some(Ok(last))) => first..=last,
        _ => 32_768..=60_999,
    }
});

/// Whom a pod has asked by datagrams, and when it did so last.
#[derive(Default)]
struct Asked(HashMap<IpAddr, Instant>);

impl Asked {
    fn is_fresh(at: Instant, now: Instant) -> bool {
        now.duration_since(at) < ANSWER_MAX
    }

    fn add(&mut self, to: IpAddr, now: Instant) {
        let Asked(all) = self;
        if all.len() >= ASKED_PER_POD_MAX && !all.contains_key(&to) {
            all.retain(|_, at| Asked::is_fresh(*at, now));
            if all.len() >= ASKED_PER_POD_MAX
                && let Some(oldest) = all.iter().min_by_key(|(_, at)| **at).map(|(to, _)| *to)
            {
                all.remove(&oldest);
            }
        }
        all.insert(to, now);
    }

    fn has(&self, to: IpAddr, now: Instant) -> bool {
        self.0.get(&to).is_some_and(|at| Asked::is_fresh(*at, now))
    }
}

/// Asks the policies. Clones share everything.
#[derive(Clone)]
pub(crate) struct Guard {
    pub policies: Policies,
    pub local: Arc<dyn LocalEndpoints>,
    /// By the pods that have asked.
    asked: Arc<Mutex<HashMap<IpAddr, Asked>>>,
    lately: Arc<Mutex<Lately>>,
}

/// What has become of flows of datagrams to pods of other nodes, of which nobody else hears: who sends is not told.
#[derive(Default)]
struct Lately {
    /// Who was refused, and where: by its node or by ours.
    refused: HashMap<(Option<IpAddr>, SocketAddr), Instant>,
    /// Pods that were not reached.
    failed: HashMap<SocketAddr, Instant>,
}

impl Lately {
    fn add<K: Eq + Hash>(to: &mut HashMap<K, Instant>, key: K, now: Instant) {
        if to.len() >= LATELY_MAX {
            to.retain(|_, at| Lately::holds(Some(at), now));
        }
        if to.len() < LATELY_MAX {
            to.insert(key, now);
        }
    }

    fn holds(at: Option<&Instant>, now: Instant) -> bool {
        at.is_some_and(|at| now.duration_since(*at) < LATELY)
    }
}

impl Guard {
    pub fn new(policies: Policies, local: Arc<dyn LocalEndpoints>) -> Guard {
        Guard { policies, local, asked: Arc::default(), lately: Arc::default() }
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

    /// The same of a datagram: who was asked may answer where the kernel has those listen who ask ([`ASKERS_PORTS`]), whatever else it
    /// may do.
    pub fn permits_datagram(&self, source: &Source, to: SocketAddr) -> bool {
        if self.was_refused(source, to) {
            return false;
        }
        if self.policies.table().is_empty() {
            return true;
        }
        let Source::Pod(from) = source else { return self.permits(source, to, Protocol::Udp) };
        let now = Instant::now();
        if self.permits(source, to, Protocol::Udp) {
            let mut asked = locked(&self.asked);
            if !asked.contains_key(&from.address) {
                // Those of pods that have gone.
                asked.retain(|pod, _| self.local.workload(*pod).is_some());
            }
            asked.entry(from.address).or_default().add(to.ip(), now);
            return true;
        }
        ASKERS_PORTS.contains(&to.port()) && self.has_asked(to.ip(), from.address, now)
    }

    /// Who that is now: a pod of this node may have other labels than when it connected.
    pub fn now(&self, source: &Source) -> Source {
        let now = match source {
            Source::Pod(pod) => self.local.workload(pod.address).filter(|now| now.is(pod)),
            Source::Outside(_) | Source::Node | Source::Unknown => None,
        };
        now.map_or_else(|| source.clone(), Source::Pod)
    }

    /// Whether a pod takes a datagram of somebody outside of the cluster: where a policy is about what comes to it, only an answer, since
    /// at which of its ports it comes in is not told.
    pub fn takes_datagram(&self, pod: &Source, from: IpAddr) -> bool {
        let Source::Pod(pod) = pod else { return self.policies.table().is_empty() };
        !self.policies.table().isolates(pod, Direction::Ingress) || self.has_asked(pod.address, from, Instant::now())
    }

    fn has_asked(&self, pod: IpAddr, to: IpAddr, now: Instant) -> bool {
        locked(&self.asked).get(&pod).is_some_and(|asked| asked.has(to, now))
    }

    /// A stream to a pod of another node, where both nodes allow it.
    pub async fn connect(&self, to: SocketAddr, purpose: Purpose, source: Source) -> io::Result<Elsewhere> {
        let connecting = self.local.connect_elsewhere(to, purpose, source.clone());
        let there = tokio::time::timeout(CONNECT_MAX, connecting).await??;
        let protocol = match purpose {
            Purpose::Requests | Purpose::Bytes => Protocol::Tcp,
            Purpose::Datagrams => Protocol::Udp,
        };
        match self.lets_out(&source, there.called.as_ref(), to, protocol) {
            true => Ok(there),
            false => Err(io::Error::new(io::ErrorKind::PermissionDenied, NotAllowed)),
        }
    }

    /// Whether `source` may connect to the pod of another node, of which that says that it is the one that was `called`.
    pub fn lets_out(
        &self,
        source: &Source,
        called: Option<&Arc<Workload>>,
        to: SocketAddr,
        protocol: Protocol,
    ) -> bool {
        let table = self.policies.table();
        let Source::Pod(from) = source else { return true };
        if table.is_empty() {
            return true;
        }
        // Its node may not say who it is.
        let called = called.cloned().map_or(Destination::Unknown, Destination::Pod);
        table.lets_out(from, &called, Port { protocol, number: to.port() })
    }

    /// Whether that is a pod of this node still, and the same to policies; of others nobody says that they have gone.
    pub fn is_same(&self, source: &Source) -> bool {
        match source {
            Source::Pod(pod) => self.local.workload(pod.address).is_some_and(|now| now == *pod),
            Source::Outside(_) | Source::Node | Source::Unknown => true,
        }
    }

    /// A flow of datagrams to another node could not begin.
    pub fn note_failure(&self, source: &Source, to: SocketAddr, error: &io::Error) {
        if NotAllowed::is_cause(error) {
            return self.note_refusal(source, to);
        }
        // That is our own, and may be over at any moment.
        if error.kind() != io::ErrorKind::QuotaExceeded {
            Lately::add(&mut locked(&self.lately).failed, to, Instant::now());
        }
    }

    /// Policies do not allow it, or do not any more.
    pub fn note_refusal(&self, source: &Source, to: SocketAddr) {
        Lately::add(&mut locked(&self.lately).refused, (source.address(), to), Instant::now());
    }

    fn was_refused(&self, source: &Source, to: SocketAddr) -> bool {
        let lately = locked(&self.lately);
        !lately.refused.is_empty() && Lately::holds(lately.refused.get(&(source.address(), to)), Instant::now())
    }

    /// Whether flows of datagrams from there to this pod have just failed.
    pub fn has_failed(&self, source: &Source, to: SocketAddr) -> bool {
        self.was_refused(source, to) || self.is_not_reached(to)
    }

    /// Whether this pod of another node was just not reached.
    pub fn is_not_reached(&self, to: SocketAddr) -> bool {
        let lately = locked(&self.lately);
        !lately.failed.is_empty() && Lately::holds(lately.failed.get(&to), Instant::now())
    }

    /// For whom a connection that is kept may be used again: for the same source, while it has the same labels and policies are the same.
    /// So who takes one from a pool has been judged with it. `None` where there are no policies, and a connection is anybody's; and
    /// where each request says who asks (`is_called`), and nothing is to be judged but what its node does with each.
    ///
    /// Before the endpoint of another node it stands behind a letter that says whether a component is called there.
    pub fn pool_key(&self, source: &Source, to: SocketAddr, is_called: bool) -> String {
        let (kind, key) = (if is_called { CALLED } else { LISTENS }, self.key(source, is_called).unwrap_or_default());
        format!("{kind}{key}@{to}")
    }

    fn key(&self, source: &Source, is_called: bool) -> Option<String> {
        let table = self.policies.table();
        let name = match source {
            _ if table.is_empty() => return None,
            Source::Pod(pod) if is_called && !table.isolates(pod, Direction::Egress) => return None,
            Source::Outside(_) | Source::Node | Source::Unknown if is_called => return None,
            Source::Pod(pod) => of_pod(pod),
            Source::Outside(address) => format!("o{}", hex(*address)),
            Source::Node => "n".to_owned(),
            Source::Unknown => "u".to_owned(),
        };
        Some(format!("{name}-{}", table.generation()))
    }

    /// The same for connections that leave the cluster: they are one pod's, also where it may connect to whatever it was granted. `None`
    /// for who is no pod.
    fn outside_key(&self, source: &Source) -> Option<String> {
        let Source::Pod(pod) = source else { return None };
        let is_isolated = self.policies.table().isolates(pod, Direction::Egress);
        Some(is_isolated.then(|| self.key(source, false)).flatten().unwrap_or_else(|| of_pod(pod)))
    }

    /// Who that was.
    fn of_key(&self, key: &str) -> Source {
        let (name, _) = key.split_once('-').unwrap_or((key, ""));
        let (name, _) = name.split_once('.').unwrap_or((name, ""));
        match (name.get(..1), name.get(1..).and_then(unhex)) {
            // One that has gone meanwhile is nobody.
            (Some("p"), Some(address)) => self.local.workload(address).map_or(Source::Unknown, Source::Pod),
            (Some("o"), Some(address)) => Source::Outside(address),
            (Some("n"), None) => Source::Node,
            _ => Source::Unknown,
        }
    }

    /// Who that was, and where the connection goes.
    pub fn of_pool(&self, authority: &Authority) -> Option<Pooled> {
        let (key, to) = authority.as_str().rsplit_once('@').unwrap_or(("", authority.as_str()));
        let source = self.of_key(key.trim_start_matches([CALLED, LISTENS]));
        Some(Pooled { source, to: to.parse().ok()?, is_called: key.starts_with(CALLED) })
    }
}

/// A pod as it is labelled, in a key.
fn of_pod(pod: &Workload) -> String {
    format!("p{}.{:x}", hex(pod.address), pod.number())
}

/// Before what connections to other nodes are kept under: a component is called there,
const CALLED: char = 'c';
/// or a pod listens itself.
const LISTENS: char = 'l';

/// What a kept connection is.
pub(crate) struct Pooled {
    pub source: Source,
    pub to: SocketAddr,
    /// Whether it is made for requests to a component.
    pub is_called: bool,
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

pub(crate) fn locked<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
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
        let source = self.guard.now(&self.source);
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

    /// The same of a datagram: who was asked may answer at a port of those who ask, whatever else it may do.
    pub fn permits_datagram(&self, source: &Source, to: SocketAddr) -> bool {
        self.guard.permits_datagram(source, to)
    }

    /// Whether the `pod` takes a datagram of somebody outside of the cluster.
    pub fn takes_datagram(&self, pod: &Source, from: IpAddr) -> bool {
        self.guard.takes_datagram(pod, from)
    }

    /// What connections of `source` that leave the cluster are kept under, as its own: a word that is good in a URI's authority before an
    /// `@`. `None` for who is no pod.
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

    /// Waits until there are policies and `source`, a pod of this node, has gone or is another to them; `relabelled` changes when some pod is.
    pub async fn until_other(&self, source: &Source, mut relabelled: watch::Receiver<()>) {
        let Source::Pod(pod) = source else { return std::future::pending().await };
        let mut policies = self.guard.policies.subscribe();
        while self.guard.policies.table().is_empty()
            || self.guard.local.workload(pod.address).is_some_and(|now| now == *pod)
        {
            let changed = tokio::select! {
                changed = policies.changed() => changed,
                changed = relabelled.changed() => changed,
            };
            if changed.is_err() {
                return std::future::pending().await;
            }
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
    fn a_pod_forgets_whom_it_asked_first_and_nobody_forgets_for_it() {
        let (mut asked, begun) = (Asked::default(), Instant::now());
        let peer = |n: usize| IpAddr::from((n as u32).to_be_bytes());
        for n in 0..=ASKED_PER_POD_MAX {
            asked.add(peer(n), begun + Duration::from_millis(n as u64));
        }
        let now = begun + Duration::from_secs(2);
        assert!(asked.0.len() == ASKED_PER_POD_MAX && !asked.has(peer(0), now));
        assert!(asked.has(peer(1), now) && !asked.has(peer(1), now + ANSWER_MAX));
        asked.add(peer(0), now + ANSWER_MAX);
        assert_eq!(asked.0.len(), 1, "those that have rested make room");
    }

    #[test]
    fn an_address_is_one_word() {
        for address in ["10.1.2.3", "2001:db8::1", "::1"] {
            let address: IpAddr = address.parse().unwrap();
            assert_eq!(unhex(&hex(address)), Some(address));
        }
        assert_eq!(unhex(""), None);
    }
}
