//! The log as openraft wants it: on disk through the [write-ahead log](crate::wal), and in memory until it is purged.
//!
//! Opening reads first ([`Log::read`]), and writes only when everything that was read makes sense ([`Unstarted::start`]).
//! Proposals are let in one after the other while there is room ([`Log::room`]): in memory, and in the files that the log
//! has already, so that a full disk refuses writes before they are in the log, and never fails the log itself.
//!
//! Whatever changes it is one body of the write-ahead log, written in the order of the calls. A purge that frees enough
//! begins a new segment which says again what is still needed (vote, purge mark, remaining entries) and deletes the old
//! ones. Reading such a repetition twice, after a crash between the two, changes nothing: an entry that is there already
//! is skipped.

use std::collections::{HashMap, VecDeque};
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use openraft::entry::RaftEntry;
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use openraft::{EntryPayload, Membership, OptionalSend};
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

use super::codec::{self, Frame};
use super::types::{Entry, LogId, MemberId, Transaction, TypeConfig, Vote};
use crate::dir::Dir;
use crate::host::{self, Host, Sizes};
use crate::wal::{self, Done, Found, Space, Wal};

/// Bytes of the log's files that are kept, while no more can be made, for writes that are small or free space...
const KEPT_FOR_SMALL: u64 = 6 << 20;
/// ... and for Raft itself: votes, and the first entry of a leader, at every start.
const KEPT_FOR_RAFT: u64 = 2 << 20;
/// Most bytes of entries sent to another member at once.
const READ_BYTES_MAX: usize = 1 << 20;
/// How long what follows a snapshot is kept after it was sent: until Raft knows of it, and sends that.
const HELD_AFTER: Duration = Duration::from_secs(5);

/// The log; clones share it.
#[derive(Clone)]
pub struct Log(Arc<Shared>);

struct Shared {
    member: MemberId,
    inner: Mutex<Inner>,
    sizes: Sizes,
    sole: AtomicBool,
    /// Bytes of entries in memory, for those who look often.
    bytes: AtomicUsize,
    /// Bytes that were let in and may not be in the log yet.
    promised: AtomicUsize,
    /// Held by the first of those who wait for room: they are let in in the order in which they came.
    turn: tokio::sync::Mutex<()>,
    /// Whether checkpoints fail for lack of space, so that the log cannot be cut.
    uncut: AtomicBool,
    /// The first entry that is to be kept when it is cut.
    kept_from: AtomicU64,
    /// Snapshots on their way, by whom they are for.
    sent: Mutex<HashMap<MemberId, Sent>>,
    /// Says that the log grew beyond its bound.
    grown: Notify,
    /// Says that it was purged, or that it cannot be.
    cut: Notify,
}

/// What was read of a log, before anything is written.
pub struct Unstarted {
    found: Found,
    dir: Dir,
    member: MemberId,
    sizes: Sizes,
    inner: Inner,
    sole: bool,
}

/// What a log holds, for a member that goes on without it.
pub struct Held {
    /// The directory; it stays locked as long as this lives.
    pub dir: Dir,
    /// The newest vote.
    pub vote: Option<Vote>,
    /// Up to where it was cut.
    pub purged: Option<LogId>,
    /// What follows.
    pub entries: VecDeque<Entry>,
}

/// Room for a proposal, until this is dropped.
pub struct Room {
    log: Log,
    bytes: usize,
}

