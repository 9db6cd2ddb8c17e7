//! The seats of a server as requests take them: the dispatcher, a clock, and waiting.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::counters::Counters;
use super::dispatch::{Arrival, Dispatcher, Granted, Place, Rejection, Seat};
use super::present::{Presence, Present, Stands};

type Waiter = oneshot::Sender<Seat>;

/// All seats. The locks are held for some hundred nanoseconds at a time, and nobody holds both.
pub(super) struct Seats(Mutex<Dispatcher<Waiter>>, Mutex<Presence>);

impl Seats {
    pub fn new(total: u64) -> Arc<Seats> {
        Arc::new(Seats(Mutex::new(Dispatcher::new(total)), Mutex::default()))
    }

    /// The requests that wait or have a seat.
    pub fn present(&self) -> Vec<Present> {
        self.1.lock().all()
    }

    /// Looks at the dispatcher, or configures it; those whom that lets go on do so.
    pub fn with<T>(&self, work: impl FnOnce(&mut Dispatcher<Waiter>) -> (T, Granted<Waiter>)) -> T {
        let (found, granted) = work(&mut self.0.lock());
        self.tell(granted);
        found
    }

    /// Waits for a seat until then. `Ok(None)` when the level is gone.
    pub async fn take(
        self: &Arc<Seats>,
        hash: u64,
        until: Instant,
        present: Present,
    ) -> Result<Option<Taken>, Rejection> {
        let (flow, width) = (present.flow.clone(), present.width);
        let counters = &flow.counters;
        let mut wait = None;
        let waiter = || {
            let (sender, receiver) = oneshot::channel();
            wait = Some(receiver);
            sender
        };
        let arrival = self.0.lock().arrive(flow.level, hash, width, waiter);
        let place = match (arrival, wait) {
            (Arrival::Seated(seat), _) => {
                let stands = Stands::Seated(seat.queue, present.arrived);
                let at = self.1.lock().add(Present { stands, ..present });
                return Ok(Some(Taken::new(self, seat, at, counters, Duration::ZERO)));
            }
            (Arrival::Gone, _) => return Ok(None),
            (Arrival::Rejected(why), _) => {
                counters.reject(why);
                return Err(why);
            }
            (Arrival::Waits(_), None) => return Err(Rejection::Cancelled),
            (Arrival::Waits(place), Some(granted)) => {
                counters.waiting.fetch_add(1, Ordering::Relaxed);
                counters.waiting_seats.fetch_add(i64::from(width), Ordering::Relaxed);
                let since = present.arrived;
                let at = self.1.lock().add(Present { stands: Stands::Waiting(place.number), ..present });
                Waiting { seats: self, place, at, granted, counters, width, since, ended: None }
            }
        };
        place.wait(until).await.map(Some)
    }

    fn tell(&self, granted: Granted<Waiter>) {
        for (waiter, seat) in granted {
            // Whoever has gone meanwhile has not sat down.
            if let Err(seat) = waiter.send(seat) {
                self.finish(seat, Duration::ZERO);
            }
        }
    }

    fn finish(&self, seat: Seat, lasted: Duration) {
        let granted = self.0.lock().finish(seat, lasted);
        self.tell(granted);
    }
}

/// A request in a queue. Whoever leaves, leaves the queue.
struct Waiting<'a> {
    seats: &'a Arc<Seats>,
    place: Place,
    /// Among those that are present.
    at: usize,
    granted: oneshot::Receiver<Seat>,
    counters: &'a Arc<Counters>,
    width: u32,
    since: Instant,
    /// How the wait ended.
    ended: Option<Result<(), Rejection>>,
}

impl Waiting<'_> {
    async fn wait(mut self, until: Instant) -> Result<Taken, Rejection> {
        match tokio::time::timeout_at(until.into(), &mut self.granted).await {
            Ok(Ok(seat)) => {
                self.ended = Some(Ok(()));
                self.seats.1.lock().stands(self.at, Stands::Seated(seat.queue, Instant::now()));
                Ok(Taken::new(self.seats, seat, self.at, self.counters, self.since.elapsed()))
            }
            Ok(Err(_)) | Err(_) => {
                self.ended = Some(Err(Rejection::TimeOut));
                Err(Rejection::TimeOut)
            }
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.counters.waiting.fetch_sub(1, Ordering::Relaxed);
        self.counters.waiting_seats.fetch_sub(i64::from(self.width), Ordering::Relaxed);
        let why = match self.ended {
            Some(Ok(())) => return,
            Some(Err(why)) => why,
            None => Rejection::Cancelled,
        };
        self.counters.reject(why);
        self.seats.1.lock().remove(self.at);
        let granted = self.seats.0.lock().withdraw(self.place);
        self.seats.tell(granted);
        // A seat that was given at the same moment is given back.
        self.granted.close();
        if let Ok(seat) = self.granted.try_recv() {
            self.seats.finish(seat, Duration::ZERO);
        }
    }
}

/// A seat, until it is dropped.
pub(crate) struct Taken {
    seats: Arc<Seats>,
    seat: Seat,
    at: usize,
    counters: Arc<Counters>,
    since: Instant,
}

impl Taken {
    fn new(seats: &Arc<Seats>, seat: Seat, at: usize, counters: &Arc<Counters>, waited: Duration) -> Taken {
        counters.dispatch(seat.width, waited);
        Taken { seats: seats.clone(), seat, at, counters: counters.clone(), since: Instant::now() }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let lasted = self.since.elapsed();
        self.counters.finish(self.seat.width, lasted);
        self.seats.1.lock().remove(self.at);
        self.seats.finish(self.seat, lasted);
    }
}
