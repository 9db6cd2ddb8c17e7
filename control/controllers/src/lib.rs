//! Controllers: they make what is there into what is wanted, as ordinary clients of the API.
//!
//! Each is a pure core that turns what is observed into a plan, and a thin shell that carries it out. They share
//! informers (one watch and one decode per kind), a driver (one queue of keys each, per-key serialisation, back-off) and
//! the recorder of events. Nothing polls; nothing is kept that the API does not have.

mod client;
mod deployment;
mod discovery;
mod endpoints;
mod error;
mod events;
mod garbage;
mod informer;
mod namespace;
mod node;
mod pod_gc;
mod queue;
mod replica_set;
mod selector;
mod service_account;
#[cfg(test)]
mod stories;
mod workload;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Endpoints, Namespace, Node, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::watcher;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use client::Client;
pub(crate) use error::Error;
use garbage::shared_kind;
use informer::{Informer, Object, Pod};

/// What controllers need to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// The cluster's certificate authority in PEM, published in every namespace.
    pub root_ca: String,
    /// Without a sign of life for so long a node is not known to be ready (kube-controller-manager's
    /// `--node-monitor-grace-period`).
    pub node_monitor_grace: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self { root_ca: String::new(), node_monitor_grace: Duration::from_secs(50) }
    }
}

/// Now, to the precision of the API's times.
fn now_in_seconds() -> Timestamp {
    let now = Timestamp::now();
    Timestamp::from_second(now.as_second()).unwrap_or(now)
}

/// The shared informers.
#[derive(Default)]
struct Informers {
    pods: Informer<Pod>,
    replica_sets: Informer<ReplicaSet>,
    deployments: Informer<Deployment>,
    services: Informer<Service>,
    slices: Informer<EndpointSlice>,
    endpoints: Informer<Endpoints>,
    namespaces: Informer<Namespace>,
    nodes: Informer<Node>,
    leases: Informer<Lease>,
    /// Those named `default`.
    accounts: Informer<ServiceAccount>,
    /// Those named `kube-root-ca.crt`.
    root_cas: Informer<ConfigMap>,
}

