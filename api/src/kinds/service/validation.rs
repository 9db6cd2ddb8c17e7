//! Checks of services.

use std::collections::HashSet;

use serde_json::Value;

use super::{is_externally_accessible, needs_health_check_port};
use crate::kinds::value::{Read, repeats};
use crate::kinds::{FieldError, FieldErrors, checks, internal, network};
use crate::meta::field::{Path, Printed};
use crate::meta::{names, validate_labels};

const SPEC: Path<'static> = Path::new("spec");
const TOPOLOGY_HINTS: &str = "service.kubernetes.io/topology-aware-hints";
const TOPOLOGY_MODE: &str = "service.kubernetes.io/topology-mode";
const SOURCE_RANGES: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";
const TYPES: [&str; 4] = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
const ONLY_FOR_BALANCERS: &str = "may only be used when `type` is 'LoadBalancer'";
/// Longest `timeoutSeconds` of session affinity: a day.
const AFFINITY_MAX: i64 = 86_400;

/// Checks a new service.
pub(super) fn create(service: &Value, errors: &mut FieldErrors) {
    self::service(service, &Value::Null, errors);
}

/// Checks a changed service.
pub(super) fn update(service: &Value, old: &Value, errors: &mut FieldErrors) {
    let (spec, before) = (&service["spec"], &old["spec"]);
    cluster_ips_change(spec, before, errors);
    families_change(spec, before, errors);
    if spec["type"] == "LoadBalancer" && before["type"] == "LoadBalancer" {
        let class = &spec["loadBalancerClass"];
        if *class != before["loadBalancerClass"] {
            errors.push(FieldError::invalid("spec.loadBalancerClass", class, "may not change once set"));
        }
    }
    load_balancer_class(spec, errors);
    if needs_health_check_port(spec)
        && needs_health_check_port(before)
        && spec["healthCheckNodePort"].int() != before["healthCheckNodePort"].int()
    {
        errors.push(FieldError::forbidden("spec.healthCheckNodePort", "field is immutable"));
    }
    self::service(service, old, errors);
}

/// Checks an update of the status.
pub(super) fn status_update(service: &Value, old: &Value, errors: &mut FieldErrors) {
    let path = Path::new("status.loadBalancer.ingress");
    let ingress = service["status"]["loadBalancer"]["ingress"].items();
    if service["spec"]["type"] != "LoadBalancer" && !ingress.is_empty() {
        errors.push(FieldError::forbidden(path, "may only be used when `spec.type` is 'LoadBalancer'"));
        return;
    }
    let before: HashSet<&str> =
        old["status"]["loadBalancer"]["ingress"].items().iter().map(|ingress| ingress["ip"].text()).collect();
    for (index, point) in ingress.iter().enumerate() {
        let (path, ip, mode) = (path.index(index), point["ip"].text(), &point["ipMode"]);
        let mode_path = path.child("ipMode");
        if !ip.is_empty() && !before.contains(ip) {
            network::validate_legacy_ip(&path.child("ip"), ip, &[], errors);
        }
        match (mode.is_set(), ip.is_empty()) {
            (false, false) => errors.push(FieldError::required(mode_path, "must be specified when `ip` is set")),
            (false, true) => {}
            (true, true) => errors.push(FieldError::forbidden(mode_path, "may not be specified when `ip` is not set")),
            (true, false) => checks::supported(&mode_path, mode, &["Proxy", "VIP"], errors),
        }
        let hostname = point["hostname"].text();
        if !hostname.is_empty() {
            let path = path.child("hostname");
            checks::dns_subdomain(&path, hostname, errors);
            if network::parse_ip(hostname).is_some() {
                errors.push(FieldError::invalid(path, hostname, "must be a DNS name, not an IP address"));
            }
        }
    }
}

/// One address, which says that there is none.
fn is_headless(spec: &Value) -> bool {
    matches!(spec["clusterIPs"].items(), [only] if only == "None")
}

