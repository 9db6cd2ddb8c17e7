//! Services of type LoadBalancer that nodes are the balancer of.

use std::collections::HashSet;

use coracle_policy::Block;
use k8s_openapi::api::core::v1::{Service, ServiceSpec};

use crate::Protocol;
use crate::snapshot::Balanced;

/// `spec.loadBalancerClass` that means nodes. So does none; any other is somebody else's.
const CLASS: &str = "coracle.dev/load-balancer";

/// Whether nodes are its balancer, and for whom.
pub(crate) fn read(service: &Service) -> Option<Balanced> {
    let spec = service.spec.as_ref()?;
    let is_ours = spec.load_balancer_class.as_deref().is_none_or(|class| class == CLASS);
    if spec.type_.as_deref() != Some("LoadBalancer") || !is_ours {
        return None;
    }
    let ranges = spec.load_balancer_source_ranges.as_deref().filter(|ranges| !ranges.is_empty());
    // The API server takes spaces around them.
    let ranges = ranges.map(|ranges| Block::of_ranges(ranges.iter().map(|range| range.trim())));
    Some(Balanced { ranges, held: held(service, spec) })
}

/// Ports at one address at least, as the status says: all of them where it tells of none by itself.
fn held(service: &Service, spec: &ServiceSpec) -> HashSet<(u16, Protocol)> {
    let balancer = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let points = balancer.and_then(|balancer| balancer.ingress.as_deref()).unwrap_or_default();
    let told = || points.iter().map(|point| point.ports.as_deref().unwrap_or_default());
    let has_all = told().any(<[_]>::is_empty);
    let of_told: HashSet<(i32, Protocol)> = told()
        .flatten()
        .filter(|port| port.error.is_none())
        .map(|port| (port.port, Protocol::of(Some(&port.protocol))))
        .collect();
    let ports = spec.ports.iter().flatten().map(|port| (port.port, Protocol::of(port.protocol.as_deref())));
    ports
        .filter(|port| has_all || of_told.contains(port))
        .filter_map(|(port, protocol)| Some((u16::try_from(port).ok()?, protocol)))
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn nodes_balance_what_is_of_no_class_or_of_theirs() {
        for (spec, near, far) in [
            (json!({"type": "LoadBalancer"}), Some(true), Some(true)),
            (json!({"type": "LoadBalancer", "loadBalancerClass": CLASS}), Some(true), Some(true)),
            (json!({"type": "LoadBalancer", "loadBalancerClass": "example.com/own"}), None, None),
            (json!({"type": "NodePort"}), None, None),
            (json!({"type": "LoadBalancer", "loadBalancerSourceRanges": []}), Some(true), Some(true)),
            (json!({"type": "LoadBalancer", "loadBalancerSourceRanges": [" 127.0.0.0/8 "]}), Some(true), Some(false)),
            // What cannot be read lets nobody in.
            (json!({"type": "LoadBalancer", "loadBalancerSourceRanges": ["odd"]}), Some(false), Some(false)),
        ] {
            let read = |spec: Value| read(&serde_json::from_value(json!({"spec": spec})).unwrap());
            let balanced = read(spec.clone());
            let lets_in = |client: &str| balanced.as_ref().map(|balanced| balanced.lets_in(client.parse().unwrap()));
            assert_eq!((lets_in("127.0.0.1"), lets_in("192.0.2.7")), (near, far), "{spec}");
        }
    }

    #[test]
    fn a_status_says_which_ports_it_has() {
        let error = "coracle.dev/PortUnavailable";
        let (tcp, udp) =
            (json!({"port": 80, "protocol": "TCP"}), json!({"port": 53, "protocol": "UDP", "error": error}));
        for (points, held) in [
            (json!([]), vec![]),
            (json!([{"ip": "192.0.2.7"}]), vec![(80, Protocol::Tcp), (53, Protocol::Udp)]),
            (json!([{"ip": "192.0.2.7", "ports": [tcp, udp]}]), vec![(80, Protocol::Tcp)]),
        ] {
            let ports = json!([{"port": 80}, {"port": 53, "protocol": "UDP"}]);
            let object = json!({"spec": {"type": "LoadBalancer", "ports": ports},
                "status": {"loadBalancer": {"ingress": points}}});
            let read = read(&serde_json::from_value(object).unwrap()).unwrap();
            assert_eq!(read.held, held.into_iter().collect());
        }
    }
}
