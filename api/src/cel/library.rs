//! What the functions of expressions do: CEL's own and Kubernetes' (kubernetes-api §22.4).

use std::cmp::Ordering;
use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::tz::TimeZone;

use super::eval::{Run, Stop};
use super::signatures::ESCAPE_KEY;
use super::value::{Text, Url, Val, contains, duration, timestamp};
use crate::custom::format;
use crate::custom::pattern::{Pattern, Translation};
use crate::meta::Quantity;
use crate::meta::{names, text, time};
use crate::schedule::Zone;

/// A value as `string()` shows it.
pub(crate) struct Shown<'v, 'a>(pub &'v Val<'a>);

impl fmt::Display for Shown<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Val::Null => f.write_str("null"),
            Val::Bool(value) => value.fmt(f),
            Val::Int(value) => value.fmt(f),
            Val::Uint(value) => value.fmt(f),
            Val::Double(value) => f.write_str(&text::float(*value)),
            Val::Text(text) => f.write_str(text),
            Val::Bytes(bytes) => bytes.utf8_chunks().try_for_each(|chunk| {
                f.write_str(chunk.valid())?;
                f.write_str(if chunk.invalid().is_empty() { "" } else { "\u{fffd}" })
            }),
            Val::Type(name) => f.write_str(name),
            Val::Duration(nanos) => write!(f, "{}s", *nanos as f64 / 1e9),
            Val::Timestamp(time) => time.fmt(f),
            Val::Quantity(quantity) => quantity.fmt(f),
            Val::Url(url) => f.write_str(&url.text),
            Val::Ip(ip) => ip.fmt(f),
            Val::Cidr(ip, bits) => write!(f, "{ip}/{bits}"),
            Val::Semver(version) => version.fmt(f),
            other => f.write_str(other.type_name()),
        }
    }
}

fn shown(value: &Val<'_>) -> String {
    Shown(value).to_string()
}

fn place(at: i64) -> Option<usize> {
    usize::try_from(at).ok()
}

/// The part of a text between two places, counted in characters.
fn part(text: &str, from: i64, to: i64) -> Result<String, Stop> {
    let wrong = |at: i64| Stop::new(format_args!("index out of range: {at}"));
    let count = text.chars().count();
    let from_at = place(from).filter(|at| *at <= count).ok_or_else(|| wrong(from))?;
    let to_at = place(to).filter(|at| *at <= count).ok_or_else(|| wrong(to))?;
    if from_at > to_at {
        return Err(Stop::new(format_args!("invalid substring range. start: {from}, end: {to}")));
    }
    Ok(text.chars().skip(from_at).take(to_at - from_at).collect())
}

/// The place of a text in another from a place on, in characters.
fn index_of(text: &str, wanted: &str, from: i64) -> Result<i64, Stop> {
    let wrong = || Stop::new(format_args!("index out of range: {from}"));
    let start = place(from).ok_or_else(wrong)?;
    let Some((bytes, _)) = text.char_indices().chain([(text.len(), ' ')]).nth(start) else {
        return if wanted.is_empty() { Err(wrong()) } else { Ok(-1) };
    };
    let found = text.get(bytes..).unwrap_or_default().find(wanted);
    let before = found.and_then(|at| text.get(..bytes + at)).map(|before| before.chars().count());
    Ok(before.and_then(|count| i64::try_from(count).ok()).unwrap_or(-1))
}

fn last_index_of(text: &str, wanted: &str, from: Option<i64>) -> Result<i64, Stop> {
    let end = match from {
        None => text.len(),
        Some(from) => {
            let wrong = || Stop::new(format_args!("index out of range: {from}"));
            let start = place(from).ok_or_else(wrong)?;
            let at = text.char_indices().nth(start).map_or(text.len(), |(at, _)| at);
            (at + wanted.len()).min(text.len())
        }
    };
    let mut end = end;
    while !text.is_char_boundary(end) {
        end += 1;
    }
    let found = text.get(..end).unwrap_or_default().rfind(wanted);
    let before = found.and_then(|at| text.get(..at)).map(|before| before.chars().count());
    Ok(before.and_then(|count| i64::try_from(count).ok()).unwrap_or(-1))
}

fn whole<'a>(count: usize) -> Val<'a> {
    Val::Int(i64::try_from(count).unwrap_or(i64::MAX))
}

/// An expression that only becomes known now.
fn expression(run: &mut Run<'_>, text: &str, over: usize) -> Result<Pattern, Stop> {
    let wrong = |words: String| Stop::new(format_args!("error parsing regexp: {words}"));
    let translation = Translation::of(text).map_err(wrong)?;
    // Compiling takes a few hundred steps a state, also where it fails.
    run.spend(100 + translation.states.saturating_mul(20))?;
    let pattern = translation.pattern(text).map_err(wrong)?;
    run.spend(pattern.cost(over) + over / 10)?;
    Ok(pattern)
}

