//! Claims and volumes: the class of a claim that names none (DefaultStorageClass), who keeps them from going while they are used
//! (StorageObjectInUseProtection), and which claims may grow (PersistentVolumeClaimResize).

use std::cmp::Reverse;

use coracle_api::meta::{self, Quantity};
use coracle_api::status::Status;
use coracle_api::volumes::{CLAIM_PROTECTION, CLASS, IS_DEFAULT, VOLUME_PROTECTION};
use serde_json::Value;

use super::Attributes;
use crate::cluster::Cluster;
use crate::store::{self, Seen};

/// The same annotation as people wrote it before.
const WAS_DEFAULT: &str = "storageclass.beta.kubernetes.io/is-default-class";

pub(super) fn create_claim(at: &Attributes<'_>, claim: &mut Value) -> Result<(), Status> {
    protect(claim, CLAIM_PROTECTION);
    if !claim["spec"]["storageClassName"].is_null() || !claim["metadata"]["annotations"][CLASS].is_null() {
        return Ok(());
    }
    if let Some(class) = default(at.cluster)?.filter(|_| claim["spec"].is_object()) {
        claim["spec"]["storageClassName"] = class.into();
    }
    Ok(())
}

pub(super) fn create_volume(volume: &mut Value) {
    protect(volume, VOLUME_PROTECTION);
}

fn protect(object: &mut Value, finalizer: &str) {
    if meta::finalizers(object).any(|name| name == finalizer) {
        return;
    }
    let all: Vec<Value> = meta::finalizers(object).chain([finalizer]).map(Value::from).collect();
    meta::metadata_mut(object).insert("finalizers".to_owned(), all.into());
}

/// The class of claims that name none: the newest of those that are said to be it, and of equally new ones the first by name.
pub(crate) fn default(cluster: &Cluster) -> Result<Option<String>, Status> {
    let Some(classes) = cluster.catalog.named("storage.k8s.io", "storageclasses") else { return Ok(None) };
    let snapshot = cluster.store.keyspace.snapshot(classes.row.collection());
    let mut defaults = Vec::new();
    for (_, record) in store::range(&snapshot.records, None, None) {
        let class = Seen::new(classes, record).stored()?;
        if [IS_DEFAULT, WAS_DEFAULT].iter().any(|name| class["metadata"]["annotations"][*name] == "true") {
            let made = class["metadata"]["creationTimestamp"].as_str().unwrap_or_default().to_owned();
            defaults.push((Reverse(made), meta::name(&class).to_owned()));
        }
    }
    Ok(defaults.into_iter().min().map(|(_, name)| name))
}

/// Whether a claim may be as large as it is to be.
pub(super) fn resize(at: &Attributes<'_>, claim: &Value, old: &Value) -> Result<(), Status> {
    let size = |claim: &Value| Quantity::from_json(&claim["spec"]["resources"]["requests"]["storage"]).ok();
    if size(claim) <= size(old) {
        return Ok(());
    }
    let refused = |why: &str| Err(at.resource.forbidden(meta::name(claim), why.to_owned()));
    if old["status"]["phase"] != "Bound" {
        return refused("Only bound persistent volume claims can be expanded");
    }
    match (class_of(claim), class_of(old)) {
        (Some(class), Some(before)) if class == before && is_expandable(at.cluster, class)? => Ok(()),
        _ => refused(
            "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize",
        ),
    }
}

fn class_of(claim: &Value) -> Option<&str> {
    let noted = claim["metadata"]["annotations"][CLASS].as_str();
    noted.or_else(|| claim["spec"]["storageClassName"].as_str()).filter(|class| !class.is_empty())
}

fn is_expandable(cluster: &Cluster, class: &str) -> Result<bool, Status> {
    let Some(classes) = cluster.catalog.named("storage.k8s.io", "storageclasses") else { return Ok(false) };
    let Some(record) = cluster.store.get(classes, class) else { return Ok(false) };
    Ok(Seen::new(classes, &record).stored()?["allowVolumeExpansion"] == true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_protected_is_so_once() {
        let mut claim = json!({"metadata": {"finalizers": ["a/b"]}});
        protect(&mut claim, CLAIM_PROTECTION);
        protect(&mut claim, CLAIM_PROTECTION);
        assert_eq!(claim["metadata"]["finalizers"], json!(["a/b", CLAIM_PROTECTION]));
        let mut bare = json!({"metadata": {}});
        create_volume(&mut bare);
        assert_eq!(bare["metadata"]["finalizers"], json!([VOLUME_PROTECTION]));
    }
}
