//! The proof with real processes: three servers are killed, stopped, cut off and slowed down, and their disks are full or stand still, while clients write and read and
//! watchers watch through all of them; then the faults end, the servers must be one cluster again, and everything that anybody
//! was told is judged.
//!
//! What is promised, and looked at:
//! - each object's operations could have happened one after another (`linearizability`); what timed out may have happened or not;
//! - what a server said was not done never happened (`history`);
//! - revisions are told once, and only grow, over all servers (`history`);
//! - a watch hears every change once and in order, whatever server it goes on at, and what all watchers heard is the same and is
//!   what was acknowledged; a bookmark promises no less (`watchers`);
//! - no server ends by itself, each starts again, and all agree soon after the last fault.

mod clients;
mod disks;
mod faults;
mod history;
mod network;
mod servers;
mod watchers;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use coracle_sdk::Remote;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use serde_json::json;

use crate::linearizability::{Kind, Outcome};
use clients::Client;
pub use faults::Fault;
use history::History;
pub use network::within;
use servers::Servers;
use watchers::{Heard, Watcher};

/// Servers of a cluster.
pub const SERVERS: usize = 3;
/// How long the servers may take to be one cluster after the last fault. One that was started again when the others were not
/// there waits for them; what was cut knows it after four seconds.
const CONVERGES: Duration = Duration::from_secs(60);

/// What is to be proven.
#[derive(Clone, Debug)]
pub struct Options {
    /// How long there are faults.
    pub time: Duration,
    /// What they are drawn by.
    pub seed: u64,
    /// Which there are.
    pub faults: Vec<Fault>,
    /// Clients that write and read at the same time.
    pub clients: usize,
}

/// Runs it, and prints what happens; whatever was wrong, nothing when all is well.
pub fn run(options: &Options) -> Vec<String> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    runtime.block_on(prove(options))
}

async fn prove(options: &Options) -> Vec<String> {
    let begun = Instant::now();
    let say = move |what: String| println!("{:7.1} s  {what}", begun.elapsed().as_secs_f64());
    let servers = Servers::start().await;
    say(format!("three servers, {} clients, seed {}", options.clients, options.seed));
    let mut kinds = options.faults.clone();
    if let Some(why) = servers.disks.cannot_stall()
        && kinds.contains(&Fault::SlowDisk)
    {
        say(format!("LEFT OUT: {}: {why}", Fault::SlowDisk));
        kinds.retain(|fault| *fault != Fault::SlowDisk);
        if kinds.is_empty() {
            return vec![format!("there is no fault to make: {why}")];
        }
    }
    let (history, over, end) =
        (Arc::new(History::new()), Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(u64::MAX)));
    let mut watching = Vec::new();
    for server in 0..SERVERS {
        let mut watcher = Watcher { server, remotes: remotes(&servers).await, end: end.clone() };
        let heard = watcher.begin().await;
        watching.push(tokio::spawn(watcher.run(heard, CONVERGES)));
    }
    let mut asking = Vec::new();
    for number in 0..options.clients {
        let client = Client { number, remotes: remotes(&servers).await, history: history.clone() };
        asking.push(tokio::spawn(client.run(options.seed, over.clone())));
    }
    let mut wrong = Vec::new();
    let mut random = StdRng::seed_from_u64(options.seed);
    wrong.extend(faults::disturb(&servers, &history, &kinds, &mut random, options.time, &say).await.err());
    say("no more faults".to_owned());
    match servers.converge(CONVERGES).await {
        Ok(took) => say(format!("one cluster again after {:.1} s", took.as_secs_f64())),
        Err(why) => wrong.push(format!("the servers are not one cluster again: {why}")),
    }
    over.store(true, Ordering::Relaxed);
    for client in asking {
        client.await.expect("a client does not panic");
    }
    // The last word: a write through each server, which everybody must see. One that was cut off may be finding the others yet.
    let last = Client { number: options.clients, remotes: remotes(&servers).await, history: history.clone() };
    let (asked, mut ends) = (Instant::now(), Vec::new());
    for server in 0..SERVERS {
        match last.end(server, asked + CONVERGES).await {
            Some(end) => ends.push(end),
            None => wrong.push(format!("{} neither writes nor lists at the end", servers::NAMES[server])),
        }
    }
    say(format!("each wrote and listed after {:.1} s", asked.elapsed().as_secs_f64()));
    for (server, (name, _)) in (0..SERVERS).flat_map(|server| ends.iter().map(move |end| (server, end))) {
        last.get(server, name).await;
    }
    end.store(ends.iter().map(|(_, revision)| *revision).max().unwrap_or(0), Ordering::Relaxed);
    let mut heard = Vec::new();
    for watcher in watching {
        heard.push(watcher.await.expect("a watcher does not panic"));
    }
    wrong.extend(history.wrong());
    let records = history.records.lock().expect("nobody panics with it").clone();
    let refused = history.refused.lock().expect("nobody panics with it").clone();
    wrong.extend(watchers::wrong(&heard, &records, &refused));
    say(summary(&history, &heard));
    if !wrong.is_empty() {
        let lines: Vec<String> = records.iter().map(|record| {
            json!({"key": record.key, "operation": record.operation.to_string(), "server": record.server, "revision": record.revision})
                .to_string()
        }).collect();
        let dir = servers.keep();
        servers::save(&dir, "history", &lines.join("\n"));
        servers::save(&dir, "heard", &format!("{heard:#?}"));
        servers::save(&dir, "refused", &format!("{refused:#?}"));
        println!("what was told, data and logs are in {}", dir.display());
    }
    wrong
}

/// Connections of somebody's own to all servers.
async fn remotes(servers: &Servers) -> Vec<Remote> {
    let mut remotes = Vec::new();
    for server in 0..SERVERS {
        remotes.push(servers.remote(server).await);
    }
    remotes
}

/// A run in a line.
fn summary(history: &History, heard: &[Heard]) -> String {
    let records = history.records.lock().expect("nobody panics with it");
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for record in records.iter() {
        let what = match (record.operation.kind, record.operation.outcome) {
            (_, Outcome::Unknown) => "unknown",
            (Kind::Get, _) => "reads",
            (_, Outcome::Done) => "writes done",
            _ => "writes with a conflict",
        };
        *counts.entry(what).or_default() += 1;
    }
    let counts: Vec<String> = counts.into_iter().map(|(what, count)| format!("{count} {what}")).collect();
    let watched: Vec<String> = heard
        .iter()
        .map(|heard| {
            format!(
                "{} events, {} bookmarks, went on {} times",
                heard.events.len(),
                heard.bookmarks.len(),
                heard.resumed
            )
        })
        .collect();
    format!(
        "{}, {} refused; longest answer {} ms; watchers: {}",
        counts.join(", "),
        history.refused.lock().expect("nobody panics with it").len(),
        history.longest.load(Ordering::Relaxed),
        watched.join("; ")
    )
}
