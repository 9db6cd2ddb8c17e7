//! Bytes on their way to clients, counted by caller until the transport lets go of them: what a body holds that is being
//! sent, and the pieces of it that were given to a connection and wait there for a client that does not read.
//!
//! A flow may have as many bytes as are left free, so there is room for one who comes later; one answer alone, when nothing
//! else is sent, may be larger. At the bound who stands still is given up, of the flow that has most: who has taken nothing
//! for two seconds, or takes what it holds so slowly that it would hold it for longer than half a minute. Its connection is
//! cut, since only that frees the pieces that lie in its buffers.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::slot::Slot;
use crate::answer::pieces::PIECE_BYTES;
use crate::limits::Connection;

/// Smaller answers and pieces are left to the buffers of their connections.
pub const COUNTED: usize = 16 << 10;
/// Bytes that are on their way, of the users and of the cluster's duties each.
pub(crate) const BYTES_MAX: usize = 256 << 20;
/// Most bodies that are counted at a time, of each.
const COUNTED_MAX: usize = 16_384;
/// Who has taken nothing for so long stands still.
const STILL: Duration = Duration::from_secs(2);
/// How often it is looked who stands still, where nobody did.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Seconds in which a body is to take what it holds, where others wait for that.
const TAKEN_IN: u64 = 30;
/// What is slower than this many bytes a second is too slow, however little it holds.
const LEAST_RATE: u64 = 16 << 10;

/// What is on its way to the callers of one class.
pub(crate) struct Account {
    still: Duration,
    /// Whether a half of it is taken. Below that nobody who sends small pieces has to look further.
    tight: AtomicBool,
    sending: Mutex<Sending>,
}

#[derive(Default)]
struct Sending {
    next: u64,
    bodies: HashMap<u64, Counted>,
    flows: HashMap<Arc<str>, Share>,
    bytes: usize,
    /// When nobody was found who stands still. All are looked at for that, and thousands may ask.
    in_vain: Option<Instant>,
}

#[derive(Default)]
struct Share {
    bodies: usize,
    bytes: usize,
}

/// One body.
struct Counted {
    flow: Arc<str>,
    /// What it holds, with what the transport has of it.
    bytes: usize,
    /// What the transport has of it.
    given: usize,
    /// Whether what was taken is not held any more.
    shrinks: bool,
    /// It is complete, or was let go of: only what the transport has is left of it.
    ended: bool,
    begun: Instant,
    /// What it held at the beginning.
    begun_with: usize,
    taken: u64,
    /// When something was taken for the last time.
    last: Instant,
    to: To,
}

/// Where a body goes.
#[derive(Default)]
struct To {
    slot: Weak<Slot>,
    /// Beside its body, which may be complete while the connection still has a piece.
    connection: Option<Connection>,
}

impl To {
    fn of(slot: &Arc<Slot>) -> To {
        To { slot: Arc::downgrade(slot), connection: slot.connection().cloned() }
    }

    fn give_up(&self) {
        if let Some(slot) = self.slot.upgrade() {
            slot.give_up();
        }
        if let Some(connection) = &self.connection {
            connection.cut();
        }
    }
}

impl Counted {
    fn stands_still(&self, still: Duration, now: Instant) -> bool {
        if now.saturating_duration_since(self.last) >= still {
            return true;
        }
        let Some(beyond) = now.saturating_duration_since(self.begun).checked_sub(still) else { return false };
        let rate = (self.begun_with as u64 / TAKEN_IN).max(LEAST_RATE);
        u128::from(self.taken) * 1_000 < u128::from(rate) * beyond.as_millis()
    }
}

impl Sending {
    fn open(&mut self, flow: &str, bytes: usize, shrinks: bool, to: To, now: Instant) -> u64 {
        let number = self.next;
        self.next += 1;
        let known = self.flows.get_key_value(flow).map(|(name, _)| name.clone());
        let flow = known.unwrap_or_else(|| Arc::from(flow));
        let share = self.flows.entry(flow.clone()).or_default();
        share.bodies += 1;
        share.bytes += bytes;
        self.bytes += bytes;
        let counted = Counted {
            flow,
            bytes,
            given: 0,
            shrinks,
            ended: false,
            begun: now,
            begun_with: bytes,
            taken: 0,
            last: now,
            to,
        };
        self.bodies.insert(number, counted);
        number
    }

