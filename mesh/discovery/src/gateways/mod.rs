//! Gateways of our classes and the HTTPRoutes and GRPCRoutes that are attached to them, as routes of ports (`coracle_gateway` says what they mean).
//!
//! One task follows them ([`Gateways::run`]), while their definitions are there: people install those themselves, or do not. What changed
//! in the same moment becomes one new [`Ports`]. All of it is made anew with each change that means something, which its bound allows
//! (`Objects::resolve`); changes that come soon after one another are taken together.

mod compile;
mod follow;

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use coracle_gateway::{Known, Protocol};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use self::follow::Change;
use crate::asked::{Asked, TooLong};
use crate::routes::{ByHost, Claim, Route, RouteTable};
use crate::{BATCH, SecretKey};

/// After a change, others are waited for so long.
const SETTLE: Duration = Duration::from_millis(20);
/// Changes that are not taken yet.
const CHANGES_MAX: usize = 1024;

/// Where requests go, by the port at which they come in.
#[derive(Debug, Clone, Default)]
pub struct Ports {
    /// Grows by one with each; 0 while nothing is known.
    pub generation: u64,
    ports: BTreeMap<u16, PortRoutes>,
}

impl Ports {
    /// What a port is for.
    pub fn get(&self, port: u16) -> Option<&PortRoutes> {
        self.ports.get(&port)
    }

    /// All ports.
    pub fn all(&self) -> impl Iterator<Item = (u16, &PortRoutes)> {
        self.ports.iter().map(|(number, port)| (*number, port))
    }

    /// All Secrets whose certificates are shown, each once, those of the oldest Gateways first.
    pub fn all_secrets(&self) -> impl Iterator<Item = &SecretKey> {
        let listeners = self.ports.values().flat_map(|port| port.listeners.all());
        let mut all: Vec<_> = listeners
            .flat_map(|listener| listener.secrets.iter().map(|secret| (listener.claim.since(), secret)))
            .collect();
        all.sort_unstable_by_key(|(since, secret)| (*since, &secret.namespace, &secret.name));
        let mut seen = HashSet::new();
        all.into_iter().map(|(_, secret)| secret).filter(move |secret| seen.insert(*secret))
    }
}

/// Who wants a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wants {
    /// The place of its oldest Gateway there among all, the older ones first.
    pub age: usize,
    /// The namespace of its Gateways.
    pub namespace: Arc<str>,
}

/// Where requests go that come in at a port.
#[derive(Debug, Clone)]
pub struct PortRoutes {
    /// What is spoken there.
    pub protocol: Protocol,
    /// Who wants it: each namespace once, that of the oldest Gateway first.
    pub wanted_by: Vec<Wants>,
    /// By their hosts.
    listeners: ByHost<Arc<Listener>>,
}

impl PortRoutes {
    /// The listener for a host, in lower case, without a port: that with the most precise host. One with TLS is served while one of its
    /// Secrets has a certificate.
    pub fn listener(&self, host: &str, has_certificate: impl Fn(&SecretKey) -> bool) -> Option<&Arc<Listener>> {
        let is_served =
            |of: &&Arc<Listener>| self.protocol != Protocol::Https || of.secrets.iter().any(&has_certificate);
        self.listeners.get(host).find(is_served)
    }
}

/// A listener, of all Gateways that have it.
#[derive(Debug)]
pub struct Listener {
    /// Whose certificates may be shown.
    pub secrets: Arc<[SecretKey]>,
    routes: RouteTable,
    claim: Claim,
    /// By the hosts of routes.
    claims: ByHost<Claim>,
}

impl Listener {
    /// The route of a request. `host` is in lower case, without a port.
    pub fn find(&self, host: &str, asked: &Asked<'_>) -> Result<Option<&Arc<Route>>, TooLong> {
        self.routes.find_for(host, asked)
    }

    /// By what it has a name, in lower case.
    pub fn claim(&self, name: &str) -> Claim {
        self.claims.get(name).next().copied().unwrap_or(self.claim)
    }
}

/// Watches Gateways and all that belongs to them. Clones share what is known.
#[derive(Clone)]
pub struct Gateways {
    client: kube::Client,
    ports: Arc<ArcSwap<Ports>>,
    generation: watch::Sender<u64>,
}

impl Gateways {
    /// Knows nothing until [`Gateways::run`] does.
    pub fn new(client: kube::Client) -> Gateways {
        Gateways { client, ports: Arc::default(), generation: watch::Sender::new(0) }
    }

    /// The latest state.
    pub fn ports(&self) -> Arc<Ports> {
        self.ports.load_full()
    }

    /// The generation of the latest, to wait for the next.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    /// Watches until shutdown.
    pub async fn run(self, shutdown: CancellationToken) {
        let (changes, mut changed) = mpsc::channel::<Change>(CHANGES_MAX);
        let follow = follow::run(self.client.clone(), changes);
        let take = async {
            let mut known = Known::default();
            // Whether the latest ports are not what is known.
            let mut is_new = false;
            while let Some(first) = changed.recv().await {
                is_new |= follow::take(&mut known, first);
                tokio::time::sleep(SETTLE).await;
                for _ in 1..BATCH {
                    match changed.try_recv() {
                        Ok(change) => is_new |= follow::take(&mut known, change),
                        Err(_) => break,
                    }
                }
                if !known.is_complete() || !std::mem::take(&mut is_new) {
                    continue;
                }
                let generation = self.ports.load().generation + 1;
                // Expressions take a while, and this thread has others to serve.
                let compiled = tokio::task::spawn_blocking(move || {
                    let ports = compile::compile(&known.objects.resolve(&|_, _| None), generation);
                    (known, ports)
                });
                let ports;
                (known, ports) = match compiled.await {
                    Ok(both) => both,
                    Err(error) => match error.try_into_panic() {
                        Ok(panic) => std::panic::resume_unwind(panic),
                        // The process ends.
                        Err(_) => return,
                    },
                };
                self.ports.store(Arc::new(ports));
                self.generation.send_replace(generation);
            }
        };
        // What is cut is rebuilt by the next start.
        tokio::select! {
            () = follow => {}
            () = take => {}
            () = shutdown.cancelled() => {}
        }
    }
}
