//! Compiled components on disk, by digest and by everything that decides over compiled code.
//!
//! ```text
//! CACHE_DIR/                 mode 0700
//!   CODE_KEY/                wasmtime's version, its settings, this CPU
//!     DIGEST.cwasm           whole, since it was moved into place
//!     DIGEST.facts           what is known of the component and of its code, there before that
//!     DIGEST.PID.N….part     under way; swept at the start
//!     functions/             functions that components share (see `functions.rs`)
//! ```

use std::collections::HashMap;
use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use parking_lot::Mutex;
use rustix::io::Errno;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::compile::Bounds;
use crate::facts::Facts;
use crate::memory::NodeMemory;
use crate::{Compiler, Config, Error, compile, functions};

/// Directory of compiled functions that components share, with a bound of its own.
const FUNCTIONS: &str = "functions";

/// Compilers at work at the same time, and those of one owner: each uses every CPU it can get.
const COMPILERS_MAX: usize = 3;
const COMPILERS_PER_OWNER_MAX: usize = 2;

/// Bytes of code that are looked at at a time.
const PIECE_BYTES: usize = 256 << 10;

/// The cache.
pub(crate) struct Cache {
    dir: PathBuf,
    bytes_max: u64,
    compiler: Compiler,
    bounds: Bounds,
    compilers: Semaphore,
    /// Turns of each of those whose components are compiled or wait for it.
    owners: Mutex<HashMap<String, Arc<Semaphore>>>,
    parts: AtomicU64,
}

impl Cache {
    /// Opens or makes it; sweeps what other versions and other days left.
    pub(crate) fn open(config: &Config, code_key: &str) -> Result<Cache, Error> {
        let dir = config.cache_dir.join(code_key);
        let failed = |source| Error::Cache { path: dir.clone(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(failed)?;
        fs::set_permissions(&config.cache_dir, fs::Permissions::from_mode(0o700)).map_err(failed)?;
        for entry in fs::read_dir(&config.cache_dir).map_err(failed)?.flatten() {
            // Code of another version of this program is never loaded again. What is no code stays.
            let name = entry.file_name();
            let is_key = name.len() == code_key.len() && name.as_encoded_bytes().iter().all(u8::is_ascii_hexdigit);
            if is_key && name != code_key {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        for entry in fs::read_dir(&dir).map_err(failed)?.flatten() {
            if entry.path().extension().is_some_and(|extension| extension == "part") {
                let _ = fs::remove_file(entry.path());
            }
        }
        functions::sweep(&dir.join(FUNCTIONS));
        Ok(Cache {
            bytes_max: config.cache_bytes_max,
            compiler: config.compiler.clone(),
            bounds: Bounds { bytes_max: config.compile_bytes_max, time_max: config.compile_time_max },
            compilers: Semaphore::new(COMPILERS_MAX),
            owners: Mutex::default(),
            parts: AtomicU64::new(0),
            dir,
        })
    }

    /// Where the code of a component is or will be.
    pub(crate) fn path(&self, digest: &str) -> PathBuf {
        // A digest is a name in our own directory: only letters and digits get through.
        let name: String = digest.chars().map(|char| if char.is_ascii_alphanumeric() { char } else { '-' }).collect();
        self.dir.join(format!("{name}.cwasm"))
    }

    /// Whether the code of a component is there, with what is known of it.
    pub(crate) fn has(&self, digest: &str) -> bool {
        let path = self.path(digest);
        path.exists() && Known::beside(&path).is_ok()
    }

    /// A turn of an owner, who never has all compilers: however many components it has, and however long they take, there is one
    /// for the next of somebody else.
    pub(crate) async fn turn(&self, owner: &str) -> Option<OwnedSemaphorePermit> {
        let turns = {
            let mut owners = self.owners.lock();
            // Who has a turn, or waits for one, holds it as well.
            owners.retain(|_, turns| Arc::strong_count(turns) > 1);
            owners.entry(owner.to_owned()).or_insert_with(|| Arc::new(Semaphore::new(COMPILERS_PER_OWNER_MAX))).clone()
        };
        turns.acquire_owned().await.ok()
    }

    /// Compiles a component into its place. Dropping this stops the compiler.
    pub(crate) async fn compile(&self, digest: &str, wasm: &Path, memory: &Arc<NodeMemory>) -> Result<(), Error> {
        let Ok(_turn) = self.compilers.acquire().await else {
            return Err(Error::CompilerKilled("the engine ends".to_owned()));
        };
        let path = self.path(digest);
        let number = self.parts.fetch_add(1, Ordering::Relaxed);
        let part = Part(path.with_extension(format!("{}.{number}.part", std::process::id())));
        let facts = Part(compile::facts_beside(&part.0));
        compile::compile(&self.compiler, wasm, &part.0, &self.dir.join(FUNCTIONS), self.bounds, memory.beside())
            .await?;
        // The code comes last: where it is, the facts are.
        let moved = fs::rename(&facts.0, path.with_extension("facts")).and_then(|()| fs::rename(&part.0, &path));
        moved.map_err(|source| Error::Cache { path: path.clone(), source })?;
        self.evict(&path);
        Ok(())
    }

    /// What its compiler has said of the component whose code is at `path`, when that is what it has written. Code without it, and
    /// code that a disk gave back as something else, is not usable: it would run.
    pub(crate) fn facts(path: &Path) -> Result<Facts, Error> {
        let known = Known::beside(path)?;
        let code = Code::read(path).map_err(|source| unreadable(path, source))?;
        if code != known.code {
            return Err(Error::Start("its code is not what was written".to_owned()));
        }
        Ok(known.facts)
    }

    /// Remembers that a file was used.
    pub(crate) fn touch(path: &Path) {
        if let Ok(file) = fs::File::open(path) {
            let _ = file.set_modified(SystemTime::now());
        }
    }

    /// Removes what was not used for longest until the cache fits its bound; never `keep`. Code that is in use stays
    /// mapped although its file is gone.
    fn evict(&self, keep: &Path) {
        let Ok(files) = self.files() else { return };
        let mut sum: u64 = files.iter().map(|file| file.bytes).sum();
        for file in files {
            if sum <= self.bytes_max {
                break;
            }
            if file.path != keep && fs::remove_file(&file.path).is_ok() {
                let _ = fs::remove_file(file.path.with_extension("facts"));
                sum -= file.bytes;
            }
        }
    }

    fn files(&self) -> io::Result<Vec<Cached>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            let path = entry.path();
            if path.extension().is_some_and(|extension| extension == "cwasm")
                && let Ok(metadata) = entry.metadata()
            {
                let used = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                files.push(Cached { used, bytes: metadata.len(), path });
            }
        }
        files.sort_by_key(|file| file.used);
        Ok(files)
    }
}

struct Cached {
    used: SystemTime,
    bytes: u64,
    path: PathBuf,
}

/// What was written, and cannot be read: for want of something, which passes, or because a disk does not give it back any more.
fn unreadable(path: &Path, source: io::Error) -> Error {
    match Errno::from_io_error(&source) {
        Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM) => Error::Read { path: path.to_owned(), source },
        _ => Error::Start(format!("{} cannot be read: {source}", path.display())),
    }
}

/// What a compiler leaves beside its code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) facts: Facts,
    pub(crate) code: Code,
}

