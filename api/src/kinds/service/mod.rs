//! Service. Addresses and node ports come from the API server's allocators; here is what can be said without them.

mod prepare;
mod validation;

pub(super) use validation::addresses;

use serde_json::{Value, json};

use super::value::{Read, child, default_to, default_when_zero, fields, items_mut, keep, or, remove};
use super::{AGE, Cell, FieldErrors, Kind, NAME, Strategy, Subresource, VERBS, column, network, table, wide};
use crate::meta::field::Path;
use crate::meta::names;

pub(super) static KIND: Kind = Kind {
    group: "",
    version: "v1",
    kind: "Service",
    resource: "services",
    singular: "service",
    short_names: &["svc"],
    categories: &["all"],
    namespaced: true,
    schema: "io.k8s.api.core.v1.Service",
    collection: "services",
    verbs: VERBS,
    has_status: true,
    has_scale: false,
    subresources: &[Subresource {
        name: "proxy",
        group: "",
        version: "",
        kind: "ServiceProxyOptions",
        verbs: &["create", "delete", "get", "patch", "update"],
    }],
    selectable: &["spec.clusterIP", "spec.type"],
    columns: &[
        NAME,
        column("Type", "string"),
        column("Cluster-IP", "string"),
        column("External-IP", "string"),
        column("Port(s)", "string"),
        AGE,
        wide("Selector", "string"),
    ],
    strategy: &Service,
};

struct Service;

impl Strategy for Service {
    fn default(&self, object: &mut Value) {
        let spec = child(object, "spec");
        default_when_zero(spec, "sessionAffinity", "None");
        match spec["sessionAffinity"].text() {
            "None" => drop(fields(spec).remove("sessionAffinityConfig")),
            "ClientIP" if spec["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"].is_null() => {
                let config = json!({ "clientIP": { "timeoutSeconds": 10800 } });
                fields(spec).insert("sessionAffinityConfig".to_owned(), config);
            }
            _ => {}
        }
        default_when_zero(spec, "type", "ClusterIP");
        for port in items_mut(spec, "ports") {
            default_when_zero(port, "protocol", "TCP");
            let number = port["port"].clone();
            default_when_zero(port, "targetPort", number);
        }
        if is_externally_accessible(spec) {
            default_when_zero(spec, "externalTrafficPolicy", "Cluster");
        }
        let kind = spec["type"].text().to_owned();
        if ["NodePort", "LoadBalancer", "ClusterIP"].contains(&kind.as_str()) {
            default_to(spec, "internalTrafficPolicy", "Cluster");
        }
        if kind == "LoadBalancer" {
            default_to(spec, "allocateLoadBalancerNodePorts", true);
        }
        let balancer = child(child(object, "status"), "loadBalancer");
        if kind == "LoadBalancer" {
            for ingress in items_mut(balancer, "ingress") {
                if !ingress["ip"].is_empty() {
                    default_to(ingress, "ipMode", "VIP");
                }
            }
        }
    }

    fn prepare_create(&self, object: &mut Value) {
        no_inside(object);
        fields(object).insert("status".to_owned(), json!({ "loadBalancer": {} }));
        prepare::cluster_ips_of_new(child(object, "spec"));
    }

    fn prepare_update(&self, object: &mut Value, old: &Value) {
        keep(object, old, "status");
        no_inside(object);
        prepare::drop_type_dependent(object, &old["spec"]);
        let spec = child(object, "spec");
        prepare::keep_allocated(spec, &old["spec"]);
        prepare::cluster_ips_of_changed(spec, &old["spec"]);
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
        validation::status_update(object, old, errors);
    }

    fn check_name(&self, name: &str, is_prefix: bool) -> Vec<String> {
        names::name_is_dns_label(name, is_prefix)
    }

    fn allows_create_on_update(&self) -> bool {
        true
    }

    fn warnings(&self, object: &Value, _old: Option<&Value>) -> Vec<String> {
        warnings(object)
    }

    fn field(&self, object: &Value, path: &str) -> Option<String> {
        let spec = &object["spec"];
        match path {
            "spec.clusterIP" => Some(spec["clusterIP"].text().to_owned()),
            "spec.type" => Some(spec["type"].text().to_owned()),
            _ => None,
        }
    }

    fn cells(&self, object: &Value) -> Vec<Cell> {
        let spec = &object["spec"];
        let ports: Vec<String> = spec["ports"]
            .items()
            .iter()
            .map(|port| match (port["port"].int(), port["nodePort"].int(), port["protocol"].text()) {
                (number, 0, protocol) => format!("{number}/{protocol}"),
                (number, node, protocol) => format!("{number}:{node}/{protocol}"),
            })
            .collect();
        vec![
            table::name(object),
            spec["type"].text().into(),
            spec["clusterIPs"].items().first().map_or("<none>", Read::text).into(),
            external_ips(object).into(),
            or(&ports.join(","), "<none>").into(),
            table::age(object),
            table::labels(&spec["selector"]),
        ]
    }
}

