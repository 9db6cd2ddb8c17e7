//! Ways into the cluster, and addresses within it.

use serde_json::Value;

use super::show::Show::{Age, Joined, Name, Of, Text};
use super::{BLANK, Kind, Stored, Support, addresses, row};
use crate::kinds::value::{Read, child, default_to};
use crate::kinds::{AGE, Cell, FieldError, FieldErrors, NAME, checks, column};
use crate::meta::field::Path;

const NOT_ALLOCATED: &str = "addresses are not given out by it yet";

pub(super) static ROWS: &[Kind] = &[
    row!(cluster "networking.k8s.io" "io.k8s.api.networking.v1" "IngressClass" "ingressclasses" "ingressclass",
        [
            NAME => Of(class_name),
            column("Controller", "string") => Text("spec.controller", ""),
            column("Parameters", "string") => Of(class_parameters),
            AGE => Age,
        ],
        Stored::new(Support::Honoured).counted().default_by(ingress_class).check_by(ingress_class_check).warn_by(ingress_class_warnings)
            .fixes(&["spec.controller"])),
    row!(cluster "networking.k8s.io" "io.k8s.api.networking.v1" "IPAddress" "ipaddresses" "ipaddress",
        [NAME => Name, column("ParentRef", "string") => Of(parent)],
        Stored::inert(NOT_ALLOCATED).rules(addresses::ADDRESS).named_by(addresses::name)
            .locks(&["spec.parentRef"]),
        short_names: &["ip"], selectable: &["spec.parentRef.namespace"]),
    row!(cluster "networking.k8s.io" "io.k8s.api.networking.v1" "ServiceCIDR" "servicecidrs" "servicecidr",
        [NAME => Name, column("CIDRs", "string") => Joined("spec.cidrs", ""), AGE => Age],
        Stored::inert(NOT_ALLOCATED).check_by(addresses::check_ranges).checked_once()
            .check_change_by(addresses::check_ranges_change).status_alone(),
        has_status: true),
];

fn ingress_class(object: &mut Value) {
    if object["spec"]["parameters"].is_object() {
        default_to(child(child(object, "spec"), "parameters"), "scope", "Cluster");
    }
}

/// `spec.controller` of classes whose Ingresses our nodes serve.
const OURS: &str = "coracle.dev/ingress";

fn ingress_class_warnings(object: &Value, _old: Option<&Value>) -> Vec<String> {
    let spec = &object["spec"];
    match spec["controller"] == OURS && spec["parameters"].is_set() {
        true => {
            vec![format!("spec.parameters: this version of Coracle stores the field, but classes of {OURS} have none")]
        }
        false => Vec::new(),
    }
}

/// Longest name of a controller.
const CONTROLLER_BYTES_MAX: usize = 250;

fn ingress_class_check(object: &Value, errors: &mut FieldErrors) {
    let spec = Path::new("spec");
    let (path, controller) = (spec.child("controller"), object["spec"]["controller"].text());
    if controller.is_empty() {
        errors.push(FieldError::required(path, ""));
    } else {
        if controller.len() > CONTROLLER_BYTES_MAX {
            errors.push(FieldError::too_long(path, CONTROLLER_BYTES_MAX));
        }
        checks::domain_prefixed_path(&path, controller, errors);
    }
    let (path, parameters) = (spec.child("parameters"), &object["spec"]["parameters"]);
    if parameters.is_null() {
        return;
    }
    checks::local_reference(&path, parameters, errors);
    let namespace = &parameters["namespace"];
    match parameters["scope"].text() {
        "" if parameters["scope"].is_null() => errors.push(FieldError::required(path.child("scope"), "")),
        "Namespace" if namespace.is_null() => {
            errors.push(FieldError::required(path.child("namespace"), "`parameters.scope` is set to 'Namespace'"));
        }
        "Namespace" => checks::dns_label(&path.child("namespace"), namespace.text(), errors),
        "Cluster" if !namespace.is_null() => {
            errors.push(FieldError::forbidden(path.child("namespace"), "`parameters.scope` is set to 'Cluster'"));
        }
        "Cluster" => {}
        scope => errors.push(FieldError::not_supported(path.child("scope"), scope, &["Cluster", "Namespace"])),
    }
}

fn class_name(object: &Value) -> Cell {
    let name = object["metadata"]["name"].text();
    match object["metadata"]["annotations"]["ingressclass.kubernetes.io/is-default-class"].text() {
        "true" => format!("{name} (default)").into(),
        _ => name.into(),
    }
}

fn class_parameters(object: &Value) -> Cell {
    let parameters = &object["spec"]["parameters"];
    let (kind, name) = (parameters["kind"].text(), parameters["name"].text());
    match &parameters["apiGroup"] {
        _ if parameters.is_null() => "<none>".into(),
        Value::String(group) => format!("{kind}.{group}/{name}").into(),
        _ => format!("{kind}/{name}").into(),
    }
}

fn parent(object: &Value) -> Cell {
    let parent = &object["spec"]["parentRef"];
    if parent.is_null() {
        return "<none>".into();
    }
    let mut text = parent["resource"].text().to_lowercase();
    if !parent["group"].is_empty() {
        text = format!("{text}.{}", parent["group"].text().to_lowercase());
    }
    for part in [parent["namespace"].text(), parent["name"].text()].into_iter().filter(|part| !part.is_empty()) {
        text.push('/');
        text.push_str(part);
    }
    text.into()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_class_names_a_controller_and_parameters_are_whole() {
        let parameters = |more: Value| {
            let mut parameters = json!({"kind": "A", "name": "b", "scope": "Cluster"});
            parameters.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            json!({"spec": {"controller": "a.b/c", "parameters": parameters}})
        };
        let at = "spec.parameters";
        for (object, expected) in [
            (json!({"spec": {"controller": "coracle.dev/ingress"}}), vec![]),
            (json!({"spec": {}}), vec!["spec.controller: Required value".to_owned()]),
            (
                json!({"spec": {"controller": "nginx"}}),
                vec!["spec.controller: Invalid value: \"nginx\": must be a domain-prefixed path (such as \"acme.io/foo\")".to_owned()],
            ),
            (parameters(json!({})), vec![]),
            (parameters(json!({"scope": "Namespace", "namespace": "n"})), vec![]),
            (
                parameters(json!({"scope": "Namespace"})),
                vec![format!("{at}.namespace: Required value: `parameters.scope` is set to 'Namespace'")],
            ),
            (
                parameters(json!({"namespace": "n"})),
                vec![format!("{at}.namespace: Forbidden: `parameters.scope` is set to 'Cluster'")],
            ),
            (
                parameters(json!({"scope": "World"})),
                vec![format!("{at}.scope: Unsupported value: \"World\": supported values: \"Cluster\", \"Namespace\"")],
            ),
            (parameters(json!({"kind": ""})), vec![format!("{at}.kind: Required value")]),
        ] {
            let mut errors = FieldErrors::new();
            ingress_class_check(&object, &mut errors);
            assert_eq!(errors.iter().map(ToString::to_string).collect::<Vec<_>>(), expected, "{object}");
        }
        let mut object = parameters(json!({}));
        assert!(ingress_class_warnings(&object, None).is_empty());
        object["spec"]["controller"] = OURS.into();
        assert_eq!(ingress_class_warnings(&object, None).len(), 1);
    }
}
