//! Where guests compute: threads of their own, shared fairly between pods.
//!
//! ```text
//!  gateway (tokio): accepts, speaks HTTP, timers; a short request's guest is polled right there, for a slice or two
//!      │ takes longer, or was asked from elsewhere
//!      ▼
//!  guests' threads (low priority): one lane per container ─► the lane that has had least, by weight, gets the next slice
//! ```
//!
//! A lane is charged the CPU time of its polls, divided by its weight (from `requests.cpu`). A lane that rested begins
//! where the others are: nothing is saved up. A poll lasts one slice (see [`crate::slice`]), which is how long anybody
//! waits for a turn. Cancelling a task never waits for its poll: a thread drops it as soon as the poll returns.
//!
//! A single instruction that fills or copies a large memory cannot be divided, and lasts for seconds where the machine has much
//! to do. While all threads are in such polls others stand in for them ([`Shared::stand_in`]), for the lanes that have none.

use std::cell::Cell;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tokio::runtime::{Handle, Runtime};

use crate::slice;

/// Threads for what blocks on behalf of guests: files, and look-ups of names, which have at most half of them. A container
/// has few at work at a time (`Account::file_turns`), and all of them stand back as the guests' threads do: what they do is
/// charged to nobody.
const BLOCKING_THREADS_MAX: usize = 64;

/// How long the gateway's threads may take to be there, at the start.
const THREADS_WAIT: Duration = Duration::from_secs(30);

/// How much the guests' threads stand back, as for `nice`: gateway and control go first when the CPUs are taken.
const NICE: i32 = 10;

/// Nobody has begun a poll for so long although some wait: the threads are held up.
const HELD_UP_AFTER: Duration = Duration::from_millis(20);
/// Threads that stand in, at most. Each has one lane at a time that no other thread has.
const STAND_INS_MAX: usize = 16;
/// How long one stays when there is nothing to do for it.
const STAND_IN_STAYS: Duration = Duration::from_secs(2);

/// Weight of a lane that asked for nothing: as much as 100 thousandths of a CPU.
const WEIGHT_DEFAULT: u64 = 100;
/// Bounds of a weight, in thousandths of a CPU.
const WEIGHT_RANGE: (u64, u64) = (10, 100_000);

/// What a poll costs at least, so that many short ones are no free ride.
const POLL_NANOS_MIN: u64 = 1_000;

thread_local! {
    /// Whether this thread belongs to the gateway of some engine.
    static IS_GATEWAY: Cell<bool> = const { Cell::new(false) };
}

/// Whether a guest may be polled right here: on a thread that serves nothing but guests' traffic.
pub(crate) fn is_gateway() -> bool {
    IS_GATEWAY.get()
}

/// Lets the gateway and control go first when the CPUs are taken.
fn stand_back() {
    // On Linux this is the calling thread only.
    let _ = rustix::process::setpriority_process(None, NICE);
}

/// The gateway's runtime and the guests' threads. Both end with it.
pub(crate) struct Executor {
    gateway: Option<Runtime>,
    shared: Arc<Shared>,
}

struct Shared {
    queue: Mutex<Queue>,
    work: Condvar,
    /// The same for those who stand in.
    spare_work: Condvar,
    gateway: Handle,
}

#[derive(Default)]
struct Queue {
    /// Lanes with work, by what they have had.
    ready: BinaryHeap<Reverse<Turn>>,
    /// What the lane that ran last had had: where newcomers begin.
    floor: u64,
    /// Breaks ties in order of arrival.
    arrivals: u64,
    idle: usize,
    /// Polls that have begun.
    begun: u64,
    /// Whether somebody looks whether polls begin.
    is_watched: bool,
    stand_ins: usize,
    idle_stand_ins: usize,
    is_closed: bool,
}

struct Turn {
    had: u64,
    arrival: u64,
    lane: Arc<Lane>,
}

impl PartialEq for Turn {
    fn eq(&self, other: &Self) -> bool {
        (self.had, self.arrival) == (other.had, other.arrival)
    }
}
impl Eq for Turn {}
impl PartialOrd for Turn {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Turn {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.had, self.arrival).cmp(&(other.had, other.arrival))
    }
}

