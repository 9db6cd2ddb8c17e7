//! The operations of every path, before they are put into the words of either version of OpenAPI.

use std::sync::Arc;

use coracle_api::custom;

use crate::discovery::{Entry, Group, Version};
use crate::request::negotiate::{JSON, YAML};

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";

/// Patches that built-in kinds take.
pub(super) const PATCH_TYPES: [&str; 4] = [
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
];

/// One path and what can be done with it.
pub(super) struct Path {
    pub path: String,
    /// Names of the parameters in the path.
    pub parameters: Vec<&'static str>,
    pub operations: Vec<Operation>,
}

/// One operation.
pub(super) struct Operation {
    /// As `get`.
    pub method: &'static str,
    /// `x-kubernetes-action`.
    pub action: &'static str,
    pub id: String,
    pub tag: String,
    pub gvk: (Arc<str>, Arc<str>, Arc<str>),
    /// Query parameters: name, type.
    pub query: Vec<(&'static str, &'static str)>,
    /// Type of the body.
    pub body: Option<String>,
    pub body_types: Vec<&'static str>,
    /// Type of the answer.
    pub answer: String,
    /// Whether there is protobuf for it.
    pub has_protobuf: bool,
    /// Codes of success.
    pub codes: &'static [u16],
}

const LIST: [(&str, &str); 11] = [
    ("allowWatchBookmarks", "boolean"),
    ("continue", "string"),
    ("fieldSelector", "string"),
    ("labelSelector", "string"),
    ("limit", "integer"),
    ("resourceVersion", "string"),
    ("resourceVersionMatch", "string"),
    ("sendInitialEvents", "boolean"),
    ("shardSelector", "string"),
    ("timeoutSeconds", "integer"),
    ("watch", "boolean"),
];
const WRITE: [(&str, &str); 3] = [("dryRun", "string"), ("fieldManager", "string"), ("fieldValidation", "string")];
const DELETE: [(&str, &str); 5] = [
    ("dryRun", "string"),
    ("gracePeriodSeconds", "integer"),
    ("ignoreStoreReadErrorWithClusterBreakingPotential", "boolean"),
    ("orphanDependents", "boolean"),
    ("propagationPolicy", "string"),
];

/// The type's name in the documents.
fn type_name(group: &str, version: &str, kind: &str) -> String {
    coracle_api::schema::of_kind(group, version, kind).map_or_else(String::new, |schema| schema.name.clone())
}

fn capitalized(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map(|first| first.to_ascii_uppercase().to_string() + letters.as_str()).unwrap_or_default()
}

/// The paths of one version of a group.
pub(super) fn paths(group: &Group, version: &Version) -> Vec<Path> {
    let name = &*version.version;
    let root = if group.name.is_empty() { format!("/api/{name}") } else { format!("/apis/{}/{name}", group.name) };
    let short = group.name.split('.').next().unwrap_or_default();
    let group_word = if group.name.is_empty() { "Core".to_owned() } else { capitalized(short) };
    let context = Context {
        group: group.name.clone(),
        version: version.version.clone(),
        word: format!("{group_word}{}", capitalized(name)),
        tag: format!("{}_{name}", if group.name.is_empty() { "core" } else { short }),
    };
    let mut paths = Vec::new();
    // What has no type here is served and not described.
    let is_known = |entry: &&Entry| {
        entry.definition.is_some() || !type_name(&group.name, &version.version, &entry.kind).is_empty()
    };
    for entry in version.resources.iter().filter(is_known) {
        context.resource(&mut paths, &root, entry);
    }
    paths.sort_by(|a, b| a.path.cmp(&b.path));
    paths
}

struct Context {
    group: Arc<str>,
    version: Arc<str>,
    /// As `AppsV1`.
    word: String,
    tag: String,
}

