//! Pods, as controllers keep them: of ten thousand pods only what somebody decides by.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;

use coracle_tolerant::nullable;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Toleration;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use serde::Deserialize;
use serde_json::Value;

use super::meta::{COMPLETION_INDEX, DELETION_COST, INDEX_FAILURES, INDEX_IGNORED_FAILURES};
use super::requests::{Requests, Resources};
use super::{Index, Key, Object, by_controller, controller, slim, version};

/// `status.phase`.
#[derive(Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(from = "String")]
pub(crate) enum Phase {
    #[default]
    Pending,
    Unknown,
    Running,
    Succeeded,
    Failed,
    /// One that nobody knows; the API takes any text. Such a pod lives, as for the reference.
    Other,
}

impl From<String> for Phase {
    fn from(text: String) -> Self {
        match text.as_str() {
            "Pending" | "" => Self::Pending,
            "Unknown" => Self::Unknown,
            "Running" => Self::Running,
            "Succeeded" => Self::Succeeded,
            "Failed" => Self::Failed,
            _ => Self::Other,
        }
    }
}

/// What controllers know of a pod. What pods of one controller have in common is stored once ([`Object::share`]).
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Pod {
    pub key: Key,
    pub uid: Arc<str>,
    pub version: u64,
    pub labels: Arc<BTreeMap<String, String>>,
    pub owners: Arc<[OwnerReference]>,
    pub finalizers: Vec<String>,
    pub created: Option<Timestamp>,
    pub deleting: Option<Timestamp>,
    pub deletion_cost: i32,
    pub node: Option<Arc<str>>,
    /// While it has no node: the only one that it may have by its affinity, as pods of DaemonSets say it.
    pub meant_for: Option<Arc<str>>,
    pub hostname: Option<Box<str>>,
    pub subdomain: Option<Box<str>>,
    /// Of containers and sidecars, in order of name and protocol: of thousands one is found ([`Pod::port`]).
    pub ports: Arc<[Port]>,
    pub tolerations: Arc<[Toleration]>,
    pub gated: bool,
    /// Whether it ends at a deadline of its own.
    pub has_deadline: bool,
    /// A digest of what its node gave it.
    pub given: u64,
    pub phase: Phase,
    pub ready: bool,
    /// Whether it says that it is not ready; one that has not been started says neither.
    pub unready: bool,
    /// Since when `ready` is what it is.
    pub ready_since: Option<Timestamp>,
    pub ips: Vec<Box<str>>,
    pub restarts: i32,
    /// When its node took it.
    pub started: Option<Timestamp>,
    pub requests: Arc<Requests>,
    /// The claims of its volumes.
    pub claims: Box<[Claim]>,
    /// Of a pod that a Job controls.
    pub run: Option<Box<Run>>,
}

/// What only Jobs decide by.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Run {
    /// Its completion index.
    pub index: Option<u32>,
    /// Pods of its index that failed before it, and those of them that did not count.
    pub failures: i32,
    pub ignored_failures: i32,
    /// Type and status of its conditions, in their order.
    pub conditions: Vec<(Box<str>, Box<str>)>,
    /// Containers that failed, and with what; init containers last.
    pub exit_codes: Vec<(Box<str>, i32)>,
    /// When it ended, or was last known not to have; of a pod that has.
    pub finished: Option<Timestamp>,
    /// Of all its containers together.
    pub restarts: i32,
}

/// A claim that a pod names, or that is made for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    pub name: Box<str>,
    /// The volume of the pod that it is made for, and goes with.
    pub made_for: Option<Box<str>>,
}

/// A named port of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Port {
    pub name: Box<str>,
    pub protocol: Box<str>,
    pub number: i32,
}

impl Pod {
    /// Whether it is neither finished nor being deleted.
    pub(crate) fn is_active(&self) -> bool {
        !self.is_terminal() && self.deleting.is_none()
    }

    /// Whether it has finished.
    pub(crate) fn is_terminal(&self) -> bool {
        matches!(self.phase, Phase::Succeeded | Phase::Failed)
    }

    /// Whether it is ready, and has been for so long.
    pub(crate) fn is_available(&self, min_ready_seconds: i32, now: Timestamp) -> bool {
        self.ready && (min_ready_seconds <= 0 || self.available_at(min_ready_seconds).is_some_and(|at| at <= now))
    }