/// The queue of one container.
pub(crate) struct Lane {
    weight: u64,
    /// Only looked at under the queue's lock.
    state: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    tasks: VecDeque<Arc<Task>>,
    /// Nanoseconds of CPU that its tasks have had, by weight.
    had: u64,
    /// Whether it has a turn in the queue.
    is_queued: bool,
    /// Threads that poll a task of it.
    polled: usize,
}

impl Lane {
    /// A lane for a container that asked for so many thousandths of a CPU.
    pub(crate) fn new(cpu_millis: Option<u64>) -> Arc<Lane> {
        let weight = cpu_millis.unwrap_or(WEIGHT_DEFAULT).clamp(WEIGHT_RANGE.0, WEIGHT_RANGE.1);
        Arc::new(Lane { weight, state: Mutex::default() })
    }
}

impl std::fmt::Debug for Lane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lane").field("weight", &self.weight).finish()
    }
}

impl Queue {
    fn enter(&mut self, lane: &Arc<Lane>, waiting: &mut Waiting) {
        if waiting.is_queued || waiting.tasks.is_empty() {
            return;
        }
        waiting.is_queued = true;
        waiting.had = waiting.had.max(self.floor);
        self.arrivals += 1;
        self.ready.push(Reverse(Turn { had: waiting.had, arrival: self.arrivals, lane: lane.clone() }));
    }
}

impl Queue {
    /// The task of the lane that has had least; for one who stands in, of those that have no thread.
    fn take(&mut self, stands_in: bool) -> Option<Arc<Task>> {
        let (mut taken, mut passed) = (None, Vec::new());
        while taken.is_none()
            && let Some(Reverse(turn)) = self.ready.pop()
        {
            let mut waiting = turn.lane.state.lock();
            if stands_in && waiting.polled > 0 {
                drop(waiting);
                passed.push(Reverse(turn));
                continue;
            }
            self.floor = self.floor.max(turn.had);
            waiting.is_queued = false;
            taken = waiting.tasks.pop_front();
            waiting.polled += usize::from(taken.is_some());
            self.begun += u64::from(taken.is_some());
            // Its other tasks may run beside this one, on other threads, after those who have had less.
            self.enter(&turn.lane, &mut waiting);
        }
        self.ready.extend(passed);
        taken
    }
}

impl Shared {
    fn schedule(self: &Arc<Self>, task: Arc<Task>) {
        let mut queue = self.queue.lock();
        if queue.is_closed {
            return;
        }
        let lane = task.lane.clone();
        {
            let mut waiting = lane.state.lock();
            waiting.tasks.push_back(task);
            queue.enter(&lane, &mut waiting);
        }
        let (wake, spare) = (queue.idle > 0, queue.idle_stand_ins > 0);
        let is_first = !wake && !std::mem::replace(&mut queue.is_watched, true);
        let begun = queue.begun;
        drop(queue);
        match (wake, spare) {
            (true, _) => drop(self.work.notify_one()),
            (false, true) => drop(self.spare_work.notify_one()),
            (false, false) => {}
        }
        if is_first {
            self.gateway.spawn(watch(Arc::downgrade(self), begun));
        }
    }

    /// The next task; none when the engine ends.
    fn next(&self) -> Option<Arc<Task>> {
        let mut queue = self.queue.lock();
        loop {
            if queue.is_closed {
                return None;
            }
            if let Some(task) = queue.take(false) {
                return Some(task);
            }
            queue.idle += 1;
            self.work.wait(&mut queue);
            queue.idle -= 1;
        }
    }

    fn work(&self) {
        while let Some(task) = self.next() {
            self.run(&task);
        }
    }

    fn run(&self, task: &Arc<Task>) {
        slice::take_spent();
        task.run();
        let spent = u64::try_from(slice::take_spent().as_nanos()).unwrap_or(u64::MAX).max(POLL_NANOS_MIN);
        let queue = self.queue.lock();
        let mut waiting = task.lane.state.lock();
        waiting.polled -= 1;
        waiting.had = waiting.had.saturating_add(spent.saturating_mul(1000) / task.lane.weight);
        drop(waiting);
        drop(queue);
    }

