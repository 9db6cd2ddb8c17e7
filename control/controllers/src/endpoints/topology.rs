//! Hints of Services that ask for them by `service.kubernetes.io/topology-mode: Auto`: each zone gets endpoints in proportion
//! to the CPUs of its nodes, its own first (the reference's `topologycache`). No I/O.
//!
//! There are no hints at all where they could overload somebody: fewer endpoints than zones, an endpoint or a node without a
//! zone, nodes in one zone only, or a zone that would carry [`OVERLOAD`] more than its share.

use std::collections::BTreeMap;

use coracle_api::meta::Quantity;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointHints, ForZone};

use super::zone_of;

/// How much more than its share a zone may carry.
const OVERLOAD: f64 = 0.2;
/// Nodes of these take no part.
const EXCLUDED: [&str; 2] = ["node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/master"];

/// Which part of all CPUs is in each zone; they add up to one.
pub(crate) type Shares = BTreeMap<String, f64>;

/// Whether the Service asks for hints by zone; else its `trafficDistribution` may.
pub(crate) fn is_asked_for(service: &Service) -> bool {
    let annotation = |name: &str| service.metadata.annotations.as_ref()?.get(name);
    let mode = annotation("service.kubernetes.io/topology-mode")
        .or_else(|| annotation("service.kubernetes.io/topology-aware-hints"));
    mode.is_some_and(|mode| mode == "Auto" || mode == "auto")
}

/// What of a node decides: its zone and its thousandths of CPUs; `None` for one that takes no part.
pub(crate) fn part(node: &Node) -> Option<(Option<&str>, i64)> {
    let labels = node.metadata.labels.as_ref();
    if EXCLUDED.iter().any(|name| labels.is_some_and(|labels| labels.contains_key(*name))) {
        return None;
    }
    let status = node.status.as_ref()?;
    let ready = status.conditions.iter().flatten().any(|it| it.type_ == "Ready" && it.status == "True");
    let cpu = status.allocatable.as_ref().and_then(|all| all.get("cpu"));
    let cpu = cpu.and_then(|text| Quantity::parse(&text.0).ok()).map_or(0, |quantity| quantity.milli_value());
    ready.then_some((zone_of(node), cpu))
}

/// The shares of the zones; `None` where they cannot be told.
pub(crate) fn shares<'a>(nodes: impl Iterator<Item = &'a Node>) -> Option<Shares> {
    let mut shares = Shares::new();
    for (zone, cpu) in nodes.filter_map(part) {
        *shares.entry(zone.filter(|_| cpu > 0)?.to_owned()).or_default() += cpu as f64;
    }
    let all: f64 = shares.values().sum();
    shares.values_mut().for_each(|share| *share /= all);
    (shares.len() > 1).then_some(shares)
}