/// Calls a function; what a text costs to be looked at is paid here.
pub(crate) fn call<'a>(run: &mut Run<'a>, name: &str, given: &[Val<'a>]) -> Result<Val<'a>, Stop> {
    for value in given {
        run.spend(value.bytes_held() / 10)?;
    }
    match given {
        [Val::Text(text), ..] if name.starts_with('.') => of_text(run, name, text, given),
        [Val::List(_) | Val::Items(..), ..] if name.starts_with('.') => of_list(run, name, given),
        [Val::Optional(of), rest @ ..] if name.starts_with('.') => of_optional(name, of.as_deref(), rest),
        [Val::Timestamp(time), rest @ ..] if name.starts_with(".get") => of_time(run, name, *time, rest),
        [Val::Duration(nanos)] if name.starts_with(".get") => Ok(Val::Int(match name {
            ".getHours" => nanos / 3_600_000_000_000,
            ".getMinutes" => nanos / 60_000_000_000,
            ".getSeconds" => nanos / 1_000_000_000,
            ".getMilliseconds" => nanos / 1_000_000,
            _ => return Err(Stop::overload()),
        })),
        [Val::Quantity(of), rest @ ..] if name.starts_with('.') => of_quantity(name, of, rest),
        [Val::Url(url)] if name.starts_with('.') => of_url(run, name, url),
        [Val::Ip(_) | Val::Cidr(..), ..] if name.starts_with('.') => of_address(name, given),
        [Val::Authority(of), rest @ ..] if name.starts_with('.') => of.call(run, name, rest),
        [Val::Semver(of), rest @ ..] if name.starts_with('.') => of_semver(name, of, rest),
        [Val::Format(format), Val::Text(text)] if name == ".validate" => validate(format, text),
        [size] if name == ".size" => size.size(run)?.map(whole).ok_or_else(Stop::overload),
        _ if name.starts_with('.') => Err(Stop::overload()),
        _ => global(run, name, given),
    }
}

fn global<'a>(run: &mut Run<'a>, name: &str, given: &[Val<'a>]) -> Result<Val<'a>, Stop> {
    if let Some(format) = name.strip_prefix("format.") {
        return Ok(match given {
            [] => NAMED.iter().find(|(known, _)| *known == format).map_or(Val::Null, |(known, _)| Val::Format(known)),
            [Val::Text(text)] => {
                let known = NAMED.iter().find(|(known, _)| *known == &**text);
                Val::optional(known.map(|(known, _)| Val::Format(known)))?
            }
            _ => return Err(Stop::overload()),
        });
    }
    match (name, given) {
        ("size", [of]) => of.size(run)?.map(whole).ok_or_else(Stop::overload),
        ("type", [of]) => Ok(Val::Type(of.type_name())),
        ("dyn", [of]) => Ok(of.clone()),
        ("matches", [Val::Text(text), Val::Text(of)]) => {
            let pattern = expression(run, of, text.len())?;
            Ok(Val::Bool(pattern.matches(text)))
        }
        ("optional.of", [of]) => Val::some(of.clone()),
        ("optional.none", []) => Ok(Val::Optional(None)),
        ("optional.ofNonZeroValue", [of]) => {
            if is_zero(of, run)? {
                Ok(Val::Optional(None))
            } else {
                Val::some(of.clone())
            }
        }
        ("optional.unwrap", [of]) => unwrapped(&of.items(run)?.ok_or_else(Stop::overload)?),
        (ESCAPE_KEY, [Val::Text(text)]) => Ok(Val::own(text.replace('~', "~0").replace('/', "~1"))),
        ("semver", [Val::Text(text)]) => version(text, false).map(|version| Val::Semver(Arc::new(version))),
        ("semver", [Val::Text(text), Val::Bool(loose)]) => {
            version(text, *loose).map(|version| Val::Semver(Arc::new(version)))
        }
        ("isSemver", [Val::Text(text)]) => Ok(Val::Bool(version(text, false).is_ok())),
        ("isSemver", [Val::Text(text), Val::Bool(loose)]) => Ok(Val::Bool(version(text, *loose).is_ok())),
        ("strings.quote", [Val::Text(text)]) => {
            let quoted = crate::meta::text::quote(text);
            run.spend(quoted.len() / 10)?;
            Ok(Val::own(quoted))
        }
        ("lists.range", [Val::Int(count)]) => {
            let wrong = || Stop::new(format_args!("lists.range: size must be non-negative, got {count}"));
            run.spend(place(*count).ok_or_else(wrong)?)?;
            Val::list((0..*count).map(Val::Int).collect())
        }
        ("sets.contains" | "sets.equivalent" | "sets.intersects", [a, b]) => {
            let a = a.items(run)?.ok_or_else(Stop::overload)?;
            let b = b.items(run)?.ok_or_else(Stop::overload)?;
            let mut all = |of: &[Val<'a>], within: &[Val<'a>]| {
                for item in of {
                    if !contains(within, item, run)? {
                        return Ok(false);
                    }
                }
                Ok::<_, Stop>(true)
            };
            Ok(Val::Bool(match name {
                "sets.contains" => all(&b, &a)?,
                "sets.equivalent" => all(&b, &a)? && all(&a, &b)?,
                _ => {
                    let mut any = false;
                    for item in &b {
                        any = any || contains(&a, item, run)?;
                    }
                    any
                }
            }))
        }
        ("quantity", [Val::Text(text)]) => match Quantity::parse(text) {
            Ok(quantity) => Ok(Val::Quantity(Arc::new(quantity))),
            Err(error) => Err(Stop::new(error)),
        },
        ("isQuantity", [Val::Text(text)]) => Ok(Val::Bool(Quantity::parse(text).is_ok())),
        ("url", [Val::Text(text)]) => match url(text) {
            Some(url) => Ok(Val::Url(Arc::new(url))),
            None => Err(Stop::new(format_args!("URL parse error during conversion from string: {:?}", &**text))),
        },
        ("isURL", [Val::Text(text)]) => Ok(Val::Bool(url(text).is_some())),
        ("ip", [Val::Text(text)]) => ip(text).map(Val::Ip),
        ("isIP", [Val::Text(text)]) => Ok(Val::Bool(ip(text).is_ok())),
        ("ip.isCanonical", [Val::Text(text)]) => Ok(Val::Bool(ip(text)?.to_string() == **text)),
        ("cidr", [Val::Text(text)]) => cidr(text).map(|(ip, bits)| Val::Cidr(ip, bits)),
        ("isCIDR", [Val::Text(text)]) => Ok(Val::Bool(cidr(text).is_ok())),
        (name, [of]) => converted(name, of),
        _ => Err(Stop::overload()),
    }
}

fn converted<'a>(name: &str, of: &Val<'a>) -> Result<Val<'a>, Stop> {
    let range = || Stop::new("integer overflow");
    let wrong = |ty: &str| Stop::new(format_args!("type conversion error from 'string' to '{ty}'"));
    Ok(match (name, of) {
        ("int", Val::Int(_)) | ("uint", Val::Uint(_)) | ("double", Val::Double(_)) | ("string", Val::Text(_)) => {
            of.clone()
        }
        ("bytes", Val::Bytes(_)) | ("bool", Val::Bool(_)) | ("duration", Val::Duration(_)) => of.clone(),
        ("timestamp", Val::Timestamp(_)) => of.clone(),
        ("int", Val::Uint(number)) => Val::Int(i64::try_from(*number).map_err(|_| range())?),
        ("int", Val::Double(number)) if number.abs() < 9.2e18 => Val::Int(*number as i64),
        ("int", Val::Double(_)) => return Err(range()),
        ("int", Val::Text(text)) => Val::Int(text.parse().map_err(|_| wrong("int"))?),
        ("int", Val::Timestamp(time)) => Val::Int(time.as_second()),
        ("int", Val::Duration(nanos)) => Val::Int(*nanos),
        ("uint", Val::Int(number)) => Val::Uint(u64::try_from(*number).map_err(|_| range())?),
        ("uint", Val::Double(number)) if (0.0..1.8e19).contains(number) => Val::Uint(*number as u64),
        ("uint", Val::Double(_)) => return Err(range()),
        ("uint", Val::Text(text)) => Val::Uint(text.parse().map_err(|_| wrong("uint"))?),
        ("double", Val::Int(number)) => Val::Double(*number as f64),
        ("double", Val::Uint(number)) => Val::Double(*number as f64),
        ("double", Val::Text(text)) => Val::Double(text.parse().map_err(|_| wrong("double"))?),
        ("string", Val::Bytes(bytes)) => match std::str::from_utf8(bytes) {
            Ok(text) => Val::own(text),
            Err(_) => return Err(Stop::new("invalid UTF-8 in bytes, cannot convert to string")),
        },
        ("string", Val::List(_) | Val::Items(..) | Val::Map(_) | Val::Fields(..) | Val::Null | Val::Optional(_)) => {
            return Err(Stop::overload());
        }
        ("string", other) => Val::own(shown(other)),
        ("bytes", Val::Text(text)) => Val::bytes(text.as_bytes()),
        ("bool", Val::Text(text)) => match &**text {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Val::Bool(true),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Val::Bool(false),
            _ => return Err(wrong("bool")),
        },
        ("duration", Val::Text(text)) => Val::Duration(duration(text)?),
        ("timestamp", Val::Text(text)) => Val::Timestamp(timestamp(text)?),
        ("timestamp", Val::Int(seconds)) => {
            Val::Timestamp(jiff::Timestamp::from_second(*seconds).map_err(|_| range())?)
        }
        _ => return Err(Stop::overload()),
    })
}

