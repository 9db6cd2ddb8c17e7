//! The next moment of a schedule.
//!
//! The reference's way through the calendar, step by step, since it decides what happens where clocks are put forward or
//! back: fields are advanced from the largest to the smallest, days and months by what clocks show, hours and less by what
//! passes; a midnight that does not exist is replaced by the hour that does.

use jiff::civil::{Date, DateTime, Time};

use super::{Fields, STAR, Zone};

/// Years that are searched.
const YEARS: i16 = 5;
const MINUTE: i64 = 60;
const HOUR: i64 = 3600;

/// The first second after `second` that the fields allow.
pub(super) fn after(fields: &Fields, zone: &Zone, second: i64) -> Option<i64> {
    let Fields { minutes, hours, days, months, weekdays } = *fields;
    // A field that allows nothing would have every minute of the years looked at.
    if [minutes, hours, days, months, weekdays].iter().any(|bits| bits & !STAR == 0) {
        return None;
    }
    let mut at = second + 1;
    let limit = zone.local(at)?.year() + YEARS;
    // Whether something was advanced: what is below it then begins at its least.
    let mut added = false;
    'wrap: loop {
        let mut local = zone.local(at)?;
        if local.year() > limit {
            return None;
        }
        while !has(months, local.month()) {
            if !std::mem::replace(&mut added, true) {
                local = zone.local(zone.second(local.date().first_of_month().at(0, 0, 0, 0))?)?;
            }
            at = zone.second(next_month(local)?)?;
            local = zone.local(at)?;
            if local.month() == 1 {
                continue 'wrap;
            }
        }
        while !is_day(days, weekdays, local.date()) {
            if !std::mem::replace(&mut added, true) {
                local = zone.local(zone.second(local.date().at(0, 0, 0, 0))?)?;
            }
            at = zone.second(local.date().tomorrow().ok()?.to_datetime(local.time()))?;
            local = zone.local(at)?;
            // No midnight on this day, or none on the day before.
            match i64::from(local.hour()) {
                0 => {}
                hour @ 13.. => at += (24 - hour) * HOUR,
                hour => at -= hour * HOUR,
            }
            local = zone.local(at)?;
            if local.day() == 1 {
                continue 'wrap;
            }
        }
        while !has(hours, local.hour()) {
            if !std::mem::replace(&mut added, true) {
                at = zone.second(DateTime::from_parts(local.date(), Time::new(local.hour(), 0, 0, 0).ok()?))?;
            }
            at += HOUR;
            local = zone.local(at)?;
            if local.hour() == 0 {
                continue 'wrap;
            }
        }
        while !has(minutes, local.minute()) {
            if !std::mem::replace(&mut added, true) {
                at -= at.rem_euclid(MINUTE);
            }
            at += MINUTE;
            local = zone.local(at)?;
            if local.minute() == 0 {
                continue 'wrap;
            }
        }
        if local.second() == 0 {
            return Some(at);
        }
        added = true;
        at += MINUTE - i64::from(local.second());
    }
}

fn has(bits: u64, number: i8) -> bool {
    u32::try_from(number).is_ok_and(|number| bits & (1 << number) != 0)
}

/// Day of the month and day of the week are both asked for when one of them is `*`, else either will do.
fn is_day(days: u64, weekdays: u64, date: Date) -> bool {
    let day = has(days, date.day());
    let weekday = has(weekdays, date.weekday().to_sunday_zero_offset());
    if (days | weekdays) & STAR != 0 { day && weekday } else { day || weekday }
}

/// The same day and clock a month later; a day that the month lacks is one of the next.
fn next_month(local: DateTime) -> Option<DateTime> {
    let (year, month) = match local.month() {
        12 => (local.year() + 1, 1),
        month => (local.year(), month + 1),
    };
    let days = jiff::Span::new().days(i64::from(local.day()) - 1);
    let date = Date::new(year, month, 1).ok()?.checked_add(days).ok()?;
    Some(date.to_datetime(local.time()))
}
