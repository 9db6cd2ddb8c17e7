//! Which requests are limited together, and how much of the server each level has: what may be written about it.

use serde_json::Value;

use super::rules::{Check, Rule};
use crate::kinds::value::{Read, child, default_to, default_when_zero};
use crate::kinds::{FieldError, FieldErrors, checks};
use crate::meta::field::{Path, Printed};
use crate::meta::{names, text};

const ALL: &str = "*";
/// The one schema that comes first, and the one level that is not limited.
const EXEMPT: &str = "exempt";
/// What the last hand of a deck needs at most of a hash of 64 bits (`shufflesharding.MaxHashBits`).
const HASH_BITS_MAX: f64 = 60.0;

pub(super) const SCHEMA: &[Rule] = &[
    Rule("spec.matchingPrecedence", Check::Least(1, "must be a positive value")),
    Rule("spec.matchingPrecedence", Check::Most(10_000, "must not be greater than 10000")),
    Rule("spec.priorityLevelConfiguration.name", Check::Required("must reference a priority level")),
    Rule("spec.priorityLevelConfiguration.name", Check::Subdomain),
    Rule("spec.rules[].subjects", Check::Required("subjects must contain at least one value")),
];

const SHARES: &str = "must be a non-negative integer";
const LENDABLE: &str = "must be between 0 and 100, inclusive";
const POSITIVE: &str = "must be positive";

pub(super) const LEVEL: &[Rule] = &[
    Rule("spec.type", Check::Required("")),
    Rule("spec.exempt.nominalConcurrencyShares", Check::Least(0, SHARES)),
    Rule("spec.exempt.lendablePercent", Check::Least(0, LENDABLE)),
    Rule("spec.exempt.lendablePercent", Check::Most(100, LENDABLE)),
    Rule("spec.limited.nominalConcurrencyShares", Check::Least(0, SHARES)),
    Rule("spec.limited.lendablePercent", Check::Least(0, LENDABLE)),
    Rule("spec.limited.lendablePercent", Check::Most(100, LENDABLE)),
    Rule("spec.limited.borrowingLimitPercent", Check::Least(0, "if specified, must be a non-negative integer")),
    Rule("spec.limited?.limitResponse.type", Check::Required("")),
    Rule("spec.limited.limitResponse.queuing.queueLengthLimit", Check::Least(1, POSITIVE)),
    Rule("spec.limited.limitResponse.queuing.queues", Check::Least(1, POSITIVE)),
    Rule("spec.limited.limitResponse.queuing.queues", Check::Most(10_000_000, "must not be greater than 10000000")),
    Rule("spec.limited.limitResponse.queuing.handSize", Check::Least(1, POSITIVE)),
];

pub(super) fn default_schema(object: &mut Value) {
    default_when_zero(child(object, "spec"), "matchingPrecedence", 1000);
}

pub(super) fn default_level(object: &mut Value) {
    let spec = child(object, "spec");
    if let Some(exempt) = spec.get_mut(EXEMPT).filter(|exempt| exempt.is_object()) {
        default_to(exempt, "nominalConcurrencyShares", 0);
        default_to(exempt, "lendablePercent", 0);
    }
    let Some(limited) = spec.get_mut("limited").filter(|limited| limited.is_object()) else { return };
    default_to(limited, "nominalConcurrencyShares", 30);
    default_to(limited, "lendablePercent", 0);
    if limited["limitResponse"]["queuing"].is_object() {
        let queuing = child(child(limited, "limitResponse"), "queuing");
        for (field, default) in [("handSize", 8), ("queues", 64), ("queueLengthLimit", 50)] {
            default_when_zero(queuing, field, default);
        }
    }
}

