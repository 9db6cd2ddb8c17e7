//! Playing seeds: on all processors, each in a process of its own, until enough has been seen; and how to play one again.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::process::Command;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::time::ClockId;
use serde::{Deserialize, Serialize};

use crate::plants::Plant;
use crate::{apart, clock, cluster, group};

/// What is played.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scene {
    /// Three members of a keyspace.
    Group,
    /// Three servers with nodes.
    Cluster,
}

/// What came of a world.
#[derive(Default, Serialize, Deserialize)]
pub struct Played {
    /// What must not be.
    pub wrong: Vec<String>,
    /// How often anything was judged: what is never judged proves nothing.
    pub judged: BTreeMap<String, u64>,
    /// The same for the same world: a fingerprint of everything that was heard.
    pub print: u64,
    /// How long it was, by its own clock.
    pub lived: Duration,
    /// What it cost.
    pub cpu: Duration,
}

impl fmt::Display for Played {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Played { wrong, print, lived, cpu, .. } = self;
        write!(f, "lived {lived:.1?}, cpu {cpu:.2?}, {} things are wrong, print {print:016x}", wrong.len())
    }
}

impl Scene {
    /// The test that plays it.
    pub fn test(self) -> &'static str {
        match self {
            Scene::Group => "whatever_happens_to_a_group_it_keeps_its_promises",
            Scene::Cluster => "whatever_happens_to_a_cluster_it_keeps_its_promises_and_becomes_well",
        }
    }

    /// Plays one world.
    pub fn play(self, seed: u64, plant: Plant) -> Played {
        // Before the process is copied: no copy has to, and all are copies of the same.
        cluster::founded();
        let world = || {
            show_logs();
            let played = clock::world(seed, async || {
                let begun = tokio::time::Instant::now();
                let mut played = match self {
                    Scene::Group => group::play(seed, plant).await,
                    Scene::Cluster => cluster::play(seed, plant).await,
                };
                played.lived = begun.elapsed();
                played
            });
            let cpu = rustix::time::clock_gettime(ClockId::ProcessCPUTime);
            let mut played = played.unwrap_or_else(|wrong| Played { wrong, ..Played::default() });
            played.cpu = Duration::new(cpu.tv_sec.unsigned_abs(), cpu.tv_nsec.unsigned_abs() as u32);
            let helpers = clock::HELPERS.load(Ordering::Relaxed);
            if helpers > 0 {
                played.wrong.push(format!("{helpers} threads besides the world's own: a seed may not repeat itself"));
            }
            played
        };
        apart::apart(world).unwrap_or_else(|why| Played { wrong: vec![why], ..Played::default() })
    }

    /// Plays `seeds`, or those that the environment chooses. None has anything wrong, and among all of them each of `judged` was
    /// looked at.
    pub fn must_hold(self, seeds: u64, judged: &[&str]) {
        let one = chosen("CORACLE_SEED");
        let seeds = one.map_or(0..chosen("CORACLE_SEEDS").unwrap_or(seeds), |seed| seed..seed + 1);
        let (failure, all) = (Mutex::new(None), Mutex::new(BTreeMap::<_, u64>::new()));
        self.play_all(seeds, Plant::Nothing, |seed, played| {
            played.judged.iter().for_each(|(what, count)| *all.lock().entry(what.clone()).or_default() += count);
            if played.wrong.is_empty() {
                return false;
            }
            let again = self.again(seed);
            failure.lock().get_or_insert_with(|| format!("{}\nagain: {again}", played.wrong.join("\n")));
            true
        });
        if let Some(failure) = failure.into_inner() {
            panic!("{failure}");
        }
        let all = all.into_inner();
        println!("judged: {all:?}");
        for what in judged {
            assert!(one.is_some() || all.contains_key(*what), "{what} was never judged: {all:?}");
        }
    }

    /// Plays worlds in which `plant` is, until one shows one of its `signs`, which one of `seeds` must. Where the environment says how
    /// many, plays so many and counts.
    pub fn finds(self, plant: Plant, seeds: Range<u64>, signs: &[&str]) {
        let counts = chosen("CORACLE_SEEDS");
        let found = Mutex::new(BTreeMap::new());
        let played = AtomicU64::new(0);
        self.play_all(counts.map_or(seeds, |count| 0..count), plant, |seed, mut of| {
            played.fetch_add(1, Ordering::Relaxed);
            let sign = of.wrong.iter().position(|what| signs.iter().any(|sign| what.contains(sign)));
            if let Some(at) = sign {
                found.lock().insert(seed, of.wrong.swap_remove(at));
            } else if !of.wrong.is_empty() {
                println!("{plant:?} {seed}: no sign of it, but: {}", of.wrong[0]);
            }
            sign.is_some() && counts.is_none()
        });
        let (found, played) = (found.into_inner(), played.into_inner());
        println!("{self:?}: {plant:?} shows in {} of {played} worlds", found.len());
        let Some((seed, what)) = found.first_key_value() else {
            panic!("{plant:?} was not found in {played} worlds");
        };
        println!("{plant:?} {seed}: {what}");
    }

    /// Plays a seed in this process' copy, and in a process that plays nothing else: they are the same to the letter.
    pub fn repeats(self, seed: u64) {
        let here = self.play(seed, Plant::Nothing);
        assert_eq!(here.wrong, Vec::<String>::new());
        let mut there = Command::new(std::env::current_exe().expect("this program"));
        there.args(["--exact", self.test(), "--nocapture"]).env("CORACLE_SEED", seed.to_string());
        let there = there.output().expect("this program runs");
        let said = String::from_utf8_lossy(&there.stdout);
        let prints: Vec<&str> = said.lines().filter_map(|line| Some(line.split_once("print ")?.1)).collect();
        assert_eq!(prints, [format!("{:016x}", here.print)], "{here}\n{said}");
    }

    /// Plays worlds until `enough` has been seen.
    fn play_all(self, seeds: Range<u64>, plant: Plant, enough: impl Fn(u64, Played) -> bool + Sync) {
        let (next, done, begun) = (AtomicU64::new(seeds.start), AtomicBool::new(false), Instant::now());
        let spent = Mutex::new((0, Duration::ZERO, Duration::ZERO));
        std::thread::scope(|scope| {
            for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
                scope.spawn(|| {
                    loop {
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        if seed >= seeds.end || done.load(Ordering::Relaxed) {
                            return;
                        }
                        let played = self.play(seed, plant);
                        println!("{self:?} {plant:?} {seed}: {played}");
                        let mut spent = spent.lock();
                        *spent = (spent.0 + 1, spent.1 + played.cpu, spent.2.max(played.cpu));
                        drop(spent);
                        if enough(seed, played) {
                            done.store(true, Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        let (worlds, cpu, most) = spent.into_inner();
        println!("{worlds} worlds took {:.1?}, cpu {cpu:.1?}, one {most:.2?} at most", begun.elapsed());
    }

    /// The command that plays a seed again.
    fn again(self, seed: u64) -> String {
        format!("CORACLE_SEED={seed} cargo test --locked -p coracle-simulation {} -- --nocapture", self.test())
    }
}

/// Shows what the product logs, in the world's own time, when the environment asks for it (`CORACLE_LOG=debug`).
fn show_logs() {
    static ONCE: Once = Once::new();
    if let Ok(filter) = std::env::var("CORACLE_LOG") {
        let log = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(std::io::stderr);
        ONCE.call_once(|| log.init());
    }
}

/// A number of the environment.
fn chosen(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|number| number.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}
