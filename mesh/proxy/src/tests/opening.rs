//! Who opens which port at a node that begins.

use std::net::IpAddr;
use std::sync::Arc;

use coracle_discovery::Protocol;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::gateway::certificate;
use super::world::*;
use crate::{Certificates, GatewayRoutes, Opened, Proxy};

/// Of another node on the machine of the world's.
const BIND: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 2));

#[tokio::test]
async fn a_node_that_begins_leaves_to_gateways_what_services_have_not_had() {
    let world = World::new().await;
    let (wanted, free, had, kept) = (free_port().await, free_port().await, free_port().await, free_port().await);
    // As long as the other is asked.
    let at = |port: u16| TcpListener::bind((BIND, port));
    let spec = |ports: serde_json::Value| json!({"type": "LoadBalancer", "clusterIP": "None", "ports": ports});
    world.service_with("new", 1, spec(json!([{"name": "a", "port": wanted}, {"name": "b", "port": free}])));
    world.service_at("old", 2, spec(json!([{"port": had}])), json!([{"ip": "127.0.0.2"}]));
    // Its status has lost its addresses: only this node was its balancer, and that has begun anew.
    world.service_with("lost", 3, spec(json!([{"port": kept}])));
    for service in ["new", "old", "lost"] {
        world.placed(service, &[(1, NODE, true)], json!([{"name": "a", "port": 8080}, {"port": 8080}]));
        world.known(service, 1).await;
    }
    world.define_gateways();
    world.gateway_object("gatewayclasses", "c", json!({"spec": {"controllerName": "coracle.dev/gateway"}}));
    let listeners = json!([{"name": "a", "port": wanted, "protocol": "HTTP"}, {"name": "b", "port": had, "protocol": "HTTP"},
            {"name": "c", "port": kept, "protocol": "HTTP"}]);
    world.gateway_object("gateways", "g", json!({"spec": {"gatewayClassName": "c", "listeners": listeners}}));

    let proxy = Proxy::new(world.discovery.clone(), world.policies.clone(), world.pods.clone());
    proxy.expect_gateways();
    proxy.expect_had();
    let certificates = Arc::new(Certificates::new(certificate("default.invalid")));
    let of = GatewayRoutes { routes: world.gateways.clone(), certificates };
    let (_own, own) = watch::channel(Vec::new());
    tokio::spawn(proxy.clone().serve_gateways(BIND, of, own, Box::new(|_, _| {}), world.stop.clone()));
    assert!(!proxy.knows_services());
    tokio::spawn(proxy.clone().run(Some(BIND), world.stop.clone()));
    let said = |opened: &Vec<Opened>| -> Vec<(u16, bool)> {
        let mut said: Vec<(u16, bool)> = opened.iter().map(|port| (port.port, port.is_open)).collect();
        said.sort_unstable();
        said
    };
    let mut opened = proxy.opened();
    let is_held = |opened: &Vec<Opened>| said(opened) == [(had, true)];
    tokio::time::timeout(SOON, opened.wait_for(is_held)).await.expect("what it had it has").unwrap();
    assert!(!proxy.knows_services(), "what it had itself it was not told");
    drop(at(kept).await.expect("nobody has it"));
    let before = |name: &str, port: u16, is_open| Opened {
        namespace: "n".into(),
        name: name.into(),
        port,
        protocol: Protocol::Tcp,
        is_open,
    };
    proxy.had(vec![before("lost", kept, true), before("new", wanted, false), before("other", free, true)]);
    let mut of_before = vec![(had, true), (kept, true)];
    of_before.sort_unstable();
    let has_both = |opened: &Vec<Opened>| said(opened) == of_before;
    tokio::time::timeout(SOON, opened.wait_for(has_both)).await.expect("so it has what it had before").unwrap();
    let is_known = |_: &Vec<Opened>| proxy.knows_services();
    tokio::time::timeout(SOON, opened.wait_for(is_known)).await.expect("who waits for it is told").unwrap();
    for port in [wanted, free] {
        drop(at(port).await.expect("nobody has it before Gateways are known"));
    }
    assert!(at(had).await.is_err() && at(kept).await.is_err());

    tokio::spawn(world.gateways.clone().run(world.stop.clone()));
    let mut all = vec![(wanted, false), (free, true), (had, true), (kept, true)];
    all.sort_unstable();
    let is_all = |opened: &Vec<Opened>| said(opened) == all;
    tokio::time::timeout(SOON, opened.wait_for(is_all)).await.expect("it is whose it was").unwrap();
}
