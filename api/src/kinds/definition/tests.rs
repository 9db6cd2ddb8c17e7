//! What is wrong with definitions, in Kubernetes' words; schemas that are hostile cost little.

use serde_json::{Value, json};

use super::{Definition, KIND};
use crate::kinds::{FieldErrors, Strategy};

fn definition(schema: Value) -> Value {
    let mut object = json!({
        "metadata": {"name": "things.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced", "names": {"plural": "things", "kind": "Thing"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}],
        },
    });
    Definition.default(&mut object);
    object
}

fn wrong(object: &Value) -> Vec<String> {
    let mut errors = FieldErrors::new();
    Definition.validate(object, &mut errors);
    errors.into_told().iter().map(ToString::to_string).collect()
}

/// What is wrong with a field `a` of a schema; paths are cut where they begin alike.
fn wrong_field(field: Value) -> Vec<String> {
    let found = wrong(&definition(json!({"type": "object", "properties": {"a": field}})));
    found.iter().map(|error| error.replace("spec.validation.openAPIV3Schema.properties[a]", "a")).collect()
}

#[test]
fn a_definition_gets_its_names_and_its_stored_version() {
    let object = definition(json!({"type": "object"}));
    assert_eq!(object["spec"]["names"]["singular"], "thing");
    assert_eq!(object["spec"]["names"]["listKind"], "ThingList");
    assert_eq!(
        (&object["spec"]["conversion"], &object["status"]["storedVersions"]),
        (&json!({"strategy": "None"}), &json!(["v1"]))
    );
    assert_eq!(wrong(&object), Vec::<String>::new());
    let mut made = object.clone();
    made["status"]["conditions"] = json!([{"type": "Established", "status": "True"}]);
    Definition.prepare_create(&mut made);
    let expected = json!({"conditions": null, "acceptedNames": {"plural": "", "kind": ""}, "storedVersions": ["v1"]});
    assert_eq!(made["status"], expected);
    let mut next = object.clone();
    next["spec"]["versions"] = json!([{"name": "v1"}, {"name": "v2", "storage": true}]);
    Definition.prepare_update(&mut next, &object);
    assert_eq!(next["status"]["storedVersions"], json!(["v1", "v2"]));
    assert_eq!(KIND.columns.len(), Definition.cells(&object).len());
}

#[test]
fn what_is_wrong_with_names_and_versions_is_told() {
    let mut object = definition(json!({"type": "object"}));
    object["metadata"]["name"] = "thing.example.com".into();
    object["spec"]["scope"] = "Galactic".into();
    object["spec"]["names"]["shortNames"] = json!(["A_"]);
    let twice = object["spec"]["versions"][0].clone();
    object["spec"]["versions"].as_array_mut().unwrap().push(twice);
    let found = wrong(&object);
    let has = |text: &str| assert!(found.iter().any(|error| error.contains(text)), "{text}: {found:#?}");
    has("metadata.name: Invalid value: \"thing.example.com\": must be spec.names.plural+\".\"+spec.group");
    has("spec.scope: Unsupported value: \"Galactic\": supported values: \"Cluster\", \"Namespaced\"");
    has("spec.names.shortNames[0]: Invalid value: \"A_\"");
    has("must contain unique version names");
    has("must have exactly one version marked as storage version");
    let mut none = definition(json!({"type": "object"}));
    none["spec"]["versions"][0].as_object_mut().unwrap().remove("schema");
    assert_eq!(wrong(&none), ["spec.versions[0].schema.openAPIV3Schema: Required value"]);
    let mut webhook = definition(json!({"type": "object"}));
    webhook["spec"]["conversion"] = json!({"strategy": "Webhook", "webhook": {"conversionReviewVersions": ["v1"]}});
    let expected = "spec.conversion.webhookClientConfig: Required value: required when strategy is set to Webhook";
    assert_eq!(wrong(&webhook), [expected]);
    webhook["spec"]["conversion"]["webhook"]["clientConfig"] = json!({"url": "https://example.com/convert"});
    assert_eq!(wrong(&webhook), Vec::<String>::new());
    let mut protected = definition(json!({"type": "object"}));
    (protected["metadata"]["name"], protected["spec"]["group"]) = (json!("things.x.k8s.io"), json!("x.k8s.io"));
    assert!(wrong(&protected)[0].starts_with("metadata.annotations[api-approved.kubernetes.io]: Required value"));
}

