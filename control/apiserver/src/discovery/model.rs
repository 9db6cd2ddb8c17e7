//! What discovery tells, in the order in which it tells it.

use std::sync::Arc;

use coracle_api::custom::{Definition, order};
use coracle_api::kinds;

use super::priorities;
use crate::aggregation::{Configured, Heard, Told};
use crate::catalog::{Served, Standing};

/// A group and its versions, the preferred one first.
pub(crate) struct Group {
    /// Empty for the core group.
    pub name: Arc<str>,
    pub versions: Vec<Version>,
}

/// A version of a group.
pub(crate) struct Version {
    pub version: Arc<str>,
    /// Sorted by name.
    pub resources: Vec<Entry>,
    /// Of one that another server serves: what that has told.
    pub remote: Option<Arc<Told>>,
    /// The group's place among groups, and its own among the versions of the group.
    priorities: (i64, i64),
}

/// A resource.
pub(crate) struct Entry {
    pub name: Arc<str>,
    pub singular: Arc<str>,
    pub short_names: Vec<Arc<str>>,
    pub categories: Vec<Arc<str>>,
    pub namespaced: bool,
    pub kind: Arc<str>,
    pub list_kind: Arc<str>,
    pub verbs: &'static [&'static str],
    /// The version in which its objects are stored, if they are.
    pub stored: Option<Arc<str>>,
    /// Sorted by name.
    pub subresources: Vec<Part>,
    /// The definition that makes it, if one does.
    pub definition: Option<Arc<Standing>>,
}

/// A subresource.
pub(crate) struct Part {
    pub name: &'static str,
    /// Group and version of its kind, when they are not the resource's.
    pub foreign: Option<(&'static str, &'static str)>,
    pub kind: Arc<str>,
    pub verbs: &'static [&'static str],
}

/// The order of groups: clients resolve short names by it.
const ORDER: [&str; 22] = [
    "",
    "apiregistration.k8s.io",
    "apps",
    "events.k8s.io",
    "authentication.k8s.io",
    "authorization.k8s.io",
    "autoscaling",
    "batch",
    "certificates.k8s.io",
    "networking.k8s.io",
    "policy",
    "rbac.authorization.k8s.io",
    "storage.k8s.io",
    "admissionregistration.k8s.io",
    "apiextensions.k8s.io",
    "scheduling.k8s.io",
    "coordination.k8s.io",
    "node.k8s.io",
    "discovery.k8s.io",
    "resource.k8s.io",
    "flowcontrol.apiserver.k8s.io",
    "storagemigration.k8s.io",
];

const CHANGE: &[&str] = &["get", "patch", "update"];
const CREATE: &[&str] = &["create"];
const READ: &[&str] = &["get", "list"];

/// Resources that are answered and not stored: group, resource, singular, kind, namespaced.
const ANSWERED: [(&str, &str, &str, &str, bool); 7] = [
    ("", "bindings", "binding", "Binding", true),
    ("authentication.k8s.io", "selfsubjectreviews", "selfsubjectreview", "SelfSubjectReview", false),
    ("authentication.k8s.io", "tokenreviews", "tokenreview", "TokenReview", false),
    ("authorization.k8s.io", "localsubjectaccessreviews", "localsubjectaccessreview", "LocalSubjectAccessReview", true),
    ("authorization.k8s.io", "selfsubjectaccessreviews", "selfsubjectaccessreview", "SelfSubjectAccessReview", false),
    ("authorization.k8s.io", "selfsubjectrulesreviews", "selfsubjectrulesreview", "SelfSubjectRulesReview", false),
    ("authorization.k8s.io", "subjectaccessreviews", "subjectaccessreview", "SubjectAccessReview", false),
];

/// What a definition that is going lets be done.
const ENDING: &[&str] = &["delete", "deletecollection", "get", "list", "watch"];
const VERBS: &[&str] = &["delete", "deletecollection", "get", "list", "patch", "create", "update", "watch"];

/// The group of what is measured.
const MEASURES: &str = "metrics.k8s.io";
/// What is measured: versions, resource, kind, namespaced. metrics-server serves the older version, and no singular names.
const MEASURED: [(&str, &str, &str, bool); 4] = [
    ("v1", "nodes", "NodeMetrics", false),
    ("v1", "pods", "PodMetrics", true),
    ("v1beta1", "nodes", "NodeMetrics", false),
    ("v1beta1", "pods", "PodMetrics", true),
];

/// Adds what other servers serve, where it is not served here.
fn add_remote(groups: &mut Vec<Group>, backends: &Configured, heard: &Heard) {
    for backend in backends.all() {
        let told = heard.get(&backend.name).cloned().unwrap_or_default();
        let version = Version {
            version: backend.version.as_str().into(),
            resources: Vec::new(),
            remote: Some(told),
            priorities: (backend.group_priority, backend.version_priority),
        };
        let group = match groups.iter_mut().find(|group| *group.name == *backend.group) {
            Some(group) => group,
            None => {
                let is_before = |group: &Group| {
                    let priority = group.versions.iter().map(|known| known.priorities.0).max();
                    !matches!(&*group.name, "" | "apiregistration.k8s.io") && priority < Some(backend.group_priority)
                };
                let at = groups.iter().position(is_before).unwrap_or(groups.len());
                groups.insert(at, Group { name: backend.group.as_str().into(), versions: Vec::new() });
                &mut groups[at]
            }
        };
        if group.versions.iter().all(|known| *known.version != *backend.version) {
            group.versions.push(version);
            group
                .versions
                .sort_by(|a, b| b.priorities.1.cmp(&a.priorities.1).then_with(|| order(&b.version, &a.version)));
        }
    }
}

