//! Reading `metadata` of an object. What is absent reads as empty, as in Go.

use jiff::Timestamp;
use serde_json::{Map, Value};

use super::time;

/// An owner, as far as it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OwnerReference<'a> {
    /// As `apps/v1`.
    pub api_version: &'a str,
    /// Its kind.
    pub kind: &'a str,
    /// Its name.
    pub name: &'a str,
    /// Its uid.
    pub uid: &'a str,
    /// Whether it controls the object.
    pub controller: bool,
    /// Whether its deletion in the foreground waits for the object.
    pub block_owner_deletion: bool,
}

/// Its metadata.
pub fn metadata(object: &Value) -> Option<&Map<String, Value>> {
    object.get("metadata")?.as_object()
}

/// Its metadata to write to, made when there is none. What is no object becomes one.
pub fn metadata_mut(object: &mut Value) -> &mut Map<String, Value> {
    map_mut(map_mut(object).entry("metadata").or_insert(Value::Null))
}

fn map_mut(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    match value {
        Value::Object(map) => map,
        _ => unreachable!("it was made an object"),
    }
}

fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    metadata(object).and_then(|metadata| metadata.get(field)?.as_str()).unwrap_or_default()
}

/// `metadata.name`.
pub fn name(object: &Value) -> &str {
    text(object, "name")
}

/// `metadata.namespace`; empty for what lives in none.
pub fn namespace(object: &Value) -> &str {
    text(object, "namespace")
}

/// `metadata.uid`.
pub fn uid(object: &Value) -> &str {
    text(object, "uid")
}

/// `metadata.resourceVersion`.
pub fn resource_version(object: &Value) -> &str {
    text(object, "resourceVersion")
}

/// Sets `metadata.resourceVersion`.
pub fn set_resource_version(object: &mut Value, revision: u64) {
    metadata_mut(object).insert("resourceVersion".to_owned(), Value::String(revision.to_string()));
}

/// `metadata.generation`, 0 when there is none.
pub fn generation(object: &Value) -> i64 {
    metadata(object).and_then(|metadata| metadata.get("generation")?.as_i64()).unwrap_or_default()
}

/// `metadata.labels`.
pub fn labels(object: &Value) -> Option<&Map<String, Value>> {
    metadata(object)?.get("labels")?.as_object()
}

/// One label.
pub fn label<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    labels(object)?.get(key)?.as_str()
}

/// `metadata.annotations`.
pub fn annotations(object: &Value) -> Option<&Map<String, Value>> {
    metadata(object)?.get("annotations")?.as_object()
}

/// One annotation.
pub fn annotation<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    annotations(object)?.get(key)?.as_str()
}

/// `metadata.finalizers`.
pub fn finalizers(object: &Value) -> impl Iterator<Item = &str> {
    list(object, "finalizers").iter().filter_map(Value::as_str)
}

fn list<'a>(object: &'a Value, field: &str) -> &'a [Value] {
    metadata(object).and_then(|metadata| metadata.get(field)?.as_array()).map_or(&[], Vec::as_slice)
}

/// `metadata.ownerReferences` as they are.
pub fn owner_references(object: &Value) -> &[Value] {
    list(object, "ownerReferences")
}

/// `metadata.ownerReferences`, read.
pub fn owners(object: &Value) -> impl Iterator<Item = OwnerReference<'_>> {
    owner_references(object).iter().map(owner)
}

/// The owner that controls the object.
pub fn controller_of(object: &Value) -> Option<OwnerReference<'_>> {
    owners(object).find(|owner| owner.controller)
}

fn owner(reference: &Value) -> OwnerReference<'_> {
    let text = |field: &str| reference.get(field).and_then(Value::as_str).unwrap_or_default();
    let flag = |field: &str| reference.get(field).and_then(Value::as_bool).unwrap_or_default();
    OwnerReference {
        api_version: text("apiVersion"),
        kind: text("kind"),
        name: text("name"),
        uid: text("uid"),
        controller: flag("controller"),
        block_owner_deletion: flag("blockOwnerDeletion"),
    }
}

/// `metadata.creationTimestamp`.
pub fn creation_time(object: &Value) -> Option<Timestamp> {
    time::parse(text(object, "creationTimestamp"))
}

/// `metadata.deletionTimestamp`.
pub fn deletion_time(object: &Value) -> Option<Timestamp> {
    time::parse(text(object, "deletionTimestamp"))
}

/// Whether its deletion was asked for.
pub fn is_deleting(object: &Value) -> bool {
    metadata(object).and_then(|metadata| metadata.get("deletionTimestamp")).is_some_and(|time| !time.is_null())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn reads_metadata() {
        let pod = json!({"metadata": {"name": "a", "labels": {"k": "v"}, "finalizers": ["x/y"], "generation": 3,
            "ownerReferences": [{"kind": "A", "uid": "1"}, {"kind": "B", "uid": "2", "controller": true}],
            "creationTimestamp": "2026-11-22T10:00:00Z", "deletionTimestamp": null}});
        assert_eq!((name(&pod), namespace(&pod), generation(&pod)), ("a", "", 3));
        assert_eq!((label(&pod, "k"), annotation(&pod, "k")), (Some("v"), None));
        assert_eq!(finalizers(&pod).collect::<Vec<_>>(), ["x/y"]);
        assert_eq!(controller_of(&pod).map(|owner| owner.uid), Some("2"));
        assert!(!is_deleting(&pod) && creation_time(&pod).is_some());
        let mut nothing = json!(1);
        set_resource_version(&mut nothing, 7);
        assert_eq!(resource_version(&nothing), "7");
        assert_eq!(name(&json!([1])), "");
    }
}
