//! Memory goes back to the system when there is nothing to do: the allocator gives freed pages back only while it is called,
//! and after a burst of requests nobody calls it; and code that ran once stays mapped for good.

use std::cell::Cell;
use std::ffi::{c_int, c_long};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{LazyLock, OnceLock};
use std::time::{Duration, Instant};

/// How often a thread that has nothing to do looks through what it holds. It costs a millisecond at most.
const EVERY: Duration = Duration::from_secs(5);
/// For so long after the start, what is freed is given back at once: the log that was read, and what was made of it once. Later
/// the allocator keeps it for a while, which costs less than a fault for each page that is used again.
const START: Duration = Duration::from_secs(4);
/// How often the executable's code is let go. What is in use comes back from the page cache, which costs a millisecond.
const CODE_EVERY: Duration = Duration::from_secs(60);
/// `mi_option_purge_delay`, in milliseconds.
const PURGE_DELAY: c_int = 15;

unsafe extern "C" {
    /// Of mimalloc, which is this executable's allocator: frees what this thread holds for later, and purges what is free.
    safe fn mi_collect(force: bool);
    safe fn mi_option_get(option: c_int) -> c_long;
    safe fn mi_option_set(option: c_int, value: c_long);
}

static BEGUN: OnceLock<Begun> = OnceLock::new();
static CODE: LazyLock<Option<Range<usize>>> = LazyLock::new(code);
/// Seconds after the start at which code is let go next.
static CODE_AT: AtomicU64 = AtomicU64::new(START.as_secs());

struct Begun {
    at: Instant,
    purge_delay: c_long,
}

/// Called once, before the runtime's threads run. Who has no runtime never rests, and does not begin.
pub fn begin() {
    BEGUN.get_or_init(|| {
        let purge_delay = mi_option_get(PURGE_DELAY);
        mi_option_set(PURGE_DELAY, 0);
        Begun { at: Instant::now(), purge_delay }
    });
}

/// Called by each thread of the runtime that is about to sleep.
pub fn rest() {
    thread_local!(static LAST: Cell<Option<Instant>> = const { Cell::new(None) });
    // A thread that is ending has no place for this any more, and needs none.
    let _ = LAST.try_with(|last| {
        if last.get().is_none_or(|last| last.elapsed() >= EVERY) {
            last.set(Some(Instant::now()));
            mi_collect(true);
            if let Some(begun) = BEGUN.get() {
                begun.rest();
            }
        }
    });
}

impl Begun {
    fn rest(&self) {
        let (age, at) = (self.at.elapsed().as_secs(), CODE_AT.load(Ordering::Relaxed));
        let next = age + CODE_EVERY.as_secs();
        if age < at || CODE_AT.compare_exchange(at, next, Ordering::Relaxed, Ordering::Relaxed).is_err() {
            return;
        }
        mi_option_set(PURGE_DELAY, self.purge_delay);
        let_code_go();
    }
}

fn let_code_go() {
    let Some(code) = &*CODE else { return };
    // SAFETY: these are the executable's own pages of code, mapped from its file and never written: whoever runs there next finds
    // the same again.
    let _ = unsafe { rustix::mm::madvise(code.start as *mut _, code.len(), rustix::mm::Advice::LinuxDontNeed) };
}

/// Where this executable's code is mapped.
fn code() -> Option<Range<usize>> {
    let here = code as *const () as usize;
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    maps.lines().find_map(|line| {
        let (range, rest) = line.split_once(' ')?;
        let (from, to) = range.split_once('-')?;
        let range = usize::from_str_radix(from, 16).ok()?..usize::from_str_radix(to, 16).ok()?;
        (rest.starts_with("r-xp") && range.contains(&here)).then_some(range)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_on_without_its_code() {
        let code = code().expect("it runs somewhere");
        assert!(code.contains(&(rest as *const () as usize)));
        let resident = || {
            let smaps = std::fs::read_to_string("/proc/self/smaps").expect("the maps");
            let begin = format!("{:x}-", code.start);
            let at = smaps.lines().skip_while(|line| !line.starts_with(&begin)).find(|line| line.starts_with("Rss:"));
            at.and_then(|line| line.split_ascii_whitespace().nth(1)?.parse::<u64>().ok()).expect("its size")
        };
        let before = resident();
        let_code_go();
        let after = resident();
        assert!(after < before, "{before} KiB, then {after}");
    }

    #[test]
    fn mimalloc_has_the_option_where_it_is_looked_for() {
        // Its default.
        assert_eq!(mi_option_get(PURGE_DELAY), 1000);
    }
}
