//! Calls between members and their answers as bytes, in the words of this file's own types.
//!
//! Variants are known by their position: new ones come last, so that a member of the next version understands this one.
//! Entries are the bodies that the log has ([`codec`]); their contents stay slices of the frame they came in.

use std::collections::BTreeSet;
use std::io;

use bytes::Bytes;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderError, TransferLeaderRequest,
    VoteRequest, VoteResponse,
};
use serde::{Deserialize, Serialize};

use super::ask::{Ask, Change, Refusal, Renewed, Told};
use super::codec::{self, Blob, Frame, WireLogId, WireOp, encode, log_id, wire_id, wire_op};
use super::network::{Answer, Call, TransportError};
use super::snapshot::Parts;
use super::types::{Entry, LeaderId, MemberId, SnapshotMeta, Transaction, Vote};
use crate::NoRoom;
use crate::formats::Formats;
use crate::record::{Committed, Guard, Op, Record, Revision};
use crate::renewals::Renewal;
use crate::state::GuardFailed;

#[derive(Clone, Copy, Serialize, Deserialize)]
struct WireVote {
    term: u64,
    member: MemberId,
    committed: bool,
}

#[derive(Serialize, Deserialize)]
struct WireElection {
    vote: WireVote,
    last: Option<WireLogId>,
    transfer: bool,
}

#[derive(Serialize, Deserialize)]
enum WireCall<'a> {
    Append {
        vote: WireVote,
        previous: Option<WireLogId>,
        committed: Option<WireLogId>,
        #[serde(borrow)]
        entries: Vec<Blob<'a>>,
    },
    Vote(WireElection),
    PreVote(WireElection),
    Transfer {
        from: WireVote,
        to: MemberId,
        last: Option<WireLogId>,
    },
    Write(#[serde(borrow)] Vec<WireOp<'a>>),
    ReadIndex,
    Announce {
        member: MemberId,
        address: &'a str,
    },
    Remove(Vec<MemberId>),
    /// Parts follow, each in a frame of its own.
    Snapshot {
        vote: WireVote,
        #[serde(borrow)]
        head: Blob<'a>,
    },
    Renew {
        revision: u64,
        #[serde(borrow)]
        put: WireOp<'a>,
    },
    Renewed {
        collection: &'a str,
        name: Option<&'a str>,
    },
    RenewedAfter {
        collection: &'a str,
        name: &'a str,
    },
    Process,
    BeginAnew {
        member: MemberId,
        formats: Formats,
    },
}

#[derive(Serialize, Deserialize)]
enum WirePart<'a> {
    Records(#[serde(borrow)] Blob<'a>),
    End { count: u64, sum: u64 },
}

