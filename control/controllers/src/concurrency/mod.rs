//! How many pods there are follows from what is asked of them, to none and back: for workloads whose annotations ask for it
//! ([`settings`]).
//!
//! ```text
//! nodes' streams ─► reports ─► window ─► plan ─► the workload's scale
//!                    Services whose pods are scaled so are marked: nodes hold requests for them
//! ```
//! Nodes tell of what is asked while it is, and at once when somebody waits (`kubelet/demand.rs` of the node); nothing of it is
//! written. A workload is looked at every second while something is asked of it, when something is due, and when something
//! happens; otherwise not at all. What was asked of late is remembered here and nowhere else: who has just begun to lead takes
//! nobody away before it has listened for a window.
//!
//! A Service is marked by an annotation, so that nodes know of it also when no server answers. It names the workloads, and a request
//! that waits for the Service wakes all of them.

mod plan;
mod reports;
mod settings;
mod window;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::{Node, PodTemplateSpec, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::client::{
    self, Client, DEPLOYMENTS, REPLICA_SETS, REPLICATION_CONTROLLERS, Resource, SERVICES, STATEFUL_SETS,
};
use crate::events::{Record, Recorder, Subject, Told};
use crate::informer::{Change, Informer, Key, Object, Store, version};
use crate::node::plan::is_ready;
use crate::queue::{Next, Queue, Reconciler};
use crate::replica_set::{Replication, Set as _};
use crate::{Error, selector};
use plan::{Memory, Seen};
pub(crate) use reports::is_ours;
use reports::{News, Reports};
use settings::Settings;

/// Annotation of a Service whose pods are scaled by what is asked of it, with the workloads as value. Nodes read it
/// (`coracle_discovery::ACTIVATES`).
const ACTIVATES: &str = "autoscaling.coracle.dev/activates";
/// Between reconciliations of one object in a storm.
const SPACING: Duration = Duration::from_millis(100);
/// A workload's Service is made a little later, as a rule; one without is told of after this.
const SERVICE_WITHIN: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 15 });
const COMPONENT: &str = "concurrency-autoscaler";

/// What may be scaled so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Kind {
    Deployment,
    StatefulSet,
    ReplicaSet,
    ReplicationController,
}

impl Kind {
    fn resource(self) -> Resource {
        match self {
            Self::Deployment => DEPLOYMENTS,
            Self::StatefulSet => STATEFUL_SETS,
            Self::ReplicaSet => REPLICA_SETS,
            Self::ReplicationController => REPLICATION_CONTROLLERS,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Deployment => "Deployment",
            Self::StatefulSet => "StatefulSet",
            Self::ReplicaSet => "ReplicaSet",
            Self::ReplicationController => "ReplicationController",
        }
    }

    /// As kubectl names one: `deployment.apps/web`.
    fn of(self, name: &str) -> String {
        let kind = self.name().to_ascii_lowercase();
        match self {
            Self::ReplicationController => format!("{kind}/{name}"),
            _ => format!("{kind}.apps/{name}"),
        }
    }
}

/// What is looked at.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Id {
    /// How many pods it has.
    Workload(Kind, Key),
    /// Whether it is marked.
    Service(Key),
}

/// A workload as far as it matters here.
struct Workload {
    kind: Kind,
    key: Key,
    uid: Arc<str>,
    version: u64,
    annotations: BTreeMap<String, String>,
    /// Labels of its pods.
    labels: BTreeMap<String, String>,
    replicas: i32,
    ready: i32,
}

