//! A catalog in memory, which several registries may share, and a registry that is alone with one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;

use axum::body::Body;
use futures::future::{BoxFuture, FutureExt};
use http::{Request, Response};
use tokio::sync::Notify;

use super::{Catalog, CatalogError, Change, Config, Entry, Only, Registry, Replica, Replicas, To};

/// Keeps everything in memory, for as long as it is there.
#[derive(Default)]
pub struct Memory {
    entries: Mutex<(u64, BTreeMap<String, Entry>)>,
    changed: Notify,
}

impl Catalog for Memory {
    fn current(&self) -> BoxFuture<'_, Result<(), CatalogError>> {
        std::future::ready(Ok(())).boxed()
    }

    fn get(&self, key: &str) -> Option<Entry> {
        self.entries.lock().unwrap().1.get(key).cloned()
    }

    fn list(&self, prefix: &str) -> Vec<(String, Entry)> {
        let entries = self.entries.lock().unwrap();
        let all = entries.1.iter().filter(|(key, _)| key.starts_with(prefix));
        all.map(|(key, entry)| (key.clone(), entry.clone())).collect()
    }

    fn change(&self, changes: Vec<Change>) -> BoxFuture<'_, Result<(), CatalogError>> {
        let mut entries = self.entries.lock().unwrap();
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
        self.changed.notify_waiters();
        std::future::ready(Ok(())).boxed()
    }

    fn changed(&self) -> BoxFuture<'_, ()> {
        self.changed.notified().boxed()
    }
}

/// The only server there is.
struct Alone;

impl Replicas for Alone {
    fn members(&self) -> Vec<Replica> {
        vec![Replica { member: 1, votes: true, own: true }]
    }

    fn call(&self, to: u64, _: Request<Body>) -> BoxFuture<'static, std::io::Result<Response<Body>>> {
        std::future::ready(Err(std::io::Error::other(format!("there is no server {to}")))).boxed()
    }
}

/// A registry without others.
pub fn alone(config: Config) -> Registry {
    Registry::open(config, Arc::<Memory>::default(), Arc::new(Alone)).unwrap()
}
