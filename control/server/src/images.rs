//! The registry among several servers: its catalog is a collection of the keyspace, and its contents go over streams between
//! members, as HTTP.
//!
//! The registry knows neither: it is lent [`Catalog`] and [`Replicas`]. One connection carries one request, so nothing large stands
//! before anything else, and whoever gives up closes it.

use std::io;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use coracle_keyspace::{Called, Counted, Guard, Key, Keyspace, Op, Record, TransactError, Value, WatchEnded, Watcher};
use coracle_registry::{
    Caller, Catalog, CatalogError, Change, Electorate, Entry, Only, Registry, Replica, Replicas, To,
};
use futures::future::{BoxFuture, FutureExt as _};
use http::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::{Mutex, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;

/// The collection that holds the catalog. No kind of object has a name with a blank.
const IMAGES: &str = "coracle images";
/// How long a request from another server may take in all: more than any content needs.
const REQUEST_MAX: Duration = Duration::from_secs(3_600);
/// How long a server may take to say what it wants.
const HEAD_MAX: Duration = Duration::from_secs(10);

/// How long after it could not be complete a server tries again.
const AGAIN: Duration = Duration::from_secs(2);

/// What the registry is lent.
pub struct Images {
    keyspace: Keyspace,
    tasks: TaskTracker,
    watcher: Mutex<Option<Watcher>>,
}

impl Images {
    pub fn new(keyspace: Keyspace, tasks: TaskTracker) -> Arc<Images> {
        Arc::new(Images { keyspace, tasks, watcher: Mutex::default() })
    }
}

/// A record's text is its first line; its revision stands in the next.
fn entry(record: &Record) -> Entry {
    let text = record.bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
    Entry { text: String::from_utf8_lossy(text).into_owned(), version: record.revision.get() }
}

fn op(Change { key, only, to }: Change) -> Op {
    let key = Key::new(IMAGES, key);
    let guard = match only {
        Only::Always => Guard::None,
        Only::Absent => Guard::Absent,
        Only::Version(version) => Guard::Revision(coracle_keyspace::Revision::new(version)),
    };
    match to {
        To::Text(text) => {
            let bytes = Bytes::from(format!("{text}\n"));
            Op::Put { key, value: Value { revision_at: bytes.len(), bytes }, guard }
        }
        To::Gone => Op::Delete { key, guard },
        To::Same => Op::Check { key, guard },
    }
}

impl Catalog for Images {
    fn current(&self) -> BoxFuture<'_, Result<(), CatalogError>> {
        let barrier = self.keyspace.barrier();
        barrier.map(|done| done.map(drop).map_err(|error| CatalogError::Unavailable(error.to_string()))).boxed()
    }

    fn get(&self, key: &str) -> Option<Entry> {
        self.keyspace.get(IMAGES, key).map(|record| entry(&record))
    }

    fn list(&self, prefix: &str) -> Vec<(String, Entry)> {
        let records = self.keyspace.snapshot(IMAGES).records;
        let from = Arc::<str>::from(prefix);
        let all = records.range(from..).take_while(|(key, _)| key.starts_with(prefix));
        all.map(|(key, record)| (key.to_string(), entry(record))).collect()
    }

    fn names(&self, prefix: &str, after: &str, most: usize) -> Vec<String> {
        let records = self.keyspace.snapshot(IMAGES).records;
        let from = match after < prefix {
            true => Bound::Included(Arc::from(prefix)),
            false => Bound::Excluded(Arc::from(after)),
        };
        let all = records.range::<_, Arc<str>>((from, Bound::Unbounded)).take_while(|(key, _)| key.starts_with(prefix));
        all.take(most).map(|(key, _)| key.to_string()).collect()
    }

    fn change(&self, changes: Vec<Change>, counted: Option<u64>) -> BoxFuture<'_, Result<(), CatalogError>> {
        let condition = counted.map(Counted::condition);
        let is_counted = condition.is_some();
        let done = self.keyspace.transact(condition.into_iter().chain(changes.into_iter().map(op)).collect());
        let refused = move |error| match error {
            TransactError::Guard(failed) if is_counted && failed.op == 0 => CatalogError::Recounted,
            TransactError::Guard(_) => CatalogError::Condition,
            TransactError::TooLarge { .. } => CatalogError::TooLarge,
            TransactError::NoRoom(room) => CatalogError::NoRoom(room.to_string()),
            TransactError::Unknown => CatalogError::Unknown,
            error => CatalogError::Unavailable(error.to_string()),
        };
        done.map(move |done| done.map(drop).map_err(refused)).boxed()
    }

    fn changed(&self) -> BoxFuture<'_, ()> {
        async {
            let mut watcher = self.watcher.lock().await;
            let Some(watching) = watcher.as_mut() else {
                // What came before was not seen: that counts as a change.
                *watcher = self.keyspace.watch(IMAGES, self.keyspace.revision()).ok();
                return;
            };
            match watching.next().await {
                Ok(_) => (),
                Err(WatchEnded::Compacted(_)) => *watcher = None,
                // Nothing changes any more.
                Err(WatchEnded::Stopped) => std::future::pending().await,
            }
        }
        .boxed()
    }
}

impl Replicas for Images {
    fn members(&self) -> Vec<Replica> {
        let own = self.keyspace.member();
        let members = self.keyspace.members().into_iter();
        members.map(|member| Replica { member: member.member, own: member.member == own }).collect()
    }

    fn electorate(&self) -> Electorate {
        let Counted { sets, version } = self.keyspace.counted();
        Electorate { sets, version }
    }

    fn call(&self, to: u64, request: Request<Body>) -> BoxFuture<'static, io::Result<Response<Body>>> {
        let (keyspace, tasks) = (self.keyspace.clone(), self.tasks.clone());
        async move { call(&keyspace, &tasks, to, request).await }.boxed()
    }
}

