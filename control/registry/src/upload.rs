//! Uploads: blobs on their way in.
//!
//! An upload is a file, a running hash and an offset, behind a lock that is taken only on threads that may block. A
//! client that goes away in the middle leaves an upload that it can go on with, until it expires.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::ops::Deref;
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256, Sha512};
use uuid::Uuid;

use crate::Config;
use crate::name::{Algorithm, Digest, Name};

/// An upload that nobody has sent to for so long gives its place to another one when there is none: its client begins again.
const YIELDS_AFTER: Duration = Duration::from_secs(30);

/// All uploads under way.
pub struct Uploads {
    dir: PathBuf,
    max: usize,
    idle_max: Duration,
    free_min: u64,
    open: Mutex<HashMap<Uuid, Arc<Upload>>>,
}

/// One upload.
pub struct Upload {
    /// Which.
    pub id: Uuid,
    /// Nobody but who began it sends to one without.
    name: Option<Name>,
    path: PathBuf,
    free_min: u64,
    /// One request at a time sends to it.
    pub busy: tokio::sync::Mutex<()>,
    state: Mutex<State>,
    /// Bytes that have come; written under the lock of the state, which is held for as long as a disk takes.
    offset: AtomicU64,
    touched: Mutex<Instant>,
}

struct State {
    file: OnDisk,
    hash: Sha256,
    /// The file is that of a blob, or of nobody: nothing is written to it any more.
    finished: bool,
}

/// An upload's file until it is a blob. It goes with this, on a thread that may block: a large one takes the disk a while.
struct OnDisk {
    path: PathBuf,
    /// There until it is dropped.
    file: Option<File>,
}

impl OnDisk {
    fn create(path: &Path) -> io::Result<OnDisk> {
        Ok(OnDisk { file: Some(File::create_new(path)?), path: path.to_owned() })
    }
}

impl Deref for OnDisk {
    type Target = File;

    fn deref(&self) -> &File {
        self.file.as_ref().expect("only the drop takes it")
    }
}

impl Drop for OnDisk {
    fn drop(&mut self) {
        let (path, file) = (std::mem::take(&mut self.path), self.file.take());
        let remove = move || {
            // Gone already when it became a blob.
            let _ = fs::remove_file(path);
            drop(file);
        };
        match tokio::runtime::Handle::try_current() {
            // What a process leaves that ends meanwhile goes at the next start.
            Ok(runtime) => drop(runtime.spawn_blocking(remove)),
            Err(_) => remove(),
        }
    }
}

