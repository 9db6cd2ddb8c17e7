//! What the scheduler looks at: nodes with what is taken of them, kept up to date event by event.
//!
//! A pod counts from the moment it is assumed (decided, binding under way) until it is gone or finished. Decisions that
//! were made before (see [`crate::decide`]) stay valid while what they rest on does: a node's `generation` moves with
//! everything on it, the view's `epoch` with what nodes are, and [`ClusterView::freed_since`] names the nodes on which room
//! was made.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use crate::class::{Class, HostPort, Shape};
use crate::resources::Amounts;
use crate::wire::{Labels, Node, Taint};

pub(crate) type Uid = Arc<str>;

/// Pods a node takes if it does not say.
const PODS_DEFAULT: i64 = 110;
/// Nodes with new room that are remembered; whoever is further behind looks at all.
const FREED_MAX: usize = 16_384;
/// On a node that has not said whether it is ready.
const NOT_READY: &str = "node.kubernetes.io/not-ready";

/// What is taken of a node.
#[derive(Debug, Clone, Default)]
pub(crate) struct Load {
    pub used: Amounts,
    /// cpu and memory as scoring sees them.
    pub used_assumed: (i64, i64),
    pub count: i64,
    pub ports: Vec<HostPort>,
}

impl Load {
    pub(crate) fn add(&mut self, shape: &Shape) {
        self.used.add(&shape.requests.exact);
        self.used_assumed.0 += shape.requests.assumed.0;
        self.used_assumed.1 += shape.requests.assumed.1;
        self.count += 1;
        self.ports.extend(shape.ports.iter().cloned());
    }

    pub(crate) fn subtract(&mut self, shape: &Shape) {
        self.used.subtract(&shape.requests.exact);
        self.used_assumed.0 -= shape.requests.assumed.0;
        self.used_assumed.1 -= shape.requests.assumed.1;
        self.count -= 1;
        for port in &shape.ports {
            if let Some(index) = self.ports.iter().position(|taken| taken == port) {
                self.ports.swap_remove(index);
            }
        }
    }
}

/// A node and what is taken of it.
#[derive(Debug)]
pub(crate) struct NodeState {
    pub name: Arc<str>,
    pub labels: Labels,
    pub taints: Vec<Taint>,
    pub unschedulable: bool,
    pub allocatable: Amounts,
    pub pods_max: i64,
    pub load: Load,
    pub pods: HashMap<Uid, Arc<Class>>,
    /// Pods by controller.
    pub families: HashMap<Arc<str>, u32>,
    /// Pods with preemption under way that will come here.
    pub nominated: Vec<(Uid, Arc<Class>)>,
    pub generation: u64,
}

/// A pod that has a node.
#[derive(Debug, Clone)]
pub(crate) struct Placed {
    pub name: Arc<str>,
    pub node: Arc<str>,
    pub class: Arc<Class>,
    /// All of them; the class has those that somebody selects.
    pub labels: Arc<Labels>,
    /// It is being deleted.
    pub leaving: bool,
}

/// Pods of a class on a node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Members {
    pub all: u32,
    /// Those of them that are being deleted.
    pub leaving: u32,
}

/// Where the pods of a class are.
#[derive(Debug)]
pub(crate) struct Group {
    pub class: Arc<Class>,
    pub nodes: HashMap<usize, Members>,
}

/// Nodes and pods.
#[derive(Debug, Default)]
pub(crate) struct ClusterView {
    /// Slots of nodes that are gone are reused.
    slots: Vec<Option<NodeState>>,
    index: HashMap<Arc<str>, usize>,
    placed: HashMap<Uid, Placed>,
    /// Pods whose node is not known, by its name.
    homeless: HashMap<Arc<str>, HashSet<Uid>>,
    /// By the address of the class, which is interned and lives as long as its group.
    groups: HashMap<usize, Group>,
    /// Those groups whose pods have required anti-affinity: others must mind them.
    averse: HashSet<usize>,
    nominations: HashMap<Uid, Arc<str>>,
    epoch: u64,
    freed: VecDeque<usize>,
    /// How many were ever noted in `freed`.
    freed_count: u64,
}

impl NodeState {
    /// The pod is here.
    fn take(&mut self, uid: &Uid, class: &Arc<Class>) {
        if self.pods.insert(uid.clone(), class.clone()).is_some() {
            return;
        }
        self.load.add(class);
        if let Some(controller) = &class.controller {
            *self.families.entry(controller.clone()).or_default() += 1;
        }
        self.generation += 1;
    }

    /// The pod is not here any more.
    fn release(&mut self, uid: &str) {
        let Some(class) = self.pods.remove(uid) else { return };
        self.load.subtract(&class);
        if let Some(controller) = &class.controller
            && let Some(count) = self.families.get_mut(controller)
        {
            *count -= 1;
            if *count == 0 {
                self.families.remove(controller);
            }
        }
        self.generation += 1;
    }
}

