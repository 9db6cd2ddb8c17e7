//! OpenAPI definitions of the built-in types, made from the table: both documents that a server offers say the same.
//!
//! Descriptions are not in the table; who has them adds them.

use serde_json::{Map, Value, json};

use super::table::{Line, entry, full_name};

/// Which of the two documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// `/openapi/v2`: references to `#/definitions/…`, no defaults.
    V2,
    /// `/openapi/v3`: references to `#/components/schemas/…`.
    V3,
}

impl Version {
    fn reference(self, name: &str) -> Value {
        let place = if self == Version::V2 { "definitions" } else { "components/schemas" };
        json!({ "$ref": format!("#/{place}/{name}") })
    }
}

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";
const EXTENSIONS: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1";
const QUANTITY: &str = "io.k8s.apimachinery.pkg.api.resource.Quantity";
const INT_OR_STRING: &str = "io.k8s.apimachinery.pkg.util.intstr.IntOrString";
const RAW_EXTENSION: &str = "io.k8s.apimachinery.pkg.runtime.RawExtension";

/// Names of all definitions, in order; those of types with a form of their own (times, quantities) among them.
#[must_use]
pub fn names() -> Vec<String> {
    let hidden = |name: &str| entry(name).is_some_and(|entry| entry.attributes.split(' ').any(|word| word == "hidden"));
    let mut names = super::names().filter(|name| !hidden(name)).map(str::to_owned).collect::<Vec<_>>();
    names.extend([QUANTITY, INT_OR_STRING, RAW_EXTENSION].map(str::to_owned));
    names.extend(["Time", "MicroTime", "FieldsV1", "Patch"].map(|name| format!("{META}.{name}")));
    let forms = ["JSON", "JSONSchemaPropsOrArray", "JSONSchemaPropsOrBool", "JSONSchemaPropsOrStringArray"];
    names.extend(forms.map(|name| format!("{EXTENSIONS}.{name}")));
    names.sort_unstable();
    names
}

/// The definition of a built-in type.
#[must_use]
pub fn definition(name: &str, version: Version) -> Option<Value> {
    if let Some(known) = special(name, version) {
        return Some(known);
    }
    let entry = entry(name)?;
    let mut definition = Map::new();
    let mut properties = Map::new();
    let mut required = Vec::new();
    for line in entry.lines.lines().filter_map(Line::read) {
        if line.attributes().any(|word| word == "!") {
            required.push(line.name);
        }
        properties.insert(line.name.to_owned(), property(&line, entry.package, version));
    }
    if !properties.is_empty() {
        definition.insert("properties".into(), Value::Object(properties));
    }
    if !required.is_empty() {
        definition.insert("required".into(), json!(required));
    }
    definition.insert("type".into(), "object".into());
    for word in entry.attributes.split(' ') {
        match word.split_once('=') {
            Some(("unions", unions)) => {
                let unions = serde_json::from_str(unions).unwrap_or_default();
                definition.insert("x-kubernetes-unions".into(), unions);
            }
            None if matches!(word, "atomic" | "granular") => {
                definition.insert("x-kubernetes-map-type".into(), word.into());
            }
            _ => {}
        }
    }
    let kinds = super::kinds_of(name);
    if !kinds.is_empty() {
        let kind = |(group, version, kind)| json!({ "group": group, "version": version, "kind": kind });
        definition.insert("x-kubernetes-group-version-kind".into(), kinds.into_iter().map(kind).collect());
    }
    Some(Value::Object(definition))
}

fn property(line: &Line, package: &str, version: Version) -> Value {
    let mut property = ty(line.ty, package, version);
    let mut default = None;
    for word in line.attributes() {
        let (key, value) = word.split_once('=').unwrap_or((word, ""));
        let list = line.ty.starts_with(['[', 'B']);
        match key {
            "atomic" | "granular" if !list => property["x-kubernetes-map-type"] = key.into(),
            "atomic" | "set" | "map" => {
                property["x-kubernetes-list-type"] = key.into();
                if key == "map" {
                    property["x-kubernetes-list-map-keys"] = value.split(',').collect();
                }
            }
            "merge" | "retain" | "replace" => {
                let word = if key == "retain" { "retainKeys" } else { key };
                let strategy = match property.get("x-kubernetes-patch-strategy") {
                    Some(Value::String(before)) => format!("{before},{word}"),
                    _ => word.to_owned(),
                };
                property["x-kubernetes-patch-strategy"] = strategy.into();
            }
            "key" => property["x-kubernetes-patch-merge-key"] = value.into(),
            "enum" => property["enum"] = choices(value),
            "items" if list => property["items"]["enum"] = choices(value),
            "items" => property["additionalProperties"]["enum"] = choices(value),
            "~" => default = Some(zero(line.ty)),
            "default" => default = serde_json::from_str(value).ok(),
            _ => {}
        }
    }
    if version == Version::V3 {
        // A reference has no siblings in OpenAPI 3.0, and every property has one: its description at least.
        if let Some(reference) = property.as_object_mut().and_then(|fields| fields.remove("$ref")) {
            property["allOf"] = json!([{ "$ref": reference }]);
        }
        if let Some(default) = default {
            property["default"] = default;
        }
    }
    property
}

