//! From a request, a connection or a name to the endpoint that answers.
//!
//! A request goes down these steps; each is a function, and only [`Proxy::ask`] knows about trying again:
//!
//! ```text
//! destination ─► route (a Service's port) ─► deadline ─► ask ⟲ pick ─► reach ─► Endpoint::call
//! ```

use std::cell::{Cell, OnceCell};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use coracle_discovery::{Protocol, Resolved, Service};
use coracle_policy::Source;
use http::uri::{Authority, Scheme};
use http::{Request, Response, StatusCode};
use http_body::Body as _;
use http_body_util::BodyExt;
use rand::seq::SliceRandom;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::balance::{Picked, Tried};
use crate::demand::{self, Guard, HOLD_MAX};
use crate::endpoint::{Endpoint, Failure};
use crate::held::{Answering, Held};
use crate::node_ports::tcp;
use crate::observe::{Observed, Stats};
use crate::retry::{self, ATTEMPTS_MAX, REFUSALS_MAX, Replay};
use crate::routes::{Route, Side};
use crate::{Asker, Body, BoxError, Deadline, Error, Kept, Proxy, ServiceFailure};

/// How long a request waits for discovery to say who answers, when all that it named have just gone.
const RENEWAL_MAX: Duration = Duration::from_millis(500);

/// Endpoints that are found to be gone, for one request.
const GONE_MAX: usize = 16;

/// Endpoints of a Service that are looked at to see how it is reached; they are alike as a rule.
const LOOKED_AT_MAX: usize = 8;
/// How long a request decides at once to which other endpoints it may not go: a thread of others' requests waits meanwhile.
const JUDGED_MAX: Duration = Duration::from_millis(10);
/// So many it looks at whatever the clock says: on a busy machine the time may be over before the first.
const JUDGED_MIN: usize = 256;
/// To how many endpoints it finds that it may not go, one after the other: those that were not looked at in that time.
const NOT_ALLOWED_MAX: usize = 16;

impl Proxy {
    /// An HTTP request of `source` to a Service or pod of the cluster, whose names are those of a pod of `from_namespace`.
    /// [`Error::NotInCluster`] when the authority names neither. A [`Deadline`] in its extensions is kept.
    pub async fn call(
        &self,
        source: &Source,
        from_namespace: &str,
        mut request: Request<Body>,
    ) -> Result<Response<Body>, Error> {
        // What is meant to be secret must not go out in the open.
        if let Some(scheme) = request.uri().scheme().filter(|scheme| **scheme != Scheme::HTTP) {
            return Err(Error::Scheme(scheme.to_string()));
        }
        let authority = authority(&request)?;
        let port = authority.port_u16().unwrap_or(80);
        match self.destination(authority.host(), from_namespace)? {
            Destination::Service(service) => {
                self.call_route(source, self.route(&service, port, Protocol::Tcp)?, request).await
            }
            Destination::Pod(address) => {
                let to = SocketAddr::new(address, port);
                let endpoint = Endpoint::find(&*self.local, to).filter(|_| self.is_clusters(to));
                let endpoint = endpoint.ok_or(Error::NoPod(to))?;
                if !self.permits(source, to, Protocol::Tcp) {
                    return Err(Error::NotAllowed(to.to_string()));
                }
                request.extensions_mut().insert(source.clone());
                in_time(deadline(&request), endpoint.call(&self.dialer, request))
                    .await?
                    .map_err(|failure| failure.error)
            }
        }
    }

    /// The real address for a connection of `source` to a Service or pod; `None` when the address is not the cluster's.
    pub fn connect_address(
        &self,
        source: &Source,
        to: SocketAddr,
        protocol: Protocol,
    ) -> Option<Result<SocketAddr, Error>> {
        if let Some(service) = self.discovery.snapshot().by_address(to.ip()) {
            return Some(self.connect_service(source, service, to.port(), protocol));
        }
        self.is_pod(to.ip()).then(|| {
            let endpoint = Endpoint::find(&*self.local, to).ok_or(Error::NoPod(to))?;
            if !self.permits_by(source, to, protocol) {
                return Err(Error::NotAllowed(to.to_string()));
            }
            self.socket(&endpoint, protocol).ok_or(Error::NoPod(to))
        })
    }

    /// Where connections or datagrams to this endpoint really go; `None` when it has no socket on this machine.
    fn socket(&self, endpoint: &Endpoint, protocol: Protocol) -> Option<SocketAddr> {
        match protocol {
            Protocol::Udp if endpoint.is_elsewhere() => self.datagrams.open(self, endpoint.address),
            Protocol::Udp | Protocol::Tcp | Protocol::Sctp => endpoint.socket(),
        }
    }

