//! Checks the schemas of a definition: what may be said at all, then whether it is structural, then the defaults.

use std::collections::HashSet;

use serde_json::{Map, Value};

use super::{defaults, rules, structural};
use crate::cel::Budget;
use crate::custom::{Structural, pattern};
use crate::kinds::value::Read;
use crate::kinds::{FieldError, FieldErrors};
use crate::meta::field::Path;

const TYPES: [&str; 6] = ["array", "boolean", "integer", "number", "object", "string"];
const META: [&str; 3] = ["metadata", "kind", "apiVersion"];
const REASONS: [&str; 4] = ["FieldValueDuplicate", "FieldValueForbidden", "FieldValueInvalid", "FieldValueRequired"];

/// What may stand at the root of a schema whose status is written apart.
const AT_ROOT: [&str; 22] = [
    "description",
    "type",
    "format",
    "title",
    "maximum",
    "exclusiveMaximum",
    "minimum",
    "exclusiveMinimum",
    "maxLength",
    "minLength",
    "pattern",
    "maxItems",
    "minItems",
    "uniqueItems",
    "multipleOf",
    "required",
    "items",
    "properties",
    "externalDocs",
    "example",
    "x-kubernetes-preserve-unknown-fields",
    "x-kubernetes-validations",
];
/// The same in the words of the reference.
const AT_ROOT_WORDS: &str = "[Description Type Format Title Maximum ExclusiveMaximum Minimum ExclusiveMinimum MaxLength MinLength Pattern MaxItems MinItems UniqueItems MultipleOf Required Items Properties ExternalDocs Example XPreserveUnknownFields XValidations]";

/// What is asked of a schema only if the definition kept to it before: rules became stricter over time, and what was accepted
/// can still be changed elsewhere.
pub(super) struct Tightened {
    atomic_sets: bool,
    list_keys: bool,
}

impl Tightened {
    pub fn since(old: Option<&Value>) -> Tightened {
        let keeps = |breaks: fn(&Value) -> bool| {
            let mut kept = true;
            for version in old.map(|old| old["versions"].items()).unwrap_or_default() {
                each(&version["schema"]["openAPIV3Schema"], &mut |schema| kept &= !breaks(schema));
            }
            kept
        };
        Tightened {
            atomic_sets: keeps(|schema| set_items(schema).is_some()),
            list_keys: keeps(|schema| {
                let mut errors = FieldErrors::new();
                list_keys(schema, &Path::new(""), &mut errors);
                !errors.is_empty()
            }),
        }
    }
}

/// What all schemas of a definition cost together.
#[derive(Default)]
pub(super) struct Work {
    /// States of patterns.
    pub states: usize,
    /// Steps of checking defaults.
    pub steps: usize,
    /// Of rules.
    pub rules: Budget,
    /// Patterns that were compiled, and are good.
    pub patterns: HashSet<String>,
}

impl Work {
    /// What is wrong with a pattern.
    pub fn pattern(&mut self, text: &str) -> Result<(), String> {
        if self.patterns.contains(text) {
            return Ok(());
        }
        if self.states > pattern::STATES_ALL_MAX {
            return Err("the patterns of this definition are too large together".to_owned());
        }
        let pattern = pattern::Translation::of(text)?;
        // Also what turns out to be none has cost as much.
        self.states += pattern.states;
        pattern.check()?;
        self.patterns.insert(text.to_owned());
        Ok(())
    }
}

/// Calls for a schema and each within it.
pub(super) fn each(schema: &Value, call: &mut impl FnMut(&Value)) {
    if !schema.is_object() {
        return;
    }
    call(schema);
    for field in ["allOf", "anyOf", "oneOf"] {
        schema[field].items().iter().for_each(|below| each(below, call));
    }
    for field in ["items", "additionalProperties", "not"] {
        each(&schema[field], call);
    }
    schema["properties"].entries().for_each(|(_, below)| each(below, call));
}

