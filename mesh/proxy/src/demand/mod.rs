//! What is asked of Services whose pods are scaled by it, and who waits where there is none.
//!
//! A request or connection to such a Service is counted from its begin to the end of its answer ([`Guard`]). When nobody is there
//! to answer it is held ([`Hold`]) until discovery knows of somebody: whoever makes pods hears at once that it waits
//! ([`Demands::changed`]), and how much there is of it as often as it likes ([`Reader`]).
//!
//! Held are so many, with so many bytes of their heads, of one Service and in all, for so long. Bodies are not read meanwhile: what
//! a client has sent of them is in its connection's window. Beyond it who comes is refused, and nobody who waits already.

mod meter;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use coracle_discovery::Service;
use http::Request;
use tokio::sync::Notify;

use self::meter::{Meter, Micros, Reading};

/// Held at a time on this node, and of one Service: a quarter, so that one that does not come up keeps no other from it.
const HELD_MAX: Bounds = Bounds { all: 4096, service: 1024 };
/// Bytes of their heads; each has 64 KiB at most (`serve.rs`).
const HELD_BYTES_MAX: Bounds = Bounds { all: 32 << 20, service: 8 << 20 };
/// How long each is held: a pod whose image is not here yet is pulled and compiled within it, as a rule.
pub(crate) const HOLD_MAX: Duration = Duration::from_secs(60);

/// What may be in all, and of one Service.
struct Bounds {
    all: usize,
    service: usize,
}

/// Namespace and name.
type Key = (Arc<str>, Arc<str>);

/// What is asked of all Services that are scaled by it.
#[derive(Debug)]
pub struct Demands {
    epoch: Instant,
    /// As many as there are such Services. Locked when one of them has changed, and when it is read; not by requests.
    services: Mutex<HashMap<Key, Arc<Demand>>>,
    held: Held,
    /// Counts what is news.
    news: AtomicU64,
    changed: Notify,
}

/// How many are held, and how many bytes.
#[derive(Debug, Default)]
struct Held {
    count: AtomicUsize,
    bytes: AtomicUsize,
}

/// What is asked of one of them.
#[derive(Debug)]
pub(crate) struct Demand {
    meter: Meter,
    held: Held,
}

impl Demand {
    /// How many wait for a pod.
    pub fn held(&self) -> usize {
        self.held.count.load(Relaxed)
    }
}

/// What was asked of a Service since it was read last.
#[derive(Debug, Clone, PartialEq)]
pub struct Asked {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// How many were under way on average, those that wait for a pod among them.
    pub average: f64,
    /// How many wait for a pod now.
    pub held: usize,
}

/// Reads what is asked: each reader for itself.
#[derive(Debug, Default)]
pub struct Reader(HashMap<Key, Reading>);

impl Default for Demands {
    fn default() -> Demands {
        let (services, held, news, changed) = Default::default();
        Demands { epoch: Instant::now(), services, held, news, changed }
    }
}

impl Demands {
    fn services(&self) -> MutexGuard<'_, HashMap<Key, Arc<Demand>>> {
        self.services.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Micros {
        u64::try_from(self.epoch.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// What is asked of this Service, if it is scaled by that.
    pub(crate) fn of(&self, service: &Service) -> Option<Arc<Demand>> {
        let key = || (service.namespace.clone(), service.name.clone());
        let new = || Arc::new(Demand { meter: Meter::default(), held: Held::default() });
        service.activates.then(|| self.services().entry(key()).or_insert_with(new).clone())
    }

    /// Forgets those of which `is_there` knows nothing; what is under way there still ends.
    pub(crate) fn retain(&self, is_there: impl Fn(&Key) -> bool) {
        self.services().retain(|key, _| is_there(key));
    }

    /// A request or connection begins.
    pub(crate) fn begin(self: &Arc<Self>, demand: &Arc<Demand>) -> Guard {
        if demand.meter.begin(self.now()) == 0 {
            self.tell();
        }
        Guard { all: self.clone(), demand: demand.clone() }
    }

    fn tell(&self) {
        self.news.fetch_add(1, Relaxed);
        self.changed.notify_waiters();
    }

    /// How often somebody has come to a Service of which nothing was asked, or to one where there is no pod.
    pub fn news(&self) -> u64 {
        self.news.load(Relaxed)
    }

    /// Waits until that has happened after `seen`.
    pub async fn changed(&self, seen: u64) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.news() != seen {
                return;
            }
            changed.await;
        }
    }

    /// What was asked since `reader` has read last, of Services of which something was, or was the last time.
    pub fn read(&self, reader: &mut Reader) -> Vec<Asked> {
        let now = self.now();
        let services = self.services();
        reader.0.retain(|key, _| services.contains_key(key));
        let mut all: Vec<Asked> = Vec::new();
        for (key, demand) in &*services {
            let is_known = reader.0.contains_key(key);
            let held = demand.held.count.load(Relaxed);
            if !is_known && held == 0 && demand.meter.now() == 0 {
                continue;
            }
            let average = match reader.0.get_mut(key) {
                Some(reading) => demand.meter.average(reading, now),
                None => {
                    let mut reading = Reading::default();
                    // Of what was before this reader nothing is known but how many there are.
                    demand.meter.average(&mut reading, now);
                    reader.0.insert(key.clone(), reading);
                    demand.meter.now() as f64
                }
            };
            // It is said once that nothing is asked any more.
            if average == 0.0 && held == 0 && demand.meter.now() == 0 {
                reader.0.remove(key);
            }
            all.push(Asked { namespace: key.0.clone(), name: key.1.clone(), average, held });
        }
        all
    }
}

