//! For how long this process has seen things as they are, by a clock that nobody sets.
//!
//! What is collected was pushed, or was touched last, long ago; and what the clock on the wall says of that is wrong when it is set, here
//! or on the server that wrote it down: an hour ahead, and everything that is being pushed at this moment is old. So what is to go is
//! looked at twice, with the time in between that it has to be old for. A process that begins anew counts anew: it goes later then.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Things by `K`, each as it was when it was seen first, as `S` says. As many as were found by the last look that was whole.
#[derive(Debug)]
pub struct Sightings<K, S>(Mutex<HashMap<K, (S, Instant)>>);

impl<K, S> Default for Sightings<K, S> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Eq + Hash, S: PartialEq> Sightings<K, S> {
    /// It is seen now; for how long it was as it is.
    pub fn see(&self, key: K, as_it_is: S, now: Instant) -> Duration {
        let mut seen = self.0.lock();
        let since = match seen.get(&key) {
            Some((before, since)) if *before == as_it_is => *since,
            _ => now,
        };
        seen.insert(key, (as_it_is, since));
        now.saturating_duration_since(since)
    }

    /// All others are gone, or nobody asks for their age.
    pub fn retain(&self, is_there: impl Fn(&K) -> bool) {
        self.0.lock().retain(|key, _| is_there(key));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn age_is_what_was_seen_of_it_and_a_change_begins_it_anew() {
        let (sightings, begun) = (Sightings::default(), Instant::now());
        let after = |seconds| begun + Duration::from_secs(seconds);
        let see = |key, version, seconds| sightings.see(key, version, after(seconds)).as_secs();
        assert_eq!((see("a", 1, 0), see("a", 1, 10), see("b", 1, 10)), (0, 10, 0));
        assert_eq!((see("a", 2, 20), see("a", 2, 25), see("b", 1, 25)), (0, 5, 15));
        sightings.retain(|key| *key == "b");
        let see = |key, version, seconds| sightings.see(key, version, after(seconds)).as_secs();
        assert_eq!((see("a", 2, 30), see("b", 1, 30)), (0, 20), "what was not there is new");
    }
}
