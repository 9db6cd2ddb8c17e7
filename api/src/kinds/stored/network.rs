//! Ways into the cluster, and addresses within it.

use serde_json::Value;

use super::show::Show::{Age, Joined, Name, Of, Text};
use super::{BLANK, Kind, Stored, addresses, row};
use crate::kinds::value::{Read, child, default_to, join, or};
use crate::kinds::{AGE, Cell, NAME, column};

const NOT_ALLOCATED: &str = "addresses are not given out by it yet";

pub(super) static ROWS: &[Kind] = &[
    row!(cluster "networking.k8s.io" "io.k8s.api.networking.v1" "IngressClass" "ingressclasses" "ingressclass",
        [
            NAME => Of(class_name),
            column("Controller", "string") => Text("spec.controller", ""),
            column("Parameters", "string") => Of(class_parameters),
            AGE => Age,
        ],
        Stored::inert("no controller acts on it yet").counted().default_by(ingress_class).fixes(&["spec.controller"])),
    row!(namespaced "networking.k8s.io" "io.k8s.api.networking.v1" "Ingress" "ingresses" "ingress",
        [
            NAME => Name,
            column("Class", "string") => Text("spec.ingressClassName", "<none>"),
            column("Hosts", "string") => Of(hosts),
            column("Address", "string") => Of(address),
            column("Ports", "string") => Of(ports),
            AGE => Age,
        ],
        Stored::inert("no controller acts on it yet").counted(),
        short_names: &["ing"], has_status: true),
    row!(cluster "networking.k8s.io" "io.k8s.api.networking.v1" "IPAddress" "ipaddresses" "ipaddress",
        [NAME => Name, column("ParentRef", "string") => Of(parent)],
        Stored::inert(NOT_ALLOCATED).rules(addresses::ADDRESS).named_by(addresses::name)
            .locks(&["spec.parentRef"]),
        short_names: &["ip"], selectable: &["spec.parentRef.namespace"]),
    row!(cluster "networking.k8s.io" "io.k8s.api.networking.v1" "ServiceCIDR" "servicecidrs" "servicecidr",
        [NAME => Name, column("CIDRs", "string") => Joined("spec.cidrs", ""), AGE => Age],
        Stored::inert(NOT_ALLOCATED).check_by(addresses::check_ranges).checked_once()
            .check_change_by(addresses::check_ranges_change),
        has_status: true),
];

fn ingress_class(object: &mut Value) {
    if object["spec"]["parameters"].is_object() {
        default_to(child(child(object, "spec"), "parameters"), "scope", "Cluster");
    }
}

fn class_name(object: &Value) -> Cell {
    let name = object["metadata"]["name"].text();
    match object["metadata"]["annotations"]["ingressclass.kubernetes.io/is-default-class"].text() {
        "true" => format!("{name} (default)").into(),
        _ => name.into(),
    }
}

fn class_parameters(object: &Value) -> Cell {
    let parameters = &object["spec"]["parameters"];
    let (kind, name) = (parameters["kind"].text(), parameters["name"].text());
    match &parameters["apiGroup"] {
        _ if parameters.is_null() => "<none>".into(),
        Value::String(group) => format!("{kind}.{group}/{name}").into(),
        _ => format!("{kind}/{name}").into(),
    }
}

/// The first three hosts, and how many more there are.
fn hosts(object: &Value) -> Cell {
    const SHOWN: usize = 3;
    let hosts = object["spec"]["rules"].items().iter().map(|rule| rule["host"].text());
    let hosts: Vec<&str> = hosts.filter(|host| !host.is_empty()).collect();
    let shown = join(hosts.iter().copied().take(SHOWN));
    match hosts.len() {
        0 => "*".into(),
        count if count > SHOWN => format!("{shown} + {} more...", count - SHOWN).into(),
        _ => shown.into(),
    }
}

fn address(object: &Value) -> Cell {
    let points = object["status"]["loadBalancer"]["ingress"].items().iter();
    join(points.map(|point| or(point["ip"].text(), point["hostname"].text()))).into()
}

fn ports(object: &Value) -> Cell {
    if object["spec"]["tls"].is_empty() { "80".into() } else { "80, 443".into() }
}

fn parent(object: &Value) -> Cell {
    let parent = &object["spec"]["parentRef"];
    if parent.is_null() {
        return "<none>".into();
    }
    let mut text = parent["resource"].text().to_lowercase();
    if !parent["group"].is_empty() {
        text = format!("{text}.{}", parent["group"].text().to_lowercase());
    }
    for part in [parent["namespace"].text(), parent["name"].text()].into_iter().filter(|part| !part.is_empty()) {
        text.push('/');
        text.push_str(part);
    }
    text.into()
}
