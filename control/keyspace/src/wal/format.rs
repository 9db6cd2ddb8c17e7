//! The bytes of a segment and of the index: how they are written and what may be believed when they are read.
//!
//! ```text
//! segment  = head 64 │ (frame │ mark)* │ zeros                        all numbers little endian
//! head     = "CORALOG2" │ number u64 │ nonce u64 │ end u64 │ chain u32 │ length u64 │ zeros │ crc32 of the 60 bytes before
//! frame    = length u32 │ crc u32 │ body                              crc of length and body, seeded by the frame before
//! mark     = "\xF5SYN" │ its offset u32 │ chain u32 │ crc32 of nonce and the 12 bytes before
//! index    = 2 slots, 512 bytes apart: sequence u64 │ first u64 │ last u64 │ crc32 of the 24 bytes before
//! ```
//!
//! A **mark** is written after a sync and says that everything before it was synced. So a bad frame with a mark behind it
//! is damage, and one without is a write that a crash tore: nobody was answered. The head of a segment says where the
//! one before it ended (`end`, the last frame's, and `chain`, its checksum), which is the mark of that one's end; the
//! **index** says which segments there are, so that a missing one is missed. The nonce keeps contents that look like marks
//! from being taken for any.

use std::path::Path;

use crate::host;

pub const HEAD_BYTES: u64 = 64;
pub const FRAME_HEAD: usize = 8;
pub const MARK_BYTES: usize = 16;
/// Larger bodies are refused; a transaction is far smaller.
pub const BODY_BYTES_MAX: usize = 8 << 20;
/// Zeros that follow the last frame or mark.
pub const END: [u8; 4] = [0; 4];
const MAGIC: &[u8; 8] = b"CORALOG2";
/// No frame has a length like this.
const MARK: [u8; 4] = *b"\xF5SYN";
const SLOT_DISTANCE: u64 = 512;
/// Bytes of the index.
pub const INDEX_BYTES: u64 = 2 * SLOT_DISTANCE;
/// Seed of the index's checksums, so that zeros are no slot.
const INDEX_SEED: u32 = 0x434F_5241;

/// The beginning of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Which segment.
    pub number: u64,
    /// Chosen when it was made.
    pub nonce: u64,
    /// Where the last frame of the segment before ended; 0 in the first one.
    pub end: u64,
    /// Checksum of that frame.
    pub chain: u32,
    /// Bytes of this file, so that a cut one is known.
    pub length: u64,
}

impl Head {
    /// Its bytes.
    pub fn encode(&self) -> [u8; HEAD_BYTES as usize] {
        let mut bytes = [0; HEAD_BYTES as usize];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..16].copy_from_slice(&self.number.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.nonce.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.end.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.chain.to_le_bytes());
        bytes[36..44].copy_from_slice(&self.length.to_le_bytes());
        let crc = crc32fast::hash(&bytes[..60]);
        bytes[60..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8], number: u64) -> Result<Head, &'static str> {
        let bytes = bytes.get(..HEAD_BYTES as usize).ok_or("it is too short for a head")?;
        if &bytes[..8] != MAGIC {
            return Err("it does not begin as a segment of the log");
        }
        if crc32fast::hash(&bytes[..60]) != u32_at(bytes, 60) {
            return Err("its head has a wrong checksum");
        }
        let head = Head {
            number: u64_at(bytes, 8),
            nonce: u64_at(bytes, 16),
            end: u64_at(bytes, 24),
            chain: u32_at(bytes, 32),
            length: u64_at(bytes, 36),
        };
        if head.number == number { Ok(head) } else { Err("it is another segment, by its head") }
    }

    /// Seed of the first frame.
    pub fn chain_begin(&self) -> u32 {
        u32_at(&self.encode(), 60)
    }
}

/// A body and where it stands.
#[derive(Clone, Debug)]
pub struct Body {
    /// What it says.
    pub bytes: Vec<u8>,
    /// In which segment.
    pub segment: u64,
    /// At which byte of it its frame begins.
    pub offset: u64,
}

/// What a segment holds.
pub struct Segment {
    /// Its beginning.
    pub head: Head,
    /// Its frames, in order.
    pub bodies: Vec<Body>,
    /// Where the last frame ends.
    pub frames_end: u64,
    /// Where what is good ends: there, or behind a mark that follows.
    pub end: u64,
    /// Checksum of the last frame.
    pub chain: u32,
    /// Everything before this was synced.
    pub synced: u64,
    /// Whether something other than zeros follows `end`: a torn write.
    pub torn: bool,
}

/// Something that cannot be what was written.
#[derive(Debug)]
pub struct Damage {
    /// Where.
    pub offset: u64,
    /// What.
    pub why: String,
}