    /// The number of a named port.
    pub(crate) fn port(&self, name: &str, protocol: &str) -> Option<i32> {
        let at = self.ports.partition_point(|port| (&*port.name, &*port.protocol) < (name, protocol));
        let found = self.ports.get(at).filter(|port| (&*port.name, &*port.protocol) == (name, protocol));
        found.map(|port| port.number)
    }

    /// When it counts as available; `None` while it is not ready.
    pub(crate) fn available_at(&self, min_ready_seconds: i32) -> Option<Timestamp> {
        if !self.ready {
            return None;
        }
        let since = self.ready_since?;
        if min_ready_seconds <= 0 {
            return Some(since);
        }
        since.checked_add(jiff::SignedDuration::from_secs(i64::from(min_ready_seconds))).ok()
    }
}

impl Object for Pod {
    type Wire = Wire;

    fn keep(wire: Wire) -> Self {
        let Wire { metadata, spec, status } = wire;
        let owner = controller(metadata.owner_references.as_deref());
        let run = owner.is_some_and(|owner| owner.kind == "Job").then(|| Box::new(run(&metadata, &spec, &status)));
        let sidecars = spec.init_containers.into_iter().filter(|c| c.restart_policy.as_deref() == Some("Always"));
        let containers: Vec<Container> = spec.containers.into_iter().chain(sidecars).collect();
        let request = |container: &Container| (container.name.as_str().into(), container.resources.request());
        let requests = Requests { pod: spec.resources.request(), containers: containers.iter().map(request).collect() };
        let ports = containers.into_iter().flat_map(|container| container.ports);
        let ready = status.conditions.iter().find(|condition| condition.type_ == "Ready");
        let mut ips: Vec<Box<str>> = status.pod_ips.into_iter().map(|ip| ip.ip.into()).collect();
        if ips.is_empty() {
            ips.extend(status.pod_ip.filter(|ip| !ip.is_empty()).map(Into::into));
        }
        let node: Option<Arc<str>> = spec.node_name.filter(|name| !name.is_empty()).map(Into::into);
        let meant_for = match node {
            None => spec.affinity.and_then(Affinity::only_node).map(Into::into),
            Some(_) => None,
        };
        let cost = metadata.annotations.as_ref().and_then(|annotations| annotations.get(DELETION_COST));
        Self {
            key: Key::new(
                metadata.namespace.as_deref().unwrap_or_default(),
                metadata.name.as_deref().unwrap_or_default(),
            ),
            uid: metadata.uid.as_deref().unwrap_or_default().into(),
            version: version(metadata.resource_version.as_deref()),
            deletion_cost: cost.and_then(|cost| cost.parse().ok()).unwrap_or(0),
            labels: metadata.labels.unwrap_or_default().into(),
            owners: metadata.owner_references.unwrap_or_default().into(),
            finalizers: metadata.finalizers.unwrap_or_default(),
            created: metadata.creation_timestamp.map(|time| time.0),
            deleting: metadata.deletion_timestamp.map(|time| time.0),
            node,
            meant_for,
            hostname: spec.hostname.filter(|name| !name.is_empty()).map(Into::into),
            subdomain: spec.subdomain.filter(|name| !name.is_empty()).map(Into::into),
            ports: {
                let port = |port: WirePort| {
                    let protocol = port.protocol.unwrap_or_else(|| "TCP".to_owned()).into();
                    Some(Port { name: port.name?.into(), protocol, number: port.container_port })
                };
                let mut ports: Vec<Port> = ports.filter_map(port).collect();
                // Stable: of those of one name the first one counts.
                ports.sort_by(|a, b| (&a.name, &a.protocol).cmp(&(&b.name, &b.protocol)));
                ports.into()
            },
            tolerations: spec.tolerations.into(),
            gated: !spec.scheduling_gates.is_empty(),
            has_deadline: spec.active_deadline_seconds.is_some_and(|seconds| seconds >= 0),
            given: {
                let mut digest = DefaultHasher::new();
                for status in status.init_container_statuses.iter().chain(&status.container_statuses) {
                    let given = [&status.resources, &status.allocated_resources];
                    given.map(|given| given.as_ref().map(Value::to_string)).hash(&mut digest);
                }
                digest.finish()
            },
            phase: status.phase.unwrap_or_default(),
            ready: ready.is_some_and(|condition| condition.status == "True"),
            unready: ready.is_some_and(|condition| condition.status == "False"),
            ready_since: ready.and_then(|condition| condition.last_transition_time.as_ref()).map(|time| time.0),
            ips,
            restarts: status.container_statuses.iter().map(|status| status.restart_count).max().unwrap_or(0),
            started: status.start_time.map(|time| time.0),
            requests: requests.into(),
            claims: claims(&spec.volumes, metadata.name.as_deref().unwrap_or_default()),
            run,
        }
    }

