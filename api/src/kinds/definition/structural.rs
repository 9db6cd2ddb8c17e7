//! Whether a schema is structural: every value has a type that does not depend on other values, and what is checked of a value
//! is checked of one that the schema describes (kubernetes-api §22.2; `schema.ValidateStructural` there).

use serde_json::{Value, json};

use super::schema::Work;
use crate::kinds::value::Read;
use crate::kinds::{FieldError, FieldErrors};
use crate::meta::field::Path;

/// Where a schema stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    Root,
    Item,
    Field,
}

/// What a structural schema cannot be made of.
pub(super) fn unsupported(schema: &Value) -> Option<&'static str> {
    const FIELDS: [(&str, &str); 7] = [
        ("id", "OpenAPIV3Schema 'id' is not supported"),
        ("$schema", "OpenAPIV3Schema 'schema' is not supported"),
        ("$ref", "OpenAPIV3Schema '$ref' is not supported"),
        ("patternProperties", "OpenAPIV3Schema 'patternProperties' is not supported"),
        ("dependencies", "OpenAPIV3Schema 'dependencies' is not supported"),
        ("additionalItems", "OpenAPIV3Schema 'additionalItems' is not supported"),
        ("definitions", "OpenAPIV3Schema 'definitions' is not supported"),
    ];
    let mut found = None;
    super::schema::each(schema, &mut |schema| {
        let here = FIELDS.iter().find(|(field, _)| schema[*field].is_set() && !schema[*field].is_empty());
        let here = here.map(|(_, words)| *words);
        let here =
            here.or(schema["items"].is_array().then_some("OpenAPIV3Schema 'items' must be a schema, but is an array"));
        let closed = schema["x-kubernetes-preserve-unknown-fields"] == false;
        let words = "internal error: 'x-kubernetes-preserve-unknown-fields' must be true or undefined";
        found = found.or(here).or(closed.then_some(words));
    });
    found
}

/// What is not structural.
pub(super) fn check(schema: &Value, path: &Path<'_>, work: &mut Work) -> FieldErrors {
    let mut checker = Checker { errors: FieldErrors::new(), work };
    checker.invariants(schema, Level::Root, path);
    checker.complete(schema, Some(schema), path, path);
    checker.errors
}

struct Checker<'a> {
    errors: FieldErrors,
    work: &'a mut Work,
}