impl Workload {
    /// One that has annotations of ours; what somebody else makes and scales has its maker's.
    fn read(
        kind: Kind,
        metadata: &ObjectMeta,
        template: Option<&PodTemplateSpec>,
        (replicas, ready): (Option<i32>, Option<i32>),
    ) -> Option<Self> {
        let annotations = metadata.annotations.as_ref()?;
        let is_asked = annotations.keys().any(|name| name.starts_with(settings::PREFIX));
        if !is_asked
            || metadata.deletion_timestamp.is_some()
            || crate::informer::controller(metadata.owner_references.as_deref()).is_some()
        {
            return None;
        }
        let labels = template.and_then(|template| template.metadata.as_ref()?.labels.clone());
        Some(Self {
            kind,
            key: Key::new(
                metadata.namespace.as_deref().unwrap_or_default(),
                metadata.name.as_deref().unwrap_or_default(),
            ),
            uid: metadata.uid.as_deref().unwrap_or_default().into(),
            version: version(metadata.resource_version.as_deref()),
            annotations: annotations.clone(),
            labels: labels.unwrap_or_default(),
            replicas: replicas.unwrap_or(1),
            ready: ready.unwrap_or_default(),
        })
    }
}

/// An object that may be scaled so.
trait Scaled: Object {
    const KIND: Kind;

    fn workload(&self) -> Option<Workload>;
}

impl Scaled for Deployment {
    const KIND: Kind = Kind::Deployment;

    fn workload(&self) -> Option<Workload> {
        let (spec, status) = (&self.spec, self.status.as_ref());
        let numbers = (spec.replicas, status.and_then(|status| status.ready_replicas));
        Workload::read(Self::KIND, &self.metadata, Some(&spec.template), numbers)
    }
}

impl Scaled for StatefulSet {
    const KIND: Kind = Kind::StatefulSet;

    fn workload(&self) -> Option<Workload> {
        let (spec, status) = (&self.spec, self.status.as_ref());
        let numbers = (spec.replicas, status.and_then(|status| status.ready_replicas));
        Workload::read(Self::KIND, &self.metadata, Some(&spec.template), numbers)
    }
}

fn of_set(kind: Kind, set: &ReplicaSet) -> Option<Workload> {
    let (spec, status) = (&set.spec, set.status.as_ref());
    let numbers = (spec.replicas, status.and_then(|status| status.ready_replicas));
    Workload::read(kind, &set.metadata, spec.template.as_ref(), numbers)
}

impl Scaled for ReplicaSet {
    const KIND: Kind = Kind::ReplicaSet;

    fn workload(&self) -> Option<Workload> {
        of_set(Self::KIND, self)
    }
}

impl Scaled for Replication {
    const KIND: Kind = Kind::ReplicationController;

    fn workload(&self) -> Option<Workload> {
        of_set(Self::KIND, self.set())
    }
}

/// Informers that it listens to.
pub(crate) struct Sources<'a> {
    pub deployments: &'a mut Informer<Deployment>,
    pub stateful_sets: &'a mut Informer<StatefulSet>,
    pub replica_sets: &'a mut Informer<ReplicaSet>,
    pub replications: &'a mut Informer<Replication>,
    pub services: &'a mut Informer<Service>,
    pub nodes: &'a mut Informer<Node>,
    pub autoscalers: &'a mut Informer<HorizontalPodAutoscaler>,
}

/// What is remembered of a workload that is scaled.
struct Life {
    uid: Arc<str>,
    memory: Memory,
    services: Vec<Key>,
    /// Its version when its scale was written last: what is older is not looked at.
    written: u64,
}

/// Why a workload that asks for it is not scaled, since when, and whether it was told.
struct Refused {
    why: Told,
    since: Instant,
    is_told: bool,
}

/// The controller of workloads that are scaled by what is asked of them.
pub(crate) struct Controller {
    client: Client,
    recorder: Recorder,
    queue: Queue<Id>,
    asking: Asking,
    deployments: Arc<Store<Deployment>>,
    stateful_sets: Arc<Store<StatefulSet>>,
    replica_sets: Arc<Store<ReplicaSet>>,
    replications: Arc<Store<Replication>>,
    services: Arc<Store<Service>>,
    nodes: Arc<Store<Node>>,
    autoscalers: Arc<Store<HorizontalPodAutoscaler>>,
    reports: Arc<Reports>,
    /// Of workloads that are scaled: as many as there are.
    lives: Mutex<HashMap<(Kind, Key), Life>>,
    /// Why workloads that ask for it are not scaled.
    refused: Mutex<HashMap<(Kind, Key), Refused>>,
    /// Which nodes are to be heard may have changed.
    changed: Arc<Notify>,
}

