//! Who has which names: a definition asks for some, and has those that no other of its group has. Then it is established.
//!
//! Rules: the naming, establishing and approval controllers of apiextensions-apiserver. Pure; who writes what is decided here
//! is the API server.

use std::collections::HashSet;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::definition::{Definition, ESTABLISHED, NAMES_ACCEPTED, Names, TERMINATING};
use crate::meta::{self, condition};

/// The condition that says whether a group of Kubernetes' own was reviewed.
const APPROVAL: &str = "KubernetesAPIApprovalPolicyConformant";
/// The annotation by which a group of Kubernetes' own says that its API was reviewed.
pub(crate) const APPROVED: &str = "api-approved.kubernetes.io";

/// What a definition is to become, when that is something else than it is: its status with names and conditions. `others` are
/// all definitions of the same group.
#[must_use]
pub fn settled<'a>(
    object: &Value,
    definition: &Definition,
    others: impl Iterator<Item = &'a Definition>,
    now: Timestamp,
) -> Option<Value> {
    let mut settled = object.clone();
    if definition.asked != definition.names || condition::get(object, NAMES_ACCEPTED).is_none() {
        let others = others.filter(|other| other.name != definition.name && other.group == definition.group);
        let (names, conflict) = accepted(definition, others);
        settled["status"]["acceptedNames"] = names.write();
        let mut set =
            |kind, status, reason, message: &str| set_condition(&mut settled, kind, status, reason, message, now);
        match &conflict {
            None => set(NAMES_ACCEPTED, "True", "NoConflicts", "no conflicts found"),
            Some((reason, message)) => set(NAMES_ACCEPTED, "False", reason, message),
        }
        if conflict.is_some() && condition::get(object, ESTABLISHED).is_none() {
            set(ESTABLISHED, "False", "NotAccepted", "not all names are accepted");
        }
    }
    if condition::is_true(&settled, NAMES_ACCEPTED) && !condition::is_true(&settled, ESTABLISHED) {
        let message = "the initial names have been accepted";
        set_condition(&mut settled, ESTABLISHED, "True", "InitialNamesAccepted", message, now);
    }
    if is_protected(&definition.group) {
        let (status, reason, message) = told_of_approval(object);
        set_condition(&mut settled, APPROVAL, status, reason, &message, now);
    }
    (settled != *object).then_some(settled)
}

/// What is to be said of the approval of a definition.
fn told_of_approval(object: &Value) -> (&'static str, &'static str, String) {
    match approval(object) {
        Approval::Given(message) => ("True", "ApprovedAnnotation", message),
        Approval::Bypassed(message) => ("False", "UnapprovedAnnotation", message),
        Approval::Missing(message) => ("False", "MissingAnnotation", message),
        Approval::Invalid(message) => ("False", "InvalidAnnotation", message),
    }
}

/// Whether that is said, where it is to be.
pub(super) fn is_approval_told(object: &Value, group: &str) -> bool {
    if !is_protected(group) {
        return true;
    }
    let (_, reason, message) = told_of_approval(object);
    condition::get(object, APPROVAL).is_some_and(|told| told["reason"] == reason && told["message"] == message.as_str())
}

/// Marks a definition as going: its objects go first.
pub fn terminate(object: &mut Value, now: Timestamp) {
    let message = "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon";
    set_condition(object, TERMINATING, "True", "InstanceDeletionPending", message, now);
}

/// Says how far the deletion of a definition's objects is.
pub fn set_terminating(object: &mut Value, status: &str, reason: &str, message: &str, now: Timestamp) {
    set_condition(object, TERMINATING, status, reason, message, now);
}

fn set_condition(object: &mut Value, kind: &str, status: &str, reason: &str, message: &str, now: Timestamp) {
    if !object["status"]["conditions"].is_array() {
        object["status"]["conditions"] = json!([]);
    }
    if let Some(conditions) = object["status"]["conditions"].as_array_mut() {
        condition::set(conditions, kind, status, reason, message, now);
    }
}

