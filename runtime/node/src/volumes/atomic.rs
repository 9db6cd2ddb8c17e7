//! Writing a volume's files so that readers see all of the old ones or all of the new ones.
//!
//! ```text
//! volume/..2026_11_23_21_00_00.123456789/app.conf
//! volume/..data      -> ..2026_11_23_21_00_00.123456789      (replaced by rename)
//! volume/app.conf    -> ..data/app.conf
//! ```
//! The layout is the kubelet's (`pkg/volume/util/atomic_writer.go`); programs that watch `..data` rely on it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, symlink};
use std::path::{Component, Path};

use bytes::Bytes;

/// A file of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Its bytes.
    pub content: Bytes,
    /// Its permission bits.
    pub mode: u32,
}

/// Files by their path within the volume. Paths are relative and never leave it.
pub type Payload = BTreeMap<String, File>;

/// As many are written to a low disk, too: tokens are to be renewed.
const FEW_BYTES: u64 = 64 << 10;
/// As many a small file takes.
const BLOCK_BYTES: u64 = 4096;
const DATA: &str = "..data";
const DATA_NEW: &str = "..data_tmp";

/// Brings the directory to hold these files; true when any of them is new. They are not written where the disk has not enough
/// room (`has_room`, asked with their bytes) but when they are few bytes. Blocks on the disk. What a kill or a full disk broke off is
/// made good by the next one, also where no file is new.
pub fn write(volume: &Path, payload: &Payload, has_room: impl FnOnce(u64) -> bool) -> io::Result<bool> {
    fs::create_dir_all(volume)?;
    let is_new = !is_current(&volume.join(DATA), payload);
    let bytes = payload.values().map(|file| (file.content.len() as u64).next_multiple_of(BLOCK_BYTES)).sum();
    if is_new && bytes > FEW_BYTES && !has_room(bytes) {
        return Err(io::Error::new(io::ErrorKind::StorageFull, "the node is low on disk"));
    }
    if is_new && let Err(error) = replace(volume, payload) {
        let _ = sweep(volume);
        return Err(error);
    }
    link(volume, payload)?;
    sweep(volume)?;
    Ok(is_new)
}

/// Writes the files beside the old ones, and has `..data` lead there.
fn replace(volume: &Path, payload: &Payload) -> io::Result<()> {
    let name = format!("..{}", jiff::Timestamp::now().strftime("%Y_%m_%d_%H_%M_%S.%9f"));
    let fresh = volume.join(&name);
    fs::create_dir(&fresh)?;
    for (path, file) in payload {
        let target = fresh.join(checked(path)?);
        if let Some(parent) = target.parent().filter(|parent| *parent != fresh) {
            fs::create_dir_all(parent)?;
        }
        // Created with what it needs at least; a umask may have taken more than the mode says.
        let mut out = fs::OpenOptions::new().write(true).create_new(true).mode(file.mode | 0o200).open(&target)?;
        io::Write::write_all(&mut out, &file.content)?;
        out.set_permissions(fs::Permissions::from_mode(file.mode & 0o777))?;
    }
    let _ = fs::remove_file(volume.join(DATA_NEW));
    symlink(&name, volume.join(DATA_NEW))?;
    fs::rename(volume.join(DATA_NEW), volume.join(DATA))
}

/// Takes away every tree but that which `..data` leads to.
fn sweep(volume: &Path) -> io::Result<()> {
    let kept = fs::read_link(volume.join(DATA)).ok();
    for entry in fs::read_dir(volume)? {
        let entry = entry?;
        let name = entry.file_name();
        let is_ours = name.as_encoded_bytes().starts_with(b"..") && entry.file_type()?.is_dir();
        if is_ours && kept.as_deref() != Some(Path::new(&name)) {
            crate::beneath::remove_tree(&entry.path())?;
        }
    }
    Ok(())
}

/// Makes the visible names lead into the data directory, and takes away those that lead nowhere.
fn link(volume: &Path, payload: &Payload) -> io::Result<()> {
    let wanted: BTreeSet<&str> = payload.keys().filter_map(|path| path.split('/').next()).collect();
    for entry in fs::read_dir(volume)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        if !name.starts_with("..") && !wanted.contains(name) {
            fs::remove_file(entry.path())?;
        }
    }
    for name in wanted {
        match symlink(Path::new(DATA).join(name), volume.join(name)) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            other => other?,
        }
    }
    Ok(())
}

/// Whether the files are these; what cannot be read is not.
fn is_current(data: &Path, payload: &Payload) -> bool {
    let is_same = |(path, file): (&String, &File)| fs::read(data.join(path)).is_ok_and(|have| have == file.content);
    files(data).is_ok_and(|count| count == payload.len()) && payload.iter().all(is_same)
}

