//! Seats, and who takes the next one: decided without a clock, a lock or a wait.
//!
//! ```text
//! arrive ─► a seat is free: Seated ───────────────────────────► finish
//!        ─► none is: Waits, in a queue of its level ─► granted ┘   (or withdraw)
//!        ─► none is, and its queue is full: Rejected
//! ```
//! A level has `nominal` seats, by its shares of the server's. Up to `lendable` of them others may take while it has no use
//! for them, the rest is always free for it; and it may take up to `borrowable` of what others lend. A seat that is lent
//! comes back when the request that sits there ends, and as long as its owner waits for one, nothing more is lent: so nobody
//! waits for a period to be over, as in Kubernetes, which moves limits every ten seconds by what was asked for before.
//!
//! Within a level a flow is dealt a hand of queues by its hash, and waits in the one of them with the least work (shuffle
//! sharding: a flow that fills all of its queues is unlikely to have all of another's). The next to go is the first of the queue
//! that has had least: start-time fair queueing (Goyal, Vin and Cheng 1996) over seats × time, where a request is charged an
//! estimate when it begins, and what it took when it ends.
//!
//! Invariant: whoever waits cannot go now. `borrowed <= idle`, what is taken beyond nominal seats and what is lent and free.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::level::{Kind, Level as Spec};
use super::shuffle;

/// How long a request is taken to last until it has (Kubernetes' estimate).
const LASTS: Duration = Duration::from_millis(3);
/// Requests that wait at a time in all queues of all levels, whatever these say of their lengths.
const WAITING_MAX: usize = 10_000;

/// A level, as long as its configuration stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LevelId {
    slot: usize,
    life: u64,
}

/// What a request that goes on has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seat {
    level: LevelId,
    pub queue: Option<u32>,
    /// How often the queues had been dealt anew by then.
    deal: u64,
    pub width: u32,
}

/// Names a request that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    level: LevelId,
    pub number: u64,
}

/// Why a request is turned away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rejection {
    /// Its level has no queues, and no seat.
    ConcurrencyLimit,
    QueueFull,
    /// It has waited for as long as anybody does.
    TimeOut,
    /// Its client has gone.
    Cancelled,
}

/// What becomes of a request that arrives.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    Seated(Seat),
    Waits(Place),
    Rejected(Rejection),
    /// There is no such level any more.
    Gone,
}

/// Those who can go on now.
pub(super) type Granted<W> = Vec<(W, Seat)>;

struct Waiting<W> {
    number: u64,
    flow: u64,
    width: u32,
    waiter: W,
}

struct Queue<W> {
    /// Seats × nanoseconds that it will have had when its next request begins.
    start: u64,
    executing: usize,
    /// Seats taken, and those that are waited for.
    work: u64,
    waiting: VecDeque<Waiting<W>>,
}

struct Level<W> {
    name: Arc<str>,
    life: u64,
    spec: Spec,
    /// It is not configured any more, and ends when nobody sits or waits there.
    retired: bool,
    nominal: u64,
    lendable: u64,
    borrowable: u64,
    seats: u64,
    executing: usize,
    waiting: usize,
    /// The start of whoever began last: who comes anew begins there.
    virtual_time: u64,
    /// How often the queues were dealt anew.
    deal: u64,
    queues: HashMap<u32, Queue<W>>,
    /// Queues in which somebody waits, by their start.
    ready: BTreeSet<(u64, u32)>,
}

impl<W> Level<W> {
    fn is_empty(&self) -> bool {
        self.executing == 0 && self.waiting == 0
    }

    fn borrowed(&self) -> u64 {
        if self.spec.kind == Kind::Exempt { 0 } else { self.seats.saturating_sub(self.nominal) }
    }

    fn idle(&self) -> u64 {
        self.lendable.min(self.nominal.saturating_sub(self.seats))
    }

    /// Most seats that one request takes: ten, and no more than a part of what the level has (Kubernetes').
    fn width_max(&self) -> u32 {
        const MOST: u64 = 10;
        (self.nominal * 15).div_ceil(100).clamp(1, MOST) as u32
    }

