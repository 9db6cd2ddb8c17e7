//! What the scheduler looks at: nodes with what is taken of them, kept up to date event by event.
//!
//! A pod counts from the moment it is assumed (decided, binding under way) until it is gone or finished. Who has looked at it
//! before need not look at everything again: [`ClusterView::touched_since`] names the nodes on which anything changed, and
//! [`ClusterView::moves_since`] the pods that came and went. Both remember [`LOG_MAX`]; whoever is further behind looks at all.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use crate::class::{Class, Ports, Shape, selects};
use crate::resources::{Amount, Amounts};
use crate::wire::{LabelSelector, Labels, Node, Taint};

pub(crate) type Uid = Arc<str>;

/// Pods a node takes if it does not say.
const PODS_DEFAULT: i64 = 110;
/// Changes that are remembered.
const LOG_MAX: usize = 16_384;
/// Weight of the classes that they keep from being forgotten.
const LOG_WEIGHT_MAX: usize = 1 << 19;
/// On a node that has not said whether it is ready.
const NOT_READY: &str = "node.kubernetes.io/not-ready";

/// What is taken of a node.
#[derive(Debug, Clone, Default)]
pub(crate) struct Load {
    pub used: Amounts,
    /// cpu and memory as scoring sees them.
    pub used_assumed: (Amount, Amount),
    pub count: i64,
    pub ports: Ports,
}

impl Load {
    pub(crate) fn add(&mut self, shape: &Shape) {
        self.used.add(&shape.requests.exact);
        self.used_assumed.0 += shape.requests.assumed.0;
        self.used_assumed.1 += shape.requests.assumed.1;
        self.count += 1;
        shape.ports.iter().for_each(|port| self.ports.add(port));
    }

    pub(crate) fn subtract(&mut self, shape: &Shape) {
        self.used.subtract(&shape.requests.exact);
        self.used_assumed.0 -= shape.requests.assumed.0;
        self.used_assumed.1 -= shape.requests.assumed.1;
        self.count -= 1;
        shape.ports.iter().for_each(|port| self.ports.remove(port));
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
    /// Pods with preemption under way that will come here.
    pub nominated: Vec<(Uid, Arc<Class>)>,
    /// Which state of the node itself this is; no two are numbered alike, of whatever node.
    pub revision: u64,
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
    /// Since when it runs, in seconds; how long it was worth waiting for.
    pub started: i64,
}

/// A pod came to a node (or its deletion began), or left.
#[derive(Debug)]
pub(crate) struct Move {
    pub class: Arc<Class>,
    pub slot: usize,
    /// Pods more, or less.
    pub all: i32,
    /// Those of them that are being deleted.
    pub leaving: i32,
}

/// A PodDisruptionBudget: how many of the pods of its namespace that it means may go.
#[derive(Debug, PartialEq)]
pub(crate) struct Budget {
    pub selector: LabelSelector,
    pub allowed: i64,
    /// Names of pods whose eviction is counted already.
    pub disrupted: HashSet<String>,
}

/// The latest of many things, numbered.
#[derive(Debug)]
struct Log<T> {
    /// With their weights.
    items: VecDeque<(T, usize)>,
    weight: usize,
    count: u64,
}

impl<T> Default for Log<T> {
    fn default() -> Self {
        Self { items: VecDeque::new(), weight: 0, count: 0 }
    }
}

impl<T> Log<T> {
    fn push(&mut self, item: T, weight: usize) {
        self.items.push_back((item, weight));
        self.weight += weight;
        while self.items.len() > LOG_MAX || self.weight > LOG_WEIGHT_MAX {
            let Some((_, weight)) = self.items.pop_front() else { break };
            self.weight -= weight;
        }
        self.count += 1;
    }

