//! What is remembered of a Job's pods beside what informers show: finalizers that were removed and are shown still, and
//! failures since the last success.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use parking_lot::Mutex;

use super::backoff::Backoff;

/// By the uid of the Job; bounded by Jobs and their pods.
#[derive(Debug, Default)]
pub(super) struct Memory {
    jobs: Mutex<HashMap<Arc<str>, Entry>>,
}

#[derive(Debug, Default)]
struct Entry {
    /// Uids of pods.
    untracked: HashSet<Arc<str>>,
    backoff: Backoff,
}

impl Memory {
    /// Uids of pods whose finalizer is removed. Read it *before* the store.
    pub(super) fn untracked(&self, job: &str) -> HashSet<Arc<str>> {
        self.jobs.lock().get(job).map(|entry| entry.untracked.clone()).unwrap_or_default()
    }

    /// The finalizer of a pod is being removed.
    pub(super) fn untrack(&self, job: &str, pod: &Arc<str>) {
        self.jobs.lock().entry(job.into()).or_default().untracked.insert(pod.clone());
    }

    /// It was not removed, or the store shows that it was.
    pub(super) fn seen(&self, job: &str, pod: &str) {
        self.change(job, |entry| {
            entry.untracked.remove(pod);
        });
    }

    pub(super) fn backoff(&self, job: &str) -> Backoff {
        self.jobs.lock().get(job).map(|entry| entry.backoff).unwrap_or_default()
    }

    pub(super) fn set_backoff(&self, job: &str, backoff: Backoff) {
        if backoff != self.backoff(job) {
            self.jobs.lock().entry(job.into()).or_default();
            self.change(job, |entry| entry.backoff = backoff);
        }
    }

    fn change(&self, job: &str, change: impl FnOnce(&mut Entry)) {
        let mut jobs = self.jobs.lock();
        let Some(entry) = jobs.get_mut(job) else { return };
        change(entry);
        if entry.untracked.is_empty() && entry.backoff == Backoff::default() {
            jobs.remove(job);
        }
    }

    pub(super) fn forget(&self, job: &str) {
        self.jobs.lock().remove(job);
    }
}
