//! Configurations of admission webhooks. Whoever calls them is in the API server.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::show::Show::{Age, Count, Name};
use super::{BLANK, Kind, Stored, row};
use crate::cel::admission::Compiler;
use crate::kinds::admission::{callee, conditions, rules};
use crate::kinds::value::{Read, default_to, items_mut};
use crate::kinds::{AGE, FieldError, FieldErrors, NAME, Support, checks, column};
use crate::meta::field::Path;
use crate::meta::names;
use crate::meta::selector::validate_label_selector;

/// Names of configurations that are read from files, which there are none of.
const STATIC: &str = ".static.k8s.io";
const SIDE_EFFECTS: [&str; 4] = ["None", "NoneOnDryRun", "Some", "Unknown"];
const NO_SIDE_EFFECTS: [&str; 2] = ["None", "NoneOnDryRun"];
/// Resources that no webhook is asked about: who admitted them could lock everybody out.
const VIRTUAL: [(&str, &str); 6] = [
    ("authentication.k8s.io", "selfsubjectreviews"),
    ("authentication.k8s.io", "tokenreviews"),
    ("authorization.k8s.io", "localsubjectaccessreviews"),
    ("authorization.k8s.io", "selfsubjectaccessreviews"),
    ("authorization.k8s.io", "selfsubjectrulesreviews"),
    ("authorization.k8s.io", "subjectaccessreviews"),
];

const MUTATING: Stored = webhooks()
    .default_by(|object| default(object, true))
    .check_by(|object, errors| {
        check(object, None, true, errors);
    })
    .check_change_by(|object, old, errors| check(object, Some(old), true, errors));
const VALIDATING: Stored = webhooks()
    .default_by(|object| default(object, false))
    .check_by(|object, errors| {
        check(object, None, false, errors);
    })
    .check_change_by(|object, old, errors| check(object, Some(old), false, errors));

const fn webhooks() -> Stored {
    Stored::new(Support::Honoured)
        .compiling()
        .counted()
        .counted_by("webhooks")
        .checked_once()
        .warn_by(warnings)
        .needs_version()
}

pub(super) static ROWS: &[Kind] = &[
    row!(cluster "admissionregistration.k8s.io" "io.k8s.api.admissionregistration.v1" "MutatingWebhookConfiguration"
        "mutatingwebhookconfigurations" "mutatingwebhookconfiguration",
        [NAME => Name, column("Webhooks", "integer") => Count("webhooks"), AGE => Age],
        MUTATING, categories: &["api-extensions"]),
    row!(cluster "admissionregistration.k8s.io" "io.k8s.api.admissionregistration.v1" "ValidatingWebhookConfiguration"
        "validatingwebhookconfigurations" "validatingwebhookconfiguration",
        [NAME => Name, column("Webhooks", "integer") => Count("webhooks"), AGE => Age],
        VALIDATING, categories: &["api-extensions"]),
];

fn default(object: &mut Value, mutating: bool) {
    for webhook in items_mut(object, "webhooks") {
        default_to(webhook, "failurePolicy", "Fail");
        default_to(webhook, "matchPolicy", "Equivalent");
        default_to(webhook, "namespaceSelector", json!({}));
        default_to(webhook, "objectSelector", json!({}));
        default_to(webhook, "timeoutSeconds", 10);
        if mutating {
            default_to(webhook, "reinvocationPolicy", "Never");
        }
        for rule in items_mut(webhook, "rules") {
            default_to(rule, "scope", "*");
        }
        if webhook["clientConfig"]["service"].is_object() {
            default_to(&mut webhook["clientConfig"]["service"], "port", 443);
        }
    }
}

fn check(object: &Value, old: Option<&Value>, mutating: bool, errors: &mut FieldErrors) {
    let before = old.map(|old| old["webhooks"].items());
    let all = |keeps: fn(&Value) -> bool| before.is_none_or(|webhooks| webhooks.iter().all(keeps));
    let mut known = HashSet::new();
    let is_unique = before.is_none_or(|webhooks| webhooks.iter().all(|webhook| known.insert(webhook["name"].text())));
    let webhooks = object["webhooks"].items();
    // What was accepted stays accepted.
    let asked = Asked {
        conditions: before.is_none_or(|before| !has_same_conditions(webhooks, before)),
        no_side_effects: all(|webhook| NO_SIDE_EFFECTS.contains(&webhook["sideEffects"].text())),
        mutating,
    };
    let known_version = all(|webhook| {
        let versions = &webhook["admissionReviewVersions"];
        versions.is_empty() || callee::has_known_version(versions)
    });
    let (mut names, mut compiler) = (HashSet::new(), Compiler::new(false));
    for (index, webhook) in webhooks.iter().enumerate() {
        let list = Path::new("webhooks");
        let path = list.index(index);
        one(webhook, &path, &asked, &mut compiler, errors);
        let versions = path.child("admissionReviewVersions");
        let none = "must specify one of v1, v1beta1";
        callee::review_versions(&webhook["admissionReviewVersions"], &versions, known_version, none, errors);
        let name = webhook["name"].text();
        if is_unique && !name.is_empty() && !names.insert(name) {
            errors.push(FieldError::duplicate(path.child("name"), name));
        }
    }
    let name = object["metadata"]["name"].text();
    if old.is_none() && name.ends_with(STATIC) {
        let detail = format!(
            "names ending with \"{STATIC}\" are reserved for static manifest-based configurations and cannot be managed via the API"
        );
        errors.push(FieldError::invalid("metadata.name", name, &detail));
    }
}

