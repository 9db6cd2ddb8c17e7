//! From a Deployment of one pod to the first HTTP 200, on a warm node.

use std::path::Path;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{DeleteParams, ListParams, PostParams};
use serde_json::json;

use super::cluster::Process;
use super::http::{http_get, node_port};
use super::{Error, Figure};

const RUNS: usize = 100;
/// A run that takes longer is a failure.
const RUN_DEADLINE: Duration = Duration::from_secs(30);

/// Runs it.
pub async fn run(program: &Path, report: &mut impl FnMut(Figure)) -> Result<(), Error> {
    let cluster = Process::start(program).await?;
    let client = cluster.remote.client().clone();
    let port = node_port(&client, "hello").await?;
    let url = format!("http://127.0.0.1:{port}/");
    let mut times = Histogram::<u64>::new(3)?;
    // The first run compiles the component; it is not one of the hundred.
    for run in 0..=RUNS {
        let elapsed = once(&client, &url, run).await?;
        if run > 0 {
            times.record(u64::try_from(elapsed.as_micros())?)?;
        }
    }
    for (name, quantile) in [("p50", 0.5), ("p99", 0.99), ("max", 1.0)] {
        report(Figure::new(
            format!("deploy.first_200.{name}"),
            times.value_at_quantile(quantile) as f64 / 1000.0,
            "ms",
        ));
    }
    cluster.stop().await
}

async fn once(client: &kube::Client, url: &str, run: usize) -> Result<Duration, Error> {
    let deployments: Api<Deployment> = Api::default_namespaced(client.clone());
    let name = format!("hello-{run}");
    let deployment: Deployment = serde_json::from_value(json!({
        "metadata": {"name": name},
        "spec": {"replicas": 1, "selector": {"matchLabels": {"app": "hello"}}, "template": {
            "metadata": {"labels": {"app": "hello"}},
            "spec": {"terminationGracePeriodSeconds": 0, "containers": [
                {"name": "hello", "image": "hello:latest", "imagePullPolicy": "IfNotPresent", "ports": [{"containerPort": 8080}]}]},
        }},
    }))?;
    let begun = Instant::now();
    deployments.create(&PostParams::default(), &deployment).await?;
    loop {
        if http_get(url).await.is_ok_and(|answer| answer.status == 200) {
            break;
        }
        if begun.elapsed() > RUN_DEADLINE {
            return Err(format!("run {run}: no answer at {url} after {RUN_DEADLINE:?}").into());
        }
        tokio::time::sleep(Duration::from_micros(500)).await;
    }
    let elapsed = begun.elapsed();
    deployments.delete(&name, &DeleteParams::foreground()).await?;
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    while !pods.list(&ListParams::default().labels("app=hello")).await?.items.is_empty()
        || http_get(url).await.is_ok_and(|answer| answer.status == 200)
    {
        if begun.elapsed() > RUN_DEADLINE {
            return Err(format!("run {run}: the pod is still there after {RUN_DEADLINE:?}").into());
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(elapsed)
}
