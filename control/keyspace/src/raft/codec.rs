//! The bytes of log entries, votes and checkpoints' heads: what goes to disk, in the words of this file's own types, so
//! that a change in openraft's cannot change the format unseen.
//!
//! Everything is postcard. A content is copied once when it is encoded, and not at all when it is decoded: it stays a
//! slice of the frame it came in.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;

use bytes::Bytes;
use openraft::{BasicNode, EntryPayload, Membership, StoredMembership};
use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::types::{Entry, LeaderId, LogId, MemberId, Stored, Transaction, Vote};
use crate::record::{Guard, Key, Op, Record, Revision, Value};

/// A body of the log.
pub enum Frame {
    /// The member voted.
    Vote(Vote),
    /// An entry was appended.
    Entry(Entry),
    /// Entries after this one are gone; all of them when `None`.
    Truncate(Option<LogId>),
    /// Entries up to this one are gone: a checkpoint has what they did.
    Purge(LogId),
    /// Entries up to this one are on the disks of a majority.
    Committed(LogId),
}

/// What a checkpoint remembers of the log.
#[derive(Clone, Default, PartialEq, Debug)]
pub struct Head {
    /// The last entry in it.
    pub applied: Option<LogId>,
    /// The membership as of that entry.
    pub membership: Stored,
}

/// Bytes that serde treats as bytes and not as a list of numbers.
pub(super) struct Blob<'a>(pub(super) &'a [u8]);

impl Serialize for Blob<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Blob<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Borrowed;
        impl<'de> Visitor<'de> for Borrowed {
            type Value = &'de [u8];
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }
            fn visit_borrowed_bytes<E>(self, bytes: &'de [u8]) -> Result<Self::Value, E> {
                Ok(bytes)
            }
        }
        deserializer.deserialize_bytes(Borrowed).map(Blob)
    }
}

#[derive(Serialize, Deserialize)]
enum WireFrame<'a> {
    Vote {
        term: u64,
        member: MemberId,
        committed: bool,
    },
    Entry {
        id: WireLogId,
        #[serde(borrow)]
        payload: WirePayload<'a>,
    },
    Truncate(Option<WireLogId>),
    Purge(WireLogId),
    Committed(WireLogId),
}

#[derive(Clone, Copy, Serialize, Deserialize)]
pub(super) struct WireLogId {
    term: u64,
    member: MemberId,
    index: u64,
}

#[derive(Serialize, Deserialize)]
enum WirePayload<'a> {
    Blank,
    Transaction(#[serde(borrow)] Vec<WireOp<'a>>),
    Membership(WireMembership<'a>),
}

#[derive(Serialize, Deserialize)]
pub(super) struct WireMembership<'a> {
    voters: Vec<Vec<MemberId>>,
    #[serde(borrow)]
    members: Vec<(MemberId, &'a str)>,
}

#[derive(Serialize, Deserialize)]
pub(super) enum WireGuard {
    None,
    Absent,
    Present,
    Revision(u64),
}

#[derive(Serialize, Deserialize)]
pub(super) enum WireOp<'a> {
    Put {
        collection: &'a str,
        name: &'a str,
        guard: WireGuard,
        revision_at: u32,
        #[serde(borrow)]
        bytes: Blob<'a>,
    },
    Delete {
        collection: &'a str,
        name: &'a str,
        guard: WireGuard,
    },
    // Variants are known by their position: new ones come last.
    Check {
        collection: &'a str,
        name: &'a str,
        guard: WireGuard,
    },
}

#[derive(Serialize, Deserialize)]
struct WireHead<'a> {
    applied: Option<WireLogId>,
    membership_id: Option<WireLogId>,
    #[serde(borrow)]
    membership: WireMembership<'a>,
}

#[derive(Serialize, Deserialize)]
struct WireRecord<'a> {
    collection: &'a str,
    name: &'a str,
    revision: u64,
    revision_at: u32,
    revision_length: u32,
    #[serde(borrow)]
    bytes: Blob<'a>,
}

/// The body that says `vote`.
pub fn vote(vote: &Vote) -> Vec<u8> {
    let frame =
        WireFrame::Vote { term: vote.leader_id.term, member: vote.leader_id.node_id, committed: vote.committed };
    encode(&frame, 32)
}

