//! Volumes that outlive pods: directories of PersistentVolumes, beneath the node's data directory.
//!
//! A directory is made when the first pod opens a volume that was made for its claim, which the object says from then on ([`MADE`]):
//! one that is missing after that is missed, and not made anew. Neither is that of a volume that somebody has laid out by hand: who
//! makes the object says that the data is there. It is removed when the object says so, and never because there is no object: a volume that
//! is being deleted waits for its node ([`FINALIZER`]), so a node that was away hears of it when it is back. What nobody knows of
//! any more (an object that somebody has forced out) stays, and is told of when the node starts.
//!
//! What a volume holds is measured beside what pods hold (`disk`), and before a pod has it: nothing of that needs to be remembered.
//! Who fills one beyond its capacity is evicted, and nobody starts with it until it is larger, or has been emptied.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use coracle_api::volumes::{FINALIZER, MADE, NODE, PROVISIONER, VOLUME_PROTECTION, directory};
use coracle_discovery::Again;
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod, Volume};
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, watcher};
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::beneath::{self, Seen, Usage};
use crate::context::Context;
use crate::events::Record;
use crate::pod::Pods;
use crate::quantity;

/// A volume of this access mode is one pod's alone.
const ONCE_POD: &str = "ReadWriteOncePod";
/// What made a volume.
const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
/// After a directory could not be removed: the first wait, and the longest.
const AGAIN: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));
/// Directories without an object that are told of by name.
const TOLD_MAX: usize = 10;

/// Why a pod cannot have a volume; part of a `FailedMount`.
#[derive(Debug, thiserror::Error)]
pub enum KeptError {
    /// The API server did not say.
    #[error("{0}")]
    Api(String),
    /// There is no such claim.
    #[error("persistentvolumeclaim {0:?} not found")]
    NoClaim(String),
    /// It is another's.
    #[error("persistentvolumeclaim {0:?} was not created for this pod")]
    NotOwned(String),
    /// It goes.
    #[error("can't start pod because persistentvolumeclaim {0:?} is being deleted")]
    Going(String),
    /// It has no volume.
    #[error("persistentvolumeclaim {0:?} is not bound")]
    Unbound(String),
    /// Its volume is not its own.
    #[error("persistentvolume {volume:?} is not bound to persistentvolumeclaim {claim:?}")]
    NotBound {
        /// The volume.
        volume: String,
        /// The claim.
        claim: String,
    },
    /// It is of a kind that this node cannot offer.
    #[error(
        "persistentvolume {0:?} is none that this node can offer: that has spec.local.path volumes/NAME, and node affinity to one \
         node by its kubernetes.io/hostname"
    )]
    Foreign(String),
    /// A component has no block devices.
    #[error("persistentvolume {0:?} has volumeMode Block: a component has no block devices")]
    Block(String),
    /// It is elsewhere.
    #[error("persistentvolume {volume:?} is on node {node}")]
    Elsewhere {
        /// The volume.
        volume: String,
        /// Its node.
        node: String,
    },
    /// Another pod has it.
    #[error("volume uses the ReadWriteOncePod access mode and is already in use by another pod")]
    InUse,
    /// The data is gone.
    #[error(
        "the directory of persistentvolume {volume:?} is gone: {path} was made before and is missing; put it back, or delete the \
         claim to begin with an empty volume"
    )]
    Gone {
        /// The volume.
        volume: String,
        /// Its directory.
        path: String,
    },
    /// Nobody has put the data there.
    #[error(
        "the directory of persistentvolume {volume:?} does not exist: {path}; the volume was laid out by hand, and so is what is in it"
    )]
    Missing {
        /// The volume.
        volume: String,
        /// Its directory.
        path: String,
    },
    /// It is full.
    #[error(
        "persistentvolume {volume:?} holds {used} bytes, and its capacity is {capacity}: let the claim ask for more, or remove some"
    )]
    Full {
        /// The volume.
        volume: String,
        /// What it holds.
        used: u64,
        /// What it may hold.
        capacity: String,
    },
    /// The disk refused.
    #[error("{path}: {source}")]
    Io {
        /// The directory.
        path: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// A volume that a pod has.
#[derive(Debug, Clone)]
pub struct Held {
    /// Its directory.
    pub dir: PathBuf,
    /// Whether nobody may write.
    pub read_only: bool,
}

/// What a volume may hold, as it is written and in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Capacity {
    shown: String,
    bytes: Option<u64>,
}

