//! One world: three servers, each a member on its simulated disk, an API server and the duties of whoever leads, wired as
//! `coracle_server` wires them; the lines of nodes and clients; and what a seed lets happen to all of them.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hasher as _};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use coracle_apiserver::{ApiServer, Config};
use coracle_keyspace::simulation::{SimDisk, SimNet, Sizes, Timing};
use coracle_keyspace::{Begin, Formats, Keyspace, MemberId, Role};
use futures::future::BoxFuture;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio_util::sync::CancellationToken;

use crate::cluster::history::History;
use crate::cluster::wire::{DutyWay, Line};
use crate::plants::Plant;
use crate::promises::Promises;

/// The members.
pub const SERVERS: [MemberId; 3] = [1, 2, 3];
/// How often a leader is heard of.
const HEARTBEAT: Duration = Duration::from_millis(100);
/// So little that a world comes past checkpoints, and objects fit in.
const SIZES: Sizes = Sizes { segment: 256 << 10, rotate: 192 << 10, cut: 256 << 10, full: 1 << 20 };
/// How long the founding of a cluster may take.
const FOUNDING: Duration = Duration::from_secs(60);

/// How long after its end a server is started again.
const AGAIN_AFTER: Duration = Duration::from_millis(500);

/// What is up of a server.
#[derive(Clone)]
pub struct Up {
    pub keyspace: Keyspace,
    pub api: ApiServer,
    /// Cancelled when it is killed.
    pub killed: CancellationToken,
}

/// A server, up or down.
struct Server {
    disk: SimDisk,
    /// The member, which is up before the API is.
    member: Option<(Keyspace, CancellationToken)>,
    api: Option<ApiServer>,
    /// Whether it is on its way down or up.
    opening: bool,
    /// Whether its disk was made to fail, so that its end is no surprise.
    broken: bool,
    /// Whether its disk is full. A log without threads of its own cannot wait for room: the server ends, and is started when
    /// there is some.
    full: bool,
}

/// What happens to a request.
#[derive(Default)]
pub struct Fate {
    pub lost: bool,
    pub answer_lost: bool,
    pub delay: Duration,
}

/// The world.
pub struct World {
    pub seed: u64,
    pub plant: Plant,
    /// What each node can give.
    pub cpu_millis: u64,
    pub net: SimNet,
    pub history: History,
    pub promises: Promises,
    servers: Mutex<BTreeMap<MemberId, Server>>,
    chance: Mutex<StdRng>,
    lines: Mutex<HashMap<String, Line>>,
    addresses: Mutex<HashMap<String, String>>,
    /// Of a hundred requests so many are lost, or delayed, or break off; and how long duties may take to send theirs.
    unreliable: Mutex<(u32, Duration)>,
    wrong: Mutex<Vec<String>>,
    /// Cancelled when clients stop.
    pub calm: CancellationToken,
    /// Cancelled when whoever follows what happens has nothing more to follow.
    pub over: CancellationToken,
}

/// What is on a server's disk.
type Image = BTreeMap<PathBuf, Vec<u8>>;

/// A cluster of three that was founded and has its first objects: every world begins with it.
pub fn founded() -> &'static [Image; 3] {
    static FOUNDED: OnceLock<[Image; 3]> = OnceLock::new();
    FOUNDED.get_or_init(|| {
        crate::clock::world(0, async || {
            let world = World::new(0, Plant::Nothing, 0);
            tokio::time::timeout(FOUNDING, world.found()).await.expect("a cluster is founded");
            let images = world.servers.lock().values().map(|server| server.disk.image()).collect::<Vec<_>>();
            images.try_into().expect("three disks")
        })
        .expect("nothing panics")
    })
}

impl World {
    /// One without servers.
    fn new(seed: u64, plant: Plant, cpu_millis: u64) -> Arc<World> {
        Arc::new(World {
            seed,
            plant,
            cpu_millis,
            net: SimNet::new(seed ^ 0x5eed),
            history: History::default(),
            promises: Promises::default(),
            servers: Mutex::default(),
            chance: Mutex::new(StdRng::seed_from_u64(seed ^ 0xfa7e)),
            lines: Mutex::default(),
            addresses: Mutex::default(),
            unreliable: Mutex::new((0, Duration::ZERO)),
            wrong: Mutex::default(),
            calm: CancellationToken::new(),
            over: CancellationToken::new(),
        })
    }