    /// Has those who wait take no more than one request does.
    fn narrow(&mut self) {
        let most = self.width_max();
        for queue in self.queues.values_mut() {
            for waiting in &mut queue.waiting {
                queue.work -= u64::from(waiting.width.saturating_sub(most));
                waiting.width = waiting.width.min(most);
            }
        }
    }

    /// The seats that its next request takes.
    fn next_width(&self) -> Option<u32> {
        let (_, queue) = self.ready.first()?;
        self.queues.get(queue)?.waiting.front().map(|first| first.width)
    }

    /// Whether somebody waits for a seat that is the level's own.
    fn waits_for_its_own(&self) -> bool {
        self.next_width().is_some_and(|width| self.seats + u64::from(width) <= self.nominal)
    }

    fn queue(&mut self, number: u32) -> &mut Queue<W> {
        let start = self.virtual_time;
        self.queues.entry(number).or_insert_with(|| Queue { start, executing: 0, work: 0, waiting: VecDeque::new() })
    }

    /// The queue of a flow: of its hand the one with the least work.
    fn queue_of(&self, flow: u64) -> Option<u32> {
        let Kind::Queue(queuing) = &self.spec.kind else { return None };
        let work = |queue: &u32| self.queues.get(queue).map_or(0, |queue| queue.work);
        shuffle::hand(flow, queuing.queues, queuing.hand_size).min_by_key(work)
    }

    fn begin(&mut self, queue: Option<u32>, width: u32) {
        self.executing += 1;
        let Some(number) = queue else { return };
        let queue = self.queue(number);
        let start = queue.start;
        queue.start = start.saturating_add(charge(width, LASTS));
        queue.executing += 1;
        queue.work += u64::from(width);
        self.virtual_time = self.virtual_time.max(start);
    }

    fn end(&mut self, seat: Seat, lasted: Duration) {
        let width = seat.width;
        self.executing -= 1;
        // Queues that were dealt since know nothing of it.
        let Some(number) = seat.queue.filter(|_| seat.deal == self.deal) else { return };
        let Entry::Occupied(mut entry) = self.queues.entry(number) else { return };
        let queue = entry.get_mut();
        let before = queue.start;
        queue.start = before.saturating_sub(charge(width, LASTS)).saturating_add(charge(width, lasted));
        queue.executing -= 1;
        queue.work -= u64::from(width);
        let after = queue.start;
        if !queue.waiting.is_empty() {
            self.ready.remove(&(before, number));
            self.ready.insert((after, number));
        } else if queue.executing == 0 {
            entry.remove();
        }
    }

    fn wait(&mut self, number: u32, waiting: Waiting<W>) {
        let width = u64::from(waiting.width);
        let queue = self.queue(number);
        queue.work += width;
        queue.waiting.push_back(waiting);
        let ready = (queue.start, number);
        self.ready.insert(ready);
        self.waiting += 1;
    }

    /// Takes the next one out of its queue.
    fn next(&mut self) -> Option<(u32, Waiting<W>)> {
        let (start, number) = self.ready.pop_first()?;
        let queue = self.queues.get_mut(&number)?;
        let first = queue.waiting.pop_front()?;
        queue.work -= u64::from(first.width);
        // Where it stands when this one begins.
        if !queue.waiting.is_empty() {
            self.ready.insert((start.saturating_add(charge(first.width, LASTS)), number));
        }
        self.waiting -= 1;
        Some((number, first))
    }

    /// Deals all who wait anew.
    fn deal_anew(&mut self) {
        self.deal += 1;
        self.ready.clear();
        let mut all: Vec<Waiting<W>> = Vec::new();
        for (_, queue) in self.queues.drain() {
            all.extend(queue.waiting);
        }
        self.waiting = 0;
        all.sort_by_key(|waiting| waiting.number);
        for waiting in all {
            // Without queues they are the only one that there is.
            let queue = self.queue_of(waiting.flow).unwrap_or_default();
            self.wait(queue, waiting);
        }
    }
}

