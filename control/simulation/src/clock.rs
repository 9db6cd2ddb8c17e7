//! Time and chance of a simulated world. Its runtime's clock stands still and jumps to the next timer when everybody waits
//! (tokio's pause); here every other clock that a thread of the world reads is made to follow it, and whatever asks the
//! system for random bytes is given the seed's.
//!
//! Both are done at the C library's door, so that nothing of the product is compiled otherwise: a function of this program with
//! the name of one of the library's is the one that all of the program calls. Threads that belong to no world get the truth.
//!
//! What else could differ from one play to the next: another thread, so there is none ([`HELPERS`] counts them); what a process counts
//! (tokio its runtimes, to seed what `select!` draws), so each world has a copy of one that has only founded a cluster (`apart.rs`);
//! and addresses, by which nothing of ours is ordered.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::Read;
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use rustix::time::ClockId;

/// When every world begins: 2026-01-01, and as long after the machine's start.
const EPOCH_SECONDS: i64 = 1_767_225_600;
const UPTIME_SECONDS: i64 = 1_000_000;

/// Threads besides a world's own, which come back when they like, in the newest world.
pub static HELPERS: AtomicU64 = AtomicU64::new(0);

/// What panicked, by the world's number.
static PANICS: Mutex<BTreeMap<u64, Vec<String>>> = Mutex::new(BTreeMap::new());

#[derive(Clone, Copy)]
struct World {
    /// Among all of this process.
    number: u64,
    /// What the world's own clock said when it began; until it has one, time stands still.
    begun: Option<Instant>,
}

thread_local! {
    static WORLD: Cell<Option<World>> = const { Cell::new(None) };
    /// Whether the world's own clock is being asked.
    static ASKING: Cell<bool> = const { Cell::new(false) };
    /// What the next random number is made of; nothing in threads of no world.
    static CHANCE: Cell<Option<u64>> = const { Cell::new(None) };
}

/// Runs `work` in a world of its own, on a thread of its own; what it returns, or what panicked meanwhile, in whichever task: one
/// that nobody waits for ends without a word.
pub fn world<T: Send>(seed: u64, work: impl AsyncFnOnce() -> T + Send) -> Result<T, Vec<String>> {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    static ONCE: Once = Once::new();
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    ONCE.call_once(note_panics);
    let lived = std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name(format!("world {seed}")).stack_size(8 << 20);
        let thread = thread.spawn_scoped(scope, move || {
            WORLD.set(Some(World { number, begun: None }));
            CHANCE.set(Some(seed));
            // It would take how many threads there were before.
            fastrand::seed(seed);
            coracle_keyspace::simulation::alone();
            let begun = Instant::now();
            HELPERS.store(0, Ordering::Relaxed);
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .start_paused(true)
                .on_thread_start(move || {
                    WORLD.set(Some(World { number, begun: Some(begun) }));
                    let helper = HELPERS.fetch_add(1, Ordering::Relaxed) + 1;
                    CHANCE.set(Some(seed ^ helper.rotate_right(8)));
                })
                .build()
                .expect("a runtime");
            runtime.block_on(async {
                WORLD.set(Some(World { number, begun: Some(begun) }));
                work().await
            })
        });
        thread.expect("a thread").join()
    });
    let panics = PANICS.lock().remove(&number).unwrap_or_default();
    match lived {
        Ok(lived) if panics.is_empty() => Ok(lived),
        Err(_) if panics.is_empty() => Err(vec!["the world ended by itself".into()]),
        _ => Err(panics),
    }
}

/// Notes panics of worlds, and prints nothing of them: who prints takes a lock that another process's thread may have.
fn note_panics() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| match WORLD.try_with(Cell::get).ok().flatten() {
        Some(world) => PANICS.lock().entry(world.number).or_default().push(panic.to_string()),
        None => before(panic),
    }));
}

/// How long this thread's world has lived, in nanoseconds; `None` where there is no world.
fn age() -> Option<i128> {
    let world = WORLD.try_with(Cell::get).ok().flatten()?;
    let Some(begun) = world.begun else { return Some(0) };
    if ASKING.replace(true) {
        return Some(0);
    }
    let now = tokio::time::Instant::now().into_std();
    ASKING.set(false);
    Some(now.duration_since(begun).as_nanos() as i128)
}