fn is_zero<'a>(value: &Val<'a>, run: &mut Run<'a>) -> Result<bool, Stop> {
    Ok(match value {
        Val::Null | Val::Bool(false) | Val::Int(0) | Val::Uint(0) | Val::Duration(0) | Val::Optional(None) => true,
        Val::Double(number) => *number == 0.0,
        other => return Ok(other.size(run)? == Some(0)),
    })
}

fn of_text<'a>(run: &mut Run<'a>, name: &str, text: &Text<'a>, given: &[Val<'a>]) -> Result<Val<'a>, Stop> {
    let rest = given.get(1..).unwrap_or_default();
    Ok(match (name, rest) {
        (".size", []) => whole(text.chars().count()),
        (".contains", [Val::Text(of)]) => Val::Bool(text.contains(&**of)),
        (".startsWith", [Val::Text(of)]) => Val::Bool(text.starts_with(&**of)),
        (".endsWith", [Val::Text(of)]) => Val::Bool(text.ends_with(&**of)),
        (".matches", [Val::Text(of)]) => Val::Bool(expression(run, of, text.len())?.matches(text)),
        (".find", [Val::Text(of)]) => {
            let pattern = expression(run, of, text.len())?;
            Val::own(pattern.each(text).next().map_or("", |found| found.as_str()))
        }
        (".findAll", [Val::Text(of), most @ ..]) => {
            let most = match most {
                [] => usize::MAX,
                [Val::Int(most)] => usize::try_from(*most).unwrap_or(usize::MAX),
                _ => return Err(Stop::overload()),
            };
            let pattern = expression(run, of, text.len())?;
            let (mut found, mut matches) = (Vec::new(), pattern.each(text));
            while found.len() < most
                && let Some(next) = matches.next()
            {
                found.push(Val::own(next.as_str()));
                // To find the next one, all that is left may be looked at: what this one needed is not known.
                run.spend(1 + pattern.cost(text.len() - next.end()))?;
            }
            Val::list(found)?
        }
        (".charAt", [Val::Int(at)]) => {
            let count = i64::try_from(text.chars().count()).unwrap_or(i64::MAX);
            if *at == count { Val::own("") } else { Val::own(part(text, *at, at.saturating_add(1))?) }
        }
        (".indexOf", [Val::Text(of)]) => Val::Int(index_of(text, of, 0)?),
        (".indexOf", [Val::Text(of), Val::Int(from)]) => Val::Int(index_of(text, of, *from)?),
        (".lastIndexOf", [Val::Text(of)]) => Val::Int(last_index_of(text, of, None)?),
        (".lastIndexOf", [Val::Text(of), Val::Int(from)]) => Val::Int(last_index_of(text, of, Some(*from))?),
        (".lowerAscii", []) => Val::own(text.to_ascii_lowercase()),
        (".upperAscii", []) => Val::own(text.to_ascii_uppercase()),
        (".trim", []) => Val::own(text.trim()),
        (".replace", [Val::Text(old), Val::Text(new), count @ ..]) => {
            let most = match count {
                [] => usize::MAX,
                [Val::Int(count)] => usize::try_from(*count).unwrap_or(usize::MAX),
                _ => return Err(Stop::overload()),
            };
            let found = text.matches(&**old).count().min(most);
            run.spend((text.len() + found.saturating_mul(new.len())) / 10)?;
            Val::own(text.replacen(&**old, new, found))
        }
        (".split", [Val::Text(of), count @ ..]) => {
            let most = match count {
                [] => usize::MAX,
                [Val::Int(count)] => usize::try_from(*count).unwrap_or(usize::MAX),
                _ => return Err(Stop::overload()),
            };
            run.spend(if of.is_empty() { text.len() } else { text.matches(&**of).count() + 1 })?;
            let parts: Vec<Val<'a>> = if most == 0 {
                Vec::new()
            } else if of.is_empty() {
                let mut parts: Vec<Val<'a>> = Vec::new();
                let mut chars = text.chars();
                while parts.len() + 1 < most
                    && let Some(c) = chars.next()
                {
                    parts.push(Val::own(c.to_string()));
                }
                let rest = chars.as_str();
                parts.extend((!rest.is_empty()).then(|| Val::own(rest)));
                parts
            } else {
                text.splitn(most, &**of).map(Val::own).collect()
            };
            Val::list(parts)?
        }
        (".substring", [Val::Int(from)]) => {
            let count = i64::try_from(text.chars().count()).unwrap_or(i64::MAX);
            Val::own(part(text, *from, count)?)
        }
        (".substring", [Val::Int(from), Val::Int(to)]) => Val::own(part(text, *from, *to)?),
        (".format", [values]) => {
            let values = values.items(run)?.ok_or_else(Stop::overload)?;
            Val::own(formatted(run, text, &values)?)
        }
        _ => return Err(Stop::overload()),
    })
}

