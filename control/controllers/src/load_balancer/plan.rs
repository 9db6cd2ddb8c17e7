//! What is read of nodes and Services, and what the status of a Service says.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{LoadBalancerIngress, Node, PortStatus, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use serde_json::{Value, json};

use crate::informer::Key;
use crate::node::plan::is_ready;

/// `spec.loadBalancerClass` that means nodes. So does none; any other is somebody else's.
const CLASS: &str = "coracle.dev/load-balancer";
/// Annotation of a Node: the address at which it is a balancer, and what has become of the ports of Services.
const SAYS: &str = "coracle.dev/load-balancer";
/// Behind a port that a node could not have.
const TAKEN: &str = "=taken";
/// Kubernetes' condition of a Service whose ports its balancer has, or has not.
const CONDITION: &str = "LoadBalancerPortsError";
/// `status.loadBalancer.ingress.ports.error` of a port that a node could not have.
const UNAVAILABLE: &str = "coracle.dev/PortUnavailable";
/// Addresses that a status has at most.
const ADDRESSES_MAX: usize = 256;
/// Bytes of all addresses with their ports, and what an address and a port take of them. An address beyond it is left out; of the first
/// one so many ports are told as fit, those that are open first: of others it is as if nodes did not have them.
const POINTS_BYTES_MAX: usize = 64 << 10;
const ADDRESS_BYTES: usize = 96;
const PORT_BYTES: usize = 96;
/// Ports that a message names.
const NAMED_MAX: usize = 16;

/// A port's number and protocol.
type Port = (u16, String);

/// What a node says of a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ports {
    pub address: IpAddr,
    /// Whether it listens there, by port.
    pub open: BTreeMap<Port, bool>,
}

/// What a node says of Services.
pub(super) type Said = HashMap<Key, Ports>;

/// What a node says; nothing while it is not ready. What makes no sense is passed over.
pub(super) fn said(node: &Node) -> Said {
    let mut said = Said::new();
    let text = node.metadata.annotations.as_ref().and_then(|annotations| annotations.get(SAYS));
    let text = text.filter(|_| is_ready(node));
    let mut parts = text.map(|text| text.split(',')).into_iter().flatten();
    let Some(address) = parts.next().and_then(|address| address.parse::<IpAddr>().ok()) else { return said };
    for part in parts {
        let (port, is_open) = part.strip_suffix(TAKEN).map_or((part, true), |port| (port, false));
        let read = || {
            let (service, port) = port.split_once(':')?;
            let ((namespace, name), (number, protocol)) = (service.split_once('/')?, port.split_once('/')?);
            let is_known = ["TCP", "UDP", "SCTP"].contains(&protocol);
            is_known.then_some((Key::new(namespace, name), (number.parse().ok()?, protocol.to_owned())))
        };
        if let Some((service, port)) = read() {
            let ports = said.entry(service).or_insert_with(|| Ports { address, open: BTreeMap::new() });
            ports.open.insert(port, is_open);
        }
    }
    said
}

/// Whether nodes are its balancers.
pub(super) fn is_ours(service: &Service) -> bool {
    service.spec.as_ref().is_some_and(|spec| {
        spec.type_.as_deref() == Some("LoadBalancer")
            && spec.load_balancer_class.as_deref().is_none_or(|class| class == CLASS)
    })
}

/// Whether it has the condition, of when it was ours perhaps.
pub(super) fn has_condition(service: &Service) -> bool {
    condition(service).is_some()
}

fn condition(service: &Service) -> Option<&Condition> {
    service.status.as_ref()?.conditions.as_deref()?.iter().find(|condition| condition.type_ == CONDITION)
}

/// The ports that it has.
fn ports(service: &Service) -> Vec<Port> {
    let ports = service.spec.as_ref().and_then(|spec| spec.ports.as_deref()).unwrap_or_default();
    let port = |port: &k8s_openapi::api::core::v1::ServicePort| {
        let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
        u16::try_from(port.port).ok().map(|number| (number, protocol))
    };
    ports.iter().filter_map(port).collect()
}

/// What the status shall say, and the ports that no node has.
#[derive(Debug, PartialEq)]
struct Wanted {
    points: Vec<LoadBalancerIngress>,
    lacking: Vec<Port>,
}

