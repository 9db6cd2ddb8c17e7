//! How many requests are under way, and how many were on average: counted without a lock, read by whoever likes, each with a
//! [`Reading`] of its own.
//!
//! The number is in the upper bits of one word, in the lower ones the time that all requests have taken together, modulo their
//! size: a request takes the moment of its begin away from it and adds that of its end, so that whoever reads adds the moment for
//! those that are under way. Both change in one operation, and a reading is exact.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Bits of the time, in microseconds. Readings are seconds apart: a million requests take 2⁴⁰ in one, and what is more than half of
/// all is less than nothing.
const TIME_BITS: u32 = 44;
const TIME: u64 = (1 << TIME_BITS) - 1;

/// Microseconds since whoever counts has begun.
pub(super) type Micros = u64;

#[derive(Debug, Default)]
pub(super) struct Meter(AtomicU64);

/// What was read last.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Reading {
    at: Micros,
    time: u64,
}

impl Meter {
    /// A request begins; says how many were under way.
    pub fn begin(&self, now: Micros) -> u64 {
        self.change(|count, time| (count + 1, time.wrapping_sub(now)))
    }

    /// It ends; says how many were under way with it.
    pub fn end(&self, now: Micros) -> u64 {
        self.change(|count, time| (count.saturating_sub(1), time.wrapping_add(now)))
    }

    fn change(&self, to: impl Fn(u64, u64) -> (u64, u64)) -> u64 {
        let change = |word: u64| {
            let (count, time) = to(word >> TIME_BITS, word & TIME);
            Some((count << TIME_BITS) | (time & TIME))
        };
        // It is never refused.
        let (Ok(before) | Err(before)) = self.0.fetch_update(Relaxed, Relaxed, change);
        before >> TIME_BITS
    }

    /// How many are under way.
    pub fn now(&self) -> u64 {
        self.0.load(Relaxed) >> TIME_BITS
    }

    /// How it stands.
    pub fn read(&self, now: Micros) -> Reading {
        let word = self.0.load(Relaxed);
        let time = word.wrapping_add((word >> TIME_BITS).wrapping_mul(now)) & TIME;
        Reading { at: now, time }
    }

    /// The average since `last`; of no time at all, how many there are.
    pub fn average(&self, last: &mut Reading, now: Micros) -> f64 {
        let read = self.read(now);
        let before = std::mem::replace(last, read);
        match (read.time.wrapping_sub(before.time) & TIME, now.saturating_sub(before.at)) {
            (0, 0) => self.now() as f64,
            // One that looked at the clock before the last reading, and has been counted as over after it.
            (time, _) if time > TIME / 2 => 0.0,
            (time, took) => time as f64 / took.max(1) as f64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Micros = 1_000_000;

    #[test]
    fn an_average_is_of_the_time_since_the_last_look() {
        let (meter, mut one, mut other) = (Meter::default(), Reading::default(), Reading::default());
        assert_eq!(meter.begin(S / 2), 0);
        assert_eq!(meter.begin(S / 2), 1);
        assert_eq!(meter.average(&mut one, S), 1.0, "two for half of the time");
        assert_eq!(meter.end(S + S / 4), 2);
        assert_eq!(meter.average(&mut one, 2 * S), 1.25);
        assert_eq!(meter.average(&mut other, 2 * S), 1.125, "who looks less often hears of all of it");
        assert_eq!((meter.average(&mut one, 2 * S), meter.now()), (1.0, 1), "no time has passed");
        assert_eq!(meter.end(3 * S), 1);
        assert_eq!((meter.average(&mut one, 4 * S), meter.average(&mut one, 5 * S)), (0.5, 0.0));
    }

    #[test]
    fn years_and_crowds_fit() {
        let (meter, mut reading) = (Meter::default(), Reading::default());
        // Three years after it has begun, the time has gone around its size.
        let late = 100_000_000 * S;
        meter.average(&mut reading, late);
        (0..100_000).for_each(|_| assert!(meter.begin(late) < 100_000));
        assert_eq!(meter.average(&mut reading, late + 10 * S), 100_000.0);
        (0..100_000).for_each(|_| assert!(meter.end(late + 20 * S) > 0));
        assert_eq!(meter.average(&mut reading, late + 20 * S), 100_000.0);
        assert_eq!((meter.average(&mut reading, late + 21 * S), meter.now()), (0.0, 0));
    }

    #[test]
    fn who_ends_by_an_older_clock_than_the_last_reading_is_no_crowd() {
        let (meter, mut reading) = (Meter::default(), Reading::default());
        meter.begin(S);
        assert_eq!(meter.average(&mut reading, 2 * S), 0.5);
        meter.end(2 * S - 3);
        assert_eq!((meter.average(&mut reading, 3 * S), meter.average(&mut reading, 4 * S)), (0.0, 0.0));
    }

    #[test]
    fn threads_lose_nothing() {
        let meter = Meter::default();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    (0..10_000).for_each(|at| {
                        meter.begin(at);
                        meter.end(at + 1);
                    })
                });
            }
        });
        let mut reading = Reading::default();
        assert_eq!((meter.now(), meter.average(&mut reading, 40_000)), (0, 1.0));
    }
}