    fn shrink(&mut self, number: u64, by: usize) {
        let Some(counted) = self.bodies.get_mut(&number) else { return };
        let by = by.min(counted.bytes);
        counted.bytes -= by;
        self.bytes -= by;
        if let Some(share) = self.flows.get_mut(&counted.flow) {
            share.bytes -= by;
        }
    }

    fn remove(&mut self, number: u64) -> Option<Counted> {
        let counted = self.bodies.remove(&number)?;
        self.bytes -= counted.bytes;
        if let Some(share) = self.flows.get_mut(&counted.flow) {
            share.bytes -= counted.bytes;
            share.bodies -= 1;
            if share.bodies == 0 {
                self.flows.remove(&counted.flow);
            }
        }
        Some(counted)
    }

    /// A piece was given to the transport.
    fn give(&mut self, number: u64, bytes: usize) {
        if let Some(counted) = self.bodies.get_mut(&number) {
            counted.given += bytes;
        }
    }

    /// The transport let go of a piece.
    fn taken(&mut self, number: u64, bytes: usize, now: Instant) {
        let Some(counted) = self.bodies.get_mut(&number) else { return };
        counted.given = counted.given.saturating_sub(bytes);
        counted.taken += bytes as u64;
        counted.last = now;
        let (is_over, shrinks) = (counted.ended && counted.given == 0, counted.shrinks || counted.ended);
        if is_over {
            self.remove(number);
        } else if shrinks {
            self.shrink(number, bytes);
        }
    }

    /// The body itself is gone.
    fn ended(&mut self, number: u64) {
        let Some(counted) = self.bodies.get_mut(&number) else { return };
        counted.ended = true;
        let (held, given) = (counted.bytes, counted.given);
        if given == 0 {
            self.remove(number);
        } else {
            self.shrink(number, held.saturating_sub(given));
        }
    }

    /// Whose body must go before `flow` gets one of `bytes` more; `None` when there is room.
    fn too_much(&self, flow: &str, bytes: usize) -> Option<Arc<str>> {
        let mine = self.flows.get_key_value(flow);
        let (bodies, held) = mine.map_or((0, 0), |(_, share)| (share.bodies, share.bytes));
        // What would be left of `most`.
        let left = |most: usize, taken: usize, more: usize| most.checked_sub(taken + more);
        let fits = left(BYTES_MAX, self.bytes, bytes).is_some_and(|left| held + bytes <= left) || self.bytes == 0;
        let counts = left(COUNTED_MAX, self.bodies.len(), 1).is_some_and(|left| bodies < left);
        if fits && counts {
            return None;
        }
        let greediest = |measure: fn(&Share) -> usize| {
            self.flows.iter().max_by_key(|(_, share)| measure(share)).map(|(name, _)| name.clone())
        };
        if fits { greediest(|share| share.bodies) } else { greediest(|share| share.bytes) }
    }

    /// Makes room for `bytes` of `flow`; says whether there is enough now, and what was given up for it.
    fn make_room(&mut self, flow: &str, bytes: usize, still: Duration, now: Instant) -> (bool, Vec<Counted>) {
        let mut gone = Vec::new();
        // Looked for once, and only at a bound: by flow, whoever has stood still for longest last.
        let mut idle: Option<HashMap<Arc<str>, Vec<u64>>> = None;
        while let Some(from) = self.too_much(flow, bytes) {
            if self.in_vain.is_some_and(|at| now.saturating_duration_since(at) < LOOK_EVERY) {
                return (false, gone);
            }
            let idle = idle.get_or_insert_with(|| self.idle(still, now));
            match idle.get_mut(&from).and_then(Vec::pop).and_then(|number| self.remove(number)) {
                Some(counted) => gone.push(counted),
                None => {
                    self.in_vain = Some(now);
                    return (false, gone);
                }
            }
        }
        (true, gone)
    }

