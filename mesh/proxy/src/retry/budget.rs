//! How many retries there may be: a share of the requests, and a few per second for who asks seldom. Without it a crowd
//! whose requests are refused would ask several times as often, just when there is too much to do.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// A retry costs this much,
const COST: i64 = 10;
/// a request earns this much: one retry for five requests.
const EARNED: i64 = 2;
/// What is saved up at most, and at first: a hundred retries.
const SAVED_MAX: i64 = 100 * COST;
/// What comes with time, per second: ten retries.
const PER_SECOND: u64 = 10 * COST as u64;

/// Time in which that alone fills it.
const FILLS_IN: Duration = Duration::from_secs(10);

/// The budget of one Service's port.
#[derive(Debug)]
pub(crate) struct Budget {
    saved: AtomicI64,
    /// Milliseconds since the epoch up to which time has been paid.
    paid_until: AtomicU64,
    epoch: Instant,
}

impl Budget {
    pub fn new(epoch: Instant) -> Budget {
        Budget { saved: AtomicI64::new(SAVED_MAX), paid_until: AtomicU64::new(0), epoch }
    }

    /// A request is made.
    pub fn earn(&self) {
        if self.saved.load(Relaxed) < SAVED_MAX {
            self.saved.fetch_add(EARNED, Relaxed);
        }
    }

    /// Whether a request may be repeated.
    pub fn spend(&self) -> bool {
        self.spend_at(Instant::now())
    }

    fn spend_at(&self, now: Instant) -> bool {
        let now = now.saturating_duration_since(self.epoch).as_millis() as u64;
        let paid = self.paid_until.fetch_max(now, Relaxed).min(now);
        let due = (now - paid).min(FILLS_IN.as_millis() as u64) * PER_SECOND / 1000;
        if due > 0 {
            self.saved.fetch_add(due as i64, Relaxed);
        }
        let left = |saved: i64| (saved >= COST).then_some(saved.min(SAVED_MAX) - COST);
        self.saved.fetch_update(Relaxed, Relaxed, left).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fifth_of_the_requests_and_ten_a_second() {
        let epoch = Instant::now();
        let budget = Budget::new(epoch);
        let spent = |at_ms: u64| (0..1_000).filter(|_| budget.spend_at(epoch + Duration::from_millis(at_ms))).count();
        assert_eq!(spent(0), 100);
        (0..100).for_each(|_| budget.earn());
        assert_eq!(spent(0), 20);
        assert_eq!(spent(500), 5);
        assert_eq!(spent(1_500), 10);
        (0..100_000).for_each(|_| budget.earn());
        assert_eq!(spent(60_000), 100, "no more is saved up");
    }
}
