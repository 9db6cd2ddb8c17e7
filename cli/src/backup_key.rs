//! The file of a backup's key: what `coracle backup` makes, and `coracle restore` needs.
//!
//! It has two lines, `coracle backup key 1` and the key in hexadecimal, and is for its owner alone.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use coracle_sdk::SecretKey;

const HEAD: &str = "coracle backup key 1";
/// Bytes of a file that may be one.
const BYTES_MAX: u64 = 1024;

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

/// A key that is there, or a new one, whose file goes unless it is [kept](Key::keep).
pub struct Key {
    pub key: SecretKey,
    made: Option<PathBuf>,
}

impl Key {
    /// The one in `path`, made where there is none.
    pub fn of(path: &Path) -> anyhow::Result<Key> {
        let mut file = match File::options().write(true).create_new(true).mode(0o600).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                return Ok(Key { key: read(path)?, made: None });
            }
            Err(error) => bail!("write the backup key {}: {error}", path.display()),
        };
        let made = Key { key: SecretKey::generate(), made: Some(path.to_owned()) };
        let written = writeln!(file, "{HEAD}\n{}", made.key.to_hex()).and_then(|()| file.sync_all());
        written.with_context(|| format!("write the backup key {}", path.display()))?;
        Ok(made)
    }

    /// There is a backup now that takes it. Says whether it is new.
    pub fn keep(mut self) -> anyhow::Result<bool> {
        let Some(path) = self.made.take() else { return Ok(false) };
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(parent).and_then(|dir| dir.sync_all()).with_context(|| format!("write {}", path.display()))?;
        Ok(true)
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        if let Some(path) = &self.made {
            let _ = std::fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn a_key_is_made_once_and_goes_with_a_backup_that_was_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = beside(&dir.path().join("a.backup"));
        assert!(path.ends_with("a.backup.key"));
        drop(Key::of(&path).unwrap());
        assert!(!path.exists(), "nothing takes it");
        let first = Key::of(&path).unwrap();
        let id = first.key.fingerprint();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert!(first.keep().unwrap());
        let again = Key::of(&path).unwrap();
        assert_eq!((again.key.fingerprint(), read(&path).unwrap().fingerprint()), (id.clone(), id));
        assert!(!again.keep().unwrap() && path.exists());
        for wrong in ["", "coracle backup key 1\n", "coracle backup key 2\n00", "x"] {
            std::fs::write(&path, wrong).unwrap();
            assert!(Key::of(&path).is_err() && path.exists(), "{wrong:?} is neither used nor replaced");
        }
    }
}
