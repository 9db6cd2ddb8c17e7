//! Founding a cluster: the one act that makes what is missing.
//!
//! `FOUNDING` is in the data directory while it is under way, `CLUSTER` once it is done. With `CLUSTER` there, a missing
//! key, certificate or data directory is an error and never a new one: a new authority would disown every kubeconfig and
//! node, a new token key every ServiceAccount.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::Error;

/// Version of the data directory's layout (docs/formats.md).
const LAYOUT: &str = "coracle cluster 1\n";

/// Whether a cluster was founded in `dir`; where none was, founding begins.
pub fn is_founded(dir: &Path) -> Result<bool, Error> {
    let (cluster, founding) = (dir.join("CLUSTER"), dir.join("FOUNDING"));
    let failed = |source| Error::File { path: cluster.clone(), source };
    match fs::read_to_string(&cluster) {
        Ok(text) if text == LAYOUT => return Ok(true),
        Ok(text) => return Err(Error::Layout { path: cluster, found: text.chars().take(80).collect() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => (),
        Err(error) => return Err(failed(error)),
    }
    let is_there = |path: &str| dir.join(path).try_exists().map_err(failed);
    if !is_there("FOUNDING")? {
        for data in ["control/FORMAT", "control/state.redb", "pki/ca.crt", "pki/ca.key", "pki/service-account.key"] {
            if is_there(data)? {
                return Err(Error::Missing { path: cluster });
            }
        }
        private_dir(dir).map_err(failed)?;
        write(&founding, b"").map_err(failed)?;
    } else if !is_there("control/FORMAT")? && is_there("control")? {
        // What a reset that was interrupted has left of the data is nobody's any more: the keyspace may begin anew there.
        write(&dir.join("control/FOUNDING"), b"").map_err(failed)?;
    }
    Ok(false)
}

/// Forgets that founding was under way, after a crash between its two marks: with both, a later loss would be taken for a
/// beginning. By who holds the lock of the data: one that deletes them has written the mark just now.
pub fn settled(dir: &Path) -> Result<(), Error> {
    let founding = dir.join("FOUNDING");
    match fs::remove_file(&founding) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::File { path: founding, source: error }),
        _ => Ok(()),
    }
}

/// Says that everything is there from now on.
pub fn founded(dir: &Path) -> Result<(), Error> {
    let path = dir.join("CLUSTER");
    let done = || {
        write(&path, LAYOUT.as_bytes())?;
        fs::remove_file(dir.join("FOUNDING"))?;
        File::open(dir)?.sync_all()
    };
    done().map_err(|source| Error::File { path: path.clone(), source })
}

/// Makes a directory for its owner alone, unless it is there.
pub fn private_dir(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// The same, and closes one to others that is there already. For directories that are the cluster's own.
pub fn closed_dir(path: &Path) -> io::Result<()> {
    private_dir(path)?;
    match fs::metadata(path)?.permissions().mode() & 0o077 {
        0 => Ok(()),
        _ => fs::set_permissions(path, fs::Permissions::from_mode(0o700)),
    }
}

/// Writes a file that its owner alone may read: whole or not at all, and its name with it.
pub fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    let part = PathBuf::from(format!("{}.part", path.display()));
    let _ = fs::remove_file(&part);
    let made = || -> io::Result<()> {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&part)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&part, path)
    };
    made().inspect_err(|_| drop(fs::remove_file(&part)))?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_interrupted_reset_left_does_not_stand_in_the_way() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("data");
        fs::create_dir_all(dir.join("control/log")).unwrap();
        fs::write(dir.join("control/state.redb"), "half").unwrap();
        fs::write(dir.join("FOUNDING"), "").unwrap();
        assert!(!is_founded(&dir).unwrap() && dir.join("control/FOUNDING").exists());
        // Without the mark of a reset, the same is a loss.
        fs::remove_file(dir.join("FOUNDING")).unwrap();
        assert!(matches!(is_founded(&dir), Err(Error::Missing { .. })));
    }

    #[test]
    fn founding_happens_once_and_may_be_begun_again() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("data");
        assert!(!is_founded(&dir).unwrap());
        fs::create_dir(dir.join("pki")).unwrap();
        fs::write(dir.join("pki/ca.key"), "half").unwrap();
        assert!(!is_founded(&dir).unwrap());
        founded(&dir).unwrap();
        assert!(is_founded(&dir).unwrap() && !dir.join("FOUNDING").exists());
        // A crash between the two leaves the mark, which must not make a later loss a beginning.
        fs::write(dir.join("FOUNDING"), "").unwrap();
        assert!(is_founded(&dir).unwrap() && dir.join("FOUNDING").exists(), "who has no lock changes nothing");
        settled(&dir).unwrap();
        assert!(is_founded(&dir).unwrap() && !dir.join("FOUNDING").exists());
        fs::remove_file(dir.join("CLUSTER")).unwrap();
        assert!(matches!(is_founded(&dir), Err(Error::Missing { .. })));
        fs::write(dir.join("CLUSTER"), "coracle cluster 9\n").unwrap();
        assert!(matches!(is_founded(&dir), Err(Error::Layout { .. })));
    }
}
