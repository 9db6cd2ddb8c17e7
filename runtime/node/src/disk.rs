//! The disk that pods, images and logs share, with the API's log among others: what is kept free of it, and what pods may take.
//!
//! Space is looked at as often as it could run out: the less there is above the floor ([`crate::Config::min_free_bytes`]), the
//! sooner again. Below the floor the node says `DiskPressure`, drops logs, refuses pulls, evicts pods that hold more than they may,
//! deletes images that no pod names, and evicts the pod that holds most, one at a time: whoever is going is waited for. Volumes that
//! outlive pods stay when a pod goes: of them counts by how much they have grown since there was room, for who fills the disk is to
//! stop. Files have a floor as bytes have. What
//! single pods may hold (`emptyDir.sizeLimit`, `limits.ephemeral-storage`, a claim's capacity) is measured as the kubelet does, by walking their
//! directories, and for no more than a small share of the time. What a guest has deleted and keeps open is among it.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, ResourceRequirements};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::beneath::{self, Seen, Unnamed, Usage};
use crate::pod::core::{Input, all_specs, names, specs};
use crate::pod::files::{FILES_DIR, MESSAGES_DIR, VOLUMES_DIR};
use crate::pod::{Pods, Slot};
use crate::volumes::kept::Measured;
use crate::{logs, machine, quantity};

/// How fast all guests together may write, as far as it is reckoned with: space is looked at again before it is used up.
const WRITE_RATE: f64 = (2_u64 << 30) as f64;
/// Shortest and longest wait between two looks at the free space.
const LOOK_MIN: Duration = Duration::from_millis(100);
const LOOK_MAX: Duration = Duration::from_secs(2);
/// Between two looks while no pod can write.
const LOOK_IDLE: Duration = Duration::from_secs(10);
/// After something was let go, until its files have gone.
const RELIEF_WAIT: Duration = Duration::from_millis(500);
/// How long pods that are going and hold enough are waited for; then another one is evicted.
const GOING_MAX: Duration = Duration::from_secs(60);
/// Of so many files that the file system can have, one stays free: the log and the API need new ones.
const FILES_LEFT: u64 = 20;
/// Pods are measured this often at most, and for a twentieth of the time at most.
const MEASURE_EVERY: Duration = Duration::from_secs(2);
const MEASURE_SHARE: u32 = 20;
/// What a container may hold beside its volumes and logs: its termination message, and what it puts beside files of volumes. Such a
/// file that has another in its place in the volume by now is kept by the container alone: as much as was shown is added.
const OWN_BYTES_MAX: u64 = 10 << 20;
/// A pod that holds less is not evicted for want of space: its end would not help.
const EVICTED_BYTES_MIN: u64 = 1 << 20;
/// The same for want of files.
const EVICTED_FILES_MIN: u64 = 100;

/// Whether the disk is low.
#[derive(Debug)]
pub struct Disk {
    dir: PathBuf,
    min_free_bytes: u64,
    is_low: Arc<AtomicBool>,
    changed: watch::Sender<bool>,
}

impl Disk {
    /// The disk that holds `dir`.
    pub fn new(dir: PathBuf, min_free_bytes: u64) -> Self {
        let disk = Self { dir, min_free_bytes, is_low: Arc::default(), changed: watch::Sender::new(false) };
        disk.look();
        disk
    }

    /// Whether there is less free than must be kept.
    pub fn is_low(&self) -> bool {
        self.is_low.load(Ordering::Relaxed)
    }

    /// The same, for those who look at each write.
    pub fn low_flag(&self) -> Arc<AtomicBool> {
        self.is_low.clone()
    }

    /// Told when that changes.
    pub fn changed(&self) -> watch::Receiver<bool> {
        self.changed.subscribe()
    }

