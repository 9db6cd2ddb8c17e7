//! What many use: each of them has a share that depends on how much is free, so that nobody takes all, however many want much, and
//! nobody who wants little has to wait.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// One may have as much as is free, divided by this: who alone wants all has a third of it; of ten, each has a twelfth, and a sixth is
/// left (dynamic thresholds: Choudhury and Hahne, 1998).
const PART: usize = 2;

/// So much of something, shared by those whom a `K` names.
#[derive(Debug)]
pub struct Shares<K> {
    max: usize,
    taken: Mutex<Taken<K>>,
}

#[derive(Debug)]
struct Taken<K> {
    all: usize,
    by: HashMap<K, usize>,
}

/// A part of it, given back when this is dropped.
#[derive(Debug)]
pub struct Share<K: Eq + Hash> {
    shares: Arc<Shares<K>>,
    by: K,
    amount: usize,
}

impl<K: Eq + Hash + Clone> Shares<K> {
    /// Nothing is taken yet.
    pub fn new(max: usize) -> Arc<Shares<K>> {
        Arc::new(Shares { max, taken: Mutex::new(Taken { all: 0, by: HashMap::new() }) })
    }

    /// So much, if that is within its share.
    pub fn take(self: &Arc<Self>, by: K, amount: usize) -> Option<Share<K>> {
        let taken = self.taken();
        let most = self.most(&taken);
        self.add(taken, by, amount, most)
    }

    /// So much, if it has no more than `most` with it, however much is free.
    pub fn take_within(self: &Arc<Self>, by: K, amount: usize, most: usize) -> Option<Share<K>> {
        self.add(self.taken(), by, amount, most)
    }

    fn add(
        self: &Arc<Self>,
        mut taken: MutexGuard<'_, Taken<K>>,
        by: K,
        amount: usize,
        most: usize,
    ) -> Option<Share<K>> {
        let own = taken.by.get(&by).copied().unwrap_or_default();
        if own.saturating_add(amount) > most {
            return None;
        }
        taken.all += amount;
        taken.by.insert(by.clone(), own + amount);
        drop(taken);
        Some(Share { shares: self.clone(), by, amount })
    }
}

impl<K: Eq + Hash> Shares<K> {
    fn taken(&self) -> MutexGuard<'_, Taken<K>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What anybody may have at most, as things are.
    fn most(&self, taken: &Taken<K>) -> usize {
        self.max.saturating_sub(taken.all) / PART
    }

    /// How much more this one may have.
    pub fn left(&self, by: &K) -> usize {
        let taken = self.taken();
        self.most(&taken).saturating_sub(taken.by.get(by).copied().unwrap_or_default())
    }

    /// How much this one has.
    pub fn of<Q: Eq + Hash + ?Sized>(&self, by: &Q) -> usize
    where
        K: Borrow<Q>,
    {
        self.taken().by.get(by).copied().unwrap_or_default()
    }
}

impl<K: Eq + Hash> Share<K> {
    /// Whose it is.
    pub fn by(&self) -> &K {
        &self.by
    }
}

impl<K: Eq + Hash> Drop for Share<K> {
    fn drop(&mut self) {
        let mut taken = self.shares.taken();
        taken.all -= self.amount;
        if let Some(own) = taken.by.get_mut(&self.by) {
            *own -= self.amount;
            if *own == 0 {
                taken.by.remove(&self.by);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: usize = 3000;

    #[test]
    fn nobody_takes_all_however_many_want_much() {
        for (greedy, least_left, least_each) in [(1, 1990, 990), (2, 1490, 740), (10, 490, 240), (200, 26, 14)] {
            let shares = Shares::new(MAX);
            let mut places = Vec::new();
            // In turns, until none of them gets more.
            loop {
                let more: Vec<Share<usize>> = (0..greedy).filter_map(|n| shares.take(n, 1)).collect();
                if more.is_empty() {
                    break;
                }
                places.extend(more);
            }
            let left = MAX - places.len();
            let each = (0..greedy).map(|n| shares.of(&n)).min().unwrap();
            assert!(left >= least_left && each >= least_each, "{greedy}: {left} left, {each} each");
            let own: Vec<_> = (0..least_each / 2).map(|_| shares.take(MAX, 1).expect("it is a newcomer's")).collect();
            drop((places, own));
            let taken = shares.taken();
            assert!(taken.all == 0 && taken.by.is_empty());
        }
    }

    #[test]
    fn what_is_taken_at_once_is_within_the_share_or_not_taken() {
        let shares = Shares::new(100);
        assert!(shares.take("a", 51).is_none());
        let own = shares.take("a", 30).unwrap();
        assert!(shares.take("a", 6).is_none() && shares.take("b", usize::MAX).is_none());
        assert!(shares.take("b", 35).is_some());
        drop(own);
        assert!(shares.take("a", 50).is_some());
    }
}