impl Capacity {
    fn of(volume: &PersistentVolume) -> Self {
        let capacity = volume.spec.as_ref().and_then(|spec| spec.capacity.as_ref());
        let storage = capacity.and_then(|capacity| capacity.get("storage"));
        let bytes = storage.and_then(quantity::units).filter(|bytes| *bytes > 0);
        Self { shown: storage.map(|storage| storage.0.clone()).unwrap_or_default(), bytes }
    }
}

/// A directory that pods use, or wait for.
#[derive(Debug, Default)]
struct Entry {
    volume: String,
    users: HashSet<Arc<str>>,
    /// Pods that wait until it has room, or until another lets go of it.
    refused: HashSet<Arc<str>>,
    capacity: Capacity,
    /// What it held when it was opened, and later when the disk was not low.
    before: Option<Usage>,
}

impl Entry {
    /// Whether anything is to be remembered of it.
    fn is_wanted(&self) -> bool {
        !self.users.is_empty() || !self.refused.is_empty()
    }
}

/// A volume as it is measured.
#[derive(Debug, Clone)]
pub struct Measured {
    /// Its directory.
    pub dir: PathBuf,
    /// Name of the object.
    pub volume: String,
    /// Bytes that it may hold.
    pub bytes_max: u64,
    /// The same as it is written.
    pub shown: String,
}

/// The volumes of this node that outlive pods.
#[derive(Debug)]
pub struct Kept {
    dir: PathBuf,
    /// By the names of directories.
    entries: Mutex<HashMap<String, Entry>>,
    /// Rings when a pod has let go of a volume.
    released: Notify,
}

impl Kept {
    /// Those in this directory, which exists.
    pub fn new(dir: PathBuf) -> Self {
        Self { dir, entries: Mutex::default(), released: Notify::new() }
    }

    /// The volume of a pod's claim, ready to be used; `None` for a volume without a claim. The pod has it until [`Kept::release`].
    pub async fn open(
        &self,
        context: &Context,
        pod: &Pod,
        volume: &Volume,
        user: &Arc<str>,
    ) -> Result<Option<Held>, KeptError> {
        let Some(claim) = claim_of(pod, volume) else { return Ok(None) };
        let api = |error: kube::Error| KeptError::Api(error.to_string());
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(context.client.clone(), namespace);
        let found = claims.get_opt(&claim.name).await.map_err(api)?;
        let found = found.ok_or_else(|| KeptError::NoClaim(claim.name.clone()))?;
        let name = usable(&found, &claim, user)?;
        let volumes: Api<PersistentVolume> = Api::all(context.client.clone());
        let Some(object) = volumes.get_opt(&name).await.map_err(api)? else {
            return Err(KeptError::NotBound { volume: name, claim: claim.name });
        };
        let offer = offered(&object, &found, &context.config.name)?;
        let dir = self.dir.join(&offer.directory);
        let capacity = Capacity::of(&object);
        self.take(&offer, &capacity, user)?;
        let made = self.ready(&offer, dir.clone(), capacity).await;
        let made = match made {
            // Nobody may use it before the object says that it is there.
            Ok(()) if offer.origin != Origin::Made => {
                let patch = json!({"metadata": {"uid": object.metadata.uid, "annotations": {MADE: "true"}}});
                let said = volumes.patch(&offer.volume, &PatchParams::default(), &Patch::Merge(&patch)).await;
                said.map(drop).map_err(api)
            }
            made => made,
        };
        if let Err(error) = made {
            self.let_go(&offer.directory, user, matches!(error, KeptError::Full { .. }));
            return Err(error);
        }
        Ok(Some(Held { dir, read_only: offer.read_only || claim.read_only }))
    }

