//! A new cluster made of a backup: built beside its place, and moved there when it is whole and on the disk.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};

use coracle_keyspace::{OpenError, Restoring, Revision, SecretKey};
use serde_json::Value;
use tokio::runtime::Handle;

use super::format::{self, Error, Frame, Reader};
use crate::authority::{self, Authority};
use crate::founding;

/// Why no cluster was made.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The backup.
    #[error(transparent)]
    Backup(#[from] Error),
    /// Its keys are sealed.
    #[error("the keys in this backup are sealed under the backup key {id}: name its file with --key-file")]
    NoKey {
        /// Which key it takes.
        id: String,
    },
    /// Its keys are sealed under another key.
    #[error("the keys in this backup are sealed under the backup key {id}, and the one that was given is {given}")]
    OtherKey {
        /// Which key it takes.
        id: String,
        /// The one that was given.
        given: String,
    },
    /// Something is there already.
    #[error("{dir} is not empty: a cluster is restored into a new directory; choose another one, or move that away")]
    NotEmpty {
        /// The directory.
        dir: PathBuf,
    },
    /// Something of an earlier attempt is there.
    #[error("{dir} is there: another `coracle restore` is under way, or one was cut off; in that case delete it")]
    UnderWay {
        /// Where it was built.
        dir: PathBuf,
    },
    /// A file cannot be written.
    #[error("{path}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The keys cannot be kept.
    #[error("keep the cluster's keys")]
    Keys(#[source] authority::Error),
    /// The objects cannot be kept.
    #[error("keep the objects")]
    Records(#[source] OpenError),
}

/// What was restored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// The revision of the backup.
    pub revision: u64,
    /// Objects, and what else is kept beside them.
    pub records: u64,
    /// Files of the registry; none in a backup without images.
    pub files: u64,
    /// The id of the new cluster.
    pub cluster: String,
}

/// Makes the data directory `dir` of what `from` holds. On an error there is none. Blocks, within a runtime.
/// `key` is what the backup was made with; one of version 1 takes none.
pub fn restore(from: impl Read, dir: &Path, key: Option<&SecretKey>) -> Result<Restored, RestoreError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| RestoreError::File { path, source }
    };
    match fs::read_dir(dir).map(|mut entries| entries.next().is_some()) {
        Ok(false) => {}
        Ok(true) => return Err(RestoreError::NotEmpty { dir: dir.into() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(dir)(error)),
    }
    // What is no backup leaves nothing behind.
    let reader = Reader::begin(from)?;
    let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    founding::private_dir(parent).map_err(failed(parent))?;
    let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let work = parent.join(format!(".{name}.restoring"));
    match fs::create_dir(&work).and_then(|()| founding::closed_dir(&work)) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(RestoreError::UnderWay { dir: work }),
        made => made.map_err(failed(&work))?,
    }
    let moved = build(reader, &work, key).and_then(|restored| {
        let moved = || -> io::Result<()> {
            rustix::fs::syncfs(File::open(&work)?)?;
            fs::rename(&work, dir)?;
            File::open(parent)?.sync_all()
        };
        moved().map_err(failed(dir)).map(|()| restored)
    });
    moved.inspect_err(|_| drop(fs::remove_dir_all(&work)))
}

/// A file of the registry that is being written.
struct Open {
    path: PathBuf,
    file: File,
    left: u64,
}

