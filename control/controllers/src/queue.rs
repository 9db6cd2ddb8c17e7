//! The driver of controllers: a queue of keys and the loop that reconciles them.
//!
//! A key is in the queue at most once and reconciled by one task at a time; what is added while it runs makes it run
//! once more afterwards. A failure comes back with growing, jittered delay. A key that is added again and again is
//! spaced out after a burst ([`BURST`]), so that a storm of events about one object costs a bounded number of writes, or a
//! bounded share of the time ([`SHARE`]), while a single event is never held back.
//!
//! A deadline is a moment of the world's, while it is waited for by a clock that stands still with a machine that sleeps: when the
//! world's has gone on without it ([`GAP`]), all that have a deadline are looked at.
//!
//! Bounded by the number of keys, thus of objects: deadlines that count no more are swept out ([`VOID_MAX`]).

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::fmt;
use std::future::Future;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use rand::Rng as _;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::Error;

/// Runs of one key without spacing: a Deployment of one needs about ten until it is ready, and none of them may wait.
const BURST: u32 = 32;
/// In a queue that spaces by what runs take, a key whose burst is used up runs for one part in so many of the time.
const SHARE: u32 = 2;
/// First delay after a failure.
const BACKOFF_FIRST: Duration = Duration::from_millis(10);
/// Longest delay after failures.
const BACKOFF_MAX: Duration = Duration::from_secs(60);
/// How often the two clocks are compared, as long as there is a deadline.
const BEAT: Duration = Duration::from_secs(30);
/// So much farther has the world's clock gone when the machine has slept, or when it was set.
const GAP: SignedDuration = SignedDuration::from_secs(2);
/// So many more deadlines than keys are kept, or as many more as there are keys. A key that keeps coming has an early one, and then
/// its late one anew, again and again.
const VOID_MAX: usize = 64;
/// How long running work is waited for at shutdown.
const DRAIN: Duration = Duration::from_secs(2);

/// A controller: keys that are to be looked at, and what is done about one.
pub(crate) trait Reconciler: Send + Sync + 'static {
    /// What it looks at: an object by its name, mostly.
    type Key: Clone + Eq + Hash + fmt::Debug + Send + 'static;
    /// For logs.
    const NAME: &'static str;
    /// Keys that are looked at at a time.
    const WORKERS: usize;

    /// Where what happens puts keys.
    fn queue(&self) -> &Queue<Self::Key>;

    /// Makes of what is there what is wanted, as far as one key is concerned. It reads all that there is, and can be called
    /// at any time.
    fn reconcile(self: Arc<Self>, key: Self::Key) -> impl Future<Output = Result<Next, Error>> + Send;
}

/// Runs a controller until shutdown.
pub(crate) async fn drive<C: Reconciler>(controller: Arc<C>, shutdown: CancellationToken) {
    let queue = controller.queue().clone();
    queue.drive(C::NAME, C::WORKERS, shutdown, move |key| controller.clone().reconcile(key)).await;
}

/// When a key that was reconciled is due again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// When something happens.
    OnEvent,
    /// At once, after the others.
    Again,
    /// At a deadline, if nothing happens earlier.
    After(Duration),
}

/// Keys that wait to be reconciled. Clones share one queue.
#[derive(Debug)]
pub(crate) struct Queue<K> {
    inner: Arc<Inner<K>>,
}

impl<K> Clone for Queue<K> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone() }
    }
}

#[derive(Debug)]
struct Inner<K> {
    state: Mutex<State<K>>,
    changed: Notify,
    spacing: Spacing,
}

/// From the start of one run of a key to that of the next, once its burst is used up: [`SHARE`] times what the run took, within
/// these.
#[derive(Clone, Copy, Debug)]
struct Spacing {
    least: Duration,
    most: Duration,
}

impl Spacing {
    fn after(self, took: Duration) -> Duration {
        took.saturating_mul(SHARE).clamp(self.least, self.most)
    }

    /// How far a key may be ahead.
    fn burst(self) -> Duration {
        self.most * BURST
    }
}

