//! What is said of GatewayClasses, Gateways and routes of our controller, in their statuses (`coracle_gateway` says what); and the class
//! `coracle`, which is made when the definition of classes comes.
//!
//! All of them say something about each other, so that one task looks at all at once, when something has changed and things have
//! settled. It writes what is not as it should be, and hears of that as of every other change.

mod follow;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use coracle_gateway::{
    CLASS, CONTROLLER, GROUP, KINDS, Key as Named, Known, Resolved, Said, Served, ServedAt, Target, status,
};
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{Namespace, Node, Service};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use crate::client::{Client, is_conflict, is_not_found};
use crate::informer::{Change, Informer, Key, Object as _, Store};
use crate::now_in_seconds;

/// Annotation of a Node: where it serves Gateways.
const SAYS: &str = "coracle.dev/gateway";
/// After a change, others are waited for so long.
const SETTLE: Duration = Duration::from_millis(50);
/// After a write that failed it is looked again.
const AGAIN: Duration = Duration::from_secs(2);
/// Statuses that are written at a time.
const WRITES: usize = 8;
/// Changes that are not taken yet.
const CHANGES_MAX: usize = 1024;
/// Places in [`KINDS`].
const CLASSES: usize = 0;
const GATEWAYS: usize = 1;
const ROUTES: usize = 2;
const GRPC_ROUTES: usize = 3;

/// Labels of an object, by their keys.
type Labels = BTreeMap<String, String>;

/// What changed beside Gateway API's own objects.
#[derive(Default)]
struct Beside {
    /// What ready nodes say, by their names.
    nodes: Mutex<BTreeMap<Key, ServedAt>>,
    /// Namespaces that are others now: their labels; `None` when one is gone.
    namespaces: Mutex<BTreeMap<Arc<str>, Option<Labels>>>,
    changed: Notify,
}

/// The controller of Gateway API's statuses.
pub(crate) struct Controller {
    client: Client,
    services: Arc<Store<Service>>,
    beside: Arc<Beside>,
}

/// A write: its path, and its patch.
type Write = (String, Value);

impl Controller {
    pub(crate) fn new(
        client: Client,
        services: &mut Informer<Service>,
        namespaces: &mut Informer<Namespace>,
        nodes: &mut Informer<Node>,
    ) -> Self {
        let beside: Arc<Beside> = Arc::default();
        nodes.on_change({
            let beside = beside.clone();
            // A Node changes every few minutes, and that hardly ever.
            move |change| {
                let (node, is_gone) = (change.object(), matches!(change, Change::Deleted(_)));
                let now = said(node).filter(|_| !is_gone);
                let mut all = beside.nodes.lock();
                let before = match now.clone() {
                    Some(now) => all.insert(node.key(), now),
                    None => all.remove(&node.key()),
                };
                drop(all);
                if before != now {
                    beside.changed.notify_one();
                }
            }
        });
        namespaces.on_change({
            let beside = beside.clone();
            move |change| {
                let (namespace, is_gone) = (change.object(), matches!(change, Change::Deleted(_)));
                let labels = |namespace: &Arc<Namespace>| follow::labels(&namespace.metadata);
                if !is_gone && change.before().is_some_and(|before| labels(before) == labels(namespace)) {
                    return;
                }
                let now = (!is_gone).then(|| labels(namespace));
                beside.namespaces.lock().insert(namespace.key().name, now);
                beside.changed.notify_one();
            }
        });
        services.on_change({
            let beside = beside.clone();
            move |change| {
                let ports = |service: &Arc<Service>| service.spec.as_ref().and_then(|spec| spec.ports.clone());
                if change.before().is_none_or(|before| ports(before) != ports(change.object())) {
                    beside.changed.notify_one();
                }
            }
        });
        Self { client, services: services.store(), beside }
    }

