//! The file of a backup's key: what `coracle backup` makes, and `coracle restore` needs.
//!
//! It has two lines, `coracle backup key 1` and the key in hexadecimal, and is for its owner alone.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use coracle_sdk::SecretKey;

const HEAD: &str = "coracle backup key 1";
/// Bytes of a file that may be one.
const BYTES_MAX: u64 = 1024;
/// How often a file that is deleted while a backup is made is written anew.
const WRITTEN_MAX: usize = 4;

/// Where a backup's key is where nobody says another place.
pub fn beside(backup: &Path) -> PathBuf {
    let mut path = backup.as_os_str().to_owned();
    path.push(".key");
    path.into()
}

/// The key in `path`.
pub fn read(path: &Path) -> anyhow::Result<SecretKey> {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(BYTES_MAX).read_to_string(&mut text));
    read.with_context(|| format!("read the backup key {}", path.display()))?;
    let key = text.strip_prefix(HEAD).and_then(|rest| SecretKey::from_hex(rest.strip_prefix('\n')?.trim_end()));
    key.with_context(|| format!("{} is no backup key of `coracle backup`", path.display()))
}

/// A key that is there, or a new one. Its file is never deleted once it is written: other backups may have found it meanwhile, and
/// would be left without it.
pub struct Key {
    pub key: SecretKey,
    path: PathBuf,
    is_new: bool,
}

impl Key {
    /// The one in `path`, made where there is none.
    pub fn of(path: &Path) -> anyhow::Result<Key> {
        let made = Key { key: SecretKey::generate(), path: path.to_owned(), is_new: true };
        match made.write()? {
            true => Ok(made),
            false => Ok(Key { key: read(path)?, is_new: false, ..made }),
        }
    }

    /// Writes it, if nothing is there: whole or not at all, whenever it is cut. Whoever reads it meanwhile finds a key or nothing.
    fn write(&self) -> anyhow::Result<bool> {
        self.link().with_context(|| format!("write the backup key {}", self.path.display()))
    }

    fn link(&self) -> std::io::Result<bool> {
        // Others may write theirs at the same time, and the first has the name: this one is nobody else's, and its owner's alone.
        let mut part = tempfile::Builder::new()
            .prefix(&format!(".{}.", self.path.file_name().unwrap_or_default().to_string_lossy()))
            .suffix(".part")
            .tempfile_in(parent(&self.path))?;
        part.write_all(format!("{HEAD}\n{}\n", self.key.to_hex()).as_bytes())?;
        part.as_file().sync_all()?;
        match part.persist_noclobber(&self.path) {
            Ok(_) => {}
            Err(error) if error.error.kind() == std::io::ErrorKind::AlreadyExists => return Ok(false),
            Err(error) => return Err(error.error),
        }
        File::open(parent(&self.path))?.sync_all()?;
        Ok(true)
    }

    /// There is a backup now that takes it: has the file there, and on the disk, also where somebody deleted it meanwhile. Fails where
    /// another key is in it. Says whether it is new.
    pub fn keep(mut self) -> anyhow::Result<bool> {
        for _ in 0..WRITTEN_MAX {
            let found = match read(&self.path) {
                Ok(found) => found,
                Err(error) if is_not_there(&error) => {
                    self.is_new |= self.write()?;
                    continue;
                }
                Err(error) => return Err(error),
            };
            if found.to_hex() != self.key.to_hex() {
                bail!(
                    "{} holds another key now, {}, and this backup takes {}: back up again",
                    self.path.display(),
                    found.fingerprint(),
                    self.key.fingerprint()
                );
            }
            // Whoever wrote it may not have got as far.
            let synced = File::open(&self.path).and_then(|file| file.sync_all());
            let synced = synced.and_then(|()| File::open(parent(&self.path))?.sync_all());
            synced.with_context(|| format!("write {}", self.path.display()))?;
            return Ok(self.is_new);
        }
        bail!("somebody deletes the backup key {} again and again", self.path.display());
    }
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn is_not_there(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::NotFound)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn whoever_comes_at_the_same_time_finds_the_key_of_the_first_whole() {
        let dir = tempfile::tempdir().unwrap();
        for round in 0..50 {
            let path = dir.path().join(format!("{round}.key"));
            let start = std::sync::Barrier::new(4);
            let of = || {
                start.wait();
                Key::of(&path).map(|key| key.key.fingerprint())
            };
            let found: Vec<String> = std::thread::scope(|scope| {
                let all: Vec<_> = (0..4).map(|_| scope.spawn(of)).collect();
                all.into_iter().map(|one| one.join().unwrap().unwrap()).collect()
            });
            assert!(found.iter().all(|id| *id == found[0]), "{found:?}");
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 50, "nothing is left beside them");
    }

    #[test]
    fn a_key_is_made_once_and_stays_whatever_becomes_of_its_backup() {
        let dir = tempfile::tempdir().unwrap();
        let path = beside(&dir.path().join("a.backup"));
        assert!(path.ends_with("a.backup.key"));
        // Two at a time, and the backup of the one that has made it fails.
        let (maker, first) = (Key::of(&path).unwrap(), Key::of(&path).unwrap());
        let id = maker.key.fingerprint();
        drop(maker);
        assert_eq!(read(&path).unwrap().fingerprint(), id, "the other takes it");
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert!(!first.keep().unwrap());
        let again = Key::of(&path).unwrap();
        assert_eq!((again.key.fingerprint(), read(&path).unwrap().fingerprint()), (id.clone(), id.clone()));
        // What somebody has deleted meanwhile is written anew, and no other key is taken for it.
        std::fs::remove_file(&path).unwrap();
        assert!(again.keep().unwrap());
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let again = Key::of(&path).unwrap();
        assert_eq!(again.key.fingerprint(), id);
        std::fs::remove_file(&path).unwrap();
        let other = Key::of(&path).unwrap();
        assert!(again.keep().unwrap_err().to_string().contains("another key"));
        assert!(other.keep().unwrap(), "that one is new");
        for wrong in ["", "coracle backup key 1\n", "coracle backup key 2\n00", "x"] {
            std::fs::write(&path, wrong).unwrap();
            assert!(Key::of(&path).is_err() && path.exists(), "{wrong:?} is neither used nor replaced");
        }
    }
}
