//! The objects that every cluster has from its first moment, and keeps: namespaces, the classes of critical pods, of Ingresses and
//! of volumes, roles, the service by which pods find the API, and what the server says of itself; schemas and levels of priority
//! are made here and kept elsewhere ([`crate::flowschemas`]).

mod defaults;
mod described;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use coracle_api::meta::{self, condition};
use coracle_api::status::Status;
use coracle_api::volumes;
use coracle_keyspace::{Guard, Op, Watcher};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::admission::{self, network};
use crate::flowschemas;
use crate::roles::GROUP;
use crate::server::Shared;
use crate::store::{Refused, Seen};
use crate::verbs::own::Own;

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

/// The class of the Ingresses that nodes serve.
const INGRESS_CLASS: &str = "coracle";

/// The class of the volumes that nodes keep.
const STORAGE_CLASS: &str = "local";

/// What old clients ask the health of. All of them are parts of the process that answers.
const COMPONENTS: [&str; 3] = ["controller-manager", "scheduler", "etcd-0"];
/// How often what must be there is looked at without a reason.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// How long after a failure it is tried again.
const AGAIN_AFTER: Duration = Duration::from_secs(5);

/// Makes what is missing. Only what nothing works without must be there for the server to start. Says whether the roles are
/// as they are to be.
pub(crate) async fn run(server: &Arc<Shared>) -> Result<bool, Status> {
    namespaces(server).await?;
    let classes = CLASSES.map(|(name, value, description)| async move {
        let object = json!({
            "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name}, "value": value,
            "description": description,
        });
        make(server, "scheduling.k8s.io", "priorityclasses", None, name, object).await
    });
    futures::future::try_join_all(classes).await?;
    let roles = roles(server).await;
    let has_roles = roles.is_ok();
    for made in [
        api(server).await,
        roles,
        components(server).await,
        ingress_class(server).await,
        storage_class(server).await,
        described(server).await,
        flowschemas::make(&server.cluster).await,
    ] {
        if let Err(error) = made {
            tracing::warn!(%error, "an object that every cluster has cannot be made; it is tried again");
        }
    }
    Ok(has_roles)
}

async fn namespaces(server: &Arc<Shared>) -> Result<(), Status> {
    let all = NAMESPACES.map(|name| async move {
        let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        make(server, "", "namespaces", None, name, object).await
    });
    futures::future::try_join_all(all).await.map(drop)
}

/// The service by which pods find the API, and where it leads.
async fn api(server: &Arc<Shared>) -> Result<(), Status> {
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

/// Roles and bindings, made or completed; what somebody takes out of them or deletes stays so until the next start.
async fn roles(server: &Arc<Shared>) -> Result<(), Status> {
    let all = defaults::all().map(|found| async move {
        let (resource, wanted) = found.map_err(Status::internal_error)?;
        role(server, resource, wanted).await
    });
    futures::future::try_join_all(all).await.map(drop)
}

async fn role(server: &Arc<Shared>, resource: &'static str, wanted: Value) -> Result<(), Status> {
    let (name, namespace) = (meta::name(&wanted).to_owned(), meta::namespace(&wanted).to_owned());
    let namespace = (!namespace.is_empty()).then_some(namespace.as_str());
    make(server, GROUP, resource, namespace, &name, wanted.clone()).await?;
    let Some(resource) = server.cluster.catalog.named(GROUP, resource).cloned() else { return Ok(()) };
    let store = &server.cluster.store;
    let Some(record) = store.get(&resource, &resource.record_name(namespace, &name)) else { return Ok(()) };
    let old = Seen::new(&resource, &record).stored()?;
    if !defaults::may_change(&old) {
        return Ok(());
    }
    if defaults::is_of_another(&old, &wanted) {
        let (key, guard) = (record.key.clone(), Guard::Revision(record.revision));
        match store.transact(vec![Op::Delete { key, guard }]).await {
            Ok(_) => return make(server, GROUP, resource.row.resource(), namespace, &name, wanted).await,
            Err(Refused::Final(status)) => return Err(status),
            // Somebody has just changed it, another server as this one perhaps: it is looked at again.
            Err(Refused::Guard(_)) => return Err(Status::server_timeout(GROUP, resource.row.resource(), "update", 1)),
        }
    }
    if defaults::completed(&old, &wanted) == old {
        return Ok(());
    }
    let step = |old: &Value| if defaults::may_change(old) { defaults::completed(old, &wanted) } else { old.clone() };
    Own::new(&server.cluster, &resource, namespace, &name).change(step).await.map(drop)
}

/// The class of the Ingresses that nodes serve; the default one, unless somebody has made another that.
async fn ingress_class(server: &Arc<Shared>) -> Result<(), Status> {
    let is_default = admission::ingress_class::defaults(&server.cluster)?.is_empty();
    let annotations = json!({ (admission::ingress_class::IS_DEFAULT): is_default.to_string() });
    let class = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "IngressClass",
        "metadata": {"name": INGRESS_CLASS, "annotations": annotations},
        "spec": {"controller": "coracle.dev/ingress"},
    });
    make(server, "networking.k8s.io", "ingressclasses", None, INGRESS_CLASS, class).await
}

