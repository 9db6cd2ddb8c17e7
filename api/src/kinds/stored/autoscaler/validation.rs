//! Rules of HorizontalPodAutoscalers, in the words of Kubernetes (`pkg/apis/autoscaling/validation`).

use serde_json::Value;

use crate::kinds::value::Read;
use crate::kinds::{FieldError, FieldErrors, checks, pod};
use crate::meta::field::Path;
use crate::meta::{Quantity, names};

/// Longest period of a policy, and longest time in which recommendations are compared, in seconds.
const PERIOD_MAX: i64 = 1_800;
const WINDOW_MAX: i64 = 3_600;

/// In the order in which Kubernetes looks at them: type, field.
const SOURCES: [(&str, &str); 5] = [
    ("Object", "object"),
    ("External", "external"),
    ("Pods", "pods"),
    ("Resource", "resource"),
    ("ContainerResource", "containerResource"),
];
const TYPES: [&str; 5] = ["ContainerResource", "External", "Object", "Pods", "Resource"];

/// Which `apiVersion` a reference may have.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Version {
    /// A group must be named.
    OfGroup,
    /// The core group, too.
    Any,
    /// It is not looked at: it was wrong before.
    Unchecked,
}

/// A new object.
pub(super) fn create(object: &Value, errors: &mut FieldErrors) {
    check(object, None, errors);
}

/// A changed one. What was wrong with it before these rules is let be.
pub(super) fn update(object: &Value, old: &Value, errors: &mut FieldErrors) {
    check(object, Some(old), errors);
}

/// What its controller says of it.
pub(super) fn status(object: &Value, errors: &mut FieldErrors) {
    let (status, path) = (&object["status"], Path::new("status"));
    for (index, condition) in status["conditions"].items().iter().enumerate() {
        let path = path.child("conditions");
        checks::nonnegative(&path.index(index).child("observedGeneration"), &condition["observedGeneration"], errors);
    }
    for field in ["currentReplicas", "desiredReplicas"] {
        checks::nonnegative(&path.child(field), &status[field], errors);
    }
}

fn check(object: &Value, old: Option<&Value>, errors: &mut FieldErrors) {
    let (spec, path) = (&object["spec"], Path::new("spec"));
    let (least, most) = (spec["minReplicas"].maybe_int(), spec["maxReplicas"].int());
    if let Some(least) = least.filter(|least| *least < 0) {
        errors.push(FieldError::invalid(path.child("minReplicas"), least, checks::NEGATIVE));
    }
    let most_path = path.child("maxReplicas");
    if most == 0 {
        errors.push(FieldError::required(most_path, ""));
    } else if most < 0 {
        errors.push(FieldError::invalid(most_path, most, "must be greater than or equal to 1"));
    }
    if least.is_some_and(|least| most < least) {
        errors.push(FieldError::invalid(most_path, most, "must be greater than or equal to `minReplicas`"));
    }
    let target = &spec["scaleTargetRef"];
    let before = old.map(|old| &old["spec"]["scaleTargetRef"]);
    let version = match before {
        Some(old) if old["apiVersion"].text() == target["apiVersion"].text() && old["kind"] == target["kind"] => {
            Version::Unchecked
        }
        _ if target["kind"] == "ReplicationController" => Version::Any,
        _ => Version::OfGroup,
    };
    reference(target, version, &path.child("scaleTargetRef"), errors);
    metrics(spec, old, &path.child("metrics"), errors);
    let behavior = path.child("behavior");
    for direction in ["scaleUp", "scaleDown"] {
        rules(&spec["behavior"][direction], &behavior.child(direction), errors);
    }
}

/// What is wrong with the `apiVersion` of a reference.
fn wrong_version(reference: &Value, allowed: Version) -> Option<String> {
    let version = reference["apiVersion"].text();
    let slashes = version.bytes().filter(|byte| *byte == b'/').count();
    match allowed {
        Version::Unchecked => None,
        _ if slashes > 1 => Some(format!("unexpected GroupVersion string: {version}")),
        Version::OfGroup if version.split_once('/').is_none_or(|(group, _)| group.is_empty()) => {
            Some("apiVersion must specify API group".to_owned())
        }
        Version::OfGroup | Version::Any => None,
    }
}

fn reference(reference: &Value, version: Version, path: &Path<'_>, errors: &mut FieldErrors) {
    for field in ["kind", "name"] {
        segment(&reference[field], "", &path.child(field), errors);
    }
    if let Some(why) = wrong_version(reference, version) {
        errors.push(FieldError::invalid(path.child("apiVersion"), reference["apiVersion"].text(), &why));
    }
}

