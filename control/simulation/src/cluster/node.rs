//! A node without a machine: it registers, renews its lease, follows its pods, says that they run, and ends them when they are
//! deleted, through the client and in the order of the real agent (`runtime/node`: `registration.rs`, `pod/table.rs`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _};
use http::Method;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Api;
use kube::runtime::{WatchStreamExt as _, watcher};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::cluster::clients::REQUEST_MILLIS;
use crate::cluster::wire::{Outcome, Way, ask};
use crate::cluster::world::World;
use crate::plants::Plant;

/// What all nodes together have room for: everything that clients ask for, and what a change of it takes meanwhile. Where one is given
/// up, pods have to be counted.
const PODS: u64 = 30;
/// How long a lease is good, and how often it is renewed: half as often as the real agent's, for the sake of the test's time.
const LEASE_SECONDS: u32 = 8;
const RENEW_EVERY: Duration = Duration::from_secs(2);
/// How long a pod takes to end.
const ENDING: Duration = Duration::from_millis(300);

/// The agent.
pub struct Agent {
    world: Arc<World>,
    name: String,
    client: kube::Client,
    /// Pods that run here, by uid, and whether they are being ended.
    running: Mutex<BTreeMap<String, Life>>,
    /// Says that the node's own object does not say what is true.
    wrong: Notify,
    number: usize,
}

#[derive(Clone)]
struct Life {
    ending: bool,
}

