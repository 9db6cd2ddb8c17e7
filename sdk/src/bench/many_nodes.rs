//! Many nodes that this program plays, and their pods: until all are ready, and what they take of a server's memory.
//!
//! A node is its object and a lease that is renewed; a pod that got one of them is said to run and to be ready as soon as that is
//! heard. What a node does besides (a watch of its own, images, guests) is not here: the figures are the control plane's.

use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use futures::{StreamExt as _, TryStreamExt as _};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, NotUsed, Object};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::wait::await_condition;
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client};
use serde_json::json;

use super::cluster::Resident;
use super::servers::{Server, stop};
use super::{Error, Figure};

/// Pods and nodes of a rollout, and those that a server shall have room for.
const FEW: (usize, usize) = (5_000, 1_000);
const MANY: (usize, usize) = (100_000, 5_000);
/// Pods of each Deployment beyond the first.
const REPLICAS: usize = 1_000;
/// Requests at a time.
const WRITERS: usize = 64;
/// How long a lease promises that its node is heard of, and how often it is renewed.
const PROMISE: Duration = Duration::from_secs(40);
const RENEW_EVERY: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// After the last pod, until memory is read: what is told of them is written by then.
const SETTLE: Duration = Duration::from_secs(10);
const DEADLINE: Duration = Duration::from_secs(600);

/// Runs it.
pub async fn run(program: &Path, report: &mut impl FnMut(Figure), doing: &mut impl FnMut(String)) -> Result<(), Error> {
    let dir = tempfile::tempdir()?;
    let mut server = Server::start(program, dir.path().join("server"), "server", &[]).await?;
    let client = server.remote.client().clone();
    let measured = async {
        let (pods, nodes) = FEW;
        doing(format!("{nodes} nodes come"));
        make_nodes(&client, 0..nodes).await?;
        doing(format!("a Deployment of {pods}"));
        report(Figure::new(
            format!("many_nodes.{pods}_pods_on_{nodes}_ready"),
            ready(&client, "first", pods).await?,
            "s",
        ));
        let (pods, nodes) = MANY;
        doing(format!("{nodes} nodes come"));
        make_nodes(&client, FEW.1..nodes).await?;
        doing(format!("Deployments of {pods} pods in all"));
        let begun = Instant::now();
        let names = (0..(pods - FEW.0) / REPLICAS).map(|at| format!("more-{at}"));
        let rollouts = futures::stream::iter(names).map(|name| {
            let client = client.clone();
            async move { ready(&client, &name, REPLICAS).await }
        });
        rollouts.buffer_unordered(WRITERS).try_collect::<Vec<f64>>().await?;
        report(Figure::new(format!("many_nodes.{pods}_pods_on_{nodes}_ready"), begun.elapsed().as_secs_f64(), "s"));
        tokio::time::sleep(SETTLE).await;
        let resident = Resident::of(server.child.id().ok_or("the server has ended")?)?;
        report(Figure::new("many_nodes.resident", resident.all as f64 / 1e6, "MB"));
        report(Figure::new("many_nodes.own", resident.own as f64 / 1e6, "MB"));
        Ok::<(), Error>(())
    };
    // All of it ends when any of them does.
    tokio::select! {
        done = measured => done?,
        ended = run_pods(&client) => return Err(format!("nobody runs pods any more: {ended:?}").into()),
        ended = renew_leases(&client) => return Err(format!("nobody renews leases any more: {ended:?}").into()),
    }
    stop([&mut server.child]).await?;
    dir.close()?;
    Ok(())
}

/// Makes nodes of these numbers; returns when pods may go there.
async fn make_nodes(client: &Client, numbers: Range<usize>) -> Result<(), Error> {
    let (nodes, leases) = (Api::<Node>::all(client.clone()), leases(client));
    let (nodes, leases) = (&nodes, &leases);
    let made = futures::stream::iter(numbers).map(|number| async move {
        let name = format!("node-{number}");
        let now = Timestamp::now();
        let room = json!({"cpu": "32", "memory": "256Gi", "pods": "110"});
        let node: Node = serde_json::from_value(json!({
            "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux",
                "topology.kubernetes.io/zone": format!("zone-{}", number % 3)}},
            "status": {"allocatable": room, "capacity": room, "conditions": [{"type": "Ready", "status": "True",
                "reason": "KubeletReady", "lastHeartbeatTime": now, "lastTransitionTime": now}]},
        }))?;
        nodes.create(&PostParams::default(), &node).await?;
        let lease: Lease = serde_json::from_value(json!({
            "metadata": {"name": name},
            "spec": {"holderIdentity": name, "leaseDurationSeconds": PROMISE.as_secs(), "renewTime": MicroTime(now)},
        }))?;
        leases.create(&PostParams::default(), &lease).await?;
        Ok::<(), Error>(())
    });
    made.buffer_unordered(WRITERS).try_collect::<()>().await?;
    let begun = Instant::now();
    loop {
        let all = nodes.list(&ListParams::default()).await?;
        let is_tainted = |node: &Node| node.spec.as_ref().is_some_and(|spec| spec.taints.is_some());
        match all.iter().any(is_tainted) {
            false => return Ok(()),
            true if begun.elapsed() > DEADLINE => return Err("no pod may go to some nodes".into()),
            true => tokio::time::sleep(LOOK_EVERY).await,
        }
    }
}

