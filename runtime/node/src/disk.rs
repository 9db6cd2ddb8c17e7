//! The disk that pods, images and logs share, with the API's log among others: what is kept free of it, and what pods may take.
//!
//! Space is looked at as often as it could run out: the less there is above the floor ([`crate::Config::min_free_bytes`]), the
//! sooner again. Below the floor the node says `DiskPressure`, drops logs, refuses pulls, and evicts the pod that holds most. What
//! single pods may hold (`emptyDir.sizeLimit`, `limits.ephemeral-storage`) is measured as the kubelet does, by walking their
//! directories, and for no more than a small share of the time.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, ResourceRequirements};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::beneath::{self, Usage};
use crate::pod::core::{Input, specs};
use crate::pod::files::{FILES_DIR, MESSAGES_DIR, VOLUMES_DIR};
use crate::pod::{Pods, Slot};
use crate::{logs, machine, quantity};

/// How fast all guests together may write, as far as it is reckoned with: space is looked at again before it is used up.
const WRITE_RATE: f64 = (2_u64 << 30) as f64;
/// Shortest and longest wait between two looks at the free space.
const LOOK_MIN: Duration = Duration::from_millis(100);
const LOOK_MAX: Duration = Duration::from_secs(2);
/// Between two looks while no pod can write.
const LOOK_IDLE: Duration = Duration::from_secs(10);
/// After a pod was evicted, until its files have gone.
const RELIEF_WAIT: Duration = Duration::from_millis(500);
/// Pods are measured this often at most, and for a twentieth of the time at most.
const MEASURE_EVERY: Duration = Duration::from_secs(2);
const MEASURE_SHARE: u32 = 20;
/// What a container may hold beside its volumes and logs: its termination message, and what it puts beside files of volumes.
const OWN_BYTES_MAX: u64 = 10 << 20;
/// A pod that holds less is not evicted for want of space: its end would not help.
const EVICTED_BYTES_MIN: u64 = 1 << 20;

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
        let is_low = above == 0;
        self.is_low.store(is_low, Ordering::Relaxed);
        self.changed.send_if_modified(|old| std::mem::replace(old, is_low) != is_low);
        above
    }
}

/// Keeps the disk from filling up, until shutdown.
pub async fn run(pods: Arc<Pods>, shutdown: CancellationToken) {
    let disk = &pods.context.disk;
    let mut measure_at = Instant::now();
    loop {
        let above = disk.look();
        let all = pods.all();
        let wait = match all.is_empty() {
            true => LOOK_IDLE,
            false => Duration::from_secs_f64(above as f64 / WRITE_RATE).clamp(LOOK_MIN, LOOK_MAX),
        };
        let begun = Instant::now();
        let mut wait = wait;
        if disk.is_low() {
            wait = if relieve(&pods, &all).await { RELIEF_WAIT } else { LOOK_IDLE };
        } else if measure_at <= begun {
            for slot in all.iter().filter(|slot| slot.has_files()) {
                if slot.has_own_files() || is_limited(&slot.pod()) {
                    check(&pods, slot).await;
                }
            }
            measure_at = begun + MEASURE_EVERY.max(begun.elapsed() * MEASURE_SHARE);
        }
        // Waiting is all that is cut here.
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = shutdown.cancelled() => return,
        }
    }
}

/// Ends the pod that holds most; false when there is none whose end would help.
async fn relieve(pods: &Arc<Pods>, all: &[Arc<Slot>]) -> bool {
    let mut most: Option<(u64, &Arc<Slot>)> = None;
    for slot in all.iter().filter(|slot| slot.has_files() && !slot.with_core(|core| core.is_ending())) {
        let used = held(pods, slot).await.bytes;
        if used >= EVICTED_BYTES_MIN && most.is_none_or(|(bytes, _)| used > bytes) {
            most = Some((used, slot));
        }
    }
    let Some((used, slot)) = most else { return false };
    let free = machine::storage(&pods.context.disk.dir).map_or(0, |(_, free)| free);
    let message = format!(
        "The node was low on resource: ephemeral-storage. Threshold quantity: {}, available: {}Ki. The pod was using {}Ki. ",
        pods.context.disk.min_free_bytes,
        free >> 10,
        used >> 10,
    );
    tracing::warn!(namespace = %slot.namespace, pod = %slot.name, used, free, "pod is evicted: the disk is low");
    pods.input(slot, Input::Evict { message });
    true
}

