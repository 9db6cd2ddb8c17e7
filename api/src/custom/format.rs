//! Formats of text that the schema of a custom resource may ask for. What each takes is what Kubernetes takes, which is not
//! always what a standard says.

use std::net::{IpAddr, Ipv4Addr};

use super::structural::Type;
use crate::meta::{duration, names};

/// A format; others than these are not checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// 32 bits.
    Int32,
    /// 64 bits.
    Int64,
    /// Single precision.
    Float,
    /// Double precision.
    Double,
    /// Of text.
    Text(usize),
}

type Check = fn(&str) -> bool;

/// Formats of text, without the dashes that their names may have.
const TEXTS: [(&str, Check); 25] = [
    ("bsonobjectid", |text| text.len() == 24 && text.bytes().all(|byte| byte.is_ascii_hexdigit())),
    ("uri", is_uri),
    ("email", is_email),
    ("hostname", is_hostname),
    ("ipv4", is_ipv4),
    ("ipv6", |text| text.contains(':') && text.parse::<IpAddr>().is_ok()),
    ("cidr", is_cidr),
    ("mac", is_mac),
    ("uuid", |text| is_uuid(text, None)),
    ("uuid3", |text| is_uuid(text, Some('3'))),
    ("uuid4", |text| is_uuid(text, Some('4'))),
    ("uuid5", |text| is_uuid(text, Some('5'))),
    ("isbn", |text| is_isbn10(text) || is_isbn13(text)),
    ("isbn10", is_isbn10),
    ("isbn13", is_isbn13),
    ("creditcard", is_credit_card),
    ("ssn", is_ssn),
    ("hexcolor", is_hex_color),
    ("rgbcolor", is_rgb_color),
    ("byte", is_base64),
    ("password", |_| true),
    ("date", is_date),
    ("duration", |text| duration(text).is_some()),
    ("datetime", is_date_time),
    ("k8sshortname", |text| names::is_dns_label(text)),
];

/// Beside [`TEXTS`], as its own row would make that list's type differ.
const LONG_NAME: &str = "k8slongname";

impl Format {
    /// The format of this name for values of this type, when it is one that is checked.
    pub(super) fn read(name: &str, ty: Type) -> Option<Format> {
        match (ty, name) {
            (_, "") => None,
            (Type::Integer, "int32") => Some(Format::Int32),
            (Type::Integer, "int64") => Some(Format::Int64),
            (Type::Number, "float") => Some(Format::Float),
            (Type::Number, "double") => Some(Format::Double),
            (Type::Any | Type::String, name) => {
                let name = name.replace('-', "");
                if name == LONG_NAME {
                    return Some(Format::Text(TEXTS.len()));
                }
                TEXTS.iter().position(|(known, _)| *known == name).map(Format::Text)
            }
            _ => None,
        }
    }

    /// Whether the name means something for values of a type: of others the writer of a schema is warned.
    #[must_use]
    pub fn is_known(name: &str, ty: &str) -> bool {
        let ty = match ty {
            "" => Type::Any,
            "string" => Type::String,
            "integer" => Type::Integer,
            "number" => Type::Number,
            _ => return false,
        };
        Format::read(name, ty).is_some()
    }

    /// Its name in messages.
    pub(super) fn name(self) -> &'static str {
        match self {
            Format::Int32 => "int32",
            Format::Int64 => "int64",
            Format::Float => "float",
            Format::Double => "double",
            Format::Text(at) => match TEXTS.get(at).map(|(name, _)| *name) {
                Some("datetime") => "date-time",
                Some("k8sshortname") => "k8s-short-name",
                Some(name) => name,
                None => "k8s-long-name",
            },
        }
    }

    /// Whether a text has this format; those of numbers every text has.
    pub(super) fn takes(self, text: &str) -> bool {
        match self {
            Format::Text(at) => match TEXTS.get(at) {
                Some((_, check)) => check(text),
                None => names::is_dns_subdomain(text),
            },
            _ => true,
        }
    }
}

