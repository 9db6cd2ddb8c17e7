//! Statuses that were written and that the informer's store does not show yet.
//!
//! Who decides by a status that is older than its own last write would decide the same again. Each write names the version
//! that it was decided on, so what it made is that version with the new status, whoever else wrote in between.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

/// The last status of each object, by uid, with the version that it made. Bounded by the number of objects.
#[derive(Debug)]
pub(crate) struct Written<S> {
    latest: Mutex<HashMap<Arc<str>, (u64, S)>>,
}

impl<S> Default for Written<S> {
    fn default() -> Self {
        Self { latest: Mutex::default() }
    }
}

impl<S: Clone> Written<S> {
    /// It was written, and made this version.
    pub(crate) fn note(&self, uid: &str, version: u64, status: S) {
        self.latest.lock().insert(uid.into(), (version, status));
    }

    /// What was written after the version that is shown.
    pub(crate) fn after(&self, uid: &str, shown: u64) -> Option<(u64, S)> {
        self.latest.lock().get(uid).filter(|(version, _)| *version > shown).cloned()
    }

    /// Whether this version is one's own write.
    pub(crate) fn is(&self, uid: &str, version: u64) -> bool {
        self.latest.lock().get(uid).is_some_and(|(written, _)| *written == version)
    }

    /// The object is gone, or needs no further status.
    pub(crate) fn forget(&self, uid: &str) {
        self.latest.lock().remove(uid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_until_the_store_has_caught_up() {
        let written = Written::default();
        assert_eq!(written.after("u", 1), None);
        written.note("u", 7, "new");
        assert_eq!(
            (written.after("u", 6), written.after("u", 7), written.after("u", 9)),
            (Some((7, "new")), None, None)
        );
        assert!(written.is("u", 7) && !written.is("u", 6));
        written.forget("u");
        assert!(!written.is("u", 7));
    }
}
