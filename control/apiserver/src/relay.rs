//! Requests for group versions that another API server serves: passed on to it with who asks, and its answers passed back.
//!
//! Who asks is said in headers (`X-Remote-User` and its like, kubernetes-api §23), which the other server believes because this
//! one proves that it is the front proxy. A client's own headers of these names, its credentials and its wishes to act as
//! somebody go no further than here.
//!
//! A request that is passed on has a place among the streams of its caller and of its APIService, and no seat: whoever waits for
//! another server takes nothing from those who are answered here.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use coracle_api::status::Status;
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, header};
use http_body_util::BodyExt as _;
use tokio_util::sync::CancellationToken;

use crate::aggregation::Backend;
use crate::answer::respond;
use crate::callout;
use crate::cluster::Cluster;
use crate::hooks::Place;
use crate::identity::Identity;
use crate::limits::Flow;
use crate::outward::{self, Target};
use crate::subresources::{Passing, forwarded, remove_hop_by_hop, tunnel};

const USER: HeaderName = HeaderName::from_static("x-remote-user");
const UID: HeaderName = HeaderName::from_static("x-remote-uid");
const GROUP: HeaderName = HeaderName::from_static("x-remote-group");
const EXTRA: &str = "x-remote-extra-";
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// How long it may take to reach a server.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Where a request goes.
fn target(cluster: &Cluster, backend: &Backend, path: &str, query: &str) -> Result<Target, String> {
    let place = Place::Service {
        namespace: backend.namespace.clone(),
        name: backend.service.clone(),
        port: backend.port,
        path: path.to_owned(),
    };
    callout::target(cluster, &place, backend.passage.has_authorities(), query)
}

/// Says in whose name a request is made.
fn say_who(headers: &mut HeaderMap, who: &Identity) {
    let mut add = |name: HeaderName, value: &str| {
        if let Ok(value) = HeaderValue::from_bytes(value.as_bytes()) {
            headers.append(name, value);
        }
    };
    add(USER, &who.user);
    if !who.uid.is_empty() {
        add(UID, &who.uid);
    }
    for group in &who.groups {
        add(GROUP, group);
    }
    for (key, values) in &who.extra {
        let Ok(name) = HeaderName::try_from(format!("{EXTRA}{}", escaped(key))) else { continue };
        for value in values {
            add(name.clone(), value);
        }
    }
}

/// A key as part of the name of a header: what may not stand there is percent-encoded (as client-go does it).
fn escaped(key: &str) -> String {
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$&'*+-.^_`|~".contains(&byte);
    let text = |byte: u8| if is_token(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    key.to_ascii_lowercase().bytes().map(text).collect()
}

/// What the reference says of a server that cannot be asked.
fn unavailable() -> Response {
    respond::text(503, "service unavailable\n")
}

/// Passes a request on to this path, with its own query, and its answer back, which begins within `longest`.
pub(crate) async fn pass(
    cluster: &Cluster,
    stopping: &CancellationToken,
    passing: Passing,
    backend: &Arc<Backend>,
    (path, longest): (&str, Duration),
) -> Result<Response, Status> {
    let Passing { call, body, upgrade, peer, connection, place } = passing;
    if !backend.is_available {
        return Ok(unavailable());
    }
    let places = (cluster.backends.streams.take(&backend.name, call.flow())?, place);
    let query = call.uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    let target = match target(cluster, backend, path, &query) {
        Ok(target) => target,
        Err(why) => {
            tracing::debug!(api_service = &*backend.name, why, "there is no way to it");
            return Ok(unavailable());
        }
    };
    let mut request = Request::builder()
        .method(call.method.clone())
        .uri(target.path.as_str())
        .body(body)
        .map_err(|error| Status::bad_request(format!("the path cannot be passed on: {error}")))?;
    let mut headers = forwarded(&call.headers);
    say_who(&mut headers, &call.identity);
    if let Some(peer) = peer {
        let before = headers.get(&FORWARDED_FOR).and_then(|value| value.to_str().ok()).map(|text| format!("{text}, "));
        let list = format!("{}{}", before.unwrap_or_default(), peer.ip());
        if let Ok(list) = HeaderValue::from_str(&list) {
            headers.insert(FORWARDED_FOR, list);
        }
    }
    headers.extend(HeaderValue::from_str(&target.host).ok().map(|host| (header::HOST, host)));
    *request.headers_mut() = headers;
    let failed = |why: String| respond::text(503, format!("error trying to reach service: {}\n", outward::words(&why)));
    let send = async {
        let open = tokio::time::timeout(CONNECT_TIMEOUT, backend.passage.open(&cluster.nodes, &target, call.flow()));
        let mut sender = open.await.map_err(|_| "i/o timeout".to_owned())??;
        sender.send_request(request).await.map_err(|error| error.to_string())
    };
    let mut answer = match tokio::time::timeout(longest, send).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(why)) => return Ok(failed(why)),
        Err(_) => return Err(Status::timeout("request did not complete within the allotted timeout", 0)),
    };
    // A client that follows it would take its credentials where another server sends it (CVE-2022-3172).
    if answer.status().is_redirection() && answer.headers().contains_key(header::LOCATION) {
        return Ok(respond::text(502, "the backend attempted to redirect this request, which is not permitted"));
    }
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        let (mut parts, body) = answer.into_parts();
        remove_hop_by_hop(&mut parts.headers);
        // Theirs say where the request belonged there.
        for name in ["x-kubernetes-pf-flowschema-uid", "x-kubernetes-pf-prioritylevel-uid", "audit-id"] {
            parts.headers.remove(name);
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
    let stopping = stopping.clone();
    tokio::spawn(async move {
        tunnel(upgrade, there, stopping).await;
        drop((places, connection));
    });
    Ok(Response::from_parts(parts, Body::empty()))
}

