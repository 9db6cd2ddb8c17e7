//! PodTemplate, and what the kinds that hold a pod template share.

use serde_json::Value;

use super::value::{Read, child};
use super::{Cell, FieldError, FieldErrors, Kind, NAME, Strategy, VERBS, checks, column, pod, table};
use crate::meta::field::{Path, Printed};
use crate::meta::selector::{LabelSelector, validate_label_selector};
use crate::meta::{names, text};

pub(super) static KIND: Kind = Kind {
    group: "",
    version: "v1",
    kind: "PodTemplate",
    resource: "podtemplates",
    singular: "podtemplate",
    short_names: &[],
    categories: &[],
    namespaced: true,
    schema: "io.k8s.api.core.v1.PodTemplate",
    collection: "podtemplates",
    verbs: VERBS,
    has_status: false,
    has_scale: false,
    subresources: &[],
    selectable: &[],
    columns: &[NAME, column("Containers", "string"), column("Images", "string"), column("Pod Labels", "string")],
    strategy: &PodTemplate,
};

struct PodTemplate;

impl Strategy for PodTemplate {
    fn default(&self, object: &mut Value) {
        default(child(object, "template"));
    }

    fn prepare_create(&self, object: &mut Value) {
        pod::drop_disabled(child(child(object, "template"), "spec"), None);
    }

    fn prepare_update(&self, object: &mut Value, old: &Value) {
        pod::drop_disabled(child(child(object, "template"), "spec"), Some(&old["template"]["spec"]));
    }

    fn validate(&self, object: &Value, errors: &mut FieldErrors) {
        pod::validate_template(&object["template"], None, &Path::new("template"), errors);
    }

    fn validate_update(&self, object: &Value, old: &Value, errors: &mut FieldErrors) {
        pod::validate_template(&object["template"], Some(&old["template"]), &Path::new("template"), errors);
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        if old.is_some_and(|old| old["template"] == object["template"]) {
            return Vec::new();
        }
        pod::template_warnings(&object["template"], &Path::new("template"))
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn changes_generation(&self, object: &Value, old: &Value) -> bool {
        object["template"] != old["template"]
    }

    fn cells(&self, object: &Value) -> Vec<Cell> {
        let template = &object["template"];
        let [names, images] = table::containers(&template["spec"]);
        vec![table::name(object), names, images, table::labels(&template["metadata"]["labels"])]
    }
}

/// Defaults of a pod template.
pub(super) fn default(template: &mut Value) {
    child(template, "metadata");
    pod::default_spec(child(template, "spec"));
}

/// Warnings about a kind that makes pods named after itself from `spec.template`.
pub(super) fn warnings_of_owner(strategy: &dyn Strategy, object: &Value, old: Option<&Value>) -> Vec<String> {
    let mut warnings = Vec::new();
    match old {
        None => {
            let wrong = names::dns_label(object["metadata"]["name"].text());
            if !wrong.is_empty() {
                warnings.push(format!(
                    "metadata.name: this is used in Pod names and hostnames, which can result in surprising behavior; a \
                     DNS label is recommended: [{}]",
                    wrong.join(" ")
                ));
            }
        }
        Some(old) if !strategy.changes_generation(object, old) => return warnings,
        Some(_) => {}
    }
    warnings.extend(pod::template_warnings(&object["spec"]["template"], &Path::new("spec.template")));
    warnings
}

/// Checks selector and template of a kind that keeps a number of pods running.
pub(super) fn validate_of_owner(spec: &Value, old: Option<&Value>, errors: &mut FieldErrors) {
    let path = Path::new("spec");
    let (selector, selector_path) = (&spec["selector"], path.child("selector"));
    let shown = || checks::selector_text(selector);
    if selector.is_null() {
        errors.push(FieldError::required(selector_path, ""));
    } else {
        validate_label_selector(selector, &selector_path, errors);
        if selector["matchLabels"].is_empty() && selector["matchExpressions"].is_empty() {
            let detail = "empty selector is invalid for deployment";
            errors.push(FieldError::invalid(selector_path, Printed(&shown()), detail));
        }
    }
    let Ok(parsed) = LabelSelector::from_object(selector) else {
        errors.push(FieldError::invalid(selector_path, Printed(&shown()), "invalid label selector"));
        return;
    };
    let (template, path) = (&spec["template"], path.child("template"));
    let labels = &template["metadata"]["labels"];
    if !parsed.is_everything() && !parsed.matches(&labels.as_object()) {
        let detail = "`selector` does not match template `labels`";
        errors.push(FieldError::invalid(path.child("metadata.labels"), Printed(&text::json(labels)), detail));
    }
    pod::validate_template(template, old.map(|old| &old["template"]), &path, errors);
    validate_endless(template, "ReplicaSet", &path, errors);
}

/// Checks that the pods of a kind run without end.
pub(super) fn validate_endless(template: &Value, kind: &str, path: &Path<'_>, errors: &mut FieldErrors) {
    checks::supported(&path.child("spec.restartPolicy"), &template["spec"]["restartPolicy"], &["Always"], errors);
    if template["spec"]["activeDeadlineSeconds"].is_set() {
        let detail = format!("activeDeadlineSeconds in {kind} is not Supported");
        errors.push(FieldError::forbidden(path.child("spec.activeDeadlineSeconds"), &detail));
    }
}

/// Checks that collisions are only counted up.
pub(super) fn validate_collisions(status: &Value, old: &Value, errors: &mut FieldErrors) {
    let count = status["collisionCount"].int();
    if old["collisionCount"].maybe_int().is_some_and(|before| count < before) {
        errors.push(FieldError::invalid("status.collisionCount", count, "cannot be decremented"));
    }
}

/// Checks counts of a status: none below 0, and `parts` not above `replicas`.
pub(super) fn validate_counts(status: &Value, counts: &[&str], parts: &[&str], errors: &mut FieldErrors) {
    let path = Path::new("status");
    for count in counts {
        checks::nonnegative(&path.child(count), &status[*count], errors);
    }
    let mut limit = |part: &str, whole: &str, detail: &str| {
        if status[part].int() > status[whole].int() {
            errors.push(FieldError::invalid(path.child(part), status[part].int(), detail));
        }
    };
    for part in parts {
        limit(part, "replicas", "cannot be greater than status.replicas");
    }
    limit("availableReplicas", "readyReplicas", "cannot be greater than readyReplicas");
}
