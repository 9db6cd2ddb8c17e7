//! The types of custom resources, as they are published.

use coracle_api::custom::openapi::{self, MetaFields, type_name};
use coracle_api::schema::openapi::Version as Document;
use serde_json::{Map, Value, json};

use super::descriptions::Descriptions;
use crate::discovery::{Group, Version};

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";
/// A kind whose fields say of themselves what those of every kind say.
const ANY_KIND: &str = "io.k8s.api.core.v1.ConfigMap";
const ANY_LIST: &str = "io.k8s.api.core.v1.ConfigMapList";

/// The definitions of a version of a group, by name.
pub(super) fn definitions(
    group: &Group,
    version: &Version,
    descriptions: &Descriptions,
    document: Document,
) -> Map<String, Value> {
    let mut all = Map::new();
    let custom = version.resources.iter().filter_map(|entry| Some((entry, entry.definition.as_ref()?)));
    let mut meta = None;
    for (entry, standing) in custom {
        let meta = meta.get_or_insert_with(|| meta_fields(descriptions, document));
        let Some(object) = standing.object() else { continue };
        let written = object["spec"]["versions"].as_array().into_iter().flatten();
        let Some(written) = written.into_iter().find(|written| written["name"] == *version.version) else { continue };
        let gvk = (&*group.name, &*version.version, &*entry.kind);
        let name = |kind: &str| type_name(&group.name, &version.version, kind);
        all.insert(name(&entry.kind), openapi::definition(written, gvk, meta, document));
        let list = openapi::list(written, gvk, (&entry.list_kind, &entry.name), meta, document);
        all.insert(name(&entry.list_kind), list);
    }
    all
}

fn meta_fields(descriptions: &Descriptions, document: Document) -> MetaFields {
    let property = |name: &str, field: &str| {
        let definition = descriptions.definition(name, document).unwrap_or_default();
        definition["properties"][field].clone()
    };
    let reference = |name: &str| match document {
        Document::V2 => json!({ "$ref": format!("#/definitions/{META}.{name}") }),
        Document::V3 => json!({ "allOf": [{ "$ref": format!("#/components/schemas/{META}.{name}") }] }),
    };
    let described = |mut reference: Value, text: &str| {
        reference["description"] = text.into();
        reference
    };
    let links = "More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md";
    MetaFields {
        api_version: property(ANY_KIND, "apiVersion"),
        kind: property(ANY_KIND, "kind"),
        metadata: described(reference("ObjectMeta"), &format!("Standard object's metadata. {links}#metadata")),
        list_metadata: match property(ANY_LIST, "metadata") {
            Value::Null => reference("ListMeta"),
            found => found,
        },
    }
}