    fn idle(&self, still: Duration, now: Instant) -> HashMap<Arc<str>, Vec<u64>> {
        let mut found: Vec<_> = self.bodies.iter().filter(|(_, counted)| counted.stands_still(still, now)).collect();
        found.sort_unstable_by_key(|(number, counted)| std::cmp::Reverse((counted.last, **number)));
        let mut by_flow: HashMap<Arc<str>, Vec<u64>> = HashMap::new();
        found.iter().for_each(|(number, counted)| by_flow.entry(counted.flow.clone()).or_default().push(**number));
        by_flow
    }
}

impl Account {
    pub fn new() -> Arc<Account> {
        Account::with(STILL)
    }

    /// One where who has taken nothing for `still` stands still.
    pub fn with(still: Duration) -> Arc<Account> {
        Arc::new(Account { still, tight: AtomicBool::new(false), sending: Mutex::default() })
    }

    /// Counts a body of `flow` that holds `bytes`; `None` when there is no room for it. `shrinks` says that it holds no more
    /// what was taken of it.
    pub fn open(self: &Arc<Account>, flow: &str, bytes: usize, shrinks: bool, slot: &Arc<Slot>) -> Option<Sent> {
        let (number, gone) = {
            let (mut sending, now) = (self.sending.lock(), Instant::now());
            let (has_room, gone) = sending.make_room(flow, bytes, self.still, now);
            let number = has_room.then(|| sending.open(flow, bytes, shrinks, To::of(slot), now));
            self.look(&sending);
            (number, gone)
        };
        give_up(gone);
        number.map(|number| Sent { account: self.clone(), number })
    }

    /// The same of what is there already, and counted whether there is room for it or not.
    pub fn open_anyway(self: &Arc<Account>, flow: &str, bytes: usize, shrinks: bool, slot: &Arc<Slot>) -> Sent {
        let mut sending = self.sending.lock();
        let number = sending.open(flow, bytes, shrinks, To::of(slot), Instant::now());
        self.look(&sending);
        Sent { account: self.clone(), number }
    }

    /// Whether `flow` may make its next piece. Costs a look at one flag as long as there is room for everybody.
    pub fn has_room(&self, flow: &str) -> bool {
        if !self.tight.load(Ordering::Relaxed) {
            return true;
        }
        let (has_room, gone) = {
            let mut sending = self.sending.lock();
            let made = sending.make_room(flow, PIECE_BYTES, self.still, Instant::now());
            self.look(&sending);
            made
        };
        give_up(gone);
        has_room
    }

    fn look(&self, sending: &Sending) {
        let tight = sending.bytes > BYTES_MAX / 2 || sending.bodies.len() > COUNTED_MAX / 2;
        if self.tight.load(Ordering::Relaxed) != tight {
            self.tight.store(tight, Ordering::Relaxed);
        }
    }

    /// Lets time go by for all that is there.
    #[cfg(test)]
    pub fn age(&self, by: Duration) {
        let mut sending = self.sending.lock();
        sending.in_vain = None;
        for counted in sending.bodies.values_mut() {
            counted.begun -= by;
            counted.last -= by;
        }
    }

    /// Bytes that are on their way.
    #[cfg(test)]
    pub fn bytes(&self) -> usize {
        let sending = self.sending.lock();
        assert_eq!(sending.bodies.is_empty(), sending.flows.is_empty());
        assert!(!sending.bodies.is_empty() || sending.bytes == 0);
        sending.bytes
    }
}

fn give_up(gone: Vec<Counted>) {
    gone.iter().for_each(|counted| counted.to.give_up());
}

/// A body that is counted, until it is dropped and the transport has let go of all its pieces.
pub(crate) struct Sent {
    account: Arc<Account>,
    number: u64,
}

impl Sent {
    /// The same bytes, counted until the transport lets go of them.
    pub fn give(&self, piece: Bytes) -> Bytes {
        self.account.sending.lock().give(self.number, piece.len());
        Bytes::from_owner(Given { piece, account: self.account.clone(), number: self.number })
    }
}

impl Drop for Sent {
    fn drop(&mut self) {
        let mut sending = self.account.sending.lock();
        sending.ended(self.number);
        self.account.look(&sending);
    }
}