/// A text that must be there and can stand in a path.
fn segment(value: &Value, missing: &str, path: &Path<'_>, errors: &mut FieldErrors) {
    if value.is_empty() {
        errors.push(FieldError::required(path, missing));
    } else {
        checks::invalid(path, value.text(), names::path_segment(value.text()), errors);
    }
}

fn metrics(spec: &Value, old: Option<&Value>, path: &Path<'_>, errors: &mut FieldErrors) {
    let described = |metric: &Value| metric["type"] == "Object" && metric["object"].is_set();
    let was_wrong = old.is_some_and(|old| {
        let metrics = old["spec"]["metrics"].items().iter();
        let wrong = |metric: &Value| wrong_version(&metric["object"]["describedObject"], Version::Any).is_some();
        metrics.filter(|metric| described(metric)).any(wrong)
    });
    let version = if was_wrong { Version::Unchecked } else { Version::Any };
    let metrics = spec["metrics"].items();
    for (index, metric) in metrics.iter().enumerate() {
        one(metric, version, &path.index(index), errors);
    }
    // Pods that are not there use nothing: somebody else has to say that they are wanted again.
    let wakes = |metric: &Value| matches!(metric["type"].text(), "Object" | "External");
    if spec["minReplicas"].maybe_int() == Some(0) && !metrics.iter().any(wakes) {
        let detail = "must specify at least one Object or External metric to support scaling to zero replicas";
        errors.push(FieldError::forbidden(path, detail));
    }
}

fn one(metric: &Value, version: Version, path: &Path<'_>, errors: &mut FieldErrors) {
    let (kind, type_path) = (metric["type"].text(), path.child("type"));
    if kind.is_empty() {
        errors.push(FieldError::required(type_path, "must specify a metric source type"));
    }
    if !TYPES.contains(&kind) {
        errors.push(FieldError::not_supported(type_path, kind, &TYPES));
    }
    let present = SOURCES.iter().filter(|(_, field)| metric[*field].is_set());
    // Of several the first is looked at.
    if let Some((_, field)) = present.clone().next() {
        source(field, &metric[*field], version, &path.child(field), errors);
    }
    let expected = SOURCES.iter().find(|(of, _)| *of == kind).map(|(_, field)| *field);
    match expected {
        Some(field) if !metric[field].is_set() => {
            errors
                .push(FieldError::required(path.child(field), "must populate information for the given metric source"));
        }
        Some(_) => {}
        None => errors.push(FieldError::not_supported(type_path, kind, &TYPES)),
    }
    if present.clone().count() > 1 {
        for (_, field) in present.filter(|(_, field)| Some(*field) != expected) {
            errors.push(FieldError::forbidden(path.child(field), "must populate the given metric source only"));
        }
    }
}

fn source(field: &str, source: &Value, version: Version, path: &Path<'_>, errors: &mut FieldErrors) {
    let target_path = path.child("target");
    let target = &source["target"];
    match field {
        "object" => {
            reference(&source["describedObject"], version, &path.child("describedObject"), errors);
            identifier(source, path, errors);
        }
        "external" | "pods" => identifier(source, path, errors),
        _ => resource(field, source, path, errors),
    }
    self::target(target, &target_path, errors);
    let has = |field: &str| target[field].is_set();
    let mut missing = |field: &str, detail: &str| errors.push(FieldError::required(target_path.child(field), detail));
    match field {
        "object" if !has("value") && !has("averageValue") => {
            missing("averageValue", "must set either a target value or averageValue");
        }
        "external" if !has("value") && !has("averageValue") => {
            missing("averageValue", "must set either a target value for metric or a per-pod target");
        }
        "external" if has("value") && has("averageValue") => {
            let detail = "may not set both a target value for metric and a per-pod target";
            errors.push(FieldError::forbidden(target_path.child("value"), detail));
        }
        "pods" if !has("averageValue") => missing("averageValue", "must specify a positive target averageValue"),
        "resource" | "containerResource" if !has("averageUtilization") && !has("averageValue") => {
            missing("averageUtilization", "must set either a target raw value or a target utilization");
        }
        "resource" | "containerResource" if has("averageUtilization") && has("averageValue") => {
            let detail = "may not set both a target raw value and a target utilization";
            errors.push(FieldError::forbidden(target_path.child("averageValue"), detail));
        }
        _ => {}
    }
}

