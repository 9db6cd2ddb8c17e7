//! Job, and the template of Jobs that a CronJob holds.

mod indexes;
mod policies;
mod status;
mod template;
#[cfg(test)]
mod tests;
mod validation;

use serde_json::{Value, json};

use super::value::{Read, child, default_to, default_when_zero, fields, items_mut, keep, remove};
use super::{AGE, Cell, FieldErrors, Kind, NAME, Strategy, VERBS, column, pod, podtemplate, table, wide};
use crate::meta::field::Path;
use crate::meta::{names, time};

pub(super) use validation::template_of_jobs as validate_template_of_jobs;

pub(super) static KIND: Kind = Kind {
    group: "batch",
    version: "v1",
    kind: "Job",
    resource: "jobs",
    singular: "job",
    short_names: &[],
    categories: &["all"],
    namespaced: true,
    schema: "io.k8s.api.batch.v1.Job",
    collection: "jobs.batch",
    verbs: VERBS,
    has_status: true,
    has_scale: false,
    subresources: &[],
    selectable: &["status.successful"],
    columns: &[
        NAME,
        column("Status", "string"),
        column("Completions", "string"),
        column("Duration", "string"),
        AGE,
        wide("Containers", "string"),
        wide("Images", "string"),
        wide("Selector", "string"),
    ],
    strategy: &Job,
};

const CONTROLLER_UID: &str = "batch.kubernetes.io/controller-uid";
const JOB_NAME: &str = "batch.kubernetes.io/job-name";
/// What both were called before they had a prefix.
const LEGACY_CONTROLLER_UID: &str = "controller-uid";
const LEGACY_JOB_NAME: &str = "job-name";

struct Job;

impl Strategy for Job {
    fn default(&self, object: &mut Value) {
        default_spec(child(object, "spec"));
        default_labels(object);
        child(object, "status");
    }

    fn prepare_create(&self, object: &mut Value) {
        fields(object).insert("status".to_owned(), json!({}));
        drop_disabled(child(object, "spec"), None);
        if !object["spec"]["manualSelector"].flag() {
            generate_selector(object);
        }
        // Of a Job without labels, those of its pods: also the ones that it has got here.
        default_labels(object);
    }

    fn renamed(&self, object: &mut Value, before: &str) {
        let name = object["metadata"]["name"].clone();
        let rename = |metadata: &mut Value| {
            for label in [LEGACY_JOB_NAME, JOB_NAME] {
                if metadata["labels"][label] == before {
                    metadata["labels"][label] = name.clone();
                }
            }
        };
        rename(child(object, "metadata"));
        rename(child(child(child(object, "spec"), "template"), "metadata"));
    }

    fn prepare_update(&self, object: &mut Value, old: &Value) {
        keep(object, old, "status");
        drop_disabled(child(object, "spec"), Some(&old["spec"]));
    }

    fn prepare_status_update(&self, object: &mut Value, old: &Value) {
        keep(object, old, "spec");
    }

    fn validate(&self, object: &Value, errors: &mut FieldErrors) {
        validation::create(object, errors);
    }

    fn validate_update(&self, object: &Value, old: &Value, errors: &mut FieldErrors) {
        validation::update(object, old, errors);
    }

    fn validate_status_update(&self, object: &Value, old: &Value, errors: &mut FieldErrors) {
        status::validate_update(object, old, errors);
    }

    fn has_generation(&self) -> bool {
        true
    }

    /// For as long as batch/v1 is there: pods are left behind unless the client says otherwise.
    fn orphans_by_default(&self) -> bool {
        true
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        let mut warnings = Vec::new();
        match old {
            None => warnings.extend(name_warning(object)),
            Some(old) if object["spec"] == old["spec"] => return warnings,
            Some(_) => {}
        }
        warnings.extend(spec_warnings(&object["spec"], &Path::new("spec")));
        warnings
    }

    fn field(&self, object: &Value, path: &str) -> Option<String> {
        (path == "status.successful").then(|| object["status"]["succeeded"].int().to_string())
    }

    fn cells(&self, object: &Value) -> Vec<Cell> {
        let spec = &object["spec"];
        let [names, images] = table::containers(&spec["template"]["spec"]);
        let selector = match &spec["selector"] {
            Value::Null => "<none>".into(),
            selector => table::selector(selector, "<none>", "<error>"),
        };
        vec![
            table::name(object),
            state(object).into(),
            completions(object),
            duration(object),
            table::age(object),
            names,
            images,
            selector,
        ]
    }
}

/// A name that pods' names and hostnames are made from had better be a label.
pub(super) fn name_warning(object: &Value) -> Option<String> {
    let wrong = names::dns_label(object["metadata"]["name"].text());
    (!wrong.is_empty()).then(|| {
        format!(
            "metadata.name: this is used in Pod names and hostnames, which can result in surprising behavior; a DNS label \
             is recommended: [{}]",
            wrong.join(" ")
        )
    })
}

