//! One request under way.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use futures::task::AtomicWaker;
use http::{Request, Response};
use parking_lot::Mutex;
use wasmtime_wasi_http::WasiBody;

use super::RequestError;
use super::admission::Permit;
use super::incoming::{Awaited, watched};
use super::run::run;
use super::service::Service;
use crate::Body;
use crate::exec::{self, Running};
use crate::host::{BodyEnd, Chain};
use crate::meter::Metered;
use crate::slice::Clock;

/// Time that a guest may use on the gateway. Two slices; most requests need a tenth of one.
pub(super) const INLINE_MAX: Duration = Duration::from_micros(200);

/// How a flight ended.
type Outcome = Result<(), RequestError>;

/// The head of the answer, on its way from the guest to the asker.
pub(super) struct Head {
    response: Mutex<Option<Result<Response<WasiBody>, RequestError>>>,
    /// Whether the guest gave an answer.
    is_answered: AtomicBool,
    /// How the body ended.
    pub(super) end: Arc<BodyEnd>,
    /// Of whoever waits for the head, then of the body's reader.
    waker: AtomicWaker,
    /// Whether that one is polling: [`RESTS`], [`POLLED`] or [`WOKEN`].
    turn: AtomicU8,
    /// The flight's place among those at work.
    permit: Mutex<Option<Permit>>,
}

const RESTS: u8 = 0;
const POLLED: u8 = 1;
/// Woken while it was polled.
const WOKEN: u8 = 2;

impl Head {
    fn new(permit: Option<Permit>) -> Arc<Head> {
        Arc::new(Head {
            response: Mutex::new(None),
            is_answered: AtomicBool::new(false),
            end: Arc::default(),
            waker: AtomicWaker::new(),
            turn: AtomicU8::new(RESTS),
            permit: Mutex::new(permit),
        })
    }

    pub(super) fn set(&self, response: Result<Response<WasiBody>, RequestError>) {
        self.is_answered.store(response.is_ok(), Ordering::Relaxed);
        *self.response.lock() = Some(response);
        self.rouse();
    }

    /// Polls for the one who waits. Guest and body, polled in turn by one task, wake each other all the time: who is polling
    /// sees that by itself, and is woken only when it is about to wait. Waking it each time has tokio poll the connection
    /// once more for nothing, and rouse another thread to do it.
    pub(super) fn polled<T>(
        self: &Arc<Self>,
        context: &Context<'_>,
        poll: impl FnOnce(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        self.waker.register(context.waker());
        self.turn.store(POLLED, Ordering::SeqCst);
        let waker = Waker::from(self.clone());
        let polled = poll(&mut Context::from_waker(&waker));
        // Whoever got something asks again before it waits.
        if self.turn.swap(RESTS, Ordering::SeqCst) == WOKEN && polled.is_pending() {
            context.waker().wake_by_ref();
        }
        polled
    }

    /// Wakes whoever waits.
    fn rouse(&self) {
        let while_polled = |turn| (turn == POLLED).then_some(WOKEN);
        if self.turn.fetch_update(Ordering::SeqCst, Ordering::SeqCst, while_polled) == Err(RESTS) {
            self.waker.wake();
        }
    }

    /// Whether the guest gave an answer: one that gave none may be broken.
    pub(super) fn is_answered(&self) -> bool {
        self.is_answered.load(Ordering::Relaxed)
    }

    pub(super) fn take_permit(&self) -> Option<Permit> {
        self.permit.lock().take()
    }

    /// Whether it asks on behalf of the node how the guest is.
    pub(super) fn is_probe(&self) -> bool {
        self.permit.lock().as_ref().is_some_and(Permit::is_probe)
    }

    pub(super) fn has_permit(&self) -> bool {
        self.permit.lock().is_some()
    }
}

impl Wake for Head {
    fn wake(self: Arc<Self>) {
        self.rouse();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.rouse();
    }
}

/// A request, its instance and its answer.
pub(super) struct Flight {
    service: Arc<Service>,
    /// Its place in the service's list.
    pub(super) key: AtomicUsize,
    pub(super) deadline: Instant,
    /// Held for one poll at most; who ends a flight does not wait for it: whoever held it calls
    /// [`Flight::finish_ending`] afterwards.
    guest: Mutex<State>,
    /// Why it was ended from outside.
    ending: Mutex<Option<RequestError>>,
    is_ended: AtomicBool,
    /// When the reader of the answer was given something and has not asked for more since: milliseconds of the service's
    /// life, plus one.
    handed: AtomicU64,
    /// The rest of the request, when the guest waits for it.
    awaited: Arc<Awaited>,
    pub(super) head: Arc<Head>,
}

enum State {
    /// Polled by the asker and by the reader of the body, on the gateway's threads.
    Inline(Metered<Outcome>),
    /// On the guests' threads.
    Moved(Running),
    Done(Outcome),
}

impl Flight {
    /// Puts a request on its way; nothing runs before [`Flight::head`] is polled.
    ///
    /// Refused when the service was closed after the permit was given.
    pub(super) fn launch(
        service: &Arc<Service>,
        request: Request<Body>,
        permit: Permit,
        chain: Chain,
    ) -> Result<Arc<Flight>, RequestError> {
        let (head, awaited) = (Head::new(Some(permit)), Awaited::new());
        let request = request.map(|body| watched(body, &awaited));
        let future = run(service.clone(), request, head.clone(), chain);
        let account = service.account.clone();
        let clock = account.inline_clock();
        let flight = Arc::new(Flight {
            service: service.clone(),
            key: AtomicUsize::new(usize::MAX),
            deadline: deadline(service.options.request_timeout),
            guest: Mutex::new(State::Inline(Metered::new(account, clock, future))),
            ending: Mutex::new(None),
            is_ended: AtomicBool::new(false),
            handed: AtomicU64::new(0),
            awaited,
            head,
        });
        service.register(&flight)?;
        Ok(flight)
    }

