//! What other pods mean for the pods of a class: (anti-)affinity in both directions, and spread.
//!
//! Pods are counted per (term, domain), and the counts are kept: a class looks at what has moved since it was asked last
//! ([`ClusterView::moves_since`]), so a placement costs one addition and not all pods again. Then every node is a look-up in
//! an array. Counts are made anew when nodes change in what domains are made of, or after too many moves.
//!
//! The rules are those of the reference's plugins `PodTopologySpread` (with its system defaults: hostname and zone, for pods
//! of ReplicaSets, StatefulSets and ReplicationControllers that say nothing themselves) and `InterPodAffinity`.

use std::collections::HashMap;
use std::sync::Arc;

use crate::class::{Class, selects};
use crate::decide::Diagnosis;
use crate::domains::{Domains, Topologies};
use crate::filter::{Reason, matches_affinity, tolerated};
use crate::view::{ClusterView, NodeState};

const HOSTNAME: &str = "kubernetes.io/hostname";
const ZONE: &str = "topology.kubernetes.io/zone";
/// Constraints of pods that have none: key and `maxSkew`, all `ScheduleAnyway` (the reference's `systemDefaultConstraints`).
const DEFAULTS: [(&str, i64); 2] = [(HOSTNAME, 3), (ZONE, 5)];
/// What a required affinity term of an existing pod is worth when its partner is placed (`hardPodAffinityWeight`).
const HARD_AFFINITY_WEIGHT: i32 = 1;

/// What a tally costs beside its counts, in their size.
const TALLY_CELLS: usize = size_of::<Tally>() / size_of::<i32>();

/// What a class that is kept costs for each part of its weight, in the size of a count.
const WEIGHT_CELLS: usize = 16;

/// Pods (or their weights) by domain.
#[derive(Debug)]
struct Tally {
    domains: Arc<Domains>,
    counts: Vec<i32>,
    /// Nodes whose pods count; all when absent.
    mask: Option<Vec<bool>>,
}

impl Tally {
    fn counts_on(&self, slot: usize) -> bool {
        self.mask.as_ref().is_none_or(|mask| mask.get(slot).copied().unwrap_or(false))
    }

    fn add(&mut self, slot: usize, count: i32) {
        if self.counts_on(slot)
            && let Some(domain) = self.domains.of(slot)
        {
            // What was added is taken away again, however much it was.
            self.counts[domain] = self.counts[domain].wrapping_add(count);
        }
    }

    /// What is counted in the domain of a node; `None` if it is in none.
    fn at(&self, slot: usize) -> Option<i32> {
        self.domains.of(slot).map(|domain| self.counts[domain])
    }
}

/// A constraint.
#[derive(Debug)]
struct Spread {
    tally: usize,
    max_skew: i64,
    /// `DoNotSchedule`; otherwise it is only scored.
    hard: bool,
    /// The pod itself counts.
    itself: i64,
    /// Fewer domains than this count as if there were an empty one.
    domains_min: usize,
    /// Domains with a node that counts.
    eligible: Vec<bool>,
    is_host: bool,
}

impl Spread {
    fn least(&self, tallies: &[Tally]) -> i64 {
        let eligible = self.eligible.iter().zip(&tallies[self.tally].counts).filter(|(eligible, _)| **eligible);
        let (mut least, mut count) = (i32::MAX, 0);
        for (_, pods) in eligible {
            least = least.min(*pods);
            count += 1;
        }
        if count == 0 || count < self.domains_min { 0 } else { i64::from(least) }
    }
}

/// What a pod adds to a tally.
#[derive(Debug, Clone, Copy)]
struct Share {
    tally: usize,
    weight: i32,
    /// Only while it is not being deleted.
    live: bool,
}

