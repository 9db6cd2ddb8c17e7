//! The cluster's own OCI registry: what `coracle push`, oras, wkg and docker push to, and nodes pull from.
//!
//! It speaks the OCI distribution specification 1.1 and keeps everything as files, so that a backup is a copy. A blob is
//! received into a file of its own while it is hashed, and becomes a blob by being renamed after its digest was found
//! right and it is on disk: what is there is whole. Contents stream; only manifests are ever in memory.
//!
//! ```text
//! uploads/UUID                                       being received; emptied at start
//! blobs/sha256/ab/abcd…                              contents, manifests among them, by digest
//! repositories/NAME/_layers/HEX                      the blob belongs to this repository
//! repositories/NAME/_manifests/revisions/HEX         the manifest does; holds its media type
//! repositories/NAME/_manifests/tags/TAG              holds a digest
//! repositories/NAME/_referrers/SUBJECT/HEX           the manifest HEX refers to SUBJECT
//! ```
//!
//! No part of a repository's name begins with `_`, so nothing collides. Who may push and pull is not decided here: the
//! caller puts the router behind its own authentication.

mod api;
mod blob;
mod error;
mod manifest;
mod name;
mod pushes;
mod store;
mod upload;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

pub use api::router;
pub use pushes::{Push, State};

use crate::name::{Digest, Name, Reference};
use crate::pushes::Pushes;
use crate::store::Store;
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

/// Bytes of manifests that are received or written down at a time.
const MANIFESTS_BYTES_MAX: usize = 64 << 20;
/// Changes that wait for their turn on threads that block; more wait without one. One at a time goes on.
const CHANGES_MAX: usize = 2;
/// Searches through manifests at a time, on threads that others need as well; more wait without one.
const SEARCHES_MAX: usize = 2;

pub(crate) struct Inner {
    pub manifests: Arc<Semaphore>,
    changes: Arc<Semaphore>,
    searches: Arc<Semaphore>,
    pub config: Config,
    pub store: Store,
    pub uploads: Uploads,
    pub pushes: Pushes,
}

impl Registry {
    /// Opens the registry in `config.dir`; uploads that were under way are gone.
    pub fn open(config: Config) -> Result<Registry, OpenError> {
        let failed = |source| OpenError { path: config.dir.clone(), source };
        let store = Store::open(&config.dir, config.free_min).map_err(failed)?;
        let uploads = Uploads::open(config.dir.join("uploads"), &config).map_err(failed)?;
        let [manifests, changes, searches] =
            [MANIFESTS_BYTES_MAX, CHANGES_MAX, SEARCHES_MAX].map(|places| Arc::new(Semaphore::new(places)));
        let pushes = Pushes::default();
        Ok(Registry(Arc::new(Inner { manifests, changes, searches, config, store, uploads, pushes })))
    }

    /// The digest that a tag of the repository `name` stands for, or `None` when there is no such manifest. A reference
    /// that is a digest already is answered with itself if it is there.
    pub async fn resolve(&self, name: &str, reference: &str) -> io::Result<Option<String>> {
        let (Ok(name), Ok(reference)) = (name.parse::<Name>(), reference.parse::<Reference>()) else { return Ok(None) };
        let found = self.blocking(move |inner| inner.store.find_manifest(&name, &reference)).await?;
        Ok(found.map(|manifest| manifest.digest.to_string()))
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

    /// Removes blobs that no manifest names and that nobody touched for `age`: what a push sent that was never finished,
    /// and what deleted manifests left. Uploads that nobody goes on with go, too.
    pub async fn collect_garbage(&self, age: Duration) -> io::Result<Collected> {
        let collect = move |inner: &Inner| {
            inner.uploads.drop_idle();
            inner.store.collect_garbage(age)
        };
        self.changing(collect).await
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

    pub(crate) fn store_of(&self, digest: &Digest) -> PathBuf {
        self.0.store.blob_path(digest)
    }
}
