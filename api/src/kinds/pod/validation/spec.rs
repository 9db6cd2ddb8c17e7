//! The spec of a pod: what is not about its containers, volumes or placement alone.

use std::collections::HashMap;

use serde_json::Value;

use super::container::{self, Scope};
use super::{Ratchet, affinity, each_container, resources, security, spread, volume, windows};
use crate::kinds::value::{Read, repeats};
use crate::kinds::{FieldError, FieldErrors, checks, network};
use crate::meta::field::Path;
use crate::meta::{names, validate_labels};

const NAMESERVERS_MAX: usize = 3;
const SEARCHES_MAX: usize = 32;
const SEARCH_CHARACTERS_MAX: usize = 2048;

/// Checks a spec; `metadata` is that of a pod, templates have none here.
pub(super) fn spec(
    spec: &Value,
    metadata: Option<&Value>,
    path: &Path<'_>,
    ratchet: Ratchet,
    errors: &mut FieldErrors,
) {
    if spec["terminationGracePeriodSeconds"].is_null() {
        errors.push(FieldError::required(path.child("terminationGracePeriodSeconds"), ""));
    }
    let volumes = volume::volumes(spec["volumes"].items(), metadata, &path.child("volumes"), ratchet, errors);
    let claims = resources::pod_claims(spec["resourceClaims"].items(), metadata, &path.child("resourceClaims"), errors);
    let scope = Scope::new(spec, &volumes, &claims, ratchet);
    container::regular(&scope, &path.child("containers"), errors);
    container::init(&scope, &path.child("initContainers"), errors);
    container::ephemeral(&scope, &path.child("ephemeralContainers"), errors);
    if spec["resources"].is_set() {
        resources::pod_level(&scope, &path.child("resources"), errors);
    }
    host_network_ports(spec, path, ratchet, errors);
    checks::required_of(
        &path.child("restartPolicy"),
        &spec["restartPolicy"],
        &["Always", "OnFailure", "Never"],
        errors,
    );
    let policies = ["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"];
    checks::required_of(&path.child("dnsPolicy"), &spec["dnsPolicy"], &policies, errors);
    validate_labels(spec["nodeSelector"].as_object(), &path.child("nodeSelector"), errors);
    security::pod_context(spec, &path.child("securityContext"), ratchet, errors);
    if spec["shareProcessNamespace"].flag() && spec["hostPID"].flag() {
        let detail = "ShareProcessNamespace and HostPID cannot both be enabled";
        errors.push(FieldError::invalid(path.child("shareProcessNamespace"), true, detail));
    }
    affinity::affinity(&spec["affinity"], &path.child("affinity"), ratchet, errors);
    dns_config(spec, &path.child("dnsConfig"), errors);
    gates(spec, path, errors);
    spread::constraints(spec, &path.child("topologySpreadConstraints"), ratchet, errors);
    windows::host_processes(spec, path, errors);
    host_users(spec, path, ratchet, errors);
    hostname_override(spec, path, errors);
    identity(spec, path, errors);
    if spec["tolerations"].is_set() {
        affinity::tolerations(&spec["tolerations"], &path.child("tolerations"), ratchet, errors);
    }
    host_aliases(spec, &path.child("hostAliases"), errors);
    classes(spec, path, errors);
    resources::overhead(&spec["overhead"], &path.child("overhead"), ratchet, errors);
    windows::os(spec, path, errors);
    file_key_volumes(spec, path, errors);
}

/// With the host's network, ports of containers are the host's.
fn host_network_ports(spec: &Value, path: &Path<'_>, ratchet: Ratchet, errors: &mut FieldErrors) {
    if !spec["hostNetwork"].flag() {
        return;
    }
    let containers = path.child("containers");
    for (index, container) in spec["containers"].items().iter().enumerate() {
        let container_path = containers.index(index);
        let ports = container_path.child("ports");
        for (index, port) in container["ports"].items().iter().enumerate() {
            let host = port["hostPort"].int();
            if (ratchet.is_pod || host != 0) && host != port["containerPort"].int() {
                let detail = "must match `containerPort` when `hostNetwork` is true";
                errors.push(FieldError::invalid(ports.index(index).child("hostPort"), host, detail));
            }
        }
    }
}

