//! What the mesh costs: a pod that calls another one, a request that another node answers, one that wakes a workload from nothing,
//! and many endpoints that change meanwhile. A server and two nodes, each a process of the real executable.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::cluster::examples;
use super::cost::Cost;
use super::http::{Caller, HOST, answers, node_port};
use super::servers::{stop, with_nodes};
use super::{Error, Figure};

/// The nodes, and the address on which each answers for Services.
const NODES: [(&str, Ipv4Addr); 2] = [("near", Ipv4Addr::new(127, 0, 0, 2)), ("far", Ipv4Addr::new(127, 0, 0, 3))];
const DEADLINE: Duration = Duration::from_secs(60);
/// What is compared is asked in turns, so that a slow moment of the machine does not hit one alone.
const TURNS: usize = 20;
const CALLS_PER_TURN: usize = 500;
/// How often a workload is woken.
const WAKES: usize = 50;
/// It has slept for so long when it is woken: controllers space what is done to one workload again and again.
const ASLEEP: Duration = Duration::from_secs(2);
/// Until it is put to sleep again where it has not gone by then.
const SLEEPS_WITHIN: Duration = Duration::from_secs(2);
/// Requests a second that come, all at once, to a workload without a pod; for how long, and over how many connections.
const STEP_RATE: u32 = 10_000;
const STEP_FOR: Duration = Duration::from_secs(3);
const STEP_CONNECTIONS: u32 = 64;
/// Endpoints of a slice, and how many slices change.
const SLICE_ENDPOINTS: usize = 100;
const SLICES: [usize; 2] = [1, 100];
const CHANGE_EVERY: Duration = Duration::from_millis(10);
/// An even number for each slice: who changes them next finds what the first found.
const CHANGES: usize = 600;

/// Nanoseconds.
type Times = Histogram<u64>;

impl Caller {
    async fn time(&mut self, path: &str, calls: usize, times: &mut Times) -> Result<(), Error> {
        for _ in 0..calls {
            let begun = Instant::now();
            self.call(path).await?;
            record(times, begun)?;
        }
        Ok(())
    }
}

fn times() -> Times {
    Times::new(3).expect("three digits are allowed")
}

fn record(times: &mut Times, since: Instant) -> Result<(), Error> {
    Ok(times.record(u64::try_from(since.elapsed().as_nanos())?)?)
}

fn micros(times: &Times, quantile: f64) -> f64 {
    times.value_at_quantile(quantile) as f64 / 1e3
}

/// The cluster that is measured, and who is told.
struct Bench<'a, R, D> {
    client: Client,
    near: SocketAddr,
    near_process: u32,
    report: &'a mut R,
    doing: &'a mut D,
}

/// Runs it.
pub async fn run(program: &Path, report: &mut impl FnMut(Figure), doing: &mut impl FnMut(String)) -> Result<(), Error> {
    doing("a server and two nodes start".to_owned());
    let dir = tempfile::tempdir()?;
    let binds = NODES.map(|(_, address)| address.to_string());
    let arguments = [0, 1].map(|at| ["--node-port-bind", binds[at].as_str()]);
    let named = [0, 1].map(|at| (NODES[at].0, &arguments[at][..]));
    let (mut server, mut nodes) = with_nodes(program, dir.path(), &named).await?;
    let client = server.remote.client().clone();
    for component in ["hello", "probe"] {
        crate::push(&client, &crate::component(&examples()?, component).await?, &format!("{component}:latest")).await?;
    }
    let near = SocketAddr::from((NODES[0].1, expose(&client, "near", "hello", "near").await?));
    let near_process = nodes[0].id().ok_or("the node has ended")?;
    let mut bench = Bench { client, near, near_process, report, doing };
    bench.across_nodes().await?;
    bench.pod_to_pod().await?;
    bench.woken_from_zero().await?;
    bench.endpoints().await?;
    stop(nodes.iter_mut().chain([&mut server.child])).await?;
    dir.close()?;
    Ok(())
}

