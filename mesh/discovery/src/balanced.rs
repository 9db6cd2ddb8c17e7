//! Services of type LoadBalancer that nodes are the balancer of.

use coracle_policy::Block;
use k8s_openapi::api::core::v1::ServiceSpec;

use crate::snapshot::Balanced;

/// `spec.loadBalancerClass` that means nodes. So does none; any other is somebody else's.
const CLASS: &str = "coracle.dev/load-balancer";

/// Whether nodes are its balancer, and for whom.
pub(crate) fn read(spec: &ServiceSpec) -> Option<Balanced> {
    let is_ours = spec.load_balancer_class.as_deref().is_none_or(|class| class == CLASS);
    if spec.type_.as_deref() != Some("LoadBalancer") || !is_ours {
        return None;
    }
    let ranges = spec.load_balancer_source_ranges.as_deref().filter(|ranges| !ranges.is_empty());
    // The API server takes spaces around them.
    Some(Balanced { ranges: ranges.map(|ranges| Block::of_ranges(ranges.iter().map(|range| range.trim()))) })
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
            let read = |spec: Value| read(&serde_json::from_value(spec).unwrap());
            let balanced = read(spec.clone());
            let lets_in = |client: &str| balanced.as_ref().map(|balanced| balanced.lets_in(client.parse().unwrap()));
            assert_eq!((lets_in("127.0.0.1"), lets_in("192.0.2.7")), (near, far), "{spec}");
        }
    }
}