/// Checks a schema at `path`.
pub(super) fn check(
    schema: &Value,
    has_status: bool,
    unchanged: bool,
    path: &Path<'_>,
    tightened: &Tightened,
    work: &mut Work,
    errors: &mut FieldErrors,
) {
    let before = errors.len();
    let here = path.child("openAPIV3Schema");
    if has_status {
        at_root(schema, path, errors);
    }
    if schema["nullable"].flag() {
        errors
            .push(FieldError::forbidden(path.child("openAPIV3Schema.nullable"), "nullable cannot be true at the root"));
    }
    let unsupported = structural::unsupported(schema);
    if unsupported.is_none() {
        let wrong = structural::check(schema, &here, work);
        if wrong.is_empty() {
            // What was accepted as it is needs no second look.
            if !unchanged {
                defaults::check(&Structural::read(schema), &here, work, errors);
            }
        } else {
            let mut wrong = wrong.into_told();
            wrong.sort_by_cached_key(ToString::to_string);
            errors.extend(wrong);
        }
    }
    let within = Within { is_root: true, in_meta: false, no_defaults: None };
    parts(schema, &here, &within, tightened, errors);
    match unsupported {
        Some(why) if errors.len() == before => errors.push(FieldError::invalid(here, "", why)),
        None if errors.len() == before && !unchanged => {
            rules::check(&Structural::read_within(schema, &mut work.rules), &here, errors);
        }
        _ => {}
    }
}

/// What a schema may say beside its properties, when its status is written apart.
fn at_root(schema: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    let ty = schema["type"].text();
    if !ty.is_empty() && ty != "object" {
        let detail =
            "only \"object\" is allowed as the type at the root of the schema if the status subresource is enabled";
        return errors.push(FieldError::invalid(path.child("openAPIV3Schema.type"), ty, detail));
    }
    let says =
        |(name, value): (&String, &Value)| !AT_ROOT.contains(&name.as_str()) && !value.is_empty() && *value != false;
    if schema.entries().any(says) {
        let detail = format!(
            "only {AT_ROOT_WORDS} fields are allowed at the root of the schema if the status subresource is enabled"
        );
        errors.push(FieldError::invalid(path.child("openAPIV3Schema"), schema, &detail));
    }
}

/// Where a schema stands.
#[derive(Clone, Copy)]
struct Within<'a> {
    is_root: bool,
    /// Within metadata, kind or version of an object.
    in_meta: bool,
    /// Why no defaults may stand here.
    no_defaults: Option<&'a str>,
}

fn parts(schema: &Value, path: &Path<'_>, within: &Within<'_>, tightened: &Tightened, errors: &mut FieldErrors) {
    if !schema.is_object() || errors.is_full() {
        return;
    }
    words(schema, path, within, errors);
    if schema["uniqueItems"].flag() {
        let detail = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
        errors.push(FieldError::forbidden(path.child("uniqueItems"), detail));
    }
    let below = Within { is_root: false, ..*within };
    let additional = &schema["additionalProperties"];
    if additional.is_set() {
        let at = path.child("additionalProperties");
        if !schema["properties"].is_empty() && *additional != true {
            errors.push(FieldError::forbidden(at, "additionalProperties and properties are mutual exclusive"));
        }
        let why = "inside additionalProperties applying to object metadata";
        let below = Within { no_defaults: if within.in_meta { Some(why) } else { below.no_defaults }, ..below };
        parts(additional, &at, &below, tightened, errors);
    }
    let properties = path.child("properties");
    for (name, property) in schema["properties"].entries() {
        let is_meta =
            (within.is_root || schema["x-kubernetes-embedded-resource"].flag()) && META.contains(&name.as_str());
        let why = format!("in top-level {name}");
        let below = Within {
            is_root: false,
            in_meta: within.in_meta || is_meta,
            no_defaults: if is_meta && within.is_root { Some(&why) } else { within.no_defaults },
        };
        parts(property, &properties.key(name), &below, tightened, errors);
    }
    parts(&schema["not"], &path.child("not"), &below, tightened, errors);
    for junctor in ["allOf", "oneOf", "anyOf"] {
        let at = path.child(junctor);
        for (index, one) in schema[junctor].items().iter().enumerate() {
            parts(one, &at.index(index), &below, tightened, errors);
        }
    }
    parts(&schema["items"], &path.child("items"), &below, tightened, errors);
    extensions(schema, path, tightened, errors);
    rules(schema, path, errors);
}