impl Agent {
    /// One that does nothing yet.
    pub fn new(world: &Arc<World>, number: usize) -> Arc<Agent> {
        let name = name(number);
        let client = Way::client(world, &name, &format!("system:node:{name}"), &["system:nodes"]);
        Arc::new(Agent { world: world.clone(), name, client, running: Mutex::default(), wrong: Notify::new(), number })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The pods that run here.
    pub fn running(&self) -> BTreeSet<String> {
        self.running.lock().keys().cloned().collect()
    }

    /// Lives for as long as the world.
    pub async fn run(self: Arc<Agent>) {
        while !self.register().await {
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        futures::join!(self.live(), self.keep(), self.follow(), self.clone().pods());
    }

    async fn ask(&self, method: Method, path: &str, media: &str, body: &Value) -> Outcome {
        ask(&self.client, method, path, media, body).await
    }

    async fn register(&self) -> bool {
        let labels = json!({"kubernetes.io/hostname": self.name, "kubernetes.io/os": "linux"});
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": self.name, "labels": labels}});
        let made = self.ask(Method::POST, "/api/v1/nodes", "application/json", &node).await;
        matches!(made, Outcome::Done(_) | Outcome::Refused(409)) && self.write_status().await
    }

    async fn write_status(&self) -> bool {
        let path = format!("/api/v1/nodes/{}", self.name);
        let Outcome::Done(old) = self.ask(Method::GET, &path, "application/json", &Value::Null).await else {
            return false;
        };
        let conditions = old["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
        let given_up = conditions.iter().any(|known| known["type"] == "Ready" && known["status"] == "Unknown");
        let before = self.world.applied();
        if given_up && self.world.plant != Plant::ForgottenNodeFence && !self.end_replaced().await {
            return false;
        }
        let now = jiff::Timestamp::now().to_string();
        let ready = json!({
            "type": "Ready", "status": "True", "reason": "KubeletReady", "message": "it runs",
            "lastHeartbeatTime": now, "lastTransitionTime": now,
        });
        let room = json!({"cpu": format!("{}m", self.world.cpu_millis), "memory": "8Gi", "pods": "110", "ephemeral-storage": "8Gi"});
        let address = json!({"type": "InternalIP", "address": format!("192.0.2.{}", self.number + 1)});
        let status = json!({"capacity": room, "allocatable": room, "conditions": [ready], "addresses": [address]});
        let patch = json!({"status": status});
        let path = format!("{path}/status");
        let media = "application/strategic-merge-patch+json";
        let written = self.ask(Method::PATCH, &path, media, &patch).await;
        let is_written = matches!(written, Outcome::Done(_));
        if given_up && is_written {
            self.world.history.node_returned(&self.name, before, self.running());
        }
        is_written
    }

    /// Ends what went while the node was not heard of, before it says that it is back.
    async fn end_replaced(&self) -> bool {
        let path = format!("/api/v1/pods?fieldSelector=spec.nodeName%3D{}", self.name);
        let Outcome::Done(list) = self.ask(Method::GET, &path, "application/json", &Value::Null).await else {
            return false;
        };
        let items = list["items"].as_array().map(Vec::as_slice).unwrap_or_default();
        let lives = items.iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
        let lives: BTreeSet<&str> = lives.filter_map(|pod| pod["metadata"]["uid"].as_str()).collect();
        self.running.lock().retain(|uid, _| lives.contains(uid.as_str()));
        true
    }

    /// Renews the lease. What fails is tried again when the next renewal is due.
    async fn live(&self) {
        let leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
        let path = format!("{leases}/{}", self.name);
        loop {
            let renewed = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string();
            let spec = json!({
                "holderIdentity": self.name, "leaseDurationSeconds": LEASE_SECONDS, "renewTime": renewed,
            });
            let media = "application/merge-patch+json";
            let patched = self.ask(Method::PATCH, &path, media, &json!({"spec": spec})).await;
            if let Outcome::Refused(404) = patched {
                let metadata = json!({"name": self.name, "namespace": "kube-node-lease"});
                let lease = json!({
                    "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec,
                });
                self.ask(Method::POST, leases, "application/json", &lease).await;
            }
            tokio::time::sleep(RENEW_EVERY).await;
        }
    }

    /// Writes the status whenever the own object says something else.
    async fn keep(&self) {
        loop {
            self.wrong.notified().await;
            while !self.write_status().await {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }

    /// Follows the own object.
    async fn follow(&self) {
        let config = watcher::Config::default().fields(&format!("metadata.name={}", self.name));
        let mut events = watcher(Api::<Node>::all(self.client.clone()), config).default_backoff().boxed();
        loop {
            if let Ok(Some(watcher::Event::Apply(node) | watcher::Event::InitApply(node))) = events.try_next().await {
                let conditions = node.status.and_then(|status| status.conditions).unwrap_or_default();
                if !conditions.iter().any(|known| known.type_ == "Ready" && known.status == "True") {
                    self.wrong.notify_one();
                }
            }
        }
    }

    async fn pods(self: Arc<Agent>) {
        let config = watcher::Config::default().fields(&format!("spec.nodeName={}", self.name));
        let mut events = watcher(Api::<Pod>::all(self.client.clone()), config).default_backoff().boxed();
        let mut listed = BTreeSet::new();
        loop {
            match events.try_next().await {
                Ok(Some(watcher::Event::Apply(pod))) => self.seen(pod),
                Ok(Some(watcher::Event::Delete(pod))) => {
                    self.running.lock().remove(&pod.metadata.uid.unwrap_or_default());
                }
                Ok(Some(watcher::Event::Init)) => listed.clear(),
                Ok(Some(watcher::Event::InitApply(pod))) => {
                    listed.extend(pod.metadata.uid.clone());
                    self.seen(pod);
                }
                Ok(Some(watcher::Event::InitDone)) => self.running.lock().retain(|uid, _| listed.contains(uid)),
                Ok(None) | Err(_) => (),
            }
        }
    }

    fn seen(self: &Arc<Agent>, pod: Pod) {
        let (Some(uid), Some(name)) = (pod.metadata.uid.clone(), pod.metadata.name.clone()) else { return };
        let path = format!("/api/v1/namespaces/{}/pods/{name}", pod.metadata.namespace.as_deref().unwrap_or_default());
        let status = pod.status.unwrap_or_default();
        let phase = status.phase.as_deref().unwrap_or("Pending");
        if phase == "Failed" || phase == "Succeeded" {
            self.running.lock().remove(&uid);
        }
        if pod.metadata.deletion_timestamp.is_some() {
            let mut running = self.running.lock();
            let life = running.entry(uid.clone()).or_insert(Life { ending: false });
            if !std::mem::replace(&mut life.ending, true) {
                tokio::spawn(self.clone().end(uid, path));
            }
            return;
        }
        let ready = status.conditions.unwrap_or_default().into_iter().any(|c| c.type_ == "Ready" && c.status == "True");
        if !ready && (phase == "Pending" || phase == "Running") {
            self.running.lock().entry(uid.clone()).or_insert(Life { ending: false });
            tokio::spawn(self.clone().report(uid, path));
        }
    }

    async fn end(self: Arc<Agent>, uid: String, path: String) {
        tokio::time::sleep(ENDING).await;
        let options = json!({
            "apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0, "preconditions": {"uid": uid},
        });
        self.running.lock().remove(&uid);
        loop {
            match self.ask(Method::DELETE, &path, "application/json", &options).await {
                Outcome::Done(_) | Outcome::Refused(404 | 409) => return,
                _ => tokio::time::sleep(Duration::from_millis(500)).await,
            }
        }
    }

    /// Says that a pod runs and is ready, as long as it does.
    async fn report(self: Arc<Agent>, uid: String, path: String) {
        let status = json!({
            "phase": "Running", "podIP": self.world.address(&uid), "podIPs": [{"ip": self.world.address(&uid)}],
            "conditions": [
                {"type": "Initialized", "status": "True"}, {"type": "ContainersReady", "status": "True"},
                {"type": "Ready", "status": "True"},
            ],
        });
        let patch = json!({"metadata": {"uid": uid}, "status": status});
        let media = "application/strategic-merge-patch+json";
        let path = format!("{path}/status");
        while self.running.lock().get(&uid).is_some_and(|life| !life.ending) {
            match self.ask(Method::PATCH, &path, media, &patch).await {
                Outcome::Done(_) | Outcome::Refused(404 | 409) => return,
                _ => tokio::time::sleep(Duration::from_millis(500)).await,
            }
        }
    }
}

/// What each of so many nodes can give.
pub fn cpu_millis(nodes: usize) -> u64 {
    PODS.div_ceil(nodes as u64) * REQUEST_MILLIS
}

/// The name of a node.
pub fn name(number: usize) -> String {
    format!("node-{number}")
}