    /// Waits for the head of the answer.
    pub(super) async fn head(self: &Arc<Self>) -> Result<Response<WasiBody>, RequestError> {
        if self.service.is_heavy.load(Ordering::Relaxed) || self.service.account.is_large() || !exec::is_gateway() {
            self.move_away();
        }
        poll_fn(|context| self.head.polled(context, |context| self.poll_head(context))).await
    }

    fn poll_head(self: &Arc<Self>, context: &mut Context<'_>) -> Poll<Result<Response<WasiBody>, RequestError>> {
        let progress = self.drive(context);
        if let Some(response) = self.head.response.lock().take() {
            return Poll::Ready(response);
        }
        let ended = match progress {
            Poll::Ready(outcome) => Some(outcome),
            // It may have ended, or been moved, meanwhile.
            Poll::Pending => self.outcome(),
        };
        let Some(outcome) = ended else { return Poll::Pending };
        // It may have answered from another thread just before it ended.
        let response = self.head.response.lock().take();
        Poll::Ready(response.unwrap_or_else(|| Err(outcome.err().unwrap_or(RequestError::NoResponse))))
    }

    /// Lets the guest go on, when it is here.
    pub(super) fn drive(self: &Arc<Self>, context: &mut Context<'_>) -> Poll<Outcome> {
        if let Poll::Ready(outcome) = self.poll_guest(context) {
            return Poll::Ready(outcome);
        }
        // Who ended it meanwhile did not wait.
        match self.finish_ending() {
            Some(reason) => Poll::Ready(Err(reason)),
            None => Poll::Pending,
        }
    }

    fn poll_guest(self: &Arc<Self>, context: &mut Context<'_>) -> Poll<Outcome> {
        let mut state = self.guest.lock();
        let metered = match &mut *state {
            State::Inline(metered) => metered,
            State::Moved(_) => return Poll::Pending,
            State::Done(outcome) => return Poll::Ready(outcome.clone()),
        };
        if !exec::is_gateway() {
            self.relocate(&mut state);
            return Poll::Pending;
        }
        match Pin::new(&mut *metered).poll(context) {
            Poll::Ready(outcome) => {
                let old = std::mem::replace(&mut *state, State::Done(outcome.clone()));
                drop(state);
                drop(old);
                self.ended(&outcome);
                return Poll::Ready(outcome);
            }
            // What fills a large memory is paid for before it begins, with the next slice.
            Poll::Pending if metered.used > INLINE_MAX || self.service.account.is_large() => {
                self.service.is_heavy.store(true, Ordering::Relaxed);
                self.relocate(&mut state);
            }
            Poll::Pending => {}
        }
        Poll::Pending
    }

    /// Whether the guest went away before it had finished its answer.
    pub(super) fn is_broken(&self) -> bool {
        self.head.end.is_broken()
    }

