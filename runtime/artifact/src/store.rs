//! The door of the crate: [`Store::pull`].

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::blobs::{Blob, Blobs, InsertError};
use crate::credential::Auth;
use crate::error::shortened;
use crate::layout::{self, Plan};
use crate::name::ImageName;
use crate::registry::{Check, Registries, Remote, Transport};
use crate::turns::{Turn, Turns};
use crate::{Credential, PullError, unpack};

/// Longest time that a pull may take, with its wait for the others.
const PULL_TIMEOUT: Duration = Duration::from_secs(900);
/// A download may take this long for its manifest, and in each such time [`DOWNLOAD_BYTES_MIN`] have to come: one that is slower
/// has stalled, however much there is to come.
const DOWNLOAD_TIMEOUT: Duration = Duration::from_secs(if cfg!(test) { 3 } else { 60 });
const DOWNLOAD_BYTES_MIN: u64 = 1 << 20;
/// How much unpacking stands back, as for `nice`.
const UNPACK_NICE: i32 = 10;
/// Names of one component that are remembered; the oldest goes first. Any number of tags may stand for the same.
const NAMES_MAX: usize = 64;
/// Ways in to one image that are remembered; the first goes when there are more.
const GRANTS_MAX: usize = 64;
/// A file is read in pieces of so many bytes.
const READ_BYTES: usize = 64 << 10;
/// How long the answer "this tag is that digest" may be shared by those who ask for it. Not longer than a slow
/// round trip, so nobody can tell it from one.
const RESOLVED_FOR: Duration = Duration::from_millis(50);
/// Shown to the embedded registry, which asks nobody who they are. Without one, oci-client would ask it before each request
/// whether it wants to know.
const EMBEDDED_TOKEN: &str = "node";
/// Indexes on the way from a name to an image: tools write one, mirrors put another before it.
const INDEX_DEPTH_MAX: usize = 4;
/// A config larger than this is no image config.
const CONFIG_BYTES_MAX: u64 = 4 << 20;

/// How images are found and kept.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where the images are kept.
    pub dir: PathBuf,
    /// `host:port` of the cluster's own registry, spoken to over plain http and asked first.
    pub embedded: Option<String>,
    /// Bound of the store; unused images are evicted beyond it.
    pub max_bytes: u64,
    /// Bytes of one component: a larger one could not be run.
    pub component_bytes_max: u64,
    /// Space that a download leaves free on the disk.
    pub min_free_bytes: u64,
    /// Private certificate authorities and plain-http registries.
    pub transport: Transport,
}

/// `imagePullPolicy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PullPolicy {
    /// The tag is resolved each time; what is here under its digest is not fetched again.
    Always,
    /// What is here under the name is used.
    IfNotPresent,
    /// Nothing is fetched.
    Never,
}

/// Whether a pull had to ask a registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// It was here under its name.
    Present,
    /// The registry was asked; the bytes were here already.
    Resolved,
    /// The bytes were downloaded.
    Downloaded,
}

/// A component on disk. While it is held, it is not evicted.
#[derive(Debug, Clone)]
pub struct Artifact {
    /// `sha256:…` of the component's bytes.
    pub digest: Arc<str>,
    /// `sha256:…` of the image's manifest.
    pub manifest_digest: Arc<str>,
    /// Image name with its tag made explicit.
    pub reference: Arc<str>,
    /// What a pod's status calls `imageID`: name and manifest digest.
    pub image_id: Arc<str>,
    /// The component's file.
    pub path: Arc<Path>,
    /// Its size in bytes.
    pub size: u64,
    /// What it took to have it.
    pub source: Source,
    blob: Blob,
}

/// Images on this machine. Clones share everything.
#[derive(Debug, Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: Config,
    blobs: Blobs,
    registries: Registries,
    turns: Turns,
    /// Bytes that downloads under way are about to take.
    promised: Mutex<u64>,
    names: PathBuf,
    /// Held while what is known of a name is written, so that the files are as new as what is known.
    writing: Arc<tokio::sync::Mutex<()>>,
    state: Mutex<State>,
}

/// Room on the disk for what a download has still to write.
struct Promised<'a> {
    all: &'a Mutex<u64>,
    left: u64,
}

impl Promised<'_> {
    /// So much is written: the disk itself says that it is taken.
    fn kept(&mut self, bytes: u64) {
        let bytes = bytes.min(self.left);
        self.left -= bytes;
        *locked(self.all) -= bytes;
    }
}