    /// Until shutdown. Its informers are complete.
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        let (changes, mut changed) = mpsc::channel::<follow::Change>(CHANGES_MAX);
        let follow = follow::run(self.client.0.clone(), changes);
        let write = async {
            let mut known = Known::default();
            // Its informer is complete: what comes later comes by its changes.
            known.take_namespace(&Said::Listed, BTreeMap::new());
            let (mut has_class, mut is_again) = (false, false);
            loop {
                let again = async {
                    match is_again {
                        true => tokio::time::sleep(AGAIN).await,
                        false => std::future::pending().await,
                    }
                };
                // Waiting is all that is cut here.
                tokio::select! {
                    change = changed.recv() => match change {
                        Some(change) => take(&mut known, change),
                        None => return,
                    },
                    () = self.beside.changed.notified() => {}
                    () = again => {}
                }
                tokio::time::sleep(SETTLE).await;
                while let Ok(change) = changed.try_recv() {
                    take(&mut known, change);
                }
                let namespaces = std::mem::take(&mut *self.beside.namespaces.lock());
                for (name, labels) in namespaces {
                    let meta = coracle_gateway::Meta { name: name.clone(), ..Default::default() };
                    match labels {
                        Some(labels) => known.take_namespace(&Said::Object(meta, Value::Null), labels),
                        None => known.take_namespace(&Said::Gone(meta.key()), BTreeMap::new()),
                    }
                }
                if !known.is_complete() {
                    continue;
                }
                // Once for each time that there are classes: who deletes it does not want it.
                let wants_class = known.is_defined(CLASSES) && !has_class;
                has_class = known.is_defined(CLASSES);
                is_again = wants_class && !known.objects.classes.contains_key(CLASS) && !self.make_class().await;
                has_class &= !is_again;
                is_again |= !self.write(self.writes(&known)).await;
            }
        };
        tokio::select! {
            () = follow => {}
            () = write => {}
            () = shutdown.cancelled() => {}
        }
    }

    /// Makes the class; says whether it is there.
    async fn make_class(&self) -> bool {
        let (_, plural, version) = KINDS[CLASSES];
        let class = json!({
            "apiVersion": format!("{GROUP}/{version}"), "kind": "GatewayClass", "metadata": {"name": CLASS},
            "spec": {"controllerName": CONTROLLER, "description": "Gateways that every node serves itself"},
        });
        let path = format!("/apis/{GROUP}/{version}/{plural}?{}", crate::client::MANAGER);
        match self.client.post::<_, serde::de::IgnoredAny>(&path, &class).await {
            Ok(_) => true,
            Err(error) if is_conflict(&error) => true,
            Err(error) => {
                tracing::debug!(error = %crate::error::chain(&error), "make a GatewayClass");
                false
            }
        }
    }

    /// What is wrong with a Service that a route leads to.
    fn missing(&self, target: &Target) -> Option<(&'static str, String)> {
        let name = format!("{}/{}", target.namespace, target.name);
        let Some(service) = self.services.get(&Key::new(&target.namespace, &target.name)) else {
            return Some(("BackendNotFound", format!("service {name} does not exist")));
        };
        let spec = service.spec.as_ref()?;
        if spec.type_.as_deref() == Some("ExternalName") {
            return Some(("BackendNotFound", format!("service {name} is another name for something outside")));
        }
        let mut ports = spec.ports.iter().flatten();
        let is_tcp =
            |port: &&k8s_openapi::api::core::v1::ServicePort| port.protocol.as_deref().unwrap_or("TCP") == "TCP";
        let port = ports.find(|port| port.port == i32::from(target.port) && is_tcp(port));
        let Some(port) = port else {
            return Some(("BackendNotFound", format!("service {name} has no port {}", target.port)));
        };
        let protocol = port.app_protocol.as_deref().unwrap_or_default();
        ["kubernetes.io/h2c", "kubernetes.io/wss", "https"].contains(&protocol).then(|| {
            let words = format!("appProtocol {protocol} of service {name} is not supported: HTTP/1.1 is spoken");
            ("UnsupportedProtocol", words)
        })
    }

    /// All statuses that are not as they should be.
    fn writes(&self, known: &Known) -> Vec<Write> {
        let resolved = known.objects.resolve(&|target| self.missing(target));
        let mut served = Served::default();
        self.beside.nodes.lock().values().for_each(|node| served.add(node));
        let now = now_in_seconds().to_string();
        let mut writes = Vec::new();
        for (kind, wanted) in statuses(known, &resolved, &served, &now) {
            writes.extend(wanted.into_iter().filter_map(|(key, old, status)| {
                // What others have said beside it is theirs.
                let mut fields = status.as_object().into_iter().flatten();
                fields.any(|(name, value)| old["status"][name] != *value).then(|| write(kind, &key, old, &status))
            }));
        }
        writes
    }

    /// Writes them; says whether all went well.
    async fn write(&self, writes: Vec<Write>) -> bool {
        let write = |(path, patch): Write| async move {
            match self.client.patch_at(&path, &patch).await {
                Ok(_) => true,
                // Somebody was faster, and that is heard of.
                Err(error) if is_conflict(&error) || is_not_found(&error) => true,
                Err(error) => {
                    tracing::debug!(path, error = %crate::error::chain(&error), "write a status");
                    false
                }
            }
        };
        let written = futures::stream::iter(writes).map(write).buffer_unordered(WRITES);
        written.fold(true, |all, one| std::future::ready(all && one)).await
    }
}

