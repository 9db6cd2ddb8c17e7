//! Controllers: they make what is there into what is wanted, as ordinary clients of the API.
//!
//! Each is a pure core that turns what is observed into a plan, and a thin shell that carries it out. They share
//! informers (one watch and one decode per kind), a driver (one queue of keys each, per-key serialisation, back-off) and
//! the recorder of events; `kinds` has a row for each kind that is watched. Nothing polls but nodes whether they are reached (`node`); nothing is kept that the API does not have.

mod autoscaler;
mod certificates;
mod client;
mod concurrency;
mod cron_job;
mod daemon_set;
mod deployment;
mod discovery;
mod disruption;
mod endpoints;
mod error;
mod events;
mod foreign;
mod garbage;
mod gateway;
mod informer;
mod ingress;
mod job;
mod kinds;
mod load_balancer;
mod mirroring;
mod namespace;
mod node;
mod pod_gc;
mod queue;
mod quota;
mod replica_set;
mod selector;
mod service_account;
mod stateful_set;
#[cfg(test)]
mod stories;
mod ttl_after_finished;
mod volumes;
mod workload;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use certificates::{Asked, Signer};
use client::Client;
pub(crate) use error::Error;
use kinds::Informers;

/// What controllers need to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// The cluster's certificate authority in PEM, published in every namespace; nothing is published where it is empty.
    pub root_ca: String,
    /// Without a sign of life for so long a node is not known to be ready, whatever its lease promises
    /// (kube-controller-manager's `--node-monitor-grace-period`).
    pub node_monitor_grace: Duration,
    /// The node in this process. It is heard however much of the network is away, so it says nothing about that.
    pub node: Option<String>,
    /// Who signs certificates; nobody, if it is not said.
    pub signer: Option<Arc<dyn Signer>>,
}

impl Default for Config {
    fn default() -> Self {
        Self { root_ca: String::new(), node_monitor_grace: Duration::from_secs(50), node: None, signer: None }
    }
}

/// Now, to the precision of the API's times.
fn now_in_seconds() -> Timestamp {
    let now = Timestamp::now();
    Timestamp::from_second(now.as_second()).unwrap_or(now)
}