fn identifier(source: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    segment(&source["metric"]["name"], "must specify a metric name", &path.child("metric").child("name"), errors);
}

fn resource(field: &str, source: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    let (name, name_path) = (source["name"].text(), path.child("name"));
    if name.is_empty() {
        errors.push(FieldError::required(name_path, "must specify a resource name"));
    } else if field == "containerResource" {
        pod::validate_container_resource(name, &name_path, errors);
    }
    if field == "containerResource" {
        let (container, path) = (source["container"].text(), path.child("container"));
        if container.is_empty() {
            errors.push(FieldError::required(path, "must specify a container"));
        } else {
            checks::dns_label(&path, container, errors);
        }
    }
}

fn target(target: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    let (kind, type_path) = (target["type"].text(), path.child("type"));
    if kind.is_empty() {
        errors.push(FieldError::required(type_path, "must specify a metric target type"));
    }
    if !["Utilization", "Value", "AverageValue"].contains(&kind) {
        errors.push(FieldError::invalid(type_path, kind, "must be either Utilization, Value, or AverageValue"));
    }
    for field in ["value", "averageValue"] {
        let Ok(quantity) = Quantity::from_json(&target[field]) else { continue };
        if quantity.signum() <= 0 {
            errors.push(FieldError::invalid(path.child(field), quantity.to_string(), "must be positive"));
        }
    }
    if let Some(percent) = target["averageUtilization"].maybe_int().filter(|percent| *percent < 1) {
        errors.push(FieldError::invalid(path.child("averageUtilization"), percent, "must be greater than 0"));
    }
}