    /// Those since there were `count`; `None` if that is too long ago to tell.
    fn since(&self, count: u64) -> Option<impl Iterator<Item = &T>> {
        let behind = usize::try_from(self.count - count).unwrap_or(usize::MAX);
        let skip = self.items.len().checked_sub(behind)?;
        Some(self.items.iter().skip(skip).map(|(item, _)| item))
    }
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
    /// Those groups whose pods have terms about other pods: others must mind them.
    social: HashSet<usize>,
    /// How many pods there are of each priority.
    priorities: BTreeMap<i32, u32>,
    nominations: HashMap<Uid, Arc<str>>,
    /// Who waits for a node that is not known, by its name: room is kept there from when it comes (Kubernetes').
    expected: HashMap<Arc<str>, Vec<(Uid, Arc<Class>)>>,
    /// By namespace and name.
    budgets: HashMap<Arc<str>, HashMap<Arc<str>, Budget>>,
    namespaces: Namespaces,
    /// How many nodes have a label of this key.
    label_keys: HashMap<String, usize>,
    epoch: u64,
    places: u64,
    touched: Log<usize>,
    moves: Log<Move>,
    /// How often room was made.
    freed: u64,
}

/// Labels of namespaces, as far as they are known.
#[derive(Debug, Default)]
pub(crate) struct Namespaces {
    labels: HashMap<Arc<str>, Labels>,
    /// The first list is complete.
    listed: bool,
}

impl Namespaces {
    /// Whether the namespace is meant by a selector of namespaces. Before they are known all are: to keep away from too many
    /// harms nobody.
    pub(crate) fn are_meant(&self, selector: &LabelSelector, namespace: &str) -> bool {
        let none = Labels::new();
        !self.listed || selects(Some(selector), self.labels.get(namespace).unwrap_or(&none))
    }
}

impl NodeState {
    /// The pod is here.
    fn take(&mut self, uid: &Uid, class: &Arc<Class>) {
        if self.pods.insert(uid.clone(), class.clone()).is_none() {
            self.load.add(class);
        }
    }

    /// The pod is not here any more.
    fn release(&mut self, uid: &str) {
        if let Some(class) = self.pods.remove(uid) {
            self.load.subtract(&class);
        }
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

    /// Moves when nodes come, go, or change in labels or taints, and when labels of namespaces change.
    pub(crate) fn places(&self) -> u64 {
        self.places
    }

    /// How often room was made.
    pub(crate) fn freed(&self) -> u64 {
        self.freed
    }

    /// Moves with everything.
    pub(crate) fn version(&self) -> u64 {
        self.touched.count + self.epoch + self.places
    }

    /// Where [`ClusterView::touched_since`] stands.
    pub(crate) fn touched(&self) -> u64 {
        self.touched.count
    }

    /// Slots of nodes on which anything changed since then; `None` if that is too long ago to tell.
    pub(crate) fn touched_since(&self, count: u64) -> Option<impl Iterator<Item = usize>> {
        self.touched.since(count).map(Iterator::copied)
    }

    /// Where [`ClusterView::moves_since`] stands.
    pub(crate) fn moved(&self) -> u64 {
        self.moves.count
    }

    /// Pods that came and went since then; `None` if that is too long ago to tell.
    pub(crate) fn moves_since(&self, count: u64) -> Option<impl Iterator<Item = &Move>> {
        self.moves.since(count)
    }

    fn free(&mut self, slot: usize) {
        self.touched.push(slot, 1);
        self.freed += 1;
    }

    /// Slots in use or once used.
    pub(crate) fn slots(&self) -> usize {
        self.slots.len()
    }

    /// The slot of a node.
    pub(crate) fn slot(&self, name: &str) -> Option<usize> {
        self.index.get(name).copied()
    }

    /// Labels of namespaces.
    pub(crate) fn namespaces(&self) -> &Namespaces {
        &self.namespaces
    }

    /// The namespace has these labels; `None` when it is gone. Returns whether that is news.
    pub(crate) fn put_namespace(&mut self, name: &str, labels: Option<Labels>) -> bool {
        let changed = match labels {
            Some(labels) if self.namespaces.labels.get(name) == Some(&labels) => false,
            Some(labels) => {
                self.namespaces.labels.insert(name.into(), labels);
                true
            }
            None => self.namespaces.labels.remove(name).is_some(),
        };
        self.places += u64::from(changed);
        changed
    }

    /// Names of the namespaces that are known.
    pub(crate) fn namespace_names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.namespaces.labels.keys()
    }

    /// All namespaces are known.
    pub(crate) fn namespaces_listed(&mut self) {
        self.namespaces.listed = true;
        self.places += 1;
    }