    /// One of three servers that are up.
    pub async fn begin(seed: u64, plant: Plant, cpu_millis: u64) -> Arc<World> {
        let images = founded();
        let world = World::new(seed, plant, cpu_millis);
        for (member, image) in SERVERS.into_iter().zip(images) {
            let disk = SimDisk::new(seed ^ (member << 8));
            disk.restore(image);
            world
                .servers
                .lock()
                .insert(member, Server { disk, member: None, api: None, opening: false, broken: false, full: false });
        }
        futures::future::join_all(SERVERS.map(|member| world.start(member))).await;
        world
    }

    /// Founds a cluster, and has it grow to three.
    async fn found(self: &Arc<World>) {
        let mut begin = Begin::Found;
        for member in SERVERS {
            let disk = SimDisk::new(member);
            let keyspace =
                self.net.open(&disk, member, (Timing::of(HEARTBEAT), SIZES), begin.clone()).await.expect("a new disk");
            let killed = CancellationToken::new();
            let server = Server {
                disk,
                member: Some((keyspace, killed)),
                api: None,
                opening: false,
                broken: false,
                full: false,
            };
            self.servers.lock().insert(member, server);
            let first = self.servers.lock()[&1].member.clone().expect("it is up").0;
            begin = loop {
                match first.admit(&format!("server-{}", member + 1), Formats::OWN).await {
                    Ok(admission) if member < 3 => break Begin::Join(admission),
                    _ if member == 3 => break Begin::Resume,
                    _ => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            };
        }
        let keyspaces: Vec<Keyspace> =
            self.servers.lock().values().filter_map(|server| Some(server.member.as_ref()?.0.clone())).collect();
        while keyspaces[2].members().iter().filter(|member| member.role == Role::Voter).count() < 3 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let api = ApiServer::start(keyspaces[0].clone(), config(1)).await.expect("the first objects");
        for keyspace in &keyspaces {
            keyspace.barrier().await.expect("all are up");
        }
        api.shutdown();
        for keyspace in keyspaces {
            keyspace.abandon().await;
        }
    }

    /// Starts a server that is down, as the product does: the data, a majority, the API, the duties.
    pub fn start(self: &Arc<World>, member: MemberId) -> BoxFuture<'static, ()> {
        // Boxed, because who ends starts again.
        Box::pin(self.clone().open(member))
    }

    async fn open(self: Arc<World>, member: MemberId) {
        let disk = match self.servers.lock().get_mut(&member) {
            Some(server) if server.member.is_none() && !server.opening => {
                server.opening = true;
                server.disk.clone()
            }
            _ => return,
        };
        let opened = self.net.open(&disk, self.seed ^ member, (Timing::of(HEARTBEAT), SIZES), Begin::Resume).await;
        let keyspace = match opened {
            Ok(keyspace) => keyspace,
            Err(error) => {
                if self.comes_again(member) {
                    tokio::time::sleep(AGAIN_AFTER).await;
                    return self.start(member).await;
                }
                let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
                return self.is_wrong(format!("server {member} does not start: {error}: {source}"));
            }
        };
        let killed = CancellationToken::new();
        if let Some(server) = self.servers.lock().get_mut(&member) {
            server.member = Some((keyspace.clone(), killed.clone()));
            server.opening = false;
        }
        tokio::spawn(self.clone().serve(member, keyspace.clone(), killed.clone()));
        tokio::spawn(self.clone().guard(member, keyspace, killed));
    }

    /// Whether a server that did not start has a disk that was made to fail meanwhile; it is as after a power cut then.
    fn comes_again(&self, member: MemberId) -> bool {
        let mut servers = self.servers.lock();
        let Some(server) = servers.get_mut(&member) else { return false };
        if server.broken {
            server.broken = server.full;
            server.disk.power_cut();
            server.opening = false;
            return true;
        }
        false
    }

