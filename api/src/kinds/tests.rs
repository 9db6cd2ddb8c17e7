//! Compares with what Kubernetes 1.37 answered to the same objects (`testdata/`, recorded from the reference). What it
//! adds in admission (service accounts, priorities, addresses …) was taken out; times are shown as `<…>`.

use std::sync::Arc;

use serde_json::{Value, json};

use super::value::{child, default_to, fields};
use super::{Cell, FieldErrors, Kind, all, by_resource, validate_metadata, validate_metadata_update};
use crate::codec::DecodeError;
use crate::codec::json::decode_value;
use crate::schema;

const NAMESPACE: &str = "ns";

fn cases(text: &str) -> Vec<Value> {
    serde_json::from_str(text).expect("test data is JSON")
}

fn row(case: &Value) -> &'static Kind {
    let text = |field: &str| case[field].as_str().unwrap_or_default();
    by_resource(text("group"), text("resource")).expect("a kind we have")
}

/// The type of objects as they are stored.
fn stored_schema(row: &Kind) -> Arc<schema::Object> {
    let stored = all().iter().find(|first| first.collection == row.collection).expect("its own row at least");
    schema::named(stored.schema).expect("a schema for each kind")
}

/// What the API server does to a new object before it is checked, without admission.
fn prepared(row: &Kind, object: &Value) -> Result<Value, DecodeError> {
    let schema = schema::named(row.schema).expect("a schema for each kind");
    let mut object = decode_value(object, &schema)?.value;
    let metadata = child(&mut object, "metadata");
    if row.namespaced {
        default_to(metadata, "namespace", NAMESPACE);
    }
    default_to(metadata, "creationTimestamp", "2026-01-02T03:04:05Z");
    if row.strategy.has_generation() {
        fields(metadata).insert("generation".to_owned(), 1.into());
    }
    row.strategy.to_storage(&mut object);
    schema::apply_defaults(&mut object, &stored_schema(row)).unwrap();
    row.strategy.default(&mut object);
    row.strategy.prepare_create(&mut object);
    Ok(object)
}

fn problems(row: &Kind, object: &Value) -> Vec<Value> {
    let mut object = object.clone();
    if row.kind == "Pod" {
        // Admission gives every pod an account.
        default_to(child(&mut object, "spec"), "serviceAccountName", "default");
    }
    let mut errors = FieldErrors::new();
    validate_metadata(row, &object, &mut errors);
    row.strategy.validate(&object, &mut errors);
    errors.iter().map(|error| json!([error.field, error.message])).collect()
}

/// Where two values differ; `<…>` is anything.
fn difference(path: &str, expected: &Value, actual: &Value, found: &mut Vec<String>) {
    match (expected, actual) {
        (Value::String(text), _) if text.starts_with('<') && !actual.is_null() => {}
        (Value::Object(left), Value::Object(right)) => {
            for (key, value) in left {
                difference(&format!("{path}.{key}"), value, right.get(key).unwrap_or(&json!("(absent)")), found);
            }
            for (key, value) in right.iter().filter(|(key, _)| !left.contains_key(*key)) {
                found.push(format!("{path}.{key}: unexpected {value}"));
            }
        }
        (Value::Array(left), Value::Array(right)) if left.len() == right.len() => {
            for (index, (left, right)) in left.iter().zip(right).enumerate() {
                difference(&format!("{path}[{index}]"), left, right, found);
            }
        }
        (expected, actual) if expected == actual => {}
        (expected, actual) => found.push(format!("{path}: expected {expected}, is {actual}")),
    }
}

/// Compares what is said about an object with what was said.
fn compare_refusal(case: &Value, found: &mut Vec<String>) {
    let row = row(case);
    let mut actual = match prepared(row, &case["object"]) {
        Ok(object) => problems(row, &object),
        Err(error) => return found.push(format!("{}: {error}", case["title"])),
    };
    let mut expected = case["causes"].as_array().cloned().unwrap_or_default();
    let key = |cause: &Value| (cause[0].to_string(), cause[1].to_string());
    actual.sort_by_key(key);
    // The same problem is told once.
    actual.dedup();
    expected.sort_by_key(key);
    if actual != expected {
        let only = |left: &[Value], right: &[Value]| {
            json!(left.iter().filter(|cause| !right.contains(cause)).collect::<Vec<_>>())
        };
        let (missing, surplus) = (only(&expected, &actual), only(&actual, &expected));
        found.push(format!("{}\n  missing {missing}\n  surplus {surplus}", case["title"]));
    }
}

