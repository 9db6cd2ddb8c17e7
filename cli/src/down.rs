//! `coracle down` and `coracle reset`: a cluster on this machine ends, or is forgotten; a node is forgotten, too.
//!
//! Who runs a cluster or a node is who holds the lock of its data: neither a port that somebody else may have, nor a number of a process
//! that the cluster may have said in another namespace.

use std::ffi::OsStr;
use std::fs::{File, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::cluster::{Kept, Local, NodeOf};
use crate::output::{Step, tell};

/// Longer than pods may take in grace when nobody asks for more.
const STOP_DEADLINE: Duration = Duration::from_secs(120);
/// What lies in a data directory, apart from the marks of its founding and `control`, where the lock is.
const PARTS: [&str; 10] = [
    "control.before-recovery",
    "control.recovering",
    "node",
    "registry",
    "pki",
    "peer-port",
    "kubeconfig",
    "kubeconfig.unread",
    "coracle.log",
    "coracle.log.1",
];
/// What lies in a node's directory, in the order in which it goes: by the identity the rest is known as a node's.
const NODE_PARTS: [&str; 4] = ["node", "servers.json.part", "servers.json", "identity.json.part"];
/// Volumes that are told of by name.
const VOLUMES_NAMED_MAX: usize = 10;

/// Where the lock of a cluster's data is, and of a node's.
const CLUSTER_LOCK: &str = "control/LOCK";
const NODE_LOCK: &str = "LOCK";

/// Stop the cluster that runs on this machine; its data stays
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    local: Local,
}

/// Runs `coracle down`.
pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let dir = arguments.local.dir()?;
    if !stop(&dir, CLUSTER_LOCK).await? {
        tell!("the cluster in {} does not run", dir.display());
    }
    Ok(())
}

/// Delete a cluster on this machine (objects, images, volumes, certificates), or a node that --data-dir names
///
/// What runs is stopped first. A node stays known to its cluster: `kubectl delete node NAME`.
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
    let (dir, kept) = arguments.local.to_delete()?;
    let what = match &kept {
        Kept::Cluster => String::new(),
        Kept::Node(NodeOf { name, server }) => format!("of node {name} of the cluster at {server} "),
    };
    let lost = volumes(&dir)?;
    if !arguments.yes && !agrees(&format!("everything {what}in {} will be deleted{lost}", dir.display()))? {
        bail!("nothing was deleted");
    }
    let lock = match &kept {
        Kept::Cluster => CLUSTER_LOCK,
        Kept::Node(_) => NODE_LOCK,
    };
    stop(&dir, lock).await?;
    let step = Step::begin(format!("delete {}", dir.display()));
    match kept {
        Kept::Cluster => forget(&dir)?,
        Kept::Node(_) => forget_node(&dir)?,
    }
    step.done();
    if let Kept::Node(NodeOf { name, .. }) = kept {
        tell!("the cluster still knows it: `kubectl delete node {name}`");
    }
    Ok(())
}

/// The volumes of claims in `dir`, in words; nothing where there are none.
fn volumes(dir: &Path) -> anyhow::Result<String> {
    let volumes = dir.join("node/volumes");
    let entries = match std::fs::read_dir(&volumes) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
        entries => entries.with_context(|| format!("read {}", volumes.display()))?,
    };
    let mut names: Vec<String> =
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort_unstable();
    let more = names.len().saturating_sub(VOLUMES_NAMED_MAX);
    names.truncate(VOLUMES_NAMED_MAX);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let volumes = if names.len() == 1 { "volume" } else { "volumes" };
    Ok(if names.is_empty() { String::new() } else { format!(", the {volumes} {}{more} among it", names.join(", ")) })
}

/// Whether the person at the terminal says yes to `what`.
pub fn agrees(what: &str) -> anyhow::Result<bool> {
    let _ = io::stderr().write_all(format!("{what}. Type yes to go on: ").as_bytes());
    let mut line = String::new();
    io::stdin().read_line(&mut line).context("read the answer; --yes needs none")?;
    Ok(line.trim() == "yes")
}

/// Deletes the data in `dir`, which nobody uses: the parts by name, so that what somebody else keeps there stays.
///
/// The marks come first and last: a directory that was forgotten in part is founded anew by the next start, or forgotten again.
fn forget(dir: &Path) -> anyhow::Result<()> {
    // Held until the end: no start comes between.
    let _lock = free(dir, CLUSTER_LOCK)?;
    let founding = dir.join("FOUNDING");
    let marked = File::options().create(true).append(true).mode(0o600).open(&founding).and_then(|file| file.sync_all());
    marked.with_context(|| format!("write {}", founding.display()))?;
    delete(doomed(dir))?;
    // Stays when there is anything else in it.
    let _ = std::fs::remove_dir(dir);
    Ok(())
}

/// The same for a node's data. Its identity goes when the rest is gone: what was forgotten in part is a node's, and can be forgotten again.
fn forget_node(dir: &Path) -> anyhow::Result<()> {
    let _lock = free(dir, NODE_LOCK)?;
    delete(NODE_PARTS.into_iter().chain(["identity.json", NODE_LOCK]).map(|part| dir.join(part)))?;
    let _ = std::fs::remove_dir(dir);
    Ok(())
}