    fn permits_by(&self, source: &Source, to: SocketAddr, protocol: Protocol) -> bool {
        match protocol {
            Protocol::Udp => self.guard.permits_datagram(source, to),
            Protocol::Tcp | Protocol::Sctp => self.permits(source, to, protocol),
        }
    }

    /// Whether connections to this address and port of a Service are to go through [`Proxy::pass_on`]: its pods are scaled by them.
    pub fn activates(&self, to: SocketAddr) -> bool {
        let snapshot = self.discovery.snapshot();
        let service = snapshot.by_address(to.ip()).filter(|service| service.activates);
        service.is_some_and(|service| service.port(to.port(), Protocol::Tcp).is_some())
    }

    /// Serves a guest's connection to a Service as one that comes in at a port of the node is served: an endpoint that listens gets
    /// its bytes, a component its requests.
    pub async fn pass_on(&self, source: Source, to: SocketAddr, by: Asker, stream: TcpStream) -> Result<(), BoxError> {
        let proxy = self.clone();
        let route = move || {
            let snapshot = proxy.discovery.snapshot();
            let service = snapshot.by_address(to.ip()).ok_or_else(|| Error::NotInCluster(to.to_string()))?;
            proxy.route(service, to.port(), Protocol::Tcp)
        };
        let way = tcp::Way { proxy: self.clone(), route: Arc::new(route), asker: by, drain: CancellationToken::new() };
        tcp::connection(way, source, stream, Arc::default()).await
    }

    /// Whether a guest's request to this host takes a connection of this process, or may take one: a component is called.
    pub fn is_dialled(&self, host: &str, port: u16, from_namespace: &str) -> bool {
        let is_dialled = |endpoint: Endpoint| endpoint.socket().is_some() || endpoint.is_elsewhere();
        let is_dialled = |at| Endpoint::find(&*self.local, at).is_some_and(is_dialled);
        match self.destination(host, from_namespace) {
            Ok(Destination::Service(service)) => service.port(port, Protocol::Tcp).is_some_and(|port| {
                let mut endpoints = port.endpoints().iter().take(LOOKED_AT_MAX);
                endpoints.any(|endpoint| is_dialled(SocketAddr::new(endpoint.address, endpoint.port)))
            }),
            Ok(Destination::Pod(address)) => is_dialled(SocketAddr::new(address, port)),
            Err(_) => false,
        }
    }

    /// Whether pods have addresses like this one, here or on another node.
    fn is_pod(&self, address: IpAddr) -> bool {
        self.local.is_pod_address(address) || self.local.is_elsewhere(address)
    }

    /// Whether a pod is there, or who a Service leads to. A name of the cluster may stand for anybody: one for a pod for whatever address is
    /// written in it, that of a headless Service for its endpoints, at whatever port.
    pub fn is_clusters(&self, endpoint: SocketAddr) -> bool {
        self.is_pod(endpoint.ip()) || self.discovery.snapshot().leads_to(endpoint)
    }

    /// The same of this port of any of these addresses.
    pub fn has_clusters(&self, addresses: &[IpAddr], port: u16) -> bool {
        addresses.iter().any(|address| self.is_pod(*address)) || self.discovery.snapshot().leads_to_any(addresses, port)
    }

    /// Whether this is the address of a Service.
    pub(crate) fn is_service(&self, address: IpAddr) -> bool {
        self.discovery.snapshot().by_address(address).is_some()
    }

    /// Whether the Service at `to` still leads to this real address, for datagrams of `source`.
    pub(crate) fn is_endpoint(&self, source: &Source, to: SocketAddr, real: SocketAddr) -> bool {
        let snapshot = self.discovery.snapshot();
        let route = snapshot.by_address(to.ip()).and_then(|service| self.route(service, to.port(), Protocol::Udp).ok());
        let elsewhere = self.datagrams_lead(real);
        // It is open: somebody may have used it last long ago.
        if let Some(to) = elsewhere
            && (self.guard.is_not_reached(to) || self.datagrams.open(self, to) != Some(real))
        {
            return false;
        }
        route.is_some_and(|route| {
            route.balancer.addresses().any(|address| {
                let is_it = match elsewhere {
                    Some(to) => to == address,
                    None => Endpoint::find(&*self.local, address).and_then(|endpoint| endpoint.socket()) == Some(real),
                };
                is_it && self.guard.permits_datagram(source, address)
            })
        })
    }