    /// Starts a thread that stands in if no poll has begun since `seen` were, and a lane waits that has no thread. `None` when
    /// nobody waits: there is nothing to watch.
    fn relieve(self: &Arc<Self>, seen: u64) -> Option<u64> {
        let mut queue = self.queue.lock();
        if queue.is_closed || queue.ready.is_empty() {
            queue.is_watched = false;
            return None;
        }
        let begun = queue.begun;
        let waits = |Reverse(turn): &Reverse<Turn>| turn.lane.state.lock().polled == 0;
        if begun != seen || queue.stand_ins >= STAND_INS_MAX || !queue.ready.iter().any(waits) {
            return Some(begun);
        }
        queue.stand_ins += 1;
        drop(queue);
        let (shared, handle) = (self.clone(), self.gateway.clone());
        let started = std::thread::Builder::new().name("guest-spare".to_owned()).spawn(move || {
            stand_back();
            let _context = handle.enter();
            shared.stand_in();
        });
        if let Err(error) = started {
            tracing::warn!(%error, "guests wait for others that cannot be interrupted");
            self.queue.lock().stand_ins -= 1;
        }
        Some(begun)
    }

    /// Polls tasks of lanes that have no thread, until one of those who are there for it has nothing to do.
    fn stand_in(&self) {
        let mut queue = self.queue.lock();
        while !queue.is_closed && queue.idle == 0 {
            if let Some(task) = queue.take(true) {
                drop(queue);
                self.run(&task);
                drop(task);
                queue = self.queue.lock();
                continue;
            }
            queue.idle_stand_ins += 1;
            let is_over = self.spare_work.wait_for(&mut queue, STAND_IN_STAYS).timed_out();
            queue.idle_stand_ins -= 1;
            if is_over {
                break;
            }
        }
        queue.stand_ins -= 1;
    }
}

/// Looks whether polls begin, for as long as some wait.
async fn watch(shared: Weak<Shared>, mut seen: u64) {
    loop {
        tokio::time::sleep(HELD_UP_AFTER).await;
        match shared.upgrade().and_then(|shared| shared.relieve(seen)) {
            Some(begun) => seen = begun,
            None => return,
        }
    }
}

const IDLE: u8 = 0;
const SCHEDULED: u8 = 1;
const RUNNING: u8 = 2;
/// Woken while it runs.
const WOKEN: u8 = 3;
const DONE: u8 = 4;

type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

struct Task {
    state: AtomicU8,
    is_cancelled: AtomicBool,
    /// None when it is done.
    work: Mutex<Option<Work>>,
    lane: Arc<Lane>,
    shared: Weak<Shared>,
}

impl Task {
    fn run(self: &Arc<Self>) {
        self.state.store(RUNNING, Ordering::SeqCst);
        let waker = Waker::from(self.clone());
        let mut work = self.work.lock();
        let mut is_done = self.is_cancelled.load(Ordering::SeqCst);
        if let (false, Some(future)) = (is_done, &mut *work) {
            let polled =
                std::panic::catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(&mut Context::from_waker(&waker))));
            is_done = match polled {
                Ok(Poll::Pending) => self.is_cancelled.load(Ordering::SeqCst),
                Ok(Poll::Ready(())) => true,
                // The panic hook has told about it; whoever waits learns it from the future's own guards.
                Err(_) => true,
            };
        }
        if is_done {
            self.state.store(DONE, Ordering::SeqCst);
            let done = work.take();
            drop(work);
            // What is dropped may panic, too.
            let _ = std::panic::catch_unwind(AssertUnwindSafe(|| drop(done)));
            return;
        }
        drop(work);
        if self.state.compare_exchange(RUNNING, IDLE, Ordering::SeqCst, Ordering::SeqCst).is_err() {
            self.state.store(SCHEDULED, Ordering::SeqCst);
            if let Some(shared) = self.shared.upgrade() {
                shared.schedule(self.clone());
            }
        }
    }
}

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        let next = |state| match state {
            IDLE => Some(SCHEDULED),
            RUNNING => Some(WOKEN),
            _ => None,
        };
        if self.state.fetch_update(Ordering::SeqCst, Ordering::SeqCst, next) == Ok(IDLE)
            && let Some(shared) = self.shared.upgrade()
        {
            shared.schedule(self);
        }
    }
}

