//! One policy, compiled.

use std::collections::{BTreeMap, HashSet};
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;

use coracle_api::meta::selector::LabelSelector;
use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector as Object;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::block::Block;
use crate::table::Direction;
use crate::workload::{Port, Protocol, Workload};

/// Comparisons (of a label, a port, a range of addresses) that one question may cost: some ten milliseconds, on a thread that others wait
/// for. A namespace whose policies say more than that can be read is one where what was not read by then is not allowed.
const WORK_MAX: usize = 1 << 18;

/// What is left of a question's comparisons.
pub(crate) struct Work(usize);

impl Default for Work {
    fn default() -> Work {
        Work(WORK_MAX)
    }
}

impl Work {
    /// Whether there is enough left for so many; if not there is nothing left.
    fn has(&mut self, count: usize) -> bool {
        let left = self.0.checked_sub(count);
        self.0 = left.unwrap_or(0);
        left.is_some()
    }

    /// Whether nothing is left, so that the question is not answered to its end.
    pub fn is_over(&self) -> bool {
        self.0 == 0
    }
}

/// The labels of a namespace, by its name.
pub(crate) type NamespaceLabels = imbl::HashMap<Arc<str>, Arc<BTreeMap<String, String>>>;

/// A policy.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Policy {
    /// The pods of its namespace that it is about.
    selects: Selector,
    /// What it allows in a direction; `None` where it says nothing of it.
    ingress: Option<Box<[Rule]>>,
    egress: Option<Box<[Rule]>>,
}

/// Whom a rule is compared with: the other end of a connection, where that is somebody whom a rule can name.
#[derive(Clone, Copy)]
pub(crate) enum Other<'a> {
    Pod(&'a Workload),
    Outside(IpAddr),
    Unknown,
}

/// What is allowed: one of these ports, from or to one of these.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Rule {
    /// `None`: all.
    ports: Option<Box<[Ports]>>,
    /// `None`: whoever it is.
    peers: Option<Peers>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Peers {
    addresses: Block,
    pods: Box<[Pods]>,
}

/// Pods of a namespace.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Pods {
    /// `None`: the policy's own.
    namespaces: Option<Selector>,
    pods: Selector,
}

/// Labels, and how many comparisons they take.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Selector {
    labels: LabelSelector,
    work: usize,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Ports {
    Range(Protocol, u16, u16),
    Named(Protocol, Box<str>),
}

impl Policy {
    /// Compiles an object. What cannot be read allows nothing, and a selector of the policy's own pods that cannot be read selects
    /// all of them: the API server has let neither through.
    pub fn of(object: &NetworkPolicy) -> Policy {
        let spec = object.spec.clone().unwrap_or_default();
        let types = spec.policy_types.clone().unwrap_or_default();
        // As the API server writes it into an object that does not say.
        let has_egress = spec.egress.as_ref().is_some_and(|rules| !rules.is_empty());
        let is_about = |direction, otherwise| match types.is_empty() {
            true => otherwise,
            false => types.iter().any(|one| one == direction),
        };
        let ingress = is_about("Ingress", true).then(|| {
            let rules = spec.ingress.iter().flatten();
            distinct(rules.map(|rule| Rule::of(rule.ports.as_deref(), rule.from.as_deref())))
        });
        let egress = is_about("Egress", has_egress).then(|| {
            let rules = spec.egress.iter().flatten();
            distinct(rules.map(|rule| Rule::of(rule.ports.as_deref(), rule.to.as_deref())))
        });
        let selects = spec.pod_selector.as_ref().map_or(Some(Selector::everything()), Selector::of);
        let none = || Selector { labels: LabelSelector::default(), work: 1 };
        Policy { selects: selects.unwrap_or_else(none), ingress, egress }
    }

    /// What it says of this direction of the pod, which is of its namespace: rules, if it is about it at all, as far as can be told.
    pub fn rules(&self, pod: &Workload, direction: Direction, work: &mut Work) -> Option<Rules<'_>> {
        let rules = match direction {
            Direction::Ingress => self.ingress.as_deref(),
            Direction::Egress => self.egress.as_deref(),
        }?;
        self.selects.matches(&pod.labels, work).then_some(Rules(rules))
    }
}

/// Rules of a policy for a direction.
#[derive(Clone, Copy)]
pub(crate) struct Rules<'a>(&'a [Rule]);

