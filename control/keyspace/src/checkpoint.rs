//! The state on disk: one redb file, written now and then with what changed, so that the log can be cut.
//!
//! Reading it at start changes nothing ([`Checkpoint::load`]): what redb would repair is repaired in memory, and only the
//! first writing does it in the file. Each record has a checksum, and the number of records and the sum of their checksums
//! stand beside them, so that neither a wrong bit nor a lost page goes unseen.
//!
//! A write that fails for lack of space leaves what was there, and can be tried again. When a *sync* fails, or redb
//! panics, nothing is known ([`Checkpoint::is_broken`]): the process must end, because the log may not be cut by what only memory holds.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io;
use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Once};

use bytes::Bytes;
use parking_lot::Mutex;
use redb::{Database, ReadTransaction, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition};

use crate::host::{self, DiskFile, Host, How};
use crate::record::{Key, Record, Revision};
use crate::state::Records;

/// Collection and name.
type Place = (&'static str, &'static str);
/// Revision, offset of the revision in the content, its length, checksum of all this, content.
type Content = (u64, u32, u32, u32, &'static [u8]);

const RECORDS: TableDefinition<Place, Content> = TableDefinition::new("records");
/// What the adapter wants to know again (`raft`: the last applied entry and the membership, encoded by it), and `sums`.
const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");
/// redb's page cache; reads happen at start only.
const CACHE_BYTES: usize = 4 << 20;
/// redb's pages, and the blocks in which a repair is kept in memory.
const BLOCK_BYTES: usize = 4096;

/// The file.
pub struct Checkpoint {
    host: Host,
    path: PathBuf,
    /// Opened by the first who needs it, and again after a failure.
    database: Mutex<Option<Arc<Database>>>,
    broken: Arc<AtomicBool>,
}

/// Everything in a checkpoint.
pub struct Loaded {
    /// What the adapter stored with it; empty in a fresh file.
    pub meta: Vec<u8>,
    /// All records.
    pub records: HashMap<Arc<str>, Records>,
}

/// Number and sum of the records' checksums, and the checksum of what the adapter stored.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
struct Sums {
    count: u64,
    sum: u64,
    meta: u32,
}

impl Sums {
    fn add(&mut self, crc: u32) {
        self.count += 1;
        self.sum = self.sum.wrapping_add(u64::from(crc));
    }

    fn take(&mut self, crc: u32) {
        self.count = self.count.wrapping_sub(1);
        self.sum = self.sum.wrapping_sub(u64::from(crc));
    }

    /// Whether what was found is what was `written`.
    fn check(self, written: Option<Sums>) -> Result<(), String> {
        match written == Some(self) {
            true => Ok(()),
            false => Err(format!("it holds {} records and not those that were written", self.count)),
        }
    }

    fn encode(&self) -> [u8; 20] {
        let mut bytes = [0; 20];
        bytes[..8].copy_from_slice(&self.count.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.sum.to_le_bytes());
        bytes[16..].copy_from_slice(&self.meta.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Sums> {
        let (count, rest) = bytes.split_first_chunk()?;
        let (sum, rest) = rest.split_first_chunk()?;
        let meta = u32::from_le_bytes(rest.try_into().ok()?);
        Some(Sums { count: u64::from_le_bytes(*count), sum: u64::from_le_bytes(*sum), meta })
    }
}

/// Makes an empty file; blocks on the disk.
pub fn create(host: &Host, path: &Path) -> io::Result<()> {
    let file = host.disk.open(path, How::Create)?;
    let broken = Arc::new(AtomicBool::new(false));
    let database = build(Direct { file, broken }).map_err(io_error)?;
    let write = database.begin_write().map_err(io_error)?;
    let made = || -> Result<(), redb::Error> {
        write.open_table(RECORDS)?;
        let mut meta = write.open_table(META)?;
        meta.insert("raft", &[][..])?;
        meta.insert("sums", &Sums { meta: crc32fast::hash(&[]), ..Sums::default() }.encode()[..])?;
        Ok(())
    };
    made().map_err(io_error)?;
    write.commit().map_err(io_error)
}

impl Checkpoint {
    /// Reads everything in the file at `path`, and changes nothing; blocks on the disk.
    pub fn load(host: &Host, path: &Path) -> io::Result<(Checkpoint, Loaded)> {
        let file = match host.disk.open(path, How::Read) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(host::missing(path, "it holds everything that the log was cut by"));
            }
            file => file?,
        };
        let length = file.len()?;
        if length == 0 {
            return Err(host::damaged(path, 0, "it is empty"));
        }
        let overlay = Overlay { file, blocks: Mutex::new(BTreeMap::new()), length: Mutex::new(length) };
        // redb believes its own pages: in what is damaged it may find what it never wrote.
        let read = quietly(|| -> Result<_, redb::Error> {
            let database = build(overlay)?;
            load(&database.begin_read()?)
        });
        let loaded = match read {
            Ok(Ok(Ok(loaded))) => loaded,
            Ok(Ok(Err(why))) => return Err(host::damaged(path, 0, why)),
            // These two are redb's own words for what it finds; the others are the disk's.
            Ok(Err(redb::Error::Io(error)))
                if !matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData) =>
            {
                return Err(error);
            }
            Ok(Err(error)) => return Err(host::damaged(path, 0, error)),
            Err(_) => return Err(host::damaged(path, 0, "its pages contradict each other")),
        };
        let broken = Arc::new(AtomicBool::new(false));
        Ok((Checkpoint { host: host.clone(), path: path.into(), database: Mutex::new(None), broken }, loaded))
    }

    /// Whether a sync of it failed, or redb itself.
    pub fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }

    fn broken(&self) -> io::Error {
        io::Error::other(format!("writing {} failed before, so that nothing can be known of it", self.path.display()))
    }

    fn database(&self) -> io::Result<Arc<Database>> {
        let mut database = self.database.lock();
        if self.is_broken() {
            return Err(self.broken());
        }
        if let Some(database) = &*database {
            return Ok(database.clone());
        }
        let file = self.host.disk.open(&self.path, How::Write)?;
        let direct = Direct { file, broken: self.broken.clone() };
        let Ok(opened) = catch_unwind(AssertUnwindSafe(|| build(direct))) else {
            self.broken.store(true, Ordering::Release);
            return Err(self.broken());
        };
        let opened = Arc::new(opened.map_err(io_error)?);
        *database = Some(opened.clone());
        Ok(opened)
    }

    /// A view of what is in the file now, whatever is written later.
    pub fn reader(&self) -> io::Result<Reader> {
        let read = self.database()?.begin_read().map_err(io_error)?;
        let (meta, sums) = metas(&read).map_err(io_error)?;
        let found = Sums { meta: crc32fast::hash(&meta), ..Sums::default() };
        Ok(Reader { read, meta, sums, found, after: None })
    }

    /// Writes `changes` (`None` removes) and `meta` in one transaction that is on disk when this returns.
    pub fn write(&self, meta: &[u8], changes: &HashMap<Key, Option<Arc<Record>>>) -> io::Result<()> {
        self.transaction(meta, false, changes.iter().map(|(key, record)| (key, record.as_deref())))
    }

    /// Replaces everything.
    pub fn replace(&self, meta: &[u8], records: &HashMap<Arc<str>, Records>) -> io::Result<()> {
        let records = records.values().flat_map(|collection| collection.values());
        self.transaction(meta, true, records.map(|record| (&record.key, Some(&**record))))
    }

    fn transaction<'a>(
        &self,
        meta: &[u8],
        anew: bool,
        changes: impl Iterator<Item = (&'a Key, Option<&'a Record>)>,
    ) -> io::Result<()> {
        let database = self.database()?;
        // In the tree's order, which is quicker, and the same for the same changes.
        let mut changes: Vec<_> = changes.collect();
        changes.sort_unstable_by_key(|(key, _)| *key);
        let done = || -> Result<(), redb::Error> {
            let mut write = database.begin_write()?;
            // What makes an open after a crash quick is written with each commit.
            write.set_quick_repair(true);
            if anew {
                write.delete_table(RECORDS)?;
            }
            {
                let mut table = write.open_table(RECORDS)?;
                let mut metas = write.open_table(META)?;
                let mut sums = Sums::default();
                if !anew {
                    let stored = metas.get("sums")?.and_then(|bytes| Sums::decode(bytes.value()));
                    sums = stored.ok_or_else(|| redb::Error::Corrupted("the sums are missing".into()))?;
                }
                for (key, record) in &changes {
                    put(&mut table, key, *record, &mut sums)?;
                }
                sums.meta = crc32fast::hash(meta);
                metas.insert("raft", meta)?;
                metas.insert("sums", &sums.encode()[..])?;
            }
            write.commit()?;
            Ok(())
        };
        let Ok(done) = catch_unwind(AssertUnwindSafe(done)) else {
            self.broken.store(true, Ordering::Release);
            // Closing it would stumble as well; the process ends before long.
            std::mem::forget((self.database.lock().take(), database));
            return Err(self.broken());
        };
        match done {
            // Whatever became of it: nothing may be cut by it.
            Ok(()) if self.is_broken() => Err(self.broken()),
            Ok(()) => Ok(()),
            Err(error) => {
                // Whatever redb keeps of it in memory is not to be trusted; the file is whole.
                self.database.lock().take();
                Err(io_error(error))
            }
        }
    }

    /// Closes the file, once nobody writes or reads it any more.
    pub fn close(&self) {
        self.database.lock().take();
    }
}

