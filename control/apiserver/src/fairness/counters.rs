//! What is counted of the requests of a schema. It is kept by the schema's name, whatever is changed of its configuration.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use super::dispatch::Rejection;

/// Upper ends of the buckets of waits, in seconds (Kubernetes').
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
    pub executing: AtomicI64,
    pub seats: AtomicI64,
    /// Of all that were dispatched.
    pub seats_sum: AtomicU64,
    /// Waits by the first bucket that takes them.
    pub waits: [AtomicU64; BUCKETS.len()],
    pub waited_count: AtomicU64,
    pub waited_micros: AtomicU64,
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
        let seconds = waited.as_secs_f64();
        if let Some(bucket) = BUCKETS.iter().position(|end| seconds <= *end) {
            self.waits[bucket].fetch_add(1, Ordering::Relaxed);
        }
        self.waited_count.fetch_add(1, Ordering::Relaxed);
        self.waited_micros.fetch_add(u64::try_from(waited.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    pub fn finish(&self, width: u32) {
        self.executing.fetch_sub(1, Ordering::Relaxed);
        self.seats.fetch_sub(i64::from(width), Ordering::Relaxed);
    }
}