/// What a request of a width that lasts so long has had.
fn charge(width: u32, lasts: Duration) -> u64 {
    u64::try_from(lasts.as_nanos()).unwrap_or(u64::MAX).saturating_mul(u64::from(width))
}

/// A level as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shown {
    pub name: Arc<str>,
    pub retired: bool,
    pub nominal: u64,
    pub lower: u64,
    pub upper: u64,
    /// What it has now: its own seats that are not lent, or those with what it has borrowed.
    pub current: u64,
    pub seats: u64,
    pub executing: usize,
    pub waiting: usize,
    /// Number, waiting, executing, seats taken and waited for, start: of the queues in use.
    pub queues: Vec<(u32, usize, usize, u64, u64)>,
}

/// The seats of a server.
pub(super) struct Dispatcher<W> {
    total: u64,
    levels: Vec<Level<W>>,
    borrowed: u64,
    idle: u64,
    waiting: usize,
    /// Of requests that wait, and of levels.
    next_number: u64,
    /// Which level borrows first: each in its turn.
    first: usize,
}

impl<W> Dispatcher<W> {
    /// With so many seats, and no level.
    pub fn new(total: u64) -> Dispatcher<W> {
        Dispatcher { total, levels: Vec::new(), borrowed: 0, idle: 0, waiting: 0, next_number: 0, first: 0 }
    }

    /// Has these levels from now on; gives them their names, in this order. Whoever sits or waits at another stays until it is
    /// done.
    pub fn configure(&mut self, specs: &[(Arc<str>, Spec)]) -> (Vec<LevelId>, Granted<W>) {
        for level in &mut self.levels {
            level.retired = !specs.iter().any(|(name, _)| *name == level.name);
        }
        let ids = specs.iter().map(|(name, spec)| self.set(name, spec)).collect();
        self.share();
        // Who waits is no wider than its level allows now: else nobody there would go on before it has given up.
        self.levels.iter_mut().for_each(Level::narrow);
        (ids, self.grant())
    }

    fn set(&mut self, name: &Arc<str>, spec: &Spec) -> LevelId {
        if let Some(slot) = self.levels.iter().position(|level| level.name == *name) {
            let level = &mut self.levels[slot];
            let is_dealt_anew = level.spec.kind != spec.kind;
            level.spec = spec.clone();
            if is_dealt_anew {
                level.deal_anew();
            }
            return LevelId { slot, life: level.life };
        }
        self.next_number += 1;
        let level = Level {
            name: name.clone(),
            life: self.next_number,
            spec: spec.clone(),
            retired: false,
            nominal: 0,
            lendable: 0,
            borrowable: 0,
            seats: 0,
            executing: 0,
            waiting: 0,
            virtual_time: 0,
            deal: 0,
            queues: HashMap::new(),
            ready: BTreeSet::new(),
        };
        let life = level.life;
        let slot = match self.levels.iter().position(|level| level.retired && level.is_empty()) {
            Some(slot) => {
                self.levels[slot] = level;
                slot
            }
            None => {
                self.levels.push(level);
                self.levels.len() - 1
            }
        };
        LevelId { slot, life }
    }

    /// Divides the seats among the levels by their shares. Those that end have theirs until then.
    fn share(&mut self) {
        let shares =
            |level: &Level<W>| if level.retired && level.is_empty() { 0 } else { u64::from(level.spec.shares) };
        let all: u64 = self.levels.iter().map(shares).sum();
        for level in &mut self.levels {
            level.nominal = (self.total * shares(level)).div_ceil(all.max(1));
            let nominal = level.nominal;
            level.lendable = part_of(nominal, level.spec.lendable_percent);
            level.borrowable = level.spec.borrowing_limit_percent.map_or(self.total, |most| part_of(nominal, most));
        }
        self.borrowed = self.levels.iter().map(Level::borrowed).sum();
        self.idle = self.levels.iter().map(Level::idle).sum();
    }

