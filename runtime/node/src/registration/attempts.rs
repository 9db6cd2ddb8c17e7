//! When it is said again what somebody does not take, or takes away.

use std::time::Duration;

use tokio::time::Instant;

use super::Serves;

/// Wait after the first attempt, and the longest; it doubles.
const WAIT: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));

/// Attempts to say something that have not helped yet.
#[derive(Debug, Default)]
pub(super) struct Attempts(Option<Last>);

#[derive(Debug)]
struct Last {
    said: Serves,
    wait: Duration,
    again: Instant,
}

impl Attempts {
    /// When it is time to say this, if that is not at once; something else than last time has to wait for the shortest time only.
    pub fn due_at(&self, say: &[(&str, Option<String>)]) -> Option<Instant> {
        let last = self.0.as_ref()?;
        Some(if last.said == *say { last.again } else { last.again - (last.wait - WAIT.0) })
    }

    /// This was said.
    pub fn tried(&mut self, said: Serves, now: Instant) {
        let before = self.0.take().filter(|last| last.said == said);
        let wait = before.map_or(WAIT.0, |last| (last.wait * 2).min(WAIT.1));
        self.0 = Some(Last { said, wait, again: now + wait });
    }

    /// It is seen to be said.
    pub fn succeeded(&mut self, now: Instant) {
        // Who takes it away at once is no reason to say it all the time.
        self.0.take_if(|last| last.again <= now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_refused_is_said_less_and_less_often_and_what_is_new_soon() {
        let say = |text: &str| vec![("a", Some(text.to_owned())), ("b", None)];
        let begun = Instant::now();
        let at = |seconds| begun + Duration::from_secs(seconds);
        let is_due =
            |attempts: &Attempts, text: &str, second| attempts.due_at(&say(text)).is_none_or(|due| due <= at(second));
        let mut attempts = Attempts::default();
        let mut tries = Vec::new();
        for second in 0..1000 {
            if is_due(&attempts, "one", second) {
                attempts.tried(say("one"), at(second));
                tries.push(second);
            }
        }
        assert_eq!(tries, [0, 1, 3, 7, 15, 31, 63, 127, 255, 511, 811]);
        assert!(is_due(&attempts, "two", 812) && !is_due(&attempts, "one", 1110));
        attempts.tried(say("two"), at(812));
        assert_eq!(attempts.due_at(&say("three")), Some(at(813)));
        attempts.succeeded(at(812));
        assert_eq!(attempts.due_at(&say("two")), Some(at(813)));
        attempts.succeeded(at(813));
        assert_eq!(attempts.due_at(&say("two")), None);
    }

    #[test]
    fn who_takes_it_away_at_once_does_not_have_it_said_all_the_time() {
        let said = || vec![("a", None), ("b", None)];
        let begun = Instant::now();
        let mut attempts = Attempts::default();
        for second in [0, 1, 3, 7] {
            let now = begun + Duration::from_secs(second);
            assert!(attempts.due_at(&said()).is_none_or(|due| due == now));
            attempts.tried(said(), now);
            attempts.succeeded(now);
        }
    }
}
