//! Three servers under load: writes, beside a reference of the same size where there is one, and linearizable reads through a
//! follower, beside the leader's.
//!
//! A write is a ConfigMap that is created, with a kilobyte in it; clients are spread evenly over the servers. The reference is whatever
//! answers by its kubeconfig, asked by the same clients in the same minute, in turns.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{DeleteParams, ListParams, PostParams};
use serde_json::json;
use tokio::task::JoinSet;

use super::servers::{NAMES, Servers};
use super::{Error, Figure};
use crate::Remote;

/// How many clients write at the same time.
const CLIENTS: [usize; 3] = [1, 64, 1_000];
/// How many read.
const READERS: usize = 64;
/// How long each measurement runs, after as long as it takes to have connections.
const WINDOW: Duration = Duration::from_secs(5);
const WARM: Duration = Duration::from_secs(1);
/// Rounds, so that a slow moment of the machine does not hit one side alone.
const ROUNDS: usize = 3;
const CONTENT_BYTES: usize = 1_000;

/// Runs it.
pub async fn run(
    program: &Path,
    reference: Option<&Path>,
    report: &mut impl FnMut(Figure),
    doing: &mut impl FnMut(String),
) -> Result<(), Error> {
    doing("three servers start".to_owned());
    let servers = Servers::start(program).await?;
    let ours: Vec<Remote> = servers.all.iter().map(|server| server.remote.clone()).collect();
    let theirs = match reference {
        Some(kubeconfig) => vec![Remote::connect_once(kubeconfig).await?],
        None => Vec::new(),
    };
    for clients in CLIENTS {
        let (mut own, mut other) = (Sum::default(), Sum::default());
        for round in 1..=ROUNDS {
            doing(format!("{clients} clients write, {round} of {ROUNDS}"));
            own.add(writes(&ours, clients, &format!("bench-{clients}-{round}")).await?);
            if !theirs.is_empty() {
                doing(format!("{clients} clients write to the reference, {round} of {ROUNDS}"));
                other.add(writes(&theirs, clients, &format!("bench-{clients}-{round}")).await?);
            }
        }
        report(Figure::new(format!("group.writes.{clients}_clients"), own.rate(), "/s"));
        report(Figure::new(format!("group.writes.{clients}_clients.failed"), own.failed as f64, "writes"));
        if !theirs.is_empty() {
            report(Figure::new(format!("group.writes.{clients}_clients.reference"), other.rate(), "/s"));
            report(Figure::new(
                format!("group.writes.{clients}_clients.reference_failed"),
                other.failed as f64,
                "writes",
            ));
            report(Figure::new(format!("group.writes.{clients}_clients.ratio"), own.rate() / other.rate(), "×"));
        }
    }
    maps(&ours[0]).create(&PostParams::default(), &map("read")?).await?;
    let (mut leader, mut follower) = (Sum::default(), Sum::default());
    for round in 1..=ROUNDS {
        let leads = servers.whole_leader().await?;
        doing(format!("{READERS} clients read through the leader, {round} of {ROUNDS}"));
        leader.add(reads(&ours[leads]).await?);
        doing(format!("{READERS} clients read through a follower, {round} of {ROUNDS}"));
        follower.add(reads(&ours[(leads + 1) % NAMES.len()]).await?);
    }
    report(Figure::new("group.linearizable_reads.leader", leader.rate(), "/s"));
    report(Figure::new("group.linearizable_reads.follower", follower.rate(), "/s"));
    report(Figure::new("group.linearizable_reads.ratio", follower.rate() / leader.rate(), "×"));
    report(Figure::new("group.linearizable_reads.failed", (leader.failed + follower.failed) as f64, "reads"));
    servers.stop().await
}

/// What was done in some windows.
#[derive(Default)]
struct Sum {
    done: u64,
    failed: u64,
    time: Duration,
}

impl Sum {
    fn add(&mut self, (done, failed, time): (u64, u64, Duration)) {
        (self.done, self.failed, self.time) = (self.done + done, self.failed + failed, self.time + time);
    }

    fn rate(&self) -> f64 {
        self.done as f64 / self.time.as_secs_f64().max(f64::EPSILON)
    }
}

fn maps(remote: &Remote) -> Api<ConfigMap> {
    Api::default_namespaced(remote.client().clone())
}

fn map(name: &str) -> Result<ConfigMap, Error> {
    let map =
        json!({"metadata": {"name": name, "labels": {"of": "bench"}}, "data": {"content": "x".repeat(CONTENT_BYTES)}});
    Ok(serde_json::from_value(map)?)
}

async fn writes(remotes: &[Remote], clients: usize, prefix: &str) -> Result<(u64, u64, Duration), Error> {
    let next = Arc::new(AtomicU64::new(0));
    let prefix: Arc<str> = prefix.into();
    let measured = load(clients, |client| {
        let (maps, next, prefix) = (maps(&remotes[client % remotes.len()]), next.clone(), prefix.clone());
        async move {
            let map = map(&format!("{prefix}-{}", next.fetch_add(1, Ordering::Relaxed)))?;
            maps.create(&PostParams::default(), &map).await?;
            Ok(())
        }
    });
    let measured = measured.await?;
    // The next ones find what the first found.
    let of_bench = ListParams::default().labels("of=bench");
    maps(&remotes[0]).delete_collection(&DeleteParams::default(), &of_bench).await?;
    Ok(measured)
}

async fn reads(remote: &Remote) -> Result<(u64, u64, Duration), Error> {
    load(READERS, |_| {
        let maps = maps(remote);
        async move { Ok(maps.get("read").await.map(drop)?) }
    })
    .await
}

/// Has so many clients do `once` again and again: how often it was done, how often it failed, and within which time.
async fn load<F>(clients: usize, once: impl Fn(usize) -> F) -> Result<(u64, u64, Duration), Error>
where
    F: Future<Output = Result<(), Error>> + Send + 'static,
{
    #[derive(Default)]
    struct Counts {
        measures: AtomicBool,
        done: AtomicU64,
        failed: AtomicU64,
    }
    let counts = Arc::new(Counts::default());
    // A client's next one is made here, where what it borrows is.
    let mut running = JoinSet::new();
    let begin = |running: &mut JoinSet<usize>, client: usize| {
        let (counts, work) = (counts.clone(), once(client));
        running.spawn(async move {
            let outcome = work.await;
            if counts.measures.load(Ordering::Relaxed) {
                let count = if outcome.is_ok() { &counts.done } else { &counts.failed };
                count.fetch_add(1, Ordering::Relaxed);
            }
            client
        });
    };
    for client in 0..clients {
        begin(&mut running, client);
    }
    let (warm, end) = (Instant::now() + WARM, Instant::now() + WARM + WINDOW);
    let mut since = warm;
    while let Some(client) = running.join_next().await {
        let now = Instant::now();
        if now >= warm && !counts.measures.swap(true, Ordering::Relaxed) {
            since = now;
        }
        if now >= end {
            counts.measures.store(false, Ordering::Relaxed);
            let measured = (counts.done.load(Ordering::Relaxed), counts.failed.load(Ordering::Relaxed), now - since);
            // What is under way is finished, and not counted.
            while running.join_next().await.is_some() {}
            return Ok(measured);
        }
        begin(&mut running, client?);
    }
    Err("nobody asks any more".into())
}