impl Checker<'_> {
    fn required(&mut self, path: &Path<'_>, detail: &str) {
        self.errors.push(FieldError::required(path, detail));
    }

    fn forbidden(&mut self, path: &Path<'_>, detail: &str) {
        self.errors.push(FieldError::forbidden(path, detail));
    }

    fn invariants(&mut self, schema: &Value, level: Level, path: &Path<'_>) {
        if !schema.is_object() || self.errors.is_full() {
            return;
        }
        let ty = schema["type"].text();
        let (embedded, open, int_or_string) = (
            schema["x-kubernetes-embedded-resource"].flag(),
            schema["x-kubernetes-preserve-unknown-fields"].flag(),
            schema["x-kubernetes-int-or-string"].flag(),
        );
        if ty == "array" && !schema["items"].is_object() && !schema["items"].is_array() {
            self.required(&path.child("items"), "must be specified");
        }
        self.invariants(&schema["items"], Level::Item, &path.child("items"));
        let properties = path.child("properties");
        for (name, property) in schema["properties"].entries() {
            self.invariants(property, Level::Field, &properties.key(name));
        }
        let additional = path.child("additionalProperties");
        if schema["additionalProperties"].is_set() {
            if level == Level::Root {
                self.forbidden(&additional, "must not be used at the root");
            }
            self.invariants(&schema["additionalProperties"], Level::Field, &additional);
        }
        if int_or_string && open {
            let at = path.child("x-kubernetes-preserve-unknown-fields");
            self.errors.push(FieldError::invalid(at, true, "must be false if x-kubernetes-int-or-string is true"));
        }
        if int_or_string && embedded {
            let at = path.child("x-kubernetes-embedded-resource");
            self.errors.push(FieldError::invalid(at, true, "must be false if x-kubernetes-int-or-string is true"));
        }
        let skips = [is_either(&schema["anyOf"]), is_either(&schema["allOf"][0]["anyOf"])];
        self.values(schema, skips, level, path);
        let at_type = path.child("type");
        if embedded && ty != "object" {
            let detail = "must be object if x-kubernetes-embedded-resource is true";
            match ty {
                "" => self.required(&at_type, detail),
                ty => self.errors.push(FieldError::invalid(at_type, ty, detail)),
            }
        } else if ty.is_empty() && !int_or_string && !open {
            let detail = match level {
                Level::Root => "must not be empty at the root",
                Level::Item => "must not be empty for specified array items",
                Level::Field => "must not be empty for specified object fields",
            };
            self.required(&at_type, detail);
        }
        if embedded && schema["additionalProperties"].is_set() {
            self.forbidden(&additional, "must not be used if x-kubernetes-embedded-resource is set");
        }
        if level == Level::Root && !ty.is_empty() && ty != "object" {
            self.errors.push(FieldError::invalid(at_type, ty, "must be object at the root"));
        }
        self.meta_fields(schema, level, embedded, &properties);
        if embedded && !open && schema["properties"].is_empty() {
            let detail = "must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields";
            self.required(&properties, detail);
        }
    }

    /// What a schema may say of the fields that every object has.
    fn meta_fields(&mut self, schema: &Value, level: Level, embedded: bool, properties: &Path<'_>) {
        let is_object = level == Level::Root || embedded;
        for name in ["kind", "apiVersion"] {
            if let Some(property) = schema["properties"].get(name).filter(|_| is_object)
                && property["type"] != "string"
            {
                let at = properties.key(name);
                self.errors.push(FieldError::invalid(at.child("type"), property["type"].text(), "must be string"));
            }
        }
        let Some(metadata) = schema["properties"].get("metadata") else { return };
        let at = properties.key("metadata");
        if is_object && metadata["type"] != "object" {
            self.errors.push(FieldError::invalid(at.child("type"), metadata["type"].text(), "must be object"));
        }
        if level != Level::Root {
            return;
        }
        let names_only =
            metadata["properties"].entries().all(|(name, _)| matches!(name.as_str(), "name" | "generateName"));
        let says_more = metadata.entries().any(|(field, value)| {
            !matches!(field.as_str(), "type" | "default" | "properties") && !value.is_empty() && *value != false
        });
        if !names_only || says_more {
            let detail =
                "must not specify anything other than name and generateName, but metadata is implicitly specified";
            self.forbidden(&at, detail);
        }
    }

    /// What is checked of a value. `skips` says that the first words are those of a number or text.
    fn values(&mut self, schema: &Value, skips: [bool; 2], level: Level, path: &Path<'_>) {
        let [skip_any, skip_first_all] = skips;
        let junctor = |name: &'static str| (path.child(name), schema[name].items());
        if !skip_any {
            let (at, all) = junctor("anyOf");
            all.iter().enumerate().for_each(|(index, one)| self.nested(one, false, level, &at.index(index)));
        }
        let (at, all) = junctor("allOf");
        for (index, one) in all.iter().enumerate() {
            self.nested(one, skip_first_all && index == 0, level, &at.index(index));
        }
        let (at, all) = junctor("oneOf");
        all.iter().enumerate().for_each(|(index, one)| self.nested(one, false, level, &at.index(index)));
        self.nested(&schema["not"], false, level, &path.child("not"));
        let pattern = schema["pattern"].text();
        if !pattern.is_empty()
            && let Err(why) = self.work.pattern(pattern)
        {
            let detail = format!("must be a valid regular expression, but isn't: {why}");
            self.errors.push(FieldError::invalid(path.child("pattern"), pattern, &detail));
        }
    }

    /// Below a junctor values are only checked: nothing is said there of what they are.
    fn nested(&mut self, schema: &Value, skip_any: bool, level: Level, path: &Path<'_>) {
        if !schema.is_object() || self.errors.is_full() {
            return;
        }
        self.values(schema, [skip_any, false], level, path);
        self.nested(&schema["items"], false, level, &path.child("items"));
        let properties = path.child("properties");
        for (name, property) in schema["properties"].entries() {
            self.nested(property, false, Level::Field, &properties.key(name));
        }
        const FORBIDDEN: [(&str, &str); 13] = [
            ("type", "must be empty to be structural"),
            ("additionalProperties", "must be undefined to be structural"),
            ("default", "must be undefined to be structural"),
            ("title", "must be empty to be structural"),
            ("description", "must be empty to be structural"),
            ("nullable", "must be false to be structural"),
            ("x-kubernetes-preserve-unknown-fields", "must be false to be structural"),
            ("x-kubernetes-embedded-resource", "must be false to be structural"),
            ("x-kubernetes-int-or-string", "must be false to be structural"),
            ("x-kubernetes-list-map-keys", "must be empty to be structural"),
            ("x-kubernetes-list-type", "must be undefined to be structural"),
            ("x-kubernetes-map-type", "must be undefined to be structural"),
            ("x-kubernetes-validations", "must be empty to be structural"),
        ];
        for (field, detail) in FORBIDDEN {
            let given = &schema[field];
            let says = match field {
                "default" => given.is_set(),
                _ => given.is_set() && *given != false && !(given.is_empty() && field != "additionalProperties"),
            };
            if says {
                self.forbidden(&path.child(field), detail);
            }
        }
        if schema["properties"].get("metadata").is_some() {
            self.forbidden(&properties.key("metadata"), "must not be specified in a nested context");
        }
    }

    /// Everything that is checked of a value below a junctor has its counterpart in the schema itself.
    fn complete(&mut self, values: &Value, schema: Option<&Value>, at: &Path<'_>, path: &Path<'_>) {
        self.complete_nested(&values["not"], schema, at, &path.child("not"));
        for junctor in ["allOf", "anyOf", "oneOf"] {
            let path = path.child(junctor);
            for (index, one) in values[junctor].items().iter().enumerate() {
                self.complete_nested(one, schema, at, &path.index(index));
            }
        }
    }

    fn complete_nested(&mut self, values: &Value, schema: Option<&Value>, at: &Path<'_>, path: &Path<'_>) {
        if !values.is_object() || self.errors.is_full() {
            return;
        }
        let Some(schema) = schema.filter(|schema| schema.is_object()) else {
            return self.required(at, &format!("because it is defined in {path}"));
        };
        self.complete(values, Some(schema), at, path);
        let items = &values["items"];
        self.complete_nested(items, schema.get("items"), &at.child("items"), &path.child("items"));
        let (at_properties, path_properties) = (at.child("properties"), path.child("properties"));
        for (name, property) in values["properties"].entries() {
            let (at, path) = (at_properties.key(name), path_properties.key(name));
            match schema["properties"].get(name) {
                Some(schema) => self.complete_nested(property, Some(schema), &at, &path),
                None => self.required(&at, &format!("because it is defined in {path}")),
            }
        }
    }
}

/// The words by which a number or text is told.
fn is_either(any_of: &Value) -> bool {
    *any_of == json!([{ "type": "integer" }, { "type": "string" }])
}
