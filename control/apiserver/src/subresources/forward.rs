//! Requests that a node or a pod answers: they are passed on, and upgraded connections become tunnels.
//!
//! What runs in a tunnel (SPDY, WebSocket) is not looked at: both ends speak it already.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use coracle_api::meta::link::scheme;
use coracle_api::meta::text::quote;
use coracle_api::status::Status;
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, header};
use http_body::Body as _;
use http_body_util::BodyExt;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, split};
use tokio_util::sync::CancellationToken;

use super::Passing;
use super::html;
use crate::answer::respond;
use crate::authn;
use crate::authz::{self, Attributes};
use crate::catalog::Resource;
use crate::cluster::Cluster;
use crate::nodes::{self, At, Endpoint, Nodes};
use crate::request::call::Call;
use crate::request::path::ResourcePath;
use crate::request::query::decode;
use crate::store::Seen;

/// A client that has ended its side is answered for so long; Kubernetes' API server ends both sides at once.
const LINGER: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 10 });
/// Headers that belong to one connection; those that `Connection` names are others.
const HOP: [HeaderName; 7] = [
    header::CONNECTION,
    header::TRANSFER_ENCODING,
    header::TE,
    header::TRAILER,
    header::UPGRADE,
    header::PROXY_AUTHENTICATE,
    HeaderName::from_static("keep-alive"),
];
/// By which an application knows who asked, for what, through this server. Only this server says so.
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_URI: HeaderName = HeaderName::from_static("x-forwarded-uri");

/// `portforward`, `exec` and `attach` of a pod.
pub(super) async fn to_pod(
    cluster: &Cluster,
    nodes: &Nodes,
    passing: Passing,
    resource: &Arc<Resource>,
) -> Result<Response, Status> {
    let call = &passing.call;
    let pod = read_pod(cluster, call, resource).await?;
    let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
    if node.is_empty() {
        let message = format!("pod {} does not have a host assigned", call.name());
        return Err(Status::bad_request(message));
    }
    let to = nodes::kubelet(cluster, node)?;
    let namespace = call.namespace().unwrap_or_default();
    let path = match call.subresource() {
        "portforward" => format!("/portForward/{namespace}/{}", call.name()),
        verb => {
            let container = container(&pod, call.query.text("container"), call.name())?;
            format!("/{verb}/{namespace}/{}/{container}", call.name())
        }
    };
    let query = call.uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    pass(nodes, &to, &format!("{path}{query}"), passing, None).await
}