/// Those that ask to be scaled, by namespace.
type Asking = Arc<Mutex<HashMap<Arc<str>, BTreeSet<(Kind, Key)>>>>;

fn listen<K: Scaled>(
    informer: &mut Informer<K>,
    (queue, asking, services): (&Queue<Id>, &Asking, &Arc<Store<Service>>),
) -> Arc<Store<K>> {
    let (queue, asking, services) = (queue.clone(), asking.clone(), services.clone());
    informer.on_change(move |change| {
        let now = match change {
            Change::Deleted(_) => None,
            Change::Updated(_, object) | Change::Added(object) => object.workload(),
        };
        let before = match change {
            Change::Deleted(object) => object.workload(),
            _ => change.before().and_then(|before| before.workload()),
        };
        if now.is_none() && before.is_none() {
            return;
        }
        let key = change.object().key();
        {
            let mut asking = asking.lock();
            let own = asking.entry(key.namespace.clone()).or_default();
            match now {
                Some(_) => drop(own.insert((K::KIND, key.clone()))),
                None => drop(own.remove(&(K::KIND, key.clone()))),
            }
            if own.is_empty() {
                asking.remove(&key.namespace);
            }
        }
        queue.add(&Id::Workload(K::KIND, key));
        let is_same = |now: &Workload, before: &Workload| {
            now.labels == before.labels && now.annotations == before.annotations && now.uid == before.uid
        };
        if let (Some(now), Some(before)) = (&now, &before)
            && is_same(now, before)
        {
            return;
        }
        for workload in [&now, &before].into_iter().flatten() {
            let selecting = services.select(&workload.key.namespace, |service| selects(service, &workload.labels));
            selecting.iter().for_each(|service| queue.add(&Id::Service(service.key())));
        }
    });
    informer.store()
}

/// Whether requests to this Service may go to pods with these labels.
fn selects(service: &Service, labels: &BTreeMap<String, String>) -> bool {
    let Some(spec) = &service.spec else { return false };
    let wanted = spec.selector.as_ref().filter(|wanted| !wanted.is_empty());
    spec.type_.as_deref() != Some("ExternalName") && wanted.is_some_and(|wanted| selector::contains(labels, wanted))
}

impl Controller {
    pub(crate) fn new(client: Client, recorder: Recorder, sources: Sources<'_>) -> Arc<Self> {
        let queue: Queue<Id> = Queue::new(SPACING);
        let changed = Arc::<Notify>::default();
        let services = sources.services.store();
        let asking = Asking::default();
        let to = (&queue, &asking, &services);
        let deployments = listen(sources.deployments, to);
        let stateful_sets = listen(sources.stateful_sets, to);
        let replica_sets = listen(sources.replica_sets, to);
        let replications = listen(sources.replications, to);
        let controller = Arc::new(Self {
            client,
            recorder,
            queue,
            asking,
            deployments,
            stateful_sets,
            replica_sets,
            replications,
            services,
            nodes: sources.nodes.store(),
            autoscalers: sources.autoscalers.store(),
            reports: Arc::default(),
            lives: Mutex::default(),
            refused: Mutex::default(),
            changed: changed.clone(),
        });
        sources.services.on_change({
            let controller = controller.clone();
            move |change| {
                let service = change.object();
                controller.queue.add(&Id::Service(service.key()));
                let is_same = |before: &Arc<Service>| before.spec == service.spec;
                if change.before().is_none_or(|before| !is_same(before)) {
                    let touched = controller.workloads(&service.metadata.namespace.clone().unwrap_or_default());
                    let before = change.before();
                    let touched = touched.into_iter().filter(|workload| {
                        selects(service, &workload.labels)
                            || before.is_some_and(|before| selects(before, &workload.labels))
                    });
                    touched.for_each(|workload| controller.queue.add(&Id::Workload(workload.kind, workload.key)));
                }
            }
        });
        sources.autoscalers.on_change({
            let controller = controller.clone();
            move |change| {
                let autoscaler = change.object();
                let both = [change.before(), Some(autoscaler)].into_iter().flatten();
                for workload in controller.workloads(autoscaler.metadata.namespace.as_deref().unwrap_or_default()) {
                    if both.clone().any(|autoscaler| is_target(autoscaler, &workload)) {
                        controller.touch(&workload);
                    }
                }
            }
        });
        sources.nodes.on_change({
            let controller = controller.clone();
            move |change| {
                let is_to_be_heard = |node: &Node| (is_ours(node), is_ready(node));
                let before = change.before().map(|before| is_to_be_heard(before));
                let is_gone = matches!(change, Change::Deleted(_));
                if is_gone || before != Some(is_to_be_heard(change.object())) {
                    changed.notify_one();
                    controller.all();
                }
            }
        });
        controller
    }

