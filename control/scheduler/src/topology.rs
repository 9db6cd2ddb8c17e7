//! Constraints that look at other pods: required (anti-)affinity and topology spread.
//!
//! Counted anew for each pod that has such constraints, class by class: whether a term means a class is asked once, then its
//! nodes are added up; then each node is a look-up.

use std::collections::{HashMap, HashSet};

use crate::class::{Class, selects};
use crate::filter::{Reason, matches_affinity, tolerated};
use crate::view::{ClusterView, NodeState};

/// What other pods mean for pods of a class.
#[derive(Debug, Default)]
pub(crate) struct Topology {
    /// Topology key and value that existing pods keep for themselves.
    refused: HashSet<(String, String)>,
    /// Per affinity term: pods it means, by topology value.
    affinity: Vec<HashMap<String, u32>>,
    anti_affinity: Vec<HashMap<String, u32>>,
    /// Nobody matches yet, but the pod itself does: the first of a group.
    first_of_its_kind: bool,
    spread: Vec<Spread>,
    preferred: Vec<(i64, String, HashMap<String, u32>)>,
}

#[derive(Debug)]
struct Spread {
    key: String,
    max_skew: i64,
    /// `DoNotSchedule`; otherwise it is only scored.
    hard: bool,
    /// The pod itself counts.
    itself: i64,
    counts: HashMap<String, i64>,
    least: i64,
}

impl Topology {
    /// `None` if other pods do not matter for this class.
    pub(crate) fn of(class: &Class, view: &ClusterView) -> Option<Self> {
        let mut topology = Self::default();
        topology.refuse(class, view);
        if !class.looks_at_pods() {
            return (!topology.refused.is_empty()).then_some(topology);
        }
        let affinity = &class.affinity.pod_affinity.required;
        let anti_affinity = &class.affinity.pod_anti_affinity.required;
        topology.affinity = vec![HashMap::new(); affinity.len()];
        topology.anti_affinity = vec![HashMap::new(); anti_affinity.len()];
        let preferred = class.affinity.pod_affinity.preferred.iter().map(|term| (i64::from(term.weight), term));
        let averse = class.affinity.pod_anti_affinity.preferred.iter().map(|term| (-i64::from(term.weight), term));
        let preferred: Vec<_> = preferred.chain(averse).collect();
        topology.preferred = preferred
            .iter()
            .map(|(weight, term)| (*weight, term.pod_affinity_term.topology_key.clone(), HashMap::new()))
            .collect();
        topology.spread = class
            .spread
            .iter()
            .map(|constraint| {
                let counts = view.nodes().filter(|(_, node)| {
                    let fits =
                        constraint.node_affinity_policy.as_deref() == Some("Ignore") || matches_affinity(class, node);
                    let taints = constraint.node_taints_policy.as_deref() != Some("Honor")
                        || node
                            .taints
                            .iter()
                            .all(|t| t.effect == "PreferNoSchedule" || tolerated(&class.tolerations, t));
                    fits && taints
                });
                let counts =
                    counts.filter_map(|(_, node)| Some((node.labels.get(&constraint.topology_key)?.clone(), 0)));
                Spread {
                    key: constraint.topology_key.clone(),
                    max_skew: i64::from(constraint.max_skew.max(1)),
                    hard: constraint.when_unsatisfiable != "ScheduleAnyway",
                    itself: i64::from(selects(constraint.label_selector.as_ref(), &class.labels)),
                    counts: counts.collect(),
                    least: 0,
                }
            })
            .collect();
        for group in view.groups() {
            let other = &group.class;
            let nodes = || group.nodes.iter().filter_map(|(slot, members)| Some((view.node(*slot)?, *members)));
            let count = |term: &crate::wire::PodTerm, counts: &mut HashMap<String, u32>| {
                if !term.means(&class.namespace, &other.namespace, &other.labels) {
                    return;
                }
                for (node, members) in nodes() {
                    if let Some(value) = node.labels.get(&term.topology_key) {
                        *counts.entry(value.clone()).or_default() += members.all;
                    }
                }
            };
            for (term, counts) in affinity.iter().zip(&mut topology.affinity) {
                count(term, counts);
            }
            for (term, counts) in anti_affinity.iter().zip(&mut topology.anti_affinity) {
                count(term, counts);
            }
            for ((_, term), (_, _, counts)) in preferred.iter().zip(&mut topology.preferred) {
                count(&term.pod_affinity_term, counts);
            }
            for (constraint, spread) in class.spread.iter().zip(&mut topology.spread) {
                if other.namespace != class.namespace || !selects(constraint.label_selector.as_ref(), &other.labels) {
                    continue;
                }
                for (node, members) in nodes() {
                    if let Some(value) = node.labels.get(&constraint.topology_key)
                        && let Some(count) = spread.counts.get_mut(value)
                    {
                        // Who ends makes no place crowded (as for the reference).
                        *count += i64::from(members.all - members.leaving);
                    }
                }
            }
        }
        for (constraint, spread) in class.spread.iter().zip(&mut topology.spread) {
            let domains = i64::try_from(spread.counts.len()).unwrap_or(i64::MAX);
            if i64::from(constraint.min_domains.unwrap_or(1)) <= domains {
                spread.least = spread.counts.values().copied().min().unwrap_or(0);
            }
        }
        topology.first_of_its_kind = topology.affinity.iter().all(HashMap::is_empty)
            && affinity.iter().all(|term| term.means(&class.namespace, &class.namespace, &class.labels));
        Some(topology)
    }

