//! One request under way.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use futures::task::AtomicWaker;
use http::{Request, Response};
use parking_lot::Mutex;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::AbortHandle;
use wasmtime_wasi_http::WasiBody;

use super::RequestError;
use super::run::run;
use super::service::Service;
use crate::Body;
use crate::host::BodyEnd;
use crate::meter::{Clock, Metered};

/// Time that a guest may use on the asker's task. Two slices of fuel; most requests need a tenth of one.
pub(super) const INLINE_MAX: Duration = Duration::from_micros(200);

/// How a flight ended.
type Outcome = Result<(), RequestError>;

/// The head of the answer, on its way from the guest to the asker.
pub(super) struct Head {
    response: Mutex<Option<Result<Response<WasiBody>, RequestError>>>,
    /// How the body ended.
    pub(super) end: Arc<BodyEnd>,
    waker: AtomicWaker,
}

impl Head {
    pub(super) fn set(&self, response: Result<Response<WasiBody>, RequestError>) {
        *self.response.lock() = Some(response);
        self.waker.wake();
    }
}

/// A request, its instance and its answer.
pub(super) struct Flight {
    service: Arc<Service>,
    /// Its place in the service's list.
    pub(super) key: AtomicUsize,
    pub(super) deadline: Instant,
    guest: Mutex<State>,
    head: Arc<Head>,
}

enum State {
    /// Polled by the asker and by the reader of the body.
    Inline(Metered<Outcome>),
    /// On the guests' threads.
    Moved(AbortHandle),
    Done(Outcome),
}

impl Flight {
    /// Puts a request on its way; nothing runs before [`Flight::head`] is polled.
    pub(super) fn launch(service: &Arc<Service>, request: Request<Body>, permit: OwnedSemaphorePermit) -> Arc<Flight> {
        let head = Arc::new(Head { response: Mutex::new(None), end: Arc::default(), waker: AtomicWaker::new() });
        let future = run(service.clone(), request, head.clone(), permit);
        let flight = Arc::new(Flight {
            service: service.clone(),
            key: AtomicUsize::new(usize::MAX),
            deadline: deadline(service.options.request_timeout),
            guest: Mutex::new(State::Inline(Metered::new(service.account.clone(), Clock::Wall, future))),
            head,
        });
        service.register(&flight);
        flight
    }

    /// Waits for the head of the answer.
    pub(super) async fn head(self: &Arc<Self>) -> Result<Response<WasiBody>, RequestError> {
        if self.service.is_heavy.load(Ordering::Relaxed) {
            self.relocate(&mut self.guest.lock());
        }
        poll_fn(|context| {
            let progress = self.drive(context);
            if let Some(response) = self.head.response.lock().take() {
                return Poll::Ready(response);
            }
            if let Poll::Ready(outcome) = progress {
                return Poll::Ready(Err(outcome.err().unwrap_or(RequestError::NoResponse)));
            }
            self.head.waker.register(context.waker());
            // It may have come, or ended, from another thread since.
            if let Some(response) = self.head.response.lock().take() {
                return Poll::Ready(response);
            }
            match self.outcome() {
                Some(outcome) => Poll::Ready(Err(outcome.err().unwrap_or(RequestError::NoResponse))),
                None => Poll::Pending,
            }
        })
        .await
    }

    /// Lets the guest go on, when it is here.
    pub(super) fn drive(self: &Arc<Self>, context: &mut Context<'_>) -> Poll<Outcome> {
        let mut state = self.guest.lock();
        let metered = match &mut *state {
            State::Inline(metered) => metered,
            State::Moved(_) => return Poll::Pending,
            State::Done(outcome) => return Poll::Ready(outcome.clone()),
        };
        match std::pin::Pin::new(&mut *metered).poll(context) {
            Poll::Ready(outcome) => {
                let old = std::mem::replace(&mut *state, State::Done(outcome.clone()));
                drop(state);
                drop(old);
                self.ended(&outcome);
                Poll::Ready(outcome)
            }
            Poll::Pending if metered.used > INLINE_MAX => {
                self.service.is_heavy.store(true, Ordering::Relaxed);
                self.relocate(&mut state);
                Poll::Pending
            }
            Poll::Pending => Poll::Pending,
        }
    }

    /// Whether the guest went away before it had finished its answer.
    pub(super) fn is_broken(&self) -> bool {
        self.head.end.is_broken()
    }

    /// How it ended, when it has.
    pub(super) fn outcome(&self) -> Option<Outcome> {
        match &*self.guest.lock() {
            State::Done(outcome) => Some(outcome.clone()),
            State::Inline(_) | State::Moved(_) => None,
        }
    }

    /// Nobody polls it any more: what is left to do is done on the guests' threads, until the deadline.
    pub(super) fn detach(self: &Arc<Self>) {
        // Mostly there is next to nothing left: closing a stream, returning.
        if tokio::runtime::Handle::try_current().is_ok() {
            let _ = self.drive(&mut Context::from_waker(Waker::noop()));
        }
        self.relocate(&mut self.guest.lock());
    }

    fn relocate(self: &Arc<Self>, state: &mut State) {
        if !matches!(state, State::Inline(_)) {
            return;
        }
        let State::Inline(mut metered) = std::mem::replace(state, State::Done(Err(RequestError::Stopped))) else {
            return;
        };
        let flight = self.clone();
        // The task waits for this lock before it can say that it is done.
        let task = self.service.engine.guests().spawn(async move {
            metered.clock = Clock::Thread;
            let outcome = (&mut metered).await;
            flight.service.is_heavy.store(metered.used > INLINE_MAX, Ordering::Relaxed);
            flight.settle(outcome);
        });
        *state = State::Moved(task.abort_handle());
    }

    /// The task of a guest that was moved has ended.
    fn settle(&self, outcome: Outcome) {
        {
            let mut state = self.guest.lock();
            if matches!(*state, State::Done(_)) {
                return;
            }
            *state = State::Done(outcome.clone());
        }
        self.ended(&outcome);
        self.head.waker.wake();
    }

    /// Ends it from outside.
    pub(super) fn end(&self, reason: RequestError) {
        let old = {
            let mut state = self.guest.lock();
            if matches!(*state, State::Done(_)) {
                return;
            }
            self.head.end.break_off();
            std::mem::replace(&mut *state, State::Done(Err(reason.clone())))
        };
        match old {
            State::Inline(metered) => drop(metered),
            State::Moved(task) => task.abort(),
            State::Done(_) => {}
        }
        self.ended(&Err(reason));
        self.head.waker.wake();
    }

    fn ended(&self, outcome: &Outcome) {
        self.service.unregister(self.key.load(Ordering::Relaxed), outcome);
    }
}

/// When so much time has passed. A year is for ever.
fn deadline(timeout: Duration) -> Instant {
    const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
    Instant::now() + timeout.min(YEAR)
}

/// A flight whose asker may go away: then it ends.
pub(super) struct Boarded(pub(super) Option<Arc<Flight>>);

impl Drop for Boarded {
    fn drop(&mut self) {
        if let Some(flight) = self.0.take() {
            flight.end(RequestError::Stopped);
        }
    }
}
