//! Listeners of NodePort services: each follows its Service, whatever answers there.
//!
//! A connection is served as HTTP, each request by an endpoint of its own, when the endpoint picked for it is a
//! component that is called; it is passed on as bytes when the endpoint listens itself.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use coracle_discovery::{Protocol, Service, Snapshot};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::{Balancer, BoxError, Error, Local, Proxy, serve};

/// Connections of one listener at a time; more wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 10_000;
/// How long connections may finish what they began when the node goes down.
const DRAIN: Duration = Duration::from_secs(5);
/// First wait until a port that is taken is tried again; doubles.
const RETRY_FIRST: Duration = Duration::from_secs(1);
/// Longest wait until a port that is taken is tried again.
const RETRY_MAX: Duration = Duration::from_secs(30);

/// The Service that a port belongs to, and which of its ports it is.
#[derive(Clone)]
struct Target {
    service: Arc<Service>,
    at: usize,
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
    listeners: HashMap<u16, Listener>,
    failures: HashMap<u16, Failure>,
    connections: TaskTracker,
    stop: CancellationToken,
}

impl Listeners {
    pub fn new(proxy: Proxy, bind: Option<IpAddr>) -> Listeners {
        Listeners {
            proxy,
            bind,
            listeners: HashMap::new(),
            failures: HashMap::new(),
            connections: TaskTracker::new(),
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
                    wanted.insert(number, Target { service: service.clone(), at });
                }
            }
        }
        self.listeners.retain(|port, listener| {
            let keep = wanted.contains_key(port);
            if !keep {
                listener.stop.cancel();
            }
            keep
        });
        self.failures.retain(|port, _| wanted.contains_key(port));
        let now = Instant::now();
        for (port, target) in wanted {
            if let Some(listener) = self.listeners.get(&port) {
                listener.target.store(Arc::new(target));
            } else if self.failures.get(&port).is_none_or(|failure| failure.again <= now) {
                self.open(SocketAddr::new(bind, port), target).await;
            }
        }
        self.failures.values().map(|failure| failure.again).min()
    }

    async fn open(&mut self, address: SocketAddr, target: Target) {
        let bound = match target.service.ports[target.at].protocol {
            Protocol::Tcp => TcpListener::bind(address).await,
            Protocol::Udp | Protocol::Sctp => {
                Err(io::Error::new(io::ErrorKind::Unsupported, "only TCP node ports are served"))
            }
        };
        let listener = match bound {
            Ok(listener) => listener,
            Err(error) => return self.failed(address.port(), &target.service, &error),
        };
        self.failures.remove(&address.port());
        let (target, stop) = (Arc::new(ArcSwap::from_pointee(target)), self.stop.child_token());
        self.listeners.insert(address.port(), Listener { target: target.clone(), stop: stop.clone() });
        let (proxy, connections) = (self.proxy.clone(), self.connections.clone());
        self.connections.spawn(accept(proxy, listener, target, stop, connections));
    }

    fn failed(&mut self, port: u16, service: &Service, error: &io::Error) {
        let wait = match self.failures.get(&port) {
            Some(failure) => (failure.wait * 2).min(RETRY_MAX),
            None => {
                tracing::warn!(port, namespace = %service.namespace, service = %service.name, %error, "listen at a node port");
                self.proxy.local.node_port_failed(service, port, error);
                RETRY_FIRST
            }
        };
        self.failures.insert(port, Failure { wait, again: Instant::now() + wait });
    }

    /// Closes all listeners and lets connections finish for a while.
    pub async fn shutdown(self) {
        self.stop.cancel();
        self.connections.close();
        let _ = tokio::time::timeout(DRAIN, self.connections.wait()).await;
    }
}

async fn accept(
    proxy: Proxy,
    listener: TcpListener,
    target: Arc<ArcSwap<Target>>,
    stop: CancellationToken,
    connections: TaskTracker,
) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let slot = slots.clone().acquire_owned().await.expect("the semaphore is never closed");
        // Waiting is all that is cut here.
        let stream = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of file descriptors: a pause lets connections end, instead of spinning on the error.
                    tracing::debug!(%error, "accept");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        let (proxy, target, stop) = (proxy.clone(), target.clone(), stop.clone());
        connections.spawn(async move {
            let _slot = slot;
            tokio::select! {
                result = connection(proxy, stream, target) => if let Err(error) = result {
                    tracing::debug!(error, "connection");
                },
                // The node goes down or the Service is gone; what is under way has had its time in `shutdown`.
                () = async { stop.cancelled().await; tokio::time::sleep(DRAIN).await } => {}
            }
        });
    }
}

async fn connection(proxy: Proxy, mut stream: TcpStream, target: Arc<ArcSwap<Target>>) -> Result<(), BoxError> {
    stream.set_nodelay(true)?;
    let (service, balancer) = route(&proxy, &target)?;
    let (picked, local) = match proxy.pick(&service, &balancer) {
        Ok(picked) => picked,
        // A client that speaks HTTP learns why; any other sees the connection end.
        Err(Error::NoEndpoints { .. }) => return http(proxy, stream, target).await,
        Err(error) => return Err(error.into()),
    };
    let address = match local {
        Some(Local::Http(_)) => {
            drop(picked);
            return http(proxy, stream, target).await;
        }
        Some(Local::Tcp(address)) => address,
        None => SocketAddr::new(picked.endpoint().address, picked.endpoint().port),
    };
    let mut there = match TcpStream::connect(address).await {
        Ok(there) => there,
        Err(error) => {
            picked.failed();
            return Err(error.into());
        }
    };
    there.set_nodelay(true)?;
    picked.succeeded();
    tokio::io::copy_bidirectional(&mut stream, &mut there).await?;
    Ok(())
}

/// Serves a connection as HTTP: each request takes the route as it is then.
async fn http(proxy: Proxy, stream: TcpStream, target: Arc<ArcSwap<Target>>) -> Result<(), BoxError> {
    let answer = move |request| {
        let (proxy, target) = (proxy.clone(), target.clone());
        async move {
            let (service, balancer) = route(&proxy, &target)?;
            proxy.call_balanced(&service, &balancer, request).await
        }
    };
    serve::serve(stream, answer).await
}

fn route(proxy: &Proxy, target: &ArcSwap<Target>) -> Result<(Arc<Service>, Arc<Balancer>), Error> {
    let target = target.load();
    let service = target.service.clone();
    let balancer = proxy
        .routes
        .balancer(&service, target.at)
        .ok_or_else(|| Error::NoEndpoints { namespace: service.namespace.clone(), name: service.name.clone() })?;
    Ok((service, balancer))
}
