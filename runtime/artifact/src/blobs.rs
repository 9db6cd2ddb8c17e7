//! The content-addressed store: one file per digest, bounded in bytes.
//!
//! What a pod uses is pinned by holding its [`Blob`]. When a new blob does not fit, the least recently used
//! unpinned ones are deleted; when even that is not enough, the new one is refused. Files appear by rename, so a
//! file under its digest is always whole and was verified.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant, SystemTime};

use tempfile::NamedTempFile;

/// Blobs that are kept, however small: each is a file, and an entry in memory.
const BLOBS_MAX: usize = 10_000;

/// A file's time of last use is written to disk (as its modification time) at most this often.
const TOUCH_INTERVAL: Duration = Duration::from_secs(600);

/// A stored blob; while it is held it is not evicted.
#[derive(Debug, Clone)]
pub struct Blob {
    /// Where the bytes are.
    pub path: Arc<Path>,
    /// How many.
    pub size: u64,
    _pin: Arc<()>,
}

/// The store's refusal.
#[derive(Debug, thiserror::Error)]
pub enum InsertError {
    /// All that could be evicted was, and it is not enough.
    #[error("the image store is full: {used} of {limit} bytes are in use by pods")]
    Full {
        /// Bytes pinned by pods.
        used: u64,
        /// The bound.
        limit: u64,
    },
    /// The digest is none that this store names a file by.
    #[error("{0:?} is no digest of SHA-256, SHA-384 or SHA-512")]
    Digest(String),
    /// The disk failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Blobs by digest on disk.
#[derive(Debug)]
pub struct Blobs {
    dir: PathBuf,
    temp: PathBuf,
    max_bytes: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    entries: HashMap<String, Entry>,
    total: u64,
}

#[derive(Debug)]
struct Entry {
    path: Arc<Path>,
    size: u64,
    used: SystemTime,
    touched: SystemTime,
    /// When it was begun to be read, the last time that it was what its digest says.
    seen: Option<Instant>,
    pin: Weak<()>,
}

impl Blobs {
    /// Opens the store in `dir`, finding again what an earlier process left and removing its unfinished downloads.
    pub fn open(dir: &Path, max_bytes: u64) -> io::Result<Self> {
        let temp = dir.join("tmp");
        let dir = dir.join("sha256");
        let _ = fs::remove_dir_all(&temp);
        fs::create_dir_all(&temp)?;
        fs::create_dir_all(&dir)?;
        let mut state = State::default();
        for file in fs::read_dir(&dir)? {
            let file = file?;
            let metadata = file.metadata()?;
            let (Some(hex), true) = (file.file_name().to_str().map(str::to_owned), metadata.is_file()) else {
                continue;
            };
            match begins_like_wasm(&file.path()) {
                Ok(true) => {}
                // Synced before it was named, so this does not happen by a power cut; a damaged one is fetched again.
                Ok(false) => {
                    tracing::warn!(path = %file.path().display(), "an image is damaged and will be fetched again");
                    fs::remove_file(file.path())?;
                    continue;
                }
                // That says nothing of what is in it: whoever runs it reads it whole.
                Err(error) => {
                    tracing::warn!(path = %file.path().display(), %error, "an image cannot be read and is kept");
                }
            }
            let used = metadata.modified()?;
            state.total += metadata.len();
            let (path, size) = (file.path().into(), metadata.len());
            let entry = Entry { path, size, used, touched: used, seen: None, pin: Weak::new() };
            let algorithm = match hex.len() {
                96 => "sha384",
                128 => "sha512",
                _ => "sha256",
            };
            state.entries.insert(format!("{algorithm}:{hex}"), entry);
        }
        Ok(Self { dir, temp, max_bytes, state: Mutex::new(state) })
    }

    /// The bound in bytes.
    pub fn max_bytes(&self) -> u64 {
        self.max_bytes
    }

    /// Finds a blob and pins it.
    pub fn get(&self, digest: &str) -> Option<Blob> {
        let mut state = self.lock();
        let entry = state.entries.get_mut(digest)?;
        let now = SystemTime::now();
        entry.used = now;
        if now.duration_since(entry.touched).is_ok_and(|age| age > TOUCH_INTERVAL) {
            entry.touched = now;
            let _ = fs::File::open(&entry.path).and_then(|file| file.set_modified(now));
        }
        Some(entry.pinned())
    }

    /// An empty file to download into, on the same file system.
    pub fn temporary(&self) -> io::Result<NamedTempFile> {
        NamedTempFile::new_in(&self.temp)
    }

