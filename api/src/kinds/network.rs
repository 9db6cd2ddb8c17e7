//! IP addresses and ranges in fields: what is accepted, what is warned about (apimachinery's `util/validation/ip.go`).
//!
//! Go's older parser takes leading zeros; new values must not have them, but values that are already stored may stay.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::meta::field::{FieldError, FieldErrors, Path};
use crate::meta::text::quote;

/// An address as the lenient parser reads it: leading zeros in IPv4 parts, and IPv4 in IPv6 becomes IPv4.
pub(super) fn parse_ip(text: &str) -> Option<IpAddr> {
    match strict_ip(text) {
        Some(IpAddr::V6(ip)) => Some(ip.to_ipv4_mapped().map_or(IpAddr::V6(ip), IpAddr::V4)),
        Some(ip) => Some(ip),
        None => lenient_ip(text),
    }
}

fn strict_ip(text: &str) -> Option<IpAddr> {
    // Rust and Go agree on the grammar but for zones, which are no addresses of objects.
    text.parse().ok()
}

fn lenient_ip(text: &str) -> Option<IpAddr> {
    let (head, v4) = match text.rsplit_once(':') {
        Some((head, v4)) => (Some(head), v4),
        None => (None, text),
    };
    let mut parts = v4.split('.').map(|part| {
        let is_number = !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
        is_number
            .then(|| part.trim_start_matches('0'))
            .and_then(|part| if part.is_empty() { Some(0) } else { part.parse::<u8>().ok() })
    });
    let mut next = || parts.next().flatten();
    let (a, b, c, d) = (next()?, next()?, next()?, next()?);
    if parts.next().is_some() {
        return None;
    }
    let v4 = Ipv4Addr::new(a, b, c, d);
    match head {
        None => Some(IpAddr::V4(v4)),
        Some(head) => {
            let ip: Ipv6Addr = format!("{head}:{v4}").parse().ok()?;
            Some(ip.to_ipv4_mapped().map_or(IpAddr::V6(ip), IpAddr::V4))
        }
    }
}

/// A range as the lenient parser reads it: the address and how many bits it fixes.
pub(super) fn parse_cidr(text: &str) -> Option<(IpAddr, u8)> {
    let (ip, bits) = text.split_once('/')?;
    let (address, bits) =
        (parse_ip(ip)?, bits.parse::<u8>().ok().filter(|_| bits.bytes().all(|b| b.is_ascii_digit()))?);
    let width = if ip.contains(':') { 128 } else { 32 };
    match address {
        // It was written in IPv6.
        IpAddr::V4(v4) if width == 128 => (bits <= 128).then_some((IpAddr::V6(v4.to_ipv6_mapped()), bits)),
        address => (bits <= width).then_some((address, bits)),
    }
}

/// The first address of a range.
fn network(ip: IpAddr, bits: u8) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
            IpAddr::V4(Ipv4Addr::from(u32::from(ip) & mask))
        }
        IpAddr::V6(ip) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
            IpAddr::V6(Ipv6Addr::from(u128::from(ip) & mask))
        }
    }
}

/// Whether a range is a part of another, and not the whole of it; of what is IPv4 in IPv6 the bits count as they are written.
pub(super) fn is_strictly_within((ip, bits): (IpAddr, u8), (of, of_bits): (IpAddr, u8)) -> bool {
    let (ip, canonical) = (ip.to_canonical(), of.to_canonical());
    let fixed = if canonical == of { of_bits } else { of_bits.saturating_sub(96) };
    ip.is_ipv4() == canonical.is_ipv4() && bits > of_bits && network(ip, fixed) == network(canonical, fixed)
}

/// Checks an address of a field that once took sloppy forms; those of `old` may stay.
pub(super) fn validate_legacy_ip(path: &Path<'_>, text: &str, old: &[&str], errors: &mut FieldErrors) {
    if !old.contains(&text) {
        validate_no_zeros(path, text, errors);
    }
}

fn validate_no_zeros(path: &Path<'_>, text: &str, errors: &mut FieldErrors) -> Option<IpAddr> {
    let Some(ip) = parse_ip(text) else {
        let detail = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
        errors.push(FieldError::invalid(path, text, detail));
        return None;
    };
    match strict_ip(text) {
        None => errors.push(FieldError::invalid(path, text, "must not have leading 0s")),
        Some(IpAddr::V6(v6)) if v6.to_ipv4_mapped().is_some() => {
            errors.push(FieldError::invalid(path, text, "must not be an IPv4-mapped IPv6 address"));
        }
        Some(_) => return Some(ip),
    }
    None
}

/// Checks an address of a newer field, which must be written in the canonical form.
pub(super) fn validate_ip(path: &Path<'_>, text: &str, errors: &mut FieldErrors) {
    if let Some(ip) = validate_no_zeros(path, text, errors)
        && ip.to_string() != text
    {
        let detail = format!("must be in canonical form ({})", quote(&ip.to_string()));
        errors.push(FieldError::invalid(path, text, &detail));
    }
}

/// What is wrong with a text as an address of a newer field.
pub(super) fn ip_problems(text: &str) -> Vec<String> {
    let mut errors = FieldErrors::new();
    validate_ip(&Path::new("ip"), text, &mut errors);
    let head = format!("Invalid value: {}: ", quote(text));
    errors.iter().map(|error| error.message.strip_prefix(&head).unwrap_or(&error.message).to_owned()).collect()
}

/// Checks a range of a newer field, which must be written in the canonical form.
pub(super) fn validate_cidr(path: &Path<'_>, text: &str, errors: &mut FieldErrors) {
    let before = errors.len();
    validate_legacy_cidr(path, text, &[], errors);
    let Some((ip, bits)) = parse_cidr(text).filter(|_| errors.len() == before) else { return };
    let canonical = format!("{ip}/{bits}");
    if canonical != text {
        let detail = format!("must be in canonical form ({})", quote(&canonical));
        errors.push(FieldError::invalid(path, text, &detail));
    }
}

