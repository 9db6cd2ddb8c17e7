//! Volumes of a pod.

use std::collections::HashSet;

use serde_json::Value;

use super::{Ratchet, container, env, metadata, projected, security, volume_rare};
use crate::kinds::value::Read;
use crate::kinds::{FieldError, FieldErrors, checks};
use crate::meta::field::{Path, Printed};
use crate::meta::selector::validate_label_selector;
use crate::meta::{Quantity, names, text, validate_annotations, validate_labels};

/// The types, in the order of the checks.
const TYPES: [&str; 30] = [
    "emptyDir",
    "hostPath",
    "gitRepo",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "secret",
    "nfs",
    "iscsi",
    "glusterfs",
    "flocker",
    "persistentVolumeClaim",
    "rbd",
    "cinder",
    "cephfs",
    "quobyte",
    "downwardAPI",
    "fc",
    "flexVolume",
    "configMap",
    "azureFile",
    "vsphereVolume",
    "photonPersistentDisk",
    "portworxVolume",
    "azureDisk",
    "storageos",
    "projected",
    "scaleIO",
    "csi",
    "ephemeral",
    "image",
];

/// Checks volumes; gives those that are well.
pub(super) fn volumes<'a>(
    volumes: &'a [Value],
    metadata: Option<&Value>,
    path: &Path<'_>,
    ratchet: Ratchet,
    errors: &mut FieldErrors,
) -> Vec<&'a Value> {
    let pod = metadata.map_or("", |metadata| metadata["name"].text());
    let mut valid: Vec<&Value> = Vec::with_capacity(volumes.len());
    let mut names_taken: HashSet<&str> = HashSet::new();
    let ephemeral: HashSet<&str> = volumes
        .iter()
        .filter(|volume| volume["ephemeral"].is_set())
        .filter_map(|volume| volume["name"].as_str())
        .collect();
    for (index, volume) in volumes.iter().enumerate() {
        let (path, name, before) = (path.index(index), volume["name"].text(), errors.len());
        source(volume, pod, &path, ratchet, errors);
        match name {
            "" => errors.push(FieldError::required(path.child("name"), "")),
            name => checks::dns_label(&path.child("name"), name, errors),
        }
        if names_taken.contains(name) {
            errors.push(FieldError::duplicate(path.child("name"), name));
        }
        if errors.len() == before {
            valid.push(volume);
            names_taken.insert(name);
        }
        let claim = volume["persistentVolumeClaim"]["claimName"].text();
        let is_made = claim
            .strip_prefix(pod)
            .and_then(|rest| rest.strip_prefix('-'))
            .is_some_and(|name| ephemeral.contains(name));
        if !pod.is_empty() && !claim.is_empty() && is_made {
            let detail = "must not reference a PVC that gets created for an ephemeral volume";
            errors.push(FieldError::invalid(path.child("persistentVolumeClaim.claimName"), claim, detail));
        }
    }
    valid
}

fn source(volume: &Value, pod: &str, path: &Path<'_>, ratchet: Ratchet, errors: &mut FieldErrors) {
    let mut has_one = false;
    for kind in TYPES.into_iter().filter(|kind| volume[*kind].is_set()) {
        let source = &volume[kind];
        if has_one {
            // Two names in the reference differ from the fields'.
            let shown = match kind {
                "cephfs" => "cephFS",
                "downwardAPI" => "downwarAPI",
                kind => kind,
            };
            errors.push(FieldError::forbidden(path.child(shown), "may not specify more than 1 volume type"));
            continue;
        }
        has_one = true;
        let source_path = path.child(kind);
        match kind {
            "emptyDir" => empty_dir(source, &source_path, errors),
            "hostPath" => host_path(source, &source_path, errors),
            "secret" => keyed("secretName", source, &source_path, errors),
            "configMap" => keyed("name", source, &source_path, errors),
            "persistentVolumeClaim" => checks::required(&source_path.child("claimName"), &source["claimName"], errors),
            "downwardAPI" => downward(source, &source_path, errors),
            "projected" => projected::volume(source, &source_path, ratchet, errors),
            "csi" => csi(source, &source_path, errors),
            "ephemeral" => ephemeral(volume, pod, path, errors),
            "image" => {
                if !ratchet.empty_image_volumes {
                    checks::required(&source_path.child("reference"), &source["reference"], errors);
                }
                container::pull_policy(&source["pullPolicy"], &source_path.child("pullPolicy"), errors);
            }
            _ => volume_rare::source(kind, volume, path, errors),
        }
    }
    if !has_one {
        errors.push(FieldError::required(path, "must specify a volume type"));
    }
}

