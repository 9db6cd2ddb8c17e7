//! Pods and nodes as they come over the wire: only what decides where a pod goes.
//!
//! The parts of a specification are plain values with equality and hash, so that pods which are alike are found to be
//! alike ([`crate::class`]).

use std::borrow::Cow;
use std::collections::BTreeMap;

use coracle_tolerant::nullable;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde::{Deserialize, Deserializer};

pub(crate) type Labels = BTreeMap<String, String>;

/// Metadata without what is never looked at: it is skipped while decoding.
fn slim<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    #[derive(Deserialize, Default)]
    #[serde(rename_all = "camelCase", default)]
    struct Slim {
        name: Option<String>,
        namespace: Option<String>,
        uid: Option<String>,
        resource_version: Option<String>,
        generation: Option<i64>,
        labels: Option<Labels>,
        owner_references: Option<Vec<k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference>>,
        creation_timestamp: Option<Time>,
        deletion_timestamp: Option<Time>,
    }
    let slim = Slim::deserialize(deserializer)?;
    Ok(ObjectMeta {
        name: slim.name,
        namespace: slim.namespace,
        uid: slim.uid,
        resource_version: slim.resource_version,
        generation: slim.generation,
        labels: slim.labels,
        owner_references: slim.owner_references,
        creation_timestamp: slim.creation_timestamp,
        deletion_timestamp: slim.deletion_timestamp,
        ..ObjectMeta::default()
    })
}

/// Metadata with its annotations, of kinds that are bound by them.
fn annotated<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    let mut metadata = ObjectMeta::deserialize(deserializer)?;
    metadata.managed_fields = None;
    Ok(metadata)
}

/// A pod.
#[derive(Deserialize, Clone, Debug)]
pub(crate) struct Pod {
    #[serde(deserialize_with = "slim", default)]
    pub metadata: ObjectMeta,
    #[serde(default, deserialize_with = "nullable")]
    pub spec: PodSpec,
    #[serde(default, deserialize_with = "nullable")]
    pub status: PodStatus,
}

#[derive(Deserialize, Clone, Debug, Default)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct PodSpec {
    pub node_name: Option<String>,
    pub scheduler_name: Option<String>,
    pub priority: Option<i32>,
    pub preemption_policy: Option<String>,
    #[serde(deserialize_with = "nullable")]
    pub node_selector: Labels,
    pub affinity: Option<Affinity>,
    #[serde(deserialize_with = "nullable")]
    pub tolerations: Vec<Toleration>,
    #[serde(deserialize_with = "nullable")]
    pub topology_spread_constraints: Vec<SpreadConstraint>,
    #[serde(deserialize_with = "nullable")]
    pub containers: Vec<Container>,
    #[serde(deserialize_with = "nullable")]
    pub init_containers: Vec<Container>,
    #[serde(deserialize_with = "nullable")]
    pub overhead: BTreeMap<String, String>,
    pub resources: Option<Resources>,
    #[serde(deserialize_with = "nullable")]
    pub scheduling_gates: Vec<serde::de::IgnoredAny>,
    #[serde(deserialize_with = "nullable")]
    pub host_network: bool,
    #[serde(deserialize_with = "nullable")]
    pub volumes: Vec<PodVolume>,
}

/// A volume of a pod, of which only those with a claim matter.
#[derive(Deserialize, Clone, Debug, Default)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct PodVolume {
    #[serde(deserialize_with = "nullable")]
    pub name: String,
    pub persistent_volume_claim: Option<ClaimSource>,
    pub ephemeral: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize, Clone, Debug, Default)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ClaimSource {
    #[serde(deserialize_with = "nullable")]
    pub claim_name: String,
}

#[derive(Deserialize, Clone, Debug, Default)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct PodStatus {
    pub phase: Option<String>,
    pub start_time: Option<String>,
    pub nominated_node_name: Option<String>,
    #[serde(deserialize_with = "nullable")]
    pub conditions: Vec<Condition>,
    #[serde(deserialize_with = "nullable")]
    pub container_statuses: Vec<ContainerStatus>,
    #[serde(deserialize_with = "nullable")]
    pub init_container_statuses: Vec<ContainerStatus>,
}

/// What a container was given, and has.
#[derive(Deserialize, Clone, Debug, Default)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ContainerStatus {
    #[serde(deserialize_with = "nullable")]
    pub name: String,
    pub allocated_resources: Option<BTreeMap<String, String>>,
    pub resources: Option<ActualResources>,
}

