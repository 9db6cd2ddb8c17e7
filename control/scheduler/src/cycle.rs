//! The scheduler's loop: one owner of view and queue, a closed set of inputs, long work outside.
//!
//! Whatever is ready is taken in, then everything that can be decided is decided and sent off. Nothing waits for more to
//! come; batches grow by themselves while requests are under way, of which there are at most [`REQUESTS_MAX`].

use std::collections::{HashMap, HashSet, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use coracle_tolerant::Tolerant;
use futures::{FutureExt as _, Stream, StreamExt as _};
use jiff::Timestamp;
use kube::Resource as _;
use kube::api::Api;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, watcher};
use serde_json::json;
use tokio::sync::Semaphore;
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::bind::{self, BATCH_MAX, Binding, Outcome};
use crate::class::{Class, Classes, Interned};
use crate::decide::{Decider, Decision, Diagnosis};
use crate::preempt::Preemption;
use crate::queue::{Helps, Queue};
use crate::report::{Nominated, Reporter, Subject, live, send};
use crate::view::{self, ClusterView, Placed, Uid};
use crate::volumes::{self, Changed, Volumes};
use crate::wire::{Budget, Claim, Namespace, Node, Pod, StorageClass, Volume};

/// Requests for bindings under way.
const REQUESTS_MAX: usize = 4;
/// Events taken in before the next decisions.
const INTAKE_MAX: usize = 2048;
/// Pods that no node can take, or whose volumes are to be chosen, which are decided about before the next events: they cost up to
/// milliseconds each.
const REFUSALS_MAX: usize = 128;
/// Pods for which it is written at a time where their volumes are to be; others wait, bounded by the pods.
const CHOICES_IN_FLIGHT: usize = 16;
/// Victims that are deleted at a time; others wait, bounded by the pods.
const EVICTIONS_IN_FLIGHT: usize = 16;
/// How often a victim is asked to go while nobody knows whether it was asked (for about half a minute); then it stays.
const EVICTION_ATTEMPTS: u32 = 20;
/// Between attempts with an unknown outcome: the first, and the longest.
const ASK_AGAIN: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// Volumes that are not bound after this are told of: whoever makes them says why on the claim.
const VOLUMES_SOON: Duration = Duration::from_secs(10);
/// The scheduler that pods ask for.
const NAME: &str = "default-scheduler";

/// What is heard.
enum Input {
    Pod(Box<watcher::Event<Tolerant<Pod>>>),
    Node(Box<watcher::Event<Tolerant<Node>>>),
    Namespace(Box<watcher::Event<Tolerant<Namespace>>>),
    Budget(Box<watcher::Event<Tolerant<Budget>>>),
    Claim(Box<watcher::Event<Tolerant<Claim>>>),
    Volume(Box<watcher::Event<Tolerant<Volume>>>),
    Class(Box<watcher::Event<Tolerant<StorageClass>>>),
}

type Inputs = Pin<Box<dyn Stream<Item = Input> + Send>>;

/// What ended outside the loop.
enum Done {
    Bound(Vec<(Binding, Outcome)>),
    /// Bindings with an unknown outcome are to be asked for again.
    Due(Vec<Binding>),
    /// Victims were asked to go.
    Evicted(Vec<(Victim, Outcome)>),
    /// Victims of whom nobody knows whether they were asked are to be asked again.
    DueVictims(Vec<Victim>),
    /// It is written where the volumes of a pod are to be, or not.
    Chosen(Uid, Outcome),
}

/// What a task was sent with, should it not come back.
enum Sent {
    Bindings(Vec<Binding>),
    Asking(Vec<Binding>),
    Victims(Vec<Victim>),
    WaitingVictims(Vec<Victim>),
    Choice(Uid),
}

/// Who makes room.
#[derive(Debug, Clone)]
struct Victim {
    subject: Subject,
    /// For whom.
    by: Uid,
    /// How often it was asked to go without an answer.
    attempts: u32,
}

/// The loop's state.
struct Cycle {
    client: kube::Client,
    reporter: Reporter,
    view: ClusterView,
    volumes: Volumes,
    /// What of them is not as it was at the last decisions.
    changed: Changed,
    /// Since when pods wait for their volumes at the nodes that were chosen.
    chosen: HashMap<Uid, Instant>,
    choosing: Arc<Semaphore>,
    /// Pods without a node in whose status stands where room is made for them, or will.
    nominated: HashSet<Uid>,
    queue: Queue,
    classes: Classes,
    decider: Decider,
    tasks: JoinSet<Done>,
    /// What every one of `tasks` has in hand: a panic is our bug, and costs nobody its turn.
    sent: HashMap<Id, Sent>,
    requests: usize,
    /// Bindings that nobody knows the outcome of; they go before new ones.
    unknown: Vec<Binding>,
    /// Those who make room, and have not been asked to go.
    victims: VecDeque<Victim>,
    /// All of them until the API says that they go.
    doomed: HashSet<Uid>,
    evicting: bool,
    listed: Listed,
}

/// How far the first lists have come; what a relist does not show is gone.
#[derive(Default)]
struct Listed {
    pods: bool,
    nodes: bool,
    absent_pods: HashSet<Uid>,
    absent_nodes: HashSet<Arc<str>>,
    absent_namespaces: HashSet<Arc<str>>,
    absent_budgets: HashSet<(Arc<str>, Arc<str>)>,
    claims: bool,
    volumes: bool,
    storage_classes: bool,
    absent_claims: HashSet<volumes::Key>,
    absent_volumes: HashSet<Arc<str>>,
    absent_storage_classes: HashSet<Arc<str>>,
}

