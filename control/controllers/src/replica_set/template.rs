//! Pods as a ReplicaSet makes them: everything they have in common is encoded once.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use serde::Serialize;
use serde_json::value::RawValue;

use crate::workload::generated_name;

/// What the pods of a ReplicaSet have in common, with the specification encoded once.
pub(super) struct Template<'a> {
    pub(super) namespace: &'a str,
    prefix: String,
    owner: [OwnerReference; 1],
    labels: Option<&'a BTreeMap<String, String>>,
    annotations: Option<&'a BTreeMap<String, String>>,
    finalizers: Option<&'a Vec<String>>,
    spec: Box<RawValue>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PodBody<'a> {
    api_version: &'a str,
    kind: &'a str,
    metadata: PodMeta<'a>,
    spec: &'a RawValue,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PodMeta<'a> {
    name: &'a str,
    generate_name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    labels: Option<&'a BTreeMap<String, String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    annotations: Option<&'a BTreeMap<String, String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    finalizers: Option<&'a Vec<String>>,
    owner_references: &'a [OwnerReference],
}

impl<'a> Template<'a> {
    pub(super) fn of(set: &'a ReplicaSet) -> Result<Option<Self>, kube::Error> {
        let Some(template) = set.spec.template.as_ref() else { return Ok(None) };
        let meta = template.metadata.as_ref();
        let name = set.metadata.name.as_deref().unwrap_or_default();
        Ok(Some(Self {
            namespace: set.metadata.namespace.as_deref().unwrap_or_default(),
            prefix: format!("{name}-"),
            owner: [super::owner_reference(set)],
            labels: meta.and_then(|meta| meta.labels.as_ref()),
            annotations: meta.and_then(|meta| meta.annotations.as_ref()),
            finalizers: meta.and_then(|meta| meta.finalizers.as_ref()),
            spec: serde_json::value::to_raw_value(&template.spec).map_err(kube::Error::SerdeError)?,
        }))
    }

    /// A name as the API server would generate one.
    pub(super) fn name(&self) -> String {
        generated_name(&self.prefix)
    }

    pub(super) fn pod<'b>(&'b self, name: &'b str) -> PodBody<'b> {
        PodBody {
            api_version: "v1",
            kind: "Pod",
            metadata: PodMeta {
                name,
                generate_name: &self.prefix,
                labels: self.labels,
                annotations: self.annotations,
                finalizers: self.finalizers,
                owner_references: &self.owner,
            },
            spec: &self.spec,
        }
    }
}