/// The addresses of nodes that have all its ports. While there is none, those of all that serve it otherwise, with what each lacks.
fn wanted(service: &Service, said: &[&Ports]) -> Wanted {
    let ports = ports(service);
    // Nodes may have one address together, as on one machine: then one of them has a port.
    let mut by_address: BTreeMap<IpAddr, BTreeMap<&Port, bool>> = BTreeMap::new();
    for of_node in said {
        let open = by_address.entry(of_node.address).or_default();
        for port in &ports {
            *open.entry(port).or_default() |= of_node.open.get(port).copied().unwrap_or_default();
        }
    }
    let is_whole = |open: &BTreeMap<&Port, bool>| open.values().all(|is_open| *is_open);
    let has_whole = by_address.values().any(is_whole);
    let bytes = ADDRESS_BYTES + if has_whole { 0 } else { ports.len() * PORT_BYTES };
    let addresses_max = ADDRESSES_MAX.min(POINTS_BYTES_MAX / bytes).max(1);
    let ports_max = (POINTS_BYTES_MAX - ADDRESS_BYTES) / PORT_BYTES;
    let points = by_address.iter().filter(|(_, open)| !has_whole || is_whole(open)).take(addresses_max);
    let point = |(address, open): (&IpAddr, &BTreeMap<&Port, bool>)| LoadBalancerIngress {
        ip: Some(address.to_string()),
        // As the API server completes it: what comes to a node comes to this address and port.
        ip_mode: Some("VIP".to_owned()),
        hostname: None,
        ports: (!has_whole).then(|| {
            let port = |((number, protocol), is_open): (&&Port, &bool)| PortStatus {
                port: i32::from(*number),
                protocol: protocol.clone(),
                error: (!is_open).then(|| UNAVAILABLE.to_owned()),
            };
            let those = |state: bool| open.iter().filter(move |(_, is_open)| **is_open == state);
            let mut told: Vec<_> = those(true).chain(those(false)).take(ports_max).collect();
            told.sort_unstable();
            told.into_iter().map(port).collect()
        }),
    };
    let is_lacking = |port: &&Port| !by_address.values().any(|open| open.get(*port) == Some(&true));
    let lacking = if by_address.is_empty() { Vec::new() } else { ports.iter().filter(is_lacking).cloned().collect() };
    Wanted { points: points.map(point).collect(), lacking }
}

