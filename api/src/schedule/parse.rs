//! Reads schedules, in the words of robfig/cron's standard parser.

use super::{Fields, STAR, Schedule, ScheduleError, When, Zone};
use crate::meta::duration;
use crate::meta::text;

/// The numbers of a field, and the names that stand for them.
struct Bounds {
    least: u64,
    most: u64,
    names: &'static [&'static str],
}

const MINUTES: Bounds = Bounds { least: 0, most: 59, names: &[] };
const HOURS: Bounds = Bounds { least: 0, most: 23, names: &[] };
const DAYS: Bounds = Bounds { least: 1, most: 31, names: &[] };
const MONTHS: Bounds = Bounds {
    least: 1,
    most: 12,
    names: &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"],
};
const WEEKDAYS: Bounds = Bounds { least: 0, most: 6, names: &["sun", "mon", "tue", "wed", "thu", "fri", "sat"] };

const EVERY: &str = "@every ";

pub(super) fn schedule(text: &str) -> Result<Schedule, ScheduleError> {
    let (when, zone) = read(text).map_err(ScheduleError)?;
    Ok(Schedule { when, zone })
}

fn read(text: &str) -> Result<(When, Zone), String> {
    if text.is_empty() {
        return Err("empty spec string".to_owned());
    }
    let (mut zone, mut spec) = (Zone::UTC, text);
    if let Some(rest) = text.strip_prefix("TZ=").or_else(|| text.strip_prefix("CRON_TZ=")) {
        let Some((name, fields)) = rest.split_once(' ') else {
            return Err("invalid schedule format: runtime error: slice bounds out of range [:-1]".to_owned());
        };
        zone = Zone::load(name).map_err(|error| format!("provided bad location {name}: {error}"))?;
        spec = fields.trim();
    }
    if spec.starts_with('@') {
        return Ok((descriptor(spec)?, zone));
    }
    let parts: Vec<&str> = spec.split_whitespace().collect();
    let [minute, hour, day, month, weekday] = parts.as_slice() else {
        return Err(format!("expected exactly 5 fields, found {}: [{}]", parts.len(), parts.join(" ")));
    };
    let fields = Fields {
        minutes: field(minute, &MINUTES)?,
        hours: field(hour, &HOURS)?,
        days: field(day, &DAYS)?,
        months: field(month, &MONTHS)?,
        weekdays: field(weekday, &WEEKDAYS)?,
    };
    Ok((When::Fields(fields), zone))
}

fn descriptor(spec: &str) -> Result<When, String> {
    let any = |bounds: &Bounds| bits(bounds.least, bounds.most, 1) | STAR;
    let hourly =
        Fields { minutes: 1, hours: any(&HOURS), days: any(&DAYS), months: any(&MONTHS), weekdays: any(&WEEKDAYS) };
    let daily = Fields { hours: 1, ..hourly };
    let first = 1 << 1;
    Ok(When::Fields(match spec {
        "@yearly" | "@annually" => Fields { days: first, months: first, ..daily },
        "@monthly" => Fields { days: first, ..daily },
        "@weekly" => Fields { weekdays: 1, ..daily },
        "@daily" | "@midnight" => daily,
        "@hourly" => hourly,
        _ => {
            let Some(period) = spec.strip_prefix(EVERY) else {
                return Err(format!("unrecognized descriptor: {spec}"));
            };
            let nanos = duration::parse(period).map_err(|why| format!("failed to parse duration {spec}: {why}"))?;
            return Ok(When::Every((nanos / 1_000_000_000).max(1)));
        }
    }))
}

fn field(text: &str, bounds: &Bounds) -> Result<u64, String> {
    let ranges = text.split(',').filter(|range| !range.is_empty());
    ranges.map(|text| range(text, bounds)).try_fold(0, |all, bits| Ok(all | bits?))
}

/// `*`, `N`, `N-N`, each with or without `/STEP`.
fn range(text: &str, bounds: &Bounds) -> Result<u64, String> {
    let parts: Vec<&str> = text.split('/').collect();
    let ends: Vec<&str> = parts[0].split('-').collect();
    let (start, mut end, mut star);
    if matches!(ends[0], "*" | "?") {
        (start, end, star) = (bounds.least, bounds.most, STAR);
    } else {
        start = number_or_name(ends[0], bounds)?;
        end = match ends.as_slice() {
            [_] => start,
            [_, end] => number_or_name(end, bounds)?,
            _ => return Err(format!("too many hyphens: {text}")),
        };
        star = 0;
    }
    let step = match parts.as_slice() {
        [_] => 1,
        [_, step] => {
            let step = number(step)?;
            // `N/STEP` goes on to the end.
            if ends.len() == 1 {
                end = bounds.most;
            }
            if step > 1 {
                star = 0;
            }
            step
        }
        _ => return Err(format!("too many slashes: {text}")),
    };
    let Bounds { least, most, .. } = bounds;
    if start < *least {
        return Err(format!("beginning of range ({start}) below minimum ({least}): {text}"));
    }
    if end > *most {
        return Err(format!("end of range ({end}) above maximum ({most}): {text}"));
    }
    if start > end {
        return Err(format!("beginning of range ({start}) beyond end of range ({end}): {text}"));
    }
    if step == 0 {
        return Err(format!("step of range should be a positive number: {text}"));
    }
    Ok(bits(start, end, step) | star)
}

fn number_or_name(text: &str, bounds: &Bounds) -> Result<u64, String> {
    let named = bounds.names.iter().zip(bounds.least..).find(|(name, _)| name.eq_ignore_ascii_case(text));
    named.map_or_else(|| number(text), |(_, number)| Ok(number))
}

/// As `strconv.Atoi` reads and complains.
fn number(text: &str) -> Result<u64, String> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let why = match text.parse::<i64>() {
        Ok(number) if number < 0 => return Err(format!("negative number ({number}) not allowed: {text}")),
        Ok(number) => return Ok(number.unsigned_abs()),
        Err(_) if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) => "value out of range",
        Err(_) => "invalid syntax",
    };
    Err(format!("failed to parse int from {text}: strconv.Atoi: parsing {}: {why}", text::quote(text)))
}

/// Both ends are below 63.
fn bits(start: u64, end: u64, step: u64) -> u64 {
    let step = usize::try_from(step).unwrap_or(usize::MAX);
    (start..=end).step_by(step).fold(0, |bits, number| bits | 1 << number)
}
