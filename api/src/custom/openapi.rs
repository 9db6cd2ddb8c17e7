//! The schema of a custom resource as it is published: as it was written, with the fields that every object has. Version 2 of
//! OpenAPI knows less, and kubectl, which reads it, breaks on some of the rest.

use serde_json::{Map, Value, json};

use crate::schema::openapi::Version;

/// The name of a kind's type in the documents: `com.example.v1.Gadget`.
#[must_use]
pub fn type_name(group: &str, version: &str, kind: &str) -> String {
    let group: Vec<&str> = group.rsplit('.').collect();
    format!("{}.{version}.{kind}", group.join("."))
}

/// What the documents say of the three fields that every object has.
pub struct MetaFields {
    /// The property `apiVersion`.
    pub api_version: Value,
    /// The property `kind`.
    pub kind: Value,
    /// The property `metadata` of an object.
    pub metadata: Value,
    /// The property `metadata` of a list.
    pub list_metadata: Value,
}

/// The definition of a kind, from its entry in `spec.versions`.
#[must_use]
pub fn definition(written: &Value, gvk: (&str, &str, &str), meta: &MetaFields, version: Version) -> Value {
    let mut schema = written["schema"]["openAPIV3Schema"].clone();
    let open = schema["x-kubernetes-preserve-unknown-fields"] == true;
    if !schema.is_object() || (open && version == Version::V2) {
        schema = json!({ "type": "object" });
    } else {
        published(&mut schema, meta, version);
        let fields = properties(&mut schema);
        fields.insert("apiVersion".to_owned(), meta.api_version.clone());
        fields.insert("kind".to_owned(), meta.kind.clone());
        fields.insert("metadata".to_owned(), meta.metadata.clone());
    }
    let (group, of, kind) = gvk;
    schema["x-kubernetes-group-version-kind"] = json!([{ "group": group, "version": of, "kind": kind }]);
    add_selectable(&mut schema, written);
    schema
}

/// The definition of the list of a kind.
#[must_use]
pub fn list(
    written: &Value,
    gvk: (&str, &str, &str),
    names: (&str, &str),
    meta: &MetaFields,
    version: Version,
) -> Value {
    let ((group, of, kind), (list_kind, plural)) = (gvk, names);
    let place = if version == Version::V2 { "definitions" } else { "components/schemas" };
    let reference = format!("#/{place}/{}", type_name(group, of, kind));
    let mut list = json!({
        "description": format!("{list_kind} is a list of {kind}"),
        "type": "object",
        "required": ["items"],
        "properties": {
            "apiVersion": meta.api_version,
            "kind": meta.kind,
            "metadata": meta.list_metadata,
            "items": {
                "description": format!("List of {plural}. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md"),
                "type": "array",
                "items": { "$ref": reference },
            },
        },
        "x-kubernetes-group-version-kind": [{ "group": group, "version": of, "kind": list_kind }],
    });
    add_selectable(&mut list, written);
    list
}

fn add_selectable(schema: &mut Value, written: &Value) {
    let Some(fields) = written["selectableFields"].as_array().filter(|fields| !fields.is_empty()) else { return };
    let path = |field: &Value| {
        let path = field["jsonPath"].as_str().unwrap_or_default();
        json!({ "fieldPath": path.trim_start_matches('.') })
    };
    schema["x-kubernetes-selectable-fields"] = fields.iter().map(path).collect();
}

fn properties(schema: &mut Value) -> &mut Map<String, Value> {
    if !schema["properties"].is_object() {
        schema["properties"] = json!({});
    }
    schema["properties"].as_object_mut().expect("it was just made an object")
}

fn published(schema: &mut Value, meta: &MetaFields, version: Version) {
    if !schema.is_object() {
        return;
    }
    if version == Version::V2 {
        reduce(schema);
    } else if schema["x-kubernetes-int-or-string"] == true {
        unfold(schema);
    }
    for field in schema.get_mut("properties").and_then(Value::as_object_mut).into_iter().flat_map(Map::values_mut) {
        published(field, meta, version);
    }
    for below in ["items", "additionalProperties"] {
        if let Some(below) = schema.get_mut(below) {
            published(below, meta, version);
        }
    }
    let open = schema["x-kubernetes-preserve-unknown-fields"] == true;
    if schema["x-kubernetes-embedded-resource"] == true && !(open && version == Version::V2) {
        let fields = properties(schema);
        fields.insert("apiVersion".to_owned(), meta.api_version.clone());
        fields.insert("kind".to_owned(), meta.kind.clone());
        fields.insert("metadata".to_owned(), meta.metadata.clone());
        let mut required = schema["required"].as_array().cloned().unwrap_or_default();
        for name in ["kind", "apiVersion"] {
            if required.iter().all(|known| known != name) {
                required.push(name.into());
            }
        }
        schema["required"] = required.into();
    }
}

