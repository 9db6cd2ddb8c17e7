//! From `volumeMounts` to directories that the engine can open for a guest.
//!
//! A guest is given directories only. A `subPath` that is a directory is mounted as it is; one that is a file
//! is shown in a directory made for it, together with other such files of the same parent, under a second name of the same file:
//! what one container writes the others read, as under a bind mount. As under the kubelet such a file is the one that was there at
//! the start; one renamed over it later is another. A directory that is missing is made where guests may write, and nowhere else
//! ([`Access`]).
//!
//! What a sub path leads to is decided by [`crate::beneath`] on open directories, and used by its descriptor.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use coracle_engine::Mount;
use k8s_openapi::api::core::v1::{Container, VolumeMount};

use crate::beneath::{self, Found, Root};

/// Bytes of all files of a pod that are copied, for want of a second name: as much as a container may hold beside its volumes.
pub const COPIED_BYTES_MAX: u64 = 10 << 20;

/// As many a small one counts for, too.
const BLOCK_BYTES: u64 = 4096;

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
    /// It may have no second name, and whoever may write it is to write that very file.
    #[error(
        "{path}: a file of volume {volume:?} cannot be shown alone where it may be written ({source}): mount its directory, or make the \
         mount readOnly, which shows a copy; or have the file belong to the node's own user (fs.protected_hardlinks), on the disk of its \
         data directory"
    )]
    NoLink {
        /// The file.
        path: String,
        /// The volume.
        volume: String,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// It may have no second name, and there is no room for a copy of it.
    #[error(
        "{path}: a file of volume {volume:?} cannot be linked, and the copies of such files have more than 10 MiB in all containers of \
         the pod: mount its directory; or have the file belong to the node's own user (fs.protected_hardlinks), on the disk of its data \
         directory"
    )]
    TooLarge {
        /// The file.
        path: String,
        /// The volume.
        volume: String,
    },
    /// Something would have to be made, and the disk has no room that it may take.
    #[error("{path}: the node is low on disk, and something of volume {volume:?} would have to be copied or made")]
    DiskLow {
        /// The file or directory.
        path: String,
        /// The volume.
        volume: String,
    },
    /// Nobody waits for it any more.
    #[error("the container is not to start any more")]
    Cut,
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

/// Who writes in a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Guests.
    Guests,
    /// The node, which knows every name in it. A directory that is not there is an empty one beside it.
    Node,
    /// Nobody.
    Nobody,
}

/// Where volumes are, and who writes in them.
pub type Places = BTreeMap<String, (PathBuf, Access)>;

/// What was made for a container.
#[derive(Debug, Default)]
pub struct Made {
    /// Its directories.
    pub mounts: Vec<Mount>,
    /// Held as long as instances may be made: mounts name them.
    pub held: Vec<Arc<OwnedFd>>,
    /// What its files take.
    pub shown: Shown,
}

/// What the files of volumes take that a container is shown alone. Each file counts once, however often it is shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Shown {
    /// Bytes of those that have a second name (where the first one goes, the second keeps them), and of copies.
    pub bytes: u64,
    /// Bytes of copies alone.
    pub copied_bytes: u64,
}

/// What may be made. Whoever is shown much in one step is asked about in that step: nothing else interrupts it.
pub struct Bounds<'a> {
    /// Bytes of all copies.
    pub copied_bytes_max: u64,
    /// Whether the disk has room for so many bytes, and for files.
    pub has_room: &'a dyn Fn(u64) -> bool,
    /// Whether nobody waits for it any more.
    pub is_cut: &'a dyn Fn() -> bool,
}

/// Makes the mounts of a container. `sub_path` gives a mount's sub path with its variables replaced, and nothing at all when that
/// is too long; `files` is a directory of this life of the container's own, which does not exist yet, and does not when this fails.
/// Blocks on the disk.
pub fn make(
    container: &Container,
    volumes: &Places,
    sub_path: impl Fn(&VolumeMount) -> Option<Option<String>>,
    files: &Path,
    bounds: &Bounds<'_>,
) -> Result<Made, MountError> {
    let mut maker = Maker { made: Made::default(), files, bounds, directories: HashMap::new(), shown: HashMap::new() };
    match maker.all(container, volumes, sub_path) {
        Ok(()) => Ok(maker.made),
        Err(error) => {
            // Nobody would know of it, nor count it.
            beneath::remove_tree(files)
                .map_err(|source| MountError::Io { path: files.display().to_string(), source })?;
            Err(error)
        }
    }
}