    /// The budget is as told; `None` when it is gone.
    pub(crate) fn put_budget(&mut self, key: (Arc<str>, Arc<str>), budget: Option<Budget>) {
        match budget {
            Some(budget) => drop(self.budgets.entry(key.0).or_default().insert(key.1, budget)),
            None => {
                if let Some(of_namespace) = self.budgets.get_mut(&key.0) {
                    of_namespace.remove(&key.1);
                    if of_namespace.is_empty() {
                        self.budgets.remove(&key.0);
                    }
                }
            }
        }
    }

    /// Namespaces and names of all budgets.
    pub(crate) fn budget_keys(&self) -> impl Iterator<Item = (Arc<str>, Arc<str>)> {
        let names = |(namespace, budgets): (&Arc<str>, &HashMap<Arc<str>, Budget>)| {
            budgets.keys().map(|name| (namespace.clone(), name.clone())).collect::<Vec<_>>()
        };
        self.budgets.iter().flat_map(names)
    }

    /// The budgets of a namespace.
    pub(crate) fn budgets_in(&self, namespace: &str) -> impl Iterator<Item = &Budget> {
        self.budgets.get(namespace).into_iter().flat_map(HashMap::values)
    }

    /// Whether any pod on a node is worth less than this.
    pub(crate) fn has_lower(&self, priority: i32) -> bool {
        self.priorities.first_key_value().is_some_and(|(lowest, _)| *lowest < priority)
    }

    /// Whether any pod on a node has terms about other pods.
    pub(crate) fn has_social(&self) -> bool {
        !self.social.is_empty()
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
        let revision = self.epoch + 1;
        if let Some((slot, known)) = self.state(&name) {
            let same = known.labels == labels
                && known.taints == taints
                && known.unschedulable == node.spec.unschedulable
                && known.allocatable == allocatable
                && known.pods_max == pods_max;
            if same {
                return false;
            }
            let moved = known.labels != labels || known.taints != taints;
            let added: Vec<String> = labels.keys().cloned().collect();
            let before = std::mem::replace(&mut known.labels, labels);
            known.taints = taints;
            known.unschedulable = node.spec.unschedulable;
            known.allocatable = allocatable;
            known.pods_max = pods_max;
            known.revision = revision;
            if moved {
                added.into_iter().for_each(|key| self.count_label(key));
                before.keys().for_each(|key| self.discount_label(key));
            }
            self.epoch += 1;
            self.places += u64::from(moved);
            self.free(slot);
            return true;
        }
        labels.keys().for_each(|key| self.count_label(key.clone()));
        let state = NodeState {
            name: name.clone(),
            labels,
            taints,
            unschedulable: node.spec.unschedulable,
            allocatable,
            pods_max,
            load: Load::default(),
            pods: HashMap::new(),
            nominated: self.expected.remove(&name).unwrap_or_default(),
            revision,
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
        self.places += 1;
        self.free(slot);
        // Pods may have been seen before their node.
        for uid in self.homeless.remove(&name).into_iter().flatten() {
            self.settle(&uid);
        }
        true
    }

    /// The node is gone; its pods are still to go. Returns who waited for it and does no longer.
    pub(crate) fn remove_node(&mut self, name: &str) -> Vec<Uid> {
        let Some((slot, node)) = self.state(name) else { return Vec::new() };
        let (pods, nominated) = (std::mem::take(&mut node.pods), std::mem::take(&mut node.nominated));
        for uid in pods.keys() {
            if let Some(placed) = self.placed.get(uid).cloned() {
                self.count(slot, &placed, false);
            }
        }
        for (uid, _) in &nominated {
            self.nominations.remove(uid);
        }
        self.homeless.entry(name.into()).or_default().extend(pods.into_keys());
        self.homeless.retain(|_, pods| !pods.is_empty());
        self.index.remove(name);
        let gone = self.slots[slot].take();
        gone.iter().flat_map(|node| node.labels.keys()).for_each(|key| self.discount_label(key));
        self.epoch += 1;
        self.places += 1;
        self.touched.push(slot, 1);
        nominated.into_iter().map(|(uid, _)| uid).collect()
    }

    /// Whether any node has a label of this key.
    pub(crate) fn has_label(&self, key: &str) -> bool {
        self.label_keys.contains_key(key)
    }

    fn count_label(&mut self, key: String) {
        *self.label_keys.entry(key).or_default() += 1;
    }

    fn discount_label(&mut self, key: &str) {
        if let Some(count) = self.label_keys.get_mut(key) {
            *count -= 1;
            if *count == 0 {
                self.label_keys.remove(key);
            }
        }
    }

    /// The pod has (or is about to have) this node.
    pub(crate) fn place(&mut self, uid: &Uid, placed: Placed) {
        self.withdraw(uid);
        if let Some(before) = self.placed.get_mut(uid)
            && before.node == placed.node
            && Arc::ptr_eq(&before.class, &placed.class)
            && before.leaving == placed.leaving
        {
            // Nothing that is counted has changed; labels that nobody selects yet may have.
            *before = placed;
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
                self.touched.push(slot, 1);
            }
            None => drop(self.homeless.entry(placed.node).or_default().insert(uid.clone())),
        }
    }