    /// Those of a namespace that ask to be scaled.
    fn workloads(&self, namespace: &str) -> Vec<Workload> {
        let asking = self.asking.lock().get(namespace).cloned().unwrap_or_default();
        asking.iter().filter_map(|(kind, key)| self.workload(*kind, key)).collect()
    }

    fn workload(&self, kind: Kind, key: &Key) -> Option<Workload> {
        match kind {
            Kind::Deployment => self.deployments.get(key)?.workload(),
            Kind::StatefulSet => self.stateful_sets.get(key)?.workload(),
            Kind::ReplicaSet => self.replica_sets.get(key)?.workload(),
            Kind::ReplicationController => self.replications.get(key)?.workload(),
        }
    }

    /// Looks at a workload and its Services.
    fn touch(&self, workload: &Workload) {
        self.queue.add(&Id::Workload(workload.kind, workload.key.clone()));
        self.selecting(workload).into_iter().for_each(|service| self.queue.add(&Id::Service(service)));
    }

    /// Looks at all that are scaled.
    fn all(&self) {
        self.lives.lock().keys().for_each(|(kind, key)| self.queue.add(&Id::Workload(*kind, key.clone())));
    }

    fn selecting(&self, workload: &Workload) -> Vec<Key> {
        let selecting = self.services.select(&workload.key.namespace, |service| selects(service, &workload.labels));
        selecting.iter().map(|service| service.key()).collect()
    }

    /// How it is scaled; why it is not.
    fn settings(&self, workload: &Workload) -> Result<Settings, Told> {
        let settings = match settings::read(&workload.annotations) {
            Ok(settings) => settings.unwrap_or_default(),
            Err(why) => return Err(Told::warning("InvalidAutoscaling", why)),
        };
        let others = self.autoscalers.select(&workload.key.namespace, |other| is_target(other, workload));
        if let Some(other) = others.first() {
            let why = format!(
                "HorizontalPodAutoscaler {} scales it: what annotations of {} say is not done while there is one",
                other.key().name,
                settings::PREFIX
            );
            return Err(Told::warning("AutoscalingConflict", why));
        }
        Ok(settings)
    }