    /// Looks at the free space; returns what is above the floor. A disk that does not answer is not low.
    fn look(&self) -> u64 {
        let above = machine::storage(&self.dir).map_or(u64::MAX, |(_, free)| free.saturating_sub(self.min_free_bytes));
        let is_low = self.lacks().is_some();
        self.is_low.store(is_low, Ordering::Relaxed);
        self.changed.send_if_modified(|old| std::mem::replace(old, is_low) != is_low);
        above
    }

    /// Whether so many bytes more leave it above its floor, as of this moment. A disk that does not answer is not low.
    pub fn has_room(&self, bytes: u64) -> bool {
        let free = machine::storage(&self.dir).map_or(u64::MAX, |(_, free)| free);
        self.lacks().is_none() && free.saturating_sub(bytes) > self.min_free_bytes
    }

    /// What is missing to the floor; `None` when nothing is.
    fn lacks(&self) -> Option<Lack> {
        let bytes = machine::storage(&self.dir)
            .map_or(0, |(_, free)| self.min_free_bytes.saturating_add(1).saturating_sub(free));
        let files = machine::inodes(&self.dir).map_or(0, |(all, free)| (all / FILES_LEFT).saturating_sub(free));
        (bytes > 0 || files > 0).then_some(Lack { bytes, files })
    }
}

/// What is missing to a disk's floor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Lack {
    bytes: u64,
    files: u64,
}

impl Lack {
    /// How much of what is missing somebody holds: files, while files are missing.
    fn held(&self, usage: Usage) -> u64 {
        match () {
            () if usage.is_too_deep => MOST,
            () if self.files > 0 => usage.entries,
            () => usage.new_bytes,
        }
    }

    /// Whether the end of somebody who holds so much would help.
    fn is_helped_by(&self, held: u64) -> bool {
        held >= if self.files > 0 { EVICTED_FILES_MIN } else { EVICTED_BYTES_MIN }
    }

    /// Whether those who are going anyway are waited for.
    fn waits(&self, going: u64, waited: Duration) -> bool {
        let missing = if self.files > 0 { self.files } else { self.bytes };
        going >= missing && waited < GOING_MAX
    }
}

/// Keeps the disk from filling up, until shutdown. Free space is looked at while pods are measured, however long that takes.
/// Until all pods are known (`synced`), nobody knows which images are wanted.
pub async fn run(pods: Arc<Pods>, synced: watch::Receiver<bool>, shutdown: CancellationToken) {
    tokio::join!(watch_space(&pods, &synced, &shutdown), measure(&pods, &shutdown));
}

async fn watch_space(pods: &Arc<Pods>, synced: &watch::Receiver<bool>, shutdown: &CancellationToken) {
    let disk = &pods.context.disk;
    let mut low_since = None;
    loop {
        let begun = Instant::now();
        let above = disk.look();
        let all = pods.all();
        let is_synced = *synced.borrow();
        let wait = match all.is_empty() {
            true => LOOK_IDLE,
            false => Duration::from_secs_f64(above as f64 / WRITE_RATE).clamp(LOOK_MIN, LOOK_MAX),
        };
        let wait = match disk.is_low() {
            true => match relieve(pods, &all, is_synced, &mut low_since).await {
                true => RELIEF_WAIT,
                // Somebody may begin to write, and all are looked at for that.
                false => MEASURE_EVERY.max(begun.elapsed() * MEASURE_SHARE).min(LOOK_IDLE),
            },
            false => {
                low_since = None;
                wait
            }
        };
        // Waiting is all that is cut here.
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = shutdown.cancelled() => return,
        }
    }
}

/// Measures the pods that have bounds, one after the other.
async fn measure(pods: &Arc<Pods>, shutdown: &CancellationToken) {
    loop {
        let begun = Instant::now();
        let unnamed = unnamed().await;
        for slot in pods.all().iter().filter(|slot| is_bounded(pods, slot)) {
            // While the disk is low that is done before anything else is done about it.
            if pods.context.disk.is_low() || shutdown.is_cancelled() {
                break;
            }
            check(pods, slot, &unnamed).await;
        }
        // Waiting is all that is cut here.
        tokio::select! {
            () = tokio::time::sleep_until(begun + MEASURE_EVERY.max(begun.elapsed() * MEASURE_SHARE)) => {}
            () = shutdown.cancelled() => return,
        }
    }
}

