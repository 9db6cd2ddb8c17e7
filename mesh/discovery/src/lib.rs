//! What Services there are and which endpoints are ready, and which Service a request from outside is for, as immutable snapshots.
//!
//! One task watches Services and EndpointSlices of the whole cluster ([`Discovery::run`]). What changed in the same moment
//! becomes one new [`Snapshot`], in which Services that did not change are the same values as before. Readers take the
//! latest snapshot without a lock; when the API server is gone they keep the last one.
//!
//! Ingresses are followed by a task of their own ([`Ingresses::run`]), where somebody serves them; what they say is a route table
//! ([`RouteTable`]) that knows nothing of them.
//!
//! So are Gateways and their routes ([`Gateways::run`]): they compile to the same tables, one for each listener.
//!
//! NetworkPolicies are followed by another ([`Policies::run`]), whose table says who may connect to whom.
//!
//! Balancing and connections are the proxy's affair.

mod again;
mod asked;
mod balanced;
mod gateways;
mod ingress;
mod name;
mod policies;
mod routes;
mod snapshot;
mod table;
mod words;

use std::sync::Arc;

use arc_swap::ArcSwap;
use futures::stream::SelectAll;
use futures::{FutureExt, Stream, StreamExt};
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Api;
use kube::runtime::{WatchStreamExt, watcher};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use again::Again;
pub use asked::{Asked, MATCHED_BYTES_MAX, TooLong};
pub use coracle_gateway as gateway_api;
pub use coracle_policy::Protocol;
pub use gateways::{Gateways, Listener, PortRoutes, Ports, Wants};
pub use ingress::{Ingress, Ingresses, Problem, Routing, SecretKey, Told};
pub use policies::Policies;
pub use routes::{Backend, Claim, Options, Origin, PortName, Route, RouteTable};
pub use snapshot::{ACTIVATES, Balanced, Endpoint, Port, Resolved, Service, ServiceKind, Snapshot, Traffic};
use table::{Change, Table};

/// Changes that are taken together into one snapshot, so that a storm does not make one snapshot for each of its events.
const BATCH: usize = 1024;

/// Watches Services and EndpointSlices. Clones share the snapshot.
#[derive(Clone)]
pub struct Discovery {
    client: kube::Client,
    snapshot: Arc<ArcSwap<Snapshot>>,
    generation: watch::Sender<u64>,
    synced: watch::Sender<bool>,
}

impl Discovery {
    /// Knows nothing until [`Discovery::run`] does.
    pub fn new(client: kube::Client) -> Discovery {
        Discovery {
            client,
            snapshot: Arc::new(ArcSwap::from_pointee(Snapshot::default())),
            generation: watch::Sender::new(0),
            synced: watch::Sender::new(false),
        }
    }

    /// The latest state.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    /// The generation of the latest snapshot, to wait for the next.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    /// Waits until the first lists are in.
    pub async fn synced(&self) {
        let mut synced = self.synced.subscribe();
        // The sender lives as long as `self`.
        let _ = synced.wait_for(|synced| *synced).await;
    }

    /// Watches until shutdown.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut changes = SelectAll::new();
        changes.push(services(self.client.clone()).boxed());
        changes.push(slices(self.client.clone()).boxed());
        let mut table = Table::default();
        loop {
            // Waiting is all that is cut here.
            let first = tokio::select! {
                change = changes.next() => change,
                () = shutdown.cancelled() => return,
            };
            let Some(first) = first else { return };
            table.take(first);
            for _ in 1..BATCH {
                match changes.next().now_or_never() {
                    Some(Some(change)) => table.take(change),
                    _ => break,
                }
            }
            // Half a list would look as if everything else were gone.
            if !table.is_listed() {
                continue;
            }
            let snapshot = table.snapshot(&self.snapshot.load());
            let generation = snapshot.generation;
            self.snapshot.store(Arc::new(snapshot));
            self.generation.send_replace(generation);
            self.synced.send_replace(true);
        }
    }
}

fn services(client: kube::Client) -> impl Stream<Item = Change> + Send {
    let events = watcher(Api::<core::Service>::all(client), watcher::Config::default()).backoff(Again::new());
    events.filter_map(|event| async {
        match event {
            Ok(watcher::Event::Init) => Some(Change::ServicesInit),
            Ok(watcher::Event::InitApply(service) | watcher::Event::Apply(service)) => {
                Some(Change::Service(service.into()))
            }
            Ok(watcher::Event::InitDone) => Some(Change::ServicesListed),
            Ok(watcher::Event::Delete(service)) => Some(Change::ServiceGone(service.into())),
            Err(error) => {
                tracing::debug!(%error, "watch services");
                None
            }
        }
    })
}

fn slices(client: kube::Client) -> impl Stream<Item = Change> + Send {
    let events = watcher(Api::<EndpointSlice>::all(client), watcher::Config::default()).backoff(Again::new());
    events.filter_map(|event| async {
        match event {
            Ok(watcher::Event::Init) => Some(Change::SlicesInit),
            Ok(watcher::Event::InitApply(slice) | watcher::Event::Apply(slice)) => Some(Change::Slice(slice.into())),
            Ok(watcher::Event::InitDone) => Some(Change::SlicesListed),
            Ok(watcher::Event::Delete(slice)) => Some(Change::SliceGone(slice.into())),
            Err(error) => {
                tracing::debug!(%error, "watch endpoint slices");
                None
            }
        }
    })
}