/// The class of the volumes that nodes keep; the default one, unless somebody has made another that.
async fn storage_class(server: &Arc<Shared>) -> Result<(), Status> {
    let is_default = admission::volumes::default(&server.cluster)?.is_none();
    let class = json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass",
        "metadata": {"name": STORAGE_CLASS, "annotations": {(volumes::IS_DEFAULT): is_default.to_string()}},
        "provisioner": volumes::PROVISIONER, "reclaimPolicy": "Delete", "volumeBindingMode": "WaitForFirstConsumer",
        "allowVolumeExpansion": true,
    });
    make(server, "storage.k8s.io", "storageclasses", None, STORAGE_CLASS, class).await
}

async fn components(server: &Arc<Shared>) -> Result<(), Status> {
    let all = COMPONENTS.map(|name| async move {
        let object = json!({
            "apiVersion": "v1", "kind": "ComponentStatus", "metadata": {"name": name},
            "conditions": [{"type": "Healthy", "status": "True", "message": "ok"}],
        });
        make(server, "", "componentstatuses", None, name, object).await
    });
    futures::future::try_join_all(all).await.map(drop)
}

/// What is served, and where addresses come from.
async fn described(server: &Arc<Shared>) -> Result<(), Status> {
    let services = described::api_services().map(|(name, object)| async move {
        make(server, "apiregistration.k8s.io", "apiservices", None, name, object).await
    });
    futures::future::try_join_all(services).await?;
    let (group, name) = ("networking.k8s.io", "kubernetes");
    make(server, group, "servicecidrs", None, name, described::service_range()).await?;
    let Some(resource) = server.cluster.catalog.named(group, "servicecidrs").cloned() else { return Ok(()) };
    let Some(record) = server.cluster.store.get(&resource, name) else { return Ok(()) };
    if condition::is_true(&Seen::new(&resource, &record).stored()?, "Ready") {
        return Ok(());
    }
    Own::new(&server.cluster, &resource, None, name).status().change(described::ready).await.map(drop)
}

/// Keeps what must be there: looks when one of the objects changes or goes, and now and then.
pub(crate) async fn keep(server: Weak<Shared>, mut has_roles: bool, stopping: CancellationToken) {
    loop {
        let Some(alive) = server.upgrade() else { return };
        let changed = Changed::after_now(&alive);
        let mut wait = LOOK_EVERY;
        let rest = if has_roles { Ok(()) } else { roles(&alive).await };
        has_roles = rest.is_ok();
        for kept in [namespaces(&alive).await, api(&alive).await, described(&alive).await, rest] {
            if let Err(error) = kept {
                tracing::warn!(%error, "an object that every cluster has cannot be kept; it is tried again");
                wait = AGAIN_AFTER;
            }
        }
        // A server that is dropped is not kept alive by this.
        drop(alive);
        tokio::select! {
            () = changed.wait() => {}
            () = tokio::time::sleep(wait) => {}
            () = stopping.cancelled() => return,
        }
    }
}

/// Waits for a change of the objects by which pods find the API.
struct Changed(Vec<Watcher>);

impl Changed {
    const NAME: &str = "default/kubernetes";

    /// Changes from now on; what is being kept is looked at after this.
    fn after_now(server: &Shared) -> Changed {
        let kinds = [("", "services"), ("", "endpoints"), ("discovery.k8s.io", "endpointslices")];
        let keyspace = &server.cluster.store.keyspace;
        let now = keyspace.revision();
        let watchers = kinds.iter().filter_map(|(group, name)| {
            let resource = server.cluster.catalog.named(group, name)?;
            keyspace.watch(resource.row.collection(), now).ok()
        });
        Changed(watchers.collect())
    }

