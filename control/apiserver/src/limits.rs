//! How much goes on at a time, and whose turn it is.
//!
//! A caller is a *flow*. The cluster's own duties have places that users cannot take. A flow gets a place while it has fewer
//! than are still free: one flow alone takes half of all, two a third each, so there is always room for one who comes
//! later. Beyond that clients are told to come again: a queue would only make them time out.

use std::collections::HashMap;
use std::sync::Arc;

use coracle_api::status::Status;
use parking_lot::Mutex;

/// Requests of the cluster's own duties at a time: a few controllers, a scheduler, node agents.
const DUTIES_MAX: usize = 1_000;
/// Their streams: a node agent follows each ConfigMap and Secret of its pods.
const DUTY_STREAMS_MAX: usize = 100_000;

/// Whose request it is, before anybody is impersonated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Flow<'a> {
    /// Whether it is a duty of the cluster itself.
    pub duty: bool,
    /// The user.
    pub name: &'a str,
}

/// Places, counted by flow.
#[derive(Debug)]
struct Pool {
    most: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    flows: HashMap<Arc<str>, usize>,
}

impl Pool {
    fn new(most: usize) -> Arc<Pool> {
        Arc::new(Pool { most, taken: Mutex::default() })
    }

    fn take(self: &Arc<Pool>, flow: &str) -> Option<Place> {
        let mut taken = self.taken.lock();
        let free = self.most.saturating_sub(taken.all);
        let flow = match taken.flows.get_key_value(flow) {
            Some((_, mine)) if *mine >= free => return None,
            None if free == 0 => return None,
            Some((name, _)) => name.clone(),
            None => Arc::from(flow),
        };
        taken.all += 1;
        *taken.flows.entry(flow.clone()).or_default() += 1;
        Some(Place { pool: self.clone(), flow })
    }

    fn now(&self) -> usize {
        self.taken.lock().all
    }
}

/// Holds a place until it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    pool: Arc<Pool>,
    flow: Arc<str>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.pool.taken.lock();
        taken.all -= 1;
        if let Some(mine) = taken.flows.get_mut(&self.flow) {
            *mine -= 1;
            if *mine == 0 {
                taken.flows.remove(&self.flow);
            }
        }
    }
}

/// Counters of what is under way.
pub(crate) struct Limits {
    duties: Arc<Pool>,
    duty_streams: Arc<Pool>,
    requests: Arc<Pool>,
    streams: Arc<Pool>,
}

impl Limits {
    pub fn new(requests_max: usize, streams_max: usize) -> Limits {
        Limits {
            duties: Pool::new(DUTIES_MAX),
            duty_streams: Pool::new(DUTY_STREAMS_MAX),
            requests: Pool::new(requests_max),
            streams: Pool::new(streams_max),
        }
    }

    /// A place for a request that ends by itself.
    pub fn request(&self, flow: Flow<'_>) -> Result<Place, Status> {
        let pool = if flow.duty { &self.duties } else { &self.requests };
        pool.take(flow.name).ok_or_else(|| Status::too_many_requests("too many requests, please try again later", 1))
    }

    /// A place for a stream.
    pub fn stream(&self, flow: Flow<'_>) -> Result<Place, Status> {
        let pool = if flow.duty { &self.duty_streams } else { &self.streams };
        pool.take(flow.name).ok_or_else(|| Status::too_many_requests("too many watches, please try again later", 1))
    }

    pub fn requests_now(&self) -> usize {
        self.requests.now() + self.duties.now()
    }

    pub fn streams_now(&self) -> usize {
        self.streams.now() + self.duty_streams.now()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(name: &str) -> Flow<'_> {
        Flow { duty: false, name }
    }

    #[test]
    fn a_place_is_free_again_when_it_is_dropped() {
        let limits = Limits::new(1, 1);
        let first = limits.request(user("a")).ok();
        assert!(first.is_some());
        assert_eq!(limits.request(user("b")).err().map(|status| status.code()), Some(429));
        drop(first);
        assert!(limits.request(user("b")).is_ok());
        assert_eq!(limits.requests_now(), 0);
    }

    #[test]
    fn a_greedy_flow_leaves_room_for_others_and_for_duties() {
        let limits = Limits::new(12, 1);
        let all = |name| -> Vec<Place> { std::iter::from_fn(|| limits.request(user(name)).ok()).collect() };
        let greedy = all("greedy");
        let second = all("second");
        assert_eq!((greedy.len(), second.len()), (6, 3));
        assert!(limits.request(user("third")).is_ok(), "there is room for one who comes later");
        let duty = Flow { duty: true, name: "system:kube-scheduler" };
        let _all: Vec<Place> = ["c", "d", "e", "f", "g"].into_iter().flat_map(all).collect();
        assert!(limits.request(duty).is_ok());
    }
}
