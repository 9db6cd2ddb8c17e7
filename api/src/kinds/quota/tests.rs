//! What is counted, what may be written, and that both agree.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn now() -> Timestamp {
    "2026-01-01T00:00:00Z".parse().unwrap()
}

fn list(amounts: &Amounts) -> Value {
    to_list(amounts)
}

#[test]
fn objects_take() {
    let container = |name: &str| {
        json!({"name": name, "resources": {"requests": {"cpu": "1", "memory": "1Gi", "example.com/gpu": "2"},
            "limits": {"cpu": "2", "ephemeral-storage": "1Gi"}}})
    };
    let pod = json!({"spec": {"containers": [container("a"), container("b")], "overhead": {"cpu": "1m"}}});
    let whole = json!({"count/pods": "1", "pods": "1", "cpu": "2001m", "requests.cpu": "2001m", "limits.cpu": "4001m",
        "memory": "2Gi", "requests.memory": "2Gi", "requests.example.com/gpu": "4", "limits.ephemeral-storage": "2Gi"});
    let mut ended = pod.clone();
    ended["status"]["phase"] = json!("Succeeded");
    let going = |seconds: &str| {
        let mut pod = pod.clone();
        pod["metadata"] = json!({"deletionTimestamp": seconds, "deletionGracePeriodSeconds": 10});
        pod
    };
    let mut resized = pod.clone();
    resized["status"]["containerStatuses"] =
        json!([{"name": "a", "resources": {"requests": {"cpu": "3"}}, "allocatedResources": {"cpu": "2"}}]);
    let mut resized_whole = whole.clone();
    resized_whole["cpu"] = json!("4001m");
    resized_whole["requests.cpu"] = json!("4001m");
    let service = |spec: Value| json!({ "spec": spec });
    let services = |balancers: i64, ports: i64| {
        json!({"count/services": "1", "services": "1", "services.loadbalancers": balancers.to_string(),
            "services.nodeports": ports.to_string()})
    };
    let ports = json!([{"port": 1}, {"port": 2, "nodePort": 30000}]);
    let claim = json!({"spec": {"storageClassName": "gold", "resources": {"requests": {"storage": "1500m"}}}});
    for (group, resource, object, expected) in [
        ("", "pods", pod.clone(), whole.clone()),
        ("", "pods", ended, json!({"count/pods": "1"})),
        ("", "pods", going("2025-12-31T23:59:49Z"), json!({"count/pods": "1"})),
        ("", "pods", going("2025-12-31T23:59:50Z"), whole),
        ("", "pods", resized, resized_whole),
        ("", "services", service(json!({"type": "ClusterIP", "ports": ports})), services(0, 0)),
        ("", "services", service(json!({"type": "NodePort", "ports": ports})), services(0, 2)),
        ("", "services", service(json!({"type": "LoadBalancer", "ports": ports})), services(1, 2)),
        (
            "",
            "services",
            service(json!({"type": "LoadBalancer", "ports": ports, "allocateLoadBalancerNodePorts": false})),
            services(1, 1),
        ),
        (
            "",
            "persistentvolumeclaims",
            claim,
            json!({"count/persistentvolumeclaims": "1", "persistentvolumeclaims": "1", "requests.storage": "2",
                "gold.storageclass.storage.k8s.io/persistentvolumeclaims": "1",
                "gold.storageclass.storage.k8s.io/requests.storage": "2"}),
        ),
        ("", "configmaps", json!({}), json!({"count/configmaps": "1", "configmaps": "1"})),
        ("apps", "deployments", json!({}), json!({"count/deployments.apps": "1"})),
        ("", "events", json!({}), json!({})),
        (
            "resource.k8s.io",
            "resourceclaims",
            json!({"spec": {"devices": {"requests": [
                {"exactly": {"deviceClassName": "x", "allocationMode": "ExactCount", "count": 2}},
                {"firstAvailable": [
                    {"deviceClassName": "x", "allocationMode": "ExactCount", "count": 1},
                    {"deviceClassName": "y", "allocationMode": "All"},
                ]},
            ]}}}),
            json!({"count/resourceclaims.resource.k8s.io": "1", "x.deviceclass.resource.k8s.io/devices": "3",
                "y.deviceclass.resource.k8s.io/devices": "32"}),
        ),
    ] {
        let used = usage(group, resource, &object, now());
        assert_eq!(list(&used), expected, "{object}");
        assert!(used.keys().all(|name| tracks(group, resource, name)), "{resource}");
    }
    assert!(!tracks("", "pods", "services") && !tracks("apps", "deployments", "count/deployments"));
    assert!(!tracks("", "pods", "requests.storage") && !tracks("", "pods", "limits.example.com/gpu"));
}

