//! The cluster's own OCI registry: what `coracle push`, oras, wkg and docker push to, and nodes pull from.
//!
//! It speaks the OCI distribution specification 1.1. A blob is received into a file of its own while it is hashed, and becomes a
//! blob by being renamed after its digest was found right and it is on disk: what is there is whole. Contents stream; only
//! manifests are ever in memory.
//!
//! ```text
//! uploads/UUID                 being received; emptied at start
//! blobs/sha256/ab/abcd…        contents, manifests among them, by digest
//! damaged/abcd…                what is not what its digest says any more, until it came again or nothing names it
//! ```
//!
//! Which repository has what, and what a tag stands for, is in a [`Catalog`] that all servers of a group share; contents are on each
//! one's disk, and a push is answered when a majority of the [`Replicas`] holds it. Both are lent by whoever runs the registry. Who may
//! push and pull is not decided here either: the caller puts the router behind its own authentication. An upload goes on where
//! it was begun.

mod api;
mod blob;
mod catalog;
mod error;
mod manifest;
#[cfg(test)]
#[path = "../tests/all/memory.rs"]
mod memory;
mod name;
mod pushes;
mod replicas;
mod scrub;
mod sightings;
mod store;
mod unasked;
mod upload;

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use api::router;
pub use catalog::{Catalog, CatalogError, Change, Entry, Only, To};
pub use name::{Name, NameError, Reference};
pub use pushes::{Push, State};
pub use replicas::{Caller, Electorate, Replica, Replicas, peers_router};
pub use scrub::Round;
pub use unasked::local_router;

use crate::catalog::Names;
use crate::name::Digest;
use crate::pushes::Pushes;
use crate::replicas::{Fetches, Places};
use crate::store::{Found, Store};
use crate::upload::Uploads;

/// What a registry needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where everything is kept; made when it is not there.
    pub dir: PathBuf,
    /// Larger blobs are refused.
    pub blob_bytes_max: u64,
    /// Larger manifests are refused.
    pub manifest_bytes_max: usize,
    /// Uploads at a time, at most half of them to repositories with one first part of their names; more are refused until one is
    /// done, or nobody has sent to one for half a minute.
    pub uploads_max: usize,
    /// An upload that nobody sends to for this long may be dropped.
    pub upload_idle_max: Duration,
    /// Bytes that uploads and manifests leave free on the disk: they belong to the log of the control plane.
    pub free_min: u64,
}

impl Config {
    /// The defaults: blobs of 2 GiB, manifests of 4 MiB, 64 uploads.
    pub fn new(dir: impl Into<PathBuf>) -> Config {
        Config {
            dir: dir.into(),
            blob_bytes_max: 2 << 30,
            manifest_bytes_max: 4 << 20,
            uploads_max: 64,
            upload_idle_max: Duration::from_secs(600),
            free_min: 64 << 20,
        }
    }
}

/// Why a registry cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("use {path}")]
pub struct OpenError {
    /// The directory.
    pub path: PathBuf,
    /// Why.
    #[source]
    pub source: io::Error,
}

/// What [`Registry::collect_garbage`] removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Blobs that no manifest named.
    pub blobs: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// The registry; clones are the same one.
#[derive(Clone)]
pub struct Registry(Arc<Inner>);

/// What is named at one moment, by which repository.
#[derive(Clone, Debug, Default)]
pub struct Named(Vec<(String, Digest)>);

impl Named {
    /// What of it is not among the contents that are `there`, by their digests.
    pub fn lacking(&self, there: impl Fn(&str) -> bool) -> Lacking {
        let mut lacking = Lacking::default();
        for (name, digest) in self.0.iter().filter(|(_, digest)| !there(&digest.to_string())) {
            lacking.count += 1;
            if lacking.first.len() < LACKING_TOLD_MAX {
                lacking.first.push(format!("{name} ({digest})"));
            }
        }
        lacking
    }
}

/// What is named and not there.
#[derive(Clone, Debug, Default)]
pub struct Lacking {
    /// The first thousand, as repositories and digests in words.
    pub first: Vec<String>,
    /// How many there are.
    pub count: u64,
}

const LACKING_TOLD_MAX: usize = 1_000;
/// Images that an alarm names.
const LOST_TOLD_MAX: usize = 5;

/// As long as this lives no content goes ([`Registry::keep_contents`]).
pub struct Kept(Registry);

impl Drop for Kept {
    fn drop(&mut self) {
        self.0.0.store.let_go();
    }
}

