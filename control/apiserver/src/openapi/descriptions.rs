//! What the documentation says of types and fields. The text is unpacked for the time a document is made.

use std::collections::HashMap;
use std::io::Read;

use coracle_api::schema::openapi::{self, Version};
use flate2::read::GzDecoder;
use serde_json::Value;

/// See `data/descriptions.py`.
const PACKED: &[u8] = include_bytes!("../../data/descriptions.txt.gz");

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
        let Some(texts) = self.0.get(name) else { return Some(definition) };
        if let Some(text) = texts.get("") {
            definition["description"] = text.as_str().into();
        }
        for (field, property) in definition.get_mut("properties").and_then(Value::as_object_mut).into_iter().flatten() {
            let Some(text) = texts.get(field) else { continue };
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
    }
}