/// `"%s has %d".format([…])`.
fn formatted<'a>(run: &mut Run<'a>, text: &str, values: &[Val<'a>]) -> Result<String, Stop> {
    let mut out = String::new();
    let (mut rest, mut next) = (text, 0_usize);
    while let Some((before, after)) = rest.split_once('%') {
        out.push_str(before);
        if let Some(after) = after.strip_prefix('%') {
            out.push('%');
            rest = after;
            continue;
        }
        let end = after
            .find(|c: char| c != '.' && !c.is_ascii_digit())
            .ok_or_else(|| Stop::new("unexpected end of string"))?;
        let (precision, clause) = after.split_at(end);
        let precision: usize = match precision.strip_prefix('.') {
            None | Some("") => 6,
            Some(digits) => {
                digits.parse().ok().filter(|digits| *digits <= 100).ok_or_else(|| Stop::new("invalid precision"))?
            }
        };
        let value = values.get(next).ok_or_else(|| Stop::new(format_args!("index {next} out of range")))?;
        next += 1;
        let mut chars = clause.chars();
        let piece = match (chars.next(), value) {
            (Some('s'), value) => written(run, value, 0)?,
            (Some('d'), Val::Int(_) | Val::Uint(_) | Val::Double(_)) => shown(value),
            (Some('f'), Val::Double(number)) => format!("{number:.precision$}"),
            (Some('f'), Val::Int(number)) => format!("{:.precision$}", *number as f64),
            (Some('e'), Val::Double(number)) => {
                let shown = format!("{number:.precision$e}");
                match shown.split_once('e') {
                    Some((digits, power)) => {
                        let power: i32 = power.parse().unwrap_or(0);
                        format!("{digits}e{}{:02}", if power < 0 { '-' } else { '+' }, power.abs())
                    }
                    None => shown,
                }
            }
            (Some('b'), Val::Int(number)) if *number < 0 => format!("-{:b}", number.unsigned_abs()),
            (Some('b'), Val::Int(number)) => format!("{number:b}"),
            (Some('b'), Val::Uint(number)) => format!("{number:b}"),
            (Some('b'), Val::Bool(value)) => u8::from(*value).to_string(),
            (Some('x' | 'X' | 'o'), Val::Int(number)) => {
                let (sign, number) = (if *number < 0 { "-" } else { "" }, number.unsigned_abs());
                match clause.as_bytes().first() {
                    Some(b'x') => format!("{sign}{number:x}"),
                    Some(b'X') => format!("{sign}{number:X}"),
                    _ => format!("{sign}{number:o}"),
                }
            }
            (Some('x'), Val::Uint(number)) => format!("{number:x}"),
            (Some('X'), Val::Uint(number)) => format!("{number:X}"),
            (Some('x'), Val::Text(text)) => hexadecimal(text.as_bytes()),
            (Some('X'), Val::Text(text)) => hexadecimal(text.as_bytes()).to_ascii_uppercase(),
            (Some('x'), Val::Bytes(bytes)) => hexadecimal(bytes),
            (Some('X'), Val::Bytes(bytes)) => hexadecimal(bytes).to_ascii_uppercase(),
            (Some('o'), Val::Uint(number)) => format!("{number:o}"),
            (Some(clause), value) => {
                let words = format!("error during formatting: {clause} cannot be used on {}", value.type_name());
                return Err(Stop::new(&words));
            }
            (None, _) => return Err(Stop::new("unexpected end of string")),
        };
        run.spend(1 + piece.len() / 10)?;
        out.push_str(&piece);
        rest = chars.as_str();
    }
    out.push_str(rest);
    Ok(out)
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A value as `%s` shows it: within lists and maps as it is written in an expression.
fn written<'a>(run: &mut Run<'a>, value: &Val<'a>, depth: usize) -> Result<String, Stop> {
    run.spend(1)?;
    if depth > 64 {
        return Err(Stop::new("a value nests too deeply"));
    }
    if let Some(items) = value.items(run)? {
        let parts: Vec<String> = items.iter().map(|item| written(run, item, depth + 1)).collect::<Result<_, _>>()?;
        let shown = format!("[{}]", parts.join(", "));
        run.spend(shown.len() / 10)?;
        return Ok(shown);
    }
    if let Some(fields) = value.fields(run)? {
        let mut parts: Vec<String> = Vec::with_capacity(fields.len());
        for (key, value) in &fields {
            parts.push(format!("{}:{}", written(run, key, depth + 1)?, written(run, value, depth + 1)?));
        }
        parts.sort_unstable();
        let shown = format!("{{{}}}", parts.join(", "));
        run.spend(shown.len() / 10)?;
        return Ok(shown);
    }
    let shown = match value {
        _ if depth == 0 => shown(value),
        Val::Text(word) => text::quote(word),
        Val::Bytes(_) => format!("b{}", text::quote(&shown(value))),
        Val::Double(number) if number.is_finite() => format!("{number:.6}"),
        Val::Double(number) => text::quote(&text::float(*number)),
        Val::Duration(_) => format!("duration({})", text::quote(&shown(value))),
        Val::Timestamp(_) => format!("timestamp({})", text::quote(&shown(value))),
        value => shown(value),
    };
    run.spend(shown.len() / 10)?;
    Ok(shown)
}

