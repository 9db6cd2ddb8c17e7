//! What people do meanwhile: registers and a counter in ConfigMaps, whose values are judged; and Deployments, ReplicaSets, Pods and
//! Services that are made, scaled, changed and deleted, which give the controllers work.

use std::sync::Arc;
use std::time::Duration;

use http::Method;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use crate::cluster::invariants::revisions;
use crate::cluster::wire::{Outcome, Way, ask, revision};
use crate::cluster::world::World;

/// How many there are.
pub const CLIENTS: u64 = 3;
/// What each pod asks for.
pub const REQUEST_MILLIS: u64 = 500;
const JSON: &str = "application/json";
const MERGE: &str = "application/merge-patch+json";
const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// One of them.
pub struct Client {
    world: Arc<World>,
    client: kube::Client,
    number: u64,
    random: StdRng,
    next: u64,
}

impl Client {
    /// The client number `number`.
    pub fn new(world: &Arc<World>, number: u64) -> Client {
        let client = Way::client(world, &format!("client-{number}"), "admin", &["system:masters"]);
        Client {
            world: world.clone(),
            client,
            number,
            random: StdRng::seed_from_u64(world.seed ^ (number << 32) ^ 0xc11e),
            next: 0,
        }
    }

    /// Lives until there is calm.
    pub async fn run(mut self) {
        while !self.world.calm.is_cancelled() {
            match self.random.random_range(0..10) {
                0..=1 => self.write().await,
                2 => self.count().await,
                3..=4 => {
                    let of = self.random.random_range(0..CLIENTS);
                    self.read(of).await;
                }
                5 => self.list().await,
                _ => self.work().await,
            }
            let pause = Duration::from_millis(self.random.random_range(20..600));
            tokio::time::sleep(pause).await;
        }
    }

    async fn ask(&self, method: Method, path: &str, media: &str, body: &Value) -> Outcome {
        let outcome = ask(&self.client, method, path, media, body).await;
        if let Outcome::Done(object) = &outcome
            && let Some(revision) = revision(object)
        {
            self.world.promises.told(revision);
        }
        outcome
    }

    /// What is in a ConfigMap: its value, and the object if there is one.
    async fn value(&self, name: &str) -> Option<(u64, Option<Value>)> {
        let path = format!("{CONFIG_MAPS}/{name}");
        match self.ask(Method::GET, &path, JSON, &Value::Null).await {
            Outcome::Done(found) => {
                let value = found["data"]["value"].as_str()?.parse().ok()?;
                Some((value, Some(found)))
            }
            Outcome::Refused(404) => Some((0, None)),
            _ => None,
        }
    }