/// The C library's `struct timespec`.
#[repr(C)]
pub struct Timespec {
    seconds: i64,
    nanoseconds: i64,
}

/// Tells the time: the C library's function of this name.
///
/// # Safety
/// `into` is a place for a time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(clock: i32, into: *mut Timespec) -> i32 {
    let clock = ClockId::try_from(clock).unwrap_or(ClockId::Monotonic);
    let start = match clock {
        ClockId::Realtime | ClockId::RealtimeCoarse => Some(EPOCH_SECONDS),
        ClockId::Monotonic | ClockId::MonotonicCoarse | ClockId::MonotonicRaw | ClockId::Boottime => {
            Some(UPTIME_SECONDS)
        }
        _ => None,
    };
    let now = match start.zip(age()) {
        Some((start, age)) => {
            Timespec { seconds: start + (age / 1_000_000_000) as i64, nanoseconds: (age % 1_000_000_000) as i64 }
        }
        None => {
            let true_time = rustix::time::clock_gettime(clock);
            Timespec { seconds: true_time.tv_sec, nanoseconds: true_time.tv_nsec }
        }
    };
    // SAFETY: the caller says so.
    unsafe { into.write(now) };
    0
}

/// Says which processors there are: the C library's function of this name. A world has one, whatever machine it is played on: how much
/// is done at a time is a part of its history. Who belongs to none hears nothing, and asks otherwise.
///
/// # Safety
/// `into` is a place for `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sched_getaffinity(_process: i32, length: usize, into: *mut u8) -> i32 {
    if WORLD.try_with(Cell::get).ok().flatten().is_none() || length == 0 {
        return -1;
    }
    // SAFETY: the caller says so.
    unsafe {
        into.write_bytes(0, length);
        into.write(1);
    }
    0
}

/// Gives random bytes: the C library's function of this name.
///
/// # Safety
/// `into` is a place for `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getrandom(into: *mut u8, length: usize, _flags: u32) -> isize {
    if length == 0 {
        return 0;
    }
    // SAFETY: the caller says so; bytes are bytes whatever they were.
    let bytes = unsafe {
        into.write_bytes(0, length);
        std::slice::from_raw_parts_mut(into, length)
    };
    match CHANCE.try_with(Cell::get).ok().flatten() {
        Some(mut state) => {
            for chunk in bytes.chunks_mut(8) {
                // SplitMix64 (Steele, Lea and Flood 2014).
                state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
                let mut mixed = state;
                mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
                mixed ^= mixed >> 31;
                chunk.copy_from_slice(&mixed.to_le_bytes()[..chunk.len()]);
            }
            CHANCE.set(Some(state));
        }
        None => {
            let read = std::fs::File::open("/dev/urandom").and_then(|mut source| source.read_exact(bytes));
            if read.is_err() {
                return -1;
            }
        }
    }
    length as isize
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;
    // This process itself is as it was when the next world is played: what is counted in a process is the same for all.
    use crate::apart::apart;

    #[test]
    fn a_world_has_its_own_time_and_its_own_chance() {
        let before = Instant::now();
        let live = |seed| {
            let lives = || {
                world(seed, async || {
                    let (steady, wall) = (Instant::now(), SystemTime::now());
                    tokio::time::sleep(Duration::from_secs(3600)).await;
                    let helper = tokio::task::spawn_blocking(Instant::now).await.expect("a thread");
                    assert_eq!(helper.duration_since(steady).as_secs(), 3600);
                    assert_eq!(std::thread::available_parallelism().map_or(0, usize::from), 1);
                    assert_eq!(wall.elapsed().expect("it goes on").as_secs(), 3600);
                    (jiff::Timestamp::now(), rand::random::<u64>())
                })
            };
            apart(lives).expect("it ends").expect("nothing panics")
        };
        assert_eq!(live(1), live(1));
        assert_ne!(live(1).1, live(2).1);
        assert!(before.elapsed() < Duration::from_secs(60), "the truth goes on");
    }

    #[test]
    fn what_panics_in_a_task_that_nobody_waits_for_is_known() {
        let lived = apart(|| {
            world(1, async || {
                tokio::spawn(async { panic!("the test has this panic") });
                tokio::time::sleep(Duration::from_secs(1)).await;
            })
        });
        let lived = lived.expect("it ends");
        assert!(lived.is_err_and(|panics| panics[0].contains("the test has this panic")));
    }
}
