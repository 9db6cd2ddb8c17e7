//! What controllers and custom resources take on several clusters, one after the other, printed side by side.
//!
//! ```console
//! $ cargo run --release --package coracle-tests --bin beside -- coracle=KUBECONFIG kubernetes=KUBECONFIG
//! ```
//!
//! It measures whatever the clusters' nodes do, too: let the same program play the same nodes in each (kwok, which ends the pods of
//! Jobs a second after they began). Figures are printed, not judged; the last columns say how often the
//! first cluster's time goes into the others'.

use std::path::Path;
use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt, stream};
use http::Request;
use k8s_openapi::api::apps::v1::{DaemonSet, StatefulSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DeleteParams, DynamicObject, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::{ApiResource, GroupVersionKind};
use kube::runtime::wait::{Condition, await_condition, conditions};
use kube::{Api, Client, Config, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

type Error = Box<dyn std::error::Error + Send + Sync>;

const COMPLETIONS: i32 = 1_000;
const REPLICAS: i32 = 100;
const OBJECTS: usize = 10_000;
const CLIENTS: usize = 64;
/// How often a list is read; the quickest counts.
const READS: usize = 5;
const DEADLINE: Duration = Duration::from_secs(600);
const IMAGE: &str = "hello:latest";
const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io";
const NAMESPACE: &str = "beside";

struct Cluster {
    name: String,
    client: Client,
}

impl Cluster {
    async fn connect(argument: &str) -> Result<Cluster, Error> {
        let (name, file) = argument.split_once('=').ok_or("a cluster is NAME=KUBECONFIG")?;
        let kubeconfig = Kubeconfig::read_from(Path::new(file))?;
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        Ok(Cluster { name: name.to_owned(), client: Client::try_from(config)? })
    }

    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    /// Creates an object; how long it takes until it is as it should be. Deletes it and waits until it is gone.
    async fn until<K>(&self, object: Value, holds: impl Condition<K>) -> Result<Duration, Error>
    where
        K: kube::Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>
            + Clone
            + std::fmt::Debug
            + Send
            + serde::Serialize
            + DeserializeOwned
            + 'static,
    {
        let api = self.api::<K>();
        let object: K = serde_json::from_value(object)?;
        let begun = Instant::now();
        let created = api.create(&PostParams::default(), &object).await?;
        let name = created.name_any();
        tokio::time::timeout(DEADLINE, await_condition(api.clone(), &name, holds)).await??;
        let took = begun.elapsed();
        api.delete(&name, &DeleteParams::foreground()).await?;
        let uid = created.uid().ok_or("what was created has no uid")?;
        tokio::time::timeout(DEADLINE, await_condition(api, &name, conditions::is_deleted(&uid))).await??;
        Ok(took)
    }

    async fn job(&self) -> Result<Duration, Error> {
        let job = json!({"metadata": {"name": "job"}, "spec": {
            "completions": COMPLETIONS, "parallelism": COMPLETIONS,
            "template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "main", "image": IMAGE}]}},
        }});
        let is_complete = |job: Option<&Job>| {
            job.and_then(|job| job.status.as_ref()?.succeeded).is_some_and(|succeeded| succeeded == COMPLETIONS)
        };
        self.until(job, is_complete).await
    }

    async fn stateful_set(&self) -> Result<Duration, Error> {
        let set = json!({"metadata": {"name": "set"}, "spec": {
            "replicas": REPLICAS, "serviceName": "set", "selector": {"matchLabels": {"app": "set"}}, "template": template("set"),
        }});
        let is_ready = |set: Option<&StatefulSet>| {
            set.and_then(|set| set.status.as_ref()?.ready_replicas).is_some_and(|ready| ready == REPLICAS)
        };
        self.until(set, is_ready).await
    }

    async fn daemon_set(&self) -> Result<Duration, Error> {
        let set = json!({"metadata": {"name": "daemons"}, "spec": {
            "selector": {"matchLabels": {"app": "daemons"}}, "template": template("daemons"),
        }});
        let is_ready = |set: Option<&DaemonSet>| {
            set.and_then(|set| set.status.as_ref()).is_some_and(|status| {
                status.desired_number_scheduled > 0 && status.number_ready == status.desired_number_scheduled
            })
        };
        self.until(set, is_ready).await
    }

    /// Objects of a kind with a schema and two versions, created and listed in the version that is not stored.
    async fn custom(&self) -> Result<Vec<(&'static str, Duration)>, Error> {
        let definition: CustomResourceDefinition = serde_json::from_value(definition())?;
        let definitions: Api<CustomResourceDefinition> = Api::all(self.client.clone());
        definitions.create(&PostParams::default(), &definition).await?;
        let name = definition.name_any();
        let established = await_condition(definitions.clone(), &name, conditions::is_crd_established());
        tokio::time::timeout(DEADLINE, established).await??;
        let kind = ApiResource::from_gvk(&GroupVersionKind::gvk("bench.example", "v2", "Boat"));
        let boats: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), NAMESPACE, &kind);
        let begun = Instant::now();
        stream::iter(0..OBJECTS)
            .map(|number| {
                let boat = DynamicObject::new(&format!("boat-{number:05}"), &kind).data(json!({"spec": {
                    "crew": number % 7, "name": "x".repeat(512), "cargo": [{"name": "wood", "kilograms": 12}, {"name": "salt", "kilograms": 3}],
                }}));
                let boats = &boats;
                async move { boats.create(&PostParams::default(), &boat).await }
            })
            .buffer_unordered(CLIENTS)
            .try_for_each(async |_| Ok(()))
            .await?;
        let mut figures = vec![("10,000 custom resources, created by 64", begun.elapsed())];
        let path = format!("/apis/bench.example/v2/namespaces/{NAMESPACE}/boats");
        for (name, accept, query) in [
            ("list of 10,000 custom resources, JSON", "application/json", ""),
            ("list of 10,000 custom resources, table", TABLE, ""),
            ("a page of 500 custom resources, JSON", "application/json", "?limit=500"),
        ] {
            let mut quickest = Duration::MAX;
            for _ in 0..READS {
                let request =
                    Request::get(format!("{path}{query}")).header("accept", accept).body(kube::client::Body::empty())?;
                let begun = Instant::now();
                let answer = self.client.send(request).await?;
                if !answer.status().is_success() {
                    return Err(format!("{path}{query} answered {}", answer.status()).into());
                }
                http_body_util::BodyExt::collect(answer.into_body()).await?;
                quickest = quickest.min(begun.elapsed());
            }
            figures.push((name, quickest));
        }
        definitions.delete(&name, &DeleteParams::default()).await?;
        tokio::time::timeout(DEADLINE, async {
            while definitions.get_opt(&name).await?.is_some() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Ok::<_, Error>(())
        })
        .await??;
        Ok(figures)
    }

    async fn figures(&self) -> Result<Vec<(&'static str, Duration)>, Error> {
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        let namespace = serde_json::from_value(json!({"metadata": {"name": NAMESPACE}}))?;
        namespaces.create(&PostParams::default(), &namespace).await?;
        let account =
            await_condition(self.api(), "default", |account: Option<&k8s_openapi::api::core::v1::ServiceAccount>| {
                account.is_some()
            });
        tokio::time::timeout(DEADLINE, account).await??;
        let mut figures = vec![
            ("Job of 1,000 completions, until complete", self.job().await?),
            ("StatefulSet of 100, one after another, until ready", self.stateful_set().await?),
            ("DaemonSet on all nodes, until ready", self.daemon_set().await?),
        ];
        figures.extend(self.custom().await?);
        namespaces.delete(NAMESPACE, &DeleteParams::default()).await?;
        Ok(figures)
    }
}