fn service(service: &Value, old: &Value, errors: &mut FieldErrors) {
    let (spec, annotations) = (&service["spec"], &service["metadata"]["annotations"]);
    let (hints, mode) = (annotations.get(TOPOLOGY_HINTS), annotations.get(TOPOLOGY_MODE));
    if let (Some(hints), Some(mode)) = (hints, mode)
        && hints != mode
    {
        let detail = format!("must match annotations[{TOPOLOGY_HINTS}] when both are specified");
        errors.push(FieldError::invalid(Path::new("metadata.annotations").key(TOPOLOGY_MODE), mode, &detail));
    }
    let headless = is_headless(spec);
    let kind = spec["type"].text();
    if spec["ports"].is_empty() && !headless && kind != "ExternalName" {
        errors.push(FieldError::required(SPEC.child("ports"), ""));
    }
    match kind {
        "LoadBalancer" | "NodePort" if headless => {
            let detail = format!("may not be set to 'None' for {kind} services");
            errors.push(FieldError::invalid(SPEC.child("clusterIPs").index(0), "None", &detail));
        }
        "ExternalName" => external_name(spec, errors),
        _ => {}
    }
    ports(spec, errors);
    if spec["selector"].is_set() {
        validate_labels(spec["selector"].as_object(), &SPEC.child("selector"), errors);
    }
    session_affinity(spec, errors);
    cluster_ips(spec, &old["spec"], errors);
    let external_before: HashSet<&str> = old["spec"]["externalIPs"].items().iter().map(Read::text).collect();
    for (index, ip) in spec["externalIPs"].items().iter().enumerate() {
        let list = SPEC.child("externalIPs");
        let (path, before) = (list.index(index), errors.len());
        if !external_before.contains(ip.text()) {
            network::validate_legacy_ip(&path, ip.text(), &[], errors);
        }
        if errors.len() == before {
            network::validate_endpoint_ip(&path, ip.text(), errors);
        }
    }
    checks::required_of(&SPEC.child("type"), &spec["type"], &TYPES, errors);
    port_numbers(spec, errors);
    source_ranges(service, old, errors);
    let allocates = &spec["allocateLoadBalancerNodePorts"];
    if allocates.is_set() && kind != "LoadBalancer" {
        errors.push(FieldError::forbidden(SPEC.child("allocateLoadBalancerNodePorts"), ONLY_FOR_BALANCERS));
    }
    if allocates.is_null() && kind == "LoadBalancer" {
        errors.push(FieldError::required("allocateLoadBalancerNodePorts", ""));
    }
    load_balancer_class(spec, errors);
    traffic(spec, errors);
}

fn external_name(spec: &Value, errors: &mut FieldErrors) {
    for field in ["clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
        if !spec[field].is_empty() || (field == "ipFamilyPolicy" && spec[field].is_set()) {
            errors.push(FieldError::forbidden(SPEC.child(field), "may not be set for ExternalName services"));
        }
    }
    let name = spec["externalName"].text();
    match name.strip_suffix('.').unwrap_or(name) {
        "" => errors.push(FieldError::required(SPEC.child("externalName"), "")),
        name => checks::dns_subdomain(&SPEC.child("externalName"), name, errors),
    }
}

fn ports(spec: &Value, errors: &mut FieldErrors) {
    let (ports, list) = (spec["ports"].items(), SPEC.child("ports"));
    let repeated = repeats(ports.iter().map(|port| port["name"].text()));
    for (index, port) in ports.iter().enumerate() {
        let (path, name) = (list.index(index), port["name"].text());
        if !name.is_empty() {
            checks::dns_label(&path.child("name"), name, errors);
            if repeated[index] {
                errors.push(FieldError::duplicate(path.child("name"), name));
            }
        } else if ports.len() > 1 {
            errors.push(FieldError::required(path.child("name"), ""));
        }
        checks::port_number(&path.child("port"), &port["port"], errors);
        checks::required_of(&path.child("protocol"), &port["protocol"], &checks::PROTOCOLS, errors);
        checks::port(&path.child("targetPort"), &port["targetPort"], errors);
        if port["appProtocol"].is_set() {
            checks::qualified_name(&path.child("appProtocol"), port["appProtocol"].text(), errors);
        }
    }
}