/// What of OpenAPI is known.
fn words(schema: &Value, path: &Path<'_>, within: &Within<'_>, errors: &mut FieldErrors) {
    let ty = schema["type"].text();
    if !ty.is_empty() && !TYPES.contains(&ty) {
        errors.push(FieldError::not_supported(path.child("type"), ty, &TYPES));
    }
    if let Some(why) = within.no_defaults.filter(|_| schema["default"].is_set()) {
        errors.push(FieldError::forbidden(path.child("default"), &format!("must not be set {why}")));
    }
    for field in ["id", "additionalItems", "patternProperties", "definitions", "dependencies", "$ref"] {
        let given = &schema[field];
        if given.is_set() && !(given.is_empty() && matches!(field, "id" | "patternProperties" | "definitions")) {
            errors.push(FieldError::forbidden(path.child(field), &format!("{field} is not supported")));
        }
    }
    if ty == "null" {
        let detail = "type cannot be set to null, use nullable as an alternative";
        errors.push(FieldError::forbidden(path.child("type"), detail));
    }
    if schema["items"].is_array() {
        errors.push(FieldError::forbidden(path.child("items"), "items must be a schema object and not an array"));
    }
    if within.in_meta && schema["x-kubernetes-embedded-resource"].flag() {
        let detail = "must not be used inside of resource meta";
        errors.push(FieldError::forbidden(path.child("x-kubernetes-embedded-resource"), detail));
    }
}

/// The type of a set's items, when they have parts that a set cannot tell apart, and what says so.
fn set_items(schema: &Value) -> Option<&'static str> {
    let items = &schema["items"];
    if schema["x-kubernetes-list-type"] != "set" || !items.is_object() {
        return None;
    }
    let (list, map) = (items["x-kubernetes-list-type"].text(), items["x-kubernetes-map-type"].text());
    match items["type"].text() {
        "array" if !list.is_empty() && list != "atomic" => Some("x-kubernetes-list-type"),
        "object" if map != "atomic" => Some("x-kubernetes-map-type"),
        _ => None,
    }
}

fn extensions(schema: &Value, path: &Path<'_>, tightened: &Tightened, errors: &mut FieldErrors) {
    let ty = schema["type"].text();
    if schema["x-kubernetes-preserve-unknown-fields"] == false {
        let at = path.child("x-kubernetes-preserve-unknown-fields");
        errors.push(FieldError::invalid(at, false, "must be true or undefined"));
    }
    let mut wants = |extension: &str, wanted: &str, kinds: &[&str], detail: &str| {
        let given = &schema[extension];
        if given.is_null() {
            return true;
        }
        let is_of = ty == wanted;
        match ty {
            _ if is_of => {}
            "" => errors.push(FieldError::required(path.child("type"), detail)),
            ty => errors.push(FieldError::invalid(path.child("type"), ty, detail)),
        }
        if !kinds.contains(&given.text()) {
            errors.push(FieldError::not_supported(path.child(extension), given.text(), kinds));
        }
        is_of
    };
    let detail = "must be object if x-kubernetes-map-type is specified";
    wants("x-kubernetes-map-type", "object", &["atomic", "granular"], detail);
    let detail = "must be array if x-kubernetes-list-type is specified";
    let is_list = wants("x-kubernetes-list-type", "array", &["atomic", "set", "map"], detail);
    let items_path = path.child("items");
    if let Some(extension) = set_items(schema).filter(|_| is_list && tightened.atomic_sets) {
        let detail = "must be atomic as item of a list with x-kubernetes-list-type=set";
        let given = &schema["items"]["x-kubernetes-list-type"];
        errors.push(FieldError::invalid(items_path.child(extension), given, detail));
    }
    let (keys, list) = (schema["x-kubernetes-list-map-keys"].items(), &schema["x-kubernetes-list-type"]);
    let at_list = path.child("x-kubernetes-list-type");
    if !keys.is_empty() && *list != "map" {
        let detail = "must be map if x-kubernetes-list-map-keys is non-empty";
        match list {
            Value::Null => errors.push(FieldError::required(at_list, detail)),
            list => errors.push(FieldError::invalid(at_list, list, detail)),
        }
    }
    if *list == "map" {
        keyed_list(schema, keys, path, errors);
    }
    if tightened.list_keys {
        list_keys(schema, path, errors);
    }
}