/// A strategic merge patch of the status; `None` when it says all this already.
pub(super) fn patch(service: &Service, said: &[&Ports], now: Timestamp) -> Option<Value> {
    let uid = json!({"uid": service.metadata.uid, "resourceVersion": service.metadata.resource_version});
    if !is_ours(service) {
        // Its addresses the API server takes away with its type.
        let lost = json!([{"type": CONDITION, "$patch": "delete"}]);
        let is_anothers = service.spec.as_ref().is_some_and(|spec| spec.load_balancer_class.is_some());
        return (has_condition(service) && !is_anothers)
            .then(|| json!({"metadata": uid, "status": {"conditions": lost}}));
    }
    let Wanted { points, lacking } = wanted(service, said);
    let mut names: Vec<String> =
        lacking.iter().take(NAMED_MAX).map(|(number, protocol)| format!("{number}/{protocol}")).collect();
    if lacking.len() > NAMED_MAX {
        names.push(format!("{} more", lacking.len() - NAMED_MAX));
    }
    let has_whole = points.iter().any(|point| point.ports.is_none());
    let (status, reason, message) = match (points.is_empty(), has_whole, names.as_slice()) {
        (true, ..) => {
            let message = "no node is a balancer of it: none is ready, or none has an endpoint and \
                           externalTrafficPolicy is Local";
            ("True", "NoNode", message.to_owned())
        }
        (false, true, _) => ("False", "PortsServed", String::new()),
        (false, false, []) => ("True", "PortUnavailable", "no node has all of its ports".to_owned()),
        (false, false, names) => {
            let message = format!("no node could open port {}: events on the Service say why", names.join(", "));
            ("True", "PortUnavailable", message)
        }
    };
    let before = condition(service);
    let has_condition = before.is_some_and(|condition| {
        (condition.status.as_str(), condition.reason.as_str(), condition.message.as_str())
            == (status, reason, message.as_str())
    });
    let balancer = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let has_points = balancer.and_then(|balancer| balancer.ingress.as_deref()).unwrap_or_default() == points;
    if has_condition && has_points {
        return None;
    }
    let since = before.filter(|condition| condition.status == status).map(|condition| condition.last_transition_time.0);
    let condition = json!({"type": CONDITION, "status": status, "reason": reason, "message": message,
        "lastTransitionTime": since.unwrap_or(now).to_string(), "observedGeneration": service.metadata.generation});
    Some(json!({
        "metadata": uid,
        "status": {"loadBalancer": {"ingress": points}, "conditions": [condition]},
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(ready: &str, text: &str) -> Node {
        let node = json!({"metadata": {"annotations": {SAYS: text}},
            "status": {"conditions": [{"type": "Ready", "status": ready}]}});
        serde_json::from_value(node).unwrap()
    }

    fn service(spec: Value, status: Value) -> Service {
        serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "n"}, "spec": spec, "status": status}))
            .unwrap()
    }

    #[test]
    fn a_ready_node_says_what_it_has() {
        for (ready, text, expected) in [
            (
                "True",
                "127.0.0.1,n/web:80/TCP,n/web:53/UDP=taken",
                vec!["n/web 127.0.0.1 53/UDP false", "n/web 127.0.0.1 80/TCP true"],
            ),
            ("False", "127.0.0.1,n/web:80/TCP", vec![]),
            ("True", "host,n/web:80/TCP", vec![]),
            ("True", "", vec![]),
            ("True", "2001:db8::1,x,n/:,n/web:99999/TCP,n/web:80/XY,n/a:80/TCP", vec!["n/a 2001:db8::1 80/TCP true"]),
        ] {
            let mut found: Vec<String> = Vec::new();
            for (service, ports) in said(&node(ready, text)) {
                for ((number, protocol), is_open) in ports.open {
                    found.push(format!("{service} {} {number}/{protocol} {is_open}", ports.address));
                }
            }
            found.sort();
            assert_eq!(found, expected, "{ready} {text}");
        }
    }

    /// What is written for a Service with ports 80 and 53/UDP, of what nodes say.
    fn written(nodes: &[&str]) -> (Value, Value) {
        let ports = json!([{"name": "a", "port": 80}, {"name": "b", "port": 53, "protocol": "UDP"}]);
        let service = service(json!({"type": "LoadBalancer", "ports": ports}), json!({}));
        let said: Vec<Said> = nodes.iter().map(|text| said(&node("True", text))).collect();
        let key = Key::new("n", "web");
        let of: Vec<&Ports> = said.iter().filter_map(|said| said.get(&key)).collect();
        let patch = patch(&service, &of, Timestamp::UNIX_EPOCH).unwrap();
        let condition = &patch["status"]["conditions"][0];
        (patch["status"]["loadBalancer"]["ingress"].clone(), json!([condition["status"], condition["reason"]]))
    }

    #[test]
    fn the_status_has_the_addresses_that_serve_it() {
        let point = |ip: &str| json!({"ip": ip, "ipMode": "VIP"});
        let port = |number: u16, protocol: &str| json!({"port": number, "protocol": protocol});
        let error = |number: u16, protocol: &str| json!({"port": number, "protocol": protocol, "error": UNAVAILABLE});
        let (served, unavailable) = (json!(["False", "PortsServed"]), json!(["True", "PortUnavailable"]));
        for (nodes, points, condition) in [
            (vec![], json!([]), json!(["True", "NoNode"])),
            (vec!["10.0.0.1,n/other:80/TCP"], json!([]), json!(["True", "NoNode"])),
            (
                vec!["10.0.0.2,n/web:80/TCP,n/web:53/UDP", "10.0.0.1,n/web:53/UDP,n/web:80/TCP"],
                json!([point("10.0.0.1"), point("10.0.0.2")]),
                served.clone(),
            ),
            // Who lacks a port is left out while another has all.
            (
                vec!["10.0.0.1,n/web:80/TCP=taken,n/web:53/UDP", "10.0.0.2,n/web:80/TCP,n/web:53/UDP"],
                json!([point("10.0.0.2")]),
                served.clone(),
            ),
            // Two nodes of one machine.
            (
                vec!["127.0.0.1,n/web:80/TCP=taken,n/web:53/UDP=taken", "127.0.0.1,n/web:80/TCP,n/web:53/UDP"],
                json!([point("127.0.0.1")]),
                served,
            ),
            // It is never said to be pending when a node could serve it, but for a port.
            (
                vec!["10.0.0.1,n/web:80/TCP=taken,n/web:53/UDP"],
                json!([{"ip": "10.0.0.1", "ipMode": "VIP", "ports": [port(53, "UDP"), error(80, "TCP")]}]),
                unavailable.clone(),
            ),
            (
                vec!["10.0.0.1,n/web:80/TCP=taken,n/web:53/UDP", "10.0.0.2,n/web:80/TCP,n/web:53/UDP=taken"],
                json!([
                    {"ip": "10.0.0.1", "ipMode": "VIP", "ports": [port(53, "UDP"), error(80, "TCP")]},
                    {"ip": "10.0.0.2", "ipMode": "VIP", "ports": [error(53, "UDP"), port(80, "TCP")]},
                ]),
                unavailable,
            ),
        ] {
            assert_eq!(written(&nodes), (points, condition), "{nodes:?}");
        }
    }

    #[test]
    fn a_status_has_a_bound_in_bytes_and_tells_of_open_ports_first() {
        let nodes = |ports: &BTreeMap<Port, bool>| -> Vec<Ports> {
            (0..200).map(|n| Ports { address: IpAddr::from([10, 0, 0, n]), open: ports.clone() }).collect()
        };
        for (count, addresses, told) in [(9, 68, 9), (400, 1, 400), (2000, 1, 681)] {
            let numbers = || 1..=u16::try_from(count).unwrap();
            let ports: Vec<Value> = numbers().map(|port| json!({"name": format!("p{port}"), "port": port})).collect();
            // The last one is open everywhere.
            let open = numbers().map(|port| ((port, "TCP".to_owned()), usize::from(port) == count)).collect();
            let nodes = nodes(&open);
            let service = service(json!({"type": "LoadBalancer", "ports": ports}), json!({}));
            let patch = patch(&service, &nodes.iter().collect::<Vec<_>>(), Timestamp::UNIX_EPOCH).unwrap();
            let points = patch["status"]["loadBalancer"]["ingress"].as_array().unwrap();
            let of_first = points[0]["ports"].as_array().unwrap();
            assert_eq!((points.len(), of_first.len()), (addresses, told), "{count}");
            assert_eq!(of_first.last().unwrap(), &json!({"port": count, "protocol": "TCP"}));
            assert!(patch.to_string().len() < POINTS_BYTES_MAX + (4 << 10), "{count}");
        }
    }

    #[test]
    fn what_is_said_already_is_not_written_and_others_are_left_alone() {
        let ports = json!([{"port": 80}]);
        let open = BTreeMap::from([((80, "TCP".to_owned()), true)]);
        let has = Ports { address: "10.0.0.1".parse().unwrap(), open };
        let of = |spec: Value, status: Value| patch(&service(spec, status), &[&has], Timestamp::UNIX_EPOCH);
        let ours = json!({"type": "LoadBalancer", "ports": ports});
        let first = of(ours.clone(), json!({})).unwrap();
        let mut status = first["status"].clone();
        assert_eq!(of(ours.clone(), status.clone()), None);
        // That nothing has changed but a message is no transition.
        status["conditions"][0]["message"] = json!("another");
        status["conditions"][0]["lastTransitionTime"] = json!("2020-01-01T00:00:00Z");
        let again = of(ours, status.clone()).unwrap();
        assert_eq!(again["status"]["conditions"][0]["lastTransitionTime"], json!("2020-01-01T00:00:00Z"));
        let other = json!({"type": "LoadBalancer", "loadBalancerClass": "example.com/own", "ports": ports});
        assert_eq!((of(other.clone(), json!({})), of(other, status.clone())), (None, None));
        let plain = json!({"type": "ClusterIP", "ports": ports});
        assert_eq!(of(plain.clone(), json!({})), None);
        let lost = of(plain, status).unwrap();
        assert_eq!(lost["status"]["conditions"], json!([{"type": CONDITION, "$patch": "delete"}]));
    }
}
