//! Equivalence classes: pods that every node treats alike, such as the replicas of one Deployment.

use std::collections::{HashMap, HashSet};
use std::ops::Deref;
use std::sync::Arc;

use crate::resources::{Requests, requests};
use crate::view::Namespaces;
use crate::volumes::Wanted;
use crate::wire::{
    LabelSelector, Labels, NodeAffinity, Pod, PodAffinity, PodTerm, Requirement, SpreadConstraint, Toleration,
};

/// Everything about a pod that decides where it may go and where it goes best.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Class {
    pub namespace: Arc<str>,
    /// Those by which somebody selects (see [`Classes`]); others would only make classes out of equals.
    pub labels: Labels,
    /// Uid of the ReplicaSet, StatefulSet or ReplicationController that it is of: their pods are spread without being asked to,
    /// others' are not (as by the reference).
    pub family: Option<Arc<str>>,
    pub affinity: BetweenPods,
    pub spread: Vec<SpreadConstraint>,
    pub shape: Arc<Shape>,
    /// How much it is to remember: its names, values and requirements, with those of its shape. Each takes some tens of
    /// bytes, a few hundred at most.
    pub weight: usize,
}

/// What a pod wants to be near to, and apart from.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct BetweenPods {
    pub pod_affinity: PodAffinity,
    pub pod_anti_affinity: PodAffinity,
}

/// What of a pod decides which nodes can take it, whatever other pods are there. Many classes have one shape.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Shape {
    pub priority: i32,
    /// `preemptionPolicy: Never`.
    pub never_preempts: bool,
    pub requests: Requests,
    pub ports: Vec<HostPort>,
    pub node_selector: Labels,
    pub node_affinity: NodeAffinity,
    pub tolerations: Vec<Toleration>,
    /// What its volumes ask of a node; nothing of a pod that has one.
    pub volumes: Wanted,
    /// As that of a [`Class`].
    pub weight: usize,
}

fn weight_of(requirements: &[Requirement]) -> usize {
    requirements.iter().map(|requirement| 1 + requirement.values.len()).sum()
}

fn selector_weight(selector: Option<&LabelSelector>) -> usize {
    selector.map_or(0, |selector| selector.match_labels.len() + weight_of(&selector.match_expressions))
}

impl Shape {
    /// The only node that it may have by its name, as pods of DaemonSets say it. No other needs to be looked at.
    pub(crate) fn only_node(&self) -> Option<&str> {
        let [term] = self.node_affinity.required.as_ref()?.node_selector_terms.as_slice() else { return None };
        let mut named = term.match_fields.iter().filter(|it| it.key == "metadata.name" && it.operator == "In");
        named.find_map(|it| match it.values.as_slice() {
            [name] => Some(name.as_str()),
            _ => None,
        })
    }

    fn weigh(mut self) -> Self {
        let terms = self.node_affinity.required.iter().flat_map(|required| &required.node_selector_terms);
        let terms = terms.chain(self.node_affinity.preferred.iter().map(|term| &term.preference));
        let terms = terms.map(|term| 1 + weight_of(&term.match_expressions) + weight_of(&term.match_fields));
        self.weight = 1
            + terms.sum::<usize>()
            + self.requests.exact.extended.len()
            + self.ports.len()
            + self.node_selector.len()
            + self.tolerations.len()
            + self.volumes.weight();
        self
    }
}

impl BetweenPods {
    /// Whether it asks for nothing.
    pub(crate) fn is_empty(&self) -> bool {
        let of = |affinity: &PodAffinity| affinity.required.is_empty() && affinity.preferred.is_empty();
        of(&self.pod_affinity) && of(&self.pod_anti_affinity)
    }
}

impl Deref for Class {
    type Target = Shape;

    fn deref(&self) -> &Shape {
        &self.shape
    }
}

/// A port of the node that a pod takes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct HostPort {
    /// Its number and protocol.
    pub port: (u16, String),
    /// Empty for every address.
    pub ip: String,
}

/// The ports of a node that are taken, and how often at which address. A pod may ask for thousands: each is looked up.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ports(HashMap<(u16, String), HashMap<String, u32>>);

impl Ports {
    pub(crate) fn add(&mut self, port: &HostPort) {
        *self.0.entry(port.port.clone()).or_default().entry(port.ip.clone()).or_default() += 1;
    }

