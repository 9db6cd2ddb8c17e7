//! A process that begins anew: it is the same process for whoever supervises it, with what is at its program's path then, its own
//! arguments, and the listeners that its clients wait at.

use std::ffi::{OsStr, OsString};
use std::net::TcpListener;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::Context as _;
use coracle_sdk::{Listeners, Program};
use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};

/// The process that left listeners to its next life, and their descriptors: `PROCESS API REGISTRY`, with `-` for none. Who inherits
/// the variable is another process.
const LEFT: &str = "CORACLE_LISTENERS";
/// The file that this process runs, whatever is at its path by now.
const OWN: &str = "/proc/self/exe";

/// The program of this process, by the path at which it was called: that may be a link to the version of the day. Called before
/// anything else has changed what is there.
pub fn program() -> anyhow::Result<Program> {
    let called = std::env::args_os().next().unwrap_or_default();
    let found = as_called(&called, std::env::var_os("PATH").as_deref());
    let path = match found {
        Some(path) => path,
        None => std::env::current_exe().context("find this program's own file")?,
    };
    Ok(Program::new(path))
}

/// What to run as a compiler: the file that this process runs, also when another one has taken its place.
pub fn own_file() -> anyhow::Result<PathBuf> {
    match Path::new(OWN).exists() {
        true => Ok(OWN.into()),
        false => std::env::current_exe().context("find this program's own file"),
    }
}

/// The path by which a shell or a supervisor has found this process's file.
fn as_called(called: &OsStr, search: Option<&OsStr>) -> Option<PathBuf> {
    let identity = |path: &Path| std::fs::metadata(path).map(|file| (file.dev(), file.ino())).ok();
    let own = identity(Path::new(OWN))?;
    let is_path = called.as_encoded_bytes().contains(&b'/');
    let candidates: Vec<PathBuf> = match is_path {
        true => vec![PathBuf::from(called)],
        false => search.iter().flat_map(std::env::split_paths).map(|dir| dir.join(called)).collect(),
    };
    let found = candidates.into_iter().find(|path| identity(path) == Some(own))?;
    std::path::absolute(found).ok()
}

/// Whether this process has had an earlier life: what is done once, at its beginning, was done.
pub fn is_another_life() -> bool {
    left(&std::env::var(LEFT).unwrap_or_default(), std::process::id()).is_some()
}

/// What an earlier life of this process has left. Called once.
pub fn listeners() -> Listeners {
    let said = std::env::var(LEFT).unwrap_or_default();
    let [api, registry] = left(&said, std::process::id()).unwrap_or_default();
    Listeners { api: api.and_then(take), registry: registry.and_then(take) }
}

fn left(said: &str, process: u32) -> Option<[Option<i32>; 2]> {
    let words: Vec<&str> = said.split(' ').collect();
    let [of, api, registry] = words.as_slice() else { return None };
    (of.parse() == Ok(process)).then(|| [api.parse().ok(), registry.parse().ok()])
}

fn take(descriptor: i32) -> Option<Arc<TcpListener>> {
    // SAFETY: the variable names this process, whose earlier life left these descriptors open for this one; nobody else has them, and
    // they are taken once.
    let listener = TcpListener::from(unsafe { OwnedFd::from_raw_fd(descriptor) });
    // No child is to have it.
    let flags = fcntl_getfd(&listener).and_then(|flags| fcntl_setfd(&listener, flags | FdFlags::CLOEXEC));
    flags.is_ok().then(|| Arc::new(listener))
}

/// Becomes the program; comes back only with why it could not.
pub fn begin(program: &Program, listeners: &Listeners) -> anyhow::Error {
    let mut words = vec![std::process::id().to_string()];
    for listener in [&listeners.api, &listeners.registry] {
        let left = listener.as_ref().filter(|listener| fcntl_setfd(listener, FdFlags::empty()).is_ok());
        words.push(left.map_or_else(|| "-".to_owned(), |listener| listener.as_raw_fd().to_string()));
    }
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let error = Command::new(program.path()).args(arguments).env(LEFT, words.join(" ")).exec();
    anyhow::Error::from(error).context(format!("begin anew with {}", program.path().display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_at_the_path_by_which_it_was_called() {
        let dir = tempfile::tempdir().unwrap();
        let (link, other) = (dir.path().join("coracle"), dir.path().join("other"));
        std::os::unix::fs::symlink(std::env::current_exe().unwrap(), &link).unwrap();
        std::fs::write(&other, "").unwrap();
        let search = std::env::join_paths(["/nowhere".as_ref(), dir.path()]).unwrap();
        let found = |called: &Path| as_called(called.as_os_str(), Some(&search));
        assert_eq!(found(&link), Some(link.clone()));
        assert_eq!(found(Path::new("coracle")), Some(link));
        for another in [&other, Path::new("other"), Path::new(""), Path::new("/nowhere/coracle")] {
            assert_eq!(found(another), None, "{}", another.display());
        }
    }

    #[test]
    fn what_is_left_is_for_the_same_process_only() {
        assert_eq!(left("7 3 4", 7), Some([Some(3), Some(4)]));
        assert_eq!(left("7 - 4", 7), Some([None, Some(4)]));
        for other in ["7 3 4", "", "8", "8 3", "x 3 4", "8 3 4 5"] {
            assert_eq!(left(other, 8), None, "{other}");
        }
    }
}
