//! Whose turn it is on a connection. While a request is answered, it is ours; else the client's, who may take its time until
//! its place is wanted for another: then who has waited longest, before all others who never sent a whole request, gives way.
//! Where bytes are passed on, the client's or an answer's, it is nobody's: who lets nothing move for long gives way, too.

use std::pin::Pin;
use std::sync::atomic::{
    AtomicU64, AtomicUsize,
    Ordering::{Relaxed, SeqCst},
};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::gateway::Place;

/// A client for whom bytes are passed on, and none has moved for so long, gives way to others.
pub(crate) const PASSING_REST: Duration = Duration::from_secs(60);

/// Who gives way first: the smallest.
pub(crate) type Patience = (IsKnown, Instant);

/// Whether something of the client's was answered once.
type IsKnown = bool;

#[derive(Debug, Clone, Copy)]
enum State {
    /// Nothing of the client's is under way.
    Waiting(Patience),
    /// So many requests are, and for so many of them bytes are passed on.
    Busy { turns: usize, passing: usize },
    /// It has given way and is about to end.
    GivenUp,
}

/// The turns of one connection.
#[derive(Debug)]
pub(crate) struct Turns {
    state: Mutex<State>,
    begun: AtomicU64,
    /// [`PASSING_REST`], but for tests.
    rest: Duration,
    /// When the connection was made, and milliseconds from then until a byte moved last.
    since: Instant,
    moved: AtomicU64,
    over: CancellationToken,
    wanted: Arc<Wanted>,
}

impl Default for Turns {
    /// Those of a connection whose place nobody else wants.
    fn default() -> Turns {
        Turns::new(CancellationToken::new(), Arc::default())
    }
}

impl Turns {
    /// `over` is cancelled when the connection gives way; `wanted` hears when it could.
    pub fn new(over: CancellationToken, wanted: Arc<Wanted>) -> Turns {
        let state = Mutex::new(State::Waiting((false, Instant::now())));
        let (begun, moved) = (AtomicU64::default(), AtomicU64::default());
        Turns { state, begun, rest: PASSING_REST, since: Instant::now(), moved, over, wanted }
    }