/// An answer that was read whole.
pub(crate) struct Read {
    pub code: StatusCode,
    pub body: Bytes,
    /// As errors call what was asked.
    pub url: String,
}

/// Asks a server for itself, in the name of `who`, and reads at most so many bytes within a time.
///
/// # Errors
/// What was asked, and why there is no answer.
pub(crate) async fn fetch(
    cluster: &Cluster,
    backend: &Backend,
    who: (&str, &[&str]),
    path: &str,
    extra: &[(HeaderName, String)],
    (most, within): (usize, Duration),
) -> Result<Read, (String, String)> {
    let target = target(cluster, backend, path, "").map_err(|why| (String::new(), why))?;
    let url = match &target.way {
        outward::Way::Direct { host, port } => format!("https://{host}:{port}{path}"),
        outward::Way::Node { .. } | outward::Way::Tunnel { .. } => target.url.clone(),
    };
    let flow = Flow { class: crate::limits::Class::Own, name: "system:apiserver" };
    let asked = async {
        let _place = cluster.backends.streams.take(&backend.name, flow).map_err(|status| status.message.clone())?;
        let mut request = Request::get(target.path.as_str()).body(Body::empty()).map_err(|error| error.to_string())?;
        let identity = Identity {
            user: who.0.to_owned(),
            groups: who.1.iter().map(|group| (*group).to_owned()).collect(),
            uid: String::new(),
            extra: std::collections::BTreeMap::new(),
        };
        let headers = request.headers_mut();
        say_who(headers, &identity);
        headers.extend(HeaderValue::from_str(&target.host).ok().map(|host| (header::HOST, host)));
        headers.insert(header::USER_AGENT, HeaderValue::from_static("kube-aggregator"));
        for (name, value) in extra {
            headers.extend(HeaderValue::from_str(value).ok().map(|value| (name.clone(), value)));
        }
        let mut sender = backend.passage.open(&cluster.nodes, &target, flow).await?;
        let answer = sender.send_request(request).await.map_err(|error| error.to_string())?;
        let (parts, mut incoming) = answer.into_parts();
        let mut body = BytesMut::new();
        while let Some(frame) = incoming.frame().await {
            let Ok(data) = frame.map_err(|error| error.to_string())?.into_data() else { continue };
            if body.len() + data.len() > most {
                return Err(format!("the answer is larger than {most} bytes"));
            }
            body.extend_from_slice(&data);
        }
        Ok::<_, String>((parts, body.freeze()))
    };
    match tokio::time::timeout(within, asked).await {
        Ok(Ok((parts, body))) => Ok(Read { code: parts.status, body, url }),
        Ok(Err(why)) => Err((url, outward::words(&why))),
        Err(_) => Err((url, "context deadline exceeded (Client.Timeout exceeded while awaiting headers)".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_is_said_in_headers() {
        let mut who = Identity::authenticated("süß", vec!["a".to_owned()]);
        who.uid = "u".to_owned();
        who.extra.insert("authentication.kubernetes.io/Pod-name".to_owned(), vec!["p".to_owned(), "q".to_owned()]);
        let mut headers = HeaderMap::new();
        say_who(&mut headers, &who);
        let all = |name: &str| -> Vec<String> {
            let values = headers.get_all(name).iter();
            values.map(|value| String::from_utf8(value.as_bytes().to_vec()).unwrap()).collect()
        };
        assert_eq!(all("x-remote-user"), ["süß"]);
        assert_eq!(all("x-remote-uid"), ["u"]);
        assert_eq!(all("x-remote-group"), ["a", "system:authenticated"]);
        assert_eq!(all("x-remote-extra-authentication.kubernetes.io%2fpod-name"), ["p", "q"]);
    }
}
