//! Checks of Ingresses, in the words of Kubernetes (`pkg/apis/networking/validation`).

use std::collections::HashSet;

use serde_json::Value;

use super::CLASS;
use crate::kinds::value::Read;
use crate::kinds::{FieldError, FieldErrors, checks, network};
use crate::meta::field::{Path, Printed};
use crate::meta::names;

const SPEC: Path<'static> = Path::new("spec");
const NO_ADDRESS: &str = "must be a DNS name, not an IP address";
/// What no exact path and no prefix may have within, and at its end.
const IN_NO_PATH: [&str; 5] = ["//", "/./", "/../", "%2f", "%2F"];
const ENDS_NO_PATH: [&str; 2] = ["/..", "/."];
const PATH_TYPES: [&str; 3] = ["Exact", "ImplementationSpecific", "Prefix"];

/// What is not looked at in an update, since the stored object had it wrong before.
#[derive(Clone, Copy, Default)]
struct Lenient {
    secret_names: bool,
    wildcard_rules: bool,
}

/// Checks a new Ingress.
pub(super) fn create(object: &Value, errors: &mut FieldErrors) {
    spec(&object["spec"], Lenient::default(), errors);
    let (annotation, class) = (&object["metadata"]["annotations"][CLASS], &object["spec"]["ingressClassName"]);
    if annotation.is_set() && class.is_set() && annotation != class {
        let path = Path::new("annotations");
        let detail = "must match `ingressClassName` when both are specified";
        errors.push(FieldError::invalid(path.child(CLASS), annotation.text(), detail));
    }
}

/// Checks a changed Ingress.
pub(super) fn update(object: &Value, old: &Value, errors: &mut FieldErrors) {
    let is_bad_name = |tls: &Value| !secret_name(tls["secretName"].text()).is_empty();
    let is_bad_wildcard = |rule: &Value| {
        let mut errors = FieldErrors::new();
        rule_value(&SPEC, rule, &mut errors);
        rule["host"].text().contains('*') && !errors.is_empty()
    };
    let lenient = Lenient {
        secret_names: old["spec"]["tls"].items().iter().any(is_bad_name),
        wildcard_rules: old["spec"]["rules"].items().iter().any(is_bad_wildcard),
    };
    spec(&object["spec"], lenient, errors);
}

/// Checks an update of the status.
pub(super) fn status_update(object: &Value, old: &Value, errors: &mut FieldErrors) {
    let before = old["status"]["loadBalancer"]["ingress"].items();
    let before: HashSet<&str> = before.iter().map(|point| point["ip"].text()).collect();
    let path = Path::new("status.loadBalancer.ingress");
    for (index, point) in object["status"]["loadBalancer"]["ingress"].items().iter().enumerate() {
        let path = path.index(index);
        let (ip, hostname) = (point["ip"].text(), point["hostname"].text());
        if !ip.is_empty() && !before.contains(ip) {
            network::validate_legacy_ip(&path.child("ip"), ip, &[], errors);
        }
        if !hostname.is_empty() {
            let path = path.child("hostname");
            checks::dns_subdomain(&path, hostname, errors);
            if network::parse_ip(hostname).is_some() {
                errors.push(FieldError::invalid(path, hostname, NO_ADDRESS));
            }
        }
    }
}