fn quota<'a>(spec: &'a Value, used: &Value) -> Quota<'a> {
    Quota { name: "q", spec, hard: amounts(&spec["hard"]), used: amounts(used) }
}

fn pod(cpu: &str) -> Value {
    json!({"spec": {"containers": [{"name": "a", "resources": {"requests": {"cpu": cpu}}}]}})
}

fn new<'a>(resource: &'a str, object: &'a Value) -> Write<'a> {
    Write { group: "", resource, subresource: "", object, old: None }
}

fn outcome(spec: &Value, used: &Value, write: &Write<'_>) -> String {
    match charge(&[quota(spec, used)], write, now()) {
        Ok(charges) => charges.iter().map(|charge| list(&charge.used).to_string()).collect(),
        Err(why) => why,
    }
}

#[test]
fn writes_fit_or_not() {
    let spec = |hard: Value| json!({ "hard": hard });
    let (small, silent) = (pod("1"), json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}]}}));
    let map = json!({});
    for (spec, used, write, expected) in [
        (spec(json!({"pods": "2"})), json!({"pods": "1"}), new("pods", &silent), r#"{"pods":"2"}"#),
        (
            spec(json!({"pods": "2"})),
            json!({"pods": "2"}),
            new("pods", &silent),
            "exceeded quota: q, requested: pods=1, used: pods=2, limited: pods=2",
        ),
        (
            spec(json!({"cpu": "1500m", "requests.cpu": "2", "pods": "9"})),
            json!({"cpu": "1", "requests.cpu": "1", "pods": "1"}),
            new("pods", &small),
            "exceeded quota: q, requested: cpu=1, used: cpu=1, limited: cpu=1500m",
        ),
        (
            spec(json!({"pods": "1", "requests.cpu": "1"})),
            json!({"pods": "1", "requests.cpu": "500m"}),
            new("pods", &small),
            "exceeded quota: q, requested: pods=1,requests.cpu=1, used: pods=1,requests.cpu=500m, limited: \
             pods=1,requests.cpu=1",
        ),
        (
            spec(json!({"limits.memory": "1Gi", "cpu": "1"})),
            json!({"limits.memory": "0", "cpu": "0"}),
            new("pods", &silent),
            "failed quota: q: must specify cpu for: a,b; limits.memory for: a,b",
        ),
        (
            spec(json!({"cpu": "1", "pods": "1"})),
            json!({"pods": "0"}),
            new("pods", &small),
            "status unknown for quota: q, resources: cpu,pods",
        ),
        (spec(json!({"pods": "1"})), json!({"pods": "1"}), new("configmaps", &map), ""),
        (
            spec(json!({"count/configmaps": "1"})),
            json!({"count/configmaps": "0"}),
            new("configmaps", &map),
            r#"{"count/configmaps":"1"}"#,
        ),
        (
            spec(json!({"services": "1"})),
            json!({"services": "0", "other": "7"}),
            new("services", &map),
            r#"{"other":"7","services":"1"}"#,
        ),
    ] {
        assert_eq!(outcome(&spec, &used, &write), expected, "{spec} {used}");
    }
}

