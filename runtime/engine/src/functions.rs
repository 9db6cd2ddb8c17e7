//! Compiled functions, kept for the next component that has the same ones: two Python programs share all of CPython.
//!
//! ```text
//! CACHE_DIR/CODE_KEY/functions/
//!   NAME.pack      the functions that one compilation added: [key length u16][value length u32][sum 8][key][value]…
//!   NAME.part      under way
//! ```
//!
//! A pack is written by one compiler and never changed. What does not agree with its sum is not there. The pack used
//! longest ago goes first.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use parking_lot::Mutex;
use sha2::{Digest, Sha256};

/// Bytes of all packs together. CPython's functions take some 100 MB.
const BYTES_MAX: u64 = 1 << 30;

/// Bytes of one pack.
const PACK_BYTES_MAX: u64 = BYTES_MAX / 2;

/// Bytes of one function; the largest ever seen had 3 MB.
const VALUE_BYTES_MAX: u32 = 64 << 20;

const HEADER_BYTES: usize = 2 + 4 + 8;

type Sum = [u8; 8];

/// The functions that are there when a compiler starts, and those that it adds.
pub(crate) struct Functions {
    dir: PathBuf,
    packs: Vec<Pack>,
    index: HashMap<Box<[u8]>, Place>,
    new: Mutex<New>,
}

struct Pack {
    file: File,
    was_used: AtomicBool,
}

struct Place {
    pack: usize,
    offset: u64,
    bytes: u32,
    sum: Sum,
}

struct New {
    part: PathBuf,
    /// Opened with the first function; none after an error.
    file: Option<BufWriter<File>>,
    bytes: u64,
    has_failed: bool,
}

impl std::fmt::Debug for Functions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Functions").field("dir", &self.dir).field("known", &self.index.len()).finish()
    }
}

fn sum(key: &[u8], value: &[u8]) -> Sum {
    let digest = Sha256::new().chain_update(key).chain_update(value).finalize();
    let mut sum = Sum::default();
    sum.copy_from_slice(&digest[..8]);
    sum
}

impl Functions {
    /// Reads what is there; `name` is for what is added, and no other compiler's.
    pub(crate) fn open(dir: &Path, name: &str) -> io::Result<Arc<Functions>> {
        fs::create_dir_all(dir)?;
        let (mut packs, mut index) = (Vec::new(), HashMap::new());
        for (path, ..) in files(dir)? {
            let Ok(file) = File::open(&path) else { continue };
            // A torn pack has what was whole.
            let _ = read(&file, packs.len(), &mut index);
            packs.push(Pack { file, was_used: AtomicBool::new(false) });
        }
        let part = dir.join(format!("{name}.part"));
        let new = Mutex::new(New { part, file: None, bytes: 0, has_failed: false });
        Ok(Arc::new(Functions { dir: dir.to_owned(), packs, index, new }))
    }

    fn find(&self, key: &[u8]) -> Option<Vec<u8>> {
        let place = self.index.get(key)?;
        let pack = self.packs.get(place.pack)?;
        let mut value = vec![0; place.bytes as usize];
        pack.file.read_exact_at(&mut value, place.offset).ok()?;
        pack.was_used.store(true, Ordering::Relaxed);
        (sum(key, &value) == place.sum).then_some(value)
    }

    /// Keeps what was added, and drops what is too much.
    pub(crate) fn finish(&self) -> io::Result<()> {
        for pack in self.packs.iter().filter(|pack| pack.was_used.load(Ordering::Relaxed)) {
            // It may have been removed meanwhile.
            let _ = pack.file.set_modified(SystemTime::now());
        }
        let mut new = self.new.lock();
        if let Some(mut file) = new.file.take()
            && !new.has_failed
        {
            file.flush()?;
            let whole = new.part.with_extension("pack");
            fs::rename(&new.part, &whole)?;
            evict(&self.dir, &whole, BYTES_MAX)?;
        }
        Ok(())
    }
}

impl Drop for Functions {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.new.lock().part);
    }
}