fn empty_dir(source: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    if Quantity::from_json(&source["sizeLimit"]).is_ok_and(|size| size.signum() < 0) {
        let detail = "SizeLimit field must be a valid resource quantity";
        errors.push(FieldError::forbidden(path.child("sizeLimit"), detail));
    }
    if let Some(mode) = source["mode"].maybe_int().filter(|mode| !(0..=0o1777).contains(mode)) {
        let detail = "must be a number between 0 and 01777 (octal), both inclusive";
        errors.push(FieldError::invalid(path.child("mode"), mode, detail));
    }
}

pub(super) fn host_path(source: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    const TYPES: [&str; 8] =
        ["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];
    match source["path"].text() {
        "" => errors.push(FieldError::required(path.child("path"), "")),
        text => {
            metadata::no_backsteps(text, &path.child("path"), errors);
            checks::supported(&path.child("type"), &source["type"], &TYPES, errors);
        }
    }
}

/// A file's mode.
pub(super) fn mode(value: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    if let Some(mode) = value.maybe_int().filter(|mode| !(0..=0o777).contains(mode)) {
        let detail = "must be a number between 0 and 0777 (octal), both inclusive";
        errors.push(FieldError::invalid(path, mode, detail));
    }
}

/// A secret or config map as files.
fn keyed(name: &str, source: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    checks::required(&path.child(name), &source[name], errors);
    mode(&source["defaultMode"], &path.child("defaultMode"), errors);
    security::id(&source["defaultUser"], &path.child("defaultUser"), errors);
    let items = path.child("items");
    for (index, item) in source["items"].items().iter().enumerate() {
        key_to_path(item, &items.index(index), errors);
    }
}

/// Which key becomes which file.
pub(super) fn key_to_path(item: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    checks::required(&path.child("key"), &item["key"], errors);
    checks::required(&path.child("path"), &item["path"], errors);
    metadata::local_free_path(item["path"].text(), &path.child("path"), errors);
    mode(&item["mode"], &path.child("mode"), errors);
    security::id(&item["user"], &path.child("user"), errors);
}

fn downward(source: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    mode(&source["defaultMode"], &path.child("defaultMode"), errors);
    security::id(&source["defaultUser"], &path.child("defaultUser"), errors);
    for file in source["items"].items() {
        // The reference names the volume, not the item.
        downward_file(file, path, errors);
    }
}

/// A file with a field of the pod.
pub(super) fn downward_file(file: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    checks::required(&path.child("path"), &file["path"], errors);
    metadata::local_free_path(file["path"].text(), &path.child("path"), errors);
    let (field, resource) = (&file["fieldRef"], &file["resourceFieldRef"]);
    if field.is_set() {
        env::field_reference(field, &env::FILE_FIELDS, &path.child("fieldRef"), errors);
        if resource.is_set() {
            let detail = "fieldRef and resourceFieldRef can not be specified simultaneously";
            errors.push(FieldError::invalid(path, "resource", detail));
        }
    } else if resource.is_set() {
        env::resource_reference(resource, true, &path.child("resourceFieldRef"), errors);
    } else {
        errors.push(FieldError::required(path, "one of fieldRef and resourceFieldRef is required"));
    }
    mode(&file["mode"], &path.child("mode"), errors);
    security::id(&file["user"], &path.child("user"), errors);
}

fn csi(source: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    checks::csi_driver(&path.child("driver"), source["driver"].text(), errors);
    let secret = &source["nodePublishSecretRef"];
    if secret.is_set() {
        match secret["name"].text() {
            "" => errors.push(FieldError::required(path.child("nodePublishSecretRef.name"), "")),
            name => checks::dns_subdomain(&path.child("name"), name, errors),
        }
    }
}

/// A claim that is made for the pod.
fn ephemeral(volume: &Value, pod: &str, path: &Path<'_>, errors: &mut FieldErrors) {
    let template = &volume["ephemeral"]["volumeClaimTemplate"];
    let source_path = path.child("ephemeral");
    let template_path = source_path.child("volumeClaimTemplate");
    if template.is_null() {
        errors.push(FieldError::required(template_path, ""));
    } else {
        let (metadata, metadata_path) = (&template["metadata"], template_path.child("metadata"));
        validate_annotations(metadata["annotations"].as_object(), &metadata_path.child("annotations"), errors);
        validate_labels(metadata["labels"].as_object(), &metadata_path.child("labels"), errors);
        for (field, value) in metadata.entries() {
            if !["annotations", "labels"].contains(&field.as_str()) && !value.is_empty() {
                errors.push(FieldError::forbidden(metadata_path.child(field), "cannot be set"));
            }
        }
        claim_spec(&template["spec"], &template_path.child("spec"), errors);
    }
    let name = volume["name"].text();
    if !pod.is_empty() && !name.is_empty() {
        let claim = format!("{pod}-{name}");
        for words in names::dns_subdomain(&claim) {
            let detail = format!("PVC name {}: {words}", text::quote(&claim));
            errors.push(FieldError::invalid(path.child("name"), name, &detail));
        }
    }
}

/// How a volume can be used.
const ACCESS_MODES: [&str; 4] = ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];