/// What guests have deleted and keep open. Where it is not known, what has a name is measured all the same.
async fn unnamed() -> Arc<Unnamed> {
    let looked = tokio::task::spawn_blocking(Unnamed::look).await;
    let unnamed = looked.map_err(io::Error::other).flatten().inspect_err(|error| {
        tracing::warn!(%error, "what pods have deleted and keep open is not known");
    });
    Arc::new(unnamed.unwrap_or_default())
}

/// Whether a pod is measured for what it may hold.
fn is_bounded(pods: &Pods, slot: &Slot) -> bool {
    slot.has_files() && (slot.has_own_files() || is_limited(&slot.pod()) || !pods.context.kept.of(&slot.uid).is_empty())
}

/// Evicts pods that hold more than they may, lets go of images that nobody runs, waits for pods that are going, or ends the one
/// that holds most; false when there is nothing that would help. `since` is since when somebody is waited for.
async fn relieve(pods: &Arc<Pods>, all: &[Arc<Slot>], is_synced: bool, since: &mut Option<Instant>) -> bool {
    let mut unnamed = unnamed().await;
    let mut is_evicted = false;
    for slot in all.iter().filter(|slot| is_bounded(pods, slot)) {
        is_evicted |= check(pods, slot, &unnamed).await;
    }
    if is_evicted {
        *since = Some(Instant::now());
        return true;
    }
    let Some(lack) = pods.context.disk.lacks() else { return true };
    if is_synced && free_images(pods, all, lack).await {
        return true;
    }
    unnamed = self::unnamed().await;
    let mut holdings = Vec::new();
    for slot in all.iter().filter(|slot| slot.has_files()) {
        holdings.push((slot, holding(pods, slot, lack, unnamed.clone()).await));
    }
    let waited = since.get_or_insert_with(Instant::now).elapsed();
    match relief(lack, holdings.iter().map(|(_, holding)| holding), waited) {
        Relief::Wait => true,
        Relief::None => false,
        Relief::Evict(index) => {
            let Some((slot, holding)) = holdings.get(index) else { return false };
            *since = Some(Instant::now());
            // Whoever has a volume with it and writes no more than before has not filled the disk.
            for (volume, used) in &holding.kept {
                pods.context.kept.note(volume, *used);
            }
            let used = holding.counted();
            tracing::warn!(namespace = %slot.namespace, pod = %slot.name, used, ?lack, "pod is evicted: the disk is low");
            pods.input(slot, Input::Evict { message: evicted(&pods.context.disk, lack, used) });
            true
        }
    }
}

/// What a pod holds of what is missing.
#[derive(Debug, Default)]
struct Holding {
    is_ending: bool,
    /// What is free when it has gone.
    own: u64,
    /// What its volumes have grown by that outlive it: they stay, and grow no more when it has gone.
    grown: u64,
    /// Those, and what they hold.
    kept: Vec<(Measured, Usage)>,
}

impl Holding {
    fn counted(&self) -> u64 {
        self.own.saturating_add(self.grown)
    }
}

/// What is to be done about a disk that is low.
#[derive(Debug, PartialEq, Eq)]
enum Relief {
    /// Nothing, for a while.
    Wait,
    /// This pod goes.
    Evict(usize),
    /// Nothing would help.
    None,
}

fn relief<'a>(lack: Lack, holdings: impl Iterator<Item = &'a Holding>, waited: Duration) -> Relief {
    let (mut most, mut going): (Option<(u64, usize)>, u64) = (None, 0);
    for (index, holding) in holdings.enumerate() {
        let counted = holding.counted();
        if holding.is_ending {
            going = going.saturating_add(holding.own);
        } else if lack.is_helped_by(counted) && most.is_none_or(|(most, _)| counted > most) {
            most = Some((counted, index));
        }
    }
    match most {
        _ if lack.waits(going, waited) => Relief::Wait,
        Some((_, index)) => Relief::Evict(index),
        None => Relief::None,
    }
}