impl Rules<'_> {
    /// Whether one of them allows it: a connection with `other` at this port of whoever is `called`.
    pub fn allow(
        self,
        other: Other<'_>,
        called: Option<&Workload>,
        port: Port,
        (namespace, namespaces): (&str, &NamespaceLabels),
        work: &mut Work,
    ) -> bool {
        let Rules(rules) = self;
        rules
            .iter()
            .any(|rule| rule.has_port(called, port, work) && rule.has_peer(other, (namespace, namespaces), work))
    }
}

impl Rule {
    fn of(ports: Option<&[NetworkPolicyPort]>, peers: Option<&[NetworkPolicyPeer]>) -> Rule {
        let ports = ports.filter(|ports| !ports.is_empty());
        let peers = peers.filter(|peers| !peers.is_empty());
        Rule { ports: ports.map(|ports| distinct(ports.iter().filter_map(Ports::of))), peers: peers.map(Peers::of) }
    }

    fn has_port(&self, called: Option<&Workload>, port: Port, work: &mut Work) -> bool {
        let Some(ports) = &self.ports else { return work.has(1) };
        ports.iter().any(|one| match one {
            Ports::Range(protocol, first, last) => {
                work.has(1) && *protocol == port.protocol && (*first..=*last).contains(&port.number)
            }
            Ports::Named(protocol, name) => called.is_some_and(|called| {
                work.has(called.ports.len().max(1)) && *protocol == port.protocol && called.names(name, port)
            }),
        })
    }

    fn has_peer(&self, other: Other<'_>, at: (&str, &NamespaceLabels), work: &mut Work) -> bool {
        let Some(peers) = &self.peers else { return true };
        let mut has_address = |address| work.has(1) && peers.addresses.contains(address);
        match other {
            Other::Unknown => false,
            Other::Outside(address) => has_address(address),
            Other::Pod(pod) => has_address(pod.address) || peers.pods.iter().any(|pods| pods.select(pod, at, work)),
        }
    }
}

impl Peers {
    fn of(peers: &[NetworkPolicyPeer]) -> Peers {
        let addresses = Block::of(peers.iter().filter_map(|peer| peer.ip_block.as_ref()));
        Peers { addresses, pods: distinct(peers.iter().filter_map(Pods::of)) }
    }
}

impl Pods {
    fn of(peer: &NetworkPolicyPeer) -> Option<Pods> {
        let namespaces = match &peer.namespace_selector {
            None => None,
            Some(object) => Some(Selector::of(object)?),
        };
        let pods = match &peer.pod_selector {
            None if namespaces.is_none() => return None,
            None => Selector::everything(),
            Some(object) => Selector::of(object)?,
        };
        Some(Pods { namespaces, pods })
    }

    fn select(&self, pod: &Workload, (namespace, namespaces): (&str, &NamespaceLabels), work: &mut Work) -> bool {
        let is_there = match &self.namespaces {
            None => *pod.namespace == *namespace,
            Some(selector) => match namespaces.get(&pod.namespace) {
                Some(labels) => selector.matches(labels, work),
                // It has not been heard of yet: which labels it lacks is not known either.
                None => selector.labels.is_everything(),
            },
        };
        // That it is of another namespace was a comparison, too.
        work.has(1) && is_there && self.pods.matches(&pod.labels, work)
    }
}

impl Ports {
    fn of(port: &NetworkPolicyPort) -> Option<Ports> {
        let protocol = Protocol::of(port.protocol.as_deref());
        Some(match &port.port {
            None => Ports::Range(protocol, 0, u16::MAX),
            Some(IntOrString::String(name)) => Ports::Named(protocol, name.as_str().into()),
            Some(IntOrString::Int(first)) => {
                let first = u16::try_from(*first).ok()?;
                let last = port.end_port.map_or(Some(first), |last| u16::try_from(last).ok())?;
                Ports::Range(protocol, first, last)
            }
        })
    }
}

/// Each once, in their order: what is said again costs no question a comparison.
fn distinct<T: Clone + Eq + Hash>(all: impl Iterator<Item = T>) -> Box<[T]> {
    let mut seen = HashSet::new();
    all.filter(|one| seen.insert(one.clone())).collect()
}

impl Selector {
    fn everything() -> Selector {
        Selector { labels: LabelSelector::everything(), work: 1 }
    }

    fn of(object: &Object) -> Option<Selector> {
        let labels = object.match_labels.as_ref().map_or(0, BTreeMap::len);
        let work = 1 + labels + object.match_expressions.as_ref().map_or(0, Vec::len);
        let labels = LabelSelector::from_object(&serde_json::to_value(object).ok()?).ok()?;
        Some(Selector { labels, work })
    }

    fn matches(&self, labels: &BTreeMap<String, String>, work: &mut Work) -> bool {
        work.has(self.work) && self.labels.matches(labels)
    }
}