pub(super) async fn read_pod(cluster: &Cluster, call: &Call, resource: &Resource) -> Result<Value, Status> {
    let name = resource.record_name(call.namespace(), call.name());
    let record = cluster.store.read(resource, &name).await?.ok_or_else(|| resource.not_found(call.name()))?;
    Seen::new(resource, &record).stored()
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
    cluster: &Cluster,
    nodes: &Nodes,
    passing: Passing,
    resource: &Arc<Resource>,
) -> Result<Response, Status> {
    let call = &passing.call;
    let query = call.uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    if call.target.rest.is_empty() && matches!(call.method, http::Method::GET | http::Method::HEAD) {
        let mut response = respond::text(301, "");
        if let Ok(location) = HeaderValue::from_str(&format!("{}/{query}", call.uri.path())) {
            response.headers_mut().insert(header::LOCATION, location);
        }
        return Ok(response);
    }
    let kind = resource.row.resource();
    let invalid = || {
        let kind = kind.strip_suffix('s').unwrap_or(kind);
        Status::bad_request(format!("invalid {kind} request {}", quote(call.name())))
    };
    let (scheme, name, port) = split_target(call.name()).ok_or_else(invalid)?;
    // It becomes a part of the path to the node.
    if !port.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
        return Err(Status::bad_request(format!("invalid port in {}", quote(call.name()))));
    }
    let rest = if call.target.rest.is_empty() { "/" } else { &call.target.rest };
    let below = call.uri.path().strip_suffix(call.target.rest.as_str()).unwrap_or(call.uri.path()).to_owned();
    let path = format!("{rest}{query}");
    let mut target = call.target.clone();
    target.name = Some(name.to_owned());
    let named = Call::acting_on(call, target);
    if resource.row.resource() == "nodes" {
        let kubelet = nodes::kubelet(cluster, name)?;
        let is_kubelet = port.is_empty() || number(port)? == kubelet.port;
        let to = node_endpoint(kubelet, scheme, port)?;
        if is_kubelet {
            permit_own(cluster, call, name, rest).await?;
        }
        return pass(nodes, &to, &path, passing, Some(&below)).await;
    }
    let (node, namespace, name, port) = if resource.row.resource() == "pods" {
        let pod = read_pod(cluster, &named, resource).await?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let port = if port.is_empty() { first_port(&pod) } else { port.to_owned() };
        let metadata = &pod["metadata"];
        (text(&pod["spec"]["nodeName"]), text(&metadata["namespace"]), text(&metadata["name"]), port)
    } else {
        let service = read_pod(cluster, &named, resource).await?;
        match nodes::endpoint_of_service(cluster, &service, port)? {
            At::Pod { node, namespace, name, port } => (node, namespace, name, port.to_string()),
            // Whoever may call a Service may not call what is beyond the cluster.
            At::Address { .. } => {
                let message = format!("no endpoints available for service \"{name}\"");
                return Err(Status::service_unavailable(message));
            }
        }
    };
    if node.is_empty() {
        return Err(Status::service_unavailable("the pod is not bound to a node"));
    }
    // A pod's address is reached through its node: pods have no network of their own that this server is in.
    let to = nodes::kubelet(cluster, &node)?;
    // The node speaks TLS with it: what lies between them is TLS already.
    let secure = if scheme == "https" { "https:" } else { "" };
    let path = format!("/coracle/v1/proxy/{namespace}/{name}/{secure}{port}{path}");
    pass(nodes, &to, &path, passing, Some(&below)).await
}

/// What a node's own server tells and does beyond a kubelet: it trusts this server, so that whoever may look at nodes would may all of it.
/// What has a right of its own elsewhere has the same here, and what a kubelet does to a pod is asked for as it is for the pod.
async fn permit_own(cluster: &Cluster, call: &Call, node: &str, path: &str) -> Result<(), Status> {
    // As the node reads them: taken apart first, and decoded then.
    let segments: Vec<String> = path.split('/').skip(1).map(|segment| decode(segment, false)).collect();
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    let own = match segments.as_slice() {
        ["coracle", own @ ..] => own,
        [verb @ ("exec" | "attach" | "run"), namespace, pod, .., container] => {
            let verb = if *verb == "attach" { "attach" } else { "exec" };
            return permit_pod(cluster, call, ("create", verb), (namespace, pod), Some(container)).await;
        }
        ["portForward", namespace, pod, ..] => {
            return permit_pod(cluster, call, ("create", "portforward"), (namespace, pod), None).await;
        }
        ["containerLogs", namespace, pod, ..] => {
            return permit_pod(cluster, call, ("get", "log"), (namespace, pod), None).await;
        }
        _ => return Ok(()),
    };
    let asked = match own.strip_prefix(&["v1"]).unwrap_or_default() {
        // Of Services of all namespaces, whatever the query says.
        ["tap"] => Attributes { verb: "get", resource: "services", subresource: "tap", ..Attributes::default() },
        ["routes"] => Attributes { verb: "get", resource: "services", subresource: "routes", ..Attributes::default() },
        ["proxy", namespace, name, ..] => Attributes {
            verb: authz::verb(call),
            resource: "pods",
            subresource: "proxy",
            namespace,
            name,
            ..Attributes::default()
        },
        // What the node runs, and that it begins anew: more than to look at it.
        ["program"] => Attributes {
            verb: authz::verb(call),
            resource: "nodes",
            subresource: "program",
            name: node,
            ..Attributes::default()
        },
        // How much is asked of Services, for whoever scales their pods.
        ["demand"] => return Ok(()),
        _ => return Err(Status::path_not_found()),
    };
    authz::check(cluster, &call.identity, &asked)
}