impl Drop for Room {
    fn drop(&mut self) {
        self.log.0.promised.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// A snapshot on its way to a member, which is to get what follows it from the log.
struct Sent {
    /// Tells it from others to the same member.
    number: u64,
    /// The last entry in it.
    index: u64,
    /// Until when, once it was sent, or given up.
    until: Option<Instant>,
}

/// Keeps what follows a snapshot, as long as there is room, until this is dropped and a little longer.
pub struct Hold {
    log: Log,
    member: MemberId,
    number: u64,
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut all = self.log.0.sent.lock();
        if let Some(sent) = all.get_mut(&self.member).filter(|sent| sent.number == self.number) {
            sent.until = Some(host::now() + HELD_AFTER);
        }
    }
}

/// There is no room, and none to come before the disk has space again.
#[derive(Debug)]
pub struct NoSpace;

#[derive(Default)]
struct Inner {
    /// `None` once it is closed. Appending happens under the lock, so its order is that of `entries`.
    wal: Option<Wal>,
    /// Locked as long as something may be written; dropped after `wal`.
    dir: Option<Dir>,
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
    /// What follows `purged`, without gaps.
    entries: VecDeque<Entry>,
    /// Bytes of `entries`, about.
    bytes: usize,
    /// The last entry that was to go when the log was last cut, and bytes of those that are there still: somebody needs them.
    owed: (u64, usize),
    /// Whether a snapshot on its way has kept some of them.
    is_held: bool,
    /// Bytes written since the write-ahead log was last begun anew.
    written: usize,
}

impl Log {
    /// Reads the log of `member` in `dir`, which holds `covered` and its `membership` in the checkpoint, and changes nothing.
    pub fn read(
        host: &Host,
        dir: Dir,
        member: MemberId,
        covered: Option<&LogId>,
        membership: &Membership<MemberId, openraft::BasicNode>,
    ) -> io::Result<Unstarted> {
        let path = dir.path().join("log");
        let mut found = wal::read(host, &path)?;
        let mut inner = Inner::default();
        for mut body in std::mem::take(&mut found.bodies) {
            inner.written += body.bytes.len();
            let frame = codec::frame(std::mem::take(&mut body.bytes).into());
            let taken = frame.and_then(|frame| match frame {
                Frame::Vote(vote) => {
                    inner.vote = Some(vote);
                    Ok(())
                }
                Frame::Committed(upto) => {
                    inner.committed = inner.committed.max(Some(upto));
                    Ok(())
                }
                Frame::Truncate(after) => {
                    inner.truncate(after.as_ref());
                    Ok(())
                }
                Frame::Purge(upto) => {
                    inner.purge(upto);
                    Ok(())
                }
                Frame::Entry(entry) => inner.restore(entry),
            });
            taken.map_err(|why| Found::damaged(&path, &body, why))?;
        }
        inner.check().map_err(|why| crate::host::damaged(&path, 0, why))?;
        let mut membership = membership.clone();
        for entry in &inner.entries {
            if let EntryPayload::Membership(newer) = &entry.payload {
                membership = newer.clone();
            }
        }
        let sole = is_sole(&membership, member);
        inner.check_against(covered, sole).map_err(|why| crate::host::damaged(&path, 0, why))?;
        Ok(Unstarted { found, dir, member, sizes: host.sizes, inner, sole })
    }

    /// Writes what is queued and gives the directory free; later writes fail. Blocks on the disk.
    pub fn close(&self) {
        // Taken out first: the log's thread may be calling back while it ends.
        let (wal, dir) = {
            let mut inner = self.0.inner.lock();
            (inner.wal.take(), inner.dir.take())
        };
        drop(wal);
        drop(dir);
    }

    /// Ends all waiting for space, for those who stop: what waits for it has failed then.
    pub fn give_up_waiting(&self) {
        if let Some(wal) = &self.0.inner.lock().wal {
            wal.give_up_waiting();
        }
    }

    /// Where everything is, until it is closed.
    pub fn dir(&self) -> Option<PathBuf> {
        self.0.inner.lock().dir.as_ref().map(|dir| dir.path().to_owned())
    }

    /// What its files still take.
    pub fn space(&self) -> Option<Space> {
        self.0.inner.lock().wal.as_ref().map(Wal::space)
    }

    /// Whether checkpoints fail for lack of space.
    #[cfg(test)]
    pub fn is_uncut(&self) -> bool {
        self.0.uncut.load(Ordering::Acquire)
    }

    /// Whether writes are refused for lack of space, or will be soon.
    pub fn is_short_of_space(&self) -> bool {
        self.0.uncut.load(Ordering::Acquire) || self.space().is_some_and(|space| space.stuck)
    }

    /// Says whether checkpoints fail for lack of space.
    pub fn set_uncut(&self, uncut: bool) {
        self.0.uncut.store(uncut, Ordering::Release);
        self.0.cut.notify_waiters();
    }

    /// Whether this member is the only voter there is, so that whatever it has written is committed.
    pub fn is_sole_voter(&self) -> bool {
        self.0.sole.load(Ordering::Acquire)
    }

    /// Bytes of entries in memory.
    pub fn bytes(&self) -> usize {
        self.0.bytes.load(Ordering::Relaxed)
    }

