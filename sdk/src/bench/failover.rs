//! Three servers, each a process: how long nothing can be written when the leader is killed, and when it is asked to end.
//!
//! What is measured is what clients of the two other servers see. Killed: from the signal to the answer of the first write that
//! was begun after it, through one of the others. Handed over: the longest time between two answers to writes through both of
//! the others, from the signal until the leader's process has ended; no write may fail meanwhile.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use tokio::task::JoinSet;

use super::servers::{NAMES, START_DEADLINE, Servers, terminate};
use super::{Error, Figure};
use crate::Remote;

/// Until a write must be accepted.
const WRITE_DEADLINE: Duration = Duration::from_secs(30);
/// Clients that write while the leader hands over, on each of the two other servers.
const WRITERS: usize = 2;
/// How long they write before the leader is asked to end, and after it has ended.
const AROUND: Duration = Duration::from_millis(300);

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
        times.record(micros(kill_leader(&mut servers, round).await?)?)?;
    }
    for (name, quantile) in [("p50", 0.5), ("p99", 0.99), ("max", 1.0)] {
        let value = times.value_at_quantile(quantile) as f64 / 1000.0;
        report(Figure::new(format!("failover.killed_to_write.{name}"), value, "ms"));
    }
    let (mut gaps, mut failed) = (Histogram::<u64>::new(3)?, 0);
    for round in 1..=rounds {
        doing(format!("the leader hands over, {round} of {rounds}"));
        let seen = end_leader(&mut servers).await?;
        gaps.record(micros(seen.gap)?)?;
        for error in &seen.failed {
            tracing::warn!(error, "a write failed while the leader handed over");
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

/// Writes something new to the ConfigMap `name`.
async fn write(remote: &Remote, name: &str, value: usize) -> Result<(), kube::Error> {
    let maps: Api<ConfigMap> = Api::default_namespaced(remote.client().clone());
    let map = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"value": value.to_string()},
    });
    maps.patch(name, &PatchParams::apply("bench").force(), &Patch::Apply(map)).await.map(drop)
}

/// Kills the leader; how long until a write is accepted through another.
async fn kill_leader(servers: &mut Servers, round: usize) -> Result<Duration, Error> {
    let leader = servers.whole_leader().await?;
    // Each of the others in turn; it has a connection already, as clients have.
    let other = (leader + 1 + round % 2) % NAMES.len();
    write(&servers.all[other].remote, "killed", 2 * round).await?;
    servers.all[leader].child.start_kill()?;
    let killed = Instant::now();
    while let Err(error) = write(&servers.all[other].remote, "killed", 2 * round + 1).await {
        if killed.elapsed() > WRITE_DEADLINE {
            return Err(error.into());
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let elapsed = killed.elapsed();
    servers.all[leader].child.wait().await?;
    servers.restart(leader).await?;
    Ok(elapsed)
}

/// Asks the leader to end while others write; what they saw.
async fn end_leader(servers: &mut Servers) -> Result<Seen, Error> {
    let leader = servers.whole_leader().await?;
    let over = Arc::new(AtomicBool::new(false));
    let mut writers = JoinSet::new();
    for (at, server) in servers.all.iter().enumerate().filter(|(at, _)| *at != leader) {
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
    terminate(&servers.all[leader].child)?;
    let ended = tokio::time::timeout(START_DEADLINE, servers.all[leader].child.wait()).await??;
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
    servers.restart(leader).await?;
    Ok(Seen { gap, failed })
}
