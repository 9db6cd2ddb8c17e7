//! Where a webhook is (`clientConfig`), of admission and of conversion alike.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::kinds::value::Read;
use crate::kinds::{FieldError, FieldErrors};
use crate::meta::field::Path;
use crate::meta::names;

/// Checks a `clientConfig`.
pub(crate) fn client_config(config: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    let (at, service) = (&config["url"], &config["service"]);
    match (at.is_set(), service.is_set()) {
        (true, false) => url(at.text(), &path.child("url"), errors),
        (false, true) => reference(service, &path.child("service"), errors),
        _ => errors.push(FieldError::required(path, "exactly one of url or service is required")),
    }
}

/// The service of a webhook. Which of its two names is missing the reference says the wrong way round.
fn reference(service: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    for (field, told) in [("namespace", "name"), ("name", "namespace")] {
        if service[field].is_empty() {
            errors.push(FieldError::required(path.child(told), ""));
        }
    }
    let port = service["port"].int();
    let wrong = names::port_number(port);
    if !wrong.is_empty() {
        let detail = format!("port is not valid: {}", wrong.join(", "));
        errors.push(FieldError::invalid(path.child("port"), port, &detail));
    }
    let (at, text) = (path.child("path"), service["path"].text());
    match text {
        "" | "/" => return,
        "//" => return errors.push(FieldError::invalid(at, text, "segment[0] may not be empty")),
        _ => {}
    }
    if !text.starts_with('/') {
        errors.push(FieldError::invalid(at, text, "must start with a '/'"));
    }
    // Without its first character, whatever that is.
    let rest = text.char_indices().nth(1).map_or("", |(at, _)| text.get(at..).unwrap_or_default());
    for (index, step) in rest.strip_suffix('/').unwrap_or(rest).split('/').enumerate() {
        if step.is_empty() {
            errors.push(FieldError::invalid(at, text, &format!("segment[{index}] may not be empty")));
            continue;
        }
        for why in names::dns_subdomain(step) {
            errors.push(FieldError::invalid(at, text, &format!("segment[{index}]: {why}")));
        }
    }
}

fn url(text: &str, path: &Path<'_>, errors: &mut FieldErrors) {
    const FORM: &str = "; desired format: https://host[/path]";
    let none = |why: &str| {
        let shown = crate::meta::text::quote(text);
        FieldError::required(path, &format!("url must be a valid URL: parse {shown}: {why}{FORM}"))
    };
    if text.bytes().any(|byte| byte < 0x20 || byte == 0x7f) {
        return errors.push(none("net/url: invalid control character in URL"));
    }
    if text.starts_with(':') {
        return errors.push(none("missing protocol scheme"));
    }
    let (rest, fragment) = text.split_once('#').unwrap_or((text, ""));
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let is_scheme = |scheme: &str| {
        scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'))
    };
    let (scheme, rest) = rest.split_once(':').filter(|(scheme, _)| is_scheme(scheme)).unwrap_or(("", rest));
    let authority = rest.strip_prefix("//").map(|rest| rest.split('/').next().unwrap_or_default());
    let (user, host) = match authority.and_then(|authority| authority.rsplit_once('@')) {
        Some((user, host)) => (Some(user), host),
        None => (None, authority.unwrap_or_default()),
    };
    let port = if host.ends_with(']') { None } else { host.rsplit_once(':').map(|(_, port)| port) };
    if let Some(port) = port.filter(|port| !port.bytes().all(|byte| byte.is_ascii_digit())) {
        return errors
            .push(none(&format!("invalid port {} after host", crate::meta::text::quote(&format!(":{port}")))));
    }
    if scheme != "https" {
        errors.push(FieldError::invalid(path, scheme, &format!("'https' is the only allowed URL scheme{FORM}")));
    }
    if host.is_empty() {
        errors.push(FieldError::invalid(path, "", &format!("host must be specified{FORM}")));
    }
    if let Some(user) = user {
        errors.push(FieldError::invalid(path, user, "user information is not permitted in the URL"));
    }
    if !fragment.is_empty() {
        errors.push(FieldError::invalid(path, fragment, "fragments are not permitted in the URL"));
    }
    if !query.is_empty() {
        errors.push(FieldError::invalid(path, query, "query parameters are not permitted in the URL"));
    }
}

