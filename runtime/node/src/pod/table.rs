//! The pods of the node, and how inputs reach them.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use coracle_policy::Workload;
use coracle_tolerant::Tolerant;
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, Resource as _};
use parking_lot::RwLock;
use tokio::sync::Notify;

use super::admission::Room;
use super::commands::may_leave;
use super::core::{Core, Input, ProbeKind};
use super::ends;
use super::report::Reports;
use super::slot::{Slot, State};
use crate::context::Context;
use crate::logs;
use crate::node::readable;
use crate::timers::Timers;

/// Why a pod's timer rings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Alarm {
    /// The state machine asked for it.
    Wake,
    /// What was to settle has had its time.
    Settled,
    /// A status write is tried again.
    Report,
    /// A probe is due.
    Probe(usize, ProbeKind),
    /// A token is due.
    Tokens,
}

/// All pods of the node.
pub struct Pods {
    /// What the node's parts share.
    pub context: Arc<Context>,
    pub(super) slots: RwLock<HashMap<Arc<str>, Arc<Slot>>>,
    pub(super) timers: Timers<(Arc<str>, Alarm)>,
    pub(super) reports: Reports,
    room: Room,
    /// Rings when a pod has stopped or gone.
    settled: Notify,
}

impl Pods {
    /// No pods yet.
    pub fn new(context: impl FnOnce(Weak<Pods>) -> Arc<Context>) -> Arc<Self> {
        Arc::new_cyclic(|this: &Weak<Pods>| {
            let ring = this.clone();
            let timers = Timers::start(move |(uid, alarm): (Arc<str>, Alarm)| {
                if let Some(pods) = ring.upgrade() {
                    pods.ring(&uid, alarm);
                }
            });
            let context = context(this.clone());
            Pods {
                room: Room::of(&context.machine),
                context,
                slots: RwLock::default(),
                timers,
                reports: Reports::default(),
                settled: Notify::new(),
            }
        })
    }

    /// Takes in what the API server says about a pod.
    pub fn observe(self: &Arc<Self>, mut pod: Pod) {
        let Some(uid) = pod.metadata.uid.clone() else { return };
        // It becomes the name of directories.
        if uid.is_empty() || uid.starts_with('.') || uid.contains(['/', '\0']) {
            return tracing::warn!(uid, "a pod with such a uid is not run");
        }
        // Nothing here looks at them, and they are a good part of an object.
        pod.metadata.managed_fields = None;
        let pod = Arc::new(pod);
        let known = self.slots.read().get(uid.as_str()).cloned();
        let slot = match known {
            Some(slot) => slot,
            None => {
                let uid: Arc<str> = uid.into();
                let (namespace, name) = (pod.metadata.namespace.as_deref(), pod.metadata.name.as_deref());
                let (namespace, name) = (namespace.unwrap_or_default(), name.unwrap_or_default());
                let ends = ends::read(&logs::pod_dir(&self.context.logs_dir, namespace, name, &uid));
                let core = Core::new(pod.clone(), ends, self.context.config.node_ip, self.context.now());
                let slot = Arc::new(Slot::new(uid.clone(), &pod, core));
                self.slots.write().insert(uid, slot.clone());
                self.admit(&slot);
                slot
            }
        };
        self.input(&slot, Input::Observed(pod));
    }

    /// Promises a pod what it asks for, or refuses it. What ran here before goes on.
    fn admit(self: &Arc<Self>, slot: &Arc<Slot>) {
        let (is_over, had_life) = slot.with_core(|core| (core.is_over(), core.had_life()));
        if is_over {
            return;
        }
        let answer = match had_life {
            true => {
                self.room.take_up(&slot.requested);
                Ok(())
            }
            false => self.room.take(&slot.requested),
        };
        match answer {
            Ok(()) => slot.has_room.store(true, Ordering::Release),
            Err(refusal) => self.input(slot, Input::Refused(refusal)),
        }
    }

    /// The API object is gone.
    pub fn remove(self: &Arc<Self>, uid: &str) {
        let known = self.slots.read().get(uid).cloned();
        if let Some(slot) = known {
            self.input(&slot, Input::Removed);
        }
    }

    /// After a list: what was not in it is gone.
    pub fn retain(self: &Arc<Self>, listed: &HashSet<String>) {
        let gone: Vec<Arc<str>> = self.slots.read().keys().filter(|uid| !listed.contains(&***uid)).cloned().collect();
        for uid in gone {
            self.remove(&uid);
        }
    }

    /// Ends the pods of this node that went while it was not heard of. The watch would tell of them, too, but nobody knows
    /// when; this is asked before the node says that it is back. Pods that are new here meanwhile are the watch's.
    pub async fn end_replaced(self: &Arc<Self>) -> Result<(), kube::Error> {
        let here = self.all();
        let api: Api<Tolerant<Pod>> = Api::all(self.context.client.clone());
        let of_this_node = ListParams::default().fields(&format!("spec.nodeName={}", self.context.config.name));
        let listed = api.list(&of_this_node).await?;
        let mut there: HashMap<String, Option<Pod>> =
            listed.items.into_iter().filter_map(|pod| Some((pod.meta().uid.clone()?, readable(pod)))).collect();
        let is_going = |pod: &Pod| pod.metadata.deletion_timestamp.is_some();
        for slot in here {
            match there.remove(&*slot.uid) {
                None => self.input(&slot, Input::Removed),
                Some(Some(pod)) if is_going(&pod) && !slot.with_core(|core| core.is_ending()) => self.observe(pod),
                Some(_) => {}
            }
        }
        Ok(())
    }

