//! Bytes of events that are told and not yet where they go.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

/// Counts them.
#[derive(Default)]
pub(super) struct Waiting {
    bytes: AtomicUsize,
    less: Notify,
}

impl Waiting {
    /// Counts bytes, if no more than so many are there with them.
    pub fn hold(&self, bytes: usize, most: usize) -> bool {
        let more = |waiting: usize| waiting.checked_add(bytes).filter(|all| *all <= most);
        self.bytes.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).is_ok()
    }

    /// They wait no more; how many still do.
    pub fn let_go(&self, bytes: usize) -> usize {
        let left = self.bytes.fetch_sub(bytes, Ordering::AcqRel) - bytes;
        self.less.notify_waiters();
        left
    }

    /// How many wait.
    pub fn now(&self) -> usize {
        self.bytes.load(Ordering::Acquire)
    }

    /// Waits until no more than so many are there.
    pub async fn until(&self, most: usize) {
        loop {
            let less = self.less.notified();
            tokio::pin!(less);
            less.as_mut().enable();
            if self.now() <= most {
                return;
            }
            less.await;
        }
    }
}
