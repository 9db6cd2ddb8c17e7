//! Updates of a pod's status.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use super::metadata::annotation_updates;
use super::{ANNOTATIONS, Ratchet, ratcheted};
use crate::kinds::value::{Read, repeats};
use crate::kinds::{FieldError, FieldErrors, checks, internal, network};
use crate::meta::field::{Path, Printed};
use crate::meta::names;

const STATUS: Path<'static> = Path::new("status");
const NOT_NEGATIVE: &str = "must be a non-negative integer";

/// Checks an update of the status.
pub(in crate::kinds::pod) fn update(pod: &Value, old: &Value, errors: &mut FieldErrors) {
    let (status, before) = (&pod["status"], &old["status"]);
    ratcheted(
        errors,
        |ratchet, errors| annotation_updates(pod, old, &ANNOTATIONS, ratchet, errors),
        || Some(Ratchet::of_old(&old["spec"], &old["metadata"]["annotations"])),
    );
    conditions(status["conditions"].items(), &STATUS.child("conditions"), errors);
    nomination(status, old, errors);
    if let Some(generation) = status["observedGeneration"].maybe_int().filter(|generation| *generation < 0) {
        errors.push(FieldError::invalid(STATUS.child("observedGeneration"), generation, NOT_NEGATIVE));
    }
    checks::immutable(&STATUS.child("qosClass"), &status["qosClass"], &before["qosClass"], errors);
    let spec = &old["spec"];
    for (statuses, containers) in [
        ("containerStatuses", Some("containers")),
        ("initContainerStatuses", Some("initContainers")),
        ("ephemeralContainerStatuses", None),
    ] {
        transitions(&status[statuses], &before[statuses], spec, containers, &STATUS.child(statuses), errors);
    }
    claim_statuses(pod, errors);
    addresses(status, before, ["podIP", "podIPs"], errors);
    addresses(status, before, ["hostIP", "hostIPs"], errors);
    for list in ["containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"] {
        users(&status[list], pod["spec"]["os"]["name"].text(), &STATUS.child(list), errors);
    }
}

fn conditions(conditions: &[Value], path: &Path<'_>, errors: &mut FieldErrors) {
    for (index, condition) in conditions.iter().enumerate() {
        let path = path.index(index);
        let (kind, generation) = (condition["type"].text(), condition["observedGeneration"].int());
        if generation < 0 {
            errors.push(FieldError::invalid(path.child("observedGeneration"), generation, NOT_NEGATIVE));
        }
        if !["PodScheduled", "Ready", "Initialized"].contains(&kind) {
            checks::qualified_name(&path.child("Type"), kind, errors);
        }
    }
}

/// A pod is nominated for a node until it has one.
fn nomination(status: &Value, old: &Value, errors: &mut FieldErrors) {
    let (name, path) = (status["nominatedNodeName"].text(), STATUS.child("nominatedNodeName"));
    if !name.is_empty() && name != old["status"]["nominatedNodeName"].text() {
        checks::dns_subdomain(&path, name, errors);
        if !old["spec"]["nodeName"].is_empty() {
            errors.push(FieldError::forbidden(path, "may not be set on pods that are already bound to a node"));
        }
    }
}

/// A container that ended for good does not come back.
fn transitions(
    new: &Value,
    old: &Value,
    spec: &Value,
    containers: Option<&str>,
    path: &Path<'_>,
    errors: &mut FieldErrors,
) {
    if containers.is_some() && all_may_restart(spec) {
        return;
    }
    let running: HashSet<&Value> = new
        .items()
        .iter()
        .filter(|status| status["state"]["terminated"].is_null())
        .map(|status| &status["name"])
        .collect();
    let listed = containers.map_or(&[][..], |list| spec[list].items());
    // Of containers of one name the first counts.
    let by_name: HashMap<&Value, &Value> =
        listed.iter().rev().map(|container| (&container["name"], container)).collect();
    for (index, before) in old.items().iter().enumerate() {
        let terminated = &before["state"]["terminated"];
        if terminated.is_null() || !running.contains(&before["name"]) {
            continue;
        }
        let container = by_name.get(&before["name"]);
        let is_allowed =
            container.is_some_and(|container| should_restart(container, spec, terminated["exitCode"].int()));
        if !is_allowed {
            let detail = "may not be transitioned to non-terminated state";
            errors.push(FieldError::forbidden(path.index(index).child("state"), detail));
        }
    }
}

fn all_may_restart(spec: &Value) -> bool {
    let restarts_all = |rule: &Value| rule["action"] == "RestartAllContainers";
    ["initContainers", "containers"].iter().any(|list| {
        spec[*list].items().iter().any(|container| container["restartPolicyRules"].items().iter().any(restarts_all))
    })
}