/// The values of an enumeration; a space is written `^` in the table.
fn choices(words: &str) -> Value {
    words.split('|').map(|word| word.replace('^', " ")).collect()
}

fn zero(code: &str) -> Value {
    match code.as_bytes().first() {
        Some(b's') => "".into(),
        Some(b'i' | b'l' | b'd') => 0.into(),
        Some(b'b') => false.into(),
        _ => json!({}),
    }
}

fn ty(code: &str, package: &str, version: Version) -> Value {
    let reference = |name: &str| version.reference(name);
    match (code.as_bytes().first(), code) {
        (Some(b'['), _) => json!({ "type": "array", "items": ty(&code[1..], package, version) }),
        (Some(b'{'), _) => {
            json!({ "type": "object", "additionalProperties": ty(&code[1..], package, version) })
        }
        (Some(b'@'), _) => reference(&full_name(&code[1..], package)),
        (_, "s") => json!({ "type": "string" }),
        (_, "B") => json!({ "type": "string", "format": "byte" }),
        (_, "t") => reference(&format!("{META}.Time")),
        (_, "u") => reference(&format!("{META}.MicroTime")),
        (_, "q") => reference(QUANTITY),
        (_, "x") => reference(INT_OR_STRING),
        (_, "i") => json!({ "type": "integer", "format": "int32" }),
        (_, "l") => json!({ "type": "integer", "format": "int64" }),
        (_, "d") => json!({ "type": "number", "format": "double" }),
        (_, "b") => json!({ "type": "boolean" }),
        (_, "aR") => reference(RAW_EXTENSION),
        (_, "aF") => reference(&format!("{META}.FieldsV1")),
        (_, "aJ") => reference(&format!("{EXTENSIONS}.JSON")),
        (_, "aA") => reference(&format!("{EXTENSIONS}.JSONSchemaPropsOrArray")),
        (_, "aB") => reference(&format!("{EXTENSIONS}.JSONSchemaPropsOrBool")),
        (_, "aS") => reference(&format!("{EXTENSIONS}.JSONSchemaPropsOrStringArray")),
        _ => json!({}),
    }
}

/// The types that are no structures in JSON.
fn special(name: &str, version: Version) -> Option<Value> {
    let three = version == Version::V3;
    Some(match name {
        QUANTITY if three => json!({ "oneOf": [{ "type": "string" }, { "type": "number" }] }),
        QUANTITY => json!({ "type": "string" }),
        INT_OR_STRING if three => {
            json!({ "format": "int-or-string", "oneOf": [{ "type": "integer" }, { "type": "string" }] })
        }
        INT_OR_STRING => json!({ "type": "string", "format": "int-or-string" }),
        RAW_EXTENSION => json!({ "type": "object" }),
        _ => match (name.strip_prefix(META), name.strip_prefix(EXTENSIONS)) {
            (Some(".Time" | ".MicroTime"), _) => json!({ "type": "string", "format": "date-time" }),
            (Some(".FieldsV1" | ".Patch"), _) => json!({ "type": "object" }),
            (_, Some(".JSON")) => json!({}),
            (_, Some(".JSONSchemaPropsOrArray" | ".JSONSchemaPropsOrBool" | ".JSONSchemaPropsOrStringArray")) => {
                json!({})
            }
            _ => return None,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_property_says_what_clients_read_from_it() {
        let pod = definition("io.k8s.api.core.v1.PodSpec", Version::V2).expect("built in");
        assert_eq!(
            pod["properties"]["volumes"],
            json!({
                "items": { "$ref": "#/definitions/io.k8s.api.core.v1.Volume" },
                "type": "array",
                "x-kubernetes-list-map-keys": ["name"],
                "x-kubernetes-list-type": "map",
                "x-kubernetes-patch-merge-key": "name",
                "x-kubernetes-patch-strategy": "merge,retainKeys",
            })
        );
        let container = definition("io.k8s.api.core.v1.Container", Version::V3).expect("built in");
        assert_eq!(container["properties"]["name"], json!({ "default": "", "type": "string" }));
        assert_eq!(
            container["properties"]["resources"],
            json!({ "default": {}, "allOf": [{ "$ref": "#/components/schemas/io.k8s.api.core.v1.ResourceRequirements" }] })
        );
    }

    #[test]
    fn every_reference_leads_to_a_definition() {
        fn references(value: &Value, found: &mut Vec<String>) {
            match value {
                Value::Object(fields) => fields.iter().for_each(|(key, value)| match value {
                    Value::String(to) if key == "$ref" => found.push(to.clone()),
                    _ => references(value, found),
                }),
                Value::Array(items) => items.iter().for_each(|item| references(item, found)),
                _ => {}
            }
        }
        for name in names() {
            let mut found = Vec::new();
            references(&definition(&name, Version::V3).expect("it is named"), &mut found);
            for to in found {
                let to = to.trim_start_matches("#/components/schemas/");
                assert!(definition(to, Version::V3).is_some(), "{name}: {to}");
            }
        }
    }
}
