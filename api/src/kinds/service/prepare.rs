//! Fields of a service that depend on one another: what users mean when they change one of them.

use std::collections::{HashMap, HashSet};

use serde_json::{Value, json};

use super::{is_externally_accessible, needs_cluster_ip, needs_health_check_port, needs_node_ports};
use crate::kinds::value::{Read, child, fields, items_mut, keep, remove};

/// Clients that know only `clusterIP` mean both.
pub(super) fn cluster_ips_of_new(spec: &mut Value) {
    if !spec["clusterIP"].is_empty() && spec["clusterIPs"].is_empty() {
        let ips = json!([spec["clusterIP"]]);
        fields(spec).insert("clusterIPs".to_owned(), ips);
    }
}

/// The same for an update.
pub(super) fn cluster_ips_of_changed(spec: &mut Value, old: &Value) {
    let (ip, old_ip) = (spec["clusterIP"].text(), old["clusterIP"].text());
    if ip == old_ip {
        if !old["clusterIPs"].is_empty() && spec["clusterIPs"].is_empty() {
            keep(spec, old, "clusterIPs");
        }
    } else if spec["clusterIPs"] == old["clusterIPs"] {
        if ip.is_empty() {
            remove(spec, "clusterIPs");
        } else {
            let ips = json!([ip]);
            fields(spec).insert("clusterIPs".to_owned(), ips);
        }
    }
}

/// Puts back what the server allocated and the client left out.
pub(super) fn keep_allocated(spec: &mut Value, old: &Value) {
    if needs_cluster_ip(old) && needs_cluster_ip(spec) {
        for field in ["clusterIP", "clusterIPs"] {
            if spec[field].is_empty() && !old[field].is_empty() {
                keep(spec, old, field);
            }
        }
    }
    if needs_node_ports(old) && needs_node_ports(spec) {
        let new: HashSet<i64> = node_ports(spec).into_iter().collect();
        // Ports are known by their name; later ones of the same name win.
        let numbers: HashMap<String, i64> =
            old["ports"].items().iter().map(|port| (port["name"].text().to_owned(), port["nodePort"].int())).collect();
        let still_used: HashSet<i64> = node_ports(old).into_iter().filter(|port| new.contains(port)).collect();
        for port in items_mut(spec, "ports") {
            let number = numbers.get(port["name"].text()).copied().unwrap_or(0);
            if port["nodePort"].int() == 0 && number != 0 && !still_used.contains(&number) {
                fields(port).insert("nodePort".to_owned(), number.into());
            }
        }
    }
    if needs_health_check_port(old) && needs_health_check_port(spec) && spec["healthCheckNodePort"].int() == 0 {
        keep(spec, old, "healthCheckNodePort");
    }
}

/// Drops what a change of the type made senseless, unless the client changed it as well (then validation speaks).
pub(super) fn drop_type_dependent(service: &mut Value, old: &Value) {
    let spec = child(service, "spec");
    if needs_cluster_ip(old) && !needs_cluster_ip(spec) {
        if same_cluster_ips(spec, old) {
            remove(spec, "clusterIP");
            remove(spec, "clusterIPs");
        }
        for field in ["ipFamilies", "ipFamilyPolicy"] {
            if spec[field] == old[field] {
                remove(spec, field);
            }
        }
    }
    if needs_node_ports(old) && !needs_node_ports(spec) {
        let before: HashSet<i64> = node_ports(old).into_iter().collect();
        if node_ports(spec).iter().all(|port| before.contains(port)) {
            for port in items_mut(spec, "ports") {
                remove(port, "nodePort");
            }
        }
    }
    if needs_health_check_port(old)
        && !needs_health_check_port(spec)
        && spec["healthCheckNodePort"].int() == old["healthCheckNodePort"].int()
    {
        remove(spec, "healthCheckNodePort");
    }
    if old["type"] == "LoadBalancer" && spec["type"] != "LoadBalancer" {
        for field in ["allocateLoadBalancerNodePorts", "loadBalancerClass"] {
            if spec[field] == old[field] {
                remove(spec, field);
            }
        }
    }
    if is_externally_accessible(old)
        && !is_externally_accessible(spec)
        && spec["externalTrafficPolicy"].text() == old["externalTrafficPolicy"].text()
    {
        remove(spec, "externalTrafficPolicy");
    }
    if spec["type"] != "LoadBalancer" {
        fields(child(service, "status")).insert("loadBalancer".to_owned(), json!({}));
    }
}

fn same_cluster_ips(spec: &Value, old: &Value) -> bool {
    spec["clusterIP"].text() == old["clusterIP"].text() && spec["clusterIPs"].items() == old["clusterIPs"].items()
}

fn node_ports(spec: &Value) -> Vec<i64> {
    spec["ports"].items().iter().map(|port| port["nodePort"].int()).filter(|port| *port != 0).collect()
}
