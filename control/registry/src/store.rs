//! The contents: files by digest, whatever repositories they belong to. Everything here blocks on the disk.
//!
//! A file appears whole or not at all: it is written under another name, synced, and renamed. A content that nothing names is
//! collected once this process has seen that nobody touched it for some time; whoever is about to name it, or asks that it be held for somebody who is,
//! touches it under the same lock.
//!
//! What cannot be read may be sound, and stays where it is until a whole one takes its place. What was read twice from the disk and
//! is not what its digest says is set aside; it goes when a whole one is here, or when nothing names it any more.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::Collected;
use crate::name::{Algorithm, Digest, Hashing};
use crate::sightings::Sightings;
use crate::upload::leave_free;

/// Bytes read at a time of what is hashed.
const HASHED_BYTES: usize = 256 << 10;

/// The files of a registry.
pub struct Store {
    dir: PathBuf,
    free_min: u64,
    /// Held while files appear and go; counts those that were written.
    changes: Mutex<u64>,
    /// How many want that no file goes. Becomes more under `changes` only.
    kept: AtomicUsize,
    /// What was damaged since the start.
    damage: Mutex<Damage>,
    /// Files that nothing names, by where they are, as they were touched last.
    loose: Sightings<PathBuf, Option<SystemTime>>,
}

/// What was damaged on this disk since the start.
#[derive(Clone, Debug, Default)]
pub struct Damage {
    /// How many contents were.
    pub found: u64,
    /// Those that are not here again.
    pub missing: HashSet<Digest>,
    /// Those that the disk did not give when they were last looked at, and that may be sound; and when that was.
    pub unread: HashMap<Digest, Instant>,
}

/// What looking at a content has found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Found {
    /// It is what its digest says.
    Sound,
    /// It is not, and is set aside.
    Damaged,
    /// The disk did not give it, which says nothing of what it is: it is where it was.
    Unread,
}

/// How far a content was looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Checked {
    /// So many bytes more were read.
    Read(usize),
    /// That was all.
    Done(Found),
}

/// A content that is being read to see whether it is what its digest says.
pub struct Checking {
    digest: Digest,
    file: File,
    hashing: Hashing,
    piece: Vec<u8>,
    /// Whether it was something else before, and is read once more.
    again: bool,
}

impl Store {
    /// Opens the files in `dir`, and makes the directories.
    pub fn open(dir: &Path, free_min: u64) -> io::Result<Store> {
        for part in ["blobs/sha256", "blobs/sha512"] {
            make_dirs(&dir.join(part))?;
        }
        Ok(Store {
            dir: dir.into(),
            free_min,
            changes: Mutex::new(0),
            kept: AtomicUsize::new(0),
            damage: Mutex::default(),
            loose: Sightings::default(),
        })
    }

