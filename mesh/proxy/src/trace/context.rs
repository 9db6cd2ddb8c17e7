//! `traceparent` (W3C Trace Context, level 1): which trace a request belongs to, and who has asked in it.

use std::fmt;

use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};

/// Where a request stands in its trace.
pub(crate) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// What those who trace say of it among themselves; it belongs to a `traceparent`.
pub(crate) const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// A place in a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Context {
    /// The trace; not 0.
    pub trace: u128,
    /// The span; not 0.
    pub span: u64,
    /// Whether spans of it are kept.
    pub is_sampled: bool,
}

impl Context {
    /// Of a request's headers. Several, or one that is none (§3.2.2, §4.3), are as good as nothing.
    pub(crate) fn of(headers: &HeaderMap) -> Option<Context> {
        let mut all = headers.get_all(TRACEPARENT).iter();
        let (Some(one), None) = (all.next(), all.next()) else { return None };
        Context::parse(one.as_bytes())
    }

    /// `VERSION-TRACE-SPAN-FLAGS`, in lower case. Of a later version the begin is the same, and more may follow.
    fn parse(text: &[u8]) -> Option<Context> {
        const LENGTH: usize = 55;
        let (known, more) = text.split_at_checked(LENGTH)?;
        let [b'0'..=b'9' | b'a'..=b'f', b'0'..=b'9' | b'a'..=b'f', b'-', ..] = known else { return None };
        let is_first = known.starts_with(b"00");
        let may_be = if is_first { more.is_empty() } else { more.is_empty() || more[0] == b'-' };
        if known.starts_with(b"ff") || !may_be || known[35] != b'-' || known[52] != b'-' {
            return None;
        }
        let trace = number(&known[3..35])?;
        let span = u64::try_from(number(&known[36..52])?).ok()?;
        let flags = number(&known[53..55])?;
        (trace != 0 && span != 0).then_some(Context { trace, span, is_sampled: flags & 1 == 1 })
    }

    /// As the header has it.
    pub(crate) fn header(self) -> HeaderValue {
        HeaderValue::try_from(self.to_string()).expect("hexadecimal digits and - are a header")
    }
}

/// Hexadecimal digits in lower case, and nothing else.
fn number(text: &[u8]) -> Option<u128> {
    text.iter().try_fold(0_u128, |number, digit| {
        let digit = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(number << 4 | u128::from(digit))
    })
}

impl fmt::Display for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace, self.span, u8::from(self.is_sampled))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_standard_allows_and_nothing_else() {
        const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let context =
            Context { trace: 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736, span: 0x00f0_67aa_0ba9_02b7, is_sampled: true };
        assert_eq!((Context::parse(GOOD.as_bytes()), context.to_string()), (Some(context), GOOD.to_owned()));
        for (text, sampled) in [
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00", Some(false)),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-03", Some(true)),
            // A later version, with more behind it.
            ("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", Some(true)),
            ("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what-will-be", Some(true)),
            ("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01.what", None),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more", None),
            ("ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", None),
            ("00-00000000000000000000000000000000-00f067aa0ba902b7-01", None),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01", None),
            ("00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01", None),
            ("00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01", None),
            ("00_4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", None),
            ("0x-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", None),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0g", None),
            ("", None),
        ] {
            assert_eq!(Context::parse(text.as_bytes()).map(|context| context.is_sampled), sampled, "{text}");
        }
        let mut headers = HeaderMap::new();
        assert_eq!(Context::of(&headers), None);
        headers.append(TRACEPARENT, GOOD.parse().unwrap());
        assert_eq!(Context::of(&headers), Some(context));
        headers.append(TRACEPARENT, GOOD.parse().unwrap());
        assert_eq!(Context::of(&headers), None, "two are none");
    }
}
