//! A group of three members. They are killed with their power and start again, leadership is handed over, voters become learners and
//! voters again. Clients write and read through any member (`clients.rs`), and watches of every one are followed (`watches.rs`).
//! In every second world what they write is sealed, and the key is renewed again and again (`keys.rs`).
//!
//! Judged are:
//! * each client's own register: its values are seen in order, none that is older than what was acknowledged before the read
//!   began, none that failed (linearizability of a register with one writer and any readers);
//! * a counter that all increment with a guard: it counts every acknowledged step once, and no step twice;
//! * watches on every member: in order, the same everywhere, none missing between the first and the last;
//! * at the end, without faults: all members are voters and have the same records, and all acknowledged values are there; what is to be
//!   sealed is under the newest key.

mod clients;
mod keys;
mod lost;
mod returns;
mod storm;
mod watches;

use std::collections::BTreeMap;
use std::future::Future;
use std::hash::{DefaultHasher, Hasher as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use coracle_keyspace::simulation::{SIZES, SimDisk, SimNet, Tamper, Timing};
use coracle_keyspace::{Begin, Formats, Keyspace, MemberId, Role};
use parking_lot::Mutex;
use tokio::task::JoinSet;

use crate::heard::Heard;
use crate::plants::Plant;
use crate::promises::Promises;
use crate::seeds::Played;

/// How long a group may take to be well.
const HEALING: Duration = Duration::from_secs(25);
const HEARTBEAT: Duration = Duration::from_millis(60);
const CLIENTS: u64 = 3;
const MEMBERS: [MemberId; 3] = [1, 2, 3];

/// A member, up or down.
struct Machine {
    disk: SimDisk,
    keyspace: Option<Keyspace>,
    /// How it came to be a member.
    began: Begin,
}

/// The world.
struct World {
    seed: u64,
    plant: Plant,
    net: SimNet,
    members: tokio::sync::RwLock<BTreeMap<MemberId, Machine>>,
    promises: Promises,
    heard: Mutex<Heard>,
    judged: Mutex<BTreeMap<&'static str, u64>>,
    wrong: Mutex<Vec<String>>,
    over: AtomicBool,
}

/// Plays one world.
pub async fn play(seed: u64, plant: Plant) -> Played {
    let world = World::new(seed, plant);
    world.grow().await;
    world.plant().await;
    let mut clients: JoinSet<()> = (0..CLIENTS).map(|client| world.clone().client(client)).collect();
    MEMBERS.iter().for_each(|member| drop(clients.spawn(world.clone().watch(*member))));
    if world.seals() {
        clients.spawn(world.clone().renew());
    }
    world.storm().await;
    world.net.tamper(Tamper::Nothing);
    world.over.store(true, Ordering::Relaxed);
    // A write to whoever cannot reach anybody is given up after its time.
    while let Some(ended) = clients.join_next().await {
        ended.expect("a client does not panic");
    }
    if world.wrong.lock().is_empty() {
        world.settle().await;
    }
    let members = std::mem::take(&mut *world.members.write().await);
    for machine in members.into_values() {
        if let Some(keyspace) = machine.keyspace {
            keyspace.abandon().await;
        }
    }
    let mut print = DefaultHasher::new();
    world.heard.lock().print(&mut print);
    world.promises.print(&mut print);
    let judged = world.judged.lock().iter().map(|(what, count)| ((*what).to_owned(), *count)).collect();
    Played { wrong: std::mem::take(&mut *world.wrong.lock()), judged, print: print.finish(), ..Played::default() }
}

impl World {
    fn new(seed: u64, plant: Plant) -> Arc<World> {
        let net = SimNet::new(seed ^ 0x5eed);
        if keys::are_in(seed) {
            net.seal_under(keys::root(seed));
        }
        Arc::new(World {
            seed,
            plant,
            net,
            members: tokio::sync::RwLock::default(),
            promises: Promises::default(),
            heard: Mutex::default(),
            judged: Mutex::default(),
            wrong: Mutex::default(),
            over: AtomicBool::new(false),
        })
    }

    async fn open(&self, member: MemberId, disk: &SimDisk, begin: &Begin) -> Result<Keyspace, String> {
        self.net.open(disk, self.seed ^ member, (Timing::of(HEARTBEAT), SIZES), begin.clone()).await.map_err(|error| {
            let source = std::error::Error::source(&error).map(|source| format!(": {source}")).unwrap_or_default();
            format!("{error}{source}")
        })
    }

    /// Founds the group, and has it grow to three voters.
    async fn grow(&self) {
        let mut begin = Begin::Found;
        let mut members = self.members.write().await;
        for member in MEMBERS {
            let disk = SimDisk::new(self.seed ^ (member << 8));
            let keyspace = self.open(member, &disk, &begin).await.expect("a new directory on a good disk");
            let machine = Machine { disk, keyspace: Some(keyspace), began: begin.clone() };
            members.insert(member, machine);
            let first = members[&1].keyspace.clone().expect("it is up");
            if member < 3 {
                let name = format!("server-{}", member + 1);
                let admission = until(async || first.admit(&name, Formats::OWN).await.ok()).await;
                begin = Begin::Join(admission.expect("it is admitted"));
            }
        }
        let third = members[&3].keyspace.clone().expect("it is up");
        until(async || (voters(&third) == MEMBERS.len()).then_some(())).await.expect("three voters");
        drop(members);
        if self.seals() {
            self.begin_to_seal().await;
        }
    }

    /// Plants what is planted.
    async fn plant(&self) {
        let tamper = match self.plant {
            Plant::EarlyAppends => Tamper::EarlyAppends,
            Plant::EarlyVotes => Tamper::EarlyVotes,
            Plant::SmallQuorum => Tamper::SmallQuorum,
            _ => Tamper::Nothing,
        };
        self.net.tamper(tamper);
        for machine in self.members.read().await.values() {
            match self.plant {
                Plant::DroppedSyncs => machine.disk.lie(),
                Plant::EarlyPurges => machine.disk.lie_about("state.redb"),
                _ => (),
            }
        }
    }

    fn is_wrong(&self, what: String) {
        self.wrong.lock().push(what);
    }

    fn judges(&self, what: &'static str, verdict: Result<(), String>) {
        *self.judged.lock().entry(what).or_default() += 1;
        if let Err(what) = verdict {
            self.is_wrong(what);
        }
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }
}

/// How many voters a member knows of.
fn voters(keyspace: &Keyspace) -> usize {
    keyspace.members().iter().filter(|member| member.role == Role::Voter).count()
}

/// Tries until `done` gives something, or a group has had the time to become well.
async fn until<T>(mut done: impl AsyncFnMut() -> Option<T>) -> Option<T> {
    let tries = async {
        loop {
            match done().await {
                Some(done) => return done,
                None => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    tokio::time::timeout(HEALING, tries).await.ok()
}

/// What a client waits for before it goes on without knowing.
async fn patient<T>(work: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(Duration::from_secs(2), work).await.ok()
}

/// Whether a read of this member would be linearizable now.
async fn confirmed(keyspace: &Keyspace) -> bool {
    patient(keyspace.barrier()).await.is_some_and(|confirmed| confirmed.is_ok())
}
