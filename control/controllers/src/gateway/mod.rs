//! What is said of GatewayClasses, Gateways and routes of our controller, in their statuses (`coracle_gateway` says what); and the class
//! `coracle`, which is made when the definition of classes comes.
//!
//! All of them say something about each other, so that one task looks at all at once, when something has changed and things have
//! settled, beside the threads that serve. It writes what is not as it should be, and hears of that as of every other change; of what
//! means nothing for others, as a status does, it looks at that object alone.

mod follow;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use coracle_gateway::{
    CLASS, CONTROLLER, GROUP, GatewayState, KINDS, Key as Named, Known, Resolved, RouteKind, RouteState, Said, Served,
    ServedAt, Target, status,
};
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{Namespace, Node, Service};
use kube::ResourceExt as _;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::client::{Client, is_conflict, is_not_found};
use crate::informer::{Change, Informer, Key, Object as _, Store};
use crate::node::plan::is_ready;
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
    /// Whether Services are others now.
    services: AtomicBool,
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
                if !is_gone && change.before().is_some_and(|before| before.labels() == namespace.labels()) {
                    return;
                }
                let now = (!is_gone).then(|| namespace.labels().clone());
                beside.namespaces.lock().insert(namespace.key().name, now);
                beside.changed.notify_one();
            }
        });
        services.on_change({
            let beside = beside.clone();
            move |change| {
                if change.before().is_none_or(|before| !is_same(before, change.object())) {
                    beside.services.store(true, Relaxed);
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
            known.take_namespace(Said::Listed, BTreeMap::new());
            let mut has_class = false;
            // When all is looked at again, as something failed: whatever happens before neither puts it off nor does without it, since
            // of an object whose status could not be written nothing is heard.
            let mut again_at: Option<Instant> = None;
            let (mut resolved, mut stale) = (None, Stale::default());
            // What nodes said when it was looked last.
            let mut served = Served::default();
            loop {
                let again = async {
                    match again_at {
                        Some(at) => tokio::time::sleep_until(at).await,
                        None => std::future::pending().await,
                    }
                };
                // Waiting is all that is cut here.
                tokio::select! {
                    change = changed.recv() => match change {
                        Some(change) => stale.take(&mut known, change),
                        None => return,
                    },
                    // What it means is found below.
                    () = self.beside.changed.notified() => {}
                    () = again => (stale.all, again_at) = (true, None),
                }
                tokio::time::sleep(SETTLE).await;
                while let Ok(change) = changed.try_recv() {
                    stale.take(&mut known, change);
                }
                stale.meaning |= self.beside.services.swap(false, Relaxed);
                let namespaces = std::mem::take(&mut *self.beside.namespaces.lock());
                for (name, labels) in namespaces {
                    let meta = coracle_gateway::Meta { name: name.clone(), ..Default::default() };
                    stale.meaning |= match labels {
                        Some(labels) => known.take_namespace(Said::Object(meta, Value::Null, Value::Null), labels),
                        None => known.take_namespace(Said::Gone(meta.key()), BTreeMap::new()),
                    };
                }
                if !known.is_complete() {
                    continue;
                }
                // Once for each time that there are classes: who deletes it does not want it.
                let wants_class = known.is_defined(CLASSES) && !has_class;
                has_class = known.is_defined(CLASSES);
                let mut is_again =
                    wants_class && !known.objects.classes.contains_key(CLASS) && !self.make_class().await;
                has_class &= !is_again;
                let has_routes = !(known.objects.routes.is_empty() && known.objects.grpc_routes.is_empty());
                stale.take_served(&mut served, self.served());
                let look = self.look(std::mem::take(&mut stale), served.clone());
                let work = move || {
                    let (resolved, writes) = look.at(&known, resolved);
                    (known, resolved, writes)
                };
                // Expressions take a while, and this thread has others to serve. Without routes there are none.
                let writes;
                (known, resolved, writes) = match has_routes {
                    false => {
                        let (known, resolved, writes) = work();
                        (known, Some(resolved), writes)
                    }
                    true => match tokio::task::spawn_blocking(work).await {
                        Ok((known, resolved, writes)) => (known, Some(resolved), writes),
                        Err(error) => match error.try_into_panic() {
                            Ok(panic) => std::panic::resume_unwind(panic),
                            // The process ends.
                            Err(_) => return,
                        },
                    },
                };
                is_again |= !self.write(writes).await;
                if is_again {
                    again_at.get_or_insert_with(|| Instant::now() + AGAIN);
                }
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

    /// What nodes say together.
    fn served(&self) -> Served {
        let mut served = Served::default();
        self.beside.nodes.lock().values().for_each(|node| served.add(node));
        served
    }

    fn look(&self, stale: Stale, served: Served) -> Look {
        Look { services: self.services.clone(), served, stale, now: now_in_seconds().to_string() }
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

/// Whether Services that routes lead to are the same for them.
fn is_same(a: &Service, b: &Service) -> bool {
    let looked_at = |service: &Service| {
        let spec = service.spec.as_ref();
        (spec.and_then(|spec| spec.type_.clone()), spec.and_then(|spec| spec.ports.clone()))
    };
    looked_at(a) == looked_at(b)
}

/// What has changed since it was looked last.
#[derive(Default)]
struct Stale {
    /// What objects say together.
    meaning: bool,
    /// All statuses, whatever they are about.
    all: bool,
    /// These objects, by their kinds.
    objects: HashSet<(usize, Named)>,
}

impl Stale {
    fn take(&mut self, known: &mut Known, (kind, said): follow::Change) {
        if let Said::Object(meta, ..) = &said {
            self.objects.insert((kind, meta.key()));
        }
        self.meaning |= known.take(kind, said).unwrap_or_else(|error| {
            tracing::warn!(%error, kind = KINDS[kind].0, "an object cannot be read and is passed over");
            true
        });
    }

    /// Nodes say this now: where it is something else than when it was looked last, it may be so of any status.
    fn take_served(&mut self, last: &mut Served, now: Served) {
        self.all |= *last != now;
        *last = now;
    }

    fn is(&self, kind: usize, key: &Named) -> bool {
        self.meaning || self.all || self.objects.contains(&(kind, key.clone()))
    }
}

/// A look at all there is.
struct Look {
    services: Arc<Store<Service>>,
    served: Served,
    stale: Stale,
    now: String,
}

impl Look {
    /// What is known says this together, and these statuses are not as they should be.
    fn at(&self, known: &Known, before: Option<Resolved>) -> (Resolved, Vec<Write>) {
        let resolved = before
            .filter(|_| !self.stale.meaning)
            .unwrap_or_else(|| known.objects.resolve(&|kind, target| self.missing(kind, target)));
        let writes = self.writes(known, &resolved);
        (resolved, writes)
    }

    /// What is wrong with a Service that a route leads to.
    fn missing(&self, kind: RouteKind, target: &Target) -> Option<(&'static str, String)> {
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
        let (odd, spoken) = match kind {
            RouteKind::Http => (&["kubernetes.io/h2c", "kubernetes.io/wss", "https"][..], "HTTP/1.1"),
            RouteKind::Grpc => (&["kubernetes.io/ws", "kubernetes.io/wss", "https"][..], "HTTP/2 without TLS"),
        };
        odd.contains(&protocol).then(|| {
            let words = format!("appProtocol {protocol} of service {name} is not supported: {spoken} is spoken");
            ("UnsupportedProtocol", words)
        })
    }

    /// All statuses that are not as they should be, of those that may not be.
    fn writes(&self, known: &Known, resolved: &Resolved) -> Vec<Write> {
        let mut writes = Vec::new();
        for (kind, wanted) in self.statuses(known, resolved) {
            writes.extend(wanted.into_iter().filter_map(|(key, old, status)| {
                // What others have said beside it is theirs.
                let mut fields = status.as_object().into_iter().flatten();
                fields.any(|(name, value)| old["status"][name] != *value).then(|| write(kind, &key, old, &status))
            }));
        }
        writes
    }

    /// The statuses that objects of ours shall have, by kind.
    fn statuses<'a>(&self, known: &'a Known, resolved: &Resolved) -> [(usize, Vec<Wanted<'a>>); 4] {
        let (objects, served, now) = (&known.objects, &self.served, self.now.as_str());
        let versions = known.versions();
        let stale = |kind: usize| known.kept(kind).filter(move |(key, _)| self.stale.is(kind, key));
        let classes = stale(CLASSES).filter_map(|(key, old)| {
            let class = objects.classes.get(&key.1).filter(|class| class.is_ours)?;
            let status = status::class(&objects.accepts(class), &versions, class.meta.generation, &old["status"], now);
            Some((key.clone(), old, status))
        });
        let states: HashMap<Named, &GatewayState> =
            resolved.gateways.iter().map(|state| (state.meta.key(), state)).collect();
        let gateways = stale(GATEWAYS).filter_map(|(key, old)| {
            let state = states.get(key)?;
            Some((key.clone(), old, status::gateway(state, served, &old["status"], now)))
        });
        let routes = |kind: usize, of: RouteKind| {
            let states = resolved.routes.iter().filter(|state| state.kind == of);
            let states: HashMap<Named, &RouteState> = states.map(|state| (state.meta.key(), state)).collect();
            let wanted = stale(kind).filter_map(|(key, old)| {
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
            (ROUTES, routes(ROUTES, RouteKind::Http)),
            (GRPC_ROUTES, routes(GRPC_ROUTES, RouteKind::Grpc)),
        ]
    }
}

/// An object's name, what was said of it last, and the status that it shall have.
type Wanted<'a> = (Named, &'a Value, Value);

fn write(kind: usize, (namespace, name): &Named, old: &Value, status: &Value) -> Write {
    let (_, plural, version) = KINDS[kind];
    let path = crate::client::path(&format!("{GROUP}/{version}"), plural, namespace, name);
    let patch = json!({"metadata": {"resourceVersion": old["version"]}, "status": status});
    (format!("{path}/status"), patch)
}

/// What a node says; nothing while it is not ready.
fn said(node: &Node) -> Option<ServedAt> {
    let text = node.metadata.annotations.as_ref()?.get(SAYS).filter(|_| is_ready(node))?;
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
    fn all_statuses_are_looked_at_where_nodes_say_something_else_and_only_then() {
        let served = |texts: &[&str]| {
            let mut served = Served::default();
            texts.iter().for_each(|text| served.add(&ServedAt::parse(text).unwrap()));
            served
        };
        let mut last = Served::default();
        for (texts, expected) in [
            (vec![], false),
            (vec!["10.0.0.1,80"], true),
            (vec!["10.0.0.1,80"], false),
            (vec!["10.0.0.1,80=taken"], true),
            (vec!["10.0.0.1,80=taken", "10.0.0.2,80"], true),
            (vec![], true),
        ] {
            let mut stale = Stale::default();
            stale.take_served(&mut last, served(&texts));
            assert_eq!(stale.all, expected, "{texts:?}");
        }
    }

    #[test]
    fn a_service_is_another_when_routes_would_see_it() {
        let service = |spec: Value| serde_json::from_value::<Service>(json!({"spec": spec})).unwrap();
        let plain = || service(json!({"type": "ClusterIP", "ports": [{"port": 80}]}));
        assert!(is_same(
            &plain(),
            &service(json!({"type": "ClusterIP", "ports": [{"port": 80}], "selector": {"a": "b"}}))
        ));
        assert!(!is_same(&plain(), &service(json!({"type": "ExternalName", "ports": [{"port": 80}]}))));
        assert!(!is_same(&plain(), &service(json!({"type": "ClusterIP", "ports": [{"port": 81}]}))));
    }

    #[test]
    fn a_write_is_of_the_version_that_was_seen() {
        let key: Named = ("n".into(), "r".into());
        let (path, patch) = write(ROUTES, &key, &json!({"version": "7"}), &json!({"parents": []}));
        assert_eq!(path, "/apis/gateway.networking.k8s.io/v1/namespaces/n/httproutes/r/status");
        assert_eq!(patch, json!({"metadata": {"resourceVersion": "7"}, "status": {"parents": []}}));
    }
}
