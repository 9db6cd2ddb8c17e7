//! Scalars that have a form of their own: times, quantities, bytes. Each comes out canonical, or as an error in Go's words.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use jiff::Timestamp;

use crate::meta::{self, Quantity};

/// Standard base64 that takes what Go's takes: the last character may have bits set that mean nothing.
pub(crate) const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::RequireCanonical),
);

/// Seconds of the year 1, Go's zero time.
const ZERO_TIME: i64 = -62_135_596_800;

/// How precise a time is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Precision {
    /// `Time`: the fraction is read over and dropped.
    Second,
    /// `MicroTime`: a fraction of six digits must be there.
    Micro,
}

/// The time in canonical form; `None` is the zero time, that is written as null.
pub(super) fn time(text: &str, precision: Precision) -> Result<Option<String>, String> {
    if precision == Precision::Second && is_canonical_time(text) {
        return Ok(Some(text.to_owned()));
    }
    let time = parse_time(text, precision)?;
    Ok(time_text(time, precision))
}

/// The canonical form of a time, `None` for the zero time.
pub(super) fn time_text(time: Timestamp, precision: Precision) -> Option<String> {
    if time.as_second() == ZERO_TIME && (precision == Precision::Second || time.subsec_nanosecond() == 0) {
        return None;
    }
    Some(match precision {
        Precision::Second => meta::time::format(time),
        Precision::Micro => meta::time::format_micro(time),
    })
}

/// Whether this is `2006-01-02T15:04:05Z` of a day that every month has, in a year that is not the zero time's.
fn is_canonical_time(text: &str) -> bool {
    let bytes = text.as_bytes();
    let two = |at: usize| u32::from(bytes[at] - b'0') * 10 + u32::from(bytes[at + 1] - b'0');
    bytes.len() == 20
        && bytes.iter().enumerate().all(|(at, byte)| match at {
            4 | 7 => *byte == b'-',
            10 => *byte == b'T',
            13 | 16 => *byte == b':',
            19 => *byte == b'Z',
            _ => byte.is_ascii_digit(),
        })
        && bytes[0] != b'0'
        && (1..=12).contains(&two(5))
        && (1..=28).contains(&two(8))
        && two(11) < 24
        && two(14) < 60
        && two(17) < 60
}

/// Reads a time as Go's `time.Parse` does with the layout of the precision, and fails in its words.
fn parse_time(text: &str, precision: Precision) -> Result<Timestamp, String> {
    let layout = match precision {
        Precision::Second => "2006-01-02T15:04:05Z07:00",
        Precision::Micro => "2006-01-02T15:04:05.000000Z07:00",
    };
    let cannot = |rest: &str, element: &str| {
        Err(format!("parsing time {text:?} as {layout:?}: cannot parse {rest:?} as {element:?}"))
    };
    let out_of_range = |what: &str| Err(format!("parsing time {text:?}: {what} out of range"));
    let parts = [
        ("2006", "", 4, 0, 9999),
        ("01", "-", 2, 1, 12),
        ("02", "-", 2, 0, 99),
        ("15", "T", 2, 0, 23),
        ("04", ":", 2, 0, 59),
        ("05", ":", 2, 0, 59),
    ];
    let (mut rest, mut numbers) = (text, [0_i16; 6]);
    for (number, (element, separator, digits, least, most)) in numbers.iter_mut().zip(parts) {
        rest = match rest.strip_prefix(separator) {
            Some(rest) => rest,
            None => return cannot(rest, separator),
        };
        match rest.get(..digits).filter(|part| part.bytes().all(|byte| byte.is_ascii_digit())) {
            Some(part) => *number = part.parse().unwrap_or_default(),
            None => return cannot(rest, element),
        }
        rest = &rest[digits..];
        if !(least..=most).contains(number) {
            return out_of_range(match element {
                "01" => "month",
                "15" => "hour",
                "04" => "minute",
                _ => "second",
            });
        }
    }
    let mut nanos = 0;
    let digits = rest.get(1..).map_or(0, |rest| rest.bytes().take_while(u8::is_ascii_digit).count());
    match precision {
        Precision::Second if rest.starts_with(['.', ',']) && digits > 0 => rest = &rest[1 + digits..],
        Precision::Micro if rest.starts_with(['.', ',']) && digits >= 6 => {
            nanos = rest[1..7].parse::<i32>().unwrap_or_default() * 1000;
            rest = &rest[7..];
        }
        Precision::Micro => return cannot(rest, ".000000"),
        Precision::Second => {}
    }
    let bytes = rest.as_bytes();
    let two = |at: usize| {
        let digit = |at: usize| bytes.get(at).filter(|byte| byte.is_ascii_digit()).map(|byte| i32::from(byte - b'0'));
        Some(digit(at)? * 10 + digit(at + 1)?)
    };
    let offset = match bytes.first() {
        Some(b'Z') => {
            rest = &rest[1..];
            0
        }
        Some(sign @ (b'+' | b'-')) if bytes.get(3) == Some(&b':') => match (two(1), two(4)) {
            (Some(hours), Some(minutes)) => {
                if hours > 24 || minutes > 60 {
                    let what = if hours > 24 { "time zone offset hour" } else { "time zone offset minute" };
                    return out_of_range(what);
                }
                rest = &rest[6..];
                (hours * 60 + minutes) * if *sign == b'-' { -60 } else { 60 }
            }
            _ => return cannot(rest, "Z07:00"),
        },
        _ => return cannot(rest, "Z07:00"),
    };
    if !rest.is_empty() {
        return Err(format!("parsing time {text:?}: extra text: {rest:?}"));
    }
    let [year, month, day, hour, minute, second] = numbers;
    let small = |number: i16| i8::try_from(number).unwrap_or(i8::MAX);
    let Ok(date) = jiff::civil::Date::new(year, small(month), small(day)) else { return out_of_range("day") };
    date.at(small(hour), small(minute), small(second), nanos)
        .to_zoned(jiff::tz::TimeZone::UTC)
        .and_then(|local| local.timestamp().checked_sub(jiff::SignedDuration::from_secs(i64::from(offset))))
        .map_err(|_| format!("parsing time {text:?}: year out of range"))
}