/// Says what a number or text is in words that everybody knows.
fn unfold(schema: &mut Value) {
    let either = json!([{ "type": "integer" }, { "type": "string" }]);
    if schema["anyOf"] == either || schema["allOf"][0]["anyOf"] == either {
        return;
    }
    if schema.get("anyOf").is_none() {
        schema["anyOf"] = either;
        return;
    }
    let mut all = vec![json!({ "anyOf": either })];
    all.extend(schema["allOf"].as_array().cloned().unwrap_or_default());
    schema["allOf"] = all.into();
}

/// Leaves out what version 2 has no words for.
fn reduce(schema: &mut Value) {
    let nullable_fields: Vec<String> = schema["properties"]
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(_, field)| field["nullable"] == true)
        .map(|(name, _)| name.clone())
        .collect();
    let nullable_values = schema["additionalProperties"]["nullable"] == true;
    let Some(fields) = schema.as_object_mut() else { return };
    for junctor in ["allOf", "oneOf", "anyOf", "not"] {
        fields.remove(junctor);
    }
    let is = |fields: &Map<String, Value>, name: &str| fields.get(name).is_some_and(|flag| flag == true);
    let (nullable, open) = (is(fields, "nullable"), is(fields, "x-kubernetes-preserve-unknown-fields"));
    if nullable {
        fields.remove("type");
        fields.remove("nullable");
    }
    if nullable || open {
        fields.remove("items");
        fields.remove("properties");
    }
    let ty = fields.get("type").and_then(Value::as_str).unwrap_or_default();
    if (ty == "array" && !fields.contains_key("items")) || (ty == "object" && open) {
        fields.remove("type");
    }
    if nullable_values {
        fields.remove("required");
    } else if let Some(required) = fields.get_mut("required").and_then(Value::as_array_mut) {
        required.retain(|name| nullable_fields.iter().all(|nullable| name != nullable.as_str()));
        if required.is_empty() {
            fields.remove("required");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta() -> MetaFields {
        let text = json!({ "type": "string" });
        let (metadata, list_metadata) = (json!({ "$ref": "meta" }), json!({ "$ref": "list" }));
        MetaFields { api_version: text.clone(), kind: text, metadata, list_metadata }
    }

    #[test]
    fn each_version_says_what_its_readers_understand() {
        let written = json!({"schema": {"openAPIV3Schema": {
            "type": "object", "required": ["a", "b"], "properties": {
                "a": {"type": "string", "nullable": true},
                "b": {"type": "array", "items": {"type": "string"}, "x-kubernetes-preserve-unknown-fields": true},
                "p": {"x-kubernetes-int-or-string": true},
                "e": {"type": "object", "x-kubernetes-embedded-resource": true, "properties": {"spec": {"type": "string"}}},
                "o": {"type": "object", "oneOf": [{"required": ["x"]}], "properties": {"x": {"type": "string"}}},
            },
        }}, "selectableFields": [{"jsonPath": ".a"}]});
        let gvk = ("example.com", "v1", "Gadget");
        let three = definition(&written, gvk, &meta(), Version::V3);
        assert_eq!(three["properties"]["p"]["anyOf"], json!([{"type": "integer"}, {"type": "string"}]));
        assert_eq!(three["properties"]["e"]["required"], json!(["kind", "apiVersion"]));
        assert_eq!(three["properties"]["a"], json!({"type": "string", "nullable": true}));
        assert_eq!(three["x-kubernetes-selectable-fields"], json!([{"fieldPath": "a"}]));
        let two = definition(&written, gvk, &meta(), Version::V2);
        assert_eq!((&two["properties"]["a"], &two["required"]), (&json!({}), &json!(["b"])));
        assert_eq!(two["properties"]["b"], json!({"x-kubernetes-preserve-unknown-fields": true}));
        assert!(two["properties"]["o"].get("oneOf").is_none() && two["properties"]["p"].get("anyOf").is_none());
        let open =
            json!({"schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}});
        assert!(definition(&open, gvk, &meta(), Version::V2).get("properties").is_none());
        assert_eq!(type_name("a.example.com", "v1", "Gadget"), "com.example.a.v1.Gadget");
    }
}