    async fn serve(self: Arc<World>, member: MemberId, keyspace: Keyspace, killed: CancellationToken) {
        let start = async {
            loop {
                if keyspace.barrier().await.is_ok()
                    && let Ok(api) = ApiServer::start(keyspace.clone(), config(member)).await
                {
                    return api;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        let api = tokio::select! {
            api = start => api,
            () = killed.cancelled() => return,
        };
        let up = Up { keyspace: keyspace.clone(), api: api.clone(), killed: killed.clone() };
        if let Some(server) = self.servers.lock().get_mut(&member) {
            server.api = Some(api);
        }
        let world = self.clone();
        let client = move |user: &str, lead| {
            let way = DutyWay { world: world.clone(), up: up.clone(), user: user.into(), lead };
            kube::Client::new(way, "default")
        };
        let config = coracle_server::DutiesConfig {
            root_ca: "no certificate".into(),
            ..coracle_server::DutiesConfig::default()
        };
        coracle_server::Duties::default().run_while_leading(client, config, keyspace.lead(), killed).await;
    }

    /// Who cannot write any more ends, and is started again; only a disk that was made to fail is a reason.
    async fn guard(self: Arc<World>, member: MemberId, keyspace: Keyspace, killed: CancellationToken) {
        let why = tokio::select! {
            why = keyspace.failed() => why,
            () = killed.cancelled() => return,
        };
        let expected = self.servers.lock().get(&member).is_some_and(|server| server.broken);
        if !expected && !killed.is_cancelled() {
            self.is_wrong(format!("server {member} ended by itself: {why}"));
        }
        self.kill(member).await;
        tokio::time::sleep(AGAIN_AFTER).await;
        while self.servers.lock().get(&member).is_some_and(|server| server.full) {
            tokio::time::sleep(AGAIN_AFTER).await;
        }
        self.start(member).await;
    }

    /// Kills a server with its power: what it had not synced may be lost.
    pub async fn kill(&self, member: MemberId) {
        let taken = {
            let mut servers = self.servers.lock();
            let Some(server) = servers.get_mut(&member) else { return };
            let Some((keyspace, killed)) = server.member.take() else { return };
            killed.cancel();
            server.disk.power_off();
            (server.broken, server.opening) = (false, true);
            (keyspace, server.api.take(), server.disk.clone())
        };
        let (keyspace, api, disk) = taken;
        self.net.detach(member);
        if let Some(api) = api {
            api.shutdown();
        }
        keyspace.abandon().await;
        disk.power_cut();
        if let Some(server) = self.servers.lock().get_mut(&member) {
            server.opening = false;
        }
    }

    /// Has the power go after so many more steps on a server's disk.
    pub fn cut_power(&self, member: MemberId, steps: u64) {
        if let Some(server) = self.servers.lock().get_mut(&member).filter(|server| server.api.is_some()) {
            server.broken = true;
            server.disk.power_for(Some(steps));
        }
    }

    /// Has the next sync of a server's disk fail.
    pub fn break_disk(&self, member: MemberId) {
        if let Some(server) = self.servers.lock().get_mut(&member) {
            server.broken = true;
            server.disk.fail_syncs(1);
        }
    }

    /// Has syncs work again that were to fail, and take no longer than usual.
    fn mend_disks(&self) {
        for server in self.servers.lock().values() {
            server.disk.fail_syncs(0);
            server.disk.set_slow(None);
        }
    }

    /// Has a server's disk be full, or not any more.
    pub fn fill_disk(&self, member: MemberId, is_full: bool) {
        if let Some(server) = self.servers.lock().get_mut(&member) {
            let room = if is_full { server.disk.used() } else { u64::MAX };
            server.disk.set_capacity(room);
            server.full = is_full;
            server.broken |= is_full;
        }
    }

    /// Has a server's disk be slow, or as it was.
    pub fn slow_disk(&self, member: MemberId, slow: Option<Duration>) {
        if let Some(server) = self.servers.lock().get(&member) {
            server.disk.set_slow(slow);
        }
    }

    /// Plants lies in all disks.
    pub fn lie(&self) {
        self.servers.lock().values().for_each(|server| server.disk.lie());
    }

    /// A server whose API is up.
    pub fn up(&self, member: MemberId) -> Option<Up> {
        let servers = self.servers.lock();
        let server = servers.get(&member)?;
        let (keyspace, killed) = server.member.clone()?;
        Some(Up { keyspace, api: server.api.clone()?, killed })
    }

    /// Who says that it leads, in the newest term.
    pub fn leader(&self) -> Option<MemberId> {
        let servers = self.servers.lock();
        let members = servers.iter().filter_map(|(member, server)| Some((*member, &server.member.as_ref()?.0)));
        let leads = members.filter_map(|(member, keyspace)| Some((keyspace.lead().borrow().as_ref()?.term, member)));
        leads.max().map(|(_, member)| member)
    }

    /// A revision that is applied somewhere, and therefore committed.
    pub fn applied(&self) -> u64 {
        let servers = self.servers.lock();
        let members = servers.values().filter_map(|server| server.member.as_ref());
        members.map(|(keyspace, _)| keyspace.revision().get()).max().unwrap_or_default()
    }

    /// Says that something is wrong.
    pub fn is_wrong(&self, what: String) {
        self.wrong.lock().push(what);
    }

    /// Says it, if it is.
    pub fn judge(&self, verdict: Result<(), String>) {
        if let Err(what) = verdict {
            self.is_wrong(what);
        }
    }

    /// What is wrong, so far.
    pub fn wrong(&self) -> Vec<String> {
        self.wrong.lock().clone()
    }

    /// The same for the same world: a fingerprint of everything that was heard.
    pub fn print(&self) -> u64 {
        let mut print = DefaultHasher::new();
        self.history.print(&mut print);
        self.promises.print(&mut print);
        print.finish()
    }

    /// A number below `end`.
    pub fn draw(&self, end: u64) -> u64 {
        self.chance.lock().random_range(0..end)
    }

    /// Sets how unreliable everything is.
    pub fn set_unreliable(&self, percent: u32, duties: Duration) {
        *self.unreliable.lock() = (percent, duties);
        self.net.set_unreliable(percent);
    }

    /// What happens to the next request.
    pub fn fate(&self) -> Fate {
        let percent = self.unreliable.lock().0.min(100);
        let mut chance = self.chance.lock();
        let mut happens = |of| percent > 0 && chance.random_ratio(percent, of);
        let (lost, answer_lost, delayed) = (happens(300), happens(300), happens(100));
        let delay = if delayed { Duration::from_millis(chance.random_range(1..400)) } else { Duration::ZERO };
        Fate { lost, answer_lost, delay }
    }

    /// When the next stream breaks off by itself, if it does.
    pub fn break_after(&self) -> Option<Duration> {
        let percent = self.unreliable.lock().0.min(100);
        let mut chance = self.chance.lock();
        (percent > 0 && chance.random_ratio(percent, 100))
            .then(|| Duration::from_millis(chance.random_range(100..5000)))
    }

    /// How long a duty takes to send its next write.
    pub fn duty_delay(&self) -> Duration {
        let longest = self.unreliable.lock().1.as_millis() as u64;
        let mut chance = self.chance.lock();
        if longest == 0 || chance.random() {
            Duration::ZERO
        } else {
            Duration::from_millis(chance.random_range(0..longest))
        }
    }

    /// Somebody's line.
    pub fn line(&self, name: &str) -> Line {
        self.lines.lock().entry(name.to_owned()).or_default().clone()
    }

    /// Cuts somebody's line, or mends it.
    pub fn cut_line(&self, name: &str, is_cut: bool) {
        let new = Line { is_cut, ..Line::default() };
        if let Some(old) = self.lines.lock().insert(name.to_owned(), new) {
            old.broken.cancel();
        }
    }

    /// Makes all lines as good as new.
    pub fn heal(&self) {
        self.net.heal();
        self.mend_disks();
        self.set_unreliable(0, Duration::ZERO);
        SERVERS.into_iter().for_each(|member| self.fill_disk(member, false));
        let cut: Vec<String> =
            self.lines.lock().iter().filter(|(_, line)| line.is_cut).map(|(name, _)| name.clone()).collect();
        cut.iter().for_each(|name| self.cut_line(name, false));
    }

    /// The address of a pod.
    pub fn address(&self, uid: &str) -> String {
        let mut all = self.addresses.lock();
        let next = all.len() + 1;
        all.entry(uid.to_owned()).or_insert_with(|| format!("10.244.{}.{}", next / 250, next % 250 + 1)).clone()
    }
}

/// What every API server is told.
fn config(member: MemberId) -> Config {
    Config {
        external_url: format!("https://192.0.2.{}:6443", 200 + member),
        token_key: include_str!("../../../apiserver/tests/token.key").to_owned(),
        ..Config::default()
    }
}
