//! Ports that this node opens for Services: node ports, those of Services that it is a balancer of, and those at which balancers
//! elsewhere ask for its health ([`wanted`]). Each listener follows its Service, whatever answers there.
//!
//! A port is a number and a protocol: TCP ([`tcp`]) and UDP ([`udp`]) may share the number.

mod health;
pub(crate) mod tcp;
mod udp;
mod wanted;

pub(crate) use self::udp::Upstreams;

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use coracle_discovery::{Protocol, Service, Snapshot, Traffic};
use coracle_policy::Source;
use http::Request;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::wanted::{Purpose, Refused, Target, Wanted};
use crate::accept::{self, DRAIN, Door, RETRY_FIRST, RETRY_MAX};
use crate::opening::Had;
use crate::places::{Bounds, Key, Places};
use crate::routes::{Route, Side};
use crate::turns::Turns;
use crate::{Asker, Body, BoxError, Error, Proxy, ServiceFailure, serve};

/// Clients that send datagrams at a time, each with a descriptor. Of more, those give way that got no answer yet, then those
/// that have rested longest.
const UDP_CLIENTS_MAX: Bounds = Bounds { node: 8192, port: 4096 };

/// Ports that a Service does not get, and of which that is told; of more it only stands in its status.
const TOLD_MAX: usize = 8;

/// What all that comes in at one port needs.
#[derive(Clone)]
struct Inbound {
    proxy: Proxy,
    key: Key,
    target: Arc<ArcSwap<Target>>,
    /// Nothing more is taken.
    stop: CancellationToken,
    tasks: TaskTracker,
    /// Those of this protocol.
    places: Arc<Places>,
}

impl Inbound {
    fn door(&self) -> Door {
        Door { key: self.key, stop: self.stop.clone(), tasks: self.tasks.clone(), places: self.places.clone() }
    }

    /// For whom the way to other nodes is used.
    fn asker(&self) -> Asker {
        Asker::NodePort(self.key.0)
    }

    /// The way of a connection of this client. It is for the Service that has the port now, whoever has it later; and who may not
    /// connect any more is not answered on a connection that is there.
    fn way(&self, client: IpAddr) -> tcp::Way {
        let (inbound, service) = (self.clone(), self.target.load().service.clone());
        let route = move || {
            let target = inbound.target.load();
            let is_same = (&target.service.namespace, &target.service.name) == (&service.namespace, &service.name);
            match is_same && target.lets_in(client) {
                true => inbound.route(),
                false => Err(Error::NoEndpoints { namespace: service.namespace.clone(), name: service.name.clone() }),
            }
        };
        tcp::Way { proxy: self.proxy.clone(), route: Arc::new(route), asker: self.asker(), drain: self.stop.clone() }
    }

    /// The route as it is now.
    fn route(&self) -> Result<Route, Error> {
        let target = self.target.load();
        let service = &target.service;
        let no_endpoints = || Error::NoEndpoints { namespace: service.namespace.clone(), name: service.name.clone() };
        self.proxy.routes.find(service, target.at, Side::Outside).ok_or_else(no_endpoints)
    }

    /// Whether this client may connect here.
    fn lets_in(&self, client: IpAddr) -> bool {
        self.target.load().lets_in(client)
    }

    /// Serves one connection.
    async fn connection(self, stream: TcpStream, client: SocketAddr, turns: Arc<Turns>) -> Result<(), BoxError> {
        if !self.lets_in(client.ip()) {
            // As if nobody listened.
            let _ = stream.set_zero_linger();
            return Ok(());
        }
        let is_check = self.target.load().purpose == Purpose::HealthCheck;
        match is_check {
            true => self.check(stream, turns).await,
            false => tcp::connection(self.way(client.ip()), Source::Outside(client.ip()), stream, turns).await,
        }
    }