/// Gives the ready ones of a Service's endpoints their hints.
pub(crate) fn hint(endpoints: Vec<&mut Endpoint>, shares: Option<&Shares>) {
    let is_ready = |endpoint: &Endpoint| endpoint.conditions.as_ref().is_some_and(|it| it.ready == Some(true));
    let mut ready: Vec<&mut Endpoint> = endpoints.into_iter().filter(|endpoint| is_ready(endpoint)).collect();
    // The same endpoints get the same hints.
    ready.sort_by(|a, b| a.addresses.cmp(&b.addresses));
    let count = ready.len();
    let Some(shares) = shares.filter(|shares| shares.len() <= count) else { return };
    let least = |share: &f64| (share * count as f64 / (1.0 + OVERLOAD)).ceil();
    if shares.values().map(least).sum::<f64>() > count as f64 || ready.iter().any(|endpoint| endpoint.zone.is_none()) {
        return;
    }
    let mut here: BTreeMap<&str, f64> = shares.keys().map(|zone| (zone.as_str(), 0.0)).collect();
    let mut zones: Vec<String> = ready.iter().filter_map(|endpoint| endpoint.zone.clone()).collect();
    for zone in &zones {
        if let Some(count) = here.get_mut(zone.as_str()) {
            *count += 1.0;
        }
    }
    // Positive: so many too many.
    let mut surplus: BTreeMap<&str, f64> = here
        .iter()
        .map(|(zone, have)| (*zone, have - least(&shares[*zone]).max(shares[*zone] * count as f64)))
        .collect();
    loop {
        let by_surplus = |a: &(&&str, &f64), b: &(&&str, &f64)| a.1.total_cmp(b.1);
        let most = surplus.iter().max_by(by_surplus).map(|(zone, much)| (*zone, *much));
        let least = surplus.iter().min_by(by_surplus).map(|(zone, much)| (*zone, -*much));
        let (Some((giving, much)), Some((receiving, lack))) = (most, least) else { break };
        if much < 0.5 || lack < 0.5 || (much < 1.0 && lack < 1.0) {
            break;
        }
        // The first of the giving zone that is still hinted to it.
        let given = zones.iter().position(|zone| zone == giving);
        let Some(given) = given else { break };
        zones[given] = receiving.to_owned();
        *surplus.entry(giving).or_default() -= 1.0;
        *surplus.entry(receiving).or_default() += 1.0;
    }
    for (endpoint, name) in ready.into_iter().zip(zones) {
        endpoint.hints = Some(EndpointHints { for_zones: Some(vec![ForZone { name }]), for_nodes: None });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn node(zone: &str, cpu: &str, change: Value) -> Node {
        let mut node = json!({
            "metadata": {"labels": {"topology.kubernetes.io/zone": zone}},
            "status": {"allocatable": {"cpu": cpu}, "conditions": [{"type": "Ready", "status": "True"}]},
        });
        for (name, value) in change.as_object().into_iter().flatten() {
            node[name] = value.clone();
        }
        serde_json::from_value(node).unwrap()
    }

    /// Hints, a letter an endpoint: its zone's, or `-` for none.
    fn hinted(zones: &str, shares: Option<&Shares>) -> String {
        let mut endpoints: Vec<Endpoint> = zones
            .chars()
            .enumerate()
            .map(|(index, zone)| {
                serde_json::from_value(json!({
                    "addresses": [format!("10.0.0.{index}")], "conditions": {"ready": zone.is_lowercase()},
                    "zone": if zone == '.' { Value::Null } else { json!(zone.to_lowercase().to_string()) },
                }))
                .unwrap()
            })
            .collect();
        hint(endpoints.iter_mut().collect(), shares);
        let zone =
            |endpoint: &Endpoint| endpoint.hints.as_ref()?.for_zones.as_ref()?.first().map(|zone| zone.name.clone());
        endpoints.iter().map(|endpoint| zone(endpoint).unwrap_or_else(|| "-".to_owned())).collect()
    }

    #[test]
    fn zones_get_endpoints_in_proportion_to_their_cpus_their_own_first() {
        let nodes = [node("a", "2", json!({})), node("b", "1", json!({})), node("b", "1", json!({}))];
        let even = shares(nodes.iter()).unwrap();
        let third = shares([node("a", "4", json!({})), node("b", "2", json!({}))].iter()).unwrap();
        for (zones, shares, expected) in [
            ("aabb", &even, "aabb"),
            ("aaab", &even, "baab"),
            ("aaaa", &even, "bbaa"),
            ("aaabbb", &third, "aaaabb"),
            ("aabB", &even, "----"),
            ("a", &even, "-"),
            ("aAb", &even, "a-b"),
        ] {
            assert_eq!(hinted(zones, Some(shares)), expected, "{zones}");
        }
        assert_eq!(hinted("aabb", None), "----");
    }

    #[test]
    fn where_the_shares_cannot_be_told_there_are_none() {
        let a = || node("a", "2", json!({}));
        for (why, nodes) in [
            ("one zone", vec![a(), a()]),
            ("no zone", vec![a(), node("b", "2", json!({})), node("", "2", json!({}))]),
            ("no CPUs", vec![a(), node("b", "0", json!({}))]),
            ("the other is not ready", vec![a(), node("b", "2", json!({"status": {"conditions": []}}))]),
            ("nobody", vec![]),
        ] {
            assert_eq!(shares(nodes.iter()), None, "{why}");
        }
        let leader = json!({"metadata": {"labels": {"node-role.kubernetes.io/control-plane": ""}}});
        let shares = shares([a(), node("b", "6", json!({})), node("", "9", leader)].iter()).unwrap();
        assert_eq!(shares, [("a".to_owned(), 0.25), ("b".to_owned(), 0.75)].into());
    }
}