    /// The pod has it, unless it is another's alone.
    fn take(&self, offer: &Offer, capacity: &Capacity, user: &Arc<str>) -> Result<(), KeptError> {
        let mut entries = self.entries.lock();
        let entry = entries.entry(offer.directory.clone()).or_default();
        if offer.is_exclusive && entry.users.iter().any(|other| other != user) {
            entry.refused.insert(user.clone());
            return Err(KeptError::InUse);
        }
        entry.refused.remove(user);
        entry.users.insert(user.clone());
        entry.volume.clone_from(&offer.volume);
        entry.capacity.clone_from(capacity);
        Ok(())
    }

    /// Has the directory there, and finds out whether there is room in it.
    async fn ready(&self, offer: &Offer, dir: PathBuf, capacity: Capacity) -> Result<(), KeptError> {
        let (volume, origin, all) = (offer.volume.clone(), offer.origin, self.dir.clone());
        let work = move || -> Result<Option<Usage>, KeptError> {
            let path = dir.display().to_string();
            let failed = |source| KeptError::Io { path: path.clone(), source };
            if !have(&all, &dir, origin).map_err(failed)? {
                return Err(match origin {
                    Origin::ByHand => KeptError::Missing { volume, path },
                    Origin::New | Origin::Made => KeptError::Gone { volume, path },
                });
            }
            let Some(bytes) = capacity.bytes else { return Ok(None) };
            let used = beneath::usage(&dir, &mut Seen::new()).map_err(failed)?;
            match used.bytes > bytes || used.is_too_deep {
                true => Err(KeptError::Full { volume, used: used.bytes, capacity: capacity.shown }),
                false => Ok(Some(used)),
            }
        };
        let done = tokio::task::spawn_blocking(work).await;
        let used = done.unwrap_or_else(|error| Err(KeptError::Api(error.to_string())))?;
        if let Some(entry) = self.entries.lock().get_mut(&offer.directory) {
            entry.before = entry.before.or(used);
        }
        Ok(())
    }

    fn let_go(&self, directory: &str, user: &Arc<str>, waits: bool) {
        let mut entries = self.entries.lock();
        if let Some(entry) = entries.get_mut(directory) {
            entry.users.remove(user);
            if waits {
                entry.refused.insert(user.clone());
            }
            if !entry.is_wanted() {
                entries.remove(directory);
            }
        }
    }

    /// The pod uses no volume any more. Returns pods that may have one now.
    pub fn release(&self, user: &str) -> Vec<Arc<str>> {
        let (mut is_released, mut waiting) = (false, Vec::new());
        self.entries.lock().retain(|_, entry| {
            entry.refused.remove(user);
            if entry.users.remove(user) {
                is_released = true;
                waiting.extend(entry.refused.iter().cloned());
            }
            entry.is_wanted()
        });
        if is_released {
            self.released.notify_one();
        }
        waiting
    }

    /// The volumes of a pod that have a bound.
    pub fn of(&self, user: &str) -> Vec<Measured> {
        let entries = self.entries.lock();
        let used = entries.iter().filter(|(_, entry)| entry.users.contains(user));
        used.filter_map(|(directory, entry)| {
            Some(Measured {
                dir: self.dir.join(directory),
                volume: entry.volume.clone(),
                bytes_max: entry.capacity.bytes?,
                shown: entry.capacity.shown.clone(),
            })
        })
        .collect()
    }

    /// It holds so much, and nobody is suspected of filling the disk with it for that.
    pub fn note(&self, measured: &Measured, used: Usage) {
        self.with(measured, |entry| entry.before = Some(used));
    }

    /// What it held when there was room; `used`, if nobody has looked since.
    pub fn before(&self, measured: &Measured, used: Usage) -> Usage {
        self.with(measured, |entry| *entry.before.get_or_insert(used)).unwrap_or(used)
    }

    fn with<T>(&self, measured: &Measured, look: impl FnOnce(&mut Entry) -> T) -> Option<T> {
        let directory = measured.dir.file_name()?.to_str()?;
        self.entries.lock().get_mut(directory).map(look)
    }

    fn is_used(&self, directory: &str) -> bool {
        self.entries.lock().get(directory).is_some_and(|entry| !entry.users.is_empty())
    }

    /// The object is as told: what it may hold counts from now on. Returns pods that may have it now.
    fn grow(&self, directory: &str, volume: &PersistentVolume) -> Vec<Arc<str>> {
        let (mut entries, capacity) = (self.entries.lock(), Capacity::of(volume));
        match entries.get_mut(directory) {
            Some(entry) if entry.capacity != capacity => {
                entry.capacity = capacity;
                entry.refused.iter().cloned().collect()
            }
            _ => Vec::new(),
        }
    }

