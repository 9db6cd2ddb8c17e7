//! What the instances of one container use together, and the bounds of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Semaphore;
use wasmtime::ResourceLimiter;

use crate::Spec;
use crate::exec::Lane;
use crate::exit::OverLimit;
use crate::host::Namespace;
use crate::memory::{NodeMemory, Qos};
use crate::slice::Clock;

/// What was used so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Time on a CPU.
    pub cpu: Duration,
    /// Time held back by the CPU limit.
    pub throttled: Duration,
    /// Fuel of the instances that have ended.
    pub fuel: u64,
    /// Bytes of linear memories and tables now, and of what the host holds for the guest.
    pub memory_bytes: u64,
    /// The most there was at one time.
    pub memory_bytes_peak: u64,
}

/// Outgoing requests of one container that wait for an answer; more wait to be sent.
const OUTGOING_MAX: usize = 512;

/// Look-ups of one container that the machine's resolver works on at the same time; more wait.
const LOOK_UPS_MAX: usize = 4;

/// Files of one container that are worked on at the same time; more wait. All containers share the threads that may block.
pub(crate) const FILE_TURNS_MAX: usize = 4;

/// A memory that is larger can be filled or copied by one instruction for longer than the gateway's threads may be held up.
const LARGE_BYTES: usize = 64 << 20;

/// The account of one container, shared by its instances.
pub(crate) struct Account {
    /// What nodes call it when they tell each other who has called whom: of all accounts of the cluster no other has it.
    pub(crate) id: u64,
    name: String,
    cpu_nanos: AtomicU64,
    throttled_nanos: AtomicU64,
    fuel: AtomicU64,
    memory: AtomicU64,
    memory_peak: AtomicU64,
    memory_max: u64,
    memory_request: u64,
    qos: Qos,
    node: Arc<NodeMemory>,
    /// Instances of it, by weight.
    slots: AtomicU32,
    /// Files and sockets that its instances have open,
    descriptors: AtomicU32,
    /// and those of all containers of its namespace.
    pub(crate) namespace: Arc<Namespace>,
    /// Look-ups of names that the machine's resolver works on.
    pub(crate) look_ups: Arc<Semaphore>,
    /// Work on files, which takes a thread each.
    pub(crate) file_turns: Arc<Semaphore>,
    /// Outgoing requests that wait for the head of their answer.
    pub(crate) outgoing: Semaphore,
    /// Time on the CPU, when it is limited.
    pub(crate) quota: Option<Quota>,
    /// Its queue on the guests' threads.
    pub(crate) lane: Arc<Lane>,
    /// Whether an instance has had a memory over [`LARGE_BYTES`].
    is_large: AtomicBool,
    is_killed: AtomicBool,
    /// Ends all instances as out of memory.
    killer: Mutex<Option<Killer>>,
}

type Killer = Box<dyn Fn() + Send + Sync>;

impl Account {
    pub(crate) fn new(spec: &Spec, node: &Arc<NodeMemory>) -> Arc<Account> {
        let account = Arc::new(Account {
            id: rand::random(),
            name: spec.name.clone(),
            cpu_nanos: AtomicU64::new(0),
            throttled_nanos: AtomicU64::new(0),
            fuel: AtomicU64::new(0),
            memory: AtomicU64::new(0),
            memory_peak: AtomicU64::new(0),
            memory_max: spec.memory_bytes_max.unwrap_or(u64::MAX).min(node.max()),
            memory_request: spec.memory_bytes_request.unwrap_or(0),
            qos: spec.qos,
            node: node.clone(),
            slots: AtomicU32::new(0),
            descriptors: AtomicU32::new(0),
            namespace: Namespace::of(&spec.namespace),
            look_ups: Arc::new(Semaphore::new(LOOK_UPS_MAX)),
            file_turns: Arc::new(Semaphore::new(FILE_TURNS_MAX)),
            outgoing: Semaphore::new(OUTGOING_MAX),
            quota: spec.cpu_millis_max.map(Quota::new),
            lane: Lane::new(spec.cpu_millis_request.or(spec.cpu_millis_max)),
            is_large: AtomicBool::new(false),
            is_killed: AtomicBool::new(false),
            killer: Mutex::new(None),
        });
        node.join(&account);
        account
    }