#[derive(Debug)]
struct State<K> {
    ready: VecDeque<K>,
    entries: HashMap<K, Entry>,
    delayed: BinaryHeap<Reverse<Delayed<K>>>,
    sequence: u64,
    /// As they were looked at last.
    clocks: Option<(Instant, Timestamp)>,
}

#[derive(Debug)]
struct Entry {
    queued: bool,
    /// Since when it runs.
    running: Option<Instant>,
    again: bool,
    failures: u32,
    /// The latest deadline that counts; older ones in the heap are void.
    due: Option<Instant>,
    /// When the burst would be whole again (the theoretical arrival time of the leaky bucket).
    spaced: Instant,
}

#[derive(Debug)]
struct Delayed<K> {
    at: Instant,
    sequence: u64,
    key: K,
}

impl<K> PartialEq for Delayed<K> {
    fn eq(&self, other: &Self) -> bool {
        self.sequence == other.sequence
    }
}

impl<K> Eq for Delayed<K> {}

impl<K> PartialOrd for Delayed<K> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<K> Ord for Delayed<K> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.sequence).cmp(&(other.at, other.sequence))
    }
}

impl<K: Clone + Eq + Hash> State<K> {
    fn entry(&mut self, key: &K, now: Instant) -> &mut Entry {
        self.entries.entry(key.clone()).or_insert(Entry {
            queued: false,
            running: None,
            again: false,
            failures: 0,
            due: None,
            spaced: now,
        })
    }

    fn add(&mut self, key: &K, now: Instant) {
        let entry = self.entry(key, now);
        if entry.running.is_some() {
            entry.again = true;
        } else if !entry.queued {
            entry.queued = true;
            self.ready.push_back(key.clone());
        }
    }

    /// An earlier deadline that is already set stays.
    fn add_at(&mut self, key: &K, at: Instant, now: Instant) {
        let entry = self.entry(key, now);
        if entry.due.is_some_and(|due| due <= at) {
            return;
        }
        entry.due = Some(at);
        self.sequence += 1;
        self.delayed.push(Reverse(Delayed { at, sequence: self.sequence, key: key.clone() }));
        if self.delayed.len() > 2 * self.entries.len() + VOID_MAX {
            let entries = &self.entries;
            let counts =
                |delayed: &Delayed<K>| entries.get(&delayed.key).and_then(|entry| entry.due) == Some(delayed.at);
            self.delayed.retain(|Reverse(delayed)| counts(delayed));
        }
    }

    /// Whether the world's clock has gone on without ours since this was asked last.
    fn overslept(&mut self, now: Instant, world: Timestamp) -> bool {
        let Some((then, world_then)) = self.clocks.replace((now, world)) else { return false };
        let passed = SignedDuration::try_from(now.saturating_duration_since(then)).unwrap_or(SignedDuration::MAX);
        world.duration_since(world_then).saturating_sub(passed) > GAP
    }

    /// Makes all deadlines due.
    fn wake_all(&mut self, now: Instant) {
        std::mem::take(&mut self.delayed).into_iter().for_each(|Reverse(delayed)| self.ring(&delayed, now));
    }

    /// A deadline has come; one that does not count any more says nothing.
    fn ring(&mut self, delayed: &Delayed<K>, now: Instant) {
        if let Some(entry) = self.entries.get_mut(&delayed.key)
            && entry.due == Some(delayed.at)
        {
            entry.due = None;
            self.add(&delayed.key, now);
        }
    }

    /// Moves what is due to the ready ones; returns the next deadline.
    fn wake(&mut self, now: Instant) -> Option<Instant> {
        while let Some(Reverse(first)) = self.delayed.peek() {
            if first.at > now {
                return Some(first.at);
            }
            let Some(Reverse(first)) = self.delayed.pop() else { break };
            self.ring(&first, now);
        }
        None
    }

