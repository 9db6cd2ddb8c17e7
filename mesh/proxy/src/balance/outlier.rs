//! Who is left out for a while: an endpoint that gave no answer, longer each time. That at most half are, is the balancer's
//! affair: when more fail, the fault is more likely elsewhere.
//!
//! An endpoint that has too much to do does not fail: its share moves to others for a moment, but leaving it out would
//! push what it does onto them until they fail in turn.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::load::Nanos;

/// First time that a failing endpoint is left out; doubles with each further failure.
const OUT_FIRST: Duration = Duration::from_secs(1);
/// Longest time that an endpoint is left out.
const OUT_MAX: Duration = Duration::from_secs(30);
/// How long others are preferred to one that is full.
const BUSY: Duration = Duration::from_millis(20);

/// Failures of one endpoint.
#[derive(Debug, Default)]
pub(super) struct Outlier {
    /// Failures since the last answer.
    failures: AtomicU32,
    out_until: AtomicU64,
}

impl Outlier {
    /// Whether it is left out.
    pub fn is_out(&self, now: Nanos) -> bool {
        self.out_until.load(Relaxed) > now
    }

    /// For how long it is left out.
    pub fn left_out(&self, now: Nanos) -> Option<Duration> {
        let left = self.out_until.load(Relaxed).saturating_sub(now);
        (left > 0).then(|| Duration::from_nanos(left))
    }

    /// It gave no answer. If it may be left out, it is, until the time that is returned.
    pub fn failed(&self, now: Nanos, may_leave: bool) -> Option<Nanos> {
        let failures = self.failures.fetch_add(1, Relaxed).min(5);
        may_leave.then(|| {
            let until = now + (OUT_FIRST * (1 << failures)).min(OUT_MAX).as_nanos() as Nanos;
            self.out_until.store(until, Relaxed);
            until
        })
    }

    /// It has too much to do.
    pub fn is_busy(&self, now: Nanos) {
        self.out_until.fetch_max(now + BUSY.as_nanos() as Nanos, Relaxed);
    }

    /// It answered.
    pub fn answered(&self) {
        if self.failures.load(Relaxed) != 0 {
            self.failures.store(0, Relaxed);
            self.out_until.store(0, Relaxed);
        }
    }
}
