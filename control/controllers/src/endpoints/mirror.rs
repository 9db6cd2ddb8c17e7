//! The core of the Endpoints object of a Service: the same data in the older form. No I/O.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints, ObjectReference, Service};

use super::slices;
use crate::informer::Pod;

/// Addresses per object (the reference's limit).
const CAPACITY: usize = 1000;
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
pub(super) const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
pub(super) const MANAGER: &str = "endpoint-controller";

/// The object as it shall be; `None` when it is so already.
pub(crate) fn plan(service: &Service, pods: &[Arc<Pod>], existing: Option<&Endpoints>) -> Option<Endpoints> {
    let (subsets, truncated) = truncate(subsets(service, pods));
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(slices::HEADLESS);
    if !slices::has_cluster_ip(service) {
        labels.insert(slices::HEADLESS.to_owned(), String::new());
    }
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    let mut wanted = existing.cloned().unwrap_or_default();
    wanted.metadata.name.clone_from(&service.metadata.name);
    wanted.metadata.labels = Some(labels);
    let annotations = wanted.metadata.annotations.get_or_insert_default();
    match truncated {
        true => drop(annotations.insert(OVER_CAPACITY.to_owned(), "truncated".to_owned())),
        false => drop(annotations.remove(OVER_CAPACITY)),
    }
    wanted.metadata.annotations = wanted.metadata.annotations.filter(|annotations| !annotations.is_empty());
    wanted.subsets = Some(subsets).filter(|subsets| !subsets.is_empty());
    let same = existing.is_some_and(|existing| {
        existing.metadata.labels == wanted.metadata.labels
            && existing.metadata.annotations.as_ref().filter(|map| !map.is_empty())
                == wanted.metadata.annotations.as_ref()
            && existing.subsets.as_ref().filter(|subsets| !subsets.is_empty()) == wanted.subsets.as_ref()
    });
    (!same).then_some(wanted)
}

type PortKey = Vec<(String, i32, String, Option<String>)>;

/// Addresses with the same ports together, each list in order of the address.
fn subsets(service: &Service, pods: &[Arc<Pod>]) -> Vec<EndpointSubset> {
    let Some(spec) = &service.spec else { return vec![] };
    let publish = spec.publish_not_ready_addresses.unwrap_or(false);
    let headless = spec.cluster_ip.as_deref() == Some("None");
    let family = match spec.ip_families.as_deref().and_then(<[String]>::first) {
        Some(family) if family == "IPv6" => "IPv6",
        _ => "IPv4",
    };
    let service_ports = spec.ports.as_deref().unwrap_or_default();
    let mut groups: BTreeMap<PortKey, [Vec<EndpointAddress>; 2]> = BTreeMap::new();
    for pod in pods.iter().filter(|pod| slices::counts(pod, publish)) {
        let Some(ip) = slices::addresses(pod, family).next() else { continue };
        let mut ports: PortKey = service_ports
            .iter()
            .filter_map(|port| {
                let number = slices::port_number(pod, port)?;
                let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
                Some((port.name.clone().unwrap_or_default(), number, protocol, port.app_protocol.clone()))
            })
            .collect();
        if ports.is_empty() && !(headless && service_ports.is_empty()) {
            continue;
        }
        ports.sort();
        let group = groups.entry(ports).or_default();
        group[usize::from(!(publish || pod.ready))].push(EndpointAddress {
            ip: ip.to_owned(),
            hostname: slices::hostname(pod, service),
            node_name: pod.node.as_deref().map(str::to_owned),
            target_ref: Some(ObjectReference {
                kind: Some("Pod".to_owned()),
                namespace: Some(pod.key.namespace.to_string()),
                name: Some(pod.key.name.to_string()),
                uid: Some(pod.uid.to_string()),
                ..ObjectReference::default()
            }),
        });
    }
    let some = |mut addresses: Vec<EndpointAddress>| {
        addresses.sort_by(|a, b| a.ip.cmp(&b.ip));
        Some(addresses).filter(|addresses| !addresses.is_empty())
    };
    let subset = |(ports, [ready, not_ready]): (PortKey, [Vec<EndpointAddress>; 2])| EndpointSubset {
        addresses: some(ready),
        not_ready_addresses: some(not_ready),
        ports: Some(
            ports
                .into_iter()
                .map(|(name, port, protocol, app_protocol)| EndpointPort {
                    name: Some(name).filter(|name| !name.is_empty()),
                    port,
                    protocol: Some(protocol),
                    app_protocol,
                })
                .collect(),
        )
        .filter(|ports: &Vec<_>| !ports.is_empty()),
    };
    groups.into_iter().map(subset).collect()
}

/// Keeps the capacity: ready addresses before those that are not.
fn truncate(mut subsets: Vec<EndpointSubset>) -> (Vec<EndpointSubset>, bool) {
    let mut room = CAPACITY;
    let mut truncated = false;
    let mut cut = |addresses: &mut Option<Vec<EndpointAddress>>| {
        let Some(list) = addresses else { return };
        truncated |= list.len() > room;
        list.truncate(room);
        room -= list.len();
        if list.is_empty() {
            *addresses = None;
        }
    };
    for subset in &mut subsets {
        cut(&mut subset.addresses);
    }
    for subset in &mut subsets {
        cut(&mut subset.not_ready_addresses);
    }
    subsets.retain(|subset| subset.addresses.is_some() || subset.not_ready_addresses.is_some());
    (subsets, truncated)
}
