//! Whether other API servers are there: what is known here of the Services that lead to them, and then what they answer.
//!
//! An answer holds for a time, for as long as nothing changes that it depends on: what happens elsewhere in the cluster has nobody
//! asked, and who changes one of these things all the time has it asked now and then.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use coracle_api::meta::selector::{FieldSelector, LabelSelector};
use coracle_api::meta::{self, condition};
use coracle_api::status::Status;
use coracle_keyspace::Revision;
use jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::time::Instant;

use super::{ANSWERS_WITHIN, ASKS_AS, GROUP, LOOK_EVERY, MANAGER, resource};
use crate::aggregation::{AVAILABLE, Backend};
use crate::cluster::Cluster;
use crate::relay::{self, Question, Silence};
use crate::store::{self, Seen};
use crate::verbs::own::Own;

/// How long it holds that a server answers, and that it does not.
const GOOD_FOR: Duration = Duration::from_secs(30);
const BAD_FOR: Duration = Duration::from_secs(3);
/// How long it holds at least, whatever changes.
const HOLDS_MIN: Duration = Duration::from_secs(1);
/// Attempts at the same time: of several endpoints one may be gone.
const ATTEMPTS: usize = 3;

/// What the condition says.
#[derive(Debug, Clone, PartialEq)]
struct Found {
    status: &'static str,
    reason: &'static str,
    message: String,
}

impl Found {
    fn not(reason: &'static str, message: String) -> Found {
        Found { status: "False", reason, message }
    }

    fn is_good(&self) -> bool {
        self.status == "True"
    }
}

/// What an answer depends on, as far as it is known here.
#[derive(Debug, Clone, PartialEq)]
struct Basis {
    spec: Arc<Value>,
    /// Revisions of the Service and of what it leads to.
    leads_to: Vec<Revision>,
}

/// What a server answered.
struct Verdict {
    of: Basis,
    found: Found,
    at: Instant,
}

/// Whether a server is asked.
#[derive(Debug, PartialEq)]
enum Turn {
    Now,
    /// What it answered holds for so long.
    Holds(Found, Duration),
    /// It has answered a moment ago, when something was different. It is asked after so long.
    Later(Duration),
}

impl Verdict {
    /// How long it holds while nothing changes that it depends on.
    fn holds(&self) -> Duration {
        if self.found.is_good() { GOOD_FOR } else { BAD_FOR }
    }

    fn turn(&self, basis: &Basis, now: Instant) -> Turn {
        let is_same = self.of == *basis;
        let holds = if is_same { self.holds() } else { HOLDS_MIN };
        match holds.saturating_sub(now.saturating_duration_since(self.at)) {
            Duration::ZERO => Turn::Now,
            left if is_same => Turn::Holds(self.found.clone(), left),
            left => Turn::Later(left),
        }
    }
}

/// What all of them have answered last.
#[derive(Default)]
pub(super) struct Verdicts(Mutex<HashMap<Arc<str>, Verdict>>);

impl Verdicts {
    fn turn(&self, name: &str, basis: &Basis) -> Turn {
        self.0.lock().get(name).map_or(Turn::Now, |verdict| verdict.turn(basis, Instant::now()))
    }

    /// Says how long it holds.
    fn keep(&self, name: &Arc<str>, of: Basis, found: Found) -> Duration {
        let verdict = Verdict { of, found, at: Instant::now() };
        let holds = verdict.holds();
        self.0.lock().insert(name.clone(), verdict);
        holds
    }

    /// Forgets all but these.
    pub fn forget_others(&self, backends: &[Arc<Backend>]) {
        let names: HashSet<&str> = backends.iter().map(|backend| &*backend.name).collect();
        self.0.lock().retain(|name, _| names.contains(&**name));
    }
}

/// Looks whether a server is there, and writes it down. Says when it is looked at again, though nothing may change until then.
pub(super) async fn look(cluster: &Cluster, backend: &Backend, verdicts: &Verdicts) -> Result<Duration, Status> {
    let (found, next) = match leads_to(cluster, backend).await {
        Err(found) if found.status == "Unknown" => (found, BAD_FOR),
        // What is missing is missing until something changes.
        Err(found) => (found, LOOK_EVERY),
        Ok(leads_to) => {
            let basis = Basis { spec: backend.spec.clone(), leads_to };
            match verdicts.turn(&backend.name, &basis) {
                Turn::Holds(found, left) => (found, left),
                Turn::Later(left) => return Ok(left),
                Turn::Now => {
                    let found = ask(cluster, backend).await;
                    let holds = verdicts.keep(&backend.name, basis, found.clone());
                    (found, holds)
                }
            }
        }
    };
    write(cluster, backend, &found).await?;
    Ok(next)
}