    pub(crate) fn remove(&mut self, port: &HostPort) {
        let Some(taken) = self.0.get_mut(&port.port) else { return };
        if let Some(count) = taken.get_mut(&port.ip) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&port.ip);
            }
        }
        if taken.is_empty() {
            self.0.remove(&port.port);
        }
    }

    /// Whether the same port and protocol is taken, on the same address or one of them on all.
    pub(crate) fn conflict(&self, port: &HostPort) -> bool {
        let taken = self.0.get(&port.port);
        taken.is_some_and(|taken| port.ip.is_empty() || taken.contains_key("") || taken.contains_key(&port.ip))
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Class {
    pub(crate) fn of(pod: &Pod) -> Self {
        Self::with(pod, Wanted::default())
    }

    /// That of a pod whose volumes ask for this.
    pub(crate) fn with(pod: &Pod, volumes: Wanted) -> Self {
        let spec = &pod.spec;
        let labels = pod.metadata.labels.clone().unwrap_or_default();
        let owners = pod.metadata.owner_references.iter().flatten();
        let mut affinity = spec.affinity.clone().unwrap_or_default();
        for terms in [&mut affinity.pod_affinity, &mut affinity.pod_anti_affinity] {
            let required = terms.required.iter_mut();
            for term in required.chain(terms.preferred.iter_mut().map(|term| &mut term.pod_affinity_term)) {
                resolve_keys(term, &labels);
            }
        }
        let mut spread = spec.topology_spread_constraints.clone();
        for constraint in &mut spread {
            let keys = std::mem::take(&mut constraint.match_label_keys);
            for key in keys {
                if let (Some(value), Some(selector)) = (labels.get(&key), &mut constraint.label_selector) {
                    selector.match_expressions.push(requirement(&key, "In", value));
                }
            }
        }
        let sidecars = spec.init_containers.iter().filter(|c| c.restart_policy.as_deref() == Some("Always"));
        let ports = spec.containers.iter().chain(sidecars).flat_map(|container| &container.ports);
        let ports = ports.filter_map(|port| {
            let number = if port.host_port == 0 && spec.host_network { port.container_port } else { port.host_port };
            let ip = port.host_ip.clone().filter(|ip| ip != "0.0.0.0" && ip != "::").unwrap_or_default();
            let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
            (number != 0).then_some(HostPort { port: (number, protocol), ip })
        });
        let shape = Shape {
            priority: spec.priority.unwrap_or(0),
            never_preempts: spec.preemption_policy.as_deref() == Some("Never"),
            requests: requests(pod),
            ports: ports.collect(),
            node_selector: spec.node_selector.clone(),
            node_affinity: affinity.node_affinity,
            tolerations: spec.tolerations.clone(),
            volumes,
            weight: 0,
        };
        let this = Self {
            namespace: pod.metadata.namespace.as_deref().unwrap_or_default().into(),
            family: owners
                .into_iter()
                .find(|owner| owner.controller == Some(true))
                .filter(|owner| matches!(&*owner.kind, "ReplicaSet" | "StatefulSet" | "ReplicationController"))
                .map(|owner| owner.uid.as_str().into()),
            affinity: BetweenPods {
                pod_affinity: affinity.pod_affinity,
                pod_anti_affinity: affinity.pod_anti_affinity,
            },
            spread,
            shape: shape.weigh().into(),
            labels,
            weight: 0,
        };
        this.weigh()
    }

    fn weigh(mut self) -> Self {
        let of = |term: &PodTerm| {
            let selectors = [&term.label_selector, &term.namespace_selector];
            1 + term.namespaces.len() + selectors.iter().map(|it| selector_weight(it.as_ref())).sum::<usize>()
        };
        let spread = self.spread.iter().map(|constraint| 1 + selector_weight(constraint.label_selector.as_ref()));
        self.weight = 1 + self.shape.weight + self.terms().map(of).sum::<usize>() + spread.sum::<usize>();
        self
    }

    /// Terms of affinity and anti-affinity.
    fn terms(&self) -> impl Iterator<Item = &PodTerm> {
        [&self.affinity.pod_affinity, &self.affinity.pod_anti_affinity]
            .into_iter()
            .flat_map(|terms| terms.required.iter().chain(terms.preferred.iter().map(|term| &term.pod_affinity_term)))
    }

    /// Keys of the labels by which it selects other pods.
    fn selected_keys(&self) -> impl Iterator<Item = &String> {
        let selectors = self.terms().filter_map(|term| term.label_selector.as_ref());
        let selectors = selectors.chain(self.spread.iter().filter_map(|constraint| constraint.label_selector.as_ref()));
        selectors.flat_map(|selector| {
            selector.match_labels.keys().chain(selector.match_expressions.iter().map(|requirement| &requirement.key))
        })
    }

    /// Whether it may matter to this waiting pod that a pod like `other` came.
    pub(crate) fn is_drawn_by(&self, other: &Class) -> bool {
        let near = &self.affinity.pod_affinity.required;
        near.iter().any(|term| term.may_mean(&self.namespace, &other.namespace, &other.labels)) || self.counts(other)
    }

    /// Whether it may matter to this waiting pod that a pod like `other` left.
    pub(crate) fn is_kept_off_by(&self, other: &Class) -> bool {
        let (mine, its) = (&self.affinity.pod_anti_affinity.required, &other.affinity.pod_anti_affinity.required);
        mine.iter().any(|term| term.may_mean(&self.namespace, &other.namespace, &other.labels))
            || its.iter().any(|term| term.may_mean(&other.namespace, &self.namespace, &self.labels))
            || self.counts(other)
    }

    fn counts(&self, other: &Class) -> bool {
        self.namespace == other.namespace
            && self.spread.iter().any(|constraint| selects(constraint.label_selector.as_ref(), &other.labels))
    }

    /// Whether where other pods are decides where it may go: then each placement changes the answer for every node.
    pub(crate) fn looks_at_pods(&self) -> bool {
        !self.affinity.is_empty() || !self.spread.is_empty()
    }
}

fn requirement(key: &str, operator: &str, value: &str) -> Requirement {
    Requirement { key: key.to_owned(), operator: operator.to_owned(), values: vec![value.to_owned()] }
}

/// `matchLabelKeys` and `mismatchLabelKeys` stand for requirements on the pod's own values.
fn resolve_keys(term: &mut PodTerm, labels: &Labels) {
    let (matching, other) = (std::mem::take(&mut term.match_label_keys), std::mem::take(&mut term.mismatch_label_keys));
    let Some(selector) = &mut term.label_selector else { return };
    for (keys, operator) in [(matching, "In"), (other, "NotIn")] {
        for key in keys {
            if let Some(value) = labels.get(&key) {
                selector.match_expressions.push(requirement(&key, operator, value));
            }
        }
    }
}

/// Whether labels match the selector; none given selects nothing.
pub(crate) fn selects(selector: Option<&LabelSelector>, labels: &Labels) -> bool {
    selector.is_some_and(|selector| {
        selector.match_labels.iter().all(|(key, value)| labels.get(key) == Some(value))
            && selector.match_expressions.iter().all(|requirement| requirement.holds(labels.get(&requirement.key)))
    })
}

impl Requirement {
    /// Whether it holds for this value of its key.
    pub(crate) fn holds(&self, value: Option<&String>) -> bool {
        let number = |text: &String| text.parse::<i64>().ok();
        let compare = |greater: bool| {
            let (Some(have), Some(want)) = (value.and_then(number), self.values.first().and_then(number)) else {
                return false;
            };
            if greater { have > want } else { have < want }
        };
        match self.operator.as_str() {
            "In" => value.is_some_and(|value| self.values.contains(value)),
            "NotIn" => value.is_none_or(|value| !self.values.contains(value)),
            "Exists" => value.is_some(),
            "DoesNotExist" => value.is_none(),
            "Gt" => compare(true),
            "Lt" => compare(false),
            _ => false,
        }
    }
}

impl PodTerm {
    /// Whether a pod with these labels in this namespace is meant by a term of a pod in `home`.
    pub(crate) fn means(&self, home: &str, namespace: &str, labels: &Labels, known: &Namespaces) -> bool {
        self.reaches(home, namespace, |selector| known.are_meant(selector, namespace))
            && selects(self.label_selector.as_ref(), labels)
    }

    /// The same, where it does no harm to take a selector of namespaces for all of them.
    fn may_mean(&self, home: &str, namespace: &str, labels: &Labels) -> bool {
        self.reaches(home, namespace, |_| true) && selects(self.label_selector.as_ref(), labels)
    }

    fn reaches(&self, home: &str, namespace: &str, selected: impl Fn(&LabelSelector) -> bool) -> bool {
        match (&self.namespace_selector, self.namespaces.as_slice()) {
            (None, []) => home == namespace,
            (selector, namespaces) => {
                namespaces.iter().any(|name| name == namespace) || selector.as_ref().is_some_and(selected)
            }
        }
    }
}

/// Classes in use, each once, and the keys of labels by which any of them selects.
///
/// Other labels are left out of classes. Pods of a StatefulSet, each with a label of its own, are one class that way.
#[derive(Debug, Default)]
pub(crate) struct Classes {
    known: HashSet<Arc<Class>>,
    shapes: HashSet<Arc<Shape>>,
    labels: HashSet<Arc<Labels>>,
    /// Keys of `labels`, and perhaps of some that are no more.
    worn: HashSet<String>,
    /// Keys by which `known` select, and perhaps some that are no more: a label too many in a class is never wrong.
    keys: HashSet<String>,
    /// Of `known` and `labels`.
    weight: usize,
    /// At which weight unused ones are dropped.
    clean_at: usize,
}

/// A pod's class, and what is not in it.
#[derive(Debug)]
pub(crate) struct Interned {
    pub class: Arc<Class>,
    /// All labels of the pod.
    pub labels: Arc<Labels>,
    /// Keys of other pods' labels by which nobody selected before: their classes are to be made anew ([`Classes::again`]).
    pub widened: HashSet<String>,
}

/// Below this weight nothing is dropped.
const CLEAN_FROM: usize = 1 << 13;

impl Classes {
    /// The class that is equal; `class` has all labels of its pod.
    pub(crate) fn intern(&mut self, mut class: Class) -> Interned {
        let new: Vec<String> = class.selected_keys().filter(|key| !self.keys.contains(*key)).cloned().collect();
        let widened = new.iter().filter(|key| self.worn.contains(*key)).cloned().collect();
        self.keys.extend(new);
        let labels = std::mem::take(&mut class.labels);
        let labels = match self.labels.get(&labels) {
            Some(known) => known.clone(),
            None => {
                self.worn.extend(labels.keys().cloned());
                self.weight += 1 + labels.len();
                once(&mut self.labels, labels)
            }
        };
        let class = self.narrow(class, &labels);
        Interned { class, labels, widened }
    }

    /// The class of a pod that had this one before.
    pub(crate) fn again(&mut self, class: &Class, labels: &Labels) -> Arc<Class> {
        self.narrow(class.clone(), labels)
    }

    fn narrow(&mut self, mut class: Class, labels: &Labels) -> Arc<Class> {
        let kept = labels.iter().filter(|(key, _)| self.keys.contains(*key));
        class.labels = kept.map(|(key, value)| (key.clone(), value.clone())).collect();
        let class = match self.known.get(&class) {
            Some(known) => known.clone(),
            None => {
                class.shape = match self.shapes.get(&class.shape) {
                    Some(shape) => shape.clone(),
                    None => {
                        self.shapes.insert(class.shape.clone());
                        class.shape
                    }
                };
                self.weight += class.weight + class.labels.len();
                once(&mut self.known, class)
            }
        };
        // Known or not: its pod's labels may be new.
        if self.weight >= self.clean_at.max(CLEAN_FROM) {
            self.clean();
        }
        class
    }

    /// Drops what nobody has any more.
    fn clean(&mut self) {
        self.known.retain(|class| Arc::strong_count(class) > 1);
        self.shapes.retain(|shape| Arc::strong_count(shape) > 1);
        self.labels.retain(|labels| Arc::strong_count(labels) > 1);
        self.worn = self.labels.iter().flat_map(|labels| labels.keys().cloned()).collect();
        let selected: HashSet<&String> = self.known.iter().flat_map(|class| class.selected_keys()).collect();
        self.keys.retain(|key| selected.contains(key));
        let classes = self.known.iter().map(|class| class.weight + class.labels.len());
        self.weight = classes.sum::<usize>() + self.labels.iter().map(|labels| 1 + labels.len()).sum::<usize>();
        self.clean_at = 2 * self.weight;
    }

    /// How many sets of labels are remembered.
    #[cfg(test)]
    pub(crate) fn remembered_labels(&self) -> usize {
        self.labels.len()
    }

    /// How many keys are remembered.
    #[cfg(test)]
    pub(crate) fn remembered(&self) -> usize {
        self.keys.len()
    }

    /// Whether the key is remembered.
    #[cfg(test)]
    pub(crate) fn selects_by(&self, key: &str) -> bool {
        self.keys.contains(key)
    }
}

/// The one that is equal.
fn once<T: Eq + std::hash::Hash>(known: &mut HashSet<Arc<T>>, value: T) -> Arc<T> {
    if let Some(known) = known.get(&value) {
        return known.clone();
    }
    let value = Arc::new(value);
    known.insert(value.clone());
    value
}