/// A piece that the transport has.
struct Given {
    piece: Bytes,
    account: Arc<Account>,
    number: u64,
}

impl AsRef<[u8]> for Given {
    fn as_ref(&self) -> &[u8] {
        &self.piece
    }
}

impl Drop for Given {
    fn drop(&mut self) {
        let mut sending = self.account.sending.lock();
        sending.taken(self.number, self.piece.len(), Instant::now());
        self.account.look(&sending);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot() -> Arc<Slot> {
        Arc::new(Slot::new(axum::body::Body::empty(), None))
    }

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn who_takes_what_it_holds_too_slowly_stands_still_and_who_reads_does_not() {
        let (mut sending, begun) = (Sending::default(), Instant::now());
        let after = |seconds| begun + Duration::from_secs(seconds);
        // Two that hold much, of which one takes a hundred kilobytes a second: more than nothing.
        let slow = sending.open("slow", 100 << 20, false, To::default(), begun);
        let quick = sending.open("quick", 60 << 20, false, To::default(), begun);
        assert!(!sending.make_room("other", 64 << 20, STILL, begun).0, "they have just begun");
        for second in 1..=20 {
            for (number, bytes) in [(slow, 100 << 10), (quick, 4 << 20)] {
                sending.give(number, bytes);
                sending.taken(number, bytes, after(second));
            }
        }
        let (has_room, gone) = sending.make_room("other", 64 << 20, STILL, after(20));
        let gone: Vec<_> = gone.iter().map(|counted| &*counted.flow).collect();
        assert!(has_room && gone == ["slow"], "{gone:?}");
        // What is left is read, and nobody who reads makes room.
        let (has_room, gone) = sending.make_room("other", 200 << 20, STILL, after(20));
        assert!(!has_room && gone.is_empty());
        assert_eq!(sending.bytes, 60 << 20);
    }

    #[test]
    fn a_flow_has_no_more_than_is_left() {
        let account = Account::with(MINUTE);
        let all = |flow: &str, bytes| -> Vec<Sent> {
            std::iter::from_fn(|| account.open(flow, bytes, true, &slot())).collect()
        };
        let size = BYTES_MAX / 64;
        let held = [all("a", size), all("b", size), all("c", size), all("d", size)];
        assert_eq!(held.each_ref().map(Vec::len), [32, 16, 8, 4]);
        assert!(account.open("e", size, true, &slot()).is_some(), "there is room for one who comes later");
        assert!(account.open("f", 2 * BYTES_MAX, true, &slot()).is_none());
        drop(held);
        assert!(account.open("f", 2 * BYTES_MAX, true, &slot()).is_some(), "one alone may be larger");
    }

    #[tokio::test]
    async fn a_connection_is_cut_that_has_a_piece_of_what_is_complete() {
        let (account, connection) = (Account::with(Duration::ZERO), Connection::default());
        let to = Arc::new(Slot::new(axum::body::Body::empty(), Some(connection.clone())));
        let whole = account.open("a", BYTES_MAX / 2, true, &to).unwrap();
        let stashed = whole.give(vec![0; BYTES_MAX / 2].into());
        drop((whole, to));
        assert!(account.open("b", BYTES_MAX / 2, true, &slot()).is_some());
        tokio::time::timeout(MINUTE, connection.is_cut()).await.expect("nothing less frees it");
        drop(stashed);
        assert_eq!(account.bytes(), 0);
    }

    #[test]
    fn what_the_transport_has_is_counted_until_it_lets_go_of_it() {
        let account = Account::with(MINUTE);
        let whole = account.open("a", 100, true, &slot()).unwrap();
        let (first, second) = (whole.give(vec![0; 60].into()), whole.give(vec![0; 20].into()));
        assert_eq!((first.len(), account.bytes()), (60, 100));
        drop(first);
        assert_eq!(account.bytes(), 40);
        drop(whole);
        assert_eq!(account.bytes(), 20, "the rest was let go of, and this was given");
        let part = second.slice(..1);
        drop(second);
        assert_eq!(account.bytes(), 20);
        drop(part);
        assert_eq!(account.bytes(), 0);
    }
}
