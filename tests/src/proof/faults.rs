//! The faults of a proof, drawn by a seed.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant};

use rand::Rng as _;
use rand::rngs::StdRng;

use super::SERVERS;
use super::history::History;
use super::servers::{NAMES, Servers};

/// A sort of fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// A server is killed and started again.
    Kill,
    /// All are killed at once and started again.
    KillAll,
    /// A server is asked to end, and started again.
    Terminate,
    /// A server stands still for a while (SIGSTOP).
    Stop,
    /// A server and the others do not hear each other.
    Partition,
    /// One way between servers is cut, in one direction: from or to one of them, by all others or by one.
    OneWay,
    /// What a server sends is slow.
    Slow,
    /// A server's disk has no room.
    FullDisk,
    /// A server's disk takes nothing for some time, again and again.
    SlowDisk,
}

impl Fault {
    /// All of them.
    pub const ALL: [Fault; 9] = [
        Fault::Kill,
        Fault::KillAll,
        Fault::Terminate,
        Fault::Stop,
        Fault::Partition,
        Fault::OneWay,
        Fault::Slow,
        Fault::FullDisk,
        Fault::SlowDisk,
    ];
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Fault::Kill => "kill",
            Fault::KillAll => "kill-all",
            Fault::Terminate => "terminate",
            Fault::Stop => "stop",
            Fault::Partition => "partition",
            Fault::OneWay => "one-way",
            Fault::Slow => "slow",
            Fault::FullDisk => "full-disk",
            Fault::SlowDisk => "slow-disk",
        })
    }
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(word: &str) -> Result<Fault, String> {
        let all = Fault::ALL.map(|fault| fault.to_string());
        let found = Fault::ALL.into_iter().find(|fault| fault.to_string() == word);
        found.ok_or_else(|| format!("there is no fault {word:?}; there are {}", all.join(", ")))
    }
}

/// Makes one fault after another for `time`, each followed by a pause, and sometimes one within another. When this returns, all
/// ways are open and all servers were started.
pub async fn disturb(
    servers: &Servers,
    history: &History,
    faults: &[Fault],
    random: &mut StdRng,
    time: Duration,
    say: &(dyn Fn(String) + Sync),
) -> Result<(), String> {
    let begun = Instant::now();
    while begun.elapsed() < time && !faults.is_empty() {
        let fault = faults[random.random_range(0..faults.len())];
        // Leaders are where it hurts.
        let leader = servers.leader().await;
        let server = match leader {
            Some(leader) if random.random_bool(0.6) => leader,
            _ => random.random_range(0..SERVERS),
        };
        let role = if leader == Some(server) { "the leader" } else { "a follower" };
        let lasts = Duration::from_millis(random.random_range(200..4_000));
        let within = (random.random_bool(0.25) && fault != Fault::KillAll && fault != Fault::Terminate)
            .then(|| (1 + random.random_range(0..SERVERS - 1) + server) % SERVERS);
        let and = within.map(|other| format!("; meanwhile {} is killed", NAMES[other])).unwrap_or_default();
        let since = history.now();
        one(servers, fault, (server, within), lasts, random).await?;
        servers.all_run()?;
        tokio::time::sleep(Duration::from_millis(random.random_range(100..2_500))).await;
        say(format!(
            "{fault} {} ({role}) for {:.1} s{and}: no write for {:.2} s",
            NAMES[server],
            lasts.as_secs_f64(),
            history.longest_gap(since).as_secs_f64()
        ));
    }
    Ok(())
}

/// One fault at `server`, and another server that is killed in the middle of it.
async fn one(
    servers: &Servers,
    fault: Fault,
    (server, within): (usize, Option<usize>),
    lasts: Duration,
    random: &mut StdRng,
) -> Result<(), String> {
    let others = || (0..SERVERS).filter(move |other| *other != server);
    let middle = async {
        tokio::time::sleep(lasts / 2).await;
        if let Some(other) = within {
            servers.kill(other);
            servers.restart(other);
        }
        tokio::time::sleep(lasts / 2).await;
    };
    let network = &servers.network;
    match fault {
        Fault::Kill => {
            servers.kill(server);
            middle.await;
            servers.restart(server);
        }
        Fault::KillAll => {
            (0..SERVERS).for_each(|server| servers.kill(server));
            middle.await;
            (0..SERVERS).for_each(|server| servers.restart(server));
        }
        Fault::Terminate => {
            servers.terminate(server).await?;
            middle.await;
            servers.restart(server);
        }
        Fault::Stop => {
            servers.signal(server, "STOP");
            middle.await;
            servers.signal(server, "CONT");
        }
        Fault::Partition => {
            others().for_each(|other| {
                network.cut(server, other);
                network.cut(other, server);
            });
            middle.await;
            others().for_each(|other| {
                network.mend(server, other);
                network.mend(other, server);
            });
        }
        Fault::OneWay => {
            let (is_from, to_all) = (random.random_bool(0.5), random.random_bool(0.5));
            let only = others().nth(random.random_range(0..SERVERS - 1));
            let ways: Vec<(usize, usize)> = others()
                .filter(|other| to_all || Some(*other) == only)
                .map(|other| if is_from { (server, other) } else { (other, server) })
                .collect();
            ways.iter().for_each(|(from, to)| network.cut(*from, *to));
            middle.await;
            ways.iter().for_each(|(from, to)| network.mend(*from, *to));
        }
        Fault::Slow => {
            network.slow(server);
            middle.await;
            network.fast(server);
        }
        Fault::FullDisk => {
            servers.disks.fill(server);
            middle.await;
            servers.disks.free(server);
        }
        Fault::SlowDisk => {
            let (stalls, goes) = (random.random_range(50..1_500), random.random_range(10..200));
            let slow = async {
                loop {
                    servers.disks.stall(server);
                    tokio::time::sleep(Duration::from_millis(stalls)).await;
                    servers.disks.go_on(server);
                    tokio::time::sleep(Duration::from_millis(goes)).await;
                }
            };
            // Cut while it waits, standing still or not.
            tokio::select! {
                () = middle => {}
                () = slow => {}
            }
            servers.disks.go_on(server);
        }
    }
    Ok(())
}
