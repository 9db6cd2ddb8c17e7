//! What another server says of a group version: its resources, and the documents that describe them.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;

use serde_json::{Map, Value, json};

/// Bytes of an answer about documents that are read.
pub(crate) const OPENAPI_BYTES_MAX: usize = 16 << 20;
/// Bytes of what is kept of `/openapi/v2` of one group version.
const SPEC_BYTES_MAX: usize = 4 << 20;

/// Resources of one group version, with their subresources, and bytes of what is told of them.
const RESOURCES_MAX: usize = 2_000;
const RESOURCES_BYTES_MAX: usize = 2 << 20;

/// What one has told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Told {
    /// `resources` of an APIVersionDiscovery (apidiscovery.k8s.io/v2).
    pub resources: Vec<Value>,
    /// Whether that is what it says now, or what it has said before.
    pub is_current: bool,
    /// Tells its document below `/openapi/v3` from another; `None` when it has none.
    pub v3_hash: Option<String>,
    /// Its part of `/openapi/v2`.
    pub v2: Option<Arc<Spec>>,
    /// Of which documents that was read.
    pub v2_of: Documents,
}

/// Paths and definitions of a part of `/openapi/v2`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Spec {
    /// What tells it from others.
    pub tag: u64,
    document: Value,
}

/// What tells the documents of a server from others.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Documents {
    /// Of `/openapi/v2`, as it says itself.
    pub etag: Option<String>,
    /// Of its document below `/openapi/v3` when that was read.
    pub v3_hash: Option<String>,
}

impl Told {
    /// Whether `/openapi/v2` says what it has said: a document of the same types below `/openapi/v3` is of the same ones there.
    pub fn has_read_v2(&self) -> bool {
        self.v3_hash.as_ref().is_some_and(|hash| !hash.is_empty()) && self.v3_hash == self.v2_of.v3_hash
    }
}

/// The resources of a group version in what a server answers at `/apis`, aggregated, or at the group version itself; `None`
/// where there are too many, or two of one name.
pub(crate) fn resources_of(document: &Value, group: &str, version: &str) -> Option<Vec<Value>> {
    let found = told_of(document, group, version)?;
    let parts = |resource: &Value| resource["subresources"].as_array().map_or(0, Vec::len);
    let mut names = HashSet::new();
    let is_told_once =
        found.iter().all(|resource| resource["resource"].as_str().is_some_and(|name| names.insert(name)));
    let number: usize = found.iter().map(|resource| 1 + parts(resource)).sum();
    let is_small = || found.iter().map(|resource| resource.to_string().len()).sum::<usize>() <= RESOURCES_BYTES_MAX;
    (is_told_once && number <= RESOURCES_MAX && is_small()).then_some(found)
}

fn told_of(document: &Value, group: &str, version: &str) -> Option<Vec<Value>> {
    match document["kind"].as_str()? {
        "APIGroupDiscoveryList" => {
            let items = document["items"].as_array()?;
            let found = items.iter().find(|item| item["metadata"]["name"] == group)?;
            let found = found["versions"].as_array()?.iter().find(|known| known["version"] == version)?;
            Some(found["resources"].as_array().cloned().unwrap_or_default())
        }
        "APIResourceList" => {
            let listed = document["resources"].as_array().filter(|listed| listed.len() <= RESOURCES_MAX)?;
            let of = |resource: &Value| {
                let text = |field: &str, other: &str| match resource[field].as_str() {
                    None | Some("") => other.to_owned(),
                    Some(text) => text.to_owned(),
                };
                json!({"group": text("group", group), "version": text("version", version), "kind": text("kind", "")})
            };
            let (mut whole, mut parts) = (Vec::new(), HashMap::<&str, Vec<Value>>::new());
            for resource in listed {
                match resource["name"].as_str()?.split_once('/') {
                    None => whole.push(resource),
                    Some((name, below)) => {
                        let part =
                            json!({"subresource": below, "verbs": resource["verbs"], "responseKind": of(resource)});
                        parts.entry(name).or_default().push(part);
                    }
                }
            }
            let whole = whole.into_iter().map(|resource| {
                let name = resource["name"].as_str().unwrap_or_default();
                let mut entry = json!({
                    "resource": name, "singularResource": resource["singularName"], "verbs": resource["verbs"],
                    "scope": if resource["namespaced"] == true { "Namespaced" } else { "Cluster" },
                    "responseKind": of(resource),
                });
                for field in ["shortNames", "categories"] {
                    if resource[field].is_array() {
                        entry[field] = resource[field].clone();
                    }
                }
                if let Some(parts) = parts.remove(name) {
                    entry["subresources"] = parts.into();
                }
                entry
            });
            Some(whole.collect())
        }
        _ => None,
    }
}

