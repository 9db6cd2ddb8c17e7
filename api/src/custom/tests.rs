//! One schema with everything, and what it makes of objects: the words are Kubernetes'.

use std::sync::Arc;

use serde_json::{Value, json};

use super::*;
use crate::codec::json as codec;
use crate::kinds::{Cell, Strategy};
use crate::meta::field::FieldErrors;

fn schema() -> Value {
    json!({
        "type": "object", "required": ["spec"], "properties": {
            "spec": {"type": "object", "required": ["colour"], "properties": {
                "colour": {"type": "string", "maxLength": 10, "enum": ["red", "green"]},
                "replicas": {"type": "integer", "minimum": 0, "default": 1},
                "small": {"type": "integer", "format": "int32", "maximum": 9, "exclusiveMaximum": true},
                "low": {"type": "integer"},
                "nested": {"type": "object", "default": {}, "properties": {
                    "a": {"type": "string", "default": "x"}, "b": {"type": "string", "nullable": true, "default": "why"},
                    "c": {"type": "string", "nullable": true},
                }},
                "email": {"type": "string", "format": "email"},
                "pattern": {"type": "string", "pattern": "^[a-z]+$", "minLength": 2, "maxLength": 4},
                "number": {"type": "number", "exclusiveMinimum": true, "minimum": 0, "multipleOf": 0.5},
                "port": {"x-kubernetes-int-or-string": true},
                "list": {"type": "array", "minItems": 1, "maxItems": 2, "items": {"type": "integer"}},
                "set": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
                "map": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"], "items": {
                    "type": "object", "required": ["k"], "properties": {"k": {"type": "string"}, "v": {"type": "integer", "maximum": 3}},
                }},
                "words": {"type": "object", "maxProperties": 2, "additionalProperties": {"type": "integer"}},
                "either": {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "string"}},
                    "oneOf": [{"required": ["a"]}, {"required": ["b"]}]},
                "any": {"type": "integer", "anyOf": [{"minimum": 10}, {"maximum": 3}], "not": {"enum": [2]}},
                "all": {"type": "integer", "allOf": [{"minimum": 10}, {"maximum": 30}]},
                "open": {"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {
                    "known": {"type": "object", "properties": {"k": {"type": "integer"}}},
                }},
                "embedded": {"type": "object", "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true},
                "free": {"x-kubernetes-preserve-unknown-fields": true},
            }},
            "status": {"type": "object", "properties": {"replicas": {"type": "integer"}, "selector": {"type": "string"}}},
        },
    })
}