#[derive(Serialize, Deserialize)]
enum WireAnswer<'a> {
    Appended,
    AppendedUpTo(Option<WireLogId>),
    Conflict,
    HigherVote(WireVote),
    Voted {
        vote: WireVote,
        granted: bool,
        last: Option<WireLogId>,
    },
    Transferred,
    VoteChanged {
        expected: WireVote,
        actual: WireVote,
    },
    NotFlushed {
        expected: Option<WireLogId>,
        actual: Option<WireLogId>,
    },
    Installed(WireVote),
    /// What was put is known to whoever asked; what was deleted comes along.
    Written {
        revision: u64,
        #[serde(borrow)]
        deleted: Blob<'a>,
    },
    GuardFailed {
        revision: u64,
        op: u32,
        #[serde(borrow)]
        found: Blob<'a>,
    },
    ReadIndex(u64),
    Changed,
    NotLeader(Option<MemberId>),
    NoSpace {
        dir: &'a str,
        free: u64,
    },
    Quota {
        stored: u64,
        max: u64,
    },
    Slow,
    Unknown,
    Refused(&'a str),
    /// It was not carried out, or nobody knows.
    Failed(&'a str),
    Renewed(#[serde(borrow)] Blob<'a>),
    Removed(MemberId),
    Process {
        process: u64,
        has_room: bool,
    },
}

/// A call that came, a snapshot's without its parts.
pub enum Incoming {
    Call(Call),
    Snapshot { vote: Vote, meta: Box<SnapshotMeta> },
}

/// A part of a snapshot that came.
pub enum IncomingPart {
    Records(Bytes),
    End(Parts),
}

/// The bytes of a call; of a snapshot's only the beginning.
pub fn call(call: &Call) -> Vec<u8> {
    let (wire, size) = match call {
        Call::Append(request) => {
            let bodies: Vec<Vec<u8>> = request.entries.iter().map(codec::entry).collect();
            let size: usize = bodies.iter().map(|body| body.len() + 8).sum();
            let wire = WireCall::Append {
                vote: wire_vote(&request.vote),
                previous: request.prev_log_id.as_ref().map(wire_id),
                committed: request.leader_commit.as_ref().map(wire_id),
                entries: bodies.iter().map(|body| Blob(body)).collect(),
            };
            return encode(&wire, size + 64);
        }
        Call::Vote(request) => (WireCall::Vote(election(request)), 64),
        Call::PreVote(request) => (WireCall::PreVote(election(request)), 64),
        Call::Transfer(request) => {
            let (from, to, last) = (wire_vote(request.from_leader()), *request.to_node_id(), request.last_log_id());
            (WireCall::Transfer { from, to, last: last.map(wire_id) }, 64)
        }
        Call::Ask(Ask::Write(transaction)) => {
            let ops = transaction.ops().iter().map(wire_op).collect();
            (WireCall::Write(ops), transaction.size() + 64)
        }
        Call::Ask(Ask::ReadIndex) => (WireCall::ReadIndex, 1),
        Call::Ask(Ask::Process) => (WireCall::Process, 1),
        Call::Ask(Ask::Change(Change::Announce { member, address })) => {
            (WireCall::Announce { member: *member, address }, address.len() + 16)
        }
        Call::Ask(Ask::Change(Change::Remove(members))) => (WireCall::Remove(members.iter().copied().collect()), 64),
        Call::Ask(Ask::Change(Change::BeginAnew { member, formats })) => {
            (WireCall::BeginAnew { member: *member, formats: *formats }, 32)
        }
        Call::Ask(Ask::Renew(renewal)) => {
            let Renewal { key, revision, value } = renewal.clone();
            let put = Op::Put { key, value, guard: Guard::None };
            return encode(&WireCall::Renew { revision: revision.get(), put: wire_op(&put) }, put.size() + 64);
        }
        Call::Ask(Ask::Renewed { collection, of }) => {
            let wire = match of {
                Renewed::Named(name) => WireCall::Renewed { collection, name: Some(name) },
                Renewed::All => WireCall::Renewed { collection, name: None },
                Renewed::After(name) => WireCall::RenewedAfter { collection, name },
            };
            (wire, collection.len() + 64)
        }
        Call::Snapshot { vote, meta, .. } => {
            let head = codec::Head { applied: meta.last_log_id, membership: meta.last_membership.clone() };
            let head = codec::encode_head(&head);
            return encode(&WireCall::Snapshot { vote: wire_vote(vote), head: Blob(&head) }, head.len() + 64);
        }
    };
    encode(&wire, size)
}

/// The call that `bytes` say.
pub fn incoming(bytes: &Bytes) -> io::Result<Incoming> {
    Ok(Incoming::Call(match whole::<WireCall<'_>>(bytes)? {
        WireCall::Append { vote: by, previous, committed, entries } => {
            let entries: io::Result<Vec<Entry>> =
                entries.into_iter().map(|body| entry(bytes.slice_ref(body.0))).collect();
            Call::Append(AppendEntriesRequest {
                vote: vote(by),
                prev_log_id: previous.map(log_id),
                entries: entries?,
                leader_commit: committed.map(log_id),
            })
        }
        WireCall::Vote(wire) => Call::Vote(request(wire)),
        WireCall::PreVote(wire) => Call::PreVote(request(wire)),
        WireCall::Transfer { from, to, last } => {
            Call::Transfer(TransferLeaderRequest::new(vote(from), to, last.map(log_id)))
        }
        WireCall::Write(ops) => {
            let ops = ops.into_iter().map(|wire| codec::op(bytes, wire)).collect();
            Call::Ask(Ask::Write(Transaction::new(ops)))
        }
        WireCall::ReadIndex => Call::Ask(Ask::ReadIndex),
        WireCall::Process => Call::Ask(Ask::Process),
        WireCall::Announce { member, address } => {
            Call::Ask(Ask::Change(Change::Announce { member, address: address.to_owned() }))
        }
        WireCall::Renew { revision, put } => match codec::op(bytes, put) {
            Op::Put { key, value, .. } => {
                Call::Ask(Ask::Renew(Renewal { key, revision: Revision::new(revision), value }))
            }
            _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "something else in the place of a renewal")),
        },
        WireCall::Renewed { collection, name } => {
            let of = name.map_or(Renewed::All, |name| Renewed::Named(name.into()));
            Call::Ask(Ask::Renewed { collection: collection.into(), of })
        }
        WireCall::RenewedAfter { collection, name } => {
            Call::Ask(Ask::Renewed { collection: collection.into(), of: Renewed::After(name.into()) })
        }
        WireCall::Remove(members) => Call::Ask(Ask::Change(Change::Remove(BTreeSet::from_iter(members)))),
        WireCall::BeginAnew { member, formats } => Call::Ask(Ask::Change(Change::BeginAnew { member, formats })),
        WireCall::Snapshot { vote: by, head } => {
            let head = codec::head(head.0)?;
            let meta = SnapshotMeta { last_log_id: head.applied, last_membership: head.membership };
            return Ok(Incoming::Snapshot { vote: vote(by), meta: Box::new(meta) });
        }
    }))
}