impl Listed {
    /// A decision on half a view would be a guess.
    fn is_complete(&self) -> bool {
        self.pods && self.nodes && self.claims && self.volumes && self.storage_classes
    }
}

/// Runs until shutdown.
pub(crate) async fn run(client: kube::Client, reporter: Reporter, shutdown: CancellationToken) {
    let mut inputs = inputs(&client);
    let mut cycle = Cycle::new(client, reporter);
    loop {
        cycle.queue.on_time(Instant::now());
        let more = cycle.decide();
        // Deciding sets deadlines, too.
        let deadline = cycle.queue.next_deadline();
        let wait = async {
            match deadline {
                _ if more => tokio::task::yield_now().await,
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        // Every branch only waits.
        tokio::select! {
            () = shutdown.cancelled() => break,
            input = inputs.next() => match input {
                Some(input) => cycle.take(input),
                None => break,
            },
            Some(done) = cycle.tasks.join_next_with_id(), if !cycle.tasks.is_empty() => cycle.finish(done),
            () = wait => {}
        }
        for _ in 0..INTAKE_MAX {
            match inputs.next().now_or_never() {
                Some(Some(input)) => cycle.take(input),
                _ => break,
            }
        }
        while let Some(done) = cycle.tasks.try_join_next_with_id() {
            cycle.finish(done);
        }
    }
    // What was sent will be answered; nobody listens any more, but it is not cut off half-way.
    let rest = async { while cycle.tasks.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(Duration::from_secs(2), rest).await;
}

fn inputs(client: &kube::Client) -> Inputs {
    let nodes = listen(client, Input::Node);
    let pods = listen(client, Input::Pod);
    // Nobody waits for these two: an API server may not have them.
    let namespaces = listen(client, Input::Namespace);
    let budgets = listen(client, Input::Budget);
    let others = futures::stream::select(namespaces, budgets);
    let volumes = futures::stream::select(listen(client, Input::Volume), listen(client, Input::Class));
    let volumes = futures::stream::select(listen(client, Input::Claim), volumes);
    let first = futures::stream::select(futures::stream::select(pods, nodes), volumes);
    Box::pin(futures::stream::select(first, others))
}

/// The events of a kind; a watch that breaks is taken up again.
fn listen<K>(
    client: &kube::Client,
    input: impl Fn(Box<watcher::Event<Tolerant<K>>>) -> Input + Send + 'static,
) -> Inputs
where
    K: kube::Resource<DynamicType = ()> + serde::de::DeserializeOwned + Clone + std::fmt::Debug + Send + 'static,
{
    let config = watcher::Config::default().streaming_lists();
    let events = watcher(Api::<Tolerant<K>>::all(client.clone()), config).default_backoff();
    Box::pin(events.filter_map(move |event| {
        let event = event.inspect_err(|error| tracing::debug!(kind = %K::plural(&()), %error, "watch again"));
        std::future::ready(event.ok().map(|event| input(Box::new(event))))
    }))
}

impl Cycle {
    fn new(client: kube::Client, reporter: Reporter) -> Self {
        Self {
            client,
            reporter,
            view: ClusterView::default(),
            volumes: Volumes::default(),
            changed: Changed::default(),
            chosen: HashMap::new(),
            choosing: Arc::new(Semaphore::new(CHOICES_IN_FLIGHT)),
            nominated: HashSet::new(),
            queue: Queue::default(),
            classes: Classes::default(),
            decider: Decider::default(),
            tasks: JoinSet::new(),
            sent: HashMap::new(),
            requests: 0,
            unknown: vec![],
            victims: VecDeque::new(),
            doomed: HashSet::new(),
            evicting: false,
            listed: Listed::default(),
        }
    }

    fn spawn(&mut self, sent: Sent, work: impl Future<Output = Done> + Send + 'static) {
        let task = self.tasks.spawn(work);
        self.sent.insert(task.id(), sent);
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Pod(event) => self.take_pod(*event),
            Input::Node(event) => self.take_node(*event),
            Input::Namespace(event) => self.take_namespace(*event),
            Input::Budget(event) => self.take_budget(*event),
            Input::Claim(event) => self.take_claim(*event),
            Input::Volume(event) => self.take_volume(*event),
            Input::Class(event) => self.take_class(*event),
        }
    }

    fn take_namespace(&mut self, event: watcher::Event<Tolerant<Namespace>>) {
        let name = |namespace: &Tolerant<Namespace>| -> Arc<str> {
            namespace.meta().name.as_deref().unwrap_or_default().into()
        };
        let changed = match event {
            watcher::Event::Init => {
                self.listed.absent_namespaces = self.view.namespace_names().cloned().collect();
                false
            }
            watcher::Event::InitApply(namespace) | watcher::Event::Apply(namespace) => {
                let name = name(&namespace);
                self.listed.absent_namespaces.remove(&name);
                let Some(namespace) = good("namespace", namespace) else { return };
                self.view.put_namespace(&name, Some(namespace.metadata.labels.unwrap_or_default()))
            }
            watcher::Event::InitDone => {
                for name in std::mem::take(&mut self.listed.absent_namespaces) {
                    self.view.put_namespace(&name, None);
                }
                self.view.namespaces_listed();
                true
            }
            watcher::Event::Delete(namespace) => self.view.put_namespace(&name(&namespace), None),
        };
        if changed {
            // Whom a term means may be others now.
            self.queue.wake(Helps::COMPANY.or(Helps::DISTANCE), Instant::now());
        }
    }

    fn take_budget(&mut self, event: watcher::Event<Tolerant<Budget>>) {
        let key = |budget: &Tolerant<Budget>| -> (Arc<str>, Arc<str>) {
            let meta = budget.meta();
            (meta.namespace.as_deref().unwrap_or_default().into(), meta.name.as_deref().unwrap_or_default().into())
        };
        match event {
            watcher::Event::Init => {
                self.listed.absent_budgets = self.view.budget_keys().collect();
            }
            watcher::Event::InitApply(budget) | watcher::Event::Apply(budget) => {
                let key = key(&budget);
                self.listed.absent_budgets.remove(&key);
                let Some(Budget { spec, status, .. }) = good("poddisruptionbudget", budget) else { return };
                let budget = spec.selector.map(|selector| view::Budget {
                    selector,
                    allowed: status.disruptions_allowed,
                    disrupted: status.disrupted_pods.into_keys().collect(),
                });
                self.view.put_budget(key, budget);
            }
            watcher::Event::InitDone => {
                for key in std::mem::take(&mut self.listed.absent_budgets) {
                    self.view.put_budget(key, None);
                }
            }
            watcher::Event::Delete(budget) => self.view.put_budget(key(&budget), None),
        }
    }

    fn take_claim(&mut self, event: watcher::Event<Tolerant<Claim>>) {
        let key = |claim: &Tolerant<Claim>| -> volumes::Key {
            let meta = claim.meta();
            (meta.namespace.as_deref().unwrap_or_default().into(), meta.name.as_deref().unwrap_or_default().into())
        };
        match event {
            watcher::Event::Init => self.listed.absent_claims = self.volumes.claim_keys(),
            watcher::Event::InitApply(claim) | watcher::Event::Apply(claim) => {
                let key = key(&claim);
                self.listed.absent_claims.remove(&key);
                let Some(claim) = good("persistentvolumeclaim", claim) else { return };
                self.volumes.put_claim(key, Some(claim), &mut self.changed);
            }
            watcher::Event::InitDone => {
                self.listed.claims = true;
                for key in std::mem::take(&mut self.listed.absent_claims) {
                    self.volumes.put_claim(key, None, &mut self.changed);
                }
            }
            watcher::Event::Delete(claim) => self.volumes.put_claim(key(&claim), None, &mut self.changed),
        }
    }

    fn take_volume(&mut self, event: watcher::Event<Tolerant<Volume>>) {
        let name = |volume: &Tolerant<Volume>| -> Arc<str> { volume.meta().name.as_deref().unwrap_or_default().into() };
        match event {
            watcher::Event::Init => self.listed.absent_volumes = self.volumes.volume_names(),
            watcher::Event::InitApply(volume) | watcher::Event::Apply(volume) => {
                let name = name(&volume);
                self.listed.absent_volumes.remove(&name);
                let Some(volume) = good("persistentvolume", volume) else { return };
                self.volumes.put_volume(name, Some(volume), &mut self.changed);
            }
            watcher::Event::InitDone => {
                self.listed.volumes = true;
                for name in std::mem::take(&mut self.listed.absent_volumes) {
                    self.volumes.put_volume(name, None, &mut self.changed);
                }
            }
            watcher::Event::Delete(volume) => self.volumes.put_volume(name(&volume), None, &mut self.changed),
        }
    }

    fn take_class(&mut self, event: watcher::Event<Tolerant<StorageClass>>) {
        let name =
            |class: &Tolerant<StorageClass>| -> Arc<str> { class.meta().name.as_deref().unwrap_or_default().into() };
        match event {
            watcher::Event::Init => self.listed.absent_storage_classes = self.volumes.class_names(),
            watcher::Event::InitApply(class) | watcher::Event::Apply(class) => {
                let name = name(&class);
                self.listed.absent_storage_classes.remove(&name);
                let Some(class) = good("storageclass", class) else { return };
                self.volumes.put_class(name, Some(class), &mut self.changed);
            }
            watcher::Event::InitDone => {
                self.listed.storage_classes = true;
                for name in std::mem::take(&mut self.listed.absent_storage_classes) {
                    self.volumes.put_class(name, None, &mut self.changed);
                }
            }
            watcher::Event::Delete(class) => self.volumes.put_class(name(&class), None, &mut self.changed),
        }
    }

    /// What the volumes of these pods ask for may be something else now: then they are queued anew.
    fn look_again(&mut self, concerned: impl IntoIterator<Item = Uid>) {
        for uid in concerned {
            if let Some(pod) = self.volumes.waiting(&uid).cloned() {
                self.put_pod(&pod);
            }
        }
    }

    fn take_node(&mut self, event: watcher::Event<Tolerant<Node>>) {
        match event {
            watcher::Event::Init => {
                self.listed.absent_nodes = self.view.nodes().map(|(_, node)| node.name.clone()).collect();
            }
            watcher::Event::InitApply(node) | watcher::Event::Apply(node) => {
                self.listed.absent_nodes.remove(node.meta().name.as_deref().unwrap_or_default());
                let Some(node) = good("node", node) else { return };
                if self.view.put_node(node) {
                    self.queue.wake(Helps::NODE, Instant::now());
                }
            }
            watcher::Event::InitDone => {
                let absent = std::mem::take(&mut self.listed.absent_nodes);
                self.remove_nodes(absent.iter().map(|name| &**name));
                self.listed.nodes = true;
            }
            watcher::Event::Delete(node) => {
                self.remove_nodes(std::iter::once(node.meta().name.as_deref().unwrap_or_default()));
            }
        }
    }

    fn remove_nodes<'a>(&mut self, names: impl Iterator<Item = &'a str>) {
        let mut names = names.peekable();
        if names.peek().is_none() {
            return;
        }
        for name in names {
            for uid in self.view.remove_node(name) {
                self.tell_withdrawn(&uid);
            }
        }
        // The total in messages changed, and the lost node may have been the obstacle (spread).
        self.queue.wake_all(Instant::now());
    }

    /// Room is made for the pod nowhere any more; where it waits for its volumes nobody was told.
    fn tell_withdrawn(&mut self, uid: &str) {
        if self.nominated.remove(uid)
            && let Some(pending) = self.queue.get(uid)
        {
            self.reporter.withdrawn(pending.subject.clone());
        }
    }

    fn take_pod(&mut self, event: watcher::Event<Tolerant<Pod>>) {
        match event {
            watcher::Event::Init => {
                let queued = self.queue.uids().cloned();
                self.listed.absent_pods = queued.chain(self.view.placed_uids().cloned()).collect();
            }
            watcher::Event::InitApply(pod) | watcher::Event::Apply(pod) => {
                self.listed.absent_pods.remove(pod.meta().uid.as_deref().unwrap_or_default());
                if let Some(pod) = good("pod", pod) {
                    self.put_pod(&pod);
                }
            }
            watcher::Event::InitDone => {
                for uid in std::mem::take(&mut self.listed.absent_pods) {
                    self.remove_pod(&uid);
                }
                self.listed.pods = true;
            }
            watcher::Event::Delete(pod) => self.remove_pod(pod.meta().uid.as_deref().unwrap_or_default()),
        }
    }

    fn put_pod(&mut self, pod: &Pod) {
        let uid: Uid = pod.metadata.uid.as_deref().unwrap_or_default().into();
        if matches!(pod.status.phase.as_deref(), Some("Succeeded" | "Failed")) {
            return self.remove_pod(&uid);
        }
        let leaving = pod.metadata.deletion_timestamp.is_some();
        if leaving {
            // Whatever becomes of our asking for it.
            self.doomed.remove(&uid);
        }
        if let Some(node) = pod.spec.node_name.as_deref().filter(|node| !node.is_empty()) {
            let concerned = self.volumes.place(&uid, pod);
            let interned = self.intern(pod);
            let name = pod.metadata.name.as_deref().unwrap_or_default().into();
            self.queue.remove(&uid);
            self.chosen.remove(&uid);
            self.nominated.remove(&uid);
            self.reporter.settled(&uid);
            let node = self.view.named(node).map_or_else(|| node.into(), |known| known.name.clone());
            let leaving = leaving || self.doomed.contains(&uid);
            let Interned { class, labels, .. } = interned;
            self.place(&uid, Placed { name, node, class, labels, leaving, started: started(pod) });
            self.look_again(concerned);
            return;
        }
        let ours = pod.spec.scheduler_name.as_deref().is_none_or(|name| name.is_empty() || name == NAME);
        if !ours || leaving || !pod.spec.scheduling_gates.is_empty() {
            return self.remove_pod(&uid);
        }
        if self.view.placed(&uid).is_some() {
            // Assumed: its binding is under way.
            return;
        }
        self.volumes.wait(&uid, pod);
        let Interned { class, labels, .. } = self.intern(pod);
        let told = pod.status.conditions.iter().find(|condition| {
            condition.type_ == "PodScheduled"
                && condition.status == "False"
                && condition
                    .reason
                    .as_deref()
                    .is_some_and(|reason| matches!(reason, "Unschedulable" | "SchedulerError"))
        });
        let told = told.and_then(|condition| condition.message.as_deref()).map(Arc::from);
        let name = pod.metadata.name.as_deref().unwrap_or_default().into();
        if let Some(node) = pod.status.nominated_node_name.as_deref().filter(|node| !node.is_empty()) {
            self.nominated.insert(uid.clone());
            if self.queue.get(&uid).is_none() {
                self.view.nominate(&uid, &node.into(), &class);
            }
        }
        let generation = pod.metadata.generation;
        let version = pod.metadata.resource_version.as_deref().map(Arc::from);
        let subject = Subject { namespace: class.namespace.clone(), name, uid, generation, version };
        self.queue.put(subject, class, labels, told);
    }

    /// The pod's class; when it selects by new labels, those of the pods that have them are made anew.
    fn intern(&mut self, pod: &Pod) -> Interned {
        // Where the volumes of a pod are that has a node decides nothing any more.
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let wanted = self.volumes.waiting(uid).map(|pod| self.volumes.wanted(uid, pod)).unwrap_or_default();
        let interned = self.classes.intern(Class::with(pod, wanted));
        if !interned.widened.is_empty() {
            let (classes, keys) = (&mut self.classes, &interned.widened);
            self.view.reclassify(keys, |class, labels| classes.again(class, labels));
            self.queue.reclassify(keys, |class, labels| classes.again(class, labels));
        }
        interned
    }

    /// The pod has this node; those are woken whom that may help.
    fn place(&mut self, uid: &Uid, placed: Placed) {
        let before = self.view.placed(uid).cloned();
        let class = placed.class.clone();
        let (moved, relabelled, left) = match &before {
            None => (true, false, false),
            Some(before) => {
                (before.node != placed.node, !Arc::ptr_eq(&before.class, &class), placed.leaving && !before.leaving)
            }
        };
        self.view.place(uid, placed);
        let now = Instant::now();
        if moved || relabelled {
            self.queue.wake_concerned(Helps::COMPANY, now, |waiting| waiting.is_drawn_by(&class));
        }
        if before.as_ref().is_some_and(|before| before.class.requests != class.requests) {
            // It was resized, and may leave room.
            self.queue.wake(Helps::ROOM, now);
        }
        if let Some(before) = before.filter(|_| moved || relabelled || left) {
            self.queue.wake_concerned(Helps::DISTANCE, now, |waiting| waiting.is_kept_off_by(&before.class));
        }
    }

    /// The pod has no node any more, or not yet; those are woken whom that may help.
    fn displace(&mut self, uid: &str) {
        let withdrawn = self.view.withdraw(uid);
        let placed = self.view.remove(uid);
        let now = Instant::now();
        if withdrawn || placed.is_some() {
            self.queue.wake(Helps::ROOM, now);
        }
        if let Some(placed) = placed {
            self.queue.wake_concerned(Helps::DISTANCE, now, |waiting| waiting.is_kept_off_by(&placed.class));
        }
    }

    fn remove_pod(&mut self, uid: &str) {
        self.queue.remove(uid);
        self.reporter.settled(uid);
        self.doomed.remove(uid);
        self.chosen.remove(uid);
        self.nominated.remove(uid);
        self.displace(uid);
        let concerned = self.volumes.forget(uid);
        self.look_again(concerned);
    }

    /// Decides about what can be decided and sends it off; returns whether there is more.
    fn decide(&mut self) -> bool {
        if !self.listed.is_complete() {
            return false;
        }
        // Once for all that has come: of thousands of volumes each concerns all that look for one.
        let concerned = self.volumes.concerned(&std::mem::take(&mut self.changed));
        self.look_again(concerned);
        let mut left = REFUSALS_MAX;
        while self.requests < REQUESTS_MAX {
            let mut batch = std::mem::take(&mut self.unknown);
            batch.retain(|binding| self.queue.get(&binding.subject.uid).is_some());
            let later = batch.split_off(batch.len().min(BATCH_MAX));
            self.unknown = later;
            while batch.len() < BATCH_MAX
                && left > 0
                && let Some((uid, class)) = self.queue.pop()
            {
                match self.decider.decide(&self.view, &uid, &class) {
                    Decision::Bind(node) if !class.volumes.unbound.is_empty() => {
                        left -= 1;
                        self.choose(&uid, &class, &node);
                    }
                    Decision::Bind(node) => batch.extend(self.assume(&uid, class, node)),
                    Decision::Unschedulable(diagnosis) => {
                        left -= 1;
                        self.give_up(&uid, &class, &diagnosis);
                    }
                }
            }
            if batch.is_empty() {
                break;
            }
            self.requests += 1;
            let sent = Sent::Bindings(batch.clone());
            let binding = bind::bind(self.client.clone(), batch);
            self.spawn(sent, async move { Done::Bound(binding.await) });
        }
        self.requests < REQUESTS_MAX && self.queue.has_active()
    }

    fn assume(&mut self, uid: &Uid, class: Arc<Class>, node: Arc<str>) -> Option<Binding> {
        let pending = self.queue.get(uid)?;
        let (subject, labels) = (pending.subject.clone(), pending.labels.clone());
        let (name, started) = (subject.name.clone(), Timestamp::now().as_second());
        self.place(uid, Placed { name, node: node.clone(), class, labels, leaving: false, started });
        let concerned = self.volumes.assume(uid);
        self.look_again(concerned);
        Some(Binding { subject, node, attempts: 0 })
    }

    /// Has the volumes of a pod made or kept at this node, whose room it keeps meanwhile. When its claims are bound it asks for
    /// something else, and is decided about anew.
    fn choose(&mut self, uid: &Uid, class: &Arc<Class>, node: &Arc<str>) {
        let Some(state) = self.view.named(node) else { return self.queue.retry(uid, Instant::now()) };
        let patches = self.volumes.choose(uid, &class.volumes, state);
        self.view.nominate(uid, node, class);
        let now = Instant::now();
        if !patches.is_empty() {
            self.chosen.insert(uid.clone(), now);
            let (client, pod, choosing) = (self.client.clone(), uid.clone(), self.choosing.clone());
            self.spawn(Sent::Choice(uid.clone()), async move {
                // It is never closed.
                let _place = choosing.acquire().await;
                for (path, patch) in patches {
                    let path = format!("{path}?fieldManager=kube-scheduler");
                    let answer = send(&client, "PATCH", &path, "application/merge-patch+json", &patch).await;
                    match Outcome::of(answer) {
                        Outcome::Bound => {}
                        outcome => return Done::Chosen(pod, outcome),
                    }
                }
                Done::Chosen(pod, Outcome::Bound)
            });
            return;
        }
        let Some(pending) = self.queue.get(uid) else { return };
        let (subject, told) = (pending.subject.clone(), pending.told.clone().unwrap_or_default());
        let since = *self.chosen.entry(uid.clone()).or_insert(now);
        // As a rule it takes milliseconds, and nobody needs to hear of it.
        if now.duration_since(since) < VOLUMES_SOON {
            self.queue.wait(uid, Helps::NODE, &told, now);
            return;
        }
        let claims: Vec<&str> = class.volumes.unbound.iter().map(|unbound| &*unbound.claim).collect();
        let message = format!("waiting for claims to be bound at node {node}: {}", claims.join(", "));
        if self.queue.wait(uid, Helps::NODE, &message, now) {
            self.reporter.unschedulable(subject, &message, Nominated::Unchanged);
        }
    }

    /// It is written where a pod's volumes are to be; or somebody else was faster, and it is decided about anew.
    fn chosen(&mut self, uid: &Uid, outcome: Outcome) {
        let now = Instant::now();
        // It may have gone, or have been queued anew.
        let Some(pending) = self.queue.in_flight(uid) else { return };
        let (subject, told) = (pending.subject.clone(), pending.told.clone().unwrap_or_default());
        match outcome {
            Outcome::Bound => {
                self.queue.wait(uid, Helps::NODE, &told, now);
            }
            Outcome::Unknown(_) | Outcome::Overtaken => {
                self.displace(uid);
                self.queue.retry(uid, now);
            }
            Outcome::Refused(code, why) => {
                tracing::debug!(pod = %subject.name, code, why, "volumes not chosen");
                self.displace(uid);
                // As of a binding that is rejected; in the reference's words.
                let message = format!("running PreBind plugin \"VolumeBinding\": {why}");
                if !matches!(code, 404 | 409) && self.queue.tell(uid, &message) {
                    self.reporter.rejected(subject, &message);
                }
                self.queue.retry(uid, now);
            }
        }
        // What came meanwhile was not looked at.
        self.look_again(vec![uid.clone()]);
    }

    fn give_up(&mut self, uid: &Uid, class: &Arc<Class>, diagnosis: &Diagnosis) {
        let Some(pending) = self.queue.get(uid) else { return };
        let subject = pending.subject.clone();
        let mut helps = Helps::with(&diagnosis.reasons);
        let mut nominated = Nominated::Unchanged;
        if let Some(preemption) = &diagnosis.preemption {
            helps = helps.or(Helps::ROOM);
            nominated = Nominated::Node(&preemption.node);
            self.nominated.insert(uid.clone());
            self.preempt(&subject, class, preemption);
        } else if diagnosis.waits {
            helps = helps.or(Helps::ROOM);
        } else if self.view.withdraw(uid) {
            // It fits no more where room was made for it, so others may have that.
            if self.nominated.remove(uid) {
                nominated = Nominated::Nowhere;
            }
            self.queue.wake(Helps::ROOM, Instant::now());
        }
        let news = self.queue.wait(uid, helps, &diagnosis.message, Instant::now());
        if news || nominated != Nominated::Unchanged {
            self.reporter.unschedulable(subject, &diagnosis.message, nominated);
        }
    }

    /// Makes room: victims are told why and deleted; the pod's claim on the node is kept meanwhile.
    fn preempt(&mut self, subject: &Subject, class: &Arc<Class>, preemption: &Preemption) {
        let now = Instant::now();
        let lower: Vec<Uid> = self.view.named(&preemption.node).map_or_else(Vec::new, |node| {
            let lower = node.nominated.iter().filter(|(_, other)| other.priority < class.priority);
            lower.map(|(uid, _)| uid.clone()).collect()
        });
        for uid in lower {
            self.view.withdraw(&uid);
            self.tell_withdrawn(&uid);
            self.queue.wake_one(&uid, now);
        }
        self.view.nominate(&subject.uid, &preemption.node, class);
        for uid in &preemption.victims {
            let Some(placed) = self.view.placed(uid).filter(|placed| !placed.leaving).cloned() else { continue };
            let namespace = placed.class.namespace.clone();
            let (name, uid) = (placed.name.clone(), uid.clone());
            let victim = Subject { namespace, name, uid: uid.clone(), generation: None, version: None };
            self.reporter.preempted(victim.clone(), &subject.uid, &preemption.node);
            self.doomed.insert(uid.clone());
            self.place(&uid, Placed { leaving: true, ..placed });
            self.victims.push_back(Victim { subject: victim, by: subject.uid.clone(), attempts: 0 });
        }
        self.evict();
    }

    /// Deletes those who make room, in one task.
    fn evict(&mut self) {
        if self.evicting || self.victims.is_empty() {
            return;
        }
        self.evicting = true;
        let (client, victims) = (self.client.clone(), std::mem::take(&mut self.victims));
        let sent = Sent::Victims(victims.iter().cloned().collect());
        self.spawn(sent, async move {
            let evictions = futures::stream::iter(victims).map(|victim| {
                let client = client.clone();
                async move {
                    let outcome = ask_to_go(&client, &victim.subject).await;
                    (victim, outcome)
                }
            });
            Done::Evicted(evictions.buffer_unordered(EVICTIONS_IN_FLIGHT).collect().await)
        });
    }

    /// Those who may not be made to go stay, and whoever waits for their room decides anew. Those of whom nobody knows are asked
    /// again: no other is to go for them.
    fn evicted(&mut self, asked: Vec<(Victim, Outcome)>) {
        self.evicting = false;
        let mut unknown = Vec::new();
        for (victim, outcome) in asked {
            let name = &victim.subject.name;
            match outcome {
                // Its event is to come.
                Outcome::Bound | Outcome::Overtaken => {}
                Outcome::Unknown(why) if victim.attempts + 1 < EVICTION_ATTEMPTS => {
                    tracing::debug!(pod = %name, why, "victim perhaps deleted");
                    unknown.push(Victim { attempts: victim.attempts + 1, ..victim });
                }
                Outcome::Unknown(why) => {
                    tracing::warn!(pod = %name, why, "victim perhaps not deleted");
                    self.spare(&victim.subject.uid);
                }
                Outcome::Refused(code, why) => {
                    tracing::warn!(pod = %name, code, why, "victim not deleted");
                    self.spare(&victim.subject.uid);
                }
            }
        }
        if let Some(attempts) = unknown.iter().map(|victim| victim.attempts).max() {
            self.spawn(Sent::WaitingVictims(unknown.clone()), async move {
                tokio::time::sleep(pause(attempts - 1)).await;
                Done::DueVictims(unknown)
            });
        }
        self.evict();
    }

    /// Asks victims again, unless they go, or he for whom they were to go waits there no more.
    fn evict_again(&mut self, victims: Vec<Victim>) {
        for victim in victims {
            let uid = &victim.subject.uid;
            let node = self.view.placed(uid).map(|placed| &placed.node);
            match node.is_some() && self.view.nomination(&victim.by) == node {
                true if self.doomed.contains(uid) => self.victims.push_back(victim),
                true => {}
                false => self.spare(uid),
            }
        }
        self.evict();
    }

    /// A victim stays, as far as is known.
    fn spare(&mut self, uid: &Uid) {
        if self.doomed.remove(uid)
            && let Some(placed) = self.view.placed(uid).cloned()
        {
            self.place(uid, Placed { leaving: false, ..placed });
            self.queue.wake(Helps::ROOM, Instant::now());
        }
    }

    /// Asks for bindings with an unknown outcome again, after a while; meanwhile they count as done.
    fn ask_again(&mut self, bindings: Vec<Binding>) {
        let Some(attempts) = bindings.iter().map(|binding| binding.attempts).max() else { return };
        self.spawn(Sent::Asking(bindings.clone()), async move {
            tokio::time::sleep(pause(attempts)).await;
            Done::Due(bindings)
        });
    }

    fn finish(&mut self, done: Result<(Id, Done), JoinError>) {
        let done = match done {
            Ok((id, done)) => {
                self.sent.remove(&id);
                done
            }
            Err(error) => {
                tracing::error!(%error, "a task of the scheduler panicked");
                match self.sent.remove(&error.id()) {
                    // They may have gone out.
                    Some(Sent::Bindings(batch)) => Done::Bound(bind::unknown(batch, "the task panicked")),
                    Some(Sent::Asking(bindings)) => Done::Due(bindings),
                    // Not asked again and again: the bug would be there again.
                    Some(Sent::Victims(victims)) => {
                        let failed = |victim| (victim, Outcome::Refused(0, "the task panicked".to_owned()));
                        Done::Evicted(victims.into_iter().map(failed).collect())
                    }
                    Some(Sent::WaitingVictims(victims)) => Done::DueVictims(victims),
                    Some(Sent::Choice(uid)) => Done::Chosen(uid, Outcome::Unknown("the task panicked".to_owned())),
                    None => return,
                }
            }
        };
        let outcomes = match done {
            Done::Bound(outcomes) => outcomes,
            Done::Due(bindings) => return self.unknown.extend(bindings),
            Done::Evicted(asked) => return self.evicted(asked),
            Done::DueVictims(victims) => return self.evict_again(victims),
            Done::Chosen(uid, outcome) => return self.chosen(&uid, outcome),
        };
        self.requests = self.requests.saturating_sub(1);
        let now = Instant::now();
        let mut unknown = Vec::new();
        for (binding, outcome) in outcomes {
            let Binding { subject, node, attempts } = &binding;
            let uid = &subject.uid;
            match outcome {
                Outcome::Bound => {
                    self.queue.remove(uid);
                    self.reporter.settled(uid);
                    self.reporter.scheduled(subject.clone(), node);
                }
                Outcome::Unknown(why) => {
                    tracing::debug!(pod = %subject.name, why, "perhaps bound");
                    // It keeps its place, for it may have it; the same is asked for again.
                    if self.queue.get(uid).is_some() {
                        unknown.push(Binding { attempts: attempts.saturating_add(1), ..binding });
                    }
                }
                Outcome::Overtaken => {}
                Outcome::Refused(code, why) => {
                    tracing::debug!(pod = %subject.name, code, why, "not bound");
                    // Unless its event has come meanwhile.
                    if self.queue.get(uid).is_some() {
                        self.displace(uid);
                        let concerned = self.volumes.release(uid);
                        self.look_again(concerned);
                    }
                    // A webhook or a policy will have it so, and perhaps for long.
                    let message = format!("binding rejected: {why}");
                    if self.queue.tell(uid, &message) {
                        self.reporter.rejected(subject.clone(), &message);
                    }
                    self.queue.retry(uid, now);
                }
            }
        }
        self.ask_again(unknown);
    }
}

/// Since when the pod runs, in seconds.
fn started(pod: &Pod) -> i64 {
    let said = pod.status.start_time.as_deref().and_then(|text| text.parse::<Timestamp>().ok());
    let created = || pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
    said.or_else(created).map_or(i64::MAX, Timestamp::as_second)
}

/// The object, if it decoded; else it is passed over with a warning, and what is known of it stays.
fn good<W: kube::Resource>(kind: &'static str, object: Tolerant<W>) -> Option<W> {
    match object {
        Tolerant::Good(object) => Some(object),
        Tolerant::Odd { meta, why } => {
            let (namespace, name) = (meta.namespace.unwrap_or_default(), meta.name.unwrap_or_default());
            tracing::warn!(kind, namespace, name, %why, "an object does not decode and is passed over");
            None
        }
    }
}

/// How long it is until what nobody knows the outcome of is asked for again.
fn pause(attempts: u32) -> Duration {
    ASK_AGAIN.0.saturating_mul(1 << attempts.min(16)).min(ASK_AGAIN.1)
}

/// Tells a victim why it goes, and deletes it.
async fn ask_to_go(client: &kube::Client, victim: &Subject) -> Outcome {
    let path = format!("/api/v1/namespaces/{}/pods/{}", victim.namespace, victim.name);
    let condition = json!({
        "type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler",
        "message": "default-scheduler: preempting to accommodate a higher priority pod",
        "lastTransitionTime": Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
    });
    let patch = json!({"metadata": {"uid": &*victim.uid}, "status": {"conditions": [condition]}});
    let status = format!("{path}/status?fieldManager=kube-scheduler");
    let marked = send(client, "PATCH", &status, "application/strategic-merge-patch+json", &patch).await;
    match unless_gone(client, victim, Outcome::of(marked)).await {
        Outcome::Bound => {}
        other => return other,
    }
    let options = json!({"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": &*victim.uid}});
    let deleted = send(client, "DELETE", &path, "application/json", &options).await;
    unless_gone(client, victim, Outcome::of(deleted)).await
}