/// What leads to a server; otherwise why nothing does.
async fn leads_to(cluster: &Cluster, backend: &Backend) -> Result<Vec<Revision>, Found> {
    if cluster.served().await.serves(&backend.group, &backend.version) {
        let message = "a CustomResourceDefinition serves this version of the group".to_owned();
        return Err(Found::not("ServedLocally", message));
    }
    let (namespace, name, port) = (&backend.namespace, &backend.service, backend.port);
    let quoted = meta::text::quote(namespace);
    let (reason, message) = match endpoints(cluster, namespace, name, port) {
        Ok(Some(Endpoints::Ready(read))) => return Ok(read),
        Ok(None) => ("ServiceNotFound", format!("service/{name} in {quoted} is not present")),
        Ok(Some(Endpoints::NoPort)) => {
            ("ServicePortError", format!("service/{name} in {quoted} is not listening on port {port}"))
        }
        Ok(Some(Endpoints::NoSlices)) => {
            ("EndpointsNotFound", format!("cannot find endpointslices for service/{name} in {quoted}"))
        }
        Ok(Some(Endpoints::NoneReady(port))) => {
            let port = meta::text::quote(&port);
            let message =
                format!("endpointslices for service/{name} in {quoted} have no addresses with port name {port}");
            ("MissingEndpoints", message)
        }
        Err(status) => {
            let message = format!("service/{name} in {quoted} cannot be checked due to: {}", status.message);
            return Err(Found { status: "Unknown", reason: "ServiceAccessError", message });
        }
    };
    Err(Found::not(reason, message))
}

/// What a server answers, or does not.
async fn ask(cluster: &Cluster, backend: &Backend) -> Found {
    let path = format!("/apis/{}/{}", backend.group, backend.version);
    let attempts = (0..ATTEMPTS).map(|_| {
        Box::pin(async {
            let question = Question { who: ASKS_AS, path: &path, headers: &[], most: None, within: ANSWERS_WITHIN };
            let (url, why) = match relay::fetch(cluster, backend, question).await {
                Ok(read) if read.code.is_success() => return Ok(()),
                Ok(read) => (read.url.clone(), format!("bad status from {}: {}", read.url, read.code.as_u16())),
                Err(Silence::NoWay(why)) => return Err(why),
                Err(Silence::Failed { url, why }) => {
                    let why = format!("Get {}: {why}", meta::text::quote(&url));
                    (url, why)
                }
            };
            Err(format!("failing or missing response from {url}: {why}"))
        })
    });
    match futures::future::select_ok(attempts).await {
        Ok(_) => Found { status: "True", reason: "Passed", message: "all checks passed".to_owned() },
        Err(why) => Found::not("FailedDiscoveryCheck", why),
    }
}

enum Endpoints {
    NoPort,
    NoSlices,
    /// None that is ready at the port of this name.
    NoneReady(String),
    /// What it was read of.
    Ready(Vec<Revision>),
}

