//! What must be true of every row.

use std::collections::BTreeSet;

use serde_json::json;

use super::rules::tests::exists;
use crate::kinds::{FieldErrors, Support, all, by_resource, refusal, warnings};
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
    assert!(refusal(row("", "pods")).is_none() && refusal(row("batch", "jobs")).is_none());
    assert_eq!(
        refusal(row("certificates.k8s.io", "podcertificaterequests")).expect("it is refused"),
        "this version of Coracle gives pods no certificates, and refuses the object rather than ignore it"
    );
}