/// What `bytes` say, all of them: what follows is of a version that means more than is understood here.
fn whole<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> io::Result<T> {
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Ok(value),
        Ok(_) => Err(io::Error::new(io::ErrorKind::InvalidData, "more than a message")),
        Err(error) => Err(io::Error::new(io::ErrorKind::InvalidData, error)),
    }
}

fn entry(body: Bytes) -> io::Result<Entry> {
    match codec::frame(body)? {
        Frame::Entry(entry) => Ok(entry),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "something else in the place of an entry")),
    }
}

/// The bytes of a snapshot's part.
pub fn part(records: &[u8]) -> Vec<u8> {
    encode(&WirePart::Records(Blob(records)), records.len() + 16)
}

/// The bytes that end a snapshot.
pub fn end(parts: Parts) -> Vec<u8> {
    encode(&WirePart::End { count: parts.count, sum: parts.sum }, 32)
}

/// The part that `bytes` say.
pub fn incoming_part(bytes: &Bytes) -> io::Result<IncomingPart> {
    Ok(match whole::<WirePart<'_>>(bytes)? {
        WirePart::Records(records) => IncomingPart::Records(bytes.slice_ref(records.0)),
        WirePart::End { count, sum } => IncomingPart::End(Parts { count, sum }),
    })
}

/// The bytes of an answer.
pub fn answer(answer: &Result<Answer, TransportError>) -> Vec<u8> {
    let small = |wire: WireAnswer<'_>| encode(&wire, 64);
    match answer {
        Ok(Answer::Append(response)) => small(match response {
            AppendEntriesResponse::Success => WireAnswer::Appended,
            AppendEntriesResponse::PartialSuccess(upto) => WireAnswer::AppendedUpTo(upto.as_ref().map(wire_id)),
            AppendEntriesResponse::Conflict => WireAnswer::Conflict,
            AppendEntriesResponse::HigherVote(vote) => WireAnswer::HigherVote(wire_vote(vote)),
        }),
        Ok(Answer::Vote(response)) => small(WireAnswer::Voted {
            vote: wire_vote(&response.vote),
            granted: response.vote_granted,
            last: response.last_log_id.as_ref().map(wire_id),
        }),
        Ok(Answer::Transfer(response)) => small(match response {
            Ok(()) => WireAnswer::Transferred,
            Err(TransferLeaderError::VoteChanged { expected, actual }) => {
                WireAnswer::VoteChanged { expected: wire_vote(expected), actual: wire_vote(actual) }
            }
            Err(TransferLeaderError::LogNotFlushed { expected, actual }) => WireAnswer::NotFlushed {
                expected: expected.as_ref().map(wire_id),
                actual: actual.as_ref().map(wire_id),
            },
        }),
        Ok(Answer::Snapshot(response)) => small(WireAnswer::Installed(wire_vote(&response.vote))),
        Ok(Answer::Told(Ok(told))) => match told {
            Told::Written(revision, Ok(committed)) => {
                // Those that were put end with what whoever asked sent.
                let deleted = codec::encode_records(committed.records.iter().map(|record| &**record));
                let wire = WireAnswer::Written { revision: revision.get(), deleted: Blob(&deleted) };
                encode(&wire, deleted.len() + 32)
            }
            Told::Written(revision, Err(failed)) => {
                let found = codec::encode_records(failed.found.iter().map(|record| &**record));
                let (revision, op) = (revision.get(), failed.op as u32);
                encode(&WireAnswer::GuardFailed { revision, op, found: Blob(&found) }, found.len() + 32)
            }
            Told::ReadIndex(revision) => small(WireAnswer::ReadIndex(revision.get())),
            Told::Changed => small(WireAnswer::Changed),
            Told::Process { process, has_room } => {
                small(WireAnswer::Process { process: *process, has_room: *has_room })
            }
            Told::Renewed(records) => {
                let records = codec::encode_records(records.iter().map(|record| &**record));
                encode(&WireAnswer::Renewed(Blob(&records)), records.len() + 16)
            }
        },
        Ok(Answer::Told(Err(refusal))) => match refusal {
            Refusal::NotLeader(leader) => small(WireAnswer::NotLeader(*leader)),
            Refusal::NoRoom(NoRoom::Disk { dir, free }) => {
                encode(&WireAnswer::NoSpace { dir: &dir.to_string_lossy(), free: *free }, 128)
            }
            Refusal::NoRoom(NoRoom::Quota { stored, max }) => small(WireAnswer::Quota { stored: *stored, max: *max }),
            Refusal::NoRoom(NoRoom::Slow) => small(WireAnswer::Slow),
            Refusal::Unknown => small(WireAnswer::Unknown),
            Refusal::Refused(why) => encode(&WireAnswer::Refused(why), why.len() + 16),
            Refusal::Removed(member) => small(WireAnswer::Removed(*member)),
        },
        Err(error) => {
            let why = error.to_string();
            encode(&WireAnswer::Failed(&why), why.len() + 16)
        }
    }
}

