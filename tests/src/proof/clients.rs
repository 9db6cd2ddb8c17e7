//! The clients of a proof: each asks one thing at a time, of one server after another, and writes down what it was told.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use coracle_sdk::Remote;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt as _};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::json;

use super::history::{History, NEVER, Record, written};
use crate::linearizability::{Kind, Operation, Outcome, Value};

/// What the names of our objects begin with.
pub const PREFIX: &str = "proof-";
/// The label of our objects.
pub const LABEL: &str = "of=proof";
/// How long a client waits for an answer.
const PATIENCE: Duration = Duration::from_secs(8);
/// How long the same objects are used: the histories of few operations are judged fast, however long a run is.
const USED: Duration = Duration::from_secs(4);
/// Objects at a time.
const OBJECTS: u64 = 5;

/// A client.
pub struct Client {
    /// Its number.
    pub number: usize,
    /// Connections of its own to the servers.
    pub remotes: Vec<Remote>,
    /// What all clients saw.
    pub history: Arc<History>,
}

/// What an answer says of a write.
enum Answer {
    Told(Outcome, Option<u64>),
    /// Nothing was done, for a reason that has nothing to do with the object.
    Refused(String),
    Unknown,
}

/// The value in an object.
pub fn value_in(map: &ConfigMap) -> Option<Value> {
    map.data.as_ref()?.get("value")?.parse().ok()
}

/// The revision of an object.
pub fn revision_of(map: &ConfigMap) -> Option<u64> {
    map.metadata.resource_version.as_ref()?.parse().ok()
}

/// A ConfigMap as it is written.
fn map(name: &str, value: Value, revision: Option<u64>) -> ConfigMap {
    let mut map = json!({
        "metadata": {"name": name, "labels": {"of": "proof"}}, "data": {"value": value.to_string()},
    });
    if let Some(revision) = revision {
        map["metadata"]["resourceVersion"] = revision.to_string().into();
    }
    serde_json::from_value(map).expect("a ConfigMap")
}

/// Whether a request was not sent: there was no connection.
fn is_unsent(error: &kube::Error) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if error.downcast_ref::<hyper_util::client::legacy::Error>().is_some_and(|error| error.is_connect()) {
            return true;
        }
        cause = error.source();
    }
    false
}

impl Client {
    fn api(&self, server: usize) -> Api<ConfigMap> {
        Api::default_namespaced(self.remotes[server].client().clone())
    }

    /// Asks one thing after another until it is `over`.
    pub async fn run(self, seed: u64, over: Arc<AtomicBool>) {
        let mut random = StdRng::seed_from_u64(seed ^ (self.number as u64 + 1) << 32);
        let mut server = self.number % self.remotes.len();
        while !over.load(Ordering::Relaxed) {
            // The first stay, so that a server that stands still does not make all of them wait.
            if self.number >= self.remotes.len() && random.random_bool(0.2) {
                server = random.random_range(0..self.remotes.len());
            }
            let turn = self.history.now() / USED.as_nanos() as u64;
            let name = format!("{PREFIX}{turn}-{}", random.random_range(0..OBJECTS));
            let value = || self.history.value();
            match random.random_range(0..100) {
                0..30 => drop(self.get(server, &name).await),
                30..50 => drop(self.write(server, &name, Kind::Create(value()), None).await),
                50..75 => {
                    // Others may come between.
                    if let Some((expected, revision)) = self.get(server, &name).await {
                        let other =
                            if random.random_bool(0.3) { random.random_range(0..self.remotes.len()) } else { server };
                        let kind = Kind::Update { expected, value: value() };
                        self.write(other, &name, kind, Some(revision)).await;
                    }
                }
                75..87 => drop(self.write(server, &name, Kind::Patch(value()), None).await),
                87..97 => drop(self.write(server, &name, Kind::Delete, None).await),
                _ => drop(self.list(server).await),
            }
            tokio::time::sleep(Duration::from_millis(random.random_range(2..40))).await;
        }
    }

    fn note(&self, server: usize, name: &str, kind: Kind, called: u64, outcome: Outcome, revision: Option<u64>) {
        let returned = if outcome == Outcome::Unknown { NEVER } else { self.history.now() };
        let operation = Operation { client: self.number, kind, called, returned, outcome };
        self.history.note(Record { key: name.to_owned(), operation, server, revision });
    }

    /// What is there, and its revision.
    pub async fn get(&self, server: usize, name: &str) -> Option<(Value, u64)> {
        let called = self.history.now();
        let found = tokio::time::timeout(PATIENCE, self.api(server).get_opt(name)).await;
        match found {
            Ok(Ok(Some(map))) => {
                let (Some(value), Some(revision)) = (value_in(&map), revision_of(&map)) else {
                    self.odd(format!("get {name}: {map:?}"));
                    return None;
                };
                self.note(server, name, Kind::Get, called, Outcome::Found(value), Some(revision));
                Some((value, revision))
            }
            Ok(Ok(None)) => {
                self.note(server, name, Kind::Get, called, Outcome::Missing, None);
                None
            }
            Ok(Err(error)) => {
                // A read that has no answer says nothing.
                let _ = self.judge(&Kind::Get, &error);
                None
            }
            Err(_) => None,
        }
    }

