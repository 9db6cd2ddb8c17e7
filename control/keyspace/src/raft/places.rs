//! Places that run out: so many in all, and so many for one.
//!
//! Whoever comes when there are no more takes that of another that is not at work: the one that has not been for longest, its own
//! where it has too many itself, otherwise one of whoever has most. A connection whose other side is gone without a word so
//! keeps nobody out.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;

/// Places, counted by who has them.
pub struct Places<K: Eq + Hash> {
    all_max: usize,
    one_max: usize,
    taken: Mutex<Taken<K>>,
    /// Counts the ends of work, in place of a clock.
    clock: AtomicU64,
}

struct Taken<K> {
    next: u64,
    all: usize,
    by: HashMap<K, BTreeMap<u64, Arc<Use>>>,
}

/// How a place is used.
struct Use {
    /// What it is at work for.
    works: AtomicUsize,
    /// When it was at work last.
    worked: AtomicU64,
    pushed_out: Notify,
}

/// A place; it is free again when this is dropped.
pub struct Place<K: Eq + Hash> {
    places: Arc<Places<K>>,
    who: K,
    number: u64,
    used: Arc<Use>,
}

/// Something that a place is at work for, until this is dropped.
pub struct Work<K: Eq + Hash> {
    places: Arc<Places<K>>,
    used: Arc<Use>,
}

impl<K: Eq + Hash + Clone> Places<K> {
    /// This many in all and for one.
    pub fn new((all_max, one_max): (usize, usize)) -> Arc<Places<K>> {
        let taken = Mutex::new(Taken { next: 0, all: 0, by: HashMap::new() });
        Arc::new(Places { all_max, one_max, taken, clock: AtomicU64::new(0) })
    }

    /// A place for `who`, which is at work; `None` where there is none, and none that rests.
    pub fn take(self: &Arc<Places<K>>, who: K) -> Option<(Place<K>, Work<K>)> {
        let mut taken = self.taken.lock();
        let has_too_many = taken.by.get(&who).is_some_and(|places| places.len() >= self.one_max);
        if has_too_many || taken.all >= self.all_max {
            let (of, number) = taken.resting(has_too_many.then_some(&who))?;
            if let Some(used) = taken.free(&of, number) {
                used.pushed_out.notify_one();
            }
        }
        let used = Arc::new(Use { works: AtomicUsize::new(0), worked: AtomicU64::new(0), pushed_out: Notify::new() });
        let number = taken.next;
        (taken.next, taken.all) = (number + 1, taken.all + 1);
        taken.by.entry(who.clone()).or_default().insert(number, used.clone());
        let place = Place { places: self.clone(), who, number, used };
        let work = place.work();
        Some((place, work))
    }
}

impl<K: Eq + Hash + Clone> Taken<K> {
    /// The place that goes: of those that rest, of this one or of whoever has most, the one that has for longest.
    fn resting(&self, of: Option<&K>) -> Option<(K, u64)> {
        let owners = self.by.iter().filter(|(who, _)| of.is_none_or(|of| of == *who));
        let all =
            owners.flat_map(|(who, places)| places.iter().map(move |(number, used)| (who, places.len(), number, used)));
        let resting = all.filter(|(.., used)| used.works.load(Ordering::Acquire) == 0);
        let goes = resting.min_by_key(|(_, count, _, used)| (Reverse(*count), used.worked.load(Ordering::Acquire)))?;
        Some((goes.0.clone(), *goes.2))
    }
}

impl<K: Eq + Hash> Taken<K> {
    /// Has a place free, unless it is.
    fn free(&mut self, who: &K, number: u64) -> Option<Arc<Use>> {
        let of_one = self.by.get_mut(who)?;
        let used = of_one.remove(&number)?;
        if of_one.is_empty() {
            self.by.remove(who);
        }
        self.all -= 1;
        Some(used)
    }
}

impl<K: Eq + Hash> Place<K> {
    /// Has it at work until what is returned is dropped.
    pub fn work(&self) -> Work<K> {
        self.used.works.fetch_add(1, Ordering::AcqRel);
        Work { places: self.places.clone(), used: self.used.clone() }
    }

    /// Waits until others have the place.
    pub async fn pushed_out(&self) {
        self.used.pushed_out.notified().await;
    }
}

impl<K: Eq + Hash> Drop for Work<K> {
    fn drop(&mut self) {
        self.used.worked.store(self.places.clock.fetch_add(1, Ordering::AcqRel) + 1, Ordering::Release);
        self.used.works.fetch_sub(1, Ordering::AcqRel);
    }
}

impl<K: Eq + Hash> Drop for Place<K> {
    fn drop(&mut self) {
        self.places.taken.lock().free(&self.who, self.number);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[test]
    fn one_does_not_take_the_places_of_all() {
        let places = Places::new((5, 2));
        let held: Vec<_> = (0..9).filter_map(|_| places.take("loud")).collect();
        let other = places.take("quiet");
        assert_eq!((held.len(), other.is_some()), (2, true));
        drop(held);
        let held: Vec<_> = (0..9).filter_map(|at| places.take(["a", "b", "c"][at % 3])).collect();
        assert_eq!(held.len(), 4, "of five, one is another's");
        drop((held, other));
        assert!(places.taken.lock().by.is_empty() && places.taken.lock().all == 0);
    }

    #[test]
    fn who_comes_when_all_are_taken_has_the_place_that_rests_for_longest() {
        let places = Places::new((5, 3));
        let out = |places: &[Place<&str>]| -> Vec<bool> {
            places.iter().map(|place| place.pushed_out().now_or_never().is_some()).collect()
        };
        let (mut held, works): (Vec<_>, Vec<_>) = (0..3).map(|_| places.take("a").unwrap()).unzip();
        assert!(places.take("a").is_none(), "all are at work");
        drop(works);
        drop(held[0].work());
        let busy = held[1].work();
        let (newest, at_work) = places.take("a").unwrap();
        assert_eq!(out(&held), [false, false, true], "the first was at work since, the second is");
        // Whoever was pushed out frees nobody else's place.
        drop(held.pop());
        assert_eq!(places.taken.lock().all, 3);
        let others: Vec<_> = (0..2).map(|_| places.take("b").unwrap()).collect();
        let third = places.take("c").unwrap();
        assert_eq!(out(&held), [true, false], "it is one of whoever has most");
        assert!(places.take("d").is_none(), "what rests is nobody's now");
        drop((held, busy, newest, at_work, others, third));
        assert!(places.taken.lock().by.is_empty() && places.taken.lock().all == 0);
    }
}
