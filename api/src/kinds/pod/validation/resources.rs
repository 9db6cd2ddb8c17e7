//! Requests and limits, of containers and of the pod, and claims.

use std::collections::{HashMap, HashSet};

use serde_json::{Value, json};

use super::Ratchet;
use super::container::Scope;
use crate::kinds::pod::amounts;
use crate::kinds::value::{Read, repeats};
use crate::kinds::{FieldError, FieldErrors, checks, internal};
use crate::meta::field::{Path, Printed};
use crate::meta::{Quantity, names};

/// Resources that containers have besides those of other vendors.
const STANDARD: [&str; 3] = ["cpu", "ephemeral-storage", "memory"];
/// Unprefixed names that exist at all.
const KNOWN: [&str; 20] = [
    "cpu",
    "memory",
    "ephemeral-storage",
    "requests.cpu",
    "requests.memory",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "configmaps",
    "persistentvolumeclaims",
    "storage",
    "requests.storage",
    "services.nodeports",
    "services.loadbalancers",
];

pub(super) fn container(container: &Value, scope: &Scope<'_>, path: &Path<'_>, errors: &mut FieldErrors) {
    requirements(&container["resources"], container_resource, scope.ratchet, path, errors);
    claims(&container["resources"]["claims"], scope.claims, &path.child("claims"), errors);
}

/// What a pod takes beside its containers.
pub(super) fn overhead(overhead: &Value, path: &Path<'_>, ratchet: Ratchet, errors: &mut FieldErrors) {
    if overhead.is_set() {
        let limits = serde_json::json!({ "limits": overhead });
        requirements(&limits, container_resource, ratchet, path, errors);
    }
}

/// What the pod as a whole may use.
pub(super) fn pod_level(scope: &Scope<'_>, path: &Path<'_>, errors: &mut FieldErrors) {
    let whole = &scope.spec["resources"];
    if scope.spec["os"]["name"] == "windows" {
        errors.push(FieldError::forbidden(path, "may not be set for a windows pod"));
        return;
    }
    if whole["claims"].is_set() {
        let detail = "claims may not be set for Resources at pod-level";
        errors.push(FieldError::forbidden(path.child("claims"), detail));
    }
    requirements(whole, pod_resource, scope.ratchet, path, errors);
    claims(&whole["claims"], scope.claims, &path.child("claims"), errors);
    for (list, only_huge) in [("requests", false), ("limits", true)] {
        let list_path = path.child(list);
        for (resource, sum) in amounts::sum(scope.spec, list) {
            let Ok(given) = Quantity::from_json(&whole[list][&resource]) else { continue };
            let is_checked = !only_huge || checks::is_huge_pages(&resource);
            if is_checked && sum > given {
                let detail = format!("must be greater than or equal to aggregate container {list} of {sum}");
                errors.push(FieldError::invalid(list_path.key(&resource), given.to_string(), &detail));
            }
        }
    }
    let containers = path.child("containers");
    for (index, container) in scope.spec["containers"].items().iter().enumerate() {
        for (resource, limit) in container["resources"]["limits"].entries() {
            let (Ok(limit), Ok(most)) = (Quantity::from_json(limit), Quantity::from_json(&whole["limits"][resource]))
            else {
                continue;
            };
            if limit > most {
                let detail = format!("must be less than or equal to pod limits of {most}");
                let path = containers.index(index);
                errors.push(FieldError::invalid(path.key(resource).child("limits"), limit.to_string(), &detail));
            }
        }
    }
}