    /// Anti-affinity works both ways.
    fn refuse(&mut self, class: &Class, view: &ClusterView) {
        for group in view.averse() {
            let other = &group.class;
            for term in &other.affinity.pod_anti_affinity.required {
                if !term.means(&other.namespace, &class.namespace, &class.labels) {
                    continue;
                }
                for node in group.nodes.keys().filter_map(|slot| view.node(*slot)) {
                    if let Some(value) = node.labels.get(&term.topology_key) {
                        self.refused.insert((term.topology_key.clone(), value.clone()));
                    }
                }
            }
        }
    }

    /// Whether the node is in the right domains.
    pub(crate) fn check(&self, class: &Class, node: &NodeState) -> Result<(), Reason> {
        for spread in self.spread.iter().filter(|spread| spread.hard) {
            let Some(value) = node.labels.get(&spread.key) else { return Err(Reason::SpreadLabel) };
            let count = spread.counts.get(value).copied().unwrap_or(0);
            if count + spread.itself - spread.least > spread.max_skew {
                return Err(Reason::Spread);
            }
        }
        let terms = &class.affinity.pod_affinity.required;
        for (term, counts) in terms.iter().zip(&self.affinity) {
            let Some(value) = node.labels.get(&term.topology_key) else { return Err(Reason::Affinity) };
            if !counts.contains_key(value) && !self.first_of_its_kind {
                return Err(Reason::Affinity);
            }
        }
        let terms = &class.affinity.pod_anti_affinity.required;
        for (term, counts) in terms.iter().zip(&self.anti_affinity) {
            if node.labels.get(&term.topology_key).is_some_and(|value| counts.contains_key(value)) {
                return Err(Reason::AntiAffinity);
            }
        }
        let refused = |(key, value): &(String, String)| node.labels.get(key) == Some(value);
        if self.refused.iter().any(refused) { Err(Reason::ExistingAntiAffinity) } else { Ok(()) }
    }

    /// How well the node suits by preferred terms and soft spread; more is better, without a fixed range.
    pub(crate) fn preference(&self, node: &NodeState) -> i64 {
        let terms = self.preferred.iter().map(|(weight, key, counts)| {
            let value = node.labels.get(key);
            weight * value.and_then(|value| counts.get(value)).map_or(0, |count| i64::from(*count))
        });
        let spread = self.spread.iter().map(|spread| {
            let value = node.labels.get(&spread.key);
            -value.and_then(|value| spread.counts.get(value)).copied().unwrap_or(0)
        });
        terms.sum::<i64>() + spread.sum::<i64>()
    }
}
