//! Node.

mod validation;

use std::collections::BTreeSet;

use serde_json::Value;

use super::value::{Read, child, default_to, fields, keep, or, remove};
use super::{AGE, Cell, FieldErrors, Kind, NAME, Strategy, Subresource, VERBS, column, network, table, wide};
use crate::meta::field::Path;

pub(super) static KIND: Kind = Kind {
    group: "",
    version: "v1",
    kind: "Node",
    resource: "nodes",
    singular: "node",
    short_names: &["no"],
    categories: &[],
    namespaced: false,
    schema: "io.k8s.api.core.v1.Node",
    collection: "nodes",
    verbs: VERBS,
    has_status: true,
    has_scale: false,
    subresources: &[Subresource {
        name: "proxy",
        group: "",
        version: "",
        kind: "NodeProxyOptions",
        verbs: &["create", "delete", "get", "patch", "update"],
    }],
    selectable: &["spec.unschedulable"],
    columns: &[
        NAME,
        column("Status", "string"),
        column("Roles", "string"),
        AGE,
        column("Version", "string"),
        wide("Internal-IP", "string"),
        wide("External-IP", "string"),
        wide("OS-Image", "string"),
        wide("Kernel-Version", "string"),
        wide("Container-Runtime", "string"),
    ],
    strategy: &Node,
};

struct Node;

/// Texts of `status.nodeInfo`, which are always written.
const NODE_INFO: [&str; 10] = [
    "architecture",
    "bootID",
    "containerRuntimeVersion",
    "kernelVersion",
    "kubeProxyVersion",
    "kubeletVersion",
    "machineID",
    "operatingSystem",
    "osImage",
    "systemUUID",
];

impl Strategy for Node {
    fn default(&self, object: &mut Value) {
        let spec = child(object, "spec");
        let (first, cidrs) = (spec["podCIDR"].text().to_owned(), spec["podCIDRs"].items());
        // The singular field wins, for clients that know only it; then both say the same.
        if !first.is_empty() && cidrs.first().is_none_or(|cidr| cidr.text() != first) {
            fields(spec).insert("podCIDRs".to_owned(), Value::Array(vec![first.into()]));
        } else if let Some(cidr) = cidrs.first().cloned() {
            fields(spec).insert("podCIDR".to_owned(), cidr);
        }
        let status = child(object, "status");
        if status["allocatable"].is_null() && status["capacity"].is_set() {
            let capacity = status["capacity"].clone();
            fields(status).insert("allocatable".to_owned(), capacity);
        }
        default_to(child(child(status, "daemonEndpoints"), "kubeletEndpoint"), "Port", 0);
        let info = child(status, "nodeInfo");
        for field in NODE_INFO {
            default_to(info, field, "");
        }
    }

    /// A new node may bring its status.
    fn prepare_create(&self, object: &mut Value) {
        remove(child(object, "spec"), "configSource");
        remove(child(object, "spec"), "podPreemptionPolicy");
        remove(child(object, "status"), "config");
    }

    fn prepare_update(&self, object: &mut Value, old: &Value) {
        keep(object, old, "status");
        for field in ["configSource", "podPreemptionPolicy"] {
            if old["spec"][field].is_null() {
                remove(child(object, "spec"), field);
            }
        }
    }

    fn prepare_status_update(&self, object: &mut Value, old: &Value) {
        keep(object, old, "spec");
        if old["status"]["config"].is_null() {
            remove(child(object, "status"), "config");
        }
    }

    fn validate(&self, object: &Value, errors: &mut FieldErrors) {
        validation::node(object, errors);
    }

    fn validate_update(&self, object: &Value, old: &Value, errors: &mut FieldErrors) {
        validation::node(object, errors);
        validation::update(object, old, errors);
    }

    fn validate_status_update(&self, object: &Value, old: &Value, errors: &mut FieldErrors) {
        validation::update(object, old, errors);
    }

    fn warnings(&self, object: &Value, _old: Option<&Value>) -> Vec<String> {
        let mut warnings = Vec::new();
        let spec = &object["spec"];
        if spec["configSource"].is_set() {
            warnings.push("spec.configSource: the feature is removed".to_owned());
        }
        if !spec["externalID"].is_empty() {
            warnings.push("spec.externalID: this field is deprecated, and is unused by Kubernetes".to_owned());
        }
        for (index, range) in spec["podCIDRs"].items().iter().enumerate() {
            warnings.extend(network::cidr_warnings(&Path::new("spec.podCIDRs").index(index), range.text()));
        }
        warnings
    }

    fn field(&self, object: &Value, path: &str) -> Option<String> {
        (path == "spec.unschedulable").then(|| object["spec"]["unschedulable"].flag().to_string())
    }

    fn cells(&self, object: &Value) -> Vec<Cell> {
        let status = &object["status"];
        let info = &status["nodeInfo"];
        let mut kernel = or(info["kernelVersion"].text(), "<unknown>").to_owned();
        if !info["architecture"].is_empty() {
            kernel.push_str(&format!(" ({})", info["architecture"].text()));
        }
        vec![
            table::name(object),
            readiness(object).into(),
            roles(object).into(),
            table::age(object),
            info["kubeletVersion"].text().into(),
            address(status, "InternalIP").into(),
            address(status, "ExternalIP").into(),
            or(info["osImage"].text(), "<unknown>").into(),
            kernel.into(),
            or(info["containerRuntimeVersion"].text(), "<unknown>").into(),
        ]
    }
}

/// `Ready`, `NotReady` or `Unknown`, and whether it takes pods.
fn readiness(node: &Value) -> String {
    let ready = node["status"]["conditions"].items().iter().rfind(|condition| condition["type"].text() == "Ready");
    let word = match ready.map(|condition| condition["status"].text()) {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    };
    if node["spec"]["unschedulable"].flag() { format!("{word},SchedulingDisabled") } else { word.to_owned() }
}

/// The roles that its labels name.
fn roles(node: &Value) -> String {
    let mut roles = BTreeSet::new();
    for (key, value) in node["metadata"]["labels"].entries() {
        match key.strip_prefix("node-role.kubernetes.io/") {
            Some("") => {}
            Some(role) => drop(roles.insert(role)),
            None if key == "kubernetes.io/role" && !value.is_empty() => drop(roles.insert(value.text())),
            None => {}
        }
    }
    let roles: Vec<&str> = roles.into_iter().collect();
    or(&roles.join(","), "<none>").to_owned()
}

/// Its first address of a type.
fn address<'a>(status: &'a Value, kind: &str) -> &'a str {
    let addresses = status["addresses"].items();
    addresses.iter().find(|address| address["type"].text() == kind).map_or("<none>", |found| found["address"].text())
}
