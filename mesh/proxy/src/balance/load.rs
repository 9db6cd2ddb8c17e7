//! How loaded an endpoint is: what is under way there, times how long an answer takes.
//!
//! The time is a peak-sensitive moving average, as in Finagle's and linkerd's peak EWMA: a slow answer counts at once, quick
//! ones win trust back. It fades with time, also of an endpoint that nobody asks: what was slow is soon asked again, and one
//! slow answer costs it tenths of a second, not its place. A single answer raises the average by a bounded factor, since one
//! request may take long for a reason of its own; an endpoint that is slow raises it again and again. While requests
//! wait, an endpoint that answers nobody is as slow as its silence: one that takes all and answers none does not look good.
//!
//! Pure: times are passed in, as nanoseconds since the balancer's epoch. Counters are atomic and relaxed: a race costs a
//! sample, never a count.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Nanoseconds since the balancer's epoch.
pub(super) type Nanos = u64;

/// Time in which the average forgets all but 1/e of what it was.
const FADES_IN: Duration = Duration::from_millis(300);
/// One answer raises the average to this multiple at most,
const GROWTH_MAX: f64 = 8.0;
/// of at least this: what is taken for usual while nothing is known.
const USUAL_NS: f64 = 1_000_000.0;
/// Averages below this are alike: what is under way decides.
const FLOOR_NS: f64 = 50_000.0;
/// An endpoint that comes among others, or back after it failed, looks this much more loaded at first,
const COLD_FACTOR: f64 = 3.0;
/// and less and less during this time.
const WARM_AFTER: Duration = Duration::from_secs(2);
/// One request that has no answer yet, in the upper half of the counts; the lower half counts all under way.
const WAITING: u64 = 1 << 32;

/// The load of one endpoint.
#[derive(Debug)]
pub(super) struct Load {
    /// Without an answer (upper half) and under way (lower half): one word, so that a request costs one operation.
    counts: AtomicU64,
    average_ns: AtomicU64,
    /// When the average was taken.
    taken_at: AtomicU64,
    /// When something was answered last, or began to be waited for.
    progress_at: AtomicU64,
    /// Since when it is used.
    cold_since: AtomicU64,
}

impl Load {
    /// An endpoint of which nothing is known but what is usual among its peers.
    pub fn new(usual_ns: Option<f64>, now: Nanos) -> Load {
        Load {
            counts: AtomicU64::new(0),
            average_ns: AtomicU64::new(usual_ns.unwrap_or(USUAL_NS) as u64),
            taken_at: AtomicU64::new(now),
            progress_at: AtomicU64::new(now),
            cold_since: AtomicU64::new(now),
        }
    }

    /// A request or connection begins.
    pub fn begin(&self, now: Nanos) {
        if self.counts.fetch_add(WAITING + 1, Relaxed) < WAITING {
            self.progress_at.store(now, Relaxed);
        }
    }

    /// It was answered after this time; it may still be under way.
    pub fn answered(&self, took: Nanos, now: Nanos) {
        self.counts.fetch_sub(WAITING, Relaxed);
        self.progress_at.store(now, Relaxed);
        let (took, average) = (took as f64, self.average_ns.load(Relaxed) as f64);
        let kept = fading(now.saturating_sub(self.taken_at.load(Relaxed)));
        // What the average is by now is the measure, so that it does not matter how seldom an endpoint is asked.
        let next = match took >= average * kept {
            true => took.min(average.max(USUAL_NS) * GROWTH_MAX),
            false => average * kept + took * (1.0 - kept),
        };
        self.average_ns.store(next as u64, Relaxed);
        self.taken_at.store(now, Relaxed);
    }

    /// It is over without an answer.
    pub fn unanswered(&self) {
        self.counts.fetch_sub(WAITING, Relaxed);
    }

    /// It is over.
    pub fn end(&self) {
        self.counts.fetch_sub(1, Relaxed);
    }

    /// It comes back after it was left out.
    pub fn cool(&self, now: Nanos) {
        self.cold_since.store(now, Relaxed);
    }

    /// Requests and connections under way.
    pub fn under_way(&self) -> u32 {
        self.counts.load(Relaxed) as u32
    }

    /// How long an answer takes, as far as is known.
    pub fn latency_ns(&self, now: Nanos) -> f64 {
        let age = now.saturating_sub(self.taken_at.load(Relaxed));
        let faded = self.average_ns.load(Relaxed) as f64 * fading(age);
        let silence = match self.counts.load(Relaxed) < WAITING {
            true => 0.0,
            false => now.saturating_sub(self.progress_at.load(Relaxed)) as f64,
        };
        faded.max(silence).max(FLOOR_NS)
    }

    /// The load. Lower is better.
    pub fn score(&self, now: Nanos) -> f64 {
        let under_way = f64::from(self.under_way()) + 1.0;
        let age = now.saturating_sub(self.cold_since.load(Relaxed)) as f64 / WARM_AFTER.as_nanos() as f64;
        let cold = 1.0 + (COLD_FACTOR - 1.0) * (1.0 - age).max(0.0);
        under_way * self.latency_ns(now) * cold
    }
}

/// What is left of an average after this time.
fn fading(age: Nanos) -> f64 {
    (-(age as f64) / FADES_IN.as_nanos() as f64).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Nanos = 1_000_000;

    /// One answer after the other, each begun when the last one ended: (milliseconds it took, milliseconds of rest after).
    fn after(answers: &[(u64, u64)]) -> f64 {
        let load = Load::new(None, 0);
        let mut now = 0;
        for (took, rest) in answers {
            load.begin(now);
            now += took * MS;
            load.answered(took * MS, now);
            load.end();
            now += rest * MS;
        }
        load.latency_ns(now) / MS as f64
    }

    #[test]
    fn the_average_rises_at_once_and_fades_with_time() {
        for (answers, low, high) in [
            (&[][..], 0.9, 1.1),
            (&[(4, 0)], 4.0, 4.0),
            // A single answer counts, but not for thirty seconds.
            (&[(30_000, 0)], 8.0, 8.0),
            (&[(30_000, 300)], 2.9, 3.0),
            (&[(30_000, 2_000)], 0.05, 0.05),
            // Who is slow again and again is slow.
            (&[(500, 0), (500, 0), (500, 0)], 500.0, 500.0),
            // Quick answers win back what time alone would.
            (&[(8, 150), (1, 0)], 4.5, 6.0),
        ] {
            let average = after(answers);
            assert!((low - 0.01..=high + 0.01).contains(&average), "{average} after {answers:?}");
        }
    }

    #[test]
    fn silence_counts_while_somebody_waits() {
        let load = Load::new(None, 0);
        load.begin(0);
        load.begin(10 * MS);
        assert_eq!(load.latency_ns(5_000 * MS), 5_000.0 * MS as f64);
        // An answer ends it, and what is still under way does not wait.
        load.answered(MS, 5_000 * MS);
        load.answered(MS, 5_000 * MS);
        assert!(load.latency_ns(9_000 * MS) < MS as f64);
        assert_eq!(load.under_way(), 2);
        load.end();
        load.end();
        assert_eq!(load.under_way(), 0);
    }

    #[test]
    fn newcomers_start_slowly() {
        let (old, new) = (Load::new(Some(1e6), 0), Load::new(Some(1e6), 10_000 * MS));
        old.begin(9_999 * MS);
        old.answered(MS, 10_000 * MS);
        old.end();
        let ratio = |at: u64| new.score(at * MS) / old.score(at * MS);
        assert!(ratio(10_000) > 2.9 && (1.8..2.2).contains(&ratio(11_000)) && ratio(12_000) < 1.1);
    }
}
