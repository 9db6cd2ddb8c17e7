//! Memory goes back to the system when there is nothing to do: the allocator gives freed pages back only while it is called,
//! and after a burst of requests nobody calls it.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// How often a thread that has nothing to do looks through what it holds. It costs a millisecond at most.
const EVERY: Duration = Duration::from_secs(5);

unsafe extern "C" {
    /// Of mimalloc, which is this executable's allocator: frees what this thread holds for later, and purges what is free.
    safe fn mi_collect(force: bool);
}

/// Called by each thread of the runtime that is about to sleep.
pub fn rest() {
    thread_local!(static LAST: Cell<Option<Instant>> = const { Cell::new(None) });
    // A thread that is ending has no place for this any more, and needs none.
    let _ = LAST.try_with(|last| {
        if last.get().is_none_or(|last| last.elapsed() >= EVERY) {
            last.set(Some(Instant::now()));
            mi_collect(true);
        }
    });
}