fn keyed_list(schema: &Value, keys: &[Value], path: &Path<'_>, errors: &mut FieldErrors) {
    let (at_keys, at_items) = (path.child("x-kubernetes-list-map-keys"), path.child("items"));
    if keys.is_empty() {
        errors.push(FieldError::required(at_keys, "must not be empty if x-kubernetes-list-type is map"));
    }
    let items = &schema["items"];
    match items {
        Value::Null => {
            return errors.push(FieldError::required(at_items, "must have a schema if x-kubernetes-list-type is map"));
        }
        Value::Object(_) => {}
        other => {
            let detail = "must only have a single schema if x-kubernetes-list-type is map";
            return errors.push(FieldError::invalid(at_items, other, detail));
        }
    }
    if items["type"] != "object" {
        let detail = "must be object if parent array's x-kubernetes-list-type is map";
        return errors.push(FieldError::invalid(at_items.child("type"), items["type"].text(), detail));
    }
    let mut seen = HashSet::new();
    let properties = at_items.child("properties");
    for key in keys.iter().map(Read::text) {
        match items["properties"].get(key).map(|property| property["type"].text()) {
            Some("array" | "object") => {
                let detail = "must be a scalar type if parent array's x-kubernetes-list-type is map";
                errors.push(FieldError::invalid(properties.key(key).child("type"), "object", detail));
            }
            Some(_) => {}
            None => {
                let given = &schema["x-kubernetes-list-map-keys"];
                errors.push(FieldError::invalid(at_keys, given, "entries must all be names of item properties"));
            }
        }
        if !seen.insert(key) {
            let given = &schema["x-kubernetes-list-map-keys"];
            errors.push(FieldError::invalid(at_keys, given, "must not contain duplicate entries"));
        }
    }
}

/// Items that are told apart are there, and have their keys.
fn list_keys(schema: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    let (items, list) = (&schema["items"], schema["x-kubernetes-list-type"].text());
    if !items.is_object() || !matches!(list, "set" | "map") {
        return;
    }
    let at = path.child("items");
    if items["nullable"].flag() {
        let detail = format!("cannot be nullable when x-kubernetes-list-type is {list}");
        errors.push(FieldError::forbidden(at.child("nullable"), &detail));
    }
    if list == "set" {
        return;
    }
    let required: HashSet<&str> = items["required"].items().iter().map(Read::text).collect();
    let properties = at.child("properties");
    for key in schema["x-kubernetes-list-map-keys"].items().iter().map(Read::text) {
        let Some(property) = items["properties"].get(key) else { continue };
        let at = properties.key(key);
        if !required.contains(key) && property["default"].is_null() {
            let detail =
                "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property";
            errors.push(FieldError::required(at.child("default"), detail));
        }
        if property["nullable"].flag() {
            let detail = "this property is in x-kubernetes-list-map-keys, so it cannot be nullable";
            errors.push(FieldError::forbidden(at.child("nullable"), detail));
        }
    }
}

