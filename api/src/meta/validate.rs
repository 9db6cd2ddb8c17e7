//! Validation of `metadata`, as apimachinery's `ValidateObjectMeta` and `ValidateObjectMetaUpdate` do it.

use std::collections::HashSet;

use serde_json::{Map, Value, json};

use super::field::{FieldError, FieldErrors, Path, Printed};
use super::{names, text};

/// Most bytes of all annotations together.
const ANNOTATIONS_MAX: usize = 256 << 10;
/// Longest name of a field manager.
const MANAGER_MAX: usize = 128;
const SUBRESOURCE_MAX: usize = 256;
const METADATA: Path<'static> = Path::new("metadata");

/// Checks the metadata of a new object; its name is already generated. `check` is the kind's rule for names.
pub fn validate_object_meta(
    object: &Value,
    namespaced: bool,
    check: impl Fn(&str, bool) -> Vec<String>,
    errors: &mut FieldErrors,
) {
    let prefix = string(object, "generateName");
    if !prefix.is_empty() {
        let messages = check(prefix, true);
        errors.extend(messages.iter().map(|m| FieldError::invalid(METADATA.child("generateName"), prefix, m)));
    }
    let name = super::name(object);
    if name.is_empty() {
        errors.push(FieldError::required(METADATA.child("name"), "name or generateName is required"));
    } else {
        let messages = check(name, false);
        errors.extend(messages.iter().map(|m| FieldError::invalid(METADATA.child("name"), name, m)));
    }
    let (namespace, path) = (super::namespace(object), METADATA.child("namespace"));
    match (namespaced, namespace) {
        (true, "") => errors.push(FieldError::required(path, "")),
        (true, _) => {
            let messages = names::dns_label(namespace);
            errors.extend(messages.iter().map(|m| FieldError::invalid(path, namespace, m)));
        }
        (false, "") => {}
        (false, _) => errors.push(FieldError::forbidden(path, "not allowed on this type")),
    }
    validate_generation(object, errors);
    validate_labels(super::labels(object), &METADATA.child("labels"), errors);
    validate_annotations(super::annotations(object), &METADATA.child("annotations"), errors);
    validate_owner_references(object, errors);
    let finalizers = object.pointer("/metadata/finalizers").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    validate_finalizers(finalizers, &METADATA.child("finalizers"), errors);
    validate_managed_fields(object, errors);
}

/// Checks the metadata of a changed object against the old one.
pub fn validate_object_meta_update(object: &Value, old: &Value, errors: &mut FieldErrors) {
    if super::is_deleting(old) {
        let known: HashSet<&str> = super::finalizers(old).collect();
        let mut extra: Vec<&str> = super::finalizers(object).filter(|new| !known.contains(new)).collect();
        extra.sort_unstable();
        extra.dedup();
        if !extra.is_empty() {
            let list: Vec<String> = extra.iter().map(|name| text::quote(name)).collect();
            let detail = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                list.join(", ")
            );
            errors.push(FieldError::forbidden(METADATA.child("finalizers"), &detail));
        }
    }
    if super::resource_version(object).is_empty() {
        errors.push(FieldError::invalid(METADATA.child("resourceVersion"), "", "must be specified for an update"));
    }
    validate_generation(object, errors);
    if super::generation(object) < super::generation(old) {
        let path = METADATA.child("generation");
        errors.push(FieldError::invalid(path, super::generation(object), "must not be decremented"));
    }
    for field in ["name", "namespace", "uid"] {
        if string(object, field) != string(old, field) {
            errors.push(FieldError::invalid(METADATA.child(field), string(object, field), "field is immutable"));
        }
    }
    for field in ["creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"] {
        let get = |object: &Value| object.get("metadata").and_then(|m| m.get(field)).cloned().unwrap_or(Value::Null);
        validate_immutable(&get(object), &get(old), &METADATA.child(field), errors);
    }
    validate_labels(super::labels(object), &METADATA.child("labels"), errors);
    validate_annotations(super::annotations(object), &METADATA.child("annotations"), errors);
    validate_owner_references(object, errors);
    validate_managed_fields(object, errors);
}

/// `field is immutable` when the two differ; null and absent are the same.
pub fn validate_immutable(new: &Value, old: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    const IMMUTABLE: &str = "field is immutable";
    match new == old {
        true => {}
        // A text that is left out is an empty one.
        false if new.is_null() && old.is_string() => errors.push(FieldError::invalid(path, "", IMMUTABLE)),
        false => errors.push(FieldError::invalid(path, new, IMMUTABLE)),
    }
}

fn string<'a>(object: &'a Value, field: &str) -> &'a str {
    super::metadata(object).and_then(|metadata| metadata.get(field)?.as_str()).unwrap_or_default()
}

fn validate_generation(object: &Value, errors: &mut FieldErrors) {
    let generation = super::generation(object);
    if generation < 0 {
        let path = METADATA.child("generation");
        errors.push(FieldError::invalid(path, generation, "must be greater than or equal to 0"));
    }
}