impl Known {
    /// Of the code at `path`.
    fn beside(path: &Path) -> Result<Known, Error> {
        let beside = path.with_extension("facts");
        let missing = || Error::Start("what is known of the component is not beside its code".to_owned());
        match fs::read_to_string(&beside) {
            Ok(text) => Known::from_text(&text).ok_or_else(missing),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidData) => {
                Err(missing())
            }
            Err(source) => Err(unreadable(&beside, source)),
        }
    }

    /// Two lines of text.
    pub(crate) fn to_text(self) -> String {
        format!("{}{} {:08x}\n", self.facts.to_text(), self.code.bytes, self.code.checksum)
    }

    /// The other way round; none for anything else.
    fn from_text(text: &str) -> Option<Known> {
        let (facts, code) = text.split_at(text.find('\n')? + 1);
        let (bytes, checksum) = code.trim_end().split_once(' ')?;
        let code = Code { bytes: bytes.parse().ok()?, checksum: u32::from_str_radix(checksum, 16).ok()? };
        Some(Known { facts: Facts::from_text(facts)?, code }).filter(|known| known.to_text() == text)
    }
}

/// How compiled code is known again. It guards against disks, not against people: who may write here may run anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Code {
    bytes: u64,
    checksum: u32,
}

impl Code {
    /// Of code in memory.
    pub(crate) fn of(code: &[u8]) -> Code {
        Code { bytes: code.len() as u64, checksum: crc32fast::hash(code) }
    }

    /// Of a file: some 10 ms for the largest.
    fn read(path: &Path) -> io::Result<Code> {
        let (mut file, mut piece) = (fs::File::open(path)?, vec![0; PIECE_BYTES]);
        let (mut bytes, mut hasher) = (0, crc32fast::Hasher::new());
        loop {
            let read = file.read(&mut piece)?;
            if read == 0 {
                return Ok(Code { bytes, checksum: hasher.finalize() });
            }
            bytes += read as u64;
            hasher.update(&piece[..read]);
        }
    }
}

/// A file under way, gone when nobody moves it away.
struct Part(PathBuf);

impl Drop for Part {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::Model;

    #[test]
    fn what_is_beside_code_is_read_as_it_was_written_and_nothing_else() {
        for (is_reusable, model) in [(true, Model::Sync), (false, Model::Async)] {
            let known = Known { facts: Facts { is_reusable, model }, code: Code::of(b"code") };
            assert_eq!(Known::from_text(&known.to_text()), Some(known));
        }
        for wrong in [
            "",
            "reusable sync\n",
            "reusable sync\n4 zz\n",
            "reusable sync\n4 1234\n",
            "fresh async\n-1 00001234\n",
            "x\n4 00001234\n",
        ] {
            assert_eq!(Known::from_text(wrong), None, "{wrong:?}");
        }
    }
}