/// Numbers that may not be there, or not twice.
fn port_numbers(spec: &Value, errors: &mut FieldErrors) {
    let (ports, list) = (spec["ports"].items(), SPEC.child("ports"));
    let node_port = |port: &Value| port["nodePort"].int();
    if spec["type"] == "ClusterIP" {
        for (index, _) in ports.iter().enumerate().filter(|(_, port)| node_port(port) != 0) {
            let detail = "may not be used when `type` is 'ClusterIP'";
            errors.push(FieldError::forbidden(list.index(index).child("nodePort"), detail));
        }
    }
    let numbers =
        |field: &'static str| repeats(ports.iter().map(move |port| (port["protocol"].text(), port[field].int())));
    let repeated = numbers("nodePort");
    for (index, port) in ports.iter().enumerate().filter(|(index, port)| node_port(port) != 0 && repeated[*index]) {
        errors.push(FieldError::duplicate(list.index(index).child("nodePort"), node_port(port)));
    }
    let repeated = numbers("port");
    for (index, port) in ports.iter().enumerate() {
        if repeated[index] {
            let key = serde_json::json!({ "protocol": port["protocol"], "port": port["port"] });
            let shown = internal::text("ServicePort", &key);
            errors.push(FieldError::duplicate(list.index(index), Printed(&shown)));
        }
    }
}

fn session_affinity(spec: &Value, errors: &mut FieldErrors) {
    let (affinity, config) = (&spec["sessionAffinity"], &spec["sessionAffinityConfig"]);
    let path = SPEC.child("sessionAffinityConfig");
    checks::required_of(&SPEC.child("sessionAffinity"), affinity, &["ClientIP", "None"], errors);
    match affinity.text() {
        "ClientIP" => {
            let timeout = config["clientIP"]["timeoutSeconds"].int();
            if timeout <= 0 || timeout > AFFINITY_MAX {
                let detail = format!("must be greater than 0 and less than {AFFINITY_MAX}");
                errors.push(FieldError::invalid(path.child("clientIP.timeoutSeconds"), timeout, &detail));
            }
        }
        "None" if config.is_set() => {
            errors.push(FieldError::forbidden(path, "must not be set when session affinity is None"));
        }
        _ => {}
    }
}

/// Addresses and families, which have to agree with each other.
pub(in crate::kinds) fn addresses(service: &Value, old: &Value, errors: &mut FieldErrors) {
    cluster_ips(&service["spec"], &old["spec"], errors);
}

