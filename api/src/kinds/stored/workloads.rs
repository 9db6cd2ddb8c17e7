//! Kinds that make pods, or spare them.

use serde_json::{Value, json};

use super::rules::{Check, Rule};
use super::show::Show::{Age, Count, Flag, Images, Labels, Name, Names, Number, Of, Selector, Text};
use super::{ALL, BLANK, Kind, Stored, condition, row};
use crate::kinds::deployment::{count_or_percent, percent_of};
use crate::kinds::value::{Read, child, default_to, default_when_zero, fields};
use crate::kinds::{
    AGE, Cell, Column, FieldError, FieldErrors, NAME, checks, column, internal, pod, podtemplate, wide,
};
use crate::meta::field::{Path, Printed};
use crate::meta::selector::validate_label_selector;
use crate::meta::{time, validate_labels};

const NO_CONTROLLER: &str = "no controller acts on it yet";
const CONTAINERS: Column = wide("Containers", "string");
const IMAGES: Column = wide("Images", "string");
const SELECTOR: Column = wide("Selector", "string");
const POD: &str = "spec.template.spec";
const BUDGET: &[Rule] = &[Rule("spec.unhealthyPodEvictionPolicy", Check::OneOf(&["AlwaysAllow", "IfHealthyBudget"]))];
const RUNTIME: &[Rule] = &[Rule("handler", Check::Required("")), Rule("handler", Check::Label)];
const CRON_POD: &str = "spec.jobTemplate.spec.template.spec";

