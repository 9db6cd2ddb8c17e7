//! A pod's volumes on disk: written when the first container that can open files is started, and kept in step after that.
//!
//! The volume with the credentials of the pod's service account, which admission adds to every pod, is written only for a
//! component that also imports some way to reach the API server: a token is of no use without one, and asking for one costs
//! more than starting the pod.

use std::collections::{BTreeSet, HashMap};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use coracle_engine::{Component, Mount};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container as Spec, Pod, Volume, VolumeMount};
use tokio_util::sync::CancellationToken;

use super::core::{Index, Run, all_specs, mounted};
use super::slot::Slot;
use super::table::{Alarm, Pods};
use crate::beneath;
use crate::certificates::{CertificateError, Need};
use crate::downward::Downward;
use crate::env::{Contents, expand};
use crate::objects::{Content, ObjectKey, ReadError};
use crate::volumes::kept::{self, Held};
use crate::volumes::{self, Access, COPIED_BYTES_MAX, Sources};

/// Volumes that admission adds for the service account are called so.
const CREDENTIALS_PREFIX: &str = "kube-api-access-";
/// The default of `terminationMessagePath`.
const MESSAGE_PATH: &str = "/dev/termination-log";
/// Below a pod's directory: what shows single files of volumes, and the termination messages.
pub(crate) const FILES_DIR: &str = "files";
pub(crate) const MESSAGES_DIR: &str = "messages";
/// The volumes.
pub(crate) const VOLUMES_DIR: &str = "volumes";
/// Longest path that `subPathExpr` may mean: Linux has no longer one (`PATH_MAX`).
const SUB_PATH_BYTES_MAX: usize = 4096;

/// What was written for a pod.
#[derive(Default)]
pub struct Written {
    volumes: BTreeSet<String>,
    /// The volumes of its claims, which were not made for it and stay when it goes.
    kept: HashMap<String, Held>,
}

/// The directories of a container.
#[derive(Default)]
pub(super) struct Mounts {
    pub mounts: Vec<Mount>,
    /// Held as long as instances may be made: mounts name them.
    pub held: Vec<Arc<OwnedFd>>,
    /// The file for its termination message.
    pub message: Option<PathBuf>,
}

/// Why the mounts of a container cannot be made.
pub(super) enum MountFailed {
    /// A volume is not there yet: the container waits, and an event says for what.
    Volume(String),
    /// The container asks for what it cannot have.
    Config(String),
}

impl Pods {
    /// Whether the pod can be set up only when other objects exist.
    pub(super) fn needs_objects(pod: &Pod) -> bool {
        let namespace: Arc<str> = "".into();
        let needs = |volume: &Volume| {
            kept::is_kept(volume) || !is_credentials(volume) && !volumes::references(volume, &namespace).is_empty()
        };
        mounted(pod).any(needs)
    }

    /// An object for a pod, which is told about its changes from now on.
    pub(crate) async fn object(&self, key: &ObjectKey, slot: &Slot) -> Result<Option<Arc<Content>>, ReadError> {
        let read = self.context.objects.read(key, &slot.uid).await;
        // The pod may have been forgotten meanwhile, and all that it used before this.
        if slot.with_core(|core| core.is_forgotten()) {
            self.context.objects.forget(&slot.uid);
        }
        read
    }

    /// Waits for the objects that the pod's volumes are made of; the error says which is missing, or which of its keys.
    pub(crate) async fn check_volumes(self: &Arc<Self>, slot: &Slot, pod: &Pod) -> Result<(), String> {
        for volume in mounted(pod).filter(|volume| !is_credentials(volume)) {
            let failed = |reason: String| set_up_failed(&volume.name, &reason);
            let kept = self.context.kept.open(&self.context, pod, volume, &slot.uid).await;
            if let Some(held) = kept.map_err(|error| failed(error.to_string()))? {
                // The pod may have ended meanwhile, and let go of what it had.
                if slot.address().is_none() {
                    self.let_go_of_volumes(slot);
                    return Err(failed("the pod has no address any more".to_owned()));
                }
                slot.written.lock().await.kept.insert(volume.name.clone(), held);
                continue;
            }
            let mut contents = Contents::new();
            for (key, is_optional) in volumes::references(volume, &slot.namespace) {
                match self.object(&key, slot).await {
                    Ok(None) if !is_optional => return Err(failed(format!("{key} not found"))),
                    Ok(content) => drop(contents.insert(key, content)),
                    Err(error) => return Err(failed(error.to_string())),
                }
            }
            volumes::check_keys(volume, &slot.namespace, &contents).map_err(|error| failed(error.to_string()))?;
        }
        Ok(())
    }