    fn share(&mut self, like: &Self) {
        fn same<T: PartialEq + ?Sized>(mine: &mut Arc<T>, other: &Arc<T>) {
            if *mine == *other {
                mine.clone_from(other);
            }
        }
        same(&mut self.key.namespace, &like.key.namespace);
        same(&mut self.labels, &like.labels);
        same(&mut self.owners, &like.owners);
        same(&mut self.ports, &like.ports);
        same(&mut self.tolerations, &like.tolerations);
        same(&mut self.requests, &like.requests);
        if let (Some(mine), Some(other)) = (&mut self.node, &like.node) {
            same(mine, other);
        }
    }

    fn key(&self) -> Key {
        self.key.clone()
    }

    fn uid(&self) -> &str {
        &self.uid
    }

    fn controller(&self) -> Option<&str> {
        controller(Some(&self.owners)).map(|owner| owner.uid.as_str())
    }

    fn version(&self) -> u64 {
        self.version
    }

    fn finalizers(&self) -> &[String] {
        &self.finalizers
    }

    fn owners(&self) -> &[OwnerReference] {
        &self.owners
    }

    fn is_deleting(&self) -> bool {
        self.deleting.is_some()
    }

    fn index(&self, add: &mut dyn FnMut(Index, &str)) {
        by_controller(self, add);
        if let Some(node) = &self.node {
            add(Index::Node, node);
        }
        if self.is_terminal() {
            add(Index::Finished, "");
        }
        for claim in &self.claims {
            add(Index::Claim, &format!("{}/{}", self.key.namespace, claim.name));
        }
    }
}

fn claims(volumes: &[WireVolume], pod: &str) -> Box<[Claim]> {
    let claim = |volume: &WireVolume| match (&volume.persistent_volume_claim, &volume.ephemeral) {
        (Some(source), _) => Some(Claim { name: source.claim_name.as_str().into(), made_for: None }),
        (None, Some(_)) => {
            let name = format!("{pod}-{}", volume.name).into();
            Some(Claim { name, made_for: Some(volume.name.as_str().into()) })
        }
        (None, None) => None,
    };
    volumes.iter().filter_map(claim).collect()
}

fn run(metadata: &ObjectMeta, spec: &Spec, status: &Status) -> Run {
    let number = |name: &str| -> Option<i32> {
        let text = metadata.annotations.as_ref()?.get(name)?;
        text.parse().ok().filter(|number| *number >= 0)
    };
    let statuses = || status.container_statuses.iter().chain(&status.init_container_statuses);
    let failed = statuses().filter_map(|container| Some((container, container.state.terminated.as_ref()?.exit_code)));
    Run {
        index: number(COMPLETION_INDEX).and_then(|index| u32::try_from(index).ok()),
        failures: number(INDEX_FAILURES).unwrap_or(0),
        ignored_failures: number(INDEX_IGNORED_FAILURES).unwrap_or(0),
        conditions: status
            .conditions
            .iter()
            .map(|condition| (condition.type_.as_str().into(), condition.status.as_str().into()))
            .collect(),
        exit_codes: failed
            .filter(|(_, code)| *code != 0)
            .map(|(container, code)| (container.name.as_str().into(), code))
            .collect(),
        finished: finished(metadata, spec, status),
        restarts: statuses().fold(0, |sum: i32, container| sum.saturating_add(container.restart_count)),
    }
}