#[test]
fn refuses_what_kubernetes_refuses_in_its_words() {
    let mut found = Vec::new();
    let all = [
        include_str!("testdata/invalid.json"),
        include_str!("testdata/refused.json"),
        include_str!("testdata/refused_kinds.json"),
    ];
    for case in all.into_iter().flat_map(cases) {
        compare_refusal(&case, &mut found);
    }
    assert!(found.is_empty(), "{} differ:\n{}", found.len(), found.join("\n"));
}

#[test]
fn makes_of_new_objects_what_kubernetes_makes() {
    let mut found = Vec::new();
    let all = [include_str!("testdata/created.json"), include_str!("testdata/created_kinds.json")];
    for case in all.into_iter().flat_map(cases) {
        let row = row(&case);
        let object = prepared(row, &case["object"]).expect("an object that can be read");
        let problems = problems(row, &object);
        let mut shown = object;
        row.strategy.canonicalize(&mut shown);
        schema::forget_empty(&mut shown, &stored_schema(row));
        row.strategy.from_storage(&mut shown);
        let metadata = fields(child(&mut shown, "metadata"));
        metadata
            .retain(|field, _| ["labels", "annotations", "finalizers", "name", "generation"].contains(&field.as_str()));
        let mut differences = Vec::new();
        difference("", &case["answer"], &shown, &mut differences);
        differences.extend(problems.iter().map(|problem| format!("refused: {problem}")));
        if !differences.is_empty() {
            found.push(format!("{}\n  {}", case["title"], differences.join("\n  ")));
        }
    }
    assert!(found.is_empty(), "{} differ:\n{}", found.len(), found.join("\n"));
}

/// A cell as it is shown, with times as `<…>`.
fn shown(cell: &Cell) -> Value {
    match cell {
        Cell::Value(value) => value.clone(),
        Cell::Age(None) => "<unknown>".into(),
        Cell::Age(Some(_)) => "<age>".into(),
        Cell::WithAge { before, after, .. } => format!("{before}<age>{after}").into(),
    }
}

#[test]
fn prints_what_kubernetes_prints() {
    let mut found = Vec::new();
    for case in cases(include_str!("testdata/tables.json")) {
        let row = row(&case);
        let cells = row.strategy.cells(&case["object"]);
        assert_eq!(cells.len(), row.columns.len(), "{}", row.kind);
        let expected = case["cells"].as_array().cloned().unwrap_or_default();
        for ((cell, column), expected) in cells.iter().zip(row.columns).zip(&expected) {
            let (actual, text) = (shown(cell), expected.as_str().unwrap_or_default());
            let same = match cell {
                Cell::Value(value) => value == expected,
                Cell::Age(None) => text == "<unknown>",
                Cell::Age(Some(_)) => text.ends_with(['s', 'm', 'h', 'd', 'y']),
                Cell::WithAge { before, after, .. } => text.starts_with(before) && text.ends_with(after),
            };
            if !same {
                found.push(format!(
                    "{} {}: expected {expected}, is {actual}",
                    case["object"]["metadata"]["name"], column.name
                ));
            }
        }
        if row.strategy.row_conditions(&case["object"]) != case["conditions"] {
            found.push(format!("{}: conditions", case["object"]["metadata"]["name"]));
        }
    }
    assert!(found.is_empty(), "{} differ:\n{}", found.len(), found.join("\n"));
}

