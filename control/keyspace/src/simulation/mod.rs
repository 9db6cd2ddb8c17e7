//! The keyspace on a disk that lies: power cuts at any step, torn and lost writes, wrong bits, missing files, no space,
//! failed syncs. Everything is chosen by a seed; a failure says which, and the command that repeats it.

mod damage;
mod disk;
mod group;
mod histories;
mod keyspaces;

pub use disk::SimDisk;

use std::time::Duration;

use crate::host::Sizes;

/// How long anything may take that comes by itself.
const LIMIT: Duration = Duration::from_secs(30);

/// Bounds so small that a short history comes past all of them.
pub const SIZES: Sizes = Sizes { segment: 32 << 10, rotate: 24 << 10, cut: 32 << 10, full: 96 << 10 };

/// Runs `history` for each seed, or for `CORACLE_SEED` alone.
fn seeds(count: u64, test: &str, history: impl Fn(u64) -> Result<(), String>) {
    let chosen = std::env::var("CORACLE_SEED").ok().map(|seed| seed.parse().expect("CORACLE_SEED is a number"));
    let seeds = chosen.map_or(0..count, |seed| seed..seed + 1);
    for seed in seeds {
        if let Err(why) = history(seed) {
            panic!("{why}\nagain: CORACLE_SEED={seed} cargo test -p coracle-keyspace --lib {test} -- --nocapture");
        }
    }
}

/// Tries until `done` gives something, which it must within [`LIMIT`].
pub async fn until<T>(what: &str, mut done: impl AsyncFnMut() -> Option<T>) -> T {
    let tries = async {
        loop {
            if let Some(done) = done().await {
                return done;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LIMIT, tries).await.unwrap_or_else(|_| panic!("{what}: not within {LIMIT:?}"))
}
