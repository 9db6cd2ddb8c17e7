//! The data directory: who may use it, whose it is, which version of the format it has, and whether it was founded.
//!
//! Founding happens once. `FOUNDING` is there while it is under way, `FORMAT` once it is done; with `FORMAT` there,
//! everything else must be, and nothing is ever made again because it is missing.

use std::any::Any;
use std::io;
use std::path::{Path, PathBuf};

use crate::host::{self, Host, How, Locked};
use crate::raft::MemberId;

/// Version of everything in the directory (docs/formats.md).
const FORMAT: &str = "coracle keyspace 2";

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
    /// There is data, or there must be, and the file that says so is gone.
    #[error(
        "{path} is missing, although a cluster was founded here; nothing was changed. Restore the data directory from a \
         backup; to begin anew without its data, choose an empty directory"
    )]
    Missing {
        /// What is missing.
        path: PathBuf,
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
pub struct Dir {
    path: PathBuf,
    member: MemberId,
    is_new: bool,
    /// Holds the lock; the kernel releases it when the process ends, however it ends.
    _lock: Box<dyn Any + Send + Sync>,
}

impl Dir {
    /// Locks the directory of `member` and checks its format; blocks on the disk. Where there is none, it is made, to be
    /// founded ([`Dir::is_new`]), unless it `must_exist`.
    pub fn open(host: &Host, path: &Path, member: MemberId, must_exist: bool) -> Result<Dir, DirError> {
        let disk = &*host.disk;
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| DirError::Io { path, source }
        };
        let format = path.join("FORMAT");
        if must_exist && matches!(disk.list(path), Err(error) if error.kind() == io::ErrorKind::NotFound) {
            return Err(DirError::Missing { path: path.into() });
        }
        disk.create_dir(path).map_err(failed(path))?;
        let lock = path.join("LOCK");
        let word = format!("pid {}", std::process::id());
        let lock = match disk.lock(&lock, &word).map_err(failed(&lock))? {
            Locked::Ours(lock) => lock,
            Locked::Theirs(holder) => {
                let holder = Some(holder).filter(|holder| !holder.is_empty());
                return Err(DirError::Locked { path: path.into(), holder });
            }
        };
        let is_new = match host::read(disk, &format) {
            Ok(found) => {
                check(path, member, &String::from_utf8_lossy(&found))?;
                false
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let names = disk.list(path).map_err(failed(path))?;
                let has = |name: &str| names.iter().any(|there| there == name);
                // Data without either file is from no founding of ours, or lost its FORMAT.
                if !has("FOUNDING") && (must_exist || has("state.redb") || has("log")) {
                    return Err(DirError::Missing { path: format });
                }
                begin(host, path).map_err(failed(path))?;
                true
            }
            Err(error) => return Err(failed(&format)(error)),
        };
        Ok(Dir { path: path.into(), member, is_new, _lock: lock })
    }

    /// Whether it is still to be founded.
    pub fn is_new(&self) -> bool {
        self.is_new
    }

    /// Says that everything is there from now on.
    pub fn founded(&mut self, host: &Host) -> Result<(), DirError> {
        let path = self.path.join("FORMAT");
        let content = format!("{FORMAT}\nmember {}\n", self.member);
        let done = || -> io::Result<()> {
            host.disk.sync_dir(&self.path)?;
            host.disk.sync_dir(host::parent(&self.path))?;
            host::replace(&*host.disk, &path, content.as_bytes())?;
            host.disk.remove(&self.path.join("FOUNDING"))?;
            host.disk.sync_dir(&self.path)
        };
        done().map_err(|source| DirError::Io { path: path.clone(), source })?;
        self.is_new = false;
        Ok(())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Marks the founding as begun, and removes what an earlier one left that a crash ended.
fn begin(host: &Host, path: &Path) -> io::Result<()> {
    let disk = &*host.disk;
    let mark = path.join("FOUNDING");
    disk.open(&mark, How::Create)?.sync_data()?;
    disk.sync_dir(path)?;
    let log = path.join("log");
    match disk.list(&log) {
        Ok(names) => names.iter().try_for_each(|name| disk.remove(&log.join(name)))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => (),
        Err(error) => return Err(error),
    }
    match disk.remove(&path.join("state.redb")) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn check(path: &Path, member: MemberId, found: &str) -> Result<(), DirError> {
    let mut lines = found.lines().map(str::trim);
    let format = lines.next().unwrap_or_default();
    if format != FORMAT {
        return Err(DirError::Format { path: path.into(), found: format.chars().take(80).collect() });
    }
    let owner = lines.next().and_then(|line| line.strip_prefix("member ")).unwrap_or_default();
    if owner != member.to_string() {
        let found = owner.chars().take(20).collect();
        return Err(DirError::Member { path: path.into(), found, wanted: member });
    }
    Ok(())
}

/// Bytes of all files in `dir`, as far as they can be read; blocks on the disk.
pub fn bytes(dir: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => bytes(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    };
    entries.flatten().map(size).sum()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn open(path: &Path, must_exist: bool) -> Result<Dir, DirError> {
        Dir::open(&Host::real(), path, 1, must_exist)
    }

    fn found(path: &Path) {
        let mut dir = open(path, false).unwrap();
        assert!(dir.is_new());
        dir.founded(&Host::real()).unwrap();
    }

    #[test]
    fn a_directory_is_used_by_one_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let first = open(dir.path(), false).unwrap();
        let error = open(dir.path(), false).err().unwrap();
        let text = error.to_string();
        assert!(matches!(error, DirError::Locked { .. }) && text.contains(&std::process::id().to_string()), "{text}");
        drop(first);
        open(dir.path(), false).unwrap();
    }

    #[test]
    fn another_format_or_member_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        found(dir.path());
        for (text, expected) in [
            ("coracle keyspace 99\n", "coracle keyspace 99"),
            ("coracle keyspace 1\nmember 1\n", "coracle keyspace 1"),
            ("coracle keyspace 2\nmember 7\n", "member 7"),
        ] {
            fs::write(dir.path().join("FORMAT"), text).unwrap();
            let error = open(dir.path(), false).err().unwrap();
            assert!(matches!(&error, DirError::Format { .. } | DirError::Member { .. }), "{error}");
            assert!(error.to_string().contains(expected), "{error}");
        }
    }

    #[test]
    fn only_founding_makes_and_it_may_be_begun_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control");
        assert!(matches!(open(&path, true), Err(DirError::Missing { .. })) && !path.exists());
        // Cut off by a crash, it begins again.
        drop(open(&path, false).unwrap());
        fs::write(path.join("state.redb"), "half").unwrap();
        assert!(open(&path, false).unwrap().is_new());
        assert!(!path.join("state.redb").exists());
        found(&path);
        assert!(!open(&path, false).unwrap().is_new() && !path.join("FOUNDING").exists());
        // The record of it gone, what is there is not taken for nothing.
        fs::write(path.join("state.redb"), "data").unwrap();
        fs::remove_file(path.join("FORMAT")).unwrap();
        assert!(matches!(open(&path, false), Err(DirError::Missing { .. })));
        assert_eq!(fs::read(path.join("state.redb")).unwrap(), b"data");
    }
}
