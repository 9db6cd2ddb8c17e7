//! The objects that every cluster has from its first moment: namespaces, the classes of critical pods, and the service by
//! which pods find the API.

use std::net::IpAddr;
use std::sync::Arc;

use coracle_api::status::Status;
use coracle_keyspace::{Guard, Op};
use http::Method;
use serde_json::{Value, json};

use crate::admission::network;
use crate::edge::call::Call;
use crate::edge::options::{Validation, WriteOptions};
use crate::edge::path::ResourcePath;
use crate::identity::Identity;
use crate::server::Shared;
use crate::store::Refused;
use crate::verbs::create::insert;
use crate::verbs::write::Write;

const NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];
/// Priority classes of what the cluster itself needs to run.
const CLASSES: [(&str, i64, &str); 2] = [
    (
        "system-cluster-critical",
        2_000_000_000,
        "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
    ),
    (
        "system-node-critical",
        2_000_001_000,
        "Used for system critical pods that must not be moved from their current node.",
    ),
];
/// Address of the API within the cluster: the first of the service range.
const API_ADDRESS: &str = "10.96.0.1";

/// Makes what is missing.
pub(crate) async fn run(server: &Arc<Shared>) -> Result<(), Status> {
    for name in NAMESPACES {
        let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        make(server, "", "namespaces", None, name, object).await?;
    }
    for (name, value, description) in CLASSES {
        let object = json!({
            "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name}, "value": value,
            "description": description,
        });
        make(server, "scheduling.k8s.io", "priorityclasses", None, name, object).await?;
    }
    reserve_api_address(server).await?;
    let labels = json!({"component": "apiserver", "provider": "kubernetes"});
    let service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": labels},
        "spec": {
            "type": "ClusterIP", "clusterIP": API_ADDRESS, "clusterIPs": [API_ADDRESS], "sessionAffinity": "None",
            "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack", "internalTrafficPolicy": "Cluster",
            "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": port(server)}],
        },
    });
    make(server, "", "services", Some("default"), "kubernetes", service).await?;
    endpoints(server).await
}

/// Host and port of the external address.
fn endpoint(server: &Shared) -> Option<(IpAddr, u16)> {
    let authority = server.config.external_url.strip_prefix("https://")?;
    let address: std::net::SocketAddr = authority.parse().ok()?;
    Some((address.ip(), address.port()))
}

fn port(server: &Shared) -> u16 {
    endpoint(server).map_or(6443, |(_, port)| port)
}

/// Where the service leads. The port may be another at each start, so it is brought up to date.
async fn endpoints(server: &Arc<Shared>) -> Result<(), Status> {
    let Some((address, port)) = endpoint(server) else { return Ok(()) };
    let endpoints = json!({
        "apiVersion": "v1", "kind": "Endpoints",
        "metadata": {
            "name": "kubernetes", "namespace": "default",
            "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"},
        },
        "subsets": [{"addresses": [{"ip": address}], "ports": [{"name": "https", "port": port, "protocol": "TCP"}]}],
    });
    replace(server, "", "endpoints", endpoints).await?;
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": "kubernetes", "namespace": "default", "labels": {"kubernetes.io/service-name": "kubernetes"},
        },
        "addressType": if address.is_ipv4() { "IPv4" } else { "IPv6" },
        "endpoints": [{"addresses": [address], "conditions": {"ready": true}}],
        "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
    });
    replace(server, "discovery.k8s.io", "endpointslices", slice).await
}

/// Keeps the API's address for its service; that the keyspace refuses means that it is kept already.
async fn reserve_api_address(server: &Shared) -> Result<(), Status> {
    // The service itself is made with the address; the claim is part of that transaction. Only a service that is there
    // without a claim (made by an older version) needs one.
    let Some(services) = server.catalog.named("", "services") else { return Ok(()) };
    if server.store.get(services, "default/kubernetes").is_none() {
        return Ok(());
    }
    let op = network::reserve(API_ADDRESS, "default/kubernetes");
    debug_assert!(matches!(op, Op::Put { guard: Guard::Absent, .. }), "a claim takes nothing from another");
    match server.store.transact(vec![op]).await {
        Ok(_) | Err(Refused::Guard(_)) => Ok(()),
        Err(Refused::Final(status)) => Err(status),
    }
}

async fn make(
    server: &Arc<Shared>,
    group: &'static str,
    resource: &'static str,
    namespace: Option<&str>,
    name: &str,
    object: Value,
) -> Result<(), Status> {
    let Some(resource) = server.catalog.named(group, resource).cloned() else { return Ok(()) };
    if server.store.get(&resource, &resource.record_name(namespace, name)).is_some() {
        return Ok(());
    }
    let (call, options) = own_call(namespace, name);
    let write = Write { server, call: &call, resource: &resource, options: &options, subresource: "" };
    match insert(&write, object, false).await {
        Err(status) if status.reason != "AlreadyExists" => Err(status),
        _ => Ok(()),
    }
}

async fn replace(
    server: &Arc<Shared>,
    group: &'static str,
    resource: &'static str,
    object: Value,
) -> Result<(), Status> {
    let name = "kubernetes";
    make(server, group, resource, Some("default"), name, object.clone()).await?;
    let Some(resource) = server.catalog.named(group, resource).cloned() else { return Ok(()) };
    let (call, options) = own_call(Some("default"), name);
    let write = Write { server, call: &call, resource: &resource, options: &options, subresource: "" };
    let step =
        |_: &Value| Ok(crate::verbs::update::Changed { object: object.clone(), owned: false, names_version: false });
    crate::verbs::update::change(&write, step).await.map(drop)
}

/// The server's own hand.
fn own_call(namespace: Option<&str>, name: &str) -> (Call, WriteOptions) {
    let (parts, ()) =
        http::Request::builder().method(Method::POST).body(()).expect("a request without headers").into_parts();
    let target = ResourcePath {
        namespace: namespace.map(str::to_owned),
        name: Some(name.to_owned()),
        ..ResourcePath::default()
    };
    let identity = Identity::authenticated("system:apiserver", vec!["system:masters".to_owned()]);
    let options = WriteOptions {
        dry_run: false,
        manager: "coracle".to_owned(),
        validation: Validation::Ignore,
        force: false,
        own: true,
    };
    (Call::new(&parts, identity, target), options)
}