/// Warnings about the specification of a Job.
pub(super) fn spec_warnings(spec: &Value, path: &Path<'_>) -> Vec<String> {
    let mut warnings = Vec::new();
    if is_indexed(spec) && spec["completions"].int() > 100_000 && spec["parallelism"].int() > 10_000 {
        warnings.push(format!(
            "{path}: In Indexed Jobs with a number of completions higher than 10^5 and a parallelism higher than 10^4, \
             Kubernetes might not be able to track completedIndexes when a big number of indexes fail"
        ));
    }
    warnings.extend(pod::template_warnings(&spec["template"], &path.child("template")));
    warnings
}

fn is_indexed(spec: &Value) -> bool {
    spec["completionMode"] == "Indexed"
}

fn default_spec(spec: &mut Value) {
    if spec["completions"].is_null() && spec["parallelism"].is_null() {
        default_to(spec, "completions", 1);
    }
    default_to(spec, "parallelism", 1);
    let limit = if spec["backoffLimitPerIndex"].is_set() { i32::MAX } else { 6 };
    default_to(spec, "backoffLimit", limit);
    default_to(spec, "completionMode", "NonIndexed");
    default_to(spec, "suspend", false);
    let replaced = if spec["podFailurePolicy"].is_set() { "Failed" } else { "TerminatingOrFailed" };
    default_to(spec, "podReplacementPolicy", replaced);
    default_to(spec, "manualSelector", false);
    default_template(spec);
}

/// The defaults that also a Job has that is only a template.
pub(super) fn default_template(spec: &mut Value) {
    if spec["podFailurePolicy"].is_object() {
        for rule in items_mut(child(spec, "podFailurePolicy"), "rules") {
            for condition in items_mut(rule, "onPodConditions") {
                default_when_zero(condition, "status", "True");
            }
        }
    }
    podtemplate::default(child(spec, "template"));
}

/// A Job without labels has those of its pods.
fn default_labels(object: &mut Value) {
    let labels = object["spec"]["template"]["metadata"]["labels"].clone();
    if !labels.is_empty() && object["metadata"]["labels"].is_empty() {
        fields(child(object, "metadata")).insert("labels".to_owned(), labels);
    }
}

/// Drops what is behind a feature that is off in Kubernetes, too (`WorkloadWithJob`).
pub(super) fn drop_disabled(spec: &mut Value, old: Option<&Value>) {
    if old.is_none_or(|old| old["scheduling"].is_null()) {
        remove(spec, "scheduling");
    }
    let before = old.map(|old| &old["template"]["spec"]);
    pod::drop_disabled(child(child(spec, "template"), "spec"), before);
}

/// A Job knows its pods by its own uid. Labels that the client has set are left, and refused where they contradict.
fn generate_selector(object: &mut Value) {
    let [uid, name] = ["uid", "name"].map(|field| object["metadata"][field].clone());
    let spec = child(object, "spec");
    let labels = child(child(child(spec, "template"), "metadata"), "labels");
    for (label, value) in
        [(LEGACY_JOB_NAME, &name), (JOB_NAME, &name), (LEGACY_CONTROLLER_UID, &uid), (CONTROLLER_UID, &uid)]
    {
        default_to(labels, label, value.clone());
    }
    default_to(child(child(spec, "selector"), "matchLabels"), CONTROLLER_UID, uid);
}

/// The status of a condition; empty when there is none of this type.
fn condition<'a>(object: &'a Value, kind: &str) -> &'a str {
    let conditions = object["status"]["conditions"].items();
    conditions.iter().find(|condition| condition["type"] == kind).map_or("", |condition| condition["status"].text())
}

fn state(object: &Value) -> &'static str {
    let has = |kind: &str| condition(object, kind) == "True";
    match () {
        () if has("Complete") => "Complete",
        () if has("Failed") => "Failed",
        () if object["metadata"]["deletionTimestamp"].is_set() => "Terminating",
        () if has("Suspended") => "Suspended",
        () if has("FailureTarget") => "FailureTarget",
        () if has("SuccessCriteriaMet") => "SuccessCriteriaMet",
        () => "Running",
    }
}

fn completions(object: &Value) -> Cell {
    let (succeeded, parallelism) = (object["status"]["succeeded"].int(), object["spec"]["parallelism"].int());
    match object["spec"]["completions"].maybe_int() {
        Some(completions) => format!("{succeeded}/{completions}").into(),
        None if parallelism > 1 => format!("{succeeded}/1 of {parallelism}").into(),
        None => format!("{succeeded}/1").into(),
    }
}

fn duration(object: &Value) -> Cell {
    let status = &object["status"];
    match (status["startTime"].time(), status["completionTime"].time()) {
        (None, _) => "".into(),
        (Some(start), None) => Cell::Age(Some(start)),
        (Some(start), Some(end)) => time::human(end.duration_since(start).as_secs()).into(),
    }
}