#[derive(Deserialize, Clone, Debug, Default)]
#[serde(default)]
pub(crate) struct ActualResources {
    pub requests: Option<BTreeMap<String, String>>,
}

/// A condition of a pod or a node.
#[derive(Deserialize, Clone, Debug, Default)]
#[serde(default)]
pub(crate) struct Condition {
    #[serde(rename = "type", deserialize_with = "nullable")]
    pub type_: String,
    #[serde(deserialize_with = "nullable")]
    pub status: String,
    pub reason: Option<String>,
    pub message: Option<String>,
}

#[derive(Deserialize, Clone, Debug, Default)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Container {
    #[serde(deserialize_with = "nullable")]
    pub name: String,
    #[serde(deserialize_with = "nullable")]
    pub resources: Resources,
    #[serde(deserialize_with = "nullable")]
    pub ports: Vec<ContainerPort>,
    pub restart_policy: Option<String>,
}

#[derive(Deserialize, Clone, Debug, Default)]
#[serde(default)]
pub(crate) struct Resources {
    #[serde(deserialize_with = "nullable")]
    pub requests: BTreeMap<String, String>,
}

#[derive(Deserialize, Clone, Debug, Default)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ContainerPort {
    #[serde(deserialize_with = "nullable")]
    pub container_port: u16,
    #[serde(deserialize_with = "nullable")]
    pub host_port: u16,
    #[serde(rename = "hostIP")]
    pub host_ip: Option<String>,
    pub protocol: Option<String>,
}

/// `spec.affinity`.
#[derive(Deserialize, Clone, Debug, Default, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Affinity {
    #[serde(deserialize_with = "nullable")]
    pub node_affinity: NodeAffinity,
    #[serde(deserialize_with = "nullable")]
    pub pod_affinity: PodAffinity,
    #[serde(deserialize_with = "nullable")]
    pub pod_anti_affinity: PodAffinity,
}

#[derive(Deserialize, Clone, Debug, Default, PartialEq, Eq, Hash)]
#[serde(default)]
pub(crate) struct NodeAffinity {
    #[serde(rename = "requiredDuringSchedulingIgnoredDuringExecution")]
    pub required: Option<NodeSelector>,
    #[serde(rename = "preferredDuringSchedulingIgnoredDuringExecution", deserialize_with = "nullable")]
    pub preferred: Vec<PreferredTerm>,
}

#[derive(Deserialize, Clone, Debug, Default, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct NodeSelector {
    #[serde(deserialize_with = "nullable")]
    pub node_selector_terms: Vec<NodeTerm>,
}

#[derive(Deserialize, Clone, Debug, Default, PartialEq, Eq, Hash)]
#[serde(default)]
pub(crate) struct PreferredTerm {
    #[serde(deserialize_with = "nullable")]
    pub weight: i32,
    #[serde(deserialize_with = "nullable")]
    pub preference: NodeTerm,
}

#[derive(Deserialize, Clone, Debug, Default, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct NodeTerm {
    #[serde(deserialize_with = "nullable")]
    pub match_expressions: Vec<Requirement>,
    #[serde(deserialize_with = "nullable")]
    pub match_fields: Vec<Requirement>,
}

#[derive(Deserialize, Clone, Debug, Default, PartialEq, Eq, Hash)]
#[serde(default)]
pub(crate) struct Requirement {
    #[serde(deserialize_with = "nullable")]
    pub key: String,
    #[serde(deserialize_with = "nullable")]
    pub operator: String,
    #[serde(deserialize_with = "nullable")]
    pub values: Vec<String>,
}

#[derive(Deserialize, Clone, Debug, Default, PartialEq, Eq, Hash)]
#[serde(default)]
pub(crate) struct PodAffinity {
    #[serde(rename = "requiredDuringSchedulingIgnoredDuringExecution", deserialize_with = "nullable")]
    pub required: Vec<PodTerm>,
    #[serde(rename = "preferredDuringSchedulingIgnoredDuringExecution", deserialize_with = "nullable")]
    pub preferred: Vec<PreferredPodTerm>,
}

#[derive(Deserialize, Clone, Debug, Default, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct PreferredPodTerm {
    #[serde(deserialize_with = "nullable")]
    pub weight: i32,
    #[serde(deserialize_with = "nullable")]
    pub pod_affinity_term: PodTerm,
}

