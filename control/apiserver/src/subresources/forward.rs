//! Requests that a node or a pod answers: they are passed on, and upgraded connections become tunnels.
//!
//! What runs in a tunnel (SPDY, WebSocket) is not looked at: both ends speak it already.

use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use coracle_api::status::Status;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, header};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::catalog::Resource;
use crate::edge::call::Call;
use crate::edge::respond;
use crate::server::Shared;
use crate::server::nodes::{self, Endpoint};
use crate::store::Seen;

/// Headers that belong to one connection.
const HOP: [HeaderName; 6] = [
    header::CONNECTION,
    header::TRANSFER_ENCODING,
    header::TE,
    header::TRAILER,
    header::UPGRADE,
    header::PROXY_AUTHORIZATION,
];

/// `portforward`, `exec` and `attach` of a pod.
pub(super) async fn to_pod(
    server: &Arc<Shared>,
    call: Call,
    resource: &Arc<Resource>,
    parts: Parts,
    body: Body,
    upgrade: Option<OnUpgrade>,
) -> Result<Response, Status> {
    let pod = read_pod(server, &call, resource).await?;
    let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
    if node.is_empty() {
        let message = format!("pod {} does not have a host assigned", call.name());
        return Err(Status::bad_request(message));
    }
    let to = nodes::kubelet(server, node)?;
    let namespace = call.namespace().unwrap_or_default();
    let path = match call.subresource() {
        "portforward" => format!("/portForward/{namespace}/{}", call.name()),
        verb => {
            let container = container(&pod, call.query.text("container"), call.name())?;
            format!("/{verb}/{namespace}/{}/{container}", call.name())
        }
    };
    let query = parts.uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    pass(server, &to, &format!("{path}{query}"), parts, body, upgrade).await
}

pub(super) async fn read_pod(server: &Shared, call: &Call, resource: &Resource) -> Result<Value, Status> {
    let name = resource.record_name(call.namespace(), call.name());
    let record = server.store.read(resource, &name).await?.ok_or_else(|| resource.not_found(call.name()))?;
    Ok(Seen::new(resource, &record).stored())
}

/// The container that is meant; it must be named when there are several.
pub(super) fn container(pod: &Value, asked: Option<&str>, name: &str) -> Result<String, Status> {
    let names = |field: &str| -> Vec<String> {
        let list = pod["spec"][field].as_array().into_iter().flatten();
        list.filter_map(|container| container["name"].as_str().map(str::to_owned)).collect()
    };
    let (containers, init, ephemeral) = (names("containers"), names("initContainers"), names("ephemeralContainers"));
    match asked {
        Some(asked) => {
            if [&containers, &init, &ephemeral].into_iter().any(|list| list.iter().any(|known| known == asked)) {
                return Ok(asked.to_owned());
            }
            Err(Status::bad_request(format!("container {asked} is not valid for pod {name}")))
        }
        None => match containers.as_slice() {
            [only] => Ok(only.clone()),
            several => {
                let default = pod["metadata"]["annotations"]["kubectl.kubernetes.io/default-container"].as_str();
                if let Some(default) = default.filter(|default| several.iter().any(|known| known == default)) {
                    return Ok(default.to_owned());
                }
                let mut message = format!(
                    "a container name must be specified for pod {name}, choose one of: [{}]",
                    several.join(" ")
                );
                if !init.is_empty() {
                    message.push_str(&format!(" or one of the init containers: [{}]", init.join(" ")));
                }
                Err(Status::bad_request(message))
            }
        },
    }
}