    /// Forgets a directory that is gone.
    fn forget(&self, directory: &str) {
        self.entries.lock().remove(directory);
    }
}

/// Has a directory there; false when it is missing and is not to be made.
fn have(all: &Path, dir: &Path, origin: Origin) -> io::Result<bool> {
    match std::fs::symlink_metadata(dir) {
        Ok(found) if found.is_dir() => Ok(true),
        Ok(_) => Err(io::ErrorKind::NotADirectory.into()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if origin != Origin::New {
                return Ok(false);
            }
            std::fs::create_dir(dir)?;
            // It is on the disk before anybody hears that it is made.
            std::fs::File::open(all)?.sync_all()?;
            Ok(true)
        }
        Err(error) => Err(error),
    }
}

/// The claim of a pod's volume.
struct Claim {
    name: String,
    read_only: bool,
    /// Whether it is made for the pod.
    is_own: bool,
}

fn claim_of(pod: &Pod, volume: &Volume) -> Option<Claim> {
    match (&volume.persistent_volume_claim, &volume.ephemeral) {
        (Some(source), _) => {
            let read_only = source.read_only == Some(true);
            Some(Claim { name: source.claim_name.clone(), read_only, is_own: false })
        }
        (None, Some(_)) => {
            let pod = pod.metadata.name.as_deref().unwrap_or_default();
            Some(Claim { name: format!("{pod}-{}", volume.name), read_only: false, is_own: true })
        }
        (None, None) => None,
    }
}

/// Whether a pod's volume is a claim.
pub fn is_kept(volume: &Volume) -> bool {
    volume.persistent_volume_claim.is_some() || volume.ephemeral.is_some()
}

/// The name of the volume that a claim has, if a pod may use it.
fn usable(claim: &PersistentVolumeClaim, wanted: &Claim, user: &str) -> Result<String, KeptError> {
    let name = || wanted.name.clone();
    let mut owners = claim.metadata.owner_references.iter().flatten();
    if wanted.is_own && !owners.any(|owner| owner.controller == Some(true) && owner.uid == user) {
        return Err(KeptError::NotOwned(name()));
    }
    if claim.metadata.deletion_timestamp.is_some() {
        return Err(KeptError::Going(name()));
    }
    let is_bound = claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound");
    let volume = claim.spec.as_ref().and_then(|spec| spec.volume_name.clone()).filter(|volume| !volume.is_empty());
    volume.filter(|_| is_bound).ok_or_else(|| KeptError::Unbound(name()))
}

/// Where the directory of a volume comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// It was made for a claim, and nobody has opened it.
    New,
    /// A node has made it, or has found it.
    Made,
    /// Somebody else has put it there, with what is in it.
    ByHand,
}

/// What this node needs to know of a volume to give it to a pod.
#[derive(Debug, PartialEq, Eq)]
struct Offer {
    volume: String,
    directory: String,
    read_only: bool,
    is_exclusive: bool,
    origin: Origin,
}

fn offered(volume: &PersistentVolume, claim: &PersistentVolumeClaim, node: &str) -> Result<Offer, KeptError> {
    let name = volume.metadata.name.clone().unwrap_or_default();
    let spec = volume.spec.as_ref();
    let kept = spec.and_then(|spec| spec.claim_ref.as_ref());
    if kept.and_then(|kept| kept.uid.as_ref()) != claim.metadata.uid.as_ref() || kept.is_none() {
        let claim = claim.metadata.name.clone().unwrap_or_default();
        return Err(KeptError::NotBound { volume: name, claim });
    }
    if spec.and_then(|spec| spec.volume_mode.as_deref()) == Some("Block") {
        return Err(KeptError::Block(name));
    }
    let (Some(directory), Some(at)) = (directory_of(volume), node_of(volume)) else {
        return Err(KeptError::Foreign(name));
    };
    if at != node {
        return Err(KeptError::Elsewhere { volume: name, node: at.to_owned() });
    }
    let modes = spec.and_then(|spec| spec.access_modes.as_deref()).unwrap_or_default();
    Ok(Offer {
        directory: directory.to_owned(),
        read_only: !modes.is_empty() && modes.iter().all(|mode| mode == "ReadOnlyMany"),
        is_exclusive: modes.iter().any(|mode| mode == ONCE_POD),
        origin: origin(volume),
        volume: name,
    })
}

