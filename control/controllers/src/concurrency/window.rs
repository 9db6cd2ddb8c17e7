//! How many requests were under way, by second, for as long as a window is. Pure.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// Seconds between two looks while something is asked: what one of them says holds for the others, too.
const GAP_MAX: u64 = 3;

/// The seconds in which something was asked, and how much. As many as the longest window has: an hour's.
#[derive(Debug, Clone)]
pub(super) struct Window {
    begun: Instant,
    seconds: VecDeque<(u64, f64)>,
    keeps: u64,
}

impl Window {
    /// Keeps what was asked for so long.
    pub(super) fn new(now: Instant, keeps: Duration) -> Self {
        Self { begun: now, seconds: VecDeque::new(), keeps: keeps.as_secs().max(1) }
    }

    /// Keeps so much from now on.
    pub(super) fn resize(&mut self, keeps: Duration) {
        self.keeps = keeps.as_secs().max(1);
    }

    fn second(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.begun).as_secs()
    }

    /// So many are under way; of one second the most counts.
    pub(super) fn record(&mut self, now: Instant, value: f64) {
        let second = self.second(now);
        let first_kept = (second + 1).saturating_sub(self.keeps);
        while self.seconds.front().is_some_and(|(at, _)| *at < first_kept) {
            self.seconds.pop_front();
        }
        if value <= 0.0 {
            return;
        }
        match self.seconds.back_mut() {
            Some((last, most)) if *last == second => *most = most.max(value),
            last => {
                let after = last.map_or(second, |(last, _)| *last + 1);
                let from = if second - after.min(second) < GAP_MAX { after } else { second };
                self.seconds.extend((from..=second).map(|at| (at, value)));
            }
        }
    }

    /// The average of so long; of less where less has passed.
    pub(super) fn average(&self, now: Instant, over: Duration) -> f64 {
        let (second, over) = (self.second(now), over.as_secs().max(1));
        let from = (second + 1).saturating_sub(over);
        let sum: f64 = self.seconds.iter().filter(|(at, _)| *at >= from).map(|(_, value)| value).sum();
        sum / over.min(second + 1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_in_which_nothing_was_asked_count_too() {
        let begun = Instant::now();
        let at = |millis: u64| begun + Duration::from_millis(millis);
        let over = Duration::from_secs;
        let mut window = Window::new(begun, over(10));
        window.record(at(200), 4.0);
        window.record(at(900), 2.0);
        assert_eq!(window.average(at(950), over(10)), 4.0, "of what has passed");
        window.record(at(1_500), 2.0);
        assert_eq!(window.average(at(1_500), over(10)), 3.0);
        assert_eq!(window.average(at(1_500), over(1)), 2.0);
        assert_eq!(window.average(at(3_500), over(2)), 0.0);
        assert_eq!(window.average(at(3_500), over(10)), 1.5);
        // A look that came late speaks for what is between, one after a rest does not.
        window.record(at(3_900), 2.0);
        assert_eq!(window.average(at(3_900), over(4)), 2.5);
        window.record(at(9_900), 1.0);
        assert_eq!(window.average(at(9_900), over(10)), 1.1);
        window.record(at(11_500), 0.0);
        assert_eq!(window.seconds.front().map(|(at, _)| *at), Some(2), "what is older than the window goes");
        window.record(at(60_000), 0.0);
        assert!(window.seconds.is_empty() && window.average(at(60_000), over(10)) == 0.0);
    }
}