fn has_same_conditions(new: &[Value], old: &[Value]) -> bool {
    new.len() == old.len() && new.iter().zip(old).all(|(new, old)| new["matchConditions"] == old["matchConditions"])
}

/// What is asked of a webhook beside the obvious.
struct Asked {
    conditions: bool,
    no_side_effects: bool,
    mutating: bool,
}

fn one(webhook: &Value, path: &Path<'_>, asked: &Asked, compiler: &mut Compiler<'_>, errors: &mut FieldErrors) {
    qualified(webhook["name"].text(), &path.child("name"), errors);
    let list = path.child("rules");
    for (index, rule) in webhook["rules"].items().iter().enumerate() {
        rules::rule_with_operations(rule, &list.index(index), errors);
    }
    let mut one_of = |field: &str, all: &[&str]| {
        if webhook[field].is_set() {
            checks::supported(&path.child(field), &webhook[field], all, errors);
        }
    };
    one_of("failurePolicy", &["Fail", "Ignore"]);
    one_of("matchPolicy", &["Equivalent", "Exact"]);
    let effects: &[&str] = if asked.no_side_effects { &NO_SIDE_EFFECTS } else { &SIDE_EFFECTS };
    if webhook["sideEffects"].is_null() {
        let detail = format!("must specify one of {}", effects.join(", "));
        errors.push(FieldError::required(path.child("sideEffects"), &detail));
    } else {
        checks::supported(&path.child("sideEffects"), &webhook["sideEffects"], effects, errors);
    }
    if let Some(seconds) = webhook["timeoutSeconds"].maybe_int().filter(|seconds| !(1..=30).contains(seconds)) {
        let detail = "the timeout value must be between 1 and 30 seconds";
        errors.push(FieldError::invalid(path.child("timeoutSeconds"), seconds, detail));
    }
    for field in ["namespaceSelector", "objectSelector"] {
        if webhook[field].is_set() {
            validate_label_selector(&webhook[field], &path.child(field), errors);
        }
    }
    if asked.mutating && webhook["reinvocationPolicy"].is_set() {
        let policy = &webhook["reinvocationPolicy"];
        checks::supported(&path.child("reinvocationPolicy"), policy, &["IfNeeded", "Never"], errors);
    }
    callee::client_config(&webhook["clientConfig"], &path.child("clientConfig"), errors);
    if asked.conditions {
        conditions::match_conditions(&webhook["matchConditions"], compiler, &path.child("matchConditions"), errors);
    }
}

/// A name of three parts at least.
fn qualified(name: &str, path: &Path<'_>, errors: &mut FieldErrors) {
    let wrong = names::dns_subdomain(name);
    if name.is_empty() {
        errors.push(FieldError::required(path, ""));
    } else if !wrong.is_empty() {
        errors.push(FieldError::invalid(path, name, &wrong.join(",")));
    } else if name.split('.').count() < 3 {
        let detail = "should be a domain with at least three segments separated by dots";
        errors.push(FieldError::invalid(path, name, detail));
    }
}

