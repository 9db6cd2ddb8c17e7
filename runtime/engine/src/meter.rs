//! Runs a guest's future: measures its time, holds it to its quota.
//!
//! A guest gives the thread back at least once a slice ([`crate::slice`]), so a poll is short and what is measured around
//! it is what the guest used.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::time::Sleep;

use crate::limits::Account;
use crate::slice::{self, Clock};

/// A guest's future with its account.
pub(crate) struct Metered<T> {
    future: Pin<Box<dyn Future<Output = T> + Send>>,
    account: Arc<Account>,
    pub(crate) clock: Clock,
    /// Time used by this future.
    pub(crate) used: Duration,
    held_back: Option<(Instant, Pin<Box<Sleep>>)>,
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
        if let Some(quota) = &this.account.quota {
            let mut start = Instant::now();
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
        let (poll, spent) = slice::measured(this.clock, || this.future.as_mut().poll(context));
        this.used += spent;
        this.account.ran(spent);
        poll
    }
}