fn is_externally_accessible(spec: &Value) -> bool {
    match spec["type"].text() {
        "LoadBalancer" | "NodePort" => true,
        "ClusterIP" => !spec["externalIPs"].is_empty(),
        _ => false,
    }
}

fn needs_cluster_ip(spec: &Value) -> bool {
    spec["type"] != "ExternalName"
}

fn needs_node_ports(spec: &Value) -> bool {
    ["NodePort", "LoadBalancer"].contains(&spec["type"].text())
}

fn needs_health_check_port(spec: &Value) -> bool {
    spec["type"] == "LoadBalancer" && spec["externalTrafficPolicy"] == "Local"
}

fn external_ips(service: &Value) -> String {
    let spec = &service["spec"];
    let external: Vec<&str> = spec["externalIPs"].items().iter().map(Read::text).collect();
    match spec["type"].text() {
        "ClusterIP" | "NodePort" => or(&external.join(","), "<none>").to_owned(),
        "LoadBalancer" => {
            let ingress = service["status"]["loadBalancer"]["ingress"].items().iter();
            let mut shown: Vec<&str> = ingress
                .map(|ingress| or(ingress["ip"].text(), ingress["hostname"].text()))
                .filter(|address| !address.is_empty())
                .collect();
            shown.sort_unstable();
            shown.dedup();
            shown.extend(external);
            or(&shown.join(","), "<pending>").to_owned()
        }
        "ExternalName" => spec["externalName"].text().to_owned(),
        _ => "<unknown>".to_owned(),
    }
}

fn warnings(service: &Value) -> Vec<String> {
    let (spec, path) = (&service["spec"], Path::new("spec"));
    let mut warnings = Vec::new();
    if service["metadata"]["annotations"].get("service.kubernetes.io/topology-aware-hints").is_some() {
        warnings.push(
            "annotation service.kubernetes.io/topology-aware-hints is deprecated, please use \
             service.kubernetes.io/topology-mode instead"
                .to_owned(),
        );
    }
    let ips = |list: &str, warnings: &mut Vec<String>| {
        for (index, ip) in spec[list].items().iter().enumerate() {
            warnings.extend(network::ip_warnings(&path.child(list).index(index), ip.text()));
        }
    };
    let (kind, cluster_ip) = (spec["type"].text(), spec["clusterIP"].text());
    if !["", "None"].contains(&cluster_ip) {
        ips("clusterIPs", &mut warnings);
    }
    let is_headless = kind == "ClusterIP" && cluster_ip == "None";
    if is_headless {
        for (is_ignored, field) in [
            (!spec["loadBalancerIP"].is_empty(), "loadBalancerIP"),
            (!spec["externalIPs"].is_empty(), "externalIPs"),
            (spec["sessionAffinity"] != "None", "SessionAffinity"),
        ] {
            if is_ignored {
                warnings.push(format!("spec.{field} is ignored for headless services"));
            }
        }
    }
    ips("externalIPs", &mut warnings);
    if !spec["externalIPs"].is_empty() && !is_headless && kind != "ExternalName" {
        warnings.push("spec.externalIPs is deprecated and may no longer be implemented in some clusters".to_owned());
    }
    if !spec["loadBalancerIP"].is_empty() {
        warnings.extend(network::ip_warnings(&path.child("loadBalancerIP"), spec["loadBalancerIP"].text()));
    }
    for (index, range) in spec["loadBalancerSourceRanges"].items().iter().enumerate() {
        warnings.extend(network::cidr_warnings(&path.child("loadBalancerSourceRanges").index(index), range.text()));
    }
    if kind == "ExternalName" && !spec["externalIPs"].is_empty() {
        warnings.push("spec.externalIPs is ignored when spec.type is \"ExternalName\"".to_owned());
    }
    if kind != "ExternalName" && !spec["externalName"].is_empty() {
        warnings.push("spec.externalName is ignored when spec.type is not \"ExternalName\"".to_owned());
    }
    if spec["trafficDistribution"] == "PreferClose" {
        warnings.push("spec.trafficDistribution: \"PreferClose\" is deprecated; use \"PreferSameZone\"".to_owned());
    }
    warnings
}

/// What has no addresses has no traffic inside. Whoever set the policy owns it on, as in the reference.
fn no_inside(object: &mut Value) {
    if object["spec"]["type"] == "ExternalName" {
        remove(child(object, "spec"), "internalTrafficPolicy");
    }
}