/// The body that says `entry`.
pub fn entry(entry: &Entry) -> Vec<u8> {
    let (payload, size) = match &entry.payload {
        EntryPayload::Blank => (WirePayload::Blank, 0),
        EntryPayload::Normal(transaction) => {
            let size = transaction.ops().iter().map(|op| op.size() + 24).sum();
            (WirePayload::Transaction(transaction.ops().iter().map(wire_op).collect()), size)
        }
        EntryPayload::Membership(membership) => (WirePayload::Membership(wire_membership(membership)), 128),
    };
    encode(&WireFrame::Entry { id: wire_id(&entry.log_id), payload }, size + 32)
}

/// The body that cuts the log after `after`.
pub fn truncate(after: Option<&LogId>) -> Vec<u8> {
    encode(&WireFrame::Truncate(after.map(wire_id)), 32)
}

/// The body that cuts the log up to `upto`.
pub fn purge(upto: &LogId) -> Vec<u8> {
    encode(&WireFrame::Purge(wire_id(upto)), 32)
}

/// The body that says that entries up to `upto` are committed.
pub fn committed(upto: &LogId) -> Vec<u8> {
    encode(&WireFrame::Committed(wire_id(upto)), 32)
}

/// What a body of the log says.
pub fn frame(body: Bytes) -> io::Result<Frame> {
    Ok(match decode::<WireFrame<'_>>(&body)? {
        WireFrame::Vote { term, member, committed } => {
            Frame::Vote(Vote { leader_id: LeaderId { term, node_id: member }, committed })
        }
        WireFrame::Truncate(after) => Frame::Truncate(after.map(log_id)),
        WireFrame::Purge(upto) => Frame::Purge(log_id(upto)),
        WireFrame::Committed(upto) => Frame::Committed(log_id(upto)),
        WireFrame::Entry { id, payload } => {
            let payload = match payload {
                WirePayload::Blank => EntryPayload::Blank,
                WirePayload::Membership(wire) => EntryPayload::Membership(membership(wire)?),
                WirePayload::Transaction(ops) => {
                    EntryPayload::Normal(Transaction::new(ops.into_iter().map(|wire| op(&body, wire)).collect()))
                }
            };
            Frame::Entry(Entry { log_id: log_id(id), payload })
        }
    })
}

/// The bytes of a checkpoint's head.
pub fn encode_head(head: &Head) -> Vec<u8> {
    let wire = WireHead {
        applied: head.applied.as_ref().map(wire_id),
        membership_id: head.membership.log_id().as_ref().map(wire_id),
        membership: wire_membership(head.membership.membership()),
    };
    encode(&wire, 128)
}

/// The head that `bytes` say; the default for none.
pub fn head(bytes: &[u8]) -> io::Result<Head> {
    if bytes.is_empty() {
        return Ok(Head::default());
    }
    let wire = decode::<WireHead<'_>>(bytes)?;
    let membership = StoredMembership::new(wire.membership_id.map(log_id), membership(wire.membership)?);
    Ok(Head { applied: wire.applied.map(log_id), membership })
}

/// A part of a snapshot on its way to another member.
pub fn encode_records<'a>(records: impl Iterator<Item = &'a Record> + Clone) -> Vec<u8> {
    let size = records.clone().map(|r| r.stored().0.len() + r.key.name.len() + r.key.collection.len() + 24).sum();
    let wire: Vec<WireRecord<'_>> = records
        .map(|record| {
            let (bytes, revision_at) = record.stored();
            WireRecord {
                collection: &record.key.collection,
                name: &record.key.name,
                revision: record.revision.get(),
                revision_at: revision_at.start,
                revision_length: revision_at.end - revision_at.start,
                bytes: Blob(bytes),
            }
        })
        .collect();
    encode(&wire, size)
}

