//! Uploads: blobs on their way in.
//!
//! An upload is a file, a running hash and an offset, behind a lock that is taken only on threads that may block. A
//! client that goes away in the middle leaves an upload that it can go on with, until it expires.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::Config;
use crate::name::{Digest, Name};

/// All uploads under way.
pub struct Uploads {
    dir: PathBuf,
    max: usize,
    idle_max: Duration,
    open: Mutex<HashMap<Uuid, Arc<Upload>>>,
}

/// One upload.
pub struct Upload {
    /// Which.
    pub id: Uuid,
    name: Name,
    path: PathBuf,
    /// One request at a time sends to it.
    pub busy: tokio::sync::Mutex<()>,
    state: Mutex<State>,
    touched: Mutex<Instant>,
}

struct State {
    file: File,
    hash: Sha256,
    offset: u64,
}

impl Uploads {
    /// Makes the directory, empty.
    pub fn open(dir: PathBuf, config: &Config) -> io::Result<Uploads> {
        match fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => fs::create_dir_all(&dir)?,
        }
        Ok(Uploads { dir, max: config.uploads_max, idle_max: config.upload_idle_max, open: Mutex::new(HashMap::new()) })
    }

    /// Begins an upload to `name`; `None` when there are too many. Blocks on the disk.
    pub fn begin(&self, name: Name) -> io::Result<Option<Arc<Upload>>> {
        let id = Uuid::new_v4();
        let path = self.dir.join(id.to_string());
        let mut open = self.open.lock();
        if open.len() >= self.max {
            open.retain(|_, upload| upload.touched.lock().elapsed() < self.idle_max || upload.busy.try_lock().is_err());
            if open.len() >= self.max {
                return Ok(None);
            }
        }
        let state = State { file: File::create_new(&path)?, hash: Sha256::new(), offset: 0 };
        let upload = Arc::new(Upload {
            id,
            name,
            path,
            busy: tokio::sync::Mutex::new(()),
            state: Mutex::new(state),
            touched: Mutex::new(Instant::now()),
        });
        open.insert(id, upload.clone());
        Ok(Some(upload))
    }

    /// The upload `id` to `name`.
    pub fn find(&self, name: &Name, id: &str) -> Option<Arc<Upload>> {
        let upload = self.open.lock().get(&id.parse().ok()?)?.clone();
        (upload.name == *name).then_some(upload)
    }

    /// Forgets an upload; its file goes with the last who holds it.
    pub fn forget(&self, upload: &Upload) {
        self.open.lock().remove(&upload.id);
    }
}

impl Upload {
    /// Bytes that have come.
    pub fn offset(&self) -> u64 {
        self.state.lock().offset
    }

    /// Takes more bytes. Blocks on the disk.
    pub fn append(&self, chunks: &[Bytes]) -> io::Result<()> {
        let mut state = self.state.lock();
        for chunk in chunks {
            state.file.write_all(chunk)?;
            state.hash.update(chunk);
            state.offset += chunk.len() as u64;
        }
        *self.touched.lock() = Instant::now();
        Ok(())
    }

    /// Has everything on disk, and says what its digest is. Blocks on the disk.
    pub fn finish(&self) -> io::Result<Digest> {
        let state = self.state.lock();
        state.file.sync_all()?;
        Ok(Digest::of(&state.hash.clone().finalize()))
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        // Gone already when it became a blob.
        let _ = fs::remove_file(&self.path);
    }
}
