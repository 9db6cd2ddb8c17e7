//! The files: blobs by digest, and what belongs to which repository. Everything here blocks on the disk.
//!
//! A file appears whole or not at all: it is written under another name, synced, and renamed. What belongs together (a
//! blob and its place in a repository, a manifest and its tags) is changed under one lock, so that nothing is collected
//! as garbage while it is being added.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;

use crate::Collected;
use crate::manifest;
use crate::name::{Algorithm, Digest, Name, Reference};
use crate::upload::leave_free;

/// Directories below a repository are not followed deeper than its longest name allows.
const DEPTH_MAX: usize = 128;

/// The files of a registry.
pub struct Store {
    dir: PathBuf,
    free_min: u64,
    /// Held while more than one file is changed.
    changes: Mutex<u64>,
}

/// A manifest that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// What it is.
    pub digest: Digest,
    /// What its author called it.
    pub media_type: String,
    /// Its length.
    pub size: u64,
}

/// What became of a deletion.
pub enum Deleted {
    /// It is gone.
    Yes,
    /// It was not there.
    Absent,
}

impl Store {
    /// Opens the files in `dir`, and makes the directories.
    pub fn open(dir: &Path, free_min: u64) -> io::Result<Store> {
        for part in ["blobs/sha256", "blobs/sha512", "repositories"] {
            make_dirs(&dir.join(part))?;
        }
        Ok(Store { dir: dir.into(), free_min, changes: Mutex::new(0) })
    }