pub(super) static ROWS: &[Kind] = &[
    row!(namespaced "" "io.k8s.api.core.v1" "ReplicationController" "replicationcontrollers" "replicationcontroller",
        [
            NAME => Name,
            column("Desired", "integer") => Number("spec.replicas"),
            column("Current", "integer") => Number("status.replicas"),
            column("Ready", "integer") => Number("status.readyReplicas"),
            AGE => Age,
            CONTAINERS => Names(POD),
            IMAGES => Images(POD),
            SELECTOR => Labels("spec.selector"),
        ],
        Stored::inert(NO_CONTROLLER).counted().default_by(replication_controller).check_by(template).orphaning(),
        short_names: &["rc"], categories: ALL, has_status: true, has_scale: true, selectable: &["status.replicas"]),
    row!(namespaced "apps" "io.k8s.api.apps.v1" "DaemonSet" "daemonsets" "daemonset",
        [
            NAME => Name,
            column("Desired", "integer") => Number("status.desiredNumberScheduled"),
            column("Current", "integer") => Number("status.currentNumberScheduled"),
            column("Ready", "integer") => Number("status.numberReady"),
            column("Up-to-date", "integer") => Number("status.updatedNumberScheduled"),
            column("Available", "integer") => Number("status.numberAvailable"),
            column("Node Selector", "string") => Labels("spec.template.spec.nodeSelector"),
            AGE => Age,
            CONTAINERS => Names(POD),
            IMAGES => Images(POD),
            SELECTOR => Selector("spec.selector"),
        ],
        Stored::inert(NO_CONTROLLER).counted().default_by(daemon_set).requires(&["spec.selector"])
            .fixes(&["spec.selector"]).check_by(template),
        short_names: &["ds"], categories: ALL, has_status: true),
    row!(namespaced "apps" "io.k8s.api.apps.v1" "StatefulSet" "statefulsets" "statefulset",
        [
            NAME => Name,
            column("Ready", "string") => Of(stateful_set_ready),
            AGE => Age,
            CONTAINERS => Names(POD),
            IMAGES => Images(POD),
        ],
        Stored::inert(NO_CONTROLLER).counted().default_by(stateful_set).requires(&["spec.selector"])
            .fixes(&["spec.selector", "spec.serviceName", "spec.podManagementPolicy"]).check_by(template),
        short_names: &["sts"], categories: ALL, has_status: true, has_scale: true),
    row!(namespaced "batch" "io.k8s.api.batch.v1" "CronJob" "cronjobs" "cronjob",
        [
            NAME => Name,
            column("Schedule", "string") => Text("spec.schedule", ""),
            column("Timezone", "string") => Text("spec.timeZone", "<none>"),
            column("Suspend", "boolean") => Of(cron_job_suspended),
            column("Active", "integer") => Count("status.active"),
            column("Last Schedule", "string") => Of(cron_job_last),
            AGE => Age,
            CONTAINERS => Names(CRON_POD),
            IMAGES => Images(CRON_POD),
            SELECTOR => Selector("spec.jobTemplate.spec.selector"),
        ],
        Stored::inert(NO_CONTROLLER).counted().default_by(cron_job).requires(&["spec.schedule"]).check_by(job_template),
        short_names: &["cj"], categories: ALL, has_status: true),
    row!(namespaced "batch" "io.k8s.api.batch.v1" "Job" "jobs" "job",
        [
            NAME => Name,
            column("Status", "string") => Of(job_status),
            column("Completions", "string") => Of(job_completions),
            column("Duration", "string") => Of(job_duration),
            AGE => Age,
            CONTAINERS => Names(POD),
            IMAGES => Images(POD),
            SELECTOR => Selector("spec.selector"),
        ],
        Stored::inert(NO_CONTROLLER).counted().default_by(job).create_by(job_selector)
            .fixes(&["spec.completionMode", "spec.selector"]).check_by(template).orphaning(),
        categories: ALL, has_status: true, selectable: &["status.successful"]),
    row!(namespaced "policy" "io.k8s.api.policy.v1" "PodDisruptionBudget" "poddisruptionbudgets" "poddisruptionbudget",
        [
            NAME => Name,
            column("Min Available", "string") => Text("spec.minAvailable", "N/A"),
            column("Max Unavailable", "string") => Text("spec.maxUnavailable", "N/A"),
            column("Allowed Disruptions", "integer") => Number("status.disruptionsAllowed"),
            AGE => Age,
        ],
        Stored::new(super::Support::Honoured).counted().needs_version().rules(BUDGET).check_by(budget)
            .check_status_by(budget_status),
        short_names: &["pdb"], has_status: true),
    row!(cluster "scheduling.k8s.io" "io.k8s.api.scheduling.v1" "PriorityClass" "priorityclasses" "priorityclass",
        [
            NAME => Name,
            column("Value", "integer") => Number("value"),
            column("Global-Default", "boolean") => Flag("globalDefault"),
            AGE => Age,
            column("PreemptionPolicy", "string") => Text("preemptionPolicy", ""),
        ],
        Stored::new(super::Support::Honoured).counted().default_by(priority_class).check_by(priority_class_check)
            .fixes(&["preemptionPolicy"]).check_change_by(same_priority),
        short_names: &["pc"]),
    row!(cluster "node.k8s.io" "io.k8s.api.node.v1" "RuntimeClass" "runtimeclasses" "runtimeclass",
        [NAME => Name, column("Handler", "string") => Text("handler", ""), AGE => Age],
        Stored::inert("pods are not run by it yet").rules(RUNTIME).check_by(runtime_class).locks(&["handler"])
            .made_by_update().needs_version()),
];

fn template(object: &Value, errors: &mut FieldErrors) {
    pod::validate_template(&object["spec"]["template"], None, &Path::new("spec.template"), errors);
}

fn job_template(object: &Value, errors: &mut FieldErrors) {
    let path = Path::new("spec.jobTemplate.spec.template");
    pod::validate_template(&object["spec"]["jobTemplate"]["spec"]["template"], None, &path, errors);
}

fn replication_controller(object: &mut Value) {
    let labels = object["spec"]["template"]["metadata"]["labels"].clone();
    if !labels.is_empty() {
        let own = child(object, "metadata");
        if own["labels"].is_empty() {
            fields(own).insert("labels".to_owned(), labels.clone());
        }
        if object["spec"]["selector"].is_empty() {
            fields(child(object, "spec")).insert("selector".to_owned(), labels);
        }
    }
    let spec = child(object, "spec");
    default_to(spec, "replicas", 1);
    podtemplate::default(child(spec, "template"));
}

fn daemon_set(object: &mut Value) {
    let spec = child(object, "spec");
    let strategy = child(spec, "updateStrategy");
    default_when_zero(strategy, "type", "RollingUpdate");
    if strategy["type"] == "RollingUpdate" {
        let rolling = child(strategy, "rollingUpdate");
        default_to(rolling, "maxUnavailable", 1);
        default_to(rolling, "maxSurge", 0);
    }
    default_to(spec, "revisionHistoryLimit", 10);
    podtemplate::default(child(spec, "template"));
}

