//! What must be true of every row.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::rules::tests::exists;
use crate::kinds::{FieldErrors, Support, all, by_kind, by_resource, warnings};
use crate::schema;

#[test]
fn every_row_has_a_type_columns_and_a_place_of_its_own() {
    let mut seen = BTreeSet::new();
    for row in all() {
        let name = format!("{}/{}/{}", row.group, row.version, row.resource);
        let schema = schema::named(row.schema).unwrap_or_else(|| panic!("{name}: no type {}", row.schema));
        assert!(schema.fields.contains_key("metadata"), "{name}");
        assert_eq!(schema.fields.contains_key("status"), row.has_status, "{name}: status");
        let kind = schema::of_kind(row.group, row.version, row.kind).expect("a type of this kind");
        assert_eq!(kind.name, row.schema, "{name}");
        let list = format!("{}List", row.kind);
        assert!(schema::of_kind(row.group, row.version, &list).is_some(), "{name}: {list}");
        assert!(row.columns.iter().any(|column| column.name == "Name"), "{name}");
        let cells = row.strategy.cells(&json!({"metadata": {"name": "a"}}));
        assert_eq!(cells.len(), row.columns.len(), "{name}");
        assert!(!row.verbs.is_empty() && row.verbs.is_sorted(), "{name}");
        assert_eq!(row.singular, row.kind.to_lowercase(), "{name}");
        assert!(seen.insert(name.clone()), "{name} is there twice");
    }
    // As many as Kubernetes 1.37 serves with its defaults, without those that are answered and not stored.
    assert_eq!(seen.len(), 65);
}

#[test]
fn every_rule_is_about_a_field_that_exists() {
    let mut seen = 0;
    for row in all() {
        let schema = schema::named(row.schema).expect("a type for each row");
        for path in row.strategy.named_fields() {
            assert!(exists(&schema, path), "{}: {path}", row.kind);
            seen += 1;
        }
    }
    assert!(seen > 50, "{seen}");
}

#[test]
fn an_empty_object_gets_its_defaults_twice_without_change() {
    for row in all().iter().filter(|row| row.strategy.support() != Support::Honoured) {
        let mut object = json!({"metadata": {"name": "a", "uid": "u", "creationTimestamp": "2026-01-02T03:04:05Z"}});
        row.strategy.to_storage(&mut object);
        row.strategy.default(&mut object);
        row.strategy.prepare_create(&mut object);
        let once = object.clone();
        row.strategy.default(&mut object);
        assert_eq!(object, once, "{}", row.kind);
        row.strategy.validate(&object, &mut FieldErrors::new());
    }
}

#[test]
fn what_is_not_done_is_said() {
    let row = |group, resource| by_resource(group, resource).expect("a row");
    let told = warnings(row("resource.k8s.io", "devicetaintrules"), &json!({}), None);
    let expected = "resource.k8s.io/v1 DeviceTaintRule: this version of Coracle stores the object, but no controller acts on it yet";
    assert_eq!(told, [expected]);
    assert!(warnings(row("", "configmaps"), &json!({}), None).is_empty());
    let mut secret = json!({"type": "kubernetes.io/service-account-token"});
    assert!(warnings(row("", "secrets"), &secret, None)[0].contains("no controller fills a secret of type"));
    secret["data"] = json!({"token": "eA=="});
    assert!(warnings(row("", "secrets"), &secret, None).is_empty());
}

/// Of as many states as one may have.
const HEAVY: &str = "'x'.matches('(a{1000}){19}')";

/// What is wrong with an object of a kind, and where.
fn wrong(group: &str, kind: &str, object: &Value) -> Vec<(String, String)> {
    let mut errors = FieldErrors::new();
    by_kind(group, kind).expect("a row").strategy.validate(object, &mut errors);
    errors.iter().map(|error| (error.field.clone(), error.message.clone())).collect()
}

