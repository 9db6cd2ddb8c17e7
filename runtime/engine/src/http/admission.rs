//! Who may be at work: places for requests, a few of their own for probes, and how many the memory has room for.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::RequestError;

/// Probes at work at the same time; more wait, see [`PROBES_WAITING_MAX`].
const PROBES_MAX: usize = crate::guest::CONTAINER_PROBES_MAX as usize;

/// Probes that wait for one of those.
const PROBES_WAITING_MAX: u32 = 16;

/// How long a request waits that comes from the service itself, by whatever way: what it waits for may wait for it.
const SELF_CALL_WAIT: Duration = Duration::from_secs(1);

/// Calls between guests that stand behind one request. Services call each other some few levels deep.
pub(super) const DEPTH_MAX: u32 = 16;

/// What is asked: put into a request's extensions by the node, which no guest and no client can reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe;

/// A place.
#[derive(Debug)]
pub(super) struct Permit {
    place: OwnedSemaphorePermit,
    is_request: bool,
}

impl Permit {
    pub(super) fn is_probe(&self) -> bool {
        !self.is_request
    }
}

/// The places of one service.
#[derive(Debug)]
pub(super) struct Admission {
    places: Arc<Semaphore>,
    /// How many there are, free and taken.
    count: AtomicU32,
    max: u32,
    waiting: AtomicU32,
    waiting_max: u32,
    patience: Duration,
    probes: Arc<Semaphore>,
    probes_waiting: AtomicU32,
    memory_max: u64,
    /// What an instance needs, as seen lately.
    footprint: AtomicU64,
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asker {
    Client,
    /// A guest on behalf of a request to this very service.
    Itself,
    Probe,
}

impl Admission {
    pub(super) fn new(max: u32, waiting_max: u32, patience: Duration, memory_max: u64) -> Admission {
        let max = max.max(1);
        Admission {
            places: Arc::new(Semaphore::new(max as usize)),
            count: AtomicU32::new(max),
            max,
            waiting: AtomicU32::new(0),
            waiting_max,
            patience,
            probes: Arc::new(Semaphore::new(PROBES_MAX)),
            probes_waiting: AtomicU32::new(0),
            memory_max,
            footprint: AtomicU64::new(0),
        }
    }

    /// Lets one in, at once or in its turn.
    pub(super) async fn admit(&self, asker: Asker) -> Result<Permit, RequestError> {
        let (places, waiting, waiting_max) = match asker {
            Asker::Client | Asker::Itself => (&self.places, &self.waiting, self.waiting_max),
            Asker::Probe => (&self.probes, &self.probes_waiting, PROBES_WAITING_MAX),
        };
        let is_request = asker != Asker::Probe;
        if let Ok(place) = places.clone().try_acquire_owned() {
            return Ok(Permit { place, is_request });
        }
        if places.is_closed() {
            return Err(RequestError::Stopped);
        }
        if waiting.fetch_add(1, Relaxed) >= waiting_max {
            waiting.fetch_sub(1, Relaxed);
            return Err(RequestError::Overloaded);
        }
        let _waiting = Waiting(waiting);
        let patience = if asker == Asker::Itself { self.patience.min(SELF_CALL_WAIT) } else { self.patience };
        match tokio::time::timeout(patience, places.clone().acquire_owned()).await {
            Ok(Ok(place)) => Ok(Permit { place, is_request }),
            Ok(Err(_)) => Err(RequestError::Stopped),
            Err(_) => Err(RequestError::Overloaded),
        }
    }

    /// Lets nobody in any more.
    pub(super) fn close(&self) {
        self.places.close();
        self.probes.close();
    }

    /// How many wait for a place.
    pub(super) fn wanted(&self) -> u32 {
        self.waiting.load(Relaxed)
    }

    /// How many may be at work now.
    pub(super) fn count(&self) -> u32 {
        self.count.load(Relaxed)
    }

    /// What an instance needs.
    pub(super) fn footprint(&self) -> u64 {
        self.footprint.load(Relaxed)
    }

    /// An instance had so much memory: no more of them at the same time than fit into the limit beside a probe, so that
    /// many requests wait for each other and do not end as out of memory. Less is taken at once; more is given one
    /// place at a time, and a large request is forgotten after some smaller ones. Takes back the permit.
    pub(super) fn learn(&self, memory_bytes: u64, permit: Option<Permit>) {
        let forget =
            |old: u64| Some(if memory_bytes >= old { memory_bytes } else { old - (old - memory_bytes).div_ceil(8) });
        let old = self.footprint.fetch_update(Relaxed, Relaxed, forget).unwrap_or_default();
        let footprint = forget(old).unwrap_or(memory_bytes).max(1);
        let fit = u32::try_from(self.memory_max / footprint).unwrap_or(u32::MAX);
        let fit = fit.saturating_sub(1).clamp(1, self.max);
        let one_less = |count| (count > fit).then(|| count - 1);
        if let Some(permit) = permit
            && permit.is_request
            && self.count.fetch_update(Relaxed, Relaxed, one_less).is_ok()
        {
            permit.place.forget();
        }
        while self.count.load(Relaxed) > fit
            && let Ok(place) = self.places.try_acquire()
        {
            if self.count.fetch_update(Relaxed, Relaxed, one_less).is_err() {
                return;
            }
            place.forget();
        }
        if self.count.fetch_update(Relaxed, Relaxed, |count| (count < fit).then_some(count + 1)).is_ok() {
            self.places.add_permits(1);
        }
    }
}

/// One in the queue.
struct Waiting<'a>(&'a AtomicU32);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn concurrency_follows_memory_down_and_up() {
        let admission = Admission::new(64, 1, Duration::from_secs(1), 1000);
        admission.learn(10, None);
        assert_eq!(admission.count(), 64);
        admission.learn(200, None);
        assert_eq!(admission.count(), 4, "five fit, and one of them may be a probe");
        for _ in 0..200 {
            let permit = admission.admit(Asker::Client).await.unwrap();
            admission.learn(10, Some(permit));
        }
        assert_eq!(admission.count(), 64, "one large request is not remembered for ever");
        let held = admission.admit(Asker::Client).await.unwrap();
        admission.learn(2000, Some(held));
        assert_eq!(admission.count(), 1);
    }

    #[tokio::test]
    async fn probes_have_places_of_their_own_and_who_waits_for_itself_waits_a_moment() {
        let admission = Admission::new(1, 10, Duration::from_secs(100), u64::MAX);
        let held = admission.admit(Asker::Client).await.unwrap();
        admission.admit(Asker::Probe).await.unwrap();
        let soon = tokio::time::timeout(Duration::from_secs(50), admission.admit(Asker::Itself)).await;
        assert_eq!(soon.expect("long before the patience of others").unwrap_err(), RequestError::Overloaded);
        assert_eq!(admission.waiting.load(Relaxed), 0);
        admission.close();
        assert_eq!(admission.admit(Asker::Probe).await.unwrap_err(), RequestError::Stopped);
        drop(held);
    }
}
