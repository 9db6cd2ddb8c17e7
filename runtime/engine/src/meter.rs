//! Runs a guest's future: measures its time, holds it to its quota.
//!
//! A guest gives the thread back at least every [`crate::settings::FUEL_SLICE`] units of fuel, so a poll is short and
//! what is measured around it is what the guest used.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use tokio::time::Sleep;

use crate::limits::Account;

/// A guest's future with its account.
pub(crate) struct Metered<T> {
    future: Pin<Box<dyn Future<Output = T> + Send>>,
    account: Arc<Account>,
    pub(crate) clock: Clock,
    /// Time used by this future.
    pub(crate) used: Duration,
    held_back: Option<(Instant, Pin<Box<Sleep>>)>,
}

/// Which clock tells what a poll took.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Clock {
    /// Costs 20 ns, counts the time in which another thread had the CPU: for requests, which are short.
    Wall,
    /// Costs 200 ns, counts the thread's own time: for guests that compute.
    Thread,
}

impl Clock {
    fn now(self, wall: Instant, start: Instant) -> Duration {
        match self {
            Clock::Wall => wall.saturating_duration_since(start),
            Clock::Thread => {
                let time = clock_gettime(ClockId::ThreadCPUTime);
                Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
            }
        }
    }
}

impl<T> Metered<T> {
    pub(crate) fn new(
        account: Arc<Account>,
        clock: Clock,
        future: impl Future<Output = T> + Send + 'static,
    ) -> Metered<T> {
        Metered { future: Box::pin(future), account, clock, used: Duration::ZERO, held_back: None }
    }
}

impl<T> Future for Metered<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        let this = &mut *self;
        let mut start = Instant::now();
        if let Some(quota) = &this.account.quota {
            loop {
                if let Some((since, sleep)) = &mut this.held_back {
                    ready!(sleep.as_mut().poll(context));
                    start = Instant::now();
                    this.account.was_throttled(start.saturating_duration_since(*since));
                    this.held_back = None;
                }
                match quota.admit(start) {
                    Ok(()) => break,
                    Err(until) => this.held_back = Some((start, Box::pin(tokio::time::sleep_until(until.into())))),
                }
            }
        }
        let before = this.clock.now(start, start);
        let poll = this.future.as_mut().poll(context);
        let spent = this.clock.now(Instant::now(), start).saturating_sub(before);
        this.used += spent;
        this.account.ran(spent);
        poll
    }
}