fn definition() -> Value {
    let scale = json!({"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas", "labelSelectorPath": ".status.selector"});
    let columns = json!([
        {"name": "Colour", "type": "string", "jsonPath": ".spec.colour"},
        {"name": "Replicas", "type": "integer", "jsonPath": ".spec.replicas", "description": "how many", "priority": 1},
        {"name": "None", "type": "string", "jsonPath": ".spec.none"},
        {"name": "Set", "type": "string", "jsonPath": ".spec.set"},
        {"name": "Made", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
    ]);
    json!({
        "metadata": {"name": "gadgets.example.com", "uid": "u"},
        "spec": {
            "group": "example.com", "scope": "Namespaced",
            "names": {"plural": "gadgets", "singular": "gadget", "kind": "Gadget", "listKind": "GadgetList"},
            "versions": [
                {"name": "v1", "served": true, "storage": true, "subresources": {"status": {}, "scale": scale},
                    "selectableFields": [{"jsonPath": ".spec.colour"}], "additionalPrinterColumns": columns,
                    "schema": {"openAPIV3Schema": schema()}},
                {"name": "v2", "served": true, "storage": false, "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}},
                {"name": "v1beta1", "served": true, "deprecated": true, "storage": false, "schema": {"openAPIV3Schema": {"type": "object"}}},
            ],
        },
        "status": {
            "acceptedNames": {"plural": "gadgets", "singular": "gadget", "kind": "Gadget", "listKind": "GadgetList"},
            "conditions": [{"type": "Established", "status": "True"}, {"type": "NamesAccepted", "status": "True"}],
        },
    })
}

fn kind(version: &str) -> CustomKind {
    let object = definition();
    let (definition, schemas) = (Arc::new(Definition::read(&object)), Arc::new(Schemas::read(&object)));
    CustomKind::new(&definition, &object, &schemas, version).expect("a version")
}

/// What is stored of an object of v1 that is sent like this.
fn read(object: &Value) -> (Value, Vec<String>) {
    let kind = kind("v1").object();
    let decoded = codec::decode(object.to_string().as_bytes(), &kind).expect("an object");
    let mut value = decoded.value;
    crate::schema::apply_defaults(&mut value, &kind).unwrap();
    (value, decoded.problems)
}

fn gadget(spec: Value) -> Value {
    json!({"apiVersion": "example.com/v1", "kind": "Gadget", "metadata": {"name": "x"}, "spec": spec})
}

fn told(errors: FieldErrors) -> Vec<String> {
    errors.into_told().iter().map(ToString::to_string).collect()
}

fn wrong(spec: Value) -> Vec<String> {
    let mut errors = FieldErrors::new();
    kind("v1").validate(&read(&gadget(spec)).0, &mut errors);
    told(errors)
}

#[test]
fn what_is_sent_is_pruned_and_filled_in() {
    let (value, problems) = read(&gadget(json!({"colour": "red"})));
    assert_eq!(value["spec"], json!({"colour": "red", "replicas": 1, "nested": {"a": "x", "b": "why"}}));
    assert!(problems.is_empty());
    let (value, _) = read(&gadget(
        json!({"colour": "red", "replicas": null, "low": null, "nested": {"a": null, "b": null, "c": null}}),
    ));
    assert_eq!(value["spec"], json!({"colour": "red", "replicas": 1, "nested": {"a": "x", "b": null, "c": null}}));
    let mut sent = gadget(json!({
        "colour": "green", "extra": 1, "nested": {"z": 1, "a": "y"}, "free": {"x": [1, 2.5, 3.0, null]},
        "open": {"known": {"k": 1, "z": 2}, "other": {"x": [1, 2.5]}},
        "embedded": {"apiVersion": "v1", "kind": "X", "metadata": {"name": "n", "strange": 1}, "foo": 1},
    }));
    (sent["extra"], sent["metadata"]["strange"]) = (json!(1), json!(1));
    let (value, problems) = read(&sent);
    assert_eq!(
        value["spec"],
        json!({
            "colour": "green", "replicas": 1, "nested": {"a": "y", "b": "why"}, "free": {"x": [1, 2.5, 3, null]},
            "open": {"known": {"k": 1}, "other": {"x": [1, 2.5]}},
            "embedded": {"apiVersion": "v1", "kind": "X", "metadata": {"name": "n"}, "foo": 1},
        })
    );
    assert!(value.get("extra").is_none() && value["metadata"].get("strange").is_none());
    let expected = [
        "metadata.strange",
        "extra",
        "spec.extra",
        "spec.nested.z",
        "spec.open.known.z",
        "spec.embedded.metadata.strange",
    ];
    assert_eq!(problems, expected.map(|path| format!("unknown field {path:?}")));
}

#[test]
fn what_cannot_be_read_at_all_is_told() {
    let object = kind("v1").object();
    let fails = |text: &str| codec::decode(text.as_bytes(), &object).unwrap_err().to_string();
    let expected = "json: cannot unmarshal number into Go struct field ObjectMeta.labels of type map[string]string";
    assert_eq!(fails(r#"{"kind":"Gadget","metadata":{"labels":5}}"#), expected);
    assert_eq!(fails(r#"{"metadata":"x"}"#), "json: cannot unmarshal string into Go value of type v1.ObjectMeta");
    let embedded = r#"{"spec":{"embedded":{"kind":5}}}"#;
    assert_eq!(fails(embedded), "spec.embedded.kind: Invalid value: 5: must be a string");
    let twice = codec::decode(br#"{"spec":{"colour":"red","colour":"green"}}"#, &object).unwrap();
    assert_eq!(twice.problems, ["duplicate field \"spec.colour\""]);
}

#[test]
fn what_is_wrong_is_told_in_the_words_of_kubernetes() {
    for (spec, expected) in [
        (
            json!({"replicas": -1}),
            vec![
                "spec.colour: Required value",
                "spec.replicas: Invalid value: -1: spec.replicas in body should be greater than or equal to 0",
                ".spec.replicas: Invalid value: -1: should be a non-negative integer",
            ],
        ),
        (
            json!({"colour": "blue"}),
            vec![r#"spec.colour: Unsupported value: "blue": supported values: "red", "green""#],
        ),
        (
            json!({"colour": 5}),
            vec![
                r#"spec.colour: Invalid value: "integer": spec.colour in body must be of type string: "integer""#,
                r#"spec.colour: Unsupported value: 5: supported values: "red", "green""#,
            ],
        ),
        (json!("x"), vec![r#"spec: Invalid value: "string": spec in body must be of type object: "string""#]),
        (
            json!({"colour": "red", "email": "a"}),
            vec![r#"spec.email: Invalid value: "a": spec.email in body must be of type email: "a""#],
        ),
        (json!({"colour": "red", "pattern": "ABCDE"}), vec!["spec.pattern: Too long: may not be more than 4 bytes"]),
        (
            json!({"colour": "red", "pattern": "ABC"}),
            vec![r#"spec.pattern: Invalid value: "ABC": spec.pattern in body should match '^[a-z]+$'"#],
        ),
        (
            json!({"colour": "red", "pattern": "a"}),
            vec![r#"spec.pattern: Invalid value: "a": spec.pattern in body should be at least 2 chars long"#],
        ),
        (
            json!({"colour": "red", "number": 0.3}),
            vec!["spec.number: Invalid value: 0.3: spec.number in body should be a multiple of 0.5"],
        ),
        (
            json!({"colour": "red", "number": -0.5}),
            vec!["spec.number: Invalid value: -0.5: spec.number in body should be greater than 0"],
        ),
        (
            json!({"colour": "red", "small": 9}),
            vec!["spec.small: Invalid value: 9: spec.small in body should be less than 9"],
        ),
        (
            json!({"colour": "red", "port": 1.5}),
            vec![r#"spec.port: Invalid value: "number": spec.port in body must be of type integer,string: "number""#],
        ),
        (json!({"colour": "red", "list": [1, 2, 3]}), vec!["spec.list: Too many: 3: must have at most 2 items"]),
        (
            json!({"colour": "red", "list": []}),
            vec!["spec.list: Invalid value: 0: spec.list in body should have at least 1 items"],
        ),
        (
            json!({"colour": "red", "list": [1, "x"]}),
            vec![r#"spec.list[1]: Invalid value: "string": spec.list[1] in body must be of type integer: "string""#],
        ),
        (json!({"colour": "red", "set": ["a", "b", "a", "a"]}), vec![r#"spec.set[2]: Duplicate value: "a""#]),
        (json!({"colour": "red", "map": [{"k": "a"}, {"k": "a"}]}), vec![r#"spec.map[1]: Duplicate value: {"k":"a"}"#]),
        (
            json!({"colour": "red", "words": {"a": 1, "b": 2, "c": 3}}),
            vec!["spec.words: Too many: 3: must have at most 2 items"],
        ),
        (
            json!({"colour": "red", "words": {"a": "x"}}),
            vec![r#"spec.words.a: Invalid value: "string": spec.words.a in body must be of type integer: "string""#],
        ),
        (
            json!({"colour": "red", "either": {"a": "1", "b": "2"}}),
            vec![
                r#"<nil>: Invalid value: "": "spec.either" must validate one and only one schema (oneOf). Found 2 valid alternatives"#,
            ],
        ),
        (
            json!({"colour": "red", "either": {}}),
            vec![
                r#"<nil>: Invalid value: "": "spec.either" must validate one and only one schema (oneOf). Found none valid"#,
                "spec.either.a: Required value",
            ],
        ),
        (
            json!({"colour": "red", "any": 5}),
            vec![
                r#"<nil>: Invalid value: "": "spec.any" must validate at least one schema (anyOf)"#,
                "spec.any: Invalid value: 5: spec.any in body should be greater than or equal to 10",
            ],
        ),
        (
            json!({"colour": "red", "any": 2}),
            vec![r#"<nil>: Invalid value: "": "spec.any" must not validate the schema (not)"#],
        ),
        (
            json!({"colour": "red", "all": 5}),
            vec![
                "spec.all: Invalid value: 5: spec.all in body should be greater than or equal to 10",
                r#"<nil>: Invalid value: "": "spec.all" must validate all the schemas (allOf)"#,
            ],
        ),
        (
            json!({"colour": "red", "embedded": {"foo": 1}}),
            vec!["spec.embedded.apiVersion: Required value", "spec.embedded.kind: Required value"],
        ),
        (
            json!({"colour": "red", "embedded": {"apiVersion": "v1", "kind": "X", "metadata": {"name": "a/b"}}}),
            vec![r#"spec.embedded.metadata.name: Invalid value: "a/b": may not contain '/'"#],
        ),
        (json!({"colour": "red", "port": "http", "list": [1], "any": 12, "all": 12, "number": 1.5}), vec![]),
    ] {
        let mut found = wrong(spec.clone());
        let mut expected: Vec<String> = expected.into_iter().map(str::to_owned).collect();
        found.sort();
        expected.sort();
        assert_eq!(found, expected, "{spec}");
    }
}

#[test]
fn a_null_is_wrong_where_none_may_be_and_nothing_stands_for_it() {
    let mut errors = FieldErrors::new();
    // As a patch of what was stored before could make it.
    kind("v1").validate(&gadget(json!({"colour": "red", "low": null})), &mut errors);
    let expected = r#"spec.low: Invalid value: "null": spec.low in body must be of type integer: "null""#;
    assert_eq!(told(errors), [expected]);
}

#[test]
fn what_was_wrong_before_and_has_not_changed_is_let_through() {
    let kind = kind("v1");
    let changed = |old: Value, new: Value| {
        let mut errors = FieldErrors::new();
        kind.validate_update(&gadget(new), &gadget(old), &mut errors);
        told(errors)
    };
    let bad = json!({"colour": "blue", "list": [1, 2, 3]});
    assert!(changed(bad.clone(), json!({"colour": "blue", "list": [1, 2, 3], "low": 1})).is_empty());
    assert_eq!(changed(bad.clone(), json!({"colour": "blue", "list": [1, 2, 4]})).len(), 1);
    // Items are the same by their keys, wherever they stand.
    let old = json!({"colour": "red", "map": [{"k": "a", "v": 9}]});
    assert!(changed(old.clone(), json!({"colour": "red", "map": [{"k": "b", "v": 1}, {"k": "a", "v": 9}]})).is_empty());
    assert_eq!(changed(old, json!({"colour": "red", "map": [{"k": "b", "v": 9}, {"k": "a", "v": 9}]})).len(), 1);
    let doubled = json!({"colour": "red", "set": ["a", "a"]});
    assert!(changed(doubled, json!({"colour": "red", "set": ["a", "a", "b", "b"]})).is_empty());
}

#[test]
fn status_and_generation_belong_to_whoever_may_change_them() {
    let kind = kind("v1");
    let mut new = gadget(json!({"colour": "red"}));
    new["status"] = json!({"replicas": 9});
    kind.prepare_create(&mut new);
    assert!(new.get("status").is_none());
    let mut old = gadget(json!({"colour": "red"}));
    (old["status"], old["metadata"]["labels"]) = (json!({"replicas": 1}), json!({"a": "b"}));
    let mut update = gadget(json!({"colour": "green"}));
    kind.prepare_update(&mut update, &old);
    assert_eq!(update["status"], old["status"]);
    assert!(kind.changes_generation(&update, &old) && !kind.changes_generation(&old, &old));
    let mut status = gadget(json!({"colour": "green"}));
    (status["status"], status["metadata"]["managedFields"]) = (json!({"replicas": 2}), json!([{"manager": "m"}]));
    kind.prepare_status_update(&mut status, &old);
    assert_eq!((&status["spec"], &status["metadata"]["labels"]), (&old["spec"], &old["metadata"]["labels"]));
    assert_eq!(
        (&status["status"]["replicas"], &status["metadata"]["managedFields"][0]["manager"]),
        (&json!(2), &json!("m"))
    );
    let mut errors = FieldErrors::new();
    status["status"] = json!({"replicas": "x", "selector": 5});
    kind.validate_status_update(&status, &old, &mut errors);
    let found = told(errors);
    assert!(
        found.contains(
            &r#"status.replicas: Invalid value: "string": status.replicas in body must be of type integer: "string""#
                .to_owned()
        ) || found[0].contains("replicas in body"),
        "{found:?}"
    );
}

#[test]
fn versions_share_what_is_stored() {
    let (one, two) = (kind("v1"), kind("v2"));
    let mut object = gadget(json!({"colour": "red", "extra": 1}));
    object["apiVersion"] = "example.com/v2".into();
    two.store(&mut object).unwrap();
    assert_eq!((&object["apiVersion"], object["spec"].get("extra")), (&json!("example.com/v1"), None));
    assert_eq!(object["spec"]["replicas"], 1, "what is stored is complete");
    // It was written before there was a default.
    object["spec"].as_object_mut().unwrap().remove("replicas");
    let mut seen = object.clone();
    assert_eq!(two.show(&mut seen), Ok(true));
    assert_eq!((&seen["apiVersion"], &seen["spec"]["replicas"]), (&json!("example.com/v2"), &json!(1)));
    let mut stored = object.clone();
    assert_eq!([one.renew(&mut stored), one.renew(&mut stored)], [Ok(true), Ok(false)], "once");
    let deprecated = kind("v1beta1").version.deprecation;
    assert_eq!(deprecated.as_deref(), Some("example.com/v1beta1 Gadget is deprecated; use example.com/v2 Gadget"));
}

#[test]
fn columns_and_selectors_show_what_their_paths_lead_to() {
    let kind = kind("v1");
    let mut object = gadget(json!({"colour": "red", "replicas": 3, "set": ["a", "b"]}));
    object["metadata"]["creationTimestamp"] = "2026-01-02T03:04:05Z".into();
    let cells = kind.cells(&object);
    let values = [json!("x"), json!("red"), json!(3), Value::Null, json!("[\"a\",\"b\"]")].map(Cell::Value);
    assert_eq!(cells[..5], values);
    assert_eq!(cells[5], Cell::Age("2026-01-02T03:04:05Z".parse().ok()));
    let columns: Vec<&str> = kind.columns.iter().map(|column| column.description.as_str()).collect();
    assert_eq!(columns[..2], ["Custom resource definition column (in JSONPath format): .spec.colour", "how many"]);
    assert_eq!(super::kind::CustomKind::field(&kind, &object, "spec.colour").as_deref(), Some("red"));
    assert_eq!(kind.field(&gadget(json!({})), "spec.colour").as_deref(), Some(""));
    assert_eq!(kind.field(&object, "spec.low"), None);
}

#[test]
fn a_schema_that_asks_for_very_much_costs_little() {
    let started = crate::spent::now();
    let many: Vec<Value> = (0..5_000).map(|number| json!({"minimum": number, "maximum": number})).collect();
    let schema = Structural::read(&json!({"type": "array", "items": {"type": "integer", "anyOf": many}}));
    let items: Vec<Value> = (0..20_000).map(|_| json!(-1)).collect();
    let mut errors = FieldErrors::new();
    validate(&schema, &json!(items), None, "", &mut errors);
    assert!(told(errors)[0].contains("asks for more than"), "it is refused");
    let pattern = json!({"type": "string", "pattern": "^(([a-z])+.)+[A-Z]([a-z])+$"});
    let mut errors = FieldErrors::new();
    validate(&Structural::read(&pattern), &json!("a".repeat(1 << 20)), None, "", &mut errors);
    assert_eq!(errors.len(), 1);
    let properties: serde_json::Map<String, Value> =
        (0..100_000).map(|number| (format!("f{number}"), json!({"type": "string", "default": "x"}))).collect();
    let schema = Structural::read(&json!({"type": "object", "properties": properties}));
    let mut object = json!({});
    apply_defaults(&mut object, &schema).unwrap();
    assert_eq!(object.as_object().unwrap().len(), 100_000);
    let spent = crate::spent::now() - started;
    assert!(spent < std::time::Duration::from_secs(60), "{spent:?}");
}

#[test]
fn defaults_unfold_so_far_and_no_further() {
    let started = crate::spent::now();
    // Each item of a default has a thousand items of its own.
    let empty = json!(vec![json!({}); 1_000]);
    let nested = (0..3).fold(json!({"type": "string"}), |below, _| {
        let items = json!({"type": "object", "properties": {"l": below}});
        json!({"type": "array", "default": empty, "items": items})
    });
    let nested = Structural::read(&json!({"type": "object", "properties": {"l": nested}}));
    assert_eq!(apply_defaults(&mut json!({}), &nested), Err(TooMuch));
    // Each of many items has a large default, where it is absent or null.
    let large = json!({"type": "string", "default": "x".repeat(100_000)});
    let named = json!({"type": "array", "items": {"type": "object", "properties": {"a": large}}});
    let unnamed = json!({"type": "array", "items": large});
    for (schema, item) in [(named, json!({})), (unnamed, Value::Null)] {
        let schema = Structural::read(&schema);
        let mut few = json!(vec![item.clone(); 100]);
        assert_eq!(apply_defaults(&mut few, &schema), Ok(()));
        assert!(few.to_string().len() > 10_000_000);
        assert_eq!(apply_defaults(&mut json!(vec![item; 1 << 20]), &schema), Err(TooMuch));
    }
    // What has no default is not asked of each item.
    let mut properties: serde_json::Map<String, Value> =
        (0..100_000).map(|number| (format!("f{number}"), json!({"type": "string"}))).collect();
    properties
        .insert("d".to_owned(), json!({"type": "object", "properties": {"x": {"type": "integer", "default": 1}}}));
    let schema = Structural::read(&json!({"type": "array", "items": {"type": "object", "properties": properties}}));
    assert_eq!(apply_defaults(&mut json!(vec![json!({}); 1 << 20]), &schema), Ok(()));
    let spent = crate::spent::now() - started;
    assert!(spent < std::time::Duration::from_secs(60), "{spent:?}");
}

#[test]
fn old_items_are_looked_up_for_a_price() {
    let started = crate::spent::now();
    let alternatives = json!(vec![json!({"items": {"required": ["z"]}}); 2_000]);
    let schema = json!({
        "type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"], "anyOf": alternatives,
        "items": {"type": "object", "properties": {"k": {"type": "string"}}},
    });
    let schema = Structural::read(&schema);
    let items = |count: usize| json!((0..count).map(|number| json!({"k": number.to_string()})).collect::<Vec<Value>>());
    let changed = |old: Value, new: Value| {
        let mut errors = FieldErrors::new();
        validate(&schema, &new, Some(&old), "", &mut errors);
        told(errors)
    };
    assert!(changed(items(20_000), json!([{"k": "0", "v": 1}]))[0].contains("asks for more than"));
    // A long key is not written down again for nothing, either.
    let long = json!([{"k": "x".repeat(2 << 20)}]);
    assert!(changed(items(1), long)[0].contains("asks for more than"));
    // Where there are no new items, nothing is looked up.
    assert!(changed(items(20_000), json!([])).is_empty());
    let spent = crate::spent::now() - started;
    assert!(spent < std::time::Duration::from_secs(60), "{spent:?}");
}
