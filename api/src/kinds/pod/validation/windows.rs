//! Fields for Windows pods, and what they exclude. Our nodes run none, but the API takes them.

use serde_json::Value;

use super::each_container;
use crate::kinds::value::Read;
use crate::kinds::{FieldError, FieldErrors, checks};
use crate::meta::field::Path;
use crate::meta::names;

const CREDENTIALS_KIB_MAX: usize = 64;
const DOMAIN_MAX: usize = 256;
const USER_MAX: usize = 104;

/// Checks `windowsOptions`.
pub(super) fn options(options: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    if options.is_null() {
        return;
    }
    if options["gmsaCredentialSpecName"].is_set() {
        checks::dns_subdomain(&path.child("gmsaCredentialSpecName"), options["gmsaCredentialSpecName"].text(), errors);
    }
    if let Some(credentials) = options["gmsaCredentialSpec"].as_str() {
        let path = path.child("gmsaCredentialSpec");
        if credentials.is_empty() {
            errors.push(FieldError::invalid(path, credentials, "gmsaCredentialSpec cannot be an empty string"));
        } else if credentials.len() > CREDENTIALS_KIB_MAX * 1024 {
            let detail = format!("gmsaCredentialSpec size must be under {CREDENTIALS_KIB_MAX} KiB");
            errors.push(FieldError::invalid(path, credentials, &detail));
        }
    }
    if let Some(name) = options["runAsUserName"].as_str() {
        for problem in user_name(name) {
            errors.push(FieldError::invalid(path.child("runAsUserName"), name, &problem));
        }
    }
}

fn user_name(name: &str) -> Vec<String> {
    if name.is_empty() {
        return vec!["runAsUserName cannot be an empty string".to_owned()];
    }
    if name.chars().any(|c| c.is_ascii_control()) {
        return vec!["runAsUserName cannot contain control characters".to_owned()];
    }
    let parts: Vec<&str> = name.split('\\').collect();
    let (domain, user) = match parts.as_slice() {
        [user] => (None, *user),
        [domain, user] => (Some(*domain), *user),
        _ => return vec!["runAsUserName cannot contain more than one backslash".to_owned()],
    };
    let mut problems = Vec::new();
    if let Some(domain) = domain {
        if domain.len() >= DOMAIN_MAX {
            problems.push(format!("runAsUserName's Domain length must be under {DOMAIN_MAX} characters"));
        }
        if !is_net_bios(domain) && !is_domain(domain) {
            problems.push("runAsUserName's Domain doesn't match the NetBios nor the DNS format".to_owned());
        }
    }
    if user.is_empty() {
        problems.push("runAsUserName's User cannot be empty".to_owned());
    } else if user.len() > USER_MAX {
        problems.push(format!("runAsUserName's User length must not be longer than {USER_MAX} characters"));
    }
    if !user.is_empty() && user.chars().all(|c| matches!(c, '.' | ' ')) {
        problems.push("runAsUserName's User cannot contain only periods or spaces".to_owned());
    }
    if user.contains(['"', '/', '\\', ':', ';', '|', '=', ',', '+', '*', '?', '<', '>', '@', '[', ']']) {
        let list = "\"/\\:;|=,+*?<>@[]";
        problems.push(format!("runAsUserName's User cannot contain the following characters: {list}"));
    }
    problems
}

fn is_net_bios(domain: &str) -> bool {
    let length = domain.chars().count();
    (1..=15).contains(&length)
        && !domain.starts_with('.')
        && !domain.contains(['\\', '/', ':', '*', '?', '"', '<', '>', '|'])
}

fn is_domain(domain: &str) -> bool {
    domain.split('.').all(|label| label.len() <= 63 && names::is_dns_label(&label.to_ascii_lowercase()))
}

/// Containers that are processes of the host are it all or none.
pub(super) fn host_processes(spec: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    let of = |context: &Value| context["windowsOptions"]["hostProcess"].as_bool();
    let of_pod = of(&spec["securityContext"]);
    let (mut count, mut host_processes) = (0, 0);
    each_container(spec, path, |container, path| {
        count += 1;
        let own = of(&container["securityContext"]);
        if let (Some(of_pod), Some(own)) = (of_pod, own)
            && of_pod != own
        {
            let path = path.child("securityContext.windowsOptions.hostProcess");
            let detail = format!("pod hostProcess value must be identical if both are specified, was {of_pod}");
            errors.push(FieldError::invalid(path, own, &detail));
        }
        host_processes += usize::from(own.or(of_pod).unwrap_or(false));
    });
    if host_processes == 0 {
        return;
    }
    if host_processes != count {
        let detail = "If pod contains any hostProcess containers then all containers must be HostProcess containers";
        errors.push(FieldError::invalid(path, "", detail));
    }
    if !spec["hostNetwork"].flag() {
        let detail = "hostNetwork must be true if pod contains any hostProcess containers";
        errors.push(FieldError::invalid(path.child("hostNetwork"), false, detail));
    }
}

/// Checks `os`, and that nothing is said that this system has not.
pub(super) fn os(spec: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    if spec["os"].is_null() {
        return;
    }
    match spec["os"]["name"].text() {
        "" => errors.push(FieldError::required(path.child("os.name"), "")),
        "linux" => linux(spec, path, errors),
        "windows" => windows(spec, path, errors),
        other => errors.push(FieldError::not_supported(path.child("os"), other, &["linux", "windows"])),
    }
}

fn linux(spec: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    let mut check = |holder: &Value, path: &Path<'_>| {
        if holder["securityContext"]["windowsOptions"].is_set() {
            let detail = "windows options cannot be set for a linux pod";
            errors.push(FieldError::forbidden(path.child("securityContext.windowsOptions"), detail));
        }
    };
    check(spec, path);
    each_container(spec, path, &mut check);
}

fn windows(spec: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    const OF_POD: [&str; 11] = [
        "appArmorProfile",
        "seLinuxOptions",
        "seccompProfile",
        "fsGroup",
        "fsGroupChangePolicy",
        "sysctls",
        "runAsUser",
        "runAsGroup",
        "supplementalGroups",
        "supplementalGroupsPolicy",
        "seLinuxChangePolicy",
    ];
    const OF_CONTAINER: [&str; 10] = [
        "appArmorProfile",
        "seLinuxOptions",
        "seccompProfile",
        "capabilities",
        "readOnlyRootFilesystem",
        "privileged",
        "allowPrivilegeEscalation",
        "procMount",
        "runAsUser",
        "runAsGroup",
    ];
    const DETAIL: &str = "cannot be set for a windows pod";
    let context = path.child("securityContext");
    for field in OF_POD.into_iter().filter(|field| spec["securityContext"][*field].is_set()) {
        errors.push(FieldError::forbidden(context.child(field), DETAIL));
    }
    for (field, is_set) in [
        ("hostUsers", spec["hostUsers"].is_set()),
        ("hostPID", spec["hostPID"].flag()),
        ("hostIPC", spec["hostIPC"].flag()),
        ("shareProcessNamespace", spec["shareProcessNamespace"].is_set()),
    ] {
        if is_set {
            errors.push(FieldError::forbidden(path.child(field), DETAIL));
        }
    }
    each_container(spec, path, |container, path| {
        let path = path.child("securityContext");
        for field in OF_CONTAINER.into_iter().filter(|field| container["securityContext"][*field].is_set()) {
            errors.push(FieldError::forbidden(path.child(field), DETAIL));
        }
    });
}
