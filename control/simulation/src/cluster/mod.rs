//! Whole clusters: three servers, each a member on its simulated disk, an API server and the duties of whoever leads (`world.rs`); the
//! agents of nodes without machines (`node.rs`); clients (`clients.rs`) and the ways between all of them (`wire.rs`); faults and the
//! calm afterwards (`storm.rs`); and what is heard of it all (`history.rs`), which `invariants/` judge.

mod clients;
mod history;
mod invariants;
mod node;
mod storm;
mod wire;
mod world;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::task::JoinSet;

use crate::plants::Plant;
use crate::seeds::Played;
use clients::{CLIENTS, Client};
use node::Agent;
use world::{SERVERS, World};

pub use world::founded;

/// Plays one world.
pub async fn play(seed: u64, plant: Plant) -> Played {
    let mut random = StdRng::seed_from_u64(seed);
    // Every tenth world is large.
    let nodes = if seed % 10 == 9 { random.random_range(20..=40) } else { random.random_range(3..=8) };
    let world = World::begin(seed, plant, node::cpu_millis(nodes)).await;
    if plant == Plant::DroppedSyncs {
        world.lie();
    }
    let agents: Vec<_> = (0..nodes).map(|number| Agent::new(&world, number)).collect();
    let mut living: JoinSet<()> = agents.iter().map(|agent| agent.clone().run()).collect();
    let mut following = JoinSet::new();
    for server in 0..SERVERS.len() {
        for (kind, path, _) in history::KINDS {
            following.spawn(history::follow(world.clone(), server, kind, path));
        }
        following.spawn(history::follow_leads(world.clone(), server));
    }
    let clients: JoinSet<()> = (0..CLIENTS).map(|number| Client::new(&world, number).run()).collect();
    storm::rage(&world, nodes).await;
    world.calm.cancel();
    clients.join_all().await;
    storm::settle(&world, &agents).await;
    world.over.cancel();
    following.join_all().await;
    storm::judge(&world);
    living.abort_all();
    for member in SERVERS {
        world.kill(member).await;
    }
    let judged = world.history.judged.lock().iter().map(|(what, count)| ((*what).to_owned(), *count)).collect();
    Played { wrong: world.wrong(), judged, print: world.print(), ..Played::default() }
}