fn of_list<'a>(run: &mut Run<'a>, name: &str, given: &[Val<'a>]) -> Result<Val<'a>, Stop> {
    let [list, rest @ ..] = given else { return Err(Stop::overload()) };
    if name == ".size" {
        return list.size(run)?.map(whole).ok_or_else(Stop::overload);
    }
    let mut items = list.items(run)?.ok_or_else(Stop::overload)?;
    let empty = || Stop::new(format_args!("{} called on empty list", name.trim_start_matches('.')));
    Ok(match (name, rest) {
        (".join", rest) => {
            let between = match rest {
                [] => "",
                [Val::Text(between)] => &**between,
                _ => return Err(Stop::overload()),
            };
            let mut out = String::new();
            for (at, item) in items.iter().enumerate() {
                let Val::Text(text) = item else { return Err(Stop::overload()) };
                run.spend((text.len() + between.len()) / 10)?;
                if at > 0 {
                    out.push_str(between);
                }
                out.push_str(text);
            }
            Val::own(out)
        }
        (".isSorted", []) => {
            for pair in items.windows(2) {
                let [a, b] = pair else { continue };
                if a.order(b, run)?.ok_or_else(Stop::overload)? == Ordering::Greater {
                    return Ok(Val::Bool(false));
                }
            }
            Val::Bool(true)
        }
        (".sum", []) => {
            let mut total = None;
            for item in items {
                total = Some(match total {
                    None => item,
                    Some(total) => run.add(&total, &item)?,
                });
            }
            total.unwrap_or(Val::Int(0))
        }
        (".min" | ".max", []) => {
            let wanted = if name == ".min" { Ordering::Less } else { Ordering::Greater };
            let mut best: Option<Val<'a>> = None;
            for item in items {
                let better = match &best {
                    None => true,
                    Some(best) => item.order(best, run)?.ok_or_else(Stop::overload)? == wanted,
                };
                if better {
                    best = Some(item);
                }
            }
            best.ok_or_else(empty)?
        }
        (".indexOf" | ".lastIndexOf", [wanted]) => {
            let mut found = None;
            for (at, item) in items.iter().enumerate() {
                if item.same(wanted, run)? {
                    found = Some(at);
                    if name == ".indexOf" {
                        break;
                    }
                }
            }
            found.map_or(Val::Int(-1), whole)
        }
        (".slice", [Val::Int(from), Val::Int(to)]) => {
            let range = place(*from).zip(place(*to)).filter(|(from, to)| from <= to && *to <= items.len());
            let wrong = || {
                let why = match (from, to) {
                    (..0, _) | (_, ..0) => "negative indexes not supported".to_owned(),
                    (from, to) if from > to => "start index must be less than or equal to end index".to_owned(),
                    _ => format!("list is length {}", items.len()),
                };
                Stop::new(format_args!("cannot slice({from}, {to}), {why}"))
            };
            let (from, to) = range.ok_or_else(wrong)?;
            Val::list(items.get(from..to).unwrap_or_default().to_vec())?
        }
        (".flatten", rest) => {
            let depth = match rest {
                [] => 1,
                [Val::Int(depth @ 0..)] => *depth,
                _ => return Err(Stop::new("level must be non-negative")),
            };
            for _ in 0..depth {
                let (mut flat, mut is_flat) = (Vec::with_capacity(items.len()), true);
                for item in items {
                    match item.items(run)? {
                        Some(inner) => {
                            is_flat = false;
                            flat.extend(inner);
                        }
                        None => flat.push(item),
                    }
                }
                items = flat;
                if is_flat {
                    break;
                }
            }
            Val::list(items)?
        }
        (".distinct", []) => {
            let mut kept: Vec<Val<'a>> = Vec::new();
            for item in items {
                if !contains(&kept, &item, run)? {
                    kept.push(item);
                }
            }
            Val::list(kept)?
        }
        (".reverse", []) => {
            items.reverse();
            Val::list(items)?
        }
        (".first", []) => Val::optional(items.into_iter().next())?,
        (".last", []) => Val::optional(items.pop())?,
        (".unwrapOpt", []) => unwrapped(&items)?,
        (".sort", []) => {
            // What cannot be compared is found before, so that the order is one.
            for pair in items.windows(2) {
                let [a, b] = pair else { continue };
                if a.type_name() != b.type_name() || a.order(b, run)?.is_none() {
                    return Err(Stop::new("list elements must have the same type"));
                }
            }
            run.spend(items.len().saturating_mul(items.len().checked_ilog2().unwrap_or(0) as usize))?;
            Val::list(sorted(run, items)?)?
        }
        _ => return Err(Stop::overload()),
    })
}

/// Sorts by merging: it ends where the budget ends, and what has no order (a NaN) is no fault.
fn sorted<'a>(run: &mut Run<'a>, items: Vec<Val<'a>>) -> Result<Vec<Val<'a>>, Stop> {
    merged(run, items, |item| item)
}

/// Items in the order of their keys.
pub(crate) fn sorted_by<'a>(run: &mut Run<'a>, items: Vec<(Val<'a>, Val<'a>)>) -> Result<Vec<Val<'a>>, Stop> {
    for pair in items.windows(2) {
        let [(a, _), (b, _)] = pair else { continue };
        if a.type_name() != b.type_name() || a.order(b, run)?.is_none() {
            return Err(Stop::new("list elements must have the same type"));
        }
    }
    run.spend(items.len().saturating_mul(items.len().checked_ilog2().unwrap_or(0) as usize))?;
    Ok(merged(run, items, |(key, _)| key)?.into_iter().map(|(_, item)| item).collect())
}

