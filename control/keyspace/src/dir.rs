//! The data directory: who may use it, whose it is, which version of the format it has, and whether it was founded.
//!
//! Founding happens once. `FOUNDING` is there while it is under way, `FORMAT` once it is done; with `FORMAT` there,
//! everything else must be, and nothing is ever made again because it is missing.

use std::any::Any;
use std::io;
use std::path::{Path, PathBuf};

use crate::group::{Admission, Begin, ClusterId, Peer};
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
    #[error("{path} is missing, although there was a server's data here; nothing was changed. {}", host::LOST_DATA)]
    Missing {
        /// What is missing.
        path: PathBuf,
    },
    /// It is another member's.
    #[error(
        "data directory {path} belongs to member {found} of cluster {cluster}, and this one was admitted as member {wanted} \
         of cluster {to}; choose an empty directory, or remove this one with `coracle reset`"
    )]
    Member {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        found: MemberId,
        /// Of which cluster.
        cluster: ClusterId,
        /// Who wants it.
        wanted: MemberId,
        /// For which cluster.
        to: ClusterId,
    },
    /// Its file FORMAT does not say whose it is.
    #[error("{path} does not say whose directory it is; nothing was changed. {}", host::LOST_DATA)]
    Nobody {
        /// The file.
        path: PathBuf,
    },
}

/// Whose a directory is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Owner {
    /// The cluster.
    pub cluster: ClusterId,
    /// The member.
    pub member: MemberId,
    /// Whether it founded the cluster; the others were admitted.
    pub founder: bool,
    /// Whom it was told of when it was admitted.
    pub peers: Vec<Peer>,
}

impl Owner {
    fn founder(cluster: ClusterId) -> Owner {
        Owner { cluster, member: 1, founder: true, peers: Vec::new() }
    }

    fn admitted(admission: &Admission) -> Owner {
        let Admission { cluster, member, peers } = admission.clone();
        Owner { cluster, member, founder: false, peers }
    }

    fn write(&self) -> String {
        let origin = if self.founder { "founder" } else { "admitted" };
        let mut text = format!("{FORMAT}\nmember {}\ncluster {}\norigin {origin}\n", self.member, self.cluster);
        self.peers.iter().for_each(|peer| text += &format!("peer {} {}\n", peer.member, peer.address));
        text
    }

    /// What `lines` say after the format; a directory from before clusters had ids gets `anew`.
    fn read<'a>(lines: impl Iterator<Item = &'a str>, anew: ClusterId) -> Option<(Owner, bool)> {
        let mut owner = Owner { member: 0, ..Owner::founder(anew) };
        let mut named = false;
        for line in lines.filter(|line| !line.is_empty()) {
            match line.split_once(' ')? {
                ("member", number) => owner.member = number.parse().ok()?,
                ("cluster", id) => (owner.cluster, named) = (id.parse().ok()?, true),
                ("origin", "founder") => owner.founder = true,
                ("origin", "admitted") => owner.founder = false,
                ("peer", peer) => {
                    let (member, address) = peer.split_once(' ')?;
                    owner.peers.push(Peer { member: member.parse().ok()?, address: address.to_owned() });
                }
                _ => return None,
            }
        }
        (owner.member > 0).then_some((owner, named))
    }
}

/// A data directory that this process alone uses, until this is dropped.
pub struct Dir {
    path: PathBuf,
    owner: Owner,
    is_new: bool,
    /// FORMAT is to be written again: it lacks the cluster's id.
    unnamed: bool,
    /// FOUNDING is still there, although founding is done: a later loss of FORMAT would be taken for a new beginning.
    leftover: bool,
    /// Holds the lock; the kernel releases it when the process ends, however it ends.
    _lock: Box<dyn Any + Send + Sync>,
}