/// Whether a text has the format of this name.
pub(crate) fn is(text: &str, name: &str) -> bool {
    TEXTS.iter().any(|(known, check)| *known == name && check(text))
}

/// A request's target: a path, or what begins with a scheme.
fn is_uri(text: &str) -> bool {
    if text.is_empty() || text.chars().any(|c| c.is_ascii_control()) {
        return false;
    }
    if text == "*" {
        return true;
    }
    let scheme = text.split_once(':').filter(|(scheme, _)| {
        scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'))
    });
    let rest = match scheme {
        Some((_, rest)) => rest,
        None if text.starts_with('/') => text,
        None => return false,
    };
    let (path, _query) = rest.split_once('?').unwrap_or((rest, ""));
    match (scheme, path.strip_prefix("//")) {
        (Some(_), Some(place)) => {
            let (authority, path) = place.find('/').map_or((place, ""), |at| place.split_at(at));
            is_authority(authority) && has_good_escapes(path)
        }
        _ => has_good_escapes(path),
    }
}

fn is_authority(authority: &str) -> bool {
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    if let Some(rest) = host.strip_prefix('[') {
        let Some((address, port)) = rest.split_once(']') else { return false };
        return address.contains(':') && is_port(port);
    }
    let (name, port) = host.find(':').map_or((host, ""), |at| host.split_at(at));
    is_port(port) && has_good_escapes(name) && !name.contains([' ', '<', '>', '"', '{', '}', '|', '\\', '^', '`'])
}

fn is_port(text: &str) -> bool {
    text.is_empty() || text.strip_prefix(':').is_some_and(|port| port.bytes().all(|byte| byte.is_ascii_digit()))
}

fn has_good_escapes(text: &str) -> bool {
    text.split('%').skip(1).all(|after| {
        let bytes = after.as_bytes();
        bytes.len() >= 2 && bytes[0].is_ascii_hexdigit() && bytes[1].is_ascii_hexdigit()
    })
}

/// An address as in a mail's header: alone, or between angle brackets behind a name (RFC 5322).
fn is_email(text: &str) -> bool {
    let text = text.trim_matches([' ', '\t']);
    let address = match text.strip_suffix('>').and_then(|text| text.rsplit_once('<')) {
        Some((_, address)) => address,
        None => text,
    };
    let Some((local, domain)) = address.rsplit_once('@') else { return false };
    let is_atom = |c: char| !c.is_ascii() || c.is_ascii_alphanumeric() || "!#$%&'*+-/=?^_`{|}~".contains(c);
    let dots =
        |text: &str| !text.is_empty() && text.split('.').all(|part| !part.is_empty() && part.chars().all(is_atom));
    let quoted = local.len() >= 2 && local.starts_with('"') && local.ends_with('"');
    (quoted || dots(local)) && (dots(domain) || (domain.starts_with('[') && domain.ends_with(']')))
}

/// A name of one part, which may have a dash after its first letter, or of several of which the last has letters only.
fn is_hostname(text: &str) -> bool {
    let is_letter = |c: char| c.is_alphabetic();
    let is_symbol = |c: char| !c.is_ascii() && !c.is_alphanumeric() && !c.is_whitespace() && !c.is_control();
    let is_part = |c: char| c.is_ascii_alphanumeric() || is_letter(c) || is_symbol(c) || "$+<=>^`|~".contains(c);
    if text.len() > 255 || text.split('.').any(|part| part.len() > 63) {
        return false;
    }
    let Some((parts, last)) = text.rsplit_once('.') else {
        let mut letters = text.chars();
        let Some(first) = letters.next() else { return false };
        let rest = letters.as_str();
        return is_part(first) && rest.strip_prefix('-').unwrap_or(rest).chars().all(is_part);
    };
    let whole = |part: &str| {
        let ends_well = part.starts_with(is_part) && part.ends_with(is_part);
        ends_well && part.chars().all(|c| c == '-' || is_part(c))
    };
    parts.split('.').all(whole) && last.chars().count() >= 2 && last.chars().all(is_letter)
}