#[test]
fn the_expressions_of_one_object_share_what_compiling_them_may_take() {
    let selectors = |count: usize| json!(vec![json!({"cel": {"expression": HEAVY}}); count]);
    let request = |name: &str| json!({"name": name, "exactly": {"deviceClassName": "c", "allocationMode": "All", "selectors": selectors(32)}});
    let claim = json!({"devices": {"requests": [request("a"), request("b")]}});
    let conditions: Vec<Value> = (0..32).map(|at| json!({"name": format!("c{at}"), "expression": HEAVY})).collect();
    let webhook = |name: &str| {
        json!({
            "name": name, "sideEffects": "None", "admissionReviewVersions": ["v1"], "matchConditions": conditions,
            "clientConfig": {"url": "https://example.com/x"},
        })
    };
    let webhooks = json!({"metadata": {"name": "w"}, "webhooks": [webhook("a.example.com"), webhook("b.example.com")]});
    let validations = vec![json!({"expression": HEAVY}); 32];
    let constraints = json!({
        "matchPolicy": "Exact", "namespaceSelector": {}, "objectSelector": {}, "resourceRules": [
            {"operations": ["*"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"], "scope": "*"},
        ],
    });
    let spec = json!({
        "failurePolicy": "Fail", "matchConstraints": constraints, "matchConditions": conditions, "validations": validations,
    });
    let admission = "admissionregistration.k8s.io";
    for (group, kind, object, last) in [
        (
            "resource.k8s.io",
            "ResourceClaim",
            json!({"spec": claim}),
            "spec.devices.requests[1].exactly.selectors[31].cel.expression",
        ),
        (
            "resource.k8s.io",
            "ResourceClaimTemplate",
            json!({"spec": {"spec": claim}}),
            "spec.spec.devices.requests[1].exactly.selectors[31].cel.expression",
        ),
        (admission, "ValidatingWebhookConfiguration", webhooks, "webhooks[1].matchConditions[31].expression"),
        (
            admission,
            "ValidatingAdmissionPolicy",
            json!({"metadata": {"name": "p"}, "spec": spec}),
            "spec.validations[31].expression",
        ),
    ] {
        let wrong = wrong(group, kind, &object);
        let last = wrong.iter().find(|(field, _)| field == last);
        assert!(last.is_some_and(|(_, why)| why.contains("invalid matches argument")), "{kind}: {wrong:#?}");
        // Each alone is an expression.
        assert!(wrong.len() < 32, "{kind}: {wrong:#?}");
    }
}

#[test]
fn nothing_is_compiled_beyond_the_bound_of_a_list() {
    let nonsense = |count: usize| json!(vec![json!({"cel": {"expression": "!"}}); count]);
    let compiled = |group: &str, kind: &str, object: &Value| {
        wrong(group, kind, object).iter().filter(|(_, why)| why.contains("Syntax error")).count()
    };
    let device = "resource.k8s.io";
    assert_eq!(compiled(device, "DeviceClass", &json!({"spec": {"selectors": nonsense(100)}})), 32);
    let part = json!({"deviceClassName": "c", "allocationMode": "All", "selectors": nonsense(1)});
    let requests = json!(vec![json!({"name": "a", "exactly": part}); 100]);
    assert_eq!(compiled(device, "ResourceClaim", &json!({"spec": {"devices": {"requests": requests}}})), 32);
    let request = json!({"name": "a", "firstAvailable": vec![part; 100]});
    assert_eq!(compiled(device, "ResourceClaim", &json!({"spec": {"devices": {"requests": [request]}}})), 8);
    let conditions = vec![json!({"name": "c", "expression": "!"}); 100];
    let policy = json!({"metadata": {"name": "p"}, "spec": {"matchConditions": conditions}});
    assert_eq!(compiled("admissionregistration.k8s.io", "ValidatingAdmissionPolicy", &policy), 64);
    let annotations = vec![json!({"key": "k", "valueExpression": "!"}); 100];
    let policy = json!({"metadata": {"name": "p"}, "spec": {"auditAnnotations": annotations}});
    assert_eq!(compiled("admissionregistration.k8s.io", "ValidatingAdmissionPolicy", &policy), 20);
}

#[test]
fn kinds_whose_expressions_are_compiled_say_so() {
    let compile: Vec<&str> = all().iter().filter(|row| row.strategy.compiles()).map(|row| row.kind).collect();
    let mut sorted = compile.clone();
    sorted.sort_unstable();
    let expected = [
        "CustomResourceDefinition",
        "DeviceClass",
        "MutatingAdmissionPolicy",
        "MutatingWebhookConfiguration",
        "ResourceClaim",
        "ResourceClaimTemplate",
        "ValidatingAdmissionPolicy",
        "ValidatingWebhookConfiguration",
    ];
    assert_eq!(sorted, expected);
}