/// Checks labels.
pub fn validate_labels(labels: Option<&Map<String, Value>>, path: &Path<'_>, errors: &mut FieldErrors) {
    for (key, value) in labels.into_iter().flatten() {
        errors.extend(names::qualified_name(key).iter().map(|m| FieldError::invalid(path, key, m)));
        let value = value.as_str().unwrap_or_default();
        errors.extend(names::label_value(value).iter().map(|m| FieldError::invalid(path, value, m)));
    }
}

/// Checks annotations: keys as of labels in any case, and the size of all.
pub fn validate_annotations(annotations: Option<&Map<String, Value>>, path: &Path<'_>, errors: &mut FieldErrors) {
    let mut bytes = 0;
    for (key, value) in annotations.into_iter().flatten() {
        let messages = names::qualified_name(&key.to_lowercase());
        errors.extend(messages.iter().map(|m| FieldError::invalid(path, key, m)));
        bytes += key.len() + value.as_str().map_or(0, str::len);
    }
    if bytes > ANNOTATIONS_MAX {
        errors.push(FieldError::too_long(path, ANNOTATIONS_MAX));
    }
}

/// Checks finalizers.
pub fn validate_finalizers(finalizers: &[Value], path: &Path<'_>, errors: &mut FieldErrors) {
    for name in finalizers.iter().filter_map(Value::as_str) {
        errors.extend(names::qualified_name(name).iter().map(|m| FieldError::invalid(path, name, m)));
    }
    let has = |name: &str| finalizers.iter().any(|finalizer| finalizer == name);
    if has("orphan") && has("foregroundDeletion") {
        let list = json!(finalizers);
        let words = "finalizer orphan and foregroundDeletion cannot be both set";
        errors.push(FieldError::invalid(path, &list, words));
    }
}

/// Checks `metadata.ownerReferences`.
pub fn validate_owner_references(object: &Value, errors: &mut FieldErrors) {
    let path = METADATA.child("ownerReferences");
    let mut controller: Option<String> = None;
    for (index, owner) in super::owners(object).enumerate() {
        let at = path.index(index);
        let version = match owner.api_version.split_once('/') {
            None => Some(owner.api_version),
            Some((_, version)) => Some(version).filter(|version| !version.is_empty() && !version.contains('/')),
        };
        if owner.api_version.is_empty() {
            errors.push(FieldError::required(at.child("apiVersion"), "must not be empty"));
        } else if version.is_none() {
            let words = "must be <group>/<version> or <version>";
            errors.push(FieldError::invalid(at.child("apiVersion"), owner.api_version, words));
        }
        for (field, value) in [("kind", owner.kind), ("name", owner.name), ("uid", owner.uid)] {
            if value.is_empty() {
                errors.push(FieldError::required(at.child(field), "must not be empty"));
            }
        }
        if owner.api_version == "v1" && owner.kind == "Event" {
            let shown = print_owner(&owner, &super::owner_references(object)[index]);
            errors.push(FieldError::invalid(at, Printed(&shown), "/v1, Kind=Event is disallowed from being an owner"));
        }
        if !owner.controller {
            continue;
        }
        let this = format!("{}/{}", owner.kind, owner.name);
        match &controller {
            None => controller = Some(this),
            // Each of these errors shows all owners; beyond the bound nobody would see it.
            Some(_) if errors.is_full() => errors.push(FieldError::invalid(path, "", "")),
            Some(first) => {
                let list: Vec<String> = super::owners(object)
                    .zip(super::owner_references(object))
                    .map(|(owner, raw)| print_owner(&owner, raw))
                    .collect();
                let shown = format!("[{}]", list.join(","));
                let words = format!(
                    "Only one reference can have Controller set to true. Found \"true\" in references for {first} and \
                     {this}"
                );
                errors.push(FieldError::invalid(path, Printed(&shown), &words));
            }
        }
    }
}

/// An owner as Go's JSON has it: fields in the order of the type.
fn print_owner(owner: &super::OwnerReference<'_>, raw: &Value) -> String {
    let mut out = format!(
        "{{\"apiVersion\":{},\"kind\":{},\"name\":{},\"uid\":{}",
        json!(owner.api_version),
        json!(owner.kind),
        json!(owner.name),
        json!(owner.uid)
    );
    for field in ["controller", "blockOwnerDeletion"] {
        if let Some(flag) = raw.get(field).and_then(Value::as_bool) {
            out.push_str(&format!(",\"{field}\":{flag}"));
        }
    }
    out.push('}');
    out
}