    pub(crate) fn usage(&self) -> Usage {
        Usage {
            cpu: Duration::from_nanos(self.cpu_nanos.load(Relaxed)),
            throttled: Duration::from_nanos(self.throttled_nanos.load(Relaxed)),
            fuel: self.fuel.load(Relaxed),
            memory_bytes: self.memory.load(Relaxed),
            memory_bytes_peak: self.memory_peak.load(Relaxed),
        }
    }

    /// Whether what its instances do may last longer than a slice: it is for the guests' threads from the beginning.
    pub(crate) fn is_large(&self) -> bool {
        self.is_large.load(Relaxed)
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn memory_max(&self) -> u64 {
        self.memory_max
    }

    pub(crate) fn memory_request(&self) -> u64 {
        self.memory_request
    }

    pub(crate) fn qos(&self) -> Qos {
        self.qos
    }

    pub(crate) fn ran(&self, time: Duration) {
        self.cpu_nanos.fetch_add(nanos(time), Relaxed);
        if let Some(quota) = &self.quota {
            quota.charge(time);
        }
    }

    /// Which clock is to measure a poll on the gateway.
    pub(crate) fn inline_clock(&self) -> Clock {
        if self.quota.is_some() { Clock::Thread } else { Clock::Wall }
    }

    pub(crate) fn was_throttled(&self, time: Duration) {
        self.throttled_nanos.fetch_add(nanos(time), Relaxed);
    }

    pub(crate) fn burnt(&self, fuel: u64) {
        self.fuel.fetch_add(fuel, Relaxed);
    }

    pub(crate) fn take(&self, bytes: u64) -> Result<(), OverLimit> {
        let fits = |held: u64| held.checked_add(bytes).filter(|sum| *sum <= self.memory_max);
        let before = self.memory.fetch_update(Relaxed, Relaxed, fits).map_err(|_| OverLimit::Container)?;
        if !self.node.take(self, bytes) {
            self.memory.fetch_sub(bytes, Relaxed);
            return Err(OverLimit::Node);
        }
        self.memory_peak.fetch_max(before + bytes, Relaxed);
        Ok(())
    }

    pub(crate) fn give(&self, bytes: u64) {
        self.memory.fetch_sub(bytes, Relaxed);
        self.node.give(bytes);
    }

    /// How its instances end when the node's memory is used up; called on a thread that may hold locks of other guests,
    /// so it must leave the work to another one.
    pub(crate) fn on_kill(&self, killer: impl Fn() + Send + Sync + 'static) {
        *self.killer.lock() = Some(Box::new(killer));
    }

    pub(crate) fn is_killed(&self) -> bool {
        self.is_killed.load(Relaxed)
    }

    /// The node takes its memory back.
    pub(crate) fn kill_for_memory(&self) {
        if !self.is_killed.swap(true, Relaxed)
            && let Some(killer) = &*self.killer.lock()
        {
            killer();
        }
    }

    /// It may have memory again.
    pub(crate) fn revive(&self) {
        self.is_killed.store(false, Relaxed);
    }

    /// Counts `weight` instances more, at most `max`.
    pub(crate) fn take_slots(&self, weight: u32, max: u32) -> Result<(), u32> {
        let more = |live: u32| live.checked_add(weight).filter(|sum| *sum <= max);
        self.slots.fetch_update(Relaxed, Relaxed, more).map(|_| ())
    }

    /// Instances of it, by weight.
    pub(crate) fn slots(&self) -> u32 {
        self.slots.load(Relaxed)
    }

    pub(crate) fn give_slots(&self, weight: u32) {
        self.slots.fetch_sub(weight, Relaxed);
    }

    /// Counts one more open file or socket; false at the bound.
    pub(crate) fn take_descriptor(&self, max: u32) -> bool {
        let is_free = self.descriptors.fetch_update(Relaxed, Relaxed, |open| (open < max).then_some(open + 1)).is_ok();
        self.namespace.add(u32::from(is_free));
        is_free
    }

    pub(crate) fn give_descriptors(&self, count: u32) {
        self.descriptors.fetch_sub(count, Relaxed);
        self.namespace.give(count);
    }

    /// Counts what is open although nobody asked.
    pub(crate) fn add_descriptors(&self, count: u32) {
        self.descriptors.fetch_add(count, Relaxed);
        self.namespace.add(count);
    }

    /// Files and sockets that are open.
    pub(crate) fn descriptors(&self) -> u32 {
        self.descriptors.load(Relaxed)
    }
}

impl std::fmt::Debug for Account {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Account").field("name", &self.name).field("usage", &self.usage()).finish()
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Counts what one store holds: memories, tables, and what the host holds for it. Gives all back when the store ends.
#[derive(Debug)]
pub(crate) struct Limiter {
    account: Arc<Account>,
    held: u64,
    /// Part of it that the host holds.
    host: u64,
    /// The growth last allowed, in case it fails for another reason.
    last: u64,
}

/// What one element of a table takes.
const ELEMENT_BYTES: u64 = 8;

/// What the host needs for any instance: the store, its stack, its tables of handles.
const INSTANCE_BYTES: u64 = 64 << 10;

impl Limiter {
    pub(crate) fn new(account: Arc<Account>) -> Result<Limiter, OverLimit> {
        account.take(INSTANCE_BYTES)?;
        Ok(Limiter { account, held: INSTANCE_BYTES, host: INSTANCE_BYTES, last: 0 })
    }

