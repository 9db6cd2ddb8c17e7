//! The scheduler's door: many bindings in one request (`POST /coracle/v1/bindings`).
//!
//! It is the binding subresource many times over. The transactions are proposed side by side, so that the log syncs once for
//! many of them; but each pod has its own, for a revision belongs to one event of a collection: a client whose watch breaks
//! goes on after the revision of the event it was told last, and would never hear of another event that shares it. A pod
//! that cannot be bound gets its own answer and does not hold up the others.

use std::sync::Arc;

use axum::response::Response;
use coracle_api::meta;
use coracle_api::status::Status;
use coracle_keyspace::{Guard, Op};
use futures::future::join_all;
use futures::stream::{self, StreamExt};
use serde::Deserialize;
use serde_json::{Value, json};

use super::admit;
use super::binding::{bound, check_node, pods, target};
use crate::answer::respond;
use crate::authz::{self, Attributes};
use crate::catalog::Resource;
use crate::cluster::Cluster;
use crate::request::call::{Call, Request};
use crate::request::negotiate::JSON;
use crate::store::{Refused, Seen, Store};

/// Bindings of one request.
const BINDINGS_MAX: usize = 512;
/// What one round reads, and what it writes, at most, unless a single pod is larger.
const BYTES_MAX: usize = 3 << 20;

/// Bindings that policies and webhooks are asked about at a time.
const ASKED_AT_A_TIME: usize = 32;

/// What is asked for.
#[derive(Deserialize)]
struct Asked {
    bindings: Vec<Binding>,
}

/// What is asked for, and by whom.
pub(crate) struct Bindings {
    bindings: Vec<Binding>,
    call: Arc<Call>,
}

#[derive(Deserialize)]
struct Binding {
    namespace: String,
    name: String,
    #[serde(default)]
    uid: String,
    node: String,
    /// What admission made of it, where somebody was asked.
    #[serde(skip)]
    admitted: Value,
}

impl Binding {
    /// As an object, and the call for it.
    fn object(&self, call: &Call) -> (Value, Call) {
        let mut target = call.target.clone();
        target.namespace = Some(self.namespace.clone());
        target.name = Some(self.name.clone());
        target.subresource = Some("binding".to_owned());
        let mut object = json!({
            "kind": "Binding", "apiVersion": "v1", "metadata": {"name": self.name, "namespace": self.namespace},
            "target": {"kind": "Node", "name": self.node},
        });
        if !self.uid.is_empty() {
            object["metadata"]["uid"] = self.uid.as_str().into();
        }
        (object, Call::acting_on(call, target))
    }

    /// Asks policies and webhooks about it. They may send the pod elsewhere.
    async fn admit(&mut self, cluster: &Cluster, call: &Call, pods: &Resource) -> Result<(), Status> {
        let (mut object, call) = self.object(call);
        admit(cluster, &call, pods, &mut object, false).await?;
        self.node = target(&object, &self.name)?.to_owned();
        self.uid = meta::uid(&object).to_owned();
        self.admitted = object;
        Ok(())
    }
}

impl Bindings {
    /// Reads what the caller asks for, if it may.
    pub fn read(cluster: &Cluster, request: &Request) -> Result<Bindings, Status> {
        let asked = Attributes { verb: "create", resource: "pods", subresource: "binding", ..Attributes::default() };
        authz::check(cluster, &request.call.identity, &asked)?;
        let read: Asked = serde_json::from_slice(&request.body)
            .map_err(|error| Status::bad_request(format!("the bindings cannot be read: {error}")))?;
        if read.bindings.len() > BINDINGS_MAX {
            return Err(Status::request_too_large(format!("limit is {BINDINGS_MAX} bindings")));
        }
        Ok(Bindings { bindings: read.bindings, call: request.call.clone() })
    }

    /// Bytes of the pods that a round reads.
    pub fn bytes(&self, cluster: &Cluster) -> usize {
        let Ok(pods) = pods(cluster) else { return 0 };
        let record = |binding: &Binding| {
            let name = pods.record_name(Some(&binding.namespace), &binding.name);
            cluster.store.get(&pods, &name).map_or(0, |record| record.bytes.len())
        };
        self.bindings.iter().map(record).sum()
    }