/// The answer that `bytes` say to a call of `member`, which was `asked` to carry out a transaction, or something else.
pub fn incoming_answer(bytes: &[u8], member: MemberId, asked: Option<&Transaction>) -> Result<Answer, TransportError> {
    let failed = |reason: String| TransportError::Failed { member, reason };
    let wrong = |error: io::Error| failed(format!("it answered what cannot be read: {error}"));
    let wire = whole::<WireAnswer<'_>>(bytes).map_err(wrong)?;
    let told = |told| Answer::Told(Ok(told));
    let refused = |refusal| Answer::Told(Err(refusal));
    Ok(match wire {
        WireAnswer::Appended => Answer::Append(AppendEntriesResponse::Success),
        WireAnswer::AppendedUpTo(upto) => Answer::Append(AppendEntriesResponse::PartialSuccess(upto.map(log_id))),
        WireAnswer::Conflict => Answer::Append(AppendEntriesResponse::Conflict),
        WireAnswer::HigherVote(higher) => Answer::Append(AppendEntriesResponse::HigherVote(vote(higher))),
        WireAnswer::Voted { vote: by, granted, last } => {
            Answer::Vote(VoteResponse { vote: vote(by), vote_granted: granted, last_log_id: last.map(log_id) })
        }
        WireAnswer::Transferred => Answer::Transfer(Ok(())),
        WireAnswer::VoteChanged { expected, actual } => {
            Answer::Transfer(Err(TransferLeaderError::VoteChanged { expected: vote(expected), actual: vote(actual) }))
        }
        WireAnswer::NotFlushed { expected, actual } => Answer::Transfer(Err(TransferLeaderError::LogNotFlushed {
            expected: expected.map(log_id),
            actual: actual.map(log_id),
        })),
        WireAnswer::Installed(by) => Answer::Snapshot(SnapshotResponse::new(vote(by))),
        WireAnswer::Written { revision, deleted } => {
            let revision = Revision::new(revision);
            let records = written(asked, revision, deleted.0).map_err(wrong)?;
            told(Told::Written(revision, Ok(Committed { revision, records })))
        }
        WireAnswer::GuardFailed { revision, op, found } => {
            let found = codec::records(found.0).map_err(wrong)?.pop().map(std::sync::Arc::new);
            told(Told::Written(Revision::new(revision), Err(GuardFailed { op: op as usize, found })))
        }
        WireAnswer::ReadIndex(revision) => told(Told::ReadIndex(Revision::new(revision))),
        WireAnswer::Changed => told(Told::Changed),
        WireAnswer::Renewed(records) => {
            let records = codec::records(records.0).map_err(wrong)?;
            told(Told::Renewed(records.into_iter().map(std::sync::Arc::new).collect()))
        }
        WireAnswer::NotLeader(leader) => refused(Refusal::NotLeader(leader)),
        WireAnswer::NoSpace { dir, free } => refused(Refusal::NoRoom(NoRoom::Disk { dir: dir.into(), free })),
        WireAnswer::Quota { stored, max } => refused(Refusal::NoRoom(NoRoom::Quota { stored, max })),
        WireAnswer::Slow => refused(Refusal::NoRoom(NoRoom::Slow)),
        WireAnswer::Unknown => refused(Refusal::Unknown),
        WireAnswer::Refused(why) => refused(Refusal::Refused(why.to_owned())),
        WireAnswer::Failed(why) => return Err(failed(why.to_owned())),
        WireAnswer::Removed(member) => refused(Refusal::Removed(member)),
        WireAnswer::Process { process, has_room } => told(Told::Process { process, has_room }),
    })
}