fn spec(spec: &Value, lenient: Lenient, errors: &mut FieldErrors) {
    let (rules, default) = (spec["rules"].items(), &spec["defaultBackend"]);
    if rules.is_empty() && default.is_null() {
        let given = if spec["rules"].is_null() { "null" } else { "[]" };
        let detail = "either `defaultBackend` or `rules` must be specified";
        errors.push(FieldError::invalid(SPEC, Printed(given), detail));
    }
    if default.is_set() {
        backend(&SPEC.child("defaultBackend"), default, errors);
    }
    let path = SPEC.child("rules");
    for (index, rule) in rules.iter().enumerate() {
        let path = path.index(index);
        let host = rule["host"].text();
        let is_wildcard = host.contains('*');
        if !host.is_empty() {
            let path = path.child("host");
            if network::parse_ip(host).is_some() {
                errors.push(FieldError::invalid(path, host, NO_ADDRESS));
            }
            self::host(&path, host, errors);
        }
        if !(is_wildcard && lenient.wildcard_rules) {
            rule_value(&path, rule, errors);
        }
    }
    let path = SPEC.child("tls");
    for (index, tls) in spec["tls"].items().iter().enumerate() {
        let path = path.index(index);
        let hosts = path.child("hosts");
        for (index, host) in tls["hosts"].items().iter().enumerate() {
            self::host(&hosts.index(index), host.text(), errors);
        }
        if !lenient.secret_names {
            let name = tls["secretName"].text();
            checks::invalid(&path.child("secretName"), name, secret_name(name), errors);
        }
    }
    if let Value::String(class) = &spec["ingressClassName"] {
        checks::invalid(&SPEC.child("ingressClassName"), class, names::name_is_dns_subdomain(class, false), errors);
    }
}

fn secret_name(name: &str) -> Vec<String> {
    if name.is_empty() { Vec::new() } else { names::name_is_dns_subdomain(name, false) }
}

fn host(path: &Path<'_>, host: &str, errors: &mut FieldErrors) {
    let messages = if host.contains('*') { names::wildcard_dns_subdomain(host) } else { names::dns_subdomain(host) };
    checks::invalid(path, host, messages, errors);
}

fn rule_value(path: &Path<'_>, rule: &Value, errors: &mut FieldErrors) {
    if rule["http"].is_null() {
        return;
    }
    let http = path.child("http");
    let path = http.child("paths");
    let paths = rule["http"]["paths"].items();
    if paths.is_empty() {
        errors.push(FieldError::required(path, ""));
    }
    for (index, one) in paths.iter().enumerate() {
        http_path(&path.index(index), one, errors);
    }
}

fn http_path(path: &Path<'_>, one: &Value, errors: &mut FieldErrors) {
    let (at, given) = (path.child("path"), one["path"].text());
    let Value::String(kind) = &one["pathType"] else {
        return errors.push(FieldError::required(path.child("pathType"), "pathType must be specified"));
    };
    let is_absolute = given.starts_with('/');
    match kind.as_str() {
        "Exact" | "Prefix" => {
            if !is_absolute {
                errors.push(FieldError::invalid(at, given, "must be an absolute path"));
            }
            for part in IN_NO_PATH.iter().filter(|part| given.contains(**part)) {
                errors.push(FieldError::invalid(at, given, &format!("must not contain '{part}'")));
            }
            for end in ENDS_NO_PATH.iter().filter(|end| given.ends_with(**end)) {
                errors.push(FieldError::invalid(at, given, &format!("cannot end with '{end}'")));
            }
        }
        "ImplementationSpecific" => {
            if !given.is_empty() && !is_absolute {
                errors.push(FieldError::invalid(at, given, "must be an absolute path"));
            }
        }
        other => errors.push(FieldError::not_supported(path.child("pathType"), other, &PATH_TYPES)),
    }
    backend(&path.child("backend"), &one["backend"], errors);
}

fn backend(path: &Path<'_>, backend: &Value, errors: &mut FieldErrors) {
    let (service, resource) = (&backend["service"], &backend["resource"]);
    match (service.is_set(), resource.is_set()) {
        (true, true) => {
            errors.push(FieldError::invalid(path, "", "cannot set both resource and service backends"));
        }
        (false, true) => checks::local_reference(&path.child("resource"), resource, errors),
        (true, false) => self::service(path, service, errors),
        (false, false) => errors.push(FieldError::invalid(path, "", "resource or service backend is required")),
    }
}

