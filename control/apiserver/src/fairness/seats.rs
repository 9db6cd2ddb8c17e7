//! The seats of a server as requests take them: the dispatcher, a clock, and waiting.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::counters::Counters;
use super::dispatch::{Arrival, Dispatcher, Granted, LevelId, Place, Rejection, Seat};

type Waiter = oneshot::Sender<Seat>;

/// All seats. The lock is held for some hundred nanoseconds at a time.
pub(super) struct Seats(Mutex<Dispatcher<Waiter>>);

impl Seats {
    pub fn new(total: u64) -> Arc<Seats> {
        Arc::new(Seats(Mutex::new(Dispatcher::new(total))))
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
        level: LevelId,
        flow: u64,
        width: u32,
        until: Instant,
        counters: &Arc<Counters>,
    ) -> Result<Option<Taken>, Rejection> {
        let mut wait = None;
        let waiter = || {
            let (sender, receiver) = oneshot::channel();
            wait = Some(receiver);
            sender
        };
        let arrival = self.0.lock().arrive(level, flow, width.max(1), waiter);
        let place = match (arrival, wait) {
            (Arrival::Seated(seat), _) => return Ok(Some(Taken::new(self, seat, counters, Duration::ZERO))),
            (Arrival::Gone, _) => return Ok(None),
            (Arrival::Rejected(why), _) => {
                counters.reject(why);
                return Err(why);
            }
            (Arrival::Waits(_), None) => return Err(Rejection::Cancelled),
            (Arrival::Waits(place), Some(granted)) => {
                counters.waiting.fetch_add(1, Ordering::Relaxed);
                Waiting { seats: self, place, granted, counters, since: Instant::now(), ended: None }
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
    granted: oneshot::Receiver<Seat>,
    counters: &'a Arc<Counters>,
    since: Instant,
    /// How the wait ended.
    ended: Option<Result<(), Rejection>>,
}

impl Waiting<'_> {
    async fn wait(mut self, until: Instant) -> Result<Taken, Rejection> {
        match tokio::time::timeout_at(until.into(), &mut self.granted).await {
            Ok(Ok(seat)) => {
                self.ended = Some(Ok(()));
                Ok(Taken::new(self.seats, seat, self.counters, self.since.elapsed()))
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
        let why = match self.ended {
            Some(Ok(())) => return,
            Some(Err(why)) => why,
            None => Rejection::Cancelled,
        };
        self.counters.reject(why);
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
    counters: Arc<Counters>,
    since: Instant,
}

impl Taken {
    fn new(seats: &Arc<Seats>, seat: Seat, counters: &Arc<Counters>, waited: Duration) -> Taken {
        counters.dispatch(seat.width, waited);
        Taken { seats: seats.clone(), seat, counters: counters.clone(), since: Instant::now() }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.counters.finish(self.seat.width);
        self.seats.finish(self.seat, self.since.elapsed());
    }
}