    fn connect_service(
        &self,
        source: &Source,
        service: &Arc<Service>,
        port: u16,
        protocol: Protocol,
    ) -> Result<SocketAddr, Error> {
        let (route, mut tried) = (self.route(service, port, protocol)?, Tried::default());
        let (picked, endpoint) = self.pick(source, &route, &mut tried).ok_or_else(|| self.nobody(&route, &tried))?;
        drop(picked);
        // A component that is called has no socket of its own.
        self.socket(&endpoint, protocol).ok_or(Error::NoPod(endpoint.address))
    }

    /// Addresses behind a name of the cluster, for a guest's resolver; `None` when it is not the cluster's. Several come in a
    /// new order each time, since most clients take the first.
    pub fn resolve(&self, host: &str, from_namespace: &str) -> Option<Vec<IpAddr>> {
        match self.discovery.snapshot().resolve(host, from_namespace)? {
            Resolved::Service(service) => service.cluster_ip.map(|address| vec![address]),
            Resolved::Addresses(mut addresses) => {
                addresses.shuffle(&mut rand::rng());
                Some(addresses)
            }
            Resolved::External(_) => None,
        }
    }

    fn destination(&self, host: &str, from_namespace: &str) -> Result<Destination, Error> {
        let not_ours = || Error::NotInCluster(host.to_owned());
        let snapshot = self.discovery.snapshot();
        let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        if let Ok(address) = address {
            return match snapshot.by_address(address) {
                Some(service) => Ok(Destination::Service(service.clone())),
                None if self.is_pod(address) => Ok(Destination::Pod(address)),
                None => Err(not_ours()),
            };
        }
        match snapshot.resolve(host, from_namespace).ok_or_else(not_ours)? {
            Resolved::Service(service) => Ok(Destination::Service(service)),
            Resolved::Addresses(addresses) => {
                // Any will do: a headless Service leaves the choice to its client.
                let at = rand::random_range(0..addresses.len().max(1));
                addresses.get(at).map(|address| Destination::Pod(*address)).ok_or_else(not_ours)
            }
            Resolved::External(_) => Err(not_ours()),
        }
    }

    /// For a guest.
    pub(crate) fn route(&self, service: &Arc<Service>, port: u16, protocol: Protocol) -> Result<Route, Error> {
        let no_port = || Error::NoPort { namespace: service.namespace.clone(), name: service.name.clone(), port };
        let at = service.position(port, protocol).ok_or_else(no_port)?;
        self.routes.find(service, at, Side::Inside).ok_or_else(no_port)
    }

    /// Answers from one of the endpoints of a Service's port, within the request's deadline.
    pub(crate) async fn call_route(
        &self,
        source: &Source,
        route: Route,
        mut request: Request<Body>,
    ) -> Result<Response<Body>, Error> {
        request.extensions_mut().insert(source.clone());
        let mut observed = Observed::begin(self, &route, &mut request);
        let answered = match deadline(&request) {
            None => self.ask(source, route, request, &mut observed).await,
            deadline => in_time(deadline, self.ask(source, route, request, &mut observed)).await.unwrap_or_else(Err),
        };
        observed.end(&answered);
        answered
    }

