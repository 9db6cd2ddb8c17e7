//! Annotations of pods that have a meaning, most of it older than a field.

use serde_json::Value;

use super::{Ratchet, each_container};
use crate::kinds::value::Read;
use crate::kinds::{FieldError, FieldErrors};
use crate::meta::field::Path;
use crate::meta::text::quote;

const MIRROR: &str = "kubernetes.io/config.mirror";
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";
const SECCOMP_POD: &str = "seccomp.security.alpha.kubernetes.io/pod";
const SECCOMP_CONTAINER: &str = "container.seccomp.security.alpha.kubernetes.io/";
pub(super) const APP_ARMOR: &str = "container.apparmor.security.beta.kubernetes.io/";

/// Checks annotations of a pod or template.
pub(super) fn annotations(
    annotations: &Value,
    spec: &Value,
    path: &Path<'_>,
    ratchet: Ratchet,
    errors: &mut FieldErrors,
) {
    if annotations.is_empty() {
        return;
    }
    if let Some(mirror) = annotations.get(MIRROR)
        && spec["nodeName"].is_empty()
    {
        let detail = "must set spec.nodeName if mirror pod annotation is set";
        errors.push(FieldError::invalid(path.key(MIRROR), mirror, detail));
    }
    if let Some(cost) = annotations.get(DELETION_COST)
        && !ratchet.deletion_cost
        && !is_int32(cost.text())
    {
        errors.push(FieldError::invalid(path.key(DELETION_COST), cost, "must be a 32bit integer"));
    }
    if let Some(profile) = annotations.get(SECCOMP_POD) {
        seccomp_profile(profile.text(), &path.child(SECCOMP_POD), errors);
    }
    for (key, profile) in annotations.entries().filter(|(key, _)| key.starts_with(SECCOMP_CONTAINER)) {
        seccomp_profile(profile.text(), &path.child(key), errors);
    }
    for (key, profile) in annotations.entries() {
        let Some(name) = key.strip_prefix(APP_ARMOR) else { continue };
        let mut is_there = false;
        each_container(spec, path, |container, _| is_there |= container["name"] == name);
        if !is_there {
            errors.push(FieldError::invalid(path.key(key), name, "container not found"));
        }
        let profile = profile.text();
        if !matches!(profile, "" | "runtime/default" | "unconfined") && !profile.starts_with("localhost/") {
            let detail = format!("invalid AppArmor profile name: {}", quote(profile));
            errors.push(FieldError::invalid(path.key(key), profile, &detail));
        }
    }
}

/// Whether text is an int32 as Go's `ParseInt` reads it, without a leading `+` or zeros.
fn is_int32(text: &str) -> bool {
    let is_plain = text == "0" || !text.trim_start_matches('-').starts_with(['0', '+']) && !text.starts_with('+');
    is_plain && text.parse::<i32>().is_ok()
}

/// Checks what of the annotations an update changes.
pub(super) fn annotation_updates(
    pod: &Value,
    old: &Value,
    path: &Path<'_>,
    ratchet: Ratchet,
    errors: &mut FieldErrors,
) {
    let (new, before) = (&pod["metadata"]["annotations"], &old["metadata"]["annotations"]);
    for (key, _) in before.entries().filter(|(key, value)| new.get(key) != Some(value)) {
        if key.starts_with(APP_ARMOR) {
            errors.push(FieldError::forbidden(path.key(key), "may not remove or update AppArmor annotations"));
        }
        if key == MIRROR {
            errors.push(FieldError::forbidden(path.key(key), "may not remove or update mirror pod annotation"));
        }
    }
    for (key, _) in new.entries().filter(|(key, _)| before.get(key).is_none()) {
        if key.starts_with(APP_ARMOR) {
            errors.push(FieldError::forbidden(path.key(key), "may not add AppArmor annotations"));
        }
        if key == MIRROR {
            errors.push(FieldError::forbidden(path.key(key), "may not add mirror pod annotation"));
        }
    }
    annotations(new, &pod["spec"], path, ratchet, errors);
}

/// Whether a pod mirrors one that its node has from elsewhere.
pub(super) fn is_mirror(pod: &Value) -> bool {
    pod["metadata"]["annotations"].get(MIRROR).is_some()
}

