//! Checks that several kinds share, in the words of Kubernetes (`pkg/apis/core/validation`).

use serde_json::Value;

use super::value::{Read, repeats};
use super::{FieldError, FieldErrors};
use crate::meta::field::{Path, Printed};
use crate::meta::{Quantity, names, text};

pub(super) const PROTOCOLS: [&str; 3] = ["SCTP", "TCP", "UDP"];
pub(super) const NEGATIVE: &str = "must be greater than or equal to 0";
const IMMUTABLE: &str = "field is immutable";

/// Messages about one value, each an error.
pub(super) fn invalid(path: &Path<'_>, value: &str, messages: Vec<String>, errors: &mut FieldErrors) {
    errors.extend(messages.iter().map(|message| FieldError::invalid(path, value, message)));
}

pub(super) fn dns_label(path: &Path<'_>, value: &str, errors: &mut FieldErrors) {
    invalid(path, value, names::dns_label(value), errors);
}

pub(super) fn dns_subdomain(path: &Path<'_>, value: &str, errors: &mut FieldErrors) {
    invalid(path, value, names::dns_subdomain(value), errors);
}

/// A domain, a slash and a path (`IsDomainPrefixedPath`).
pub(super) fn domain_prefixed_path(path: &Path<'_>, value: &str, errors: &mut FieldErrors) {
    const WORDS: &str = "must be a domain-prefixed path (such as \"acme.io/foo\")";
    if value.is_empty() {
        return errors.push(FieldError::required(path, ""));
    }
    let (domain, rest) = match value.split_once('/') {
        Some((domain, rest)) if !domain.is_empty() && !rest.is_empty() => (domain, rest),
        _ => return errors.push(FieldError::invalid(path, value, WORDS)),
    };
    for message in names::dns_subdomain(domain) {
        errors.push(FieldError::invalid(path, domain, &message));
    }
    let is_path = rest.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/%!$&'()*+,;=:-._~".contains(&byte));
    if !is_path {
        let words = names::regex("Invalid path", "[A-Za-z0-9/\\-._~%!$&'()*+,;=:]+", &[]);
        errors.push(FieldError::invalid(path, rest, &words));
    }
}

/// A reference to an object of any kind that is near.
pub(super) fn local_reference(path: &Path<'_>, reference: &Value, errors: &mut FieldErrors) {
    if let Value::String(group) = &reference["apiGroup"] {
        dns_subdomain(&path.child("apiGroup"), group, errors);
    }
    for field in ["kind", "name"] {
        let (path, value) = (path.child(field), &reference[field]);
        match value.text() {
            "" => errors.push(FieldError::required(path, "")),
            text => invalid(&path, text, names::path_segment(text), errors),
        }
    }
}

pub(super) fn qualified_name(path: &Path<'_>, value: &str, errors: &mut FieldErrors) {
    invalid(path, value, names::qualified_name(value), errors);
}

/// The name of a CSI driver (`ValidateCSIDriverName`).
pub(super) fn csi_driver(path: &Path<'_>, name: &str, errors: &mut FieldErrors) {
    if name.is_empty() {
        errors.push(FieldError::required(path, ""));
        return;
    }
    if name.len() > 63 {
        errors.push(FieldError::too_long(path, 63));
    }
    invalid(path, name, names::dns_subdomain(&name.to_lowercase()), errors);
}

/// A number that may not be below 0; absent counts as 0.
pub(super) fn nonnegative(path: &Path<'_>, value: &Value, errors: &mut FieldErrors) {
    if value.int() < 0 {
        errors.push(FieldError::invalid(path, value.int(), NEGATIVE));
    }
}

/// A text of a set.
pub(super) fn supported(path: &Path<'_>, value: &Value, all: &[&str], errors: &mut FieldErrors) {
    if !all.contains(&value.text()) {
        errors.push(FieldError::not_supported(path, value.text(), all));
    }
}

/// A text of a set that must be there.
pub(super) fn required_of(path: &Path<'_>, value: &Value, all: &[&str], errors: &mut FieldErrors) {
    if value.is_empty() {
        errors.push(FieldError::required(path, ""));
    } else {
        supported(path, value, all, errors);
    }
}

/// A text that must be there.
pub(super) fn required(path: &Path<'_>, value: &Value, errors: &mut FieldErrors) {
    if value.is_empty() {
        errors.push(FieldError::required(path, ""));
    }
}

pub(super) fn port_number(path: &Path<'_>, value: &Value, errors: &mut FieldErrors) {
    let number = value.int();
    errors.extend(names::port_number(number).iter().map(|message| FieldError::invalid(path, number, message)));
}

/// The number of a port, or its name.
pub(super) fn port(path: &Path<'_>, value: &Value, errors: &mut FieldErrors) {
    match value {
        Value::String(name) => invalid(path, name, names::port_name(name), errors),
        number => port_number(path, number, errors),
    }
}

pub(super) fn taint_effect(path: &Path<'_>, value: &Value, errors: &mut FieldErrors) {
    supported(path, value, &["NoSchedule", "PreferNoSchedule", "NoExecute"], errors);
}

/// `field is immutable` when two values differ; what is empty is as good as absent.
pub(super) fn immutable(path: &Path<'_>, new: &Value, old: &Value, errors: &mut FieldErrors) {
    if new != old && !(new.is_empty() && old.is_empty()) {
        // A text that is left out is an empty one.
        match new.is_null() && old.is_string() {
            true => errors.push(FieldError::invalid(path, "", IMMUTABLE)),
            false => errors.push(FieldError::invalid(path, new, IMMUTABLE)),
        }
    }
}