    /// Where the content of `digest` is, if it is there.
    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.blobs(digest.algorithm()).join(&digest.hex()[..2]).join(digest.hex())
    }

    fn blobs(&self, algorithm: Algorithm) -> PathBuf {
        self.dir.join("blobs").join(algorithm.name())
    }

    /// The length of a content, if it is there.
    pub fn size(&self, digest: &Digest) -> io::Result<Option<u64>> {
        absent(fs::metadata(self.path(digest))).map(|metadata| metadata.map(|metadata| metadata.len()))
    }

    /// Looks whether a content is what its digest says; `None` where none is there. One that is not is set aside in `damaged`, and is
    /// there no longer: the next push, or another server, brings it.
    pub fn look(&self, digest: &Digest) -> io::Result<Option<Found>> {
        let mut checking = match self.check(digest) {
            Ok(Some(checking)) => checking,
            Ok(None) => return Ok(None),
            Err(_) => return Ok(Some(Found::Unread)),
        };
        loop {
            if let Checked::Done(found) = self.check_on(&mut checking)? {
                return Ok(Some(found));
            }
        }
    }

    /// Begins to look at a content; `None` where there is none, an error where it cannot be read.
    pub fn check(&self, digest: &Digest) -> io::Result<Option<Checking>> {
        let Some(file) = absent(File::open(self.path(digest))).inspect_err(|error| self.note_unread(digest, error))?
        else {
            return Ok(None);
        };
        let hashing = Hashing::new(digest.algorithm());
        Ok(Some(Checking { digest: digest.clone(), file, hashing, piece: vec![0; HASHED_BYTES], again: false }))
    }

    /// Reads on by one piece. What is not what its digest says was perhaps only read wrong: it is read once more, from the disk and
    /// not from memory, before anything is done about it.
    pub fn check_on(&self, checking: &mut Checking) -> io::Result<Checked> {
        let digest = &checking.digest;
        let read = match checking.file.read(&mut checking.piece) {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(Checked::Read(0)),
            Err(error) => {
                self.note_unread(digest, &error);
                return Ok(Checked::Done(Found::Unread));
            }
        };
        if read > 0 {
            checking.hashing.update(&checking.piece[..read]);
            return Ok(Checked::Read(read));
        }
        let is = std::mem::replace(&mut checking.hashing, Hashing::new(digest.algorithm())).finish();
        if is == *digest {
            self.damage.lock().unread.remove(digest);
            return Ok(Checked::Done(Found::Sound));
        }
        if !std::mem::replace(&mut checking.again, true) {
            // Where the system keeps its copy all the same, that one is read.
            let _ = rustix::fs::fadvise(&checking.file, 0, None, rustix::fs::Advice::DontNeed);
            return match checking.file.seek(SeekFrom::Start(0)) {
                Ok(_) => Ok(Checked::Read(0)),
                Err(_) => Ok(Checked::Done(Found::Unread)),
            };
        }
        self.set_aside(digest, &checking.file)?;
        Ok(Checked::Done(Found::Damaged))
    }

    /// Whether the disk did not give a content when it was last looked at.
    pub fn is_unread(&self, digest: &Digest) -> bool {
        self.damage.lock().unread.contains_key(digest)
    }

    /// How long ago that was.
    pub fn unread_since(&self, digest: &Digest) -> Option<Duration> {
        self.damage.lock().unread.get(digest).map(Instant::elapsed)
    }

    /// Notes that the disk does not give a content, and says so the first time. That there is no memory or no descriptor for it now
    /// says nothing of the disk.
    pub fn note_unread(&self, digest: &Digest, error: &io::Error) {
        use rustix::io::Errno;
        if [Errno::MFILE, Errno::NFILE, Errno::NOMEM]
            .map(|of| of.raw_os_error())
            .contains(&error.raw_os_error().unwrap_or(0))
        {
            return;
        }
        if self.damage.lock().unread.insert(digest.clone(), Instant::now()).is_none() {
            tracing::warn!(%digest, %error, "a content of an image cannot be read from this disk; it stays until another server gives it");
        }
    }

    /// What was damaged since the start.
    pub fn damage(&self) -> Damage {
        self.damage.lock().clone()
    }

    /// The length of a content that is there, and is as long as what was pushed. One that is not is damaged, which costs nothing to
    /// see, and is set aside, unless the disk does not give it.
    pub fn size_of_whole(&self, digest: &Digest, size: u64) -> io::Result<Option<u64>> {
        let Some(mut file) = absent(File::open(self.path(digest)))? else { return Ok(None) };
        let is = file.metadata()?.len();
        if is == size {
            return Ok(Some(size));
        }
        if let Err(error) = file.read(&mut [0]) {
            self.note_unread(digest, &error);
            return Ok(Some(size));
        }
        self.set_aside(digest, &file)?;
        Ok(None)
    }

    /// Sets the content aside that was read from `file`.
    fn set_aside(&self, digest: &Digest, file: &File) -> io::Result<()> {
        let path = self.path(digest);
        let _changing = self.changes.lock();
        // Another one may have taken its place meanwhile.
        let there = absent(fs::metadata(&path))?;
        if there.is_some_and(|there| file.metadata().is_ok_and(|read| read.ino() == there.ino())) {
            let aside = self.aside(digest);
            make_dirs(&self.dir.join("damaged"))?;
            fs::rename(&path, &aside)?;
            // What nothing names goes some time after this; earlier where the disk does not even take that.
            let _ = file.set_modified(SystemTime::now());
            let aside = aside.display();
            let mut damage = self.damage.lock();
            damage.found += 1;
            damage.unread.remove(digest);
            damage.missing.insert(digest.clone());
            tracing::warn!(%digest, %aside, "a content of an image is not what its digest says any more and is set aside: it comes from another server, or with the next push");
        }
        Ok(())
    }

    /// Where what is damaged of a content lies.
    fn aside(&self, digest: &Digest) -> PathBuf {
        self.dir.join("damaged").join(digest.hex())
    }

    /// The contents that are there.
    pub fn all(&self) -> io::Result<Vec<Digest>> {
        let mut all = Vec::new();
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let blobs = self.blobs(algorithm);
            for start in list(&blobs)? {
                all.extend(list(&blobs.join(start))?.iter().filter_map(|hex| Digest::from_hex(hex)));
            }
        }
        Ok(all)
    }

    /// The bytes of a content that is there and small.
    pub fn read(&self, digest: &Digest) -> io::Result<Vec<u8>> {
        fs::read(self.path(digest))
    }

    /// Whether a content is there. If so, it stays for some time even where nothing names it.
    pub fn hold(&self, digest: &Digest) -> io::Result<bool> {
        let _changing = self.changes.lock();
        match absent(File::options().write(true).open(self.path(digest)))? {
            Some(file) => file.set_modified(SystemTime::now()).map(|()| true),
            None => Ok(false),
        }
    }

    /// Makes the synced file `from` the content of `digest`.
    pub fn add(&self, digest: &Digest, from: &Path) -> io::Result<()> {
        let _changing = self.changes.lock();
        self.rename(digest, from)
    }

    /// Makes `bytes` the content of `digest`.
    pub fn write(&self, digest: &Digest, bytes: &[u8]) -> io::Result<()> {
        // A block for each of what is made.
        const NAMES: u64 = 2 * 4096;
        let mut changing = self.changes.lock();
        leave_free(&self.dir.join("blobs"), self.free_min, bytes.len() as u64 + NAMES)?;
        *changing += 1;
        let part = self.dir.join("uploads").join(format!("manifest-{}", *changing));
        let written = File::create(&part).and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()?;
            self.rename(digest, &part)
        });
        if written.is_err() {
            // Nobody else knows of it.
            let _ = fs::remove_file(&part);
        }
        written
    }

    fn rename(&self, digest: &Digest, from: &Path) -> io::Result<()> {
        let to = self.path(digest);
        let parent = to.parent().expect("a content lies in a directory");
        make_dirs(parent)?;
        fs::rename(from, &to)?;
        File::open(parent)?.sync_all()?;
        {
            let mut damage = self.damage.lock();
            damage.missing.remove(digest);
            damage.unread.remove(digest);
        }
        // What was damaged of it is of no more use.
        absent(fs::remove_file(self.aside(digest))).map(drop)
    }

    /// From here on no file goes, until this was [let go](Store::let_go) as often.
    pub fn keep(&self) {
        let _changing = self.changes.lock();
        self.kept.fetch_add(1, Ordering::SeqCst);
    }

    /// Ends what [`Store::keep`] began.
    pub fn let_go(&self) {
        self.kept.fetch_sub(1, Ordering::SeqCst);
    }

    /// Removes the contents that are not in `named` and that this process has seen so, with nobody touching them, for `age`; and what was
    /// set aside of such. What cannot be removed is no reason to leave the rest.
    pub fn collect_garbage(&self, named: &HashSet<Digest>, age: Duration) -> io::Result<Collected> {
        self.collect_garbage_at(named, age, Instant::now())
    }

    fn collect_garbage_at(&self, named: &HashSet<Digest>, age: Duration, now: Instant) -> io::Result<Collected> {
        let (mut collected, mut failed) = (Collected::default(), None);
        let mut loose = HashSet::new();
        let mut is_old = |path: &Path| {
            let touched = fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
            loose.insert(path.to_owned());
            self.loose.see(path.to_owned(), touched, now) >= age
        };
        let damaged = self.dir.join("damaged");
        for name in noted(list(&damaged), &mut failed).unwrap_or_default() {
            // It may be all that is left of what somebody needs.
            let is_named = Digest::from_hex(&name).is_some_and(|digest| named.contains(&digest));
            if !is_named && is_old(&damaged.join(&name)) {
                noted(absent(fs::remove_file(damaged.join(&name))), &mut failed);
            }
        }
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let blobs = self.blobs(algorithm);
            for start in noted(list(&blobs), &mut failed).unwrap_or_default() {
                for hex in noted(list(&blobs.join(start)), &mut failed).unwrap_or_default() {
                    let Some(digest) = Digest::from_hex(&hex) else { continue };
                    if named.contains(&digest) {
                        continue;
                    }
                    let _changing = self.changes.lock();
                    if self.kept.load(Ordering::SeqCst) > 0 {
                        return failed.map_or(Ok(collected), Err);
                    }
                    let path = self.path(&digest);
                    if !is_old(&path) {
                        continue;
                    }
                    let size = noted(self.size(&digest), &mut failed).flatten();
                    if let Some(size) = size
                        && noted(absent(fs::remove_file(path)), &mut failed).flatten().is_some()
                    {
                        self.damage.lock().unread.remove(&digest);
                        collected = Collected { blobs: collected.blobs + 1, bytes: collected.bytes + size };
                    }
                }
            }
        }
        self.loose.retain(|path| loose.contains(path));
        failed.map_or(Ok(collected), Err)
    }
}