/// What other pods mean for pods of a class.
#[derive(Debug)]
pub(crate) struct Relations {
    /// Keeps the address, by which relations are found, from being another's.
    class: Arc<Class>,
    /// Up to which move it counted.
    seen: u64,
    /// When it was asked for last.
    pub used: u64,
    tallies: Vec<Tally>,
    /// Per required affinity term: pods that all of the terms mean.
    affinity: Vec<usize>,
    anti_affinity: Vec<usize>,
    preferred: Vec<(i32, usize)>,
    spread: Vec<Spread>,
    /// The constraints are not the pod's own.
    is_default: bool,
    /// By key: pods whose required anti-affinity means this class.
    refused: HashMap<String, usize>,
    /// By key: weights of the pods whose terms wish for this class, or wish it away.
    drawn: HashMap<String, usize>,
    /// It is one of those that its own affinity looks for.
    means_itself: bool,
    /// Why no node can take it, at a version of the view.
    pub diagnosis: Option<(u64, Arc<Diagnosis>)>,
}

impl Relations {
    /// Whether pods of the class may have any.
    pub(crate) fn may_matter(view: &ClusterView, class: &Class) -> bool {
        class.looks_at_pods() || class.family.is_some() || view.has_social()
    }

    /// Counts all pods.
    pub(crate) fn new(view: &ClusterView, class: &Arc<Class>, topologies: &mut Topologies) -> Self {
        let (near, apart) = (&class.affinity.pod_affinity, &class.affinity.pod_anti_affinity);
        let means_itself = near
            .required
            .iter()
            .all(|term| term.means(&class.namespace, &class.namespace, &class.labels, view.namespaces()));
        let mut this = Self {
            class: class.clone(),
            seen: view.moved(),
            used: 0,
            tallies: vec![],
            affinity: vec![],
            anti_affinity: vec![],
            preferred: vec![],
            spread: vec![],
            is_default: class.spread.is_empty(),
            refused: HashMap::new(),
            drawn: HashMap::new(),
            means_itself,
            diagnosis: None,
        };
        let mut tally = |key: &str, mask: Option<Vec<bool>>| {
            let domains = topologies.of(view, key);
            this.tallies.push(Tally { counts: vec![0; domains.len()], domains, mask });
            this.tallies.len() - 1
        };
        this.affinity.extend(near.required.iter().map(|term| tally(&term.topology_key, None)));
        this.anti_affinity.extend(apart.required.iter().map(|term| tally(&term.topology_key, None)));
        for (sign, terms) in [(1, &near.preferred), (-1, &apart.preferred)] {
            let terms = terms.iter();
            this.preferred
                .extend(terms.map(|term| (sign * term.weight, tally(&term.pod_affinity_term.topology_key, None))));
        }
        for constraint in &class.spread {
            let mask = mask(view, class, constraint);
            let tally = tally(&constraint.topology_key, mask);
            this.spread.push(Spread {
                tally,
                max_skew: i64::from(constraint.max_skew.max(1)),
                hard: is_hard(constraint),
                itself: i64::from(selects(constraint.label_selector.as_ref(), &class.labels)),
                domains_min: usize::try_from(constraint.min_domains.unwrap_or(1)).unwrap_or(1),
                eligible: vec![],
                is_host: constraint.topology_key == HOSTNAME,
            });
        }
        if this.is_default && class.family.is_some() {
            for (key, max_skew) in DEFAULTS {
                let (tally, is_host) = (tally(key, None), key == HOSTNAME);
                let (hard, itself, domains_min, eligible) = (false, 1, 1, vec![]);
                this.spread.push(Spread { tally, max_skew, hard, itself, domains_min, eligible, is_host });
            }
        }
        for spread in this.spread.iter_mut().filter(|spread| spread.hard) {
            let tally = &this.tallies[spread.tally];
            spread.eligible = vec![false; tally.domains.len()];
            for (slot, _) in view.nodes().filter(|(slot, _)| tally.counts_on(*slot)) {
                if let Some(domain) = tally.domains.of(slot) {
                    spread.eligible[domain] = true;
                }
            }
        }
        for group in view.groups() {
            this.make_room_for(view, &group.class, topologies);
            let shares = this.shares(view, &group.class);
            if !shares.is_empty() {
                for (slot, members) in &group.nodes {
                    let count = |count: u32| i32::try_from(count).unwrap_or(i32::MAX);
                    this.add(&shares, *slot, count(members.all), count(members.leaving));
                }
            }
        }
        this
    }