    /// Makes the volumes of a container and plans its mounts.
    pub(super) async fn mounts(
        self: &Arc<Self>,
        slot: &Arc<Slot>,
        pod: &Pod,
        container: (Index, Run),
        component: &Component,
        env: &[(String, String)],
    ) -> Result<Mounts, MountFailed> {
        let Some(spec) = all_specs(pod).nth(container.0) else { return Ok(Mounts::default()) };
        let imports = |prefix: &str| component.imports().iter().any(|import| import.starts_with(prefix));
        if !imports("wasi:filesystem/") {
            return Ok(Mounts::default());
        }
        let is_online =
            imports("wasi:http/outgoing-handler") || imports("wasi:http/client") || imports("wasi:sockets/");
        let own = self.context.pods_dir.join(&*slot.uid);
        let mut places = volumes::Places::new();
        let mut skipped = Vec::new();
        let wanted: BTreeSet<&str> = spec.volume_mounts.iter().flatten().map(|mount| mount.name.as_str()).collect();
        for volume in mounted(pod).filter(|volume| wanted.contains(volume.name.as_str())) {
            if is_credentials(volume) && !is_online {
                skipped.push(volume.name.clone());
                continue;
            }
            let failed = |reason: String| MountFailed::Volume(set_up_failed(&volume.name, &reason));
            // Before the lock: the pod's other containers do not wait for who signs.
            self.certificates(slot, pod, volume, Need::Good).await.map_err(failed)?;
            // What is written has its tokens, and they are refreshed.
            if !slot.written.lock().await.volumes.contains(&volume.name) {
                self.tokens(slot, pod, volume).await.map_err(failed)?;
            }
            let mut written = slot.written.lock().await;
            if kept::is_kept(volume) {
                let held = written.kept.get(&volume.name).cloned();
                let held = held.ok_or_else(|| failed("the pod has let go of its claim".to_owned()))?;
                let access = if held.read_only { Access::Nobody } else { Access::Guests };
                places.insert(volume.name.clone(), (held.dir, access));
                continue;
            }
            // What is there may have been written with a certificate that has run out.
            if !written.volumes.contains(&volume.name) || has_certificates(volume) {
                self.write_volume(slot, pod, volume).await.map_err(failed)?;
                written.volumes.insert(volume.name.clone());
            }
            let access = if volume.empty_dir.is_some() { Access::Guests } else { Access::Node };
            places.insert(volume.name.clone(), (volume_dir(&own, &volume.name), access));
        }
        let mut spec = spec.into_owned();
        if let Some(mounts) = &mut spec.volume_mounts {
            mounts.retain(|mount| !skipped.contains(&mount.name));
        }
        let message = message_file(pod, &spec, container.1);
        if spec.volume_mounts.as_ref().is_none_or(Vec::is_empty) && message.is_none() {
            return Ok(Mounts::default());
        }
        slot.set_has_files();
        let env = env.to_vec();
        let run = container.1;
        let (pods, shown_to) = (self.clone(), slot.clone());
        let work = move |is_cut: &CancellationToken| {
            let known: HashMap<&str, &str> = env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            let files = own.join(FILES_DIR).join(&spec.name);
            // What an earlier life has left there was its own.
            beneath::remove_tree(&files).map_err(|error| format!("{}: {error}", files.display()))?;
            let bounds = volumes::Bounds {
                copied_bytes_max: COPIED_BYTES_MAX.saturating_sub(shown_to.copied_beside(container.0)),
                has_room: &|bytes| pods.context.disk.has_room(bytes),
                is_cut: &|| is_cut.is_cancelled(),
            };
            // Until it is known, nothing runs that could add to what is there.
            shown_to.set_shown(container.0, None);
            let sub_path = |mount: &VolumeMount| sub_path(mount, &known);
            let made = volumes::make(&spec, &places, sub_path, &files.join(run.to_string()), &bounds);
            // Of one that failed nothing is left that would be excused.
            let shown = made.as_ref().map(|made| made.shown).unwrap_or_default();
            shown_to.set_shown(container.0, Some(shown));
            let volumes::Made { mounts, held, .. } = made.map_err(|error| error.to_string())?;
            let mut made = Mounts { mounts, held, message: None };
            if let Some(message) = message {
                make_message(&own.join(MESSAGES_DIR).join(&spec.name), message, &mut made)?;
            }
            Ok(made)
        };
        let made = in_turn(&slot.on_disk, work).await.map_err(MountFailed::Config)?;
        let files = self.context.pods_dir.join(&*slot.uid).join(FILES_DIR);
        if made.message.is_some() || made.mounts.iter().any(|mount| mount.host.starts_with(&files)) {
            slot.set_has_own_files();
        }
        Ok(made)
    }