thread_local! {
    /// Whether a panic of this thread is part of the answer.
    static IS_QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Does `work`, and gives its panic without a word about it: whoever asked says what it means.
fn quietly<T>(work: impl FnOnce() -> T) -> std::thread::Result<T> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let others = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !IS_QUIET.get() {
                others(panic);
            }
        }));
    });
    IS_QUIET.set(true);
    let done = catch_unwind(AssertUnwindSafe(work));
    IS_QUIET.set(false);
    done
}

fn build(backend: impl StorageBackend) -> Result<Database, redb::Error> {
    Ok(Database::builder().set_cache_size(CACHE_BYTES).create_with_backend(backend)?)
}

fn io_error(error: impl Into<redb::Error>) -> io::Error {
    match error.into() {
        redb::Error::Io(error) => error,
        error => io::Error::other(error),
    }
}

/// What the adapter stored, and what the records are to come to.
fn metas(read: &ReadTransaction) -> Result<(Vec<u8>, Option<Sums>), redb::Error> {
    let metas = read.open_table(META)?;
    let meta = metas.get("raft")?.map(|value| value.value().to_vec()).unwrap_or_default();
    Ok((meta, metas.get("sums")?.and_then(|value| Sums::decode(value.value()))))
}

/// Everything in the file, or what is wrong with it.
fn load(read: &ReadTransaction) -> Result<Result<Loaded, String>, redb::Error> {
    let (meta, sums) = metas(read)?;
    let mut found = Sums { meta: crc32fast::hash(&meta), ..Sums::default() };
    let mut records: HashMap<Arc<str>, Records> = HashMap::new();
    let mut collection: Arc<str> = Arc::from("");
    for entry in read.open_table(RECORDS)?.iter()? {
        let (key, value) = entry?;
        let (in_collection, name) = key.value();
        if *collection != *in_collection {
            collection = Arc::from(in_collection);
        }
        let key = Key { collection: collection.clone(), name: Arc::from(name) };
        match restore(key, value.value()) {
            Ok((record, crc)) => {
                found.add(crc);
                records.entry(collection.clone()).or_default().insert(record.key.name.clone(), Arc::new(record));
            }
            Err(why) => return Ok(Err(why)),
        }
    }
    Ok(found.check(sums).map(|()| Loaded { meta, records }))
}