    /// Bytes of what follows the entry `index`, as far as they are sent at once.
    pub fn sent_after(&self, index: Option<u64>) -> usize {
        let inner = self.0.inner.lock();
        let next = index.map_or(0, |index| index + 1);
        let mut bytes = 0;
        inner
            .entries
            .range(inner.range(next..))
            .map(size)
            .take_while(|size| {
                let fits = bytes < READ_BYTES_MAX;
                bytes += size;
                fits
            })
            .sum()
    }

    /// Whether a snapshot is on its way to `member`.
    pub fn is_sent_snapshot(&self, member: MemberId) -> bool {
        self.0.sent.lock().get(&member).is_some_and(|sent| sent.until.is_none())
    }

    /// Whether it is time to cut it.
    pub fn is_large(&self) -> bool {
        self.0.is_large(&self.0.inner.lock())
    }

    /// Whether it is so large that nobody who needs old entries is waited for: writes would be next.
    fn is_crowded(&self) -> bool {
        self.0.is_crowded(self.bytes())
    }

    /// Whether a member that has the log up to `previous` keeps it from being cut, which it has to be: what such a member lacks it
    /// gets in a snapshot.
    pub fn is_in_the_way(&self, previous: Option<u64>) -> bool {
        let next = previous.map_or(0, |previous| previous + 1);
        self.is_crowded() && next < self.0.kept_from.load(Ordering::Acquire)
    }

    /// Keeps what follows the entry `index`, the last in a snapshot for `member`, as long as there is room: it would need another
    /// snapshot otherwise, and another after that one.
    pub fn hold(&self, member: MemberId, index: u64) -> Hold {
        let mut sent = self.0.sent.lock();
        let number = sent.get(&member).map_or(0, |before| before.number + 1);
        sent.insert(member, Sent { number, index, until: None });
        Hold { log: self.clone(), member, number }
    }

    /// The last entry that may go as long as snapshots are on their way.
    fn held_after(&self) -> Option<u64> {
        let (mut all, now) = (self.0.sent.lock(), host::now());
        all.retain(|_, sent| sent.until.is_none_or(|until| now < until));
        all.values().map(|sent| sent.index).min()
    }

    /// Bytes of applied entries that may be kept for other members, so that cutting still makes room. None while its files cannot be
    /// [tidied](Log::is_cramped): what is kept has to be said again in what there is.
    pub fn keepable(&self) -> usize {
        if self.is_cramped() { 0 } else { self.0.sizes.cut / 8 }
    }

    /// Whether the next file cannot be made, or old ones cannot go before less is to be said again: nobody else's need counts then.
    fn is_cramped(&self) -> bool {
        self.0.inner.lock().is_cramped()
    }

    /// Whether old files could not be deleted when it was last cut.
    pub fn is_rotation_owed(&self) -> bool {
        self.0.inner.lock().is_rotation_owed()
    }

    /// Whether cutting it again gives something, although nothing was written since: the snapshot that kept entries up to `covered` is
    /// not on its way any more, or the files could not be tidied and less can be kept.
    pub fn is_cut_due(&self, covered: u64) -> bool {
        let held_after = self.held_after();
        let inner = self.0.inner.lock();
        let is_any = !inner.entries.is_empty() && inner.first() <= covered;
        let is_over = inner.is_held && (held_after.is_none_or(|held| held >= inner.first()) || inner.is_cramped());
        is_any && (is_over || inner.is_rotation_owed())
    }

    /// Waits until it may be time to cut it.
    pub async fn grown(&self) {
        self.0.grown.notified().await;
    }

    /// Waits for room for a proposal of `bytes`, in turn. What is `small` may use what is kept when the disk is full.
    pub async fn room(&self, bytes: usize, small: bool) -> Result<Room, NoSpace> {
        let _turn = self.0.turn.lock().await;
        let is_full = || self.bytes() + self.0.promised.load(Ordering::Relaxed) >= self.0.sizes.full;
        while is_full() {
            let cut = self.0.cut.notified();
            tokio::pin!(cut);
            // Listening comes before looking, so that no cut in between is missed.
            cut.as_mut().enable();
            if !is_full() {
                break;
            }
            if self.0.uncut.load(Ordering::Acquire) {
                return Err(NoSpace);
            }
            cut.await;
        }
        let kept = if small { self.kept_for_raft() } else { KEPT_FOR_SMALL.min(self.0.sizes.segment / 2) };
        self.room_in_files(bytes, kept).await
    }

