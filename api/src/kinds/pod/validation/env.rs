//! Environment variables and where they come from; the downward API.

use serde_json::Value;

use super::metadata;
use crate::kinds::value::Read;
use crate::kinds::{FieldError, FieldErrors, checks};
use crate::meta::field::Path;
use crate::meta::{Quantity, names};

/// Fields of a pod that a variable may have.
const ENV_FIELDS: [&str; 9] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
/// Fields of a pod that a file may have.
pub(super) const FILE_FIELDS: [&str; 5] =
    ["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];
/// Fields of a pod that can be named at all.
const FIELDS: [&str; 14] = [
    "metadata.annotations",
    "metadata.labels",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.serviceAccountName",
    "spec.schedulerName",
    "status.phase",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
const RESOURCES: [&str; 6] = [
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];
const SIZES: [&str; 13] = ["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"];

pub(super) fn variables(variables: &[Value], path: &Path<'_>, errors: &mut FieldErrors) {
    for (index, variable) in variables.iter().enumerate() {
        let path = path.index(index);
        match variable["name"].text() {
            "" => errors.push(FieldError::required(path.child("name"), "")),
            name => checks::invalid(&path.child("name"), name, names::env_name(name), errors),
        }
        if variable["valueFrom"].is_set() {
            source(variable, &path.child("valueFrom"), errors);
        }
    }
}

fn source(variable: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    let from = &variable["valueFrom"];
    let mut count = 0;
    let mut has = |field: &str| {
        count += usize::from(from[field].is_set());
        from[field].is_set()
    };
    if has("fieldRef") {
        field_reference(&from["fieldRef"], &ENV_FIELDS, &path.child("fieldRef"), errors);
    }
    if has("resourceFieldRef") {
        resource_reference(&from["resourceFieldRef"], false, &path.child("resourceFieldRef"), errors);
    }
    for field in ["configMapKeyRef", "secretKeyRef"] {
        if has(field) {
            key_reference(&from[field], &path.child(field), errors);
        }
    }
    if has("fileKeyRef") {
        file_reference(&from["fileKeyRef"], &path.child("fileKeyRef"), errors);
    }
    let detail = match count {
        0 => "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`",
        _ if !variable["value"].is_empty() => "may not be specified when `value` is not empty",
        1 => return,
        _ => "may not have more than one field specified at a time",
    };
    errors.push(FieldError::invalid(path, "", detail));
}

/// Checks a reference to a field of the pod.
pub(super) fn field_reference(reference: &Value, allowed: &[&str], path: &Path<'_>, errors: &mut FieldErrors) {
    let field_path = path.child("fieldPath");
    let (version, field) = (reference["apiVersion"].text(), reference["fieldPath"].text());
    if version.is_empty() {
        errors.push(FieldError::required(path.child("apiVersion"), ""));
        return;
    }
    if field.is_empty() {
        errors.push(FieldError::required(field_path, ""));
        return;
    }
    let subscript = field.strip_suffix("']").and_then(|rest| rest.split_once("['"));
    let problem = match subscript {
        _ if version != "v1" => Some(format!("unsupported pod version: {version}")),
        Some((map, _)) if ["metadata.annotations", "metadata.labels"].contains(&map) => None,
        Some(_) => Some(format!("field label does not support subscript: {field}")),
        None if FIELDS.contains(&field) || field == "spec.host" => None,
        None => Some(format!("field label not supported: {field}")),
    };
    if let Some(problem) = problem {
        let detail = format!("error converting fieldPath: {problem}");
        errors.push(FieldError::invalid(field_path, field, &detail));
        return;
    }
    match subscript {
        Some(("metadata.annotations", key)) => checks::qualified_name(path, &key.to_lowercase(), errors),
        Some((_, key)) => checks::qualified_name(path, key, errors),
        None => {
            let field = if field == "spec.host" { "spec.nodeName" } else { field };
            if !allowed.contains(&field) {
                errors.push(FieldError::not_supported(field_path, field, allowed));
            }
        }
    }
}

/// Checks a reference to a request or limit of a container; files name the container.
pub(super) fn resource_reference(reference: &Value, is_file: bool, path: &Path<'_>, errors: &mut FieldErrors) {
    let resource = reference["resource"].text();
    let is_huge = resource.starts_with("requests.hugepages-") || resource.starts_with("limits.hugepages-");
    if is_file && reference["containerName"].is_empty() {
        errors.push(FieldError::required(path.child("containerName"), ""));
    } else if resource.is_empty() {
        errors.push(FieldError::required(path.child("resource"), ""));
    } else if !RESOURCES.contains(&resource) && !is_huge {
        errors.push(FieldError::not_supported(path.child("resource"), resource, &RESOURCES));
    }
    let divisor = match Quantity::from_json(&reference["divisor"]) {
        Ok(divisor) if !divisor.is_zero() => divisor.to_string(),
        _ => return,
    };
    let (allowed, words): (&[&str], _) = match resource {
        "limits.cpu" | "requests.cpu" => (&["1m", "1"], "1m and 1 are supported with the cpu"),
        "limits.memory" | "requests.memory" => (&SIZES, "memory"),
        "limits.ephemeral-storage" | "requests.ephemeral-storage" => (&SIZES, "local ephemeral storage"),
        _ if is_huge => (&SIZES, "hugepages"),
        _ => return,
    };
    if !allowed.contains(&divisor.as_str()) {
        let detail = match allowed.len() {
            2 => format!("only divisor's values {words} resource"),
            _ => format!("only divisor's values {} are supported with the {words} resource", SIZES.join(", ")),
        };
        errors.push(FieldError::invalid(path.child("divisor"), resource, &detail));
    }
}

fn key_reference(reference: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    checks::dns_subdomain(&path.child("name"), reference["name"].text(), errors);
    match reference["key"].text() {
        "" => errors.push(FieldError::required(path.child("key"), "")),
        key => checks::invalid(&path.child("key"), key, names::config_key(key), errors),
    }
}

fn file_reference(reference: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    match reference["key"].text() {
        "" => errors.push(FieldError::required(path.child("key"), "")),
        key => checks::invalid(&path.child("key"), key, names::env_name(key), errors),
    }
    match reference["volumeName"].text() {
        "" => errors.push(FieldError::required(path.child("volumeName"), "")),
        name => checks::dns_label(&path.child("volumeName"), name, errors),
    }
    match reference["path"].text() {
        "" => errors.push(FieldError::required(path.child("path"), "")),
        file => metadata::no_backsteps(file, &path.child("path"), errors),
    }
}

/// Checks `envFrom`.
pub(super) fn sources(sources: &[Value], path: &Path<'_>, errors: &mut FieldErrors) {
    for (index, source) in sources.iter().enumerate() {
        let item = path.index(index);
        let prefix = source["prefix"].text();
        if !prefix.is_empty() {
            checks::invalid(&item.child("prefix"), prefix, names::env_name(prefix), errors);
        }
        let mut count = 0;
        for field in ["configMapRef", "secretRef"].into_iter().filter(|field| source[*field].is_set()) {
            count += 1;
            let (path, name) = (item.child(field), source[field]["name"].text());
            let path = path.child("name");
            match name {
                "" => errors.push(FieldError::required(path, "")),
                name => checks::invalid(&path, name, names::name_is_dns_subdomain(name, true), errors),
            }
        }
        let detail = match count {
            0 => "must specify one of: `configMapRef` or `secretRef`",
            1 => continue,
            _ => "may not have more than one field specified at a time",
        };
        errors.push(FieldError::invalid(path, "", detail));
    }
}