fn merged<'a, T: Clone>(run: &mut Run<'a>, mut items: Vec<T>, key: fn(&T) -> &Val<'a>) -> Result<Vec<T>, Stop> {
    let mut width = 1;
    while width < items.len() {
        let mut merged = Vec::with_capacity(items.len());
        for pair in items.chunks(2 * width) {
            let (mut left, mut right) = pair.split_at(width.min(pair.len()));
            while let ([a, others @ ..], [b, rest @ ..]) = (left, right) {
                if key(a).order(key(b), run)? == Some(Ordering::Greater) {
                    merged.push(b.clone());
                    right = rest;
                } else {
                    merged.push(a.clone());
                    left = others;
                }
            }
            merged.extend_from_slice(left);
            merged.extend_from_slice(right);
        }
        items = merged;
        width *= 2;
    }
    Ok(items)
}

/// What the optionals of a list hold.
fn unwrapped<'a>(items: &[Val<'a>]) -> Result<Val<'a>, Stop> {
    let mut held = Vec::with_capacity(items.len());
    for item in items {
        match item {
            Val::Optional(of) => held.extend(of.as_ref().map(|of| (**of).clone())),
            _ => return Err(Stop::overload()),
        }
    }
    Val::list(held)
}

/// A version; a loose one may lack its minor and its patch, and may have a `v` and leading zeros.
fn version(text: &str, loose: bool) -> Result<semver::Version, Stop> {
    let wrong = |words: &dyn fmt::Display| Stop::new(format_args!("semver parse error: {words}"));
    if !loose {
        return semver::Version::parse(text).map_err(|error| wrong(&error));
    }
    let bare = text.strip_prefix('v').unwrap_or(text);
    let end = bare.find(['-', '+']).unwrap_or(bare.len());
    let (numbers, rest) = bare.split_at(end);
    let mut parts: Vec<String> = numbers
        .split('.')
        .map(|part| match part.trim_start_matches('0') {
            "" if !part.is_empty() => "0".to_owned(),
            part => part.to_owned(),
        })
        .collect();
    if parts.len() < 3 {
        if !rest.is_empty() {
            return Err(wrong(&"short version cannot contain PreRelease/Build meta data"));
        }
        parts.resize(3, "0".to_owned());
    }
    semver::Version::parse(&format!("{}{rest}", parts.join("."))).map_err(|error| wrong(&error))
}

fn of_semver<'a>(name: &str, of: &semver::Version, rest: &[Val<'a>]) -> Result<Val<'a>, Stop> {
    let number = |number: u64| i64::try_from(number).map(Val::Int).map_err(|_| Stop::new("integer overflow"));
    match (name, rest) {
        (".major", []) => number(of.major),
        (".minor", []) => number(of.minor),
        (".patch", []) => number(of.patch),
        (".isLessThan", [Val::Semver(other)]) => Ok(Val::Bool(of.cmp_precedence(other).is_lt())),
        (".isGreaterThan", [Val::Semver(other)]) => Ok(Val::Bool(of.cmp_precedence(other).is_gt())),
        (".compareTo", [Val::Semver(other)]) => Ok(Val::Int(of.cmp_precedence(other) as i64)),
        _ => Err(Stop::overload()),
    }
}