/// What is done to a pod by way of its node is permitted, and admitted, as it is by way of the pod.
async fn permit_pod(
    cluster: &Cluster,
    call: &Call,
    (verb, subresource): (&str, &str),
    (namespace, pod): (&str, &str),
    container: Option<&str>,
) -> Result<(), Status> {
    let asked = Attributes { verb, resource: "pods", subresource, namespace, name: pod, ..Attributes::default() };
    authz::check(cluster, &call.identity, &asked)?;
    let pods = cluster.catalog.named("", "pods").ok_or_else(Status::path_not_found)?;
    let target = ResourcePath {
        version: "v1".to_owned(),
        namespace: Some(namespace.to_owned()),
        resource: "pods".to_owned(),
        name: Some(pod.to_owned()),
        subresource: Some(subresource.to_owned()),
        ..ResourcePath::default()
    };
    let mut on_pod = Call::acting_on(call, target);
    if let Some(container) = container {
        on_pod.query.set("container", container);
    }
    super::connects(cluster, &on_pod, pods).await
}

/// A node's own server, or another port of the node: but nothing that only this machine itself can reach.
fn node_endpoint(kubelet: Endpoint, scheme: &str, port: &str) -> Result<Endpoint, Status> {
    if port.is_empty() || number(port)? == kubelet.port {
        return Ok(kubelet);
    }
    let address = kubelet.host.trim_matches(['[', ']']).parse::<IpAddr>().map(|address| address.to_canonical());
    let inside = match address {
        Ok(IpAddr::V4(v4)) => v4.is_loopback() || v4.is_link_local() || v4.is_unspecified() || v4.is_multicast(),
        Ok(IpAddr::V6(v6)) => {
            v6.is_loopback() || v6.is_unicast_link_local() || v6.is_unspecified() || v6.is_multicast()
        }
        // A name may lead anywhere.
        Err(_) => true,
    };
    if inside {
        return Err(Status::bad_request("address not allowed"));
    }
    Ok(Endpoint { port: number(port)?, tls: scheme == "https", name: None, ..kubelet })
}

/// `name`, `name:port` or `scheme:name:port`; none for anything else (`SplitSchemeNamePort`).
fn split_target(text: &str) -> Option<(&str, &str, &str)> {
    let parts: Vec<&str> = text.split(':').collect();
    let (scheme, name, port) = match parts.as_slice() {
        [name] => ("", *name, ""),
        [name, port] => ("", *name, *port),
        [scheme, name, port] => (*scheme, *name, *port),
        _ => return None,
    };
    (matches!(scheme, "" | "http" | "https") && !name.is_empty()).then_some((scheme, name, port))
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

/// Passes a request on and its answer back. `below` is where a proxied application stands among this server's paths.
pub(super) async fn pass(
    nodes: &Nodes,
    to: &Endpoint,
    path_and_query: &str,
    passing: Passing,
    below: Option<&str>,
) -> Result<Response, Status> {
    let Passing { call, body, upgrade, peer, connection, place } = passing;
    let places = (nodes.stream(to, call.flow())?, place);
    let method = call.method.clone();
    let mut request = Request::builder()
        .method(method.clone())
        .uri(path_and_query)
        .body(body)
        .map_err(|error| Status::bad_request(format!("the path cannot be passed on: {error}")))?;
    let here = host_of(&call);
    let there = format!("{}:{}", to.host, to.port);
    let mut headers = forwarded(&call.headers);
    if let Some(below) = below {
        let path = call.target.rest.as_str();
        say_who(&mut headers, peer, &here, &format!("{below}{path}"));
        offer_what_is_read_here(&mut headers);
    }
    if let Ok(host) = HeaderValue::from_str(&there) {
        headers.insert(header::HOST, host);
    }
    *request.headers_mut() = headers;
    let mut answer = nodes.send(to, request).await?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        let (mut parts, body) = answer.into_parts();
        remove_hop_by_hop(&mut parts.headers);
        let mut body = nodes::body(body);
        if let Some(below) = below {
            rewrite_location(&mut parts.headers, below, &[&here, &there]);
            let is_whole = method != http::Method::HEAD && parts.status != StatusCode::PARTIAL_CONTENT;
            if let Some(is_compressed) = page(&parts.headers).filter(|_| is_whole && !body.is_end_stream()) {
                // It becomes longer.
                parts.headers.remove(header::CONTENT_LENGTH);
                parts.headers.remove(header::CONTENT_ENCODING);
                let below = below.to_owned();
                let rewrite = Box::new(move |link: &str| within(link, &below, &[&here, &there]));
                body = html::rewritten(body, is_compressed, rewrite);
            }
        }
        // The places are held while the answer goes on.
        let body = body.map_frame(move |frame| {
            let _held = &places;
            frame
        });
        return Ok(Response::from_parts(parts, Body::new(body)));
    }
    let Some(upgrade) = upgrade else {
        return Err(Status::bad_request("the connection of this request cannot be upgraded"));
    };
    let there = hyper::upgrade::on(&mut answer);
    let (parts, _) = answer.into_parts();
    let stopping = nodes.stopping.clone();
    tokio::spawn(async move {
        tunnel(upgrade, there, stopping).await;
        drop((places, connection));
    });
    Ok(Response::from_parts(parts, nodes::empty()))
}