/// Deletes images that no pod names; whether there were any.
async fn free_images(pods: &Arc<Pods>, all: &[Arc<Slot>], lack: Lack) -> bool {
    // An image is one file: where files are missing, all go at once, and pods are next.
    let (images, wanted) = (pods.clone(), if lack.files > 0 { u64::MAX } else { lack.bytes });
    let objects: Vec<Arc<Pod>> = all.iter().map(|slot| slot.pod()).collect();
    let freed = tokio::task::spawn_blocking(move || {
        let containers = objects.iter().flat_map(|pod| all_specs(pod));
        let named: Vec<String> = containers.filter_map(|container| container.into_owned().image).collect();
        images.context.images.free(wanted, named.iter().map(String::as_str))
    });
    freed.await.is_ok_and(|bytes| bytes > 0)
}

fn evicted(disk: &Disk, lack: Lack, used: u64) -> String {
    let (resource, unit) = if lack.files > 0 { ("inodes", "") } else { ("ephemeral-storage", "Ki") };
    let shown = |number: u64| format!("{}{unit}", if lack.files > 0 { number } else { number >> 10 });
    let free = match lack.files {
        0 => machine::storage(&disk.dir).map_or(0, |(_, free)| free),
        _ => machine::inodes(&disk.dir).map_or(0, |(_, free)| free),
    };
    let floor = if lack.files > 0 { free + lack.files } else { disk.min_free_bytes };
    let used = if used == MOST { "more than can be measured".to_owned() } else { shown(used) };
    format!(
        "The node was low on resource: {resource}. Threshold quantity: {floor}, available: {}. The pod was using {used}. ",
        shown(free)
    )
}

/// What a pod holds whose tree was not measured to its end.
const MOST: u64 = u64::MAX;

async fn holding(pods: &Arc<Pods>, slot: &Slot, lack: Lack, unnamed: Arc<Unnamed>) -> Holding {
    let is_ending = slot.with_core(|core| core.is_ending());
    let (dir, volumes) = (pods.context.pods_dir.join(&*slot.uid), pods.context.kept.of(&slot.uid));
    let measured = tokio::task::spawn_blocking(move || {
        let (mut seen, mut kept) = (Seen::new(), Vec::new());
        // Files of theirs have second names in the pod's own directory.
        for volume in volumes {
            match measured(&volume.dir, &mut seen, &unnamed) {
                Ok(used) => kept.push((volume, used)),
                Err(error) => tracing::warn!(volume = volume.volume, %error, "what a volume holds is not known"),
            }
        }
        (kept, measured(&dir, &mut seen, &unnamed))
    });
    let (kept, own) = measured.await.unwrap_or_else(|error| (Vec::new(), Err(io::Error::other(error))));
    let grown = kept.iter().map(|(volume, used)| {
        let before = pods.context.kept.before(volume, *used);
        lack.held(*used).saturating_sub(lack.held(before))
    });
    let grown = grown.fold(0, u64::saturating_add);
    Holding { is_ending, own: held_of(own, lack), grown, kept }
}

/// A tree that is too deep or cannot be walked to its end holds more than any other: nobody else is evicted for it.
fn held_of(measured: io::Result<Usage>, lack: Lack) -> u64 {
    match measured {
        Ok(usage) => lack.held(usage),
        Err(error) => {
            tracing::warn!(%error, "what a pod holds on the disk is not known");
            MOST
        }
    }
}

/// What there is beneath a directory, with a name or without.
fn measured(dir: &Path, seen: &mut Seen, unnamed: &Unnamed) -> io::Result<Usage> {
    let mut used = beneath::usage(dir, seen)?;
    used += unnamed.beneath(dir);
    Ok(used)
}