/// Checks `metadata.managedFields`.
pub fn validate_managed_fields(object: &Value, errors: &mut FieldErrors) {
    let entries = object.pointer("/metadata/managedFields").and_then(Value::as_array);
    let path = METADATA.child("managedFields");
    for (index, entry) in entries.into_iter().flatten().enumerate() {
        let at = path.index(index);
        let text = |field: &str| entry.get(field).and_then(Value::as_str).unwrap_or_default();
        match text("operation") {
            "Apply" | "Update" => {}
            "" => errors.push(FieldError::required(at.child("operation"), "must not be empty")),
            other => errors.push(FieldError::not_supported(at.child("operation"), other, &["Apply", "Update"])),
        }
        if !matches!(text("fieldsType"), "" | "FieldsV1") {
            errors.push(FieldError::invalid(at.child("fieldsType"), text("fieldsType"), "must be `FieldsV1`"));
        }
        validate_field_manager(text("manager"), &at.child("manager"), errors);
        if text("subresource").len() > SUBRESOURCE_MAX {
            errors.push(FieldError::too_long(at.child("subresource"), SUBRESOURCE_MAX));
        }
    }
}

/// Checks the name of a field manager; empty is well.
pub fn validate_field_manager(manager: &str, path: &Path<'_>, errors: &mut FieldErrors) {
    if manager.len() > MANAGER_MAX {
        errors.push(FieldError::too_long(path, MANAGER_MAX));
    }
    // Each of these errors shows the whole name, however long it is.
    for (at, c) in manager.char_indices().filter(|(_, c)| !text::is_print(*c)) {
        if errors.is_full() {
            break;
        }
        let words = format!("invalid character U+{:04X} (at position {at})", c as u32);
        errors.push(FieldError::invalid(path, manager, &words));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(errors: &FieldErrors) -> Vec<String> {
        errors.iter().map(FieldError::to_string).collect()
    }

    #[test]
    fn checks_new_metadata() {
        let table: &[(Value, &[&str])] = &[
            (json!({"name": "a", "namespace": "b", "labels": {"x.y/z": "1"}, "finalizers": ["x/y"]}), &[]),
            (json!({"namespace": "b"}), &["metadata.name: Required value: name or generateName is required"]),
            (json!({"name": "a"}), &["metadata.namespace: Required value"]),
            (
                json!({"name": "a", "namespace": "b.c"}),
                &["metadata.namespace: Invalid value: \"b.c\": must not contain dots"],
            ),
            (
                json!({"name": "a", "namespace": "b", "finalizers": ["orphan", "foregroundDeletion"]}),
                &[
                    "metadata.finalizers: Invalid value: [\"orphan\",\"foregroundDeletion\"]: finalizer orphan and foregroundDeletion cannot be both set",
                ],
            ),
            (
                json!({"name": "a", "namespace": "b", "ownerReferences": [
                    {"apiVersion": "v1", "kind": "A", "name": "a", "uid": "1", "controller": true},
                    {"apiVersion": "v1", "kind": "A", "name": "b", "uid": "2", "controller": true}]}),
                &[
                    "metadata.ownerReferences: Invalid value: [{\"apiVersion\":\"v1\",\"kind\":\"A\",\"name\":\"a\",\"uid\":\"1\",\"controller\":true},{\"apiVersion\":\"v1\",\"kind\":\"A\",\"name\":\"b\",\"uid\":\"2\",\"controller\":true}]: Only one reference can have Controller set to true. Found \"true\" in references for A/a and A/b",
                ],
            ),
            (
                json!({"name": "a", "namespace": "b", "ownerReferences": [{"apiVersion": "a/b/c", "kind": "A", "name": ""}]}),
                &[
                    "metadata.ownerReferences[0].apiVersion: Invalid value: \"a/b/c\": must be <group>/<version> or <version>",
                    "metadata.ownerReferences[0].name: Required value: must not be empty",
                    "metadata.ownerReferences[0].uid: Required value: must not be empty",
                ],
            ),
        ];
        for (metadata, expected) in table {
            let mut errors = FieldErrors::new();
            validate_object_meta(&json!({"metadata": metadata}), true, names::name_is_dns_subdomain, &mut errors);
            assert_eq!(shown(&errors), *expected, "{metadata}");
        }
    }

    #[test]
    fn checks_changes_of_metadata() {
        let old = json!({"metadata": {"name": "a", "uid": "1", "resourceVersion": "5", "deletionTimestamp": "2026-01-01T00:00:00Z",
            "finalizers": ["x/y"], "generation": 2}});
        let mut new = old.clone();
        let check = |new: &Value| {
            let mut errors = FieldErrors::new();
            validate_object_meta_update(new, &old, &mut errors);
            shown(&errors)
        };
        assert_eq!(check(&new), Vec::<String>::new());
        new["metadata"]["uid"] = json!("2");
        new["metadata"]["finalizers"] = json!(["x/y", "x/z"]);
        new["metadata"]["generation"] = json!(1);
        drop(new["metadata"].as_object_mut().unwrap().remove("resourceVersion"));
        assert_eq!(
            check(&new),
            [
                "metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers []string{\"x/z\"}",
                "metadata.resourceVersion: Invalid value: \"\": must be specified for an update",
                "metadata.generation: Invalid value: 1: must not be decremented",
                "metadata.uid: Invalid value: \"2\": field is immutable",
            ]
        );
    }
}
