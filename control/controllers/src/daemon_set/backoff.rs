//! How long a node's failed pods are left alone: who is refused by the node at once would be made anew at once, for ever.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

/// The first delay and the longest (the reference's).
const FIRST: Duration = Duration::from_secs(1);
const MOST: Duration = Duration::from_secs(15 * 60);
/// Entries beyond this many are cleared of those that have run out.
const ENTRIES: usize = 4096;

/// Delays by DaemonSet (uid and generation) and node.
#[derive(Debug, Default)]
pub(super) struct Backoffs {
    entries: HashMap<(Arc<str>, i64, Arc<str>), Entry>,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    delay: Duration,
    since: Instant,
}

impl Backoffs {
    /// How long failed pods of the DaemonSet on this node are still left alone.
    pub(super) fn left(&self, set: &Arc<str>, generation: i64, node: &Arc<str>, now: Instant) -> Option<Duration> {
        let entry = self.entries.get(&(set.clone(), generation, node.clone()))?;
        entry.delay.checked_sub(now.duration_since(entry.since)).filter(|left| !left.is_zero())
    }

    /// A failed pod is deleted: the next one waits for twice as long, unless that was long ago.
    pub(super) fn next(&mut self, set: &Arc<str>, generation: i64, node: &Arc<str>, now: Instant) {
        let is_over = |entry: &Entry| now.duration_since(entry.since) > MOST * 2;
        if self.entries.len() >= ENTRIES {
            self.entries.retain(|_, entry| !is_over(entry));
        }
        let before = self.entries.get(&(set.clone(), generation, node.clone())).filter(|entry| !is_over(entry));
        let delay = before.map_or(FIRST, |entry| (entry.delay * 2).min(MOST));
        self.entries.insert((set.clone(), generation, node.clone()), Entry { delay, since: now });
    }

    /// The DaemonSet is gone.
    pub(super) fn forget(&mut self, set: &str) {
        self.entries.retain(|(of, _, _), _| **of != *set);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_and_are_forgotten() {
        let (set, node): (Arc<str>, Arc<str>) = ("s".into(), "n".into());
        let (mut backoffs, mut now) = (Backoffs::default(), Instant::now());
        assert_eq!(backoffs.left(&set, 1, &node, now), None);
        for seconds in [1, 2, 4, 8] {
            backoffs.next(&set, 1, &node, now);
            assert_eq!(backoffs.left(&set, 1, &node, now), Some(Duration::from_secs(seconds)));
            assert_eq!(backoffs.left(&set, 2, &node, now), None, "another generation is another matter");
            now += Duration::from_secs(seconds);
            assert_eq!(backoffs.left(&set, 1, &node, now), None);
        }
        now += MOST * 3;
        backoffs.next(&set, 1, &node, now);
        assert_eq!(backoffs.left(&set, 1, &node, now), Some(FIRST));
        backoffs.forget("s");
        assert!(backoffs.entries.is_empty());
    }
}
