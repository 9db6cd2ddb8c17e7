//! `/coracle/v1/proxy/{namespace}/{pod}/{port}/…`: an API server's requests to a pod, for `pods/proxy` and `services/proxy`.
//! (A kubelet needs no such path: its pods have addresses that an API server can dial.) `https:PORT` is a port at which the pod speaks
//! TLS itself.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse as _, Response};
use coracle_policy::Source;
use coracle_proxy::{BoxError, Error, Local};
use http_body_util::BodyExt as _;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;

use super::places::{Place, hold};
use super::refusal;
use crate::network::{Within, over, secured};
use crate::pod::Pods;
use crate::pod::core::specs;

/// A port by its number, or by the name that a container gives it.
fn port_of(pod: &Pod, port: &str) -> Option<u16> {
    let named = || {
        let mut ports = specs(pod).flat_map(|container| container.ports.iter().flatten());
        ports
            .find(|named| named.name.as_deref() == Some(port))
            .and_then(|named| u16::try_from(named.container_port).ok())
    };
    port.parse().ok().or_else(named).filter(|port| *port > 0)
}

/// Passes the request on to the pod's port, without the prefix. A connection that is to change its protocol is passed on as what
/// it becomes (`WebSocket`), where the pod listens itself. Headers of one connection are the proxy's affair.
pub async fn any(
    State(pods): State<Arc<Pods>>,
    Path(path): Path<HashMap<String, String>>,
    mut request: Request,
) -> Response {
    let (namespace, name, port) = (&path["namespace"], &path["pod"], path["port"].as_str());
    let (is_secure, port) = port.strip_prefix("https:").map_or((false, port), |port| (true, port));
    let slot = pods.find(namespace, name);
    let Some((slot, address)) = slot.and_then(|slot| slot.address().map(|address| (slot, address))) else {
        return refusal(StatusCode::NOT_FOUND, format!("pod {name:?} does not run on this node"));
    };
    let Some(port) = port_of(&slot.pod(), port) else {
        return refusal(StatusCode::BAD_REQUEST, format!("invalid port {port:?}"));
    };
    // The text as it came: a decoded path is not the same path.
    let rest = request.uri().path().splitn(8, '/').nth(7).unwrap_or_default();
    let query = request.uri().query().map(|query| format!("?{query}")).unwrap_or_default();
    let authority = SocketAddr::new(address.pod, port).to_string();
    let uri = match format!("http://{authority}/{rest}{query}").parse::<Uri>() {
        Ok(uri) => uri,
        Err(error) => return refusal(StatusCode::BAD_REQUEST, error.to_string()),
    };
    if is_secure {
        return secure(&pods, SocketAddr::new(address.pod, port), uri, request).await;
    }
    let client = coracle_proxy::wanted_upgrade(request.headers()).map(|_| hyper::upgrade::on(&mut request));
    let (mut parts, body) = request.into_parts();
    let place = parts.extensions.remove::<Place>();
    parts.uri = uri;
    if !parts.headers.contains_key(header::HOST)
        && let Ok(host) = authority.parse()
    {
        parts.headers.insert(header::HOST, host);
    }
    let request = Request::from_parts(parts, body.map_err(BoxError::from).boxed_unsync());
    match pods.context.network.proxy.call(&Source::Node, namespace, request).await {
        Ok(mut response) => {
            if let (Some(client), StatusCode::SWITCHING_PROTOCOLS) = (client, response.status()) {
                let kept = response.extensions_mut().remove::<coracle_proxy::Kept>();
                let pod = hyper::upgrade::on(&mut response);
                // Ends with either side: the API server's connection, or the pod's.
                tokio::spawn(hold(place, async move {
                    let _kept = kept;
                    if let Err(error) = coracle_proxy::tunnel(client, pod).await {
                        tracing::trace!(%error, "tunnel to a pod");
                    }
                }));
            }
            response.map(Body::new).into_response()
        }
        Err(error) => unavailable(&error, &authority),
    }
}

/// Passes a request on to a pod that speaks TLS itself.
async fn secure(pods: &Pods, endpoint: SocketAddr, uri: Uri, request: Request) -> Response {
    let network = &pods.context.network;
    let failed = |why: String| {
        let message = format!("error trying to reach service: dial tcp {endpoint}: {why}");
        refusal(StatusCode::SERVICE_UNAVAILABLE, message)
    };
    if coracle_proxy::wanted_upgrade(request.headers()).is_some() {
        return failed("a connection with TLS does not change its protocol here".to_owned());
    }
    let at = match network.local(endpoint.ip(), endpoint.port()) {
        Some(Local::Tcp(at)) => at,
        Some(Local::Http(_)) => return failed("a component of wasi:http is called, and speaks no TLS".to_owned()),
        None => return failed("connect: connection refused".to_owned()),
    };
    let (mut parts, body) = request.into_parts();
    parts.uri = uri;
    let place = parts.extensions.remove::<Place>();
    coracle_proxy::strip_connection_headers(&mut parts.headers);
    let request = Request::from_parts(parts, body.map_err(BoxError::from).boxed_unsync());
    let stream = match network.dial(at).await {
        Ok(stream) => stream,
        Err(error) if error.kind() == std::io::ErrorKind::TimedOut => return failed("i/o timeout".to_owned()),
        Err(_) => return failed("connect: connection refused".to_owned()),
    };
    let answered = match secured(stream, &endpoint.ip().to_string(), Within::Http).await {
        Ok(stream) => over(TokioIo::new(stream), request).await,
        Err(error) => return failed(format!("tls: {error}")),
    };
    match answered {
        Ok(mut response) => {
            coracle_proxy::strip_connection_headers(response.headers_mut());
            let (parts, body) = response.into_parts();
            // The place is held while the answer goes on.
            let body = body.map_frame(move |frame| {
                let _held = &place;
                frame
            });
            Response::from_parts(parts, Body::new(body))
        }
        Err(error) => failed(error.to_string()),
    }
}

/// No answer, in the words of an API server that has dialled the pod itself: the pod's address, and never where it really is.
fn unavailable(error: &Error, authority: &str) -> Response {
    let mut why = None;
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            why = Some(match io.kind() {
                std::io::ErrorKind::ConnectionRefused => "connect: connection refused".to_owned(),
                std::io::ErrorKind::TimedOut => "i/o timeout".to_owned(),
                _ => "EOF".to_owned(),
            });
        }
        cause = error.source();
    }
    let why = why.unwrap_or_else(|| match error {
        Error::Failed { source, .. } => source.to_string(),
        other => other.to_string(),
    });
    refusal(StatusCode::SERVICE_UNAVAILABLE, format!("error trying to reach service: dial tcp {authority}: {why}"))
}