type NameCheck = fn(&str, &Path<'_>, &mut FieldErrors);

/// Checks what a class of pods needs beside their containers: as limits of a container.
pub(in crate::kinds) fn fixed_overhead(amounts: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    let limits = json!({"limits": amounts});
    requirements(&limits, container_resource, Ratchet::default(), path, errors);
}

fn requirements(
    requirements: &Value,
    check_name: NameCheck,
    ratchet: Ratchet,
    path: &Path<'_>,
    errors: &mut FieldErrors,
) {
    let (limits, requests) = (&requirements["limits"], &requirements["requests"]);
    let (limits_path, requests_path) = (path.child("limits"), path.child("requests"));
    for (resource, quantity) in limits.entries() {
        let path = limits_path.key(resource);
        check_name(resource, &path, errors);
        checks::resource_quantity(&path, resource, quantity, errors);
        huge_pages(resource, quantity, ratchet, &path, errors);
    }
    for (resource, quantity) in requests.entries() {
        let path = requests_path.key(resource);
        check_name(resource, &path, errors);
        checks::resource_quantity(&path, resource, quantity, errors);
        let may_overcommit = checks::is_native_resource(resource) && !checks::is_huge_pages(resource);
        match limits.get(resource) {
            Some(limit) if limit == quantity => {}
            Some(limit) => {
                if let (Ok(request), Ok(limit)) = (Quantity::from_json(quantity), Quantity::from_json(limit)) {
                    let words = match may_overcommit {
                        false if request != limit => "equal to",
                        true if request > limit => "less than or equal to",
                        _ => "",
                    };
                    if !words.is_empty() {
                        let detail = format!("must be {words} {resource} limit of {limit}");
                        errors.push(FieldError::invalid(requests_path, request.to_string(), &detail));
                    }
                }
            }
            None if may_overcommit => {}
            None => {
                let detail = "Limit must be set for non overcommitable resources";
                errors.push(FieldError::required(limits_path, detail));
            }
        }
        huge_pages(resource, quantity, ratchet, &path, errors);
    }
    let has = |test: fn(&str) -> bool| [limits, requests].iter().any(|list| list.entries().any(|(name, _)| test(name)));
    if has(checks::is_huge_pages) && !has(|name| ["cpu", "memory"].contains(&name)) {
        errors.push(FieldError::forbidden(path, "HugePages require cpu or memory"));
    }
}

/// Huge pages come whole.
fn huge_pages(resource: &str, quantity: &Value, ratchet: Ratchet, path: &Path<'_>, errors: &mut FieldErrors) {
    let Some(size) = resource.strip_prefix("hugepages-") else { return };
    let Ok(quantity) = Quantity::from_json(quantity) else { return };
    if ratchet.huge_pages {
        return;
    }
    let is_whole = Quantity::parse(size)
        .ok()
        .filter(|size| size.signum() > 0 && size.milli_value() % 1000 == 0)
        .is_some_and(|size| quantity.value() % size.value() == 0);
    if !is_whole {
        let detail = format!("{quantity} is not positive integer multiple of {resource}");
        errors.push(FieldError::invalid(path, quantity.to_string(), &detail));
    }
}

/// The name of a resource: qualified, and a known one when it has no prefix.
pub(in crate::kinds) fn resource_name(name: &str, path: &Path<'_>, errors: &mut FieldErrors) {
    let before = errors.len();
    checks::qualified_name(path, name, errors);
    let is_known = KNOWN.contains(&name) || checks::is_huge_pages(name) || name.starts_with("requests.hugepages-");
    if errors.len() == before && !name.contains('/') && !is_known {
        errors.push(FieldError::invalid(path, name, "must be a standard resource type or fully qualified"));
    }
}

/// The name of a resource that a container may have.
pub(in crate::kinds) fn container_resource(name: &str, path: &Path<'_>, errors: &mut FieldErrors) {
    if STANDARD.contains(&name) {
        return;
    }
    resource_name(name, path, errors);
    if name.split('/').count() == 1 {
        if !checks::is_huge_pages(name) {
            errors.push(FieldError::invalid(path, name, "must be a standard resource for containers"));
        }
    } else if !checks::is_native_resource(name) && !checks::is_extended_resource(name) {
        errors.push(FieldError::invalid(path, name, "doesn't follow extended resource name standard"));
    }
}

fn pod_resource(name: &str, path: &Path<'_>, errors: &mut FieldErrors) {
    let before = errors.len();
    resource_name(name, path, errors);
    let is_supported = ["cpu", "memory"].contains(&name) || checks::is_huge_pages(name);
    if errors.len() == before && !is_supported {
        errors.push(FieldError::not_supported(path, name, &["cpu", "hugepages-", "memory"]));
    }
}

/// Checks the claims of a pod; gives their names.
pub(super) fn pod_claims<'a>(
    claims: &'a [Value],
    metadata: Option<&Value>,
    path: &Path<'_>,
    errors: &mut FieldErrors,
) -> Vec<&'a str> {
    let is_mirror =
        metadata.is_some_and(|metadata| metadata["annotations"].get("kubernetes.io/config.mirror").is_some());
    let repeated = repeats(claims.iter().map(|claim| claim["name"].text()));
    for (index, claim) in claims.iter().enumerate() {
        if is_mirror {
            errors.push(FieldError::forbidden("", "static pods do not support resource claims"));
            continue;
        }
        let path = path.index(index);
        match claim["name"].text() {
            "" => errors.push(FieldError::required(path.child("name"), "")),
            name if repeated[index] => {
                errors.push(FieldError::duplicate(path.child("name"), name));
            }
            name => checks::dns_label(&path.child("name"), name, errors),
        }
        let (claim_name, template) = (&claim["resourceClaimName"], &claim["resourceClaimTemplateName"]);
        let detail = match (claim_name.is_set(), template.is_set()) {
            (true, true) => "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified",
            (false, false) => "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`",
            _ => "",
        };
        if !detail.is_empty() {
            let shown = internal::text("PodResourceClaim", claim);
            errors.push(FieldError::invalid(path, Printed(&shown), detail));
        }
        for field in ["resourceClaimName", "resourceClaimTemplateName"] {
            if claim[field].is_set() {
                let name = claim[field].text();
                checks::invalid(&path.child(field), name, names::dns_subdomain(name), errors);
            }
        }
    }
    claims.iter().map(|claim| claim["name"].text()).filter(|name| !name.is_empty()).collect()
}