    fn level(&self, id: LevelId) -> Option<&Level<W>> {
        self.levels.get(id.slot).filter(|level| level.life == id.life)
    }

    /// Most seats that one request of this level takes.
    pub fn width_max(&self, id: LevelId) -> u32 {
        self.level(id).map_or(1, Level::width_max)
    }

    /// Whether so many seats more can be taken there.
    fn has_room(&self, slot: usize, width: u32) -> bool {
        let level = &self.levels[slot];
        if level.spec.kind == Kind::Exempt {
            return true;
        }
        let seats = level.seats + u64::from(width);
        if seats > level.nominal.saturating_add(level.borrowable) {
            return false;
        }
        // What is not lent is always free, also when there are fewer seats now than were given, and when who is exempt needs
        // more than it has left.
        if seats <= level.nominal - level.lendable.min(level.nominal) {
            return true;
        }
        let borrowed = self.borrowed - level.borrowed() + seats.saturating_sub(level.nominal);
        let idle = self.idle - level.idle() + level.lendable.min(level.nominal.saturating_sub(seats));
        let borrows = seats > level.nominal;
        let is_wanted =
            || self.levels.iter().enumerate().any(|(other, level)| other != slot && level.waits_for_its_own());
        borrowed <= idle && !(borrows && self.waiting > 0 && is_wanted())
    }

    fn count(&mut self, slot: usize, change: impl FnOnce(u64) -> u64) {
        let level = &mut self.levels[slot];
        let before = (level.borrowed(), level.idle());
        level.seats = change(level.seats);
        let after = (level.borrowed(), level.idle());
        self.borrowed = self.borrowed - before.0 + after.0;
        self.idle = self.idle - before.1 + after.1;
    }

    fn sit(&mut self, slot: usize, queue: Option<u32>, width: u32) -> Seat {
        self.levels[slot].begin(queue, width);
        self.count(slot, |seats| seats + u64::from(width));
        let level = &self.levels[slot];
        Seat { level: LevelId { slot, life: level.life }, queue, deal: level.deal, width }
    }

    /// A request of `flow` arrives that takes so many seats, at least one. `waiter` is made when it has to wait.
    pub fn arrive(&mut self, id: LevelId, flow: u64, width: u32, waiter: impl FnOnce() -> W) -> Arrival {
        let Some(level) = self.level(id).filter(|level| !level.retired) else { return Arrival::Gone };
        let queue = level.queue_of(flow);
        if level.waiting == 0 && self.has_room(id.slot, width) {
            return Arrival::Seated(self.sit(id.slot, queue, width));
        }
        let (Some(number), Kind::Queue(queuing)) = (queue, &level.spec.kind) else {
            return Arrival::Rejected(Rejection::ConcurrencyLimit);
        };
        let length = level.queues.get(&number).map_or(0, |queue| queue.waiting.len());
        if length >= queuing.length_limit as usize || self.waiting >= WAITING_MAX {
            return Arrival::Rejected(Rejection::QueueFull);
        }
        self.next_number += 1;
        let waiting = Waiting { number: self.next_number, flow, width, waiter: waiter() };
        self.levels[id.slot].wait(number, waiting);
        self.waiting += 1;
        Arrival::Waits(Place { level: id, number: self.next_number })
    }

    /// A request has ended after so long.
    pub fn finish(&mut self, seat: Seat, lasted: Duration) -> Granted<W> {
        let slot = seat.level.slot;
        self.levels[slot].end(seat, lasted);
        self.count(slot, |seats| seats - u64::from(seat.width));
        if self.levels[slot].retired && self.levels[slot].is_empty() {
            self.share();
        }
        self.grant()
    }

