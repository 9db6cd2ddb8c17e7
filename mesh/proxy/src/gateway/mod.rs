//! Requests from outside, by host and path. A listener is an address, whether TLS is spoken there, and the routes of what comes in;
//! what is said there is HTTP.
//!
//! A request goes down these steps, and then on as every other does (`outbound.rs`):
//!
//! ```text
//! accept ─► TLS (tls.rs) ─► HTTP (serve.rs) ─► route, redirect, who asks (request.rs) ─► changes (change.rs) ─► copies (mirror.rs) ─► bounds (bounds.rs) ─► a Service's port
//! ```
//!
//! What the gateway itself answers to a call of gRPC is in that one's words (grpc.rs).
//!
//! Ports for Ingresses are there from the start; those of Gateways come and go with their listeners (ports.rs).

mod bounds;
mod change;
mod grpc;
mod mirror;
mod ports;
mod request;
mod tls;
mod under_way;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering::Relaxed};
use std::time::Duration;

use coracle_discovery::{Ingresses, Protocol};
use futures::future::join_all;
use http::Request;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::accept::{self, DRAIN, Door, RETRY_FIRST, RETRY_MAX};
use crate::turns::Turns;
use crate::{Body, BoxError, Proxy, serve, spare};

pub(crate) use self::mirror::Mirrors;
pub use self::ports::{Failed, GatewayRoutes, OwnPort};
pub use self::tls::{Certificate, CertificateError, Certificates};
pub(crate) use self::under_way::Place;
#[cfg(test)]
pub(crate) use self::under_way::REQUESTS_MAX;
use self::under_way::UnderWay;

/// A client ends its part of a TLS handshake within this time.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);

/// Where requests come in.
pub struct Listener {
    /// Its address.
    pub address: SocketAddr,
    /// The socket, where somebody has opened it already.
    pub bound: Option<std::net::TcpListener>,
    /// Whose certificates are shown; without, TLS is not spoken.
    pub tls: Option<Arc<Certificates>>,
    /// Where requests go.
    pub routes: Ingresses,
    /// Where those go that a Gateway has a listener at this port for. Of a host that an Ingress has, too, the more precise one is looked
    /// at first, then the older one.
    pub gateways: Option<GatewayRoutes>,
}

/// Told when a listener is open, with its address, and when it cannot be opened and is tried again. Told with its place among the
/// listeners; it must not block.
pub type Listening = Arc<dyn Fn(usize, Result<SocketAddr, &io::Error>) + Send + Sync>;

/// What all connections of a listener have in common.
struct Inbound {
    proxy: Proxy,
    /// Of Ingresses.
    routes: Option<Ingresses>,
    gateways: Option<GatewayRoutes>,
    tls: Option<TlsAcceptor>,
    port: u16,
    /// Requests that routes have taken.
    requests: UnderWay,
    /// Where TLS is spoken, for who came without: 0 until it is open. `None` when nobody wants it to be spoken.
    secure_port: Option<Arc<AtomicU16>>,
    stop: CancellationToken,
}

impl Proxy {
    /// Serves at these listeners until shutdown. One whose address cannot be had is tried again and again; what has begun at the end
    /// is finished.
    pub async fn serve(self, listeners: Vec<Listener>, listening: Listening, shutdown: CancellationToken) {
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let secure_port: Option<Arc<AtomicU16>> =
            listeners.iter().any(|listener| listener.tls.is_some()).then(Arc::default);
        let open = listeners.into_iter().enumerate().map(|(at, listener)| {
            let listening = listening.clone();
            let (proxy, secure_port, tasks, stop) = (self.clone(), secure_port.clone(), tasks.clone(), stop.clone());
            async move {
                let told = |opened: Result<SocketAddr, &io::Error>| listening(at, opened);
                let (socket, address) = open(listener.address, listener.bound, told).await;
                if let Some(secure_port) = secure_port.as_ref().filter(|_| listener.tls.is_some()) {
                    secure_port.store(address.port(), Relaxed);
                }
                let port = address.port();
                let gateways = listener.gateways;
                let tls = listener.tls.map(|certificates| {
                    let of_gateways = gateways.clone().map(|of| (of, port));
                    tls::server(Some((certificates, listener.routes.clone())), of_gateways).into()
                });
                let door = Door {
                    key: (port, Protocol::Tcp),
                    stop: stop.clone(),
                    tasks: tasks.clone(),
                    places: proxy.places.clone(),
                    whose: Arc::new(|| None::<Arc<str>>),
                };
                let inbound = Arc::new(Inbound {
                    proxy,
                    routes: Some(listener.routes),
                    gateways,
                    tls,
                    port,
                    requests: UnderWay::default(),
                    secure_port,
                    stop: stop.clone(),
                });
                let serve = move |stream, client, turns| connection(inbound.clone(), stream, client, turns);
                tasks.spawn(accept::accept(door, socket, serve));
            }
        });
        let opened = join_all(open);
        // Only a listener that waits for its port is cut.
        tokio::select! {
            _ = async { tokio::join!(opened, std::future::pending::<()>()) } => {}
            () = shutdown.cancelled() => {}
        }
        stop.cancel();
        tasks.close();
        let _ = tokio::time::timeout(DRAIN, tasks.wait()).await;
    }
}

/// Opens a listener, as soon as its address can be had.
async fn open(
    address: SocketAddr,
    mut bound: Option<std::net::TcpListener>,
    told: impl Fn(Result<SocketAddr, &io::Error>),
) -> (TcpListener, SocketAddr) {
    let mut wait = RETRY_FIRST;
    loop {
        let socket = match bound.take() {
            Some(socket) => TcpListener::from_std(socket),
            None => TcpListener::bind(address).await,
        };
        match socket.and_then(|socket| Ok((socket.local_addr()?, socket))) {
            Ok((address, socket)) => {
                told(Ok(address));
                return (socket, address);
            }
            Err(error) => told(Err(&error)),
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(RETRY_MAX);
    }
}

async fn connection(
    inbound: Arc<Inbound>,
    stream: TcpStream,
    client: SocketAddr,
    turns: Arc<Turns>,
) -> Result<(), BoxError> {
    stream.set_nodelay(true)?;
    spare::keep_alive(&stream)?;
    let drain = inbound.stop.clone();
    let tls = inbound.tls.clone();
    let answer = move |request: Request<Body>| inbound.clone().answer(client, request);
    match tls {
        None => serve::serve(stream, turns, drain, answer).await,
        Some(tls) => {
            let stream = tokio::time::timeout(HANDSHAKE_MAX, tls.accept(stream)).await??;
            serve::serve(stream, turns, drain, answer).await
        }
    }
}