/// How many files there are.
fn files(data: &Path) -> io::Result<usize> {
    let mut count = 0;
    let mut pending = vec![data.to_owned()];
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            match entry.file_type()?.is_dir() {
                true => pending.push(entry.path()),
                false => count += 1,
            }
        }
    }
    Ok(count)
}

/// Refuses what would leave the volume; validation should have, but the disk is no place to trust it.
fn checked(path: &str) -> io::Result<&Path> {
    let path = Path::new(path);
    let inside = path.components().all(|part| matches!(part, Component::Normal(_)));
    // Names that begin so are the layout's own.
    let is_ours = path.as_os_str().as_encoded_bytes().starts_with(b"..");
    match inside && !is_ours && path.components().next().is_some() {
        true => Ok(path),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, format!("path {path:?} is not within the volume"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(files: &[(&str, &str)]) -> Payload {
        let file = |content: &str| File { content: content.as_bytes().to_vec().into(), mode: 0o444 };
        files.iter().map(|(path, content)| ((*path).to_owned(), file(content))).collect()
    }

    #[test]
    fn replaces_everything_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("v");
        assert!(write(&volume, &payload(&[("a", "1"), ("sub/b", "2"), ("gone", "x")]), |_| true).unwrap());
        assert_eq!(fs::read_to_string(volume.join("sub/b")).unwrap(), "2");
        let first = fs::read_link(volume.join(DATA)).unwrap();
        assert!(!write(&volume, &payload(&[("a", "1"), ("sub/b", "2"), ("gone", "x")]), |_| true).unwrap());
        assert_eq!(fs::read_link(volume.join(DATA)).unwrap(), first);

        assert!(write(&volume, &payload(&[("a", "new"), ("sub/c", "3")]), |_| true).unwrap());
        assert_eq!(fs::read_to_string(volume.join("a")).unwrap(), "new");
        assert!(!volume.join("gone").exists() && !volume.join("sub/b").exists() && volume.join("sub/c").exists());
        assert!(!volume.join(&first).exists());
        assert_eq!(fs::metadata(volume.join("a")).unwrap().permissions().mode() & 0o777, 0o444);
        assert!(write(&volume, &payload(&[]), |_| true).unwrap());
        assert!(!volume.join("a").exists());
    }

    /// Trees within the volume.
    fn trees(volume: &Path) -> usize {
        fs::read_dir(volume).unwrap().filter(|entry| entry.as_ref().unwrap().file_type().unwrap().is_dir()).count()
    }

    #[test]
    fn what_was_broken_off_is_made_good() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("v");
        let files = payload(&[("a", "1"), ("b", "2")]);
        write(&volume, &files, |_| true).unwrap();
        // Killed before the names were made, and the old tree removed.
        fs::remove_file(volume.join("b")).unwrap();
        fs::create_dir(volume.join("..2026_01_01_00_00_00.000000001")).unwrap();
        assert!(!write(&volume, &files, |_| true).unwrap());
        assert_eq!((fs::read_to_string(volume.join("b")).unwrap().as_str(), trees(&volume)), ("2", 1));
        // The tree itself is gone.
        fs::remove_dir_all(volume.join(fs::read_link(volume.join(DATA)).unwrap())).unwrap();
        assert!(write(&volume, &files, |_| true).unwrap());
        assert_eq!(fs::read_to_string(volume.join("a")).unwrap(), "1");
    }

    #[test]
    fn a_low_disk_takes_little_and_keeps_what_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("v");
        let large = payload(&[("a", &"x".repeat(FEW_BYTES as usize)), ("b", "2")]);
        let low = |bytes| {
            assert_eq!(bytes, FEW_BYTES + BLOCK_BYTES);
            false
        };
        assert!(write(&volume, &payload(&[("a", "1"), ("b", "2")]), |_| false).unwrap());
        assert_eq!(write(&volume, &large, low).unwrap_err().to_string(), "the node is low on disk");
        assert_eq!((trees(&volume), fs::read_to_string(volume.join("a")).unwrap().as_str()), (1, "1"));
        assert!(write(&volume, &large, |_| true).unwrap());
        assert!(!write(&volume, &large, low).unwrap(), "it is there");
    }

    #[test]
    fn what_fails_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("v");
        write(&volume, &payload(&[("x", "1")]), |_| true).unwrap();
        for _ in 0..3 {
            // A file is no directory.
            write(&volume, &payload(&[("a", "1"), ("a/b", "2")]), |_| true).unwrap_err();
        }
        assert_eq!((trees(&volume), fs::read_to_string(volume.join("x")).unwrap().as_str()), (1, "1"));
    }

    #[test]
    fn never_leaves_the_volume() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["../x", "/etc/x", "a/../../x", "", ".", "..data", "..x/y"] {
            assert!(write(&dir.path().join("v"), &payload(&[(path, "1")]), |_| true).is_err(), "{path}");
        }
    }
}
