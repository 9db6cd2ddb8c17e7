//! What other API servers say of themselves: their resources, and the documents that describe them. Every server asks for it.
//!
//! Documents may be large: they are read one after the other, and only where they are others than those that were read.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Weak};
use std::time::Duration;

use coracle_api::codec::json;
use coracle_keyspace::WatchEnded;
use futures::stream::{self, StreamExt};
use http::{HeaderName, StatusCode, header};
use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{ANSWERS_WITHIN, ASKS_AS, AT_A_TIME};
use crate::aggregation::{Backend, COLLECTION, Documents, OPENAPI_BYTES_MAX, resources_of, spec_of};
use crate::cluster::Cluster;
use crate::relay::{self, Question, Read};
use crate::request::negotiate::JSON;
use crate::server::Shared;

/// How long it holds what one has said, and that it has said nothing that is understood: that may be as many bytes.
const GOOD_FOR: Duration = Duration::from_secs(60);
const BAD_FOR: Duration = Duration::from_secs(10);
/// How long it holds at least, whatever changes of its APIService.
const HOLDS_MIN: Duration = Duration::from_secs(1);
/// Bytes of an answer about resources.
const DISCOVERY_BYTES_MAX: usize = 4 << 20;

/// Asks other servers what they serve, when an APIService changes and now and then, until the server stops.
pub(crate) async fn hear(server: Weak<Shared>, stopping: CancellationToken) {
    let documents = Queue::default();
    tokio::select! {
        () = ask_all(&server, &documents) => {}
        () = read_all(&server, &documents) => {}
        () = stopping.cancelled() => {}
    }
}

async fn ask_all(server: &Weak<Shared>, documents: &Queue) {
    let mut asked = Asked::default();
    loop {
        let Some(alive) = server.upgrade() else { return };
        let keyspace = alive.cluster.store.keyspace.clone();
        let after = keyspace.revision();
        let next = asked.round(&alive.cluster, documents).await;
        // A server that is dropped is not kept alive by this.
        drop(alive);
        let changed = async {
            // What is forgotten has changed.
            let Ok(mut watcher) = keyspace.watch(COLLECTION, after) else { return };
            if let Err(WatchEnded::Stopped) = watcher.next().await {
                std::future::pending().await
            }
        };
        let due = async {
            match next {
                Some(next) => tokio::time::sleep_until(next).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = changed => {}
            () = due => {}
        }
    }
}

/// When one was asked last, and what its APIService was then.
struct Last {
    backend: Arc<Backend>,
    at: Instant,
    /// Whether it has said what it serves.
    is_good: bool,
}

impl Last {
    /// When it is asked again.
    fn next(&self, backend: &Arc<Backend>) -> Instant {
        let holds = match Arc::ptr_eq(&self.backend, backend) {
            true if self.is_good => GOOD_FOR,
            true => BAD_FOR,
            false => HOLDS_MIN,
        };
        self.at + holds
    }
}

#[derive(Default)]
struct Asked(BTreeMap<Arc<str>, Last>);

impl Asked {
    /// Asks those whose turn it is; says when the next turn is.
    async fn round(&mut self, cluster: &Cluster, documents: &Queue) -> Option<Instant> {
        let configured = cluster.backends.now().await;
        cluster.backends.forget_others(&configured);
        let (there, gone): (Vec<_>, Vec<_>) = configured.all().cloned().partition(|backend| backend.is_available);
        for backend in gone {
            cluster.backends.remember(&backend.name, |told| told.is_current = false);
        }
        let mut before = std::mem::take(&mut self.0);
        let (mut due, now) = (Vec::new(), Instant::now());
        for backend in &there {
            match before.remove(&backend.name) {
                Some(last) if last.next(backend) > now => drop(self.0.insert(backend.name.clone(), last)),
                _ => due.push(backend.clone()),
            }
        }
        let asked = stream::iter(due).map(|backend| async move {
            let is_good = ask(cluster, &backend).await;
            documents.push(&backend);
            (backend.name.clone(), Last { backend, at: Instant::now(), is_good })
        });
        self.0.extend(asked.buffer_unordered(AT_A_TIME).collect::<Vec<_>>().await);
        there.iter().filter_map(|backend| Some(self.0.get(&backend.name)?.next(backend))).min()
    }
}

/// An answer at a path, of so many bytes at most.
async fn get(
    cluster: &Cluster,
    backend: &Backend,
    path: &str,
    headers: &[(HeaderName, String)],
    most: usize,
) -> Option<Read> {
    let question = Question { who: ASKS_AS, path, headers, most: Some(most), within: ANSWERS_WITHIN };
    relay::fetch(cluster, backend, question).await.ok()
}

/// What is read of a JSON document; none where there is none. It is read aside: it may be large, and is somebody else's.
async fn parsed<T: Send + 'static>(
    backend: &Arc<Backend>,
    answer: Read,
    read: impl FnOnce(&Value, &Backend) -> Option<T> + Send + 'static,
) -> Option<T> {
    if answer.code != StatusCode::OK {
        return None;
    }
    let of = backend.clone();
    coracle_keyspace::spawn_blocking(move || read(&json::parse(&answer.body).ok()?, &of)).await.ok()?
}