    /// Brings what was written of a pod's volumes to what its sources say now.
    pub(super) fn refresh_volumes(self: &Arc<Self>, slot: &Arc<Slot>) {
        if !slot.has_files() {
            return;
        }
        let (pods, slot) = (self.clone(), slot.clone());
        self.context.tasks.spawn(async move {
            let pod = slot.pod();
            let (asked, others): (Vec<&Volume>, Vec<&Volume>) =
                mounted(&pod).partition(|volume| has_certificates(volume) || has_tokens(volume));
            for volume in others {
                pods.rewrite(&slot, &pod, volume, Ok(())).await;
            }
            let names = slot.written.lock().await.volumes.clone();
            let asked = asked.into_iter().filter(|volume| names.contains(&volume.name));
            // Nothing waits for who signs, or gives a token, but what is made of that.
            let rewritten = asked.map(|volume| async {
                let signed = pods.certificates(&slot, &pod, volume, Need::Fresh).await;
                let provided = match signed {
                    Ok(()) => pods.tokens(&slot, &pod, volume).await,
                    Err(reason) => Err(reason),
                };
                pods.rewrite(&slot, &pod, volume, provided).await;
            });
            futures::future::join_all(rewritten).await;
        });
    }

    /// Writes a volume anew that was written; what cannot be is told.
    async fn rewrite(&self, slot: &Slot, pod: &Pod, volume: &Volume, provided: Result<(), String>) {
        let done = {
            let written = slot.written.lock().await;
            // The pod's files may have been removed meanwhile.
            if !written.volumes.contains(&volume.name) {
                return;
            }
            match provided {
                Ok(()) => self.write_volume(slot, pod, volume).await,
                Err(reason) => {
                    self.wake_for_tokens(slot, self.context.wall.now());
                    Err(reason)
                }
            }
        };
        if let Err(reason) = done {
            self.event(slot, None, true, "FailedMount", set_up_failed(&volume.name, &reason));
        }
    }

    /// Removes everything of a pod but its logs.
    pub(super) async fn remove_files(self: &Arc<Self>, slot: &Slot) {
        let mut written = slot.written.lock().await;
        *written = Written::default();
        slot.certificates.forget();
        slot.tokens.forget();
        let dir = self.context.pods_dir.join(&*slot.uid);
        let work = move |_: &CancellationToken| {
            beneath::remove_tree(&dir).map_err(|error| format!("{}: {error}", dir.display()))
        };
        let removed = in_turn(&slot.on_disk, work);
        if let Err(error) = removed.await {
            tracing::warn!(pod = %slot.name, namespace = %slot.namespace, %error, "volumes are not removed");
        }
        self.let_go_of_volumes(slot);
    }

    /// The pod has none of the volumes that outlive it any more, and who waits for one looks again.
    pub(super) fn let_go_of_volumes(self: &Arc<Self>, slot: &Slot) {
        let waiting = self.context.kept.release(&slot.uid);
        if waiting.is_empty() {
            return;
        }
        // Whoever calls may hold this pod's state, and nobody holds two.
        let pods = self.clone();
        self.context.tasks.spawn(async move { waiting.iter().for_each(|uid| pods.config_changed(uid)) });
    }