fn rules(rules: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    if !rules.is_set() {
        return;
    }
    let window_path = path.child("stabilizationWindowSeconds");
    let window = rules["stabilizationWindowSeconds"].maybe_int();
    if let Some(window) = window.filter(|window| *window < 0) {
        errors.push(FieldError::invalid(window_path, window, "must be greater than or equal to zero"));
    }
    if let Some(window) = window.filter(|window| *window > WINDOW_MAX) {
        errors.push(FieldError::invalid(window_path, window, &format!("must be less than or equal to {WINDOW_MAX}")));
    }
    if rules["selectPolicy"].is_set() {
        checks::supported(&path.child("selectPolicy"), &rules["selectPolicy"], &["Disabled", "Max", "Min"], errors);
    }
    let policies = path.child("policies");
    if rules["policies"].is_empty() {
        errors.push(FieldError::required(policies, "must specify at least one Policy"));
    }
    for (index, policy) in rules["policies"].items().iter().enumerate() {
        let path = policies.index(index);
        checks::supported(&path.child("type"), &policy["type"], &["Percent", "Pods"], errors);
        let (period, period_path) = (policy["periodSeconds"].int(), path.child("periodSeconds"));
        if policy["value"].int() <= 0 {
            errors.push(FieldError::invalid(path.child("value"), policy["value"].int(), "must be greater than zero"));
        }
        if period <= 0 {
            errors.push(FieldError::invalid(period_path, period, "must be greater than zero"));
        }
        if period > PERIOD_MAX {
            let detail = format!("must be less than or equal to {PERIOD_MAX}");
            errors.push(FieldError::invalid(period_path, period, &detail));
        }
    }
    if let Ok(tolerance) = Quantity::from_json(&rules["tolerance"])
        && tolerance.signum() < 0
    {
        errors.push(FieldError::invalid(path.child("tolerance"), tolerance.to_string(), checks::NEGATIVE));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// An object with this in its `spec`.
    fn object(spec: Value) -> Value {
        let mut object = json!({"spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"}, "minReplicas": 1, "maxReplicas": 5,
            "metrics": [{"type": "Resource", "resource": {"name": "cpu",
                "target": {"type": "Utilization", "averageUtilization": 80}}}],
        }});
        object["spec"].as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        object
    }

    fn said(check: impl Fn(&mut FieldErrors)) -> Vec<String> {
        let mut errors = FieldErrors::new();
        check(&mut errors);
        errors.iter().map(ToString::to_string).collect()
    }

    fn wrong(spec: Value) -> Vec<String> {
        said(|errors| create(&object(spec.clone()), errors))
    }

    fn metric(metric: Value) -> Vec<String> {
        wrong(json!({ "metrics": [metric] }))
    }

    #[test]
    fn numbers_have_an_order() {
        for (spec, expected) in [
            (json!({}), vec![]),
            (
                json!({"maxReplicas": 0}),
                vec![
                    "spec.maxReplicas: Required value",
                    "spec.maxReplicas: Invalid value: 0: must be greater than or equal to `minReplicas`",
                ],
            ),
            (
                json!({"maxReplicas": -1, "minReplicas": -1}),
                vec![
                    "spec.minReplicas: Invalid value: -1: must be greater than or equal to 0",
                    "spec.maxReplicas: Invalid value: -1: must be greater than or equal to 1",
                ],
            ),
            (
                json!({"minReplicas": 6}),
                vec!["spec.maxReplicas: Invalid value: 5: must be greater than or equal to `minReplicas`"],
            ),
            (
                json!({"minReplicas": 0}),
                vec![
                    "spec.metrics: Forbidden: must specify at least one Object or External metric to support scaling to zero replicas",
                ],
            ),
        ] {
            assert_eq!(wrong(spec.clone()), expected, "{spec}");
        }
    }

    #[test]
    fn a_target_names_its_group() {
        let target = |version: &str, kind: &str, name: &str| json!({"scaleTargetRef": {"apiVersion": version, "kind": kind, "name": name}});
        for (version, kind, name, expected) in [
            ("example.com/v1", "Thing", "a", vec![]),
            ("v1", "ReplicationController", "a", vec![]),
            (
                "",
                "Deployment",
                "a",
                vec!["spec.scaleTargetRef.apiVersion: Invalid value: \"\": apiVersion must specify API group"],
            ),
            (
                "v1",
                "Pod",
                "a",
                vec!["spec.scaleTargetRef.apiVersion: Invalid value: \"v1\": apiVersion must specify API group"],
            ),
            (
                "a/b/c",
                "Pod",
                "a/b",
                vec![
                    "spec.scaleTargetRef.name: Invalid value: \"a/b\": may not contain '/'",
                    "spec.scaleTargetRef.apiVersion: Invalid value: \"a/b/c\": unexpected GroupVersion string: a/b/c",
                ],
            ),
            (
                "apps/v1",
                "",
                "",
                vec!["spec.scaleTargetRef.kind: Required value", "spec.scaleTargetRef.name: Required value"],
            ),
        ] {
            assert_eq!(wrong(target(version, kind, name)), expected, "{version} {kind} {name}");
        }
        // What was taken before there was such a rule can be changed.
        let old = object(target("", "Deployment", "a"));
        let mut new = old.clone();
        new["spec"]["maxReplicas"] = json!(7);
        assert_eq!(said(|errors| update(&new, &old, errors)), Vec::<String>::new());
        new["spec"]["scaleTargetRef"]["kind"] = json!("ReplicaSet");
        assert_eq!(said(|errors| update(&new, &old, errors)).len(), 1);
    }

    #[test]
    fn a_metric_has_one_source_and_one_target() {
        let cpu = |target: Value| json!({"type": "Resource", "resource": {"name": "cpu", "target": target}});
        let all = "supported values: \"ContainerResource\", \"External\", \"Object\", \"Pods\", \"Resource\"";
        let at = "spec.metrics[0]";
        for (spec, expected) in [
            (
                json!({"type": "Odd"}),
                vec![
                    format!("{at}.type: Unsupported value: \"Odd\": {all}"),
                    format!("{at}.type: Unsupported value: \"Odd\": {all}"),
                ],
            ),
            (
                json!({"type": "Pods"}),
                vec![format!("{at}.pods: Required value: must populate information for the given metric source")],
            ),
            (
                json!({"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 1}}, "pods": {}}),
                vec![
                    format!("{at}.pods.metric.name: Required value: must specify a metric name"),
                    format!("{at}.pods.target.type: Required value: must specify a metric target type"),
                    format!(
                        "{at}.pods.target.type: Invalid value: \"\": must be either Utilization, Value, or AverageValue"
                    ),
                    format!(
                        "{at}.pods.target.averageValue: Required value: must specify a positive target averageValue"
                    ),
                    format!("{at}.pods: Forbidden: must populate the given metric source only"),
                ],
            ),
            (
                cpu(json!({"type": "Utilization"})),
                vec![format!(
                    "{at}.resource.target.averageUtilization: Required value: must set either a target raw value or a target utilization"
                )],
            ),
            (
                cpu(json!({"type": "Utilization", "averageUtilization": 0})),
                vec![format!("{at}.resource.target.averageUtilization: Invalid value: 0: must be greater than 0")],
            ),
            (
                cpu(json!({"type": "AverageValue", "averageValue": "0", "averageUtilization": 5})),
                vec![
                    format!("{at}.resource.target.averageValue: Invalid value: \"0\": must be positive"),
                    format!(
                        "{at}.resource.target.averageValue: Forbidden: may not set both a target raw value and a target utilization"
                    ),
                ],
            ),
            (
                json!({"type": "ContainerResource", "containerResource": {"name": "gpu", "container": "A",
                    "target": {"type": "Utilization", "averageUtilization": 5}}}),
                vec![
                    format!(
                        "{at}.containerResource.name: Invalid value: \"gpu\": must be a standard resource type or fully qualified"
                    ),
                    format!(
                        "{at}.containerResource.name: Invalid value: \"gpu\": must be a standard resource for containers"
                    ),
                ],
            ),
            (
                json!({"type": "External", "external": {"metric": {"name": "a/b"}, "target": {"type": "Value", "value": "1", "averageValue": "1"}}}),
                vec![
                    format!("{at}.external.metric.name: Invalid value: \"a/b\": may not contain '/'"),
                    format!(
                        "{at}.external.target.value: Forbidden: may not set both a target value for metric and a per-pod target"
                    ),
                ],
            ),
            (
                json!({"type": "Object", "object": {"metric": {"name": "a"}, "target": {"type": "Value"},
                    "describedObject": {"kind": "Service", "name": "s", "apiVersion": "v1"}}}),
                vec![format!(
                    "{at}.object.target.averageValue: Required value: must set either a target value or averageValue"
                )],
            ),
        ] {
            let mut found = metric(spec.clone());
            // What is wrong with a label is said in many words.
            found.retain(|error| !error.contains("RFC 1123"));
            assert_eq!(found, expected, "{spec}");
        }
    }

    #[test]
    fn rules_are_within_what_is_remembered() {
        let policy =
            |kind: &str, value: i32, period: i32| json!({"type": kind, "value": value, "periodSeconds": period});
        let path = "spec.behavior.scaleUp";
        for (rules, expected) in [
            (
                json!({"policies": [policy("Pods", 1, 1_800)], "stabilizationWindowSeconds": 3_600, "selectPolicy": "Min", "tolerance": "0"}),
                vec![],
            ),
            (json!({}), vec![format!("{path}.policies: Required value: must specify at least one Policy")]),
            (
                json!({"policies": [policy("Odd", 0, 0), policy("Percent", 1, 1_801)], "stabilizationWindowSeconds": 3_601,
                    "selectPolicy": "Odd", "tolerance": "-1m"}),
                vec![
                    format!(
                        "{path}.stabilizationWindowSeconds: Invalid value: 3601: must be less than or equal to 3600"
                    ),
                    format!(
                        "{path}.selectPolicy: Unsupported value: \"Odd\": supported values: \"Disabled\", \"Max\", \"Min\""
                    ),
                    format!(
                        "{path}.policies[0].type: Unsupported value: \"Odd\": supported values: \"Percent\", \"Pods\""
                    ),
                    format!("{path}.policies[0].value: Invalid value: 0: must be greater than zero"),
                    format!("{path}.policies[0].periodSeconds: Invalid value: 0: must be greater than zero"),
                    format!(
                        "{path}.policies[1].periodSeconds: Invalid value: 1801: must be less than or equal to 1800"
                    ),
                    format!("{path}.tolerance: Invalid value: \"-1m\": must be greater than or equal to 0"),
                ],
            ),
            (
                json!({"policies": [policy("Pods", 1, 1)], "stabilizationWindowSeconds": -1}),
                vec![format!(
                    "{path}.stabilizationWindowSeconds: Invalid value: -1: must be greater than or equal to zero"
                )],
            ),
        ] {
            assert_eq!(wrong(json!({"behavior": {"scaleUp": rules}})), expected, "{rules}");
        }
    }

    #[test]
    fn a_status_has_no_negative_numbers() {
        let object = json!({"status": {"currentReplicas": -1, "desiredReplicas": 0, "conditions": [{"observedGeneration": -2}]}});
        assert_eq!(
            said(|errors| status(&object, errors)),
            [
                "status.conditions[0].observedGeneration: Invalid value: -2: must be greater than or equal to 0",
                "status.currentReplicas: Invalid value: -1: must be greater than or equal to 0",
            ]
        );
    }
}