/// What is wrong with what a pod holds.
async fn look(pods: &Arc<Pods>, slot: &Arc<Slot>, unnamed: Arc<Unnamed>) -> io::Result<Option<String>> {
    let (pod, own) = (slot.pod(), pods.context.pods_dir.join(&*slot.uid));
    let logs = logs::pod_dir(&pods.context.logs_dir, &slot.namespace, &slot.name, &slot.uid);
    let (pods, kept, shown_bytes) = (pods.clone(), pods.context.kept.of(&slot.uid), slot.shown_bytes());
    let measured = tokio::task::spawn_blocking(move || {
        let places = Places { own: &own, logs: &logs, kept: &kept, shown_bytes: &shown_bytes };
        excess(&pod, &places, &unnamed, |volume, used| {
            if !pods.context.disk.is_low() {
                pods.context.kept.note(volume, used);
            }
        })
    });
    measured.await.map_err(io::Error::other).flatten()
}

/// Evicts a pod that holds more than it may; whether it did.
async fn check(pods: &Arc<Pods>, slot: &Arc<Slot>, unnamed: &Arc<Unnamed>) -> bool {
    if slot.with_core(|core| core.is_ending()) {
        return false;
    }
    let mut found = look(pods, slot, unnamed.clone()).await;
    if let Ok(Some(_)) = found {
        // Some of what had no name then may be closed by now, and what came instead was counted, too.
        let unnamed = self::unnamed().await;
        found = look(pods, slot, unnamed).await;
    }
    match found {
        Ok(Some(message)) => {
            pods.input(slot, Input::Evict { message });
            return true;
        }
        Ok(None) => {}
        // It says nothing of the pod's bounds: as when there are no descriptors left. It is measured again soon.
        Err(error) => {
            tracing::warn!(namespace = %slot.namespace, pod = %slot.name, %error, "what the pod holds is not measured");
        }
    }
    false
}

/// Whether a pod has bounds that are measured.
fn is_limited(pod: &Pod) -> bool {
    let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default();
    volumes.iter().any(|volume| volume.empty_dir.as_ref().is_some_and(|source| source.size_limit.is_some()))
        || specs(pod).any(|container| storage_limit(container.resources.as_ref()).is_some())
}

/// Where a pod holds something.
struct Places<'a> {
    own: &'a Path,
    logs: &'a Path,
    /// Its volumes that outlive it.
    kept: &'a [Measured],
    /// By container, what was shown to it of volumes by second names; none where that is not known, and nothing is held against it.
    shown_bytes: &'a [Option<u64>],
}

