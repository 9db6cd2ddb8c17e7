//! Annotations of an Ingress (docs/ingress.md lists them): our own, and those of ingress-nginx that mean exactly the same.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Problem;
use crate::routes::Options;

/// Ours.
const OURS: &str = "coracle.dev/";
/// Those of ingress-nginx.
const NGINX: &str = "nginx.ingress.kubernetes.io/";

/// What `coracle.dev/hsts: "true"` stands for.
const HSTS: &str = "max-age=31536000; includeSubDomains";
/// Bytes of an annotation's value, or of a list of names, that are shown.
const SHOWN_MAX: usize = 1000;

/// What annotations say.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Said {
    pub options: Options,
    /// Whether what has TLS is for TLS only; it is unless somebody says otherwise.
    pub ssl_redirect: Option<bool>,
    /// The same whether it has TLS here or not.
    pub force_ssl_redirect: bool,
}

/// Reads them. What is not understood is told and has no effect.
pub(super) fn read(annotations: &BTreeMap<String, String>, problems: &mut Vec<Problem>) -> Said {
    let mut said = Said::default();
    let mut unknown = Vec::new();
    // Ours come last, and hold.
    let of =
        |prefix| annotations.iter().filter_map(move |(name, value)| Some((prefix, name.strip_prefix(prefix)?, value)));
    for (prefix, name, value) in of(NGINX).chain(of(OURS)) {
        let taken = match (prefix, name) {
            (_, "ssl-redirect") => flag(value).map(|flag| said.ssl_redirect = Some(flag)),
            (_, "force-ssl-redirect") => flag(value).map(|flag| said.force_ssl_redirect = flag),
            (_, "proxy-body-size") => body_size(value).map(|bytes| said.options.body_bytes_max = bytes),
            (_, "proxy-read-timeout") => seconds(value).map(|time| said.options.silence_max = Some(time)),
            // What it is without.
            (NGINX, "backend-protocol") if value.eq_ignore_ascii_case("HTTP") => Some(()),
            (OURS, "hsts") => hsts(value).map(|hsts| said.options.hsts = hsts),
            _ => {
                unknown.push(format!("{prefix}{name}"));
                continue;
            }
        };
        if taken.is_none() {
            let value = cut(value);
            let message = format!("annotation {prefix}{name} has no effect: {value:?} is no value that it can have");
            problems.push(Problem { reason: "InvalidAnnotation", message });
        }
    }
    if !unknown.is_empty() {
        let names = unknown.join(", ");
        let message = format!("annotations without effect, since Coracle does not know them: {}", cut(&names));
        problems.push(Problem { reason: "UnknownAnnotation", message });
    }
    said
}