    /// Waits for room for `bytes` of entries that a leader has sent. What Raft itself needs, a vote for the next leader, is kept: a
    /// log that waits for space has all of Raft wait.
    pub async fn room_for_entries(&self, bytes: usize) -> Result<Room, NoSpace> {
        self.room_in_files(bytes, self.kept_for_raft()).await
    }

    fn kept_for_raft(&self) -> u64 {
        KEPT_FOR_RAFT.min(self.0.sizes.segment / 8)
    }

    /// Waits until `bytes` fit in the files that are there and `kept` are left, or the next file is there.
    async fn room_in_files(&self, bytes: usize, kept: u64) -> Result<Room, NoSpace> {
        while let Some(space) = self.space().filter(|space| !space.ready) {
            let promised = self.0.promised.load(Ordering::Relaxed);
            if space.left >= (promised + bytes) as u64 + kept {
                break;
            }
            if space.stuck {
                return Err(NoSpace);
            }
            self.hurry().await;
        }
        self.0.promised.fetch_add(bytes, Ordering::Relaxed);
        Ok(Room { log: self.clone(), bytes })
    }

    /// Has the next file made now; returns when something is known of it.
    pub async fn hurry(&self) {
        let known = self.0.inner.lock().wal.as_ref().map(Wal::hurry);
        if let Some(known) = known {
            known.await;
        }
    }

    /// Says how large the log is now, to whom it concerns.
    fn resized(&self, inner: &Inner) {
        self.0.bytes.store(inner.bytes, Ordering::Relaxed);
        if self.0.is_large(inner) {
            self.0.grown.notify_one();
        }
        if inner.bytes < self.0.sizes.full {
            self.0.cut.notify_waiters();
        }
    }

    /// Up to where entries can go when about `keep` bytes of those before `applied` are to stay, and what others still need as long as
    /// there is room for it, here and on the disk.
    pub fn purgeable(&self, applied: u64, keep: usize) -> Option<u64> {
        let held_after = self.held_after().filter(|_| self.bytes() < self.0.sizes.full / 2);
        let mut inner = self.0.inner.lock();
        let held_after = held_after.filter(|_| !inner.is_cramped());
        inner.is_held = false;
        let (mut newer, mut kept, mut goes) = (0, 0, None);
        for entry in inner.entries.iter().rev() {
            let bytes = size(entry);
            match entry.log_id.index {
                index if index > applied => newer += bytes,
                index if kept + bytes > keep => {
                    goes = Some(index);
                    break;
                }
                _ => kept += bytes,
            }
        }
        let goes = goes?;
        inner.owed = (goes, inner.bytes - newer - kept);
        self.0.kept_from.fetch_max(goes + 1, Ordering::AcqRel);
        let upto = held_after.map_or(goes, |held| held.min(goes));
        inner.is_held = upto < goes;
        (upto >= inner.first()).then_some(upto)
    }

    /// Has `body` written behind what `change` does in memory, in one step, and waits until it is on disk.
    async fn write(&self, change: impl FnOnce(&mut Inner) -> Vec<u8>) -> io::Result<()> {
        let (send, receive) = oneshot::channel();
        {
            let mut inner = self.0.inner.lock();
            let body = change(&mut inner);
            self.resized(&inner);
            inner.append(vec![body], Box::new(move |result| drop(send.send(result))));
        }
        receive.await.unwrap_or_else(|_| Err(io::Error::other("the log's writer has ended")))
    }
}

impl Unstarted {
    /// What was read, without writing anything.
    pub fn held(self) -> Held {
        let Inner { vote, purged, entries, .. } = self.inner;
        Held { dir: self.dir, vote, purged, entries }
    }

    /// Has on the disk what was read, and goes on behind it.
    pub fn start(self, host: &Host) -> io::Result<Log> {
        let Unstarted { found, mut dir, member, sizes, mut inner, sole } = self;
        dir.tidy(host)?;
        inner.wal = Some(found.start()?);
        inner.dir = Some(dir);
        let shared = Shared {
            member,
            sizes,
            bytes: AtomicUsize::new(inner.bytes),
            inner: Mutex::new(inner),
            sole: AtomicBool::new(sole),
            promised: AtomicUsize::new(0),
            turn: tokio::sync::Mutex::new(()),
            uncut: AtomicBool::new(false),
            kept_from: AtomicU64::new(0),
            sent: Mutex::default(),
            grown: Notify::new(),
            cut: Notify::new(),
        };
        Ok(Log(Arc::new(shared)))
    }
}

impl Shared {
    fn is_crowded(&self, bytes: usize) -> bool {
        bytes >= self.sizes.full / 4 * 3
    }

