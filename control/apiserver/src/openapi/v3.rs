//! `/openapi/v3`: one document for each version of a group, complete in itself.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};

use coracle_api::schema::openapi::Version;
use serde_json::{Map, Value, json};

use super::descriptions::Descriptions;
use super::operations::{self, Operation, Path};
use crate::discovery::Discovery;
use crate::request::negotiate::{JSON, PROTOBUF, YAML};

/// Names of the documents: paths without their first slash.
pub(super) fn names(discovery: &Discovery) -> Vec<String> {
    let mut names = vec!["version".to_owned()];
    for group in &discovery.groups {
        // Documents of other servers are theirs.
        for version in group.versions.iter().filter(|version| version.remote.is_none()) {
            names.push(match &*group.name {
                "" => format!("api/{}", version.version),
                name => format!("apis/{name}/{}", version.version),
            });
        }
    }
    names
}

/// Tells what a document is made of, or all of them together, from what it would be made of after a change.
pub(super) fn content(discovery: &Discovery, name: Option<&str>) -> u64 {
    let mut hasher = DefaultHasher::new();
    for group in &discovery.groups {
        for version in &group.versions {
            let document = format!("apis/{}/{}", group.name, version.version);
            if name.is_some_and(|name| name != document) {
                continue;
            }
            if let Some(told) = &version.remote {
                (&group.name, &version.version, told.v2.as_ref().map(|spec| spec.tag)).hash(&mut hasher);
            }
            for (entry, standing) in version.resources.iter().filter_map(|e| Some((e, e.definition.as_ref()?))) {
                (&group.name, &version.version, &entry.name, standing.said()).hash(&mut hasher);
            }
        }
    }
    hasher.finish()
}

pub(super) fn document(discovery: &Discovery, name: &str) -> Value {
    let mut parts = name.split('/').skip(1);
    let (group, version) = match (parts.next(), parts.next()) {
        (Some(version), None) => ("", version),
        (Some(group), Some(version)) => (group, version),
        _ => return finish(Map::new(), BTreeSet::new(), &Descriptions::unpack(), Map::new()),
    };
    let Some((group, version)) = discovery.version(group, version) else { return Value::Null };
    let mut used = BTreeSet::new();
    let mut paths = Map::new();
    for path in operations::paths(group, version) {
        paths.insert(path.path.clone(), path_item(&path, &mut used));
    }
    let descriptions = Descriptions::unpack();
    let own = super::custom::definitions(group, version, &descriptions, Version::V3);
    finish(paths, used, &descriptions, own)
}

fn path_item(path: &Path, used: &mut BTreeSet<String>) -> Value {
    let mut item = Map::new();
    for operation in &path.operations {
        item.insert(operation.method.to_owned(), operation_object(operation, used));
    }
    let mut parameters: Vec<Value> = path.parameters.iter().map(|name| parameter("path", name, "string")).collect();
    parameters.push(parameter("query", "pretty", "string"));
    item.insert("parameters".to_owned(), parameters.into());
    item.into()
}

fn parameter(place: &str, name: &str, kind: &str) -> Value {
    let mut parameter = json!({"in": place, "name": name, "schema": {"type": kind, "uniqueItems": true}});
    if place == "path" {
        parameter["required"] = true.into();
    }
    parameter
}

fn operation_object(operation: &Operation, used: &mut BTreeSet<String>) -> Value {
    let mut reference = |name: &str| {
        used.insert(name.to_owned());
        json!({"schema": {"$ref": format!("#/components/schemas/{name}")}})
    };
    let (group, version, kind) = &operation.gvk;
    let mut object = json!({
        "operationId": operation.id, "tags": [operation.tag], "x-kubernetes-action": operation.action,
        "x-kubernetes-group-version-kind": {"group": &**group, "version": &**version, "kind": &**kind},
    });
    if !operation.query.is_empty() {
        object["parameters"] = operation.query.iter().map(|(name, kind)| parameter("query", name, kind)).collect();
    }
    if let Some(body) = &operation.body {
        let content: Map<String, Value> =
            operation.body_types.iter().map(|kind| ((*kind).to_owned(), reference(body))).collect();
        object["requestBody"] = json!({"content": content});
        if operation.action != "delete" && operation.action != "deletecollection" {
            object["requestBody"]["required"] = true.into();
        }
    }
    let mut types = vec![JSON, YAML];
    if operation.has_protobuf {
        types.insert(1, PROTOBUF);
    }
    if operation.action == "list" && operation.has_protobuf {
        types.extend(["application/json;stream=watch", "application/vnd.kubernetes.protobuf;stream=watch"]);
    }
    let mut responses = Map::new();
    for code in operation.codes {
        let content: Map<String, Value> =
            types.iter().map(|kind| ((*kind).to_owned(), reference(&operation.answer))).collect();
        responses.insert(code.to_string(), json!({"description": "OK", "content": content}));
    }
    responses.insert("401".to_owned(), json!({"description": "Unauthorized"}));
    object["responses"] = responses.into();
    object
}

/// The document with every type that is used, and those that they use; some are its own.
fn finish(
    paths: Map<String, Value>,
    used: BTreeSet<String>,
    descriptions: &Descriptions,
    mut own: Map<String, Value>,
) -> Value {
    let mut schemas = Map::new();
    let mut wanted: Vec<String> = used.into_iter().filter(|name| !name.is_empty()).collect();
    while let Some(name) = wanted.pop() {
        if schemas.contains_key(&name) {
            continue;
        }
        let known = own.remove(&name).or_else(|| descriptions.definition(&name, Version::V3));
        let Some(definition) = known else { continue };
        references(&definition, &mut wanted);
        schemas.insert(name, definition);
    }
    json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": "v1.37.0"},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"BearerToken": {
                "type": "apiKey", "description": "Bearer Token authentication", "name": "authorization", "in": "header",
            }},
        },
    })
}

/// The types that a definition refers to.
fn references(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                match value.as_str() {
                    Some(text) if key == "$ref" => {
                        found.extend(text.rsplit_once('/').map(|(_, name)| name.to_owned()));
                    }
                    _ => references(value, found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| references(item, found)),
        _ => {}
    }
}