    /// Writes one volume, of the tokens and certificates that it has. Each has a bound, but a pod may have many: the disk's floor is
    /// theirs together.
    async fn write_volume(&self, slot: &Slot, pod: &Pod, volume: &Volume) -> Result<(), String> {
        let mut contents = Contents::new();
        for (key, _) in volumes::references(volume, &slot.namespace) {
            let content = self.object(&key, slot).await.map_err(|error| error.to_string())?;
            contents.insert(key, content);
        }
        if has_certificates(volume) || has_tokens(volume) {
            // The timer may have been early by that clock, or another token's.
            self.wake_for_tokens(slot, self.context.wall.now());
        }
        let address = slot.address().ok_or_else(|| "the pod has no address any more".to_owned())?;
        let payload = {
            let (tokens, certificates) = (&slot.tokens, &slot.certificates);
            let sources = Sources {
                contents: &contents,
                downward: Downward {
                    pod,
                    pod_ip: address.pod,
                    host_ip: self.context.config.node_ip,
                    allocatable: &self.context.allocatable,
                },
                tokens: &|wanted| tokens.text(wanted),
                certificates: &|wanted| certificates.credential(wanted),
            };
            volumes::payload(pod, volume, &sources).map_err(|error| error.to_string())?
        };
        slot.set_has_files();
        let dir = volume_dir(&self.context.pods_dir.join(&*slot.uid), &volume.name);
        let context = self.context.clone();
        let work = move |_: &CancellationToken| {
            match payload {
                Some(payload) => volumes::write(&dir, &payload, |bytes| context.disk.has_room(bytes)).map(drop),
                None => std::fs::create_dir_all(&dir),
            }
            .map_err(|error| error.to_string())
        };
        in_turn(&slot.on_disk, work).await
    }

    /// Has the tokens of a volume. No lock is held while they are asked for.
    async fn tokens(&self, slot: &Slot, pod: &Pod, volume: &Volume) -> Result<(), String> {
        let (now, client) = (self.context.wall.now(), &self.context.client);
        let wanted = volumes::tokens(volume);
        let provided = wanted.iter().map(|wanted| slot.tokens.provide(client, pod, wanted, now));
        let provided = futures::future::join_all(provided).await.into_iter().collect::<Result<(), _>>();
        provided.map_err(|error| error.to_string())
    }

    /// Has the certificates of a volume.
    async fn certificates(&self, slot: &Slot, pod: &Pod, volume: &Volume, need: Need) -> Result<(), String> {
        let now = self.context.wall.now();
        let (client, node) = (&self.context.client, self.context.config.name.as_str());
        let provided = volumes::certificates(volume).into_iter().map(|wanted| async move {
            slot.certificates.want(&wanted)?.provide(client, node, pod, &wanted, need, now).await
        });
        let provided: Result<(), CertificateError> = futures::future::join_all(provided).await.into_iter().collect();
        provided.map_err(|error| super::start::chain(&error))
    }

    /// A pod has one timer for all its tokens and certificates.
    fn wake_for_tokens(&self, slot: &Slot, now: Timestamp) {
        let moments = slot.tokens.refresh_at().into_iter().chain(slot.certificates.refresh_at());
        if let Some(left) = until_first(moments, now) {
            self.timers.set((slot.uid.clone(), Alarm::Tokens), left);
        }
    }
}

/// How long until the first of these, a second at least.
fn until_first(moments: impl Iterator<Item = Timestamp>, now: Timestamp) -> Option<Duration> {
    let left = Duration::try_from(moments.min()?.duration_since(now)).unwrap_or_default();
    Some(left.max(Duration::from_secs(1)))
}

/// A mount's sub path, if it has one; nothing when it would be too long.
fn sub_path(mount: &VolumeMount, env: &HashMap<&str, &str>) -> Option<Option<String>> {
    match &mount.sub_path_expr {
        Some(expression) if !expression.is_empty() => {
            expand(expression, |name| env.get(name).copied(), SUB_PATH_BYTES_MAX).map(Some)
        }
        _ => Some(mount.sub_path.clone()),
    }
}

fn has_tokens(volume: &Volume) -> bool {
    !volumes::tokens(volume).is_empty()
}

fn has_certificates(volume: &Volume) -> bool {
    !volumes::certificates(volume).is_empty()
}

fn is_credentials(volume: &Volume) -> bool {
    volume.name.starts_with(CREDENTIALS_PREFIX) && has_tokens(volume)
}

fn volume_dir(own: &Path, name: &str) -> PathBuf {
    own.join(VOLUMES_DIR).join(name)
}

/// A termination message: below the directory of its container's, in which directory of the guest's, under which name.
struct MessageFile {
    dir: String,
    guest: String,
    name: String,
}