/// What there is behind a port of a Service; `None` when there is no such Service.
fn endpoints(cluster: &Cluster, namespace: &str, name: &str, port: u16) -> Result<Option<Endpoints>, Status> {
    let services = resource(cluster, "", "services")?;
    let Some(record) = cluster.store.get(services, &services.record_name(Some(namespace), name)) else {
        return Ok(None);
    };
    let service = Seen::new(services, &record).stored()?;
    if !matches!(service["spec"]["type"].as_str(), None | Some("ClusterIP")) {
        return Ok(Some(Endpoints::Ready(vec![record.revision])));
    }
    let ports = service["spec"]["ports"].as_array().into_iter().flatten();
    let Some(found) = ports.into_iter().find(|of| of["port"] == port) else { return Ok(Some(Endpoints::NoPort)) };
    let port_name = found["name"].as_str().unwrap_or_default();
    let slices = resource(cluster, "discovery.k8s.io", "endpointslices")?;
    let of_service = LabelSelector::from_pairs([("kubernetes.io/service-name", name)]);
    let snapshot = cluster.store.keyspace.snapshot(slices.row.collection());
    let (mut any, mut ready, mut read) = (false, false, vec![record.revision]);
    for (_, record) in store::range(&snapshot.records, Some(namespace), None) {
        let seen = Seen::new(slices, record);
        if !seen.matches(&of_service, &FieldSelector::everything()) {
            continue;
        }
        any = true;
        read.push(record.revision);
        let slice = seen.stored()?;
        let mut endpoints = slice["endpoints"].as_array().into_iter().flatten();
        let mut ports = slice["ports"].as_array().into_iter().flatten();
        ready |= endpoints.any(|endpoint| endpoint["conditions"]["ready"].as_bool().unwrap_or(true))
            && ports.any(|port| port["name"].as_str().unwrap_or_default() == port_name && !port["port"].is_null());
    }
    Ok(Some(match (any, ready) {
        (false, _) => Endpoints::NoSlices,
        (true, false) => Endpoints::NoneReady(port_name.to_owned()),
        (true, true) => Endpoints::Ready(read),
    }))
}

/// Writes down what was found, where that is something else than what is written.
async fn write(cluster: &Cluster, backend: &Backend, found: &Found) -> Result<(), Status> {
    let resource = resource(cluster, GROUP, "apiservices")?;
    let Some(record) = cluster.store.get(resource, &backend.name) else { return Ok(()) };
    let seen = Seen::new(resource, &record).stored()?;
    if told(&seen, found).is_none() {
        return Ok(());
    }
    let was_there = condition::is_true(&seen, AVAILABLE);
    let own = Own::new(cluster, resource, None, &backend.name).by(MANAGER).status();
    let written = own.change(|old| told(old, found).unwrap_or_else(|| old.clone())).await?;
    if was_there && !found.is_good() && written.is_some() {
        cluster.backends.lose(&backend.name, found.reason);
    }
    Ok(())
}

/// An APIService that says so; `None` where it does already, or is nobody else's now.
fn told(old: &Value, found: &Found) -> Option<Value> {
    if old["spec"]["service"].is_null() {
        return None;
    }
    let Found { status, reason, message } = found;
    condition::said(old, AVAILABLE, status, reason, message, Timestamp::now())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_answer_holds_until_its_time_is_up_or_something_changes() {
        let basis = |port: u16, revision: u64| Basis {
            spec: json!({"service": {"port": port}}).into(),
            leads_to: vec![Revision::new(revision)],
        };
        let good = Found { status: "True", reason: "Passed", message: String::new() };
        let bad = Found::not("FailedDiscoveryCheck", "no".to_owned());
        for (found, holds) in [(&good, GOOD_FOR), (&bad, BAD_FOR)] {
            let verdict = Verdict { of: basis(1, 1), found: found.clone(), at: Instant::now() };
            let turn = |basis: &Basis, after: Duration| verdict.turn(basis, verdict.at + after);
            assert_eq!(turn(&basis(1, 1), holds / 2), Turn::Holds(found.clone(), holds / 2));
            assert_eq!(turn(&basis(1, 1), holds), Turn::Now);
            for other in [basis(2, 1), basis(1, 2)] {
                assert_eq!(turn(&other, Duration::ZERO), Turn::Later(HOLDS_MIN));
                assert_eq!(turn(&other, HOLDS_MIN), Turn::Now);
            }
        }
    }

    #[test]
    fn a_condition_is_said_once_and_of_others_only() {
        let found = Found::not("ServiceNotFound", "gone".to_owned());
        let old = json!({
            "spec": {"service": {}}, "status": {"conditions": [{"type": "Other", "status": "True"}]},
        });
        let said = told(&old, &found).expect("it is said");
        assert_eq!(said["status"]["conditions"][0], old["status"]["conditions"][0]);
        let condition = condition::get(&said, AVAILABLE).expect("a condition");
        assert_eq!((&condition["status"], &condition["reason"]), (&json!("False"), &json!("ServiceNotFound")));
        assert_eq!(told(&said, &found), None);
        assert_eq!(told(&json!({"spec": {}}), &found), None);
    }
}