fn seccomp_profile(profile: &str, path: &Path<'_>, errors: &mut FieldErrors) {
    match profile {
        "runtime/default" | "docker/default" | "unconfined" => {}
        _ => match profile.strip_prefix("localhost/") {
            Some(file) => local_path(file, path, errors),
            None => errors.push(FieldError::invalid(path, profile, "must be a valid seccomp profile")),
        },
    }
}

/// A path below some directory.
pub(super) fn local_path(text: &str, path: &Path<'_>, errors: &mut FieldErrors) {
    if text.starts_with('/') {
        errors.push(FieldError::invalid(path, text, "must be a relative path"));
    }
    no_backsteps(text, path, errors);
}

/// A path below some directory, of which names that start with two dots are the system's.
pub(super) fn local_free_path(text: &str, path: &Path<'_>, errors: &mut FieldErrors) {
    local_path(text, path, errors);
    if text.starts_with("..") && !text.starts_with("../") {
        errors.push(FieldError::invalid(path, text, "must not start with '..'"));
    }
}

/// A path that never goes up.
pub(super) fn no_backsteps(text: &str, path: &Path<'_>, errors: &mut FieldErrors) {
    if text.split('/').any(|part| part == "..") {
        errors.push(FieldError::invalid(path, text, "must not contain '..'"));
    }
}

/// Checks that annotations and fields say the same about seccomp.
pub(super) fn match_seccomp_fields(metadata: &Value, spec: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    let annotations = &metadata["annotations"];
    if annotations.is_empty() {
        return;
    }
    let mut check = |annotation: Option<&Value>, profile: &Value, path: &Path<'_>| {
        let Some(annotation) = annotation.map(Read::text).filter(|_| profile.is_set()) else { return };
        let file = annotation.strip_prefix("localhost/");
        let field = match profile["type"].text() {
            "Unconfined" if annotation != "unconfined" => "type",
            "RuntimeDefault" if !["runtime/default", "docker/default"].contains(&annotation) => "type",
            "Localhost" if file.is_none() => "type",
            "Localhost" if file != profile["localhostProfile"].as_str() => {
                let detail = "seccomp profile in annotation and field must match";
                errors.push(FieldError::forbidden(path.child("seccompProfile.localhostProfile"), detail));
                return;
            }
            _ => return,
        };
        let profile_path = path.child("seccompProfile");
        let detail = "seccomp type in annotation and field must match";
        errors.push(FieldError::forbidden(profile_path.child(field), detail));
    };
    let pod_profile = &spec["securityContext"]["seccompProfile"];
    check(annotations.get(SECCOMP_POD), pod_profile, &path.child("securityContext"));
    each_container(spec, path, |container, path| {
        let key = format!("{SECCOMP_CONTAINER}{}", container["name"].text());
        let profile = &container["securityContext"]["seccompProfile"];
        check(annotations.get(&key), profile, &path.child("securityContext"));
    });
}

/// Checks that annotations and fields say the same about AppArmor.
pub(super) fn match_app_armor_fields(metadata: &Value, spec: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    let annotations = &metadata["annotations"];
    if annotations.is_empty() || spec["os"]["name"] == "windows" {
        return;
    }
    each_container(spec, path, |container, path| {
        let own = &container["securityContext"]["appArmorProfile"];
        let profile = if own.is_set() { own } else { &spec["securityContext"]["appArmorProfile"] };
        let key = format!("{APP_ARMOR}{}", container["name"].text());
        let Some(annotation) = annotations.get(&key).map(Read::text) else { return };
        let file = annotation.strip_prefix("localhost/");
        let path = path.child("securityContext.appArmorProfile");
        let mismatch = match profile["type"].text() {
            "Unconfined" => annotation != "unconfined",
            "RuntimeDefault" => annotation != "runtime/default",
            "Localhost" => file.is_none(),
            _ => return,
        };
        if mismatch {
            let detail = "apparmor type in annotation and field must match";
            errors.push(FieldError::forbidden(path.child("type"), detail));
        } else if profile["type"] == "Localhost" && file != profile["localhostProfile"].as_str() {
            let detail = "apparmor profile in annotation and field must match";
            errors.push(FieldError::forbidden(path.child("localhostProfile"), detail));
        }
    });
}