    /// Counts what has moved meanwhile; false when that is too much to tell.
    pub(crate) fn catch_up(&mut self, view: &ClusterView, topologies: &mut Topologies) -> bool {
        let Some(moves) = view.moves_since(self.seen) else { return false };
        let mut last: Option<(&Arc<Class>, Vec<Share>)> = None;
        for moved in moves {
            if last.as_ref().is_none_or(|(class, _)| !Arc::ptr_eq(class, &moved.class)) {
                self.make_room_for(view, &moved.class, topologies);
                last = Some((&moved.class, self.shares(view, &moved.class)));
            }
            if let Some((_, shares)) = &last {
                self.add(shares, moved.slot, moved.all, moved.leaving);
            }
        }
        self.seen = view.moved();
        true
    }

    /// Whether nobody means anything for it.
    pub(crate) fn is_idle(&self) -> bool {
        self.tallies.is_empty()
    }

    /// What it keeps, in numbers.
    pub(crate) fn cells(&self) -> usize {
        let cells = |tally: &Tally| TALLY_CELLS + tally.counts.len() + tally.mask.as_ref().map_or(0, Vec::len) / 4;
        self.class.weight * WEIGHT_CELLS + self.tallies.iter().map(cells).sum::<usize>()
    }

    /// Terms of other pods make tallies as they are met, one for each key that any node has.
    fn make_room_for(&mut self, view: &ClusterView, other: &Class, topologies: &mut Topologies) {
        if other.affinity.is_empty() {
            return;
        }
        let (class, tallies) = (&self.class, &mut self.tallies);
        let mut make = |term: &crate::wire::PodTerm, of: &mut HashMap<String, usize>| {
            let key = &term.topology_key;
            if view.has_label(key)
                && !of.contains_key(key)
                && term.means(&other.namespace, &class.namespace, &class.labels, view.namespaces())
            {
                let domains = topologies.of(view, key);
                tallies.push(Tally { counts: vec![0; domains.len()], domains, mask: None });
                of.insert(key.clone(), tallies.len() - 1);
            }
        };
        let (near, apart) = (&other.affinity.pod_affinity, &other.affinity.pod_anti_affinity);
        apart.required.iter().for_each(|term| make(term, &mut self.refused));
        near.required.iter().for_each(|term| make(term, &mut self.drawn));
        let preferred = near.preferred.iter().chain(&apart.preferred);
        preferred.for_each(|term| make(&term.pod_affinity_term, &mut self.drawn));
    }

    /// What one pod of another class adds to which tallies.
    fn shares(&self, view: &ClusterView, other: &Class) -> Vec<Share> {
        let (class, namespaces) = (&*self.class, view.namespaces());
        let mut shares = Vec::new();
        let mine =
            |term: &crate::wire::PodTerm| term.means(&class.namespace, &other.namespace, &other.labels, namespaces);
        let (near, apart) = (&class.affinity.pod_affinity, &class.affinity.pod_anti_affinity);
        let all = |tally: &usize| Share { tally: *tally, weight: 1, live: false };
        if !near.required.is_empty() && near.required.iter().all(mine) {
            shares.extend(self.affinity.iter().map(all));
        }
        let apart_from = apart.required.iter().zip(&self.anti_affinity).filter(|(term, _)| mine(term));
        shares.extend(apart_from.map(|(_, tally)| all(tally)));
        let preferred = near.preferred.iter().chain(&apart.preferred).zip(&self.preferred);
        let preferred = preferred.filter(|(term, _)| mine(&term.pod_affinity_term));
        shares.extend(preferred.map(|(_, (weight, tally))| Share { tally: *tally, weight: *weight, live: false }));
        let counted = |index: usize| match class.spread.get(index) {
            Some(constraint) => {
                other.namespace == class.namespace && selects(constraint.label_selector.as_ref(), &other.labels)
            }
            None => other.family == class.family,
        };
        let spread = self.spread.iter().enumerate().filter(|(index, _)| counted(*index));
        // Who ends makes no place crowded.
        shares.extend(spread.map(|(_, spread)| Share { tally: spread.tally, weight: 1, live: true }));
        if other.affinity.is_empty() {
            return shares;
        }
        let mut theirs = |term: &crate::wire::PodTerm, of: &HashMap<String, usize>, weight: i32| {
            if let Some(tally) = of.get(&term.topology_key)
                && term.means(&other.namespace, &class.namespace, &class.labels, namespaces)
            {
                shares.push(Share { tally: *tally, weight, live: false });
            }
        };
        let (near, apart) = (&other.affinity.pod_affinity, &other.affinity.pod_anti_affinity);
        apart.required.iter().for_each(|term| theirs(term, &self.refused, 1));
        near.required.iter().for_each(|term| theirs(term, &self.drawn, HARD_AFFINITY_WEIGHT));
        near.preferred.iter().for_each(|term| theirs(&term.pod_affinity_term, &self.drawn, term.weight));
        apart.preferred.iter().for_each(|term| theirs(&term.pod_affinity_term, &self.drawn, -term.weight));
        shares
    }