fn dns_config(spec: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    let config = &spec["dnsConfig"];
    let (servers, searches) = (&config["nameservers"], &config["searches"]);
    if spec["dnsPolicy"] == "None" {
        if config.is_null() {
            errors.push(FieldError::required(path, "must provide `dnsConfig` when `dnsPolicy` is None"));
            return;
        }
        if servers.is_empty() {
            let detail = "must provide at least one DNS nameserver when `dnsPolicy` is None";
            errors.push(FieldError::required(path.child("nameservers"), detail));
            return;
        }
    }
    if servers.count() > NAMESERVERS_MAX {
        let detail = format!("must not have more than {NAMESERVERS_MAX} nameservers");
        errors.push(FieldError::invalid(path.child("nameservers"), servers, &detail));
    }
    for (index, server) in servers.items().iter().enumerate() {
        network::validate_legacy_ip(&path.child("nameservers").index(index), server.text(), &[], errors);
    }
    let list = path.child("searches");
    if searches.count() > SEARCHES_MAX {
        let detail = format!("must not have more than {SEARCHES_MAX} search paths");
        errors.push(FieldError::invalid(list, searches, &detail));
    }
    let characters: usize = searches.items().iter().map(|search| search.text().len() + 1).sum();
    if characters > SEARCH_CHARACTERS_MAX + 1 {
        let words = "characters (including spaces) in the search list";
        let detail = format!("must not have more than {SEARCH_CHARACTERS_MAX} {words}");
        errors.push(FieldError::invalid(list, searches, &detail));
    }
    for (index, search) in searches.items().iter().enumerate().filter(|(_, search)| search.text() != ".") {
        let search = search.text();
        let search = search.strip_suffix('.').unwrap_or(search);
        checks::invalid(&list.index(index), search, search_domain(search), errors);
    }
    for (index, _) in config["options"].items().iter().enumerate().filter(|(_, option)| option["name"].is_empty()) {
        errors.push(FieldError::required(path.child("options").index(index), "must not be empty"));
    }
}

/// A subdomain that may have underscores.
fn search_domain(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if text.len() > 253 {
        wrong.push("must be no more than 253 characters".to_owned());
    }
    let is_label = |label: &str| names::is_dns_label(&label.strip_prefix('_').unwrap_or(label).replace('_', "-"));
    if !text.split('.').all(is_label) {
        wrong.push(names::regex(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '_', '-' or '.', and must \
             start and end with an alphanumeric character",
            "_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?(\\._?[a-z0-9]([-_a-z0-9]*[a-z0-9])?)*",
            &["example.com"],
        ));
    }
    wrong
}

fn gates(spec: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    let list = path.child("readinessGates");
    for (index, gate) in spec["readinessGates"].items().iter().enumerate() {
        checks::qualified_name(&list.index(index).child("conditionType"), gate["conditionType"].text(), errors);
    }
    let (gates, list) = (spec["schedulingGates"].items(), path.child("schedulingGates"));
    let repeated = repeats(gates.iter().map(|gate| gate["name"].text()));
    for (index, gate) in gates.iter().enumerate() {
        let name = gate["name"].text();
        checks::qualified_name(&list.index(index), name, errors);
        if repeated[index] {
            errors.push(FieldError::duplicate(list.index(index), name));
        }
    }
}