/// The paths below a group version, and the definitions that they use, of a server's `/openapi/v2`; `None` when there are none, or
/// they are too large to be kept.
pub(crate) fn spec_of(document: &Value, group: &str, version: &str) -> Option<Arc<Spec>> {
    let at = format!("/apis/{group}/{version}");
    let is_below = |path: &str| path.strip_prefix(&at).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    let paths = document["paths"].as_object()?.iter().filter(|(path, _)| is_below(path));
    let paths: Map<String, Value> = paths.map(|(path, item)| (path.clone(), item.clone())).collect();
    if paths.is_empty() {
        return None;
    }
    let (mut wanted, mut definitions) = (Vec::new(), Map::new());
    paths.values().for_each(|item| references(item, &mut wanted));
    // What a server defines for a kind of this group, it defines for those who read about kinds, whether a path uses it or not.
    while let Some(name) = wanted.pop() {
        if definitions.contains_key(&name) {
            continue;
        }
        let Some(definition) = document["definitions"].get(&name) else { continue };
        references(definition, &mut wanted);
        definitions.insert(name, definition.clone());
    }
    let spec = json!({"paths": paths, "definitions": definitions});
    let text = spec.to_string();
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    (text.len() <= SPEC_BYTES_MAX).then(|| Arc::new(Spec { tag: hasher.finish(), document: spec }))
}

const DEFINITIONS: &str = "#/definitions/";

fn references(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                match value.as_str().and_then(|text| text.strip_prefix(DEFINITIONS)) {
                    Some(name) if key == "$ref" => found.push(name.to_owned()),
                    _ => references(value, found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| references(item, found)),
        _ => {}
    }
}

impl Told {
    /// Adds its part to `/openapi/v2`. A definition that is there under the same name and is another gets a name of its own, that
    /// nobody has; then also one that says the same of names that may mean others.
    pub fn merge(&self, paths: &mut Map<String, Value>, definitions: &mut Map<String, Value>) {
        let Some(spec) = self.v2.as_ref().map(|spec| &spec.document) else { return };
        let empty = Map::new();
        let own = spec["definitions"].as_object().unwrap_or(&empty);
        let other =
            |(name, definition): &(&String, &Value)| definitions.get(*name).is_some_and(|known| known != *definition);
        let is_any_other = own.iter().any(|definition| other(&definition));
        let refers = |definition: &Value| {
            let mut found = Vec::new();
            references(definition, &mut found);
            !found.is_empty()
        };
        let mut renamed = Map::new();
        for (name, definition) in own {
            let is_doubtful = || is_any_other && definitions.contains_key(name) && refers(definition);
            if other(&(name, definition)) || is_doubtful() {
                let of = |number: u32| format!("{name}_v{number}");
                let is_free = |name: &String| !definitions.contains_key(name) && !own.contains_key(name);
                renamed.extend((2..).map(of).find(is_free).map(|free| (name.clone(), free.into())));
            }
        }
        let rename = |value: &Value| {
            let mut value = value.clone();
            refer(&mut value, &renamed);
            value
        };
        for (name, definition) in own {
            let name = renamed.get(name).and_then(Value::as_str).unwrap_or(name);
            definitions.entry(name).or_insert_with(|| rename(definition));
        }
        for (path, item) in spec["paths"].as_object().into_iter().flatten() {
            paths.entry(path.clone()).or_insert_with(|| rename(item));
        }
    }
}

