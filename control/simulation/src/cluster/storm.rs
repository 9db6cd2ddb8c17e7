//! Faults, as the seed has them; and the calm afterwards, in which everything has to become well by itself.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use coracle_keyspace::Revision;
use http::Method;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::cluster::clients::{CLIENTS, Client};
use crate::cluster::history::KINDS;
use crate::cluster::invariants::workloads::{self, Objects};
use crate::cluster::invariants::{fenced_duties, fenced_nodes, owners, replicas};
use crate::cluster::node::{self, Agent};
use crate::cluster::wire::{Outcome, Way, ask};
use crate::cluster::world::{SERVERS, World};
use crate::plants::Plant;

/// How long faults happen, in seconds: many short storms meet more than a few long ones.
const STORM: RangeInclusive<u64> = 4..=16;
/// In every so many worlds a node is away before the storm, for as long as it takes until its pods are elsewhere: controllers that have
/// just begun drive no pod out for a while, and storms replace leaders too often.
const AWAY_EVERY: u64 = 4;
const AWAY: Duration = Duration::from_secs(45);
/// How long a cluster may take to be well again: leases end, zones are driven out one node after the other.
const HEALING: Duration = Duration::from_secs(240);

/// Lets faults happen.
pub async fn rage(world: &Arc<World>, nodes: usize) {
    let mut random = StdRng::seed_from_u64(world.seed ^ 0x5707);
    if world.seed % AWAY_EVERY == AWAY_EVERY - 1 {
        let name = node::name(random.random_range(0..nodes));
        // There are pods by then.
        tokio::time::sleep(Duration::from_secs(5)).await;
        world.cut_line(&name, true);
        tokio::time::sleep(AWAY).await;
        world.cut_line(&name, false);
    }
    let end = Instant::now() + Duration::from_secs(random.random_range(STORM));
    // One server is down or broken at a time: a majority is there, for what it can reach.
    let mut server = JoinSet::new();
    let mut silent = JoinSet::new();
    while Instant::now() < end {
        // Most of what can go wrong goes wrong where a leader is replaced.
        let leader = world.leader().filter(|_| random.random());
        let member = leader.unwrap_or(SERVERS[random.random_range(0..SERVERS.len())]);
        let other = SERVERS[random.random_range(0..SERVERS.len())];
        let pause = Duration::from_millis(random.random_range(50..2500));
        let world = world.clone();
        match random.random_range(0..13) {
            0..=1 if server.is_empty() && world.plant == Plant::DroppedSyncs => {
                for member in SERVERS {
                    let world = world.clone();
                    server.spawn(async move {
                        world.kill(member).await;
                        world.start(member).await;
                    });
                }
            }
            0..=1 if server.is_empty() => {
                let steps = random.random::<bool>().then(|| random.random_range(0..40));
                drop(server.spawn(async move {
                    // At once, or in the midst of what it writes next.
                    if let Some(steps) = steps {
                        world.cut_power(member, steps);
                        tokio::time::sleep(pause).await;
                    }
                    world.kill(member).await;
                    tokio::time::sleep(pause).await;
                    world.start(member).await;
                }))
            }
            2 if server.is_empty() => drop(server.spawn(async move {
                world.break_disk(member);
                tokio::time::sleep(pause).await;
            })),
            3 if server.is_empty() => drop(server.spawn(async move {
                world.fill_disk(member, true);
                tokio::time::sleep(pause).await;
                world.fill_disk(member, false);
            })),
            4 => {
                if let Some(up) = world.up(member) {
                    tokio::spawn(async move { up.keyspace.hand_over().await });
                }
            }
            5 if member != other => world.net.cut(member, other, true),
            6 => {
                // One is cut off from all, both ways or one.
                let both = random.random();
                for other in SERVERS.into_iter().filter(|other| *other != member) {
                    world.net.cut(member, other, true);
                    world.net.cut(other, member, both);
                }
            }
            7 => world.set_unreliable(random.random_range(0..20), Duration::from_millis(random.random_range(0..1500))),
            8..=9 if silent.len() < nodes.div_ceil(3) => {
                let name = node::name(random.random_range(0..nodes));
                let long = Duration::from_secs(random.random_range(1..20));
                silent.spawn(async move {
                    world.cut_line(&name, true);
                    tokio::time::sleep(long).await;
                    world.cut_line(&name, false);
                });
            }
            10 => {
                let name = format!("client-{}", random.random_range(0..CLIENTS));
                world.cut_line(&name, random.random());
            }
            11 => {
                let slow = random.random::<bool>().then(|| Duration::from_millis(random.random_range(5..500)));
                world.slow_disk(member, slow);
            }
            _ => world.net.mend(),
        }
        tokio::time::sleep(Duration::from_millis(random.random_range(50..1000))).await;
        while server.try_join_next().is_some() {}
        while silent.try_join_next().is_some() {}
    }
    while server.join_next().await.is_some() {}
    silent.abort_all();
    world.heal();
    for member in SERVERS {
        world.start(member).await;
    }
}

