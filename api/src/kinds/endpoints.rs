//! Endpoints, which EndpointSlices replace.

use serde_json::Value;

use super::value::{Read, default_when_zero, items_mut};
use super::{AGE, Cell, FieldError, FieldErrors, Kind, NAME, Strategy, VERBS, checks, column, network, table};
use crate::meta::field::Path;

pub(super) static KIND: Kind = Kind {
    group: "",
    version: "v1",
    kind: "Endpoints",
    resource: "endpoints",
    singular: "endpoints",
    short_names: &["ep"],
    categories: &[],
    namespaced: true,
    schema: "io.k8s.api.core.v1.Endpoints",
    collection: "endpoints",
    verbs: VERBS,
    has_status: false,
    has_scale: false,
    subresources: &[],
    selectable: &[],
    columns: &[NAME, column("Endpoints", "string"), AGE],
    strategy: &Endpoints,
};

/// Addresses shown in a table.
const SHOWN: usize = 3;

struct Endpoints;

impl Strategy for Endpoints {
    fn default(&self, object: &mut Value) {
        for subset in items_mut(object, "subsets") {
            for port in items_mut(subset, "ports") {
                default_when_zero(port, "protocol", "TCP");
            }
        }
    }

    fn validate(&self, object: &Value, errors: &mut FieldErrors) {
        let subsets = Path::new("subsets");
        for (index, subset) in object["subsets"].items().iter().enumerate() {
            validate_subset(&subsets.index(index), subset, errors);
        }
    }

    fn validate_update(&self, object: &Value, old: &Value, errors: &mut FieldErrors) {
        if object["subsets"] != old["subsets"] {
            self.validate(object, errors);
        }
    }

    fn warnings(&self, object: &Value, _old: Option<&Value>) -> Vec<String> {
        // The controller writes proper addresses only.
        if object["metadata"]["labels"]["endpoints.kubernetes.io/managed-by"] == "endpoint-controller" {
            return Vec::new();
        }
        let mut warnings = Vec::new();
        for (index, subset) in object["subsets"].items().iter().enumerate() {
            for list in ["addresses", "notReadyAddresses"] {
                for (number, address) in subset[list].items().iter().enumerate() {
                    let subsets = Path::new("subsets");
                    let (subset, ip) = (subsets.index(index), address["ip"].text());
                    let list = subset.child(list);
                    warnings.extend(network::ip_warnings(&list.index(number).child("ip"), ip));
                }
            }
        }
        warnings
    }

    fn allows_create_on_update(&self) -> bool {
        true
    }

    fn cells(&self, object: &Value) -> Vec<Cell> {
        vec![table::name(object), summary(object).into(), table::age(object)]
    }
}

/// The first ready addresses with their ports.
fn summary(endpoints: &Value) -> String {
    if endpoints["subsets"].is_empty() {
        return "<none>".to_owned();
    }
    let (mut shown, mut count) = (Vec::new(), 0);
    for subset in endpoints["subsets"].items() {
        let addresses = subset["addresses"].items();
        let ports: Vec<Option<i64>> = match subset["ports"].items() {
            [] => vec![None],
            ports => ports.iter().map(|port| Some(port["port"].int())).collect(),
        };
        for port in ports {
            count += addresses.len();
            for address in addresses.iter().take(SHOWN - shown.len()) {
                let ip = address["ip"].text();
                shown.push(match port {
                    None => ip.to_owned(),
                    Some(port) if ip.contains(':') => format!("[{ip}]:{port}"),
                    Some(port) => format!("{ip}:{port}"),
                });
            }
        }
    }
    let text = shown.join(",");
    if count > shown.len() { format!("{text} + {} more...", count - SHOWN) } else { text }
}

fn validate_subset(path: &Path<'_>, subset: &Value, errors: &mut FieldErrors) {
    if subset["addresses"].is_empty() && subset["notReadyAddresses"].is_empty() {
        errors.push(FieldError::required(path, "must specify `addresses` or `notReadyAddresses`"));
    }
    for list in ["addresses", "notReadyAddresses"] {
        let path = path.child(list);
        for (index, address) in subset[list].items().iter().enumerate() {
            validate_address(&path.index(index), address, errors);
        }
    }
    let (ports, path) = (subset["ports"].items(), path.child("ports"));
    for (index, port) in ports.iter().enumerate() {
        let path = path.index(index);
        match port["name"].text() {
            "" if ports.len() > 1 => errors.push(FieldError::required(path.child("name"), "")),
            "" => {}
            name => checks::dns_label(&path.child("name"), name, errors),
        }
        checks::port_number(&path.child("port"), &port["port"], errors);
        checks::required_of(&path.child("protocol"), &port["protocol"], &checks::PROTOCOLS, errors);
        if port["appProtocol"].is_set() {
            checks::qualified_name(&path.child("appProtocol"), port["appProtocol"].text(), errors);
        }
    }
}

fn validate_address(path: &Path<'_>, address: &Value, errors: &mut FieldErrors) {
    let (ip_path, ip) = (path.child("ip"), address["ip"].text());
    network::validate_legacy_ip(&ip_path, ip, &[], errors);
    if !address["hostname"].is_empty() {
        checks::dns_label(&path.child("hostname"), address["hostname"].text(), errors);
    }
    if address["nodeName"].is_set() {
        checks::dns_subdomain(&path.child("nodeName"), address["nodeName"].text(), errors);
    }
    network::validate_endpoint_ip(&ip_path, ip, errors);
}