/// `proxy` of a pod, a service or a node.
pub(super) async fn proxy(
    server: &Arc<Shared>,
    call: Call,
    resource: &Arc<Resource>,
    parts: Parts,
    body: Body,
    upgrade: Option<OnUpgrade>,
) -> Result<Response, Status> {
    if call.target.rest.is_empty() && matches!(call.method, http::Method::GET | http::Method::HEAD) {
        let query = parts.uri.query().map(|query| format!("?{query}")).unwrap_or_default();
        let mut response = respond::text(301, "");
        if let Ok(location) = HeaderValue::from_str(&format!("{}/{query}", parts.uri.path())) {
            response.headers_mut().insert(header::LOCATION, location);
        }
        return Ok(response);
    }
    let (scheme, name, port) = split_target(call.name());
    let rest = if call.target.rest.is_empty() { "/" } else { &call.target.rest };
    let query = parts.uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    let mut target = call.target.clone();
    target.name = Some(name.to_owned());
    let named = Call::acting_on(&call, target);
    match resource.row.resource {
        "nodes" => {
            let to = nodes::kubelet(server, name)?;
            let to = if port.is_empty() { to } else { Endpoint { port: number(port)?, tls: scheme == "https", ..to } };
            pass(server, &to, &format!("{rest}{query}"), parts, body, upgrade).await
        }
        "pods" => {
            let pod = read_pod(server, &named, resource).await?;
            let port = if port.is_empty() { first_port(&pod) } else { port.to_owned() };
            through_node(server, &pod, &port, &format!("{rest}{query}"), parts, body, upgrade).await
        }
        _ => {
            let service = read_pod(server, &named, resource).await?;
            let (pod, port) = endpoint_of_service(server, &service, port)?;
            through_node(server, &pod, &port, &format!("{rest}{query}"), parts, body, upgrade).await
        }
    }
}

/// `[scheme:]name[:port]`.
fn split_target(text: &str) -> (&str, &str, &str) {
    let parts: Vec<&str> = text.split(':').collect();
    match parts.as_slice() {
        [scheme, name, port] => (scheme, name, port),
        [name, port] => ("http", name, port),
        _ => ("http", text, ""),
    }
}

fn number(port: &str) -> Result<u16, Status> {
    port.parse().map_err(|_| Status::bad_request(format!("invalid port {port}")))
}

fn first_port(pod: &Value) -> String {
    let containers = pod["spec"]["containers"].as_array().into_iter().flatten();
    containers
        .flat_map(|container| container["ports"].as_array().into_iter().flatten())
        .find_map(|port| port["containerPort"].as_u64())
        .map_or_else(|| "80".to_owned(), |port| port.to_string())
}

/// A pod's address is reached through its node: pods have no network of their own that this server is in.
async fn through_node(
    server: &Arc<Shared>,
    pod: &Value,
    port: &str,
    path: &str,
    parts: Parts,
    body: Body,
    upgrade: Option<OnUpgrade>,
) -> Result<Response, Status> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let node = text(&pod["spec"]["nodeName"]);
    if node.is_empty() {
        return Err(Status::service_unavailable("the pod is not bound to a node"));
    }
    let to = nodes::kubelet(server, &node)?;
    let (namespace, name) = (text(&pod["metadata"]["namespace"]), text(&pod["metadata"]["name"]));
    let path = format!("/coracle/v1/proxy/{namespace}/{name}/{port}{path}");
    pass(server, &to, &path, parts, body, upgrade).await
}

/// A ready pod behind a service, and the port that the service's port leads to.
fn endpoint_of_service(server: &Shared, service: &Value, port: &str) -> Result<(Value, String), Status> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (namespace, name) = (text(&service["metadata"]["namespace"]), text(&service["metadata"]["name"]));
    let unavailable = || Status::service_unavailable(format!("no endpoints available for service \"{name}\""));
    let ports = service["spec"]["ports"].as_array().map(Vec::as_slice).unwrap_or_default();
    let chosen = match port {
        "" if ports.len() == 1 => ports.first(),
        "" => ports.iter().find(|port| text(&port["name"]).is_empty()).or(ports.first()),
        wanted => {
            ports.iter().find(|port| text(&port["name"]) == wanted || port["port"].as_u64() == wanted.parse().ok())
        }
    };
    let port_name = text(&chosen.ok_or_else(unavailable)?["name"]);
    let slices = server.catalog.named("discovery.k8s.io", "endpointslices").ok_or_else(unavailable)?;
    let pods = server.catalog.named("", "pods").ok_or_else(unavailable)?;
    let snapshot = server.store.keyspace.snapshot(slices.row.collection);
    for (_, record) in crate::store::range(&snapshot.records, Some(&namespace), None) {
        let slice = Seen::new(slices, record).stored();
        if slice["metadata"]["labels"]["kubernetes.io/service-name"] != name.as_str() {
            continue;
        }
        let port = slice["ports"].as_array().into_iter().flatten().find(|port| text(&port["name"]) == port_name);
        let Some(port) = port.and_then(|port| port["port"].as_u64()) else { continue };
        for endpoint in slice["endpoints"].as_array().into_iter().flatten() {
            let ready = endpoint["conditions"]["ready"].as_bool().unwrap_or(true);
            let pod = text(&endpoint["targetRef"]["name"]);
            if !ready || pod.is_empty() {
                continue;
            }
            if let Some(record) = server.store.get(pods, &pods.record_name(Some(&namespace), &pod)) {
                return Ok((Seen::new(pods, &record).stored(), port.to_string()));
            }
        }
    }
    Err(unavailable())
}

