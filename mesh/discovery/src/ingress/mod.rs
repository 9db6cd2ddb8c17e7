//! Ingresses of our classes, as routes and as the Secrets that hold the certificates of hosts.
//!
//! One task follows Ingresses and IngressClasses ([`Ingresses::run`]); what changed in the same moment becomes one new [`Routing`].
//! What it finds to say of an Ingress it says to whoever serves them ([`Told`]).

mod options;
mod read;
mod table;

use std::sync::Arc;

use arc_swap::ArcSwap;
use futures::stream::SelectAll;
use futures::{FutureExt, Stream, StreamExt};
use k8s_openapi::api::networking::v1 as networking;
use kube::Api;
use kube::runtime::{WatchStreamExt, watcher};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use self::table::{Change, Table};
use crate::Again;
use crate::BATCH;
use crate::routes::{ByHost, Claim, Origin, RouteTable};

pub use self::read::Ingress;

/// `spec.controller` of classes that are ours.
const CONTROLLER: &str = "coracle.dev/ingress";

/// Names a Secret.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SecretKey {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

/// What somebody wrote in vain, for an event.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Problem {
    /// In a word.
    pub reason: &'static str,
    /// In words.
    pub message: String,
}

/// What happens with Ingresses of our classes.
#[derive(Debug, Clone)]
pub enum Told {
    /// It is served as it is now, whether it was served before or not.
    Served(Arc<Ingress>),
    /// It is served no more.
    Left(Arc<Origin>),
    /// Something about it has no effect.
    Problem(Arc<Origin>, Problem),
}

/// What all Ingresses say, at one moment.
#[derive(Debug, Clone, Default)]
pub struct Routing {
    /// Grows by one with each.
    pub generation: u64,
    /// Where requests go.
    pub routes: RouteTable,
    secrets: ByHost<SecretKey>,
    claims: ByHost<Claim>,
}

impl Routing {
    /// The Secret with the certificate of a server's name, in lower case: of that name, or a wildcard's, or the one for all others.
    pub fn secret(&self, server_name: &str) -> Option<&SecretKey> {
        self.secrets.get(server_name).next()
    }

    /// By what Ingresses have a name, in lower case.
    pub fn claim(&self, name: &str) -> Option<Claim> {
        self.claims.get(name).next().copied()
    }
}

/// Watches Ingresses and their classes. Clones share what is known.
#[derive(Clone)]
pub struct Ingresses {
    client: kube::Client,
    routing: Arc<ArcSwap<Routing>>,
    generation: watch::Sender<u64>,
}

impl Ingresses {
    /// Knows nothing until [`Ingresses::run`] does.
    pub fn new(client: kube::Client) -> Ingresses {
        Ingresses { client, routing: Arc::default(), generation: watch::Sender::new(0) }
    }

    /// The latest state.
    pub fn routing(&self) -> Arc<Routing> {
        self.routing.load_full()
    }

    /// The generation of the latest, to wait for the next.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    /// Watches until shutdown, or until nobody hears what is told. Waits for who hears it.
    pub async fn run(self, told: mpsc::Sender<Told>, shutdown: CancellationToken) {
        let follow = async {
            let mut changes = SelectAll::new();
            changes.push(classes(self.client.clone()).boxed());
            changes.push(ingresses(self.client.clone()).boxed());
            let mut table = Table::default();
            while let Some(first) = changes.next().await {
                table.take(first);
                for _ in 1..BATCH {
                    match changes.next().now_or_never() {
                        Some(Some(change)) => table.take(change),
                        _ => break,
                    }
                }
                if !table.is_listed() {
                    continue;
                }
                let routing = table.routing(&self.routing.load());
                let generation = routing.generation;
                self.routing.store(Arc::new(routing));
                self.generation.send_replace(generation);
                for what in table.told() {
                    if told.send(what).await.is_err() {
                        return;
                    }
                }
            }
        };
        // What is cut is rebuilt by the next start.
        tokio::select! {
            () = follow => {}
            () = shutdown.cancelled() => {}
        }
    }
}

fn classes(client: kube::Client) -> impl Stream<Item = Change> + Send {
    let events =
        watcher(Api::<networking::IngressClass>::all(client), watcher::Config::default()).backoff(Again::new());
    events.filter_map(|event| async {
        match event {
            Ok(watcher::Event::Init) => Some(Change::ClassesInit),
            Ok(watcher::Event::InitApply(class) | watcher::Event::Apply(class)) => Some(Change::Class(class.into())),
            Ok(watcher::Event::InitDone) => Some(Change::ClassesListed),
            Ok(watcher::Event::Delete(class)) => Some(Change::ClassGone(class.into())),
            Err(error) => {
                tracing::debug!(%error, "watch ingress classes");
                None
            }
        }
    })
}

fn ingresses(client: kube::Client) -> impl Stream<Item = Change> + Send {
    let events = watcher(Api::<networking::Ingress>::all(client), watcher::Config::default()).backoff(Again::new());
    events.filter_map(|event| async {
        match event {
            Ok(watcher::Event::Init) => Some(Change::IngressesInit),
            Ok(watcher::Event::InitApply(ingress) | watcher::Event::Apply(ingress)) => {
                Some(Change::Ingress(ingress.into()))
            }
            Ok(watcher::Event::InitDone) => Some(Change::IngressesListed),
            Ok(watcher::Event::Delete(ingress)) => Some(Change::IngressGone(ingress.into())),
            Err(error) => {
                tracing::debug!(%error, "watch ingresses");
                None
            }
        }
    })
}