struct Maker<'a> {
    made: Made,
    files: &'a Path,
    bounds: &'a Bounds<'a>,
    /// Directories that were made, by their place in the guest: which of the mounts each is.
    directories: HashMap<String, usize>,
    /// Files that are shown, by device and number; where the copy is of one that was copied.
    shown: HashMap<(u64, u64), Option<PathBuf>>,
}

impl Maker<'_> {
    fn all(
        &mut self,
        container: &Container,
        volumes: &Places,
        sub_path: impl Fn(&VolumeMount) -> Option<Option<String>>,
    ) -> Result<(), MountError> {
        for mount in container.volume_mounts.iter().flatten() {
            if (self.bounds.is_cut)() {
                return Err(MountError::Cut);
            }
            let (dir, access) = volumes.get(&mount.name).ok_or_else(|| MountError::NoVolume(mount.name.clone()))?;
            let read_only = *access != Access::Guests || mount.read_only == Some(true);
            let guest = clean(&mount.mount_path);
            let sub_path = sub_path(mount).ok_or_else(|| MountError::TooLong(mount.name.clone()))?;
            let Some(sub_path) = sub_path.filter(|path| !path.is_empty()) else {
                self.made.mounts.push(Mount { host: dir.clone(), guest, read_only });
                continue;
            };
            let failed = |source| MountError::SubPath {
                volume: mount.name.clone(),
                container: container.name.clone(),
                path: sub_path.clone(),
                source,
            };
            let root = Root::open(dir).map_err(failed)?;
            let found = match root.find(Path::new(&sub_path)) {
                Err(error) if error.kind() == ErrorKind::NotFound => match access {
                    Access::Guests if !(self.bounds.has_room)(0) => {
                        return Err(MountError::DiskLow { path: guest, volume: mount.name.clone() });
                    }
                    Access::Guests => root.find_or_make(Path::new(&sub_path)).map(Some),
                    Access::Node => Ok(None),
                    Access::Nobody => Err(error),
                },
                found => found.map(Some),
            };
            match found.map_err(failed)? {
                Some(Found::Directory(directory)) => {
                    self.made.mounts.push(Mount { host: beneath::path_of(&directory), guest, read_only });
                    self.made.held.push(Arc::new(directory.into()));
                }
                Some(Found::File(file)) => self.show_file(&file, (&mount.name, &guest), read_only)?,
                None => drop(self.own_directory(&guest, read_only)?),
            }
        }
        Ok(())
    }

    /// Shows a file in a directory made for it.
    fn show_file(&mut self, file: &File, (volume, guest): (&str, &str), read_only: bool) -> Result<(), MountError> {
        let (parent, name) = guest.rsplit_once('/').unwrap_or(("", guest));
        let parent = if parent.is_empty() { "/" } else { parent };
        let known = self.directories.get(parent).and_then(|at| self.made.mounts.get(*at));
        let host = match known {
            Some(mount) if mount.read_only != read_only => return Err(MountError::Mixed(parent.to_owned())),
            Some(mount) => mount.host.clone(),
            None => self.own_directory(parent, read_only)?,
        };
        let failed = |source| MountError::Io { path: guest.to_owned(), source };
        let held = |file: &File| file.metadata().map(|found| found.blocks() * 512).map_err(failed);
        let found = file.metadata().map_err(failed)?;
        let id = (found.dev(), found.ino());
        let copied = self.shown.get(&id).and_then(Option::as_ref).filter(|_| read_only);
        if let Some(copy) = copied {
            return std::fs::hard_link(copy, host.join(name)).map_err(failed);
        }
        match beneath::link(file, &host, name) {
            Ok(()) => {
                if self.shown.insert(id, None).is_none() {
                    self.made.shown.bytes += held(file)?;
                }
            }
            // Another owner's (fs.protected_hardlinks), or on another disk.
            Err(source) if matches!(source.kind(), ErrorKind::PermissionDenied | ErrorKind::CrossesDevices) => {
                let (path, volume) = (guest.to_owned(), volume.to_owned());
                if !read_only {
                    return Err(MountError::NoLink { path, volume, source });
                }
                let left = self.bounds.copied_bytes_max.saturating_sub(self.made.shown.copied_bytes);
                if !(self.bounds.has_room)(found.len().min(left)) {
                    return Err(MountError::DiskLow { path, volume });
                }
                let place = host.join(name);
                let mut copy = File::options().write(true).create_new(true).open(&place).map_err(failed)?;
                let bytes = std::io::copy(&mut file.take(left + 1), &mut copy).map_err(failed)?;
                let bytes = bytes.max(1).next_multiple_of(BLOCK_BYTES);
                if bytes > left {
                    return Err(MountError::TooLarge { path, volume });
                }
                self.made.shown.bytes += held(&copy)?;
                self.made.shown.copied_bytes += bytes;
                self.shown.insert(id, Some(place));
            }
            Err(source) => return Err(failed(source)),
        }
        Ok(())
    }

    /// Mounts a new directory.
    fn own_directory(&mut self, guest: &str, read_only: bool) -> Result<PathBuf, MountError> {
        let at = self.made.mounts.len();
        let host = self.files.join(at.to_string());
        std::fs::create_dir_all(&host).map_err(|source| MountError::Io { path: guest.to_owned(), source })?;
        self.made.mounts.push(Mount { host: host.clone(), guest: guest.to_owned(), read_only });
        self.directories.entry(guest.to_owned()).or_insert(at);
        Ok(host)
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

    const WIDE: Bounds<'_> = Bounds { copied_bytes_max: COPIED_BYTES_MAX, has_room: &|_| true, is_cut: &|| false };

    fn plan(volume: &Path, access: Access, files: &Path, mounts: Value) -> Result<Made, MountError> {
        plan_within(&WIDE, volume, access, files, mounts)
    }

    fn plan_within(
        bounds: &Bounds<'_>,
        volume: &Path,
        access: Access,
        files: &Path,
        mounts: Value,
    ) -> Result<Made, MountError> {
        let volumes = Places::from([("v".to_owned(), (volume.to_owned(), access))]);
        let container = serde_json::from_value(json!({"name": "c", "volumeMounts": mounts})).unwrap();
        make(&container, &volumes, |mount| Some(mount.sub_path.clone()), files, bounds)
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
        let made = plan(&volume, Access::Guests, &files, mounts).unwrap();
        let seen: Vec<_> = made
            .mounts
            .iter()
            .map(|mount| (std::fs::canonicalize(&mount.host).unwrap(), mount.guest.as_str(), mount.read_only))
            .collect();
        let volume = volume.canonicalize().unwrap();
        let shown = files.canonicalize().unwrap().join("3");
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
            let error = plan(&volume, Access::Guests, &files, mounts).unwrap_err().to_string();
            assert!(error.starts_with("failed to prepare subPath for volumeMount \"v\" of container \"c\""), "{error}");
        }
        assert!(!files.exists() && !dir.path().join("newdir").exists());
        assert_eq!(std::fs::read_dir(&secret).unwrap().count(), 1);
    }

    #[test]
    fn a_file_that_nobody_may_write_is_the_same_file_and_read_only() {
        let dir = tempfile::tempdir().unwrap();
        let (volume, files) = (dir.path().join("v"), dir.path().join("files"));
        let file = crate::volumes::File { content: b"old".to_vec().into(), mode: 0o444 };
        crate::volumes::write(&volume, &BTreeMap::from([("app.conf".to_owned(), file)]), |_| true).unwrap();
        let mounts = json!([{"name": "v", "mountPath": "/app.conf", "subPath": "app.conf"}]);
        for (access, files) in [(Access::Node, files.join("node")), (Access::Nobody, files.join("nobody"))] {
            let made = plan(&volume, access, &files, mounts.clone()).unwrap();
            assert_eq!((made.mounts[0].guest.as_str(), made.mounts[0].read_only), ("/", true));
            let shown = made.mounts[0].host.join("app.conf");
            assert_eq!(std::fs::read_to_string(&shown).unwrap(), "old");
            let [shown, there] = [shown, volume.join("app.conf")].map(|path| std::fs::metadata(path).unwrap());
            assert_eq!(shown.ino(), there.ino(), "however large it is");
            assert_eq!(made.shown.bytes, there.blocks() * 512);
        }
    }

    /// `/proc` is a file system of its own.
    #[test]
    fn a_file_that_cannot_be_linked_is_copied_where_nobody_writes_it() {
        let dir = tempfile::tempdir().unwrap();
        let mount = |path: &str| json!([{"name": "v", "mountPath": "/app/v", "subPath": path}]);
        let made = plan(Path::new("/proc"), Access::Nobody, &dir.path().join("files"), mount("version")).unwrap();
        let shown = made.mounts[0].host.join("v");
        assert_eq!(std::fs::read(&shown).unwrap(), std::fs::read("/proc/version").unwrap());
        assert_eq!(made.shown.bytes, std::fs::metadata(&shown).unwrap().blocks() * 512);
        let refused = plan(Path::new("/proc"), Access::Guests, &dir.path().join("others"), mount("version"));
        let refused = refused.unwrap_err().to_string();
        assert!(refused.starts_with("/app/v: a file of volume \"v\" cannot be shown alone"), "{refused}");
    }

    /// A disk of its own that everybody may write, if there is one.
    fn elsewhere(beside: &Path) -> tempfile::TempDir {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let [there, here] = [dir.path(), beside].map(|path| std::fs::metadata(path).unwrap().dev());
        assert_ne!(there, here, "this needs two disks");
        dir
    }

    #[test]
    fn copies_have_one_bound_together_and_each_file_is_copied_once() {
        let dir = tempfile::tempdir().unwrap();
        let volume = elsewhere(dir.path());
        let files = dir.path().join("files");
        std::fs::write(volume.path().join("large"), vec![1; 6 << 20]).unwrap();
        std::fs::write(volume.path().join("other"), vec![1; 6 << 20]).unwrap();
        let mounts = |paths: &[&str]| {
            let one = |(at, path): (usize, &&str)| json!({"name": "v", "mountPath": format!("/{}/{at}", at % 2), "subPath": path});
            json!(paths.iter().enumerate().map(one).collect::<Vec<_>>())
        };
        let plan = |bounds: &Bounds<'_>, paths: &[&str]| {
            plan_within(bounds, volume.path(), Access::Nobody, &files, mounts(paths))
        };
        let made = plan(&WIDE, &["large"; 100]).unwrap();
        let held = beneath::usage(&files, &mut beneath::Seen::new()).unwrap();
        assert_eq!(held.entries, 102, "two directories, and a name for each mount");
        assert!((6 << 20..7 << 20).contains(&held.bytes), "{held:?}");
        let shown = made.shown;
        assert_eq!(shown.copied_bytes, 6 << 20);
        assert!((6 << 20..7 << 20).contains(&shown.bytes), "{shown:?}");
        let last = std::fs::read(made.mounts[1].host.join("99")).unwrap();
        assert_eq!(last.len(), 6 << 20);
        std::fs::remove_dir_all(&files).unwrap();
        // Two are too much, also where another container has one; nothing of them stays.
        let left = Bounds { copied_bytes_max: COPIED_BYTES_MAX - shown.copied_bytes, ..WIDE };
        for (bounds, paths) in [(&WIDE, &["large", "other"][..]), (&left, &["other"][..])] {
            let refused = plan(bounds, paths).unwrap_err().to_string();
            assert!(refused.contains("have more than 10 MiB in all containers of the pod"), "{refused}");
            assert!(!files.exists());
        }
        // Small ones count for a block each.
        std::fs::write(volume.path().join("a"), "a").unwrap();
        std::fs::write(volume.path().join("b"), "").unwrap();
        let one = Bounds { copied_bytes_max: BLOCK_BYTES, ..WIDE };
        assert!(matches!(plan(&one, &["a", "b"]), Err(MountError::TooLarge { .. })));
        plan(&one, &["a", "a"]).unwrap();
    }

    #[test]
    fn what_is_made_asks_for_room_and_ends_when_nobody_waits() {
        let dir = tempfile::tempdir().unwrap();
        let volume = elsewhere(dir.path());
        let files = dir.path().join("files");
        std::fs::write(volume.path().join("x"), "12345").unwrap();
        let asked = std::cell::RefCell::new(Vec::new());
        let low = Bounds {
            has_room: &|bytes| {
                asked.borrow_mut().push(bytes);
                false
            },
            ..WIDE
        };
        for (access, path) in [(Access::Nobody, "x"), (Access::Guests, "new/y")] {
            let mounts = json!([{"name": "v", "mountPath": "/a/x", "subPath": path}]);
            let refused = plan_within(&low, volume.path(), access, &files, mounts).unwrap_err().to_string();
            assert!(refused.starts_with("/a/x: the node is low on disk"), "{refused}");
            assert!(!files.exists() && !volume.path().join("new").exists());
        }
        assert_eq!(*asked.borrow(), [5, 0]);
        // What is only named again takes no room.
        let here = dir.path().join("v");
        std::fs::create_dir(&here).unwrap();
        std::fs::write(here.join("x"), "x").unwrap();
        let mounts = json!([{"name": "v", "mountPath": "/a/x", "subPath": "x"}, {"name": "v", "mountPath": "/b/x", "subPath": "x"}]);
        let made = plan_within(&low, &here, Access::Guests, &files, mounts.clone()).unwrap();
        assert_eq!(made.shown.bytes, std::fs::metadata(here.join("x")).unwrap().blocks() * 512, "once");
        std::fs::remove_dir_all(&files).unwrap();
        let looked = std::cell::Cell::new(0);
        let cut = Bounds {
            is_cut: &|| {
                looked.set(looked.get() + 1);
                looked.get() > 1
            },
            ..WIDE
        };
        assert!(matches!(plan_within(&cut, &here, Access::Guests, &files, mounts), Err(MountError::Cut)));
        assert!(!files.exists(), "what was made before goes");
    }

    #[test]
    fn nothing_is_made_in_a_volume_that_guests_may_not_write() {
        let dir = tempfile::tempdir().unwrap();
        let (volume, files) = (dir.path().join("v"), dir.path().join("files"));
        std::fs::create_dir(&volume).unwrap();
        let mounts = json!([{"name": "v", "mountPath": "/p", "subPath": "a/b"}]);
        let error = plan(&volume, Access::Nobody, &files, mounts.clone()).unwrap_err().to_string();
        assert!(error.contains("container \"c\": \"a/b\": No such file or directory"), "{error}");
        assert!(!files.exists());
        let made = plan(&volume, Access::Node, &files, mounts).unwrap();
        let (host, guest, read_only) = (&made.mounts[0].host, &*made.mounts[0].guest, made.mounts[0].read_only);
        assert_eq!((std::fs::read_dir(host).unwrap().count(), guest, read_only), (0, "/p", true));
        assert_eq!(std::fs::read_dir(&volume).unwrap().count(), 0);
    }

    #[test]
    fn files_of_different_directories_are_not_shown_together() {
        let dir = tempfile::tempdir().unwrap();
        let (volume, files) = (dir.path().join("v"), dir.path().join("files"));
        std::fs::create_dir(&volume).unwrap();
        std::fs::write(volume.join("x"), "x").unwrap();
        let paths = ["/x", "/a/b/x", "/a~b/x", "/a/b/y"];
        let mounts: Vec<Value> =
            paths.iter().map(|path| json!({"name": "v", "mountPath": path, "subPath": "x"})).collect();
        let made = plan(&volume, Access::Guests, &files, json!(mounts)).unwrap();
        let names = |mount: &Mount| {
            let names = std::fs::read_dir(&mount.host).unwrap().map(|entry| entry.unwrap().file_name());
            let mut names: Vec<String> = names.map(|name| name.into_string().unwrap()).collect();
            names.sort();
            (mount.guest.clone(), names.join(" "))
        };
        let shown: Vec<(String, String)> = made.mounts.iter().map(names).collect();
        let expected = [("/", "x"), ("/a/b", "x y"), ("/a~b", "x")].map(|(guest, names)| (guest.into(), names.into()));
        assert_eq!(shown, expected);
    }
}