/// Whether a `caBundle` has certificates; one that is not there is well.
pub(crate) fn is_bundle(value: &Value) -> bool {
    const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
    let text = STANDARD.decode(value.text()).ok().and_then(|bytes| String::from_utf8(bytes).ok()).unwrap_or_default();
    let is_certificate = |part: &str| {
        let body: String = part.split("-----END").next().unwrap_or_default().split_whitespace().collect();
        part.contains("-----END CERTIFICATE-----") && !body.is_empty() && STANDARD.decode(body).is_ok()
    };
    value.is_empty() || text.split(BEGIN).skip(1).any(is_certificate)
}

/// Checks the versions of reviews that a webhook takes. `none` says what is told when there are none.
pub(crate) fn review_versions(list: &Value, path: &Path<'_>, is_known: bool, none: &str, errors: &mut FieldErrors) {
    let versions = list.items();
    if versions.is_empty() {
        return errors.push(FieldError::required(path, none));
    }
    let mut seen = std::collections::HashSet::new();
    for (index, version) in versions.iter().enumerate() {
        let text = version.text();
        if !seen.insert(text) {
            errors.push(FieldError::invalid(path.index(index), text, "duplicate version"));
            continue;
        }
        for why in names::dns_1035_label(text) {
            errors.push(FieldError::invalid(path.index(index), text, &why));
        }
    }
    if is_known && !has_known_version(list) {
        errors.push(FieldError::invalid(path, list, "must include at least one of v1, v1beta1"));
    }
}

/// Whether one of the versions is one that is sent.
pub(crate) fn has_known_version(list: &Value) -> bool {
    list.items().iter().any(|version| matches!(version.text(), "v1" | "v1beta1"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn wrong(config: Value) -> Vec<String> {
        let mut errors = FieldErrors::new();
        client_config(&config, &Path::new("c"), &mut errors);
        errors.into_told().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_webhook_is_at_an_address_or_behind_a_service() {
        let service = |path: &str| json!({"service": {"namespace": "n", "name": "s", "port": 443, "path": path}});
        for good in [
            json!({"url": "https://example.com"}),
            json!({"url": "https://example.com:8443/a/b"}),
            json!({"url": "https://[::1]/"}),
            service(""),
            service("/"),
            service("/a/b/"),
        ] {
            assert_eq!(wrong(good.clone()), Vec::<String>::new(), "{good}");
        }
        for (bad, expected) in [
            (json!({}), "c: Required value: exactly one of url or service is required"),
            (
                json!({"url": "https://h", "service": {}}),
                "c: Required value: exactly one of url or service is required",
            ),
            (
                json!({"url": "http://h"}),
                "c.url: Invalid value: \"http\": 'https' is the only allowed URL scheme; desired format: https://host[/path]",
            ),
            (
                json!({"url": "https:///x"}),
                "c.url: Invalid value: \"\": host must be specified; desired format: https://host[/path]",
            ),
            (
                json!({"url": "https://u@h"}),
                "c.url: Invalid value: \"u\": user information is not permitted in the URL",
            ),
            (json!({"url": "https://h#f"}), "c.url: Invalid value: \"f\": fragments are not permitted in the URL"),
            (
                json!({"url": "https://h?a=b"}),
                "c.url: Invalid value: \"a=b\": query parameters are not permitted in the URL",
            ),
            (service("//"), "c.service.path: Invalid value: \"//\": segment[0] may not be empty"),
            (service("/a//b"), "c.service.path: Invalid value: \"/a//b\": segment[1] may not be empty"),
            (json!({"service": {"name": "s", "port": 443}}), "c.service.name: Required value"),
            (
                json!({"service": {"name": "s", "namespace": "n", "port": 0}}),
                "c.service.port: Invalid value: 0: port is not valid: must be between 1 and 65535, inclusive",
            ),
        ] {
            assert_eq!(wrong(bad.clone()), [expected], "{bad}");
        }
    }
}
