//! The core: `(view, pod) → decision`. No I/O, no clock.
//!
//! Pods of one shape find the same nodes good and fitting, so that is kept per shape, a number a node ([`Base`]); a placement
//! changes one node's. What differs between classes of one shape is what other pods mean for them ([`Relations`]), kept per
//! class. A decision goes once over all nodes, with two or three numbers for each: at 5,000 nodes tens of microseconds.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::class::{Class, Shape};
use crate::domains::Topologies;
use crate::filter::{self, Reason};
use crate::preempt::{self, Preemption, Refusal};
use crate::relations::{Relations, Verdict};
use crate::score;
use crate::view::{ClusterView, Uid};

/// Nodes that are kept for all shapes together (about 30 MB), with what the shapes weigh; beyond it the shape that was not
/// asked for longest is forgotten.
const BASE_CELLS_MAX: usize = 1 << 20;
/// Shapes that are kept.
const BASES_MAX: usize = 4096;
/// Counts that are kept for all classes together (16 MB); beyond it the class that was not asked for longest is forgotten.
const RELATION_CELLS_MAX: usize = 1 << 22;
/// Classes whose relations are kept.
const RELATIONS_MAX: usize = 1024;
/// The rank of a node that cannot take a pod.
const UNFIT: i64 = i64::MIN;
/// A rank is a score and, among equals, the fewest pods.
const COUNT_BITS: u32 = 20;

/// What becomes of a pod.
#[derive(Debug, Clone)]
pub(crate) enum Decision {
    /// It goes to this node.
    Bind(Arc<str>),
    /// No node can take it.
    Unschedulable(Arc<Diagnosis>),
}

/// Why no node can take a pod.
#[derive(Debug, Default)]
pub(crate) struct Diagnosis {
    /// For condition and event.
    pub message: String,
    pub reasons: Vec<Reason>,
    /// How room can be made.
    pub preemption: Option<Preemption>,
    /// Room is being made already, where the pod is expected.
    pub waits: bool,
}

impl Diagnosis {
    /// Whether it holds for all pods of the class, and until something changes: only one pod preempts at a time.
    fn is_shared(&self) -> bool {
        self.preemption.is_none() && !self.waits
    }
}

/// Decides, remembering what pods have in common.
#[derive(Debug, Default)]
pub(crate) struct Decider {
    bases: HashMap<Arc<Shape>, Base>,
    base_cells: usize,
    /// By the address of the class, which they keep.
    relations: HashMap<usize, Relations>,
    relation_cells: usize,
    topologies: Topologies,
    /// Counts decisions, to know what was not asked for longest.
    clock: u64,
    /// How often all nodes were looked at for a shape.
    pub built: u64,
    /// How often all pods were counted for a class.
    pub counted: u64,
    fit: Fit,
}

/// Nodes that can take the pod at hand; kept for its memory.
#[derive(Debug, Default)]
struct Fit {
    slots: Vec<u32>,
    ranks: Vec<i64>,
    pulls: Vec<i64>,
}

/// How good each node is for pods of a shape, by what it is and what is left of it.
#[derive(Debug)]
struct Base {
    touched: u64,
    used: u64,
    /// By slot.
    ranks: Vec<i64>,
    /// By slot: which state of the node was looked at, and whether it lets such pods in at all.
    admitted: Vec<(u64, bool)>,
    /// By slot: how much it is preferred, and disliked; empty while no node is either.
    wishes: Vec<(i64, i64)>,
    /// Why no node can take them, and at which epoch and after how much freed room that holds.
    diagnosis: Option<((u64, u64), Arc<Diagnosis>)>,
}

