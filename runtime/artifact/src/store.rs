//! The door of the crate: [`Store::pull`].

use std::collections::HashMap;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use oci_client::secrets::RegistryAuth;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;

use crate::blobs::{Blob, Blobs, InsertError};
use crate::layout::{self, Plan};
use crate::name::ImageName;
use crate::registry::{Registries, Remote, Transport};
use crate::{Credential, PullError, unpack};

/// Downloads at the same time; more only share the same wire.
const DOWNLOADS_MAX: usize = 4;
/// How long the answer "this tag is that digest" may be shared by those who ask for it. Not longer than a slow
/// round trip, so nobody can tell it from one.
const RESOLVED_FOR: Duration = Duration::from_millis(50);
/// Shown to the embedded registry, which asks nobody who they are. Without one, oci-client would ask it before each request
/// whether it wants to know.
const EMBEDDED_TOKEN: &str = "node";
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
    _blob: Blob,
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
    downloads: Semaphore,
    names: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Canonical image name to what it was resolved to last.
    known: HashMap<String, Known>,
    /// Pulls under way or just finished.
    flights: HashMap<FlightKey, Flight>,
}

type FlightKey = (String, [u8; 32]);
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
}

impl Store {
    /// Opens the store, creating its directory.
    pub fn new(config: Config) -> io::Result<Self> {
        let blobs = Blobs::open(&config.dir, config.max_bytes)?;
        let names = config.dir.join("names");
        std::fs::create_dir_all(&names)?;
        let mut known = HashMap::new();
        for file in std::fs::read_dir(&names)? {
            let path = file?.path();
            let read = std::fs::read(&path).ok().and_then(|bytes| serde_json::from_slice::<Known>(&bytes).ok());
            match read.filter(|read| blobs.contains(&read.component)) {
                Some(read) => drop(known.insert(read.name.clone(), read)),
                None => std::fs::remove_file(&path)?,
            }
        }
        let inner = Inner {
            registries: Registries::new(config.transport.clone()),
            downloads: Semaphore::new(DOWNLOADS_MAX),
            state: Mutex::new(State { known, flights: HashMap::new() }),
            config,
            blobs,
            names,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Has the image on disk, fetching it as the policy says.
    ///
    /// Callers that ask for the same image with the same credentials at the same time share one pull, which goes
    /// on when one of them stops waiting.
    pub async fn pull(
        &self,
        image: &str,
        policy: PullPolicy,
        credentials: &[Credential],
    ) -> Result<Artifact, PullError> {
        let name = ImageName::parse(image)?;
        let canonical = name.canonical();
        if (policy != PullPolicy::Always || name.digest().is_some())
            && let Some(artifact) = self.inner.present(&name)
        {
            return Ok(artifact);
        }
        if policy == PullPolicy::Never {
            return Err(PullError::NotPresent { image: image.to_owned() });
        }
        let flight = self.flight((canonical, fingerprint(credentials)), name, credentials);
        flight.await
    }

    /// Whether the image is on disk under this name.
    pub fn is_present(&self, image: &str) -> bool {
        ImageName::parse(image).is_ok_and(|name| self.inner.present(&name).is_some())
    }

    /// Images known by name: canonical name, manifest digest, size in bytes.
    pub fn images(&self) -> Vec<(String, String, u64)> {
        let known: Vec<Known> = self.inner.lock().known.values().cloned().collect();
        let size = |known: &Known| self.inner.blobs.get(&known.component).map(|blob| blob.size);
        known.into_iter().filter_map(|known| size(&known).map(|size| (known.name, known.manifest, size))).collect()
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
        let image = name.canonical();
        let task = tokio::spawn(async move { inner.fetch(name, &credentials).await });
        let pull = async move {
            task.await.unwrap_or_else(|error| Err(PullError::io(&image, io::Error::other(error.to_string()))))
        };
        let pull = pull.boxed().shared();
        state.flights.insert(key, Flight { pull: pull.clone(), since: now });
        pull
    }
}

impl Inner {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
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

    async fn fetch(&self, name: ImageName, credentials: &[Credential]) -> Result<Artifact, PullError> {
        let image = name.canonical();
        let (remote, manifest) = self.resolve(&name, credentials).await?;
        let component = {
            let state = self.lock();
            state.known.values().find(|known| known.manifest == manifest).map(|known| known.component.clone())
        };
        if let Some(component) = component
            && let Some(blob) = self.blobs.get(&component)
        {
            self.remember(&image, &manifest, &component).await;
            return Ok(artifact(&name, manifest, component, blob, Source::Resolved));
        }
        let _permit = self.downloads.acquire().await.expect("the semaphore is never closed");
        let (component, blob) = self.download(&remote, &image, &manifest).await?;
        self.remember(&image, &manifest, &component).await;
        Ok(artifact(&name, manifest, component, blob, Source::Downloaded))
    }

    /// Asks the embedded registry, then the one the name says, with each credential that is for it.
    async fn resolve(&self, name: &ImageName, credentials: &[Credential]) -> Result<(Remote, String), PullError> {
        let image = name.canonical();
        let mut asked = Vec::new();
        let embedded = self.config.embedded.as_deref().and_then(|address| name.embedded(address));
        let is_embedded_only = embedded.as_ref().is_some_and(|e| e.registry() == name.remote().registry());
        if let Some(reference) = embedded {
            let auth = RegistryAuth::Bearer(EMBEDDED_TOKEN.to_owned());
            let remote = self.registries.remote(reference, auth, &image)?;
            match remote.resolve().await {
                Ok(digest) => return Ok((remote, digest)),
                Err(error) if is_embedded_only => return Err(error),
                Err(PullError::NotFound { .. }) => {
                    asked.push(format!("not in the embedded registry {}", remote.place()))
                }
                Err(error) => asked.push(error.to_string()),
            }
        }
        let reference = name.remote();
        let mut last = None;
        for auth in Credential::for_image(credentials, &reference) {
            let remote = self.registries.remote(reference.clone(), auth, &image)?;
            match remote.resolve().await {
                Ok(digest) => return Ok((remote, digest)),
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

    async fn download(&self, remote: &Remote, image: &str, manifest: &str) -> Result<(String, Blob), PullError> {
        let not_wasm = |message: String| PullError::NotWasm { image: image.to_owned(), message };
        let bytes = remote.manifest(manifest).await?;
        let mut plan = layout::plan(&bytes).map_err(not_wasm)?;
        if let Plan::Index(entry) = &plan {
            let bytes = remote.manifest(&entry.digest).await?;
            plan = layout::plan(&bytes).map_err(not_wasm)?;
        }
        match plan {
            Plan::Layer(layer) => {
                if let Some(blob) = self.blobs.get(&layer.digest) {
                    return Ok((layer.digest, blob));
                }
                let file = self.download_blob(remote, image, &layer, self.blobs.max_bytes()).await?;
                self.insert(image, &layer.digest, file).map(|blob| (layer.digest.clone(), blob))
            }
            Plan::Archive { config, layers } => {
                let file = self.download_blob(remote, image, &config, CONFIG_BYTES_MAX).await?;
                let config = std::fs::read(file.path()).map_err(|error| PullError::io(image, error))?;
                let wanted = unpack::entry_point(&config).map_err(not_wasm)?;
                for layer in layers.iter().rev() {
                    let archive = self.download_blob(remote, image, layer, self.blobs.max_bytes()).await?;
                    if let Some((digest, file)) = self.unpack(image, archive, wanted.clone()).await? {
                        return self.insert(image, &digest, file).map(|blob| (digest, blob));
                    }
                }
                Err(not_wasm(format!("its entry point {wanted:?} is in none of its layers")))
            }
            Plan::Index(_) => Err(not_wasm("its index leads to another index".to_owned())),
        }
    }

    async fn download_blob(
        &self,
        remote: &Remote,
        image: &str,
        blob: &layout::Descriptor,
        limit: u64,
    ) -> Result<tempfile::NamedTempFile, PullError> {
        let file = self.blobs.temporary().map_err(|error| PullError::io(image, error))?;
        let out = file.reopen().map_err(|error| PullError::io(image, error))?;
        remote.blob(blob, tokio::fs::File::from_std(out), limit).await?;
        Ok(file)
    }

    /// Takes the component out of a layer's archive and hashes it, on a thread that may block.
    async fn unpack(
        &self,
        image: &str,
        archive: tempfile::NamedTempFile,
        wanted: String,
    ) -> Result<Option<(String, tempfile::NamedTempFile)>, PullError> {
        let mut out = self.blobs.temporary().map_err(|error| PullError::io(image, error))?;
        let limit = self.blobs.max_bytes();
        let unpacked = tokio::task::spawn_blocking(move || -> io::Result<_> {
            if !unpack::extract(archive.path(), &wanted, &mut out, limit)? {
                return Ok(None);
            }
            let mut hasher = Sha256::new();
            io::copy(&mut std::fs::File::open(out.path())?, &mut hasher)?;
            Ok(Some((format!("sha256:{:x}", hasher.finalize()), out)))
        });
        let unpacked = unpacked.await.unwrap_or_else(|error| Err(io::Error::other(error.to_string())));
        unpacked.map_err(|error| PullError::NotWasm {
            image: image.to_owned(),
            message: format!("its layer cannot be unpacked: {error}"),
        })
    }

    fn insert(&self, image: &str, digest: &str, file: tempfile::NamedTempFile) -> Result<Blob, PullError> {
        let mut magic = [0; 4];
        let has_magic = file.reopen().and_then(|mut file| file.read_exact(&mut magic)).is_ok() && magic == *b"\0asm";
        if !has_magic {
            return Err(PullError::NotWasm {
                image: image.to_owned(),
                message: "its content does not begin like a WebAssembly binary".to_owned(),
            });
        }
        self.blobs.insert(digest, file).map_err(|error| match error {
            InsertError::Io(error) => PullError::io(image, error),
            full => PullError::io(image, io::Error::new(io::ErrorKind::StorageFull, full.to_string())),
        })
    }

    /// Keeps what a name was resolved to, on disk only when it changed.
    async fn remember(&self, image: &str, manifest: &str, component: &str) {
        let known = Known { name: image.to_owned(), manifest: manifest.to_owned(), component: component.to_owned() };
        {
            let mut state = self.lock();
            if state.known.get(image) == Some(&known) {
                return;
            }
            let gone: Vec<String> = state
                .known
                .values()
                .filter(|known| !self.blobs.contains(&known.component))
                .map(|known| known.name.clone())
                .collect();
            for name in gone {
                state.known.remove(&name);
                let _ = std::fs::remove_file(self.name_file(&name));
            }
            state.known.insert(image.to_owned(), known.clone());
        }
        let path = self.name_file(image);
        let bytes = serde_json::to_vec(&known).expect("strings serialise");
        // By rename: a crash leaves the old file or the new one.
        let temporary = path.with_extension("new");
        let written = match tokio::fs::write(&temporary, bytes).await {
            Ok(()) => tokio::fs::rename(&temporary, &path).await,
            Err(error) => Err(error),
        };
        if let Err(error) = written {
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
        _blob: blob,
    }
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