    pub(crate) fn account(&self) -> &Arc<Account> {
        &self.account
    }

    /// The host holds so much for handles, headers, bodies and streams of this store now.
    pub(crate) fn set_host(&mut self, bytes: u64) -> Result<(), OverLimit> {
        let bytes = bytes.saturating_add(INSTANCE_BYTES);
        if bytes > self.host {
            self.account.take(bytes - self.host)?;
        } else {
            self.account.give(self.host - bytes);
        }
        self.held = self.held - self.host + bytes;
        self.host = bytes;
        Ok(())
    }

    pub(crate) fn held(&self) -> u64 {
        self.held
    }

    fn grow(&mut self, bytes: u64) -> wasmtime::Result<bool> {
        self.account.take(bytes)?;
        self.held += bytes;
        self.last = bytes;
        Ok(true)
    }

    fn undo(&mut self) {
        let bytes = std::mem::take(&mut self.last);
        self.held -= bytes;
        self.account.give(bytes);
    }
}

impl Drop for Limiter {
    fn drop(&mut self) {
        self.account.give(self.held);
    }
}

impl ResourceLimiter for Limiter {
    fn memory_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        if maximum.is_some_and(|maximum| desired > maximum) {
            self.last = 0;
            return Ok(false);
        }
        if desired > LARGE_BYTES {
            self.account.is_large.store(true, Relaxed);
        }
        self.grow(desired.saturating_sub(current) as u64)
    }

    fn memory_grow_failed(&mut self, _error: wasmtime::Error) -> wasmtime::Result<()> {
        self.undo();
        Ok(())
    }

    fn table_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        if maximum.is_some_and(|maximum| desired > maximum) {
            self.last = 0;
            return Ok(false);
        }
        self.grow((desired.saturating_sub(current) as u64).saturating_mul(ELEMENT_BYTES))
    }

    fn table_grow_failed(&mut self, _error: wasmtime::Error) -> wasmtime::Result<()> {
        self.undo();
        Ok(())
    }
}

/// Length of a period, as in CFS bandwidth control.
const PERIOD: Duration = Duration::from_millis(100);

/// A share of CPU time: so much in each period. What was used beyond is owed by the next ones.
#[derive(Debug)]
pub(crate) struct Quota {
    budget_nanos: i64,
    state: Mutex<Period>,
}