    /// Puts a value in the place of what is `there`, unless that has changed.
    async fn put(&self, name: &str, value: u64, there: Option<Value>) -> Outcome {
        let data = json!({"value": value.to_string()});
        match there {
            Some(mut there) => {
                there["data"] = data;
                self.ask(Method::PUT, &format!("{CONFIG_MAPS}/{name}"), JSON, &there).await
            }
            None => {
                let new = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data});
                self.ask(Method::POST, CONFIG_MAPS, JSON, &new).await
            }
        }
    }

    /// Writes the register that only this client writes.
    async fn write(&mut self) {
        let name = format!("register-{}", self.number);
        let Some((_, there)) = self.value(&name).await else { return };
        self.next += 1;
        self.world.promises.tries(&name, self.next);
        match self.put(&name, self.next, there).await {
            Outcome::Done(_) => self.world.promises.acknowledged(&name, self.next),
            Outcome::Refused(_) => self.world.promises.refused(&name, self.next),
            Outcome::Unknown => (),
        }
    }

    /// Adds one to the counter that all have.
    async fn count(&mut self) {
        let Some((value, there)) = self.value("counter").await else { return };
        match self.put("counter", value + 1, there).await {
            Outcome::Done(_) => self.world.promises.counted(),
            Outcome::Unknown => self.world.promises.perhaps_counted(),
            Outcome::Refused(_) => (),
        }
    }

    /// Reads somebody's register.
    pub async fn read(&self, of: u64) {
        let name = format!("register-{of}");
        let least = self.world.promises.least(&name);
        if let Some((found, _)) = self.value(&name).await {
            self.world.history.judges("registers");
            self.world.judge(self.world.promises.read(&name, least, found));
        }
    }

    /// Reads the counter at the end.
    pub async fn read_counter(&self) {
        if let Some((found, _)) = self.value("counter").await {
            self.world.judge(self.world.promises.count(found));
        }
    }

    async fn list(&self) {
        let least = self.world.promises.revision();
        if let Outcome::Done(list) = self.ask(Method::GET, CONFIG_MAPS, JSON, &Value::Null).await {
            self.world.judge(revisions::judge(&self.world, least, revision(&list).unwrap_or_default()));
        }
    }

    /// Gives controllers something to do.
    async fn work(&mut self) {
        let app = format!("app-{}", self.random.random_range(0..3));
        let replicas = self.random.random_range(0..5);
        let version = self.random.random_range(0..3);
        let core = "/api/v1/namespaces/default";
        let apps = "/apis/apps/v1/namespaces/default";
        let labels = json!({"app": app});
        let spec = json!({
            "tolerations": tolerations(),
            "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "main", "image": format!("app:v{version}"),
                "resources": {"requests": {"cpu": format!("{REQUEST_MILLIS}m")}},
            }],
        });
        let template = json!({"metadata": {"labels": labels}, "spec": spec});
        let (method, path, media, body) = match self.random.random_range(0..12) {
            0..=2 => {
                let body = json!({
                    "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": app},
                    "spec": {"replicas": replicas, "selector": {"matchLabels": labels}, "template": template},
                });
                (Method::POST, format!("{apps}/deployments"), JSON, body)
            }
            3..=4 => {
                let body = json!({"spec": {"replicas": replicas}});
                (Method::PATCH, format!("{apps}/deployments/{app}/scale"), MERGE, body)
            }
            5 => {
                let containers = json!([{
                    "name": "main", "image": format!("app:v{version}"),
                    "resources": {"requests": {"cpu": format!("{REQUEST_MILLIS}m")}},
                }]);
                let body = json!({"spec": {"template": {"spec": {"containers": containers}}}});
                (Method::PATCH, format!("{apps}/deployments/{app}"), MERGE, body)
            }
            6 => (Method::DELETE, format!("{apps}/deployments/{app}"), JSON, Value::Null),
            7 => {
                let labels = json!({"set": app});
                let body = json!({
                    "apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": format!("set-{app}")},
                    "spec": {
                        "replicas": replicas, "selector": {"matchLabels": labels},
                        "template": {"metadata": {"labels": labels}, "spec": template["spec"]},
                    },
                });
                (Method::POST, format!("{apps}/replicasets"), JSON, body)
            }
            8 => match self.random.random() {
                true => {
                    let body = json!({"spec": {"replicas": replicas}});
                    (Method::PATCH, format!("{apps}/replicasets/set-{app}/scale"), MERGE, body)
                }
                false => (Method::DELETE, format!("{apps}/replicasets/set-{app}"), JSON, Value::Null),
            },
            9 => {
                let metadata = json!({"name": format!("pod-{app}"), "labels": labels});
                let body = json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]});
                (Method::POST, format!("{core}/pods"), JSON, body)
            }
            10 => (Method::DELETE, format!("{core}/pods/pod-{app}"), JSON, Value::Null),
            _ => match self.random.random_range(0..3) {
                0 => (Method::DELETE, format!("{core}/services/{app}"), JSON, Value::Null),
                _ => {
                    let body = json!({
                        "apiVersion": "v1", "kind": "Service", "metadata": {"name": app},
                        "spec": {"selector": labels, "ports": [{"port": 80}]},
                    });
                    (Method::POST, format!("{core}/services"), JSON, body)
                }
            },
        };
        self.ask(method, &path, media, &body).await;
    }
}

/// Pods leave a silent node soon: a world has no five minutes.
fn tolerations() -> Value {
    let for_seconds = |key: &str| {
        json!({
            "key": format!("node.kubernetes.io/{key}"), "operator": "Exists", "effect": "NoExecute",
            "tolerationSeconds": 4,
        })
    };
    json!([for_seconds("unreachable"), for_seconds("not-ready")])
}
