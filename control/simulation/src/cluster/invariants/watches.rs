//! A watch is ordered, unique, complete and goes on where it was; a bookmark says that everything before it was told.
//!
//! etcd's watch guarantees ("ordered, unique, reliable, atomic, resumable, bookmarkable") as its robustness tests check them
//! (`tests/robustness/validate/watch.go`). Completeness is judged where servers are compared (`history.rs`).

use serde_json::Value;

use crate::cluster::wire::revision;

/// One watch.
pub struct Watch {
    /// The revision of the last event.
    last: u64,
    /// Up to which everything was told.
    upto: u64,
}

impl Watch {
    /// One that begins after a revision.
    pub fn new(after: u64) -> Watch {
        Watch { last: after, upto: after }
    }

    /// Up to which revision everything was told.
    pub fn upto(&self) -> u64 {
        self.upto
    }

    /// Takes what was said; the revision of the event, if it is one.
    pub fn hears(&mut self, said: &Value) -> Result<Option<u64>, String> {
        let Some(at) = revision(&said["object"]) else { return Err(format!("no revision in {said}")) };
        if said["type"] == "BOOKMARK" {
            if at < self.upto {
                return Err(format!("a bookmark goes back from {} to {at}", self.upto));
            }
            self.upto = at;
            return Ok(None);
        }
        // Also what a bookmark has passed: it promised that nothing before it is left.
        if at <= self.upto {
            let last = self.last;
            return Err(format!("{} {at} after {} (the last event was {last})", said["type"], self.upto));
        }
        (self.last, self.upto) = (at, at);
        Ok(Some(at))
    }

    /// A planted fault: it was said, and not heard.
    pub fn skips(&mut self, said: &Value) {
        self.upto = self.upto.max(revision(&said["object"]).unwrap_or_default());
    }
}