fn address(class: &Arc<Class>) -> usize {
    Arc::as_ptr(class).addr()
}

impl ClusterView {
    /// Moves when nodes come, go or change.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Where [`ClusterView::freed_since`] stands.
    pub(crate) fn freed_count(&self) -> u64 {
        self.freed_count
    }

    /// Slots of nodes on which room was made since then; `None` if that is too long ago to tell.
    pub(crate) fn freed_since(&self, count: u64) -> Option<impl Iterator<Item = usize>> {
        let behind = usize::try_from(self.freed_count - count).unwrap_or(usize::MAX);
        let skip = self.freed.len().checked_sub(behind)?;
        Some(self.freed.iter().skip(skip).copied())
    }

    fn free(&mut self, slot: usize) {
        if self.freed.len() == FREED_MAX {
            self.freed.pop_front();
        }
        self.freed.push_back(slot);
        self.freed_count += 1;
    }

    /// Number of nodes.
    pub(crate) fn len(&self) -> usize {
        self.index.len()
    }

    /// The nodes with their slots.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = (usize, &NodeState)> {
        self.slots.iter().enumerate().filter_map(|(slot, node)| Some((slot, node.as_ref()?)))
    }

    /// The node in a slot.
    pub(crate) fn node(&self, slot: usize) -> Option<&NodeState> {
        self.slots.get(slot)?.as_ref()
    }

    pub(crate) fn named(&self, name: &str) -> Option<&NodeState> {
        self.node(*self.index.get(name)?)
    }

    fn state(&mut self, name: &str) -> Option<(usize, &mut NodeState)> {
        let slot = *self.index.get(name)?;
        Some((slot, self.slots[slot].as_mut()?))
    }

    pub(crate) fn placed(&self, uid: &str) -> Option<&Placed> {
        self.placed.get(uid)
    }

    /// Uids of all pods that have a node.
    pub(crate) fn placed_uids(&self) -> impl Iterator<Item = &Uid> {
        self.placed.keys()
    }

    /// Pods that have a node which is known, by class.
    pub(crate) fn groups(&self) -> impl Iterator<Item = &Group> {
        self.groups.values()
    }

    /// Those of them with required anti-affinity.
    pub(crate) fn averse(&self) -> impl Iterator<Item = &Group> {
        self.averse.iter().filter_map(|address| self.groups.get(address))
    }

    /// A node is as told; returns whether something changed that scheduling looks at.
    pub(crate) fn put_node(&mut self, node: Node) -> bool {
        let name: Arc<str> = node.metadata.name.as_deref().unwrap_or_default().into();
        let listed = if node.status.allocatable.is_empty() { &node.status.capacity } else { &node.status.allocatable };
        let allocatable = Amounts::parse(listed);
        let pods_max = listed.get("pods").and_then(|text| coracle_api::meta::Quantity::parse(text).ok());
        let pods_max = pods_max.map_or(PODS_DEFAULT, |quantity| quantity.value());
        let labels = node.metadata.labels.unwrap_or_default();
        let mut taints = node.spec.taints;
        // Until the taint comes that says so (from admission, or the node controller).
        let said = node.status.conditions.iter().any(|condition| condition.type_ == "Ready");
        let tainted = |taint: &Taint| taint.key == NOT_READY && taint.effect == "NoSchedule";
        if !said && !taints.iter().any(tainted) {
            taints.push(Taint { key: NOT_READY.to_owned(), value: String::new(), effect: "NoSchedule".to_owned() });
        }
        if let Some((_, known)) = self.state(&name) {
            let same = known.labels == labels
                && known.taints == taints
                && known.unschedulable == node.spec.unschedulable
                && known.allocatable == allocatable
                && known.pods_max == pods_max;
            if same {
                return false;
            }
            known.labels = labels;
            known.taints = taints;
            known.unschedulable = node.spec.unschedulable;
            known.allocatable = allocatable;
            known.pods_max = pods_max;
            known.generation += 1;
            self.epoch += 1;
            return true;
        }
        let state = NodeState {
            name: name.clone(),
            labels,
            taints,
            unschedulable: node.spec.unschedulable,
            allocatable,
            pods_max,
            load: Load::default(),
            pods: HashMap::new(),
            families: HashMap::new(),
            nominated: vec![],
            generation: 0,
        };
        let slot = match self.slots.iter().position(Option::is_none) {
            Some(slot) => slot,
            None => {
                self.slots.push(None);
                self.slots.len() - 1
            }
        };
        self.slots[slot] = Some(state);
        self.index.insert(name.clone(), slot);
        self.epoch += 1;
        // Pods may have been seen before their node.
        for uid in self.homeless.remove(&name).into_iter().flatten() {
            self.settle(&uid);
        }
        true
    }

    /// The node is gone; who waited for it does no longer, its pods are still to go.
    pub(crate) fn remove_node(&mut self, name: &str) {
        let Some((slot, node)) = self.state(name) else { return };
        let (pods, nominated) = (std::mem::take(&mut node.pods), std::mem::take(&mut node.nominated));
        for uid in pods.keys() {
            if let Some(placed) = self.placed.get(uid).cloned() {
                self.count(slot, &placed, false);
            }
        }
        for (uid, _) in nominated {
            self.nominations.remove(&uid);
        }
        self.homeless.entry(name.into()).or_default().extend(pods.into_keys());
        self.homeless.retain(|_, pods| !pods.is_empty());
        self.index.remove(name);
        self.slots[slot] = None;
        self.epoch += 1;
    }

    /// The pod has (or is about to have) this node.
    pub(crate) fn place(&mut self, uid: &Uid, placed: Placed) {
        self.withdraw(uid);
        if let Some(before) = self.placed.get(uid)
            && before.node == placed.node
            && Arc::ptr_eq(&before.class, &placed.class)
            && before.leaving == placed.leaving
        {
            return;
        }
        self.remove(uid);
        self.placed.insert(uid.clone(), placed);
        self.settle(uid);
    }

    /// Counts a placed pod on its node.
    fn settle(&mut self, uid: &Uid) {
        let Some(placed) = self.placed.get(uid).cloned() else { return };
        match self.state(&placed.node) {
            Some((slot, node)) => {
                node.take(uid, &placed.class);
                self.count(slot, &placed, true);
            }
            None => drop(self.homeless.entry(placed.node).or_default().insert(uid.clone())),
        }
    }

    fn count(&mut self, slot: usize, placed: &Placed, comes: bool) {
        let address = address(&placed.class);
        let group =
            self.groups.entry(address).or_insert_with(|| Group { class: placed.class.clone(), nodes: HashMap::new() });
        let members = group.nodes.entry(slot).or_default();
        let leaving = u32::from(placed.leaving);
        if comes {
            members.all += 1;
            members.leaving += leaving;
            if !placed.class.affinity.pod_anti_affinity.required.is_empty() {
                self.averse.insert(address);
            }
            return;
        }
        members.all -= 1;
        members.leaving -= leaving;
        if members.all == 0 {
            group.nodes.remove(&slot);
        }
        if group.nodes.is_empty() {
            self.groups.remove(&address);
            self.averse.remove(&address);
        }
    }

    /// The pod is gone, finished, or was not bound after all; returns how it was placed.
    pub(crate) fn remove(&mut self, uid: &str) -> Option<Placed> {
        self.withdraw(uid);
        let placed = self.placed.remove(uid)?;
        match self.state(&placed.node) {
            Some((slot, node)) => {
                node.release(uid);
                self.count(slot, &placed, false);
                self.free(slot);
            }
            None => {
                if let Some(pods) = self.homeless.get_mut(&placed.node) {
                    pods.remove(uid);
                    if pods.is_empty() {
                        self.homeless.remove(&placed.node);
                    }
                }
            }
        }
        Some(placed)
    }

    /// Gives every placed pod the class that `class` says, for the labels that matter are others now.
    pub(crate) fn reclassify(&mut self, mut class: impl FnMut(&Arc<Class>, &Labels) -> Arc<Class>) {
        let placed: Vec<(Uid, Placed)> =
            self.placed.iter().map(|(uid, placed)| (uid.clone(), placed.clone())).collect();
        for (uid, mut placed) in placed {
            placed.class = class(&placed.class, &placed.labels);
            self.place(&uid, placed);
        }
    }

    /// The pod waits for room that preemption makes on this node.
    pub(crate) fn nominate(&mut self, uid: &Uid, node: &Arc<str>, class: &Arc<Class>) {
        self.withdraw(uid);
        if let Some((_, state)) = self.state(node) {
            state.nominated.push((uid.clone(), class.clone()));
            state.generation += 1;
            self.nominations.insert(uid.clone(), node.clone());
        }
    }

    /// The pod waits for no particular node; returns whether it did.
    pub(crate) fn withdraw(&mut self, uid: &str) -> bool {
        let Some(node) = self.nominations.remove(uid) else { return false };
        if let Some((slot, state)) = self.state(&node) {
            state.nominated.retain(|(other, _)| &**other != uid);
            state.generation += 1;
            self.free(slot);
        }
        true
    }

    /// The node the pod waits for.
    pub(crate) fn nomination(&self, uid: &str) -> Option<&Arc<str>> {
        self.nominations.get(uid)
    }
}