impl wasmtime::CacheStore for Functions {
    fn get(&self, key: &[u8]) -> Option<Cow<'_, [u8]>> {
        self.find(key).map(Cow::Owned)
    }

    fn insert(&self, key: &[u8], value: Vec<u8>) -> bool {
        let (Ok(key_bytes), Ok(value_bytes)) = (u16::try_from(key.len()), u32::try_from(value.len())) else {
            return false;
        };
        let mut new = self.new.lock();
        let more = (HEADER_BYTES + key.len() + value.len()) as u64;
        if new.has_failed || value_bytes > VALUE_BYTES_MAX || new.bytes + more > PACK_BYTES_MAX {
            return false;
        }
        let written = (|| {
            if new.file.is_none() {
                new.file = Some(BufWriter::with_capacity(1 << 20, File::create(&new.part)?));
            }
            let Some(file) = &mut new.file else { return Ok(()) };
            file.write_all(&key_bytes.to_le_bytes())?;
            file.write_all(&value_bytes.to_le_bytes())?;
            file.write_all(&sum(key, &value))?;
            file.write_all(key)?;
            file.write_all(&value)
        })();
        new.bytes += more;
        let result: io::Result<()> = written;
        new.has_failed = result.is_err();
        result.is_ok()
    }
}

/// Puts the functions of a pack into the index.
fn read(file: &File, pack: usize, index: &mut HashMap<Box<[u8]>, Place>) -> io::Result<()> {
    let end = file.metadata()?.len();
    let mut reader = BufReader::with_capacity(256 << 10, file);
    let mut offset = 0;
    while offset < end {
        let mut header = [0; HEADER_BYTES];
        reader.read_exact(&mut header)?;
        let key_bytes = u16::from_le_bytes([header[0], header[1]]);
        let bytes = u32::from_le_bytes([header[2], header[3], header[4], header[5]]);
        let mut sum = Sum::default();
        sum.copy_from_slice(&header[6..]);
        let mut key = vec![0; usize::from(key_bytes)];
        reader.read_exact(&mut key)?;
        offset += HEADER_BYTES as u64 + u64::from(key_bytes);
        if bytes > VALUE_BYTES_MAX || offset + u64::from(bytes) > end {
            return Ok(());
        }
        index.insert(key.into(), Place { pack, offset, bytes, sum });
        offset += u64::from(bytes);
        reader.seek_relative(i64::from(bytes))?;
    }
    Ok(())
}

/// Packs with their sizes, the one used longest ago first.
fn files(dir: &Path) -> io::Result<Vec<(PathBuf, u64, SystemTime)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)?.flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|extension| extension == "pack")
            && let Ok(metadata) = entry.metadata()
        {
            files.push((path, metadata.len(), metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH)));
        }
    }
    files.sort_by_key(|(_, _, used)| *used);
    Ok(files)
}

fn evict(dir: &Path, keep: &Path, bytes_max: u64) -> io::Result<()> {
    let files = files(dir)?;
    let mut all: u64 = files.iter().map(|(_, bytes, _)| bytes).sum();
    for (path, bytes, _) in files {
        if all <= bytes_max {
            break;
        }
        if path != keep && fs::remove_file(&path).is_ok() {
            all -= bytes;
        }
    }
    Ok(())
}

/// Removes what compilers left that were killed.
pub(crate) fn sweep(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.path().extension().is_some_and(|extension| extension == "part") {
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use wasmtime::CacheStore as _;

    use super::*;

    #[test]
    fn what_one_compiler_added_the_next_one_finds_unless_it_was_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let first = Functions::open(dir.path(), "first").unwrap();
        assert!(first.get(b"key").is_none());
        for number in 0..100_u8 {
            assert!(first.insert(&[number; 32], vec![number; usize::from(number) * 100]));
        }
        first.finish().unwrap();
        drop(first);
        let second = Functions::open(dir.path(), "second").unwrap();
        for number in 0..100_u8 {
            assert_eq!(*second.get(&[number; 32]).unwrap(), vec![number; usize::from(number) * 100]);
        }
        second.insert(b"unfinished", vec![1]);
        drop(second);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "what is not finished is not kept");
        // Any damage: nothing is found that was not put there, and nothing panics.
        let pack = dir.path().join("first.pack");
        let whole = fs::read(&pack).unwrap();
        for at in (0..whole.len()).step_by(whole.len() / 150) {
            let mut torn = whole.clone();
            torn[at] ^= 0x41;
            if at % 2 == 0 {
                torn.truncate(at + 1);
            }
            fs::write(&pack, torn).unwrap();
            let functions = Functions::open(dir.path(), "third").unwrap();
            for number in 0..100_u8 {
                if let Some(value) = functions.get(&[number; 32]) {
                    assert_eq!(*value, vec![number; usize::from(number) * 100], "at {at}");
                }
            }
        }
        fs::write(&pack, &whole).unwrap();
        evict(dir.path(), Path::new(""), 10).unwrap();
        assert!(!pack.exists());
    }
}
