//! The data plane within a node: from a request or a connection to the endpoint that answers it.
//!
//! Requests come in at NodePort listeners ([`Proxy::run`]), at those for Ingresses ([`Proxy::serve`]) and from guests
//! ([`Proxy::call`]); a route is a Service's port, its balancer picks an endpoint, and the node says how that is reached within
//! the process ([`Local`]): a component's HTTP handler is called directly, without a socket; a guest that listens itself is reached
//! at its loopback twin.
//! A pod of another node is reached through a byte stream that leads there ([`LocalEndpoints::connect_elsewhere`]), and endpoints
//! outside of all nodes' pods (a Service without selector) over TCP.
//!
//! The node's table of pods and the engine stay behind [`LocalEndpoints`] and [`HttpService`].

mod accept;
mod balance;
mod demand;
mod dial;
mod endpoint;
mod flows;
mod gateway;
mod gone;
mod guard;
mod headers;
mod held;
mod link;
mod node_ports;
mod observe;
mod opening;
mod outbound;
mod places;
mod retry;
mod routes;
mod serve;
mod shares;
mod spare;
mod stream;
#[cfg(test)]
mod tests;
mod trace;
mod turns;
mod uncertain;
mod upgrade;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use coracle_discovery::gateway_api::PortStates;
use coracle_discovery::{Discovery, Policies, Protocol, Service};
use coracle_policy::{Source, Workload};
use futures::future::BoxFuture;
use http::{HeaderValue, Request, Response};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::opening::{GATEWAYS_WITHIN, HAD_WITHIN, Turn};
pub use demand::{Asked, Demands, Reader};
pub use dial::KEPT_ELSEWHERE_MAX;
pub use flows::Flows;
pub use gateway::{Certificate, CertificateError, Certificates, Failed, GatewayRoutes, Listener, Listening, OwnPort};
pub use gone::ended;
pub use headers::{strip as strip_connection_headers, upgrade as wanted_upgrade};
pub use link::{SOURCE, said as source_header};
pub use node_ports::Opened;
pub use observe::{Endpoint, Filter, Port, Rule, Sight, Tapped, Tapping, View};
pub use serve::{Admit, serve_link, serve_stream};
pub use shares::{Share, Shares};
pub use spare::{is_spare, keep_alive};
pub use trace::{Context, Span, Spans, Tracer, Waiting};
pub use uncertain::Uncertain;
pub use upgrade::tunnel;

/// Any error.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The body of every request and response in the mesh.
pub type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, BoxError>;

/// Something on this node that answers HTTP without a socket: a wasi:http pod.
pub trait HttpService: Send + Sync {
    /// Answers a request. An error means that it was not taken, and nobody has seen it: it may be asked of another endpoint.
    /// Not so [`Seen`]: it was taken. [`Busy`] says that there is too much to do; after any other error the endpoint is left
    /// out for a while.
    fn call(&self, request: Request<Body>) -> BoxFuture<'static, Result<Response<Body>, BoxError>>;
}

/// Too many requests are waiting: the error of a service that takes no more now, but will.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("too many requests are waiting")]
pub struct Busy;

/// The service took a request and was ended before it had answered: only what may be done twice is asked of another.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct Seen(pub BoxError);

/// Network policies do not allow it: the error of a service that is not called for who asks.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("network policies do not allow it")]
pub struct NotAllowed;

impl NotAllowed {
    /// Whether that is why something failed.
    pub fn is_cause(error: &(dyn std::error::Error + 'static)) -> bool {
        let mut cause = Some(error);
        while let Some(error) = cause {
            // What an I/O error holds is none of its causes.
            let held = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
            if error.is::<NotAllowed>() || held.is_some_and(|held| held.is::<NotAllowed>()) {
                return true;
            }
            cause = error.source();
        }
        false
    }
}

/// When a request's answer is of no use any more. It travels in the request's extensions, to whoever it is passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(pub tokio::time::Instant);

/// What a request carries with it from node to node, for those who call and are called. The mesh does not read it. It travels in
/// the request's extensions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Carried(pub HeaderValue);

/// For whom the way to another node is used. It travels in the request's extensions; a request that says nothing is the node's.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Asker {
    /// A pod of this node, by its address.
    Pod(IpAddr),
    /// Clients of a port of this node.
    NodePort(u16),
    /// Clients of the Ingresses of a namespace.
    Ingresses(Arc<str>),
    /// The node itself, for the API server.
    Node,
}