impl Decider {
    /// Where the pod goes. Nothing is placed: that is the caller's to do.
    pub(crate) fn decide(&mut self, view: &ClusterView, uid: &Uid, class: &Arc<Class>) -> Decision {
        self.clock += 1;
        if let Some(why) = &class.volumes.blocked {
            return blocked(view, why);
        }
        if let Some(node) = class.shape.only_node() {
            return self.decide_for(view, uid, class, node);
        }
        self.look(view, &class.shape);
        self.relate(view, class);
        let address = Arc::as_ptr(class).addr();
        let relations = self.relations.get(&address).filter(|relations| !relations.is_idle());
        let verdict = relations.map(Relations::verdict);
        // A pod for which room was made goes there if it can.
        if let Some(slot) = view.nomination(uid).and_then(|node| view.slot(node))
            && let Some(node) = view.node(slot)
            && filter::all(class, (slot, node), verdict.as_ref(), Some(uid)).is_ok()
        {
            return Decision::Bind(node.name.clone());
        }
        let Some(base) = self.bases.get_mut(&class.shape) else { return unschedulable(view, uid, class, None) };
        let best = match &verdict {
            Some(verdict) => base.best_of(verdict, &mut self.fit),
            None => base.best(),
        };
        if let Some(node) = best.and_then(|slot| view.node(slot)) {
            return Decision::Bind(node.name.clone());
        }
        // All pods of the class, or of the shape, hear the same.
        let now = (view.epoch(), view.freed());
        let known = match relations {
            Some(relations) => relations.diagnosis.as_ref().filter(|(at, _)| *at == view.version()).map(|(_, it)| it),
            None => base.diagnosis.as_ref().filter(|(at, _)| *at == now).map(|(_, it)| it),
        };
        if let Some(diagnosis) = known {
            return Decision::Unschedulable(diagnosis.clone());
        }
        let is_related = verdict.is_some();
        let decision = unschedulable(view, uid, class, verdict.as_ref());
        if let Decision::Unschedulable(diagnosis) = &decision
            && diagnosis.is_shared()
        {
            match self.relations.get_mut(&address) {
                Some(relations) if is_related => relations.diagnosis = Some((view.version(), diagnosis.clone())),
                _ => base.diagnosis = Some((now, diagnosis.clone())),
            }
        }
        decision
    }

    /// The same for a pod that may have one node only: what is known of the others is not asked for.
    fn decide_for(&mut self, view: &ClusterView, uid: &Uid, class: &Arc<Class>, node: &str) -> Decision {
        self.relate(view, class);
        let relations = self.relations.get(&Arc::as_ptr(class).addr()).filter(|relations| !relations.is_idle());
        let verdict = relations.map(Relations::verdict);
        let there = view.slot(node).and_then(|slot| Some((slot, view.node(slot)?)));
        match there {
            Some((slot, node)) if filter::all(class, (slot, node), verdict.as_ref(), Some(uid)).is_ok() => {
                Decision::Bind(node.name.clone())
            }
            _ => unschedulable(view, uid, class, verdict.as_ref()),
        }
    }

    /// Brings what is known of the shape up to date.
    fn look(&mut self, view: &ClusterView, shape: &Arc<Shape>) {
        if let Some(base) = self.bases.get_mut(shape) {
            base.used = self.clock;
            let before = base.ranks.len();
            self.built += u64::from(base.catch_up(view, shape));
            self.base_cells += base.ranks.len() - before;
            return;
        }
        let mut base =
            Base { touched: 0, used: self.clock, ranks: vec![], admitted: vec![], wishes: vec![], diagnosis: None };
        base.look_at_all(view, shape);
        self.built += 1;
        self.base_cells += base.ranks.len() + shape.weight;
        self.bases.insert(shape.clone(), base);
        while self.bases.len() > BASES_MAX || (self.base_cells > BASE_CELLS_MAX && self.bases.len() > 1) {
            let oldest = self.bases.iter().min_by_key(|(_, base)| base.used).map(|(shape, _)| shape.clone());
            let Some((shape, base)) = oldest.and_then(|oldest| self.bases.remove_entry(&oldest)) else { return };
            self.base_cells -= base.ranks.len() + shape.weight;
        }
    }

    /// Brings what other pods mean for the class up to date.
    fn relate(&mut self, view: &ClusterView, class: &Arc<Class>) {
        if self.topologies.follow(view) {
            self.relations.clear();
            self.relation_cells = 0;
        }
        let address = Arc::as_ptr(class).addr();
        if let Some(known) = self.relations.get_mut(&address) {
            known.used = self.clock;
            let before = known.cells();
            if known.catch_up(view, &mut self.topologies) {
                self.relation_cells += known.cells() - before;
                return;
            }
            self.relations.remove(&address);
            self.relation_cells -= before;
        }
        if !Relations::may_matter(view, class) {
            return;
        }
        let mut made = Relations::new(view, class, &mut self.topologies);
        self.counted += 1;
        made.used = self.clock;
        self.relation_cells += made.cells();
        self.relations.insert(address, made);
        while self.relations.len() > RELATIONS_MAX
            || (self.relation_cells > RELATION_CELLS_MAX && self.relations.len() > 1)
        {
            let oldest = self.relations.iter().min_by_key(|(_, relations)| relations.used).map(|(address, _)| *address);
            let Some(gone) = oldest.and_then(|oldest| self.relations.remove(&oldest)) else { return };
            self.relation_cells -= gone.cells();
        }
    }
}