/// When the last container ended, sidecars included; when it stopped being ready; when it was deleted, without its grace;
/// or else when it was made.
fn finished(metadata: &ObjectMeta, spec: &Spec, status: &Status) -> Option<Timestamp> {
    let is_sidecar = |container: &&ContainerStatus| {
        let sidecars = spec.init_containers.iter().filter(|c| c.restart_policy.as_deref() == Some("Always"));
        sidecars.map(|container| &container.name).any(|name| *name == container.name)
    };
    let sidecars = status.init_container_statuses.iter().filter(is_sidecar);
    let ends = status.container_statuses.iter().chain(sidecars);
    let ends: Option<Vec<Timestamp>> =
        ends.map(|container| Some(container.state.terminated.as_ref()?.finished_at.as_ref()?.0)).collect();
    let not_ready = || {
        let ready = status.conditions.iter().find(|condition| condition.type_ == "Ready")?;
        ready.last_transition_time.as_ref().filter(|_| ready.status == "False").map(|time| time.0)
    };
    let deleted = || {
        let grace = metadata.deletion_grace_period_seconds.unwrap_or(0);
        metadata.deletion_timestamp.as_ref()?.0.checked_sub(jiff::SignedDuration::from_secs(grace)).ok()
    };
    let made = || metadata.creation_timestamp.as_ref().map(|time| time.0);
    ends.and_then(|ends| ends.into_iter().max()).or_else(not_ready).or_else(deleted).or_else(made)
}

/// A pod as it comes, without what is not kept.
#[derive(Deserialize, Clone, Debug)]
pub(crate) struct Wire {
    #[serde(deserialize_with = "slim", default)]
    metadata: ObjectMeta,
    #[serde(default, deserialize_with = "nullable")]
    spec: Spec,
    #[serde(default, deserialize_with = "nullable")]
    status: Status,
}

#[derive(Deserialize, Clone, Debug, Default)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    node_name: Option<String>,
    hostname: Option<String>,
    subdomain: Option<String>,
    #[serde(deserialize_with = "nullable")]
    containers: Vec<Container>,
    #[serde(deserialize_with = "nullable")]
    init_containers: Vec<Container>,
    #[serde(deserialize_with = "nullable")]
    tolerations: Vec<Toleration>,
    #[serde(deserialize_with = "nullable")]
    scheduling_gates: Vec<serde::de::IgnoredAny>,
    active_deadline_seconds: Option<i64>,
    #[serde(deserialize_with = "nullable")]
    resources: Resources,
    affinity: Option<Affinity>,
    #[serde(deserialize_with = "nullable")]
    volumes: Vec<WireVolume>,
}

/// A volume, of which only those with a claim matter.
#[derive(Deserialize, Clone, Debug, Default)]
#[serde(rename_all = "camelCase", default)]
struct WireVolume {
    #[serde(deserialize_with = "nullable")]
    name: String,
    persistent_volume_claim: Option<WireClaim>,
    ephemeral: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize, Clone, Debug, Default)]
#[serde(rename_all = "camelCase", default)]
struct WireClaim {
    #[serde(deserialize_with = "nullable")]
    claim_name: String,
}

#[derive(Deserialize, Clone, Debug, Default)]
#[serde(rename_all = "camelCase", default)]
struct Affinity {
    #[serde(deserialize_with = "nullable")]
    node_affinity: NodeAffinity,
}

#[derive(Deserialize, Clone, Debug, Default)]
#[serde(default)]
struct NodeAffinity {
    #[serde(rename = "requiredDuringSchedulingIgnoredDuringExecution", deserialize_with = "nullable")]
    required: NodeSelector,
}

#[derive(Deserialize, Clone, Debug, Default)]
#[serde(rename_all = "camelCase", default)]
struct NodeSelector {
    #[serde(deserialize_with = "nullable")]
    node_selector_terms: Vec<NodeTerm>,
}

#[derive(Deserialize, Clone, Debug, Default)]
#[serde(rename_all = "camelCase", default)]
struct NodeTerm {
    #[serde(deserialize_with = "nullable")]
    match_fields: Vec<Requirement>,
}

#[derive(Deserialize, Clone, Debug, Default)]
#[serde(default)]
struct Requirement {
    #[serde(deserialize_with = "nullable")]
    key: String,
    #[serde(deserialize_with = "nullable")]
    operator: String,
    #[serde(deserialize_with = "nullable")]
    values: Vec<String>,
}

impl Affinity {
    /// The node that the first requirement of a name is about (`GetTargetNodeName` of the reference).
    fn only_node(self) -> Option<String> {
        let fields = self.node_affinity.required.node_selector_terms.into_iter().flat_map(|term| term.match_fields);
        let mut names = fields.filter(|it| it.key == "metadata.name" && it.operator == "In").map(|it| it.values);
        names.next().filter(|values| values.len() == 1)?.pop()
    }
}

