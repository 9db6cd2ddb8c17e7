//! Which nodes can take a pod, and why others cannot, in the reference's words.

use std::borrow::Cow;

use coracle_api::meta::taint;

use crate::class::{Class, Shape};
use crate::relations::Verdict;
use crate::resources::Amount;
use crate::view::{Load, NodeState};
use crate::wire::{Labels, NodeTerm, Taint, Toleration};

/// Why a node cannot take a pod.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Reason {
    Unschedulable,
    Taint,
    NodeAffinity,
    Ports,
    TooManyPods,
    /// The resource, and whether it would be too little on an empty node as well.
    Insufficient(Cow<'static, str>, bool),
    /// A claim is another pod's alone.
    VolumeInUse,
    /// A claim is bound to a volume that is not there.
    VolumeGone,
    VolumeElsewhere,
    /// There is no volume for a claim, and none can be made.
    NoVolume,
    Spread,
    SpreadLabel,
    ExistingAntiAffinity,
    Affinity,
    AntiAffinity,
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Unschedulable => "node(s) were unschedulable",
            Self::Taint => "node(s) had untolerated taint(s)",
            Self::NodeAffinity => "node(s) didn't match Pod's node affinity/selector",
            Self::Ports => "node(s) didn't have free ports for the requested pod ports",
            Self::TooManyPods => "Too many pods",
            Self::Insufficient(resource, _) => return write!(f, "Insufficient {resource}"),
            Self::VolumeInUse => {
                "node(s) unavailable due to PersistentVolumeClaim with ReadWriteOncePod access mode already in-use by another pod"
            }
            Self::VolumeGone => "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)",
            Self::VolumeElsewhere => "node(s) didn't match PersistentVolume's node affinity",
            Self::NoVolume => "node(s) didn't find available persistent volumes to bind",
            Self::Spread => "node(s) didn't match pod topology spread constraints",
            Self::SpreadLabel => "node(s) didn't match pod topology spread constraints (missing required label)",
            Self::ExistingAntiAffinity => "node(s) didn't satisfy existing pods anti-affinity rules",
            Self::Affinity => "node(s) didn't match pod affinity rules",
            Self::AntiAffinity => "node(s) didn't match pod anti-affinity rules",
        })
    }
}

impl Reason {
    /// Whether removing pods from the node could help.
    pub(crate) fn is_resolvable(&self) -> bool {
        !matches!(
            self,
            Self::Unschedulable
                | Self::Taint
                | Self::NodeAffinity
                | Self::Affinity
                | Self::SpreadLabel
                | Self::VolumeGone
                | Self::VolumeElsewhere
                | Self::NoVolume
                | Self::Insufficient(_, true)
        )
    }
}

/// What a node is, which volumes it has, and whether they are in use: valid while it does not change, whatever runs on it, for
/// who uses the volumes of a pod is part of its shape.
pub(crate) fn fixed(class: &Shape, node: &NodeState) -> Result<(), Reason> {
    let unschedulable = || Taint {
        key: "node.kubernetes.io/unschedulable".to_owned(),
        value: String::new(),
        effect: "NoSchedule".to_owned(),
    };
    if node.unschedulable && !tolerated(&class.tolerations, &unschedulable()) {
        return Err(Reason::Unschedulable);
    }
    let mut hard = node.taints.iter().filter(|taint| matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute"));
    if hard.any(|taint| !tolerated(&class.tolerations, taint)) {
        return Err(Reason::Taint);
    }
    if !matches_affinity(class, node) {
        return Err(Reason::NodeAffinity);
    }
    // The reference looks for room before.
    class.volumes.check(node)
}

/// Whether node selector and required node affinity hold.
pub(crate) fn matches_affinity(class: &Shape, node: &NodeState) -> bool {
    class.node_selector.iter().all(|(key, value)| node.labels.get(key) == Some(value))
        && class.node_affinity.required.as_ref().is_none_or(|required| {
            required.node_selector_terms.iter().any(|term| matches_term(term, &node.labels, &node.name))
        })
}

/// Whether the term holds; an empty one never does.
pub(crate) fn matches_term(term: &NodeTerm, labels: &Labels, name: &str) -> bool {
    if term.match_expressions.is_empty() && term.match_fields.is_empty() {
        return false;
    }
    let name = name.to_owned();
    term.match_expressions.iter().all(|requirement| requirement.holds(labels.get(&requirement.key)))
        && term
            .match_fields
            .iter()
            .all(|requirement| requirement.holds((requirement.key == "metadata.name").then_some(&name)))
}

/// Whether one of the tolerations matches the taint.
pub(crate) fn tolerated(tolerations: &[Toleration], taint: &Taint) -> bool {
    let taint = taint::Taint { key: &taint.key, value: &taint.value, effect: &taint.effect };
    tolerations.iter().any(|Toleration { key, operator, value, effect }| {
        taint::Toleration { key, operator, value, effect }.tolerates(taint)
    })
}

/// What is taken of a node for a pod of this shape: pods of the same or higher priority that wait for this node count as if
/// they were there, but for the pod itself (the reference does the same).
pub(crate) fn with_reservations(shape: &Shape, node: &NodeState, uid: Option<&str>) -> Load {
    let mut load = node.load.clone();
    reservations(shape, node, uid).for_each(|other| load.add(other));
    load
}

fn reservations<'a>(shape: &'a Shape, node: &'a NodeState, uid: Option<&'a str>) -> impl Iterator<Item = &'a Shape> {
    let others = node.nominated.iter().filter(move |(other, _)| uid != Some(&**other));
    others.map(|(_, class)| &***class).filter(|class: &&Shape| class.priority >= shape.priority)
}

