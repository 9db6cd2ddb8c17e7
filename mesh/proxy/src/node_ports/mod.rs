//! Listeners of NodePort services: each follows its Service, whatever answers there.
//!
//! A port is a number and a protocol: TCP ([`tcp`]) and UDP ([`udp`]) may share the number.

pub(crate) mod tcp;
mod udp;

pub(crate) use self::udp::Upstreams;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use coracle_discovery::{Protocol, Service, Snapshot};
use coracle_policy::Source;
use tokio::net::{TcpListener, UdpSocket};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::accept::{self, DRAIN, Door, RETRY_FIRST, RETRY_MAX};
use crate::places::{Bounds, Key, Places};
use crate::routes::Route;
use crate::{Asker, Error, Proxy, ServiceFailure};

/// Clients that send datagrams at a time, each with a descriptor. Of more, those give way that got no answer yet, then those
/// that have rested longest.
const UDP_CLIENTS_MAX: Bounds = Bounds { node: 8192, port: 4096 };

/// The Service that a port belongs to, and which of its ports it is.
#[derive(Clone)]
struct Target {
    service: Arc<Service>,
    at: usize,
}

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

    fn way(&self) -> tcp::Way {
        let inbound = self.clone();
        tcp::Way {
            proxy: self.proxy.clone(),
            route: Arc::new(move || inbound.route()),
            asker: self.asker(),
            drain: self.stop.clone(),
        }
    }

    /// The route as it is now.
    fn route(&self) -> Result<Route, Error> {
        let target = self.target.load();
        let service = &target.service;
        let no_endpoints = || Error::NoEndpoints { namespace: service.namespace.clone(), name: service.name.clone() };
        self.proxy.routes.find(service, target.at).ok_or_else(no_endpoints)
    }
}

struct Listener {
    target: Arc<ArcSwap<Target>>,
    stop: CancellationToken,
}

struct Failure {
    wait: Duration,
    again: Instant,
}

/// All listeners of a node.
pub(crate) struct Listeners {
    proxy: Proxy,
    bind: Option<IpAddr>,
    listeners: HashMap<Key, Listener>,
    failures: HashMap<Key, Failure>,
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
            tasks: TaskTracker::new(),
            places,
            udp_places: Places::new(UDP_CLIENTS_MAX),
            stop: CancellationToken::new(),
        }
    }

    /// Opens and closes listeners as the snapshot wants; says when a port that is taken should be tried again.
    pub async fn update(&mut self, snapshot: &Snapshot) -> Option<Instant> {
        let bind = self.bind?;
        let mut wanted = HashMap::new();
        for service in snapshot.services() {
            for (at, port) in service.ports.iter().enumerate() {
                if let Some(number) = port.node_port {
                    wanted.insert((number, port.protocol), Target { service: service.clone(), at });
                }
            }
        }
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
            if let Some(listener) = self.listeners.get(&key) {
                listener.target.store(Arc::new(target));
            } else if self.failures.get(&key).is_none_or(|failure| failure.again <= now) {
                self.open(key, SocketAddr::new(bind, key.0), target).await;
            }
        }
        self.failures.values().map(|failure| failure.again).min()
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
                let way = inbound.way();
                let serve = move |stream, client: SocketAddr, turns| {
                    tcp::connection(way.clone(), Source::Outside(client.ip()), stream, turns)
                };
                self.tasks.spawn(accept::accept(inbound.door(), listener, serve));
            }),
            Protocol::Udp => UdpSocket::bind(address).await.map(|socket| {
                self.tasks.spawn(udp::relay(inbound.clone(), socket));
            }),
            Protocol::Sctp => Err(io::Error::new(io::ErrorKind::Unsupported, "SCTP node ports are not served")),
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
        let wait = match self.failures.get(&key) {
            Some(failure) => (failure.wait * 2).min(RETRY_MAX),
            None => {
                let (port, protocol) = key;
                tracing::warn!(port, ?protocol, namespace = %service.namespace, service = %service.name, %error, "listen at a node port");
                self.proxy.local.service_failed(service, ServiceFailure::NodePort(port, error));
                RETRY_FIRST
            }
        };
        self.failures.insert(key, Failure { wait, again: Instant::now() + wait });
    }

    /// Closes all listeners and lets connections finish for a while.
    pub async fn shutdown(self) {
        self.stop.cancel();
        self.tasks.close();
        let _ = tokio::time::timeout(DRAIN, self.tasks.wait()).await;
    }
}