    async fn wait(self) {
        let each = self.0.into_iter().map(|mut watcher| {
            Box::pin(async move {
                loop {
                    match watcher.next().await {
                        Ok(batch) if batch.events.iter().all(|event| &*event.record.key.name != Changed::NAME) => {}
                        Ok(_) => return,
                        // It fell behind or the keyspace stops: the slower look finds out.
                        Err(_) => std::future::pending().await,
                    }
                }
            })
        });
        futures::future::select_all(each).await;
    }
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

/// Where the service leads: to every server of the cluster, as each has said where it is. All servers see the same records,
/// so all of them want the same. The port may be another at each start, so it is brought up to date.
async fn endpoints(server: &Arc<Shared>) -> Result<(), Status> {
    let Some((address, port)) = endpoint(server) else { return Ok(()) };
    let keyspace = &server.cluster.store.keyspace;
    let own = std::net::SocketAddr::new(address, port);
    keyspace.advertise(&own.to_string()).await.map_err(|error| Status::service_unavailable(error.to_string()))?;
    let servers: Vec<std::net::SocketAddr> =
        keyspace.members().iter().filter_map(|member| member.api.parse().ok()).collect();
    let mut by_port: BTreeMap<u16, BTreeSet<IpAddr>> = BTreeMap::new();
    for server in &servers {
        by_port.entry(server.port()).or_default().insert(server.ip());
    }
    let subsets: Vec<Value> = by_port
        .iter()
        .map(|(port, addresses)| {
            let addresses: Vec<Value> = addresses.iter().map(|ip| json!({"ip": ip})).collect();
            json!({"addresses": addresses, "ports": [{"name": "https", "port": port, "protocol": "TCP"}]})
        })
        .collect();
    let endpoints = json!({
        "apiVersion": "v1", "kind": "Endpoints",
        "metadata": {
            "name": "kubernetes", "namespace": "default",
            "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"},
        },
        "subsets": subsets,
    });
    replace(server, "", "endpoints", endpoints).await?;
    // A slice has one port and one family: those of the first server.
    let Some(first) = servers.first() else { return Ok(()) };
    let alike = by_port[&first.port()].iter().filter(|ip| ip.is_ipv4() == first.is_ipv4());
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": "kubernetes", "namespace": "default", "labels": {"kubernetes.io/service-name": "kubernetes"},
        },
        "addressType": if first.is_ipv4() { "IPv4" } else { "IPv6" },
        "endpoints": alike.map(|ip| json!({"addresses": [ip], "conditions": {"ready": true}})).collect::<Vec<_>>(),
        "ports": [{"name": "https", "port": first.port(), "protocol": "TCP"}],
    });
    replace(server, "discovery.k8s.io", "endpointslices", slice).await
}

/// Keeps the API's address for its service; that the keyspace refuses means that it is kept already.
async fn reserve_api_address(server: &Shared) -> Result<(), Status> {
    // The service itself is made with the address; the claim is part of that transaction. Only a service that is there
    // without a claim (made by an older version) needs one.
    let Some(services) = server.cluster.catalog.named("", "services") else { return Ok(()) };
    if server.cluster.store.get(services, "default/kubernetes").is_none() {
        return Ok(());
    }
    let op = network::reserve(API_ADDRESS, "default/kubernetes");
    debug_assert!(matches!(op, Op::Put { guard: Guard::Absent, .. }), "a claim takes nothing from another");
    match server.cluster.store.transact(vec![op]).await {
        Ok(_) | Err(Refused::Guard(_)) => Ok(()),
        Err(Refused::Final(status)) => Err(status),
    }
}

async fn make(
    server: &Arc<Shared>,
    group: &str,
    resource: &str,
    namespace: Option<&str>,
    name: &str,
    object: Value,
) -> Result<(), Status> {
    let Some(resource) = server.cluster.catalog.named(group, resource) else { return Ok(()) };
    Own::new(&server.cluster, resource, namespace, name).make(object).await
}

async fn replace(
    server: &Arc<Shared>,
    group: &'static str,
    resource: &'static str,
    object: Value,
) -> Result<(), Status> {
    let Some(resource) = server.cluster.catalog.named(group, resource) else { return Ok(()) };
    let own = Own::new(&server.cluster, resource, Some("default"), "kubernetes");
    own.make(object.clone()).await?;
    own.change(|_| object.clone()).await.map(drop)
}