/// Whether a container is started anew after it ended with a code.
fn should_restart(container: &Value, spec: &Value, code: i64) -> bool {
    let by_policy = |policy: &str| match policy {
        "OnFailure" => Some(code != 0),
        "Never" => Some(false),
        "Always" => Some(true),
        _ => None,
    };
    let matches = |rule: &Value| {
        let codes = &rule["exitCodes"];
        let is_listed = codes["values"].items().iter().any(|value| value.int() == code);
        codes.is_set() && (codes["operator"] == "In") == is_listed
    };
    if container["restartPolicy"].is_set() {
        let rule = container["restartPolicyRules"].items().iter().find(|rule| matches(rule));
        if rule.is_some_and(|rule| ["Restart", "RestartAllContainers"].contains(&rule["action"].text())) {
            return true;
        }
        if let Some(restarts) = by_policy(container["restartPolicy"].text()) {
            return restarts;
        }
    }
    by_policy(spec["restartPolicy"].text()).unwrap_or(true)
}

fn claim_statuses(pod: &Value, errors: &mut FieldErrors) {
    let (statuses, path) = (pod["status"]["resourceClaimStatuses"].items(), STATUS.child("resourceClaimStatuses"));
    let claims: HashSet<&str> =
        pod["spec"]["resourceClaims"].items().iter().map(|claim| claim["name"].text()).collect();
    let repeated = repeats(statuses.iter().map(|status| status["name"].text()));
    for (index, status) in statuses.iter().enumerate() {
        let (item, name) = (path.index(index), status["name"].text());
        if !claims.contains(name) {
            let detail = "must match the name of an entry in `spec.resourceClaims`";
            errors.push(FieldError::invalid(item.child("name"), name, detail));
        }
        if repeated[index] {
            errors.push(FieldError::duplicate(item.child("name"), name));
        }
        if status["resourceClaimName"].is_set() {
            let claim = status["resourceClaimName"].text();
            checks::invalid(&item.child("resourceClaimName"), claim, names::dns_subdomain(claim), errors);
        }
    }
}

/// One address of each family at most; the first is also in the singular field.
fn addresses(status: &Value, old: &Value, [one, all]: [&str; 2], errors: &mut FieldErrors) {
    let (list, path) = (status[all].items(), STATUS.child(all));
    let before: HashSet<&str> = old[all].items().iter().map(|item| item["ip"].text()).collect();
    for (index, item) in list.iter().enumerate() {
        if !before.contains(item["ip"].text()) {
            network::validate_legacy_ip(&path.index(index), item["ip"].text(), &[], errors);
        }
    }
    let shown = || {
        let name = if all == "podIPs" { "PodIP" } else { "HostIP" };
        let items: Vec<String> = list.iter().map(|item| internal::text(name, item)).collect();
        if items.is_empty() { "null".to_owned() } else { format!("[{}]", items.join(",")) }
    };
    if list.len() > 1 {
        let is_v6 = |item: &Value| network::parse_ip(item["ip"].text()).is_some_and(|ip| ip.is_ipv6());
        let is_dual = list.iter().any(is_v6) && !list.iter().all(is_v6);
        if !is_dual || list.len() > 2 {
            let detail = "may specify no more than one IP for each IP family";
            errors.push(FieldError::invalid(path, Printed(&shown()), detail));
        }
    }
    let single = status[one].text();
    match list.first() {
        Some(first) if first["ip"].text() != single && !(all == "podIPs" && single.is_empty()) => {
            let detail = format!("must be equal to `{one}`");
            errors.push(FieldError::invalid(path.index(0).child("ip"), first["ip"].text(), &detail));
        }
        first if all == "podIPs" && first.is_some() == single.is_empty() => {
            let detail = "podIP and podIPs must either both be set or both be unset";
            errors.push(FieldError::invalid(path, Printed(&shown()), detail));
        }
        _ => {}
    }
}

/// Who a container's process runs as.
fn users(statuses: &Value, os: &str, path: &Path<'_>, errors: &mut FieldErrors) {
    for (index, status) in statuses.items().iter().enumerate() {
        let linux = &status["user"]["linux"];
        if linux.is_null() {
            continue;
        }
        let item = path.index(index);
        let path = item.child("user.linux");
        if os == "windows" {
            errors.push(FieldError::forbidden(path, "cannot be set for a windows pod"));
            continue;
        }
        let mut check = |value: &Value, most: i64, path: &Path<'_>| {
            let id = value.int();
            let wrong = names::in_range(id, 0, most);
            errors.extend(wrong.iter().map(|words| FieldError::invalid(path, id, words)));
        };
        // What runs may have a user that no spec may ask for.
        check(&linux["uid"], i64::from(u32::MAX), &path.child("uid"));
        check(&linux["gid"], i64::from(i32::MAX), &path.child("gid"));
        for (index, group) in linux["supplementalGroups"].items().iter().enumerate() {
            check(group, i64::from(i32::MAX), &path.child("supplementalGroups").index(index));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn restarts_follow_rules_then_policies() {
        let spec = |policy: &str| json!({ "restartPolicy": policy });
        let rule = json!([{"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]);
        for (container, policy, code, expected) in [
            (json!({}), "Always", 0, true),
            (json!({}), "Never", 1, false),
            (json!({}), "OnFailure", 0, false),
            (json!({"restartPolicy": "Always"}), "Never", 0, true),
            (json!({"restartPolicy": "Never", "restartPolicyRules": rule}), "Never", 42, true),
            (json!({"restartPolicy": "Never", "restartPolicyRules": rule}), "Never", 1, false),
        ] {
            assert_eq!(should_restart(&container, &spec(policy), code), expected, "{container} {policy} {code}");
        }
    }
}
