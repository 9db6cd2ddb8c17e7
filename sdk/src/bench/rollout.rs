//! A Deployment of many pods, and what each costs in memory; the cost of a cluster that does nothing.

use std::path::Path;
use std::time::{Duration, Instant};

use k8s_openapi::api::apps::v1::Deployment;
use kube::Api;
use kube::api::PostParams;
use kube::runtime::wait::await_condition;
use serde_json::json;

use super::cluster::Process;
use super::{Error, Figure};

const PODS: i32 = 1000;
const DEADLINE: Duration = Duration::from_secs(120);

/// Runs it.
pub async fn run(program: &Path, report: &mut impl FnMut(Figure)) -> Result<(), Error> {
    let cluster = Process::start(program).await?;
    rollout(&cluster, "warm", 1).await?;
    let idle = cluster.resident()?;
    report(Figure::new("idle.resident", idle.all as f64 / 1e6, "MB"));
    report(Figure::new("idle.own", idle.own as f64 / 1e6, "MB"));
    let elapsed = rollout(&cluster, "hello", PODS).await?;
    report(Figure::new(format!("rollout.{PODS}_pods_ready"), elapsed.as_secs_f64() * 1000.0, "ms"));
    let full = cluster.resident()?;
    report(Figure::new("rollout.resident", full.all as f64 / 1e6, "MB"));
    report(Figure::new("rollout.own", full.own as f64 / 1e6, "MB"));
    let per_pod = full.all.saturating_sub(idle.all) as f64 / f64::from(PODS);
    report(Figure::new("rollout.resident_per_pod", per_pod / 1e3, "KB"));
    cluster.stop().await
}

async fn rollout(cluster: &Process, name: &str, pods: i32) -> Result<Duration, Error> {
    let deployments: Api<Deployment> = Api::default_namespaced(cluster.remote.client().clone());
    let deployment: Deployment = serde_json::from_value(json!({
        "metadata": {"name": name},
        "spec": {"replicas": pods, "selector": {"matchLabels": {"app": name}}, "template": {
            "metadata": {"labels": {"app": name}},
            "spec": {"containers": [{"name": "hello", "image": "hello:latest", "imagePullPolicy": "IfNotPresent",
                "ports": [{"containerPort": 8080}]}]},
        }},
    }))?;
    let ready = await_condition(deployments.clone(), name, move |found: Option<&Deployment>| {
        found.and_then(|d| d.status.as_ref()).and_then(|s| s.ready_replicas).unwrap_or(0) >= pods
    });
    let begun = Instant::now();
    deployments.create(&PostParams::default(), &deployment).await?;
    tokio::time::timeout(DEADLINE, ready)
        .await
        .map_err(|_| format!("{pods} pods are not ready after {DEADLINE:?}"))??;
    Ok(begun.elapsed())
}