impl Uploads {
    /// Makes the directory, empty.
    pub fn open(dir: PathBuf, config: &Config) -> io::Result<Uploads> {
        match fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir)?,
        }
        let open = Mutex::new(HashMap::new());
        Ok(Uploads { dir, max: config.uploads_max, idle_max: config.upload_idle_max, free_min: config.free_min, open })
    }

    /// Begins an upload to `name`; `None` when there are too many: of all, or more than half of the places for what belongs
    /// together with `name`. Blocks on the disk.
    pub fn begin(&self, name: Name) -> io::Result<Option<Arc<Upload>>> {
        let owner = name.owner().to_owned();
        // Requests look at the table on threads that must not wait for a disk: nothing is made or removed under its lock.
        if !self.has_room(&mut self.open.lock(), &owner) {
            return Ok(None);
        }
        let upload = self.make(Some(name))?;
        let mut open = self.open.lock();
        // Others may have come meanwhile.
        if !self.has_room(&mut open, &owner) {
            return Ok(None);
        }
        open.insert(upload.id, upload.clone());
        Ok(Some(upload))
    }

    /// Whether there is a place for one more of this owner, or one that was made.
    fn has_room(&self, open: &mut HashMap<Uuid, Arc<Upload>>, owner: &str) -> bool {
        let is_own = |upload: &Upload| upload.name.as_ref().is_some_and(|name| name.owner() == owner);
        let has_its_half = open.values().filter(|upload| is_own(upload)).count() >= self.max.div_ceil(2);
        let is_full = has_its_half || open.len() >= self.max;
        !is_full || self.make_room(open, |upload| !has_its_half || is_own(upload))
    }

    /// Begins one that no client knows of: of what comes from another server. Blocks on the disk.
    pub fn unlisted(&self) -> io::Result<Arc<Upload>> {
        self.make(None)
    }

    fn make(&self, name: Option<Name>) -> io::Result<Arc<Upload>> {
        let id = Uuid::new_v4();
        let path = self.dir.join(id.to_string());
        let state = State { file: OnDisk::create(&path)?, hash: Sha256::new(), finished: false };
        Ok(Arc::new(Upload {
            id,
            name,
            path,
            free_min: self.free_min,
            busy: tokio::sync::Mutex::new(()),
            state: Mutex::new(state),
            offset: AtomicU64::new(0),
            touched: Mutex::new(Instant::now()),
        }))
    }

    /// Forgets the upload that nobody has sent to for longest, of those that may go and if that is long.
    fn make_room(&self, open: &mut HashMap<Uuid, Arc<Upload>>, may_go: impl Fn(&Upload) -> bool) -> bool {
        let idle = open.values().map(|upload| (upload.touched.lock().elapsed(), upload));
        let idle = idle.filter(|(idle, upload)| *idle >= YIELDS_AFTER.min(self.idle_max) && may_go(upload));
        // Last: whoever looks is in the way of a request for a moment.
        let longest = idle.filter(|(_, upload)| !upload.is_busy()).map(|(idle, upload)| (idle, upload.id)).max();
        longest.is_some_and(|(_, id)| open.remove(&id).is_some())
    }

    /// Forgets the uploads that nobody has sent to for long.
    pub fn drop_idle(&self) {
        self.open.lock().retain(|_, upload| upload.touched.lock().elapsed() < self.idle_max || upload.is_busy());
    }

    /// The upload `id` to `name`.
    pub fn find(&self, name: &Name, id: &str) -> Option<Arc<Upload>> {
        let upload = self.open.lock().get(&id.parse().ok()?)?.clone();
        (upload.name.as_ref() == Some(name)).then_some(upload)
    }

    /// Forgets an upload; its file goes with the last who holds it.
    pub fn forget(&self, upload: &Upload) {
        self.open.lock().remove(&upload.id);
    }
}

impl Upload {
    /// Whether a request sends to it.
    fn is_busy(&self) -> bool {
        self.busy.try_lock().is_err()
    }

    /// Bytes that have come.
    pub fn offset(&self) -> u64 {
        self.offset.load(Ordering::Acquire)
    }

    /// Takes the bytes from `at` on, unless the upload is elsewhere by now, or finished: a request whose client has gone comes
    /// late, when another one has gone on, and changes nothing. Says whether they were taken. Blocks on the disk.
    pub fn append(&self, at: u64, chunks: &[Bytes]) -> io::Result<bool> {
        let mut state = self.state.lock();
        if state.finished || self.offset() != at {
            return Ok(false);
        }
        let mut offset = at;
        leave_free(&self.path, self.free_min, chunks.iter().map(|chunk| chunk.len() as u64).sum())?;
        for chunk in chunks {
            // Where the last one that was taken whole has ended: what a failed write has left is written over.
            state.file.write_all_at(chunk, offset)?;
            state.hash.update(chunk);
            offset += chunk.len() as u64;
            self.offset.store(offset, Ordering::Release);
        }
        *self.touched.lock() = Instant::now();
        Ok(true)
    }