impl Drop for Promised<'_> {
    fn drop(&mut self) {
        *locked(self.all) -= self.left;
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

#[derive(Debug, Default)]
struct State {
    /// Canonical image name to what it was resolved to last.
    known: HashMap<String, Known>,
    /// Pulls under way or just finished.
    flights: HashMap<FlightKey, Flight>,
}

/// Image, credentials and owner.
type FlightKey = (String, [u8; 32], String);
type SharedPull = Shared<BoxFuture<'static, Result<Artifact, PullError>>>;

struct Flight {
    pull: SharedPull,
    since: Instant,
}

impl std::fmt::Debug for Flight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Flight").field("since", &self.since).finish_non_exhaustive()
    }
}

/// What a name was resolved to; one file each, so that a restart finds it again.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
struct Known {
    name: String,
    manifest: String,
    component: String,
    /// When it was first resolved to that, in milliseconds since 1970.
    #[serde(default)]
    since: u64,
    /// Who was given it. An image that was put here by other means (or by an older version) is everybody's, as under the kubelet's
    /// `NeverVerifyPreloadedImages`.
    #[serde(default)]
    access: Access,
}

/// Who may use an image that is here.
#[derive(Debug, Clone, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
enum Access {
    /// Its registry asks nobody.
    #[default]
    Anyone,
    /// Who shows one of these credentials (their hashes).
    Granted(Vec<String>),
}

impl Access {
    fn of(auth: &Auth, registry: &str) -> Self {
        match grant(auth, registry) {
            Some(grant) => Self::Granted(vec![grant]),
            None => Self::Anyone,
        }
    }

    /// With what somebody else was given.
    fn and(self, other: &Self) -> Self {
        match (self, other) {
            (Self::Granted(mut all), Self::Granted(more)) => {
                all.extend(more.iter().filter(|grant| !all.contains(grant)).cloned().collect::<Vec<_>>());
                all.truncate(GRANTS_MAX);
                Self::Granted(all)
            }
            _ => Self::Anyone,
        }
    }
}

/// A credential that a registry has accepted, without saying it. `None` for one that is none.
fn grant(auth: &Auth, registry: &str) -> Option<String> {
    let Auth::Basic(user, password) = auth else { return None };
    Some(format!("{:x}", Sha256::digest(format!("{registry}\0{user}\0{password}"))))
}

