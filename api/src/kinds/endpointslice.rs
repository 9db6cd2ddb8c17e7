//! EndpointSlice of `discovery.k8s.io`.

use serde_json::Value;

use super::value::{Read, child, default_to, items_mut, or, remove, repeats};
use super::{AGE, Cell, FieldError, FieldErrors, Kind, NAME, Strategy, VERBS, checks, column, network, table};
use crate::meta::field::{Path, Printed};
use crate::meta::{names, validate_labels};

pub(super) static KIND: Kind = Kind {
    group: "discovery.k8s.io",
    version: "v1",
    kind: "EndpointSlice",
    resource: "endpointslices",
    singular: "endpointslice",
    short_names: &[],
    categories: &[],
    namespaced: true,
    schema: "io.k8s.api.discovery.v1.EndpointSlice",
    collection: "endpointslices.discovery.k8s.io",
    verbs: VERBS,
    has_status: false,
    has_scale: false,
    subresources: &[],
    selectable: &[],
    columns: &[NAME, column("AddressType", "string"), column("Ports", "string"), column("Endpoints", "string"), AGE],
    strategy: &EndpointSlice,
};

struct EndpointSlice;

impl Strategy for EndpointSlice {
    fn default(&self, object: &mut Value) {
        for port in items_mut(object, "ports") {
            default_to(port, "name", "");
            default_to(port, "protocol", "TCP");
        }
        for endpoint in items_mut(object, "endpoints") {
            child(endpoint, "conditions");
        }
        default_to(object, "endpoints", Value::Null);
        default_to(object, "ports", Value::Null);
    }

    fn prepare_create(&self, object: &mut Value) {
        for endpoint in items_mut(object, "endpoints") {
            remove(endpoint, "deprecatedTopology");
        }
    }

    fn prepare_update(&self, object: &mut Value, old: &Value) {
        if object["endpoints"] != old["endpoints"] {
            self.prepare_create(object);
        }
    }

    fn validate(&self, object: &Value, errors: &mut FieldErrors) {
        validate_head(object, errors);
        validate_endpoints(object, errors);
    }

    fn validate_update(&self, object: &Value, old: &Value, errors: &mut FieldErrors) {
        validate_head(object, errors);
        if object["endpoints"] != old["endpoints"] {
            validate_endpoints(object, errors);
        }
        if object["addressType"] != old["addressType"] {
            errors.push(FieldError::invalid("addressType", Printed("null"), "field is immutable"));
        }
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        let mut warnings = Vec::new();
        if old.is_none() && object["addressType"] == "FQDN" {
            warnings.push("spec.addressType: FQDN endpoints are deprecated".to_owned());
        }
        // The controllers write proper addresses only.
        let manager = object["metadata"]["labels"]["endpointslice.kubernetes.io/managed-by"].text();
        if ["endpointslice-controller.k8s.io", "endpointslicemirroring-controller.k8s.io"].contains(&manager) {
            return warnings;
        }
        for (index, endpoint) in object["endpoints"].items().iter().enumerate() {
            for (number, address) in endpoint["addresses"].items().iter().enumerate() {
                let endpoints = Path::new("endpoints");
                let endpoint = endpoints.index(index);
                let addresses = endpoint.child("addresses");
                warnings.extend(network::ip_warnings(&addresses.index(number), address.text()));
            }
        }
        warnings
    }

    fn has_generation(&self) -> bool {
        true
    }

    /// All but metadata counts, and labels.
    fn changes_generation(&self, object: &Value, old: &Value) -> bool {
        let labels = |object: &Value| object["metadata"].get("labels").filter(|map| !map.is_empty()).cloned();
        ["addressType", "endpoints", "ports"].iter().any(|field| object[field] != old[field])
            || labels(object) != labels(old)
    }

    fn cells(&self, object: &Value) -> Vec<Cell> {
        let ports: Vec<String> = object["ports"]
            .items()
            .iter()
            .map(|port| match (&port["port"], &port["name"]) {
                (Value::Number(number), _) => number.to_string(),
                (_, Value::String(name)) => name.clone(),
                _ => "*".to_owned(),
            })
            .collect();
        let addresses: Vec<&str> = object["endpoints"]
            .items()
            .iter()
            .flat_map(|endpoint| endpoint["addresses"].items().iter().map(Read::text))
            .collect();
        vec![
            table::name(object),
            object["addressType"].text().into(),
            first_three(&ports).into(),
            first_three(&addresses).into(),
            table::age(object),
        ]
    }
}

fn first_three<T: AsRef<str>>(all: &[T]) -> String {
    let shown: Vec<&str> = all.iter().take(3).map(AsRef::as_ref).collect();
    let text = shown.join(",");
    if all.len() > 3 { format!("{text} + {} more...", all.len() - 3) } else { or(&text, "<unset>").to_owned() }
}

const PORTS_MAX: usize = 20_000;
const ENDPOINTS_MAX: usize = 1_000;
const ADDRESSES_MAX: usize = 100;
const TOPOLOGY_MAX: usize = 16;
const HINTS_MAX: usize = 8;

