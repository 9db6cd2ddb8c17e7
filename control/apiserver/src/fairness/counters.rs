//! What is counted of the requests of a schema. It is kept by the schema's name, whatever is changed of its configuration.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use super::dispatch::Rejection;

/// Upper ends of the buckets of times, in seconds (Kubernetes').
pub(super) const BUCKETS: [f64; 13] = [0.0, 0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 30.0];

/// Reasons of rejections, by their place in [`Counters::rejected`].
pub(super) const REASONS: [(Rejection, &str); 4] = [
    (Rejection::ConcurrencyLimit, "concurrency-limit"),
    (Rejection::QueueFull, "queue-full"),
    (Rejection::TimeOut, "time-out"),
    (Rejection::Cancelled, "cancelled"),
];

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub dispatched: AtomicU64,
    pub rejected: [AtomicU64; REASONS.len()],
    pub waiting: AtomicI64,
    /// Seats that those take who wait.
    pub waiting_seats: AtomicI64,
    pub executing: AtomicI64,
    pub seats: AtomicI64,
    /// Of all that were dispatched.
    pub seats_sum: AtomicU64,
    pub waits: Times,
    /// How long they had their seats.
    pub lasted: Times,
}

/// How long things took.
#[derive(Debug, Default)]
pub(super) struct Times {
    /// By the first bucket that takes them.
    pub buckets: [AtomicU64; BUCKETS.len()],
    pub count: AtomicU64,
    pub micros: AtomicU64,
}

impl Times {
    fn add(&self, time: Duration) {
        let seconds = time.as_secs_f64();
        if let Some(bucket) = BUCKETS.iter().position(|end| seconds <= *end) {
            self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        }
        self.count.fetch_add(1, Ordering::Relaxed);
        self.micros.fetch_add(u64::try_from(time.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

impl Counters {
    pub fn reject(&self, why: Rejection) {
        if let Some(at) = REASONS.iter().position(|(reason, _)| *reason == why) {
            self.rejected[at].fetch_add(1, Ordering::Relaxed);
        }
    }

    pub fn dispatch(&self, width: u32, waited: Duration) {
        self.dispatched.fetch_add(1, Ordering::Relaxed);
        self.executing.fetch_add(1, Ordering::Relaxed);
        self.seats.fetch_add(i64::from(width), Ordering::Relaxed);
        self.seats_sum.fetch_add(u64::from(width), Ordering::Relaxed);
        self.waits.add(waited);
    }

    pub fn finish(&self, width: u32, lasted: Duration) {
        self.lasted.add(lasted);
        self.executing.fetch_sub(1, Ordering::Relaxed);
        self.seats.fetch_sub(i64::from(width), Ordering::Relaxed);
    }
}