fn cluster_ips(spec: &Value, old: &Value, errors: &mut FieldErrors) {
    if spec["type"] == "ExternalName" {
        return;
    }
    let (ips, path) = (&spec["clusterIPs"], SPEC.child("clusterIPs"));
    let (families, families_path) = (spec["ipFamilies"].items(), SPEC.child("ipFamilies"));
    let first = ips.items().first().map_or("", Read::text);
    match spec["clusterIP"].text() {
        "" if !ips.is_empty() => {
            errors.push(FieldError::invalid(path, ips, "must be empty when `clusterIP` is not specified"));
        }
        "" => {}
        _ if ips.is_empty() => errors.push(FieldError::required(path, "")),
        ip if ip != first => errors.push(FieldError::invalid(path, ips, "first value must match `clusterIP`")),
        _ => {}
    }
    let repeated = repeats(families);
    for (index, family) in families.iter().enumerate() {
        checks::supported(&families_path.index(index), family, &["IPv4", "IPv6"], errors);
        if repeated[index] {
            errors.push(FieldError::duplicate(families_path.index(index), family));
        }
    }
    if spec["ipFamilyPolicy"].is_set() {
        let all = ["PreferDualStack", "RequireDualStack", "SingleStack"];
        checks::supported(&SPEC.child("ipFamilyPolicy"), &spec["ipFamilyPolicy"], &all, errors);
    }
    let before: HashSet<&str> = old["clusterIPs"].items().iter().map(Read::text).collect();
    let all = ips.items();
    let so_far = errors.len();
    for (index, ip) in all.iter().enumerate() {
        if index == 0 && ip == "None" {
            if all.len() > 1 {
                errors.push(FieldError::invalid(path, ips, "'None' must be the first and only value"));
            }
        } else if !before.contains(ip.text()) {
            network::validate_legacy_ip(&path.index(index), ip.text(), &[], errors);
        }
    }
    let are_valid = errors.len() == so_far;
    if all.len() > 2 {
        errors.push(FieldError::invalid(path, ips, "may only hold up to 2 values"));
    }
    if !are_valid {
        return;
    }
    let is_v6 = |ip: &Value| network::parse_ip(ip.text()).is_some_and(|ip| ip.is_ipv6());
    let of_v6 = all.iter().filter(|ip| is_v6(ip)).count();
    if all.len() > 1 && (of_v6 == 0 || of_v6 == all.len()) {
        errors.push(FieldError::invalid(path, ips, "may specify no more than one IP for each IP family"));
    }
    if !is_headless(spec) {
        for (index, (ip, family)) in all.iter().zip(families).enumerate() {
            if (family == "IPv4" && is_v6(ip)) || (family == "IPv6" && !is_v6(ip)) {
                let detail = format!("expected an {} value as indicated by `ipFamilies[{index}]`", family.text());
                errors.push(FieldError::invalid(path.index(index), ip, &detail));
            }
        }
    }
}

fn source_ranges(service: &Value, old: &Value, errors: &mut FieldErrors) {
    let spec = &service["spec"];
    let is_balancer = spec["type"] == "LoadBalancer";
    let ranges = spec["loadBalancerSourceRanges"].items();
    if !ranges.is_empty() {
        let path = SPEC.child("LoadBalancerSourceRanges");
        if !is_balancer {
            errors.push(FieldError::forbidden(path, ONLY_FOR_BALANCERS));
        }
        let before = old["spec"]["loadBalancerSourceRanges"].items();
        let before: HashSet<&str> = before.iter().map(|range| range.text().trim()).collect();
        for (index, range) in ranges.iter().enumerate() {
            if !before.contains(range.text().trim()) {
                network::validate_legacy_cidr(&path.index(index), range.text().trim(), &[], errors);
            }
        }
    } else if let Some(annotation) = service["metadata"]["annotations"].get(SOURCE_RANGES) {
        let annotations = Path::new("metadata.annotations");
        let path = annotations.key(SOURCE_RANGES);
        if !is_balancer {
            errors.push(FieldError::forbidden(path, ONLY_FOR_BALANCERS));
        }
        let text = annotation.text().trim();
        if old["metadata"]["annotations"].get(SOURCE_RANGES) != Some(annotation) && !text.is_empty() {
            for range in text.split(',') {
                network::validate_legacy_cidr(&path, range.trim(), &[], errors);
            }
        }
    }
}

fn load_balancer_class(spec: &Value, errors: &mut FieldErrors) {
    let (class, path) = (&spec["loadBalancerClass"], SPEC.child("loadBalancerClass"));
    match (spec["type"] == "LoadBalancer", class.is_set()) {
        (true, true) => checks::qualified_name(&path, class.text(), errors),
        (false, true) => errors.push(FieldError::forbidden(path, ONLY_FOR_BALANCERS)),
        (_, false) => {}
    }
}