impl Store {
    /// Opens the store, creating its directory.
    pub fn new(config: Config) -> io::Result<Self> {
        let blobs = Blobs::open(&config.dir, config.max_bytes)?;
        let names = config.dir.join("names");
        fs::create_dir_all(&names)?;
        let mut known = HashMap::new();
        for file in fs::read_dir(&names)? {
            let path = file?.path();
            let bytes = match fs::read(&path) {
                Ok(bytes) => bytes,
                // It may be read at the next start; until then its name is resolved again.
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "the name of an image cannot be read and is kept");
                    continue;
                }
            };
            let read = serde_json::from_slice::<Known>(&bytes).ok();
            match read.filter(|read| blobs.contains(&read.component)) {
                Some(read) => drop(known.insert(read.name.clone(), read)),
                None => fs::remove_file(&path)?,
            }
        }
        let inner = Inner {
            registries: Registries::new(config.transport.clone()),
            turns: Turns::new(),
            promised: Mutex::default(),
            state: Mutex::new(State { known, flights: HashMap::new() }),
            config,
            blobs,
            names,
            writing: Arc::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Has the image on disk, fetching it as the policy says.
    ///
    /// Callers of one `owner` that ask for the same image with the same credentials at the same time share one pull, which goes
    /// on when one of them stops waiting. Owners have places of their own to download and to unpack.
    pub async fn pull(
        &self,
        owner: &str,
        image: &str,
        policy: PullPolicy,
        credentials: &[Credential],
    ) -> Result<Artifact, PullError> {
        let name = ImageName::parse(image)?;
        let canonical = name.canonical();
        if (policy != PullPolicy::Always || name.digest().is_some())
            && let Some(artifact) = self.inner.present(&name)
            && self.inner.is_granted(&name, credentials, |known| *known.manifest == *artifact.manifest_digest)
        {
            return Ok(artifact);
        }
        if policy == PullPolicy::Never {
            return Err(PullError::NotPresent { image: image.to_owned() });
        }
        let flight = self.flight((canonical, fingerprint(credentials), owner.to_owned()), name, credentials);
        flight.await
    }

    /// Whether the image is on disk under this name.
    pub fn is_present(&self, image: &str) -> bool {
        ImageName::parse(image).is_ok_and(|name| self.inner.present(&name).is_some())
    }

    /// Whether the image is on disk under this name, and was given to somebody with one of these credentials.
    pub fn is_accessible(&self, image: &str, credentials: &[Credential]) -> bool {
        ImageName::parse(image).is_ok_and(|name| {
            let found = self.inner.present(&name);
            found.is_some_and(|artifact| {
                self.inner.is_granted(&name, credentials, |known| *known.manifest == *artifact.manifest_digest)
            })
        })
    }

    /// Whether an image's file still is what its digest says, which is read whole for it; one that is not is forgotten, so that
    /// the next pull fetches it. What this very pull has downloaded was compared while it came. It takes a turn of the `owner`'s to
    /// unpack, and all who wait for one hear of the same.
    pub async fn is_sound(&self, owner: &str, artifact: &Artifact) -> bool {
        if artifact.source == Source::Downloaded {
            return true;
        }
        let asked = Instant::now();
        let turn = self.inner.turns.unpack(owner).await;
        if self.inner.blobs.is_seen_since(&artifact.digest, &artifact.blob, asked) {
            return true;
        }
        let (path, digest, begun) = (artifact.path.clone(), artifact.digest.clone(), Instant::now());
        let read = aside(move || {
            let _turn = turn;
            is_whole(&path, &digest)
        });
        match read.await.flatten() {
            Ok(true) => {
                self.inner.blobs.see(&artifact.digest, &artifact.blob, begun);
                return true;
            }
            // It may be read the next moment, or says so to whoever reads it next. Any other error lasts: the image would be said to be
            // here, and never run.
            Err(error) if is_want(&error) => return true,
            Ok(false) | Err(_) => {}
        }
        tracing::warn!(path = %artifact.path.display(), image = %artifact.reference, "an image is damaged and is fetched again");
        self.inner.blobs.forget(&artifact.digest, &artifact.blob);
        // Nor is it the answer to whoever asks now.
        self.inner.forget_answers();
        false
    }

    /// Images known by name: canonical name, manifest digest, size in bytes.
    pub fn images(&self) -> Vec<(String, String, u64)> {
        let known: Vec<Known> = self.inner.lock().known.values().cloned().collect();
        let size = |known: &Known| self.inner.blobs.size(&known.component);
        known.into_iter().filter_map(|known| size(&known).map(|size| (known.name, known.manifest, size))).collect()
    }

    /// Deletes so many bytes of images that nobody runs and that have none of these names, as far as there are as many;
    /// returns how many.
    pub fn free<'a>(&self, bytes: u64, kept: impl Iterator<Item = &'a str>) -> u64 {
        let names = kept.filter_map(|name| ImageName::parse(name).ok());
        let kept: HashSet<String> = {
            let state = self.inner.lock();
            names.filter_map(|name| state.known.get(&name.canonical()).map(|known| known.component.clone())).collect()
        };
        self.inner.free_unused(bytes, &kept)
    }

    /// Bytes of all images on disk.
    pub fn total_bytes(&self) -> u64 {
        self.inner.blobs.total_bytes()
    }

    fn flight(&self, key: FlightKey, name: ImageName, credentials: &[Credential]) -> SharedPull {
        let mut state = self.inner.lock();
        let now = Instant::now();
        if let Some(flight) = state.flights.get(&key) {
            // A finished answer is shared only for a moment, and a failure not at all.
            let fresh = match flight.pull.peek() {
                None => true,
                Some(result) => result.is_ok() && now.duration_since(flight.since) < RESOLVED_FOR,
            };
            if fresh {
                return flight.pull.clone();
            }
        }
        state
            .flights
            .retain(|_, flight| flight.pull.peek().is_none() || now.duration_since(flight.since) < RESOLVED_FOR);
        let inner = self.inner.clone();
        let credentials = credentials.to_vec();
        let (image, owner) = (name.canonical(), key.2.clone());
        let task = tokio::spawn(async move {
            let pulled = tokio::time::timeout(PULL_TIMEOUT, inner.fetch(&owner, name.clone(), &credentials)).await;
            pulled.unwrap_or_else(|_| {
                let message = format!("the pull has not ended within {} s", PULL_TIMEOUT.as_secs());
                Err(PullError::Unreachable { image: name.canonical(), message })
            })
        });
        let pull = async move {
            task.await.unwrap_or_else(|error| Err(PullError::io(&image, io::Error::other(error.to_string()))))
        };
        let pull = pull.boxed().shared();
        state.flights.insert(key, Flight { pull: pull.clone(), since: now });
        pull
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        locked(&self.state)
    }

    /// Forgets pulls that have ended: each answer holds its image.
    fn forget_answers(&self) {
        self.lock().flights.retain(|_, flight| flight.pull.peek().is_none());
    }

    /// Deletes so many bytes of what nobody holds and that is not `kept`, as far as there are as many; returns how many.
    fn free_unused(&self, bytes: u64, kept: &HashSet<String>) -> u64 {
        self.forget_answers();
        self.blobs.free(bytes, kept)
    }

    fn present(&self, name: &ImageName) -> Option<Artifact> {
        let known = {
            let state = self.lock();
            match name.digest() {
                // A digest names the same bytes whatever the name in front of it.
                Some(digest) => state.known.values().find(|known| known.manifest == digest).cloned()?,
                None => state.known.get(&name.canonical()).cloned()?,
            }
        };
        let blob = self.blobs.get(&known.component)?;
        Some(artifact(name, known.manifest, known.component, blob, Source::Present))
    }

    /// Whether what is here was given to somebody with one of these credentials.
    fn is_granted(&self, name: &ImageName, credentials: &[Credential], is_it: impl Fn(&Known) -> bool) -> bool {
        let state = self.lock();
        let mut known = state.known.values().filter(|known| is_it(known)).peekable();
        if known.peek().is_none() {
            return false;
        }
        let reference = name.remote();
        let shown: Vec<String> = Credential::for_image(credentials, &reference)
            .iter()
            .filter_map(|auth| grant(auth, reference.registry()))
            .collect();
        known.any(|known| match &known.access {
            Access::Anyone => true,
            Access::Granted(grants) => grants.iter().any(|grant| shown.contains(grant)),
        })
    }

    /// The component of a manifest, for whoever was given it. That a registry names a digest is not to have the image: who was not
    /// given it yet has to be shown all of it.
    fn given(&self, name: &ImageName, manifest: &str, credentials: &[Credential]) -> Option<(String, Blob)> {
        let component = {
            let state = self.lock();
            state.known.values().find(|known| known.manifest == manifest).map(|known| known.component.clone())?
        };
        let is_given = self.is_granted(name, credentials, |known| known.component == component);
        let blob = is_given.then(|| self.blobs.get(&component)).flatten()?;
        Some((component, blob))
    }

    async fn fetch(&self, owner: &str, name: ImageName, credentials: &[Credential]) -> Result<Artifact, PullError> {
        let image = name.canonical();
        let resolved = tokio::time::timeout(DOWNLOAD_TIMEOUT, self.resolve(&name, credentials)).await;
        let (remote, manifest) = resolved.unwrap_or_else(|_| {
            let message = format!("no registry has said what it is within {} s", DOWNLOAD_TIMEOUT.as_secs());
            Err(PullError::Unreachable { image: image.clone(), message })
        })?;
        let (auth, registry) = remote.auth();
        let access = Access::of(auth, registry);
        let is_embedded = self.config.embedded.as_deref() == Some(registry);
        let mut turn = None;
        for _ in 0..2 {
            if let Some((component, blob)) = self.given(&name, &manifest, credentials) {
                self.remember(&image, &manifest, &component, access).await;
                return Ok(artifact(&name, manifest, component, blob, Source::Resolved));
            }
            // Somebody else may have brought it while this one waited.
            if turn.is_none() {
                turn = Some(self.turns.download(owner, registry, is_embedded).await);
            }
        }
        let is_given = |digest: &str| self.is_granted(&name, credentials, |known| known.component == digest);
        let (component, blob) = self.download(owner, &remote, &image, &manifest, is_given).await?;
        drop(turn);
        self.remember(&image, &manifest, &component, access).await;
        Ok(artifact(&name, manifest, component, blob, Source::Downloaded))
    }

    /// Asks the embedded registry, then the one the name says, with each credential that is for it.
    async fn resolve(&self, name: &ImageName, credentials: &[Credential]) -> Result<(Remote, String), PullError> {
        let image = name.canonical();
        // What is pinned is asked for itself, whatever a registry calls it: only that is verified against the name.
        let pinned = |digest: String| name.digest().map_or(digest, str::to_owned);
        let mut asked = Vec::new();
        let embedded = self.config.embedded.as_deref().and_then(|address| name.embedded(address));
        let is_embedded_only = embedded.as_ref().is_some_and(|e| e.registry() == name.remote().registry());
        if let Some(reference) = embedded {
            let auth = Auth::Bearer(EMBEDDED_TOKEN.to_owned());
            let remote = self.registries.remote(reference, auth, &image)?;
            match remote.resolve().await {
                Ok(digest) => return Ok((remote, pinned(digest))),
                Err(PullError::NotFound { .. }) if !is_embedded_only => {
                    asked.push(format!("not in the embedded registry {}", remote.place()));
                }
                // One that cannot be asked may have it: what somebody else calls so is another image.
                Err(error) => return Err(error),
            }
        }
        let reference = name.remote();
        let mut last = None;
        for auth in Credential::for_image(credentials, &reference) {
            let remote = self.registries.remote(reference.clone(), auth, &image)?;
            match remote.resolve().await {
                Ok(digest) => return Ok((remote, pinned(digest))),
                Err(error) => last = Some(error),
            }
        }
        let with_places = |message: String| {
            let mut all = asked.clone();
            all.push(message);
            all.join("; ")
        };
        Err(match last.expect("there is always at least the anonymous attempt") {
            PullError::NotFound { image, message } => PullError::NotFound { image, message: with_places(message) },
            PullError::Unauthorized { image, message } => {
                PullError::Unauthorized { image, message: with_places(message) }
            }
            PullError::Unreachable { image, message } => {
                PullError::Unreachable { image, message: with_places(message) }
            }
            other => other,
        })
    }

    /// The component of a manifest. One that is here is not downloaded again for whoever `is_given` it.
    async fn download(
        &self,
        owner: &str,
        remote: &Remote,
        image: &str,
        manifest: &str,
        is_given: impl Fn(&str) -> bool,
    ) -> Result<(String, Blob), PullError> {
        let not_wasm = |message: String| PullError::NotWasm { image: image.to_owned(), message: shortened(message) };
        let mut plan = layout::plan(&self.manifest(remote, image, manifest).await?).map_err(not_wasm)?;
        for _ in 0..INDEX_DEPTH_MAX {
            let Plan::Index(entry) = &plan else { break };
            plan = layout::plan(&self.manifest(remote, image, &entry.digest).await?).map_err(not_wasm)?;
        }
        match plan {
            Plan::Layer(layer) => {
                if is_given(&layer.digest)
                    && let Some(blob) = self.blobs.get(&layer.digest)
                {
                    return Ok((layer.digest, blob));
                }
                let file = self.download_blob(remote, image, &layer, self.component_max()).await?;
                self.insert(image, &layer.digest, file).await.map(|blob| (layer.digest.clone(), blob))
            }
            Plan::Archive { config, layers } => {
                let file = self.download_blob(remote, image, &config, CONFIG_BYTES_MAX).await?;
                let config = fs::read(file.path()).map_err(|error| PullError::io(image, error))?;
                let wanted = unpack::entry_point(&config).map_err(not_wasm)?;
                let mut left = unpack::UNPACKED_BYTES_MAX;
                for layer in layers.iter().rev() {
                    let archive = self.download_blob(remote, image, layer, self.blobs.max_bytes()).await?;
                    let turn = self.turns.unpack(owner).await;
                    let unpacked = self.unpack(turn, image, archive, wanted.clone(), &mut left).await?;
                    if let Some((digest, file)) = unpacked {
                        return self.insert(image, &digest, file).await.map(|blob| (digest, blob));
                    }
                }
                Err(not_wasm(format!("its entry point {wanted:?} is in none of its layers")))
            }
            Plan::Index(_) => Err(not_wasm(format!("its index leads to more than {INDEX_DEPTH_MAX} others"))),
        }
    }

    /// Bytes that a component may have.
    fn component_max(&self) -> u64 {
        self.config.component_bytes_max.min(self.blobs.max_bytes())
    }

    /// A manifest, within its bounds of time and bytes.
    async fn manifest(&self, remote: &Remote, image: &str, digest: &str) -> Result<bytes::Bytes, PullError> {
        let read = tokio::time::timeout(DOWNLOAD_TIMEOUT, remote.manifest(digest)).await;
        read.unwrap_or_else(|_| {
            let message = format!("the manifest {digest} did not come within {} s", DOWNLOAD_TIMEOUT.as_secs());
            Err(PullError::Unreachable { image: image.to_owned(), message })
        })
    }

    async fn download_blob(
        &self,
        remote: &Remote,
        image: &str,
        blob: &layout::Descriptor,
        limit: u64,
    ) -> Result<tempfile::NamedTempFile, PullError> {
        // Before anything gives way to it.
        if blob.size > limit {
            return Err(PullError::TooLarge { image: image.to_owned(), size: blob.size, limit });
        }
        let (free, mut promised) = self.promise(image, blob.size)?;
        let file = self.blobs.temporary().map_err(|error| PullError::io(image, error))?;
        let out = file.reopen().map_err(|error| PullError::io(image, error))?;
        let arrived = AtomicU64::new(0);
        let mut written = |bytes: u64| {
            arrived.fetch_add(bytes, Relaxed);
            promised.kept(bytes);
        };
        let out = tokio::fs::File::from_std(out);
        let loading = remote.blob(blob, out, limit.min(free), &mut written);
        tokio::pin!(loading);
        let mut before = 0;
        loop {
            if let Ok(loaded) = tokio::time::timeout(DOWNLOAD_TIMEOUT, &mut loading).await {
                loaded?;
                return Ok(file);
            }
            let came = arrived.load(Relaxed) - before;
            if came < DOWNLOAD_BYTES_MIN {
                let seconds = DOWNLOAD_TIMEOUT.as_secs();
                let message =
                    format!("the download has stalled: {came} of {} bytes came within {seconds} s", blob.size);
                return Err(PullError::Unreachable { image: image.to_owned(), message });
            }
            before += came;
        }
    }

    /// Bytes above the disk's floor that nobody else is about to take.
    fn free(&self) -> u64 {
        self.free_beside(*locked(&self.promised))
    }

    /// The same where so much is promised.
    fn free_beside(&self, promised: u64) -> u64 {
        let taken = self.config.min_free_bytes.saturating_add(promised);
        free_bytes(&self.config.dir).saturating_sub(taken)
    }

    /// Room on the disk for so many bytes, where no image that nobody runs keeps them; with it what is free now.
    fn promise(&self, image: &str, bytes: u64) -> Result<(u64, Promised<'_>), PullError> {
        let missing = bytes.saturating_sub(self.free());
        // Nothing goes for what would not fit even then.
        if missing > 0 && missing <= self.blobs.total_bytes() {
            self.free_unused(missing, &HashSet::new());
        }
        // Looked at and taken in one: what is free is promised to one alone.
        let mut promised = locked(&self.promised);
        let free = self.free_beside(*promised);
        if bytes > free {
            let message = format!("{bytes} bytes are wanted, and the disk has {free} above its floor");
            return Err(PullError::io(image, io::Error::new(io::ErrorKind::StorageFull, message)));
        }
        *promised += bytes;
        Ok((free, Promised { all: &self.promised, left: bytes }))
    }

    /// Takes the component out of a layer's archive and hashes it. The turn is over when that is done, also when nobody waits for
    /// it any more.
    async fn unpack(
        &self,
        turn: Turn,
        image: &str,
        archive: tempfile::NamedTempFile,
        wanted: String,
        left: &mut u64,
    ) -> Result<Option<(String, tempfile::NamedTempFile)>, PullError> {
        let mut out = self.blobs.temporary().map_err(|error| PullError::io(image, error))?;
        let (max, free) = (self.component_max(), self.free());
        let limit = max.min(free);
        let mut rest = *left;
        let unpacked = aside(move || {
            let _turn = turn;
            let mut unpack = || -> io::Result<_> {
                if !unpack::extract(archive.path(), &wanted, &mut out, limit, &mut rest)? {
                    return Ok(None);
                }
                let mut hasher = Sha256::new();
                io::copy(&mut fs::File::open(out.path())?, &mut hasher)?;
                Ok(Some(format!("sha256:{:x}", hasher.finalize())))
            };
            let digest = unpack();
            digest.map(|digest| (rest, digest.map(|digest| (digest, out))))
        });
        let unpacked = unpacked.await.flatten().map(|(rest, unpacked)| {
            *left = rest;
            unpacked
        });
        unpacked.map_err(|error| match error.kind() {
            io::ErrorKind::StorageFull => PullError::io(image, error),
            io::ErrorKind::FileTooLarge if free < max => {
                let message = format!("its layer does not fit: the disk has {free} bytes above its floor ({error})");
                PullError::io(image, io::Error::new(io::ErrorKind::StorageFull, message))
            }
            _ => {
                let message = shortened(format!("its layer cannot be unpacked: {error}"));
                PullError::NotWasm { image: image.to_owned(), message }
            }
        })
    }

    /// Makes a verified file the component `digest`. It is on disk before it has that name: what is there is whole, also after
    /// a power cut.
    async fn insert(&self, image: &str, digest: &str, file: tempfile::NamedTempFile) -> Result<Blob, PullError> {
        let synced = tokio::task::spawn_blocking(move || {
            file.as_file().sync_all()?;
            Ok((crate::blobs::begins_like_wasm(file.path())?, file))
        });
        let synced = synced.await.unwrap_or_else(|error| Err(io::Error::other(error.to_string())));
        let (is_wasm, file) = synced.map_err(|error| PullError::io(image, error))?;
        if !is_wasm {
            return Err(PullError::NotWasm {
                image: image.to_owned(),
                message: "its content does not begin like a WebAssembly binary".to_owned(),
            });
        }
        // What ended a moment ago gives way.
        self.forget_answers();
        self.blobs.insert(digest, file).map_err(|error| match error {
            InsertError::Io(error) => PullError::io(image, error),
            InsertError::Digest(_) => PullError::Corrupt { image: image.to_owned(), message: error.to_string() },
            full => PullError::io(image, io::Error::new(io::ErrorKind::StorageFull, full.to_string())),
        })
    }

    /// Keeps what a name was resolved to, on disk only when it changed.
    async fn remember(&self, image: &str, manifest: &str, component: &str, access: Access) {
        let writing = self.writing.clone().lock_owned().await;
        let known = {
            let mut state = self.lock();
            // Another image under this name begins anew.
            let (access, since) = match state.known.get(image).filter(|known| known.manifest == manifest) {
                Some(known) => (access.and(&known.access), known.since),
                None => (access, now_millis()),
            };
            let (manifest, component) = (manifest.to_owned(), component.to_owned());
            let known = Known { name: image.to_owned(), manifest, component, since, access };
            if state.known.get(image) == Some(&known) {
                return;
            }
            let mut gone: Vec<String> = state
                .known
                .values()
                .filter(|known| !self.blobs.contains(&known.component))
                .map(|known| known.name.clone())
                .collect();
            let is_other = |other: &&Known| other.component == known.component && other.name != known.name;
            let mut others: Vec<&Known> = state.known.values().filter(is_other).collect();
            others.sort_by_key(|other| std::cmp::Reverse(other.since));
            gone.extend(others.iter().skip(NAMES_MAX - 1).map(|other| other.name.clone()));
            for name in gone {
                state.known.remove(&name);
                let _ = fs::remove_file(self.name_file(&name));
            }
            state.known.insert(image.to_owned(), known.clone());
            known
        };
        let path = self.name_file(image);
        let bytes = serde_json::to_vec(&known).expect("strings serialise");
        let file = self.blobs.temporary();
        let written = tokio::task::spawn_blocking(move || {
            // Also when nobody waits for it any more.
            let _writing = writing;
            // By rename: a crash leaves the old file or the new one.
            let mut file = file?;
            file.write_all(&bytes)?;
            file.persist(&path).map(drop).map_err(io::Error::from)
        });
        if let Err(error) = written.await.unwrap_or_else(|error| Err(io::Error::other(error))) {
            tracing::warn!(%image, %error, "image will have to be resolved again after a restart");
        }
    }

    fn name_file(&self, image: &str) -> PathBuf {
        self.names.join(format!("{:x}.json", Sha256::digest(image)))
    }
}