    /// Listens to nodes as long as there is anything that is scaled.
    pub(crate) async fn listen(self: Arc<Self>, shutdown: CancellationToken) {
        let tasks = TaskTracker::new();
        loop {
            let is_wanted = !self.lives.lock().is_empty();
            let nodes = if is_wanted { self.nodes.all() } else { Vec::new() };
            let tell = nodes.iter().filter(|node| is_ours(node));
            let names: HashSet<Arc<str>> = tell.map(|node| node.key().name).collect();
            for (node, stop) in self.reports.follow(&names) {
                let this = self.clone();
                tasks.spawn(async move {
                    let tell = |news: News<'_>| match news {
                        News::Ear => this.all(),
                        News::Asked(service) => this.asked(service),
                    };
                    let is_known = |service: &Key| this.is_known(service);
                    this.reports.listen(&this.client, &node, stop, is_known, tell).await;
                });
            }
            // Waiting is all that is cut here.
            tokio::select! {
                () = self.changed.notified() => {}
                () = shutdown.cancelled() => break,
            }
        }
        self.reports.follow(&HashSet::new());
        tasks.close();
        tasks.wait().await;
    }

    /// Whether a Service may be one of those that are marked: it is there, and somebody in its namespace asks to be scaled. That it is
    /// marked itself a node may know before we do.
    fn is_known(&self, service: &Key) -> bool {
        self.asking.lock().contains_key(&service.namespace) && self.services.get(service).is_some()
    }

    /// Something is asked of a Service.
    fn asked(&self, service: &Key) {
        let lives = self.lives.lock();
        let scaled = lives.iter().filter(|(_, life)| life.services.contains(service));
        scaled.for_each(|((kind, key), _)| self.queue.add(&Id::Workload(*kind, key.clone())));
    }

    /// It is not scaled, or not any more.
    fn forget(&self, id: &(Kind, Key)) {
        if self.lives.lock().remove(id).is_some() {
            self.changed.notify_one();
        }
    }

    async fn scale(&self, kind: Kind, key: Key) -> Result<Next, Error> {
        let id = (kind, key);
        let Some(workload) = self.workload(kind, &id.1) else {
            self.forget(&id);
            self.refused.lock().remove(&id);
            return Ok(Next::OnEvent);
        };
        let services = self.selecting(&workload);
        let settings = match self.settings(&workload) {
            // What is asked of its pods is not known then, and nothing would wake it.
            Ok(_) if services.is_empty() => {
                let why = Told::warning(
                    "NoService",
                    "no Service selects its pods: it is not scaled by what is asked of them",
                );
                return Ok(self.refuse(id, &workload, why, SERVICE_WITHIN));
            }
            Ok(settings) => settings,
            Err(why) => return Ok(self.refuse(id, &workload, why, Duration::ZERO)),
        };
        self.refused.lock().remove(&id);
        let nodes = self.nodes.all();
        let must_tell = nodes.iter().filter(|node| is_ours(node) && is_ready(node));
        let heard_since = self.reports.heard_since(must_tell.filter_map(|node| node.metadata.name.as_deref()));
        let now = Instant::now();
        let asked = self.reports.asked(&services, now);
        let decision = {
            let mut lives = self.lives.lock();
            let is_new = lives.get(&id).is_none_or(|life| life.uid != workload.uid);
            if is_new {
                let memory = Memory::new(now, &settings);
                let life = Life { uid: workload.uid.clone(), memory, services: Vec::new(), written: 0 };
                lives.insert(id.clone(), life);
                self.changed.notify_one();
            }
            let Some(life) = lives.get_mut(&id) else { return Ok(Next::OnEvent) };
            life.services = services;
            // The watch is behind what was written: it will tell.
            if workload.version < life.written {
                return Ok(Next::OnEvent);
            }
            let Workload { replicas, ready, .. } = workload;
            let seen = Seen { replicas, ready, asked: asked.average, held: asked.held, heard_since };
            let decision = plan::decide(&settings, &mut life.memory, &seen, now);
            if let Some((replicas, _)) = &decision.change {
                life.memory.writes(*replicas);
            }
            decision
        };
        if let Some((replicas, why)) = decision.change {
            let patch = json!({
                "metadata": {"uid": &*workload.uid, "resourceVersion": workload.version.to_string()},
                "spec": {"replicas": replicas},
            });
            let Resource { version: group, plural } = kind.resource();
            let path = client::path(group, plural, &id.1.namespace, &id.1.name);
            let written = self.client.patch_at(&format!("{path}/scale"), &patch).await;
            let written = written.map_err(Error::api("write the scale of a workload"))?;
            if let Some(life) = self.lives.lock().get_mut(&id) {
                life.written = version(written.metadata.resource_version.as_deref());
            }
            self.tell(&workload, Told::normal("SuccessfulRescale", format!("New size: {replicas}; reason: {why}")));
        }
        Ok(decision.next.map_or(Next::OnEvent, Next::After))
    }

    /// It is not scaled; why is told once, when it has been so for a while.
    fn refuse(&self, id: (Kind, Key), workload: &Workload, why: Told, after: Duration) -> Next {
        self.forget(&id);
        let mut all = self.refused.lock();
        let new = || Refused { why: why.clone(), since: Instant::now(), is_told: false };
        let refused = all.entry(id).or_insert_with(new);
        if refused.why != why {
            *refused = new();
        }
        let left = after.saturating_sub(refused.since.elapsed());
        if !left.is_zero() {
            return Next::After(left);
        }
        if !std::mem::replace(&mut refused.is_told, true) {
            self.tell(workload, why);
        }
        Next::OnEvent
    }

    /// Marks a Service, or takes the mark away.
    async fn mark(&self, key: Key) -> Result<Next, Error> {
        let Some(service) = self.services.get(&key).filter(|service| !service.is_deleting()) else {
            return Ok(Next::OnEvent);
        };
        let workloads = self.workloads(&key.namespace).into_iter();
        let mut scaled: Vec<String> = workloads
            .filter(|workload| selects(&service, &workload.labels) && self.settings(workload).is_ok())
            .map(|workload| workload.kind.of(&workload.key.name))
            .collect();
        scaled.sort();
        let wanted = Some(scaled.join(",")).filter(|wanted| !wanted.is_empty());
        let marked = service.metadata.annotations.as_ref().and_then(|annotations| annotations.get(ACTIVATES));
        if marked == wanted.as_ref() {
            return Ok(Next::OnEvent);
        }
        let patch = json!({"metadata": {
            "uid": service.metadata.uid, "resourceVersion": service.metadata.resource_version,
            "annotations": {ACTIVATES: wanted},
        }});
        let written = self.client.patch(SERVICES, &key, &patch).await;
        written
            .map(|_| Next::OnEvent)
            .map_err(Error::api("mark a Service whose pods are scaled by what is asked of it"))
    }

    fn tell(&self, workload: &Workload, told: Told) {
        let (key, uid) = (workload.key.clone(), workload.uid.clone());
        let api_version = workload.kind.resource().version.into();
        let subject = Subject { api_version, kind: workload.kind.name().into(), key, uid };
        let Told { warning, reason, message } = told;
        self.recorder.record(Record { subject, component: COMPONENT, warning, reason, message });
    }
}

/// Whether an autoscaler scales it, too.
fn is_target(autoscaler: &HorizontalPodAutoscaler, workload: &Workload) -> bool {
    let target = &autoscaler.spec.scale_target_ref;
    let group = |version: &str| version.split_once('/').map_or(String::new(), |(group, _)| group.to_owned());
    target.kind == workload.kind.name()
        && *target.name == *workload.key.name
        && group(target.api_version.as_deref().unwrap_or_default()) == group(workload.kind.resource().version)
}

impl Reconciler for Controller {
    type Key = Id;
    const NAME: &'static str = "concurrency-autoscaler";
    const WORKERS: usize = 5;

    fn queue(&self) -> &Queue<Id> {
        &self.queue
    }

    async fn reconcile(self: Arc<Self>, id: Id) -> Result<Next, Error> {
        match id {
            Id::Workload(kind, key) => self.scale(kind, key).await,
            Id::Service(key) => self.mark(key).await,
        }
    }
}
