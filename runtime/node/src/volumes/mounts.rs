//! From `volumeMounts` to directories that the engine can open for a guest.
//!
//! A guest is given directories only. A `subPath` that is a directory is mounted as it is; one that is a file
//! is shown in a directory made for it, together with other such files of the same parent. As under the kubelet such a file
//! is a copy of its time and does not follow changes.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, VolumeMount};

/// A directory for a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    /// Where it is here.
    pub host: PathBuf,
    /// Where the guest sees it.
    pub guest: String,
    /// Whether the guest may change it.
    pub read_only: bool,
    /// Files to be copied into `host` first: from, name.
    pub copies: Vec<(PathBuf, String)>,
}

/// A mount that cannot be made.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum MountError {
    /// The path would leave the volume.
    #[error("subPath {0:?} is not within the volume")]
    Outside(String),
    /// The volume is not there.
    #[error("volume {0:?} is not a volume of this pod")]
    NoVolume(String),
}

/// Where a volume is, and whether it is read-only by nature.
pub type Places = BTreeMap<String, (PathBuf, bool)>;

/// Plans the mounts of a container. `sub_path` gives a mount's sub path with its variables replaced; `copies`
/// is a directory of the container's own.
pub fn plan(
    container: &Container,
    volumes: &Places,
    sub_path: impl Fn(&VolumeMount) -> Option<String>,
    copies: &Path,
) -> Result<Vec<Planned>, MountError> {
    let mut planned: Vec<Planned> = Vec::new();
    for mount in container.volume_mounts.iter().flatten() {
        let (dir, read_only) = volumes.get(&mount.name).ok_or_else(|| MountError::NoVolume(mount.name.clone()))?;
        let read_only = *read_only || mount.read_only == Some(true);
        let guest = clean(&mount.mount_path);
        let Some(sub_path) = sub_path(mount).filter(|path| !path.is_empty()) else {
            planned.push(Planned { host: dir.clone(), guest, read_only, copies: Vec::new() });
            continue;
        };
        let inside =
            Path::new(&sub_path).components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
        if !inside {
            return Err(MountError::Outside(sub_path));
        }
        let host = dir.join(&sub_path);
        if !host.is_file() {
            planned.push(Planned { host, guest, read_only, copies: Vec::new() });
            continue;
        }
        let (parent, name) = guest.rsplit_once('/').unwrap_or(("", &guest));
        let parent = if parent.is_empty() { "/" } else { parent };
        let copy = (host, name.to_owned());
        match planned.iter_mut().find(|planned| planned.guest == parent && !planned.copies.is_empty()) {
            Some(planned) => planned.copies.push(copy),
            None => planned.push(Planned {
                host: copies.join(parent.trim_matches('/').replace('/', "~")),
                guest: parent.to_owned(),
                read_only,
                copies: vec![copy],
            }),
        }
    }
    Ok(planned)
}

fn clean(path: &str) -> String {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    format!("/{}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn directories_files_and_read_only() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("app.conf"), "x").unwrap();
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        let volumes = Places::from([("v".to_owned(), (dir.path().to_owned(), false))]);
        let container: Container = serde_json::from_value(json!({"name": "c", "volumeMounts": [
            {"name": "v", "mountPath": "/data/"},
            {"name": "v", "mountPath": "/ro", "readOnly": true, "subPath": "sub"},
            {"name": "v", "mountPath": "/etc/app/app.conf", "subPath": "app.conf"},
            {"name": "v", "mountPath": "/etc/app/two.conf", "subPath": "app.conf"}
        ]}))
        .unwrap();
        let sub_path = |mount: &VolumeMount| mount.sub_path.clone();
        let planned = plan(&container, &volumes, sub_path, Path::new("/copies")).unwrap();
        let file = dir.path().join("app.conf");
        let of = |host: PathBuf, guest: &str, read_only, copies| Planned {
            host,
            guest: guest.to_owned(),
            read_only,
            copies,
        };
        assert_eq!(
            planned,
            [
                of(dir.path().to_owned(), "/data", false, vec![]),
                of(dir.path().join("sub"), "/ro", true, vec![]),
                of(
                    "/copies/etc~app".into(),
                    "/etc/app",
                    false,
                    vec![(file.clone(), "app.conf".to_owned()), (file, "two.conf".to_owned())]
                ),
            ]
        );
        let outside = |_: &VolumeMount| Some("../x".to_owned());
        assert_eq!(plan(&container, &volumes, outside, Path::new("/c")), Err(MountError::Outside("../x".to_owned())));
    }
}
