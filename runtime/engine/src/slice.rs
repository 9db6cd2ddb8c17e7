//! Slices: how long one poll of a guest may last, whatever it does.
//!
//! A guest that computes gives its thread back after [`FUEL`] units of fuel. Host calls burn no fuel, so a guest that
//! loops over them is stopped by the clock: after a host call in a poll that has lasted for [`TIME`], the guest's fuel
//! is cut to nothing until its next check, and its tank pays for a whole slice. Time is charged to the poll in which it
//! was spent, without that of polls nested in it (a guest that calls another one of this process).

use std::cell::Cell;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use wasmtime::{CallHook, StoreContextMut};

use crate::guest::Guest;

/// Fuel after which a guest gives its thread back: some 60 to 150 µs. Measured: a tenth of it costs 17 % of
/// the guest's speed instead of 9, ten times as much makes neighbours wait a millisecond.
pub(crate) const FUEL: u64 = 1_000_000;

/// The same in time.
pub(crate) const TIME: Duration = Duration::from_micros(100);

/// Host calls between two looks at the clock, which costs some 25 ns. A power of two.
const CALLS_PER_LOOK: u32 = 8;

/// What a poll on the gateway can have used at most, unless one of its host calls may take long ([`is_long`]): it ends with
/// its slice, and what its wall time has beyond is time in which the machine ran something else.
const INLINE_POLL_MAX: Duration = Duration::from_micros(300);

#[derive(Clone, Copy, Default)]
struct Current {
    began: Option<Instant>,
    /// Time of polls within this one.
    nested: Duration,
    /// Whether a host call of it was one that may take long.
    is_long: bool,
}

thread_local! {
    static CURRENT: Cell<Current> =
        const { Cell::new(Current { began: None, nested: Duration::ZERO, is_long: false }) };
    /// Time of all polls on this thread since it was last taken.
    static SPENT: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// Which clock tells what a poll took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Clock {
    /// Costs 20 ns; time in which another thread had the CPU is cut off: for requests, which are short.
    Wall,
    /// Costs 200 ns, counts the thread's own time: for guests that compute, and those with a quota.
    Thread,
}

fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Restores the outer poll, also when the inner one panics.
struct Outer(Current);

impl Drop for Outer {
    fn drop(&mut self) {
        CURRENT.set(self.0);
    }
}

/// Runs one poll; says what it took itself.
pub(crate) fn measured<T>(clock: Clock, poll: impl FnOnce() -> T) -> (T, Duration) {
    let start = Instant::now();
    let before = if clock == Clock::Thread { thread_time() } else { Duration::ZERO };
    let mut outer = Outer(CURRENT.replace(Current { began: Some(start), nested: Duration::ZERO, is_long: false }));
    let value = poll();
    let Current { nested, is_long, .. } = CURRENT.get();
    let whole = match clock {
        Clock::Thread => thread_time().saturating_sub(before),
        Clock::Wall => start.elapsed(),
    };
    outer.0.nested += whole;
    let own = whole.saturating_sub(nested);
    let own = if clock == Clock::Wall && !is_long { own.min(INLINE_POLL_MAX) } else { own };
    SPENT.set(SPENT.get() + own);
    (value, own)
}

/// The host call that is under way on this thread may take longer than others: from here on the clock is looked at after each
/// call of this poll, and all the time that it takes is charged.
pub(crate) fn is_long() {
    CURRENT.set(Current { is_long: true, ..CURRENT.get() });
}

/// What was spent on this thread since the last time.
pub(crate) fn take_spent() -> Duration {
    SPENT.take()
}

/// What a store knows of its slice.
#[derive(Debug, Default)]
pub(crate) struct Slice {
    calls: u32,
    /// Whether the guest is to stop at its next fuel check.
    is_over: bool,
    /// Fuel at the last change of slices.
    fuel: u64,
}

