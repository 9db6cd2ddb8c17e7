//! What is asked of Services, and who waits where there is no pod.
//!
//! A request or connection to any Service is counted from its begin to its end ([`Guard`]): when a Service becomes one whose pods are
//! scaled by that, what is under way there counts, too. When nobody is there to answer it is held ([`Hold`]) until discovery knows of
//! somebody: whoever makes pods hears at once that it waits, or does not any more ([`Demands::changed`]), and how much there was of it as
//! often as it likes ([`Reader`]), however soon it was over.
//!
//! Held are so many, with so many bytes of their heads and of the begins of their bodies, of one Service and in all, for so long; and a
//! namespace has its share of all ([`Shares`]), however many Services it has. Bodies are not read any further meanwhile: what a client has
//! sent of them is in its connection's window. Beyond it who comes is refused, and nobody who waits already; who goes is not held.

mod meter;

use std::collections::HashMap;
use std::sync::atomic::{
    AtomicBool, AtomicU64, AtomicUsize,
    Ordering::{Relaxed, SeqCst},
    fence,
};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use coracle_discovery::{Service, Snapshot};
use http::Request;
use tokio::sync::Notify;

use self::meter::{Meter, Micros, Reading};
use crate::shares::{Share, Shares};

/// Held at a time on this node, and of one Service: a quarter, so that one that does not come up keeps no other from it.
const HELD_MAX: Bounds = Bounds { all: 4096, service: 1024 };
/// Bytes of their heads, each of which has 64 KiB at most (`serve.rs`), and of what is read of their bodies (`retry`).
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

/// What is asked of all Services.
#[derive(Debug, Default)]
pub struct Demands {
    /// Locked when one of them has changed, and when they are read; not by requests.
    table: Mutex<Table>,
    shared: Arc<Shared>,
}

/// As many as there are Services.
#[derive(Debug, Default)]
struct Table {
    all: HashMap<Key, Arc<Demand>>,
    /// Those of which is told: their pods are scaled by it.
    told: HashMap<Key, Told>,
}

/// One of which is told, and how its meter stood when that began.
#[derive(Debug)]
struct Told {
    demand: Arc<Demand>,
    since: Reading,
}

/// What all of them have in common.
#[derive(Debug)]
struct Shared {
    epoch: Instant,
    /// By their namespaces.
    held: Arc<Shares<Arc<str>>>,
    held_bytes: Arc<Shares<Arc<str>>>,
    /// Counts what is news.
    news: AtomicU64,
    changed: Notify,
}

/// How many of a Service are held, and how many bytes.
#[derive(Debug, Default)]
struct Held {
    count: AtomicUsize,
    bytes: AtomicUsize,
}

/// What is asked of one of them.
#[derive(Debug)]
pub(crate) struct Demand {
    namespace: Arc<str>,
    meter: Meter,
    held: Held,
    is_told: AtomicBool,
    /// Nothing was asked when it was read last: the next that comes is news.
    is_quiet: AtomicBool,
    shared: Arc<Shared>,
}

impl Demand {
    fn new(namespace: Arc<str>, shared: &Arc<Shared>) -> Arc<Demand> {
        let (meter, held, is_told) = Default::default();
        Arc::new(Demand { namespace, meter, held, is_told, is_quiet: true.into(), shared: shared.clone() })
    }

