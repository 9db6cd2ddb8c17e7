//! Requests of the node to its pods: lifecycle hooks and the substance of probes.

use std::time::Duration;

use bytes::Bytes;
use coracle_proxy::{Body, BoxError, Local};
use http::{HeaderName, HeaderValue, Request, Response, header};
use http_body_util::BodyExt as _;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Container as Spec, HTTPGetAction, LifecycleHandler, TCPSocketAction};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::net::TcpStream;

use crate::context::Context;
use crate::network::GuestNetwork;

/// A hook's request may take this long.
const HOOK_TIMEOUT: Duration = Duration::from_secs(30);
/// What of an answer's body is read, so that its end is seen (kubelet's `maxRespBodyLength`).
const BODY_BYTES_MAX: usize = 10 << 10;
/// As which client the node asks.
const USER_AGENT: &str = "kube-probe/1.37";

/// Runs a lifecycle hook.
pub async fn run(
    context: &Context,
    network: &GuestNetwork,
    spec: &Spec,
    hook: &LifecycleHandler,
) -> Result<(), String> {
    if let Some(sleep) = &hook.sleep {
        tokio::time::sleep(Duration::from_secs(sleep.seconds.max(0).unsigned_abs())).await;
        return Ok(());
    }
    let request = async {
        if let Some(get) = &hook.http_get {
            let status = http_get(context, network, spec, get).await?;
            return if status < 400 { Ok(()) } else { Err(format!("HTTP hook failed with statuscode: {status}")) };
        }
        match &hook.tcp_socket {
            Some(socket) => tcp_socket(context, network, spec, socket).await,
            None => Ok(()),
        }
    };
    tokio::time::timeout(HOOK_TIMEOUT, request).await.unwrap_or_else(|_| Err("timed out".to_owned()))
}

/// Opens a connection to a pod's port, and closes it.
pub async fn tcp_socket(
    context: &Context,
    network: &GuestNetwork,
    spec: &Spec,
    socket: &TCPSocketAction,
) -> Result<(), String> {
    let port = resolve_port(spec, &socket.port)?;
    let (host, local) = target(context, network, socket.host.as_deref(), port);
    match local {
        Some(Local::Http(_)) => Ok(()),
        Some(Local::Tcp(address)) => connect(address, &host, port).await.map(drop),
        None => connect((host.as_str(), port), &host, port).await.map(drop),
    }
}

/// Sends a request to a pod's port and returns the status of the answer.
pub async fn http_get(
    context: &Context,
    network: &GuestNetwork,
    spec: &Spec,
    get: &HTTPGetAction,
) -> Result<u16, String> {
    let port = resolve_port(spec, &get.port)?;
    let (host, local) = target(context, network, get.host.as_deref(), port);
    let path = get.path.as_deref().filter(|path| !path.is_empty()).unwrap_or("/");
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    let shown = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    let url = format!("http://{shown}{path}");
    let request = request(get, &url, &shown).map_err(|error| format!("Get {url:?}: {error}"))?;
    let failed = |error: BoxError| format!("Get {url:?}: {error}");
    let response = match local {
        Some(Local::Http(service)) => service.call(request).await.map_err(failed)?,
        Some(Local::Tcp(address)) => {
            let stream = connect(address, &host, port).await.map_err(|error| format!("Get {url:?}: {error}"))?;
            over(stream, request).await.map_err(failed)?
        }
        None => {
            let stream = connect((host.as_str(), port), &host, port).await;
            over(stream.map_err(|error| format!("Get {url:?}: {error}"))?, request).await.map_err(failed)?
        }
    };
    let status = response.status().as_u16();
    // A guest that fails while it writes the body has not answered.
    let mut body = response.into_body();
    let mut left = BODY_BYTES_MAX;
    while let Some(frame) = body.frame().await {
        let read = frame.map_err(failed)?.data_ref().map_or(0, Bytes::len);
        left = left.saturating_sub(read);
        if left == 0 {
            break;
        }
    }
    Ok(status)
}

