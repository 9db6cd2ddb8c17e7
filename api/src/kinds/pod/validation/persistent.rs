//! What a PersistentVolume is: most of its types are those of pods, some say more.

use serde_json::Value;

use super::{metadata, volume, volume_rare};
use crate::kinds::value::Read;
use crate::kinds::{FieldError, FieldErrors, checks};
use crate::meta::field::Path;

/// The types, in the order of the checks.
const TYPES: [&str; 22] = [
    "hostPath",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "glusterfs",
    "flocker",
    "nfs",
    "rbd",
    "quobyte",
    "cephfs",
    "iscsi",
    "cinder",
    "fc",
    "flexVolume",
    "azureFile",
    "vsphereVolume",
    "photonPersistentDisk",
    "portworxVolume",
    "azureDisk",
    "scaleIO",
    "local",
    "storageos",
    "csi",
];

/// Checks that a volume's spec has one type, and that type; `name` is the volume's.
pub(in crate::kinds) fn source(spec: &Value, name: &str, path: &Path<'_>, errors: &mut FieldErrors) {
    let mut has_one = false;
    for kind in TYPES.into_iter().filter(|kind| spec[*kind].is_set()) {
        // The reference takes a flexVolume beside another.
        if has_one && kind != "flexVolume" {
            // One name in the reference differs from the field's.
            let shown = if kind == "cephfs" { "cephFS" } else { kind };
            errors.push(FieldError::forbidden(path.child(shown), "may not specify more than 1 volume type"));
            continue;
        }
        has_one = true;
        one(kind, spec, name, path, errors);
    }
    if !has_one {
        errors.push(FieldError::required(path, "must specify a volume type"));
    }
}

fn one(kind: &str, spec: &Value, name: &str, volume_path: &Path<'_>, errors: &mut FieldErrors) {
    let (source, path) = (&spec[kind], volume_path.child(kind));
    match kind {
        "hostPath" => volume::host_path(source, &path, errors),
        "local" => {
            match source["path"].text() {
                "" => errors.push(FieldError::required(path.child("path"), "")),
                text => metadata::no_backsteps(text, &path.child("path"), errors),
            }
            if spec["nodeAffinity"].is_null() {
                let detail = "Local volume requires node affinity";
                errors.push(FieldError::required(volume_path.child("nodeAffinity"), detail));
            }
        }
        "csi" => csi(source, &path, errors),
        "iscsi" => {
            volume_rare::iscsi(source, &path, "must be valid format", errors);
            let portal = source["targetPortal"].text();
            if source["initiatorName"].is_set() && name.len() + 1 + portal.len() > 64 {
                let detail = volume_rare::ISCSI_TOO_LONG;
                errors.push(FieldError::invalid(path.child("targetportal"), portal, detail));
            }
            if source["secretRef"].is_set() {
                checks::required(&path.child("secretRef.name"), &source["secretRef"]["name"], errors);
            }
        }
        _ => volume_rare::source(kind, spec, volume_path, errors),
    }
    match kind {
        "cinder" | "storageos" if source["secretRef"].is_set() => {
            checks::required(&path.child("secretRef.namespace"), &source["secretRef"]["namespace"], errors);
        }
        "azureFile" if source["secretNamespace"].is_set() => {
            checks::required(&path.child("secretNamespace"), &source["secretNamespace"], errors);
        }
        "glusterfs" if source["endpointsNamespace"].is_set() => {
            let (path, namespace) = (path.child("endpointsNamespace"), source["endpointsNamespace"].text());
            match namespace {
                "" => {
                    let detail = "if the endpointnamespace is set, it must be a valid namespace name";
                    errors.push(FieldError::invalid(path, namespace, detail));
                }
                _ => checks::dns_label(&path, namespace, errors),
            }
        }
        _ => {}
    }
}

fn csi(source: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    checks::csi_driver(&path.child("driver"), source["driver"].text(), errors);
    checks::required(&path.child("volumeHandle"), &source["volumeHandle"], errors);
    // The reference does not look at the one for staging.
    let secrets =
        ["controllerPublishSecretRef", "controllerExpandSecretRef", "nodePublishSecretRef", "nodeExpandSecretRef"];
    for (secret, path) in secrets.iter().map(|field| (&source[*field], path.child(field))) {
        if secret.is_null() {
            continue;
        }
        let (name, namespace) = (path.child("name"), path.child("namespace"));
        match secret["name"].text() {
            "" => errors.push(FieldError::required(name, "")),
            text => checks::dns_subdomain(&name, text, errors),
        }
        match secret["namespace"].text() {
            "" => errors.push(FieldError::required(namespace, "")),
            text => checks::dns_label(&namespace, text, errors),
        }
    }
}
