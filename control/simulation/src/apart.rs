//! Each world in a process of its own: a copy of this one as it was when the first cluster had been founded, whatever was played
//! before or is played beside it. So what is computed once in a process (tables, the order of a hash map) is the same for a seed
//! that is played alone and for one among thousands; and one that hangs, or takes too much memory, is nobody else's.

use std::io::{Read as _, Write as _};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::process::{Pid, WaitOptions, waitpid};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// How long a process may take. A lock that is never opened, or a loop that never waits, would say nothing at all.
const STANDS_STILL: Duration = Duration::from_secs(900);

// SAFETY: the C library's functions of these names are these.
unsafe extern "C" {
    safe fn fork() -> i32;
    safe fn _exit(code: i32) -> !;
    safe fn alarm(seconds: u32) -> u32;
}

/// Has a copy of this process do `work`, and returns what it returns; or why there is nothing to return.
///
/// The copy has this thread alone: nothing that another may hold at this moment (the lock of the output, say) may be asked for
/// in `work`. Memory is whole: the C library sees to it.
pub fn apart<T: Serialize + DeserializeOwned>(work: impl FnOnce() -> T) -> Result<T, String> {
    /// No copy has the end of another's pipe.
    static ONE: Mutex<()> = Mutex::new(());
    let one = ONE.lock();
    let (mut from, mut into) = std::io::pipe().map_err(|error| error.to_string())?;
    let copy = fork();
    if copy == 0 {
        alarm(STANDS_STILL.as_secs() as u32);
        let said = serde_json::to_vec(&work()).is_ok_and(|said| into.write_all(&said).is_ok());
        _exit(i32::from(!said));
    }
    drop(into);
    drop(one);
    let copy = Pid::from_raw(copy).filter(|_| copy > 0).ok_or("this process could not be copied")?;
    let mut said = Vec::new();
    let read = from.read_to_end(&mut said);
    let ended = waitpid(Some(copy), WaitOptions::empty());
    read.map_err(|error| error.to_string())?;
    serde_json::from_slice(&said)
        .map_err(|_| format!("its process ended without a word, or was ended after {STANDS_STILL:?}: {ended:?}"))
}
