//! The bytes of a backup (docs/backup.md): a line that names format and version, then frames, the last of which says that
//! it was the last. Each frame's checksum is seeded with that of the frame before it, so that a wrong bit, a missing frame
//! and frames of another backup are seen alike.
//!
//! ```text
//! frame: kind (1) · length of the payload (4, little-endian) · payload · CRC-32 of the three, seeded (4)
//! ```

use std::io::{self, Read, Write};

use coracle_keyspace::SecretKey;
use serde_json::Value;

use crate::authority::SharedKeys;

/// How a backup begins, whatever its version.
const NAME: &[u8] = b"coracle backup ";
/// The version that is written. The first, whose keys were not sealed, is read, too.
const VERSION: &[u8] = b"2\n";
const VERSION_1: &[u8] = b"1\n";
/// What the keys are sealed as.
const KEYS: [&str; 2] = ["coracle backup", "keys"];
/// Most bytes of a payload. A part of records is half a megabyte, but for one record that is larger.
const PAYLOAD_BYTES_MAX: u32 = 16 << 20;

/// What a frame holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// What the backup is of; the first frame.
    Head(Value),
    /// The cluster's authority and the key of its tokens, as backups of version 1 have them.
    Keys(Value),
    /// The same, sealed under a key that is not in the backup ([`seal`]).
    Sealed(Vec<u8>),
    /// Objects, as the keyspace encodes them.
    Records(Vec<u8>),
    /// A file of the registry: its path and its length. [`Frame::Content`] follows.
    File(Value),
    /// A piece of the file before it.
    Content(Vec<u8>),
    /// Everything has come; how much of it.
    End(Value),
}

/// Why something is no backup, or no whole one.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It does not begin like one.
    #[error("this is no backup of coracle")]
    Foreign,
    /// Another version.
    #[error(
        "this backup has the version {found:?}, and this coracle reads versions 1 and 2: use one of the backup's version"
    )]
    Version {
        /// What it says.
        found: String,
    },
    /// It ends too early.
    #[error("the backup ends at byte {at}, before its end: it was not written or copied whole")]
    Cut {
        /// Its length.
        at: u64,
    },
    /// Something in it is wrong.
    #[error("the backup is damaged at byte {at}: {why}")]
    Damaged {
        /// Where the frame begins.
        at: u64,
        /// What is wrong.
        why: &'static str,
    },
    /// It cannot be read.
    #[error("read the backup")]
    Read(#[from] io::Error),
}

/// Writes a backup.
pub struct Writer<W> {
    to: W,
    sum: u32,
    /// Bytes written.
    pub bytes: u64,
}

impl<W: Write> Writer<W> {
    /// Begins one.
    pub fn begin(mut to: W) -> io::Result<Writer<W>> {
        to.write_all(NAME)?;
        to.write_all(VERSION)?;
        Ok(Writer { to, sum: 0, bytes: (NAME.len() + VERSION.len()) as u64 })
    }

    /// Writes the next frame.
    pub fn frame(&mut self, frame: &Frame) -> io::Result<()> {
        let json;
        let (kind, payload): (u8, &[u8]) = match frame {
            Frame::Records(payload) => (b'R', payload),
            Frame::Content(payload) => (b'C', payload),
            Frame::Sealed(payload) => (b'S', payload),
            Frame::Head(value) | Frame::Keys(value) | Frame::File(value) | Frame::End(value) => {
                json = value.to_string().into_bytes();
                let kind = match frame {
                    Frame::Head(_) => b'H',
                    Frame::Keys(_) => b'K',
                    Frame::File(_) => b'F',
                    _ => b'E',
                };
                (kind, &json)
            }
        };
        let length = u32::try_from(payload.len()).ok().filter(|length| *length <= PAYLOAD_BYTES_MAX);
        let length = length.ok_or_else(|| io::Error::other("a part of the backup is too large"))?.to_le_bytes();
        self.sum = sum(self.sum, kind, length, payload);
        for part in [&[kind][..], &length, payload, &self.sum.to_le_bytes()] {
            self.to.write_all(part)?;
            self.bytes += part.len() as u64;
        }
        Ok(())
    }

    /// Gives back what it is written to.
    pub fn finish(mut self) -> io::Result<W> {
        self.to.flush()?;
        Ok(self.to)
    }
}

/// Reads a backup, and says what is wrong with it.
pub struct Reader<R> {
    from: R,
    sum: u32,
    at: u64,
    ended: bool,
}

impl<R: Read> Reader<R> {
    /// Begins to read one.
    pub fn begin(mut from: R) -> Result<Reader<R>, Error> {
        let mut name = Vec::new();
        (&mut from).take(NAME.len() as u64).read_to_end(&mut name)?;
        if name != NAME {
            return Err(Error::Foreign);
        }
        let mut version = [0; 1];
        let mut found = Vec::new();
        while found.len() < 20 && found.last() != Some(&b'\n') && from.read(&mut version)? == 1 {
            found.push(version[0]);
        }
        if found != VERSION && found != VERSION_1 {
            return Err(Error::Version { found: String::from_utf8_lossy(&found).trim().to_owned() });
        }
        Ok(Reader { from, sum: 0, at: (NAME.len() + VERSION.len()) as u64, ended: false })
    }