    /// Has everything on disk, and says what its digest is. From then on nothing is taken. Blocks on the disk.
    pub fn finish(&self, algorithm: Algorithm) -> io::Result<Digest> {
        let mut state = self.state.lock();
        state.finished = true;
        // A failed write may have left more than was taken.
        state.file.set_len(self.offset())?;
        state.file.sync_all()?;
        match algorithm {
            Algorithm::Sha256 => Ok(Digest::of(&state.hash.clone().finalize())),
            // Nobody says at the beginning that it will be this one, and few do: it is read again.
            Algorithm::Sha512 => {
                let mut hash = Sha512::new();
                io::copy(&mut File::open(&self.path)?, &mut hash)?;
                Ok(Digest::of(&hash.finalize()))
            }
        }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Refuses to write `bytes` at `path` where less than `min` would be free on the disk then. Where the disk does not say how
/// much it has, writing finds out.
pub(crate) fn leave_free(path: &Path, min: u64, bytes: u64) -> io::Result<()> {
    let dir = path.parent().unwrap_or(path);
    let Ok(space) = rustix::fs::statvfs(dir) else { return Ok(()) };
    let free = space.f_bavail.saturating_mul(space.f_frsize);
    if free >= min.saturating_add(bytes) {
        return Ok(());
    }
    let text = format!("{} MiB are free, and {} MiB are kept for the log", free >> 20, min >> 20);
    Err(io::Error::new(io::ErrorKind::StorageFull, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_failed_write_left_is_not_in_the_blob() {
        let dir = tempfile::tempdir().unwrap();
        let uploads = Uploads::open(dir.path().join("uploads"), &Config::new(dir.path())).unwrap();
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let upload = uploads.begin("a/b".parse().unwrap()).unwrap().unwrap();
            assert!(upload.append(0, &[Bytes::from_static(b"first ")]).unwrap());
            // As a disk does that fills up in the middle of a chunk: more lies there than was taken.
            upload.state.lock().file.write_all_at(b"rubbish of a chunk", 6).unwrap();
            assert!(upload.append(6, &[Bytes::from_static(b"second")]).unwrap());
            assert_eq!(upload.finish(algorithm).unwrap(), algorithm.digest(b"first second"));
            assert_eq!(fs::read(upload.path()).unwrap(), b"first second");
        }
    }

    #[test]
    fn a_request_whose_client_has_gone_writes_nothing_where_another_has_gone_on() {
        let dir = tempfile::tempdir().unwrap();
        let uploads = Uploads::open(dir.path().join("uploads"), &Config::new(dir.path())).unwrap();
        let upload = uploads.begin("a/b".parse().unwrap()).unwrap().unwrap();
        assert!(upload.append(0, &[Bytes::from_static(b"first ")]).unwrap());
        assert!(!upload.append(0, &[Bytes::from_static(b"first ")]).unwrap(), "it is taken already");
        assert!(upload.append(6, &[Bytes::from_static(b"second")]).unwrap());
        assert_eq!(upload.finish(Algorithm::Sha256).unwrap(), Algorithm::Sha256.digest(b"first second"));
        assert!(!upload.append(12, &[Bytes::from_static(b"third")]).unwrap(), "it is a blob by now");
        assert_eq!(fs::read(upload.path()).unwrap(), b"first second");
    }

    #[test]
    fn who_lets_go_of_an_upload_does_not_wait_for_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().max_blocking_threads(1).build().unwrap();
        runtime.block_on(async {
            let uploads = Uploads::open(dir.path().join("uploads"), &Config::new(dir.path())).unwrap();
            let upload = uploads.begin("a/b".parse().unwrap()).unwrap().unwrap();
            let path = upload.path().to_owned();
            // The only thread that may block is busy.
            let (go_on, wait) = std::sync::mpsc::channel::<()>();
            let busy = tokio::task::spawn_blocking(move || wait.recv());
            uploads.forget(&upload);
            drop(upload);
            assert!(path.exists(), "this thread removed it");
            drop(go_on);
            assert!(busy.await.unwrap().is_err());
            tokio::task::spawn_blocking(|| ()).await.unwrap();
            assert!(!path.exists());
        });
    }

    #[test]
    fn uploads_leave_what_is_kept_for_the_log() {
        let dir = tempfile::tempdir().unwrap();
        for (free_min, taken) in [(0, true), (u64::MAX, false)] {
            let config = Config { free_min, ..Config::new(dir.path()) };
            let uploads = Uploads::open(dir.path().join("uploads"), &config).unwrap();
            let upload = uploads.begin("a/b".parse().unwrap()).unwrap().unwrap();
            let result = upload.append(0, &[Bytes::from_static(b"blob")]);
            assert_eq!(result.as_ref().map_err(io::Error::kind).err(), (!taken).then_some(io::ErrorKind::StorageFull));
            assert_eq!(upload.offset(), if taken { 4 } else { 0 });
        }
    }
}