/// The names that it has then, and why not all.
fn accepted<'a>(
    definition: &Definition,
    others: impl Iterator<Item = &'a Definition>,
) -> (Names, Option<(&'static str, String)>) {
    let (mut resources, mut kinds): (HashSet<&str>, HashSet<&str>) = (HashSet::new(), HashSet::new());
    for other in others {
        let names = &other.names;
        resources.extend([names.plural.as_str(), &names.singular]);
        resources.extend(names.short_names.iter().map(String::as_str));
        kinds.extend([names.kind.as_str(), &names.list_kind]);
    }
    let (asked, has) = (&definition.asked, &definition.names);
    let mut names = has.clone();
    let mut conflict = None;
    let in_use = |name: &str, has: &str, used: &HashSet<&str>| {
        (name != has && used.contains(name)).then(|| format!("{} is already in use", meta::text::quote(name)))
    };
    let mut take =
        |name: &String, place: &mut String, used: &HashSet<&str>, reason: &'static str| match in_use(name, place, used)
        {
            Some(message) => conflict = Some((reason, message)),
            None => place.clone_from(name),
        };
    take(&asked.plural, &mut names.plural, &resources, "PluralConflict");
    take(&asked.singular, &mut names.singular, &resources, "SingularConflict");
    take(&asked.kind, &mut names.kind, &kinds, "KindConflict");
    take(&asked.list_kind, &mut names.list_kind, &kinds, "ListKindConflict");
    if asked.short_names != has.short_names {
        let new = asked.short_names.iter().filter(|name| !has.short_names.contains(name));
        let messages: Vec<String> = new.filter_map(|name| in_use(name, "", &resources)).collect();
        if messages.is_empty() {
            names.short_names.clone_from(&asked.short_names);
        } else {
            // As there, a conflict of kinds is told rather than one of short names.
            conflict = conflict.filter(|(reason, _)| reason.ends_with("KindConflict"));
            conflict.get_or_insert(("ShortNamesConflict", meta::field::aggregate(messages)));
        }
    }
    names.categories.clone_from(&asked.categories);
    (names, conflict)
}

/// Whether a group is one of Kubernetes' own.
pub(crate) fn is_protected(group: &str) -> bool {
    ["k8s.io", "kubernetes.io"]
        .iter()
        .any(|domain| group.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.')))
}

/// What the approval annotation of a definition says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Approval {
    Given(String),
    Bypassed(String),
    Missing(String),
    Invalid(String),
}

pub(crate) fn approval(object: &Value) -> Approval {
    let annotation = meta::annotation(object, APPROVED).unwrap_or_default();
    if annotation.is_empty() {
        return Approval::Missing(format!(
            "protected groups must have approval annotation {}, see https://github.com/kubernetes/enhancements/pull/1111",
            meta::text::quote(APPROVED)
        ));
    }
    if annotation.starts_with("unapproved") {
        return Approval::Bypassed(format!("not approved: {}", meta::text::quote(annotation)));
    }
    let is_url = annotation.split_once("://").is_some_and(|(scheme, rest)| {
        !scheme.is_empty()
            && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric())
            && !rest.starts_with('/')
            && !rest.is_empty()
    });
    if is_url {
        return Approval::Given(format!("approved in {annotation}"));
    }
    Approval::Invalid(format!(
        "protected groups must have approval annotation {} with either a URL or a reason starting with \"unapproved\", see https://github.com/kubernetes/enhancements/pull/1111",
        meta::text::quote(APPROVED)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition(plural: &str, kind: &str, short: &[&str]) -> Value {
        json!({
            "metadata": {"name": format!("{plural}.example.com")},
            "spec": {
                "group": "example.com", "scope": "Namespaced", "versions": [],
                "names": {"plural": plural, "singular": plural.trim_end_matches('s'), "kind": kind, "listKind": format!("{kind}List"), "shortNames": short},
            },
            "status": {},
        })
    }

    fn settle(object: &Value, others: &[Definition]) -> Value {
        let now = Timestamp::UNIX_EPOCH;
        settled(object, &Definition::read(object), others.iter(), now).unwrap_or_else(|| object.clone())
    }

    #[test]
    fn the_first_has_the_names_and_another_waits_until_they_are_free() {
        let first = settle(&definition("gadgets", "Gadget", &["gd"]), &[]);
        assert!(condition::is_true(&first, ESTABLISHED) && condition::is_true(&first, NAMES_ACCEPTED));
        assert_eq!(settle(&first, &[]), first, "nothing more to do");
        let read = Definition::read(&first);
        assert!(read.established && read.names == read.asked);
        let other = settle(&definition("widgets", "Gadget", &["gd"]), std::slice::from_ref(&read));
        assert_eq!(condition::get(&other, NAMES_ACCEPTED).unwrap()["reason"], "ListKindConflict");
        assert_eq!(condition::get(&other, ESTABLISHED).unwrap()["reason"], "NotAccepted");
        assert_eq!(other["status"]["acceptedNames"], json!({"plural": "widgets", "singular": "widget", "kind": ""}));
        let free = settle(&other, &[]);
        assert!(condition::is_true(&free, ESTABLISHED));
        let short = settle(&definition("widgets", "Widget", &["gd", "wd"]), &[read]);
        assert_eq!(condition::get(&short, NAMES_ACCEPTED).unwrap()["message"], "\"gd\" is already in use");
    }

    #[test]
    fn groups_of_kubernetes_itself_are_protected() {
        for (group, expected) in
            [("k8s.io", true), ("gateway.networking.k8s.io", true), ("xk8s.io", false), ("example.com", false)]
        {
            assert_eq!(is_protected(group), expected, "{group}");
        }
        let say = |text: &str| approval(&json!({"metadata": {"annotations": {APPROVED: text}}}));
        assert!(matches!(say("https://github.com/x"), Approval::Given(_)));
        assert!(matches!(say("unapproved, testing"), Approval::Bypassed(_)));
        assert!(matches!(say("yes"), Approval::Invalid(_)));
        assert!(matches!(approval(&json!({})), Approval::Missing(_)));
    }
}
