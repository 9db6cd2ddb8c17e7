//! Where a webhook is now: the address of its URL, or an endpoint of its Service.

use coracle_api::meta::text::quote;
use coracle_api::status::Status;
use http::Uri;
use serde_json::Value;

use crate::cluster::Cluster;
use crate::hooks::Place;
use crate::nodes::{self, At};
use crate::outward::{Target, Way};

/// Finds where a call goes. `own` says whether the webhook proves itself, by an authority of its own.
///
/// # Errors
/// Why it goes nowhere, in words.
pub(crate) fn target(cluster: &Cluster, place: &Place, own: bool, query: &str) -> Result<Target, String> {
    match place {
        Place::Url(url) => {
            let uri: Uri = url.parse().map_err(|error| format!("Unparsable URL: {error}"))?;
            let host = uri.host().ok_or("the URL has no host")?.to_owned();
            let path = match uri.path() {
                "" => "/",
                path => path,
            };
            Ok(Target {
                way: Way::Direct { port: uri.port_u16().unwrap_or(443), host: host.clone() },
                path: format!("{path}{query}"),
                host: uri.authority().map(ToString::to_string).unwrap_or_default(),
                name: host,
                url: format!("{url}{query}"),
            })
        }
        Place::Nowhere(why) => Err(why.clone()),
        Place::Service { namespace, name, port, path } => {
            let path = if path.starts_with('/') { format!("{path}{query}") } else { format!("/{path}{query}") };
            let url = format!("https://{name}.{namespace}.svc:{port}{path}");
            let failed = |why: String| format!("Post {}: {why}", quote(&url));
            behind(cluster, (namespace, name, *port), path, own).map_err(failed)
        }
    }
}

/// Where a request for this path, with its query, goes that is for a port of a Service.
///
/// # Errors
/// Why it goes nowhere, in words.
pub(crate) fn behind(
    cluster: &Cluster,
    (namespace, name, port): (&str, &str, u16),
    path: String,
    own: bool,
) -> Result<Target, String> {
    let host = format!("{name}.{namespace}.svc");
    let url = format!("https://{host}:{port}{path}");
    let (way, path) = match service(cluster, namespace, name, port)? {
        At::Address { host, port } => (Way::Direct { host, port }, path),
        At::Pod { node, namespace, name, port } => {
            let kubelet = nodes::kubelet(cluster, &node).map_err(|status| status.message.clone())?;
            let (host, at) = (kubelet.host, kubelet.port);
            let node = kubelet.name.unwrap_or(node);
            if own {
                let forward = format!("/portForward/{namespace}/{name}?ports={port}");
                (Way::Tunnel { host, port: at, node, path: forward }, path)
            } else {
                let path = format!("/coracle/v1/proxy/{namespace}/{name}/{port}{path}");
                (Way::Node { host, port: at, node }, path)
            }
        }
    };
    Ok(Target { way, path, host: format!("{host}:{port}"), name: host, url })
}

/// An endpoint behind the port of a Service.
fn service(cluster: &Cluster, namespace: &str, name: &str, port: u16) -> Result<At, String> {
    let services = cluster.catalog.named("", "services").ok_or("there are no Services")?;
    let found = cluster.store.get(services, &services.record_name(Some(namespace), name));
    let record = found.ok_or_else(|| format!("service {} not found", quote(name)))?;
    let service = crate::store::Seen::new(services, &record).stored().map_err(|status| status.message.clone())?;
    if service["spec"]["type"] == "ExternalName" {
        let host = service["spec"]["externalName"].as_str().unwrap_or_default().to_owned();
        return Ok(At::Address { host, port });
    }
    let has_port = service["spec"]["ports"].as_array().into_iter().flatten().any(|of| of["port"] == port);
    if !has_port {
        return Err(format!("service {} has no port {port}", quote(name)));
    }
    let wanted = Value::from(port).to_string();
    nodes::endpoint_of_service(cluster, &service, &wanted).map_err(|status: Status| status.message.clone())
}
