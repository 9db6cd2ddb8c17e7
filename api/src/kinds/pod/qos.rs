//! Quality of service class of a pod, from its cpu and memory requests and limits.

use serde_json::Value;

use crate::kinds::value::Read;
use crate::meta::{Format, Quantity};

#[derive(Clone, Copy, PartialEq)]
enum Class {
    BestEffort,
    Burstable,
    Guaranteed,
}

/// `Guaranteed`, `Burstable` or `BestEffort`.
pub(in crate::kinds) fn class(spec: &Value) -> &'static str {
    match of_spec(spec) {
        Class::BestEffort => "BestEffort",
        Class::Burstable => "Burstable",
        Class::Guaranteed => "Guaranteed",
    }
}

fn of_spec(spec: &Value) -> Class {
    let pod = &spec["resources"];
    if !pod["requests"].is_empty() || !pod["limits"].is_empty() {
        return of_requirements(pod);
    }
    let containers = spec["initContainers"].items().iter().chain(spec["containers"].items());
    common(containers.map(|container| of_requirements(&container["resources"])))
}

/// The class all agree on; without agreement it is burstable.
fn common(classes: impl Iterator<Item = Class>) -> Class {
    let mut common = None;
    for class in classes {
        match common {
            None => common = Some(class),
            Some(before) if before == class => {}
            Some(_) => return Class::Burstable,
        }
    }
    common.unwrap_or(Class::BestEffort)
}

fn of_requirements(requirements: &Value) -> Class {
    if requirements["requests"].is_empty() && requirements["limits"].is_empty() {
        return Class::BestEffort;
    }
    common(["cpu", "memory"].into_iter().map(|resource| {
        let (request, limit) = (&requirements["requests"][resource], &requirements["limits"][resource]);
        match (amount(request), amount(limit)) {
            (request, limit) if request != limit => Class::Burstable,
            (request, _) if request.is_zero() => Class::BestEffort,
            _ => Class::Guaranteed,
        }
    }))
}

/// A quantity; what is absent counts as 0.
pub(super) fn amount(value: &Value) -> Quantity {
    Quantity::from_json(value).unwrap_or(const { Quantity::from_units(0, Format::DecimalSi) })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn classes_follow_requests_and_limits() {
        let full = json!({"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "1000m", "memory": "1Gi"}});
        let some = json!({"requests": {"cpu": "1"}});
        for (spec, expected) in [
            (json!({"containers": [{"resources": {}}]}), "BestEffort"),
            (json!({"containers": [{"resources": full}]}), "Guaranteed"),
            (json!({"containers": [{"resources": some}]}), "Burstable"),
            (json!({"containers": [{"resources": full}, {"resources": {}}]}), "Burstable"),
            (json!({"containers": [{"resources": full}], "initContainers": [{"resources": some}]}), "Burstable"),
            (json!({"containers": [{"resources": {}}], "resources": full}), "Guaranteed"),
            (json!({"containers": [{"resources": {"requests": {"example.com/gpu": "1"}}}]}), "BestEffort"),
        ] {
            assert_eq!(class(&spec), expected, "{spec}");
        }
    }
}
