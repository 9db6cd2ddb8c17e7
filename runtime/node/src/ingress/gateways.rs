//! The node's part in serving Gateways: certificates of their listeners out of Secrets, and what it says of their ports.

use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use coracle_discovery::{Gateways, SecretKey};
use coracle_gateway::{Key, ServedAt};
use coracle_proxy::{Certificate, Certificates, Failed, GatewayRoutes};
use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::follow::certificate;
use crate::balancer::holder;
use crate::context::Context;
use crate::objects::{Bounds, Content, Kind, ObjectKey, Objects, ReadError};

/// Annotation of the Node object: where it serves Gateways, as [`ServedAt`] has it.
pub const ANNOTATION: &str = "coracle.dev/gateway";
/// Who uses the Secrets: all Gateways together.
const USER: &str = "gateways";

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
        let is_silent = ports.is_empty() && broken.is_empty();
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
    let own = context.gateway.own_ports();
    let serving = context.network.proxy.clone().serve_gateways(bind, of.clone(), own, failed, until("gateway ports"));
    // Requests are served where guests may run.
    context.tasks.spawn_on(serving, context.engine.gateway());
    of
}

/// A Secret that was read.
type Read = (SecretKey, Result<Option<Arc<Content>>, ReadError>);

/// Keeps certificates as the Secrets of listeners are now.
struct Follower {
    objects: Objects,
    of: GatewayRoutes,
    broken: watch::Sender<BTreeSet<Key>>,
    /// In the order in which they are read: there is room for so many.
    named: Vec<SecretKey>,
    changed: Arc<Notify>,
    reads: FuturesUnordered<BoxFuture<'static, Read>>,
}

impl Follower {
    fn new(
        client: kube::Client,
        of: GatewayRoutes,
        broken: watch::Sender<BTreeSet<Key>>,
        shutdown: CancellationToken,
    ) -> Follower {
        let changed: Arc<Notify> = Arc::default();
        let telling = changed.clone();
        let on_change = Arc::new(move |_: &str| telling.notify_one());
        Follower {
            objects: Objects::new(client, Bounds::GATEWAYS, shutdown, on_change),
            of,
            broken,
            named: Vec::new(),
            changed,
            reads: FuturesUnordered::new(),
        }
    }

    /// Until shutdown.
    async fn run(mut self, shutdown: CancellationToken) {
        let mut generations = self.of.routes.subscribe();
        loop {
            // Everything here only waits.
            tokio::select! {
                changed = generations.changed() => match changed {
                    Ok(()) => self.follow(),
                    Err(_) => return,
                },
                Some((secret, read)) = self.reads.next() => self.take(secret, read),
                () = self.changed.notified() => self.read_all(),
                () = shutdown.cancelled() => return,
            }
        }
    }

    /// Follows the Secrets that listeners name now, and no others.
    fn follow(&mut self) {
        let named: Vec<SecretKey> = self.of.routes.ports().all_secrets().cloned().collect();
        if named == self.named {
            return;
        }
        let before = std::mem::replace(&mut self.named, named);
        let named: HashSet<&SecretKey> = self.named.iter().collect();
        for gone in before.iter().filter(|secret| !named.contains(secret)) {
            self.of.certificates.set(gone, None);
            self.is_broken(gone, false);
        }
        self.objects.keep(USER, |key: &ObjectKey| {
            named.contains(&SecretKey { namespace: key.namespace.clone(), name: key.name.clone() })
        });
        self.read_all();
    }

    fn read_all(&mut self) {
        for secret in &self.named {
            self.reads.push(self.reading(secret.clone()));
        }
    }

    fn reading(&self, secret: SecretKey) -> BoxFuture<'static, Read> {
        let objects = self.objects.clone();
        let key = ObjectKey { kind: Kind::Secret, namespace: secret.namespace.clone(), name: secret.name.clone() };
        Box::pin(async move {
            let read = objects.read(&key, &Arc::from(USER)).await;
            (secret, read)
        })
    }

    fn take(&mut self, secret: SecretKey, read: Result<Option<Arc<Content>>, ReadError>) {
        if !self.named.contains(&secret) {
            return;
        }
        let is_broken = match read {
            Ok(Some(content)) => match certificate(&content) {
                Ok(certificate) => {
                    self.of.certificates.set(&secret, Some(certificate));
                    false
                }
                // What was there before it was changed is better than nothing.
                Err(why) => {
                    tracing::debug!(namespace = %secret.namespace, secret = %secret.name, why, "a secret has no certificate");
                    true
                }
            },
            Ok(None) => {
                self.of.certificates.set(&secret, None);
                true
            }
            // Nobody would tell when it is there.
            Err(ReadError::TimedOut(_)) => return self.reads.push(self.reading(secret)),
            Err(error) => {
                tracing::warn!(namespace = %secret.namespace, secret = %secret.name, %error, "a certificate of a Gateway cannot be read");
                true
            }
        };
        self.is_broken(&secret, is_broken);
    }

    fn is_broken(&self, secret: &SecretKey, is_broken: bool) {
        let key = (secret.namespace.clone(), secret.name.clone());
        self.broken.send_if_modified(|all| if is_broken { all.insert(key) } else { all.remove(&key) });
    }
}