/// A place on the way to another node, until it is dropped.
pub type Place = Box<dyn std::any::Any + Send + Sync>;

/// What is held as long as a connection that has changed its protocol lasts, as its place on the way and that it is under way: in the
/// extensions of the answer that agrees.
#[derive(Clone, Default)]
pub struct Kept(Vec<Arc<dyn std::any::Any + Send + Sync>>);

impl Kept {
    /// Holds this, too.
    pub(crate) fn add(response: &mut Response<Body>, what: impl std::any::Any + Send + Sync) {
        response.extensions_mut().get_or_insert_default::<Kept>().0.push(Arc::new(what));
    }
}

/// What a stream to a pod of another node is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Requests of this proxy: a component's node tells with [`serve_link`] how they ended.
    Requests,
    /// Whatever somebody says and hears.
    Bytes,
}

/// A stream to a pod of another node.
pub struct Elsewhere {
    /// The bytes.
    pub stream: Box<dyn Stream>,
    /// Whether a component is called at its end, which answers each request for itself; else the pod listens itself.
    pub is_called: bool,
    /// What its node says of the pod.
    pub called: Option<Arc<Workload>>,
}

/// How a pod's port is reached within this process.
#[derive(Clone)]
pub enum Local {
    /// By a call.
    Http(Arc<dyn HttpService>),
    /// At a socket that the guest listens on.
    Tcp(SocketAddr),
}

/// A byte stream, whatever it goes through.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// The node's own table of pods, and the way to those of other nodes. Its methods are called per request and must not block.
pub trait LocalEndpoints: Send + Sync {
    /// The name of the node; empty while it has none.
    fn node(&self) -> &str;
    /// How the port of a pod of this node is reached; `None` when no such pod runs.
    fn lookup(&self, address: IpAddr, port: u16) -> Option<Local>;
    /// What is known of the pod of this node that has the address.
    fn workload(&self, address: IpAddr) -> Option<Arc<Workload>>;
    /// Whether pods have addresses of this kind, so that nothing is dialled in vain.
    fn is_pod_address(&self, address: IpAddr) -> bool;
    /// Whether this is the address of a pod of another node, to which [`LocalEndpoints::connect_elsewhere`] leads.
    fn is_elsewhere(&self, address: IpAddr) -> bool {
        let _ = address;
        false
    }
    /// A stream of bytes to a pod of another node, for `source`. Once it is there, somebody listens at its end, and its node lets
    /// that source in; [`NotAllowed`] is the error where it does not.
    fn connect_elsewhere(
        &self,
        to: SocketAddr,
        purpose: Purpose,
        source: Source,
    ) -> BoxFuture<'static, io::Result<Elsewhere>> {
        let _ = (to, purpose, source);
        Box::pin(async { Err(io::ErrorKind::HostUnreachable.into()) })
    }
    /// A place on the way to the node of this pod: whoever uses it, for a connection or a request, holds one. `None` when `by` has
    /// its share.
    fn enter_elsewhere(&self, to: SocketAddr, by: Asker) -> Option<Place> {
        let _ = (to, by);
        Some(Box::new(()))
    }
    /// Whether an endpoint that is no pod may be dialled: what somebody writes as a Service's endpoint must not lead to
    /// the machine itself.
    fn may_dial(&self, endpoint: SocketAddr) -> bool {
        let _ = endpoint;
        true
    }
    /// Whether a connection or datagram to this real address reaches the pod whose twin it is. Where the pod does not listen,
    /// the kernel would give it to whatever listens at every address of the machine.
    fn is_reached(&self, actual: SocketAddr, protocol: Protocol) -> bool {
        let _ = (actual, protocol);
        true
    }
    /// The address from which the mesh sends datagrams to this real address.
    fn source(&self, to: IpAddr) -> IpAddr {
        match to {
            IpAddr::V4(to) if to.is_loopback() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        }
    }
    /// What is wrong with a Service, to be shown where its owner looks. It may be said again and again.
    fn service_failed(&self, service: &Service, failure: ServiceFailure<'_>);
}