#[derive(Deserialize, Clone, Debug, Default)]
#[serde(rename_all = "camelCase", default)]
struct Container {
    #[serde(deserialize_with = "nullable")]
    name: String,
    #[serde(deserialize_with = "nullable")]
    resources: Resources,
    restart_policy: Option<String>,
    #[serde(deserialize_with = "nullable")]
    ports: Vec<WirePort>,
}

#[derive(Deserialize, Clone, Debug, Default)]
#[serde(rename_all = "camelCase", default)]
struct WirePort {
    name: Option<String>,
    protocol: Option<String>,
    #[serde(deserialize_with = "nullable")]
    container_port: i32,
}

#[derive(Deserialize, Clone, Debug, Default)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    phase: Option<Phase>,
    start_time: Option<Time>,
    #[serde(deserialize_with = "nullable")]
    conditions: Vec<Condition>,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    #[serde(rename = "podIPs", deserialize_with = "nullable")]
    pod_ips: Vec<Ip>,
    #[serde(deserialize_with = "nullable")]
    container_statuses: Vec<ContainerStatus>,
    #[serde(deserialize_with = "nullable")]
    init_container_statuses: Vec<ContainerStatus>,
}

#[derive(Deserialize, Clone, Debug, Default)]
#[serde(rename_all = "camelCase", default)]
struct Condition {
    #[serde(rename = "type", deserialize_with = "nullable")]
    type_: String,
    #[serde(deserialize_with = "nullable")]
    status: String,
    last_transition_time: Option<Time>,
}

#[derive(Deserialize, Clone, Debug, Default)]
#[serde(default)]
struct Ip {
    #[serde(deserialize_with = "nullable")]
    ip: String,
}

#[derive(Deserialize, Clone, Debug, Default)]
#[serde(rename_all = "camelCase", default)]
struct ContainerStatus {
    #[serde(deserialize_with = "nullable")]
    name: String,
    #[serde(deserialize_with = "nullable")]
    restart_count: i32,
    resources: Option<Value>,
    allocated_resources: Option<Value>,
    #[serde(deserialize_with = "nullable")]
    state: State,
}

#[derive(Deserialize, Clone, Debug, Default)]
#[serde(default)]
struct State {
    terminated: Option<Terminated>,
}

#[derive(Deserialize, Clone, Debug, Default)]
#[serde(rename_all = "camelCase", default)]
struct Terminated {
    #[serde(deserialize_with = "nullable")]
    exit_code: i32,
    finished_at: Option<Time>,
}