    /// How it ended, when it has.
    pub(super) fn outcome(&self) -> Option<Outcome> {
        if let Some(reason) = &*self.ending.lock() {
            return Some(Err(reason.clone()));
        }
        if let State::Done(outcome) = &*self.guest.lock() {
            return Some(outcome.clone());
        }
        // Who ended it meanwhile did not wait.
        self.finish_ending().map(Err)
    }

    /// Nobody polls it any more: what is left to do is done on the guests' threads, until the deadline.
    pub(super) fn detach(self: &Arc<Self>) {
        self.handed(false);
        // Mostly there is next to nothing left: closing a stream, returning. What has panicked under its reader, who is dropped
        // because of it, would panic again, and that ends the process: it is moved, where a panic harms its own request only.
        if exec::is_gateway() && !std::thread::panicking() {
            let _ = self.drive(&mut Context::from_waker(Waker::noop()));
        }
        self.move_away();
    }

    /// The reader has something to take, or asks for more.
    pub(super) fn handed(&self, is_handed: bool) {
        let at = if is_handed { self.service.age_millis() + 1 } else { 0 };
        self.handed.store(at, Ordering::Relaxed);
        if is_handed {
            self.awaited.moved();
        }
    }

    /// How long the guest has waited for the rest of the request, and done nothing else for its client.
    pub(super) fn unfed(&self) -> Duration {
        self.awaited.waits()
    }

    /// How long the reader has not asked for more.
    pub(super) fn stalled(&self) -> Duration {
        match self.handed.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            at => Duration::from_millis(self.service.age_millis().saturating_sub(at - 1)),
        }
    }

    /// The reader that would poll the guest does not: it goes on without it.
    pub(super) fn leave_reader(self: &Arc<Self>) {
        if let Some(mut state) = self.guest.try_lock() {
            self.relocate(&mut state);
        }
        // Who ended it meanwhile did not wait.
        let _ = self.finish_ending();
    }

    /// Hands the guest to the guests' threads, when it is here.
    fn move_away(self: &Arc<Self>) {
        self.relocate(&mut self.guest.lock());
        // Who ended it meanwhile did not wait.
        let _ = self.finish_ending();
    }

    /// Who calls this comes to [`Flight::finish_ending`] when it has let go of the lock.
    fn relocate(self: &Arc<Self>, state: &mut State) {
        if !matches!(state, State::Inline(_)) {
            return;
        }
        let State::Inline(mut metered) = std::mem::replace(state, State::Done(Err(RequestError::Killed))) else {
            return;
        };
        let mut settle = Settle(Some(self.clone()));
        // The task waits for this lock before it can say that it is done.
        let running = self.service.engine.executor.spawn(&self.service.account.lane, async move {
            metered.clock = Clock::Thread;
            let outcome = (&mut metered).await;
            let is_heavy = metered.used > INLINE_MAX;
            // With it goes the memory, before anybody hears that it is done.
            drop(metered);
            if let Some(flight) = settle.0.take() {
                flight.service.is_heavy.store(is_heavy, Ordering::Relaxed);
                flight.settle(outcome);
            }
        });
        *state = State::Moved(running);
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
        self.head.rouse();
    }

    /// Ends it from outside, without waiting for a poll that may be going on.
    pub(super) fn end(&self, reason: RequestError) {
        {
            let mut ending = self.ending.lock();
            if ending.is_some() || self.is_ended.load(Ordering::SeqCst) {
                return;
            }
            *ending = Some(reason);
        }
        self.head.end.break_off();
        let _ = self.finish_ending();
        self.head.rouse();
    }

    /// Throws the guest away when it was ended from outside; says why. Does nothing while somebody polls it: that one
    /// comes here when it has let go of the guest.
    fn finish_ending(&self) -> Option<RequestError> {
        let reason = self.ending.lock().clone()?;
        if let Some(mut state) = self.guest.try_lock()
            && !matches!(*state, State::Done(_))
        {
            let old = std::mem::replace(&mut *state, State::Done(Err(reason.clone())));
            drop(state);
            if let State::Moved(running) = &old {
                running.cancel();
            }
            drop(old);
            self.ended(&Err(reason.clone()));
        }
        Some(reason)
    }

    fn ended(&self, outcome: &Outcome) {
        if !self.is_ended.swap(true, Ordering::SeqCst) {
            self.service.unregister(self.key.load(Ordering::Relaxed), outcome);
        }
    }
}

/// Says that a flight has ended when its task goes without a word: the host panicked.
struct Settle(Option<Arc<Flight>>);

