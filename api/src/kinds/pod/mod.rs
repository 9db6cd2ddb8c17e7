//! Pod, and the pod templates of other kinds.

pub(super) mod amounts;
mod defaults;
mod prepare;
mod qos;
mod table;
mod validation;
mod warnings;

use serde_json::{Value, json};

use super::value::{Read, child, fields, keep};
use super::{AGE, Cell, FieldErrors, Kind, NAME, Strategy, Subresource, VERBS, column, wide};

pub use amounts::Amounts;
pub(super) use defaults::{resources as default_resources, spec as default_spec};
pub(super) use prepare::drop_disabled;
pub(super) use qos::class as qos_class;
pub(super) use validation::projected::{signer_name, user_annotations};
pub(super) use validation::resources::container_resource as validate_container_resource;
pub(super) use validation::template as validate_template;
pub(super) use validation::{
    access_modes, claim_spec, container_resource, fixed_overhead, node_selector, persistent_source, resource_name,
    structure_difference, unique_tolerations,
};
pub(super) use warnings::{node_term as node_term_warnings, template as template_warnings};

pub(super) static KIND: Kind = Kind {
    group: "",
    version: "v1",
    kind: "Pod",
    resource: "pods",
    singular: "pod",
    short_names: &["po"],
    categories: &["all"],
    namespaced: true,
    schema: "io.k8s.api.core.v1.Pod",
    collection: "pods",
    verbs: VERBS,
    has_status: true,
    has_scale: false,
    subresources: &[
        own("attach", "PodAttachOptions", &["create", "get"]),
        own("binding", "Binding", &["create"]),
        own("ephemeralcontainers", "Pod", &["get", "patch", "update"]),
        Subresource { name: "eviction", group: "policy", version: "v1", kind: "Eviction", verbs: &["create"] },
        own("exec", "PodExecOptions", &["create", "get"]),
        own("log", "Pod", &["get"]),
        own("portforward", "PodPortForwardOptions", &["create", "get"]),
        own("proxy", "PodProxyOptions", &["create", "delete", "get", "patch", "update"]),
        own("resize", "Pod", &["get", "patch", "update"]),
    ],
    selectable: &[
        "spec.nodeName",
        "spec.host",
        "spec.restartPolicy",
        "spec.schedulerName",
        "spec.serviceAccountName",
        "spec.hostNetwork",
        "status.phase",
        "status.podIP",
        "status.podIPs",
        "status.nominatedNodeName",
    ],
    columns: &[
        NAME,
        column("Ready", "string"),
        column("Status", "string"),
        column("Restarts", "string"),
        AGE,
        wide("IP", "string"),
        wide("Node", "string"),
        wide("Nominated Node", "string"),
        wide("Readiness Gates", "string"),
    ],
    strategy: &Pod,
};

const fn own(name: &'static str, kind: &'static str, verbs: &'static [&'static str]) -> Subresource {
    Subresource { name, group: "", version: "", kind, verbs }
}

struct Pod;

impl Strategy for Pod {
    fn default(&self, object: &mut Value) {
        defaults::pod(object);
    }

    fn prepare_create(&self, object: &mut Value) {
        fields(object).insert("status".to_owned(), json!({ "phase": "Pending" }));
        drop_disabled(child(object, "spec"), None);
        prepare::gate_scheduling(object);
        prepare::merge_label_keys(object);
        prepare::pod_level_resources(object);
        let class = qos::class(&object["spec"]);
        fields(child(object, "status")).insert("qosClass".to_owned(), class.into());
    }

    fn prepare_update(&self, object: &mut Value, old: &Value) {
        keep(object, old, "status");
        prepare::keep_pod_level_resources(object, old);
        drop_disabled(child(object, "spec"), Some(&old["spec"]));
    }

    fn prepare_status_update(&self, object: &mut Value, old: &Value) {
        prepare::status(object, old);
    }

    fn prepare_subresource_update(&self, subresource: &str, object: &mut Value, old: &Value) {
        match subresource {
            "ephemeralcontainers" => prepare::ephemeral_containers(object, old),
            "resize" => prepare::resize(object, old),
            _ => *object = old.clone(),
        }
    }

    fn validate(&self, object: &Value, errors: &mut FieldErrors) {
        validation::create(object, errors);
    }

    fn validate_update(&self, object: &Value, old: &Value, errors: &mut FieldErrors) {
        validation::update::pod(object, old, errors);
    }

    fn validate_status_update(&self, object: &Value, old: &Value, errors: &mut FieldErrors) {
        validation::status::update(object, old, errors);
    }

    fn validate_subresource_update(&self, name: &str, object: &Value, old: &Value, errors: &mut FieldErrors) {
        match name {
            "ephemeralcontainers" => validation::update::ephemeral_containers(object, old, errors),
            "resize" => validation::update::resize(object, old, errors),
            _ => {}
        }
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        match old {
            None => warnings::pod(object),
            // Programs update pods, often; nobody reads warnings there.
            Some(_) => Vec::new(),
        }
    }

    fn has_generation(&self) -> bool {
        true
    }

    /// A pod without a node, or one that ended, is deleted at once.
    fn grace_period(&self, object: &Value, asked: Option<i64>) -> Option<i64> {
        let spec = &object["spec"];
        let seconds = asked.unwrap_or_else(|| spec["terminationGracePeriodSeconds"].int());
        let has_ended = ["Failed", "Succeeded"].contains(&object["status"]["phase"].text());
        Some(match seconds {
            _ if spec["nodeName"].is_empty() || has_ended => 0,
            negative if negative < 0 => 1,
            seconds => seconds,
        })
    }

    fn field(&self, object: &Value, path: &str) -> Option<String> {
        let (spec, status) = (&object["spec"], &object["status"]);
        let text = match path {
            "spec.nodeName" | "spec.host" => spec["nodeName"].text(),
            "spec.restartPolicy" => spec["restartPolicy"].text(),
            "spec.schedulerName" => spec["schedulerName"].text(),
            "spec.serviceAccountName" => spec["serviceAccountName"].text(),
            "spec.hostNetwork" => return Some(spec["hostNetwork"].flag().to_string()),
            "status.phase" => status["phase"].text(),
            "status.podIP" => status["podIPs"][0]["ip"].text(),
            // Clients may name it, but it never matches.
            "status.podIPs" => "",
            "status.nominatedNodeName" => status["nominatedNodeName"].text(),
            _ => return None,
        };
        Some(text.to_owned())
    }

    fn cells(&self, object: &Value) -> Vec<Cell> {
        table::cells(object)
    }

    fn row_conditions(&self, object: &Value) -> Value {
        let (reason, message) = match object["status"]["phase"].text() {
            "Succeeded" => ("Succeeded", "The pod has completed successfully."),
            "Failed" => ("Failed", "The pod failed."),
            _ => return Value::Null,
        };
        json!([{ "type": "Completed", "status": "True", "reason": reason, "message": message }])
    }
}
