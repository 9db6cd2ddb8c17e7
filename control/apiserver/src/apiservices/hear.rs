//! What other API servers say of themselves: their resources, and the documents that describe them. Every server asks for it.
//!
//! Documents may be large: they are read one after the other, and only where they are others than those that were read.

use std::collections::{BTreeMap, HashMap, VecDeque};
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
use crate::aggregation::{Backend, COLLECTION, Documents, OPENAPI_BYTES_MAX, Told, resources_of, spec_of};
use crate::cluster::Cluster;
use crate::relay::{self, Question, Read};
use crate::request::negotiate::JSON;
use crate::server::Shared;

/// How long it holds what one has said, and that it has said nothing that is understood: that may be as many bytes.
const GOOD_FOR: Duration = Duration::from_secs(60);
const BAD_FOR: Duration = Duration::from_secs(10);
/// How long it holds at least, whatever changes of its APIService.
const HOLDS_MIN: Duration = Duration::from_secs(1);
/// How long `/openapi/v2` is what it was while the document below `/openapi/v3` is: that is what two replicas of a server may have
/// answered, of which one was an older one.
const SAME_FOR: Duration = Duration::from_secs(600);
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
            // Of what is not understood there is no document to read.
            if is_good {
                documents.push(&backend);
            }
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

/// Asks what a server serves, and by what its documents are told from others, in [`ANSWERS_WITHIN`]: others wait for it. What it
/// does not say is as it was. Says whether it said what it serves.
async fn ask(cluster: &Cluster, backend: &Arc<Backend>) -> bool {
    let until = Instant::now() + ANSWERS_WITHIN;
    let found = tokio::time::timeout_at(until, resources(cluster, backend)).await.ok().flatten();
    cluster.backends.remember(&backend.name, |told| {
        told.is_current = found.is_some();
        if let Some(resources) = &found {
            told.resources.clone_from(resources);
        }
    });
    let hash = |index: &Value, of: &Backend| {
        let url = index["paths"][format!("apis/{}/{}", of.group, of.version)]["serverRelativeURL"].as_str();
        Some(url.map(|url| url.split_once("hash=").map_or("", |(_, hash)| hash).to_owned()))
    };
    let v3_hash = tokio::time::timeout_at(until, document(cluster, backend, "/openapi/v3", JSON, hash)).await;
    if let Some(hash) = v3_hash.ok().flatten() {
        cluster.backends.remember(&backend.name, |told| told.v3_hash.clone_from(&hash));
    }
    found.is_some()
}

async fn resources(cluster: &Cluster, backend: &Arc<Backend>) -> Option<Vec<Value>> {
    let aggregated = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    let read = |document: &Value, of: &Backend| resources_of(document, &of.group, &of.version);
    match document(cluster, backend, "/apis", aggregated, read).await {
        Some(found) => Some(found),
        None => {
            let at = format!("/apis/{}/{}", backend.group, backend.version);
            document(cluster, backend, &at, JSON, read).await
        }
    }
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
    let mut when = When::default();
    loop {
        let backend = documents.next().await;
        let Some(alive) = server.upgrade() else { return };
        let heard = alive.cluster.backends.heard();
        when.0.retain(|name, _| heard.contains_key(name));
        let known = heard.get(&backend.name).cloned().unwrap_or_default();
        if when.is_due(&backend.name, &known, Instant::now()) && read(&alive.cluster, &backend, &known).await {
            when.0.insert(backend.name.clone(), Instant::now());
        }
    }
}

/// When which server has answered at `/openapi/v2`; of those that have told something.
#[derive(Default)]
struct When(HashMap<Arc<str>, Instant>);

impl When {
    fn is_due(&self, name: &str, known: &Told, now: Instant) -> bool {
        !known.has_read_v2() || self.0.get(name).is_none_or(|at| now >= *at + SAME_FOR)
    }
}

/// Reads a server's part of `/openapi/v2`, unless it says that it is what was read. Says whether it answered.
async fn read(cluster: &Cluster, backend: &Arc<Backend>, known: &Told) -> bool {
    let mut headers = vec![(header::ACCEPT, JSON.to_owned())];
    headers.extend(known.v2_of.etag.clone().map(|etag| (header::IF_NONE_MATCH, etag)));
    let Some(answer) = get(cluster, backend, "/openapi/v2", &headers, OPENAPI_BYTES_MAX).await else { return false };
    let v3_hash = &known.v3_hash;
    if answer.code == StatusCode::NOT_MODIFIED {
        cluster.backends.remember(&backend.name, |told| told.v2_of.v3_hash.clone_from(v3_hash));
        return true;
    }
    let etag = answer.headers.get(header::ETAG).and_then(|etag| etag.to_str().ok()).map(str::to_owned);
    let of = Documents { etag, v3_hash: v3_hash.clone() };
    let spec = |document: &Value, of: &Backend| Some(spec_of(document, &of.group, &of.version));
    let Some(spec) = parsed(backend, answer, spec).await else { return false };
    cluster.backends.remember(&backend.name, |told| {
        told.v2.clone_from(&spec);
        told.v2_of.clone_from(&of);
    });
    true
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

    #[test]
    fn documents_are_taken_to_be_the_same_for_a_while_only() {
        let hash = Some("ABC".to_owned());
        let v2_of = Documents { etag: None, v3_hash: hash.clone() };
        let known = Told { v3_hash: hash, v2_of, ..Told::default() };
        let (mut when, now) = (When::default(), Instant::now());
        assert!(when.is_due("a", &known, now));
        when.0.insert("a".into(), now);
        assert!(!when.is_due("a", &known, now + SAME_FOR - Duration::from_secs(1)));
        assert!(when.is_due("a", &known, now + SAME_FOR));
        let newer = Told { v3_hash: Some("DEF".to_owned()), ..known };
        assert!(when.is_due("a", &newer, now));
    }
}
