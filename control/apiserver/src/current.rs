//! What is made of some records and kept until one of them changes: webhooks, admission policies, schemas of fairness and other API
//! servers in the shape in which they are asked.
//!
//! A request looks at one number to know that what is kept is what is stored ([`Keyspace::count_changes`]), and goes on where there
//! is nothing. The number changes before the write of a record is answered, so whoever saw that answer and asks the same server
//! is judged by it. What has changed is read aside, one at a time: a few bytes may be a large expression that is compiled.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use coracle_keyspace::{Keyspace, spawn_blocking};

/// No change has this number.
const NEVER: u64 = u64::MAX;

/// The newest of what was made, and after which change.
pub(crate) struct Current<T>(Arc<Kept<T>>);

struct Kept<T> {
    changes: Arc<AtomicU64>,
    /// The change after which there was nothing.
    empty_at: AtomicU64,
    now: ArcSwap<(u64, Arc<T>)>,
    is_empty: fn(&T) -> bool,
    /// Held while what has changed is read. Whoever waits for that needs no thread.
    making: Arc<tokio::sync::Mutex<()>>,
}

impl<T: Default + Send + Sync + 'static> Current<T> {
    /// Of these collections; nothing is read yet.
    pub fn new(keyspace: &Keyspace, collections: &[&str], is_empty: fn(&T) -> bool) -> Current<T> {
        Current::after(keyspace, collections, T::default(), is_empty)
    }
}

impl<T: Send + Sync + 'static> Current<T> {
    /// The same after `first`, which is what there is before anything is read.
    pub fn after(keyspace: &Keyspace, collections: &[&str], first: T, is_empty: fn(&T) -> bool) -> Current<T> {
        Current(Arc::new(Kept {
            changes: keyspace.count_changes(collections),
            empty_at: AtomicU64::new(NEVER),
            now: ArcSwap::from_pointee((NEVER, Arc::new(first))),
            is_empty,
            making: Arc::default(),
        }))
    }

    /// Whether there may be something.
    pub fn any(&self) -> bool {
        self.0.changes.load(Ordering::Acquire) != self.0.empty_at.load(Ordering::Acquire)
    }

    /// What was read last, which may be of long ago.
    pub fn last(&self) -> Arc<T> {
        self.0.now.load().1.clone()
    }

    /// What is stored now, in the shape that `make` gives it from what there was before.
    pub async fn get<M>(&self, make: impl FnOnce() -> M) -> Arc<T>
    where
        M: Fn(&T) -> T + Clone + Send + 'static,
    {
        match self.0.fresh() {
            Some(now) => now,
            None => Box::pin(self.renew(make())).await,
        }
    }

    async fn renew(&self, make: impl Fn(&T) -> T + Clone + Send + 'static) -> Arc<T> {
        let one = self.0.making.clone().lock_owned().await;
        if let Some(now) = self.0.fresh() {
            return now;
        }
        let (kept, aside) = (self.0.clone(), make.clone());
        let making = spawn_blocking(move || {
            let _one = one;
            kept.make(aside)
        });
        // Where it was not carried out, since the process ends, it is now.
        making.await.unwrap_or_else(|_| self.0.make(make))
    }
}

impl<T> Kept<T> {
    fn fresh(&self) -> Option<Arc<T>> {
        let now = self.now.load();
        (now.0 == self.changes.load(Ordering::Acquire)).then(|| now.1.clone())
    }

    fn make(&self, make: impl Fn(&T) -> T) -> Arc<T> {
        // What changes while it is read has another number, and is read again by whoever looks next.
        let (before, at) = (self.now.load_full(), self.changes.load(Ordering::Acquire));
        if before.0 == at {
            return before.1.clone();
        }
        let next = Arc::new(make(&before.1));
        self.now.store(Arc::new((at, next.clone())));
        self.empty_at.store(if (self.is_empty)(&next) { at } else { NEVER }, Ordering::Release);
        next
    }
}

#[cfg(test)]
mod tests {
    use std::thread::{self, ThreadId};

    use coracle_keyspace::{Guard, Key, Op, Value};
    use futures::FutureExt as _;

    use super::*;

    /// On which threads the records were read, and how many there were.
    #[derive(Default)]
    struct Seen {
        on: Vec<ThreadId>,
        records: usize,
    }

    #[tokio::test]
    async fn what_has_changed_is_read_once_and_on_no_thread_of_requests() {
        let dir = tempfile::tempdir().unwrap();
        let keyspace = Keyspace::open(coracle_keyspace::Config::new(dir.path())).await.unwrap();
        let current = Current::<Seen>::new(&keyspace, &["things"], |seen| seen.records == 0);
        let make = || {
            let keyspace = keyspace.clone();
            move |before: &Seen| Seen {
                on: before.on.iter().copied().chain([thread::current().id()]).collect(),
                records: keyspace.snapshot("things").records.len(),
            }
        };
        let put = |name: &'static str| {
            let value = Value { revision_at: 0, bytes: Default::default() };
            keyspace.transact(vec![Op::Put { key: Key::new("things", name), value, guard: Guard::None }])
        };
        assert!(current.any(), "nobody has looked");
        assert_eq!(current.get(make).await.records, 0);
        assert!(!current.any());
        put("a").await.unwrap();
        assert!(current.any());
        // Many who ask wait for one.
        let all = futures::future::join_all((0..8).map(|_| current.get(make))).await;
        assert!(all.iter().all(|seen| seen.records == 1 && Arc::ptr_eq(seen, &all[0])));
        // Who asks when nothing has changed waits for nobody.
        assert_eq!(current.get(make).now_or_never().expect("at once").records, 1);
        put("b").await.unwrap();
        assert_eq!(current.last().records, 1);
        let seen = current.get(make).await;
        assert_eq!((seen.records, seen.on.len()), (2, 3));
        assert!(!seen.on.contains(&thread::current().id()), "it is read by whoever asks");
        keyspace.shutdown().await;
    }
}
