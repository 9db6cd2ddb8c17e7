//! The file of a backup's key: what `coracle backup` makes, and `coracle restore` needs.
//!
//! It has two lines, `coracle backup key 1` and the key in hexadecimal, and is for its owner alone. It is written beside its place and
//! gets its name when it is on the disk: whoever finds it finds all of it, and nothing is written over.

use std::fs::File;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use coracle_sdk::SecretKey;
use rustix::fs::{CWD, RenameFlags, renameat_with};

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

    /// Writes it, if nothing is there; says whether it did.
    fn write(&self) -> anyhow::Result<bool> {
        let context = || format!("write the backup key {}", self.path.display());
        // Another process's has another name: this key's own.
        let mut part = self.path.as_os_str().to_owned();
        part.push(format!(".{}.part", self.key.fingerprint()));
        let part = PathBuf::from(part);
        // What is left of a process that ended in the middle of this is no key yet.
        let left = std::fs::remove_file(&part);
        if let Some(error) = left.err().filter(|error| error.kind() != ErrorKind::NotFound) {
            return Err(error).with_context(context);
        }
        let written = self.write_part(&part).and_then(|()| self.name(&part));
        // It has its name, or is not wanted.
        let removed = std::fs::remove_file(&part);
        let is_new = written.with_context(context)?;
        match removed {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error).with_context(context),
            _ => Ok(is_new),
        }
    }

    fn write_part(&self, part: &Path) -> io::Result<()> {
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(part)?;
        file.write_all(format!("{HEAD}\n{}\n", self.key.to_hex()).as_bytes())?;
        file.sync_all()
    }

    /// Gives a file its name, if nothing has that.
    fn name(&self, part: &Path) -> io::Result<bool> {
        let named = match std::fs::hard_link(part, &self.path) {
            // A file system without hard links, as of a memory stick.
            Err(error) if matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::Unsupported) => {
                rename_anew(part, &self.path)
            }
            named => named,
        };
        match named {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(error),
        }
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
            let parent = self.path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
            let synced = File::open(&self.path).and_then(|file| file.sync_all());
            let synced = synced.and_then(|()| File::open(parent)?.sync_all());
            synced.with_context(|| format!("write {}", self.path.display()))?;
            return Ok(self.is_new);
        }
        bail!("somebody deletes the backup key {} again and again", self.path.display());
    }
}

/// Renames a file, unless something has that name.
fn rename_anew(from: &Path, to: &Path) -> io::Result<()> {
    Ok(renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE)?)
}

fn is_not_there(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::NotFound)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

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
        let names = || std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
        assert_eq!(names().collect::<Vec<_>>(), ["a.backup.key"], "nothing is left beside it");
        for wrong in ["", "coracle backup key 1\n", "coracle backup key 2\n00", "x"] {
            std::fs::write(&path, wrong).unwrap();
            assert!(Key::of(&path).is_err() && path.exists(), "{wrong:?} is neither used nor replaced");
        }
        assert_eq!(names().count(), 1);
    }

    /// As when two backups begin at the same moment.
    #[test]
    fn whoever_finds_a_key_finds_all_of_it() {
        let dir = tempfile::tempdir().unwrap();
        for number in 0..50 {
            let path = dir.path().join(format!("{number}.key"));
            let one = || Key::of(&path).map(|made| (made.key.fingerprint(), made.is_new)).unwrap();
            let made: Vec<(String, bool)> = std::thread::scope(|scope| {
                let all: Vec<_> = (0..4).map(|_| scope.spawn(one)).collect();
                all.into_iter().map(|one| one.join().unwrap()).collect()
            });
            assert!(made.iter().all(|(id, _)| *id == made[0].0), "{made:?}");
            assert_eq!(made.iter().filter(|(_, is_new)| *is_new).count(), 1, "{made:?}");
        }
    }

    #[test]
    fn what_has_a_name_keeps_it_also_without_hard_links() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("part"), "new").unwrap();
        rename_anew(&at("part"), &at("key")).unwrap();
        std::fs::write(at("part"), "other").unwrap();
        assert_eq!(rename_anew(&at("part"), &at("key")).unwrap_err().kind(), ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read_to_string(at("key")).unwrap(), "new");
    }
}