    fn add(&mut self, shares: &[Share], slot: usize, all: i32, leaving: i32) {
        for share in shares {
            let count = if share.live { all - leaving } else { all };
            if count != 0 {
                self.tallies[share.tally].add(slot, count.wrapping_mul(share.weight));
            }
        }
    }

    /// What holds for all nodes, to ask about each of them.
    pub(crate) fn verdict(&self) -> Verdict<'_> {
        let hard = self.spread.iter().filter(|spread| spread.hard);
        let nobody = |tally: &usize| self.tallies[*tally].counts.iter().all(|count| *count == 0);
        Verdict {
            relations: self,
            hard: hard.map(|spread| (spread, spread.least(&self.tallies))).collect(),
            first_of_its_kind: self.means_itself && self.affinity.iter().all(nobody),
        }
    }
}

fn is_hard(constraint: &crate::wire::SpreadConstraint) -> bool {
    constraint.when_unsatisfiable != "ScheduleAnyway"
}

/// Nodes whose pods count for a constraint: those that the pod itself may go to (by the constraint's policies) and that have
/// the keys of all constraints of its kind.
fn mask(view: &ClusterView, class: &Class, constraint: &crate::wire::SpreadConstraint) -> Option<Vec<bool>> {
    let counts = |node: &NodeState| {
        let alike = class.spread.iter().filter(|other| is_hard(other) == is_hard(constraint));
        let mut keys = alike.map(|other| &other.topology_key);
        keys.all(|key| node.labels.contains_key(key))
            && (constraint.node_affinity_policy.as_deref() == Some("Ignore") || matches_affinity(class, node))
            && (constraint.node_taints_policy.as_deref() != Some("Honor")
                || node.taints.iter().all(|t| t.effect == "PreferNoSchedule" || tolerated(&class.tolerations, t)))
    };
    let mut mask = vec![false; view.slots()];
    let mut all = true;
    for (slot, node) in view.nodes() {
        mask[slot] = counts(node);
        all &= mask[slot];
    }
    (!all).then_some(mask)
}

/// [`Relations`] at one moment.
#[derive(Debug)]
pub(crate) struct Verdict<'a> {
    relations: &'a Relations,
    /// Hard constraints, and how many pods are in their emptiest domain.
    hard: Vec<(&'a Spread, i64)>,
    /// Nobody matches yet, but the pod itself does.
    first_of_its_kind: bool,
}

/// Pods of one node that are thought away, by tally.
#[derive(Debug, Clone)]
pub(crate) struct Without(Vec<i32>);

