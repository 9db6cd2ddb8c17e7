//! What is counted of a Service's port and of each of its endpoints: words that are added to, no locks. They live as long as
//! discovery knows the port or the endpoint, so that there are as many as there are of these.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use http::StatusCode;

/// Upper ends of the buckets of latencies, in milliseconds: those of Istio's and Linkerd's histograms that tell services apart.
pub const BUCKETS_MS: [f64; 16] =
    [0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1e3, 2.5e3, 5e3, 1e4, 3e4, 6e4];

/// How a request ended: by the class of its answer's status, or without any.
#[derive(Debug, Default)]
pub struct Classes([AtomicU64; 6]);

impl Classes {
    /// As metrics have them: `0` is no answer at all, as in Istio's.
    pub const NAMES: [&str; 6] = ["0", "1xx", "2xx", "3xx", "4xx", "5xx"];

    /// One more has ended so.
    pub fn count(&self, status: Option<StatusCode>) {
        let class = status.map_or(0, |status| usize::from(status.as_u16() / 100).min(5));
        self.0[class].fetch_add(1, Relaxed);
    }

    /// By their names.
    pub fn all(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Classes::NAMES.into_iter().zip(&self.0).map(|(name, count)| (name, count.load(Relaxed)))
    }
}

/// How long answers took.
#[derive(Debug, Default)]
pub struct Latencies {
    /// Of the first bucket that takes it.
    counts: [AtomicU64; BUCKETS_MS.len()],
    count: AtomicU64,
    sum_us: AtomicU64,
}

impl Latencies {
    /// One more has taken so long.
    pub fn count(&self, took: Duration) {
        let millis = took.as_secs_f64() * 1e3;
        if let Some(bucket) = BUCKETS_MS.iter().position(|end| millis <= *end) {
            self.counts[bucket].fetch_add(1, Relaxed);
        }
        self.count.fetch_add(1, Relaxed);
        self.sum_us.fetch_add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX), Relaxed);
    }

    /// How many took as long as each bucket's end at most, how many there are, and milliseconds of all of them.
    pub fn read(&self) -> ([u64; BUCKETS_MS.len()], u64, f64) {
        let mut sum = 0;
        let counts = std::array::from_fn(|at| {
            sum += self.counts[at].load(Relaxed);
            sum
        });
        (counts, self.count.load(Relaxed), self.sum_us.load(Relaxed) as f64 / 1e3)
    }
}

/// Of a Service's port.
#[derive(Debug, Default)]
pub struct Stats {
    /// Requests that have ended: as those who asked see it.
    pub requests: Classes,
    /// From a request's begin to the head of its answer.
    pub latencies: Latencies,
    /// Connections that bytes were passed on for.
    pub connections: AtomicU64,
    /// Bytes of bodies to endpoints and back; those that are passed on as they are nobody counts.
    pub sent_bytes: AtomicU64,
    pub received_bytes: AtomicU64,
    /// Requests that another endpoint was asked for after one had not answered.
    pub retries: AtomicU64,
    /// How often an endpoint was left out.
    pub ejections: AtomicU64,
    /// Requests and connections that have waited for a pod.
    pub held: AtomicU64,
}

impl Stats {
    /// One more of something.
    pub(crate) fn one(counter: &AtomicU64) {
        counter.fetch_add(1, Relaxed);
    }

    /// So many bytes.
    pub(crate) fn bytes(counter: &AtomicU64, bytes: usize) {
        counter.fetch_add(bytes as u64, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_counted_by_class_and_by_time() {
        let stats = Stats::default();
        for status in [200, 204, 404, 503, 999] {
            stats.requests.count(StatusCode::from_u16(status).ok());
        }
        stats.requests.count(None);
        let counted: Vec<_> = stats.requests.all().filter(|(_, count)| *count > 0).collect();
        assert_eq!(counted, [("0", 1), ("2xx", 2), ("4xx", 1), ("5xx", 2)]);
        for millis in [0, 3, 5, 100_000] {
            stats.latencies.count(Duration::from_millis(millis));
        }
        let (counts, all, sum) = stats.latencies.read();
        assert_eq!((counts[0], counts[3], counts[15], all, sum), (1, 3, 3, 4, 100_008.0));
    }
}
