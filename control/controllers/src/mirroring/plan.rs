//! The core: which slices show an Endpoints object that somebody made by hand. No I/O.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{EndpointAddress, Endpoints};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};

use crate::informer::Object as _;
use crate::workload::{self, hashed_name};

/// Addresses of one set of ports and one family, all in one slice (the reference's default).
pub(super) const ADDRESSES_MAX: usize = 1000;
pub(super) const SERVICE_NAME: &str = "kubernetes.io/service-name";
pub(super) const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
pub(super) const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
/// Endpoints that somebody elects a leader with lead nowhere.
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
/// Annotations that are about the Endpoints object and not about what it leads to.
const OWN_ANNOTATIONS: [&str; 2] =
    ["endpoints.kubernetes.io/last-change-trigger-time", "kubectl.kubernetes.io/last-applied-configuration"];

/// What to do to the slices of an Endpoints object.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub create: Vec<EndpointSlice>,
    /// Whole slices as they shall be, with the version they were decided on.
    pub update: Vec<EndpointSlice>,
    pub delete: Vec<Arc<EndpointSlice>>,
    /// Addresses that are none.
    pub invalid: usize,
    /// Addresses beyond [`ADDRESSES_MAX`].
    pub surplus: usize,
}

/// Whether the object's slices are ours to make, as far as it says.
pub(super) fn is_mirrored(endpoints: &Endpoints) -> bool {
    let label = endpoints.metadata.labels.as_ref().and_then(|labels| labels.get(SKIP));
    let annotations = endpoints.metadata.annotations.as_ref();
    label.is_none_or(|value| value != "true") && annotations.is_none_or(|all| !all.contains_key(LEADER))
}

type PortKey = (String, i32, String, String);

/// Endpoints that one slice shows: of one family, with the same ports.
struct Group {
    ports: Vec<EndpointPort>,
    endpoints: Vec<Endpoint>,
    /// Addresses that are among them already, each with whom it stands for.
    known: HashSet<(String, String)>,
}

/// Plans for an object that [`is_mirrored`], of which `existing` are the slices.
pub(super) fn plan(endpoints: &Endpoints, existing: Vec<Arc<EndpointSlice>>) -> Plan {
    let mut plan = Plan::default();
    let mut existing: BTreeMap<String, Arc<EndpointSlice>> =
        existing.into_iter().map(|slice| (slice.metadata.name.clone().unwrap_or_default(), slice)).collect();
    for ((family, key), group) in groups(endpoints, &mut plan) {
        let wanted = slice(endpoints, family, &key, group);
        match existing.remove(wanted.metadata.name.as_deref().unwrap_or_default()) {
            None => plan.create.push(wanted),
            Some(found) if is_as_wanted(&found, &wanted) => {}
            Some(found) => {
                let mut slice = (*found).clone();
                slice.metadata.labels = wanted.metadata.labels;
                slice.metadata.annotations = wanted.metadata.annotations;
                slice.metadata.owner_references = wanted.metadata.owner_references;
                (slice.ports, slice.endpoints) = (wanted.ports, wanted.endpoints);
                plan.update.push(slice);
            }
        }
    }
    plan.delete = existing.into_values().collect();
    plan
}

fn groups(endpoints: &Endpoints, plan: &mut Plan) -> BTreeMap<(&'static str, Vec<PortKey>), Group> {
    let mut groups = BTreeMap::new();
    for subset in endpoints.subsets.iter().flatten() {
        let mut key: Vec<PortKey> = Vec::new();
        let mut ports = Vec::new();
        for port in subset.ports.iter().flatten() {
            let text = |text: &Option<String>| text.clone().unwrap_or_default();
            key.push((text(&port.name), port.port, text(&port.protocol), text(&port.app_protocol)));
            ports.push(EndpointPort {
                name: Some(text(&port.name)),
                port: Some(port.port),
                protocol: port.protocol.clone(),
                app_protocol: port.app_protocol.clone(),
            });
        }
        key.sort();
        let lists = [(&subset.not_ready_addresses, false), (&subset.addresses, true)];
        // Whoever is named as both is not ready.
        for (address, is_ready) in
            lists.iter().flat_map(|(list, is_ready)| list.iter().flatten().map(|it| (it, *is_ready)))
        {
            let family = match address.ip.parse() {
                Ok(IpAddr::V4(_)) => "IPv4",
                Ok(IpAddr::V6(_)) => "IPv6",
                Err(_) => {
                    plan.invalid += 1;
                    continue;
                }
            };
            let new = || Group { ports: ports.clone(), endpoints: Vec::new(), known: HashSet::new() };
            let group = groups.entry((family, key.clone())).or_insert_with(new);
            let target = address.target_ref.as_ref().and_then(|target| target.uid.clone()).unwrap_or_default();
            if !group.known.insert((address.ip.clone(), target)) {
                continue;
            }
            if group.endpoints.len() == ADDRESSES_MAX {
                plan.surplus += 1;
                continue;
            }
            group.endpoints.push(endpoint(address, is_ready));
        }
    }
    groups
}

