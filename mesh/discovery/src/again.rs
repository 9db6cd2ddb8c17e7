//! How long a watch that broke waits before it is asked for again. Where all servers were gone, what has happened meanwhile is heard
//! within seconds of the first one's return; a watch that was refused for long is asked for no more often than that.

use std::time::{Duration, Instant};

use kube::runtime::utils::Backoff;

/// The first wait, and the longest; it doubles, and up to a quarter comes on top.
const WAIT: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(3));

/// What goes well for so long begins with the first wait again.
const QUIET: Duration = Duration::from_secs(10);

/// The waits of one watch.
pub struct Again {
    wait: Duration,
    /// When the last wait is over.
    due: Option<Instant>,
}

impl Default for Again {
    fn default() -> Again {
        Again::new()
    }
}

impl Again {
    /// From the first on.
    pub fn new() -> Again {
        Again { wait: WAIT.0, due: None }
    }
}

impl Iterator for Again {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let now = Instant::now();
        if self.due.is_some_and(|due| now >= due + QUIET) {
            self.wait = WAIT.0;
        }
        let wait = self.wait + self.wait.mul_f64(rand::random::<f64>() / 4.0);
        self.wait = (self.wait * 2).min(WAIT.1);
        self.due = Some(now + wait);
        Some(wait)
    }
}

impl Backoff for Again {
    /// Told of every event, also of that which comes before a list: nothing has gone well by then.
    fn reset(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_bound_and_begin_anew_after_a_while_in_which_all_went_well() {
        let mut again = Again::new();
        let waits: Vec<Duration> = again.by_ref().take(20).collect();
        assert!(waits[0] >= WAIT.0 && waits[0] < 2 * WAIT.0, "{waits:?}");
        assert!(waits[19] >= WAIT.1 && waits[19] <= WAIT.1 * 5 / 4, "{waits:?}");
        again.reset();
        assert!(again.next().is_some_and(|wait| wait >= WAIT.1), "an event alone is no success");
        again.due = again.due.map(|due| due - 2 * WAIT.1 - QUIET);
        assert!(again.next().is_some_and(|wait| wait < 2 * WAIT.0));
    }
}