fn leases(client: &Client) -> Api<Lease> {
    Api::namespaced(client.clone(), "kube-node-lease")
}

/// Makes a Deployment; how many seconds it takes until its pods are ready.
async fn ready(client: &Client, name: &str, pods: usize) -> Result<f64, Error> {
    let deployments: Api<Deployment> = Api::default_namespaced(client.clone());
    let deployment: Deployment = serde_json::from_value(json!({
        "metadata": {"name": name},
        "spec": {"replicas": pods, "selector": {"matchLabels": {"app": name}}, "template": {
            "metadata": {"labels": {"app": name}},
            "spec": {"containers": [{"name": "hello", "image": "hello:latest", "ports": [{"containerPort": 8080}],
                "resources": {"requests": {"cpu": "1m", "memory": "1Mi"}}}]},
        }},
    }))?;
    let wanted = i32::try_from(pods)?;
    let all = await_condition(deployments.clone(), name, move |found: Option<&Deployment>| {
        found.and_then(|it| it.status.as_ref()).and_then(|status| status.ready_replicas).unwrap_or(0) >= wanted
    });
    let begun = Instant::now();
    deployments.create(&PostParams::default(), &deployment).await?;
    let all = tokio::time::timeout(DEADLINE, all).await;
    all.map_err(|_| format!("{pods} pods of {name} are not ready after {DEADLINE:?}"))??;
    Ok(begun.elapsed().as_secs_f64())
}

/// A pod that has a node and does not run: what else it is would take more time to read than the server has for it.
type Bound = Object<NotUsed, NotUsed>;

/// Says of every pod that got a node that it runs and is ready. Ends when that is refused.
async fn run_pods(client: &Client) -> Result<(), Error> {
    let all: Api<Bound> = Api::all_with(client.clone(), &ApiResource::erase::<Pod>(&()));
    let bound = watcher::Config::default().fields("spec.nodeName!=,status.phase=Pending");
    let number = AtomicU32::new(0);
    // A watch that breaks is taken up again.
    let started = watcher(all, bound).default_backoff().filter_map(|event| {
        let pod = match event {
            Ok(watcher::Event::Apply(pod) | watcher::Event::InitApply(pod)) => Some(pod),
            _ => None,
        };
        std::future::ready(pod.map(Ok))
    });
    let start = |pod| start(client, pod, number.fetch_add(1, Ordering::Relaxed));
    started.try_for_each_concurrent(WRITERS, start).await
}

async fn start(client: &Client, pod: Bound, number: u32) -> Result<(), Error> {
    let now = Timestamp::from_second(Timestamp::now().as_second())?;
    let [_, a, b, c] = number.to_be_bytes();
    let condition = |type_: &str| json!({"type": type_, "status": "True", "lastTransitionTime": now});
    let conditions = ["PodScheduled", "Initialized", "ContainersReady", "Ready"].map(condition);
    let status = json!({"status": {
        "phase": "Running",
        "podIP": format!("10.{}.{b}.{c}", 128 + a),
        "podIPs": [{"ip": format!("10.{}.{b}.{c}", 128 + a)}],
        "hostIP": "192.168.0.1",
        "startTime": now,
        "conditions": conditions,
        "containerStatuses": [{"name": "hello", "image": "hello:latest", "imageID": "", "ready": true, "started": true,
            "restartCount": 0, "state": {"running": {"startedAt": now}}}],
    }});
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    pods.patch_status(name, &PatchParams::default(), &Patch::Merge(&status)).await?;
    Ok(())
}

/// Renews the leases that there are, again and again. Ends when that is refused.
async fn renew_leases(client: &Client) -> Result<(), Error> {
    let leases = leases(client);
    let leases = &leases;
    loop {
        tokio::time::sleep(RENEW_EVERY).await;
        let names = leases.list_metadata(&ListParams::default()).await?.items.into_iter();
        let renewed = futures::stream::iter(names.filter_map(|lease| lease.metadata.name)).map(|name| async move {
            let renewal = json!({"spec": {"renewTime": MicroTime(Timestamp::now())}});
            leases.patch(&name, &PatchParams::default(), &Patch::Merge(&renewal)).await.map(drop)
        });
        // Few at a time: pods are to be started meanwhile.
        renewed.buffer_unordered(WRITERS / 8).try_collect::<()>().await?;
    }
}