/// The quantity in canonical form.
pub(super) fn quantity(text: &str) -> Result<String, String> {
    if is_canonical_quantity(text) {
        return Ok(text.to_owned());
    }
    Quantity::parse(text).map(|quantity| quantity.to_string()).map_err(|error| error.to_string())
}

/// Whether this is one of the usual forms that are canonical: up to three digits and a suffix.
fn is_canonical_quantity(text: &str) -> bool {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    (1..=3).contains(&digits)
        && (!text.starts_with('0') || text == "0")
        && matches!(&text[digits..], "" | "m" | "k" | "M" | "G" | "T" | "Ki" | "Mi" | "Gi" | "Ti")
}

/// Base64 in canonical form.
pub(super) fn bytes(text: String) -> Result<String, String> {
    // Go's reader takes line breaks anywhere.
    let text = if text.contains(['\r', '\n']) { text.replace(['\r', '\n'], "") } else { text };
    match BASE64.decode(&text) {
        Ok(decoded) => {
            let canonical = BASE64.encode(decoded);
            Ok(if canonical == text { text } else { canonical })
        }
        Err(error) => {
            let at = match error {
                base64::DecodeError::InvalidByte(at, b'=') => past_padding(&text, at),
                base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol(at, _) => at,
                base64::DecodeError::InvalidLength(_) | base64::DecodeError::InvalidPadding => {
                    text.len() - text.len() % 4
                }
            };
            Err(format!("illegal base64 data at input byte {at}"))
        }
    }
}

/// Where Go's reader stops at padding that is not the end: at what follows it, where it may be.
fn past_padding(text: &str, at: usize) -> usize {
    match (at % 4, text.as_bytes().get(at + 1)) {
        (2, Some(b'=')) => at + 2,
        (3, Some(_)) => at + 1,
        _ => at,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_go_reads_them_and_written_in_utc() {
        let rows = [
            ("2024-01-02T03:04:05Z", Ok("2024-01-02T03:04:05Z")),
            ("2024-01-02T03:04:05.789Z", Ok("2024-01-02T03:04:05Z")),
            ("2024-01-02T03:04:05+02:00", Ok("2024-01-02T01:04:05Z")),
            ("2024-01-31T23:04:05-01:30", Ok("2024-02-01T00:34:05Z")),
            ("yesterday", Err(r#"as "2006-01-02T15:04:05Z07:00": cannot parse "yesterday" as "2006""#)),
            ("", Err(r#"as "2006-01-02T15:04:05Z07:00": cannot parse "" as "2006""#)),
            ("2024-13-02T03:04:05Z", Err(": month out of range")),
            ("2024-02-30T03:04:05Z", Err(": day out of range")),
            ("2024-01-02T03:04:05", Err(r#": cannot parse "" as "Z07:00""#)),
            ("2024-01-02T03:04:05Z!", Err(r#": extra text: "!""#)),
            ("2024-01-02 03:04:05Z", Err(r#": cannot parse " 03:04:05Z" as "T""#)),
        ];
        for (text, expected) in rows {
            match (time(text, Precision::Second), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found.as_deref(), Some(expected), "{text}"),
                (Err(found), Err(expected)) => assert!(found.ends_with(expected), "{text}: {found}"),
                (found, expected) => panic!("{text}: {found:?}, not {expected:?}"),
            }
        }
        assert_eq!(time("0001-01-01T00:00:00Z", Precision::Second), Ok(None));
        assert_eq!(
            time("2020-01-02T03:04:05.5Z", Precision::Micro).unwrap_err(),
            r#"parsing time "2020-01-02T03:04:05.5Z" as "2006-01-02T15:04:05.000000Z07:00": cannot parse ".5Z" as ".000000""#
        );
        assert_eq!(
            time("2020-01-02T03:04:05.500000+01:00", Precision::Micro),
            Ok(Some("2020-01-02T02:04:05.500000Z".to_owned()))
        );
    }

    #[test]
    fn the_short_way_for_quantities_leads_where_the_long_way_does() {
        for text in ["0", "1", "100", "500m", "250M", "64Mi", "1Gi", "999k", "20Ti", "7G"] {
            assert!(is_canonical_quantity(text), "{text}");
            assert_eq!(Quantity::parse(text).expect("a quantity").to_string(), text);
        }
        assert_eq!(quantity("1024Mi").as_deref(), Ok("1Gi"));
        assert_eq!(quantity("0.5").as_deref(), Ok("500m"));
    }

    #[test]
    fn base64_is_checked_as_go_checks_it() {
        let rows = [
            ("not base64!", Err("illegal base64 data at input byte 3")),
            ("YQ==", Ok("YQ==")),
            ("YR==", Ok("YQ==")),
            ("Y\nQ==", Ok("YQ==")),
            ("", Ok("")),
            ("YWJjYQ", Err("illegal base64 data at input byte 4")),
            ("YQ==x", Err("illegal base64 data at input byte 4")),
            ("YWI=x", Err("illegal base64 data at input byte 4")),
            ("YQ=x", Err("illegal base64 data at input byte 2")),
            ("=YQ=", Err("illegal base64 data at input byte 0")),
        ];
        for (text, expected) in rows {
            assert_eq!(bytes(text.to_owned()).as_deref().map_err(String::as_str), expected, "{text}");
        }
    }
}