/// Fills `work`.
fn build<R: Read>(mut reader: Reader<R>, work: &Path, key: Option<&SecretKey>) -> Result<Restored, RestoreError> {
    // A next start knows an unfinished one by it.
    let founding = work.join("FOUNDING");
    founding::write(&founding, b"").map_err(|source| RestoreError::File { path: founding, source })?;
    let (mut revision, mut id) = (None, String::new());
    let (mut has_keys, mut records, mut files) = (false, Restoring::new(), 0);
    let mut open: Option<Open> = None;
    let mut end = Value::Null;
    while let Some(frame) = reader.read()? {
        let damaged = |why| RestoreError::Backup(Error::Damaged { at: reader.at(), why });
        if !matches!(frame, Frame::Content(_)) && open.take().is_some_and(|open| open.left > 0) {
            return Err(damaged("a file lacks its end"));
        }
        match frame {
            Frame::Head(head) => {
                let found = head["revision"].as_u64().filter(|_| revision.is_none());
                revision = Some(found.ok_or_else(|| damaged("its head is not usable"))?);
                id = head["key"].as_str().unwrap_or_default().to_owned();
            }
            _ if revision.is_none() => return Err(damaged("it has no head")),
            Frame::Keys(_) | Frame::Sealed(_) => {
                let keys = match frame {
                    Frame::Sealed(sealed) => {
                        let key = key.ok_or_else(|| RestoreError::NoKey { id: id.clone() })?;
                        let given = key.fingerprint();
                        if given != id {
                            return Err(RestoreError::OtherKey { id, given });
                        }
                        format::open(key, &sealed).ok_or_else(|| damaged("its keys cannot be opened"))?
                    }
                    Frame::Keys(keys) => keys,
                    _ => return Err(damaged("its keys are not usable")),
                };
                let keys = format::shared(&keys, reader.at())?;
                Authority::adopt(&work.join("pki"), &keys).map_err(RestoreError::Keys)?;
                has_keys = true;
            }
            Frame::Records(part) => records.part(&part).map_err(|_| damaged("a record cannot be read"))?,
            Frame::File(file) => {
                let path = file["path"].as_str().and_then(|path| below(Path::new(path)));
                let (Some(path), Some(left)) = (path, file["bytes"].as_u64()) else {
                    return Err(damaged("a file's place is not usable"));
                };
                open = Some(create(work.join("registry").join(path), left)?);
                files += 1;
            }
            Frame::Content(content) => {
                let more = open.as_mut().filter(|open| open.left >= content.len() as u64);
                let Open { path, file, left } = more.ok_or_else(|| damaged("a file is too long"))?;
                *left -= content.len() as u64;
                file.write_all(&content).map_err(|source| RestoreError::File { path: path.clone(), source })?;
            }
            Frame::End(found) => end = found,
        }
    }
    let counted = (records.len() as u64, files);
    if !has_keys || (end["records"].as_u64(), end["files"].as_u64()) != (Some(counted.0), Some(counted.1)) {
        return Err(Error::Damaged { at: reader.at(), why: "it does not hold what its end says" }.into());
    }
    let revision = revision.unwrap_or_default();
    let control = work.join("control");
    let made = Handle::current().block_on(records.finish(&control, Revision::new(revision)));
    let cluster = made.map_err(RestoreError::Records)?;
    let mark = work.join("CLUSTER");
    founding::founded(work).map_err(|error| RestoreError::File { path: mark, source: io::Error::other(error) })?;
    Ok(Restored { revision, records: counted.0, files, cluster: cluster.to_string() })
}

/// The path, if it leads down from where it begins and nowhere else.
fn below(path: &Path) -> Option<&Path> {
    let down = path.components().all(|part| matches!(part, Component::Normal(_)));
    (down && path.components().next().is_some()).then_some(path)
}

fn create(path: PathBuf, left: u64) -> Result<Open, RestoreError> {
    let parent = path.parent().map_or(Ok(()), founding::private_dir);
    let file = parent.and_then(|()| File::options().write(true).create_new(true).mode(0o600).open(&path));
    match file {
        Ok(file) => Ok(Open { path, file, left }),
        Err(source) => Err(RestoreError::File { path, source }),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// As it was written before keys were sealed.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_backup_of_version_1_is_read_without_a_key() {
        let temp = tempfile::tempdir().unwrap();
        let [ours, others] =
            ["ours", "others"].map(|name| Authority::open(&temp.path().join(name), false).unwrap().shared().unwrap());
        let backup = |authority_key: &str| {
            let mut writer = format::Writer::begin(Vec::new()).unwrap();
            let keys = json!({"authority": ours.authority, "authorityKey": authority_key, "tokenKey": ours.token_key});
            let end = json!({"records": 0, "files": 0});
            for frame in [Frame::Head(json!({"revision": 7})), Frame::Keys(keys), Frame::End(end)] {
                writer.frame(&frame).unwrap();
            }
            let written = writer.finish().unwrap();
            [b"coracle backup 1\n", &written[b"coracle backup 2\n".len()..]].concat()
        };
        let dir = temp.path().join("data");
        // What nothing of the cluster is opened with is neither taken for a whole backup nor restored.
        let (wrong, to) = (backup(&others.authority_key), dir.clone());
        assert!(matches!(super::super::verify(&wrong[..], None), Err(Error::Damaged { .. })));
        let refused = tokio::task::spawn_blocking(move || restore(&wrong[..], &to, None)).await.unwrap();
        assert!(matches!(refused, Err(RestoreError::Backup(Error::Damaged { .. }))) && !dir.exists());
        let (bytes, to) = (backup(&ours.authority_key), dir.clone());
        assert_eq!(super::super::verify(&bytes[..], None).unwrap().revision, 7);
        let made = tokio::task::spawn_blocking(move || restore(&bytes[..], &to, None)).await.unwrap().unwrap();
        assert_eq!((made.revision, fs::read_to_string(dir.join("pki/ca.key")).unwrap()), (7, ours.authority_key));
    }

    #[test]
    fn files_go_below_the_registry_and_nowhere_else() {
        for (path, good) in [
            ("blobs/sha256/ab/abc", true),
            ("../pki/ca.crt", false),
            ("blobs/../../x", false),
            ("/etc/x", false),
            ("", false),
            (".", false),
        ] {
            assert_eq!(below(Path::new(path)).is_some(), good, "{path}");
        }
    }
}