    fn count(&mut self, slot: usize, placed: &Placed, comes: bool) {
        let address = address(&placed.class);
        let sign = if comes { 1 } else { -1 };
        let leaving = u32::from(placed.leaving);
        let class = placed.class.clone();
        let weight = class.weight;
        self.moves.push(Move { class, slot, all: sign, leaving: if placed.leaving { sign } else { 0 } }, weight);
        let group =
            self.groups.entry(address).or_insert_with(|| Group { class: placed.class.clone(), nodes: HashMap::new() });
        let members = group.nodes.entry(slot).or_default();
        if comes {
            members.all += 1;
            members.leaving += leaving;
            *self.priorities.entry(placed.class.priority).or_default() += 1;
            if !placed.class.affinity.is_empty() {
                self.social.insert(address);
            }
            return;
        }
        if let Some(count) = self.priorities.get_mut(&placed.class.priority) {
            *count -= 1;
            if *count == 0 {
                self.priorities.remove(&placed.class.priority);
            }
        }
        members.all -= 1;
        members.leaving -= leaving;
        if members.all == 0 {
            group.nodes.remove(&slot);
        }
        if group.nodes.is_empty() {
            self.groups.remove(&address);
            self.social.remove(&address);
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

    /// Gives the placed pods that have a label of one of the keys the class that `class` says, for these matter now.
    pub(crate) fn reclassify(
        &mut self,
        keys: &HashSet<String>,
        mut class: impl FnMut(&Arc<Class>, &Labels) -> Arc<Class>,
    ) {
        let concerned = self.placed.iter().filter(|(_, placed)| placed.labels.keys().any(|key| keys.contains(key)));
        let concerned: Vec<(Uid, Placed)> = concerned.map(|(uid, placed)| (uid.clone(), placed.clone())).collect();
        for (uid, mut placed) in concerned {
            placed.class = class(&placed.class, &placed.labels);
            self.place(&uid, placed);
        }
    }

    /// The pod waits for room on this node: that preemption makes there, or that somebody says is to be its.
    pub(crate) fn nominate(&mut self, uid: &Uid, node: &Arc<str>, class: &Arc<Class>) {
        self.withdraw(uid);
        match self.state(node) {
            Some((slot, state)) => {
                state.nominated.push((uid.clone(), class.clone()));
                self.touched.push(slot, 1);
            }
            None => self.expected.entry(node.clone()).or_default().push((uid.clone(), class.clone())),
        }
        self.nominations.insert(uid.clone(), node.clone());
    }

    /// The pod waits for no particular node; returns whether it did.
    pub(crate) fn withdraw(&mut self, uid: &str) -> bool {
        let Some(node) = self.nominations.remove(uid) else { return false };
        if let Some((slot, state)) = self.state(&node) {
            state.nominated.retain(|(other, _)| &**other != uid);
            self.free(slot);
        } else if let Entry::Occupied(mut expected) = self.expected.entry(node) {
            expected.get_mut().retain(|(other, _)| &**other != uid);
            if expected.get().is_empty() {
                expected.remove();
            }
        }
        true
    }

    /// The node the pod waits for.
    pub(crate) fn nomination(&self, uid: &str) -> Option<&Arc<str>> {
        self.nominations.get(uid)
    }
}
