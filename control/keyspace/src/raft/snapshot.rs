//! Snapshots on their way: read from the checkpoint a part at a time, received into a file without a name.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use super::codec;
use crate::checkpoint::Reader;
use crate::history::window::{self, Past, Window};
use crate::record::Record;
use crate::state::Records;

/// Bytes of records in one part, about; a single record may be larger.
const PART_BYTES: usize = 512 << 10;
/// Larger parts are refused.
const PART_BYTES_MAX: u32 = 16 << 20;

/// Where a snapshot's content is.
pub enum SnapshotData {
    /// In this member's checkpoint and history.
    Checkpoint(Box<(Reader, Window)>),
    /// Nowhere now: the checkpoint could not be read.
    Unreadable(io::Error),
    /// In a file that came from another member.
    Received(File),
}

/// What a snapshot says.
pub struct Content {
    /// The records.
    pub records: HashMap<Arc<str>, Records>,
    /// What was before; blocks on the disk.
    pub past: Box<dyn Iterator<Item = io::Result<Past>> + Send>,
}

impl SnapshotData {
    /// Every part in order; blocks on the disk.
    pub fn parts(self) -> Box<dyn Iterator<Item = io::Result<Vec<u8>>> + Send> {
        match self {
            SnapshotData::Checkpoint(content) => {
                let (mut reader, window) = *content;
                let records = std::iter::from_fn(move || match reader.next(PART_BYTES) {
                    Ok(records) if records.is_empty() => None,
                    Ok(records) => Some(Ok(codec::encode_records(records.iter()))),
                    Err(error) => Some(Err(error)),
                });
                Box::new(records.chain(window.map(Ok)))
            }
            SnapshotData::Unreadable(error) => Box::new(std::iter::once(Err(error))),
            SnapshotData::Received(file) => {
                let mut file = BufReader::new(file);
                Box::new(std::iter::from_fn(move || read_part(&mut file).transpose()))
            }
        }
    }

    /// All records, and the parts that say what was before; blocks on the disk. A record that is `known` is not there twice: most of
    /// a snapshot for a member that was away is what it has already.
    pub fn content(self, known: impl Fn(&Record) -> Option<Arc<Record>>) -> io::Result<Content> {
        let mut collections: HashMap<Arc<str>, Records> = HashMap::new();
        let mut parts = self.parts();
        let mut past = None;
        for part in parts.by_ref() {
            let part = part?;
            past = window::decode(&part)?.map(Ok);
            // The past comes last.
            if past.is_some() {
                break;
            }
            for mut record in codec::records(&part)? {
                if let Some(known) = known(&record) {
                    let records = collections.entry(known.key.collection.clone()).or_default();
                    records.insert(known.key.name.clone(), known);
                    continue;
                }
                // One name for all records of a collection.
                if let Some((name, _)) = collections.get_key_value(&record.key.collection) {
                    record.key.collection = name.clone();
                }
                let records = collections.entry(record.key.collection.clone()).or_default();
                records.insert(record.key.name.clone(), Arc::new(record));
            }
        }
        let more = parts.filter_map(|part| part.and_then(|part| window::decode(&part)).transpose());
        Ok(Content { records: collections, past: Box::new(past.into_iter().chain(more)) })
    }
}

fn read_part(file: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 4];
    match file.read_exact(&mut length) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        result => result?,
    }
    let length = u32::from_le_bytes(length);
    if length > PART_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a part of a snapshot is too large"));
    }
    let mut part = vec![0; length as usize];
    file.read_exact(&mut part)?;
    Ok(Some(part))
}

/// Number and sum of the parts of a snapshot, so that one that lacks a part, or has a wrong bit, is not installed.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Parts {
    /// How many there are.
    pub count: u64,
    /// The sum of their checksums, each with its place.
    pub sum: u64,
}

impl Parts {
    /// Counts the next part.
    pub fn add(&mut self, part: &[u8]) {
        let mut hasher = crc32fast::Hasher::new_with_initial(self.count as u32);
        hasher.update(part);
        self.count += 1;
        self.sum = self.sum.wrapping_add(u64::from(hasher.finalize()));
    }
}

/// A snapshot that is being received.
pub struct Receiving {
    file: BufWriter<File>,
    parts: Parts,
}

impl Receiving {
    /// Begins; the file is made at `path`, loses its name at once and goes with this value.
    pub fn begin(path: &Path) -> io::Result<Receiving> {
        let file = File::options().read(true).write(true).create(true).truncate(true).mode(0o600).open(path)?;
        std::fs::remove_file(path)?;
        Ok(Receiving { file: BufWriter::new(file), parts: Parts::default() })
    }

    /// Takes the next part.
    pub fn part(&mut self, part: &[u8]) -> io::Result<()> {
        let length = u32::try_from(part.len()).ok().filter(|length| *length <= PART_BYTES_MAX);
        let length = length.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a part is too large"))?;
        self.parts.add(part);
        self.file.write_all(&length.to_le_bytes())?;
        self.file.write_all(part)
    }

    /// Ends; what came can be installed if it is what was `sent`.
    pub fn finish(self, sent: Parts) -> io::Result<SnapshotData> {
        if self.parts != sent {
            let why =
                format!("{} parts of a snapshot came, and {} were sent, or they differ", self.parts.count, sent.count);
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        let mut file = self.file.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.seek(SeekFrom::Start(0))?;
        Ok(SnapshotData::Received(file))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_that_lost_or_changed_a_part_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let sent: [&[u8]; 3] = [b"one", b"two", b"three"];
        let mut parts = Parts::default();
        sent.iter().for_each(|part| parts.add(part));
        let receive = |came: &[&[u8]]| {
            let mut receiving = Receiving::begin(&dir.path().join("part")).unwrap();
            came.iter().for_each(|part| receiving.part(part).unwrap());
            receiving.finish(parts).map(|data| data.parts().collect::<io::Result<Vec<_>>>().unwrap().concat())
        };
        assert_eq!(receive(&sent).unwrap(), b"onetwothree");
        for came in [&sent[..2], &[b"one", b"three", b"two"], &[b"one", b"two", b"threE"], &[]] {
            assert!(receive(came).is_err(), "{came:?}");
        }
    }
}