fn template(app: &str) -> Value {
    json!({"metadata": {"labels": {"app": app}}, "spec": {
        "terminationGracePeriodSeconds": 0, "containers": [{"name": "main", "image": IMAGE}],
    }})
}

fn definition() -> Value {
    let schema = json!({"openAPIV3Schema": {"type": "object", "properties": {"spec": {
        "type": "object",
        "required": ["crew"],
        "properties": {
            "crew": {"type": "integer", "minimum": 0, "maximum": 100},
            "name": {"type": "string", "maxLength": 1024},
            "colour": {"type": "string", "default": "white", "enum": ["white", "red"]},
            "cargo": {"type": "array", "items": {"type": "object", "required": ["name"], "properties": {
                "name": {"type": "string"}, "kilograms": {"type": "integer"},
            }}},
        },
    }}}});
    let version = |name: &str, is_stored: bool| {
        json!({"name": name, "served": true, "storage": is_stored, "schema": schema,
            "additionalPrinterColumns": [{"name": "Crew", "type": "integer", "jsonPath": ".spec.crew"}]})
    };
    json!({
        "metadata": {"name": "boats.bench.example"},
        "spec": {
            "group": "bench.example", "scope": "Namespaced",
            "names": {"plural": "boats", "singular": "boat", "kind": "Boat", "listKind": "BoatList"},
            "versions": [version("v1", true), version("v2", false)],
        },
    })
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.is_empty() {
        return Err("usage: beside NAME=KUBECONFIG …".into());
    }
    let mut all: Vec<(String, Vec<(&'static str, Duration)>)> = Vec::new();
    for argument in &arguments {
        let cluster = Cluster::connect(argument).await?;
        eprintln!("{} …", cluster.name);
        all.push((cluster.name.clone(), cluster.figures().await?));
    }
    let (_, first) = &all[0];
    for (at, (what, took)) in first.iter().enumerate() {
        print!("{what:<52}");
        for (name, figures) in &all {
            print!(" {name} {:>10.1} ms", figures[at].1.as_secs_f64() * 1e3);
        }
        for (_, figures) in &all[1..] {
            print!(" {:>6.1} ×", figures[at].1.as_secs_f64() / took.as_secs_f64());
        }
        println!();
    }
    Ok(())
}
