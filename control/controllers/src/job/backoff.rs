//! How long a Job waits before it makes pods again after failures.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::informer::Pod;

/// After the first failure.
const FIRST: SignedDuration = SignedDuration::from_secs(10);
/// At most.
const MOST: SignedDuration = SignedDuration::from_mins(10);

/// Failures since the last success. Kept in memory: another controller begins anew, as the reference does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Backoff {
    failures: u32,
    last: Option<Timestamp>,
}

impl Backoff {
    /// With pods that are newly seen to have ended.
    pub(super) fn with(self, succeeded: &[&Pod], failed: &[&Pod]) -> Self {
        let end = |pod: &&Pod| pod.run.as_ref().and_then(|run| run.finished);
        let since = match succeeded.iter().map(end).max() {
            // A success forgives what was before it.
            Some(success) => failed.iter().map(end).filter(|failure| *failure > success).collect::<Vec<_>>(),
            None => failed.iter().map(end).collect(),
        };
        let before = if succeeded.is_empty() { self } else { Self::default() };
        Self {
            failures: before.failures.saturating_add(u32::try_from(since.len()).unwrap_or(u32::MAX)),
            last: since.into_iter().max().unwrap_or(before.last),
        }
    }

    /// After so many failures in a row of which the last was at `last`.
    pub(super) fn after(failures: u32, last: Option<Timestamp>) -> Self {
        Self { failures, last }
    }

    /// How long nothing is made yet; none when it may be.
    pub(super) fn remaining(self, now: Timestamp) -> Option<Duration> {
        let last = self.last.filter(|_| self.failures > 0)?;
        // Six doublings reach the most.
        let wait = (FIRST * (1 << (self.failures - 1).min(6))).min(MOST);
        let left = wait.checked_sub(now.duration_since(last))?;
        // A clock that went back does not make it longer.
        let left = left.min(wait);
        (left > SignedDuration::ZERO).then(|| left.unsigned_abs())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_up_to_ten_minutes_and_ends() {
        let now: Timestamp = "2026-01-01T01:00:00Z".parse().expect("a time");
        let ago = |seconds: i64| now.checked_sub(SignedDuration::from_secs(seconds)).ok();
        for (failures, last, expected) in [
            (0, ago(0), None),
            (1, None, None),
            (1, ago(0), Some(10)),
            (1, ago(4), Some(6)),
            (1, ago(10), None),
            (3, ago(0), Some(40)),
            (7, ago(0), Some(600)),
            (u32::MAX, ago(0), Some(600)),
            (1, ago(-3600), Some(10)),
        ] {
            let left = Backoff::after(failures, last).remaining(now).map(|left| left.as_secs());
            assert_eq!(left, expected, "{failures} failures, the last at {last:?}");
        }
    }
}