/// Parts may begin with noughts, as they might before Go 1.17.
fn sloppy_ipv4(text: &str) -> Option<Ipv4Addr> {
    let mut parts = [0_u8; 4];
    let mut words = text.split('.');
    for part in &mut parts {
        let word = words.next().filter(|word| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit()))?;
        let digits = word.trim_start_matches('0');
        *part = if digits.is_empty() { 0 } else { digits.parse().ok()? };
    }
    words.next().is_none().then(|| Ipv4Addr::from(parts))
}

fn is_ipv4(text: &str) -> bool {
    sloppy_ipv4(text).is_some() || (text.contains('.') && text.parse::<IpAddr>().is_ok())
}

fn is_cidr(text: &str) -> bool {
    let Some((address, length)) = text.split_once('/') else { return false };
    if length.is_empty() || !length.bytes().all(|byte| byte.is_ascii_digit()) {
        return false;
    }
    let most = match address.parse::<IpAddr>() {
        Ok(IpAddr::V6(_)) => 128,
        Ok(IpAddr::V4(_)) => 32,
        Err(_) if sloppy_ipv4(address).is_some() => 32,
        Err(_) => return false,
    };
    length.parse::<u32>().is_ok_and(|length| length <= most)
}

/// 6, 8 or 20 bytes with colons or dashes, or in groups of four digits.
fn is_mac(text: &str) -> bool {
    let groups = |separator: char, digits: usize, counts: [usize; 3]| {
        let parts: Vec<&str> = text.split(separator).collect();
        counts.contains(&parts.len())
            && parts.iter().all(|part| part.len() == digits && part.bytes().all(|byte| byte.is_ascii_hexdigit()))
    };
    groups(':', 2, [6, 8, 20]) || groups('-', 2, [6, 8, 20]) || groups('.', 4, [3, 4, 10])
}

fn is_uuid(text: &str, version: Option<char>) -> bool {
    // A dash may stand or be missing at each place.
    let mut digits = String::with_capacity(32);
    let mut rest = text;
    for length in [8, 4, 4, 4, 12] {
        rest = if digits.is_empty() { rest } else { rest.strip_prefix('-').unwrap_or(rest) };
        let Some((part, after)) = rest.split_at_checked(length) else { return false };
        digits.push_str(part);
        rest = after;
    }
    let at = |place: usize| digits[place..].chars().next().unwrap_or('-').to_ascii_lowercase();
    rest.is_empty()
        && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
        && version
            .is_none_or(|version| at(12) == version && (version == '3' || matches!(at(16), '8' | '9' | 'a' | 'b')))
}

fn without_separators(text: &str) -> String {
    text.chars().filter(|c| !c.is_whitespace() && *c != '-').collect()
}

fn is_isbn10(text: &str) -> bool {
    let text = without_separators(text);
    let digit = |(at, byte): (usize, u8)| match byte {
        b'0'..=b'9' => Some(u32::from(byte - b'0')),
        b'X' if at == 9 => Some(10),
        _ => None,
    };
    let digits: Option<Vec<u32>> = text.bytes().enumerate().map(digit).collect();
    digits.is_some_and(|digits| {
        digits.len() == 10 && (1..).zip(&digits).map(|(at, digit)| at * digit).sum::<u32>() % 11 == 0
    })
}

fn is_isbn13(text: &str) -> bool {
    let text = without_separators(text);
    let digits: Option<Vec<u32>> = text.chars().map(|c| c.to_digit(10)).collect();
    digits.is_some_and(|digits| {
        let weighted = digits.iter().enumerate().map(|(at, digit)| digit * if at % 2 == 0 { 1 } else { 3 });
        digits.len() == 13 && weighted.sum::<u32>() % 10 == 0
    })
}

