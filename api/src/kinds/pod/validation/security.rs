//! Security contexts: users, profiles, capabilities, sysctls.

use serde_json::Value;

use super::container::Scope;
use super::{Ratchet, metadata, windows};
use crate::kinds::value::{Read, repeats};
use crate::kinds::{FieldError, FieldErrors, checks, internal};
use crate::meta::field::{Path, Printed};
use crate::meta::names;

const PROFILES: [&str; 3] = ["Localhost", "RuntimeDefault", "Unconfined"];
/// Longest path of an AppArmor profile.
const PATH_MAX: usize = 4095;
const SYSCTL_MAX: usize = 253;

pub(super) fn pod_context(spec: &Value, path: &Path<'_>, ratchet: Ratchet, errors: &mut FieldErrors) {
    let context = &spec["securityContext"];
    if context.is_empty() {
        return;
    }
    for field in ["fsGroup", "runAsUser", "runAsGroup"] {
        id(&context[field], &path.child(field), errors);
    }
    for (index, group) in context["supplementalGroups"].items().iter().enumerate() {
        id(group, &path.child("supplementalGroups").index(index), errors);
    }
    sysctls(context, spec, &path.child("sysctls"), ratchet, errors);
    let mut policy = |field: &str, all: &[&str]| {
        if context[field].is_set() {
            checks::supported(&path.child(field), &context[field], all, errors);
        }
    };
    policy("fsGroupChangePolicy", &["Always", "OnRootMismatch"]);
    seccomp(&context["seccompProfile"], &path.child("seccompProfile"), errors);
    windows::options(&context["windowsOptions"], &path.child("windowsOptions"), errors);
    app_armor(&context["appArmorProfile"], &path.child("appArmorProfile"), errors);
    let mut policy = |field: &str, all: &[&str]| {
        if context[field].is_set() {
            checks::supported(&path.child(field), &context[field], all, errors);
        }
    };
    policy("supplementalGroupsPolicy", &["Merge", "Strict"]);
    policy("seLinuxChangePolicy", &["MountOption", "Recursive"]);
}

pub(super) fn container_context(context: &Value, scope: &Scope<'_>, path: &Path<'_>, errors: &mut FieldErrors) {
    if context.is_empty() {
        return;
    }
    for field in ["runAsUser", "runAsGroup"] {
        id(&context[field], &path.child(field), errors);
    }
    if context["procMount"].is_set() {
        let path = path.child("procMount");
        checks::supported(&path, &context["procMount"], &["Default", "Unmasked"], errors);
        if context["procMount"] == "Unmasked" && scope.spec["hostUsers"] != false {
            let detail = "`hostUsers` must be false to use `Unmasked`";
            errors.push(FieldError::invalid(path, "Unmasked", detail));
        }
    }
    seccomp(&context["seccompProfile"], &path.child("seccompProfile"), errors);
    if context["allowPrivilegeEscalation"] == false {
        let mut clash = |with: &str| {
            let shown = internal::text("SecurityContext", context);
            let detail = format!("cannot set `allowPrivilegeEscalation` to false and {with}");
            errors.push(FieldError::invalid(path, Printed(&shown), &detail));
        };
        if context["privileged"].flag() {
            clash("`privileged` to true");
        }
        if !scope.ratchet.sys_admin {
            for _ in context["capabilities"]["add"].items().iter().filter(|name| *name == "CAP_SYS_ADMIN") {
                clash("`capabilities.Add` CAP_SYS_ADMIN");
            }
        }
    }
    windows::options(&context["windowsOptions"], &path.child("windowsOptions"), errors);
    app_armor(&context["appArmorProfile"], &path.child("appArmorProfile"), errors);
}

/// The number of a user or group.
pub(super) fn id(value: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    if let Some(id) = value.maybe_int() {
        let wrong = names::in_range(id, 0, i64::from(i32::MAX));
        errors.extend(wrong.iter().map(|message| FieldError::invalid(path, id, message)));
    }
}

