//! `/portForward`: a client's connections to ports of a pod.
//!
//! Three forms (kubernetes-api §13.3): SPDY/3.1 tunnelled in a WebSocket (kubectl), SPDY/3.1 itself (older clients), and
//! numbered channels of a WebSocket (clients in other languages). All end in [`forward`].

use std::collections::HashMap;
use std::sync::Arc;

use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use coracle_proxy::Local;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, DuplexStream};
use tokio::sync::mpsc;

use super::places::Place;
use super::upgrade::{self, Wanted};
use super::{channels, refusal, spdy};
use crate::network::pass;
use crate::pod::{Pods, Slot};

/// SPDY in a WebSocket.
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
/// Streams of a SPDY connection.
const STREAMS: &str = "portforward.k8s.io";
/// Half-opened requests (one of two streams has come) on one connection.
const PENDING_MAX: usize = 256;

/// Answers by changing to one of the protocols.
pub async fn any(
    State(pods): State<Arc<Pods>>,
    Path(path): Path<HashMap<String, String>>,
    mut request: Request,
) -> Response {
    let (namespace, name) = (path["namespace"].as_str(), path["pod"].as_str());
    let Some(slot) = pods.find(namespace, name) else {
        return refusal(StatusCode::NOT_FOUND, format!("pod does not exist: {name:?}"));
    };
    if path.get("uid").is_some_and(|uid| **uid != *slot.uid) {
        return refusal(StatusCode::NOT_FOUND, format!("pod does not exist: {name:?}"));
    }
    let ports = match channels::ports(request.uri().query().unwrap_or_default()) {
        Ok(ports) => ports,
        Err(message) => return refusal(StatusCode::BAD_REQUEST, message),
    };
    let place = request.extensions_mut().remove::<Place>();
    match Wanted::of(request.headers()) {
        Wanted::WebSocket(offered) => {
            let chosen = offered.iter().find(|name| *name == TUNNEL || *name == channels::PROTOCOL);
            let Some(chosen) = chosen.cloned() else {
                let message = format!("unable to upgrade: none of {offered:?} is supported");
                return refusal(StatusCode::BAD_REQUEST, message);
            };
            let Some((response, upgrading)) = upgrade::accept_websocket(&mut request, Some(&chosen)) else {
                return refusal(StatusCode::BAD_REQUEST, "the WebSocket handshake has no key".to_owned());
            };
            tokio::spawn(async move {
                let _place = place;
                match chosen == TUNNEL {
                    true => tunnelled(pods, slot, upgrading).await,
                    false => channelled(pods, slot, upgrading, ports).await,
                }
            });
            response
        }
        Wanted::Spdy(offered) => {
            // Clients of old offer nothing and mean the same.
            if !offered.is_empty() && !offered.iter().any(|name| name == STREAMS) {
                return refusal(StatusCode::FORBIDDEN, format!("unable to upgrade: none of {offered:?} is supported"));
            }
            let (response, upgrading) = upgrade::accept_spdy(&mut request, STREAMS);
            tokio::spawn(async move {
                let _place = place;
                match upgrading.await {
                    Ok(upgraded) => streams(pods, slot, TokioIo::new(upgraded)).await,
                    Err(error) => tracing::debug!(%error, "port-forward"),
                }
            });
            response
        }
        Wanted::Nothing => refusal(StatusCode::BAD_REQUEST, "Upgrade request required".to_owned()),
    }
}

async fn tunnelled(pods: Arc<Pods>, slot: Arc<Slot>, upgrading: OnUpgrade) {
    match upgrading.await {
        Ok(upgraded) => {
            let (stream, pump) = upgrade::tunnel(upgrade::websocket(upgraded).await);
            tokio::join!(streams(pods, slot, stream), pump);
        }
        Err(error) => tracing::debug!(%error, "port-forward"),
    }
}

