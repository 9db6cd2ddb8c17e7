//! The core of EndpointSlices: which slices a Service shall have, with as few changed as possible. No I/O.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ObjectReference, Service, ServicePort};
use k8s_openapi::api::discovery::v1::{
    Endpoint, EndpointConditions, EndpointHints, EndpointPort, EndpointSlice, ForNode, ForZone,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::topology::{self, Shares};
use crate::informer::{Object as _, Pod};

/// Endpoints per slice (the reference's default).
pub(crate) const PER_SLICE: usize = 100;
pub(crate) const SERVICE_NAME: &str = "kubernetes.io/service-name";
pub(crate) const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
pub(crate) const MANAGER: &str = "endpointslice-controller.k8s.io";
pub(crate) const HEADLESS: &str = "service.kubernetes.io/headless";

/// What to do to the slices of a Service.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// Without a name yet.
    pub create: Vec<EndpointSlice>,
    /// Whole slices as they shall be, with the version they were decided on.
    pub update: Vec<EndpointSlice>,
    pub delete: Vec<Arc<EndpointSlice>>,
}

/// Whether it has an address of its own.
pub(crate) fn has_cluster_ip(service: &Service) -> bool {
    let ip = service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref());
    ip.is_some_and(|ip| !ip.is_empty() && ip != "None")
}

fn labels(service: &Service) -> BTreeMap<String, String> {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    for reserved in [SERVICE_NAME, MANAGED_BY, HEADLESS] {
        labels.remove(reserved);
    }
    if !has_cluster_ip(service) {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    labels.insert(SERVICE_NAME.to_owned(), service.metadata.name.clone().unwrap_or_default());
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    labels
}

fn families(service: &Service) -> Vec<&'static str> {
    let spec = service.spec.as_ref();
    let families = spec.and_then(|spec| spec.ip_families.as_deref()).unwrap_or_default();
    let mut types: Vec<&'static str> = Vec::new();
    for family in families {
        match family.as_str() {
            "IPv4" => types.push("IPv4"),
            "IPv6" => types.push("IPv6"),
            _ => {}
        }
    }
    if types.is_empty() {
        let ip = spec.and_then(|spec| spec.cluster_ip.as_deref()).and_then(|ip| ip.parse::<IpAddr>().ok());
        types.push(if ip.is_some_and(|ip| ip.is_ipv6()) { "IPv6" } else { "IPv4" });
    }
    types
}

/// Addresses of the pod in the family.
pub(crate) fn addresses<'a>(pod: &'a Pod, family: &str) -> impl Iterator<Item = &'a str> {
    let six = family == "IPv6";
    pod.ips.iter().map(|ip| &**ip).filter(move |ip| ip.contains(':') == six)
}

/// The number of the port in the pod; `None` when the pod has no port of that name.
pub(crate) fn port_number(pod: &Pod, port: &ServicePort) -> Option<i32> {
    match &port.target_port {
        Some(IntOrString::Int(number)) => Some(*number),
        Some(IntOrString::String(name)) => pod.port(name, port.protocol.as_deref().unwrap_or("TCP")),
        None => Some(port.port),
    }
}

fn ports(pod: &Pod, service: &Service) -> Vec<EndpointPort> {
    let ports = service.spec.as_ref().and_then(|spec| spec.ports.as_deref()).unwrap_or_default();
    let found = ports.iter().filter_map(|port| {
        Some(EndpointPort {
            name: Some(port.name.clone().unwrap_or_default()),
            port: Some(port_number(pod, port)?),
            protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
            app_protocol: port.app_protocol.clone(),
        })
    });
    found.collect()
}

/// Whether the pod stands behind Services at all.
pub(crate) fn counts(pod: &Pod, with_terminating: bool) -> bool {
    !pod.is_terminal() && !pod.ips.is_empty() && (with_terminating || pod.deleting.is_none())
}

/// The pod's host name, if the Service gives it one.
pub(crate) fn hostname(pod: &Pod, service: &Service) -> Option<String> {
    let name = service.metadata.name.as_deref();
    pod.hostname.as_deref().filter(|_| pod.subdomain.as_deref() == name && name.is_some()).map(str::to_owned)
}

/// Where a node is.
#[derive(Debug, Clone, Default)]
pub(crate) struct Place {
    pub zone: Option<String>,
}

