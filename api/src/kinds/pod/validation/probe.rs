//! Probes and lifecycle hooks.

use serde_json::Value;

use crate::kinds::value::Read;
use crate::kinds::{FieldError, FieldErrors, checks};
use crate::meta::field::Path;
use crate::meta::names;

/// Checks what a container says about its life: hooks, then probes.
pub(super) fn lifecycle_and_probes(container: &Value, spec: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    let grace = spec["terminationGracePeriodSeconds"].maybe_int();
    let (lifecycle, lifecycle_path) = (&container["lifecycle"], path.child("lifecycle"));
    for hook in ["postStart", "preStop"] {
        if lifecycle[hook].is_set() {
            handler(&lifecycle[hook], &HOOKS, grace, &lifecycle_path.child(hook), errors);
        }
    }
    if lifecycle["stopSignal"].is_set() {
        stop_signal(&lifecycle["stopSignal"], &spec["os"], &lifecycle_path.child("stopSignal"), errors);
    }
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if container[name].is_set() {
            probe(&container[name], name == "readinessProbe", &path.child(name), errors);
        }
    }
}

const PROBES: [&str; 4] = ["exec", "httpGet", "tcpSocket", "grpc"];
const HOOKS: [&str; 4] = ["exec", "httpGet", "tcpSocket", "sleep"];

fn probe(probe: &Value, is_readiness: bool, path: &Path<'_>, errors: &mut FieldErrors) {
    handler(probe, &PROBES, None, path, errors);
    for field in ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"] {
        checks::nonnegative(&path.child(field), &probe[field], errors);
    }
    let grace_path = path.child("terminationGracePeriodSeconds");
    let grace = probe["terminationGracePeriodSeconds"].maybe_int();
    if let Some(seconds) = grace.filter(|seconds| *seconds <= 0) {
        errors.push(FieldError::invalid(grace_path, seconds, "must be greater than 0"));
    }
    match (is_readiness, grace) {
        (true, Some(seconds)) => {
            errors.push(FieldError::invalid(grace_path, seconds, "must not be set for readinessProbes"));
        }
        (false, _) if probe["successThreshold"].int() != 1 => {
            let threshold = probe["successThreshold"].int();
            errors.push(FieldError::invalid(path.child("successThreshold"), threshold, "must be 1"));
        }
        _ => {}
    }
}

/// Exactly one way to ask or tell a container.
fn handler(handler: &Value, kinds: &[&str], grace: Option<i64>, path: &Path<'_>, errors: &mut FieldErrors) {
    let mut has_one = false;
    for kind in kinds.iter().copied().filter(|kind| handler[*kind].is_set()) {
        let (action, path) = (&handler[kind], path.child(kind));
        if has_one {
            errors.push(FieldError::forbidden(path, "may not specify more than 1 handler type"));
            continue;
        }
        has_one = true;
        match kind {
            "exec" => checks::required(&path.child("command"), &action["command"], errors),
            "httpGet" => http_get(action, &path, errors),
            "tcpSocket" => checks::port(&path.child("port"), &action["port"], errors),
            "grpc" => {
                checks::port(&path.child("port"), &action["port"], errors);
                if action["mode"].is_set() {
                    checks::supported(&path.child("mode"), &action["mode"], &["Plaintext", "TLS"], errors);
                }
            }
            _ => {
                let (seconds, most) = (action["seconds"].int(), grace.unwrap_or(i64::MAX));
                if seconds < 0 || seconds > most {
                    let detail = format!("must be non-negative and less than terminationGracePeriodSeconds ({most})");
                    errors.push(FieldError::invalid(path, seconds, &detail));
                }
            }
        }
    }
    if !has_one {
        errors.push(FieldError::required(path, "must specify a handler type"));
    }
}

fn http_get(action: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    checks::required(&path.child("path"), &action["path"], errors);
    checks::port(&path.child("port"), &action["port"], errors);
    checks::supported(&path.child("scheme"), &action["scheme"], &["HTTP", "HTTPS"], errors);
    for header in action["httpHeaders"].items() {
        let name = header["name"].text();
        checks::invalid(&path.child("httpHeaders"), name, names::http_header_name(name), errors);
    }
    let protocol = &action["protocol"];
    if protocol.is_set() {
        let protocol_path = path.child("protocol");
        checks::supported(&protocol_path, protocol, &["HTTP1", "HTTP2"], errors);
        if protocol == "HTTP2" && action["scheme"] != "HTTP" {
            errors.push(FieldError::invalid(protocol_path, protocol, "is only supported with HTTP (H2C)"));
        } else if protocol == "HTTP2" && !action["host"].is_empty() {
            let detail = "must be empty when `protocol` is \"HTTP2\"";
            errors.push(FieldError::invalid(path.child("host"), &action["host"], detail));
        }
    }
}

/// Signals are off, but an old pod may have one.
fn stop_signal(signal: &Value, os: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    if os.is_null() {
        errors.push(FieldError::forbidden(path, "may not be set for containers with empty `spec.os.name`"));
    } else if os["name"] == "windows" {
        checks::supported(path, signal, &["SIGKILL", "SIGTERM"], errors);
    }
}