/// An object's name, what was said of it last, and the status that it shall have.
type Wanted<'a> = (Named, &'a Value, Value);

/// The statuses that all objects of ours shall have, by kind.
fn statuses<'a>(known: &'a Known, resolved: &Resolved, served: &Served, now: &str) -> [(usize, Vec<Wanted<'a>>); 4] {
    let objects = &known.objects;
    let by_key = |kind: usize| known.raw(kind).collect::<BTreeMap<&Named, &'a Value>>();
    let classes = known.raw(CLASSES).filter_map(|(key, old)| {
        let class = objects.classes.get(&key.1).filter(|class| class.is_ours)?;
        let status = status::class(&objects.accepts(class), class.meta.generation, &old["status"], now);
        Some((key.clone(), old, status))
    });
    let raw = by_key(GATEWAYS);
    let gateways = resolved.gateways.iter().filter_map(|gateway| {
        let key = gateway.meta.key();
        let old = *raw.get(&key)?;
        Some((key, old, status::gateway(gateway, served, &old["status"], now)))
    });
    let routes = |kind: usize, states: &[coracle_gateway::RouteState]| {
        let states: BTreeMap<Named, &coracle_gateway::RouteState> =
            states.iter().map(|state| (state.meta.key(), state)).collect();
        let wanted = known.raw(kind).filter_map(|(key, old)| {
            let state = states.get(key).copied();
            // Of one without a parent of ours, what was said once goes.
            let mut parents = old["status"]["parents"].as_array().into_iter().flatten();
            let is_said = parents.any(|parent| parent["controllerName"] == CONTROLLER);
            let generation = state.map_or(0, |state| state.meta.generation);
            let is_ours = state.is_some() || is_said;
            is_ours.then(|| (key.clone(), old, status::route(state, generation, &old["status"], now)))
        });
        wanted.collect()
    };
    [
        (CLASSES, classes.collect()),
        (GATEWAYS, gateways.collect()),
        (ROUTES, routes(ROUTES, &resolved.routes)),
        (GRPC_ROUTES, routes(GRPC_ROUTES, &resolved.grpc_routes)),
    ]
}

fn write(kind: usize, (namespace, name): &Named, old: &Value, status: &Value) -> Write {
    let (_, plural, version) = KINDS[kind];
    let path = crate::client::path(&format!("{GROUP}/{version}"), plural, namespace, name);
    let patch = json!({"metadata": {"resourceVersion": old["version"]}, "status": status});
    (format!("{path}/status"), patch)
}

fn take(known: &mut Known, (kind, said): follow::Change) {
    if let Err(error) = known.take(kind, said) {
        tracing::warn!(%error, kind = KINDS[kind].0, "an object cannot be read and is passed over");
    }
}

/// What a node says; nothing while it is not ready.
fn said(node: &Node) -> Option<ServedAt> {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let is_ready = conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True");
    let text = node.metadata.annotations.as_ref()?.get(SAYS).filter(|_| is_ready)?;
    ServedAt::parse(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(ready: &str, text: &str) -> Node {
        let node = json!({"metadata": {"annotations": {SAYS: text}},
            "status": {"conditions": [{"type": "Ready", "status": ready}]}});
        serde_json::from_value(node).unwrap()
    }

    #[test]
    fn a_node_that_is_not_ready_says_nothing() {
        assert!(said(&node("True", "127.0.0.1,80")).is_some());
        assert!(said(&node("Unknown", "127.0.0.1,80")).is_none());
        assert!(said(&node("True", "host,80")).is_none());
    }

    #[test]
    fn a_write_is_of_the_version_that_was_seen() {
        let key: Named = ("n".into(), "r".into());
        let (path, patch) = write(ROUTES, &key, &json!({"version": "7"}), &json!({"parents": []}));
        assert_eq!(path, "/apis/gateway.networking.k8s.io/v1/namespaces/n/httproutes/r/status");
        assert_eq!(patch, json!({"metadata": {"resourceVersion": "7"}, "status": {"parents": []}}));
    }
}
