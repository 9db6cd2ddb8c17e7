//! What is read of nodes, classes and Ingresses, and what the status of an Ingress says.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::networking::v1::{Ingress, IngressClass, IngressLoadBalancerIngress, IngressPortStatus};

use crate::node::plan::is_ready;

/// `spec.controller` of classes whose Ingresses nodes serve.
const CONTROLLER: &str = "coracle.dev/ingress";
/// Annotation of a Node: where it serves Ingresses, as URLs with commas between.
const SERVES: &str = "coracle.dev/ingress";
/// Annotation of an Ingress that names its class, before there was a field for it.
const CLASS: &str = "kubernetes.io/ingress.class";
/// Addresses that a status has at most.
const ADDRESSES_MAX: usize = 256;

/// An address and a port.
pub(super) type Served = (IpAddr, u16);

/// The class of an Ingress.
pub(super) fn class_of(ingress: &Ingress) -> Option<&str> {
    let named = ingress.spec.as_ref().and_then(|spec| spec.ingress_class_name.as_ref());
    let annotated = || ingress.metadata.annotations.as_ref()?.get(CLASS);
    named.or_else(annotated).map(String::as_str)
}

/// Whether nodes serve the Ingresses of a class.
pub(super) fn is_ours(class: &IngressClass) -> bool {
    class.spec.as_ref().and_then(|spec| spec.controller.as_deref()) == Some(CONTROLLER)
}

/// Where a node serves Ingresses; nowhere while it is not ready. What it says otherwise is passed over.
pub(super) fn served_at(node: &Node) -> Vec<Served> {
    let said = node.metadata.annotations.as_ref().and_then(|annotations| annotations.get(SERVES));
    let urls = said.filter(|_| is_ready(node)).map(|said| said.split(',')).into_iter().flatten();
    let address = |url: &str| url.split_once("://")?.1.trim_end_matches('/').parse::<SocketAddr>().ok();
    urls.filter_map(address).map(|address| (address.ip(), address.port())).collect()
}

/// The addresses with their ports, as a status has them.
pub(super) fn points(served: &BTreeSet<Served>) -> Vec<IngressLoadBalancerIngress> {
    let mut by_address: BTreeMap<IpAddr, Vec<u16>> = BTreeMap::new();
    for (address, port) in served {
        by_address.entry(*address).or_default().push(*port);
    }
    let port = |port| IngressPortStatus { port: i32::from(port), protocol: "TCP".to_owned(), error: None };
    let point = |(address, ports): (IpAddr, Vec<u16>)| IngressLoadBalancerIngress {
        ip: Some(address.to_string()),
        hostname: None,
        ports: Some(ports.into_iter().map(port).collect()),
    };
    by_address.into_iter().take(ADDRESSES_MAX).map(point).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn node(ready: &str, said: Value) -> Node {
        let annotations = if said.is_null() { json!({}) } else { json!({ SERVES: said }) };
        let node = json!({"metadata": {"annotations": annotations}, "status": {"conditions": [{"type": "Ready", "status": ready}]}});
        serde_json::from_value(node).unwrap()
    }

    #[test]
    fn a_ready_node_serves_where_it_says() {
        for (ready, said, expected) in [
            ("True", json!("http://10.0.0.1:8080,https://10.0.0.1:8443"), vec!["10.0.0.1:8080", "10.0.0.1:8443"]),
            ("True", json!("http://[2001:db8::1]:80"), vec!["[2001:db8::1]:80"]),
            ("Unknown", json!("http://10.0.0.1:8080"), vec![]),
            ("True", json!("http://host:80,10.0.0.1:80,,https://10.0.0.2:99999"), vec![]),
            ("True", Value::Null, vec![]),
        ] {
            let found: Vec<String> =
                served_at(&node(ready, said.clone())).into_iter().map(|at| SocketAddr::from(at).to_string()).collect();
            assert_eq!(found, expected, "{ready} {said}");
        }
    }

    #[test]
    fn a_status_has_each_address_once() {
        let served = ["10.0.0.2:80", "10.0.0.1:8443", "10.0.0.1:8080"].map(|at| at.parse::<SocketAddr>().unwrap());
        let points = points(&served.map(|at| (at.ip(), at.port())).into());
        let port = |port: u16| json!({"port": port, "protocol": "TCP"});
        let expected =
            json!([{"ip": "10.0.0.1", "ports": [port(8080), port(8443)]}, {"ip": "10.0.0.2", "ports": [port(80)]}]);
        assert_eq!(serde_json::to_value(points).unwrap(), expected);
    }
}
