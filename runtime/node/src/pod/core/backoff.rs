//! Waiting longer after each failure: 10 s doubling to 300 s, as the kubelet does for crashes and pulls.

use std::time::Duration;

/// First wait after a crash or a failed pull.
pub const FIRST: Duration = Duration::from_secs(10);
/// Longest wait.
pub const MAX: Duration = Duration::from_secs(300);
/// A container that ran this long is forgiven its crashes.
pub const FORGIVEN_AFTER: Duration = Duration::from_secs(600);
/// First wait after volumes could not be set up.
pub const SETUP_FIRST: Duration = Duration::from_millis(500);
/// Longest wait after volumes could not be set up.
pub const SETUP_MAX: Duration = Duration::from_secs(122);

/// How often something failed lately.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Backoff {
    delay: Option<Duration>,
    updated: Duration,
}

impl Backoff {
    /// The wait that follows an ending at `finished`: nothing the first time.
    pub fn wait(&self, finished: Duration) -> Option<Duration> {
        self.delay.filter(|_| !self.is_forgiven(finished))
    }

    /// Counts one more try, made for the ending at `finished`.
    pub fn next(&mut self, finished: Duration) {
        self.delay = Some(match self.delay {
            Some(delay) if !self.is_forgiven(finished) => (delay * 2).min(MAX),
            _ => FIRST,
        });
        self.updated = finished;
    }

    /// Forgets everything.
    pub fn reset(&mut self) {
        *self = Self::default();
    }

    fn is_forgiven(&self, now: Duration) -> bool {
        now.saturating_sub(self.updated) > FORGIVEN_AFTER
    }
}

/// A duration as Go prints it: `10s`, `1m20s`, `5m0s`, `1.5s`, `12ms`.
pub fn human(duration: Duration) -> String {
    let (seconds, millis) = (duration.as_secs(), duration.subsec_millis());
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    let fraction = match millis {
        0 => format!("{}s", seconds % 60),
        _ => format!("{}s", format!("{}.{millis:03}", seconds % 60).trim_end_matches('0')),
    };
    match (hours, minutes, seconds) {
        (0, 0, 0) if millis > 0 => format!("{millis}ms"),
        (0, 0, _) => fraction,
        (0, _, _) => format!("{minutes}m{fraction}"),
        _ => format!("{hours}h{minutes}m{fraction}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_to_five_minutes_and_forgives_after_ten() {
        let mut backoff = Backoff::default();
        let mut at = Duration::ZERO;
        let mut waits = Vec::new();
        for _ in 0..8 {
            waits.push(backoff.wait(at).map_or(0, |wait| wait.as_secs()));
            backoff.next(at);
            at += MAX;
        }
        assert_eq!(waits, [0, 10, 20, 40, 80, 160, 300, 300]);
        assert_eq!(backoff.wait(at + FORGIVEN_AFTER), None);
    }

    #[test]
    fn prints_as_go_does() {
        for (millis, text) in
            [(10_000, "10s"), (80_000, "1m20s"), (300_000, "5m0s"), (1500, "1.5s"), (12, "12ms"), (0, "0s")]
        {
            assert_eq!(human(Duration::from_millis(millis)), text);
        }
    }
}