fn of_optional<'a>(name: &str, of: Option<&Val<'a>>, rest: &[Val<'a>]) -> Result<Val<'a>, Stop> {
    Ok(match (name, of, rest) {
        (".hasValue", of, []) => Val::Bool(of.is_some()),
        (".value" | ".orValue", Some(of), _) => of.clone(),
        (".value", None, []) => return Err(Stop::new("optional.none() dereference")),
        (".orValue", None, [other]) | (".or", None, [other @ Val::Optional(_)]) => other.clone(),
        (".or", Some(of), [Val::Optional(_)]) => Val::some(of.clone())?,
        _ => return Err(Stop::overload()),
    })
}

/// Units for reading what is known of a time zone.
const ZONE_COST: usize = 100;

fn of_time<'a>(run: &mut Run<'a>, name: &str, time: jiff::Timestamp, rest: &[Val<'a>]) -> Result<Val<'a>, Stop> {
    let zone = match rest {
        [] => TimeZone::UTC,
        [Val::Text(text)] => {
            run.spend(ZONE_COST)?;
            zone(text).ok_or_else(|| Stop::new(format_args!("unknown time zone {}", &**text)))?
        }
        _ => return Err(Stop::overload()),
    };
    let time = time.to_zoned(zone);
    Ok(Val::Int(match name {
        ".getFullYear" => time.year().into(),
        ".getMonth" => i64::from(time.month()) - 1,
        ".getDate" => time.day().into(),
        ".getDayOfMonth" => i64::from(time.day()) - 1,
        ".getDayOfWeek" => time.weekday().to_sunday_zero_offset().into(),
        ".getDayOfYear" => i64::from(time.day_of_year()) - 1,
        ".getHours" => time.hour().into(),
        ".getMinutes" => time.minute().into(),
        ".getSeconds" => time.second().into(),
        _ => time.millisecond().into(),
    }))
}

/// A zone by its name (`UTC`, `Europe/Berlin`), or as its difference from UTC, `-08:00`.
fn zone(text: &str) -> Option<TimeZone> {
    let (sign, rest) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    let Some((hours, minutes)) = rest.split_once(':') else {
        return Zone::load(text).ok().map(TimeZone::from);
    };
    let seconds =
        hours.parse::<i32>().ok()?.checked_mul(3600)?.checked_add(minutes.parse::<i32>().ok()?.checked_mul(60)?)?;
    jiff::tz::Offset::from_seconds(sign * seconds).ok().map(TimeZone::fixed)
}

fn of_quantity<'a>(name: &str, of: &Quantity, rest: &[Val<'a>]) -> Result<Val<'a>, Stop> {
    let number = |value: &Val<'a>| match value {
        Val::Quantity(quantity) => Some((**quantity).clone()),
        Val::Int(number) => Some(Quantity::from_units(*number, of.format())),
        _ => None,
    };
    let other = rest.first().and_then(number);
    let is_whole = || *of == Quantity::from_units(of.value(), of.format());
    Ok(match (name, &other) {
        (".isInteger", None) => Val::Bool(is_whole()),
        (".asInteger", None) if is_whole() => Val::Int(of.value()),
        (".asInteger", None) => return Err(Stop::new("cannot convert value to integer")),
        (".asApproximateFloat", None) => Val::Double(of.as_f64()),
        (".sign", None) => Val::Int(of.signum().into()),
        (".add", Some(other)) => Val::Quantity(Arc::new(of + other)),
        (".sub", Some(other)) => Val::Quantity(Arc::new(of - other)),
        (".isLessThan", Some(other)) => Val::Bool(of < other),
        (".isGreaterThan", Some(other)) => Val::Bool(of > other),
        (".compareTo", Some(other)) => Val::Int(of.cmp(other) as i64),
        _ => return Err(Stop::overload()),
    })
}

/// An absolute address or an absolute path.
fn url(text: &str) -> Option<Url> {
    if text.is_empty() || text.bytes().any(|byte| byte < 0x20 || byte == 0x7f || byte == b' ') {
        return None;
    }
    let (before, _) = text.split_once('#').unwrap_or((text, ""));
    let (scheme, rest) = match before.split_once(':') {
        Some((scheme, rest)) if is_scheme(scheme) => (scheme.to_ascii_lowercase(), rest),
        _ if before.starts_with('/') => (String::new(), before),
        _ => return None,
    };
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (host, path) = match rest.strip_prefix("//") {
        Some(rest) => rest.split_at(rest.find('/').unwrap_or(rest.len())),
        None => ("", rest),
    };
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    let port = host.rsplit_once(':').map_or("", |(_, port)| port);
    let is_bare = host.ends_with(']') || !host.contains(':');
    if !is_bare && !port.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    if !percent_is_right(path) || host.contains(['<', '>', '"', '\\', '^', '`', '{', '|', '}']) {
        return None;
    }
    Some(Url { text: text.to_owned(), scheme, host: host.to_owned(), path: path.to_owned(), query: query.to_owned() })
}

fn is_scheme(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.'))
}

fn percent_is_right(text: &str) -> bool {
    text.split('%').skip(1).all(|part| {
        let code = part.as_bytes().get(..2).unwrap_or_default();
        code.len() == 2 && code.iter().all(u8::is_ascii_hexdigit)
    })
}

/// What a part of a query means.
fn unescaped(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let code: Vec<u8> = rest.by_ref().take(2).collect();
                let code = std::str::from_utf8(&code).ok().and_then(|code| u8::from_str_radix(code, 16).ok());
                code.unwrap_or(b'%')
            }
            byte => byte,
        });
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn of_url<'a>(run: &mut Run<'a>, name: &str, url: &Url) -> Result<Val<'a>, Stop> {
    let has_port = !url.host.ends_with(']') && url.host.contains(':');
    let (hostname, port) = match url.host.rsplit_once(':') {
        Some((host, port)) if has_port => (host, port),
        _ => (url.host.as_str(), ""),
    };
    Ok(match name {
        ".getScheme" => Val::own(url.scheme.as_str()),
        ".getHost" => Val::own(url.host.as_str()),
        ".getHostname" => Val::own(hostname.trim_start_matches('[').trim_end_matches(']')),
        ".getPort" => Val::own(port),
        ".getEscapedPath" => Val::own(url.path.as_str()),
        ".getQuery" => {
            let mut fields: Vec<(Val<'a>, Vec<Val<'a>>)> = Vec::new();
            let mut places: HashMap<String, usize> = HashMap::new();
            for pair in url.query.split('&').filter(|pair| !pair.is_empty()) {
                // A name, a list and a value.
                run.spend(5)?;
                let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                let name = unescaped(name);
                let place = places.get(&name).copied().unwrap_or(fields.len());
                if place == fields.len() {
                    fields.push((Val::own(name.as_str()), Vec::new()));
                    places.insert(name, place);
                }
                if let Some((_, values)) = fields.get_mut(place) {
                    values.push(Val::own(unescaped(value)));
                }
            }
            let fields = fields.into_iter().map(|(name, values)| Ok((name, Val::list(values)?)));
            Val::map(fields.collect::<Result<_, Stop>>()?)?
        }
        _ => return Err(Stop::overload()),
    })
}