/// `field is immutable` of a label selector.
pub(super) fn immutable_selector(path: &Path<'_>, new: &Value, old: &Value, errors: &mut FieldErrors) {
    if new != old {
        errors.push(FieldError::invalid(path, Printed(&selector_text(new)), IMMUTABLE));
    }
}

/// A label selector with its fields in the order in which Go prints them.
pub(super) fn selector_text(selector: &Value) -> String {
    if selector.is_null() {
        return "null".to_owned();
    }
    let parts: Vec<String> = ["matchLabels", "matchExpressions"]
        .into_iter()
        .filter(|field| !selector[*field].is_empty())
        .map(|field| format!("\"{field}\":{}", text::json(&selector[field])))
        .collect();
    format!("{{{}}}", parts.join(","))
}

/// Whether a resource is one of Kubernetes' own: unprefixed, or of its domain.
pub(super) fn is_native_resource(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

/// Whether it is another's: fully qualified, and a name that a quota can have.
pub(super) fn is_extended_resource(name: &str) -> bool {
    !is_native_resource(name)
        && !name.starts_with("requests.")
        && names::qualified_name(&format!("requests.{name}")).is_empty()
}

pub(super) fn is_huge_pages(name: &str) -> bool {
    name.starts_with("hugepages-")
}

/// Resources that are counted.
const WHOLE: [&str; 9] = [
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "configmaps",
    "persistentvolumeclaims",
    "services.nodeports",
    "services.loadbalancers",
];

/// A quantity that is not below 0, and whole when its resource is counted.
pub(super) fn resource_quantity(path: &Path<'_>, resource: &str, value: &Value, errors: &mut FieldErrors) {
    let Ok(quantity) = Quantity::from_json(value) else { return };
    if quantity.signum() < 0 {
        errors.push(FieldError::invalid(path, quantity.to_string(), NEGATIVE));
    }
    if (WHOLE.contains(&resource) || is_extended_resource(resource)) && quantity.milli_value() % 1000 != 0 {
        errors.push(FieldError::invalid(path, quantity.to_string(), "must be an integer"));
    }
}

/// Conditions as all newer kinds have them (`ValidateConditions` of apimachinery).
pub(super) fn conditions(conditions: &[Value], path: &Path<'_>, errors: &mut FieldErrors) {
    const REASON_MAX: usize = 1024;
    const MESSAGE_MAX: usize = 32_768;
    let again = repeats(conditions.iter().map(|condition| condition["type"].text()));
    for ((index, condition), again) in conditions.iter().enumerate().zip(again) {
        let path = path.index(index);
        if again {
            errors.push(FieldError::duplicate(path, &condition["type"]));
        }
        match condition["type"].text() {
            "" => errors.push(FieldError::required(path.child("type"), "is required")),
            kind => qualified_name(&path.child("type"), kind, errors),
        }
        required_of(&path.child("status"), &condition["status"], &["False", "True", "Unknown"], errors);
        let generation = condition["observedGeneration"].int();
        if generation < 0 {
            let detail = "must be greater than or equal to zero";
            errors.push(FieldError::invalid(path.child("observedGeneration"), generation, detail));
        }
        if condition["lastTransitionTime"].is_null() {
            errors.push(FieldError::required(path.child("lastTransitionTime"), ""));
        }
        match condition["reason"].text() {
            "" => errors.push(FieldError::required(path.child("reason"), "")),
            reason => {
                invalid(&path.child("reason"), reason, names::condition_reason(reason), errors);
                if reason.len() > REASON_MAX {
                    errors.push(FieldError::too_long(path.child("reason"), REASON_MAX));
                }
            }
        }
        if condition["message"].text().len() > MESSAGE_MAX {
            errors.push(FieldError::too_long(path.child("message"), MESSAGE_MAX));
        }
    }
}

/// A finalizer in the `spec` of a namespace.
pub(super) fn namespace_finalizer(path: &Path<'_>, name: &str, errors: &mut FieldErrors) {
    qualified_name(path, name, errors);
    known_finalizer(path, name, errors);
}

/// A finalizer that is Kubernetes' own, or of a domain.
pub(super) fn known_finalizer(path: &Path<'_>, name: &str, errors: &mut FieldErrors) {
    if !name.contains('/') && !["kubernetes", "orphan", "foregroundDeletion"].contains(&name) {
        let detail = "name is neither a standard finalizer name nor is it fully qualified";
        errors.push(FieldError::invalid(path, name, detail));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn prints_selectors_in_the_order_of_their_fields() {
        let selector = json!({"matchExpressions": [{"key": "a", "operator": "Exists"}], "matchLabels": {"b": "c"}});
        let expected = r#"{"matchLabels":{"b":"c"},"matchExpressions":[{"key":"a","operator":"Exists"}]}"#;
        assert_eq!(selector_text(&selector), expected);
        assert_eq!(selector_text(&json!({})), "{}");
    }

    #[test]
    fn tells_whose_a_resource_is() {
        for (name, native, extended) in [
            ("cpu", true, false),
            ("example.com/gpu", false, true),
            ("kubernetes.io/x", true, false),
            ("requests.example.com/gpu", false, false),
        ] {
            assert_eq!((is_native_resource(name), is_extended_resource(name)), (native, extended), "{name}");
        }
    }
}
