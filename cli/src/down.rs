//! `coracle down` and `coracle reset`: a cluster on this machine ends, or is forgotten.
//!
//! Who runs a cluster is who holds the lock of its data: neither a port that somebody else may have, nor a number of a process
//! that the cluster may have said in another namespace.

use std::ffi::OsStr;
use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::cluster::Local;
use crate::output::Step;

/// Longer than pods may take in grace when nobody asks for more.
const STOP_DEADLINE: Duration = Duration::from_secs(120);
/// What lies in a data directory, apart from the marks of its founding and `control`, where the lock is.
const PARTS: [&str; 8] = [
    "control.before-recovery",
    "control.recovering",
    "node",
    "registry",
    "pki",
    "kubeconfig",
    "coracle.log",
    "coracle.log.1",
];

/// Stop the cluster that runs on this machine; its data stays
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    local: Local,
}

/// Runs `coracle down`.
pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let dir = arguments.local.dir()?;
    if !stop(&dir).await? {
        eprintln!("the cluster in {} does not run", dir.display());
    }
    Ok(())
}

/// Delete a cluster on this machine: objects, images, volumes, certificates
#[derive(clap::Args)]
pub struct ResetArguments {
    #[command(flatten)]
    local: Local,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

/// Runs `coracle reset`.
pub async fn reset(arguments: ResetArguments) -> anyhow::Result<()> {
    let dir = arguments.local.dir()?;
    if !arguments.yes && !agrees(&format!("everything in {} will be deleted", dir.display()))? {
        bail!("nothing was deleted");
    }
    stop(&dir).await?;
    let step = Step::begin(format!("delete {}", dir.display()));
    forget(&dir)?;
    step.done();
    Ok(())
}

/// Whether the person at the terminal says yes to `what`.
pub fn agrees(what: &str) -> anyhow::Result<bool> {
    eprint!("{what}. Type yes to go on: ");
    let mut line = String::new();
    io::stdin().read_line(&mut line).context("read the answer; --yes needs none")?;
    Ok(line.trim() == "yes")
}

/// Deletes the data in `dir`, which nobody uses: the parts by name, so that what somebody else keeps there stays.
///
/// The marks come first and last: a directory that was forgotten in part is founded anew by the next start, or forgotten again.
fn forget(dir: &Path) -> anyhow::Result<()> {
    // Held until the end: no start comes between.
    let _lock = match lock(dir)? {
        Lock::Free(file) => file,
        Lock::Held => bail!("a process uses {}: nothing was deleted", dir.display()),
    };
    let founding = dir.join("FOUNDING");
    let marked = File::options().create(true).append(true).mode(0o600).open(&founding).and_then(|file| file.sync_all());
    marked.with_context(|| format!("write {}", founding.display()))?;
    for path in doomed(dir) {
        let removed = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).context(format!("delete {}", path.display()));
            }
            _ => {}
        }
    }
    // Stays when there is anything else in it.
    let _ = std::fs::remove_dir(dir);
    Ok(())
}

/// What is deleted, in order. The lock is the last that goes: a start that comes before finds it held, one that comes later
/// finds nothing.
fn doomed(dir: &Path) -> Vec<PathBuf> {
    let control = dir.join("control");
    let kept = std::fs::read_dir(&control).into_iter().flatten().flatten();
    let kept = kept.filter(|entry| entry.file_name() != "LOCK").map(|entry| entry.path());
    let parts = ["CLUSTER"].into_iter().chain(PARTS).map(|part| dir.join(part));
    parts.chain(kept).chain([dir.join("FOUNDING"), control.clone()]).collect()
}

/// Whether somebody uses a data directory.
enum Lock {
    /// Nobody, as long as the file is kept; there is none where nothing was ever kept.
    Free(Option<File>),
    /// Another process.
    Held,
}

fn lock(dir: &Path) -> anyhow::Result<Lock> {
    let path = dir.join("control/LOCK");
    let file = match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Lock::Free(None)),
        file => file.with_context(|| format!("open {}", path.display()))?,
    };
    match file.try_lock() {
        Ok(()) => Ok(Lock::Free(Some(file))),
        Err(TryLockError::WouldBlock) => Ok(Lock::Held),
        Err(TryLockError::Error(error)) => Err(error).context(format!("lock {}", path.display())),
    }
}

