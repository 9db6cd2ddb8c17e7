//! A group of three on simulated disks and a network that loses, delays, repeats and cuts off; members are killed with their
//! power and start again, leadership is handed over, voters become learners and voters again. Clients write and read through any member, and an oracle knows what each was
//! promised: what was acknowledged is never lost, what failed never happened, what is unknown may be either.
//!
//! A seed chooses the faults, the clients' steps and what the disks keep; threads and elections run in real time, so a seed
//! repeats the plan and not every instant. Planted faults, each a switch of this harness, show what the oracle can see.
//!
//! Judged are:
//! * each client's own name: its values are seen in order, none that is older than what was acknowledged before the read began,
//!   none that failed (linearizability of a register with one writer and any readers);
//! * a counter that all increment with a guard: it counts every acknowledged step once, and no step twice;
//! * watches on every member: in order, the same everywhere, none missing between the first and the last;
//! * at the end, without faults: all members are voters and have the same records, and all acknowledged values are there.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use openraft::raft::{AppendEntriesResponse, VoteResponse};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::{SIZES, SimDisk};
use crate::host::{Host, Timing};
use crate::raft::testing::{TransportError, answer, incoming, spare, wire};
use crate::raft::{Answer, Ask, Call, Member, MemberId, Transport};
use crate::record::Revision;
use crate::{Begin, Config, Guard, Key, Keyspace, Op, TransactError, Value, WatchEnded, leader};

/// How long faults happen, and how long a group may take to be well again afterwards.
const STORM: Duration = Duration::from_millis(2_500);
const HEALING: Duration = Duration::from_secs(25);
const CLIENTS: u64 = 3;
const MEMBERS: [MemberId; 3] = [1, 2, 3];

/// A fault that the harness plants, to see that it is found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Plant {
    Nothing,
    /// Disks say that they have synced, and have not.
    LyingDisks,
    /// An append is answered before anybody has it.
    EarlyAnswers,
    /// Every vote is granted, without asking.
    FreeVotes,
    /// Reads are not confirmed.
    StaleReads,
    /// Events are lost on their way to whoever watches.
    LostEvents,
}

/// The network; clones are the same.
#[derive(Clone)]
struct Net(Arc<Mutex<Wires>>);

struct Wires {
    random: StdRng,
    members: HashMap<MemberId, Weak<Member>>,
    /// Nothing comes through from the first to the second.
    cut: BTreeSet<(MemberId, MemberId)>,
    /// Of a hundred messages so many are lost, repeated, delayed.
    unreliable: u32,
    plant: Plant,
}

/// What happens to one call.
struct Fate {
    lost: bool,
    answer_lost: bool,
    repeated: bool,
    delay: Duration,
}

impl Net {
    fn is_cut(&self, from: MemberId, to: MemberId) -> bool {
        self.0.lock().cut.contains(&(from, to))
    }

    fn find(&self, member: MemberId) -> Option<Arc<Member>> {
        self.0.lock().members.get(&member)?.upgrade()
    }

    fn fate(&self) -> Fate {
        let mut wires = self.0.lock();
        let percent = wires.unreliable;
        let mut happens = |of: u32| percent > 0 && wires.random.random_ratio(percent.min(100), of);
        let (lost, answer_lost, repeated, delayed) = (happens(200), happens(200), happens(100), happens(100));
        let delay = if delayed { Duration::from_millis(wires.random.random_range(1..60)) } else { Duration::ZERO };
        Fate { lost, answer_lost, repeated, delay }
    }

    /// Cuts or mends one direction.
    fn cut(&self, from: MemberId, to: MemberId, is_cut: bool) {
        let mut wires = self.0.lock();
        if is_cut {
            wires.cut.insert((from, to))
        } else {
            wires.cut.remove(&(from, to))
        };
    }

    fn heal(&self) {
        let mut wires = self.0.lock();
        wires.cut.clear();
        wires.unreliable = 0;
    }
}

struct Port {
    from: MemberId,
    net: Net,
}

