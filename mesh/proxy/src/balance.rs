//! Choosing an endpoint: the better of two random ones, where better means fewer requests under way and quicker answers.
//!
//! Latency is a peak-sensitive moving average: a slow answer counts at once, quick ones win trust back slowly, as in
//! Finagle's and linkerd's peak EWMA. An endpoint that fails is left out for a while, longer each time, but never more
//! than half of them: then all are used again, since the fault is more likely elsewhere.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use coracle_discovery::Endpoint;
use rand::Rng;

/// First time that a failing endpoint is left out; doubles with each further failure.
const EJECT_FIRST: Duration = Duration::from_secs(1);
/// Longest time that an endpoint is left out.
const EJECT_MAX: Duration = Duration::from_secs(30);
/// Weight of a new latency in the average, as one over this.
const DECAY: u64 = 8;

/// What is known of an endpoint beyond discovery.
#[derive(Debug)]
struct State {
    endpoint: Endpoint,
    in_flight: AtomicU32,
    latency_us: AtomicU64,
    failures: AtomicU32,
    /// Milliseconds since the balancer's epoch until which it is left out.
    ejected_until_ms: AtomicU64,
}

impl State {
    fn new(endpoint: Endpoint) -> State {
        State {
            endpoint,
            in_flight: AtomicU32::new(0),
            latency_us: AtomicU64::new(0),
            failures: AtomicU32::new(0),
            ejected_until_ms: AtomicU64::new(0),
        }
    }

    /// Lower is better.
    fn load(&self) -> u64 {
        let in_flight = u64::from(self.in_flight.load(Ordering::Relaxed));
        (in_flight + 1).saturating_mul(self.latency_us.load(Ordering::Relaxed).max(1))
    }
}

/// The endpoints of one port of a Service.
#[derive(Debug)]
pub struct Balancer {
    states: Vec<Arc<State>>,
    epoch: Instant,
}

impl Balancer {
    /// Takes over what `before` knows of endpoints that stay.
    pub(crate) fn new(endpoints: &[Endpoint], before: Option<&Balancer>) -> Balancer {
        let known: HashMap<&Endpoint, &Arc<State>> =
            before.iter().flat_map(|before| &before.states).map(|state| (&state.endpoint, state)).collect();
        let state = |endpoint: &Endpoint| match known.get(endpoint) {
            Some(state) => Arc::clone(state),
            None => Arc::new(State::new(endpoint.clone())),
        };
        let epoch = before.map_or_else(Instant::now, |before| before.epoch);
        Balancer { states: endpoints.iter().map(state).collect(), epoch }
    }

    /// An endpoint for one request or connection; `None` when there is none at all.
    pub fn pick(&self) -> Option<Picked> {
        let state = match self.states.as_slice() {
            [] => return None,
            [only] => only,
            states => {
                let mut random = rand::rng();
                let first = random.random_range(0..states.len());
                let second = (first + random.random_range(1..states.len())) % states.len();
                let (first, second) = (&states[first], &states[second]);
                let now = self.now_ms();
                let is_out = |state: &State| state.ejected_until_ms.load(Ordering::Relaxed) > now;
                match (is_out(first), is_out(second)) {
                    (false, true) => first,
                    (true, false) => second,
                    (false, false) if first.load() <= second.load() => first,
                    (false, false) => second,
                    (true, true) => self.outside_of_the_ejected(now).unwrap_or(first),
                }
            }
        };
        state.in_flight.fetch_add(1, Ordering::Relaxed);
        Some(Picked { state: state.clone(), begun: Instant::now(), epoch: self.epoch })
    }

    /// The least loaded endpoint that is not left out, unless more than half are.
    fn outside_of_the_ejected(&self, now: u64) -> Option<&Arc<State>> {
        let usable = || self.states.iter().filter(|state| state.ejected_until_ms.load(Ordering::Relaxed) <= now);
        (usable().count() * 2 >= self.states.len()).then(|| usable().min_by_key(|state| state.load())).flatten()
    }

    /// Number of endpoints.
    pub fn len(&self) -> usize {
        self.states.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.states.is_empty()
    }

    fn now_ms(&self) -> u64 {
        self.epoch.elapsed().as_millis() as u64
    }
}

/// An endpoint in use. It counts as under way until this is dropped.
#[derive(Debug)]
pub struct Picked {
    state: Arc<State>,
    begun: Instant,
    epoch: Instant,
}

impl Picked {
    /// The endpoint.
    pub fn endpoint(&self) -> &Endpoint {
        &self.state.endpoint
    }

    /// It answered.
    pub fn succeeded(&self) {
        let sample = (self.begun.elapsed().as_micros() as u64).max(1);
        let average = self.state.latency_us.load(Ordering::Relaxed);
        let next = if sample >= average { sample } else { average - (average - sample).div_ceil(DECAY) };
        self.state.latency_us.store(next, Ordering::Relaxed);
        if self.state.failures.load(Ordering::Relaxed) != 0 {
            self.state.failures.store(0, Ordering::Relaxed);
        }
    }

    /// It gave no answer: it is left out for a while.
    pub fn failed(&self) {
        let failures = self.state.failures.fetch_add(1, Ordering::Relaxed).min(5);
        let out = (EJECT_FIRST * (1 << failures)).min(EJECT_MAX);
        let until = (self.epoch.elapsed() + out).as_millis() as u64;
        self.state.ejected_until_ms.store(until, Ordering::Relaxed);
    }
}

impl Drop for Picked {
    fn drop(&mut self) {
        self.state.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoints(count: u8) -> Vec<Endpoint> {
        (0..count).map(|n| Endpoint { address: [10, 0, 0, n].into(), port: 80, node: None }).collect()
    }

    #[test]
    fn spreads_what_is_under_way() {
        let balancer = Balancer::new(&endpoints(4), None);
        let held: Vec<Picked> = (0..400).map(|_| balancer.pick().unwrap()).collect();
        for state in &balancer.states {
            let count = state.in_flight.load(Ordering::Relaxed);
            assert!((60..140).contains(&count), "{count} of 400 on one of four");
        }
        drop(held);
        assert!(balancer.states.iter().all(|state| state.in_flight.load(Ordering::Relaxed) == 0));
    }

    #[test]
    fn leaves_out_what_failed_but_never_most() {
        let balancer = Balancer::new(&endpoints(4), None);
        let fail = |at: usize| {
            let state = balancer.states[at].clone();
            state.in_flight.fetch_add(1, Ordering::Relaxed);
            Picked { state, begun: Instant::now(), epoch: balancer.epoch }.failed();
        };
        fail(0);
        fail(1);
        let used = |at: usize| (0..200).any(|_| balancer.pick().unwrap().endpoint() == &balancer.states[at].endpoint);
        assert!(!used(0) && !used(1) && used(2) && used(3));
        fail(2);
        assert!(used(0) || used(1), "with three of four out, all are tried again");
    }

    #[test]
    fn remembers_endpoints_that_stay() {
        let before = Balancer::new(&endpoints(2), None);
        before.pick().unwrap().failed();
        let after = Balancer::new(&endpoints(3), Some(&before));
        assert!(Arc::ptr_eq(&before.states[0], &after.states[0]));
        assert_eq!(after.len(), 3);
        assert!(Balancer::new(&[], Some(&after)).pick().is_none());
    }
}
