//! The state on disk: one redb file, written now and then with what changed, so that the log can be cut.

use std::collections::HashMap;
use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use redb::{Database, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition};

use crate::record::{Key, Record, Revision};
use crate::state::Records;

/// Collection and name.
type Place = (&'static str, &'static str);
/// Revision, offset of the revision in the content, its length, content.
type Content = (u64, u32, u32, &'static [u8]);

const RECORDS: TableDefinition<Place, Content> = TableDefinition::new("records");
/// What the adapter wants to know again: the last applied entry and the membership, encoded by it.
const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");
/// redb's page cache; reads happen at start only.
const CACHE_BYTES: usize = 4 << 20;

/// The file.
pub struct Checkpoint {
    database: Database,
}

/// Everything in a checkpoint.
pub struct Loaded {
    /// What the adapter stored with it; empty in a fresh file.
    pub meta: Vec<u8>,
    /// All records.
    pub records: HashMap<Arc<str>, Records>,
}

impl Checkpoint {
    /// Opens or makes the file.
    pub fn open(path: &Path) -> Result<Checkpoint, redb::Error> {
        let database = Database::builder().set_cache_size(CACHE_BYTES).create(path)?;
        let write = database.begin_write()?;
        write.open_table(RECORDS)?;
        write.open_table(META)?;
        write.commit()?;
        Ok(Checkpoint { database })
    }

    /// Reads everything.
    pub fn load(&self) -> Result<Loaded, redb::Error> {
        let read = self.database.begin_read()?;
        let mut records: HashMap<Arc<str>, Records> = HashMap::new();
        let mut collection: Arc<str> = Arc::from("");
        for entry in read.open_table(RECORDS)?.iter()? {
            let (key, value) = entry?;
            let (in_collection, name) = key.value();
            if *collection != *in_collection {
                collection = Arc::from(in_collection);
            }
            let (revision, at, length, bytes) = value.value();
            let key = Key { collection: collection.clone(), name: Arc::from(name) };
            let record =
                Record::restored(key.clone(), Revision::new(revision), Bytes::copy_from_slice(bytes), at..at + length);
            records.entry(collection.clone()).or_default().insert(key.name, Arc::new(record));
        }
        Ok(Loaded { meta: self.meta()?, records })
    }

    /// What the adapter stored last; empty in a fresh file.
    pub fn meta(&self) -> Result<Vec<u8>, redb::Error> {
        self.reader()?.meta()
    }

    /// A view of what is in the file now, whatever is written later.
    pub fn reader(&self) -> Result<Reader, redb::Error> {
        Ok(Reader { read: self.database.begin_read()?, after: None })
    }

    /// Writes `changes` (`None` removes) and `meta` in one transaction that is on disk when this returns.
    pub fn write(&self, meta: &[u8], changes: &HashMap<Key, Option<Arc<Record>>>) -> Result<(), redb::Error> {
        let write = self.database.begin_write()?;
        {
            let mut table = write.open_table(RECORDS)?;
            for (key, record) in changes {
                put(&mut table, key, record.as_deref())?;
            }
            write.open_table(META)?.insert("raft", meta)?;
        }
        write.commit()?;
        Ok(())
    }

    /// Replaces everything.
    pub fn replace(&self, meta: &[u8], records: &HashMap<Arc<str>, Records>) -> Result<(), redb::Error> {
        let write = self.database.begin_write()?;
        write.delete_table(RECORDS)?;
        {
            let mut table = write.open_table(RECORDS)?;
            for record in records.values().flat_map(|collection| collection.values()) {
                put(&mut table, &record.key, Some(record))?;
            }
            write.open_table(META)?.insert("raft", meta)?;
        }
        write.commit()?;
        Ok(())
    }
}

/// Reads a checkpoint a part at a time.
pub struct Reader {
    read: ReadTransaction,
    after: Option<(String, String)>,
}

impl Reader {
    /// What the adapter stored with it; empty in a fresh file.
    pub fn meta(&self) -> Result<Vec<u8>, redb::Error> {
        let meta = self.read.open_table(META)?.get("raft")?.map(|value| value.value().to_vec());
        Ok(meta.unwrap_or_default())
    }

    /// The next records, about `limit` bytes of them; none at the end.
    pub fn next(&mut self, limit: usize) -> Result<Vec<Record>, redb::Error> {
        let table = self.read.open_table(RECORDS)?;
        let from = match &self.after {
            Some((collection, name)) => Bound::Excluded((collection.as_str(), name.as_str())),
            None => Bound::Unbounded,
        };
        let mut records: Vec<Record> = Vec::new();
        let mut taken = 0;
        for entry in table.range::<(&str, &str)>((from, Bound::Unbounded))? {
            let (key, value) = entry?;
            let ((collection, name), (revision, at, length, content)) = (key.value(), value.value());
            taken += collection.len() + name.len() + content.len();
            let key = Key::new(collection, name);
            let content = Bytes::copy_from_slice(content);
            records.push(Record::restored(key, Revision::new(revision), content, at..at + length));
            if taken >= limit {
                break;
            }
        }
        if let Some(last) = records.last() {
            self.after = Some((last.key.collection.to_string(), last.key.name.to_string()));
        }
        Ok(records)
    }
}

type RecordsTable<'a> = redb::Table<'a, Place, Content>;

fn put(table: &mut RecordsTable<'_>, key: &Key, record: Option<&Record>) -> Result<(), redb::Error> {
    let at = (&*key.collection, &*key.name);
    match record {
        Some(record) => {
            let range = &record.revision_at;
            table.insert(at, (record.revision.get(), range.start, range.end - range.start, &record.bytes[..]))?;
        }
        None => {
            table.remove(at)?;
        }
    }
    Ok(())
}
