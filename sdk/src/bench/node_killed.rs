//! A node with many pods is killed: how long Services lead to them still, and until all run elsewhere.

use std::path::Path;
use std::time::{Duration, Instant};

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Api;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use serde_json::json;

use super::cluster::examples;
use super::servers::{stop, with_nodes};
use super::{Error, Figure};

const PODS: i32 = 1_000;
const NODES: [&str; 2] = ["killed", "other"];
const DEADLINE: Duration = Duration::from_secs(180);
/// How often it is looked how things are.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Runs it.
pub async fn run(program: &Path, report: &mut impl FnMut(Figure), doing: &mut impl FnMut(String)) -> Result<(), Error> {
    doing("a server and two nodes start".to_owned());
    let dir = tempfile::tempdir()?;
    let (mut server, mut nodes) = with_nodes(program, dir.path(), &NODES.map(|name| (name, &[][..]))).await?;
    let client = server.remote.client().clone();
    crate::push(&client, &crate::component(&examples()?, "hello").await?, "hello:latest").await?;
    let all: Api<Node> = Api::all(client.clone());
    let cordon = |is_cordoned: bool| Patch::Merge(json!({"spec": {"unschedulable": is_cordoned}}));
    all.patch(NODES[1], &PatchParams::default(), &cordon(true)).await?;
    let deployments: Api<Deployment> = Api::default_namespaced(client.clone());
    let deployment: Deployment = serde_json::from_value(json!({
        "metadata": {"name": "hello"},
        "spec": {"replicas": PODS, "selector": {"matchLabels": {"app": "hello"}}, "template": {
            "metadata": {"labels": {"app": "hello"}},
            "spec": {"containers": [{"name": "hello", "image": "hello:latest", "imagePullPolicy": "IfNotPresent",
                "ports": [{"containerPort": 8080}]}]},
        }},
    }))?;
    doing(format!("{PODS} pods start on one of them"));
    deployments.create(&PostParams::default(), &deployment).await?;
    let service: Service = serde_json::from_value(json!({
        "metadata": {"name": "hello"}, "spec": {"selector": {"app": "hello"}, "ports": [{"port": 80, "targetPort": 8080}]},
    }))?;
    Api::default_namespaced(client.clone()).create(&PostParams::default(), &service).await?;
    let slices: Api<EndpointSlice> = Api::default_namespaced(client);
    let want = usize::try_from(PODS)?;
    until("all are ready on one node", async || Ok(endpoints(&slices, NODES[0]).await? == want)).await?;
    all.patch(NODES[1], &PatchParams::default(), &cordon(false)).await?;
    doing("that node is killed".to_owned());
    nodes[0].start_kill()?;
    let killed = Instant::now();
    until("no endpoint is on it", async || Ok(endpoints(&slices, NODES[0]).await? == 0)).await?;
    report(Figure::new("node_killed.endpoints_gone", killed.elapsed().as_secs_f64(), "s"));
    until("all are ready on the other", async || Ok(endpoints(&slices, NODES[1]).await? == want)).await?;
    report(Figure::new(format!("node_killed.{PODS}_pods_ready_elsewhere"), killed.elapsed().as_secs_f64(), "s"));
    nodes[0].wait().await?;
    stop([&mut nodes[1], &mut server.child]).await?;
    dir.close()?;
    Ok(())
}

/// How many ready endpoints are on a node.
async fn endpoints(slices: &Api<EndpointSlice>, node: &str) -> Result<usize, Error> {
    let of_service = ListParams::default().labels("kubernetes.io/service-name=hello");
    let slices = slices.list(&of_service).await?.items;
    let all = slices.iter().flat_map(|slice| slice.endpoints.iter().flatten());
    let is_ready = |conditions: &k8s_openapi::api::discovery::v1::EndpointConditions| conditions.ready == Some(true);
    Ok(all
        .filter(|endpoint| endpoint.node_name.as_deref() == Some(node))
        .filter(|endpoint| endpoint.conditions.as_ref().is_some_and(is_ready))
        .count())
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> Result<bool, Error>) -> Result<(), Error> {
    let looks = async {
        while !holds().await? {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    };
    tokio::time::timeout(DEADLINE, looks).await.map_err(|_| format!("{what}: not within {DEADLINE:?}"))?
}
