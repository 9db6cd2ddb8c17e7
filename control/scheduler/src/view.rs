//! What the scheduler looks at: nodes with what is taken of them, kept up to date event by event.
//!
//! A pod counts from the moment it is assumed (decided, binding under way) until it is gone or finished. Two counters say
//! what has changed: a node's `generation` moves with everything on it, the view's `epoch` only with what may make room
//! or change what nodes are; decisions made before (see [`crate::decide`]) stay valid while the epoch stands.

use std::collections::HashMap;
use std::sync::Arc;

use crate::class::{Class, HostPort};
use crate::resources::Amounts;
use crate::wire::{Labels, Node, Taint};

pub(crate) type Uid = Arc<str>;

/// Pods a node takes if it does not say.
const PODS_DEFAULT: i64 = 110;

/// A node and what is taken of it.
#[derive(Debug, Clone)]
pub(crate) struct NodeState {
    pub name: Arc<str>,
    pub labels: Labels,
    pub taints: Vec<Taint>,
    pub unschedulable: bool,
    pub allocatable: Amounts,
    pub pods_max: i64,
    pub used: Amounts,
    /// cpu and memory as scoring sees them.
    pub used_assumed: (i64, i64),
    pub pods: HashMap<Uid, Arc<Class>>,
    pub ports: Vec<HostPort>,
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
    /// It is being deleted.
    pub leaving: bool,
}

/// Nodes and pods.
#[derive(Debug, Default)]
pub(crate) struct ClusterView {
    /// Slots of nodes that are gone are reused.
    slots: Vec<Option<NodeState>>,
    index: HashMap<Arc<str>, usize>,
    placed: HashMap<Uid, Placed>,
    /// Pods with required anti-affinity: others must mind them.
    pub averse: HashMap<Uid, Arc<Class>>,
    nominations: HashMap<Uid, Arc<str>>,
    epoch: u64,
}

impl NodeState {
    /// The pod is here.
    pub(crate) fn take(&mut self, uid: &Uid, class: &Arc<Class>) {
        if self.pods.insert(uid.clone(), class.clone()).is_some() {
            return;
        }
        self.used.add(&class.requests.exact);
        self.used_assumed.0 += class.requests.assumed.0;
        self.used_assumed.1 += class.requests.assumed.1;
        self.ports.extend(class.ports.iter().cloned());
        if let Some(controller) = &class.controller {
            *self.families.entry(controller.clone()).or_default() += 1;
        }
        self.generation += 1;
    }

    /// The pod is not here any more.
    pub(crate) fn release(&mut self, uid: &str) {
        let Some(class) = self.pods.remove(uid) else { return };
        self.used.subtract(&class.requests.exact);
        self.used_assumed.0 -= class.requests.assumed.0;
        self.used_assumed.1 -= class.requests.assumed.1;
        for port in &class.ports {
            if let Some(index) = self.ports.iter().position(|taken| taken == port) {
                self.ports.swap_remove(index);
            }
        }
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

    /// The node as it would be without these pods.
    pub(crate) fn without<'a>(&self, gone: impl Iterator<Item = &'a Uid>) -> Self {
        let mut rest = self.clone();
        for uid in gone {
            rest.release(uid);
        }
        rest
    }

    /// The node as it would be with this pod as well.
    pub(crate) fn with(mut self, uid: &Uid, class: &Arc<Class>) -> Self {
        self.take(uid, class);
        self
    }
}

impl ClusterView {
    /// Moves when room may have been made or nodes changed.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
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

    pub(crate) fn placed(&self, uid: &str) -> Option<&Placed> {
        self.placed.get(uid)
    }

    /// Uids of all pods that have a node.
    pub(crate) fn placed_uids(&self) -> impl Iterator<Item = &Uid> {
        self.placed.keys()
    }

    /// Pods that have a node which is known, with their nodes.
    pub(crate) fn pods(&self) -> impl Iterator<Item = (&NodeState, &Arc<Class>)> {
        self.nodes().flat_map(|(_, node)| node.pods.values().map(move |class| (node, class)))
    }