impl<R: FnMut(Figure), D: FnMut(String)> Bench<'_, R, D> {
    fn figures(&mut self, name: &str, times: &Times) {
        for (percentile, quantile) in [("p50", 0.5), ("p99", 0.99)] {
            (self.report)(Figure::new(format!("mesh.{name}.{percentile}"), micros(times, quantile), "µs"));
        }
    }

    /// Of two ways that were asked in turns, what one takes longer than the other.
    fn added(&mut self, name: &str, with: &Times, without: &Times) {
        for (percentile, quantile) in [("p50", 0.5), ("p99", 0.99)] {
            let added = micros(with, quantile) - micros(without, quantile);
            (self.report)(Figure::new(format!("mesh.{name}.added.{percentile}"), added, "µs"));
        }
    }

    /// A pod of the other node, asked there and here.
    async fn across_nodes(&mut self) -> Result<(), Error> {
        (self.doing)("a node asks a pod of the other".to_owned());
        let port = expose(&self.client, "far", "hello", "far").await?;
        let at = NODES.map(|(_, address)| SocketAddr::from((address, port)));
        let (mut here, mut there) = (times(), times());
        answers(at[0], HOST).await?;
        let (mut through_near, mut at_far) = (Caller::connect(at[0], HOST).await?, Caller::connect(at[1], HOST).await?);
        let mut cost = Cost::default();
        for _ in 0..TURNS {
            at_far.time("/", CALLS_PER_TURN, &mut there).await?;
            let before = Cost::of(self.near_process)?;
            through_near.time("/", CALLS_PER_TURN, &mut here).await?;
            cost += Cost::of(self.near_process)? - before;
        }
        self.figures("on_its_node", &there);
        self.figures("across_nodes", &here);
        self.added("across_nodes", &here, &there);
        let each = cost.cpu.as_secs_f64() * 1e6 / here.len() as f64;
        (self.report)(Figure::new("mesh.across_nodes.first_node.cpu", each, "µs/request"));
        Ok(())
    }

    /// A pod that asks another one of its node, and the same pod asked for something of its own.
    async fn pod_to_pod(&mut self) -> Result<(), Error> {
        (self.doing)("a pod asks another".to_owned());
        let probe = SocketAddr::from((NODES[0].1, expose(&self.client, "probe", "probe", "near").await?));
        let mut caller = Caller::connect(probe, HOST).await?;
        let (mut own, mut other) = (times(), times());
        for _ in 0..TURNS {
            caller.time("/", CALLS_PER_TURN, &mut own).await?;
            caller.time("/get?http://near/", CALLS_PER_TURN, &mut other).await?;
        }
        self.figures("pod_alone", &own);
        self.figures("pod_to_pod", &other);
        self.added("pod_to_pod", &other, &own);
        Ok(())
    }

    /// The first answer of a workload without a pod, on a node that has its component; then many requests at once to it.
    async fn woken_from_zero(&mut self) -> Result<(), Error> {
        let deployment: Deployment = serde_json::from_value(json!({
            "metadata": {"name": "sleeper", "annotations": {"autoscaling.coracle.dev/min-scale": "0"}},
            "spec": {"selector": {"matchLabels": {"app": "sleeper"}}, "template": {
                "metadata": {"labels": {"app": "sleeper"}, "annotations": {"coracle.dev/http-reuse": "1000000"}},
                "spec": pod_spec("hello", "near"),
            }},
        }))?;
        let deployments: Api<Deployment> = Api::default_namespaced(self.client.clone());
        deployments.create(&PostParams::default(), &deployment).await?;
        let address = SocketAddr::from((NODES[0].1, node_port(&self.client, "sleeper").await?));
        answers(address, HOST).await?;
        let mut warm = times();
        Caller::connect(address, HOST).await?.time("/", CALLS_PER_TURN, &mut warm).await?;
        let mut woken = times();
        for wake in 1..=WAKES {
            (self.doing)(format!("a workload is woken: {wake} of {WAKES}"));
            self.sleep(&deployments).await?;
            let mut caller = Caller::connect(address, HOST).await?;
            let begun = Instant::now();
            caller.call("/").await?;
            record(&mut woken, begun)?;
        }
        self.figures("from_zero", &woken);
        self.added("from_zero", &woken, &warm);
        (self.doing)(format!("{STEP_RATE} requests a second wake it"));
        self.sleep(&deployments).await?;
        let step = step(address).await?;
        self.figures("from_zero_to_10000", &step);
        (self.report)(Figure::new("mesh.from_zero_to_10000.max", step.max() as f64 / 1e3, "µs"));
        deployments.delete("sleeper", &DeleteParams::default()).await?;
        Ok(())
    }

    /// Puts the workload to sleep; returns when it has had none for a while. What was asked just before may be told of after that, and wakes it once more.
    async fn sleep(&self, deployments: &Api<Deployment>) -> Result<(), Error> {
        let none = Patch::Merge(json!({"spec": {"replicas": 0}}));
        let pods: Api<Pod> = Api::default_namespaced(self.client.clone());
        let of_it = ListParams::default().labels("app=sleeper");
        let begun = Instant::now();
        while begun.elapsed() < DEADLINE {
            deployments.patch("sleeper", &PatchParams::default(), &none).await?;
            let asked = Instant::now();
            let mut gone = None;
            while asked.elapsed() < SLEEPS_WITHIN + ASLEEP {
                let is_gone = pods.list_metadata(&of_it).await?.items.is_empty();
                gone = is_gone.then(|| gone.unwrap_or_else(Instant::now));
                if gone.is_some_and(|gone| gone.elapsed() >= ASLEEP) {
                    return Ok(());
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        Err("the workload does not go to sleep".into())
    }

    /// What changes of a Service with few and with many endpoints cost a node, and those who ask another Service meanwhile.
    async fn endpoints(&mut self) -> Result<(), Error> {
        let service: Service = serde_json::from_value(json!({
            "metadata": {"name": "many"}, "spec": {"ports": [{"port": 80, "targetPort": 8080}]},
        }))?;
        Api::default_namespaced(self.client.clone()).create(&PostParams::default(), &service).await?;
        let slices: Api<EndpointSlice> = Api::default_namespaced(self.client.clone());
        let mut caller = Caller::connect(self.near, HOST).await?;
        let mut made = 0;
        for count in SLICES {
            (self.doing)(format!("{} endpoints change", count * SLICE_ENDPOINTS));
            for number in made..count {
                slices.create(&PostParams::default(), &slice(number, true)?).await?;
            }
            made = count;
            let before = Cost::of(self.near_process)?;
            change(&slices, count).await?;
            let cost = Cost::of(self.near_process)? - before;
            let each = cost.cpu.as_secs_f64() * 1e6 / CHANGES as f64;
            let name = format!("mesh.{}_endpoints.change.cpu", count * SLICE_ENDPOINTS);
            (self.report)(Figure::new(name, each, "µs"));
        }
        let (mut quiet, mut changing) = (times(), times());
        let until = Instant::now() + CHANGE_EVERY * u32::try_from(CHANGES)?;
        while Instant::now() < until {
            caller.time("/", 1, &mut quiet).await?;
        }
        let changes = change(&slices, made);
        tokio::pin!(changes);
        loop {
            tokio::select! {
                changed = &mut changes => break changed?,
                timed = caller.time("/", 1, &mut changing) => timed?,
            }
        }
        self.figures("while_none_changes", &quiet);
        self.figures("while_endpoints_change", &changing);
        Ok(())
    }
}

/// Runs a pod of a component on a node, each instance for many requests, behind a NodePort; returns the port once it answers there.
async fn expose(client: &Client, name: &str, component: &str, node: &str) -> Result<u16, Error> {
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": name, "labels": {"app": name}, "annotations": {"coracle.dev/http-reuse": "1000000"}},
        "spec": pod_spec(component, node),
    }))?;
    Api::<Pod>::default_namespaced(client.clone()).create(&PostParams::default(), &pod).await?;
    let port = node_port(client, name).await?;
    let (_, address) = NODES.iter().find(|(known, _)| *known == node).ok_or("there is no such node")?;
    answers(SocketAddr::from((*address, port)), HOST).await?;
    Ok(port)
}