fn stateful_set(object: &mut Value) {
    let spec = child(object, "spec");
    default_when_zero(spec, "podManagementPolicy", "OrderedReady");
    let strategy = child(spec, "updateStrategy");
    if strategy["type"].is_empty() {
        default_when_zero(strategy, "type", "RollingUpdate");
        child(strategy, "rollingUpdate");
    }
    if strategy["type"] == "RollingUpdate" && strategy["rollingUpdate"].is_object() {
        default_to(child(strategy, "rollingUpdate"), "partition", 0);
    }
    let retention = child(spec, "persistentVolumeClaimRetentionPolicy");
    default_when_zero(retention, "whenDeleted", "Retain");
    default_when_zero(retention, "whenScaled", "Retain");
    default_to(spec, "replicas", 1);
    default_to(spec, "revisionHistoryLimit", 10);
    podtemplate::default(child(spec, "template"));
}

fn job(object: &mut Value) {
    job_spec(child(object, "spec"));
    job_labels(object);
}

/// A job without labels has those of its pods.
fn job_labels(object: &mut Value) {
    let labels = object["spec"]["template"]["metadata"]["labels"].clone();
    if !labels.is_empty() && object["metadata"]["labels"].is_empty() {
        fields(child(object, "metadata")).insert("labels".to_owned(), labels);
    }
}

fn job_spec(spec: &mut Value) {
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
    podtemplate::default(child(spec, "template"));
}

/// A job knows its pods by its own uid, unless the client says how.
fn job_selector(object: &mut Value) {
    if object["spec"]["manualSelector"].flag() {
        return;
    }
    let [uid, name] = ["uid", "name"].map(|field| object["metadata"][field].clone());
    let spec = child(object, "spec");
    let selected = json!({"batch.kubernetes.io/controller-uid": uid});
    if spec["selector"]["matchLabels"].is_empty() {
        fields(child(spec, "selector")).insert("matchLabels".to_owned(), selected);
    }
    let labels = child(child(child(spec, "template"), "metadata"), "labels");
    for (label, value) in [
        ("controller-uid", &uid),
        ("job-name", &name),
        ("batch.kubernetes.io/controller-uid", &uid),
        ("batch.kubernetes.io/job-name", &name),
    ] {
        default_to(labels, label, value.clone());
    }
    job_labels(object);
}

fn cron_job(object: &mut Value) {
    let spec = child(object, "spec");
    default_when_zero(spec, "concurrencyPolicy", "Allow");
    default_to(spec, "suspend", false);
    default_to(spec, "successfulJobsHistoryLimit", 3);
    default_to(spec, "failedJobsHistoryLimit", 1);
    // The template's job is completed when it is made.
    podtemplate::default(child(child(child(spec, "jobTemplate"), "spec"), "template"));
}

fn budget(object: &Value, errors: &mut FieldErrors) {
    let spec = &object["spec"];
    if spec["minAvailable"].is_set() && spec["maxUnavailable"].is_set() {
        let (shown, detail) =
            (internal::text("PodDisruptionBudgetSpec", spec), "minAvailable and maxUnavailable cannot be both set");
        errors.push(FieldError::invalid("spec", Printed(&shown), detail));
    }
    for (at, value) in [("spec.minAvailable", &spec["minAvailable"]), ("spec.maxUnavailable", &spec["maxUnavailable"])]
    {
        if !value.is_set() {
            continue;
        }
        let path = Path::new(at);
        count_or_percent(&path, value, errors);
        if percent_of(value).is_some_and(|percent| percent > 100) {
            errors.push(FieldError::invalid(path, value, "must not be greater than 100%"));
        }
    }
    validate_label_selector(&spec["selector"], &Path::new("spec.selector"), errors);
}

fn budget_status(object: &Value, _old: &Value, errors: &mut FieldErrors) {
    checks::conditions(object["status"]["conditions"].items(), &Path::new("status.conditions"), errors);
    super::rules::check(
        &[
            Rule("status.disruptionsAllowed", Check::NonNegative),
            Rule("status.currentHealthy", Check::NonNegative),
            Rule("status.desiredHealthy", Check::NonNegative),
            Rule("status.expectedPods", Check::NonNegative),
        ],
        object,
        errors,
    );
}