pub(super) fn check_schema(object: &Value, errors: &mut FieldErrors) {
    let spec = &object["spec"];
    if spec["matchingPrecedence"] == 1 && object["metadata"]["name"] != EXEMPT {
        let detail = "only the schema named 'exempt' may have matchingPrecedence 1";
        errors.push(FieldError::invalid("spec.matchingPrecedence", 1, detail));
    }
    let method = &spec["distinguisherMethod"];
    let methods = ["ByNamespace", "ByUser"];
    if method.is_set() && !methods.contains(&method["type"].text()) {
        let shown = format!("{{\"Type\":{}}}", text::json(&method["type"]));
        errors.push(FieldError::not_supported("spec.distinguisherMethod.type", Printed(&shown), &methods));
    }
    let list = Path::new("spec.rules");
    for (index, rule) in spec["rules"].items().iter().enumerate() {
        let path = list.index(index);
        let subjects = path.child("subjects");
        for (index, subject) in rule["subjects"].items().iter().enumerate() {
            check_subject(subject, &subjects.index(index), errors);
        }
        let (resources, others) = (rule["resourceRules"].items(), rule["nonResourceRules"].items());
        if resources.is_empty() && others.is_empty() {
            let detail = "at least one of resourceRules and nonResourceRules has to be non-empty";
            errors.push(FieldError::required(path, detail));
        }
        let list = path.child("resourceRules");
        for (index, rule) in resources.iter().enumerate() {
            resource_rule(rule, &list.index(index), errors);
        }
        let list = path.child("nonResourceRules");
        for (index, rule) in others.iter().enumerate() {
            path_rule(rule, &list.index(index), errors);
        }
    }
}

fn check_subject(subject: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    const KINDS: [(&str, &str); 3] = [("Group", "group"), ("ServiceAccount", "serviceAccount"), ("User", "user")];
    let kind = subject["kind"].text();
    let Some((_, field)) = KINDS.into_iter().find(|(known, _)| *known == kind) else {
        errors.push(FieldError::not_supported(path.child("kind"), kind, &KINDS.map(|(kind, _)| kind)));
        return;
    };
    for (other, other_field) in KINDS.into_iter().filter(|(other, _)| *other != kind) {
        if subject[other_field].is_set() {
            let detail = format!("{other_field} is forbidden when subject kind is not '{other}'");
            errors.push(FieldError::forbidden(path.child(other_field), &detail));
        }
    }
    let (given, path) = (&subject[field], path.child(field));
    if given.is_null() {
        errors.push(FieldError::required(path, &format!("{field} is required when subject kind is '{kind}'")));
        return;
    }
    let name = given["name"].text();
    checks::required(&path.child("name"), &given["name"], errors);
    if kind == "ServiceAccount" {
        if !name.is_empty() && name != ALL {
            checks::dns_subdomain(&path.child("name"), name, errors);
        }
        match given["namespace"].text() {
            "" => {
                let detail = "must specify namespace for service account";
                errors.push(FieldError::required(path.child("namespace"), detail));
            }
            namespace => checks::dns_label(&path.child("namespace"), namespace, errors),
        }
    }
}

/// A list that has something; and when it has everything, nothing else. Whether more is to be looked at.
fn something(list: &Value, path: &Path<'_>, none: &str, others: &str, errors: &mut FieldErrors) -> bool {
    let items = list.items();
    let has_all = items.iter().any(|item| item == ALL);
    if items.is_empty() {
        errors.push(FieldError::required(path, none));
    } else if has_all && items.len() > 1 {
        let detail = format!("if '*' is present, must not specify other {others}");
        errors.push(FieldError::invalid(path, list, &detail));
    }
    !items.is_empty() && !has_all
}

fn check_verbs(rule: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    const VERBS: [&str; 9] =
        ["create", "delete", "deletecollection", "get", "list", "patch", "proxy", "update", "watch"];
    let (verbs, path) = (&rule["verbs"], path.child("verbs"));
    let is_open = something(verbs, &path, "verbs must contain at least one value", "verbs", errors);
    if is_open && !verbs.items().iter().all(|verb| VERBS.contains(&verb.text())) {
        errors.push(FieldError::not_supported(path, verbs, &VERBS));
    }
}

fn resource_rule(rule: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    check_verbs(rule, path, errors);
    let none = "resource rules must supply at least one api group";
    something(&rule["apiGroups"], &path.child("apiGroups"), none, "api groups", errors);
    let none = "resource rules must supply at least one resource";
    something(&rule["resources"], &path.child("resources"), none, "resources", errors);
    let (namespaces, path) = (&rule["namespaces"], path.child("namespaces"));
    if namespaces.is_empty() && rule["clusterScope"].flag() {
        return;
    }
    let none = "resource rules that are not cluster scoped must supply at least one namespace";
    if !something(namespaces, &path, none, "namespaces", errors) {
        return;
    }
    for (index, namespace) in namespaces.items().iter().enumerate() {
        for words in names::dns_label(namespace.text()) {
            let detail = format!("each member of this list must be '*' or a DNS-1123 label; {words}");
            errors.push(FieldError::invalid(path.index(index), namespace, &detail));
        }
    }
}