#[derive(Debug)]
struct Period {
    begun: Instant,
    left_nanos: i64,
}

impl Quota {
    fn new(cpu_millis: u64) -> Quota {
        let budget = cpu_millis.max(1).saturating_mul(nanos(PERIOD)) / 1000;
        let budget_nanos = i64::try_from(budget).unwrap_or(i64::MAX / 2);
        Quota { budget_nanos, state: Mutex::new(Period { begun: Instant::now(), left_nanos: budget_nanos }) }
    }

    /// Whether something may run at `now`; else when to ask again.
    pub(crate) fn admit(&self, now: Instant) -> Result<(), Instant> {
        let mut period = self.state.lock();
        let passed = now.saturating_duration_since(period.begun).as_nanos() / PERIOD.as_nanos();
        if passed > 0 {
            let passed = u32::try_from(passed).unwrap_or(u32::MAX);
            period.begun = period.begun.checked_add(PERIOD.saturating_mul(passed)).unwrap_or(now);
            let gained = self.budget_nanos.saturating_mul(i64::from(passed));
            period.left_nanos = period.left_nanos.saturating_add(gained).min(self.budget_nanos);
        }
        if period.left_nanos > 0 {
            return Ok(());
        }
        let periods = (-period.left_nanos) / self.budget_nanos + 1;
        Err(period.begun + PERIOD * u32::try_from(periods).unwrap_or(u32::MAX).min(10_000))
    }

    fn charge(&self, time: Duration) {
        let mut period = self.state.lock();
        period.left_nanos = period.left_nanos.saturating_sub(i64::try_from(time.as_nanos()).unwrap_or(i64::MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quota_gives_its_share_and_remembers_debt() {
        let quota = Quota::new(250);
        let begun = quota.state.lock().begun;
        let at = |millis| begun + Duration::from_millis(millis);
        assert_eq!(quota.admit(at(1)), Ok(()));
        quota.charge(Duration::from_millis(25));
        assert_eq!(quota.admit(at(30)), Err(at(100)), "the budget of the period is used up");
        assert_eq!(quota.admit(at(100)), Ok(()));
        quota.charge(Duration::from_millis(60));
        assert_eq!(quota.admit(at(170)), Err(at(300)), "35 ms are owed: 25 by the next period, 10 by the one after");
        assert_eq!(quota.admit(at(299)), Err(at(300)));
        assert_eq!(quota.admit(at(300)), Ok(()));
        assert_eq!(quota.admit(at(10_000)), Ok(()));
        quota.charge(Duration::from_millis(25));
        assert!(quota.admit(at(10_050)).is_err(), "nothing is saved up over idle periods");
    }

    #[test]
    fn memory_is_summed_over_stores_and_given_back() {
        let node = NodeMemory::new(u64::MAX);
        let limit = 1000 + 2 * INSTANCE_BYTES;
        let account = Account::new(&Spec { memory_bytes_max: Some(limit), ..Spec::new("a") }, &node);
        let mut first = Limiter::new(account.clone()).unwrap();
        let mut second = Limiter::new(account.clone()).unwrap();
        assert!(first.memory_growing(0, 600, None).unwrap());
        assert!(second.table_growing(0, 40, None).unwrap());
        second.set_host(80).unwrap();
        assert!(second.memory_growing(0, 1, None).unwrap_err().is::<OverLimit>());
        assert!(second.set_host(81).is_err(), "what the host holds counts");
        assert!(!first.memory_growing(600, 700, Some(650)).unwrap(), "its own maximum is no matter of the limit");
        drop(first);
        assert!(second.memory_growing(0, 600, None).unwrap());
        second.memory_grow_failed(wasmtime::Error::msg("no slot")).unwrap();
        second.set_host(0).unwrap();
        assert_eq!(second.held(), 320 + INSTANCE_BYTES);
        drop(second);
        let usage = account.usage();
        assert_eq!((usage.memory_bytes, usage.memory_bytes_peak), (0, limit));
        assert_eq!(node.usage().memory_bytes, 0);
    }
}
