//! Metadata without what is never looked at, which is most of it: `managedFields` and annotations are skipped while
//! decoding instead of being dropped afterwards.

use std::borrow::Cow;
use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use kube::discovery::ApiResource;
use serde::{Deserialize, Deserializer};

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Slim {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<Annotations>,
    owner_references: Option<Vec<OwnerReference>>,
    finalizers: Option<Vec<String>>,
    creation_timestamp: Option<Time>,
    deletion_timestamp: Option<Time>,
    deletion_grace_period_seconds: Option<i64>,
}

/// The annotations that controllers read.
macro_rules! annotations {
    ($($field:ident $constant:ident = $name:literal;)*) => {
        $(pub(crate) const $constant: &str = $name;)*

        #[derive(Deserialize, Default)]
        #[serde(default)]
        struct Annotations {
            $(#[serde(rename = $name)] $field: Option<String>,)*
        }

        impl Annotations {
            fn into_map(self) -> BTreeMap<String, String> {
                let named = [$(($constant, self.$field),)*];
                named.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
            }
        }
    };
}

annotations! {
    deletion_cost DELETION_COST = "controller.kubernetes.io/pod-deletion-cost";
    // The end of a streamed list.
    initial_events_end INITIAL_EVENTS_END = "k8s.io/initial-events-end";
    completion_index COMPLETION_INDEX = "batch.kubernetes.io/job-completion-index";
    index_failures INDEX_FAILURES = "batch.kubernetes.io/job-index-failure-count";
    index_ignored_failures INDEX_IGNORED_FAILURES = "batch.kubernetes.io/job-index-ignored-failure-count";
}

/// For `#[serde(deserialize_with)]` on `metadata`.
pub(crate) fn slim<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    let slim = Slim::deserialize(deserializer)?;
    let annotations = slim.annotations.map(Annotations::into_map);
    Ok(ObjectMeta {
        name: slim.name,
        namespace: slim.namespace,
        uid: slim.uid,
        resource_version: slim.resource_version,
        labels: slim.labels,
        annotations,
        owner_references: slim.owner_references,
        finalizers: slim.finalizers,
        creation_timestamp: slim.creation_timestamp,
        deletion_timestamp: slim.deletion_timestamp,
        deletion_grace_period_seconds: slim.deletion_grace_period_seconds,
        ..ObjectMeta::default()
    })
}

/// Metadata of an object of any kind, requested as `PartialObjectMetadata`.
#[derive(Deserialize, Clone, Debug)]
pub(crate) struct AnyObject {
    #[serde(deserialize_with = "slim", default)]
    pub metadata: ObjectMeta,
}

impl kube::Resource for AnyObject {
    type DynamicType = ApiResource;
    type Scope = kube::core::DynamicResourceScope;

    fn kind(resource: &ApiResource) -> Cow<'_, str> {
        resource.kind.as_str().into()
    }

    fn group(resource: &ApiResource) -> Cow<'_, str> {
        resource.group.as_str().into()
    }

    fn version(resource: &ApiResource) -> Cow<'_, str> {
        resource.version.as_str().into()
    }

    fn plural(resource: &ApiResource) -> Cow<'_, str> {
        resource.plural.as_str().into()
    }

    fn metadata_api() -> bool {
        true
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}
