//! Pod templates: their equality, and pods as workloads make them.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use serde::Serialize;

use super::generated_name;

/// The template as it is compared: empty maps as absent ones.
pub(crate) fn normal(template: &PodTemplateSpec) -> PodTemplateSpec {
    let mut template = template.clone();
    if let Some(meta) = &mut template.metadata {
        meta.labels = meta.labels.take().filter(|labels| !labels.is_empty());
        meta.annotations = meta.annotations.take().filter(|annotations| !annotations.is_empty());
        meta.creation_timestamp = None;
    }
    template.metadata = template.metadata.filter(|meta| *meta != Default::default());
    template
}

/// What the pods of a workload have in common, but for the specification.
pub(crate) struct Template<'a> {
    prefix: String,
    owner: [OwnerReference; 1],
    labels: Option<&'a BTreeMap<String, String>>,
    annotations: Option<&'a BTreeMap<String, String>>,
    finalizers: Option<&'a Vec<String>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PodBody<'a, S> {
    api_version: &'a str,
    kind: &'a str,
    metadata: PodMeta<'a>,
    spec: S,
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
    /// The template of the workload of this name.
    pub(crate) fn of(name: &str, owner: OwnerReference, template: &'a PodTemplateSpec) -> Self {
        let meta = template.metadata.as_ref();
        Self {
            prefix: format!("{name}-"),
            owner: [owner],
            labels: meta.and_then(|meta| meta.labels.as_ref()),
            annotations: meta.and_then(|meta| meta.annotations.as_ref()),
            finalizers: meta.and_then(|meta| meta.finalizers.as_ref()),
        }
    }

    /// A name as the API server would generate one.
    pub(crate) fn name(&self) -> String {
        generated_name(&self.prefix)
    }

    pub(crate) fn pod<'b, S: Serialize>(&'b self, name: &'b str, spec: S) -> PodBody<'b, S> {
        self.pod_with(name, self.labels, spec)
    }

    /// A pod with labels of its own.
    pub(crate) fn pod_with<'b, S: Serialize>(
        &'b self,
        name: &'b str,
        labels: Option<&'b BTreeMap<String, String>>,
        spec: S,
    ) -> PodBody<'b, S> {
        PodBody {
            api_version: "v1",
            kind: "Pod",
            metadata: PodMeta {
                name,
                generate_name: &self.prefix,
                labels,
                annotations: self.annotations,
                finalizers: self.finalizers,
                owner_references: &self.owner,
            },
            spec,
        }
    }
}
