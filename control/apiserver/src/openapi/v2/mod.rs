//! `/openapi/v2`: one document for everything.

pub(super) mod gnostic;

use coracle_api::schema::openapi::{self, Version};
use serde_json::{Map, Value, json};

use super::descriptions::Descriptions;
use super::operations::{self, Operation};
use crate::discovery::Discovery;
use crate::request::negotiate::{JSON, PROTOBUF, YAML};

pub(super) fn document(discovery: &Discovery) -> Value {
    let mut paths = Map::new();
    for group in &discovery.groups {
        for version in group.versions.iter().filter(|version| version.remote.is_none()) {
            for path in operations::paths(group, version) {
                let mut item = Map::new();
                for operation in &path.operations {
                    item.insert(operation.method.to_owned(), operation_object(operation));
                }
                let mut parameters: Vec<Value> =
                    path.parameters.iter().map(|name| parameter("path", name, "string")).collect();
                parameters.push(parameter("query", "pretty", "string"));
                item.insert("parameters".to_owned(), parameters.into());
                paths.insert(path.path.clone(), item.into());
            }
        }
    }
    let descriptions = Descriptions::unpack();
    let mut definitions: Map<String, Value> = openapi::names()
        .into_iter()
        .filter_map(|name| descriptions.definition(&name, Version::V2).map(|definition| (name, definition)))
        .collect();
    for group in &discovery.groups {
        for version in &group.versions {
            definitions.extend(super::custom::definitions(group, version, &descriptions, Version::V2));
        }
    }
    let remote =
        discovery.groups.iter().flat_map(|group| &group.versions).filter_map(|version| version.remote.as_ref());
    for told in remote {
        told.merge(&mut paths, &mut definitions);
    }
    json!({
        "swagger": "2.0",
        "info": {"title": "Kubernetes", "version": "v1.37.0"},
        "paths": paths,
        "definitions": definitions,
        "securityDefinitions": {"BearerToken": {
            "type": "apiKey", "description": "Bearer Token authentication", "name": "authorization", "in": "header",
        }},
        "security": [{"BearerToken": []}],
    })
}

fn parameter(place: &str, name: &str, kind: &str) -> Value {
    let mut parameter = json!({"in": place, "name": name, "type": kind, "uniqueItems": true});
    if place == "path" {
        parameter["required"] = true.into();
    }
    parameter
}

fn operation_object(operation: &Operation) -> Value {
    let (group, version, kind) = &operation.gvk;
    let reference = |name: &str| json!({ "$ref": format!("#/definitions/{name}") });
    let mut produces = vec![JSON, YAML];
    if operation.has_protobuf {
        produces.push(PROTOBUF);
    }
    if operation.action == "list" && operation.has_protobuf {
        produces.extend(["application/json;stream=watch", "application/vnd.kubernetes.protobuf;stream=watch"]);
    }
    let mut object = json!({
        "operationId": operation.id, "tags": [operation.tag], "schemes": ["https"],
        "consumes": operation.body_types, "produces": produces,
        "x-kubernetes-action": operation.action,
        "x-kubernetes-group-version-kind": {"group": &**group, "version": &**version, "kind": &**kind},
    });
    let mut parameters = Vec::new();
    if let Some(body) = &operation.body {
        let mut parameter = json!({"in": "body", "name": "body", "schema": reference(body)});
        if operation.action != "delete" && operation.action != "deletecollection" {
            parameter["required"] = true.into();
        }
        parameters.push(parameter);
    }
    parameters.extend(operation.query.iter().map(|(name, kind)| parameter("query", name, kind)));
    if !parameters.is_empty() {
        object["parameters"] = parameters.into();
    }
    let mut responses = Map::new();
    for code in operation.codes {
        responses.insert(code.to_string(), json!({"description": "OK", "schema": reference(&operation.answer)}));
    }
    responses.insert("401".to_owned(), json!({"description": "Unauthorized"}));
    object["responses"] = responses.into();
    object
}