/// The lock, held by this process from now on.
fn free(dir: &Path, name: &str) -> anyhow::Result<Option<File>> {
    match lock(dir, name)? {
        Lock::Free(file) => Ok(file),
        Lock::Held => bail!("a process uses {}: nothing was deleted", dir.display()),
    }
}

fn delete(paths: impl IntoIterator<Item = PathBuf>) -> anyhow::Result<()> {
    for path in paths {
        let removed = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).context(format!("delete {}", path.display()));
            }
            _ => {}
        }
    }
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

fn lock(dir: &Path, name: &str) -> anyhow::Result<Lock> {
    let path = dir.join(name);
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

/// Whether a process that can be seen from here runs the cluster in `dir`. It takes no lock: a start at this moment would find it held.
pub fn is_running(dir: &Path) -> bool {
    holder(dir, CLUSTER_LOCK).is_ok()
}

/// The process that holds the lock of `dir`; who only reads the file (a backup) does not.
fn holder(dir: &Path, name: &str) -> anyhow::Result<Pid> {
    let lock = std::fs::metadata(dir.join(name)).context("find the lock of the data")?;
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

/// Ends what runs in `dir`; false when nothing does.
async fn stop(dir: &Path, name: &str) -> anyhow::Result<bool> {
    let mut stopped = false;
    while let Lock::Held = lock(dir, name)? {
        end(dir, name).await?;
        stopped = true;
    }
    Ok(stopped)
}

/// Asks its process to end and waits for it.
async fn end(dir: &Path, name: &str) -> anyhow::Result<()> {
    let step = Step::begin(if name == NODE_LOCK { "stop the node" } else { "stop the cluster" });
    let pid = holder(dir, name)?;
    // By a descriptor: the number may be another process's by the time it is waited for.
    let process = pidfd_open(pid, PidfdFlags::empty()).context("find the process on this machine")?;
    if holder(dir, name)? != pid {
        bail!("the process that uses {} has changed; try again", dir.display());
    }
    pidfd_send_signal(&process, Signal::TERM).context("ask the process to end")?;
    let ended = tokio::task::spawn_blocking(move || {
        let deadline = Timespec { tv_sec: STOP_DEADLINE.as_secs() as i64, tv_nsec: 0 };
        poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&deadline))
    });
    if ended.await?.context("wait for the process")? == 0 {
        bail!("process {}, which uses {}, still runs after {STOP_DEADLINE:?}", pid.as_raw_nonzero(), dir.display());
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
        for file in
            ["CLUSTER", "control/LOCK", "control/state.redb", "pki/ca.key", "kubeconfig", "kubeconfig.unread", "theirs"]
        {
            std::fs::create_dir_all(data.join(file).parent().unwrap()).unwrap();
            std::fs::write(data.join(file), "").unwrap();
        }
        let held = File::open(data.join("control/LOCK")).unwrap();
        held.lock().unwrap();
        assert!(forget(data).unwrap_err().to_string().contains("nothing was deleted"));
        assert!(data.join("pki/ca.key").exists() && data.join("CLUSTER").exists());
        drop(held);
        let order: Vec<_> = doomed(data).into_iter().filter(|path| path.exists()).collect();
        let names = ["CLUSTER", "pki", "kubeconfig", "kubeconfig.unread", "control/state.redb", "control"];
        let names = names.map(|name| data.join(name));
        assert_eq!(order, names, "the mark first, the lock last");
        forget(data).unwrap();
        let left: Vec<_> = std::fs::read_dir(data).unwrap().flatten().map(|entry| entry.file_name()).collect();
        assert_eq!(left, ["theirs"]);
    }

    #[test]
    fn a_node_is_forgotten_with_its_volumes_named_before_and_never_under_its_lock() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("node");
        let files = ["identity.json", "servers.json", "LOCK", "node/volumes/pvc-2/data", "node/volumes/pvc-1/data"];
        for file in files.into_iter().chain(["theirs"]) {
            std::fs::create_dir_all(data.join(file).parent().unwrap()).unwrap();
            std::fs::write(data.join(file), "").unwrap();
        }
        assert_eq!(volumes(&data).unwrap(), ", the volumes pvc-1, pvc-2 among it");
        assert_eq!(volumes(dir.path()).unwrap(), "");
        let held = File::open(data.join(NODE_LOCK)).unwrap();
        held.lock().unwrap();
        assert!(forget_node(&data).unwrap_err().to_string().contains("nothing was deleted"));
        assert!(files.iter().all(|file| data.join(file).exists()));
        drop(held);
        forget_node(&data).unwrap();
        let left: Vec<_> = std::fs::read_dir(&data).unwrap().flatten().map(|entry| entry.file_name()).collect();
        assert_eq!(left, ["theirs"]);
        for number in 0..VOLUMES_NAMED_MAX + 2 {
            std::fs::create_dir_all(data.join(format!("node/volumes/v{number:02}"))).unwrap();
        }
        let said = volumes(&data).unwrap();
        assert!(said.contains("v09 and 2 more") && !said.contains("v10"), "{said}");
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
        let found = holder(dir.path(), CLUSTER_LOCK);
        for child in [&mut reads, &mut holds, &mut reads_too] {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        assert_eq!(found.unwrap().as_raw_nonzero().get(), i32::try_from(holds.id()).unwrap());
        assert!(matches!(lock(dir.path(), CLUSTER_LOCK).unwrap(), Lock::Free(_)));
    }
}
