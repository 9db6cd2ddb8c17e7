//! Memory goes back to the system when there is nothing to do: the allocator gives freed pages back only while it is called,
//! and after a burst of requests nobody calls it; and what ran or was read once of the executable stays mapped for good.

use std::cell::Cell;
use std::ffi::{c_int, c_long, c_void};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{LazyLock, OnceLock};
use std::time::{Duration, Instant};

/// How often a thread that has nothing to do looks through what it holds. It costs a millisecond at most.
const EVERY: Duration = Duration::from_secs(5);
/// For so long after the start, what is freed is given back at once: the log that was read, and what was made of it once. Later
/// the allocator keeps it for a while, which costs less than a fault for each page that is used again.
const START: Duration = Duration::from_secs(4);
/// How often the executable's pages are let go. What is in use comes back from the page cache, which costs a millisecond.
const FILE_EVERY: Duration = Duration::from_secs(15);
/// `mi_option_purge_delay`, in milliseconds.
const PURGE_DELAY: c_int = 15;

unsafe extern "C" {
    /// Of mimalloc, which is this executable's allocator: frees what this thread holds for later, and purges what is free.
    safe fn mi_collect(force: bool);
    safe fn mi_option_get(option: c_int) -> c_long;
    safe fn mi_option_set(option: c_int, value: c_long);
}

static BEGUN: OnceLock<Begun> = OnceLock::new();
static UNWRITTEN: LazyLock<Vec<Range<usize>>> = LazyLock::new(unwritten);
/// Seconds after the start at which the executable's pages are let go next.
static FILE_AT: AtomicU64 = AtomicU64::new(START.as_secs());

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

/// Called when what was to be started has: most of the code that ran until then does not run again.
pub fn started() {
    mi_collect(true);
    let_file_go();
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
        let (age, at) = (self.at.elapsed().as_secs(), FILE_AT.load(Ordering::Relaxed));
        let next = age + FILE_EVERY.as_secs();
        if age < at || FILE_AT.compare_exchange(at, next, Ordering::Relaxed, Ordering::Relaxed).is_err() {
            return;
        }
        mi_option_set(PURGE_DELAY, self.purge_delay);
        let_file_go();
    }
}

fn let_file_go() {
    for pages in &*UNWRITTEN {
        // SAFETY: these are pages of the executable's file that nobody may write: whoever comes there next finds the same again.
        let _ = unsafe { rustix::mm::madvise(pages.start as *mut _, pages.len(), rustix::mm::Advice::LinuxDontNeed) };
    }
}

/// Where this executable is mapped as it is in its file: code, constants, and the relocations, which the loader read at the
/// start. Not what was relocated: that is written.
fn unwritten() -> Vec<Range<usize>> {
    unsafe extern "C" fn of_first(object: *mut libc::dl_phdr_info, _: usize, found: *mut c_void) -> c_int {
        // SAFETY: the loader's description of an object that is loaded, and what was handed to it beside this function.
        let (object, found) = unsafe { (&*object, &mut *found.cast::<Vec<Range<usize>>>()) };
        // SAFETY: so many headers are there, for as long as the object is loaded.
        let headers = unsafe { std::slice::from_raw_parts(object.dlpi_phdr, object.dlpi_phnum.into()) };
        let page = rustix::param::page_size();
        let is_unwritten =
            |header: &&libc::Elf64_Phdr| header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0;
        found.extend(headers.iter().filter(is_unwritten).map(|header| {
            let from = (object.dlpi_addr + header.p_vaddr) as usize;
            // Whole pages.
            from.next_multiple_of(page)..(from + header.p_memsz as usize) / page * page
        }));
        // The executable is the first; what follows are libraries, which others share.
        1
    }
    let mut found: Vec<Range<usize>> = Vec::new();
    // SAFETY: the function is what it is to be, and uses what it is handed as it is.
    unsafe { libc::dl_iterate_phdr(Some(of_first), (&raw mut found).cast()) };
    found.retain(|pages| pages.start < pages.end);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_on_without_its_code_and_its_constants() {
        static CONSTANT: [u64; 4 << 10] = [7; 4 << 10];
        let pages = unwritten();
        let has = |place: usize| pages.iter().position(|pages| pages.contains(&place));
        let code = has(rest as *const () as usize).expect("code");
        let constants = has(CONSTANT.as_ptr().addr() + size_of_val(&CONSTANT) / 2).expect("constants");
        let written = [(&raw const FILE_AT).addr(), (&raw const UNWRITTEN).addr(), pages.as_ptr().addr()];
        assert_eq!(written.map(has), [None; 3], "what was written would be lost");
        let resident = |pages: &Range<usize>| {
            let smaps = std::fs::read_to_string("/proc/self/smaps").expect("the maps");
            let holds = |line: &&str| {
                let range = line.split_once(' ').and_then(|(range, _)| range.split_once('-'));
                let place = |text| usize::from_str_radix(text, 16).unwrap_or_default();
                range.is_some_and(|(from, to)| (place(from)..place(to)).contains(&pages.start))
            };
            let size = smaps.lines().skip_while(|line| !holds(line)).find(|line| line.starts_with("Rss:"));
            size.and_then(|line| line.split_ascii_whitespace().nth(1)?.parse::<u64>().ok()).expect("its size")
        };
        // All of both has been read.
        for pages in [&pages[code], &pages[constants]] {
            // SAFETY: they are mapped, and nobody writes there.
            let all = unsafe { std::slice::from_raw_parts(pages.start as *const u8, pages.len()) };
            std::hint::black_box(all.iter().step_by(4096).map(|byte| u64::from(*byte)).sum::<u64>());
        }
        let before = [resident(&pages[code]), resident(&pages[constants])];
        let_file_go();
        let after = [resident(&pages[code]), resident(&pages[constants])];
        assert!(after[0] < before[0] / 2 && after[1] < before[1] / 2, "{before:?} KiB, then {after:?}");
        assert!(std::hint::black_box(&CONSTANT).iter().all(|number| *number == 7));
    }

    #[test]
    fn mimalloc_has_the_option_where_it_is_looked_for() {
        // Its default.
        assert_eq!(mi_option_get(PURGE_DELAY), 1000);
    }
}