/// The host by which the client knows this server.
fn host_of(call: &Call) -> String {
    let named = call.header(header::HOST).or_else(|| call.uri.authority().map(http::uri::Authority::as_str));
    named.unwrap_or_default().to_owned()
}

/// The client's headers without its credentials, which are for this server alone, and without what is about its
/// connection.
pub(crate) fn forwarded(headers: &HeaderMap) -> HeaderMap {
    let mut out = headers.clone();
    let upgrade = headers.get(header::UPGRADE).cloned();
    authn::strip_credentials(&mut out);
    remove_hop_by_hop(&mut out);
    out.remove(header::HOST);
    if let Some(upgrade) = upgrade {
        out.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        out.insert(header::UPGRADE, upgrade);
    }
    out
}

pub(crate) fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|text| text.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    // What has both is chunked, however long it says that it is (RFC 9112 §6.3).
    if headers.contains_key(header::TRANSFER_ENCODING) {
        headers.remove(header::CONTENT_LENGTH);
    }
    named.iter().chain(&HOP).for_each(|name| drop(headers.remove(name)));
}

/// Adds who has sent a request to the list of those that it has come through, which the client says itself.
pub(crate) fn forwarded_for(headers: &mut HeaderMap, peer: Option<SocketAddr>) {
    let before = headers.get_all(&FORWARDED_FOR).iter().filter_map(|value| value.to_str().ok());
    let before = before.filter(|value| !value.is_empty()).map(str::to_owned);
    let list: Vec<String> = before.chain(peer.map(|peer| peer.ip().to_string())).collect();
    headers.remove(&FORWARDED_FOR);
    if !list.is_empty() {
        headers.extend(HeaderValue::from_str(&list.join(", ")).ok().map(|list| (FORWARDED_FOR, list)));
    }
}

/// Says who asked and for what. Of what the client says itself only the list of those before it stays.
fn say_who(headers: &mut HeaderMap, peer: Option<SocketAddr>, host: &str, uri: &str) {
    forwarded_for(headers, peer);
    let values =
        [(FORWARDED_HOST, host.to_owned()), (FORWARDED_PROTO, "https".to_owned()), (FORWARDED_URI, uri.to_owned())];
    for (name, value) in values {
        headers.remove(&name);
        if let Some(value) = HeaderValue::from_str(&value).ok().filter(|value| !value.is_empty()) {
            headers.insert(name, value);
        }
    }
}

/// A redirection within the application stays within the proxy: paths are put below where the application stands.
fn rewrite_location(headers: &mut HeaderMap, below: &str, own_hosts: &[&str]) {
    let Some(location) = headers.get(header::LOCATION).and_then(|value| value.to_str().ok()) else { return };
    if let Some(new) = within(location, below, own_hosts)
        && let Ok(value) = HeaderValue::from_str(&new)
    {
        headers.insert(header::LOCATION, value);
    }
}

