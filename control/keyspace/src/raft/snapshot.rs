//! Snapshots on their way: read from the checkpoint a part at a time, received into a file without a name.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use super::codec;
use crate::checkpoint::Reader;
use crate::state::Records;

/// Bytes of records in one part, about; a single record may be larger.
const PART_BYTES: usize = 512 << 10;
/// Larger parts are refused.
const PART_BYTES_MAX: u32 = 16 << 20;

/// Where a snapshot's content is.
pub enum SnapshotData {
    /// In this member's checkpoint.
    Checkpoint(Box<Reader>),
    /// Nowhere now: the checkpoint could not be read.
    Unreadable(io::Error),
    /// In a file that came from another member.
    Received(File),
}

impl SnapshotData {
    /// Every part in order; blocks on the disk.
    pub fn parts(self) -> Box<dyn Iterator<Item = io::Result<Vec<u8>>> + Send> {
        match self {
            SnapshotData::Checkpoint(mut reader) => {
                Box::new(std::iter::from_fn(move || match reader.next(PART_BYTES) {
                    Ok(records) if records.is_empty() => None,
                    Ok(records) => Some(Ok(codec::encode_records(&records))),
                    Err(error) => Some(Err(error)),
                }))
            }
            SnapshotData::Unreadable(error) => Box::new(std::iter::once(Err(error))),
            SnapshotData::Received(file) => {
                let mut file = BufReader::new(file);
                Box::new(std::iter::from_fn(move || read_part(&mut file).transpose()))
            }
        }
    }

    /// All records; blocks on the disk.
    pub fn records(self) -> io::Result<HashMap<Arc<str>, Records>> {
        let mut collections: HashMap<Arc<str>, Records> = HashMap::new();
        for part in self.parts() {
            for mut record in codec::records(&part?)? {
                // One name for all records of a collection.
                if let Some((name, _)) = collections.get_key_value(&record.key.collection) {
                    record.key.collection = name.clone();
                }
                let records = collections.entry(record.key.collection.clone()).or_default();
                records.insert(record.key.name.clone(), Arc::new(record));
            }
        }
        Ok(collections)
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

/// A snapshot that is being received.
pub struct Receiving {
    file: BufWriter<File>,
}

impl Receiving {
    /// Begins; the file lies in `dir` and goes with this value.
    pub fn begin(dir: &Path) -> io::Result<Receiving> {
        let path = dir.join("snapshot.part");
        let file = File::options().read(true).write(true).create(true).truncate(true).mode(0o600).open(&path)?;
        std::fs::remove_file(path)?;
        Ok(Receiving { file: BufWriter::new(file) })
    }

    /// Takes the next part.
    pub fn part(&mut self, part: &[u8]) -> io::Result<()> {
        let length = u32::try_from(part.len()).ok().filter(|length| *length <= PART_BYTES_MAX);
        let length = length.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a part is too large"))?;
        self.file.write_all(&length.to_le_bytes())?;
        self.file.write_all(part)
    }

    /// Ends; what came can be installed.
    pub fn finish(self) -> io::Result<SnapshotData> {
        let mut file = self.file.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.seek(SeekFrom::Start(0))?;
        Ok(SnapshotData::Received(file))
    }
}