/// The records that `asked` made at `revision`: those it put are made again here, as every member makes them.
fn written(asked: Option<&Transaction>, revision: Revision, deleted: &[u8]) -> io::Result<Vec<std::sync::Arc<Record>>> {
    let lacks = || io::Error::new(io::ErrorKind::InvalidData, "a record is missing");
    let mut deleted = codec::records(deleted)?.into_iter();
    let mut records = Vec::new();
    for op in asked.ok_or_else(lacks)?.ops() {
        records.push(std::sync::Arc::new(match op {
            Op::Put { key, value, .. } => Record::new(key.clone(), value, revision),
            Op::Delete { .. } => deleted.next().ok_or_else(lacks)?,
            Op::Check { .. } => continue,
        }));
    }
    Ok(records)
}

/// What of `told` need not be sent to whoever asked for `transaction`: the records it put.
pub fn spare(told: &mut Answer, transaction: &Transaction) {
    if let Answer::Told(Ok(Told::Written(_, Ok(committed)))) = told {
        let mut changes = transaction.ops().iter().filter(|op| !matches!(op, Op::Check { .. }));
        committed.records.retain(|_| matches!(changes.next(), Some(Op::Delete { .. })));
    }
}

fn election(request: &VoteRequest<super::types::TypeConfig>) -> WireElection {
    WireElection {
        vote: wire_vote(&request.vote),
        last: request.last_log_id.as_ref().map(wire_id),
        transfer: request.leadership_transfer,
    }
}

fn request(wire: WireElection) -> VoteRequest<super::types::TypeConfig> {
    VoteRequest { vote: vote(wire.vote), last_log_id: wire.last.map(log_id), leadership_transfer: wire.transfer }
}

fn wire_vote(vote: &Vote) -> WireVote {
    WireVote { term: vote.leader_id.term, member: vote.leader_id.node_id, committed: vote.committed }
}

fn vote(wire: WireVote) -> Vote {
    Vote { leader_id: LeaderId { term: wire.term, node_id: wire.member }, committed: wire.committed }
}

#[cfg(test)]
mod tests {
    use openraft::EntryPayload;

    use super::*;
    use crate::raft::types::LogId;
    use crate::record::{Key, Value};

    fn id(index: u64) -> LogId {
        LogId::new(LeaderId { term: 3, node_id: 1 }, index)
    }

    fn transaction() -> Transaction {
        let key = |name: &str| Key::new("things", name);
        let value = Value { bytes: Bytes::from_static(b"{}"), revision_at: 1 };
        Transaction::new(vec![
            Op::Check { key: key("c"), guard: Guard::Absent },
            Op::Put { key: key("a"), value, guard: Guard::None },
            Op::Delete { key: key("b"), guard: Guard::Revision(Revision::new(9)) },
        ])
    }