/// Checks a range of a field that once took sloppy forms; those of `old` may stay.
pub(super) fn validate_legacy_cidr(path: &Path<'_>, text: &str, old: &[&str], errors: &mut FieldErrors) {
    if old.contains(&text) {
        return;
    }
    let Some((ip, bits)) = parse_cidr(text) else {
        let detail = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
        errors.push(FieldError::invalid(path, text, detail));
        return;
    };
    let (address, prefix) = text.split_once('/').unwrap_or_default();
    if strict_ip(address).is_none() || (prefix.len() > 1 && prefix.starts_with('0')) {
        errors.push(FieldError::invalid(path, text, "must not have leading 0s in IP or prefix length"));
    } else if matches!(ip, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some()) {
        errors.push(FieldError::invalid(path, text, "must not have an IPv4-mapped IPv6 address"));
    }
    if network(ip, bits) != ip {
        errors.push(FieldError::invalid(path, text, "must not have bits set beyond the prefix length"));
    }
}

/// Checks that traffic can be sent to an address.
pub(super) fn validate_endpoint_ip(path: &Path<'_>, text: &str, errors: &mut FieldErrors) {
    let Some(ip) = parse_ip(text) else {
        errors.push(FieldError::invalid(path, text, "must be a valid IP address"));
        return;
    };
    let (link_local, link_local_multicast) = match ip {
        IpAddr::V4(ip) => (ip.is_link_local(), ip.octets()[..3] == [224, 0, 0]),
        IpAddr::V6(ip) => {
            let head = ip.segments()[0];
            (ip.is_unicast_link_local(), head & 0xff0f == 0xff02)
        }
    };
    let unspecified = format!("may not be unspecified ({text})");
    for (is_wrong, detail) in [
        (ip.is_unspecified(), unspecified.as_str()),
        (ip.is_loopback(), "may not be in the loopback range (127.0.0.0/8, ::1/128)"),
        (link_local, "may not be in the link-local range (169.254.0.0/16, fe80::/10)"),
        (link_local_multicast, "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)"),
    ] {
        if is_wrong {
            errors.push(FieldError::invalid(path, text, detail));
        }
    }
}

/// Warnings about an address that is valid but odd.
pub(super) fn ip_warnings(path: &impl fmt::Display, text: &str) -> Option<String> {
    let ip = parse_ip(text)?;
    match strict_ip(text) {
        Some(IpAddr::V6(v6)) if v6.to_ipv4_mapped().is_none() => (v6.to_string() != text).then(|| {
            let (given, canonical) = (quote(text), quote(&v6.to_string()));
            format!("{path}: IPv6 address {given} should be in RFC 5952 canonical format ({canonical})")
        }),
        Some(IpAddr::V4(_)) => None,
        _ => {
            Some(format!("{path}: non-standard IP address {} is invalid: use {}", quote(text), quote(&ip.to_string())))
        }
    }
}

/// Warnings about a range that is valid but odd.
pub(super) fn cidr_warnings(path: &impl fmt::Display, text: &str) -> Vec<String> {
    let Some((ip, bits)) = parse_cidr(text) else { return Vec::new() };
    let mut warnings = Vec::new();
    let canonical = quote(&format!("{}/{bits}", network(ip, bits)));
    let given = quote(text);
    if network(ip, bits) != ip {
        let single = quote(&format!("{ip}/{}", if ip.is_ipv4() { 32 } else { 128 }));
        let words = "is ambiguous in this context";
        warnings.push(format!("{path}: CIDR value {given} {words} (should be {canonical} or {single}?)"));
    }
    let address = text.split('/').next().and_then(strict_ip);
    let is_mapped = matches!(address, Some(IpAddr::V6(v6)) if v6.to_ipv4_mapped().is_some());
    if address.is_none() || is_mapped {
        warnings.push(format!("{path}: non-standard CIDR value {given} is invalid: use {canonical}"));
    }
    if warnings.is_empty() && ip.is_ipv6() && given != canonical {
        warnings.push(format!("{path}: IPv6 CIDR value {given} should be in RFC 5952 canonical format ({canonical})"));
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_addresses_from_others() {
        for (text, expected) in [
            ("10.0.0.1", None),
            ("2001:db8::1", None),
            ("10.0.0.01", Some("must not have leading 0s")),
            ("::ffff:1.2.3.4", Some("must not be an IPv4-mapped IPv6 address")),
            ("10.0.0", Some("must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)")),
            ("2001:DB8::1", Some("must be in canonical form (\"2001:db8::1\")")),
        ] {
            let mut errors = FieldErrors::new();
            validate_ip(&Path::new("ip"), text, &mut errors);
            let expected = expected.map(|detail| format!("Invalid value: {}: {detail}", quote(text)));
            assert_eq!(errors.first().map(|error| error.message.clone()), expected, "{text}");
        }
    }

    #[test]
    fn reads_ranges() {
        for (text, expected) in [
            ("10.0.0.0/8", Some(("10.0.0.0", 8))),
            ("2001:db8::/64", Some(("2001:db8::", 64))),
            ("10.0.0.0/33", None),
            ("10.0.0.0", None),
            ("10.0.0.0/+8", None),
        ] {
            let expected = expected.map(|(ip, bits)| (ip.parse().unwrap(), bits));
            assert_eq!(parse_cidr(text), expected, "{text}");
        }
        assert_eq!(network("10.1.2.3".parse().unwrap(), 16), "10.1.0.0".parse::<IpAddr>().unwrap());
    }
}