fn validate_head(slice: &Value, errors: &mut FieldErrors) {
    checks::required_of(&Path::new("addressType"), &slice["addressType"], &["FQDN", "IPv4", "IPv6"], errors);
    let (ports, path) = (slice["ports"].items(), Path::new("ports"));
    if ports.len() > PORTS_MAX {
        errors.push(FieldError::too_many(path, ports.len(), PORTS_MAX));
        return;
    }
    let repeated = repeats(ports.iter().map(|port| port["name"].text()));
    for (index, port) in ports.iter().enumerate() {
        let (path, name) = (path.index(index), port["name"].text());
        if !name.is_empty() {
            checks::dns_label(&path.child("name"), name, errors);
        }
        if repeated[index] {
            errors.push(FieldError::duplicate(path.child("name"), name));
        }
        if port["protocol"].is_null() {
            errors.push(FieldError::required(path.child("protocol"), ""));
        } else {
            checks::supported(&path.child("protocol"), &port["protocol"], &checks::PROTOCOLS, errors);
        }
        if port["appProtocol"].is_set() {
            checks::qualified_name(&path.child("appProtocol"), port["appProtocol"].text(), errors);
        }
    }
}

fn validate_endpoints(slice: &Value, errors: &mut FieldErrors) {
    let (endpoints, path) = (slice["endpoints"].items(), Path::new("endpoints"));
    if endpoints.len() > ENDPOINTS_MAX {
        errors.push(FieldError::too_many(path, endpoints.len(), ENDPOINTS_MAX));
        return;
    }
    for (index, endpoint) in endpoints.iter().enumerate() {
        let path = path.index(index);
        validate_addresses(&path.child("addresses"), slice["addressType"].text(), endpoint, errors);
        if endpoint["nodeName"].is_set() {
            checks::dns_subdomain(&path.child("nodeName"), endpoint["nodeName"].text(), errors);
        }
        let (topology, topology_path) = (&endpoint["deprecatedTopology"], path.child("deprecatedTopology"));
        if topology.count() > TOPOLOGY_MAX {
            errors.push(FieldError::too_many(topology_path, topology.count(), TOPOLOGY_MAX));
        }
        validate_labels(topology.as_object(), &topology_path, errors);
        if endpoint["hostname"].is_set() {
            checks::dns_label(&path.child("hostname"), endpoint["hostname"].text(), errors);
        }
        let hints = path.child("hints");
        let zones = |name: &str| names::label_value(name);
        let nodes = |name: &str| names::dns_subdomain(name);
        if validate_hints(&hints.child("forZones"), &endpoint["hints"]["forZones"], zones, errors) {
            validate_hints(&hints.child("forNodes"), &endpoint["hints"]["forNodes"], nodes, errors);
        }
    }
}

fn validate_addresses(path: &Path<'_>, kind: &str, endpoint: &Value, errors: &mut FieldErrors) {
    let addresses = endpoint["addresses"].items();
    if addresses.is_empty() {
        errors.push(FieldError::required(path, ""));
    } else if addresses.len() > ADDRESSES_MAX {
        errors.push(FieldError::too_many(path, addresses.len(), ADDRESSES_MAX));
    }
    for (index, address) in addresses.iter().enumerate() {
        let (item, address) = (path.index(index), address.text());
        let before = errors.len();
        match kind {
            "IPv4" => network::validate_legacy_ip(&item, address, &[], errors),
            "IPv6" => network::validate_ip(&item, address, errors),
            "FQDN" => validate_domain(&item, address, errors),
            _ => {}
        }
        if errors.len() == before && kind.starts_with("IPv") {
            if network::parse_ip(address).is_some_and(|ip| ip.is_ipv4() != (kind == "IPv4")) {
                errors.push(FieldError::invalid(path, address, &format!("must be an {kind} address")));
            }
            network::validate_endpoint_ip(&item, address, errors);
        }
    }
}

fn validate_domain(path: &Path<'_>, name: &str, errors: &mut FieldErrors) {
    if name.is_empty() {
        errors.push(FieldError::required(path, ""));
        return;
    }
    let name = name.strip_suffix('.').unwrap_or(name);
    let wrong = names::dns_subdomain(name);
    if !wrong.is_empty() {
        errors.push(FieldError::invalid(path, name, &wrong.join(",")));
    } else if !name.contains('.') {
        let detail = "should be a domain with at least two segments separated by dots";
        errors.push(FieldError::invalid(path, name, detail));
    } else if let Some(label) = name.split('.').find(|label| !names::dns_label(label).is_empty()) {
        errors.push(FieldError::invalid(path, label, &names::dns_label(label).join(",")));
    }
}

/// Checks where traffic to an endpoint should come from; false when there are so many that the rest does not matter.
fn validate_hints(
    path: &Path<'_>,
    hints: &Value,
    check: impl Fn(&str) -> Vec<String>,
    errors: &mut FieldErrors,
) -> bool {
    let hints = hints.items();
    if hints.len() > HINTS_MAX {
        errors.push(FieldError::too_many(path, hints.len(), HINTS_MAX));
        return false;
    }
    let repeated = repeats(hints.iter().map(|hint| hint["name"].text()));
    for (index, hint) in hints.iter().enumerate() {
        let (item, name) = (path.index(index), hint["name"].text());
        if repeated[index] {
            errors.push(FieldError::duplicate(item.child("name"), name));
        }
        checks::invalid(&item.child("name"), name, check(name), errors);
    }
    true
}