/// One term of pod (anti-)affinity.
#[derive(Deserialize, Clone, Debug, Default, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct PodTerm {
    pub label_selector: Option<LabelSelector>,
    #[serde(deserialize_with = "nullable")]
    pub namespaces: Vec<String>,
    pub namespace_selector: Option<LabelSelector>,
    #[serde(deserialize_with = "nullable")]
    pub topology_key: String,
    #[serde(deserialize_with = "nullable")]
    pub match_label_keys: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub mismatch_label_keys: Vec<String>,
}

#[derive(Deserialize, Clone, Debug, Default, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct LabelSelector {
    #[serde(deserialize_with = "nullable")]
    pub match_labels: Labels,
    #[serde(deserialize_with = "nullable")]
    pub match_expressions: Vec<Requirement>,
}

#[derive(Deserialize, Clone, Debug, Default, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct SpreadConstraint {
    #[serde(deserialize_with = "nullable")]
    pub max_skew: i32,
    #[serde(deserialize_with = "nullable")]
    pub topology_key: String,
    #[serde(deserialize_with = "nullable")]
    pub when_unsatisfiable: String,
    pub label_selector: Option<LabelSelector>,
    pub min_domains: Option<i32>,
    #[serde(deserialize_with = "nullable")]
    pub match_label_keys: Vec<String>,
    pub node_affinity_policy: Option<String>,
    pub node_taints_policy: Option<String>,
}

#[derive(Deserialize, Clone, Debug, Default, PartialEq, Eq, Hash)]
#[serde(default)]
pub(crate) struct Toleration {
    #[serde(deserialize_with = "nullable")]
    pub key: String,
    #[serde(deserialize_with = "nullable")]
    pub operator: String,
    #[serde(deserialize_with = "nullable")]
    pub value: String,
    #[serde(deserialize_with = "nullable")]
    pub effect: String,
}

/// A node.
#[derive(Deserialize, Clone, Debug)]
pub(crate) struct Node {
    #[serde(deserialize_with = "slim", default)]
    pub metadata: ObjectMeta,
    #[serde(default, deserialize_with = "nullable")]
    pub spec: NodeSpec,
    #[serde(default, deserialize_with = "nullable")]
    pub status: NodeStatus,
}

#[derive(Deserialize, Clone, Debug, Default)]
#[serde(default)]
pub(crate) struct NodeSpec {
    #[serde(deserialize_with = "nullable")]
    pub unschedulable: bool,
    #[serde(deserialize_with = "nullable")]
    pub taints: Vec<Taint>,
}

#[derive(Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(default)]
pub(crate) struct Taint {
    #[serde(deserialize_with = "nullable")]
    pub key: String,
    #[serde(deserialize_with = "nullable")]
    pub value: String,
    #[serde(deserialize_with = "nullable")]
    pub effect: String,
}

#[derive(Deserialize, Clone, Debug, Default)]
#[serde(default)]
pub(crate) struct NodeStatus {
    #[serde(deserialize_with = "nullable")]
    pub allocatable: BTreeMap<String, String>,
    #[serde(deserialize_with = "nullable")]
    pub capacity: BTreeMap<String, String>,
    #[serde(deserialize_with = "nullable")]
    pub conditions: Vec<Condition>,
}

/// A namespace.
#[derive(Deserialize, Clone, Debug)]
pub(crate) struct Namespace {
    #[serde(deserialize_with = "slim", default)]
    pub metadata: ObjectMeta,
}

/// A PodDisruptionBudget.
#[derive(Deserialize, Clone, Debug)]
pub(crate) struct Budget {
    #[serde(deserialize_with = "slim", default)]
    pub metadata: ObjectMeta,
    #[serde(default, deserialize_with = "nullable")]
    pub spec: BudgetSpec,
    #[serde(default, deserialize_with = "nullable")]
    pub status: BudgetStatus,
}

#[derive(Deserialize, Clone, Debug, Default)]
#[serde(default)]
pub(crate) struct BudgetSpec {
    pub selector: Option<LabelSelector>,
}

#[derive(Deserialize, Clone, Debug, Default)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct BudgetStatus {
    #[serde(deserialize_with = "nullable")]
    pub disruptions_allowed: i64,
    #[serde(deserialize_with = "nullable")]
    pub disrupted_pods: BTreeMap<String, serde::de::IgnoredAny>,
}

/// A PersistentVolumeClaim.
#[derive(Deserialize, Clone, Debug)]
pub(crate) struct Claim {
    #[serde(deserialize_with = "annotated", default)]
    pub metadata: ObjectMeta,
    #[serde(default, deserialize_with = "nullable")]
    pub spec: ClaimSpec,
    #[serde(default, deserialize_with = "nullable")]
    pub status: Phase,
}

