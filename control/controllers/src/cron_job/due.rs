//! When a CronJob is due: the latest moment that it has not been started for, and how long until the next.

use std::time::Duration;

use coracle_api::schedule::{Schedule, ScheduleError, Zone};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{CronJob, CronJobStatus};

/// How much later than a moment it is looked at, so that a clock that is a little early does not miss it.
const LATER: SignedDuration = SignedDuration::from_millis(100);
/// More missed moments than this are told of.
const MANY: i64 = 100;
/// No number of seconds that somebody wrote reaches a clock as it is.
const YEAR: SignedDuration = SignedDuration::from_hours(365 * 24);

/// How many moments were missed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Missed {
    None,
    Few,
    Many,
}

/// The moments of a CronJob up to now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Due {
    /// From when on they count.
    earliest: Timestamp,
    /// The last of them.
    pub latest: Option<Timestamp>,
    pub missed: Missed,
}

/// Its schedule in its zone. One that has a zone in its schedule has that.
pub(super) fn schedule(cron: &CronJob) -> Result<Schedule, ScheduleError> {
    let spec = &cron.spec;
    let schedule = Schedule::parse(&spec.schedule)?;
    match spec.time_zone.as_deref().filter(|_| !spec.schedule.contains("TZ")) {
        Some(zone) => Ok(schedule.within(Zone::load(zone)?)),
        None => Ok(schedule),
    }
}

/// What may still be started, as seconds of `startingDeadlineSeconds`.
pub(super) fn deadline(cron: &CronJob) -> Option<SignedDuration> {
    Some(SignedDuration::from_secs(cron.spec.starting_deadline_seconds?).min(YEAR * 10))
}

/// The moments since the last start; with `limited`, those that may still be started. An error for a schedule that has no
/// moments.
pub(super) fn due(
    cron: &CronJob,
    status: &CronJobStatus,
    schedule: &Schedule,
    now: Timestamp,
    limited: bool,
) -> Result<Due, &'static str> {
    const NEVER: &str = "time difference between two schedules is less than 1 second";
    let since = status.last_schedule_time.as_ref().or(cron.metadata.creation_timestamp.as_ref());
    let mut earliest = since.map_or(Timestamp::UNIX_EPOCH, |time| time.0);
    if let Some(deadline) = deadline(cron).filter(|_| limited) {
        earliest = earliest.max(now.checked_sub(deadline).unwrap_or(Timestamp::MIN));
    }
    let first = schedule.next(earliest).ok_or(NEVER)?;
    if now < first {
        return Ok(Due { earliest, latest: None, missed: Missed::None });
    }
    let second = schedule.next(first).ok_or(NEVER)?;
    if now < second {
        return Ok(Due { earliest, latest: Some(first), missed: Missed::None });
    }
    let period = second.as_second() - first.as_second();
    if period < 1 {
        return Err(NEVER);
    }
    // Roughly, by the distance of the first two.
    let count = now.duration_since(first).as_secs() / period + 1;
    let near = Timestamp::from_second(first.as_second() + (count - 2) * period).unwrap_or(first);
    let missed = if count > MANY { Missed::Many } else { Missed::Few };
    Ok(Due { earliest, latest: schedule.last(near, now), missed })
}

/// How long until it is due the next time; none when it never is.
pub(super) fn wait(cron: &CronJob, status: &CronJobStatus, schedule: &Schedule, now: Timestamp) -> Option<Duration> {
    let from = match due(cron, status, schedule, now, false) {
        Ok(Due { latest: Some(latest), .. }) => latest,
        Ok(Due { missed: Missed::None, earliest, .. }) => earliest,
        Ok(_) | Err(_) => now,
    };
    let left = schedule.next(from)?.duration_since(now) + LATER;
    Some(left.clamp(SignedDuration::ZERO, YEAR).unsigned_abs())
}