/// After each host call.
pub(crate) fn hook(mut context: StoreContextMut<'_, Guest>, hook: CallHook) -> wasmtime::Result<()> {
    if !matches!(hook, CallHook::ReturningFromHost) {
        return Ok(());
    }
    let guest = context.data_mut();
    guest.slice.calls = guest.slice.calls.wrapping_add(1);
    let calls = guest.slice.calls;
    // Counted in calls and not in time: many short polls make as many handles as a long one.
    guest.survey(calls)?;
    let slice = &guest.slice;
    // A slice that is over ends within the guest's next check, which is a host call, too.
    if !slice.is_over && !slice.calls.is_multiple_of(CALLS_PER_LOOK) && !CURRENT.get().is_long {
        return Ok(());
    }
    look(&mut context)
}

fn look(context: &mut StoreContextMut<'_, Guest>) -> wasmtime::Result<()> {
    let Some(began) = CURRENT.get().began else { return Ok(()) };
    let is_over = began.elapsed() >= TIME;
    let was_over = std::mem::replace(&mut context.data_mut().slice.is_over, is_over);
    if is_over {
        let left = context.get_fuel()?;
        // The fuel that a compiled function keeps in a register may be older than this: charging a whole slice sees to
        // it that nothing is ever gained.
        let used = context.data().slice.fuel.saturating_sub(left).min(FUEL);
        let left = left.saturating_sub(FUEL - used).max(1);
        context.data_mut().slice.fuel = left;
        context.fuel_async_yield_interval(Some(1))?;
        context.set_fuel(left)?;
    } else if was_over {
        let left = context.get_fuel()?;
        context.data_mut().slice.fuel = left;
        context.fuel_async_yield_interval(Some(FUEL))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http::HeaderMap;
    use wasmtime::AsContextMut;
    use wasmtime_wasi::WasiView;
    use wasmtime_wasi_http::p2::types::HostIncomingResponse;
    use wasmtime_wasi_http::{FieldMap, WasiHttpView};

    use super::*;
    use crate::guest::{Claim, Slots};
    use crate::limits::Account;
    use crate::memory::NodeMemory;
    use crate::{Spec, World};

    #[test]
    fn what_the_host_holds_is_counted_however_short_the_polls_are() {
        let engine = wasmtime::Engine::new(wasmtime::Config::new().consume_fuel(true)).unwrap();
        let spec = Arc::new(Spec::new("a"));
        let account = Account::new(&spec, &NodeMemory::new(u64::MAX));
        let slot = Slots::new(16).take(&account, 1, Claim::Request).unwrap();
        let mut store = Guest::store(&engine, &spec, &account, slot, World::Http).unwrap();
        let before = account.usage().memory_bytes;
        let map = HeaderMap::from_iter([(http::header::COOKIE, "x".repeat(50_000).parse().unwrap())]);
        let headers = FieldMap::new_immutable(store.data_mut().http().hooks, map);
        let response = HostIncomingResponse { status: 200, headers, body: None };
        store.data_mut().ctx().table.push(response).unwrap();
        for _ in 0..16 {
            hook(store.as_context_mut(), CallHook::ReturningFromHost).unwrap();
        }
        assert!(account.usage().memory_bytes > before + 50_000, "{account:?}");
    }

    fn spin(time: Duration) {
        let begun = Instant::now();
        while begun.elapsed() < time {
            std::hint::spin_loop();
        }
    }

    #[test]
    fn a_nested_poll_is_charged_once() {
        take_spent();
        let ((), outer) = measured(Clock::Thread, || {
            spin(Duration::from_millis(2));
            let ((), inner) = measured(Clock::Thread, || spin(Duration::from_millis(20)));
            assert!(inner > Duration::from_micros(100));
        });
        assert!(outer < Duration::from_millis(10), "{outer:?}");
        let ((), waited) = measured(Clock::Wall, || std::thread::sleep(Duration::from_millis(20)));
        assert!(waited <= INLINE_POLL_MAX, "what others ran is not charged: {waited:?}");
        let ((), long) = measured(Clock::Wall, || {
            is_long();
            spin(Duration::from_millis(5));
        });
        assert!(long >= Duration::from_millis(5), "a long call is charged as it is: {long:?}");
        let ((), next) = measured(Clock::Wall, || spin(Duration::from_millis(5)));
        assert!(next <= INLINE_POLL_MAX, "and only its own poll: {next:?}");
        let sum = take_spent();
        assert!(sum >= outer && CURRENT.get().began.is_none(), "{sum:?}");
    }
}