impl Base {
    /// Looks at the nodes that have changed; returns whether that was all of them.
    fn catch_up(&mut self, view: &ClusterView, shape: &Shape) -> bool {
        let behind = view.touched() - self.touched;
        let Some(touched) = view.touched_since(self.touched).filter(|_| behind <= view.slots() as u64) else {
            self.look_at_all(view, shape);
            return true;
        };
        for slot in touched {
            self.look_at(view, shape, slot);
        }
        self.touched = view.touched();
        false
    }

    fn look_at_all(&mut self, view: &ClusterView, shape: &Shape) {
        for slot in 0..view.slots() {
            self.look_at(view, shape, slot);
        }
        self.touched = view.touched();
    }

    fn look_at(&mut self, view: &ClusterView, shape: &Shape, slot: usize) {
        if slot >= self.ranks.len() {
            self.ranks.resize(slot + 1, UNFIT);
            self.admitted.resize(slot + 1, (0, false));
            if !self.wishes.is_empty() {
                self.wishes.resize(slot + 1, (0, 0));
            }
        }
        let Some(node) = view.node(slot) else {
            self.ranks[slot] = UNFIT;
            return;
        };
        if self.admitted[slot].0 != node.revision {
            self.admitted[slot] = (node.revision, filter::fixed(shape, node).is_ok());
            let wishes = (score::preferred(shape, node), score::disliked(shape, node));
            if wishes != (0, 0) && self.wishes.is_empty() {
                self.wishes = vec![(0, 0); self.ranks.len()];
            }
            if let Some(known) = self.wishes.get_mut(slot) {
                *known = wishes;
            }
        }
        self.ranks[slot] = match self.admitted[slot].1 && filter::has_room(shape, node) {
            true => (score::moving(shape, node) << COUNT_BITS) - node.load.count.min(1 << (COUNT_BITS - 1)),
            false => UNFIT,
        };
    }

    /// Of the nodes in `slots`, the parts of their ranks that wishes make, against the most of any of them.
    fn wished(&self, slots: impl Iterator<Item = usize> + Clone) -> impl Fn(usize) -> i64 {
        let of = |slot: usize| self.wishes.get(slot).copied().unwrap_or_default();
        let (preferred, disliked) = match self.wishes.is_empty() {
            true => (0, 0),
            false => slots.map(of).fold((0, 0), |most, it| (most.0.max(it.0), most.1.max(it.1))),
        };
        move |slot| {
            let it = of(slot);
            score::fixed(it.0, preferred, it.1, disliked) << COUNT_BITS
        }
    }

    fn fitting(&self) -> impl Iterator<Item = usize> + Clone {
        self.ranks.iter().enumerate().filter(|(_, rank)| **rank != UNFIT).map(|(slot, _)| slot)
    }

    /// The best node, the earlier among equals.
    fn best(&self) -> Option<usize> {
        let wished = self.wished(self.fitting());
        if self.wishes.is_empty() {
            let best = self.ranks.iter().enumerate().max_by_key(|(slot, rank)| (**rank, Reverse(*slot)));
            return best.filter(|(_, rank)| **rank != UNFIT).map(|(slot, _)| slot);
        }
        self.fitting().max_by_key(|slot| (self.ranks[*slot] + wished(*slot), Reverse(*slot)))
    }

    /// The best node where other pods matter.
    fn best_of(&self, verdict: &Verdict<'_>, fit: &mut Fit) -> Option<usize> {
        let Fit { slots, ranks, pulls } = fit;
        slots.clear();
        slots.extend(self.fitting().filter(|slot| verdict.check(*slot, None).is_ok()).map(|slot| slot as u32));
        let wished = self.wished(slots.iter().map(|slot| *slot as usize));
        ranks.clear();
        ranks.extend(slots.iter().map(|slot| self.ranks[*slot as usize] + wished(*slot as usize)));
        pulls.clear();
        pulls.extend(slots.iter().map(|slot| verdict.pull(*slot as usize)));
        let (least, most) =
            pulls.iter().fold((i64::MAX, i64::MIN), |(least, most), it| (least.min(*it), most.max(*it)));
        if most > least {
            for (rank, pull) in ranks.iter_mut().zip(pulls.iter()) {
                *rank += (score::COMPANY_WEIGHT * 100 * (pull - least) / (most - least)) << COUNT_BITS;
            }
        }
        for (rank, even) in ranks.iter_mut().zip(verdict.evenness(slots).into_iter().flatten()) {
            *rank += (score::SPREAD_WEIGHT * even) << COUNT_BITS;
        }
        let best = ranks.iter().enumerate().max_by_key(|(index, rank)| (**rank, Reverse(*index)));
        best.map(|(index, _)| slots[index] as usize)
    }
}