/// What can be wrong with a Service.
#[derive(Debug, Clone, Copy)]
pub enum ServiceFailure<'a> {
    /// A port of the node cannot be listened at.
    Port(u16, Protocol, &'a io::Error),
    /// A port that the node is to be a balancer at is another Service's: its own, or a port of all nodes.
    Taken(u16, Protocol, &'a Service),
    /// All Services together want more ports of balancers than a node opens.
    TooMany(u16, Protocol),
    /// An endpoint leads to where nothing of the cluster goes ([`LocalEndpoints::may_dial`]).
    Endpoint(SocketAddr),
}

/// Why a request was not answered.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The authority names nothing of the cluster.
    #[error("{0} is no Service or pod of this cluster")]
    NotInCluster(String),
    /// The Service has no such port.
    #[error("service {namespace}/{name} has no port {port}")]
    NoPort {
        /// Namespace of the Service.
        namespace: Arc<str>,
        /// Its name.
        name: Arc<str>,
        /// The port that was asked for.
        port: u16,
    },
    /// Nothing is ready to answer.
    #[error("no endpoints available for service {namespace}/{name}")]
    NoEndpoints {
        /// Namespace of the Service.
        namespace: Arc<str>,
        /// Its name.
        name: Arc<str>,
    },
    /// Nobody was there, and nobody has come in time.
    #[error("no endpoint of service {namespace}/{name} has come within {within_seconds} s")]
    Asleep {
        /// Namespace of the Service.
        namespace: Arc<str>,
        /// Its name.
        name: Arc<str>,
        /// How long was waited.
        within_seconds: u64,
    },
    /// Nobody is there, and too many wait for it already.
    #[error("too many requests wait for an endpoint of service {namespace}/{name}")]
    Crowded {
        /// Namespace of the Service.
        namespace: Arc<str>,
        /// Its name.
        name: Arc<str>,
    },
    /// Somebody is ready to answer, but none of them on this node, and the Service's policy wants no other.
    #[error("no endpoint of service {namespace}/{name} is on this node, and its traffic policy is Local")]
    NoneHere {
        /// Namespace of the Service.
        namespace: Arc<str>,
        /// Its name.
        name: Arc<str>,
    },
    /// All that the Service leads to is out of reach.
    #[error(
        "service {namespace}/{name} leads to {endpoint}, an address of this machine or near it, where no Service may lead"
    )]
    Forbidden {
        /// Namespace of the Service.
        namespace: Arc<str>,
        /// Its name.
        name: Arc<str>,
        /// One of its endpoints.
        endpoint: SocketAddr,
    },
    /// Network policies do not let who asks connect to it.
    #[error("network policies do not allow a connection to {0} from there")]
    NotAllowed(String),
    /// The endpoint is no pod of this node, and not outside of the cluster either.
    #[error("no pod answers at {0}")]
    NoPod(SocketAddr),
    /// The request has no usable authority.
    #[error("the request names no host")]
    NoAuthority,
    /// A scheme that is not spoken here.
    #[error("scheme {0} is not supported")]
    Scheme(String),
    /// The request is not one that can be passed on.
    #[error("the request is malformed: {0}")]
    Malformed(&'static str),
    /// There was no answer before the request's [`Deadline`].
    #[error("there was no answer in time")]
    Late,
    /// Nobody took the request.
    #[error("{endpoint} takes no requests now")]
    Unavailable {
        /// Who was asked last.
        endpoint: String,
        /// Why.
        #[source]
        source: BoxError,
    },
    /// The endpoint took the request and gave no answer.
    #[error("{endpoint} did not answer")]
    Failed {
        /// Which one.
        endpoint: String,
        /// Why.
        #[source]
        source: BoxError,
    },
}

/// The proxy of a node. Clones share everything.
#[derive(Clone)]
pub struct Proxy {
    discovery: Discovery,
    local: Arc<dyn LocalEndpoints>,
    guard: guard::Guard,
    routes: Arc<routes::Routes>,
    dialer: dial::Dialer,
    upstreams: Arc<node_ports::Upstreams>,
    /// Of connections that come in.
    places: Arc<places::Places>,
    taps: Arc<observe::Taps>,
    by_ingress: Arc<observe::ByIngress>,
    /// What has become of the ports of Services that this node is a balancer of.
    opened: Arc<watch::Sender<Vec<Opened>>>,
    opening: Arc<opening::Opening>,
    /// Ports of Gateways, and what has become of them.
    gateway_ports: Arc<watch::Sender<PortStates>>,
    tracer: Option<Tracer>,
}