    /// Writes, and notes what came of it; the revision of what was written.
    pub async fn write(&self, server: usize, name: &str, kind: Kind, revision: Option<u64>) -> Option<u64> {
        let (api, called) = (self.api(server), self.history.now());
        let asked = async {
            match kind {
                Kind::Create(value) => api.create(&PostParams::default(), &map(name, value, None)).await.map(Some),
                Kind::Update { value, .. } => {
                    api.replace(name, &PostParams::default(), &map(name, value, revision)).await.map(Some)
                }
                Kind::Patch(value) => {
                    let patch = Patch::Merge(json!({"data": {"value": value.to_string()}}));
                    api.patch(name, &PatchParams::default(), &patch).await.map(Some)
                }
                Kind::Delete => api.delete(name, &DeleteParams::default()).await.map(|_| None),
                Kind::Get => api.get(name).await.map(Some),
            }
        };
        let answer = match tokio::time::timeout(PATIENCE, asked).await {
            Ok(Ok(map)) => Answer::Told(Outcome::Done, map.as_ref().and_then(revision_of)),
            Ok(Err(error)) => self.judge(&kind, &error),
            Err(_) => Answer::Unknown,
        };
        match answer {
            Answer::Told(outcome, revision) => {
                self.note(server, name, kind, called, outcome, revision);
                return revision.filter(|_| outcome == Outcome::Done);
            }
            Answer::Unknown => self.note(server, name, kind, called, Outcome::Unknown, None),
            Answer::Refused(why) => {
                if let Some(value) = written(kind) {
                    self.history.refused.lock().expect("nobody panics with it").insert(value, why);
                }
            }
        }
        None
    }

    /// A last write through a server and a list there, each tried until it is done; what was written and its revision. Nothing
    /// when one was not done until `limit`.
    pub async fn end(&self, server: usize, limit: Instant) -> Option<(String, u64)> {
        let mut written = None;
        for attempt in 0.. {
            if written.is_none() {
                // What timed out may have happened: another name each time.
                let name = format!("{PREFIX}end-{server}-{attempt}");
                let revision = self.write(server, &name, Kind::Create(self.history.value()), None).await;
                written = revision.map(|revision| (name, revision));
            }
            if written.is_some() && self.list(server).await.is_some() {
                break;
            }
            if Instant::now() > limit {
                return None;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        written
    }

    /// Every object that is there; the revision of the list.
    pub async fn list(&self, server: usize) -> Option<u64> {
        let called = self.history.now();
        let list = tokio::time::timeout(PATIENCE, self.api(server).list(&ListParams::default().labels(LABEL))).await;
        let list = match list {
            Ok(Ok(list)) => list,
            Ok(Err(error)) => {
                let _ = self.judge(&Kind::Get, &error);
                return None;
            }
            Err(_) => return None,
        };
        let revision = list.metadata.resource_version.as_ref()?.parse().ok()?;
        self.history.lists.lock().expect("nobody panics with it").push((called, revision));
        // A list reads each object that is in it.
        for map in &list.items {
            if let (Some(value), Some(revision)) = (value_in(map), revision_of(map)) {
                self.note(server, &map.name_any(), Kind::Get, called, Outcome::Found(value), Some(revision));
            }
        }
        Some(revision)
    }

    fn judge(&self, kind: &Kind, error: &kube::Error) -> Answer {
        let kube::Error::Api(status) = error else {
            return if is_unsent(error) { Answer::Refused("no connection".into()) } else { Answer::Unknown };
        };
        match (status.code, status.reason.as_str(), kind) {
            (404, ..) => Answer::Told(Outcome::Missing, None),
            (409, "AlreadyExists", Kind::Create(_)) => Answer::Told(Outcome::Exists, None),
            (409, "Conflict", Kind::Update { .. }) => Answer::Told(Outcome::Conflict, None),
            // Somebody was quicker, again and again.
            (409, "Conflict", _) | (429 | 503 | 507, ..) => {
                Answer::Refused(format!("{} {}", status.code, status.message))
            }
            (504, ..) => Answer::Unknown,
            (code, reason, _) => {
                self.odd(format!("{kind:?} was answered {code} {reason}: {}", status.message));
                Answer::Unknown
            }
        }
    }

    fn odd(&self, what: String) {
        self.history.odd.lock().expect("nobody panics with it").insert(what);
    }
}
