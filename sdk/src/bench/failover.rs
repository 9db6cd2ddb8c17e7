//! Three servers, each a process: how long nothing can be written when the leader is killed, and when it is asked to end.
//!
//! What is measured is what clients of the two other servers see. Killed: from the signal to the answer of the first write that
//! was begun after it, through one of the others. Handed over: the longest time between two answers to writes through both of
//! the others, from the signal until the leader's process has ended; no write may fail meanwhile.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::task::JoinSet;

use super::{Error, Figure};
use crate::{Member, Remote, TokenRole};

const NAMES: [&str; 3] = ["one", "two", "three"];
/// Until a server is ready, or all three are whole again.
const START_DEADLINE: Duration = Duration::from_secs(60);
/// Until a write must be accepted.
const WRITE_DEADLINE: Duration = Duration::from_secs(30);
/// Clients that write while the leader hands over, on each of the two other servers.
const WRITERS: usize = 2;
/// How long they write before the leader is asked to end, and after it has ended.
const AROUND: Duration = Duration::from_millis(300);
/// Who was heard of within this time is whole.
const HEARD_MS: u64 = 1_000;

/// Runs it: so many times each.
pub async fn run(
    program: &Path,
    rounds: usize,
    report: &mut impl FnMut(Figure),
    doing: &mut impl FnMut(String),
) -> Result<(), Error> {
    doing("three servers start".to_owned());
    let mut servers = Servers::start(program).await?;
    let mut times = Histogram::<u64>::new(3)?;
    for round in 1..=rounds {
        doing(format!("the leader is killed, {round} of {rounds}"));
        times.record(micros(servers.kill_leader(round).await?)?)?;
    }
    for (name, quantile) in [("p50", 0.5), ("p99", 0.99), ("max", 1.0)] {
        let value = times.value_at_quantile(quantile) as f64 / 1000.0;
        report(Figure::new(format!("failover.killed_to_write.{name}"), value, "ms"));
    }
    let (mut gaps, mut failed) = (Histogram::<u64>::new(3)?, 0);
    for round in 1..=rounds {
        doing(format!("the leader hands over, {round} of {rounds}"));
        let seen = servers.end_leader().await?;
        gaps.record(micros(seen.gap)?)?;
        for error in &seen.failed {
            eprintln!("a write failed while the leader handed over: {error}");
        }
        failed += seen.failed.len();
    }
    for (name, quantile) in [("p50", 0.5), ("p99", 0.99), ("max", 1.0)] {
        let value = gaps.value_at_quantile(quantile) as f64 / 1000.0;
        report(Figure::new(format!("failover.handed_over_gap.{name}"), value, "ms"));
    }
    report(Figure::new("failover.handed_over_failed_writes", failed as f64, "writes"));
    servers.stop().await
}

fn micros(time: Duration) -> Result<u64, Error> {
    Ok(u64::try_from(time.as_micros())?.max(1))
}

/// What clients saw of a hand-over.
struct Seen {
    /// The longest time without an accepted write.
    gap: Duration,
    /// Why writes were not accepted.
    failed: Vec<String>,
}

/// One server's process.
struct Server {
    child: Child,
    dir: PathBuf,
    remote: Remote,
}

/// Three of them; they end with this value.
struct Servers {
    program: PathBuf,
    dir: TempDir,
    all: Vec<Server>,
}

impl Server {
    /// Starts the server called `name` in `dir`; returns when it is ready.
    async fn start(program: &Path, dir: PathBuf, name: &str, join: &[String]) -> Result<Server, Error> {
        let mut child = Command::new(program)
            .args(["server", "--bind", "127.0.0.1", "--api-port", "0", "--registry-port", "0", "--name", name])
            .args(join)
            .arg("--data-dir")
            .arg(&dir)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            // What they say of each other's ends is expected here.
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        super::cluster::ready(&mut child, &format!("the server {name}")).await?;
        let remote = Remote::connect_once(&dir.join("kubeconfig")).await?;
        Ok(Server { child, dir, remote })
    }

    async fn write(&self, name: &str, value: usize) -> Result<(), kube::Error> {
        write(&self.remote, name, value).await
    }
}

/// Writes something new to the ConfigMap `name`.
async fn write(remote: &Remote, name: &str, value: usize) -> Result<(), kube::Error> {
    let maps: Api<ConfigMap> = Api::default_namespaced(remote.client().clone());
    let map = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"value": value.to_string()},
    });
    maps.patch(name, &PatchParams::apply("bench").force(), &Patch::Apply(map)).await.map(drop)
}

