//! CustomResourceDefinition of `apiextensions.k8s.io`: what makes a kind (see [`crate::custom`]).
//!
//! Only what is written here is decided here; which names it gets, and when its resources are served, is decided by all
//! definitions together ([`crate::custom::names`]).

mod defaults;
mod rules;
mod schema;
mod structural;
#[cfg(test)]
mod tests;
mod validation;

use std::collections::BTreeSet;

use serde_json::Value;

use super::value::{Read, child, default_to, default_when_zero, fields, keep};
use super::{Cell, Column, FieldErrors, Kind, NAME, Strategy, VERBS, column, names, table, wide};
use crate::custom::{ESTABLISHED, Format};
use crate::meta::condition;
use crate::schema as types;

const TYPE: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinition";

pub(super) static KIND: Kind = Kind {
    group: "apiextensions.k8s.io",
    version: "v1",
    kind: "CustomResourceDefinition",
    resource: "customresourcedefinitions",
    singular: "customresourcedefinition",
    short_names: &["crd", "crds"],
    categories: &["api-extensions"],
    namespaced: false,
    schema: TYPE,
    collection: "customresourcedefinitions.apiextensions.k8s.io",
    verbs: VERBS,
    has_status: true,
    has_scale: false,
    subresources: &[],
    selectable: &[],
    columns: &[
        NAME,
        column("Scope", "string"),
        column("Versions", "string"),
        column("Created At", "date"),
        wide("Group", "string"),
        wide("Kind", "string"),
        wide("ShortNames", "string"),
        ESTABLISHED_COLUMN,
    ],
    strategy: &Definition,
};

const ESTABLISHED_COLUMN: Column = wide("Established", "boolean");

struct Definition;

impl Definition {
    /// What is stored under a version stays stored: it is added to those that were.
    fn add_stored_version(object: &mut Value) {
        let Some(storage) = storage_version(object).map(str::to_owned) else { return };
        let status = child(object, "status");
        let stored = fields(status).entry("storedVersions").or_insert(Value::Null);
        if !stored.is_array() {
            *stored = Value::Array(Vec::new());
        }
        if let Some(stored) = stored.as_array_mut()
            && stored.iter().all(|known| *known != storage)
        {
            stored.push(storage.into());
        }
    }
}

fn storage_version(object: &Value) -> Option<&str> {
    let versions = object["spec"]["versions"].items().iter();
    versions.filter(|version| version["storage"].flag()).map(|version| version["name"].text()).next()
}

impl Strategy for Definition {
    fn compiles(&self) -> bool {
        true
    }

    fn default(&self, object: &mut Value) {
        let spec = child(object, "spec");
        let kind = spec["names"]["kind"].text().to_owned();
        let names = child(spec, "names");
        default_when_zero(names, "singular", kind.to_lowercase());
        if !kind.is_empty() {
            default_when_zero(names, "listKind", format!("{kind}List"));
        }
        if spec["conversion"].is_null() {
            child(spec, "conversion");
            spec["conversion"]["strategy"] = "None".into();
        }
        if let Some(service) = spec.pointer_mut("/conversion/webhook/clientConfig/service").filter(|of| of.is_object())
        {
            default_to(service, "port", 443);
        }
        if object["status"]["storedVersions"].is_empty() {
            Definition::add_stored_version(object);
        }
    }

    fn prepare_create(&self, object: &mut Value) {
        let status = types::named(TYPE).and_then(|of| of.fields.get("status").map(types::Field::zero));
        fields(object).insert("status".to_owned(), status.unwrap_or_default());
        Definition::add_stored_version(object);
    }

    fn prepare_update(&self, object: &mut Value, old: &Value) {
        keep(object, old, "status");
        Definition::add_stored_version(object);
    }

    fn validate(&self, object: &Value, errors: &mut FieldErrors) {
        validation::definition(object, None, errors);
    }

    fn validate_update(&self, object: &Value, old: &Value, errors: &mut FieldErrors) {
        validation::definition(object, Some(old), errors);
    }

    fn validate_status_update(&self, object: &Value, _old: &Value, errors: &mut FieldErrors) {
        validation::status(object, errors);
    }

    fn check_name(&self, name: &str, is_prefix: bool) -> Vec<String> {
        names::name_is_dns_subdomain(name, is_prefix)
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        let known = old.map(warnings).unwrap_or_default();
        warnings(object).into_iter().filter(|warning| !known.contains(warning)).collect()
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn allows_unconditional_update(&self) -> bool {
        false
    }

    fn cells(&self, object: &Value) -> Vec<Cell> {
        let spec = &object["spec"];
        let mut versions: Vec<String> = spec["versions"]
            .items()
            .iter()
            .filter(|version| version["served"].flag())
            .map(|version| {
                format!("{}{}", version["name"].text(), if version["storage"].flag() { "(storage)" } else { "" })
            })
            .collect();
        versions.sort();
        let short: Vec<&str> = spec["names"]["shortNames"].items().iter().map(Read::text).collect();
        vec![
            table::name(object),
            spec["scope"].text().into(),
            versions.join(",").into(),
            object["metadata"]["creationTimestamp"].text().into(),
            spec["group"].text().into(),
            spec["names"]["kind"].text().into(),
            short.join(",").into(),
            Cell::Value(condition::is_true(object, ESTABLISHED).into()),
        ]
    }
}

/// What a definition asks for that has no effect, each once.
fn warnings(object: &Value) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for version in object["spec"]["versions"].items() {
        schema::each(&version["schema"]["openAPIV3Schema"], &mut |of| {
            let (format, ty) = (of["format"].text(), of["type"].text());
            if !format.is_empty() && !Format::is_known(format, ty) {
                found.insert(format!("unrecognized format {}", crate::meta::text::quote(format)));
            }
            let items = of["items"]["type"].text();
            if of["x-kubernetes-list-type"] == "set" && matches!(items, "object" | "array") {
                found.insert(format!(
                    "x-kubernetes-list-type: set for items of type {} is not supported by server-side apply or CEL validation rules",
                    crate::meta::text::quote(items)
                ));
            }
        });
    }
    found
}
