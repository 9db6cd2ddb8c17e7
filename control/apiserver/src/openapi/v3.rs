//! `/openapi/v3`: one document for each version of a group, complete in itself.

use std::collections::BTreeSet;

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
        for version in &group.versions {
            names.push(match group.name {
                "" => format!("api/{}", version.version),
                name => format!("apis/{name}/{}", version.version),
            });
        }
    }
    names
}

pub(super) fn document(discovery: &Discovery, name: &str) -> Value {
    let mut parts = name.split('/').skip(1);
    let (group, version) = match (parts.next(), parts.next()) {
        (Some(version), None) => ("", version),
        (Some(group), Some(version)) => (group, version),
        _ => return finish(Map::new(), BTreeSet::new()),
    };
    let Some(group) = discovery.groups.iter().find(|found| found.name == group) else { return Value::Null };
    let Some(version) = group.versions.iter().find(|found| found.version == version) else { return Value::Null };
    let mut used = BTreeSet::new();
    let mut paths = Map::new();
    for path in operations::paths(group, version.version) {
        paths.insert(path.path.clone(), path_item(&path, &mut used));
    }
    finish(paths, used)
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
    let (group, version, kind) = operation.gvk;
    let mut object = json!({
        "operationId": operation.id, "tags": [operation.tag], "x-kubernetes-action": operation.action,
        "x-kubernetes-group-version-kind": {"group": group, "version": version, "kind": kind},
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
    let mut types = vec![JSON, PROTOBUF, YAML];
    if operation.action == "list" {
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

/// The document with every type that is used, and those that they use.
fn finish(paths: Map<String, Value>, used: BTreeSet<String>) -> Value {
    let descriptions = Descriptions::unpack();
    let mut schemas = Map::new();
    let mut wanted: Vec<String> = used.into_iter().filter(|name| !name.is_empty()).collect();
    while let Some(name) = wanted.pop() {
        if schemas.contains_key(&name) {
            continue;
        }
        let Some(definition) = descriptions.definition(&name, Version::V3) else { continue };
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