/// A request or connection under way.
#[derive(Debug)]
pub(crate) struct Guard {
    all: Arc<Demands>,
    demand: Arc<Demand>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.demand.meter.end(self.all.now());
    }
}

/// One that waits for a pod.
#[derive(Debug)]
pub(crate) struct Hold<'a> {
    of: &'a Guard,
    bytes: usize,
}

impl Guard {
    /// Begins to wait; `None` when too many do.
    pub fn hold(&self, bytes: usize) -> Option<Hold<'_>> {
        let (all, own) = (&self.all.held, &self.demand.held);
        let count = (all.count.fetch_add(1, Relaxed), own.count.fetch_add(1, Relaxed));
        let size = (all.bytes.fetch_add(bytes, Relaxed) + bytes, own.bytes.fetch_add(bytes, Relaxed) + bytes);
        // Dropped where there is no room, and then as if it had not come.
        let hold = Hold { of: self, bytes };
        let has_room = count.0 < HELD_MAX.all
            && count.1 < HELD_MAX.service
            && size.0 <= HELD_BYTES_MAX.all
            && size.1 <= HELD_BYTES_MAX.service;
        if !has_room {
            return None;
        }
        if count.1 == 0 {
            self.all.tell();
        }
        Some(hold)
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        for held in [&self.of.all.held, &self.of.demand.held] {
            held.count.fetch_sub(1, Relaxed);
            held.bytes.fetch_sub(self.bytes, Relaxed);
        }
    }
}

/// Bytes of a request that waits: its head.
pub(crate) fn head_bytes<B>(request: &Request<B>) -> usize {
    let headers = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len());
    let uri = request.uri();
    let uri = uri.path().len() + uri.query().map_or(0, str::len) + uri.host().map_or(0, str::len);
    uri + headers.sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn demand() -> (Arc<Demands>, Arc<Demand>) {
        let demands = Arc::<Demands>::default();
        let demand = Arc::new(Demand { meter: Meter::default(), held: Held::default() });
        demands.services().insert(("n".into(), "web".into()), demand.clone());
        (demands, demand)
    }

    #[test]
    fn so_many_are_held_and_no_more() {
        let (demands, demand) = demand();
        let guards: Vec<Guard> = (0..HELD_MAX.service + 1).map(|_| demands.begin(&demand)).collect();
        let mut held: Vec<Hold<'_>> = guards.iter().filter_map(|guard| guard.hold(10)).collect();
        assert_eq!(held.len(), HELD_MAX.service);
        held.pop();
        assert!(guards[0].hold(10).is_some(), "a place that was given back is taken again");
        drop(held);
        let large: Vec<Hold<'_>> = guards.iter().filter_map(|guard| guard.hold(HELD_BYTES_MAX.service / 2)).collect();
        assert_eq!(large.len(), 2, "bytes count, too");
        // Of other Services there is room for more, up to what all of them have.
        let other = || Arc::new(Demand { meter: Meter::default(), held: Held::default() });
        let others: Vec<Arc<Demand>> = (0..4).map(|_| other()).collect();
        let guards: Vec<Guard> =
            others.iter().flat_map(|one| (0..HELD_MAX.service).map(|_| demands.begin(one))).collect();
        let held = guards.iter().filter_map(|guard| guard.hold(0)).count();
        assert_eq!(held, 4 * HELD_MAX.service, "each is given back at once");
        let held: Vec<Hold<'_>> = guards.iter().filter_map(|guard| guard.hold(0)).collect();
        assert_eq!(held.len() + large.len(), HELD_MAX.all);
    }

    #[test]
    fn what_is_asked_is_told_until_nothing_is() {
        let (demands, demand) = demand();
        let mut reader = Reader::default();
        assert_eq!(demands.read(&mut reader), []);
        let guard = demands.begin(&demand);
        let hold = guard.hold(1);
        let told = demands.read(&mut reader);
        assert_eq!((told.len(), told[0].held, &*told[0].name), (1, 1, "web"));
        assert_eq!(told[0].average, 1.0);
        drop(hold);
        drop(guard);
        let told = demands.read(&mut reader);
        assert_eq!((told.len(), told[0].held), (1, 0), "its end is told");
        while !demands.read(&mut reader).is_empty() {}
        assert!(reader.0.is_empty());
        demands.retain(|_| false);
        assert_eq!(demands.services().len(), 0);
    }

    #[tokio::test]
    async fn who_listens_hears_at_once_of_the_first() {
        let (demands, demand) = demand();
        let guard = demands.begin(&demand);
        demands.changed(0).await;
        let seen = demands.news();
        let _second = demands.begin(&demand);
        assert_eq!(demands.news(), seen, "the second is no news");
        let _hold = guard.hold(0);
        demands.changed(seen).await;
    }
}
