//! When a CronJob is due: the five fields and descriptors of cron as Kubernetes reads them (robfig/cron's standard
//! parser), and the moments that they name in a time zone.
//!
//! Time zones are data that is compiled in ([`Zone`]): every server knows the same, whatever its machine has.

mod next;
mod parse;
mod zone;

use jiff::Timestamp;

pub use zone::Zone;

/// What is wrong with a schedule or a time zone, in the words of the reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ScheduleError(String);

/// Moments that repeat.
#[derive(Debug, Clone)]
pub struct Schedule {
    when: When,
    zone: Zone,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    Fields(Fields),
    /// Seconds from one to the next, at least one.
    Every(i64),
}

/// What each field allows, a bit a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Fields {
    minutes: u64,
    hours: u64,
    /// Days of the month.
    days: u64,
    months: u64,
    weekdays: u64,
}

/// Beside the bits of a field: whether it was `*`.
const STAR: u64 = 1 << 63;

impl Schedule {
    /// Reads a schedule, like `*/5 8-18 * * mon-fri`, `@hourly` or `@every 90s`; one that names no zone is in UTC.
    pub fn parse(text: &str) -> Result<Self, ScheduleError> {
        parse::schedule(text)
    }

    /// The same in another zone.
    #[must_use]
    pub fn within(self, zone: Zone) -> Self {
        Self { zone, ..self }
    }

    /// The first moment after this one; none when there is none within five years.
    pub fn next(&self, after: Timestamp) -> Option<Timestamp> {
        // Whole seconds, counted down also before 1970.
        let second = i64::try_from(after.as_nanosecond().div_euclid(1_000_000_000)).ok()?;
        let next = match &self.when {
            When::Every(seconds) => second.checked_add(*seconds)?,
            When::Fields(fields) => next::after(fields, &self.zone, second)?,
        };
        Timestamp::from_second(next).ok()
    }

    /// The last moment after `from` that is not after `until`. What repeats after a while is counted from `from`.
    pub fn last(&self, from: Timestamp, until: Timestamp) -> Option<Timestamp> {
        let first = self.next(from).filter(|first| *first <= until)?;
        if let When::Every(seconds) = self.when {
            let more = (until.as_second() - first.as_second()) / seconds;
            return Timestamp::from_second(first.as_second() + more * seconds).ok();
        }
        // Going from one to the next would take as long as a user likes who has them each minute for years.
        let (mut last, mut until) = (first, until.as_second());
        while last.as_second() < until {
            let middle = last.as_second() + (until - last.as_second()) / 2;
            match self.next(Timestamp::from_second(middle).ok()?).filter(|next| next.as_second() <= until) {
                Some(next) => last = next,
                None => until = middle,
            }
        }
        Some(last)
    }
}

#[cfg(test)]
mod tests;