    /// A request or connection begins.
    pub fn begin(self: &Arc<Self>) -> Guard {
        let before = self.meter.begin(self.shared.now());
        if before == 0 && self.is_told.load(Relaxed) {
            // Whoever reads that nothing is asked has said so before it looks: one of both sees the other.
            fence(SeqCst);
            if self.is_quiet.load(Relaxed) && self.is_quiet.swap(false, Relaxed) {
                self.shared.tell();
            }
        }
        Guard(self.clone())
    }

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
pub struct Reader {
    /// All Services of which is told.
    known: HashMap<Key, Known>,
    has_read: bool,
}

#[derive(Debug)]
struct Known {
    demand: Arc<Demand>,
    last: Reading,
    /// Whether something was asked of it the last time.
    was_asked: bool,
}

impl Default for Shared {
    fn default() -> Shared {
        let (news, changed) = Default::default();
        let (held, held_bytes) = (Shares::new(HELD_MAX.all), Shares::new(HELD_BYTES_MAX.all));
        Shared { epoch: Instant::now(), held, held_bytes, news, changed }
    }
}

impl Shared {
    /// The moment that has begun.
    fn now(&self) -> Micros {
        u64::try_from(self.epoch.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// Its end: what begins and ends within a moment takes all of it, so that none is as if it had not been.
    fn soon(&self) -> Micros {
        self.now().saturating_add(1)
    }

    fn tell(&self) {
        self.news.fetch_add(1, Relaxed);
        self.changed.notify_waiters();
    }
}

impl Demands {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is asked of this Service.
    pub(crate) fn of(&self, service: &Service) -> Arc<Demand> {
        let key = (service.namespace.clone(), service.name.clone());
        let new = || Demand::new(service.namespace.clone(), &self.shared);
        self.table().all.entry(key).or_insert_with(new).clone()
    }

    /// Keeps those of Services that are there, and of others as long as something is under way, since one of that name may come again; and
    /// tells of those whose pods are scaled by it.
    pub(crate) fn follow(&self, snapshot: &Snapshot) {
        let activates = |key: &Key| snapshot.by_key(key).is_some_and(|service| service.activates);
        let mut table = self.table();
        let Table { all, told } = &mut *table;
        all.retain(|key, demand| snapshot.by_key(key).is_some() || demand.meter.now() > 0);
        told.retain(|key, told| {
            let stays = activates(key) && all.get(key).is_some_and(|demand| Arc::ptr_eq(demand, &told.demand));
            if !stays {
                told.demand.is_told.store(false, Relaxed);
            }
            stays
        });
        for (key, demand) in all.iter().filter(|(key, _)| activates(key)) {
            if !told.contains_key(key) {
                demand.is_told.store(true, Relaxed);
                let since = demand.meter.read(self.shared.soon());
                told.insert(key.clone(), Told { demand: demand.clone(), since });
                if demand.meter.now() > 0 {
                    self.shared.tell();
                }
            }
        }
    }

    /// How often somebody has come to a Service of which nothing was asked when it was read last, or to one where there is no pod, and how
    /// often nobody has waited any more.
    pub fn news(&self) -> u64 {
        self.shared.news.load(Relaxed)
    }

    /// Waits until that has happened after `seen`.
    pub async fn changed(&self, seen: u64) {
        loop {
            let changed = self.shared.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.news() != seen {
                return;
            }
            changed.await;
        }
    }

    /// What was asked since `reader` has read last, of Services of which something was, or was the last time. Who reads for the first
    /// time hears of what is under way.
    pub fn read(&self, reader: &mut Reader) -> Vec<Asked> {
        let table = self.table();
        let Reader { known, has_read } = reader;
        known.retain(|key, known| table.told.get(key).is_some_and(|told| Arc::ptr_eq(&told.demand, &known.demand)));
        let mut all = Vec::new();
        for (key, Told { demand, since }) in &table.told {
            let now = self.shared.soon();
            let known = known.entry(key.clone()).or_insert_with(|| {
                let last = if *has_read { *since } else { demand.meter.read(now) };
                Known { demand: demand.clone(), last, was_asked: false }
            });
            demand.is_quiet.store(true, Relaxed);
            fence(SeqCst);
            let (average, held) = (demand.meter.average(&mut known.last, now), demand.held());
            let is_asked = average > 0.0 || held > 0;
            if is_asked {
                demand.is_quiet.store(false, Relaxed);
            }
            // It is said once that nothing is asked any more.
            if std::mem::replace(&mut known.was_asked, is_asked) || is_asked {
                all.push(Asked { namespace: key.0.clone(), name: key.1.clone(), average, held });
            }
        }
        *has_read = true;
        all
    }
}

/// A request or connection under way.
#[derive(Debug)]
pub(crate) struct Guard(Arc<Demand>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.meter.end(self.0.shared.soon());
    }
}

/// One that waits for a pod.
#[derive(Debug)]
pub(crate) struct Hold<'a> {
    of: &'a Demand,
    bytes: usize,
    /// Of what all have.
    _shares: [Share<Arc<str>>; 2],
}

impl Guard {
    /// Begins to wait; `None` when too many do.
    pub fn hold(&self, bytes: usize) -> Option<Hold<'_>> {
        let (shared, own, namespace) = (&self.0.shared, &self.0.held, &self.0.namespace);
        let shares = [shared.held.take(namespace.clone(), 1)?, shared.held_bytes.take(namespace.clone(), bytes)?];
        let (count, size) = (own.count.fetch_add(1, Relaxed), own.bytes.fetch_add(bytes, Relaxed) + bytes);
        // Dropped where there is no room, and then as if it had not come.
        let hold = Hold { of: &self.0, bytes, _shares: shares };
        if count >= HELD_MAX.service || size > HELD_BYTES_MAX.service {
            return None;
        }
        if count == 0 {
            shared.tell();
        }
        Some(hold)
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        self.of.held.bytes.fetch_sub(self.bytes, Relaxed);
        // Who goes on believing that somebody waits wakes what was put to sleep meanwhile.
        if self.of.held.count.fetch_sub(1, Relaxed) == 1 {
            self.of.shared.tell();
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

    /// Of one Service, of which is told.
    fn demand() -> (Arc<Demands>, Arc<Demand>) {
        let demands = Arc::<Demands>::default();
        let demand = Demand::new("n".into(), &demands.shared);
        demand.is_told.store(true, Relaxed);
        let told = Told { demand: demand.clone(), since: Reading::default() };
        demands.table().told.insert(("n".into(), "web".into()), told);
        (demands, demand)
    }

    #[test]
    fn so_many_are_held_and_no_more() {
        let (demands, demand) = demand();
        let guards: Vec<Guard> = (0..HELD_MAX.service + 1).map(|_| demand.begin()).collect();
        let mut held: Vec<Hold<'_>> = guards.iter().filter_map(|guard| guard.hold(10)).collect();
        assert_eq!(held.len(), HELD_MAX.service);
        held.pop();
        assert!(guards[0].hold(10).is_some(), "a place that was given back is taken again");
        drop(held);
        let large: Vec<Hold<'_>> = guards.iter().filter_map(|guard| guard.hold(HELD_BYTES_MAX.service / 2)).collect();
        assert_eq!(large.len(), 2, "bytes count, too");
        drop(large);
        let (all, bytes) = (&demands.shared.held, &demands.shared.held_bytes);
        assert_eq!((demand.held(), all.of("n"), bytes.of("n")), (0, 0, 0));
    }

    #[test]
    fn a_namespace_s_services_do_not_keep_those_of_others_from_being_held() {
        let (demands, _) = demand();
        let asked = |namespace: &str, services: usize| -> Vec<Guard> {
            let services = (0..services).map(|_| Demand::new(namespace.into(), &demands.shared));
            services.flat_map(|one| (0..HELD_MAX.service).map(|_| one.begin()).collect::<Vec<_>>()).collect()
        };
        let (greedy, other) = (asked("greedy", 8), asked("other", 1));
        let held: Vec<Hold<'_>> = greedy.iter().filter_map(|guard| guard.hold(10)).collect();
        assert!((HELD_MAX.service..=HELD_MAX.all / 3 + 1).contains(&held.len()), "{} are held", held.len());
        assert!(other.iter().all(|guard| guard.hold(10).is_some()));
        drop(held);
        // Nor with few that are large.
        let large = HELD_BYTES_MAX.service / 4;
        let _held: Vec<Hold<'_>> = greedy.iter().step_by(100).filter_map(|guard| guard.hold(large)).collect();
        assert!(demands.shared.held_bytes.of("greedy") <= HELD_BYTES_MAX.all / 3);
        assert!(other[0].hold(HELD_BYTES_MAX.service).is_some());
    }

    #[test]
    fn what_is_asked_is_told_until_nothing_is() {
        let (demands, demand) = demand();
        let mut reader = Reader::default();
        assert_eq!(demands.read(&mut reader), []);
        let guard = demand.begin();
        let hold = guard.hold(1);
        let told = demands.read(&mut reader);
        assert_eq!((told.len(), told[0].held, &*told[0].name), (1, 1, "web"));
        assert!(told[0].average > 0.0);
        assert_eq!(
            demands.read(&mut Reader::default())[0].average,
            1.0,
            "who has not read before hears of what there is"
        );
        drop(hold);
        drop(guard);
        let told = demands.read(&mut reader);
        assert_eq!((told.len(), told[0].held), (1, 0), "its end is told");
        while !demands.read(&mut reader).is_empty() {}
        demands.table().told.clear();
        assert!(demands.read(&mut reader).is_empty() && reader.known.is_empty());
    }

    #[test]
    fn what_is_over_before_anybody_looks_is_told_however_short_it_was() {
        let (demands, demand) = demand();
        let mut reader = Reader::default();
        assert_eq!(demands.read(&mut reader), []);
        for _ in 0..100 {
            drop(demand.begin());
            let told = demands.read(&mut reader);
            assert!(told.len() == 1 && told[0].average > 0.0, "{told:?}");
        }
    }

    #[tokio::test]
    async fn who_listens_hears_at_once_of_the_first() {
        let (demands, demand) = demand();
        let guard = demand.begin();
        demands.changed(0).await;
        let seen = demands.news();
        let second = demand.begin();
        assert_eq!(demands.news(), seen, "the second is no news");
        let hold = guard.hold(0);
        demands.changed(seen).await;
        let seen = demands.news();
        drop(hold);
        assert!(demands.news() > seen, "nobody waits any more");
        // Who comes and goes is no news before it was read that nobody is there.
        let (mut reader, seen) = (Reader::default(), demands.news());
        drop((guard, second));
        assert_eq!(demands.read(&mut reader), [], "it begins to read");
        drop(demand.begin());
        demands.changed(seen).await;
        let seen = demands.news();
        assert_eq!(demands.read(&mut reader).len(), 1);
        drop(demand.begin());
        assert_eq!(demands.news(), seen);
        // Of others nobody wants to hear.
        let seen = demands.news();
        let _other = Demand::new("n".into(), &demands.shared).begin();
        assert_eq!(demands.news(), seen);
    }
}