/// `None` for a pod whose node is not there: it is about to go, and its address may be another's (the reference leaves it
/// out, too), unless the Service wants what is not ready.
fn endpoint(
    pod: &Pod,
    service: &Service,
    address: &str,
    places: &dyn Fn(&str) -> Option<Place>,
    by_zone: bool,
) -> Option<Endpoint> {
    let publish = service.spec.as_ref().and_then(|spec| spec.publish_not_ready_addresses).unwrap_or(false);
    let zone = match pod.node.as_deref() {
        Some(node) => match places(node) {
            Some(place) => place.zone,
            None if publish => None,
            None => return None,
        },
        None => None,
    };
    let terminating = pod.deleting.is_some();
    let ready = publish || (pod.ready && !terminating);
    Some(Endpoint {
        addresses: vec![address.to_owned()],
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            serving: Some(pod.ready),
            terminating: Some(terminating),
        }),
        hints: if ready && !by_zone { hints(service, zone.as_deref(), pod.node.as_deref()) } else { None },
        hostname: hostname(pod, service),
        node_name: pod.node.as_deref().map(str::to_owned),
        target_ref: Some(ObjectReference {
            kind: Some("Pod".to_owned()),
            namespace: Some(pod.key.namespace.to_string()),
            name: Some(pod.key.name.to_string()),
            uid: Some(pod.uid.to_string()),
            ..ObjectReference::default()
        }),
        zone,
        ..Endpoint::default()
    })
}

/// Hints by `trafficDistribution`, as the reference gives them to ready endpoints; without it there are none.
fn hints(service: &Service, zone: Option<&str>, node: Option<&str>) -> Option<EndpointHints> {
    let wanted = service.spec.as_ref()?.traffic_distribution.as_deref()?;
    let zones = zone.map(|zone| vec![ForZone { name: zone.to_owned() }]);
    match wanted {
        "PreferClose" | "PreferSameZone" => {
            zones.map(|zones| EndpointHints { for_zones: Some(zones), for_nodes: None })
        }
        "PreferSameNode" => {
            let nodes = node.map(|node| vec![ForNode { name: node.to_owned() }]);
            (nodes.is_some() || zones.is_some()).then_some(EndpointHints { for_zones: zones, for_nodes: nodes })
        }
        _ => None,
    }
}

/// What an endpoint is recognised by.
fn identity(endpoint: &Endpoint) -> (Option<&str>, Option<&str>) {
    let uid = endpoint.target_ref.as_ref().and_then(|target| target.uid.as_deref());
    (uid, endpoint.addresses.first().map(String::as_str))
}

/// Ports as a key, whatever their order.
fn port_key(ports: Option<&[EndpointPort]>) -> Vec<(String, i32, String, String)> {
    let mut key: Vec<_> = ports
        .unwrap_or_default()
        .iter()
        .map(|port| {
            let text = |text: &Option<String>| text.clone().unwrap_or_default();
            (text(&port.name), port.port.unwrap_or(0), text(&port.protocol), text(&port.app_protocol))
        })
        .collect();
    key.sort();
    key
}

type PortKey = Vec<(String, i32, String, String)>;

/// Plans for a Service that selects `pods`, of which `existing` are the slices; `shares` of zones are asked for where hints by
/// zone are.
pub(crate) fn plan(
    service: &Service,
    pods: &[Arc<Pod>],
    existing: Vec<Arc<EndpointSlice>>,
    places: &dyn Fn(&str) -> Option<Place>,
    shares: &dyn Fn() -> Option<Shares>,
) -> Plan {
    let by_zone = topology::is_asked_for(service);
    let mut plan = Plan::default();
    let labels = labels(service);
    let families = families(service);
    let (mut kept, gone): (Vec<_>, Vec<_>) = existing.into_iter().partition(|slice| {
        // One of a former Service of this name goes.
        slice.controller() == service.metadata.uid.as_deref() && families.contains(&slice.address_type.as_str())
    });
    plan.delete.extend(gone);
    for family in families {
        // Endpoints by the ports they have: one slice has one set of ports.
        let mut groups: BTreeMap<PortKey, (Vec<EndpointPort>, Vec<Endpoint>)> = BTreeMap::new();
        for pod in pods.iter().filter(|pod| counts(pod, true)) {
            let Some(address) = addresses(pod, family).next() else { continue };
            let Some(endpoint) = endpoint(pod, service, address, places, by_zone) else { continue };
            let ports = ports(pod, service);
            let group = groups.entry(port_key(Some(&ports))).or_insert_with(|| (ports, vec![]));
            group.1.push(endpoint);
        }
        if by_zone {
            let endpoints = groups.values_mut().flat_map(|(_, endpoints)| endpoints).collect();
            topology::hint(endpoints, shares().as_ref());
        }
        let (mine, others): (Vec<_>, Vec<_>) = kept.into_iter().partition(|slice| slice.address_type == family);
        kept = others;
        let mut mine: HashMap<PortKey, Vec<Arc<EndpointSlice>>> =
            mine.into_iter().fold(HashMap::new(), |mut map, slice| {
                map.entry(port_key(slice.ports.as_deref())).or_insert_with(Vec::new).push(slice);
                map
            });
        if groups.is_empty() {
            // One empty slice says that nobody is behind the Service.
            groups.insert(vec![], (vec![], vec![]));
        }
        for (key, (ports, endpoints)) in groups {
            let slices = mine.remove(&key).unwrap_or_default();
            fill(&mut plan, Group { service, family, labels: &labels, ports }, endpoints, slices);
        }
        plan.delete.extend(mine.into_values().flatten());
    }
    reuse(&mut plan, service);
    plan
}

