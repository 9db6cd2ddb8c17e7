//! Volume types of single vendors and protocols. Our nodes mount none of them, but the API takes them.

use serde_json::Value;

use super::metadata;
use crate::kinds::value::Read;
use crate::kinds::{FieldError, FieldErrors, checks};
use crate::meta::field::Path;
use crate::meta::names;

/// Checks the source of a type; `path` is the volume's.
pub(super) fn source(kind: &str, volume: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    let source = &volume[kind];
    let at = path.child(if kind == "gcePersistentDisk" { "persistentDisk" } else { kind });
    let require = |fields: &[&str], errors: &mut FieldErrors| {
        for field in fields {
            checks::required(&at.child(field), &source[*field], errors);
        }
    };
    match kind {
        "gitRepo" => {
            require(&["repository"], errors);
            metadata::local_path(source["directory"].text(), &at.child("directory"), errors);
        }
        "gcePersistentDisk" | "awsElasticBlockStore" => {
            require(&[if kind == "gcePersistentDisk" { "pdName" } else { "volumeID" }], errors);
            let partition = source["partition"].int();
            if !(0..=255).contains(&partition) {
                let detail = "must be between 1 and 255, inclusive";
                errors.push(FieldError::invalid(at.child("partition"), partition, detail));
            }
        }
        "nfs" => {
            require(&["server", "path"], errors);
            if !source["path"].text().starts_with('/') {
                let detail = "must be an absolute path";
                errors.push(FieldError::invalid(at.child("path"), source["path"].text(), detail));
            }
        }
        "iscsi" => {
            iscsi(source, &at, "must be valid format starting with iqn, eui, or naa", errors);
            let (name, portal) = (volume["name"].text(), source["targetPortal"].text());
            if source["initiatorName"].is_set() && name.len() + 1 + portal.len() > 64 {
                errors.push(FieldError::invalid(path.child("name"), name, ISCSI_TOO_LONG));
            }
        }
        "glusterfs" => require(&["endpoints", "path"], errors),
        "flocker" => flocker(source, &at, errors),
        "rbd" => require(&["monitors", "image"], errors),
        "cinder" => {
            require(&["volumeID"], errors);
            secret_name(source, &at, errors);
        }
        "cephfs" => require(&["monitors"], errors),
        "quobyte" => quobyte(source, &at, errors),
        "fc" => fibre_channel(source, &at, errors),
        "flexVolume" => {
            require(&["driver"], errors);
            for (key, _) in source["options"].entries() {
                let namespace = format!(".{}", key.split('/').next().unwrap_or_default().to_lowercase());
                if namespace.ends_with(".kubernetes.io") || namespace.ends_with(".k8s.io") {
                    let detail = "kubernetes.io and k8s.io namespaces are reserved";
                    errors.push(FieldError::invalid(at.child("options").key(key), key, detail));
                }
            }
        }
        "azureFile" => require(&["secretName", "shareName"], errors),
        "vsphereVolume" => require(&["volumePath"], errors),
        "photonPersistentDisk" => require(&["pdID"], errors),
        "portworxVolume" => require(&["volumeID"], errors),
        "azureDisk" => azure_disk(source, &at, errors),
        "storageos" => {
            match source["volumeName"].text() {
                "" => errors.push(FieldError::required(at.child("volumeName"), "")),
                name => checks::dns_label(&at.child("volumeName"), name, errors),
            }
            if !source["volumeNamespace"].is_empty() {
                checks::dns_label(&at.child("volumeNamespace"), source["volumeNamespace"].text(), errors);
            }
            secret_name(source, &at, errors);
        }
        "scaleIO" => require(&["gateway", "system", "volumeName"], errors),
        _ => {}
    }
}

fn secret_name(source: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    if source["secretRef"].is_set() {
        checks::required(&path.child("secretRef.name"), &source["secretRef"]["name"], errors);
    }
}

pub(super) const ISCSI_TOO_LONG: &str = "Total length of <volume name>:<iscsi.targetPortal> must be under 64 characters if iscsi.initiatorName is specified.";

/// Checks a target, but for the length of its names. `unknown` is said of a name of no known kind.
pub(super) fn iscsi(source: &Value, path: &Path<'_>, unknown: &str, errors: &mut FieldErrors) {
    checks::required(&path.child("targetPortal"), &source["targetPortal"], errors);
    checks::required(&path.child("iqn"), &source["iqn"], errors);
    for (field, shown) in [("iqn", "iqn"), ("initiatorName", "initiatorname")] {
        let name = source[field].text();
        if source[field].is_null() || (field == "iqn" && name.is_empty()) {
            continue;
        }
        let (kind, is_valid) = match name.get(..3) {
            Some("iqn") => (true, is_iqn(name)),
            Some("eui") => (true, is_hex_like(name, 16)),
            Some("naa") => (true, is_hex_like(name, 32)),
            _ => (false, false),
        };
        if !is_valid {
            let detail = if kind { "must be valid format" } else { unknown };
            errors.push(FieldError::invalid(path.child(shown), name, detail));
        }
    }
    let lun = source["lun"].int();
    let wrong = names::in_range(lun, 0, 255);
    errors.extend(wrong.iter().map(|words| FieldError::invalid(path.child("lun"), lun, words)));
    let uses_secret = source["chapAuthDiscovery"].flag() || source["chapAuthSession"].flag();
    if uses_secret && source["secretRef"].is_null() {
        errors.push(FieldError::required(path.child("secretRef"), ""));
    }
}