#[test]
fn changes_are_charged_what_they_add() {
    let service = |kind: &str| json!({"spec": {"type": kind, "ports": [{"port": 1}]}});
    let spec = json!({"hard": {"services": "1", "services.nodeports": "1"}});
    let used = json!({"services": "1", "services.nodeports": "0"});
    let (before, after) = (service("ClusterIP"), service("NodePort"));
    let write = Write { old: Some(&before), ..new("services", &after) };
    assert_eq!(outcome(&spec, &used, &write), r#"{"services":"1","services.nodeports":"1"}"#);
    let full = json!({"services": "1", "services.nodeports": "1"});
    assert_eq!(
        outcome(&spec, &full, &write),
        "exceeded quota: q, requested: services.nodeports=1, used: services.nodeports=1, limited: services.nodeports=1"
    );
    let back = Write { old: Some(&after), ..new("services", &before) };
    assert_eq!(outcome(&spec, &full, &back), "", "what is less is found by the next count");

    // A pod that comes into a scope is new to the quota.
    let scoped = json!({"hard": {"pods": "1"}, "scopes": ["Terminating"]});
    let (old, mut new_pod) = (pod("1"), pod("1"));
    new_pod["spec"]["activeDeadlineSeconds"] = json!(9);
    let write = Write { old: Some(&old), ..new("pods", &new_pod) };
    assert_eq!(outcome(&scoped, &json!({"pods": "0"}), &write), r#"{"pods":"1"}"#);
    let renamed = Write { old: Some(&old), ..new("pods", &old) };
    assert!(!renamed.counts());
    let resized = pod("3");
    let write = Write { subresource: "resize", old: Some(&old), ..new("pods", &resized) };
    let spec = json!({"hard": {"requests.cpu": "3"}});
    assert_eq!(outcome(&spec, &json!({"requests.cpu": "1"}), &write), r#"{"requests.cpu":"3"}"#);
}

#[test]
fn scopes_select() {
    let with = |field: &str, value: Value| {
        let mut pod = json!({"spec": {"containers": [{"name": "a"}]}});
        pod["spec"][field] = value;
        pod
    };
    let affinity = json!({"podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
        {"weight": 1, "podAffinityTerm": {"namespaceSelector": {}}}]}});
    let selector = |operator: &str, values: Value| {
        json!({"scopeSelector": {"matchExpressions": [
            {"scopeName": "PriorityClass", "operator": operator, "values": values}]}})
    };
    let scopes = |scope: &str| json!({ "scopes": [scope] });
    let plain = with("x", Value::Null);
    let high = with("priorityClassName", json!("high"));
    for (spec, pod, expected) in [
        (json!({}), &plain, true),
        (scopes("Terminating"), &plain, false),
        (scopes("NotTerminating"), &plain, true),
        (scopes("Terminating"), &with("activeDeadlineSeconds", json!(0)), true),
        (scopes("BestEffort"), &plain, true),
        (scopes("NotBestEffort"), &plain, false),
        (scopes("BestEffort"), &super::tests::pod("1"), false),
        (scopes("PriorityClass"), &plain, false),
        (scopes("PriorityClass"), &high, true),
        (scopes("CrossNamespacePodAffinity"), &plain, false),
        (scopes("CrossNamespacePodAffinity"), &with("affinity", affinity), true),
        (selector("In", json!(["high", "low"])), &high, true),
        (selector("In", json!(["low"])), &high, false),
        (selector("NotIn", json!(["low"])), &high, true),
        (selector("NotIn", json!(["low"])), &plain, true),
        (selector("DoesNotExist", json!([])), &plain, true),
        (json!({"scopes": ["BestEffort", "Terminating"]}), &plain, false),
    ] {
        assert_eq!(is_in_scope(&spec, "", "pods", pod), expected, "{spec} {pod}");
    }
    assert!(!is_in_scope(&scopes("BestEffort"), "", "services", &json!({})));
    let claim = json!({"status": {"currentVolumeAttributesClassName": "fast"}});
    let spec = json!({"scopeSelector": {"matchExpressions": [
        {"scopeName": "VolumeAttributesClass", "operator": "In", "values": ["fast"]}]}});
    assert!(is_in_scope(&spec, "", "persistentvolumeclaims", &claim));
}

/// What somebody does in a namespace.
#[derive(Debug, Clone)]
enum Act {
    Create { cpu: i64, node_ports: bool, deadline: bool },
    Retype(usize),
    Deadline(usize),
    Finish(usize),
    Remove(usize),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        4 => (1..4_i64, any::<bool>(), any::<bool>())
            .prop_map(|(cpu, node_ports, deadline)| Act::Create { cpu, node_ports, deadline }),
        1 => (0..9_usize).prop_map(Act::Retype),
        1 => (0..9_usize).prop_map(Act::Deadline),
        1 => (0..9_usize).prop_map(Act::Finish),
        1 => (0..9_usize).prop_map(Act::Remove),
    ];
    proptest::collection::vec(act, 0..40)
}