    /// A node is as told; returns whether something changed that scheduling looks at.
    pub(crate) fn put_node(&mut self, node: Node) -> bool {
        let name: Arc<str> = node.metadata.name.as_deref().unwrap_or_default().into();
        let listed = if node.status.allocatable.is_empty() { &node.status.capacity } else { &node.status.allocatable };
        let allocatable = Amounts::parse(listed);
        let pods_max = listed.get("pods").and_then(|text| coracle_api::meta::Quantity::parse(text).ok());
        let pods_max = pods_max.map_or(PODS_DEFAULT, |quantity| quantity.value());
        let labels = node.metadata.labels.unwrap_or_default();
        if let Some(slot) = self.index.get(&name)
            && let Some(known) = self.slots[*slot].as_mut()
        {
            let same = known.labels == labels
                && known.taints == node.spec.taints
                && known.unschedulable == node.spec.unschedulable
                && known.allocatable == allocatable
                && known.pods_max == pods_max;
            if same {
                return false;
            }
            known.labels = labels;
            known.taints = node.spec.taints;
            known.unschedulable = node.spec.unschedulable;
            known.allocatable = allocatable;
            known.pods_max = pods_max;
            known.generation += 1;
            self.epoch += 1;
            return true;
        }
        let mut state = NodeState {
            name: name.clone(),
            labels,
            taints: node.spec.taints,
            unschedulable: node.spec.unschedulable,
            allocatable,
            pods_max,
            used: Amounts::default(),
            used_assumed: (0, 0),
            pods: HashMap::new(),
            ports: vec![],
            families: HashMap::new(),
            nominated: vec![],
            generation: 0,
        };
        // Pods may have been seen before their node.
        for (uid, placed) in self.placed.iter().filter(|(_, placed)| placed.node == name) {
            state.take(uid, &placed.class);
        }
        let slot = match self.slots.iter().position(Option::is_none) {
            Some(slot) => slot,
            None => {
                self.slots.push(None);
                self.slots.len() - 1
            }
        };
        self.slots[slot] = Some(state);
        self.index.insert(name, slot);
        self.epoch += 1;
        true
    }

    pub(crate) fn remove_node(&mut self, name: &str) {
        if let Some(slot) = self.index.remove(name) {
            self.slots[slot] = None;
            self.epoch += 1;
        }
    }

    /// The pod has (or is about to have) this node.
    pub(crate) fn place(&mut self, uid: &Uid, placed: Placed) {
        self.withdraw(uid);
        let before = self.placed.get_mut(uid);
        if let Some(before) = before
            && before.node == placed.node
            && before.class == placed.class
        {
            before.leaving = placed.leaving;
            return;
        }
        self.remove(uid);
        if let Some(slot) = self.index.get(&placed.node)
            && let Some(node) = self.slots[*slot].as_mut()
        {
            node.take(uid, &placed.class);
        }
        if !placed.class.affinity.pod_anti_affinity.required.is_empty() {
            self.averse.insert(uid.clone(), placed.class.clone());
        }
        self.placed.insert(uid.clone(), placed);
    }

    /// The pod is gone, finished, or was not bound after all; returns whether it had a node.
    pub(crate) fn remove(&mut self, uid: &str) -> bool {
        self.withdraw(uid);
        let Some(placed) = self.placed.remove(uid) else { return false };
        self.averse.remove(uid);
        if let Some(slot) = self.index.get(&placed.node)
            && let Some(node) = self.slots[*slot].as_mut()
        {
            node.release(uid);
        }
        self.epoch += 1;
        true
    }

    /// The pod waits for room that preemption makes on this node.
    pub(crate) fn nominate(&mut self, uid: &Uid, node: &Arc<str>, class: &Arc<Class>) {
        self.withdraw(uid);
        if let Some(slot) = self.index.get(node)
            && let Some(state) = self.slots[*slot].as_mut()
        {
            state.nominated.push((uid.clone(), class.clone()));
            state.generation += 1;
            self.nominations.insert(uid.clone(), node.clone());
        }
    }

    /// The pod waits for no particular node.
    pub(crate) fn withdraw(&mut self, uid: &str) {
        let Some(node) = self.nominations.remove(uid) else { return };
        if let Some(slot) = self.index.get(&node)
            && let Some(state) = self.slots[*slot].as_mut()
        {
            state.nominated.retain(|(other, _)| &**other != uid);
            state.generation += 1;
            self.epoch += 1;
        }
    }

    /// The node the pod waits for.
    pub(crate) fn nomination(&self, uid: &str) -> Option<&Arc<str>> {
        self.nominations.get(uid)
    }
}
