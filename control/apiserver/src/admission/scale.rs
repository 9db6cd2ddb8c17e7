//! Where an object keeps what its scale shows (autoscaling/v1), and the scale itself. Of a custom resource its definition says
//! where.

use coracle_api::meta::selector::LabelSelector;
use serde_json::{Value, json};

use crate::catalog::Resource;

/// Where an object keeps what its scale shows.
pub(crate) struct Paths<'a> {
    pub spec: Vec<&'a str>,
    status: Vec<&'a str>,
    /// Of a text; others have a selector in their spec.
    selector: Option<Vec<&'a str>>,
}

impl<'a> Paths<'a> {
    pub fn of(resource: &'a Resource) -> Paths<'a> {
        let split = |path: &'a str| path.trim_start_matches('.').split('.').collect::<Vec<_>>();
        match resource.row.custom().and_then(|custom| custom.version.scale.as_ref()) {
            None => Paths { spec: vec!["spec", "replicas"], status: vec!["status", "replicas"], selector: None },
            Some(scale) => Paths {
                spec: split(&scale.spec_replicas),
                status: split(&scale.status_replicas),
                selector: Some(split(&scale.selector)),
            },
        }
    }
}

pub(crate) fn at<'a>(object: &'a Value, path: &[&str]) -> Option<&'a Value> {
    path.iter().try_fold(object, |value, field| value.get(field))
}

/// Sets a field; what is on the way and no object becomes one.
pub(crate) fn set(object: &mut Value, path: &[&str], value: Value) {
    let mut place = object;
    for field in path {
        if !place.is_object() {
            *place = json!({});
        }
        place = &mut place[*field];
    }
    *place = value;
}

/// The scale of an object.
pub(crate) fn scale_of(resource: &Resource, object: &Value) -> Value {
    let paths = Paths::of(resource);
    let mut metadata = json!({});
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = object["metadata"].get(field) {
            metadata[field] = value.clone();
        }
    }
    let mut spec = json!({});
    let number = |path: &[&str]| at(object, path).and_then(Value::as_i64);
    if let Some(replicas) = number(&paths.spec).filter(|replicas| *replicas != 0) {
        spec["replicas"] = replicas.into();
    }
    let mut status = json!({"replicas": number(&paths.status).unwrap_or(0)});
    let selector = match &paths.selector {
        None => selector_text(&object["spec"]["selector"]),
        Some(path) => at(object, path).and_then(Value::as_str).unwrap_or_default().to_owned(),
    };
    if !selector.is_empty() {
        status["selector"] = selector.into();
    }
    json!({"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata, "spec": spec, "status": status})
}

/// A selector as text; of a ReplicationController it is a plain map.
fn selector_text(selector: &Value) -> String {
    let is_plain = selector.as_object().is_some_and(|map| map.values().all(Value::is_string));
    let parsed = match selector.as_object() {
        None => return String::new(),
        Some(map) if is_plain => LabelSelector::from_map(map),
        Some(_) => LabelSelector::from_object(selector).unwrap_or_else(|_| LabelSelector::nothing()),
    };
    parsed.to_string()
}