/// What something gave; the first error of several is kept in `failed`.
fn noted<T>(result: io::Result<T>, failed: &mut Option<io::Error>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(error) => {
            failed.get_or_insert(error);
            None
        }
    }
}

/// Makes a directory and those above it, for their owner alone, and has each one's name on the disk: a file that was synced
/// in a directory whose own name is lost is lost with it.
fn make_dirs(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    make_dirs(parent)?;
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => (),
    }
    File::open(parent)?.sync_all()
}

/// Names in a directory, in order; none when it is not there.
fn list(dir: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        entries => entries?,
    };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry?.file_name().into_string().ok());
    }
    names.sort();
    Ok(names)
}

fn absent<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        result => result.map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_or_named_is_not_collected() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), 0).unwrap();
        fs::create_dir(dir.path().join("uploads")).unwrap();
        let age = Duration::from_secs(3600);
        let contents: Vec<Digest> = ["held", "named", "loose"]
            .map(|content| {
                let digest = Algorithm::Sha256.digest(content.as_bytes());
                store.write(&digest, content.as_bytes()).unwrap();
                // By whatever clock: one that is set back, or ahead, in between changes nothing.
                let file = File::options().write(true).open(store.path(&digest)).unwrap();
                let wrong = if content == "loose" { SystemTime::now() + 2 * age } else { SystemTime::now() - 2 * age };
                file.set_modified(wrong).unwrap();
                digest
            })
            .to_vec();
        let begun = Instant::now();
        let named = HashSet::from([contents[1].clone()]);
        let collect = |at: Instant| store.collect_garbage_at(&named, age, at).unwrap();
        assert_eq!((collect(begun), collect(begun + age / 2)), Default::default(), "it was not seen for so long");
        assert!(store.hold(&contents[0]).unwrap());
        assert_eq!(collect(begun + age), Collected { blobs: 1, bytes: 5 });
        assert!(!store.hold(&contents[2]).unwrap());
        assert_eq!([0, 1].map(|at| store.size(&contents[at]).unwrap()), [Some(4), Some(5)]);
    }

    #[test]
    fn what_cannot_be_removed_keeps_nothing_else_from_going() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), 0).unwrap();
        fs::create_dir(dir.path().join("uploads")).unwrap();
        let mut contents: Vec<Digest> = (0..3_u8)
            .map(|content| {
                let digest = Algorithm::Sha256.digest(&[content]);
                store.write(&digest, &[content]).unwrap();
                digest
            })
            .collect();
        contents.sort_by(|one, other| one.hex().cmp(other.hex()));
        fs::remove_file(store.path(&contents[0])).unwrap();
        fs::create_dir(store.path(&contents[0])).unwrap();
        assert!(store.collect_garbage(&HashSet::new(), Duration::ZERO).is_err());
        assert_eq!([1, 2].map(|at| store.size(&contents[at]).unwrap()), [None, None]);
    }
}