/// Passes a request on and its answer back.
pub(super) async fn pass(
    server: &Arc<Shared>,
    to: &Endpoint,
    path_and_query: &str,
    parts: Parts,
    body: Body,
    upgrade: Option<OnUpgrade>,
) -> Result<Response, Status> {
    let wants_upgrade = parts.headers.contains_key(header::UPGRADE);
    let mut request = Request::builder()
        .method(parts.method.clone())
        .uri(path_and_query)
        .body(body)
        .map_err(|error| Status::bad_request(format!("the path cannot be passed on: {error}")))?;
    let host = format!("{}:{}", to.host, to.port);
    *request.headers_mut() = forwarded(&parts.headers, wants_upgrade);
    if let Ok(host) = HeaderValue::from_str(&host) {
        request.headers_mut().insert(header::HOST, host);
    }
    let mut answer = server.nodes.send(to, request).await?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        let (mut parts, body) = answer.into_parts();
        HOP.iter().for_each(|name| drop(parts.headers.remove(name)));
        return Ok(Response::from_parts(parts, nodes::body(body)));
    }
    let Some(upgrade) = upgrade else {
        return Err(Status::bad_request("the connection of this request cannot be upgraded"));
    };
    let there = hyper::upgrade::on(&mut answer);
    let (parts, _) = answer.into_parts();
    tokio::spawn(tunnel(upgrade, there, server.stopping.clone()));
    Ok(Response::from_parts(parts, nodes::empty()))
}

/// The client's headers without its credentials, which are for this server alone.
fn forwarded(headers: &HeaderMap, wants_upgrade: bool) -> HeaderMap {
    let mut out = headers.clone();
    for name in [header::AUTHORIZATION, header::HOST].iter().chain(&HOP) {
        let keeps = wants_upgrade && (name == header::CONNECTION || name == header::UPGRADE);
        if !keeps {
            out.remove(name);
        }
    }
    out
}

/// Copies both ways until one side ends.
async fn tunnel(here: OnUpgrade, there: OnUpgrade, stopping: CancellationToken) {
    let (Ok(here), Ok(there)) = tokio::join!(here, there) else { return };
    let (mut here, mut there) = (TokioIo::new(here), TokioIo::new(there));
    tokio::select! {
        _ = tokio::io::copy_bidirectional(&mut here, &mut there) => {}
        () = stopping.cancelled() => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_container_is_named_or_the_only_one() {
        let one = json!({"spec": {"containers": [{"name": "a"}]}});
        let two = json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "i"}]}});
        for (pod, asked, expected) in [
            (&one, None, Ok("a")),
            (&two, Some("i"), Ok("i")),
            (
                &two,
                None,
                Err(
                    "a container name must be specified for pod p, choose one of: [a b] or one of the init containers: [i]",
                ),
            ),
            (&one, Some("x"), Err("container x is not valid for pod p")),
        ] {
            let found = container(pod, asked, "p").map_err(|status| status.message.clone());
            assert_eq!(found.as_deref().map_err(String::as_str), expected);
        }
    }

    #[test]
    fn targets_have_a_scheme_and_a_port_or_not() {
        for (text, expected) in [
            ("p", ("http", "p", "")),
            ("p:8080", ("http", "p", "8080")),
            ("https:p:", ("https", "p", "")),
            ("https:p:web", ("https", "p", "web")),
        ] {
            assert_eq!(split_target(text), expected);
        }
    }
}