fn path_rule(rule: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    check_verbs(rule, path, errors);
    let (urls, path) = (&rule["nonResourceURLs"], path.child("nonResourceURLs"));
    let none = "nonResourceURLs must contain at least one value";
    if !something(urls, &path, none, "non-resource URLs", errors) {
        return;
    }
    for (index, url) in urls.items().iter().enumerate() {
        if let Some(detail) = problem_of_url(url.text()) {
            errors.push(FieldError::invalid(path.index(index), url, detail));
        }
    }
}

fn problem_of_url(url: &str) -> Option<&'static str> {
    match url {
        "" => Some("must not be empty"),
        "/" => None,
        _ if !url.starts_with('/') => Some("must start with slash"),
        _ if url.contains(' ') => Some("must not contain white-space"),
        _ if url.contains("//") => Some("must not contain double slash"),
        _ => match url.matches('*').count() {
            0 => None,
            1 if url.ends_with("/*") => None,
            _ => Some("wildcard can only do suffix matching"),
        },
    }
}

pub(super) fn check_level(object: &Value, errors: &mut FieldErrors) {
    const OLD: &str = "flowcontrol.k8s.io/v1beta3-preserve-zero-concurrency-shares";
    if object["metadata"]["annotations"].get(OLD).is_some() {
        errors.push(FieldError::forbidden("metadata.annotations", &format!("annotation '{OLD}' is forbidden")));
    }
    let (spec, path) = (&object["spec"], Path::new("spec"));
    let kind = spec["type"].text();
    if (object["metadata"]["name"] == EXEMPT) != (kind == "Exempt") {
        let detail = "must be 'Exempt' if and only if `name` is 'exempt'";
        // That there is none is said already.
        if !kind.is_empty() {
            errors.push(FieldError::invalid(path.child("type"), kind, detail));
        }
    }
    let limited = path.child("limited");
    match kind {
        "Limited" => {
            if spec[EXEMPT].is_set() {
                errors.push(FieldError::forbidden(path.child(EXEMPT), ""));
            }
            match spec["limited"].is_set() {
                true => response(&spec["limited"]["limitResponse"], &limited.child("limitResponse"), errors),
                false => errors.push(FieldError::required(limited, "")),
            }
        }
        other => {
            if spec["limited"].is_set() {
                errors.push(FieldError::forbidden(limited, ""));
            }
            if !["", "Exempt"].contains(&other) {
                errors.push(FieldError::not_supported(path.child("type"), other, &["Exempt", "Limited"]));
            }
        }
    }
}

fn response(given: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    let (queuing, queuing_path) = (&given["queuing"], path.child("queuing"));
    match given["type"].text() {
        "Queue" if queuing.is_null() => errors.push(FieldError::required(queuing_path, "")),
        "Queue" => hand(queuing, &queuing_path.child("handSize"), errors),
        other => {
            if queuing.is_set() {
                errors.push(FieldError::forbidden(queuing_path, ""));
            }
            if !["", "Reject"].contains(&other) {
                errors.push(FieldError::not_supported(path.child("type"), other, &["Queue", "Reject"]));
            }
        }
    }
}

/// A hand is dealt of the deck, by the bits of one hash.
fn hand(queuing: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    let (queues, size) = (queuing["queues"].int(), queuing["handSize"].int());
    if size <= 0 {
        return;
    }
    if size > queues {
        let detail = format!("should not be greater than queues ({queues})");
        errors.push(FieldError::invalid(path, size, &detail));
        return;
    }
    #[expect(clippy::cast_precision_loss, reason = "both are below 2^31")]
    let bits = ((queues as f64).log2() * size as f64).ceil();
    if bits > HASH_BITS_MAX {
        let detail = format!(
            "required entropy bits of deckSize {queues} and handSize {size} should not be greater than {HASH_BITS_MAX}"
        );
        errors.push(FieldError::invalid(path, size, &detail));
    }
}

/// Conditions have types, each once.
pub(super) fn check_status(object: &Value, _old: &Value, errors: &mut FieldErrors) {
    super::rules::check(
        &[Rule("status.conditions[].type", Check::Required("")), Rule("status.conditions", Check::DistinctBy("type"))],
        object,
        errors,
    );
}
