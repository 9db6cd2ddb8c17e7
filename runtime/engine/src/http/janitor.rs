//! Ends requests whose time is over and instances that nobody needs. Lives while a service has any of either.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::RequestError;
use super::run::Warm;
use super::service::Service;

/// How often it looks, at least, while there is something to look after.
const PERIOD: Duration = Duration::from_secs(1);

impl Service {
    /// Sees to it that there is a janitor.
    pub(super) fn look_after(self: &Arc<Self>) {
        if !self.janitor.swap(true, Relaxed) {
            let service = self.clone();
            self.engine.guests().spawn(async move { service.clean().await });
        }
    }

    /// Ends flights whose time is over and instances that nobody has needed; returns when there are none of either.
    async fn clean(self: Arc<Self>) {
        loop {
            let now = Instant::now();
            // What comes while it sleeps has at least this long.
            let mut next = PERIOD.min(self.options.request_timeout);
            let mut late = Vec::new();
            let flights = {
                let flights = self.flights.lock();
                for flight in flights.places.iter().flatten() {
                    match flight.deadline.checked_duration_since(now) {
                        Some(left) if !left.is_zero() => next = next.min(left),
                        _ => late.push(flight.clone()),
                    }
                }
                flights.len()
            };
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