    /// Where the content of `digest` is, if it is there.
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.blobs(digest.algorithm()).join(&digest.hex()[..2]).join(digest.hex())
    }

    fn blobs(&self, algorithm: Algorithm) -> PathBuf {
        self.dir.join("blobs").join(algorithm.name())
    }

    fn repository(&self, name: &Name) -> PathBuf {
        self.dir.join("repositories").join(name.as_str())
    }

    fn layer(&self, name: &Name, digest: &Digest) -> PathBuf {
        self.repository(name).join("_layers").join(digest.hex())
    }

    fn revision(&self, name: &Name, digest: &Digest) -> PathBuf {
        self.repository(name).join("_manifests/revisions").join(digest.hex())
    }

    fn tag(&self, name: &Name, tag: &str) -> PathBuf {
        self.repository(name).join("_manifests/tags").join(tag)
    }

    fn referrer(&self, name: &Name, subject: &Digest, digest: &Digest) -> PathBuf {
        self.repository(name).join("_referrers").join(subject.hex()).join(digest.hex())
    }

    /// Length of a blob of this repository.
    pub fn blob_size(&self, name: &Name, digest: &Digest) -> io::Result<Option<u64>> {
        // A manifest is a blob too.
        if !self.layer(name, digest).try_exists()? && !self.revision(name, digest).try_exists()? {
            return Ok(None);
        }
        file_size(&self.blob_path(digest))
    }

    /// Refuses what is not to be had on a disk that is nearly full: content, and a block for each file that names it.
    fn leave_free(&self, bytes: usize) -> io::Result<()> {
        const NAMES: u64 = 4 * 4096;
        leave_free(&self.dir.join("blobs"), self.free_min, bytes as u64 + NAMES)
    }

    /// Makes the synced file `from` the blob `digest` of `name`.
    pub fn add_blob(&self, name: &Name, digest: &Digest, from: &Path) -> io::Result<()> {
        let _changing = self.changes.lock();
        self.rename_blob(digest, from)?;
        link(&self.layer(name, digest))
    }

    fn rename_blob(&self, digest: &Digest, from: &Path) -> io::Result<()> {
        let to = self.blob_path(digest);
        let parent = to.parent().expect("a blob lies in a directory");
        make_dirs(parent)?;
        fs::rename(from, &to)?;
        File::open(parent)?.sync_all()
    }

    /// Makes a blob of `from` one of `name` too, if it is there.
    pub fn mount(&self, name: &Name, digest: &Digest, from: &Name) -> io::Result<bool> {
        let _changing = self.changes.lock();
        if self.blob_size(from, digest)?.is_none() {
            return Ok(false);
        }
        self.leave_free(0)?;
        link(&self.layer(name, digest))?;
        Ok(true)
    }

    /// Removes a blob from `name`, and its content when no other repository has it.
    pub fn delete_blob(&self, name: &Name, digest: &Digest) -> io::Result<Deleted> {
        let _changing = self.changes.lock();
        if !remove(&self.layer(name, digest))? {
            return Ok(Deleted::Absent);
        }
        self.drop_content(digest)?;
        Ok(Deleted::Yes)
    }

    /// Removes a content that no repository has any more.
    fn drop_content(&self, digest: &Digest) -> io::Result<()> {
        for name in self.repositories()? {
            if self.layer(&name, digest).try_exists()? || self.revision(&name, digest).try_exists()? {
                return Ok(());
            }
        }
        remove(&self.blob_path(digest)).map(drop)
    }

    /// Finds a manifest.
    pub fn find_manifest(&self, name: &Name, reference: &Reference) -> io::Result<Option<Found>> {
        let digest = match reference {
            Reference::Digest(digest) => digest.clone(),
            Reference::Tag(tag) => {
                let Some(digest) = read(&self.tag(name, tag))? else { return Ok(None) };
                digest.trim().parse().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?
            }
        };
        let (Some(media_type), Some(size)) =
            (read(&self.revision(name, &digest))?, file_size(&self.blob_path(&digest))?)
        else {
            return Ok(None);
        };
        Ok(Some(Found { digest, media_type: media_type.trim().to_owned(), size }))
    }

    /// The bytes of a manifest that was found.
    pub fn read_manifest(&self, digest: &Digest) -> io::Result<Vec<u8>> {
        fs::read(self.blob_path(digest))
    }

    /// Adds a manifest to `name`, and the tag that now stands for it. A digest of what it needs and `name` lacks is
    /// given back, and then nothing was changed.
    pub fn add_manifest(
        &self,
        name: &Name,
        tag: Option<&str>,
        digest: &Digest,
        manifest: &manifest::Checked,
        bytes: &[u8],
    ) -> io::Result<Result<(), Digest>> {
        let mut changing = self.changes.lock();
        for needed in &manifest.blobs {
            if self.blob_size(name, needed)?.is_none() {
                return Ok(Err(needed.clone()));
            }
        }
        for needed in &manifest.manifests {
            if !self.revision(name, needed).try_exists()? {
                return Ok(Err(needed.clone()));
            }
        }
        self.leave_free(bytes.len())?;
        *changing += 1;
        let part = self.dir.join("uploads").join(format!("manifest-{}", *changing));
        write_synced(&part, bytes)?;
        self.rename_blob(digest, &part)?;
        self.replace(&self.revision(name, digest), manifest.media_type.as_bytes(), *changing)?;
        if let Some(subject) = &manifest.subject {
            link(&self.referrer(name, subject, digest))?;
        }
        if let Some(tag) = tag {
            self.replace(&self.tag(name, tag), digest.to_string().as_bytes(), *changing)?;
        }
        Ok(Ok(()))
    }

    fn replace(&self, path: &Path, content: &[u8], number: u64) -> io::Result<()> {
        let part = self.dir.join("uploads").join(format!("part-{number}"));
        write_synced(&part, content)?;
        let parent = path.parent().expect("a file lies in a directory");
        make_dirs(parent)?;
        fs::rename(part, path)?;
        File::open(parent)?.sync_all()
    }

    /// Removes a tag, or a manifest with all its tags.
    pub fn delete_manifest(&self, name: &Name, reference: &Reference) -> io::Result<Deleted> {
        let _changing = self.changes.lock();
        let digest = match reference {
            Reference::Tag(tag) => {
                let removed = remove(&self.tag(name, tag))?;
                return Ok(if removed { Deleted::Yes } else { Deleted::Absent });
            }
            Reference::Digest(digest) => digest,
        };
        if !self.revision(name, digest).try_exists()? {
            return Ok(Deleted::Absent);
        }
        for tag in self.tags(name)?.unwrap_or_default() {
            let path = self.tag(name, &tag);
            if read(&path)?.is_some_and(|stands_for| stands_for.trim() == digest.to_string()) {
                remove(&path)?;
            }
        }
        let subject = self.read_manifest(digest).ok().and_then(|bytes| manifest::subject(&bytes));
        if let Some(subject) = subject {
            remove(&self.referrer(name, &subject, digest))?;
        }
        remove(&self.revision(name, digest))?;
        self.drop_content(digest)?;
        Ok(Deleted::Yes)
    }

    /// All tags of a repository in order; `None` when there is no such repository.
    pub fn tags(&self, name: &Name) -> io::Result<Option<Vec<String>>> {
        if !self.repository(name).join("_manifests").exists() {
            return Ok(None);
        }
        list(&self.repository(name).join("_manifests/tags")).map(Some)
    }

    /// The manifests that refer to `subject`, in the order of their digests.
    pub fn referrers(&self, name: &Name, subject: &Digest) -> io::Result<Vec<Digest>> {
        let names = list(&self.repository(name).join("_referrers").join(subject.hex()))?;
        Ok(names.iter().filter_map(|hex| Digest::from_hex(hex)).collect())
    }

    /// All repositories in order.
    pub fn repositories(&self) -> io::Result<Vec<Name>> {
        let mut names = Vec::new();
        let mut open = vec![(self.dir.join("repositories"), String::new(), 0)];
        while let Some((dir, name, depth)) = open.pop() {
            for part in list(&dir)? {
                if part.starts_with('_') {
                    continue;
                }
                let full = if name.is_empty() { part.clone() } else { format!("{name}/{part}") };
                let dir = dir.join(&part);
                if is_there(&dir.join("_manifests"))? || is_there(&dir.join("_layers"))? {
                    names.extend(full.parse::<Name>().ok());
                }
                if depth < DEPTH_MAX {
                    open.push((dir, full, depth + 1));
                }
            }
        }
        names.sort_by(|a, b| a.as_str().cmp(b.as_str()));
        Ok(names)
    }

    /// Removes layers that no manifest of their repository names, and contents that no repository has.
    pub fn collect_garbage(&self, age: Duration) -> io::Result<Collected> {
        let _changing = self.changes.lock();
        let mut kept: HashSet<Digest> = HashSet::new();
        for name in self.repositories()? {
            let mut named: HashSet<Digest> = HashSet::new();
            let mut damaged = false;
            for hex in list(&self.repository(&name).join("_manifests/revisions"))? {
                let Some(digest) = Digest::from_hex(&hex) else { continue };
                // Only one that is not there names nothing. Whatever else keeps it from being read ends the collection: what
                // it names would be taken for garbage.
                if let Some(bytes) = absent(self.read_manifest(&digest))? {
                    match manifest::names(&bytes) {
                        Ok(all) => named.extend(all),
                        Err(error) => {
                            damaged = true;
                            let path = self.blob_path(&digest);
                            tracing::warn!(repository = %name, path = %path.display(), %error, "a manifest is damaged; nothing of its repository is collected");
                        }
                    }
                }
                kept.insert(digest);
            }
            for hex in list(&self.repository(&name).join("_layers"))? {
                let Some(digest) = Digest::from_hex(&hex) else { continue };
                let link = self.layer(&name, &digest);
                if !damaged && !named.contains(&digest) && is_older(&link, age) {
                    remove(&link)?;
                } else {
                    kept.insert(digest);
                }
            }
        }
        let mut collected = Collected::default();
        let mut starts = Vec::new();
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let blobs = self.blobs(algorithm);
            starts.extend(list(&blobs)?.iter().map(|start| blobs.join(start)));
        }
        for start in starts {
            for hex in list(&start)? {
                let Some(digest) = Digest::from_hex(&hex) else { continue };
                let path = self.blob_path(&digest);
                if !kept.contains(&digest) && is_older(&path, age) {
                    let size = file_size(&path)?.unwrap_or(0);
                    if remove(&path)? {
                        collected = Collected { blobs: collected.blobs + 1, bytes: collected.bytes + size };
                    }
                }
            }
        }
        Ok(collected)
    }
}