    /// A ConfigMap or Secret that the pod uses has changed.
    pub fn config_changed(self: &Arc<Self>, uid: &str) {
        let known = self.slots.read().get(uid).cloned();
        if let Some(slot) = known {
            self.input(&slot, Input::ConfigChanged);
        }
    }

    /// Time has passed that timers have not seen, or that others think has passed: everything that goes by the wall clock is
    /// looked at again, and what the API server believes is compared.
    pub fn time_jumped(self: &Arc<Self>) {
        for slot in self.all() {
            self.input(&slot, Input::Wake);
            // Tokens that have run out meanwhile are among what is written.
            self.refresh_volumes(&slot);
        }
        self.context.jumps.send_modify(|count| *count += 1);
    }

    /// The pod of this name.
    pub fn find(&self, namespace: &str, name: &str) -> Option<Arc<Slot>> {
        let slots = self.slots.read();
        let mut found = slots.values().filter(|slot| *slot.namespace == *namespace && *slot.name == *name);
        let first = found.next()?.clone();
        // The successor of a pod that is still going has the same name.
        Some(found.fold(first, |best, other| {
            let ending = best.with_core(|core| core.is_ending());
            if ending { other.clone() } else { best }
        }))
    }

    /// All pods, in no order.
    pub fn all(&self) -> Vec<Arc<Slot>> {
        self.slots.read().values().cloned().collect()
    }

    /// Number of pods.
    pub fn len(&self) -> usize {
        self.slots.read().len()
    }

    /// Whether nothing that is to be told of pods is under way, or waited for.
    #[cfg(test)]
    pub fn has_reported(&self) -> bool {
        self.reports.is_idle()
    }

    /// Stops every pod and leaves the API objects to the next start; returns when all have stopped, or after the grace
    /// period and what it takes to kill.
    pub async fn stop_all(self: &Arc<Self>, grace: Duration) {
        for slot in self.all() {
            self.input(&slot, Input::NodeStopping { grace });
        }
        let stopped = async {
            loop {
                let changed = self.settled.notified();
                let all = || self.slots.read().values().all(|slot| slot.with_core(|core| core.is_stopped()));
                if all() && self.reports.is_idle() {
                    return;
                }
                changed.await;
            }
        };
        if tokio::time::timeout(grace + Duration::from_secs(3), stopped).await.is_err() {
            tracing::warn!("some pods have not stopped in time");
        }
    }

    /// Gives an input to a pod's state machine and carries out what follows.
    pub fn input(self: &Arc<Self>, slot: &Arc<Slot>, input: Input) {
        let mut state = slot.lock();
        let mut inputs = VecDeque::from([input]);
        let mut has_ended = false;
        while let Some(input) = inputs.pop_front() {
            let is_observed = matches!(input, Input::Observed(_));
            has_ended |= matches!(input, Input::Exited { .. });
            let relabeled = match &input {
                Input::Observed(pod) => is_relabeled(state.core.pod(), pod),
                _ => false,
            };
            if relabeled {
                self.refresh_volumes(slot);
            }
            let commands = state.core.step(self.context.now(), input);
            state.grow();
            for command in commands {
                inputs.extend(self.execute(slot, &mut state, command));
            }
            if relabeled && let Some(network) = &state.network {
                network.grant(may_leave(state.core.pod()));
                let workload = Workload::of(state.core.pod(), network.address.pod);
                self.context.network.table.identify(workload);
            }
            if is_observed {
                self.reconcile(&mut state);
            }
        }
        self.set_wake(slot, &mut state);
        self.report(slot, &mut state);
        let (is_stopped, is_forgotten) = (state.core.is_stopped(), state.core.is_forgotten());
        // From here on the API server's others count without it.
        let is_over = is_forgotten || state.core.is_over();
        drop(state);
        if has_ended {
            self.keep_ends(slot);
        }
        if is_over && slot.has_room.swap(false, Ordering::AcqRel) {
            self.room.give_back(&slot.requested);
        }
        if is_forgotten {
            self.slots.write().remove(&slot.uid);
        }
        if is_stopped {
            self.settled.notify_waiters();
        }
    }

    /// What waits for pods to settle looks again.
    pub(super) fn nudge(&self) {
        self.settled.notify_waiters();
    }

    fn ring(self: &Arc<Self>, uid: &Arc<str>, alarm: Alarm) {
        let known = self.slots.read().get(uid).cloned();
        let Some(slot) = known else { return };
        match alarm {
            Alarm::Wake => {
                slot.lock().wake = None;
                self.input(&slot, Input::Wake);
            }
            Alarm::Settled | Alarm::Report => {
                let mut state = slot.lock();
                self.report_now(&slot, &mut state);
            }
            Alarm::Probe(container, kind) => self.probe(&slot, container, kind),
            Alarm::Tokens => self.refresh_volumes(&slot),
        }
    }

    fn set_wake(&self, slot: &Slot, state: &mut State) {
        let wanted = state.core.wake_at();
        if wanted == state.wake {
            return;
        }
        let key = (slot.uid.clone(), Alarm::Wake);
        match wanted {
            Some(at) => self.timers.set(key, at.saturating_sub(self.context.started.elapsed())),
            None => self.timers.cancel(key),
        }
        state.wake = wanted;
    }
}

/// Whether what the downward API shows has changed.
fn is_relabeled(old: &Pod, new: &Pod) -> bool {
    old.metadata.labels != new.metadata.labels || old.metadata.annotations != new.metadata.annotations
}