async fn channelled(pods: Arc<Pods>, slot: Arc<Slot>, upgrading: OnUpgrade, ports: Vec<u16>) {
    match upgrading.await {
        Ok(upgraded) => {
            let socket = upgrade::websocket(upgraded).await;
            channels::serve(socket, &ports, |port, stream| {
                let (pods, slot) = (pods.clone(), slot.clone());
                async move { forward(&pods, &slot, port, stream).await }
            })
            .await;
        }
        Err(error) => tracing::debug!(%error, "port-forward"),
    }
}

/// Serves a SPDY connection: streams come in pairs, one for data and one for errors.
async fn streams<S: AsyncRead + AsyncWrite + Send + 'static>(pods: Arc<Pods>, slot: Arc<Slot>, io: S) {
    let (sender, mut opened) = mpsc::channel(16);
    let serving = tokio::spawn(spdy::serve(io, sender));
    let mut pending: HashMap<String, spdy::Stream> = HashMap::new();
    while let Some(stream) = opened.recv().await {
        let header = |name: &str| stream.headers.get(name).map(String::as_str).unwrap_or_default();
        // Clients of old number nothing: there the port pairs them.
        let id = Some(header("requestid")).filter(|id| !id.is_empty()).unwrap_or_else(|| header("port")).to_owned();
        let Some(first) = pending.remove(&id) else {
            if pending.len() < PENDING_MAX {
                pending.insert(id, stream);
            }
            continue;
        };
        let kind = |stream: &spdy::Stream| stream.headers.get("streamtype").cloned().unwrap_or_default();
        let (data, error) = match (kind(&first).as_str(), kind(&stream).as_str()) {
            ("data", "error") => (first, stream),
            ("error", "data") => (stream, first),
            _ => continue,
        };
        let (pods, slot) = (pods.clone(), slot.clone());
        let gone = data.gone.clone();
        tokio::spawn(async move {
            // The client may be gone while the pod says nothing, and will not.
            tokio::select! {
                () = pair(&pods, &slot, data, error.io) => {}
                () = gone.cancelled() => {}
            }
        });
    }
    if let Ok(Err(error)) = serving.await {
        tracing::debug!(%error, "port-forward");
    }
}

async fn pair(pods: &Pods, slot: &Slot, data: spdy::Stream, mut errors: DuplexStream) {
    let text = data.headers.get("port").map(String::as_str).unwrap_or_default();
    let result = match text.parse::<u16>() {
        Ok(port) if port > 0 => forward(pods, slot, port, data.io).await,
        _ => Err(format!("invalid port {text:?}")),
    };
    if let Err(message) = result {
        let _ = errors.write_all(message.as_bytes()).await;
    }
    let _ = errors.shutdown().await;
}

/// Connects a stream with a port of a pod until either ends.
async fn forward<S>(pods: &Pods, slot: &Slot, port: u16, stream: S) -> Result<(), String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let failed = |why: &str| {
        let (uid, name) = (&slot.uid, &slot.name);
        Err(format!(
            "error forwarding port {port} to pod {name}, uid : failed to connect to port {port} of pod {uid}: {why}"
        ))
    };
    let Some(address) = slot.address() else { return failed("the pod does not run") };
    match pods.context.network.local(address.pod, port) {
        Some(Local::Http(service)) => {
            if let Err(error) = coracle_proxy::serve_stream(stream, service).await {
                tracing::trace!(%error, "port-forward");
            }
            Ok(())
        }
        Some(Local::Tcp(at)) => {
            let socket = match pods.context.network.dial(at).await {
                Ok(socket) => socket,
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
                    return failed(&format!("dial tcp {}:{port}: connect: connection refused", address.pod));
                }
                Err(error) => return failed(&error.to_string()),
            };
            let _ = socket.set_nodelay(true);
            if let Err(error) = pass(socket, async { Ok(stream) }).await {
                tracing::trace!(%error, "port-forward");
            }
            Ok(())
        }
        None => failed("no container of the pod runs"),
    }
}
