//! How long a watch that broke waits before it is asked for again. Where all servers were gone, what has happened meanwhile is heard
//! within seconds of the first one's return; a watch that was refused for long is asked for no more often than that.

use std::time::Duration;

use kube::runtime::utils::Backoff;

/// The first wait, and the longest; it doubles, and up to a quarter comes on top.
const WAIT: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(3));

/// The waits of one watch.
pub struct Again(Duration);

impl Default for Again {
    fn default() -> Again {
        Again::new()
    }
}

impl Again {
    /// From the first on.
    pub fn new() -> Again {
        Again(WAIT.0)
    }
}

impl Iterator for Again {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let wait = self.0;
        self.0 = (wait * 2).min(WAIT.1);
        Some(wait + wait.mul_f64(rand::random::<f64>() / 4.0))
    }
}

impl Backoff for Again {
    fn reset(&mut self) {
        self.0 = WAIT.0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_bound_and_begin_anew_after_a_success() {
        let mut again = Again::new();
        let waits: Vec<Duration> = again.by_ref().take(20).collect();
        assert!(waits[0] >= WAIT.0 && waits[0] < 2 * WAIT.0, "{waits:?}");
        assert!(waits[19] >= WAIT.1 && waits[19] <= WAIT.1 * 5 / 4, "{waits:?}");
        again.reset();
        assert!(again.next().is_some_and(|wait| wait < 2 * WAIT.0));
    }
}