/// Checks how a volume is to be used; that there is any way is the caller's to check.
pub(in crate::kinds) fn access_modes(modes: &[Value], path: &Path<'_>, errors: &mut FieldErrors) {
    for mode in modes {
        checks::supported(path, mode, &ACCESS_MODES, errors);
    }
    let is_shared = |mode: &Value| mode != "ReadWriteOncePod" && ACCESS_MODES.contains(&mode.text());
    if modes.iter().any(|mode| mode == "ReadWriteOncePod") && modes.iter().any(is_shared) {
        errors.push(FieldError::forbidden(path, "may not use ReadWriteOncePod with other access modes"));
    }
}

/// Checks what is asked of a volume (`ValidatePersistentVolumeClaimSpec`).
pub(in crate::kinds) fn claim_spec(spec: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    let (modes, modes_path) = (spec["accessModes"].items(), path.child("accessModes"));
    if modes.is_empty() {
        errors.push(FieldError::required(modes_path, "at least 1 access mode is required"));
    }
    validate_label_selector(&spec["selector"], &path.child("selector"), errors);
    access_modes(modes, &modes_path, errors);
    let resources = path.child("resources");
    let storage_path = resources.key("storage");
    match &spec["resources"]["requests"]["storage"] {
        Value::Null => errors.push(FieldError::required(storage_path, "")),
        storage => match Quantity::from_json(storage) {
            Ok(size) if size.signum() <= 0 => {
                errors.push(FieldError::invalid(storage_path, size.to_string(), "must be greater than zero"));
            }
            _ => {}
        },
    }
    for field in ["storageClassName", "volumeAttributesClassName"] {
        if !spec[field].is_empty() {
            checks::dns_subdomain(&path.child(field), spec[field].text(), errors);
        }
    }
    if spec["volumeMode"].is_set() {
        checks::supported(&path.child("volumeMode"), &spec["volumeMode"], &["Block", "Filesystem"], errors);
    }
    for field in ["dataSource", "dataSourceRef"] {
        if spec[field].is_set() {
            data_source(&spec[field], &path.child(field), errors);
        }
    }
    let (old, new) = (&spec["dataSource"], &spec["dataSourceRef"]);
    let differs = || ["apiGroup", "kind", "name"].iter().any(|field| old[*field] != new[*field]);
    if old.is_set() && new.is_set() && differs() {
        // The reference shows a path instead of the value, and of that nothing.
        errors.push(FieldError::invalid(path, Printed("{}"), "must match dataSourceRef"));
    }
}

/// Checks what a volume is filled from.
fn data_source(source: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    checks::required(&path.child("name"), &source["name"], errors);
    checks::required(&path.child("kind"), &source["kind"], errors);
    let group = source["apiGroup"].text();
    if group.is_empty() && source["kind"] != "PersistentVolumeClaim" {
        let detail = "must be 'PersistentVolumeClaim' when referencing the default apiGroup";
        errors.push(FieldError::invalid(path, source["kind"].text(), detail));
    }
    if !group.is_empty() {
        checks::dns_subdomain(&path.child("apiGroup"), group, errors);
    }
}
