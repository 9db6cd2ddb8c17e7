//! Whose turn it is to download and to unpack: nobody's images hold up those of others, however many they are and however slowly
//! their registry gives them.
//!
//! ```text
//!  download:  so many of one owner from one registry ─► so many of one owner ─► so many in all
//!             so many of one owner ───────────────────► so many from the cluster's own registry, which are nobody else's
//!  unpack:    one of one owner ───────────────────────► so many in all
//! ```
//!
//! Turns are taken in this order, so within each of the two nobody who holds a place of all waits for one of his own. A download
//! keeps its places while it waits to unpack: so archives on the disk are bounded.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Downloads at the same time of one owner from one registry; more only share the same wire.
const DOWNLOADS_PER_REGISTRY_MAX: usize = 4;
/// Downloads at the same time of one owner.
const DOWNLOADS_PER_OWNER_MAX: usize = 8;
/// Downloads at the same time in all.
const DOWNLOADS_MAX: usize = 64;
/// Downloads at the same time from the cluster's own registry, beside those.
const DOWNLOADS_EMBEDDED_MAX: usize = 16;
/// Archives that are unpacked at the same time: each takes a CPU.
const UNPACKING_MAX: usize = 2;

/// What somebody has a number of.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Of {
    Owner(String),
    Registry(String, String),
    Unpacking(String),
}

/// All turns.
#[derive(Debug)]
pub struct Turns {
    downloads: Arc<Semaphore>,
    embedded: Arc<Semaphore>,
    unpacking: Arc<Semaphore>,
    own: Mutex<HashMap<Of, Arc<Semaphore>>>,
}

/// A turn, over when this is dropped.
#[derive(Debug)]
pub struct Turn {
    _places: Vec<OwnedSemaphorePermit>,
}

impl Turns {
    /// Nobody has one.
    pub fn new() -> Self {
        let places = |count| Arc::new(Semaphore::new(count));
        Self {
            downloads: places(DOWNLOADS_MAX),
            embedded: places(DOWNLOADS_EMBEDDED_MAX),
            unpacking: places(UNPACKING_MAX),
            own: Mutex::default(),
        }
    }

    /// A turn to download from a registry, which may be the cluster's own.
    pub async fn download(&self, owner: &str, registry: &str, is_embedded: bool) -> Turn {
        let here = self.own(Of::Registry(owner.to_owned(), registry.to_owned()), DOWNLOADS_PER_REGISTRY_MAX);
        match is_embedded {
            true => turn([here, self.embedded.clone()]).await,
            false => {
                let all = self.own(Of::Owner(owner.to_owned()), DOWNLOADS_PER_OWNER_MAX);
                turn([here, all, self.downloads.clone()]).await
            }
        }
    }

    /// A turn to unpack.
    pub async fn unpack(&self, owner: &str) -> Turn {
        turn([self.own(Of::Unpacking(owner.to_owned()), 1), self.unpacking.clone()]).await
    }

    fn own(&self, of: Of, count: usize) -> Arc<Semaphore> {
        let mut own = self.own.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        // Who has a place, or waits for one, holds it as well.
        own.retain(|_, places| Arc::strong_count(places) > 1);
        own.entry(of).or_insert_with(|| Arc::new(Semaphore::new(count))).clone()
    }
}

async fn turn(places: impl IntoIterator<Item = Arc<Semaphore>>) -> Turn {
    let mut taken = Vec::new();
    for place in places {
        taken.push(place.acquire_owned().await.expect("the semaphore is never closed"));
    }
    Turn { _places: taken }
}