/// Where a probe goes: the pod, unless another host is written.
fn target(context: &Context, network: &GuestNetwork, host: Option<&str>, port: u16) -> (String, Option<Local>) {
    let own = network.address.pod;
    match host.filter(|host| !host.is_empty() && *host != own.to_string()) {
        Some(host) => (host.to_owned(), None),
        None => (
            own.to_string(),
            context.network.local(own, port).or(Some(Local::Tcp(std::net::SocketAddr::new(
                network.address.loopback,
                context.network.table.twin_port(port),
            )))),
        ),
    }
}

fn request(get: &HTTPGetAction, url: &str, host: &str) -> Result<Request<Body>, http::Error> {
    let mut request = Request::get(url).header(header::USER_AGENT, USER_AGENT).header(header::ACCEPT, "*/*");
    let mut named = false;
    for given in get.http_headers.iter().flatten() {
        let name = HeaderName::try_from(&given.name)?;
        named |= name == header::HOST;
        let value = HeaderValue::try_from(&given.value)?;
        if let Some(headers) = request.headers_mut() {
            match name {
                // One that is given replaces ours.
                header::USER_AGENT | header::ACCEPT => drop(headers.insert(name, value)),
                _ => drop(headers.append(name, value)),
            }
        }
    }
    if !named {
        request = request.header(header::HOST, host);
    }
    request.body(coracle_engine::empty())
}

async fn over(stream: TcpStream, mut request: Request<Body>) -> Result<Response<Body>, BoxError> {
    // On a connection of its own a request names a path only.
    let path = request.uri().path_and_query().cloned().unwrap_or_else(|| http::uri::PathAndQuery::from_static("/"));
    *request.uri_mut() = path.into();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let driven = tokio::spawn(connection);
    let response = sender.send_request(request).await?;
    let ended = AbortOnDrop(driven);
    Ok(response.map(move |body| {
        let body = body.map_err(BoxError::from).map_frame(move |frame: http_body::Frame<Bytes>| {
            // The connection lives as long as somebody reads from it.
            let _ = &ended;
            frame
        });
        body.boxed_unsync()
    }))
}

struct AbortOnDrop(tokio::task::JoinHandle<hyper::Result<()>>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn connect(address: impl tokio::net::ToSocketAddrs, host: &str, port: u16) -> Result<TcpStream, String> {
    let failed = |error: std::io::Error| {
        let why = match error.kind() {
            std::io::ErrorKind::ConnectionRefused => "connect: connection refused".to_owned(),
            _ => error.to_string(),
        };
        format!("dial tcp {host}:{port}: {why}")
    };
    TcpStream::connect(address).await.map_err(failed)
}

/// A port by its number or by the name it has in the container.
fn resolve_port(spec: &Spec, port: &IntOrString) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(name) => name.parse().ok().or_else(|| {
            let ports = spec.ports.iter().flatten();
            ports.clone().find(|port| port.name.as_deref() == Some(name)).map(|port| port.container_port)
        }),
    };
    let number = number.and_then(|number| u16::try_from(number).ok()).filter(|number| *number > 0);
    number.ok_or_else(|| match port {
        IntOrString::Int(number) => format!("invalid port number: {number}"),
        IntOrString::String(name) => format!("couldn't find port: {name:?} in {:?}", spec.name),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn resolves_ports_by_name() {
        let spec =
            serde_json::from_value(json!({"name": "c", "ports": [{"name": "web", "containerPort": 80}]})).unwrap();
        for (port, expected) in [
            (IntOrString::Int(8080), Ok(8080)),
            (IntOrString::String("web".to_owned()), Ok(80)),
            (IntOrString::String("81".to_owned()), Ok(81)),
            (IntOrString::String("x".to_owned()), Err("couldn't find port: \"x\" in \"c\"".to_owned())),
            (IntOrString::Int(0), Err("invalid port number: 0".to_owned())),
        ] {
            assert_eq!(resolve_port(&spec, &port), expected);
        }
    }
}
