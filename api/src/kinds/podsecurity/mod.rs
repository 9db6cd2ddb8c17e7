//! The Pod Security Standards: what the labels of a namespace ask of its pods, and what a pod does not keep to
//! (`k8s.io/pod-security-admission`).
//!
//! Much of it has no meaning in a sandbox that has no users, no kernel and no host of its own. It is checked all the same:
//! what is refused in another cluster is refused here.

mod checks;
mod policy;
#[cfg(test)]
mod tests;

use serde_json::Value;

use super::value::Read;
use checks::CHECKS;
pub use policy::{Level, Mode, Policy, Standard, Version};

/// The newest version that changed a check; later ones mean the same.
const NEWEST: u32 = 37;

/// Something that a level forbids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// In a word or two: `hostPort`.
    pub reason: String,
    /// Where, and what: `container "a" uses hostPort 80`.
    pub detail: String,
}

/// What is checked: the metadata of a pod or of a template, and its spec.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// Annotations are looked at.
    pub metadata: &'a Value,
    /// The pod's spec.
    pub spec: &'a Value,
}

impl<'a> Subject<'a> {
    /// The pod, or the template of the pods that an object of another kind makes; `None` when the kind or the object has none.
    pub fn of(group: &str, resource: &str, object: &'a Value) -> Option<Subject<'a>> {
        let holder = match (group, resource) {
            ("", "pods") => object,
            ("", "podtemplates") => &object["template"],
            ("", "replicationcontrollers")
            | ("apps", "replicasets" | "deployments" | "statefulsets" | "daemonsets")
            | ("batch", "jobs") => &object["spec"]["template"],
            ("batch", "cronjobs") => &object["spec"]["jobTemplate"]["spec"]["template"],
            _ => return None,
        };
        holder.is_object().then(|| Subject { metadata: &holder["metadata"], spec: &holder["spec"] })
    }
}

/// What a standard forbids of it, in the reference's order.
pub fn violations(standard: Standard, subject: Subject<'_>) -> Vec<Violation> {
    let version = match standard.version {
        Version::Latest => NEWEST,
        Version::Minor(minor) => minor.min(NEWEST),
    };
    let is_overridden = |id: &str| {
        let mut stricter = CHECKS.iter().filter(|check| check.level == Level::Restricted);
        stricter.any(|check| check.overrides == Some(id) && check.at(version).is_some())
    };
    let applies = |check: &&checks::Check| match (standard.level, check.level) {
        (Level::Privileged, _) | (Level::Baseline, Level::Restricted) => false,
        (Level::Restricted, Level::Baseline) => !is_overridden(check.id),
        _ => true,
    };
    let found = CHECKS.iter().filter(applies).filter_map(|check| check.at(version)?(subject));
    found.collect()
}

/// The violations with their details, as one text.
pub fn details(violations: &[Violation]) -> String {
    let shown = violations.iter().map(|violation| match violation.detail.as_str() {
        "" => violation.reason.clone(),
        detail => format!("{} ({detail})", violation.reason),
    });
    shown.collect::<Vec<_>>().join(", ")
}

/// Their reasons alone.
pub fn reasons(violations: &[Violation]) -> String {
    violations.iter().map(|violation| violation.reason.as_str()).collect::<Vec<_>>().join(", ")
}

/// Whether a change of a pod can make it violate what it did not: images, containers and profiles in annotations, of all that can
/// be changed.
pub fn is_significant(pod: &Value, old: &Value) -> bool {
    let (annotations, old_annotations) = (&pod["metadata"]["annotations"], &old["metadata"]["annotations"]);
    let is_profiled_anew = |name: &str| annotations.get(name) != old_annotations.get(name);
    let (spec, before) = (&pod["spec"], &old["spec"]);
    let differs = |now: &Value, before: &Value| {
        now["image"] != before["image"] || is_profiled_anew(&checks::seccomp_annotation(now["name"].text()))
    };
    let differ = |list: &str| {
        let (now, before) = (spec[list].items(), before[list].items());
        now.len() != before.len() || now.iter().zip(before).any(|(now, before)| differs(now, before))
    };
    let is_new = |container: &Value| {
        let known = before["ephemeralContainers"].items().iter().find(|known| known["name"] == container["name"]);
        known.is_none_or(|known| differs(container, known))
    };
    is_profiled_anew(checks::SECCOMP_OF_POD)
        || differ("containers")
        || differ("initContainers")
        || spec["ephemeralContainers"].items().iter().any(is_new)
}
