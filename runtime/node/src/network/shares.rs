//! Who uses the way to another node: each for whom it is used has a share of its places that depends on how many are free, so that
//! nobody takes them all, however many want much, and nobody who wants little has to wait.

use std::collections::HashMap;
use std::sync::Arc;

use coracle_proxy::Asker;
use parking_lot::Mutex;

/// One may have as many places as are free, divided by this: who alone wants all has a third of them; of ten, each has a twelfth, and
/// a sixth is left (dynamic thresholds: Choudhury and Hahne, 1998).
const PART: usize = 2;

/// The places on the way to one node.
pub(super) struct Shares {
    max: usize,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    all: usize,
    by: HashMap<Asker, usize>,
}

/// A place, until it is dropped.
pub(super) struct Place {
    shares: Arc<Shares>,
    by: Asker,
}

impl Shares {
    pub fn new(max: usize) -> Arc<Shares> {
        Arc::new(Shares { max, taken: Mutex::default() })
    }

    /// A place, if there is one within its share.
    pub fn take(self: &Arc<Self>, by: Asker) -> Option<Place> {
        let mut taken = self.taken.lock();
        let own = taken.by.get(&by).copied().unwrap_or_default();
        if own >= self.max.saturating_sub(taken.all) / PART {
            return None;
        }
        taken.all += 1;
        taken.by.insert(by.clone(), own + 1);
        Some(Place { shares: self.clone(), by })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.shares.taken.lock();
        taken.all -= 1;
        if let Some(own) = taken.by.get_mut(&self.by) {
            *own -= 1;
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
                let more: Vec<Place> = (0..greedy).filter_map(|n| shares.take(Asker::NodePort(n))).collect();
                if more.is_empty() {
                    break;
                }
                places.extend(more);
            }
            let left = MAX - places.len();
            let each = shares.taken.lock().by.values().copied().min().unwrap();
            assert!(left >= least_left && each >= least_each, "{greedy}: {left} left, {each} each");
            let pod = Asker::Pod([10, 0, 0, 1].into());
            let own: Vec<_> =
                (0..least_each / 2).map(|_| shares.take(pod.clone()).expect("it is a newcomer's")).collect();
            drop((places, own));
            let taken = shares.taken.lock();
            assert!(taken.all == 0 && taken.by.is_empty());
        }
    }
}