    /// What is owed to others is no reason to cut it again before there is as much more; unless it is crowded.
    fn is_large(&self, inner: &Inner) -> bool {
        let owed = if self.is_crowded(inner.bytes) { 0 } else { inner.owed.1 };
        inner.bytes - owed >= self.sizes.cut
    }
}

impl Inner {
    fn is_rotation_owed(&self) -> bool {
        self.wal.as_ref().is_some_and(Wal::is_rotation_owed)
    }

    fn is_cramped(&self) -> bool {
        self.is_rotation_owed() || self.wal.as_ref().is_some_and(|wal| wal.space().stuck)
    }

    /// Has `bodies` written.
    fn append(&mut self, bodies: Vec<Vec<u8>>, done: Done) {
        self.written += bodies.iter().map(Vec::len).sum::<usize>();
        match &self.wal {
            Some(wal) => wal.append(bodies, done),
            None => done(Err(io::Error::other("the log is closed"))),
        }
    }

    /// Has `body` written with what comes next.
    fn note(&mut self, body: Vec<u8>) {
        self.written += body.len();
        if let Some(wal) = &self.wal {
            wal.note(body);
        }
    }

    fn last(&self) -> Option<LogId> {
        self.entries.back().map(|entry| entry.log_id).or(self.purged)
    }

    /// Index of the first entry that is or would be in `entries`.
    fn first(&self) -> u64 {
        match (self.entries.front(), &self.purged) {
            (Some(entry), _) => entry.log_id.index,
            (None, Some(purged)) => purged.index + 1,
            (None, None) => 0,
        }
    }

    fn push(&mut self, entry: Entry) {
        self.bytes += size(&entry);
        self.entries.push_back(entry);
    }

    /// Takes an entry read from disk: a new one, or one said again.
    ///
    /// A crash while old segments were being deleted, the oldest first, leaves the end of what they said before the
    /// repetition of all of it. That end is then behind a gap, which only [`Inner::check`] may judge, once all is read.
    fn restore(&mut self, entry: Entry) -> io::Result<()> {
        let index = entry.log_id.index;
        if self.purged.as_ref().is_some_and(|purged| index <= purged.index) {
            return Ok(());
        }
        if let Some(first) = self.entries.front().map(|entry| entry.log_id.index) {
            let next = first + self.entries.len() as u64;
            if index > next {
                let why = format!("entry {index} of the log follows {:?}", self.last());
                return Err(io::Error::new(io::ErrorKind::InvalidData, why));
            }
            if index < first {
                // What is there lacks its beginning; here it is said again from there on.
                self.cut_from(0);
            } else if let Some(there) = self.entries.get((index - first) as usize) {
                if there.log_id == entry.log_id {
                    return Ok(());
                }
                self.cut_from(index);
            }
        }
        self.push(entry);
        Ok(())
    }

    /// Refuses a log that lacks entries behind its purge mark.
    fn check(&self) -> io::Result<()> {
        match (&self.purged, self.entries.front()) {
            (Some(purged), Some(first)) if first.log_id.index > purged.index + 1 => {
                let why = format!("entry {} of the log follows {purged}", first.log_id);
                Err(io::Error::new(io::ErrorKind::InvalidData, why))
            }
            (None, Some(first)) if first.log_id.index > 0 => {
                let why = format!("the log begins with entry {}", first.log_id);
                Err(io::Error::new(io::ErrorKind::InvalidData, why))
            }
            _ => Ok(()),
        }
    }

    /// Refuses a log that does not fit the checkpoint, which covers the entries up to `covered`.
    fn check_against(&self, covered: Option<&LogId>, sole: bool) -> Result<(), String> {
        let (covered, purged) = (covered.map(|id| id.index), self.purged.map(|id| id.index));
        if purged > covered {
            return Err(format!(
                "it was cut up to entry {}, and state.redb has entries up to {} only: that file is older than the log",
                purged.unwrap_or_default(),
                covered.unwrap_or_default()
            ));
        }
        let last = self.last().map(|id| id.index);
        // Where there are other members, a snapshot from one of them may be ahead of the log.
        if sole && last < covered {
            return Err(format!(
                "it ends with entry {}, and state.redb has entries up to {}: its newest part is missing",
                last.unwrap_or_default(),
                covered.unwrap_or_default()
            ));
        }
        Ok(())
    }

