//! Pods as a Job makes them: everything they have in common is encoded once.

use std::borrow::Cow;
use std::collections::BTreeMap;

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Container, EnvVar, EnvVarSource, ObjectFieldSelector};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};

use super::TRACKING;
use super::plan::{Create, is_indexed};
use crate::informer::{COMPLETION_INDEX, INDEX_FAILURES, INDEX_IGNORED_FAILURES};
use crate::workload::generated_name;

/// Variable of a container with its completion index.
const INDEX_VARIABLE: &str = "JOB_COMPLETION_INDEX";
/// Longest prefix of a name that is generated.
const PREFIX_MAX: usize = 58;
/// Characters that are generated behind it.
const GENERATED: usize = 5;

/// What the pods of a Job have in common, with the specification encoded once.
pub(super) struct Template<'a> {
    job: &'a str,
    owner: [OwnerReference; 1],
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    finalizers: Vec<String>,
    /// Of an indexed Job without a hostname, which is each pod's own.
    spec: Box<RawValue>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PodBody<'a> {
    api_version: &'a str,
    kind: &'a str,
    metadata: PodMeta<'a>,
    spec: Cow<'a, RawValue>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PodMeta<'a> {
    name: &'a str,
    generate_name: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    labels: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
    finalizers: &'a [String],
    owner_references: &'a [OwnerReference],
}

impl<'a> Template<'a> {
    pub(super) fn of(job: &'a Job) -> Result<Option<Self>, kube::Error> {
        let Some(spec) = &job.spec else { return Ok(None) };
        let meta = spec.template.metadata.clone().unwrap_or_default();
        let mut pod = spec.template.spec.clone().unwrap_or_default();
        if is_indexed(spec) {
            pod.containers.iter_mut().for_each(add_variable);
            pod.init_containers.iter_mut().flatten().for_each(add_variable);
            pod.hostname = None;
        }
        let mut finalizers = meta.finalizers.unwrap_or_default();
        if !finalizers.iter().any(|finalizer| finalizer == TRACKING) {
            finalizers.push(TRACKING.to_owned());
        }
        Ok(Some(Self {
            job: job.metadata.name.as_deref().unwrap_or_default(),
            owner: [super::owner_reference(job)],
            labels: meta.labels.unwrap_or_default(),
            annotations: meta.annotations.unwrap_or_default(),
            finalizers,
            spec: to_raw_value(&pod).map_err(kube::Error::SerdeError)?,
        }))
    }

    /// A name as the API server would generate one.
    pub(super) fn name(&self, index: Option<u32>) -> String {
        generated_name(&self.prefix(index))
    }

    fn prefix(&self, index: Option<u32>) -> String {
        let Some(index) = index else { return format!("{}-", self.job) };
        let added = format!("-{index}-");
        let kept = self.job.floor_char_boundary(PREFIX_MAX - added.len());
        format!("{}{added}", &self.job[..kept])
    }

    /// The pod of this name.
    pub(super) fn pod<'b>(&'b self, name: &'b str, create: &Create) -> Result<PodBody<'b>, kube::Error> {
        let (mut labels, mut annotations) = (self.labels.clone(), self.annotations.clone());
        let mut spec = Cow::Borrowed(&*self.spec);
        if let Some(index) = create.index {
            labels.insert(COMPLETION_INDEX.to_owned(), index.to_string());
            annotations.insert(COMPLETION_INDEX.to_owned(), index.to_string());
            // Containers follow: the text is never empty. Names of Jobs need no escapes.
            let text = format!("{{\"hostname\":\"{}-{index}\",{}", self.job, &self.spec.get()[1..]);
            spec = Cow::Owned(RawValue::from_string(text).map_err(kube::Error::SerdeError)?);
        }
        if let Some((failures, ignored)) = create.failures {
            annotations.insert(INDEX_FAILURES.to_owned(), failures.to_string());
            if ignored > 0 {
                annotations.insert(INDEX_IGNORED_FAILURES.to_owned(), ignored.to_string());
            }
        }
        let metadata = PodMeta {
            name,
            generate_name: self.prefix(create.index),
            labels,
            annotations,
            finalizers: &self.finalizers,
            owner_references: &self.owner,
        };
        Ok(PodBody { api_version: "v1", kind: "Pod", metadata, spec })
    }
}

/// The completion index of the pod that was given this name.
pub(super) fn index_of(name: &str) -> Option<u32> {
    let prefix = name.get(..name.len().checked_sub(GENERATED)?)?.strip_suffix('-')?;
    prefix.rsplit('-').next()?.parse().ok()
}

/// The index reaches the container by the pod's label, unless the variable has another meaning there.
fn add_variable(container: &mut Container) {
    let variables = container.env.get_or_insert_default();
    if variables.iter().any(|variable| variable.name == INDEX_VARIABLE) {
        return;
    }
    let label = ObjectFieldSelector {
        field_path: format!("metadata.labels['{COMPLETION_INDEX}']"),
        ..ObjectFieldSelector::default()
    };
    variables.push(EnvVar {
        name: INDEX_VARIABLE.to_owned(),
        value_from: Some(EnvVarSource { field_ref: Some(label), ..EnvVarSource::default() }),
        ..EnvVar::default()
    });
}
