//! Jumps of time: the process was stopped, the machine slept, somebody set the clock.
//!
//! Timers of the runtime follow a clock that stands still while a machine sleeps; tokens, leases and what the API server thinks of a
//! node go by the clock on the wall. [`watch`] compares the clocks every [`TICK`], measured by the one clock that goes on
//! (`CLOCK_BOOTTIME`), so that it looks right after a sleep, and tells when they do not agree.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio_util::sync::CancellationToken;

use rustix::time::{ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};

/// How often the clocks are compared.
const TICK: Duration = Duration::from_secs(5);
/// What counts as a jump. Less is the work of who keeps clocks in step, or of a machine with much to do.
const JUMP_MIN: Duration = Duration::from_secs(3);

/// The clock on the wall, as all that goes by it here reads it: a test moves this one.
#[derive(Debug, Clone, Default)]
pub struct Wall(Arc<AtomicI64>);

impl Wall {
    /// What it shows.
    pub fn now(&self) -> Timestamp {
        let ahead = SignedDuration::from_secs(self.0.load(Ordering::Relaxed));
        Timestamp::now().checked_add(ahead).unwrap_or(Timestamp::MAX)
    }

    /// Somebody sets it.
    #[cfg(test)]
    pub fn advance(&self, seconds: i64) {
        self.0.fetch_add(seconds, Ordering::Relaxed);
    }
}

/// The clocks at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Reading {
    /// Stands still while the machine sleeps.
    monotonic: Duration,
    /// Goes on while it sleeps.
    boot: Duration,
    /// The clock on the wall.
    wall: Duration,
}

impl Reading {
    fn now() -> Self {
        let read = |clock| {
            let time = rustix::time::clock_gettime(clock);
            Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
        };
        Self { monotonic: read(ClockId::Monotonic), boot: read(ClockId::Boottime), wall: read(ClockId::Realtime) }
    }

    /// How far time has jumped since `before`, when it has.
    fn jump(self, before: Self) -> Option<Duration> {
        let passed = |now: Duration, before: Duration| now.as_secs_f64() - before.as_secs_f64();
        let boot = passed(self.boot, before.boot);
        let slept = boot - passed(self.monotonic, before.monotonic);
        let set = passed(self.wall, before.wall) - boot;
        let stopped = boot - TICK.as_secs_f64();
        let most = [slept, set.abs(), stopped].into_iter().fold(0.0, f64::max);
        (most >= JUMP_MIN.as_secs_f64()).then(|| Duration::from_secs_f64(most))
    }
}

/// Calls `jumped` after each jump, until shutdown.
pub async fn watch(jumped: impl Fn(Duration), shutdown: CancellationToken) {
    let mut before = Reading::now();
    let timer = timer();
    if let Err(error) = &timer {
        tracing::debug!(%error, "no timer that goes on while the machine sleeps");
    }
    loop {
        let tick = async {
            match &timer {
                Ok(timer) => expired(timer).await,
                Err(_) => tokio::time::sleep(TICK).await,
            }
        };
        // Waiting is all that is cut here.
        tokio::select! {
            () = tick => {}
            () = shutdown.cancelled() => return,
        }
        let now = Reading::now();
        if let Some(jump) = now.jump(before) {
            tracing::info!(seconds = jump.as_secs(), "time has jumped");
            jumped(jump);
        }
        before = now;
    }
}

fn timer() -> std::io::Result<AsyncFd<std::os::fd::OwnedFd>> {
    let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
    let timer = rustix::time::timerfd_create(TimerfdClockId::Boottime, flags)?;
    let every = Timespec { tv_sec: TICK.as_secs().cast_signed(), tv_nsec: 0 };
    let times = Itimerspec { it_interval: every, it_value: every };
    rustix::time::timerfd_settime(&timer, TimerfdTimerFlags::empty(), &times)?;
    // SAFETY: the timer is owned, open, and stays the same descriptor until it is dropped with what it is registered in.
    unsafe { AsyncFd::register_with_interest(timer, Interest::READABLE) }.map_err(Into::into)
}

async fn expired(timer: &AsyncFd<std::os::fd::OwnedFd>) {
    loop {
        let Ok(mut ready) = timer.readable().await else { return tokio::time::sleep(TICK).await };
        let mut count = [0; 8];
        match ready.try_io(|timer| Ok(rustix::io::read(timer.get_ref(), &mut count)?)) {
            Ok(Ok(_)) => return,
            Ok(Err(_)) => return tokio::time::sleep(TICK).await,
            // Not yet.
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jumps_as_a_table() {
        let at = |monotonic, boot, wall| Reading {
            monotonic: Duration::from_secs(monotonic),
            boot: Duration::from_secs(boot),
            wall: Duration::from_secs(wall),
        };
        let before = at(100, 200, 1000);
        for (now, expected) in [
            (at(105, 205, 1005), None),
            (at(106, 206, 1007), None),
            // Stopped for a minute.
            (at(165, 265, 1065), Some(60)),
            // Asleep for a night.
            (at(105, 28_805, 29_605), Some(28_600)),
            // Set forwards and back.
            (at(105, 205, 4605), Some(3600)),
            (at(105, 205, 905), Some(100)),
        ] {
            assert_eq!(now.jump(before).map(|jump| jump.as_secs()), expected, "{now:?}");
        }
    }

    #[tokio::test]
    async fn ticks() {
        let timer = timer().unwrap();
        tokio::time::timeout(Duration::from_secs(60), expired(&timer)).await.unwrap();
    }
}