    fn take(&mut self, now: Instant, spacing: Spacing) -> Option<K> {
        while let Some(key) = self.ready.pop_front() {
            let Some(entry) = self.entries.get_mut(&key) else { continue };
            entry.queued = false;
            let spaced = entry.spaced.max(now);
            if spaced.duration_since(now) > spacing.burst() {
                self.add_at(&key, spaced - spacing.burst(), now);
                continue;
            }
            entry.running = Some(now);
            return Some(key);
        }
        None
    }

    fn done(&mut self, key: &K, outcome: &Result<Next, Error>, spacing: Spacing, now: Instant) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        let took = entry.running.take().map(|since| now.duration_since(since)).unwrap_or_default();
        entry.spaced = entry.spaced.max(now - took) + spacing.after(took);
        let mut again = std::mem::take(&mut entry.again);
        let mut after = None;
        match outcome {
            Ok(next) => {
                entry.failures = 0;
                match next {
                    Next::OnEvent => {}
                    Next::Again => again = true,
                    Next::After(delay) => after = Some(*delay),
                }
            }
            Err(_) => {
                after = Some(backoff(entry.failures));
                entry.failures = entry.failures.saturating_add(1);
                // Back-off counts for failing keys: an event alone does not make them run hot.
                again = again && entry.failures <= 2;
            }
        }
        if let Some(after) = after {
            self.add_at(key, now + after, now);
        }
        if again {
            self.add(key, now);
        }
        if let Some(entry) = self.entries.get(key)
            && !entry.queued
            && entry.due.is_none()
            && entry.failures == 0
            && entry.spaced <= now
        {
            self.entries.remove(key);
        } else if self.entries.len() > 4096 && self.entries.len() > 4 * (self.ready.len() + self.delayed.len()) {
            self.entries
                .retain(|_, e| e.queued || e.running.is_some() || e.due.is_some() || e.failures > 0 || e.spaced > now);
        }
    }
}

fn backoff(failures: u32) -> Duration {
    let base = BACKOFF_FIRST.saturating_mul(1_u32.checked_shl(failures.min(16)).unwrap_or(u32::MAX)).min(BACKOFF_MAX);
    base.mul_f64(rand::rng().random_range(0.75..1.25))
}

impl<K: Clone + Eq + Hash> Inner<K> {
    fn done(&self, key: &K, outcome: &Result<Next, Error>) {
        self.state.lock().done(key, outcome, self.spacing, Instant::now());
    }
}