    fn cut_from(&mut self, index: u64) {
        while let Some(entry) = self.entries.pop_back_if(|entry| entry.log_id.index >= index) {
            self.forget(&entry);
        }
    }

    /// Counts an entry no more, neither as kept nor as owed to others.
    fn forget(&mut self, entry: &Entry) {
        let bytes = size(entry);
        self.bytes -= bytes;
        if entry.log_id.index <= self.owed.0 {
            self.owed.1 = self.owed.1.saturating_sub(bytes);
        }
    }

    fn truncate(&mut self, after: Option<&LogId>) {
        self.cut_from(after.map_or(0, |after| after.index + 1));
    }

    fn purge(&mut self, upto: LogId) {
        while let Some(entry) = self.entries.pop_front_if(|entry| entry.log_id.index <= upto.index) {
            self.forget(&entry);
        }
        if self.entries.is_empty() {
            self.entries.shrink_to(1024);
        }
        self.purged = self.purged.max(Some(upto));
    }

    fn range(&self, range: impl RangeBounds<u64>) -> std::ops::Range<usize> {
        let first = self.first();
        let start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(start) => start.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(end) => end.saturating_add(1),
            Bound::Excluded(end) => *end,
            Bound::Unbounded => u64::MAX,
        };
        let end = (end.saturating_sub(first) as usize).min(self.entries.len());
        (start.saturating_sub(first) as usize).min(end)..end
    }
}

/// Bytes of an entry in memory, about.
pub fn size(entry: &Entry) -> usize {
    let content = match &entry.payload {
        EntryPayload::Normal(transaction) => transaction.size(),
        EntryPayload::Blank | EntryPayload::Membership(_) => 64,
    };
    content + size_of::<Entry>()
}

fn is_sole(membership: &Membership<MemberId, openraft::BasicNode>, member: MemberId) -> bool {
    matches!(&membership.get_joint_config()[..], [voters] if voters.len() == 1 && voters.contains(&member))
}

impl RaftLogReader<TypeConfig> for Log {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        let inner = self.0.inner.lock();
        Ok(inner.entries.range(inner.range(range)).cloned().collect())
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        let inner = self.0.inner.lock();
        let mut bytes = 0;
        let entries = inner.entries.range(inner.range(start..end)).take_while(|entry| {
            let fits = bytes == 0 || bytes < READ_BYTES_MAX;
            bytes += size(entry);
            fits
        });
        Ok(entries.cloned().collect())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.0.inner.lock().vote)
    }
}

impl RaftLogStorage<TypeConfig> for Log {
    type LogReader = Log;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let inner = self.0.inner.lock();
        Ok(LogState { last_purged_log_id: inner.purged, last_log_id: inner.last() })
    }

    async fn get_log_reader(&mut self) -> Log {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        self.write(|inner| {
            inner.vote = Some(*vote);
            codec::vote(vote)
        })
        .await
    }

    /// Written with the next entries, so that it costs no sync which they would have to wait for: one that is lost is an older
    /// one. A sole voter needs none ([`Log::read_committed`]).
    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        let mut inner = self.0.inner.lock();
        if let Some(upto) = committed.filter(|upto| inner.committed < Some(*upto)) {
            inner.committed = committed;
            if !self.is_sole_voter() {
                inner.note(codec::committed(&upto));
            }
        }
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        let inner = self.0.inner.lock();
        // One that was written may be of entries that were not yet on the disk then.
        Ok(if self.is_sole_voter() { inner.last() } else { inner.committed.min(inner.last()) })
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        self.append_entries(entries.into_iter().collect(), Box::new(move |result| callback.io_completed(result)));
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        self.write(|inner| {
            inner.truncate(last.as_ref());
            codec::truncate(last.as_ref())
        })
        .await
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), io::Error> {
        self.purge_upto(upto);
        Ok(())
    }
}