/// Of a length and a beginning that cards have, and with the right check digit.
fn is_credit_card(text: &str) -> bool {
    let digits: Vec<u32> = text.chars().filter_map(|c| c.to_digit(10)).collect();
    let begins = |places: usize| digits.iter().take(places).fold(0, |number, digit| number * 10 + digit);
    let is_kind = match digits.len() {
        13 => begins(1) == 4,
        14 => matches!(begins(3), 300..=305) || matches!(begins(2), 36 | 38),
        15 => matches!(begins(2), 34 | 37) || matches!(begins(4), 2131 | 1800),
        16 => begins(1) == 4 || matches!(begins(2), 51..=55) || begins(4) == 6011 || begins(2) == 65 || begins(2) == 35,
        _ => false,
    };
    let sum: u32 = digits
        .iter()
        .rev()
        .enumerate()
        .map(|(at, digit)| match at % 2 {
            0 => *digit,
            _ if *digit > 4 => digit * 2 - 9,
            _ => digit * 2,
        })
        .sum();
    is_kind && sum.is_multiple_of(10)
}

fn is_ssn(text: &str) -> bool {
    let mut rest = text;
    for (at, length) in [3, 2, 4].into_iter().enumerate() {
        rest = if at > 0 { rest.strip_prefix(['-', ' ']).unwrap_or(rest) } else { rest };
        match rest.split_at_checked(length) {
            Some((part, after)) if part.bytes().all(|byte| byte.is_ascii_digit()) => rest = after,
            _ => return false,
        }
    }
    rest.is_empty()
}

