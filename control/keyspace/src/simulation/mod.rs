//! The keyspace on machines that fail: power cuts at any step, torn and lost writes, wrong bits, missing files, no space,
//! failed syncs; and a network that loses, delays, repeats and cuts off. Everything is chosen by a seed; a failure says which,
//! and the command that repeats it.
//!
//! One member's files are played here (`histories.rs`); groups and whole clusters are in `control/simulation`, for which disk and network are
//! there as the feature `simulation`, which no product has.

#[cfg(test)]
mod damage;
mod disk;
#[cfg(test)]
mod histories;
#[cfg(test)]
mod keyspaces;
mod network;

pub use disk::SimDisk;
pub use network::{SimNet, Tamper};

pub use crate::host::{Sizes, Timing};

/// Has this thread, and no other, do all that members on it do: then a seed repeats itself.
pub fn alone() {
    crate::host::IS_ALONE.set(true);
}

/// Bounds so small that a short history comes past all of them.
pub const SIZES: Sizes = Sizes { segment: 32 << 10, rotate: 24 << 10, cut: 32 << 10, full: 96 << 10 };

/// How long anything may take that comes by itself.
#[cfg(test)]
const LIMIT: std::time::Duration = std::time::Duration::from_secs(30);

/// Runs `history` for each seed, or for `CORACLE_SEED` alone.
#[cfg(test)]
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
#[cfg(test)]
pub(crate) async fn until<T>(what: &str, mut done: impl AsyncFnMut() -> Option<T>) -> T {
    let tries = async {
        loop {
            if let Some(done) = done().await {
                return done;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LIMIT, tries).await.unwrap_or_else(|_| panic!("{what}: not within {LIMIT:?}"))
}