/// Has references name what things are called now.
fn refer(value: &mut Value, renamed: &Map<String, Value>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                let name = value.as_str().and_then(|text| text.strip_prefix(DEFINITIONS)).filter(|_| key == "$ref");
                match name.and_then(|name| renamed.get(name)).and_then(Value::as_str) {
                    Some(name) => *value = format!("{DEFINITIONS}{name}").into(),
                    None => refer(value, renamed),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| refer(item, renamed)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_list_of_resources_is_told_as_a_new_one() {
        let list = json!({"kind": "APIResourceList", "groupVersion": "e.com/v1", "resources": [
            {"name": "things", "singularName": "thing", "namespaced": true, "kind": "Thing", "verbs": ["get"], "shortNames": ["th"]},
            {"name": "things/scale", "singularName": "", "namespaced": true, "group": "autoscaling", "version": "v1", "kind": "Scale", "verbs": ["get"]},
            {"name": "others", "singularName": "other", "namespaced": false, "kind": "Other", "verbs": ["list"]},
        ]});
        let expected = json!([
            {
                "resource": "things", "singularResource": "thing", "verbs": ["get"], "scope": "Namespaced", "shortNames": ["th"],
                "responseKind": {"group": "e.com", "version": "v1", "kind": "Thing"},
                "subresources": [{"subresource": "scale", "verbs": ["get"], "responseKind": {"group": "autoscaling", "version": "v1", "kind": "Scale"}}],
            },
            {
                "resource": "others", "singularResource": "other", "verbs": ["list"], "scope": "Cluster",
                "responseKind": {"group": "e.com", "version": "v1", "kind": "Other"},
            },
        ]);
        assert_eq!(resources_of(&list, "e.com", "v1").map(Value::from), Some(expected.clone()));
        let new = json!({"kind": "APIGroupDiscoveryList", "items": [
            {"metadata": {"name": "f.com"}, "versions": []},
            {"metadata": {"name": "e.com"}, "versions": [{"version": "v2"}, {"version": "v1", "resources": expected}]},
        ]});
        assert_eq!(resources_of(&new, "e.com", "v1").map(Value::from), Some(expected));
        assert_eq!(resources_of(&new, "e.com", "v3"), None);
        assert_eq!(resources_of(&json!("words"), "e.com", "v1"), None);
    }

    #[test]
    fn a_list_that_is_too_long_or_tells_twice_is_no_list() {
        let list = |names: Vec<String>| {
            let entry = |name: &String| json!({"name": name, "kind": "Thing", "verbs": ["get"]});
            let resources: Vec<Value> = names.iter().map(entry).collect();
            json!({"kind": "APIResourceList", "groupVersion": "e.com/v1", "resources": resources})
        };
        let found = |names: Vec<String>| resources_of(&list(names), "e.com", "v1").map(|found| found.len());
        let all = |count: usize| (0..count).map(|number| format!("r{number}")).collect::<Vec<_>>();
        assert_eq!(found(all(RESOURCES_MAX)), Some(RESOURCES_MAX));
        assert_eq!(found(all(RESOURCES_MAX + 1)), None);
        assert_eq!(found(vec!["a".to_owned(), "a".to_owned()]), None);
        assert_eq!(found(vec!["a".to_owned(), "x".repeat(RESOURCES_BYTES_MAX)]), None);
        let of = |parts: usize| {
            let parts: Vec<Value> = (0..parts).map(|number| json!({"subresource": number.to_string()})).collect();
            let versions = json!([{"version": "v1", "resources": [{"resource": "a", "subresources": parts}]}]);
            json!({"kind": "APIGroupDiscoveryList", "items": [{"metadata": {"name": "e.com"}, "versions": versions}]})
        };
        assert!(resources_of(&of(RESOURCES_MAX - 1), "e.com", "v1").is_some());
        assert!(resources_of(&of(RESOURCES_MAX), "e.com", "v1").is_none());
    }

    #[test]
    fn a_part_of_a_document_is_merged_and_names_that_are_taken_are_others() {
        let of = |name: &str| json!({"get": {"schema": {"$ref": format!("#/definitions/{name}")}}});
        let document = json!({
            "paths": {"/apis/e.com/v1/": of("thing"), "/apis/e.com/v10/": of("far"), "/apis/e.com/v1/x": of("meta")},
            "definitions": {
                "thing": {"properties": {"meta": {"$ref": "#/definitions/meta"}, "same": {"$ref": "#/definitions/same"}}},
                "meta": {"type": "number"}, "same": {"type": "string"}, "far": {}, "unused": {},
            },
        });
        let told = Told { v2: spec_of(&document, "e.com", "v1"), ..Told::default() };
        let known = json!({"meta": {"type": "object"}, "same": {"type": "string"}});
        let (mut paths, mut definitions) = (Map::new(), known.as_object().cloned().unwrap());
        told.merge(&mut paths, &mut definitions);
        assert_eq!(Value::from(paths), json!({"/apis/e.com/v1/": of("thing"), "/apis/e.com/v1/x": of("meta_v2")}));
        assert_eq!(
            Value::from(definitions),
            json!({
                "meta": {"type": "object"}, "meta_v2": {"type": "number"}, "same": {"type": "string"},
                "thing": {"properties": {"meta": {"$ref": "#/definitions/meta_v2"}, "same": {"$ref": "#/definitions/same"}}},
            })
        );
    }

    #[test]
    fn no_definition_takes_the_name_of_another() {
        let to = |name: &str| json!({"$ref": format!("#/definitions/{name}")});
        let document = json!({
            "paths": {"/apis/e.com/v1/x": [to("meta"), to("meta_v2"), to("list")]},
            "definitions": {"meta": {"type": "number"}, "meta_v2": {"type": "string"}, "list": {"items": to("meta")}},
        });
        let told = Told { v2: spec_of(&document, "e.com", "v1"), ..Told::default() };
        let known = json!({"meta": {"type": "object"}, "list": {"items": to("meta")}});
        let (mut paths, mut definitions) = (Map::new(), known.as_object().cloned().unwrap());
        told.merge(&mut paths, &mut definitions);
        assert_eq!(paths["/apis/e.com/v1/x"], json!([to("meta_v3"), to("meta_v2"), to("list_v2")]));
        assert_eq!(
            Value::from(definitions),
            json!({
                "meta": {"type": "object"}, "list": {"items": to("meta")},
                "meta_v2": {"type": "string"}, "meta_v3": {"type": "number"}, "list_v2": {"items": to("meta_v3")},
            })
        );
    }
}