/// Waits until everything is well, and judges it.
pub async fn settle(world: &Arc<World>, agents: &[Arc<Agent>]) {
    let begun = Instant::now();
    let client = Way::observer(world, 0);
    while let Err(why) = look(world, &client, agents).await {
        if !world.wrong().is_empty() {
            return;
        }
        if begun.elapsed() > HEALING {
            return world.is_wrong(format!("not well {HEALING:?} after the last fault: {why}"));
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    let reader = Client::new(world, CLIENTS);
    for client in 0..CLIENTS {
        reader.read(client).await;
    }
    reader.read_counter().await;
    compare(world).await;
}

/// What is written down is judged when it has all been heard.
pub fn judge(world: &World) {
    world.judge(replicas::judge(world));
    world.judge(fenced_duties::judge(world));
    world.judge(fenced_nodes::judge(world));
}

async fn look(world: &World, client: &kube::Client, agents: &[Arc<Agent>]) -> Result<(), String> {
    for member in SERVERS {
        if world.up(member).is_none() {
            return Err(format!("server {member} is not up"));
        }
    }
    let list = async |path: &str| match ask(client, Method::GET, path, "application/json", &Value::Null).await {
        Outcome::Done(mut list) => Ok(std::mem::take(list["items"].as_array_mut().ok_or("no list")?)),
        other => Err(format!("{path}: {other:?}")),
    };
    let objects = Objects {
        nodes: list("/api/v1/nodes").await?,
        pods: list("/api/v1/pods").await?,
        sets: list("/apis/apps/v1/replicasets").await?,
        deployments: list("/apis/apps/v1/deployments").await?,
        services: list("/api/v1/services").await?,
        slices: list("/apis/discovery.k8s.io/v1/endpointslices").await?,
    };
    workloads::judge(&objects)?;
    if objects.nodes.len() != agents.len() {
        return Err(format!("{} of {} nodes are there", objects.nodes.len(), agents.len()));
    }
    let endpoints = list("/api/v1/endpoints").await?;
    let all = [
        &objects.nodes,
        &objects.pods,
        &objects.sets,
        &objects.deployments,
        &objects.services,
        &objects.slices,
        &endpoints,
    ];
    owners::judge(all.into_iter().flatten())?;
    for agent in agents {
        let here = objects.pods.iter().filter(|pod| pod["spec"]["nodeName"] == agent.name());
        let here = here.map(crate::cluster::invariants::uid).collect();
        if agent.running() != here {
            return Err(format!("{} runs {:?}, not {here:?}", agent.name(), agent.running()));
        }
    }
    Ok(())
}

/// All servers have the same.
async fn compare(world: &World) {
    let ups: Vec<_> = SERVERS.into_iter().filter_map(|member| world.up(member)).collect();
    let least = Revision::new(world.applied());
    for up in &ups {
        let reached = up.keyspace.wait_for(least);
        if tokio::time::timeout(Duration::from_secs(10), reached).await.is_err() {
            return world.is_wrong(format!("server {} does not get revision {least}", up.keyspace.member()));
        }
    }
    for (kind, _, collection) in KINDS {
        let mut all = Vec::new();
        for up in &ups {
            // Whoever was sent a snapshot just now does not know what was before it.
            if let Ok(then) = up.keyspace.snapshot_at(collection, least).await {
                let records = then.records.values();
                let records = records.map(|record| (record.key.name.to_string(), record.revision.get()));
                all.push((up.keyspace.member(), records.collect::<Vec<_>>()));
            }
        }
        let Some(((first, expected), others)) = all.split_first() else { continue };
        for (other, records) in others {
            if !expected.is_empty() {
                world.history.judges(kind);
            }
            if records != expected {
                world.is_wrong(format!("servers {first} and {other} have different {kind}"));
            }
        }
    }
}
