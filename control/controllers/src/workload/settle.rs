//! Statuses on the way to something: written a moment later, when they are often overtaken by what comes of them.
//!
//! Every write waits for those before it. A Deployment of one that is ready within milliseconds would write its status, and
//! that of its ReplicaSet, three times on the way, each between two steps that bring the pod up.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// How long such a status waits at most: a pod of a compiled component is ready by then.
const WAIT: Duration = Duration::from_millis(25);

/// Entries of objects that went meanwhile are dropped beyond this many.
const ENTRIES: usize = 4096;

/// Since when statuses wait, by uid.
#[derive(Debug, Default)]
pub(crate) struct Settle {
    since: Mutex<HashMap<Arc<str>, Instant>>,
}

impl Settle {
    /// How much longer a status may wait; `None` when it is to be written.
    pub(crate) fn wait(&self, uid: &str) -> Option<Duration> {
        let mut since = self.since.lock();
        if since.len() > ENTRIES {
            since.retain(|_, begun| begun.elapsed() < WAIT);
        }
        let begun = *since.entry(uid.into()).or_insert_with(Instant::now);
        let left = WAIT.checked_sub(begun.elapsed()).filter(|left| !left.is_zero());
        if left.is_none() {
            since.remove(uid);
        }
        left
    }

    /// Nothing waits any more.
    pub(crate) fn done(&self, uid: &str) {
        self.since.lock().remove(uid);
    }
}