/// Asks another server what it serves to servers.
pub async fn call(
    keyspace: &Keyspace,
    tasks: &TaskTracker,
    to: u64,
    mut request: Request<Body>,
) -> io::Result<Response<Body>> {
    let stream = keyspace.stream(to).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    // It ends with the answer, or with whoever wanted it.
    tasks.spawn(connection);
    let host = http::HeaderValue::from_static("coracle");
    request.headers_mut().insert(http::header::HOST, host);
    let answer = sender.send_request(request).await.map_err(io::Error::other)?;
    Ok(answer.map(Body::new))
}

/// Says that this server has all images, whenever that is asked: before it counts, and before others do beside it. A majority that has
/// an image is one of servers that have it.
pub async fn complete(registry: Registry, keyspace: Keyspace, stop: CancellationToken) {
    let work = async {
        let (mut told, mut group) = (None, keyspace.watch_group());
        loop {
            let done = match (keyspace.keeps_more().await, keyspace.incomplete()) {
                (Err(error), _) => Err(error.to_string()),
                (Ok(()), None) => Ok(()),
                (Ok(()), Some(asked)) => match registry.complete().await {
                    Ok(()) => keyspace.complete(asked).await.map_err(|error| error.to_string()),
                    Err(why) => Err(why),
                },
            };
            if let Err(why) = done {
                if told.as_ref() != Some(&why) {
                    tracing::warn!(
                        why,
                        "this server lacks images, or cannot say that it has them: it does not count before"
                    );
                }
                told = Some(why);
                tokio::time::sleep(AGAIN).await;
                continue;
            }
            told = None;
            if keyspace.incomplete().is_some() {
                continue;
            }
            group = match group {
                Some(mut watching) => match watching.next().await {
                    Ok(_) => Some(watching),
                    Err(WatchEnded::Compacted(_)) => keyspace.watch_group(),
                    // Nothing changes any more.
                    Err(WatchEnded::Stopped) => return,
                },
                None => {
                    tokio::time::sleep(AGAIN).await;
                    keyspace.watch_group()
                }
            };
        }
    };
    // What was fetched stays.
    tokio::select! {
        () = work => (),
        () = stop.cancelled() => (),
    }
}

/// Serves what other servers ask with `router`, until `stop`.
pub async fn serve(mut called: mpsc::Receiver<Called>, router: Router, stop: CancellationToken) {
    let tasks = TaskTracker::new();
    loop {
        let called = tokio::select! {
            called = called.recv() => called,
            () = stop.cancelled() => None,
        };
        let Some(called) = called else { break };
        let (router, stop) = (router.clone(), stop.clone());
        tasks.spawn(async move {
            let from = called.from;
            // What is cut here is asked for again.
            let served = tokio::select! {
                served = tokio::time::timeout(REQUEST_MAX, answer(called, router)) => served,
                () = stop.cancelled() => return,
            };
            if let Ok(Err(error)) = served {
                tracing::debug!(%error, from, "a request of another server ended");
            }
        });
    }
    tasks.close();
    tasks.wait().await;
}

async fn answer(called: Called, router: Router) -> hyper::Result<()> {
    let Called { from, stream, .. } = called;
    let service = hyper::service::service_fn(move |mut request: Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(Caller(from));
        router.clone().oneshot(request)
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_MAX).keep_alive(false);
    http.serve_connection(TokioIo::new(stream), service).await
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn the_catalog_is_a_collection_of_the_keyspace() {
        let dir = tempfile::tempdir().unwrap();
        let keyspace = Keyspace::open(coracle_keyspace::Config::new(dir.path())).await.unwrap();
        let images = Images::new(keyspace.clone(), TaskTracker::new());
        images.changed().await;
        let change = |key: &str, only, to| Change { key: key.into(), only, to };
        let text = |text: &str| To::Text(text.into());
        let first = vec![change("tag a x", Only::Absent, text("one")), change("tag ab x", Only::Always, text(""))];
        images.change(first, None).await.unwrap();
        tokio::time::timeout(Duration::from_secs(10), images.changed()).await.expect("it is told");
        let found = images.get("tag a x").unwrap();
        assert_eq!(found.text, "one");
        assert_eq!(images.list("tag a "), [("tag a x".to_owned(), found.clone())]);
        assert_eq!(images.list("tag").len(), 2);
        // All or nothing, and only under the conditions.
        for condition in [Only::Absent, Only::Version(found.version + 1)] {
            let both = vec![change("other", Only::Always, text("x")), change("tag a x", condition, To::Same)];
            assert_eq!(images.change(both, None).await, Err(CatalogError::Condition));
        }
        assert_eq!(images.get("other"), None);
        let gone =
            vec![change("tag ab x", Only::Always, To::Gone), change("tag a x", Only::Version(found.version), To::Same)];
        images.change(gone, None).await.unwrap();
        assert_eq!((images.get("tag ab x"), images.get("tag a x")), (None, Some(found)));
        images.current().await.unwrap();
        let large = vec![change("large", Only::Always, To::Text("x".repeat(5 << 20)))];
        assert_eq!(images.change(large, None).await, Err(CatalogError::TooLarge));
        // Under the condition that those count who were asked.
        let Electorate { sets, version } = images.electorate();
        assert_eq!(sets, [BTreeSet::from([1])]);
        let named = || vec![change("layer a x", Only::Absent, text("1 1"))];
        assert_eq!(images.change(named(), Some(version + 1)).await, Err(CatalogError::Recounted));
        images.change(named(), Some(version)).await.unwrap();
        assert_eq!(images.change(named(), Some(version)).await, Err(CatalogError::Condition));
        keyspace.shutdown().await;
    }
}