async fn held(pods: &Arc<Pods>, slot: &Slot) -> Usage {
    let dir = pods.context.pods_dir.join(&*slot.uid);
    let measured = tokio::task::spawn_blocking(move || beneath::usage(&dir, false)).await;
    measured.ok().and_then(Result::ok).unwrap_or_default()
}

/// Evicts a pod that holds more than it may.
async fn check(pods: &Arc<Pods>, slot: &Arc<Slot>) {
    let pod = slot.pod();
    if slot.with_core(|core| core.is_ending()) {
        return;
    }
    let own = pods.context.pods_dir.join(&*slot.uid);
    let logs = logs::pod_dir(&pods.context.logs_dir, &slot.namespace, &slot.name, &slot.uid);
    let measured = tokio::task::spawn_blocking(move || excess(&pod, &own, &logs)).await;
    if let Ok(Some(message)) = measured {
        pods.input(slot, Input::Evict { message });
    }
}

/// Whether a pod has bounds that are measured.
fn is_limited(pod: &Pod) -> bool {
    let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default();
    volumes.iter().any(|volume| volume.empty_dir.as_ref().is_some_and(|source| source.size_limit.is_some()))
        || specs(pod).any(|container| storage_limit(container.resources.as_ref()).is_some())
}

/// What of a pod is more than it may be, in the kubelet's words. Blocks on the disk.
fn excess(pod: &Pod, own: &Path, logs: &Path) -> Option<String> {
    let measure = |dir: PathBuf, counts_links| beneath::usage(&dir, counts_links).unwrap_or_default();
    let is_over = |used: Usage, limit: u64| used.bytes > limit || used.is_too_deep;
    let spec = pod.spec.as_ref()?;
    let limits: BTreeMap<&str, u64> = specs(pod)
        .filter_map(|container| Some((container.name.as_str(), storage_limit(container.resources.as_ref())?)))
        .collect();
    let mut total = Usage::default();
    for volume in spec.volumes.iter().flatten() {
        let Some(source) = &volume.empty_dir else { continue };
        let limit = source.size_limit.as_ref().and_then(quantity::units).filter(|limit| *limit > 0);
        if limit.is_none() && limits.is_empty() {
            continue;
        }
        let used = measure(own.join(VOLUMES_DIR).join(&volume.name), true);
        total += used;
        if let (Some(limit), Some(written)) = (limit, &source.size_limit)
            && is_over(used, limit)
        {
            let (name, shown) = (&volume.name, &written.0);
            return Some(format!("Usage of EmptyDir volume {name:?} exceeds the limit {shown:?}. "));
        }
    }
    for container in specs(pod) {
        let name = &container.name;
        let mut used = measure(own.join(FILES_DIR).join(name), false);
        used += measure(own.join(MESSAGES_DIR).join(name), true);
        if is_over(used, OWN_BYTES_MAX) {
            return Some(format!(
                "Container {name} exceeded the limit \"10Mi\" of what it may hold outside of volumes. "
            ));
        }
        if limits.is_empty() {
            continue;
        }
        used += measure(logs.join(name), true);
        total += used;
        if let Some(limit) = limits.get(name.as_str())
            && is_over(used, *limit)
        {
            return Some(format!(
                "Container {name} exceeded its local ephemeral storage limit \"{}\". ",
                shown(*limit)
            ));
        }
    }
    // As the kubelet: a pod is bounded when all of its containers are.
    let sum: u64 = limits.values().sum();
    if !limits.is_empty() && limits.len() == specs(pod).count() && is_over(total, sum) {
        let shown = shown(sum);
        return Some(format!("Pod ephemeral local storage usage exceeds the total limit of containers {shown}. "));
    }
    None
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
            super::excess(&pod, &own, &logs).unwrap_or_default()
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
        put(own.join("messages/c/1/other"), 11 << 10);
        assert!(excess(json!({}), json!({})).starts_with("Container c exceeded the limit \"10Mi\""));
    }

    #[test]
    fn a_disk_below_its_floor_is_low() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!Disk::new(dir.path().to_owned(), 0).is_low());
        let low = Disk::new(dir.path().to_owned(), u64::MAX);
        assert!(low.is_low() && *low.changed().borrow());
    }
}
