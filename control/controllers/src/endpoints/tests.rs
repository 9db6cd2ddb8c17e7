//! Behaviour of the cores.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::{Value, json};

use super::{mirror, slices};
use crate::informer::{Object as _, Pod};

fn service(spec: Value) -> Service {
    let mut spec = spec;
    spec["selector"] = json!({"app": "a"});
    serde_json::from_value(
        json!({"metadata": {"name": "s", "namespace": "n", "uid": "s", "labels": {"team": "x"}}, "spec": spec}),
    )
    .unwrap()
}

fn plain() -> Service {
    service(
        json!({"clusterIP": "10.96.0.9", "ipFamilies": ["IPv4"], "ports": [{"name": "http", "port": 80, "targetPort": "web", "protocol": "TCP"}]}),
    )
}

fn pod(index: usize, ready: bool, deleting: bool) -> Arc<Pod> {
    let mut wire = json!({
        "metadata": {"name": format!("p{index}"), "namespace": "n", "uid": format!("u{index}"), "labels": {"app": "a"}},
        "spec": {"nodeName": "one", "hostname": "h", "subdomain": "s", "containers": [{"ports": [{"name": "web", "containerPort": 8080}]}]},
        "status": {
            "phase": "Running", "podIPs": [{"ip": format!("10.0.{}.{}", index / 250, index % 250)}],
            "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}],
        },
    });
    if deleting {
        wire["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    }
    Arc::new(Pod::keep(serde_json::from_value(wire).unwrap()))
}

fn named(mut slices: Vec<EndpointSlice>) -> Vec<Arc<EndpointSlice>> {
    for (index, slice) in slices.iter_mut().enumerate() {
        slice.metadata.name.get_or_insert_with(|| format!("s-{index}"));
    }
    slices.into_iter().map(Arc::new).collect()
}

fn zone(node: &str) -> Option<slices::Place> {
    (node == "one").then(|| slices::Place { zone: Some("west".to_owned()) })
}

#[test]
fn hints_are_given_only_where_traffic_distribution_asks_for_them() {
    let hints = |distribution: Value| {
        let service =
            service(json!({"clusterIP": "10.96.0.9", "trafficDistribution": distribution, "ports": [{"port": 80}]}));
        let plan = slices::plan(&service, &[pod(1, true, false), pod(2, false, false)], vec![], &zone, &|| None);
        let endpoints = plan.create[0].endpoints.clone().unwrap();
        endpoints.into_iter().map(|endpoint| serde_json::to_value(endpoint.hints).unwrap()).collect::<Vec<_>>()
    };
    let zones = json!([{"name": "west"}]);
    assert_eq!(hints(Value::Null), [Value::Null, Value::Null]);
    assert_eq!(hints(json!("PreferClose")), [json!({"forZones": zones}), Value::Null]);
    assert_eq!(
        hints(json!("PreferSameNode")),
        [json!({"forZones": zones, "forNodes": [{"name": "one"}]}), Value::Null]
    );
}

#[test]
fn a_pod_of_a_node_that_is_not_there_is_no_endpoint() {
    let nowhere = |_: &str| None;
    let plan = slices::plan(&plain(), &[pod(1, true, false)], vec![], &nowhere, &|| None);
    assert_eq!(plan.create[0].endpoints.as_deref(), Some(&[][..]));
    let all = service(json!({"publishNotReadyAddresses": true, "ports": [{"port": 80}]}));
    assert_eq!(
        slices::plan(&all, &[pod(1, true, false)], vec![], &nowhere, &|| None).create[0]
            .endpoints
            .as_ref()
            .unwrap()
            .len(),
        1
    );
}

#[test]
fn says_of_each_pod_what_clients_need() {
    let plan = slices::plan(
        &plain(),
        &[pod(1, true, false), pod(2, true, true), pod(3, false, false)],
        vec![],
        &zone,
        &|| None,
    );
    let [slice] = &plan.create[..] else { panic!("{plan:?}") };
    let labels = slice.metadata.labels.as_ref().unwrap();
    assert_eq!((labels["team"].as_str(), labels[slices::SERVICE_NAME].as_str(), labels.len()), ("x", "s", 3));
    assert_eq!(slice.ports.as_ref().unwrap()[0].port, Some(8080));
    let conditions: Vec<_> = slice
        .endpoints
        .iter()
        .flatten()
        .map(|endpoint| {
            let conditions = endpoint.conditions.as_ref().unwrap();
            (conditions.ready.unwrap(), conditions.serving.unwrap(), conditions.terminating.unwrap())
        })
        .collect();
    assert_eq!(conditions, [(true, true, false), (false, true, true), (false, false, false)]);
    let first = &slice.endpoints.as_ref().unwrap()[0];
    assert_eq!(
        (first.zone.as_deref(), first.node_name.as_deref(), first.hostname.as_deref()),
        (Some("west"), Some("one"), Some("h"))
    );
}

#[test]
fn keeps_an_empty_slice_for_nobody() {
    let plan = slices::plan(&plain(), &[], vec![], &zone, &|| None);
    assert_eq!(plan.create.len(), 1);
    let existing = named(plan.create);
    let plan = slices::plan(&plain(), &[], existing.clone(), &zone, &|| None);
    assert!(plan.create.is_empty() && plan.update.is_empty() && plan.delete.is_empty(), "{plan:?}");
    let plan = slices::plan(&plain(), &[pod(1, true, false)], existing.clone(), &zone, &|| None);
    // Other ports are another slice; the empty one becomes it, so that nobody sees both.
    assert_eq!((plan.create.len(), plan.update.len(), plan.delete.len()), (0, 1, 0));
    let [now] = &plan.update[..] else { panic!("{plan:?}") };
    assert_eq!((&now.metadata.name, now.endpoints.as_ref().map(Vec::len)), (&existing[0].metadata.name, Some(1)));
    assert!(now.ports.as_ref().is_some_and(|ports| !ports.is_empty()), "{now:?}");
}

#[test]
fn splits_at_a_hundred_and_changes_one_slice_for_one_pod() {
    let mut pods: Vec<_> = (0..250).map(|index| pod(index, true, false)).collect();
    let existing = named(slices::plan(&plain(), &pods, vec![], &zone, &|| None).create);
    let sizes: Vec<_> = existing.iter().map(|slice| slice.endpoints.as_ref().unwrap().len()).collect();
    assert_eq!(sizes, [100, 100, 50]);
    pods[120] = pod(120, false, false);
    let plan = slices::plan(&plain(), &pods, existing.clone(), &zone, &|| None);
    assert_eq!((plan.create.len(), plan.update.len(), plan.delete.len()), (0, 1, 0));
    assert_eq!(plan.update[0].metadata.name.as_deref(), Some("s-1"));
    pods[120] = pod(400, true, false);
    let plan = slices::plan(&plain(), &pods, existing.clone(), &zone, &|| None);
    assert_eq!((plan.create.len(), plan.update.len()), (0, 1), "the new one goes where one has gone");
    let plan = slices::plan(&plain(), &pods[..100], existing, &zone, &|| None);
    assert_eq!(plan.delete.len(), 2);
}

#[test]
fn mirrors_into_endpoints() {
    let pods = [pod(2, true, false), pod(1, true, false), pod(3, false, false), pod(4, true, true)];
    let endpoints = mirror::plan(&plain(), &pods, None).unwrap();
    let subsets = endpoints.subsets.as_ref().unwrap();
    let ips = |list: &Option<Vec<k8s_openapi::api::core::v1::EndpointAddress>>| {
        list.iter().flatten().map(|address| address.ip.clone()).collect::<Vec<_>>()
    };
    assert_eq!(
        (ips(&subsets[0].addresses), ips(&subsets[0].not_ready_addresses)),
        (vec!["10.0.0.1".into(), "10.0.0.2".into()], vec!["10.0.0.3".into()])
    );
    assert!(mirror::plan(&plain(), &pods, Some(&endpoints)).is_none());
    let many: Vec<_> = (0..1200).map(|index| pod(index, true, false)).collect();
    let endpoints = mirror::plan(&plain(), &many, None).unwrap();
    assert_eq!(endpoints.subsets.as_ref().unwrap()[0].addresses.as_ref().unwrap().len(), 1000);
    assert_eq!(endpoints.metadata.annotations.as_ref().unwrap()["endpoints.kubernetes.io/over-capacity"], "truncated");
    let headless = service(json!({"clusterIP": "None"}));
    assert_eq!(mirror::plan(&headless, &pods, None).unwrap().subsets.unwrap()[0].ports, None);
}

#[test]
fn hints_by_zone_stand_before_those_by_distribution() {
    let mut service =
        service(json!({"clusterIP": "10.96.0.9", "trafficDistribution": "PreferClose", "ports": [{"port": 80}]}));
    service.metadata.annotations = Some([("service.kubernetes.io/topology-mode".to_owned(), "Auto".to_owned())].into());
    let hints = |shares: Option<Vec<(&str, f64)>>| {
        let shares =
            || shares.clone().map(|all| all.into_iter().map(|(zone, share)| (zone.to_owned(), share)).collect());
        let plan = slices::plan(&service, &[pod(1, true, false), pod(2, true, false)], vec![], &zone, &shares);
        let endpoints = plan.create[0].endpoints.clone().unwrap().into_iter();
        endpoints.map(|it| Some(it.hints?.for_zones?.first()?.name.clone())).collect::<Vec<_>>()
    };
    assert_eq!(hints(None), [None, None]);
    let both = hints(Some(vec![("east", 0.5), ("west", 0.5)]));
    assert_eq!(both, [Some("east".to_owned()), Some("west".to_owned())]);
}