/// Makes new slices out of those that would go, as the reference does (`reconciler.finalize`): so nobody sees both, least of all the empty
/// one that says that nobody is behind the Service beside those that say who is.
fn reuse(plan: &mut Plan, service: &Service) {
    let is_own = |slice: &EndpointSlice| slice.controller() == service.metadata.uid.as_deref();
    plan.delete.retain(|old| {
        let new = plan.create.iter().position(|new| is_own(old) && new.address_type == old.address_type);
        let Some(new) = new.map(|at| plan.create.remove(at)) else { return true };
        let mut slice = (**old).clone();
        slice.metadata.labels = new.metadata.labels;
        slice.endpoints = new.endpoints;
        slice.ports = new.ports;
        plan.update.push(slice);
        false
    });
}

struct Group<'a> {
    service: &'a Service,
    family: &'a str,
    labels: &'a BTreeMap<String, String>,
    ports: Vec<EndpointPort>,
}

/// Leaves endpoints where they are, puts new ones first into slices that change anyway.
fn fill(plan: &mut Plan, group: Group<'_>, endpoints: Vec<Endpoint>, mut slices: Vec<Arc<EndpointSlice>>) {
    let placeholder = endpoints.is_empty();
    let mut wanted: HashMap<(Option<String>, Option<String>), Endpoint> = HashMap::with_capacity(endpoints.len());
    let mut order = Vec::with_capacity(endpoints.len());
    for endpoint in endpoints {
        let (uid, address) = identity(&endpoint);
        let id = (uid.map(str::to_owned), address.map(str::to_owned));
        order.push(id.clone());
        wanted.insert(id, endpoint);
    }
    slices.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
    let mut results: Vec<(Arc<EndpointSlice>, Vec<Endpoint>, bool)> = Vec::new();
    for slice in slices {
        let mut changed = slice.metadata.labels.as_ref() != Some(group.labels);
        let mut kept = Vec::new();
        for before in slice.endpoints.iter().flatten() {
            let (uid, address) = identity(before);
            match wanted.remove(&(uid.map(str::to_owned), address.map(str::to_owned))) {
                Some(now) => {
                    changed |= now != *before;
                    kept.push(now);
                }
                None => changed = true,
            }
        }
        results.push((slice, kept, changed));
    }
    let mut new = order.into_iter().filter_map(|id| wanted.remove(&id)).peekable();
    for only_changed in [true, false] {
        for (_, kept, changed) in results.iter_mut().filter(|(_, _, changed)| *changed || !only_changed) {
            while kept.len() < PER_SLICE && new.peek().is_some() {
                kept.extend(new.next());
                *changed = true;
            }
        }
    }
    let mut empty_kept = false;
    for (slice, kept, changed) in results {
        if kept.is_empty() && (!placeholder || empty_kept) {
            plan.delete.push(slice);
            continue;
        }
        empty_kept |= kept.is_empty();
        if changed {
            let mut slice = (*slice).clone();
            slice.metadata.labels = Some(group.labels.clone());
            slice.endpoints = Some(kept);
            slice.ports = Some(group.ports.clone());
            plan.update.push(slice);
        }
    }
    while new.peek().is_some() {
        plan.create.push(slice(&group, new.by_ref().take(PER_SLICE).collect()));
    }
    if placeholder && !empty_kept {
        plan.create.push(slice(&group, vec![]));
    }
}

fn slice(group: &Group<'_>, endpoints: Vec<Endpoint>) -> EndpointSlice {
    let mut slice = EndpointSlice {
        address_type: group.family.to_owned(),
        endpoints: Some(endpoints),
        ports: Some(group.ports.clone()),
        ..EndpointSlice::default()
    };
    slice.metadata.labels = Some(group.labels.clone());
    slice.metadata.owner_references = Some(vec![super::owner_reference(group.service)]);
    slice
}