    /// Takes over a verified and synced file as the content of `digest`, pinned.
    pub fn insert(&self, digest: &str, file: NamedTempFile) -> Result<Blob, InsertError> {
        let size = file.as_file().metadata()?.len();
        // It comes from a manifest and becomes a path.
        let Some(hex) = hex_of(digest) else { return Err(InsertError::Digest(digest.chars().take(100).collect())) };
        let path: Arc<Path> = self.dir.join(hex).into();
        let mut state = self.lock();
        if let Some(entry) = state.entries.get_mut(digest) {
            return Ok(entry.pinned());
        }
        let none = HashSet::new();
        state.evict(self.max_bytes.saturating_sub(size), &none);
        while state.entries.len() >= BLOBS_MAX && state.evict_one(&none) {}
        if state.total + size > self.max_bytes || state.entries.len() >= BLOBS_MAX {
            return Err(InsertError::Full { used: state.total, limit: self.max_bytes });
        }
        file.persist(&path).map_err(|error| error.error)?;
        let now = SystemTime::now();
        let mut entry = Entry { path, size, used: now, touched: now, seen: None, pin: Weak::new() };
        let blob = entry.pinned();
        state.entries.insert(digest.to_owned(), entry);
        state.total += size;
        Ok(blob)
    }

    /// Bytes on disk.
    pub fn total_bytes(&self) -> u64 {
        self.lock().total
    }

    /// Its size, if it is here; that is no use of it.
    pub fn size(&self, digest: &str) -> Option<u64> {
        self.lock().entries.get(digest).map(|entry| entry.size)
    }

    /// Deletes so many bytes of what nobody holds, the least recently used first and none of `kept`, as far as there are as
    /// many; returns how many.
    pub fn free(&self, bytes: u64, kept: &HashSet<String>) -> u64 {
        let mut state = self.lock();
        let before = state.total;
        state.evict(before.saturating_sub(bytes), kept);
        before - state.total
    }

    /// It was what its digest says when it was read from then on.
    pub fn see(&self, digest: &str, blob: &Blob, begun: Instant) {
        if let Some(entry) = self.lock().entries.get_mut(digest).filter(|entry| entry.is(blob)) {
            entry.seen = entry.seen.max(Some(begun));
        }
    }

    /// Whether somebody has seen that since.
    pub fn is_seen_since(&self, digest: &str, blob: &Blob, since: Instant) -> bool {
        let state = self.lock();
        state.entries.get(digest).is_some_and(|entry| entry.is(blob) && entry.seen >= Some(since))
    }

    /// Deletes a blob that is not what its digest says, unless another has taken its place.
    pub fn forget(&self, digest: &str, blob: &Blob) {
        let mut state = self.lock();
        if state.entries.get(digest).is_some_and(|entry| entry.is(blob))
            && let Some(entry) = state.entries.remove(digest)
        {
            state.delete(&entry);
        }
    }

