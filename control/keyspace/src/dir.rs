//! The data directory: who may use it, whose it is, and which version of the format it has.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

use crate::raft::MemberId;

/// Version of everything in the directory.
const FORMAT: &str = "coracle keyspace 1";

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DirError {
    /// It cannot be made, read or written.
    #[error("use data directory {path}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another process has it.
    #[error(
        "data directory {path} is in use by another process{}; stop that one, or choose another directory",
        holder.as_ref().map(|pid| format!(" ({pid})")).unwrap_or_default()
    )]
    Locked {
        /// The directory.
        path: PathBuf,
        /// The process, if it said so.
        holder: Option<String>,
    },
    /// It was written in another format.
    #[error(
        "data directory {path} has the format {found:?} and this version reads {FORMAT:?}; use the version of coracle \
         that wrote it, or choose another directory"
    )]
    Format {
        /// The directory.
        path: PathBuf,
        /// What its file FORMAT says.
        found: String,
    },
    /// It is another member's.
    #[error(
        "data directory {path} belongs to member {found}, and this is member {wanted}; choose the directory of this one"
    )]
    Member {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        found: String,
        /// Who wants it.
        wanted: MemberId,
    },
}

/// A data directory that this process alone uses, until this is dropped.
#[derive(Debug)]
pub struct Dir {
    path: PathBuf,
    /// Holds the lock; the kernel releases it when the process ends, however it ends.
    _lock: File,
}

impl Dir {
    /// Makes the directory of `member` if need be, locks it and checks its format; blocks on the disk.
    pub fn open(path: &Path, member: MemberId) -> Result<Dir, DirError> {
        fs::create_dir_all(path).map_err(|source| DirError::Io { path: path.into(), source })?;
        let lock = lock(path)?;
        check_format(path, member)?;
        Ok(Dir { path: path.into(), _lock: lock })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Bytes of all files in `dir`, as far as they can be read.
pub fn bytes(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    let size = |entry: fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => bytes(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    };
    entries.flatten().map(size).sum()
}

fn lock(dir: &Path) -> Result<File, DirError> {
    let path = dir.join("LOCK");
    let failed = |source| DirError::Io { path: path.clone(), source };
    let mut file = File::options().read(true).write(true).create(true).truncate(false).open(&path).map_err(failed)?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => (),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut holder = String::new();
            let _ = file.read_to_string(&mut holder);
            let holder = Some(holder.trim().to_owned()).filter(|holder| !holder.is_empty());
            return Err(DirError::Locked { path: dir.into(), holder });
        }
        Err(error) => return Err(failed(error.into())),
    }
    let write = |file: &mut File| -> io::Result<()> {
        file.set_len(0)?;
        file.seek(SeekFrom::Start(0))?;
        writeln!(file, "pid {}", std::process::id())
    };
    write(&mut file).map_err(failed)?;
    Ok(file)
}

fn check_format(dir: &Path, member: MemberId) -> Result<(), DirError> {
    let path = dir.join("FORMAT");
    let failed = |source| DirError::Io { path: path.clone(), source };
    match fs::read_to_string(&path) {
        Ok(found) => {
            let mut lines = found.lines().map(str::trim);
            let format = lines.next().unwrap_or_default();
            if format != FORMAT {
                return Err(DirError::Format { path: dir.into(), found: format.chars().take(80).collect() });
            }
            let owner = lines.next().and_then(|line| line.strip_prefix("member ")).unwrap_or_default();
            if owner != member.to_string() {
                let found = owner.chars().take(20).collect();
                return Err(DirError::Member { path: dir.into(), found, wanted: member });
            }
            Ok(())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            // Data without a format is from a crash before the first start was done, or from no version of ours.
            if dir.join("state.redb").exists() || dir.join("log").exists() {
                return Err(DirError::Format { path: dir.into(), found: String::new() });
            }
            let write = || -> io::Result<()> {
                let part = dir.join("FORMAT.part");
                let mut file = File::create(&part)?;
                writeln!(file, "{FORMAT}\nmember {member}")?;
                file.sync_all()?;
                fs::rename(part, &path)?;
                File::open(dir)?.sync_all()
            };
            write().map_err(failed)
        }
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            Err(DirError::Format { path: dir.into(), found: "no text".into() })
        }
        Err(error) => Err(failed(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_used_by_one_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let first = Dir::open(dir.path(), 1).unwrap();
        let error = Dir::open(dir.path(), 1).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, DirError::Locked { .. }) && text.contains(&std::process::id().to_string()), "{text}");
        drop(first);
        Dir::open(dir.path(), 1).unwrap();
    }

    #[test]
    fn another_format_or_member_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        drop(Dir::open(dir.path(), 1).unwrap());
        fs::write(dir.path().join("FORMAT"), "coracle keyspace 99\n").unwrap();
        let error = Dir::open(dir.path(), 1).unwrap_err();
        assert!(matches!(&error, DirError::Format { found, .. } if found == "coracle keyspace 99"), "{error}");
        fs::write(dir.path().join("FORMAT"), "coracle keyspace 1\nmember 7\n").unwrap();
        let error = Dir::open(dir.path(), 1).unwrap_err();
        assert!(matches!(&error, DirError::Member { found, .. } if found == "7"), "{error}");
        fs::remove_file(dir.path().join("FORMAT")).unwrap();
        fs::create_dir(dir.path().join("log")).unwrap();
        assert!(matches!(Dir::open(dir.path(), 1).unwrap_err(), DirError::Format { .. }));
    }
}
