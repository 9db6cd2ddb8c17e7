//! What discovery tells, in the order in which it tells it.

use coracle_api::kinds;

/// A group and its versions, the preferred one first.
pub(crate) struct Group {
    /// Empty for the core group.
    pub name: &'static str,
    pub versions: Vec<Version>,
}

/// A version of a group.
pub(crate) struct Version {
    pub version: &'static str,
    /// Sorted by name.
    pub resources: Vec<Entry>,
}

/// A resource.
pub(crate) struct Entry {
    pub name: &'static str,
    pub singular: &'static str,
    pub short_names: &'static [&'static str],
    pub categories: &'static [&'static str],
    pub namespaced: bool,
    pub kind: &'static str,
    pub verbs: &'static [&'static str],
    /// Whether its objects are stored: then it has a storage version.
    pub stored: bool,
    /// Sorted by name.
    pub subresources: Vec<Part>,
}

/// A subresource.
pub(crate) struct Part {
    pub name: &'static str,
    /// Group and version of its kind, when they are not the resource's.
    pub foreign: Option<(&'static str, &'static str)>,
    pub kind: &'static str,
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

/// What is measured: versions, resource, kind, namespaced. metrics-server serves the older version, and no singular names.
const MEASURED: [(&str, &str, &str, bool); 4] = [
    ("v1", "nodes", "NodeMetrics", false),
    ("v1", "pods", "PodMetrics", true),
    ("v1beta1", "nodes", "NodeMetrics", false),
    ("v1beta1", "pods", "PodMetrics", true),
];

/// Everything that is served.
pub(crate) fn groups_of() -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for row in kinds::all() {
        let mut parts: Vec<Part> = Vec::new();
        if row.has_status {
            parts.push(Part { name: "status", foreign: None, kind: row.kind, verbs: CHANGE });
        }
        if row.has_scale {
            parts.push(Part { name: "scale", foreign: Some(("autoscaling", "v1")), kind: "Scale", verbs: CHANGE });
        }
        parts.extend(row.subresources.iter().map(|part| Part {
            name: part.name,
            foreign: (!part.group.is_empty()).then_some((part.group, part.version)),
            kind: part.kind,
            verbs: part.verbs,
        }));
        parts.sort_by_key(|part| part.name);
        let entry = Entry {
            name: row.resource,
            singular: row.singular,
            short_names: row.short_names,
            categories: row.categories,
            namespaced: row.namespaced,
            kind: row.kind,
            verbs: row.verbs,
            stored: true,
            subresources: parts,
        };
        add(&mut groups, row.group, row.version, entry);
    }
    for (group, name, singular, kind, namespaced) in ANSWERED {
        let entry = Entry {
            name,
            singular,
            short_names: &[],
            categories: &[],
            namespaced,
            kind,
            verbs: CREATE,
            stored: false,
            subresources: Vec::new(),
        };
        add(&mut groups, group, "v1", entry);
    }
    for (version, name, kind, namespaced) in MEASURED {
        let entry = Entry {
            name,
            singular: "",
            short_names: &[],
            categories: &[],
            namespaced,
            kind,
            verbs: READ,
            stored: false,
            subresources: Vec::new(),
        };
        add(&mut groups, "metrics.k8s.io", version, entry);
    }
    let place = |group: &Group| ORDER.iter().position(|name| *name == group.name).unwrap_or(ORDER.len());
    groups.sort_by_key(place);
    for version in groups.iter_mut().flat_map(|group| &mut group.versions) {
        version.resources.sort_by_key(|entry| entry.name);
    }
    groups
}

fn add(groups: &mut Vec<Group>, group: &'static str, version: &'static str, entry: Entry) {
    let at = groups.iter().position(|known| known.name == group).unwrap_or_else(|| {
        groups.push(Group { name: group, versions: Vec::new() });
        groups.len() - 1
    });
    let versions = &mut groups[at].versions;
    let at = versions.iter().position(|known| known.version == version).unwrap_or_else(|| {
        versions.push(Version { version, resources: Vec::new() });
        // What is generally available is preferred, then higher numbers.
        let is_beta = |version: &Version| version.version.contains("beta");
        versions.sort_by(|a, b| (is_beta(a), b.version).cmp(&(is_beta(b), a.version)));
        versions.iter().position(|known| known.version == version).unwrap_or(0)
    });
    versions[at].resources.push(entry);
}
