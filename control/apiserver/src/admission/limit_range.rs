//! LimitRange: containers get what they do not say they need, and pods and claims keep to the bounds of their namespace
//! (the reference's plugin LimitRanger).

use coracle_api::kinds::limits;
use coracle_api::meta;
use coracle_api::status::Status;
use serde_json::Value;

use super::Attributes;
use crate::store::{self, Seen};

/// The ranges of the namespace, in the order of their names. Without any in the cluster it costs nothing.
fn ranges(at: &Attributes<'_>) -> Result<Vec<Value>, Status> {
    let (Some(ranges), Some(namespace)) = (at.cluster.catalog.named("", "limitranges"), at.namespace) else {
        return Ok(Vec::new());
    };
    let records = at.cluster.store.keyspace.snapshot(ranges.row.collection()).records;
    if records.is_empty() {
        return Ok(Vec::new());
    }
    store::range(&records, Some(namespace), None).map(|(_, record)| Seen::new(ranges, record).stored()).collect()
}

/// Completes a pod that is new or resized; what its containers are is settled otherwise.
pub(super) fn complete(at: &Attributes<'_>, pod: &mut Value) -> Result<(), Status> {
    for range in ranges(at)? {
        limits::set_defaults(&range, pod);
    }
    Ok(())
}

/// Refuses what is out of bounds.
pub(super) fn validate(at: &Attributes<'_>, object: &Value, old: Option<&Value>) -> Result<(), Status> {
    type Refuse = fn(&Value, &Value) -> Option<String>;
    let refuse: Refuse = match (at.resource.row.group(), at.resource.row.resource(), at.subresource) {
        ("", "pods", "") if old.is_none() => limits::refuse_pod,
        ("", "pods", "resize") => limits::refuse_pod,
        ("", "persistentvolumeclaims", "") => limits::refuse_claim,
        _ => return Ok(()),
    };
    if old.is_some_and(meta::is_deleting) {
        return Ok(());
    }
    match ranges(at)?.iter().find_map(|range| refuse(range, object)) {
        Some(why) => Err(at.resource.forbidden(meta::name(object), why)),
        None => Ok(()),
    }
}