/// What of a pod is more than it may be, in the kubelet's words; `held` hears what the volumes hold that outlive it. Blocks on the
/// disk; a file with several names is counted for the first place that has it: a volume before what a container has beside it.
fn excess(
    pod: &Pod,
    places: &Places<'_>,
    unnamed: &Unnamed,
    mut held: impl FnMut(&Measured, Usage),
) -> io::Result<Option<String>> {
    let Places { own, logs, kept, shown_bytes } = places;
    let mut seen = Seen::new();
    let mut measure = |dir: PathBuf| measured(&dir, &mut seen, unnamed);
    let is_over = |bytes: u64, used: Usage, limit: u64| bytes > limit || used.is_too_deep;
    let Some(spec) = pod.spec.as_ref() else { return Ok(None) };
    let found = |message: String| Ok(Some(message));
    let limits: BTreeMap<&str, u64> = specs(pod)
        .filter_map(|container| Some((container.name.as_str(), storage_limit(container.resources.as_ref())?)))
        .collect();
    let mut total = Usage::default();
    for volume in spec.volumes.iter().flatten() {
        // The files of others have second names beside the volumes, which are not the containers' own.
        let used = measure(own.join(VOLUMES_DIR).join(&volume.name))?;
        let Some(source) = &volume.empty_dir else { continue };
        let limit = source.size_limit.as_ref().and_then(quantity::units).filter(|limit| *limit > 0);
        total += used;
        if let (Some(limit), Some(written)) = (limit, &source.size_limit)
            && is_over(used.bytes, used, limit)
        {
            let (name, shown) = (&volume.name, &written.0);
            return found(format!("Usage of EmptyDir volume {name:?} exceeds the limit {shown:?}. "));
        }
    }
    for volume in *kept {
        let used = measure(volume.dir.clone())?;
        if is_over(used.bytes, used, volume.bytes_max) {
            let (name, shown) = (&volume.volume, &volume.shown);
            return found(format!("Usage of PersistentVolume {name:?} exceeds its capacity {shown:?}. "));
        }
        held(volume, used);
    }
    for (index, name) in names(pod).enumerate() {
        let shown_bytes = shown_bytes.get(index).copied().flatten();
        let mut used = measure(own.join(MESSAGES_DIR).join(name))?;
        if shown_bytes.is_some() {
            used += measure(own.join(FILES_DIR).join(name))?;
        }
        if is_over(used.new_bytes, used, OWN_BYTES_MAX.saturating_add(shown_bytes.unwrap_or_default())) {
            return found(format!(
                "Container {name} exceeded the limit \"10Mi\" of what it may hold outside of volumes. "
            ));
        }
        if limits.is_empty() {
            continue;
        }
        used += measure(logs.join(name))?;
        total += used;
        if let Some(limit) = limits.get(name)
            && is_over(used.new_bytes, used, *limit)
        {
            return found(format!(
                "Container {name} exceeded its local ephemeral storage limit \"{}\". ",
                shown(*limit)
            ));
        }
    }
    // As the kubelet: a pod is bounded when all of its containers are.
    let sum: u64 = limits.values().sum();
    if !limits.is_empty() && limits.len() == specs(pod).count() && is_over(total.new_bytes, total, sum) {
        let shown = shown(sum);
        return found(format!("Pod ephemeral local storage usage exceeds the total limit of containers {shown}. "));
    }
    Ok(None)
}

fn storage_limit(resources: Option<&ResourceRequirements>) -> Option<u64> {
    let limit = resources?.limits.as_ref()?.get("ephemeral-storage")?;
    quantity::units(limit).filter(|limit| *limit > 0)
}

