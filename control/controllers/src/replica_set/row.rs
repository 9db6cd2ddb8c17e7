//! What this controller is about: ReplicaSets, and ReplicationControllers as the ReplicaSets that they are in all but name.

use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetSpec, ReplicaSetStatus};
use k8s_openapi::api::core::v1::ReplicationController;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, OwnerReference};

use crate::client::{REPLICA_SETS, REPLICATION_CONTROLLERS};
use crate::informer::{Key, Object};
use crate::workload::Row;

/// A kind that keeps a number of pods.
pub(crate) trait Set: Object {
    const ROW: Row;
    /// For logs.
    const NAME: &'static str;
    /// Whether its status knows pods that end.
    const COUNTS_TERMINATING: bool;

    /// What it asks for.
    fn set(&self) -> &ReplicaSet;
}

impl Set for ReplicaSet {
    const ROW: Row =
        Row { resource: REPLICA_SETS, api_version: "apps/v1", kind: "ReplicaSet", component: "replicaset-controller" };
    const NAME: &'static str = "replicaset";
    const COUNTS_TERMINATING: bool = true;

    fn set(&self) -> &ReplicaSet {
        self
    }
}

/// A ReplicationController.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Replication(ReplicaSet);

impl Set for Replication {
    const ROW: Row = Row {
        resource: REPLICATION_CONTROLLERS,
        api_version: "v1",
        kind: "ReplicationController",
        component: "replication-controller",
    };
    const NAME: &'static str = "replicationcontroller";
    const COUNTS_TERMINATING: bool = false;

    fn set(&self) -> &ReplicaSet {
        &self.0
    }
}

impl Object for Replication {
    type Wire = ReplicationController;

    fn keep(wire: ReplicationController) -> Self {
        let spec = wire.spec.unwrap_or_default();
        let status = wire.status.map(|status| ReplicaSetStatus {
            replicas: status.replicas,
            fully_labeled_replicas: status.fully_labeled_replicas,
            ready_replicas: status.ready_replicas,
            available_replicas: status.available_replicas,
            terminating_replicas: None,
            observed_generation: status.observed_generation,
            conditions: status.conditions.map(|all| {
                let condition = |it: k8s_openapi::api::core::v1::ReplicationControllerCondition| ReplicaSetCondition {
                    type_: Some(it.type_),
                    status: Some(it.status),
                    reason: it.reason,
                    message: it.message,
                    last_transition_time: it.last_transition_time,
                };
                all.into_iter().map(condition).collect()
            }),
        });
        Self(ReplicaSet::keep(ReplicaSet {
            metadata: wire.metadata,
            spec: ReplicaSetSpec {
                min_ready_seconds: spec.min_ready_seconds,
                replicas: spec.replicas,
                selector: LabelSelector { match_labels: spec.selector, match_expressions: None },
                template: spec.template,
            },
            status,
        }))
    }

    fn key(&self) -> Key {
        self.0.key()
    }

    fn uid(&self) -> &str {
        self.0.uid()
    }

    fn controller(&self) -> Option<&str> {
        Object::controller(&self.0)
    }

    fn version(&self) -> u64 {
        self.0.version()
    }

    fn finalizers(&self) -> &[String] {
        self.0.finalizers()
    }

    fn owners(&self) -> &[OwnerReference] {
        self.0.owners()
    }

    fn is_deleting(&self) -> bool {
        self.0.is_deleting()
    }
}