#[test]
fn a_schema_is_structural() {
    for (field, expected) in [
        (json!({}), vec!["a.type: Required value: must not be empty for specified object fields"]),
        (json!({"type": "array"}), vec!["a.items: Required value: must be specified"]),
        (
            json!({"type": "words"}),
            vec![
                r#"a.type: Unsupported value: "words": supported values: "array", "boolean", "integer", "number", "object", "string""#,
            ],
        ),
        (
            json!({"type": "string", "pattern": "["}),
            vec!["a.pattern: Invalid value: \"[\": must be a valid regular expression, but isn't: missing closing ]"],
        ),
        (
            json!({"type": "integer", "anyOf": [{"type": "integer"}]}),
            vec!["a.anyOf[0].type: Forbidden: must be empty to be structural"],
        ),
        (json!({"type": "object", "$ref": "#/a"}), vec!["a.$ref: Forbidden: $ref is not supported"]),
        (json!({"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]}), vec![]),
        (
            json!({"type": "object", "x-kubernetes-embedded-resource": true}),
            vec![
                "a.properties: Required value: must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields",
            ],
        ),
        (
            json!({"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "object"}}),
            vec![
                "a.items.x-kubernetes-map-type: Invalid value: null: must be atomic as item of a list with x-kubernetes-list-type=set",
            ],
        ),
        (
            json!({"type": "array", "x-kubernetes-list-type": "map", "items": {"type": "object"}}),
            vec!["a.x-kubernetes-list-map-keys: Required value: must not be empty if x-kubernetes-list-type is map"],
        ),
        (
            json!({"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"], "items": {"type": "object", "properties": {"k": {"type": "string"}}}}),
            vec![
                "a.items.properties[k].default: Required value: this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property",
            ],
        ),
        (
            json!({"type": "string", "uniqueItems": true}),
            vec![
                "a.uniqueItems: Forbidden: uniqueItems cannot be set to true since the runtime complexity becomes quadratic",
            ],
        ),
        (
            json!({"type": "object", "properties": {"b": {"type": "string"}}, "additionalProperties": {"type": "string"}}),
            vec!["a.additionalProperties: Forbidden: additionalProperties and properties are mutual exclusive"],
        ),
    ] {
        assert_eq!(wrong_field(field.clone()), expected, "{field}");
    }
    let metadata = definition(
        json!({"type": "object", "properties": {"metadata": {"type": "object", "properties": {"labels": {"type": "object"}}}}}),
    );
    assert!(wrong(&metadata)[0].contains("must not specify anything other than name and generateName"));
    let unsaid = definition(json!({"type": "object", "anyOf": [{"properties": {"b": {"minimum": 1}}}]}));
    assert!(
        wrong(&unsaid)[0].contains("properties[b]: Required value: because it is defined in"),
        "{:?}",
        wrong(&unsaid)
    );
}

#[test]
fn a_default_is_a_value_of_its_schema() {
    for (field, expected) in [
        (
            json!({"type": "integer", "default": "x"}),
            vec![r#"a.default: Invalid value: "string": a.default in body must be of type integer: "string""#],
        ),
        (
            json!({"type": "object", "default": {"b": 1}, "properties": {"c": {"type": "string"}}}),
            vec![r#"a.default: Invalid value: {"b":1}: must not have unknown fields"#],
        ),
        (
            json!({"type": "object", "default": {"c": "y"}, "properties": {"c": {"type": "string", "default": "x"}}}),
            vec![],
        ),
    ] {
        let found: Vec<String> = wrong_field(field.clone())
            .iter()
            .map(|error| error.replace(": in body", ": a.default in body").replace(":  in body", ": a.default in body"))
            .collect();
        assert_eq!(found, expected, "{field}");
    }
}

#[test]
fn what_has_no_effect_is_told() {
    let object = definition(json!({"type": "object", "properties": {
        "a": {"type": "string", "format": "strange"},
        "b": {"type": "integer", "x-kubernetes-validations": [{"rule": "self > 1"}]},
    }}));
    assert_eq!(Definition.warnings(&object, None), ["unrecognized format \"strange\""]);
    assert!(Definition.warnings(&object, Some(&object)).is_empty());
}

#[test]
fn hostile_schemas_are_read_in_bounded_time() {
    let started = crate::spent::now();
    let many = |make: &dyn Fn(usize) -> Value, count: usize| {
        let properties: serde_json::Map<String, Value> =
            (0..count).map(|number| (format!("f{number}"), make(number))).collect();
        definition(json!({"type": "object", "properties": properties}))
    };
    assert!(wrong(&many(&|_| json!({"type": "string"}), 50_000)).is_empty());
    let large = many(&|number| json!({"type": "string", "pattern": format!("^a{{{}}}$", 900 + number % 100)}), 2_000);
    assert!(wrong(&large).is_empty(), "the same patterns are compiled once");
    let distinct = many(&|number| json!({"type": "string", "pattern": format!("^x{number}[a-z]{{900}}$")}), 5_000);
    assert!(wrong(&distinct).iter().any(|error| error.contains("too large together")));
    let choices: Vec<String> = (0..100_000).map(|number| number.to_string()).collect();
    assert!(wrong_field(json!({"type": "string", "enum": choices})).is_empty());
    let items: Vec<i64> = vec![-1; 20_000];
    let alternatives: Vec<Value> = (0..10_000).map(|number| json!({"minimum": number})).collect();
    let costly =
        wrong_field(json!({"type": "array", "default": items, "items": {"type": "integer", "anyOf": alternatives}}));
    assert!(costly[0].contains("asks for more than"), "{costly:?}");
    let deep =
        (0..190).fold(json!({"type": "string"}), |inner, _| json!({"type": "object", "properties": {"a": inner}}));
    assert!(wrong_field(deep).is_empty());
    let spent = crate::spent::now() - started;
    assert!(spent < std::time::Duration::from_secs(60), "{spent:?}");
}

#[test]
fn defaults_that_unfold_without_end_are_refused() {
    let mut below = json!({"type": "string"});
    for _ in 0..3 {
        let items = json!({"type": "object", "properties": {"l": below}});
        below = json!({"type": "array", "default": vec![json!({}); 1_000], "items": items});
    }
    assert_eq!(
        wrong(&definition(json!({"type": "object", "properties": {"l": below}}))),
        ["spec.validation.openAPIV3Schema: Forbidden: the defaults unfold to more than an object may have"]
    );
}

#[test]
fn the_rules_of_all_versions_share_what_compiling_them_may_take() {
    let rules = vec![json!({"rule": "self.a.matches('(a{1000}){19}')"}); 30];
    let schema = |more: &str| {
        let a = json!({"type": "string", "description": more, "maxLength": 1});
        json!({"type": "object", "required": ["a"], "properties": {"a": a}, "x-kubernetes-validations": rules})
    };
    let mut object = definition(schema("1"));
    assert_eq!(wrong(&object), Vec::<String>::new());
    let more = json!({"name": "v2", "served": true, "storage": false, "schema": {"openAPIV3Schema": schema("2")}});
    object["spec"]["versions"].as_array_mut().expect("versions").push(more);
    let wrong = wrong(&object);
    assert!(!wrong.is_empty() && wrong.len() < 30, "{wrong:#?}");
    assert!(
        wrong.iter().all(|why| why.starts_with("spec.versions[1]") && why.contains("invalid matches argument")),
        "{wrong:#?}"
    );
}