fn artifact(name: &ImageName, manifest: String, component: String, blob: Blob, source: Source) -> Artifact {
    Artifact {
        image_id: format!("{}@{manifest}", name.base()).into(),
        reference: name.canonical().into(),
        digest: component.into(),
        manifest_digest: manifest.into(),
        path: blob.path.clone(),
        size: blob.size,
        source,
        blob,
    }
}

fn now_millis() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Whether a file has the digest.
fn is_whole(path: &Path, digest: &str) -> io::Result<bool> {
    let Some(mut check) = Check::of(digest) else { return Ok(false) };
    let mut file = fs::File::open(path)?;
    let mut piece = vec![0; READ_BYTES];
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(check.done().is_ok()),
            read => check.update(piece.get(..read).unwrap_or_default()),
        }
    }
}

/// Whether something was not done for want of what others may give back in a moment.
fn is_want(error: &io::Error) -> bool {
    let wanted = [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::NOBUFS, Errno::AGAIN, Errno::INTR];
    Errno::from_io_error(error).is_none_or(|errno| wanted.contains(&errno))
}

/// Does what computes for long on a thread of its own, which stands back behind whoever serves requests.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    let (done, result) = tokio::sync::oneshot::channel();
    std::thread::Builder::new().name("unpack".to_owned()).spawn(move || {
        // On Linux this is the calling thread only, which ends with this.
        let _ = rustix::process::setpriority_process(None, UNPACK_NICE);
        let _ = done.send(work());
    })?;
    result.await.map_err(|_| io::Error::other("it could not be unpacked"))
}