fn is_older(path: &Path, age: Duration) -> bool {
    let modified = fs::metadata(path).and_then(|metadata| metadata.modified());
    modified.is_ok_and(|modified| SystemTime::now().duration_since(modified).is_ok_and(|passed| passed >= age))
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

/// Makes an empty file that is its own meaning; again if it is there, so that its time is of now.
fn link(path: &Path) -> io::Result<()> {
    let parent = path.parent().expect("a link lies in a directory");
    make_dirs(parent)?;
    let file = File::create(path)?;
    file.set_modified(SystemTime::now())?;
    file.sync_all()?;
    File::open(parent)?.sync_all()
}

fn write_synced(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(content)?;
    file.sync_all()
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

/// Whether it is there; below a file nothing is.
fn is_there(path: &Path) -> io::Result<bool> {
    match path.try_exists() {
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => Ok(false),
        known => known,
    }
}

fn read(path: &Path) -> io::Result<Option<String>> {
    absent(fs::read_to_string(path))
}

fn remove(path: &Path) -> io::Result<bool> {
    absent(fs::remove_file(path)).map(|removed| removed.is_some())
}

fn file_size(path: &Path) -> io::Result<Option<u64>> {
    absent(fs::metadata(path)).map(|metadata| metadata.map(|metadata| metadata.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_that_cannot_be_read_ends_the_collection() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), 0).unwrap();
        let name: Name = "app".parse().unwrap();
        let digest = |letter: &str| Digest::from_hex(&letter.repeat(64)).unwrap();
        let (manifest, layer) = (digest("a"), digest("b"));
        let part = dir.path().join("part");
        fs::write(&part, "layer").unwrap();
        store.add_blob(&name, &layer, &part).unwrap();
        link(&store.revision(&name, &manifest)).unwrap();
        // A directory in its place: it is there, and cannot be read.
        fs::create_dir_all(store.blob_path(&manifest)).unwrap();
        assert!(store.collect_garbage(Duration::ZERO).is_err());
        assert_eq!(store.blob_size(&name, &layer).unwrap(), Some(5));
        // One that is damaged may name anything.
        fs::remove_dir(store.blob_path(&manifest)).unwrap();
        fs::write(store.blob_path(&manifest), r#"{"schemaVersion": 2, "layers": [{"dig"#).unwrap();
        assert_eq!(store.collect_garbage(Duration::ZERO).unwrap().blobs, 0);
        assert_eq!(store.blob_size(&name, &layer).unwrap(), Some(5));
        // One that is not there names nothing.
        fs::remove_file(store.blob_path(&manifest)).unwrap();
        assert_eq!(store.collect_garbage(Duration::ZERO).unwrap().blobs, 1);
    }
}