fn origin(volume: &PersistentVolume) -> Origin {
    let annotation = |name: &str| volume.metadata.annotations.as_ref()?.get(name).map(String::as_str);
    match (annotation(MADE), annotation(PROVISIONED_BY)) {
        (Some(_), _) => Origin::Made,
        (None, Some(PROVISIONER)) => Origin::New,
        (None, _) => Origin::ByHand,
    }
}

/// The directory that a volume is.
fn directory_of(volume: &PersistentVolume) -> Option<&str> {
    directory(&volume.spec.as_ref()?.local.as_ref()?.path)
}

/// The node that keeps a volume.
fn node_of(volume: &PersistentVolume) -> Option<&str> {
    volume.metadata.labels.as_ref()?.get(NODE).map(String::as_str)
}

/// What becomes of a volume that is being deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Nothing yet.
    Wait,
    /// The object goes, and the directory stays.
    Keep,
    /// Both go.
    Remove,
}

/// What becomes of a volume: its directory goes when its policy says so, and when it was made for a claim, or had one that is
/// gone. One that somebody has laid out by hand and nobody has claimed stays.
fn end(volume: &PersistentVolume) -> End {
    let finalizers = volume.metadata.finalizers.as_deref().unwrap_or_default();
    let has = |name: &str| finalizers.iter().any(|finalizer| finalizer == name);
    if volume.metadata.deletion_timestamp.is_none() || has(VOLUME_PROTECTION) || !has(FINALIZER) {
        return End::Wait;
    }
    let deletes =
        volume.spec.as_ref().and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref()) == Some("Delete");
    let is_made =
        volume.metadata.annotations.as_ref().is_some_and(|annotations| annotations.contains_key(PROVISIONED_BY));
    let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref());
    match deletes && (is_made || matches!(phase, Some("Released" | "Failed"))) {
        true => End::Remove,
        false => End::Keep,
    }
}