#[derive(Deserialize, Clone, Debug, Default)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ClaimSpec {
    #[serde(deserialize_with = "nullable")]
    pub access_modes: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub resources: Resources,
    pub selector: Option<LabelSelector>,
    pub storage_class_name: Option<String>,
    pub volume_attributes_class_name: Option<String>,
    pub volume_mode: Option<String>,
    pub volume_name: Option<String>,
}

/// `status` of a claim or a volume.
#[derive(Deserialize, Clone, Debug, Default)]
#[serde(default)]
pub(crate) struct Phase {
    pub phase: Option<String>,
}

/// A PersistentVolume.
#[derive(Deserialize, Clone, Debug)]
pub(crate) struct Volume {
    #[serde(deserialize_with = "annotated", default)]
    pub metadata: ObjectMeta,
    #[serde(default, deserialize_with = "nullable")]
    pub spec: VolumeSpec,
    #[serde(default, deserialize_with = "nullable")]
    pub status: Phase,
}

#[derive(Deserialize, Clone, Debug, Default)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct VolumeSpec {
    #[serde(deserialize_with = "nullable")]
    pub access_modes: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub capacity: BTreeMap<String, String>,
    pub claim_ref: Option<ClaimReference>,
    #[serde(deserialize_with = "nullable")]
    pub node_affinity: VolumeAffinity,
    pub storage_class_name: Option<String>,
    pub volume_attributes_class_name: Option<String>,
    pub volume_mode: Option<String>,
}

#[derive(Deserialize, Clone, Debug, Default)]
#[serde(default)]
pub(crate) struct ClaimReference {
    #[serde(deserialize_with = "nullable")]
    pub namespace: String,
    #[serde(deserialize_with = "nullable")]
    pub name: String,
    #[serde(deserialize_with = "nullable")]
    pub uid: String,
}

#[derive(Deserialize, Clone, Debug, Default)]
#[serde(default)]
pub(crate) struct VolumeAffinity {
    pub required: Option<NodeSelector>,
}

/// A StorageClass.
#[derive(Deserialize, Clone, Debug)]
#[serde(rename_all = "camelCase")]
pub(crate) struct StorageClass {
    #[serde(deserialize_with = "slim", default)]
    pub metadata: ObjectMeta,
    #[serde(default, deserialize_with = "nullable")]
    pub provisioner: String,
    #[serde(default)]
    pub volume_binding_mode: Option<String>,
    #[serde(default, deserialize_with = "nullable")]
    pub allowed_topologies: Vec<Topology>,
}

#[derive(Deserialize, Clone, Debug, Default)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Topology {
    #[serde(deserialize_with = "nullable")]
    pub match_label_expressions: Vec<TopologyLabel>,
}

#[derive(Deserialize, Clone, Debug, Default)]
#[serde(default)]
pub(crate) struct TopologyLabel {
    #[serde(deserialize_with = "nullable")]
    pub key: String,
    #[serde(deserialize_with = "nullable")]
    pub values: Vec<String>,
}

macro_rules! resource {
    ($type:ty, $group:literal, $kind:literal, $plural:literal, $scope:ty) => {
        impl kube::Resource for $type {
            type DynamicType = ();
            type Scope = $scope;

            fn kind((): &()) -> Cow<'_, str> {
                $kind.into()
            }

            fn group((): &()) -> Cow<'_, str> {
                $group.into()
            }

            fn version((): &()) -> Cow<'_, str> {
                "v1".into()
            }

            fn plural((): &()) -> Cow<'_, str> {
                $plural.into()
            }

            fn meta(&self) -> &ObjectMeta {
                &self.metadata
            }

            fn meta_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }
        }
    };
}

resource!(Pod, "", "Pod", "pods", k8s_openapi::NamespaceResourceScope);
resource!(Node, "", "Node", "nodes", k8s_openapi::ClusterResourceScope);
resource!(Namespace, "", "Namespace", "namespaces", k8s_openapi::ClusterResourceScope);
resource!(Budget, "policy", "PodDisruptionBudget", "poddisruptionbudgets", k8s_openapi::NamespaceResourceScope);
resource!(Claim, "", "PersistentVolumeClaim", "persistentvolumeclaims", k8s_openapi::NamespaceResourceScope);
resource!(Volume, "", "PersistentVolume", "persistentvolumes", k8s_openapi::ClusterResourceScope);
resource!(StorageClass, "storage.k8s.io", "StorageClass", "storageclasses", k8s_openapi::ClusterResourceScope);