fn pod_spec(component: &str, node: &str) -> Value {
    json!({
        "nodeSelector": {"kubernetes.io/hostname": node}, "terminationGracePeriodSeconds": 0,
        "containers": [{"name": component, "image": format!("{component}:latest"), "imagePullPolicy": "IfNotPresent",
            "ports": [{"containerPort": 8080}]}],
    })
}

/// Requests at fixed times, whether those before are answered or not; each one's time counts from when it should have been sent.
async fn step(address: SocketAddr) -> Result<Times, Error> {
    let begun = Instant::now();
    let mut callers = JoinSet::new();
    for first in 0..STEP_CONNECTIONS {
        callers.spawn(async move {
            let mut caller = Caller::connect(address, HOST).await?;
            let mut times = times();
            for number in (first..).step_by(STEP_CONNECTIONS as usize) {
                let due = Duration::from_secs(1) * number / STEP_RATE;
                if due > STEP_FOR {
                    break;
                }
                tokio::time::sleep_until((begun + due).into()).await;
                caller.call("/").await?;
                record(&mut times, begun + due)?;
            }
            Ok::<_, Error>(times)
        });
    }
    let mut all = times();
    while let Some(ended) = callers.join_next().await {
        all.add(ended??)?;
    }
    Ok(all)
}

/// One slice of the Service `many`; in one state or the other.
fn slice(number: usize, is_ready: bool) -> Result<EndpointSlice, Error> {
    let endpoints = (0..SLICE_ENDPOINTS).map(|endpoint| {
        let address = format!("10.200.{number}.{}", endpoint + 1);
        json!({"addresses": [address], "conditions": {"ready": endpoint > 0 || is_ready}})
    });
    Ok(serde_json::from_value(json!({
        "metadata": {"name": format!("many-{number}"), "labels": {"kubernetes.io/service-name": "many"}},
        "addressType": "IPv4", "ports": [{"port": 8080}], "endpoints": endpoints.collect::<Vec<_>>(),
    }))?)
}

/// Changes an endpoint every ten milliseconds, of one slice after another.
async fn change(slices: &Api<EndpointSlice>, count: usize) -> Result<(), Error> {
    let mut due = tokio::time::interval(CHANGE_EVERY);
    for number in 0..CHANGES {
        due.tick().await;
        let slice = slice(number % count, (number / count) % 2 == 1)?;
        let name = format!("many-{}", number % count);
        slices.patch(&name, &PatchParams::default(), &Patch::Merge(json!({"endpoints": slice.endpoints}))).await?;
    }
    Ok(())
}
