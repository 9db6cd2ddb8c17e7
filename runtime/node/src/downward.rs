//! The downward API: fields and resources of a pod, for its environment and its volumes.

use std::collections::BTreeMap;
use std::net::IpAddr;

use coracle_api::meta::text::quote;
use k8s_openapi::api::core::v1::{Container, Pod, ResourceFieldSelector};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::pod::core::all_specs;
use crate::quantity;

/// A field that a pod does not have.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FieldError {
    /// Not a field of the downward API.
    #[error("unsupported fieldPath: {0}")]
    Field(String),
    /// Not a resource of the downward API.
    #[error("unsupported container resource : {0}")]
    Resource(String),
    /// There is no such container.
    #[error("container {0} not found")]
    Container(String),
    /// A quantity is none.
    #[error("invalid quantity for {0}")]
    Quantity(String),
}

/// A pod as the downward API shows it.
#[derive(Debug, Clone, Copy)]
pub struct Downward<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// Its address.
    pub pod_ip: IpAddr,
    /// The node's address.
    pub host_ip: IpAddr,
    /// What the node has to give: `cpu` in thousandths, `memory` and `ephemeral-storage` in bytes. It stands in for limits
    /// that are not set.
    pub allocatable: &'a BTreeMap<&'static str, u64>,
}

impl Downward<'_> {
    /// The value of `fieldRef.fieldPath`.
    pub fn field(&self, path: &str) -> Result<String, FieldError> {
        let metadata = &self.pod.metadata;
        let spec = self.pod.spec.as_ref();
        let given = |value: Option<&String>| value.cloned().unwrap_or_default();
        if let Some((map, key)) = path.strip_suffix("']").and_then(|path| path.split_once("['")) {
            let map = match map {
                "metadata.labels" => &metadata.labels,
                "metadata.annotations" => &metadata.annotations,
                _ => return Err(FieldError::Field(path.to_owned())),
            };
            return Ok(given(map.as_ref().and_then(|map| map.get(key))));
        }
        Ok(match path {
            "metadata.name" => given(metadata.name.as_ref()),
            "metadata.namespace" => given(metadata.namespace.as_ref()),
            "metadata.uid" => given(metadata.uid.as_ref()),
            "metadata.labels" => lines(metadata.labels.as_ref()),
            "metadata.annotations" => lines(metadata.annotations.as_ref()),
            "spec.nodeName" => given(spec.and_then(|spec| spec.node_name.as_ref())),
            "spec.serviceAccountName" => given(spec.and_then(|spec| spec.service_account_name.as_ref())),
            "status.hostIP" | "status.hostIPs" => self.host_ip.to_string(),
            "status.podIP" | "status.podIPs" => self.pod_ip.to_string(),
            _ => return Err(FieldError::Field(path.to_owned())),
        })
    }

    /// The value of `resourceFieldRef`, of the named container or of `own`.
    pub fn resource(&self, selector: &ResourceFieldSelector, own: Option<&str>) -> Result<String, FieldError> {
        let name = selector.container_name.as_deref().filter(|name| !name.is_empty()).or(own).unwrap_or("");
        let container = all_specs(self.pod).find(|container| container.name == name);
        let container = container.ok_or_else(|| FieldError::Container(name.to_owned()))?;
        let unsupported = || FieldError::Resource(selector.resource.clone());
        let (kind, resource) = selector.resource.split_once('.').ok_or_else(unsupported)?;
        let known = ["cpu", "memory", "ephemeral-storage"].contains(&resource);
        let value = match kind {
            "limits" if known => self.limit(&container, resource),
            "requests" if known => given(&container, resource, false).unwrap_or_else(|| Quantity("0".to_owned())),
            _ => return Err(unsupported()),
        };
        let divisor = selector.divisor.clone().filter(|divisor| quantity::millis(divisor) != Some(0));
        let divisor = divisor.unwrap_or_else(|| Quantity("1".to_owned()));
        let divided =
            quantity::divided(&value, &divisor).ok_or_else(|| FieldError::Quantity(selector.resource.clone()))?;
        Ok(divided.to_string())
    }

    fn limit(&self, container: &Container, resource: &str) -> Quantity {
        given(container, resource, true).unwrap_or_else(|| {
            let suffix = if resource == "cpu" { "m" } else { "" };
            Quantity(format!("{}{suffix}", self.allocatable.get(resource).copied().unwrap_or(0)))
        })
    }
}

fn given(container: &Container, resource: &str, limit: bool) -> Option<Quantity> {
    let resources = container.resources.as_ref()?;
    let map = if limit { resources.limits.as_ref()? } else { resources.requests.as_ref()? };
    map.get(resource).cloned()
}

/// `key="value"` lines, sorted, values quoted as Go does.
fn lines(map: Option<&BTreeMap<String, String>>) -> String {
    let lines: Vec<String> = map.into_iter().flatten().map(|(key, value)| format!("{key}={}", quote(value))).collect();
    lines.join("\n")
}