    /// Says how the node is for the Service.
    async fn check(self, stream: TcpStream, turns: Arc<Turns>) -> Result<(), BoxError> {
        let drain = self.stop.clone();
        let answer = move |_: Request<Body>| {
            let target = self.target.load();
            std::future::ready(Ok(health::answer(&target.service, self.proxy.local.node())))
        };
        serve::serve(stream, turns, drain, answer).await
    }
}

/// A port of a Service that this node is a balancer of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    /// The Service's namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// The port.
    pub port: u16,
    /// Its protocol.
    pub protocol: Protocol,
    /// Whether the node listens there; else it is somebody else's.
    pub is_open: bool,
}

struct Listener {
    target: Arc<ArcSwap<Target>>,
    stop: CancellationToken,
}

struct Failure {
    /// Whose port it was to be.
    service: (Arc<str>, Arc<str>),
    wait: Duration,
    again: Instant,
}

impl Failure {
    /// Whether it is time to try again: at once for another Service.
    fn is_due(&self, service: &Service, now: Instant) -> bool {
        self.again <= now || self.service.0 != service.namespace || self.service.1 != service.name
    }
}

/// All listeners of a node.
pub(crate) struct Listeners {
    proxy: Proxy,
    bind: Option<IpAddr>,
    listeners: HashMap<Key, Listener>,
    failures: HashMap<Key, Failure>,
    /// Ports that Services were refused, as far as it was told.
    refused: HashSet<(Arc<str>, Arc<str>, Key)>,
    tasks: TaskTracker,
    places: Arc<Places>,
    udp_places: Arc<Places>,
    stop: CancellationToken,
}

impl Listeners {
    pub fn new(proxy: Proxy, bind: Option<IpAddr>) -> Listeners {
        let places = proxy.places.clone();
        Listeners {
            proxy,
            bind,
            listeners: HashMap::new(),
            failures: HashMap::new(),
            refused: HashSet::new(),
            tasks: TaskTracker::new(),
            places,
            udp_places: Places::new(UDP_CLIENTS_MAX),
            stop: CancellationToken::new(),
        }
    }

    /// Opens and closes listeners as the snapshot wants; says when a port that is taken should be tried again. Until `may_begin`, no
    /// balancer's port is opened that the Service has not had, here (`had`) or by its status.
    pub async fn update(&mut self, snapshot: &Snapshot, may_begin: bool, had: &Had) -> Option<Instant> {
        let bind = self.bind?;
        let listeners = &self.listeners;
        let has = |service: &Service, key: Key| {
            listeners.get(&key).is_some_and(|listener| {
                let target = listener.target.load();
                let named = |of: &Service| (of.namespace.clone(), of.name.clone(), of.uid.clone());
                target.purpose == Purpose::Balancer && named(&target.service) == named(service)
            })
        };
        let Wanted { ports: wanted, refused } = Wanted::of(snapshot, has, had);
        let mut opened = Vec::new();
        self.refuse(&refused, &mut opened);
        self.listeners.retain(|key, listener| {
            let keep = wanted.contains_key(key);
            if !keep {
                listener.stop.cancel();
            }
            keep
        });
        self.failures.retain(|key, _| wanted.contains_key(key));
        let now = Instant::now();
        for (key, target) in wanted {
            if !may_begin && !self.listeners.contains_key(&key) && target.is_new(key, had) {
                continue;
            }
            let balanced = (target.purpose == Purpose::Balancer).then(|| target.service.clone());
            if let Some(listener) = self.listeners.get(&key) {
                listener.target.store(Arc::new(target));
            } else if self.failures.get(&key).is_none_or(|failure| failure.is_due(&target.service, now)) {
                self.open(key, SocketAddr::new(bind, key.0), target).await;
            }
            if let Some(service) = balanced {
                self.note(&service, key, self.listeners.contains_key(&key), &mut opened);
            }
        }
        opened.sort_unstable_by(|a, b| {
            let key = |of: &Opened| (of.namespace.clone(), of.name.clone(), of.port, of.protocol as u8);
            key(a).cmp(&key(b))
        });
        self.proxy.opened.send_if_modified(|before| {
            let is_new = *before != opened;
            *before = opened;
            is_new
        });
        self.failures.values().map(|failure| failure.again).min()
    }