fn endpoint(address: &EndpointAddress, is_ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![address.ip.clone()],
        conditions: Some(EndpointConditions { ready: Some(is_ready), ..EndpointConditions::default() }),
        hostname: address.hostname.clone().filter(|name| !name.is_empty()),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Endpoint::default()
    }
}

fn slice(endpoints: &Endpoints, family: &str, key: &[PortKey], group: Group) -> EndpointSlice {
    let name = endpoints.metadata.name.clone().unwrap_or_default();
    let mut labels = endpoints.metadata.labels.clone().unwrap_or_default();
    labels.insert(SERVICE_NAME.to_owned(), name.clone());
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    let mut annotations = endpoints.metadata.annotations.clone().unwrap_or_default();
    annotations.retain(|key, _| !OWN_ANNOTATIONS.contains(&key.as_str()));
    let owner = workload::owner_reference("v1", "Endpoints", Some(&name), endpoints.uid());
    let content = format!("{} {family} {key:?}", endpoints.uid());
    let mut slice = EndpointSlice {
        address_type: family.to_owned(),
        ports: Some(group.ports),
        endpoints: Some(group.endpoints),
        ..EndpointSlice::default()
    };
    slice.metadata.name = Some(hashed_name(&format!("{name}-"), content.as_bytes()));
    slice.metadata.labels = Some(labels);
    slice.metadata.annotations = Some(annotations).filter(|annotations| !annotations.is_empty());
    slice.metadata.owner_references = Some(vec![owner]);
    slice
}

