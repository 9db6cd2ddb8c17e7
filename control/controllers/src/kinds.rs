//! The kinds that shared informers watch, one row each: who keeps what of them, and what the garbage collector calls them.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, PodCertificateRequest};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{
    ConfigMap, Endpoints, Namespace, Node, PersistentVolume, PersistentVolumeClaim, ResourceQuota, Service,
    ServiceAccount,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{Ingress, IngressClass};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::storage::v1::StorageClass;
use kube::runtime::watcher;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::garbage::{self, shared_kind};
use crate::informer::{Informer, Pod};
use crate::replica_set::Replication;
use crate::service_account;

macro_rules! kinds {
    (
        all { $($field:ident: $type:ty = $group:literal $version:literal $kind:literal $plural:literal $namespaced:literal;)* }
        named { $($named:ident: $named_type:ty = $name:expr;)* }
    ) => {
        /// The shared informers.
        #[derive(Default)]
        pub(crate) struct Informers {
            $(pub(crate) $field: Informer<$type>,)*
            // Those of one name only; all of the kind are watched by the garbage collector, which keeps less of them.
            $(pub(crate) $named: Informer<$named_type>,)*
        }

        impl Informers {
            /// The garbage collector hears of the kinds that are watched anyway.
            pub(crate) fn tell(&mut self, garbage: &Arc<garbage::Controller>) {
                $(garbage.listen(&mut self.$field, shared_kind($group, $version, $kind, $plural, $namespaced));)*
            }

            /// Starts to watch; the receivers say when each is complete.
            pub(crate) fn run(
                self,
                tasks: &TaskTracker,
                client: &kube::Client,
                shutdown: &CancellationToken,
            ) -> Vec<watch::Receiver<bool>> {
                let mut synced = Vec::new();
                $(
                    synced.push(self.$field.synced());
                    tasks.spawn(self.$field.run(client.clone(), watcher::Config::default(), shutdown.clone()));
                )*
                $(
                    synced.push(self.$named.synced());
                    let config = watcher::Config::default().fields(&format!("metadata.name={}", $name));
                    tasks.spawn(self.$named.run(client.clone(), config, shutdown.clone()));
                )*
                synced
            }
        }
    };
}

kinds! {
    all {
    pods: Pod = "" "v1" "Pod" "pods" true;
    replica_sets: ReplicaSet = "apps" "v1" "ReplicaSet" "replicasets" true;
    replications: Replication = "" "v1" "ReplicationController" "replicationcontrollers" true;
    deployments: Deployment = "apps" "v1" "Deployment" "deployments" true;
    stateful_sets: StatefulSet = "apps" "v1" "StatefulSet" "statefulsets" true;
    daemon_sets: DaemonSet = "apps" "v1" "DaemonSet" "daemonsets" true;
    revisions: ControllerRevision = "apps" "v1" "ControllerRevision" "controllerrevisions" true;
    claims: PersistentVolumeClaim = "" "v1" "PersistentVolumeClaim" "persistentvolumeclaims" true;
    volumes: PersistentVolume = "" "v1" "PersistentVolume" "persistentvolumes" false;
    storage_classes: StorageClass = "storage.k8s.io" "v1" "StorageClass" "storageclasses" false;
    jobs: Job = "batch" "v1" "Job" "jobs" true;
    cron_jobs: CronJob = "batch" "v1" "CronJob" "cronjobs" true;
    services: Service = "" "v1" "Service" "services" true;
    slices: EndpointSlice = "discovery.k8s.io" "v1" "EndpointSlice" "endpointslices" true;
    endpoints: Endpoints = "" "v1" "Endpoints" "endpoints" true;
    namespaces: Namespace = "" "v1" "Namespace" "namespaces" false;
    nodes: Node = "" "v1" "Node" "nodes" false;
    budgets: PodDisruptionBudget = "policy" "v1" "PodDisruptionBudget" "poddisruptionbudgets" true;
    ingresses: Ingress = "networking.k8s.io" "v1" "Ingress" "ingresses" true;
    ingress_classes: IngressClass = "networking.k8s.io" "v1" "IngressClass" "ingressclasses" false;
    quotas: ResourceQuota = "" "v1" "ResourceQuota" "resourcequotas" true;
    autoscalers: HorizontalPodAutoscaler = "autoscaling" "v2" "HorizontalPodAutoscaler" "horizontalpodautoscalers" true;
    certificates: CertificateSigningRequest =
        "certificates.k8s.io" "v1" "CertificateSigningRequest" "certificatesigningrequests" false;
    pod_certificates: PodCertificateRequest =
        "certificates.k8s.io" "v1" "PodCertificateRequest" "podcertificaterequests" true;
    leases: Lease = "coordination.k8s.io" "v1" "Lease" "leases" true;
    }
    named {
    accounts: ServiceAccount = service_account::ACCOUNT;
    root_cas: ConfigMap = service_account::ROOT_CA;
    }
}
