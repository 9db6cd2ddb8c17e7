//! What a server says of itself: which group versions it serves, and the range that the addresses of Services come from.

use serde_json::{Value, json};

use crate::admission::network;
use crate::discovery::SERVED;

/// An APIService for each group version. All of them are served here.
pub(super) fn api_services() -> impl Iterator<Item = (&'static str, Value)> {
    SERVED.iter().filter_map(|(name, (of_group, of_version))| {
        let (version, group) = name.split_once('.')?;
        let mut spec = json!({"version": version, "groupPriorityMinimum": of_group, "versionPriority": of_version});
        if !group.is_empty() {
            spec["group"] = group.into();
        }
        let object = json!({
            "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
            "metadata": {"name": name, "labels": {"kube-aggregator.kubernetes.io/automanaged": "onstart"}},
            "spec": spec,
        });
        Some((*name, object))
    })
}

/// The one range that addresses are given out of.
pub(super) fn service_range() -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "kubernetes"},
        "spec": {"cidrs": [network::range()]},
    })
}

/// A range that says so, since it was made.
pub(super) fn ready(range: &Value) -> Value {
    let mut range = range.clone();
    range["status"] = json!({"conditions": [{
        "type": "Ready", "status": "True", "reason": "", "message": "Kubernetes Service CIDR is ready",
        "lastTransitionTime": range["metadata"]["creationTimestamp"],
    }]});
    range
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_group_version_that_is_served_is_named() {
        let named: BTreeSet<&str> = api_services().map(|(name, _)| name).collect();
        // Their objects are answered and not stored.
        let reviews = ["v1.authentication.k8s.io", "v1.authorization.k8s.io"].map(str::to_owned);
        let stored = coracle_api::kinds::all().iter().filter(|row| row.group != "apiregistration.k8s.io");
        let served: BTreeSet<String> =
            stored.map(|row| format!("{}.{}", row.version, row.group)).chain(reviews).collect();
        assert_eq!(named, served.iter().map(String::as_str).collect());
    }
}
