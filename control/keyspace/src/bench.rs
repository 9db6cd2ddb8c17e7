//! What the keyspace can do on this machine, beside what its disk can do at best in the same moment.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::task::JoinSet;

use crate::{Config, Guard, Key, Keyspace, Op, Revision, Value};

/// One measured figure.
#[derive(Clone, Debug)]
pub struct Figure {
    /// What was measured.
    pub name: String,
    /// How much.
    pub value: f64,
    /// Of what.
    pub unit: &'static str,
}

/// Whatever went wrong.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// Content of one record; a small pod has about this.
const CONTENT_BYTES: usize = 1024;
/// How long each figure is measured.
const TIME: Duration = Duration::from_secs(3);
/// Distinct records that are written.
const RECORDS: usize = 5_000;
/// Watchers of the fan-out.
const WATCHERS: usize = 100;

/// Measures in `dir`, an empty directory.
pub async fn run(dir: &Path) -> Result<Vec<Figure>, Error> {
    let mut figures = Vec::new();
    let mut figure = |name: String, value: f64, unit: &'static str| figures.push(Figure { name, value, unit });
    let raw = {
        let path = dir.join("raw");
        tokio::task::spawn_blocking(move || raw_syncs(&path)).await??
    };
    figure("disk: fdatasync of 1 KiB in a preallocated file".into(), raw, "/s");
    let keyspace = Keyspace::open(Config::new(dir.join("keyspace"))).await?;
    for clients in [1, 64, 512] {
        let (rate, p50, p99) = writes(&keyspace, clients).await?;
        figure(format!("writes, {clients} clients"), rate, "/s");
        figure(format!("writes, {clients} clients, p50"), p50, "ms");
        figure(format!("writes, {clients} clients, p99"), p99, "ms");
    }
    figure("reads of one record".into(), reads(&keyspace), "/s");
    figure("linearizable reads of one record".into(), linearizable_reads(&keyspace).await?, "/s");
    figure("snapshots of a collection".into(), snapshots(&keyspace), "/s");
    figure(format!("events to {WATCHERS} watchers"), fan_out(&keyspace).await?, "/s");
    let disk_bytes = keyspace.disk_bytes();
    figure("on disk".into(), disk_bytes as f64 / f64::from(1 << 20), "MiB");
    keyspace.shutdown().await;
    let start = Instant::now();
    let keyspace = Keyspace::open(Config::new(dir.join("keyspace"))).await?;
    figure("opened again".into(), start.elapsed().as_secs_f64() * 1e3, "ms");
    keyspace.shutdown().await;
    Ok(figures)
}

fn raw_syncs(path: &Path) -> std::io::Result<f64> {
    let file = File::options().write(true).create(true).truncate(true).open(path)?;
    let (zeros, content) = (vec![0_u8; 4 << 20], vec![7_u8; CONTENT_BYTES]);
    file.write_all_at(&zeros, 0)?;
    file.sync_all()?;
    let (start, mut count) = (Instant::now(), 0_u64);
    while start.elapsed() < TIME {
        file.write_all_at(&content, (count * CONTENT_BYTES as u64) % (zeros.len() as u64 - CONTENT_BYTES as u64))?;
        file.sync_data()?;
        count += 1;
    }
    let rate = count as f64 / start.elapsed().as_secs_f64();
    std::fs::remove_file(path)?;
    Ok(rate)
}

fn put(at: usize) -> Op {
    let mut content =
        format!("{{\"metadata\":{{\"name\":\"pod-{at}\",\"resourceVersion\":\"\"}},\"fill\":\"").into_bytes();
    let revision_at = content.windows(3).position(|w| w == b"\"\"}").unwrap_or(0) + 1;
    content.resize(CONTENT_BYTES, b'x');
    content.extend_from_slice(b"\"}");
    let value = Value { bytes: Bytes::from(content), revision_at };
    Op::Put { key: Key::new("pods", format!("default/pod-{at}")), value, guard: Guard::None }
}

async fn writes(keyspace: &Keyspace, clients: usize) -> Result<(f64, f64, f64), Error> {
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for client in 0..clients {
        let keyspace = keyspace.clone();
        tasks.spawn(async move {
            let mut took = Vec::new();
            for at in 0.. {
                let before = Instant::now();
                if before.duration_since(start) >= TIME {
                    break;
                }
                keyspace.transact(vec![put((at * clients + client) % RECORDS)]).await?;
                took.push(before.elapsed().as_secs_f64() * 1e3);
            }
            Ok::<_, crate::TransactError>(took)
        });
    }
    let mut took = Vec::new();
    while let Some(task) = tasks.join_next().await {
        took.extend(task??);
    }
    let rate = took.len() as f64 / start.elapsed().as_secs_f64();
    took.sort_by(f64::total_cmp);
    let at = |part: f64| took.get(((took.len() as f64 * part) as usize).min(took.len().saturating_sub(1))).copied();
    Ok((rate, at(0.5).unwrap_or(0.0), at(0.99).unwrap_or(0.0)))
}

fn reads(keyspace: &Keyspace) -> f64 {
    let (start, mut count) = (Instant::now(), 0_u64);
    while start.elapsed() < TIME / 3 {
        for at in 0..100 {
            std::hint::black_box(keyspace.get("pods", &format!("default/pod-{at}")));
        }
        count += 100;
    }
    count as f64 / start.elapsed().as_secs_f64()
}

async fn linearizable_reads(keyspace: &Keyspace) -> Result<f64, Error> {
    let (start, mut count) = (Instant::now(), 0_u64);
    while start.elapsed() < TIME / 3 {
        for at in 0..100 {
            keyspace.barrier().await?;
            std::hint::black_box(keyspace.get("pods", &format!("default/pod-{at}")));
        }
        count += 100;
    }
    Ok(count as f64 / start.elapsed().as_secs_f64())
}

fn snapshots(keyspace: &Keyspace) -> f64 {
    let (start, mut count) = (Instant::now(), 0_u64);
    while start.elapsed() < TIME / 3 {
        for _ in 0..100 {
            std::hint::black_box(keyspace.snapshot("pods"));
        }
        count += 100;
    }
    count as f64 / start.elapsed().as_secs_f64()
}

/// Events per second that arrive at all watchers together while 64 clients write.
async fn fan_out(keyspace: &Keyspace) -> Result<f64, Error> {
    let after = keyspace.revision();
    let start = Instant::now();
    let mut watchers = JoinSet::new();
    for _ in 0..WATCHERS {
        let mut watcher = keyspace.watch("pods", after)?;
        watchers.spawn(async move {
            let (mut events, mut last) = (0, Revision::default());
            while let Ok(Ok(batch)) = tokio::time::timeout(TIME, watcher.next()).await {
                events += batch.events.len();
                last = batch.revision;
                if start.elapsed() >= TIME {
                    break;
                }
            }
            (events, last)
        });
    }
    writes(keyspace, 64).await?;
    keyspace.transact(vec![put(0)]).await?;
    let mut events = 0;
    while let Some(watcher) = watchers.join_next().await {
        events += watcher?.0;
    }
    Ok(events as f64 / start.elapsed().as_secs_f64())
}