/// Runs all controllers until `shutdown`; returns when their work in progress has ended.
pub async fn run(client: kube::Client, config: Config, shutdown: CancellationToken) {
    let api = Client(client.clone());
    let mut on = Informers::default();
    let recorder = events::Recorder::new(api.clone());
    let discovery = discovery::Discovery::new(api.clone());

    // In the order in which they hear of a change: what brings pods up first.
    let replica_sets = replica_set::Controller::new(api.clone(), recorder.clone(), &mut on.replica_sets, &mut on.pods);
    let deployments = deployment::Controller::new(
        api.clone(),
        recorder.clone(),
        &mut on.deployments,
        &mut on.replica_sets,
        &mut on.pods,
    );
    let endpoints = endpoints::Controller::new(
        api.clone(),
        endpoints::Sources {
            services: &mut on.services,
            pods: &mut on.pods,
            slices: &mut on.slices,
            endpoints: &mut on.endpoints,
            nodes: &mut on.nodes,
        },
    );
    let accounts = service_account::Controller::new(
        api.clone(),
        config.root_ca,
        &mut on.namespaces,
        &mut on.accounts,
        &mut on.root_cas,
    );
    let namespaces = namespace::Controller::new(api.clone(), discovery.clone(), &mut on.namespaces);
    let nodes = node::Controller::new(
        api.clone(),
        recorder.clone(),
        config.node_monitor_grace,
        &mut on.nodes,
        &mut on.leases,
        on.pods.store(),
    );
    let evictions = node::Evictions::new(
        api.clone(),
        recorder.clone(),
        (nodes.watch(), config.node_monitor_grace),
        &mut on.nodes,
        &mut on.pods,
    );
    let pod_gc = pod_gc::Controller::new(api.clone(), &mut on.nodes, &mut on.pods);
    let garbage = {
        let namespaces = namespaces.clone();
        let on_deletion = Box::new(move |namespace: &str| namespaces.on_deletion(namespace));
        garbage::Controller::new(api, recorder.clone(), discovery, on_deletion)
    };
    listen(&garbage, &mut on);

    let tasks = TaskTracker::new();
    let synced = on.run(&tasks, &client, &shutdown);
    tasks.spawn(recorder.run(shutdown.clone()));
    tasks.spawn(nodes.clone().stay_watchful(shutdown.clone()));
    let others_synced = Arc::new(Notify::new());
    tasks.spawn(garbage.clone().watch_others(others_synced.clone(), shutdown.clone()));

    // A controller that acts before its informers are complete would see things missing that are there.
    let complete = async {
        for mut synced in synced {
            if synced.wait_for(|synced| *synced).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = complete => {}
        () = shutdown.cancelled() => {}
    }
    macro_rules! drive {
        ($($name:literal $controller:ident $workers:literal;)*) => {$({
            let (queue, shutdown) = ($controller.queue.clone(), shutdown.clone());
            tasks.spawn(async move {
                queue.drive($name, $workers, shutdown, move |key| $controller.clone().reconcile(key)).await;
            });
        })*};
    }
    drive! {
        "replicaset" replica_sets 16;
        "deployment" deployments 16;
        "endpoints" endpoints 16;
        "serviceaccount" accounts 8;
        "namespace" namespaces 8;
        "node" nodes 8;
        "eviction" evictions 16;
        "podgc" pod_gc 2;
    }
    tokio::select! {
        () = others_synced.notified() => {}
        () = shutdown.cancelled() => {}
    }
    drive! { "garbage" garbage 32; }
    tasks.close();
    tasks.wait().await;
}

/// The garbage collector hears of the kinds that are watched anyway.
fn listen(garbage: &Arc<garbage::Controller>, on: &mut Informers) {
    garbage.listen(&mut on.pods, shared_kind("", "v1", "Pod", "pods", true));
    garbage.listen(&mut on.replica_sets, shared_kind("apps", "v1", "ReplicaSet", "replicasets", true));
    garbage.listen(&mut on.deployments, shared_kind("apps", "v1", "Deployment", "deployments", true));
    garbage.listen(&mut on.services, shared_kind("", "v1", "Service", "services", true));
    garbage.listen(&mut on.slices, shared_kind("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices", true));
    garbage.listen(&mut on.endpoints, shared_kind("", "v1", "Endpoints", "endpoints", true));
    garbage.listen(&mut on.namespaces, shared_kind("", "v1", "Namespace", "namespaces", false));
    garbage.listen(&mut on.nodes, shared_kind("", "v1", "Node", "nodes", false));
    garbage.listen(&mut on.leases, shared_kind("coordination.k8s.io", "v1", "Lease", "leases", true));
}

impl Informers {
    /// Starts to watch; the receivers say when each is complete.
    fn run(
        self,
        tasks: &TaskTracker,
        client: &kube::Client,
        shutdown: &CancellationToken,
    ) -> Vec<tokio::sync::watch::Receiver<bool>> {
        fn start<K: Object>(
            informer: Informer<K>,
            config: watcher::Config,
            (tasks, client, shutdown): (&TaskTracker, &kube::Client, &CancellationToken),
        ) -> tokio::sync::watch::Receiver<bool> {
            let synced = informer.synced();
            tasks.spawn(informer.run(client.clone(), config, shutdown.clone()));
            synced
        }
        let with = (tasks, client, shutdown);
        let all = watcher::Config::default;
        let named = |name: &str| watcher::Config::default().fields(&format!("metadata.name={name}"));
        vec![
            start(self.pods, all(), with),
            start(self.replica_sets, all(), with),
            start(self.deployments, all(), with),
            start(self.services, all(), with),
            start(self.slices, all(), with),
            start(self.endpoints, all(), with),
            start(self.namespaces, all(), with),
            start(self.nodes, all(), with),
            start(self.leases, all(), with),
            start(self.accounts, named(service_account::ACCOUNT), with),
            start(self.root_cas, named(service_account::ROOT_CA), with),
        ]
    }
}
