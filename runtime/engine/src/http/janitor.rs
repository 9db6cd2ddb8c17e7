//! Ends requests whose time is over, answers that nobody reads, and instances that nobody needs. Lives while a service has
//! any of these, on the gateway: it never waits for a guest.

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
/// memory lasts.
const SLOW: Duration = Duration::from_millis(500);

impl Service {
    /// Sees to it that there is a janitor.
    pub(super) fn look_after(self: &Arc<Self>) {
        if !self.janitor.swap(true, Relaxed) {
            let service = self.clone();
            let task = async move { service.clean().await };
            self.engine.executor.gateway().spawn(task);
        }
    }

    /// Slow readers hold no places of others, as long as there is memory for one more instance each. As many of them as
    /// there are places may do without.
    fn make_room(&self, slow: &[Arc<Flight>]) {
        let mut without = slow.iter().filter(|flight| !flight.head.has_permit()).count();
        for flight in slow {
            flight.leave_reader();
            let usage = self.account.usage();
            let has_memory =
                usage.memory_bytes.saturating_add(2 * self.admission.footprint()) < self.account.memory_max();
            if without < self.admission.count() as usize
                && has_memory
                && let Some(permit) = flight.head.take_permit()
            {
                drop(permit);
                without += 1;
            }
        }
    }

    /// Ends flights whose time is over and instances that nobody has needed; returns when there are none of either.
    async fn clean(self: Arc<Self>) {
        loop {
            let now = Instant::now();
            // What comes while it sleeps has at least this long.
            let mut next = PERIOD.min(self.options.request_timeout).min(self.options.read_stall);
            let (mut late, mut stalled, mut slow) = (Vec::new(), Vec::new(), Vec::new());
            let flights = {
                let flights = self.flights.lock();
                for flight in flights.places.iter().flatten() {
                    match flight.deadline.checked_duration_since(now) {
                        Some(left) if !left.is_zero() => next = next.min(left),
                        _ => late.push(flight.clone()),
                    }
                    match flight.stalled() {
                        time if time >= self.options.read_stall => stalled.push(flight.clone()),
                        time if time >= SLOW => slow.push(flight.clone()),
                        _ => {}
                    }
                }
                flights.len()
            };
            for flight in stalled {
                flight.end(RequestError::Stalled);
            }
            self.make_room(&slow);
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