/// What is left of a node for the pod: ports and resources. All shortages are named.
pub(crate) fn room(shape: &Shape, node: &NodeState, uid: Option<&str>) -> Result<(), Vec<Reason>> {
    if reservations(shape, node, uid).next().is_some() {
        return fits(shape, node, &with_reservations(shape, node, uid));
    }
    fits(shape, node, &node.load)
}

/// The same for a pod of the shape that is none of those that wait for the node, without the reasons.
pub(crate) fn has_room(shape: &Shape, node: &NodeState) -> bool {
    let mut short = false;
    let mut note = |_: Shortage| short = true;
    if reservations(shape, node, None).next().is_some() {
        shortages(shape, node, &with_reservations(shape, node, None), &mut note);
    } else {
        shortages(shape, node, &node.load, &mut note);
    }
    !short
}

/// Whether a pod of this shape fits on the node when so much of it is taken.
pub(crate) fn fits(class: &Shape, node: &NodeState, load: &Load) -> Result<(), Vec<Reason>> {
    let mut reasons = Vec::new();
    shortages(class, node, load, &mut |shortage| {
        reasons.push(match shortage {
            Shortage::Ports => Reason::Ports,
            Shortage::Pods => Reason::TooManyPods,
            Shortage::Resource(name, always) => Reason::Insufficient(name, always),
        });
    });
    if reasons.is_empty() { Ok(()) } else { Err(reasons) }
}

/// What a node has too little of.
enum Shortage {
    Ports,
    Pods,
    /// Which, and whether an empty node would have too little as well.
    Resource(Cow<'static, str>, bool),
}

fn shortages(class: &Shape, node: &NodeState, load: &Load, note: &mut dyn FnMut(Shortage)) {
    if class.ports.iter().any(|port| load.ports.conflict(port)) {
        return note(Shortage::Ports);
    }
    if load.count >= node.pods_max {
        note(Shortage::Pods);
    }
    let (wanted, all, used) = (&class.requests.exact, &node.allocatable, &load.used);
    let mut check = |name: &dyn Fn() -> Cow<'static, str>, wanted: Amount, all: Amount, used: Amount| {
        if wanted > 0 && wanted > all - used {
            note(Shortage::Resource(name(), wanted > all));
        }
    };
    check(&|| "cpu".into(), wanted.cpu, all.cpu, used.cpu);
    check(&|| "memory".into(), wanted.memory, all.memory, used.memory);
    check(&|| "ephemeral-storage".into(), wanted.ephemeral, all.ephemeral, used.ephemeral);
    for (name, wanted) in &wanted.extended {
        check(&|| name.to_string().into(), *wanted, all.extended(name), used.extended(name));
    }
}

/// Everything; the first thing that fails is what is reported.
pub(crate) fn all(
    class: &Class,
    (slot, node): (usize, &NodeState),
    verdict: Option<&Verdict<'_>>,
    uid: Option<&str>,
) -> Result<(), Vec<Reason>> {
    fixed(class, node).map_err(|reason| vec![reason])?;
    room(class, node, uid)?;
    match verdict {
        Some(verdict) => verdict.check(slot, None).map_err(|reason| vec![reason]),
        None => Ok(()),
    }
}
