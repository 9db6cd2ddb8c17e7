//! The scheduler's loop: one owner of view and queue, a closed set of inputs, long work outside.
//!
//! Whatever is ready is taken in, then everything that can be decided is decided and sent off. Nothing waits for more to
//! come; batches grow by themselves while requests are under way, of which there are at most [`REQUESTS_MAX`].

use std::collections::HashSet;
use std::pin::Pin;
use std::sync::Arc;

use futures::{FutureExt as _, Stream, StreamExt as _};
use jiff::Timestamp;
use kube::api::Api;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, watcher};
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::bind::{self, BATCH_MAX, Binding, Outcome};
use crate::class::{Class, Classes};
use crate::decide::{Decider, Decision, Diagnosis};
use crate::preempt::Preemption;
use crate::queue::{Helps, Queue};
use crate::report::{Reporter, Subject, send};
use crate::view::{ClusterView, Placed, Uid};
use crate::wire::{Node, Pod};

/// Requests for bindings under way.
const REQUESTS_MAX: usize = 4;
/// Events taken in before the next decisions.
const INTAKE_MAX: usize = 2048;
/// The scheduler that pods ask for.
const NAME: &str = "default-scheduler";

/// Where pods and nodes come from.
enum Input {
    Pod(Box<watcher::Event<Pod>>),
    Node(Box<watcher::Event<Node>>),
}

type Inputs = Pin<Box<dyn Stream<Item = Input> + Send>>;

/// What ended outside the loop.
enum Done {
    Bound(Vec<(Binding, Outcome)>),
    Preempted,
}

/// The loop's state.
struct Cycle {
    client: kube::Client,
    reporter: Reporter,
    view: ClusterView,
    queue: Queue,
    classes: Classes,
    decider: Decider,
    tasks: JoinSet<Done>,
    requests: usize,
    listed: Listed,
}

/// How far the first lists have come; what a relist does not show is gone.
#[derive(Default)]
struct Listed {
    pods: bool,
    nodes: bool,
    absent_pods: HashSet<Uid>,
    absent_nodes: HashSet<Arc<str>>,
}