/// Runs all controllers until `shutdown`; returns when their work in progress has ended.
pub async fn run(client: kube::Client, config: Config, shutdown: CancellationToken) {
    let api = Client(foreign::bounded(client.clone()));
    let mut on = Informers::default();
    let recorder = events::Recorder::new(api.clone());
    let discovery = discovery::Discovery::new(api.clone());

    // In the order in which they hear of a change: what brings pods up first.
    let replica_sets = replica_set::Controller::new(api.clone(), recorder.clone(), &mut on.replica_sets, &mut on.pods);
    let replications = replica_set::Controller::new(api.clone(), recorder.clone(), &mut on.replications, &mut on.pods);
    let stateful_sets = stateful_set::Controller::new(
        api.clone(),
        recorder.clone(),
        &mut on.stateful_sets,
        &mut on.revisions,
        &mut on.claims,
        &mut on.pods,
    );
    let daemon_sets = daemon_set::Controller::new(
        api.clone(),
        recorder.clone(),
        &mut on.daemon_sets,
        &mut on.revisions,
        &mut on.nodes,
        &mut on.pods,
    );
    let deployments = deployment::Controller::new(
        api.clone(),
        recorder.clone(),
        &mut on.deployments,
        &mut on.replica_sets,
        &mut on.pods,
    );
    let volumes = volumes::Controller::new(
        api.clone(),
        recorder.clone(),
        volumes::Sources {
            claims: &mut on.claims,
            volumes: &mut on.volumes,
            classes: &mut on.storage_classes,
            nodes: &mut on.nodes,
            pods: on.pods.store(),
        },
    );
    let ephemeral_volumes = volumes::Ephemeral::new(api.clone(), recorder.clone(), &mut on.claims, &mut on.pods);
    let claim_protection = volumes::Protection::new(api.clone(), &mut on.claims, &mut on.pods);
    let jobs = job::Controller::new(api.clone(), recorder.clone(), &mut on.jobs, &mut on.pods);
    let cron_jobs = cron_job::Controller::new(api.clone(), recorder.clone(), &mut on.cron_jobs, &mut on.jobs);
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
    let mirroring =
        mirroring::Controller::new(api.clone(), recorder.clone(), &mut on.services, &mut on.endpoints, &mut on.slices);
    let budgets = disruption::Controller::new(
        api.clone(),
        recorder.clone(),
        discovery.clone(),
        &mut on.budgets,
        &mut on.pods,
        disruption::Workloads {
            replica_sets: &mut on.replica_sets,
            replications: &mut on.replications,
            stateful_sets: &mut on.stateful_sets,
            deployments: &mut on.deployments,
        },
    );
    let ingresses = ingress::Controller::new(api.clone(), &mut on.ingresses, &mut on.ingress_classes, &mut on.nodes);
    let balancers = load_balancer::Controller::new(api.clone(), &mut on.services, &mut on.nodes);
    let gateways = gateway::Controller::new(api.clone(), &mut on.services, &mut on.namespaces, &mut on.nodes);
    let autoscalers =
        autoscaler::Controller::new(api.clone(), recorder.clone(), discovery.clone(), &mut on.autoscalers, &on.pods);
    let scaled = concurrency::Controller::new(
        api.clone(),
        recorder.clone(),
        concurrency::Sources {
            deployments: &mut on.deployments,
            stateful_sets: &mut on.stateful_sets,
            replica_sets: &mut on.replica_sets,
            replications: &mut on.replications,
            services: &mut on.services,
            nodes: &mut on.nodes,
            autoscalers: &mut on.autoscalers,
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
    let own = config.node;
    let nodes = node::Controller::new(
        api.clone(),
        recorder.clone(),
        (config.node_monitor_grace, own.clone()),
        &mut on.nodes,
        &mut on.leases,
        on.pods.store(),
    );
    let reach = node::Reach::new(api.clone(), recorder.clone(), on.nodes.store(), own);
    let evictions = node::Evictions::new(api.clone(), recorder.clone(), nodes.watch(), &mut on.nodes, &mut on.pods);
    let job_orphans = job::Orphans::new(api.clone(), &mut on.jobs, &mut on.pods);
    let finished_jobs = ttl_after_finished::Controller::new(api.clone(), &mut on.jobs);
    let certificates = certificates::Controller::new(api.clone(), config.signer, &mut on.certificates);
    let old_certificates = certificates::Cleaner::new(api.clone(), &mut on.pod_certificates);
    let pod_gc = pod_gc::Controller::new(api.clone(), &mut on.nodes, &mut on.pods);
    let quotas = quota::Controller::new(api.clone(), discovery.clone(), &mut on.quotas, &mut on.pods, &mut on.services);
    let garbage = {
        let (namespaces, quotas) = (namespaces.clone(), quotas.clone());
        let on_event = Box::new(move |kind: &discovery::Kind, namespace: &str, happened| {
            if happened == garbage::Happened::Gone {
                namespaces.on_deletion(namespace);
            }
            quotas.on_event(kind, namespace, happened);
        });
        garbage::Controller::new(api, recorder.clone(), discovery, on_event)
    };
    on.tell(&garbage);

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
    tasks.spawn(queue::drive(replica_sets, shutdown.clone()));
    tasks.spawn(queue::drive(replications, shutdown.clone()));
    tasks.spawn(queue::drive(stateful_sets, shutdown.clone()));
    tasks.spawn(queue::drive(daemon_sets, shutdown.clone()));
    tasks.spawn(queue::drive(deployments, shutdown.clone()));
    tasks.spawn(queue::drive(volumes, shutdown.clone()));
    tasks.spawn(queue::drive(ephemeral_volumes, shutdown.clone()));
    tasks.spawn(queue::drive(claim_protection, shutdown.clone()));
    tasks.spawn(queue::drive(jobs, shutdown.clone()));
    tasks.spawn(queue::drive(cron_jobs, shutdown.clone()));
    tasks.spawn(queue::drive(job_orphans, shutdown.clone()));
    tasks.spawn(queue::drive(finished_jobs, shutdown.clone()));
    tasks.spawn(queue::drive(endpoints, shutdown.clone()));
    tasks.spawn(queue::drive(mirroring, shutdown.clone()));
    tasks.spawn(queue::drive(budgets, shutdown.clone()));
    tasks.spawn(queue::drive(ingresses, shutdown.clone()));
    tasks.spawn(queue::drive(balancers, shutdown.clone()));
    tasks.spawn(gateways.run(shutdown.clone()));
    tasks.spawn(queue::drive(autoscalers, shutdown.clone()));
    tasks.spawn(scaled.clone().listen(shutdown.clone()));
    tasks.spawn(queue::drive(scaled, shutdown.clone()));
    tasks.spawn(queue::drive(accounts, shutdown.clone()));
    tasks.spawn(queue::drive(namespaces, shutdown.clone()));
    tasks.spawn(queue::drive(nodes, shutdown.clone()));
    tasks.spawn(reach.run(shutdown.clone()));
    tasks.spawn(queue::drive(evictions, shutdown.clone()));
    tasks.spawn(queue::drive(pod_gc, shutdown.clone()));
    tasks.spawn(queue::drive(certificates, shutdown.clone()));
    tasks.spawn(queue::drive(old_certificates, shutdown.clone()));
    tasks.spawn(queue::drive(quotas, shutdown.clone()));
    tokio::select! {
        () = others_synced.notified() => {}
        () = shutdown.cancelled() => {}
    }
    tasks.spawn(queue::drive(garbage, shutdown));
    tasks.close();
    tasks.wait().await;
}