impl Transport for Port {
    fn call(&self, to: MemberId, _: &str, call: Call) -> BoxFuture<'static, Result<Answer, TransportError>> {
        let (from, net) = (self.from, self.net.clone());
        Box::pin(async move {
            let failed = |why: &str| TransportError::Failed { member: to, reason: why.into() };
            if net.is_cut(from, to) {
                return Err(TransportError::Unreachable(to));
            }
            let plant = net.0.lock().plant;
            match (&call, plant) {
                (Call::Append(request), Plant::EarlyAnswers) if !request.entries.is_empty() => {
                    return Ok(Answer::Append(AppendEntriesResponse::Success));
                }
                (Call::Vote(request) | Call::PreVote(request), Plant::FreeVotes) => {
                    return Ok(Answer::Vote(VoteResponse::new(request.vote, None, true)));
                }
                _ => (),
            }
            if let Call::Snapshot { .. } = call {
                let member = net.find(to).ok_or(TransportError::Unreachable(to))?;
                return answer(&member, from, call).await;
            }
            let asked = match &call {
                Call::Ask(Ask::Write(transaction)) => Some(transaction.clone()),
                _ => None,
            };
            // A stream repeats nothing that was asked for a client: it is written to once.
            let streams = matches!(call, Call::Ask(_));
            let bytes: Bytes = wire(&call).into();
            let fate = net.fate();
            tokio::time::sleep(fate.delay).await;
            if fate.lost || net.is_cut(from, to) {
                return Err(failed("it was lost"));
            }
            let member = net.find(to).ok_or(TransportError::Unreachable(to))?;
            if fate.repeated && !streams {
                let (member, again) = (member.clone(), incoming(&bytes));
                tokio::spawn(async move { answer(&member, from, again).await.is_ok() });
            }
            // Whoever called may go away; whoever is called does not know.
            let (call, of) = (incoming(&bytes), asked.clone());
            let answering = tokio::spawn(async move {
                let mut answer = answer(&member, from, call).await;
                if let (Ok(answer), Some(asked)) = (&mut answer, &of) {
                    spare(answer, asked);
                }
                crate::raft::testing::wire_answer(&answer)
            });
            let bytes = answering.await.map_err(|_| failed("it ended"))?;
            if fate.answer_lost || net.is_cut(to, from) {
                return Err(failed("the answer was lost"));
            }
            crate::raft::testing::incoming_answer(&bytes, to, asked.as_ref())
        })
    }
}

/// A member, up or down.
struct Machine {
    disk: SimDisk,
    keyspace: Option<Keyspace>,
    begin: Begin,
}

/// What a client was promised of a name that only it writes.
#[derive(Default)]
struct Promise {
    /// The newest value that was acknowledged, and the newest that was seen.
    acknowledged: AtomicU64,
    seen: AtomicU64,
    /// The newest that may be there.
    tried: AtomicU64,
    /// Values that were refused: they never happened.
    failed: Mutex<BTreeSet<u64>>,
}

/// One history.
struct World {
    seed: u64,
    net: Net,
    members: tokio::sync::RwLock<BTreeMap<MemberId, Machine>>,
    promises: Vec<Promise>,
    counted: AtomicU64,
    perhaps_counted: AtomicU64,
    plant: Plant,
    /// What every watcher heard, by revision.
    heard: Mutex<BTreeMap<u64, (String, String)>>,
    /// Who was told everything between which revisions.
    whole: Mutex<Vec<(MemberId, u64, u64)>>,
    wrong: Mutex<Vec<String>>,
    over: AtomicU64,
}

impl World {
    fn host(&self, member: MemberId, disk: &SimDisk) -> Host {
        let mut host = Host::simulated(Arc::new(disk.clone()), self.seed ^ member, false, SIZES);
        host.timing = Timing::of(Duration::from_millis(60));
        host
    }

    async fn open(&self, member: MemberId, disk: &SimDisk, begin: &Begin) -> Result<Keyspace, String> {
        let config = Config { begin: begin.clone(), ..Config::new("/data") };
        let prepared = Keyspace::prepare_on(self.host(member, disk), config).await.map_err(|error| {
            let source = std::error::Error::source(&error).map(|source| format!(": {source}")).unwrap_or_default();
            format!("{error}{source}")
        })?;
        let port = Arc::new(Port { from: member, net: self.net.clone() });
        let keyspace = prepared.start_with(port).await.map_err(|error| error.to_string())?;
        self.net.0.lock().members.insert(member, Arc::downgrade(&keyspace.0.member));
        let announce =
            leader::announce(keyspace.0.member.clone(), format!("sim:{member}"), keyspace.0.stop.subscribe());
        keyspace.0.tasks.lock().push(tokio::spawn(announce));
        Ok(keyspace)
    }