/// Runs until shutdown.
pub(crate) async fn run(client: kube::Client, reporter: Reporter, shutdown: CancellationToken) {
    let mut inputs = inputs(&client);
    let mut cycle = Cycle {
        client,
        reporter,
        view: ClusterView::default(),
        queue: Queue::default(),
        classes: Classes::default(),
        decider: Decider::default(),
        tasks: JoinSet::new(),
        requests: 0,
        listed: Listed::default(),
    };
    loop {
        let deadline = cycle.queue.on_time(Instant::now());
        cycle.decide();
        let wait = async {
            match deadline {
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
            Some(done) = cycle.tasks.join_next(), if !cycle.tasks.is_empty() => cycle.finish(done),
            () = wait => continue,
        }
        for _ in 0..INTAKE_MAX {
            match inputs.next().now_or_never() {
                Some(Some(input)) => cycle.take(input),
                _ => break,
            }
        }
        while let Some(done) = cycle.tasks.try_join_next() {
            cycle.finish(done);
        }
    }
    // What was sent will be answered; nobody listens any more, but it is not cut off half-way.
    let rest = async { while cycle.tasks.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(std::time::Duration::from_secs(2), rest).await;
}

fn inputs(client: &kube::Client) -> Inputs {
    let config = || watcher::Config::default().streaming_lists();
    let pods = watcher(Api::<Pod>::all(client.clone()), config()).default_backoff();
    let nodes = watcher(Api::<Node>::all(client.clone()), config()).default_backoff();
    let good = |kind: &'static str| move |error: &watcher::Error| tracing::debug!(kind, %error, "watch again");
    let pods = pods.filter_map(move |event| {
        let event = event.inspect_err(good("pods")).ok();
        std::future::ready(event.map(|event| Input::Pod(Box::new(event))))
    });
    let nodes = nodes.filter_map(move |event| {
        let event = event.inspect_err(good("nodes")).ok();
        std::future::ready(event.map(|event| Input::Node(Box::new(event))))
    });
    Box::pin(futures::stream::select(pods, nodes))
}

impl Cycle {
    fn take(&mut self, input: Input) {
        match input {
            Input::Pod(event) => self.take_pod(*event),
            Input::Node(event) => self.take_node(*event),
        }
    }

    fn take_node(&mut self, event: watcher::Event<Node>) {
        match event {
            watcher::Event::Init => {
                self.listed.absent_nodes = self.view.nodes().map(|(_, node)| node.name.clone()).collect();
            }
            watcher::Event::InitApply(node) | watcher::Event::Apply(node) => {
                self.listed.absent_nodes.remove(node.metadata.name.as_deref().unwrap_or_default());
                if self.view.put_node(node) {
                    self.queue.wake(Helps::NODE, Instant::now());
                }
            }
            watcher::Event::InitDone => {
                for name in std::mem::take(&mut self.listed.absent_nodes) {
                    self.view.remove_node(&name);
                }
                self.listed.nodes = true;
            }
            watcher::Event::Delete(node) => {
                self.view.remove_node(node.metadata.name.as_deref().unwrap_or_default());
                // The total in messages changed, and the lost node may have been the obstacle (spread).
                self.queue.wake_all(Instant::now());
            }
        }
    }

    fn take_pod(&mut self, event: watcher::Event<Pod>) {
        match event {
            watcher::Event::Init => {
                let queued = self.queue.uids().cloned();
                self.listed.absent_pods = queued.chain(self.view.placed_uids().cloned()).collect();
            }
            watcher::Event::InitApply(pod) | watcher::Event::Apply(pod) => {
                self.listed.absent_pods.remove(pod.metadata.uid.as_deref().unwrap_or_default());
                self.put_pod(&pod);
            }
            watcher::Event::InitDone => {
                for uid in std::mem::take(&mut self.listed.absent_pods) {
                    self.remove_pod(&uid);
                }
                self.listed.pods = true;
            }
            watcher::Event::Delete(pod) => self.remove_pod(pod.metadata.uid.as_deref().unwrap_or_default()),
        }
    }

    fn put_pod(&mut self, pod: &Pod) {
        let uid: Uid = pod.metadata.uid.as_deref().unwrap_or_default().into();
        if matches!(pod.status.phase.as_deref(), Some("Succeeded" | "Failed")) {
            return self.remove_pod(&uid);
        }
        let leaving = pod.metadata.deletion_timestamp.is_some();
        if let Some(node) = pod.spec.node_name.as_deref().filter(|node| !node.is_empty()) {
            let class = self.classes.intern(Class::of(pod));
            let known = self.view.placed(&uid).is_some_and(|placed| &*placed.node == node);
            let name = pod.metadata.name.as_deref().unwrap_or_default().into();
            self.queue.remove(&uid);
            self.reporter.settled(&uid);
            let node = self.view.named(node).map_or_else(|| node.into(), |known| known.name.clone());
            self.view.place(&uid, Placed { name, node, class, leaving });
            if !known {
                self.queue.wake(Helps::COMPANY, Instant::now());
            }
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
        let class = self.classes.intern(Class::of(pod));
        let told = pod.status.conditions.iter().find(|condition| {
            condition.type_ == "PodScheduled"
                && condition.status == "False"
                && condition.reason.as_deref() == Some("Unschedulable")
        });
        let told = told.and_then(|condition| condition.message.as_deref()).map(Arc::from);
        let name = pod.metadata.name.as_deref().unwrap_or_default().into();
        if let Some(node) = pod.status.nominated_node_name.as_deref().filter(|node| !node.is_empty())
            && self.queue.get(&uid).is_none()
        {
            self.view.nominate(&uid, &node.into(), &class);
        }
        let generation = pod.metadata.generation;
        self.queue.put(Subject { namespace: class.namespace.clone(), name, uid, generation }, class, told);
    }

    fn remove_pod(&mut self, uid: &str) {
        self.queue.remove(uid);
        self.reporter.settled(uid);
        if self.view.remove(uid) {
            self.queue.wake(Helps::ROOM, Instant::now());
        }
    }

    /// Decides about everything that can be decided and sends it off.
    fn decide(&mut self) {
        if !self.listed.pods || !self.listed.nodes {
            // A decision on half a view would be a guess.
            return;
        }
        while self.requests < REQUESTS_MAX {
            let mut batch = Vec::new();
            while batch.len() < BATCH_MAX
                && let Some((uid, class)) = self.queue.pop()
            {
                match self.decider.decide(&self.view, &uid, &class) {
                    Decision::Bind(node) => batch.extend(self.assume(&uid, class, node)),
                    Decision::Unschedulable(diagnosis) => self.give_up(&uid, &class, &diagnosis),
                }
            }
            if batch.is_empty() {
                return;
            }
            self.requests += 1;
            let binding = bind::bind(self.client.clone(), batch);
            self.tasks.spawn(async move { Done::Bound(binding.await) });
        }
    }

    fn assume(&mut self, uid: &Uid, class: Arc<Class>, node: Arc<str>) -> Option<Binding> {
        let pending = self.queue.get(uid)?;
        let subject = pending.subject.clone();
        let placed = Placed { name: subject.name.clone(), node: node.clone(), class, leaving: false };
        self.view.place(uid, placed);
        Some(Binding { subject, node })
    }

    fn give_up(&mut self, uid: &Uid, class: &Arc<Class>, diagnosis: &Diagnosis) {
        let Some(pending) = self.queue.get(uid) else { return };
        let subject = pending.subject.clone();
        let mut helps = Helps::with(&diagnosis.reasons);
        let nominated = diagnosis.preemption.as_ref().map(|preemption| preemption.node.clone());
        if let Some(preemption) = &diagnosis.preemption {
            helps = Helps::with(&[crate::filter::Reason::TooManyPods]);
            self.preempt(&subject, class, preemption);
        }
        let news = self.queue.wait(uid, helps, &diagnosis.message, Instant::now());
        if news || nominated.is_some() {
            self.reporter.unschedulable(subject, &diagnosis.message, nominated.as_deref());
        }
    }

    /// Makes room: victims are told why and deleted; the pod's claim on the node is kept meanwhile.
    fn preempt(&mut self, subject: &Subject, class: &Arc<Class>, preemption: &Preemption) {
        self.view.nominate(&subject.uid, &preemption.node, class);
        let mut victims = Vec::new();
        for uid in &preemption.victims {
            let Some(placed) = self.view.placed(uid).filter(|placed| !placed.leaving) else { continue };
            let namespace = placed.class.namespace.clone();
            let victim = Subject { namespace, name: placed.name.clone(), uid: uid.clone(), generation: None };
            self.reporter.preempted(victim.clone(), &subject.uid, &preemption.node);
            let leaving = Placed { leaving: true, ..placed.clone() };
            self.view.place(uid, leaving);
            victims.push(victim);
        }
        let client = self.client.clone();
        self.tasks.spawn(async move {
            for victim in victims {
                if let Err(error) = evict(&client, &victim).await {
                    tracing::warn!(%error, pod = %victim.name, "victim not deleted");
                }
            }
            Done::Preempted
        });
    }

    fn finish(&mut self, done: Result<Done, tokio::task::JoinError>) {
        let outcomes = match done {
            Ok(Done::Bound(outcomes)) => outcomes,
            Ok(Done::Preempted) => return,
            Err(error) => {
                tracing::error!(%error, "binding panicked");
                self.requests = self.requests.saturating_sub(1);
                return;
            }
        };
        self.requests = self.requests.saturating_sub(1);
        let now = Instant::now();
        for (Binding { subject, node }, outcome) in outcomes {
            let uid = &subject.uid;
            match outcome {
                Outcome::Bound => {
                    self.queue.remove(uid);
                    self.reporter.scheduled(subject, &node);
                }
                Outcome::Refused(why) | Outcome::Unknown(why) => {
                    tracing::debug!(pod = %subject.name, why, "not bound");
                    // Unless its event has come meanwhile. Should it be bound after all, its event is to come, and a
                    // second binding is refused.
                    if self.queue.get(uid).is_some() && self.view.remove(uid) {
                        self.queue.wake(Helps::ROOM, now);
                    }
                    self.queue.retry(uid, now);
                }
            }
        }
    }
}

async fn evict(client: &kube::Client, victim: &Subject) -> Result<(), kube::Error> {
    let path = format!("/api/v1/namespaces/{}/pods/{}", victim.namespace, victim.name);
    let condition = json!({
        "type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler",
        "message": "default-scheduler: preempting to accommodate a higher priority pod",
        "lastTransitionTime": Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
    });
    let patch = json!({"metadata": {"uid": &*victim.uid}, "status": {"conditions": [condition]}});
    let status = format!("{path}/status?fieldManager=kube-scheduler");
    send(client, "PATCH", &status, "application/strategic-merge-patch+json", &patch).await?;
    let options = json!({"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": &*victim.uid}});
    match send(client, "DELETE", &path, "application/json", &options).await {
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        other => other,
    }
}