    /// Binds what can be bound.
    pub async fn bind_all(self, cluster: &Cluster) -> Result<Response, Status> {
        let mut bindings = self.bindings;
        let mut results: Vec<Option<Status>> = bindings.iter().map(|_| None).collect();
        let mut named = std::collections::HashSet::new();
        let mut open: Vec<usize> = Vec::with_capacity(bindings.len());
        // Taken before anybody is asked, and before it is looked whether anybody is.
        let guard = cluster.hooks.guard(&cluster.store.keyspace).await;
        if cluster.hooks.any() || cluster.policies.any() {
            let pods = pods(cluster)?;
            let asked: Vec<_> = bindings.iter_mut().map(|binding| binding.admit(cluster, &self.call, &pods)).collect();
            let answers: Vec<_> = stream::iter(asked).buffered(ASKED_AT_A_TIME).collect().await;
            for (result, answer) in results.iter_mut().zip(answers) {
                *result = answer.err();
            }
        }
        for (at, binding) in bindings.iter().enumerate() {
            if results[at].is_some() {
                continue;
            }
            if named.insert((&binding.namespace, &binding.name)) {
                open.push(at);
            } else {
                results[at] = Some(Status::bad_request("the bindings name this pod twice"));
            }
        }
        // Until all are done or the request's time is up.
        while !open.is_empty() {
            open = attempt(cluster, &bindings, &mut results, &open, guard.as_ref()).await?;
            // A round that had nothing to store has not waited for anything.
            tokio::task::yield_now().await;
        }
        let results: Vec<Value> = results
            .into_iter()
            .map(|failed| match failed {
                Some(status) => serde_json::to_value(&status).unwrap_or_default(),
                None => json!({"code": 201}),
            })
            .collect();
        Ok(respond::bytes(200, JSON, json!({ "results": results }).to_string()))
    }
}

/// Binds what can be bound of `open`, as long as `guard` holds. What is left has to be tried again.
async fn attempt(
    cluster: &Cluster,
    bindings: &[Binding],
    results: &mut [Option<Status>],
    open: &[usize],
    guard: Option<&Op>,
) -> Result<Vec<usize>, Status> {
    let pods = pods(cluster)?;
    let (mut writes, mut later, mut size, mut read) = (Vec::new(), Vec::new(), 0, 0);
    for &at in open {
        let binding = &bindings[at];
        let name = pods.record_name(Some(&binding.namespace), &binding.name);
        let Some(record) = cluster.store.get(&pods, &name) else {
            results[at] = Some(pods.not_found(&binding.name));
            continue;
        };
        // What is read counts, too: a pod that cannot be bound costs as much as one that can.
        if read > 0 && (read + record.bytes.len() > BYTES_MAX || size + record.bytes.len() > BYTES_MAX) {
            later.push(at);
            continue;
        }
        read += record.bytes.len();
        let made = check_node(&binding.node).and_then(|()| {
            let pod = Seen::new(&pods, &record).stored()?;
            bound(cluster, &pods, &pod, &binding.node, &binding.uid, &binding.admitted)
        });
        match made {
            Err(status) => results[at] = Some(status),
            Ok(pod) => {
                let value = Store::encode(&pods, &pod);
                size += value.bytes.len();
                let op = Op::Put { key: Store::key(&pods, &name), value, guard: Guard::Revision(record.revision) };
                let ops: Vec<Op> = std::iter::once(op).chain(guard.cloned()).collect();
                writes.push(async move { (at, cluster.store.transact(ops).await) });
            }
        }
    }
    for (at, written) in join_all(writes).await {
        match written {
            Ok(_) => {}
            // What configures admission has changed: whoever asks again is admitted anew.
            Err(Refused::Guard(failed)) if failed.op > 0 => {
                results[at] = Some(Status::server_timeout("", "pods/binding", "create", 1));
            }
            // The pod has changed: it is tried again with its newer content.
            Err(Refused::Guard(_)) => later.push(at),
            Err(Refused::Final(status)) => results[at] = Some(status),
        }
    }
    later.sort_unstable();
    Ok(later)
}

#[cfg(test)]
mod tests {
    use coracle_keyspace::{Key, Keyspace};

    use super::*;

    #[tokio::test]
    async fn what_was_admitted_by_what_is_configured_no_more_is_not_bound() {
        let dir = tempfile::tempdir().unwrap();
        let keyspace = Keyspace::open(coracle_keyspace::Config::new(dir.path())).await.unwrap();
        let cluster = Cluster::new(Store::new(keyspace), None, None);
        let pods = pods(&cluster).unwrap();
        let pod = json!({"metadata": {"name": "p", "namespace": "ns", "uid": "u"}, "spec": {}});
        let name = pods.record_name(Some("ns"), "p");
        let put = Op::Put { key: Store::key(&pods, &name), value: Store::encode(&pods, &pod), guard: Guard::Absent };
        assert!(cluster.store.transact(vec![put]).await.is_ok());
        let binding = Binding {
            namespace: "ns".to_owned(),
            name: "p".to_owned(),
            uid: "u".to_owned(),
            node: "n".to_owned(),
            admitted: Value::Null,
        };
        for (guard, reason) in [(Guard::Present, Some("ServerTimeout")), (Guard::Absent, None)] {
            let guard = Op::Check { key: Key::new("known", "known"), guard };
            let mut results = [None];
            let left =
                attempt(&cluster, std::slice::from_ref(&binding), &mut results, &[0], Some(&guard)).await.unwrap();
            assert!(left.is_empty());
            assert_eq!(results[0].as_ref().map(|status| status.reason.to_string()).as_deref(), reason);
        }
        cluster.store.keyspace.shutdown().await;
    }
}