impl Proxy {
    /// Nothing listens until [`Proxy::run`]; [`Proxy::call`] works at once.
    pub fn new(discovery: Discovery, policies: Policies, local: Arc<dyn LocalEndpoints>) -> Proxy {
        let guard = guard::Guard::new(policies, local.clone());
        let dialer = dial::Dialer::new(guard.clone());
        let places = places::Places::new(places::CONNECTIONS_MAX);
        let routes = Arc::new(routes::Routes::new(local.clone()));
        let (upstreams, taps, by_ingress) = Default::default();
        let (opened, opening, gateway_ports) = Default::default();
        let tracer = None;
        Proxy {
            discovery,
            local,
            guard,
            routes,
            dialer,
            upstreams,
            places,
            taps,
            by_ingress,
            opened,
            opening,
            gateway_ports,
            tracer,
        }
    }

    /// What has become of the ports of Services of type LoadBalancer: those for which nobody of this node may answer are left out.
    pub fn opened(&self) -> watch::Receiver<Vec<Opened>> {
        self.opened.subscribe()
    }

    /// Whether Services are known, and what they have by their status or had is open as far as it can be: [`Proxy::opened`], which tells of that
    /// moment, says nothing of them before.
    pub fn knows_services(&self) -> bool {
        self.opening.turn() != Turn::Held
    }

    /// The same that makes spans of requests.
    pub fn traced(self, tracer: Tracer) -> Proxy {
        Proxy { tracer: Some(tracer), ..self }
    }

    /// What is asked of Services, told of those whose pods are scaled by that.
    pub fn demands(&self) -> &Arc<Demands> {
        &self.routes.demands
    }

    /// Whether datagrams of a node port's client go to this real address from this port of the node, so that an answer goes there.
    pub fn has_upstream(&self, to: IpAddr, port: u16) -> bool {
        self.upstreams.has(to, port)
    }

    /// Says that [`Proxy::serve_gateways`] will be called, before [`Proxy::run`] is: Services leave the ports that they have not had to
    /// Gateways until these were read once.
    pub fn expect_gateways(&self) {
        self.opening.expect_gateways();
    }

    /// Says that [`Proxy::had`] will be called, before [`Proxy::run`] is: nobody opens a port before that which a Service had.
    pub fn expect_had(&self) {
        self.opening.expect_had();
    }

    /// What has become of the ports of Services in an earlier life of this node: those that were open are theirs again.
    pub fn had(&self, before: Vec<Opened>) {
        self.opening.tell_had(before);
    }

    /// Keeps balancers in step with discovery, and runs the listeners of NodePort and LoadBalancer services at the address
    /// `node_ports` (`None`: no listeners), until shutdown.
    pub async fn run(self, node_ports: Option<IpAddr>, shutdown: CancellationToken) {
        let mut generations = self.discovery.subscribe();
        let mut turns = self.opening.subscribe();
        let mut had = self.opening.subscribe_had();
        let (mut gateways_until, mut had_until) = (None, None);
        let mut listeners = node_ports::Listeners::new(self.clone(), node_ports);
        loop {
            generations.borrow_and_update();
            let turn = *turns.borrow_and_update();
            let snapshot = self.discovery.snapshot();
            self.routes.update(&snapshot);
            let knows_had = self.opening.knows_had();
            // Once all may open ports, nothing is kept for anybody.
            let before = had.borrow_and_update().clone().filter(|_| turn != Turn::All).unwrap_or_default();
            let retry_at = listeners.update(&snapshot, turn == Turn::All, &before).await;
            if turn == Turn::Held && snapshot.generation > 0 {
                let until = *had_until.get_or_insert_with(|| Instant::now() + HAD_WITHIN);
                if knows_had || until <= Instant::now() {
                    self.opening.held();
                    // Also who has heard of nothing else since knows more now.
                    self.opened.send_modify(|_| {});
                    gateways_until = Some(Instant::now() + GATEWAYS_WITHIN);
                }
            }
            let untold = async {
                match had_until.filter(|_| turn == Turn::Held) {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let given_up = async {
                match gateways_until.filter(|_| turn != Turn::All) {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let retry = async {
                match retry_at {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            // Waiting is all that is cut here.
            tokio::select! {
                changed = generations.changed() => if changed.is_err() { break },
                Ok(()) = turns.changed() => {}
                Ok(()) = had.changed() => {}
                () = untold => {}
                () = given_up => self.opening.all(),
                () = retry => {}
                () = shutdown.cancelled() => break,
            }
        }
        listeners.shutdown().await;
    }
}
