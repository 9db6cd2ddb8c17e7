//! The node's part in serving Gateways: certificates of their listeners out of Secrets ([`follow`]), and what it says of their ports.

mod follow;
mod named;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use coracle_discovery::Gateways;
use coracle_gateway::{Key, PortStates, ServedAt};
use coracle_proxy::{Certificate, Certificates, Failed, GatewayRoutes};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::follow::Follower;
use crate::balancer::holder;
use crate::context::Context;

/// Annotation of the Node object: where it serves Gateways, as [`ServedAt`] has it.
pub const ANNOTATION: &str = "coracle.dev/gateway";

/// What of Gateways is known here.
#[derive(Default)]
pub struct Served {
    /// Secrets without a certificate that could be shown.
    broken: watch::Sender<BTreeSet<Key>>,
}

impl Served {
    /// Tells when a Secret turns out to have a certificate, or none.
    pub fn changed(&self) -> watch::Receiver<BTreeSet<Key>> {
        self.broken.subscribe()
    }

    /// The annotation's value; `None` while there is nothing to be said.
    pub fn annotation(&self, address: IpAddr, context: &Context) -> Option<String> {
        let ports = context.network.proxy.gateway_ports().borrow().clone();
        let broken = self.broken.borrow().clone();
        let is_silent = ports == PortStates::default() && broken.is_empty();
        (!is_silent).then(|| ServedAt { address, ports, broken }.to_text())
    }
}

/// Follows Gateways and serves them in tasks of the node; the routes, for ports that Ingresses have, too.
pub fn run(
    context: &Arc<Context>,
    default: Certificate,
    until: &dyn Fn(&'static str) -> CancellationToken,
) -> GatewayRoutes {
    let routes = Gateways::new(context.client.clone());
    let certificates = Arc::new(Certificates::new(default));
    let of = GatewayRoutes { routes: routes.clone(), certificates: certificates.clone() };
    let broken = context.gateway.gateways.broken.clone();
    let follower = Follower::new(context.client.clone(), of.clone(), broken, until("certificates"));
    context.tasks.spawn(follower.run(until("gateway certificates")));
    context.tasks.spawn(routes.run(until("gateways")));
    let telling = context.clone();
    let bind = context.config.ingress.bind;
    let failed: Failed = Box::new(move |port, error| {
        let (telling, error, kind) = (telling.clone(), error.to_string(), error.kind());
        // Who has it is read from files, of which there may be many.
        tokio::task::spawn_blocking(move || {
            let why = holder::why(kind, port, coracle_discovery::Protocol::Tcp);
            let message = format!("can't listen at {bind}, port {port}, for Gateways: {error}{why}; it is tried again");
            telling.node_event(true, "GatewayPortUnavailable", message);
        });
    });
    let own = context.gateway.ports();
    context.network.proxy.expect_gateways();
    let serving = context.network.proxy.clone().serve_gateways(bind, of.clone(), own, failed, until("gateway ports"));
    // Requests are served where guests may run.
    context.tasks.spawn_on(serving, context.engine.gateway());
    of
}