/// Bytes of manifests that are received or written down at a time.
const MANIFESTS_BYTES_MAX: usize = 64 << 20;
/// Changes that wait for their turn on threads that block; more wait without one. One at a time goes on.
const CHANGES_MAX: usize = 2;
/// Searches through manifests at a time, on threads that others need as well; more wait without one.
const SEARCHES_MAX: usize = 2;
/// Contents that are read to see whether they are sound, at a time; more wait without a thread.
const CHECKS_MAX: usize = 2;
/// A content of so many bytes is read in some milliseconds, and waits for no larger one.
const SMALL_BYTES: u64 = 4 << 20;
/// Those that are read at a time.
const SMALL_CHECKS_MAX: usize = 4;
/// For so long one that was sound is taken for it.
const SOUND_FOR: Duration = Duration::from_secs(600);
/// For so long one that the disk did not give is not asked for again: a bad sector takes seconds, and what is large is read up to it.
const UNREAD_FOR: Duration = Duration::from_secs(600);
/// Contents of which it is remembered that they were sound.
const SOUND_MAX: usize = 10_000;

pub(crate) struct Inner {
    pub manifests: Arc<Semaphore>,
    changes: Arc<Semaphore>,
    searches: Arc<Semaphore>,
    checks: Arc<Semaphore>,
    small_checks: Arc<Semaphore>,
    /// Contents that were sound, and when.
    sound: Mutex<HashMap<Digest, Instant>>,
    pub config: Config,
    pub names: Names,
    pub replicas: Arc<dyn Replicas>,
    pub store: Store,
    pub uploads: Uploads,
    pub pushes: Pushes,
    pub fetches: Fetches,
    pub places: Places,
    /// Fetches, which outlive those who wait for them, and what ends them.
    pub tasks: TaskTracker,
    pub stop: CancellationToken,
}

impl Inner {
    fn was_unread(&self, digest: &Digest) -> bool {
        self.store.unread_since(digest).is_some_and(|passed| passed < UNREAD_FOR)
    }
}