/// What a part of a snapshot says. Contents are copies: records outlive the part by far.
pub fn records(bytes: &[u8]) -> io::Result<Vec<Record>> {
    let wire = decode::<Vec<WireRecord<'_>>>(bytes)?;
    wire.into_iter()
        .map(|record| {
            let end = record.revision_at.checked_add(record.revision_length);
            let range = end.filter(|end| *end as usize <= record.bytes.0.len()).map(|end| record.revision_at..end);
            let range =
                range.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a revision beyond its record"))?;
            let key = Key::new(record.collection, record.name);
            Ok(Record::restored(key, Revision::new(record.revision), Bytes::copy_from_slice(record.bytes.0), range))
        })
        .collect()
}

pub(super) fn encode(value: &impl Serialize, size: usize) -> Vec<u8> {
    postcard::to_extend(value, Vec::with_capacity(size))
        .expect("memory takes everything, and these types always encode")
}

pub(super) fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> io::Result<T> {
    postcard::from_bytes(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

pub(super) fn wire_id(id: &LogId) -> WireLogId {
    WireLogId { term: id.leader_id.term, member: id.leader_id.node_id, index: id.index }
}

pub(super) fn log_id(wire: WireLogId) -> LogId {
    LogId::new(LeaderId { term: wire.term, node_id: wire.member }, wire.index)
}

pub(super) fn wire_membership(membership: &Membership<MemberId, BasicNode>) -> WireMembership<'_> {
    WireMembership {
        voters: membership.get_joint_config().iter().map(|voters| voters.iter().copied().collect()).collect(),
        members: membership.nodes().map(|(id, node)| (*id, node.addr.as_str())).collect(),
    }
}

pub(super) fn membership(wire: WireMembership<'_>) -> io::Result<Membership<MemberId, BasicNode>> {
    if wire.voters.is_empty() {
        return Ok(Membership::default());
    }
    let voters: Vec<BTreeSet<MemberId>> = wire.voters.into_iter().map(|voters| voters.into_iter().collect()).collect();
    let members: BTreeMap<MemberId, BasicNode> =
        wire.members.into_iter().map(|(id, address)| (id, BasicNode::new(address))).collect();
    Membership::new(voters, members).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))
}

pub(super) fn wire_op(op: &Op) -> WireOp<'_> {
    match op {
        Op::Put { key, value, guard } => WireOp::Put {
            collection: &key.collection,
            name: &key.name,
            guard: wire_guard(*guard),
            revision_at: value.revision_at.min(value.bytes.len()) as u32,
            bytes: Blob(&value.bytes),
        },
        Op::Delete { key, guard } => {
            WireOp::Delete { collection: &key.collection, name: &key.name, guard: wire_guard(*guard) }
        }
        Op::Check { key, guard } => {
            WireOp::Check { collection: &key.collection, name: &key.name, guard: wire_guard(*guard) }
        }
    }
}

pub(super) fn op(body: &Bytes, wire: WireOp<'_>) -> Op {
    match wire {
        WireOp::Put { collection, name, guard: on, revision_at, bytes } => Op::Put {
            key: Key::new(collection, name),
            value: Value { bytes: body.slice_ref(bytes.0), revision_at: revision_at as usize },
            guard: guard(&on),
        },
        WireOp::Delete { collection, name, guard: on } => {
            Op::Delete { key: Key::new(collection, name), guard: guard(&on) }
        }
        WireOp::Check { collection, name, guard: on } => {
            Op::Check { key: Key::new(collection, name), guard: guard(&on) }
        }
    }
}

fn wire_guard(guard: Guard) -> WireGuard {
    match guard {
        Guard::None => WireGuard::None,
        Guard::Absent => WireGuard::Absent,
        Guard::Present => WireGuard::Present,
        Guard::Revision(revision) => WireGuard::Revision(revision.get()),
    }
}