impl kube::Resource for Wire {
    type DynamicType = ();
    type Scope = k8s_openapi::NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        "Pod".into()
    }

    fn group((): &()) -> Cow<'_, str> {
        "".into()
    }

    fn version((): &()) -> Cow<'_, str> {
        "v1".into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        "pods".into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A pod from what a test says of it.
    pub(crate) fn pod(json: serde_json::Value) -> Pod {
        Pod::keep(serde_json::from_value(json).expect("a pod"))
    }

    #[test]
    fn takes_nulls_and_phases_that_nobody_knows() {
        for (phase, expected) in [
            (serde_json::json!("Weird"), Phase::Other),
            (serde_json::json!(""), Phase::Pending),
            (serde_json::Value::Null, Phase::Pending),
        ] {
            let pod = pod(serde_json::json!({
                "metadata": {"name": "a"}, "spec": {"containers": null, "tolerations": null},
                "status": {"phase": phase, "conditions": null, "podIPs": [{"ip": null}], "containerStatuses": [{"restartCount": null}]},
            }));
            assert_eq!((pod.phase, pod.is_active()), (expected, true));
        }
    }

    #[test]
    fn knows_for_which_node_a_waiting_pod_is_meant() {
        let term = |values: serde_json::Value| {
            let fields = serde_json::json!([{"key": "metadata.name", "operator": "In", "values": values}]);
            serde_json::json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchExpressions": [{"key": "a", "operator": "Exists"}]}, {"matchFields": fields}]}}})
        };
        for (node, affinity, expected) in [
            ("", term(serde_json::json!(["one"])), Some("one")),
            ("", term(serde_json::json!(["one", "two"])), None),
            ("", serde_json::json!({"nodeAffinity": null}), None),
            ("", serde_json::Value::Null, None),
            ("two", term(serde_json::json!(["one"])), None),
        ] {
            let pod =
                pod(serde_json::json!({"metadata": {"name": "a"}, "spec": {"nodeName": node, "affinity": affinity}}));
            assert_eq!(pod.meant_for.as_deref(), expected, "{affinity}");
        }
    }

    #[test]
    fn keeps_what_controllers_decide_by() {
        let pod = pod(serde_json::json!({
            "metadata": {
                "name": "a", "namespace": "n", "uid": "u", "resourceVersion": "7",
                "annotations": {"controller.kubernetes.io/pod-deletion-cost": "-3", "big": "x"},
                "managedFields": [{"fieldsV1": {"f:metadata": {}}}],
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "o", "controller": true}],
            },
            "spec": {
                "nodeName": "", "containers": [{"ports": [{"name": "web", "containerPort": 80}, {"containerPort": 81}]}],
                "initContainers": [{"restartPolicy": "Always", "ports": [{"name": "side", "containerPort": 9, "protocol": "UDP"}]}],
            },
            "status": {
                "phase": "Running", "podIP": "10.0.0.1",
                "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}],
            },
        }));
        assert_eq!((pod.version, pod.deletion_cost, pod.controller(), pod.node.as_deref()), (7, -3, Some("o"), None));
        assert_eq!(
            pod.ports.iter().map(|port| (&*port.name, port.number)).collect::<Vec<_>>(),
            [("side", 9), ("web", 80)]
        );
        assert_eq!(pod.available_at(10).map(|at| at.to_string()).as_deref(), Some("2026-01-01T00:00:10Z"));
        assert_eq!(pod.ips, ["10.0.0.1".into()]);
        assert_eq!(pod.run, None);
    }

    #[test]
    fn keeps_of_a_jobs_pod_how_it_went() {
        let with = |status: serde_json::Value| {
            let pod = pod(serde_json::json!({
                "metadata": {
                    "name": "a", "creationTimestamp": "2026-01-01T00:00:00Z",
                    "annotations": {
                        "batch.kubernetes.io/job-completion-index": "7", "batch.kubernetes.io/job-index-failure-count": "-1",
                        "batch.kubernetes.io/job-index-ignored-failure-count": "2", "controller.kubernetes.io/pod-deletion-cost": "5",
                    },
                    "ownerReferences": [{"apiVersion": "batch/v1", "kind": "Job", "name": "j", "uid": "o", "controller": true}],
                },
                "spec": {"initContainers": [{"name": "side", "restartPolicy": "Always"}, {"name": "init"}]},
                "status": status,
            }));
            assert_eq!(pod.deletion_cost, 5);
            *pod.run.expect("a Job's")
        };
        let ended = |name: &str, code: i32, at: &str| serde_json::json!({"name": name, "restartCount": 2, "state": {"terminated": {"exitCode": code, "finishedAt": at}}});
        let run = with(serde_json::json!({
            "conditions": [{"type": "Ready", "status": "False", "lastTransitionTime": "2026-01-01T00:00:09Z"}],
            "containerStatuses": [ended("a", 3, "2026-01-01T00:00:05Z"), ended("b", 0, "2026-01-01T00:00:04Z")],
            "initContainerStatuses": [ended("init", 1, "2026-01-01T00:00:01Z"), ended("side", 0, "2026-01-01T00:00:06Z")],
        }));
        assert_eq!((run.index, run.failures, run.ignored_failures, run.restarts), (Some(7), 0, 2, 8));
        assert_eq!(run.exit_codes, [("a".into(), 3), ("init".into(), 1)]);
        assert_eq!(run.conditions, [("Ready".into(), "False".into())]);
        assert_eq!(run.finished.map(|at| at.to_string()).as_deref(), Some("2026-01-01T00:00:06Z"));
        let run = with(serde_json::json!({
            "conditions": [{"type": "Ready", "status": "False", "lastTransitionTime": "2026-01-01T00:00:09Z"}],
            "containerStatuses": [{"name": "a", "state": {"running": {}}}],
        }));
        assert_eq!(run.finished.map(|at| at.to_string()).as_deref(), Some("2026-01-01T00:00:09Z"));
        let run = with(serde_json::json!({}));
        assert_eq!(run.finished.map(|at| at.to_string()).as_deref(), Some("2026-01-01T00:00:00Z"));
    }
}
