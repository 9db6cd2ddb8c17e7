//! The real executable, started for a benchmark.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use super::Error;
use crate::Remote;

/// Until a cluster must be ready.
const START_DEADLINE: Duration = Duration::from_secs(60);

/// A cluster of its own, in a process of its own; it ends with this value.
pub struct Process {
    child: Child,
    dir: TempDir,
    /// A client of its API.
    pub remote: Remote,
}

/// Waits until a program that was started says on its standard output, which is piped, that it is ready.
pub async fn ready(child: &mut Child, what: &str) -> Result<(), Error> {
    let mut lines = BufReader::new(child.stdout.take().ok_or("no standard output")?).lines();
    let ready = async {
        while let Some(line) = lines.next_line().await? {
            if line == "ready" {
                return Ok(());
            }
        }
        Err(format!("{what} ended before it was ready").into())
    };
    tokio::time::timeout(START_DEADLINE, ready).await?
}

impl Process {
    /// Starts it and pushes the hello component as `hello:latest`.
    pub async fn start(program: &Path) -> Result<Process, Error> {
        let dir = tempfile::tempdir()?;
        let mut child = Command::new(program)
            .args([
                "up",
                "--api-port",
                "0",
                "--registry-port",
                "0",
                "--http-port",
                "0",
                "--https-port",
                "0",
                "--data-dir",
            ])
            .arg(dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        ready(&mut child, "the cluster").await?;
        let remote = Remote::connect(&dir.path().join("kubeconfig")).await?;
        let hello = crate::component(&examples()?, "hello").await?;
        crate::push(remote.client(), &hello, "hello:latest").await?;
        Ok(Process { child, dir, remote })
    }

    /// Its process.
    pub fn id(&self) -> Result<u32, Error> {
        self.child.id().ok_or_else(|| "the cluster has ended".into())
    }

    /// What of its memory is resident.
    pub fn resident(&self) -> Result<Resident, Error> {
        Resident::of(self.id()?)
    }

    /// Asks it to end and waits until it has.
    pub async fn stop(mut self) -> Result<(), Error> {
        if let Some(id) = self.child.id().and_then(|id| rustix::process::Pid::from_raw(id.cast_signed())) {
            rustix::process::kill_process(id, rustix::process::Signal::TERM)?;
        }
        tokio::time::timeout(START_DEADLINE, self.child.wait()).await??;
        self.dir.close()?;
        Ok(())
    }
}

/// Resident memory of a process, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resident {
    /// With pages of files, which the kernel takes away when it needs them.
    pub all: u64,
    /// What is the process's own.
    pub own: u64,
}

impl Resident {
    /// Of a process.
    pub fn of(process: u32) -> Result<Resident, Error> {
        Resident::read(&std::fs::read_to_string(format!("/proc/{process}/statm"))?)
    }

    /// Of a line of `/proc/PID/statm`.
    fn read(statm: &str) -> Result<Resident, Error> {
        let mut pages = statm.split_ascii_whitespace().skip(1).map(str::parse::<u64>);
        let mut bytes =
            || Ok::<_, Error>(pages.next().ok_or("statm has too few fields")?? * rustix::param::page_size() as u64);
        let (all, of_files) = (bytes()?, bytes()?);
        Ok(Resident { all, own: all.saturating_sub(of_files) })
    }
}

/// The guests' workspace of the checkout we are in, else of the one this program was built from.
pub fn examples() -> Result<PathBuf, Error> {
    let here = std::env::current_dir()?;
    here.ancestors()
        .chain(Path::new(env!("CARGO_MANIFEST_DIR")).parent())
        .map(|root| root.join("examples"))
        .find(|examples| examples.join("hello/Cargo.toml").exists())
        .ok_or_else(|| "this benchmark needs a checkout of Coracle's repository".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_files_are_not_the_processs_own() {
        let page = rustix::param::page_size() as u64;
        let resident = Resident::read("5190000 11500 8200 28870 0 5130000 0\n").unwrap();
        assert_eq!(resident, Resident { all: 11_500 * page, own: 3_300 * page });
        assert!(Resident::read("5190000 11500").is_err());
        let mine = Resident::of(std::process::id()).unwrap();
        assert!(0 < mine.own && mine.own < mine.all);
    }
}