/// A task on the guests' threads. It goes on when this is dropped.
pub(crate) struct Running(Arc<Task>);

impl Running {
    /// Drops the task's future, soon: returns at once.
    pub(crate) fn cancel(&self) {
        self.0.is_cancelled.store(true, Ordering::SeqCst);
        self.0.clone().wake();
    }
}

impl Executor {
    /// Starts the threads.
    pub(crate) fn start(threads: usize) -> std::io::Result<Executor> {
        let threads = threads.max(1);
        let workers = Arc::new((Mutex::new(0), Condvar::new()));
        let rested = workers.clone();
        let threads_started = AtomicUsize::new(0);
        let gateway = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(threads)
            .max_blocking_threads(BLOCKING_THREADS_MAX)
            .thread_name("gateway")
            // The first threads are the workers': nothing else is asked for until each of them has come to rest as one.
            .on_thread_start(move || {
                if threads_started.fetch_add(1, Ordering::Relaxed) >= threads {
                    stand_back();
                }
            })
            // Only workers rest. A thread that has merely started may still be given another's work.
            .on_thread_park(move || {
                if !IS_GATEWAY.replace(true) {
                    let (count, changed) = &*rested;
                    *count.lock() += 1;
                    changed.notify_one();
                }
            })
            .enable_all()
            .build()?;
        // Those that start after these are for what blocks.
        let (count, changed) = &*workers;
        let mut count = count.lock();
        let mut is_late = false;
        while *count < threads && !is_late {
            is_late = changed.wait_for(&mut count, THREADS_WAIT).timed_out();
        }
        drop(count);
        if is_late {
            return Err(std::io::Error::other("the gateway's threads do not start"));
        }
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            work: Condvar::new(),
            spare_work: Condvar::new(),
            gateway: gateway.handle().clone(),
        });
        for number in 0..threads {
            let (shared, handle) = (shared.clone(), gateway.handle().clone());
            std::thread::Builder::new().name(format!("guest-{number}")).spawn(move || {
                stand_back();
                // Sockets and timers of guests live with the gateway's.
                let _context = handle.enter();
                shared.work();
            })?;
        }
        Ok(Executor { gateway: Some(gateway), shared })
    }

    /// The runtime that serves guests' traffic.
    pub(crate) fn gateway(&self) -> &Handle {
        self.gateway.as_ref().expect("it is taken when the engine is dropped only").handle()
    }

    /// Runs `work` on the guests' threads.
    pub(crate) fn spawn(&self, lane: &Arc<Lane>, work: impl Future<Output = ()> + Send + 'static) -> Running {
        let task = Arc::new(Task {
            state: AtomicU8::new(SCHEDULED),
            is_cancelled: AtomicBool::new(false),
            work: Mutex::new(Some(Box::pin(work))),
            lane: lane.clone(),
            shared: Arc::downgrade(&self.shared),
        });
        self.shared.schedule(task.clone());
        Running(task)
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        let lanes: Vec<_> = {
            let mut queue = self.shared.queue.lock();
            queue.is_closed = true;
            queue.ready.drain().collect()
        };
        self.shared.work.notify_all();
        self.shared.spare_work.notify_all();
        for Reverse(turn) in lanes {
            let tasks = std::mem::take(&mut turn.lane.state.lock().tasks);
            drop(tasks);
        }
        if let Some(gateway) = self.gateway.take() {
            // This may be dropped on another runtime, which must not block.
            gateway.shutdown_background();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    /// Burns CPU in slices and counts them.
    async fn burn(count: Arc<AtomicU64>, stop: Arc<AtomicBool>) {
        while !stop.load(Ordering::Relaxed) {
            slice::measured(slice::Clock::Thread, || {
                let begun = std::time::Instant::now();
                while begun.elapsed() < Duration::from_micros(100) {
                    std::hint::spin_loop();
                }
            });
            count.fetch_add(1, Ordering::Relaxed);
            tokio::task::yield_now().await;
        }
    }

    #[test]
    fn lanes_share_by_weight_and_a_newcomer_does_not_wait_for_the_crowd() {
        let executor = Executor::start(1).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let (light, heavy) = (Lane::new(Some(100)), Lane::new(Some(300)));
        let (few, many) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        // The light lane has ten times as many tasks: that gives it nothing.
        for _ in 0..20 {
            executor.spawn(&light, burn(few.clone(), stop.clone()));
        }
        for _ in 0..2 {
            executor.spawn(&heavy, burn(many.clone(), stop.clone()));
        }
        while few.load(Ordering::Relaxed) < 300 {
            std::thread::yield_now();
        }
        let ratio = many.load(Ordering::Relaxed) as f64 / few.load(Ordering::Relaxed) as f64;
        assert!((2.0..4.5).contains(&ratio), "300 to 100 thousandths, and got {ratio}");
        let newcomer = Lane::new(None);
        let (sender, receiver) = mpsc::channel();
        let before = few.load(Ordering::Relaxed) + many.load(Ordering::Relaxed);
        let (few, many) = (few.clone(), many.clone());
        executor.spawn(&newcomer, async move {
            let _ = sender.send(few.load(Ordering::Relaxed) + many.load(Ordering::Relaxed));
        });
        let waited = receiver.recv_timeout(PATIENCE).unwrap() - before;
        assert!(waited <= 4, "{waited} slices of others went first");
        stop.store(true, Ordering::Relaxed);
    }

    /// As a guest that fills a large memory with one instruction.
    #[test]
    fn others_stand_in_for_threads_that_are_held_up_for_all_but_who_holds_them_up() {
        let executor = Executor::start(1).unwrap();
        let (hostile, neighbour) = (Lane::new(None), Lane::new(None));
        let (begun, sees_begun) = mpsc::channel();
        let mut ends = Vec::new();
        for _ in 0..2 {
            let (end, ended) = mpsc::channel::<()>();
            let begun = begun.clone();
            executor.spawn(&hostile, async move {
                begun.send(()).unwrap();
                let _ = ended.recv();
            });
            ends.push(end);
        }
        sees_begun.recv_timeout(PATIENCE).unwrap();
        for _ in 0..3 {
            let (sender, receiver) = mpsc::channel();
            executor.spawn(&neighbour, async move { sender.send(()).unwrap() });
            receiver.recv_timeout(PATIENCE).unwrap();
        }
        assert!(sees_begun.try_recv().is_err(), "who holds them up has no second one");
        ends.clear();
        sees_begun.recv_timeout(PATIENCE).unwrap();
    }

    #[test]
    fn what_blocks_for_guests_stands_back_and_the_gateway_does_not() {
        let executor = Executor::start(2).unwrap();
        let nice = || rustix::process::getpriority_process(None).unwrap();
        let (sender, receiver) = mpsc::channel();
        let own = nice();
        executor.gateway().spawn({
            let sender = sender.clone();
            async move { sender.send((is_gateway(), nice())).unwrap() }
        });
        assert_eq!(receiver.recv_timeout(PATIENCE).unwrap(), (true, own));
        executor.gateway().spawn_blocking(move || sender.send((is_gateway(), nice())).unwrap());
        assert_eq!(receiver.recv_timeout(PATIENCE).unwrap(), (false, own.max(NICE)));
    }

    #[test]
    fn a_cancelled_task_is_dropped_and_a_panic_stays_in_its_task() {
        struct Told(mpsc::Sender<&'static str>, &'static str);
        impl Drop for Told {
            fn drop(&mut self) {
                let _ = self.0.send(self.1);
            }
        }
        let executor = Executor::start(1).unwrap();
        let lane = Lane::new(None);
        let (sender, receiver) = mpsc::channel();
        let told = Told(sender.clone(), "cancelled");
        let running = executor.spawn(&lane, async move {
            let _told = told;
            std::future::pending::<()>().await;
        });
        running.cancel();
        assert_eq!(receiver.recv_timeout(PATIENCE).unwrap(), "cancelled");
        let told = Told(sender.clone(), "panicked");
        executor.spawn(&lane, async move {
            let _told = told;
            panic!("as the test wants");
        });
        assert_eq!(receiver.recv_timeout(PATIENCE).unwrap(), "panicked");
        let told = Told(sender, "ran");
        executor.spawn(&lane, async move { drop(told) });
        assert_eq!(receiver.recv_timeout(PATIENCE).unwrap(), "ran");
    }
}
