//! Rules: operations on resources, as webhooks and policies name them.

use std::collections::HashSet;

use serde_json::Value;

use crate::kinds::value::Read;
use crate::kinds::{FieldError, FieldErrors};
use crate::meta::field::Path;

const OPERATIONS: [&str; 5] = ["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];
const SCOPES: [&str; 3] = ["*", "Cluster", "Namespaced"];

/// Checks a `RuleWithOperations`.
pub(crate) fn rule_with_operations(rule: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    all_or_some(rule, path, ("operations", "operations"), errors);
    for (index, operation) in rule["operations"].items().iter().enumerate() {
        if !OPERATIONS.contains(&operation.text()) {
            errors.push(FieldError::not_supported(path.child("operations").index(index), operation, &OPERATIONS));
        }
    }
    all_or_some(rule, path, ("apiGroups", "API groups"), errors);
    all_or_some(rule, path, ("apiVersions", "API versions"), errors);
    for (index, version) in rule["apiVersions"].items().iter().enumerate() {
        if version.text().is_empty() {
            errors.push(FieldError::required(path.child("apiVersions").index(index), ""));
        }
    }
    resources(&rule["resources"], &path.child("resources"), errors);
    let scope = &rule["scope"];
    if scope.is_set() && !SCOPES.contains(&scope.text()) {
        errors.push(FieldError::not_supported(path.child("scope"), scope, &SCOPES));
    }
}

/// A list that is there, in which `*` is alone.
fn all_or_some(rule: &Value, path: &Path<'_>, (field, words): (&str, &str), errors: &mut FieldErrors) {
    let (path, list) = (path.child(field), &rule[field]);
    if list.items().is_empty() {
        errors.push(FieldError::required(path, ""));
    }
    if list.count() > 1 && list.items().iter().any(|item| item == "*") {
        let detail = format!("if '*' is present, must not specify other {words}");
        errors.push(FieldError::invalid(path, list, &detail));
    }
}

fn resources(list: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    let items = list.items();
    if items.is_empty() {
        errors.push(FieldError::required(path, ""));
    }
    let (mut whole, mut everywhere) = (HashSet::new(), HashSet::new());
    let (mut all, mut any, mut plain) = (false, false, false);
    for (index, item) in items.iter().enumerate() {
        let text = item.text();
        if text.is_empty() {
            errors.push(FieldError::required(path.index(index), ""));
            continue;
        }
        all |= text == "*/*";
        any |= text == "*";
        let Some((resource, part)) = text.split_once('/') else {
            plain = text != "*";
            continue;
        };
        if whole.contains(resource) {
            let detail = format!("if '{resource}/*' is present, must not specify {text}");
            errors.push(FieldError::invalid(path.index(index), text, &detail));
        }
        if everywhere.contains(part) {
            let detail = format!("if '*/{part}' is present, must not specify {text}");
            errors.push(FieldError::invalid(path.index(index), text, &detail));
        }
        if part == "*" {
            whole.insert(resource);
        }
        if resource == "*" {
            everywhere.insert(part);
        }
    }
    if items.len() > 1 && all {
        errors.push(FieldError::invalid(path, list, "if '*/*' is present, must not specify other resources"));
    }
    if any && plain {
        let detail = "if '*' is present, must not specify other resources without subresources";
        errors.push(FieldError::invalid(path, list, detail));
    }
}