impl Drop for Settle {
    fn drop(&mut self) {
        if let Some(flight) = self.0.take() {
            flight.head.end.break_off();
            flight.settle(Err(RequestError::Trap("the host failed".to_owned())));
        }
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
            flight.end(RequestError::Killed);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;
    use crate::http::admission::Asker;
    use crate::tests::probe;
    use crate::{HttpOptions, HttpService, Spec, empty};

    type Way = fn(&Arc<Flight>);

    async fn permitted(service: &HttpService) -> Permit {
        service.0.admission.admit(Asker::Client).await.unwrap()
    }

    fn launch(service: &HttpService, permit: Permit) -> Result<Arc<Flight>, RequestError> {
        let request = Request::get("http://probe/spin").body(empty()).unwrap();
        Flight::launch(&service.0, request, permit, Chain::default())
    }

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn who_polls_is_woken_when_it_would_wait_and_not_before() {
        let (head, count) = (Head::new(None), Arc::new(Count::default()));
        let waker = Waker::from(count.clone());
        let context = Context::from_waker(&waker);
        let mut kept = None;
        let mut poll = |polled: Poll<()>| {
            let wakes = |context: &mut Context<'_>| {
                kept = Some(context.waker().clone());
                context.waker().wake_by_ref();
                head.rouse();
                polled
            };
            let _ = head.polled(&context, wakes);
            count.0.swap(0, Ordering::SeqCst)
        };
        assert_eq!((poll(Poll::Ready(())), poll(Poll::Pending)), (0, 1));
        // From then on, whoever wakes it does.
        kept.unwrap().wake();
        head.set(Err(RequestError::Killed));
        assert_eq!(count.0.load(Ordering::SeqCst), 1, "AtomicWaker gives a waker once for each poll");
        assert!(head.polled(&context, |_| Poll::<()>::Pending).is_pending());
        head.set(Err(RequestError::Killed));
        assert_eq!(count.0.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn an_ending_that_comes_while_the_guest_is_handed_over_is_not_lost() {
        let service = probe(Spec::new("a"), HttpOptions::default()).await;
        let ways: [(&str, Way); 4] = [
            ("head", |flight| drop(flight.head().now_or_never())),
            ("drive", |flight| drop(flight.drive(&mut Context::from_waker(Waker::noop())))),
            ("detach", Flight::detach),
            ("leave_reader", Flight::leave_reader),
        ];
        for (way, hand_over) in ways {
            let flight = launch(&service, permitted(&service).await).unwrap();
            let held = flight.guest.lock();
            flight.end(RequestError::Timeout);
            drop(held);
            hand_over(&flight);
            assert!(matches!(&*flight.guest.lock(), State::Done(Err(RequestError::Timeout))), "{way}");
            assert_eq!(service.counters().in_flight, 0, "{way}");
        }
    }

    /// As a connection that is dropped because what it polled has panicked drops its answer.
    #[tokio::test]
    async fn a_panic_of_the_host_under_a_reader_harms_its_own_request_only() {
        struct Reader(Arc<Flight>);
        impl Drop for Reader {
            fn drop(&mut self) {
                self.0.detach();
            }
        }
        let service = probe(Spec::new("a"), HttpOptions::default()).await;
        let flight = launch(&service, permitted(&service).await).unwrap();
        let account = service.0.account.clone();
        let clock = account.inline_clock();
        *flight.guest.lock() = State::Inline(Metered::new(account, clock, async { panic!("the host fails") }));
        let reader = Reader(flight.clone());
        let reading = service.0.engine.executor.gateway().spawn(async move {
            let _ = reader.0.drive(&mut Context::from_waker(Waker::noop()));
        });
        assert!(reading.await.unwrap_err().is_panic());
        let ended = async {
            while flight.outcome().is_none() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), ended).await.expect("it is moved, and ends");
        assert!(matches!(flight.outcome(), Some(Err(RequestError::Trap(_)))));
        assert_eq!(service.counters().in_flight, 0);
    }

    #[tokio::test]
    async fn a_request_that_was_let_in_before_a_kill_does_not_begin_after_it() {
        let service = probe(Spec::new("a"), HttpOptions::default()).await;
        let permit = permitted(&service).await;
        service.kill();
        assert!(launch(&service, permit).is_err(), "nobody would end it");
        assert_eq!(service.counters().in_flight, 0);
    }
}