impl<K: Clone + Eq + Hash + Send + 'static> Queue<K> {
    /// An empty queue; keys that keep coming are spaced by `spacing`.
    pub(crate) fn new(spacing: Duration) -> Self {
        Self::spaced(Spacing { least: spacing, most: spacing })
    }

    /// An empty queue for keys whose runs are short, mostly: those that keep coming are spaced by what their runs take, and by `most`
    /// at most.
    pub(crate) fn sparing(most: Duration) -> Self {
        Self::spaced(Spacing { least: Duration::ZERO, most })
    }

    fn spaced(spacing: Spacing) -> Self {
        let state = State {
            ready: VecDeque::new(),
            entries: HashMap::new(),
            delayed: BinaryHeap::new(),
            sequence: 0,
            clocks: None,
        };
        Self { inner: Arc::new(Inner { state: Mutex::new(state), changed: Notify::new(), spacing }) }
    }

    /// Reconciles the key soon.
    pub(crate) fn add(&self, key: &K) {
        self.inner.state.lock().add(key, Instant::now());
        self.inner.changed.notify_one();
    }

    /// Reconciles the key at the latest after `delay`.
    pub(crate) fn add_after(&self, key: &K, delay: Duration) {
        let now = Instant::now();
        self.inner.state.lock().add_at(key, now + delay, now);
        self.inner.changed.notify_one();
    }

    /// Keys that wait for nothing but their turn.
    #[cfg(test)]
    pub(crate) fn ready(&self) -> usize {
        self.inner.state.lock().ready.len()
    }

    /// The next key; cancel-safe: a key is taken only in the poll that returns it.
    async fn next(&self) -> K {
        loop {
            let deadline = {
                let mut state = self.inner.state.lock();
                let now = Instant::now();
                if state.overslept(now, Timestamp::now()) {
                    state.wake_all(now);
                }
                let deadline = state.wake(now);
                if let Some(key) = state.take(now, self.inner.spacing) {
                    return key;
                }
                // Spacing may just have set a nearer one.
                state.delayed.peek().map(|first| first.0.at).or(deadline)
            };
            match deadline {
                Some(at) => {
                    tokio::select! {
                        () = self.inner.changed.notified() => {}
                        () = tokio::time::sleep_until(at.min(Instant::now() + BEAT)) => {}
                    }
                }
                None => self.inner.changed.notified().await,
            }
        }
    }

    /// Reconciles keys with at most `workers` at a time until shutdown.
    async fn drive<F, R>(&self, name: &'static str, workers: usize, shutdown: CancellationToken, reconcile: F)
    where
        F: Fn(K) -> R,
        R: Future<Output = Result<Next, Error>> + Send + 'static,
        K: fmt::Debug,
    {
        let mut tasks: JoinSet<(K, Result<Next, Error>)> = JoinSet::new();
        let mut running: HashMap<tokio::task::Id, K> = HashMap::new();
        loop {
            // Every branch only waits.
            tokio::select! {
                () = shutdown.cancelled() => break,
                Some(ended) = tasks.join_next_with_id(), if !tasks.is_empty() => match ended {
                    Ok((id, (key, outcome))) => {
                        running.remove(&id);
                        if let Err(error) = &outcome {
                            log(name, &key, error);
                        }
                        self.inner.done(&key, &outcome);
                    }
                    Err(error) => {
                        // A panic is our bug; the key comes back like any failure.
                        tracing::error!(controller = name, %error, "reconcile panicked");
                        if let Some(key) = running.remove(&error.id()) {
                            self.inner.done(&key, &Err(Error::Panicked));
                        }
                    }
                },
                key = self.next(), if tasks.len() < workers => {
                    let work = reconcile(key.clone());
                    let task = tasks.spawn({
                        let key = key.clone();
                        async move { (key, work.await) }
                    });
                    running.insert(task.id(), key);
                }
            }
        }
        let _ = tokio::time::timeout(DRAIN, async { while tasks.join_next().await.is_some() {} }).await;
    }
}