impl Dir {
    /// Locks the directory at `path` and reads whose it is; blocks on the disk. Where there is none, it is made, to be
    /// founded ([`Dir::is_new`]), if it is to `begin` at all.
    pub fn open(host: &Host, path: &Path, begin: &Begin) -> Result<Dir, DirError> {
        let disk = &*host.disk;
        let must_exist = *begin == Begin::Resume;
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
        let names = disk.list(path).map_err(failed(path))?;
        let has = |name: &str| names.iter().any(|there| there == name);
        let anew = ClusterId::new([host.random(), host.random()]);
        match host::read(disk, &format) {
            Ok(found) => {
                let (owner, named) = check(path, &String::from_utf8_lossy(&found), anew)?;
                if let Begin::Join(Admission { cluster, member, .. }) = begin
                    && (owner.cluster, owner.member) != (*cluster, *member)
                {
                    return Err(DirError::Member {
                        path: path.into(),
                        found: owner.member,
                        cluster: owner.cluster,
                        wanted: *member,
                        to: *cluster,
                    });
                }
                let leftover = has("FOUNDING");
                Ok(Dir { path: path.into(), owner, is_new: false, unnamed: !named, leftover, _lock: lock })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // Data without either file is from no founding of ours, or lost its FORMAT.
                if must_exist || (!has("FOUNDING") && (has("state.redb") || has("log"))) {
                    return Err(DirError::Missing { path: format });
                }
                self::begin(host, path).map_err(failed(path))?;
                let owner = match begin {
                    Begin::Join(admission) => Owner::admitted(admission),
                    Begin::Found | Begin::Resume => Owner::founder(anew),
                };
                Ok(Dir { path: path.into(), owner, is_new: true, unnamed: false, leftover: false, _lock: lock })
            }
            Err(error) => Err(failed(&format)(error)),
        }
    }

    /// A new directory at `path` for the same `owner`, who is told of nobody; it is to be founded.
    pub fn make(host: &Host, path: &Path, owner: &Owner) -> Result<Dir, DirError> {
        let admission = Admission { cluster: owner.cluster, member: owner.member, peers: Vec::new() };
        let dir = Dir::open(host, path, &Begin::Join(admission))?;
        Ok(Dir { owner: Owner { peers: Vec::new(), ..owner.clone() }, ..dir })
    }

    /// Whether it is still to be founded.
    pub fn is_new(&self) -> bool {
        self.is_new
    }

    /// Whose it is.
    pub fn owner(&self) -> &Owner {
        &self.owner
    }

    /// Says that everything is there from now on.
    pub fn founded(&mut self, host: &Host) -> Result<(), DirError> {
        let path = self.path.join("FORMAT");
        let done = || -> io::Result<()> {
            host.disk.sync_dir(&self.path)?;
            host.disk.sync_dir(host::parent(&self.path))?;
            host::replace(&*host.disk, &path, self.owner.write().as_bytes())?;
            host.disk.remove(&self.path.join("FOUNDING"))?;
            host.disk.sync_dir(&self.path)
        };
        done().map_err(|source| DirError::Io { path: path.clone(), source })?;
        self.is_new = false;
        Ok(())
    }