/// Of the client's codings only the one in which a page can be read here ([`page`]).
fn offer_what_is_read_here(headers: &mut HeaderMap) {
    if !headers.contains_key(header::ACCEPT_ENCODING) {
        return;
    }
    let texts = headers.get_all(header::ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    let codings = texts.flat_map(|text| text.split(',')).map(|coding| {
        let (name, weight) = coding.split_once(';').unwrap_or((coding, ""));
        let weight = weight.trim().strip_prefix("q=").and_then(|weight| weight.parse::<f32>().ok());
        (name.trim(), weight.unwrap_or(1.0))
    });
    let codings: Vec<(&str, f32)> = codings.collect();
    let weight = |wanted: &str| codings.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, it)| *it);
    // "*" is whatever has no name of its own (RFC 9110 §12.5.3).
    let takes_gzip = weight("gzip").or_else(|| weight("*")).is_some_and(|weight| weight > 0.0);
    headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static(if takes_gzip { "gzip" } else { "identity" }));
}

/// Whether an answer is a page that can be read, and then whether it is compressed.
fn page(headers: &HeaderMap) -> Option<bool> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind = text(header::CONTENT_TYPE).split(';').next().unwrap_or_default().trim();
    match text(header::CONTENT_ENCODING) {
        _ if !kind.eq_ignore_ascii_case("text/html") => None,
        "" | "identity" => Some(false),
        coding if coding.eq_ignore_ascii_case("gzip") => Some(true),
        _ => None,
    }
}