impl Registry {
    /// Opens the registry in `config.dir`, whose names are in `catalog` and whose contents are on others, too; uploads that were under
    /// way are gone.
    pub fn open(config: Config, catalog: Arc<dyn Catalog>, replicas: Arc<dyn Replicas>) -> Result<Registry, OpenError> {
        let failed = |source| OpenError { path: config.dir.clone(), source };
        let store = Store::open(&config.dir, config.free_min).map_err(failed)?;
        let names = config.dir.join("repositories");
        if names.exists() {
            let path = names.display();
            tracing::warn!(%path, "an earlier build kept the names of images here, which are read no more: push those images again, and delete it");
        }
        let uploads = Uploads::open(config.dir.join("uploads"), &config).map_err(failed)?;
        let [manifests, changes, searches, checks, small_checks] =
            [MANIFESTS_BYTES_MAX, CHANGES_MAX, SEARCHES_MAX, CHECKS_MAX, SMALL_CHECKS_MAX]
                .map(|places| Arc::new(Semaphore::new(places)));
        Ok(Registry(Arc::new(Inner {
            manifests,
            changes,
            searches,
            checks,
            small_checks,
            sound: Mutex::default(),
            config,
            names: Names::new(catalog),
            replicas,
            store,
            uploads,
            pushes: Pushes::default(),
            fetches: Fetches::default(),
            places: Places::default(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        })))
    }

    /// Waits for the next image that was pushed under a tag. From the first call on they are remembered; before, and when
    /// nobody asks, there is nothing to prepare. For one caller.
    pub async fn next_push(&self) -> Push {
        self.0.pushes.next().await
    }

    /// Remembers how far the preparation of a pushed image is.
    pub fn tell(&self, manifest_digest: &str, state: State) {
        self.0.pushes.tell(manifest_digest, state);
    }

    /// How far the preparation of a pushed image is; `None` for one that nobody prepares.
    pub fn preparation(&self, manifest_digest: &str) -> Option<State> {
        self.0.pushes.state(manifest_digest)
    }

    /// Takes blobs that no manifest names and that nobody touched for `age`, which this process has seen, out of the catalog, and removes what nothing names
    /// from this disk: what a push sent that was never finished, and what deleted manifests left. Every server does so, and none
    /// brings back what another one has removed, for only what is named is fetched. Without everything that was ever named nothing
    /// is removed. Uploads that nobody goes on with go, too.
    pub async fn collect_garbage(&self, age: Duration) -> io::Result<Collected> {
        self.0.uploads.drop_idle();
        self.0.names.drop_loose(age).await.map_err(io::Error::other)?;
        let collect = move |inner: &Inner| {
            let named = inner.names.contents().map_err(io::Error::other)?;
            inner.store.collect_garbage(&named.into_iter().map(|(digest, _)| digest).collect(), age)
        };
        self.changing(collect).await
    }

    /// Has every content that is on this disk stay there until what this gives is dropped, for whoever reads all that was named at
    /// one moment.
    pub async fn keep_contents(&self) -> io::Result<Kept> {
        let registry = self.clone();
        let keep = move |inner: &Inner| {
            inner.store.keep();
            Ok(Kept(registry))
        };
        self.blocking(keep).await
    }

    /// Reads every content on this disk. What is not what its digest says is set aside, and what cannot be read is replaced by what another
    /// server has; an error says what is not to be had so.
    pub async fn check_contents(&self) -> io::Result<()> {
        let mut unread = HashSet::new();
        for digest in self.blocking(|inner| inner.store.all()).await? {
            let asked = digest.clone();
            let found = self.in_turn(&self.0.checks, move |inner| inner.store.look(&asked)).await;
            if matches!(found, Ok(Some(Found::Unread)) | Err(_)) {
                unread.insert(digest);
            }
        }
        match self.replace(&unread).await?.into_iter().next() {
            Some((digest, why)) => Err(io::Error::other(format!("{digest} cannot be read here: {why}"))),
            None => Ok(()),
        }
    }

    /// What an operator should know: contents that this disk has damaged since the start, and whether they are here again.
    pub fn alarms(&self) -> Vec<String> {
        let damage = self.0.store.damage();
        let mut alarms = Vec::new();
        if !damage.unread.is_empty() {
            alarms.push(format!(
                "the disk of this server did not give {} contents of images when they were read: look at it; they stay, and come from \
                 another server where one has them",
                damage.unread.len()
            ));
        }
        if damage.found == 0 {
            return alarms;
        }
        alarms.push(format!(
            "the disk of this server has damaged {} contents of images since the server was started: look at it, and replace the server \
             before it damages more",
            damage.found
        ));
        let lost =
            self.0.names.named().map(|named| named.into_iter().filter(|(_, digest)| damage.missing.contains(digest)));
        match lost.map(|lost| lost.map(|(name, _)| name).collect::<std::collections::BTreeSet<_>>()) {
            Ok(lost) if lost.is_empty() => (),
            Ok(lost) => {
                let first: Vec<&str> = lost.iter().take(LOST_TOLD_MAX).map(String::as_str).collect();
                alarms.push(format!(
                    "contents of {} images are damaged here, and no server has given them yet: push them again ({}{})",
                    lost.len(),
                    first.join(", "),
                    if lost.len() > LOST_TOLD_MAX { ", …" } else { "" }
                ));
            }
            Err(error) => alarms.push(format!("which images are damaged here cannot be read: {error}")),
        }
        alarms
    }

    /// What is named now.
    pub async fn named(&self) -> io::Result<Named> {
        self.blocking(|inner| inner.names.named().map(Named).map_err(io::Error::other)).await
    }

    /// Looks whether a content that is here is what its digest says ([`Store::look`]); one that was, or that the disk did not give, is
    /// not read again soon.
    pub(crate) async fn look(&self, digest: &Digest) -> io::Result<Option<Found>> {
        let (digest, asked) = (digest.clone(), digest.clone());
        let Some(size) = self.blocking(move |inner| inner.store.size(&asked)).await? else { return Ok(None) };
        if self.was_unread(&digest) {
            return Ok(Some(Found::Unread));
        }
        let turns = if size > SMALL_BYTES { &self.0.checks } else { &self.0.small_checks };
        let check = move |inner: &Inner| {
            // Whoever was before may have looked.
            if inner.was_unread(&digest) {
                return Ok(Some(Found::Unread));
            }
            let is_known = inner.sound.lock().get(&digest).is_some_and(|at| at.elapsed() < SOUND_FOR);
            if is_known && !inner.store.is_unread(&digest) {
                return Ok(inner.store.size(&digest)?.map(|_| Found::Sound));
            }
            let told = inner.store.look(&digest)?;
            if matches!(told, Some(Found::Sound)) {
                let mut sound = inner.sound.lock();
                if sound.len() >= SOUND_MAX {
                    sound.clear();
                }
                sound.insert(digest, Instant::now());
            }
            Ok(told)
        };
        self.in_turn(turns, check).await
    }

    /// Whether the disk did not give a content a short while ago.
    pub(crate) fn was_unread(&self, digest: &Digest) -> bool {
        self.0.was_unread(digest)
    }

    /// Does `work` on a thread that may block on the disk.
    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let inner = self.0.clone();
        tokio::task::spawn_blocking(move || work(&inner)).await.unwrap_or_else(|error| Err(io::Error::other(error)))
    }

    /// The same for work that takes its turn with others.
    pub(crate) async fn changing<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        self.in_turn(&self.0.changes, work).await
    }

    /// The same for work that reads much and changes nothing.
    pub(crate) async fn searching<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        self.in_turn(&self.0.searches, work).await
    }

    async fn in_turn<T: Send + 'static>(
        &self,
        turns: &Arc<Semaphore>,
        work: impl FnOnce(&Inner) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let turn = turns.clone().acquire_owned().await.map_err(io::Error::other)?;
        self.blocking(move |inner| {
            let _turn = turn;
            work(inner)
        })
        .await
    }

    pub(crate) fn inner(&self) -> &Inner {
        &self.0
    }
}