fn seccomp(profile: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    if profile.is_null() {
        return;
    }
    let (file, file_path) = (&profile["localhostProfile"], path.child("localhostProfile"));
    match profile["type"].text() {
        "" => errors.push(FieldError::required(path.child("type"), "type is required when seccompProfile is set")),
        kind if !PROFILES.contains(&kind) => {
            errors.push(FieldError::not_supported(path.child("type"), kind, &PROFILES));
        }
        _ => {}
    }
    if profile["type"] == "Localhost" {
        match file.as_str() {
            None => errors.push(FieldError::required(file_path, "must be set when seccomp type is Localhost")),
            Some(file) => metadata::local_path(file, &file_path, errors),
        }
    } else if file.is_set() {
        let shown = internal::text("SeccompProfile", profile);
        let detail = "can only be set when seccomp type is Localhost";
        errors.push(FieldError::invalid(file_path, Printed(&shown), detail));
    }
}

fn app_armor(profile: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    if profile.is_null() {
        return;
    }
    let (file, file_path) = (&profile["localhostProfile"], path.child("localhostProfile"));
    let missing = "must be set when AppArmor type is Localhost";
    match profile["type"].text() {
        "" => errors.push(FieldError::required(path.child("type"), "type is required when appArmorProfile is set")),
        "Localhost" => match file.as_str() {
            None => errors.push(FieldError::required(file_path, missing)),
            Some(name) => {
                if name.trim() != name {
                    errors.push(FieldError::invalid(file_path, name, "must not be padded with whitespace"));
                } else if name.is_empty() {
                    errors.push(FieldError::required(file_path, missing));
                }
                if name.len() > PATH_MAX {
                    errors.push(FieldError::too_long(file_path, PATH_MAX));
                }
            }
        },
        "RuntimeDefault" | "Unconfined" => {
            if file.is_set() {
                let detail = "can only be set when AppArmor type is Localhost";
                errors.push(FieldError::invalid(file_path, file, detail));
            }
        }
        kind => errors.push(FieldError::not_supported(path.child("type"), kind, &PROFILES)),
    }
}

fn sysctls(context: &Value, spec: &Value, path: &Path<'_>, ratchet: Ratchet, errors: &mut FieldErrors) {
    let all = context["sysctls"].items();
    let repeated = repeats(all.iter().map(|sysctl| sysctl["name"].text()));
    for (index, sysctl) in all.iter().enumerate() {
        let item = path.index(index);
        let (name, path) = (sysctl["name"].text(), item.child("name"));
        if name.is_empty() {
            errors.push(FieldError::required(path, ""));
        } else if !is_sysctl(name) {
            let detail = format!(
                "must have at most {SYSCTL_MAX} characters and match regex \
                 ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$"
            );
            errors.push(FieldError::invalid(path, name, &detail));
        } else if repeated[index] {
            errors.push(FieldError::duplicate(path, name));
        }
        if !ratchet.host_sysctls {
            let field = match namespace(name) {
                "net" if spec["hostNetwork"].flag() => "hostNetwork",
                "ipc" if spec["hostIPC"].flag() => "hostIPC",
                _ => continue,
            };
            let detail = format!("may not be specified when '{field}' is true");
            errors.push(FieldError::invalid(path, name, &detail));
        }
    }
}

fn is_sysctl(name: &str) -> bool {
    let is_word = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let is_segment = |part: &str| {
        let bytes = part.as_bytes();
        bytes.first().is_some_and(is_word)
            && bytes.last().is_some_and(is_word)
            && bytes.iter().all(|b| is_word(b) || matches!(b, b'-' | b'_'))
    };
    name.len() <= SYSCTL_MAX && name.split(['.', '/']).all(is_segment)
}

/// The kernel namespace that a sysctl belongs to.
fn namespace(name: &str) -> &'static str {
    const IPC: [&str; 10] = [
        "kernel.sem",
        "kernel.shm",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
        "kernel.msg",
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
    ];
    // With a slash first, slashes and dots have changed places.
    let dotted = match name.find(['.', '/']).map(|at| name.as_bytes()[at]) {
        Some(b'/') => name.replace('/', "."),
        _ => name.to_owned(),
    };
    if IPC.contains(&dotted.as_str()) || dotted.starts_with("fs.mqueue.") {
        "ipc"
    } else if dotted.starts_with("net.") {
        "net"
    } else {
        ""
    }
}
