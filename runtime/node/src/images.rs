//! From an image name to a component that can be started.
//!
//! The artifact store turns names into files, the engine files into components; both share concurrent work for the
//! same thing. Components used lately are held here, so that the next pod of the same image neither asks the disk nor
//! loads anything.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use coracle_artifact::{Artifact, Credential, PullError, PullPolicy, Store};
use coracle_engine::{Component, Engine, Phase};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Components held although no pod may use them, for the next pod of a rollout; the one used longest ago goes first.
const RECENT_MAX: usize = 32;
/// How long they are held: their code is mapped memory.
const RECENT_FOR: Duration = Duration::from_secs(30);

/// An image that can be started.
#[derive(Clone)]
pub struct Prepared {
    /// Where it came from.
    pub artifact: Artifact,
    /// The component.
    pub component: Component,
}

/// What somebody who waits for an image is told.
pub enum Progress<'a> {
    /// It is on disk, after so much time.
    Pulled(&'a Artifact, Duration),
    /// What its code waits for.
    Code(Phase),
}

/// Why an image cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// It could not be had.
    #[error(transparent)]
    Pull(#[from] PullError),
    /// It is no component that could run here.
    #[error("{image}: {source}")]
    Prepare {
        /// Its name.
        image: Arc<str>,
        /// Why.
        #[source]
        source: coracle_engine::Error,
    },
}

impl ImageError {
    /// The waiting reason of the container.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Pull(error) => error.reason(),
            Self::Prepare { .. } => "CreateContainerError",
        }
    }
}

/// Images of this node. Clones share everything.
#[derive(Clone)]
pub struct Images {
    store: Store,
    engine: Engine,
    recent: Arc<Mutex<VecDeque<Recent>>>,
    /// Rings when there is something to forget again.
    added: Arc<Notify>,
}

/// A digest with its component, and when it was last asked for.
type Recent = (Arc<str>, Component, Instant);

impl Images {
    /// Images of `store`, run by `engine`.
    pub fn new(store: Store, engine: Engine) -> Self {
        Self { store, engine, recent: Arc::default(), added: Arc::default() }
    }

    /// Whether the image is here under its name, for somebody with these credentials.
    pub fn is_present(&self, image: &str, credentials: &[Credential]) -> bool {
        self.store.is_accessible(image, credentials)
    }

    /// The image, fetched as the policy says and compiled if that was never done, which is told. An `owner` has turns of its own
    /// to have images fetched and compiled.
    pub async fn prepare(
        &self,
        owner: &str,
        image: &str,
        policy: PullPolicy,
        credentials: &[Credential],
        tell: &(dyn Fn(Progress<'_>) + Sync),
    ) -> Result<Prepared, ImageError> {
        let begun = Instant::now();
        let mut artifact = self.store.pull(owner, image, policy, credentials).await?;
        if self.engine.reads(&artifact.digest) && !self.store.is_sound(owner, &artifact).await {
            artifact = self.store.pull(owner, image, policy, credentials).await?;
        }
        let pulled_in = begun.elapsed();
        tell(Progress::Pulled(&artifact, pulled_in));
        if let Some(component) = self.recent(&artifact.digest) {
            return Ok(Prepared { artifact, component });
        }
        let told = |phase| tell(Progress::Code(phase));
        let component = self.engine.prepare_telling(owner, &artifact.digest, &artifact.path, &told).await;
        let component =
            component.map_err(|source| ImageError::Prepare { image: artifact.reference.clone(), source })?;
        let mut recent = self.recent.lock();
        // Others may have waited for the same.
        if !recent.iter().any(|(have, ..)| *have == artifact.digest) {
            recent.push_back((artifact.digest.clone(), component.clone(), Instant::now()));
        }
        self.added.notify_one();
        if recent.len() > RECENT_MAX {
            recent.pop_front();
        }
        drop(recent);
        Ok(Prepared { artifact, component })
    }

    /// Lets go of components that no pod has asked for in a while, until shutdown.
    pub async fn forget_unused(self, shutdown: CancellationToken) {
        loop {
            let oldest = {
                let mut recent = self.recent.lock();
                recent.retain(|(.., at)| at.elapsed() < RECENT_FOR);
                recent.iter().map(|(.., at)| *at).min()
            };
            let wait = async {
                match oldest {
                    Some(at) => tokio::time::sleep_until(at + RECENT_FOR).await,
                    None => self.added.notified().await,
                }
            };
            // Waiting is all that is cut here.
            tokio::select! {
                () = wait => {}
                () = shutdown.cancelled() => return,
            }
        }
    }

    /// Images by name for the node's status: name, manifest digest, bytes.
    pub fn list(&self) -> Vec<(String, String, u64)> {
        self.store.images()
    }

    /// Deletes so many bytes of images that no pod holds and that have none of these names, as far as there are as many;
    /// returns how many.
    pub fn free<'a>(&self, bytes: u64, kept: impl Iterator<Item = &'a str>) -> u64 {
        self.store.free(bytes, kept)
    }

    /// Bytes of all images.
    pub fn total_bytes(&self) -> u64 {
        self.store.total_bytes()
    }

    fn recent(&self, digest: &str) -> Option<Component> {
        let mut recent = self.recent.lock();
        let at = recent.iter().position(|(have, ..)| **have == *digest)?;
        let mut found = recent.remove(at)?;
        found.2 = Instant::now();
        let component = found.1.clone();
        recent.push_back(found);
        Some(component)
    }
}