fn cut(text: &str) -> &str {
    let end = (0..=SHOWN_MAX.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    &text[..end]
}

fn flag(text: &str) -> Option<bool> {
    text.parse().ok()
}

/// Bytes with `k`, `m` or `g` behind them, as nginx reads sizes; 0 is no bound.
fn body_size(text: &str) -> Option<Option<u64>> {
    let (number, shift) = match text.as_bytes().last()?.to_ascii_lowercase() {
        b'k' => (&text[..text.len() - 1], 10),
        b'm' => (&text[..text.len() - 1], 20),
        b'g' => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let bytes = digits(number)?.checked_mul(1 << shift)?;
    Some((bytes > 0).then_some(bytes))
}

/// Whole seconds, at least one and at most a year.
fn seconds(text: &str) -> Option<Duration> {
    const YEAR: u64 = 365 * 24 * 3600;
    digits(text).filter(|seconds| (1..=YEAR).contains(seconds)).map(Duration::from_secs)
}

fn digits(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// A header's value (RFC 6797 §6.1), `true` for the usual one or `false` for none.
fn hsts(text: &str) -> Option<Option<std::sync::Arc<str>>> {
    match text {
        "true" => return Some(Some(HSTS.into())),
        "false" => return Some(None),
        _ => {}
    }
    let mut parts = text.split(';').map(str::trim);
    digits(parts.next()?.strip_prefix("max-age=")?)?;
    parts.all(|part| ["includeSubDomains", "preload"].contains(&part)).then(|| Some(text.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(annotations: &[(&str, &str)]) -> (Said, Vec<String>) {
        let annotations = annotations.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let mut problems = Vec::new();
        let said = read(&annotations, &mut problems);
        (said, problems.into_iter().map(|problem| format!("{}: {}", problem.reason, problem.message)).collect())
    }

    #[test]
    fn both_spellings_mean_the_same_and_ours_holds() {
        for prefix in [OURS, NGINX] {
            let name = |name: &str| format!("{prefix}{name}");
            let (said, told) = of(&[
                (&name("ssl-redirect"), "false"),
                (&name("force-ssl-redirect"), "true"),
                (&name("proxy-body-size"), "8m"),
                (&name("proxy-read-timeout"), "30"),
            ]);
            let options = Options {
                body_bytes_max: Some(8 << 20),
                silence_max: Some(Duration::from_secs(30)),
                ..Options::default()
            };
            assert_eq!(said, Said { options, ssl_redirect: Some(false), force_ssl_redirect: true }, "{prefix}");
            assert_eq!(told, [""; 0]);
        }
        let both = of(&[("coracle.dev/proxy-body-size", "1k"), ("nginx.ingress.kubernetes.io/proxy-body-size", "2k")]);
        assert_eq!(both.0.options.body_bytes_max, Some(1024));
    }

    #[test]
    fn what_has_no_effect_is_named() {
        let (said, told) = of(&[
            ("nginx.ingress.kubernetes.io/rewrite-target", "/$1"),
            ("nginx.ingress.kubernetes.io/use-regex", "true"),
            ("nginx.ingress.kubernetes.io/backend-protocol", "HTTPS"),
            ("nginx.ingress.kubernetes.io/hsts", "true"),
            ("coracle.dev/proxy-body-size", "much"),
            ("cert-manager.io/cluster-issuer", "x"),
            ("kubernetes.io/ingress.class", "coracle"),
        ]);
        assert_eq!(said, Said::default());
        assert_eq!(
            told,
            [
                "InvalidAnnotation: annotation coracle.dev/proxy-body-size has no effect: \"much\" is no value that it can have",
                "UnknownAnnotation: annotations without effect, since Coracle does not know them: \
                 nginx.ingress.kubernetes.io/backend-protocol, nginx.ingress.kubernetes.io/hsts, \
                 nginx.ingress.kubernetes.io/rewrite-target, nginx.ingress.kubernetes.io/use-regex",
            ]
        );
        assert_eq!(of(&[("nginx.ingress.kubernetes.io/backend-protocol", "HTTP")]).1, [""; 0]);
    }

    #[test]
    fn values_are_read_to_the_byte() {
        for (text, bytes) in [
            ("0", Some(None)),
            ("1024", Some(Some(1024))),
            ("1K", Some(Some(1024))),
            ("2g", Some(Some(2 << 30))),
            ("", None),
            ("m", None),
            ("-1", None),
            ("1.5m", None),
            ("+1", None),
            ("99999999999999999999", None),
            ("99999999999999999g", None),
        ] {
            assert_eq!(body_size(text), bytes, "{text}");
        }
        for (text, is_some) in [("1", true), ("0", false), ("31536001", false), ("1s", false), ("", false)] {
            assert_eq!(seconds(text).is_some(), is_some, "{text}");
        }
        for (text, expected) in [
            ("true", Some(Some(HSTS))),
            ("false", Some(None)),
            ("max-age=60", Some(Some("max-age=60"))),
            ("max-age=60; includeSubDomains;preload", Some(Some("max-age=60; includeSubDomains;preload"))),
            ("max-age=", None),
            ("max-age=60\r\nx: y", None),
            ("includeSubDomains", None),
        ] {
            assert_eq!(
                hsts(text).map(|hsts| hsts.map(|text| text.to_string())),
                expected.map(|e| e.map(str::to_owned)),
                "{text}"
            );
        }
    }
}