/// A link to the application itself, put below where it stands; none for one that leads elsewhere or is relative.
fn within(link: &str, below: &str, own_hosts: &[&str]) -> Option<String> {
    let (is_http, rest) = match scheme(link) {
        Some((scheme, rest)) => (scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https"), rest),
        None => (true, link),
    };
    let path = match rest.strip_prefix("//").filter(|_| is_http) {
        Some(rest) => {
            let (host, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
            // Somewhere else altogether.
            if !own_hosts.contains(&host) {
                return None;
            }
            if path.starts_with('/') { path.to_owned() } else { format!("/{path}") }
        }
        None if link.starts_with('/') => link.to_owned(),
        // Relative to what was asked for, or nothing that this server passes on.
        None => return None,
    };
    let below = below.trim_end_matches('/');
    let inside = path.strip_prefix(below).is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', '?', '#']));
    Some(if inside { path } else { format!("{below}{path}") })
}

/// Copies both ways until one side ends.
pub(crate) async fn tunnel(here: OnUpgrade, there: OnUpgrade, stopping: CancellationToken) {
    let (Ok(here), Ok(there)) = tokio::join!(here, there) else { return };
    tokio::select! {
        _ = carry(TokioIo::new(here), TokioIo::new(there)) => {}
        () = stopping.cancelled() => {}
    }
}

/// Copies both ways until the node has said all, or the client has, or can say no more, and was answered for [`LINGER`] still: a node
/// that takes nothing any more may have said how it went.
async fn carry(client: impl AsyncRead + AsyncWrite, node: impl AsyncRead + AsyncWrite) -> io::Result<()> {
    let ((mut from_client, mut to_client), (mut from_node, mut to_node)) = (split(client), split(node));
    let up = async {
        tokio::io::copy(&mut from_client, &mut to_node).await?;
        // Also when that waits behind what the node does not take.
        tokio::time::timeout(LINGER, to_node.shutdown()).await?
    };
    let down = async {
        tokio::io::copy(&mut from_node, &mut to_client).await?;
        to_client.shutdown().await
    };
    let mut down = pin!(down);
    tokio::select! {
        up = up => {
            tokio::time::timeout(LINGER, down).await??;
            up
        }
        down = &mut down => down,
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

    #[tokio::test]
    async fn a_tunnel_ends_with_either_side() {
        use tokio::io::AsyncReadExt as _;
        let within = Duration::from_secs(20);
        // The client says all, and the node answers; then it ends, or never.
        for ends in [true, false] {
            let ((mut client, here), (there, mut node)) = (tokio::io::duplex(64), tokio::io::duplex(64));
            let carried = tokio::spawn(carry(here, there));
            client.write_all(b"ask").await.unwrap();
            client.shutdown().await.unwrap();
            let mut asked = String::new();
            node.read_to_string(&mut asked).await.unwrap();
            node.write_all(b"answer").await.unwrap();
            if ends {
                node.shutdown().await.unwrap();
            }
            let mut answer = String::new();
            let answered = tokio::time::timeout(within, client.read_to_string(&mut answer)).await;
            answered.expect("it ends").unwrap();
            assert_eq!((&*asked, &*answer), ("ask", "answer"));
            assert_eq!(tokio::time::timeout(within, carried).await.expect("it ends").unwrap().is_ok(), ends);
        }
        // The node takes nothing, and has something to say: more than goes through at once.
        let ((mut client, here), (from_node, mut node), (to_node, taken)) =
            (tokio::io::duplex(64), tokio::io::duplex(64), tokio::io::duplex(64));
        drop(taken);
        let carried = tokio::spawn(carry(here, tokio::io::join(from_node, to_node)));
        client.write_all(b"typed").await.unwrap();
        let (said, mut heard) = ([b'x'; 1000], Vec::new());
        let saying = async {
            node.write_all(&said).await.unwrap();
            node.shutdown().await.unwrap();
        };
        let (_, read) = tokio::join!(saying, client.read_to_end(&mut heard));
        assert_eq!((read.unwrap(), heard.as_slice()), (1000, &said[..]));
        assert!(tokio::time::timeout(within, carried).await.expect("it ends").unwrap().is_err());
        // The node has said all: the client is not waited for.
        let ((mut client, here), (there, node)) = (tokio::io::duplex(64), tokio::io::duplex(64));
        let carried = tokio::spawn(carry(here, there));
        drop(node);
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
        tokio::time::timeout(within, carried).await.expect("it ends").unwrap().unwrap();
    }

    #[test]
    fn what_is_chunked_has_no_length() {
        let mut headers = HeaderMap::new();
        headers.insert(header::TRANSFER_ENCODING, "chunked".parse().unwrap());
        headers.insert(header::CONTENT_LENGTH, "5".parse().unwrap());
        remove_hop_by_hop(&mut headers);
        assert!(headers.is_empty(), "{headers:?}");
    }

    #[test]
    fn headers_of_the_connection_stay_behind() {
        let mut given = HeaderMap::new();
        for (name, value) in [
            ("connection", "close, X-Secret"),
            ("x-secret", "of this hop"),
            ("keep-alive", "5"),
            ("te", "trailers"),
            ("authorization", "Bearer x"),
            ("host", "api:6443"),
            ("accept", "*/*"),
        ] {
            given.insert(name, value.parse().unwrap());
        }
        let passed = forwarded(&given);
        assert_eq!(passed.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["accept"]);
        given.insert(header::UPGRADE, "websocket".parse().unwrap());
        let passed = forwarded(&given);
        assert_eq!(
            (&passed["connection"], &passed["upgrade"]),
            (&"Upgrade".parse().unwrap(), &"websocket".parse().unwrap())
        );
        assert!(!passed.contains_key("x-secret"));
    }

    #[test]
    fn an_application_hears_who_asked() {
        let mut headers = HeaderMap::new();
        headers.append(FORWARDED_FOR, "8.8.8.8".parse().unwrap());
        headers.append(FORWARDED_FOR, "9.9.9.9".parse().unwrap());
        headers.insert(FORWARDED_HOST, "forged".parse().unwrap());
        say_who(&mut headers, Some("1.2.3.4:5".parse().unwrap()), "api:6443", "/a/proxy/x");
        for (name, expected) in [
            ("x-forwarded-for", "8.8.8.8, 9.9.9.9, 1.2.3.4"),
            ("x-forwarded-host", "api:6443"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-uri", "/a/proxy/x"),
        ] {
            assert_eq!(headers[name], expected);
        }
    }

    #[test]
    fn redirections_stay_within_the_proxy() {
        let below = "/api/v1/namespaces/t/services/echo:8080/proxy";
        for (location, expected) in [
            ("/x", "/api/v1/namespaces/t/services/echo:8080/proxy/x"),
            ("/x/?a=b#c", "/api/v1/namespaces/t/services/echo:8080/proxy/x/?a=b#c"),
            ("http://10.0.0.1:10250/x", "/api/v1/namespaces/t/services/echo:8080/proxy/x"),
            ("https://api:6443", "/api/v1/namespaces/t/services/echo:8080/proxy/"),
            ("/api/v1/namespaces/t/services/echo:8080/proxy/y", "/api/v1/namespaces/t/services/echo:8080/proxy/y"),
            (
                "/api/v1/namespaces/t/services/echo:8080/proxyish",
                "/api/v1/namespaces/t/services/echo:8080/proxy/api/v1/namespaces/t/services/echo:8080/proxyish",
            ),
            (
                "/login?next=http://example.com/",
                "/api/v1/namespaces/t/services/echo:8080/proxy/login?next=http://example.com/",
            ),
            ("//api:6443/x", "/api/v1/namespaces/t/services/echo:8080/proxy/x"),
            ("HTTPS://api:6443/x", "/api/v1/namespaces/t/services/echo:8080/proxy/x"),
            ("mailto:/x", "mailto:/x"),
            ("x", "x"),
            ("x?next=http://api:6443/", "x?next=http://api:6443/"),
            ("https://example.com/x", "https://example.com/x"),
            ("//example.com/x", "//example.com/x"),
        ] {
            let mut headers = HeaderMap::from_iter([(header::LOCATION, location.parse().unwrap())]);
            rewrite_location(&mut headers, below, &["api:6443", "10.0.0.1:10250"]);
            assert_eq!(headers[header::LOCATION], expected, "{location}");
        }
    }

    #[test]
    fn an_application_is_offered_what_can_be_read_here() {
        for (given, expected) in [
            (&["gzip, deflate, br, zstd"][..], Some("gzip")),
            (&["br", "gzip;q=0.5"], Some("gzip")),
            (&["*"], Some("gzip")),
            (&["br, gzip;q=0"], Some("identity")),
            (&["gzip;q=0, *"], Some("identity")),
            (&["*", "GZIP;q=0"], Some("identity")),
            (&["*;q=0, gzip"], Some("gzip")),
            (&[""], Some("identity")),
            (&[], None),
        ] {
            let given = given.iter().map(|value| (header::ACCEPT_ENCODING, HeaderValue::from_str(value).unwrap()));
            let mut headers: HeaderMap = HeaderMap::new();
            given.for_each(|(name, value)| _ = headers.append(name, value));
            offer_what_is_read_here(&mut headers);
            let offered: Vec<_> = headers.get_all(header::ACCEPT_ENCODING).iter().collect();
            assert_eq!(offered, expected.into_iter().collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_page_is_read_when_it_is_one_and_can_be() {
        for (kind, coding, expected) in [
            ("text/html; charset=utf-8", "", Some(false)),
            ("TEXT/HTML", "identity", Some(false)),
            ("text/html", "gzip", Some(true)),
            ("text/html", "br", None),
            ("text/htmlx", "", None),
            ("application/json", "gzip", None),
        ] {
            let mut headers = HeaderMap::from_iter([(header::CONTENT_TYPE, kind.parse().unwrap())]);
            if !coding.is_empty() {
                headers.insert(header::CONTENT_ENCODING, coding.parse().unwrap());
            }
            assert_eq!(page(&headers), expected, "{kind} {coding}");
        }
    }

    #[test]
    fn a_node_s_ports_are_not_a_way_to_this_machine_s_own() {
        let at =
            |host: &str| Endpoint { host: host.to_owned(), port: 10250, tls: true, name: None, node: "n".to_owned() };
        for (host, port, expected) in [
            ("127.0.0.1", "", Some(10250)),
            ("127.0.0.1", "10250", Some(10250)),
            ("127.0.0.1", "5000", None),
            ("::ffff:127.0.0.1", "5000", None),
            ("169.254.169.254", "80", None),
            ("localhost", "5000", None),
            ("192.0.2.7", "5000", Some(5000)),
        ] {
            let found = node_endpoint(at(host), "http", port).ok().map(|endpoint| endpoint.port);
            assert_eq!(found, expected, "{host} {port}");
        }
    }

    #[test]
    fn targets_have_a_scheme_and_a_port_or_not() {
        for (text, expected) in [
            ("p", Some(("", "p", ""))),
            ("p:8080", Some(("", "p", "8080"))),
            (":p:80", Some(("", "p", "80"))),
            ("https:p:", Some(("https", "p", ""))),
            ("https:p:web", Some(("https", "p", "web"))),
            ("ftp:p:80", None),
            ("'x':p:80", None),
            ("http:p:80:x", None),
            (":80", None),
        ] {
            assert_eq!(split_target(text), expected);
        }
    }
}