/// Reads the segment `number`. An end that was torn by a crash is an end; what is broken before a mark is damage.
pub fn parse(content: &[u8], number: u64) -> Result<Segment, Damage> {
    let head = Head::decode(content, number).map_err(|why| Damage { offset: 0, why: why.into() })?;
    if content.len() as u64 != head.length {
        let why = format!("it was made {} bytes long", head.length);
        return Err(Damage { offset: head.length.min(content.len() as u64), why });
    }
    let start = HEAD_BYTES as usize;
    let mut bodies = Vec::new();
    let (mut at, mut frames_end, mut synced, mut chain) = (start, start, start, head.chain_begin());
    loop {
        match next(&content[at..], at, chain, head.nonce) {
            Next::Frame { body, crc } => {
                bodies.push(Body { bytes: body.to_vec(), segment: number, offset: at as u64 });
                at += FRAME_HEAD + body.len();
                (frames_end, chain) = (at, crc);
            }
            Next::Mark => {
                synced = at;
                at += MARK_BYTES;
            }
            Next::End => break,
        }
    }
    if let Some(mark) = find_mark(content, at, head.nonce) {
        let why = format!("the log was synced up to byte {mark}, and what stands here is not what was written");
        return Err(Damage { offset: at as u64, why });
    }
    let torn = content[at..].iter().any(|byte| *byte != 0);
    let (frames_end, end, synced) = (frames_end as u64, at as u64, synced as u64);
    Ok(Segment { head, bodies, frames_end, end, chain, synced, torn })
}

enum Next<'a> {
    Frame { body: &'a [u8], crc: u32 },
    Mark,
    End,
}

fn next(rest: &[u8], at: usize, chain: u32, nonce: u64) -> Next<'_> {
    let Some(word) = rest.get(..4) else { return Next::End };
    if word == MARK {
        let good = rest.get(..MARK_BYTES).is_some_and(|bytes| *bytes == mark(at as u64, chain, nonce));
        return if good { Next::Mark } else { Next::End };
    }
    let length = u32_at(rest, 0) as usize;
    if length == 0 || length > BODY_BYTES_MAX {
        return Next::End;
    }
    let Some(body) = rest.get(FRAME_HEAD..FRAME_HEAD + length) else { return Next::End };
    let crc = checksum(chain, body);
    if u32_at(rest, 4) == crc { Next::Frame { body, crc } } else { Next::End }
}

/// The last mark behind `from`, whatever its chain: where that broke is what is asked.
fn find_mark(content: &[u8], from: usize, nonce: u64) -> Option<usize> {
    let mut found = None;
    let mut at = from;
    while let Some(next) = content.get(at..).and_then(|rest| rest.iter().position(|byte| *byte == MARK[0])) {
        at += next;
        if let Some(bytes) = content.get(at..at + MARK_BYTES)
            && *bytes == mark(at as u64, u32_at(bytes, 8), nonce)
        {
            found = Some(at);
        }
        at += 1;
    }
    found
}

/// The mark at `offset`.
pub fn mark(offset: u64, chain: u32, nonce: u64) -> [u8; MARK_BYTES] {
    let mut bytes = [0; MARK_BYTES];
    bytes[..4].copy_from_slice(&MARK);
    bytes[4..8].copy_from_slice(&(offset as u32).to_le_bytes());
    bytes[8..12].copy_from_slice(&chain.to_le_bytes());
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&nonce.to_le_bytes());
    hasher.update(&bytes[..12]);
    bytes[12..].copy_from_slice(&hasher.finalize().to_le_bytes());
    bytes
}

/// The checksum of a frame whose predecessor has `seed`.
pub fn checksum(seed: u32, body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(seed);
    hasher.update(&(body.len() as u32).to_le_bytes());
    hasher.update(body);
    hasher.finalize()
}

/// Which segments there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Index {
    /// Grows with each change; chooses the slot.
    pub sequence: u64,
    /// The oldest segment that is needed.
    pub first: u64,
    /// The newest that anything was answered from.
    pub last: u64,
}

impl Index {
    /// Its bytes and where they go.
    pub fn encode(&self) -> ([u8; 28], u64) {
        let mut bytes = [0; 28];
        bytes[..8].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.first.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.last.to_le_bytes());
        let crc = index_checksum(&bytes[..24]);
        bytes[24..].copy_from_slice(&crc.to_le_bytes());
        (bytes, (self.sequence % 2) * SLOT_DISTANCE)
    }

    /// The newest that `content` holds whole.
    pub fn decode(content: &[u8]) -> Option<Index> {
        let slot = |offset: u64| {
            let bytes = content.get(offset as usize..offset as usize + 28)?;
            let index = Index { sequence: u64_at(bytes, 0), first: u64_at(bytes, 8), last: u64_at(bytes, 16) };
            (index_checksum(&bytes[..24]) == u32_at(bytes, 24) && index.encode().1 == offset).then_some(index)
        };
        [slot(0), slot(SLOT_DISTANCE)].into_iter().flatten().max_by_key(|index| index.sequence)
    }
}