/// The file for a container's termination message: only where somebody may write or wait for one, because it costs
/// files and an open directory.
fn message_file(pod: &Pod, spec: &Spec, run: Run) -> Option<MessageFile> {
    let path = spec.termination_message_path.as_deref().filter(|path| !path.is_empty()).unwrap_or(MESSAGE_PATH);
    let restarts = pod.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref()).unwrap_or("Always");
    if path == MESSAGE_PATH && restarts == "Always" {
        return None;
    }
    let (parent, name) = path.rsplit_once('/')?;
    let parent = if parent.is_empty() { "/" } else { parent };
    let within = spec.volume_mounts.iter().flatten().any(|mount| mount.mount_path.trim_end_matches('/') == parent);
    let is_name = !name.is_empty() && name != "." && name != "..";
    // A volume of the user's own is in that place; its file is not ours to read.
    (!within && path.starts_with('/') && is_name).then(|| MessageFile {
        dir: run.to_string(),
        guest: parent.to_owned(),
        name: name.to_owned(),
    })
}

/// Makes the file for a termination message. Blocks on the disk.
fn make_message(own: &Path, message: MessageFile, made: &mut Mounts) -> Result<(), String> {
    let dir = own.join(&message.dir);
    let file = dir.join(&message.name);
    beneath::remove_tree(own)
        .and_then(|()| std::fs::create_dir_all(&dir))
        .and_then(|()| std::fs::File::create_new(&file))
        .map_err(|error| format!("{}: {error}", file.display()))?;
    made.mounts.push(Mount { host: dir, guest: message.guest, read_only: false });
    made.message = Some(file);
    Ok(())
}

fn set_up_failed(volume: &str, reason: &str) -> String {
    format!("MountVolume.SetUp failed for volume {volume:?} : {reason}")
}

/// Does what writes or removes something below a pod's directory. Its turn is over when its thread is done, also when nobody waits
/// for it any more: a start may be cut, and what it was about to write must not appear after everything was removed. The thread is
/// told then, so that what takes long ends.
async fn in_turn<T: Send + 'static>(
    turns: &Arc<tokio::sync::Mutex<()>>,
    work: impl FnOnce(&CancellationToken) -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    let turn = turns.clone().lock_owned().await;
    let is_cut = CancellationToken::new();
    let _cut = is_cut.clone().drop_guard();
    let done = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        work(&is_cut)
    });
    done.await.unwrap_or_else(|error| Err(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sub_path_is_no_longer_than_a_path() {
        let value = "x".repeat(SUB_PATH_BYTES_MAX / 2);
        let env = HashMap::from([("A", value.as_str())]);
        let mount =
            |expression: &str| VolumeMount { sub_path_expr: Some(expression.to_owned()), ..VolumeMount::default() };
        assert_eq!(sub_path(&mount("$(A)$(A)"), &env), Some(Some(value.repeat(2))));
        assert_eq!(sub_path(&mount("$(A)$(A)/"), &env), None);
        assert_eq!(sub_path(&VolumeMount::default(), &env), Some(None));
    }

    /// As when a pod is deleted while its volumes are written.
    #[tokio::test]
    async fn what_removes_a_pods_files_waits_for_a_start_that_was_cut() {
        let dir = tempfile::tempdir().unwrap();
        let (pod, turns) = (dir.path().join("pod"), Arc::<tokio::sync::Mutex<()>>::default());
        let (go_on, wait) = std::sync::mpsc::channel::<()>();
        let (begin, begun) = std::sync::mpsc::channel();
        let volume = pod.join("volumes/v");
        let (tell, told) = std::sync::mpsc::channel();
        let mut writing = Box::pin(in_turn(&turns, move |is_cut| {
            let _ = (begin.send(()), wait.recv(), tell.send(is_cut.is_cancelled()));
            std::fs::create_dir_all(&volume).map_err(|error| error.to_string())
        }));
        assert!(futures::FutureExt::now_or_never(writing.as_mut()).is_none());
        drop(writing);
        begun.recv().unwrap();
        assert!(turns.try_lock().is_err(), "nobody waits for it, and its thread is not done");
        let removed = pod.clone();
        let removing = in_turn(&turns, move |_| beneath::remove_tree(&removed).map_err(|error| error.to_string()));
        go_on.send(()).unwrap();
        removing.await.unwrap();
        assert!(!pod.exists());
        assert!(told.recv().unwrap(), "what is cut can end at once");
    }

    #[test]
    fn the_token_that_is_due_first_wakes_its_pod() {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let moments = |seconds: &[i64]| {
            let moments = seconds.iter().map(|seconds| now + jiff::SignedDuration::from_secs(*seconds));
            until_first(moments, now).map(|left| left.as_secs())
        };
        assert_eq!(moments(&[480, 2885]), Some(480));
        assert_eq!(moments(&[2885, 480, 700]), Some(480));
        assert_eq!((moments(&[-5, 480]), moments(&[])), (Some(1), None));
    }
}