fn priority_class(object: &mut Value) {
    default_to(object, "preemptionPolicy", "PreemptLowerPriority");
}

/// Highest priority that a user's class may stand for.
const PRIORITY_MAX: i64 = 1_000_000_000;

fn priority_class_check(object: &Value, errors: &mut FieldErrors) {
    let system = [("system-cluster-critical", 2_000_000_000), ("system-node-critical", 2_000_001_000)];
    let (name, value) = (object["metadata"]["name"].text(), object["value"].int());
    if name.starts_with("system-") {
        let problem = match system.into_iter().find(|(known, _)| *known == name) {
            None => Some(format!("{name} is not a known system priority class")),
            Some((_, fixed)) if fixed != value => Some(format!("value of {name} PriorityClass must be {fixed}")),
            Some(_) if object["globalDefault"].flag() => {
                Some(format!("globalDefault of {name} PriorityClass must be false"))
            }
            Some(_) => None,
        };
        if let Some(problem) = problem {
            let head = "priority class names with 'system-' prefix are reserved for system use only. error:";
            errors.push(FieldError::forbidden("metadata.name", &format!("{head} {problem}")));
        }
    } else if value > PRIORITY_MAX {
        let detail = format!("maximum allowed value of a user defined priority is {PRIORITY_MAX}");
        errors.push(FieldError::forbidden("value", &detail));
    }
    let policies = ["PreemptLowerPriority", "Never"];
    checks::supported(&Path::new("preemptionPolicy"), &object["preemptionPolicy"], &policies, errors);
}

fn same_priority(object: &Value, old: &Value, errors: &mut FieldErrors) {
    if object["value"] != old["value"] {
        errors.push(FieldError::forbidden("value", "may not be changed in an update."));
    }
}

fn runtime_class(object: &Value, errors: &mut FieldErrors) {
    pod::fixed_overhead(&object["overhead"]["podFixed"], &Path::new("overhead"), errors);
    let (scheduling, path) = (&object["scheduling"], Path::new("scheduling"));
    validate_labels(scheduling["nodeSelector"].as_object(), &path.child("nodeSelector"), errors);
    pod::unique_tolerations(&scheduling["tolerations"], &path.child("tolerations"), errors);
}

fn stateful_set_ready(object: &Value) -> Cell {
    format!("{}/{}", object["status"]["readyReplicas"].int(), object["spec"]["replicas"].int()).into()
}

fn cron_job_suspended(object: &Value) -> Cell {
    match object["spec"]["suspend"].as_bool() {
        Some(true) => "True".into(),
        Some(false) => "False".into(),
        None => "<unset>".into(),
    }
}

fn cron_job_last(object: &Value) -> Cell {
    object["status"]["lastScheduleTime"].time().map_or("<none>".into(), |time| Cell::Age(Some(time)))
}

fn job_status(object: &Value) -> Cell {
    let has = |kind: &str| condition(object, kind) == "True";
    let status = match () {
        () if has("Complete") => "Complete",
        () if has("Failed") => "Failed",
        () if object["metadata"]["deletionTimestamp"].is_set() => "Terminating",
        () if has("Suspended") => "Suspended",
        () if has("FailureTarget") => "FailureTarget",
        () if has("SuccessCriteriaMet") => "SuccessCriteriaMet",
        () => "Running",
    };
    status.into()
}

fn job_completions(object: &Value) -> Cell {
    let (succeeded, parallelism) = (object["status"]["succeeded"].int(), object["spec"]["parallelism"].int());
    match object["spec"]["completions"].maybe_int() {
        Some(completions) => format!("{succeeded}/{completions}").into(),
        None if parallelism > 1 => format!("{succeeded}/1 of {parallelism}").into(),
        None => format!("{succeeded}/1").into(),
    }
}

fn job_duration(object: &Value) -> Cell {
    let status = &object["status"];
    match (status["startTime"].time(), status["completionTime"].time()) {
        (None, _) => "".into(),
        (Some(start), None) => Cell::Age(Some(start)),
        (Some(start), Some(end)) => time::human(end.duration_since(start).as_secs()).into(),
    }
}