/// The record that is stored as `content`, and its checksum.
fn restore(key: Key, content: (u64, u32, u32, u32, &[u8])) -> Result<(Record, u32), String> {
    let (revision, at, length, crc, bytes) = content;
    let end = at.checked_add(length).filter(|end| *end as usize <= bytes.len());
    match end {
        Some(end) if checksum(&key, revision, at, length, bytes) == crc => {
            Ok((Record::restored(key, Revision::new(revision), Bytes::copy_from_slice(bytes), at..end), crc))
        }
        _ => Err(format!("the record {} of {} has a wrong checksum", key.name, key.collection)),
    }
}

fn checksum(key: &Key, revision: u64, at: u32, length: u32, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    for part in [&(key.collection.len() as u64).to_le_bytes()[..], key.collection.as_bytes(), key.name.as_bytes()] {
        hasher.update(part);
    }
    hasher.update(&revision.to_le_bytes());
    hasher.update(&at.to_le_bytes());
    hasher.update(&length.to_le_bytes());
    hasher.update(bytes);
    hasher.finalize()
}

/// Reads a checkpoint a part at a time.
pub struct Reader {
    read: ReadTransaction,
    meta: Vec<u8>,
    sums: Option<Sums>,
    /// Of what was read so far.
    found: Sums,
    after: Option<(String, String)>,
}