/// `iqn.2001-04.com.example:storage`
fn is_iqn(name: &str) -> bool {
    let Some((authority, rest)) = name.strip_prefix("iqn.").and_then(|rest| rest.split_once(':')) else { return false };
    let is_digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    let (Some(date), Some(domain)) = (authority.get(..7), authority.get(8..)) else { return false };
    is_digits(&date[..4])
        && &date[4..5] == "-"
        && is_digits(&date[5..])
        && authority.as_bytes()[7] == b'.'
        && !domain.is_empty()
        && domain.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.'))
        && !rest.is_empty()
        && !rest.contains([',', ';', '*', '&', '$', '|'])
        && !rest.contains(char::is_whitespace)
}

/// A prefix of three letters, any character, and so many letters and digits.
fn is_hex_like(name: &str, length: usize) -> bool {
    name.len() == 4 + length && name.bytes().skip(4).all(|b| b.is_ascii_alphanumeric())
}

fn flocker(source: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    let name = source["datasetName"].text();
    match (name.is_empty(), source["datasetUUID"].is_empty()) {
        (true, true) => errors.push(FieldError::required(path, "one of datasetName and datasetUUID is required")),
        (false, false) => {
            let detail = "datasetName and datasetUUID can not be specified simultaneously";
            errors.push(FieldError::invalid(path, "resource", detail));
        }
        _ => {}
    }
    if name.contains('/') {
        errors.push(FieldError::invalid(path.child("datasetName"), name, "must not contain '/'"));
    }
}

fn quobyte(source: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    const PAIRS: &str = "must be a host:port pair or multiple pairs separated by commas";
    let registry = source["registry"].text();
    if registry.is_empty() {
        errors.push(FieldError::required(path.child("registry"), PAIRS));
    } else if source["tenant"].text().len() >= 65 {
        let detail = "must be a UUID and may not exceed a length of 64 characters";
        errors.push(FieldError::required(path.child("tenant"), detail));
    } else {
        let is_pair = |pair: &&str| match pair.rsplit_once(':') {
            Some((host, _)) => !host.contains(':') || (host.starts_with('[') && host.ends_with(']')),
            None => false,
        };
        for _ in registry.split(',').filter(|pair| !is_pair(pair)) {
            errors.push(FieldError::invalid(path.child("registry"), registry, PAIRS));
        }
    }
    checks::required(&path.child("volume"), &source["volume"], errors);
}

fn fibre_channel(source: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    let (targets, targets_path) = (&source["targetWWNs"], path.child("targetWWNs"));
    match (targets.is_empty(), source["wwids"].is_empty()) {
        (true, true) => {
            let detail = "must specify either targetWWNs or wwids, but not both";
            errors.push(FieldError::required(targets_path, detail));
        }
        (false, false) => {
            let detail = "targetWWNs and wwids can not be specified simultaneously";
            errors.push(FieldError::invalid(targets_path, targets, detail));
        }
        _ => {}
    }
    if !targets.is_empty() {
        match source["lun"].maybe_int() {
            None => errors.push(FieldError::required(path.child("lun"), "lun is required if targetWWNs is specified")),
            Some(lun) => {
                let wrong = names::in_range(lun, 0, 255);
                errors.extend(wrong.iter().map(|words| FieldError::invalid(path.child("lun"), lun, words)));
            }
        }
    }
}

fn azure_disk(source: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    const MANAGED: &str =
        "/subscriptions/{sub-id}/resourcegroups/{group-name}/providers/microsoft.compute/disks/{disk-id}";
    const BLOB: &str = "https://{account-name}.blob.core.windows.net/{container-name}/{disk-name}.vhd";
    for field in ["diskName", "diskURI"] {
        checks::required(&path.child(field), &source[field], errors);
    }
    let modes = ["None", "ReadOnly", "ReadWrite"];
    checks::supported(&path.child("cachingMode"), &source["cachingMode"], &modes, errors);
    checks::supported(&path.child("kind"), &source["kind"], &["Dedicated", "Managed", "Shared"], errors);
    let (address, address_path) = (source["diskURI"].text(), path.child("diskURI"));
    let (prefix, form) = match source["kind"].text() {
        "Managed" => ("/subscriptions/", MANAGED),
        _ => ("https://", BLOB),
    };
    if !address.starts_with(prefix) {
        errors.push(FieldError::not_supported(address_path, address, &[form]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_names_of_initiators() {
        for (name, expected) in [
            ("iqn.2001-04.com.example:storage.kube.sys1.xyz", true),
            ("iqn.2001-04.com.example", false),
            ("iqn.2001.com.example:a", false),
            ("iqn.2001-04.:a", false),
        ] {
            assert_eq!(is_iqn(name), expected, "{name}");
        }
        assert!(is_hex_like("eui.0123456789abcdef", 16) && !is_hex_like("eui.0123", 16));
    }
}
