//! Kinds that make pods, or spare them.

use serde_json::Value;

use super::show::Show::{Age, Flag, Images, Labels, Name, Names, Number, Of, Selector, Text};
use super::{ALL, BLANK, Kind, Stored, row};
use crate::kinds::deployment::{count_or_percent, percent_of};
use crate::kinds::value::{Read, child, default_to, default_when_zero, fields};
use crate::kinds::{AGE, Cell, Column, FieldError, FieldErrors, NAME, column, pod, podtemplate, wide};
use crate::meta::field::Path;
use crate::meta::selector::validate_label_selector;

const NO_CONTROLLER: &str = "no controller acts on it yet";
const CONTAINERS: Column = wide("Containers", "string");
const IMAGES: Column = wide("Images", "string");
const SELECTOR: Column = wide("Selector", "string");
const POD: &str = "spec.template.spec";

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
    row!(namespaced "policy" "io.k8s.api.policy.v1" "PodDisruptionBudget" "poddisruptionbudgets" "poddisruptionbudget",
        [
            NAME => Name,
            column("Min Available", "string") => Text("spec.minAvailable", "N/A"),
            column("Max Unavailable", "string") => Text("spec.maxUnavailable", "N/A"),
            column("Allowed Disruptions", "integer") => Number("status.disruptionsAllowed"),
            AGE => Age,
        ],
        Stored::new(super::Support::Honoured).counted().needs_version().check_by(budget),
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
            .fixes(&["value", "preemptionPolicy"]),
        short_names: &["pc"]),
    row!(cluster "node.k8s.io" "io.k8s.api.node.v1" "RuntimeClass" "runtimeclasses" "runtimeclass",
        [NAME => Name, column("Handler", "string") => Text("handler", ""), AGE => Age],
        Stored::inert("pods are not run by it yet").requires(&["handler"]).fixes(&["handler"]).made_by_update()
            .needs_version()),
];

fn template(object: &Value, errors: &mut FieldErrors) {
    pod::validate_template(&object["spec"]["template"], None, &Path::new("spec.template"), errors);
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

fn budget(object: &Value, errors: &mut FieldErrors) {
    let spec = &object["spec"];
    if spec["minAvailable"].is_set() && spec["maxUnavailable"].is_set() {
        let detail = "minAvailable and maxUnavailable cannot be both set";
        errors.push(FieldError::invalid("spec", spec, detail));
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

fn priority_class(object: &mut Value) {
    default_to(object, "preemptionPolicy", "PreemptLowerPriority");
}

/// Highest priority that a user's class may stand for.
const PRIORITY_MAX: i64 = 1_000_000_000;

fn priority_class_check(object: &Value, errors: &mut FieldErrors) {
    let system = [("system-cluster-critical", 2_000_000_000), ("system-node-critical", 2_000_001_000)];
    let (name, value) = (object["metadata"]["name"].text(), object["value"].int());
    if name.starts_with("system-") {
        if !system.contains(&(name, value)) || object["globalDefault"].flag() {
            let detail = format!(
                "priority class names with 'system-' prefix are reserved for system use only. error: {name} is not a \
                 known system priority class"
            );
            errors.push(FieldError::forbidden("metadata.name", &detail));
        }
    } else if value > PRIORITY_MAX {
        let detail = format!("maximum allowed value of a user defined priority is {PRIORITY_MAX}");
        errors.push(FieldError::forbidden("value", &detail));
    }
    let policies = ["Never", "PreemptLowerPriority"];
    crate::kinds::checks::supported(&Path::new("preemptionPolicy"), &object["preemptionPolicy"], &policies, errors);
}

fn stateful_set_ready(object: &Value) -> Cell {
    format!("{}/{}", object["status"]["readyReplicas"].int(), object["spec"]["replicas"].int()).into()
}