fn traffic(spec: &Value, errors: &mut FieldErrors) {
    let (external, path) = (&spec["externalTrafficPolicy"], SPEC.child("externalTrafficPolicy"));
    if is_externally_accessible(spec) {
        checks::required_of(&path, external, &["Cluster", "Local"], errors);
    } else if !external.is_empty() {
        let detail = "may only be set for externally-accessible services";
        errors.push(FieldError::invalid(path, external, detail));
    }
    let (port, path) = (spec["healthCheckNodePort"].int(), SPEC.child("healthCheckNodePort"));
    match (needs_health_check_port(spec), port) {
        (false, 0) => {}
        (false, port) => {
            let detail = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
            errors.push(FieldError::invalid(path, port, detail));
        }
        (true, 0) => errors.push(FieldError::required(path, "")),
        (true, port) => {
            errors.extend(names::port_number(port).iter().map(|words| FieldError::invalid(path, port, words)));
        }
    }
    let (internal, path) = (&spec["internalTrafficPolicy"], SPEC.child("internalTrafficPolicy"));
    if internal.is_set() {
        checks::supported(&path, internal, &["Cluster", "Local"], errors);
    } else if ["NodePort", "LoadBalancer", "ClusterIP"].contains(&spec["type"].text()) {
        errors.push(FieldError::required(path, ""));
    }
    if spec["trafficDistribution"].is_set() {
        let all = ["PreferClose", "PreferSameZone", "PreferSameNode"];
        checks::supported(&SPEC.child("trafficDistribution"), &spec["trafficDistribution"], &all, errors);
    }
}

/// Addresses stay, but a second one may come and go.
fn cluster_ips_change(spec: &Value, old: &Value, errors: &mut FieldErrors) {
    if is_without_addresses(spec, old) || (is_headless(spec) && is_headless(old)) {
        return;
    }
    let path = SPEC.child("clusterIPs");
    let (list, before) = (&spec["clusterIPs"], old["clusterIPs"].items());
    let now = list.items();
    let mut changed =
        |index: usize| errors.push(FieldError::invalid(path.index(index), list, "may not change once set"));
    if now.len() == before.len() {
        (0..now.len()).filter(|index| now[*index] != before[*index]).for_each(changed);
        return;
    }
    if let (Some(now), Some(before)) = (now.first(), before.first())
        && now != before
    {
        changed(0);
    }
    if before.len() > now.len() {
        if now.is_empty() {
            errors.push(FieldError::invalid(path.index(0), list_or_null(list), "primary clusterIP can not be unset"));
        }
        if now.len() == 1 && spec["ipFamilyPolicy"] != "SingleStack" {
            let detail = "must be set to 'SingleStack' when releasing the secondary clusterIP";
            errors.push(FieldError::invalid("spec.ipFamilyPolicy", &spec["ipFamilyPolicy"], detail));
        }
    }
}

/// Families likewise.
fn families_change(spec: &Value, old: &Value, errors: &mut FieldErrors) {
    if is_without_addresses(spec, old) || is_headless(spec) || is_headless(old) {
        return;
    }
    let path = SPEC.child("ipFamilies");
    let (list, before) = (&spec["ipFamilies"], old["ipFamilies"].items());
    let now = list.items();
    if now.len() == before.len() {
        for _ in now.iter().zip(before).filter(|(now, before)| now != before) {
            errors.push(FieldError::invalid(path.index(0), list, "may not change once set"));
        }
        return;
    }
    let first_changed = matches!((now.first(), before.first()), (Some(now), Some(before)) if now != before);
    if before.len() > now.len() && spec["clusterIPs"].is_empty() {
        errors.push(FieldError::invalid(path.index(0), list_or_null(list), "primary ipFamily can not be unset"));
    }
    if first_changed {
        errors.push(FieldError::invalid(path.index(0), &spec["clusterIPs"], "may not change once set"));
    }
    if before.len() > now.len() && now.len() == 1 && spec["ipFamilyPolicy"] != "SingleStack" {
        let detail = "must be set to 'SingleStack' when releasing the secondary ipFamily";
        errors.push(FieldError::invalid("spec.ipFamilyPolicy", &spec["ipFamilyPolicy"], detail));
    }
}

fn is_without_addresses(spec: &Value, old: &Value) -> bool {
    spec["type"] == "ExternalName" || old["type"] == "ExternalName"
}

fn list_or_null(list: &Value) -> Printed<'static> {
    Printed(if list.is_null() { "null" } else { "[]" })
}