fn recount(spec: &Value, objects: &[(&'static str, Value)]) -> Amounts {
    let mut count = Count::new(spec);
    for kind in ["pods", "services"] {
        count.begin("", kind);
    }
    for (resource, object) in objects {
        count.add("", resource, object, now());
    }
    count.used()
}

proptest! {
    /// After whatever happened, a recount changes nothing where only more was asked for, and never finds more than is
    /// charged; no limit is ever exceeded by what was let in.
    #[test]
    fn what_is_charged_is_what_a_recount_finds(acts in acts()) {
        let specs = [
            json!({"hard": {"pods": "4", "requests.cpu": "9", "services": "3", "services.nodeports": "4", "count/pods": "8"}}),
            json!({"hard": {"pods": "2"}, "scopes": ["Terminating"]}),
        ];
        let mut used: Vec<Amounts> = specs.iter().map(|spec| recount(spec, &[])).collect();
        let mut objects: Vec<(&'static str, Value)> = Vec::new();
        for act in acts {
            let mut only_more = true;
            let written = match act {
                Act::Create { cpu, node_ports, deadline } => {
                    let mut one = pod(&cpu.to_string());
                    if deadline {
                        one["spec"]["activeDeadlineSeconds"] = json!(1);
                    }
                    if node_ports {
                        let ports = vec![json!({"port": 1}); cpu as usize];
                        one = json!({"spec": {"type": "NodePort", "ports": ports}});
                    }
                    Some((if node_ports { "services" } else { "pods" }, None, one))
                }
                Act::Retype(at) if objects.get(at).is_some_and(|(resource, _)| *resource == "services") => {
                    let mut new = objects[at].1.clone();
                    let is_open = new["spec"]["type"] == "NodePort";
                    new["spec"]["type"] = json!(if is_open { "ClusterIP" } else { "NodePort" });
                    only_more = !is_open;
                    Some(("services", Some(at), new))
                }
                Act::Deadline(at) if objects.get(at).is_some_and(|(resource, _)| *resource == "pods") => {
                    let mut new = objects[at].1.clone();
                    new["spec"]["activeDeadlineSeconds"] = json!(5);
                    Some(("pods", Some(at), new))
                }
                Act::Finish(at) if objects.get(at).is_some_and(|(resource, _)| *resource == "pods") => {
                    objects[at].1["status"]["phase"] = json!("Failed");
                    only_more = false;
                    None
                }
                Act::Remove(at) if at < objects.len() => {
                    objects.remove(at);
                    only_more = false;
                    None
                }
                _ => None,
            };
            if let Some((resource, at, object)) = written {
                let old = at.map(|at| objects[at].1.clone());
                let quotas: Vec<Quota<'_>> = specs.iter().zip(&used)
                    .map(|(spec, used)| Quota { name: "q", spec, hard: amounts(&spec["hard"]), used: used.clone() })
                    .collect();
                let write = Write { group: "", resource, subresource: "", object: &object, old: old.as_ref() };
                if let Ok(charges) = charge(&quotas, &write, now()) {
                    for charge in charges {
                        used[charge.quota] = charge.used;
                    }
                    match at {
                        Some(at) => objects[at].1 = object,
                        None => objects.push((resource, object)),
                    }
                }
            }
            for (spec, used) in specs.iter().zip(&mut used) {
                let counted = recount(spec, &objects);
                let hard = amounts(&spec["hard"]);
                for (name, amount) in &counted {
                    prop_assert!(*amount <= used[name], "{name}: {amount} is more than {}", used[name]);
                    prop_assert!(*amount <= hard[name], "{name}: {amount} is more than may be");
                }
                if only_more {
                    prop_assert_eq!(&counted, &*used);
                }
                *used = counted;
            }
        }
    }
}