    /// Asks endpoints in turn until one has answered. A request is repeated when nobody has seen it, or when it may be seen
    /// twice; its body must have come back whole; and there is a budget for it.
    async fn ask(
        &self,
        source: &Source,
        mut route: Route,
        request: Request<Body>,
        observed: &mut Observed,
    ) -> Result<Response<Body>, Error> {
        route.balancer.budget.earn();
        let mut asked = Some(route.demand.begin());
        let ahead = if request.body().is_end_stream() { 0 } else { retry::AHEAD_BYTES_MAX };
        let bytes = if route.service.activates { demand::head_bytes(&request) + ahead } else { 0 };
        let (mut head, body) = request.into_parts();
        let (mut body, replay) = Replay::of(body, &route.balancer.stats);
        let mut tried = Tried::default();
        let mut refused = None;
        let (mut attempts, mut refusals) = (0, 0);
        // Discovery has named somebody who is gone, as when one pod has just taken another's place.
        let (mut is_behind, mut is_renewed) = (false, false);
        loop {
            let known = tried.count();
            let Some((mut picked, endpoint)) = self.pick(source, &route, &mut tried) else {
                is_behind |= tried.count() > known && tried.not_allowed().is_none();
                if is_behind
                    && !std::mem::replace(&mut is_renewed, true)
                    && let Some(renewed) = Box::pin(self.renew(&route)).await
                {
                    route = renewed;
                    continue;
                }
                // Who may not connect does not wake it.
                let asleep = route.is_asleep() && tried.not_allowed().is_none();
                if let Some(asked) = asked.as_ref().filter(|_| asleep) {
                    let awake = replay.during(body, self.awake(&route, asked, bytes));
                    let (awake, whole) = Box::pin(awake).await.ok_or(Error::Malformed("its body broke off"))?;
                    (route, body) = (awake?, whole);
                    (tried, is_behind, is_renewed) = (Tried::default(), false, false);
                    continue;
                }
                return Err(refused.unwrap_or_else(|| self.nobody(&route, &tried)));
            };
            let kept = head.clone();
            (observed.attempts, observed.endpoint) = (observed.attempts + 1, Some(endpoint.address));
            match endpoint.call(&self.dialer, Request::from_parts(head, body)).await {
                Ok(mut response) => {
                    picked.answered_with(response.status());
                    picked.asked = asked.take();
                    let by = Answering::new(picked, &route.balancer.stats);
                    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                        // It has no body, and begins with its answer.
                        Kept::add(&mut response, by);
                        return Ok(response);
                    }
                    return Ok(response.map(|body| Held { body, by }.boxed_unsync()));
                }
                Err(failure) => {
                    // Where it may not go nobody was asked: that is no attempt.
                    match failure.is_not_allowed() {
                        true => refusals += 1,
                        false => attempts += 1,
                    }
                    is_behind |= failure.is_gone() && endpoint.socket().is_none();
                    match failure.is_not_allowed() {
                        true => tried.add_not_allowed(&picked),
                        false => tried.add(&picked),
                    }
                    failure.tell(&route.balancer, picked);
                    let Failure { error, is_unseen, is_askers, .. } = failure;
                    // What was refused here has reached nobody: it costs no budget, which others need.
                    let may_repeat = (is_unseen || retry::is_idempotent(&kept.method))
                        && attempts < ATTEMPTS_MAX
                        && refusals < REFUSALS_MAX
                        && (is_askers || route.balancer.budget.spend());
                    let again = match may_repeat {
                        true => replay.again().await,
                        false => None,
                    };
                    match again {
                        Some(again) => {
                            Stats::one(&route.balancer.stats.retries);
                            (head, body) = (kept, again);
                        }
                        None => return Err(error),
                    }
                    refused = Some(error);
                }
            }
        }
    }

    /// An endpoint that is there and to which `source` may connect, and none that was tried.
    pub(crate) fn pick(&self, source: &Source, route: &Route, tried: &mut Tried) -> Option<(Picked, Endpoint)> {
        // Hardly anybody judges many: nobody else looks at a clock.
        let (judged, begun) = (Cell::new(0), OnceCell::new());
        let is_time = || {
            let is_early = judged.replace(judged.get() + 1) < JUDGED_MIN;
            is_early || begun.get_or_init(Instant::now).elapsed() < JUDGED_MAX
        };
        self.pick_while(source, route, tried, is_time)
    }

    /// The same; many endpoints are judged only while there is time.
    pub(crate) fn pick_while(
        &self,
        source: &Source,
        route: &Route,
        tried: &mut Tried,
        is_time: impl Fn() -> bool,
    ) -> Option<(Picked, Endpoint)> {
        let protocol = route.service.ports[route.at].protocol;
        // Of a pod that was just not reached another may be found; where there is none, what is sent is lost.
        let is_passed_over = |endpoint: &Endpoint| {
            protocol == Protocol::Udp
                && (!endpoint.takes_datagrams()
                    || endpoint.is_elsewhere() && self.guard.is_not_reached(endpoint.address))
        };
        // Each may have gone since discovery spoke.
        let (mut gone, mut refused, mut allowed) = (0, 0, None);
        while gone < GONE_MAX && refused < NOT_ALLOWED_MAX {
            let picked = match allowed.take() {
                Some(picked) => picked,
                None => route.balancer.pick(tried, source.address())?,
            };
            let address = SocketAddr::new(picked.endpoint().address, picked.endpoint().port);
            match Endpoint::find(&*self.local, address) {
                Some(endpoint) if is_passed_over(&endpoint) => {
                    tried.add(&picked);
                    drop(picked);
                    let find = |address| Endpoint::find(&*self.local, address);
                    route.balancer.pass_over(tried, |at| find(at).as_ref().is_some_and(is_passed_over));
                }
                Some(endpoint) if self.permits_by(source, address, protocol) => return Some((picked, endpoint)),
                Some(_) => {
                    refused += 1;
                    tried.add_not_allowed(&picked);
                    drop(picked);
                    match tried.is_judged() {
                        // Once for a request: of what is left each is allowed, where all were looked at in time.
                        false => {
                            let may = |address| is_time().then(|| self.permits_by(source, address, protocol));
                            route.balancer.leave_out(tried, may);
                        }
                        // This one was not. One that was goes.
                        true => allowed = route.balancer.pick_allowed(tried, source.address()),
                    }
                }
                None => {
                    if Endpoint::is_forbidden(&*self.local, address) {
                        self.local.service_failed(&route.service, ServiceFailure::Endpoint(address));
                    }
                    gone += 1;
                    tried.add(&picked);
                    route.balancer.failed(picked);
                }
            }
        }
        None
    }

    /// Why nobody was picked.
    fn nobody(&self, route: &Route, tried: &Tried) -> Error {
        if let Some(endpoint) = tried.not_allowed() {
            return Error::NotAllowed(endpoint.to_string());
        }
        let mut addresses = route.balancer.addresses().take(LOOKED_AT_MAX);
        let Some(endpoint) = addresses.find(|address| Endpoint::is_forbidden(&*self.local, *address)) else {
            return route.no_endpoints();
        };
        let Service { namespace, name, .. } = &*route.service;
        Error::Forbidden { namespace: namespace.clone(), name: name.clone(), endpoint }
    }

    /// The same route as discovery knows it a moment later, if it has changed by then.
    pub(crate) async fn renew(&self, route: &Route) -> Option<Route> {
        let is_other = |renewed: &Route| !Arc::ptr_eq(&renewed.service, &route.service);
        tokio::time::timeout(RENEWAL_MAX, self.until(route, is_other)).await.ok().flatten()
    }

    /// The same route when somebody is there. Who waits is counted, so that whoever scales hears of it.
    pub(crate) async fn awake(&self, route: &Route, asked: &Guard, bytes: usize) -> Result<Route, Error> {
        let Service { namespace, name, .. } = &*route.service;
        let (namespace, name) = (|| namespace.clone(), || name.clone());
        let Some(_held) = asked.hold(bytes) else {
            return Err(Error::Crowded { namespace: namespace(), name: name() });
        };
        // Whoever has lost its annotation meanwhile is not waited for.
        let is_there = |route: &Route| !route.is_asleep();
        Stats::one(&route.balancer.stats.held);
        match tokio::time::timeout(HOLD_MAX, self.until(route, is_there)).await {
            Ok(Some(route)) => Ok(route),
            Ok(None) => Err(route.no_endpoints()),
            Err(_) => Err(Error::Asleep { namespace: namespace(), name: name(), within_seconds: HOLD_MAX.as_secs() }),
        }
    }

    /// The same route as soon as it is so; `None` when it is gone.
    async fn until(&self, route: &Route, is_so: impl Fn(&Route) -> bool) -> Option<Route> {
        let mut generations = self.discovery.subscribe();
        let port = &route.service.ports[route.at];
        loop {
            generations.borrow_and_update();
            let snapshot = self.discovery.snapshot();
            let service = snapshot.service(&route.service.namespace, &route.service.name)?;
            let found = self.routes.find(service, service.position(port.port, port.protocol)?, route.side)?;
            if is_so(&found) {
                return Some(found);
            }
            generations.changed().await.ok()?;
        }
    }
}

enum Destination {
    Service(Arc<Service>),
    Pod(IpAddr),
}

fn deadline(request: &Request<Body>) -> Option<Deadline> {
    request.extensions().get::<Deadline>().copied()
}

async fn in_time<T>(deadline: Option<Deadline>, answer: impl Future<Output = T>) -> Result<T, Error> {
    match deadline {
        None => Ok(answer.await),
        Some(Deadline(at)) => tokio::time::timeout_at(at, answer).await.map_err(|_| Error::Late),
    }
}

/// Whom a request is for: its URI says, else its Host.
pub(crate) fn authority(request: &Request<Body>) -> Result<Authority, Error> {
    if let Some(authority) = request.uri().authority() {
        return Ok(authority.clone());
    }
    let host = request.headers().get(http::header::HOST).ok_or(Error::NoAuthority)?;
    Authority::try_from(host.as_bytes()).map_err(|_| Error::NoAuthority)
}