    /// Whether the digest is here, without pinning it.
    pub fn contains(&self, digest: &str) -> bool {
        self.lock().entries.contains_key(digest)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// The digits of a digest, by whose number a file says its algorithm.
pub(crate) fn hex_of(digest: &str) -> Option<&str> {
    let (algorithm, hex) = digest.split_once(':')?;
    let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    let fits = matches!((algorithm, hex.len()), ("sha256", 64) | ("sha384", 96) | ("sha512", 128))
        && hex.bytes().all(is_digit);
    fits.then_some(hex)
}

/// Whether the file begins as every module and component does; an error when it cannot be read.
pub(crate) fn begins_like_wasm(path: &Path) -> io::Result<bool> {
    let mut begin = Vec::new();
    fs::File::open(path)?.take(4).read_to_end(&mut begin)?;
    Ok(begin == b"\0asm")
}

impl Entry {
    /// Whether this is what was given, and not another that has taken its place.
    fn is(&self, blob: &Blob) -> bool {
        Arc::ptr_eq(&self.path, &blob.path)
    }

    fn pinned(&mut self) -> Blob {
        let pin = self.pin.upgrade().unwrap_or_default();
        self.pin = Arc::downgrade(&pin);
        Blob { path: self.path.clone(), size: self.size, _pin: pin }
    }
}

impl State {
    /// Deletes least recently used, unpinned blobs, but none of `kept`, until at most `target` bytes are left.
    fn evict(&mut self, target: u64, kept: &HashSet<String>) {
        while self.total > target && self.evict_one(kept) {}
    }

    /// Deletes the least recently used of them; false when there is none.
    fn evict_one(&mut self, kept: &HashSet<String>) -> bool {
        let oldest = self
            .entries
            .iter()
            .filter(|(digest, entry)| entry.pin.strong_count() == 0 && !kept.contains(*digest))
            .min_by_key(|(_, entry)| entry.used)
            .map(|(digest, _)| digest.clone());
        let Some(entry) = oldest.and_then(|digest| self.entries.remove(&digest)) else { return false };
        self.delete(&entry);
        true
    }

    /// Deletes the file of an entry that was taken out.
    fn delete(&mut self, entry: &Entry) {
        if let Err(error) = fs::remove_file(&entry.path) {
            tracing::warn!(path = %entry.path.display(), %error, "an image could not be deleted");
        }
        self.total -= entry.size;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    /// The digest that a letter stands for.
    fn named(letter: &str) -> String {
        format!("sha256:{}", letter.repeat(64))
    }

    fn put(blobs: &Blobs, digest: &str, size: usize) -> Result<Blob, InsertError> {
        let mut file = blobs.temporary().unwrap();
        file.write_all(b"\0asm").unwrap();
        file.write_all(&vec![7; size - 4]).unwrap();
        blobs.insert(digest, file)
    }

    #[test]
    fn evicts_the_least_recently_used_and_never_what_is_pinned() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path(), 100).unwrap();
        let pinned = put(&blobs, &named("a"), 40).unwrap();
        drop(put(&blobs, &named("b"), 20).unwrap());
        drop(put(&blobs, &named("c"), 20).unwrap());
        drop(blobs.get(&named("b")).unwrap());
        drop(put(&blobs, &named("d"), 40).unwrap());
        assert!(blobs.contains(&named("a")) && blobs.contains(&named("b")) && !blobs.contains(&named("c")));
        // What is asked for its size is not used.
        assert_eq!(blobs.size(&named("b")), Some(20));
        let (all, kept) = (HashSet::new(), HashSet::from([named("d")]));
        assert_eq!((blobs.free(1000, &kept), blobs.contains(&named("d")), blobs.total_bytes()), (20, true, 80));
        assert_eq!((blobs.free(1000, &all), blobs.contains(&named("a"))), (40, true), "it is held");
        drop(put(&blobs, &named("b"), 20).unwrap());
        drop(put(&blobs, &named("d"), 40).unwrap());
        assert!(matches!(put(&blobs, &named("e"), 70), Err(InsertError::Full { used: 40, limit: 100 })));
        drop(pinned);
        drop(put(&blobs, &named("e"), 70).unwrap());
        assert!(!blobs.contains(&named("a")));
        assert_eq!(blobs.total_bytes(), 70);
        drop(blobs);
        let again = Blobs::open(dir.path(), 100).unwrap();
        assert_eq!(again.get(&named("e")).unwrap().size, 70);
    }

    #[test]
    fn a_file_is_named_by_a_digest_and_nothing_else_and_a_damaged_one_is_not_kept() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path(), 100).unwrap();
        // What a registry's content may be called, a file may.
        for (algorithm, digits) in [("sha256", 64), ("sha384", 96), ("sha512", 128)] {
            let digest = format!("{algorithm}:{}", "c".repeat(digits));
            drop(put(&blobs, &digest, 8).unwrap());
            assert!(Blobs::open(dir.path(), 100).unwrap().contains(&digest), "{digest}");
        }
        for digest in ["sha256:../../etc/x", "sha256:", "sha512:00", &named("A"), &format!("{}/..", named("a"))] {
            assert!(matches!(put(&blobs, digest, 8), Err(InsertError::Digest(_))), "{digest}");
        }
        let whole = put(&blobs, &named("a"), 8).unwrap();
        let emptied = put(&blobs, &named("b"), 8).unwrap();
        // As a disk leaves a file that was named and never synced.
        fs::write(&emptied.path, "").unwrap();
        let again = Blobs::open(dir.path(), 100).unwrap();
        assert!(again.contains(&named("a")) && !again.contains(&named("b")));
        assert!(whole.path.exists() && !emptied.path.exists());
        // What cannot be read is not therefore damaged: here what is no file.
        assert!(begins_like_wasm(dir.path()).is_err() && begins_like_wasm(&dir.path().join("none")).is_err());
        assert_eq!(begins_like_wasm(&whole.path).ok(), Some(true));
    }
}