/// What has no effect.
fn warnings(object: &Value, old: Option<&Value>) -> Vec<String> {
    let mut warnings = Vec::new();
    if old.is_some() && object["metadata"]["name"].text().ends_with(STATIC) {
        warnings.push(format!(
            "metadata.name: names ending with \"{STATIC}\" are reserved for static manifest-based configurations and cannot be managed via the API"
        ));
    }
    for (index, webhook) in object["webhooks"].items().iter().enumerate() {
        for (at, rule) in webhook["rules"].items().iter().enumerate() {
            let (groups, resources) = (rule["apiGroups"].items(), rule["resources"].items());
            if groups.iter().chain(resources).any(|text| text == "*") {
                continue;
            }
            let mut told = HashSet::new();
            for (group, resource) in groups.iter().flat_map(|group| resources.iter().map(move |of| (group, of))) {
                let named = (group.text(), resource.text());
                if VIRTUAL.contains(&named) && told.insert(named) {
                    warnings.push(format!(
                        "webhooks[{index}].rules[{at}]: {}.{} is excluded from admission webhooks; this rule will have no effect",
                        named.1, named.0
                    ));
                }
            }
        }
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds;

    fn webhook() -> Value {
        json!({
            "name": "a.example.com", "sideEffects": "None", "admissionReviewVersions": ["v1"],
            "clientConfig": {"service": {"namespace": "n", "name": "s"}},
            "rules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}],
        })
    }

    fn configuration(webhooks: &[Value]) -> Value {
        json!({"metadata": {"name": "c"}, "webhooks": webhooks})
    }

    fn wrong(webhooks: &[Value], old: Option<&[Value]>) -> Vec<String> {
        let row = kinds::by_kind("admissionregistration.k8s.io", "MutatingWebhookConfiguration").expect("the row");
        let mut object = configuration(webhooks);
        row.strategy.default(&mut object);
        let mut errors = FieldErrors::new();
        match old {
            None => row.strategy.validate(&object, &mut errors),
            Some(old) => row.strategy.validate_update(&object, &configuration(old), &mut errors),
        }
        errors.into_told().iter().map(ToString::to_string).collect()
    }

    fn with(field: &str, value: Value) -> Value {
        let mut webhook = webhook();
        webhook[field] = value;
        webhook
    }

    #[test]
    fn a_webhook_gets_its_defaults() {
        let row = kinds::by_kind("admissionregistration.k8s.io", "MutatingWebhookConfiguration").expect("the row");
        let mut object = configuration(&[webhook()]);
        row.strategy.default(&mut object);
        let made = &object["webhooks"][0];
        let (policy, seconds) = (&made["failurePolicy"], &made["timeoutSeconds"]);
        assert_eq!((policy, seconds, &made["objectSelector"]), (&json!("Fail"), &json!(10), &json!({})));
        assert_eq!((&made["reinvocationPolicy"], &made["rules"][0]["scope"]), (&json!("Never"), &json!("*")));
        assert_eq!(made["clientConfig"]["service"]["port"], 443);
        assert!(row.strategy.changes_generation(&object, &configuration(&[])));
        assert!(!row.strategy.changes_generation(&object, &object.clone()));
    }

    #[test]
    fn what_is_wrong_is_told() {
        assert_eq!(wrong(&[webhook()], None), Vec::<String>::new());
        for (field, value, expected) in [
            (
                "name",
                json!("a.b"),
                "webhooks[0].name: Invalid value: \"a.b\": should be a domain with at least three segments separated by dots",
            ),
            (
                "sideEffects",
                Value::Null,
                "webhooks[0].sideEffects: Required value: must specify one of None, NoneOnDryRun",
            ),
            (
                "sideEffects",
                json!("Some"),
                "webhooks[0].sideEffects: Unsupported value: \"Some\": supported values: \"None\", \"NoneOnDryRun\"",
            ),
            (
                "timeoutSeconds",
                json!(31),
                "webhooks[0].timeoutSeconds: Invalid value: 31: the timeout value must be between 1 and 30 seconds",
            ),
            (
                "admissionReviewVersions",
                json!([]),
                "webhooks[0].admissionReviewVersions: Required value: must specify one of v1, v1beta1",
            ),
            (
                "admissionReviewVersions",
                json!(["v2"]),
                "webhooks[0].admissionReviewVersions: Invalid value: [\"v2\"]: must include at least one of v1, v1beta1",
            ),
            (
                "matchConditions",
                json!([{"name": "x", "expression": ""}]),
                "webhooks[0].matchConditions[0].expression: Required value",
            ),
        ] {
            assert_eq!(wrong(&[with(field, value.clone())], None), [expected], "{field} {value}");
        }
        assert_eq!(wrong(&[webhook(), webhook()], None), ["webhooks[1].name: Duplicate value: \"a.example.com\""]);
    }

    #[test]
    fn what_was_accepted_stays_accepted() {
        let loose = with("sideEffects", json!("Some"));
        assert_eq!(wrong(std::slice::from_ref(&loose), Some(std::slice::from_ref(&loose))), Vec::<String>::new());
        assert_eq!(wrong(&[loose], Some(&[webhook()])).len(), 1);
    }

    #[test]
    fn rules_about_what_no_webhook_is_asked_are_told() {
        let mut webhook = webhook();
        webhook["rules"][0]["apiGroups"] = json!(["authentication.k8s.io"]);
        webhook["rules"][0]["resources"] = json!(["tokenreviews"]);
        let words = "webhooks[0].rules[0]: tokenreviews.authentication.k8s.io is excluded from admission webhooks; this rule will have no effect";
        assert_eq!(warnings(&configuration(&[webhook]), None), [words]);
    }
}