    fn calls() -> Vec<Call> {
        let by = Vote { leader_id: LeaderId { term: 3, node_id: 1 }, committed: true };
        let entries = [EntryPayload::Blank, EntryPayload::Normal(transaction())];
        let entries = entries.into_iter().zip(4..).map(|(payload, at)| Entry { log_id: id(at), payload });
        let election = VoteRequest { vote: by, last_log_id: Some(id(7)), leadership_transfer: true };
        vec![
            Call::Append(AppendEntriesRequest {
                vote: by,
                prev_log_id: Some(id(3)),
                entries: entries.collect(),
                leader_commit: None,
            }),
            Call::Vote(election.clone()),
            Call::PreVote(election),
            Call::Transfer(TransferLeaderRequest::new(by, 2, None)),
            Call::Ask(Ask::Write(transaction())),
            Call::Ask(Ask::ReadIndex),
            Call::Ask(Ask::Change(Change::Announce { member: 4, address: "h:1".into() })),
            Call::Ask(Ask::Change(Change::Remove(BTreeSet::from([2, 3])))),
            Call::Ask(Ask::Renew(Renewal {
                key: Key::new("things", "a"),
                revision: Revision::new(9),
                value: Value { bytes: Bytes::from_static(b"{}"), revision_at: 1 },
            })),
            Call::Ask(Ask::Renewed { collection: "things".into(), of: Renewed::Named("a".into()) }),
            Call::Ask(Ask::Renewed { collection: "things".into(), of: Renewed::All }),
            Call::Ask(Ask::Renewed { collection: "things".into(), of: Renewed::After("a".into()) }),
            Call::Ask(Ask::Process),
            Call::Ask(Ask::Change(Change::BeginAnew { member: 4, formats: Formats { oldest: 2, newest: 3 } })),
        ]
    }

    fn print(call: &Call) -> String {
        match call {
            Call::Append(request) => format!("append {request:?}"),
            Call::Vote(request) => format!("vote {request:?}"),
            Call::PreVote(request) => format!("pre-vote {request:?}"),
            Call::Transfer(request) => format!("transfer {request:?}"),
            Call::Ask(ask) => format!("ask {ask:?}"),
            Call::Snapshot { .. } => "snapshot".into(),
        }
    }

    #[test]
    fn calls_come_back_as_they_were() {
        for before in calls() {
            let Incoming::Call(after) = incoming(&call(&before).into()).unwrap() else { panic!("no snapshot") };
            assert_eq!(print(&before), print(&after));
            assert!(incoming(&[call(&before), vec![0]].concat().into()).is_err(), "and something after it");
        }
    }

    #[test]
    fn answers_come_back_as_they_were_and_what_was_put_need_not_be_sent() {
        let asked = transaction();
        let revision = Revision::new(12);
        let record = |name: &str, text: &str| {
            let value = Value { bytes: Bytes::copy_from_slice(text.as_bytes()), revision_at: 1 };
            std::sync::Arc::new(Record::new(Key::new("things", name), &value, revision))
        };
        let records = vec![record("a", "{}"), record("b", "[]")];
        let answers = [
            Answer::Append(AppendEntriesResponse::PartialSuccess(Some(id(4)))),
            Answer::Transfer(Err(TransferLeaderError::LogNotFlushed { expected: Some(id(1)), actual: None })),
            Answer::Told(Ok(Told::Written(revision, Ok(Committed { revision, records })))),
            Answer::Told(Ok(Told::Written(revision, Err(GuardFailed { op: 2, found: Some(record("b", "[]")) })))),
            Answer::Told(Err(Refusal::NoRoom(NoRoom::Disk { dir: "/data".into(), free: 7 }))),
            Answer::Told(Err(Refusal::Refused("no".into()))),
            Answer::Told(Ok(Told::Renewed(vec![record("a", "{}")]))),
            Answer::Told(Err(Refusal::Removed(4))),
            Answer::Told(Ok(Told::Process { process: u64::MAX, has_room: true })),
        ];
        let contents = |answer: &Answer| match answer {
            Answer::Told(Ok(Told::Written(_, Ok(committed)))) => {
                committed.records.iter().map(|record| record.bytes.clone()).collect()
            }
            _ => Vec::new(),
        };
        for mut before in answers {
            let expected = (format!("{before:?}"), contents(&before));
            spare(&mut before, &asked);
            let after = incoming_answer(&answer(&Ok(before)), 2, Some(&asked)).unwrap();
            assert_eq!((format!("{after:?}"), contents(&after)), expected);
        }
    }

    proptest::proptest! {
        /// Any bytes are a call, a part, an answer, or an error, and so is any call with a wrong byte.
        #[test]
        fn any_bytes_are_read_or_refused(
            bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200),
            at in proptest::prelude::any::<proptest::sample::Index>(),
            which in 0..14_usize,
        ) {
            let asked = transaction();
            let bytes = Bytes::from(bytes);
            let _ = (incoming(&bytes).is_ok(), incoming_part(&bytes).is_ok());
            let _ = incoming_answer(&bytes, 1, Some(&asked)).is_ok();
            let mut body = call(&calls()[which]);
            let at = at.index(body.len());
            body[at] ^= 0xff;
            let _ = incoming(&body.into()).is_ok();
        }
    }
}