impl Context {
    fn resource(&self, paths: &mut Vec<Path>, root: &str, entry: &Entry) {
        let is_custom = entry.definition.is_some();
        let name = |kind: &str| match is_custom {
            true => custom::openapi::type_name(&self.group, &self.version, kind),
            false => type_name(&self.group, &self.version, kind),
        };
        let kind = name(&entry.kind);
        let list = if entry.stored.is_some() { name(&entry.list_kind) } else { String::new() };
        let (scope, parent, parameters) = match entry.namespaced {
            true => ("Namespaced", format!("{root}/namespaces/{{namespace}}/{}", entry.name), vec!["namespace"]),
            false => ("", format!("{root}/{}", entry.name), Vec::new()),
        };
        let gvk = (self.group.clone(), self.version.clone(), entry.kind.clone());
        let has = |verb: &str| entry.verbs.contains(&verb);
        let make = |method, action, id: &str, answer: &str, codes| Operation {
            method,
            action,
            id: format!("{id}{}{scope}{}", self.word, entry.kind),
            tag: self.tag.clone(),
            gvk: gvk.clone(),
            query: Vec::new(),
            body: None,
            body_types: if is_custom { vec![JSON, YAML] } else { vec!["*/*"] },
            answer: answer.to_owned(),
            has_protobuf: !is_custom,
            codes,
        };
        let mut collection = Vec::new();
        if has("list") {
            collection.push(Operation { query: LIST.to_vec(), ..make("get", "list", "list", &list, &[200]) });
        }
        if has("create") {
            let operation = make("post", "post", "create", &kind, &[200, 201, 202]);
            collection.push(Operation { query: WRITE.to_vec(), body: Some(kind.clone()), ..operation });
        }
        if has("deletecollection") {
            let operation = make("delete", "deletecollection", "deletecollection", &format!("{META}.Status"), &[200]);
            let query = LIST.iter().filter(|(name, _)| !matches!(*name, "watch" | "allowWatchBookmarks"));
            let query = query.chain(&DELETE).copied().collect();
            collection.push(Operation { query, body: Some(format!("{META}.DeleteOptions")), ..operation });
        }
        paths.push(Path { path: parent.clone(), parameters: parameters.clone(), operations: collection });
        if entry.namespaced && has("list") {
            let id = format!("list{}{}ForAllNamespaces", self.word, entry.kind);
            let operation = Operation { id, query: LIST.to_vec(), ..make("get", "list", "list", &list, &[200]) };
            paths.push(Path {
                path: format!("{root}/{}", entry.name),
                parameters: vec![],
                operations: vec![operation],
            });
        }
        let parameters: Vec<&'static str> = ["name"].into_iter().chain(parameters).collect();
        let mut single = Vec::new();
        if has("get") {
            single.push(make("get", "get", "read", &kind, &[200]));
        }
        if has("update") {
            let operation = make("put", "put", "replace", &kind, &[200, 201]);
            single.push(Operation { query: WRITE.to_vec(), body: Some(kind.clone()), ..operation });
        }
        if has("patch") {
            single.push(self.patch(make("patch", "patch", "patch", &kind, &[200, 201])));
        }
        if has("delete") {
            let operation = make("delete", "delete", "delete", &format!("{META}.Status"), &[200, 202]);
            single.push(Operation { query: DELETE.to_vec(), body: Some(format!("{META}.DeleteOptions")), ..operation });
        }
        let object = format!("{parent}/{{name}}");
        if !single.is_empty() {
            paths.push(Path { path: object.clone(), parameters: parameters.clone(), operations: single });
        }
        for part in &entry.subresources {
            let kind = match part.foreign {
                Some((group, version)) => type_name(group, version, &part.kind),
                None => name(&part.kind),
            };
            let gvk = match part.foreign {
                Some((group, version)) => (group.into(), version.into(), part.kind.clone()),
                None => (self.group.clone(), self.version.clone(), part.kind.clone()),
            };
            if kind.is_empty() {
                // Streams: they have options and no type.
                continue;
            }
            let suffix = capitalized(part.name);
            let mut operations = Vec::new();
            for verb in part.verbs {
                let operation = match *verb {
                    "get" => make("get", "get", "read", &kind, &[200]),
                    "update" => Operation {
                        query: WRITE.to_vec(),
                        body: Some(kind.clone()),
                        ..make("put", "put", "replace", &kind, &[200, 201])
                    },
                    "patch" => self.patch(make("patch", "patch", "patch", &kind, &[200, 201])),
                    "create" => Operation {
                        query: WRITE.to_vec(),
                        body: Some(kind.clone()),
                        ..make("post", "post", "create", &kind, &[200, 201, 202])
                    },
                    _ => continue,
                };
                operations.push(Operation { id: format!("{}{suffix}", operation.id), gvk: gvk.clone(), ..operation });
            }
            paths.push(Path { path: format!("{object}/{}", part.name), parameters: parameters.clone(), operations });
        }
    }

    fn patch(&self, operation: Operation) -> Operation {
        let query = WRITE.into_iter().chain([("force", "boolean")]).collect();
        let body = Some(format!("{META}.Patch"));
        let strategic = |name: &&'static str| operation.has_protobuf || !name.contains("strategic");
        let body_types = PATCH_TYPES.iter().copied().filter(strategic).collect();
        Operation { query, body, body_types, ..operation }
    }
}