/// Free bytes of the disk; one that does not answer is not in the way.
fn free_bytes(dir: &Path) -> u64 {
    rustix::fs::statvfs(dir).map_or(u64::MAX, |stat| stat.f_bavail.saturating_mul(stat.f_frsize))
}

fn fingerprint(credentials: &[Credential]) -> [u8; 32] {
    let mut hasher = Sha256::new();
    for credential in credentials {
        for part in [&credential.registry, &credential.username, &credential.password] {
            hasher.update((part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
    }
    hasher.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(dir: &Path) -> Store {
        let config = Config {
            dir: dir.to_owned(),
            embedded: None,
            max_bytes: 1 << 20,
            component_bytes_max: 1 << 20,
            min_free_bytes: 0,
            transport: Transport::default(),
        };
        Store::new(config).unwrap()
    }

    /// As when many pods of an image start that nobody has compiled.
    #[tokio::test]
    async fn who_waited_while_another_looked_at_an_image_does_not_look_again() {
        let dir = tempfile::tempdir().unwrap();
        let store = opened(dir.path());
        let digest: Arc<str> = format!("sha256:{}", "a".repeat(64)).into();
        // It is not what its digest says: whoever reads it finds that.
        let blob = store.inner.blobs.insert(&digest, store.inner.blobs.temporary().unwrap()).unwrap();
        let artifact = Artifact {
            digest: digest.clone(),
            manifest_digest: "".into(),
            reference: "a".into(),
            image_id: "".into(),
            path: blob.path.clone(),
            size: blob.size,
            source: Source::Present,
            blob,
        };
        let turn = store.inner.turns.unpack("n").await;
        let mut waits = std::pin::pin!(store.is_sound("n", &artifact));
        assert!(futures::FutureExt::now_or_never(waits.as_mut()).is_none());
        store.inner.blobs.see(&digest, &artifact.blob, Instant::now());
        drop(turn);
        assert!(waits.await, "it was looked at meanwhile");
        assert!(!store.is_sound("n", &artifact).await, "who asks later looks again");
    }

    #[test]
    fn what_is_free_is_promised_to_one_alone() {
        let dir = tempfile::tempdir().unwrap();
        let store = opened(dir.path());
        // Two of these are more than there is, whatever else this machine writes meanwhile.
        let most = store.inner.free() / 10 * 7;
        let at_once = std::sync::Barrier::new(8);
        for _ in 0..200 {
            let given: usize = std::thread::scope(|threads| {
                let promise = || {
                    at_once.wait();
                    let promised = store.inner.promise("a", most).ok();
                    at_once.wait();
                    usize::from(promised.is_some())
                };
                let threads = [(); 8].map(|()| threads.spawn(promise));
                threads.into_iter().map(|thread| thread.join().unwrap()).sum()
            });
            assert_eq!(given, 1);
        }
        assert_eq!(*locked(&store.inner.promised), 0);
    }

    #[test]
    fn a_name_that_cannot_be_read_is_neither_deleted_nor_in_the_way_of_a_start() {
        let dir = tempfile::tempdir().unwrap();
        let (unreadable, nonsense) = (dir.path().join("names/a.json"), dir.path().join("names/b.json"));
        fs::create_dir_all(&unreadable).unwrap();
        fs::write(&nonsense, "{}").unwrap();
        drop(opened(dir.path()));
        assert!(unreadable.exists() && !nonsense.exists());
    }

    #[tokio::test]
    async fn what_computes_for_long_stands_back() {
        let nice = || rustix::process::getpriority_process(None).unwrap();
        let own = nice();
        assert_eq!((aside(nice).await.unwrap(), nice()), (own.max(UNPACK_NICE), own));
        assert!(aside::<()>(|| panic!("as the test wants")).await.is_err());
    }
}
