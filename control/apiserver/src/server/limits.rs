//! How much goes on at a time. Beyond it clients are told to come again: a queue would only make them time out.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use coracle_api::status::Status;

/// Counters of what is under way.
pub(crate) struct Limits {
    requests: Arc<AtomicUsize>,
    requests_max: usize,
    streams: Arc<AtomicUsize>,
    streams_max: usize,
}

/// Holds a place until it is dropped.
pub(crate) struct StreamSlot(Arc<AtomicUsize>);

impl Drop for StreamSlot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Limits {
    pub fn new(requests_max: usize, streams_max: usize) -> Limits {
        Limits { requests: Arc::default(), requests_max, streams: Arc::default(), streams_max }
    }

    /// A place for a request that ends by itself.
    pub fn request(&self) -> Result<StreamSlot, Status> {
        take(&self.requests, self.requests_max)
            .ok_or_else(|| Status::too_many_requests("too many requests, please try again later", 1))
    }

    /// A place for a stream.
    pub fn stream(&self) -> Result<StreamSlot, Status> {
        take(&self.streams, self.streams_max)
            .ok_or_else(|| Status::too_many_requests("too many watches, please try again later", 1))
    }

    pub fn requests_now(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }

    pub fn streams_now(&self) -> usize {
        self.streams.load(Ordering::Relaxed)
    }
}

fn take(counter: &Arc<AtomicUsize>, most: usize) -> Option<StreamSlot> {
    let slot = StreamSlot(counter.clone());
    // The slot counts down when it is dropped, also when there is no place.
    let before = counter.fetch_add(1, Ordering::Relaxed);
    (before < most).then_some(slot)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_free_again_when_it_is_dropped() {
        let limits = Limits::new(1, 1);
        let first = limits.request().ok();
        assert!(first.is_some());
        assert_eq!(limits.request().err().map(|status| status.code()), Some(429));
        drop(first);
        assert!(limits.request().is_ok());
        assert_eq!(limits.requests_now(), 0);
    }
}