impl Reader {
    /// What the adapter stored with it; empty in a fresh file.
    pub fn meta(&self) -> &[u8] {
        &self.meta
    }

    /// The next records, about `limit` bytes of them; none at the end, once all were read that were written.
    pub fn next(&mut self, limit: usize) -> io::Result<Vec<Record>> {
        let damaged = |why| io::Error::new(io::ErrorKind::InvalidData, why);
        let table = self.read.open_table(RECORDS).map_err(io_error)?;
        let from = match &self.after {
            Some((collection, name)) => Bound::Excluded((collection.as_str(), name.as_str())),
            None => Bound::Unbounded,
        };
        let mut records: Vec<Record> = Vec::new();
        let mut taken = 0;
        for entry in table.range::<(&str, &str)>((from, Bound::Unbounded)).map_err(io_error)? {
            let (key, value) = entry.map_err(io_error)?;
            let ((collection, name), content) = (key.value(), value.value());
            taken += collection.len() + name.len() + content.4.len();
            let (record, crc) = restore(Key::new(collection, name), content).map_err(damaged)?;
            self.found.add(crc);
            records.push(record);
            if taken >= limit {
                break;
            }
        }
        match records.last() {
            Some(last) => self.after = Some((last.key.collection.to_string(), last.key.name.to_string())),
            None => self.found.check(self.sums).map_err(damaged)?,
        }
        Ok(records)
    }
}

type RecordsTable<'a> = redb::Table<'a, Place, Content>;

fn put(table: &mut RecordsTable<'_>, key: &Key, record: Option<&Record>, sums: &mut Sums) -> Result<(), redb::Error> {
    let place = (&*key.collection, &*key.name);
    let before = match record {
        Some(record) => {
            let (bytes, at) = record.stored();
            let (start, length) = (at.start, at.end - at.start);
            let revision = record.revision.get();
            let crc = checksum(key, revision, start, length, bytes);
            sums.add(crc);
            table.insert(place, (revision, start, length, crc, &bytes[..]))?
        }
        None => table.remove(place)?,
    };
    if let Some(before) = before {
        sums.take(before.value().3);
    }
    Ok(())
}

/// The file as redb writes it.
struct Direct {
    file: Arc<dyn DiskFile>,
    broken: Arc<AtomicBool>,
}

impl fmt::Debug for Direct {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.file.fmt(f)
    }
}

impl StorageBackend for Direct {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read_at(out, offset)
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let before = self.file.len()?;
        if length <= before {
            return self.file.set_len(length);
        }
        // All of the space, before anything is written to it.
        self.file.reserve(before, length - before).inspect_err(|_| {
            let _ = self.file.set_len(before);
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data().inspect_err(|_| self.broken.store(true, Ordering::Release))
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write_at(data, offset)
    }
}

/// The file with everything that is written kept in memory.
struct Overlay {
    file: Arc<dyn DiskFile>,
    blocks: Mutex<BTreeMap<u64, Box<[u8; BLOCK_BYTES]>>>,
    length: Mutex<u64>,
}

impl fmt::Debug for Overlay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.file.fmt(f)
    }
}

impl Overlay {
    /// Fills `out` from the file, with zeros behind its end.
    fn below(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let there = self.file.len()?.saturating_sub(offset).min(out.len() as u64) as usize;
        out[there..].fill(0);
        self.file.read_at(&mut out[..there], offset)
    }
}