impl Verdict<'_> {
    /// Nobody thought away yet.
    pub(crate) fn with_all(&self) -> Without {
        Without(vec![0; self.relations.tallies.len()])
    }

    /// Thinks a pod of a node away, or back.
    pub(crate) fn take(&self, view: &ClusterView, without: &mut Without, class: &Class, leaving: bool, away: bool) {
        for share in self.relations.shares(view, class).iter().filter(|share| !(share.live && leaving)) {
            let weight = if away { share.weight } else { -share.weight };
            without.0[share.tally] = without.0[share.tally].wrapping_add(weight);
        }
    }

    /// Whether the node is in the right domains.
    pub(crate) fn check(&self, slot: usize, without: Option<&Without>) -> Result<(), Reason> {
        let Relations { tallies, affinity, anti_affinity, refused, .. } = self.relations;
        let count = |tally: usize| {
            let counted = tallies[tally].at(slot)?;
            let away = without.filter(|_| tallies[tally].counts_on(slot)).map_or(0, |without| without.0[tally]);
            Some(counted.wrapping_sub(away))
        };
        for (spread, least) in &self.hard {
            let Some(pods) = count(spread.tally).map(i64::from) else { return Err(Reason::SpreadLabel) };
            // It may be the emptiest one then.
            let least = if without.is_some() { pods.min(*least) } else { *least };
            if pods + spread.itself - least > spread.max_skew {
                return Err(Reason::Spread);
            }
        }
        for tally in affinity {
            match count(*tally) {
                Some(pods) if pods > 0 || self.first_of_its_kind => {}
                _ => return Err(Reason::Affinity),
            }
        }
        if anti_affinity.iter().any(|tally| count(*tally).is_some_and(|pods| pods > 0)) {
            return Err(Reason::AntiAffinity);
        }
        if refused.values().any(|tally| count(*tally).is_some_and(|pods| pods > 0)) {
            return Err(Reason::ExistingAntiAffinity);
        }
        Ok(())
    }

    /// How much the pods around a node draw to it, or keep off.
    pub(crate) fn pull(&self, slot: usize) -> i64 {
        let Relations { tallies, preferred, drawn, .. } = self.relations;
        let count = |tally: usize| i64::from(tallies[tally].at(slot).unwrap_or(0));
        // Own terms carry their weight in the count, too.
        preferred.iter().map(|(_, tally)| count(*tally)).sum::<i64>()
            + drawn.values().map(|tally| count(*tally)).sum::<i64>()
    }

    /// 0 to 100 for each of the nodes that can take the pod, by how evenly it would be spread; `None` where nothing is asked.
    pub(crate) fn evenness(&self, slots: &[u32]) -> Option<Vec<i64>> {
        let Relations { tallies, spread, is_default, .. } = self.relations;
        let soft: Vec<&Spread> = spread.iter().filter(|spread| !spread.hard).collect();
        if soft.is_empty() {
            return None;
        }
        // A pod's own constraints ignore nodes without their keys; the default ones take what there is.
        let ignored =
            |slot: usize| !is_default && soft.iter().any(|spread| tallies[spread.tally].domains.of(slot).is_none());
        let heard: Vec<bool> = slots.iter().map(|slot| !ignored(*slot as usize)).collect();
        let count = heard.iter().filter(|heard| **heard).count();
        let weights: Vec<f64> = soft
            .iter()
            .map(|spread| {
                let domains = &tallies[spread.tally].domains;
                let size = if spread.is_host {
                    count
                } else {
                    let mut met = vec![false; domains.len()];
                    let all = slots.iter().zip(&heard).filter(|(_, heard)| **heard);
                    all.filter_map(|(slot, _)| domains.of(*slot as usize)).for_each(|domain| met[domain] = true);
                    met.iter().filter(|met| **met).count()
                };
                (size as f64 + 2.0).ln()
            })
            .collect();
        let mut raw: Vec<i64> = Vec::with_capacity(slots.len());
        let (mut least, mut most) = (i64::MAX, i64::MIN);
        for (slot, heard) in slots.iter().zip(&heard) {
            let mut sum = 0.0;
            for (spread, weight) in soft.iter().zip(&weights) {
                if let Some(pods) = tallies[spread.tally].at(*slot as usize) {
                    sum += f64::from(pods) * weight + (spread.max_skew - 1) as f64;
                }
            }
            let sum = sum.round() as i64;
            if *heard {
                (least, most) = (least.min(sum), most.max(sum));
            }
            raw.push(sum);
        }
        let score = |(sum, heard): (i64, bool)| match heard {
            false => 0,
            true if most <= 0 => 100,
            true => 100 * (most + least - sum) / most,
        };
        Some(raw.into_iter().zip(heard).map(score).collect())
    }
}
