//! Times and durations as the API writes them.

use jiff::Timestamp;
use jiff::tz::TimeZone;

/// A `Time`: RFC 3339 in whole seconds, UTC.
pub fn format(time: Timestamp) -> String {
    write(time, false)
}

/// A `MicroTime`: RFC 3339 with six digits of the second.
pub fn format_micro(time: Timestamp) -> String {
    write(time, true)
}

fn write(time: Timestamp, micro: bool) -> String {
    // Whole seconds are counted down, also before 1970, so that the fraction is never negative.
    let nanos = time.as_nanosecond();
    let seconds = i64::try_from(nanos.div_euclid(1_000_000_000)).unwrap_or_default();
    let at = Timestamp::from_second(seconds).unwrap_or(time);
    let civil = TimeZone::UTC.to_datetime(at);
    let mut text = format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}",
        civil.year(),
        civil.month(),
        civil.day(),
        civil.hour(),
        civil.minute(),
        civil.second()
    );
    if micro {
        text.push_str(&format!(".{:06}", nanos.rem_euclid(1_000_000_000) / 1000));
    }
    text.push('Z');
    text
}

/// Reads RFC 3339 as strictly as Go does: `T`, `Z` or an offset, seconds with or without a fraction.
pub fn parse(text: &str) -> Option<Timestamp> {
    let bytes = text.as_bytes();
    let number = |at: usize, length: usize| -> Option<i32> {
        let digits = bytes.get(at..at + length)?;
        digits.iter().all(u8::is_ascii_digit).then(|| digits.iter().fold(0, |n, d| n * 10 + i32::from(d - b'0')))
    };
    let separators = [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':')];
    if !separators.iter().all(|(at, byte)| bytes.get(*at) == Some(byte)) {
        return None;
    }
    let mut rest = bytes.get(19..)?;
    let mut nanos = 0;
    if let Some((b'.' | b',', fraction)) = rest.split_first() {
        let length = fraction.iter().take_while(|b| b.is_ascii_digit()).count();
        if length == 0 {
            return None;
        }
        for at in 0..9 {
            nanos = nanos * 10 + fraction[..length].get(at).map_or(0, |d| i32::from(d - b'0'));
        }
        rest = &fraction[length..];
    }
    let offset = match rest {
        b"Z" => 0,
        [sign @ (b'+' | b'-'), _, _, b':', _, _] => {
            let at = text.len() - 5;
            let (hours, minutes) = (number(at, 2)?, number(at + 3, 2)?);
            if hours > 24 || minutes > 60 {
                return None;
            }
            (hours * 60 + minutes) * if *sign == b'-' { -60 } else { 60 }
        }
        _ => return None,
    };
    let small = |at| i8::try_from(number(at, 2)?).ok();
    let date = jiff::civil::Date::new(i16::try_from(number(0, 4)?).ok()?, small(5)?, small(8)?).ok()?;
    let clock = jiff::civil::Time::new(small(11)?, small(14)?, small(17)?, nanos).ok()?;
    let local = TimeZone::UTC.to_timestamp(date.to_datetime(clock)).ok()?;
    local.checked_sub(jiff::SignedDuration::from_secs(i64::from(offset))).ok()
}

/// The age of something as kubectl's tables show it (`duration.HumanDuration`): `45s`, `5m12s`, `3h4m`, `2d`, `1y20d`.
pub fn age(since: Timestamp, now: Timestamp) -> String {
    human(now.duration_since(since).as_secs())
}

/// The same of a number of seconds.
pub fn human(seconds: i64) -> String {
    let pair = |large: i64, unit: char, small: i64, sub: char| match small {
        0 => format!("{large}{unit}"),
        _ => format!("{large}{unit}{small}{sub}"),
    };
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    match seconds {
        ..-1 => "<invalid>".to_owned(),
        -1 => "0s".to_owned(),
        0..120 => format!("{seconds}s"),
        _ if minutes < 10 => pair(minutes, 'm', seconds % 60, 's'),
        _ if minutes < 180 => format!("{minutes}m"),
        _ if hours < 8 => pair(hours, 'h', minutes % 60, 'm'),
        _ if hours < 48 => format!("{hours}h"),
        _ if hours < 24 * 8 => pair(hours / 24, 'd', hours % 24, 'h'),
        _ if hours < 24 * 365 * 2 => format!("{}d", hours / 24),
        _ if hours < 24 * 365 * 8 => pair(hours / 24 / 365, 'y', hours / 24 % 365, 'd'),
        _ => format!("{}y", hours / 24 / 365),
    }
}

/// In one unit only (`duration.ShortHumanDuration`).
pub fn short_human(seconds: i64) -> String {
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    match seconds {
        ..-1 => "<invalid>".to_owned(),
        -1 => "0s".to_owned(),
        0..60 => format!("{seconds}s"),
        _ if minutes < 60 => format!("{minutes}m"),
        _ if hours < 24 => format!("{hours}h"),
        _ if hours < 24 * 365 => format!("{}d", hours / 24),
        _ => format!("{}y", hours / 24 / 365),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes_times() {
        for (text, seconds, micro) in [
            ("2026-11-22T10:00:00Z", "2026-11-22T10:00:00Z", "2026-11-22T10:00:00.000000Z"),
            ("2026-11-22T10:00:00.1234567+02:00", "2026-11-22T08:00:00Z", "2026-11-22T08:00:00.123456Z"),
            ("1960-01-01T00:00:00.5-01:30", "1960-01-01T01:30:00Z", "1960-01-01T01:30:00.500000Z"),
        ] {
            let time = parse(text).unwrap();
            assert_eq!((format(time).as_str(), format_micro(time).as_str()), (seconds, micro));
        }
        for wrong in [
            "",
            "2026-11-22",
            "2026-11-22 10:00:00Z",
            "2026-13-22T10:00:00Z",
            "2026-11-22T10:00:00",
            "2026-11-22T10:00:00.Z",
            "2026-11-22t10:00:00z",
        ] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn shows_ages_as_kubectl_does() {
        let (hour, day) = (3600, 86_400);
        for (seconds, expected, short) in [
            (-5, "<invalid>", "<invalid>"),
            (-1, "0s", "0s"),
            (0, "0s", "0s"),
            (119, "119s", "1m"),
            (312, "5m12s", "5m"),
            (300, "5m", "5m"),
            (601, "10m", "10m"),
            (3 * hour, "3h", "3h"),
            (3 * hour + 240, "3h4m", "3h"),
            (47 * hour, "47h", "1d"),
            (2 * day + hour, "2d1h", "2d"),
            (8 * day + hour, "8d", "8d"),
            (740 * day, "2y10d", "2y"),
            (3000 * day, "8y", "8y"),
        ] {
            assert_eq!((human(seconds).as_str(), short_human(seconds).as_str()), (expected, short));
        }
    }
}
