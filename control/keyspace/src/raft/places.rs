//! Places that run out: so many in all, and so many for one.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use parking_lot::Mutex;

/// Places, counted by who has them.
pub struct Places<K: Eq + Hash> {
    all_max: usize,
    one_max: usize,
    taken: Mutex<Taken<K>>,
}

struct Taken<K> {
    all: usize,
    by: HashMap<K, usize>,
}

/// A place; it is free again when this is dropped.
pub struct Place<K: Eq + Hash> {
    places: Arc<Places<K>>,
    who: K,
}

impl<K: Eq + Hash + Clone> Places<K> {
    /// This many in all and for one.
    pub fn new((all_max, one_max): (usize, usize)) -> Arc<Places<K>> {
        Arc::new(Places { all_max, one_max, taken: Mutex::new(Taken { all: 0, by: HashMap::new() }) })
    }

    /// A place for `who`, if there is one.
    pub fn take(self: &Arc<Places<K>>, who: K) -> Option<Place<K>> {
        let mut taken = self.taken.lock();
        if taken.all >= self.all_max || taken.by.get(&who).is_some_and(|count| *count >= self.one_max) {
            return None;
        }
        taken.all += 1;
        *taken.by.entry(who.clone()).or_default() += 1;
        Some(Place { places: self.clone(), who })
    }
}

impl<K: Eq + Hash> Drop for Place<K> {
    fn drop(&mut self) {
        let mut taken = self.places.taken.lock();
        taken.all -= 1;
        if let Some(count) = taken.by.get_mut(&self.who) {
            *count -= 1;
            if *count == 0 {
                taken.by.remove(&self.who);
            }
        }
    }
}

#[cfg(test)]
mod tests {
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
}