fn is_as_wanted(found: &EndpointSlice, wanted: &EndpointSlice) -> bool {
    let annotations = |slice: &EndpointSlice| slice.metadata.annotations.clone().unwrap_or_default();
    found.metadata.labels == wanted.metadata.labels
        && annotations(found) == annotations(wanted)
        && found.metadata.owner_references == wanted.metadata.owner_references
        && found.ports.as_deref().unwrap_or_default() == wanted.ports.as_deref().unwrap_or_default()
        && found.endpoints.as_deref().unwrap_or_default() == wanted.endpoints.as_deref().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn endpoints(subsets: Value) -> Endpoints {
        serde_json::from_value(json!({
            "metadata": {
                "name": "s", "namespace": "n", "uid": "u", "labels": {"team": "x", MANAGED_BY: "me"},
                "annotations": {"a": "b", OWN_ANNOTATIONS[0]: "2026-01-01T00:00:00Z"},
            },
            "subsets": subsets,
        }))
        .unwrap()
    }

    fn addresses(slice: &EndpointSlice) -> Vec<(&str, bool)> {
        let endpoints = slice.endpoints.iter().flatten();
        endpoints.map(|it| (it.addresses[0].as_str(), it.conditions.as_ref().unwrap().ready.unwrap())).collect()
    }

    fn arcs(slices: &[EndpointSlice]) -> Vec<Arc<EndpointSlice>> {
        slices.iter().cloned().map(Arc::new).collect()
    }

    #[test]
    fn shows_who_is_named_and_what_is_said_of_them() {
        let target = json!({"kind": "Pod", "name": "p", "uid": "p"});
        let of = endpoints(json!([{
            "addresses": [{"ip": "192.0.2.1", "hostname": "h", "nodeName": "one", "targetRef": target}, {"ip": "192.0.2.2"}],
            "notReadyAddresses": [{"ip": "192.0.2.2"}, {"ip": "192.0.2.3"}],
            "ports": [{"name": "http", "port": 80, "protocol": "TCP", "appProtocol": "x"}, {"name": "dns", "port": 53, "protocol": "UDP"}],
        }]));
        let created = plan(&of, vec![]).create;
        let [slice] = &created[..] else { panic!("{created:?}") };
        assert_eq!(addresses(slice), [("192.0.2.2", false), ("192.0.2.3", false), ("192.0.2.1", true)]);
        let value = serde_json::to_value(slice).unwrap();
        assert_eq!(value["addressType"], "IPv4");
        assert_eq!(value["metadata"]["labels"], json!({"team": "x", SERVICE_NAME: "s", MANAGED_BY: MANAGER}));
        assert_eq!(value["metadata"]["annotations"], json!({"a": "b"}));
        assert_eq!(
            value["metadata"]["ownerReferences"],
            json!([{"apiVersion": "v1", "kind": "Endpoints", "name": "s", "uid": "u", "controller": true, "blockOwnerDeletion": true}])
        );
        assert_eq!(
            value["ports"],
            json!([{"name": "http", "port": 80, "protocol": "TCP", "appProtocol": "x"}, {"name": "dns", "port": 53, "protocol": "UDP"}])
        );
        let last = &value["endpoints"][2];
        assert_eq!((&last["hostname"], &last["nodeName"], &last["targetRef"]), (&json!("h"), &json!("one"), &target));
        assert!(slice.metadata.name.as_deref().unwrap().starts_with("s-"));
    }

    #[test]
    fn a_slice_has_one_family_and_one_set_of_ports_and_is_changed_only_when_it_must() {
        let (http, dns) = (json!([{"port": 80, "protocol": "TCP"}]), json!([{"port": 53, "protocol": "UDP"}]));
        let mut of = endpoints(json!([
            {"addresses": [{"ip": "192.0.2.1"}, {"ip": "2001:db8::1"}], "ports": http},
            {"addresses": [{"ip": "192.0.2.1"}], "ports": dns},
            {"addresses": [{"ip": "192.0.2.2"}], "ports": http},
        ]));
        let made = plan(&of, vec![]).create;
        let all: Vec<_> = made.iter().map(|slice| (slice.address_type.as_str(), addresses(slice))).collect();
        assert_eq!(
            all,
            [
                ("IPv4", vec![("192.0.2.1", true)]),
                ("IPv4", vec![("192.0.2.1", true), ("192.0.2.2", true)]),
                ("IPv6", vec![("2001:db8::1", true)]),
            ]
        );
        let same = plan(&of, arcs(&made));
        assert!(same.create.is_empty() && same.update.is_empty() && same.delete.is_empty(), "{same:?}");
        of.subsets.as_mut().unwrap().truncate(1);
        of.metadata.labels = None;
        let fewer = plan(&of, arcs(&made));
        let names = |slices: &mut dyn Iterator<Item = &EndpointSlice>| {
            slices.map(|slice| slice.metadata.name.clone()).collect::<Vec<_>>()
        };
        assert_eq!(names(&mut fewer.update.iter()), names(&mut [&made[1], &made[2]].into_iter()));
        assert_eq!(fewer.update[0].metadata.labels.as_ref().unwrap().len(), 2);
        assert_eq!(names(&mut fewer.delete.iter().map(|slice| &**slice)), names(&mut [&made[0]].into_iter()));
        assert!(fewer.create.is_empty());
    }

    #[test]
    fn what_is_too_much_or_no_address_is_counted() {
        let many: Vec<Value> = (0..1200).map(|n| json!({"ip": format!("192.0.{}.{}", n / 250, n % 250)})).collect();
        let none = json!([{"ip": "nowhere"}]);
        let plan = plan(&endpoints(json!([{"addresses": many, "notReadyAddresses": none}])), vec![]);
        assert_eq!((plan.create[0].endpoints.as_ref().unwrap().len(), plan.surplus, plan.invalid), (1000, 200, 1));
        assert_eq!(plan.create[0].ports.as_deref(), Some(&[][..]));
    }

    #[test]
    fn some_lead_nowhere_or_are_shown_by_others() {
        for (metadata, expected) in [
            (json!({}), true),
            (json!({"labels": {SKIP: "false"}}), true),
            (json!({"labels": {SKIP: "true"}}), false),
            (json!({"annotations": {LEADER: ""}}), false),
        ] {
            let of: Endpoints = serde_json::from_value(json!({"metadata": metadata})).unwrap();
            assert_eq!(is_mirrored(&of), expected, "{metadata}");
        }
    }
}
