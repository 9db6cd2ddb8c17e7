//! A Service's endpoints are its pods, and ready are those that are.
//!
//! Kubernetes' EndpointSlice controller (KEP-752): `conditions.ready` is the pod's Ready condition unless it is being deleted.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{called, lives};

/// Whether a pod says that it is ready.
pub fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let says = conditions.iter().any(|known| known["type"] == "Ready" && known["status"] == "True");
    says && lives(pod) && pod["metadata"]["deletionTimestamp"].is_null()
}

/// Compares a Service's slices with its pods.
pub fn judge(service: &Value, slices: &[Value], pods: &[Value]) -> Result<(), String> {
    let Some(selector) = service["spec"]["selector"].as_object() else { return Ok(()) };
    let selected = |pod: &&Value| selector.iter().all(|(name, value)| pod["metadata"]["labels"][name] == *value);
    let with_address = |pod: &&Value| pod["status"]["podIP"].is_string() && lives(pod);
    let expected: BTreeMap<&str, bool> = pods
        .iter()
        .filter(selected)
        .filter(with_address)
        .filter_map(|pod| Some((pod["status"]["podIP"].as_str()?, is_ready(pod))))
        .collect();
    let of_service = slices
        .iter()
        .filter(|slice| slice["metadata"]["labels"]["kubernetes.io/service-name"] == service["metadata"]["name"]);
    let endpoints = of_service.flat_map(|slice| slice["endpoints"].as_array().into_iter().flatten());
    let found: BTreeMap<&str, bool> = endpoints
        .filter_map(|endpoint| Some((endpoint["addresses"][0].as_str()?, endpoint["conditions"]["ready"] == true)))
        .collect();
    match found == expected {
        true => Ok(()),
        false => Err(format!("Service {} has the endpoints {found:?}, not {expected:?}", called(service))),
    }
}
