//! The operations of every path, before they are put into the words of either version of OpenAPI.

use crate::discovery::{Entry, Group};

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
    pub gvk: (&'static str, &'static str, &'static str),
    /// Query parameters: name, type.
    pub query: Vec<(&'static str, &'static str)>,
    /// Type of the body.
    pub body: Option<String>,
    pub body_types: Vec<&'static str>,
    /// Type of the answer.
    pub answer: String,
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
pub(super) fn paths(group: &Group, version: &'static str) -> Vec<Path> {
    let root =
        if group.name.is_empty() { format!("/api/{version}") } else { format!("/apis/{}/{version}", group.name) };
    let short = group.name.split('.').next().unwrap_or_default();
    let group_word = if group.name.is_empty() { "Core".to_owned() } else { capitalized(short) };
    let context = Context {
        group: group.name,
        version,
        word: format!("{group_word}{}", capitalized(version)),
        tag: format!("{}_{version}", if group.name.is_empty() { "core" } else { short }),
    };
    let Some(resources) = group.versions.iter().find(|found| found.version == version) else { return Vec::new() };
    let mut paths = Vec::new();
    // What has no type here is served and not described.
    let is_known = |entry: &&Entry| !type_name(group.name, version, entry.kind).is_empty();
    for entry in resources.resources.iter().filter(is_known) {
        context.resource(&mut paths, &root, entry);
    }
    paths.sort_by(|a, b| a.path.cmp(&b.path));
    paths
}

struct Context {
    group: &'static str,
    version: &'static str,
    /// As `AppsV1`.
    word: String,
    tag: String,
}

impl Context {
    fn resource(&self, paths: &mut Vec<Path>, root: &str, entry: &Entry) {
        let kind = type_name(self.group, self.version, entry.kind);
        let list = if entry.stored {
            type_name(self.group, self.version, &format!("{}List", entry.kind))
        } else {
            String::new()
        };
        let (scope, parent, parameters) = match entry.namespaced {
            true => ("Namespaced", format!("{root}/namespaces/{{namespace}}/{}", entry.name), vec!["namespace"]),
            false => ("", format!("{root}/{}", entry.name), Vec::new()),
        };
        let gvk = (self.group, self.version, entry.kind);
        let has = |verb: &str| entry.verbs.contains(&verb);
        let make = |method, action, id: &str, answer: &str, codes| Operation {
            method,
            action,
            id: format!("{id}{}{scope}{}", self.word, entry.kind),
            tag: self.tag.clone(),
            gvk,
            query: Vec::new(),
            body: None,
            body_types: vec!["*/*"],
            answer: answer.to_owned(),
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
            let (group, version) = part.foreign.unwrap_or((self.group, self.version));
            let kind = type_name(group, version, part.kind);
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
                operations.push(Operation {
                    id: format!("{}{suffix}", operation.id),
                    gvk: (group, version, part.kind),
                    ..operation
                });
            }
            paths.push(Path { path: format!("{object}/{}", part.name), parameters: parameters.clone(), operations });
        }
    }

    fn patch(&self, operation: Operation) -> Operation {
        let query = WRITE.into_iter().chain([("force", "boolean")]).collect();
        let body = Some(format!("{META}.Patch"));
        Operation { query, body, body_types: PATCH_TYPES.to_vec(), ..operation }
    }
}