fn index_checksum(bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(INDEX_SEED);
    hasher.update(bytes);
    hasher.finalize()
}

/// The error for `damage` in the file at `path`.
pub fn error(path: &Path, damage: &Damage) -> std::io::Error {
    host::damaged(path, damage.offset, &damage.why)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A segment with `groups` of bodies, a mark after each but the last.
    fn written(groups: &[Vec<Vec<u8>>]) -> Vec<u8> {
        let framed: usize = groups.iter().flatten().map(|body| FRAME_HEAD + body.len()).sum();
        let length = 64 + framed + (groups.len() - 1) * MARK_BYTES + 200;
        let head = Head { number: 3, nonce: 77, end: 5, chain: 6, length: length as u64 };
        let mut content = head.encode().to_vec();
        let mut chain = head.chain_begin();
        for (at, group) in groups.iter().enumerate() {
            for body in group {
                chain = checksum(chain, body);
                content.extend_from_slice(&(body.len() as u32).to_le_bytes());
                content.extend_from_slice(&chain.to_le_bytes());
                content.extend_from_slice(body);
            }
            if at + 1 < groups.len() {
                content.extend_from_slice(&mark(content.len() as u64, chain, head.nonce));
            }
        }
        content.resize(length, 0);
        content
    }

    fn groups() -> impl Strategy<Value = Vec<Vec<Vec<u8>>>> {
        let body = prop::collection::vec(any::<u8>(), 1..40);
        prop::collection::vec(prop::collection::vec(body, 1..4), 1..6)
    }

    proptest! {
        /// Any bytes are a segment or damage, and never more.
        #[test]
        fn any_bytes_are_read_or_refused(mut content in prop::collection::vec(any::<u8>(), 0..400), headed in any::<bool>()) {
            if headed {
                content.resize(content.len().max(64), 0);
                let head = Head { number: 3, nonce: 1, end: 0, chain: 0, length: content.len() as u64 }.encode();
                content[..64].copy_from_slice(&head);
            }
            if let Ok(segment) = parse(&content, 3) {
                prop_assert!(segment.end <= content.len() as u64 && segment.synced <= segment.end);
            }
            let _ = Index::decode(&content);
        }

        /// One wrong bit before the last mark is refused; behind it, what is before the bit is whole.
        #[test]
        fn a_wrong_bit_is_refused_or_behind_what_was_synced(groups in groups(), at in any::<prop::sample::Index>(), bit in 0..8) {
            let content = written(&groups);
            let whole = parse(&content, 3).unwrap();
            let said: Vec<Vec<u8>> = whole.bodies.iter().map(|body| body.bytes.clone()).collect();
            prop_assert_eq!(&said, &groups.concat());
            let mut wrong = content.clone();
            let at = at.index(whole.end as usize);
            wrong[at] ^= 1_u8 << bit;
            match parse(&wrong, 3) {
                Err(damage) => prop_assert!(damage.offset as usize <= at),
                Ok(segment) => {
                    prop_assert!(at as u64 >= whole.synced);
                    for (body, said) in segment.bodies.iter().zip(&said) {
                        prop_assert_eq!(&body.bytes, said);
                    }
                }
            }
        }
    }

    #[test]
    fn contents_that_look_like_marks_are_none() {
        let fake = mark(HEAD_BYTES + 8, 0, 76).to_vec();
        let mut content = written(&[vec![b"torn".to_vec(), fake]]);
        content[64 + 8] ^= 1;
        let segment = parse(&content, 3).unwrap();
        assert!(segment.bodies.is_empty() && segment.torn);
    }

    #[test]
    fn a_torn_slot_leaves_the_other() {
        let mut content = vec![0; INDEX_BYTES as usize];
        assert_eq!(Index::decode(&content), None);
        for index in [Index { sequence: 4, first: 1, last: 2 }, Index { sequence: 5, first: 1, last: 3 }] {
            let (bytes, at) = index.encode();
            content[at as usize..at as usize + 28].copy_from_slice(&bytes);
            assert_eq!(Index::decode(&content), Some(index));
        }
        content[SLOT_DISTANCE as usize + 3] ^= 1;
        assert_eq!(Index::decode(&content).map(|index| index.last), Some(2));
    }
}
