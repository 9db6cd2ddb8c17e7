//! From `volumeMounts` to directories that the engine can open for a guest.
//!
//! A guest is given directories only. A `subPath` that is a directory is mounted as it is; one that is a file
//! is shown in a directory made for it, together with other such files of the same parent: under a second name of the same
//! file when the volume can be written (what one container writes the others read, as under a bind mount), as a copy when it
//! cannot. As under the kubelet such a file is the one that was there at the start; one renamed over it later is another.
//!
//! What a sub path leads to is decided by [`crate::beneath`] on open directories, and used by its descriptor.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use coracle_engine::Mount;
use k8s_openapi::api::core::v1::{Container, VolumeMount};

use crate::beneath::{self, Found, Root};

/// A mount that cannot be made, in the kubelet's words.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The path leads out of the volume, or to nothing that can be mounted.
    #[error("failed to prepare subPath for volumeMount {volume:?} of container {container:?}: {path:?}: {source}")]
    SubPath {
        /// The volume.
        volume: String,
        /// The container.
        container: String,
        /// The path.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The path is too long.
    #[error("failed to prepare subPath for volumeMount {0:?}: subPathExpr is too long when its variables are replaced")]
    TooLong(String),
    /// The volume is not there.
    #[error("volume {0:?} is not a volume of this pod")]
    NoVolume(String),
    /// Two files of one directory of the guest's, of which only one may be written.
    #[error("subPath files of {0:?} cannot be mounted beside each other: one is read-only and the other is not")]
    Mixed(String),
    /// The disk refused.
    #[error("{path}: {source}")]
    Io {
        /// What was to be made.
        path: String,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
}

/// Where a volume is, and whether it is read-only by nature.
pub type Places = BTreeMap<String, (PathBuf, bool)>;

/// What was made for a container.
#[derive(Debug, Default)]
pub struct Made {
    /// Its directories.
    pub mounts: Vec<Mount>,
    /// Held as long as instances may be made: mounts name them.
    pub held: Vec<Arc<OwnedFd>>,
}

/// Makes the mounts of a container. `sub_path` gives a mount's sub path with its variables replaced, and nothing at all when that
/// is too long; `files` is a directory of this life of the container's own, which does not exist yet. Blocks on the disk.
pub fn make(
    container: &Container,
    volumes: &Places,
    sub_path: impl Fn(&VolumeMount) -> Option<Option<String>>,
    files: &Path,
) -> Result<Made, MountError> {
    let mut made = Made::default();
    for mount in container.volume_mounts.iter().flatten() {
        let (dir, is_fixed) = volumes.get(&mount.name).ok_or_else(|| MountError::NoVolume(mount.name.clone()))?;
        let read_only = *is_fixed || mount.read_only == Some(true);
        let guest = clean(&mount.mount_path);
        let sub_path = sub_path(mount).ok_or_else(|| MountError::TooLong(mount.name.clone()))?;
        let Some(sub_path) = sub_path.filter(|path| !path.is_empty()) else {
            made.mounts.push(Mount { host: dir.clone(), guest, read_only });
            continue;
        };
        let found = Root::open(dir).and_then(|root| root.find_or_make(Path::new(&sub_path)));
        let found = found.map_err(|source| MountError::SubPath {
            volume: mount.name.clone(),
            container: container.name.clone(),
            path: sub_path,
            source,
        })?;
        match found {
            Found::Directory(directory) => {
                made.mounts.push(Mount { host: beneath::path_of(&directory), guest, read_only });
                made.held.push(Arc::new(directory.into()));
            }
            Found::File(file) => show_file(&mut made, &file, &guest, read_only, *is_fixed, files)?,
        }
    }
    Ok(made)
}

/// Shows a file in a directory made for it.
fn show_file(
    made: &mut Made,
    file: &File,
    guest: &str,
    read_only: bool,
    is_fixed: bool,
    files: &Path,
) -> Result<(), MountError> {
    let (parent, name) = guest.rsplit_once('/').unwrap_or(("", guest));
    let parent = if parent.is_empty() { "/" } else { parent };
    let host = files.join(parent.trim_matches('/').replace('/', "~"));
    let failed = |source| MountError::Io { path: guest.to_owned(), source };
    std::fs::create_dir_all(&host).map_err(failed)?;
    match made.mounts.iter().find(|mount| mount.host == host) {
        Some(mount) if mount.read_only != read_only => return Err(MountError::Mixed(parent.to_owned())),
        Some(_) => {}
        None => made.mounts.push(Mount { host: host.clone(), guest: parent.to_owned(), read_only }),
    }
    match is_fixed {
        true => {
            let mut from = file;
            let mut to = File::options().write(true).create_new(true).open(host.join(name)).map_err(failed)?;
            std::io::copy(&mut from, &mut to).map(drop).map_err(failed)
        }
        false => beneath::link(file, &host, name).map_err(failed),
    }
}

fn clean(path: &str) -> String {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    format!("/{}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn plan(volume: &Path, is_fixed: bool, files: &Path, mounts: Value) -> Result<Made, MountError> {
        let volumes = Places::from([("v".to_owned(), (volume.to_owned(), is_fixed))]);
        let container = serde_json::from_value(json!({"name": "c", "volumeMounts": mounts})).unwrap();
        make(&container, &volumes, |mount| Some(mount.sub_path.clone()), files)
    }

    #[test]
    fn directories_files_and_read_only() {
        let dir = tempfile::tempdir().unwrap();
        let (volume, files) = (dir.path().join("v"), dir.path().join("files"));
        std::fs::create_dir_all(volume.join("sub")).unwrap();
        std::fs::write(volume.join("app.conf"), "x").unwrap();
        let mounts = json!([
            {"name": "v", "mountPath": "/data/"},
            {"name": "v", "mountPath": "/ro", "readOnly": true, "subPath": "sub"},
            {"name": "v", "mountPath": "/new", "subPath": "a/b"},
            {"name": "v", "mountPath": "/etc/app/app.conf", "subPath": "app.conf"},
            {"name": "v", "mountPath": "/etc/app/two.conf", "subPath": "app.conf"}
        ]);
        let made = plan(&volume, false, &files, mounts).unwrap();
        let seen: Vec<_> = made
            .mounts
            .iter()
            .map(|mount| (std::fs::canonicalize(&mount.host).unwrap(), mount.guest.as_str(), mount.read_only))
            .collect();
        let volume = volume.canonicalize().unwrap();
        let shown = files.canonicalize().unwrap().join("etc~app");
        assert_eq!(
            seen,
            [
                (volume.clone(), "/data", false),
                (volume.join("sub"), "/ro", true),
                (volume.join("a/b"), "/new", false),
                (shown.clone(), "/etc/app", false),
            ]
        );
        // It is the same file under all its names.
        std::fs::write(shown.join("two.conf"), "new").unwrap();
        for path in [volume.join("app.conf"), shown.join("app.conf")] {
            assert_eq!(std::fs::read_to_string(path).unwrap(), "new");
        }
    }

    #[test]
    fn what_leads_out_is_refused_and_nothing_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let (volume, files, secret) = (dir.path().join("v"), dir.path().join("files"), dir.path().join("pki"));
        std::fs::create_dir(&volume).unwrap();
        std::fs::create_dir(&secret).unwrap();
        std::fs::write(secret.join("ca.key"), "private").unwrap();
        for (name, target) in [("x", "../pki"), ("key", "../pki/ca.key"), ("nd", "../newdir"), ("abs", "/etc")] {
            std::os::unix::fs::symlink(target, volume.join(name)).unwrap();
        }
        for path in ["x", "key", "x/sub/dir", "nd", "nd/a", "abs", "../pki", "/etc"] {
            let mounts = json!([{"name": "v", "mountPath": "/p/k", "subPath": path}]);
            let error = plan(&volume, false, &files, mounts).unwrap_err().to_string();
            assert!(error.starts_with("failed to prepare subPath for volumeMount \"v\" of container \"c\""), "{error}");
        }
        assert!(!files.exists() && !dir.path().join("newdir").exists());
        assert_eq!(std::fs::read_dir(&secret).unwrap().count(), 1);
    }

    #[test]
    fn a_file_of_a_fixed_volume_is_a_copy_behind_its_links() {
        let dir = tempfile::tempdir().unwrap();
        let (volume, files) = (dir.path().join("v"), dir.path().join("files"));
        let file = crate::volumes::File { content: b"old".to_vec().into(), mode: 0o444 };
        crate::volumes::write(&volume, &BTreeMap::from([("app.conf".to_owned(), file)])).unwrap();
        let mounts = json!([{"name": "v", "mountPath": "/app.conf", "subPath": "app.conf"}]);
        let made = plan(&volume, true, &files, mounts).unwrap();
        assert_eq!((made.mounts[0].guest.as_str(), made.mounts[0].read_only), ("/", true));
        assert_eq!(std::fs::read_to_string(made.mounts[0].host.join("app.conf")).unwrap(), "old");
    }
}
