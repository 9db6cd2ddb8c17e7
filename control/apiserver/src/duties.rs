//! What one server does for all, that which leads: it looks at everything, and again whenever something of it changes.

use std::future::Future;
use std::sync::{Arc, Weak};
use std::time::Duration;

use coracle_api::status::Status;
use coracle_keyspace::{Keyspace, Revision, Watcher};
use futures::stream::{FuturesUnordered, StreamExt};
use tokio_util::sync::CancellationToken;

use crate::server::Shared;
use crate::store;

/// How long after a failure it is tried again.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// When it is looked again.
#[derive(Default)]
pub(crate) struct Again {
    /// When something of these collections changes.
    pub collections: Vec<String>,
    /// Also without a change: what depends on something outside.
    pub within: Option<Duration>,
}

impl From<Vec<String>> for Again {
    fn from(collections: Vec<String>) -> Again {
        Again { collections, within: None }
    }
}

/// Does a duty until the server stops, while this server leads. `who` has its turns; a round says when the next is.
pub(crate) async fn keep<F, R, A>(server: Weak<Shared>, stopping: CancellationToken, who: &'static str, round: F)
where
    F: Fn(Arc<Shared>) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Result<A, Status>> + Send + 'static,
    A: Into<Again> + Send + 'static,
{
    let Some(mut lead) = server.upgrade().map(|server| server.cluster.store.keyspace.lead()) else { return };
    loop {
        let now = *lead.borrow_and_update();
        let follow = async {
            match now {
                Some(now) => store::under(Some(now), again(&server, who, &round)).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = follow => return,
            changed = lead.changed() => if changed.is_err() { return },
            () = stopping.cancelled() => return,
        }
    }
}

/// Does it, and again whenever something changes; ends with the keyspace.
async fn again<F, R, A>(server: &Weak<Shared>, who: &'static str, round: &F)
where
    F: Fn(Arc<Shared>) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Result<A, Status>> + Send + 'static,
    A: Into<Again> + Send + 'static,
{
    loop {
        let Some(alive) = server.upgrade() else { return };
        let keyspace = alive.cluster.store.keyspace.clone();
        // What happens while it is looked at wakes the wait below.
        let after = keyspace.revision();
        // Looking at large objects is work as a request for them is.
        let (here, round) = (alive.clone(), round.clone());
        let work = store::under(store::lead(), async move { round(here).await });
        let outcome = alive.duty_lanes.run(who, work).await;
        // A server that is dropped is not kept alive by this.
        drop(alive);
        match outcome {
            Ok(next) => {
                let Again { collections, within } = next.into();
                let changed = changed(&keyspace, &collections, after);
                let goes_on = match within {
                    Some(within) => tokio::time::timeout(within, changed).await.unwrap_or(true),
                    None => changed.await,
                };
                if !goes_on {
                    return;
                }
            }
            Err(error) => {
                tracing::warn!(who, %error, "a duty cannot be done; it is tried again");
                tokio::time::sleep(AGAIN_AFTER).await;
            }
        }
    }
}

/// Waits for a change of one of these collections after a revision; `false` when the keyspace stops.
async fn changed(keyspace: &Keyspace, collections: &[String], after: Revision) -> bool {
    let wait = |collection: &String| keyspace.watch(collection, after).ok().map(next);
    let waits: Option<FuturesUnordered<_>> = collections.iter().map(wait).collect();
    // What is forgotten has changed.
    let Some(mut waits) = waits else { return true };
    waits.next().await.unwrap_or(true)
}

async fn next(mut watcher: Watcher) -> bool {
    use coracle_keyspace::WatchEnded;
    !matches!(watcher.next().await, Err(WatchEnded::Stopped))
}