fn ip(text: &str) -> Result<IpAddr, Stop> {
    let wrong = || Stop::new(format_args!("IP Address {text:?} parse error during conversion from string"));
    match text.parse() {
        Ok(IpAddr::V6(ip)) if ip.to_ipv4_mapped().is_some() => Err(wrong()),
        found => found.map_err(|_| wrong()),
    }
}

fn cidr(text: &str) -> Result<(IpAddr, u8), Stop> {
    let wrong = || Stop::new(format_args!("network address parse error during conversion from string: {text:?}"));
    let (address, bits) = text.split_once('/').ok_or_else(wrong)?;
    let address = ip(address).map_err(|_| wrong())?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    let is_number = bits.bytes().all(|byte| byte.is_ascii_digit()) && (bits == "0" || !bits.starts_with('0'));
    let bits = bits.parse::<u8>().ok().filter(|bits| is_number && *bits <= most).ok_or_else(wrong)?;
    Ok((address, bits))
}

/// An address without what is behind its first bits.
fn masked(address: IpAddr, bits: u8) -> IpAddr {
    match address {
        IpAddr::V4(ip) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
            IpAddr::V4((u32::from(ip) & mask).into())
        }
        IpAddr::V6(ip) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
            IpAddr::V6((u128::from(ip) & mask).into())
        }
    }
}

fn of_address<'a>(name: &str, given: &[Val<'a>]) -> Result<Val<'a>, Stop> {
    let is_local = |ip: &IpAddr| match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.segments()[0] & 0xffc0 == 0xfe80,
    };
    let is_local_multicast = |ip: &IpAddr| match ip {
        IpAddr::V4(ip) => ip.octets()[..3] == [224, 0, 0],
        IpAddr::V6(ip) => ip.segments()[0] & 0xff0f == 0xff02,
    };
    let is_broadcast = |ip: &IpAddr| matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
    Ok(match (name, given) {
        (".family", [Val::Ip(ip)]) => Val::Int(if ip.is_ipv4() { 4 } else { 6 }),
        (".isUnspecified", [Val::Ip(ip)]) => Val::Bool(ip.is_unspecified()),
        (".isLoopback", [Val::Ip(ip)]) => Val::Bool(ip.is_loopback()),
        (".isLinkLocalMulticast", [Val::Ip(ip)]) => Val::Bool(is_local_multicast(ip)),
        (".isLinkLocalUnicast", [Val::Ip(ip)]) => Val::Bool(is_local(ip)),
        (".isGlobalUnicast", [Val::Ip(ip)]) => Val::Bool(
            !(ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || is_local(ip) || is_broadcast(ip)),
        ),
        (".ip", [Val::Cidr(ip, _)]) => Val::Ip(*ip),
        (".prefixLength", [Val::Cidr(_, bits)]) => Val::Int((*bits).into()),
        (".masked", [Val::Cidr(ip, bits)]) => Val::Cidr(masked(*ip, *bits), *bits),
        (".containsIP", [Val::Cidr(net, bits), other]) => {
            let other = match other {
                Val::Ip(ip) => *ip,
                Val::Text(text) => ip(text)?,
                _ => return Err(Stop::overload()),
            };
            Val::Bool(net.is_ipv4() == other.is_ipv4() && masked(*net, *bits) == masked(other, *bits))
        }
        (".containsCIDR", [Val::Cidr(net, bits), other]) => {
            let (other, longer) = match other {
                Val::Cidr(ip, bits) => (*ip, *bits),
                Val::Text(text) => cidr(text)?,
                _ => return Err(Stop::overload()),
            };
            let within = net.is_ipv4() == other.is_ipv4() && longer >= *bits;
            Val::Bool(within && masked(*net, *bits) == masked(other, *bits))
        }
        _ => return Err(Stop::overload()),
    })
}

type Check = fn(&str) -> Vec<String>;

fn say(is_right: bool, words: &str) -> Vec<String> {
    if is_right { Vec::new() } else { vec![words.to_owned()] }
}

/// Formats by name, and what is wrong with a text that has not the format.
const NAMED: [(&str, Check); 13] = [
    ("dns1123Label", |text| names::name_is_dns_label(text, false)),
    ("dns1123Subdomain", |text| names::name_is_dns_subdomain(text, false)),
    ("dns1035Label", |text| names::name_is_dns_1035_label(text, false)),
    ("qualifiedName", |text| names::qualified_name(text)),
    ("dns1123LabelPrefix", |text| names::name_is_dns_label(text, true)),
    ("dns1123SubdomainPrefix", |text| names::name_is_dns_subdomain(text, true)),
    ("dns1035LabelPrefix", |text| names::name_is_dns_1035_label(text, true)),
    ("labelValue", |text| names::label_value(text)),
    ("uri", |text| say(format::is(text, "uri"), "invalid URI")),
    ("uuid", |text| say(format::is(text, "uuid"), "does not match the UUID format")),
    ("byte", |text| say(STANDARD.decode(text).is_ok(), "invalid base64")),
    ("date", |text| say(format::is(text, "date"), "invalid date")),
    ("datetime", |text| say(time::parse(text).is_some(), "invalid datetime")),
];

fn validate<'a>(format: &str, text: &str) -> Result<Val<'a>, Stop> {
    let found = NAMED.iter().find(|(known, _)| *known == format).map(|(_, check)| check(text)).unwrap_or_default();
    if found.is_empty() {
        return Ok(Val::Optional(None));
    }
    Val::some(Val::list(found.into_iter().map(Val::own).collect())?)
}