impl StorageBackend for Overlay {
    fn len(&self) -> io::Result<u64> {
        Ok(*self.length.lock())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        if offset.checked_add(out.len() as u64).is_none_or(|end| end > *self.length.lock()) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.below(offset, out)?;
        let end = offset + out.len() as u64;
        let block = BLOCK_BYTES as u64;
        for (number, bytes) in self.blocks.lock().range(offset / block..end.div_ceil(block)) {
            let (from, to) = ((number * block).max(offset), ((number + 1) * block).min(end));
            let source = &bytes[(from - number * block) as usize..(to - number * block) as usize];
            out[(from - offset) as usize..(to - offset) as usize].copy_from_slice(source);
        }
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        *self.length.lock() = length;
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let block = BLOCK_BYTES as u64;
        let end = offset + data.len() as u64;
        let mut blocks = self.blocks.lock();
        for number in offset / block..end.div_ceil(block) {
            let start = number * block;
            let bytes = match blocks.entry(number) {
                std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
                std::collections::btree_map::Entry::Vacant(entry) => {
                    let mut bytes = Box::new([0; BLOCK_BYTES]);
                    self.below(start, &mut bytes[..])?;
                    entry.insert(bytes)
                }
            };
            let (from, to) = (start.max(offset), (start + block).min(end));
            bytes[(from - start) as usize..(to - start) as usize]
                .copy_from_slice(&data[(from - offset) as usize..(to - offset) as usize]);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What another member would be sent would lack it as well.
    #[test]
    fn who_reads_what_is_not_all_that_was_written_is_told_so() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.redb");
        create(&Host::real(), &path).unwrap();
        let (checkpoint, _) = Checkpoint::load(&Host::real(), &path).unwrap();
        let value = crate::Value { bytes: Bytes::from_static(b"x"), revision_at: 0 };
        let record = |name: &str| Arc::new(Record::new(Key::new("things", name), &value, Revision::new(1)));
        let changes = ["a", "b", "c"].map(|name| (Key::new("things", name), Some(record(name))));
        checkpoint.write(b"meta", &changes.into()).unwrap();
        let all = |limit| {
            let (mut reader, mut count) = (checkpoint.reader().unwrap(), 0);
            assert_eq!(reader.meta(), b"meta");
            loop {
                match reader.next(limit) {
                    Ok(records) if records.is_empty() => return Ok(count),
                    Ok(records) => count += records.len(),
                    Err(error) => return Err(error.to_string()),
                }
            }
        };
        assert_eq!((all(1), all(1 << 20)), (Ok(3), Ok(3)));
        // A page that a disk took back: one record fewer than were counted.
        let write = checkpoint.database().unwrap().begin_write().unwrap();
        write.open_table(RECORDS).unwrap().remove(("things", "b")).unwrap();
        write.commit().unwrap();
        for limit in [1, 1 << 20] {
            assert!(all(limit).is_err_and(|why| why.contains("2 records and not those")), "{limit}");
        }
    }

    /// Whatever byte of redb's first page is wrong, a start says which file it is and what to do, and says nothing else.
    #[test]
    fn a_damaged_file_is_named_with_what_to_do_and_no_panic_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let (host, path) = (Host::real(), dir.path().join("state.redb"));
        create(&host, &path).unwrap();
        let whole = std::fs::read(&path).unwrap();
        let mut refused = 0;
        for at in 0..320 {
            let mut damaged = whole.clone();
            damaged[at] ^= 0xff;
            std::fs::write(&path, damaged).unwrap();
            // What redb repairs by its second copy, or does not read, is no damage.
            let Err(error) = Checkpoint::load(&host, &path) else { continue };
            let text = error.to_string();
            assert!(text.contains("state.redb is damaged") && text.contains(host::LOST_DATA), "byte {at}: {text}");
            refused += 1;
        }
        assert!(refused >= 9, "its magic number at the least: {refused}");
        let told = quietly(|| panic!("nobody hears this"));
        assert!(told.is_err() && !IS_QUIET.get());
    }
}