/// No node is looked at for such a pod: its volumes keep it from all.
fn blocked(view: &ClusterView, why: &str) -> Decision {
    let nodes = view.len();
    let helpless = BTreeMap::from([("Preemption is not helpful for scheduling".to_owned(), nodes)]);
    let message = format!("0/{nodes} nodes are available: {why}. preemption: {}", available(nodes, &helpless));
    let reasons = vec![Reason::NoVolume];
    Decision::Unschedulable(Arc::new(Diagnosis { message, reasons, ..Diagnosis::default() }))
}

fn unschedulable(view: &ClusterView, uid: &Uid, class: &Arc<Class>, verdict: Option<&Verdict<'_>>) -> Decision {
    if view.len() == 0 {
        let message = "no nodes available to schedule pods".to_owned();
        let diagnosis = Diagnosis { message, ..Diagnosis::default() };
        return Decision::Unschedulable(Arc::new(diagnosis));
    }
    let mut failures: Vec<(usize, Vec<Reason>)> = Vec::with_capacity(view.len());
    let mut counts: BTreeMap<Reason, usize> = BTreeMap::new();
    let only = class.shape.only_node().map(|name| view.slot(name).and_then(|slot| Some((slot, view.node(slot)?))));
    let all = only.is_none().then(|| view.nodes()).into_iter().flatten();
    for (slot, node) in only.flatten().into_iter().chain(all) {
        if let Err(reasons) = filter::all(class, (slot, node), verdict, Some(uid)) {
            for reason in &reasons {
                match counts.get_mut(reason) {
                    Some(count) => *count += 1,
                    None => drop(counts.insert(reason.clone(), 1)),
                }
            }
            failures.push((slot, reasons));
        }
    }
    // Reasons that differ in what can be done about them have the same words.
    let mut words: BTreeMap<String, usize> = BTreeMap::new();
    for (reason, count) in &counts {
        *words.entry(reason.to_string()).or_default() += count;
    }
    if only.is_some() && view.len() > failures.len() {
        words.insert("node(s) didn't satisfy plugin(s) [NodeAffinity]".to_owned(), view.len() - failures.len());
    }
    let mut message = available(view.len(), &words);
    if counts.contains_key(&Reason::VolumeElsewhere) {
        message.push_str(&class.volumes.whereabouts(view));
    }
    let mut reasons: Vec<Reason> = counts.into_keys().collect();
    if reasons.is_empty() {
        // Its node is not there.
        reasons.push(Reason::NodeAffinity);
    }
    let mut waits = false;
    let preemption = match preempt::find(view, uid, class, verdict, &failures) {
        Ok(preemption) => {
            let Preemption { node, victims } = &preemption;
            let count = victims.len();
            message.push_str(&format!(
                " preemption: found a potential placement for pod on node {node}, preempting {count} victims"
            ));
            Some(preemption)
        }
        Err(refusal) => {
            waits = matches!(refusal, Refusal::Waits(_));
            let (Refusal::Waits(words) | Refusal::Cannot(words)) = refusal;
            message.push_str(" preemption: ");
            message.push_str(&words);
            None
        }
    };
    Decision::Unschedulable(Arc::new(Diagnosis { message, reasons, preemption, waits }))
}

/// `0/3 nodes are available: 1 Insufficient cpu, 2 node(s) had untolerated taint(s).`
pub(crate) fn available(nodes: usize, reasons: &BTreeMap<String, usize>) -> String {
    let mut counted: Vec<String> = reasons.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    counted.sort();
    let text = format!("0/{nodes} nodes are available:");
    if counted.is_empty() { text } else { format!("{text} {}.", counted.join(", ")) }
}