/// As a quantity of binary units, when it is one.
fn shown(bytes: u64) -> String {
    let units = [(1_u64 << 30, "Gi"), (1 << 20, "Mi"), (1 << 10, "Ki")];
    match units.iter().find(|(unit, _)| bytes > 0 && bytes.is_multiple_of(*unit)) {
        Some((unit, suffix)) => format!("{}{suffix}", bytes / unit),
        None => bytes.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn what_a_pod_holds_is_measured_against_what_it_may() {
        let dir = tempfile::tempdir().unwrap();
        let (own, logs) = (dir.path().join("own"), dir.path().join("logs"));
        let put = |path: PathBuf, kib: usize| {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, vec![1; kib << 10]).unwrap();
        };
        put(own.join("volumes/v/a/b"), 300);
        put(logs.join("c/0.log"), 100);
        put(own.join("messages/c/1/termination-log"), 4);
        let sparse = std::fs::File::create(own.join("volumes/v/sparse")).unwrap();
        sparse.set_len(1 << 40).unwrap();
        let excess = |volume: Value, limit: Value| {
            let container = json!({"name": "c", "resources": {"limits": limit}});
            let spec = json!({"volumes": [{"name": "v", "emptyDir": volume}], "containers": [container]});
            let pod: Pod = serde_json::from_value(json!({"spec": spec})).unwrap();
            let places = Places { own: &own, logs: &logs, kept: &[], shown_bytes: &[Some(0)] };
            super::excess(&pod, &places, &Unnamed::look().unwrap(), |_, _| {}).unwrap().unwrap_or_default()
        };
        for (volume, limit, expected) in [
            (json!({}), json!({}), ""),
            (json!({"sizeLimit": "1Mi"}), json!({"ephemeral-storage": "1Mi"}), ""),
            (json!({"sizeLimit": "200Ki"}), json!({}), "Usage of EmptyDir volume \"v\" exceeds the limit \"200Ki\". "),
            (
                json!({}),
                json!({"ephemeral-storage": "50Ki"}),
                "Container c exceeded its local ephemeral storage limit \"50Ki\". ",
            ),
            (
                json!({}),
                json!({"ephemeral-storage": "200Ki"}),
                "Pod ephemeral local storage usage exceeds the total limit of containers 200Ki. ",
            ),
        ] {
            assert_eq!(excess(volume, limit), expected);
        }
        // Neither does a file that has no name any more.
        put(own.join("volumes/v/going"), 2 << 10);
        let going = std::fs::File::open(own.join("volumes/v/going")).unwrap();
        std::fs::remove_file(own.join("volumes/v/going")).unwrap();
        let limit = "Usage of EmptyDir volume \"v\" exceeds the limit \"1Mi\". ";
        assert_eq!(excess(json!({"sizeLimit": "1Mi"}), json!({})), limit);
        let of_pod = "Pod ephemeral local storage usage exceeds the total limit of containers 2Mi. ";
        assert_eq!(excess(json!({}), json!({"ephemeral-storage": "2Mi"})), of_pod);
        drop(going);
        assert_eq!(excess(json!({"sizeLimit": "1Mi"}), json!({"ephemeral-storage": "2Mi"})), "");
        // A second name hides nothing, and what is a volume's is the container's no second time.
        let link = |from: &str, to: &str| {
            std::fs::create_dir_all(own.join(to).parent().unwrap()).unwrap();
            std::fs::hard_link(own.join(from), own.join(to)).unwrap();
        };
        put(own.join("volumes/v/shown"), 12 << 10);
        link("volumes/v/shown", "files/c/1/shown");
        link("volumes/v/shown", "volumes/v/twice");
        assert_eq!(excess(json!({"sizeLimit": "13Mi"}), json!({})), "");
        put(own.join("files/c/1/hidden"), 11 << 10);
        link("files/c/1/hidden", "files/c/1/name");
        let own_limit = "Container c exceeded the limit \"10Mi\"";
        assert!(excess(json!({}), json!({})).starts_with(own_limit));
        let held = beneath::usage(&own, &mut Seen::new());
        let of = |files| Lack { bytes: 1, files };
        assert_eq!(held_of(Ok(held.as_ref().copied().unwrap()), of(1)), held.as_ref().unwrap().entries);
        let bytes = held_of(held, of(0));
        assert!((23 << 20..24 << 20).contains(&bytes), "each file once: {bytes}");
        assert_eq!(held_of(Err(io::ErrorKind::PermissionDenied.into()), of(0)), MOST);
        assert_eq!(held_of(Ok(Usage { is_too_deep: true, ..Usage::default() }), of(0)), MOST);
        std::fs::remove_dir_all(own.join("files")).unwrap();
        put(own.join("messages/c/1/other"), 11 << 10);
        assert!(excess(json!({}), json!({})).starts_with(own_limit));
    }

    #[test]
    fn a_file_of_a_volume_that_outlives_the_pod_is_not_the_containers_own() {
        let dir = tempfile::tempdir().unwrap();
        let (own, kept) = (dir.path().join("own"), dir.path().join("kept"));
        std::fs::create_dir_all(own.join("files/c/1/0")).unwrap();
        std::fs::create_dir(&kept).unwrap();
        std::fs::write(kept.join("model"), vec![1; 12 << 20]).unwrap();
        std::fs::hard_link(kept.join("model"), own.join("files/c/1/0/model")).unwrap();
        let pod: Pod = serde_json::from_value(json!({"spec": {"containers": [{"name": "c"}]}})).unwrap();
        let mut measured = Vec::new();
        let mut excess = |bytes_max: u64, shown: &str, shown_mib: Option<u64>| {
            let volume = Measured { dir: kept.clone(), volume: "v".into(), bytes_max, shown: shown.into() };
            let shown_bytes = [shown_mib.map(|mib| mib << 20)];
            let places = Places { own: &own, logs: dir.path(), kept: &[volume], shown_bytes: &shown_bytes };
            let found = super::excess(&pod, &places, &Unnamed::default(), |volume, used| {
                measured.push((volume.volume.clone(), used.bytes >> 20));
            });
            found.unwrap().unwrap_or_default()
        };
        assert_eq!(excess(13 << 20, "13Mi", Some(12)), "");
        let over = "Usage of PersistentVolume \"v\" exceeds its capacity \"1Mi\". ";
        assert_eq!(excess(1 << 20, "1Mi", Some(12)), over);
        // Somebody has put another in its place: who was shown the old one keeps it.
        std::fs::write(kept.join("new"), "x").unwrap();
        std::fs::rename(kept.join("new"), kept.join("model")).unwrap();
        assert_eq!(excess(13 << 20, "13Mi", Some(12)), "");
        assert_eq!(excess(13 << 20, "13Mi", None), "", "an earlier life of the node has shown it");
        assert!(excess(13 << 20, "13Mi", Some(1)).starts_with("Container c exceeded the limit \"10Mi\""));
        assert_eq!(measured.iter().map(|(_, mib)| *mib).collect::<Vec<_>>(), [12, 0, 0, 0]);
    }

    #[test]
    fn who_fills_a_volume_that_stays_goes_before_who_holds_less() {
        let lack = Lack { bytes: 5 << 20, files: 0 };
        let holding = |is_ending: bool, own: u64, grown: u64| Holding {
            is_ending,
            own: own << 20,
            grown: grown << 20,
            kept: Vec::new(),
        };
        let relief = |holdings: &[Holding]| super::relief(lack, holdings.iter(), Duration::ZERO);
        assert_eq!(relief(&[holding(false, 3, 0), holding(false, 0, 9), holding(false, 4, 0)]), Relief::Evict(1));
        assert_eq!(relief(&[holding(false, 3, 0), holding(false, 0, 0), holding(false, 4, 0)]), Relief::Evict(2));
        // Its end frees nothing of what its volume holds.
        assert_eq!(relief(&[holding(true, 0, 9), holding(false, 3, 0)]), Relief::Evict(1));
        assert_eq!(relief(&[holding(true, 6, 0), holding(false, 9, 0)]), Relief::Wait);
        assert_eq!(relief(&[holding(true, 0, 9), holding(false, 0, 0)]), Relief::None);
    }

    #[test]
    fn whoever_goes_and_holds_enough_is_waited_for() {
        let (moment, long) = (Duration::from_secs(1), GOING_MAX);
        let bytes = Lack { bytes: 5 << 20, files: 0 };
        assert!(bytes.waits(5 << 20, moment) && bytes.waits(MOST, moment));
        assert!(!bytes.waits(4 << 20, moment), "it would not be enough");
        assert!(!bytes.waits(MOST, long), "it does not go");
        assert!(bytes.is_helped_by(1 << 20) && !bytes.is_helped_by(1 << 19));
        let files = Lack { bytes: 0, files: 1000 };
        assert!(files.waits(1000, moment) && !files.waits(999, moment));
        assert!(files.is_helped_by(100) && !files.is_helped_by(99));
        let both = Lack { bytes: 5 << 20, files: 1000 };
        assert!(both.waits(1000, moment), "in files, while files are missing");
    }

    #[test]
    fn a_disk_below_its_floor_is_low() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!Disk::new(dir.path().to_owned(), 0).is_low());
        let low = Disk::new(dir.path().to_owned(), u64::MAX);
        assert!(low.is_low() && *low.changed().borrow());
        assert!(!low.has_room(0));
        let (_, free) = machine::storage(dir.path()).unwrap();
        let disk = Disk::new(dir.path().to_owned(), free / 2);
        assert!(disk.has_room(0) && disk.has_room(free / 4) && !disk.has_room(free / 4 * 3));
    }
}