    fn is_wrong(&self, what: String) {
        self.wrong.lock().push(what);
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed) > 0
    }

    async fn pick(&self, random: &mut StdRng) -> Option<Keyspace> {
        let member = MEMBERS[random.random_range(0..MEMBERS.len())];
        self.members.read().await.get(&member)?.keyspace.clone()
    }

    /// Kills a member, and starts it again after a while.
    async fn crash(&self, member: MemberId, down: Duration) {
        let mut members = self.members.write().await;
        let Some(machine) = members.get_mut(&member) else { return };
        let Some(keyspace) = machine.keyspace.take() else { return };
        self.net.0.lock().members.remove(&member);
        machine.disk.power_off();
        drop(members);
        keyspace.abandon().await;
        tokio::time::sleep(down).await;
        self.start_again(member).await;
    }

    async fn start_again(&self, member: MemberId) {
        let mut members = self.members.write().await;
        let Some(machine) = members.get_mut(&member).filter(|machine| machine.keyspace.is_none()) else { return };
        machine.disk.power_cut();
        match self.open(member, &machine.disk, &machine.begin).await {
            Ok(keyspace) => machine.keyspace = Some(keyspace),
            Err(why) => self.is_wrong(format!("member {member} does not start: {why}")),
        }
    }

    /// One client: writes its own name, counts, reads others' names, through any member.
    async fn client(self: Arc<World>, client: u64) {
        let mut random = StdRng::seed_from_u64(self.seed ^ (client << 32));
        let mut next = 0;
        while !self.is_over() {
            let Some(keyspace) = self.pick(&mut random).await else {
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            };
            match random.random_range(0..6) {
                0..=2 => {
                    next += 1;
                    self.write(&keyspace, client, next).await;
                }
                3 => self.count(&keyspace).await,
                _ => self.read(&keyspace, random.random_range(0..CLIENTS)).await,
            }
            tokio::time::sleep(Duration::from_millis(random.random_range(1..15))).await;
        }
    }

    async fn write(&self, keyspace: &Keyspace, client: u64, value: u64) {
        let promise = &self.promises[client as usize];
        // What is unknown may still happen: with a guard it cannot after something newer has.
        if !confirmed(keyspace).await {
            return;
        }
        let name = format!("client {client}");
        let there = keyspace.get("things", &name);
        let guard = there.map_or(Guard::Absent, |record| Guard::Revision(record.revision));
        promise.tried.store(value, Ordering::SeqCst);
        let op = put(&name, value, guard);
        match patient(keyspace.transact(vec![op])).await.unwrap_or(Err(TransactError::Unknown)) {
            Ok(_) => promise.acknowledged.store(value, Ordering::SeqCst),
            Err(TransactError::Unknown | TransactError::Stopped) => (),
            Err(_) => drop(promise.failed.lock().insert(value)),
        }
    }

    async fn count(&self, keyspace: &Keyspace) {
        if !confirmed(keyspace).await {
            return;
        }
        let there = keyspace.get("things", "counter");
        let (guard, value) =
            there.map_or((Guard::Absent, 0), |record| (Guard::Revision(record.revision), value_of(&record.bytes)));
        let write = keyspace.transact(vec![put("counter", value + 1, guard)]);
        match patient(write).await.unwrap_or(Err(TransactError::Unknown)) {
            Ok(_) => drop(self.counted.fetch_add(1, Ordering::SeqCst)),
            Err(TransactError::Unknown | TransactError::Stopped) => {
                self.perhaps_counted.fetch_add(1, Ordering::SeqCst);
            }
            Err(_) => (),
        }
    }

    async fn read(&self, keyspace: &Keyspace, of: u64) {
        let promise = &self.promises[of as usize];
        let least = promise.acknowledged.load(Ordering::SeqCst).max(promise.seen.load(Ordering::SeqCst));
        if self.plant != Plant::StaleReads && !confirmed(keyspace).await {
            return;
        }
        let found = keyspace.get("things", &format!("client {of}")).map_or(0, |record| value_of(&record.bytes));
        let most = promise.tried.load(Ordering::SeqCst);
        if found < least || found > most {
            self.is_wrong(format!("client {of} reads {found} at member {}, not {least} to {most}", keyspace.member()));
        }
        if promise.failed.lock().contains(&found) {
            self.is_wrong(format!("client {of} reads {found}, which was refused"));
        }
        promise.seen.fetch_max(found, Ordering::SeqCst);
    }

    /// Follows what one member says happened, over its restarts.
    async fn watch(self: Arc<World>, member: MemberId) {
        let mut after = Revision::default();
        let mut lost = StdRng::seed_from_u64(self.seed ^ member);
        while !self.is_over() {
            let keyspace = self.members.read().await.get(&member).and_then(|machine| machine.keyspace.clone());
            let watcher = keyspace.map(|keyspace| keyspace.watch("things", after).map_err(|error| error.0));
            let mut watcher = match watcher {
                Some(Ok(watcher)) => watcher,
                Some(Err(compacted)) => {
                    // It would list now; what it heard before still counts.
                    after = compacted;
                    continue;
                }
                None => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    continue;
                }
            };
            let began = after;
            let mut heard = Vec::new();
            let ended = loop {
                match tokio::time::timeout(Duration::from_millis(50), watcher.next()).await {
                    Ok(Ok(batch)) => {
                        for event in batch.events {
                            let revision = event.record.revision;
                            if revision <= after {
                                self.is_wrong(format!("member {member} says {revision} after {after}"));
                            }
                            after = revision;
                            if self.plant == Plant::LostEvents && lost.random_ratio(1, 50) {
                                continue;
                            }
                            let text = String::from_utf8_lossy(&event.record.bytes).into_owned();
                            heard.push((revision.get(), (event.record.key.name.to_string(), text)));
                        }
                    }
                    Ok(Err(ended)) => break ended,
                    Err(_) if self.is_over() => break WatchEnded::Stopped,
                    Err(_) => (),
                }
            };
            self.compare(member, began.get(), after.get(), heard);
            if let WatchEnded::Compacted(compacted) = ended {
                after = after.max(compacted.0);
            }
        }
    }

    /// What is heard of the same revisions is the same, whoever says it.
    fn compare(&self, member: MemberId, began: u64, upto: u64, heard: Vec<(u64, (String, String))>) {
        let mut all = self.heard.lock();
        let these: BTreeSet<u64> = heard.iter().map(|(revision, _)| *revision).collect();
        for (revision, event) in all.range((Bound::Excluded(began), Bound::Included(upto.max(began)))) {
            if !these.contains(revision) {
                self.is_wrong(format!("member {member} does not say {revision} ({event:?}), from {began} to {upto}"));
            }
        }
        // Where another was told everything, what it was not told did not happen.
        let mut whole = self.whole.lock();
        for (revision, event) in heard {
            match all.get(&revision) {
                Some(known) if *known != event => {
                    self.is_wrong(format!("at {revision} member {member} has {event:?}, another {known:?}"));
                }
                Some(_) => (),
                None => {
                    if let Some((by, from, to)) = whole.iter().find(|(_, from, to)| *from < revision && revision <= *to)
                    {
                        let what = format!("member {by} does not say {revision} ({event:?}), from {from} to {to}");
                        self.is_wrong(what);
                    }
                    all.insert(revision, event);
                }
            }
        }
        whole.push((member, began, upto));
    }

    /// Faults, as the seed has them.
    async fn storm(self: &Arc<World>) {
        let mut random = StdRng::seed_from_u64(self.seed);
        let end = tokio::time::Instant::now() + STORM;
        let mut crashes = tokio::task::JoinSet::new();
        while tokio::time::Instant::now() < end {
            let member = MEMBERS[random.random_range(0..MEMBERS.len())];
            let other = MEMBERS[random.random_range(0..MEMBERS.len())];
            match random.random_range(0..9) {
                0..=1 if crashes.is_empty() => {
                    let (world, down) = (self.clone(), Duration::from_millis(random.random_range(20..400)));
                    crashes.spawn(async move { world.crash(member, down).await });
                }
                2 if crashes.is_empty() && self.plant == Plant::LyingDisks => {
                    for member in MEMBERS {
                        let world = self.clone();
                        crashes.spawn(async move { world.crash(member, Duration::from_millis(50)).await });
                    }
                }
                2 => {
                    let keyspace = self.members.read().await[&member].keyspace.clone();
                    if let Some(keyspace) = keyspace {
                        keyspace.hand_over().await;
                    }
                }
                3..=4 if member != other => self.net.cut(member, other, true),
                5 => {
                    // Whoever leads is cut off from all, both ways or one.
                    let both = random.random();
                    for other in MEMBERS.into_iter().filter(|other| *other != member) {
                        self.net.cut(member, other, true);
                        self.net.cut(other, member, both);
                    }
                }
                6 => self.net.0.lock().unreliable = random.random_range(0..30),
                7 => {
                    // The other is a learner for a while; whoever does it may be gone between the steps, or not lead at all.
                    let keyspace = self.members.read().await[&member].keyspace.clone();
                    if let Some(keyspace) = keyspace.filter(|_| member != other) {
                        let voters = MEMBERS.into_iter().filter(|voter| *voter != other).collect();
                        let patience = Duration::from_millis(random.random_range(0..40));
                        let _ = tokio::time::timeout(patience, keyspace.0.member.replace_voters(voters)).await;
                    }
                }
                _ => self.net.0.lock().cut.clear(),
            }
            tokio::time::sleep(Duration::from_millis(random.random_range(30..350))).await;
            while let Some(ended) = crashes.try_join_next() {
                ended.expect("a crash does not panic");
            }
        }
        while let Some(ended) = crashes.join_next().await {
            ended.expect("a crash does not panic");
        }
        self.net.heal();
        for member in MEMBERS {
            self.start_again(member).await;
        }
    }

    /// Everything is well again: all have the same, and all that was promised.
    async fn settle(&self) {
        let members = self.members.read().await;
        let keyspaces: Vec<Keyspace> = members.values().filter_map(|machine| machine.keyspace.clone()).collect();
        if keyspaces.len() < MEMBERS.len() {
            return;
        }
        let well = async {
            loop {
                let mut all_well = true;
                for keyspace in &keyspaces {
                    if let Some(why) = futures::FutureExt::now_or_never(keyspace.failed()) {
                        return self.is_wrong(format!("member {} ended: {why}", keyspace.member()));
                    }
                    let voters = keyspace.members().iter().filter(|member| member.role == crate::Role::Voter).count();
                    all_well &= voters == MEMBERS.len() && !keyspace.0.member.is_joint();
                    all_well &= confirmed(keyspace).await;
                }
                if all_well {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        if tokio::time::timeout(HEALING, well).await.is_err() {
            let states: Vec<_> = keyspaces.iter().map(Keyspace::status).collect();
            return self.is_wrong(format!("the group is not well again: {states:?}"));
        }
        // Twice, so that the first has what the last confirmed.
        for keyspace in &keyspaces {
            let _ = keyspace.barrier().await;
        }
        let contents = |keyspace: &Keyspace| {
            let records = keyspace.snapshot("things").records;
            records.values().map(|r| (r.key.name.to_string(), r.revision.get(), r.bytes.clone())).collect::<Vec<_>>()
        };
        let first = contents(&keyspaces[0]);
        for keyspace in &keyspaces[1..] {
            if contents(keyspace) != first {
                self.is_wrong(format!("members 1 and {} differ", keyspace.member()));
            }
        }
        for client in 0..CLIENTS {
            self.read(&keyspaces[0], client).await;
        }
        let counter = keyspaces[0].get("things", "counter").map_or(0, |record| value_of(&record.bytes));
        let least = self.counted.load(Ordering::SeqCst);
        let most = least + self.perhaps_counted.load(Ordering::SeqCst);
        if counter < least || counter > most {
            self.is_wrong(format!("the counter says {counter}, not {least} to {most}"));
        }
    }
}

/// What a client waits for before it goes on without knowing.
async fn patient<T>(work: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(Duration::from_secs(2), work).await.ok()
}

async fn confirmed(keyspace: &Keyspace) -> bool {
    patient(keyspace.barrier()).await.is_some_and(|confirmed| confirmed.is_ok())
}

fn put(name: &str, value: u64, guard: Guard) -> Op {
    let bytes = Bytes::from(format!("{value}\n"));
    Op::Put { key: Key::new("things", name), value: Value { revision_at: bytes.len(), bytes }, guard }
}

fn value_of(bytes: &[u8]) -> u64 {
    let text = String::from_utf8_lossy(bytes);
    text.lines().next().and_then(|line| line.parse().ok()).expect("what a client wrote")
}

/// Plays one seed; what was wrong, and how many writes were acknowledged.
async fn play(seed: u64, plant: Plant) -> (Vec<String>, u64) {
    let wires = Wires {
        random: StdRng::seed_from_u64(seed ^ 0x5eed),
        members: HashMap::new(),
        cut: BTreeSet::new(),
        unreliable: 0,
        plant: Plant::Nothing,
    };
    let world = Arc::new(World {
        seed,
        net: Net(Arc::new(Mutex::new(wires))),
        members: tokio::sync::RwLock::default(),
        promises: (0..CLIENTS).map(|_| Promise::default()).collect(),
        counted: AtomicU64::new(0),
        perhaps_counted: AtomicU64::new(0),
        plant,
        heard: Mutex::default(),
        whole: Mutex::default(),
        wrong: Mutex::default(),
        over: AtomicU64::new(0),
    });
    let mut begin = Begin::Found;
    for member in MEMBERS {
        let disk = SimDisk::new(seed ^ (member << 8));
        let keyspace = world.open(member, &disk, &begin).await.expect("a new directory on a good disk");
        let again = Begin::Resume;
        world.members.write().await.insert(member, Machine { disk, keyspace: Some(keyspace), begin: again });
        if member < 3 {
            let first = world.members.read().await[&1].keyspace.clone().expect("it is up");
            let admission = async {
                loop {
                    match first.admit("another", crate::Formats::OWN).await {
                        Ok(admission) => return admission,
                        Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                    }
                }
            };
            begin = Begin::Join(tokio::time::timeout(HEALING, admission).await.expect("it is admitted"));
        }
    }
    let grown = async {
        let third = world.members.read().await[&3].keyspace.clone().expect("it is up");
        while third.members().iter().filter(|member| member.role == crate::Role::Voter).count() < 3 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(HEALING, grown).await.expect("three voters");
    world.net.0.lock().plant = plant;
    if plant == Plant::LyingDisks {
        world.members.read().await.values().for_each(|machine| machine.disk.lie());
    }
    let mut clients: tokio::task::JoinSet<()> = (0..CLIENTS).map(|client| world.clone().client(client)).collect();
    MEMBERS.iter().for_each(|member| drop(clients.spawn(world.clone().watch(*member))));
    world.storm().await;
    world.net.0.lock().plant = Plant::Nothing;
    world.over.store(1, Ordering::Relaxed);
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
    let acknowledged = world.promises.iter().map(|promise| promise.acknowledged.load(Ordering::SeqCst)).sum();
    (std::mem::take(&mut *world.wrong.lock()), acknowledged)
}

/// A number of the environment.
fn chosen(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|number| number.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

/// Plays `seeds` side by side: most of each is waiting.
async fn play_all(seeds: std::ops::Range<u64>, plant: Plant) -> Vec<(u64, Vec<String>, u64)> {
    let mut all = Vec::new();
    for some in seeds.collect::<Vec<_>>().chunks(4) {
        let plays = some.iter().map(|seed| async move {
            let (wrong, acknowledged) = play(*seed, plant).await;
            (*seed, wrong, acknowledged)
        });
        all.extend(futures::future::join_all(plays).await);
    }
    all
}

/// `CORACLE_SEED=n` plays one, `CORACLE_SEEDS=n` so many.
#[tokio::test(flavor = "multi_thread")]
async fn whatever_happens_to_a_group_it_keeps_what_it_promised() {
    let seeds = chosen("CORACLE_SEED").map_or(0..chosen("CORACLE_SEEDS").unwrap_or(8), |seed| seed..seed + 1);
    for (seed, wrong, acknowledged) in play_all(seeds, Plant::Nothing).await {
        assert!(
            wrong.is_empty() && acknowledged > 0,
            "{}\nagain: CORACLE_SEED={seed} cargo test -p coracle-keyspace --lib simulation::group",
            wrong.join("\n")
        );
    }
}

/// Each fault shows as what it is: a loss, a contradiction, a gap; or Raft itself finds that what it was promised is not so, and
/// ends.
#[tokio::test(flavor = "multi_thread")]
async fn planted_faults_are_found() {
    let lost = ["reads", "the counter says", "differ", "has (", "does not start", "ended", "not well"];
    for (plant, signs) in [
        (Plant::LyingDisks, &lost[..]),
        (Plant::EarlyAnswers, &lost[..]),
        (Plant::FreeVotes, &lost[..]),
        (Plant::StaleReads, &lost[..1]),
        (Plant::LostEvents, &["does not say"]),
    ] {
        let is_sign = |what: &String| signs.iter().any(|sign| what.contains(sign));
        let mut found = None;
        for some in 0..4_u64 {
            let played = play_all(some * 4..some * 4 + 4, plant).await;
            let mut wrong =
                played.into_iter().flat_map(|(seed, wrong, _)| wrong.into_iter().map(move |what| (seed, what)));
            found = wrong.find(|(_, what)| is_sign(what));
            if found.is_some() {
                break;
            }
        }
        let (seed, what) = found.unwrap_or_else(|| panic!("{plant:?} was not found in 16 histories"));
        println!("{plant:?}: seed {seed}: {what}");
    }
}