/// Whether a victim is gone, or goes already, when a refusal may mean that; a webhook may refuse by these codes as well.
async fn unless_gone(client: &kube::Client, victim: &Subject, outcome: Outcome) -> Outcome {
    let Outcome::Refused(404 | 409, _) = outcome else { return outcome };
    match live(client, victim).await {
        Ok(None) => Outcome::Overtaken,
        Ok(Some(pod)) if pod.metadata.deletion_timestamp.is_some() => Outcome::Overtaken,
        Ok(Some(_)) => outcome,
        Err(error) => Outcome::Unknown(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use coracle_scripted::Scripted;

    fn cycle() -> Cycle {
        let mut cycle = Cycle::new(Scripted::new().client(), Reporter::default());
        let node = json!({
            "metadata": {"name": "one"}, "spec": {"unschedulable": true},
            "status": {"allocatable": {"pods": "5"}, "conditions": [{"type": "Ready", "status": "True"}]},
        });
        cycle.take_node(watcher::Event::Apply(serde_json::from_value(node).unwrap()));
        cycle.put_pod(&serde_json::from_value(json!({"metadata": {"uid": "u", "name": "p"}, "spec": {}})).unwrap());
        (cycle.listed.nodes, cycle.listed.pods) = (true, true);
        (cycle.listed.claims, cycle.listed.volumes, cycle.listed.storage_classes) = (true, true, true);
        cycle
    }

    #[tokio::test]
    async fn a_node_that_is_missing_in_a_new_list_is_heard_of_like_one_that_is_deleted() {
        for relisted in [true, false] {
            let mut cycle = cycle();
            cycle.decide();
            let far = Instant::now() + Duration::from_secs(100);
            assert!(cycle.queue.next_deadline().is_some_and(|at| at > far), "nothing helps it for now");
            if relisted {
                cycle.take_node(watcher::Event::Init);
                cycle.take_node(watcher::Event::InitDone);
            } else {
                let node = json!({"metadata": {"name": "one"}});
                cycle.take_node(watcher::Event::Delete(serde_json::from_value(node).unwrap()));
            }
            assert!(cycle.view.named("one").is_none());
            let next = cycle.queue.next_deadline();
            assert!(next.is_none_or(|at| at < far), "it is decided about anew, relisted: {relisted}");
        }
    }

    #[tokio::test]
    async fn however_many_cannot_be_placed_events_are_heard_in_between() {
        let mut cycle = cycle();
        for index in 0..REFUSALS_MAX {
            let pod = json!({"metadata": {"uid": format!("u{index}"), "name": format!("p{index}")}, "spec": {}});
            cycle.put_pod(&serde_json::from_value(pod).unwrap());
        }
        assert!(cycle.decide(), "there is one more");
        assert!(!cycle.decide());
    }

    #[tokio::test]
    async fn a_victim_of_whom_nobody_knows_stays_when_nobody_waits_for_its_room_or_it_was_asked_often() {
        for waits in [true, false] {
            let mut cycle = cycle();
            let victim = json!({"metadata": {"uid": "v", "name": "v"}, "spec": {"nodeName": "one", "priority": -1}});
            cycle.put_pod(&serde_json::from_value(victim).unwrap());
            let (uid, class) = cycle.queue.pop().expect("a pod");
            let subject = cycle.queue.get(&uid).expect("it is there").subject.clone();
            cycle.preempt(&subject, &class, &Preemption { node: "one".into(), victims: vec!["v".into()] });
            let is_leaving = |cycle: &Cycle| cycle.view.placed("v").is_some_and(|placed| placed.leaving);
            let Some(Sent::Victims(asked)) = cycle.sent.values().next() else { panic!("it is asked to go") };
            let victim = asked[0].clone();
            cycle.evict_again(vec![victim.clone()]);
            assert!(is_leaving(&cycle) && cycle.victims.len() == 1, "it is asked again");
            let unknown = || Outcome::Unknown("lost".to_owned());
            if waits {
                let attempts = EVICTION_ATTEMPTS - 2;
                cycle.evicted(vec![(Victim { attempts, ..victim.clone() }, unknown())]);
                assert!(is_leaving(&cycle), "once more");
                cycle.evicted(vec![(Victim { attempts: attempts + 1, ..victim }, unknown())]);
            } else {
                cycle.remove_pod("u");
                cycle.evict_again(vec![victim]);
            }
            assert!(!is_leaving(&cycle), "waits: {waits}");
        }
    }

    #[test]
    fn pauses_grow_to_the_longest() {
        let pauses = [0, 1, 2, 5, 6, u32::MAX].map(|attempts| pause(attempts).as_millis());
        assert_eq!(pauses, [50, 100, 200, 1_600, 2_000, 2_000]);
    }

    #[tokio::test]
    async fn bindings_whose_task_panicked_are_asked_for_again() {
        let mut cycle = cycle();
        let (uid, class) = cycle.queue.pop().expect("a pod");
        let binding = cycle.assume(&uid, class, "one".into()).expect("it is there");
        cycle.requests = 1;
        cycle.spawn(Sent::Bindings(vec![binding]), async { panic!("a bug") });
        let panicked = cycle.tasks.join_next_with_id().await.expect("a task");
        assert!(panicked.is_err());
        cycle.finish(panicked);
        assert_eq!(cycle.requests, 0);
        assert!(cycle.view.placed("u").is_some(), "it keeps its place, for it may have it");
        let due = cycle.tasks.join_next_with_id().await.expect("it is asked for again");
        cycle.finish(due);
        let again: Vec<_> = cycle.unknown.iter().map(|it| (&*it.subject.uid, &*it.node, it.attempts)).collect();
        assert_eq!(again, [("u", "one", 1)]);
        assert!(cycle.sent.is_empty());
    }
}