    /// Tells of ports that Services do not get, once.
    fn refuse(&mut self, refused: &[(Target, Key, Refused)], opened: &mut Vec<Opened>) {
        let told = std::mem::take(&mut self.refused);
        let mut counts: HashMap<(&str, &str), usize> = HashMap::new();
        for (Target { service, purpose, .. }, key, why) in refused {
            let count = counts.entry((&service.namespace, &service.name)).or_default();
            *count += 1;
            let known = (service.namespace.clone(), service.name.clone(), *key);
            if *count <= TOLD_MAX && !told.contains(&known) {
                let failure = match why {
                    Refused::TakenBy(holder) => ServiceFailure::Taken(key.0, key.1, holder),
                    Refused::TooMany => ServiceFailure::TooMany(key.0, key.1),
                };
                self.proxy.local.service_failed(service, failure);
            }
            self.refused.insert(known);
            if *purpose == Purpose::Balancer {
                self.note(service, *key, false, opened);
            }
        }
    }

    /// Notes what has become of a port; of a Service for which nobody of this node may answer nothing is said.
    fn note(&self, service: &Service, (port, protocol): Key, is_open: bool, opened: &mut Vec<Opened>) {
        let is_ours = service.outside == Traffic::Cluster || service.answers_at(self.proxy.local.node());
        if is_ours {
            let (namespace, name) = (service.namespace.clone(), service.name.clone());
            opened.push(Opened { namespace, name, port, protocol, is_open });
        }
    }

    async fn open(&mut self, key: Key, address: SocketAddr, target: Target) {
        let inbound = Inbound {
            proxy: self.proxy.clone(),
            key,
            target: Arc::new(ArcSwap::from_pointee(target.clone())),
            stop: self.stop.child_token(),
            tasks: self.tasks.clone(),
            places: match key.1 {
                Protocol::Udp => self.udp_places.clone(),
                Protocol::Tcp | Protocol::Sctp => self.places.clone(),
            },
        };
        let opened = match key.1 {
            Protocol::Tcp => TcpListener::bind(address).await.map(|listener| {
                let of = inbound.clone();
                let serve = move |stream, client, turns| of.clone().connection(stream, client, turns);
                self.tasks.spawn(accept::accept(inbound.door(), listener, serve));
            }),
            Protocol::Udp => UdpSocket::bind(address).await.map(|socket| {
                self.tasks.spawn(udp::relay(inbound.clone(), socket));
            }),
            Protocol::Sctp => Err(io::Error::new(io::ErrorKind::Unsupported, "nothing speaks SCTP")),
        };
        match opened {
            Ok(()) => {
                self.failures.remove(&key);
                self.listeners.insert(key, Listener { target: inbound.target, stop: inbound.stop });
            }
            Err(error) => self.failed(key, &target.service, &error),
        }
    }

    fn failed(&mut self, key: Key, service: &Service, error: &io::Error) {
        let named = (service.namespace.clone(), service.name.clone());
        let wait = match self.failures.get(&key).filter(|failure| failure.service == named) {
            Some(failure) => (failure.wait * 2).min(RETRY_MAX),
            None => {
                let (port, protocol) = key;
                tracing::warn!(port, ?protocol, namespace = %service.namespace, service = %service.name, %error, "listen at a port for a Service");
                self.proxy.local.service_failed(service, ServiceFailure::Port(port, protocol, error));
                RETRY_FIRST
            }
        };
        self.failures.insert(key, Failure { service: named, wait, again: Instant::now() + wait });
    }

    /// Closes all listeners and lets connections finish for a while.
    pub async fn shutdown(self) {
        self.stop.cancel();
        self.tasks.close();
        let _ = tokio::time::timeout(DRAIN, self.tasks.wait()).await;
    }
}