impl Log {
    /// Appends `entries`; `done` is called once they are on disk.
    pub fn append_entries(&self, entries: Vec<Entry>, done: Done) {
        let transactions: Vec<Transaction> = entries
            .iter()
            .filter_map(|entry| match &entry.payload {
                EntryPayload::Normal(transaction) => Some(transaction.clone()),
                EntryPayload::Blank | EntryPayload::Membership(_) => None,
            })
            .collect();
        let done: Done = Box::new(move |result| {
            transactions.iter().for_each(Transaction::written);
            done(result);
        });
        // Encoding comes before the lock: whoever applies reads under it.
        let bodies: Vec<Vec<u8>> = entries.iter().map(codec::entry).collect();
        for entry in &entries {
            if entry.get_membership().is_some_and(|membership| !is_sole(&membership, self.0.member)) {
                self.0.sole.store(false, Ordering::Release);
            } else if entry.log_id.index == 0 && entry.get_membership().is_some() {
                self.0.sole.store(true, Ordering::Release);
            }
        }
        let mut inner = self.0.inner.lock();
        for entry in entries {
            inner.push(entry);
        }
        self.resized(&inner);
        inner.append(bodies, done);
    }

    fn purge_upto(&self, upto: LogId) {
        let mut inner = self.0.inner.lock();
        inner.purge(upto);
        self.resized(&inner);
        // Nobody waits: what a lost purge mark leaves is read again, and purged again.
        if inner.written < self.0.sizes.rotate && !inner.is_rotation_owed() {
            inner.append(vec![codec::purge(&upto)], Box::new(|_| ()));
        } else {
            let mut bodies = vec![codec::purge(&upto)];
            bodies.extend(inner.vote.as_ref().map(codec::vote));
            bodies.extend(inner.committed.as_ref().filter(|_| !self.is_sole_voter()).map(codec::committed));
            bodies.extend(inner.entries.iter().map(codec::entry));
            inner.written = bodies.iter().map(Vec::len).sum();
            if let Some(wal) = &inner.wal {
                wal.rotate(bodies, Box::new(|_| ()));
            }
        }
    }

    /// Bytes that are promised and not written.
    #[cfg(test)]
    pub fn promised(&self) -> usize {
        self.0.promised.load(Ordering::Relaxed)
    }

    /// What is read back: vote, purge mark and entries, for those who compare.
    #[cfg(test)]
    pub fn contents(&self) -> (Option<Vote>, Option<LogId>, Vec<Entry>) {
        let inner = self.0.inner.lock();
        (inner.vote, inner.purged, inner.entries.iter().cloned().collect())
    }