#[test]
fn warns_as_kubernetes_warns() {
    let mut found = Vec::new();
    for case in cases(include_str!("testdata/warned.json")) {
        let row = row(&case);
        let object = prepared(row, &case["object"]).expect("an object that can be read");
        // Go goes over maps in any order.
        let mut actual = row.strategy.warnings(&object, None);
        let mut expected: Vec<String> = serde_json::from_value(case["warnings"].clone()).unwrap_or_default();
        actual.sort();
        expected.sort();
        for (actual, expected) in actual.iter().zip(&expected).filter(|(actual, expected)| actual != expected) {
            found.push(format!("{}\n  expected {expected}\n  is       {actual}", case["title"]));
        }
        assert_eq!(actual.len(), expected.len(), "{}", case["title"]);
    }
    assert!(found.is_empty(), "{} differ:\n{}", found.len(), found.join("\n"));
}

/// What the API server does to a changed object before it is checked, without admission.
fn changed(row: &Kind, case: &Value, old: &Value) -> Value {
    let schema = schema::named(row.schema).expect("a schema for each kind");
    let mut object = decode_value(&case["new"], &schema).expect("an object that can be read").value;
    schema::apply_defaults(&mut object, &schema).unwrap();
    row.strategy.default(&mut object);
    match case["subresource"].as_str() {
        None => row.strategy.prepare_update(&mut object, old),
        Some("status") => row.strategy.prepare_status_update(&mut object, old),
        Some(other) => row.strategy.prepare_subresource_update(other, &mut object, old),
    }
    let generation = old["metadata"]["generation"].as_i64();
    let changed = case["subresource"] != "status" && row.strategy.changes_generation(&object, old);
    if generation.is_some() || changed {
        let metadata = fields(child(&mut object, "metadata"));
        metadata.insert("generation".to_owned(), (generation.unwrap_or(0) + i64::from(changed)).into());
    }
    object
}

#[test]
fn allows_and_makes_the_changes_that_kubernetes_does() {
    let mut found = Vec::new();
    let all = [include_str!("testdata/updated.json"), include_str!("testdata/updated_kinds.json")];
    for case in all.into_iter().flat_map(cases) {
        let row = row(&case);
        let old = &case["old"];
        let object = changed(row, &case, old);
        let mut errors = FieldErrors::new();
        validate_metadata_update(row, &object, old, &mut errors);
        match case["subresource"].as_str() {
            None => row.strategy.validate_update(&object, old, &mut errors),
            Some("status") => row.strategy.validate_status_update(&object, old, &mut errors),
            Some(other) => row.strategy.validate_subresource_update(other, &object, old, &mut errors),
        }
        let mut actual: Vec<Value> = errors.iter().map(|error| json!([error.field, error.message])).collect();
        let mut expected = case["causes"].as_array().cloned().unwrap_or_default();
        let key = |cause: &Value| (cause[0].to_string(), cause[1].to_string());
        actual.sort_by_key(key);
        actual.dedup();
        expected.sort_by_key(key);
        if actual != expected {
            found.push(format!("{}\n  expected {expected:#?}\n  is       {actual:#?}", case["title"]));
        } else if let Some(answer) = case.get("answer") {
            let mut object = object;
            row.strategy.canonicalize(&mut object);
            fields(child(&mut object, "metadata")).remove("resourceVersion");
            let mut differences = Vec::new();
            difference("", answer, &object, &mut differences);
            if !differences.is_empty() {
                found.push(format!("{}\n  {}", case["title"], differences.join("\n  ")));
            }
        }
    }
    assert!(found.is_empty(), "{} differ:\n{}", found.len(), found.join("\n"));
}

#[test]
fn both_views_of_an_event_show_the_same() {
    for case in cases(include_str!("testdata/events.json")) {
        for (view, other) in [("events", "core"), ("core", "events")] {
            let group = |view: &str| if view == "events" { "events.k8s.io" } else { "" };
            let (from, to) = (by_resource(group(view), "events"), by_resource(group(other), "events"));
            let (from, to) = (from.expect("a row"), to.expect("a row"));
            let mut object = case[view].clone();
            from.strategy.to_storage(&mut object);
            from.strategy.default(&mut object);
            to.strategy.from_storage(&mut object);
            assert_eq!(object, case[other], "{view} as {other}");
        }
    }
}