/// The same at a path.
async fn document<T: Send + 'static>(
    cluster: &Cluster,
    backend: &Arc<Backend>,
    path: &str,
    accept: &str,
    read: impl FnOnce(&Value, &Backend) -> Option<T> + Send + 'static,
) -> Option<T> {
    let accept = [(header::ACCEPT, accept.to_owned())];
    let answer = get(cluster, backend, path, &accept, DISCOVERY_BYTES_MAX).await?;
    parsed(backend, answer, read).await
}

/// Asks what a server serves, and by what its documents are told from others. What it does not say is as it was. Says whether
/// it said what it serves.
async fn ask(cluster: &Cluster, backend: &Arc<Backend>) -> bool {
    let at = format!("/apis/{}/{}", backend.group, backend.version);
    let aggregated = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    let resources = |document: &Value, of: &Backend| resources_of(document, &of.group, &of.version);
    let found = match document(cluster, backend, "/apis", aggregated, resources).await {
        Some(found) => Some(found),
        None => document(cluster, backend, &at, JSON, resources).await,
    };
    let hash = |index: &Value, of: &Backend| {
        let url = index["paths"][format!("apis/{}/{}", of.group, of.version)]["serverRelativeURL"].as_str();
        Some(url.map(|url| url.split_once("hash=").map_or("", |(_, hash)| hash).to_owned()))
    };
    let v3_hash = document(cluster, backend, "/openapi/v3", JSON, hash).await;
    cluster.backends.remember(&backend.name, |told| {
        told.is_current = found.is_some();
        if let Some(resources) = &found {
            told.resources.clone_from(resources);
        }
        if let Some(hash) = &v3_hash {
            told.v3_hash.clone_from(hash);
        }
    });
    found.is_some()
}

/// Servers whose `/openapi/v2` is to be read.
#[derive(Default)]
struct Queue {
    waiting: Mutex<VecDeque<Arc<Backend>>>,
    more: Notify,
}

impl Queue {
    /// Each is there once, as it is now.
    fn push(&self, backend: &Arc<Backend>) {
        let mut waiting = self.waiting.lock();
        match waiting.iter_mut().find(|known| known.name == backend.name) {
            Some(known) => *known = backend.clone(),
            None => waiting.push_back(backend.clone()),
        }
        self.more.notify_one();
    }

    async fn next(&self) -> Arc<Backend> {
        loop {
            let next = self.waiting.lock().pop_front();
            match next {
                Some(next) => return next,
                // What came meanwhile is remembered there.
                None => self.more.notified().await,
            }
        }
    }
}

async fn read_all(server: &Weak<Shared>, documents: &Queue) {
    loop {
        let backend = documents.next().await;
        let Some(alive) = server.upgrade() else { return };
        read(&alive.cluster, &backend).await;
    }
}

/// Reads a server's part of `/openapi/v2`, unless it is what was read.
async fn read(cluster: &Cluster, backend: &Arc<Backend>) {
    let known = cluster.backends.heard().get(&backend.name).cloned().unwrap_or_default();
    if known.has_read_v2() {
        return;
    }
    let mut headers = vec![(header::ACCEPT, JSON.to_owned())];
    headers.extend(known.v2_of.etag.clone().map(|etag| (header::IF_NONE_MATCH, etag)));
    let Some(answer) = get(cluster, backend, "/openapi/v2", &headers, OPENAPI_BYTES_MAX).await else { return };
    let v3_hash = &known.v3_hash;
    if answer.code == StatusCode::NOT_MODIFIED {
        cluster.backends.remember(&backend.name, |told| told.v2_of.v3_hash.clone_from(v3_hash));
        return;
    }
    let etag = answer.headers.get(header::ETAG).and_then(|etag| etag.to_str().ok()).map(str::to_owned);
    let of = Documents { etag, v3_hash: v3_hash.clone() };
    let spec = |document: &Value, of: &Backend| Some(spec_of(document, &of.group, &of.version));
    if let Some(spec) = parsed(backend, answer, spec).await {
        cluster.backends.remember(&backend.name, |told| {
            told.v2.clone_from(&spec);
            told.v2_of.clone_from(&of);
        });
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::aggregation::backend_of;

    #[test]
    fn what_one_says_holds_until_its_time_is_up_or_its_api_service_changes() {
        let backend =
            || Arc::new(backend_of("v1.e.com", &json!({"spec": {"service": {}, "group": "e.com", "version": "v1"}})));
        let (one, other) = (backend(), backend());
        for (is_good, holds) in [(true, GOOD_FOR), (false, BAD_FOR)] {
            let last = Last { backend: one.clone(), at: Instant::now(), is_good };
            assert_eq!(last.next(&one) - last.at, holds);
            assert_eq!(last.next(&other) - last.at, HOLDS_MIN);
        }
    }

    #[tokio::test]
    async fn each_waits_once_for_its_documents_to_be_read() {
        let queue = Queue::default();
        let named = |name: &str| {
            Arc::new(backend_of(name, &json!({"spec": {"service": {}, "group": "e.com", "version": "v1"}})))
        };
        let (first, second, newer) = (named("a"), named("b"), named("a"));
        [&first, &second, &newer].into_iter().for_each(|backend| queue.push(backend));
        assert!(Arc::ptr_eq(&queue.next().await, &newer));
        assert!(Arc::ptr_eq(&queue.next().await, &second));
        assert!(futures::poll!(std::pin::pin!(queue.next())).is_pending());
    }
}