fn is_hex_color(text: &str) -> bool {
    let digits = text.strip_prefix('#').unwrap_or(text);
    matches!(digits.len(), 3 | 6) && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn is_rgb_color(text: &str) -> bool {
    let inside = text.strip_prefix("rgb(").and_then(|text| text.strip_suffix(')'));
    inside.is_some_and(|inside| {
        let parts: Vec<&str> = inside.split(',').map(str::trim).collect();
        parts.len() == 3 && parts.iter().all(|part| part.parse::<u8>().is_ok_and(|number| number.to_string() == **part))
    })
}

fn is_base64(text: &str) -> bool {
    let digits = text.trim_end_matches('=');
    let padding = text.len() - digits.len();
    !text.is_empty()
        && text.len().is_multiple_of(4)
        && padding <= 2
        && digits.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/'))
}

fn is_date(text: &str) -> bool {
    text.len() == 10 && text.parse::<jiff::civil::Date>().is_ok()
}

/// A date and a time with a zone (RFC 3339); hours, minutes and seconds are compared as text.
fn is_date_time(text: &str) -> bool {
    let lower = text.to_ascii_lowercase();
    let Some((date, time)) = lower.split_once('t') else { return false };
    if !is_date(date) {
        return false;
    }
    let Some((clock, rest)) = time.split_at_checked(8) else { return false };
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let mut parts = clock.split(':');
    let two = |part: Option<&str>, most: &str| part.is_some_and(|part| part.len() == 2 && digits(part) && part <= most);
    let in_range =
        two(parts.next(), "23") && two(parts.next(), "59") && two(parts.next(), "59") && parts.next().is_none();
    let zone_at = rest.find(['z', '+', '-']).unwrap_or(rest.len());
    let (fraction, zone) = rest.split_at(zone_at);
    let zone_ok = zone == "z"
        || zone
            .get(1..)
            .and_then(|zone| zone.split_once(':'))
            .is_some_and(|(hours, minutes)| hours.len() == 2 && minutes.len() == 2 && digits(hours) && digits(minutes));
    in_range && zone_ok && (fraction.is_empty() || fraction.get(1..).is_some_and(digits))
}

/// Units of durations in words, and their nanoseconds. Behind the last name of each there may be more letters (`seconds`).
const UNITS: [(&[&str], i64); 8] = [
    (&["ns", "nano"], 1),
    (&["us", "\u{b5}s", "micro"], 1_000),
    (&["ms", "milli"], 1_000_000),
    (&["s", "sec"], 1_000_000_000),
    (&["m", "min"], 60_000_000_000),
    (&["h", "hr", "hour"], 3_600_000_000_000),
    (&["d", "day"], 86_400_000_000_000),
    (&["w", "wk", "week"], 604_800_000_000_000),
];

/// The nanoseconds of a duration: one as Go parses it (`1h30m`), or numbers with units that are words (`3 days`, `1d12h`).
pub(crate) fn duration(text: &str) -> Option<i64> {
    duration::parse(text).ok().or_else(|| worded_duration(text))
}

fn worded_duration(text: &str) -> Option<i64> {
    let is_space = |c: char| matches!(c, '\t' | '\n' | '\x0c' | '\r' | ' ');
    let (mut rest, mut sum) = (text.trim_start_matches(is_space), None::<i64>);
    while !rest.is_empty() {
        let (number, after) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len()));
        let after = after.trim_start_matches(is_space);
        let end = after.find(|c: char| !c.is_ascii_alphabetic() && c != '\u{b5}').unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        if unit.is_empty() {
            return None;
        }
        let (number, unit) = (number.parse::<i64>().ok()?, unit.to_lowercase());
        let is_unit = |names: &[&str]| {
            names.contains(&unit.as_str()) || names.last().is_some_and(|longest| unit.starts_with(longest))
        };
        // One that nobody knows counts nothing beside one that is known.
        if let Some((_, nanos)) = UNITS.iter().find(|(names, _)| is_unit(names)) {
            sum = Some(sum.unwrap_or(0).checked_add(number.checked_mul(*nanos)?)?);
        }
        rest = after.trim_start_matches(is_space);
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_take_what_kubernetes_takes() {
        for (name, good, bad) in [
            ("uri", "https://a:8/b?c=d /x mailto:a", "a http://[::1 http://a:b/"),
            ("email", "a@b a.b+c@example.com", "a a@ @b a..b@c"),
            ("hostname", "localhost a.example.com a-b", "-a a..b a.b1 a_b.com"),
            ("ipv4", "1.2.3.4 01.2.3.4", "1.2.3 1.2.3.256 ::1"),
            ("ipv6", "::1 fe80::1", "1.2.3.4 :::"),
            ("cidr", "10.0.0.0/8 ::/0", "10.0.0.0 10.0.0.0/33"),
            ("mac", "01:02:03:04:05:06 0102.0304.0506", "01:02 01:02:03:04:05:0g"),
            ("uuid", "00000000-0000-0000-0000-000000000000 00000000000000000000000000000000", "0000"),
            ("uuid4", "00000000-0000-4000-8000-000000000000", "00000000-0000-1000-8000-000000000000"),
            ("isbn10", "0321751043", "0321751044"),
            ("isbn13", "978-0321751041", "978-0321751042"),
            ("creditcard", "4111111111111111", "4111111111111112"),
            ("ssn", "111-22-3333 111223333", "11-22-3333"),
            ("hexcolor", "#FFF 00ff00", "#FFFF"),
            ("rgbcolor", "rgb(0,255,2)", "rgb(0,256,2)"),
            ("byte", "YQ== YWJj", "YQ a-b="),
            ("date", "2026-02-28", "2026-02-30 2026-2-3"),
            (
                "date-time",
                "2026-02-28T01:02:03Z 2026-02-28t01:02:03.5+01:00",
                "today 2026-02-28T24:00:00Z 2026-02-28T01:02:03",
            ),
            ("duration", "1h30m 1.5s 0 3d 1d12h 2weeks5min 7seconds", "1 h1 1x 1d- -1d 1hrs 99999999999w"),
            ("k8s-short-name", "a-b", "A a.b"),
            ("k8s-long-name", "a.b-c", "a..b"),
        ] {
            let format = Format::read(name, Type::String).unwrap_or_else(|| panic!("{name}"));
            assert_eq!(format.name(), name);
            good.split(' ').for_each(|text| assert!(format.takes(text), "{name}: {text}"));
            bad.split(' ').for_each(|text| assert!(!format.takes(text), "{name}: {text}"));
        }
        assert!(
            Format::is_known("int32", "integer") && !Format::is_known("int32", "string") && !Format::is_known("x", "")
        );
    }
}