    #[cfg(test)]
    pub fn resting_after(rest: Duration) -> Turns {
        Turns { rest, ..Turns::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request begins; `None` when the connection has given way.
    pub fn begin(self: &Arc<Self>) -> Option<Turn> {
        let mut state = self.state();
        *state = match *state {
            State::Waiting(_) => State::Busy { turns: 1, passing: 0 },
            State::Busy { turns, passing } => State::Busy { turns: turns + 1, passing },
            State::GivenUp => return None,
        };
        self.begun.fetch_add(1, Relaxed);
        Some(Turn { passing: Arc::new(Passing { of: self.clone(), ways: Mutex::default() }), charged: None })
    }

    /// Something was said that is no request: the client has not waited since.
    pub fn used(&self, is_answer: bool) {
        if let State::Waiting((is_known, since)) = &mut *self.state() {
            (*is_known, *since) = (*is_known || is_answer, Instant::now());
        }
    }

    /// How many requests have begun.
    pub fn begun(&self) -> u64 {
        self.begun.load(Relaxed)
    }

    pub fn is_busy(&self) -> bool {
        matches!(*self.state(), State::Busy { .. })
    }

    /// Since when, and after whom it gives way; `None` when it cannot.
    pub fn patience(&self) -> Option<Patience> {
        self.patience_in(&self.state())
    }

    fn patience_in(&self, state: &State) -> Option<Patience> {
        match *state {
            State::Waiting(patience) => Some(patience),
            State::Busy { turns, passing } if turns == passing => {
                let moved = self.since + Duration::from_millis(self.moved.load(Relaxed));
                (moved.elapsed() >= self.rest).then_some((true, moved))
            }
            State::Busy { .. } | State::GivenUp => None,
        }
    }

    /// Ends the connection, if it can give way; says whether it does.
    pub fn give_way(&self) -> bool {
        let mut state = self.state();
        let gives_way = self.patience_in(&state).is_some();
        if gives_way {
            *state = State::GivenUp;
            self.over.cancel();
        }
        gives_way
    }

    /// How long after the connection was made a byte moved last, in milliseconds.
    pub fn last_moved(&self) -> u64 {
        self.moved.load(Relaxed)
    }

    pub fn has_given_way(&self) -> bool {
        matches!(*self.state(), State::GivenUp)
    }
}

/// For which ways bytes of a request are passed on.
#[derive(Debug, Default)]
struct Ways {
    /// Its answer is, or it has changed its protocol.
    back: bool,
    /// Its body is waited for.
    there: bool,
    is_over: bool,
}

impl Ways {
    fn are_passing(&self) -> bool {
        !self.is_over && (self.back || self.there)
    }
}

#[derive(Debug)]
struct Passing {
    of: Arc<Turns>,
    ways: Mutex<Ways>,
}

impl Passing {
    /// Counts what has changed. The ways are locked before the state.
    fn set(&self, change: impl FnOnce(&mut Ways)) {
        let mut ways = self.ways.lock().unwrap_or_else(PoisonError::into_inner);
        let before = ways.are_passing();
        change(&mut ways);
        let now = ways.are_passing();
        if before != now
            && let State::Busy { passing, .. } = &mut *self.of.state()
        {
            *passing = *passing + usize::from(now) - usize::from(before);
        }
    }

    fn moved(&self) {
        self.of.moved.store(self.of.since.elapsed().as_millis() as u64, Relaxed);
    }
}

/// The place of a request, until it is over. An answer brings it as an extension.
#[derive(Debug, Clone)]
pub(crate) struct Charged(#[expect(dead_code, reason = "it is held")] pub Arc<Place>);

/// A request under way.
#[derive(Debug)]
pub(crate) struct Turn {
    passing: Arc<Passing>,
    charged: Option<Charged>,
}

impl Turn {
    /// Another one of the same connection, for what the request has become.
    pub fn again(&self) -> Option<Turn> {
        let mut again = self.passing.of.begin()?;
        again.charge(self.charged.clone());
        Some(again)
    }

    /// From now on it holds this place.
    pub fn charge(&mut self, charged: Option<Charged>) {
        self.charged = charged;
    }

    /// From now on bytes are passed on.
    pub fn passes(&mut self) {
        self.moved();
        self.passing.set(|ways| ways.back = true);
    }

    /// For its body.
    pub fn sent(&self) -> Sent {
        Sent { passing: self.passing.clone(), is_awaited: false }
    }

    /// Whose it is.
    pub fn turns(&self) -> Arc<Turns> {
        self.passing.of.clone()
    }

    /// A byte has moved.
    pub fn moved(&self) {
        self.passing.moved();
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.passing.set(|ways| ways.is_over = true);
        let of = &self.passing.of;
        let mut state = of.state();
        *state = match *state {
            State::Busy { turns: 1, .. } => State::Waiting((true, Instant::now())),
            State::Busy { turns, passing } => State::Busy { turns: turns - 1, passing },
            other => other,
        };
        let is_over = matches!(*state, State::Waiting(_));
        drop(state);
        if is_over {
            of.wanted.changed();
        }
    }
}

/// The body of a request: while somebody wants more of it, it is the client who has to send it.
#[derive(Debug)]
pub(crate) struct Sent {
    passing: Arc<Passing>,
    is_awaited: bool,
}

impl Sent {
    /// More of it was wanted, and has come or not.
    pub fn polled(&mut self, is_ready: bool) {
        let has_changed = self.is_awaited == is_ready;
        // It is waited for from now on, and not since something moved last.
        if is_ready || has_changed {
            self.passing.moved();
        }
        if has_changed {
            self.is_awaited = !is_ready;
            self.passing.set(|ways| ways.there = !is_ready);
        }
    }
}

impl Drop for Sent {
    fn drop(&mut self) {
        self.polled(true);
    }
}

/// Whether somebody waits for a place.
#[derive(Debug, Default)]
pub(crate) struct Wanted {
    by: AtomicUsize,
    changed: Arc<Notify>,
}

impl Wanted {
    /// Whoever waits looks again. Costs nothing while nobody does.
    pub fn changed(&self) {
        if self.by.load(SeqCst) > 0 {
            self.changed.notify_waiters();
        }
    }

    /// Hears of all that changes from now on.
    pub fn listen(self: &Arc<Self>) -> Listening {
        self.by.fetch_add(1, SeqCst);
        let mut changed = Box::pin(self.changed.clone().notified_owned());
        changed.as_mut().enable();
        Listening { wanted: self.clone(), changed }
    }
}

/// Waits for one change.
pub(crate) struct Listening {
    wanted: Arc<Wanted>,
    changed: Pin<Box<OwnedNotified>>,
}

impl Listening {
    pub async fn changed(mut self) {
        self.changed.as_mut().await;
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.wanted.by.fetch_sub(1, SeqCst);
    }
}