/// Checks claims of a container against those of the pod.
fn claims(claims: &Value, of_pod: &[&str], path: &Path<'_>, errors: &mut FieldErrors) {
    let mut seen: HashSet<String> = HashSet::new();
    // How many requests of a claim were seen that is not wanted as a whole.
    let mut parts: HashMap<&str, usize> = HashMap::new();
    let known: HashSet<&str> = of_pod.iter().copied().collect();
    for (index, claim) in claims.items().iter().enumerate() {
        let path = path.index(index);
        let (name, request) = (claim["name"].text(), claim["request"].text());
        if name.is_empty() {
            errors.push(FieldError::required(path, ""));
            continue;
        }
        if seen.contains(name) {
            errors.push(FieldError::duplicate(path, name));
        } else {
            let mut key = name.to_owned();
            if !request.is_empty() {
                checks::dns_label(&path.child("request"), request, errors);
                key = format!("{name}/{request}");
            }
            if seen.contains(&key) {
                errors.push(FieldError::duplicate(path, &key));
            } else if request.is_empty() {
                for _ in 0..parts.get(name).copied().unwrap_or(0) {
                    errors.push(FieldError::duplicate(path, name));
                }
            }
            let is_new = seen.insert(key);
            if is_new && !request.is_empty() {
                *parts.entry(name).or_default() += 1;
            }
        }
        if known.contains(name) {
            continue;
        }
        if errors.is_full() {
            // Its words would be as long as the list of claims, and nobody would read them.
            errors.push(FieldError::not_found(path, name));
        } else {
            let mut sorted = of_pod.to_vec();
            sorted.sort_unstable();
            sorted.dedup();
            let which = match sorted.as_slice() {
                [] => " which is empty".to_owned(),
                sorted => format!(": {}", sorted.join(", ")),
            };
            let mut error = FieldError::not_found(path, name);
            error.message.push_str(": must be one of the names in pod.spec.resourceClaims");
            error.message.push_str(&which);
            errors.push(error);
        }
    }
}