    /// The next frame; `None` after [`Frame::End`], behind which there must be nothing.
    pub fn read(&mut self) -> Result<Option<Frame>, Error> {
        let begin = self.at;
        let damaged = |why| Error::Damaged { at: begin, why };
        if self.ended {
            return match self.from.read(&mut [0; 1])? {
                0 => Ok(None),
                _ => Err(damaged("there is more behind its end")),
            };
        }
        let (kind, length) = (self.exact(1)?[0], self.exact(4)?);
        let length: [u8; 4] = length.try_into().map_err(|_| damaged("a length"))?;
        let size = u32::from_le_bytes(length);
        if size > PAYLOAD_BYTES_MAX {
            return Err(damaged("a frame is too large"));
        }
        let payload = self.exact(u64::from(size))?;
        self.sum = sum(self.sum, kind, length, &payload);
        if self.exact(4)? != self.sum.to_le_bytes() {
            return Err(damaged("a checksum is wrong"));
        }
        let json = || serde_json::from_slice(&payload).map_err(|_| damaged("a frame is not JSON"));
        Ok(Some(match kind {
            b'H' => Frame::Head(json()?),
            b'K' => Frame::Keys(json()?),
            b'F' => Frame::File(json()?),
            b'E' => {
                self.ended = true;
                Frame::End(json()?)
            }
            b'R' => Frame::Records(payload),
            b'S' => Frame::Sealed(payload),
            b'C' => Frame::Content(payload),
            _ => return Err(damaged("a frame of an unknown kind")),
        }))
    }

    /// Where it is.
    pub fn at(&self) -> u64 {
        self.at
    }

    fn exact(&mut self, length: u64) -> Result<Vec<u8>, Error> {
        // Grows with what comes: a wrong length takes no memory.
        let mut bytes = Vec::new();
        self.at += (&mut self.from).take(length).read_to_end(&mut bytes)? as u64;
        if bytes.len() as u64 == length { Ok(bytes) } else { Err(Error::Cut { at: self.at }) }
    }
}

/// The cluster's keys, for [`Frame::Sealed`].
pub fn seal(key: &SecretKey, keys: &Value) -> Vec<u8> {
    key.seal(0, &KEYS, keys.to_string().as_bytes())
}

/// What was sealed; `None` when it is that of another key.
pub fn open(key: &SecretKey, sealed: &[u8]) -> Option<Value> {
    serde_json::from_slice(&key.open(&KEYS, sealed)?).ok()
}

/// The keys, wherever they are read: those that are no pair restore nothing that is sealed, and are damage like any other.
pub fn shared(keys: &Value, at: u64) -> Result<SharedKeys, Error> {
    let text = |field: &str| keys[field].as_str().unwrap_or_default().to_owned();
    let keys =
        SharedKeys { authority: text("authority"), authority_key: text("authorityKey"), token_key: text("tokenKey") };
    match keys.is_pair() {
        true => Ok(keys),
        false => Err(Error::Damaged { at, why: "the authority's key in it does not belong to its certificate" }),
    }
}

fn sum(seed: u32, kind: u8, length: [u8; 4], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(seed);
    hasher.update(&[kind]);
    hasher.update(&length);
    hasher.update(payload);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn frames() -> Vec<Frame> {
        vec![
            Frame::Head(json!({"revision": 7})),
            Frame::Keys(json!({"authority": "x"})),
            Frame::Sealed(vec![2; 90]),
            Frame::Records(vec![1; 300]),
            Frame::File(json!({"path": "blobs/a", "bytes": 3})),
            Frame::Content(vec![1, 2, 3]),
            Frame::End(json!({"records": 1})),
        ]
    }

    fn write(frames: &[Frame]) -> Vec<u8> {
        let mut writer = Writer::begin(Vec::new()).unwrap();
        frames.iter().for_each(|frame| writer.frame(frame).unwrap());
        let bytes = writer.bytes;
        let written = writer.finish().unwrap();
        assert_eq!(written.len() as u64, bytes);
        written
    }

    fn read(bytes: &[u8]) -> Result<Vec<Frame>, Error> {
        let mut reader = Reader::begin(bytes)?;
        let mut frames = Vec::new();
        while let Some(frame) = reader.read()? {
            frames.push(frame);
        }
        Ok(frames)
    }

    #[test]
    fn what_was_written_is_read() {
        assert_eq!(read(&write(&frames())).unwrap(), frames());
    }

    #[test]
    fn whatever_is_changed_cut_or_added_is_refused() {
        let whole = write(&frames());
        for at in 0..whole.len() {
            for bit in [1, 128] {
                let mut wrong = whole.clone();
                wrong[at] ^= bit;
                assert!(read(&wrong).is_err(), "bit {bit} of byte {at}");
            }
            assert!(read(&whole[..at]).is_err(), "cut at {at}");
        }
        assert!(matches!(read(&[&whole[..], b"x"].concat()), Err(Error::Damaged { .. })));
        // Frames that are whole, in another order, or one of them missing.
        let mut other = frames();
        other.swap(1, 2);
        let swapped = write(&other);
        assert!(read(&swapped).is_ok());
        let line = NAME.len() + VERSION.len();
        let first = line + 9 + json!({"revision": 7}).to_string().len();
        assert!(read(&[&whole[..line], &whole[first..]].concat()).is_err(), "without its first frame");
        assert!(matches!(read(b"PK\x03\x04 something else"), Err(Error::Foreign)));
        assert!(matches!(read(b"coracle backup 9\nxyz"), Err(Error::Version { found }) if found == "9"));
        assert!(matches!(read(b""), Err(Error::Foreign)));
    }
}