    /// Sets right what an earlier version or a crash left, once everything was read and found good.
    pub fn tidy(&mut self, host: &Host) -> io::Result<()> {
        if std::mem::take(&mut self.leftover) {
            host.disk.remove(&self.path.join("FOUNDING"))?;
            host.disk.sync_dir(&self.path)?;
        }
        if std::mem::take(&mut self.unnamed) {
            host::replace(&*host.disk, &self.path.join("FORMAT"), self.owner.write().as_bytes())?;
        }
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

fn check(path: &Path, found: &str, anew: ClusterId) -> Result<(Owner, bool), DirError> {
    let mut lines = found.lines().map(str::trim);
    let format = lines.next().unwrap_or_default();
    if format != FORMAT {
        return Err(DirError::Format { path: path.into(), found: format.chars().take(80).collect() });
    }
    Owner::read(lines, anew).ok_or_else(|| DirError::Nobody { path: path.join("FORMAT") })
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

    fn open(path: &Path, begin: &Begin) -> Result<Dir, DirError> {
        Dir::open(&Host::real(), path, begin)
    }

    fn found(path: &Path) {
        let mut dir = open(path, &Begin::Found).unwrap();
        assert!(dir.is_new());
        dir.founded(&Host::real()).unwrap();
    }

    fn admission(member: MemberId) -> Admission {
        let peers = vec![Peer { member: 1, address: "127.0.0.1:1".into() }];
        Admission { cluster: ClusterId::new([1, 2]), member, peers }
    }

    #[test]
    fn a_directory_is_used_by_one_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let first = open(dir.path(), &Begin::Found).unwrap();
        let error = open(dir.path(), &Begin::Found).err().unwrap();
        let text = error.to_string();
        assert!(matches!(error, DirError::Locked { .. }) && text.contains(&std::process::id().to_string()), "{text}");
        drop(first);
        open(dir.path(), &Begin::Found).unwrap();
    }

    #[test]
    fn a_start_waits_for_one_that_was_killed_and_has_not_ended() {
        let dir = tempfile::tempdir().unwrap();
        let killed = open(dir.path(), &Begin::Found).unwrap();
        let ends = std::thread::spawn(move || {
            std::thread::sleep(host::ENDS_WITHIN / 10);
            drop(killed);
        });
        open(dir.path(), &Begin::Found).unwrap();
        ends.join().unwrap();
    }

    #[test]
    fn another_format_is_refused_and_so_is_one_that_says_nothing() {
        let dir = tempfile::tempdir().unwrap();
        found(dir.path());
        for (text, expected) in [
            ("coracle keyspace 99\n", "coracle keyspace 99"),
            ("coracle keyspace 1\nmember 1\n", "coracle keyspace 1"),
            ("coracle keyspace 2\n", "does not say"),
            ("coracle keyspace 2\nmember x\n", "does not say"),
            ("coracle keyspace 2\nmember 1\norigin elsewhere\n", "does not say"),
            ("coracle keyspace 2\n", "If there are others, put no old copy back"),
        ] {
            fs::write(dir.path().join("FORMAT"), text).unwrap();
            let error = open(dir.path(), &Begin::Found).err().unwrap();
            assert!(error.to_string().contains(expected), "{error}");
        }
    }

    #[test]
    fn a_member_is_the_one_it_was_admitted_as() {
        let dir = tempfile::tempdir().unwrap();
        let mut first = open(dir.path(), &Begin::Join(admission(3))).unwrap();
        first.founded(&Host::real()).unwrap();
        let owner = first.owner().clone();
        drop(first);
        assert_eq!((owner.member, owner.founder, owner.peers.len()), (3, false, 1));
        for again in [Begin::Resume, Begin::Join(admission(3))] {
            assert_eq!(*open(dir.path(), &again).unwrap().owner(), owner);
        }
        let error = open(dir.path(), &Begin::Join(admission(4))).err().unwrap();
        assert!(matches!(error, DirError::Member { found: 3, wanted: 4, .. }), "{error}");
        let other = Admission { cluster: ClusterId::new([9, 9]), ..admission(3) };
        assert!(matches!(open(dir.path(), &Begin::Join(other)), Err(DirError::Member { .. })));
    }

    #[test]
    fn a_directory_from_before_clusters_had_ids_gets_one_and_keeps_it() {
        let dir = tempfile::tempdir().unwrap();
        found(dir.path());
        fs::write(dir.path().join("FORMAT"), "coracle keyspace 2\nmember 1\n").unwrap();
        let mut old = open(dir.path(), &Begin::Resume).unwrap();
        old.tidy(&Host::real()).unwrap();
        let owner = old.owner().clone();
        drop(old);
        assert_eq!(*open(dir.path(), &Begin::Resume).unwrap().owner(), owner);
    }

    #[test]
    fn only_founding_makes_and_it_may_be_begun_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control");
        assert!(matches!(open(&path, &Begin::Resume), Err(DirError::Missing { .. })) && !path.exists());
        // Cut off by a crash, it begins again; but not for whoever knows that it was done.
        drop(open(&path, &Begin::Found).unwrap());
        fs::write(path.join("state.redb"), "half").unwrap();
        assert!(matches!(open(&path, &Begin::Resume), Err(DirError::Missing { .. })));
        assert!(open(&path, &Begin::Found).unwrap().is_new());
        assert!(!path.join("state.redb").exists());
        found(&path);
        assert!(!open(&path, &Begin::Found).unwrap().is_new() && !path.join("FOUNDING").exists());
        // A crash between the two left the mark of the founding: it goes, or the next loss would be taken for a beginning.
        fs::write(path.join("FOUNDING"), "").unwrap();
        open(&path, &Begin::Resume).unwrap().tidy(&Host::real()).unwrap();
        // The record of it gone, what is there is not taken for nothing.
        fs::write(path.join("state.redb"), "data").unwrap();
        fs::remove_file(path.join("FORMAT")).unwrap();
        assert!(matches!(open(&path, &Begin::Found), Err(DirError::Missing { .. })));
        assert_eq!(fs::read(path.join("state.redb")).unwrap(), b"data");
    }
}
