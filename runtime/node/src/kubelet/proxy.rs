//! `/coracle/v1/proxy/{namespace}/{pod}/{port}/…`: an API server's requests to a pod, for `pods/proxy` and `services/proxy`.
//! (A kubelet needs no such path: its pods have addresses that an API server can dial.)

use std::collections::HashMap;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderName, StatusCode, Uri, header};
use axum::response::{IntoResponse as _, Response};
use coracle_proxy::{BoxError, Error};
use http_body_util::BodyExt as _;
use k8s_openapi::api::core::v1::Pod;

use super::refusal;
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

/// Passes the request on to the pod's port, without the prefix.
pub async fn any(
    State(pods): State<Arc<Pods>>,
    Path(path): Path<HashMap<String, String>>,
    request: Request,
) -> Response {
    let (namespace, name, port) = (&path["namespace"], &path["pod"], &path["port"]);
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
    let authority = std::net::SocketAddr::new(address.pod, port).to_string();
    let uri = match format!("http://{authority}/{rest}{query}").parse::<Uri>() {
        Ok(uri) => uri,
        Err(error) => return refusal(StatusCode::BAD_REQUEST, error.to_string()),
    };
    let (mut parts, body) = request.into_parts();
    parts.uri = uri;
    if !parts.headers.contains_key(header::HOST)
        && let Ok(host) = authority.parse()
    {
        parts.headers.insert(header::HOST, host);
    }
    strip_hop_headers(&mut parts.headers);
    let request = Request::from_parts(parts, body.map_err(BoxError::from).boxed_unsync());
    match pods.context.network.proxy.call(namespace, request).await {
        Ok(mut response) => {
            strip_hop_headers(response.headers_mut());
            response.map(Body::new).into_response()
        }
        Err(error) => unavailable(&error, &authority),
    }
}

/// Takes away what is meant for one connection only: the known ones, and those that `Connection` names (RFC 9110 §7.6.1).
fn strip_hop_headers(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    const KNOWN: [HeaderName; 7] = [
        header::CONNECTION,
        header::PROXY_AUTHENTICATE,
        header::PROXY_AUTHORIZATION,
        header::TE,
        header::TRAILER,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
    ];
    for name in KNOWN.into_iter().chain([HeaderName::from_static("keep-alive")]).chain(named) {
        headers.remove(name);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_for_one_connection_stays_there() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "keep-alive, X-Secret"),
            ("keep-alive", "timeout=5"),
            ("x-secret", "1"),
            ("te", "trailers"),
            ("proxy-authorization", "Basic x"),
            ("accept", "*/*"),
        ] {
            headers.insert(name, value.parse().unwrap());
        }
        strip_hop_headers(&mut headers);
        assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["accept"]);
    }
}