/// Follows the volumes of this node and removes what is to go, until shutdown.
pub async fn run(pods: Arc<Pods>, shutdown: CancellationToken) {
    let context = &pods.context;
    let api: Api<PersistentVolume> = Api::all(context.client.clone());
    let labels = format!("{NODE}={}", context.config.name);
    let config = watcher::Config::default().streaming_lists().labels(&labels);
    let mut events = watcher(api.clone(), config).backoff(Again::new()).boxed();
    let mut known: HashMap<String, PersistentVolume> = HashMap::new();
    let (mut listed, mut is_complete, mut has_told) = (HashSet::new(), false, false);
    let mut again: Option<(Instant, Duration)> = None;
    loop {
        let due = async {
            match again {
                Some((at, _)) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        // Every branch only waits.
        tokio::select! {
            event = events.try_next() => match event {
                Ok(Some(watcher::Event::Init)) => listed = known.keys().cloned().collect(),
                Ok(Some(watcher::Event::InitApply(volume) | watcher::Event::Apply(volume))) => {
                    let name = volume.metadata.name.clone().unwrap_or_default();
                    listed.remove(&name);
                    if let Some(directory) = directory_of(&volume) {
                        let waiting = context.kept.grow(directory, &volume);
                        waiting.iter().for_each(|uid| pods.config_changed(uid));
                    }
                    known.insert(name, volume);
                }
                Ok(Some(watcher::Event::InitDone)) => {
                    listed.drain().for_each(|name| drop(known.remove(&name)));
                    is_complete = true;
                }
                Ok(Some(watcher::Event::Delete(volume))) => {
                    known.remove(volume.metadata.name.as_deref().unwrap_or_default());
                }
                Ok(None) => return,
                Err(error) => tracing::debug!(%error, "watch volumes"),
            },
            () = context.kept.released.notified() => {}
            () = due => {}
            () = shutdown.cancelled() => return,
        }
        // Before all are known nobody can say which directories are whose.
        if !is_complete {
            continue;
        }
        if !std::mem::replace(&mut has_told, true) {
            tell_of_strangers(context, &known).await;
        }
        again = match end_all(context, &api, &known).await {
            true => None,
            false => {
                let wait = again.map_or(AGAIN.0, |(_, last)| (last * 2).min(AGAIN.1));
                Some((Instant::now() + wait, wait))
            }
        };
    }
}

/// Ends the volumes that are to go; false when one of them could not be.
async fn end_all(context: &Context, api: &Api<PersistentVolume>, known: &HashMap<String, PersistentVolume>) -> bool {
    let mut is_done = true;
    for volume in known.values() {
        let end = end(volume);
        let Some(directory) = directory_of(volume).filter(|_| end != End::Wait) else { continue };
        if context.kept.is_used(directory) {
            // Whoever uses it rings when it is done.
            continue;
        }
        let is_shared = known
            .values()
            .any(|other| other.metadata.uid != volume.metadata.uid && directory_of(other) == Some(directory));
        let removed = match end {
            End::Remove if !is_shared => remove(context, directory).await,
            _ => Ok(()),
        };
        let done = match removed {
            Ok(()) => say_gone(api, volume).await.map_err(|error| error.to_string()),
            Err(error) => {
                let message = format!("the directory {directory} is not removed: {error}");
                context.recorder.record(Record {
                    kind: "PersistentVolume",
                    namespace: "".into(),
                    name: volume.metadata.name.as_deref().unwrap_or_default().into(),
                    uid: volume.metadata.uid.as_deref().unwrap_or_default().into(),
                    field_path: None,
                    warning: true,
                    reason: "VolumeFailedDelete",
                    message: message.clone(),
                });
                Err(message)
            }
        };
        if let Err(error) = done {
            tracing::warn!(volume = ?volume.metadata.name, %error, "a volume that is deleted is not gone yet");
            is_done = false;
        }
    }
    is_done
}

async fn remove(context: &Context, directory: &str) -> Result<(), String> {
    let dir = context.kept.dir.join(directory);
    let removed = tokio::task::spawn_blocking(move || beneath::remove_tree(&dir)).await;
    removed.map_err(io::Error::other).flatten().map_err(|error| error.to_string())?;
    context.kept.forget(directory);
    tracing::info!(directory, "the directory of a volume that was deleted is removed");
    Ok(())
}

/// The object need not wait for this node any more.
async fn say_gone(api: &Api<PersistentVolume>, volume: &PersistentVolume) -> Result<(), kube::Error> {
    let left = volume.metadata.finalizers.iter().flatten().filter(|name| *name != FINALIZER);
    let left: Vec<&String> = left.collect();
    let (uid, version) = (&volume.metadata.uid, &volume.metadata.resource_version);
    let patch = json!({"metadata": {"uid": uid, "resourceVersion": version, "finalizers": left}});
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    match api.patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await {
        // It is gone, or somebody has changed it: its event comes.
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        said => said.map(drop),
    }
}

/// Tells of directories that no volume has.
async fn tell_of_strangers(context: &Context, known: &HashMap<String, PersistentVolume>) {
    let named: HashSet<String> = known.values().filter_map(|volume| directory_of(volume).map(str::to_owned)).collect();
    let dir = context.kept.dir.clone();
    let found = tokio::task::spawn_blocking(move || -> io::Result<Vec<String>> {
        let mut strangers = Vec::new();
        for entry in std::fs::read_dir(&dir)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if !named.contains(&name) {
                strangers.push(name);
            }
        }
        strangers.sort_unstable();
        Ok(strangers)
    });
    match found.await.map_err(io::Error::other).flatten() {
        Ok(strangers) if strangers.is_empty() => {}
        Ok(strangers) => {
            let first = strangers.iter().take(TOLD_MAX).map(String::as_str).collect::<Vec<_>>().join(", ");
            let count = strangers.len();
            let message = format!(
                "{count} directories of volumes belong to no PersistentVolume, and are kept: {first} (in {})",
                context.kept.dir.display()
            );
            tracing::warn!(message);
            context.node_event(true, "VolumesWithoutObject", message);
        }
        Err(error) => tracing::warn!(%error, "directories of volumes are not looked at"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn volume(more: Value) -> PersistentVolume {
        let mut volume = json!({
            "metadata": {"name": "v", "uid": "v", "labels": {NODE: "a"}, "finalizers": [FINALIZER]},
            "spec": {
                "local": {"path": "volumes/v"}, "accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Ki"},
                "claimRef": {"namespace": "n", "name": "c", "uid": "c"}, "persistentVolumeReclaimPolicy": "Delete",
            },
            "status": {"phase": "Bound"},
        });
        for (field, value) in more.as_object().into_iter().flatten() {
            for (name, value) in value.as_object().into_iter().flatten() {
                volume[field][name] = value.clone();
            }
        }
        serde_json::from_value(volume).unwrap()
    }

    fn claim() -> PersistentVolumeClaim {
        let claim = json!({
            "metadata": {"name": "c", "namespace": "n", "uid": "c"}, "spec": {"volumeName": "v"}, "status": {"phase": "Bound"},
        });
        serde_json::from_value(claim).unwrap()
    }

    #[test]
    fn a_volume_is_given_only_where_it_is_and_to_whom_it_is_bound() {
        for (more, expected) in [
            (json!({}), ""),
            (json!({"spec": {"claimRef": {"uid": "other"}}}), "persistentvolume \"v\" is not bound to"),
            (json!({"spec": {"claimRef": null}}), "persistentvolume \"v\" is not bound to"),
            (json!({"spec": {"local": {"path": "/etc"}}}), "persistentvolume \"v\" is none that this node can offer"),
            (json!({"spec": {"local": {"path": "volumes/../pki"}}}), "persistentvolume \"v\" is none that this node"),
            (
                json!({"spec": {"local": null, "hostPath": {"path": "/"}}}),
                "persistentvolume \"v\" is none that this node",
            ),
            (json!({"metadata": {"labels": {}}}), "persistentvolume \"v\" is none that this node can offer"),
            (json!({"metadata": {"labels": {NODE: "b"}}}), "persistentvolume \"v\" is on node b"),
            (json!({"spec": {"volumeMode": "Block"}}), "persistentvolume \"v\" has volumeMode Block"),
        ] {
            let error = offered(&volume(more.clone()), &claim(), "a").err().map(|error| error.to_string());
            let error = error.unwrap_or_default();
            assert!(error.starts_with(expected) && error.is_empty() == expected.is_empty(), "{more}: {error}");
        }
        let offer = |modes: Value| offered(&volume(json!({"spec": {"accessModes": modes}})), &claim(), "a").unwrap();
        assert!(offer(json!(["ReadOnlyMany"])).read_only);
        assert!(!offer(json!(["ReadOnlyMany", "ReadWriteOnce"])).read_only && offer(json!([ONCE_POD])).is_exclusive);
    }

    #[test]
    fn a_directory_goes_when_its_volume_says_so_and_never_otherwise() {
        let gone = json!("2026-01-01T00:00:00Z");
        let (by_us, protected) = (json!({PROVISIONED_BY: "x"}), json!([FINALIZER, VOLUME_PROTECTION]));
        for (more, expected) in [
            (json!({}), End::Wait),
            (
                json!({"metadata": {"deletionTimestamp": gone, "finalizers": protected, "annotations": by_us}}),
                End::Wait,
            ),
            (json!({"metadata": {"deletionTimestamp": gone, "annotations": by_us}}), End::Remove),
            (json!({"metadata": {"deletionTimestamp": gone}, "status": {"phase": "Released"}}), End::Remove),
            (json!({"metadata": {"deletionTimestamp": gone}, "status": {"phase": "Available"}}), End::Keep),
            (
                json!({"metadata": {"deletionTimestamp": gone, "annotations": by_us}, "spec": {"persistentVolumeReclaimPolicy": "Retain"}}),
                End::Keep,
            ),
            (json!({"metadata": {"deletionTimestamp": gone, "finalizers": [], "annotations": by_us}}), End::Wait),
        ] {
            assert_eq!(end(&volume(more.clone())), expected, "{more}");
        }
    }

    #[test]
    fn a_directory_that_was_made_is_not_made_again_and_one_laid_out_by_hand_is_not_made() {
        let all = tempfile::tempdir().unwrap();
        let dir = all.path().join("v");
        for origin in [Origin::Made, Origin::ByHand] {
            assert!(!have(all.path(), &dir, origin).unwrap() && !dir.exists());
        }
        for origin in [Origin::New, Origin::Made, Origin::ByHand] {
            assert!(have(all.path(), &dir, origin).unwrap());
        }
        std::fs::remove_dir(&dir).unwrap();
        std::os::unix::fs::symlink("/etc", &dir).unwrap();
        assert!(have(all.path(), &dir, Origin::New).is_err(), "a link is no directory");
        for (annotations, expected) in [
            (json!({}), Origin::ByHand),
            (json!({PROVISIONED_BY: "x"}), Origin::ByHand),
            (json!({PROVISIONED_BY: PROVISIONER}), Origin::New),
            (json!({PROVISIONED_BY: PROVISIONER, MADE: "true"}), Origin::Made),
            (json!({MADE: "true"}), Origin::Made),
        ] {
            assert_eq!(origin(&volume(json!({"metadata": {"annotations": annotations}}))), expected);
        }
    }

    #[tokio::test]
    async fn one_pod_alone_and_room_for_what_it_holds() {
        let all = tempfile::tempdir().unwrap();
        let kept = Kept::new(all.path().to_owned());
        let new = json!({PROVISIONED_BY: PROVISIONER});
        let object = volume(json!({"metadata": {"annotations": new}, "spec": {"accessModes": [ONCE_POD]}}));
        let offer = offered(&object, &claim(), "a").unwrap();
        let capacity = Capacity::of(&object);
        let (first, second): (Arc<str>, Arc<str>) = ("first".into(), "second".into());
        kept.take(&offer, &capacity, &first).unwrap();
        kept.take(&offer, &capacity, &first).unwrap();
        assert!(matches!(kept.take(&offer, &capacity, &second), Err(KeptError::InUse)));
        kept.ready(&offer, all.path().join("v"), capacity.clone()).await.unwrap();
        std::fs::write(all.path().join("v/data"), vec![1; 64 << 10]).unwrap();
        let measured = kept.of("first").pop().unwrap();
        assert_eq!((measured.bytes_max, measured.shown.as_str()), (1 << 10, "1Ki"));
        assert_eq!(kept.release("first"), std::slice::from_ref(&second));
        assert!(!kept.is_used("v") && kept.of("first").is_empty());
        kept.release("second");
        // As after a new start: nothing is known but what the disk says.
        assert!(kept.entries.lock().is_empty());
        kept.take(&offer, &capacity, &second).unwrap();
        let full = kept.ready(&offer, all.path().join("v"), capacity).await.unwrap_err().to_string();
        assert!(full.starts_with("persistentvolume \"v\" holds ") && full.contains("its capacity is 1Ki"), "{full}");
        // It has grown.
        let larger = Capacity::of(&volume(json!({"spec": {"capacity": {"storage": "1Mi"}}})));
        kept.ready(&offer, all.path().join("v"), larger).await.unwrap();
        assert!(matches!(kept.take(&offer, &Capacity::default(), &first), Err(KeptError::InUse)));
        assert_eq!(kept.release("second"), std::slice::from_ref(&first), "it may have it now");
        kept.release("first");
        assert!(kept.entries.lock().is_empty());
    }

    #[test]
    fn what_a_volume_held_while_there_was_room_is_what_its_growth_is_measured_by() {
        let kept = Kept::new("/nowhere".into());
        let offer = offered(&volume(json!({})), &claim(), "a").unwrap();
        kept.take(&offer, &Capacity::of(&volume(json!({}))), &"p".into()).unwrap();
        let measured = kept.of("p").pop().unwrap();
        let held = |bytes| Usage { bytes, ..Usage::default() };
        assert_eq!(kept.before(&measured, held(5)), held(5), "nobody has looked before");
        assert_eq!(kept.before(&measured, held(9)), held(5));
        kept.note(&measured, held(9));
        assert_eq!(kept.before(&measured, held(11)), held(9));
        kept.release("p");
        assert_eq!(kept.before(&measured, held(12)), held(12));
    }
}
