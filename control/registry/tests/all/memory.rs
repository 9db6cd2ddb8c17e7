//! A catalog in memory, which several registries may share, and a registry that is alone with one.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use axum::body::Body;
use futures::future::{BoxFuture, FutureExt};
use http::{Request, Response};
use tokio::sync::Notify;

use super::{Catalog, CatalogError, Change, Config, Electorate, Entry, Only, Registry, Replica, Replicas, To};

type Entries = (u64, BTreeMap<String, Entry>);

/// Keeps everything in memory, for as long as it is there. What is changed [beside](Memory::beside) it is not seen before somebody
/// waits for what is current, or is told that something changed: who forgets to wait for it is wrong then.
#[derive(Default)]
pub struct Memory {
    shared: Arc<Shared>,
    seen: Mutex<Entries>,
}

#[derive(Default)]
struct Shared {
    entries: Mutex<Entries>,
    changed: Notify,
    electorate: AtomicU64,
    /// Happens before the next change that is counted.
    before: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl Memory {
    /// The same catalog, on another server.
    pub fn beside(&self) -> Memory {
        let seen = self.shared.entries.lock().unwrap().clone();
        Memory { shared: self.shared.clone(), seen: Mutex::new(seen) }
    }

    /// The version of who counts.
    pub fn electorate(&self) -> u64 {
        self.shared.electorate.load(Ordering::SeqCst)
    }

    /// Others count from the next change on that is counted: `now` they do.
    #[allow(dead_code, reason = "only tests of several servers have others")]
    pub fn recount(&self, now: impl FnOnce() + Send + 'static) {
        *self.shared.before.lock().unwrap() = Some(Box::new(now));
    }

    fn see(&self) {
        let entries = self.shared.entries.lock().unwrap().clone();
        *self.seen.lock().unwrap() = entries;
    }
}

impl Catalog for Memory {
    fn current(&self) -> BoxFuture<'_, Result<(), CatalogError>> {
        self.see();
        std::future::ready(Ok(())).boxed()
    }

    fn get(&self, key: &str) -> Option<Entry> {
        self.seen.lock().unwrap().1.get(key).cloned()
    }

    fn list(&self, prefix: &str) -> Vec<(String, Entry)> {
        let entries = self.seen.lock().unwrap();
        let all = entries.1.iter().filter(|(key, _)| key.starts_with(prefix));
        all.map(|(key, entry)| (key.clone(), entry.clone())).collect()
    }

    fn names(&self, prefix: &str, after: &str, most: usize) -> Vec<String> {
        let entries = self.seen.lock().unwrap();
        let all = entries.1.keys().filter(|key| key.starts_with(prefix) && key.as_str() > after);
        all.take(most).cloned().collect()
    }

    fn change(&self, changes: Vec<Change>, counted: Option<u64>) -> BoxFuture<'_, Result<(), CatalogError>> {
        if let Some(counted) = counted {
            if let Some(now) = self.shared.before.lock().unwrap().take() {
                now();
                self.shared.electorate.fetch_add(1, Ordering::SeqCst);
            }
            if counted != self.electorate() {
                return std::future::ready(Err(CatalogError::Recounted)).boxed();
            }
        }
        let mut entries = self.shared.entries.lock().unwrap();
        let version = |entries: &BTreeMap<String, Entry>, key: &str| entries.get(key).map(|entry| entry.version);
        let holds = changes.iter().all(|change| match change.only {
            Only::Always => true,
            Only::Absent => version(&entries.1, &change.key).is_none(),
            Only::Version(wanted) => version(&entries.1, &change.key) == Some(wanted),
        });
        if !holds {
            return std::future::ready(Err(CatalogError::Condition)).boxed();
        }
        entries.0 += 1;
        for Change { key, to, .. } in changes {
            let version = entries.0;
            match to {
                To::Text(text) => drop(entries.1.insert(key, Entry { text, version })),
                To::Gone => drop(entries.1.remove(&key)),
                To::Same => (),
            }
        }
        drop(entries);
        self.see();
        self.shared.changed.notify_waiters();
        std::future::ready(Ok(())).boxed()
    }

    fn changed(&self) -> BoxFuture<'_, ()> {
        let changed = self.shared.changed.notified();
        let has_changed = self.seen.lock().unwrap().0 != self.shared.entries.lock().unwrap().0;
        async move {
            if !has_changed {
                changed.await;
            }
            self.see();
        }
        .boxed()
    }
}

/// The only server there is.
struct Alone;

impl Replicas for Alone {
    fn members(&self) -> Vec<Replica> {
        vec![Replica { member: 1, own: true }]
    }

    fn electorate(&self) -> Electorate {
        Electorate { sets: vec![[1].into()], version: 0 }
    }

    fn call(&self, to: u64, _: Request<Body>) -> BoxFuture<'static, std::io::Result<Response<Body>>> {
        std::future::ready(Err(std::io::Error::other(format!("there is no server {to}")))).boxed()
    }
}

/// A registry without others.
pub fn alone(config: Config) -> Registry {
    Registry::open(config, Arc::<Memory>::default(), Arc::new(Alone)).unwrap()
}