fn service(path: &Path<'_>, service: &Value, errors: &mut FieldErrors) {
    let of_service = path.child("service");
    let (at, name) = (of_service.child("name"), service["name"].text());
    if name.is_empty() {
        errors.push(FieldError::required(at, ""));
    } else {
        checks::invalid(&at, name, names::name_is_dns_label(name, false), errors);
    }
    let (port, at) = (&service["port"], of_service.child("port"));
    let (name, number) = (port["name"].text(), port["number"].int());
    match (name.is_empty(), number == 0) {
        (false, false) => errors.push(FieldError::invalid(path, "", "cannot set both port name & port number")),
        (false, true) => checks::invalid(&at.child("name"), name, names::port_name(name), errors),
        (true, false) => {
            let messages = names::port_number(number);
            let at = at.child("number");
            errors.extend(messages.iter().map(|message| FieldError::invalid(at, number, message)));
        }
        (true, true) => errors.push(FieldError::required(path, "port name or number is required")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn told(errors: FieldErrors) -> Vec<String> {
        errors.iter().map(ToString::to_string).collect()
    }

    fn of(spec: Value) -> Vec<String> {
        let mut errors = FieldErrors::new();
        create(&json!({"metadata": {"name": "a"}, "spec": spec}), &mut errors);
        told(errors)
    }

    fn web() -> Value {
        json!({"service": {"name": "web", "port": {"number": 80}}})
    }

    fn path(kind: &str, path: &str) -> Value {
        json!({"rules": [{"http": {"paths": [{"pathType": kind, "path": path, "backend": web()}]}}]})
    }

    #[test]
    fn paths_and_hosts_as_kubernetes_has_them() {
        let at = "spec.rules[0].http.paths[0].path: Invalid value:";
        for (spec, expected) in [
            (path("Prefix", "/"), vec![]),
            (path("ImplementationSpecific", ""), vec![]),
            (path("ImplementationSpecific", "/a//b"), vec![]),
            (path("ImplementationSpecific", "a"), vec![format!("{at} \"a\": must be an absolute path")]),
            (path("Exact", ""), vec![format!("{at} \"\": must be an absolute path")]),
            (
                path("Prefix", "/a//b/.."),
                vec![
                    format!("{at} \"/a//b/..\": must not contain '//'"),
                    format!("{at} \"/a//b/..\": cannot end with '/..'"),
                ],
            ),
            (path("Prefix", "/a%2Fb"), vec![format!("{at} \"/a%2Fb\": must not contain '%2F'")]),
            (
                path("Regex", "/a"),
                vec![
                    "spec.rules[0].http.paths[0].pathType: Unsupported value: \"Regex\": supported values: \
                \"Exact\", \"ImplementationSpecific\", \"Prefix\""
                        .to_owned(),
                ],
            ),
            (
                json!({"rules": [{"host": "1.2.3.4"}]}),
                vec![
                    "spec.rules[0].host: Invalid value: \"1.2.3.4\": must be a DNS name, not an IP address".to_owned(),
                ],
            ),
            (json!({"rules": [{"host": "*.foo.bar"}, {"host": "a.b"}, {}]}), vec![]),
            (json!({"rules": [{"http": {"paths": []}}]}), vec!["spec.rules[0].http.paths: Required value".to_owned()]),
            (
                json!({}),
                vec!["spec: Invalid value: null: either `defaultBackend` or `rules` must be specified".to_owned()],
            ),
            (
                json!({"rules": [{"http": {"paths": [{"path": "/", "backend": web()}]}}]}),
                vec!["spec.rules[0].http.paths[0].pathType: Required value: pathType must be specified".to_owned()],
            ),
        ] {
            assert_eq!(of(spec.clone()), expected, "{spec}");
        }
        assert!(
            of(json!({"rules": [{"host": "foo.*.bar"}]}))[0]
                .contains("a wildcard DNS-1123 subdomain must start with '*.'")
        );
    }

    #[test]
    fn backends_are_services_with_a_port_or_references() {
        let at = "spec.defaultBackend";
        for (backend, expected) in [
            (web(), vec![]),
            (json!({"service": {"name": "web", "port": {"name": "http"}}}), vec![]),
            (json!({"service": {"name": "1web", "port": {"number": 80}}}), vec![]),
            (
                json!({"service": {"name": "web", "port": {}}}),
                vec![format!("{at}: Required value: port name or number is required")],
            ),
            (
                json!({"service": {"name": "web", "port": {"name": "http", "number": 80}}}),
                vec![format!("{at}: Invalid value: \"\": cannot set both port name & port number")],
            ),
            (
                json!({"service": {"name": "web", "port": {"number": 70000}}}),
                vec![format!("{at}.service.port.number: Invalid value: 70000: must be between 1 and 65535, inclusive")],
            ),
            (json!({"service": {"port": {"number": 80}}}), vec![format!("{at}.service.name: Required value")]),
            (
                json!({"service": {"name": "web", "port": {"number": 80}}, "resource": {"kind": "A", "name": "b"}}),
                vec![format!("{at}: Invalid value: \"\": cannot set both resource and service backends")],
            ),
            (json!({"resource": {"kind": "A", "name": "b"}}), vec![]),
            (
                json!({"resource": {"apiGroup": "A!", "kind": "", "name": "b/c"}}),
                vec![
                    format!("{at}.resource.apiGroup: Invalid value: \"A!\": {}", names::dns_subdomain("A!")[0]),
                    format!("{at}.resource.kind: Required value"),
                    format!("{at}.resource.name: Invalid value: \"b/c\": may not contain '/'"),
                ],
            ),
            (json!({}), vec![format!("{at}: Invalid value: \"\": resource or service backend is required")]),
        ] {
            assert_eq!(of(json!({"defaultBackend": backend})), expected, "{backend}");
        }
    }

    #[test]
    fn what_was_wrong_before_may_stay() {
        let spec = |secret: &str, path: &str| {
            json!({"spec": {"tls": [{"secretName": secret}],
            "rules": [{"host": "*.x", "http": {"paths": [{"pathType": "Prefix", "path": path, "backend": web()}]}}]}})
        };
        let (good, bad) = (spec("s", "/"), spec("S!", "x"));
        let changed = |new: &Value, old: &Value| {
            let mut errors = FieldErrors::new();
            update(new, old, &mut errors);
            errors.len()
        };
        assert_eq!((changed(&bad, &good), changed(&bad, &bad), changed(&good, &bad)), (2, 0, 0));
        let both = json!({"metadata": {"annotations": {CLASS: "a"}}, "spec": {"ingressClassName": "b", "rules": [{}]}});
        let mut errors = FieldErrors::new();
        create(&both, &mut errors);
        let message = "annotations.kubernetes.io/ingress.class: Invalid value: \"a\": must match `ingressClassName` when both are specified";
        assert_eq!(told(errors), [message]);
        assert_eq!(changed(&both, &both), 0);
    }

    #[test]
    fn addresses_are_checked() {
        let status = |point: Value| json!({"status": {"loadBalancer": {"ingress": [point]}}});
        let of = |point: Value, old: Value| {
            let mut errors = FieldErrors::new();
            status_update(&status(point), &status(old), &mut errors);
            errors.len()
        };
        assert_eq!(of(json!({"ip": "1.2.3.4"}), json!({})), 0);
        assert_eq!(of(json!({"ip": "1.2.3"}), json!({})), 1);
        assert_eq!(of(json!({"ip": "1.2.3"}), json!({"ip": "1.2.3"})), 0);
        assert_eq!(of(json!({"hostname": "1.2.3.4"}), json!({})), 1);
        assert_eq!(of(json!({"hostname": "a.b"}), json!({})), 0);
    }
}