    /// What the log's writer does when nothing comes for some time.
    #[cfg(test)]
    pub fn settle(&self) -> io::Result<()> {
        self.0.inner.lock().wal.as_ref().map_or(Ok(()), Wal::settle)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::types::LeaderId;
    use super::*;
    use crate::Begin;
    use crate::simulation::{SIZES, SimDisk};

    fn id(index: u64) -> LogId {
        LogId::new(LeaderId { term: 1, node_id: 1 }, index)
    }

    /// What is read back from these frames: a number is an entry, a negative one purges up to it.
    fn read(frames: &[i64]) -> io::Result<Vec<u64>> {
        let mut inner = Inner::default();
        for frame in frames {
            match u64::try_from(*frame) {
                Ok(index) => inner.restore(Entry::new(id(index), EntryPayload::Blank))?,
                Err(_) => inner.purge(id(frame.unsigned_abs())),
            }
        }
        inner.check()?;
        Ok(inner.entries.iter().map(|entry| entry.log_id.index).collect())
    }

    #[tokio::test]
    async fn what_is_committed_is_said_without_a_sync() {
        let disk = SimDisk::new(1);
        let host = Host::simulated(Arc::new(disk.clone()), 7, false, SIZES);
        let mut dir = Dir::open(&host, Path::new("/data"), &Begin::Found).unwrap();
        crate::raft::found(&host, &mut dir).unwrap();
        let read = |dir| {
            crate::raft::Member::read(&host, dir, crate::Config::new("").retention, crate::Formats::OWN, None).unwrap()
        };
        let (mut log, machine) = read(dir).start().unwrap().parts();
        assert!(!log.is_sole_voter());
        let append = |log: &Log, index| {
            let done = Box::new(|result: io::Result<()>| result.unwrap());
            log.append_entries(vec![Entry::new(id(index), EntryPayload::Blank)], done);
        };
        append(&log, 0);
        let before = disk.syncs();
        log.save_committed(Some(id(0))).await.unwrap();
        assert_eq!(disk.syncs(), before);
        append(&log, 1);
        assert_eq!(disk.syncs(), before + 1);
        log.close();
        machine.close();
        let dir = Dir::open(&host, Path::new("/data"), &Begin::Resume).unwrap();
        let (mut log, _) = read(dir).start().unwrap().parts();
        assert_eq!(log.read_committed().await.unwrap(), Some(id(0)));
    }

    /// What a snapshot on its way needs is kept while there is room, and cut as soon as it is not needed, or the disk is full.
    #[tokio::test]
    async fn a_snapshot_on_its_way_does_not_keep_a_full_disk_from_being_tidied() {
        let disk = SimDisk::new(1);
        let host = Host::simulated(Arc::new(disk.clone()), 7, false, SIZES);
        let mut dir = Dir::open(&host, Path::new("/data"), &Begin::Found).unwrap();
        crate::raft::found(&host, &mut dir).unwrap();
        let read =
            crate::raft::Member::read(&host, dir, crate::Config::new("").retention, crate::Formats::OWN, None).unwrap();
        let (log, machine) = read.start().unwrap().parts();
        let next = std::cell::Cell::new(0);
        let append = |bytes: usize| {
            let value = crate::Value { bytes: vec![7; bytes].into(), revision_at: 0 };
            let put = crate::Op::Put { key: crate::Key::new("test", "a"), value, guard: crate::Guard::None };
            let index = next.replace(next.get() + 1);
            let entry = Entry::new(id(index), EntryPayload::Normal(Transaction::new(vec![put])));
            log.append_entries(vec![entry], Box::new(|result| result.unwrap()));
        };
        let cut = |applied: u64| {
            let upto = log.purgeable(applied, log.keepable());
            if let Some(upto) = upto {
                log.purge_upto(id(upto));
            }
            upto
        };
        // In memory it is far from full.
        (0..4).for_each(|_| append(4 << 10));
        let _hold = log.hold(2, 1);
        assert_eq!(cut(3), Some(1));
        assert!(!log.is_cut_due(3), "the snapshot is still on its way");
        let later = log.hold(2, 2);
        assert!(log.is_cut_due(3), "a newer one takes its place");
        assert_eq!((cut(3), log.is_cut_due(3)), (Some(2), false));
        // The disk has no space for another file, and those that are there are used up.
        disk.set_capacity(disk.used());
        while !log.space().unwrap().stuck {
            append(4 << 10);
            log.hurry().await;
            assert!(next.get() < 100, "it is full some time");
        }
        let last = next.get() - 1;
        assert!(log.is_cut_due(last), "what was kept may go");
        assert_eq!((log.keepable(), cut(last), log.is_cut_due(last)), (0, Some(last), false));
        drop(later);
        // Nor do entries stay that would have to be said again, where that is why no old file could go.
        let purged = last;
        while log.space().unwrap().left > 5 << 10 {
            append(1 << 10);
        }
        let last = next.get() - 1;
        log.purge_upto(id(purged));
        assert!(log.is_rotation_owed() && log.is_cut_due(last));
        assert_eq!(
            (log.keepable(), cut(last), log.is_rotation_owed(), log.is_cut_due(last)),
            (0, Some(last), false, false)
        );
        // So there is room again.
        disk.set_capacity(u64::MAX);
        log.hurry().await;
        append(4 << 10);
        assert!(!log.space().unwrap().stuck);
        log.close();
        machine.close();
    }

    #[test]
    fn what_is_said_again_is_taken_once_wherever_a_crash_cut_the_old() {
        let whole = vec![4, 5, 6, 7, 8];
        for (frames, expected) in [
            // Nothing was deleted yet.
            (&[1, 2, 3, 4, 5, 6, -3, 4, 5, 6, 7, 8][..], Some(whole.clone())),
            // The oldest segment is gone: the rest begins behind a gap.
            (&[5, 6, -3, 4, 5, 6, 7, 8], Some(whole.clone())),
            // The same with a purge mark of before in it, whose entries went with the oldest segment.
            (&[5, -2, 6, -3, 4, 5, 6, 7, 8], Some(whole.clone())),
            (&[-3, 4, 5, 6, 7, 8], Some(whole)),
            (&[-3], Some(vec![])),
            // These are damage.
            (&[-3, 5, 6], None),
            (&[4, 6], None),
        ] {
            assert_eq!(read(frames).ok(), expected, "{frames:?}");
        }
    }
}