/// Everything that is served.
pub(crate) fn groups_of(served: &Served, backends: &Configured, heard: &Heard) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for row in kinds::all() {
        let kind: Arc<str> = row.kind.into();
        let mut parts = parts(row.has_status, row.has_scale, &kind);
        parts.extend(row.subresources.iter().map(|part| Part {
            name: part.name,
            foreign: (!part.group.is_empty()).then_some((part.group, part.version)),
            kind: part.kind.into(),
            verbs: part.verbs,
        }));
        parts.sort_by_key(|part| part.name);
        let entry = Entry {
            name: row.resource.into(),
            singular: row.singular.into(),
            short_names: row.short_names.iter().map(|name| (*name).into()).collect(),
            categories: row.categories.iter().map(|name| (*name).into()).collect(),
            namespaced: row.namespaced,
            list_kind: format!("{}List", row.kind).into(),
            kind,
            verbs: row.verbs,
            // What nobody can make is stored nowhere.
            stored: row.verbs.contains(&"create").then(|| row.version.into()),
            subresources: parts,
            definition: None,
        };
        add(&mut groups, row.group, row.version, entry);
    }
    for (group, name, singular, kind, namespaced) in ANSWERED {
        let entry = Entry {
            name: name.into(),
            singular: singular.into(),
            short_names: Vec::new(),
            categories: Vec::new(),
            namespaced,
            kind: kind.into(),
            list_kind: "".into(),
            verbs: CREATE,
            stored: None,
            subresources: Vec::new(),
            definition: None,
        };
        add(&mut groups, group, "v1", entry);
    }
    for (version, name, kind, namespaced) in MEASURED {
        let entry = Entry {
            name: name.into(),
            singular: "".into(),
            short_names: Vec::new(),
            categories: Vec::new(),
            namespaced,
            kind: kind.into(),
            list_kind: "".into(),
            verbs: READ,
            stored: None,
            subresources: Vec::new(),
            definition: None,
        };
        add(&mut groups, MEASURES, version, entry);
    }
    for standing in served.all().into_iter().filter(|standing| standing.is_served()) {
        let definition = &standing.definition;
        for version in definition.served() {
            add(&mut groups, &definition.group, &version.name, custom(standing, definition, version));
        }
    }
    let place = |group: &Group| ORDER.iter().position(|name| **name == *group.name).unwrap_or(ORDER.len());
    // Those of definitions come last, by name.
    groups.sort_by(|a, b| {
        place(a).cmp(&place(b)).then_with(|| match place(a) == ORDER.len() {
            true => a.name.cmp(&b.name),
            false => std::cmp::Ordering::Equal,
        })
    });
    for version in groups.iter_mut().flat_map(|group| &mut group.versions) {
        version.resources.sort_by(|a, b| a.name.cmp(&b.name));
    }
    // What is measured here is measured elsewhere where somebody says so.
    let is_overridden = |group: &str, version: &str| group == MEASURES && backends.find(group, version).is_some();
    for group in groups.iter_mut().filter(|group| *group.name == *MEASURES) {
        let name = group.name.clone();
        group.versions.retain(|version| !is_overridden(&name, &version.version));
    }
    groups.retain(|group| !group.versions.is_empty());
    add_remote(&mut groups, backends, heard);
    groups
}

fn parts(has_status: bool, has_scale: bool, kind: &Arc<str>) -> Vec<Part> {
    let mut parts: Vec<Part> = Vec::new();
    if has_status {
        parts.push(Part { name: "status", foreign: None, kind: kind.clone(), verbs: CHANGE });
    }
    if has_scale {
        parts.push(Part { name: "scale", foreign: Some(("autoscaling", "v1")), kind: "Scale".into(), verbs: CHANGE });
    }
    parts
}

fn custom(standing: &Arc<Standing>, definition: &Definition, version: &coracle_api::custom::Version) -> Entry {
    let names = &definition.names;
    let kind: Arc<str> = names.kind.as_str().into();
    let all = |names: &[String]| names.iter().map(|name| name.as_str().into()).collect();
    Entry {
        name: names.plural.as_str().into(),
        singular: names.singular.as_str().into(),
        short_names: all(&names.short_names),
        categories: all(&names.categories),
        namespaced: definition.namespaced,
        subresources: parts(version.has_status, version.scale.is_some(), &kind),
        kind,
        list_kind: names.list_kind.as_str().into(),
        verbs: if definition.terminating { ENDING } else { VERBS },
        stored: Some(definition.storage.as_str().into()),
        definition: Some(standing.clone()),
    }
}

fn add(groups: &mut Vec<Group>, group: &str, version: &str, entry: Entry) {
    let at = groups.iter().position(|known| *known.name == *group).unwrap_or_else(|| {
        groups.push(Group { name: group.into(), versions: Vec::new() });
        groups.len() - 1
    });
    let versions = &mut groups[at].versions;
    let at = versions.iter().position(|known| *known.version == *version).unwrap_or_else(|| {
        let priorities = priorities::of(group, version);
        versions.push(Version { version: version.into(), resources: Vec::new(), remote: None, priorities });
        versions.sort_by(|a, b| order(&b.version, &a.version));
        versions.iter().position(|known| *known.version == *version).unwrap_or(0)
    });
    versions[at].resources.push(entry);
}
