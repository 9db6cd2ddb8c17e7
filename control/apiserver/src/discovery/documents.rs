//! The documents of discovery.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::model::{Entry, Group, Part, Version};

/// As `apps/v1`, and `v1` in the core group.
fn group_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

/// An APIGroup; alone it says what it is.
pub(super) fn group(group: &Group, alone: bool) -> Value {
    let one = |version: &Version| json!({"groupVersion": group_version(&group.name, &version.version), "version": &*version.version});
    let versions: Vec<Value> = group.versions.iter().map(one).collect();
    let mut document = json!({"name": &*group.name, "preferredVersion": versions.first(), "versions": versions});
    if alone {
        document["kind"] = "APIGroup".into();
        document["apiVersion"] = "v1".into();
    }
    document
}

/// An APIResourceList.
pub(super) fn resources(group: &Group, version: &Version) -> Value {
    let mut list = Vec::new();
    for entry in &version.resources {
        let mut resource = json!({
            "name": &*entry.name, "singularName": &*entry.singular, "namespaced": entry.namespaced, "kind": &*entry.kind,
            "verbs": entry.verbs,
        });
        if !entry.short_names.is_empty() {
            resource["shortNames"] = strings(&entry.short_names);
        }
        if !entry.categories.is_empty() {
            resource["categories"] = strings(&entry.categories);
        }
        if let Some(stored) = &entry.stored {
            resource["storageVersionHash"] = storage_hash(&group.name, stored, &entry.kind).into();
        }
        list.push(resource);
        for part in &entry.subresources {
            let mut resource = json!({
                "name": format!("{}/{}", entry.name, part.name), "singularName": "", "namespaced": entry.namespaced,
                "kind": &*part.kind, "verbs": part.verbs,
            });
            if let Some((group, version)) = part.foreign {
                resource["group"] = group.into();
                resource["version"] = version.into();
            }
            list.push(resource);
        }
    }
    let mut document = json!({
        "kind": "APIResourceList", "groupVersion": group_version(&group.name, &version.version), "resources": list,
    });
    // The core group's is as old as a time when it said nothing of itself.
    if !group.name.is_empty() {
        document["apiVersion"] = "v1".into();
    }
    document
}

fn strings(all: &[Arc<str>]) -> Value {
    all.iter().map(|text| Value::from(&**text)).collect()
}

fn storage_hash(group: &str, version: &str, kind: &str) -> String {
    STANDARD.encode(&Sha256::digest(format!("{group}/{version}/{kind}"))[..8])
}

/// An APIGroupDiscoveryList.
pub(super) fn aggregated<'a>(groups: impl Iterator<Item = &'a Group>) -> Value {
    let items: Vec<Value> = groups
        .map(|group| {
            let versions: Vec<Value> = group
                .versions
                .iter()
                .map(|version| {
                    let mut one = json!({"version": &*version.version, "freshness": "Current"});
                    let resources: Vec<Value> = match &version.remote {
                        None => version.resources.iter().map(|entry| aggregated_entry(group, version, entry)).collect(),
                        Some(told) => {
                            if !told.is_current {
                                one["freshness"] = "Stale".into();
                            }
                            told.resources.clone()
                        }
                    };
                    if version.remote.is_none() || !resources.is_empty() {
                        one["resources"] = resources.into();
                    }
                    one
                })
                .collect();
            let metadata = if group.name.is_empty() { json!({}) } else { json!({ "name": &*group.name }) };
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items})
}

fn aggregated_entry(group: &Group, version: &Version, entry: &Entry) -> Value {
    let part = |part: &Part| {
        let (group, version): (&str, &str) = part.foreign.unwrap_or((&group.name, &version.version));
        json!({
            "subresource": part.name, "verbs": part.verbs,
            "responseKind": {"group": group, "version": version, "kind": &*part.kind},
        })
    };
    let mut resource = json!({
        "resource": &*entry.name, "singularResource": &*entry.singular, "verbs": entry.verbs,
        "scope": if entry.namespaced { "Namespaced" } else { "Cluster" },
        "responseKind": {"group": &*group.name, "version": &*version.version, "kind": &*entry.kind},
    });
    if !entry.short_names.is_empty() {
        resource["shortNames"] = strings(&entry.short_names);
    }
    if !entry.categories.is_empty() {
        resource["categories"] = strings(&entry.categories);
    }
    if !entry.subresources.is_empty() {
        resource["subresources"] = entry.subresources.iter().map(part).collect();
    }
    resource
}