fn guard(wire: &WireGuard) -> Guard {
    match wire {
        WireGuard::None => Guard::None,
        WireGuard::Absent => Guard::Absent,
        WireGuard::Present => Guard::Present,
        WireGuard::Revision(revision) => Guard::Revision(Revision::new(*revision)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(index: u64) -> LogId {
        LogId::new(LeaderId { term: 3, node_id: 1 }, index)
    }

    #[test]
    fn entries_come_back_as_they_were() {
        let put = Op::Put {
            key: Key::new("pods", "default/web-0"),
            value: Value { bytes: Bytes::from_static(b"{\"rv\":\"\"}"), revision_at: 7 },
            guard: Guard::Revision(Revision::new(77)),
        };
        let delete = Op::Delete { key: Key::new("pods", "x"), guard: Guard::Present };
        let check = Op::Check { key: Key::new("namespaces", "x"), guard: Guard::Absent };
        let members = Membership::new_with_defaults(vec![BTreeSet::from([1, 2]), BTreeSet::from([1])], [4]);
        for payload in [
            EntryPayload::Blank,
            EntryPayload::Normal(Transaction::new(vec![put, delete, check])),
            EntryPayload::Membership(members),
        ] {
            let before = Entry { log_id: id(9), payload };
            let Frame::Entry(after) = frame(entry(&before).into()).unwrap() else { panic!("an entry") };
            assert_eq!((before.log_id, format!("{before:?}")), (after.log_id, format!("{after:?}")));
        }
    }

    #[test]
    fn heads_come_back_as_they_were_and_none_is_the_default() {
        let members = Membership::new_with_defaults(vec![BTreeSet::from([1])], []);
        for head_before in
            [Head::default(), Head { applied: Some(id(5)), membership: StoredMembership::new(Some(id(2)), members) }]
        {
            assert_eq!(head(&encode_head(&head_before)).unwrap(), head_before);
        }
        assert_eq!(head(&[]).unwrap(), Head::default());
    }

    /// Bodies as version 2 of the format has them. When this fails, the format has changed: give it a new version (`FORMAT` in
    /// dir.rs, docs/formats.md), or read the old one.
    #[test]
    fn the_bodies_are_those_of_version_2() {
        let put = Op::Put {
            key: Key::new("c", "n"),
            value: Value { bytes: Bytes::from_static(b"v"), revision_at: 1 },
            guard: Guard::Revision(Revision::new(300)),
        };
        let delete = Op::Delete { key: Key::new("c", "m"), guard: Guard::Present };
        let check = Op::Check { key: Key::new("c", "k"), guard: Guard::Absent };
        let members = Membership::new_with_defaults(vec![BTreeSet::from([1])], []);
        let transaction = EntryPayload::Normal(Transaction::new(vec![put, delete, check]));
        let head_of = Head { applied: Some(id(5)), membership: StoredMembership::new(Some(id(2)), members.clone()) };
        let say = |payload| entry(&Entry { log_id: id(9), payload });
        for (bytes, expected) in [
            (vote(&Vote { leader_id: LeaderId { term: 3, node_id: 1 }, committed: true }), "00030101"),
            (say(EntryPayload::Blank), "0103010900"),
            (say(transaction), "01030109010300016301 6e03ac02010176010163016d020201630 16b01"),
            (say(EntryPayload::Membership(members)), "01030109020101010101 096c6f63616c686f7374"),
            (truncate(Some(&id(4))), "0201030104"),
            (truncate(None), "0200"),
            (purge(&id(4)), "03030104"),
            (committed(&id(4)), "04030104"),
            (encode_head(&head_of), "01030105010301020101010101 096c6f63616c686f7374"),
        ] {
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(hex, expected.replace(' ', ""));
        }
    }

    proptest::proptest! {
        /// Any bytes are a body or an error, and so is any body with a wrong byte.
        #[test]
        fn any_bytes_are_read_or_refused(
            bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200),
            at in proptest::prelude::any::<proptest::sample::Index>(),
        ) {
            let _ = (frame(bytes.clone().into()).is_ok(), head(&bytes).is_ok(), records(&bytes).is_ok());
            let put = Op::Put {
                key: Key::new("c", "n"),
                value: Value { bytes: Bytes::from(bytes.clone()), revision_at: 0 },
                guard: Guard::None,
            };
            let mut body = entry(&Entry { log_id: id(9), payload: EntryPayload::Normal(Transaction::new(vec![put])) });
            let at = at.index(body.len());
            body[at] ^= 0xff;
            let _ = frame(body.into()).is_ok();
        }
    }

    #[test]
    fn what_is_no_frame_is_an_error() {
        for body in [&b""[..], b"\xff", b"\x01\x01\x01\x01\x01\x01\x00\xff\xff\xff\xff\x0f"] {
            assert!(frame(body.to_vec().into()).is_err(), "{body:?}");
        }
    }
}
