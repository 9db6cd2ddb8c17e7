//! Checks of events. Old clients of the core kind write almost anything; `events.k8s.io` is strict. The fields are named
//! as in core form in both.

use serde_json::Value;

use crate::kinds::value::Read;
use crate::kinds::{FieldError, FieldErrors, internal};
use crate::meta::field::{Path, Printed};
use crate::meta::{names, validate_immutable};

/// Longest `reportingInstance`, `action` and `reason`.
const NAME_MAX: usize = 128;
/// Longest `message`.
const NOTE_MAX: usize = 1024;

/// Checks a new event.
pub(super) fn create(event: &Value, strict: bool, errors: &mut FieldErrors) {
    common(event, strict, errors);
    if !strict {
        return;
    }
    series(event, errors);
    if event["eventTime"].is_null() {
        errors.push(FieldError::required("eventTime", ""));
    }
    if !["Normal", "Warning"].contains(&event["type"].text()) {
        errors.push(FieldError::invalid("type", "", &format!("has invalid value: {}", event["type"].text())));
    }
    for field in ["firstTimestamp", "lastTimestamp"] {
        if event[field].is_set() {
            errors.push(FieldError::invalid(field, "", "needs to be unset"));
        }
    }
    if event["count"].int() != 0 {
        errors.push(FieldError::invalid("count", "", "needs to be unset"));
    }
    if !event["source"]["component"].is_empty() || !event["source"]["host"].is_empty() {
        errors.push(FieldError::invalid("source", "", "needs to be unset"));
    }
}

/// Checks a changed event.
pub(super) fn update(event: &Value, old: &Value, strict: bool, errors: &mut FieldErrors) {
    common(event, strict, errors);
    if !strict {
        return;
    }
    if event["series"] != old["series"] {
        series(event, errors);
    }
    const IMMUTABLE: [(&str, &str); 12] = [
        ("reason", "reason"),
        ("message", "message"),
        ("source", "source"),
        ("firstTimestamp", "firstTimestamp"),
        ("lastTimestamp", "lastTimestamp"),
        ("count", "count"),
        ("reason", "reason"),
        ("type", "type"),
        ("eventTime", "eventTime"),
        ("action", "action"),
        ("reportingComponent", "reportingController"),
        ("reportingInstance", "reportingInstance"),
    ];
    for field in ["involvedObject", "related"] {
        if event[field] != old[field] {
            let shown = match &event[field] {
                Value::Null if field == "related" => "null".to_owned(),
                reference => internal::text("ObjectReference", reference),
            };
            errors.push(FieldError::invalid(field, Printed(&shown), "field is immutable"));
        }
    }
    for (field, path) in IMMUTABLE {
        if field == "eventTime" && event[field].is_null() && old[field].is_set() {
            errors.push(FieldError::invalid(path, &Value::Null, "field is immutable"));
            continue;
        }
        validate_immutable(&event[field], &old[field], &Path::new(path), errors);
    }
}

fn series(event: &Value, errors: &mut FieldErrors) {
    let series = &event["series"];
    if series.is_set() {
        if series["count"].int() < 2 {
            errors.push(FieldError::invalid("series.count", "", "should be at least 2"));
        }
        if series["lastObservedTime"].is_null() {
            errors.push(FieldError::required("series.lastObservedTime", ""));
        }
    }
}

fn common(event: &Value, strict: bool, errors: &mut FieldErrors) {
    let namespace = event["metadata"]["namespace"].text();
    let involved = event["involvedObject"]["namespace"].text();
    let is_new_style = event["eventTime"].is_set();
    let agrees = match (involved, is_new_style) {
        ("", false) => ["", "default"].contains(&namespace),
        ("", true) => ["default", "kube-system"].contains(&namespace),
        (_, true) => true,
        (involved, false) => involved == namespace,
    };
    if !agrees {
        errors.push(FieldError::invalid("involvedObject.namespace", involved, "does not match event.namespace"));
    }
    if !is_new_style {
        return;
    }
    let controller = event["reportingComponent"].text();
    let field = if strict { "reportingController" } else { "reportingComponent" };
    if controller.is_empty() {
        errors.push(FieldError::required(field, ""));
    }
    errors.extend(names::qualified_name(controller).iter().map(|words| FieldError::invalid(field, controller, words)));
    let limits = [
        ("reportingInstance", true, NAME_MAX),
        ("action", true, NAME_MAX),
        ("reason", true, NAME_MAX),
        ("message", false, NOTE_MAX),
    ];
    for (field, is_required, most) in limits {
        let text = event[field].text();
        if is_required && text.is_empty() {
            errors.push(FieldError::required(field, ""));
        }
        if text.len() > most {
            errors.push(FieldError::invalid(field, "", &format!("can have at most {most} characters")));
        }
    }
}