    /// A request waits no longer; nothing when it does not wait any more.
    pub fn withdraw(&mut self, place: Place) -> Granted<W> {
        let Some(level) = self.levels.get_mut(place.level.slot).filter(|level| level.life == place.level.life) else {
            return Vec::new();
        };
        let found = level.queues.iter().find_map(|(number, queue)| {
            // They stand in the order of their numbers.
            let at = queue.waiting.binary_search_by_key(&place.number, |waiting| waiting.number).ok()?;
            Some((*number, at))
        });
        let Some((number, at)) = found else { return Vec::new() };
        if let Entry::Occupied(mut entry) = level.queues.entry(number) {
            let queue = entry.get_mut();
            if let Some(waiting) = queue.waiting.remove(at) {
                queue.work -= u64::from(waiting.width);
            }
            level.waiting -= 1;
            self.waiting -= 1;
            if queue.waiting.is_empty() {
                level.ready.remove(&(queue.start, number));
                if queue.executing == 0 {
                    entry.remove();
                }
            }
        }
        if level.retired && level.is_empty() {
            self.share();
        }
        // Whoever was behind it may be narrower.
        self.grant()
    }

    /// Seats all who can go on: first those to whom a seat belongs, then those who borrow, each level in its turn.
    fn grant(&mut self) -> Granted<W> {
        let mut granted = Vec::new();
        if self.waiting == 0 {
            return granted;
        }
        for slot in 0..self.levels.len() {
            while self.levels[slot].waits_for_its_own() && self.grant_next(slot, &mut granted) {}
        }
        let mut refused = 0;
        while self.waiting > 0 && refused < self.levels.len() {
            self.first = (self.first + 1) % self.levels.len();
            refused = if self.grant_next(self.first, &mut granted) { 0 } else { refused + 1 };
        }
        granted
    }

    fn grant_next(&mut self, slot: usize, granted: &mut Granted<W>) -> bool {
        let Some(width) = self.levels[slot].next_width().filter(|width| self.has_room(slot, *width)) else {
            return false;
        };
        let Some((queue, next)) = self.levels[slot].next() else { return false };
        self.waiting -= 1;
        granted.push((next.waiter, self.sit(slot, Some(queue), width)));
        true
    }

    /// Requests that have a seat.
    pub fn executing(&self) -> usize {
        self.levels.iter().map(|level| level.executing).sum()
    }

    /// Where those who wait stand, by their numbers: the queue, and the place in it.
    pub fn standing(&self) -> HashMap<u64, (u32, usize)> {
        let queues = self.levels.iter().flat_map(|level| &level.queues);
        let places = queues.flat_map(|(queue, waiting)| {
            waiting.waiting.iter().enumerate().map(|(place, one)| (one.number, (*queue, place)))
        });
        places.collect()
    }

    /// The levels as they are, by name.
    pub fn show(&self) -> Vec<Shown> {
        let mut shown: Vec<Shown> = self
            .levels
            .iter()
            .filter(|level| !(level.retired && level.is_empty()))
            .map(|level| {
                let mut queues: Vec<_> = level
                    .queues
                    .iter()
                    .map(|(number, queue)| (*number, queue.waiting.len(), queue.executing, queue.work, queue.start))
                    .collect();
                queues.sort_unstable();
                // Who has lent what is not written down: in proportion to what each has free.
                let lent = (self.borrowed * level.idle()).div_ceil(self.idle.max(1));
                Shown {
                    name: level.name.clone(),
                    retired: level.retired,
                    nominal: level.nominal,
                    lower: level.nominal - level.lendable,
                    upper: level.nominal.saturating_add(level.borrowable),
                    current: (level.nominal - lent.min(level.nominal)).max(level.seats),
                    seats: level.seats,
                    executing: level.executing,
                    waiting: level.waiting,
                    queues,
                }
            })
            .collect();
        shown.sort_by(|a, b| a.name.cmp(&b.name));
        shown
    }
}

/// So many percent of the seats, to the nearest seat, as Kubernetes rounds.
fn part_of(seats: u64, percent: u32) -> u64 {
    (seats * u64::from(percent) + 50) / 100
}

#[cfg(test)]
mod tests;