/// In a user namespace of its own, a pod has no part in the host's.
fn host_users(spec: &Value, path: &Path<'_>, ratchet: Ratchet, errors: &mut FieldErrors) {
    if spec["hostUsers"] != false {
        return;
    }
    const DETAIL: &str = "when `hostUsers` is false";
    if spec["hostNetwork"].flag() && !ratchet.user_namespace_host_network {
        errors.push(FieldError::forbidden(path.child("hostNetwork"), DETAIL));
    }
    for (field, name) in [("hostPID", "HostPID"), ("hostIPC", "HostIPC")] {
        if spec[field].flag() {
            errors.push(FieldError::forbidden(path.child(name), DETAIL));
        }
    }
    if !ratchet.user_namespace_devices {
        each_container(spec, path, |container, path| {
            if !container["volumeDevices"].is_empty() {
                errors.push(FieldError::forbidden(path.child("volumeDevices"), DETAIL));
            }
        });
    }
}

fn hostname_override(spec: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    let (name, path) = (&spec["hostnameOverride"], path.child("hostnameOverride"));
    if name.is_null() {
        return;
    }
    for field in ["setHostnameAsFQDN", "hostNetwork"] {
        if spec[field].flag() {
            errors.push(FieldError::forbidden(path, &format!("may not be specified when {field} is true")));
        }
    }
    if name.text().len() > 64 {
        errors.push(FieldError::too_long(path, 64));
    }
    checks::dns_subdomain(&path, name.text(), errors);
}

/// Names of the pod's account, node and host, and its deadline.
fn identity(spec: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    for field in ["serviceAccountName", "nodeName"] {
        if !spec[field].is_empty() {
            checks::dns_subdomain(&path.child(field), spec[field].text(), errors);
        }
    }
    if let Some(seconds) = spec["activeDeadlineSeconds"].maybe_int() {
        let path = path.child("activeDeadlineSeconds");
        let wrong = names::in_range(seconds, 1, i64::from(i32::MAX));
        errors.extend(wrong.iter().map(|words| FieldError::invalid(path, seconds, words)));
    }
    for field in ["hostname", "subdomain"] {
        if !spec[field].is_empty() {
            checks::dns_label(&path.child(field), spec[field].text(), errors);
        }
    }
}

fn host_aliases(spec: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    for (index, alias) in spec["hostAliases"].items().iter().enumerate() {
        let path = path.index(index);
        network::validate_legacy_ip(&path.child("ip"), alias["ip"].text(), &[], errors);
        for (index, name) in alias["hostnames"].items().iter().enumerate() {
            checks::dns_subdomain(&path.child("hostnames").index(index), name.text(), errors);
        }
    }
}

fn classes(spec: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    if !spec["priorityClassName"].is_empty() {
        checks::dns_subdomain(&path.child("priorityClassName"), spec["priorityClassName"].text(), errors);
    }
    if spec["runtimeClassName"].is_set() {
        checks::dns_subdomain(&path.child("runtimeClassName"), spec["runtimeClassName"].text(), errors);
    }
    if spec["preemptionPolicy"].is_set() {
        let policies = ["PreemptLowerPriority", "Never"];
        checks::required_of(&path.child("preemptionPolicy"), &spec["preemptionPolicy"], &policies, errors);
    }
}

/// Files of variables are in an `emptyDir`.
fn file_key_volumes(spec: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    // Of volumes of one name the last counts.
    let volumes: HashMap<&str, &Value> =
        spec["volumes"].items().iter().map(|volume| (volume["name"].text(), volume)).collect();
    each_container(spec, path, |container, path| {
        let env = path.child("env");
        for (index, variable) in container["env"].items().iter().enumerate() {
            let file = &variable["valueFrom"]["fileKeyRef"];
            if file.is_null() {
                continue;
            }
            let (name, path) = (file["volumeName"].text(), env.index(index));
            let path = path.child("valueFrom.fileKeyRef.volumeName");
            match volumes.get(name) {
                None => errors.push(FieldError::not_found(path, name)),
                Some(volume) if volume["emptyDir"].is_null() => {
                    errors.push(FieldError::invalid(path, name, "referenced volume must be of type emptyDir"));
                }
                Some(_) => {}
            }
        }
    });
}
