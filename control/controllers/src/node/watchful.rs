//! Whether we were awake: who slept cannot say that another was silent.
//!
//! A process that was stopped, or a machine that was asleep, wakes to leases that look old because nobody could renew them
//! or because nobody listened. Only a whole period that was watched live counts. [`Watchful::observe`] is called at a beat
//! ([`BEAT`]) and before each judgement; a gap in either clock starts the watch anew. No I/O, no clock.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

/// How often the clocks are looked at.
pub(crate) const BEAT: Duration = Duration::from_millis(500);
/// A longer gap between two looks, or a larger difference between the two clocks, means that we were not awake. Shorter than
/// the silence by which a node is suspected.
const GAP: Duration = Duration::from_secs(2);

/// Since when we watch without a gap.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Watchful {
    last: (Instant, Timestamp),
    /// The end of the last gap, or the beginning: nobody was watched before.
    since: Instant,
}

impl Watchful {
    pub(crate) fn new(now: Instant, wall: Timestamp) -> Self {
        Self { last: (now, wall), since: now }
    }

    /// Looks at the clocks; returns since when there was no gap.
    pub(crate) fn observe(&mut self, now: Instant, wall: Timestamp) -> Instant {
        let passed = now.duration_since(self.last.0);
        // A clock that goes back is a gap, too.
        let apart = wall.duration_since(self.last.1) - jiff::SignedDuration::try_from(passed).unwrap_or_default();
        if passed > GAP || apart.unsigned_abs() > GAP {
            self.since = now;
        }
        self.last = (now, wall);
        self.since
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_in_either_clock_starts_the_watch_anew() {
        let (begun, wall): (_, Timestamp) = (Instant::now(), "2026-01-01T00:00:00Z".parse().unwrap());
        let at = |steady: u64, wall_seconds: i64| {
            (begun + Duration::from_secs(steady), wall + jiff::SignedDuration::from_secs(wall_seconds))
        };
        for (why, (now, wall_now), gap) in [
            ("awake", at(1, 1), false),
            ("busy", at(2, 2), false),
            ("stopped", at(60, 60), true),
            ("asleep: the steady clock stands still", at(2, 3600), true),
            ("set back", at(2, -3600), true),
        ] {
            let mut watch = Watchful::new(begun, wall);
            let since = if gap { now } else { begun };
            assert_eq!(watch.observe(now, wall_now), since, "{why}");
            let later = now + Duration::from_secs(2);
            let wall_later = wall_now + jiff::SignedDuration::from_secs(2);
            assert_eq!(watch.observe(later, wall_later), since, "{why}, and awake since");
        }
    }
}
