//! What the documentation says of types and fields. The text is unpacked for the time a document is made.

use std::collections::HashMap;
use std::io::Read;

use coracle_api::schema::openapi::{self, Version};
use flate2::read::GzDecoder;
use serde_json::Value;

/// See `data/descriptions.py`.
const PACKED: &[u8] = include_bytes!("../../data/descriptions.txt.gz");

/// A type that says of `apiVersion` and `kind` what Kubernetes says of them in every kind.
const TYPE_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions";

/// Every description by type, then field; that of the type itself has no field.
pub(super) struct Descriptions(HashMap<String, HashMap<String, String>>);

impl Descriptions {
    pub fn unpack() -> Descriptions {
        let mut text = String::new();
        // Packed when this program was built; without descriptions the documents are still right.
        let _ = GzDecoder::new(PACKED).read_to_string(&mut text);
        let mut all: HashMap<String, HashMap<String, String>> = HashMap::new();
        for line in text.lines() {
            let mut parts = line.splitn(3, '\t');
            if let (Some(name), Some(field), Some(text)) = (parts.next(), parts.next(), parts.next()) {
                all.entry(name.to_owned()).or_default().insert(field.to_owned(), text.replace("\\n", "\n"));
            }
        }
        Descriptions(all)
    }

    /// The definition of a type with its descriptions.
    pub fn definition(&self, name: &str, version: Version) -> Option<Value> {
        let mut definition = openapi::definition(name, version)?;
        let texts = self.0.get(name);
        let text = |field: &str| texts.and_then(|texts| texts.get(field));
        if let Some(text) = text("") {
            definition["description"] = text.as_str().into();
        }
        for (field, property) in definition.get_mut("properties").and_then(Value::as_object_mut).into_iter().flatten() {
            let of_every_kind =
                || matches!(&**field, "apiVersion" | "kind").then(|| self.0.get(TYPE_META)?.get(field)).flatten();
            let Some(text) = text(field).or_else(of_every_kind) else { continue };
            // Beside a reference nothing else counts in version 3: there it is wrapped.
            match property.as_object() {
                Some(fields) if version == Version::V3 && fields.contains_key("$ref") => {
                    let reference = property.take();
                    *property = serde_json::json!({"allOf": [reference], "description": text});
                }
                _ => property["description"] = text.as_str().into(),
            }
        }
        Some(definition)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_described() {
        let descriptions = Descriptions::unpack();
        let definition = descriptions.definition("io.k8s.api.core.v1.PodSpec", Version::V3).unwrap();
        for field in ["containers", "nodeName", "securityContext"] {
            assert!(definition["properties"][field]["description"].is_string(), "{field}");
        }
        let of = |name: &str, field: &str| {
            let definition = descriptions.definition(name, Version::V3).unwrap();
            definition["properties"][field]["description"].as_str().unwrap_or_default().to_owned()
        };
        assert!(of("io.k8s.api.core.v1.ConfigMap", "apiVersion").starts_with("APIVersion defines"));
        assert!(of("io.k8s.api.core.v1.ConfigMapList", "kind").starts_with("Kind is a string value"));
        assert!(
            of("io.k8s.api.core.v1.ObjectReference", "kind").starts_with("Kind of the referent"),
            "its own words stay"
        );
    }
}
