//! The node's part in serving Ingresses: listeners, certificates out of Secrets, and telling people what is wrong. Routes are
//! discovery's, requests the proxy's. [`gateways`] is the same for Gateways, which share the listeners where they want their ports.

mod follow;
pub mod gateways;

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::{Arc, OnceLock};

use coracle_discovery::{Ingresses, Routing};
use coracle_proxy::{Certificate, Certificates, GatewayRoutes, Listener, Listening, OwnPort};
use parking_lot::Mutex;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use self::follow::Follower;
use crate::config::{Config, IngressPort};
use crate::context::Context;
use crate::node::Error;

/// Annotation of the Node object: where it serves Ingresses, as URLs with commas between.
pub const ANNOTATION: &str = "coracle.dev/ingress";
/// What is told of Ingresses and has not been heard yet.
const TOLD_MAX: usize = 256;
/// The name in the certificate that is shown for hosts that have none.
const DEFAULT_NAME: &str = "coracle-ingress.invalid";

/// Where Ingresses are served.
pub struct Gateway {
    node_ip: IpAddr,
    ports: watch::Sender<Vec<OwnPort>>,
    /// Sockets that are open already; gone when they are served.
    sockets: Mutex<Vec<Option<TcpListener>>>,
    certificates: Arc<Certificates>,
    /// The one for names that have none.
    default: Certificate,
    /// Once they are served.
    routes: OnceLock<Ingresses>,
    /// Those of Gateway API.
    pub gateways: gateways::Served,
}

impl Gateway {
    /// Opens the ports that somebody has asked for.
    pub fn open(config: &Config) -> Result<Self, Error> {
        let (mut ports, mut sockets) = (Vec::new(), Vec::new());
        for (port, has_tls) in [(config.ingress.http, false), (config.ingress.https, true)] {
            let Some(number) = port.number() else { continue };
            let mut address = SocketAddr::new(config.ingress.bind, number);
            let socket = match port {
                IngressPort::Named(_) => Some(bind(address).map_err(|source| Error::ingress(address, source))?),
                IngressPort::Off | IngressPort::Usual(_) => None,
            };
            if let Some(Ok(bound)) = socket.as_ref().map(TcpListener::local_addr) {
                address = bound;
            }
            ports.push(OwnPort { address, has_tls, is_open: None });
            sockets.push(socket);
        }
        let default = default_certificate()?;
        let certificates = Arc::new(Certificates::new(default.clone()));
        let node_ip = config.node_ip;
        Ok(Self {
            node_ip,
            ports: watch::Sender::new(ports),
            sockets: Mutex::new(sockets),
            certificates,
            default,
            routes: OnceLock::new(),
            gateways: gateways::Served::default(),
        })
    }

    /// The ports, and what has become of them.
    pub fn ports(&self) -> watch::Receiver<Vec<OwnPort>> {
        self.ports.subscribe()
    }

    /// Waits until it is known of each port whether it can be had.
    pub async fn tried(&self) {
        let is_tried = |ports: &Vec<OwnPort>| ports.iter().all(|port| port.is_open.is_some());
        // The sender lives as long as `self`.
        let _ = self.ports.subscribe().wait_for(is_tried).await;
    }

    /// Where requests are served now.
    pub fn urls(&self) -> Vec<String> {
        let ports = self.ports.borrow();
        let open = ports.iter().filter(|port| port.is_open == Some(true));
        open.map(|port| {
            let mut address = port.address;
            if address.ip().is_unspecified() {
                address.set_ip(self.node_ip);
            }
            format!("{}://{address}", if port.has_tls { "https" } else { "http" })
        })
        .collect()
    }

    /// The same for the Node object; `None` when nothing is served.
    pub fn annotation(&self) -> Option<String> {
        Some(self.urls().join(",")).filter(|urls| !urls.is_empty())
    }

    /// Where requests go now; nowhere while nothing is served.
    pub fn routing(&self) -> Arc<Routing> {
        self.routes.get().map(Ingresses::routing).unwrap_or_default()
    }

    fn listeners(&self, routes: &Ingresses, gateways: &GatewayRoutes) -> Vec<Listener> {
        let ports = self.ports.borrow();
        let sockets = std::mem::take(&mut *self.sockets.lock());
        let listener = |(port, bound): (&OwnPort, Option<TcpListener>)| Listener {
            address: port.address,
            bound,
            tls: port.has_tls.then(|| self.certificates.clone()),
            routes: routes.clone(),
            gateways: Some(gateways.clone()),
        };
        ports.iter().zip(sockets).map(listener).collect()
    }

    /// Notes what has become of a port; says whether it was another before.
    fn set(&self, at: usize, opened: Result<SocketAddr, &io::Error>) -> bool {
        self.ports.send_if_modified(|ports| {
            let Some(port) = ports.get_mut(at) else { return false };
            let before = *port;
            port.is_open = Some(opened.is_ok());
            port.address = opened.unwrap_or(port.address);
            *port != before
        })
    }
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = TcpListener::bind(address)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// A certificate that nobody trusts: a client that does not look learns that the host has none.
fn default_certificate() -> Result<Certificate, Error> {
    let made = || -> Result<Certificate, Box<dyn std::error::Error + Send + Sync>> {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let mut parameters = rcgen::CertificateParams::new(vec![DEFAULT_NAME.to_owned()])?;
        parameters.distinguished_name.push(rcgen::DnType::CommonName, "Coracle: a host without a certificate");
        let certificate = parameters.self_signed(&key)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        Ok(Certificate::from_der(vec![certificate.der().clone()], key)?)
    };
    made().map_err(Error::Certificate)
}

/// Serves Ingresses in tasks of the node, each until its token is cancelled.
pub fn run(context: &Arc<Context>, until: &dyn Fn(&'static str) -> CancellationToken) {
    let gateway = context.gateway.clone();
    if gateway.ports.borrow().is_empty() {
        return;
    }
    let ingresses = Ingresses::new(context.client.clone());
    let (told, hears) = mpsc::channel(TOLD_MAX);
    let follower = Follower::new(
        context.client.clone(),
        gateway.certificates.clone(),
        context.recorder.clone(),
        context.network.discovery.clone(),
        until("certificates"),
    );
    context.tasks.spawn(follower.run(hears, until("ingress certificates")));
    context.tasks.spawn(ingresses.clone().run(told, until("ingresses")));
    let _ = gateway.routes.set(ingresses.clone());
    let gateways = gateways::run(context, gateway.default.clone(), until);
    let listeners = gateway.listeners(&ingresses, &gateways);
    let telling = context.clone();
    let listening: Listening = Arc::new(move |at, opened| {
        let address = telling.gateway.ports.borrow().get(at).map(|port| port.address);
        let (is_new, Some(address)) = (telling.gateway.set(at, opened), address) else { return };
        match opened {
            Err(error) if is_new => {
                tracing::warn!(%address, %error, "Ingresses are not served there yet; it is tried again");
                let message = format!(
                    "can't listen at {address} for Ingresses: {error}; it is tried again (--http-port and --https-port choose \
                     other ports)"
                );
                telling.node_event(true, "IngressPortUnavailable", message);
            }
            Err(_) => {}
            Ok(address) => tracing::debug!(%address, "Ingresses are served"),
        }
    });
    let serving = context.network.proxy.clone().serve(listeners, listening, until("gateway"));
    // Requests are served where guests may run.
    context.tasks.spawn_on(serving, context.engine.gateway());
}