fn log<K: fmt::Debug>(controller: &str, key: &K, error: &Error) {
    if error.is_expected() {
        tracing::debug!(controller, ?key, %error, "reconcile again");
    } else {
        tracing::warn!(controller, ?key, error = %crate::error::chain(error), "reconcile failed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: Spacing = Spacing { least: Duration::ZERO, most: Duration::ZERO };

    fn state() -> State<&'static str> {
        let (ready, delayed) = (VecDeque::new(), BinaryHeap::new());
        State { ready, entries: HashMap::new(), delayed, sequence: 0, clocks: None }
    }

    #[test]
    fn deadlines_that_count_no_more_are_not_kept() {
        let (mut state, begun) = (state(), Instant::now());
        let year = Duration::from_secs(365 * 86_400);
        for round in 0..1_000 {
            let now = begun + Duration::from_millis(20 * round);
            let soon = now + Duration::from_millis(10);
            state.add_at(&"busy", now + year, now);
            state.add_at(&"busy", soon, now);
            state.wake(soon);
            assert_eq!(state.take(soon, NONE), Some("busy"));
            state.done(&"busy", &Ok(Next::After(year)), NONE, soon);
        }
        assert!(state.delayed.len() <= 2 + VOID_MAX, "{}", state.delayed.len());
        assert_eq!(state.wake(begun + 2 * year), None, "and its last one came");
        assert_eq!(state.take(begun + 2 * year, NONE), Some("busy"));
    }

    #[test]
    fn looks_at_all_that_have_a_deadline_when_the_machine_has_slept() {
        let (begun, world) = (Instant::now(), Timestamp::UNIX_EPOCH);
        // Our own seconds, the world's, and whether that was a sleep.
        for (own, worlds, slept) in
            [(30, 30, false), (30, 31, false), (30, 3600, true), (3600, 30, false), (30, -60, false)]
        {
            let mut state = state();
            assert!(!state.overslept(begun, world), "nobody has looked before");
            state.add_at(&"a", begun + Duration::from_secs(8 * 3600), begun);
            let now = begun + Duration::from_secs(own);
            let later = world + SignedDuration::from_secs(worlds);
            assert_eq!(state.overslept(now, later), slept, "{own} s here, {worlds} s elsewhere");
            assert!(!state.overslept(now, later), "once");
            if slept {
                state.wake_all(now);
                assert_eq!((state.take(now, NONE), state.wake(now)), (Some("a"), None));
            }
        }
    }

    #[test]
    fn takes_each_key_once_and_again_after_what_comes_meanwhile() {
        let (mut state, now) = (state(), Instant::now());
        for key in ["a", "b", "a"] {
            state.add(&key, now);
        }
        let mut take = || state.take(now, NONE);
        assert_eq!([take(), take(), take()], [Some("a"), Some("b"), None]);
        state.add(&"a", now);
        state.done(&"b", &Ok(Next::OnEvent), NONE, now);
        assert_eq!(state.take(now, NONE), None, "a runs");
        state.done(&"a", &Ok(Next::OnEvent), NONE, now);
        assert_eq!(state.take(now, NONE), Some("a"));
        state.done(&"a", &Ok(Next::OnEvent), NONE, now);
        assert!(state.entries.is_empty(), "nothing is kept of what is done");
    }

    #[test]
    fn keeps_the_nearest_deadline_and_backs_off() {
        let (mut state, begun) = (state(), Instant::now());
        for seconds in [5, 1, 9] {
            state.add_at(&"a", begun + Duration::from_secs(seconds), begun);
        }
        assert_eq!(state.wake(begun), Some(begun + Duration::from_secs(1)));
        let mut now = begun + Duration::from_secs(1);
        state.wake(now);
        assert_eq!(state.take(now, NONE), Some("a"));
        let mut delays = vec![];
        for _ in 0..5 {
            state.done(&"a", &Err(Error::Panicked), NONE, now);
            let due = state.entries["a"].due.unwrap();
            delays.push(due - now);
            now = due;
            state.wake(now);
            assert_eq!(state.take(now, NONE), Some("a"));
        }
        assert!(delays[4] > delays[0] * 4, "{delays:?}");
        now += Duration::from_secs(60);
        state.done(&"a", &Ok(Next::OnEvent), NONE, now);
        state.wake(now);
        assert_eq!(state.take(now, NONE), None, "deadlines that were replaced are void");
    }

    /// Runs `a` so often in a storm, each for `run`; when each began.
    fn storm(runs: u32, run: Duration, spacing: Spacing) -> Vec<Duration> {
        let (mut state, begun) = (state(), Instant::now());
        let (mut now, mut at) = (begun, vec![]);
        for _ in 0..runs {
            state.add(&"a", now);
            let key = state.take(now, spacing).or_else(|| {
                now = state.entries["a"].due?;
                state.wake(now);
                state.take(now, spacing)
            });
            assert_eq!(key, Some("a"));
            at.push(now - begun);
            now += run;
            state.done(&"a", &Ok(Next::OnEvent), spacing, now);
        }
        at
    }

    #[test]
    fn spaces_out_a_storm_but_not_a_burst() {
        let millis = Duration::from_millis;
        let (fixed, sparing) =
            (Spacing { least: millis(20), most: millis(20) }, Spacing { least: millis(0), most: millis(20) });
        for (spacing, run, period) in
            [(fixed, 0, 20), (fixed, 1, 20), (fixed, 40, 40), (sparing, 1, 2), (sparing, 15, 20), (sparing, 40, 40)]
        {
            let at = storm(40 * BURST, millis(run), spacing);
            assert!((1..BURST).all(|n| at[n as usize] == millis(run) * n), "a burst is not held back: {at:?}");
            assert_eq!(at[at.len() - 1] - at[at.len() - 11], millis(10 * period), "{spacing:?}, runs of {run} ms");
        }
    }
}