impl Servers {
    async fn start(program: &Path) -> Result<Servers, Error> {
        let dir = tempfile::tempdir()?;
        let first = Server::start(program, dir.path().join(NAMES[0]), NAMES[0], &[]).await?;
        let token = first.remote.create_token(TokenRole::Server, START_DEADLINE * 10).await?;
        let url = first.remote.status().await?.api_url;
        let join = ["--join".to_owned(), url, "--token".to_owned(), token.to_string()];
        let mut all = vec![first];
        for name in &NAMES[1..] {
            all.push(Server::start(program, dir.path().join(name), name, &join).await?);
        }
        let servers = Servers { program: program.to_owned(), dir, all };
        servers.whole_leader().await?;
        Ok(servers)
    }

    /// Waits until all three are voters and have what the leader has; which one leads.
    async fn whole_leader(&self) -> Result<usize, Error> {
        let whole = async {
            loop {
                for (at, server) in self.all.iter().enumerate() {
                    if let Ok(members) = server.remote.members().await
                        && is_whole(&members)
                        && members.iter().any(|member| member.leads && member.name == NAMES[at])
                    {
                        return at;
                    }
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let whole = tokio::time::timeout(START_DEADLINE, whole).await;
        whole.map_err(|_| format!("the servers are not whole after {START_DEADLINE:?}").into())
    }

    async fn restart(&mut self, at: usize) -> Result<(), Error> {
        let dir = self.all[at].dir.clone();
        self.all[at] = Server::start(&self.program, dir, NAMES[at], &[]).await?;
        Ok(())
    }

    /// Kills the leader; how long until a write is accepted through another.
    async fn kill_leader(&mut self, round: usize) -> Result<Duration, Error> {
        let leader = self.whole_leader().await?;
        // Each of the others in turn; it has a connection already, as clients have.
        let other = (leader + 1 + round % 2) % NAMES.len();
        self.all[other].write("killed", 2 * round).await?;
        self.all[leader].child.start_kill()?;
        let killed = Instant::now();
        while let Err(error) = self.all[other].write("killed", 2 * round + 1).await {
            if killed.elapsed() > WRITE_DEADLINE {
                return Err(error.into());
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let elapsed = killed.elapsed();
        self.all[leader].child.wait().await?;
        self.restart(leader).await?;
        Ok(elapsed)
    }

    /// Asks the leader to end while others write; what they saw.
    async fn end_leader(&mut self) -> Result<Seen, Error> {
        let leader = self.whole_leader().await?;
        let over = Arc::new(AtomicBool::new(false));
        let mut writers = JoinSet::new();
        for (at, server) in self.all.iter().enumerate().filter(|(at, _)| *at != leader) {
            for writer in 0..WRITERS {
                let (remote, over, name) = (server.remote.clone(), over.clone(), format!("handed-{at}-{writer}"));
                writers.spawn(async move {
                    let (mut accepted, mut failed) = (Vec::new(), Vec::new());
                    for value in 0.. {
                        if over.load(Ordering::Relaxed) {
                            break;
                        }
                        match write(&remote, &name, value).await {
                            Ok(()) => accepted.push(Instant::now()),
                            Err(error) => failed.push(error.to_string()),
                        }
                    }
                    (accepted, failed)
                });
            }
        }
        tokio::time::sleep(AROUND).await;
        let asked = Instant::now();
        terminate(&self.all[leader].child)?;
        let ended = tokio::time::timeout(START_DEADLINE, self.all[leader].child.wait()).await??;
        if !ended.success() {
            return Err(format!("the leader ended with {ended}").into());
        }
        tokio::time::sleep(AROUND).await;
        over.store(true, Ordering::Relaxed);
        let (mut accepted, mut failed) = (Vec::new(), Vec::new());
        while let Some(writer) = writers.join_next().await {
            let (answers, errors) = writer?;
            accepted.extend(answers);
            failed.extend(errors);
        }
        accepted.sort();
        let after = accepted.windows(2).filter(|pair| pair[1] > asked);
        let gap =
            after.map(|pair| pair[1] - pair[0]).max().ok_or("nothing was written after the leader was asked to end")?;
        self.restart(leader).await?;
        Ok(Seen { gap, failed })
    }

    async fn stop(mut self) -> Result<(), Error> {
        for server in &self.all {
            terminate(&server.child)?;
        }
        for server in &mut self.all {
            tokio::time::timeout(START_DEADLINE, server.child.wait()).await??;
        }
        self.dir.close()?;
        Ok(())
    }
}

/// Whether all three are voters that the leader hears and that have what it has, nearly.
fn is_whole(members: &[Member]) -> bool {
    let last = members.iter().filter_map(|member| member.matched).max().unwrap_or(0);
    members.len() == NAMES.len()
        && members.iter().all(|member| {
            member.role == "voter"
                && member.heard_milliseconds.is_some_and(|heard| heard < HEARD_MS)
                && member.matched.is_some_and(|matched| matched + 4 >= last)
        })
}

fn terminate(child: &Child) -> Result<(), Error> {
    let id =
        child.id().and_then(|id| rustix::process::Pid::from_raw(id.cast_signed())).ok_or("it has ended already")?;
    Ok(rustix::process::kill_process(id, rustix::process::Signal::TERM)?)
}
