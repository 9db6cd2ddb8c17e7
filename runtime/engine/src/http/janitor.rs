//! Ends requests whose time is over, those that do not come on, answers that nobody reads, and instances that nobody needs. Lives
//! while a service has any of these, on the gateway: it never waits for a guest.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::RequestError;
use super::flight::Flight;
use super::run::Warm;
use super::service::Service;

/// How often it looks, at least, while there is something to look after.
const PERIOD: Duration = Duration::from_secs(1);

/// A reader that has not asked for so long is slow: the guest goes on by itself, and its place is given to others while
/// memory lasts. So is who has not sent on for so long what its guest waits for.
const SLOW: Duration = Duration::from_millis(500);
/// Who has not sent on for so long, and holds a place that others wait for, is ended.
const UNFED_MAX: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 5 });

/// What the janitor sees in one look.
#[derive(Default)]
struct Seen {
    late: Vec<Arc<Flight>>,
    stalled: Vec<Arc<Flight>>,
    unfinished: Vec<Arc<Flight>>,
    slow: Vec<Arc<Flight>>,
    /// How many flights have no place.
    without: usize,
    count: usize,
    /// When the next one is late.
    next: Duration,
}

impl Service {
    /// Sees to it that there is a janitor.
    pub(super) fn look_after(self: &Arc<Self>) {
        if !self.janitor.swap(true, Relaxed) {
            let service = self.clone();
            let task = async move { service.clean().await };
            self.engine.executor.gateway().spawn(task);
        }
    }

    fn look(&self, now: Instant) -> Seen {
        let options = &self.options;
        // What comes while it sleeps has at least this long.
        let next = PERIOD.min(options.request_timeout).min(options.read_stall).min(options.body_stall);
        let mut seen = Seen { next, ..Seen::default() };
        let flights = self.flights.lock();
        for flight in flights.places.iter().flatten() {
            match flight.deadline.checked_duration_since(now) {
                Some(left) if !left.is_zero() => seen.next = seen.next.min(left),
                _ => seen.late.push(flight.clone()),
            }
            match (flight.stalled(), flight.unfed()) {
                (stalled, _) if stalled >= options.read_stall => seen.stalled.push(flight.clone()),
                (_, unfed) if unfed >= options.body_stall => seen.unfinished.push(flight.clone()),
                (stalled, unfed) if stalled.max(unfed) >= SLOW => seen.slow.push(flight.clone()),
                _ => {}
            }
            seen.without += usize::from(!flight.head.has_permit());
        }
        seen.count = flights.len();
        seen
    }

    /// Slow clients hold no places of others, as long as there is memory for one more instance each. As many flights as there are
    /// places may do without, however quick their clients are by now.
    fn make_room(&self, slow: &[Arc<Flight>], mut without: usize) {
        // Who waits is told of a place later: each counts for one.
        let mut wanted = self.admission.wanted();
        for flight in slow {
            if flight.stalled() >= SLOW {
                flight.leave_reader();
            }
            let usage = self.account.usage();
            let has_memory =
                usage.memory_bytes.saturating_add(2 * self.admission.footprint()) < self.account.memory_max();
            if without < self.admission.count() as usize
                && has_memory
                && let Some(permit) = flight.head.take_permit()
            {
                drop(permit);
                without += 1;
                wanted = wanted.saturating_sub(1);
            }
            if wanted > 0 && flight.unfed() >= UNFED_MAX && flight.head.has_permit() {
                flight.end(RequestError::Unfinished);
                wanted -= 1;
            }
        }
    }

    /// Ends flights whose time is over and instances that nobody has needed; returns when there are none of either.
    async fn clean(self: Arc<Self>) {
        loop {
            let now = Instant::now();
            let Seen { late, stalled, unfinished, slow, without, count: flights, next } = self.look(now);
            for flight in stalled {
                flight.end(RequestError::Stalled);
            }
            for flight in unfinished {
                flight.end(RequestError::Unfinished);
            }
            self.make_room(&slow, without);
            for flight in late {
                flight.end(RequestError::Timeout);
            }
            let (idle, warm) = {
                let mut warm = self.warm.lock();
                let idle_timeout = self.options.idle_timeout;
                // The one used last is at the end, so those at the front have waited for longest.
                let fresh = warm.iter().position(|warm| now.duration_since(warm.idle_since) < idle_timeout);
                let stale = fresh.unwrap_or(warm.len());
                let idle: Vec<Warm> = warm.drain(..stale).collect();
                (idle, warm.len())
            };
            drop(idle);
            if flights == 0 && warm == 0 {
                self.janitor.store(false, Relaxed);
                // Something may have come in between, and seen that there is a janitor.
                let is_empty = self.flights.lock().len() == 0 && self.warm.lock().is_empty();
                if is_empty || self.janitor.swap(true, Relaxed) {
                    return;
                }
            }
            tokio::time::sleep(next.max(Duration::from_millis(10))).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;
    use crate::host::Chain;
    use crate::http::admission::Asker;
    use crate::tests::probe;
    use crate::{HttpOptions, Spec, empty};

    /// Clients that pause for a moment and read a little from then on are not slow any more; their flights have no place still.
    #[tokio::test]
    async fn as_many_flights_do_without_a_place_as_there_are_places_and_no_more() {
        let service = probe(Spec::new("a"), HttpOptions { concurrency: 2, ..HttpOptions::default() }).await.0;
        let launch = async || {
            let permit = service.admission.admit(Asker::Client).await.unwrap();
            let request = Request::get("http://probe/spin").body(empty()).unwrap();
            Flight::launch(&service, request, permit, Chain::default()).unwrap()
        };
        let have_places = |flights: &[Arc<Flight>]| flights.iter().filter(|flight| flight.head.has_permit()).count();
        let first = [launch().await, launch().await];
        service.make_room(&first, service.look(Instant::now()).without);
        assert_eq!(have_places(&first), 0);
        let more = [launch().await, launch().await];
        let seen = service.look(Instant::now());
        assert_eq!((seen.slow.len(), seen.without, seen.count), (0, 2, 4), "they are quick again");
        service.make_room(&more, seen.without);
        assert_eq!(have_places(&more), 2);
        service.end_all(&RequestError::Killed);
    }
}
