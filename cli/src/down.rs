//! `coracle down` and `coracle reset`: a cluster on this machine ends, or is forgotten.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::cluster::Local;
use crate::output::Step;

/// Longer than pods may take in grace when nobody asks for more.
const STOP_DEADLINE: Duration = Duration::from_secs(120);

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
    if !arguments.yes {
        eprint!("everything in {} will be deleted. Type yes to go on: ", dir.display());
        let mut line = String::new();
        std::io::stdin().read_line(&mut line).context("read the answer; --yes needs none")?;
        if line.trim() != "yes" {
            bail!("nothing was deleted");
        }
    }
    stop(&dir).await?;
    let step = Step::begin(format!("delete {}", dir.display()));
    // The parts that are ours, by name: nothing else that somebody keeps in the same directory goes.
    for part in ["control", "node", "registry", "pki", "kubeconfig", "coracle.log"] {
        remove(&dir.join(part))?;
    }
    // Stays when there is anything else in it.
    let _ = std::fs::remove_dir(&dir);
    step.done();
    Ok(())
}

fn remove(path: &Path) -> anyhow::Result<()> {
    let result = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
    match result {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).context(format!("delete {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Asks the cluster's process to end and waits for it; false when none runs.
async fn stop(dir: &Path) -> anyhow::Result<bool> {
    let Some(process) = Local::process(dir).await? else { return Ok(false) };
    let pid = i32::try_from(process).ok().and_then(Pid::from_raw).context("the server names no process")?;
    let dir: PathBuf = dir.into();
    let step = Step::begin("stop the cluster");
    // By a descriptor: the number may be another process's by the time it is waited for.
    let process = pidfd_open(pid, PidfdFlags::empty()).context("find the server's process on this machine")?;
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
    Ok(true)
}
