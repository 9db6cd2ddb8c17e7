//! The cluster's names for programs of the machine ([`coracle_dns`]), which reach Services where this node serves them.

use std::net::IpAddr;

use coracle_discovery::{Port, Service, ServiceKind};
use coracle_dns::{Listener, Served, Zone, is_near};
use coracle_proxy::Opened;
use tokio::sync::watch;

use crate::balancer;
use crate::context::Context;
use crate::network::is_clusters;

/// The node's ports for Services.
struct Ports {
    address: IpAddr,
    opened: watch::Receiver<Vec<Opened>>,
}

impl Served for Ports {
    fn address(&self) -> IpAddr {
        self.address
    }

    /// Its own number, where the node is the balancer and has it; else its node port.
    fn number(&self, service: &Service, port: &Port) -> Option<u16> {
        let key = |of: &Opened| (of.namespace.clone(), of.name.clone(), of.port, of.protocol as u8);
        let wanted = (service.namespace.clone(), service.name.clone(), port.port, port.protocol as u8);
        let is_open = || {
            // In the order of the key.
            let opened = self.opened.borrow();
            opened.binary_search_by_key(&wanted, key).is_ok_and(|at| opened[at].is_open)
        };
        match service.kind {
            ServiceKind::LoadBalancer if is_open() => Some(port.port),
            ServiceKind::LoadBalancer | ServiceKind::NodePort => port.node_port,
            ServiceKind::ClusterIp | ServiceKind::ExternalName => None,
        }
    }

    fn is_clusters(&self, address: IpAddr) -> bool {
        is_clusters(address)
    }
}

/// Answers until told to stop.
pub async fn run(context: &Context, listener: Listener, stop: tokio_util::sync::CancellationToken) {
    let (config, network) = (&context.config, &context.network);
    let address = balancer::address(config.node_port_bind, config.node_ip);
    let ports = Ports { address, opened: network.proxy.opened() };
    if let Ok(at) = listener.address() {
        tracing::info!(%at, "the cluster's names are answered for");
        if !is_near(at.ip()) {
            tracing::warn!(%at, "whoever reaches this address can ask for the cluster's names");
        }
    }
    listener.run(Zone::new(network.discovery.clone(), std::sync::Arc::new(ports)), stop).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use coracle_discovery::{Protocol, Snapshot, Traffic};

    #[test]
    fn a_service_is_where_this_node_serves_it() {
        let service = |name: &str, kind, ports: &[(u16, Option<u16>)]| Service {
            namespace: "n".into(),
            name: name.into(),
            uid: "".into(),
            created: 0,
            kind,
            inside: Traffic::Cluster,
            outside: Traffic::Cluster,
            balanced: None,
            health_port: None,
            cluster_ip: Some([10, 96, 0, 9].into()),
            external_name: None,
            ports: (ports.iter())
                .map(|(port, node_port)| Port {
                    name: port.to_string(),
                    port: *port,
                    node_port: *node_port,
                    protocol: Protocol::Tcp,
                    ready: Default::default(),
                    leaving: Default::default(),
                })
                .collect(),
            activates: false,
            affinity: None,
            ready: Default::default(),
            hosts: Default::default(),
        };
        let opened = |name: &str, port, is_open| Opened {
            namespace: "n".into(),
            name: name.into(),
            port,
            protocol: Protocol::Tcp,
            is_open,
        };
        let all = vec![opened("a", 80, true), opened("b", 80, true), opened("b", 81, false)];
        let ports = Ports { address: [127, 0, 0, 1].into(), opened: watch::Sender::new(all).subscribe() };
        for (name, kind, own, expected) in [
            (
                "b",
                ServiceKind::LoadBalancer,
                vec![(80, Some(30_080)), (81, Some(30_081)), (82, None)],
                [Some(80), Some(30_081), None],
            ),
            (
                "b",
                ServiceKind::NodePort,
                vec![(80, Some(30_080)), (81, Some(30_081)), (82, None)],
                [Some(30_080), Some(30_081), None],
            ),
            ("b", ServiceKind::ClusterIp, vec![(80, None), (81, None), (82, None)], [None, None, None]),
            (
                "c",
                ServiceKind::LoadBalancer,
                vec![(80, Some(30_080)), (81, None), (82, None)],
                [Some(30_080), None, None],
            ),
        ] {
            let snapshot = Snapshot::of([service(name, kind, &own)]);
            let service = snapshot.service("n", name).unwrap();
            let found: Vec<_> = service.ports.iter().map(|port| ports.number(service, port)).collect();
            assert_eq!(found, expected, "{name} {kind:?}");
        }
    }
}