/// The process that holds the lock of `dir`; who only reads the file (a backup) does not.
fn holder(dir: &Path) -> anyhow::Result<Pid> {
    let lock = std::fs::metadata(dir.join("control/LOCK")).context("find the lock of the data")?;
    let is_lock =
        |path: &Path| std::fs::metadata(path).is_ok_and(|file| (file.dev(), file.ino()) == (lock.dev(), lock.ino()));
    let own = std::process::id();
    for process in std::fs::read_dir("/proc").context("look at the processes")?.flatten() {
        let Some(id) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // Those of others cannot be looked at.
        let Ok(files) = std::fs::read_dir(process.path().join("fd")) else { continue };
        let holds = |name: &OsStr| {
            let told = std::fs::read_to_string(process.path().join("fdinfo").join(name)).unwrap_or_default();
            told.lines().any(|line| line.starts_with("lock:"))
        };
        if id != own && files.flatten().any(|file| is_lock(&file.path()) && holds(&file.file_name())) {
            return i32::try_from(id).ok().and_then(Pid::from_raw).context("a process has a number");
        }
    }
    bail!("a process uses {}, but none that can be seen from here: stop it where it was started", dir.display())
}

/// Ends the cluster in `dir`; false when none runs.
async fn stop(dir: &Path) -> anyhow::Result<bool> {
    let mut stopped = false;
    while let Lock::Held = lock(dir)? {
        end(dir).await?;
        stopped = true;
    }
    Ok(stopped)
}

/// Asks the cluster's process to end and waits for it.
async fn end(dir: &Path) -> anyhow::Result<()> {
    let step = Step::begin("stop the cluster");
    let pid = holder(dir)?;
    // By a descriptor: the number may be another process's by the time it is waited for.
    let process = pidfd_open(pid, PidfdFlags::empty()).context("find the server's process on this machine")?;
    if holder(dir)? != pid {
        bail!("the process that uses {} has changed; try again", dir.display());
    }
    pidfd_send_signal(&process, Signal::TERM).context("ask the server's process to end")?;
    let ended = tokio::task::spawn_blocking(move || {
        let deadline = Timespec { tv_sec: STOP_DEADLINE.as_secs() as i64, tv_nsec: 0 };
        poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&deadline))
    });
    if ended.await?.context("wait for the server's process")? == 0 {
        bail!(
            "process {} of the cluster in {} still runs after {STOP_DEADLINE:?}",
            pid.as_raw_nonzero(),
            dir.display()
        );
    }
    step.done();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_ours_is_deleted_and_never_under_a_lock() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path();
        for file in ["CLUSTER", "control/LOCK", "control/state.redb", "pki/ca.key", "kubeconfig", "theirs"] {
            std::fs::create_dir_all(data.join(file).parent().unwrap()).unwrap();
            std::fs::write(data.join(file), "").unwrap();
        }
        let held = File::open(data.join("control/LOCK")).unwrap();
        held.lock().unwrap();
        assert!(forget(data).unwrap_err().to_string().contains("nothing was deleted"));
        assert!(data.join("pki/ca.key").exists() && data.join("CLUSTER").exists());
        drop(held);
        let order: Vec<_> = doomed(data).into_iter().filter(|path| path.exists()).collect();
        let names = ["CLUSTER", "pki", "kubeconfig", "control/state.redb", "control"].map(|name| data.join(name));
        assert_eq!(order, names, "the mark first, the lock last");
        forget(data).unwrap();
        let left: Vec<_> = std::fs::read_dir(data).unwrap().flatten().map(|entry| entry.file_name()).collect();
        assert_eq!(left, ["theirs"]);
    }

    #[test]
    fn who_only_reads_the_lock_does_not_hold_it() {
        use std::process::{Command, Stdio};
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("control")).unwrap();
        let path = dir.path().join("control/LOCK");
        std::fs::write(&path, "").unwrap();
        // A child has its standard input open, and with it whatever lock is on that; it ends when its test does.
        let child =
            |lock: File| Command::new("tail").args(["-f", "/dev/null"]).stdin(lock).stdout(Stdio::null()).spawn();
        let mut reads = child(File::open(&path).unwrap()).unwrap();
        let held = File::open(&path).unwrap();
        held.lock().unwrap();
        let mut holds = child(held).unwrap();
        let mut reads_too = child(File::open(&path).unwrap()).unwrap();
        let found = holder(dir.path());
        for child in [&mut reads, &mut holds, &mut reads_too] {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        assert_eq!(found.unwrap().as_raw_nonzero().get(), i32::try_from(holds.id()).unwrap());
        assert!(matches!(lock(dir.path()).unwrap(), Lock::Free(_)));
    }
}