/// What can be said of rules without evaluating them.
fn rules(schema: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    let has_breaks = |text: &str| text.contains(['\n', '\r']);
    let all = path.child("x-kubernetes-validations");
    for (index, rule) in schema["x-kubernetes-validations"].items().iter().enumerate() {
        let at = all.index(index);
        let (words, message) = (rule["rule"].text().trim(), rule["message"].text());
        if words.is_empty() {
            errors.push(FieldError::required(at.child("rule"), "rule is not specified"));
        } else if !message.is_empty() && message.trim().is_empty() {
            errors.push(FieldError::invalid(at.child("message"), message, "must be non-empty if specified"));
        } else if has_breaks(message.trim()) {
            errors.push(FieldError::invalid(at.child("message"), message, "must not contain line breaks"));
        } else if has_breaks(words) && message.is_empty() {
            let detail = "message must be specified if rule contains line breaks";
            errors.push(FieldError::required(at.child("message"), detail));
        }
        let expression = rule["messageExpression"].text();
        if !expression.is_empty() && expression.trim().is_empty() {
            let detail = "messageExpression must be non-empty if specified";
            errors.push(FieldError::required(at.child("messageExpression"), detail));
        }
        if let Some(reason) = rule["reason"].as_str().filter(|reason| !REASONS.contains(reason)) {
            errors.push(FieldError::not_supported(at.child("reason"), reason, &REASONS));
        }
        let field = rule["fieldPath"].text();
        if field.is_empty() {
            continue;
        }
        if field.trim().is_empty() {
            errors.push(FieldError::invalid(at.child("fieldPath"), field, "must be non-empty if specified"));
        }
        if has_breaks(field) {
            errors.push(FieldError::invalid(at.child("fieldPath"), field, "must not contain line breaks"));
        }
        if is_field(field, schema).is_err() {
            errors.push(FieldError::invalid(at.child("fieldPath"), field, "must be a valid path"));
        }
    }
}

/// The field of a schema that a path of names leads to; without brackets.
pub(super) fn field_of<'a>(path: &str, schema: &'a Structural) -> Result<&'a Structural, String> {
    if path.contains('[') {
        return Err("array notation is not allowed".to_owned());
    }
    let Some(names) = path.strip_prefix('.') else { return Err(format!("expected [ or . but got: {path}")) };
    names.split('.').try_fold(schema, |schema, name| match name {
        "" => Err("unexpected end of JSON path".to_owned()),
        name => schema.named_or_other(name).ok_or_else(|| "does not refer to a valid field".to_owned()),
    })
}

/// Whether selectors may ask for a field of this schema.
pub(super) fn is_selectable(schema: &Structural) -> bool {
    use crate::custom::Type;
    matches!(schema.ty, Type::String | Type::Boolean | Type::Integer)
}

/// Whether a path, which may have quoted names in brackets, leads to a field of a schema.
fn is_field(path: &str, schema: &Value) -> Result<(), ()> {
    let (mut rest, mut schema) = (path, schema);
    while !rest.is_empty() {
        let name;
        if let Some(after) = rest.strip_prefix("['") {
            let (quoted, after) = after.split_once("']").ok_or(())?;
            (name, rest) = (quoted, after);
        } else {
            let after = rest.strip_prefix('.').ok_or(())?;
            let end = after.find(['.', '[']).unwrap_or(after.len());
            (name, rest) = after.split_at(end);
        }
        let named = schema["properties"].as_object().filter(|fields: &&Map<String, Value>| !fields.is_empty());
        schema = match named {
            Some(fields) => fields.get(name).ok_or(())?,
            None if schema["additionalProperties"].is_object() => &schema["additionalProperties"],
            None => return Err(()),
        };
    }
    Ok(())
}
